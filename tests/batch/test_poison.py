"""Batches that go on behind rows that fail: ``map(on_error="null")``."""

from __future__ import annotations

import contextlib
import itertools
from array import array
from typing import Any

import pyarrow as pa
import pytest
import trio
from abi.test_extism import add as add_plugin
from batch.modules import STOPS, binary, dividing, held
from batch.routes import UDFS, hashes, moody, row_by_row, udf
from hypothesis import HealthCheck, given, strategies as st
from kits import FakeKit, Kit, ListLogger, WasmtimeKit, add, add_calling_back, add_two_parts, tries
from peeking import may_call, native_of
from report.replay.test_replay import replayed
from report.workloads import JsonLogger
from staging import look, stage
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    AbiError,
    CacheConfig,
    FuelExhaustedError,
    Function,
    GuestError,
    HostFunction,
    InstanceCache,
    Lease,
    LoadError,
    MemoryLimitError,
    PluginError,
    ResultTooLargeError,
    TrapError,
    current_lease,
)
from trio_wasmcache._batch.chunks import LONG, NumberChunks
from trio_wasmcache._batch.failures import COMPLETE, FUEL_LIMITS, KEPT
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache._core.policy.shares import BURST_FUEL, Share
from trio_wasmcache._core.wasm.driver import Shape, layout
from trio_wasmcache._engine.fake.driver import FakeDriver
from trio_wasmcache._pool.replacing import MAX_EVENTS
from trio_wasmcache.testing import check_invariants

TWO = ("i64", "i64")
CHUNK = layout(Shape(TWO, ("i64",))).rows
LEVELS = ("reuse", "fresh", "reset")
MISFITS = (TypeError, ValueError, OverflowError)
# How often its instance was called; 0 traps. Each call takes a piece of a shadow stack, which a
# trap does not give back, as in compiled guests.
COUNTS = """(module (memory (export "memory") 1)
  (global $calls (mut i64) (i64.const 0)) (global $sp (mut i32) (i32.const 65536))
  (func (export "run") (param i64) (result i64)
    (global.set $sp (i32.sub (global.get $sp) (i32.const 4096)))
    (i64.store (global.get $sp) (local.get 0))
    (global.set $calls (i64.add (global.get $calls) (i64.const 1)))
    (if (i64.eqz (local.get 0)) (then (unreachable)))
    (global.set $sp (i32.add (global.get $sp) (i32.const 4096)))
    (global.get $calls)))"""
ROUNDS = tries(10, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=LEVELS)
def isolation(request: pytest.FixtureRequest) -> Any:
    """Each isolation level."""
    return request.param


@pytest.fixture(params=[None, 0], ids=["inline", "thread"])
def offload(request: pytest.FixtureRequest) -> Any:
    """`offload_after`: never, or at once."""
    return request.param


async def one_by_one(function: Function, columns: list[Any]) -> tuple[list[Any], dict[int, Any]]:
    """Results and errors of a call for each row, in the same lease until one fails half-way."""
    results: list[Any] = []
    errors: dict[int, Any] = {}
    rows = list(zip(*columns, strict=True))
    while len(results) < len(rows):
        async with function.acquire() as lease:
            while len(results) < len(rows) and may_call(lease):
                row = len(results)
                try:
                    results.append(await lease.call(*rows[row]))
                except (GuestError, *MISFITS) as error:
                    results.append(None)
                    errors[row] = error
    return results, errors


def kinds(errors: dict[int, Any]) -> dict[int, Any]:
    """What is the same of an error in a batch and in a call."""
    return {row: (type(error), getattr(error, "code", None)) for row, error in errors.items()}


async def agrees(twin: Function, function: Function, columns: list[Any]) -> list[Any]:
    """The result of a batch, which is that of calls of its twin; so are the errors."""
    wanted, errors = await one_by_one(twin, columns)
    async with function.acquire() as lease:
        result: list[Any] = await lease.map(columns, on_error="null")
        assert result == wanted
        assert kinds(lease.row_errors) == kinds(errors)
        assert lease.row_error_count == len(errors)
        for row, error in lease.row_errors.items():
            assert error.row == row  # type: ignore[attr-defined]
    return result


# -- null for errors of the guest, and for values that do not fit


async def test_rows_that_fail_are_null(kit: Kit, isolation: str) -> None:
    """The others have their results, in a list; row numbers and values are in the errors."""
    async with held(kit, dividing(kit), args=TWO, isolation=isolation) as (_, lease):
        divisors = [1, 0, 3, 0, 0, 6]
        result = await lease.map([range(6), divisors], on_error="null")
        assert result == [0, None, 0, None, None, 0]
        assert list(lease.row_errors) == [1, 3, 4]
        assert lease.row_error_count == 3
        for row, error in lease.row_errors.items():
            assert isinstance(error, TrapError)
            assert (error.row, error.values, error.function) == (row, (row, 0), "f")
            assert error.code == "integer divide by zero"
            assert f"f(i64, i64) in row {row} of a batch, called with ({row}, 0)" in str(error)
        assert await lease.call(7, 2) == 3
        assert await lease.map([[7], [2]], on_error="null") == [3]
        assert (lease.row_errors, lease.row_error_count) == ({}, 0)
        assert await lease.map([[7], [2]]) == array("q", [3])
        assert (lease.row_errors, lease.row_error_count) == ({}, 0)


