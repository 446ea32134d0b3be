"""Graphs of parts: what can be linked, how limits are shared, and what is counted where."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import wasmtime
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache import MiB, ModuleTooLargeError
from trio_wasmcache._core.config import WASM_PAGE
from trio_wasmcache._core.wasm import graph as graphs
from trio_wasmcache._core.wasm.admission import (
    check_limits,
    least_size,
    rest_size,
    table_elements,
    worst_size,
)
from trio_wasmcache._core.wasm.custom import name_module, without_custom_sections
from trio_wasmcache._core.wasm.editor import defer_start, encode_module
from trio_wasmcache._core.wasm.graph import (
    USER,
    FromHost,
    FromPart,
    Graph,
    Layer,
    Part,
    join_layers,
    limit_graph,
)
from trio_wasmcache._core.wasm.isolation import MAX_RESTORED, hides_globals, obstacle
from trio_wasmcache._core.wasm.reader import (
    Export,
    FuncType,
    Limits,
    TableType,
    read_module,
)
from trio_wasmcache._core.wasm.restorer import restorer


def part(name: str, text: str, wiring: Any = None, **more: Any) -> Part:
    wasm = bytes(wasmtime.wat2wasm(f"(module {text})"))
    return Part(name, wasm, read_module(wasm), wiring or {}, **more)


EXPORTER = """(func (export "f") (param i32)) (memory (export "m") 2 5)
  (table (export "t") 3 7 funcref) (global (export "g") (mut i32) (i32.const 0))
  (tag (export "e") (param i32))"""
BAD = {
    "nothing": ('(import "a" "x" (func))', {}, "wired with nothing"),
    "nothing of the host's": ('(import "a" "x" (tag))', {}, "wired with nothing"),
    "a memory of the host's": (
        '(import "a" "x" (memory 1))',
        {("a", "x"): FromHost(0)},
        "from the host",
    ),
    "a part that is not there": (
        '(import "a" "x" (func))',
        {("a", "x"): FromPart("b", "f")},
        "no part 'b' before it",
    ),
    "itself": (
        '(import "a" "x" (func)) (func (export "f"))',
        {("a", "x"): FromPart(USER, "f")},
        "no part '' before it",
    ),
    "an export that is not there": (
        '(import "a" "x" (func))',
        {("a", "x"): FromPart("one", "no")},
        "exports no 'no'",
    ),
    "one of two memories": (
        '(import "a" "x" (memory 1)) (import "a" "y" (memory 1))',
        {("a", "x"): FromPart("one", "m")},
        "wired with nothing",
    ),
    **{
        f"another type: {field}": (
            f'(import "a" "x" {field})',
            {("a", "x"): FromPart("one", name)},
            "and is given",
        )
        for field, name in (
            ("(func)", "f"),
            ("(func)", "m"),
            ("(memory 3)", "m"),
            ("(memory 1 4)", "m"),
            ("(memory i64 1)", "m"),
            ("(table 4 funcref)", "t"),
            ("(table 1 5 funcref)", "t"),
            ("(table 1 externref)", "t"),
            ("(global i32)", "g"),
            ("(global (mut i64))", "g"),
            ("(tag)", "e"),
        )
    },
}


@pytest.mark.parametrize("what", BAD)
def test_what_can_not_be_linked_is_refused(what: str) -> None:
    """Before any of it is compiled."""
    text, wiring, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        Graph((part("one", EXPORTER), part(USER, text, wiring)))


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("(func (param i32))", "f"),
        ("(memory 2 5)", "m"),
        ("(memory 1)", "m"),
        ("(memory 0 9)", "m"),
        ("(table 3 7 funcref)", "t"),
        ("(table 1 funcref)", "t"),
        ("(global (mut i32))", "g"),
        ("(tag (param i32))", "e"),
    ],
)
def test_what_wasm_links_is_linked(field: str, name: str) -> None:
    """Sizes may be larger, and maxima lower."""
    wiring = {("a", "x"): FromPart("one", name)}
    graph = Graph((part("one", EXPORTER), part(USER, f'(import "a" "x" {field})', wiring)))
    assert graph.links == 1


def test_other_mistakes_in_a_graph_are_refused() -> None:
    """Names that are taken, and no module of the user's."""
    one, user = part("one", EXPORTER), part(USER, '(func (export "f"))')
    for parts in ((one,), (user, user), (one, one, user)):
        with pytest.raises(ValueError, match="part"):
            Graph(parts)


