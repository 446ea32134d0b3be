"""Compute stack distances: the smallest `max_size` at which each acquire would be a hit.

One pass suffices, because idle instances are in order of last use and evictions take the last: a
smaller cache keeps the first few of those that a larger one keeps. So all instances are kept, as in
a cache without limits. The *depth* of an idle instance is its size plus the sizes of the idle ones
that were used after it. A cache of n bytes keeps an instance as long as its depth is at most n; so
the acquire that uses it again needs the greatest depth that it had in between.

A recycle puts an instance first, and so adds its size to the depths of all others. An acquire takes
one out, and so subtracts its size from the depths of those after it. So two operations are needed:
add to a prefix, and get the highest value that one element ever had. A tree of sums with the
highest value of each sum does both in O(log n) ("historic maximum" of segment trees).

The result is exact for `max_size` and `idle_timeout` while no other limit interferes, for sizes
from that of the largest instance on (a smaller cache would drop it, and keep others in its place).
"""

from __future__ import annotations

import math
from collections.abc import Hashable

from attrs import Factory, define

FIRST_ROOM = 1024


@define(eq=False)
class Resting:
    """An idle instance."""

    size: int
    since: float
    place: int
    """Position in the order of giving back; higher is later."""


@define(eq=False)
class Stack:
    """Idle instances of an endless cache, by key: function, generation, group."""

    largest: int = 0
    """Size of the largest instance ever given back."""
    _resting: dict[Hashable, list[Resting]] = Factory(dict)  # the most recently used last
    _places: dict[int, Resting] = Factory(dict)
    _room: int = FIRST_ROOM
    _next: int = 0
    _sums: list[int] = Factory(lambda: [0] * (2 * FIRST_ROOM))
    _highest: list[int] = Factory(lambda: [0] * (2 * FIRST_ROOM))

    def take(self, key: Hashable, now: float) -> tuple[float, float]:
        """Let the most recently used instance of `key` run.

        Returns:
            (bytes that the cache needs for this to be a hit, seconds that it was idle); two
            infinities if there is none.
        """
        resting = self._resting.get(key)
        if not resting:
            return math.inf, math.inf
        instance = resting.pop()
        del self._places[instance.place]
        deepest = instance.size + self._deepen(instance.place, -instance.size)
        return float(deepest), now - instance.since

    def give_back(self, key: Hashable, size: int, now: float) -> None:
        """Make an instance of `key` idle."""
        if self._next == self._room:
            self._make_room()
        instance = Resting(size, now, self._next)
        self._next += 1
        self._resting.setdefault(key, []).append(instance)
        self._places[instance.place] = instance
        self._deepen(instance.place, size)
        self._sums[self._room + instance.place] = self._highest[self._room + instance.place] = 0
        self.largest = max(self.largest, size)

    def forget(self, key: Hashable) -> None:
        """Drop all idle instances of `key`, as its function was removed, or its group closed."""
        for instance in self._resting.pop(key, []):
            del self._places[instance.place]
            self._deepen(instance.place, -instance.size)

    def _deepen(self, place: int, by: int) -> int:
        """Add `by` to the depth of all before `place`; return the highest sum of `place` itself."""
        sums, highest = self._sums, self._highest
        node, half = 1, self._room >> 1
        while half:
            left, right = 2 * node, 2 * node + 1
            summed, high = sums[node], highest[node]
            if summed or high:
                for child in (left, right):
                    if sums[child] + high > highest[child]:
                        highest[child] = sums[child] + high
                    sums[child] += summed
                sums[node] = highest[node] = 0
            if place & half:
                sums[left] += by
                if sums[left] > highest[left]:
                    highest[left] = sums[left]
                node = right
            else:
                node = left
            half >>= 1
        return highest[node]

    def _make_room(self) -> None:
        """Renumber the places in use, as they have run out; enlarge the tree if necessary."""
        for place in self._places:
            self._deepen(place, 0)
        leaves = [
            (instance, self._sums[self._room + place], self._highest[self._room + place])
            for place, instance in sorted(self._places.items())
        ]
        while self._room < 4 * len(leaves):
            self._room *= 2
        self._sums = [0] * (2 * self._room)
        self._highest = [0] * (2 * self._room)
        self._places = {}
        for place, (instance, summed, high) in enumerate(leaves):
            instance.place = place
            self._places[place] = instance
            self._sums[self._room + place] = summed
            self._highest[self._room + place] = high
        self._next = len(leaves)
