"""How the CPU is split between two groups with 3:1 shares, in fuel."""

from __future__ import annotations

import trio

from trio_wasmcache import CacheConfig, InstanceCache, SchedulingGroup, open_cache

from .harness import FIB, Report, SilentLogger


async def split(
    cache: InstanceCache, seconds: float, heavy: tuple[int, str], light: tuple[int, str]
) -> float:
    """Fuel of a group with 300 shares over that of one with 100, each with so many tasks."""

    async def work(group: SchedulingGroup, name: str) -> None:
        args = () if name == "forever" else ("i64",)
        values = () if name == "forever" else (12,)
        while True:
            async with cache.acquire(name, args) as lease:
                while True:
                    await lease.call(*values)

    async with (
        cache.scheduling_group("three", capacity=64, shares=300) as three,
        cache.scheduling_group("one", capacity=64, shares=100) as one,
    ):
        for group, (tasks, name) in ((three, heavy), (one, light)):
            for _ in range(tasks):
                group.start_soon(work, group, name)
        await trio.sleep(0.1)
        before = [group._state.share.virtual_time * group.shares for group in (three, one)]
        await trio.sleep(seconds)
        after = [group._state.share.virtual_time * group.shares for group in (three, one)]
        three.cancel_scope.cancel()
        one.cancel_scope.cancel()
    return (after[0] - before[0]) / max(after[1] - before[1], 1)


CASES = [
    ("1 v 1 inline", None, (1, "forever"), (1, "forever")),
    ("1 v 3 inline", None, (1, "forever"), (3, "forever")),
    ("3 v 1 inline", None, (3, "forever"), (1, "forever")),
    ("3 v 3 inline", None, (3, "forever"), (3, "forever")),
    ("1 v 30 inline", None, (1, "forever"), (30, "forever")),
    ("1 endless v 3 of short calls", None, (1, "forever"), (3, "fib")),
    ("3 of short calls v 1 endless", None, (3, "fib"), (1, "forever")),
    ("offloaded, 2 v 2", 0, (2, "forever"), (2, "forever")),
    ("offloaded, 4 v 4", 4, (4, "forever"), (4, "forever")),
]


async def run(report: Report, quick: bool) -> None:
    for what, offload, heavy, light in CASES:
        config = CacheConfig(offload_after=offload, total_fuel=10**13, max_threads=2)
        async with open_cache(config, logger=SilentLogger()) as cache:
            await cache.register("forever", FIB, args=(), concurrency=30)
            await cache.register("fib", FIB, args=("i64",), returns="i64", concurrency=30)
            ratio = await split(cache, 0.5 if quick else 2, heavy, light)
        report.add(f"3:1 shares, {what}", ratio, "", between=(2.8, 3.2))
