"""What statistics cost: recording them, and reading them with 10,000 functions."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from trio_wasmcache import CacheConfig, MiB, open_cache
from trio_wasmcache._core.metrics.counters import FUELS, UseStats
from trio_wasmcache.prometheus import CacheCollector
from trio_wasmcache.testing import FakeEngine, open_fake_cache

from .harness import FIB, Report, SilentLogger, interleave, percentile


def once(function: Callable[[], object], rounds: int) -> float:
    """Median milliseconds."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        taken.append((time.perf_counter() - began) * 1e3)
    return percentile(taken, 0.5)


async def bench_recording(report: Report, number: int, rounds: int) -> None:
    """One value in a distribution, beside the call and the lease that pay for one each."""
    uses = UseStats()

    async def nothing(n: int) -> None:
        for _ in range(n):
            pass

    async def add(n: int) -> None:
        for value in range(n):
            uses.add(FUELS, value)

    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        same = await cache.register("same", FIB, args=("i64",), returns="i64")
        args = ("i64",)

        async def lease(n: int) -> None:
            for _ in range(n):
                async with cache.acquire("same", args):
                    pass

        async with same.acquire() as held_lease:
            await held_lease.call(1)
        us = await interleave({"nothing": nothing, "add": add, "lease": lease}, number, rounds)
        async with same.acquire() as held_lease:

            async def held(n: int) -> None:
                for _ in range(n):
                    await held_lease.call(1)

            us |= await interleave({"held": held}, number, rounds)
    added = us["add"] - us["nothing"]
    report.add("recording a value", added, "us", at_most=0.15)
    report.add("recording a value / lease of an idle instance", added / us["lease"], "")
    report.add("recording a value / held call", added / us["held"], "")


async def bench_reading(report: Report, functions: int, rounds: int) -> None:
    """`stats()` with many functions, of which as many as may have instances, and a scrape."""
    engine = FakeEngine()
    config = CacheConfig(max_size=4096 * MiB, max_code_size=4096 * MiB, offload_after=None)
    async with open_fake_cache(config, engine=engine, logger=SilentLogger()) as cache:
        wasm = engine.module()
        for number in range(functions):
            function = await cache.register(
                f"f{number}", wasm, args=("i64",), returns="i64", export="run"
            )
            await function.call(1)
        live = cache.stats().entries
        report.add(f"functions with an instance, of {functions:,}", float(live), "")
        report.add("stats()", once(cache.stats, rounds), "ms", at_most=20)

        def all_functions() -> None:
            for _ in cache.stats().per_function.values():
                pass

        report.add("stats(), and all summaries", once(all_functions, rounds), "ms")
        for what, per_function in (("groups", False), ("groups and functions", True)):
            collector = CacheCollector(cache, per_function=per_function)
            collecting = once(functools.partial(_collect, collector), rounds)
            report.add(f"collecting for Prometheus, {what}", collecting, "ms")


def _collect(collector: CacheCollector) -> None:
    for _ in collector.collect():
        pass


async def run(report: Report, quick: bool) -> None:
    await bench_recording(report, *((200, 5) if quick else (1000, 21)))
    await bench_reading(report, *((500, 3) if quick else (10_000, 15)))
