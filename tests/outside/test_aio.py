"""`trio_wasmcache.aio`: what each sentence of its page promises, on event loops of a test."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import os
import pickle
import threading
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from kits import FakeKit, Kit, ListLogger
from outside.support import DECLARED, DIVIDE, HANG, I64, opening

from trio_wasmcache import (
    HostFunction,
    InstanceCache,
    TrapError,
    aio,
    blocking,
    current_lease,
)
from trio_wasmcache.aio import AsyncioCache


def opened(kit: Kit, log: Any = None) -> AsyncioCache:
    """A cache on an engine; closing it checks that nothing is left open."""
    return aio._open(opening(kit, log))


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """`asyncio.run`, which must end."""

    async def within() -> Any:
        async with asyncio.timeout(HANG):
            return await main()

    return asyncio.run(within())


async def add(cache: AsyncioCache, name: str, wasm: bytes, **more: Any) -> Any:
    """Register a module of a kit."""
    return await cache.register(name, wasm, **{**DECLARED, **more})


async def add_asking(
    cache: AsyncioCache, kit: Kit, ask: Any, name: str = "asks", **more: Any
) -> Any:
    """Register a function that asks a host function; its answer is the result."""
    imports = {"host": {"ask": HostFunction(ask, I64, I64)}}
    return await add(cache, name, kit.asking(), imports=imports, **more)


async def add_spinning(cache: AsyncioCache, kit: Kit) -> tuple[Any, asyncio.Event]:
    """A function that asks the host, and then never ends; and an event for that."""
    under_way, loop = asyncio.Event(), asyncio.get_running_loop()

    def mark(value: int) -> int:
        loop.call_soon_threadsafe(under_way.set)
        return value

    if isinstance(kit, FakeKit):
        wasm: Any = kit.engine.module(host_imports=[("host", "mark")], fuel=float("inf"))
    else:
        wasm = """(module (import "host" "mark" (func $mark (param i64) (result i64)))
            (memory (export "memory") 1) (func (export "run") (param i64) (result i64)
            (drop (call $mark (local.get 0))) (loop (br 0)) (unreachable)))"""
    imports = {"host": {"mark": HostFunction(mark, I64, I64)}}
    return await add(cache, "spin", wasm, imports=imports), under_way


# -- calls


def test_the_life_of_a_cache(kit: Kit, log: ListLogger) -> None:
    """Register, call by handle and by name, map, warm, read, resize, remove."""

    async def main() -> None:
        cache = opened(kit, log)
        assert repr(cache) == "<AsyncioCache not open>"
        with pytest.raises(RuntimeError, match="not open yet"):
            await cache.stats()
        async with cache:
            plus = await add(cache, "plus", kit.adding(3), concurrency=2)
            assert (plus.name, plus.args, plus.returns) == ("plus", I64, "i64")
            assert plus.function.generation == 1
            assert repr(plus) == "<AsyncioFunction plus(i64)>"
            await cache.warm("plus", I64, 2)
            calls = [plus.call(1), cache.call("plus", 2), cache.call(plus, 3, args=I64)]
            assert await asyncio.gather(*calls) == [4, 5, 6]
            assert list(await plus.map([array("q", [1, 2])])) == [4, 5]
            assert list(await cache.map("plus", [[1]], rows=1)) == [4]
            stats = await cache.stats()
            assert (stats.calls, stats.misses, stats.idle_instances) == (5, 0, 2)
            assert [entry.idle for entry in await cache.entries()] == [2]
            assert [one.key for one in await cache.functions()] == [plus.key]
            await cache.resize(idle_timeout=7.0)
            assert (cache.config.idle_timeout, cache.label) == (7.0, "")
            with pytest.raises(TypeError):
                await plus.call("text")
            await cache.remove("plus")
            assert "<AsyncioCache of <InstanceCache open:" in repr(cache)
            assert await cache is cache  # it is open already
        await cache.close()
        assert log.lines[-1][1] == "wasmcache.closed"
        assert (await cache.stats()).calls == 5
        with pytest.raises(trio.ClosedResourceError, match="the cache is closed"):
            await plus.call(1)
        with pytest.raises(trio.ClosedResourceError, match="open another"):
            await cache
        for thing in (cache, plus, cache.scheduling_group("a", capacity=1)):
            with pytest.raises(TypeError, match="can't be pickled"):
                pickle.dumps(thing)

    run(main)


def test_a_notebook_opens_it_without_a_block(kit: Kit, log: ListLogger) -> None:
    """Each cell is a task of its own on one loop."""
    loop = asyncio.new_event_loop()
    names: dict[str, Any] = {}

    async def first() -> None:
        names["cache"] = await opened(kit, log)
        names["plus"] = await add(names["cache"], "plus", kit.adding(1))

    async def second() -> None:
        assert await names["plus"].call(1) == 2

    async def third() -> None:
        await names["cache"].close()

    for cell in (first, second, second, third):
        loop.run_until_complete(cell())
    loop.close()
    assert log.lines[-1][1] == "wasmcache.closed"


def test_opening_fails_as_in_trio() -> None:
    """In the caller, with the same error."""

    async def main() -> None:
        with pytest.raises(TypeError, match="config must be a CacheConfig"):
            await aio.open_cache(7)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="label"):
            async with aio.open_cache(label="x" * 1000):
                raise AssertionError

    run(main)


def test_opening_can_be_cancelled(kit: Kit, log: ListLogger) -> None:
    """Then it is closed again, and the log is whole."""

    begun, go = threading.Event(), threading.Event()

    @asynccontextmanager
    async def opening() -> AsyncIterator[InstanceCache]:
        begun.set()
        assert go.wait(HANG)
        async with kit.open(logger=log) as cache:
            yield cache

    async def main() -> None:
        task = asyncio.ensure_future(aio._open(opening).__aenter__())
        await asyncio.to_thread(begun.wait, HANG)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [name for _, name, _ in log.lines][-1:] == ["wasmcache.closed"]

    run(main)


def test_cancelling_the_task_stops_the_guest(kit: Kit, log: ListLogger) -> None:
    """The task ends when nobody is inside, however often it is cancelled."""

    async def main() -> None:
        async with opened(kit, log) as cache:
            spin, under_way = await add_spinning(cache, kit)
            for work in (lambda: spin.call(1), lambda: spin.map([[1, 2]])):
                under_way.clear()
                task = asyncio.create_task(work())
                await under_way.wait()
                task.cancel()
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert (await cache.stats()).running_instances == 0
            under_way.clear()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await spin.call(1)
            plus = await add(cache, "plus", kit.adding(1))
            assert await plus.call(1) == 2

    run(main)


def test_a_profile_while_others_call(fake: FakeKit, log: ListLogger) -> None:
    """Its window ends by itself; cancelling the task ends it at once."""

    async def main() -> None:
        async with opened(fake, log) as cache:
            plus = await add(cache, "plus", fake.costly())
            await plus.call(1)
            profiling = asyncio.create_task(cache.profile(seconds=HANG, function="plus"))
            while not log.fields("profiled"):
                await plus.call(1)
            await plus.call(1)
            profiling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await profiling
            assert await plus.call(1) == 1
            assert [one.tiers for one in await cache.entries()] == [{"optimizing": 1}]
            with pytest.raises(ValueError, match="those that are open: 'main'"):
                await cache.profile(seconds=0.001, group="none")

    run(main)
    assert len(log.fields("profiled")) == 2


def test_calls_that_wait_share_a_hop(real: Kit) -> None:
    """Calls that are made in one step of the loop are taken over in one, and so are results."""

    async def main() -> None:
        async with opened(real) as cache:
            inside, go, loop = threading.Event(), threading.Event(), asyncio.get_running_loop()

            def hold(value: int) -> int:
                inside.set()
                assert go.wait(HANG)
                return value

            holds = await add_asking(cache, real, hold)
            plus = await add(cache, "plus", real.adding(1), concurrency=10)
            await cache.warm("plus", count=10)
            hold_it = asyncio.create_task(holds.call(1))
            await asyncio.to_thread(inside.wait, HANG)
            taken: list[int] = []
            portal = cache._portal
            take = portal._take

            def count() -> None:
                taken.append(len(portal._inbox))
                take()

            portal._take = count  # type: ignore[method-assign]
            wakes = 0
            call_soon_threadsafe = loop.call_soon_threadsafe

            def count_wakes(*args: Any, **more: Any) -> Any:
                nonlocal wakes
                wakes += 1
                return call_soon_threadsafe(*args, **more)

            loop.call_soon_threadsafe = count_wakes  # type: ignore[method-assign]
            calls = asyncio.gather(*(plus.call(number) for number in range(10)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            go.set()
            box = cache._caller._mailboxes[loop]._box
            while len(box) < 11:  # the loop does nothing until all have ended
                os.sched_yield()
            assert await calls == list(range(1, 11))
            await hold_it
            assert taken == [10]
            assert wakes == 1

    run(main)


def test_two_loops_on_one_cache(kit: Kit, log: ListLogger) -> None:
    """In two threads: each awaits its own calls, and its own coroutines run on it."""

    async def main() -> None:
        async def ask(value: int) -> int:
            await asyncio.sleep(0)
            assert asyncio.get_running_loop() is expected.get()
            return value + 1

        expected: contextvars.ContextVar[Any] = contextvars.ContextVar("expected")
        async with opened(kit, log) as cache:
            asks = await add_asking(cache, kit, ask, concurrency=4)

            async def work(number: int) -> list[int]:
                expected.set(asyncio.get_running_loop())
                return [await asks.call(number + step) for step in range(20)]

            others = [asyncio.to_thread(asyncio.run, work(n)) for n in (100, 200)]
            results = await asyncio.gather(work(0), *others)
            assert results == [[n + step + 1 for step in range(20)] for n in (0, 100, 200)]

    run(main)


def test_a_batch_goes_past_rows_that_fail(real: Kit) -> None:
    """As in Trio; the errors of the rows are in the dict that was given."""

    async def main() -> None:
        async with opened(real) as cache:
            divide = await add(cache, "divide", DIVIDE)
            options: dict[str, Any] = {"on_error": "null", "row_errors": {}}
            for work in (divide.map, functools.partial(cache.map, "divide")):
                assert await work([[1, 0, 5]], **options) == [100, None, 20]
                assert isinstance(options["row_errors"].pop(1), TrapError)
                assert options["row_errors"] == {}
            with pytest.raises(TrapError):
                await divide.map([[0, 0]], on_error="null", max_errors=1)
            calls = (await cache.stats()).calls
            bad: Any = []
            with pytest.raises(TypeError, match="row_errors must be a dict"):
                await divide.map([[0]], row_errors=bad)
            assert (await cache.stats()).calls == calls

    run(main)


# -- host functions


def test_a_coroutine_runs_on_the_loop_in_the_context(kit: Kit, log: ListLogger) -> None:
    """Of the caller, in a copy; sync ones run in the cache's thread, in a copy too."""
    variable = contextvars.ContextVar("variable", default="none")

    async def main() -> None:
        loop, thread = asyncio.get_running_loop(), threading.current_thread()

        async def ask(value: int) -> int:
            assert asyncio.get_running_loop() is loop
            assert threading.current_thread() is thread
            await asyncio.sleep(0)
            seen.append(variable.get())
            variable.set("changed")
            return value * 2

        def ask_sync(value: int) -> int:
            assert threading.current_thread().name == "trio_wasmcache"
            seen.append(variable.get())
            return current_lease().memory.size

        def returns_coroutine(value: int) -> Awaitable[int]:
            return ask(value)

        seen: list[str] = []
        async with opened(kit, log) as cache:
            asks = await add_asking(cache, kit, ask)
            variable.set("mine")
            assert await asks.call(4) == 8
            assert list(await asks.map([[4, 5]])) == [8, 10]
            also = await add_asking(cache, kit, returns_coroutine, name="also")
            assert await also.call(4) == 8
            sync = await add_asking(cache, kit, ask_sync, name="sync")
            assert await sync.call(4) == 65536
        # The rows of a batch are one call, with one context.
        assert seen == ["mine", "mine", "changed", "mine", "mine"]
        assert variable.get() == "mine"

    run(main)


