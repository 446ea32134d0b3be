"""Small batches, which an instance begins as calls once it has a driver: they are as any others."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pyarrow
import pytest
import trio
from batch.modules import STOPS, binary, both, dividing, held, same, silent
from hypothesis import HealthCheck, given, strategies as st
from kits import Kit, WasmtimeKit, add, add_asking, tries
from peeking import in_call, may_call, small_of
from staging import stage

from trio_wasmcache import (
    AbiError,
    CacheConfig,
    FuelExhaustedError,
    InstanceCache,
    Lease,
    ResultTooLargeError,
    TrapError,
)
from trio_wasmcache._batch.small import SmallBatches
from trio_wasmcache.testing import check_invariants

TWO = ("i64", "i64")
ROUNDS = tries(30, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=[None, 0], ids=["inline", "thread"])
def offload(request: pytest.FixtureRequest) -> Any:
    """`offload_after`: never, or at once."""
    return request.param


@asynccontextmanager
async def warm(
    kit: Kit, wasm: bytes, columns: Any, config: CacheConfig | None = None, **more: Any
) -> AsyncIterator[tuple[InstanceCache, Lease]]:
    """A lease whose instance has a driver."""
    async with held(kit, wasm, config, **more) as (cache, lease):
        await lease.map(columns)
        assert isinstance(small_of(lease), SmallBatches)
        yield cache, lease


VALUES = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), True, None, 1.5, "x", 2**63])


@given(data=st.data())
@ROUNDS
async def test_results_and_errors_are_those_of_the_first_batch(
    kit: Kit, data: st.DataObject
) -> None:
    """For columns and single values of all kinds."""
    rows = data.draw(st.integers(0, 5))
    numbers = st.lists(st.integers(-9, 9), min_size=rows, max_size=rows)
    column = (
        st.lists(VALUES, min_size=rows, max_size=rows)
        | numbers
        | numbers.map(tuple)
        | numbers.map(lambda it: array("q", it))
        | numbers.map(lambda it: memoryview(array("q", it)))
        | numbers.map(lambda it: array("l", it)[::1])
        | numbers.map(lambda it: array("d", it))
        | numbers.map(lambda it: pyarrow.array(it, pyarrow.int64()))
        | numbers.map(lambda it: pyarrow.array([7, *it, 8], pyarrow.int64())[1:-1])
        | numbers.map(lambda it: pyarrow.array([*it, None], pyarrow.int64()))
        | numbers.map(lambda it: pyarrow.array([*it, None], pyarrow.int64())[:-1])
        | numbers.map(lambda it: pyarrow.array(it, pyarrow.float64()))
        | numbers.map(lambda it: pyarrow.chunked_array([it], pyarrow.int64()))
        | numbers.map(lambda it: pyarrow.chunked_array([it[:1], it[1:]], pyarrow.int64()))
        | st.lists(st.integers(0, 3), max_size=6)
        | VALUES
        | st.just(range(rows))
    )
    columns = [data.draw(column), data.draw(column)]
    async with kit.open() as cache:
        function = await add(cache, "f", dividing(kit), args=TWO)
        async with function.acquire() as lease:
            first = await outcome(lease, columns)
        async with function.acquire() as lease:
            await lease.map([[1], [1]])
            assert await outcome(lease, columns) == first


async def outcome(lease: Lease, columns: Any) -> Any:
    try:
        result = await lease.map(columns)
    except (TrapError, TypeError, ValueError, OverflowError) as error:
        lines = str(error).partition(" after ")[0].split("\n")
        return type(error), lines[0], getattr(error, "row", None), may_call(lease)
    return type(result), list(result), may_call(lease)


async def test_it_is_one_step(kit: Kit) -> None:
    """Nothing else runs in between; fuel, charges and counts are those of a call."""
    async with warm(kit, dividing(kit), [[1], [1]], args=TWO) as (cache, lease):
        ran = False

        def note() -> None:
            nonlocal ran
            ran = True

        trio.lowlevel.current_trio_token().run_sync_soon(note)
        result = await lease.map([array("q", range(100)), 2])
        assert not ran
        assert isinstance(result, memoryview)
        assert list(result) == [n // 2 for n in range(100)]
        assert (result.format, result.readonly) == ("q", False)
        assert lease.fuel_consumed
        before = cache.stats().calls
        await lease.map([[4], [2]])
        assert cache.stats().calls == before + 1


async def test_cancellation_is_seen_first(kit: Kit) -> None:
    """As in a call; the lease can still be used."""
    async with warm(kit, dividing(kit), [[1], [1]], args=TWO) as (_, lease):
        with trio.CancelScope() as scope:
            scope.cancel()
            await lease.map([[1], [1]])
        assert scope.cancelled_caught
        assert list(await lease.map([[4], [2]])) == [2]


async def test_many_of_them_let_others_run(kit: Kit) -> None:
    """About every 0.5 ms."""
    passes = 0

    async def others() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with warm(kit, dividing(kit), [[1], [1]], args=TWO) as (_, lease):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await trio.lowlevel.checkpoint()
            for _ in range(600):
                await lease.map([[4], [2]])
            assert passes >= 3
            nursery.cancel_scope.cancel()


async def test_several_results_and_none(kit: Kit) -> None:
    """A tuple of columns, and None."""
    async with warm(kit, both(kit), [[1]], args=("i32",), returns=("i32", "f64")) as (_, lease):
        quotients, rests = await lease.map([[1001, 2002]])
        assert (list(quotients), list(rests)) == ([1, 2], [1.0, 2.0])
    async with warm(kit, silent(kit), [[1]], returns=None) as (_, lease):
        assert await lease.map([[1, 2]]) is None


async def test_results_that_are_too_large(kit: Kit) -> None:
    """They are refused before anything runs."""
    config = CacheConfig(max_result_size=1024)
    async with warm(kit, dividing(kit), [[1], [1]], config, args=TWO) as (_, lease):
        with pytest.raises(ResultTooLargeError):
            await lease.map([range(129), 1])
        assert len(await lease.map([range(128), 1])) == 128


async def test_columns_of_arrow(kit: Kit) -> None:
    """They take the same way if they have one chunk and no nulls, and give an array of Arrow's."""
    async with warm(kit, dividing(kit), [[1], [1]], args=TWO) as (_, lease):
        looked = small_of(lease).look_at
        column = pyarrow.chunked_array([[6, 7]])
        assert looked([column, 2]) is not None
        assert (await lease.map([column, 2])).equals(pyarrow.array([3, 3]))
        part = pyarrow.array([8, 6, 9])[1:2]
        assert looked([part, 2]) is not None
        assert (await lease.map([part, 2])).equals(pyarrow.array([3]))
        assert looked([pyarrow.chunked_array([[6], [7]]), 2]) is None
        assert looked([pyarrow.array([6, None]), 2]) is None
        assert looked([pyarrow.array([6.0]), 2]) is None
        with pytest.raises(TrapError) as caught:
            await lease.map([column, pyarrow.array([1, 0])])
        assert (caught.value.row, caught.value.values) == (1, (7, 0))


