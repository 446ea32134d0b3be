"""Semantics 8, 9, 10: what becomes of an instance when its lease ends."""

from __future__ import annotations

import pytest
import trio
from kits import PAGE, Kit, ListLogger, add
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, FuelExhaustedError, TrapError
from trio_wasmcache.testing import check_invariants


async def test_8_an_instance_that_trapped_is_dropped(kit: Kit) -> None:
    """It is never granted again: the next lease is a miss."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.trapping())
        for _ in range(2):
            with pytest.raises(TrapError):
                await f.call(1)
            check_invariants(cache)
        assert cache.stats().evictions["corrupted"] == cache.stats().misses == 2
        assert cache.stats().entries == 0


async def test_8_an_instance_that_ran_out_of_fuel_is_dropped(kit: Kit) -> None:
    """Its memory may be anything."""
    async with kit.open(CacheConfig(total_fuel=1000, yield_fuel=400)) as cache:
        f = await add(cache, "f", kit.endless())
        with pytest.raises(FuelExhaustedError):
            await f.call(1)
        assert cache.stats().evictions["corrupted"] == 1
        assert cache.stats().idle_instances == 0


async def test_8_an_instance_cancelled_in_a_call_is_dropped(kit: Kit) -> None:
    """The call was stopped somewhere in the middle."""
    async with kit.open(CacheConfig(offload_after=None)) as cache:
        f = await add(cache, "f", kit.endless())

        async def cancel_soon(scope: trio.CancelScope) -> None:
            while cache.stats().calls == 0:
                await trio.lowlevel.checkpoint()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_soon, scope)
                await f.call(1)
        assert scope.cancelled_caught
        assert cache.stats().evictions["corrupted"] == 1
        assert cache.stats().idle_instances == 0


async def test_8_an_exception_of_the_block_does_not_cost_the_instance(kit: Kit) -> None:
    """It is kept, and the next lease is a hit."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        with pytest.raises(ZeroDivisionError):
            async with f.acquire() as lease:
                await lease.call(1)
                raise ZeroDivisionError
        assert cache.stats().idle_instances == 1
        await f.call(1)
        assert cache.stats().hits == 1


async def test_8_a_value_that_does_not_fit_does_not_cost_the_instance(kit: Kit) -> None:
    """No wasm has run, so the lease goes on, and so does the instance."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        async with f.acquire() as lease:
            for values, error in (((), TypeError), (("x",), TypeError), ((2**63,), OverflowError)):
                with pytest.raises(error, match=r"f\(i64\)"):
                    await lease.call(*values)
            assert await lease.call(1) == 2
        assert cache.stats().idle_instances == 1
        assert cache.stats().calls == 1


async def test_9_the_size_is_all_memory_and_one_page(kit: Kit) -> None:
    """It is measured when the instance comes back, so growth is seen."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.growing())
        async with f.acquire() as lease:
            assert lease.size == 2 * PAGE
            await lease.call(1)
            assert lease.size == 3 * PAGE
        assert cache.stats().total_size == 3 * PAGE
        assert cache.entries()[0].size == 3 * PAGE


async def test_9_an_oversized_instance_is_dropped_with_one_warning(
    kit: Kit, log: ListLogger
) -> None:
    """The first time for a function, the event is a warning that names the limit."""
    async with kit.open(CacheConfig(max_instance_size=3 * PAGE), logger=log) as cache:
        small = await add(cache, "small", kit.adding(1))
        large = await add(cache, "large", kit.adding(1, pages=3))
        await small.call(1)
        for _ in range(3):
            await large.call(1)
        assert cache.stats().evictions["oversized"] == 3
        assert cache.stats().evictions["size"] == 0
        assert [info.function for info in cache.entries()] == ["small"]
    oversized = [line for line in log.lines if line[2].get("reason") == "oversized"]
    assert [level for level, _, _ in oversized] == ["warning", "info", "info"]
    assert [fields["limit_bytes"] for _, _, fields in oversized] == [3 * PAGE] * 3
    advice = oversized[0][2]["advice"]
    assert "large(i64)" in advice
    assert f"max_instance_size = {3 * PAGE}" in advice


async def test_9_the_least_recently_used_go_until_it_fits(kit: Kit, log: ListLogger) -> None:
    """With room for three, the fourth costs the one used longest ago, not the one loaded first."""
    async with kit.open(CacheConfig(max_size=6 * PAGE), logger=log) as cache:
        functions = [await add(cache, name, kit.adding(i)) for i, name in enumerate("abcd")]
        a, b, c, d = functions
        for function in (a, b, c, a, d):
            await function.call(1)
            check_invariants(cache)
        assert cache.stats().total_size == 6 * PAGE
        assert sorted(info.function for info in cache.entries()) == ["a", "c", "d"]
    assert log.fields("evicted")[0]["function"] == "b"
    assert log.reasons()[0] == "size"


async def test_9_one_that_can_never_fit_is_dropped_alone(kit: Kit, log: ListLogger) -> None:
    """An instance larger than the whole cache evicts nobody else."""
    async with kit.open(CacheConfig(max_size=3 * PAGE), logger=log) as cache:
        small = await add(cache, "small", kit.adding(1))
        large = await add(cache, "large", kit.adding(1, pages=5))
        await small.call(1)
        assert await large.call(1) == 2
        check_invariants(cache)
        assert [info.function for info in cache.entries()] == ["small"]
        assert cache.stats().evictions["size"] == 1
    assert log.fields("evicted")[0]["limit_bytes"] == 3 * PAGE


async def test_9_a_cache_of_size_zero_keeps_nothing_and_works(kit: Kit) -> None:
    """Every lease is a miss; nothing else is different."""
    async with kit.open(CacheConfig(max_size=0)) as cache:
        f = await add(cache, "f", kit.adding(1))
        assert [await f.call(number) for number in range(3)] == [1, 2, 3]
        assert (cache.stats().hits, cache.stats().misses) == (0, 3)
        assert cache.stats().total_size == 0


async def test_10_recycling_works_in_a_cancelled_scope(kit: Kit) -> None:
    """The instance is kept, and no checkpoint is executed."""
    async with kit.open(CacheConfig(max_size=2 * PAGE)) as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        await f.call(1)
        with trio.CancelScope() as scope:
            lease = g.acquire()
            await lease.__aenter__()
            await lease.call(1)
            scope.cancel()
            with assert_no_checkpoints():
                await lease.__aexit__(None, None, None)
        assert [info.function for info in cache.entries()] == ["g"]
        check_invariants(cache)


async def test_10_a_lease_is_given_back_before_its_end_is_awaited(kit: Kit) -> None:
    """So nothing comes in between, such as Ctrl-C; ends may be awaited in any order, and again."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        leases = [f.acquire(), f.acquire()]
        for lease in leases:
            await lease.__aenter__()
        ends = [lease.__aexit__(None, None, None) for lease in leases]
        assert cache.stats().running_instances == 0
        with assert_no_checkpoints():
            for end in (*ends, *ends):
                await end
        check_invariants(cache)


async def test_10_recycling_hands_the_instance_over_in_the_same_step(kit: Kit) -> None:
    """Whoever comes along after the recycle, even without a checkpoint, is behind the waiter."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        order: list[str] = []

        async def waiter() -> None:
            async with f.acquire():
                order.append("waiter")

        async with trio.open_nursery() as nursery:
            async with f.acquire():
                nursery.start_soon(waiter)
                await wait_all_tasks_blocked()
            assert cache.stats().running_instances == 1
            assert cache.stats().idle_instances == 0
            async with f.acquire():
                order.append("owner")
        assert order == ["waiter", "owner"]
