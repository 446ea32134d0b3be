"""Columns that `Lease.map` takes: buffers, lists and scalars, as rows of one type.

A column returns chunks of rows as bytes, for a driver's scratch, or as Python values. A buffer is
never copied as a whole. A list is packed once, piece by piece, which finds values that do not fit
before any wasm runs. `arrow` adds columns in Arrow's format.
"""

from __future__ import annotations

import array
import itertools
import struct
import sys
from collections.abc import Sequence
from typing import final

from .._abi.base import Value
from .._abi.plain import truths
from .._core.buffers import items
from .._core.text import shown
from .._core.wasm.driver import Cell
from .._runtime.results import MAPPED, new_mapping

# Format letters of `struct` and `memoryview`, by kind of number, whatever its size.
_KINDS = ("?", "bhilqn", "BHILQN", "fd")
_NUMBERS = frozenset("".join(_KINDS))
BITS = bytes.maketrans(b"\0\1", b"01")


class MisfitError(Exception):
    """Raised when the value in row `row` of a column does not fit its type."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


@final
class Misfits:
    """Rows of a batch that are null as their values do not fit, in all columns.

    Args:
        most: number of such rows at most.
    """

    def __init__(self, most: int) -> None:
        self.rows: set[int] = set()
        self._most = most

    def add(self, row: int) -> None:
        """Add a row.

        Raises:
            MisfitError: there are too many.
        """
        if row not in self.rows:
            if len(self.rows) >= self._most:
                raise MisfitError(row) from None
            self.rows.add(row)


class Column:
    """A column of values for one argument."""

    misfits: Misfits | None = None
    """Where rows are noted whose values do not fit; None: they are errors."""

    rows: int | None = None
    """Number of rows; None for a scalar, which is the same in every row."""
    packs = False
    """Whether `pack` must be called."""
    nullable = False
    """Whether a row may be null; known once all rows are packed."""
    holds_none = False
    """Whether a null was a None."""

    def use(self, cell: Cell) -> None:
        """Set the type of the column's cells; it must be called before the methods below.

        Raises:
            TypeError: the column has another type.
            MisfitError: the value of a scalar does not fit; its row is 0.
        """
        raise NotImplementedError

    def pack(self, start: int, stop: int) -> None:
        """Check and convert these rows. It must be called for all rows, in order.

        Raises:
            MisfitError: a value does not fit.
        """
        raise NotImplementedError

    def raw(self, start: int, stop: int) -> bytes | memoryview:
        """Return the cells of these rows; the cell of a null may have any value."""
        raise NotImplementedError

    def validity(self, _start: int, _stop: int, /) -> int | None:
        """Return a bit for each row, the first one's lowest, 0 for a null; None without nulls."""
        return None

    def values(self, start: int, stop: int) -> Sequence[object]:
        """Return these rows as Python values."""
        raise NotImplementedError


def column(value: Value, *, objects: bool) -> Column:
    """Return the column for a value: a list, tuple, range or buffer; any other is a scalar.

    Args:
        value: the value that was given to `map`.
        objects: whether bytes are single values, not columns of numbers.

    Raises:
        TypeError: the items of a buffer are not numbers, or a mask is not in the buffer; or the
            value is one that is not evaluated or collected yet.
        ValueError: a buffer has several dimensions.
        OverflowError: a range has more items than a list can have.
    """
    if isinstance(value, (list, tuple, range)):
        try:
            return ListColumn(value)
        except OverflowError:
            raise OverflowError(
                f"a column has at most {sys.maxsize} rows, got {shown(value)}"
            ) from None
    if isinstance(value, str) or (objects and isinstance(value, (bytes, bytearray))):
        return Scalar(value)
    try:
        view = memoryview(value)
    except TypeError:
        remedy = to_collect(value)
        if remedy is None and not objects and hasattr(value, "__iter__"):
            remedy = "give list(...) of it"
        if remedy is not None:
            raise TypeError(
                "a column is a list, a tuple, a range, a buffer such as NumPy's, Arrow data, or a "
                f"single number or text, got {type(value).__name__}: {remedy}"
            ) from None
        return Scalar(value)
    except ValueError as error:  # such as NumPy's dates
        dates = getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m")
        remedy = ': give column.astype("int64")' if dates else ""
        raise TypeError(f"its items are no numbers: {error}{remedy}") from None
    if hasattr(value, "filled"):
        raise TypeError(
            "the mask of NumPy's masked arrays is not in their buffer: give map their tolist(), in "
            "which None is what is masked, or pyarrow.array(...) of them"
        )
    if view.ndim == 0:
        return Scalar(view[()])  # NumPy's scalars are such buffers
    if objects and view.format == "B" and isinstance(value, memoryview):
        return Scalar(value)
    if view.ndim > 1:
        raise ValueError(f"a column has one dimension, this buffer has {view.ndim}")
    if objects and view.format.lstrip("@=<") not in _NUMBERS:
        if hasattr(value, "astype"):  # NumPy's arrays of text and of objects
            return ListColumn(value.tolist())
        return ListColumn(items(view))
    return BufferColumn(view, value)


def to_collect(value: object) -> str | None:
    """Return how to get the values of something that has none yet, such as a generator, or None."""
    kind = type(value)
    if kind.__name__ == "LazyFrame":
        return "call its collect() first"
    if kind.__name__ in ("Expr", "Expression"):
        return "an expression has no values: evaluate it first, such as by df.select(...)"
    if hasattr(kind, "__await__"):
        return "await it first"
    if hasattr(kind, "__anext__"):
        return "give [item async for item in ...]"
    if hasattr(kind, "to_numpy"):
        return "give its to_numpy()"
    return "give list(...) of it" if hasattr(kind, "__next__") else None