def test_a_coroutine_has_the_memory_and_nothing_else(kit: Kit, log: ListLogger) -> None:
    """In its thread, until it ends."""
    kept: list[Any] = []

    async def main() -> None:
        async def ask(value: int) -> int:
            lease = current_lease()
            kept.append(lease)
            memory = lease.memory
            memory.write(8, b"abc")
            await asyncio.sleep(0)
            assert memory.read(7, 5) == b"\0abc\0"
            assert memory.size == 65536
            assert memory.grow(1) == 65536
            assert memory.size == 131072
            with pytest.raises(IndexError):
                memory.read(131072, 1)
            for name in ("call", "map", "invoke", "fuel_consumed", "function", "size"):
                with pytest.raises(AttributeError, match="only its memory"):
                    getattr(lease, name)
            with pytest.raises(RuntimeError, match="another thread"):
                await asyncio.to_thread(memory.read, 0, 1)
            with pytest.raises(TypeError, match="can't be pickled"):
                pickle.dumps(lease)
            return value

        async with opened(kit, log) as cache:
            asks = await add_asking(cache, kit, ask)
            assert await asks.call(1) == 1
            with pytest.raises(trio.ClosedResourceError, match="has ended"):
                kept[0].memory.read(0, 1)
        with pytest.raises(RuntimeError, match="only inside a host function"):
            current_lease()

    run(main)


