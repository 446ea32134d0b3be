"""What the cache tells about itself, and what can be set while it is open."""

from __future__ import annotations

import re

import attrs
import pytest
import trio
from kits import PAGE, FakeKit, Kit, ListLogger, add, stack_of
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, DeadlockError, EntryInfo, InstanceCache, TrapError
from trio_wasmcache.testing import check_invariants


async def test_stats_of_an_empty_cache(kit: Kit) -> None:
    """All zero, with every eviction reason there, and the limits as configured."""
    async with kit.open(CacheConfig(max_size=5 * PAGE, max_code_size=2**23)) as cache:
        stats = cache.stats()
        assert set(stats.evictions.values()) == {0}
        assert set(stats.evictions) == {
            *("size", "count", "idle", "code", "stack", "oversized", "corrupted"),
            *("removed", "group_closed", "closed", "address_space", "promoted", "profiled"),
        }
        assert (stats.hits, stats.misses, stats.blocks, stats.calls) == (0, 0, 0, 0)
        assert (stats.functions, stats.groups, stats.entries) == (0, 1, 0)
        assert (stats.total_size, stats.max_size) == (0, 5 * PAGE)
        assert (stats.code_size, stats.max_code_size) == (0, 2**23)
        assert (stats.address_space, stats.mappings) == (0, 0)
        assert (stats.log_lost, stats.log_failures) == (0, 0)
        assert (stats.promotions, stats.promotions_waiting) == (0, 0)


async def test_hits_and_misses_add_up_to_the_leases(kit: Kit) -> None:
    """In two groups, with overloads, failures, a deadlock and a cancelled waiter among them."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        g = await add(cache, "g", kit.trapping())
        granted = 0

        async def use() -> None:
            nonlocal granted
            for _ in range(10):
                async with f.acquire() as lease:
                    granted += 1
                    await lease.call(1)
                async with g.acquire() as lease:
                    granted += 1
                    with pytest.raises(TrapError):
                        await lease.call(1)
                    with pytest.raises(DeadlockError):
                        await g.call(1)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(use)
        async with cache.scheduling_group("g", capacity=2) as group:
            for _ in range(3):
                group.start_soon(use)
        async with g.acquire(), trio.open_nursery() as nursery:
            granted += 1
            nursery.start_soon(g.call, 1)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        stats = cache.stats()
        assert granted == 121
        assert stats.hits + stats.misses == granted
        assert stats.misses >= 61
        check_invariants(cache)


async def test_a_block_is_counted_once_also_if_cancelled(kit: Kit) -> None:
    """For an instance, and for a token; an acquire that is refused did not wait."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        one = await add(cache, "one", kit.adding(1))
        async with one.acquire(), trio.open_nursery() as nursery:
            nursery.start_soon(one.call, 1)
            await wait_all_tasks_blocked()
            assert cache.stats().blocks == 1
            nursery.cancel_scope.cancel()
        assert cache.stats().blocks == 1
        async with cache.scheduling_group("small", capacity=1) as group, f.acquire():
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(group.acquire("f", ("i64",)).__aenter__)
                    await wait_all_tasks_blocked()
                    assert (cache.stats().blocks, cache.stats().waiting) == (2, 1)
                    scope.cancel()
        assert (cache.stats().blocks, cache.stats().waiting) == (2, 0)
        async with one.acquire():
            with pytest.raises(DeadlockError):
                await one.call(1)
        assert cache.stats().blocks == 2


async def test_waiting_for_a_token_and_then_for_an_instance_is_one_block(kit: Kit) -> None:
    """An acquire is counted at its first wait, whatever it waits for later."""
    async with kit.open(CacheConfig(main_capacity=1)) as cache:
        f = await add(cache, "f", kit.adding(1))
        await add(cache, "g", kit.adding(1))
        results: list[int] = []

        async def use() -> None:
            results.append(await f.call(1))

        async with trio.open_nursery() as nursery:
            async with f.acquire(), cache.acquire("g", ("i64",)):
                nursery.start_soon(use)
                await wait_all_tasks_blocked()
                assert cache.stats().blocks == 1
                # With a second token it goes on, to wait for the instance.
                cache._groups.main_group.limiter.total_tokens = 2
                await wait_all_tasks_blocked()
                assert cache.entries()[0].waiting == 1
                check_invariants(cache)
        assert results == [2]
        assert cache.stats().blocks == 1


