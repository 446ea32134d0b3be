"""Guests that are prepared count as running: limits hold for them, and others make way."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import evolve
from kits import COSTLY, Kit, ListLogger, add
from report.replay.test_replay import replayed
from report.workloads import JsonLogger
from staging import stage
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    CodeMemoryError,
    DeadlockError,
    HostFunction,
    InstanceCache,
    Lease,
    LoadError,
    Prepare,
    current_lease,
)
from trio_wasmcache.testing import check_invariants, snapshot

SLICE = COSTLY // 3
ONCE = (Prepare("run", (5,), ("i64",), "i64"),)
ONE = CacheConfig(max_instances=1)


class Gate:
    """Registers functions whose preparation waits in a host function until it is opened."""

    def __init__(self, kit: Kit) -> None:
        self.entered, self.opened = trio.Event(), trio.Event()
        host = HostFunction(self.ask, ("i64",), ("i64",), pure=True)
        self.given: dict[str, Any] = {
            "wasm": kit.asking(),
            "imports": {"host": {"ask": host}},
            "prepare": ONCE,
        }

    async def ask(self, value: int) -> int:
        self.entered.set()
        await self.opened.wait()
        return value


async def waiting(cache: InstanceCache) -> None:
    """Wait until something waits in the cache; a thread that compiles may be needed for that."""
    while not cache.stats().waiting:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def preparing(cache: InstanceCache, gate: Gate) -> AsyncIterator[None]:
    """Another task registers ``f``, and is preparing it in the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(add, cache, "f", **gate.given))
        await gate.entered.wait()
        yield
        gate.opened.set()


async def test_it_is_in_the_books(kit: Kit) -> None:
    """As one that loads in the group that registers, with what it may touch at most."""
    async with kit.open() as cache, cache.scheduling_group("tenant", capacity=1):
        gate = Gate(kit)
        async with preparing(cache, gate):
            stats = cache.stats()
            assert (stats.running_instances, stats.idle_instances) == (1, 0)
            assert stats.running_size > 0 and stats.code_size == stats.stacks_size + (
                stats.module_code_size
            )
            assert stats.module_code_size > 0 and stats.address_space > 0
            (info,) = cache.entries()
            assert (info.function, info.generation, info.group) == ("f", 0, "tenant")
            assert (info.running, info.idle, info.waiting) == (1, 0, 0)
            (one,) = snapshot(cache).residents
            assert (one.function, one.state, one.size) == ("f", "loading", 2 * 65536)
            assert (await cache.resident_bytes()).running >= 0
            check_invariants(cache)
        stats = cache.stats()
        assert (stats.running_instances, stats.running_size, stats.code_size) == (0, 0, 0)
        assert (stats.hits, stats.misses, stats.blocks, sum(stats.evictions.values())) == (0,) * 4


async def test_its_size_is_the_real_one(kit: Kit) -> None:
    """After its start, and after each of its calls."""
    async with kit.open() as cache:
        seen = []

        def ask(value: int) -> int:
            seen.append(snapshot(cache).residents[0].size)
            return value

        def grow(value: int) -> int:
            current_lease().memory.grow(1)
            return ask(value)

        host = HostFunction(grow, ("i64",), ("i64",), pure=True)
        await add(cache, "f", kit.asking(), imports={"host": {"ask": host}}, prepare=ONCE * 3)
        assert seen == [size * 65536 for size in (2, 3, 4)]


async def test_idle_ones_make_way(kit: Kit) -> None:
    """For its count and its code, and the log says for which function and group."""
    logger = ListLogger()
    async with kit.open(ONE, logger=logger) as cache:
        g = await add(cache, "g", kit.adding(1))
        assert await g.call(1) == 2
        async with cache.scheduling_group("tenant", capacity=1):
            await add(cache, "f", kit.adding(2), prepare=ONCE)
        (event,) = logger.fields("evicted")
        assert (event["function"], event["reason"]) == ("g", "count")
        assert (event["for_function"], event["for_group"]) == ("f", "tenant")
        assert await g.call(1) == 2


async def test_others_wait_for_it(kit: Kit) -> None:
    """An acquire that does not fit beside it is served when it has ended."""
    async with kit.open(ONE) as cache:
        g = await add(cache, "g", kit.adding(1))
        gate = Gate(kit)
        async with preparing(cache, gate), trio.open_nursery() as nursery:
            nursery.start_soon(g.call, 1)
            await wait_all_tasks_blocked()
            assert cache.stats().waiting == 1
            gate.opened.set()
        assert cache.stats().misses == 1


async def test_two_take_turns(kit: Kit) -> None:
    """If there is capacity for one of them, the other one waits; both are made."""
    async with kit.open(ONE) as cache, trio.open_nursery() as nursery:
        one, two = Gate(kit), Gate(kit)
        nursery.start_soon(functools.partial(add, cache, "f", **one.given))
        await one.entered.wait()
        nursery.start_soon(functools.partial(add, cache, "g", **two.given))
        await waiting(cache)
        assert not two.entered.is_set()
        assert (cache.stats().waiting, cache.stats().blocks) == (1, 0)
        one.opened.set()
        await two.entered.wait()
        assert cache.stats().running_instances == 1
        two.opened.set()


async def test_within_a_lease_that_has_all(kit: Kit) -> None:
    """It would wait for what the same task holds: that is refused at once, with what to do."""
    async with kit.open(ONE) as cache:
        g = await add(cache, "g", kit.adding(1))
        async with g.acquire() as lease:
            words = r"the preparation of f\(i64\) waits for room.*waits for the preparation of f"
            with pytest.raises(DeadlockError, match=words) as caught:
                await add(cache, "f", kit.adding(2), prepare=ONCE)
            assert "register functions with prepare= outside of leases" in str(caught.value)
            assert await lease.call(1) == 2
            check_invariants(cache)
        f = await add(cache, "f", kit.adding(2), prepare=ONCE)
        assert await f.call(1) == 3


