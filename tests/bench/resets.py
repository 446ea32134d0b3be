"""Guests of all kinds under ``reset``, beside the same under ``fresh``: the slowest must not lose.

A guest that grows in each lease can't be reset; the cache notices it, and makes new instances.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import wasmtime
from attrs import frozen

from trio_wasmcache import BufferAbi, CacheConfig, Function, open_cache

from .harness import Candidate, Report, SilentLogger
from .isolation import USUAL

UDFS = Path(__file__).parents[1] / "udfs"
# Until the cache knows whether resets pay, and what they take.
WARM_UP = 40
BAR = 1.05
SHARED = ' (func (export "f") (param i64) (result i64) '
GROWS = f"(module (memory 1){SHARED} (drop (memory.grow (i32.const 16))) (local.get 0)))"
TABLES = f"(module (table 5000 funcref) (elem (i32.const 0) $f) (func $f){SHARED} (local.get 0)))"
GLOBALS = f"(module {'(global (mut i64) (i64.const 1))' * 200}{SHARED} (local.get 0)))"
WRITES = f"""(module (memory 32){SHARED}
    (memory.fill (i32.const 0) (i32.const 1) (i32.const 1048576)) (local.get 0)))"""
STARTS = f"""(module (memory 4) (start $s)
    (func $s (memory.fill (i32.const 0) (i32.const 7) (i32.const 200000))){SHARED}
    (i64.load (i32.wrap_i64 (local.get 0)))))"""


@frozen
class Guest:
    """A function, and a call of it."""

    wasm: bytes | Path
    export: str
    args: tuple[str, ...] = ("i64",)
    returns: str = "i64"
    values: tuple[Any, ...] = (27,)
    options: Mapping[str, Any] = MappingProxyType({})  # of `register`


def guests() -> dict[str, Guest]:
    """{name: guest}"""

    def text(wat: str) -> bytes:
        return bytes(wasmtime.wat2wasm(wat))

    spoken = ("assemblyscript", "c", "emscripten", "rust", "zig")
    made = {
        "nothing": Guest(text(f"(module{SHARED} (local.get 0)))"), "f"),
        "17 pages": Guest(text(USUAL), "same"),
        "grows each time": Guest(text(GROWS), "f"),
        "200 globals": Guest(text(GLOBALS), "f"),
        "table of 5,000": Guest(text(TABLES), "f"),
        "writes 1 MiB": Guest(text(WRITES), "f"),
        "start writes 200 KB": Guest(text(STARTS), "f"),
    }
    made |= {name: Guest(UDFS / "spoken" / f"{name}.wasm", "collatz") for name in spoken}
    for size in (30, 300_000):
        made[f"C, text of {size}"] = Guest(
            UDFS / "buffer.wasm",
            "upper_packed",
            ("str",),
            "str",
            ("x" * size,),
            {"abi": BufferAbi()},
        )
    numbers = ("StaticArray<f64>",), "StaticArray<f64>", ([1.5] * 10_000,)
    made["AssemblyScript, numbers"] = Guest(
        UDFS / "assemblyscript" / "incremental.wasm", "staticF64", *numbers
    )
    return made


async def bench_guest(name: str, guest: Guest, quick: bool) -> tuple[float, str]:
    """Return the time under reset beside that under fresh, and what became of reset."""
    number, rounds = (5, 3) if quick else (20, 41)
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        candidates: dict[str, Candidate] = {}
        for isolation in ("reset", "fresh"):
            function = await cache.register(
                f"{name} {isolation}",
                guest.wasm,
                args=guest.args,
                returns=guest.returns,
                export=guest.export,
                isolation=isolation,
                **guest.options,
            )
            candidates[isolation] = calls(function, guest.values)
            await candidates[isolation](WARM_UP)
        # CPU time, as only the loop's thread works, and neighbours take turns of milliseconds.
        ratios = []
        for _ in range(rounds):
            began = time.thread_time()
            await candidates["reset"](number)
            between = time.thread_time()
            await candidates["fresh"](number)
            ratios.append((between - began) / (time.thread_time() - between))
        verdict = cache.functions()[0].isolation_verdict
    return statistics.median(ratios), verdict.partition(":")[0]


def calls(function: Function, values: tuple[Any, ...]) -> Candidate:
    async def run(n: int) -> None:
        for _ in range(n):
            await function.call(*values)

    return run


async def run(report: Report, quick: bool) -> None:
    found = {}
    for name, guest in guests().items():
        ratio, verdict = found[name] = await bench_guest(name, guest, quick)
        report.add(f"{name} ({verdict}): reset / fresh", ratio, "")
    slowest = max(found, key=lambda name: found[name][0])
    report.add(f"the slowest, {slowest}", found[slowest][0], "", at_most=BAR)