async def test_entries_tell_what_is_where(kit: Kit) -> None:
    """For each function in each group: idle, running, waiting, size, when it was last used."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        assert cache.entries() == ()
        async with f.acquire(), f.acquire(), trio.open_nursery() as nursery:
            nursery.start_soon(f.call, 1)
            await wait_all_tasks_blocked()
            (tiers,) = (info.tiers for info in cache.entries())
            assert tiers in ({"optimizing": 2}, {"baseline": 2})
            assert cache.entries() == (
                EntryInfo(
                    function="f",
                    args=("i64",),
                    generation=1,
                    group="main",
                    idle=0,
                    running=2,
                    waiting=1,
                    size=0,
                    last_used=None,
                    tiers=tiers,
                ),
            )
            nursery.cancel_scope.cancel()
        before = trio.current_time()
        async with f.acquire():
            (info,) = cache.entries()
            assert (info.idle, info.running, info.waiting, info.size) == (1, 1, 0, 2 * PAGE)
        (info,) = cache.entries()
        assert (info.idle, info.size) == (2, 4 * PAGE)
        assert info.last_used is not None
        assert before <= info.last_used <= trio.current_time()


async def test_the_repr_tells_the_state_in_words_and_numbers(kit: Kit) -> None:
    """Open, with what is in it; then closed."""
    async with kit.open(CacheConfig(max_size=10 * PAGE, max_code_size=2**23)) as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        async with f.acquire(), f.acquire(), trio.open_nursery() as nursery:
            nursery.start_soon(f.call, 1)
            await wait_all_tasks_blocked()
            code = f.code_size + 2 * stack_of(cache)
            assert repr(cache) == (
                f"<InstanceCache open: 1 functions, 1 groups, 0 idle instances (0 of {10 * PAGE} "
                f"bytes), 2 running, 1 waiting, code {code} of {2**23} bytes>"
            )
            nursery.cancel_scope.cancel()
        assert f"2 idle instances ({4 * PAGE} of {10 * PAGE} bytes), 0 running" in repr(cache)
    assert repr(cache).startswith("<InstanceCache closed: 1 functions")


async def test_looking_changes_nothing(kit: Kit) -> None:
    """`stats`, `entries`, `functions` and `repr` evict, count and touch nothing."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        before = (cache.stats(), cache.entries(), cache.functions(), repr(cache))
        after = (cache.stats(), cache.entries(), cache.functions(), repr(cache))
        assert before == after
        assert [function.name for function in cache.functions()] == ["f"]