async def test_a_holder_that_joins_in_vain(kit: Kit) -> None:
    """A task with all capacity waits for a preparation of another task: it is refused, not that."""
    async with kit.open(ONE) as cache, trio.open_nursery() as nursery:
        g, gate = await add(cache, "g", kit.adding(1)), Gate(kit)
        async with g.acquire():
            nursery.start_soon(functools.partial(add, cache, "f", **gate.given))
            await waiting(cache)
            with pytest.raises(DeadlockError, match=r"waits for the preparation of f\(i64\)"):
                await add(cache, "h", **gate.given)
            gate.opened.set()
        await gate.entered.wait()


async def test_more_than_an_empty_cache_can_run(kit: Kit) -> None:
    """It is refused by the limit's name, and nothing is left."""
    async with kit.open(CacheConfig(max_running_size=65536)) as cache:
        with pytest.raises(CodeMemoryError, match="max_running_size"):
            await add(cache, "f", kit.growing(), prepare=ONCE)
        assert cache.functions() == () and not cache.entries()


async def test_cancelled_everywhere_while_it_waits(kit: Kit) -> None:
    """For capacity, behind a lease, and before another acquire."""
    async with stage(kit, CacheConfig(yield_fuel=SLICE, max_size=0, max_instances=1)) as at:
        wasm, cache = kit.costly(), at.cache
        g = await add(cache, "g", kit.adding(1))

        async def scenario() -> None:
            await at.occupy(g.acquire, behind=g.acquire)
            f = await add(cache, "f", wasm, prepare=ONCE * 2, replace=True)
            assert await f.call(5) == 5

        await at.run(scenario, least=9)


@pytest.mark.parametrize("waits", [False, True])
async def test_closing_ends_it(kit: Kit, waits: bool) -> None:
    """Its books are closed with those of all others, whether it runs or waits for capacity."""
    gate = Gate(kit)

    async def register(cache: InstanceCache) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await add(cache, "f", **gate.given)

    log = JsonLogger()
    async with trio.open_nursery() as nursery:
        async with kit.open(evolve(ONE, log_uses=True), logger=log) as cache:
            lease: Lease | None = None
            if waits:
                g = await add(cache, "g", kit.adding(1))
                lease = g.acquire()
                await lease.__aenter__()
            nursery.start_soon(register, cache)
            await (waiting(cache) if waits else gate.entered.wait())
            assert gate.entered.is_set() is not waits
        if lease is not None:
            await lease.__aexit__(None, None, None)
    assert replayed(log.events)[0].disagreements == []
    (ended,) = [it for it in log.events if it["event"] == "wasmcache.preparation_ended"]
    assert (ended["error"], ended["instance"] is None) == ("ClosedResourceError", waits)


async def test_closing_waits_for_its_thread(kit: Kit) -> None:
    """As for that of any call: the thread leaves the guest within a slice."""
    entered = trio.Event()

    async def register(cache: InstanceCache) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await add(cache, "f", kit.endless(), prepare=ONCE)

    async with trio.open_nursery() as nursery:
        async with kit.open(CacheConfig(total_fuel=10**12)) as cache:
            nursery.start_soon(register, cache)
            while not cache._pool.runner.threads.taken:
                await trio.lowlevel.checkpoint()
            entered.set()
    assert entered.is_set()


async def test_a_group_that_closes_ends_it_for_others_too(kit: Kit) -> None:
    """The task of another group that waits for the same makes it once more, in its own group."""
    logger = ListLogger()
    async with kit.open(logger=logger) as cache, trio.open_nursery() as nursery:
        gate, scope = Gate(kit), trio.CancelScope()

        async def first() -> None:
            with scope:
                await add(cache, "f", **gate.given)

        async def join() -> None:
            await gate.entered.wait()
            await add(cache, "g", **gate.given)

        nursery.start_soon(join)
        async with cache.scheduling_group("a", capacity=1) as group:
            group.start_soon(first)
            await gate.entered.wait()
            await wait_all_tasks_blocked()
            scope.cancel()
        # Its books are closed, and its host function fails when it returns.
        assert (cache.entries(), cache.stats().running_instances) == ((), 0)
        gate.opened.set()
    (prepared,) = logger.fields("prepared")
    assert (prepared["function"], prepared["group"]) == ("g", "main")


async def test_its_story(kit: Kit) -> None:
    """Of one that has to wait, and then fails: its events are those of one request."""
    logger = ListLogger()
    async with kit.open(evolve(ONE, log_uses=True), logger=logger) as cache:
        g = await add(cache, "g", kit.adding(1))
        async with trio.open_nursery() as nursery:
            async with g.acquire():

                async def register() -> None:
                    with pytest.raises(LoadError):
                        await add(cache, "f", kit.trapping(), prepare=ONCE)

                nursery.start_soon(register)
                await waiting(cache)
    (asked,) = logger.fields("preparation_requested")
    (ended,) = logger.fields("preparation_ended")
    assert (asked["function"], asked["generation"], asked["group"]) == ("f", 0, "main")
    assert asked["for_tasks"] and asked["code_bytes"] > 0 and asked["worst_size_bytes"] > 0
    assert asked["request"] == ended["request"] and ended["error"] == "LoadError"
    assert ended["wait_seconds"] > 0 and ended["held_seconds"] > 0
    assert ended["instance"] is not None and ended["size_bytes"] == 2 * 65536
