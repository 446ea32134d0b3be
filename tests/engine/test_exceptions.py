"""Exceptions of guests: thrown, caught, and what they take of memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine.support import quiet_cache, run_python, wat

from trio_wasmcache import MiB, TrapError
from trio_wasmcache._core.wasm.admission import heap_size, rest_size
from trio_wasmcache._core.wasm.reader import read_module
from trio_wasmcache.testing import check_invariants

# Throws the number if it is odd, one call deep; the handler returns it times ten.
ODD = wat("""(module (memory (export "memory") 1) (tag $odd (param i64))
  (func $check (param i64) (result i64)
    (if (i64.eqz (i64.and (local.get 0) (i64.const 1))) (then (return (local.get 0))))
    (throw $odd (local.get 0)))
  (func (export "caught") (param i64) (result i64)
    (i64.mul (i64.const 10) (block $h (result i64)
      (try_table (result i64) (catch $odd $h) (call $check (local.get 0)))
      (return))))
  (func (export "uncaught") (param i64) (result i64) (call $check (local.get 0))))""")


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_they_are_caught(isolation: str) -> None:
    """In calls and in batches, at each level of isolation."""
    async with quiet_cache(memory_limit=1 * MiB) as cache:
        f = await cache.register(
            "f", ODD, args=("i64",), returns="i64", export="caught", isolation=isolation
        )
        for _ in range(3):
            assert [await f.call(n) for n in (2, 3)] == [2, 30]
        async with f.acquire() as lease:
            assert list(await lease.map([range(5)])) == [0, 10, 2, 30, 4]
        check_invariants(cache)
        assert cache.stats().evictions["corrupted"] == 0


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_those_of_cpp(isolation: str) -> None:
    """As clang writes them: a destructor runs as the stack is unwound, and `catch` goes on."""
    path = Path(__file__).parents[1] / "udfs" / "toolchains" / "cpp-exceptions.wasm"
    async with quiet_cache() as cache:
        f = await cache.register(
            "f", path, args=("i64",), returns="i64", export="half", isolation=isolation
        )
        got = [await f.call(n) for n in (2, 3, 4, 5)]
        assert got == ([101, 197, 302, 395] if isolation == "reuse" else [101, 97, 102, 95])
        async with f.acquire() as lease:
            rest = 400 if isolation == "reuse" else 0
            expected = [n + rest for n in (101, 197, 302, 395)]
            assert list(await lease.map([[2, 3, 4, 5]])) == expected
        check_invariants(cache)


async def test_one_that_nobody_catches_is_a_trap() -> None:
    """It costs the instance, as any trap does, and names the row in a batch."""
    async with quiet_cache() as cache:
        f = await cache.register("f", ODD, args=("i64",), returns="i64", export="uncaught")
        with pytest.raises(TrapError, match="threw an exception and did not catch it") as caught:
            await f.call(1)
        assert caught.value.code == "uncaught exception"
        assert len(caught.value.backtrace) == 2
        assert cache.stats().evictions["corrupted"] == 1
        with pytest.raises(TrapError, match="in row 2 of a batch") as caught:
            async with f.acquire() as lease:
                await lease.map([[2, 4, 5]])
        assert caught.value.row == 2
        check_invariants(cache)


async def test_the_heap_is_booked() -> None:
    """In what an instance may take, running and idle, as it is hidden from us."""
    info = read_module(ODD)
    for limit, stack in ((4 * MiB, 256 * 1024), (1 * MiB, 512 * 1024)):
        heap = heap_size(info, limit, stack)
        assert heap == min(limit, stack // 8 * 64)
        async with quiet_cache(memory_limit=limit, stack_size=stack) as cache:
            f = await cache.register("f", ODD, args=("i64",), returns="i64", export="caught")
            assert await f.call(1) == 10
            assert cache.stats().total_size == 65536 + rest_size(info) + heap
            check_invariants(cache)


def test_exceptions_that_can_be_kept_may_fill_a_memory() -> None:
    """From tables and globals any number is referred to; without tags there are none."""
    for fields, size in (
        ("(tag) (table 1 exnref)", 7 * MiB),
        ("(tag) (tag (param i32 exnref))", 7 * MiB),
        ("(tag) (global (mut exnref) (ref.null exn))", 7 * MiB),
        ("(table 1 exnref)", 0),
        ("(tag) (table 1 externref)", 48 * 1024),
        (f"(tag) (tag (param {'i64 ' * 1000}))", 7 * MiB),
    ):
        info = read_module(wat(f"(module {fields})"))
        assert heap_size(info, 7 * MiB, 8 * 1024) == size, fields


DEEP = """
import json, sys
import trio
from engine.support import quiet_cache, wat
from trio_wasmcache import StackOverflowError
from trio_wasmcache._core.config import KiB, MiB
from trio_wasmcache._core.wasm.admission import heap_size
from trio_wasmcache._core.wasm.reader import read_module

