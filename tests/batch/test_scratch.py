"""The scratch of batches of numbers: as large as the instance may keep, and made once."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from batch.modules import dividing, held
from kits import PAGE, Kit, WasmtimeKit, add

from trio_wasmcache import CacheConfig, MiB
from trio_wasmcache._core.wasm.driver import Shape, layout

TWO = ("i64", "i64")
MANY = layout(Shape(("i64",), ("i64",))).rows * 2 + 13
BUFFERS = Path(__file__).parents[1] / "udfs/buffer.wasm"
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


async def test_an_instance_is_kept_after_a_batch_of_bytes(real: WasmtimeKit) -> None:
    """The scratch of values that cross through memory shrinks, too; larger ones cross singly."""
    values, sizes = [b"a" * size for size in (1, 100, 40_000, 90_000)] * 5, []
    for limit in (8 * MiB, None, None):
        config = CacheConfig(max_instance_size=limit or sizes[-1] - PAGE)
        async with real.open(config) as cache:
            upper = await cache.register(
                *("upper", BUFFERS),
                args=("bytes",),
                returns="bytes",
                abi="buffer",
                export="upper_packed",
            )
            for _ in range(2):
                async with upper.acquire() as lease:
                    await lease.call(b"a" * 1_000_000)  # its memory has grown before the batch
                    for _ in range(2):
                        assert await lease.map([values]) == [one.upper() for one in values]
                    size = lease.size
            sizes.append(size)
            hits, kept = cache.stats().hits, len(sizes) < 3
            assert (hits, cache.stats().evictions["oversized"]) == ((1, 0) if kept else (0, 2))
    assert [sizes[0] - size for size in sizes] == [0, PAGE, 0]


@pytest.mark.parametrize("more", [0, 1])
async def test_without_room_for_any_scratch(kit: Kit, more: int) -> None:
    """The instance is dropped in any case, so the batch has a whole one; the verdict says so."""
    async with kit.open(CacheConfig(max_instance_size=(16 + more) * PAGE)) as cache:
        f = await add(cache, "f", kit.adding(1, pages=15))
        said = f"; not after a batch, which takes at least {PAGE} bytes more"
        assert f.cache_verdict.endswith(said) == (not more)
        await f.call(1)
        assert cache.stats().idle_instances == 1
        if more:
            return
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
