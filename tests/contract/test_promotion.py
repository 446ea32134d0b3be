"""Functions that go from the baseline compiler to the optimizing one, while they are used."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from attrs import evolve
from kits import COSTLY, FakeKit, Kit, add, add_asking, add_two_parts
from promoting import TIERED, WatchedLogger, due_at_once, look, promote, settle, tiers
from staging import look as look_at_books, stage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, HostFunction, KiB, LoadError, Prepare, current_lease
from trio_wasmcache._pool.promotion import LONGEST_START
from trio_wasmcache.testing import FakeEngine, open_fake_cache

ISOLATIONS = ("reuse", "reset", "fresh")
SLICED = evolve(TIERED, yield_fuel=COSTLY // 3)


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_an_idle_instance_makes_way_for_one_of_optimized_code(
    kit: Kit, isolation: Any
) -> None:
    """Each is a hit, before and after; name, generation, `Function` and counts stay."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", kit.adding(1), isolation=isolation)
        assert await f.call(1) == 2
        assert tiers(cache) == [{"baseline": 1}]
        await promote(cache, logger, f)
        await settle(cache)
        assert tiers(cache) == [{"optimizing": 1}]
        assert cache.functions() == (f,)
        assert await f.call(2) == 3
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.calls) == (1, 1, 2)
        assert (stats.promotions, stats.promotions_waiting) == (1, 0)
        assert (stats.evictions["promoted"], stats.loaded_modules) == (1, 1)
        (registered,), (promoted,) = logger.fields("registered"), logger.fields("promoted")
        assert (registered["compiler"], promoted["compiler"]) == ("baseline", "optimizing")
        assert promoted["generation"] == registered["generation"] == 1
        assert promoted["module_number"] != registered["module_number"]
        assert (promoted["group"], promoted["error"]) == ("main", None)
        (made,), (gone,) = logger.fields("loaded")[1:2], logger.fields("evicted")
        assert made["promoted"]
        assert (gone["reason"], gone["instance"], gone["replaced_by"]) == ("promoted", 1, 2)
        assert made["seat"] is gone["seat"] is (isolation == "fresh")


async def test_only_what_is_used_is_promoted(kit: Kit) -> None:
    """10 ms of guest time of a function, whatever that of others, and once."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        for function in (f, g):
            await function.call(1)
        record = cache._pool.registry.find("f", None)
        entry = next(iter(record.entries.values()))
        entry.uses.fuel += 9_990_000
        cache._promoter.look()
        assert cache.stats().promotions_waiting == 0
        cache.pop_stats()  # which counts anew
        await g.call(1)
        entry.uses.fuel += 10_000
        cache._promoter.look()
        assert cache.stats().promotions_waiting == 0, "it was not used since"
        await f.call(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(logger.wait, "promoted")
            await wait_all_tasks_blocked()
            cache._promoter.look()
            assert cache.stats().promotions_waiting == 1
        (event,) = logger.fields("promoted")
        assert event["function"] == "f"
        assert 0.01 <= event["guest_seconds"] < 0.011
        await settle(cache)
        await f.call(1)
        cache._promoter.look()
        assert cache.stats().promotions_waiting == 0


async def test_a_burst_of_calls_is_looked_at(kit: Kit) -> None:
    """And each call of more than one slice: nobody else has to ask."""
    logger = WatchedLogger()
    async with kit.open(SLICED, logger=logger) as cache:
        f = await add(cache, "f", kit.costly())
        with due_at_once():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(logger.wait, "promoted")
                await wait_all_tasks_blocked()
                assert await f.call(5) == 5


@pytest.mark.parametrize("offload_after", [None, 1])
async def test_a_call_without_end_makes_its_function_due(
    kit: Kit, offload_after: int | None
) -> None:
    """Once it has burnt the fuel of 10 ms, on the loop or in a thread; it keeps its code."""
    logger = WatchedLogger()
    config = evolve(TIERED, offload_after=offload_after, total_fuel=10**12)
    async with kit.open(config, logger=logger) as cache:
        f = await add(cache, "f", kit.endless())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(f.call, 1)
            await logger.wait("promoted")
            (promoted,) = logger.fields("promoted")
            assert (promoted["function"], promoted["error"]) == ("f", None)
            assert promoted["guest_seconds"] >= 0.01
            assert {"baseline": 1}.items() <= tiers(cache)[0].items()
            nursery.cancel_scope.cancel()


async def test_a_held_lease_keeps_its_code(kit: Kit) -> None:
    """Another instance comes beside it, outside of `concurrency`; it goes when it is given back."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", kit.adding(1))
        async with f.acquire() as lease:
            await promote(cache, logger, f)
            await settle(cache)
            assert tiers(cache) == [{"baseline": 1, "optimizing": 1}]
            assert await lease.call(1) == 2
            assert logger.reasons() == []
        assert logger.reasons() == ["promoted"]
        assert tiers(cache) == [{"optimizing": 1}]
        assert await f.call(1) == 2
        assert (cache.stats().hits, cache.stats().misses) == (1, 1)


