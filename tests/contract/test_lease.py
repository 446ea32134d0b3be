"""What a lease lets one do and when: wrong times and wrong tasks get errors, not accidents."""

from __future__ import annotations

import math

import pytest
import trio
from kits import PAGE, Kit, add, add_asking
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, Lease, TrapError, current_lease
from trio_wasmcache._cache.lease import TRANSITIONS, LeaseState
from trio_wasmcache._core.policy.lifecycle import IllegalStepError
from trio_wasmcache.testing import check_invariants


async def test_a_whole_life(kit: Kit) -> None:
    """Not entered, held, in a call, held again, ended: each state shows in `repr`."""
    async with kit.open() as cache:
        shown: list[str] = []

        def ask(value: int) -> int:
            shown.append(repr(lease))
            return value + 1

        f = await add_asking(cache, kit, ask, name="f")
        lease = f.acquire()
        assert repr(lease) == "<Lease of 'f' in group 'main': not entered>"
        with pytest.raises(RuntimeError, match="enter the lease first"):
            await lease.call(1)
        async with lease as entered:
            assert entered is lease
            assert repr(lease) == "<Lease of 'f' in group 'main': held>"
            assert lease.fuel_consumed is None
            assert await lease.call(1) == 2
            assert isinstance(lease.fuel_consumed, int)
            assert lease.fuel_consumed > 0
            assert lease.function == f
            assert lease.size == 2 * PAGE
        assert shown == ["<Lease of 'f' in group 'main': in a call>"]
        assert repr(lease) == "<Lease of 'f' in group 'main': ended>"
        with pytest.raises(trio.ClosedResourceError, match="this lease of 'f' has ended"):
            await lease.call(1)
        with pytest.raises(trio.ClosedResourceError):
            assert lease.size
        with pytest.raises(trio.ClosedResourceError):
            assert lease.memory.size


async def test_a_lease_is_entered_once(kit: Kit) -> None:
    """While it is held, while it is waited for, and after it ended."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        waiting = f.acquire()

        async def wait() -> None:
            async with waiting:
                pass

        async with trio.open_nursery() as nursery:
            async with f.acquire() as lease:
                nursery.start_soon(wait)
                await wait_all_tasks_blocked()
                for again in (lease, waiting):
                    with pytest.raises(RuntimeError, match="entered once"):
                        await again.__aenter__()
                check_invariants(cache)
        with pytest.raises(RuntimeError, match="entered once"):
            await lease.__aenter__()
        assert cache.stats().running_instances == 0
        assert cache.stats().hits == cache.stats().misses == 1


async def test_another_task_in_the_same_lease_is_refused(kit: Kit) -> None:
    """While a call is under way; and so are its size and its memory. The call is undisturbed."""
    async with kit.open() as cache:
        go_on = trio.Event()

        async def ask(value: int) -> int:
            await go_on.wait()
            return value + 1

        f = await add_asking(cache, kit, ask)
        results: list[int] = []

        async def call(lease: Lease) -> None:
            results.append(await lease.call(1))

        async with trio.open_nursery() as nursery, f.acquire() as lease:
            nursery.start_soon(call, lease)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match="under way"):
                await lease.call(2)
            with pytest.raises(trio.BusyResourceError):
                assert lease.size
            with pytest.raises(trio.BusyResourceError):
                lease.memory.read(0, 1)
            with pytest.raises(trio.BusyResourceError):
                assert lease.memory.size
            go_on.set()
            while not results:
                await trio.lowlevel.checkpoint()
            assert results == [2]
            assert await lease.call(5) == 6
        assert cache.stats().evictions["corrupted"] == 0


async def test_another_task_is_refused_between_slices_too(kit: Kit) -> None:
    """A long inline call is under way also while it lets others run."""
    async with kit.open(CacheConfig(yield_fuel=1000, offload_after=None)) as cache:
        f = await add(cache, "f", kit.costly())
        results: list[int] = []

        async def call(lease: Lease) -> None:
            results.append(await lease.call(1))

        async with f.acquire() as lease, trio.open_nursery() as nursery:
            nursery.start_soon(call, lease)
            while cache.stats().calls == 0:
                await trio.lowlevel.checkpoint()
            with pytest.raises(trio.BusyResourceError):
                await lease.call(2)
        assert results == [1]


async def test_a_failed_call_breaks_the_lease(kit: Kit) -> None:
    """Further calls in it get `BrokenResourceError`; another lease is fine."""
    async with kit.open() as cache:
        trapping = await add(cache, "f", kit.trapping())
        async with trapping.acquire() as lease:
            with pytest.raises(TrapError):
                await lease.call(1)
            with pytest.raises(trio.BrokenResourceError, match="acquire another"):
                await lease.call(1)
            assert repr(lease) == "<Lease of 'f' in group 'main': broken>"
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)


async def test_a_cancelled_call_breaks_the_lease(kit: Kit) -> None:
    """The guest was stopped somewhere in the middle."""
    config = CacheConfig(yield_fuel=1000, offload_after=None, total_fuel=10**15)
    async with kit.open(config) as cache:
        f = await add(cache, "f", kit.endless())
        async with f.acquire() as lease:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lease.call, 1)
                    while cache.stats().calls == 0:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(1)


async def test_a_block_that_ends_under_a_call_of_another_task(kit: Kit) -> None:
    """The call is stopped, the instance dropped, and nothing of it is left."""
    config = CacheConfig(yield_fuel=1000, offload_after=None, total_fuel=10**15)
    async with kit.open(config) as cache:
        f = await add(cache, "f", kit.endless())
        async with trio.open_nursery() as nursery:

            async def call(lease: Lease) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await lease.call(1)

            async with f.acquire() as lease:
                nursery.start_soon(call, lease)
                while cache.stats().calls == 0:
                    await trio.lowlevel.checkpoint()
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)


async def test_memory_can_be_read_and_written_between_calls(kit: Kit) -> None:
    """And not outside of its bounds."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.growing())
        async with f.acquire() as lease:
            memory = lease.memory
            assert memory.size == PAGE
            memory.write(PAGE - 5, b"hello")
            assert memory.read(PAGE - 5, 5) == b"hello"
            for at, n in ((PAGE - 4, 5), (-1, 1), (0, -1), (2**40, 1)):
                with pytest.raises(IndexError):
                    memory.read(at, n)
            with pytest.raises(IndexError):
                memory.write(PAGE - 1, b"xy")
            for at, n, what in ((1.5, 1, "at"), (0, 1.0, "n"), ("0", 1, "at"), (0, None, "n")):
                with pytest.raises(TypeError, match=f"{what} must be an int, got "):
                    memory.read(at, n)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=r"at must be an int, got 0\.5"):
                memory.write(0.5, b"x")  # type: ignore[arg-type]
            await lease.call(1)
            assert memory.size == 2 * PAGE
            assert memory.read(PAGE - 5, 5) == b"hello"


