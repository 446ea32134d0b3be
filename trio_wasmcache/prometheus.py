"""Exports a cache's statistics to Prometheus: a collector for `prometheus_client`.

Needs the extra ``trio_wasmcache[prometheus]``; nothing else in the package imports this file.
Names and units follow https://prometheus.io/docs/practices/naming/: base units, ``_total``.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import final

import trio

from ._cache.cache import InstanceCache
from ._core.metrics.stats import CacheStats, DistributionSummary, UseSummary
from ._core.text import shown

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
        SummaryMetricFamily,
    )
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError(
        "trio_wasmcache.prometheus takes prometheus_client: pip install '.[prometheus]'"
    ) from _error

__all__ = ["CacheCollector"]

# Number of bits of the values at which each exported bucket ends. One bucket for every fourth
# factor of two would be too coarse to alert on, one for each too many lines.
# 1 microsecond to 67 seconds:
DURATION_BITS = range(0, 27, 2)
# 63 to 17 billion units; by default, a call has a billion.
FUEL_BITS = range(6, 35, 4)

# (field of CacheStats, metric, help text)
COUNTERS = (
    ("hits", "hits", "Leases granted from an idle instance."),
    ("seat_hits", "seat_hits", "Hits for which an instance had to be loaded, on a seat."),
    ("misses", "misses", "Leases for which something had to be loaded."),
    ("blocks", "blocks", "Acquires that had to wait."),
    ("calls", "calls", "Calls begun."),
)
GAUGES = (
    ("functions", "functions", "Registered functions."),
    ("groups", "groups", "Open scheduling groups."),
    ("entries", "entries", "Functions in groups that have instances or are waited for."),
    ("running_instances", "running_instances", "Instances that are held, or being loaded."),
    ("waiting", "waiting_acquires", "Acquires that wait for an instance or for capacity."),
    ("loaded_modules", "loaded_modules", "Modules whose code is loaded."),
    ("total_size", "idle_instances_bytes", "Size of all idle instances together."),
    ("max_size", "max_idle_instances_bytes", "The limit of that: max_size."),
    ("running_size", "running_instances_bytes", "What running instances may touch at most."),
    ("max_running_size", "max_running_instances_bytes", "The limit of that; +Inf: there is none."),
    ("scratch_size", "scratch_bytes", "What batches keep in idle and running instances."),
    ("results_size", "results_bytes", "Memory kept for the results of the next batches."),
    ("pending_results_size", "pending_results_bytes", "Results of calls and batches under way."),
    ("max_result_size", "max_result_bytes", "The limit of each of these: max_result_size."),
    ("code_size", "code_bytes", "Code of loaded modules and stacks of running instances."),
    ("max_code_size", "max_code_bytes", "The limit of that: max_code_size."),
    ("module_code_size", "module_code_bytes", "Code of loaded modules."),
    ("stacks_size", "stacks_bytes", "Stacks of running instances."),
    ("idle_stacks_size", "idle_stacks_bytes", "What idle instances may keep of their stacks."),
    ("address_space", "address_space_bytes", "Addresses that instances and code reserve."),
    ("max_address_space", "max_address_space_bytes", "The limit of that; +Inf: none is known."),
    ("mappings", "mappings", "Memory mappings of instances and loaded code."),
    ("max_mappings", "max_mappings", "The limit of that; +Inf: none is known."),
    (
        "artifact_size",
        "artifact_bytes",
        "Serialized code of all registered modules, and the modules, compressed.",
    ),
)
# (field of UseSummary, metric, help text)
DURATIONS = (
    ("wait", "wait_seconds", "From asking for an instance to having it; loading included."),
    ("load", "load_seconds", "Making an instance."),
    ("hold", "hold_seconds", "Length of leases that have ended."),
    ("run", "run_seconds", "How long calls went on after their first slice."),
    ("compile", "compile_seconds", "Compiling modules."),
)
FUEL = ("fuel", "call_fuel", "Fuel burnt by calls that are over.")
OF_GROUPS = tuple(one for one in DURATIONS if one[0] != "compile")


@final
class CacheCollector(Collector):
    """A Prometheus collector of the numbers of `InstanceCache.stats`.

    .. code-block::

        prometheus_client.REGISTRY.register(CacheCollector(cache))

    It may be collected in any thread that runs no Trio of its own, such as that of
    `prometheus_client.start_http_server`. The numbers are read in the Trio thread, between two
    steps of its tasks, and converted to metrics in the collecting thread.

    Counters begin with the cache. `InstanceCache.pop_stats` would reset them, so do not use both.
    Use a different namespace for each cache of a process. If the cache has a label, every metric
    has it, as the label `label`, so that the caches of several processes can be distinguished.

    Args:
        cache: an open cache. Unregister the collector when the cache is closed; until then it
            reports the numbers at closing.
        namespace: prefix of all metric names.
        per_group: also export counters and histograms for each scheduling group.
        per_function: also export counters, and counts and sums of durations and fuel, for each
            function. Each function takes 18 lines, so consider the cost of storing them.

    Raises:
        TypeError: `cache` is not an `InstanceCache`. `trio_wasmcache.otel.instrument` also takes
            those of `trio_wasmcache.blocking` and `trio_wasmcache.aio`.
        RuntimeError: it is made outside of the Trio run of the cache, or in the middle of a step.
    """

    def __init__(
        self,
        cache: InstanceCache,
        *,
        namespace: str = "trio_wasmcache",
        per_group: bool = True,
        per_function: bool = False,
    ) -> None:
        if not isinstance(cache, InstanceCache):
            raise TypeError(
                f"CacheCollector takes the InstanceCache of a Trio run, got {shown(cache)}; for a "
                "cache of blocking or aio, there is trio_wasmcache.otel.instrument"
            )
        self._cache = cache
        self._namespace = namespace
        self._per_group = per_group
        self._per_function = per_function
        cache.stats()  # raises where the next line would take the token of another run
        self._token = trio.lowlevel.current_trio_token()

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values, with which a registry finds duplicate names."""
        return self._metrics(None)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of this moment. In another thread, this waits for the Trio thread."""
        label = self._cache.label
        for metric in self._metrics(self._read()):
            if label:
                metric.samples = [
                    sample._replace(labels={"label": label, **sample.labels})
                    for sample in metric.samples
                ]
            yield metric

    def _read(self) -> CacheStats:
        try:
            here = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            here = False
        if here:
            return self._cache.stats()
        try:
            return trio.from_thread.run_sync(self._cache.stats, trio_token=self._token)
        except trio.RunFinishedError:
            return self._cache.stats()  # it can't change any more

    def _metrics(self, stats: CacheStats | None) -> Iterator[Metric]:
        yield self._info(stats)
        prefix = f"{self._namespace}_"
        for field, name, what in COUNTERS:
            value = None if stats is None else getattr(stats, field)
            yield CounterMetricFamily(prefix + name, what, value=value)
        yield from self._more_counters(prefix, stats)
        idle = None if stats is None else stats.idle_instances + stats.running_instances
        yield GaugeMetricFamily(prefix + "instances", "Instances, idle and running.", value=idle)
        for field, name, what in GAUGES:
            value = None if stats is None else getattr(stats, field)
            if stats is not None and value is None:
                value = math.inf  # a limit that is not set
            yield GaugeMetricFamily(prefix + name, what, value=value, unit=_unit(name))
        compilers = GaugeMetricFamily(
            f"{prefix}compiler_code_bytes",
            "Code of loaded modules, by the compiler that made it.",
            labels=("compiler",),
            unit="bytes",
        )
        for compiler, size in ({} if stats is None else stats.compiler_code_sizes).items():
            compilers.add_metric((compiler,), size)
        yield compilers
        for field, name, what in (*DURATIONS, FUEL):
            family = HistogramMetricFamily(prefix + name, what, labels=(), unit=_unit(name))
            if stats is not None:
                _add_histogram(family, (), field, getattr(stats, field))
            yield family
        if self._per_group:
            groups = {} if stats is None else stats.per_group
            yield from _counters(f"{prefix}group_", "group", groups)
            for field, name, what in (*OF_GROUPS, FUEL):
                family = HistogramMetricFamily(
                    f"{prefix}group_{name}", what, labels=("group",), unit=_unit(name)
                )
                for group, summary in groups.items():
                    _add_histogram(family, (group,), field, getattr(summary, field))
                yield family
            throttled = CounterMetricFamily(
                f"{prefix}group_throttled_seconds",
                "Time that calls waited for the cpu_limit of their group.",
                labels=("group",),
                unit="seconds",
            )
            for group, seconds in ({} if stats is None else stats.throttled_seconds).items():
                throttled.add_metric((group,), seconds)
            yield throttled
            waits = CounterMetricFamily(
                f"{prefix}group_throttled_waits",
                "Waits of calls for the cpu_limit of their group.",
                labels=("group",),
            )
            for group, number in ({} if stats is None else stats.throttled_waits).items():
                waits.add_metric((group,), number)
            yield waits
        if self._per_function:
            functions = {} if stats is None else stats.per_function
            yield from _counters(f"{prefix}function_", "function", functions)
            for field, name, what in (*DURATIONS, FUEL):
                sums = SummaryMetricFamily(
                    f"{prefix}function_{name}", what, labels=("function",), unit=_unit(name)
                )
                for function, summary in functions.items():
                    distribution: DistributionSummary = getattr(summary, field)
                    total = _in_unit(field, distribution.total)
                    sums.add_metric((function,), distribution.count, total)
                yield sums

    def _info(self, stats: CacheStats | None) -> Metric:
        """Return what the numbers depend on: with the value 1, to be joined with others."""
        info = InfoMetricFamily(self._namespace, "Versions, policy and compiler of the cache.")
        if stats is not None:
            config = self._cache.config
            facts = {
                "version": _version("trio-wasmcache"),
                "wasmtime_version": _version("wasmtime"),
                "python_version": platform.python_version(),
                "policy": config.policy,
                "compiler": config.compiler,
            }
            info.add_metric((), facts)
        return info

    def _more_counters(self, prefix: str, stats: CacheStats | None) -> Iterator[Metric]:
        evictions = CounterMetricFamily(
            f"{prefix}evictions", "Evicted instances, by reason.", labels=("reason",)
        )
        errors = CounterMetricFamily(
            f"{prefix}errors", "Acquires and calls that failed, by type.", labels=("type",)
        )
        lost = CounterMetricFamily(f"{prefix}log_lost_events", "Events that the log dropped.")
        failed = CounterMetricFamily(
            f"{prefix}log_failures", "Events for which the log's sink raised."
        )
        context_lost = CounterMetricFamily(
            f"{prefix}log_context_lost_events", "Events logged without the context of their task."
        )
        snapshots = CounterMetricFamily(
            f"{prefix}log_lost_snapshots", "Snapshots that were left out of the log."
        )
        lines = CounterMetricFamily(
            f"{prefix}output_dropped_lines", "Lines of guests' output that were dropped."
        )
        values = CounterMetricFamily(
            f"{prefix}log_dropped_calls", "Calls with their values that were left out of the log."
        )
        promotions = CounterMetricFamily(
            f"{prefix}promotions", "Functions whose optimized code was made in the background."
        )
        if stats is not None:
            for reason, count in stats.evictions.items():
                evictions.add_metric((reason,), count)
            for error, count in stats.errors.items():
                errors.add_metric((error,), count)
            lost.add_metric((), stats.log_lost)
            failed.add_metric((), stats.log_failures)
            context_lost.add_metric((), stats.context_lost)
            snapshots.add_metric((), stats.snapshots_lost)
            lines.add_metric((), stats.output_dropped)
            values.add_metric((), stats.values_dropped)
            promotions.add_metric((), stats.promotions)
        yield from (evictions, errors, lost, failed, context_lost, snapshots, lines, values)
        yield promotions


def _version(package: str) -> str:
    """Return the version of an installed package; of one that is not, an empty string."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _unit(name: str) -> str:
    """Return the last word of a metric's name if that is a unit, else an empty string."""
    last = name.rpartition("_")[2]
    return last if last in ("seconds", "bytes") else ""


