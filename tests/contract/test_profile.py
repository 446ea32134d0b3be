"""Profiles of a running cache: for a window, functions have instances that take samples."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import trio
from attrs import evolve
from kits import COSTLY, FakeKit, Kit, add, add_asking, add_two_parts
from profiles import SECONDS, window
from promoting import TIERED, WatchedLogger, look, promote, settle
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    InstanceCache,
    InvalidModuleError,
    LoadError,
    MiB,
    UnknownFunctionError,
)
from trio_wasmcache._core.tiers import FIRST, PROFILED
from trio_wasmcache._engine.wasmtime import sampling
from trio_wasmcache._pool.registration import Compiler
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay.replay import Replay
from trio_wasmcache.testing import check_invariants

KEPT = CacheConfig(offload_after=None, idle_timeout=math.inf)


@pytest.fixture(autouse=True)
def _many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each tenth of a costly call, however long taking one takes here."""
    monkeypatch.setattr(sampling, "INTERVAL", COSTLY // 10)
    monkeypatch.setattr(sampling, "REST", 0)


def disagreements(logger: WatchedLogger) -> list[tuple[int, str]]:
    """What the replay of a log finds."""
    played = Replay()
    for _, name, fields in logger.lines:
        played.feed(make_event({"event": name, **json.loads(json.dumps(fields))}))
    played.finish()
    return played.disagreements


def tiers(cache: InstanceCache, by: str = "function") -> dict[str, dict[str, int]]:
    """The tiers of the instances of each function, or group.

    "optimizing" is whatever the tests run with.
    """
    check_invariants(cache)
    names = {}
    if cache._pool.config.compiler == "optimizing":
        first = FIRST["optimizing"]
        names = {first.value: "optimizing", PROFILED[first].value: "optimizing, profiled"}
    return {
        getattr(entry, by): {names.get(tier, tier): count for tier, count in entry.tiers.items()}
        for entry in cache.entries()
    }


async def test_the_life_of_a_window(kit: Kit, mock_clock: MockClock) -> None:
    """Idle instances make way as it begins and ends; other functions keep theirs."""
    logger = WatchedLogger()
    async with kit.open(evolve(KEPT, log_uses=True), logger=logger) as cache:
        f = await add(cache, "f", kit.costly())
        other = await add(cache, "other", kit.adding(1))
        await f.call(1)
        await other.call(1)
        before = cache.stats()
        async with window(cache, logger, mock_clock, function="f") as found:
            assert "f" not in tiers(cache)
            assert tiers(cache)["other"] == {"optimizing": 1}
            burnt = 0
            for value in range(3):
                async with f.acquire() as lease:
                    assert await lease.call(value) == value
                    burnt += lease.fuel_consumed
                assert await other.call(value) == value + 1
            assert tiers(cache)["f"] == {"optimizing, profiled": 1}
            stats = cache.stats()
            assert stats.code_size > before.code_size - 1
            assert stats.misses == before.misses + 1
        profile = found.profile
        assert tiers(cache) == {"other": {"optimizing": 1}}
        assert cache.stats().loaded_modules == 1
        assert await f.call(7) == 7
        assert tiers(cache)["f"] == {"optimizing": 1}
        begun, ended = logger.fields("profiled")
    assert logger.reasons()[:2] == ["profiled", "profiled"]
    assert profile.seconds == SECONDS
    assert profile.fuel_by_group == {"main": profile.fuel}
    assert set(profile.fuel_by_function) == {"run"}
    assert burnt - COSTLY // 4 < profile.fuel <= burnt
    assert profile.samples == ended["samples"] >= 3
    assert begun["module_number"] and begun["compiler"].endswith(", profiled")
    assert (ended["module_number"], ended["fuel"]) == (None, profile.fuel)
    assert disagreements(logger) == []


async def test_held_leases_are_not_touched(kit: Kit, mock_clock: MockClock) -> None:
    """They keep their instance, state included, and it goes when they end: both ways round."""
    logger = WatchedLogger()
    async with kit.open(evolve(KEPT, log_uses=True), logger=logger) as cache:
        f = await add(cache, "f", kit.costly(), concurrency=2)
        async with f.acquire() as held:
            held.memory.write(8, b"mine")
            async with window(cache, logger, mock_clock) as found:
                await held.call(1)
                async with f.acquire() as other:
                    assert await other.call(2) == 2
                    assert tiers(cache)["f"] == {"optimizing": 1, "optimizing, profiled": 1}
                    mock_clock.jump(SECONDS)
                    await wait_all_tasks_blocked()
                    assert found.profile.samples
                    assert await other.call(3) == 3
                    assert tiers(cache)["f"] == {"optimizing": 1, "optimizing, profiled": 1}
                assert tiers(cache)["f"] == {"optimizing": 1}
            assert held.memory.read(8, 4) == b"mine"
            assert await held.call(1) == 1
        assert tiers(cache)["f"] == {"optimizing": 1}
        assert cache.stats().hits == 0
    assert logger.reasons() == ["profiled", "closed"]
    assert disagreements(logger) == []


async def test_a_lease_from_before_loses_its_instance_in_the_window(
    kit: Kit, mock_clock: MockClock
) -> None:
    """So that the next one is profiled."""
    logger = WatchedLogger()
    async with kit.open(evolve(KEPT, log_uses=True), logger=logger) as cache:
        f = await add(cache, "f", kit.costly())
        held = f.acquire()
        await held.__aenter__()
        await held.call(1)
        async with window(cache, logger, mock_clock) as found:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(f.call, 2)
                await wait_all_tasks_blocked()
                await held.__aexit__(None, None, None)
            await f.call(3)
        assert found.profile.fuel > COSTLY
    assert logger.reasons() == ["profiled", "profiled"]
    assert disagreements(logger) == []


async def test_only_a_group(kit: Kit, mock_clock: MockClock) -> None:
    """Instances of other groups stay, and nothing of them is in the profile."""
    logger = WatchedLogger()
    async with kit.open(evolve(KEPT, log_uses=True), logger=logger) as cache:
        await add(cache, "f", kit.costly())
        async with (
            cache.scheduling_group("a", capacity=1) as a,
            cache.scheduling_group("b", capacity=1) as b,
        ):
            for group in (a, b):
                async with group.acquire("f") as lease:
                    await lease.call(1)
            async with window(cache, logger, mock_clock, group=a) as found:
                for group in (a, b):
                    async with group.acquire("f") as lease:
                        await lease.call(2)
                expected = {"a": {"optimizing, profiled": 1}, "b": {"optimizing": 1}}
                assert tiers(cache, "group") == expected
            assert {entry.group for entry in cache.entries()} == {"b"}
        assert set(found.profile.fuel_by_group) == {"a"}
    assert [one["group"] for one in logger.fields("profiled")] == ["a", "a"]
    assert disagreements(logger) == []


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_each_isolation(isolation: Any, kit: Kit, mock_clock: MockClock) -> None:
    """Seats, and instances that are put back, are of the variant, too."""
    logger = WatchedLogger()
    async with kit.open(evolve(KEPT, log_uses=True), logger=logger) as cache:
        f = await add(cache, "f", kit.costly(), isolation=isolation)
        await f.call(1)
        async with window(cache, logger, mock_clock) as found:
            burnt = 0
            for value in range(3):
                async with f.acquire() as lease:
                    assert lease.memory.read(16, 1) == b"\0" or isolation == "reuse"
                    lease.memory.write(16, b"x")
                    assert await lease.call(value) == value
                    burnt += lease.fuel_consumed
            assert tiers(cache) == {"f": {"optimizing, profiled": 1}}
        assert burnt - COSTLY // 4 < found.profile.fuel <= burnt
        assert await f.call(5) == 5
    assert disagreements(logger) == []


async def test_with_two_tiers(kit: Kit, mock_clock: MockClock) -> None:
    """The variant is by the compiler of then; a promotion meanwhile takes effect afterwards."""
    logger = WatchedLogger()
    async with kit.open(TIERED, logger=logger) as cache:
        f = await add(cache, "f", kit.costly())
        await f.call(1)
        async with window(cache, logger, mock_clock) as found:
            await f.call(2)
            assert tiers(cache) == {"f": {"baseline, profiled": 1}}
            await promote(cache, logger, f)
            await settle(cache)
            assert await f.call(3) == 3
            assert tiers(cache) == {"f": {"baseline, profiled": 1}}
        assert found.profile.samples
        await f.call(4)
        assert tiers(cache) == {"f": {"optimizing": 1}}
        look(cache)
        async with window(cache, logger, mock_clock) as found:
            await f.call(5)
            assert tiers(cache) == {"f": {"optimizing, profiled": 1}}
        assert found.profile.samples


async def test_replaced_and_removed_meanwhile(kit: Kit, mock_clock: MockClock) -> None:
    """The new generation is not profiled, and nothing of the old one is left."""
    logger = WatchedLogger()
    async with kit.open(evolve(KEPT, log_uses=True), logger=logger) as cache:
        f = await add(cache, "f", kit.costly())
        g = await add(cache, "g", kit.costly())
        await f.call(1)
        await g.call(1)
        async with window(cache, logger, mock_clock):
            await f.call(1)
            await g.call(1)
            f = await add(cache, "f", kit.adding(3), replace=True)
            cache.remove("g")
            assert await f.call(1) == 4
            assert tiers(cache) == {"f": {"optimizing": 1}}
        assert await f.call(2) == 5
        assert len(cache._compiler.modules) == 1
    assert len(logger.fields("profiled")) == 2, "the log tells of the end of a retired one"
    assert disagreements(logger) == []


async def test_closing_returns_what_there_is(kit: Kit, mock_clock: MockClock) -> None:
    """The task that profiles gets it, in the middle of its window."""
    logger, profiles = WatchedLogger(), []

    async def profile(cache: InstanceCache) -> None:
        profiles.append(await cache.profile(seconds=math.inf))

    async with trio.open_nursery() as nursery:
        async with kit.open(KEPT, logger=logger) as cache:
            f = await add(cache, "f", kit.costly())
            await f.call(1)
            async with trio.open_nursery() as waiting:
                waiting.start_soon(logger.wait, "profiled")
                await trio.lowlevel.checkpoint()
                nursery.start_soon(profile, cache)
            await f.call(2)
    assert profiles[0].fuel > COSTLY // 2
    assert [name for _, name, _ in logger.lines][-1] == "wasmcache.closed"


async def test_cancelled_at_every_checkpoint(kit: Kit) -> None:
    """Nothing of it is left: no variant, and no instance of it but held ones."""
    logger = WatchedLogger()
    async with kit.open(KEPT, logger=logger) as cache:
        f = await add(cache, "f", kit.costly())
        for passes in range(0, 40, 3):
            await f.call(1)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cache.profile, math.inf)
                    for _ in range(passes):
                        await trio.lowlevel.checkpoint()
                    if cache._profiler._window is not None and passes % 2:
                        await f.call(2)
                    scope.cancel()
            check_invariants(cache)
            assert cache._profiler._window is None
            assert len(cache._compiler.modules) == 1
            assert await f.call(3) == 3
            assert tiers(cache) == {"f": {"optimizing": 1}}


