"""`trio_wasmcache.udf`: a function as a value, for each kind of column, and in each process."""

from __future__ import annotations

import decimal
import hashlib
import inspect
import json
import math
import multiprocessing
import operator
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy
import pandas
import polars
import pyarrow
import pytest
import trio
import wasmtime
from components.samples import PURE
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache import (
    CacheConfig,
    ExportError,
    HostFunction,
    MiB,
    Prepare,
    SignatureError,
    TrapError,
    Wasi,
)
from trio_wasmcache.udf import BatchUDF, WasmUDF, process

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
HANG = 600
ADD = """(module (func (export "add") (param i64 i64) (result i64)
  (i64.add (local.get 0) (local.get 1))))"""
SUBTRACT = ADD.replace("i64.add", "i64.sub")
DIVIDE = """(module (func (export "divide") (param i64 i64) (result i64)
  (i64.div_s (local.get 0) (local.get 1))))"""
ENDLESS = """(module (func (export "spin") (param i64) (result i64)
  (loop (br 0)) (unreachable)))"""
ASKS = """(module (import "host" "ask" (func $ask (param i64) (result i64)))
  (func (export "asks") (param i64) (result i64) (call $ask (local.get 0))))"""
BOTH = """(module (func (export "both") (param i64) (result i64 f64)
  (local.get 0) (f64.convert_i64_s (local.get 0))))"""
SEVEN = '(module (func (export "seven") (result i64) (i64.const 7)))'
# Gives text back as it is.
ECHO = """(module (memory (export "memory") 2)
  (func (export "echo") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
      (i64.extend_i32_u (local.get 1)))))"""
I64S = ("i64", "i64")
# A table with two columns of a name, as of a join.
TWICE = pyarrow.table([[1], [2], [3]], ["a", "a", "b"])


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """What a test has opened is closed."""
    yield
    shut()


def adding(**more: Any) -> WasmUDF:
    return WasmUDF("add", more.pop("wasm", ADD), **{"args": I64S, "returns": "i64", **more})


def dividing(**more: Any) -> WasmUDF:
    return WasmUDF("divide", DIVIDE, **{"args": I64S, "returns": "i64", **more})


def asking(fn: Any) -> WasmUDF:
    imports = {"host": {"ask": HostFunction(fn, ("i64",), ("i64",))}}
    return WasmUDF("asks", ASKS, args=("i64",), returns="i64", imports=imports)


def shut() -> None:
    """Close the caches of this process, as its end does; then their logs are whole."""
    for cache in [*process._books.caches.values()]:
        cache.close()
    process._books.caches.clear()


def events(folder: Path) -> list[dict[str, Any]]:
    """The logs in a folder."""
    files = sorted(folder.glob("wasmcache-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return [event["event"].removeprefix("wasmcache.") for event in events(folder)]


# -- a value


def test_it_is_a_value() -> None:
    """Equal ones are interchangeable, and survive pickling; it has the face of a function."""
    more: dict[str, Any] = {
        "timeout": 60,
        "config": CacheConfig(max_size=2**20, cache_dir=Path("/x")),
        "imports": {"host": {"neg": HostFunction(operator.neg, ("i64",), ("i64",))}},
        "wasi": Wasi(env={"A": "b"}),
        "prepare": [Prepare("add", args=("i64",), values=(decimal.Decimal(1),))],
    }
    add = adding(**more)
    again = pickle.loads(pickle.dumps(add))
    assert again == add == adding(**more)
    assert {add: 1}[again] == 1
    assert add.__dask_tokenize__() == again.__dask_tokenize__()
    others = [adding(), adding(timeout=1), adding(log_dir="x"), adding(wasm=SUBTRACT), dividing()]
    assert len({add, *others, *others}) == 6
    assert add != "add"
    assert (add.args, add.__name__) == (I64S, "add")  # type: ignore[attr-defined]
    parameters = inspect.signature(add).parameters.values()
    assert [one.kind for one in parameters] == 2 * [inspect.Parameter.POSITIONAL_ONLY]
    assert repr(adding()).startswith("WasmUDF('add', <")
    on = add.on("a", "b", into="c")
    assert pickle.loads(pickle.dumps(on)) == on
    assert on != add.on("a", "b", into="d")
    assert len({on, add.on("a", "b", into="c")}) == 1
    with pytest.raises(AttributeError):
        add.timeout = 3  # type: ignore[misc]


def test_a_pickle_has_what_was_said_only() -> None:
    """So versions of the library that know more, or fewer, parameters read it."""
    make, (fields,) = adding(config=CacheConfig(max_size=7)).__reduce__()
    assert sorted(fields) == ["args", "config", "digest", "name", "returns", "wasm"]
    assert fields["config"] == {"max_size": 7}
    assert make(fields) == adding(config=CacheConfig(max_size=7))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"config": {"max_size": -1}}, ValueError),
        ({"digest": 64 * "0"}, ValueError),
        ({"args": ("no\x07type",)}, SignatureError),
        ({"on_error": "ignore"}, ValueError),
    ],
)
def test_unpickling_checks(changed: dict[str, Any], error: type[Exception]) -> None:
    """It calls the constructor."""
    make, (fields,) = adding().__reduce__()
    with pytest.raises(error):
        make({**fields, **changed})


