"""Batches of functions whose values cross through memory, or by an ABI of the user's own."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trio
from attrs import frozen
from batch.modules import binary
from kits import Kit, WasmtimeKit, add
from peeking import in_call

from trio_wasmcache import (
    AbiError,
    CacheConfig,
    Exports,
    FuelExhaustedError,
    Guest,
    Invoke,
    TrapError,
)
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache._core.wasm.reader import FuncType
from trio_wasmcache.testing import check_invariants, snapshot

UDFS = Path(__file__).parents[1] / "udfs"
TWO_I64_TO_I64 = FuncType(("i64", "i64"), ("i64",))
I64_TO_I64, TWO_I64 = FuncType(("i64",), ("i64",)), FuncType((), ("i64", "i64"))


@frozen
class Twice:
    """Calls the export twice: with the value, and with what came of it. Takes even numbers."""

    arity: int = 1
    signature: FuncType = I64_TO_I64
    lower: Callable[[tuple[Any, ...]], Sequence[Any]] | None = None
    lift: Callable[[Any], Any] | None = None

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> Twice:
        return self

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError(f"f takes 1 argument, got {len(values)}")

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
        (value,) = values
        if value is None:
            return "nothing"
        if value % 2:
            raise ValueError(f"{value} is odd")
        once = yield Invoke("run", (value,))
        if once == 10**6 + 1:
            raise AbiError("that can't be")
        return str((yield Invoke("run", (once,))))


@frozen
class Words(Twice):
    """Takes numbers as words; needs no steps."""

    lower: Callable[[tuple[Any, ...]], Sequence[Any]] | None = lambda values: (int(values[0]),)
    lift: Callable[[Any], Any] | None = str
    steps: Any = None


class Unencodable:
    """Raises a ValueError that is not made of a message."""

    def __int__(self) -> int:
        return len("é".encode("ascii"))


@frozen
class Sum(Twice):
    """Two numbers to their sum; leaves it to wasm to find what is none."""

    arity: int = 2
    signature: FuncType = TWO_I64_TO_I64
    steps: Any = None


async def test_rows_go_through_the_steps_of_the_abi(kit: Kit) -> None:
    """A list of whatever the ABI makes of it, for columns of every kind."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), abi=Twice())
        async with f.acquire() as lease:
            assert await lease.map([[2, 4, 6]]) == ["4", "6", "8"]
            assert lease.fuel_consumed
            assert await lease.map([array("q", range(0, 4000, 2))]) == [
                str(n + 2) for n in range(0, 4000, 2)
            ]
            assert await lease.map([8], rows=2) == ["10", "10"]
            assert await lease.map([(ctypes.c_int64 * 2)(4, 6)]) == ["6", "8"]
            assert await lease.map([[]]) == []
            assert await lease.map([[2, None]]) == ["4", None]
            assert await lease.call(2) == "4"
        assert cache.stats().calls == 7
        check_invariants(cache)


async def test_called_on_null(kit: Kit) -> None:
    """The ABI gets the None."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), abi=Twice(), called_on_null=True)
        async with f.acquire() as lease:
            assert await lease.map([[2, None]]) == ["4", "nothing"]


async def test_a_value_that_does_not_fit(kit: Kit) -> None:
    """Its row is named; nothing is returned, and the lease goes on."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), abi=Twice())
        async with f.acquire() as lease:
            with pytest.raises(ValueError, match=r"^row 2: 3 is odd") as caught:
                await lease.map([[0, 2, 3, 4]])
            error: Any = caught.value
            assert (error.row, error.values) == (2, (3,))
            with pytest.raises(TypeError, match=r"takes 1 argument, .* got 2"):
                await lease.map([[0], [2]])
            assert await lease.map([[0]]) == ["2"]


async def test_a_null_beside_a_value_that_does_not_fit(kit: Kit) -> None:
    """As `call` does, what goes row by row gives null, and looks no further."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding_two(), args=("i64", "i64"), abi=Sum())
        async with f.acquire() as lease:
            assert await lease.call(None, "no number") is None
            assert await lease.map([[None, 1], ["no number", 2]]) == [None, 3]
            with pytest.raises(TypeError, match="row 1"):
                await lease.map([[None, 1], ["no number", "no number"]])


async def test_an_abi_without_steps(kit: Kit) -> None:
    """Is lowered, called and lifted for each row."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), abi=Words())
        async with f.acquire() as lease:
            assert await lease.map([["1", "2"]]) == ["2", "3"]
            assert await lease.map(["41"], rows=1) == ["42"]
            with pytest.raises(ValueError, match=r"row 1: invalid literal"):
                await lease.map([["1", "x"]])
            with pytest.raises(TypeError, match=r"row 0: f takes"):
                await lease.map([[str(2**63)]])
            with pytest.raises(ValueError, match=r"row 1: 'ascii' codec can't encode"):
                await lease.map([["1", Unencodable()]])
            assert await lease.map([["1"]]) == ["2"]