async def test_a_row_that_traps(kit: Kit) -> None:
    """It is named, and the lease is broken."""
    async with warm(kit, dividing(kit), [[1], [1]], args=TWO) as (cache, lease):
        with pytest.raises(TrapError) as caught:
            await lease.map([range(5), [1, 1, 1, 0, 1]])
        assert (caught.value.row, caught.value.values) == (3, (3, 0))
        assert "f(i64, i64) in row 3 of a batch, called with (3, 0)" in str(caught.value)
        with pytest.raises(trio.BrokenResourceError):
            await lease.map([[1], [1]])
    assert cache.stats().evictions["corrupted"] == 1


async def test_a_result_out_of_range(real: WasmtimeKit) -> None:
    """It breaks the ABI in its row."""
    more: dict[str, Any] = {"args": ("i32",), "returns": "i8"}
    async with warm(real, same(real, "i32"), [[1]], **more) as (_, lease):
        with pytest.raises(AbiError) as caught:
            await lease.map([[1, 2, 300]])
        assert caught.value.row == 2


async def test_a_row_without_end(real: WasmtimeKit, offload: int | None) -> None:
    """It goes on in slices, and is stopped when it has burnt its fuel."""
    config = CacheConfig(total_fuel=100_000, yield_fuel=10_000, offload_after=offload)
    async with warm(real, binary(STOPS), [[1], [1]], config, args=TWO) as (_, lease):
        with pytest.raises(FuelExhaustedError) as caught:
            await lease.map([[1, 2, 777, 3], 5])
        assert (caught.value.row, caught.value.values) == (2, (777, 5))
        assert lease.fuel_consumed is not None
        assert 100_000 <= lease.fuel_consumed <= 130_000


async def test_rows_that_take_several_slices(real: WasmtimeKit, offload: int | None) -> None:
    """The others see the lease in a call; cancelling it stops the guest."""
    text = """(module (func (export "run") (param i64) (result i64) (local i64)
      (loop (local.set 1 (i64.add (local.get 1) (i64.const 1)))
        (br_if 0 (i64.lt_u (local.get 1) (local.get 0)))) (local.get 1)))"""
    config = CacheConfig(total_fuel=10**15, yield_fuel=10_000, offload_after=offload)
    async with warm(real, binary(text), [[1]], config) as (cache, lease):
        assert list(await lease.map([[10_000, 20_000, 1]])) == [10_000, 20_000, 1]
        arrow = pyarrow.array([10_000, 20_000, 1])
        assert (await lease.map([arrow])).equals(arrow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.map, [[1, 10**12]])
            while not in_call(lease):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert not may_call(lease)
    assert cache.stats().evictions["corrupted"] == 1


async def test_host_functions(kit: Kit) -> None:
    """They are answered between the slices, the first one included; their exceptions come out."""
    asked: list[int] = []

    async def ask(value: int) -> int:
        asked.append(value)
        await trio.lowlevel.checkpoint()
        if value == 9:
            raise KeyError(value)
        return value + 1

    async with kit.open() as cache:
        f = await add_asking(cache, kit, ask)
        async with f.acquire() as lease:
            await lease.map([[1]])
            assert list(await lease.map([[2, 3, 4]])) == [3, 4, 5]
            with pytest.raises(KeyError) as caught:
                await lease.map([[5, 9, 6]])
            assert caught.value.row == 1  # type: ignore[attr-defined]
        assert asked == [1, 2, 3, 4, 5, 9]
        check_invariants(cache)


async def test_cancelled_everywhere(kit: Kit) -> None:
    """Wherever it goes on beyond its first slice."""
    config = CacheConfig(yield_fuel=5000, offload_after=None)
    async with stage(kit, config) as at:
        f = await add(at.cache, "f", kit.costly())

        async def scenario() -> None:
            async with f.acquire() as lease:
                assert list(await lease.map([[1]])) == [1]
                assert list(await lease.map([[1, 2]])) == [1, 2]

        await at.run(scenario, least=8)
        assert await f.call(1) == 1