@pytest.mark.parametrize(
    "failing",
    [(0,), (1, 2), (CHUNK - 1,), (CHUNK,), (CHUNK - 1, CHUNK, CHUNK + 1), (2 * CHUNK + 9,)],
)
async def test_at_the_edges_of_chunks(
    real: WasmtimeKit, isolation: str, failing: tuple[int, ...]
) -> None:
    """The first row of a batch, and of a chunk, and the last one."""
    number = 2 * CHUNK + 10
    divisors = array("q", [1]) * number
    for row in failing:
        divisors[row] = 0
    async with held(real, dividing(real), args=TWO, isolation=isolation) as (_, lease):
        result = await lease.map([range(number), divisors], on_error="null")
        assert result == [None if n in failing else n for n in range(number)]
        assert tuple(lease.row_errors) == failing


async def test_values_that_do_not_fit_are_null(kit: Kit, isolation: str) -> None:
    """The guest is not called for them, in any column; errors of the guest come on top."""
    async with held(kit, dividing(kit), args=TWO, isolation=isolation) as (cache, lease):
        columns = [["a", 1, 2, 2**70, 4, None, 6], [1, 1, 0, 1, 1.5, 1, 2]]
        assert await lease.map(columns, on_error="null") == [None, 1, None, None, None, None, 3]
        found = {row: type(error) for row, error in lease.row_errors.items()}
        assert found == {0: TypeError, 3: OverflowError, 4: TypeError, 2: TrapError}
        error: Any = lease.row_errors[3]
        assert (error.row, error.values) == (3, (2**70, 1))
        assert str(error).startswith("row 3: argument 1 of f(i64, i64)")
        assert cache.stats().evictions["corrupted"] == (isolation != "reset")


async def test_a_single_value_that_does_not_fit(kit: Kit) -> None:
    """Is one in every row: all are null, or too many, and then nothing has run."""
    async with held(kit, dividing(kit), args=TWO) as (_, lease):
        assert await lease.map([[1, 2, 3], "x"], on_error="null") == [None] * 3
        assert lease.row_error_count == 3
        with pytest.raises(TypeError, match="row 2: argument 2") as caught:
            await lease.map([[1, 2, 3], "x"], on_error="null", max_errors=2)
        assert caught.value.row == 2  # type: ignore[attr-defined]
        assert list(lease.row_errors) == [0, 1]
        assert await lease.map([[], "x"], on_error="null") == []
        assert await lease.call(4, 2) == 2


async def test_a_column_of_another_type_is_refused(kit: Kit) -> None:
    """It is no matter of its rows."""
    async with held(kit, dividing(kit), args=TWO) as (_, lease):
        with pytest.raises(TypeError, match="takes a buffer of format 'q'"):
            await lease.map([array("d", [1.0]), 1], on_error="null")
        assert await lease.call(4, 2) == 2


async def test_nulls_that_the_function_does_not_take(real: WasmtimeKit) -> None:
    """They are values that do not fit."""
    async with held(real, dividing(real), args=TWO, called_on_null=True) as (_, lease):
        assert await lease.map([[1, None, 8], [1, 1, 2]], on_error="null") == [1, None, 4]
        assert list(lease.row_errors) == [1]


async def test_arrow_comes_out_if_arrow_came_in(real: WasmtimeKit, isolation: str) -> None:
    """With nulls where rows have failed, were null, or do not fit."""
    async with held(real, dividing(real), args=TWO, isolation=isolation) as (_, lease):
        columns = [pa.chunked_array([[1, None], [9, 9]]), ["x", 1, 0, 3]]
        result = await lease.map(columns, on_error="null")
        assert isinstance(result, pa.Array)
        assert (result.type, result.to_pylist()) == (pa.int64(), [None, None, None, 3])
        assert sorted(lease.row_errors) == [0, 2]
        result = await lease.map([pa.array([1, 2]), 1], on_error="null")
        assert (result.null_count, result.to_pylist()) == (0, [1, 2])


@pytest.mark.parametrize("called_on_null", [False, True], ids=["skipped", "passed"])
async def test_results_out_of_range(real: WasmtimeKit, called_on_null: bool) -> None:
    """They break the ABI in one row, as others do."""
    text = '(module (func (export "run") (param i32) (result i32) (local.get 0)))'
    more: dict[str, Any] = {"args": ("i32",), "returns": "i8", "called_on_null": called_on_null}
    async with held(real, binary(text), **more) as (_, lease):
        assert await lease.map([[1, 200, -128, 2**20, 5]], on_error="null") == [
            1,
            None,
            -128,
            None,
            5,
        ]
        assert {type(error) for error in lease.row_errors.values()} == {AbiError}


