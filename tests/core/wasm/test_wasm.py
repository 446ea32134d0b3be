"""The section reader, held against wasmtime and against bytes that mean harm."""

from __future__ import annotations

import contextlib
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import attrs
import pytest
import wasmtime
from counting import uncollected
from fuzz.verdict import ENGINE
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.wasm import reader
from trio_wasmcache._core.wasm.editor import clamp_maxima, name_bytes, section, uleb, vector
from trio_wasmcache._core.wasm.reader import (
    BREATHS,
    BYTES_PER_STEP,
    CONSTANT_LIMIT,
    ELEMENT_LIMIT,
    HEADER,
    ITEM_LIMITS,
    SECTION_LIMIT,
    VALUE_LIMIT,
    ExcessiveModuleError,
    Export,
    ExternType,
    FuncType,
    GlobalType,
    Import,
    Limits,
    MalformedModuleError,
    ModuleInfo,
    TableType,
    TagType,
    UnsupportedFeatureError,
    read_module,
)

EVERYTHING = """
(module
  (type $pair (func (param i32 i64) (result f64)))
  (type $none (func))
  (import "env" "twice" (func $twice (type $pair)))
  (import "env" "memory" (memory 2 5))
  (import "env" "table" (table 3 externref))
  (import "env" "counter" (global (mut i64)))
  (import "env" "base" (global i32))
  (func $start (type $none))
  (func $add (export "add") (param i64 i64) (result i64)
    local.get 0 local.get 1 i64.add)
  (func (export "many") (result i32 f32) i32.const 1 f32.const 2)
  (table $own (export "own") 4 10 funcref)
  (memory $hidden 7)
  (global $g (export "pi") f64 (f64.const 3.14))
  (global (mut v128) (v128.const i32x4 1 2 3 4))
  (global i32 (i32.add (global.get 1) (i32.const -5)))
  (start $start)
  (elem (table $own) (i32.const 0) func $add)
  (elem func $add $start)
  (elem declare func $start)
  (data (memory $hidden) (i32.const 8) "active")
  (data "passive")
  (func (memory.init $hidden 1 (i32.const 0) (i32.const 0) (i32.const 0)))
)
"""

WATS = [
    "(module)",
    EVERYTHING,
    '(module (func (export "f") (param i32 i64 f32 f64 funcref externref)))',
    '(module (func (export "f") (result i32 i64 f32 f64 funcref externref) unreachable))',
    '(module (import "a" "f" (func (param i32 f32) (result i64))) (export "g" (func 0)))',
    '(module (import "a" "m" (memory 0)) (export "m" (memory 0)))',
    '(module (import "a" "t" (table 0 7 funcref)) (import "a" "u" (table 1 externref)))',
    '(module (import "a" "g" (global f32)) (export "g" (global 0)) (export "h" (global 0)))',
    '(module (memory (export "memory") 17))',
    '(module (memory (export "none") 0 0) (memory (export "all") 65536 65536))',
    '(module (table (export "t") 0 4294967295 externref))',
    '(module (global (export "g") (mut funcref) (ref.null func)))',
    '(module (global (export "g") externref (ref.null extern)))',
    '(module (func $f) (global (export "g") funcref (ref.func $f)) (export "f" (func $f)))',
    '(module (func (export "naïve 🦀 \\00 name")) (memory (export "") 1))',
    '(module (import "" "" (func)) (import "" "" (func (param i64))))',
    '(module (func (export "loop") (loop (br 0))))',
    """(module (tag $e (export "e") (param i32)) (func $f (throw $e (i32.const 1)))
      (func (export "f") (result i32) (block $h (result i32)
        (try_table (catch $e $h) (call $f)) (i32.const 0))))""",
    '(module (import "a" "e" (tag (param i64))) (func (throw_ref (ref.null exn))))',
    '(module (memory (export "wide") i64 1 100000) (data (i64.const 3) "x") (table i64 3 funcref))',
    '(module (@custom "first" (before first) "x") (func (export "f")) (@custom "last" "yy"))',
    "(module " + "(memory 1 16)" * 40 + ")",
    "(module " + "(func)" * 300 + ")",
]


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def is_valid(wasm: bytes) -> bool:
    try:
        wasmtime.Module.validate(ENGINE, wasm)
    except wasmtime.WasmtimeError:
        return False
    return True


def read_or_refuse(wasm: bytes) -> ModuleInfo | None:
    """What the reader found, or None; lets no other exception pass, nor a wrong refusal."""
    try:
        return read_module(wasm)
    except ExcessiveModuleError:
        return None
    except MalformedModuleError as error:
        refusal = error
    assert 0 <= refusal.offset <= len(wasm)
    assert not is_valid(wasm), f"wasmtime takes what the reader refuses: {refusal}"
    return None


