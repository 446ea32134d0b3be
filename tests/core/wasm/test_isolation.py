"""What the sections of a module say about isolation, and the restorers that are written for it."""

from __future__ import annotations

import pytest
import wasmtime

from trio_wasmcache._core.wasm.isolation import FRESH, RESET, REUSE, obstacle, verdict
from trio_wasmcache._core.wasm.reader import GlobalType, ModuleInfo, TableType, read_module
from trio_wasmcache._core.wasm.restorer import restorer

HOST = '(import "env" "f" (func))'


def info_of(fields: str) -> ModuleInfo:
    return read_module(bytes(wasmtime.wat2wasm(f"(module {fields})")))


@pytest.mark.parametrize(
    ("fields", "starts", "given", "expected"),
    [
        ("", False, [], None),
        ('(memory 1) (data (i32.const 0) "x")', False, [], None),
        ('(memory 1) (data "x")', False, [], "data segments can be dropped"),
        ("(func $f) (elem func $f)", False, [], "element segments can be dropped"),
        ("(func $f) (elem declare func $f)", False, [], None),
        (HOST, False, [("env", "f")], None),
        (HOST, True, [("env", "f")], "its start may call host functions"),
        (HOST, True, [("env", "g")], None),
        ("(global (mut i32) (i32.const 0))" * 999 + "(table 1 funcref)", False, [], None),
        (
            "(global (mut i32) (i32.const 0))" * 999 + "(table 1 funcref)" * 2,
            False,
            [],
            "1001 mutable globals and tables, more than 1000",
        ),
        ("(global i32 (i32.const 0))" * 300, False, [], None),
    ],
)
def test_what_stands_in_the_way_of_a_reset(
    fields: str, starts: bool, given: list[tuple[str, str]], expected: str | None
) -> None:
    """What can't be undone, can't be tried, or costs too much; the rest is for the trial."""
    found = obstacle(info_of(fields), starts, given)
    assert (found is None) if expected is None else (found is not None and expected in found)


def test_verdicts() -> None:
    """They begin with what happens, and say why if that is not what was asked for."""
    assert verdict(REUSE, None).startswith("reuse: ")
    assert verdict(FRESH, None).startswith("fresh: ")
    assert verdict(RESET, None).startswith("reset: ")
    assert verdict(RESET, "it will not").startswith("fresh: ")
    assert verdict(RESET, "it will not").endswith(": it will not")


def test_a_restorer_imports_what_can_change() -> None:
    """Tables, however they may grow, and mutable globals; it has as many of its own."""
    info = info_of(
        "(table 3 9 funcref) (table 2 externref) (global i32 (i32.const 1))"
        " (global (mut i64) (i64.const 1)) (global (mut v128) (v128.const i64x2 1 1))"
        " (global (mut funcref) (ref.null func)) (global (mut externref) (ref.null extern))"
        " (global (mut f32) (f32.const 1)) (global (mut f64) (f64.const 1)) (memory 1)"
    )
    made = restorer(info)
    assert made is not None
    tables = [(0, "table", 0), (0, "table", 1)]
    globals = [(0, "global", n) for n in range(1, 7)]
    assert made.imports == (*tables, *globals)
    assert made.elements == 5
    read = read_module(made.wasm)
    assert [item.type for item in read.imports] == [
        TableType("funcref", read.tables[0].limits),
        TableType("externref", read.tables[1].limits),
        *info.globals[1:],
    ]
    assert [(it.limits.minimum, it.limits.maximum) for it in read.tables] == [
        *((3, None), (2, None)),
        *((3, 3), (2, 2)),
    ]
    assert read.globals[6:] == tuple(GlobalType(it.value_type, True) for it in info.globals[1:])
    assert (read.start, read.memories, len(read.exports)) == (0, (), 1)
    wasmtime.Module(wasmtime.Engine(), made.wasm)  # it is valid


def test_nothing_that_can_change_needs_no_restorer() -> None:
    """Memories are put back otherwise."""
    assert restorer(info_of("(memory 1) (global i32 (i32.const 1))")) is None