def test_a_module_without_memory(real: Kit) -> None:
    """`memory` says so when it is used."""

    async def main() -> None:
        async def ask(value: int) -> int:
            with pytest.raises(LookupError, match="exports no memory"):
                current_lease().memory.read(0, 1)
            return value

        wasm = """(module (import "host" "ask" (func $ask (param i64) (result i64)))
            (func (export "run") (param i64) (result i64) (call $ask (local.get 0))))"""
        async with opened(real) as cache:
            imports = {"host": {"ask": HostFunction(ask, I64, I64)}}
            asks = await add(cache, "asks", wasm, imports=imports)  # type: ignore[arg-type]
            assert await asks.call(1) == 1

    run(main)


def test_an_exception_of_a_coroutine_is_that_of_the_call(kit: Kit, log: ListLogger) -> None:
    """Unchanged; the instance is dropped, as in Trio."""

    async def main() -> None:
        error = LookupError("of a host function")

        async def ask(value: int) -> int:
            await asyncio.sleep(0)
            raise error

        async with opened(kit, log) as cache:
            asks = await add_asking(cache, kit, ask)
            with pytest.raises(LookupError) as caught:
                await asks.call(1)
            assert caught.value is error
            assert log.reasons() == ["corrupted"]

    run(main)


@pytest.mark.parametrize("started", [True, False])
def test_a_cancelled_coroutine_fails_the_call(kit: Kit, log: ListLogger, started: bool) -> None:
    """By `ClosedResourceError`, and its instance is dropped, also before its first step."""

    async def main() -> None:
        async def ask(value: int) -> int:
            tasks.append(asyncio.current_task())
            inside.set()
            await asyncio.sleep(HANG)
            return value

        tasks, inside = list[Any](), asyncio.Event()
        loop = asyncio.get_running_loop()
        if not started:

            def factory(loop: Any, coroutine: Any, **more: Any) -> Any:
                task = asyncio.Task(coroutine, loop=loop, **more)
                if coroutine.__qualname__ == "_Coroutine._run":
                    task.cancel()
                return task

            loop.set_task_factory(factory)
        async with opened(kit, log) as cache:
            asks = await add_asking(cache, kit, ask)
            call = asyncio.create_task(asks.call(1))
            if started:
                await inside.wait()
                tasks[0].cancel()
            with pytest.raises(trio.ClosedResourceError, match="it was cancelled"):
                await call
            assert log.reasons() == ["corrupted"]

    run(main)


