"""What one lease hides, the next does not find: in real guests, in every place that they have."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from kits import PAGE, WasmtimeKit, add
from peeking import instance_behind
from runtime.isolation_guests import (
    DROPPER,
    ELEMENT_DROPPER,
    GROWER,
    PLACES,
    REACTOR,
    STARTER,
    binary,
    found,
    hider,
)

from trio_wasmcache import CacheConfig, HostFunction, InstanceCache, TrapError, current_lease
from trio_wasmcache._engine.wasmtime import restore
from trio_wasmcache.testing import check_invariants

LEVELS = ("fresh", "reset")
HIDER = hider()


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    """An isolation under which nothing may be found."""
    return str(request.param)


@asynccontextmanager
async def guest(
    real: WasmtimeKit,
    level: str,
    wasm: bytes = HIDER,
    config: CacheConfig | None = None,
    **more: Any,
) -> AsyncIterator[tuple[InstanceCache, Any]]:
    """A cache with one function, and a look at the books when it is over."""
    async with real.open(config) as cache:
        yield cache, await add(cache, "f", wasm, isolation=level, **more)
        check_invariants(cache)


async def test_reuse_finds_all_of_it(real: WasmtimeKit) -> None:
    """So the guest does hide something in every place, and finds what is there."""
    async with guest(real, "reuse") as (_, f):
        assert await f.call(0) == 0
        await f.call(12345)
        assert found(await f.call(0)) == list(PLACES)


async def test_plain_calls(real: WasmtimeKit, level: str) -> None:
    """Lease after lease, and the module is loaded once."""
    async with guest(real, level) as (cache, f):
        assert f.isolation_verdict.startswith(level)
        for _ in range(3):
            async with f.acquire() as lease:
                assert found(await lease.call(0)) == []
                await lease.call(12345)
                assert found(await lease.call(0)) == list(PLACES)
        assert (cache.stats().misses, cache.stats().hits) == (1, 2)


async def test_reset_keeps_the_instance(real: WasmtimeKit) -> None:
    """It is made once, and marked with what its restorer takes."""
    async with guest(real, "reset") as (cache, f):
        for _ in range(3):
            await f.call(1)
        assert cache.stats().load.count == 1
        assert cache.stats().total_size == 3 * PAGE + 2 * 8 * 22 + PAGE


async def test_memory_that_the_host_wrote(real: WasmtimeKit, level: str) -> None:
    """Through the lease, outside of any call."""
    async with guest(real, level) as (_, f):
        async with f.acquire() as lease:
            before = lease.memory.read(0, lease.memory.size)
            lease.memory.write(0, b"\xff" * lease.memory.size)
        async with f.acquire() as lease:
            assert lease.memory.read(0, lease.memory.size) == before


async def test_memory_that_a_host_function_wrote(real: WasmtimeKit, level: str) -> None:
    """In the middle of a call."""

    async def ask(value: int) -> int:
        memory = current_lease().memory
        seen = memory.read(100, 1)[0]
        memory.write(100, bytes([value]))
        await trio.lowlevel.checkpoint()
        return seen

    async with guest(
        real, level, real.asking(), imports={"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
    ) as (
        _,
        f,
    ):
        assert f.isolation_verdict.startswith(level)
        for value in (1, 2, 3):
            assert await f.call(value) == 0


async def test_a_call_that_failed(real: WasmtimeKit, level: str) -> None:
    """Its instance is dropped, whatever was asked for."""
    traps = (
        '(func (export "hide_and_trap") (param i64) (drop (call $run (i64.const 5))) unreachable)'
    )
    wasm = hider(more=traps)
    async with guest(real, level, wasm) as (cache, f):
        trap = await cache.register(
            "g", wasm, args=("i64",), export="hide_and_trap", isolation=level
        )
        with pytest.raises(TrapError):
            await trap.call(1)
        assert found(await f.call(0)) == []
        async with f.acquire() as lease:
            await lease.call(12345)
            with pytest.raises(TypeError):
                await lease.call("no number")
        assert found(await f.call(0)) == []


async def test_a_call_that_was_cancelled(real: WasmtimeKit, level: str) -> None:
    """Half-way, after it had hidden something."""
    wasm = binary(
        '(module (memory (export "memory") 1) (func (export "run") (param i64) (result i64)'
        " (if (i64.eqz (local.get 0)) (then (return (i64.load (i32.const 8)))))"
        " (i64.store (i32.const 8) (local.get 0)) (loop $l (br $l)) (unreachable)))"
    )
    async with guest(real, level, wasm, CacheConfig(offload_after=None)) as (cache, f):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(f.call, 5)
                while cache.stats().calls == 0:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert await f.call(0) == 0
        assert cache.stats().evictions["corrupted"] == 1


async def test_a_batch(real: WasmtimeKit, level: str) -> None:
    """The guest finds nothing of its rows, nor is anything left in the scratch of the driver."""
    async with guest(real, level) as (cache, f):
        for _ in range(2):
            async with f.acquire() as lease:
                assert found(await lease.call(0)) == []
                await lease.map([array("q", range(1, 2000))])
                assert found(await lease.call(0)) == list(PLACES)
        for instance in cache._pool.policy.instances.lru:
            drivers = instance_behind(instance).drivers.values() if level == "reset" else ()
            assert [any(driver.get(0, driver.size)) for driver in drivers] == [False] * len(drivers)
            assert len(drivers) == (level == "reset")


async def test_what_an_abi_keeps(real: WasmtimeKit, level: str) -> None:
    """Room that it would use again is asked for anew, of an allocator that has forgotten it."""
    wasm = binary(
        '(module (memory (export "memory") 1) (global $asked (mut i32) (i32.const 0))'
        ' (func (export "alloc") (param i32) (result i32)'
        "  (global.set $asked (i32.add (global.get $asked) (i32.const 1))) (i32.const 1024))"
        ' (func (export "free") (param i32))'
        ' (func (export "run") (param i32 i32) (result i32) (global.get $asked)))'
    )
    async with guest(real, level, wasm, args=("bytes",), returns="u32", abi="buffer") as (_, f):
        for _ in range(3):
            async with f.acquire() as lease:
                assert await lease.call(b"a secret") == 1
                assert await lease.call(b"mine") == 1  # in the same room


@pytest.mark.parametrize(("step", "broken"), [("_madvise", lambda *_: -1), ("RESTORER_FUEL", 0)])
async def test_an_instance_that_could_not_be_put_back(
    real: WasmtimeKit, monkeypatch: pytest.MonkeyPatch, step: str, broken: Any
) -> None:
    """Is closed, wherever that failed, and leaves a seat; the next lease is a hit on it."""
    async with guest(real, "reset") as (cache, f):
        for _ in range(2):  # granted after a load, and as the short hit of an idle instance
            await f.call(0)
            async with f.acquire() as lease:
                await lease.call(12345)
                monkeypatch.setattr(restore, step, broken)
            monkeypatch.undo()
            assert cache.stats().total_size == PAGE
            assert found(await f.call(0)) == []
        assert cache.stats().misses == 1


async def test_several_at_the_same_time(real: WasmtimeKit, level: str) -> None:
    """Each instance is put back by itself."""
    async with guest(real, level, concurrency=3) as (cache, f):
        for _ in range(3):
            async with f.acquire() as one, f.acquire() as two, f.acquire() as three:
                for lease in (one, two, three):
                    assert found(await lease.call(0)) == []
                    await lease.call(12345)
        assert cache.stats().misses == 3


async def test_an_exception_of_the_block(real: WasmtimeKit, level: str) -> None:
    """It does not cost the instance, nor does it spare what it left."""
    async with guest(real, level) as (cache, f):
        with pytest.raises(ZeroDivisionError):
            async with f.acquire() as lease:
                await lease.call(12345)
                raise ZeroDivisionError
        assert found(await f.call(0)) == []
        assert cache.stats().hits == 1


async def test_a_cancelled_block(real: WasmtimeKit, level: str) -> None:
    """Between two calls: the instance is given back in a cancelled scope."""
    async with guest(real, level) as (cache, f):
        with trio.CancelScope() as scope:
            async with f.acquire() as lease:
                await lease.call(12345)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert found(await f.call(0)) == []
        assert cache.stats().hits == 1


async def test_a_replaced_function(real: WasmtimeKit, level: str) -> None:
    """Under its holder, and after it."""
    async with guest(real, level) as (cache, f):
        async with f.acquire() as lease:
            await lease.call(12345)
            await add(cache, "f", HIDER, isolation=level, replace=True)
        assert found(await f.call(0)) == []
        await f.call(12345)
        assert found(await f.call(0)) == []


async def test_limits_that_change(real: WasmtimeKit, level: str) -> None:
    """Shorter slices, which a restorer runs in as well; and no room, so that nothing is kept."""
    async with guest(real, level) as (cache, f):
        for limits in ({"yield_fuel": 1}, {"max_size": 0}, {"max_size": 10 * PAGE}):
            await f.call(12345)
            cache.resize(**limits)
            assert found(await f.call(0)) == []
        # At no size nothing is kept; in slices of one unit of fuel it is put back all the same.
        assert cache.stats().load.count == (6 if level == "fresh" else 4)


async def test_groups(real: WasmtimeKit, level: str) -> None:
    """They share nothing but the code."""
    async with guest(real, level) as (cache, f):
        await f.call(12345)
        async with cache.scheduling_group("other", capacity=1):
            assert found(await f.call(0)) == []
            await f.call(12345)
        assert found(await f.call(0)) == []


@pytest.mark.parametrize(("wasm", "what"), [(DROPPER, "data"), (ELEMENT_DROPPER, "element")])
async def test_dropped_segments(real: WasmtimeKit, level: str, wasm: bytes, what: str) -> None:
    """They can't be had back, so each lease gets a new instance, and the verdict says so."""
    async with guest(real, "reuse", wasm) as (_, f):
        await f.call(1)
        with pytest.raises(TrapError):
            await f.call(0)
    async with guest(real, level, wasm) as (cache, f):
        assert f.isolation == level
        assert f.isolation_verdict.startswith("fresh")
        assert (f"{what} segments can be dropped" in f.isolation_verdict) is (level == "reset")
        for _ in range(2):
            await f.call(1)
            assert await f.call(0) == 0
        assert (cache.stats().misses, cache.stats().total_size) == (1, PAGE)


