"""Batches of text and bytes: what a memory driver gives is what calls for each row give."""

from __future__ import annotations

from array import array
from typing import Any

import pyarrow as pa
import pytest
import trio
from abi.support import SCALARS, cql_values
from batch.routes import both, drives, hashes, moody_cache, outcome, row_by_row, udf
from hypothesis import HealthCheck, given, strategies as st
from kits import WasmtimeKit, tries
from peeking import job_of

from trio_wasmcache import AbiError, BufferAbi, FuelExhaustedError, MemoryLimitError, TrapError
from trio_wasmcache._abi.scylla import NATIVE
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache.testing import check_invariants

TYPES = [
    *(name for name in SCALARS if name != "decimal"),
    "list<int>",
    "map<text,bigint>",
    "tuple<text,frozen<set<int>>>",
]
STYLES = ["packed", "packed_low", "area", "out"]
# Texts of all sizes: of which many, some and none fit into a scratch.
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.builds(
        lambda letter, size: letter * size,
        st.sampled_from(["x", "é"]),
        st.sampled_from([100, 9_000, 30_000, 60_000]),
    ),
)


def several(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, max_size=30)


ROUNDS = tries(12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def scylla(request: pytest.FixtureRequest) -> bytes:
    """UDFs for ScyllaDB, built for both versions of its ABI."""
    return udf(f"scylla_v{request.param}")


@pytest.mark.parametrize("called_on_null", [False, True], ids=["skipped", "passed"])
@given(data=st.data())
@ROUNDS
async def test_cql_values(
    real: WasmtimeKit, scylla: bytes, called_on_null: bool, data: st.DataObject
) -> None:
    """Of any type, with nulls, beside another column or a scalar."""
    # Without nulls, a number would cross as one.
    kinds = [one for one in TYPES if called_on_null or one not in NATIVE]
    name = data.draw(st.sampled_from(kinds))
    values = data.draw(several(cql_values(name)))
    number = len(values)
    other = data.draw(
        TEXTS | st.none() | st.lists(st.none() | TEXTS, min_size=number, max_size=number)
    )
    async with real.open() as cache:
        second = await cache.register(
            "second",
            scylla,
            args=("text", name),
            returns=name,
            called_on_null=called_on_null,
        )
        await both(second, [other, values], number)
        check_invariants(cache)


@given(data=st.data())
@ROUNDS
async def test_numbers_beside_texts(real: WasmtimeKit, scylla: bytes, data: st.DataObject) -> None:
    """They come out as in any batch: in a buffer, or as a list if a None came in."""
    letters = data.draw(several(st.integers(97, 99)))
    texts = data.draw(
        st.lists(st.none() | TEXTS, min_size=len(letters), max_size=len(letters))
        | st.sampled_from(["banana", "", "a" * 70_000])
    )
    async with real.open() as cache:
        count = await cache.register("count", scylla, args=("text", "int"), returns="int")
        result = await both(count, [texts, letters], len(letters))
        nones = None in letters or (isinstance(texts, list) and None in texts)
        assert isinstance(result, list if nones else memoryview)


@pytest.mark.parametrize("style", STYLES)
@given(values=several(TEXTS))
@ROUNDS
async def test_buffers(real: WasmtimeKit, style: Any, values: list[str | None]) -> None:
    """However the result is given; as text, and as bytes of any kind."""
    async with real.open() as cache:
        for kind, column in (
            ("str", values),
            ("bytes", [v if v is None else memoryview(v.encode()) for v in values]),
        ):
            upper = await cache.register(
                kind,
                udf("buffer"),
                args=(kind,),
                returns=kind,
                export=f"upper_{style}",
                abi=BufferAbi(result=style),
            )
            await both(upper, [column])


async def test_it_is_a_driver_that_does_it(real: WasmtimeKit, scylla: bytes) -> None:
    """And its scratch counts in the size of the instance, once."""
    async with real.open() as cache:
        join = await cache.register("join", scylla, args=("text", "text"), returns="text")
        async with join.acquire() as lease:
            await lease.call("a", "b")
            size = lease.size
            with row_by_row():
                await lease.map([["a"], ["b"]])
            assert not drives(lease)
            await lease.map([["a"], ["b"]])
            assert drives(lease)
            assert size < lease.size <= size + 256 * 1024
            size = lease.size
            await lease.map([["a", None] * 5000, "b"])
            assert lease.size == size


@pytest.mark.parametrize("abi", ["packed", "nul", "grown", "guest"])
async def test_arguments_of_each_owner(real: WasmtimeKit, abi: str) -> None:
    """Kept for the next row, grown once, or the guest's to free; with a zero behind, or without."""
    options: dict[str, Any] = {
        "packed": {},
        "nul": {"argument": "nul"},
        "grown": {},
        "guest": {"arguments_of": "guest"},
    }[abi]
    export = "hash_nul" if abi == "nul" else "hash"
    wasm = hashes(alone=True) if abi == "grown" else hashes()
    values = ["", "a", "abc" * 1000, None, "a" * 40_000, "x", "a" * 60_000, "y"]
    async with real.open() as cache:
        f = await cache.register(
            "f", wasm, args=("str",), returns="u32", export=export, abi=BufferAbi(**options)
        )
        result = await both(f, [values * 30])
        async with f.acquire() as lease:
            assert result == [None if v is None else await lease.call(v) for v in values] * 30
            if abi == "nul":
                with pytest.raises(ValueError, match=r"row 1: .*has a zero in it"):
                    await lease.map([["a", "b\0"]])


async def test_results_that_do_not_fit_into_the_scratch(real: WasmtimeKit) -> None:
    """Each is called for once, read out of the guest's memory, and freed."""
    async with real.open() as cache:
        wasm = udf("buffer")
        more: dict[str, Any] = {"abi": "buffer"}
        repeat = await cache.register("repeat", wasm, args=("str", "u32"), returns="str", **more)
        times = [0, 1, 200_000, 5, 100_000, 100_000, 3, 30_000, 30_000, 30_000, 1, 70_000]
        result = await both(repeat, ["ab", times])
        assert result == ["ab" * n for n in times]
        left = await cache.register("left", wasm, args=("str",), returns="i32", **more)
        async with left.acquire() as lease:
            assert list(await lease.map([["a", "b" * 100, "c"]])) == [1, 1, 1]


async def test_memory_does_not_creep(real: WasmtimeKit, scylla: bytes) -> None:
    """Nor does anything stay allocated, whichever route a row takes."""
    words = ["word", "x" * 30_000, None, "y" * 70_000, ""] * 40
    async with real.open() as cache:
        join = await cache.register("join", scylla, args=("text", "text"), returns="text")
        async with join.acquire() as lease:
            first = await lease.map([[word and word[:60_000] for word in words], "a"])
            size = lease.size
            for _ in range(3):
                assert await lease.map([[word and word[:60_000] for word in words], "a"]) == first
            assert lease.size == size


MOODS: list[tuple[list[str], type[Exception] | None, int | None]] = [
    (["x", "t", "x"], TrapError, 1),
    (["x" * 1019, "x"], MemoryLimitError, 0),
    (["x", "x" * 1021], AbiError, 1),
    (["x", "y" * 500, "x" * 1013], TrapError, 2),
    (["x", "", "f"], TrapError, 2),
    (["x", "l", "x"], AbiError, 1),
    (["x", "b", "t"], AbiError, 1),
    (["x", "é", "b"], AbiError, 2),
    (["x"] * 3000 + ["t"], TrapError, 3000),
    (["x" * 50_000, "x", "f" * 70_000], TrapError, 2),
    (["x", "b", "x" * 70_000, "x"], AbiError, 1),
    (["x", "x" * 70_000, "t" * 70_000], TrapError, 2),
    (["x", "g" * 40_000, "g", "x" * 5000, "", "a", "a" * 30_000], None, None),
]


@pytest.mark.parametrize(("values", "error", "row"), MOODS)
async def test_what_goes_wrong(
    real: WasmtimeKit, values: list[str], error: type[Exception] | None, row: int | None
) -> None:
    """In the function, in malloc, in free, in what the guest says: the same row by row."""
    async with moody_cache(real, lambda size: size) as (cache, f):
        result = await both(f, [values])
        if error is None:
            assert result == values
        else:
            assert (type(result), result.row) == (error, row)
            assert row is not None
            given = values[row]
            assert result.values == (given if len(given) <= 65_000 else given[:1000],)
        assert await f.call("x") == "x"
        check_invariants(cache)


@pytest.mark.parametrize(
    ("size", "error"), [(1013, TrapError), (1019, MemoryLimitError), (1021, AbiError)]
)
async def test_an_allocator_of_scylla_that_fails(
    real: WasmtimeKit, size: int, error: type[Exception]
) -> None:
    """By a trap, for want of room, or by a lie: nothing is written, and the row is named."""
    async with real.open() as cache:
        echo = await cache.register("echo", udf("scylla_v2"), args=("text",), returns="text")
        failed = await both(echo, [["a", None, "b" * size, "c"]])
        assert (type(failed), failed.row) == (error, 2)
        check_invariants(cache)


@given(
    st.lists(
        st.sampled_from(["", "x", "g", "a", "h!", "t", "l", "b", "é", "x" * 1019]), max_size=40
    )
)
@ROUNDS
async def test_any_moods(real: WasmtimeKit, values: list[str]) -> None:
    """Whatever comes first is what is raised, and in its row."""
    values = ["x"] * 20 + values
    async with moody_cache(real, lambda size: size) as (_, f):
        await both(f, [values])


@pytest.mark.parametrize("offload", [None, 0], ids=["inline", "thread"])
async def test_host_functions_in_between(real: WasmtimeKit, offload: int | None) -> None:
    """Once for each row, in order, and rows that are too large in between."""
    asked: list[int] = []

    async def ask(size: int) -> int:
        asked.append(size)
        await trio.lowlevel.checkpoint()
        return size - 1

    values = ["h" * (n + 1) for n in range(50)] + ["x", "h" * 70_000, "h" * 40_000, "hh"]
    async with moody_cache(real, ask, offload_after=offload) as (_, f):
        wanted = [v[:-1] if v[0] == "h" else v for v in values]
        assert await outcome(f, [values]) == wanted
        assert asked == [len(v) for v in values if v[0] == "h"]


async def test_an_exception_of_a_host_function(real: WasmtimeKit) -> None:
    """Comes out as it is, with a note; what an earlier row had broken comes first."""

    def ask(size: int) -> int:
        raise KeyError(size)

    async with moody_cache(real, ask) as (cache, f):
        async with f.acquire() as lease:
            with pytest.raises(KeyError) as caught:
                await lease.map([["x", "hhh"]])
            assert caught.value.__notes__ == [
                "in host function host.ask, called by f(str)",
                "in row 1 of a batch of f(str)",
            ]
        broken = await both(f, [["x", "b", "h"]])
        assert (type(broken), broken.row) == (AbiError, 1)
        check_invariants(cache)


@pytest.mark.parametrize("offload", [None, 0], ids=["inline", "thread"])
async def test_an_endless_row(real: WasmtimeKit, offload: int | None) -> None:
    """Burns its own budget, however many rows there are, and is named."""
    limits = {"total_fuel": 200_000, "yield_fuel": 10_000, "offload_after": offload}
    async with moody_cache(real, lambda size: size, **limits) as (cache, f):
        async with f.acquire() as lease:
            assert len(await lease.map([["x"] * 20_000])) == 20_000
            assert lease.fuel_consumed is not None
            assert lease.fuel_consumed > 200_000
            with pytest.raises(FuelExhaustedError) as caught:
                await lease.map([["x"] * 3000 + ["e"]])
            assert (caught.value.row, caught.value.values) == (3000, ("e",))
        check_invariants(cache)


@pytest.mark.parametrize("offload", [None, 0], ids=["inline", "thread"])
async def test_cancelled_and_closed(real: WasmtimeKit, offload: int | None) -> None:
    """Half-way, in the guest: the instance is dropped, and the next one serves."""
    limits = {"total_fuel": 10**15, "offload_after": offload}
    async with moody_cache(real, lambda size: size, **limits) as (cache, f):
        async with f.acquire() as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lease.map, [["x"] * 5000 + ["e"]])
                while job_of(lease) is None:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            with pytest.raises(trio.BrokenResourceError):
                await lease.map([["x"]])
        assert await outcome(f, [["x", "y"]]) == ["x", "y"]
        check_invariants(cache)

        async def endless(task_status: Any) -> None:
            async with f.acquire() as lease:
                task_status.started(lease)
                with pytest.raises(trio.ClosedResourceError):
                    await lease.map([["x", "e"]])

        async with trio.open_nursery() as nursery:
            lease = await nursery.start(endless)
            while job_of(lease) is None:
                await trio.lowlevel.checkpoint()
            await parts_of(cache).close()