def test_a_configuration_is_checked_again() -> None:
    """One that was unpickled was not."""
    config = CacheConfig()
    object.__setattr__(config, "max_size", -1)
    with pytest.raises(ValueError, match="max_size"):
        adding(config=config)


def local() -> Callable[..., int]:
    def inner(value: int) -> int:
        return value

    return inner


class Stateful:
    """It can't be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, value: int) -> int:
        return value


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: asking(lambda value: value),
            TypeError,
            "asks.i64.: its declaration has .* other processes can't import",
        ),
        (lambda: asking(local()), TypeError, "define it at the top level of a module"),
        (lambda: asking(Stateful()), TypeError, "can't be pickled"),
        (lambda: adding(wasi=Wasi(stdout=lambda *_: None)), TypeError, "can't import"),
        (lambda: adding(returns=None), ValueError, "must be one type or several"),
        (lambda: adding(returns=("i64",)), ValueError, "must be the type itself for one column"),
        (lambda: adding(timeout="1"), TypeError, "timeout must be a number of seconds"),
        (lambda: adding(max_errors=-1), ValueError, "max_errors"),
        (lambda: adding(cast=1), TypeError, "cast must be True or False"),
        (lambda: adding(config={}), TypeError, "config must be a CacheConfig"),
        (lambda: adding(log_dir=""), TypeError, "log_dir must be a path"),
        (lambda: adding(digest=5), TypeError, "digest must be a str"),
        (lambda: adding(digest="abc"), ValueError, "the 64 hexadecimal digits"),
        (lambda: adding(isolation="none"), ValueError, "unknown isolation"),
        (lambda: adding(wasm=5), TypeError, "wasm must be bytes"),
        (lambda: WasmUDF("add", ADD), TypeError, "add: args or returns was left out, but only co"),
        (lambda: WasmUDF("add", ADD, args=()), TypeError, "and this is a core module: give them"),
        (lambda: WasmUDF(5, PURE), TypeError, "name must be"),  # type: ignore[arg-type]
        (lambda: WasmUDF("add", b"x"), TypeError, "this is a core module"),
        (lambda: WasmUDF("no", PURE), ExportError, "funcs@0.1.0#add"),
        (lambda: WasmUDF("add", PURE, digest="0" * 64), ValueError, "has the digest"),
        (lambda: WasmUDF("add", PURE, args=("s64",)), SignatureError, "leave out args"),
        (lambda: adding(prepare="init"), TypeError, "prepare must be a sequence"),
        (lambda: adding(wasm=Path("/no/such/file")), FileNotFoundError, "no/such"),
        (lambda: WasmUDF("x" * 200, ADD, args=(), returns="i64"), ValueError, "at most 191"),
        (lambda: adding().on("a", into="c"), TypeError, "takes the names of 2 columns, got 1"),
        (lambda: adding().on("a", 1, into="c"), TypeError, "must be str"),
        (lambda: adding().on("a", "b", into=["c"]), TypeError, "into must be the name"),
        (lambda: adding().on("a", "b", into=2), TypeError, "into must be the name .* got 2"),
        (lambda: adding().on("a", "b", into="c", error="e"), ValueError, 'on_error="null"'),
        (
            lambda: dividing(on_error="null").on("a", "b", into="c", error="c"),
            ValueError,
            "a name is given twice",
        ),
        (
            lambda: dividing(on_error="null", max_errors=1001).on("a", "b", into="c", error="e"),
            ValueError,
            "at most 1000",
        ),
        (lambda: adding()([1]), TypeError, r"takes 2 columns, one for each argument, got 1"),
        (lambda: adding().map([[1], [2]], row_errors=[]), TypeError, "row_errors must be a dict"),
        (lambda: adding().polars([]), TypeError, "takes one Series at least, got none"),
        (lambda: adding().on("a", "b", into="c")(TWICE), ValueError, "has 2 columns 'a'"),
        (lambda: adding().on("b", "b", into="a")(TWICE), ValueError, "has 2 columns 'a'"),
        (
            lambda: adding().on("a", "b", into="c")(TWICE.to_pandas()),
            ValueError,
            "has 2 columns 'a'",
        ),
        (lambda: adding().on("a", "b", into="c")([1]), TypeError, "a batch is an Arrow table"),
        (
            lambda: adding().on("a", "b", into="c")(polars.LazyFrame({"a": [1]})),
            TypeError,
            r"collect\(\) first",
        ),
    ],
)
def test_mistakes(make: Callable[[], object], error: type[Exception], message: str) -> None:
    """They are named where they are made, before any process has a cache."""
    with pytest.raises(error, match=message):
        make()
    assert not process._books.caches


def test_types_of_a_component_may_be_left_out() -> None:
    """It is read for them once; pickles have them. All that was given must agree."""
    udf = WasmUDF("move", PURE, export="move-by")
    assert (udf.args, udf.returns) == (("place", "f64"), "place")
    assert udf([(1.0, 2.0, "a")], [0.5]) == [(1.5, 2.5, "a")]
    assert udf == WasmUDF("move", PURE, args=("place", "f64"), export="move-by")
    again = pickle.loads(pickle.dumps(udf))
    assert again == udf
    assert again.digest == hashlib.sha256(PURE.read_bytes()).hexdigest()
    text = """(component (core module $m (func (export "f") (param i32) (result i32) (local.get 0)))
      (core instance $i (instantiate $m))
      (func (export "half") (param "a" u32) (result u32) (canon lift (core func $i "f"))))"""
    for wasm in (text, bytes(wasmtime.wat2wasm(text))):
        half = WasmUDF("half", wasm, returns="u32")
        assert list(half(numpy.array([1, 2], "i8"))) == [1, 2]
        half.close()
    udf.close()


# -- columns


def test_columns_of_each_kind() -> None:
    """A result has the kind of the first column."""
    add = adding()
    assert add([1, 2], (3, 4)) == [4, 6]
    assert add([1, None], 2) == [3, None]
    assert add(2, [1, None]) == [3, None]
    buffer = add(memoryview(struct.pack("2q", 1, 2)).cast("q"), 2)
    assert (type(buffer), [*buffer]) == (memoryview, [3, 4])
    array = add(numpy.array([1, 2]), 3)
    assert (array.dtype, array.tolist(), array.flags.writeable) == (numpy.int64, [4, 5], True)
    array = add(numpy.ma.masked_array([1, 2], [False, True]), 3)
    assert (array.dtype, [*array]) == (object, [4, None])
    assert add(pyarrow.array([1, None]), 3).equals(pyarrow.array([4, None]))
    chunks = pyarrow.chunked_array([[1], [2, 3]])
    assert add(chunks, chunks).to_pylist() == [2, 4, 6]
    series = add(polars.Series("x", [1, None]), polars.Series("y", [2, 3]))
    assert (series.name, series.dtype, series.to_list()) == ("x", polars.Int64, [3, None])
    series = add(pandas.Series([1, 2], [5, 6], name="x"), 1)
    assert (series.name, series.dtype, [*series.index]) == ("x", "int64", [5, 6])
    result = WasmUDF("both", BOTH, args=("i64",), returns=("i64", "f64"))(numpy.array([3]))
    assert [(one.dtype.name, one.tolist()) for one in result] == [
        ("int64", [3]),
        ("float64", [3.0]),
    ]
    assert WasmUDF("seven", SEVEN, args=(), returns="i64").map([], rows=2) == [7, 7]


@pytest.mark.parametrize(
    ("column", "dtype", "values"),
    [
        (pandas.Series([1, 2]), "int64", [2, 4]),
        (pandas.Series([1.0, 2.0]), "Int64", [2, 4]),
        (pandas.Series([1.0, None]), "Int64", [2, pandas.NA]),
        (pandas.Series([1, None], dtype="Int64"), "Int64", [2, pandas.NA]),
        (pandas.Series([1, None], dtype="int32[pyarrow]"), "int64[pyarrow]", [2, pandas.NA]),
        (pandas.Series([1, None], dtype=object), "Int64", [2, pandas.NA]),
        (pandas.Series([2, 1], dtype="category"), "Int64", [4, 2]),
        (pandas.Series([], dtype="int64"), "int64", []),
        (pandas.Series([], dtype="float64"), "Int64", []),
    ],
)
def test_the_type_of_a_series_follows_from_types(column: Any, dtype: str, values: Any) -> None:
    """Not from values, which differ from part to part of a frame."""
    found = adding()(column, column)
    assert (str(found.dtype), found.tolist()) == (dtype, values)
    found = adding(on_error="null")(pandas.Series([1], dtype="int64"), 1)
    assert str(found.dtype) == "Int64"


SAME = {
    name: WasmUDF(
        "same",
        f'(module (func (export "same") (param {wasm}) (result {wasm}) (local.get 0)))',
        args=(name,),
        returns=name,
        on_error="null",
    )
    for name, wasm in (
        ("i8", "i32"),
        ("i64", "i64"),
        ("u32", "i32"),
        ("u64", "i64"),
        ("f32", "f32"),
        ("f64", "f64"),
        ("bool", "i32"),
    )
}
ARROW = {
    "int8": st.integers(-128, 127),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300),
    "uint64": st.integers(0, 2**64 - 1) | st.integers(0, 300),
    "float32": st.floats(width=32) | st.integers(-300, 300).map(float),
    "float64": st.floats() | st.integers(-300, 300).map(float),
    "bool_": st.booleans(),
}


def expected(value: Any, name: str) -> Any:
    """What becomes of a value by the rule: null, or the same."""
    if value is None or ((name == "bool") is not isinstance(value, bool) and name == "bool"):
        return None
    if name == "bool":
        return value
    if name in ("f32", "f64"):
        try:
            return (
                struct.unpack("<f", struct.pack("<f", value))[0] if name == "f32" else float(value)
            )
        except OverflowError:
            return None
    whole = isinstance(value, int) or value == value // 1
    low, high = (0, 2 ** int(name[1:])) if name[0] == "u" else (-(2 ** (int(name[1:]) - 1)),) * 2
    high = high if name[0] == "u" else -low
    return int(value) if whole and low <= value < high else None


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(found, float) and math.isnan(found)
    return bool(found == wanted) and (found is None) is (wanted is None)


@given(data=st.data())
@tries(60)
def test_numbers_of_other_types_keep_their_value_or_are_null(data: st.DataObject) -> None:
    """Row by row, whatever the column is of, with nulls, slices and chunks of any size."""
    name = data.draw(st.sampled_from([*SAME]))
    source = data.draw(st.sampled_from([*ARROW]))
    if name == "bool":
        source = "bool_"
    values = data.draw(st.lists(st.none() | ARROW[source], max_size=8))
    cut = data.draw(st.integers(0, len(values)))
    wanted = [expected(value, name) for value in values]
    array = pyarrow.array([None, *values, None], getattr(pyarrow, source)())[1:-1]
    columns: list[Any] = [array, pyarrow.chunked_array([array[:cut], array[cut:]])]
    columns += [polars.Series(array)]
    if source != "bool_":
        columns += [array.dictionary_encode()]
    if None not in values:
        columns += [array.to_numpy(zero_copy_only=False)]
    for column in columns:
        found = SAME[name](column)
        assert len(found) == len(values)
        listed = (
            found.tolist()
            if isinstance(found, numpy.ndarray)
            else (found.to_list() if isinstance(found, polars.Series) else found.to_pylist())
        )
        if isinstance(found, numpy.ndarray) and name in ("f32", "f64"):
            listed = [None if w is None else v for v, w in zip(listed, wanted, strict=True)]
        assert all(map(same, listed, wanted)), (type(column), listed, wanted)


@pytest.mark.parametrize(
    ("name", "values", "source", "wanted"),
    [
        (
            "i64",
            [1.0, 2.5, math.inf, 2.0**63, -(2.0**63)],
            "float64",
            [1, None, None, None, -(2**63)],
        ),
        ("i64", [1.0, 2.5], "float64", [1, None]),
        ("i8", [127, 128, -129], "int64", [127, None, None]),
        ("u64", [-1, 5], "int64", [None, 5]),
        ("i64", [2**63, 2**63 - 1], "uint64", [None, 2**63 - 1]),
        ("f32", [1e300, 0.5, math.inf], "float64", [None, 0.5, math.inf]),
        ("f64", [2**53 + 1, 1], "int64", [2.0**53, 1.0]),
        ("i64", [True, False], "bool", [1, 0]),
    ],
)
def test_values_at_the_limits(name: str, values: Any, source: str, wanted: Any) -> None:
    """Of NumPy and of Arrow."""
    array = numpy.array(values, source)
    assert SAME[name](pyarrow.array(array)).to_pylist() == wanted
    found = SAME[name](array)
    if name == "f32":
        wanted = [math.nan if value is None else value for value in wanted]
    assert all(map(same, found.tolist(), wanted))


def test_single_values_of_libraries() -> None:
    """They are no columns, and one of Arrow's may be null."""
    found = adding()(numpy.int64(6), numpy.array([1, 2]))
    assert (type(found), found.tolist()) == (numpy.ndarray, [7, 8])
    column = pyarrow.array([1, 2])
    assert adding()(column, pyarrow.scalar(5)).to_pylist() == [6, 7]
    assert adding()(column, pyarrow.scalar(None, pyarrow.int64())).to_pylist() == [None, None]


