"""From the bytes of a module to the result of its first call, step by step beside the plain way.

Each way does what the one above it does and one thing more, so that the difference is the price of
that. Those that compile on one thread do so with the settings that the cache needs.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio
import wasmtime

from trio_wasmcache import CacheConfig, InstanceCache, WasmCacheError, open_cache
from trio_wasmcache._core.wasm.reader import FuncType, read_module

from .harness import FIB, Report, SilentLogger

I64 = ("i64",)
FUEL = 1_000_000_000
# {KB of a module: its functions}
SIZES = {3: 14, 70: 335}
# {the same: what `compiler="tiered"` may take, of the plain way}
TIERED_BARS = {3: 1.4, 70: 0.5}
# Bytes of real modules, and how many.
SMALLEST, LARGEST, MOST_MODULES = 200_000, 2_500_000, 20
Way = Callable[[bytes], Awaitable[None]]
# {name in a ratio: the way}
RATIOS = {
    "plain": "plain compile, instantiate, call",
    "plain, metered, one thread": "plain, metered, one thread",
    "register and first call": "register and first call",
    "the same": "register and first call",
    "tiered": "tiered: register and first call",
}


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


def _engine(*, metered: bool, parallel: bool) -> wasmtime.Engine:
    config = wasmtime.Config()
    config.consume_fuel, config.parallel_compilation = metered, parallel
    return wasmtime.Engine(config)


def _call(engine: wasmtime.Engine, made: wasmtime.Module, metered: bool) -> None:
    store = wasmtime.Store(engine)
    if metered:
        store.set_fuel(FUEL)
    same: Any = wasmtime.Instance(store, made, []).exports(store)["same"]
    same(store, 1)


def _plain(engine: wasmtime.Engine, metered: bool) -> Way:
    async def plain(wasm: bytes) -> None:
        _call(engine, wasmtime.Module(engine, wasm), metered)

    return plain


def _kept(engine: wasmtime.Engine) -> Way:
    async def kept(wasm: bytes) -> None:
        data = wasmtime.Module(engine, wasm).serialize()
        _call(engine, wasmtime.Module.deserialize(engine, data), True)

    return kept


def _in_thread(engine: wasmtime.Engine, look: Callable[[bytes], object]) -> Way:
    def compiled(wasm: bytes) -> bytearray:
        look(wasm)
        return wasmtime.Module(engine, wasm).serialize()

    async def in_thread(wasm: bytes) -> None:
        data = await trio.to_thread.run_sync(compiled, wasm)
        _call(engine, wasmtime.Module.deserialize(engine, data), True)

    return in_thread


def _ours(cache: InstanceCache) -> Way:
    numbers = itertools.count()

    async def ours(wasm: bytes) -> None:
        function = await cache.register(
            f"f{next(numbers)}", wasm, args=I64, export="same", returns="i64"
        )
        await function.call(1)

    return ours


def ways(cache: InstanceCache, tiered: InstanceCache) -> dict[str, Way]:
    """{what is told of it: the way}, each with a step more than the one before."""
    alone = _engine(metered=True, parallel=False)
    return {
        "plain compile, instantiate, call": _plain(_engine(metered=False, parallel=True), False),
        "plain, metered": _plain(_engine(metered=True, parallel=True), True),
        "plain, metered, one thread": _plain(alone, True),
        "and serialized, and loaded from that": _kept(alone),
        "and compiled in a Trio thread": _in_thread(alone, lambda wasm: None),
        "and its sections read": _in_thread(alone, read_module),
        "register and first call": _ours(cache),
        "tiered: register and first call": _ours(tiered),
    }


async def _interleave(
    candidates: Mapping[str, Way], functions: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """{name: median milliseconds, and of CPU time}; every module is like no other."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    numbers = itertools.count()
    for _ in range(rounds):
        for name, way in candidates.items():
            wasm = bytes(wasmtime.wat2wasm(module(functions, next(numbers))))
            cpu, began = time.process_time(), time.perf_counter()
            await way(wasm)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            taken[name].append((wall * 1e3, cpu * 1e3))
    return {
        name: (statistics.median(wall for wall, _ in times), statistics.median(c for _, c in times))
        for name, times in taken.items()
    }


