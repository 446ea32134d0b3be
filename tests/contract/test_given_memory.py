"""A memory that a module imports and is given: as its own, in both engines."""

from __future__ import annotations

import pytest
from contract.test_fail_everywhere import fail_everywhere, trying
from kits import PAGE, FakeKit, Kit, add
from staging import stage

from trio_wasmcache import (
    CacheConfig,
    HostFunction,
    HostGlobal,
    HostMemory,
    HostTable,
    InstanceCache,
    LinkError,
    ModuleTooLargeError,
    WasmCacheError,
)
from trio_wasmcache.testing import check_invariants

GIVEN = {"env": {"memory": HostMemory()}}


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_each_instance_has_its_own_as_isolated_as_any(kit: Kit, isolation: str) -> None:
    """It is the memory of the lease, counts in its size, and is put back with the instance."""
    async with kit.open() as cache:
        f = await add(
            cache, "f", kit.importing_memory(3), imports=GIVEN, isolation=isolation, concurrency=2
        )
        async with f.acquire() as one, f.acquire() as other:
            assert (one.size, other.size) == (4 * PAGE, 4 * PAGE)
            one.memory.write(2 * PAGE, b"secret")
            assert other.memory.read(2 * PAGE, 6) == bytes(6)
            assert one.memory.size == 3 * PAGE
            assert await one.call(5) == 5
            check_invariants(cache)
            assert cache.stats().running_size == 2 * f.worst_size
        for _ in range(2):
            async with f.acquire() as one, f.acquire() as other:
                kept = {lease.memory.read(2 * PAGE, 6) for lease in (one, other)}
            assert kept == ({b"secret", bytes(6)} if isolation == "reuse" else {bytes(6)})
        check_invariants(cache)


async def test_its_sizes_are_those_of_the_import(kit: Kit) -> None:
    """They count against the limits, and in the worst size, as if the module defined it."""
    async with kit.open(CacheConfig(memory_limit=8 * PAGE)) as cache:
        own = await add(cache, "own", kit.adding(1, pages=2))
        given = await add(cache, "given", kit.importing_memory(2), imports=GIVEN)
        bounded = await add(cache, "bounded", kit.importing_memory(2, 3), imports=GIVEN)
        assert given.worst_size == own.worst_size
        assert bounded.worst_size == own.worst_size - 5 * PAGE
        with pytest.raises(ModuleTooLargeError, match=r"large\(i64\) starts with 589824 bytes"):
            await add(cache, "large", kit.importing_memory(9), imports=GIVEN)


async def test_two_modules_that_import_one_name_have_one_each(kit: Kit) -> None:
    """Nothing that one writes is in the other, though both were given the same object."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.importing_memory(1), imports=GIVEN)
        g = await add(cache, "g", kit.importing_memory(2), imports=GIVEN)
        async with f.acquire() as one, g.acquire() as other:
            one.memory.write(0, b"x")
            assert other.memory.read(0, 1) == b"\0"
            assert (one.memory.size, other.memory.size) == (PAGE, 2 * PAGE)


async def test_a_memory_that_is_not_given_is_refused(kit: Kit) -> None:
    """The message has the line to write; traps are no memories."""
    async with kit.open() as cache:
        for missing in ("error", "trap"):
            with pytest.raises(LinkError) as caught:
                await add(cache, "f", kit.importing_memory(), missing=missing)
            assert "env.memory is a memory, and missing" in str(caught.value)
            assert 'imports={"env": {"memory": HostMemory()}}' in str(caught.value)
            assert 'missing="trap"' not in str(caught.value)
        for wrong, said in (
            (HostFunction(print, ("i64",), ()), "what is given is a function"),
            (HostTable(), r"what is given is HostTable\(\)"),
            (HostGlobal("i32", 1), r'what is given is HostGlobal\("i32", ...\)'),
        ):
            with pytest.raises(LinkError, match=said + r": give HostMemory\(\)"):
                await add(cache, "f", kit.importing_memory(), imports={"env": {"memory": wrong}})
        with pytest.raises(LinkError, match=r"is a function, but what is given is HostMemory\(\)"):
            await add(cache, "f", kit.asking(), imports={"host": {"ask": HostMemory()}})
        assert cache.functions() == ()
        check_invariants(cache)


async def test_what_is_given_and_not_imported_is_not_used(kit: Kit) -> None:
    """One mapping may serve several modules; a similar name is shown where another is missing."""
    async with kit.open() as cache:
        both = {"env": {"memory": HostMemory(), "table": HostTable()}}
        f = await add(cache, "f", kit.importing_memory(), imports=both)
        assert await f.call(1) == 1
        g = await add(cache, "g", kit.adding(1), imports=both)
        assert await g.call(1) == 2
        with pytest.raises(LinkError, match=r"\(env\.memori is given, which it does not import\)"):
            await add(cache, "h", kit.importing_memory(), imports={"env": {"memori": HostMemory()}})


async def test_cancelled_everywhere(kit: Kit) -> None:
    """Compiling, trying, loading, marking and calling, as of any module."""
    async with stage(kit, CacheConfig()) as at:
        wasm = kit.importing_memory(2)

        async def scenario() -> None:
            f = await add(at.cache, "f", wasm, imports=GIVEN, isolation="reset", replace=True)
            for _ in range(2):
                async with f.acquire() as lease:
                    assert lease.memory.read(PAGE, 6) == bytes(6)
                    lease.memory.write(PAGE, b"secret")
                    assert await lease.call(5) == 5

        await at.run(scenario, least=6)


async def test_each_native_step_fails_in_turn() -> None:
    """What fails leaves nothing of the memory behind."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        await trying(errors, add(cache, "f", kit.importing_memory(), imports=GIVEN))
        if cache.functions():
            await trying(errors, cache.functions()[0].call(1))

    assert await fail_everywhere(scenario) == ["compile", "load", "instantiate", "start", "call"]