def _counters(prefix: str, label: str, summaries: Mapping[str, UseSummary]) -> Iterator[Metric]:
    for field, name, what in COUNTERS:
        family = CounterMetricFamily(prefix + name, what, labels=(label,))
        for key, summary in summaries.items():
            family.add_metric((key,), getattr(summary, field))
        yield family
    errors = CounterMetricFamily(
        f"{prefix}errors", "Acquires and calls that failed, by type.", labels=(label, "type")
    )
    for key, summary in summaries.items():
        for error, count in summary.errors.items():
            errors.add_metric((key, error), count)
    yield errors


def _add_histogram(
    family: HistogramMetricFamily,
    labels: tuple[str, ...],
    field: str,
    distribution: DistributionSummary,
) -> None:
    """Add one series. Its buckets are always the same, as Prometheus needs them to aggregate."""
    counts = {largest.bit_length(): count for largest, count in distribution.buckets}
    buckets: list[tuple[str, float]] = []
    for bits in FUEL_BITS if field == "fuel" else DURATION_BITS:
        below = sum(count for had, count in counts.items() if had <= bits)
        buckets.append((str(_end_of(field, bits)), below))
    buckets.append(("+Inf", distribution.count))
    family.add_metric(labels, buckets, _in_unit(field, distribution.total))


def _end_of(field: str, bits: int) -> float:
    """Return the upper bound of values of at most `bits` bits, in the metric's unit.

    Durations were rounded down to microseconds, so their bound is one microsecond higher.
    """
    return float((1 << bits) - 1) if field == "fuel" else (1 << bits) / 1e6


def _in_unit(field: str, total: int) -> float:
    return float(total) if field == "fuel" else total / 1e6
