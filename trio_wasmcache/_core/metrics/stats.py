"""What a cache tells about itself: frozen numbers, taken at one moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import final

from attrs import Factory, define, field, frozen

from .counters import (
    COMPILES,
    FUELS,
    HOLDS,
    LOADS,
    RUNS,
    WAITS,
    Distribution,
    Snapshot,
    UseStats,
    add_up,
)


@final
@frozen(kw_only=True)
class DistributionSummary:
    """How often which values came. Durations are microseconds, rounded down; fuel is units."""

    count: int
    total: int
    """Their exact sum."""
    mean: float
    """0.0 if there are none."""
    p50: int
    """An estimate of the value that half of them are not above: it has as many bits, so it is less
    than twice as large, and more than half. 0 if there are none."""
    p90: int
    """The same for 90 per cent of them."""
    p99: int
    """The same for 99 per cent of them."""
    buckets: tuple[tuple[int, int], ...]
    """((the largest value that belongs into it, how many there are), ...), ascending and without
    empty ones. The largest values are 0, 1, 3, 7, 15 and so on; the smallest is the one after the
    largest of the bucket before."""


def summarise(distribution: Distribution, zeros: int = 0) -> DistributionSummary:
    """The summary of a distribution, and of so many values of 0 beside it."""
    if not zeros and not distribution.buckets:
        return NOTHING
    buckets = dict(distribution.buckets)
    if zeros:
        buckets[0] = buckets.get(0, 0) + zeros
    ordered = sorted(buckets.items())
    count = sum(buckets.values())
    return DistributionSummary(
        count=count,
        total=distribution.total,
        mean=distribution.total / count,
        p50=_quantile(ordered, count, 50),
        p90=_quantile(ordered, count, 90),
        p99=_quantile(ordered, count, 99),
        buckets=tuple(((1 << bits) - 1, number) for bits, number in ordered),
    )


def _quantile(buckets: Sequence[tuple[int, int]], count: int, percent: int) -> int:
    """The value that so many per cent are not above, as if those of a bucket lay evenly in it."""
    place = -(-count * percent // 100)
    for bits, number in buckets:
        if place <= number:
            low, high = 1 << bits >> 1, (1 << bits) - 1
            return low + (high - low) * (2 * place - 1) // (2 * number)
        place -= number
    raise AssertionError(f"{percent} per cent of {count} are not in {buckets}")


NOTHING = DistributionSummary(count=0, total=0, mean=0.0, p50=0, p90=0, p99=0, buckets=())


@final
@frozen(kw_only=True)
class UseSummary:
    """What became of the acquires and calls of one function, of one group, or of all."""

    hits: int
    misses: int
    blocks: int
    calls: int
    """Calls begun; a batch is one."""
    errors: dict[str, int]
    """{name of its type: acquires and calls that failed with it}, ``"Cancelled"`` among them; not
    those for what is no function, nor those for values that don't fit."""
    wait: DistributionSummary
    """From asking for an instance to having it, loading included; 0: there was one idle.
    Of those that got one."""
    load: DistributionSummary
    """Making an instance, `InstanceCache.warm` included, and loading its code if need be."""
    hold: DistributionSummary
    """The length of leases that have ended."""
    run: DistributionSummary
    """How long calls went on after their first slice; 0: they ended in it. Those whose values
    cross through memory, and batches, from their beginning."""
    fuel: DistributionSummary
    """Fuel (units) of calls that are over, failed ones included."""
    compile: DistributionSummary
    """Compiling modules, for functions whose module was not there. None of it is a group's."""


def summarise_uses(uses: UseStats) -> UseSummary:
    """In numbers for people; and what was left out because it can be worked out."""
    return UseSummary(
        hits=uses.hits,
        misses=uses.misses,
        blocks=uses.blocks,
        calls=uses.calls,
        errors=dict(uses.errors),
        wait=summarise(uses.distribution(WAITS), uses.granted - uses.count(WAITS)),
        load=summarise(uses.distribution(LOADS)),
        hold=summarise(uses.distribution(HOLDS)),
        run=summarise(uses.distribution(RUNS), uses.count(FUELS) - uses.count(RUNS)),
        fuel=summarise(uses.distribution(FUELS)),
        compile=summarise(uses.distribution(COMPILES)),
    )


@final
@define(eq=False, repr=False)
class Summaries(Mapping[str, UseSummary]):
    """{name: summary}, each made when it is asked for; frozen all the same."""

    _parts: dict[str, list[UseStats]]
    _made: dict[str, UseSummary] = Factory(dict)

    def __getitem__(self, name: str) -> UseSummary:
        made = self._made.get(name)
        if made is None:
            parts = self._parts[name]
            uses = parts[0] if len(parts) == 1 else add_up(parts)
            made = self._made[name] = summarise_uses(uses)
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        return f"<summaries of {', '.join(map(repr, self._parts)) or 'nothing'}>"