def test_what_is_linked_counts_where_it_is_defined() -> None:
    """What is imported otherwise becomes the module's own, kind by kind."""
    wiring = {("a", "m"): FromPart("one", "m"), ("a", "g"): FromPart("one", "g")}
    text = """(import "a" "m" (memory 1)) (import "a" "g" (global (mut i32)))
      (import "host" "t" (table 4 funcref)) (memory 3) (table 5 funcref)
      (global (mut i64) (i64.const 0))"""
    one, user = part("one", EXPORTER), part(USER, text, wiring)
    assert user.info.linked == {"memory", "global"}
    assert [len(user.info.memories), len(user.info.tables), len(user.info.globals)] == [2, 2, 2]
    assert [limits.minimum for limits in user.info.own_memories] == [3]
    assert [table.limits.minimum for table in user.info.own_tables] == [4, 5]
    assert [item.value_type for item in user.info.own_globals] == ["i64"]
    graph = limit_graph(Graph((one, user)), "f", 20 * WASM_PAGE, 100)
    (_, ours), (_, theirs) = graph.modules
    # 5 pages that the first declares at most, and what is left of 20.
    assert (ours.memory_maxima, theirs.memory_maxima) == ((5,), (15,))
    assert (ours.table_maxima, theirs.table_maxima) == ((7,), (46, 46))
    least = least_size(0, one.info, user.info)
    assert least == 5 * WASM_PAGE + 12 * 8 + rest_size(one.info, user.info)
    assert hides_globals(user.info)
    made = restorer(one.info, user.info)
    assert made is not None
    assert made.imports == (
        *((0, "table", 0), (1, "table", 0), (1, "table", 1)),
        *((0, "global", 0), (1, "global", 1)),
    )


SIZES = st.tuples(st.integers(0, 6), st.one_of(st.none(), st.integers(0, 12))).map(
    lambda pair: Limits(pair[0], None if pair[1] is None else pair[0] + pair[1])
)


@given(
    st.lists(st.tuples(st.lists(SIZES, max_size=3), st.lists(SIZES, max_size=3)), min_size=1),
    st.integers(1, 60),
    st.integers(1, 60),
)
@tries(100)
def test_parts_together_have_what_one_module_would(
    parts: list[tuple[list[Limits], list[Limits]]], pages: int, elements: int
) -> None:
    """Whichever part a memory or a table is in: the same limits, sizes and refusals."""
    made = []
    for number, (memories, tables) in enumerate(parts):
        wasm = encode_module(
            types=[], memories=memories, tables=[TableType("funcref", one) for one in tables]
        )
        made.append(Part("p" * number, wasm, read_module(wasm), {}))
    whole = read_module(
        encode_module(
            types=[],
            memories=[one for memories, _ in parts for one in memories],
            tables=[TableType("funcref", one) for _, tables in parts for one in tables],
        )
    )
    starts = sum(one.minimum for memories, _ in parts for one in memories)
    begins = sum(one.minimum for _, tables in parts for one in tables)
    if starts > pages or begins > elements:
        with pytest.raises(ModuleTooLargeError) as whole_error:
            check_limits(whole, "f", pages * WASM_PAGE, elements)
        with pytest.raises(ModuleTooLargeError) as caught:
            limit_graph(Graph(tuple(made)), "f", pages * WASM_PAGE, elements)
        assert str(caught.value) == str(whole_error.value)
        return
    edits = check_limits(whole, "f", pages * WASM_PAGE, elements)
    graph = limit_graph(Graph(tuple(made)), "f", pages * WASM_PAGE, elements, heap_size=9)
    shares = [edits for _, edits in graph.modules]
    assert edits.memory_maxima == tuple(itertools.chain(*(one.memory_maxima for one in shares)))
    assert edits.table_maxima == tuple(itertools.chain(*(one.table_maxima for one in shares)))
    infos = [info for info, _ in graph.modules]
    rest = rest_size(*infos) - rest_size(whole)
    if all(None not in (*one.memory_maxima, *one.table_maxima) for one in shares):
        assert worst_size(*graph.modules) == worst_size((whole, edits)) + rest + 9
    assert least_size(0, *infos) == least_size(0, whole) + rest
    assert sum(table_elements(*one) for one in graph.modules) == table_elements(whole, edits)


def test_only_the_users_part_gets_initial_values_and_a_heap() -> None:
    """There is one heap, and the values are of what it imports."""
    graph = Graph((part("one", ""), part(USER, '(import "a" "g" (global i32))')))
    graph = limit_graph(graph, "f", MiB, 10, initials=(b"\x41\x07\x0b",), heap_size=99, reset=True)
    (_, ours), (_, theirs) = graph.modules
    assert (ours.heap_size, ours.initials, ours.reset) == (0, (), True)
    assert (theirs.heap_size, theirs.initials, theirs.reset) == (99, (b"\x41\x07\x0b",), True)
    assert [part.wasm for part in graph.bare().parts] == [b"", b""]