async def test_grown_memory_and_tables(real: WasmtimeKit, level: str) -> None:
    """What has grown can't be put back: it leaves a seat, and one that has not is kept."""
    async with guest(real, "reuse", GROWER) as (_, f):
        await f.call(1)
        await f.call(2)
        assert await f.call(0) == 2 + 4
    async with guest(real, level, GROWER) as (cache, f):
        assert f.isolation_verdict.startswith(level)
        for _ in range(2):
            for how in (1, 2, 0):
                assert await f.call(how) == (3, 5, 2)[how - 1]
                kept = PAGE if how or level == "fresh" else 2 * PAGE + 16
                assert cache.stats().total_size == kept
        assert cache.stats().misses == 1


async def test_what_a_start_function_wrote(real: WasmtimeKit, level: str) -> None:
    """It is there again for every lease: over the image of memory, and beyond it."""
    async with guest(real, level, STARTER) as (cache, f):
        assert f.isolation_verdict.startswith(level)
        for _ in range(3):
            assert await f.call(77) == 1234 + 99 + 5
        assert cache.stats().load.count == (3 if level == "fresh" else 1)


async def test_what_a_reactor_set_up(real: WasmtimeKit, level: str) -> None:
    """By `_initialize`; and a file descriptor that it closed is open again."""
    async with guest(real, "reuse", REACTOR) as (_, f):
        assert await f.call(0) == 8
        assert await f.call(0) > 1000
    async with guest(real, level, REACTOR) as (cache, f):
        assert f.isolation_verdict.startswith(level)
        for _ in range(3):
            assert await f.call(0) == 8
        assert cache.stats().load.count == (3 if level == "fresh" else 1)