async def test_what_can_not_be_profiled(fake: FakeKit, log: Any, mock_clock: MockClock) -> None:
    """It is refused by name, and the next profile works."""
    async with fake.open(KEPT, logger=log) as cache:
        f = await add(cache, "f", fake.costly())
        await f.call(1)
        with pytest.raises(UnknownFunctionError, match="did you mean f"):
            await cache.profile(function="ff")
        with pytest.raises(ValueError, match="greater than 0"):
            await cache.profile(seconds=0)
        for wrong in ({"seconds": "1"}, {"seconds": True}, {"group": 1}, {"function": 1}):
            with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be"):
                await cache.profile(**wrong)
        module = next(iter(cache._compiler.modules.values()))
        source, module.source = module.source, None
        with pytest.raises(LoadError, match=r"nothing can be profiled: f\(i64\): its bytes"):
            await cache.profile(function=f)
        module.source = source
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.profile, 1)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match="under way"):
                await cache.profile(seconds=1)
            mock_clock.jump(1)
        with assert_checkpoints():
            with trio.CancelScope() as scope:
                scope.cancel()
                await cache.profile()
    with pytest.raises(trio.ClosedResourceError):
        await cache.profile()


async def test_a_variant_that_can_not_be_compiled(
    fake: FakeKit, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried once for all functions of the module; each is skipped for the same reason."""
    tries = []

    async def fail(_: Compiler, module: Any, group: Any) -> Any:
        tries.append((module, group))
        raise InvalidModuleError("it takes too long")

    monkeypatch.setattr(Compiler, "sample", fail)
    wasm = fake.adding(1)
    async with fake.open(KEPT) as cache:
        for name in ("f", "g"):
            f = await add(cache, name, wasm)
            await f.call(1)
        with pytest.raises(LoadError, match="it takes too long"):
            await cache.profile(seconds=1)
    assert len(tries) == 1


async def test_a_variant_that_does_not_fit(fake: FakeKit, log: Any, mock_clock: MockClock) -> None:
    """The function serves as before, and the profile says why it is not in it."""
    large = fake.engine.module(code_size=1 * MiB + 1)
    async with fake.open(KEPT, logger=log) as cache:
        f = await add(cache, "f", fake.costly())
        g = await add(cache, "g", large)
        await f.call(1)
        await g.call(1)
        # The smaller code and a stack, but not the larger code.
        cache.resize(max_code_size=1 * MiB + KEPT.instance_stack_size)
        async with trio.open_nursery() as nursery:
            profiles = []

            async def profile() -> None:
                profiles.append(await cache.profile(seconds=1))

            nursery.start_soon(profile)
            await wait_all_tasks_blocked()
            await f.call(1)
            mock_clock.jump(1)
        (made,) = profiles
        assert list(made.skipped) == ["g(i64)"]
        assert "max_code_size" in made.skipped["g(i64)"]
        assert "g(i64) was not profiled" in made.html()
        assert made.fuel > COSTLY


async def test_guests_that_ask_their_host_and_graphs(kit: Kit, mock_clock: MockClock) -> None:
    """Fuel that is burnt on both sides of a host call, and in another part."""
    logger = WatchedLogger()

    async def ask(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return value + 1

    async with kit.open(KEPT, logger=logger) as cache:
        asks = await add_asking(cache, kit, ask)
        parts = await add_two_parts(cache, kit, kit.costly(), name="parts")
        assert await asks.call(1) == 2
        assert await parts.call(1) == 1
        async with window(cache, logger, mock_clock) as found:
            assert await asks.call(2) == 3
            for value in range(3):
                assert await parts.call(value) == value
            assert tiers(cache)["parts"] == {"optimizing, profiled": 1}
        assert found.profile.fuel > COSTLY


async def test_tasks_that_were_started_with_the_profile(
    fake: FakeKit, mock_clock: MockClock
) -> None:
    """While nobody has called anything, all functions are profiled, in a group of its own, too."""
    mock_clock.autojump_threshold = 0
    async with fake.open(KEPT) as cache:
        f = await add(cache, "f", fake.costly())
        await add(cache, "g", fake.costly())

        async def work() -> None:
            while True:
                await f.call(1)
                await trio.sleep(0.1)

        async with cache.scheduling_group("new", capacity=1) as group:
            group.start_soon(work)
            profile = await cache.profile(seconds=1, group=group)
            assert profile.fuel_by_function.keys() == {"run"}
            assert profile.fuel_by_group.keys() == {"new"}
            assert profile.skipped == {}
            group.cancel_scope.cancel()


async def test_a_profile_of_nothing(fake: FakeKit, mock_clock: MockClock) -> None:
    """A misspelt group is refused; without calls there are no samples."""
    mock_clock.autojump_threshold = 0
    async with fake.open(KEPT) as cache:
        f = await add(cache, "f", fake.costly())
        with pytest.raises(ValueError, match=r"in a group 'nain'.* that are open: 'main'$"):
            await cache.profile(seconds=1, group="nain")
        profile = await cache.profile(seconds=1)
        assert profile.skipped == {}
        assert str(profile) == "<Profile of 1.0 s: 0 samples of 0 units of fuel>"
        async with cache.scheduling_group("other", capacity=1) as other:
            await f.call(1)
            profile = await cache.profile(seconds=1)
            assert profile.skipped == {}
        # A group that may be opened again.
        profile = await cache.profile(seconds=1, group=other, function=f)
        assert profile.skipped == {}
