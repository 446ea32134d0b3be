"""Semantics 18 on the real engine: the cache closes, and calls are everywhere."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import guests
import pytest
import trio
from kits import ListLogger, WasmtimeKit, add
from peeking import job_of
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    DeadlockError,
    Function,
    FuncType,
    Guest,
    HostFunction,
    InstanceCache,
    Invoke,
    Lease,
    MemoryLimitError,
    SchedulingGroup,
    current_lease,
)
from trio_wasmcache._abi.base import Step
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance
from trio_wasmcache._runtime.metered import MeteredGuest
from trio_wasmcache.testing import check_invariants, snapshot

FOREVER = 10**15


class Told:
    """Who was told that the cache is closed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def told(self, name: str, use: Callable[..., Awaitable[object]], *values: int) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await use(*values)
        self.names.append(name)


async def put(cache: InstanceCache, name: str, text: str, **more: object) -> Function:
    function: Function = await add(cache, name, guests.binary(text), **more)
    return function


async def test_everybody_is_told_and_everything_is_closed(real: WasmtimeKit) -> None:
    """Calls inline, in a thread, waiting for one, in a host function; a waiter; a slow start."""
    told = Told()
    finish = trio.Event()

    async def ask(value: int) -> int:
        await finish.wait()
        return value

    limits = CacheConfig(offload_after=1, total_fuel=FOREVER, yield_fuel=10_000, max_threads=1)
    async with trio.open_nursery() as nursery:
        async with real.open(limits) as cache:
            endless = await put(cache, "endless", guests.ENDLESS, concurrency=2)
            slow = await put(cache, "slow", guests.START_LOOP)
            hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
            asks = await put(cache, "asks", guests.ONLY_ASKS, imports=hosts)
            nursery.start_soon(told.told, "in a host function", asks.call, 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(told.told, "queued behind it", asks.call, 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(told.told, "in the thread", endless.call, 1)
            while snapshot(cache).threads.taken == 0:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(told.told, "waiting for the thread", endless.call, 1)
            while not snapshot(cache).threads.waiting:
                await trio.lowlevel.checkpoint()
            cache.resize(offload_after=None)
            nursery.start_soon(told.told, "loading", slow.call, 1)
            async with cache.scheduling_group("other", capacity=1) as group:
                inline = group.acquire("endless", ("i64",))

                async def run_inline() -> None:
                    async with inline as lease:
                        await lease.call(1)

                nursery.start_soon(told.told, "inline", run_inline)
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
                assert cache.stats().running_instances == 5
                assert cache.stats().waiting == 1
                check_invariants(cache)
                await parts_of(cache).close()
        assert "in a host function" not in told.names
        check_invariants(cache)
        finish.set()
    assert sorted(told.names) == sorted(
        [
            *("in a host function", "queued behind it", "in the thread"),
            *("waiting for the thread", "loading", "inline"),
        ]
    )
    check_invariants(cache)


@pytest.mark.parametrize("offload", [None, 0], ids=["inline", "thread"])
async def test_a_start_function_that_never_ends(real: WasmtimeKit, offload: int | None) -> None:
    """Its half-made instance is closed, wherever it ran."""
    told = Told()
    limits = CacheConfig(offload_after=offload, total_fuel=FOREVER, yield_fuel=10_000)
    async with trio.open_nursery() as nursery:
        async with real.open(limits) as cache:
            slow = await put(cache, "slow", guests.START_LOOP)
            nursery.start_soon(told.told, "loading", slow.call, 1)
            for _ in range(30):
                await trio.lowlevel.checkpoint()
            assert cache.stats().running_instances == 1
    assert told.names == ["loading"]
    check_invariants(cache)


@pytest.mark.parametrize("offload", [None, 0], ids=["inline", "thread"])
async def test_a_call_in_a_group_that_closes(real: WasmtimeKit, offload: int | None) -> None:
    """Leaving the group waits for the thread, and for nothing else; other groups go on."""
    told = Told()
    limits = CacheConfig(offload_after=offload, total_fuel=FOREVER, yield_fuel=10_000)
    async with real.open(limits) as cache, trio.open_nursery() as nursery:
        endless = await put(cache, "endless", guests.ENDLESS)
        fib = await put(cache, "fib", guests.FIB)

        async def from_outside() -> None:
            async with group.acquire("endless", ("i64",)) as lease:
                await lease.call(1)

        async with cache.scheduling_group("g", capacity=1) as group:
            nursery.start_soon(told.told, "outside", from_outside)
            while cache.stats().calls == 0:
                await trio.lowlevel.checkpoint()
            for _ in range(10):
                await trio.lowlevel.checkpoint()
        assert cache.stats().running_instances == 0
        check_invariants(cache)
        assert await fib.call(10) == 55
        with pytest.raises(trio.ClosedResourceError, match="'g' is closed"):
            await from_outside()
    assert told.names == ["outside"]
    assert endless.name == "endless"


async def test_memory_after_the_cache_was_closed(real: WasmtimeKit) -> None:
    """A host function that is still running finds the guest's memory gone, and no accident."""
    told = Told()
    asked, closed = trio.Event(), trio.Event()
    seen: list[str] = []

    async def ask(value: int) -> int:
        memory = current_lease().memory
        assert memory.read(0, 1) == b"\0"
        asked.set()
        await closed.wait()
        for use in (lambda: memory.read(0, 1), lambda: memory.write(0, b"x"), lambda: memory.size):
            try:
                use()
            except trio.ClosedResourceError:
                seen.append("closed")
        return value

    async with trio.open_nursery() as nursery:
        async with real.open() as cache:
            hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
            asks = await put(cache, "asks", guests.BUSY_ASKER, imports=hosts)
            nursery.start_soon(told.told, "asks", asks.call, 1)
            await asked.wait()
        closed.set()
    assert seen == ["closed"] * 3
    assert told.names == ["asks"]


async def test_a_wasi_sleep_that_outlives_the_cache(
    real: WasmtimeKit, mock_clock: trio.testing.MockClock
) -> None:
    """It ends with an error, at once, and does not write its event where memory was."""
    told = Told()
    async with trio.open_nursery() as nursery:
        async with real.open() as cache:
            sleep = await put(cache, "sleep", guests.SLEEP)
            assert await sleep.call(0) == 0
            nursery.start_soon(told.told, "sleep", sleep.call, 2 * 10**9)
            await wait_all_tasks_blocked()
            assert told.names == []
    assert told.names == ["sleep"]


async def test_random_bytes_that_outlive_the_cache(real: WasmtimeKit) -> None:
    """What is left of them is not written where memory was, and the error says why."""
    told = Told()
    async with trio.open_nursery() as nursery:
        async with real.open() as cache:
            random = await put(cache, "random", guests.RANDOM)
            nursery.start_soon(told.told, "random", random.call, 100)
            while cache.stats().calls == 0:
                await trio.lowlevel.checkpoint()
    assert told.names == ["random"]


async def test_a_group_that_is_closing_when_the_cache_is(
    real: WasmtimeKit, log: ListLogger
) -> None:
    """Its end is told once, though both wait for the same thread."""
    told, leave = Told(), trio.Event()
    # A slice takes some milliseconds, so that the thread is still in there when the cache closes.
    limits = CacheConfig(offload_after=0, total_fuel=FOREVER, yield_fuel=10_000_000)
    async with trio.open_nursery() as nursery:
        async with real.open(limits, logger=log) as cache:
            await put(cache, "endless", guests.ENDLESS)

            async def block(task_status: trio.TaskStatus[SchedulingGroup]) -> None:
                async with cache.scheduling_group("g", capacity=1) as group:
                    task_status.started(group)
                    await leave.wait()

            async def from_outside() -> None:
                async with group.acquire("endless", ("i64",)) as lease:
                    await lease.call(1)

            group = await nursery.start(block)
            nursery.start_soon(told.told, "outside", from_outside)
            while snapshot(cache).threads.taken == 0:
                await trio.lowlevel.checkpoint()
            leave.set()
            while not group._state.record.closed:
                await trio.lowlevel.checkpoint()
            assert cache.stats().running_instances == 1
        assert told.names == ["outside"]
    assert sorted(fields["group"] for fields in log.fields("group_closed")) == ["g", "main"]


async def test_a_registration_that_is_still_reading(real: WasmtimeKit, tmp_path: Path) -> None:
    """Its file is read to the end after the cache was closed: it is told so."""
    told = Told()
    fifo = tmp_path / "module.wasm"
    os.mkfifo(fifo)
    async with trio.open_nursery() as nursery:
        async with real.open() as cache:
            nursery.start_soon(told.told, "register", lambda: add(cache, "f", fifo))
            await wait_all_tasks_blocked()
        await trio.to_thread.run_sync(fifo.write_bytes, guests.binary(guests.FIB))
    assert told.names == ["register"]


@pytest.mark.parametrize("how", ["in a thread", "in a host function"])
async def test_a_block_that_ends_before_its_call_holds_nothing(real: WasmtimeKit, how: str) -> None:
    """Another task has the call under way: whoever left the block can wait for the instance."""
    told, finish = Told(), trio.Event()

    async def ask(value: int) -> int:
        await finish.wait()
        return value

    limits = CacheConfig(offload_after=0, total_fuel=FOREVER, yield_fuel=10_000)
    async with real.open(limits) as cache, trio.open_nursery() as nursery:
        if how == "in a thread":
            function = await put(cache, "endless", guests.ENDLESS)
        else:
            hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
            function = await put(cache, "asks", guests.ONLY_ASKS, imports=hosts)
        async with function.acquire() as lease:
            nursery.start_soon(told.told, how, lease.call, 1)
            await wait_all_tasks_blocked()
        check_invariants(cache)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(_let_go, cache, finish)
            async with function.acquire():  # not a deadlock
                assert told.names == [how]
        check_invariants(cache)


async def test_a_caller_whose_lease_ends_as_it_is_cancelled(real: WasmtimeKit) -> None:
    """It was about to run, so nothing told it of the cancellation yet: it comes first."""
    finish, scope = trio.Event(), trio.CancelScope()

    async def ask(value: int) -> int:
        await finish.wait()
        return value

    async def call(lease: Lease) -> None:
        with scope:
            await lease.call(1)

    async with real.open(CacheConfig()) as cache, trio.open_nursery() as nursery:
        hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        function = await put(cache, "asks", guests.ONLY_ASKS, imports=hosts)
        async with function.acquire() as lease:
            nursery.start_soon(call, lease)
            await wait_all_tasks_blocked()
            finish.set()
            scope.cancel()
    assert scope.cancelled_caught


async def _let_go(cache: InstanceCache, finish: trio.Event) -> None:
    check_invariants(cache)
    finish.set()


async def test_a_caller_whose_lease_has_ended_still_can_deadlock(real: WasmtimeKit) -> None:
    """Its host function waits for the very instance that it keeps."""
    left = trio.Event()

    async def ask(value: int) -> int:
        await left.wait()
        with pytest.raises(DeadlockError):
            await function.call(value)
        return value

    async with real.open(CacheConfig()) as cache, trio.open_nursery() as nursery:
        hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        function = await put(cache, "asks", guests.ONLY_ASKS, imports=hosts)
        async with function.acquire() as lease:
            nursery.start_soon(Told().told, "asks", lease.call, 1)
            await wait_all_tasks_blocked()
        left.set()


async def test_a_caller_that_waits_when_its_lease_ends_may_deadlock(real: WasmtimeKit) -> None:
    """It was no deadlock while the block could give the instance back; now only it could itself."""
    told: list[str] = []

    async def ask(value: int) -> int:
        with pytest.raises(DeadlockError, match="asks waits for an instance"):
            await function.call(value)
        told.append("waiter")
        return value

    async def asks() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await lease.call(1)

    async with real.open(CacheConfig()) as cache, trio.open_nursery() as nursery:
        hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        function = await put(cache, "asks", guests.ONLY_ASKS, imports=hosts)
        async with function.acquire() as lease:
            nursery.start_soon(asks, name="asks")
            await wait_all_tasks_blocked()
            assert cache.stats().waiting == 1
        await wait_all_tasks_blocked()
        assert told == ["waiter"]
        check_invariants(cache)
    check_invariants(cache)


class InTwoSteps:
    """An ABI that calls the export twice."""

    lower = lift = None
    arity = 1
    signature = FuncType(("i64",), ("i64",))

    def bind(self, *_: object) -> InTwoSteps:
        return self

    def steps(self, _: Guest, values: tuple[int, ...]) -> Generator[Step, int, int]:
        first = yield Invoke("run", values)
        return first + (yield Invoke("run", values))

    def explain(self, values: object) -> Exception:
        return TypeError(values)


async def test_a_call_in_steps_ends_between_them(
    real: WasmtimeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread had finished the first when it came out; a closed lease begins no second one."""
    told = Told()
    closing = threading.Event()
    start_thread_soon = trio.lowlevel.start_thread_soon

    def start_once_closing(work: Callable[[], object], *more: Any) -> None:
        def late() -> object:
            closing.wait()
            return work()

        start_thread_soon(late, *more)

    async def from_outside() -> None:
        async with group.acquire("count", ("i64",)) as lease:
            leases.append(lease)
            await lease.call(50_000)  # not over in its first slice, but in its second

    leases: list[Lease] = []
    limits = CacheConfig(offload_after=0, yield_fuel=200_000)
    async with real.open(limits) as cache, trio.open_nursery() as nursery:
        await put(cache, "count", guests.COUNT, abi=InTwoSteps())
        monkeypatch.setattr(trio.lowlevel, "start_thread_soon", start_once_closing)
        async with cache.scheduling_group("g", capacity=1) as group:

            async def let_the_thread_go_on() -> None:
                while not group._state.record.closed:
                    await trio.lowlevel.checkpoint()
                closing.set()

            nursery.start_soon(let_the_thread_go_on)  # first, as the group also waits if this fails
            nursery.start_soon(told.told, "outside", from_outside)
            while not snapshot(cache).threads.taken:
                await trio.lowlevel.checkpoint()
            job = job_of(leases[0])
            assert job is not None
            while not job.in_thread:
                await trio.lowlevel.checkpoint()
        assert told.names == ["outside"]
        assert leases[0].fuel_consumed == job.burnt
        check_invariants(cache)


class CleansUp(InTwoSteps):
    """An ABI that uses the guest until the very end, whatever became of it."""

    def __init__(self) -> None:
        self.failed: list[type[Exception]] = []
        self.under_way: bool | None = None

    def steps(self, guest: Guest, values: tuple[int, ...]) -> Generator[Step, int, int]:
        memory = guest.memory
        assert memory is not None
        assert isinstance(guest, MeteredGuest)
        native = guest._native
        assert isinstance(native, WasmtimeInstance)
        try:
            return (yield Invoke("run", values))
        finally:
            self.under_way = native.future != 0
            for use in (
                lambda: memory.read(0, 1),
                lambda: memory.write(0, b"x"),
                lambda: memory.grow(1),
                lambda: guest.global_value("g"),
            ):
                try:
                    use()
                except Exception as error:
                    self.failed.append(type(error))
            memory.read(memory.size - 1, 1)


CLEANED = """
(import "host" "ask" (func $ask (param i64) (result i64))) (memory (export "memory") 1 9)
(global (export "g") i32 (i32.const 1))
(func (export "run") (param i64) (result i64) (call $ask (local.get 0)))
"""


async def sleep_for_ever(value: int) -> int:
    await trio.sleep_forever()
    return value


async def test_an_abi_that_cleans_up_after_its_instance_was_closed(real: WasmtimeKit) -> None:
    """There is nothing inside any more, it is told so, and who called is told why."""
    told, finish, abi = Told(), trio.Event(), CleansUp()

    async def ask(value: int) -> int:
        await finish.wait()
        return value

    async with trio.open_nursery() as nursery:
        async with real.open() as cache:
            hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
            function = await put(cache, "cleaned", CLEANED, abi=abi, imports=hosts)
            nursery.start_soon(told.told, "call", function.call, 1)
            await wait_all_tasks_blocked()
        finish.set()
    assert told.names == ["call"]
    assert abi.failed == [IndexError, IndexError, MemoryLimitError, LookupError]


@pytest.mark.parametrize("how", ["call", "map"])
async def test_an_abi_that_cleans_up_after_a_cancelled_call(real: WasmtimeKit, how: str) -> None:
    """Nothing is under way in the instance any more when it does."""
    abi, asked = CleansUp(), trio.Event()

    async def ask(value: int) -> int:
        asked.set()
        return await sleep_for_ever(value)

    async with real.open() as cache:
        hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        function = await put(cache, "cleaned", CLEANED, abi=abi, imports=hosts)
        async with function.acquire() as lease, trio.open_nursery() as nursery:
            use, value = (lease.call, 1) if how == "call" else (lease.map, [[1]])
            nursery.start_soon(use, value)
            # The first batch of a process imports what it needs in a thread, before it begins.
            await asked.wait()
            nursery.cancel_scope.cancel()
        check_invariants(cache)
    assert (abi.under_way, abi.failed) == (False, [])


class FailsToCleanUp(InTwoSteps):
    """An ABI with a mistake in it."""

    def steps(self, guest: Guest, values: tuple[int, ...]) -> Generator[Step, int, int]:
        try:
            return (yield Invoke("run", values))
        finally:
            raise ZeroDivisionError


async def test_an_abi_that_fails_to_clean_up(real: WasmtimeKit) -> None:
    """Its error is the call's, and the instance does not stay busy for ever."""

    def ask(value: int) -> int:
        raise KeyError(value)

    async with real.open() as cache:
        hosts = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        function = await put(cache, "cleaned", CLEANED, abi=FailsToCleanUp(), imports=hosts)
        async with function.acquire() as lease:
            with pytest.raises(ZeroDivisionError):
                await lease.call(1)
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(1)
        assert cache.stats().running_instances == 0
        check_invariants(cache)
