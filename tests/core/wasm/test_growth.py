"""Modules that note refused growth: valid, otherwise unchanged, and with offsets mapped back."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import wasmtime
from engine.support import wat
from fuzz.generate import generate
from fuzz.verdict import ENGINE

from trio_wasmcache import KiB, MiB
from trio_wasmcache._core.wasm.admission import Edits, check_limits
from trio_wasmcache._core.wasm.bulk import UNITS_LIMIT
from trio_wasmcache._core.wasm.component.reader import read_component
from trio_wasmcache._core.wasm.custom import bodies_offset
from trio_wasmcache._core.wasm.editor import name_bytes, section
from trio_wasmcache._core.wasm.formats import is_component
from trio_wasmcache._core.wasm.growth import UNMOVED, code_offsets, edit_code, notes_of
from trio_wasmcache._core.wasm.reader import GROWTH_LIMIT, SHORT, ModuleInfo, read_module

UDFS = Path(__file__).parents[2] / "udfs"
PAGE = 64 * KiB
LIMITS = Edits(MiB, 100)
MODULES = sorted(UDFS.rglob("*.wasm"))


def core_modules(path: Path) -> list[bytes]:
    """The module in a file, or those of the component in it."""
    wasm = path.read_bytes()
    if not is_component(wasm):
        return [wasm]
    return [wasm[one.start : one.end] for one in read_component(wasm).modules]


def noted(wasm: bytes, edits: Edits = LIMITS) -> tuple[bytes, ModuleInfo, Any]:
    """The module with notes named ``note 0`` and so on, and the map of its offsets."""
    info = read_module(wasm)
    names = {note.memory: f"note {note.memory}" for note in notes_of(info, edits)}
    edited, moves = edit_code(wasm, info, names, bodies_offset(wasm))
    return edited, info, code_offsets(wasm, edited, len(info.functions), moves)


def is_valid(wasm: bytes) -> bool:
    try:
        wasmtime.Module.validate(ENGINE, wasm)
    except wasmtime.WasmtimeError:
        return False
    return True


def check(wasm: bytes) -> int:
    """The edited module is as valid as the given one; return how many instructions were replaced.

    Each byte of the given bodies is where the map says, except of the instructions replaced and of
    the sizes of their bodies.
    """
    info = read_module(wasm)
    if not notes_of(info, LIMITS):
        return 0
    edited, info, offsets = noted(wasm)
    assert is_valid(edited) == is_valid(wasm)
    memories = {note.memory for note in notes_of(info, LIMITS)}
    replaced = [one for one in info.growths if one.memory in memories]
    gone = {at for one in replaced for at in (*range(one.at, one.end), *range(one.size, one.body))}
    (code,) = (one for one in info.sections if one.id == 10)
    kept = [at for at in range(bodies_offset(wasm), code.end) if at not in gone]
    (code,) = (one for one in read_module(edited).sections if one.id == 10)
    places: dict[int, list[int]] = {}
    for at in range(bodies_offset(edited), code.end):
        places.setdefault(offsets.given(at), []).append(at)
    for at in kept:
        # What a longer call adds is mapped to what follows it, too; the byte itself is the last.
        assert edited[places[at][-1]] == wasm[at], hex(at)
    # A frame's offset is where its instruction begins.
    calls = [places[one.at][0] for one in replaced]
    assert all(edited[at] == 0x10 for at in calls)
    return len(replaced)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_of_toolchains_are_valid_and_mapped(path: Path) -> None:
    """All that are committed here, whatever made them."""
    for wasm in core_modules(path):
        check(wasm)


def test_some_of_them_grow() -> None:
    """The test above tests something."""
    counts = [check(wasm) for path in MODULES for wasm in core_modules(path)]
    assert sum(count > 0 for count in counts) >= 8
    assert max(counts) < 9


def test_random_modules_are_as_valid_as_they_were() -> None:
    """With several memories, start functions, imports, and names."""
    counts = [check(generate(Random(seed))) for seed in range(400)]
    assert sum(count > 0 for count in counts) > 40


@pytest.mark.parametrize("count", [0, 126, 127, 128, 16_383, 16_384])
@pytest.mark.parametrize("filler", [0, 118, 121, 122, 123, 124, 125, 126])
def test_offsets_are_exact_wherever_a_length_takes_a_byte_more(count: int, filler: int) -> None:
    """The index of the added function, the size of the body, and the number of bodies."""
    body = b"\x00\x20\x00\x40\x00" + b"\x01" * filler + b"\x0b"
    bodies = [b"\x02\x00\x0b"] * count + [leb(len(body)) + body] + [b"\x02\x00\x0b"]
    number = count + 2
    wasm = (
        b"\0asm\1\0\0\0"
        + section(1, b"\x02\x60\x01\x7f\x01\x7f\x60\x00\x00")
        + section(3, leb(number) + b"\x01" * count + b"\x00\x01")
        + section(5, b"\x01\x00\x01")
        + section(7, b"\x01" + name_bytes("grow") + b"\x00" + leb(count))
        + section(10, leb(number) + b"".join(bodies))
    )
    assert is_valid(wasm)
    assert check(wasm) == 1


def leb(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def test_modules_that_no_limit_stops_are_not_edited() -> None:
    """Without `memory.grow`, or with a maximum of their own within the limit, or fixed."""
    grows = '(func (export "f") (param i32) (result i32) (memory.grow (local.get 0)))'
    for memory, expected in (("1", 1), ("1 16", 0), ("1 17", 1), ("1 1", 0), ("i64 1", 1)):
        body = grows.replace("i32", "i64") if memory.startswith("i64") else grows
        info = read_module(wat(f"(module (memory {memory}) {body})"))
        assert len(notes_of(info, LIMITS)) == expected
    info = read_module(wat("(module (memory 1) (func (drop (memory.size))))"))
    assert not info.growths
    assert not notes_of(info, LIMITS)


def test_of_several_memories_each_has_its_note() -> None:
    """With the maximum that it was given of the limit they share."""
    wasm = wat("""(module (memory $a 1) (memory $b 1 2) (memory $c 1)
      (func (export "f") (param i32) (result i32)
        (drop (memory.grow $c (local.get 0))) (memory.grow $b (local.get 0))))""")
    info = read_module(wasm)
    edits = check_limits(info, "f", MiB, 100)
    (note,) = notes_of(info, edits)
    assert (note.memory, note.limit, note.maximum) == (2, 7 * PAGE, 65536 * PAGE)
    assert note.refused(0, PAGE) is None
    assert note.refused(6, PAGE) is None  # the system refused it
    assert note.refused(7, PAGE) == 7 * PAGE
    assert note.refused(65536, PAGE) is None  # no memory could


def test_what_is_not_understood_is_not_edited() -> None:
    """An unknown instruction, a memory that is not there, or more than any toolchain emits."""
    (types, grow), many = (b"\x01\x60\x00\x00", b"\x41\x00\x40\x00\x1a"), GROWTH_LIMIT

    def module(*bodies: bytes) -> ModuleInfo:
        framed = [leb(len(body) + 2) + b"\x00" + body + b"\x0b" for body in bodies]
        return read_module(
            b"\0asm\1\0\0\0"
            + section(1, types)
            + section(3, leb(len(bodies)) + b"\x00" * len(bodies))
            + section(5, b"\x01\x00\x01")
            + section(10, leb(len(bodies)) + b"".join(framed))
        )

    assert len(module(grow, grow * 2).growths) == 3
    assert len(module(grow * many).growths) == many
    for bodies in (
        (grow, b"\xff"),
        (b"\xff", grow),
        (grow, b"\x41\x00\x40\x01\x1a"),
        (grow * (many + 1),),
        (grow * many, grow, grow),
    ):
        assert module(*bodies).growths == ()
    # A block's type is the same byte.
    assert module(b"\x02\x40\x0b\x03\x40\x0b").growths == ()


def test_without_edits_offsets_are_as_they_were() -> None:
    """And a module without code has none to map."""
    assert UNMOVED.given(7) == 7
    empty = b"\0asm\1\0\0\0"
    assert code_offsets(empty, empty, 0).given(7) == 7


def charged(wasm: bytes) -> tuple[bytes, ModuleInfo, Any]:
    """The module in which bulk instructions are charged, and the map of its offsets."""
    info = read_module(wasm)
    edited, moves = edit_code(wasm, info, {}, bodies_offset(wasm), charge=True)
    return edited, info, code_offsets(wasm, edited, len(info.functions), moves)


LENGTHS = {
    "(i32.const 0)": 0,
    "(i32.const 63)": 63,
    "(i32.const 64)": 64,
    f"(i32.const {SHORT})": SHORT,
    f"(i32.const {SHORT + 1})": None,
    "(i32.const -1)": None,
    "(i32.const 0x7fffffff)": None,
    "(i32.add (i32.const 1) (i32.const 2))": None,
    "(local.get 65)": None,
    "(block (result i32) (i32.const 7))": None,
    "(i32.const 9) (nop)": None,
    # These end with the bytes of (i32.const 26), (i32.const 27), and (i64.const 26).
    "(local.get 0) (drop (local.get 65))": None,
    "(select (local.get 0) (local.get 1) (local.get 65))": None,
    "(local.get 0) (drop (local.get 66))": None,
    # And this one with those of (i32.const 167).
    "(i32.wrap_i64 (global.get 65)) (nop)": None,
}


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_are_constant_only_where_a_constant_is_before(length: str) -> None:
    """Bytes of other instructions that look like one are not taken for it."""
    globals_, locals_ = "(global i64 (i64.const 0))" * 66, " ".join(["i32"] * 67)
    wasm = wat(f"""(module (memory 1) {globals_} (func (local {locals_})
        (memory.fill (i32.const 0) (i32.const 1) {length}) (call 0)
        (memory.copy (i32.const 0) (i32.const 1) (local.get 1))))""")
    first, second = read_module(wasm).bulks or ()
    assert (first.length, second.length) == (LENGTHS[length], None)


BULKS = """(module (memory i64 1) (memory 1) (table 9 funcref) (table 9 funcref)
    (data "abc") (elem func 0)
    (func (param i64) (nop) (memory.fill (local.get 0) (i32.const 1) (i64.const 130)) (nop))
    (func (memory.copy (i64.const 0) (i64.const 1) (i64.const 2))
        (memory.copy 0 1 (i64.const 0) (i32.const 1) (i32.const 200))
        (memory.init 1 0 (i32.const 0) (i32.const 0) (i32.const 3))
        (if (i32.const 0) (then (table.fill 1 (i32.const 0) (ref.null func) (i32.const 9)))))
    (func (table.copy 0 1 (i32.const 0) (i32.const 1) (i32.const 5))
        (table.init 0 0 (i32.const 0) (i32.const 0) (i32.const 1))))"""


def test_instructions_of_small_constant_lengths_stay() -> None:
    """The module gets no function, and its offsets are mapped back."""
    wasm = wat(BULKS)
    edited, info, offsets = charged(wasm)
    after = read_module(edited)
    assert is_valid(edited)
    assert after.functions == info.functions
    assert info.bulks is not None
    assert after.bulks is not None
    assert [one.length for one in info.bulks] == [130, 2, 200, 3, 9, 5, 1]
    for given, made in zip(info.bulks, after.bulks, strict=True):
        assert given.code == made.code
        assert offsets.given(made.at) == given.at
        assert edited[made.end :].startswith(b"\x41\x00\x1a" * (given.length or 0))
        # The last byte of the body is where it was.
        assert offsets.given(made.body_end - 1) == given.body_end - 1
    assert len(edited) - len(wasm) < 3 * sum(one.length or 0 for one in info.bulks) + 20


def test_a_module_grows_little_by_constant_lengths() -> None:
    """Instructions beyond that become calls, which is as good."""
    fill = f"(memory.fill (i32.const 0) (i32.const 1) (i32.const {SHORT}))"
    wasm = wat(f"(module (memory 1) (func {fill * 1000}))")
    edited, info, _ = charged(wasm)
    assert is_valid(edited)
    after = read_module(edited)
    assert len(after.functions) == len(info.functions) + 2
    assert after.bulks is not None
    assert len(after.bulks) == UNITS_LIMIT // SHORT + 1
    assert len(edited) < len(wasm) + 3 * UNITS_LIMIT + 10_000
