"""Whoever only reads the books completes a step of them first, and Ctrl-C must not interrupt it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from kits import FakeKit, WasmtimeKit, add

from trio_wasmcache import HostFunction, InstanceCache, current_lease
from trio_wasmcache._core.policy.policy import Policy
from trio_wasmcache._engine.wasmtime import memory
from trio_wasmcache._pool.capacity import Capacity
from trio_wasmcache.testing import check_invariants, snapshot

READERS: dict[str, Callable[[InstanceCache], object]] = {
    "stats": InstanceCache.stats,
    "pop_stats": InstanceCache.pop_stats,
    "entries": InstanceCache.entries,
    "functions": InstanceCache.functions,
    "repr": repr,
    "snapshot": snapshot,
    "check_invariants": check_invariants,
}


@pytest.mark.parametrize("reader", READERS)
async def test_reading_is_protected_where_it_completes_the_books(
    fake: FakeKit, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """The lease that ended last becomes idle in the books once somebody looks at them."""
    protected: list[bool] = []
    settle = Policy._settle

    def watched(policy: Policy) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())
        settle(policy)

    async with fake.open() as cache:
        f = await add(cache, "f", fake.costly())
        for _ in range(2):
            await f.call(1)
        with monkeypatch.context() as patch:
            patch.setattr(Policy, "_settle", watched)
            assert not trio.lowlevel.currently_ki_protected()
            READERS[reader](cache)
    assert all(protected)
    assert protected or reader in ("functions", "repr")


async def test_asking_for_the_limiter_is_protected(
    fake: FakeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens that are held move to it: half-way it would let anybody in."""
    protected: list[bool] = []
    need = Capacity._need_limiter

    def watched(capacity: Capacity) -> trio.CapacityLimiter:
        protected.append(trio.lowlevel.currently_ki_protected())
        return need(capacity)

    async with fake.open() as cache:
        f = await add(cache, "f", fake.costly())
        async with cache.scheduling_group("g", capacity=1) as group, f.acquire():
            monkeypatch.setattr(Capacity, "_need_limiter", watched)
            assert not trio.lowlevel.currently_ki_protected()
            assert group.limiter.borrowed_tokens == 1
    assert protected == [True]


async def test_growing_a_memory_is_protected(
    real: WasmtimeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a host function, too: where the memory lies is noted after it has grown."""
    protected: list[bool] = []
    grow = memory.grow_memory

    def watched(*args: object) -> int:
        protected.append(trio.lowlevel.currently_ki_protected())
        return grow(*args)  # type: ignore[arg-type]

    def ask(value: int) -> int:
        return current_lease().memory.grow(1) and value

    monkeypatch.setattr(memory, "grow_memory", watched)
    text = """(module (import "app" "ask" (func $ask (param i64) (result i64)))
      (memory (export "memory") 1)
      (func (export "f") (param i64) (result i64) (call $ask (local.get 0))))"""
    async with real.open() as cache:
        host = HostFunction(ask, ("i64",), ("i64",))
        f = await cache.register(
            "f", text, args=("i64",), returns="i64", imports={"app": {"ask": host}}
        )
        async with f.acquire() as lease:
            assert lease.memory.grow(1) == 65536
            assert await lease.call(7) == 7
    assert protected == [True, True]