def value_name(value_type: wasmtime.ValType) -> str:
    # wasmtime-py prints externref as the name of the top of its hierarchy.
    return {"anyref": "externref"}.get(str(value_type), str(value_type))


def as_ours(theirs: object) -> ExternType:
    match theirs:
        case wasmtime.FuncType():
            return FuncType(
                tuple(map(value_name, theirs.params)), tuple(map(value_name, theirs.results))
            )
        case wasmtime.TableType():
            limits = theirs.limits
            return TableType(value_name(theirs.element), Limits(limits.min, limits.max))
        case wasmtime.MemoryType():
            return Limits(theirs.limits.min, theirs.limits.max, theirs.is_64)
        case wasmtime.GlobalType():
            return GlobalType(value_name(theirs.content), theirs.mutable)
        case wasmtime.TagType():
            return TagType(tuple(map(value_name, theirs.functype.params)))
    raise AssertionError(theirs)


def as_shown(ours: object) -> object:
    """The type as wasmtime-py shows it: it takes the largest maximum of a table for none."""
    if isinstance(ours, TableType) and ours.limits.maximum == ELEMENT_LIMIT:
        return TableType(ours.element, Limits(ours.limits.minimum))
    return ours


def type_of(info: ModuleInfo, export: Export) -> object:
    spaces: dict[str, Any] = {
        "func": info.functions,
        "table": info.tables,
        "memory": info.memories,
        "global": info.globals,
        "tag": info.tags,
    }
    return spaces[export.kind][export.index]


def assert_agrees_with_wasmtime(wasm: bytes, info: ModuleInfo) -> None:
    module = wasmtime.Module(ENGINE, wasm)
    theirs = [(item.module, item.name, as_ours(item.type)) for item in module.imports]
    assert [(item.module, item.name, as_shown(item.type)) for item in info.imports] == theirs
    found = [(export.name, as_ours(export.type)) for export in module.exports]
    ours = [(export.name, as_shown(type_of(info, export))) for export in info.exports]
    assert ours == found


def mentions_what_aborts(info: ModuleInfo) -> bool:
    """wasmtime-py aborts the process when asked for such a type."""
    shown = repr((info.types, info.imports, info.globals, info.tables))
    return "v128" in shown or "exnref" in shown


def module(*sections: tuple[int, bytes]) -> bytes:
    return HEADER + b"".join(section(id, payload) for id, payload in sections)


def test_the_whole_of_a_module() -> None:
    """One module that has everything gives every field."""
    wasm = wat(EVERYTHING)
    info = read_module(wasm)
    pair = FuncType(("i32", "i64"), ("f64",))
    none = FuncType()
    add = FuncType(("i64", "i64"), ("i64",))
    many = FuncType((), ("i32", "f32"))
    assert info.types == (pair, none, add, many)
    assert info.imports == (
        Import("env", "twice", "func", pair),
        Import("env", "memory", "memory", Limits(2, 5)),
        Import("env", "table", "table", TableType("externref", Limits(3))),
        Import("env", "counter", "global", GlobalType("i64", True)),
        Import("env", "base", "global", GlobalType("i32", False)),
    )
    assert info.functions == (pair, none, add, many, none)
    assert info.tables == (
        TableType("externref", Limits(3)),
        TableType("funcref", Limits(4, 10)),
    )
    assert info.memories == (Limits(2, 5), Limits(7))
    assert info.globals == (
        GlobalType("i64", True),
        GlobalType("i32", False),
        GlobalType("f64", False),
        GlobalType("v128", True),
        GlobalType("i32", False),
    )
    assert info.exports == (
        Export("add", "func", 2),
        Export("many", "func", 3),
        Export("own", "table", 1),
        Export("pi", "global", 2),
    )
    assert info.export("own") == Export("own", "table", 1)
    assert info.export("hidden") is None
    assert info.start == 1
    assert (info.imported_functions, info.imported_tables) == (1, 1)
    assert (info.imported_memories, info.imported_globals) == (1, 2)
    assert (info.element_segments, info.passive_elements) == (3, 1)
    assert (info.data_segments, info.passive_data) == (2, 1)
    ids = [found.id for found in info.sections if found.id]
    assert ids == [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11]
    [code] = [found for found in info.sections if found.id == 10]
    bodies = 4
    assert info.code_bytes == code.end - code.start - 1 - bodies  # one-byte count and sizes
    assert is_valid(wasm)


@pytest.mark.parametrize("text", WATS)
def test_imports_and_exports_agree_with_wasmtime(text: str) -> None:
    """Names, order and types of imports and exports are what wasmtime says they are."""
    wasm = wat(text)
    assert_agrees_with_wasmtime(wasm, read_module(wasm))


