"""The section writer: what it writes is compiled and run by wasmtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import wasmtime
from hypothesis import given, strategies as st

from trio_wasmcache._core.wasm.editor import (
    add_exports,
    clamp_maxima,
    encode_module,
    i32_const,
    name_bytes,
    rename_imports,
    section,
    sleb,
    uleb,
    vector,
)
from trio_wasmcache._core.wasm.reader import (
    HEADER,
    Cursor,
    Export,
    FuncType,
    GlobalType,
    Import,
    Limits,
    TableType,
    read_module,
)

ENGINE = wasmtime.Engine()
HIDDEN = """
(module
  (func $double (param i32) (result i32) local.get 0 local.get 0 i32.add)
  (table $t 2 8 funcref)
  (memory 1 9)
  (global $g (mut i32) (i32.const 42))
  (elem (table $t) (i32.const 0) func $double)
  (data (i32.const 0) "hidden")
  %s
)
"""


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def instantiate(wasm: bytes) -> tuple[wasmtime.Store, Any]:
    store = wasmtime.Store(ENGINE)
    instance = wasmtime.Instance(store, wasmtime.Module(ENGINE, wasm), [])
    return store, instance.exports(store)


def payloads(wasm: bytes, *, without: Sequence[int] = ()) -> list[tuple[int, bytes]]:
    sections = read_module(wasm).sections
    return [(one.id, wasm[one.start : one.end]) for one in sections if one.id not in without]


@given(st.integers(0, 2**64 - 1))
def test_unsigned_numbers_come_back(number: int) -> None:
    """What `uleb` writes is read back as the same number, to the last byte."""
    written = uleb(number)
    cursor = Cursor(written, 0, len(written))
    assert cursor.number(64) == number
    assert cursor.at == len(written)


@given(st.integers(-(2**63), 2**63 - 1))
def test_signed_numbers_come_back(number: int) -> None:
    """What `sleb` writes is read back as the same number, to the last byte."""
    written = sleb(number)
    cursor = Cursor(written, 0, len(written))
    assert cursor.number(64, signed=True) == number
    assert cursor.at == len(written)


def test_the_small_parts() -> None:
    """Numbers, names, vectors and sections look as the specification says."""
    assert [uleb(n) for n in (0, 127, 128, 624485)] == [b"\0", b"\x7f", b"\x80\1", b"\xe5\x8e\x26"]
    assert [sleb(n) for n in (0, 63, 64, -1, -64, -65, -123456)] == [
        b"\0", b"\x3f", b"\xc0\0", b"\x7f", b"\x40", b"\xbf\x7f", b"\xc0\xbb\x78",
    ]  # fmt: skip
    assert name_bytes("é") == b"\2\xc3\xa9"
    assert vector([b"ab", b"c"]) == b"\2abc"
    assert section(5, b"\0") == b"\5\1\0"
    with pytest.raises(ValueError, match="an unsigned number cannot be -1"):
        uleb(-1)
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        i32_const(1 << 32)


@pytest.mark.parametrize(
    "own",
    [
        "",
        '(export "own" (func $double))',
        '(start $s) (func $s) (@custom "note" "x")',
        '(@custom "dylink" (before first) "x") (export "own" (memory 0))',
    ],
)
def test_added_exports_work(own: str) -> None:
    """Hidden functions, tables, memories and globals can be used; all else is as it was."""
    wasm = wat(HIDDEN % own)
    info = read_module(wasm)
    exports = [
        Export("call", "func", 0),
        Export("slots", "table", 0),
        Export("bytes", "memory", 0),
        Export("number", "global", 0),
    ]
    edited = add_exports(wasm, info, exports)
    assert read_module(edited).exports == (*info.exports, *exports)
    assert payloads(edited, without=[7]) == payloads(wasm, without=[7])
    store, shown = instantiate(edited)
    assert shown["call"](store, 21) == 42
    assert shown["slots"].get(store, 0)(store, 4) == 8
    assert bytes(shown["bytes"].read(store, 0, 6)) == b"hidden"
    assert shown["number"].value(store) == 42


def test_a_new_export_section_goes_where_it_must() -> None:
    """It comes after the sections that go first, and before the custom ones at the end."""
    wasm = encode_module(types=(), memories=[Limits(1)], custom=[("name", b"")])
    edited = add_exports(wasm, read_module(wasm), [Export("m", "memory", 0)])
    assert [one.id for one in read_module(edited).sections] == [5, 7, 0]
    wasm = wat(HIDDEN % "(func $s) (start $s)")
    edited = add_exports(wasm, read_module(wasm), [Export("m", "memory", 0)])
    ids = [one.id for one in read_module(edited).sections]
    assert [id for id in ids if id] == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_many_exports_are_added() -> None:
    """Counts and sizes of more than one byte are written right."""
    wasm = wat(HIDDEN % '(export "own" (func 0))')
    exports = [Export(f"again {n}", "func", 0) for n in range(1000)]
    edited = add_exports(wasm, read_module(wasm), exports)
    store, shown = instantiate(edited)
    assert shown["again 999"](store, 2) == 4
    assert len(read_module(edited).exports) == 1001


def test_a_padded_export_count_is_replaced() -> None:
    """An old count that takes five bytes leaves nothing behind."""
    one = b"\x81\x80\x80\x80\0" + name_bytes("m") + b"\2\0"
    wasm = HEADER + section(5, b"\1\0\1") + section(7, one)
    edited = add_exports(wasm, read_module(wasm), [Export("n", "memory", 0)])
    assert [export.name for export in read_module(edited).exports] == ["m", "n"]
    instantiate(edited)


def test_no_exports_change_nothing() -> None:
    """Without anything to add, the very same bytes come back."""
    for wasm in (HEADER, wat(HIDDEN % ""), wat(HIDDEN % '(export "own" (func 0))')):
        assert add_exports(wasm, read_module(wasm), []) == wasm


@pytest.mark.parametrize(
    ("exports", "message"),
    [
        ([Export("own", "memory", 0)], "the module already exports 'own'"),
        ([Export("a", "func", 0), Export("a", "func", 0)], "the module already exports 'a'"),
        ([Export("a", "func", 1)], "cannot export func 1 as 'a': the module has 1"),
        ([Export("a", "memory", -1)], "cannot export memory -1 as 'a': the module has 1"),
    ],
)
def test_exports_that_would_break_the_module(exports: list[Export], message: str) -> None:
    """A name that is taken, or an index with nothing behind it, is refused."""
    wasm = wat(HIDDEN % '(export "own" (func $double))')
    with pytest.raises(ValueError, match="export") as caught:
        add_exports(wasm, read_module(wasm), exports)
    assert str(caught.value) == message


def test_info_of_another_module_is_refused() -> None:
    """Offsets of one module are never used on the bytes of another."""
    wasm = wat(HIDDEN % "")
    other = read_module(HEADER)
    with pytest.raises(ValueError, match="info is of a module of 8 bytes, not of these"):
        add_exports(wasm, other, [])
    with pytest.raises(ValueError, match="info is of a module of 8 bytes, not of these"):
        clamp_maxima(wasm, other, [], [])


TWO_OF_EACH = """
(module
  (func $f)
  (memory (export "m") 1)
  (memory (export "n") 1 3)
  (table (export "t") 2 externref)
  (table (export "u") 2 300 funcref %s)
  (func (export "grow") (result i32) (memory.grow 0 (i32.const 1)))
)
"""


@pytest.mark.parametrize("initial", ["", "(ref.func $f)", "(ref.null func)"])
def test_clamped_memories_and_tables_stop_there(initial: str) -> None:
    """wasmtime holds them to the new maxima, also a table that has an initial value."""
    wasm = wat(TWO_OF_EACH % initial)
    edited = clamp_maxima(wasm, read_module(wasm), [2, 2], [5, 200])
    info = read_module(edited)
    assert info.memories == (Limits(1, 2), Limits(1, 2))
    assert [table.limits for table in info.tables] == [Limits(2, 5), Limits(2, 200)]
    assert payloads(edited, without=[4, 5]) == payloads(wasm, without=[4, 5])
    store, shown = instantiate(edited)
    assert [shown["grow"](store) for _ in range(2)] == [1, -1]
    assert shown["t"].grow(store, 3, None) == 2
    with pytest.raises(wasmtime.WasmtimeError):
        shown["t"].grow(store, 1, None)
    is_function = isinstance(shown["u"].get(store, 1), wasmtime.Func)
    assert is_function == (initial == "(ref.func $f)")


def test_maxima_are_only_taken_down() -> None:
    """None leaves one as it is, and so does a maximum that is not under the declared one."""
    wasm = wat(TWO_OF_EACH % "")
    info = read_module(wasm)
    assert clamp_maxima(wasm, info, [None, None], [None, None]) == wasm
    assert clamp_maxima(wasm, info, [None, 3], [None, 301]) == wasm
    edited = read_module(clamp_maxima(wasm, info, [None, 2], [None, None]))
    assert edited.memories == (Limits(1), Limits(1, 2))
    assert edited.tables == info.tables


def test_imported_memories_and_tables_are_not_counted() -> None:
    """The maxima are those of the module's own; imports stay as declared."""
    wasm = wat(
        '(module (import "a" "m" (memory 1)) (import "a" "t" (table 1 funcref))'
        " (memory 2) (table 3 funcref))"
    )
    info = read_module(clamp_maxima(wasm, read_module(wasm), [4], [5]))
    assert info.memories == (Limits(1), Limits(2, 4))
    assert [table.limits for table in info.tables] == [Limits(1), Limits(3, 5)]


