"""Functions whose instances consist of several core modules: a part of ours, and the user's."""

from __future__ import annotations

from array import array

import pytest
import trio
from contract.test_fail_everywhere import fail_everywhere, trying
from kits import COSTLY, PAGE, FakeKit, Kit, WasmtimeKit, add, add_two_parts
from parts import TwoParts
from peeking import native_of
from staging import stage

from trio_wasmcache import (
    CacheConfig,
    FuelExhaustedError,
    InstanceCache,
    ModuleTooLargeError,
    TrapError,
    WasmCacheError,
)
from trio_wasmcache.testing import check_invariants

SLICE = COSTLY // 3
KEPT = CacheConfig(yield_fuel=SLICE, offload_after=None)
NOTHING_KEPT = CacheConfig(max_size=0, yield_fuel=SLICE, offload_after=None)


async def test_a_function_of_two_parts_is_called(kit: Kit) -> None:
    """The user's module imports a function of a part that has a memory of its own."""
    async with kit.open() as cache:
        f = await add_two_parts(cache, kit, kit.adding(5, pages=3), pages=2)
        async with f.acquire() as lease:
            assert await lease.call(1) == 6
            assert lease.memory.size == 2 * PAGE
            # Both memories, and one page for the rest.
            assert lease.size == (2 + 3 + 1) * PAGE
            memory = native_of(lease).part("ours").memory("memory")
            assert memory.size == 3 * PAGE
        assert memory.size == 3 * PAGE
        assert cache.stats().total_size == 6 * PAGE
        assert f.worst_size >= 6 * PAGE
        async with f.acquire() as lease:
            assert await lease.call(2) == 7
        assert cache.stats().hits == 1


async def test_memories_of_all_parts_share_the_limit(kit: Kit) -> None:
    """As they start, and as they grow: in `worst_size`, all of them are at most the limit."""
    async with kit.open(CacheConfig(memory_limit=4 * PAGE)) as cache:
        with pytest.raises(ModuleTooLargeError, match=f"{5 * PAGE} bytes in 2 memories"):
            await add_two_parts(cache, kit, kit.adding(1, pages=3), pages=2)
        assert cache.functions() == ()
        f = await add_two_parts(cache, kit, kit.adding(1, pages=2), pages=2)
        alone = await add(cache, "alone", kit.adding(1, pages=2))
        assert f.worst_size == alone.worst_size
        check_invariants(cache)


