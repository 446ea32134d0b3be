"""Lines of addresses: as compilers write them, and from sections that mean harm."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from trio_wasmcache._core.wasm import dwarf
from trio_wasmcache._core.wasm.custom import DebugSections, code_offset, keep_debug_sections
from trio_wasmcache._core.wasm.dwarf import SECTIONS, DwarfError, Line, LineTables
from trio_wasmcache._core.wasm.editor import sleb, uleb

TOOLCHAINS = Path(__file__).parents[2] / "udfs" / "toolchains"
FILES = ("clang-dwarf4", "clang-dwarf5")
# As `llvm-dwarfdump --debug-line` shows them: {address: line and column}; column 0 is not known.
ROWS = {
    0x02: (16, 0),
    0x16: (17, 17),
    0x24: (21, 13),
    0x2E: (21, 13),
    0x3E: (22, 5),
    0x49: (20, 16),
    0x56: (10, 15),
    0x5D: (10, 18),
    0x61: (11, 9),
    0x63: (12, 18),
    0x6B: (12, 5),
}
NOWHERE = (0, 1, 0x52, 0x55, 0x62, 0x6C, 0x10000, 2**32 - 1, 2**40, -1)


@cache
def sections_of(file: str) -> DebugSections:
    kept = keep_debug_sections((TOOLCHAINS / f"{file}.wasm").read_bytes())
    assert kept is not None
    return kept


def find(
    sections: Mapping[str, bytes],
    addresses: list[int],
    tables: LineTables | None = None,
    breaths: list[None] | None = None,
) -> list[Line | None]:
    made = LineTables() if tables is None else tables
    taken = [] if breaths is None else breaths
    return made.find(addresses, lambda name: sections.get(name, b""), lambda: taken.append(None))


@pytest.mark.parametrize("file", FILES)
def test_lines_are_those_that_the_compiler_wrote(file: str) -> None:
    """In DWARF 4 and 5; where there is none, or the line is 0, there is no line."""
    tables, sections = LineTables(), sections_of(file)
    assert tables.look_up(list(ROWS)) is None
    found = tables.find([*ROWS, *NOWHERE], sections.read, lambda: None)
    expected = [Line("/src/clang.c", line, column) for line, column in ROWS.values()]
    assert found == [*expected, *([None] * len(NOWHERE))]
    # Without any work, once they are there.
    taken = tables.steps_taken
    assert tables.look_up([*ROWS, *NOWHERE]) == found
    assert tables.steps_taken == taken
    assert 0 < tables.size < 10_000


def test_the_code_section_is_found_behind_all_others() -> None:
    """Its content is where addresses count from."""
    wasm = (TOOLCHAINS / "clang-dwarf4.wasm").read_bytes()
    assert wasm[code_offset(wasm) + 0x61] == 0x00  # unreachable
    assert code_offset(wasm[:20]) == code_offset(b"") == code_offset(b"\0asm\1\0\0\0\1\xff") == 0


# -- sections made by hand, of DWARF 4 in the main


def unit(low: int = 0x10, high: int = 0x100, *, line: int = 0, version: int = 4) -> bytes:
    body = b"\1" + line.to_bytes(4, "little") + low.to_bytes(4, "little")
    body += (high - low).to_bytes(4, "little")
    return sized(version.to_bytes(2, "little") + bytes(4) + b"\4" + body)


def sized(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


# One entry: a compile unit with stmt_list, low_pc and high_pc.
ABBREV = b"\1\x11\0" + b"\x10\x17" + b"\x11\1" + b"\x12\6" + b"\0\0" + b"\0"
LENGTHS = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))


def program(code: bytes, *, line_range: int = 14, files: bytes = b"a.c\0\0\0\0") -> bytes:
    fields = bytes((1, 1, 1, 251, line_range, 13)) + LENGTHS + b"\0" + files + b"\0"
    return sized(b"\4\0" + len(fields).to_bytes(4, "little") + fields + code)


def set_address(address: int) -> bytes:
    return b"\0\5\2" + address.to_bytes(4, "little")


END = b"\0\1\1"
GOOD = set_address(0x10) + b"\3\6\1" + b"\2\x10\3\1\1" + b"\2\x20" + END


def test_sections_made_by_hand_are_read() -> None:
    """So that what follows is refused for what it does."""
    made = {".debug_info": unit(), ".debug_abbrev": ABBREV, ".debug_line": program(GOOD)}
    found = find(made, [0x10, 0x1F, 0x20, 0x3F, 0x40])
    assert found == [Line("a.c", 7, 0)] * 2 + [Line("a.c", 8, 0)] * 2 + [None]


INDIRECT = b"\1\x11\0" + b"\x10\x16" + b"\0\0" + b"\0"
HUGE = b"\xff" * 8 + b"\x7f"
FAR = b"\xff" * 8 + b"\x3f"  # of a signed number
MANY = 20_000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({".debug_info": unit()[:-1]}, "a unit beyond its section"),
        ({".debug_info": b"\xff\xff\xff\xff" + bytes(20)}, "a unit beyond its section"),
        ({".debug_info": sized(unit())}, "unknown version"),  # a unit in a unit
        ({".debug_info": sized(b"\4\0" + bytes(4) + b"\3\1")}, "addresses of 3 bytes"),
        ({".debug_info": unit(version=9)}, "unknown version 9"),
        ({".debug_abbrev": b""}, "it ends too early"),
        ({".debug_abbrev": b"\2\x11\0\0\0\0"}, "no abbreviation 1"),
        ({".debug_abbrev": b"\2\x11\0\0\0" * MANY}, "it ends too early"),
        ({".debug_abbrev": b"\1\x11\0\3\x7f\0\0"}, "unknown form"),
        (
            {
                ".debug_abbrev": INDIRECT,
                ".debug_info": sized(b"\4\0" + bytes(4) + b"\4\1" + b"\x16" * MANY),
            },
            "it ends too early",
        ),
        ({".debug_info": unit(line=99_999)}, "an offset outside of its section"),
        ({".debug_line": program(GOOD)[:-1]}, "a unit beyond its section"),
        ({".debug_line": program(GOOD, line_range=0)}, "a line program without a range"),
        ({".debug_line": program(GOOD, files=b"a" * 30)}, "it ends too early"),
        (
            {".debug_line": program(set_address(0x10) + b"\3" + FAR + b"\1" + END)},
            "damaged",
        ),
        ({".debug_line": program(set_address(0x10) + b"\3\x40\1" + END)}, "damaged"),  # line -63
        ({".debug_line": program(set_address(0x10) + b"\4" + HUGE + b"\1" + END)}, "damaged"),
        ({".debug_line": program(b"\2" + b"\xff" * 40)}, "a number over 64 bits"),
        ({".debug_line": program(b"\0" + HUGE)}, "it ends too early"),
    ],
)
def test_damaged_sections_are_refused(changes: dict[str, bytes], said: str) -> None:
    """By one kind of error, whatever is wrong."""
    made = {".debug_info": unit(), ".debug_abbrev": ABBREV, ".debug_line": program(GOOD)}
    with pytest.raises(DwarfError, match=said):
        find(made | changes, [0x10])


@pytest.mark.parametrize(
    "code",
    [
        b"",  # no rows
        set_address(0x10) + b"\1",  # a sequence that does not end
        set_address(0x10) + b"\1\2" + HUGE + b"\1" + END,  # beyond all addresses
        set_address(0x20) + b"\1" + set_address(0x10) + b"\1" + END,  # falling addresses
        set_address(0) + b"\1\2\x40\1" + END,  # a function that was left out
        set_address(2**32 - 1) + b"\1\2\x40\1" + END,
        set_address(0x10) + b"\4\x63\1\2\x20" + END,  # no such file
        b"\0\0" * 100,
    ],
)
def test_sequences_that_make_no_sense_have_no_lines(code: bytes) -> None:
    """They hide no other sequence."""
    made = {".debug_info": unit(), ".debug_abbrev": ABBREV, ".debug_line": program(code)}
    assert find(made, [0x10]) == [None]
    if code.endswith(END):
        made[".debug_line"] = program(code + set_address(0x50) + b"\1\2\x20" + END)
        assert find(made, [0x50]) == [Line("a.c", 1, 0)]


def test_the_number_of_steps_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all searches of a module together, whatever takes them."""
    monkeypatch.setattr(dwarf, "MAX_STEPS", 1000)
    good = {".debug_info": unit(), ".debug_abbrev": ABBREV, ".debug_line": program(GOOD)}
    for changes in (
        {".debug_info": unit() * MANY},
        {".debug_abbrev": b"\2\x11\0\0\0" * MANY + ABBREV},
        {".debug_line": program(b"\6" * MANY)},
        {".debug_line": program(GOOD, files=b"a\0\0\0\0" * MANY)},
    ):
        breaths: list[None] = []
        tables, made = LineTables(), good | changes
        with pytest.raises(DwarfError, match="more than 1000 steps"):
            find(made, [0x10], tables, breaths)
        assert tables.steps_taken <= 1010
        assert breaths


