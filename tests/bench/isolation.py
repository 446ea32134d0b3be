"""What a lease costs that finds nothing of the one before, beside an instance of one's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import wasmtime

from trio_wasmcache import CacheConfig, Function, InstanceCache, open_cache

from .harness import FIB, Report, SilentLogger, interleave

# As toolchains emit it: 17 pages, data, a table and a stack pointer. A call writes in two places.
USUAL = """(module (memory (export "memory") 17) (data (i32.const 1048576) "some data")
  (table 10 funcref) (elem (i32.const 1) $same) (global $sp (mut i32) (i32.const 1048576))
  (func $same (export "same") (param i64) (result i64)
    (global.set $sp (i32.sub (global.get $sp) (i32.const 16)))
    (i64.store (global.get $sp) (local.get 0))
    (i64.store (i32.const 1048576) (local.get 0))
    (i64.load (global.get $sp))))"""
LEVELS = ("reuse", "reset", "fresh")
BARS = {"reset": 0.35, "fresh": None, "miss": 0.7}


async def run(report: Report, quick: bool) -> None:
    for name, text in (("no memory", FIB), ("17 pages", USUAL)):
        await compare(report, quick, name, text)


async def compare(report: Report, quick: bool, what: str, text: str) -> None:
    number, rounds = (50, 3) if quick else (200, 31)
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, text)

    async def bare(n: int) -> None:
        for _ in range(n):
            store = wasmtime.Store(engine)
            instance = wasmtime.Instance(store, module, [])
            instance.exports(store)["same"](store, 1)

    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        for level in LEVELS:
            function = await add(cache, level, text, level)
            assert function.isolation_verdict.startswith(level)
        # Here nothing is kept, but the module stays loaded, as another function of it is held.
        async with open_cache(CacheConfig(max_size=0), logger=SilentLogger()) as small:
            for name in ("held", "miss"):
                await add(small, name, text, "reuse")
            async with small.acquire("held", ("i64",)):
                us = await interleave(
                    {
                        "bare": bare,
                        **{level: leases(cache, level) for level in LEVELS},
                        "miss": leases(small, "miss"),
                    },
                    number,
                    rounds,
                )
    report.add(f"{what}: wasmtime-py store + instance + call", us["bare"], "us")
    report.add(f"{what}: reuse lease + call", us["reuse"], "us")
    names = {"reset": "reset lease", "fresh": "fresh lease", "miss": "miss, module loaded,"}
    for name, bar in BARS.items():
        report.add(f"{what}: {names[name]} + call", us[name], "us")
        ratio = us[name] / us["bare"]
        report.add(f"{what}: {names[name]} + call / wasmtime-py", ratio, "", at_most=bar)


def leases(cache: InstanceCache, name: str) -> Callable[[int], Awaitable[None]]:
    async def run(n: int) -> None:
        for _ in range(n):
            async with cache.acquire(name, ("i64",)) as lease:
                await lease.call(1)

    return run


async def add(cache: InstanceCache, name: str, text: str, isolation: str) -> Function:
    return await cache.register(
        name, text, args=("i64",), returns="i64", export="same", isolation=isolation
    )
