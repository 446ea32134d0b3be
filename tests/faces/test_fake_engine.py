"""The fake engine does what it is asked to: errors, time, memory, and nothing else."""

from __future__ import annotations

import math
import re
import tracemalloc
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import trio
from counting import no_new_threads
from kits import ListLogger, add
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, MiB, TrapError
from trio_wasmcache.testing import FakeEngine, check_invariants, open_fake_cache, snapshot

# The fuel of a call that ends in its first slice, and of one that does not.
FUELS = {"first slice": 100, "later slice": 250_000}


def raising(error: BaseException) -> Callable[..., int]:
    def run(*_: object) -> int:
        raise error

    return run


# -- errors


@pytest.mark.parametrize("fuel", FUELS.values(), ids=FUELS)
@pytest.mark.parametrize(
    "error",
    [
        ValueError("v"),
        TypeError("t"),
        OverflowError("o"),
        KeyError("k"),
        TrapError("t", code="unreachable"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_call_raises_what_the_fake_raises(error: Exception, fuel: int) -> None:
    """The very object, in whatever slice; the instance is dropped, as after any failed call."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:
        await add(cache, "f", engine.module(raising(error), fuel=fuel))
        async with cache.acquire("f", ("i64",)) as lease:
            with pytest.raises(type(error)) as caught:
                await lease.call(1)
            assert caught.value is error
            assert lease.fuel_consumed == fuel
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(1)
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)


@pytest.mark.parametrize("kind", [ValueError, TypeError, ZeroDivisionError])
@pytest.mark.parametrize("fuel", FUELS.values(), ids=FUELS)
async def test_a_batch_raises_what_the_fake_raises(kind: type[Exception], fuel: int) -> None:
    """With a note that names the row."""
    engine, error = FakeEngine(), kind("of row 2")

    def run(value: int) -> int:
        if value == 30:
            raise error
        return value

    async with open_fake_cache(engine=engine) as cache:
        await add(cache, "f", engine.module(run, fuel=fuel))
        async with cache.acquire("f", ("i64",)) as lease:
            with pytest.raises(kind) as caught:
                await lease.map([array("q", [10, 20, 30, 40])])
        assert caught.value is error
        assert caught.value.__notes__ == ["in row 2 of a batch of f(i64)"]
        check_invariants(cache)


@pytest.mark.parametrize(
    ("results", "returns", "made", "message"),
    [
        (("i64",), "i64", "text", "returned 'text': i64 takes an int"),
        (("i64",), "i64", None, "returned None: i64 takes an int"),
        (("f64",), "f64", "1", "returned '1': f64 takes a float"),
        (("i32",), "i32", 1 << 32, "returned 4294967296: i32 has 32 bits"),
        (("i64", "i64"), ("i64", "i64"), 1, "returned 1: its 2 results, i64, i64, take a tuple"),
        (("i64", "i64"), ("i64", "i64"), (1,), r"returned \(1,\): its 2 results"),
    ],
)
async def test_a_result_of_another_type_is_named(
    results: tuple[str, ...], returns: Any, made: object, message: str
) -> None:
    """A fake that returns what no wasm function can is a mistake of the test."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:
        wasm = engine.module(lambda _: made, params=("i64",), results=results)
        function = await add(cache, "f", wasm, returns=returns)
        with pytest.raises((TypeError, OverflowError), match=f"the fake of export 'run' {message}"):
            await function.call(1)


async def test_results_are_wasms() -> None:
    """Unsigned numbers, f32's precision, and no result at all, in calls and batches alike."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:

        async def both(result: str, returns: str, made: object) -> tuple[Any, Any]:
            wasm = engine.module(lambda _: made, results=(result,))
            function = await add(cache, "f", wasm, returns=returns, replace=True)
            async with function.acquire() as lease:
                return await lease.call(1), list(await lease.map([[1, 2]]))

        assert await both("i32", "u32", 3_000_000_000) == (3_000_000_000, [3_000_000_000] * 2)
        assert await both("i64", "u64", 2**64 - 1) == (2**64 - 1, [2**64 - 1] * 2)
        rounded = 0.10000000149011612
        assert await both("f32", "f32", 0.1) == (rounded, [rounded] * 2)
        nothing = await add(cache, "g", engine.module(lambda _: 5, results=()), returns=None)
        assert await nothing.call(1) is None


# -- time


async def test_a_call_takes_its_seconds(autojump_clock: MockClock) -> None:
    """On Trio's clock, without a thread; others go on meanwhile, and no fuel is burnt for it."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:
        slow = await add(cache, "slow", engine.module(lambda x: x + 1, seconds=30), concurrency=2)
        with no_new_threads():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow.call, 1)
                async with slow.acquire() as lease:
                    assert await lease.call(1) == 2
                    assert trio.current_time() == 30
                    assert lease.fuel_consumed == 100
                    assert await lease.call(2) == 3
        assert trio.current_time() == 60
        assert cache.stats().per_function["slow(i64)"].run.total == 90_000_000
        assert snapshot(cache).threads.begun == 0
        check_invariants(cache)


async def test_a_call_that_takes_too_long_is_cancelled(autojump_clock: MockClock) -> None:
    """At its deadline; the instance is dropped, and the next call gets another."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:
        slow = await add(cache, "slow", engine.module(seconds=30))
        with pytest.raises(trio.TooSlowError), trio.fail_after(10):
            await slow.call(1)
        assert trio.current_time() == 10
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)
        with trio.fail_after(31):
            assert await slow.call(1) == 1
        endless = await add(cache, "endless", engine.module(seconds=math.inf))
        with trio.move_on_after(100) as scope:
            await endless.call(1)
        assert scope.cancelled_caught
        check_invariants(cache)


async def test_each_row_of_a_batch_takes_its_seconds(autojump_clock: MockClock) -> None:
    """A deadline ends the batch in the middle of a row."""
    engine = FakeEngine()
    done: list[int] = []

    def run(value: int) -> int:
        done.append(value)
        return value

    async with open_fake_cache(engine=engine) as cache:
        slow = await add(cache, "slow", engine.module(run, seconds=10))
        async with slow.acquire() as lease:
            assert list(await lease.map([array("q", [1, 2, 3])])) == [1, 2, 3]
            assert trio.current_time() == 30
            with trio.move_on_after(25) as scope:
                await lease.map([array("q", [4, 5, 6])])
            assert scope.cancelled_caught
        assert trio.current_time() == 55
        assert done == [1, 2, 3, 4, 5]
        check_invariants(cache)


async def test_seconds_in_a_thread(autojump_clock: MockClock) -> None:
    """A call that goes on in a thread waits outside of it; the clock stands while it runs."""
    engine = FakeEngine()
    config = CacheConfig(offload_after=1, yield_fuel=1000)
    async with open_fake_cache(config, engine=engine) as cache:
        slow = await add(cache, "slow", engine.module(fuel=50_000, seconds=30))
        async with slow.acquire() as lease:
            with trio.fail_after(31):
                assert await lease.call(1) == 1
            assert (trio.current_time(), lease.fuel_consumed) == (30, 50_000)
            assert snapshot(cache).threads.begun
            with trio.move_on_after(10) as scope:
                await lease.call(1)
        assert scope.cancelled_caught
        check_invariants(cache)


async def test_closing_ends_a_call_that_takes_time(autojump_clock: MockClock) -> None:
    """At once, as it would a guest that sleeps."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache, trio.open_nursery() as nursery:
        await add(cache, "slow", engine.module(seconds=30))

        async def call() -> None:
            with pytest.raises(trio.ClosedResourceError):
                async with group.acquire("slow", ("i64",)) as lease:
                    await lease.call(1)

        async with cache.scheduling_group("side", capacity=1) as group:
            nursery.start_soon(call)
            await wait_all_tasks_blocked()
        assert trio.current_time() == 0


async def test_a_start_takes_its_seconds(autojump_clock: MockClock) -> None:
    """A deadline ends an acquire whose instance takes too long to start."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:
        slow = await add(cache, "slow", engine.module(start_seconds=3))
        with trio.move_on_after(2) as scope:
            await slow.call(1)
        assert scope.cancelled_caught
        check_invariants(cache)
        assert await slow.call(1) == 1
        assert trio.current_time() == 5
        assert await slow.call(1) == 1  # a hit
        assert trio.current_time() == 5


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            {"params": ("str",)},
            ValueError,
            """params must be wasm types, such as "i64", got 'str'""",
        ),
        ({"results": "i64"}, TypeError, "results must be a sequence of types"),
        ({"fuel": -1}, ValueError, "fuel must be 0 or more, got -1"),
        ({"seconds": "3"}, TypeError, "seconds must be a number, got '3'"),
        ({"code_size": -5}, ValueError, "code_size must be at least 0, got -5"),
        ({"memory_pages": -1}, ValueError, "memory_pages must be at least 0, got -1"),
        ({"memory_pages": 1 << 17}, ValueError, "memory_pages must be at most 65536, got 131072"),
        ({"memory_pages": 2, "max_pages": 1}, ValueError, "memory_pages must be at most 1, got 2"),
        ({"host_imports": ["app"]}, TypeError, "host_imports must be pairs such as"),
    ],
)
def test_a_bad_parameter_of_a_fake_is_named(
    given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """When the fake is made, and not by an error from the middle of a test."""
    with pytest.raises(kind, match=re.escape(message)):
        FakeEngine().module(**given)


@pytest.mark.parametrize("fail_at", [0, "compile"])
def test_a_step_that_fails_is_a_number(fail_at: Any) -> None:
    """From 1: with 0, none would fail, and the test would prove nothing."""
    with pytest.raises((TypeError, ValueError), match="fail_at must be"):
        FakeEngine(fail_at=fail_at)


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_seconds_are_no_less_than_zero(seconds: float) -> None:
    """Both kinds of seconds."""
    with pytest.raises(ValueError, match="seconds must be 0 or more, got"):
        FakeEngine().module(seconds=seconds)
    with pytest.raises(ValueError, match="start_seconds must be 0 or more, got"):
        FakeEngine().module(start_seconds=seconds)


# -- memory


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_a_large_memory_takes_none_of_the_process(isolation: str) -> None:
    """64 MiB and as much again by growing: what is written to is all that is allocated."""
    engine = FakeEngine()
    size = 64 * MiB
    config = CacheConfig(
        memory_limit=2 * size, max_instance_size=3 * size, max_size=4 * size, offload_after=None
    )
    async with open_fake_cache(config, engine=engine) as cache:
        wasm = engine.module(memory_pages=1024, grow_pages=8)
        large = await add(cache, "large", wasm, isolation=isolation)
        await large.call(1)  # what is made once has been made
        tracemalloc.start()
        try:
            for _ in range(10):
                async with large.acquire() as lease:
                    assert lease.memory.size >= size
                    await lease.call(1)
                    lease.memory.write(size - 2, b"ends")
                    assert lease.memory.read(size - 3, 6) == b"\0ends\0"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MiB
        check_invariants(cache)


# -- the log


async def test_nothing_is_logged_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by structlog nor otherwise; with a logger, at once."""
    engine = FakeEngine()
    with capture_logs() as events:
        async with open_fake_cache(engine=engine) as cache:
            await (await add(cache, "f", engine.module())).call(1)
            assert (cache.stats().log_lost, cache.stats().log_failures) == (0, 0)
    assert events == []
    assert capsys.readouterr() == ("", "")
    logger = ListLogger()
    async with open_fake_cache(engine=FakeEngine(), logger=logger):
        assert logger.lines[0][1] == "wasmcache.opened"
    assert logger.lines[-1][1] == "wasmcache.closed"
