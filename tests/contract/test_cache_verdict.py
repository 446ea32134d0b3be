"""Default limits fit what toolchains emit, and `register` says if an instance can never be kept."""

from __future__ import annotations

from typing import Any

import pytest
from kits import PAGE, FakeKit, ListLogger, WasmtimeKit, add

from trio_wasmcache import CacheConfig, MiB
from trio_wasmcache._core.wasm.isolation import cache_verdict

EMSCRIPTEN, ZIG = 256, 257
"""Pages of memory that their modules start with."""


@pytest.mark.parametrize("pages", [EMSCRIPTEN, ZIG])
async def test_memories_of_common_toolchains_are_kept(kit: Any, pages: int) -> None:
    """Under the default limits: 16 MiB, and one page more, are hits from the second lease on."""
    log = ListLogger()
    async with kit.open(CacheConfig(), logger=log) as cache:
        f = await add(cache, "f", kit.adding(1, pages=pages))
        assert f.cache_verdict.startswith("kept: an instance takes at least ")
        for _ in range(3):
            assert await f.call(1) == 2
        stats = cache.stats()
        assert (stats.hits, stats.misses) == (2, 1)
        assert stats.total_size == (pages + 1) * PAGE
        assert f"at least {stats.total_size} bytes" in f.cache_verdict
    (level, fields) = next((one[0], one[2]) for one in log.lines if one[1].endswith("registered"))
    assert (level, fields["advice"]) == ("info", None)
    assert fields["cache_verdict"] == f.cache_verdict


async def test_an_instance_that_can_never_be_kept_is_a_warning(kit: Any) -> None:
    """It names the limits to raise; raising them as it says makes the function kept."""
    log = ListLogger()
    config = CacheConfig(max_instance_size=4 * PAGE, max_size=3 * PAGE)
    async with kit.open(config, logger=log) as cache:
        f = await add(cache, "f", kit.adding(1, pages=4))
        least = 5 * PAGE
        assert f.cache_verdict == (
            f"never kept: an instance takes at least {least} bytes, and max_instance_size is "
            f"{4 * PAGE} and max_size is {3 * PAGE}; "
            f"raise max_instance_size and max_size to at least {least}"
        )
        ((level, _, fields),) = [one for one in log.lines if one[1].endswith("registered")]
        advice = f"raise max_instance_size and max_size to at least {least}"
        assert (level, fields["advice"]) == ("warning", advice)
        await f.call(1)
        await f.call(1)
        assert cache.stats().hits == 0
        cache.resize(max_instance_size=least, max_size=least)
        g = await add(cache, "f", kit.adding(1, pages=4), replace=True)
        assert g.cache_verdict.startswith("kept: ")
        await g.call(1)
        await g.call(1)
        assert cache.stats().hits == 1


async def test_what_leaves_a_seat(kit: Any) -> None:
    """A fresh function's instances are closed anyway; a reset one's can be too large to keep."""
    log = ListLogger()
    config = CacheConfig(max_instance_size=2 * PAGE)
    async with kit.open(config, logger=log) as cache:
        wasm = kit.adding(1, pages=4)
        fresh = await add(cache, "fresh", wasm, isolation="fresh")
        assert fresh.cache_verdict == ("a seat is kept: an instance is closed when its lease ends")
        reset = await add(cache, "reset", wasm, isolation="reset")
        assert reset.cache_verdict == (
            f"only a seat is kept: an instance takes at least {5 * PAGE} bytes, and "
            f"max_instance_size is {2 * PAGE}; raise max_instance_size to at least {5 * PAGE}"
        )
        for function in (fresh, reset):
            await function.call(1)
            await function.call(1)
        assert cache.stats().hits == 2  # on seats
    assert [one[0] for one in log.lines if one[1].endswith("registered")] == ["info", "warning"]


def test_a_limit_of_nothing_is_no_mistake() -> None:
    """Who sets a limit to 0 wants nothing kept: the verdict says so, and there is no advice."""
    for config in (CacheConfig(max_size=0), CacheConfig(max_instance_size=0)):
        for seats in (False, True):
            said, advice = cache_verdict(config, 2 * PAGE, seats=seats, restored=False)
            assert said.startswith("never kept: ")
            assert advice is None


def test_a_seat_can_be_too_large() -> None:
    """Below a page, not even that is kept."""
    config = CacheConfig(max_size=PAGE - 1)
    for restored in (False, True):
        said, advice = cache_verdict(config, 2 * PAGE, seats=True, restored=restored)
        assert said.startswith("never kept: ")
        needed = 2 * PAGE if restored else PAGE
        assert advice == f"raise max_size to at least {needed}"


async def test_the_least_size_is_that_of_a_new_instance(real: WasmtimeKit) -> None:
    """With tables, globals and segments, as the ledger counts it, to the byte."""
    text = """(module (memory 3) (memory 1 2) (table 100 funcref) (table 7 externref)
      (global (mut i64) (i64.const 1)) (elem (i32.const 0) $run) (data (i32.const 0) "x")
      (func $run (export "run") (param i64) (result i64) (local.get 0)))"""
    async with real.open(CacheConfig()) as cache:
        f = await add(cache, "f", text)
        await f.call(1)
        assert f"at least {cache.stats().total_size} bytes" in f.cache_verdict


async def test_exceptions_that_can_be_kept_count_with_their_heap(real: WasmtimeKit) -> None:
    """An instance is never kept if its heap alone is larger: that is said, with the limit."""
    run = '(func (export "run") (param i64) (result i64) (local.get 0))'
    text = f"(module (tag (param i64)) (global (mut exnref) (ref.null exn)) {run})"
    log = ListLogger()
    async with real.open(CacheConfig(), logger=log) as cache:
        f = await add(cache, "f", text)
        async with f.acquire() as lease:
            assert f"raise max_instance_size to at least {lease.size}" in f.cache_verdict
        assert f.cache_verdict.startswith("never kept: ")
        assert cache.stats().idle_instances == 0
        g = await add(cache, "g", f"(module (tag (param i64)) {run})")
        await g.call(1)
        assert f"at least {cache.stats().total_size} bytes" in g.cache_verdict


async def test_zig_and_emscripten_under_scylladbs_limits(fake: FakeKit) -> None:
    """The original's limits never kept them; now it is said."""
    config = CacheConfig.scylladb()
    async with fake.open(config) as cache:
        f = await add(cache, "f", fake.adding(1, pages=17))
        assert f.cache_verdict.endswith(f"raise max_instance_size to at least {18 * PAGE}")
    assert config.memory_limit == 2 * MiB
