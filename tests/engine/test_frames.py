"""Calls of one signature share what C writes to; those that are under way have their own."""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from engine.support import wat

from trio_wasmcache import TrapError
from trio_wasmcache._core.config import KiB
from trio_wasmcache._core.wasm.admission import check_limits
from trio_wasmcache._core.wasm.driver import Shape
from trio_wasmcache._engine.base import UNDER_WAY
from trio_wasmcache._engine.wasmtime import native
from trio_wasmcache._engine.wasmtime.drivers import RUN, WasmtimeDriverCode
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._engine.wasmtime.function import WasmtimeFunction
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance

# Both count down from `$n`, which takes slices, and then say what they were given; or trap.
SOURCE = """(module
  (func $spin (param $n i32) (loop $again
    (local.set $n (i32.sub (local.get $n) (i32.const 1)))
    (br_if $again (i32.gt_s (local.get $n) (i32.const 0)))))
  (func (export "one") (param i32 i64) (result i64) (call $spin (local.get 0)) (local.get 1))
  (func (export "two") (param i32 i64) (result i64 i64)
    (call $spin (local.get 0)) (local.get 1) (local.get 1))
  (func (export "short") (param i32 i64) (result i64) (local.get 1))
  (func (export "costly") (param i32 i64) (result i64)
    (i64.add (local.get 1) (i64.mul (i64.const 2) (i64.extend_i32_u (local.get 0)))))
  (func (export "trap") (param i32 i64) (result i64) (call $spin (local.get 0)) unreachable))"""
FUEL, SLICE, LONG = 100_000, 1_000, 1_000


@asynccontextmanager
async def instances(
    count: int, *, used: bool = True, slice_fuel: int = SLICE
) -> AsyncIterator[list[WasmtimeInstance]]:
    """So many instances of one module; if they are `used`, no call runs without a future."""
    engine = WasmtimeEngine(512 * KiB)
    artifact = await engine.compile(wat(SOURCE), lambda info: check_limits(info, "frames", 0, 0))
    module = await engine.load(artifact, ())
    made = [module.instantiate(FUEL, slice_fuel) for _ in range(count)]
    for instance in made:
        assert instance.poll()
        instance.started()
        instance.untouched = instance.untouched and not used
    yield made
    for instance in made:
        instance.close()
    module.close()
    engine.close()


def finish(function: WasmtimeFunction) -> object:
    while not function.instance.poll():
        pass
    return function.finish()


@pytest.mark.parametrize("name", ["one", "two"])
async def test_calls_that_are_under_way_together_do_not_mix(name: str) -> None:
    """Each gets its own result, whoever begins, ends in a slice, or is over, and in what order."""
    async with instances(5) as made:
        functions = [instance.function(name) for instance in made]
        expected = (lambda value: value) if name == "one" else (lambda value: (value, value))
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
            for number, function in enumerate(functions[:4]):
                assert function.begin((LONG, number), FUEL) is UNDER_WAY
                assert functions[4].begin((1, 40 + number), FUEL) == expected(40 + number)
            for number in order:
                assert finish(functions[number]) == expected(number)
                assert functions[4].begin((1, 50), FUEL) == expected(50)
                assert functions[4].left.value > FUEL - SLICE


async def test_how_one_call_ends_is_not_told_of_another() -> None:
    """A trap in the first slice, or after some, is that of the call that trapped."""
    async with instances(3) as (first, second, third):
        long, good = first.function("one"), third.function("one")
        assert long.begin((LONG, 1), FUEL) is UNDER_WAY
        for many in (1, LONG):
            bad = second.function("trap")
            with pytest.raises(TrapError, match="unreachable"):
                if bad.begin((many, 2), FUEL) is UNDER_WAY:
                    finish(bad)
            assert good.begin((1, 3), FUEL) == 3
        assert finish(long) == 1


