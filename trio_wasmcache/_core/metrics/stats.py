"""The statistics of a cache: frozen numbers, taken at one moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import final

from attrs import Factory, define, field, frozen

from ..._public import public
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


@public
@final
@frozen(kw_only=True)
class DistributionSummary:
    """The summary of a distribution. Durations are microseconds, rounded down; fuel is units."""

    count: int
    total: int
    """Exact sum of the values."""
    mean: float
    """Mean of the values; 0.0 if there are none."""
    p50: int
    """Estimate of the median: it has as many bits as the median, so it is less than twice as large,
    and more than half. 0 if there are no values."""
    p90: int
    """Estimate of the 90th percentile, likewise."""
    p99: int
    """Estimate of the 99th percentile, likewise."""
    buckets: tuple[tuple[int, int], ...]
    """((upper bound, number of values), ...), ascending, without empty buckets. Upper bounds are 0,
    1, 3, 7, 15 and so on, and included; a bucket begins after the upper bound before its own."""


def summarise(distribution: Distribution, zeros: int = 0) -> DistributionSummary:
    """Return the summary of a distribution with `zeros` additional values of 0."""
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
    """Return a percentile, assuming that the values of a bucket are spread evenly in it."""
    place = -(-count * percent // 100)
    for bits, number in buckets:
        if place <= number:
            low, high = 1 << bits >> 1, (1 << bits) - 1
            return low + (high - low) * (2 * place - 1) // (2 * number)
        place -= number
    raise AssertionError(f"{percent} per cent of {count} are not in {buckets}")


NOTHING = DistributionSummary(count=0, total=0, mean=0.0, p50=0, p90=0, p99=0, buckets=())


@public
@final
@frozen(kw_only=True)
class UseSummary:
    """Acquires and calls of one function, of one group, or of the whole cache."""

    hits: int
    misses: int
    blocks: int
    calls: int
    """Number of calls begun; a batch is one."""
    errors: dict[str, int]
    """{name of the error's type: acquires and calls that failed with it}, including
    ``"Cancelled"``; without errors for unknown functions and for values that do not fit."""
    wait: DistributionSummary
    """Time from the request for an instance to its grant, including the load; 0: one was idle.
    Only of requests that were granted one."""
    load: DistributionSummary
    """Time to make an instance, also for `InstanceCache.warm`, including any load of its code."""
    hold: DistributionSummary
    """Length of leases that have ended."""
    run: DistributionSummary
    """Time that calls took after their first slice; 0: they ended in it. Calls whose values cross
    through memory, and batches, are measured from their beginning."""
    fuel: DistributionSummary
    """Fuel (units) of calls that are over, including failed ones."""
    compile: DistributionSummary
    """Time to compile modules, for functions whose module was new. Groups have none."""


def summarise_uses(uses: UseStats) -> UseSummary:
    """Return the summary of `uses`, with the numbers that are derived rather than recorded."""
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
    """{name: summary}. Each summary is made on first use; the values do not change."""

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


@public
@final
@frozen(kw_only=True)
class CacheStats:
    """Counters since the cache was opened, and gauges of the moment. Sizes are bytes.

    `InstanceCache.pop_stats` resets counters and distributions; gauges stay.
    """

    hits: int
    """Number of leases granted from an idle instance or seat."""
    misses: int
    """Number of leases for which something had to be loaded; hits + misses = leases granted."""
    blocks: int
    """Number of acquires that had to wait, including those that were then cancelled."""
    calls: int
    """Number of calls begun."""
    evictions: dict[str, int]
    """{reason: instances and seats evicted for it}; contains every reason."""
    functions: int
    """Number of registered functions."""
    groups: int
    """Number of open scheduling groups, including the main one."""
    entries: int
    """Number of entries: functions in groups that have instances or waiters."""
    idle_instances: int
    """Number of idle instances and seats."""
    running_instances: int
    """Number of instances that are held or being loaded."""
    waiting: int
    """Number of acquires that wait for an instance or for capacity."""
    loaded_modules: int
    total_size: int
    """Size of all idle instances together."""
    max_size: int
    running_size: int
    """Sum of the most that each running instance may touch."""
    max_running_size: int | None
    scratch_size: int
    """Scratches of batches; part of `total_size` in idle instances, else of `running_size`."""
    results_size: int
    """Memory kept for the results of the next batch, until something is evicted."""
    pending_results_size: int
    """Results of calls and batches under way: bytes copied out of guests, and the values made of
    them. A returned result belongs to the caller and is not counted."""
    max_result_size: int
    """Limit of each single result in `pending_results_size`."""
    code_size: int
    """Code of loaded modules and stacks of running instances together."""
    max_code_size: int
    module_code_size: int
    """Code of loaded modules: one part of `code_size`."""
    stacks_size: int
    """Stacks of running instances: the other part of `code_size`."""
    address_space: int
    """Addresses that instances and loaded code reserve (bytes), used or not."""
    max_address_space: int | None
    """Limit of `address_space`: the configured one, or the system's; None: unknown."""
    mappings: int
    """Number of the kernel's memory mappings of instances and loaded code, at most."""
    max_mappings: int | None
    """Limit of `mappings`: three quarters of the kernel's; None: unknown."""
    idle_stacks_size: int
    """Most that idle instances may keep of stacks on which they ran; the real size is unknown."""
    artifact_size: int
    """Serialized code of all registered modules, loaded or not."""
    log_lost: int
    """Number of events dropped from the log because its sink was too slow."""
    log_failures: int
    """Number of events for which the sink raised."""
    _uses: Snapshot = field(factory=Snapshot, repr=False, eq=False)

    @cached_property
    def _summary(self) -> UseSummary:
        return summarise_uses(self._uses.whole())

    @property
    def accounted_size(self) -> int:
        """Sum of all sizes that are counted: instances, code, stacks, artifacts and results."""
        instances = self.total_size + self.idle_stacks_size + self.running_size
        results = self.results_size + self.pending_results_size
        return instances + self.code_size + self.artifact_size + results

    @property
    def errors(self) -> dict[str, int]:
        """{name of the error's type: number}; see `UseSummary`, here for the whole cache."""
        return self._summary.errors

    @property
    def wait(self) -> DistributionSummary:
        """Time from the request for an instance to its grant (microseconds)."""
        return self._summary.wait

    @property
    def load(self) -> DistributionSummary:
        """Time to make an instance (microseconds)."""
        return self._summary.load

    @property
    def hold(self) -> DistributionSummary:
        """Length of leases that have ended (microseconds)."""
        return self._summary.hold

    @property
    def run(self) -> DistributionSummary:
        """Time that calls took after their first slice (microseconds)."""
        return self._summary.run

    @property
    def fuel(self) -> DistributionSummary:
        """Fuel (units) of calls that are over."""
        return self._summary.fuel

    @property
    def compile(self) -> DistributionSummary:
        """Time to compile modules (microseconds)."""
        return self._summary.compile

    @cached_property
    def per_function(self) -> Mapping[str, UseSummary]:
        """{name and argument types: summary}, of functions that were used or compiled.

        A key is, for example, ``"fib(i64)"``. All generations of a function share one; the key
        ``""`` stands for all functions that were removed.
        """
        return Summaries(self._uses.by_function())

    @cached_property
    def per_group(self) -> Mapping[str, UseSummary]:
        """{name: summary}, of groups in which functions were used; ``""``: all closed groups."""
        return Summaries(self._uses.by_group())


@public
@final
@frozen(kw_only=True)
class ResidentBytes:
    """Memory of a cache's own mappings that is resident, in whole system pages.

    Other sizes say what may be touched; these say what was.
    """

    idle: int
    """Memories of idle instances, and their scratches."""
    running: int
    """Memories of running instances, and of those being loaded."""
    code: int
    """Code of loaded modules."""
    stacks: int
    """Stacks of running instances, and what idle ones keep of theirs. Of all caches in the process
    with the same `stack_size`, as the owner of a stack can't be determined."""

    @property
    def total(self) -> int:
        """Sum of all fields."""
        return self.idle + self.running + self.code + self.stacks


@public
@frozen(kw_only=True)
class EntryInfo:
    """The entry of one function in one group."""

    function: str
    args: tuple[str, ...]
    generation: int
    group: str
    idle: int
    """Number of idle instances and seats."""
    running: int
    """Number of instances held or being loaded."""
    waiting: int
    size: int
    """Size of its idle instances together (bytes)."""
    last_used: float | None
    """Time when one of its instances was last recycled (`trio.current_time()`), or None."""