@final
@frozen(kw_only=True)
class CacheStats:
    """Counters since the cache was opened, and gauges of the moment. Sizes are bytes.

    After `InstanceCache.pop_stats`, counters and distributions begin anew; gauges do not.
    """

    hits: int
    """Leases granted from an idle instance or seat."""
    misses: int
    """Leases for which something had to be loaded; hits + misses = leases granted."""
    blocks: int
    """Acquires that had to wait, also those that were then cancelled."""
    calls: int
    """Calls begun."""
    evictions: dict[str, int]
    """{reason: instances and seats that went for it}; every reason is there."""
    functions: int
    """Registered functions."""
    groups: int
    """Open scheduling groups, the main one included."""
    entries: int
    """Functions in groups that have instances or are waited for."""
    idle_instances: int
    """Seats included."""
    running_instances: int
    """Held, or being loaded."""
    waiting: int
    """Acquires that wait for an instance or for room."""
    loaded_modules: int
    total_size: int
    """All idle instances together."""
    max_size: int
    running_size: int
    """What all running instances together may touch at most, whatever they do."""
    max_running_size: int | None
    scratch_size: int
    """What batches keep: in idle instances part of `total_size`, else of `running_size`."""
    results_size: int
    """Memory kept for the results of the next batch, until something is evicted."""
    pending_results_size: int
    """Results of calls and batches under way: what was copied out of guests, and the values made of
    that. What is returned is the caller's."""
    max_result_size: int
    """Limit of each of these."""
    code_size: int
    """Code of loaded modules and stacks of running instances together."""
    max_code_size: int
    module_code_size: int
    """Code of loaded modules: one part of `code_size`."""
    stacks_size: int
    """Stacks of running instances: the other part."""
    address_space: int
    """Addresses that instances and loaded code reserve (bytes), used or not."""
    max_address_space: int | None
    """The limit of that: `max_address_space`, or what the system allows; None: not known."""
    mappings: int
    """Memory mappings of instances and loaded code, as the kernel counts them, at most."""
    max_mappings: int | None
    """The limit of that: three quarters of the kernel's; None: not known."""
    idle_stacks_size: int
    """What idle instances may keep of stacks that they once ran on: nobody can see how much."""
    artifact_size: int
    """Serialized code of all registered modules, loaded or not."""
    log_lost: int
    """Events that the log dropped because its sink was too slow."""
    log_failures: int
    """Events that the sink raised on."""
    _uses: Snapshot = field(factory=Snapshot, repr=False, eq=False)

    @cached_property
    def _summary(self) -> UseSummary:
        return summarise_uses(self._uses.whole())

    @property
    def accounted_size(self) -> int:
        """All that the books know of: instances, code, stacks, artifacts and results."""
        instances = self.total_size + self.idle_stacks_size + self.running_size
        results = self.results_size + self.pending_results_size
        return instances + self.code_size + self.artifact_size + results

    @property
    def errors(self) -> dict[str, int]:
        """See `UseSummary`, as for all below, which are of the whole cache."""
        return self._summary.errors

    @property
    def wait(self) -> DistributionSummary:
        """From asking for an instance to having it (microseconds)."""
        return self._summary.wait

    @property
    def load(self) -> DistributionSummary:
        """Making an instance (microseconds)."""
        return self._summary.load

    @property
    def hold(self) -> DistributionSummary:
        """The length of leases that have ended (microseconds)."""
        return self._summary.hold

    @property
    def run(self) -> DistributionSummary:
        """How long calls went on after their first slice (microseconds)."""
        return self._summary.run

    @property
    def fuel(self) -> DistributionSummary:
        """Fuel (units) of calls that are over."""
        return self._summary.fuel

    @property
    def compile(self) -> DistributionSummary:
        """Compiling modules (microseconds)."""
        return self._summary.compile

    @cached_property
    def per_function(self) -> Mapping[str, UseSummary]:
        """{name and argument types: summary}, of functions that were used or compiled.

        ``"fib(i64)"``. All generations of a function are one; under ``""`` are all functions that
        were removed.
        """
        return Summaries(self._uses.by_function())

    @cached_property
    def per_group(self) -> Mapping[str, UseSummary]:
        """{name: summary}, of groups in which functions were used; under ``""``: closed ones."""
        return Summaries(self._uses.by_group())


@final
@frozen(kw_only=True)
class ResidentBytes:
    """What is in memory of the mappings that are a cache's own, in whole system pages.

    Sizes say what may be touched; this is what was.
    """

    idle: int
    """Memories of idle instances, and their scratches."""
    running: int
    """Of running instances, and of those that are being loaded."""
    code: int
    """Code of loaded modules."""
    stacks: int
    """Stacks of running instances, and what idle ones keep of theirs. Of all caches in the process
    that have the same `stack_size`: whose a stack is can't be seen."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.idle + self.running + self.code + self.stacks


@frozen(kw_only=True)
class EntryInfo:
    """One function in one group."""

    function: str
    args: tuple[str, ...]
    generation: int
    group: str
    idle: int
    """Instances and seats."""
    running: int
    """Instances held or being loaded."""
    waiting: int
    size: int
    """Its idle instances together (bytes)."""
    last_used: float | None
    """When one of its instances was last recycled (`trio.current_time()`), or None."""
