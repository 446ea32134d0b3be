"""Instances, restorers and drivers that are made synchronously, until calls have to be sliced."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from engine.support import exported, quiet_cache, wat
from test_work import counted_native_calls

from trio_wasmcache import FuelExhaustedError, HostFunction, LoadError
from trio_wasmcache._engine.wasmtime import native
from trio_wasmcache.testing import check_invariants

ASYNCHRONOUS = {"wasmtime_instance_pre_instantiate_async", "wasmtime_linker_instantiate_async"}
# A counter, so that a reset takes a restorer; with a loop, so that its calls are sliced.
COUNTS = """(global $n (mut i64) (i64.const 0)) (memory 1)
    (func (export "f") (param i64) (result i64) (loop)
      (global.set $n (i64.add (global.get $n) (local.get 0))) (global.get $n))"""
BUSY_START = """(global $n (mut i32) (i32.const 100000)) (start $s)
    (func $s (loop $l (global.set $n (i32.sub (global.get $n) (i32.const 1)))
      (br_if $l (global.get $n))))
    (func (export "f") (result i32) (global.get $n))"""


async def test_what_runs_no_code_needs_no_future() -> None:
    """A new instance, its restorer, and the driver of a batch are made by one native call each."""
    async with quiet_cache(max_size=0) as cache:
        f = await cache.register(
            "f", wat(f"(module {COUNTS})"), args=("i64",), returns="i64", isolation="reset"
        )
        with counted_native_calls() as calls:
            async with f.acquire() as lease:
                assert list(await lease.map(([1, 2, 3],))) == [1, 3, 6]
            assert not ASYNCHRONOUS & set(calls)
            assert calls["wasmtime_instance_pre_instantiate"] == 1
            assert calls["wasmtime_instance_new"] == 2
            assert calls["wasmtime_linker_new"] == 1  # of the module that is loaded
        check_invariants(cache)


async def test_after_a_call_a_driver_is_made_as_ever() -> None:
    """By then the store is one whose calls yield, in which nothing synchronous is possible."""
    async with quiet_cache() as cache:
        f = await cache.register("f", wat(f"(module {COUNTS})"), args=("i64",), returns="i64")
        async with f.acquire() as lease:
            # The first one may run at once.
            assert await lease.call(1) == 1
            assert await lease.call(1) == 2
            with counted_native_calls() as calls:
                assert list(await lease.map(([1, 2],))) == [3, 5]
            assert calls["wasmtime_linker_instantiate_async"] == 1
            assert calls["wasmtime_instance_new"] == 0


async def test_host_functions_need_a_future() -> None:
    """They are asynchronous, so instances that import them are, too."""
    asking = """(import "env" "ask" (func $ask (result i64)))
        (func (export "f") (result i64) (call $ask))"""
    imports = {"env": {"ask": HostFunction(lambda: 7, (), ("i64",))}}
    async with quiet_cache() as cache:
        f = await cache.register(
            "f", wat(f"(module {asking})"), args=(), returns="i64", imports=imports
        )
        with counted_native_calls() as calls:
            assert await f.call() == 7
        assert calls["wasmtime_instance_pre_instantiate_async"] == 1


async def test_a_start_function_runs_in_slices() -> None:
    """It is called once the instance is there, with all of the fuel, and can run out of it."""
    async with quiet_cache(yield_fuel=10_000, total_fuel=1_000_000) as cache:
        f = await cache.register("f", wat(f"(module {BUSY_START})"), args=(), returns="i32")
        with counted_native_calls() as calls:
            assert await f.call() == 0
        assert calls["wasmtime_instance_pre_instantiate"] == 1
        assert calls["wasmtime_call_future_poll"] >= 50
    async with quiet_cache(total_fuel=1000) as cache:
        f = await cache.register("f", wat(f"(module {BUSY_START})"), args=(), returns="i32")
        with pytest.raises(LoadError, match=r"start function failed: all fuel.*total_fuel is 1000"):
            await f.call()
        check_invariants(cache)
        assert cache.stats().running_instances == 0


async def test_the_first_call_is_sliced_and_so_is_each_after_a_change() -> None:
    """Also where the length of a slice was changed before any call."""
    body = """(local $n i32) (local.set $n (i32.const 100000))
        (loop $l (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"""
    async with quiet_cache(yield_fuel=10**9) as cache:
        f = await cache.register("f", exported(body), args=())
        await cache.warm("f", ())
        for yield_fuel, least, most in ((10_000, 40, 60), (100_000, 4, 6), (10_000, 40, 60)):
            cache.resize(yield_fuel=yield_fuel)
            with counted_native_calls() as calls:
                await f.call()
            assert least <= calls["wasmtime_call_future_poll"] <= most
    async with quiet_cache(total_fuel=1000) as cache:
        f = await cache.register("f", exported("(loop (br 0))"), args=())
        with pytest.raises(FuelExhaustedError):
            await f.call()


@contextmanager
def failing(name: str, times: int, message: str = "it was told to fail") -> Iterator[None]:
    """The first calls of a native function give an error of wasmtime's."""
    make: Any = ctypes.PyDLL(str(native._ffi.filename))["wasmtime_error_new"]
    make.restype, make.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    function, left = getattr(native, name), [times]

    def call(*arguments: Any) -> Any:
        if left[0]:
            left[0] -= 1
            return make(message.encode())
        return function(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, name, call)
        yield


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    "step",
    [
        "context_set_fuel",
        "instance_pre_instantiate",
        "instance_new",
        "context_fuel_async_yield_interval",
    ],
)
async def test_each_native_step_may_fail(step: str, batch: bool, isolation: Any) -> None:
    """The lease or its call fails; nothing is left of it, and the next one works."""
    async with quiet_cache() as cache:
        f = await cache.register(
            "f", wat(f"(module {COUNTS})"), args=("i64",), returns="i64", isolation=isolation
        )

        async def use() -> int:
            async with f.acquire() as lease:
                if batch:
                    return list(await lease.map(([1, 2],)))[-1]
                assert await lease.call(0) in (0, 3)  # the first one may run at once
                return int(await lease.call(3))

        with failing(step, 1):
            if step == "instance_new" and not (batch or isolation == "reset"):
                assert await use() == 3  # nothing to make beside the instance
            else:
                with pytest.raises(LoadError, match="told to fail"):
                    await use()
            kept = 0 if isolation == "fresh" else cache.stats().idle_instances
            assert cache._pool.engine.open_instances == kept  # type: ignore[attr-defined]
            check_invariants(cache)
        if isolation != "reuse":
            assert await use() == 3
        assert await use() in (3, 6)
        check_invariants(cache)
