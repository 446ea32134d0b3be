"""Host functions that call the guest back: what `Lease.invoke` gives, refuses, and ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from attrs import evolve
from kits import COSTLY, PAGE, Kit, add_asking, add_calling_back
from staging import stage
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    FuelExhaustedError,
    HostFunction,
    InstanceCache,
    Lease,
    MemoryLimitError,
    TrapError,
    current_lease,
)
from trio_wasmcache.testing import check_invariants

SLICE = COSTLY // 3
# For calls that are to be under way until something ends them.
ENDLESS = CacheConfig(yield_fuel=SLICE // 100, total_fuel=10**15)
SHORT = CacheConfig(yield_fuel=SLICE, offload_after=None)
INLINE_AND_THREAD = pytest.mark.parametrize("offload_after", [None, 0, 1])


def gone(cache: InstanceCache) -> dict[str, int]:
    """How many instances were evicted for each reason."""
    return {reason: number for reason, number in cache.stats().evictions.items() if number}


async def double(value: int) -> int:
    """Answer with what the guest makes of it."""
    result: int = await current_lease().invoke("double", value)
    return result


@INLINE_AND_THREAD
async def test_results_of_exports(kit: Kit, offload_after: int | None) -> None:
    """Several in one host call, each with its values: a number, a tuple, None."""
    seen: list[object] = []

    async def ask(value: int) -> int:
        lease = current_lease()
        seen.append(await lease.invoke("nothing"))
        seen.append(await lease.invoke("swap", -1, 2.5))
        first = await lease.invoke("double", value)
        await trio.lowlevel.checkpoint()
        second = await lease.invoke("double", -(2**61))
        return int(first + second)

    config = CacheConfig(yield_fuel=SLICE, offload_after=offload_after)
    async with kit.open(config) as cache:
        f = await add_calling_back(cache, kit, ask)
        async with f.acquire() as lease:
            for value in (1, 21):
                assert await lease.call(value) == 2 * value - 2**62
        assert seen == [None, (2.5, -1)] * 2
        assert cache.stats().calls == 2


async def test_it_burns_the_fuel_of_the_call(kit: Kit) -> None:
    """What the export burns is in `fuel_consumed`, and ends the call beyond `total_fuel`."""
    caught: list[BaseException] = []

    async def ask(value: int) -> int:
        try:
            for _ in range(value):
                await double(value)
        except FuelExhaustedError as error:
            caught.append(error)
            raise
        return value

    async with kit.open(SHORT) as cache:
        f = await add_calling_back(cache, kit, ask)
        async with f.acquire() as lease:
            burnt = []
            for times in (0, 1, 3):
                assert await lease.call(times) == times
                assert lease.fuel_consumed is not None
                burnt.append(lease.fuel_consumed)
            assert burnt[1] - burnt[0] > COSTLY
            # Give or take some instructions of the trampoline.
            assert abs(burnt[2] - burnt[0] - 3 * (burnt[1] - burnt[0])) < 20
        cache.resize(total_fuel=burnt[2])
        with pytest.raises(FuelExhaustedError, match=r"asks\(i64\) called with \(4\)") as failed:
            await f.call(4)
        assert caught == [failed.value]
        assert await f.call(2) == 2


async def test_what_does_not_fit_is_refused(kit: Kit) -> None:
    """The host function can go on: no wasm has run."""

    async def ask(value: int) -> int:
        lease = current_lease()
        with pytest.raises(LookupError, match="exports no function 'no such'"):
            await lease.invoke("no such", 1)
        for name in (5, None, [], b"double"):
            with pytest.raises(TypeError, match="the name of an export must be a str, got"):
                await lease.invoke(name, 1)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await lease.invoke("double", "1")  # type: ignore[arg-type]
        return await double(value)

    async with kit.open() as cache:
        f = await add_calling_back(cache, kit, ask)
        assert await f.call(4) == 8
        assert gone(cache) == {}


@pytest.mark.parametrize("caught", [False, True])
async def test_a_failure_ends_the_outer_call_too(kit: Kit, caught: bool) -> None:
    """With the very error, whether the host function catches it or not; only that call fails."""
    errors: list[TrapError] = []

    async def ask(value: int) -> int:
        lease = current_lease()
        if value == 1:
            try:
                await lease.invoke("trap")
            except TrapError as error:
                errors.append(error)
                if not caught:
                    raise
            with pytest.raises(trio.BrokenResourceError, match="earlier invoke"):
                await lease.invoke("nothing")
            await trio.lowlevel.checkpoint()
        return value

    async with kit.open() as cache:
        f = await add_calling_back(cache, kit, ask)
        async with f.acquire() as lease:
            with pytest.raises(TrapError, match=r"asks\(i64\) called with \(1\)") as failed:
                await lease.call(1)
            assert failed.value is errors[0]
            assert failed.value.code == "unreachable"
            assert failed.value.function == "asks"
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(2)
        assert await f.call(3) == 3
        assert gone(cache) == {"corrupted": 1}
        check_invariants(cache)


async def test_another_error_of_the_host_function(kit: Kit) -> None:
    """What it raises itself comes out, with the guest's error as its cause."""

    async def ask(value: int) -> int:
        try:
            await current_lease().invoke("trap")
        except TrapError as error:
            raise LookupError(value) from error
        return value

    async with kit.open() as cache:
        f = await add_calling_back(cache, kit, ask)
        with pytest.raises(LookupError) as failed:
            await f.call(1)
        assert isinstance(failed.value.__cause__, TrapError)
        assert gone(cache) == {"corrupted": 1}