def test_the_number_of_rows_and_ranges_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what is kept."""
    monkeypatch.setattr(dwarf, "MAX_ROWS", 1000)
    made = {".debug_info": unit(), ".debug_abbrev": ABBREV, ".debug_line": program(b"\1" * MANY)}
    with pytest.raises(DwarfError, match="more than 1000 rows"):
        find(made, [0x10])
    made[".debug_info"] = unit() * 1001
    with pytest.raises(DwarfError, match="more than 1000 ranges"):
        find(made, [0x10])


def test_a_table_without_formats_does_not_count_to_the_end_of_time() -> None:
    """In DWARF 5, an entry may have no bytes, and there may be any number of them."""
    fields = bytes((1, 1, 1, 251, 14, 13)) + LENGTHS + b"\0" + HUGE
    line = sized(b"\5\0\4\0" + len(fields).to_bytes(4, "little") + fields)
    made = {".debug_info": unit(), ".debug_abbrev": ABBREV, ".debug_line": line}
    with pytest.raises(DwarfError, match="more than 4000000 steps"):
        find(made, [0x10])


def test_paths_are_cut_and_printable() -> None:
    """They end up in messages."""
    name = b"\x1b[31m" + b"d/" * 1000 + b"end.c"
    line = program(GOOD, files=name + b"\0\0\0\0")
    made = {".debug_info": unit(), ".debug_abbrev": ABBREV, ".debug_line": line}
    (found,) = find(made, [0x10])
    assert found is not None
    assert found.file.isprintable()
    assert len(found.file) <= dwarf.MAX_PATH


@settings(max_examples=300)
@given(
    st.sampled_from(FILES),
    st.lists(
        st.tuples(st.sampled_from(SECTIONS), st.integers(0, 300), st.binary(max_size=6)),
        min_size=1,
        max_size=6,
    ),
)
def test_any_damage_gives_lines_or_the_one_error(
    file: str, damages: list[tuple[str, int, bytes]]
) -> None:
    """Real sections with some bytes overwritten."""
    made = {name: bytearray(sections_of(file).read(name)) for name in SECTIONS}
    for name, at, data in damages:
        made[name][at : at + len(data)] = data
    try:
        found = find({name: bytes(data) for name, data in made.items()}, [*ROWS, *NOWHERE])
    except DwarfError:
        return
    assert len(found) == len(ROWS) + len(NOWHERE)
    assert all(line is None or line.file.isprintable() for line in found)


@given(st.dictionaries(st.sampled_from(SECTIONS), st.binary(max_size=200)))
def test_noise_gives_lines_or_the_one_error(made: dict[str, bytes]) -> None:
    """Any bytes at all."""
    with contextlib.suppress(DwarfError):
        find(made, [0x10])


def test_numbers_are_read_as_they_are_written() -> None:
    """LEB128 of either kind."""
    for number in (0, 1, 63, 64, 127, 128, 2**31, 2**62):
        assert dwarf._Bytes(uleb(number)).uleb() == number
        for signed in (number, -number):
            assert dwarf._Bytes(sleb(signed)).sleb() == signed