locals, values = json.loads(sys.argv[1])
STACK = 4 * MiB
throw = f"(throw $e {'(i64.const 1)' * values})"
held = "".join(
    f"(local.set $x{n} (block $h (result exnref) (try_table (catch_all_ref $h) {throw})"
    "(unreachable)))" for n in range(locals)
)
used = "".join(
    f"(if (ref.is_null (local.get $x{n})) (then (unreachable)))" for n in range(locals)
)
names = " ".join(f"(local $x{n} exnref)" for n in range(locals))
source = wat(f'''(module (tag $e (param {'i64 ' * values}))
  (func $deep (export "f") (param i64) {names} {held}
    (if (i64.ne (local.get 0) (i64.const 0))
      (then (call $deep (i64.sub (local.get 0) (i64.const 1))))) {used}))''')

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

async def main():
    async with quiet_cache(stack_size=STACK, memory_limit=2**30, total_fuel=10**12) as cache:
        f = await cache.register("f", source, args=("i64",), returns=None)
        await f.call(1)
        before = anonymous()
        depth = 1
        async def fits(depth):
            try:
                await f.call(depth)
            except StackOverflowError:
                return False
            return True
        while await fits(2 * depth):
            depth *= 2
        for _ in range(3):
            await f.call(depth)
        print(json.dumps([
            anonymous() - before, heap_size(read_module(source), 2**30, STACK), STACK
        ]))

trio.run(main)
"""


@pytest.mark.parametrize(("locals", "values"), [(1, 0), (100, 0), (1000, 1), (100, 100)])
def test_what_a_stack_can_hold_bounds_the_heap(locals: int, values: int) -> None:
    """Of guests that keep as many exceptions as they can at each level of a deep recursion."""
    grown, bound, stack = json.loads(run_python(DEEP, json.dumps([locals, values])))
    assert grown <= bound + stack + 2 * MiB


async def test_what_is_kept_of_them_is_put_back() -> None:
    """By a reset: a table and a global that refer to exceptions, as to anything else."""
    source = wat("""(module (tag $e) (table $t 3 exnref) (global $g (mut exnref) (ref.null exn))
      (global $null (mut nullexnref) (ref.null noexn))
      (func (export "f") (param i64) (result i64) (local $seen i64)
        (local.set $seen (i64.extend_i32_u (i32.add
          (ref.is_null (global.get $g)) (ref.is_null (table.get $t (i32.const 1))))))
        (global.set $g (block $h (result exnref)
          (try_table (catch_all_ref $h) (throw $e)) (unreachable)))
        (table.set $t (i32.const 1) (global.get $g))
        (local.get $seen)))""")
    limits = {"memory_limit": 1 * MiB}
    async with quiet_cache(**limits) as cache:
        for isolation, expected in (("reuse", [2, 0, 0]), ("reset", [2, 2, 2])):
            f = await cache.register(
                isolation, source, args=("i64",), returns="i64", export="f", isolation=isolation
            )
            assert f.isolation_verdict.startswith(isolation)
            assert [await f.call(0) for _ in range(3)] == expected
            check_invariants(cache)
        assert (cache.stats().misses, cache.stats().hits) == (2, 4)
