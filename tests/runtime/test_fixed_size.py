"""An instance whose memory can't grow is not asked for its size, on both engines."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from trio_wasmcache import CacheConfig, InstanceCache, open_cache
from trio_wasmcache._runtime.bound import BoundFunction
from trio_wasmcache.testing import FakeEngine, check_invariants, open_fake_cache

PAGE = 65_536
FUNCTION = '(func (export "run") (param i64) (result i64) (local.get 0))'
FIXED = {"fake", "without memory", "one page"}


def bound_of(lease: Any) -> BoundFunction:
    bound: BoundFunction = lease._bound
    return bound


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
