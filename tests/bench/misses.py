"""Where something has to be loaded: beside wasmtime-py, doing the same each time by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import wasmtime

from trio_wasmcache import CacheConfig, InstanceCache, SignatureError, open_cache

from . import peers
from .harness import FIB, Candidate, Report, SilentLogger, interleave

I64 = ("i64",)
# `isolation="reset"` is measured where this version has it.
ISOLATIONS = ("fresh", "reset")


def module(functions: int, number: int) -> str:
    """WebAssembly text of a module that is like no other, of about so many functions."""
    body = " ".join(
        f"(local.set 1 (i64.mul (i64.add (local.get 1) (i64.const {n})) (local.get 0)))"
        for n in range(20)
    )
    others = "\n".join(
        f"(func (param i64) (result i64) (local i64) {body} (local.get 1))"
        for _ in range(functions)
    )
    return (
        f'(module (memory 1) (global i64 (i64.const {number})) (export "memory" (memory 0))\n'
        f'(func (export "same") (param i64) (result i64) (local.get 0))\n{others})'
    )


def _leases(cache: InstanceCache, name: str) -> Candidate:
    async def leases(n: int) -> None:
        for _ in range(n):
            async with cache.acquire(name, I64) as lease:
                await lease.call(1)

    return leases


async def bench_misses(report: Report, number: int, rounds: int) -> None:
    """A lease and one call, where the instance, or its code too, is not there."""
    # Where nothing may stay, every acquire is a miss.
    nothing_stays = CacheConfig(max_size=0, max_instance_size=0)
    async with (
        open_cache(nothing_stays, logger=SilentLogger()) as loaded,
        open_cache(nothing_stays, logger=SilentLogger()) as released,
        open_cache(CacheConfig(), logger=SilentLogger()) as isolated,
    ):
        for cache in (loaded, released):
            await cache.register("same", FIB, args=I64, returns="i64")
        # Another function of the same module, whose lease keeps the code loaded.
        await loaded.register("fib", FIB, args=I64, returns="i64")
        candidates: dict[str, Candidate | tuple[Candidate, int]] = {
            "new store": peers.new_store(),
            "released": _leases(released, "same"),
        }
        for isolation in ISOLATIONS:
            try:
                await isolated.register(
                    isolation, FIB, args=I64, returns="i64", export="same", isolation=isolation
                )
            except (SignatureError, ValueError):
                continue
            candidates[isolation] = _leases(isolated, isolation)
        async with loaded.acquire("fib", I64):
            candidates["loaded"] = _leases(loaded, "same")
            us = await interleave(candidates, number, rounds)
    base = us["new store"]
    report.add("wasmtime-py: new store, instance, call", base, "us")
    report.add("miss, module loaded", us["loaded"], "us")
    report.add("miss, module released", us["released"], "us")
    for isolation in ISOLATIONS:
        if isolation in us:
            report.add(f"{isolation} lease and a call", us[isolation], "us")
    report.add("miss, module loaded / new store", us["loaded"] / base, "", at_most=0.7)
    report.add("miss, module released / new store", us["released"] / base, "")
    if "fresh" in us:
        report.add("fresh lease and a call / new store", us["fresh"] / base, "")
    if "reset" in us:
        report.add("reset lease and a call / new store", us["reset"] / base, "", at_most=0.35)


async def bench_first(report: Report, what: str, functions: int, rounds: int) -> None:
    """From the bytes of a module to the result of a call, by a thread each."""
    engine = wasmtime.Engine()
    numbers = itertools.count()
    ways: dict[str, Callable[[bytes], Awaitable[None]]] = {}
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:

        async def ours(wasm: bytes) -> None:
            function = await cache.register(
                f"f{next(numbers)}", wasm, args=I64, export="same", returns="i64"
            )
            await function.call(1)

        async def plain(wasm: bytes) -> None:
            store = wasmtime.Store(engine)
            instance = wasmtime.Instance(store, wasmtime.Module(engine, wasm), [])
            same: Any = instance.exports(store)["same"]
            same(store, 1)

        ways = {"ours": ours, "plain": plain}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                wasm = bytes(wasmtime.wat2wasm(module(functions, next(numbers))))
                began = time.perf_counter()
                await way(wasm)
                times[name].append((time.perf_counter() - began) * 1e3)
    ms = {name: sorted(taken)[len(taken) // 2] for name, taken in times.items()}
    report.add(f"plain compile, instantiate, call ({what})", ms["plain"], "ms")
    report.add(f"register and first call ({what})", ms["ours"], "ms")
    ratio = ms["ours"] / ms["plain"]
    report.add(f"register and first call / plain ({what})", ratio, "", at_most=1.15)


async def run(report: Report, quick: bool) -> None:
    await bench_misses(report, *((5, 3) if quick else (10, 201)))
    await bench_first(report, "3 KB", 10, 2 if quick else 41)
    await bench_first(report, "70 KB", 250, 1 if quick else 9)
