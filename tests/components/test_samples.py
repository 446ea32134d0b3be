"""Components that real tools built, and those of several core modules: all that a cache does."""

from __future__ import annotations

from typing import Any

import pytest
from components.echo import BUMP, REALLOC, SHARED, component, echo
from components.oracle import Oracle
from components.samples import CALLS, FUNCS, PURE
from components.shapes import same
from components.test_differential import call
from engine.support import quiet_cache

from trio_wasmcache import FuelExhaustedError, Function, GuestError, InstanceCache, TrapError
from trio_wasmcache.testing import cancel_everywhere, check_invariants

ISOLATIONS = ("reuse", "reset", "fresh")
TWO_MODULES = echo(("string",), modules=2, post=False)


def test_the_oracle_runs_the_samples() -> None:
    """So what the samples are expected to give is what they give elsewhere, too."""
    oracle = Oracle(PURE.read_bytes())
    for one in CALLS:
        given = oracle.call(f"{FUNCS}#{one.name}", one.params, one.result, *one.values)
        assert same(given, one.gives), one


async def registered(cache: InstanceCache, **more: Any) -> dict[str, Function[Any]]:
    """All functions of the sample."""
    functions = await cache.register_component(PURE, **more)
    return {one.name: one for one in functions}


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_calls_of_the_samples(isolation: Any) -> None:
    """Twice in one lease, and in another one."""
    async with quiet_cache() as cache:
        functions = await registered(cache, isolation=isolation)
        assert {one.isolation for one in functions.values()} == {isolation}
        for one in CALLS:
            function = functions[one.name]
            for _ in range(2):
                given = await call(function, one.params, one.result, *one.values)
                assert same(given, one.gives), one


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_state_of_all_core_modules(isolation: Any) -> None:
    """It stays, is put back or is gone, as in a function of one module; size is that of all."""
    text = "a text of some length"
    async with quiet_cache() as cache:
        function = await cache.register("echo", TWO_MODULES, isolation=isolation)
        assert function.isolation == isolation
        heaps = []
        for _ in range(2):
            async with function.acquire() as lease:
                before = lease.memory.read(1024, 4)
                assert await lease.call(text) == text
                heaps.append((before, lease.memory.read(1024, 4)))
                assert lease.size > lease.memory.size
        assert heaps[0] == (bytes(4), b"a te")
        assert heaps[1][0] == (b"a te" if isolation == "reuse" else bytes(4))


async def test_a_batch_of_several_core_modules() -> None:
    """As of one."""
    texts = [f"text {number}" for number in range(300)]
    async with quiet_cache() as cache:
        function = await cache.register("echo", TWO_MODULES)
        async with function.acquire() as lease:
            assert await lease.map([texts]) == texts


@pytest.mark.parametrize("modules", [1, 2])
async def test_frames_have_offsets_in_the_component(modules: int) -> None:
    """Where the instruction is that trapped, whichever core module has it."""
    async with quiet_cache() as cache:
        function = await cache.register("echo", trapping(modules))
        with pytest.raises(TrapError) as caught:
            await function.call("text")
    offset = caught.value.frames[0].offset
    assert offset is not None
    assert trapping(modules)[offset] == 0x00  # unreachable
    assert caught.value.frames[0].function == "trap"


def trapping(modules: int) -> bytes:
    """An echo whose function traps."""
    text = """(func $trap (unreachable))
      (func (export "echo") (param i32 i32) (result i32) (call $trap) (unreachable))"""
    memory = f'(memory (export "memory") 1) {BUMP} {REALLOC}'
    core = f"{memory if modules == 1 else SHARED} {text}"
    function = {"echo": (("string",), "string")}
    return component(core, function, allocator="" if modules == 1 else memory)


async def test_fuel_and_limits() -> None:
    """An endless call ends by its fuel; no core module takes more memory than all of them may."""
    async with quiet_cache(total_fuel=100_000) as cache:
        functions = await registered(cache)
        assert await functions["spin"].call(10) == 10
        with pytest.raises(FuelExhaustedError):
            await functions["spin"].call(2**63)
    async with quiet_cache(memory_limit=2 * 65536) as cache:
        function = await cache.register("echo", TWO_MODULES)
        assert await function.call("x" * 60_000) == "x" * 60_000
        with pytest.raises(GuestError):
            await function.call("x" * 200_000)


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_cancelled_everywhere(isolation: Any) -> None:
    """Acquiring, converting, allocating, calling and recycling."""
    async with quiet_cache(yield_fuel=1000) as cache:
        two = await cache.register("echo", TWO_MODULES, isolation=isolation)
        functions = await registered(cache, isolation=isolation)
        spin = functions["spin"]

        async def use() -> None:
            async with two.acquire() as lease:
                assert await lease.call("text") == "text"
            async with spin.acquire() as lease:
                assert await lease.call(2000) == 2000

        assert await cancel_everywhere(use, lambda: check_invariants(cache)) > 5
