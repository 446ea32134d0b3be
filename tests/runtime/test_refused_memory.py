"""A failure after a refused growth of memory names the limit and what was asked for."""

from __future__ import annotations

import pickle
import re
from array import array
from pathlib import Path
from typing import Any

import pytest
from engine.support import quiet_cache, wat
from runtime.test_source_lines import offsets_by_wasmtime

from trio_wasmcache import (
    CacheConfig,
    FuelExhaustedError,
    GuestError,
    HostFunction,
    HostGlobal,
    HostMemory,
    KiB,
    LoadError,
    MemoryLimitError,
    MiB,
    StackOverflowError,
    TrapError,
    current_lease,
)
from trio_wasmcache.testing import FakeEngine, check_invariants, open_fake_cache

TOOLCHAINS = Path(__file__).parents[1] / "udfs" / "toolchains"
PAGE = 64 * KiB
ISOLATIONS = ("reuse", "fresh", "reset")
GROWS = """(module (memory (export "memory") i{bits} 1 {maximum}) (global (mut i32) (i32.const 0))
  (func $need (export "need") (param i{bits}) (result i{bits})
    (if (i{bits}.eq (memory.grow (local.get 0)) (i{bits}.const -1)) (then unreachable))
    (memory.size))
  (func (export "try") (param i{bits}) (result i{bits}) (memory.grow (local.get 0)))
  (func (export "fail") (param i{bits}) (result i{bits}) unreachable))"""
WORDS = "its memory could not grow beyond memory_limit = 1048576"


def grows(bits: int = 32, maximum: str = "") -> bytes:
    memory = "i64" if bits == 64 else ""
    return wat(
        GROWS.replace('(export "memory") i{bits}', f'(export "memory") {memory}')
        .replace("{bits}", str(bits))
        .replace("{maximum}", maximum)
    )


async def failing(function: Any, *values: int, kind: Any = TrapError) -> Any:
    with pytest.raises(kind) as caught:
        await function.call(*values)
    return caught.value


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_the_limit_and_what_was_asked_for_are_named(isolation: str, bits: int) -> None:
    """In the message and as a number; for a call, and for the row of a batch."""
    types: Any = {"args": (f"i{bits}",), "returns": f"i{bits}", "isolation": isolation}
    async with quiet_cache(memory_limit=MiB) as cache:
        need = await cache.register("need", grows(bits), **types)
        assert await need.call(3) == 4
        error = await failing(need, 77)
        assert error.refused_memory == 77 * PAGE
        assert f"({77 * PAGE} bytes more), {WORDS}" in str(error)
        assert pickle.loads(pickle.dumps(error)).refused_memory == 77 * PAGE
        assert [frame.function for frame in error.frames] == ["need"]
        with pytest.raises(TrapError) as caught:
            async with need.acquire() as lease:
                await lease.map([array("i" if bits == 32 else "q", [1, 2, 99, 1])])
        assert (caught.value.row, caught.value.refused_memory) == (2, 99 * PAGE)
        # What has nothing to do with it says nothing of it.
        fail = await cache.register("fail", grows(bits), **types)
        error = await failing(fail, 1)
        assert error.refused_memory is None
        assert "memory_limit" not in str(error)
        check_invariants(cache)


@pytest.mark.parametrize("bits", [32, 64])
async def test_only_the_limit_of_the_cache_is_named(bits: int) -> None:
    """Not the module's own maximum, nor the range of its addresses."""
    types: Any = {"args": (f"i{bits}",), "returns": f"i{bits}"}
    async with quiet_cache(memory_limit=MiB) as cache:
        own = await cache.register("need", grows(bits, "20"), **types)
        assert (await failing(own, 18)).refused_memory == 18 * PAGE
        assert (await failing(own, 20)).refused_memory is None
        most = 65536 if bits == 32 else 1 << 48
        any_size = await cache.register("need", grows(bits), replace=True, **types)
        assert (await failing(any_size, most - 1)).refused_memory == (most - 1) * PAGE
        assert (await failing(any_size, most)).refused_memory is None
        assert (await failing(any_size, -1)).refused_memory is None


