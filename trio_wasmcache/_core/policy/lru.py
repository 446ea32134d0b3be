"""Order of last use of instances and of modules: a ring in which each member knows its neighbours.

The ring begins and ends with the order itself, so no position needs special treatment. Members are
appended when used, so the one after the beginning is always the least recently used, and every
operation is O(1) at any number of members. A dictionary would compute hashes, which a ring does not
need, and find its front only by skipping every deleted item before it; an `OrderedDict` has a ring,
too, beside a dictionary, and takes 90 bytes more for each member.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar


class Member(Protocol):
    """A member of one order at a time; only the order or `Policy` changes its neighbours."""

    before: Any
    after: Any
    """None while it is in no order."""


T = TypeVar("T", bound=Member)


class LRU(Generic[T]):
    """Members in order of last use, oldest first."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before: Any = self
        self.after: Any = self

    def __bool__(self) -> bool:
        return self.after is not self

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[T]:
        member = self.after
        while member is not self:
            following = member.after
            yield member
            member = following

    def __contains__(self, member: T) -> bool:
        return member.after is not None

    def members(self) -> list[T]:
        """Return all members, the least recently used first; three times as fast as iterating."""
        members = []
        member = self.after
        while member is not self:
            members.append(member)
            member = member.after
        return members

    def touch(self, member: T) -> None:
        """Put `member` last: it is now the most recently used."""
        if member.after is not None:
            self.remove(member)
        last = self.before
        member.before, member.after = last, self
        last.after = self.before = member

    def replace(self, member: T, other: T) -> None:
        """Put `other` in the place of `member`; raise `KeyError` if that is not in."""
        before, after = member.before, member.after
        if after is None:
            raise KeyError(member)
        member.before = member.after = None
        other.before, other.after = before, after
        before.after = after.before = other

    def remove(self, member: T) -> None:
        """Remove `member`; raise `KeyError` if it is not in."""
        before, after = member.before, member.after
        if after is None:
            raise KeyError(member)
        before.after, after.before = after, before
        member.before = member.after = None

    def oldest(self) -> T | None:
        """Return the least recently used member, or None; changes nothing."""
        member: T | None = self.after if self.after is not self else None
        return member
