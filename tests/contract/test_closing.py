"""Semantics 17, 18: leaving a group, and leaving the cache, under everybody's hands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from kits import FakeKit, Kit, ListLogger, add, add_asking, stack_of
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache, MiB, SchedulingGroup
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache._cache.group import MAX_WORK
from trio_wasmcache._pool.evictor import AT_ONCE
from trio_wasmcache.testing import check_invariants, snapshot

CLOSED = "'f' can't be used: the cache is closed"


class Outcomes(list[str]):
    """What became of several tasks."""

    async def note(self, use: Callable[[], Awaitable[object]]) -> None:
        """Run `use`, and remember how it ended."""
        try:
            await use()
        except trio.ClosedResourceError as error:
            self.append(str(error))
        else:
            self.append("done")


async def test_18_the_exception_of_the_block_leaves_it_unwrapped(kit: Kit) -> None:
    """As itself, not in a group, with its traceback."""
    error = ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError) as caught:
        async with kit.open() as cache:
            f = await add(cache, "f", kit.adding(1))
            await f.call(1)
            raise error
    assert caught.value is error
    assert caught.traceback[-1].path.name == "test_closing.py"


async def test_18_the_exception_of_the_block_is_not_lost_in_a_cancelled_scope(kit: Kit) -> None:
    """A cancellation that arrives while the cache is being closed does not swallow it."""
    with trio.CancelScope() as scope:
        with pytest.raises(ZeroDivisionError):
            async with kit.open() as cache:
                await add(cache, "f", kit.adding(1))
                scope.cancel()
                raise ZeroDivisionError
    assert not scope.cancelled_caught


async def test_18_a_cancelled_block_closes_everything(kit: Kit) -> None:
    """`Cancelled` goes through, and the cache is closed all the same."""
    caches: list[InstanceCache] = []
    with trio.CancelScope() as scope:
        async with kit.open() as cache:
            caches.append(cache)
            f = await add(cache, "f", kit.adding(1))
            async with f.acquire() as lease:
                await lease.call(1)
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert "closed" in repr(caches[0])
    check_invariants(caches[0])


async def test_18_a_closed_cache_refuses_everything(kit: Kit) -> None:
    """Each with `ClosedResourceError`; looking at it still works."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
    with pytest.raises(trio.ClosedResourceError, match="the cache is closed"):
        await f.call(1)
    with pytest.raises(trio.ClosedResourceError):
        await add(cache, "g", kit.adding(2))
    with pytest.raises(trio.ClosedResourceError):
        cache.remove("f")
    with pytest.raises(trio.ClosedResourceError):
        cache.resize(max_size=1)
    with pytest.raises(trio.ClosedResourceError):
        await cache.warm("f", ("i64",))
    with pytest.raises(trio.ClosedResourceError):
        async with cache.scheduling_group("late", capacity=1):
            raise AssertionError("opened")
    assert cache.stats().evictions["closed"] == 1
    assert cache.entries() == ()
    assert cache.stats().hits == 0


async def test_18_waiters_for_an_instance_are_told_at_once(kit: Kit) -> None:
    """Those queued for an instance, and the one that holds it at its next call."""
    outcomes = Outcomes()
    async with trio.open_nursery() as nursery:
        async with kit.open() as cache:
            f = await add(cache, "f", kit.adding(1))
            held = trio.Event()
            go_on = trio.Event()

            async def hold() -> None:
                async with f.acquire() as lease:
                    held.set()
                    await go_on.wait()
                    await lease.call(1)

            nursery.start_soon(outcomes.note, hold)
            await held.wait()
            for _ in range(3):
                nursery.start_soon(outcomes.note, lambda: f.call(1))
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert outcomes == [CLOSED] * 3
        check_invariants(cache)
        go_on.set()
    assert outcomes == [CLOSED] * 4