def test_a_value_that_does_not_fit_is_named() -> None:
    """By its row, as if the whole column had been given as Python values."""
    for column in (numpy.array([1.0, 2.5]), pyarrow.array([1.0, 2.5]), polars.Series([1.0, 2.5])):
        with pytest.raises(TypeError, match=r"argument 1 of add@\w+\(i64, i64\)") as caught:
            adding()(column, 1)
        assert caught.value.row == 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="int32"):
        adding(cast=False)(pyarrow.array([1], pyarrow.int32()), 1)
    with pytest.raises(TypeError, match="timestamp"):
        adding()(pyarrow.array([1], pyarrow.timestamp("s")), 1)
    assert adding()(pyarrow.array([decimal.Decimal("2.0")]), 1).to_pylist() == [3]


def test_text_and_bytes() -> None:
    """Arrow's variants, dictionaries, NumPy's, and those of frames."""
    echo = WasmUDF("echo", ECHO, args=("str",), returns="str", abi="buffer")
    words = ["one", None, "", "zwölf"]
    for kind in ("string", "large_string", "string_view"):
        array = pyarrow.array(words, getattr(pyarrow, kind)())
        assert echo(array).to_pylist() == words
        assert echo(array[1:]).to_pylist() == words[1:]
    assert echo(pyarrow.array(words).dictionary_encode()).to_pylist() == words
    assert echo(polars.Series("w", words)).to_list() == words
    assert echo(polars.Series("w", words, polars.Categorical)).to_list() == words
    assert echo(numpy.array(["one", "two"])).tolist() == ["one", "two"]
    series = echo(pandas.Series(words))
    assert [None if pandas.isna(one) else one for one in series] == words
    assert echo(pyarrow.array([], pyarrow.string())).type == pyarrow.string()
    data = WasmUDF("echo", ECHO, args=("bytes",), returns="bytes", abi="buffer")
    assert data(pyarrow.array([b"\0\xff", None])).to_pylist() == [b"\0\xff", None]


