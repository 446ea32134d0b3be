"""Calls of real guests, inline and in threads: what each may do, and what it can't do to others."""

from __future__ import annotations

from typing import Any

import guests
import pytest
import trio
from counting import passes
from kits import PAGE, WasmtimeKit, add
from peeking import in_call, job_of

from trio_wasmcache import (
    CacheConfig,
    ExitError,
    FuelExhaustedError,
    Function,
    GuestError,
    InstanceCache,
    Lease,
    LoadError,
    MiB,
    StackOverflowError,
    TrapError,
)
from trio_wasmcache.testing import check_invariants, snapshot


@pytest.fixture(params=[None, 0, 1], ids=["inline", "thread", "both"])
def offload(request: pytest.FixtureRequest) -> Any:
    """`offload_after`: never, at once, or after one slice more."""
    return request.param


def config(offload: int | None, **more: Any) -> CacheConfig:
    """Small slices, so that what is long has many."""
    return CacheConfig(**{"offload_after": offload, "yield_fuel": 10_000, "max_threads": 2, **more})


async def put(cache: InstanceCache, name: str, text: str, **more: Any) -> Function:
    """Register a guest."""
    function: Function = await add(cache, name, guests.binary(text), **more)
    return function


async def test_an_endless_loop_can_be_cancelled_and_only_that(
    real: WasmtimeKit, offload: int | None
) -> None:
    """Its instance is dropped; a hundred neighbours meanwhile all return right results."""
    async with real.open(config(offload)) as cache:
        endless = await put(cache, "endless", guests.ENDLESS)
        fib = await put(cache, "fib", guests.FIB, concurrency=4)
        results: list[int] = []

        async def neighbour() -> None:
            results.append(await fib.call(15))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def cancel_in_the_end() -> None:
                    async with trio.open_nursery() as neighbours:
                        for _ in range(100):
                            neighbours.start_soon(neighbour)
                    scope.cancel()

                nursery.start_soon(cancel_in_the_end)
                await endless.call(1)
        assert scope.cancelled_caught
        assert results == [610] * 100
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)


async def test_many_endless_loops_at_once(real: WasmtimeKit, offload: int | None) -> None:
    """More than there are threads; all end when cancelled, and the next call works."""
    async with real.open(config(offload)) as cache:
        endless = await put(cache, "endless", guests.ENDLESS, concurrency=5)
        fib = await put(cache, "fib", guests.FIB)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(endless.call, 1)
            assert await fib.call(20) == 6765
            assert cache.stats().running_instances == 5
            nursery.cancel_scope.cancel()
        assert cache.stats().evictions["corrupted"] == 5
        check_invariants(cache)


async def test_fuel_is_for_each_call_however_hot(real: WasmtimeKit) -> None:
    """A thousand calls of one instance, each of which needs most of what a call may burn."""
    async with real.open(CacheConfig(total_fuel=20_000)) as cache:
        fib = await put(cache, "fib", guests.FIB)
        async with fib.acquire() as lease:
            for _ in range(1000):
                assert await lease.call(13) == 233
            assert lease.fuel_consumed is not None
            assert 5_000 < lease.fuel_consumed < 20_000
        with pytest.raises(FuelExhaustedError):
            await fib.call(20)


async def test_all_fuel_burnt(real: WasmtimeKit, offload: int | None) -> None:
    """The error names function, arguments and fuel; `fuel_consumed` is all there was."""
    async with real.open(config(offload, total_fuel=55_000)) as cache:
        endless = await put(cache, "endless", guests.ENDLESS)
        async with endless.acquire() as lease:
            with pytest.raises(FuelExhaustedError, match=r"endless\(i64\) called with \(7\)"):
                await lease.call(7)
            assert lease.fuel_consumed == 55_000
        check_invariants(cache)


async def test_fuel_consumed_adds_up_over_slices(real: WasmtimeKit, offload: int | None) -> None:
    """However it was sliced and wherever it ran, the same call burns the same."""
    async with real.open(CacheConfig(yield_fuel=10**9)) as cache:
        count = await put(cache, "count", guests.COUNT)
        async with count.acquire() as lease:
            assert await lease.call(20_000) == 20_000
            in_one_go = lease.fuel_consumed
    async with real.open(config(offload)) as cache:
        count = await put(cache, "count", guests.COUNT)
        async with count.acquire() as lease:
            assert await lease.call(20_000) == 20_000
            assert lease.fuel_consumed == in_one_go