async def test_18_who_was_just_granted_an_instance_is_told(kit: Kit) -> None:
    """The waiter is woken by the recycle, and the cache closes before it runs: it gets nothing."""
    outcomes = Outcomes()
    async with trio.open_nursery() as nursery:
        async with kit.open() as cache:
            f = await add(cache, "f", kit.adding(1))
            async with f.acquire():
                nursery.start_soon(outcomes.note, lambda: f.call(1))
                await wait_all_tasks_blocked()
    assert outcomes == [CLOSED]
    check_invariants(cache)


async def test_18_who_was_just_granted_a_token_is_told(kit: Kit) -> None:
    """And gives it back."""
    outcomes = Outcomes()
    async with trio.open_nursery() as nursery:
        async with kit.open(CacheConfig(main_capacity=1)) as cache:
            f = await add(cache, "f", kit.adding(1), concurrency=2)
            async with f.acquire():
                nursery.start_soon(outcomes.note, lambda: f.call(1))
                await wait_all_tasks_blocked()
                assert snapshot(cache).group("main").waiting_for_token == 1
    assert outcomes == [CLOSED]
    assert snapshot(cache).group("main").tokens == 0
    if isinstance(kit, FakeKit):  # and nothing was loaded for it
        assert kit.engine.steps.count("instantiate") == 1
    check_invariants(cache)


async def test_18_waiters_for_tokens_and_room_are_told_at_once(kit: Kit) -> None:
    """Wherever an acquire waits, closing the cache ends it."""
    outcomes = Outcomes()
    async with trio.open_nursery() as nursery:
        async with kit.open() as cache:
            f = await add(cache, "f", kit.adding(1), concurrency=2)
            g = await add(cache, "g", kit.adding(2))
            async with cache.scheduling_group("small", capacity=1) as group, f.acquire():
                cache.resize(max_code_size=max(f.code_size, g.code_size) + stack_of(cache))
                context = cache._groups.main_group.acquire("g", ("i64",))
                nursery.start_soon(outcomes.note, context.__aenter__)  # room
                token = group.acquire("f", ("i64",))
                nursery.start_soon(outcomes.note, token.__aenter__)  # a token
                await wait_all_tasks_blocked()
                assert cache.stats().waiting == 2
                check_invariants(cache)
                await parts_of(cache).close()
                await wait_all_tasks_blocked()
                assert sorted(outcomes) == [CLOSED, CLOSED.replace("f", "g", 1)]
    check_invariants(cache)


async def test_18_who_is_loading_is_told(kit: Kit) -> None:
    """An endless start function ends with the cache."""
    outcomes = Outcomes()
    async with trio.open_nursery() as nursery:
        async with kit.open(CacheConfig(offload_after=None, total_fuel=10**15)) as cache:
            f = await add(cache, "f", kit.endless_start())
            nursery.start_soon(outcomes.note, lambda: f.call(1))
            while cache.stats().running_instances == 0:
                await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
    assert len(outcomes) == 1
    assert "closed" in outcomes[0]
    check_invariants(cache)


@pytest.mark.parametrize("offload", [None, 0], ids=["inline", "thread"])
async def test_18_what_was_half_loaded_is_closed(fake: FakeKit, offload: int | None) -> None:
    """An instance whose start is under way, wherever that runs."""
    outcomes = Outcomes()
    async with trio.open_nursery() as nursery:
        async with fake.open(CacheConfig(offload_after=offload, total_fuel=10**15)) as cache:
            f = await add(cache, "f", fake.endless_start())
            nursery.start_soon(outcomes.note, lambda: f.call(1))
            while fake.engine.open_instances == 0:
                await trio.lowlevel.checkpoint()
            for _ in range(5):
                await trio.lowlevel.checkpoint()
    assert len(outcomes) == 1
    assert fake.engine.open_instances == fake.engine.loaded_modules == 0


