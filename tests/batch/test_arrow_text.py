"""Arrow columns of text and bytes: their buffers as they are, in and out."""

from __future__ import annotations

from array import array
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from batch.routes import both, drives, udf
from hypothesis import HealthCheck, given, strategies as st
from kits import WasmtimeKit, tries

from trio_wasmcache import AbiError, Function, InstanceCache

TEXTS = [None if n % 7 == 3 else f"wörd {n}" * (n % 5) for n in range(5000)]


async def join(cache: InstanceCache) -> Function:
    return await cache.register("join", udf("scylla_v2"), args=("text", "text"), returns="text")


async def upper(cache: InstanceCache, kind: str) -> Function:
    export = "upper_packed"
    return await cache.register(
        kind, udf("buffer"), args=(kind,), returns=kind, abi="buffer", export=export
    )


def arrays() -> dict[str, Any]:
    plain = pa.array(TEXTS)
    return {
        "string": plain,
        "large_string": plain.cast(pa.large_string()),
        "string_view": plain.cast(pa.string_view()),
        "dictionary": plain.dictionary_encode(),
        "chunked": pa.chunked_array([plain.slice(0, 5), plain.slice(5, 0), plain.slice(5)]),
        "many chunks": pa.chunked_array([plain.slice(n, 9) for n in range(0, len(plain), 9)]),
        "sliced": pa.concat_arrays([pa.array(["x"] * 13), plain]).slice(13),
    }


@pytest.mark.parametrize("kind", arrays())
async def test_text_of_any_layout(real: WasmtimeKit, kind: str) -> None:
    """Comes back as an array of strings, nulls included."""
    async with real.open() as cache:
        f = await join(cache)
        async with f.acquire() as lease:
            result = await lease.map([arrays()[kind], "!"])
            assert drives(lease)
        result.validate(full=True)
        assert result.type == pa.string()
        assert result.to_pylist() == [None if text is None else f"{text}!" for text in TEXTS]


async def test_both_routes_give_the_same_array(real: WasmtimeKit) -> None:
    """Of text, bytes, and numbers beside them."""
    texts = pa.array(TEXTS[:500])
    blobs = pa.array([t and t.encode() for t in TEXTS[:500]], pa.large_binary())
    async with real.open() as cache:
        assert (await both(await join(cache), [texts, texts])).type == pa.string()
        assert (await both(await upper(cache, "bytes"), [blobs])).type == pa.binary()
        count = await cache.register("count", udf("scylla_v1"), args=("text", "int"), returns="int")
        assert (await both(count, [texts, 100])).type == pa.int32()
        assert (await both(count, [texts, array("i", range(500))])).type == pa.int32()
        echo = await cache.register("echo", udf("scylla_v2"), args=("ascii",), returns="ascii")
        assert (await both(echo, [pa.array(["a", None, "b"] * 2000)])).type == pa.string()
        times = await cache.register(
            "second", udf("scylla_v2"), args=("text", "int"), returns="int", called_on_null=True
        )
        assert (await both(times, [texts, pa.array([1, None] * 250, pa.int32())])).null_count == 250


@given(
    texts=st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    begin=st.integers(0, 9),
    large=st.booleans(),
)
@tries(15, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_chunks(
    real: WasmtimeKit, texts: list[str | None], cuts: list[int], begin: int, large: bool
) -> None:
    """However an array is cut into chunks and sliced, its rows are the same."""
    kind = pa.large_string() if large else pa.string()
    edges = [0, *sorted(min(cut, len(texts)) for cut in cuts), len(texts)]
    chunks = [pa.array([None] * begin + texts[a:b], kind).slice(begin) for a, b in pairwise(edges)]
    async with real.open() as cache:
        f = await join(cache)
        async with f.acquire() as lease:
            result = await lease.map([pa.chunked_array(chunks, kind), "é"])
            result.validate(full=True)
            assert result.to_pylist() == [None if text is None else f"{text}é" for text in texts]


async def test_frames_of_other_libraries(real: WasmtimeKit) -> None:
    """A column, or all columns of a frame, of polars."""
    pl = pytest.importorskip("polars", reason="NOT TESTED: polars is not installed")
    frame = pl.DataFrame({"a": ["x", None, "z"], "b": ["1", "2", "3"]})
    async with real.open() as cache:
        f = await join(cache)
        async with f.acquire() as lease:
            assert (await lease.map(frame)).to_pylist() == ["x1", None, "z3"]
            result = await lease.map([frame["a"], "!"])
            assert pl.Series(result).to_list() == ["x!", None, "z!"]
            categories = frame["a"].cast(pl.Categorical)
            assert (await lease.map([categories, ""])).to_pylist() == ["x", None, "z"]


@pytest.mark.parametrize("library", ["duckdb", "nanoarrow"])
async def test_results_of_libraries_that_may_be_missing(real: WasmtimeKit, library: str) -> None:
    """What they make goes in as it is."""
    made = pytest.importorskip(library, reason=f"NOT TESTED: {library} is not installed")
    if library == "duckdb":
        rows = made.sql(
            "select 'x' || i as a, case when i < 2 then 'y' end as b from range(3) t(i)"
        )
    else:
        rows = [made.Array(["x0", "x1", "x2"], made.string()), pa.array(["y", "y", None])]
    async with real.open() as cache:
        f = await join(cache)
        async with f.acquire() as lease:
            assert (await lease.map(rows)).to_pylist() == ["x0y", "x1y", None]


async def test_arrays_that_are_damaged(real: WasmtimeKit) -> None:
    """What is no UTF-8, or has offsets that lead nowhere, is refused before anything runs."""
    offsets = pa.py_buffer(array("i", [0, 1, 2]))
    latin = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff")])
    lost = pa.py_buffer(array("i", [0, 900, 2]))
    wild = pa.Array.from_buffers(pa.string(), 2, [None, lost, pa.py_buffer(b"ab")])
    async with real.open() as cache:
        f = await join(cache)
        async with f.acquire() as lease:
            for damaged in (latin, wild):
                with pytest.raises(ValueError, match=r"argument 2 of join.* array is damaged"):
                    await lease.map(["a", damaged])
            assert (await lease.map(["a", pa.array(["b"])])).to_pylist() == ["ab"]


async def test_results_that_are_no_text(real: WasmtimeKit) -> None:
    """Letters that are cut between two results are none, though together they are."""
    letters = pa.array([b"\xc3", b"\xa9"])
    async with real.open() as cache:
        f = await cache.register("echo", udf("scylla_v2"), args=("blob",), returns="text")
        error = await both(f, [letters])
        assert (type(error), error.row) == (AbiError, 0)
        error = await both(f, [pa.array(["é".encode(), b"", b"\xff"])])
        assert (type(error), error.row) == (AbiError, 2)


async def test_results_that_do_not_fit_into_the_scratch(real: WasmtimeKit) -> None:
    """And rows that do not, among those that do."""
    texts = pa.array(["a", None, "b" * 100_000, "", "c" * 40_000, "d" * 40_000])
    async with real.open() as cache:
        result = await both(await join(cache), [texts, "!"])
        assert result.to_pylist() == [None if t is None else f"{t}!" for t in texts.to_pylist()]
