"""The first call of a new instance runs on the thread's own stack, if a slice is enough for it."""

from __future__ import annotations

import json
import mmap
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from engine.support import quiet_cache, run_python, wat
from engine.test_at_once import failing
from test_work import counted_native_calls

from trio_wasmcache import (
    CodeMemoryError,
    FuelExhaustedError,
    InstanceCache,
    Lease,
    LoadError,
    StackOverflowError,
    TrapError,
    WasmCacheError,
)
from trio_wasmcache._core.config import CompilerName
from trio_wasmcache._engine.base import NoMemoryError
from trio_wasmcache._engine.wasmtime import function, own_stack
from trio_wasmcache._engine.wasmtime.function import FIRST_PAUSE
from trio_wasmcache.testing import check_invariants

# The second one is called when calls begin to be sliced.
AT_ONCE, IN_SLICES = "wasmtime_func_call", "wasmtime_context_fuel_async_yield_interval"
# Counts calls in a global and in its memory, and then goes round a loop as often as it is told.
COUNTS = """(module (global $n (mut i64) (i64.const 0)) (memory (export "memory") 1)
  (func (export "f") (param i64) (result i64)
    (global.set $n (i64.add (global.get $n) (i64.const 1)))
    (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 100)))
    (block $end (loop $again
      (br_if $end (i64.eqz (local.get 0)))
      (local.set 0 (i64.sub (local.get 0) (i64.const 1)))
      (br $again)))
    (i64.add (global.get $n) (i64.load (i32.const 8)))))"""
SHORT, LONG = 10, 50_000


async def register(cache: InstanceCache, **options: Any) -> Any:
    return await cache.register("f", COUNTS, args=("i64",), returns="i64", **options)


async def used(lease: Lease, rounds: int) -> tuple[dict[str, int], int, int]:
    """{way of calling: how often}, the result, and the fuel of a call in a lease."""
    with counted_native_calls() as calls:
        result = await lease.call(rounds)
    ways = {way: calls[way] for way in (AT_ONCE, IN_SLICES) if calls[way]}
    assert lease.fuel_consumed is not None
    return ways, result, lease.fuel_consumed


async def test_only_the_first_call_of_an_instance_runs_at_once() -> None:
    """It has no future and no stack; what it changed is there for the next one, which has both."""
    async with quiet_cache() as cache, (await register(cache)).acquire() as lease:
        at_once = await used(lease, SHORT)
        in_slices = await used(lease, SHORT)
    assert at_once == ({AT_ONCE: 1}, 101, in_slices[2])
    assert in_slices == ({IN_SLICES: 1}, 202, at_once[2])


async def test_a_call_of_more_than_a_slice_is_made_anew() -> None:
    """As if it had been the only one; some of the next ones are not tried, and then one is."""
    async with quiet_cache(max_size=0, yield_fuel=1000) as cache:
        f = await register(cache)

        async def first(rounds: int) -> tuple[dict[str, int], int, int]:
            async with f.acquire() as lease:
                ways, result, fuel = await used(lease, rounds)
                assert await lease.call(0) == result + 101
                return ways, result, fuel

        tried = await first(LONG)
        assert tried[:2] == ({AT_ONCE: 1, IN_SLICES: 1}, 101)
        assert tried[2] > LONG
        for _ in range(FIRST_PAUSE):
            assert await first(LONG) == ({IN_SLICES: 1}, *tried[1:])
        assert await first(SHORT) == ({AT_ONCE: 1}, 101, tried[2] - 8 * (LONG - SHORT))
        assert await first(LONG) == tried
        assert (await first(SHORT))[0] == {IN_SLICES: 1}
        check_invariants(cache)


async def test_others_run_before_a_call_is_made_anew() -> None:
    """A slice has run by then: a cancellation or another task does not wait for one more."""
    async with quiet_cache(yield_fuel=10_000) as cache, (await register(cache)).acquire() as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel, nursery.cancel_scope)
            await lease.call(10**9)
        assert nursery.cancel_scope.cancelled_caught
        assert lease.fuel_consumed == 0


async def test_what_was_written_before_is_seen() -> None:
    """An instance whose memory was looked at or written to is none that can be made anew."""
    async with quiet_cache(yield_fuel=1000, max_size=0) as cache:
        f = await register(cache)
        for rounds in (SHORT, LONG):
            async with f.acquire() as lease:
                lease.memory.write(8, b"\x05")
                ways, result, _ = await used(lease, rounds)
                assert (ways, result) == ({IN_SLICES: 1}, 1 + 105)


