"""Host functions: Python that runs in the calling task while the guest is suspended."""

from __future__ import annotations

import contextvars
import traceback
from collections.abc import Callable
from typing import Any

import guests
import pytest
import trio
import wasmtime
from attrs import evolve
from counting import passes
from kits import WasmtimeKit, add
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    FuelExhaustedError,
    Function,
    HostFunction,
    InstanceCache,
    Lease,
    current_group,
    current_lease,
)
from trio_wasmcache.testing import check_invariants, snapshot


@pytest.fixture(params=[None, 0, 1], ids=["inline", "thread", "both"])
def limits(request: pytest.FixtureRequest) -> CacheConfig:
    """Slices so small that the asking guest has some before, between and after its questions."""
    return CacheConfig(offload_after=request.param, yield_fuel=5_000, max_threads=2)


async def put(cache: InstanceCache, ask: Callable[..., Any], name: str = "asks") -> Function:
    """Register a guest that burns fuel, asks, burns fuel, asks about the answer, burns fuel."""
    imports = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
    function: Function = await add(cache, name, guests.binary(guests.BUSY_ASKER), imports=imports)
    return function


async def test_sync_and_async(real: WasmtimeKit, limits: CacheConfig) -> None:
    """The guest gets what either returns; both run in the calling task."""
    tasks = set()

    def ask(value: int) -> int:
        tasks.add(trio.lowlevel.current_task())
        return value + 1

    async def ask_later(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return ask(value)

    async with real.open(limits) as cache:
        for host in (ask, ask_later):
            function = await put(cache, host, host.__name__)
            assert await function.call(10) == 11 + 12
    assert tasks == {trio.lowlevel.current_task()}


async def test_types_and_several_results(real: WasmtimeKit) -> None:
    """Logical types on the way in, a tuple on the way out, and a function with no result."""
    told: list[object] = []

    def swap(one: object, two: object) -> tuple[object, object]:
        told.append((one, two))
        return two, one

    imports = {
        "host": {
            "swap": HostFunction(swap, params=("u32", "f64"), results=("f64", "u32")),
            "tell": HostFunction(told.append, params=("bool",), results=()),
        }
    }
    async with real.open() as cache:
        pair = await add(
            cache,
            "pair",
            guests.binary(guests.PAIR),
            args=("i32", "f64"),
            returns=("f64", "i32"),
            imports=imports,
        )
        assert await pair.call(1, 2.5) == (2.5, 1)
        assert told == [True, (1, 2.5)]


async def test_what_it_raises_comes_out_as_it_is(real: WasmtimeKit, limits: CacheConfig) -> None:
    """The same object, with the host function in its traceback; only that call fails."""

    class OurError(Exception):
        pass

    errors: list[OurError] = []

    def ask(value: int) -> int:
        if value > 5:
            errors.append(OurError(value))
            raise errors[-1]
        return value

    async with real.open(limits) as cache:
        function = await put(cache, ask)
        async with function.acquire() as lease:
            assert await lease.call(2) == 4
            with pytest.raises(OurError) as caught:
                await lease.call(9)
            assert [caught.value] == errors
            frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
            assert frames[-1] == "ask"
            assert caught.value.__cause__ is None
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(2)
        assert await function.call(3) == 6
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)


async def test_an_error_group_of_its_nursery_comes_out(real: WasmtimeKit) -> None:
    """It may open nurseries and scopes of its own."""

    async def fail() -> None:
        raise ZeroDivisionError

    async def ask(value: int) -> int:
        with trio.move_on_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
        return value

    async with real.open() as cache:
        function = await put(cache, ask)
        with pytest.raises(ExceptionGroup) as caught:
            await function.call(1)
        assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
        check_invariants(cache)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("text", TypeError),
        (None, TypeError),
        (1.5, TypeError),
        (2**63, OverflowError),
        ((1, 2), TypeError),
    ],
    ids=repr,
)
async def test_an_answer_of_the_wrong_type(
    real: WasmtimeKit, answer: object, error: type[Exception]
) -> None:
    """The message names the host function and the value; the next call works."""
    answers = [answer, 1, 1]

    def my_answer(value: int) -> object:
        return answers.pop(0)

    async with real.open() as cache:
        function = await put(cache, my_answer)
        with pytest.raises(error, match="my_answer") as caught:
            await function.call(1)
        assert repr(answer)[:4] in str(caught.value)
        assert await function.call(1) == 2
        check_invariants(cache)


