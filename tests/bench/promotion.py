"""How late the event loop gets while modules are compiled, and compiled again in the background."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import wasmtime

from trio_wasmcache import CacheConfig, Function, open_cache
from trio_wasmcache._core.policy.promotion import DUE_FUEL

from . import first
from .harness import Report, SilentLogger, percentile
from .loop import lateness

MODULES = 20
# Looks at whether all of them are promoted, 10 ms apart.
LONGEST = 30_000
SAME = '(func (export "same") (param i64) (result i64) (local.get 0))'
# Its fuel is about its argument: a call that is due for promotion when it ends.
BURN = """(func (export "same") (param i64) (result i64) (loop
    (br_if 0 (i64.ge_s (local.tee 0 (i64.sub (local.get 0) (i64.const 6))) (i64.const 0))))
    (local.get 0))"""


def _modules(functions: int) -> list[bytes]:
    made = []
    for number in range(MODULES):
        text = first.module(functions, number)
        assert SAME in text
        made.append(bytes(wasmtime.wat2wasm(text.replace(SAME, BURN))))
    return made


async def _late_during(work: Callable[[], Awaitable[object]]) -> list[float]:
    """How late (ms) the ticks are until some work is done."""
    late: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lateness, 3600.0, late)
        await work()
        nursery.cancel_scope.cancel()
    return late


async def bench_ticker(report: Report, functions: int, seconds: float) -> None:
    """A 1 ms ticker: idle, beside plain compiles in a thread, registrations, and promotions."""
    wasms = _modules(functions)
    config = wasmtime.Config()
    config.consume_fuel, config.parallel_compilation = True, False
    engine = wasmtime.Engine(config)
    registered: list[Function] = []

    async def idle() -> None:
        await trio.sleep(seconds)

    async def compile_plainly() -> None:
        for wasm in wasms:
            await trio.to_thread.run_sync(wasmtime.Module, engine, wasm)

    # As many as may be compiled, whatever the limit of the bytes of their code is.
    limits = CacheConfig(compiler="tiered", idle_timeout=3600.0, max_code_size=2**30)
    async with open_cache(limits, logger=SilentLogger()) as cache:

        async def register() -> None:
            for number, wasm in enumerate(wasms):
                function = await cache.register(
                    f"f{number}", wasm, args=("i64",), returns="i64", export="same"
                )
                registered.append(function)

        async def promote() -> None:
            for function in registered:
                await function.call(DUE_FUEL)
            for _ in range(LONGEST):
                if all("optimizing" in entry.tiers for entry in cache.entries()):
                    break
                await trio.sleep(0.01)

        found = {
            "idle": await _late_during(idle),
            "plain compiles": await _late_during(compile_plainly),
            "registered": await _late_during(register),
            "promoted": await _late_during(promote),
        }
        assert cache.stats().promotions == MODULES
    floor, longest = percentile(found["idle"], 0.99), max(found["idle"])
    report.add("ticker, loop idle: p99", floor, "ms")
    report.add("ticker, loop idle: longest", longest, "ms")
    plain = found["plain compiles"]
    for what, late in found.items():
        if what == "idle":
            continue
        bar = None if late is plain else 4
        above = percentile(late, 0.99) - floor
        report.add(f"{what}: p99 above idle", above, "ms", at_most=bar)
        report.add(f"{what}: longest / idle's", max(late) / longest, "")
        if late is not plain:
            report.add(f"{what}: longest / plain compiles'", max(late) / max(plain), "")


async def run(report: Report, quick: bool) -> None:
    await bench_ticker(report, *((14, 0.2) if quick else (335, 3.0)))