@pytest.mark.parametrize("text", WATS)
def test_sections_cover_the_file(text: str) -> None:
    """Each payload ends where the next section's id and size begin, up to the last byte."""
    wasm = wat(text)
    at = len(HEADER)
    for found in read_module(wasm).sections:
        size = uleb(found.end - found.start)
        assert wasm[at : found.start] == bytes([found.id]) + size
        at = found.end
    assert at == len(wasm)


def test_hidden_things_are_found() -> None:
    """Memories, tables and globals that nothing exports are in the index spaces."""
    info = read_module(
        wat(
            "(module (memory 3) (memory 4 9) (table 5 externref) (table 6 6 funcref)"
            " (global (mut i32) (i32.const 1)))"
        )
    )
    assert info.exports == ()
    assert info.memories == (Limits(3), Limits(4, 9))
    assert info.tables == (TableType("externref", Limits(5)), TableType("funcref", Limits(6, 6)))
    assert info.globals == (GlobalType("i32", True),)


def test_forty_memories_are_counted() -> None:
    """A module cannot hide its size in many memories."""
    info = read_module(wat("(module " + "(memory 256)" * 40 + ")"))
    assert sum(memory.minimum for memory in info.memories) == 40 * 256


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("(module (memory 1 2 shared))", "shared memory"),
        ('(module (import "a" "m" (memory 1 2 shared)))', "shared memory"),
        ("(module (memory 1 (pagesize 1)))", "custom page sizes"),
        ("(module (type (struct)))", "gc types"),
        ("(module (type (array i8)))", "gc types"),
        ("(module (type (sub (func))))", "gc types"),
        ("(module (type (sub final 0 (func))))", "gc types"),
        ("(module (rec (type (func)) (type (func))))", "gc types"),
        ("(module (func (param anyref)))", "gc types"),
        ("(module (func (result i31ref) unreachable))", "gc types"),
        ("(module (table 1 nullref))", "gc types"),
        ("(module (global eqref (ref.null none)))", "gc types"),
        ("(module (global externref (ref.null noextern)))", "gc types"),
        ("(module (global funcref (ref.null 0)) (type (func)))", "typed function references"),
        ("(module (global i32 (ref.i31 (i32.const 1))))", "gc types"),
        ("(module (type (func)) (func (param (ref null 0))))", "typed function references"),
        ("(module (func (param (ref func))))", "typed function references"),
        ("(module (type (func)) (type (cont 0)))", "stack switching"),
    ],
)
def test_what_is_switched_off_is_refused_by_name(text: str, feature: str) -> None:
    """The error names the feature, and wasmtime, set up as here, refuses the module too."""
    wasm = wat(text)
    with pytest.raises(UnsupportedFeatureError) as caught:
        read_module(wasm)
    assert caught.value.feature == feature
    assert str(caught.value).startswith(f"the module uses {feature}, which is switched off here")
    assert not is_valid(wasm)


def test_tags_are_read() -> None:
    """Imported ones first; an export of one has an index of its own space."""
    info = read_module(
        wat("""(module (import "a" "t" (tag (param i32))) (tag $u (param i64 f32))
        (global exnref (ref.null exn)) (table 3 exnref) (export "u" (tag $u)))""")
    )
    assert info.tags == (TagType(("i32",)), TagType(("i64", "f32")))
    assert info.imports == (Import("a", "t", "tag", TagType(("i32",))),)
    assert info.imported_tags == 1
    assert info.exports == (Export("u", "tag", 1),)
    assert info.globals == (GlobalType("exnref", False),)
    assert info.tables == (TableType("exnref", Limits(3)),)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ([(13, b"\1\1\0")], "unknown attribute 0x1 of a tag"),
        ([(13, b"\1\0\1")], "type 1 named where there are 1"),
        ([(7, vector([name_bytes("t") + b"\x04\0"]))], "tag 0 named where there are 0"),
    ],
)
def test_damaged_tags(sections: list[tuple[int, bytes]], words: str) -> None:
    """Each is refused with what is wrong, and its offset."""
    with pytest.raises(MalformedModuleError, match=words):
        read_module(module(TYPE, *sections))


def test_a_tag_with_results() -> None:
    """An exception is thrown, and returns nothing."""
    with pytest.raises(MalformedModuleError, match="a tag with results"):
        read_module(module((1, b"\1\x60\0\1\x7f"), (13, b"\1\0\0")))


@pytest.mark.parametrize(
    ("fields", "collected"),
    [
        ("(tag)", True),
        ('(import "a" "t" (tag))', True),
        ("(table 1 externref)", True),
        ("(table 1 exnref)", True),
        ("(table 1 nullexnref)", True),
        ("(global (mut externref) (ref.null extern))", True),
        ("(elem externref (ref.null extern))", True),
        ("(table 1 funcref) (elem (i32.const 0)) (global funcref (ref.null func))", False),
        ("(func (param externref) (local exnref))", False),
    ],
)
def test_who_gets_a_heap_for_references(fields: str, collected: bool) -> None:
    """`tests/engine/test_reservations` compares with what wasmtime does."""
    assert read_module(wat(f"(module {fields})")).collected is collected