async def test_a_guest_that_fails_names_its_row(kit: Kit) -> None:
    """By a trap or by its ABI; the lease is broken."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.trapping(), abi=Twice())
        g = await add(cache, "g", kit.adding(1), abi=Twice())
        async with f.acquire() as lease:
            with pytest.raises(TrapError, match=r"f\(i64\) in row 1 of a batch") as caught:
                await lease.map([[None, 2]])
            assert (caught.value.row, caught.value.values) == (1, (2,))
            with pytest.raises(trio.BrokenResourceError):
                await lease.map([[2]])
        async with g.acquire() as lease:
            with pytest.raises(AbiError, match="that can't be") as refused:
                await lease.map([[0, 2, 10**6, 4]])
            assert refused.value.row == 2
    check_invariants(cache)


@pytest.mark.parametrize("abi", [Twice(), Words()], ids=["steps", "no steps"])
async def test_a_row_that_fails_at_once_has_burnt_fuel(kit: Kit, abi: Twice) -> None:
    """What it burnt in its only slice is the lease's, and its group is charged for it."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.trapping(), abi=abi)
        async with cache.scheduling_group("g", capacity=1) as group, f.acquire() as lease:
            cache._pool.runner.cpu_clock = lambda: 0.0  # conversions are charged by time
            group._state.share.begin_burst()
            before = snapshot(cache).group(group.name).virtual_time
            with pytest.raises(TrapError):
                await lease.map([[2]])
            assert lease.fuel_consumed
            charged = (snapshot(cache).group(group.name).virtual_time - before) * group.shares
            assert charged == pytest.approx(lease.fuel_consumed)


@pytest.mark.parametrize("offload", [None, 0], ids=["inline", "thread"])
async def test_rows_that_take_many_slices(kit: Kit, offload: int | None) -> None:
    """Each has its own budget of fuel, and goes where a call would."""
    limits = CacheConfig(yield_fuel=10_000, total_fuel=200_000, offload_after=offload)
    async with kit.open(limits) as cache:
        f = await add(cache, "f", kit.costly(), abi=Twice())
        g = await add(cache, "g", kit.endless(), abi=Twice())
        async with f.acquire() as lease:
            assert await lease.map([range(0, 20, 2)]) == [str(n) for n in range(0, 20, 2)]
            assert lease.fuel_consumed is not None
            assert lease.fuel_consumed > limits.total_fuel
        async with g.acquire() as lease:
            with pytest.raises(FuelExhaustedError) as caught:
                await lease.map([[None, 2]])
            assert caught.value.row == 1
        check_invariants(cache)


async def test_cancelled_between_rows(kit: Kit) -> None:
    """Others run now and then; a batch that is cancelled there has left nothing half-done."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), abi=Twice())
        async with f.acquire() as lease:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lease.map, [[2] * 1_000_000])
                    for _ in range(10):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            assert scope.cancelled_caught
            assert not in_call(lease)
            assert await lease.map([[2]]) == ["4"]


async def test_closed_between_rows(kit: Kit) -> None:
    """The cache closes under a batch of short rows."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), abi=Twice())

        async def batch() -> None:
            async with f.acquire() as lease:
                with pytest.raises(trio.ClosedResourceError):
                    await lease.map([[2] * 1_000_000])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(batch)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            await parts_of(cache).close()


