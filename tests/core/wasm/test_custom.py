"""Custom sections are found whatever surrounds them; DWARF's are kept, small, and given back."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, strategies as st

from trio_wasmcache._core.config import MiB
from trio_wasmcache._core.wasm.custom import (
    DEBUG_LIMIT,
    NAMES_LIMIT,
    VEIL,
    custom_size,
    find_custom_sections,
    keep_debug_sections,
    without_custom_sections,
)
from trio_wasmcache._core.wasm.editor import encode_module, name_bytes, section, uleb, vector
from trio_wasmcache._core.wasm.reader import (
    HEADER,
    SECTION_LIMIT,
    STEPS,
    ExcessiveModuleError,
    FuncType,
    MalformedModuleError,
    read_module,
)

CORE = encode_module(types=[FuncType()], functions=[0], code=[b"\0\x0b"])
TYPES, REST = CORE[:14], CORE[14:]


def named(name: str, content: bytes = b"") -> bytes:
    return section(0, name_bytes(name) + content)


def test_custom_sections_are_found_wherever_they_stand() -> None:
    """Before, between and after the others, with padded sizes as linkers write them."""
    padded = b"\0\x88\x80\x80\x80\0" + name_bytes("abc") + b"1234"
    wasm = HEADER + named("first", b"1") + TYPES[8:] + padded + REST + named("last", b"22")
    found = find_custom_sections(wasm)
    assert [(one.name, wasm[one.start : one.end]) for one in found] == [
        ("first", b"1"),
        ("abc", b"1234"),
        ("last", b"22"),
    ]
    assert len(wasm) - custom_size(found) == len(CORE)
    assert without_custom_sections(wasm) == CORE
    assert without_custom_sections(CORE) is CORE


def test_the_compiler_gets_the_first_section_of_names() -> None:
    """Only it stays, where it was; a second one, or one that is too large, does not."""
    names, other = named("name", b"\0\1x"), named("name", b"\0\2xy")
    assert without_custom_sections(CORE + named("a") + names + other) == CORE + names
    assert without_custom_sections(CORE + named("name", bytes(NAMES_LIMIT))) != CORE
    assert without_custom_sections(CORE + named("name", bytes(NAMES_LIMIT + 1)) + names) == CORE


def test_names_that_the_engine_would_demangle_are_veiled() -> None:
    """Only names of functions are; damage ends the names, and the module stays a module."""

    def functions(*found: bytes) -> bytes:
        pairs = [uleb(index) + uleb(len(name)) + name for index, name in enumerate(found)]
        return section(1, vector(pairs))

    mangled = [b"_ZN1a1bE", b"__Z1av", b"___Z1av", b"ZN1aE", b"_RNvC1a1b", b"R1", b"_GLOBAL__I_a"]
    plain, module_name = [b"main", b"a_Z", b""], section(0, name_bytes("_Z1av"))
    names = module_name + functions(*mangled, *plain) + section(2, b"\0")
    veiled = [VEIL.encode() + name for name in mangled]
    expected = module_name + functions(*veiled, *plain) + section(2, b"\0")
    breaths: list[None] = []
    for before, after in ((b"", CORE[8:]), (CORE[8:], b"")):
        given = [HEADER + before + named("name", part) + after for part in (names, expected)]
        assert without_custom_sections(given[0], lambda: breaths.append(None)) == given[1]
    cut = section(1, uleb(9) + functions(mangled[0])[3:] + b"\7\x40_Z")
    kept = HEADER + named("name", functions(veiled[0]))
    assert without_custom_sections(HEADER + named("name", cut + b"\1\xff")) == kept
    many = functions(*[b"_Z1av"] * 5000)
    without_custom_sections(HEADER + named("name", many), lambda: breaths.append(None))
    assert len(breaths) == 5


def test_debug_sections_are_kept_compressed() -> None:
    """They come back byte for byte; no other section is kept."""
    wasm = CORE + named(".debug_info", b"info" * 10_000) + named("producers", b"x" * 1000)
    wasm += named(".debug_line", b"line") + named(".debug_line", b"twice") + named(".debug_str")
    breaths: list[None] = []
    kept = keep_debug_sections(wasm, lambda: breaths.append(None))
    assert kept is not None
    assert kept.sizes == {".debug_info": 40_000, ".debug_line": 4, ".debug_str": 0}
    assert kept.size < 500
    assert kept.read(".debug_info") == b"info" * 10_000
    assert kept.read(".debug_line") == b"line"
    assert kept.read(".debug_str") == kept.read(".debug_ranges") == b""
    assert len(breaths) == 3
    assert keep_debug_sections(CORE) is None


def test_no_debug_section_is_kept_if_all_together_are_too_large() -> None:
    """The limit counts compressed bytes; what is above it leaves nothing."""
    noise = random.Random(1).randbytes(MiB)
    one = len(zlib.compress(noise, 1))
    fit = [named(f".debug_{n}", noise) for n in range(DEBUG_LIMIT // one)]
    kept = keep_debug_sections(CORE + b"".join(fit))
    assert kept is not None
    assert DEBUG_LIMIT - one < kept.size <= DEBUG_LIMIT
    assert keep_debug_sections(CORE + b"".join(fit) + named(".debug_more", noise)) is None
    assert keep_debug_sections(CORE + named(".debug_" + "x" * 40, b"1")) is None


def test_headers_alone_are_read() -> None:
    """A million tiny sections cost what the limit of their number allows."""
    many = HEADER + b"\0\1\0" * 100_000
    assert len(find_custom_sections(many)) == SECTION_LIMIT


def test_custom_sections_buy_no_steps_of_the_reader() -> None:
    """How long reading may take depends on the module without them."""
    wide = section(1, b"\xe8\x07" + (b"\x60\xe8\x07" + b"\x7f" * 1000 + b"\0") * 1000)
    with pytest.raises(ExcessiveModuleError, match=f"over {STEPS + (len(wide) + 8) // 16} steps"):
        read_module(HEADER + wide + named("padding", bytes(32 * MiB)))


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=8),
            st.builds(named, st.text(max_size=5), st.binary(max_size=5)),
            st.just(TYPES[8:]),
            st.just(REST),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_any_bytes_give_sections_that_lie_in_them(parts: list[bytes], header: bool) -> None:
    """Nothing raises; where the reader accepts a module, both see the same sections."""
    wasm = HEADER * header + b"".join(parts)
    found = find_custom_sections(wasm)
    assert all(0 < one.begin < one.start <= one.end <= len(wasm) for one in found)
    stripped = without_custom_sections(wasm)
    try:
        info = read_module(wasm)
    except MalformedModuleError:
        return
    ends = [one.end for one in info.sections if one.id == 0]
    assert [one.end for one in found] == ends
    left = read_module(stripped)
    assert [one.id for one in left.sections if one.id] == [
        one.id for one in info.sections if one.id
    ]
    assert custom_size(find_custom_sections(stripped)) <= custom_size(found)