async def test_18_a_module_that_is_loading_is_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as it is there, as nobody wants it any more: a thread that loads is waited for."""
    fake = FakeKit()
    outcomes = Outcomes()
    load, begun, finish = fake.engine.load, trio.Event(), trio.Event()

    async def load_in_thread(*args: Any) -> Any:
        begun.set()
        with trio.CancelScope(shield=True):
            await finish.wait()
            return await load(*args)

    monkeypatch.setattr(fake.engine, "load", load_in_thread)
    async with trio.open_nursery() as nursery:
        async with fake.open() as cache:
            f = await add(cache, "f", fake.adding(1))
            nursery.start_soon(outcomes.note, lambda: f.call(1))
            await begun.wait()
        assert fake.engine.steps == ["compile"]
        finish.set()
    assert len(outcomes) == 1
    assert "closed" in outcomes[0]
    assert fake.engine.steps == ["compile", "load"]
    assert fake.engine.open_instances == fake.engine.loaded_modules == 0


async def test_18_registering_ends_with_the_cache(kit: Kit) -> None:
    """A compile under way is abandoned."""
    outcomes = Outcomes()
    async with trio.open_nursery() as nursery:
        async with kit.open() as cache:
            nursery.start_soon(outcomes.note, lambda: add(cache, "f", kit.adding(1)))
            while not snapshot(cache).reserved:
                await trio.lowlevel.checkpoint()
    assert len(outcomes) == 1
    assert "closed" in outcomes[0]
    assert cache.functions() == ()


async def test_18_a_call_in_a_host_function_fails_when_that_returns(kit: Kit) -> None:
    """Its instance is closed at once; the host function is left to finish."""
    outcomes = Outcomes()
    finish = trio.Event()
    async with trio.open_nursery() as nursery:
        async with kit.open() as cache:

            async def ask(value: int) -> int:
                await finish.wait()
                outcomes.append("answered")
                return value

            f = await add_asking(cache, kit, ask)
            nursery.start_soon(outcomes.note, lambda: f.call(1))
            await wait_all_tasks_blocked()
        check_invariants(cache)
        assert outcomes == []
        finish.set()
    assert outcomes[0] == "answered"
    assert "closed" in outcomes[1]


async def test_17_leaving_a_group_evicts_its_instances(kit: Kit, log: ListLogger) -> None:
    """And only its own."""
    async with kit.open(logger=log) as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        async with cache.scheduling_group("g", capacity=1):
            await f.call(1)
            assert cache.stats().idle_instances == 2
        assert cache.stats().idle_instances == 1
        assert [info.group for info in cache.entries()] == ["main"]
        (event,) = log.fields("evicted")
        assert (event["reason"], event["group"]) == ("group_closed", "g")
        check_invariants(cache)


async def test_18_leaving_a_group_ends_the_leases_of_others_in_it(kit: Kit) -> None:
    """A handler task outside the group's nursery, in a lease, in a queue, or still loading."""
    outcomes = Outcomes()
    async with (
        kit.open(CacheConfig(offload_after=None, total_fuel=10**15)) as cache,
        trio.open_nursery() as nursery,
    ):
        f = await add(cache, "f", kit.endless())
        slow = await add(cache, "slow", kit.endless_start())
        other = await add(cache, "other", kit.adding(1))

        async def use(group: SchedulingGroup, name: str) -> None:
            async with group.acquire(name, ("i64",)) as lease:
                await lease.call(1)

        async with cache.scheduling_group("g", capacity=8) as group:
            for name in ("f", "f", "slow"):
                nursery.start_soon(outcomes.note, lambda name=name: use(group, name))
            while cache.stats().running_instances < 2 or cache.stats().calls == 0:
                await trio.lowlevel.checkpoint()
            check_invariants(cache)
        while len(outcomes) < 3:
            await trio.lowlevel.checkpoint()
        assert all("closed" in outcome for outcome in outcomes)
        check_invariants(cache)
        assert cache.stats().running_instances == 0
        assert await other.call(1) == 2
        assert slow.name == "slow"
        assert f.name == "f"


