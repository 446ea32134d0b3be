"""Debug sections are kept with their module, counted, and freed with it or for other modules'."""

from __future__ import annotations

import random
from typing import Any

import pytest
from engine.support import quiet_cache, wat

from trio_wasmcache import InstanceCache, KiB, TrapError
from trio_wasmcache._core.wasm.editor import name_bytes, section
from trio_wasmcache._runtime.module import CachedModule
from trio_wasmcache.testing import check_invariants, open_fake_cache

WASM = wat(
    """(module
      (func $inner unreachable)
      (func (export "f") (param i64) (result i64) call $inner local.get 0))"""
)
NOISE = random.Random(1).randbytes(10 * KiB)
"""Content that does not shrink."""


def with_debug(*names: str, wasm: bytes = WASM, content: bytes = NOISE) -> bytes:
    return wasm + b"".join(section(0, name_bytes(name) + content) for name in names)


def module_of(cache: InstanceCache, name: str) -> CachedModule:
    record = next(one for key, one in cache._pool.registry.functions.items() if key.name == name)
    definition: Any = record.definition
    found: CachedModule = definition.module
    return found


async def test_the_compiler_does_not_get_them_and_the_module_keeps_them() -> None:
    """Code, names in backtraces and results are as without; `artifact_size` counts the sections."""
    async with quiet_cache() as cache:
        await cache.register("f", WASM, args=("i64",), returns="i64")
        bare = cache.stats().artifact_size
        noisy = with_debug(".debug_info", ".debug_line", "producers")
        await cache.register("f", noisy, args=("i64",), returns="i64", replace=True)
        kept = module_of(cache, "f").debug_sections
        assert kept is not None
        assert kept.sizes == {".debug_info": 10 * KiB, ".debug_line": 10 * KiB}
        assert kept.read(".debug_line") == NOISE
        assert cache.stats().artifact_size == bare + kept.size
        assert cache._pool.debug_book.size == kept.size
        with pytest.raises(TrapError) as caught:
            async with cache.acquire("f", ("i64",)) as f:
                await f.call(1)
        assert "inner" in caught.value.backtrace[0]
        module = module_of(cache, "f")
        cache.remove("f")
        assert module.debug_sections is None
        assert cache._pool.debug_book.size == 0


async def test_those_of_the_module_added_first_are_freed_for_others() -> None:
    """The book never exceeds its limit, and a module that lost its sections goes on."""
    async with open_fake_cache() as cache:
        engine: Any = cache._pool.engine
        book = cache._pool.debug_book
        wasm = with_debug(".debug_info", wasm=engine.module())
        await cache.register("run", wasm, args=("i64",), returns="i64")
        each = book.size
        assert each >= len(NOISE)
        book.limit = 3 * each
        for number in range(4):
            wasm = with_debug(".debug_info", wasm=engine.module())
            await cache.register(f"f{number}", wasm, args=("i64",), returns="i64", export="run")
            assert book.size <= book.limit
        names = ("run", "f0", "f1", "f2", "f3")
        kept = [name for name in names if module_of(cache, name).debug_sections is not None]
        assert kept == ["f1", "f2", "f3"]
        async with cache.acquire("run", ("i64",)) as run:
            assert await run.call(7) == 7
        for name in names:
            cache.remove(name)
        assert book.size == 0
        check_invariants(cache)


async def test_functions_that_share_a_module_share_its_sections() -> None:
    """They are counted once, and freed with the last function."""
    async with quiet_cache() as cache:
        wasm = with_debug(".debug_info")
        await cache.register("f", wasm, args=("i64",), returns="i64")
        await cache.register("g", wasm, args=("i64",), returns="i64", export="f")
        book, module = cache._pool.debug_book, module_of(cache, "f")
        assert module is module_of(cache, "g")
        size = book.size
        cache.remove("f")
        assert (book.size, module.debug_sections is None) == (size, False)
        cache.remove("g")
        assert (book.size, module.debug_sections is None) == (0, True)
