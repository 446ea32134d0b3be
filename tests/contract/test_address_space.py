"""Addresses and mappings as limits of the cache, on the fake engine, where they can be chosen."""

from __future__ import annotations

import pytest
import trio
from kits import FakeKit, ListLogger, add
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    CodeMemoryError,
    DeadlockError,
    Function,
    InstanceCache,
    KiB,
    LoadError,
)
from trio_wasmcache._core.config import SystemLimits
from trio_wasmcache.testing import FakeEngine, cancel_everywhere, check_invariants

CODE = 16 * KiB
SPACE = 1000
# Four instances of `SPACE` with their code.
LIMITS = CacheConfig(max_address_space=4 * (SPACE + CODE), offload_after=None)


async def add_reserving(
    cache: InstanceCache, engine: FakeEngine, name: str, space: int = SPACE, mappings: int = 3
) -> Function:
    wasm = engine.module(lambda x: x, address_space=space, mappings=mappings)
    function: Function = await add(cache, name, wasm)
    return function


async def test_the_least_recently_used_go_for_addresses(fake: FakeKit, log: ListLogger) -> None:
    """As many as are needed, with the reason `address_space`, and no more."""
    async with fake.open(LIMITS, logger=log) as cache:
        functions = [await add_reserving(cache, fake.engine, f"f{n}") for n in range(6)]
        for function in functions[:4]:
            await function.call(1)
        stats = cache.stats()
        assert stats.address_space == stats.max_address_space == 4 * (SPACE + CODE)
        assert (stats.mappings, stats.max_mappings) == (12, None)
        assert log.reasons() == []
        await functions[4].call(1)
        assert [fields["function"] for fields in log.fields("evicted")] == ["f0"]
        assert log.reasons() == ["address_space"]
        large = await add_reserving(cache, fake.engine, "large", 2 * SPACE + CODE)
        await large.call(1)
        assert [fields["function"] for fields in log.fields("evicted")] == ["f0", "f1", "f2"]
        assert cache.stats().evictions["address_space"] == 3
        check_invariants(cache)


async def test_a_hit_reserves_nothing_more(fake: FakeKit) -> None:
    """An idle instance keeps what it reserves, so a hit needs none though none is left."""
    async with fake.open(LIMITS) as cache:
        f = await add_reserving(cache, fake.engine, "f", 4 * (SPACE + CODE) - CODE)
        for _ in range(3):
            await f.call(1)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.evictions["address_space"]) == (2, 1, 0)


async def test_mappings_are_counted_against_the_systems_limit(
    fake: FakeKit, log: ListLogger
) -> None:
    """Many small instances take mappings long before they take addresses."""
    fake.engine.system = SystemLimits(mappings=8)
    async with fake.open(logger=log) as cache:
        functions = [await add_reserving(cache, fake.engine, f"f{n}") for n in range(3)]
        for function in functions:
            await function.call(1)
        assert cache.stats().mappings == 6 <= cache.stats().max_mappings == 8  # type: ignore[operator]
        assert log.reasons() == ["address_space"]
        check_invariants(cache)
        with pytest.raises(CodeMemoryError, match=r"needs 9 memory mappings.* may have 8.*vm\.max"):
            await (await add_reserving(cache, fake.engine, "g", 1, 9)).call(1)


async def test_a_load_waits_for_running_leases(fake: FakeKit, log: ListLogger) -> None:
    """Where evicting all that is idle is not enough, none goes, and the load waits in line."""
    async with fake.open(LIMITS, logger=log) as cache:
        f = await add_reserving(cache, fake.engine, "f", 2 * (SPACE + CODE))
        idle = await add_reserving(cache, fake.engine, "idle")
        g = await add_reserving(cache, fake.engine, "g", 3 * (SPACE + CODE))
        await idle.call(1)
        answers: list[int] = []

        async def call() -> None:
            answers.append(await g.call(5))

        async with trio.open_nursery() as nursery:
            async with f.acquire():
                nursery.start_soon(call)
                await wait_all_tasks_blocked()
                assert (cache.stats().waiting, answers, log.reasons()) == (1, [], [])
                check_invariants(cache)
        assert answers == [5]
        assert set(log.reasons()) == {"address_space"}
        check_invariants(cache)