async def test_several_results_and_none(real: WasmtimeKit) -> None:
    """A column for each; a function without results has only errors."""
    text = """(module (func (export "two") (param i64) (result i64 i64)
        (local.get 0) (i64.div_s (i64.const 12) (local.get 0)))
      (func (export "none") (param i64) (drop (i64.div_s (i64.const 1) (local.get 0)))))"""
    async with real.open() as cache:
        two = await add(cache, "two", binary(text), export="two", returns=("i64", "i64"))
        none = await add(cache, "none", binary(text), export="none", returns=None)
        async with two.acquire() as lease:
            found = await lease.map([[3, 0, 4]], on_error="null")
            assert found == ([3, None, 4], [4, None, 3])
        async with none.acquire() as lease:
            assert await lease.map([[3, 0, 4]], on_error="null") is None
            assert list(lease.row_errors) == [1]


async def test_a_large_result_alone(real: WasmtimeKit) -> None:
    """One result over `max_result_size` is null; many that are so together end the batch."""
    async with real.open(CacheConfig(max_result_size=300_000)) as cache:
        wasm, more = udf("buffer"), {"args": ("str", "u32"), "returns": "str", "abi": "buffer"}
        repeat: Any = await cache.register("repeat", wasm, **more)  # type: ignore[arg-type]
        for route in (contextlib.nullcontext, row_by_row):
            async with repeat.acquire() as lease:
                with route():
                    found = await lease.map(["ab", [1, 200_000, 2, 70_000, 3]], on_error="null")
                    assert found == ["ab", None, "abab", "ab" * 70_000, "ababab"]
                    assert {type(one) for one in lease.row_errors.values()} == {ResultTooLargeError}
                    assert list(lease.row_errors) == [1]
                    with pytest.raises(ResultTooLargeError) as caught:
                        await lease.map(["ab", [50_000] * 5], on_error="null")
                    assert caught.value.row == 2
                    assert (await lease.map(["ab", [1]], on_error="null")) == ["ab"]
        assert cache.stats().evictions["corrupted"] == 0


# -- what ends the batch


async def test_an_exception_of_a_host_function_ends_it(kit: Kit, isolation: str) -> None:
    """It gets the row, too, and what ran before is there to be looked at."""

    async def ask(value: int) -> int:
        if value == 5:
            raise KeyError("five")
        return value

    async with kit.open() as cache:
        f = await add_calling_back(cache, kit, ask, isolation=isolation)
        async with f.acquire() as lease:
            with pytest.raises(KeyError) as caught:
                await lease.map([[1, "x", 5, 2]], on_error="null")
            assert caught.value.row == 2  # type: ignore[attr-defined]
            assert caught.value.__notes__ == [
                "in host function host.ask, called by asks(i64)",
                "in row 2 of a batch of asks(i64)",
            ]
            assert (list(lease.row_errors), lease.row_error_count) == ([1], 1)
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(1)
        assert await f.call(1) == 1


async def test_an_exception_that_takes_no_row(real: WasmtimeKit) -> None:
    """It is raised all the same, in either kind of batch."""

    class SlottedError(Exception):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    async def ask(value: int) -> int:
        raise SlottedError

    async with real.open() as cache:
        f = await add_calling_back(cache, real, ask)
        for on_error in ("null", "raise"):
            async with f.acquire() as lease:
                with pytest.raises(SlottedError):
                    await lease.map([[1]], on_error=on_error)


async def test_a_host_function_that_raises_what_guests_do(kit: Kit) -> None:
    """Made by itself, or of another guest, it ends the batch; of an export it invoked, it does
    not."""
    async with kit.open() as cache:
        other = await add(cache, "other", kit.trapping())

        async def ask(value: int) -> int:
            if value == 1:
                raise TrapError("of my own")
            if value == 2:
                await other.call(1)
            if value == 3:
                await current_lease().invoke("trap")
            return value

        f = await add_calling_back(cache, kit, ask)
        for number, said in ((1, "of my own"), (2, "unreachable")):
            async with f.acquire() as lease:
                with pytest.raises(TrapError, match=said) as caught:
                    await lease.map([[4, number, 4]], on_error="null")
                assert caught.value.row == 1
                assert lease.row_error_count == 0
        async with f.acquire() as lease:
            assert await lease.map([[4, 3, 4]], on_error="null") == [4, None, 4]
            assert list(lease.row_errors) == [1]


@pytest.mark.parametrize("max_errors", [0, 1, 3])
async def test_one_failing_row_too_many(kit: Kit, isolation: str, max_errors: int) -> None:
    """Its error ends the batch, as any would; those before it are kept."""
    async with held(kit, dividing(kit), args=TWO, isolation=isolation) as (cache, lease):
        with pytest.raises(TrapError) as caught:
            await lease.map([range(10), 0], on_error="null", max_errors=max_errors)
        assert caught.value.row == max_errors
        assert f"row {max_errors} of a batch" in str(caught.value)
        assert list(lease.row_errors) == list(range(max_errors))
        assert lease.row_error_count == max_errors
        with pytest.raises(trio.BrokenResourceError):
            await lease.call(1, 1)
    gone = 1 if isolation == "reset" else max_errors + 1
    assert cache.stats().evictions["corrupted"] == gone