async def refused(lease: Lease[Any], match: str) -> None:
    """See that an invoke is a `RuntimeError`."""
    with pytest.raises(RuntimeError, match=match):
        await lease.invoke("double", 1)


async def test_it_is_for_reentrant_host_functions(kit: Kit) -> None:
    """Not before a call, after it, or in a host function that was not registered so."""
    leases: list[Lease] = []

    async def ask(value: int) -> int:
        await refused(current_lease(), "reentrant=True")
        with pytest.raises(trio.BusyResourceError, match="reentrant=True"):
            await current_lease().call(1)
        return value

    async def other(value: int) -> int:
        for one in leases:
            await refused(one, "only in a reentrant host function")
        return value

    async with kit.open() as cache:
        f = await add_asking(cache, kit, ask)
        with pytest.raises(RuntimeError):
            await f.acquire().invoke("double", 1)
        async with f.acquire() as lease:
            leases.append(lease)
            await refused(lease, "only in a reentrant host function")
            assert await lease.call(1) == 1
            await refused(lease, "only in a reentrant host function")
            g = await add_calling_back(cache, kit, other, name="other")
            assert await g.call(2) == 2
        with pytest.raises(trio.ClosedResourceError):
            await lease.invoke("double", 1)


async def test_in_the_host_function_of_another_lease(kit: Kit) -> None:
    """That nests in it: its guest does not wait for this one, even in the same task."""
    outer: list[Lease] = []

    async def inner_ask(value: int) -> int:
        await refused(outer[0], "only in a reentrant host function")
        return await double(value)

    async def ask(value: int) -> int:
        outer.append(current_lease())
        result: int = await inner.call(value)
        return await double(result)

    async with kit.open() as cache:
        inner = await add_calling_back(cache, kit, inner_ask, name="inner")
        f = await add_calling_back(cache, kit, ask)
        assert await f.call(3) == 12


