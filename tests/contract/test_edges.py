"""What independent reviews found, each kept from coming back."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from kits import ListLogger
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    HostFunction,
    Lease,
    TrapError,
    UnknownFunctionError,
    current_lease,
    open_cache,
)
from trio_wasmcache.testing import FakeEngine, check_invariants, open_fake_cache, snapshot

I64 = ("i64",)
HOST = {"host": {"ask": HostFunction(lambda value: value, ("i64",), ("i64",))}}


async def test_another_thread_is_refused_in_the_middle_of_a_call() -> None:
    """Even in the first slice, which gives up the GIL, and before anything native is touched."""
    errors: list[BaseException] = []
    leases: list[Lease] = []

    def intrude(lease: Lease) -> None:
        attempts: list[Callable[[], object]] = [
            lambda: trio.run(lease.call, 1),
            lambda: lease.memory.size,
            lambda: lease.size,
        ]
        for attempt in attempts:
            try:
                attempt()
            except RuntimeError as error:
                errors.append(error)

    def run(value: int) -> int:
        thread = threading.Thread(target=intrude, args=(leases[0],))
        thread.start()
        thread.join()
        return value

    engine = FakeEngine()
    async with open_fake_cache(engine=engine, logger=ListLogger()) as cache:
        function = await cache.register(
            "f", engine.module(run), args=I64, returns="i64", export="run"
        )
        async with function.acquire() as lease:
            leases.append(lease)
            assert await lease.call(7) == 7
        assert len(errors) == 3
        check_invariants(cache)


async def test_a_start_function_is_charged_for_its_first_slice() -> None:
    """However short it is: a group can't get CPU for nothing by loading."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine, logger=ListLogger()) as cache:
        wasm = engine.module(start_fuel=90_000, fuel=1)
        await cache.register("f", wasm, args=I64, returns="i64", export="run")
        async with cache.scheduling_group("g", capacity=1, shares=1) as group:
            async with cache.acquire("f", I64):
                assert snapshot(cache).group(group.name).virtual_time >= 90_000


@pytest.mark.parametrize("offload_after", [None, 0])
async def test_closing_a_group_ends_its_calls_that_wait_for_a_turn(
    offload_after: int | None,
) -> None:
    """At once, though their fair turn is far away."""
    config = CacheConfig(offload_after=offload_after, max_threads=1, total_fuel=10**15)
    async with open_cache(config, logger=ListLogger()) as cache:
        forever = '(module (func (export "f") (loop (br 0))))'
        await cache.register("f", forever, args=(), concurrency=2)
        ended = trio.Event()

        async def victim(lease: Lease) -> None:
            async with lease:
                with pytest.raises(trio.ClosedResourceError):
                    await lease.call()
            ended.set()

        async with trio.open_nursery() as nursery:

            async def hog() -> None:
                async with cache.acquire("f", ()) as lease:
                    await lease.call()

            nursery.start_soon(hog)
            async with cache.scheduling_group("g", capacity=1, shares=1) as group:
                group._state.share.virtual_time = 1e12  # far ahead, so it waits
                group._state.share.left = 0
                group._state.share.active = 1
                nursery.start_soon(victim, group.acquire("f", ()))
                while not snapshot(cache).loop.waiting and not snapshot(cache).threads.waiting:
                    await trio.lowlevel.checkpoint()
            await ended.wait()
            nursery.cancel_scope.cancel()


