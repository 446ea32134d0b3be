"""Columns that do not fit: each is told before anything has run, and the lease goes on."""

from __future__ import annotations

import copy
import itertools
import pickle
from array import array
from typing import Any

import pyarrow as pa
import pytest
import trio
from batch.modules import binary, counting, held, same
from kits import FakeKit, Kit, WasmtimeKit
from peeking import in_call

from trio_wasmcache import Lease

TWO = ("i64", "i64")

COLUMNS: list[tuple[Any, type[Exception], str]] = [
    ([[1, 2]], TypeError, r"f\(i64, i64\) takes 2 arguments, .* got 1 of them; if they are rows"),
    ([[1], [2], [3]], TypeError, "takes 2 arguments, .* got 3"),
    ([[1, 2], [3]], ValueError, "argument 1 has 2, that of argument 2 has 1"),
    ([[1, 2], array("q", [1, 2, 3])], ValueError, "differ in their number of rows"),
    ([1, 2], ValueError, r"or map\(columns, rows=...\)"),
    (array("q", [1]), TypeError, r"a list with a column for each argument.*got array"),
    (7, TypeError, "a list with a column for each argument.*got int"),
    (iter([[1], [2]]), TypeError, "a list with a column for each argument"),
    ([array("i", [1]), [1]], TypeError, r"argument 1 of f.*i64 takes a buffer of format 'q'.*'i'"),
    ([[1], array("Q", [1])], TypeError, r"argument 2 of f.* \(8 bytes an item\), got one of .*'Q'"),
    ([[1], array("d", [1])], TypeError, "got one of format 'd'"),
    ([[1], b"x"], TypeError, "got one of format 'B'"),
    ([[1], memoryview(bytes(16)).cast("q", (2, 1))], ValueError, "argument 2 of f: .* has 2"),
    ([[1, 2, "3"], 1], TypeError, "row 2: argument 1 of f.*: i64 takes an int, got '3'"),
    ([[1, 2, 3], [1, 2.5, 3]], TypeError, "row 1: argument 2 of f.*: i64 takes an int, got 2.5"),
    ([[1, 2**63], 1], OverflowError, f"row 1: argument 1 of .*{2**63} is out of the range of i64"),
    ([[1, 2], 2**63], OverflowError, "row 0: argument 2 of .* is out of the range of i64"),
    ([[1, 2], "2"], TypeError, "row 0: argument 2 of .* takes an int, got '2'"),
    ([[1, 2], {1, 2}], TypeError, r"got set: give list\(...\) of it"),
    ([[1] * 5000 + [None, 0.5], 1], TypeError, "row 5001: argument 1"),
]


@pytest.mark.parametrize(("columns", "kind", "message"), COLUMNS)
async def test_columns_that_do_not_fit(
    kit: Kit, columns: Any, kind: type[Exception], message: str
) -> None:
    """Named are argument, type, row and value, or what differs; no wasm has run."""
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        with pytest.raises(kind, match=message) as caught:
            await lease.map(columns)
        assert type(caught.value) is kind
        assert not lease.fuel_consumed
        assert list(await lease.map([[1], [2]])) == [3]
        assert await lease.call(1, 2) == 3


@pytest.mark.parametrize(
    ("name", "values", "kind", "message"),
    [
        ("u8", [1, 256], OverflowError, "row 1: .*256 is out of the range of u8, 0 to 255"),
        ("i8", [-129], OverflowError, "row 0: .*-129 is out of the range of i8"),
        ("u32", [2**32 - 1, -1], OverflowError, "row 1: .*-1 is out of the range of u32"),
        ("bool", [True, 1], TypeError, "row 1: .*bool takes True or False, got 1"),
    ],
)
async def test_values_out_of_range(
    kit: Kit, name: str, values: list[Any], kind: type[Exception], message: str
) -> None:
    """By their logical type, as for a single call."""
    async with held(kit, same(kit, "i32"), args=(name,), returns=name) as (_, lease):
        with pytest.raises(kind, match=message) as caught:
            await lease.map([values])
        error: Any = caught.value
        assert (error.row, error.values) == (len(values) - 1, (values[-1],))


async def test_the_error_of_a_row_is_pickled_whatever_the_value(kit: Kit) -> None:
    """It is of a built-in type, and keeps its row; what can't be pickled is kept as its repr."""
    async with held(kit, same(kit, "i32"), args=("i32",), returns="i32") as (_, lease):
        with pytest.raises(TypeError, match="row 2: ") as caught:
            await lease.map([[1, 2, bad := lambda: 3]])
        error: Any = caught.value
        assert (error.row, error.values) == (2, (bad,))
        for again in (copy.copy(error), copy.deepcopy(error)):
            assert (type(again), again.row, again.values) == (TypeError, 2, (bad,))
        found = pickle.loads(pickle.dumps(error))
        assert (type(found), found.row, found.values) == (TypeError, 2, (repr(bad),))
        assert str(found) == str(error)


async def test_reals_out_of_range(kit: Kit) -> None:
    """What no f32 comes near is refused, not made infinite."""
    async with held(kit, same(kit, "f32"), args=("f32",), returns="f32") as (_, lease):
        with pytest.raises(OverflowError, match=r"row 1: .* is too large for f32"):
            await lease.map([[1.0, 1e39]])
        with pytest.raises(TypeError, match=r"row 0: .*f32 takes a float, got 'x'"):
            await lease.map([["x"]])