async def test_one_instance_stands_in_for_each_that_runs(kit: Kit) -> None:
    """However many `concurrency` allows; one that has gone is not made again for it."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=8)
        async with f.acquire() as first, f.acquire() as second:
            await promote(cache, logger, f)
            await settle(cache)
            assert tiers(cache) == [{"baseline": 2, "optimizing": 2}]
            cache.resize(max_instances=2)
            cache.resize(max_instances=TIERED.max_instances)
            await settle(cache)
            assert tiers(cache) == [{"baseline": 2}]
            assert await first.call(1) == await second.call(1) == 2
        # Given back, they are hits, until each is replaced in its place.
        await settle(cache)
        assert tiers(cache) == [{"optimizing": 2}]
        assert len([one for one in logger.fields("loaded") if one["promoted"]]) == 4


async def test_whoever_waits_gets_optimized_code(kit: Kit) -> None:
    """The queue of a function goes on; the others of its concurrency are made in turn."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        found = []

        async def wait_for_it() -> None:
            async with f.acquire() as lease:
                found.append((cache.entries()[0].tiers, await lease.call(1)))

        async with trio.open_nursery() as nursery, f.acquire():
            async with f.acquire():
                await promote(cache, logger, f)
                nursery.start_soon(wait_for_it)
                await settle(cache)
                assert tiers(cache) == [{"baseline": 2, "optimizing": 2}]
            await settle(cache)
            assert tiers(cache) == [{"baseline": 1, "optimizing": 2}]
        assert tiers(cache) == [{"optimizing": 2}]
        assert [result for _, result in found] == [2]
        assert logger.reasons() == ["promoted", "promoted"]


async def test_without_room_the_next_miss_gets_optimized_code(kit: Kit) -> None:
    """Nothing is evicted for a promotion; what is idle stays a hit until there is room."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        await f.call(1)
        cache.resize(max_instances=1)
        await promote(cache, logger, f)
        await settle(cache)
        assert tiers(cache) == [{"baseline": 1}]
        await f.call(1)
        assert (cache.stats().hits, tiers(cache)) == (1, [{"baseline": 1}])
        cache.resize(max_instances=3)
        async with f.acquire(), f.acquire():
            await settle(cache)
            assert tiers(cache)[0]["optimizing"] >= 1
        await settle(cache)
        assert tiers(cache) == [{"optimizing": 2}]


async def test_code_that_never_fits_is_an_error(kit: Kit) -> None:
    """The function stays as it is, and is not tried again."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        code = f.code_size + 4 * cache.config.stack_size
        record = cache._pool.registry.find("f", None)
        cache.resize(max_code_size=code, max_running_size=record.worst_size)
        record.worst_size += 1  # as if an instance of it could touch more
        await promote(cache, logger, f)
        record.worst_size -= 1
        await settle(cache)
        (event,) = logger.fields("promoted")
        assert (event["error"], event["module_number"]) == ("CodeMemoryError", None)
        assert (tiers(cache), await f.call(1)) == ([{"baseline": 1}], 2)
        look(cache)
        assert cache.stats().promotions_waiting == 0