async def test_the_error_of_a_nested_guest_stays_its_own() -> None:
    """It passes through the outer call as it is, not rewritten to blame the outer function."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine, logger=ListLogger()) as cache:

        def trap(value: int) -> int:
            raise TrapError("wasm trap: unreachable", code="unreachable")

        inner = await cache.register(
            "inner", engine.module(trap), args=I64, returns="i64", export="run"
        )

        async def ask(value: int) -> Any:
            return await inner.call(1)

        outer = await cache.register(
            "outer",
            engine.module(host_imports=[("host", "ask")]),
            args=I64,
            returns="i64",
            export="run",
            imports={"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}},
        )
        with pytest.raises(TrapError) as caught:
            await outer.call(9)
        assert (caught.value.function, caught.value.values) == ("inner", (1,))
        assert "outer" not in str(caught.value)


LOGS = """(module (import "host" "log" (func $log (param i32))) (memory (export "memory") 1)
  (data (i32.const 16) "hello")
  (func $log16 (call $log (i32.const 16))){start}
  (func (export "f") (result i64) (i64.const 1)))"""


@pytest.mark.parametrize("start", ["(start $log16)", '(export "_initialize" (func $log16))'])
async def test_a_host_function_called_at_the_start_sees_the_memory(start: str) -> None:
    """And the function that is being loaded."""
    seen = []

    def log(at: int) -> None:
        lease = current_lease()
        seen.append((lease.memory.read(at, 5), lease.function.name))

    imports = {"host": {"log": HostFunction(log, params=("i32",), results=())}}
    async with open_cache(logger=ListLogger()) as cache:
        function = await cache.register(
            "f", LOGS.format(start=start), args=(), returns="i64", imports=imports
        )
        assert await function.call() == 1
    assert seen == [(b"hello", "f")]


async def test_a_load_that_fails_in_a_host_function_is_told() -> None:
    """As a failed load, with the type of what the host function raised."""
    logger = ListLogger()

    def log(at: int) -> None:
        raise ZeroDivisionError

    imports = {"host": {"log": HostFunction(log, params=("i32",), results=())}}
    async with open_fake_cache(logger=logger):
        pass
    async with open_cache(logger=logger) as cache:
        source = LOGS.format(start="(start $log16)")
        function = await cache.register("f", source, args=(), returns="i64", imports=imports)
        with pytest.raises(ZeroDivisionError):
            await function.call()
    failed = logger.fields("failed")
    assert [fields["error"] for fields in failed] == ["ZeroDivisionError"]


async def test_every_acquire_that_ends_without_a_lease_is_told() -> None:
    """With `log_uses`: cancelled while it waits for a token, or its function is removed."""
    engine, logger = FakeEngine(), ListLogger()
    async with open_fake_cache(CacheConfig(log_uses=True), engine=engine, logger=logger) as cache:
        await cache.register("f", engine.module(), args=I64, returns="i64", export="run")
        async with cache.scheduling_group("g", capacity=1) as group:

            async def wait(lease: Lease) -> None:
                async with lease:
                    pass

            async def removed(lease: Lease) -> None:
                with pytest.raises(UnknownFunctionError):
                    await wait(lease)

            async with trio.open_nursery() as nursery, group.acquire("f", I64):
                nursery.start_soon(wait, group.acquire("f", I64))
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery, cache._groups.main_group.acquire("f", I64):
                nursery.start_soon(removed, cache._groups.main_group.acquire("f", I64))
                await wait_all_tasks_blocked()
                cache.remove("f")
    told = [fields["error"] for fields in logger.fields("abandoned")]
    assert told == ["Cancelled", "UnknownFunctionError"]


async def test_another_slice_length_holds_for_warm_instances_too() -> None:
    """`resize(yield_fuel=...)` is for the next call, not for the next instance."""
    engine = FakeEngine()
    config = CacheConfig(offload_after=None, yield_fuel=100)
    async with open_fake_cache(config, engine=engine, logger=ListLogger()) as cache:
        wasm = engine.module(fuel=1000)
        function = await cache.register("f", wasm, args=I64, returns="i64", export="run")
        await cache.warm("f", I64)
        cache.resize(yield_fuel=10_000)
        before = snapshot(cache).loop.begun
        await function.call(1)
        assert snapshot(cache).loop.begun == before


@pytest.mark.parametrize("fuel", [10, 1000])
@pytest.mark.parametrize("warm", [False, True])
async def test_running_out_of_python_stack_leaves_the_books_right(warm: bool, fuel: int) -> None:
    """Wherever in acquire, a short or long call or recycle it happens, the next acquire works."""
    engine = FakeEngine()
    config = CacheConfig(offload_after=None, yield_fuel=100)

    async def down(levels: int, call: Callable[[], Any]) -> Any:
        if levels:
            return await down(levels - 1, call)
        return await call()

    for spare in range(5, 90):
        async with open_fake_cache(config, engine=engine, logger=ListLogger()) as cache:
            wasm = engine.module(fuel=fuel)
            function = await cache.register("f", wasm, args=I64, returns="i64", export="run")
            if warm:
                await function.call(1)
            depth = sys.getrecursionlimit() - len(inspect.stack()) - spare
            with contextlib.suppress(RecursionError):
                await down(depth, functools.partial(function.call, 2))
            assert await function.call(3) == 3
            check_invariants(cache)
            assert cache.stats().running_instances == 0