async def test_a_host_function_reaches_its_callers_memory(kit: Kit) -> None:
    """Through `current_lease`, which has no meaning outside of a host function."""
    async with kit.open() as cache:

        def ask(value: int) -> int:
            memory = current_lease().memory
            memory.write(value, memory.read(0, 4)[::-1])
            return memory.size

        f = await add_asking(cache, kit, ask)
        async with f.acquire() as lease:
            lease.memory.write(0, b"abcd")
            assert await lease.call(100) == PAGE
            assert lease.memory.read(100, 4) == b"dcba"
        with pytest.raises(RuntimeError, match="host function"):
            current_lease()


async def test_no_values_of_null_are_passed(kit: Kit) -> None:
    """A None gives None without a call, unless the function is declared `called_on_null`."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(1), called_on_null=True)
        assert await f.call(None) is None
        assert cache.stats().calls == 0
        with pytest.raises(TypeError, match=r"g\(i64\)"):
            await g.call(None)
        assert cache.stats().evictions["corrupted"] == 0


async def test_fuel_is_for_each_call(kit: Kit) -> None:
    """Many calls in one lease burn more together than one may."""
    config = CacheConfig(total_fuel=300_000, yield_fuel=1000, offload_after=None)
    async with kit.open(config) as cache:
        f = await add(cache, "f", kit.costly())
        async with f.acquire() as lease:
            burnt = set()
            for number in range(10):
                assert await lease.call(number) == number
                burnt.add(lease.fuel_consumed)
            assert len(burnt) == 1
            (fuel,) = burnt
            assert fuel is not None
            assert 30_000 < fuel < 300_000
        assert math.isfinite(fuel * 10)


async def test_a_lease_that_ends_while_a_call_waits_for_its_turn(kit: Kit) -> None:
    """After many short calls the next one waits; it must not run on an instance given back."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))

        async def call(lease: Lease) -> None:
            with pytest.raises(trio.ClosedResourceError, match="has ended"):
                await lease.call(1)

        for _ in range(20):  # in about half of them, the call is the first to run
            async with trio.open_nursery() as nursery:
                async with f.acquire() as lease:
                    cache._groups.main.share.burst = 10**9
                    nursery.start_soon(call, lease)
                    await trio.lowlevel.checkpoint()
        assert cache.stats().calls == 0
        assert cache.stats().idle_instances == 1


def test_states_of_a_lease() -> None:
    """Each is followed only by those of the table; an illegal step raises and changes nothing."""
    for before in LeaseState:
        for after in LeaseState:
            lease = Lease.__new__(Lease)
            lease._state = before
            if after in TRANSITIONS[before]:
                lease._step(after)
                assert lease._state is after
            else:
                with pytest.raises(IllegalStepError, match=f"is {before.value} can't be"):
                    lease._step(after)
                assert lease._state is before
    assert TRANSITIONS[LeaseState.ENDED] == frozenset()


async def test_an_exception_says_which_import_raised_it(kit: Kit) -> None:
    """In a note, by the name in the module: the exception itself and its text are as raised."""
    shared = KeyError(3)

    def ask(_value: int) -> int:
        raise shared

    async def ask_later(value: int) -> int:
        raise ValueError(value)

    async with kit.open() as cache:
        for name, fn, kind in (("f", ask, KeyError), ("g", ask_later, ValueError)):
            f = await add_asking(cache, kit, fn, name=name)
            for _ in range(2):
                with pytest.raises(kind) as caught:
                    await f.call(3)
                notes = caught.value.__notes__
                assert notes == [f"in host function host.ask0, called by {name}(i64)"]
            async with f.acquire() as lease:
                with pytest.raises(kind) as caught:
                    await lease.map([[3]])
                assert f"in row 0 of a batch of {name}(i64)" in caught.value.__notes__
        f = await add_asking(cache, kit, lambda _: "x", name="h")
        with pytest.raises(TypeError, match="i64 takes an int, got 'x'") as refused:
            await f.call(3)
        assert refused.value.__notes__ == ["in host function host.ask0, called by h(i64)"]
