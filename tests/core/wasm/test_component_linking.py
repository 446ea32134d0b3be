"""Core instances of a component as parts of a graph, with a module in front of them."""

from __future__ import annotations

import pytest
import wasmtime
from attrs import evolve

from trio_wasmcache._core.wasm.component.linking import FRONT, Linked, link_instances
from trio_wasmcache._core.wasm.component.reader import read_component
from trio_wasmcache._core.wasm.component.types import BuiltIn, CoreExport, Lifted, Lowered
from trio_wasmcache._core.wasm.editor import encode_module, find_references, keep_exports
from trio_wasmcache._core.wasm.encoding import uleb
from trio_wasmcache._core.wasm.graph import FromHost, FromPart, Graph, Part, Source, join_layers
from trio_wasmcache._core.wasm.reader import MalformedModuleError, read_module
from trio_wasmcache._core.wasm.types import Export, FuncType

TWO = """
(core module $memory
  (memory (export "memory") 1 3)
  (table (export "table") 2 2 funcref)
  (global (export "top") (mut i32) (i32.const 8))
  (func (export "realloc") (param i32 i32 i32 i32) (result i32) (unreachable)))
(core module $user
  (import "env" "memory" (memory 1))
  (import "env" "table" (table 2 funcref))
  (import "env" "top" (global (mut i32)))
  (func (export "f") (result i32) (i32.const 0))
  (func (export "realloc") (result i32) (unreachable)))
(core instance $a (instantiate $memory))
(core instance $b (instantiate $user (with "env" (instance $a))))
(core instance $c (instantiate $user (with "env" (instance
  (export "memory" (memory $a "memory")) (export "table" (table $a "table"))
  (export "top" (global $a "top"))))))
"""
LIFT = """
(func $f (result string) (canon lift (core func $c "f")
  (memory (core memory $a "memory")) (realloc (core func $a "realloc"))))
(export "f" (func $f))
"""


def linked(text: str, *, more: tuple[str, ...] = ()) -> tuple[Linked, list[Lowered | BuiltIn]]:
    """A component, given as fields of its text, and the functions that had to be supplied."""
    wasm = bytes(wasmtime.wat2wasm(f"(component {text})"))
    component = read_component(wasm)
    needed: list[CoreExport] = []
    for one in component.exports:
        assert isinstance(one.function, Lifted)
        options = one.function.options
        given = (one.function.core, options.memory, options.realloc, options.post_return)
        needed += [item for item in given if item is not None]
    needed += [CoreExport(component.instances[-1], name, "func") for name in more]
    asked: list[Lowered | BuiltIn] = []

    def supply(
        item: Lowered | BuiltIn, wanted: FuncType, locate: object
    ) -> tuple[tuple[Part, ...], Source]:
        asked.append(item)
        return (), FromHost(len(asked) - 1)

    return link_instances(component, wasm, needed, supply), asked


def graph_of(found: Linked) -> Graph:
    """The graph, which checks how its parts are linked."""
    return join_layers(found.front, read_module(found.front), [found.layer], {})


def test_each_instance_is_a_part() -> None:
    """They share what they import; the front exports what the functions need."""
    found, asked = linked(TWO + LIFT)
    assert not asked
    first, second, third = found.layer.parts
    assert (first.wiring, first.links) == ({}, 0)
    assert second.wasm == third.wasm
    assert evolve(second.info, exports=third.info.exports) == third.info
    # Nobody imports the function of the other instance.
    assert (len(second.info.exports), len(third.info.exports)) == (0, 1)
    shared = {("env", name): FromPart("instance 0", name) for name in ("memory", "table", "top")}
    assert second.wiring == third.wiring == shared
    assert first.offset != second.offset == third.offset
    assert found.layer.supplies == {
        (FRONT, "f"): FromPart("instance 2", "f"),
        (FRONT, "memory"): FromPart("instance 0", "memory"),
        (FRONT, "realloc"): FromPart("instance 0", "realloc"),
    }
    graph = graph_of(found)
    assert [part.name for part in graph.parts] == ["instance 0", "instance 1", "instance 2", ""]
    front = graph.user.info
    assert front.functions == (FuncType((), ("i32",)), FuncType(("i32",) * 4, ("i32",)))
    assert [(one.name, one.kind) for one in front.exports] == [
        ("f", "func"), ("memory", "memory"), ("realloc", "func"),
    ]  # fmt: skip


