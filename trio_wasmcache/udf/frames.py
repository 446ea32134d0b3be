"""Batches of columns with names: Arrow's tables, data frames of pandas and polars, and dicts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, final

from .._batch.arrow import is_arrow
from .._core.text import listed, shown
from .columns import pyarrow


class Frame(Protocol):
    """A batch."""

    rows: int
    """Number of rows."""
    names: list[object]
    """Names of its columns."""

    def column(self, name: str) -> Any:
        """Return a column.

        Raises:
            KeyError: there is none of that name.
        """

    def like(self, columns: Sequence[Any]) -> Any:
        """Return a column for results to be like, given some columns of the batch."""

    def texts(self, texts: Mapping[int, str]) -> Any:
        """Return a column of text, which is null in all rows but those given."""

    def add(self, columns: Mapping[str, Any]) -> Any:
        """Return the batch with columns added, or replaced."""


def frame_of(batch: Any) -> Frame:
    """Return a batch as a `Frame`.

    Raises:
        TypeError: it is no batch.
    """
    for library, names, frame in _CLASSES:
        loaded = sys.modules.get(library)
        if loaded is not None and isinstance(batch, tuple(getattr(loaded, name) for name in names)):
            return frame(batch)
    if isinstance(batch, Mapping):
        return DictFrame(batch)
    remedy = ""
    if type(batch).__name__ == "LazyFrame":
        remedy = ": call its collect() first, or use map_batches"
    elif is_arrow(batch):
        table = pyarrow().table(batch)
        return ArrowFrame(table)
    raise TypeError(
        "a batch is an Arrow table or record batch, a data frame of pandas or polars, or a dict of "
        f"arrays, got {type(batch).__name__}{remedy}"
    )


def _values(texts: Mapping[int, str], rows: int) -> list[str | None]:
    values: list[str | None] = [None] * rows
    for row, text in texts.items():
        values[row] = text
    return values


def _missing(name: str, names: Sequence[object]) -> KeyError:
    return KeyError(f"the batch has no column {shown(name)}; it has {listed([*map(str, names)])}")


def check_once(frame: Frame, names: Sequence[str | None]) -> None:
    """Check that a batch has no two columns of one of some names.

    Raises:
        ValueError: it has.
    """
    for name in names:
        count = frame.names.count(name)
        if count > 1:
            raise ValueError(
                f"the batch has {count} columns {shown(name)}: give each a name of its own"
            )


@final
class ArrowFrame:
    """A table or a record batch of pyarrow."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.rows: int = batch.num_rows
        self.names: list[object] = batch.schema.names

    def column(self, name: str) -> Any:
        names = self._batch.schema.names
        if name not in names:
            raise _missing(name, names)
        return self._batch.column(names.index(name))

    def like(self, columns: Sequence[Any]) -> Any:
        return columns[0] if columns else pyarrow().nulls(0)

    def texts(self, texts: Mapping[int, str]) -> Any:
        pa = pyarrow()
        if not texts:
            return pa.nulls(self.rows, pa.string())
        return pa.array(_values(texts, self.rows), pa.string())

    def add(self, columns: Mapping[str, Any]) -> Any:
        batch = self._batch
        for name, column in columns.items():
            names = batch.schema.names
            if name in names:
                batch = batch.set_column(names.index(name), name, column)
            else:
                batch = batch.append_column(name, column)
        return batch


@final
class PandasFrame:
    """A data frame of pandas."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.rows: int = len(batch)
        self.names: list[object] = [*batch.columns]

    def column(self, name: str) -> Any:
        if name not in self._batch.columns:
            raise _missing(name, [*self._batch.columns])
        return self._batch[name]

    def like(self, columns: Sequence[Any]) -> Any:
        return columns[0] if columns else sys.modules["pandas"].Series(0, self._batch.index)

    def texts(self, texts: Mapping[int, str]) -> Any:
        values, index = _values(texts, self.rows), self._batch.index
        return sys.modules["pandas"].Series(values, index, "string")

    def add(self, columns: Mapping[str, Any]) -> Any:
        return self._batch.assign(**columns)


@final
class PolarsFrame:
    """A data frame of polars."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.rows: int = batch.height
        self.names: list[object] = batch.columns

    def column(self, name: str) -> Any:
        if name not in self._batch.columns:
            raise _missing(name, self._batch.columns)
        return self._batch.get_column(name)

    def like(self, columns: Sequence[Any]) -> Any:
        return columns[0] if columns else sys.modules["polars"].Series("", [])

    def texts(self, texts: Mapping[int, str]) -> Any:
        polars = sys.modules["polars"]
        return polars.Series("", _values(texts, self.rows), polars.String)

    def add(self, columns: Mapping[str, Any]) -> Any:
        return self._batch.with_columns(column.alias(name) for name, column in columns.items())


@final
class DictFrame:
    """A dict of NumPy arrays, or of columns that can be one argument."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._batch = batch
        self.rows: int = len(next(iter(batch.values()), ()))
        self.names: list[object] = [*batch]

    def column(self, name: str) -> Any:
        if name not in self._batch:
            raise _missing(name, [*self._batch])
        return self._batch[name]

    def like(self, columns: Sequence[Any]) -> Any:
        del columns  # whatever they are
        return importlib.import_module("numpy").empty(0)

    def texts(self, texts: Mapping[int, str]) -> Any:
        column = importlib.import_module("numpy").empty(self.rows, object)
        for row, text in texts.items():
            column[row] = text
        return column

    def add(self, columns: Mapping[str, Any]) -> Any:
        return {**self._batch, **columns}


_CLASSES: tuple[tuple[str, tuple[str, ...], Callable[[Any], Frame]], ...] = (
    ("pyarrow", ("Table", "RecordBatch"), ArrowFrame),
    ("polars", ("DataFrame",), PolarsFrame),
    ("pandas", ("DataFrame",), PandasFrame),
)