@pytest.mark.parametrize(
    ("memories", "tables", "message"),
    [
        ([0, None], [None, None], "a memory starts with 1, over its new maximum 0"),
        ([None, None], [1, None], "a table starts with 2, over its new maximum 1"),
        ([1], [None, None], "1 memory maxima where the module defines 2"),
        ([None, None], [1, 1, 1], "3 table maxima where the module defines 2"),
    ],
)
def test_maxima_that_do_not_fit(
    memories: list[int | None], tables: list[int | None], message: str
) -> None:
    """A maximum under the size at start, or one too many or few, is refused."""
    wasm = wat(TWO_OF_EACH % "")
    with pytest.raises(ValueError, match="maxim") as caught:
        clamp_maxima(wasm, read_module(wasm), memories, tables)
    assert str(caught.value) == message


def test_both_edits_one_after_the_other() -> None:
    """An edited module is a module: read again, it can be edited again."""
    wasm = wat(HIDDEN % "")
    wasm = clamp_maxima(wasm, read_module(wasm), [2], [3])
    wasm = add_exports(wasm, read_module(wasm), [Export("m", "memory", 0)])
    store, shown = instantiate(wasm)
    with pytest.raises(wasmtime.WasmtimeError):
        shown["m"].grow(store, 2)


def test_a_module_from_its_parts() -> None:
    """The encoder's module compiles, runs, and is read back as what was given."""
    unary = FuncType(("i32",), ("i32",))
    none = FuncType()
    imports = (
        Import("env", "f", "func", unary),
        Import("env", "t", "table", TableType("externref", Limits(0, 4))),
        Import("env", "m", "memory", Limits(1)),
        Import("env", "g", "global", GlobalType("i64", True)),
    )
    exports = (Export("run", "func", 2), Export("memory", "memory", 1), Export("g", "global", 1))
    # Bodies: no locals; the start function copies passive data; run is f(number) through a table.
    fill = b"\0\x41\0\x41\0\x41\2\xfc\x08\1\1\x0b"
    run = b"\0\x20\0\x41\3\x11\0\1\x0b"
    wasm = encode_module(
        types=[unary, none],
        imports=imports,
        functions=[1, 0],
        tables=[TableType("funcref", Limits(4))],
        memories=[Limits(1, 2)],
        globals=[(GlobalType("i32", False), i32_const(-7))],
        exports=exports,
        start=1,
        elements=[(1, 3, [0]), (None, 0, [1, 2])],
        data=[(1, 4, b"four"), (None, 0, b"ab"), (0, 65_535, b"z")],
        code=[fill, run],
        custom=[("note", b"hello")],
    )
    info = read_module(wasm)
    assert info.types == (unary, none)
    assert info.imports == imports
    assert info.functions == (unary, none, unary)
    assert info.tables[1] == TableType("funcref", Limits(4))
    assert info.memories == (Limits(1), Limits(1, 2))
    assert info.globals[1] == GlobalType("i32", False)
    assert info.exports == exports
    assert info.start == 1
    assert (info.element_segments, info.passive_elements) == (2, 1)
    assert (info.data_segments, info.passive_data) == (3, 1)
    assert info.code_bytes == len(fill) + len(run)
    assert payloads(wasm)[-1] == (0, name_bytes("note") + b"hello")

    store = wasmtime.Store(ENGINE)
    given: list[Any] = [
        wasmtime.Func(
            store,
            wasmtime.FuncType([wasmtime.ValType.i32()], [wasmtime.ValType.i32()]),
            lambda number: number * 3,
        ),
        wasmtime.Table(
            store,
            wasmtime.TableType(wasmtime.ValType.externref(), wasmtime.Limits(0, 4)),
            None,
        ),
        wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(1, None))),
        wasmtime.Global(
            store,
            wasmtime.GlobalType(wasmtime.ValType.i64(), True),
            wasmtime.Val.i64(0),
        ),
    ]
    shown = wasmtime.Instance(store, wasmtime.Module(ENGINE, wasm), given).exports(store)
    memory: Any = shown["memory"]
    assert bytes(memory.read(store, 0, 8)) == b"ab\0\0four"
    assert given[2].read(store, 65_535, 65_536) == b"z"
    run_export: Any = shown["run"]
    assert run_export(store, 5) == 15
    number: Any = shown["g"]
    assert number.value(store) == -7


