"""What a snapshot of 4,096 instances stops the event loop for, and what rendering it takes.

The pass is synchronous; a thread renders the parts later.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any, get_args

from trio_wasmcache import CacheConfig, MiB
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache._core.config import PolicyName
from trio_wasmcache._core.events import Event
from trio_wasmcache._log import NoLogWriter, Render
from trio_wasmcache.testing import FakeEngine, open_fake_cache

from .harness import Report

ARGS = ("i64",)
INSTANCES, QUICK = 4096, 256


class Kept(NoLogWriter):
    """Keeps the last snapshot."""

    render: Render

    @property
    def takes_snapshot(self) -> bool:
        return True

    def add_snapshot(self, render: Render, at: float) -> None:
        self.render = render


def _timed(act: Callable[[], Any], times: int) -> float:
    """Return the median seconds of CPU time that `act` takes, without the garbage collector."""
    seconds = []
    gc.disable()
    for _ in range(times):
        began = time.thread_time()
        act()
        seconds.append(time.thread_time() - began)
    gc.enable()
    return median(seconds)


async def run(report: Report, quick: bool) -> None:
    """One function for each instance, the most that there can be."""
    number = QUICK if quick else INSTANCES
    for policy in get_args(PolicyName):
        engine = FakeEngine()
        config = CacheConfig(
            policy=policy, max_size=4096 * MiB, idle_timeout=1e6, offload_after=None, log_uses=True
        )
        async with open_fake_cache(config, engine=engine) as cache:
            functions = []
            for at in range(number):
                wasm = engine.module()
                name = f"f{at}"
                functions.append(
                    await cache.register(name, wasm, args=ARGS, returns="i64", export="run")
                )
            for function in functions:
                await function.call(1)
            parts = parts_of(cache)
            log = parts.pool.journal.log = parts.pool.log = Kept()
            times = 5 if quick else 30
            began = time.thread_time()
            for _ in range(100):
                await functions[0].call(1)
            hit = (time.thread_time() - began) / 100
            taken = _timed(parts.snapshots.take, times)
            rendered = _timed(lambda log=log: [it.fields() for it in _events(log)], 3)
            report.add(f"{policy}: pass over {number:,}", taken * 1e3, "ms", at_most=1)
            report.add(f"{policy}: pass / logged hit", taken / hit, "")
            report.add(f"{policy}: rendering, in a thread", rendered * 1e3, "ms")


def _events(log: Kept) -> list[Event]:
    return list(log.render(1))