@pytest.mark.parametrize(("many", "used"), [(1, True), (LONG, True), (1, False)])
async def test_a_trap_that_nobody_was_told_of_is_not_told_of_another(
    many: int, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler of a signal may raise when a call has ended, before it is looked at how."""
    ends = "hot_delete" if used else "hot_call_at_once"
    end = getattr(native, ends)

    def handle(*_: object) -> None:
        raise InterruptedError

    def interrupted(*arguments: object) -> object:
        ended = end(*arguments)
        if armed:
            signal.raise_signal(signal.SIGUSR1)
        return ended

    armed = False
    monkeypatch.setattr(native, ends, interrupted)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        async with instances(2, used=used) as (first, second):
            bad, good = first.function("trap"), second.function("one")
            armed = True
            with pytest.raises(InterruptedError):
                if bad.begin((many, 1), FUEL) is UNDER_WAY:
                    finish(bad)
            armed = False
            assert good.begin((1, 2), FUEL) == 2
            first.abandon()
            caller = good.frame.caller
            frames = [caller.frame, *caller.spare]
            assert not any(frame.trap or frame.busy for frame in frames)
            assert good.begin((1, 3), FUEL) == 3
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("slice_fuel", [SLICE, 10**6])
@pytest.mark.parametrize("names", [("one", "one"), ("two", "two"), ("short", "costly")])
async def test_fuel_of_a_call_is_its_own_whatever_a_signal_handler_calls(
    names: tuple[str, str],
    slice_fuel: int,
    used: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Handlers run after any native call, and may call a function of the same signature."""
    handled: list[int] = []

    def handle(*_: object) -> None:
        within.begin((30, 2), FUEL)
        handled.append(FUEL - within.left.value)

    def interrupted(native_call: Any) -> Any:
        def call(*arguments: object) -> object:
            result = native_call(*arguments)
            if at:
                at[0] -= 1
                if not at[0]:
                    at.clear()
                    signal.raise_signal(signal.SIGUSR1)
            return result

        return call

    at: list[int] = []
    for one in ("set_fuel", "call", "poll", "delete", "get_fuel", "call_at_once", "call_bounded"):
        name = f"hot_{one}"
        monkeypatch.setattr(native, name, interrupted(getattr(native, name)))
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        async with instances(20, used=used, slice_fuel=slice_fuel) as made:
            within, alone, *others = (
                one.function(name)
                for one, name in zip(made, (names[1], *names[:1] * 19), strict=True)
            )
            within.begin((30, 2), FUEL)
            alone.begin((1, 1), FUEL)
            burnt = FUEL - alone.left.value
            for step, function in enumerate(others, 1):
                at[:] = [step]
                function.begin((1, 1), FUEL)
                assert FUEL - function.left.value == burnt, step
                if at:
                    break
            assert len(handled) == step - 1 >= 3
            assert burnt not in handled
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_what_is_abandoned_leaves_nothing_to_others() -> None:
    """Neither a call that was given up half-way, nor one whose end nobody asked for."""
    async with instances(3) as (first, second, third):
        assert first.function("one").begin((LONG, 1), FUEL) is UNDER_WAY
        first.abandon()
        assert second.function("trap").begin((LONG, 2), FUEL) is UNDER_WAY
        while not second.poll():
            pass
        second.abandon()
        for value in range(3):
            assert third.function("one").begin((1, value), FUEL) == value
            assert third.function("one").begin((LONG, value), FUEL) is UNDER_WAY
            assert finish(third.function("one")) == value


async def test_values_that_do_not_fit_disturb_nobody() -> None:
    """Those of a call that never was are not what the next one is given."""
    async with instances(2) as (first, second):
        long, other = first.function("one"), second.function("one")
        for begun in (False, True):
            if begun:
                assert long.begin((LONG, 1), FUEL) is UNDER_WAY
            for values in ((1,), (1, 2, 3), (1, "2"), (2**40, 2)):
                with pytest.raises((TypeError, ValueError, OverflowError)):
                    other.begin(values, FUEL)
            assert other.begin((1, 7), FUEL) == 7
        assert finish(long) == 1


async def test_frames_of_calls_that_are_over_are_used_again() -> None:
    """However many were under way together: no more are made than then."""
    async with instances(3) as made:
        caller = made[0].function("one").frame.caller
        for _ in range(3):
            functions = [instance.function("one") for instance in made]
            for function in functions:
                assert function.begin((LONG, 1), FUEL) is UNDER_WAY
            assert caller.spare == []
            for function in functions[:2]:
                assert finish(function) == 1
            made[2].abandon()
            assert (len(caller.spare), caller.frame.busy) == (2, False)
            made[2].close()
            made[2] = made[0].module.instantiate(FUEL, SLICE)
            assert made[2].poll()
            made[2].started()


async def test_short_calls_beside_a_long_one_make_one_frame() -> None:
    """Whether they end well, trap or are refused, the next one has it again."""
    async with instances(2) as (first, second):
        long, short, bad = first.function("one"), second.function("one"), second.function("trap")
        assert long.begin((LONG, 1), FUEL) is UNDER_WAY
        assert short.begin((1, 2), FUEL) == 2
        (spare,) = short.frame.caller.spare
        assert short.begin((1, 3), FUEL) == 3
        with pytest.raises(OverflowError):
            short.begin((2**40, 2), FUEL)
        with pytest.raises(TrapError):
            bad.begin((1, 4), FUEL)
        second.abandon()
        assert short.frame.caller.spare == [spare]
        assert finish(long) == 1


async def test_a_driver_shares_nothing_as_its_chunks_begin_in_any_thread() -> None:
    """It has a frame of its own: no other's, and none of a function's."""
    async with instances(2) as made:
        code = WasmtimeDriverCode(made[0].module.engine, Shape(("i32", "i64"), ("i64",)))
        drivers = [code.attach(instance, {"function": "one"}) for instance in made]
        callers = [driver._begin.__self__.frame.caller for driver in drivers]
        assert callers[0] is not callers[1]
        assert not {caller.frame for caller in callers} & {made[0].module.callers.frame(RUN)}


async def test_a_closed_instance_goes_at_once() -> None:
    """Not when the garbage collector comes: nothing of it refers to itself, not even half-way."""

    def functions() -> list[object]:
        return [one for one in gc.get_objects() if isinstance(one, WasmtimeFunction)]

    gc.disable()
    try:
        others = functions()  # held, so that what earlier tests left does not go meanwhile
        async with instances(2) as made:
            for name in ("one", "two"):
                function = made[1].function(name)
                assert function.begin((LONG, 1), FUEL) is UNDER_WAY
                finish(function)
            assert function.begin((LONG, 1), FUEL) is UNDER_WAY
            assert len(functions()) == len(others) + 2
            del function
            made.pop().close()
            assert len(functions()) == len(others)
    finally:
        gc.enable()