async def test_a_call_of_the_same_lease_is_refused(real: WasmtimeKit, limits: CacheConfig) -> None:
    """`BusyResourceError` inside the host function, before anything native is touched."""

    async def ask(value: int) -> int:
        with pytest.raises(trio.BusyResourceError):
            await current_lease().call(value)
        with pytest.raises(trio.BusyResourceError):
            assert current_lease().size
        return value

    async with real.open(limits) as cache:
        function = await put(cache, ask)
        assert await function.call(5) == 10


async def test_guests_and_hosts_five_deep(real: WasmtimeKit, limits: CacheConfig) -> None:
    """Guest, host, acquire of another function, guest, and so on; with one token for all."""
    async with real.open(limits) as cache:
        leases: list[Lease] = []

        def make(depth: int) -> Callable[[int], Any]:
            async def ask(value: int) -> int:
                leases.append(current_lease())
                if depth == 5:
                    return value
                async with cache.acquire(f"f{depth + 1}", ("i64",)) as lease:
                    result: int = await lease.call(value)
                assert current_lease() in leases
                return result

            return ask

        for depth in range(1, 6):
            await put(cache, make(depth), f"f{depth}")
        async with cache.scheduling_group("g", capacity=1) as group:
            async with cache.acquire("f1", ("i64",)) as first:
                expected = 1
                for _ in range(5):  # each asks for its argument, and for the answer
                    expected += expected**2
                assert await first.call(1) == expected
            assert group.limiter.borrowed_tokens == 0
        assert len(leases) == 2 + 4 + 8 + 16 + 32
        check_invariants(cache)


async def test_cancelled_in_a_host_function(real: WasmtimeKit, limits: CacheConfig) -> None:
    """One that never returns: the call ends at once, its instance is dropped."""
    asked = trio.Event()

    async def ask(value: int) -> int:
        asked.set()
        await trio.sleep_forever()
        return value

    async with real.open(limits) as cache:
        function = await put(cache, ask)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(function.call, 1)
            await asked.wait()
            await wait_all_tasks_blocked()
            inside = snapshot(cache)  # no turn is held meanwhile
            assert (inside.loop.taken, inside.threads.taken) == (0, 0)
            nursery.cancel_scope.cancel()
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)


async def test_a_scope_of_its_own_times_out(real: WasmtimeKit) -> None:
    """Cancelling part of what it does is its own affair: the guest goes on."""

    async def ask(value: int) -> int:
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep_forever()
        return value + 1

    async with real.open() as cache:
        function = await put(cache, ask)
        assert await function.call(1) == 2 + 3
        assert cache.stats().evictions["corrupted"] == 0


async def test_memory_of_the_caller(real: WasmtimeKit, limits: CacheConfig) -> None:
    """Read and written while the guest is suspended, by that call's host function only."""
    kept: list[Any] = []

    async def ask(value: int) -> int:
        memory = current_lease().memory
        kept.append(memory)
        memory.write(value, b"from the host")
        await trio.lowlevel.checkpoint()
        assert memory.read(value, 13) == b"from the host"
        with pytest.raises(IndexError):
            memory.read(memory.size, 1)
        return value

    async def outsider(lease: Lease) -> None:
        with pytest.raises(trio.BusyResourceError):
            lease.memory.read(0, 1)

    async with real.open(limits) as cache:
        function = await put(cache, ask)
        async with function.acquire() as lease:
            assert await lease.call(100) == 200
            assert lease.memory.read(100, 13) == b"from the host"
        with pytest.raises(trio.ClosedResourceError):
            kept[0].read(0, 1)


