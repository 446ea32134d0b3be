"""Counts the memory that a guest makes the host allocate for results, before it is allocated.

1. A value counts with its `sys.getsizeof`, plus a slot of 8 bytes in the collection that contains
   it. Numbers count 32 bytes, including small ints, which Python shares.
2. Bytes copied out of the guest for such a value count as well, until it is made.
3. Each copy and each new value costs fuel of the call (see `costs`).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Final, final

from .costs import ITEM_FUEL, copy_fuel
from .errors import FuelExhaustedError, ResultTooLargeError

SLOT: Final = 8
"""Size of a reference (bytes)."""
NUMBER: Final = 32
"""Size of an int or a float (bytes), at most."""
BYTES_SIZE: Final = sys.getsizeof(b"")
ASCII_SIZE: Final = sys.getsizeof("")
WIDE_SIZE: Final = sys.getsizeof("\u20ac") - 4
FREE: Final = 64
"""Number of bytes that can be read without fuel: addresses, sizes and flags."""
SMALL: Final = 4096
"""Number of bytes that can be read uncounted; a guest's memory is searched in such pieces."""
# Bytes of UTF-8: continuation bytes; first bytes of characters in Latin-1, and of those in the
# basic plane.
_FOLLOWING: Final = bytes(range(0x80, 0xC0))
_NARROW: Final = bytes(range(0xC4))
_BASIC: Final = bytes(range(0xF0))


@final
class Tally:
    """The memory and fuel that the result of one call, or the results of one batch, take so far.

    One thread at a time may add to it; any may read it.
    """

    __slots__ = (
        "__weakref__",
        "allowed",
        "alone",
        "begun",
        "ended",
        "kept",
        "limit",
        "raw",
        "size",
        "spent",
    )

    def __init__(self, limit: int, allowed: int = 0) -> None:
        self.limit: int = limit
        """`max_result_size` when the call began (bytes)."""
        self.size: int = 0
        """Bytes of values made so far."""
        self.raw: int = 0
        """Bytes copied out of the guest for a value that is being made."""
        self.kept: int = 0
        """Bytes of `size` in memory that is counted elsewhere (see `ResultMemory`)."""
        self.allowed: int = allowed
        """Units of fuel that may be spent before they are charged."""
        self.spent: int = 0
        """Units of fuel spent and not yet charged."""
        self.begun: int = 0
        """Value of `size` when the call, or the row, began."""
        self.ended: bool = False
        self.alone: bool = False
        """Whether the bytes that were refused last exceed the limit without those of earlier
        rows."""

    @property
    def held(self) -> int:
        """Bytes counted here: all except those counted elsewhere."""
        return self.size + self.raw - self.kept

    def allow(self, fuel: int) -> None:
        """Let the call spend this much fuel before `take_spent` is called."""
        self.allowed = fuel

    def keep(self, size: int) -> None:
        """Note that `size` of its bytes lie in memory that is counted elsewhere."""
        self.kept += size

    def unkeep(self, size: int) -> None:
        """Note that `size` of its bytes are no longer in memory that is counted elsewhere."""
        self.kept -= min(size, self.kept)

    def add(self, size: int) -> None:
        """Count `size` bytes about to be allocated, or, if few, just allocated.

        Raises:
            ResultTooLargeError: the limit would be exceeded; nothing is counted.
        """
        if self.size + size > self.limit:
            raise self.refusal(size)
        self.size += size

    def check(self, size: int) -> None:
        """Raise the error that `add` would raise; count nothing."""
        if self.size + size > self.limit:
            raise self.refusal(size)

    def add_values(self, values: Sequence[object]) -> None:
        """Count values that were just made, and whose slots are counted already."""
        self.add_made(sum(map(sys.getsizeof, values)), len(values))

    def add_made(self, size: int, number: int) -> None:
        """Count `number` values about to be made, which take `size` bytes together."""
        if self.size + size > self.limit:
            raise self.refusal(size)
        spent = self.spent + ITEM_FUEL * number
        if spent > self.allowed:
            self.spend(ITEM_FUEL * number)
        self.size += size
        self.spent = spent

    def begin_row(self) -> None:
        """Begin the next row of a batch: the bytes copied for the last one are freed."""
        self.raw, self.begun = 0, self.size

    def drop_row(self) -> None:
        """Forget the values of the row, which has failed."""
        if not self.ended:
            self.size, self.raw = self.begun, 0

    def mark(self) -> tuple[int, int]:
        """Return a mark with which `go_back` undoes all counts made from now on."""
        return self.size, self.spent

    def go_back(self, mark: tuple[int, int]) -> None:
        """Undo all counts since `mark`: the values were freed, or take no fuel worth counting."""
        if not self.ended:
            self.size, self.spent = mark

    def copy(self, size: int) -> None:
        """Count bytes about to be copied out of the guest's memory.

        Raises:
            ResultTooLargeError: the limit would be exceeded.
            FuelExhaustedError: the call has not enough fuel left for the copy.
        """
        if size > SMALL:
            self.check(size)
        if size > FREE:
            self.spend(copy_fuel(size))
        self.raw = size

    def copy_some(self, size: int) -> None:
        """Charge a copy of a few bytes about to be made; their values are counted separately."""
        self.spend(copy_fuel(size))
        self.raw = size

    def spend(self, fuel: int) -> None:
        """Charge the call for work of the host.

        Raises:
            FuelExhaustedError: the call has less fuel left; all of it is spent.
        """
        if self.spent + fuel > self.allowed:
            self.spent = max(self.allowed, 0)
            raise FuelExhaustedError(
                "all fuel is burnt: copying and converting its result takes more than it has left"
            )
        self.spent += fuel

    def take_spent(self) -> int:
        """Return the fuel spent since the last time this was called."""
        spent, self.spent = self.spent, 0
        return spent

    def refusal(self, size: int) -> ResultTooLargeError:
        """Return the error for `size` more bytes."""
        if self.ended:
            return ResultTooLargeError("the call has ended")
        self.alone = self.size - self.begun + size > self.limit
        return ResultTooLargeError(
            f"its result takes at least {self.size + size} bytes, more than max_result_size = "
            f"{self.limit}: return less, map fewer rows at once, or raise max_result_size"
        )

    def end(self) -> None:
        """Free all counts, as the result was returned or dropped; refuse threads still adding."""
        self.ended = True
        self.limit = -1
        self.size = self.raw = self.kept = 0