async def test_warm_loads_ahead_and_counts_neither_hit_nor_miss(kit: Kit) -> None:
    """The next acquires are hits; warming what is warm does nothing."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=3)
        await cache.warm("f", ("i64",))
        assert (cache.stats().hits, cache.stats().misses) == (0, 0)
        assert cache.stats().idle_instances == 1
        await cache.warm("f", ("i64",), 3)
        await cache.warm("f", ("i64",), 2)
        assert cache.stats().idle_instances == 3
        check_invariants(cache)
        async with f.acquire(), f.acquire(), f.acquire() as lease:
            assert await lease.call(1) == 2
        assert (cache.stats().hits, cache.stats().misses) == (3, 0)
        for count in (0, 4, -1):
            with pytest.raises(ValueError, match=r"f\(i64\): count"):
                await cache.warm("f", ("i64",), count)
        with pytest.raises(TypeError):
            await cache.warm("f", ("i64",), True)


async def test_warm_is_in_the_callers_group(kit: Kit) -> None:
    """As acquire is."""
    async with kit.open() as cache:
        await add(cache, "f", kit.adding(1))
        async with cache.scheduling_group("g", capacity=1):
            await cache.warm("f", ("i64",))
            assert [info.group for info in cache.entries()] == ["g"]


async def test_warm_ends_where_there_is_no_room_for_so_many(kit: Kit) -> None:
    """Where each evicts another, or none is kept, it does not go on for ever."""
    for config in (
        CacheConfig(max_size=2 * PAGE),
        CacheConfig(max_size=PAGE),
        CacheConfig(max_instance_size=PAGE),
        CacheConfig(max_instances=1, max_size=10 * PAGE),
    ):
        async with kit.open(config) as cache:
            f = await add(cache, "f", kit.adding(1), concurrency=1)
            cache.remove("f")
            if config.max_instances > 1:
                f = await add(cache, "f", kit.adding(1), concurrency=3)
                await cache.warm("f", ("i64",), 3)
            else:
                f = await add(cache, "f", kit.adding(1))
                await cache.warm("f", ("i64",), 1)
            check_invariants(cache)
            assert await f.call(1) == 2


async def test_resize_evicts_what_no_longer_fits(kit: Kit, log: ListLogger) -> None:
    """For size, for count, for code and as oversized; each with its reason."""
    async with kit.open(logger=log) as cache:
        functions = [await add(cache, n, kit.adding(i)) for i, n in enumerate("abcd")]
        large = await add(cache, "large", kit.adding(9, pages=3))
        for function in (large, *functions):
            await function.call(1)
        cache.resize(max_instance_size=2 * PAGE)
        cache.resize(max_size=6 * PAGE)
        cache.resize(max_instances=2)
        cache.resize(max_code_size=functions[-1].code_size)
        gone = [(fields["function"], fields["reason"]) for fields in log.fields("evicted")]
        assert gone == [("large", "oversized"), ("a", "size"), ("b", "count"), ("c", "code")]
        check_invariants(cache)
        assert len(log.fields("resized")) == 4
        assert log.fields("resized")[-1]["max_size_bytes"] == 6 * PAGE
        assert cache.config.max_size == 6 * PAGE


async def test_resize_serves_waiters_and_refuses_those_who_never_fit(kit: Kit) -> None:
    """More room wakes who waits for it."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        results: list[int] = []

        async def use() -> None:
            results.append(await g.call(1))

        async with trio.open_nursery() as nursery, f.acquire():
            code = max(f.code_size, g.code_size)
            cache.resize(max_code_size=code + stack_of(cache))
            nursery.start_soon(use)
            await wait_all_tasks_blocked()
            assert results == []
            cache.resize(max_code_size=10 * (code + stack_of(cache)))
            await wait_all_tasks_blocked()
            assert results == [3]
        check_invariants(cache)


async def test_a_bad_resize_changes_nothing(kit: Kit) -> None:
    """Neither an unknown field, nor a bad value, nor what can't be changed any more."""
    async with kit.open() as cache:
        before = cache.config
        with pytest.raises(TypeError):
            cache.resize(size=1)
        with pytest.raises(ValueError, match="max_size must be at least 0"):
            cache.resize(max_size=-1, max_instances=7)
        for fixed in ({"stack_size": 2**20}, {"main_capacity": 5}, {"main_shares": 5}):
            with pytest.raises(ValueError, match=next(iter(fixed))):
                cache.resize(**fixed)
        assert cache.config is before


async def test_the_reference_names_all_that_resize_cannot_change(fake: FakeKit) -> None:
    """Of the fields of the configuration, those that it refuses, and no others."""
    doc = InstanceCache.resize.__doc__
    assert doc
    named = set(re.findall(r"`(\w+)`", doc.partition("can't be")[2].partition("Args:")[0]))
    async with fake.open() as cache:
        refused = set()
        for field in attrs.fields(CacheConfig):
            try:
                cache.resize(**{field.name: getattr(cache.config, field.name)})
            except ValueError:
                refused.add(field.name)
    assert refused == named


async def test_total_size_stays_under_the_limit_while_instances_grow(kit: Kit) -> None:
    """Each call makes its instance larger by a page; after each, idle bytes fit the limit."""
    config = CacheConfig(max_size=20 * PAGE, max_instance_size=8 * PAGE)
    async with kit.open(config) as cache:
        for name in "abcd":
            await add(cache, name, kit.growing())
        for round_ in range(40):
            for name in "abcd"[: 1 + round_ % 4]:
                async with cache.acquire(name, ("i64",)) as lease:
                    await lease.call(round_)
                assert cache.stats().total_size <= 20 * PAGE
                check_invariants(cache)
        assert cache.stats().evictions["size"] > 0
        assert cache.stats().evictions["oversized"] > 0
