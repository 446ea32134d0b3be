"""What a call costs, beside wasmtime-py's own."""

from __future__ import annotations

import trio
import trio.lowlevel
import wasmtime

from trio_wasmcache import CacheConfig, HostFunction, open_cache

from .harness import FIB, Report, SilentLogger, interleave

HOST = """(module (import "host" "f" (func $f (param i64) (result i64)))
  (func (export "through") (param i64) (result i64) (call $f (local.get 0))))"""


async def run(report: Report, quick: bool) -> None:
    number, rounds = (200, 5) if quick else (1000, 21)
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    module = wasmtime.Module(engine, FIB)
    bare = wasmtime.Instance(store, module, []).exports(store)["same"]

    async def wasmtime_py(n: int) -> None:
        for _ in range(n):
            bare(store, 1)

    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        await cache.register("same", FIB, args=("i64",), returns="i64")

        async def nap(value: int) -> int:
            await trio.lowlevel.checkpoint()
            return value

        async def sync(value: int) -> int:
            return value

        for name, fn in (("nap", nap), ("sync", sync)):
            await cache.register(
                name,
                HOST,
                args=("i64",),
                returns="i64",
                export="through",
                imports={"host": {"f": HostFunction(fn)}},
            )
        async with (
            cache.acquire("same", ("i64",)) as same,
            cache.acquire("nap", ("i64",)) as napping,
        ):

            async def held(n: int) -> None:
                for _ in range(n):
                    await same.call(1)

            async def through(n: int) -> None:
                for _ in range(n):
                    await napping.call(1)

            async def alone(n: int) -> None:
                for _ in range(n):
                    await trio.lowlevel.checkpoint()

            us = await interleave(
                {"bare": wasmtime_py, "held": held, "nap": through, "sleep": alone}, number, rounds
            )
    report.add("wasmtime-py Func.__call__", us["bare"], "us")
    report.add("held call", us["held"], "us")
    report.add("held call / wasmtime-py call", us["held"] / us["bare"], "", at_most=0.15)
    report.add(
        "async host function that awaits sleep(0) adds",
        us["nap"] - us["held"],
        "us",
        at_most=80,
        note=f"of which sleep(0) itself {us['sleep']:.1f}",
    )
