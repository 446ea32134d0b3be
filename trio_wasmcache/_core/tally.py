"""Counts what a guest makes the host allocate for results, before it is allocated.

1. A value counts as `sys.getsizeof` says, with a slot of 8 bytes in the collection that it is in.
   Numbers count 32 bytes, also small ints, which Python shares.
2. Bytes on their way from the guest to such a value count as well, until it is made.
3. Whatever is copied or made costs fuel of the call (see `costs`).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, final

from attrs import define

from .costs import ITEM_FUEL, copy_fuel
from .errors import FuelExhaustedError, ResultTooLargeError

SLOT: Final = 8
"""Bytes of a reference."""
NUMBER: Final = 32
"""Bytes of an int or a float, at most."""
BYTES_SIZE: Final = sys.getsizeof(b"")
ASCII_SIZE: Final = sys.getsizeof("")
WIDE_SIZE: Final = sys.getsizeof("\u20ac") - 4
FREE: Final = 64
"""Bytes that are read without costing fuel: addresses, sizes and flags."""
SMALL: Final = 4096
"""Bytes that are read without being counted: a guest's memory is looked through in such pieces."""
# Bytes of UTF-8: those behind the first of a character; first bytes of characters in Latin-1, and
# of those in the basic plane.
_FOLLOWING: Final = bytes(range(0x80, 0xC0))
_NARROW: Final = bytes(range(0xC4))
_BASIC: Final = bytes(range(0xF0))


@final
@define(eq=False)
class Tally:
    """What the result of one call, or the results of one batch, take so far.

    One thread at a time adds to it; any may read it.
    """

    limit: int
    """`max_result_size` when the call began (bytes)."""
    size: int = 0
    """Values that are made (bytes)."""
    raw: int = 0
    """Bytes copied out of the guest, of which a value is being made."""
    kept: int = 0
    """Part of `size` that lies in memory which is counted elsewhere (see `ResultMemory`)."""
    allowed: int = 0
    """Fuel that may be spent before it is taken into account."""
    spent: int = 0
    """Fuel spent since then."""
    begun: int = 0
    """`size` when the call, or the row, began."""
    ended: bool = False

    @property
    def held(self) -> int:
        """Bytes in the books: all but what is counted elsewhere."""
        return self.size + self.raw - self.kept

    def add(self, size: int) -> None:
        """Count `size` bytes that are about to be allocated, or were just now if they are few.

        Raises:
            ResultTooLargeError: they are too many; nothing is counted.
        """
        if self.size + size > self.limit:
            raise self.refusal(size)
        self.size += size

    def check(self, size: int) -> None:
        """Raise what `add` would; nothing is counted."""
        if self.size + size > self.limit:
            raise self.refusal(size)

    def add_values(self, values: Sequence[Any]) -> None:
        """Count values that were made just now, and that have slots already."""
        self.add_made(sum(map(sys.getsizeof, values)), len(values))

    def add_made(self, size: int, number: int) -> None:
        """Count so many values, which take `size` bytes together and are about to be made."""
        if self.size + size > self.limit:
            raise self.refusal(size)
        spent = self.spent + ITEM_FUEL * number
        if spent > self.allowed:
            self.spend(ITEM_FUEL * number)
        self.size += size
        self.spent = spent

    def begin_row(self) -> None:
        """The next row of a batch begins: what the last one copied is not needed any more."""
        self.raw, self.begun = 0, self.size

    def mark(self) -> tuple[int, int]:
        """Return what `go_back` needs to forget all that is counted from now on."""
        return self.size, self.spent

    def go_back(self, mark: tuple[int, int]) -> None:
        """What was counted since `mark` is there no more, or not worth its fuel."""
        if not self.ended:
            self.size, self.spent = mark

    def copy(self, size: int) -> None:
        """Count bytes that are about to be copied out of the guest's memory.

        Raises:
            ResultTooLargeError: they are too many.
            FuelExhaustedError: the call has not enough fuel left for that.
        """
        if size > SMALL:
            self.check(size)
        if size > FREE:
            self.spend(copy_fuel(size))
        self.raw = size

    def copy_some(self, size: int) -> None:
        """Count bytes that are about to be copied, and that are few: the values are what counts."""
        self.spend(copy_fuel(size))
        self.raw = size

    def spend(self, fuel: int) -> None:
        """Let the call pay for work of the host.

        Raises:
            FuelExhaustedError: it has not as much left; all of that is spent.
        """
        if self.spent + fuel > self.allowed:
            self.spent = max(self.allowed, 0)
            raise FuelExhaustedError(
                "all fuel is burnt: copying and converting its result takes more than it has left"
            )
        self.spent += fuel

    def take_spent(self) -> int:
        """Return the fuel spent since the last time."""
        spent, self.spent = self.spent, 0
        return spent

    def refusal(self, size: int) -> ResultTooLargeError:
        """Return the error for `size` more bytes."""
        if self.ended:
            return ResultTooLargeError("the call has ended")
        return ResultTooLargeError(
            f"its result takes at least {self.size + size} bytes, more than max_result_size = "
            f"{self.limit}: return less, map fewer rows at once, or raise max_result_size"
        )

    def end(self) -> None:
        """Forget it all: the result was returned, or dropped. A thread that goes on is refused."""
        self.ended = True
        self.limit = -1
        self.size = self.raw = self.kept = 0


def text_size(data: bytes) -> int:
    """Return how large the text of these bytes of UTF-8 is in Python, without making it."""
    if data.isascii():
        return ASCII_SIZE + len(data)
    first = data.translate(None, _FOLLOWING)
    width = 4 if first.translate(None, _BASIC) else 2 if first.translate(None, _NARROW) else 1
    return WIDE_SIZE + width * (len(first) + 1)


def bytes_size(data: bytes) -> int:
    """Return how large these bytes are in an object of their own."""
    return BYTES_SIZE + len(data)


def int_size(data: bytes) -> int:
    """Return how large the int of so many bytes is at most: Python has 30 bits in four."""
    return NUMBER + -(-len(data) * 16 // 15)


def size_of(value: Any, limit: int) -> int:
    """Return how large a value is, with all that is in Python's own collections, up to a limit.

    Stops when it is beyond `limit`: what is larger may be any number that is.
    """
    total = 0
    left: list[Iterator[Any]] = [iter((value,))]
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


def _shallow(value: Any) -> int:
    if value is None:
        return 0
    try:
        size = sys.getsizeof(value)
        return max(size, int(getattr(value, "nbytes", 0)))
    except Exception:  # of a class that says anything
        return SLOT


def _inside(value: Any) -> Iterator[Any] | None:
    # As Python has them, whatever a class that is derived from them says.
    if isinstance(value, dict):
        return itertools.chain(dict.keys(value), dict.values(value))
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset)
    kind = next((kind for kind in kinds if isinstance(value, kind)), None)
    return None if kind is None else kind.__iter__(value)
