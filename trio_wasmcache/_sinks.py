"""Where the results of a batch go, chunk after chunk, and the column that they are in the end."""

from __future__ import annotations

import array
import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any, final

from attrs import Factory, define

from . import _arrow
from ._abi.plain import PlainType, cell_name
from ._abi.wire import Data, Wire
from ._columns import valid_rows
from ._core.driver import CELLS, Cell
from ._core.errors import GuestError
from ._results import ResultMemory

# Values that are made into an Arrow array at once.
ARROW_PIECE = 4096


@define(eq=False)
class Bits:
    """Bits that come in pieces, the first one lowest."""

    data: bytearray = Factory(bytearray)
    _rest: int = 0
    _odd: int = 0
    zeros: bool = False
    """Whether some were 0."""

    def add(self, bits: int, number: int) -> None:
        self.zeros = self.zeros or bits.bit_count() < number
        whole, odd = divmod(self._odd + number, 8)
        bits = self._rest | bits << self._odd
        self.data += (bits & (1 << 8 * whole) - 1).to_bytes(whole, "little")
        self._rest, self._odd = bits >> 8 * whole, odd

    def result(self) -> bytes | None:
        """All of them as Arrow's validity; None if none was 0."""
        if not self.zeros:
            return None
        return bytes(self.data) + self._rest.to_bytes(1, "little")


@final
@define(eq=False)
class Sink:
    """Gathers the results of one column of numbers."""

    cell: Cell
    arrow: bool
    nones: bool
    """Rows that are null come out as None, in a list."""
    rows: int
    """How many there will be."""
    memory: ResultMemory
    _room: memoryview = Factory(
        lambda self: self.memory.take(0 if self.nones else self.rows * self.cell.size),
        takes_self=True,
    )
    _end: int = 0  # of the bytes that are there
    _list: list[Any] = Factory(list)
    _validity: Bits = Factory(Bits)

    def add(self, data: memoryview, rows: int, valid: int) -> None:
        """The results of the next rows, and a bit for each that is valid."""
        if self.nones:
            which = valid_rows(valid, rows)
            values = data.cast(self.cell.code).tolist()  # type: ignore[call-overload]
            self._list += [v if yes else None for v, yes in zip(values, which, strict=True)]
            return
        start, self._end = self._end, self._end + len(data)
        self._room[start : self._end] = data
        if self.arrow:
            self._validity.add(valid, rows)

    def add_value(self, value: Any) -> None:
        """The result of one row, made otherwise; None is null."""
        if self.nones:
            self._list.append(value)
            return
        cell, start = self.cell, self._end
        self._end += cell.size
        struct.pack_into("<" + cell.code, self._room, start, 0 if value is None else value)
        if self.arrow:
            self._validity.add(int(value is not None), 1)

    def result(self) -> Any:
        """All of them: a list, an Arrow array, or a buffer of the type."""
        if self.nones:
            return self._list
        if self.arrow:
            return _arrow.from_cells(self.cell, self.rows, self._room, self._validity.result())
        if not self.rows:  # an empty buffer can't be cast
            return memoryview(bytes(self.cell.size)).cast(self.cell.code)[:0]  # type: ignore[call-overload]
        return self._room.cast(self.cell.code)  # type: ignore[call-overload]


@final
@define(eq=False)
class BytesSink:
    """Gathers results that crossed as bytes: in a list, or for Arrow, where it has such a type."""

    kind: str
    """The type of the results, as `_arrow` knows it."""
    wire: Wire
    lift: Callable[[bytes], Any]
    """Of one result; raises `AbiError` where there is no value."""
    arrow: bool
    rows: int
    _list: list[Any] = Factory(list)
    _parts: list[Any] = Factory(list)  # Arrow arrays of what was in the list
    _data: bytearray = Factory(bytearray)
    _ends: array.array[int] = Factory(lambda: array.array("q", [0]))
    _validity: Bits = Factory(Bits)

    @property
    def _as_bytes(self) -> bool:
        return self.arrow and bool(self.wire.arrow)

    def add(self, data: bytes, sizes: Sequence[int]) -> None:
        """The results of the next rows.

        Raises:
            AbiError: one has no value; `row` counts from the first of these.
        """
        if self._as_bytes:
            if not data.isascii() and self.wire.arrow == "string":
                self._values(data, sizes)  # each has to be text by itself
            self._put(data, sizes)
        else:
            self._list += self._values(data, sizes)
            if self.arrow and len(self._list) >= ARROW_PIECE:
                self._parts.append(_arrow.from_values(self.kind, self._list))
                self._list = []

    def _put(self, data: Data, sizes: Sequence[int]) -> None:
        self._data += data
        valid = (1 << len(sizes)) - 1
        if min(sizes, default=0) < 0:
            valid = int("".join("0" if size < 0 else "1" for size in reversed(sizes)), 2)
            sizes = [max(size, 0) for size in sizes]
        self._validity.add(valid, len(sizes))
        self._ends.extend(itertools.accumulate(sizes, initial=self._ends.pop()))

    def _values(self, data: bytes, sizes: Sequence[int]) -> list[Any]:
        try:
            return self.wire.unpack(data, sizes)
        except Exception:
            values, at = [], 0
            for row, size in enumerate(sizes):
                try:
                    values.append(None if size < 0 else self.lift(data[at : at + size]))
                except GuestError as error:
                    error.row = row
                    raise
                at += max(size, 0)
            return values

    def add_value(self, value: Any) -> None:
        """The result of one row, made otherwise."""
        if not self._as_bytes:
            self._list.append(value)
        elif value is None:
            self._put(b"", (-1,))
        else:
            self._put(*self.wire.pack((value,)))

    def result(self) -> Any:
        """All of them: a list, or an Arrow array."""
        if not self.arrow:
            return self._list
        if not self._as_bytes:
            last = _arrow.from_values(self.kind, self._list)
            return _arrow.together([*self._parts, last]) if self._parts else last
        return _arrow.from_bytes(
            self.kind, self.rows, self._validity.result(), self._ends, self._data
        )


def as_numbers(
    kind: PlainType, values: list[Any], memory: ResultMemory, *, nones: bool, arrow: bool
) -> Any:
    """Results that were made one by one as a `Sink` gives them."""
    sink = Sink(CELLS[cell_name(kind)], arrow, nones, len(values), memory)
    for value in values:
        sink.add_value(value)
    return sink.result()
