"""The driver generator: what it writes is valid, fits its scratch, and calls for each row."""

from __future__ import annotations

from itertools import pairwise

import attrs
import pytest
import wasmtime
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.config import SCRATCH_LIMIT, WASM_PAGE
from trio_wasmcache._core.wasm.driver import (
    CELLS,
    ROWS_LIMIT,
    VALIDITY_AT,
    Shape,
    layout,
)
from trio_wasmcache._core.wasm.reader import FuncType, Limits, read_module
from trio_wasmcache._core.wasm.types import VALUE_LIMIT

ENGINE = wasmtime.Engine()
ARGS = st.lists(st.sampled_from([n for n in CELLS if not n.startswith("cut")]), max_size=12)
SHAPES = st.builds(
    Shape,
    ARGS.map(tuple),
    st.lists(st.sampled_from(list(CELLS)), max_size=6).map(tuple),
    st.booleans(),
    st.booleans(),
)


@given(SHAPES)
@tries(60)
def test_any_shape_gives_a_valid_module(shape: Shape) -> None:
    """It imports what it calls and nothing else, and its memory can't grow."""
    wasm = layout(shape).wasm
    wasmtime.Module.validate(ENGINE, wasm)
    info = read_module(wasm)
    post = [FuncType(shape.signature.results)] if shape.post else []
    assert [one.type for one in info.imports] == [shape.signature, *post]
    pages = layout(shape).pages
    assert info.memories == (Limits(pages, pages),)


@given(SHAPES)
@tries(200)
def test_columns_do_not_overlap(shape: Shape) -> None:
    """Header, validity, columns and results of their own follow one another, each aligned."""
    made = layout(shape)
    assert 8 <= made.rows <= ROWS_LIMIT
    assert made.rows % 8 == 0
    names = (*shape.args, *shape.results)
    columns = zip(names, (*made.args, *made.results), strict=True)
    places = [
        (at, at + made.rows * CELLS[name].size, CELLS[name].size)
        for n, (name, at) in enumerate(columns)
        if n < len(shape.args) or at not in made.args
    ]
    places.insert(0, (VALIDITY_AT, VALIDITY_AT + made.rows // 8, 1))
    for (_, end, _), (begin, _, size) in pairwise(places):
        assert end <= begin
        assert begin % size == 0
    assert places[-1][1] <= made.pages * WASM_PAGE <= SCRATCH_LIMIT <= 256 * 1024


@given(SHAPES)
@tries(200)
def test_results_lie_in_columns_of_arguments(shape: Shape) -> None:
    """Each in one of its own with cells of its size, as long as there are such columns."""
    made = layout(shape)
    sizes = {at: CELLS[name].size for name, at in zip(shape.args, made.args, strict=True)}
    results = [CELLS[name].size for name in shape.results]
    shared = [(at, size) for at, size in zip(made.results, results, strict=True) if at in sizes]
    assert all(sizes[at] == size for at, size in shared)
    assert len(set(made.results)) == len(made.results)
    for size in set(results):
        columns = list(sizes.values()).count(size)
        assert len([one for _, one in shared if one == size]) == min(results.count(size), columns)


@given(SHAPES, st.integers(1, 4))
@tries(60)
def test_a_smaller_scratch(shape: Shape, pages: int) -> None:
    """It has as many pages at most, and rows in proportion; the columns are laid out alike."""
    made, whole = layout(attrs.evolve(shape, pages=pages)), layout(shape)
    assert made.pages <= pages
    assert made.rows <= whole.rows <= 4 * (made.rows + 8) + 8 * (4 - pages) * made.rows
    assert [at in made.args for at in made.results] == [at in whole.args for at in whole.results]


@pytest.mark.parametrize(("pages", "rows"), [(4, 32), (1, 8)])
def test_the_largest_signature_fits(pages: int, rows: int) -> None:
    """As many parameters and results as wasm allows, all of eight bytes, and nullable."""
    names = ("i64",) * VALUE_LIMIT
    made = layout(Shape(names, names, nullable=True, pages=pages))
    assert made.rows == rows
    wasmtime.Module.validate(ENGINE, made.wasm)


def test_eight_rows_fit_into_any_scratch() -> None:
    """Where they need more pages than there may be, there are more."""
    made = layout(Shape(("i64",) * VALUE_LIMIT, ("i32",) * VALUE_LIMIT, pages=1))
    assert (made.rows, made.pages) == (8, 2)
    wasmtime.Module.validate(ENGINE, made.wasm)


def test_what_a_driver_burns_is_bounded() -> None:
    """`fuel_per_row` is an upper bound of its own fuel, rows without a call included."""
    config = wasmtime.Config()
    config.consume_fuel = True
    engine = wasmtime.Engine(config)
    for nullable in (False, True):
        shape = Shape(("bool", "i16", "f64"), ("i8", "bool", "u64"), nullable)
        made = layout(shape)
        store = wasmtime.Store(engine)
        store.set_fuel(10**9)
        text = '(module (func (export "f") (param i32 i32 f64) (result i32 i32 i64) %s))'
        body = "(i32.const 1) (i32.const 1) (i64.const 1)"
        function = wasmtime.Instance(
            store, wasmtime.Module(engine, wasmtime.wat2wasm(text % body)), []
        ).exports(store)["f"]
        driver = wasmtime.Instance(store, wasmtime.Module(engine, made.wasm), [function])
        for rows in (1, 8, made.rows):
            before = store.get_fuel()
            assert driver.exports(store)["run"](store, rows) == rows
            # Of the function itself: entering it, and three constants.
            burnt = before - store.get_fuel() - 4 * rows
            assert 0 < burnt <= rows * made.fuel_per_row