def test_cancelling_a_call_cancels_its_coroutine(kit: Kit, log: ListLogger) -> None:
    """And waits for it, however long that takes."""

    async def main() -> None:
        async def ask(value: int) -> int:
            inside.set()
            try:
                await asyncio.sleep(HANG)
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)
                current_lease().memory.write(0, b"in use to the end")
                ended.append(True)
            return value

        inside, ended = asyncio.Event(), list[bool]()
        async with opened(kit, log) as cache:
            asks = await add_asking(cache, kit, ask)
            call = asyncio.create_task(asks.call(1))
            await inside.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert ended == [True]
            assert (await cache.stats()).running_instances == 0

    run(main)


def test_asyncio_run_that_ends_inside_a_host_call(kit: Kit, log: ListLogger) -> None:
    """It cancels both the call and the coroutine; the cache goes on, on another loop."""
    ended: list[str] = []

    async def ask(value: int) -> int:
        if value == 2:
            return value
        inside.set()
        try:
            await asyncio.sleep(HANG)
        finally:
            ended.append("coroutine")
        return value

    async def first() -> AsyncioCache:
        cache = await opened(kit, log)
        asks = await add_asking(cache, kit, ask)
        call = asyncio.create_task(asks.call(1))
        call.add_done_callback(lambda _: ended.append("call"))
        await inside.wait()
        return cache

    async def second() -> None:
        assert log.reasons() == ["corrupted"]
        assert await cache.call("asks", 2) == 2
        await cache.close()

    inside = asyncio.Event()
    cache = run(first)
    assert ended == ["coroutine", "call"]
    run(second)


