"""How often, how long and how much: what is counted about uses, while it happens.

1. Whole numbers only: microseconds, or units of fuel. Values are given; there is no clock here.
2. An event is recorded once, in the `UseStats` of the entry that it happens to. What that means
   for the function, the group and the cache is worked out when somebody asks (`_core/stats`).
3. What can be worked out is not recorded: leases granted are those that have ended and those that
   are held, and what is no miss is a hit; a lease that is not among the waits did not wait, a call
   that is not among the runs ended in its first slice. So a hit pays for one distribution, its
   hold, and a call for one, its fuel.
4. Adding up loses nothing: the sum of two is what one would be that had seen all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, final

from attrs import Factory, define, frozen

from ..keys import FunctionKey


def microseconds(seconds: float) -> int:
    """A duration as it is recorded: rounded down, and 0 for a clock that went backwards."""
    return max(0, int(seconds * 1e6))


# What a value is of. It is counted at its kind plus the number of its bits; none has as many as
# `SPAN`. The kinds of every hit come first, as Python keeps numbers up to 256 ready.
SPAN = 128
FUELS, HOLDS, WAITS, LOADS, RUNS, COMPILES = range(0, 6 * SPAN, SPAN)
# {kind: where its sum is}
SUMS = {
    FUELS: "fuel",
    HOLDS: "hold",
    WAITS: "wait",
    LOADS: "load",
    RUNS: "run",
    COMPILES: "compile",
}
# As long as there is nothing to count: most have no errors, and a new one has nothing at all.
NO_COUNTS: dict[int, int] = {}
NO_ERRORS: dict[str, int] = {}


@final
@frozen
class Distribution:
    """Whole numbers that are not negative, told apart by how many bits they have.

    A bucket is twice as wide as the one before, so any quantile is known within a factor of two,
    at any scale, and without being told a range. Of 64 possible ones few are ever used.
    """

    total: int = 0
    """Their sum."""
    buckets: Mapping[int, int] = Factory(dict)
    """{bits: how many values have so many}."""


@final
@define(eq=False)
class UseStats:
    """What happened to the acquires, instances and calls of one entry, or of several together.

    One object and one dictionary for all six distributions: every entry has one, and keeps it.
    """

    misses: int = 0
    blocks: int = 0
    held: int = 0
    """Leases that have not ended, where this is a copy."""
    carried: int = 0
    """Those that were held when counting began, and so are not counted as granted."""
    continued: int = 0
    """Calls that went on beyond a first slice; when they are over, they are in `RUNS`."""
    errors: dict[str, int] = NO_ERRORS
    """{name of its type: acquires and calls that ended with it}."""
    counts: dict[int, int] = NO_COUNTS
    """{kind + bits: how many values of that kind have so many}."""
    fuel: int = 0
    """Of every call that is over, as all sums here."""
    hold: int = 0
    """From being granted to being given back (microseconds)."""
    wait: int = 0
    """From asking to being granted (microseconds), of leases that were not granted at once."""
    load: int = 0
    """Making an instance, loading its code included (microseconds)."""
    run: int = 0
    """From the end of the first slice (microseconds), of calls that went on and are over."""
    compile: int = 0
    """Compiling the module (microseconds); only of functions."""

    def add(self, kind: int, value: int) -> None:
        """Record a value of that kind; it is not negative."""
        name = SUMS[kind]
        setattr(self, name, getattr(self, name) + value)
        self.count_in(kind + value.bit_length())

    def count_in(self, place: int, count: int = 1) -> None:
        """So many values more are counted there; their sum is the caller's to add."""
        if self.counts is NO_COUNTS:
            self.counts = {}
        self.counts[place] = self.counts.get(place, 0) + count

    def count(self, kind: int) -> int:
        """How many values of that kind there are."""
        return sum(n for place, n in self.counts.items() if kind <= place < kind + SPAN)

    def distribution(self, kind: int) -> Distribution:
        """All values of that kind."""
        buckets = {
            place - kind: n for place, n in self.counts.items() if kind <= place < kind + SPAN
        }
        return Distribution(getattr(self, SUMS[kind]), buckets)

    @property
    def granted(self) -> int:
        """Leases: those that have ended, and those that are held."""
        return self.count(HOLDS) + self.held - self.carried

    @property
    def hits(self) -> int:
        """Leases for which nothing had to be loaded."""
        return self.granted - self.misses

    @property
    def calls(self) -> int:
        """Calls begun. Those that end in their first slice are known by their fuel alone."""
        calls = self.continued
        for place, count in self.counts.items():
            if place < FUELS + SPAN:
                calls += count
            elif RUNS <= place < RUNS + SPAN:
                calls -= count
        return calls

    def note_error(self, name: str, count: int = 1) -> None:
        """An acquire or a call ended with an error of that type, or so many did."""
        if self.errors is NO_ERRORS:
            self.errors = {}
        self.errors[name] = self.errors.get(name, 0) + count

    def merge(self, other: UseStats) -> None:
        """Record all that `other` did."""
        self.misses += other.misses
        self.blocks += other.blocks
        self.held += other.held
        self.carried += other.carried
        self.continued += other.continued
        self.fuel += other.fuel
        self.hold += other.hold
        self.wait += other.wait
        self.load += other.load
        self.run += other.run
        self.compile += other.compile
        for name, count in other.errors.items():
            self.note_error(name, count)
        if self.counts is NO_COUNTS:
            self.counts = other.counts.copy() if other.counts else NO_COUNTS
            return
        counts = self.counts
        for place, count in other.counts.items():
            counts[place] = counts.get(place, 0) + count

    def clear(self, held: int = 0) -> None:
        """Begin anew, while so many leases are held."""
        self.misses = self.blocks = self.continued = 0
        self.carried = held
        self.fuel = self.hold = self.wait = self.load = self.run = self.compile = 0
        self.errors, self.counts = NO_ERRORS, NO_COUNTS

    def copy(self) -> UseStats:
        """One that what is recorded in this one does not change."""
        result = UseStats()
        result.merge(self)
        return result

    def freeze(self, held: int) -> Frozen:
        """All of it, while so many leases are held.

        Few objects, and whole numbers: more for each of 4,096 entries would keep the garbage
        collector busy for longer than it takes to make them.
        """
        frozen = [self.misses, self.blocks, held, self.carried, self.continued]
        frozen += (self.fuel, self.hold, self.wait, self.load, self.run, self.compile)
        frozen += self.counts
        frozen += self.counts.values()
        return frozen, self.errors.copy() if self.errors else NO_ERRORS

    def take(self, frozen: Frozen) -> None:
        """Record all that is in what `freeze` made."""
        numbers, errors = frozen
        counters, middle = numbers[:COUNTERS], (len(numbers) + COUNTERS) // 2
        counts = dict(zip(numbers[COUNTERS:middle], numbers[middle:], strict=True))
        misses, blocks, held, carried, continued, *sums = counters
        self.merge(UseStats(misses, blocks, held, carried, continued, {**errors}, counts, *sums))


