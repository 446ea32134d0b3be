"""A process whose addresses end: `test_no_memory` runs these in their own process, one each.

What is left of its limit is less than a stack, so that whatever comes next is refused memory.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from attrs import evolve
from kits import ListLogger

from trio_wasmcache import CacheConfig, CodeMemoryError, InstanceCache, KiB, MiB, open_cache
from trio_wasmcache._engine.wasmtime import reservations
from trio_wasmcache.testing import check_invariants

SAME = '(func (export "f") (param i64) (result i64) (local.get 0))'
SMALL, TWENTY = f"(module (memory 1) {SAME})", f"(module {'(memory 0)' * 20} {SAME})"
BUFFER = """(module (memory (export "memory") 1)
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "free") (param i32))
  (func (export "f") (param i32 i32) (result i64) (i64.extend_i32_u (local.get 1))))"""
# However slow the machine is, what is idle stays until its addresses are needed.
CONFIG = CacheConfig(offload_after=None, memory_limit=64 * MiB, idle_timeout=math.inf)


@contextmanager
def no_addresses_left() -> Iterator[None]:
    """What the process has, it keeps; more than a few pages it does not get."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * KiB, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


async def add(cache: InstanceCache, name: str, wasm: str, concurrency: int = 1) -> None:
    await cache.register(
        name, wasm, args=("i64",), returns="i64", export="f", concurrency=concurrency
    )


async def fill(cache: InstanceCache) -> None:
    """Something idle, for what comes to be evicted."""
    await add(cache, "idle", TWENTY, 3)
    await cache.warm("idle", ("i64",), 3)


async def instantiating(cache: InstanceCache) -> None:
    await add(cache, "f", SMALL)
    with no_addresses_left():
        async with cache.acquire("f", ("i64",)) as lease:
            assert await lease.call(5) == 5


async def its_stack(cache: InstanceCache) -> None:
    """The first call of an instance makes it."""
    await add(cache, "f", SMALL)
    async with cache.acquire("f", ("i64",)) as lease:
        with no_addresses_left():
            assert await lease.call(5) == 5


class Five:
    """A value that is converted first, so that the call takes the long way."""

    def __index__(self) -> int:
        return 5


async def its_stack_for_converted_values(cache: InstanceCache) -> None:
    await add(cache, "f", SMALL)
    async with cache.acquire("f", ("i64",)) as lease:
        with no_addresses_left():
            assert await lease.call(Five()) == 5


async def its_stack_for_the_steps_of_an_abi(cache: InstanceCache) -> None:
    await cache.register("f", BUFFER, args=("bytes",), returns="i64", export="f", abi="buffer")
    async with cache.acquire("f", ("bytes",)) as lease:
        with no_addresses_left():
            assert await lease.call(b"five!") == 5


async def a_batch(cache: InstanceCache) -> None:
    await add(cache, "f", SMALL)
    async with cache.acquire("f", ("i64",)) as lease:
        assert await lease.call(5) == 5
        assert list(await lease.map([[1, 2]])) == [1, 2]
        with no_addresses_left():
            assert list(await lease.map([[1, None]])) == [1, None]


async def a_batch_and_its_stack(cache: InstanceCache) -> None:
    await add(cache, "f", SMALL)
    await add(cache, "g", SMALL)
    async with cache.acquire("g", ("i64",)) as lease:
        await lease.map([[1]])  # compiles the driver
    cache.remove("g")
    async with cache.acquire("f", ("i64",)) as lease:
        with no_addresses_left():
            assert list(await lease.map([[1, 2]])) == [1, 2]


CASES = {
    one.__name__: one
    for one in (
        instantiating,
        its_stack,
        its_stack_for_converted_values,
        its_stack_for_the_steps_of_an_abi,
        a_batch,
        a_batch_and_its_stack,
    )
}


async def many_mappings(folder: str) -> None:
    """Instances that reserve 182 mappings each, and more of them than the kernel would allow."""
    limit = min(65_530, int(reservations.MAX_MAP_COUNT.read_text()))
    reservations.MAX_MAP_COUNT = Path(folder) / "max_map_count"
    reservations.MAX_MAP_COUNT.write_text(str(limit))
    data = "".join(f'(data (memory {number}) (i32.const 7) "data")' for number in range(60))
    count = limit // 182 + 20
    config = evolve(CONFIG, max_size=2**36, max_instance_size=64 * MiB)
    async with open_cache(config, logger=ListLogger()) as cache:
        await add(cache, "f", f"(module {'(memory 1)' * 60} {data} {SAME})", count)
        await cache.warm("f", ("i64",), count)
        stats = cache.stats()
        assert stats.evictions["address_space"] > 0
        assert stats.max_mappings is not None
        assert stats.max_mappings - 182 <= stats.mappings <= stats.max_mappings == limit * 3 // 4
        assert len(Path("/proc/self/maps").read_text().splitlines()) < limit
        await add(cache, "g", SMALL)
        async with cache.acquire("g", ("i64",)) as lease:
            assert await lease.call(7) == 7
        check_invariants(cache)
    print("done")


async def main(name: str) -> None:
    case, log = CASES[name], ListLogger()
    async with open_cache(CONFIG, logger=log) as cache:
        await fill(cache)
        await case(cache)
        check_invariants(cache)
        assert cache.stats().evictions["address_space"] >= 1, "nothing went for it"
        assert cache.stats().evictions["corrupted"] == 0
    assert log.fields("refused")
    assert not log.fields("failed")
    # Once more, with nothing idle: the host is to blame, and the cache goes on.
    async with open_cache(CONFIG, logger=log) as cache:
        with pytest.raises(CodeMemoryError, match="RLIMIT_AS"):
            await case(cache)
        check_invariants(cache)
        await add(cache, "after", SMALL)
        async with cache.acquire("after", ("i64",)) as lease:
            assert await lease.call(7) == 7
        assert cache.stats().evictions["corrupted"] == 0
    print("done")


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
