"""Columns of values that cross as bytes: the bytes of all rows in sequence, and offsets.

Python values are packed piece by piece, which finds values that do not fit before any wasm runs.
Arrow's columns of text and bytes are used unchanged, if the ABI passes exactly these bytes.
"""

from __future__ import annotations

import array
import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol, final

from .._abi.base import Value
from .._abi.packing import Wire
from .arrow import Arrow, ArrowColumn, valid_bits
from .columns import BITS, Column, MisfitError, Misfits

MAX_SIZE = 2**31 - 1
# Bytes, or characters, that are packed at once: 0.1 to 0.3 ms. How many values these are is judged
# by some 16 of them, as asking all for their length would make batches of short ones slower.
AT_ONCE, SAMPLES = 256 * 1024, 16
WIDE = 8
"""Bytes of an offset of packed columns."""


class Packed(Protocol):
    """A column whose rows are bytes."""

    rows: int | None
    """Number of rows; None for a scalar."""
    nullable: bool
    """Whether a row is null; known once all rows are packed."""
    holds_none: bool
    """Whether a null was a None."""
    packs: bool
    """Whether `pack` must be called, for all rows, in order."""
    heavy: bool
    """Whether packing a value takes microseconds."""

    def pack(self, start: int, stop: int) -> None:
        """Check and convert these rows.

        Raises:
            MisfitError: a value does not fit.
        """

    def size(self, start: int, stop: int) -> int:
        """Return the number of bytes of these rows."""

    def offsets(self, start: int, stop: int) -> tuple[Value, int, int]:
        """Return a buffer of offsets, one more than rows; the first offset; bytes of an offset."""

    def data(self, start: int, stop: int) -> Value:
        """Return a buffer of the bytes of these rows."""

    def validity(self, start: int, stop: int) -> int | None:
        """Return which rows are valid: see `Column.validity`."""

    def values(self, start: int, stop: int) -> Sequence[object]:
        """Return these rows as Python values."""


