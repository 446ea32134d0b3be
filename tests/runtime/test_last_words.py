"""What a failing call wrote is in its error, and no data of another call is."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import trio
from engine.support import WASI, quiet_cache, wat

from trio_wasmcache import (
    AbiError,
    ExitError,
    FuelExhaustedError,
    HostFunction,
    InstanceCache,
    LoadError,
    ResultTooLargeError,
    TrapError,
    Wasi,
)
from trio_wasmcache.testing import check_invariants

UDFS = Path(__file__).parents[1] / "udfs"
WRITE = f"""(import "{WASI}" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func $write (param $fd i32) (param $at i32) (param $size i32)
    (i32.store (i32.const 60000) (local.get $at))
    (i32.store (i32.const 60004) (local.get $size))
    (if (call $fd_write (local.get $fd) (i32.const 60000) (i32.const 1) (i32.const 60008))
      (then (unreachable))))"""
# Writes "said <letter>\n", with the letter of its argument; and traps on an odd one.
SAYS = f"""(module {WRITE} (data (i32.const 0) "said ?\\n")
  (func $f (export "f") (param i64) (result i64)
    (i32.store8 (i32.const 5) (i32.add (i32.wrap_i64 (local.get 0)) (i32.const 65)))
    (call $write (i32.const 2) (i32.const 0) (i32.const 7))
    (if (i64.ne (i64.and (local.get 0) (i64.const 1)) (i64.const 0)) (then (unreachable)))
    (local.get 0))
  (func (export "silent") (param i64) (result i64)
    (if (i64.eqz (local.get 0)) (then (unreachable)))
    (local.get 0)))"""
I64 = ("i64",)


async def add(cache: InstanceCache, wasm: Any, export: str = "f", **more: Any) -> Any:
    more = {"args": I64, "returns": "i64", **more}
    return await cache.register(export, wasm, replace=True, **more)


async def test_an_assert_of_c_names_itself() -> None:
    """In a stripped module, with what was printed before it."""
    async with quiet_cache() as cache:
        divide = await add(cache, UDFS / "words.wasm", "divide", args=("i64", "i64"))
        assert await divide.call(6, 3) == 2
        with pytest.raises(TrapError) as caught:
            await divide.call(7, 0)
    error = caught.value
    said = 'Assertion failed: b != 0 && "b must not be zero" (words.c: divide: '
    assert error.output.startswith(f"dividing 7\n{said}")
    first, second, third, *frames = str(error).splitlines()
    assert first.endswith("wasm trap: unreachable; its last output:")
    assert second == "    dividing 7"
    assert third.startswith(f"    {said}")
    assert frames == [f"  {frame}" for frame in error.backtrace]


async def test_a_panic_of_rust_names_itself() -> None:
    """In a call and in a batch, whose row has its own output only."""
    async with quiet_cache() as cache:
        item = await add(cache, UDFS / "panics.wasm", "item")
        with pytest.raises(TrapError, match=r"panicked at .*the len is 3 but the index is 5"):
            await item.call(5)
        async with item.acquire() as lease:
            with pytest.raises(TrapError, match=r"in row 2 of a batch.*") as caught:
                await lease.map([[0, 1, 7, 2]])
    output = caught.value.output
    assert output.startswith("looking at 7\n")
    assert "the index is 7'" in output
    assert pickle.loads(pickle.dumps(caught.value)).output == output


async def test_only_the_failing_call_is_in_its_error() -> None:
    """Neither what earlier calls of the instance wrote, nor what other rows did."""
    async with quiet_cache() as cache:
        says = await add(cache, SAYS)
        async with says.acquire() as lease:
            for _ in range(3):
                assert await lease.call(0) == 0
            with pytest.raises(TrapError) as caught:
                await lease.call(1)
            assert caught.value.output == "said B\n"
        for route in ([2, 4, 3, 6], [2, 4, 3, 6] * 2000):
            async with says.acquire() as lease:
                with pytest.raises(TrapError) as caught:
                    await lease.map([route])
                assert (caught.value.row, caught.value.output) == (2, "said D\n")
        check_invariants(cache)


async def test_a_silent_failure_has_no_output_of_another_lease() -> None:
    """The instance that wrote before is the one that fails now, without a word."""
    async with quiet_cache() as cache:
        says, silent = await add(cache, SAYS), await add(cache, SAYS, "silent")
        async with says.acquire() as lease:
            await lease.call(2)
        async with silent.acquire() as lease:
            assert await lease.call(1) == 1
            with pytest.raises(TrapError) as caught:
                await lease.call(0)
    assert caught.value.output == ""
    assert "output" not in str(caught.value)


async def test_what_ends_a_call_otherwise_has_output_too() -> None:
    """An exit, the end of the fuel, an ABI that was broken, and a result that is too large."""
    ends = f"""(module (import "{WASI}" "proc_exit" (func $exit (param i32))) {WRITE}
      (data (i32.const 0) "last words")
      (func $say (call $write (i32.const 1) (i32.const 0) (i32.const 10)))
      (func (export "exits") (call $say) (call $exit (i32.const 3)))
      (func (export "loops") (call $say) (loop (br 0)))
      (func (export "is_no_bool") (result i32) (call $say) (i32.const 7))
      (func (export "is_long") (result i64)
        (call $say) (i64.const 0x0000_0010_0000_8000)))"""
    ends_in: list[tuple[str, Any, str | None, str | None]] = [
        ("exits", ExitError, None, None),
        ("loops", FuelExhaustedError, None, None),
        ("is_no_bool", AbiError, "bool", None),
        ("is_long", ResultTooLargeError, "bytes", "buffer"),
    ]
    async with quiet_cache(total_fuel=200_000, max_result_size=1024) as cache:
        for export, kind, returns, abi in ends_in:
            function = await cache.register(export, ends, args=(), returns=returns, abi=abi)
            with pytest.raises(kind, match="its last output:\n    last words") as caught:
                await function.call()
            assert caught.value.output == "last words\n"


async def test_the_tail_is_two_kilobytes_of_each_stream() -> None:
    """Of the end, the beginning cut; standard error comes last, as it holds the panic."""
    wasm = f"""(module {WRITE} (data (i32.const 40000) "panic: boom\\n")
      (func (export "f") (param i64) (result i64)
        (memory.fill (i32.const 0) (i32.const 97) (i32.const 5000))
        (call $write (i32.const 2) (i32.const 40000) (i32.const 12))
        (call $write (i32.const 1) (i32.const 0) (i32.const 5000))
        (unreachable)))"""
    async with quiet_cache() as cache:
        with pytest.raises(TrapError) as caught:
            await (await add(cache, wasm)).call(1)
        assert caught.value.output == f"...{'a' * 2048}\npanic: boom\n"
        assert len(str(caught.value)) < 1000
        dropped = Wasi(stdout="drop", stderr="drop")
        with pytest.raises(TrapError) as caught:
            await (await add(cache, wasm, wasi=dropped)).call(1)
        assert caught.value.output == ""


@pytest.mark.parametrize("how", ["(start $begin)", '(export "_initialize" (func $begin))'])
async def test_a_start_that_fails_names_itself(how: str) -> None:
    """`LoadError` has the output, and so has the error that caused it."""
    wasm = f"""(module {WRITE} (data (i32.const 0) "panic: no configuration\\n")
      (func $begin (call $write (i32.const 2) (i32.const 0) (i32.const 24)) (unreachable))
      (func (export "f") (param i64) (result i64) (local.get 0)) {how})"""
    async with quiet_cache() as cache:
        f = await add(cache, wasm)
        for _ in range(2):
            with pytest.raises(LoadError, match="\n    panic: no configuration") as caught:
                await f.call(1)
            assert caught.value.output == "panic: no configuration\n"
            assert isinstance(caught.value.__cause__, TrapError)
            assert caught.value.__cause__.output == caught.value.output


async def test_control_characters_reach_no_terminal() -> None:
    """A guest can't move the cursor of whoever reads its error."""
    wasm = f"""(module {WRITE} (data (i32.const 0) "\\1b[2J\\07\\ff\\0d\\0a")
      (func (export "f") (param i64) (result i64)
        (call $write (i32.const 1) (i32.const 0) (i32.const 8)) (unreachable)))"""
    async with quiet_cache() as cache:
        with pytest.raises(TrapError) as caught:
            await (await add(cache, wasm)).call(1)
    assert caught.value.output == "\\x1b[2J\\x07\\xff\n"
    assert all(line.isprintable() for line in str(caught.value).splitlines())


