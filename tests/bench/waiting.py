"""Waiting in line: a hundred tasks want the one instance, beside a hundred that want a lock."""

from __future__ import annotations

import trio

from trio_wasmcache import CacheConfig, open_cache

from .harness import FIB, Report, SilentLogger, interleave

WAITERS = 100


async def run(report: Report, quick: bool) -> None:
    lock = trio.Lock()
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        await cache.register("same", FIB, args=("i64",), returns="i64")

        async def lease(times: int) -> None:
            for _ in range(times):
                async with cache.acquire("same", ("i64",)):
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

        number = (WAITERS + 1) * (2 if quick else 10)
        candidates = {"lease": leases, "lock": locks}
        us = await interleave(candidates, number, 3 if quick else 41)
    report.add(f"lease with {WAITERS} waiters", us["lease"], "us")
    report.add("the same of a trio.Lock", us["lock"], "us")
    report.add(f"lease / lock, {WAITERS} waiters", us["lease"] / us["lock"], "")
