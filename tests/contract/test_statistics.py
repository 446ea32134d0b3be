"""Distributions and counters for the cache, its functions and its groups, on both engines."""

from __future__ import annotations

import pytest
import trio
from kits import COSTLY, FakeKit, Kit, ListLogger, add
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    CacheStats,
    InstanceCache,
    LoadError,
    SchedulingGroup,
    TrapError,
    UnknownFunctionError,
)
from trio_wasmcache._core.metrics.stats import UseSummary
from trio_wasmcache.testing import check_invariants

DISTRIBUTIONS = ("wait", "load", "hold", "run", "fuel")


def figures(summary: UseSummary | CacheStats) -> dict[str, object]:
    """What can be added up, and is of groups, too."""
    made: dict[str, object] = {
        name: (getattr(summary, name).count, getattr(summary, name).total) for name in DISTRIBUTIONS
    }
    counters = {name: getattr(summary, name) for name in ("hits", "misses", "blocks", "calls")}
    return {**made, **counters, "errors": summary.errors}


def check_sums(stats: CacheStats) -> None:
    """Functions together are the cache, and so are groups; leases were hits and misses."""
    for parts in (stats.per_function, stats.per_group):
        for name in ("hits", "misses", "blocks", "calls"):
            assert sum(getattr(one, name) for one in parts.values()) == getattr(stats, name)
        for name in DISTRIBUTIONS:
            whole, ones = getattr(stats, name), [getattr(one, name) for one in parts.values()]
            assert sum(one.count for one in ones) == whole.count
            assert sum(one.total for one in ones) == whole.total
            buckets: dict[int, int] = {}
            for one in ones:
                for largest, count in one.buckets:
                    buckets[largest] = buckets.get(largest, 0) + count
            assert tuple(sorted(buckets.items())) == whole.buckets
        errors: dict[str, int] = {}
        for one in parts.values():
            for error, count in one.errors.items():
                errors[error] = errors.get(error, 0) + count
        assert errors == stats.errors
    assert stats.wait.count == stats.hits + stats.misses
    assert stats.run.count == stats.fuel.count <= stats.calls


async def workload(kit: Kit, cache: InstanceCache) -> int:
    """Hits, misses, blocks, traps, long calls and cancelled waits in two groups; leases granted."""
    granted = 0
    f = await add(cache, "f", kit.adding(1))
    costly = await add(cache, "costly", kit.costly())
    trapping = await add(cache, "trapping", kit.trapping())

    async def use() -> None:
        nonlocal granted
        for function in (f, costly, trapping, f):
            async with function.acquire() as lease:
                granted += 1
                await trio.lowlevel.checkpoint()
                if function is trapping:
                    with pytest.raises(TrapError):
                        await lease.call(1)
                else:
                    await lease.call(1)
                    await lease.call(2)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(use)
    async with cache.scheduling_group("red", capacity=1) as group:
        for _ in range(3):
            group.start_soon(use)
    async with f.acquire(), trio.open_nursery() as nursery:
        granted += 1
        nursery.start_soon(f.call, 1)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return granted


async def test_sums_agree_whatever_happens(kit: Kit) -> None:
    """Per function, per group and for the cache; while it is open, and when it is closed."""
    config = CacheConfig(yield_fuel=10_000, offload_after=None)
    async with kit.open(config) as cache:
        granted = await workload(kit, cache)
        stats = cache.stats()
        assert stats.hits + stats.misses == granted == stats.hold.count
        assert stats.calls == stats.fuel.count == 4 * 6 + 3 * 4 + 6
        assert stats.errors == {"TrapError": 6, "Cancelled": 1}
        assert set(stats.per_function) == {"f(i64)", "costly(i64)", "trapping(i64)"}
        assert set(stats.per_group) == {"main", ""}
        assert stats.per_group[""].blocks >= 2  # for the one token
        assert stats.load.count == stats.misses
        check_sums(stats)
        cache.remove("trapping")
        later = cache.stats()
        assert set(later.per_function) == {"f(i64)", "costly(i64)", ""}
        assert figures(later.per_function[""]) == figures(stats.per_function["trapping(i64)"])
        check_sums(later)
    assert figures(cache.stats()) == figures(later)
    assert set(cache.stats().per_group) == {"main", ""}
    check_sums(cache.stats())