async def test_in_a_plain_host_function_of_another_lease(kit: Kit) -> None:
    """As there: what the task waits for now is the other guest."""
    outer: list[Lease] = []

    async def inner_ask(value: int) -> int:
        await refused(outer[0], "only in a reentrant host function")
        return value

    async def ask(value: int) -> int:
        outer.append(current_lease())
        result: int = await inner.call(value)
        return await double(result)

    async with kit.open() as cache:
        inner = await add_asking(cache, kit, inner_ask, name="inner")
        f = await add_calling_back(cache, kit, ask)
        assert await f.call(3) == 6


async def test_two_tasks_of_a_host_function(kit: Kit) -> None:
    """Its children may invoke, one at a time: the second is refused, and the first undisturbed."""
    results: list[object] = []

    async def ask(value: int) -> int:
        async def child() -> None:
            try:
                results.append(await double(value))
            except trio.BusyResourceError as error:
                results.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(child)
        results.append(await double(value))
        return value

    async with kit.open(SHORT) as cache:
        f = await add_calling_back(cache, kit, ask)
        assert await f.call(5) == 5
        assert results.count(10) == 2
        assert any("another invoke()" in str(one) for one in results)


async def test_a_task_that_outlives_the_host_function(kit: Kit) -> None:
    """It is refused once the guest goes on."""
    outcomes: list[str] = []
    go_on = trio.Event()

    async with kit.open() as cache, trio.open_nursery() as nursery:

        async def late() -> None:
            await go_on.wait()
            await refused(lease, "only in a reentrant host function")
            outcomes.append("refused")

        async def ask(value: int) -> int:
            nursery.start_soon(late)
            if value == 2:
                go_on.set()
                await wait_all_tasks_blocked()
                assert outcomes == ["refused"]
            return value

        f = await add_calling_back(cache, kit, ask)
        async with f.acquire() as lease:
            assert await lease.call(1) == 1
            outcomes.clear()
            go_on.set()
            await wait_all_tasks_blocked()
        assert outcomes == ["refused"]


async def test_a_task_that_outlives_its_row(kit: Kit) -> None:
    """It is refused, too, while the same lease waits for another call of the host function."""
    outcomes: list[str] = []
    go_on = trio.Event()

    async with kit.open() as cache, trio.open_nursery() as nursery:

        async def late(lease: Lease) -> None:
            await go_on.wait()
            await refused(lease, "only in a reentrant host function")
            outcomes.append("refused")

        async def ask(value: int) -> int:
            if value == 1:
                nursery.start_soon(late, current_lease())
            else:
                go_on.set()
                await wait_all_tasks_blocked()
                assert outcomes == ["refused"]
            return await double(value)

        f = await add_calling_back(cache, kit, ask)
        async with f.acquire() as lease:
            assert list(await lease.map([[1, 2]])) == [2, 4]


@INLINE_AND_THREAD
async def test_a_host_function_that_leaves_an_invoke_behind(
    kit: Kit, offload_after: int | None
) -> None:
    """It is stopped, whatever it does, before the call fails: nothing runs in what is dropped."""
    errors: list[BaseException] = []
    config = evolve(ENDLESS, offload_after=offload_after)

    async with kit.open(config) as cache, trio.open_nursery() as nursery:

        async def left() -> None:
            with pytest.raises(RuntimeError, match="await all tasks") as caught:
                await double(1)
            errors.append(caught.value)

        async def ask(value: int) -> int:
            nursery.start_soon(left)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            return value

        f = await add_calling_back(cache, kit, ask, endless=True)
        async with f.acquire() as lease:
            with pytest.raises(RuntimeError, match="has returned while another task") as failed:
                await lease.call(1)
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(1)
        check_invariants(cache)
    assert errors == [failed.value]