async def test_values_that_do_not_fit(real: WasmtimeKit, scylla: bytes) -> None:
    """Are found before anything runs, in whatever row and column; the lease goes on."""
    async with real.open() as cache:
        join = await cache.register("join", scylla, args=("text", "ascii"), returns="text")
        async with join.acquire() as lease:
            for columns, said in (
                ([["a", 1], "b"], r"row 1: argument 1 of join.*text takes a str, got 1"),
                ([["a"] * 5000 + [b"b"], "b"], r"row 5000: argument 1 of join"),
                ([["a", "b"], ["c", "é"]], r"row 1: argument 2 of join.*ascii can't hold 'é'"),
                ([["a", "\ud800"], "c"], r"row 1: argument 1 of join.*text can't hold"),
                ([["a"], 5], r"row 0: argument 2 of join.*ascii takes a str, got 5"),
            ):
                with pytest.raises((TypeError, ValueError), match=said):
                    await lease.map(columns)
            assert await lease.map([["a", None], "b"]) == ["ab", None]
        count = await cache.register("count", scylla, args=("text", "int"), returns="int")
        async with count.acquire() as lease:
            with pytest.raises(OverflowError, match=r"row 1: argument 2 of count"):
                await lease.map([["a", "b"], [1, 2**31]])
            assert list(await lease.map(["banana", range(97, 100)])) == [3, 1, 0]


