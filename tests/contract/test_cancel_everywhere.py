"""Cancelled at every checkpoint in turn, an acquire gives back all it took, wherever it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from kits import COSTLY, FakeKit, Kit, add, add_asking, stack_of
from staging import look, stage
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, Lease, SchedulingGroup
from trio_wasmcache.testing import cancel_everywhere, check_invariants, snapshot

SLICE = COSTLY // 3  # so that what is costly takes four
KEPT = CacheConfig(yield_fuel=SLICE, offload_after=None)
# Nothing is kept, so that each acquire loads.
NOTHING_KEPT = CacheConfig(max_size=0, yield_fuel=SLICE, offload_after=None)
TYPES = ("i64",)


async def test_while_loading_and_in_a_call(kit: Kit) -> None:
    """Loading the code, starting, between the slices of a call."""
    async with stage(kit, NOTHING_KEPT) as at:
        slow = await add(at.cache, "slow", kit.adding(1, slow_start=True))
        costly = await add(at.cache, "costly", kit.costly())

        async def scenario() -> None:
            assert await slow.call(1) == 2
            assert await costly.call(5) == 5

        await at.run(scenario, least=16)
        assert await slow.call(1) == 2


async def test_in_a_call_in_a_thread(kit: Kit) -> None:
    """The thread is stopped and waited for; then the instance is dropped."""
    async with stage(kit, CacheConfig(yield_fuel=SLICE, offload_after=0)) as at:
        costly = await add(at.cache, "costly", kit.costly())

        async def scenario() -> None:
            assert await costly.call(5) == 5

        await at.run(scenario, least=4)
        assert await costly.call(6) == 6


async def test_in_a_host_function(kit: Kit) -> None:
    """Inside of it, in a lease that it takes itself, and where the guest goes on afterwards."""
    async with stage(kit, KEPT) as at:
        inner = await add(at.cache, "inner", kit.adding(1))
        asked = 0

        async def ask(value: int) -> int:
            nonlocal asked
            asked += 1
            await trio.lowlevel.checkpoint()
            result: int = await inner.call(value)
            return result

        outer = await add_asking(at.cache, kit, ask, ask, name="outer")

        async def scenario() -> None:
            assert await outer.call(5) == 6

        await at.run(scenario, least=10)
        assert asked > 4
        assert await outer.call(6) == 7


async def test_while_loading_on_a_seat(kit: Kit) -> None:
    """The seat is back, and so is its module; the next lease of it is a hit again."""
    async with stage(kit, KEPT) as at:
        slow = await add(at.cache, "slow", kit.adding(1, slow_start=True), isolation="fresh")
        assert await slow.call(1) == 2

        async def scenario() -> None:
            async with slow.acquire():
                pass  # without a checkpoint in which an instance could be lost

        await at.run(scenario, least=8)
        stats = at.cache.stats()
        assert (stats.misses, stats.idle_instances, stats.loaded_modules) == (1, 1, 1)
        assert sum(stats.evictions.values()) == 0
        assert await slow.call(1) == 2


async def test_in_leases_that_are_reset(kit: Kit) -> None:
    """Loading, marking, calling: what is kept is as it began, and what is not leaves nothing."""
    async with stage(kit, KEPT) as at:
        wasm = kit.costly()

        async def scenario() -> None:
            f = await add(at.cache, "f", wasm, isolation="reset", replace=True)
            for _ in range(2):
                async with f.acquire() as lease:
                    assert lease.memory.read(0, 6) == bytes(6)
                    lease.memory.write(0, b"secret")
                    assert await lease.call(5) == 5

        await at.run(scenario, least=20)


async def test_queued_for_a_seat(kit: Kit) -> None:
    """Whoever is behind loads on it."""
    async with stage(kit, KEPT) as at:
        f = await add(at.cache, "f", kit.adding(1, slow_start=True), isolation="fresh")

        async def scenario() -> None:
            await at.occupy(f.acquire, behind=f.acquire)
            assert await f.call(1) == 2

        await at.run(scenario, least=10)


async def test_queued_for_an_instance(kit: Kit) -> None:
    """The one behind is served as if nobody had been before it."""
    async with stage(kit, KEPT) as at:
        f = await add(at.cache, "f", kit.adding(1))

        async def scenario() -> None:
            await at.occupy(f.acquire, behind=f.acquire)
            assert await f.call(1) == 2

        await at.run(scenario, least=4)
        assert await f.call(1) == 2


async def test_queued_for_an_instance_that_has_to_be_loaded(kit: Kit) -> None:
    """The slot's last holder leaves nothing, so the waiter loads, or the one behind does."""
    async with stage(kit, NOTHING_KEPT) as at:
        f = await add(at.cache, "f", kit.adding(1, slow_start=True))

        async def scenario() -> None:
            await at.occupy(f.acquire, behind=f.acquire)
            assert await f.call(1) == 2

        await at.run(scenario, least=10)


