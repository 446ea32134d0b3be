"""`trio_wasmcache.udf`: a function as a value, in each kind of column, and in each process."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import numpy
import polars
import pyarrow
import pytest

from trio_wasmcache import CacheConfig, TrapError
from trio_wasmcache.udf import BatchUDF, WasmUDF, process

ADD = """(module (func (export "add") (param i64 i64) (result i64)
  (i64.add (local.get 0) (local.get 1))))"""
DIVIDE = """(module (func (export "divide") (param i64 i64) (result i64)
  (i64.div_s (local.get 0) (local.get 1))))"""
I64S = ("i64", "i64")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Nothing is left open by a test that has closed what it used."""
    yield
    for cache in [*process._books.caches.values()]:
        cache.close()
    process._books.caches.clear()


def adding(**more: Any) -> WasmUDF:
    return WasmUDF("add", ADD, **{"args": I64S, "returns": "i64", **more})


def dividing(**more: Any) -> WasmUDF:
    return WasmUDF("divide", DIVIDE, **{"args": I64S, "returns": "i64", **more})


# -- a value


def test_it_is_a_value() -> None:
    """Equal ones are interchangeable, and survive pickling; it has the face of a function."""
    add = adding(timeout=60, config=CacheConfig(max_size=2**20))
    assert adding(timeout=60, config=CacheConfig(max_size=2**20)) == add
    assert {add: 1}[pickle.loads(pickle.dumps(add))] == 1
    assert add.__dask_tokenize__() == pickle.loads(pickle.dumps(add)).__dask_tokenize__()
    assert len({add, adding(), adding(timeout=1), adding(log_dir="x"), dividing()}) == 5
    assert add.args == I64S
    parameters = inspect.signature(add).parameters.values()
    assert [one.kind for one in parameters] == 2 * [inspect.Parameter.POSITIONAL_ONLY]
    assert repr(adding()).startswith("WasmUDF('add', <")
    on = add.on("a", "b", into="c")
    assert pickle.loads(pickle.dumps(on)) == on
    assert isinstance(on, BatchUDF)
    assert on != add.on("a", "b", into="d")


def test_columns_of_each_kind() -> None:
    """A result has the kind of the first column."""
    add = adding()
    assert add([1, 2], (3, 4)) == [4, 6]
    assert add([1, None], 2) == [3, None]
    array = add(numpy.array([1, 2]), 3)
    assert (array.dtype, array.tolist()) == (numpy.int64, [4, 5])
    assert add(pyarrow.array([1, None]), 3).equals(pyarrow.array([4, None]))
    series = add(polars.Series("x", [1, None]), polars.Series("y", [2, 3]))
    assert (series.name, series.dtype, series.to_list()) == ("x", polars.Int64, [3, None])


def test_poison_rows_go_to_a_column() -> None:
    """Their results are null, and a column has their errors, in each kind of batch."""
    on = dividing(on_error="null").on("a", "b", into="c", error="why")
    columns = {"a": [6, 7], "b": [2, 0]}
    table = on(pyarrow.table(columns))
    assert table.column("c").to_pylist() == [3, None]
    none, text = table.column("why").to_pylist()
    assert none is None
    assert text.startswith("TrapError: divide@")
    assert text.endswith("integer divide by zero")
    with pytest.raises(TrapError) as caught:
        dividing()(columns["a"], columns["b"])
    assert caught.value.row == 1