def test_an_empty_module() -> None:
    """Without parts there is only the header."""
    assert encode_module(types=()) == HEADER


def test_offsets_over_half_the_address_space() -> None:
    """An offset is unsigned though the constant is not."""
    wasm = encode_module(
        types=(), memories=[Limits(65_536)], data=[(0, 2**32 - 4, b"last")],
        exports=[Export("m", "memory", 0)],
    )  # fmt: skip
    store, shown = instantiate(wasm)
    assert bytes(shown["m"].read(store, 2**32 - 4, 2**32)) == b"last"


def test_an_imported_function_needs_its_type() -> None:
    """A signature that is not among the types is refused, not written as something else."""
    item = Import("a", "f", "func", FuncType(("i64",)))
    with pytest.raises(ValueError, match="not among the types"):
        encode_module(types=[FuncType()], imports=[item])


value_types = st.sampled_from(["i32", "i64", "f32", "f64", "v128", "funcref", "externref"])
func_types = st.builds(
    FuncType,
    st.lists(value_types, max_size=5).map(tuple),
    st.lists(value_types, max_size=3).map(tuple),
)
pages = st.builds(
    lambda least, more: Limits(least, more and least + more),
    st.integers(0, 9),
    st.none() | st.integers(1, 300),
)
table_types = st.builds(TableType, st.sampled_from(["funcref", "externref"]), pages)
kinds = st.sampled_from(["func", "table", "memory", "global"])


