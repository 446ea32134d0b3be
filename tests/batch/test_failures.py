"""Batches that end early: failing rows, cancellation, closing, and others in the way."""

from __future__ import annotations

from array import array
from contextlib import nullcontext
from typing import Any

import pytest
import trio
from batch.modules import STOPS, WORKS, binary, both, dividing, held, same
from batch.routes import both as by_both
from kits import FakeKit, Kit, WasmtimeKit, add, add_asking
from peeking import in_call, job_of
from staging import stage

from trio_wasmcache import (
    AbiError,
    CacheConfig,
    FuelExhaustedError,
    Lease,
    LoadError,
    StackOverflowError,
    TrapError,
    current_lease,
)
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache._core.wasm.driver import Shape, layout
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance
from trio_wasmcache.testing import check_invariants, snapshot

TWO = ("i64", "i64")
CHUNK = layout(Shape(TWO, ("i64",))).rows
FOREVER = 10**15


@pytest.fixture(params=[None, 0, 2], ids=["inline", "thread", "both"])
def offload(request: pytest.FixtureRequest) -> Any:
    """`offload_after`: never, at once, or after two slices."""
    return request.param


@pytest.mark.parametrize("row", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
async def test_a_trap_names_its_row(kit: Kit, row: int) -> None:
    """Row and values are in the error and its message; the lease is broken."""
    number = 2 * CHUNK + 10
    async with held(kit, dividing(kit), args=TWO) as (cache, lease):
        divisors = array("q", [1]) * number
        divisors[row] = 0
        with pytest.raises(TrapError) as caught:
            await lease.map([range(number), divisors])
        error = caught.value
        assert (error.row, error.values, error.function) == (row, (row, 0), "f")
        assert error.code == "integer divide by zero"
        assert f"f(i64, i64) in row {row} of a batch, called with ({row}, 0)" in str(error)
        assert lease.fuel_consumed
        with pytest.raises(trio.BrokenResourceError):
            await lease.map([[1], [1]])
        with pytest.raises(trio.BrokenResourceError):
            await lease.call(1, 1)
    assert cache.stats().evictions["corrupted"] == 1


async def test_nulls_count_as_rows(kit: Kit) -> None:
    """The row of an error is that of the columns, those with nulls included."""
    async with held(kit, dividing(kit), args=TWO) as (_, lease):
        with pytest.raises(TrapError) as caught:
            await lease.map([[None, 1, None, 4], [0, 1, 0, 0]])
        assert (caught.value.row, caught.value.values) == (3, (4, 0))


async def test_a_trap_of_a_single_call_has_no_row(kit: Kit) -> None:
    """Nor does its message speak of one."""
    async with held(kit, kit.trapping()) as (_, lease):
        with pytest.raises(TrapError) as caught:
            await lease.call(1)
        assert caught.value.row is None
        assert " row " not in str(caught.value)


async def test_an_endless_row_is_named(real: WasmtimeKit, offload: int | None) -> None:
    """It burns its own budget and a slice or two, however many rows there are."""
    config = CacheConfig(total_fuel=100_000, yield_fuel=10_000, offload_after=offload)
    async with held(real, binary(STOPS), config, args=TWO) as (_, lease):
        with pytest.raises(FuelExhaustedError, match="total_fuel is 100000") as caught:
            await lease.map([array("q", range(20_000)), 5])
        assert (caught.value.row, caught.value.values) == (777, (777, 5))
        assert lease.fuel_consumed is not None
        assert 100_000 <= lease.fuel_consumed <= 777 * 40 + 125_000


async def test_an_endless_row_behind_nulls(kit: Kit) -> None:
    """The first one that is called at all, on either engine."""
    config = CacheConfig(total_fuel=10_000, yield_fuel=1000, offload_after=None)
    async with held(kit, kit.endless(), config) as (_, lease):
        with pytest.raises(FuelExhaustedError) as caught:
            await lease.map([[None, None, 7, 8, 9]])
        assert (caught.value.row, caught.value.values) == (2, (7,))


async def test_an_endless_row_within_one_slice(kit: Kit) -> None:
    """Slices larger than the budget of all rows: the fuel itself ends it."""
    config = CacheConfig(total_fuel=10_000, yield_fuel=10**9)
    async with held(kit, kit.endless(), config) as (_, lease):
        with pytest.raises(FuelExhaustedError) as caught:
            await lease.map([[5, 6]])
        assert (caught.value.row, caught.value.values) == (0, (5,))


async def test_endless_recursion_names_its_row(real: WasmtimeKit) -> None:
    """What a driver needs of the stack leaves enough for the guest."""
    text = (
        '(module (func $f (export "run") (param i64) (result i64)'
        " (if (result i64) (i64.eqz (local.get 0)) (then (i64.const 0))"
        " (else (i64.add (i64.const 1) (call $f (i64.sub (local.get 0) (i64.const 1))))))))"
    )
    async with held(real, binary(text)) as (_, lease):
        assert list(await lease.map([[10, 100, 1000]])) == [10, 100, 1000]
        with pytest.raises(StackOverflowError) as caught:
            await lease.map([[10, 10**7]])
        assert caught.value.row == 1
        assert len(caught.value.backtrace) < 50


async def test_a_result_out_of_range_names_its_row(kit: Kit) -> None:
    """As of a single call, it is the guest that breaks its ABI."""
    for name, values, got in (
        ("u8", [0, 255, 256], 256),
        ("i8", [-128, 127, -129], -129),
        ("i16", [5, 2**15], 2**15),
        ("u16", [5, -1], 2**32 - 1),
        ("bool", [1, 0, 2], 2),
    ):
        async with held(kit, same(kit, "i32"), args=("i32",), returns=name) as (_, lease):
            with pytest.raises(AbiError, match=f"returned {got}, out of the range") as caught:
                await lease.map([values])
            assert caught.value.row == len(values) - 1
            assert caught.value.values == (values[-1],)


async def test_a_second_result_out_of_range(kit: Kit) -> None:
    """Each result has its own range."""
    returns = ("u8", "f64")
    async with held(kit, both(kit), args=("u32",), returns=returns) as (_, lease):
        with pytest.raises(AbiError, match="returned 256") as caught:
            await lease.map([[255_999, 256_000]])
        assert caught.value.row == 1


async def test_cancelled_half_way(real: WasmtimeKit, offload: int | None) -> None:
    """The batch ends within a slice, its instance is dropped, and a neighbour is not disturbed."""
    config = CacheConfig(
        offload_after=offload, yield_fuel=10_000, total_fuel=FOREVER, max_threads=2
    )
    async with real.open(config) as cache:
        works = await add(cache, "works", binary(WORKS), concurrency=2)
        column = array("q", [1000]) * 10_000_000
        leases: list[Lease] = []
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def batch() -> None:
                    async with works.acquire() as lease:
                        leases.append(lease)
                        await lease.map([column])

                nursery.start_soon(batch)
                async with works.acquire() as lease:
                    assert list(await lease.map([[1000] * 1000])) == [1000] * 1000
                while not leases or job_of(leases[0]) is None:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert scope.cancelled_caught
        assert cache.stats().evictions["corrupted"] == 1
        assert snapshot(cache).loop.taken == snapshot(cache).threads.taken == 0
        check_invariants(cache)


async def test_cancelled_before_it_begins(kit: Kit) -> None:
    """Then the instance is as good as before."""
    async with held(kit, kit.adding(1)) as (_, lease):
        with trio.CancelScope() as scope:
            scope.cancel()
            await lease.map([[1]])
        assert scope.cancelled_caught
        assert list(await lease.map([[1]])) == [2]


async def test_cancelled_everywhere(kit: Kit) -> None:
    """At each checkpoint of a batch with a list to check, a driver to make, and slices."""
    config = CacheConfig(yield_fuel=20_000, offload_after=None)
    async with stage(kit, config) as there:
        f = await add(there.cache, "f", kit.adding_two(), args=TWO)
        wanted = array("q", range(1, 5001))

        async def scenario() -> None:
            async with f.acquire() as lease:
                assert await lease.map([range(5000), 1]) == wanted

        await there.run(scenario, least=10)


async def test_closing_stops_a_batch(real: WasmtimeKit, offload: int | None) -> None:
    """Wherever it is: checking a list, inline, or in a thread."""
    config = CacheConfig(offload_after=offload, yield_fuel=10_000, total_fuel=FOREVER)
    endless = array("q", [10**12]) * 10
    for column in (endless, [10**12] * 1_000_000):
        told = 0
        async with trio.open_nursery() as nursery:
            async with real.open(config) as cache:
                works = await add(cache, "works", binary(WORKS))

                async def batch(column: Any = column) -> None:
                    nonlocal told
                    async with works.acquire() as lease:  # noqa: B023 - closed when it ends
                        with pytest.raises(trio.ClosedResourceError):
                            await lease.map([column])
                        told += 1

                nursery.start_soon(batch)
                for _ in range(50):
                    await trio.lowlevel.checkpoint()
                assert cache.stats().running_instances == 1
                await parts_of(cache).close()
        assert told == 1


async def test_others_find_the_lease_busy(kit: Kit) -> None:
    """From the first look at the columns to the last result."""
    config = CacheConfig(yield_fuel=1000, offload_after=None)
    async with held(kit, kit.costly(), config) as (cache, lease):
        results: list[Any] = []

        async def batch(lease: Lease) -> None:
            results.append(await lease.map([range(30)]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(batch, lease)
            while not in_call(lease):
                await trio.lowlevel.checkpoint()
            while not results:
                with pytest.raises(trio.BusyResourceError):
                    await lease.call(1)
                with pytest.raises(trio.BusyResourceError):
                    await lease.map([[1]])
                with pytest.raises(trio.BusyResourceError):
                    assert lease.size
                assert "in a call" in repr(lease)
                await trio.lowlevel.checkpoint()
        assert list(results[0]) == list(range(30))
        assert await lease.call(5) == 5
        check_invariants(cache)


async def test_after_the_block(kit: Kit) -> None:
    """And before it: as of a call."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        lease = f.acquire()
        with pytest.raises(RuntimeError, match="enter the lease first"):
            await lease.map([[1]])
        async with lease:
            pass
        with pytest.raises(trio.ClosedResourceError):
            await lease.map([[1]])


async def test_host_functions_in_rows(kit: Kit) -> None:
    """Sync and async ones, in the calling task, with the lease and its memory at hand."""
    seen: list[int] = []

    async def ask(value: int) -> int:
        await trio.lowlevel.checkpoint()
        seen.append(current_lease().memory.size)
        return value * 2

    def ask_again(value: int) -> int:
        return 0

    async with kit.open() as cache:
        f = await add_asking(cache, kit, ask, ask_again)
        async with f.acquire() as lease:
            assert list(await lease.map([range(100)])) == list(range(0, 200, 2))
            assert seen == [lease.memory.size] * 100
            assert await lease.map([[1, None, 3]]) == [2, None, 6]


async def test_an_exception_of_a_host_function_comes_out_as_it_is(kit: Kit) -> None:
    """With a note that says in which row; the instance is dropped."""
    problem = KeyError("nothing there")

    def ask(value: int) -> int:
        if value == 7:
            raise problem
        return value

    async with kit.open() as cache:
        f = await add_asking(cache, kit, ask, name="f")
        with pytest.raises(KeyError) as caught:
            async with f.acquire() as lease:
                await lease.map([range(10)])
        assert caught.value is problem
        assert caught.value.__notes__ == [
            "in host function host.ask0, called by f(i64)",
            "in row 7 of a batch of f(i64)",
        ]
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)


async def test_cancelled_in_a_host_function(kit: Kit) -> None:
    """The row waits for the host, no slot is held, and the scope ends it."""

    asked = trio.Event()

    async def ask(value: int) -> int:
        if value == 3:
            asked.set()
            await trio.sleep_forever()
        return value

    async with kit.open() as cache:
        f = await add_asking(cache, kit, ask, name="f")

        async def batch() -> None:
            async with f.acquire() as lease:
                await lease.map([range(10)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(batch)
            await asked.wait()
            assert snapshot(cache).loop.taken == 0
            nursery.cancel_scope.cancel()
        assert cache.stats().evictions["corrupted"] == 1


async def test_no_room_for_a_driver(fake: FakeKit) -> None:
    """`LoadError`; nothing has run, so the lease is as usable as before."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1))
        async with f.acquire() as lease:
            fake.engine.fail_at = len(fake.engine.steps) + 1
            with pytest.raises(LoadError):
                await lease.map([[1]])
            assert list(await lease.map([[1]])) == [2]
        check_invariants(cache)


async def test_a_store_lets_nothing_in_by_itself(
    real: WasmtimeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room made for it, a driver is refused; the instance is as usable as before."""
    async with held(real, real.adding(1)) as (_, lease):
        with monkeypatch.context() as patch:
            patch.setattr(WasmtimeInstance, "one_more_instance", lambda *_, **__: nullcontext())
            with pytest.raises(LoadError, match="no room for a driver"):
                await lease.map([[1]])
        assert list(await lease.map([[1]])) == [2]


async def test_a_driver_fits_however_low_the_limits_are(real: WasmtimeKit) -> None:
    """The scratch counts in the size, but is not the guest's memory; which can't grow into it."""
    config = CacheConfig(memory_limit=65536, max_instance_size=10 * 65536)
    text = (
        '(module (memory 1) (func (export "run") (param i64) (result i64)'
        " (i64.extend_i32_s (memory.grow (i32.const 1)))))"
    )
    async with held(real, binary(text), config) as (_, lease):
        assert list(await lease.map([[1, 2]])) == [-1, -1]
        assert await lease.call(1) == -1
    small = CacheConfig(max_instance_size=2 * 65536)
    async with real.open(small) as cache:
        f = await add(cache, "f", binary(text))
        async with f.acquire() as lease:
            await lease.map([[1, 2]])
        assert cache.stats().evictions["oversized"] == 1


NULL = """(module (memory (export "memory") 0)
  (func (export "sent") (param $at i32) (param $size i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $size))))
  (func (export "null") (param $at i32) (param $size i32) (result i64)
    (i64.extend_i32_u (local.get $size))))"""


async def test_a_null_pointer_is_no_result(real: WasmtimeKit) -> None:
    """By both routes; nothing at a null pointer is nothing, and no argument is sent to one."""
    async with real.open() as cache:
        given: Any = {"args": ("str",), "returns": "str", "abi": "buffer"}
        sent = await cache.register("sent", binary(NULL), **given)
        values = ["a", "", "b" * 70_000, "c" * 200_000]
        assert await by_both(sent, [values]) == values
        null = await cache.register("null", binary(NULL), **given)
        assert await by_both(null, [["", ""]]) == ["", ""]
        error = await by_both(null, [["", "ab", ""]])
        assert isinstance(error, AbiError)
        assert error.row == 1
        assert "returned 2 bytes at address 0, which is a null pointer" in str(error)
        check_invariants(cache)
