"""What goes on while a module of 5 MB compiles: the loop, small modules, and leaving the cache."""

from __future__ import annotations

import statistics
import time

import trio

from trio_wasmcache import CacheConfig, MiB, open_cache
from trio_wasmcache._core.wasm.editor import encode_module, i32_const
from trio_wasmcache._core.wasm.types import Export, FuncType, GlobalType

from .harness import Report, SilentLogger, percentile
from .loop import lateness

# A body of 200 additions; 8,200 of them are 5 MB.
BODY = b"\0\x20\0" + b"\x20\0\x7c" * 200 + b"\x0b"
CONFIG = CacheConfig(max_wasm_size=8 * MiB, memory_limit=0)


def module(functions: int, number: int = 0) -> bytes:
    """So many functions; the number tells one module from another."""
    return encode_module(
        types=[FuncType(("i64",), ("i64",))],
        functions=[0] * functions,
        globals=[(GlobalType("i32", False), i32_const(number))],
        exports=[Export("f", "func", 0)],
        code=[BODY] * functions,
    )


async def run(report: Report, quick: bool) -> None:
    """One large module, and whatever else happens meanwhile."""
    wasm = module(1_500 if quick else 8_200)
    idle: list[float] = []
    await lateness(0.5 if quick else 3, idle)
    late: list[float] = []
    small: list[float] = []
    ended = left = 0.0
    began = time.perf_counter()
    async with open_cache(CONFIG, logger=SilentLogger()) as cache:

        async def add(name: str, source: bytes) -> None:
            await cache.register(name, source, args=("i64",), returns="i64", export="f")

        async def large() -> None:
            nonlocal ended
            await add("large", wasm)
            ended = time.perf_counter()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(large)
            await trio.sleep(0.05)
            while not ended:
                at = time.perf_counter()
                await add(f"small {len(small)}", module(1, len(small) + 1))
                small.append((time.perf_counter() - at) * 1e3)
                await lateness(0.05, late)
    took = ended - began
    report.add("compiling a large module", took, "s", note=f"{len(wasm) / MiB:.1f} MiB")
    report.add(
        "ticker p99 above idle meanwhile",
        percentile(late, 0.99) - percentile(idle, 0.99),
        "ms",
        at_most=5,
    )
    report.add("small modules meanwhile: median", statistics.median(small), "ms")
    report.add(
        "small modules meanwhile: worst / the large one", max(small) / 1e3 / took, "", at_most=1
    )
    async with open_cache(CONFIG, logger=SilentLogger()) as cache, trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: cache.register("f", wasm, args=("i64",), returns="i64", export="f")
        )
        await trio.sleep(0.1)
        left = time.perf_counter()
        nursery.cancel_scope.cancel()
    left = time.perf_counter() - left
    report.add("leaving the cache while it compiles", left * 1e3, "ms")
