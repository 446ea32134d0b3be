"""When an instance is not asked for its size, on both engines."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import pytest
import trio
from peeking import bound_of

from trio_wasmcache import CacheConfig, InstanceCache, Lease, open_cache
from trio_wasmcache.testing import FakeEngine, check_invariants, open_fake_cache

PAGE = 65_536
FUNCTION = '(func (export "run") (param i64) (result i64) (local.get 0))'
FIXED = {"fake", "without memory", "one page"}


def opened(kind: str) -> tuple[AbstractAsyncContextManager[InstanceCache], Any]:
    """A cache, and a module for it."""
    engine = FakeEngine()
    if kind.startswith("fake"):
        limit = 2 * PAGE if kind == "fake, growing" else PAGE
        config = CacheConfig(memory_limit=limit)
        return open_fake_cache(config, engine=engine), engine.module()
    memory = {"without memory": "", "one page": "(memory 1 1)", "growing": "(memory 1 2)"}[kind]
    return open_cache(), f"(module {memory} {FUNCTION})"


@pytest.fixture(params=[*sorted(FIXED), "fake, growing", "growing"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


async def test_a_hit_asks_only_where_memory_can_grow(kind: str) -> None:
    """What it is told is what the instance would say."""
    made, wasm = opened(kind)
    async with made as cache:
        f = await cache.register("f", wasm, args=("i64",), returns="i64", export="run")
        await f.call(1)
        async with f.acquire() as lease:
            bound, asked = bound_of(lease), list[object]()
            bound.measure = lambda native: asked.append(native) or native.measure()
        assert bool(asked) == (kind not in FIXED)
        expected = None if asked else bound.native.measure()
        assert bound.fixed_size == expected
        check_invariants(cache)


async def test_the_scratch_of_a_batch_is_counted(kind: str) -> None:
    """It is there from the first batch on, in all leases after that, and if it is bound anew."""
    made, wasm = opened(kind)
    async with made as cache:
        f = await cache.register("f", wasm, args=("i64",), returns="i64", export="run")
        await f.call(1)
        before = cache.stats().total_size
        async with f.acquire() as lease:
            assert list(await lease.map([[1, 2]])) == [1, 2]
        for _ in range(3):
            stats = cache.stats()
            assert stats.total_size == before + stats.scratch_size > before
            async with f.acquire() as lease:
                assert lease.size == stats.total_size
        cache.resize(max_instance_size=stats.total_size)
        for _ in range(2):
            assert await f.call(1) == 1
        assert cache.stats().total_size == stats.total_size
        check_invariants(cache)


async def test_an_instance_that_was_not_used_is_not_asked(kind: str) -> None:
    """It is as it was taken. Whatever may change it is a use, also a look at its memory."""
    made, wasm = opened(kind)
    async with made as cache:
        f = await cache.register("f", wasm, args=("i64",), returns="i64", export="run")
        await f.call(1)
        asked: list[object] = []
        async with f.acquire() as lease:
            bound = bound_of(lease)
        bound.fixed_size = None
        bound.measure = lambda native: asked.append(native) or native.measure()
        for _ in range(3):
            async with f.acquire() as lease:
                assert "held" in repr(lease)
                assert lease.function.name == "f"
                assert lease.fuel_consumed is None
            assert lease.function.name == "f"
        assert asked == []

        async def call(lease: Lease) -> None:
            assert await lease.call(7) == 7

        async def look(lease: Lease) -> None:
            with suppress(LookupError):
                lease.memory.read(0, 0)

        async def measure(lease: Lease) -> None:
            assert lease.size

        async def fail(lease: Lease) -> None:
            with pytest.raises(TypeError):
                await lease.call("no number")

        async def batch(lease: Lease) -> None:
            assert list(await lease.map([[1, 2]])) == [1, 2]

        for number, use in enumerate((call, look, measure, fail, batch), 1):
            async with f.acquire() as lease:
                await use(lease)
            assert len(asked) == number or use is batch  # whose scratch has it measured anew
        check_invariants(cache)


async def test_an_unused_lease_ends_as_any_other(kind: str) -> None:
    """Once it has ended, or its group was closed meanwhile, nothing can be called."""
    made, wasm = opened(kind)
    async with made as cache:
        f = await cache.register("f", wasm, args=("i64",), returns="i64", export="run")
        async with cache.scheduling_group("g", capacity=1) as group:
            for _ in range(2):
                async with group.acquire("f", ("i64",)) as lease:
                    pass
            with pytest.raises(trio.ClosedResourceError, match="has ended"):
                await lease.call(1)
            with pytest.raises(trio.ClosedResourceError, match="has ended"):
                _ = lease.size
            lease = group.acquire("f", ("i64",))
            await lease.__aenter__()
        with pytest.raises(trio.ClosedResourceError, match="closed"):
            await lease.call(1)
        await lease.__aexit__(None, None, None)
        assert f is not None
        check_invariants(cache)
