"""The generator of memory drivers: what it writes is valid, fits its scratch, and burns little."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import wasmtime
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.config import SCRATCH_LIMIT, VALUES_SCRATCH_LIMIT, WASM_PAGE
from trio_wasmcache._core.wasm.driver import CELLS
from trio_wasmcache._core.wasm.memory_driver import memory_layout
from trio_wasmcache._core.wasm.memory_layout import BYTES, STATE_SIZE, STATES_AT, MemoryShape
from trio_wasmcache._core.wasm.reader import Limits, read_module
from trio_wasmcache._core.wasm.types import VALUE_LIMIT

CELL = st.sampled_from([name for name in CELLS if not name.startswith("cut")])


def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.consume_fuel = True
    config.wasm_multi_memory = True
    return wasmtime.Engine(config)


ENGINE = _engine()


@st.composite
def shapes(draw: st.DrawFn) -> MemoryShape:
    """Of any binding that there is, and a few that there are not."""
    style: Any = draw(st.sampled_from(["cql", "packed", "packed_low", "pair", "area", "out", None]))
    room: Any = draw(st.sampled_from(["grown", "kept", "guest"]))
    free = draw(st.sampled_from([0, 1, 2, 3])) if room != "grown" else 0
    post = style in ("area", "packed", None) and draw(st.booleans())
    numbers = tuple(draw(st.lists(st.sampled_from(list(CELLS)), max_size=3)))
    return MemoryShape(
        args=tuple(draw(st.lists(CELL | st.just(BYTES), max_size=6))),
        results=numbers if style is None else (BYTES,),
        argument=draw(st.sampled_from(["pair", "nul", "packed"])),
        style=style,
        allocation=room,
        align=draw(st.sampled_from([1, 8, 16])),
        alloc=draw(st.sampled_from([1, 2, 4])) if room != "grown" else 0,
        free=free,
        frees=bool(free) and style is not None and not post,
        post=post,
        flagged=style == "out" and draw(st.booleans()),
        passes_nulls=draw(st.booleans()),
        heavy=draw(st.booleans()),
        pages=draw(st.sampled_from([1, 2])),
    )


@given(shapes())
@tries(60)
def test_any_shape_gives_a_valid_module(shape: MemoryShape) -> None:
    """It imports the function, a memory and what it needs, and its own memory can't grow."""
    wasm = wasmtime.wat2wasm(memory_layout(shape).text)
    wasmtime.Module.validate(ENGINE, wasm)
    info = read_module(wasm)
    assert info.imports[0].type == shape.signature
    pages = memory_layout(shape).pages
    assert info.memories == (Limits(0, None), Limits(pages, pages))


@given(shapes())
@tries(200)
def test_nothing_overlaps(shape: MemoryShape) -> None:
    """Header, validity, columns, results and data lie one behind the other, each aligned."""
    made = memory_layout(shape)
    assert made.rows >= 8
    assert made.rows % 8 == 0
    sizes = [8 * (made.rows + 1) if n == BYTES else CELLS[n].size * made.rows for n in shape.args]
    outs = [(4 if n == BYTES else CELLS[n].size) * made.rows for n in shape.results]
    places = [
        (0, STATES_AT),
        *((at, STATE_SIZE) for at in made.states),
        *((at, made.rows // 8) for at in made.validity),
        *zip(made.args, sizes, strict=True),
        *zip(made.results, outs, strict=True),
        (made.data, made.data_size),
        (made.out, made.out_size),
    ]
    for (begin, size), (following, _) in pairwise(places):
        assert begin + size <= following
    assert all(at % 8 == 0 for at in (*made.args, *made.results))
    assert made.out + made.out_size <= made.pages * WASM_PAGE <= VALUES_SCRATCH_LIMIT
    assert made.pages <= shape.pages
    assert VALUES_SCRATCH_LIMIT <= SCRATCH_LIMIT <= 256 * 1024
    if BYTES in shape.args:
        assert made.data_size >= 8 * 1024


@pytest.mark.parametrize("pages", [1, 2])
def test_the_largest_signature_fits(pages: int) -> None:
    """As many parameters as wasm allows, all of them bytes, whatever there should be of it."""
    columns = (BYTES,) * VALUE_LIMIT
    shape = MemoryShape(
        columns, (BYTES,), "packed", "cql", "guest", passes_nulls=True, alloc=1, pages=pages
    )
    made = memory_layout(shape)
    assert (made.rows, made.pages) == (8, 2)
    assert made.data_size > 8 * 1024
    wasmtime.Module.validate(ENGINE, wasmtime.wat2wasm(made.text))


def test_what_a_driver_burns_is_bounded() -> None:
    """`fuel_per_row` is an upper bound of its own fuel, rows without a call included."""
    guest = """(module (memory (export "memory") 1)
      (func (export "alloc") (param i32) (result i32) (i32.const 8))
      (func (export "free") (param i32))
      (func (export "f") (param i64 i32 i64) (result i64) (i64.const 0x1000000008)))"""
    shape = MemoryShape((BYTES, "i8", BYTES), (BYTES,), "packed", "cql", "guest", 1, 1, 1, True)
    made = memory_layout(shape)
    store = wasmtime.Store(ENGINE)
    store.set_fuel(10**9)
    instance = wasmtime.Instance(store, wasmtime.Module(ENGINE, wasmtime.wat2wasm(guest)), [])
    module = wasmtime.Module(ENGINE, wasmtime.wat2wasm(made.text))
    parts = {"function": "f", "alloc": "alloc", "free": "free", "memory": "memory"}
    imports = [instance.exports(store)[parts[one.name or ""]] for one in module.imports]
    driver = wasmtime.Instance(store, module, imports).exports(store)
    for validity in (b"\xff", b"\0"):
        for rows in (1, 8, made.rows):
            driver["scratch"].write(store, validity * (made.rows // 8), made.validity[0])
            before = store.get_fuel()
            assert driver["run"](store, rows) == rows
            assert 0 < before - store.get_fuel() <= rows * made.fuel_per_row
