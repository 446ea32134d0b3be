"""Which instruction of the module an address in machine code is of."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.wasm.address_map import BLOCK, NOWHERE, AddressMap
from trio_wasmcache._core.wasm.encoding import sleb, uleb


def elf(section: bytes) -> bytes:
    """An artifact with that section of addresses."""
    names = b"\0.text\0.wasmtime.addrmap.not\0.wasmtime.addrmap\0"
    header = 64
    table = header + len(names) + len(section)
    sections = [(0, 0, 0), (1, 0, 0), (7, 0, 9)]
    sections += [(names.index(b".wasmtime.addrmap\0"), header + len(names), len(section))]
    sections += [(0, header, len(names))]
    made = b"\x7fELF\x02\x01" + bytes(34) + struct.pack("<Q10xHHH", table, 64, 5, 4)
    assert len(made) == header
    rows = (struct.pack("<I20xQQ24x", *one) for one in sections)
    return made + names + section + b"".join(rows)


def flat(entries: list[tuple[int, int]]) -> bytes:
    """The layout up to wasmtime 48."""
    numbers = [len(entries), *(at for at, _ in entries), *(place for _, place in entries)]
    return struct.pack(f"<{len(numbers)}I", *numbers)


def blocks(entries: list[tuple[int, int]]) -> bytes:
    """The layout since then."""
    index, bodies = b"", b""
    for begin in range(0, len(entries), BLOCK):
        block = entries[begin : begin + BLOCK]
        index += struct.pack("<II", block[0][0], len(bodies))
        before, known = block[0][0], None
        for at, place in block:
            bodies += uleb((at - before) << 1 | (place == NOWHERE))
            before = at
            if place != NOWHERE:
                bodies += uleb(place) if known is None else sleb(place - known)
                known = place
    return struct.pack("<II", len(entries), -(-len(entries) // BLOCK)) + index + bodies


ENTRIES = st.lists(
    st.tuples(st.integers(1, 40), st.one_of(st.just(NOWHERE), st.integers(0, 2**31))), max_size=400
)


@pytest.mark.parametrize("layout", [flat, blocks])
@tries(20)
@given(ENTRIES, st.integers(0, 10_000))
def test_every_address(layout: object, steps: list[tuple[int, int]], begin: int) -> None:
    """The last entry that has a place, from the beginning of its function on."""
    entries, at = [], 0
    for step, place in steps:
        at += step
        entries.append((at, place))
    assert callable(layout)
    found = AddressMap(elf(layout(entries)))
    for number, (at, place) in enumerate(entries):
        after = entries[number + 1][0] if number + 1 < len(entries) else at + 5
        assert found.find(at, at) == (None if place == NOWHERE else place)
        if place != NOWHERE and begin <= at:
            assert found.find(after - 1, begin) == place


@pytest.mark.parametrize("layout", [flat, blocks])
def test_code_that_was_added(layout: object) -> None:
    """It has the place of what is before it, in the same function."""
    assert callable(layout)
    found = AddressMap(elf(layout([(10, 100), (20, NOWHERE), (30, 300)])))
    assert (found.find(25, 10), found.find(25, 20), found.find(5)) == (100, None, None)
    assert found.find(2**40) == 300
    assert (found.find(25, 20, 30), found.find(25, 20, 31)) == (None, 300)


@given(st.binary(max_size=100), st.integers(0, 200))
def test_anything_else(data: bytes, cut: int) -> None:
    """Whatever is in it, there is no error."""
    for artifact in (data, elf(data), elf(blocks([(1, 2), (3, 4)]))[:cut], elf(b"")):
        found = AddressMap(artifact).find(7)
        assert found is None or found >= 0 or isinstance(found, int)