async def test_misfits_count_too(kit: Kit) -> None:
    """They are found first; then there is less left for the guest."""
    async with held(kit, dividing(kit), args=TWO) as (_, lease):
        columns = [["x", 1, 2, "y", 4], [1, 1, 0, 1, 1]]
        assert await lease.map(columns, on_error="null", max_errors=3) == [None, 1, None, None, 4]
        with pytest.raises(TypeError, match="row 3"):
            await lease.map(columns, on_error="null", max_errors=1)
        with pytest.raises(TrapError):
            await lease.map(columns, on_error="null", max_errors=2)
        assert lease.row_error_count == 2


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"on_error": "ignore"}, ValueError, 'on_error is "raise" or "null", got \'ignore\''),
        ({"on_error": None}, ValueError, "got None"),
        ({"on_error": "null", "max_errors": -1}, ValueError, "a number from 0, got -1"),
        ({"on_error": "null", "max_errors": 1.5}, TypeError, "takes an int from 0, got 1.5"),
        ({"on_error": "null", "max_errors": True}, TypeError, "takes an int from 0, got True"),
    ],
)
async def test_options_that_there_are_not(
    kit: Kit, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    """They are refused before anything runs."""
    async with held(kit, dividing(kit), args=TWO) as (_, lease):
        with pytest.raises(error, match=said):
            await lease.map([[1], [0]], **options)
        assert await lease.call(4, 2) == 2


async def test_a_new_instance_that_can_not_be_made(fake: FakeKit) -> None:
    """Its error ends the batch, as that of a lease would."""
    async with fake.open() as cache:
        f = await add(cache, "f", dividing(fake), args=TWO)
        async with f.acquire() as lease:
            fake.engine.fail_at = (
                len(fake.engine.steps) + 3
            )  # the driver, the row, the new instance
            with pytest.raises(LoadError):
                await lease.map([[1, 2, 3], [1, 0, 1]], on_error="null")
            assert list(lease.row_errors) == [1]
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(1, 1)
            assert lease.size > 0
            look(cache, fake)
        assert await f.call(4, 2) == 2
        assert cache.stats().evictions["corrupted"] == 1


# -- the instance


async def test_an_instance_is_never_gone_on_with(real: WasmtimeKit, isolation: str) -> None:
    """It begins again behind each failing row, however many there are."""
    async with held(real, binary(COUNTS), isolation=isolation) as (cache, lease):
        column = [1, 1, 0, 1, 1, 1, 0, 0, 1]
        wanted = [1, 2, None, 1, 2, 3, None, None, 1]
        assert await lease.map([column], on_error="null") == wanted
        assert await lease.map([[0, 1] * 100], on_error="null") == [None, 1] * 100
        assert await lease.call(1) == 2
        first = native_of(lease)
        assert await lease.map([[1]], on_error="null") == [3]
        assert native_of(lease) is first
        gone = 0 if isolation == "reset" else 103
        assert cache.stats().evictions["corrupted"] == gone


async def test_a_reset_that_is_not_possible_any_more(real: WasmtimeKit) -> None:
    """An instance that has grown is replaced, under ``"reset"``, too."""
    text = """(module (memory (export "memory") 1) (func (export "run") (param i64) (result i64)
      (drop (memory.grow (i32.const 1))) (i64.div_s (i64.const 8) (local.get 0))))"""
    async with held(real, binary(text), isolation="reset") as (cache, lease):
        assert await lease.map([[1, 0, 2, 0, 4]], on_error="null") == [8, None, 4, None, 2]
        assert cache.stats().evictions["corrupted"] == 2
        check_invariants(cache)


async def test_the_chunk_is_not_copied_again(
    fake: FakeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver goes on behind the row, under ``"reset"``."""
    copied = 0
    put = FakeDriver.put

    def counted(driver: FakeDriver, at: int, data: bytes | memoryview) -> None:
        nonlocal copied
        copied += len(data)
        put(driver, at, data)

    monkeypatch.setattr(FakeDriver, "put", counted)
    async with held(fake, dividing(fake), args=TWO, isolation="reset") as (_, lease):
        columns = [array("q", range(1000)), array("q", [1, 0] * 500)]
        await lease.map(columns, on_error="null")
        assert lease.row_error_count == 500
        assert 16_000 <= copied <= 16_000 + 500 * 8


async def test_evictions_in_the_log(real: WasmtimeKit) -> None:
    """One event for each of the first ones, and one for all others together."""
    log = ListLogger()
    number = 3 * MAX_EVENTS
    async with real.open(logger=log) as cache:
        f = await add(cache, "f", binary(COUNTS))
        async with f.acquire() as lease:
            await lease.map([[0, 1] * number], on_error="null")
            check_invariants(cache)
            assert cache.stats().evictions["corrupted"] == number
            assert await lease.map([[0, 1]], on_error="null") == [None, 1]
        assert await f.call(1) == 2
        assert cache.stats().misses == 1
    events = [one for one in log.fields("evicted") if one["reason"] == "corrupted"]
    assert len(events) == MAX_EVENTS + 1 + 1
    assert {one["error"] for one in events} == {"TrapError"}
    assert [one["evictions"] for one in events] == [None] * 99 + [number - 99, None]
    for before, after in itertools.pairwise(events):
        assert before["replaced_by"] == after["instance"]
    assert log.fields("closed")[0]["evictions"] == number + 2


async def test_a_replay_agrees(isolation: str) -> None:
    """With other leases in between, in whatever state the batch ends."""
    log, kit = JsonLogger(), WasmtimeKit()
    config = CacheConfig(log_uses=True, max_instances=4, idle_timeout=1000)
    async with kit.open(config, logger=log) as cache:
        f = await add(cache, "f", binary(COUNTS), isolation=isolation, concurrency=2)
        g = await add(cache, "g", kit.adding(1))

        async def other() -> None:
            while True:
                assert await g.call(1) == 2
                with contextlib.suppress(TrapError):
                    await f.call(0)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for column, most in (([1, 0, 1], 9), ([0, 1] * 200, 1000), ([0, 1, 0, 1], 1)):
                async with f.acquire() as lease:
                    with contextlib.suppress(TrapError):
                        await lease.map([column], on_error="null", max_errors=most)
            nursery.cancel_scope.cancel()
        with pytest.raises(TrapError):
            await f.call(0)
    replay, _ = replayed(log.events)
    assert replay.disagreements == []
    assert replay.complete


async def test_a_function_that_is_replaced_meanwhile(real: WasmtimeKit) -> None:
    """The batch ends on the old generation, in new instances of it; nothing of it is kept."""
    async with real.open() as cache:
        asked = trio.Event()

        async def ask(value: int) -> int:
            if value == 9:
                asked.set()
                while cache.functions()[0].generation == 1:
                    await trio.lowlevel.checkpoint()
            if value == 3:
                await current_lease().invoke("trap")
            return value

        f = await add_calling_back(cache, real, ask)

        async def replace() -> None:
            await asked.wait()
            await add_calling_back(cache, real, ask, replace=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace)
            async with f.acquire() as lease:
                found = await lease.map([[1, 9, 3, 4, 3, 5]], on_error="null")
                assert found == [1, 9, None, 4, None, 5]
                assert lease.function.generation == 1
        evicted = cache.stats().evictions
        assert (evicted["corrupted"], evicted["removed"]) == (2, 1)
        assert await f.call(1) == 1


# -- errors


async def test_what_is_kept_of_many_errors(real: WasmtimeKit) -> None:
    """The first ones; of these, the first of each code with all facts."""
    text = """(module (memory (export "memory") 1) (func $inner (param i64) (result i64)
        (if (i64.eq (local.get 0) (i64.const 1)) (then (unreachable)))
        (i64.div_s (i64.const 8) (local.get 0)))
      (func (export "run") (param i64) (result i64) (call $inner (local.get 0))))"""
    async with held(real, binary(text), isolation="reset") as (_, lease):
        found = await lease.map([[0, 1, 2] * 600], on_error="null", max_errors=2000)
        assert found == [None, None, 4] * 600
        assert (lease.row_error_count, len(lease.row_errors)) == (1200, KEPT)
        for code, first in (("integer divide by zero", 0), ("unreachable", 1)):
            errors: list[Any] = [one for one in lease.row_errors.values() if one.code == code]
            assert [one.row for one in errors] == list(range(first, 1500, 3))
            for number, error in enumerate(errors):
                whole = number < COMPLETE
                assert error.function == "f"
                assert (f"wasm trap: {code}" in str(error)) is True
                assert f"row {error.row} of a batch" in str(error)
                assert [frame.function for frame in error.frames] == (
                    ["inner", "run"] if whole else []
                )
                assert bool(error.values) is whole
                assert error.__traceback__ is None


async def test_frames_after_a_batch_with_many_errors(real: WasmtimeKit, isolation: str) -> None:
    """The next batch has all facts again, whatever it is, in the same lease and in others."""

    def frames(errors: dict[int, Any]) -> list[int]:
        return [len(error.frames) for error in errors.values()]

    async def has_all_facts(lease: Lease) -> None:
        """A driver for nulls, too, has a brief form of its own."""
        for column in ([0] * 3, [0, 0, None, 0]):
            await lease.map([[8] * len(column), column], on_error="null")
            assert frames(lease.row_errors) == [1] * 3
        many = [0] * (COMPLETE + 4)
        for column in ([*many, None], many):
            await lease.map([[8] * len(column), column], on_error="null")
            assert frames(lease.row_errors) == [1] * COMPLETE + [0] * 4

    async with real.open() as cache:
        f = await add(cache, "f", dividing(real), args=TWO, isolation=isolation)
        for _ in range(3):
            async with f.acquire() as lease:
                for _ in range(2):
                    await has_all_facts(lease)
        for column in (array("q", [0]), [0], [None, 0]):
            async with f.acquire() as lease:
                await lease.map([[1], [1]])
                with pytest.raises(TrapError) as caught:
                    await lease.map([[8] * len(column), column])
                assert len(caught.value.frames) == 1


async def test_frames_after_many_errors_in_text(real: WasmtimeKit, isolation: str) -> None:
    """The driver of text has them again, too."""
    async with real.open() as cache:
        f = await moody_function(cache, "f", isolation)
        for _ in range(2):
            async with f.acquire() as lease:
                for many in (3, COMPLETE + 4):
                    await lease.map([["t"] * many], on_error="null")
                    errors: list[Any] = list(lease.row_errors.values())
                    have = [bool(error.frames) for error in errors]
                    assert have == [number < COMPLETE for number in range(many)]
                with pytest.raises(TrapError) as caught:
                    await lease.map([["t"]])
                assert caught.value.frames


async def test_fuel_of_rows(real: WasmtimeKit, offload: int | None, isolation: str) -> None:
    """Each may burn `total_fuel`, those that fail ten times as much together."""
    config = CacheConfig(total_fuel=100_000, yield_fuel=10_000, offload_after=offload)
    more: dict[str, Any] = {"args": TWO, "isolation": isolation}
    async with held(real, binary(STOPS), config, **more) as (_, lease):
        column = [1, 777, 2] * (FUEL_LIMITS - 1)
        assert await lease.map([column, 1], on_error="null") == [2, None, 3] * 9
        assert {type(one) for one in lease.row_errors.values()} == {FuelExhaustedError}
        assert "total_fuel is 100000" in str(lease.row_errors[1])
        with pytest.raises(FuelExhaustedError) as caught:
            await lease.map([[1, 777] * 20, 1], on_error="null")
        assert caught.value.row == 2 * FUEL_LIMITS - 1
        assert lease.fuel_consumed is not None
        assert lease.fuel_consumed <= FUEL_LIMITS * (100_000 + 25_000)


async def test_rows_that_burn_little_before_they_fail(real: WasmtimeKit) -> None:
    """Good rows between them do not count, however large a slice is."""
    config = CacheConfig(total_fuel=1000, yield_fuel=10**9)
    async with held(real, dividing(real), config, args=TWO) as (_, lease):
        divisors = array("q", ([1] * 300 + [0]) * 60)
        assert len(await lease.map([1, divisors], on_error="null")) == len(divisors)
        assert lease.row_error_count == 60


# -- every driver and ABI


# A call with a null looks at nothing else, while a batch looks at columns first.
NULLS = [(None, 1), (None, None), (0, None)]
TYPES = st.one_of(st.integers(-3, 3), st.just("x"), st.just(2**65), st.just(1.5))


@given(data=st.data())
@ROUNDS
async def test_numbers_are_as_by_calls(kit: Kit, data: st.DataObject) -> None:
    """Whichever rows fail, for whatever reason, under each isolation."""
    rows = data.draw(st.integers(0, 40))
    pair = st.tuples(TYPES, TYPES).filter(lambda it: None not in it) | st.sampled_from(NULLS)
    drawn = data.draw(st.lists(pair, min_size=rows, max_size=rows))
    columns = [[one[n] for one in drawn] for n in (0, 1)]
    async with kit.open() as cache:
        for level in LEVELS:
            twin, f = [
                await add(cache, level + name, dividing(kit), args=TWO, isolation=level)
                for name in ("", " again")
            ]
            await agrees(twin, f, columns)
            check_invariants(cache)


MOODS = [
    *("", "x", "g", "a", "h!", "t", "l", "b", "é", "e", "x" * 1019, "x" * 1013, "y" * 1021),
    *("x" * 70_000, "t" * 70_000, "b" * 70_000, "b" * 50_000, "f"),
]


async def moody_function(cache: InstanceCache, name: str, level: str) -> Function:
    def ask(size: int) -> int:
        return size

    return await cache.register(
        name,
        moody(),
        args=("str",),
        returns="str",
        export="run",
        abi="buffer",
        imports={"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}},
        isolation=level,
    )


@given(data=st.data())
@ROUNDS
async def test_text_is_as_by_calls(real: WasmtimeKit, data: st.DataObject) -> None:
    """In the function, in malloc, in free, in what the guest says; by a driver and row by row."""
    mood = st.sampled_from([*MOODS, None, 5, "\ud800"])
    column = data.draw(st.lists(mood, max_size=25))
    limits = CacheConfig(total_fuel=500_000, yield_fuel=50_000)
    async with real.open(limits) as cache:
        for level in LEVELS:
            names = [level, f"{level} driven", f"{level} again", f"{level} row by row"]
            twin, driven, again, single = [await moody_function(cache, n, level) for n in names]
            await agrees(twin, driven, [column])
            with row_by_row():
                await agrees(again, single, [column])
            check_invariants(cache)


async def test_text_in_arrow(real: WasmtimeKit, isolation: str) -> None:
    """Results that are not UTF-8 are null among others."""
    values = ["x", "b", "é", None, "t", "b", "xé", "b" * 70_000, "é"]
    async with real.open() as cache:
        f = await moody_function(cache, "f", isolation)
        async with f.acquire() as lease:
            result = await lease.map([pa.array(values)], on_error="null")
            assert isinstance(result, pa.Array)
            assert result.to_pylist() == ["x", None, "é", None, None, None, "xé", None, "é"]
            assert sorted(lease.row_errors) == [1, 4, 5, 7]
            assert len(await lease.map([pa.array(["x"] * 5000)], on_error="null")) == 5000
            assert lease.row_errors == {}


async def test_values_of_cql(real: WasmtimeKit, isolation: str) -> None:
    """Nulls that are passed, values that do not fit, and an allocator that fails."""
    async with real.open() as cache:
        for version in (1, 2):
            twin, join = [
                await cache.register(
                    f"join{version}{name}",
                    udf(f"scylla_v{version}"),
                    args=("text", "ascii"),
                    returns="text",
                    export="join",
                    isolation=isolation,
                )
                for name in ("", " again")
            ]
            columns = [["a", 1, "b", None, "c" * 1013, "d"], ["x", "x", "é", "x", "x", "x"]]
            result = await agrees(twin, join, columns)
            assert result[:4] == ["ax", None, None, None]
            assert result[5] == "dx"


async def test_memory_that_does_not_suffice(real: WasmtimeKit, isolation: str) -> None:
    """Arguments for which the memory can't grow are an error of their row."""
    async with real.open(CacheConfig(memory_limit=3 * 65536)) as cache:
        twin, f = [
            await cache.register(
                name,
                hashes(alone=True),
                args=("str",),
                returns="u32",
                export="hash",
                abi="buffer",
                isolation=isolation,
            )
            for name in ("f", "g")
        ]
        column = ["a", "b" * 200_000, "c", "d" * 40_000, "e" * 300_000, "a"]
        result = await agrees(twin, f, [column])
        assert [value is None for value in result] == [False, True, False, False, True, False]
        async with f.acquire() as lease:
            await lease.map([["b" * 200_000]], on_error="null")
            assert type(lease.row_errors[0]) is MemoryLimitError


async def test_graphs_of_parts(kit: Kit, isolation: str) -> None:
    """All parts are new, or put back."""
    part = kit.trapping()
    async with kit.open() as cache:
        f = await add_two_parts(cache, kit, part, isolation=isolation)
        async with f.acquire() as lease:
            assert await lease.map([[1, 2]], on_error="null") == [None, None]
            assert list(lease.row_errors) == [0, 1]
        check_invariants(cache)


async def test_objects_of_assemblyscript(real: WasmtimeKit, isolation: str) -> None:
    """Their runtime begins again with its instance."""
    wasm = UDFS / "assemblyscript" / "incremental.wasm"
    async with real.open() as cache:
        twin, driven, again, single = [
            await cache.register(
                name, wasm, args=("str",), returns="str", export="fail", isolation=isolation
            )
            for name in "fghi"
        ]
        column = ["no", None, 5, "x" * 70_000, "", "good"] * 3
        result = await agrees(twin, driven, [column])
        assert result.count(None) < len(result)
        with row_by_row():
            await agrees(again, single, [column])


async def test_plugins_of_extism(real: WasmtimeKit, isolation: str) -> None:
    """Row by row; a status leaves the instance, and its variables, as they are."""
    async with real.open() as cache:
        status = await add_plugin(cache, "status", returns=None, isolation=isolation)
        async with status.acquire() as lease:
            assert await lease.map([[b"0", b"5", 7, b"0"]], on_error="null") is None
            assert [type(one) for one in lease.row_errors.values()] == [PluginError, TypeError]
        assert cache.stats().evictions["corrupted"] == 0
        traps = await add_plugin(cache, "traps", isolation=isolation)
        async with traps.acquire() as lease:
            assert await lease.map([[b"", b"x"]], on_error="null") == [None, None]
            assert "it had reported: the last words" in str(lease.row_errors[1])
        check_invariants(cache)


# -- threads, cancellation, failures of the engine


async def test_in_a_thread(real: WasmtimeKit, offload: int | None, isolation: str) -> None:
    """Slices are so short that rows fail in any of them."""
    config = CacheConfig(yield_fuel=1000, offload_after=offload)
    async with held(real, dividing(real), config, args=TWO, isolation=isolation) as (_, lease):
        divisors = array("q", [1, 1, 0, 2, 1] * 200)
        result = await lease.map([range(1000), divisors], on_error="null")
        wanted = [n // d if d else None for n, d in enumerate(divisors)]
        assert result == wanted


@pytest.mark.parametrize("isolation", ["reuse", "fresh"])
async def test_slices_of_another_instance(
    real: WasmtimeKit, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    """They are as long as those of the first one: longer in a thread, and not for a later call."""
    config, fill, chunks = CacheConfig(offload_after=0), NumberChunks.fill, []

    def watched(batch: NumberChunks) -> int:
        in_thread = batch.job is not None and batch.job.in_thread
        chunks.append((id(batch.native), in_thread))
        assert batch.native.yield_fuel == (LONG if in_thread else 1) * config.yield_fuel
        return fill(batch)

    monkeypatch.setattr(NumberChunks, "fill", watched)
    async with held(real, dividing(real), config, args=TWO, isolation=isolation) as (_, lease):
        divisors = array("q", [1]) * (4 * CHUNK)
        divisors[0] = divisors[CHUNK] = 0
        await lease.map([range(4 * CHUNK), divisors], on_error="null")
        assert lease.row_error_count == 2
        assert native_of(lease).yield_fuel == config.yield_fuel
    instances = dict.fromkeys(native for native, _ in chunks)
    assert len(instances) == 3
    assert [(native, True) in chunks for native in instances] == [False, True, True]


@pytest.mark.parametrize("way", ["call", "map"])
async def test_replaced_while_another_waits_for_its_turn(real: WasmtimeKit, way: str) -> None:
    """A call, or a batch, of another task: it is made in the new instance."""
    async with real.open() as cache:
        pool, share = parts_of(cache).pool, parts_of(cache).groups.main.share
        f = await cache.register("f", dividing(real), args=TWO, returns="i64", export="run")
        async with f.acquire() as lease:
            assert list(await lease.map([[6], 3])) == [2]
            await pool.runner.loop.take(Share(100))  # which another group has, for a slice
            share.burst = BURST_FUEL
            found: list[Any] = []

            async def wait() -> None:
                result = await (lease.call(8, 2) if way == "call" else lease.map([[8], 2]))
                found.extend([result] if way == "call" else result)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await wait_all_tasks_blocked()
                share.burst = 0  # a new burst has begun meanwhile
                results = await lease.map([[6, 5], [0, 1]], on_error="null")
                pool.runner.loop.give_back()
            assert (results, found) == ([None, 5], [4])
        assert cache.stats().evictions["corrupted"] == 1


async def test_other_tasks_run_in_between(real: WasmtimeKit) -> None:
    """A failing row is charged for what it costs, so that many do not keep the loop."""
    passes = 0

    async def others() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with held(real, dividing(real), args=TWO) as (_, lease):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await trio.lowlevel.checkpoint()
            before = passes
            await lease.map([range(300), 0], on_error="null")
            assert passes - before >= 15
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("slow_start", [False, True], ids=["quick", "slow"])
async def test_cancelled_everywhere(kit: Kit, isolation: str, slow_start: bool) -> None:
    """In the rows, while an instance is put back or replaced, and at its end."""
    config = CacheConfig(yield_fuel=5000, offload_after=None)
    wasm = poisonous(kit, slow_start=slow_start)
    async with stage(kit, config) as at:
        f = await add(at.cache, "f", wasm, isolation=isolation)

        async def scenario() -> None:
            async with f.acquire() as lease:
                result = await lease.map([[1, 0, 2, 0, 3]], on_error="null")
                assert result == [1, None, 2, None, 3]
                assert await lease.call(1) == 1

        await at.run(scenario, least=8)
        assert await f.call(1) == 1


def poisonous(kit: Kit, *, slow_start: bool = False) -> bytes:
    """Gives its argument back after burning some fuel; traps for 0."""

    def run(x: int) -> int:
        if not x:
            raise TrapError("wasm trap: unreachable", code="unreachable")
        return x

    if isinstance(kit, FakeKit):
        return kit.engine.module(run, fuel=12_000, start_fuel=12_000 if slow_start else 0)
    busy = """(local $i i64) (loop (local.set $i (i64.add (local.get $i) (i64.const 1)))
      (br_if 0 (i64.lt_u (local.get $i) (i64.const 2000))))"""
    start = f"(start $begin) (func $begin {busy})" if slow_start else ""
    return binary(f"""(module (memory (export "memory") 1) {start}
      (func (export "run") (param i64) (result i64) {busy}
        (if (i64.eqz (local.get 0)) (then (unreachable))) (local.get 0)))""")


async def test_closed_while_an_instance_starts(kit: Kit, isolation: str) -> None:
    """The batch ends at once; nothing of the new instance is left."""
    async with kit.open(CacheConfig(yield_fuel=1000, offload_after=None)) as cache:
        f = await add(cache, "f", poisonous(kit, slow_start=True), isolation=isolation)
        async with f.acquire() as lease:
            # What a thread imports and compiles for it takes any number of passes, once.
            await lease.map([[1, 0, 2]], on_error="null")
        for steps in range(0, 150, 1 if isinstance(kit, FakeKit) else 3):
            done = False
            async with (
                trio.open_nursery() as nursery,
                cache.scheduling_group("g", capacity=1) as group,
            ):

                async def batch(group: Any = group) -> None:
                    nonlocal done
                    with contextlib.suppress(trio.ClosedResourceError):
                        async with group.acquire("f", ("i64",)) as lease:
                            await lease.map([[1, 0, 2]], on_error="null")
                            done = True

                nursery.start_soon(batch)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
            look(cache, kit)
            if done:
                break
        assert done
        assert await f.call(1) == 1


async def test_each_native_step_fails() -> None:
    """Where a new instance is made in the middle of a batch, too: the books are right."""
    for level in LEVELS:
        for number in range(1, 60):
            kit = FakeKit()
            async with kit.open() as cache:
                f = await add(cache, "f", poisonous(kit), isolation=level)
                kit.engine.fail_at = len(kit.engine.steps) + number
                found: Any = None
                with contextlib.suppress(LoadError):
                    async with f.acquire() as lease:
                        found = await lease.map([[1, 0, 2, 0, 3]], on_error="null")
                        assert isinstance(lease, Lease)
                look(cache, kit)
                assert cache.stats().running_instances == 0
                over = len(kit.engine.steps) < kit.engine.fail_at
                # A row that is told to fail is null, as others are.
                assert found is None or len(found) == 5
                if over:
                    assert found == [1, None, 2, None, 3]
                kit.engine.fail_at = None
                assert await f.call(1) == 1
                look(cache, kit)
            if over:
                break
        assert over