# Counters and sums; then where values are counted, and how many in each place. And errors.
Frozen = tuple[list[int], Mapping[str, int]]
# How many of the first there are.
COUNTERS = 5 + len(SUMS)


def add_up(parts: Iterable[UseStats]) -> UseStats:
    """Their sum; none of them changes with it."""
    result = UseStats()
    for part in parts:
        result.merge(part)
    return result


@final
@frozen(eq=False)
class Snapshot:
    """All uses at one moment. What is in it is changed no more, by anyone."""

    functions: Mapping[FunctionKey | None, UseStats] = Factory(dict)
    """Of entries that are forgotten."""
    groups: Mapping[str | None, UseStats] = Factory(dict)
    """The same once more, by group."""
    calls: int = 0
    """Of all."""
    _live: Sequence[Frozen] = ()
    """Of entries that are there: of which function and group, say `_names`."""
    _names: Sequence[tuple[FunctionKey | None, str | None]] = ()

    def by_function(self) -> dict[str, list[UseStats]]:
        """{name and argument types: parts of what it did}; ``""`` for those that are gone."""
        parts = {str(key or ""): [uses] for key, uses in self.functions.items()}
        for state, (key, _) in zip(self._live, self._names, strict=True):
            uses = UseStats()
            uses.take(state)
            parts.setdefault(str(key or ""), []).append(uses)
        return parts

    @cached_property
    def sums(self) -> Mapping[str, UseStats]:
        """{name: all that was done in that group}; ``""`` for those that are gone."""
        sums = {name or "": uses.copy() for name, uses in self.groups.items()}
        for state, (_, name) in zip(self._live, self._names, strict=True):
            if (name or "") not in sums:
                sums[name or ""] = UseStats()
            sums[name or ""].take(state)
        return sums

    def by_group(self) -> dict[str, list[UseStats]]:
        """As `by_function`, by the names of groups."""
        return {name: [uses] for name, uses in self.sums.items()}

    def whole(self) -> UseStats:
        """All of it. Of what is compiled, groups know nothing."""
        result = add_up(self.sums.values())
        for uses in self.functions.values():
            result.compile += uses.compile
            for place, count in uses.counts.items():
                if place >= COMPILES:
                    result.count_in(place, count)
        return result


@final
@define(eq=False)
class UseBook:
    """Where the uses of entries go that are forgotten: to their function, and to their group.

    None in the place of a name stands for all functions that were removed, or all groups that were
    closed: the book is no longer than what is registered and open, and nothing gets lost.
    """

    functions: dict[FunctionKey | None, UseStats] = Factory(dict)
    groups: dict[str | None, UseStats] = Factory(dict)
    calls: int = 0
    """Of all."""
    _fresh: set[UseStats] = Factory(set)
    """What no snapshot has seen. The rest is copied before it changes: so a snapshot copies only
    what has changed since the last one, and not while somebody waits for it."""

    def add(self, uses: UseStats, function: FunctionKey | None, group: str | None) -> None:
        """Take the uses of an entry in."""
        self.calls += uses.calls
        self.of_function(function).merge(uses)
        self._own(self.groups, group).merge(uses)

    def of_function(self, key: FunctionKey | None) -> UseStats:
        """Where to add what a function did, in this step."""
        return self._own(self.functions, key)

    def drop_function(self, key: FunctionKey) -> None:
        """It was removed."""
        if (uses := self.functions.pop(key, None)) is not None:
            self._fresh.discard(uses)
            self.of_function(None).merge(uses)

    def drop_group(self, name: str) -> None:
        """It was closed."""
        if (uses := self.groups.pop(name, None)) is not None:
            self._fresh.discard(uses)
            self._own(self.groups, None).merge(uses)

    def clear(self) -> None:
        """Begin anew."""
        self.calls = 0
        self.functions.clear()
        self.groups.clear()
        self._fresh.clear()

    def share(self) -> tuple[dict[FunctionKey | None, UseStats], dict[str | None, UseStats]]:
        """What is in the book, by function and by group, to be changed no more."""
        self._fresh = set()
        return self.functions.copy(), self.groups.copy()

    def _own(self, book: dict[Any, UseStats], name: object) -> UseStats:
        uses = book.get(name)
        if uses is None or uses not in self._fresh:
            uses = book[name] = UseStats() if uses is None else uses.copy()
            self._fresh.add(uses)
        return uses