@pytest.mark.parametrize("offload", [None, 0], ids=["inline", "thread"])
async def test_18_a_group_is_closed_whole_in_a_cancelled_scope(
    fake: FakeKit, offload: int | None
) -> None:
    """A thread that is in a call is waited for all the same."""
    outcomes = Outcomes()
    limits = CacheConfig(offload_after=offload, total_fuel=10**15)
    async with fake.open(limits) as cache, trio.open_nursery() as nursery:
        await add(cache, "f", fake.endless())

        async def use(group: SchedulingGroup) -> None:
            async with group.acquire("f", ("i64",)) as lease:
                await lease.call(1)

        with trio.CancelScope() as scope:
            async with cache.scheduling_group("g", capacity=1) as group:
                nursery.start_soon(outcomes.note, lambda: use(group))
                while cache.stats().calls == 0:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert fake.engine.open_instances == fake.engine.loaded_modules == 0
        assert cache.stats().groups == 1
        check_invariants(cache)
    assert len(outcomes) == 1


@pytest.mark.parametrize("holding", [False, True], ids=["idle", "held"])
async def test_18_closing_many_groups_lets_others_run(fake: FakeKit, holding: bool) -> None:
    """Pass by pass; meanwhile, nothing is granted any more, and cancelling changes nothing."""
    number = 10 * MAX_WORK
    passes = 0
    groups: list[SchedulingGroup] = []
    refused: list[bool] = []
    stop = trio.Event()

    async def tenant(name: str) -> None:
        with suppress(trio.ClosedResourceError):
            async with cache.scheduling_group(name, capacity=2) as group:
                async with group.acquire("f", ("i64",)) as lease:
                    await lease.call(1)
                    groups.append(group)
                    if holding:
                        await stop.wait()
                await stop.wait()

    async def look_on() -> None:
        nonlocal passes
        while not stop.is_set():
            await trio.lowlevel.checkpoint()
            if snapshot(cache).closed:
                passes += 1
                scope.cancel()
                for group in (groups[0], groups[-1]):
                    try:
                        async with group.acquire("f", ("i64",)):
                            refused.append(False)
                    except trio.ClosedResourceError:
                        refused.append(True)

    config = CacheConfig(max_code_size=1024 * MiB, offload_after=None)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with fake.open(config) as cache:
                await add(cache, "f", fake.adding(1), concurrency=2)
                for place in range(number):
                    nursery.start_soon(tenant, f"g{place}")
                while len(groups) < number:
                    await trio.lowlevel.checkpoint()
                nursery.start_soon(look_on)
        assert passes >= 5  # three checkpoints each
        assert refused
        assert all(refused)
        assert cache.stats().idle_instances == cache.stats().running_instances == 0
        check_invariants(cache)
        stop.set()


@pytest.mark.parametrize("how", ["remove", "replace", "resize", "group"])
async def test_many_instances_are_closed_in_pieces(fake: FakeKit, how: str) -> None:
    """Their memory is not needed by anybody, so other tasks run between every few of them."""
    async with fake.open(CacheConfig(max_instances=200, idle_timeout=math.inf)) as cache:
        wasm = fake.adding(1)
        f = await add(cache, "f", wasm, concurrency=100)
        left: list[int] = []

        async def watch() -> None:
            while fake.engine.open_instances:
                left.append(fake.engine.open_instances)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            async with cache.scheduling_group("g", capacity=100):
                await cache.warm("f", ("i64",), 100)
                assert fake.engine.open_instances == 100
                if how == "remove":
                    cache.remove("f")
                elif how == "replace":
                    await add(cache, "f", wasm, concurrency=100, replace=True)
                elif how == "resize":
                    cache.resize(max_size=0)
                nursery.start_soon(watch)
                check_invariants(cache)
                if how != "group":
                    await wait_all_tasks_blocked()
            assert fake.engine.open_instances == 0
        # In one pass the step itself, the closing block and the background task; seen every second.
        assert max(a - b for a, b in itertools.pairwise([100, *left, 0])) <= 6 * AT_ONCE
        assert f.generation == 1
        check_invariants(cache)