# -- batches

COLUMNS = {"a": [6, 7, 8], "b": [2, 0, 3]}
BATCHES: dict[str, Callable[[dict[str, list[int]]], Any]] = {
    "table": pyarrow.table,
    "record batch": pyarrow.RecordBatch.from_pydict,
    "pandas": pandas.DataFrame,
    "polars": polars.DataFrame,
    "dict": lambda columns: {name: numpy.array(one, int) for name, one in columns.items()},
}


def cells(batch: Any, name: str) -> list[Any]:
    column = batch[name]
    values = (
        column.to_pylist()
        if hasattr(column, "to_pylist")
        else column.tolist()
        if hasattr(column, "tolist")
        else column.to_list()
    )
    return [None if value is None or value is pandas.NA else value for value in values]


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_each_kind(kind: str) -> None:
    """A batch out is of the same kind; poison rows are null, and a column has their errors."""
    make = BATCHES[kind]
    on = dividing(on_error="null").on("a", "b", into="c", error="why")
    batch = make(COLUMNS)
    found = on(batch)
    assert type(found) is type(batch)
    assert cells(found, "c") == [3, None, 2]
    texts = cells(found, "why")
    assert texts[::2] == [None, None]
    assert texts[1].startswith("TrapError: divide@")
    assert "\n" not in texts[1]
    assert "c" not in batch
    replaced = adding().on("a", "b", into="a")(batch)
    assert cells(replaced, "a") == [8, 7, 11]
    assert [*replaced] == [*batch] if kind in ("pandas", "dict") else True
    missing = dividing().on("x", "b", into="c")
    with pytest.raises(KeyError, match="no column 'x'; it has a, b"):
        missing(batch)
    seven = WasmUDF("seven", SEVEN, args=(), returns="i64").on(into="n")
    assert cells(seven(batch), "n") == [7, 7, 7]
    both = WasmUDF("both", BOTH, args=("i64",), returns=("i64", "f64")).on("a", into=("x", "y"))
    assert cells(both(batch), "y") == [6.0, 7.0, 8.0]