# -- closing


def test_closing_waits_for_coroutines(kit: Kit, log: ListLogger) -> None:
    """In order: no new calls, guests, coroutines, cache, log, thread."""

    async def main() -> None:
        async def ask(value: int) -> int:
            inside.set()
            try:
                await asyncio.sleep(HANG)
            finally:
                with pytest.raises(trio.ClosedResourceError, match="the cache is closed"):
                    await cache.call("asks", 1)
                current_lease().memory.write(0, b"in use to the end")
                order.append("coroutine")
            return value

        inside, order = asyncio.Event(), list[str]()
        cache = await opened(kit, log)
        asks = await add_asking(cache, kit, ask)
        spin, under_way = await add_spinning(cache, kit)
        calls = [asyncio.create_task(one.call(1)) for one in (asks, spin)]
        await inside.wait()
        await under_way.wait()
        log.info = lambda event, **_: order.append(event)  # type: ignore[method-assign]
        log.warning = log.info  # type: ignore[method-assign]
        await cache.close()
        assert order.index("coroutine") < order.index("wasmcache.group_closed")
        assert order[-1] == "wasmcache.closed"
        assert not cache._portal.is_alive()
        for call in calls:
            with pytest.raises(trio.ClosedResourceError):
                await call

    run(main)


def test_a_coroutine_can_not_close_its_cache(kit: Kit, log: ListLogger) -> None:
    """Closing would wait for it; what it refuses does no harm."""

    async def main() -> None:
        async def ask(value: int) -> int:
            with pytest.raises(RuntimeError, match="close: a coroutine host function can't wait"):
                await asyncio.wait_for(cache.close(), HANG)
            later.append(asyncio.create_task(close_later()))
            return value

        async def close_later() -> None:
            await done.wait()
            await cache.close()

        later: list[asyncio.Task[None]] = []
        done = asyncio.Event()
        async with opened(kit, log) as cache:
            asks = await add_asking(cache, kit, ask)
            assert await asks.call(1) == 1
            done.set()
            await later[0]  # it holds nothing up any more

    run(main)


def test_closing_is_done_though_cancelled(kit: Kit, log: ListLogger) -> None:
    """However often."""

    async def main() -> None:
        cache = await opened(kit, log)
        task = asyncio.create_task(cache.close())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log.lines[-1][1] == "wasmcache.closed"

    run(main)


def test_a_loop_that_is_closed_in_a_host_call(kit: Kit, log: ListLogger) -> None:
    """Its calls fail, and their instances are dropped; another loop goes on with the cache."""

    async def open_it() -> AsyncioCache:
        cache = await opened(kit, log)
        await add_asking(cache, kit, ask, concurrency=2)
        return cache

    async def ask(value: int) -> int:
        if value == 1:
            asyncio.get_running_loop().stop()
            await asyncio.sleep(HANG)
        return value

    given_up = threading.Event()
    lost, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    warning = log.warning

    def note(event: str, **fields: Any) -> None:
        warning(event, **fields)
        if event == "wasmcache.evicted":
            given_up.set()

    log.info = log.warning = note  # type: ignore[method-assign]
    cache = other.run_until_complete(open_it())
    task = lost.create_task(cache.call("asks", 1))
    lost.run_forever()
    lost.close()

    async def go_on() -> None:
        # Nobody is told when the loop of that call is found to be closed, so it is waited for here.
        assert await cache.call("asks", 2) == 2
        await asyncio.to_thread(given_up.wait, HANG)
        assert log.reasons() == ["corrupted"]
        await cache.close()

    other.run_until_complete(go_on())
    other.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    gc.collect()


