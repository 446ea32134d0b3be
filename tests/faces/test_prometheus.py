"""The collector for Prometheus, read back by prometheus_client's own parsers."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import AsyncIterator

import pytest
import trio
from documents import ALL
from kits import FakeKit, ListLogger, add
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_strictly
from prometheus_client.parser import text_string_to_metric_families as parse

from trio_wasmcache import CacheConfig, InstanceCache, TrapError, blocking
from trio_wasmcache.prometheus import CacheCollector, _version

PREFIX = "trio_wasmcache_"


@pytest.fixture
async def used(fake: FakeKit) -> AsyncIterator[InstanceCache]:
    """A cache in which something of everything has happened."""
    async with fake.open(CacheConfig(yield_fuel=10_000, offload_after=None)) as cache:
        f = await add(cache, "f", fake.adding(1))
        costly = await add(cache, "costly", fake.costly())
        trapping = await add(cache, "trap", fake.trapping())
        async with cache.scheduling_group("red", capacity=1) as red:
            for function in (f, costly, f):
                red.start_soon(function.call, 1)
        await f.call(1)
        await f.call(1)
        with pytest.raises(TrapError):
            await trapping.call(1)
        yield cache


def scrape(collector: CacheCollector) -> dict[str, Metric]:
    """{name: metric}, through the text format; OpenMetrics must say the same, and strictly."""
    registry = CollectorRegistry()
    registry.register(collector)
    read = {metric.name: metric for metric in parse(generate_latest(registry).decode())}
    text = openmetrics.generate_latest(registry).decode()
    strict = [metric.name + "_info" * (metric.type == "info") for metric in parse_strictly(text)]
    assert {*strict} == read.keys()
    return read


def values(metric: Metric, suffix: str = "") -> dict[tuple[str, ...], float]:
    """{values of its labels: value}, of the samples whose name ends like that."""
    name = metric.name + suffix
    return {tuple(s.labels.values()): s.value for s in metric.samples if s.name == name}


async def test_counters_and_gauges_are_those_of_stats(used: InstanceCache) -> None:
    """Each under its conventional name: counters end in _total, sizes in _bytes."""
    metrics, stats = scrape(CacheCollector(used)), used.stats()
    for name in ("hits", "misses", "blocks", "calls"):
        metric = metrics[f"{PREFIX}{name}"]
        assert metric.type == "counter"
        assert values(metric, "_total") == {(): getattr(stats, name)}
    gauges = {
        "functions": stats.functions,
        "groups": stats.groups,
        "entries": stats.entries,
        "instances": stats.idle_instances + stats.running_instances,
        "running_instances": stats.running_instances,
        "waiting_acquires": stats.waiting,
        "loaded_modules": stats.loaded_modules,
        "idle_instances_bytes": stats.total_size,
        "max_idle_instances_bytes": stats.max_size,
        "running_instances_bytes": stats.running_size,
        "max_running_instances_bytes": math.inf,
        "scratch_bytes": stats.scratch_size,
        "results_bytes": stats.results_size,
        "pending_results_bytes": stats.pending_results_size,
        "max_result_bytes": stats.max_result_size,
        "code_bytes": stats.code_size,
        "max_code_bytes": stats.max_code_size,
        "module_code_bytes": stats.module_code_size,
        "stacks_bytes": stats.stacks_size,
        "idle_stacks_bytes": stats.idle_stacks_size,
        "artifact_bytes": stats.artifact_size,
    }
    for name, value in gauges.items():
        assert metrics[PREFIX + name].type == "gauge"
        assert values(metrics[PREFIX + name]) == {(): value}
    compilers = values(metrics[f"{PREFIX}compiler_code_bytes"])
    assert compilers == {("optimizing",): stats.module_code_size}
    used.resize(max_running_size=5)
    assert values(scrape(CacheCollector(used))[PREFIX + "max_running_instances_bytes"]) == {(): 5}
    evictions = values(metrics[f"{PREFIX}evictions"], "_total")
    assert evictions == {(reason,): count for reason, count in stats.evictions.items()}
    assert values(metrics[f"{PREFIX}errors"], "_total") == {("TrapError",): 1}
    assert values(metrics[f"{PREFIX}log_lost_events"], "_total") == {(): 0}
    assert values(metrics[f"{PREFIX}log_failures"], "_total") == {(): 0}
    assert values(metrics[f"{PREFIX}promotions"], "_total") == {(): 0}
    assert values(metrics[f"{PREFIX}log_context_lost_events"], "_total") == {(): 0}
    assert values(metrics[f"{PREFIX}output_dropped_lines"], "_total") == {(): 0}
    assert values(metrics[f"{PREFIX}log_dropped_calls"], "_total") == {(): 0}


async def test_an_info_metric_has_what_the_numbers_depend_on(used: InstanceCache) -> None:
    """The value is always 1; the policy is that in force."""
    used.resize(policy="sieve")
    (sample,) = scrape(CacheCollector(used))["trio_wasmcache_info"].samples
    assert sample.value == 1
    assert sample.labels["wasmtime_version"] == importlib.metadata.version("wasmtime")
    assert sample.labels["python_version"] == platform.python_version()
    del sample.labels["wasmtime_version"], sample.labels["python_version"]
    version = _version("trio-wasmcache")
    assert sample.labels == {"version": version, "policy": "sieve", "compiler": "optimizing"}
    assert _version("no-such-package") == ""


async def test_histograms_are_those_of_stats(used: InstanceCache) -> None:
    """In seconds, cumulative, always with the same buckets, and with exact sums."""
    metrics, stats = scrape(CacheCollector(used)), used.stats()
    for name, unit in (
        *(("wait_seconds", 1e6), ("load_seconds", 1e6), ("hold_seconds", 1e6)),
        *(("run_seconds", 1e6), ("compile_seconds", 1e6), ("call_fuel", 1)),
    ):
        metric = metrics[PREFIX + name]
        distribution = getattr(stats, name.removeprefix("call_").removesuffix("_seconds"))
        assert metric.type == "histogram"
        buckets = values(metric, "_bucket")
        ends = [float(end) for (end,) in buckets]
        assert ends == sorted(ends)
        assert ends[-1] == math.inf
        for end, count in zip(ends, buckets.values(), strict=True):
            # A duration of 3.x microseconds is recorded as 3, and is not above 4.
            below = end * unit - (unit != 1)
            assert count == sum(n for largest, n in distribution.buckets if largest <= below)
        assert values(metric, "_count") == {(): distribution.count}
        assert values(metric, "_sum")[()] == pytest.approx(distribution.total / unit)


async def test_groups_and_functions_are_labels(used: InstanceCache) -> None:
    """They add up to the cache; those that are gone have an empty label."""
    stats = used.stats()
    metrics = scrape(CacheCollector(used, per_function=True))
    groups = values(metrics[f"{PREFIX}group_misses"], "_total")
    assert groups == {("main",): 2, ("",): 2}
    functions = values(metrics[f"{PREFIX}function_hits"], "_total")
    assert set(functions) == {("f(i64)",), ("costly(i64)",), ("trap(i64)",)}
    assert sum(functions.values()) == stats.hits
    assert values(metrics[f"{PREFIX}function_errors"], "_total") == {("trap(i64)", "TrapError"): 1}
    held = metrics[f"{PREFIX}function_hold_seconds"]
    assert held.type == "summary"
    assert sum(values(held, "_count").values()) == stats.hold.count
    assert sum(values(metrics[f"{PREFIX}group_call_fuel"], "_sum").values()) == stats.fuel.total
    plain = scrape(CacheCollector(used, per_group=False))
    assert not [name for name in plain if "group_" in name or "function_" in name]


async def test_it_says_its_names_before_it_is_asked_for_values(used: InstanceCache) -> None:
    """So a registry refuses a second one of the same namespace, and takes one of another."""
    registry = CollectorRegistry()
    collector = CacheCollector(used, per_function=True)
    registry.register(collector)
    described = {(m.name, m.type, m.documentation, m.unit) for m in collector.describe()}
    collected = {(m.name, m.type, m.documentation, m.unit) for m in collector.collect()}
    assert described == collected
    assert not [metric for metric in collector.describe() if metric.samples]
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(CacheCollector(used))
    registry.register(CacheCollector(used, namespace="another"))


async def test_it_may_be_collected_in_any_thread(used: InstanceCache) -> None:
    """In a thread that knows nothing of Trio, such as that of an HTTP server."""
    collector = CacheCollector(used)
    here = generate_latest(registry_of(collector))
    there: list[bytes] = []
    done, token = trio.Event(), trio.lowlevel.current_trio_token()
    trio.lowlevel.start_thread_soon(
        lambda: generate_latest(registry_of(collector)),
        lambda result: (there.append(result.unwrap()), token.run_sync_soon(done.set)),
    )
    await done.wait()
    assert there == [here]


def registry_of(collector: CacheCollector) -> CollectorRegistry:
    """A registry with nothing else in it."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