def test_memories_of_64_bits() -> None:
    """They may declare more than 32-bit addresses reach, and edits leave their kind as it is."""
    info = read_module(wat("(module (memory i64 1) (memory i64 2 0x1000000000000) (memory 3))"))
    assert info.memories == (Limits(1, None, True), Limits(2, 1 << 48, True), Limits(3))
    wasm = wat('(module (memory i64 1) (memory 1) (func (export "f")))')
    edited = clamp_maxima(wasm, read_module(wasm), (5, 6), ())
    assert read_module(edited).memories == (Limits(1, 5, True), Limits(1, 6))
    assert is_valid(edited)
    with pytest.raises(MalformedModuleError, match="a memory over 281474976710656"):
        read_module(module((5, b"\1\5\0\x81\x80\x80\x80\x80\x80\x80\x40")))


TYPE = (1, b"\1\x60\0\0")
FUNCTION = (3, b"\1\0")
CODE = (10, b"\1\2\0\x0b")
TABLE = (4, b"\1\x70\0\0")
MEMORY = (5, b"\1\0\1")


@pytest.mark.parametrize(
    ("wasm", "message"),
    [
        (b"", "not a WebAssembly module but nothing: there are no bytes"),
        (b"\0asm", "not a WebAssembly module"),
        (b"\0asm\2\0\0\0", "not a WebAssembly module"),
        (b"(module)", "not a WebAssembly module"),
        (HEADER + b"\1", "1 bytes needed where 0 are left, at offset 0x9"),
        (HEADER + b"\1\5\0", "section 1 has 5 bytes, and 1 of them are there, at offset 0x9"),
        (module((14, b"")), "section 14 unknown"),
        (module(TYPE, TYPE), "section 1 unknown, repeated or out of order, at offset 0xe"),
        (module(TYPE, CODE, FUNCTION), "section 3 unknown, repeated or out of order"),
        (module(TYPE, FUNCTION, CODE, (12, b"\0")), "section 12 unknown, repeated or out of"),
        (module((1, b"\0\0")), "1 bytes too many in section 1"),
        (module((8, b"\0")), "start function 0 named where there are 0"),
        (module((0, b"")), "1 bytes needed where 0 are left"),
        (module((0, b"\2a")), "2 bytes needed where 1 are left"),
        (module((0, b"\1\xff")), "a name that is not UTF-8"),
        (module((0, b"\3\xed\xa0\x80")), "a name that is not UTF-8"),  # a surrogate
        (module((0, b"\2\xc0\x80")), "a name that is not UTF-8"),  # a zero in two bytes
        (module((1, b"\1\x61\0\0")), "unknown type 0x61"),
        (module((1, b"\1\x60\1\x40\0")), "unknown value type 0x40"),
        (module((1, b"\1\x60\xe9\7" + b"\x7f" * 1001 + b"\0")), "1001 parameters or results"),
        (module((2, b"\1\0\0\5\0")), "unknown kind 0x5"),
        (module((2, b"\1\0\0\0\0")), "type 0 named where there are 0"),
        (module(TYPE, (3, b"\1\1")), "type 1 named where there are 1"),
        (module(TYPE, FUNCTION), "1 functions declared, 0 bodies found"),
        (module(CODE), "0 functions declared, 1 bodies found"),
        (module((4, b"\1\x7f\0\0")), "i32 where a reference type is due"),
        (module((4, b"\1\x70\x08\0")), "unknown table flags 0x8"),
        (module((4, b"\1\x70\1\5\4")), "a table from 5 up to 4"),
        (module((5, b"\1\x10\0")), "unknown memory flags 0x10"),
        (module((5, b"\1\1\5\4")), "a memory from 5 up to 4"),
        (module((5, b"\1\0\x81\x80\4")), "a memory over 65536"),
        (module((5, b"\1\1\0\x81\x80\4")), "a memory over 65536"),
        (module((4, b"\1\x70\0\x80\x80\x80\x80\x10")), "a table over 4294967295"),
        (module((5, b"\1\0" + b"\x80" * 10 + b"\0")), "a number over 64 bits"),
        (module((3, b"\x80\x80\x80\x80\x80\0")), "a number over 32 bits"),
        (module((3, b"\x80\x80\x80\x80\x10")), "a number over 32 bits"),
        (module((6, b"\1\x7f\2\x41\0\x0b")), "unknown mutability 0x2"),
        (module((6, b"\1\x7f\x63\x41\0\x0b")), "unknown mutability 0x63"),  # no type: a flag
        (module((6, b"\1\x7f\0\x41\0")), "1 bytes needed where 0 are left"),
        (module((6, b"\1\x7f\0\x10\0\x0b")), "opcode 0x10 in a constant"),
        (module((6, b"\1\x7f\0\xfd\0\x0b")), "opcode 0xfd in a constant"),
        (module((6, b"\1\x7f\0\x41\xff\xff\xff\xff\x0f\x0b")), "a number over 32 bits"),
        (module((6, b"\1\x7e\0\x42" + b"\xff" * 9 + b"\1\x0b")), "a number over 64 bits"),
        (module((6, b"\1\x7e\0\x42" + b"\x80" * 10 + b"\0\x0b")), "a number over 64 bits"),
        (module((6, b"\1\x70\0\xd0\x40\x0b")), "unknown heap type 0x40"),
        (module(MEMORY, (7, b"\2\1m\2\0\1m\2\0")), "a second export named 'm'"),
        (module(MEMORY, (7, b"\1\1m\2\1")), "memory 1 named where there are 1"),
        (module((7, b"\1\1f\0\0")), "func 0 named where there are 0"),
        (module((7, b"\1\1f\x05\0")), "unknown kind 0x5"),
        (module(TABLE, (9, b"\1\x08\0\0")), "element form 8 named where there are 8"),
        (module(TABLE, (9, b"\1\1\1\0")), "unknown element kind 0x1"),
        (module(TABLE, (9, b"\1\1\0\1\0")), "function 0 named where there are 0"),
        (module((9, b"\1\2\0\x41\0\x0b\0\0")), "table 0 named where there are 0"),
        (module(TYPE, FUNCTION, (10, b"\1\3\0\x0b")), "3 bytes needed where 2 are left"),
        (module(MEMORY, (11, b"\1\3\0")), "data form 3 named where there are 3"),
        (module(MEMORY, (11, b"\1\2\1\x41\0\x0b\0")), "memory 1 named where there are 1"),
        (module(MEMORY, (11, b"\1\1\2x")), "2 bytes needed where 1 are left"),
        (module((12, b"\1")), "1 data segments declared, 0 found"),
        (module(MEMORY, (12, b"\0"), (11, b"\1\1\0")), "0 data segments declared, 1 found"),
    ],
)
def test_damage_is_described(wasm: bytes, message: str) -> None:
    """Each rule of the format has been seen to refuse, and wasmtime refuses the same bytes."""
    with pytest.raises(MalformedModuleError) as caught:
        read_module(wasm)
    assert message in str(caught.value)
    assert not isinstance(caught.value, UnsupportedFeatureError)
    assert not is_valid(wasm)