async def test_arrow_columns_of_text(kit: Kit) -> None:
    """Arrow in, Arrow out, of the type that the function returns."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), abi=Words(), args=("text",), returns="text")
        async with f.acquire() as lease:
            result = await lease.map([pa.array(["1", None, "3"])])
            assert result.type == pa.string()
            assert result.to_pylist() == ["2", None, "4"]
        g = await add(cache, "g", kit.adding(1), abi=Words(), args=("text",), returns="bigint")
        async with g.acquire() as lease:
            with pytest.raises(TypeError, match="values of type bigint"):
                await lease.map([pa.array(["1"])])


async def test_no_arguments_and_several_results(real: WasmtimeKit) -> None:
    """`rows` says how many; results come as a tuple of lists."""

    @frozen
    class Pairs(Twice):
        arity: int = 0
        signature: FuncType = TWO_I64

        def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
            return (yield Invoke("run", values))

    text = '(module (func (export "run") (result i64 i64) (i64.const 1) (i64.const 2)))'
    async with real.open() as cache:
        f = await add(cache, "f", binary(text), abi=Pairs(), args=(), returns=("i64", "i64"))
        async with f.acquire() as lease:
            assert await lease.map([], rows=3) == ([1, 1, 1], [2, 2, 2])


@pytest.fixture(params=["scylla_v1", "scylla_v2"])
def scylla(request: pytest.FixtureRequest) -> bytes:
    """UDFs for ScyllaDB, built for both versions of its ABI."""
    return (UDFS / f"{request.param}.wasm").read_bytes()


async def test_text_of_scylla_functions(real: WasmtimeKit, scylla: bytes) -> None:
    """Lists, scalars, nulls and Arrow; memory does not creep row after row."""
    words = [f"word {n}" for n in range(3000)]
    async with real.open() as cache:
        join = await cache.register("join", scylla, args=("text", "text"), returns="text")
        async with join.acquire() as lease:
            assert await lease.map([words[:10], "!"]) == [f"{word}!" for word in words[:10]]
            size = lease.size
            assert await lease.map([words, words]) == [word * 2 for word in words]
            assert await lease.map([["", "a", None], ""]) == ["", "a", None]
            result = await lease.map([pa.array(["a", None]), pa.array(["b", "c"])])
            assert result.equals(pa.array(["ab", None]))
            assert lease.size == size
            with pytest.raises(TypeError, match=r"row 1: argument 2 of join.*text"):
                await lease.map([["a", "b"], ["c", 4]])
            assert await lease.map([["a"], ["b"]]) == ["ab"]
        check_invariants(cache)


async def test_nullable_columns_of_scylla_functions(real: WasmtimeKit, scylla: bytes) -> None:
    """Called on null, the guest gets the null; numbers come out as a list."""
    more: dict[str, Any] = {"args": ("int", "int"), "returns": "int", "called_on_null": True}
    async with real.open() as cache:
        plus = await cache.register("plus", scylla, **more)
        async with plus.acquire() as lease:
            assert await lease.map([[1, None, None], [2, 3, None]]) == [3, 3, None]
            assert await lease.map([array("i", [1, 2]), None]) == [1, 2]
            result = await lease.map([pa.array([1, None], pa.int32()), 1])
            assert result.equals(pa.array([2, 1], pa.int32()))


async def test_numbers_of_scylla_functions_take_the_driver(
    real: WasmtimeKit, scylla: bytes
) -> None:
    """They come out as buffers; what is too large for its type is cut, as ScyllaDB does."""
    async with real.open() as cache:
        fib = await cache.register("fib", scylla, args=("int",), returns="bigint")
        async with fib.acquire() as lease:
            assert await lease.map([array("i", range(10))]) == array(
                "q", [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
            )
            assert await lease.map([[10, None]]) == [55, None]
        for returns, wanted in (
            ("tinyint", array("b", [1, 44, -1])),
            ("smallint", array("h", [1, 300, -1])),
            ("boolean", memoryview(bytes([1, 1, 1])).cast("?")),
        ):
            wide = await cache.register(
                f"wide {returns}", scylla, args=("int",), returns=returns, export="wide"
            )
            async with wide.acquire() as lease:
                assert await lease.map([[1, 300, -1]]) == wanted


async def test_buffers(real: WasmtimeKit) -> None:
    """Bytes are values here, not columns of numbers; a list holds many."""
    wasm = (UDFS / "buffer.wasm").read_bytes()
    async with real.open() as cache:
        upper = await cache.register(
            "upper", wasm, args=("bytes",), returns="bytes", abi="buffer", export="upper_packed"
        )
        async with upper.acquire() as lease:
            assert await lease.map([[b"one", bytearray(b"two"), memoryview(b"three")]]) == [
                *(b"ONE", b"TWO", b"THREE")
            ]
            for one in (b"one", bytearray(b"one"), memoryview(b"one")):
                assert await lease.map([one], rows=2) == [b"ONE", b"ONE"]
            assert (await lease.map([pa.array([b"a", None])])).equals(pa.array([b"A", None]))