def types(batch: Any) -> dict[str, str]:
    if isinstance(batch, pandas.DataFrame):
        return {name: str(one) for name, one in batch.dtypes.items()}
    schema = batch.schema
    pairs = (
        schema.items() if hasattr(schema, "items") else zip(schema.names, schema.types, strict=True)
    )
    return {name: str(kind) for name, kind in pairs}


@pytest.mark.parametrize("kind", ["table", "record batch", "pandas", "polars"])
def test_all_batches_have_the_same_types(kind: str) -> None:
    """Empty ones, those without errors, and those of which all rows fail."""
    on = dividing(on_error="null").on("a", "b", into="c", error="why")
    make, found = BATCHES[kind], []
    for columns in (COLUMNS, {"a": [1], "b": [1]}, {"a": [1], "b": [0]}):
        found.append(types(on(make(columns))))
    found.append(types(on(make(COLUMNS)[:0] if kind != "table" else make(COLUMNS).slice(0, 0))))
    assert found == [found[0]] * 4
    assert found[0]["c"].lower() == "int64"


def test_errors_end_a_batch_otherwise() -> None:
    """With the row of the batch that was given."""
    with pytest.raises(TrapError) as caught:
        dividing().on("a", "b", into="c")(pyarrow.table(COLUMNS))
    assert (caught.value.row, caught.value.values) == (1, (7, 0))
    assert pickle.loads(pickle.dumps(caught.value)).row == 1
    errors: dict[int, Exception] = {}
    found = dividing(on_error="null").map([*COLUMNS.values()], row_errors=errors)
    assert (found, [*errors]) == ([3, None, 2], [1])
    with pytest.raises(TrapError):
        dividing(on_error="null", max_errors=0)([1], [0])


