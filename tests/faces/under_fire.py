"""A program to be ended by a signal, with a call in every state there is: `test_signals` runs it.

``python under_fire.py PLACE FIFO``; PLACE says where its tasks are when the cache closes, `inside`
or `outside` of its block, or that the loop is in a `sync` host function. FIFO is never written to.
It prints JSON lines: the log, and marks. ``{"mark": "ready"}``: now is the time for the signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import guests
import trio
from kits import add
from open_stores import check_all_closed
from peeking import job_of

from trio_wasmcache import (
    CacheConfig,
    HostFunction,
    InstanceCache,
    Lease,
    SchedulingGroup,
    open_cache,
)
from trio_wasmcache._engine.wasmtime import engine
from trio_wasmcache._engine.wasmtime.hosts import INSTANCES
from trio_wasmcache.testing import check_invariants, snapshot

TYPES = ("i64",)
LIMITS = CacheConfig(
    offload_after=1,
    total_fuel=10**15,
    yield_fuel=10_000,
    max_threads=1,
    # What its endless call burns in a thread may be as much as the other group's on the loop, and
    # then no other task of it would get a turn there.
    main_shares=10_000,
    log_uses=True,
    log_flush_timeout=600,
)
INTERRUPTED, TERMINATED = 130, 143


def say(**fields: Any) -> None:
    """One line, in one piece, whatever thread it comes from."""
    os.write(1, json.dumps(fields).encode() + b"\n")


class Printer:
    """A logger that prints each event."""

    def info(self, event: str, **fields: Any) -> None:
        say(event=event, **fields)

    warning = info


@trio.lowlevel.enable_ki_protection
def ignore_interrupts() -> None:
    """From now on: the program has done all, and Python, which now ends, isn't what is tested."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def large() -> bytes:
    """A module of which the compile is still under way when the process ends."""
    body = "(local.set 0 (i64.add (local.get 0) (i64.mul (local.get 0) (i64.const 77))))" * 40
    return guests.binary(
        f'(func (export "run") (param i64) (result i64) {body} (local.get 0))'
        + f"(func (param i64) (result i64) {body} (local.get 0))" * 500
    )