async def test_texts_of_other_kinds(real: WasmtimeKit, scylla: bytes) -> None:
    """NumPy's, and what is derived from str, whatever it says of itself."""
    numpy = pytest.importorskip("numpy", reason="NOT TESTED: NumPy is not installed")

    class Liar(str):
        def __len__(self) -> int:
            return 1000

    async with real.open() as cache:
        join = await cache.register("join", scylla, args=("text", "text"), returns="text")
        for texts in (
            numpy.array(["ab", "c"]),
            numpy.array(["ab", "c"], dtype=object),
            [Liar("ab"), "c"],
        ):
            assert await both(join, [texts, "!"]) == ["ab!", "c!"]
        assert await both(join, [numpy.array(["a", None]), numpy.str_("b")]) == ["ab", None]
        error = r"argument 1 of join.* its items are no numbers"
        async with join.acquire() as lease:
            with pytest.raises(TypeError, match=error):
                await lease.map([numpy.array(["2026-01-01"], dtype="datetime64[ns]"), "b"])


async def test_columns_of_other_types(real: WasmtimeKit, scylla: bytes) -> None:
    """Numbers go in if they fit, from whatever buffer; what is no text is refused."""
    async with real.open() as cache:
        count = await cache.register("count", scylla, args=("text", "int"), returns="int")
        for letters in (array("q", [97, 98]), array("i", [97, 98]), (97, 98)):
            assert list(await both(count, ["banana", letters])) == [3, 1]
        async with count.acquire() as lease:
            for column in (pa.array([1]), pa.array([b"a"]), [b"a"]):
                with pytest.raises(TypeError, match=r"row 0: argument 1 of count.*takes a str"):
                    await lease.map([column, 1])
            with pytest.raises(TypeError, match=r"row 0: argument 2 of count.*takes an int"):
                await lease.map(["banana", 1.5], rows=2)
        for returns, wanted in (("tinyint", [44, 3, 0]), ("boolean", [True, True, False])):
            f = await cache.register(
                returns, scylla, args=count.args, returns=returns, export="count"
            )
            assert list(await both(f, [["a" * 300, "aaa", "b"], 97])) == wanted


async def test_the_first_row_of_a_guest_that_breaks_its_abi(real: WasmtimeKit) -> None:
    """Where the version of the ABI can't be, the first row that is called says so."""
    text = """(module (memory (export "memory") 1)
        (global (export "_scylla_abi") i32 (i32.const -4))
        (func (export "f") (param i64) (result i64) (local.get 0)))"""
    async with real.open() as cache:
        f = await cache.register("f", text, args=("text",), returns="text")
        error = await both(f, [[None, "a"]])
        assert (type(error), error.row) == (AbiError, 1)