def test_in_duckdb() -> None:
    """The function itself is what DuckDB takes: with null handling, constants, and int32."""
    with duckdb.connect() as database:
        database.create_function("plus", adding(), ["BIGINT", "BIGINT"], "BIGINT", type="arrow")
        found = database.sql(
            "SELECT sum(plus(i, 1)), plus(NULL, 1) FROM range(5000) t(i) GROUP BY 2"
        )
        assert found.fetchall() == [(sum(range(5001)), None)]
        on = adding().on("a", "b", into="c")
        table = on(database.sql("SELECT i AS a, i::INTEGER AS b FROM range(3) t(i)"))
        assert (type(table), cells(table, "c")) == (pyarrow.Table, [0, 2, 4])


def test_in_polars() -> None:
    """`map_batches` of several columns, of one, of structs, and with a literal."""
    frame = polars.DataFrame({"a": [1, 2], "b": [3, None]})
    add, i64 = adding(), polars.Int64
    whole = polars.map_batches(["a", "b"], add.polars, return_dtype=i64).alias("whole")
    literal = polars.map_batches(["a", polars.lit(7)], add.polars, return_dtype=i64).alias(
        "literal"
    )
    struct_ = polars.struct("a", "b").map_batches(add.polars, return_dtype=i64).alias("struct")
    found = frame.lazy().select(whole, literal, struct_).collect()
    assert found.to_dict(as_series=False) == {
        "whole": [4, None],
        "literal": [8, 9],
        "struct": [4, None],
    }
    seven = WasmUDF("seven", ADD, args=I64S, returns="i64", export="add")
    assert frame.clear().select(polars.map_batches(["a", "b"], seven.polars)).shape == (0, 1)
    with pytest.raises(TypeError, match="takes 2 columns"):
        adding().polars(frame["a"])


# -- the caches of a process


def test_one_cache_for_each_configuration(tmp_path: Path) -> None:
    """Versions of a function, and other functions, are side by side in it; all close by name."""
    add, other = adding(log_dir=tmp_path), adding(wasm=SUBTRACT, log_dir=tmp_path)
    assert (add([5], [3]), other([5], [3])) == ([8], [2])
    assert pickle.loads(pickle.dumps(add))([5], [3]) == [8]
    assert adding(log_dir=tmp_path, timeout=HANG)([5], [3]) == [8]
    apart = adding(log_dir=tmp_path, config=CacheConfig(max_size=MiB))
    assert apart([1], [1]) == [2]
    assert len(process._books.caches) == 2
    add.close()
    add.close()
    assert other([5], [3]) == [2]  # which nobody has disturbed
    assert add([5], [3]) == [8]  # it is registered again
    for udf in (add, other, apart):
        udf.close()
    assert not process._books.caches
    assert add([5], [3]) == [8]
    add.close()
    log = events(tmp_path)
    assert log[-1]["event"] == "wasmcache.closed"
    registered = {one["function"] for one in log if one["event"] == "wasmcache.registered"}
    assert len(registered) == 2
    assert Counter(names(tmp_path))["registered"] == 5
    assert all(name.startswith("add@") for name in registered)
    assert {one["label"].rpartition("/")[2] for one in log} == {str(os.getpid())}
    assert Counter(names(tmp_path))["opened"] == Counter(names(tmp_path))["closed"] == 3


