"""That a hit costs the same among many: instances, groups, functions; and what each one takes."""

from __future__ import annotations

import gc
import itertools
import random
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
import wasmtime

from trio_wasmcache import CacheConfig, InstanceCache, MiB, SchedulingGroup, open_cache
from trio_wasmcache.testing import FakeEngine, open_fake_cache

from .harness import FIB, Candidate, Report, SilentLogger, interleave

I64 = ("i64",)
# How many a round goes through: as many at any size, so that only the size differs, and not how
# much of it the processor finds in its caches.
AROUND = 10
# The system's usual limit of memory mappings has room for 24,000.
NATIVELY = 20_000
Place = tuple[SchedulingGroup, str]


def _hits(places: Sequence[Place], *, called: bool = False) -> Candidate:
    """Through some of them in turn, with a call in each lease or without one."""

    async def calls(n: int) -> None:
        for number in range(n):
            group, name = places[number % len(places)]
            async with group.acquire(name, I64) as lease:
                await lease.call(number)

    async def hits(n: int) -> None:
        for number in range(n):
            group, name = places[number % len(places)]
            async with group.acquire(name, I64):
                pass

    return calls if called else hits


def _walk(places: Sequence[Place], *, called: bool = False) -> Candidate:
    """Through all of them in a random order, so that each is long out of the processor's caches."""
    order = itertools.cycle(random.Random(0).sample(places, len(places)))

    async def calls(n: int) -> None:
        for group, name in itertools.islice(order, n):
            async with group.acquire(name, I64) as lease:
                await lease.call(n)

    async def hits(n: int) -> None:
        for group, name in itertools.islice(order, n):
            async with group.acquire(name, I64):
                pass

    return calls if called else hits


def _config() -> CacheConfig:
    """Limits that evict nothing."""
    config = CacheConfig(max_size=2**50, max_code_size=2**50, idle_timeout=1e9, offload_after=None)
    # More than any process could have of wasmtime's, which is why there is a ceiling.
    object.__setattr__(config, "max_instances", 10**9)
    return config


async def _fill(
    cache: InstanceCache, stack: AsyncExitStack, wasm: Any, export: str, functions: int, groups: int
) -> list[Place]:
    """Make an idle instance for each function in each group."""
    opened = [
        await stack.enter_async_context(cache.scheduling_group(f"g{number}", capacity=9))
        for number in range(groups)
    ]
    for number in range(functions):
        await cache.register(f"f{number}", wasm, args=I64, returns="i64", export=export)
    places = [(group, f"f{number}") for group in opened for number in range(functions)]
    await _hits(places)(len(places))
    assert cache.stats().entries == len(places), "some were evicted"
    return places


@asynccontextmanager
async def _fake(functions: int, groups: int) -> AsyncIterator[tuple[InstanceCache, list[Place]]]:
    """A cache on the fake engine with an idle instance for each function in each group."""
    engine = FakeEngine()
    async with (
        open_fake_cache(_config(), engine=engine, logger=SilentLogger()) as cache,
        AsyncExitStack() as stack,
    ):
        yield cache, await _fill(cache, stack, engine.module(), "run", functions, groups)


@asynccontextmanager
async def _native(functions: int, groups: int) -> AsyncIterator[tuple[InstanceCache, list[Place]]]:
    """The same with wasmtime."""
    async with open_cache(_config(), logger=SilentLogger()) as cache, AsyncExitStack() as stack:
        yield cache, await _fill(cache, stack, FIB, "same", functions, groups)


async def bench_entries(report: Report, many: int, natively: int, rounds: int) -> None:
    """A lease of an idle instance among few entries and among many."""
    async with _fake(AROUND, 1) as (_, few), _fake(many // 100, 100) as (cache, places):
        await _compare(report, "fake engine", few, cache, places, rounds)
    async with _native(AROUND, 1) as (_, few), _native(natively // 100, 100) as (cache, places):
        await _compare(report, "wasmtime", few, cache, places, rounds)


async def _compare(
    report: Report,
    engine: str,
    few: Sequence[Place],
    cache: InstanceCache,
    places: Sequence[Place],
    rounds: int,
) -> None:
    entries = cache.stats().entries
    spread = places[:: max(1, len(places) // AROUND)][:AROUND]
    candidates = {"few": _hits(few), "many": _hits(spread), "all": _walk(places)}
    us = await interleave(candidates, AROUND * 3, rounds)
    report.add(f"lease at {AROUND} entries, {engine}", us["few"], "us")
    ratio = us["many"] / us["few"]
    report.add(f"{AROUND} of {entries:,}, in turn / {AROUND} of {AROUND}", ratio, "", at_most=1.15)
    ratio = us["all"] / us["few"]
    report.add(f"all {entries:,}, at random / {AROUND} of {AROUND}", ratio, "", at_most=1.3)
    # A lease that calls nothing does not touch the native instance, so both are measured.
    candidates = {"few": _hits(few, called=True), "all": _walk(places, called=True)}
    us = await interleave(candidates, AROUND * 3, rounds)
    what = f"the same, with a call in each lease, {engine}"
    report.add(what, us["all"] / us["few"], "")


async def bench_names(report: Report, many: int, rounds: int) -> None:
    """Among many functions that have no instances, and among many groups."""
    async with (
        _fake(AROUND, 1) as (_, few),
        _fake(many, 1) as (_, functions),
        _fake(1, many) as (_, groups),
    ):
        candidates = {
            "few": _hits(few),
            "functions": _hits(functions[:: many // AROUND]),
            "groups": _hits(groups[:: many // AROUND]),
        }
        us = await interleave(candidates, AROUND * 3, rounds)
    for what in ("functions", "groups"):
        ratio = us[what] / us["few"]
        report.add(f"lease at {many:,} {what} / at {AROUND}", ratio, "", at_most=1.15)


async def bench_memory(report: Report, count: int) -> None:
    """Bytes of Python's that each idle entry keeps; what wasmtime allocates is not seen here."""
    config = CacheConfig(max_size=4096 * MiB, max_code_size=4096 * MiB, idle_timeout=1e9)
    async with open_cache(config, logger=SilentLogger()) as cache:
        for number in range(count):
            await cache.register(f"f{number}", FIB, args=I64, returns="i64", export="same")
        await trio.sleep(0.1)  # the log's thread writes
        gc.collect()
        tracemalloc.start()
        for number in range(count):
            async with cache.acquire(f"f{number}", I64) as lease:
                await lease.call(number)
        await trio.sleep(0.1)
        gc.collect()
        ours, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, FIB)
    kept: list[Any] = []
    tracemalloc.start()
    for _ in range(count):
        store = wasmtime.Store(engine)
        instance = wasmtime.Instance(store, module, [])
        kept.append((store, instance, instance.exports(store)["same"]))
    gc.collect()
    theirs, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    report.add("Python memory of an idle entry", ours / count / 1024, "KB", at_most=3)
    report.add("of wasmtime-py's store, instance, function", theirs / count / 1024, "KB")


async def run(report: Report, quick: bool) -> None:
    await bench_entries(report, *((1000, 200, 5) if quick else (100_000, NATIVELY, 601)))
    await bench_names(report, *((200, 5) if quick else (10_000, 601)))
    await bench_memory(report, 50 if quick else 1000)