async def test_of_several_memories_it_is_the_one_that_was_refused() -> None:
    """They share the limit."""
    source = """(module (memory $a (export "memory") 1) (memory $b 1 2) (memory $c 1)
      (func (export "f") (param i32 i32) (result i32)
        (drop (memory.grow $a (i32.const 1)))
        (if (i32.eq (memory.grow $b (local.get 0)) (i32.const -1)) (then unreachable))
        (if (i32.eq (memory.grow $c (local.get 1)) (i32.const -1)) (then unreachable))
        (memory.size $c)))"""
    async with quiet_cache(memory_limit=MiB) as cache:
        f = await cache.register("f", source, args=("i32", "i32"), returns="i32", isolation="reset")
        assert await f.call(1, 2) == 3
        assert (await failing(f, 2, 0)).refused_memory is None
        error = await failing(f, 0, 12)
        assert error.refused_memory == 12 * PAGE
        assert f"{WORDS}, of which each of its 3 growable memories has a fixed part" in str(error)
        async with f.acquire() as lease:
            with pytest.raises(MemoryLimitError, match="of its 3 growable memories has a fixed"):
                lease.memory.grow(12)


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_memory_that_is_imported_is_named_too(isolation: str) -> None:
    """Each instance has one of its own, under the same limit."""
    source = """(module (import "env" "memory" (memory 1)) (import "env" "g" (global i32))
      (func (export "f") (param i32) (result i32)
        (if (i32.eq (memory.grow (local.get 0)) (i32.const -1)) (then unreachable))
        (memory.size)))"""
    env = {"env": {"memory": HostMemory(), "g": HostGlobal("i32", 1)}}
    async with quiet_cache(memory_limit=MiB) as cache:
        f = await cache.register(
            "f", source, args=("i32",), returns="i32", imports=env, isolation=isolation
        )
        assert await f.call(1) == 2
        error = await failing(f, 77)
        assert error.refused_memory == 77 * PAGE
        assert error.frames[0].offset == wat(source).index(b"\x40\x00\x41\x7f\x46\x04\x40") + 7


async def test_a_refusal_is_forgotten_once_memory_grows_again() -> None:
    """And by a reset; else it is said to be of the last time that the guest asked."""
    async with quiet_cache(memory_limit=MiB) as cache:
        for isolation in ("reuse", "reset"):
            for name in ("try", "fail"):
                await cache.register(
                    name, grows(), args=("i32",), returns="i32", isolation=isolation, replace=True
                )
            (survives,) = (one for one in cache.functions() if one.name == "try")
            assert survives.isolation_verdict.startswith(isolation)
            async with survives.acquire() as lease:
                assert await lease.call(77) == -1
                assert await lease.call(2) == 1
                assert lease.size > PAGE
    # One module with one instance: a host function decides what a call does.
    source = """(module (import "h" "what" (func $what (result i32))) (memory 1)
      (global (mut i32) (i32.const 0))
      (func (export "f") (result i32) (local $pages i32)
        (local.set $pages (call $what))
        (if (i32.eqz (local.get $pages)) (then unreachable))
        (memory.grow (local.get $pages))))"""
    async with quiet_cache(memory_limit=MiB) as cache:
        pages = iter([77, 0, 77, 1, 0])
        host = {"h": {"what": HostFunction(lambda: next(pages), (), ("i32",))}}
        f = await cache.register("f", source, args=(), returns="i32", imports=host)
        assert await f.call() == -1
        error = await failing(f)
        assert error.refused_memory == 77 * PAGE
        assert "when it last asked for memory" in str(error)
        assert [await f.call(), await f.call()] == [-1, 1]
        error = await failing(f)
        assert error.refused_memory is None
        pages = iter([77, 0])
        reset = await cache.register(
            "reset", source, args=(), returns="i32", imports=host, isolation="reset", export="f"
        )
        assert reset.isolation_verdict.startswith("reset")
        assert await reset.call() == -1
        assert cache.stats().idle_instances == 1
        hits = cache.stats().hits
        assert (await failing(reset)).refused_memory is None
        assert cache.stats().hits == hits + 1


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_start_function_that_is_refused_memory_names_it(isolation: str) -> None:
    """A start section, and WASI's `_initialize`."""
    start = """(func $start
        (if (i32.eq (memory.grow (i32.const 40)) (i32.const -1)) (then (call $stop))))
      (func $stop unreachable)
      (func (export "f") (result i32) (memory.size))"""
    sources = [
        f"(module (memory 1) {start} (start $start))",
        f'(module (memory 1) {start} (export "_initialize" (func $start)))',
    ]
    for source in sources:
        async with quiet_cache(memory_limit=MiB) as cache:
            f = await cache.register("f", source, args=(), returns="i32", isolation=isolation)
            with pytest.raises(LoadError) as caught:
                await f.call()
            error = caught.value
            assert error.refused_memory == 40 * PAGE
            assert WORDS in str(error)
            cause = error.__cause__
            assert isinstance(cause, TrapError)
            assert cause.refused_memory == 40 * PAGE
            assert [frame.function for frame in cause.frames] == ["stop", "start"]
            check_invariants(cache)
        async with quiet_cache(memory_limit=4 * MiB) as cache:
            f = await cache.register("f", source, args=(), returns="i32", isolation=isolation)
            assert [await f.call() for _ in range(3)] == [41] * 3
            check_invariants(cache)