async def test_items_that_are_no_numbers(fake: FakeKit) -> None:
    """NumPy's dates make a buffer that has no format."""
    numpy = pytest.importorskip("numpy")
    dates = numpy.array(["2020-02-02"], dtype="datetime64[s]")
    async with held(fake, fake.adding(1)) as (_, lease):
        with pytest.raises(TypeError, match="argument 1 of f: its items are no numbers"):
            await lease.map([dates])
        assert list(await lease.map([numpy.arange(3)])) == [1, 2, 3]
        assert list(await lease.map([numpy.int64(3)], rows=1)) == [4]


async def test_a_masked_array_is_refused(fake: FakeKit) -> None:
    """What is masked would be taken for a number; the two ways to pass it as null are told."""
    numpy = pytest.importorskip("numpy")
    masked = numpy.ma.masked_array([1, 2, 3], mask=[0, 1, 0])
    async with held(fake, fake.adding(1)) as (_, lease):
        for column, rows in ((masked, None), (numpy.ma.masked, 1)):
            with pytest.raises(TypeError, match="argument 1 of f: the mask of NumPy's"):
                await lease.map([column], rows=rows)
        assert await lease.map([masked.tolist()]) == [2, None, 4]
        assert (await lease.map([pa.array(masked)])).to_pylist() == [2, None, 4]


async def test_null_is_no_number(kit: Kit) -> None:
    """A function that is called on null gets it, and numbers have none."""
    more = {"args": TWO, "called_on_null": True}
    async with held(kit, kit.adding_two(), **more) as (_, lease):
        with pytest.raises(TypeError, match=r"row 1: argument 1 of f.* got None"):
            await lease.map([[1, None, None], [1, 2, 3]])
        with pytest.raises(TypeError, match=r"row 0: argument 2 of f.* got None"):
            await lease.map([[1, 2], None])


async def test_rows_that_contradict(kit: Kit) -> None:
    """A number of rows that is not that of the columns, that none can have, or none at all."""
    async with held(kit, counting(kit), args=()) as (_, lease):
        for rows in (-1, 2**63):
            with pytest.raises(ValueError, match=f"there can't be {rows} rows"):
                await lease.map([], rows=rows)
        with pytest.raises(ValueError, match=r"f\(\) takes no arguments: give the number of rows"):
            await lease.map([])
        assert list(await lease.map([], rows=1)) == [1]
    async with held(kit, kit.adding(1)) as (_, lease):
        for wrong in (2.0, "2"):
            with pytest.raises(TypeError, match=f"rows takes an int, got {type(wrong).__name__}"):
                await lease.map([1], rows=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="argument 1 has 2; rows=3"):
            await lease.map([[1, 2]], rows=3)


@pytest.mark.parametrize("empty", [[], range(0), array("q")])
async def test_without_rows_no_scalar_is_wrong(kit: Kit, empty: Any) -> None:
    """As None is, and as text is: nothing would take it, whatever it is."""
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        for scalar in (2**63, "2", None):
            assert list(await lease.map([empty, scalar])) == []
            assert list(await lease.map([scalar, empty])) == []
        assert await lease.call(1, 2) == 3


@pytest.mark.parametrize("columns", [[[1, None], 2**63], [[1, None], [1, 2**63]]])
async def test_a_null_is_not_to_blame(kit: Kit, columns: list[Any]) -> None:
    """What does not fit is named, also where a null stands before it in its row."""
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        with pytest.raises(OverflowError, match=f"argument 2 of .*{2**63} is out of the range"):
            await lease.map(columns)
        assert not lease.fuel_consumed


@pytest.mark.parametrize(
    ("abi", "args", "good", "bad", "message"),
    [
        ("buffer", ("str", "i32"), "a", 2**40, "argument 2 of .*out of the range of i32"),
        ("buffer", ("i32", "str"), 1, 7, "argument 2 of .*str takes a str, got 7"),
        ("scylla", ("int", "text"), 1, 7, "argument 2 of .*text takes a str, got 7"),
    ],
)
async def test_a_null_beside_text_is_not_to_blame(
    real: WasmtimeKit, abi: str, args: tuple[str, str], good: Any, bad: Any, message: str
) -> None:
    """The same in what crosses through memory."""
    params = "i32 i64" if abi == "scylla" else "i32 i32 i32"
    wasm = binary(f"""(memory (export "memory") 1) (data (i32.const 0) "\\01\\00\\00\\00")
        (global (export "_scylla_abi") i32 (i32.const 0))
        (func (export "f") (param {params}) (result i32) (local.get 0))""")
    returns = "int" if abi == "scylla" else "i32"
    async with real.open() as cache:
        await cache.register("f", wasm, args=args, returns=returns, abi=abi)
        async with cache.acquire("f", args) as lease:
            with pytest.raises((TypeError, OverflowError), match=message):
                await lease.map([[good, None], [None, bad]])
            with pytest.raises((TypeError, OverflowError), match=message):
                await lease.map([None, [None, bad]])


async def test_a_list_that_changes_meanwhile(fake: FakeKit) -> None:
    """Its length is looked at again as it is checked, piece by piece."""
    values = [1] * 10_000
    ticks = itertools.count()

    async def batch(lease: Lease) -> None:
        with pytest.raises(ValueError, match="changed its length"):
            await lease.map([values])

    async with held(fake, fake.adding(1)) as (cache, lease), trio.open_nursery() as nursery:
        # Others run after each piece, which takes a millisecond.
        cache._pool.runner.cpu_clock = lambda: next(ticks) * 0.001
        nursery.start_soon(batch, lease)
        while not in_call(lease):
            await trio.lowlevel.checkpoint()
        values.clear()
