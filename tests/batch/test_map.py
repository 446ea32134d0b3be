"""Batches on both engines: what goes in and comes out, beside the same in plain Python."""

from __future__ import annotations

import ctypes
import gc
import itertools
import struct
import threading
import weakref
from array import array
from typing import Any

import pytest
import trio
from batch.modules import INTEGERS, both, counting, dividing, held, same, silent
from hypothesis import HealthCheck, given, strategies as st
from kits import PAGE, FakeKit, Kit, WasmtimeKit, tries
from peeking import is_broken, native_of
from trio.testing import assert_checkpoints

from trio_wasmcache import CacheConfig, HostFunction
from trio_wasmcache._batch.batch import PIECE
from trio_wasmcache._batch.chunks import LONG
from trio_wasmcache._core.tally import Tally
from trio_wasmcache._core.wasm.driver import CELLS, Shape, layout
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance
from trio_wasmcache._runtime.results import KEPT, MAPPED, PIECES, ResultMemory
from trio_wasmcache.testing import snapshot

TWO = ("i64", "i64")
# It asks the host in row 19,000.
ASKING = """(module (import "host" "ask" (func $ask (param i64) (result i64)))
  (func (export "f") (param i64) (result i64)
    (if (result i64) (i64.eq (local.get 0) (i64.const 19000))
      (then (call $ask (local.get 0))) (else (local.get 0)))))"""
# More than a chunk of two i64 columns, and no multiple of eight.
MANY = layout(Shape(TWO, ("i64",))).rows * 3 + 13


async def test_a_whole_life(kit: Kit) -> None:
    """Columns of all kinds, several batches and a call, in one lease; the next one reuses it."""
    async with kit.open() as cache:
        f = await cache.register("f", kit.adding_two(), args=TWO, returns="i64", export="run")
        async with f.acquire() as lease:
            before = lease.size
            with assert_checkpoints():
                result = await lease.map([array("q", [1, 2, 3]), [10, 20, 30]])
            assert (type(result), result.format, result.readonly) == (memoryview, "q", False)
            assert result == array("q", [11, 22, 33])
            assert lease.fuel_consumed
            assert before < lease.size <= before + 4 * PAGE
            size = lease.size
            assert list(await lease.map((range(4), 5))) == [5, 6, 7, 8]
            assert await lease.call(1, 2) == 3
            assert list(await lease.map([memoryview(array("q", [7])), (8,)])) == [15]
            assert lease.size == size
        assert cache.stats().total_size == size
        assert cache.stats().calls == 4
        async with f.acquire() as lease:
            assert list(await lease.map([[1], [1]])) == [2]
            assert lease.size == size
        assert cache.stats().misses == 1


async def test_results_go_with_their_last_use(kit: Kit) -> None:
    """Neither the lease nor a reference cycle keeps them, or the columns."""
    gc.collect()
    gc.disable()
    try:
        async with held(kit, kit.adding(1), CacheConfig(offload_after=0)) as (_, lease):
            column = array("q", range(MANY))
            result = await lease.map([column])
            gone = weakref.ref(result), weakref.ref(column)
            del result, column
            assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


async def test_many_chunks(kit: Kit) -> None:
    """Every row has its own result, in order, whatever chunk it is in."""
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        left, right = array("q", range(MANY)), array("q", range(0, -3 * MANY, -3))
        result = await lease.map([left, right])
        assert result == array("q", range(0, -2 * MANY, -2))


