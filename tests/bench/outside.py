"""What a call costs from outside of Trio: from a thread, and from asyncio; beside an empty hop.

A hop is the way to the cache's thread and back, with nothing done there. Then rows in engines for
data frames, and in other processes.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import trio

from trio_wasmcache import CacheConfig, aio, blocking

from . import engines
from .batches import HAS_ARROW
from .harness import FIB, Report, SilentLogger

I64 = ("i64",)
ROWS = 100_000
TOGETHER = 100


def _hops(token: trio.lowlevel.TrioToken) -> Callable[[int], None]:
    """From this thread and back, by a lock, as the portal waits."""

    def hops(n: int) -> None:
        for _ in range(n):
            lock = threading.Lock()
            lock.acquire()
            token.run_sync_soon(lock.release)
            while not lock.acquire(timeout=0.1):
                pass

    return hops


async def _asyncio_hops(token: trio.lowlevel.TrioToken, n: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(n):
        future = loop.create_future()
        token.run_sync_soon(loop.call_soon_threadsafe, future.set_result, None)
        await future


async def _asyncio_calls(function: Any, n: int) -> None:
    for _ in range(n):
        await function.call(7)


async def _asyncio_together(function: Any, n: int) -> None:
    for _ in range(n // TOGETHER):
        await asyncio.gather(*(function.call(7) for _ in range(TOGETHER)))


def bench_outside(report: Report, number: int, rounds: int) -> None:
    """All of it takes turns in one thread, each side with a cache of its own."""
    config, logger = CacheConfig(offload_after=None), SilentLogger()
    with (
        blocking.open_cache(config, logger=logger) as cache,
        asyncio.Runner() as runner,
    ):
        other = runner.run(_opened(aio.open_cache(config, logger=logger)))
        options: dict[str, Any] = {"args": I64, "returns": "i64", "export": "same"}
        same = cache.register("same", FIB, **options)
        awaited = runner.run(other.register("same", FIB, concurrency=TOGETHER, **options))
        token, other_token = cache._portal._token, other._portal._token
        assert token is not None
        assert other_token is not None
        column = array("q", range(ROWS))

        async def inside(n: int) -> None:
            for _ in range(n):
                await same.function.call(7)

        async def inside_map(n: int) -> None:
            async with same.function.acquire() as lease:
                for _ in range(n):
                    await lease.map([column])

        def calls(n: int) -> None:
            for _ in range(n):
                same.call(7)

        def maps(n: int) -> None:
            for _ in range(n):
                same.map([column])

        async def asyncio_maps(n: int) -> None:
            for _ in range(n):
                await awaited.map([column])

        few = max(1, number // 50)
        candidates: dict[str, tuple[Callable[[int], Any], int]] = {
            "inside": (lambda n: trio.from_thread.run(inside, n, trio_token=token), number),
            "hop": (_hops(token), number),
            "portal": (calls, number),
            "asyncio hop": (lambda n: runner.run(_asyncio_hops(other_token, n)), number),
            "asyncio": (lambda n: runner.run(_asyncio_calls(awaited, n)), number),
            "together": (lambda n: runner.run(_asyncio_together(awaited, n)), number),
            "inside map": (lambda n: trio.from_thread.run(inside_map, n, trio_token=token), few),
            "portal map": (maps, few),
            "asyncio map": (lambda n: runner.run(asyncio_maps(n)), few),
        }
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, (candidate, n) in candidates.items():
                began = time.perf_counter()
                candidate(n)
                times[name].append((time.perf_counter() - began) / n * 1e6)
        runner.run(other.close())
    us = {name: statistics.median(taken) for name, taken in times.items()}
    report.add("call inside Trio", us["inside"], "us")
    report.add("empty hop: thread, Trio, thread", us["hop"], "us")
    report.add("call from a thread (blocking)", us["portal"], "us")
    report.add("empty hop: asyncio, Trio, asyncio", us["asyncio hop"], "us")
    report.add("call from asyncio (aio)", us["asyncio"], "us")
    report.add(f"the same, {TOGETHER} at a time", us["together"], "us")
    report.add("blocking: call - 1.2 hops", us["portal"] - 1.2 * us["hop"], "us")
    report.add("aio: call - 1.2 hops", us["asyncio"] - 1.2 * us["asyncio hop"], "us", at_most=20)
    report.add("blocking: call / call inside", us["portal"] / us["inside"], "")
    report.add("aio: call / call inside", us["asyncio"] / us["inside"], "")
    report.add(f"batch of {ROWS} rows inside", us["inside map"], "us")
    report.add("blocking: batch / batch inside", us["portal map"] / us["inside map"], "")
    report.add("aio: batch / batch inside", us["asyncio map"] / us["inside map"], "")


async def _opened(cache: aio.AsyncioCache) -> aio.AsyncioCache:
    return await cache


async def run(report: Report, quick: bool) -> None:
    number, rounds = (TOGETHER, 3) if quick else (2 * TOGETHER, 31)
    await trio.to_thread.run_sync(bench_outside, report, number, rounds)
    if HAS_ARROW:
        await trio.to_thread.run_sync(outside_engines, report, quick)


def outside_engines(report: Report, quick: bool) -> None:
    """Rows in engines and in processes."""
    rows, rounds = (5_000, 1) if quick else (engines.MILLION, 5)
    names = ("polars", "DuckDB") if quick else tuple(engines.ENGINES)
    engines.bench_engines(report, rows, rounds, names)
    engines.bench_processes(report, rows, rounds)
