"""Members by priority, in parts by group: finds the least of those that reservations let go.

1. A member is in the part of its group if that has reserved bytes; all others are in one part. So
   whatever is kept for a group is passed over as a whole, not one by one.
2. The part of a group is a tree by size: how much of it may go depends on the sizes only.
3. Nothing is told at a hit. An entry has the priority at some earlier rest, which is never above
   the present one; the least entry is computed anew if its member rested since, until one is up to
   date. Where a priority may have fallen, the member gets an entry below all others (`doubt`).

So choosing takes O(log n) for each part and for each member that rested, or came, since the last
time; and one step for each group with reserved bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

from .records import GroupRecord
from .reservations import EVERY, NO_LIMIT, Among

T = TypeVar("T")
# Entries that are kept whatever the number of members.
SLACK = 64
Entry = tuple[Any, int, Any]
"""(key, the rest at which it was right, member). Of keys below zero, which must be computed anew,
each is the only one of that value; of others, the rest is. So no two members are compared."""


class _Node:
    """One member of a tree."""

    __slots__ = ("at", "entry", "least", "left", "right", "up", "weight")

    def __init__(self, at: tuple[int, int], entry: Entry, weight: int) -> None:
        self.at, self.entry, self.weight = at, entry, weight
        self.least = entry
        """The least entry of itself and all below."""
        self.left: _Node | None = None
        self.right: _Node | None = None
        self.up: _Node | None = None

    def sum_up(self) -> None:
        """Find the least entry anew."""
        least, left, right = self.entry, self.left, self.right
        if left is not None and left.least < least:
            least = left.least
        if right is not None and right.least < least:
            least = right.least
        self.least = least


class _Tree:
    """Members by size: a treap, whose weights are the hashes of a counter.

    Not recursive, as Python's stack may be nearly used up.
    """

    __slots__ = ("_count", "_root")

    def __init__(self) -> None:
        self._root: _Node | None = None
        self._count = 0

    def __bool__(self) -> bool:
        return self._root is not None

    def add(self, size: int, entry: Entry) -> _Node:
        """Add a member; return its node."""
        self._count += 1
        node = _Node((size, self._count), entry, hash((self._count, size)))
        above, place = None, self._root
        while place is not None:
            above, place = place, place.left if node.at < place.at else place.right
        node.up = above
        if above is None:
            self._root = node
        elif node.at < above.at:
            above.left = node
        else:
            above.right = node
        while node.up is not None and node.weight < node.up.weight:
            self._raise(node)
        self._climb(node)
        return node

    def remove(self, node: _Node) -> None:
        """Remove a member."""
        while True:
            left, right = node.left, node.right
            if left is not None and (right is None or left.weight < right.weight):
                self._raise(left)
            elif right is not None:
                self._raise(right)
            else:
                break
        above = node.up
        if above is None:
            self._root = None
        elif above.left is node:
            above.left = None
        else:
            above.right = None
        self._climb(above)

    def change(self, node: _Node, entry: Entry) -> None:
        """Give a member another entry."""
        node.entry = entry
        self._climb(node)

    def least(self, most: int) -> Entry | None:
        """Return the least entry of members of at most that size."""
        found: Entry | None = None
        node = self._root
        while node is not None:
            if node.at[0] > most:
                node = node.left
                continue
            if found is None or node.entry < found:
                found = node.entry
            if node.left is not None and node.left.least < found:
                found = node.left.least
            node = node.right
        return found

    @staticmethod
    def _climb(node: _Node | None) -> None:
        while node is not None:
            node.sum_up()
            node = node.up

    def _raise(self, node: _Node) -> None:
        """Exchange a node with the one above."""
        below = node.up
        assert below is not None
        above = below.up
        if below.left is node:
            below.left, node.right = node.right, below
            if below.left is not None:
                below.left.up = below
        else:
            below.right, node.left = node.left, below
            if below.right is not None:
                below.right.up = below
        below.up, node.up = node, above
        if above is None:
            self._root = node
        elif above.left is below:
            above.left = node
        else:
            above.right = node
        below.sum_up()


class Parts(Generic[T]):
    """Members by priority.

    Args:
        busy: returns whether a member can't be evicted now.
        park: is told of a busy member that was left out until `doubt` is called.
        stamp: returns the number of the last rest of a member.
        priority: returns its priority, as of that rest.
        home: returns the group whose reservation keeps a member, and the bytes that it keeps; None
            for the group if no reservation does.
        limited: returns the group of a member if that has a `max_size`, but nothing reserved.
        elsewhere: returns whether a member that was found has another `home` than it had.
    """

    __slots__ = (
        *("_busy", "_doubts", "_elsewhere", "_heap", "_home", "_homes", "_limited", "_nodes"),
        *("_own", "_park", "_priority", "_stamp", "_trees", "entries"),
    )

    def __init__(
        self,
        busy: Callable[[T], object],
        park: Callable[[T], None],
        stamp: Callable[[T], int],
        priority: Callable[[T, int], float],
        home: Callable[[T], tuple[GroupRecord | None, int]],
        limited: Callable[[T], GroupRecord | None] = lambda _: None,
        elsewhere: Callable[[T, Among], bool] = lambda _member, _among: False,
    ) -> None:
        self._busy, self._park, self._stamp, self._priority = busy, park, stamp, priority
        self._home, self._limited, self._elsewhere = home, limited, elsewhere
        self.entries: dict[T, Entry | None] = {}
        """The valid entry of each member; None while it is left out."""
        self._homes: dict[T, tuple[GroupRecord | None, int, GroupRecord | None]] = {}
        """{member: (group that keeps it, bytes, its own group)}, of those of groups with limits."""
        self._heap: list[Entry] = []  # of those without a group
        self._trees: dict[GroupRecord, _Tree] = {}  # of those that reservations keep
        self._own: dict[GroupRecord, _Tree] = {}  # once more, of those of groups with a limit
        self._nodes: dict[T, list[tuple[dict[GroupRecord, _Tree], GroupRecord, _Node]]] = {}
        self._doubts = 0

    def doubt(self, member: T) -> None:
        """Add `member`, or have its priority computed anew, as it may have fallen."""
        entry = self.entries.get(member)
        if entry is not None:
            if entry[0] < 0 and not self.moved(member):
                return
            self._take_out(member)
        self._doubts += 1
        self._put(member, (-self._doubts, -1, member))

    def moved(self, member: T) -> bool:
        """Return whether a group with limits has, or had, this member, and its size has changed."""
        home, own = self._home(member), self._limited(member)
        known = self._homes.get(member)
        return known != (*home, own) if known else home[0] is not None or own is not None

    def remove(self, member: T) -> None:
        """Remove `member`, if it is in."""
        if self.entries.get(member) is not None:
            self._take_out(member)
        self.entries.pop(member, None)
        self._homes.pop(member, None)

    def expunge(self, member: T) -> None:
        """Remove `member` from the heap, too, as another one is to have its priority and rest."""
        self.remove(member)
        self._heap[:] = [entry for entry in self._heap if entry[2] is not member]
        heapify(self._heap)

    def least(self, among: Among = EVERY, but: T | None = None) -> Entry | None:
        """Return the entry of the least priority, the first to rest if equal.

        Leaves out those that are busy, those that are not `among` them, and `but`.
        """
        aside = None if but is None else self.entries.get(but)
        if but is not None and aside is not None:
            self._take_out(but)
        found = self._least(among)
        if but is not None and aside is not None:
            self._put(but, (*aside[:2], but))
        return found

    def _least(self, among: Among) -> Entry | None:
        if among.only is not None:
            trees = self._own if among.only in self._own else self._trees
            return self._least_of(trees, among.only, NO_LIMIT, among)
        found = self._least_of_others(among)
        for group in list(self._trees):
            if (most := among.most(group)) < 0:
                continue
            entry = self._least_of(self._trees, group, most, among)
            if entry is not None and (found is None or entry < found):
                found = entry
        return found

    def _least_of(
        self, trees: dict[GroupRecord, _Tree], group: GroupRecord, most: int, among: Among
    ) -> Entry | None:
        # The tree goes with its last member, and may come back.
        while (tree := trees.get(group)) is not None and (entry := tree.least(most)) is not None:
            if self._is_right(entry, among):
                return entry
        return None

    def _least_of_others(self, among: Among) -> Entry | None:
        heap, entries = self._heap, self.entries
        while heap:
            entry = heap[0]
            if entries.get(entry[2]) is not entry:
                heappop(heap)
            elif self._is_right(entry, among):
                return entry
        return None

    def _is_right(self, entry: Entry, among: Among) -> bool:
        """Return whether an entry is up to date; if not, put it right."""
        member: T = entry[2]
        if self._busy(member):
            self._take_out(member)
            self._park(member)
        elif entry[1] != (stamp := self._stamp(member)):
            self._change(member, (self._priority(member, stamp), stamp, member))
        elif self._elsewhere(member, among):
            self._take_out(member)
            self._put(member, (*entry[:2], member))
        else:
            return True
        return False

    def _put(self, member: T, entry: Entry) -> None:
        self.entries[member] = entry
        (group, size), own = self._home(member), self._limited(member)
        if group is not None or own is not None:
            self._homes[member] = group, size, own
        else:
            self._homes.pop(member, None)
        if group is None:
            self._push(entry)
            if own is not None:
                self._plant(self._own, own, member, size, entry)
        else:
            self._plant(self._trees, group, member, size, entry)

    def _plant(
        self,
        trees: dict[GroupRecord, _Tree],
        group: GroupRecord,
        member: T,
        size: int,
        entry: Entry,
    ) -> None:
        node = trees.setdefault(group, _Tree()).add(size, entry)
        self._nodes.setdefault(member, []).append((trees, group, node))

    def _push(self, entry: Entry) -> None:
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self.entries) + SLACK:
            whole = (it for it in self.entries.values() if it is not None)
            self._heap[:] = [it for it in whole if self._group(it[2]) is None]
            heapify(self._heap)

    def _change(self, member: T, entry: Entry) -> None:
        """Give a member another entry, where it is."""
        self.entries[member] = entry
        if self._group(member) is None:
            self._push(entry)
        for trees, group, node in self._nodes.get(member, ()):
            trees[group].change(node, entry)

    def _group(self, member: T) -> GroupRecord | None:
        """Return the group in whose part a member is."""
        known = self._homes.get(member)
        return known[0] if known else None

    def _take_out(self, member: T) -> None:
        """Leave a member out; an entry in the heap is skipped when it comes up."""
        self.entries[member] = None
        for trees, group, node in self._nodes.pop(member, ()):
            tree = trees[group]
            tree.remove(node)
            if not tree:
                del trees[group]
