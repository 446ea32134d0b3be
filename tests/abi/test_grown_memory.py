"""Room in a guest's memory: grown pages are used again, and what is written is copied once."""

from __future__ import annotations

import array
import tracemalloc
from typing import Any

import pytest
from abi.support import PAGE, FakeGuest
from engine.support import quiet_cache, wat
from hypothesis import given, strategies as st

from trio_wasmcache import MemoryLimitError
from trio_wasmcache._abi.guest_memory import grown_memory

MIB = 1024 * 1024


def test_grown_room_is_used_again() -> None:
    """Pages are grown when they are needed, and only those that are missing."""
    guest = FakeGuest(pages=2, max_pages=100)
    assert grown_memory(guest, 1) == 2 * PAGE
    assert grown_memory(guest, PAGE) == 2 * PAGE
    assert guest.size == 3 * PAGE
    assert grown_memory(guest, PAGE + 1) == 2 * PAGE
    assert guest.size == 4 * PAGE


def test_room_moves_if_the_guest_has_grown() -> None:
    """What is then needed lies in one piece, at least twice the old if there is room for that."""
    guest = FakeGuest(max_pages=10)
    assert grown_memory(guest, 2 * PAGE) == PAGE
    guest.grow(1)
    assert grown_memory(guest, 2 * PAGE) == PAGE
    assert grown_memory(guest, 2 * PAGE + 1) == 4 * PAGE
    assert guest.size == 8 * PAGE
    guest.grow(1)
    guest.max_pages = 14
    assert grown_memory(guest, 4 * PAGE + 1) == 9 * PAGE
    assert guest.size == 14 * PAGE


def test_without_room_there_is_an_error() -> None:
    """What the guest may not grow to is a MemoryLimitError; what was there can still be used."""
    guest = FakeGuest(max_pages=3)
    assert grown_memory(guest, 10) == PAGE
    with pytest.raises(MemoryLimitError):
        grown_memory(guest, 5 * PAGE)
    assert grown_memory(guest, 20) == PAGE


@given(st.lists(st.tuples(st.integers(0, 4 * PAGE), st.booleans()), max_size=30))
def test_room_never_overlaps_the_guest(wanted: list[tuple[int, bool]]) -> None:
    """However both grow, the room is inside memory, and no page of it is one the guest grew."""
    guest, theirs = FakeGuest(max_pages=10_000), {0}
    for need, grows in wanted:
        if grows:
            theirs.add(guest.grow(1) // PAGE)
        at = grown_memory(guest, need)
        assert need == 0 or 0 < at <= guest.size - need
        assert not theirs & set(range(at // PAGE, -(-(at + need) // PAGE)) if need else ())


async def test_what_is_written_is_copied_once() -> None:
    """Whatever lies in one piece goes into the guest with nothing in between."""
    source = wat('(module (memory (export "memory") 128) (func (export "f")))')
    large: list[Any] = [bytes(4 * MIB), bytearray(4 * MIB), memoryview(bytes(4 * MIB))]
    large += [
        array.array("d", bytes(4 * MIB)),
        memoryview(bytearray(4 * MIB)).cast("B", (2048, 2048)),
    ]
    async with quiet_cache() as cache:
        function = await cache.register("f", source, args=())
        async with function.acquire() as lease:
            tracemalloc.start()
            try:
                for data in large:
                    tracemalloc.reset_peak()
                    before, _ = tracemalloc.get_traced_memory()
                    lease.memory.write(100, data)
                    _, peak = tracemalloc.get_traced_memory()
                    assert peak - before < MIB // 4
            finally:
                tracemalloc.stop()


async def test_all_that_is_a_buffer_can_be_written() -> None:
    """Read-only or not, in one piece or not, of any item type; nothing of what does not fit."""
    source = wat('(module (memory (export "memory") 1) (func (export "f")))')
    async with quiet_cache() as cache:
        function = await cache.register("f", source, args=())
        async with function.acquire() as lease:
            for data in (
                b"abc",
                b"",
                bytearray(b"abc"),
                bytearray(),
                memoryview(b"abcdef")[::2],
                memoryview(b"abcdef")[::-1],
                memoryview(b"abcd").cast("H"),
                array.array("d", [1.5]),
                memoryview(b"abcdef").cast("B", (2, 3)),
            ):
                expected = memoryview(data).tobytes()
                lease.memory.write(7, data)  # type: ignore[arg-type]
                assert lease.memory.read(7, len(expected)) == expected
                lease.memory.write(PAGE - len(expected), data)  # type: ignore[arg-type]
                with pytest.raises(IndexError):
                    lease.memory.write(PAGE - len(expected) + 1, data)  # type: ignore[arg-type]
            for wrong in ("text", 5, None):
                with pytest.raises(TypeError):
                    lease.memory.write(0, wrong)  # type: ignore[arg-type]


def test_room_never_begins_at_a_null_pointer() -> None:
    """A memory without pages gives room behind address 0, and more of it in one piece."""
    guest = FakeGuest(pages=0, max_pages=10)
    assert grown_memory(guest, 100) == 16
    assert guest.size == PAGE
    assert grown_memory(guest, PAGE - 16) == 16
    assert guest.size == PAGE
    assert grown_memory(guest, PAGE) == 16
    assert guest.size == 2 * PAGE