async def test_a_start_function_of_a_module_that_grows_is_still_metered_and_limited() -> None:
    """It takes slices, calls host functions, burns its fuel once, and may be endless."""
    source = """(module (import "h" "seven" (func $seven (result i32))) (memory 1)
      (global $n (mut i32) (i32.const 0))
      (func $start (local $i i32)
        (drop (memory.grow (i32.const 1)))
        (global.set $n (call $seven))
        (loop (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if 0 (i32.lt_u (local.get $i) (i32.const LOOPS)))))
      (start $start)
      (func (export "f") (result i32) (i32.add (global.get $n) (memory.size))))"""
    calls = []
    host = {"h": {"seven": HostFunction(lambda: calls.append(1) or 7, (), ("i32",))}}
    async with quiet_cache(memory_limit=MiB, total_fuel=1_000_000, yield_fuel=1000) as cache:
        wasm = source.replace("LOOPS", "50000")
        f = await cache.register("f", wasm, args=(), returns="i32", imports=host)
        assert [await f.call(), await f.call()] == [9, 9]
        assert len(calls) == 1
        wasm = source.replace("LOOPS", "5000000")
        f = await cache.register("f", wasm, args=(), returns="i32", imports=host, replace=True)
        with pytest.raises(LoadError, match="total_fuel") as caught:
            await f.call()
        assert isinstance(caught.value.__cause__, FuelExhaustedError)
        assert caught.value.refused_memory is None
        check_invariants(cache)


async def test_offsets_and_lines_are_exact_behind_more_than_127_functions() -> None:
    """As wasmtime finds them in the bytes given, and as clang's DWARF says."""
    path = TOOLCHAINS / "clang-grows.wasm"
    wasm, text = path.read_bytes(), path.with_suffix(".c").read_text().splitlines()
    lines = {
        found.group(1): number
        for number, line in enumerate(text, 1)
        if (found := re.search(r"/\* (check: refused|grow: first|grow: second|divide) \*/", line))
    }
    async with quiet_cache(memory_limit=MiB) as cache:
        for export, values, by_wasmtime, where in (
            ("grow", (77, 1), (65536, 1), ["check: refused", "grow: first"]),
            ("grow", (1, 77), (1, 65536), ["check: refused", "grow: second"]),
            ("divide", (0, 1), (0, 1), ["divide"]),
        ):
            f = await cache.register(export, wasm, args=("i32", "i32"), returns="i32", replace=True)
            expected = offsets_by_wasmtime(wasm, export, *by_wasmtime)
            for _ in range(2):
                error = await failing(f, *values)
                assert [one.offset for one in error.frames] == [at for _, at in expected]
                assert [one.line for one in error.frames] == [lines[name] for name in where]
                assert error.refused_memory == (77 * PAGE if export == "grow" else None)