@INLINE_AND_THREAD
async def test_a_host_function_that_gives_up_its_invoke(
    kit: Kit, offload_after: int | None
) -> None:
    """A guest that is half-way in an export can't go on, so its call fails by name."""
    config = evolve(ENDLESS, offload_after=offload_after)

    async def ask(value: int) -> int:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel, scope)
                await double(value)
        assert scope.cancelled_caught
        return value

    async def cancel(scope: trio.CancelScope) -> None:
        await trio.lowlevel.checkpoint()
        scope.cancel()

    async with kit.open(config) as cache:
        f = await add_calling_back(cache, kit, ask, endless=True)
        async with f.acquire() as lease:
            with pytest.raises(trio.BrokenResourceError, match="await of invoke"):
                await lease.call(1)
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(1)
        assert gone(cache) == {"corrupted": 1}
        check_invariants(cache)


async def test_memory_grows(kit: Kit) -> None:
    """Between calls and in a host function, within the limits, and the lease shows it at once."""

    async def ask(value: int) -> int:
        memory = current_lease().memory
        size = memory.size
        assert memory.grow(1) == size
        assert memory.size == size + PAGE
        memory.write(size, b"more")
        await double(value)
        assert memory.read(size, 4) == b"more"
        with pytest.raises(MemoryLimitError):
            memory.grow(10_000)
        return await double(value)

    async with kit.open(CacheConfig(memory_limit=64 * PAGE)) as cache:
        f = await add_calling_back(cache, kit, ask)
        async with f.acquire() as lease:
            before = lease.size
            assert lease.memory.grow(0) == PAGE
            assert lease.memory.grow(2) == PAGE
            assert lease.memory.size == 3 * PAGE
            assert await lease.call(4) == 8
            assert lease.memory.read(3 * PAGE, 4) == b"more"
            assert lease.size == before + 3 * PAGE
            for pages in (61, 2**31, 2**40, 2**64, 2**64 + 1, 2**70):
                with pytest.raises(MemoryLimitError) as caught:
                    lease.memory.grow(pages)
                assert str(caught.value) == (
                    f"memory.grow({pages}) in a lease of {f.name!r}: its memory of 4 pages of 64 "
                    f"KiB can't have {pages} more: raise memory_limit = {64 * PAGE}, unless the "
                    "module itself limits its memory to less"
                )
                assert caught.value.function == f.name
            with pytest.raises(ValueError, match="negative"):
                lease.memory.grow(-1)
            with pytest.raises(TypeError):
                lease.memory.grow(1.5)  # type: ignore[arg-type]
            assert lease.memory.size == 4 * PAGE
            assert await lease.call(5) == 10
        assert cache.stats().total_size == before + 4 * PAGE
        with pytest.raises(trio.ClosedResourceError):
            lease.memory.grow(1)


@pytest.mark.parametrize("rows", [1, 50])
async def test_in_a_batch(kit: Kit, rows: int) -> None:
    """Each row of a driver, and of a batch that goes row by row."""
    async with kit.open(SHORT) as cache:
        f = await add_calling_back(cache, kit, double)
        async with f.acquire() as lease:
            assert list(await lease.map([range(rows)])) == [2 * row for row in range(rows)]
            column = [None if row % 3 else row for row in range(rows + 1)]
            assert await lease.map([column]) == [None if row is None else 2 * row for row in column]


async def test_a_row_whose_invoke_fails(kit: Kit) -> None:
    """The error says which row it was, even if the host function catches it."""

    async def ask(value: int) -> int:
        if value == 7:
            try:
                await current_lease().invoke("trap")
            except TrapError:
                return 0
        return await double(value)

    async with kit.open(SHORT) as cache:
        f = await add_calling_back(cache, kit, ask)
        with pytest.raises(TrapError, match="in row 2 of a batch") as failed:
            async with f.acquire() as lease:
                await lease.map([[5, 6, 7, 8]])
        assert failed.value.row == 2
        assert failed.value.values == (7,)
        check_invariants(cache)


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_under_each_isolation(kit: Kit, isolation: str) -> None:
    """Whatever the instance was used for before; after a failure it is another one."""

    async def ask(value: int) -> int:
        if value < 0:
            await current_lease().invoke("trap")
        return await double(value)

    async with kit.open(SHORT) as cache:
        f = await add_calling_back(cache, kit, ask, isolation=isolation, concurrency=2)
        for value in (1, 2, -1, 3):
            async with f.acquire() as one, f.acquire() as two:
                for lease in (one, two):
                    if value < 0:
                        with pytest.raises(TrapError):
                            await lease.call(value)
                    else:
                        assert await lease.call(value) == 2 * value
        assert f.isolation_verdict
        check_invariants(cache)