class Program:
    """What is going on in the cache, and who was told what."""

    def __init__(self, place: str, fifo: str) -> None:
        self.place = place
        self.fifo = fifo
        self.finish = trio.Event()  # set once the cache is closed
        self.closed = threading.Event()  # set then, too
        self.status = INTERRUPTED
        self.batched: Lease | None = None

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as outside, trio.open_nursery() as listening:
                with trio.CancelScope() as stop:
                    listening.start_soon(self.listen, stop)
                    async with self.cache() as cache, trio.open_nursery() as inside:
                        await self.begin(cache, outside if self.place == "outside" else inside)
                        if self.place != "sync":
                            say(mark="ready")
                        await trio.sleep_forever()
                listening.cancel_scope.cancel()
        finally:
            ignore_interrupts()
            say(mark="out")

    async def listen(self, stop: trio.CancelScope) -> None:
        """SIGTERM as Trio programs handle it."""
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self.status = TERMINATED
                stop.cancel()

    @asynccontextmanager
    async def cache(self) -> AsyncIterator[InstanceCache]:
        """The cache, and a look at what is left of it."""
        try:
            async with open_cache(LIMITS, logger=Printer()) as cache:
                yield cache
        finally:
            check_invariants(cache)
            assert not INSTANCES
            check_all_closed()
            inside = snapshot(cache)
            assert (inside.threads.taken, inside.loop.taken) == (0, 0)
            self.finish.set()
            self.closed.set()

    async def begin(self, cache: InstanceCache, nursery: trio.Nursery) -> None:
        """Bring everything about, one thing after the other, each seen to be so.

        Ctrl-C then hits the main task: the others are in the library, which is not cut short.
        """
        asked = trio.Event()

        async def ask(value: int) -> int:
            asked.set()
            await self.finish.wait()
            return value

        def spin(value: int) -> int:
            say(mark="ready")
            while not Path(self.fifo + ".sent").exists():
                time.sleep(0.01)
            return value

        def start(name: str, use: Callable[..., Awaitable[object]], *values: object) -> None:
            nursery.start_soon(self.tell, name, use, *values, name=name)

        async def until(there: Callable[[], bool]) -> None:
            while not there():
                await trio.lowlevel.checkpoint()

        async def put(name: str, text: str, **more: Any) -> Any:
            return await add(cache, name, guests.binary(text), **more)

        endless = await put("endless", guests.ENDLESS, concurrency=3)
        hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        asks = await put("asks", guests.ONLY_ASKS, imports=hosts)
        slow = await put("slow", guests.START_LOOP)
        count = await put("count", guests.COUNT, concurrency=2)
        other = await put("other", guests.FIB)
        spins = await put(
            "spins",
            guests.ONLY_ASKS,
            imports={"host": {"ask": HostFunction(spin, ("i64",), ("i64",))}},
        )

        start("in an async host function", asks.call, 1)
        await asked.wait()
        start("waiting for an instance", asks.call, 1)
        await until(lambda: cache.stats().waiting == 1)
        start("in a thread", endless.call, 1)
        await until(lambda: snapshot(cache).threads.taken == 1)
        start("waiting for a thread", endless.call, 1)
        await until(lambda: snapshot(cache).threads.waiting > 0)
        cache.resize(offload_after=None)
        start("loading", slow.call, 1)
        running = cache.stats().running_instances
        await until(lambda: cache.stats().running_instances > running)
        start("in a batch", self.batch, count)
        await until(lambda: self.batched is not None and job_of(self.batched) is not None)
        start("in its block", self.hold, cache)
        group: SchedulingGroup = await nursery.start(self.group, cache)
        start("inline", self.use, group)
        await until(lambda: group.limiter.borrowed_tokens == 1)
        start("waiting for a token", self.use, group)
        await until(lambda: group.limiter.statistics().tasks_waiting == 1)
        running = cache.stats().running_instances
        await until(lambda: cache.stats().running_instances == 7)
        cache.resize(max_code_size=cache.stats().code_size)
        waiting = cache.stats().waiting
        start("waiting for room", other.call, 1)
        await until(lambda: cache.stats().waiting == waiting + 1)
        start("reading a module", add, cache, "fifo", Path(self.fifo))
        await until(lambda: bool(snapshot(cache).reserved))
        self.hold_compiles()
        start("compiling", add, cache, "large", large())
        await until(lambda: snapshot(cache).compiles.running == 1)
        if self.place == "sync":
            cache.resize(max_code_size=LIMITS.max_code_size)
            await spins.call(1)

    def hold_compiles(self) -> None:
        """Have compiles begin once the cache is closed: none ends before, however slow that is."""
        usual = engine.compile_module

        def compile_module(*args: Any) -> Any:
            self.closed.wait()
            return usual(*args)

        engine.compile_module = compile_module

    async def tell(self, name: str, use: Callable[..., Awaitable[object]], *values: object) -> None:
        """Run `use`, and say how it ended."""
        ended = "well"
        try:
            await use(*values)
        except trio.ClosedResourceError:
            ended = "closed"
        except BaseException as error:
            ended = type(error).__name__
            raise
        finally:
            say(mark="ended", name=name, how=ended)

    async def batch(self, count: Any) -> None:
        async with count.acquire() as self.batched:
            await self.batched.map([array("q", [10**9]) * 1000])

    async def hold(self, cache: InstanceCache) -> None:
        async with cache.acquire("count", TYPES) as lease:
            await self.finish.wait()
            await lease.call(1)

    async def group(
        self, cache: InstanceCache, *, task_status: trio.TaskStatus[SchedulingGroup]
    ) -> None:
        async with cache.scheduling_group("g", capacity=1) as group:
            task_status.started(group)
            await self.finish.wait()

    async def use(self, group: SchedulingGroup) -> None:
        async with group.acquire("endless", TYPES) as lease:
            await lease.call(1)


def main() -> int:
    # A parent in the background may have had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = Program(*sys.argv[1:])
    try:
        trio.run(program.run)
    except* KeyboardInterrupt:
        pass
    return program.status


if __name__ == "__main__":
    sys.exit(main())
