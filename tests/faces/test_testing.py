"""What users test with has to refuse what is wrong, or it tests nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from kits import FakeKit, add
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache, InvalidModuleError
from trio_wasmcache._core.policy.lifecycle import State
from trio_wasmcache._core.policy.records import Stage
from trio_wasmcache.testing import FakeEngine, check_invariants, open_fake_cache


def ledger(cache: InstanceCache) -> Any:
    return cache._pool.policy.residents.ledger


def idle(cache: InstanceCache) -> Any:
    """The one idle instance."""
    return next(iter(cache._pool.policy.residents.lru))


def waiter(cache: InstanceCache) -> Any:
    """The one request that waits, and its entry."""
    return next(e for e in cache._pool.policy.residents.entries if e.waiting).waiting[0]


def change(what: Callable[[InstanceCache], Any], name: str, value: Any) -> Any:
    """Set an attribute; gives what undoes it."""

    def apply(cache: InstanceCache) -> Callable[[], None]:
        target = what(cache)
        old = getattr(target, name)
        setattr(target, name, value(old) if callable(value) else value)
        return lambda: setattr(target, name, old)

    return apply


def more(old: int) -> int:
    return old + 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(ledger, "total_size", more), "total_size"),
        (change(ledger, "instances", more), "idle instances"),
        (change(ledger, "running", more), "running instances"),
        (change(ledger, "code_size", more), "code"),
        (change(ledger, "running_size", more), "running_size"),
        (change(lambda cache: idle(cache).entry.function, "worst_size", 1), "touch at most"),
        (change(ledger, "loaded_modules", more), "loaded modules"),
        (change(ledger, "evictable_code", more), "evictable code"),
        (change(lambda cache: idle(cache).entry, "live", more), "live instances of"),
        (change(lambda cache: idle(cache).entry.function.module, "users", more), "users of"),
        (change(idle, "state", State.RUNNING), "state of an idle instance"),
        (change(idle, "bound", None), "has nothing native"),
        (change(idle, "size", 2**30), "over max_instance_size"),
        (change(waiter, "stage", Stage.GRANTED), "a waiter is running"),
        (
            change(lambda cache: waiter(cache).entry.function, "concurrency", 5),
            "was not woken",
        ),
        (
            change(lambda cache: waiter(cache).entry.function, "concurrency", 0),
            "more than its concurrency",
        ),
        (change(lambda cache: cache._groups.main.capacity, "owners", {}), "without a token"),
        (change(lambda cache: cache._pool, "closed", True), "left in a closed cache"),
        (
            change(lambda cache: cache._pool.policy, "config", CacheConfig(max_size=1)),
            "idle instances exceed max_size",
        ),
        (change(lambda cache: cache._pool.policy.waits, "waiting", {}), "waiting tasks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_check_invariants_finds_what_disagrees(
    fake: FakeKit, spoil: Callable[[InstanceCache], Callable[[], None]], message: str
) -> None:
    """Any one number of the books that is wrong is named; put right again, nothing is."""
    async with fake.open() as cache:
        running = await add(cache, "running", fake.adding(1))
        await (await add(cache, "idle", fake.adding(2))).call(1)
        async with running.acquire(), trio.open_nursery() as nursery:
            nursery.start_soon(running.call, 1)
            await wait_all_tasks_blocked()
            check_invariants(cache)
            undo = spoil(cache)
            try:
                with pytest.raises(AssertionError, match=message):
                    check_invariants(cache)
            finally:
                undo()
            check_invariants(cache)
            nursery.cancel_scope.cancel()


async def test_open_fake_cache_finds_what_is_never_closed() -> None:
    """An instance or a module that is open after the cache is closed is an error."""
    engine = FakeEngine()
    with pytest.raises(AssertionError, match="1 instances were never closed"):
        async with open_fake_cache(engine=engine):
            engine.open_instances += 1
    engine = FakeEngine()
    with pytest.raises(AssertionError, match="1 modules were never unloaded"):
        async with open_fake_cache(engine=engine):
            engine.loaded_modules += 1
    assert engine.closed


async def test_the_fake_engine_runs_only_its_own_modules(fake: FakeKit) -> None:
    """Neither text, nor a real module, nor that of another fake engine."""
    async with fake.open() as cache:
        with pytest.raises(InvalidModuleError, match="reads no text"):
            await add(cache, "f", "(module)")  # type: ignore[arg-type]
        for foreign in (FakeEngine().module(), FakeEngine().module(code_size=1)):
            with pytest.raises(InvalidModuleError, match=r"not made by FakeEngine\.module"):
                await add(cache, "f", foreign)
        assert cache.functions() == ()


async def test_the_fake_engine_behaves_as_it_is_told() -> None:
    """Types, memory, code size, fuel, growth: what `module` was given shows."""
    engine = FakeEngine()
    wasm = engine.module(
        lambda a, b: a * b,
        params=("i32", "f64"),
        results=("f64",),
        export="times",
        memory_pages=2,
        max_pages=3,
        code_size=40960,
        fuel=250_000,
        grow_pages=1,
    )
    async with open_fake_cache(engine=engine) as cache:
        times = await cache.register("times", wasm, args=("i32", "f64"), returns="f64")
        assert times.code_size == 40960
        async with times.acquire() as lease:
            assert lease.memory.size == 2 * 65536
            assert await lease.call(3, 1.5) == 4.5
            assert lease.fuel_consumed == 250_000
            assert lease.memory.size == 3 * 65536
            with pytest.raises(TypeError):
                await lease.call("3", 1.5)
        assert engine.steps == ["compile", "load", "instantiate", "start", "call"]
