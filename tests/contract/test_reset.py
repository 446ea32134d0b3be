"""`isolation="reset"`: instances are put back to how they began, or leave a seat."""

from __future__ import annotations

import trio
from kits import PAGE, FakeKit, Kit, ListLogger, add

from trio_wasmcache import CacheConfig
from trio_wasmcache.testing import check_invariants


async def test_an_instance_is_kept_and_put_back(kit: Kit) -> None:
    """The next lease is granted at once, and finds nothing."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), isolation="reset")
        assert (f.isolation, f.isolation_verdict.partition(":")[0]) == ("reset", "reset")
        for _ in range(3):
            async with f.acquire() as lease:
                assert lease.memory.read(100, 6) == bytes(6)
                lease.memory.write(100, b"secret")
                assert await lease.call(1) == 2
            check_invariants(cache)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.load.count) == (2, 1, 1)
        assert (stats.idle_instances, stats.total_size) == (1, 2 * PAGE)


async def test_it_is_put_back_in_the_step_that_ends_the_lease(fake: FakeKit) -> None:
    """So nothing of it is there while it is idle."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1), isolation="reset")
        async with f.acquire() as lease:
            lease.memory.write(0, b"x")
        (instance,) = cache._shell.policy.residents.lru
        assert instance.payload.memory.read(0, 1) == b"\0"


async def test_one_that_has_grown_leaves_a_seat(kit: Kit) -> None:
    """On which the next lease gets a new one; that is a hit."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.growing(), isolation="reset")
        for _ in range(3):
            async with f.acquire() as lease:
                assert lease.size == 2 * PAGE
                await lease.call(1)
                assert lease.size == 3 * PAGE
            assert cache.stats().total_size == PAGE
            check_invariants(cache)
        async with f.acquire():
            pass  # it has not grown
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.load.count, stats.total_size) == (
            *(3, 1, 4),
            2 * PAGE,
        )


async def test_where_it_can_not_be_done_leases_are_fresh(log: ListLogger) -> None:
    """The verdict says why, to whoever asks and in the log; what was asked for stays as it was."""
    kit = FakeKit()
    async with kit.open(logger=log) as cache:
        wasm = kit.engine.module(resettable=False)
        f = await add(cache, "f", wasm, isolation="reset")
        assert f.isolation == "reset"
        assert f.isolation_verdict == (
            "fresh: every lease gets a new instance, as reset is not possible: "
            "the fake module says so"
        )
        for _ in range(2):
            async with f.acquire() as lease:
                assert lease.memory.read(0, 1) == b"\0"
                lease.memory.write(0, b"x")
        assert (cache.stats().load.count, cache.stats().total_size) == (2, PAGE)
    (event,) = log.fields("registered")
    assert (event["isolation"], event["isolation_verdict"]) == ("reset", f.isolation_verdict)


async def test_warmed_instances_are_instances(kit: Kit) -> None:
    """They have done nothing that would have to be put back, and can be."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), isolation="reset", concurrency=2)
        await cache.warm("f", ("i64",), 2)
        assert cache.stats().total_size == 4 * PAGE
        assert await f.call(1) == 2
        assert (cache.stats().hits, cache.stats().misses) == (1, 0)
        check_invariants(cache)


async def test_a_cache_that_closes_puts_nothing_back(fake: FakeKit, log: ListLogger) -> None:
    """What is held then goes as it is."""
    async with fake.open(logger=log) as cache:
        f = await add(cache, "f", fake.adding(1), isolation="reset")
        lease = f.acquire()
        await lease.__aenter__()
    await lease.__aexit__(None, None, None)
    assert log.reasons() == ["closed"]
    assert not log.fields("evicted")[0]["seat"]


async def test_the_levels_of_one_module(kit: Kit) -> None:
    """The same bytes, loaded once for each of them, and each keeps to its own."""
    async with kit.open(CacheConfig(max_size=100 * PAGE)) as cache:
        wasm = kit.adding(1)
        for level in ("reuse", "fresh", "reset"):
            f = await add(cache, level, wasm, isolation=level)
            async with f.acquire() as lease:
                lease.memory.write(0, b"x")
            async with f.acquire() as lease:
                assert (lease.memory.read(0, 1) == b"x") is (level == "reuse")
                await trio.lowlevel.checkpoint()
        assert cache.stats().loaded_modules == 3
        check_invariants(cache)
