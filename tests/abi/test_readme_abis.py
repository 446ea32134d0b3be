"""What the cookbook says of ABIs, compared with what is there."""

from __future__ import annotations

import re
from typing import get_args

from documents import SECTIONS

from trio_wasmcache import BufferAbi
from trio_wasmcache._abi import allocator, buffer
from trio_wasmcache._abi.cql.scalars import scalars


def first_cells(section: str, header: str) -> list[str]:
    """What is in backticks in the first column of the table that begins with `header`."""
    _, _, table = SECTIONS[section].partition(f"| {header} |")
    rows = [line.split("|")[1] for line in table.split("\n\n")[0].splitlines()[2:]]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_cql_type_is_in_the_table() -> None:
    """The table has the simple types of the library, and the compound ones of the issue."""
    names = first_cells("UDFs built for ScyllaDB", "CQL type")
    compound = {"list<t>", "set<t>", "map<k,v>", "tuple<a,b,...>", "frozen<t>"}
    assert set(names) == set(scalars()) | compound
    assert len(names) == len(set(names))


def test_every_allocator_is_in_the_table() -> None:
    """Each name by which an allocator is recognised."""
    known = {*allocator.WBINDGEN, allocator.CABI}
    for alloc, frees in allocator.OTHERS:
        known |= {alloc, *frees}
    assert set(first_cells("Bytes and text", "exports")) == known


def test_every_option_is_in_the_table() -> None:
    """Each field of `BufferAbi`, and each word that it takes."""
    options = first_cells("Bytes and text", "option")
    assert set(options) == {field.name for field in BufferAbi.__attrs_attrs__}
    for words in (buffer.Argument, buffer.Result, buffer.Owner):
        for word in get_args(words):
            assert f'`"{word}"`' in SECTIONS["Bytes and text"]