# {kind of a cell: the type of NumPy}
_NUMPY = {"i": "int", "u": "uint", "f": "float", "bool": "bool"}


def numpy_name(cell: Cell) -> str:
    """Return the name of NumPy's type for a cell, such as ``int64``."""
    return "bool" if cell.truth else f"{_NUMPY[cell.name[0]]}{8 * cell.size}"


def same_format(cell: Cell, view: memoryview) -> bool:
    """Return whether the items of a buffer are cells of that type."""
    letter = view.format.lstrip("@=<")
    same = next((kind for kind in _KINDS if cell.code in kind), "")
    return len(letter) == 1 and letter in same and view.itemsize == cell.size


def pack(cell: Cell, values: Sequence[object]) -> bytes:
    """Return the values as cells; raise any exception if one does not fit."""
    if cell.truth:
        values = truths(values)
    return struct.pack(f"<{len(values)}{cell.code}", *values)


def memory_for(size: int) -> memoryview:
    """Return writable memory for a column of `size` bytes, as for results.

    A `bytearray` that grows is copied again and again, and one that does not is filled with zeros
    at once, for as long as the loop stands still.

    Raises:
        MemoryError: the system has no memory for them.
    """
    if size < MAPPED:
        return memoryview(bytearray(size))
    return memoryview(new_mapping(size, "a column"))


@final
class Scalar(Column):
    """A column of one value for all rows."""

    def __init__(self, value: object) -> None:
        self._value = value
        self._cells = memoryview(b"")  # of as many rows as a chunk had so far
        self.nullable = self.holds_none = value is None

    def use(self, cell: Cell) -> None:
        if self.nullable:
            self._data = bytes(cell.size)
            return
        try:
            self._data = pack(cell, (self._value,))
        except Exception:
            raise MisfitError(0) from None

    def raw(self, start: int, stop: int) -> memoryview:
        size = len(self._data) * (stop - start)
        if len(self._cells) < size:
            self._cells = memoryview(self._data * (stop - start))
        return self._cells[:size]

    def validity(self, _start: int, _stop: int, /) -> int | None:
        return 0 if self.nullable else None

    def values(self, start: int, stop: int) -> Sequence[object]:
        return (self._value,) * (stop - start)


@final
class ListColumn(Column):
    """A column of Python values."""

    packs = True

    def __init__(self, values: Sequence[object]) -> None:
        if type(values) not in (list, tuple, range):
            # Iterate over a subclass once: its `__len__` may disagree with its items.
            count = len(values)
            values = list(itertools.islice(values, count + 1))
            if len(values) != count:
                raise ValueError(f"a column of {count} items had another number of them")
        self._values = values
        self.rows: int = len(values)
        self._valid = bytearray()  # a byte for each row, once there is a null

    def use(self, cell: Cell) -> None:
        self._cell = cell
        self._packed = memory_for(self.rows * cell.size)

    def pack(self, start: int, stop: int) -> None:
        part, cell = self.values(start, stop), self._cell
        try:
            values = truths(part) if cell.truth else part
            struct.pack_into(
                f"<{stop - start}{cell.code}", self._packed, start * cell.size, *values
            )
        except Exception:
            for row, value in enumerate(part, start):
                at = row * cell.size
                self._packed[at : at + cell.size] = self._pack_one(row, value)

    def _pack_one(self, row: int, value: object) -> bytes:
        if value is None:
            if not self._valid:
                self._valid += b"\1" * self.rows
                self.nullable = self.holds_none = True
            self._valid[row] = 0
            return bytes(self._cell.size)
        try:
            return pack(self._cell, (value,))
        except Exception:
            if self.misfits is None:
                raise MisfitError(row) from None
            self.misfits.add(row)
            return bytes(self._cell.size)

    def raw(self, start: int, stop: int) -> memoryview:
        return self._packed[start * self._cell.size : stop * self._cell.size]

    def validity(self, start: int, stop: int) -> int | None:
        # As binary digits, the highest first: `int` is fast for bases that are powers of two.
        return int(self._valid[start:stop][::-1].translate(BITS), 2) if self._valid else None

    def values(self, start: int, stop: int) -> Sequence[object]:
        part = self._values[start:stop]
        if len(part) != stop - start:
            raise ValueError("a list has changed its length during the call")
        return part


@final
class BufferColumn(Column):
    """A column of numbers in a buffer of one dimension."""

    def __init__(self, view: memoryview, owner: object) -> None:
        self.rows: int = view.shape[0]  # type: ignore[index]
        self._view = view
        self._owner = owner
        # The bytes of a contiguous buffer are used as they are.
        self._flat = view.cast("B") if view.c_contiguous and self.rows else None
        self._size = view.itemsize

    def use(self, cell: Cell) -> None:
        view = self._view
        if not same_format(cell, view):
            raise TypeError(
                f"takes a buffer of format {cell.code!r} ({cell.size} bytes an item), "
                f"got one of format {view.format!r} ({view.itemsize} bytes an item): "
                f"{self._remedy(cell)}"
            )

    def _remedy(self, cell: Cell) -> str:
        if hasattr(self._owner, "astype"):
            return f'give column.astype("{numpy_name(cell)}")'
        if isinstance(self._owner, array.array) and not cell.truth:
            return f'give array("{cell.code}", column)'
        return "give list(column)"

    def raw(self, start: int, stop: int) -> bytes | memoryview:
        if self._flat is None:
            return self._view[start:stop].tobytes()
        size = self._size
        return self._flat[start * size : stop * size]

    def values(self, start: int, stop: int) -> Sequence[object]:
        return items(self._view[start:stop])


def valid_rows(bits: int, rows: int) -> list[bool]:
    """Return for each row whether it is valid."""
    return [digit == "1" for digit in reversed(f"{bits:0{rows}b}")]