@st.composite
def modules(draw: st.DrawFn) -> bytes:
    """Any module the encoder can write, with functions that only trap."""
    types = draw(st.lists(func_types, min_size=1, max_size=4))
    makers: dict[str, st.SearchStrategy[Any]] = {
        "func": st.sampled_from(types),
        "table": table_types,
        "memory": pages,
        "global": st.builds(GlobalType, value_types, st.booleans()),
    }
    imports = [
        Import(draw(st.text(max_size=3)), draw(st.text(max_size=3)), kind, draw(makers[kind]))
        for kind in draw(st.lists(kinds, max_size=4))
    ]
    functions = draw(st.lists(st.integers(0, len(types) - 1), max_size=4))
    tables = draw(st.lists(table_types, max_size=3))
    memories = draw(st.lists(pages, max_size=3))
    numbers = draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3))
    return encode_module(
        types=types,
        imports=imports,
        functions=functions,
        tables=tables,
        memories=memories,
        globals=[(GlobalType("i32", True), i32_const(number)) for number in numbers],
        code=[b"\0\0\x0b"] * len(functions),  # unreachable
        custom=draw(st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=3)), max_size=2)),
    )


@given(modules(), st.data())
def test_any_module_can_be_edited(wasm: bytes, data: st.DataObject) -> None:
    """Exports of all and maxima for all leave a valid module that differs in nothing else."""
    info = read_module(wasm)
    wasmtime.Module.validate(ENGINE, wasm)
    spaces = {
        "func": info.functions,
        "table": info.tables,
        "memory": info.memories,
        "global": info.globals,
    }
    exports = [
        Export(f"{kind} {index}", kind, index)
        for kind, space in spaces.items()
        for index in range(len(space))
    ]
    over = st.none() | st.integers(9, 400)
    own_memories = info.memories[info.imported_memories :]
    own_tables = [table.limits for table in info.tables[info.imported_tables :]]
    memories = [data.draw(over) for _ in own_memories]
    tables = [data.draw(over) for _ in own_tables]

    edited = clamp_maxima(wasm, info, memories, tables)
    edited = add_exports(edited, read_module(edited), exports)

    wasmtime.Module.validate(ENGINE, edited)
    after = read_module(edited)
    assert after.exports == tuple(exports)
    assert payloads(edited, without=[4, 5, 7]) == payloads(wasm, without=[4, 5, 7])
    pairs = [
        *zip(own_memories, after.memories[info.imported_memories :], memories, strict=True),
        *zip(own_tables, [t.limits for t in after.tables[info.imported_tables :]], tables,
             strict=True),
    ]  # fmt: skip
    for old, new, maximum in pairs:
        known = [limit for limit in (old.maximum, maximum) if limit is not None]
        assert new == Limits(old.minimum, min(known, default=None))


def test_imports_are_renamed() -> None:
    """Of every kind, some of them, and nothing else changes."""
    text = """(module
      (import "a" "f" (func (param i32))) (import "a" "t" (table 1 funcref))
      (import "a" "m" (memory 1 2)) (import "b" "g" (global (mut i64)))
      (import "a" "f" (func (param i32)))
      (func (export "x") (call 0 (i32.const 1))))"""
    wasm = bytes(wasmtime.wat2wasm(text))
    names = {("a", "f"): ("long" * 50, "é"), ("b", "g"): ("", ""), ("a", "m"): ("a", "n")}
    renamed = rename_imports(wasm, names)
    before, after = read_module(wasm), read_module(renamed)
    assert [(one.module, one.name) for one in after.imports] == [
        names.get((one.module, one.name), (one.module, one.name)) for one in before.imports
    ]
    assert [one.type for one in after.imports] == [one.type for one in before.imports]
    assert rename_imports(renamed, {new: old for old, new in names.items()}) == wasm
    alone = bytes(wasmtime.wat2wasm("(module)"))
    assert rename_imports(alone, names) == alone
