"""Hits and held calls beside what people would use instead, and beside the floor."""

from __future__ import annotations

import trio
import trio.lowlevel

from trio_wasmcache import CacheConfig, HostFunction, InstanceCache, open_cache

from . import peers
from .harness import FIB, Candidate, Report, SilentLogger, interleave

HOST = """(module (import "host" "f" (func $f (param i64) (result i64)))
  (func (export "through") (param i64) (result i64) (call $f (local.get 0))))"""
I64 = ("i64",)


def _hits(cache: InstanceCache) -> Candidate:
    async def hits(n: int) -> None:
        for _ in range(n):
            async with cache.acquire("same", I64) as lease:
                await lease.call(1)

    return hits


async def bench_calls(report: Report, number: int, rounds: int) -> None:
    """All in one run, taking turns."""
    async with (
        peers.floor() as floor,
        open_cache(CacheConfig(), logger=SilentLogger()) as cache,
        open_cache(CacheConfig(), logger=SilentLogger()) as other,
    ):
        for one in (cache, other):
            await one.register("same", FIB, args=I64, returns="i64")
        candidates: dict[str, Candidate | tuple[Candidate, int]] = {
            # So often that all take about as long, and are interrupted as often.
            "python": (peers.python(), number * 50),
            "bare": (peers.bare(), number // 2),
            "floor": (floor, number * 2),
            "hit": _hits(cache),
            "thread": (peers.in_thread(), number // 10),
        }
        if extism := peers.extism():
            candidates["extism"] = extism, number // 2
        await other.register(
            "plugin", peers.PLUGIN, args=("bytes",), returns="bytes", export="same", abi="extism"
        )
        async with (
            other.acquire("same", I64) as lease,
            other.acquire("plugin", ("bytes",)) as plugin,
        ):

            async def held_plugin(n: int) -> None:
                for _ in range(n):
                    await plugin.call(peers.EIGHT_BYTES)

            if extism:
                candidates["plugin"] = held_plugin, number

            async def held(n: int) -> None:
                for _ in range(n):
                    await lease.call(1)

            candidates["held"] = held, number * 4
            us = await interleave(candidates, number, rounds)
    report.add("plain Python function", us["python"], "us")
    report.add("wasmtime-py: Func.__call__", us["bare"], "us")
    report.add("wasmtime-py in trio.to_thread.run_sync", us["thread"], "us")
    if "extism" in us:
        report.add("Extism: Plugin.call of 8 bytes", us["extism"], "us")
    report.add("floor: block, checkpoint, fuel, native call", us["floor"], "us")
    report.add("hit: acquire, call, recycle", us["hit"], "us")
    report.add("held call", us["held"], "us")
    beyond = (us["hit"] - us["floor"]) / us["bare"]
    report.add(
        "(hit - floor) / wasmtime-py call", beyond, "", at_most=0.2, instructions_at_most=0.13
    )
    report.add("hit / wasmtime-py call", us["hit"] / us["bare"], "", at_most=0.45)
    report.add("hit / wasmtime-py call in a thread", us["hit"] / us["thread"], "", at_most=0.12)
    report.add("held call / wasmtime-py call", us["held"] / us["bare"], "", at_most=0.1)
    if "extism" in us:
        report.add("held call / Extism call", us["held"] / us["extism"], "", at_most=0.4)
        plugins = us["plugin"] / us["extism"]
        report.add("held call of the same plugin / Extism call", plugins, "", at_most=1)
    else:
        print("  (Extism is not installed: pip install -e '.[bench]')")


async def bench_host(report: Report, number: int, rounds: int) -> None:
    """What a host function that awaits adds to a call."""

    async def nap(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return value

    imports = {"host": {"f": HostFunction(nap, ("i64",), ("i64",))}}
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        await cache.register("same", FIB, args=I64, returns="i64")
        await cache.register(
            "nap", HOST, args=I64, returns="i64", export="through", imports=imports
        )
        async with cache.acquire("same", I64) as same, cache.acquire("nap", I64) as napping:

            async def held(n: int) -> None:
                for _ in range(n):
                    await same.call(1)

            async def through(n: int) -> None:
                for _ in range(n):
                    await napping.call(1)

            async def alone(n: int) -> None:
                for _ in range(n):
                    await trio.lowlevel.checkpoint()

            candidates: dict[str, Candidate | tuple[Candidate, int]] = {
                "held": held,
                "nap": through,
                "checkpoint": alone,
            }
            us = await interleave(candidates, number, rounds)
    report.add(
        "async host function that awaits sleep(0) adds",
        us["nap"] - us["held"],
        "us",
        at_most=80,
        note=f"of which sleep(0) itself {us['checkpoint']:.1f}",
    )


async def run(report: Report, quick: bool) -> None:
    # Rounds of a millisecond: many of them are not interrupted by whatever else the machine does.
    number, rounds = (20, 5) if quick else (150, 301)
    await bench_calls(report, number, rounds)
    await bench_host(report, number, 5 if quick else 201)
