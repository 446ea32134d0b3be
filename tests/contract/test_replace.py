"""Semantics 15: removing and replacing under everybody's hands."""

from __future__ import annotations

import pytest
import trio
from kits import Kit, ListLogger, add, stack_of
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache, UnknownFunctionError
from trio_wasmcache.testing import check_invariants


async def test_15_a_holder_finishes_on_the_old_generation(kit: Kit, log: ListLogger) -> None:
    """Its instance is dropped when recycled, and never granted again."""
    async with kit.open(logger=log) as cache:
        f = await add(cache, "f", kit.adding(1))
        async with f.acquire() as lease:
            assert (await add(cache, "f", kit.adding(2), replace=True)).generation == 2
            assert await lease.call(1) == 2
            assert lease.function.generation == 1
            check_invariants(cache)
        assert cache.stats().idle_instances == 0
        assert [(e["reason"], e["generation"]) for e in log.fields("evicted")] == [("removed", 1)]
        assert await f.call(1) == 3


async def test_15_a_removed_functions_instance_never_comes_back(kit: Kit) -> None:
    """Idle ones go at once; the one that runs goes when its lease ends."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        async with f.acquire() as lease:
            await f.call(1)
            assert cache.stats().idle_instances == 1
            cache.remove("f", ("i64",))
            assert cache.stats().idle_instances == 0
            assert await lease.call(1) == 2
            with pytest.raises(UnknownFunctionError):
                await f.call(1)
            check_invariants(cache)
        assert cache.stats().entries == 0
        assert cache.stats().evictions["removed"] == 2


async def test_15_waiters_go_on_with_the_new_generation_in_order(kit: Kit) -> None:
    """They wait no longer for the old one's holder, which is not in their way any more."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        results: list[tuple[int, int]] = []

        async def use(number: int) -> None:
            async with f.acquire() as lease:
                results.append((number, await lease.call(0)))

        async with trio.open_nursery() as nursery:
            async with f.acquire() as lease:
                for number in range(3):
                    nursery.start_soon(use, number)
                    await wait_all_tasks_blocked()
                await add(cache, "f", kit.adding(2), replace=True)
                check_invariants(cache)
                while len(results) < 3:
                    await trio.lowlevel.checkpoint()
                assert await lease.call(0) == 1
        assert results == [(0, 2), (1, 2), (2, 2)]


async def test_15_waiters_of_a_removed_function_are_told(kit: Kit) -> None:
    """Each gets `UnknownFunctionError`, at once."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        told: list[int] = []

        async def use(number: int) -> None:
            with pytest.raises(UnknownFunctionError, match=r"f\(i64\) was removed"):
                await f.call(1)
            told.append(number)

        async with trio.open_nursery() as nursery:
            async with f.acquire():
                for number in range(3):
                    nursery.start_soon(use, number)
                await wait_all_tasks_blocked()
                cache.remove("f")
                await wait_all_tasks_blocked()
                assert sorted(told) == [0, 1, 2]
                check_invariants(cache)


async def test_15_waiters_for_room_go_on_with_the_new_generation(kit: Kit) -> None:
    """They keep their place, and load the new code when there is room."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(5))
        results: list[int] = []

        async def use() -> None:
            results.append(await f.call(0))

        async with trio.open_nursery() as nursery:
            async with g.acquire():
                cache.resize(max_code_size=max(f.code_size, g.code_size) + stack_of(cache))
                nursery.start_soon(use)
                await wait_all_tasks_blocked()
                await add(cache, "f", kit.adding(2), replace=True)
                check_invariants(cache)
                assert results == []
        assert results == [2]


async def test_15_a_load_that_was_overtaken_is_done_again(kit: Kit) -> None:
    """What was loaded of the old generation is never used: the lease is one of the new."""
    config = CacheConfig(yield_fuel=1000, offload_after=None)
    async with kit.open(config) as cache:
        f = await add(cache, "f", kit.adding(1, slow_start=True))
        results: list[int] = []

        async def use() -> None:
            results.append(await f.call(0))

        new = kit.adding(2)
        await add(cache, "compiled already", new)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            nursery.start_soon(use)
            while cache.stats().running_instances == 0:
                await trio.lowlevel.checkpoint()
            await add(cache, "f", new, replace=True)
            check_invariants(cache)
            assert cache.stats().misses == 0  # it is still loading
        assert results == [2, 2]
        assert cache.stats().evictions["removed"] == 1
        assert (cache.stats().hits, cache.stats().misses) == (1, 1)