@final
class PackedColumn:
    """Packed Python values of any column, or of a scalar.

    Args:
        source: the column.
        wire: how values are packed.
        refuses_none: whether a None is a value that does not fit.
    """

    packs = True
    misfits: Misfits | None = None
    """See `Column.misfits`."""

    def __init__(self, source: Column, wire: Wire, *, refuses_none: bool) -> None:
        self.rows = source.rows
        self.nullable = False
        self.holds_none = False
        first = source.values(0, 1) if source.rows != 0 else ()
        # Bytes may be given as lists of numbers, which take long.
        self.heavy = wire.heavy or any(type(value) in (list, tuple) for value in first)
        self._source = source
        self._wire = wire
        self._refuses_none = refuses_none
        self._data = bytearray()
        self._offsets = array.array("q", [0])
        self._valid = bytearray()  # a byte for each row, once there is a null

    def stop_of_piece(self, start: int, stop: int) -> int:
        """Return the end of the rows to pack at once: `stop`, or less if values are long."""
        if isinstance(self._source, ArrowColumn):
            return stop  # its values would be made twice
        part = self._source.values(start, stop)
        some = part[:: len(part) // SAMPLES | 1]  # odd, as every other value may be a None
        # Not of subclasses, whose `len` may be anything.
        lengths = (len(one) for one in some if type(one) is str or type(one) is bytes)
        longest = max(lengths, default=0)
        return min(stop, start + max(1, AT_ONCE // max(longest, 1)))

    def pack(self, start: int, stop: int) -> None:
        part = self._source.values(start, stop)
        try:
            data, sizes = self._wire.pack(part)
            if max(sizes, default=0) > MAX_SIZE:
                raise OverflowError("a value is too large")
        except Exception:
            data, sizes = self._pack_each(start, part)
        self._data += data
        offsets = itertools.accumulate(sizes, initial=self._offsets.pop())
        self._offsets.extend(offsets)

    def _pack_each(self, start: int, part: Sequence[object]) -> tuple[bytes, list[int]]:
        together, sizes = bytearray(), []
        for row, value in enumerate(part, start):
            if value is None and not self._refuses_none:
                self._note_null(row)
                sizes.append(0)
                continue
            try:
                data, (size,) = self._wire.pack((value,))
                if size > MAX_SIZE:
                    raise OverflowError("the value is too large")
            except Exception:
                if self.misfits is None or self.rows is None:
                    raise MisfitError(row) from None
                self.misfits.add(row)
                data, size = b"", 0
            together += data
            sizes.append(size)
        return bytes(together), sizes

    def _note_null(self, row: int) -> None:
        if not self._valid:
            self._valid += b"\1" * (self.rows or 1)
            self.nullable = True
            self.holds_none = not isinstance(self._source, ArrowColumn)
        self._valid[row] = 0

    def size(self, start: int, stop: int) -> int:
        return self._offsets[stop] - self._offsets[start]

    def offsets(self, start: int, stop: int) -> tuple[memoryview, int, int]:
        return memoryview(self._offsets)[start : stop + 1].cast("B"), self._offsets[start], WIDE

    def data(self, start: int, stop: int) -> memoryview:
        return memoryview(self._data)[self._offsets[start] : self._offsets[stop]]

    def validity(self, start: int, stop: int) -> int | None:
        if not self._valid:
            return None
        if self.rows is None:
            return 0
        return int(self._valid[start:stop][::-1].translate(BITS), 2)

    def values(self, start: int, stop: int) -> Sequence[object]:
        return self._source.values(start, stop)


@final
class ArrowBytes:
    """A column of text or bytes in Arrow's buffers, which are not copied."""

    packs = False
    heavy = False
    holds_none = False
    misfits: Misfits | None = None
    """See `Column.misfits`: there are none."""

    def __init__(self, source: ArrowColumn, chunks: Sequence[Arrow]) -> None:
        self.rows = source.rows
        self.nullable = source.nullable
        self._source = source
        self._chunks = chunks
        self._starts = [0, *itertools.accumulate(map(len, chunks))]
        self._views = [_views(chunk) for chunk in chunks]

    def pack(self, _start: int, _stop: int, /) -> None:
        raise AssertionError("there is nothing to pack")

    def _parts(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return the chunks, and their rows from and to, that make up these rows."""
        parts = []
        number = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            begin, end = self._starts[number : number + 2]
            upto = min(stop, end)
            parts.append((number, start - begin, upto - begin))
            start, number = upto, number + 1
        return parts

    def size(self, start: int, stop: int) -> int:
        total = 0
        for number, begin, end in self._parts(start, stop):
            offsets, _ = self._views[number]
            total += offsets[end] - offsets[begin]
        return total

    def offsets(self, start: int, stop: int) -> tuple[Value, int, int]:
        parts = self._parts(start, stop)
        if len(parts) == 1:
            number, begin, end = parts[0]
            offsets, _ = self._views[number]
            return offsets[begin : end + 1].cast("B"), offsets[begin], offsets.itemsize
        made, last = array.array("q"), 0
        for number, begin, end in parts:
            offsets, _ = self._views[number]
            shift = last - offsets[begin]
            made.extend(offset + shift for offset in offsets[begin:end])
            last += offsets[end] - offsets[begin]
        made.append(last)
        return memoryview(made).cast("B"), 0, WIDE

    def data(self, start: int, stop: int) -> Value:
        parts = []
        for number, begin, end in self._parts(start, stop):
            offsets, data = self._views[number]
            parts.append(data[offsets[begin] : offsets[end]])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def validity(self, start: int, stop: int) -> int | None:
        if not self.nullable:
            return None
        bits = place = 0
        for number, begin, end in self._parts(start, stop):
            bits |= valid_bits(self._chunks[number].slice(begin, end - begin)) << place
            place += end - begin
        return bits

    def values(self, start: int, stop: int) -> Sequence[object]:
        return self._source.values(start, stop)


def _views(chunk: Arrow) -> tuple[memoryview, memoryview]:
    """Return views of a chunk's offsets, one more than rows, and of the data that they index."""
    _, offsets, data = chunk.buffers()
    raw = memoryview(offsets).cast("B")
    view = raw.cast("q") if str(chunk.type).startswith("large") else raw.cast("i")
    return view[chunk.offset :], memoryview(b"" if data is None else data).cast("B")


def row_values(
    columns: Iterable[Column | PackedColumn | ArrowBytes], row: int
) -> tuple[object, ...]:
    """Return the values of a row, one of each column."""
    return tuple(one.values(row, row + 1)[0] for one in columns)