async def test_several_results_come_as_a_tuple(kit: Kit) -> None:
    """Each a column of its own type."""
    async with held(kit, both(kit), args=("u32",), returns=("u32", "f64")) as (_, lease):
        number = layout(Shape(("u32",), ("u32", "f64"))).rows + 1
        quotients, remainders = await lease.map([array("I", range(number))])
        assert quotients == array("I", [n // 1000 for n in range(number)])
        assert remainders == array("d", [n % 1000 for n in range(number)])


async def test_no_results_are_none(kit: Kit) -> None:
    """As of a call."""
    async with held(kit, silent(kit), returns=None) as (_, lease):
        assert await lease.map([[1, 2]]) is None
        assert await lease.map([[]]) is None


async def test_no_columns_take_rows(kit: Kit) -> None:
    """`rows` says how often to call; so it does where all columns are scalars."""
    async with held(kit, counting(kit), args=()) as (_, lease):
        assert list(await lease.map([], rows=5)) == [1, 2, 3, 4, 5]
        assert list(await lease.map([], rows=0)) == []
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        assert list(await lease.map([1, 2], rows=2)) == [3, 3]
        assert list(await lease.map([[1, 5], 2], rows=2)) == [3, 7]


async def test_no_rows_are_no_call(kit: Kit) -> None:
    """An empty column of the right type comes back, and the lease is as usable as before."""
    async with held(kit, kit.trapping()) as (_, lease):
        with trio.CancelScope() as scope:
            scope.cancel()
            await lease.map([[]])
        assert scope.cancelled_caught
        assert await lease.map([[]]) == array("q")
        assert await lease.map([array("q")]) == array("q")
        assert not is_broken(lease)


@pytest.mark.parametrize("name", INTEGERS)
async def test_integers_of_each_type(kit: Kit, name: str) -> None:
    """The whole range of the type goes through, from a buffer, a list and a scalar."""
    wasm, low, high = INTEGERS[name]
    values = [low, high, low + 1, 0, 1, high - 1]
    async with held(kit, same(kit, wasm), args=(name,), returns=name) as (_, lease):
        buffer = array(CELLS[name].code, values)
        for given_values in (buffer, values, tuple(values)):
            result = await lease.map([given_values])
            assert result.format == buffer.typecode
            assert result == buffer
        assert list(await lease.map([high], rows=3)) == [high] * 3


async def test_bools(kit: Kit) -> None:
    """Out comes a buffer of bools; any byte but 0 in one is true."""
    async with held(kit, same(kit, "i32"), args=("bool",), returns="bool") as (_, lease):
        result = await lease.map([[True, False, True]])
        assert (result.format, result.tolist()) == ("?", [True, False, True])
        odd = memoryview(bytes([0, 1, 2, 255])).cast("?")
        assert (await lease.map([odd])).tolist() == [False, True, True, True]
        empty = await lease.map([[]])
        assert (empty.format, len(empty)) == ("?", 0)


@pytest.mark.parametrize(("name", "code"), [("f32", "f"), ("f64", "d")])
async def test_reals(kit: Kit, name: str, code: str) -> None:
    """Every bit pattern of a buffer comes back as it was, NaNs with a payload included."""
    size = struct.calcsize(code)
    raw = struct.pack(f"<3{code}", -0.0, float("inf"), 1.5) + b"\x01" * (size - 2) + b"\xf0\x7f"
    async with held(kit, same(kit, name), args=(name,), returns=name) as (_, lease):
        column = array(code, raw)
        if isinstance(kit, FakeKit):
            column.pop()  # Python itself does not keep the payload
        assert (await lease.map([column])).tobytes() == column.tobytes()
        assert list(await lease.map([[1, 2.5, True]])) == [1.0, 2.5, 1.0]


async def test_buffers_of_any_layout(kit: Kit) -> None:
    """Strided, reversed, read-only, of ctypes and of bytes: rows are what Python sees in them."""
    async with held(kit, same(kit, "i64")) as (_, lease):
        number = 3 * layout(Shape(("i64",), ("i64",))).rows
        every = memoryview(array("q", range(number)))
        for view in (every[::3], every[::-1], every[5:17], every.toreadonly(), every[7::1000]):
            assert list(await lease.map([view])) == view.tolist()
        numbers = (ctypes.c_int64 * 4)(1, -2, 3, -4)
        assert list(await lease.map([numbers])) == [1, -2, 3, -4]
    async with held(kit, same(kit, "i32"), args=("u8",), returns="u8") as (_, lease):
        assert (await lease.map([b"bytes"])).tobytes() == b"bytes"
        assert (await lease.map([bytearray(b"more")])).tobytes() == b"more"


async def test_nulls_give_none_without_a_call(kit: Kit) -> None:
    """A None in a list makes a list of results, with None in the same rows; others are called."""
    async with held(kit, dividing(kit), args=TWO) as (_, lease):
        divisors = [None if n % 5 == 0 else n % 5 for n in range(MANY)]
        result = await lease.map([array("q", range(MANY)), divisors])
        assert type(result) is list
        assert result == [None if d is None else n // d for n, d in enumerate(divisors)]
        assert await lease.map([[1, None, None], [None, 0, None]]) == [None] * 3
        assert await lease.map([[6, 8], None]) == [None, None]
        assert await lease.map([[6, 8], 2]) == array("q", [3, 4])


async def test_fuel_of_a_batch_is_that_of_its_rows(kit: Kit) -> None:
    """`fuel_consumed` counts all rows, and the group is charged for them."""
    config = CacheConfig(offload_after=None)
    async with held(kit, kit.costly(), config) as (cache, lease):
        await lease.call(1)
        one = lease.fuel_consumed
        cache._pool.runner.cpu_clock = lambda: 0.0  # checking columns is charged by time
        cache._groups.main.share.begin_burst()
        before = snapshot(cache).group("main").virtual_time
        await lease.map([range(20)])
        assert one is not None
        assert lease.fuel_consumed is not None
        assert 20 * one <= lease.fuel_consumed <= 20 * (one + 60)
        charged = (snapshot(cache).group("main").virtual_time - before) * 100
        assert charged == pytest.approx(lease.fuel_consumed)


async def test_the_budget_of_fuel_is_for_each_row(kit: Kit) -> None:
    """Many rows burn more together than one may; however small the budget is."""
    config = CacheConfig(total_fuel=100_000, yield_fuel=10_000, offload_after=None)
    async with held(kit, kit.costly(), config) as (_, lease):
        assert list(await lease.map([range(50)])) == list(range(50))
    if isinstance(kit, WasmtimeKit):
        async with held(kit, same(kit, "i64"), CacheConfig(total_fuel=2)) as (_, lease):
            assert list(await lease.map([range(50)])) == list(range(50))


async def test_chunks_end_with_slices(real: WasmtimeKit) -> None:
    """But for the first, whose rows tell what a row burns: no slice is begun for a few rows."""
    config = CacheConfig(offload_after=None)
    async with held(real, real.adding_two(), config, args=TWO) as (cache, lease):
        before = snapshot(cache).loop.begun
        await lease.map([array("q", range(200_000)), 1])
        turns = snapshot(cache).loop.begun - before
        assert lease.fuel_consumed is not None
        whole = lease.fuel_consumed / config.yield_fuel
        assert whole - 1 < turns < 1.1 * whole + 4  # the first slice takes no turn


async def test_a_batch_lets_others_run(kit: Kit) -> None:
    """Between slices, also while a long list is checked."""
    config = CacheConfig(yield_fuel=1000, offload_after=None)
    async with held(kit, kit.adding(1), config) as (_, lease):
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            await lease.map([list(range(100_000))])
            nursery.cancel_scope.cancel()
        assert ticks > 100


@given(data=st.data())
@tries(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_rows(kit: Kit, data: Any) -> None:
    """Columns of any kind and length, with nulls or without, give what Python gives."""
    number = data.draw(st.integers(0, 40))
    whole = st.integers(-(2**40), 2**40)
    kinds = st.sampled_from(["list", "nulls", "array", "strided", "scalar"])
    columns: list[Any] = []
    seen: list[list[int | None]] = []
    for _ in range(2):
        kind = data.draw(kinds)
        values: list[Any] = data.draw(st.lists(whole, min_size=number, max_size=number))
        if kind == "scalar":
            columns.append(data.draw(whole))
            values = [columns[-1]] * number
        elif kind == "nulls":
            gone = data.draw(st.lists(st.booleans(), min_size=number, max_size=number))
            values = [None if g else v for v, g in zip(values, gone, strict=True)]
            columns.append(values)
        elif kind == "strided":
            columns.append(memoryview(array("q", [v for v in values for _ in range(2)]))[::2])
        else:
            columns.append(values if kind == "list" else array("q", values))
        seen.append(values)
    wanted = [None if None in (a, b) else a + b for a, b in zip(*seen, strict=True)]  # type: ignore[operator]
    async with held(kit, kit.adding_two(), args=TWO) as (_, lease):
        assert list(await lease.map(columns, rows=number)) == wanted


@pytest.mark.parametrize("name", ["u8", "i64"])
async def test_results_of_any_size(kit: Kit, name: str) -> None:
    """In memory of their own or not: each byte is where it belongs."""
    size = CELLS[name].size
    wasm = INTEGERS[name][0]
    async with held(kit, same(kit, wasm), args=(name,), returns=name) as (_, lease):
        for rows in (1, MAPPED // size - 1, MAPPED // size):
            column = array(CELLS[name].code, [n % 251 for n in range(rows)])
            result = await lease.map([column])
            assert (len(result), result.nbytes) == (rows, rows * size)
            assert result == column


async def test_more_results_than_there_is_memory_for(kit: Kit) -> None:
    """The batch raises `MemoryError` before anything runs, and the lease goes on."""
    config = CacheConfig(max_result_size=2**70)
    async with held(kit, kit.adding(1), config) as (_, lease):
        for rows in (2**50, 2**62):
            with pytest.raises(MemoryError, match=f"{8 * rows} bytes of results"):
                await lease.map([1], rows=rows)
        assert not lease.fuel_consumed
        assert (await lease.map([[1]])).tolist() == [2]


def kept_by(memory: ResultMemory) -> list[Any]:
    """The memory that is kept, that lent last at the end."""
    return [piece.memory for piece in memory._kept]


async def test_memory_of_results_is_used_again(kit: Kit) -> None:
    """But only when nobody sees it any more: not the result, nor a slice, nor another's view."""
    async with held(kit, same(kit, "i64")) as (cache, lease):
        rows = MAPPED // 8
        one, two = array("q", [1]) * rows, array("q", [2]) * rows
        results = cache._pool.results
        for part in (slice(0, None), slice(5, None, 2)):
            view = (await lease.map([one]))[part]
            (*_, kept) = kept_by(results)
            assert await lease.map([two]) == two
            assert kept_by(results)[-1] is not kept
            assert view.tolist() == [1] * len(view)
            del view
            pieces = kept_by(results)
            assert await lease.map([one]) == one
            assert kept_by(results)[-1] in pieces
        assert len(kept_by(results)) == 2


async def test_each_result_is_held_until_the_next(kit: Kit) -> None:
    """Two pieces of memory take turns."""
    async with held(kit, same(kit, "i64")) as (cache, lease):
        column = array("q", [1]) * (MAPPED // 8)
        places = []
        result = None
        for _ in range(6):
            result = await lease.map([column])
            places.append(result.obj)
        assert places[2:] == places[:2] * 2
        assert result == column
        assert cache.stats().results_size == 2 * MAPPED


async def test_memory_of_results_is_kept_until_something_is_evicted(kit: Kit) -> None:
    """It is in the books, and goes with the first instance that goes."""
    async with held(kit, same(kit, "i64")) as (cache, lease):
        rows = MAPPED // 8
        result = await lease.map([array("q", [1]) * rows])
        assert cache.stats().results_size == MAPPED
        assert cache.stats().accounted_size >= MAPPED + cache.stats().code_size
        cache.remove("f")
        assert cache.stats().results_size == MAPPED
    assert cache.stats().results_size == 0
    assert result.tolist() == [1] * rows


def test_what_memory_of_results_is_kept() -> None:
    """The largest up to a limit, for results that are not much smaller."""
    memory = ResultMemory()
    tally = Tally(2**40)
    memory.take(KEPT + 1, tally)
    assert kept_by(memory) == []
    memory.take(4 * MAPPED, tally)
    (kept,) = kept_by(memory)
    for size in (MAPPED - 1, MAPPED, 2 * MAPPED - 1):
        assert memory.take(size, tally).obj is not kept
        assert kept_by(memory) == [kept]
    for size in (2 * MAPPED, 4 * MAPPED):
        assert memory.take(size, tally).obj is kept
    assert memory.take(4 * MAPPED + 1, tally).obj is kept_by(memory)[-1] is not kept


def test_how_much_memory_of_results_is_kept() -> None:
    """A few pieces, up to a limit for all; those go that were lent longest ago."""
    memory = ResultMemory()
    tally = Tally(2**40)
    views = [memory.take(MAPPED, tally) for _ in range(PIECES + 2)]
    assert kept_by(memory) == [view.obj for view in views[2:]]
    assert tally.held == 2 * MAPPED  # what is not kept any more
    views[2] = memory.take(MAPPED, tally)
    large = memory.take(KEPT - MAPPED, Tally(2**40))
    assert kept_by(memory) == [views[2].obj, large.obj]
    assert memory.size == KEPT
    memory.forget()
    assert memory.size == 0
    assert tally.held == tally.size


async def test_checking_a_column_is_cpu_time_of_the_group(kit: Kit) -> None:
    """It is done for the guest, on the event loop: what it takes is charged to the share."""
    ticks = itertools.count()
    async with held(kit, kit.adding(1)) as (cache, lease):
        share = cache._groups.main.share
        charged = []
        for clock in (lambda: 0.0, lambda: next(ticks) * 0.001):
            cache._pool.runner.cpu_clock = clock
            share.begin_burst()
            before = snapshot(cache).group("main").virtual_time
            await lease.map([[1, 2, 3]], rows=3)
            charged.append((snapshot(cache).group("main").virtual_time - before) * 100)
        assert charged[1] - charged[0] == pytest.approx(1_000_000, abs=10)


@pytest.mark.parametrize(("seconds", "passes"), [(0.0, 0), (0.001, 9)])
async def test_others_run_while_a_list_is_checked(kit: Kit, seconds: float, passes: int) -> None:
    """As often as beside short calls: after half a millisecond of CPU time, not more often."""
    ticks = itertools.count()
    config = CacheConfig(offload_after=None, yield_fuel=10**9)
    async with held(kit, kit.adding(1), config) as (cache, lease):
        cache._pool.runner.cpu_clock = lambda: next(ticks) * seconds
        turns = []
        for column in (array("q", range(10 * PIECE)), list(range(10 * PIECE))):
            cache._groups.main.share.begin_burst()
            before = snapshot(cache).loop.begun
            assert len(await lease.map([column])) == 10 * PIECE
            turns.append(snapshot(cache).loop.begun - before)
    assert turns[1] - turns[0] >= passes
    assert passes or turns[0] == turns[1]


@pytest.mark.parametrize("offload", [None, 1])
async def test_slices_are_longer_in_a_thread(
    real: WasmtimeKit, offload: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the loop does not wait for them; those of the next call are as they were."""
    lengths: list[tuple[int, bool]] = []
    change = WasmtimeInstance.set_yield_fuel

    def note(self: WasmtimeInstance, fuel: int) -> None:
        lengths.append((fuel, threading.current_thread() is threading.main_thread()))
        change(self, fuel)

    config = CacheConfig(offload_after=offload, yield_fuel=50_000)
    column = array("q", range(40_000))
    async with held(real, real.adding_two(), config, args=TWO) as (_, lease):
        monkeypatch.setattr(WasmtimeInstance, "set_yield_fuel", note)
        assert list(await lease.map([column, 0])) == column.tolist()
        assert lengths == ([] if offload is None else [(LONG * 50_000, False), (50_000, True)])
        assert native_of(lease).yield_fuel == 50_000


async def test_slices_are_not_longer_where_the_guest_calls_the_host(real: WasmtimeKit) -> None:
    """It goes on in the loop after that, in the middle of a chunk."""
    config = CacheConfig(offload_after=0)
    lengths: set[int] = set()
    async with real.open(config) as cache:
        ask = HostFunction(lambda x: lengths.add(native.yield_fuel) or x, ("i64",), ("i64",))
        host = {"host": {"ask": ask}}
        function = await cache.register("f", ASKING, args=("i64",), returns="i64", imports=host)
        async with function.acquire() as lease:
            native = native_of(lease)
            assert len(await lease.map([array("q", range(20_000))])) == 20_000
    assert lengths == {config.yield_fuel}
