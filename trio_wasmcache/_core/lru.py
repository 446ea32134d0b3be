"""The order of last use, and nothing else: the bytes are in the ledger.

Time is not kept here either. What is touched later was used later, so the front is always the
least recently used, and every operation is O(1) at any number of members.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class LRU(Generic[T]):
    """Members in order of last use, oldest first."""

    __slots__ = ("order",)

    def __init__(self) -> None:
        # A plain dict would do but for its front: finding the first key steps over every deleted
        # one before it. OrderedDict keeps a linked list.
        self.order: OrderedDict[T, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[T]:
        return iter(self.order)

    def __contains__(self, member: object) -> bool:
        return member in self.order

    def touch(self, member: T) -> None:
        """Put `member` last: it is now the most recently used."""
        order = self.order
        if member in order:
            order.move_to_end(member)
        else:
            order[member] = None

    def remove(self, member: T) -> None:
        """Take `member` out; `KeyError` if it is not in."""
        del self.order[member]

    def oldest(self) -> T | None:
        """The least recently used member, or None; nothing changes."""
        return next(iter(self.order), None)
