"""`max_running_size` on both engines: waiting for what running instances may come to."""

from __future__ import annotations

import pytest
import trio
from kits import PAGE, Kit, add, stack_of
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, CodeMemoryError, DeadlockError
from trio_wasmcache.testing import check_invariants

# A page of memory that may grow to four; the scratches of batches; the page for the rest.
LIMITS = CacheConfig(memory_limit=4 * PAGE)
WORST = 4 * PAGE + 8 * PAGE + PAGE


async def test_running_instances_are_counted_with_the_most_they_may_touch(kit: Kit) -> None:
    """While they are held or loaded, whatever they touch; idle ones with what they do touch."""
    async with kit.open(LIMITS) as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        assert f.worst_size == WORST
        async with f.acquire() as one, f.acquire():
            stats = cache.stats()
            assert (stats.running_size, stats.max_running_size) == (2 * WORST, None)
            assert stats.total_size == 0
            assert one.size == 2 * PAGE < WORST
            check_invariants(cache)
        stats = cache.stats()
        assert (stats.running_size, stats.total_size) == (0, 4 * PAGE)


async def test_an_acquire_waits_until_there_is_room_for_its_worst_case(kit: Kit) -> None:
    """A miss, then a hit, and `warm`: all stand in one line, and each is counted as a block."""
    async with kit.open(LIMITS) as cache:
        cache.resize(max_running_size=2 * WORST - 1)
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        h = await add(cache, "h", kit.adding(3))
        await f.call(1)
        answers: list[int] = []

        async def call(function: object) -> None:
            answers.append(await function.call(1))  # type: ignore[attr-defined]

        async with trio.open_nursery() as nursery:
            async with g.acquire():
                nursery.start_soon(call, h)
                await wait_all_tasks_blocked()
                nursery.start_soon(call, f)
                await wait_all_tasks_blocked()
                nursery.start_soon(cache.warm, "h", ("i64",))
                await wait_all_tasks_blocked()
                stats = cache.stats()
                assert (stats.running_instances, stats.running_size) == (1, WORST)
                assert (stats.waiting, stats.blocks) == (3, 3)
                check_invariants(cache)
        assert answers == [4, 2]
        assert cache.stats().running_size == 0


async def test_a_waiter_is_cancelled_and_leaves_nothing(kit: Kit) -> None:
    """Whoever was behind it goes on."""
    async with kit.open(LIMITS) as cache:
        cache.resize(max_running_size=WORST)
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        async with f.acquire(), trio.open_nursery() as nursery:
            nursery.start_soon(g.call, 1)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await g.call(1) == 3


async def test_what_never_fits_is_refused_and_what_waits_for_itself(kit: Kit) -> None:
    """Each names the function or the chain; raising the limit helps at once."""
    async with kit.open(LIMITS) as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        cache.resize(max_running_size=WORST - 1)
        with pytest.raises(CodeMemoryError, match=rf"f\(i64\) may touch {WORST} bytes"):
            await f.call(1)
        assert cache.stats().errors == {"CodeMemoryError": 1}
        cache.resize(max_running_size=WORST)
        async with f.acquire():
            with pytest.raises(DeadlockError):
                await f.call(1)
            cache.resize(max_running_size=2 * WORST)
            assert await f.call(1) == 2
        cache.resize(max_running_size=None)
        assert cache.stats().max_running_size is None


async def test_a_batch_stays_within_the_worst_case(kit: Kit) -> None:
    """Both scratches that an instance may keep are in it from the start."""
    async with kit.open(LIMITS) as cache:
        f = await add(cache, "f", kit.adding(1))
        async with f.acquire() as lease:
            assert list(await lease.map([[1, 2]])) == [2, 3]
            one = lease.size
            assert list(await lease.map([[1, None]])) == [2, None]
            assert 2 * PAGE < one < lease.size <= f.worst_size
            assert cache.stats().running_size == WORST
            assert cache.stats().scratch_size == lease.size - 2 * PAGE
        assert cache.stats().scratch_size == cache.stats().total_size - 2 * PAGE > 0
        cache.remove("f")
        assert cache.stats().scratch_size == 0


async def test_kinds_of_bytes_add_up(kit: Kit) -> None:
    """Code and stacks are `code_size`; everything that is accounted for is `accounted_size`."""
    async with kit.open(LIMITS) as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        await f.call(1)
        async with g.acquire():
            stats = cache.stats()
            assert stats.module_code_size == f.code_size + g.code_size
            assert stats.stacks_size == stack_of(cache)
            assert stats.code_size == stats.module_code_size + stats.stacks_size
            parts = (stats.total_size, stats.running_size, stats.code_size, stats.artifact_size)
            assert parts[:2] == (2 * PAGE, WORST)
            assert stats.idle_stacks_size == stats.stacks_size  # what f ran on, and g does now
            assert stats.accounted_size == sum(parts) + stats.idle_stacks_size