async def test_a_compile_that_fails() -> None:
    """`wasmcache.promoted` has the error; the function goes on, and is not tried again."""
    engine, logger = FakeEngine(), WatchedLogger()
    async with open_fake_cache(TIERED, engine=engine, logger=logger) as cache:
        f = await add(cache, "f", engine.module())
        assert await f.call(1) == 1
        engine.fail_at = len(engine.steps) + 1
        await promote(cache, logger, f)
        assert engine.steps[-1] == "compile"
        (event,) = logger.fields("promoted")
        assert event["error"] == "InvalidModuleError"
        assert "was told to fail" in event["error_message"]
        assert logger.lines[-1][0] == "warning"
        assert await f.call(2) == 2
        look(cache)
        assert cache.stats().promotions_waiting == 0
        assert (tiers(cache), cache.stats().promotions) == ([{"baseline": 1}], 0)


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_instances_that_cannot_be_made(isolation: Any) -> None:
    """What is idle stays; whoever loads one for a lease gets the error."""
    logger = WatchedLogger()
    config = evolve(TIERED, log_uses=True)
    for step in range(1, 12):
        engine = FakeEngine()
        async with open_fake_cache(config, engine=engine, logger=logger) as cache:
            f = await add(cache, "f", engine.module(), isolation=isolation)
            assert await f.call(1) == 1
            await promote(cache, logger, f)
            engine.fail_at = len(engine.steps) + step
            await settle(cache)
            assert sum(tiers(cache)[0].values()) == 1
            engine.fail_at = None
            await settle(cache)
            assert await f.call(2) == 2
        if engine.fail_at is None and tiers_of(logger):
            break


def tiers_of(logger: WatchedLogger) -> bool:
    return any(one["promoted"] for one in logger.fields("loaded"))


async def test_a_start_in_the_background_has_its_time(
    fake: FakeKit, autojump_clock: MockClock
) -> None:
    """Others wait for it only so long; it is logged, and is not tried again."""
    logger = WatchedLogger()
    config = evolve(TIERED, log_uses=True, idle_timeout=1e9)
    async with fake.open(config, logger=logger) as cache:
        f = await add(cache, "f", fake.engine.module(start_seconds=3600), concurrency=3)
        g = await add(cache, "g", fake.adding(1), concurrency=3)
        for function in (f, g):
            await function.call(1)
        look(cache)
        for _ in range(1000):
            await trio.sleep(1)
            if logger.fields("failed") and "optimizing" in tiers(cache)[1]:
                break
        assert tiers(cache) == [{"baseline": 1}, {"optimizing": 1}]
        (failed,) = logger.fields("failed")
        assert (failed["function"], failed["error"]) == ("f", "TooSlowError")
        assert (failed["promoted"], failed["instance"], failed["request"]) == (True, None, None)
        assert failed["error_message"] == (
            "f(i64) took more than 2 s to start in the background, and is not tried there again"
        )
        assert (await f.call(1), cache.stats().hits) == (1, 1)
        assert tiers(cache) == [{"baseline": 1}, {"optimizing": 1}]
        assert len(logger.fields("failed")) == 1


async def test_a_start_that_waits_for_its_cpu_limit_has_its_time_too(
    fake: FakeKit, autojump_clock: MockClock
) -> None:
    """It runs for hundredths of a second, in ten seconds in which its group may run as long."""
    logger = WatchedLogger()
    config = evolve(TIERED, idle_timeout=1e9, yield_fuel=1000)
    async with fake.open(config, logger=logger) as cache:
        reads = itertools.count(1)
        cache._pool.runner.cpu_clock = lambda: next(reads) // 2 * 0.001  # a slice takes one
        async with cache.scheduling_group("slow", capacity=1, cpu_limit=0.005):
            f = await add(cache, "f", fake.engine.module(start_fuel=50_000))
            began = trio.current_time()
            await f.call(1)
            needed = trio.current_time() - began
            look(cache)
            for _ in range(100):
                await trio.sleep(1)
            assert needed > 2 * LONGEST_START
            assert (logger.fields("failed"), tiers(cache)) == ([], [{"optimizing": 1}])


@pytest.mark.parametrize("replace", [False, True])
async def test_a_start_in_the_background_ends_with_its_function(
    fake: FakeKit, autojump_clock: MockClock, replace: bool
) -> None:
    """In the same moment, and nothing of it is logged."""
    logger = WatchedLogger()
    async with fake.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", fake.engine.module(start_seconds=1))
        await f.call(1)
        await promote(cache, logger, f)
        for _ in range(4):
            await trio.lowlevel.checkpoint()
        assert cache._pool.background
        at = trio.current_time()
        if replace:
            await add(cache, "f", fake.adding(1), replace=True)
        else:
            cache.remove("f")
        await settle(cache)
        assert not cache._pool.background
        assert fake.engine.open_instances == 0
        assert (trio.current_time(), logger.fields("failed")) == (at, [])