async def test_memory_is_out_of_reach_once_the_answer_is_given(real: WasmtimeKit) -> None:
    """A task that a host function left running gets an error, not the running guest's memory."""
    outcomes: list[str] = []

    async with real.open(CacheConfig(yield_fuel=1000, offload_after=None)) as cache:
        async with trio.open_nursery() as nursery:
            answered = trio.Event()

            async def late() -> None:
                lease = current_lease()
                await answered.wait()
                try:
                    lease.memory.read(0, 1)
                except trio.BusyResourceError:
                    outcomes.append("busy")

            def ask(value: int) -> int:
                if not outcomes and not answered.is_set():
                    nursery.start_soon(late)
                    answered.set()
                return value

            function = await put(cache, ask)
            assert await function.call(1) == 2
    assert outcomes == ["busy"]


async def test_context_variables_are_those_of_the_caller(real: WasmtimeKit) -> None:
    """The host function sees what the caller set, its scheduling group too."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("test variable")
    seen: list[object] = []

    def ask(value: int) -> int:
        group = current_group()
        seen.append((variable.get(), group and group.name, current_lease().function.name))
        return value

    async with real.open() as cache:
        function = await put(cache, ask)
        async with cache.scheduling_group("g", capacity=1):
            variable.set(7)
            await function.call(1)
    assert seen == [(7, "g", "asks")] * 2


async def test_a_guest_that_only_asks_lets_others_run(real: WasmtimeKit) -> None:
    """Each question ends within a slice, but all together are long."""
    async with real.open() as cache:
        imports = {"host": {"ask": HostFunction(lambda value: value, ("i64",), ("i64",))}}
        asks = await add(cache, "asks", guests.binary(guests.ONLY_ASKS), imports=imports)
        async with asks.acquire() as lease:

            async def call() -> None:
                assert await lease.call(3_000) == 3_000

            assert await passes(call) >= 5


async def test_a_host_function_of_a_start_function(real: WasmtimeKit) -> None:
    """It is answered, too; and what it raises comes out of the acquire as it is."""
    answers: list[Any] = [ZeroDivisionError("mine"), 42]

    async def ask(value: int) -> int:
        await trio.lowlevel.checkpoint()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        result: int = answer
        return result

    async with real.open() as cache:
        imports = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        function = await add(cache, "f", guests.binary(guests.ASKS_AT_START), imports=imports)
        with pytest.raises(ZeroDivisionError, match="mine"):
            await function.call(0)
        check_invariants(cache)
        assert await function.call(0) == 42


async def test_a_lease_whose_instance_is_being_made(real: WasmtimeKit) -> None:
    """Its start function may find it by `current_lease`: it is busy, and not at its end."""
    seen: list[str] = []

    async def ask(value: int) -> int:
        lease = current_lease()
        seen.append(repr(lease))
        with pytest.raises(trio.BusyResourceError, match="is being made"):
            await lease.call(1)
        with pytest.raises(trio.BusyResourceError):
            seen.append(str(lease.size))
        return value

    async with real.open() as cache:
        imports = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        function = await add(cache, "f", guests.binary(guests.ASKS_AT_START), imports=imports)
        assert await function.call(1) == 4
    assert seen == ["<Lease of 'f' in group 'main': loading>"]


async def test_each_call_of_the_host_is_fuel_of_the_call(
    real: WasmtimeKit, limits: CacheConfig
) -> None:
    """4,000 units, sync or async, beside what the guest burns; and `total_fuel` bounds both."""
    imports = {"host": {"ask": HostFunction(lambda value: value, ("i64",), ("i64",))}}

    async def later(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return value

    async with real.open(evolve(limits, total_fuel=1_000_000)) as cache:
        asks = await add(cache, "asks", guests.binary(guests.ONLY_ASKS), imports=imports)
        slow = await add(
            cache,
            "slow",
            guests.binary(guests.ONLY_ASKS),
            imports={"host": {"ask": HostFunction(later, ("i64",), ("i64",))}},
        )
        burnt = {}
        for function in (asks, slow):
            async with function.acquire() as lease:
                for count in (10, 20):
                    await lease.call(count)
                    burnt[function.name, count] = lease.fuel_consumed or 0
                with pytest.raises(FuelExhaustedError, match="after 1000000 units of fuel"):
                    await lease.call(1000)
                assert lease.fuel_consumed == 1_000_000
        assert burnt["asks", 10] == burnt["slow", 10]
        assert burnt["asks", 20] == burnt["slow", 20]
        each = (burnt["asks", 20] - burnt["asks", 10]) / 10
        assert 4000 < each < 4100
        check_invariants(cache)


async def test_total_fuel_bounds_a_row_that_does_little_but_ask(
    real: WasmtimeKit, limits: CacheConfig
) -> None:
    """As it bounds a call, within two slices: the fuel of other rows is not its own."""
    asked = 0

    def ask(value: int) -> int:
        nonlocal asked
        asked += 1
        return value

    async with real.open(evolve(limits, total_fuel=1_000_000)) as cache:
        imports = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        asks = await add(cache, "asks", guests.binary(guests.ONLY_ASKS), imports=imports)
        async with asks.acquire() as lease:
            assert list(await lease.map([[10, 20, 30]])) == [10, 20, 30]
            before = asked
            with pytest.raises(FuelExhaustedError) as caught:
                await lease.map([[10, 20, 10**6, *[10] * 500]])
            assert caught.value.row == 2
            assert asked - before < 30 + 1_000_000 / 4000 + 3
        check_invariants(cache)


# Takes stack and a lock, and asks; gives both back, as a function of C or Rust does.
HOLDER = """(module
  (import "host" "ask" (func $ask (param i64) (result i64)))
  (global $stack (mut i64) (i64.const 1000)) (global $lock (mut i64) (i64.const 0))
  (func (export "run") (param i64) (result i64)
    (global.set $stack (i64.sub (global.get $stack) (i64.const 100)))
    (global.set $lock (i64.add (global.get $lock) (i64.const 1)))
    (if (i64.lt_s (call $ask (local.get 0)) (i64.const 0)) (then (local.set 0 (i64.const -1))))
    (global.set $lock (i64.sub (global.get $lock) (i64.const 1)))
    (global.set $stack (i64.add (global.get $stack) (i64.const 100)))
    (i64.add (local.get 0) (i64.add (global.get $stack) (global.get $lock)))))"""


def test_wasmtime_leaves_a_guest_whose_host_raised_in_the_middle() -> None:
    """Its frames are gone, but its stack and its lock are not given back: it can't be kept."""
    store = wasmtime.Store()
    answers = iter([ZeroDivisionError(), ZeroDivisionError(), 1])

    def ask(_: int) -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    i64 = wasmtime.ValType.i64()
    host = wasmtime.Func(store, wasmtime.FuncType([i64], [i64]), ask)
    module = wasmtime.Module(store.engine, HOLDER)
    run = wasmtime.Instance(store, module, [host]).exports(store)["run"]
    assert isinstance(run, wasmtime.Func)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run(store, 0)
    assert run(store, 0) == 1000 - 2 * 100 + 2


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_an_exception_costs_the_instance_and_a_result_code_does_not(
    real: WasmtimeKit, limits: CacheConfig, isolation: str
) -> None:
    """So no call meets what was left in the middle: the next gets an instance as it began."""
    asked = 0

    def ask(value: int) -> int:
        nonlocal asked
        asked += 1
        if value == 13:
            raise ZeroDivisionError
        return -1 if value > 13 else value

    async with real.open(limits) as cache:
        imports = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
        function = await add(cache, "f", HOLDER, imports=imports, isolation=isolation)
        for value, result in ((1, 1001), (14, 999), (2, 1002)):
            assert await function.call(value) == result
        assert cache.stats().evictions["corrupted"] == 0
        async with function.acquire() as lease:
            with pytest.raises(ZeroDivisionError):
                await lease.call(13)
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(1)
        assert cache.stats().evictions["corrupted"] == 1
        assert await function.call(3) == 1003
        check_invariants(cache)
