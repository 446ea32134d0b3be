"""The engine fails its first native step, then its second, and so on: each hurts only its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from kits import COSTLY, FakeKit, add, add_asking, add_calling_back, stack_of
from staging import look
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache, Lease, WasmCacheError, current_lease
from trio_wasmcache.testing import FakeEngine

CONFIG = CacheConfig(yield_fuel=COSTLY // 3, offload_after=None)
TYPES = ("i64",)
Scenario = Callable[[InstanceCache, FakeKit, list[WasmCacheError]], Awaitable[None]]


async def fail_everywhere(scenario: Scenario, config: CacheConfig = CONFIG) -> list[str]:
    """Run `scenario` on a new cache for each native step it has; gives the names of all steps.

    Exactly one error has to come out, wherever the failing step was; afterwards the books agree,
    and a function of the same module, in the same cache, works.
    """
    for number in range(1, 1000):
        kit = FakeKit()
        kit.engine.fail_at = number
        errors: list[WasmCacheError] = []
        async with kit.open(config) as cache:
            await scenario(cache, kit, errors)
            look(cache, kit)
            assert cache.stats().running_instances == cache.stats().waiting == 0
            if len(kit.engine.steps) < number:
                assert errors == []
                return kit.engine.steps
            assert len(errors) == 1
            for function in cache.functions():
                await function.call(1)
            look(cache, kit)
        assert kit.engine.open_instances == kit.engine.loaded_modules == 0
    raise AssertionError("the scenario never completed")


async def trying(errors: list[WasmCacheError], use: Awaitable[object]) -> None:
    """Await `use`, and note an error of ours."""
    try:
        await use
    except WasmCacheError as error:
        errors.append(error)


async def test_an_acquire_and_a_call() -> None:
    """Compiling, loading, instantiating, starting, calling: whatever fails, the next one works."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        wasm = kit.adding(1, slow_start=True)
        await trying(errors, add(cache, "f", wasm))
        if cache.functions():
            await trying(errors, cache.functions()[0].call(1))
        else:
            await add(cache, "f", wasm)

    steps = await fail_everywhere(scenario)
    assert steps == ["compile", "load", "instantiate", "start", "call"]


async def test_a_host_function_that_calls_back() -> None:
    """Its instance has one more part; nothing of either is left, whichever step fails."""

    async def ask(value: int) -> int:
        if value != 1:
            return int(await current_lease().invoke("double", value))
        return value

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        await trying(errors, add_calling_back(cache, kit, ask))
        if cache.functions():
            await trying(errors, cache.functions()[0].call(2))
        else:
            await add_calling_back(cache, kit, ask)

    steps = await fail_everywhere(scenario)
    assert steps == ["compile", "load", "instantiate", "instantiate", "start", "call"]


async def test_waiters_behind_the_one_that_fails() -> None:
    """Four queue for one function: three are served, whichever of their steps fails."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        await trying(errors, add(cache, "f", kit.adding(1)))
        if errors:
            return
        (f,) = cache.functions()
        results: list[int] = []

        async def use() -> None:
            results.append(await f.call(1))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(trying, errors, use())
        assert results == [2] * (4 - len(errors))

    steps = await fail_everywhere(scenario, CacheConfig(max_size=0))
    assert steps == ["compile", "load"] + ["instantiate", "start", "call"] * 4


async def test_waiters_for_a_seat_on_which_loading_fails() -> None:
    """It stays, whichever step fails, and the others are served on it, without another load."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        await trying(errors, add(cache, "f", kit.adding(1), isolation="fresh"))
        if errors:
            return
        (f,) = cache.functions()
        results: list[int] = []

        async def use() -> None:
            async with f.acquire():
                results.append(1)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(trying, errors, use())
        assert len(results) == 4 - len(errors)
        stats = cache.stats()
        assert (stats.hits + stats.misses, stats.misses) == (len(results), 1)
        assert (stats.idle_instances, sum(stats.evictions.values())) == (1, 0)

    steps = await fail_everywhere(scenario)
    assert steps == ["compile", "load"] + ["instantiate", "start"] * 4


async def test_an_instance_that_can_not_be_marked() -> None:
    """Is none: its load has failed, and what waits for it goes on with another."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        await trying(errors, add(cache, "f", kit.growing(), isolation="reset"))
        if errors:
            return
        (f,) = cache.functions()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(trying, errors, f.call(1))

    steps = await fail_everywhere(scenario)
    assert steps == ["compile", "load"] + ["instantiate", "start", "mark", "call"] * 2


async def test_waiters_for_room_behind_the_one_that_fails() -> None:
    """Three functions, room for one: what a failed load gives back, the next in line gets."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        for name in "fgh":
            wasm = kit.adding(1)
            await trying(errors, add(cache, name, wasm))
        functions = cache.functions()
        code = max(function.code_size for function in functions)
        cache.resize(max_code_size=code + stack_of(cache))
        results: list[int] = []

        async def use(name: str) -> None:
            async with cache.acquire(name, TYPES) as lease:
                results.append(await lease.call(1))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(trying, errors, use(function.name))
                await wait_all_tasks_blocked()
        assert results == [2] * (3 - len(errors))

    steps = await fail_everywhere(scenario)
    assert steps == ["compile"] * 3 + ["load", "instantiate", "start", "call"] * 3


async def test_several_that_load_the_same_module() -> None:
    """Two groups and two functions want the same code at the same time; one of them fails."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        wasm = kit.adding(1)
        await trying(errors, add(cache, "f", wasm))
        await trying(errors, add(cache, "g", wasm))
        if errors:
            return
        results: list[int] = []

        async def use(acquired: Lease) -> None:
            async with acquired as lease:
                results.append(await lease.call(1))

        async with (
            trio.open_nursery() as nursery,
            cache.scheduling_group("other", capacity=2) as group,
        ):
            for name in "fg":
                nursery.start_soon(
                    trying, errors, use(cache._groups.main_group.acquire(name, TYPES))
                )
                group.start_soon(trying, errors, use(group.acquire(name, TYPES)))
        assert results == [2] * (4 - len(errors))

    steps = await fail_everywhere(scenario)
    assert steps.count("compile") == steps.count("load") == 1
    assert steps.count("instantiate") == 4


async def test_replacing_warming_and_nested_calls() -> None:
    """A failed replacement leaves the old one; a failed nested call fails its host's call too."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        await trying(errors, add(cache, "inner", kit.adding(1), concurrency=2))
        if errors:
            return

        async def ask(value: int) -> int:
            async with cache.acquire("inner", TYPES) as lease:
                result: int = await lease.call(value)
            return result

        await trying(errors, add_asking(cache, kit, ask, name="outer"))
        await trying(errors, cache.warm("inner", TYPES, 2))
        await trying(errors, add(cache, "inner", kit.adding(1), replace=True))
        for function in cache.functions():
            await trying(errors, function.call(1))

    steps = await fail_everywhere(scenario)
    assert len(steps) > 12


async def test_failing_does_not_need_a_number() -> None:
    """Without one no step fails, and they are counted all the same."""
    engine = FakeEngine()
    assert not engine.step("one")
    assert engine.steps == ["one"]
