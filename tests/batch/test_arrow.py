"""Columns in Arrow's format: from pyarrow and from whatever speaks its C data interface."""

from __future__ import annotations

import re
import sys
from array import array
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from batch.modules import INTEGERS, both, dividing, held, same, silent
from hypothesis import HealthCheck, given, strategies as st
from kits import Kit, WasmtimeKit, add, tries

from trio_wasmcache import CacheConfig, TrapError
from trio_wasmcache._core.wasm.driver import Shape, layout
from trio_wasmcache.testing import snapshot

TWO = ("i64", "i64")
CHUNK = layout(Shape(TWO, ("i64",), nullable=True)).rows


class Capsules:
    """Speaks Arrow's C data interface for an array, and is nothing else."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __arrow_c_array__(self, schema: Any = None) -> Any:
        return self._made.__arrow_c_array__(schema)


class Stream:
    """Likewise, as a stream."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __arrow_c_stream__(self, schema: Any = None) -> Any:
        return self._made.__arrow_c_stream__(schema)


async def test_arrow_in_arrow_out(kit: Kit) -> None:
    """Without nulls, beside buffers and scalars; the result has the type of the function's."""
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        result = await lease.map([pa.array([1, 2, 3]), array("q", [10, 20, 30])])
        assert result.type == pa.int64()
        assert result.to_pylist() == [11, 22, 33]
        assert result.null_count == 0
        result.validate(full=True)
        assert (await lease.map([pa.array([1, 2]), 5])).to_pylist() == [6, 7]
        assert (await lease.map([pa.array([], pa.int64()), 5])).to_pylist() == []


