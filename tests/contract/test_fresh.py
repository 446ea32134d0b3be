"""`isolation="fresh"`: a new instance for every lease, on a seat that keeps the module loaded."""

from __future__ import annotations

import pytest
import trio
from kits import PAGE, FakeKit, Kit, ListLogger, add
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, LoadError, TrapError
from trio_wasmcache.testing import check_invariants


async def test_a_lease_leaves_a_seat_and_the_next_is_a_hit(kit: Kit) -> None:
    """The module stays loaded, one page is counted, and the instance is a new one."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), isolation="fresh")
        assert (f.isolation, f.isolation_verdict.partition(":")[0]) == ("fresh", "fresh")
        async with f.acquire() as lease:
            assert lease.size == 2 * PAGE
            lease.memory.write(100, b"secret")
            assert await lease.call(1) == 2
        stats = cache.stats()
        assert (stats.idle_instances, stats.total_size, stats.loaded_modules) == (1, PAGE, 1)
        check_invariants(cache)
        async with f.acquire() as lease:
            assert lease.memory.read(100, 6) == bytes(6)
            assert await lease.call(1) == 2
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.load.count) == (1, 1, 2)
        check_invariants(cache)


async def test_nothing_native_rests_on_a_seat(fake: FakeKit) -> None:
    """The instance is closed when its lease ends, in that step."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1), isolation="fresh")
        async with f.acquire() as lease:
            await lease.call(1)
            assert fake.engine.open_instances == 1
        assert (fake.engine.open_instances, fake.engine.loaded_modules) == (0, 1)


async def test_a_grown_instance_leaves_no_more_than_a_seat(kit: Kit) -> None:
    """So a limit on what is kept does not cost it its module."""
    config = CacheConfig(max_instance_size=2 * PAGE)
    async with kit.open(config) as cache:
        f = await add(cache, "f", kit.growing(), isolation="fresh")
        for _ in range(3):
            async with f.acquire() as lease:
                await lease.call(1)
                assert lease.size == 3 * PAGE
        assert (cache.stats().hits, sum(cache.stats().evictions.values())) == (2, 0)


async def test_a_lease_that_ends_badly_leaves_nothing(kit: Kit) -> None:
    """As for any function: the eviction is that of an instance."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.trapping(), isolation="fresh")
        with pytest.raises(TrapError):
            await f.call(1)
        assert cache.stats().evictions["corrupted"] == 1
        assert (cache.stats().idle_instances, cache.stats().loaded_modules) == (0, 0)


async def test_an_exception_of_the_block_leaves_a_seat(kit: Kit) -> None:
    """And what the block had written is gone."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), isolation="fresh")
        with pytest.raises(ZeroDivisionError):
            async with f.acquire() as lease:
                lease.memory.write(0, b"x")
                raise ZeroDivisionError
        async with f.acquire() as lease:
            assert lease.memory.read(0, 1) == b"\0"
        assert cache.stats().hits == 1


async def test_a_seat_goes_like_an_instance(fake: FakeKit, log: ListLogger) -> None:
    """By idleness, size, count, code and removal: each an eviction of one page."""
    async with fake.open(logger=log) as cache:
        for name in "abcde":
            await add(cache, name, fake.adding(1), isolation="fresh")
            async with cache.acquire(name, ("i64",)) as lease:
                await lease.call(1)
        cache.resize(max_size=4 * PAGE)
        cache.resize(max_instances=3)
        cache.resize(max_code_size=2 * cache.functions()[0].code_size)
        cache.remove("e")
    assert log.reasons() == ["size", "count", "code", "removed", "closed"]
    assert all(event["seat"] for event in log.fields("evicted"))
    assert {event["freed_bytes"] for event in log.fields("evicted")} == {PAGE}


