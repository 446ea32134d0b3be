"""What a memory driver has to know of a crossing, and what is left for the host to do beside it.

A crossing that has a `bulk` is one whose calls a memory driver can make; what it gives must be what
`steps` gives, row by row, errors included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from attrs import field, frozen

from .._core.errors import AbiError
from .._core.integers import signed
from .._core.tally import Tally
from .._core.wasm.memory_layout import (
    ALLOCATED_OUTSIDE,
    AREA_OUTSIDE,
    AREA_SIZE,
    BYTES,
    FAILED,
    NO_ROOM,
    OUTSIDE,
    RANGE,
    MemoryShape,
)
from .base import Guest
from .guest_memory import ROOM, check_allocated, grown_room, memory_of, read
from .packing import Wire
from .plain import PlainType, lift_number

KEPT = "kept buffers"


@frozen(eq=False)
class Bulk:
    """One crossing as a memory driver makes it."""

    what: str
    """Names the function in messages."""
    got: str
    """How messages begin that are about a result."""
    shape: MemoryShape
    exports: Mapping[str, str]
    """{what the driver imports: the export of the guest}."""
    args: tuple[PlainType | Wire, ...]
    results: tuple[PlainType, ...]
    """Empty if the result is bytes."""
    wire: Wire | None
    """Of the result, if it is bytes."""
    lift: Callable[[bytes, Tally], Any]
    """The value of a result, which is counted; `AbiError` if it has none."""
    returns: str
    """The type of the result as messages name it."""
    kept: tuple[int | str, ...] = field(init=False)
    """Names of kept room, in the order of the driver's cells."""

    @kept.default
    def _kept(self) -> tuple[int | str, ...]:
        numbers = range(self.shape.args.count(BYTES)) if self.shape.room == "kept" else ()
        area = self.shape.areas and self.shape.room != "grown"
        return (*numbers, *(["area"] if area else []))

    def padded(self, size: int) -> int:
        """How much of grown room an argument of that size takes."""
        size = max(size + (self.shape.argument == "nul"), 1)
        return -(-size // self.shape.align) * self.shape.align

    @property
    def fixed_need(self) -> int:
        """How much of grown room the result's area takes."""
        return AREA_SIZE * self.shape.areas

    def grown(self, guest: Guest, need: int) -> tuple[int, int]:
        """Address and size of grown room of at least that size."""
        if need:
            grown_room(guest, need)
        at, size = guest.state.get(ROOM, (0, 0))
        return int(at), int(size)

    def refuse(self, guest: Guest, why: int, at: int, size: int) -> NoReturn:
        """Raise what `steps` raises where the driver stopped for that reason."""
        memory = memory_of(guest)
        if self.shape.style == "cql":
            size = signed(size)
        if why in (NO_ROOM, ALLOCATED_OUTSIDE):
            check_allocated(self.what, self.exports["alloc"], memory, at, size)
        elif why == OUTSIDE:
            read(self.got, memory, at, size)
        elif why == AREA_OUTSIDE:
            read(f"{self.got} its result's place in", memory, at, size)
        elif why == FAILED:
            raise AbiError(f"{self.got} an error instead of a {self.returns}")
        elif why == RANGE:
            lift_number(self.got, self.results[size], signed(at))
        raise AssertionError(f"a driver stopped for no reason: {why}, {at}, {size}")


class BulkCrossing(Protocol):
    """A `Crossing` of which a driver may make many."""

    @property
    def numbers(self) -> tuple[PlainType, ...]:
        """The types of its results, if they are numbers."""

    def bulk(self, guest: Guest) -> Bulk | None:
        """How a driver makes the calls; None: it can't.

        Raises:
            AbiError: the guest breaks its ABI, as the first call will find.
        """