async def _cancel(scope: trio.CancelScope) -> None:
    scope.cancel()


ENDS = """(module (memory (export "memory") 1)
  (func $again (call $again))
  (func $inner (param i32)
    (if (i32.eqz (local.get 0)) (then unreachable))
    (if (i32.eq (local.get 0) (i32.const 1)) (then (loop (br 0))))
    (call $again))
  (func (export "f") (param i32) (call $inner (local.get 0))))"""


@pytest.mark.parametrize(
    ("way", "kind"), [(0, TrapError), (1, FuelExhaustedError), (2, StackOverflowError)]
)
async def test_it_ends_badly_as_any_call(way: int, kind: type[Exception]) -> None:
    """With the same error, frames and fuel, and as deep; the next lease gets a new instance."""
    # Enough for the stack of either compiler, and less than a slice.
    async with quiet_cache(total_fuel=90_000) as cache:
        f = await cache.register("f", ENDS, args=("i32",))
        ends = []
        for at_once in (True, False):
            async with f.acquire() as lease:
                if not at_once:
                    assert lease.memory.size
                with counted_native_calls() as calls, pytest.raises(kind) as caught:
                    await lease.call(way)
                assert calls[AT_ONCE] == at_once
                ends.append((str(caught.value), caught.value.backtrace, lease.fuel_consumed))  # type: ignore[attr-defined]
                with pytest.raises(trio.BrokenResourceError):
                    await lease.call(way)
            check_invariants(cache)
        assert ends[0] == ends[1]
        assert cache.stats().idle_instances == 0


@pytest.mark.parametrize("step", ["context_set_fuel", "instance_pre_instantiate"])
async def test_the_new_instance_may_fail(step: str) -> None:
    """Then so does the call; nothing is left of it."""
    async with quiet_cache(yield_fuel=1000) as cache:
        f = await register(cache)
        async with f.acquire() as lease:
            with failing(step, 1), pytest.raises(LoadError, match="told to fail"):
                await lease.call(LONG)
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(SHORT)
        assert cache._pool.engine.open_instances == 0  # type: ignore[attr-defined]
        check_invariants(cache)
        assert await f.call(SHORT) == 101


@pytest.mark.parametrize("idle", [True, False])
async def test_the_new_instance_may_find_no_memory(idle: bool) -> None:
    """Idle instances make way for it, as for any other; without one the lease can go on."""
    async with quiet_cache(yield_fuel=1000) as cache:
        f = await register(cache)
        g = await cache.register("g", COUNTS, args=("i64",), returns="i64", export="f")
        if idle:
            await cache.warm("g", ("i64",))
        async with f.acquire() as lease:
            with counted_native_calls() as calls:
                # It is tried twice more before anything is evicted.
                with failing("instance_pre_instantiate", 3, "no memory (os error 12)"):
                    if not idle:
                        with pytest.raises(CodeMemoryError):
                            await lease.call(LONG)
                    assert await lease.call(LONG) == 101
            assert calls[AT_ONCE] == 1
        assert cache.stats().evictions["address_space"] == idle
        assert await g.call(SHORT) == 101
        check_invariants(cache)


async def test_without_enough_stack_calls_are_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as one of its own has must be left; where that is not known, none is."""
    async with quiet_cache() as cache:
        f = await register(cache)
        size = cache.config.instance_stack_size
        for room, way in ((size, AT_ONCE), (size - 1, IN_SLICES), (0, IN_SLICES)):
            monkeypatch.setattr(function, "room", lambda room=room: room)
            cache.resize(max_size=0)
            async with f.acquire() as lease:
                assert (await used(lease, SHORT))[0] == {way: 1}


def in_thread(function: Callable[[], object], stack_size: int) -> None:
    """Run it in a thread with a stack of that many bytes."""
    before = threading.stack_size(stack_size)
    try:
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)


def test_what_is_left_of_a_stack() -> None:
    """It is that of the thread that asks, and less the deeper it is."""
    found = []

    def deep(levels: int) -> int:
        # Through C, which takes some of its stack.
        return own_stack.room() if not levels else max(map(deep, [levels - 1]))

    def ask() -> None:
        found.append((own_stack.room(), deep(20)))

    in_thread(ask, 128 * 1024)
    ask()
    (small, small_deep), (own, own_deep) = found
    # The system may give it the stack of a thread that has ended, of up to four times the size.
    assert 64 * 1024 < small <= 512 * 1024 < own
    assert small_deep < small - 1024
    assert own_deep < own - 1024


def test_a_thread_with_a_small_stack_survives_a_guest_that_wants_more() -> None:
    """Its guests have stacks of their own; elsewhere, the thread's own ends at the same limit."""
    script = """
        import json, sys, threading, trio
        from engine.test_own_stack import overflow
        answers = []
        for size in (128 * 1024, 0):
            threading.stack_size(size)
            thread = threading.Thread(target=lambda: answers.append(trio.run(overflow)))
            thread.start()
            thread.join()
        print(json.dumps(answers))
    """
    assert json.loads(run_python(script)) == [[0, "StackOverflowError"], [1, "StackOverflowError"]]