@pytest.mark.parametrize("flags", range(8))
def test_every_form_of_element_segment(flags: int) -> None:
    """All eight forms are stepped over, and only one and five are passive."""
    active = b"" if flags & 1 else (b"\0" if flags & 2 else b"") + b"\x41\0\x0b"
    if flags & 4:
        kind, items = b"\x70", b"\2\xd2\0\x0b\xd0\x70\x0b"
    else:
        kind, items = b"\0", b"\2\0\0"
    segment = bytes([flags]) + active + (kind if flags & 3 else b"") + items
    table = (4, b"\1\x70\0\2")
    wasm = module(TYPE, FUNCTION, table, (9, vector([segment, segment])), CODE)
    assert is_valid(wasm)
    info = read_module(wasm)
    assert info.element_segments == 2
    assert info.passive_elements == (2 if flags in (1, 5) else 0)
    assert (info.elements, info.passive_items) == (4, 4 if flags in (1, 5) else 0)
    assert info.extern_items == 0


@pytest.mark.parametrize("flags", [5, 6, 7])
def test_elements_that_are_no_functions(flags: int) -> None:
    """Those of active segments are counted by themselves: each is code."""
    active = b"" if flags & 1 else b"\0\x41\0\x0b"
    segment = bytes([flags]) + active + b"\x6f" + b"\2\xd0\x6f\x0b\xd0\x6f\x0b"
    table = (4, b"\1\x6f\0\2")
    wasm = module(TYPE, FUNCTION, table, (9, vector([segment, segment])), CODE)
    assert is_valid(wasm)
    info = read_module(wasm)
    assert (info.elements, info.extern_items) == (4, 4 if flags == 6 else 0)


