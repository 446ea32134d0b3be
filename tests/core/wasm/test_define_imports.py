"""Imported memories, tables and globals become the module's own, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import wasmtime
from hypothesis import given, settings, strategies as st

from trio_wasmcache._core.errors import LinkError
from trio_wasmcache._core.wasm.admission import Provided, check_imports, initials_of
from trio_wasmcache._core.wasm.custom import code_offset
from trio_wasmcache._core.wasm.editor import (
    define_imports,
    encode_module,
    i32_const,
    name_bytes,
    section,
    uleb,
    vector,
)
from trio_wasmcache._core.wasm.reader import (
    HEADER,
    Export,
    FuncType,
    GlobalType,
    Import,
    Limits,
    TableType,
    read_module,
)

I64 = b"\x42\x2a\x0b"
NULL = b"\xd0\x70\x0b"
# Every place in which a constant may read an imported global, between imports that stay.
FULL = """(module
  (import "a" "f" (func $f (param i32) (result i32)))
  (import "a" "mem" (memory 1 3))
  (import "a" "base" (global $base i32))
  (import "a" "tab" (table $imported 4 9 funcref))
  (import "a" "big" (global $big i64))
  (import "a" "ref" (global $ref funcref))
  (import "a" "count" (global $count (mut i32)))
  (import "a" "g" (func $g))
  (table $own 3 funcref (global.get $ref))
  (memory $second 1)
  (global $copy i32 (global.get $base))
  (global $wide i64 (i64.add (i64.const 1) (global.get $big)))
  (global $plain i32 (i32.const 35))
  (elem (table $imported) (global.get $base) func $seven $seven)
  (elem (table $own) (i32.const 1) funcref (ref.func $seven) (global.get $ref))
  (elem declare func $f)
  (data (global.get $base) "first")
  (data (i32.add (global.get $base) (i32.const 10)) "second")
  (data (memory $second) (i32.const 0) "other")
  (export "mem" (memory 0)) (export "tab" (table 0)) (export "own" (table 1))
  (export "count" (global $count)) (export "wide" (global $wide)) (export "second" (memory 1))
  (func (export "null") (param i32 i32) (result i32)
    (if (result i32) (local.get 0)
      (then (ref.is_null (table.get $own (local.get 1))))
      (else (ref.is_null (table.get $imported (local.get 1))))))
  (func $seven (result i32) (i32.const 7))
  (func (export "run") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (i32.add (global.get $copy) (call_indirect (result i32) (i32.const 2)))))