async def test_what_was_told_stays_as_it_was(kit: Kit) -> None:
    """Distributions are worked out late, but from the numbers of the moment they were asked for."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        early, looked_at = cache.stats(), cache.stats()
        expected = figures(looked_at.per_function["f(i64)"])
        async with f.acquire() as lease:
            await lease.call(1)
            cache.remove("f")
        assert figures(early.per_function["f(i64)"]) == expected
        assert figures(early) == expected
        assert (early.hits, early.misses, early.calls) == (0, 1, 1)


async def test_popping_begins_anew(kit: Kit, log: ListLogger) -> None:
    """It tells what `stats` does; then counters and distributions are zero, gauges are not."""
    config = CacheConfig(yield_fuel=10_000, offload_after=None)
    async with kit.open(config, logger=log) as cache:
        await workload(kit, cache)
        before = cache.stats()
        popped = cache.pop_stats()
        assert popped == before
        assert figures(popped) == figures(before)
        after = cache.stats()
        assert all(one in (0, (0, 0), {}) for one in figures(after).values())
        assert set(after.evictions.values()) == {0}
        assert (after.compile.count, after.load.buckets) == (0, ())
        assert after.idle_instances == before.idle_instances > 0
        assert after.total_size == before.total_size > 0
        check_sums(after)
        check_invariants(cache)
        async with cache.acquire("f", ("i64",)) as lease:
            await lease.call(1)
        assert (cache.stats().hits, cache.stats().calls) == (1, 1)
        check_sums(cache.stats())
    closed = log.fields("closed")[0]
    assert closed["hits"] == before.hits + 1
    assert closed["misses"] == before.misses
    assert closed["calls"] == before.calls + 1
    assert closed["blocks"] == before.blocks


async def test_popping_under_a_lease_and_a_call_counts_each_once(kit: Kit) -> None:
    """What began before it is not begun again; when it ends, that is of the next period."""
    async with kit.open(CacheConfig(offload_after=None)) as cache:
        endless = await add(cache, "endless", kit.endless())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(endless.call, 1)
            while not cache.stats().calls:
                await trio.lowlevel.checkpoint()
            first = cache.pop_stats()
            assert (first.hits, first.misses, first.calls, first.fuel.count) == (0, 1, 1, 0)
            check_invariants(cache)
            nursery.cancel_scope.cancel()
        second = cache.stats()
        assert (second.hits, second.misses, second.calls) == (0, 0, 0)
        assert (second.fuel.count, second.run.count, second.hold.count) == (1, 1, 1)
        assert second.fuel.total > 0
        assert second.errors == {"Cancelled": 1}
        check_invariants(cache)


async def test_a_long_call_is_in_another_bucket_than_a_short_one(kit: Kit) -> None:
    """One that ends in its first slice has run for 0; both have burnt fuel."""
    async with kit.open(CacheConfig(yield_fuel=10_000, offload_after=None)) as cache:
        f, costly = await add(cache, "f", kit.adding(1)), await add(cache, "costly", kit.costly())
        await f.call(1)
        await costly.call(1)
        functions = cache.stats().per_function
        short, long = functions["f(i64)"], functions["costly(i64)"]
        assert (short.run.count, short.run.total, short.run.buckets) == (1, 0, ((0, 1),))
        assert long.run.count == 1
        assert long.fuel.total >= COSTLY > short.fuel.total > 0
        assert long.fuel.p50.bit_length() == long.fuel.total.bit_length()


async def test_a_batch_is_one_call(kit: Kit) -> None:
    """With the fuel of all its rows."""
    async with kit.open() as cache:
        await add(cache, "f", kit.adding(1))
        async with cache.acquire("f", ("i64",)) as lease:
            await lease.map([[1, 2, 3]])
            assert lease.fuel_consumed is not None
            stats = cache.stats()
            assert (stats.calls, stats.fuel.count) == (1, 1)
            assert stats.fuel.total == lease.fuel_consumed
            assert stats.run.count == 1


async def test_errors_are_counted_by_their_type(kit: Kit) -> None:
    """Of calls and of acquires; but not misfits, which run nothing, nor what is no function."""
    async with kit.open(CacheConfig(total_fuel=100_000)) as cache:
        await add(cache, "trapping", kit.trapping())
        endless = await add(cache, "endless", kit.endless())
        starting = await add(cache, "starting", kit.endless_start())
        for _ in range(2):
            with pytest.raises(TrapError):
                await cache.functions()[0].call(1)
        with pytest.raises(TypeError):
            await endless.call("one")
        with trio.CancelScope() as scope:
            scope.cancel()
            await endless.call(1)
        with pytest.raises(LoadError):
            await starting.call(1)
        with pytest.raises(UnknownFunctionError):
            async with cache.acquire("none", ()):
                raise AssertionError
        stats = cache.stats()
        assert stats.errors == {"TrapError": 2, "LoadError": 1}
        assert stats.per_function["starting(i64)"].errors == {"LoadError": 1}
        assert stats.per_function["starting(i64)"].load.count == 0
        check_sums(stats)


async def test_who_gives_up_waiting_for_a_token_is_counted(kit: Kit) -> None:
    """As a block and as an error of the function and the group it was for."""
    async with kit.open() as cache:
        f, g = await add(cache, "f", kit.adding(1)), await add(cache, "g", kit.adding(2))
        async with cache.scheduling_group("red", capacity=1) as red:
            async with red.acquire("f", ("i64",)), trio.open_nursery() as nursery:
                nursery.start_soon(red_call, red, g.name)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            stats = cache.stats()
            for summary in (stats.per_function["g(i64)"], stats.per_group["red"]):
                assert (summary.blocks, summary.errors) == (1, {"Cancelled": 1})
            assert stats.per_function[f"{f.name}(i64)"].blocks == 0
            check_sums(stats)


async def red_call(group: SchedulingGroup, name: str) -> None:
    """Acquire in a group, whatever group the caller is in."""
    async with group.acquire(name, ("i64",)):
        raise AssertionError


async def test_warming_loads_but_grants_nothing(kit: Kit) -> None:
    """It is neither a hit nor a miss, neither waited for nor held."""
    async with kit.open() as cache:
        await add(cache, "f", kit.adding(1))
        await cache.warm("f", ("i64",))
        stats = cache.stats()
        assert (stats.load.count, stats.wait.count, stats.hold.count) == (1, 0, 0)
        check_sums(stats)


async def test_compiling_is_of_the_function_whose_module_was_not_there(kit: Kit) -> None:
    """A second function of the same module finds it compiled; a replacement adds to the first."""
    async with kit.open() as cache:
        wasm = kit.adding(1)
        await add(cache, "f", wasm)
        await add(cache, "g", wasm)
        counts = {name: one.compile.count for name, one in cache.stats().per_function.items()}
        assert counts == {"f(i64)": 1}
        await add(cache, "f", kit.adding(2), replace=True)
        stats = cache.stats()
        assert stats.compile.count == stats.per_function["f(i64)"].compile.count == 2
        assert "main" not in stats.per_group


async def test_times_are_those_of_the_clock(fake: FakeKit, autojump_clock: MockClock) -> None:
    """Waits from asking to being granted, holds from then on; of tokens as of instances."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1))

        async def use(seconds: float) -> None:
            async with f.acquire():
                await trio.sleep(seconds)

        async with cache.scheduling_group("red", capacity=1) as red:
            red.start_soon(use, 4)
            await wait_all_tasks_blocked()
            red.start_soon(use, 1)  # waits for the token, 4 s
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, 2)
            await wait_all_tasks_blocked()
            nursery.start_soon(use, 0)  # waits for the instance, 2 s
        stats = cache.stats()
        assert (stats.wait.count, stats.hold.count) == (4, 4)
        assert 6_000_000 <= stats.wait.total < 6_001_000
        assert 7_000_000 <= stats.hold.total < 7_001_000
        assert [count for largest, count in stats.wait.buckets if largest > 1_000_000] == [1, 1]
