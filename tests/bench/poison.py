"""Rows that fail in a batch, beside a clean batch, and calls with `try`; and small batches.

Times are CPU times of the thread, in which all of this runs. The bars are for a quiet machine with
which a new store, instance and call of wasmtime-py takes 39 us; the ratios to that are for any.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from array import array
from typing import Any

import wasmtime

from trio_wasmcache import CacheConfig, Lease, TrapError, open_cache

from .batches import HAS_ARROW
from .harness import Report, SilentLogger

ROWS, FAILING = 100_000, 500
# One page and no start function, as instances of the figures in the bars.
DIVIDE = """(module (memory (export "memory") 1) (global $sp (mut i32) (i32.const 65536))
  (func (export "divide") (param i64 i64) (result i64)
    (global.set $sp (i32.sub (global.get $sp) (i32.const 16)))
    (i64.div_s (local.get 0) (local.get 1))
    (global.set $sp (i32.add (global.get $sp) (i32.const 16)))))"""
TWO = ("i64", "i64")
BARS = {"reset": 60.0, "reuse": 120.0, "fresh": 120.0}
NEW_STORE = 39.2


async def _microseconds(lease: Lease, columns: Any, **more: Any) -> float:
    began = time.thread_time()
    await lease.map(columns, **more)
    return (time.thread_time() - began) * 1e6


def _columns(failing: int) -> tuple[Any, Any]:
    divisors = array("q", [1]) * ROWS
    for n in range(failing):
        divisors[n * (ROWS // max(failing, 1))] = 0
    return array("q", range(ROWS)), divisors


def _new_stores(number: int, engine: wasmtime.Engine, module: wasmtime.Module) -> float:
    """Return the microseconds of a new store, instance and call of wasmtime-py."""
    began = time.thread_time()
    for _ in range(number):
        store = wasmtime.Store(engine)
        divide: Any = wasmtime.Instance(store, module, []).exports(store)["divide"]
        divide(store, 1, 1)
    return (time.thread_time() - began) / number * 1e6


async def bench_rows(report: Report, rounds: int) -> None:
    """A failing row more, under each isolation."""
    clean, poisoned = _columns(0), _columns(FAILING)
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, DIVIDE)
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        for isolation, bar in BARS.items():
            f = await cache.register(
                isolation, DIVIDE, args=TWO, returns="i64", export="divide", isolation=isolation
            )
            more: list[float] = []
            calls: list[float] = []
            stores: list[float] = []
            for _ in range(rounds):
                async with f.acquire() as lease:
                    without = await _microseconds(lease, clean, on_error="null")
                    taken = await _microseconds(lease, poisoned, on_error="null")
                    assert lease.row_error_count == FAILING
                    more.append((taken - without) / FAILING)
                stores.append(_new_stores(FAILING, engine, module))
                began = time.thread_time()
                for _ in range(FAILING):
                    with contextlib.suppress(TrapError):
                        await f.call(1, 0)
                calls.append((time.thread_time() - began) / FAILING * 1e6)
            row = min(more)
            report.add(f"a failing row, {isolation}", row, "us", at_most=bar)
            name = f"the same / a new store of wasmtime-py, {isolation}"
            report.add(name, row / min(stores), "", at_most=bar / NEW_STORE)
            report.add(f"the same / a call that fails, {isolation}", row / min(calls), "")


async def bench_clean(report: Report, rounds: int) -> None:
    """The price of the option where no row fails."""
    columns: dict[str, Any] = {"lists": [list(one) for one in _columns(0)]}
    if HAS_ARROW:
        import pyarrow as pa

        columns["Arrow"] = [pa.array(one) for one in _columns(0)]
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        f = await cache.register("f", DIVIDE, args=TWO, returns="i64", export="divide")
        async with f.acquire() as lease:
            for what, given in columns.items():
                found: dict[str, list[float]] = {"raise": [], "null": []}
                for _ in range(3 * rounds):
                    began = time.thread_time()
                    result = await lease.map(given)
                    if what == "lists":
                        result.tolist()
                    found["raise"].append((time.thread_time() - began) * 1e6)
                    found["null"].append(await _microseconds(lease, given, on_error="null"))
                ratio = statistics.median(found["null"]) / statistics.median(found["raise"])
                least = min(found["null"]) / min(found["raise"])
                name = f"no row fails, of {what}: null / raise"
                report.add(name, min(ratio, least), "", at_most=1.1)


async def bench_small(report: Report, rounds: int) -> None:
    """A batch of few rows, beside a lease and a call."""
    few = array("q", range(1, 101)), array("q", range(1, 101))
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        f = await cache.register("f", DIVIDE, args=TWO, returns="i64", export="divide")
        maps: list[float] = []
        calls: list[float] = []
        for _ in range(3 * rounds):
            async with f.acquire() as lease:
                await lease.map(few)
                maps.append(sum([await _microseconds(lease, few) for _ in range(100)]) / 100)
            began = time.thread_time()
            for _ in range(100):
                await f.call(1, 1)
            calls.append((time.thread_time() - began) * 1e4)
        ratio = min(maps) / min(calls)
        report.add("map of 100 rows / a lease and a call", ratio, "", at_most=2)


async def run(report: Report, quick: bool) -> None:
    await bench_rows(report, 1 if quick else 9)
    await bench_clean(report, 2 if quick else 15)
    await bench_small(report, 2 if quick else 15)
