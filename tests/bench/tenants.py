"""What a group with limits of its own costs, and what its neighbours feel of it.

CPU time is that of the process, less that of the same run without the group.
"""

from __future__ import annotations

import math
import statistics
import time

import trio

from trio_wasmcache import CacheConfig, InstanceCache, MiB, SchedulingGroup, open_cache

from .harness import FIB, Report, SilentLogger, percentile

LOOPS, LIMIT = 100, 0.1
# Seconds between two calls of a group that is mostly idle.
PERIOD = 0.005


async def _loop(group: SchedulingGroup) -> None:
    async with group.acquire("forever", ()) as lease:
        await lease.call()


async def _cores(cache: InstanceCache, begin: float, seconds: float, loops: int) -> float:
    """Cores that the process uses while a group with a limit runs so many endless loops."""
    async with cache.scheduling_group("slow", capacity=LOOPS, cpu_limit=LIMIT) as slow:
        for _ in range(loops):
            slow.start_soon(_loop, slow)
        await trio.sleep(2 * begin)  # they are loaded, and the first window is over
        began, cpu = time.monotonic(), time.process_time()
        await trio.sleep(seconds)
        used = (time.process_time() - cpu) / (time.monotonic() - began)
        slow.cancel_scope.cancel()
    return used


async def _neighbours(cache: InstanceCache, begin: float, seconds: float, limited: int) -> float:
    """Fuel that a group which always has work burns beside so many limited loops, each second."""

    async def work(group: SchedulingGroup) -> None:
        async with group.acquire("forever", ()) as lease:
            await lease.call()

    async with (
        cache.scheduling_group("slow", capacity=LOOPS, cpu_limit=LIMIT) as slow,
        cache.scheduling_group("busy", capacity=8) as busy,
    ):
        for _ in range(limited):
            slow.start_soon(_loop, slow)
        for _ in range(2):
            busy.start_soon(work, busy)
        await trio.sleep(begin)
        began, before = time.monotonic(), busy._state.share.virtual_time
        await trio.sleep(seconds)
        fuel = (busy._state.share.virtual_time - before) * busy.shares
        rate = fuel / (time.monotonic() - began)
        slow.cancel_scope.cancel()
        busy.cancel_scope.cancel()
    return rate


async def _latencies(
    cache: InstanceCache, begin: float, seconds: float, limited: int
) -> list[float]:
    """Times (seconds) from when a call is due to its end, in a group that is mostly idle."""
    found = []
    async with (
        cache.scheduling_group("slow", capacity=LOOPS, cpu_limit=LIMIT) as slow,
        cache.scheduling_group("idle", capacity=1) as idle,
    ):
        for _ in range(limited):
            slow.start_soon(_loop, slow)
        await trio.sleep(begin)
        end = due = trio.current_time()
        end += seconds
        while due < end:
            due += PERIOD
            await trio.sleep_until(due)
            async with idle.acquire("fib", ("i64",)) as lease:
                await lease.call(15)
            found.append(trio.current_time() - due)
        slow.cancel_scope.cancel()
    return found


async def run(report: Report, quick: bool) -> None:
    seconds, begin = (0.3, 0.1) if quick else (10, 1)
    loops = 10 if quick else LOOPS
    config = CacheConfig(total_fuel=10**15, max_code_size=256 * MiB)
    async with open_cache(config, logger=SilentLogger()) as cache:
        await cache.register("forever", FIB, args=(), concurrency=LOOPS)
        without = await _cores(cache, begin, seconds, 0)
        used = await _cores(cache, begin, seconds, loops) - without
        # In turns, as other programs may run, too.
        rounds = [
            [await _neighbours(cache, begin, seconds / 3, limited) for limited in (0, loops)]
            for _ in range(3)
        ]
        # Where a machine was too busy for a single call, there is nothing to compare.
        ratios = [beside / alone for alone, beside in rounds if alone]
        beside_alone = statistics.median(ratios or [math.nan])
        await cache.register("fib", FIB, args=("i64",), returns="i64", concurrency=1)
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(3 if quick else 10):
            alone += await _latencies(cache, begin, seconds / 4, 0)
            beside += await _latencies(cache, begin, seconds / 4, loops)
    report.add(f"cores of {loops} endless loops, limited to {LIMIT}", used, "", at_most=0.11)
    # Two cores' worth of loops can lose what the limit allows, and 2 %.
    report.add("a busy group beside them / alone", beside_alone, "", at_least=0.93)
    for part, name in ((0.5, "median"), (0.99, "p99")):
        before, after = percentile(alone, part), percentile(beside, part)
        bar = {"at_most": 1.02} if part == 0.99 else {}
        note = f"{before * 1e6:,.0f} us alone, {after * 1e6:,.0f} us beside them"
        report.add(f"{name} of an idle group beside / alone", after / before, "", note=note, **bar)
