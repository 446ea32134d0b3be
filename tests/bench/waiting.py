"""Waiting in line: many tasks want one instance, beside as many that want a lock or a token."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import trio

from trio_wasmcache import CacheConfig, InstanceCache, MiB, open_cache
from trio_wasmcache.testing import FakeEngine, open_fake_cache

from .harness import FIB, Report, SilentLogger, interleave

WAITERS = 100
# How many acquires of one function are queued at once, and how many groups close.
QUEUED, QUEUED_QUICK = 10_000, 500
GROUPS, GROUPS_QUICK = 5_000, 200
I64 = ("i64",)


Block = Callable[[], AbstractAsyncContextManager[object]]


def in_turn(block: Block) -> Callable[[int], Awaitable[None]]:
    """A hundred tasks and one more that take turns in a block; in all, as often as is said."""

    async def enter(times: int) -> None:
        for _ in range(times):
            async with block():
                await trio.lowlevel.checkpoint()

    async def run(n: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(WAITERS + 1):
                nursery.start_soon(enter, n // (WAITERS + 1))

    return run


def at_once(block: Block) -> Callable[[int], Awaitable[None]]:
    """Tasks, as many as is said, that all ask for a block at once."""

    async def enter() -> None:
        async with block():
            await trio.lowlevel.checkpoint()

    async def run(n: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(n):
                nursery.start_soon(enter)

    return run


async def bench_waiters(report: Report, times: int, rounds: int) -> None:
    """A hundred tasks that take turns."""
    lock = trio.Lock()
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        await cache.register("same", FIB, args=I64, returns="i64")
        leases, locks = in_turn(lambda: cache.acquire("same", I64)), in_turn(lambda: lock)
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
        leases, tokens = at_once(lambda: cache.acquire("same", I64)), at_once(lambda: limiter)
        us = await interleave({"leases": leases, "tokens": tokens}, queued, rounds)
    report.add(f"{queued:,} acquires queued at once, each", us["leases"], "us")
    report.add(
        f"{queued:,} acquires queued / of a CapacityLimiter",
        us["leases"] / us["tokens"],
        "",
        at_most=1.3,
    )


class Passes(trio.abc.Instrument):
    """Notes the longest pass of the event loop: CPU time (seconds), as neighbours take none."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began: float | None = None

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        if self._began is not None:
            self.longest = max(self.longest, time.thread_time() - self._began)


async def bench_closing(report: Report, groups: int) -> None:
    """For how long a cache holds the loop that closes with that many groups open.

    Each has an idle instance. (If their own blocks end, each in its task, and all in one pass, Trio
    itself takes 40 us for each in that pass.)
    """
    engine, opened, passes = FakeEngine(), list[str](), Passes()
    config = CacheConfig(max_size=4096 * MiB, max_code_size=4096 * MiB, offload_after=None)
    all_open, closed = trio.Event(), trio.Event()

    async def open_group(cache: InstanceCache, name: str) -> None:
        async with cache.scheduling_group(name, capacity=1) as group:
            async with group.acquire("f", I64) as lease:
                await lease.call(1)
            opened.append(name)
            if len(opened) == groups:
                all_open.set()
            await closed.wait()

    async with trio.open_nursery() as nursery:
        async with open_fake_cache(config, engine=engine, logger=SilentLogger()) as cache:
            await cache.register("f", engine.module(), args=I64, returns="i64", export="run")
            for number in range(groups):
                nursery.start_soon(open_group, cache, f"g{number}")
            await all_open.wait()
            await trio.sleep(0.1)
            gc.collect()
            trio.lowlevel.add_instrument(passes)
            began = time.perf_counter()
        taken = time.perf_counter() - began
        trio.lowlevel.remove_instrument(passes)
        closed.set()
    report.add(f"closing {groups:,} groups", taken * 1e3, "ms")
    longest = passes.longest * 1e3
    report.add(f"closing {groups:,} groups holds the loop for", longest, "ms", at_most=10)


async def run(report: Report, quick: bool) -> None:
    await bench_waiters(report, (WAITERS + 1) * (2 if quick else 10), 3 if quick else 41)
    await bench_queue(report, QUEUED_QUICK if quick else QUEUED, 3 if quick else 7)
    await bench_closing(report, GROUPS_QUICK if quick else GROUPS)