async def test_waiting_in_vain_is_a_deadlock(fake: FakeKit) -> None:
    """Who holds the addresses that it would wait for is told at once."""
    async with fake.open(LIMITS) as cache:
        f = await add_reserving(cache, fake.engine, "f", 2 * (SPACE + CODE))
        g = await add_reserving(cache, fake.engine, "g", 3 * (SPACE + CODE))
        async with f.acquire():
            with pytest.raises(DeadlockError, match="memory and addresses"):
                await g.call(1)
        assert await g.call(2) == 2
        check_invariants(cache)


async def test_what_fits_into_no_cache_is_refused(fake: FakeKit) -> None:
    """At acquire, by name, with what it needs, the limit and the way out."""
    async with fake.open(LIMITS) as cache:
        need, limit = 5 * (SPACE + CODE), LIMITS.max_address_space
        f = await add_reserving(cache, fake.engine, "f", need - CODE)
        with pytest.raises(
            CodeMemoryError,
            match=rf"f\(i64\) reserves {need} bytes.*max_address_space is {limit}: raise it",
        ):
            await f.call(1)
        cache.resize(max_address_space=None)
        assert await f.call(1) == 1


async def test_smaller_limits_evict(fake: FakeKit, log: ListLogger) -> None:
    """`resize` makes go what no longer fits, as far as it is idle."""
    async with fake.open(LIMITS, logger=log) as cache:
        functions = [await add_reserving(cache, fake.engine, f"f{n}") for n in range(3)]
        for function in functions:
            await function.call(1)
        async with functions[2].acquire():
            cache.resize(max_address_space=SPACE)
            assert log.reasons() == ["address_space"] * 2
            check_invariants(cache)
        assert log.reasons() == ["address_space"] * 3
        assert cache.stats().address_space == 0


@pytest.mark.parametrize("isolation", ["fresh", "reset"])
async def test_seats_reserve_nothing(fake: FakeKit, isolation: str) -> None:
    """A seat keeps only the code; its next lease needs the addresses again."""
    async with fake.open(LIMITS) as cache:
        space = 2 * (SPACE + CODE)
        wasm = fake.engine.module(address_space=space, mappings=3, resettable=False)
        f = await add(cache, "f", wasm, isolation=isolation)
        other = await add_reserving(cache, fake.engine, "g", 3 * SPACE)
        for turn in range(3):
            assert await f.call(turn) == turn
            assert cache.stats().address_space == CODE
            await other.call(1)
        assert cache.stats().hits == 2  # of the seat; the other one goes for each of them
        assert cache.stats().evictions["address_space"] == 2
        check_invariants(cache)


async def test_a_batch_reserves_more(fake: FakeKit, log: ListLogger) -> None:
    """Its driver is counted when the lease ends; idle ones go for it, or else it goes itself."""
    async with fake.open(LIMITS, logger=log) as cache:
        f = await add_reserving(cache, fake.engine, "f")
        g = await add_reserving(cache, fake.engine, "g", 3 * SPACE + 2 * CODE)
        await f.call(1)
        await g.call(1)
        assert cache.stats().address_space == 4 * (SPACE + CODE)
        async with f.acquire() as lease:  # a hit: the short way, but for the driver
            await lease.map([[1, 2, 3]])
        assert [fields["function"] for fields in log.fields("evicted")] == ["g"]
        assert cache.stats().address_space == 2 * SPACE + CODE
        check_invariants(cache)
        async with f.acquire() as lease:
            assert list(await lease.map([[4, 5]])) == [4, 5]
        assert (cache.stats().hits, cache.stats().misses) == (2, 2)
        check_invariants(cache)
        cache.resize(max_address_space=2 * SPACE + CODE)
        async with f.acquire() as lease:
            await lease.map([[1, None]])
        assert log.reasons() == ["address_space"] * 2
        assert cache.stats().idle_instances == 0