async def test_queued_for_a_token(kit: Kit) -> None:
    """The token is not lost, nor the one behind."""
    async with stage(kit, KEPT) as at:
        await add(at.cache, "f", kit.adding(1), concurrency=3)
        async with at.cache.scheduling_group("small", capacity=1) as group:

            def acquire() -> Lease:
                return group.acquire("f", TYPES)

            async def scenario() -> None:
                await at.occupy(acquire, behind=acquire)
                async with acquire() as lease:
                    assert await lease.call(1) == 2

            await at.run(scenario, least=4)
            async with acquire() as lease:
                assert await lease.call(1) == 2


async def test_queued_for_room(kit: Kit) -> None:
    """The budget holds one running instance: the holder's, then the waiter's, then the other's."""
    async with stage(kit, KEPT) as at:
        f, g, h = [await add(at.cache, name, kit.adding(1)) for name in "fgh"]
        code = max(function.code_size for function in (f, g, h))
        at.cache.resize(max_code_size=code + stack_of(at.cache))

        async def scenario() -> None:
            await at.occupy(f.acquire, behind=h.acquire)
            assert await g.call(1) == 2

        await at.run(scenario, least=4)
        assert await g.call(1) == 2


async def test_nested_leases_in_two_groups(kit: Kit) -> None:
    """Two tokens, two instances and a queue for each: all come back."""
    async with stage(kit, NOTHING_KEPT) as at:
        for name in "fg":
            await add(at.cache, name, kit.adding(1))
        async with (
            at.cache.scheduling_group("one", capacity=1) as one,
            at.cache.scheduling_group("two", capacity=1) as two,
        ):

            def acquire() -> Lease:
                return one.acquire("g", TYPES)

            async def scenario() -> None:
                async with two.acquire("f", TYPES) as outer:
                    await at.occupy(acquire, behind=acquire)
                    async with acquire() as inner:
                        assert await inner.call(await outer.call(1)) == 3

            await at.run(scenario, least=8)


async def test_while_warming(kit: Kit) -> None:
    """What was warmed by then stays, or goes; nothing else does."""
    async with stage(kit, KEPT) as at:
        await add(at.cache, "f", kit.adding(1, slow_start=True), concurrency=3)

        async def scenario() -> None:
            await at.cache.warm("f", TYPES, 3)
            at.cache.resize(max_size=0)
            at.cache.resize(max_size=KEPT.max_size)

        await at.run(scenario, least=10)


async def test_while_registering(kit: Kit) -> None:
    """Nothing of it stays: no function, no reserved name, no compiled module."""
    async with stage(kit, KEPT) as at:
        wasm = kit.adding(1)

        async def scenario() -> None:
            f = await add(at.cache, "f", wasm)
            # A checkpoint here would be one at which the function is there to stay.
            assert f.generation > 0
            at.cache.remove("f")

        await at.run(scenario, least=2)
        assert at.cache.functions() == ()
        assert not snapshot(at.cache).reserved
        assert at.cache.stats().artifact_size == 0
        assert not at.cache._compiler._compiling
        f = await add(at.cache, "f", wasm)
        assert await f.call(1) == 2


async def test_while_replacing(kit: Kit) -> None:
    """The old generation goes on serving; its holder and its waiters never notice."""
    async with stage(kit, KEPT) as at:
        await add(at.cache, "f", kit.adding(1))
        wasm = kit.adding(1)

        def acquire() -> Lease:
            return at.cache.acquire("f", TYPES)

        async def scenario() -> None:
            await at.occupy(acquire, behind=acquire)
            replaced = await add(at.cache, "f", wasm, replace=True)
            assert await replaced.call(1) == 2

        await at.run(scenario, least=5)
        async with acquire() as lease:
            assert await lease.call(1) == 2