def test_links_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """As each instance makes them all, while others wait; but not those of a part without any."""
    monkeypatch.setattr(graphs, "MAX_LINKS", 3)
    fields = "".join(f'(import "h" "{number}" (func))' for number in range(4))
    wiring: dict[tuple[str, str], Any] = {("h", str(n)): FromHost(n) for n in range(4)}
    alone = Graph((part("one", '(func (export "f"))'), part(USER, fields, wiring)))
    assert alone.links == 0
    limit_graph(alone, "f", MiB, 10)
    wiring["h", "3"] = FromPart("one", "f")
    linked = Graph((part("one", '(func (export "f"))'), part(USER, fields, wiring)))
    assert linked.links == 4
    with pytest.raises(ModuleTooLargeError, match="f has 4 imports in one module, over 3"):
        limit_graph(linked, "f", MiB, 10)


def test_layers_are_joined_around_the_module() -> None:
    """What they supply is wired to them, everything else to the host; parts keep their order."""
    user = part(USER, '(import "a" "x" (func)) (import "a" "y" (func)) (func (export "run"))')
    first = Layer(
        (part("one", '(func (export "f"))'),),
        {("a", "x"): FromPart("one", "f"), ("a", "unused"): FromPart("one", "f")},
    )
    second = Layer(
        (
            part(
                "two",
                '(import "x" "" (func)) (func (export "f"))',
                {("x", ""): FromPart("one", "f")},
            ),
        ),
        {("a", "x"): FromPart("two", "f")},
        (part("three", '(import "r" "" (func))', {("r", ""): FromPart(USER, "run")}),),
    )
    graph = join_layers(user.wasm, user.info, (first, second), {("a", "y"): 4, ("a", "x"): 3})
    assert [part.name for part in graph.parts] == ["one", "two", USER, "three"]
    assert graph.user.wiring == {("a", "x"): FromPart("two", "f"), ("a", "y"): FromHost(4)}
    assert graph.user.offset == 0
    with pytest.raises(ValueError, match="wired with nothing"):
        join_layers(user.wasm, user.info, (first,), {})


def test_any_part_may_be_what_can_not_be_reset() -> None:
    """Its segments, its start, and the number of what is to be put back."""
    clean = read_module(bytes(wasmtime.wat2wasm("(module)")))
    given = {("host", "f")}

    def found(text: str, *, starts: bool = False) -> str | None:
        return obstacle(clean, starts, given, part("x", text, {("host", "f"): FromHost(0)}).info)

    assert found("") is None
    assert "data segments" in (found('(memory 1) (data "x")') or "")
    assert "element segments" in (found("(func $f) (elem func $f)") or "")
    asks = '(import "host" "f" (func $f))'
    assert found(asks) is None
    assert "start" in (found(asks, starts=True) or "")
    assert "start" in (found(f"{asks} (start $f)") or "")
    assert str(MAX_RESTORED) in (
        found("(table 1 funcref)" * 99 + "(global (mut i32) (i32.const 0))" * 1000) or ""
    )


def test_a_start_is_taken_out_and_exported() -> None:
    """All else stays where it was, as far as the code goes."""
    wasm = encode_module(
        types=[FuncType(), FuncType(("i32",))],
        functions=[0, 1],
        start=0,
        code=[b"\0\x0b", b"\0\x0b"],
        exports=[Export("f", "func", 1)],
    )
    made = defer_start(wasm, read_module(wasm), "begin")
    info = read_module(made)
    assert info.start is None
    assert [(one.name, one.index) for one in info.exports] == [("f", 1), ("begin", 0)]
    wasmtime.Module(wasmtime.Engine(), made)
    bare = encode_module(types=[FuncType()], functions=[0], start=0, code=[b"\0\x0b"])
    info = read_module(defer_start(bare, read_module(bare), "begin"))
    assert (info.start, [one.name for one in info.exports]) == (None, ["begin"])
    with pytest.raises(ValueError, match="no start"):
        defer_start(made, read_module(made), "again")


@pytest.mark.parametrize(
    "text", ["", "(func $f)", "$own (func $f (local $x i32))", "$own"], ids=range(4)
)
def test_a_module_is_given_a_name(text: str) -> None:
    """In place of its own; names of functions stay."""
    wasm = without_custom_sections(bytes(wasmtime.wat2wasm(f"(module {text})")))
    for _ in range(2):
        wasm = name_module(wasm, "part 7")
        assert wasm.count(b"part 7") == 1
        assert b"own" not in wasm
        assert (b"f" in wasm[8:].rpartition(b"part 7")[2]) == ("$f" in text)
        wasmtime.Module(wasmtime.Engine(), wasm)