async def test_a_system_without_memory_lets_idle_ones_go(fake: FakeKit, log: ListLogger) -> None:
    """The load is tried again until it succeeds, with twice as much freed each time."""
    engine = fake.engine
    async with fake.open(logger=log) as cache:
        functions = [await add_reserving(cache, engine, f"f{n}") for n in range(9)]
        for function in functions[:8]:
            await function.call(1)
        engine.refusals = 2
        assert await functions[8].call(1) == 1
        # One reserves what this needs; then two do.
        assert [fields["function"] for fields in log.fields("evicted")] == ["f0", "f1", "f2"]
        refused = log.fields("refused")
        assert [fields["function"] for fields in refused] == ["f8", "f8"]
        need = SPACE + CODE
        assert [fields["address_space_bytes"] for fields in refused] == [need, 2 * need]
        assert log.fields("failed") == []
        check_invariants(cache)


async def test_evicted_instances_are_closed_before_the_host_is_to_blame(
    fake: FakeKit, log: ListLogger
) -> None:
    """They are closed in pieces, if nothing needs their memory; a load that is refused does."""
    engine = fake.engine
    async with fake.open(logger=log) as cache:
        functions = [await add_reserving(cache, engine, f"f{n}") for n in range(90)]
        for function in functions:
            await function.call(1)
        cache.resize(max_size=0)
        assert cache.stats().idle_instances == 0
        assert engine.open_instances > 0
        engine.refusals = 1
        async with functions[0].acquire() as lease:
            assert engine.open_instances == 1
            assert await lease.call(1) == 1
        assert log.fields("refused") == []
        check_invariants(cache)


async def test_with_nothing_idle_the_host_is_to_blame(fake: FakeKit, log: ListLogger) -> None:
    """`CodeMemoryError`, not `LoadError`; whoever runs is not disturbed."""
    engine = fake.engine
    async with fake.open(logger=log) as cache:
        f = await add_reserving(cache, engine, "f")
        g = await add_reserving(cache, engine, "g")
        async with f.acquire() as lease:
            engine.refusals = 1
            with pytest.raises(CodeMemoryError, match=r"no memory, addresses or mappings") as got:
                await g.call(1)
            assert not isinstance(got.value, LoadError)
            for words in ("g(i64)", "Cannot allocate memory", "RLIMIT_AS", str(SPACE + CODE)):
                assert words in str(got.value)
            assert await lease.call(3) == 3
            check_invariants(cache)
        assert await g.call(1) == 1
        assert [fields["error"] for fields in log.fields("failed")] == ["CodeMemoryError"]


async def test_a_compile_without_memory_lets_idle_ones_go(fake: FakeKit, log: ListLogger) -> None:
    """`register` tries again; with nothing left it blames the host, and nothing of it stays."""
    engine = fake.engine
    async with fake.open(logger=log) as cache:
        f = await add_reserving(cache, engine, "f")
        await f.call(1)
        engine.refusals = 1
        await add_reserving(cache, engine, "g")
        assert log.reasons() == ["address_space"]
        engine.refusals = 1
        with pytest.raises(CodeMemoryError, match=r"h\(i64\)"):
            await add_reserving(cache, engine, "h")
        assert [function.name for function in cache.functions()] == ["f", "g"]
        await add_reserving(cache, engine, "h")
        check_invariants(cache)


async def test_cancelled_anywhere_and_all_is_given_back(fake: FakeKit) -> None:
    """A load that waits for addresses, or is tried again, leaves nothing behind."""
    engine = fake.engine
    async with fake.open(LIMITS) as cache:
        functions = [await add_reserving(cache, engine, f"f{n}") for n in range(5)]
        large = await add_reserving(cache, engine, "large", SPACE + CODE)

        async def scenario() -> None:
            for function in functions:
                await function.call(1)
            engine.refusals = 1
            await large.call(1)

        def check() -> None:
            engine.refusals = 0
            check_invariants(cache)

        assert await cancel_everywhere(scenario, check) > 10