async def test_a_guest_that_ends_inside_of_a_growth_shows_no_function_of_ours() -> None:
    """It has no fuel or no stack left just there: the frame is that of the instruction."""
    deep = wat("""(module (memory 1) (func $f (export "f") (param i32) (result i32)
      (drop (memory.grow (i32.const 0))) (call $f (local.get 0))))""")
    seen = set()
    async with quiet_cache(memory_limit=MiB) as cache:
        for fuel in range(1, 60):
            cache.resize(total_fuel=fuel)
            f = await cache.register("f", deep, args=("i32",), returns="i32", replace=True)
            error = await failing(f, 0, kind=FuelExhaustedError)
            assert {frame.function for frame in error.frames} == {"f"}
            seen.add(error.frames[0].offset)
        assert deep.index(b"\x40\x00\x1a") in seen
        cache.resize(total_fuel=1_000_000_000)
        f = await cache.register("f", deep, args=("i32",), returns="i32", replace=True)
        error = await failing(f, 0, kind=StackOverflowError)
        assert {frame.function for frame in error.frames} == {"f"}


@pytest.mark.usefixtures("optimizing_only")
async def test_a_growth_burns_a_little_more_fuel_and_nothing_else_does() -> None:
    """13 units, whether it is refused or not; and nothing where no limit can refuse it."""
    async with quiet_cache(memory_limit=MiB) as cache:
        f = await cache.register("try", grows(), args=("i32",), returns="i32")
        async with f.acquire() as lease:
            burnt = []
            for pages in (1, 77, 0):
                await lease.call(pages)
                burnt.append(lease.fuel_consumed)
        assert burnt == [17, 16, 16]  # a page costs a unit
        # With a maximum of its own it is not edited.
        f = await cache.register(
            "try", grows(maximum="2"), args=("i32",), returns="i32", replace=True
        )
        async with f.acquire() as lease:
            await lease.call(1)
            assert lease.fuel_consumed == 4


async def test_the_fake_engine_refuses_memory_too() -> None:
    """Its guest goes on without; what it raises then names the limit."""

    def run(x: int) -> int:
        if x:
            raise TrapError("wasm trap: unreachable", code="unreachable")
        return x

    engine = FakeEngine()
    wasm = engine.module(run, grow_pages=9)
    config = CacheConfig(memory_limit=MiB)
    async with open_fake_cache(config, engine=engine) as cache:
        f = await cache.register("f", wasm, args=("i64",), returns="i64", export="run")
        assert (await failing(f, 1)).refused_memory is None
        assert await f.call(0) == 0
        error = await failing(f, 1)
        assert error.refused_memory == 9 * PAGE
        assert WORDS in str(error)


def test_an_error_can_be_made_with_it() -> None:
    """As with each other fact."""
    for kind in (GuestError, TrapError, LoadError):
        assert kind("why").refused_memory is None
        assert kind("why", refused_memory=PAGE).refused_memory == PAGE


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_it_is_named_in_an_instance_of_several_modules(isolation: str) -> None:
    """As where a host function calls back: with offsets, and forgotten by a reset."""
    source = """(module (import "h" "ask" (func $ask (result i32)))
      (memory (export "memory") 1) (global $started (mut i32) (i32.const 0))
      (func $start (drop (memory.grow (i32.const 1))) (global.set $started (i32.const 1)))
      (start $start)
      (func (export "seven") (result i32) (i32.const 7))
      (func (export "f") (param $pages i32) (param $fails i32) (result i32)
        (drop (call $ask))
        (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1))
          (then (if (local.get $fails) (then unreachable))))
        (if (local.get $fails) (then unreachable))
        (i32.add (memory.size) (global.get $started))))"""

    async def ask() -> int:
        result: int = await current_lease().invoke("seven")
        return result

    host = {"h": {"ask": HostFunction(ask, (), ("i32",), reentrant=True)}}
    async with quiet_cache(memory_limit=MiB) as cache:
        f = await cache.register(
            "f", source, args=("i32", "i32"), returns="i32", imports=host, isolation=isolation
        )
        assert await f.call(0, 0) == 3
        error = await failing(f, 77, 1)
        assert error.refused_memory == 77 * PAGE
        assert WORDS in str(error)
        offsets = [frame.offset for frame in error.frames]
        assert all(wat(source)[at] == 0 for at in offsets if at is not None)
        assert await f.call(77, 0) == 3
        assert (await failing(f, 0, 1)).refused_memory is None
        check_invariants(cache)
