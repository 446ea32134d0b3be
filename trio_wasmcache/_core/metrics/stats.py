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
    """Number of values."""
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
    """Number of leases granted from an idle instance or seat."""
    seat_hits: int
    """Number of the hits for which an instance had to be loaded on a seat."""
    misses: int
    """Number of leases for which an instance had to be loaded."""
    blocks: int
    """Number of acquires that had to wait, including those that were then cancelled."""
    calls: int
    """Number of calls begun; a batch is one call."""
    errors: dict[str, int]
    """{name of the error's type: number of acquires and calls that failed with it}. Cancelled ones
    have the name ``"Cancelled"``. Errors for unknown functions, and for values that do not fit, are
    not counted."""
    wait: DistributionSummary
    """Time from the request for an instance to its grant, including any load (microseconds); 0 if
    an instance was idle. Requests that were not granted are left out."""
    load: DistributionSummary
    """Time to make an instance, including any load of its code (microseconds). Loads for
    `InstanceCache.warm` are included."""
    hold: DistributionSummary
    """Length of leases that have ended (microseconds)."""
    run: DistributionSummary
    """Time that calls took after their first slice (microseconds); 0 if they ended in it. Batches,
    and calls whose values cross through memory, are measured from their beginning."""
    fuel: DistributionSummary
    """Fuel burnt by calls that have ended, including failed ones (units)."""
    compile: DistributionSummary
    """Time to compile the modules of functions (microseconds). Modules that were compiled before
    are left out. Groups have no values."""