"""
INITIALS = (i32_const(2), I64, NULL, i32_const(-3))


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def run(wasm: bytes) -> list[Any]:
    """What a module that imports two functions does and leaves behind."""
    engine = wasmtime.Engine()
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    i32 = wasmtime.ValType.i32()
    linker.define_func("a", "f", wasmtime.FuncType([i32], [i32]), lambda x: x)
    linker.define_func("a", "g", wasmtime.FuncType([], []), lambda: None)
    shown = linker.instantiate(store, wasmtime.Module(engine, wasm)).exports(store)
    found: list[Any] = [shown["run"](store), shown["run"](store), shown["count"].value(store)]
    found += [shown["wide"].value(store), shown["mem"].type(store).limits.max]
    found += [bytes(shown["mem"].read(store, 0, 24)), bytes(shown["second"].read(store, 0, 5))]
    found += [
        [bool(shown["null"](store, which, n)) for n in range(shown[name].size(store))]
        for which, name in enumerate(("tab", "own"))
    ]
    return found


def test_all_that_can_read_a_global_gets_its_value() -> None:
    """Offsets of data and elements, elements, initial values of globals and of tables."""
    wasm = wat(FULL)
    info = read_module(wasm)
    edited = define_imports(wasm, info, INITIALS)
    own = read_module(edited)
    assert [item.name for item in own.imports] == ["f", "g"]
    assert (own.memories, own.tables, own.globals) == (info.memories, info.tables, info.globals)
    assert (own.functions, own.exports) == (info.functions, info.exports)
    assert (own.imported_memories, own.imported_tables, own.imported_globals) == (0, 0, 0)
    size = next(one.end - one.start for one in info.sections if one.id == 10)
    bodies = [one[code_offset(one) :][:size] for one in (wasm, edited)]
    assert bodies[0] == bodies[1]
    data = b"\0\0first\0\0\0\0\0second".ljust(24, b"\0")
    assert run(edited) == [
        *(9, 9, -1, 43, 3, data, b"other"),
        [True, True, False, False],
        [True, False, True],
    ]


def test_a_module_without_such_imports_is_left_alone() -> None:
    """The very same bytes come back."""
    wasm = wat('(module (import "a" "f" (func)) (memory 1) (global i32 (i32.const 1)))')
    assert define_imports(wasm, read_module(wasm), ()) is wasm


def test_a_module_that_imports_nothing_else_has_no_imports_left() -> None:
    """Its section of imports is gone, and sections that it lacked are where they must be."""
    wasm = wat('(module (import "a" "m" (memory 2)) (import "a" "t" (table 1 externref)) (func))')
    assert [one.id for one in read_module(wasm).sections if one.id] == [1, 2, 3, 10]
    own = read_module(define_imports(wasm, read_module(wasm), ()))
    assert [one.id for one in own.sections if one.id] == [1, 3, 4, 5, 10]
    assert (own.memories, own.tables) == ((Limits(2),), (TableType("externref", Limits(1)),))


def test_padded_numbers_are_read_as_any() -> None:
    """Counts and limits in more bytes than they need, and an import section in five."""
    one = name_bytes("a") + name_bytes("m") + b"\2\1\x81\x80\0\x85\0"
    wasm = HEADER + section(2, b"\x81\x80\x80\x80\0" + one) + section(5, b"\x81\0\0\1")
    own = read_module(define_imports(wasm, read_module(wasm), ()))
    assert own.memories == (Limits(1, 5), Limits(1))
    assert own.imports == ()


def test_a_mutable_global_is_never_a_constant() -> None:
    """A module that reads one in a constant is no more valid than it was."""
    wasm = wat('(module (import "a" "g" (global (mut i32))) (memory 1))')
    data = section(11, b"\1\0" + b"\x23\0\x0b" + b"\1x")
    edited = define_imports(wasm + data, read_module(wasm + data), (i32_const(1),))
    assert b"\x23\0\x0b\1x" in edited
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module(wasmtime.Engine(), edited)


def test_wrong_use_is_refused() -> None:
    """Too few values, and what was read from other bytes."""
    wasm = wat(FULL)
    info = read_module(wasm)
    with pytest.raises(ValueError, match="3 values where the module imports 4 globals"):
        define_imports(wasm, info, INITIALS[:3])
    with pytest.raises(ValueError, match="info is of a module of"):
        define_imports(wasm + b"\0\1\0", info, INITIALS)


KINDS = {
    "func": st.just(FuncType()),
    "memory": st.builds(Limits, st.integers(0, 3), st.none() | st.integers(3, 9), st.just(False)),
    "table": st.builds(
        TableType,
        st.sampled_from(("funcref", "externref")),
        st.builds(Limits, st.integers(0, 9), st.none() | st.integers(9, 99), st.just(False)),
    ),
    "global": st.builds(GlobalType, st.just("i32"), st.booleans()),
}
IMPORTS = st.lists(
    st.sampled_from(sorted(KINDS)).flatmap(lambda kind: st.tuples(st.just(kind), KINDS[kind])),
    max_size=12,
)


@given(IMPORTS, st.data())
@settings(max_examples=150)
def test_index_spaces_stay_as_they_are(found: list[tuple[str, Any]], draw: st.DataObject) -> None:
    """Whatever is imported in whatever order, and wasmtime takes what comes out."""
    imports = [Import("m", f"n{at}", kind, type) for at, (kind, type) in enumerate(found)]
    count = sum(kind == "global" for kind, _ in found)
    values = [draw.draw(st.integers(-(2**31), 2**31 - 1)) for _ in range(count)]
    named = [
        Export(f"{kind}{n}", kind, n)
        for kind in KINDS
        for n in range(sum(one == kind for one, _ in found))
    ]
    wasm = encode_module(
        types=[FuncType()],
        imports=imports,
        globals=[(GlobalType("i32", False), b"\x23" + uleb(n) + b"\x0b") for n in reads(found)],
        exports=named,
        data=[(0, 0, b"x")] if any(kind == "memory" for kind, _ in found) else [],
    )
    info = read_module(wasm)
    provided = {
        ("m", item.name): Provided(item.kind, "i32" if item.kind == "global" else "", initial)
        for item, initial in zip(imports, initials(found, values), strict=True)
        if item.kind != "func"
    }
    given_ = {
        **provided,
        **{("m", item.name): FuncType() for item in imports if item.kind == "func"},
    }
    wanted = check_imports(info, "f", given_)
    assert [name for _, name in wanted] == [item.name for item in imports if item.kind == "func"]
    edited = define_imports(wasm, info, initials_of(info, given_))
    own = read_module(edited)
    assert {item.kind for item in own.imports} <= {"func"}
    for space in ("functions", "tables", "memories", "globals", "exports"):
        assert getattr(own, space) == getattr(info, space)
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, edited)
    if all(limits.minimum for limits in info.memories[:1]):
        store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
        for item in own.imports:
            linker.define_func("m", item.name, wasmtime.FuncType([], []), lambda: None)
        shown = linker.instantiate(store, module).exports(store)
        assert [shown[f"global{n}"].value(store) for n in range(count)] == values


def reads(found: list[tuple[str, Any]]) -> list[int]:
    """The imported globals that constants may read."""
    globals_ = [type for kind, type in found if kind == "global"]
    return [n for n, one in enumerate(globals_) if not one.mutable]


def initials(found: list[tuple[str, Any]], values: list[int]) -> list[bytes]:
    left = iter(values)
    return [i32_const(next(left)) if kind == "global" else b"" for kind, _ in found]


def test_one_import_twice_can_not_become_two() -> None:
    """Both would be one memory, table or variable; a constant may be there as often as it likes."""
    kinds = {
        "memory": Limits(1),
        "table": TableType("funcref", Limits(1)),
        "global": GlobalType("i32", True),
    }
    for kind, type in kinds.items():
        info = read_module(encode_module(types=[], imports=[Import("m", "n", kind, type)] * 2))
        value_type = "i32" if kind == "global" else ""
        with pytest.raises(LinkError, match=r"it imports m\.n twice"):
            check_imports(info, "f", {("m", "n"): Provided(kind, value_type, i32_const(0))})
    constant = Import("m", "n", "global", GlobalType("i32", False))
    info = read_module(encode_module(types=[], imports=[constant] * 2))
    assert check_imports(info, "f", {("m", "n"): Provided("global", "i32", i32_const(0))}) == ()


def test_sections_are_written_by_their_items() -> None:
    """A count that needs another byte than before is written anew."""
    imports = [Import("m", f"n{n}", "global", GlobalType("i64", True)) for n in range(130)]
    own = [(GlobalType("i64", False), I64)] * 120
    wasm = encode_module(types=[], imports=imports, globals=own)
    edited = define_imports(wasm, read_module(wasm), [I64] * 130)
    assert edited == HEADER + section(6, vector([b"\x7e\1" + I64] * 130 + [b"\x7e\0" + I64] * 120))
