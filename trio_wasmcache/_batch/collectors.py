"""Sinks, which gather the results of a batch chunk by chunk and make columns of them."""

from __future__ import annotations

import array
import itertools
import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias, final

from attrs import Factory, define

from .._abi.arrow_forms import ArrowForm
from .._abi.base import Value
from .._abi.packing import Data, Wire
from .._abi.plain import PlainType, cell_name
from .._core.errors import GuestError, ResultTooLargeError
from .._core.tally import NUMBER, SLOT, Tally
from .._core.wasm.driver import CELLS, Cell
from .._runtime.results import ResultMemory
from . import arrow as _arrow
from .columns import valid_rows

# Number of values that are converted to an Arrow array at once.
ARROW_PIECE = 4096
Failed: TypeAlias = Callable[[int, GuestError], None]
"""Is told of a row whose result can't be converted, and of the error."""
# Bytes of an offset in a column of bytes.
WIDE = 8


@define(eq=False)
class Bits:
    """Bits that are added in pieces, the first one lowest."""

    data: bytearray = Factory(bytearray)
    _rest: int = 0
    _odd: int = 0
    zeros: bool = False
    """Whether any of them is 0."""

    def add(self, bits: int, number: int) -> None:
        self.zeros = self.zeros or bits.bit_count() < number
        whole, odd = divmod(self._odd + number, 8)
        bits = self._rest | bits << self._odd
        self.data += (bits & (1 << 8 * whole) - 1).to_bytes(whole, "little")
        self._rest, self._odd = bits >> 8 * whole, odd

    def result(self) -> bytes | None:
        """Return all bits as an Arrow validity buffer; None if none is 0."""
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
    """Whether the result is a list, in which a null is None."""
    rows: int
    """Number of rows of the batch."""
    memory: ResultMemory
    tally: Tally
    marked: bool = True
    """Whether `valid` of `add` says which rows are null; if not, none is."""
    _room: memoryview = Factory(lambda self: self._take(), takes_self=True)
    _end: int = 0  # of the bytes that are filled
    _list: list[object] = Factory(list)
    _validity: Bits = Factory(Bits)

    def _take(self) -> memoryview:
        if self.nones:
            self.tally.add(self.rows * (SLOT + NUMBER))
            return memoryview(b"")
        return self.memory.take(self.rows * self.cell.size, self.tally)

    def add(self, data: memoryview, rows: int, valid: int) -> None:
        """Add the results of the next rows; `valid` has a bit for each row."""
        if self.nones:
            values = data.cast(self.cell.code).tolist()  # type: ignore[call-overload]
            if self.marked and valid.bit_count() < rows:
                which = valid_rows(valid, rows)
                values = [v if yes else None for v, yes in zip(values, which, strict=True)]
            self._list += values
            return
        start, self._end = self._end, self._end + len(data)
        self._room[start : self._end] = data
        if self.arrow:
            self._validity.add(valid if self.marked else (1 << rows) - 1, rows)

    def add_value(self, value: object) -> None:
        """Add the result of one row that was called for singly; None is null."""
        if self.nones:
            self._list.append(value)
            return
        cell, start = self.cell, self._end
        self._end += cell.size
        struct.pack_into("<" + cell.code, self._room, start, 0 if value is None else value)
        if self.arrow:
            self._validity.add(int(value is not None), 1)

    def add_null(self) -> None:
        """Add null as the result of one row."""
        self.add_value(None)

    def result(self) -> Value:
        """Return the column: a list, an Arrow array, or a `memoryview` of the type."""
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
    """Gathers results that crossed as bytes, in a list or in buffers for Arrow."""

    kind: str
    """Type of the results: see `arrow.FACTORIES`."""
    wire: Wire
    lift: Callable[[bytes, Tally], Value]
    """Function that converts one result, and raises `AbiError` for a bad one."""
    arrow: bool
    rows: int
    tally: Tally
    form: ArrowForm | None = None
    """Form of the results in Arrow's arrays; None: that of `kind`, or Arrow infers it."""
    _list: list[object] = Factory(list)
    _parts: list[object] = Factory(list)  # Arrow arrays of what was in the list
    _data: bytearray = Factory(bytearray)
    _ends: array.array[int] = Factory(lambda: array.array("q", [0]))
    _validity: Bits = Factory(Bits)
    _before: int = Factory(lambda self: self.tally.size, takes_self=True)
    """Size of the tally before the values in the list."""

    @property
    def _as_bytes(self) -> bool:
        return self.arrow and bool(self.wire.arrow)

    def add(self, data: bytes, sizes: Sequence[int], failed: Failed | None = None) -> None:
        """Add the results of the next rows; a negative size means null.

        Args:
            data: the bytes of all results.
            sizes: the size of each.
            failed: function that is told of each row whose result can't be converted, which is null
                then; it may raise the error.

        Raises:
            AbiError: a result can't be converted.
            ResultTooLargeError: the results exceed `max_result_size`.
            FuelExhaustedError: converting the results costs too much fuel.

        The `row` of each error counts from the first of these rows.
        """
        if self._as_bytes:
            if not data.isascii() and self.wire.arrow == "string":
                mark = self.tally.mark()
                # Checks that each is UTF-8 by itself.
                values = self._values(data, sizes, failed)
                self.tally.go_back(mark)
                if failed is not None:
                    data, sizes = _without(data, sizes, values)
            self._put(data, sizes)
        else:
            self._list += self._values(data, sizes, failed)
            if self.arrow and len(self._list) >= ARROW_PIECE:
                self._parts.append(self._part())

    def _part(self) -> Value:
        """Return the list as an Arrow array, which replaces it, also in the tally."""
        made = _arrow.from_values(self.kind, self._list, self.form)
        self._list = []
        self.tally.size = self._before
        self.tally.add(made.nbytes)
        self._before = self.tally.size
        return made

    def _put(self, data: Data, sizes: Sequence[int]) -> None:
        try:
            self.tally.add_made(len(data) + WIDE * len(sizes), len(sizes))
        except GuestError as error:
            error.row = self._first_too_large(sizes)
            raise
        self._data += data
        valid = (1 << len(sizes)) - 1
        if min(sizes, default=0) < 0:
            valid = int("".join("0" if size < 0 else "1" for size in reversed(sizes)), 2)
            sizes = [max(size, 0) for size in sizes]
        self._validity.add(valid, len(sizes))
        self._ends.extend(itertools.accumulate(sizes, initial=self._ends.pop()))

    def _first_too_large(self, sizes: Sequence[int]) -> int:
        """Return the row with which the results exceed the limit."""
        left = self.tally.limit - self.tally.size
        for row, size in enumerate(sizes):
            left -= max(size, 0) + WIDE
            if left < 0:
                return row
        return len(sizes) - 1

    def _values(self, data: bytes, sizes: Sequence[int], failed: Failed | None) -> Sequence[object]:
        tally, mark = self.tally, self.tally.mark()
        try:
            tally.add(SLOT * len(sizes))
            return self.wire.unpack(data, sizes, tally)
        except Exception:
            tally.go_back(mark)
        values: list[object] = []
        at = 0
        for row, size in enumerate(sizes):
            try:
                tally.add(SLOT)
                values.append(None if size < 0 else self.lift(data[at : at + size], tally))
            except GuestError as error:
                error.row = row
                if failed is None or isinstance(error, ResultTooLargeError):
                    raise
                failed(row, error)
                values.append(None)
            at += max(size, 0)
        return values

    def add_null(self) -> None:
        """Add null as the result of one row, the next one."""
        if self._as_bytes:
            self._put(b"", (-1,))
        else:
            self.tally.add(SLOT)
            self._list.append(None)

    def add_value(self, value: object) -> None:
        """Add the result of one row that was called for singly and is in the tally already."""
        if not self._as_bytes:
            self._list.append(value)
            return
        self.tally.size = self.tally.begun  # only its bytes are kept, which `_put` counts
        if value is None:
            self._put(b"", (-1,))
        else:
            self._put(*self.wire.pack((value,)))

    def result(self) -> Value:
        """Return the column: a list, or an Arrow array."""
        if not self.arrow:
            return self._list
        if not self._as_bytes:
            last = self._part()
            if not self._parts:
                return last
            self.tally.raw = sum(part.nbytes for part in (*self._parts, last))  # for the copy
            return _arrow.together([*self._parts, last])
        return _arrow.from_bytes(
            self.kind, self.rows, self._validity.result(), self._ends, self._data
        )


def _without(
    data: bytes, sizes: Sequence[int], values: Sequence[object]
) -> tuple[bytes, Sequence[int]]:
    """Return data and sizes of results, with nulls for those of which the value is None."""
    if None not in values:
        return data, sizes
    parts, left, at = [], [], 0
    for size, value in zip(sizes, values, strict=True):
        left.append(-1 if value is None else size)
        if value is not None:
            parts.append(data[at : at + size])
        at += max(size, 0)
    return b"".join(parts), left


def as_numbers(
    kind: PlainType,
    values: list[object],
    memory: ResultMemory,
    tally: Tally,
    *,
    nones: bool,
    arrow: bool,
) -> Value:
    """Return results that were made one by one as the column of a `Sink`."""
    sink = Sink(CELLS[cell_name(kind)], arrow, nones, len(values), memory, tally)
    for value in values:
        sink.add_value(value)
    return sink.result()