async def bench_first(report: Report, size: int, rounds: int) -> None:
    """All ways for modules of one size (KB)."""
    what, functions = f"{size} KB", SIZES[size]
    async with (
        open_cache(CacheConfig(), logger=SilentLogger()) as cache,
        open_cache(CacheConfig(compiler="tiered"), logger=SilentLogger()) as tiered,
    ):
        ms = await _interleave(ways(cache, tiered), functions, rounds)
    for name, (wall, cpu) in ms.items():
        report.add(f"{name} ({what})", wall, "ms", note=f"{cpu:.3g} ms of CPU time")
    # The bars are those of the time that passes: the plain way uses all cores, to be done sooner.
    for ours, base, bar in (
        ("register and first call", "plain", 1.15),
        ("the same", "plain, metered, one thread", None),
        ("tiered", "plain", TIERED_BARS[size]),
    ):
        (wall, cpu), (base_wall, base_cpu) = (ms[RATIOS[name]] for name in (ours, base))
        name = f"{ours} / {base} ({what})"
        report.add(
            name, wall / base_wall, "", at_most=bar, note=f"{cpu / base_cpu:.3g} of CPU time"
        )


def real_modules() -> list[tuple[bytes, str, FuncType]]:
    """Modules of npm, from the folder in `WASMCACHE_NPM`, and an export of each; none without."""
    folder, found = os.environ.get("WASMCACHE_NPM"), []
    files = sorted(Path(folder).rglob("*.wasm")) if folder else []
    for wasm in dict.fromkeys(file.read_bytes() for file in files):
        if not SMALLEST <= len(wasm) <= LARGEST:
            continue
        try:
            info = read_module(wasm)
        except ValueError:
            continue
        for export in info.exports:
            if export.kind == "func":
                found.append((wasm, export.name, info.functions[export.index]))
                break
    step = max(1, len(found) // MOST_MODULES)
    return found[::step][:MOST_MODULES]


async def bench_real(report: Report) -> None:
    """From the bytes of real modules to an instance of each, all together."""
    taken = dict.fromkeys(("plain", "optimizing", "tiered"), 0.0)
    engine, count = _engine(metered=False, parallel=True), 0
    async with (
        open_cache(CacheConfig(), logger=SilentLogger()) as cache,
        open_cache(CacheConfig(compiler="tiered"), logger=SilentLogger()) as tiered,
    ):
        for wasm, export, signature in real_modules():
            began = time.perf_counter()
            try:
                made = wasmtime.Module(engine, wasm)
                linker = wasmtime.Linker(engine)
                linker.define_unknown_imports_as_traps(made)
                linker.instantiate(wasmtime.Store(engine), made)
                times = {"plain": time.perf_counter() - began}
                for name, one in (("optimizing", cache), ("tiered", tiered)):
                    began = time.perf_counter()
                    function = await one.register(
                        f"f{count}",
                        wasm,
                        args=signature.params,
                        returns=signature.results,
                        export=export,
                        missing="trap",
                    )
                    async with function.acquire():
                        times[name] = time.perf_counter() - began
            except (wasmtime.WasmtimeError, WasmCacheError):
                continue  # such as one that imports its memory
            count += 1
            taken = {name: taken[name] + seconds for name, seconds in times.items()}
    if not count:
        return
    what = f"{count} modules of npm"
    report.add(f"plain compile, instantiate ({what})", taken["plain"] * 1e3, "ms")
    report.add(f"register and lease / plain ({what})", taken["optimizing"] / taken["plain"], "")
    ratio = taken["tiered"] / taken["plain"]
    report.add(f"tiered / plain ({what})", ratio, "", at_most=0.6)


async def bench_promoted(report: Report, rounds: int) -> None:
    """Calls of a function that was promoted, beside those of one that was optimized at once."""
    async with (
        open_cache(CacheConfig(), logger=SilentLogger()) as cache,
        open_cache(CacheConfig(compiler="tiered"), logger=SilentLogger()) as tiered,
    ):
        leases = {}
        for name, one in (("optimizing", cache), ("promoted", tiered)):
            fib = await one.register("fib", FIB, args=I64, returns="i64")
            await fib.call(20)
            while one.entries()[0].tiers != {"optimizing": 1}:
                await fib.call(20)
            leases[name] = fib
        taken: dict[str, list[float]] = {name: [] for name in leases}
        for _ in range(rounds):
            for name, fib in leases.items():
                began = time.perf_counter()
                await fib.call(20)
                taken[name].append(time.perf_counter() - began)
        assert tiered.entries()[0].tiers == {"optimizing": 1}
    before, after = (statistics.median(taken[name]) for name in ("optimizing", "promoted"))
    report.add("promoted code / optimizing only (fib(20))", after / before, "", at_most=1.02)


async def run(report: Report, quick: bool) -> None:
    await bench_first(report, 3, 2 if quick else 81)
    await bench_first(report, 70, 1 if quick else 25)
    await bench_promoted(report, 5 if quick else 501)
    if not quick:
        await bench_real(report)
