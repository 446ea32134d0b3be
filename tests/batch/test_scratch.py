"""The scratch of batches of numbers: as large as the instance may keep, and made once."""

from __future__ import annotations

from array import array

import pytest
from batch.modules import dividing, held
from kits import PAGE, Kit, add

from trio_wasmcache import CacheConfig
from trio_wasmcache._core.wasm.driver import Shape, layout

TWO = ("i64", "i64")
MANY = layout(Shape(("i64",), ("i64",))).rows * 2 + 13
# An instance has a page beside its memory.
LIMIT = CacheConfig(max_instance_size=16 * PAGE)


@pytest.mark.parametrize(("pages", "scratch"), [(12, 2), (13, 2), (14, 1)])
async def test_an_instance_is_kept_after_a_batch(kit: Kit, pages: int, scratch: int) -> None:
    """The scratch takes what `max_instance_size` leaves, if that is less than a whole one."""
    async with kit.open(LIMIT) as cache:
        f = await add(cache, "f", kit.adding(1, pages=pages))
        for _ in range(2):
            async with f.acquire() as lease:
                result = await lease.map([array("q", range(MANY))])
                assert result == array("q", range(1, MANY + 1))
                assert list(await lease.map([[1, 2]])) == [2, 3]
                assert lease.size == (pages + 1 + scratch) * PAGE
        stats = cache.stats()
        assert (stats.hits, stats.evictions["oversized"]) == (1, 0)


async def test_a_small_cache_keeps_it_too(kit: Kit) -> None:
    """`max_size` is a limit of each instance as well."""
    async with kit.open(CacheConfig(max_size=3 * PAGE)) as cache:
        f = await add(cache, "f", kit.adding(1, pages=1))
        async with f.acquire() as lease:
            await lease.map([array("q", range(MANY))])
        assert cache.stats().total_size == 3 * PAGE


async def test_without_room_for_any_scratch(kit: Kit) -> None:
    """The instance is dropped in any case, so the batch has a whole scratch."""
    async with kit.open(LIMIT) as cache:
        f = await add(cache, "f", kit.adding(1, pages=15))
        async with f.acquire() as lease:
            await lease.map([[1, 2]])
            assert lease.size == (15 + 1 + 2) * PAGE
        assert cache.stats().evictions["oversized"] == 1


async def test_a_batch_finds_the_scratch_of_an_earlier_one(kit: Kit) -> None:
    """With nulls and without, by turns; also once limits have changed, in a later lease."""
    async with kit.open(LIMIT) as cache:
        f = await add(cache, "f", kit.adding(1, pages=12))
        for fuel in (10**6, 10**7):
            for _ in range(2):
                async with f.acquire() as lease:
                    assert list(await lease.map([[1, 2]])) == [2, 3]
                    assert list(await lease.map([[1, None]])) == [2, None]
                    assert lease.size == (12 + 1 + 2 + 1) * PAGE
            cache.resize(total_fuel=fuel)
        assert cache.stats().misses == 1


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_a_single_value_is_there_for_each_chunk(kit: Kit, isolation: str) -> None:
    """Results lie in the columns of arguments, also of one that is the same in every row."""
    failing = MANY // 2, MANY - 5
    divisors = array("q", [0 if n in failing else n % 7 + 1 for n in range(MANY)])
    async with held(kit, dividing(kit), args=TWO, isolation=isolation) as (_, lease):
        result = await lease.map([960, divisors], on_error="null")
        assert result == [960 // divisor if divisor else None for divisor in divisors]
        assert sorted(lease.row_errors) == [*failing]
        assert await lease.map([divisors, 3]) == array("q", [n // 3 for n in divisors])
        assert await lease.map([960, 3], rows=MANY) == array("q", [320]) * MANY
