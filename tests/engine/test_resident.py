"""What is in memory of the mappings that are ours: asked of the kernel, for each kind."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from engine.support import quiet_cache, run_python, wat

from trio_wasmcache import CacheConfig, HostFunction
from trio_wasmcache._core.config import KiB, MiB
from trio_wasmcache._engine import resident
from trio_wasmcache._engine.resident import count_resident, find_stacks
from trio_wasmcache.testing import check_invariants

PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(not resident.PAGEMAP.exists(), reason="only Linux tells")
# Of its own, so that no other test's stacks are counted.
STACK = 1236 * KiB
# Writes to the first byte of so many system pages; and calls itself so often.
TOUCH = wat(
    f"""(module (memory (export "memory") 32)
    (func $deep (param i32) (if (i32.gt_s (local.get 0) (i32.const 0)) (then
      (call $deep (i32.sub (local.get 0) (i32.const 1))) (call $deep (i32.const 0)))))
    (func (export "f") (param i32 i32) (call $deep (local.get 1))
      (loop (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
        (i32.store8 (i32.mul (local.get 0) (i32.const {PAGE})) (i32.const 1))
        (br_if 0 (i32.gt_s (local.get 0) (i32.const 0))))))"""
)


@pytest.fixture
def pages() -> Iterator[tuple[mmap.mmap, int]]:
    """A mapping of 64 pages, of which none was touched, and its address."""
    import ctypes

    mapping = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    cell = ctypes.c_char.from_buffer(mapping)
    yield mapping, ctypes.addressof(cell)
    del cell
    mapping.close()


@linux
def test_pages_are_counted_that_were_touched(pages: tuple[mmap.mmap, int]) -> None:
    """Each range by itself; what lies across the edge of a page counts the page."""
    mapping, address = pages
    assert count_resident([[(address, 64 * PAGE)]]) == [0]
    for page in (0, 7, 8, 63):
        mapping[page * PAGE] = 1
    assert count_resident([[(address, 64 * PAGE)], [], [(address + 7 * PAGE, 2 * PAGE)]]) == [
        *(4 * PAGE, 0, 2 * PAGE)
    ]
    assert count_resident([[(address + 8 * PAGE - 1, 2)], [(address, PAGE)] * 2]) == [2 * PAGE] * 2
    assert count_resident([[(address, 0), (0, 10 * PAGE), (2**63, 10 * PAGE)]]) == [0]


@linux
def test_large_ranges_are_asked_for_in_parts(
    pages: tuple[mmap.mmap, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left out between them, or counted twice."""
    mapping, address = pages
    mapping[:] = b"x" * len(mapping)
    for chunk in (1, 7, 63, 64, 65):
        monkeypatch.setattr(resident, "CHUNK", chunk)
        assert count_resident([[(address, 64 * PAGE)]]) == [64 * PAGE]


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said so, and not that nothing is resident."""
    monkeypatch.setattr(resident, "PAGEMAP", tmp_path / "pagemap")
    with pytest.raises(NotImplementedError, match="does not tell"):
        count_resident([[(0, 1)]])


@linux
async def test_each_kind_is_told_apart() -> None:
    """Memories by what was touched of them, in idle and in running instances; code; stacks."""
    limits = {"stack_size": STACK, "memory_limit": 8 * MiB}
    async with quiet_cache(**limits) as cache:
        f = await cache.register("f", TOUCH, args=("i32", "i32"), export="f", concurrency=3)
        nothing = await cache.resident_bytes()
        assert (nothing.total, nothing.stacks) == (0, 0)
        async with f.acquire() as one, f.acquire() as two:
            await one.call(10, 0)
            await two.call(100, 0)
            both = await cache.resident_bytes()
            assert (both.idle, both.running) == (0, 110 * PAGE)
            assert 0 < both.code <= f.code_size
            assert 2 * PAGE <= both.stacks <= 8 * PAGE
        rest = await cache.resident_bytes()
        assert (rest.idle, rest.running) == (110 * PAGE, 0)
        assert (rest.code, rest.stacks) == (both.code, both.stacks)
        assert rest.total == 110 * PAGE + rest.code + rest.stacks
        assert rest.idle <= cache.stats().total_size
        check_invariants(cache)
        cache.remove("f")
        assert (await cache.resident_bytes()) == nothing


@linux
async def test_idle_instances_keep_the_stacks_they_touched() -> None:
    """wasmtime does not give them back, so the books count them, as large as they may be."""
    async with quiet_cache(stack_size=STACK) as cache:
        f = await cache.register("f", TOUCH, args=("i32", "i32"), export="f")
        assert cache.stats().idle_stacks_size == 0
        await f.call(1, 10_000)
        kept = (await cache.resident_bytes()).stacks
        stats = cache.stats()
        assert 300 * KiB < kept <= stats.idle_stacks_size == STACK
        assert stats.accounted_size == (
            stats.total_size + STACK + stats.code_size + stats.artifact_size
        )
        assert len(list(find_stacks(STACK))) == 1
        async with f.acquire():
            stats = cache.stats()
            assert (stats.idle_stacks_size, stats.stacks_size) == (0, STACK)


@linux
async def test_what_runs_meanwhile_is_counted_too() -> None:
    """Suspended in a host function, or in a thread: its store is left alone."""
    source = """(module (import "host" "nap" (func $nap)) (memory (export "memory") 1)
      (func (export "naps") (i32.store (i32.const 9) (i32.const 1)) (call $nap))
      (func (export "forever") (i32.store (i32.const 9) (i32.const 1)) (loop (br 0))))"""
    inside = trio.Event()
    after: list[Any] = []

    async def nap() -> None:
        after.append(await cache.resident_bytes())
        inside.set()

    config = {"offload_after": 0, "memory_limit": 8 * MiB, "total_fuel": 10**15}
    async with quiet_cache(**config) as cache:
        host = {"host": {"nap": HostFunction(nap, (), ())}}
        for name in ("naps", "forever"):
            await cache.register(name, source, args=(), imports=host)
        async with trio.open_nursery() as nursery:
            async with cache.acquire("naps", ()) as lease:
                await lease.call()
            assert inside.is_set()
            async with cache.acquire("forever", ()) as lease:
                nursery.start_soon(lease.call)
                while lease._job is None or not lease._job.in_thread:
                    await trio.lowlevel.checkpoint()
                after.append(await cache.resident_bytes())
                nursery.cancel_scope.cancel()
    assert [one.running for one in after] == [PAGE, PAGE]
    assert [one.idle for one in after] == [0, PAGE]


@linux
def test_nothing_is_kept_open() -> None:
    """Asking a hundred times opens no file for good."""
    script = """
        import os, trio
        from engine.support import quiet_cache

        async def main():
            async with quiet_cache() as cache:
                await cache.resident_bytes()
                before = len(os.listdir("/proc/self/fd"))
                for _ in range(100):
                    await cache.resident_bytes()
                print(len(os.listdir("/proc/self/fd")) - before)

        trio.run(main)
    """
    assert run_python(script) == "0\n"


async def test_the_fake_engine_tells_what_it_has() -> None:
    """All of its memory is there; stacks it has none."""
    from trio_wasmcache.testing import FakeEngine, open_fake_cache

    engine = FakeEngine()
    module = engine.module(memory_pages=3)
    async with open_fake_cache(CacheConfig(offload_after=None), engine=engine) as cache:
        f = await cache.register("f", module, args=("i64",), returns="i64", export="run")
        async with f.acquire():
            told = await cache.resident_bytes()
            assert (told.running, told.idle, told.stacks) == (3 * 64 * KiB, 0, 0)
            assert told.code == f.code_size
        told = await cache.resident_bytes()
        assert (told.running, told.idle) == (0, 3 * 64 * KiB)