async def test_endless_recursion(real: WasmtimeKit, offload: int | None) -> None:
    """`StackOverflowError` with a backtrace that is cut short; the process lives on."""
    async with real.open(config(offload)) as cache:
        recursion = await put(cache, "recursion", guests.RECURSION)
        for _ in range(3):
            with pytest.raises(StackOverflowError, match=r"recursion\(i64\)") as caught:
                await recursion.call(0)
            assert caught.value.backtrace[0] == "deeper"  # its place is not known
            assert len(caught.value.backtrace) < 50
        check_invariants(cache)


async def test_a_trap_tells_what_and_where(real: WasmtimeKit) -> None:
    """Code, function names innermost first, and the arguments of the call."""
    async with real.open() as cache:
        divide = await put(cache, "divide", guests.DIVISION, args=("i64", "i64"))
        assert await divide.call(7, -2) == -3
        with pytest.raises(TrapError) as caught:
            await divide.call(7, 0)
        error = caught.value
        assert isinstance(error, GuestError)
        assert (error.code, error.function) == ("integer divide by zero", "divide")
        assert error.values == (7, 0)
        assert [line.split()[0] for line in error.backtrace] == ["divide", "outer"]
        assert "divide(i64, i64) called with (7, 0)" in str(error)
        with pytest.raises(TrapError, match="integer overflow"):
            await divide.call(-(2**63), -1)
        check_invariants(cache)


async def test_a_failed_call_in_its_first_slice_counts_its_fuel(real: WasmtimeKit) -> None:
    """Failed ones included, as its description says."""
    async with real.open() as cache:
        divide = await put(cache, "divide", guests.DIVISION, args=("i64", "i64"))
        async with divide.acquire() as lease:
            with pytest.raises(TrapError):
                await lease.call(1, 0)
            assert lease.fuel_consumed
        assert cache.stats().calls == 1
        assert snapshot(cache).group("main").virtual_time > 0


async def test_memory_bomb(real: WasmtimeKit, offload: int | None) -> None:
    """It gets `memory_limit` and no more; the instance, being too large, is not kept."""
    limits = config(offload, memory_limit=2 * MiB, max_instance_size=1 * MiB)
    async with real.open(limits) as cache:
        bomb = await put(cache, "bomb", guests.MEMORY_BOMB)
        for _ in range(2):
            assert await bomb.call(1) == 32
        assert cache.stats().evictions["oversized"] == 2
        check_invariants(cache)


async def test_memories_bomb(real: WasmtimeKit) -> None:
    """The limit is for all memories together, hidden ones too."""
    limits = CacheConfig(memory_limit=2 * MiB, max_instance_size=4 * MiB)
    async with real.open(limits) as cache:
        bomb = await put(cache, "bomb", guests.MEMORIES_BOMB)
        got = await bomb.call(1)
        assert 3 < got <= 32
        assert cache.stats().total_size == (got + 1) * PAGE


async def test_table_bomb(real: WasmtimeKit, offload: int | None) -> None:
    """It gets `table_limit` elements and no more, and each counts eight bytes."""
    async with real.open(config(offload, table_limit=5000)) as cache:
        bomb = await put(cache, "bomb", guests.TABLE_BOMB)
        got = await bomb.call(1)
        assert 4900 < got <= 5000
        assert cache.stats().total_size == PAGE + 8 * got
        check_invariants(cache)


async def test_filling_all_memory(real: WasmtimeKit, offload: int | None) -> None:
    """One instruction over all there is: it works, and the next call too."""
    async with real.open(config(offload, memory_limit=4 * MiB)) as cache:
        fill = await put(cache, "fill", guests.FILL)
        async with fill.acquire() as lease:
            assert await lease.call(0x5A) == 0x5A
            assert lease.memory.size == 4 * MiB
            assert lease.memory.read(4 * MiB - 1, 1) == b"\x5a"
            assert await lease.call(1) == 1


async def test_proc_exit(real: WasmtimeKit, offload: int | None) -> None:
    """An `ExitError` with the status, zero included; it ends that call and nothing else."""
    async with real.open(config(offload)) as cache:
        leave = await put(cache, "leave", guests.EXIT)
        for status in (0, 7):
            with pytest.raises(ExitError, match=rf"proc_exit\({status}\)") as caught:
                await leave.call(status)
            assert caught.value.status == status
            assert caught.value.values == (status,)
        assert cache.stats().evictions["corrupted"] == 2
        check_invariants(cache)


async def test_a_start_function_that_loops(real: WasmtimeKit, offload: int | None) -> None:
    """It is stopped when its fuel is burnt, or when the acquire is cancelled."""
    async with real.open(config(offload, total_fuel=100_000)) as cache:
        begin = await put(cache, "begin", guests.START_LOOP)
        with pytest.raises(LoadError, match=r"begin\(i64\).*start function") as caught:
            await begin.call(1)
        assert isinstance(caught.value.__cause__, FuelExhaustedError)
        check_invariants(cache)
        cache.resize(total_fuel=10**15)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin.call, 1)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert cache.stats().running_instances == 1
            nursery.cancel_scope.cancel()
        assert cache.stats().entries == 0
        assert cache.stats().misses == 0
        check_invariants(cache)