def test_many_threads_at_once(tmp_path: Path) -> None:
    """The first calls of all open one cache, and register each function once."""
    udfs = [adding(log_dir=tmp_path), dividing(log_dir=tmp_path)]
    with ThreadPoolExecutor(16) as threads:
        found = threads.map(lambda n: udfs[n % 2]([n], [n + 1]), range(64))
        assert [*found] == [[2 * n + 1] if n % 2 == 0 else [0] for n in range(64)]
    shut()
    counted = Counter(names(tmp_path))
    assert (counted["opened"], counted["registered"]) == (1, 2)


def test_versions_that_are_not_used_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lives for months keeps the last ones; an old one is registered again."""
    monkeypatch.setattr(process, "MAX_FUNCTIONS", 2)
    versions = [adding(wasm=ADD + f";; {n}", log_dir=tmp_path) for n in range(4)]
    for version in (*versions, versions[0]):
        assert version([1], [2]) == [3]
    shut()
    counted = Counter(names(tmp_path))
    assert (counted["opened"], counted["registered"], counted["removed"]) == (1, 5, 3)


def test_digests_that_begin_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have longer names."""
    monkeypatch.setattr(process, "DIGITS", 0)
    assert adding()([5], [3]) == [8]
    assert adding(wasm=SUBTRACT)([5], [3]) == [2]


def test_removed_while_a_call_waits(tmp_path: Path) -> None:
    """The call goes on, as others do that `close` finds under way."""
    add = adding(log_dir=tmp_path)
    assert add([1], [1]) == [2]
    (cache,) = process._books.caches.values()
    (entry,) = cache.entries.values()
    real, rounds = entry.function, []

    class Removed:
        """A function that is removed as it is called."""

        def map(self, columns: Any, **options: Any) -> Any:
            rounds.append(entry.function)
            add.close()
            return real.map(columns, **options)  # type: ignore[union-attr]

    entry.function = Removed()  # type: ignore[assignment]
    Removed.name, Removed.args = real.name, real.args  # type: ignore[attr-defined, union-attr]
    assert add([1], [2]) == [3]
    assert len(rounds) == 1
    shut()
    assert Counter(names(tmp_path))["registered"] == 2


def test_a_module_in_a_file(tmp_path: Path) -> None:
    """It is pickled by its path, and its digest is checked by each process that reads it."""
    file = tmp_path / "add.wat"
    file.write_text(ADD)
    add = adding(wasm=file)
    assert len(pickle.dumps(add)) < 500
    assert add == adding(wasm=file, digest=add.digest.upper())
    assert add([1], [2]) == [3]
    file.write_text(SUBTRACT)
    assert add([1], [2]) == [3]  # it is registered here
    add.close()
    again = pickle.loads(pickle.dumps(add))  # which does not read the file
    with pytest.raises(ValueError, match="this machine has another version"):
        again([1], [2])
    assert not process._books.caches
    file.unlink()
    with pytest.raises(FileNotFoundError):
        again([1], [2])
    assert adding(wasm=ADD, digest=add.digest)([1], [2]) == [3]


def test_a_module_that_is_refused_leaves_nothing() -> None:
    """Each call says why, and the cache is closed."""
    wrong = adding(export="sub")
    for _ in range(2):
        with pytest.raises(ExportError, match="add@"):
            wrong([1], [2])
    assert not process._books.caches


@pytest.mark.parametrize("step", ["_open", "_register"])
@pytest.mark.parametrize("way", ["call", "close"])
def test_in_the_midst_of_a_first_call(monkeypatch: pytest.MonkeyPatch, step: str, way: str) -> None:
    """As a signal handler or a finalizer may use it there: it would wait for itself."""
    add, real, refusals = adding(), getattr(process, step), []

    def interrupted(*args: Any) -> Any:
        if way == "close" and step == "_open":
            add.close()  # for which the lock of the cache is not needed
        else:
            with pytest.raises(RuntimeError, match="do it later") as caught:
                add.close() if way == "close" else add([1], [2])
            refusals.append(caught.value)
        return real(*args)

    monkeypatch.setattr(process, step, interrupted)
    assert add([1], [2]) == [3]
    assert len(refusals) == (way == "call" or step == "_register")
    add.close()
    assert not process._books.caches


def test_a_cache_that_has_ended_is_replaced(tmp_path: Path) -> None:
    """The calls that see it fail; engines try these again."""
    add = adding(log_dir=tmp_path)
    assert add([1], [2]) == [3]
    (cache,) = process._books.caches.values()
    assert cache.cache is not None
    cache.cache.close()
    with pytest.raises(trio.ClosedResourceError):
        add([1], [2])
    assert cache.log is not None
    assert cache.log._file < 0  # closed
    assert add([1], [2]) == [3]


