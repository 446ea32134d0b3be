"""Counters of uses, recorded as they happen: how often, how long and how much.

1. Whole numbers only: microseconds, or units of fuel. Values are arguments; there is no clock here.
2. An event is recorded once, in the `UseStats` of its entry. The sums for the function, the group
   and the cache are computed on request (`stats`).
3. Numbers that can be derived are not recorded, so that a hit records one value (how long it was
   held) and a call one (its fuel):

   - leases granted = holds recorded + leases held now;
   - hits = leases granted - misses;
   - leases that did not wait = leases granted - waits recorded;
   - calls that ended in their first slice = calls - runs recorded.
4. Merging loses nothing: the sum of two is the same as one that recorded all events of both.
5. Where many entries are used in turn, a hit finds nothing of its entry in the processor's caches.
   So what it counts are bytes side by side, and not numbers of Python's at places of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, compress
from typing import TypeVar, final

from attrs import Factory, frozen

from ..keys import FunctionKey

K = TypeVar("K")


def microseconds(seconds: float) -> int:
    """Return a duration as it is recorded: rounded down, and 0 if the clock went backwards."""
    return max(0, int(seconds * 1e6))


# Kinds of values. A value is counted at its kind plus its number of bits, which is below `SPAN`.
SPAN = 128
FUELS, HOLDS, WAITS, LOADS, RUNS, COMPILES = range(0, 6 * SPAN, SPAN)
# {kind: name of its sum}
SUMS = {
    FUELS: "fuel",
    HOLDS: "hold",
    WAITS: "wait",
    LOADS: "load",
    RUNS: "run",
    COMPILES: "compile",
}
# What nearly all entries count, each in a byte of `UseStats.few`: {kind: numbers of bits}. Fuel has
# at most 64 bits; longer holds than 2 years, and loads than 4 s, are among the rest.
COMMON = {FUELS: 65, LOADS: 23, HOLDS: 47}
# The place of each of these bytes; HOLDS come last, so a longer one is found to have no byte.
PLACES = [kind + bits for kind, number in COMMON.items() for bits in range(number)]
FEW = len(PLACES)
# {kind: its first byte}
BYTES = {kind: PLACES.index(kind) for kind in COMMON}
FEW_HOLDS = BYTES[HOLDS]
MOST = 255
# Shared while there is nothing to count: most have no errors, and a new one has nothing at all.
NO_FEW: bytearray = bytearray()
NO_COUNTS: dict[int, int] = {}
NO_ERRORS: dict[str, int] = {}


@final
@frozen
class Distribution:
    """Whole numbers from 0, grouped by their number of bits.

    A bucket is twice as wide as the one before, so any quantile is known within a factor of two,
    at any scale and without a range given. Few of the 64 possible buckets are ever used.
    """

    total: int = 0
    """Sum of the values."""
    buckets: Mapping[int, int] = Factory(dict)
    """{bits: number of values with that many bits}."""


@final
class UseStats:
    """Uses of one entry, or of several together: acquires, instances and calls.

    One object, and the bytes `few`, hold all six distributions of most entries.
    """

    __slots__ = (
        "blocks",
        "carried",
        "compile",
        "continued",
        "counts",
        "errors",
        "few",
        "fuel",
        "held",
        "hold",
        "load",
        "misses",
        "run",
        "seat_hits",
        "wait",
    )

    def __init__(
        self,
        misses: int = 0,
        blocks: int = 0,
        held: int = 0,
        carried: int = 0,
        continued: int = 0,
        seat_hits: int = 0,
        errors: dict[str, int] = NO_ERRORS,
        counts: dict[int, int] = NO_COUNTS,
        fuel: int = 0,
        hold: int = 0,
        wait: int = 0,
        load: int = 0,
        run: int = 0,
        compile: int = 0,
    ) -> None:
        self.misses: int = misses
        self.blocks: int = blocks
        self.held: int = held
        """Number of leases that have not ended; set in copies only."""
        self.carried: int = carried
        """Number of leases held when counting began, which are not counted as granted."""
        self.continued: int = continued
        """Number of calls that took more than one slice; once over, they are in `RUNS`."""
        self.seat_hits: int = seat_hits
        """Number of hits for which an instance had to be loaded, on a seat."""
        self.errors: dict[str, int] = errors
        """{name of the error's type: acquires and calls that ended with it}."""
        self.counts: dict[int, int] = counts
        """{kind + bits: number of values of that kind with that many bits}, without `few`."""
        self.few: bytearray = NO_FEW
        """Numbers of values at `PLACES` that are not in `counts` yet, as each fits into a byte."""
        self.fuel: int = fuel
        """Units of fuel of all calls that are over, as all sums here."""
        self.hold: int = hold
        """Time from grant to recycle (microseconds)."""
        self.wait: int = wait
        """Time from request to grant (microseconds), of leases that were not granted at once."""
        self.load: int = load
        """Time to make an instance, including loading its code (microseconds)."""
        self.run: int = run
        """Time from the end of the first slice (microseconds), of longer calls that are over."""
        self.compile: int = compile
        """Time to compile the module (microseconds); only of functions."""

    def add(self, kind: int, value: int) -> None:
        """Record a value of that kind, which is not negative."""
        name, bits = SUMS[kind], value.bit_length()
        setattr(self, name, getattr(self, name) + value)
        if bits < COMMON.get(kind, 0):
            self.count_few(BYTES[kind] + bits)
        else:
            self.count_in(kind + bits)

    def count_few(self, at: int, count: int = 1) -> None:
        """Count `count` more values at a place of `PLACES`, or holds beyond these.

        Mostly ``few[at] += count`` does, unless that raises `IndexError` or `ValueError`.
        """
        if at >= FEW:
            self.count_in(HOLDS + at - FEW_HOLDS, count)
            return
        if self.few is NO_FEW:
            self.few = bytearray(FEW)
        count += self.few[at]
        if count > MOST:
            self.count_in(PLACES[at], count)
            count = 0
        self.few[at] = count

    def count_in(self, place: int, count: int = 1) -> None:
        """Count `count` more values at `place`; the caller adds them to the sum."""
        if self.counts is NO_COUNTS:
            self.counts = {}
        self.counts[place] = self.counts.get(place, 0) + count

    def _counted(self) -> Iterable[tuple[int, int]]:
        """Return (place, number of values) pairs, of which two may have the same place."""
        few = self.few
        return chain(
            self.counts.items(), zip(compress(PLACES, few), filter(None, few), strict=True)
        )

    def count(self, kind: int) -> int:
        """Return the number of values of that kind."""
        return sum(n for place, n in self._counted() if kind <= place < kind + SPAN)

    def distribution(self, kind: int) -> Distribution:
        """Return all values of that kind."""
        buckets: dict[int, int] = {}
        for place, n in self._counted():
            if kind <= place < kind + SPAN:
                buckets[place - kind] = buckets.get(place - kind, 0) + n
        return Distribution(getattr(self, SUMS[kind]), buckets)

    @property
    def granted(self) -> int:
        """Number of leases granted: those that have ended, and those that are held."""
        return self.count(HOLDS) + self.held - self.carried

    @property
    def hits(self) -> int:
        """Number of leases for which nothing had to be loaded."""
        return self.granted - self.misses

    @property
    def calls(self) -> int:
        """Number of calls begun. Calls that end in their first slice are found by their fuel."""
        calls = self.continued
        for place, count in self._counted():
            if place < FUELS + SPAN:
                calls += count
            elif RUNS <= place < RUNS + SPAN:
                calls -= count
        return calls

    def note_continued(self) -> None:
        """Count a call that goes on beyond its first slice."""
        self.continued += 1

    def note_error(self, name: str, count: int = 1) -> None:
        """Count `count` acquires or calls that ended with an error of that type."""
        if self.errors is NO_ERRORS:
            self.errors = {}
        self.errors[name] = self.errors.get(name, 0) + count

    def merge(self, other: UseStats) -> None:
        """Add all that `other` recorded."""
        self.misses += other.misses
        self.blocks += other.blocks
        self.held += other.held
        self.carried += other.carried
        self.continued += other.continued
        self.seat_hits += other.seat_hits
        self.fuel += other.fuel
        self.hold += other.hold
        self.wait += other.wait
        self.load += other.load
        self.run += other.run
        self.compile += other.compile
        for name, count in other.errors.items():
            self.note_error(name, count)
        for place, count in other._counted():
            self.count_in(place, count)

    def clear(self, held: int = 0) -> None:
        """Reset all counts while `held` leases are held."""
        self.misses = self.blocks = self.continued = self.seat_hits = 0
        self.carried = held
        self.fuel = self.hold = self.wait = self.load = self.run = self.compile = 0
        self.errors, self.counts, self.few = NO_ERRORS, NO_COUNTS, NO_FEW

    def copy(self) -> UseStats:
        """Return a copy."""
        result = UseStats()
        result.merge(self)
        return result

    def freeze(self, held: int) -> Frozen:
        """Return all counts as plain values, with `held` leases held.

        Few objects, and whole numbers: more of them for each of 4,096 entries would keep the
        garbage collector busy for longer than it takes to make them.
        """
        frozen = [self.misses, self.blocks, held, self.carried, self.continued, self.seat_hits]
        frozen += (self.fuel, self.hold, self.wait, self.load, self.run, self.compile)
        frozen += self.counts
        frozen += compress(PLACES, self.few)
        frozen += self.counts.values()
        frozen += filter(None, self.few)
        return frozen, self.errors.copy() if self.errors else NO_ERRORS

    def take(self, frozen: Frozen) -> None:
        """Add all counts of a value returned by `freeze`."""
        numbers, errors = frozen
        counters, middle = numbers[:COUNTERS], (len(numbers) + COUNTERS) // 2
        misses, blocks, held, carried, continued, seats, *sums = counters
        self.merge(UseStats(misses, blocks, held, carried, continued, seats, {**errors}, {}, *sums))
        for place, count in zip(numbers[COUNTERS:middle], numbers[middle:], strict=True):
            self.count_in(place, count)


# Counters and sums; then the places of values, and the number for each, to be added up where one is
# there twice. And errors.
Frozen = tuple[list[int], Mapping[str, int]]
# Number of counters and sums.
COUNTERS = 6 + len(SUMS)


def add_up(parts: Iterable[UseStats]) -> UseStats:
    """Return the sum of `parts`, which stay unchanged."""
    result = UseStats()
    for part in parts:
        result.merge(part)
    return result


@final
class Snapshot:
    """All uses at one moment. Its contents do not change any more."""

    def __init__(
        self,
        functions: Mapping[FunctionKey | None, UseStats] | None = None,
        groups: Mapping[str | None, UseStats] | None = None,
        calls: int = 0,
        live: Sequence[Frozen] = (),
        names: Sequence[tuple[FunctionKey | None, str | None]] = (),
    ) -> None:
        self.functions: Mapping[FunctionKey | None, UseStats] = (
            {} if functions is None else functions
        )
        """Uses of vacant entries, by function."""
        self.groups: Mapping[str | None, UseStats] = {} if groups is None else groups
        """The same uses, by group."""
        self.calls = calls
        """Number of all calls."""
        self._live = live
        """Uses of the other entries; `_names` has their functions and groups."""
        self._names = names

    def by_function(self) -> dict[str, list[UseStats]]:
        """Return {name and argument types: parts of its uses}; ``""`` for removed functions."""
        parts = {str(key or ""): [uses] for key, uses in self.functions.items()}
        for state, (key, _) in zip(self._live, self._names, strict=True):
            uses = UseStats()
            uses.take(state)
            parts.setdefault(str(key or ""), []).append(uses)
        return parts

    @cached_property
    def sums(self) -> Mapping[str, UseStats]:
        """{name of a group: the sum of its uses}; ``""`` for closed groups."""
        sums = {name or "": uses.copy() for name, uses in self.groups.items()}
        for state, (_, name) in zip(self._live, self._names, strict=True):
            if (name or "") not in sums:
                sums[name or ""] = UseStats()
            sums[name or ""].take(state)
        return sums

    def by_group(self) -> dict[str, list[UseStats]]:
        """Return {name of a group: parts of its uses}; ``""`` for closed groups."""
        return {name: [uses] for name, uses in self.sums.items()}

    def whole(self) -> UseStats:
        """Return the sum of all uses. Compilations are added from functions; groups have none."""
        result = add_up(self.sums.values())
        for uses in self.functions.values():
            result.compile += uses.compile
            for place, count in uses.counts.items():  # compilations are never among the few
                if place >= COMPILES:
                    result.count_in(place, count)
        return result


@final
class UseBook:
    """Collected uses of entries, by function and by group.

    The key None stands for all functions that were removed, or all groups that were closed: the
    book has no more keys than functions and groups exist, and no use is lost.
    """

    __slots__ = ("_fresh", "calls", "functions", "groups")

    def __init__(self) -> None:
        self.functions: dict[FunctionKey | None, UseStats] = {}
        self.groups: dict[str | None, UseStats] = {}
        self.calls: int = 0
        """Number of all calls."""
        self._fresh: set[UseStats] = set()
        """Uses that no snapshot contains. Others are copied before they change: so a snapshot makes
        only those be copied that change after it, and not while a caller waits for it."""

    def add(self, uses: UseStats, function: FunctionKey | None, group: str | None) -> None:
        """Add the uses of an entry."""
        self.calls += uses.calls
        self.of_function(function).merge(uses)
        self._own(self.groups, group).merge(uses)

    def of_function(self, key: FunctionKey | None) -> UseStats:
        """Return the uses of a function, to add to in this step."""
        return self._own(self.functions, key)

    def drop_function(self, key: FunctionKey) -> None:
        """Move the uses of a removed function to the key None."""
        if (uses := self.functions.pop(key, None)) is not None:
            self._fresh.discard(uses)
            self.of_function(None).merge(uses)

    def drop_group(self, name: str) -> None:
        """Move the uses of a closed group to the key None."""
        if (uses := self.groups.pop(name, None)) is not None:
            self._fresh.discard(uses)
            self._own(self.groups, None).merge(uses)

    def clear(self) -> None:
        """Reset all counts."""
        self.calls = 0
        self.functions.clear()
        self.groups.clear()
        self._fresh.clear()

    def share(self) -> tuple[dict[FunctionKey | None, UseStats], dict[str | None, UseStats]]:
        """Return the uses by function and by group; they do not change any more."""
        self._fresh = set()
        return self.functions.copy(), self.groups.copy()

    def _own(self, book: dict[K, UseStats], name: K) -> UseStats:
        uses = book.get(name)
        if uses is None or uses not in self._fresh:
            uses = book[name] = UseStats() if uses is None else uses.copy()
            self._fresh.add(uses)
        return uses