async def test_functions_of_one_module_are_promoted_together(kit: Kit) -> None:
    """It is compiled once; one that is registered afterwards begins on optimized code."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        wasm = kit.adding(1)
        f, g = await add(cache, "f", wasm), await add(cache, "g", wasm)
        await f.call(1)
        await promote(cache, logger, f, g)
        first, second = logger.fields("promoted")
        assert (first["function"], second["function"]) == ("f", "g")
        assert first["module_number"] == second["module_number"]
        assert first["compile_seconds"] > second["compile_seconds"] == 0
        await g.call(1)
        h = await add(cache, "h", wasm)
        await h.call(1)
        await settle(cache)
        assert tiers(cache) == [{"optimizing": 1}] * 3
        assert cache.stats().loaded_modules == 1
        assert logger.fields("registered")[-1]["compiler"] == "optimizing"
        assert logger.fields("registered")[-1]["compile_seconds"] == 0


async def test_a_prepared_function_stays_prepared(kit: Kit) -> None:
    """The calls are not made again, and each instance begins with what they did."""
    asked = []

    def note(value: int) -> int:
        asked.append(value)
        memory = current_lease().memory
        before = memory.read(100, 8)
        memory.write(100, value.to_bytes(8, "little"))
        return int.from_bytes(before, "little")

    host = HostFunction(note, ("i64",), ("i64",), pure=True)
    once = (Prepare("run", (5,), ("i64",), "i64"),)
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(
            cache,
            "f",
            kit.asking(),
            imports={"host": {"ask": host}},
            prepare=once,
            isolation="reset",
        )
        assert (await f.call(6), asked) == (5, [5, 6])
        await promote(cache, logger, f)
        await settle(cache)
        assert tiers(cache) == [{"optimizing": 1}]
        assert [await f.call(7), await f.call(8)] == [5, 5]
        assert asked == [5, 6, 7, 8]
        assert len(logger.fields("prepared")) == 1


async def test_modules_of_several_parts_are_promoted(kit: Kit) -> None:
    """Each part is compiled once more."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add_two_parts(cache, kit, kit.adding(1))
        assert await f.call(1) == 2
        await promote(cache, logger, f)
        await settle(cache)
        assert (tiers(cache), await f.call(2)) == ([{"optimizing": 1}], 3)