@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("i32", "(i32.const -2147483648)"),
        ("i32", "(i32.const 2147483647)"),
        ("i64", "(i64.const -9223372036854775808)"),
        ("i64", "(i64.const 9223372036854775807)"),
        ("f32", "(f32.const nan)"),
        ("f64", "(f64.const -0x1p-1074)"),
        ("v128", "(v128.const i64x2 11 0x0b0b0b0b)"),
        ("funcref", "(ref.null func)"),
        ("externref", "(ref.null extern)"),
        ("funcref", "(ref.func 0)"),
        ("i32", "(global.get 0)"),
        ("i32", "(i32.mul (i32.sub (global.get 0) (i32.const 11)) (i32.const 11))"),
        ("i32", "(i32.add (global.get 0) (global.get 0))"),
        ("i64", "(i64.mul (i64.sub (i64.const 0) (i64.const 11)) (i64.const 11))"),
        ("i64", "(i64.add (i64.const 11) (i64.const 11))"),
    ],
)
def test_every_form_of_constant(type: str, value: str) -> None:
    """Constants are stepped over whole, though their operands may look like an end (11)."""
    wasm = wat(f'(module (import "a" "g" (global i32)) (func) (global {type} {value}))')
    assert is_valid(wasm)
    assert read_module(wasm).globals[1] == GlobalType(type, False)


@pytest.mark.parametrize("value", ["(ref.func 0)", "(ref.null func)"])
def test_tables_with_an_initial_value_are_read(value: str) -> None:
    """The long form of a table definition gives the same type as the short one."""
    info = read_module(wat(f"(module (func) (table 1 2 funcref {value}) (table 3 externref))"))
    assert info.tables == (
        TableType("funcref", Limits(1, 2)),
        TableType("externref", Limits(3)),
    )


def test_numbers_may_be_padded() -> None:
    """Compilers leave room for sizes; five bytes are fine as long as the unused bits are zero."""
    padded = b"\x81\x80\x80\x80\0"
    wasm = HEADER + b"\5\x87\x80\x80\x80\0" + padded + b"\0\1"
    assert is_valid(wasm)
    assert read_module(wasm).memories == (Limits(1),)


def test_the_largest_signature() -> None:
    """As many parameters and results as wasmtime takes are taken."""
    values = uleb(VALUE_LIMIT) + b"\x7f" * VALUE_LIMIT
    wasm = module((1, b"\1\x60" + values + values))
    assert is_valid(wasm)
    assert len(read_module(wasm).types[0].params) == VALUE_LIMIT


def test_a_module_is_a_value() -> None:
    """The same bytes give equal, hashable values that nobody can change."""
    wasm = wat(EVERYTHING)
    info = read_module(wasm)
    assert info == read_module(wasm)
    assert hash(info) == hash(read_module(wasm))
    assert pickle.loads(pickle.dumps(info)) == info
    assert info != read_module(wat("(module)"))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        info.start = 3  # type: ignore[misc]


@pytest.mark.parametrize("wasm", [b"nothing", b"\0asm\x0d\0\1\0"])
def test_errors_survive_pickling(wasm: bytes) -> None:
    """An error that crosses a process says the same there."""
    with pytest.raises(MalformedModuleError) as caught:
        read_module(wasm)
    error = caught.value
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.offset) == (str(error), error.offset)


@pytest.mark.parametrize("text", WATS)
def test_every_truncation_is_refused_or_valid(text: str) -> None:
    """A module cut off anywhere is refused, unless wasmtime takes what is left."""
    wasm = wat(text)
    for end in range(len(wasm)):
        read_or_refuse(wasm[:end])


MANY = b"\xff\xff\xff\xff\x0f"  # 2 ** 32 - 1


@pytest.mark.parametrize(
    "wasm",
    [
        *(module((id, MANY)) for id in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12)),
        *(HEADER + bytes([id]) + MANY for id in range(14)),
        module((1, b"\1\x60" + MANY)),
        module((2, b"\1" + MANY)),
        module(TABLE, (9, b"\1\0\x41\0\x0b" + MANY)),
        module(TYPE, FUNCTION, (10, b"\1" + MANY)),
        module(MEMORY, (11, b"\1\1" + MANY)),
    ],
)
def test_a_huge_count_costs_nothing(wasm: bytes) -> None:
    """Four thousand million items announced in a few bytes are refused before memory is taken."""
    tracemalloc.start()
    try:
        with pytest.raises(MalformedModuleError):
            read_module(wasm)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024  # bytes


def lines_run(step: Callable[[], object]) -> int:
    """How many lines of Python that took: a measure of time that no slow machine disturbs."""
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    with uncollected():
        sys.settrace(count)
        try:
            step()
        finally:
            sys.settrace(before)
    return lines


