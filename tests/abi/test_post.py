"""Post-return functions: a module learns that a result was taken, by every ABI and route."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import trio
from batch.routes import row_by_row
from engine.support import quiet_cache, wat
from peeking import native_of

from trio_wasmcache import ExportError, FuelExhaustedError, Function, InstanceCache, TrapError
from trio_wasmcache.testing import check_invariants

# As the core module of a JavaScript component: it traps at a call, if the one before it was not
# said to be over. `told` is the sum of what it was told.
BUSY = """(global $busy (mut i32) (i32.const 0)) (global $told (mut i64) (i64.const 0))
  (func $enter (if (global.get $busy) (then (unreachable))) (global.set $busy (i32.const 1)))
  (func $leave (param i64) (if (i32.eqz (global.get $busy)) (then (unreachable)))
    (global.set $busy (i32.const 0))
    (global.set $told (i64.add (global.get $told) (local.get 0))))
  (func (export "told") (result i64) (global.get $told))"""
KINDS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "none": ((), None, ""),
    "i64": (("i64",), lambda x: x, "(local.get 0)"),
    "u8": (("u8",), lambda x: x % 256, "(i32.and (i32.wrap_i64 (local.get 0)) (i32.const 255))"),
    "bool": (
        ("bool",),
        lambda x: x % 2 == 1,
        "(i32.and (i32.wrap_i64 (local.get 0)) (i32.const 1))",
    ),
    "two": (("i32", "i64"), lambda x: (x, x), "(i32.wrap_i64 (local.get 0)) (local.get 0)"),
}
WASM = {"i64": "i64", "u8": "i32", "bool": "i32", "i32": "i32"}


def busy(results: tuple[str, ...], body: str, post: str = "") -> bytes:
    """A module with `run`, which gives `body`, and its post-return function."""
    kinds = " ".join(WASM[name] for name in results)
    last = f"(local.get {len(results) - 1})" if results else ""
    told = "(i64.const 1)" if not results else last
    if results and WASM[results[-1]] == "i32":
        told = f"(i64.extend_i32_u {last})"
    return wat(f"""(module (memory (export "memory") 1) {BUSY}
      (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
      (func (export "run") (param i64) (result {kinds}) (call $enter) {body})
      (func (export "cabi_post_run") (param {kinds}) (call $leave {told}) {post})
      (func (export "sized") (param i32 i32) (result i64) (call $enter)
        (i64.extend_i32_u (local.get 1)))
      (func (export "cabi_post_sized") (param i64) (call $leave (local.get 0))))""")


async def add(cache: InstanceCache, wasm: bytes, results: tuple[str, ...], **more: Any) -> Function:
    given = {"args": ("i64",), "returns": results or None, **more}
    return await cache.register("run", wasm, **given)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_second_call_works(kind: str) -> None:
    """The post-return function gets the results of each call, in calls and in batches."""
    results, of, body = KINDS[kind]
    async with quiet_cache() as cache:
        function = await add(cache, busy(results, body), results)
        async with function.acquire() as lease:
            for value in (1, 2, 3):
                one = await lease.call(value)
                assert (one[0] if len(results) == 1 and isinstance(one, tuple) else one) == (
                    of and of(value)
                )
            mapped = await lease.map([array("q", range(1, 40_001))])
            columns = mapped if len(results) == 2 else (mapped,) if results else ()
            for number, column in enumerate(columns):
                wanted = [of(value) for value in range(1, 40_001)]
                if len(results) == 2:
                    wanted = [pair[number] for pair in wanted]
                assert list(column) == wanted
            assert await lease.call(7) is not ...
        check_invariants(cache)


async def test_a_batch_tells_the_module_of_every_row() -> None:
    """Rows with a null are not called for, so they are not told of, either."""
    async with quiet_cache() as cache:
        wasm = busy(("i64",), "(local.get 0)")
        function = await add(cache, wasm, ("i64",))
        async with function.acquire() as lease:
            assert await lease.map([[1, None, 3]]) == [1, None, 3]
            native = native_of(lease)
            assert native.function("told").begin((), 1000) == 4


@pytest.mark.parametrize("driven", [True, False])
async def test_a_buffer_function_that_returns_a_number(driven: bool) -> None:
    """The buffer ABI calls it for numbers as it does for buffers, by both routes."""
    async with quiet_cache() as cache:
        wasm = busy(("i64",), "(local.get 0)")
        function = await cache.register("sized", wasm, args=("bytes",), returns="i64", abi="buffer")
        async with function.acquire() as lease:
            assert [await lease.call(b"ab"), await lease.call(b"abc")] == [2, 3]
            columns = [[b"x" * n for n in range(100)]]
            if driven:
                assert list(await lease.map(columns)) == list(range(100))
            else:
                with row_by_row():
                    assert list(await lease.map(columns)) == list(range(100))
            native = native_of(lease)
            assert native.function("told").begin((), 1000) == 5 + sum(range(100))


async def test_its_failure_is_the_calls() -> None:
    """A trap ends the call, or the batch at its row; the instance is dropped."""
    async with quiet_cache() as cache:
        trap = "(if (i64.eq (local.get 0) (i64.const 2)) (then (unreachable)))"
        function = await add(cache, busy(("i64",), "(local.get 0)", trap), ("i64",))
        async with function.acquire() as lease:
            assert await lease.call(1) == 1
            with pytest.raises(TrapError, match="unreachable") as caught:
                await lease.call(2)
            assert caught.value.values == (2,)
        async with function.acquire() as lease:
            with pytest.raises(TrapError) as caught:
                await lease.map([array("q", [0, 1, 2, 3])])
            assert caught.value.row == 2
        assert cache.stats().idle_instances == 0
        check_invariants(cache)


async def test_its_fuel_is_the_calls() -> None:
    """It may burn what the call left of `total_fuel`, and no more."""
    async with quiet_cache(total_fuel=100_000) as cache:
        wasm = busy(("i64",), "(local.get 0)", "(loop (br 0))")
        function = await add(cache, wasm, ("i64",))
        async with function.acquire() as lease:
            with pytest.raises(FuelExhaustedError):
                await lease.call(1)
            assert lease.fuel_consumed is not None
            assert 0 < lease.fuel_consumed <= 100_000
        async with function.acquire() as lease:
            with pytest.raises(FuelExhaustedError):
                await lease.map([array("q", [1])])


async def test_it_is_cancelled_with_the_call() -> None:
    """A call whose post-return function runs has not returned yet."""
    async with quiet_cache(total_fuel=10**15) as cache:
        wasm = busy(("i64",), "(local.get 0)", "(loop (br 0))")
        function = await add(cache, wasm, ("i64",))
        with trio.move_on_after(0.01) as scope:
            await function.call(1)
        assert scope.cancelled_caught
        check_invariants(cache)


async def test_values_that_do_not_fit_do_not_cost_the_instance() -> None:
    """They are refused before any wasm runs, as without a post-return function."""
    async with quiet_cache() as cache:
        function = await add(cache, busy(("i64",), "(local.get 0)"), ("i64",))
        async with function.acquire() as lease:
            for value, kind in (("x", TypeError), (1 << 70, OverflowError)):
                with pytest.raises(kind):
                    await lease.call(value)
            with pytest.raises(TypeError, match="takes 1 argument "):
                await lease.call(1, 2)
            assert await lease.call(None) is None
            assert await lease.call(5) == 5


@pytest.mark.parametrize("abi", ["plain", "buffer"])
@pytest.mark.parametrize("post", ["(param i32)", "(param i64) (result i32) (i32.const 0)", ""])
async def test_one_of_another_type_is_refused(abi: str, post: str) -> None:
    """It could not be called with what the export returned."""
    wasm = wat(f"""(module (memory (export "memory") 1)
      (func (export "run") (result i64) (i64.const 1)) (func (export "cabi_post_run") {post}))""")
    async with quiet_cache() as cache:
        with pytest.raises(ExportError, match=r"'cabi_post_run' is called after 'run', so it must"):
            await cache.register("run", wasm, args=(), returns="i64", abi=abi)
        assert cache.functions() == ()