def test_host_functions() -> None:
    """They are known by name; in them, nothing can wait for the cache that they hold up."""
    assert asking(operator.neg)([5]) == [-5]
    assert asking(operator.neg) == asking(operator.neg) != asking(operator.pos)
    with pytest.raises(RuntimeError, match=r"map of add: this is the BlockingCache's own thread"):
        asking(ask_another)([5])
    with pytest.raises(RuntimeError, match="close of asks: this is the BlockingCache's own thread"):
        asking(close_it)([5])


def ask_another(value: int) -> int:
    (found,) = adding()([value], [1])
    assert isinstance(found, int)
    return found


def close_it(value: int) -> int:
    asking(close_it).close()
    return value


def test_a_timeout_stops_the_guest() -> None:
    """The instance is given up, and the function can be called again."""
    spin = WasmUDF(
        "spin",
        ENDLESS,
        args=("i64",),
        returns="i64",
        timeout=0.01,
        config=CacheConfig(total_fuel=10**15),
    )
    for _ in range(2):
        with pytest.raises(TimeoutError, match="spin@"):
            spin([1])


def test_a_forked_child_has_its_own(tmp_path: Path) -> None:
    """It opens a cache at its first call, and closes it as it ends; the parent's is not touched."""
    add = adding(log_dir=tmp_path)
    assert add([1], [2]) == [3]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert not process._books.caches
            assert add([2], [3]) == [5]
            add.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert add([3], [4]) == [7]
    add.close()
    logs = [[json.loads(line) for line in f.read_text().splitlines()] for f in tmp_path.iterdir()]
    assert [log[-1]["event"] for log in logs] == 2 * ["wasmcache.closed"]
    assert len({log[0]["label"] for log in logs}) == 2


@pytest.mark.skipif(not NIGHTLY, reason="takes long: nightly")
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes(method: str, tmp_path: Path) -> None:
    """Each unpickles the function, and ends without closing anything."""
    on = adding(log_dir=tmp_path).on("a", "b", into="c")
    assert on(pyarrow.table(COLUMNS)).num_columns == 3
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(on, [pyarrow.table(COLUMNS)] * 4)
        pool.close()
        pool.join()
    assert [cells(one, "c") for one in found] == 4 * [[8, 7, 11]]


ENDING = "open_cache: the program is ending"


def test_the_program_ends_with_an_endless_guest(tmp_path: Path) -> None:
    """In a thread of an executor, which the interpreter waits for; the log is whole.

    No other cache is opened from then on, as nobody would close it: not after an error that may be
    tried again, and not by the interpreter's own last steps.
    """
    program = f"""
        import asyncio, atexit, sys, time, trio
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from trio_wasmcache import CacheConfig, aio, blocking
        from trio_wasmcache.udf import WasmUDF
        spin = WasmUDF("spin", {ENDLESS!r}, args=("i64",), returns="i64", log_dir={str(tmp_path)!r},
                       config=CacheConfig(total_fuel=10**15))
        def again_and_again():
            while True:
                try:
                    spin([1])
                except trio.ClosedResourceError:
                    pass
                except RuntimeError as error:
                    return print(error)
        def late():
            try:
                blocking.open_cache()
            except RuntimeError as error:
                print(error)
            asyncio.run(opened_late())
        async def opened_late():
            cache = aio.open_cache()
            try:
                await cache
            except RuntimeError as error:
                print(error)
            finally:
                await cache.close()
        atexit.register(late)
        ThreadPoolExecutor().submit(again_and_again)
        log = Path({str(tmp_path)!r})
        while not any("wasmcache.loaded" in file.read_text() for file in log.iterdir()):
            time.sleep(0.01)
        sys.exit(3)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, timeout=HANG, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert names(tmp_path)[-1] == "closed"
    assert [line.partition(",")[0] for line in done.stdout.splitlines()] == 3 * [ENDING]


def test_the_first_cache_of_a_program_that_ends() -> None:
    """It is refused likewise, though nothing has asked to be called at the end."""
    program = "import atexit, trio_wasmcache.blocking as b; atexit.register(b.open_cache)"
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=HANG, capture_output=True, text=True
    )
    assert f"RuntimeError: {ENDING}" in done.stderr
    assert "register atexit" not in done.stderr


def test_the_function_of_a_batch_is_public() -> None:
    """For annotations, and for pickles."""
    on = adding().on("a", "b", into="c")
    assert isinstance(on, BatchUDF)
    assert (type(on).__module__, on.__name__) == ("trio_wasmcache.udf", "add")  # type: ignore[attr-defined]