@pytest.mark.parametrize("limit", ["STACK", "AS"])
def test_the_main_threads_stack_need_not_grow_under_a_guest(limit: str) -> None:
    """What it grew to when it was first looked at is enough, or no guest runs there."""
    script = f"""
        import json, trio
        from engine.test_own_stack import overflow_within
        print(json.dumps(trio.run(overflow_within, {limit!r})))
    """
    answer = json.loads(run_python(script))
    assert answer == "StackOverflowError" or (limit, answer) == ("AS", "CodeMemoryError")


async def overflow_within(limit: str) -> str:
    """How a call ends that takes all of the stack it gets, where the process gets no more."""
    async with quiet_cache() as cache:
        tiny = await cache.register("tiny", wat('(module (func (export "tiny")))'), args=())
        f = await cache.register("f", wat('(module (func $f (export "f") call $f))'), args=())
        await tiny.call()
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        most = 256 * 1024 if limit == "STACK" else in_use + 64 * 1024
        kind = getattr(resource, f"RLIMIT_{limit}")
        before = resource.getrlimit(kind)
        resource.setrlimit(kind, (most, before[1]))
        try:
            await f.call()
        except WasmCacheError as error:
            return type(error).__name__
        finally:
            resource.setrlimit(kind, before)
    raise AssertionError("it has returned")


def test_a_stack_that_can_not_grow_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end can't be read, which is an error of a system call and not a fault."""
    assert own_stack._is_readable(own_stack._HERE.low)
    assert not own_stack._is_readable(mmap.PAGESIZE)
    monkeypatch.setattr(own_stack, "_is_readable", lambda _: False)
    monkeypatch.setattr(own_stack, "_HERE", own_stack._Stack())
    assert own_stack.room() == 0


@pytest.mark.parametrize("compiler", ["optimizing", "baseline"])
def test_compilers_survive_threads_with_small_stacks(compiler: str) -> None:
    """Also that of a batch's driver, and the one that makes a module of text."""
    script = f"""
        import json, threading, trio
        from engine.test_own_stack import compile_and_map
        threading.stack_size(96 * 1024)
        print(json.dumps([trio.run(compile_and_map, {compiler!r}), threading.stack_size()]))
    """
    assert json.loads(run_python(script)) == [[101, 202], 96 * 1024]


async def compile_and_map(compiler: CompilerName) -> object:
    """The results of a batch."""
    async with quiet_cache(compiler=compiler) as cache:
        f = await register(cache)
        async with f.acquire() as lease:
            return [await lease.call(SHORT), *await lease.map([[SHORT]])]


async def test_a_thread_for_a_compiler_that_can_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error of memory, for which idle instances are evicted; there are none here."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(own_stack, "ENOUGH", 2**60)
    async with quiet_cache() as cache:
        f = await register(cache)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(NoMemoryError, match="for the stack of a compiler"):
                own_stack.on_usual_stack(int)
        assert await f.call(SHORT) == 101
    assert threading.stack_size() == 0


def test_what_a_compiler_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there had been no thread."""
    monkeypatch.setattr(own_stack, "ENOUGH", 2**60)
    assert own_stack.on_usual_stack(threading.get_ident) != threading.get_ident()
    with pytest.raises(ValueError, match="invalid literal"):
        own_stack.on_usual_stack(int, "no number")


async def overflow() -> tuple[int, str]:
    """How often a call ran at once, and how it ended, that takes all of the stack it gets."""
    async with quiet_cache() as cache:
        f = await cache.register("f", wat('(module (func $f (export "f") call $f))'), args=())
        with counted_native_calls() as calls:
            try:
                await f.call()
            except StackOverflowError as error:
                return calls[AT_ONCE], type(error).__name__
    raise AssertionError("it has returned")