def repeated(item: bytes, id: int, *before: tuple[int, bytes]) -> Callable[[int], bytes]:
    return lambda size: module(*before, (id, vector([item] * (size // len(item)))))


@pytest.mark.parametrize(
    ("id", "item", "before"),
    [
        (1, b"\x60\0\0", ()),
        (2, b"\0\0\0\0", (TYPE,)),
        (4, b"\x70\0\0", ()),
        (5, b"\0\0", ()),
        (6, b"\x7f\0\x41\0\x0b", ()),
        (7, b"", (TYPE, (2, b"\1\0\0\0\0"))),
        (9, b"\1\0\0", ()),
        (11, b"\1\0", ()),
    ],
)
def test_what_is_kept_is_bounded(id: int, item: bytes, before: tuple[Any, ...]) -> None:
    """As many items as the limit says are read; one more is refused before any of them is."""
    limit = ITEM_LIMITS[id]
    items = [item or name_bytes(str(number)) + b"\0\0" for number in range(limit + 1)]
    read_module(module(*before, (id, vector(items[:-1]))))
    with pytest.raises(ExcessiveModuleError, match=f"{limit + 1} .*s, more than {limit}"):
        read_module(module(*before, (id, vector(items))))


def test_sections_are_counted_too() -> None:
    """Custom ones cost three bytes each."""
    assert len(read_module(module(*[(0, b"\0")] * SECTION_LIMIT)).sections) == SECTION_LIMIT
    with pytest.raises(ExcessiveModuleError, match=f"more than {SECTION_LIMIT} sections"):
        read_module(module(*[(0, b"\0")] * (SECTION_LIMIT + 1)))


@pytest.mark.parametrize(
    "grown",
    [
        repeated(b"\x60\0\0", 1),
        repeated(b"\0\0\0\0", 2, TYPE),
        repeated(b"\0", 3, TYPE),
        repeated(b"\x40\0\x70\0\0\x0b", 4),
        repeated(b"\0\1", 5),
        repeated(b"\x7f\0\x6a\x6a\x6a\x0b", 6),
        repeated(b"\1\0\0", 9),
        repeated(b"\1\0", 11),
        lambda size: module(*[(0, b"\0")] * (size // 3)),
        lambda size: module((6, b"\1\x7f\0" + b"\x6a" * size)),
        lambda size: module((0, uleb(size) + b"x" * size)),
        lambda size: module(
            (1, b"\1\x60" + vector([b"\x7f"] * 1000) + b"\0"), (3, vector([b"\0"] * size))
        ),
        lambda size: module(
            TYPE,
            (2, b"\1\0\0\0\0"),
            (7, vector([name_bytes(str(i)) + b"\0\0" for i in range(size // 6)])),
        ),
    ],
)
def test_steps_and_memory_grow_with_the_bytes(grown: Callable[[int], bytes]) -> None:
    """Ten times the hostile bytes take ten times the steps, and a bounded number of bytes each."""
    small, large = grown(2_000), grown(20_000)
    few, many = (lines_run(partial(read_or_refuse, wasm)) for wasm in (small, large))
    assert many < 12 * few + 1000
    tracemalloc.start()
    try:
        read_or_refuse(large)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 * len(large) + 64 * 1024


@pytest.mark.parametrize(
    "wasm",
    [
        repeated(b"\x60\0\0", 1)(30_000),
        module(TYPE, FUNCTION, TABLE, (9, b"\1\1\0" + uleb(10_000) + b"\0" * 10_000)),
        module((6, vector([b"\x7f\0\x41\0" + b"\x41\0\x6a" * 499 + b"\x0b"] * 10))),
        module(*[(0, b"\0")] * 10_000),
        module(TYPE, FUNCTION, (10, vector([b"\xa2\x9c\1" + b"\x90\x4e" + b"\0\x7f" * 10_000]))),
    ],
    ids=["items", "elements", "constants", "sections", "locals"],
)
def test_a_large_module_is_read_in_small_steps(wasm: bytes) -> None:
    """Others get the interpreter now and then: after a few hundred of whatever there is much of."""
    breaths = 0

    def breathe() -> None:
        nonlocal breaths
        breaths += 1

    with contextlib.suppress(MalformedModuleError):
        read_module(wasm, breathe)
    assert 10_000 / BREATHS - 1 <= breaths <= 2 * 10_000 / BREATHS + 10


def sized(body: bytes) -> bytes:
    return uleb(len(body)) + body


BOMBS: dict[str, Callable[[int], bytes]] = {
    "functions": lambda n: module(TYPE, (3, vector([b"\0"] * n))),
    "bodies": lambda n: module(TYPE, FUNCTION, (10, vector([b"\0"] * n))),
    "types of many values": lambda n: module(
        (1, vector([b"\x60" + vector([b"\x7f"] * 1000) + b"\0"] * (n // 1000)))
    ),
    "indexes": lambda n: module(TYPE, FUNCTION, (9, b"\1\1\0" + vector([b"\0"] * n))),
    "padded indexes": lambda n: module(
        TYPE, FUNCTION, (9, b"\1\1\0" + vector([b"\x80\0"] * (n // 2)))
    ),
    "references": lambda n: module(
        TYPE, FUNCTION, (9, b"\1\5\x70" + vector([b"\xd2\0\x0b"] * (n // 3)))
    ),
    "segments of references": lambda n: module(
        TYPE, FUNCTION, (9, vector([b"\5\x70\1\xd2\0\x0b"] * (n // 6)))
    ),
    "groups of locals": lambda n: module(
        TYPE, FUNCTION, (10, vector([sized(uleb(n // 2) + b"\0\x7f" * (n // 2) + b"\x0b")]))
    ),
    "jump tables": lambda n: module(
        TYPE, FUNCTION, (10, vector([sized(b"\0" + b"\x41\0\x0e\0\0" * (n // 5) + b"\x0b")]))
    ),
    "constants of the longest": lambda n: module(
        (6, vector([b"\x7f\0" + b"\x6a" * CONSTANT_LIMIT + b"\x0b"] * (n // CONSTANT_LIMIT)))
    ),
    "offsets": lambda n: module(MEMORY, (11, vector([b"\0\x41\0\x0b\0"] * (n // 5)))),
    "initial values": lambda n: module(
        (4, vector([b"\x40\0\x70\0\0" + b"\x6a" * (n // 100) + b"\x0b"] * 99))
    ),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_reading_ends_within_its_steps(
    bomb: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a module is full of, it is refused after few lines of Python: under three a byte."""
    monkeypatch.setattr("trio_wasmcache._core.wasm.reader.STEPS", 1000)
    wasm = bomb(200_000)
    limit = 1000 + len(wasm) // BYTES_PER_STEP
    assert lines_run(partial(read_or_refuse, wasm)) < 40 * limit < 3 * len(wasm)
    with pytest.raises((ExcessiveModuleError, MalformedModuleError)):
        read_module(wasm)


def test_a_constant_expression_is_short() -> None:
    """One of `CONSTANT_LIMIT` instructions is read; a longer one is refused where it begins."""
    instructions = b"\x41\0" + b"\x41\0\x6a" * ((CONSTANT_LIMIT - 1) // 2)
    one = module((6, b"\1\x7f\0" + instructions + b"\x0b"))
    read_module(one)
    with pytest.raises(MalformedModuleError, match=r"more than 1000 instructions, at offset 0x\w+"):
        read_module(module((6, b"\1\x7f\0" + instructions + b"\x41\0\x6a\x0b")))


raw_sections = st.lists(
    st.builds(section, st.integers(0, 14), st.binary(max_size=24)), max_size=6
).map(b"".join)
seeds = st.sampled_from([wat(text) for text in WATS if len(text) < 2000])


@st.composite
def mutated_modules(draw: st.DrawFn) -> bytes:
    """A good module with some bytes changed, cut out or put in."""
    wasm = bytearray(draw(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(wasm)))
        end = min(len(wasm), at + draw(st.integers(0, 3)))
        wasm[at:end] = draw(st.binary(max_size=3))
    return bytes(wasm)


@tries(300)
@given(st.binary(max_size=200) | st.binary(max_size=200).map(HEADER.__add__))
def test_random_bytes(wasm: bytes) -> None:
    """Noise is refused as malformed, never in another way."""
    read_or_refuse(wasm)


@tries(500)
@given(raw_sections)
def test_random_sections(sections: bytes) -> None:
    """So is noise that is cut into sections of the right size."""
    read_or_refuse(HEADER + sections)


@tries(1000)
@given(mutated_modules())
def test_mutated_modules(wasm: bytes) -> None:
    """A damaged module is refused, or else read: and if wasmtime takes it, read the same way."""
    info = read_or_refuse(wasm)
    if info is not None and is_valid(wasm) and not mentions_what_aborts(info):
        assert_agrees_with_wasmtime(wasm, info)


def outcome(wasm: bytes) -> object:
    """What reading a module gives: its declarations, or the error."""
    try:
        return read_module(wasm)
    except (MalformedModuleError, ExcessiveModuleError) as error:
        return type(error), str(error)


@tries(500)
@given(mutated_modules())
def test_plain_bodies_are_read_as_others_are(wasm: bytes) -> None:
    """The short way for most functions gives what the long one does, and refuses the same."""
    found = outcome(wasm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader._Reader, "plain_bodies", lambda self, count: 0)
        patch.setattr(reader._Reader, "plain_functions", lambda self, count: 0)
        assert outcome(wasm) == found


def test_a_function_takes_few_lines() -> None:
    """Most functions of real modules are plain: a size, some locals, and a run of instructions."""
    body = b"\1\2\x7f" + b"\x20\0\x41\1\x6a\x21\0" * 30 + b"\x0b"
    wasm = module(TYPE, (3, vector([b"\0"] * 500)), (10, vector([sized(body)] * 500)))
    read_module(wasm)  # makes the pattern
    assert lines_run(partial(read_module, wasm)) < 31 * 500