def test_a_loop_that_has_stopped_does_not_hold_up_closing(kit: Kit, log: ListLogger) -> None:
    """Its coroutine is given up: when it goes on, it has no memory any more."""
    kept: list[Any] = []

    async def ask(value: int) -> int:
        kept.append(current_lease().memory)
        asyncio.get_running_loop().stop()
        try:
            await asyncio.sleep(HANG)
        finally:
            with pytest.raises(trio.ClosedResourceError, match="was given up"):
                kept[0].read(0, 1)
            kept.append("ended")
        return value

    async def open_it() -> AsyncioCache:
        cache = await opened(kit, log)
        await add_asking(cache, kit, ask)
        return cache

    stopped, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    cache = other.run_until_complete(open_it())
    call = stopped.create_task(cache.call("asks", 1))
    stopped.run_forever()
    other.run_until_complete(cache.close())
    other.close()
    assert log.lines[-1][1] == "wasmcache.closed"
    with pytest.raises(trio.ClosedResourceError):
        stopped.run_until_complete(call)
    while "ended" not in kept:
        stopped.run_until_complete(asyncio.sleep(0))
    stopped.close()


# -- the rest


def test_its_own_thread_is_refused(kit: Kit, log: ListLogger) -> None:
    """A loop in the cache's thread would wait for itself."""

    async def main() -> None:
        def ask(value: int) -> int:
            with pytest.raises(RuntimeError, match="own thread"):
                plus.call(1).send(None)
            with pytest.raises(RuntimeError, match="own thread"):
                cache.close().send(None)
            return value

        async with opened(kit, log) as cache:
            plus = await add(cache, "plus", kit.adding(1))
            asks = await add_asking(cache, kit, ask)
            assert await asks.call(1) == 1

    run(main)


def test_a_group_is_that_of_its_block(kit: Kit, log: ListLogger) -> None:
    """And of tasks that are made in it, and of its methods."""

    async def main() -> None:
        async with opened(kit, log) as cache:
            plus = await add(cache, "plus", kit.adding(1))
            spin, under_way = await add_spinning(cache, kit)
            outside = asyncio.Event()

            async def groups() -> list[str]:
                return sorted(entry.group for entry in await cache.entries())

            async def call_outside() -> None:
                await outside.wait()
                await group.call(plus, 1)
                await group.map("plus", [[1]])
                await group.warm("plus")

            other = asyncio.create_task(call_outside())
            async with cache.scheduling_group("mine", capacity=3) as group:
                await asyncio.create_task(plus.call(1))
                assert await groups() == ["mine"]
                outside.set()
                await other
                assert await groups() == ["mine"]
                await group.resize(capacity=4)
                running = asyncio.create_task(spin.call(1))
                await under_way.wait()
                assert repr(group) == "<AsyncioGroup 'mine' open>"
            with pytest.raises(trio.ClosedResourceError, match="group 'mine' or the cache was"):
                await running
            with pytest.raises(trio.ClosedResourceError, match="group 'mine' is closed"):
                await group.call(plus, 1)
            with pytest.raises(RuntimeError, match="entered once"):
                await group.__aenter__()
            with pytest.raises(ValueError, match="capacity"):
                await cache.scheduling_group("bad", capacity=0).__aenter__()

    run(main)


def test_blocking_and_asyncio_side_by_side(fake: FakeKit, real: Kit) -> None:
    """A thread of a program may call one while a coroutine of the other waits for it."""

    async def main() -> None:
        with blocking._open(fake.open) as sync:
            plus = sync.register("plus", fake.adding(1), args=I64, returns="i64", export="run")

            async def ask(value: int) -> int:
                return int(await asyncio.to_thread(plus.call, value))

            async with opened(real) as cache:
                asks = await add_asking(cache, real, ask)
                assert await asks.call(1) == 2

    run(main)


def test_many_calls_from_many_tasks_and_threads(kit: Kit, log: ListLogger) -> None:
    """Each gets its own result."""

    async def main() -> None:
        async with opened(kit, log) as cache:
            plus = await add(cache, "plus", kit.adding(1000), concurrency=4)
            assert await asyncio.gather(*(plus.call(n) for n in range(200))) == [
                1000 + n for n in range(200)
            ]

    with ThreadPoolExecutor(1) as pool:  # not the main thread
        pool.submit(run, main).result()
