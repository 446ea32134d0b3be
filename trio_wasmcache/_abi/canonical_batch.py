"""Batches by the canonical ABI: columns of bytes, and of values that refer to no memory.

An argument that refers to no memory crosses as its flat values, in cells of eight bytes each; a
result as its image in the guest's memory, or as the one wasm value that it is.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, final

from attrs import field, frozen

from .._core.tally import Tally
from .._core.wasm.driver import CELLS
from .._core.wit.layout import layout
from .._core.wit.types import U8, Flags, List, Record, Tuple, Type
from .._core.wit.values import record_class
from .base import Value
from .canonical_lift import Lifting, lifter
from .canonical_lower import Lowering, lowerer
from .canonical_numbers import numbers_in
from .packing import Blob

CELL: dict[str, str] = {"i32": "I4x", "i64": "Q", "f32": "f4x", "f64": "d"}


@final
@frozen
class Octets:
    """Wire of ``list<u8>``, which takes what a call takes: see `packing.Wire`."""

    arrow: str = field(default="binary", init=False)
    heavy: bool = field(default=False, init=False)

    def pack(self, values: Sequence[Value]) -> tuple[bytes, Sequence[int]]:
        if {bytes}.issuperset(map(type, values)):
            return b"".join(values), list(map(len, values))
        with ExitStack() as views:
            flat, job, out = lowerer(List(U8)).flat, Lowering(False, math.inf, views), list[Any]()
            for value in values:
                flat(value, out, job)
            parts = [bytes(data) for _, data, _, _ in job.blocks]
        return b"".join(parts), list(map(len, parts))

    def unpack(self, data: bytes, sizes: Sequence[int], tally: Tally) -> Sequence[object]:
        return Blob().unpack(data, sizes, tally)


@final
@frozen(eq=False)
class Cells:
    """Wire of arguments: see `packing.Wire`."""

    type: Type
    arrow: str = field(default="", init=False)
    heavy: bool = field(default=False, init=False)
    _cells: struct.Struct = field(init=False)

    @_cells.default
    def _default_cells(self) -> struct.Struct:
        return struct.Struct("<" + "".join(CELL[kind] for kind in layout(self.type).flat))

    def pack(self, values: Sequence[Value]) -> tuple[bytes, Sequence[int]]:
        flat, pack, job = lowerer(self.type).flat, self._cells.pack, Lowering(False, math.inf)
        parts = []
        for value in values:
            out: list[Any] = []
            flat(value, out, job)
            parts.append(pack(*out))
        return b"".join(parts), [self._cells.size] * len(parts)

    def unpack(self, _data: bytes, _sizes: Sequence[int], _tally: Tally) -> Sequence[object]:
        raise AssertionError("results do not cross so")


@final
@frozen(eq=False)
class Images:
    """Wire of results: see `packing.Wire`."""

    got: str
    """The beginning of messages about a result."""
    type: Type
    arrow: str = field(default="", init=False)
    heavy: bool = field(init=False)
    _load_all: Callable[[bytes], list[Value]] | None = field(init=False)
    """Makes all values at once, if they are numbers."""

    @heavy.default
    def _default_heavy(self) -> bool:
        return lifter(self.type).items > 8

    @_load_all.default
    def _default_load_all(self) -> Callable[[bytes], list[Value]] | None:
        one = self.type
        packed = numbers_in(one) if isinstance(one, (Record, Tuple)) else None
        if packed is None:
            return None
        unpack = packed[0].iter_unpack
        if not isinstance(one, Record):
            return lambda data: list(unpack(data))
        made: Any = record_class(one)._make
        return lambda data: list(map(made, unpack(data)))

    def pack(self, _values: Sequence[Value]) -> tuple[bytes, Sequence[int]]:
        raise AssertionError("arguments do not cross so")

    def unpack(self, data: bytes, sizes: Sequence[int], tally: Tally) -> Sequence[object]:
        one, size = lifter(self.type), layout(self.type).size
        count = len(data) // size
        tally.add_made(count * one.size, count * one.items)
        if count == len(sizes) and self._load_all is not None:
            return self._load_all(data)
        job, load, at = Lifting(self.got, data, tally, math.inf), one.load, 0
        values: list[object] = []
        for given in sizes:
            if given < 0:
                values.append(None)
                continue
            values.append(load(data, at, job))
            at += size
        return values

    def decode(self, data: bytes, tally: Tally) -> Value:
        """Return one value, which is counted."""
        (value,) = self.unpack(data, (len(data),), tally)
        return value


@final
@frozen(eq=False)
class Flats:
    """Wire of results that are one wasm value, such as enums: see `packing.Wire`.

    As by a call, they cost no fuel of the host's.
    """

    got: str
    """The beginning of messages about a result."""
    type: Type
    arrow: str = field(default="", init=False)
    heavy: bool = field(init=False)
    cell: str = field(init=False)
    """Name of the cell of a result."""

    @heavy.default
    def _default_heavy(self) -> bool:
        return isinstance(self.type, Flags) and len(self.type.labels) > 8

    @cell.default
    def _default_cell(self) -> str:
        (cell,) = layout(self.type).flat
        return cell

    def pack(self, _values: Sequence[Value]) -> tuple[bytes, Sequence[int]]:
        raise AssertionError("arguments do not cross so")

    def unpack(self, data: bytes, sizes: Sequence[int], tally: Tally) -> Sequence[object]:
        one, cell = lifter(self.type), CELLS[self.cell]
        tally.add(len(data) // cell.size * one.size)
        found = iter(struct.unpack(f"<{len(data) // cell.size}{cell.code}", data))
        job = Lifting(self.got, b"", Tally(0), math.inf)
        return [None if size < 0 else one.flat(found, job) for size in sizes]

    def decode(self, data: bytes, tally: Tally) -> Value:
        """Return one value, which is counted."""
        (value,) = self.unpack(data, (len(data),), tally)
        return value


def crosses_in_cells(one: Type) -> bool:
    """Return whether values of a type refer to no memory, so that a driver can pass them."""
    return not layout(one).has_pointers