async def test_replaced_under_a_waiter_that_is_cancelled(kit: Kit) -> None:
    """Its place in the new generation's queue goes to the one behind."""
    async with stage(kit, NOTHING_KEPT) as at:
        await add(at.cache, "f", kit.adding(1))
        other = kit.adding(1)
        await add(at.cache, "other", other)  # so that replacing takes one checkpoint

        def acquire() -> Lease:
            return at.cache.acquire("f", TYPES)

        async def scenario() -> None:
            await at.occupy(acquire, behind=acquire)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, acquire)
                nursery.start_soon(call, acquire)
                await add(at.cache, "f", other, replace=True)

        await at.run(scenario, least=8)


async def call(acquire: Callable[[], Lease]) -> None:
    async with acquire() as lease:
        assert await lease.call(1) == 2


async def test_at_the_exit_of_a_group(kit: Kit) -> None:
    """Its tasks, and those of others in it, end; its instances go, its name is free again."""
    async with stage(kit, KEPT) as at:
        await add(at.cache, "f", kit.costly())

        async def scenario() -> None:
            async with trio.open_nursery() as nursery:
                async with at.cache.scheduling_group("g", capacity=2) as group:
                    for _ in range(3):
                        group.start_soon(use, group)
                    nursery.start_soon(from_outside, group)
                    await trio.lowlevel.checkpoint()

        async def use(group: SchedulingGroup) -> None:
            async with group.acquire("f", TYPES) as lease:
                assert await lease.call(1) == 1

        async def from_outside(group: SchedulingGroup) -> None:
            try:
                await use(group)
            except trio.ClosedResourceError:
                await trio.lowlevel.checkpoint()

        await at.run(scenario, least=30)
        assert at.cache.stats().groups == 1
        assert at.cache.entries() == ()


async def test_at_the_exit_of_the_cache(fake: FakeKit) -> None:
    """Wherever its tasks were, all that is native is closed, and everybody ends."""
    config = CacheConfig(yield_fuel=SLICE, offload_after=None, main_capacity=3)

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            async with fake.open(config) as cache:
                costly = await add(cache, "costly", fake.costly())
                slow = await add(cache, "slow", fake.adding(1, slow_start=True))
                for function in (costly, costly, slow, slow):
                    nursery.start_soon(closing, function.call)
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                async with costly.acquire():
                    await trio.lowlevel.checkpoint()

    async def closing(use: Callable[[int], object]) -> None:
        try:
            await use(1)  # type: ignore[misc]
        except trio.ClosedResourceError:
            await trio.lowlevel.checkpoint()

    def check() -> None:
        assert fake.engine.open_instances == fake.engine.loaded_modules == 0

    assert await cancel_everywhere(scenario, check) > 40


async def test_the_helper_finds_what_leaks() -> None:
    """A scenario that forgets to clean up after its second checkpoint is found out."""
    held: list[str] = []

    async def leaks() -> None:
        await trio.lowlevel.checkpoint()
        held.append("something")
        await trio.lowlevel.checkpoint()
        held.remove("something")

    def check() -> None:
        assert not held

    with pytest.raises(AssertionError):
        await cancel_everywhere(leaks, check)


async def test_the_helper_cancels_what_was_woken_but_has_not_run() -> None:
    """What was handed over to a task that is cancelled just then must not be lost."""
    lost: list[str] = []
    event = trio.Event()

    async def loses() -> None:
        nonlocal event
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake)
            lost.append("handed over")
            await event.wait()
            lost.clear()

    async def wake() -> None:
        await wait_all_tasks_blocked()
        event.set()

    runs = 0

    def count() -> None:
        nonlocal runs
        runs += 1

    assert await cancel_everywhere(loses, count) == runs - 2
    assert runs >= 6


async def test_the_helper_counts_also_checkpoints_of_children() -> None:
    """And goes on past those at which nothing can be cancelled."""

    async def child() -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()

    async def scenario() -> None:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(child)

    assert await cancel_everywhere(scenario) >= 16
    with pytest.raises(AssertionError, match="within 5 runs"):
        await cancel_everywhere(scenario, limit=5)


async def test_the_helper_leaves_others_alone(fake: FakeKit) -> None:
    """Tasks that were there before are not counted, and not cancelled."""
    steps = 0

    async def other() -> None:
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    async with fake.open() as cache, trio.open_nursery() as nursery:
        f = await add(cache, "f", fake.adding(1))
        nursery.start_soon(other)
        count = await cancel_everywhere(lambda: f.call(1), lambda: look(cache, fake))
        assert count < 12
        before = steps
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert steps > before
        nursery.cancel_scope.cancel()
    check_invariants(cache)