async def test_a_guest_within_a_host_function_keeps_its_own_words() -> None:
    """The error of the inner guest is not given the output of the outer one."""
    outer = f"""(module (import "h" "ask" (func $ask (param i64) (result i64))) {WRITE}
      (data (i32.const 0) "outer\\n")
      (func (export "outer") (param i64) (result i64)
        (call $write (i32.const 1) (i32.const 0) (i32.const 6)) (call $ask (local.get 0))))"""
    async with quiet_cache() as cache:
        says = await add(cache, SAYS)
        imports = {"h": {"ask": HostFunction(says.call, I64, I64)}}
        function = await add(cache, outer, "outer", imports=imports)
        with pytest.raises(TrapError) as caught:
            await function.call(1)
        assert (caught.value.function, caught.value.output) == ("f", "said B\n")


async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    """What it wrote is in no later error of a new instance, nor is anything else of it kept."""
    wasm = wat(f"""(module {WRITE} (data (i32.const 0) "secret\\n")
      (func (export "f") (param i64) (result i64)
        (if (i64.eqz (local.get 0)) (then
          (call $write (i32.const 1) (i32.const 0) (i32.const 7)) (loop (br 0))))
        (unreachable)))""")
    async with quiet_cache() as cache:
        f = await add(cache, wasm)
        with trio.move_on_after(0.01) as scope:
            await f.call(0)
        assert scope.cancelled_caught
        with pytest.raises(TrapError) as caught:
            await f.call(1)
        assert caught.value.output == ""
        check_invariants(cache)