async def test_nulls_give_null_without_a_call(kit: Kit) -> None:
    """Whatever lies in the bytes of a null: dividing by it would trap."""
    number = 2 * CHUNK + 21
    async with held(kit, dividing(kit), args=TWO) as (_, lease):
        divisors = [None if n % 3 == 0 else n % 7 + 1 for n in range(number)]
        zeros = pa.Array.from_buffers(
            pa.int64(),
            number,
            [
                pa.array(divisors, pa.int64()).buffers()[0],
                pa.py_buffer(array("q", [d or 0 for d in divisors])),
            ],
        )
        result = await lease.map([pa.array(range(number)), zeros])
        result.validate(full=True)
        assert result.to_pylist() == [None if d is None else n // d for n, d in enumerate(divisors)]
        assert (await lease.map([pa.nulls(5), 0])).to_pylist() == [None] * 5
        assert (await lease.map([pa.array([7, 8]), None])).to_pylist() == [None, None]
        assert (await lease.map([pa.array([7, 8]), [None, 2]])).to_pylist() == [None, 4]


async def test_slices_and_chunks(kit: Kit) -> None:
    """Arrays that begin in the middle of a byte of validity, in chunks of all lengths."""
    values = [None if n % 5 == 0 else n for n in range(4 * CHUNK)]
    whole = pa.array(values, pa.int64())
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        for begin, length in ((1, 20), (3, CHUNK), (13, 2 * CHUNK + 1), (8, 0)):
            part = whole.slice(begin, length)
            wanted = [None if v is None else v + 1 for v in values[begin : begin + length]]
            assert (await lease.map([part, 1])).to_pylist() == wanted
        pieces = [whole.slice(n * 7, 7) for n in range(CHUNK // 3)]
        chunked = pa.chunked_array([*pieces, pa.array([], pa.int64()), whole.slice(0, 100)])
        result = await lease.map([chunked, 1])
        assert result.to_pylist() == [None if v is None else v + 1 for v in chunked.to_pylist()]


@pytest.mark.parametrize("name", INTEGERS)
async def test_integers_of_each_type(kit: Kit, name: str) -> None:
    """The whole range, with a null in between."""
    wasm, low, high = INTEGERS[name]
    kind = getattr(pa, name.replace("i", "int").replace("u", "uint"))()
    async with held(kit, same(kit, wasm), args=(name,), returns=name) as (_, lease):
        result = await lease.map([pa.array([low, None, high], kind)])
        assert result.type == kind
        assert result.to_pylist() == [low, None, high]


async def test_bools_and_reals(kit: Kit) -> None:
    """Bools take a bit in Arrow and a byte here."""
    async with held(kit, same(kit, "i32"), args=("bool",), returns="bool") as (_, lease):
        values = [True, None, False, True, True, False, None, True, True]
        column = pa.array(values * 3000)
        assert (await lease.map([column])).to_pylist() == values * 3000
        assert (await lease.map([column.slice(5, 40)])).to_pylist() == (values * 5)[5:45]
    for name, kind in (("f32", pa.float32()), ("f64", pa.float64())):
        async with held(kit, same(kit, name), args=(name,), returns=name) as (_, lease):
            column = pa.array([1.5, None, float("inf")], kind)
            assert (await lease.map([column])).equals(column)


async def test_several_results_and_none(kit: Kit) -> None:
    """A tuple of arrays; None where there are no results."""
    async with held(kit, both(kit), args=("u32",), returns=("u32", "f64")) as (_, lease):
        one, two = await lease.map([pa.array([1500, None], pa.uint32())])
        assert (one.to_pylist(), two.to_pylist()) == ([1, None], [500.0, None])
        assert (one.type, two.type) == (pa.uint32(), pa.float64())
    async with held(kit, silent(kit), returns=None) as (_, lease):
        assert await lease.map([pa.array([1, 2])]) is None


async def test_whatever_speaks_the_interface(kit: Kit) -> None:
    """As an array, as a stream, and as a stream of a table with one column."""
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        array_of_3 = pa.array([1, None, 3])
        chunked = pa.chunked_array([[1], [None, 3]])
        table = pa.table({"a": [1, None, 3]})
        for column in (Capsules(array_of_3), Stream(chunked), Stream(table)):
            assert (await lease.map([column, 1])).to_pylist() == [2, None, 4]


async def test_a_table_for_all_columns(kit: Kit) -> None:
    """Its columns in their order; a record batch and a stream as well."""
    table = pa.table({"a": [1, 2, None], "b": [10, None, 30]})
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        for given_table in (table, table.to_batches()[0], Stream(table)):
            assert (await lease.map(given_table)).to_pylist() == [11, None, None]
        with pytest.raises(TypeError, match=r"takes 2 arguments, .* got 3"):
            await lease.map(table.append_column("c", pa.array([1, 2, 3])))


async def test_types_that_do_not_fit(kit: Kit) -> None:
    """Named are both; nothing is converted that could lose something."""
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        for kind in (pa.int32(), pa.uint64(), pa.float64(), pa.timestamp("s")):
            with pytest.raises(
                TypeError, match=f"argument 2 .* of int64, got .*{re.escape(str(kind))}"
            ):
                await lease.map([1, pa.array([None], kind)])
        with pytest.raises(ValueError, match="argument 1 has 2, that of argument 2 has 1"):
            await lease.map([pa.array([1, 2]), pa.array([1])])
        assert (await lease.map([1, pa.array([1])])).to_pylist() == [2]


async def test_null_is_no_number(kit: Kit) -> None:
    """A function that is called on null gets it, and numbers have none."""
    more = {"args": TWO, "called_on_null": True}
    async with held(kit, kit.adding_two(), **more) as (_, lease):
        with pytest.raises(TypeError, match=r"row 1: argument 2 of f.* got None"):
            await lease.map([1, pa.array([1, None])])
        assert (await lease.map([1, pa.array([1, 2])])).to_pylist() == [2, 3]


async def test_a_trap_tells_row_and_values(kit: Kit) -> None:
    """Of the columns as they were given."""
    async with held(kit, dividing(kit), args=TWO) as (_, lease):
        with pytest.raises(TrapError) as caught:
            await lease.map([pa.array([None, 5, 6]), pa.chunked_array([[1, 1], [0]])])
        assert (caught.value.row, caught.value.values) == (2, (6, 0))


async def test_pyarrow_is_imported_when_it_is_needed(
    real: WasmtimeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread; where it is missing, the error says what to install."""
    column = Capsules(pa.array([1, 2]))
    async with real.open() as cache:
        f = await add(cache, "f", real.adding(1))
        async with f.acquire() as lease:
            with monkeypatch.context() as patch:
                patch.delitem(sys.modules, "pyarrow")
                patch.setattr(sys, "path", [])
                with pytest.raises(ImportError, match=r"pip install '\.\[arrow\]'"):
                    await lease.map([column])
            assert (await lease.map([column])).to_pylist() == [2, 3]


async def test_a_batch_in_a_thread(real: WasmtimeKit) -> None:
    """Columns and results cross there as well."""
    values = [None if n % 11 == 0 else n for n in range(200_000)]
    async with real.open(CacheConfig(offload_after=0, yield_fuel=10_000)) as cache:
        f = await add(cache, "f", real.adding(1))
        async with f.acquire() as lease:
            result = await lease.map([pa.array(values)])
        assert result.to_pylist() == [None if v is None else v + 1 for v in values]
        assert snapshot(cache).threads.taken == 0


@given(
    left=st.lists(st.none() | st.integers(-(2**40), 2**40), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    begin=st.integers(0, 20),
)
@tries(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_chunks(kit: Kit, left: list[int | None], cuts: list[int], begin: int) -> None:
    """However an array is cut into chunks and sliced, its rows are the same."""
    edges = [0, *sorted(min(cut, len(left)) for cut in cuts), len(left)]
    chunks = [
        pa.array([None] * begin + left[a:b], pa.int64()).slice(begin) for a, b in pairwise(edges)
    ]
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        result = await lease.map([pa.chunked_array(chunks, pa.int64()), 1])
        result.validate(full=True)
        assert result.to_pylist() == [None if v is None else v + 1 for v in left]
