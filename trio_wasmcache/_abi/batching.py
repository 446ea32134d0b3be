"""The description of a binding for a memory driver, and the parts that are left to the host.

A binding with a `bulk` is one whose calls a memory driver can make; the results must equal those
of `steps`, row by row, including errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol, final

from attrs import define, field, frozen

from .._core.config import WASM_PAGE
from .._core.errors import AbiError
from .._core.integers import signed
from .._core.tally import Tally
from .._core.wasm.graph import FromPart
from .._core.wasm.memory_layout import (
    ALLOCATED_OUTSIDE,
    AREA_OUTSIDE,
    AREA_SIZE,
    BYTES,
    FAILED,
    NEW_OUTSIDE,
    NO_OBJECT,
    NO_ROOM,
    OUTSIDE,
    RANGE,
    MemoryShape,
)
from .._core.wasm.object_code import MIN_INTERVAL
from .base import Guest, Value
from .guest_memory import GROWN, check_allocated, grown_memory, memory_of, read
from .packing import Wire
from .plain import PlainType, lift_number

KEPT = "kept buffers"


@final
@define(eq=False)
class Heap:
    """When to have the garbage of an instance collected; kept as long as its memory.

    A runtime that collects by itself needs none of this, and one that does not never does; none
    says how much garbage there is. But garbage that is not collected makes the memory grow. So it
    is collected when the memory has grown, and from then on twice as often as that took.
    """

    pages: int
    """Pages of the memory when it was last looked at."""
    calls: int = 0
    """Number of calls since garbage was collected."""
    interval: int = 0
    """Number of calls after which garbage is collected; 0 as long as the memory has not grown."""

    def is_due(self, size: int) -> bool:
        """Count a call, after which the memory has that size (bytes); return whether to collect."""
        self.calls += 1
        pages = size // WASM_PAGE
        if pages > self.pages:
            self.interval, self.pages = max(self.calls // 2, MIN_INTERVAL), pages
        elif not self.interval or self.calls < self.interval:
            return False
        self.calls = 0
        return True


@final
@frozen(eq=False)
class Objects:
    """What a memory driver for objects needs to know of one instance."""

    classes: tuple[int, ...]
    """Class of the objects of each argument of bytes."""
    rtti: int
    """Address of the guest's table of classes."""
    heap: Heap | None
    """When to have garbage collected; None: never."""
    check_new: Callable[[Guest, int, int], object]
    """Function that raises the error for the address and size of a new object."""
    find: Callable[[Guest, int], object]
    """Function that raises the error for a result that is no such object."""


@frozen(eq=False)
class Bulk:
    """One binding, described for a memory driver."""

    what: str
    """The function's name for messages."""
    got: str
    """The beginning of messages about a result."""
    shape: MemoryShape
    exports: Mapping[str, str | FromPart]
    """{import of the driver: export of the guest, or of a part beside it}."""
    args: tuple[PlainType | Wire, ...]
    results: tuple[PlainType, ...]
    """Types of the results, if they are numbers; else empty."""
    wire: Wire | None
    """Type of the result, if it crosses as bytes or is made of the bytes of a number; else None."""
    lift: Callable[[bytes, Tally], Value]
    """Converts a result to a value and counts it; raises `AbiError` if it is not valid."""
    returns: str
    """Name of the result's type for messages."""
    refusal: Callable[[Guest, int, int, int], object] | None = None
    """Function that raises the error instead of `refuse`, for an ABI with rules of its own."""
    objects: Objects | None = None
    """How objects are made and found, if values cross as these."""
    kept: tuple[int | str, ...] = field(init=False)
    """Names of kept memory, in the order of the driver's states."""

    @kept.default
    def _kept(self) -> tuple[int | str, ...]:
        numbers = range(self.shape.args.count(BYTES)) if self.shape.allocation == "kept" else ()
        area = self.shape.areas and self.shape.allocation != "grown"
        return (*numbers, *(["area"] if area else []))

    def padded(self, size: int) -> int:
        """Return the bytes of grown memory that an argument of that size takes."""
        size = max(size + (self.shape.argument == "nul"), 1)
        return -(-size // self.shape.align) * self.shape.align

    @property
    def fixed_need(self) -> int:
        """Bytes of grown memory that the result's area takes."""
        return AREA_SIZE * self.shape.areas

    def grown(self, guest: Guest, need: int) -> tuple[int, int]:
        """Return address and size of grown memory of at least `need` bytes."""
        if need:
            grown_memory(guest, need)
        at, size = guest.state.get(GROWN, (0, 0))
        return int(at), int(size)

    def refuse(self, guest: Guest, why: int, at: int, size: int) -> NoReturn:
        """Raise the error that `steps` raises in a case in which the driver stopped."""
        if self.refusal is not None:
            self.refusal(guest, why, at, size)
        memory = memory_of(guest)
        if self.shape.style == "cql":
            size = signed(size)
        if why in (NO_ROOM, ALLOCATED_OUTSIDE):
            check_allocated(self.what, str(self.exports["alloc"]), memory, at, size)
        elif why == OUTSIDE:
            read(self.got, memory, at, size)
        elif why == AREA_OUTSIDE:
            read(f"{self.got} its result's place in", memory, at, size)
        elif why == NO_OBJECT and self.objects is not None:
            self.objects.find(guest, at)
        elif why == NEW_OUTSIDE and self.objects is not None:
            self.objects.check_new(guest, at, size)
        elif why == FAILED:
            raise AbiError(f"{self.got} an error instead of a {self.returns}")
        elif why == RANGE:
            lift_number(self.got, self.results[size], signed(at))
        raise AssertionError(f"a driver stopped for no reason: {why}, {at}, {size}")


class BulkBinding(Protocol):
    """A `Binding` whose calls a driver can make by the thousand."""

    @property
    def numbers(self) -> tuple[PlainType, ...]:
        """The types of the results, if they are numbers; else empty."""

    def bulk(self, guest: Guest) -> Bulk | None:
        """Return how a driver makes the calls; None: it can't.

        Raises:
            AbiError: the guest breaks its ABI, in a way that any call would detect.
        """