async def test_a_start_function_that_traps(real: WasmtimeKit) -> None:
    """`LoadError`, caused by what the guest did."""
    async with real.open() as cache:
        begin = await put(cache, "begin", guests.START_TRAP)
        with pytest.raises(LoadError) as caught:
            await begin.call(1)
        assert isinstance(caught.value.__cause__, TrapError)
        check_invariants(cache)


async def test_ten_thousand_short_calls_let_others_run(real: WasmtimeKit) -> None:
    """None of them takes a whole slice, but another task runs many times meanwhile."""
    async with real.open() as cache:
        fib = await put(cache, "fib", guests.FIB)

        async def calls() -> None:
            async with fib.acquire() as lease:
                for _ in range(10_000):
                    await lease.call(3)

        assert await passes(calls) >= 10
        assert cache.stats().calls == 10_000


async def test_a_long_inline_call_lets_others_run_after_each_slice(real: WasmtimeKit) -> None:
    """About as many times as it has slices."""
    async with real.open(config(None)) as cache:
        count = await put(cache, "count", guests.COUNT)
        fuel = 0

        async def call() -> None:
            nonlocal fuel
            async with count.acquire() as lease:
                await lease.call(50_000)
                assert lease.fuel_consumed is not None
                fuel = lease.fuel_consumed

        assert await passes(call) >= fuel // 10_000 - 2


async def test_two_heavy_calls_in_threads_both_finish(real: WasmtimeKit) -> None:
    """And four, with two threads: they take turns."""
    async with real.open(config(0)) as cache:
        count = await put(cache, "count", guests.COUNT, concurrency=4)
        results: list[int] = []

        async def call(number: int) -> None:
            results.append(await count.call(number))

        async with trio.open_nursery() as nursery:
            for number in range(400_000, 400_004):
                nursery.start_soon(call, number)
        assert sorted(results) == list(range(400_000, 400_004))
        assert snapshot(cache).threads.taken == 0
        assert snapshot(cache).loop.taken == 0


async def test_waiting_for_a_thread_can_be_cancelled(real: WasmtimeKit) -> None:
    """With the one thread taken, the second call leaves the line; the first goes on."""
    async with real.open(config(0, max_threads=1)) as cache:
        endless = await put(cache, "endless", guests.ENDLESS, concurrency=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(endless.call, 1)
            while snapshot(cache).threads.taken == 0:
                await trio.lowlevel.checkpoint()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as second:
                    second.start_soon(endless.call, 2)
                    while not snapshot(cache).threads.waiting:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            assert scope.cancelled_caught
            assert not snapshot(cache).threads.waiting
            assert cache.stats().running_instances == 1
            nursery.cancel_scope.cancel()
        assert snapshot(cache).threads.taken == 0
        check_invariants(cache)


async def test_a_call_that_ends_as_it_is_cancelled_returns_its_result(real: WasmtimeKit) -> None:
    """It is in its last slice, in a thread, and a slice is not interrupted."""
    async with real.open(config(0, yield_fuel=1_000_000)) as cache:
        count = await put(cache, "count", guests.COUNT)
        scope = trio.CancelScope()
        results: list[int] = []

        async def call(lease: Lease) -> None:
            with scope:
                results.append(await lease.call(200_000))

        async with count.acquire() as lease, trio.open_nursery() as nursery:
            await lease.call(1)  # the first call may begin anew after its first slice
            nursery.start_soon(call, lease)
            while (job := job_of(lease)) is None or not job.in_thread:
                await trio.lowlevel.checkpoint()
            scope.cancel()
        assert results == [200_000]
        assert not scope.cancelled_caught
        assert cache.stats().evictions["corrupted"] == 0


async def test_a_long_call_resumes_few_coroutines(real: WasmtimeKit) -> None:
    """Each slice goes through all that are between the task and the wait for a turn."""
    async with real.open(config(None)) as cache:
        count = await put(cache, "count", guests.COUNT)
        async with trio.open_nursery() as nursery, count.acquire() as lease:
            nursery.start_soon(lease.call, 10**9)
            while not in_call(lease):
                await trio.lowlevel.checkpoint()
            (task,) = nursery.child_tasks
            ours = [
                frame.f_code.co_name
                for frame, _ in task.iter_await_frames()
                if "trio_wasmcache" in frame.f_code.co_filename
            ]
            assert ours in (["call", "finish", "drive", wait] for wait in ("take", "keep"))
            nursery.cancel_scope.cancel()