def summarise_uses(uses: UseStats) -> UseSummary:
    """Return the summary of `uses`, with the numbers that are derived rather than recorded."""
    return UseSummary(
        hits=uses.hits,
        seat_hits=uses.seat_hits,
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
    seat_hits: int
    """Number of the hits for which an instance had to be loaded: a seat had only the module's code
    ready."""
    misses: int
    """Number of leases for which an instance had to be loaded; hits + misses = leases granted."""
    blocks: int
    """Number of acquires that had to wait, including those that were then cancelled."""
    calls: int
    """Number of calls begun; a batch is one call."""
    evictions: dict[str, int]
    """{reason: number of instances and seats evicted for it}. Every reason is a key."""
    functions: int
    """Number of registered functions."""
    groups: int
    """Number of open scheduling groups, including ``"main"``."""
    entries: int
    """Number of entries: functions in groups that have instances or waiters."""
    idle_instances: int
    """Number of idle instances and seats."""
    running_instances: int
    """Number of instances that are held or being loaded, or in which functions are prepared."""
    waiting: int
    """Number of acquires that wait for an instance or for capacity, and of preparations that wait
    for capacity."""
    loaded_modules: int
    """Number of modules whose code is loaded."""
    total_size: int
    """Bytes of all idle instances together."""
    max_size: int
    """Limit of `total_size` (bytes)."""
    running_size: int
    """Bytes that all running instances together may touch at most."""
    max_running_size: int | None
    """Limit of `running_size` (bytes); None: no limit."""
    scratch_size: int
    """Bytes of the scratch memories of batches. They are part of `total_size` or `running_size`."""
    results_size: int
    """Bytes of memory kept for the results of the next batches; freed when something is evicted."""
    pending_results_size: int
    """Bytes of results of calls and batches under way: copies from guests, and the values made of
    them. A returned result belongs to the caller and is not counted."""
    max_result_size: int
    """Limit of each single result in `pending_results_size` (bytes)."""
    code_size: int
    """Bytes of code of loaded modules and of stacks of running instances together."""
    max_code_size: int
    """Limit of `code_size` (bytes)."""
    module_code_size: int
    """Bytes of code of loaded modules: one part of `code_size`."""
    compiler_code_sizes: dict[str, int]
    """``{compiler: bytes of code of loaded modules}``: `module_code_size` by the compiler that made
    it, ``"baseline"`` or ``"optimizing"``, of those that the cache uses; with ``", profiled"``,
    that of modules in which samples are taken, while some is loaded."""
    stacks_size: int
    """Bytes of stacks of running instances: the other part of `code_size`."""
    address_space: int
    """Bytes of addresses that instances and loaded code reserve, used or not."""
    max_address_space: int | None
    """Limit of `address_space` (bytes): the configured one, or the system's. None: unknown."""
    mappings: int
    """Number of the kernel's memory mappings of instances and loaded code, at most."""
    max_mappings: int | None
    """Limit of `mappings`: three quarters of the kernel's. None: unknown."""
    idle_stacks_size: int
    """Bytes that idle instances may keep of the stacks on which they ran, at most; the real size is
    unknown."""
    artifact_size: int
    """Bytes of serialized code of all registered modules, loaded or not, and, compressed, of their
    debug sections, and of the modules as they were given."""
    log_lost: int
    """Number of events dropped from the log because its sink was too slow."""
    log_failures: int
    """Number of events for which the sink raised."""
    context_lost: int
    """Number of events that were logged without the context of the task that caused them, because
    the log's sink was too slow."""
    snapshots_lost: int
    """Number of snapshots of the cache that were left out of the log, because its sink was too
    slow."""
    output_dropped: int = 0
    """Number of lines that guests wrote for the log, or for a function in `Wasi`, and that were
    dropped: they exceeded a limit, the log's sink was too slow, or the function raised."""
    values_dropped: int = 0
    """Number of calls that `log_values` selects and that were not logged, as their group had
    exceeded its limit, or the log's sink was too slow."""
    promotions: int = 0
    """Number of functions whose code the optimizing compiler has made in the background."""
    promotions_waiting: int = 0
    """Number of modules that wait for that compiler, or are in it, now."""
    throttled_seconds: dict[str, float] = field(factory=dict)
    """{group: seconds that its calls have waited for its `cpu_limit`, all together}, of the open
    groups that have one. It begins anew for a group whose limit is taken away."""
    throttled_waits: dict[str, int] = field(factory=dict)
    """{group: number of these waits that have begun}, of the same groups."""
    _uses: Snapshot = field(factory=Snapshot, repr=False, eq=False)

    @cached_property
    def _summary(self) -> UseSummary:
        return summarise_uses(self._uses.whole())

    @property
    def accounted_size(self) -> int:
        """Bytes of everything that is counted: instances, code, stacks, artifacts and results."""
        instances = self.total_size + self.idle_stacks_size + self.running_size
        results = self.results_size + self.pending_results_size
        return instances + self.code_size + self.artifact_size + results

    @property
    def errors(self) -> dict[str, int]:
        """{name of the error's type: number of acquires and calls}; see `UseSummary.errors`."""
        return self._summary.errors

    @property
    def wait(self) -> DistributionSummary:
        """Time from the request for an instance to its grant; see `UseSummary.wait`."""
        return self._summary.wait

    @property
    def load(self) -> DistributionSummary:
        """Time to make an instance; see `UseSummary.load`."""
        return self._summary.load

    @property
    def hold(self) -> DistributionSummary:
        """Length of leases that have ended; see `UseSummary.hold`."""
        return self._summary.hold

    @property
    def run(self) -> DistributionSummary:
        """Time that calls took after their first slice; see `UseSummary.run`."""
        return self._summary.run

    @property
    def fuel(self) -> DistributionSummary:
        """Fuel burnt by calls that have ended; see `UseSummary.fuel`."""
        return self._summary.fuel

    @property
    def compile(self) -> DistributionSummary:
        """Time to compile modules; see `UseSummary.compile`."""
        return self._summary.compile

    @cached_property
    def per_function(self) -> Mapping[str, UseSummary]:
        """{name and argument types: summary} of functions that were used or compiled.

        A key is, for example, ``"fib(i64)"``. All generations of a function share one key. The key
        ``""`` stands for all functions that were removed.
        """
        return Summaries(self._uses.by_function())

    @cached_property
    def per_group(self) -> Mapping[str, UseSummary]:
        """{name: summary} of groups in which functions were used; ``""``: all closed groups."""
        return Summaries(self._uses.by_group())


@public
@final
@frozen(kw_only=True)
class ResidentBytes:
    """Bytes of a cache that are in physical memory, in whole system pages.

    The sizes in `CacheStats` are the most that guests may touch; these are what they have touched.
    """

    idle: int
    """Bytes of memories and scratch memories of idle instances."""
    running: int
    """Bytes of memories of running instances, and of instances being loaded."""
    code: int
    """Bytes of code of loaded modules."""
    stacks: int
    """Bytes of stacks of running instances, and of stacks kept by idle ones. Stacks of other caches
    in the process with the same `stack_size` are included, as the owner of a stack can't be
    determined."""

    @property
    def total(self) -> int:
        """Bytes of all fields together."""
        return self.idle + self.running + self.code + self.stacks


@public
@frozen(kw_only=True)
class EntryInfo:
    """The entry of one function in one group: its instances, and the acquires that wait for
    them. While `register` prepares a function, its instance has an entry of its own."""

    function: str
    """Name of the function."""
    args: tuple[str, ...]
    """Types of its arguments, in their normal spelling."""
    generation: int
    """Generation of the function; an older one if it was replaced and is still in use; 0 for the
    instance in which it is prepared."""
    group: str
    """Name of the scheduling group."""
    idle: int
    """Number of idle instances and seats."""
    running: int
    """Number of instances that are held or being loaded, or in which the function is prepared."""
    waiting: int
    """Number of acquires that wait for an instance or for capacity."""
    size: int
    """Bytes of its idle instances together."""
    last_used: float | None
    """Time at which one of its instances was last recycled (`trio.current_time()`); None if none
    was."""
    tiers: dict[str, int] = field(factory=dict)
    """``{tier: number of instances and seats}``: how many run code of the ``"baseline"`` or of the
    ``"optimizing"`` compiler; with ``", profiled"``, those of which samples are taken."""
