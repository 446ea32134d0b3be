"""How late the event loop gets while guests run, and how soon a cancelled guest stops."""

from __future__ import annotations

import statistics
import time

import trio

from trio_wasmcache import CacheConfig, Function, HostFunction, InstanceCache, open_cache

from .harness import FIB, Report, SilentLogger, percentile

TICK = 0.001
HOST = """(module (import "host" "nap" (func $nap))
  (func (export "naps") (loop (call $nap) (br 0))))"""


async def lateness(seconds: float, latenesses: list[float]) -> None:
    """How late (ms) each tick of a 1 ms ticker is, for that long."""
    end = trio.current_time() + seconds
    due = trio.current_time() + TICK
    while due < end:
        await trio.sleep_until(due)
        now = trio.current_time()
        latenesses.append((now - due) * 1e3)
        due = max(due + TICK, now)


async def _ticker_while(cache: InstanceCache, calls: int, name: str, seconds: float) -> list[float]:
    late: list[float] = []

    async def call() -> None:
        while True:
            async with cache.acquire(name, ("i64",) if name == "fib" else ()) as lease:
                await lease.call(*((35,) if name == "fib" else ()))

    async with trio.open_nursery() as nursery:
        for _ in range(calls):
            nursery.start_soon(call)
        await trio.sleep(0.05)
        await lateness(seconds, late)
        nursery.cancel_scope.cancel()
    return late


async def bench_ticker(report: Report, seconds: float) -> None:
    """A 1 ms ticker, idle and beside guests, in one run."""
    idle: list[float] = []
    await lateness(seconds, idle)
    floor = percentile(idle, 0.99)
    report.add("ticker p99, loop idle", floor, "ms")
    for what, offload in (("inline", None), ("offloaded", CacheConfig().offload_after)):
        config = CacheConfig(offload_after=offload, total_fuel=10**12)
        async with open_cache(config, logger=SilentLogger()) as cache:
            await cache.register("fib", FIB, args=("i64",), returns="i64")
            late = await _ticker_while(cache, 1, "fib", seconds)
        report.add(
            f"ticker p99 above idle during fib(35), {what}",
            percentile(late, 0.99) - floor,
            "ms",
            at_most=3,
        )
    config = CacheConfig(offload_after=None, total_fuel=10**12)
    async with open_cache(config, logger=SilentLogger()) as cache:
        await cache.register("forever", FIB, args=(), concurrency=30)
        late = await _ticker_while(cache, 30, "forever", seconds)
    report.add("ticker median, 30 endless inline", statistics.median(late), "ms", at_most=1)


async def bench_parallel(report: Report) -> None:
    """Two heavy calls at once against one after the other."""
    async with open_cache(CacheConfig(total_fuel=10**12), logger=SilentLogger()) as cache:
        fib = await cache.register("fib", FIB, args=("i64",), returns="i64", concurrency=2)
        await cache.warm("fib", ("i64",), 2)
        ratios = []
        for _ in range(5):
            began = time.perf_counter()
            await fib.call(34)
            await fib.call(34)
            one_by_one = time.perf_counter() - began
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fib.call, 34)
                nursery.start_soon(fib.call, 34)
            ratios.append((time.perf_counter() - began) / one_by_one)
    report.add("two heavy calls / one after the other", statistics.median(ratios), "", at_most=0.55)


async def bench_cancel(report: Report, rounds: int) -> None:
    """From the deadline of a scope around an endless call to its end, beside 100 neighbours."""

    async def nap() -> None:
        await trio.sleep_forever()

    for what, offload in (("inline", None), ("offloaded", 0), ("in a host coroutine", None)):
        config = CacheConfig(offload_after=offload, total_fuel=10**12)
        async with open_cache(config, logger=SilentLogger()) as cache:
            name = "naps" if what.startswith("in a") else "forever"
            imports = {"host": {"nap": HostFunction(nap, (), ())}}
            source = HOST if name == "naps" else FIB
            await cache.register(name, source, args=(), imports=imports)
            fib = await cache.register("fib", FIB, args=("i64",), returns="i64", concurrency=100)
            late: list[float] = []
            answers: list[int] = []
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(_neighbour, fib, answers)
                for _ in range(rounds):
                    async with cache.acquire(name, ()) as lease:
                        due = trio.current_time() + 0.02
                        with trio.move_on_at(due):
                            await lease.call()
                        late.append((trio.current_time() - due) * 1e3)
                nursery.cancel_scope.cancel()
        wrong = sum(answer != 55 for answer in answers)
        report.add(
            f"cancel an endless call, {what}: median",
            statistics.median(late),
            "ms",
            at_most=3,
            note=f"{len(answers)} neighbours' results, {wrong} wrong",
        )


async def _neighbour(fib: Function, answers: list[int]) -> None:
    while True:
        answers.append(await fib.call(10))
        await trio.sleep(0.01)


async def run(report: Report, quick: bool) -> None:
    await bench_ticker(report, 0.5 if quick else 3)
    await bench_parallel(report)
    await bench_cancel(report, 10 if quick else 50)
