"""Waiting in line: many tasks want one instance, beside as many that want a lock or a token."""

from __future__ import annotations

import time

import trio

from trio_wasmcache import CacheConfig, MiB, open_cache
from trio_wasmcache.testing import FakeEngine, open_fake_cache

from .harness import FIB, Report, SilentLogger, interleave
from .loop import lateness

WAITERS = 100
# How many acquires of one function are queued at once, and how many groups close.
QUEUED, QUEUED_QUICK = 10_000, 500
GROUPS, GROUPS_QUICK = 5_000, 200
I64 = ("i64",)


async def bench_waiters(report: Report, times: int, rounds: int) -> None:
    """A hundred tasks that take turns."""
    lock = trio.Lock()
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        await cache.register("same", FIB, args=I64, returns="i64")

        async def lease(times: int) -> None:
            for _ in range(times):
                async with cache.acquire("same", I64):
                    await trio.lowlevel.checkpoint()

        async def locked(times: int) -> None:
            for _ in range(times):
                async with lock:
                    await trio.lowlevel.checkpoint()

        async def leases(n: int) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(WAITERS + 1):
                    nursery.start_soon(lease, n // (WAITERS + 1))

        async def locks(n: int) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(WAITERS + 1):
                    nursery.start_soon(locked, n // (WAITERS + 1))

        us = await interleave(
            {"lease": (leases, times), "lock": (locks, times)}, WAITERS + 1, rounds
        )
    report.add(f"lease with {WAITERS} waiters", us["lease"], "us")
    report.add("the same of a trio.Lock", us["lock"], "us")
    report.add(f"lease / lock, {WAITERS} waiters", us["lease"] / us["lock"], "", at_most=1.8)


async def bench_queue(report: Report, queued: int, rounds: int) -> None:
    """Acquires that are all queued at once, and served one after the other."""
    limiter = trio.CapacityLimiter(1)
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        await cache.register("same", FIB, args=I64, returns="i64")

        async def lease() -> None:
            async with cache.acquire("same", I64):
                await trio.lowlevel.checkpoint()

        async def limited() -> None:
            async with limiter:
                await trio.lowlevel.checkpoint()

        async def leases(n: int) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(n):
                    nursery.start_soon(lease)

        async def tokens(n: int) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(n):
                    nursery.start_soon(limited)

        us = await interleave({"leases": leases, "tokens": tokens}, queued, rounds)
    report.add(f"{queued:,} acquires queued at once, each", us["leases"], "us")
    report.add(
        f"{queued:,} acquires queued / of a CapacityLimiter",
        us["leases"] / us["tokens"],
        "",
        at_most=1.3,
    )


async def bench_closing(report: Report, groups: int) -> None:
    """What a 1 ms ticker feels while that many groups, with an idle instance each, close."""
    engine, late = FakeEngine(), list[float]()
    config = CacheConfig(max_size=4096 * MiB, max_code_size=4096 * MiB, offload_after=None)
    async with open_fake_cache(config, engine=engine, logger=SilentLogger()) as cache:
        await cache.register("f", engine.module(), args=I64, returns="i64", export="run")

        all_open, closing, opened = trio.Event(), trio.Event(), list[str]()

        async def open_group(name: str) -> None:
            async with cache.scheduling_group(name, capacity=1) as group:
                async with group.acquire("f", I64) as lease:
                    await lease.call(1)
                opened.append(name)
                if len(opened) == groups:
                    all_open.set()
                await closing.wait()

        async with trio.open_nursery() as ticker:
            async with trio.open_nursery() as nursery:
                for number in range(groups):
                    nursery.start_soon(open_group, f"g{number}")
                await all_open.wait()
                ticker.start_soon(lateness, 60.0, late)
                await trio.sleep(0.05)
                closing.set()
                began = time.perf_counter()
            taken = time.perf_counter() - began
            ticker.cancel_scope.cancel()
    report.add(f"closing {groups:,} groups", taken * 1e3, "ms")
    report.add(f"closing {groups:,} groups holds the loop for", max(late), "ms", at_most=10)


async def run(report: Report, quick: bool) -> None:
    await bench_waiters(report, (WAITERS + 1) * (2 if quick else 10), 3 if quick else 41)
    await bench_queue(report, QUEUED_QUICK if quick else QUEUED, 3 if quick else 7)
    await bench_closing(report, GROUPS_QUICK if quick else GROUPS)