async def test_a_removed_function_is_not_promoted(kit: Kit) -> None:
    """Its compile is given up; one that replaces it begins on baseline code."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        look(cache)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        cache.remove("f")
        assert cache.stats().promotions_waiting <= 1
        f = await add(cache, "f", kit.adding(2))
        assert await f.call(1) == 3
        await promote(cache, logger, f)
        await settle(cache)
        f = await add(cache, "f", kit.adding(3), replace=True)
        assert (await f.call(1), f.generation) == (4, 3)
        assert tiers(cache) == [{"baseline": 1}]
        assert [one["generation"] for one in logger.fields("promoted")] == [2]


async def test_replacing_and_removing_at_every_step() -> None:
    """Of a compile, and of the making of an instance: the books agree, and nothing is left."""
    for remove in (True, False):
        for passes in range(int(remove), 25, 2):
            engine, logger = FakeEngine(), WatchedLogger()
            async with open_fake_cache(SLICED, engine=engine, logger=logger) as cache:
                wasm = engine.module(start_fuel=3 * COSTLY)
                f = await add(cache, "f", wasm, concurrency=2)
                await f.call(1)
                look(cache)
                for _ in range(passes):
                    await trio.lowlevel.checkpoint()
                if remove:
                    cache.remove("f")
                else:
                    await add(cache, "f", engine.module(), replace=True)
                await settle(cache)
                assert cache.stats().promotions_waiting == 0
                assert not cache._pool.background
                assert not cache._promoter._users or not remove
        assert logger.fields("promoted"), "it was over by then"
        assert tiers_of(logger)


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("offload_after", [None, 0])
async def test_closing_at_every_step(group: bool, offload_after: int | None) -> None:
    """A group, or the cache: nothing runs any more, and nothing is left."""
    # A thread takes any number of passes.
    for passes in range(0, 25, 1 if offload_after is None else 6):
        engine, logger = FakeEngine(), WatchedLogger()
        config = evolve(SLICED, offload_after=offload_after)
        async with open_fake_cache(config, engine=engine, logger=logger) as cache:
            f = await add(cache, "f", engine.module(start_fuel=3 * COSTLY))
            async with AsyncExitStack() as stack:
                if group:
                    await stack.enter_async_context(cache.scheduling_group("g", capacity=1))
                await f.call(1)
                look(cache)
                for _ in range(passes):
                    await trio.lowlevel.checkpoint()
            if group:
                assert engine.open_instances == 0
                look_at_books(cache, _kit_of(engine))
        assert logger.lines[-1][1] == "wasmcache.closed"
    assert tiers_of(logger) or offload_after is not None


def _kit_of(engine: FakeEngine) -> FakeKit:
    kit = FakeKit()
    kit.engine = engine
    return kit


async def test_a_start_in_a_thread_is_waited_for(kit: Kit) -> None:
    """As the group closes whose instance starts in the background."""
    config = evolve(TIERED, yield_fuel=COSTLY // 100, offload_after=0)
    for _ in range(5):
        logger = WatchedLogger()
        async with kit.open(config, logger=logger) as cache:
            f = await add(cache, "f", kit.adding(1, slow_start=True))
            async with cache.scheduling_group("g", capacity=1):
                await f.call(1)
                await promote(cache, logger, f)
                for _ in range(4):
                    await trio.lowlevel.checkpoint()
            look_at_books(cache, kit)


async def test_cancelled_everywhere(kit: Kit) -> None:
    """Registering, the first call, and whatever goes on in the background meanwhile."""
    async with stage(kit, SLICED) as at:

        async def scenario() -> None:
            f = await add(at.cache, "f", kit.costly(), replace=True)
            with due_at_once():
                assert await f.call(5) == 5
                assert await f.call(6) == 6

        await at.run(scenario, least=10)
        await settle(at.cache)


async def test_host_functions_of_a_start_in_the_background(kit: Kit) -> None:
    """They have a lease that says what it is; what they raise leaves the idle one as it is."""
    seen: list[str] = []

    def ask(value: int) -> int:
        seen.append(current_lease().function.name)
        return value

    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add_asking(cache, kit, ask, name="f")
        assert await f.call(1) == 1
        await promote(cache, logger, f)
        await settle(cache)
        assert (await f.call(2), seen) == (2, ["f", "f"])
        assert tiers(cache) == [{"optimizing": 1}]


async def test_a_group_with_more_shares_has_more_compiled() -> None:
    """Groups take turns by shares, and within one the function with the most fuel is first."""
    engine, logger = FakeEngine(), WatchedLogger()
    async with open_fake_cache(TIERED, engine=engine, logger=logger) as cache:
        functions = [
            await add(cache, f"f{number}", engine.module(fuel=100 + number)) for number in range(8)
        ]
        async with (
            cache.scheduling_group("a", capacity=9, shares=300) as a,
            cache.scheduling_group("b", capacity=9, shares=100) as b,
        ):
            for number, function in enumerate(functions):
                async with (a if number % 2 else b).acquire(function.name) as lease:
                    await lease.call(1)
            look(cache)
            await settle(cache)
            await settle(cache)
        order = [one["function"] for one in logger.fields("promoted")]
        groups = [one["group"] for one in logger.fields("promoted")]
    assert sorted(groups[:4]) == ["a", "a", "a", "b"]
    assert [name for name in order if int(name[1:]) % 2] == ["f7", "f5", "f3", "f1"]
    assert [name for name in order if not int(name[1:]) % 2] == ["f6", "f4", "f2", "f0"]


async def test_nothing_is_promoted_without_being_asked_for(kit: Kit) -> None:
    """With one compiler nobody looks, and nothing is kept for it."""
    async with kit.open(CacheConfig(compiler="optimizing")) as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        look(cache)
        assert cache.stats().promotions_waiting == 0
        record = cache._pool.registry.find("f", None)
        assert record.definition.module.recipe is None


async def test_a_failing_start_leaves_what_is_idle() -> None:
    """Its error is that of the next miss."""
    engine, logger = FakeEngine(), WatchedLogger()
    async with open_fake_cache(TIERED, engine=engine, logger=logger) as cache:
        f = await add(cache, "f", engine.module(code_size=64 * KiB), concurrency=2)
        await f.call(1)
        await promote(cache, logger, f)
        engine.fail_at = len(engine.steps) + 1
        await settle(cache)
        engine.fail_at = len(engine.steps) + 1
        assert tiers(cache) == [{"baseline": 1}]
        async with f.acquire():
            with pytest.raises(LoadError):
                await f.call(1)
        failed, _ = logger.fields("failed")
        assert (failed["promoted"], failed["error"]) == (True, "LoadError")
        engine.fail_at = None
        async with f.acquire():
            assert await f.call(1) == 1
            assert tiers(cache)[0]["optimizing"] >= 1