async def test_cancelled_everywhere(kit: Kit) -> None:
    """In an invoke, in a host function around it, and in a batch: the next one works."""
    async with stage(kit, SHORT) as at:
        inner = await add_calling_back(at.cache, kit, double, name="inner")

        async def ask(value: int) -> int:
            await double(value)
            result: int = await inner.call(value)
            return await double(result)

        f = await add_calling_back(at.cache, kit, ask)

        async def scenario() -> None:
            async with f.acquire() as lease:
                assert await lease.call(5) == 20
                assert list(await lease.map([[1, 2]])) == [4, 8]

        await at.run(scenario, least=30)
        assert await f.call(6) == 24


async def test_cancelled_everywhere_in_a_thread(kit: Kit) -> None:
    """The thread is stopped and waited for."""
    config = CacheConfig(yield_fuel=SLICE, offload_after=0)
    async with stage(kit, config) as at:
        f = await add_calling_back(at.cache, kit, double)

        async def scenario() -> None:
            assert await f.call(5) == 10

        await at.run(scenario, least=4)
        assert await f.call(6) == 12


@INLINE_AND_THREAD
@pytest.mark.parametrize("close", ["cache", "group", "block"])
async def test_closing_while_it_runs(kit: Kit, close: str, offload_after: int | None) -> None:
    """The invoke and the call get `ClosedResourceError`; nothing is left."""
    config = evolve(ENDLESS, offload_after=offload_after)
    errors: list[BaseException] = []

    async def ask(value: int) -> int:
        try:
            return await double(value)
        except trio.ClosedResourceError as error:
            errors.append(error)
            return 0

    async def use(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError) as failed:
            await call()
        errors.append(failed.value)

    async with trio.open_nursery() as nursery, kit.open(config) as cache:
        f = await add_calling_back(cache, kit, ask, endless=True)
        await cache.warm("asks", ("i64",))
        async with cache.scheduling_group("one", capacity=2) as group:
            async with group.acquire("asks", ("i64",)) as lease:
                if close == "block":
                    nursery.start_soon(use, lambda: lease.call(1))
                    for _ in range(3):
                        await trio.lowlevel.checkpoint()
            if close == "group":

                async def call() -> None:
                    async with group.acquire("asks", ("i64",)) as lease:
                        await lease.call(1)

                nursery.start_soon(use, call)
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
        if close == "cache":
            nursery.start_soon(use, lambda: f.call(1))
            for _ in range(5):
                await trio.lowlevel.checkpoint()
    first, second = errors
    assert first is second


def test_only_async_functions_are_reentrant() -> None:
    """A sync one could not await; the mistake shows where it is made."""

    class Good:
        async def __call__(self, value: int) -> int:
            return value

        async def method(self, value: int) -> int:
            return value

    class Bad:
        def __call__(self, value: int) -> int:
            return value

    for fn in (double, Good(), Good().method):
        assert HostFunction(fn, ("i64",), reentrant=True).reentrant
    for fn in (abs, Bad(), lambda value: value, print):
        assert not HostFunction(fn, ("i64",)).reentrant
        with pytest.raises(TypeError, match="must be an async function"):
            HostFunction(fn, ("i64",), reentrant=True)
    with pytest.raises(TypeError, match="must be a bool"):
        HostFunction(double, ("i64",), reentrant=1)  # type: ignore[arg-type]
    assert HostFunction(double, ("i64",)) != HostFunction(double, ("i64",), reentrant=True)