def test_names_that_are_taken_get_a_number() -> None:
    """So that functions of several instances are there by any name."""
    found, _ = linked(TWO + LIFT, more=("realloc",))
    names = list(found.names.values())
    assert names == ["f", "memory", "realloc", "2:realloc"]
    exports = graph_of(found).user.info.exports
    assert [one.name for one in exports] == names


def test_functions_of_the_host_are_asked_for_once() -> None:
    """Each one, however many instances import it, and by what names."""
    found, asked = linked(
        """
        (import "host" (func $host (param "x" u32)))
        (core func $lowered (canon lower (func $host)))
        (type $thing (resource (rep i32)))
        (core func $drop (canon resource.drop $thing))
        (core module $m
          (import "a" "b" (func (param i32)))
          (import "a" "c" (func (param i32))))
        (core instance (instantiate $m (with "a" (instance
          (export "b" (func $lowered)) (export "c" (func $drop))))))
        (core instance (instantiate $m (with "a" (instance
          (export "b" (func $lowered)) (export "c" (func $lowered))))))
        """
    )
    assert [type(item) for item in asked] == [Lowered, BuiltIn]
    assert [dict(part.wiring) for part in found.layer.parts] == [
        {("a", "b"): FromHost(0), ("a", "c"): FromHost(1)},
        {("a", "b"): FromHost(0), ("a", "c"): FromHost(0)},
    ]


def test_exports_that_no_part_imports_are_left_out() -> None:
    """Of functions and globals; those to which code refers must stay, memories and tables may."""
    found, _ = linked(
        TWO.replace(
            '(table (export "table")',
            """(func $idle (export "idle")) (func $referred (export "referred"))
            (func (export "more") (drop (ref.func $referred)))
            (global (export "idle global") i32 (i32.const 1)) (memory (export "other") 1)
            (table (export "table")""",
        )
        + LIFT
    )
    first = found.layer.parts[0]
    names = [one.name for one in first.info.exports]
    assert [name for name in names if name in ("idle", "referred", "more", "idle global")] == [
        "referred"
    ]
    assert {"memory", "other", "table", "top"} <= set(names)
    assert len(read_module(first.wasm).exports) > len(names)
    kept = keep_exports(first.wasm, first.info, set(names))
    assert [one.name for one in read_module(kept).exports] == names
    wasmtime.Module(wasmtime.Engine(), kept)
    assert keep_exports(kept, read_module(kept), set(names)) is kept
    none = keep_exports(first.wasm, first.info, ())
    assert read_module(none).exports == ()
    with pytest.raises(wasmtime.WasmtimeError, match="undeclared"):
        wasmtime.Module(wasmtime.Engine(), none)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 16383, 16384, 2**21, 2**31])
def test_references_are_found_wherever_they_are(number: int) -> None:
    """Behind bytes that look like one, however the number is encoded; and in code only."""
    for name in (uleb(number), uleb(number)[:-1] + bytes([uleb(number)[-1] | 0x80, 0x80, 0])):
        body = b"\0\x41\xd2\xd2" + b"\xd2" + name + b"\x1a\x0b"
        if len(name) > 5:
            continue
        wasm = encode_module(
            types=(FuncType((), ()),),
            functions=(0,),
            exports=(Export("f", "func", 0),),
            code=(body,),
            custom=(("d", b"\xd2\x07"),),
        )
        info = read_module(wasm, weigh=False)
        assert number in find_references(wasm, info)
        assert 7 not in find_references(wasm, info)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('(export "f") (result i32)', '(export "g") (result i32)'),
        ('(memory (export "memory") 1 3)', ""),
        ('(table (export "table") 2 2 funcref)', '(table (export "other") 2 2 funcref)'),
    ],
)
def test_what_a_module_does_not_export(old: str, new: str) -> None:
    """It is refused, with the offset of the module."""
    wasm = bytes(wasmtime.wat2wasm(f"(component {TWO.replace(old, new)}{LIFT})"))
    component = read_component(wasm)
    (function,) = component.exports
    assert isinstance(function.function, Lifted)

    def supply(*given: object) -> tuple[tuple[Part, ...], Source]:
        raise AssertionError

    with pytest.raises(MalformedModuleError, match="does not export") as caught:
        link_instances(component, wasm, [function.function.core], supply)
    offsets = [module.start for module in component.modules]
    assert any(hex(offset) in str(caught.value) for offset in offsets)