async def test_15_a_load_that_was_overtaken_twice(kit: Kit) -> None:
    """It goes on with the newest generation, and so does who waits behind it."""
    config = CacheConfig(yield_fuel=1000, offload_after=None)
    async with kit.open(config) as cache:
        f = await add(cache, "f", kit.adding(1, slow_start=True))
        newer = [kit.adding(number) for number in (2, 3)]
        for number, wasm in enumerate(newer):
            await add(cache, f"compiled already {number}", wasm)
        results: list[int] = []

        async def use() -> None:
            results.append(await f.call(0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            nursery.start_soon(use)
            while cache.stats().running_instances == 0:
                await trio.lowlevel.checkpoint()
            for wasm in newer:
                await add(cache, "f", wasm, replace=True)
                check_invariants(cache)
            assert cache.stats().misses == 0
        assert results == [3, 3]


async def test_15_a_load_whose_function_is_removed_ends_with_an_error(kit: Kit) -> None:
    """Nothing is granted that is not registered any more."""
    config = CacheConfig(yield_fuel=1000, offload_after=None)
    async with kit.open(config) as cache:
        f = await add(cache, "f", kit.adding(1, slow_start=True))
        told = 0

        async def use() -> None:
            nonlocal told
            with pytest.raises(UnknownFunctionError):
                await f.call(0)
            told += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            nursery.start_soon(use)
            while cache.stats().running_instances == 0:
                await trio.lowlevel.checkpoint()
            cache.remove("f")
        assert told == 2
        assert cache.stats().entries == 0
        check_invariants(cache)


async def test_15_the_same_name_with_a_new_body_gives_new_results(kit: Kit) -> None:
    """On all of 100 calls, idle instances of the old body notwithstanding."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=4)
        await cache.warm("f", ("i64",), 4)
        results: list[int] = []

        async def use() -> None:
            for _ in range(10):
                results.append(await f.call(1))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(use)
        assert results == [2] * 100
        results.clear()
        await add(cache, "f", kit.adding(100), replace=True, concurrency=4)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(use)
        assert results == [101] * 100
        assert cache.stats().evictions["removed"] == 4


async def test_15_removed_and_registered_again_with_another_body(kit: Kit) -> None:
    """A new generation, although the name was free in between."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        assert [await f.call(1) for _ in range(3)] == [2, 2, 2]
        cache.remove("f", ("i64",))
        again = await add(cache, "f", kit.adding(7))
        assert again.generation == 2
        assert [await again.call(1) for _ in range(100)] == [8] * 100


async def test_15_the_same_name_with_another_arity_is_another_function(kit: Kit) -> None:
    """Removing one of them leaves the other."""
    async with kit.open() as cache:
        one = await add(cache, "f", kit.adding(1))
        two = await add(cache, "f", kit.adding_two(), args=("i64", "i64"))
        assert await one.call(1) == 2
        assert await two.call(1, 5) == 6
        cache.remove("f", ("i64",))
        with pytest.raises(UnknownFunctionError, match=r"f\(i64, i64\)"):
            await one.call(1)
        assert await two.call(1, 5) == 6
        assert cache.functions() == (two,)


async def test_15_the_entries_are_gone_after_removal_ten_times_over(kit: Kit) -> None:
    """Registering, calling and removing leaves nothing behind."""
    async with kit.open() as cache:
        for number in range(10):
            f = await add(cache, "f", kit.adding(number))
            assert await f.call(1) == 1 + number
            assert cache.stats().entries == 1
            cache.remove("f")
            stats = cache.stats()
            assert (stats.entries, stats.functions, stats.total_size) == (0, 0, 0)
            assert (stats.loaded_modules, stats.code_size, stats.artifact_size) == (0, 0, 0)
            check_invariants(cache)


async def test_15_removing_all_overloads_and_what_is_not_there(kit: Kit) -> None:
    """Without types all of that name go; an unknown name is an error and changes nothing."""
    async with kit.open() as cache:
        await add(cache, "f", kit.adding(1))
        await add(cache, "f", kit.adding_two(), args=("i64", "i64"))
        await add(cache, "g", kit.adding(1))
        with pytest.raises(UnknownFunctionError):
            cache.remove("h")
        with pytest.raises(UnknownFunctionError, match=r"f\(i64\)"):
            cache.remove("f", ("f32",))
        cache.remove("f")
        assert [function.name for function in cache.functions()] == ["g"]


async def replace_often(cache: InstanceCache, kit: Kit, times: int) -> None:
    for number in range(1, times):
        await add(cache, "f", kit.adding(number), replace=True)


async def test_15_replacing_under_load_never_gives_an_older_result(kit: Kit) -> None:
    """While one task replaces ten times, results of the others only ever go up."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(0), concurrency=2)
        over = trio.Event()

        async def use() -> None:
            last = -1
            while not over.is_set():
                result = await f.call(0)
                assert result >= last
                last = result

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(use)
            await replace_often(cache, kit, 10)
            over.set()
        assert await f.call(0) == 9
        check_invariants(cache)