def test_after_the_end_it_tells_what_there_was(fake: FakeKit) -> None:
    """When Trio has ended, nobody changes the numbers any more."""
    collectors: list[CacheCollector] = []

    async def main() -> None:
        async with fake.open() as cache:
            collectors.append(CacheCollector(cache))
            await (await add(cache, "f", fake.adding(1))).call(1)

    trio.run(main)
    metrics = scrape(collectors[0])
    assert values(metrics[f"{PREFIX}misses"], "_total") == {(): 1}
    assert values(metrics[f"{PREFIX}instances"]) == {(): 0}


async def test_the_table_of_scylladbs_metrics(used: InstanceCache) -> None:
    """Each of its five is one of ours, by the names in the guide."""
    section = ALL.partition("| ScyllaDB | here |")[2].partition("\n\n")[0]
    table = [line.strip("|").split("|") for line in section.splitlines()[2:]]
    names = {cells[0].strip(" `"): cells[1].strip(" `") for cells in table}
    assert list(names) == [
        f"user_functions_cache_{name}"
        for name in ("hits", "misses", "blocks", "instance_count_any", "total_size")
    ]
    lines = generate_latest(registry_of(CacheCollector(used))).decode().splitlines()
    exported = {line.split(" ")[0] for line in lines if not line.startswith("#")}
    assert set(names.values()) <= exported


async def test_every_metric_is_documented(used: InstanceCache) -> None:
    """Those of the whole cache are in its table, as they are exported, without their namespace."""
    metrics = scrape(CacheCollector(used, per_group=False))
    assert "`info`" in ALL
    del metrics["trio_wasmcache_info"]
    suffixes = {"counter": "_total", "gauge": "", "histogram": ""}
    assert {
        name
        for name, metric in metrics.items()
        if f"`{name.removeprefix('trio_wasmcache_')}{suffixes[metric.type]}`" not in ALL
    } == set()


def test_a_cache_of_another_face_is_refused() -> None:
    """Its numbers are read in another way; the message names one."""
    with blocking.open_cache(logger=ListLogger()) as cache:
        with pytest.raises(TypeError, match=r"got <BlockingCache.*otel\.instrument"):
            CacheCollector(cache)  # type: ignore[arg-type]