def text_size(data: bytes) -> int:
    """Return the size of the `str` decoded from UTF-8 `data` (bytes), without making it."""
    if data.isascii():
        return ASCII_SIZE + len(data)
    first = data.translate(None, _FOLLOWING)
    width = 4 if first.translate(None, _BASIC) else 2 if first.translate(None, _NARROW) else 1
    return WIDE_SIZE + width * (len(first) + 1)


def bytes_size(data: bytes) -> int:
    """Return the size of a `bytes` object with this content (bytes)."""
    return BYTES_SIZE + len(data)


def int_size(data: bytes) -> int:
    """Return the largest size of an int of `len(data)` bytes: Python stores 30 bits in four."""
    return NUMBER + -(-len(data) * 16 // 15)


def size_of(value: object, limit: int) -> int:
    """Return the size of a value, including the contents of Python's own collections (bytes).

    Stops once the sum exceeds `limit`; the result is then any number above the limit.
    """
    total = 0
    left: list[Iterator[object]] = [iter((value,))]
    while left and total <= limit:
        for one in left[-1]:
            total += _shallow(one)
            if total > limit:
                break
            inner = _inside(one)
            if inner is not None:
                left.append(inner)
                break
        else:
            left.pop()
    return total


def _shallow(value: object) -> int:
    if value is None:
        return 0
    try:
        size = sys.getsizeof(value)
        return max(size, int(getattr(value, "nbytes", 0)))
    except Exception:  # of a class with methods of any kind
        return SLOT


def _inside(value: object) -> Iterator[object] | None:
    # By Python's own methods, whatever a subclass overrides.
    if isinstance(value, dict):
        return itertools.chain(dict.keys(value), dict.values(value))
    if isinstance(value, list):
        return list.__iter__(value)
    if isinstance(value, tuple):
        return tuple.__iter__(value)
    if isinstance(value, set):
        return set.__iter__(value)
    return frozenset.__iter__(value) if isinstance(value, frozenset) else None
