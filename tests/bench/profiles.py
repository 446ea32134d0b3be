"""What a profile costs the functions that are profiled, and that it costs the others nothing.

Of those, the instructions of a call are the same, as they have other instances. So that the machine
does not decide, they take turns with themselves: each round measures the others with a window open
and without, one right after the other.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import trio

from trio_wasmcache import CacheConfig, Lease, open_cache

from .harness import FIB, Report, SilentLogger

I64 = ("i64",)
# Of `fib`: some 20 us, and 20 ms.
SHORT, LONG = 10, 24


class _Begun(SilentLogger):
    """Tells that a window has begun; it is called in the log's thread."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self.token = token
        self.begun: Callable[[], None] | None = None

    def info(self, event: str, **fields: Any) -> None:
        begun, wanted = self.begun, event == "wasmcache.profiled" and fields["module_number"]
        if begun is not None and wanted:
            self.begun = None
            self.token.run_sync_soon(begun)


async def _microseconds(lease: Lease, value: int, number: int) -> float:
    began = time.perf_counter()
    for _ in range(number):
        await lease.call(value)
    return (time.perf_counter() - began) / number * 1e6


async def run(report: Report, quick: bool) -> None:
    """Calls of a function that is profiled, and of one that is not, before and in a window."""
    rounds, number = (2, 2) if quick else (60, 40)
    config = CacheConfig(offload_after=None, idle_timeout=math.inf)
    times: dict[str, list[float]] = {}
    events = _Begun(trio.lowlevel.current_trio_token())
    async with open_cache(config, logger=events) as cache:
        for name in ("profiled", "other"):
            await cache.register(name, FIB, args=I64, returns="i64", export="fib")
            async with cache.acquire(name, I64) as lease:
                await lease.call(1)
        for turn in range(rounds + 1):
            for open_window in (turn % 2 == 0, turn % 2 != 0):
                async with trio.open_nursery() as nursery:
                    if open_window:
                        nursery.start_soon(cache.profile, math.inf, None, "profiled")
                        with trio.CancelScope() as waiting:
                            events.begun = waiting.cancel
                            await trio.sleep_forever()
                    for name in ("profiled", "other"):
                        async with cache.acquire(name, I64) as lease:
                            await lease.call(LONG)
                            for kind, value, n in (("short", SHORT, number), ("long", LONG, 1)):
                                took = await _microseconds(lease, value, n)
                                if turn:  # the first one compiles
                                    key = f"{kind} {name} {open_window}"
                                    times.setdefault(key, []).append(took)
                    nursery.cancel_scope.cancel()
    for kind in ("short", "long"):
        for name in ("other", "profiled"):
            before, during = times[f"{kind} {name} False"], times[f"{kind} {name} True"]
            what = "not profiled" if name == "other" else "profiled"
            bars = {"at_most": 1.01} if name == "other" else {}
            report.add(f"{kind} call, {what}", statistics.median(before), "us")
            ratio = min(during) / min(before)  # nothing but the code, as the machine is shared
            report.add(f"{kind} call, {what}: in a window / else", ratio, "", **bars)
