"""How much higher a limit would have to be, for evictions that were followed by a load.

A cache evicts the least recently used first, so the instances that went lie behind those that are
there, in the order in which they went. A larger cache is a piece longer: it would still have an
instance if those that went after it, and did not come back, fit into that piece together with it.
So the evictions and loads of any log suffice; no lease need be in it. The result is exact if
nothing but this limit evicts, by LRU, except for leases under way at the moment of a load.
"""

from __future__ import annotations

import math

from attrs import Factory, define

# Buckets of a doubling: a need is known to 5 %.
BUCKETS = 16
# Number of evicted instances of a cache that are ordered, the latest ones; a cache would have to be
# larger by more than these for an earlier one.
MAX_GHOSTS = 4096


@define(eq=False)
class Wanted:
    """Loads soon after evictions for one limit, and what they would have needed of it."""

    count: int = 0
    seconds: float = 0.0
    """Time spent on these loads."""
    _needs: dict[int, int] = Factory(dict)  # {n: needs up to 2**(n/BUCKETS)}

    def add(self, need: float, seconds: float) -> None:
        """Count a load.

        Args:
            need: what the limit would have to be raised by, at least; or, for a time, its value;
                `math.inf` if no such limit helps.
            seconds: time that the load took.
        """
        self.count += 1
        self.seconds += seconds
        if 0 < need < math.inf:
            bucket = math.ceil(math.log2(need) * BUCKETS)
            self._needs[bucket] = self._needs.get(bucket, 0) + 1

    def part(self, offered: float) -> float:
        """Return which part (0 to 1) of the loads would not have been needed."""
        enough = sum(number for bucket, number in self._needs.items() if _most(bucket) <= offered)
        return enough / self.count if self.count else 0.0

    def least(self, part: float) -> float | None:
        """Return the least that would have avoided this part of the loads; None if nothing does."""
        seen = 0
        for bucket in sorted(self._needs):
            seen += self._needs[bucket]
            if seen >= part * self.count:
                return _most(bucket)
        return None


def _most(bucket: int) -> float:
    return float(2 ** (bucket / BUCKETS))


@define(eq=False)
class Ghosts:
    """Evicted instances in the order in which they went, each with what it takes of a limit."""

    _places: dict[int, tuple[int, int]] = Factory(dict)
    """{number: (position in the tree, weight)}, in order."""
    _tree: list[int] = Factory(lambda: [0] * 257)  # sums of weights, by Fenwick
    _next: int = 1  # the next position
    _numbers: int = 0

    def put(self, weight: int) -> int:
        """Add an instance as the latest; return its number."""
        if self._next == len(self._tree):
            self._renumber()
        self._numbers += 1
        self._places[self._numbers] = (self._next, weight)
        self._add(self._next, weight)
        self._next += 1
        return self._numbers

    def take(self, number: int) -> float:
        """Remove an instance; return its weight and that of all later ones, or `math.inf`."""
        place, weight = self._places.pop(number, (0, 0))
        if not place:
            return math.inf
        depth = self._sum(self._next - 1) - self._sum(place - 1)
        self._add(place, -weight)
        return float(depth)

    def _renumber(self) -> None:
        """Close the gaps, and leave out the earliest beyond `MAX_GHOSTS`."""
        kept = [*self._places.items()][-MAX_GHOSTS:]
        room = 256
        while room < 2 * len(kept):
            room *= 2
        self._tree = [0] * (room + 1)
        self._places = {}
        for place, (number, (_, weight)) in enumerate(kept, 1):
            self._places[number] = (place, weight)
            self._add(place, weight)
        self._next = len(kept) + 1

    def _add(self, place: int, weight: int) -> None:
        while place < len(self._tree):
            self._tree[place] += weight
            place += place & -place

    def _sum(self, place: int) -> int:
        found = 0
        while place:
            found += self._tree[place]
            place -= place & -place
        return found