async def test_a_seat_expires(fake: FakeKit, autojump_clock: trio.testing.MockClock) -> None:
    """When it is due, and then its module is unloaded."""
    async with fake.open(CacheConfig(idle_timeout=5, offload_after=None)) as cache:
        f = await add(cache, "f", fake.adding(1), isolation="fresh")
        await f.call(1)
        await trio.sleep(4.9)
        assert cache.stats().loaded_modules == 1
        await trio.sleep(0.2)
        assert (cache.stats().evictions["idle"], fake.engine.loaded_modules) == (1, 0)


async def test_a_load_that_fails_on_a_seat_leaves_it_to_the_next(log: ListLogger) -> None:
    """The one that fails is neither hit nor miss; the one that waits is served, as a hit."""
    kit = FakeKit()
    async with kit.open(logger=log) as cache:
        f = await add(cache, "f", kit.adding(1), isolation="fresh")
        await f.call(1)
        kit.engine.fail_at = len(kit.engine.steps) + 1
        results: list[object] = []

        async def use() -> None:
            try:
                results.append(await f.call(1))
            except LoadError as error:
                results.append(type(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await wait_all_tasks_blocked()
            nursery.start_soon(use)
        assert results == [LoadError, 2]
        assert (cache.stats().hits, cache.stats().misses) == (1, 1)
        check_invariants(cache)
    assert [event["seat"] for event in log.fields("loaded")] == [False, True]
    assert {event["instance"] for event in log.fields("loaded") + log.fields("failed")} == {1}


async def test_concurrent_leases_leave_a_seat_each(kit: Kit) -> None:
    """As many as ran at the same time, and no more than `concurrency`."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), isolation="fresh", concurrency=3)
        for _ in range(2):
            async with f.acquire() as one, f.acquire() as two, f.acquire() as three:
                assert await one.call(1) == await two.call(1) == await three.call(1) == 2
            check_invariants(cache)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.total_size) == (3, 3, 3 * PAGE)


async def test_warming_leaves_seats(kit: Kit) -> None:
    """What it loads shows that it can be loaded, and is closed; the first lease is a hit."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), isolation="fresh", concurrency=2)
        await cache.warm("f", ("i64",), 2)
        assert cache.stats().total_size == 2 * PAGE
        await f.call(1)
        assert (cache.stats().hits, cache.stats().misses) == (1, 0)
        check_invariants(cache)


async def test_functions_of_one_module_share_it_whatever_their_level(kit: Kit) -> None:
    """The same bytes are loaded once, for an instance and for a seat."""
    async with kit.open() as cache:
        wasm = kit.adding(1)
        f = await add(cache, "f", wasm, isolation="fresh")
        g = await add(cache, "g", wasm)
        assert f.module_digest == g.module_digest
        assert await f.call(1) == await g.call(1) == 2
        assert (cache.stats().loaded_modules, cache.stats().idle_instances) == (1, 2)


async def test_replacing_the_level_holds_from_the_next_lease_on(kit: Kit) -> None:
    """Who holds the old generation leaves nothing of it."""
    async with kit.open() as cache:
        wasm = kit.adding(1)
        f = await add(cache, "f", wasm)
        async with f.acquire() as lease:
            lease.memory.write(0, b"x")
            await add(cache, "f", wasm, isolation="fresh", replace=True)
        assert cache.stats().idle_instances == 0
        async with f.acquire() as lease:
            assert lease.memory.read(0, 1) == b"\0"
        assert (cache.stats().idle_instances, cache.stats().total_size) == (1, PAGE)


async def test_the_log_tells_seats_apart(fake: FakeKit, log: ListLogger) -> None:
    """With uses logged: loaded on a seat, granted as a hit, recycled as one page."""
    async with fake.open(CacheConfig(log_uses=True, offload_after=None), logger=log) as cache:
        f = await add(cache, "f", fake.adding(1, pages=3), isolation="fresh")
        await f.call(1)
        await f.call(1)
    assert [(it["instance"], it["seat"]) for it in log.fields("loaded")] == [(1, False), (1, True)]
    assert [it["hit"] for it in log.fields("acquired")] == [False, True]
    recycled = [(it["seat"], it["size_bytes"], it["kept"]) for it in log.fields("recycled")]
    assert recycled == [(True, PAGE, True)] * 2
