"""What is in memory of the mappings that are ours: asked of the kernel, for each kind."""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine.support import run_python

from trio_wasmcache import CacheConfig
from trio_wasmcache._core.config import KiB
from trio_wasmcache._engine.wasmtime import residency as resident
from trio_wasmcache._engine.wasmtime.residency import count_resident

PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(not resident.PAGEMAP.exists(), reason="only Linux tells")


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


@linux
def test_what_is_resident_of_a_whole_cache() -> None:
    """In a process of its own: in one that has done much, the kernel may merge a stack's mapping
    with what lies above it, and then it is not told apart."""
    command = [sys.executable, "-m", "pytest", "-q", Path(__file__).with_name("resident_alone.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