async def test_a_part_of_wasm_can_not_grow_beyond_its_share() -> None:
    """What it grows counts in the size of the instance; it is told that there is no more."""
    kit = WasmtimeKit()
    async with kit.open(CacheConfig(memory_limit=8 * PAGE)) as cache:
        f = await add_two_parts(cache, kit, kit.growing())
        async with f.acquire() as lease:
            sizes = []
            for _ in range(6):
                await lease.call(1)
                sizes.append(lease.size // PAGE)
                assert lease.size <= f.worst_size
        # One page of the user's, one for the rest, and what the part grows to: half of the limit.
        assert sizes == [4, 5, 6, 6, 6, 6]
        assert cache.stats().total_size == 6 * PAGE


@pytest.mark.parametrize("isolation", ["fresh", "reset"])
async def test_a_lease_finds_all_memories_as_they_began(kit: Kit, isolation: str) -> None:
    """Those of the parts, too."""
    async with kit.open() as cache:
        f = await add_two_parts(cache, kit, kit.adding(1), isolation=isolation)
        assert f.isolation_verdict.startswith(isolation)
        for _ in range(3):
            async with f.acquire() as lease:
                parts = lease.memory, native_of(lease).part("ours").memory("memory")
                for memory in parts:
                    assert memory.read(100, 6) == bytes(6)
                    memory.write(100, b"secret")
                assert await lease.call(1) == 2
            check_invariants(cache)
        assert (cache.stats().hits, cache.stats().misses) == (2, 1)
        assert cache.stats().load.count == (1 if isolation == "reset" else 3)


async def test_what_is_imported_can_not_be_reset_if_a_part_can_not() -> None:
    """An obstacle of any part is one of them all."""
    kit = WasmtimeKit()
    async with kit.open() as cache:
        f = await add_two_parts(cache, kit, kit.unresettable(), isolation="reset")
        assert f.isolation_verdict.startswith("fresh")
        assert "segments can be dropped" in f.isolation_verdict


async def test_a_batch_runs_through_all_parts(kit: Kit) -> None:
    """The driver is one more part."""
    async with kit.open() as cache:
        f = await add_two_parts(cache, kit, kit.adding(5))
        async with f.acquire() as lease:
            column = array("q", range(1000))
            assert list(await lease.map([column])) == list(range(5, 1005))
            assert await lease.call(1) == 6
        check_invariants(cache)


async def test_code_is_that_of_all_parts(kit: Kit) -> None:
    """It is loaded and unloaded with the module, and counted so."""
    async with kit.open() as cache:
        alone = await add(cache, "alone", kit.importing(), missing="trap")
        f = await add_two_parts(cache, kit, kit.adding(5))
        assert f.code_size > alone.code_size
        assert await f.call(1) == 6
        assert cache.stats().code_size == f.code_size


async def test_functions_with_equal_parts_share_a_module(kit: Kit) -> None:
    """With others, they do not."""
    async with kit.open() as cache:
        wasm, five, six = kit.importing(), kit.adding(5), kit.adding(6)
        f, g, h = [
            await add(cache, name, wasm, abi=TwoParts(part))
            for name, part in (("f", five), ("g", five), ("h", six))
        ]
        assert [await one.call(1) for one in (f, g, h)] == [6, 6, 7]
        assert f.module_digest == h.module_digest
        assert cache.stats().loaded_modules == 2


async def test_a_part_that_fails_fails_the_call(kit: Kit) -> None:
    """As if the module had done it itself: the instance is dropped."""
    async with kit.open() as cache:
        f = await add_two_parts(cache, kit, kit.trapping())
        with pytest.raises(TrapError):
            await f.call(1)
        assert cache.stats().idle_instances == 0
        endless = await add_two_parts(cache, kit, kit.endless(), name="endless")
        with pytest.raises(FuelExhaustedError):
            await endless.call(1)
        assert cache.stats().idle_instances == 0


async def test_cancelled_everywhere_while_loading(kit: Kit) -> None:
    """Between the parts, within the start of each, and between the slices of a call."""
    async with stage(kit, NOTHING_KEPT) as at:
        slow = await add_two_parts(at.cache, kit, kit.adding(1, slow_start=True), slow_start=True)
        costly = await add_two_parts(at.cache, kit, kit.costly(), name="costly")

        async def scenario() -> None:
            assert await slow.call(1) == 2
            assert await costly.call(5) == 5

        await at.run(scenario, least=24)
        assert await slow.call(1) == 2


async def test_cancelled_everywhere_in_a_thread(kit: Kit) -> None:
    """The parts are made there, too."""
    async with stage(kit, CacheConfig(max_size=0, yield_fuel=SLICE, offload_after=0)) as at:
        slow = await add_two_parts(at.cache, kit, kit.adding(1, slow_start=True), slow_start=True)

        async def scenario() -> None:
            assert await slow.call(1) == 2

        await at.run(scenario, least=6)
        assert await slow.call(1) == 2


async def test_cancelled_everywhere_with_resets(kit: Kit) -> None:
    """Compiling, trying, loading, marking, calling."""
    async with stage(kit, KEPT) as at:
        wasm, abi = kit.importing(), TwoParts(kit.costly())

        async def scenario() -> None:
            f = await add(at.cache, "f", wasm, abi=abi, isolation="reset", replace=True)
            for _ in range(2):
                async with f.acquire() as lease:
                    memory = native_of(lease).part("ours").memory("memory")
                    assert memory.read(0, 6) == bytes(6)
                    memory.write(0, b"secret")
                    assert await lease.call(5) == 5

        await at.run(scenario, least=20)


async def test_each_native_step_fails_in_turn() -> None:
    """Each part is instantiated by itself, and fails by itself."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        part = kit.adding(1, slow_start=True)
        await trying(errors, add_two_parts(cache, kit, part))
        if errors:
            return
        (f,) = cache.functions()
        results: list[int] = []

        async def use() -> None:
            results.append(await f.call(1))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(trying, errors, use())
        assert results == [2] * (3 - len(errors))

    steps = await fail_everywhere(scenario, NOTHING_KEPT)
    assert steps == ["compile", "load"] + ["instantiate", "instantiate", "start", "call"] * 3
