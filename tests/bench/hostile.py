"""What well-behaved neighbours feel of the hostile zoo: their calls with and without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import trio

from trio_wasmcache import InstanceCache, open_cache

from ..hostile.guest import CONFIG, Guest, Refused
from ..hostile.zoo import ZOO
from .harness import FIB, Report, SilentLogger, percentile

NEIGHBOURS = 20
# Tasks of the zoo in the cache at once. Stacks of more would not leave room for others.
TENANTS = 32


async def _neighbour(cache: InstanceCache, number: int, end: float, taken: list[float]) -> None:
    """Calls of a few hundred microseconds, each with an acquire; milliseconds of each."""
    while trio.current_time() < end:
        began = time.perf_counter()
        async with cache.acquire(f"neighbour {number}", ("i64",)) as lease:
            answer = await lease.call(12)
        taken.append((time.perf_counter() - began) * 1e3)
        assert answer == 144
        await trio.sleep(0.01)


async def _tenant(
    cache: InstanceCache, number: int, guest: Guest, wasm: bytes, got: list[Any]
) -> None:
    while True:
        got.append((guest, await guest.attack(cache, f"guest {number}", wasm)))
        await trio.lowlevel.checkpoint()


async def _measure(
    seconds: float, zoo: Sequence[tuple[Guest, bytes]], got: list[Any]
) -> list[float]:
    taken: list[float] = []
    async with open_cache(CONFIG, logger=SilentLogger()) as cache:
        for number in range(NEIGHBOURS):
            await cache.register(
                f"neighbour {number}", FIB, args=("i64",), returns="i64", export="fib"
            )
        for number, (guest, wasm) in enumerate(zoo):
            if not isinstance(guest.gets, Refused):
                await guest.register(cache, f"guest {number}", wasm)
        async with (
            cache.scheduling_group("neighbours", capacity=NEIGHBOURS) as good,
            cache.scheduling_group("tenants", capacity=TENANTS) as tenants,
        ):
            for number, (guest, wasm) in enumerate(zoo):
                tenants.start_soon(_tenant, cache, number, guest, wasm, got)
            await trio.sleep(0.1)
            end = trio.current_time() + seconds
            async with trio.open_nursery() as nursery:
                for number in range(NEIGHBOURS):
                    nursery.start_soon(_in_group, good, cache, number, end, taken)
            tenants.cancel_scope.cancel()
    return taken


async def _in_group(
    group: Any, cache: InstanceCache, number: int, end: float, taken: list[float]
) -> None:
    await group.start(_started, cache, number, end, taken)


async def _started(
    cache: InstanceCache,
    number: int,
    end: float,
    taken: list[float],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await _neighbour(cache, number, end, taken)
    task_status.started()


async def run(report: Report, quick: bool) -> None:
    got: list[Any] = []
    alone: list[float] = []
    beside: list[float] = []
    # The tests have all of it side by side in `hostile.test_zoo`.
    guests = ZOO[::10] if quick else ZOO
    zoo = [(guest, guest.wasm()) for guest in guests]
    for _ in range(1 if quick else 3):
        alone += await _measure(0.5 if quick else 3, (), got)
        beside += await _measure(0.5 if quick else 3, zoo, got)
    wrong = 0
    for guest, one in got:
        try:
            guest.check(one)
        except AssertionError:
            wrong += 1
    refused = sum(isinstance(guest.gets, Refused) for guest in guests)
    note = f"{refused} of them refused by register"
    report.add("guests in the zoo", float(len(guests)), "", note=note)
    report.add("attacks", float(len(got)), "", note=f"{wrong} got what they must not")
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        for where, taken in (("alone", alone), ("beside the zoo", beside)):
            note = f"{len(taken)} calls, all right"
            report.add(
                f"a neighbour's call, {name}, {where}", percentile(taken, part), "ms", note=note
            )
