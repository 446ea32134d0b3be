"""Bounded functions are called on the thread's own stack, and nobody can tell.

A bounded function burns little and needs little stack, whatever it does; see `_core/wasm/bounds`.
"""

from __future__ import annotations

import ctypes
import json
import signal
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
import trio
from engine.support import quiet_cache, run_python, wat
from engine.test_own_stack import AT_ONCE, in_thread
from hypothesis import given, strategies as st
from kits import tries
from test_work import counted_native_calls

from trio_wasmcache import FuelExhaustedError, GuestError, HostFunction, TrapError
from trio_wasmcache._core.config import CompilerName
from trio_wasmcache._core.tiers import Tier
from trio_wasmcache._core.wasm.admission import check_limits
from trio_wasmcache._core.wasm.bounds import Bounds
from trio_wasmcache._core.wasm.reader import read_module
from trio_wasmcache._core.wasm.types import BOUNDED_FUEL
from trio_wasmcache._engine.base import UNDER_WAY, Artifact
from trio_wasmcache._engine.wasmtime import function, own_stack
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance
from trio_wasmcache._engine.wasmtime.module import WasmtimeModule
from trio_wasmcache.testing import check_invariants

UDFS = Path(__file__).parents[1] / "udfs"
COMPILERS: tuple[CompilerName, ...] = ("optimizing", "baseline")
BOUNDED = "wasmtime_func_call_unchecked"
IN_SLICES = "wasmtime_func_call_async"
SLICE, PLENTY = 100_000, 10**6
# Numbers at which something changes.
EDGES = (0, 1, -1, 7, 8, 65_528, 65_535, 65_536, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.5, -1.0, 2.0**31, -(2.0**63), 1e300, 5e-324, float("inf"), float("nan"))
# One export for each way in which a call may end, or touch what the next one sees.
KINDS = """(module (memory (export "memory") 1 2) (global $n (mut i64) (i64.const 0))
  (func $deep (param i64) (result i64)
    (if (i64.eqz (local.get 0)) (then unreachable)) (i64.div_s (i64.const 1) (i64.const 0)))
  (func (export "count") (param i64) (result i64)
    (global.set $n (i64.add (global.get $n) (local.get 0)))
    (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
    (i64.add (global.get $n) (i64.load (i32.const 8))))
  (func (export "trap") (param i64) (result i64) (call $deep (local.get 0)))
  (func (export "load") (param i64) (result i64) (i64.load (i32.wrap_i64 (local.get 0))))
  (func (export "spin") (param i64) (result i64)
    (loop (local.set 0 (i64.sub (local.get 0) (i64.const 1)))
      (br_if 0 (i64.gt_s (local.get 0) (i64.const 0))))
    (global.get $n))
  (func (export "many") (param i32 i64 f32 f64) (result f64 i32 f32 i64)
    (local.get 3) (local.get 0) (local.get 2) (local.get 1))
  (func (export "none"))
  (func (export "run") (loop))
  (func (export "reset") (param i64) (result i64) (i64.const 5)))"""


# -- by the engine


@asynccontextmanager
async def loaded(
    wasm: bytes, compiler: CompilerName, tier: Tier | None = None
) -> AsyncIterator[tuple[Artifact, WasmtimeModule]]:
    engine = WasmtimeEngine(512 * 1024, compiler=compiler)
    artifact = await engine.compile(
        wasm, lambda info: check_limits(info, "f", 2**24, 1000), tier=tier
    )
    module = await engine.load(artifact, ())
    try:
        yield artifact, module
    finally:
        module.close()
        engine.close()


def started(module: WasmtimeModule, *, sliced: bool = False) -> WasmtimeInstance:
    instance = module.instantiate(PLENTY, SLICE)
    while not instance.poll():
        pass
    instance.started()
    if sliced:
        instance.untouched = False
        instance.slice_calls()
    return instance


def bits(value: object) -> object:
    """The value; of a float that is no number, that it is one."""
    if isinstance(value, tuple):
        return tuple(map(bits, value))
    if isinstance(value, float):
        return "nan" if value != value else struct.pack("<d", value)
    return value


class Sequel:
    """Calls one after the other in an instance; after each that fails, there is a new one."""

    def __init__(self, module: WasmtimeModule, sliced: bool) -> None:
        self.module, self.sliced = module, sliced
        self.instance = started(module, sliced=sliced)

    def call(self, name: str, values: tuple[float, ...], fuel: int) -> tuple[object, ...]:
        """How a call ends: result, memory and fuel, or error, frames and fuel."""
        instance = self.instance
        begin = instance.function(name).begin
        try:
            result = begin(values, fuel)
            assert result is not UNDER_WAY
            assert instance.function(name).left.value == instance.fuel_left()
            assert instance.sliced == self.sliced
            memory = bytes(instance.memory.view()) if instance.memory else b""
            return bits(result), hash(memory), fuel - instance.fuel_left()
        except GuestError as error:
            frames = [(frame.function, frame.offset) for frame in error.frames]
            burnt = fuel - instance.fuel_left()
            assert instance.sliced == self.sliced
            instance.abandon()
            self.close()
            self.instance = started(self.module, sliced=self.sliced)
            return type(error), str(error), getattr(error, "code", ""), frames, burnt

    def close(self) -> None:
        self.instance.close()


def value_of(random: Random, kind: str) -> float:
    if kind[0] == "f":
        value = random.choice(FLOATS)
        return value if kind == "f64" or abs(value) < 1e30 or value != value else 2.0
    size = int(kind[1:])
    value = random.choice((*EDGES, random.getrandbits(64)))
    return (value + 2 ** (size - 1)) % 2**size - 2 ** (size - 1)


async def compare(wasm: bytes, compiler: CompilerName, random: Random, calls: int = 6) -> int:
    """Call each bounded export both ways; return their number."""
    async with loaded(wasm, compiler) as (artifact, module):
        bounds = Bounds(wasm, artifact.info.functions, artifact.info.bodies_begin)
        both = Sequel(module, False), Sequel(module, True)
        for name in sorted(artifact.bounded):
            export = artifact.info.export(name)
            assert export is not None
            kind = artifact.info.functions[export.index]
            most = (bounds.find(export.index) or (0, 0))[0]
            assert 1 < most <= BOUNDED_FUEL
            for fuel in (*range(1, min(most + 2, 12)), most - 1, *[PLENTY] * calls):
                values = tuple(value_of(random, one) for one in kind.params)
                at_once, in_slices = (one.call(name, values, fuel) for one in both)
                assert at_once == in_slices, (name, values, fuel)
                burnt = at_once[-1]
                assert isinstance(burnt, int)
                assert burnt <= min(most, fuel), (name, values, fuel)
        for one in both:
            one.close()
        return len(artifact.bounded)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("path", sorted(UDFS.rglob("*.wasm")), ids=lambda path: path.name)
async def test_real_functions_end_alike_both_ways(path: Path, compiler: CompilerName) -> None:
    """Results, memory, errors, frames and fuel, however little there is; none burns too much."""
    wasm = path.read_bytes()
    # A version of wasmtime may know no exceptions.
    if wasm[4:8] == b"\1\0\0\0" and not (read_module(wasm).imports or read_module(wasm).tags):
        await compare(wasm, compiler, Random(1))


@pytest.mark.parametrize("compiler", COMPILERS)
async def test_each_kind_ends_alike_both_ways(compiler: CompilerName) -> None:
    """Those with a loop are not among them."""
    assert await compare(wat(KINDS), compiler, Random(2), calls=20) == 6


_INTS = "add sub mul and or xor shl shr_s rotl div_s rem_u".split()
_REALS = "add sub mul div min max copysign".split()


class Text:
    """WAT of functions without loops, made of a number."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.params: tuple[str, ...] = ()
        self.made: list[tuple[tuple[str, ...], str]] = []

    def module(self) -> str:
        functions = []
        for number in range(5):
            self.params = tuple(self.random.choices(("i32", "i64", "f64"), k=3))
            result = self.random.choice(("i32", "i64", "f64"))
            steps = " ".join(self.step(3) for _ in range(self.random.randrange(4)))
            functions.append(
                f'(func $f{number} (export "f{number}") (param {" ".join(self.params)}) '
                f"(result {result}) {steps} {self.value(result, 4)})"
            )
            self.made.append((self.params, result))
        return (
            '(module (memory (export "memory") 1) (global $g (mut i64) (i64.const 1))'
            + "".join(functions)
            + ")"
        )

    def step(self, depth: int) -> str:
        choose = self.random.randrange
        match choose(7):
            case 0:
                at, value = self.value("i32", depth - 1), self.value("i64", depth - 1)
                return f"(i64.store offset={choose(9)} {at} {value})"
            case 1:
                return f"(global.set $g {self.value('i64', depth - 1)})"
            case 2 if depth > 0:
                inner = self.step(depth - 1)
                return f"(block (br_if 0 {self.value('i32', depth - 1)}) {inner})"
            case 3 if depth > 0:
                first, second = self.step(depth - 1), self.step(depth - 1)
                return (
                    f"(block (block (br_table 0 1 0 1 {self.value('i32', depth - 1)})) {first})"
                    f" {second}"
                )
            case 4:
                at = choose(len(self.params))
                return f"(local.set {at} {self.value(self.params[at], depth - 1)})"
            case 5 if depth > 0 and choose(4) == 0:
                return f"(if {self.value('i32', depth - 1)} (then unreachable) (else nop))"
            case _:
                return f"(drop {self.value('f64', depth - 1)})"

    def value(self, kind: str, depth: int) -> str:
        choose = self.random.randrange
        if depth <= 0:
            places = [at for at, one in enumerate(self.params) if one == kind]
            if places and choose(2):
                return f"(local.get {self.random.choice(places)})"
            return (
                f"({kind}.const {choose(20) if kind[0] == 'f' else self.random.choice(EDGES[:7])})"
            )
        one, two = (self.value(kind, depth - 1 - choose(2)) for _ in range(2))
        calls = [at for at, (_, result) in enumerate(self.made) if result == kind]
        match choose(8):
            case 0 if calls:
                at = self.random.choice(calls)
                return f"(call $f{at} {' '.join(self.value(p, 0) for p in self.made[at][0])})"
            case 1:
                test = self.value("i32", depth - 1)
                return f"(if (result {kind}) {test} (then {one}) (else {two}))"
            case 2:
                return f"(select {one} {two} {self.value('i32', depth - 1)})"
            case 3:
                return f"({kind}.load offset={choose(70_000)} {self.value('i32', 0)})"
            case 4 if kind != "f64":
                other = self.value("f64", depth - 1)
                return f"({kind}.{'trunc_sat' if choose(3) else 'trunc'}_f64_s {other})"
            case 5 if kind == "f64":
                return (
                    f"(f64.{self.random.choice(('ceil', 'floor', 'nearest', 'sqrt', 'neg'))} {one})"
                )
            case 6 if kind == "f64":
                return f"(f64.convert_i64_s {self.value('i64', depth - 1)})"
            case 7 if kind == "i32":
                return f"(i64.lt_s {self.value('i64', depth - 1)} (global.get $g))"
        operators = _REALS if kind == "f64" else _INTS
        return f"({kind}.{self.random.choice(operators)} {one} {two})"


@tries(40)
@given(seed=st.integers(0, 2**32), compiler=st.sampled_from(COMPILERS))
def test_generated_functions_end_alike_both_ways(seed: int, compiler: CompilerName) -> None:
    """Jumps forward, memory, globals, calls, and all that may trap."""
    trio.run(compare, wat(Text(seed).module()), compiler, Random(seed))


# -- by the cache


@pytest.fixture
def calls() -> Iterator[Counter[str]]:
    """What is counted from the beginning, as functions are kept by those that call them."""
    with counted_native_calls() as counter:
        yield counter


def ways(calls: Counter[str]) -> dict[str, int]:
    """The ways in which calls were made since the last time, and how often."""
    found = {way: calls[way] for way in (BOUNDED, IN_SLICES, AT_ONCE) if calls[way]}
    calls.clear()
    return found


async def register(cache: Any, export: str = "count", **options: Any) -> Any:
    params = ("i64",) if export not in ("none", "run") else ()
    return await cache.register(
        export, KINDS, args=params, returns="i64" if params else None, export=export, **options
    )


@pytest.mark.parametrize("compiler", ["optimizing", "baseline", "tiered"])
async def test_no_call_of_a_bounded_function_is_sliced(
    compiler: CompilerName, calls: Counter[str]
) -> None:
    """In a new instance, in a lease that is held, and in the next one."""
    async with quiet_cache(compiler=compiler) as cache:
        f = await register(cache)
        async with f.acquire() as lease:
            assert [await lease.call(n) for n in (10, 20, -5)] == [11, 32, 28]
            assert lease.fuel_consumed == 15
        assert await f.call(0) == 29
        assert ways(calls) == {BOUNDED: 4}
        check_invariants(cache)


async def test_the_others_are_sliced_as_ever(calls: Counter[str]) -> None:
    """One with a loop, and one of a module that imports a function."""
    asking = '(module (import "a" "b" (func)) (func (export "f") (result i32) (i32.const 1)))'
    async with quiet_cache() as cache:
        spin = await register(cache, "spin")
        async with spin.acquire() as lease:
            assert [await lease.call(n) for n in (10, 10)] == [0, 0]
        assert ways(calls) == {AT_ONCE: 1, IN_SLICES: 1}
        imports = {"a": {"b": HostFunction(lambda: None, (), ())}}
        f = await cache.register("f", asking, args=(), returns="i32", imports=imports)
        assert await f.call() == 1
        assert ways(calls) == {IN_SLICES: 1}


async def test_names_of_generated_functions_do_not_count(calls: Counter[str]) -> None:
    """A guest's bounded export may be named as a driver's, a restorer's or a start function."""
    text = f'(module (start $s) (func $s (loop)) (func (export "start")) {KINDS[7:]}'
    async with quiet_cache() as cache:
        for number, wasm in enumerate((KINDS, text)):
            f = await cache.register(
                f"f{number}", wasm, args=("i64",), returns="i64", export="reset", isolation="reset"
            )
            async with f.acquire() as lease:
                assert list(await lease.map(([1, 2, 3],))) == [5, 5, 5]
            assert await f.call(1) == 5
            assert ways(calls)[IN_SLICES] >= 2
            check_invariants(cache)


async def test_after_a_batch_calls_are_sliced(calls: Counter[str]) -> None:
    """A batch has the store sliced; until then they are not, and state goes on."""
    async with quiet_cache() as cache, (await register(cache)).acquire() as lease:
        assert await lease.call(10) == 11
        assert ways(calls) == {BOUNDED: 1}
        assert list(await lease.map(([1, 1],))) == [13, 15]
        assert ways(calls) == {IN_SLICES: 1}
        assert [await lease.call(0) for _ in range(2)] == [16, 17]
        assert ways(calls) == {IN_SLICES: 2}


@pytest.mark.parametrize("compiler", COMPILERS)
async def test_another_export_of_the_instance_slices_its_calls(compiler: CompilerName) -> None:
    """Of either kind, in any order; what a bounded one has changed is not undone."""
    async with loaded(wat(KINDS), compiler) as (_, module):
        instance = started(module)
        count, spin = instance.function("count"), instance.function("spin")
        begin, spinning = count.begin, spin.begin
        assert begin((10,), PLENTY) == 11
        assert spinning((5,), PLENTY) == 10
        assert instance.sliced
        assert begin((10,), PLENTY) == 22
        assert count.begin((10,), PLENTY) == 33
        assert spinning((SLICE,), PLENTY) is UNDER_WAY
        while not instance.poll():
            pass
        assert spin.finish() == 30
        assert begin((0,), PLENTY) == 34
        instance.close()


async def test_a_call_that_was_given_up_is_made_anew_first() -> None:
    """An instance whose call was undone has nothing of it, also where memory had to be had."""
    from engine.test_at_once import failing

    async with loaded(wat(KINDS), "optimizing") as (_, module):
        instance = started(module)
        begin, spinning = instance.function("count").begin, instance.function("spin").begin
        with failing("instance_pre_instantiate", 1, "no memory (os error 12)"):
            with pytest.raises(Exception, match="no memory"):
                spinning((SLICE,), PLENTY)
        assert instance.spent
        result = begin((1,), PLENTY)
        while result is UNDER_WAY:
            assert instance.poll()
            result = instance.function("count").finish()
        assert result == 2
        assert instance.sliced
        instance.close()


async def test_while_a_call_of_the_same_type_goes_on() -> None:
    """It has cells of its own, and calls of the other instance are not sliced for that."""
    async with loaded(wat(KINDS), "optimizing") as (_, module):
        one, other = started(module), started(module)
        one.function("spin").set_fuel(PLENTY)
        assert one.function("spin").begin((SLICE,), PLENTY) is UNDER_WAY
        begin = other.function("count").begin
        assert [begin((7,), PLENTY) for _ in range(2)] == [8, 16]
        assert not other.sliced
        with pytest.raises(TrapError):
            other.function("trap").begin((0,), PLENTY)
        other.abandon()
        with pytest.raises(TypeError):
            one.function("count").frame.begin_bounded()(other.function("count"), ("x",), PLENTY)
        while not one.poll():
            pass
        assert one.function("spin").finish() == 0
        assert not one.function("spin").frame.busy
        one.close()
        other.close()


async def test_values_that_do_not_fit_leave_it_intact(calls: Counter[str]) -> None:
    """They are converted, or refused, as ever, and nothing has run."""
    async with quiet_cache() as cache:
        f = await register(cache)
        many = await cache.register(
            "many", KINDS, args=("i32", "i64", "f32", "f64"), returns=("f64", "i32", "f32", "i64")
        )
        async with f.acquire() as lease, many.acquire() as all_kinds:
            for wrong in (("x",), (1.5,), (2**63,), (1, 2), ()):
                with pytest.raises((TypeError, ValueError, OverflowError)):
                    await lease.call(*wrong)
            assert not ways(calls)
            assert [await lease.call(one) for one in (True, 1)] == [2, 4]
            values = -5, 2**40, 0.25, 1e100
            assert await all_kinds.call(*values) == (1e100, -5, 0.25, 2**40)
            for wrong in ((-5, 2**40, 1e100, 1e100), (2**31, 0, 0.0, 0.0)):
                with pytest.raises(OverflowError):
                    await all_kinds.call(*wrong)
            assert await all_kinds.call(1, 2, 3, 4) == (4.0, 1, 3.0, 2)
            assert ways(calls) == {BOUNDED: 4}


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_a_call_that_fails_costs_the_instance(isolation: Any) -> None:
    """By a trap, or for want of fuel: with its frames, and what it burnt; the next one is new."""
    async with quiet_cache(total_fuel=SLICE) as cache:
        f = await register(cache, isolation=isolation)
        trap = await register(cache, "trap", isolation=isolation)
        for value, code in ((0, "unreachable"), (1, "integer divide by zero")):
            async with trap.acquire() as lease:
                with pytest.raises(TrapError) as caught:
                    await lease.call(value)
                assert caught.value.code == code
                assert len(caught.value.frames) == 2
                assert lease.fuel_consumed
                with pytest.raises(trio.BrokenResourceError):
                    await lease.call(value)
        for turn in range(2):
            async with f.acquire() as lease:
                before = 4 * turn if isolation == "reuse" else 0
                assert [await lease.call(1) for _ in range(2)] == [before + 2, before + 4]
        check_invariants(cache)
    # A restorer burns some, too.
    async with quiet_cache(total_fuel=2) as cache:
        trap = await register(
            cache, "trap", isolation="reuse" if isolation == "reset" else isolation
        )
        with pytest.raises(FuelExhaustedError, match="total_fuel is 2"):
            await trap.call(1)
        check_invariants(cache)
        assert cache.stats().idle_instances == 0


async def test_slices_that_are_shorter_than_it_may_take(calls: Counter[str]) -> None:
    """A call may burn more than that, so it is sliced; also where that is set later."""
    for yield_fuel, expected in (
        (BOUNDED_FUEL - 1, {AT_ONCE: 1, IN_SLICES: 1}),
        (BOUNDED_FUEL, {BOUNDED: 2}),
    ):
        async with quiet_cache(yield_fuel=yield_fuel) as cache:
            async with (await register(cache)).acquire() as lease:
                assert [await lease.call(0) for _ in range(2)] == [1, 2]
        assert ways(calls) == expected
    async with loaded(wat(KINDS), "optimizing") as (_, module):
        instance = started(module)
        begin = instance.function("count").begin
        assert begin((0,), PLENTY) == 1
        instance.set_yield_fuel(BOUNDED_FUEL)
        assert begin((0,), PLENTY) == 2
        assert not instance.sliced
        for number, fuel in enumerate((BOUNDED_FUEL - 1, PLENTY)):
            instance.set_yield_fuel(fuel)
            assert begin((0,), PLENTY) == 3 + number
            assert instance.sliced
        instance.close()


async def test_instances_that_are_sampled_are_sliced(calls: Counter[str]) -> None:
    """Each call of theirs is watched."""
    async with loaded(wat(KINDS), "optimizing", Tier.PROFILED_OPTIMIZING) as (_, module):
        instance = started(module)
        assert instance.sampled
        begin = instance.function("count").begin
        assert [begin((0,), PLENTY) for _ in range(2)] == [1, 2]
        assert ways(calls) == {IN_SLICES: 2}
        instance.close()


async def test_where_the_stack_is_not_known(
    monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    """Or there was no memory for what wasmtime maps first in a thread: there, calls are sliced."""
    async with quiet_cache(max_size=0) as cache:
        f = await register(cache)
        for little, expected in ((False, {AT_ONCE: 1, IN_SLICES: 1}), (True, {BOUNDED: 2})):
            monkeypatch.setattr(function, "may_run_here", lambda little=little: little)
            async with f.acquire() as lease:
                assert [await lease.call(0) for _ in range(2)] == [1, 2]
            assert ways(calls) == expected


def test_what_wasmtime_maps_first_is_mapped_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each thread, until it has worked once."""
    tries = []

    def map_first(self: own_stack._Stack) -> bool:
        tries.append(1)
        self.mapped = len(tries) > 1
        return self.mapped

    monkeypatch.setattr(own_stack._Stack, "map_first", map_first)
    found: list[bool] = []

    def ask() -> None:
        found.extend(own_stack.may_run_here() for _ in range(3))
        own_stack.note_ran_here()
        found.append(own_stack.may_run_here())

    in_thread(ask, 256 * 1024)
    assert (found, len(tries)) == ([False, True, True, True], 3)
    monkeypatch.setattr(own_stack, "_bounds", lambda: (0, 0))
    in_thread(lambda: found.append(own_stack.may_run_here()), 256 * 1024)
    assert not found[-1]


# -- the stack

DEEP_PAINT, BELOW = 96 * 1024, 640
NESTED = 2
# That a trap takes, with its backtrace; in slices it is 2.3 to 3.7 KB, by the version of wasmtime.
TRAP_STACK = 5 * 1024


def used_by(call: Any) -> int:
    """Bytes of this thread's stack that a call writes to, below where it is made."""
    here = own_stack._HERE
    libc: Any = ctypes.PyDLL(None)
    low = here.pointer() - DEEP_PAINT
    libc.memset(ctypes.c_void_p(low), 0xA5, ctypes.c_size_t(DEEP_PAINT - BELOW))
    call()
    left = ctypes.string_at(low, DEEP_PAINT - BELOW)
    return DEEP_PAINT - len(left) + len(left.lstrip(b"\xa5"))


def widest(ending: str) -> bytes:
    """A module with the frames that were found to be the largest: many floats across calls."""
    inner = "".join(f"(f64.ceil (f64.load offset={8 * n} (i32.const 0)))" for n in range(20))
    value = f"{inner} (call $leaf) {'f64.add ' * 19}"
    last = f"(func $leaf {ending})"
    chain = ""
    for number, called in enumerate(("leaf", "f0", "f1")[:NESTED]):
        result = "" if called == "leaf" else "f64.add "
        body = value.replace("$leaf", f"${called}") + result
        chain += f"(func $f{number} (result f64) {body})"
    return wat(
        f'(module (memory 1) {last} {chain} (func (export "f") (result f64) (call $f{NESTED - 1})))'
    )


def many_results(results: int, calls: int) -> bytes:
    """A module that keeps the results of all of its calls, though its code is short."""
    values = "i64 " * results
    return wat(
        f"(module (func $r (result {values}) unreachable) (func $s (param {values}))"
        ' (func (export "f") (param i32) (result f64) (if (i32.eqz (local.get 0)) (then'
        f" {'call $r ' * calls} {'call $s ' * calls})) (f64.const 7)))"
    )


def crossing(params: str, results: str) -> bytes:
    """A module of which a function takes and returns so many."""
    values = " ".join(f"({one}.const 7)" for one in [*results.split(), "f64"])
    return wat(f'(module (func (export "f") (param {params}) (result {results} f64) {values}))')


# As many values as a bounded function may keep.
WIDEST = {
    "floats in": crossing("f64 " * 40, ""),
    "numbers in": crossing("i64 " * 48, ""),
    "floats out": crossing("", "f64 " * 33),
    "numbers out": crossing("", "i64 " * 38),
    "both": crossing("f32 " * 18, "f64 " * 18),
    "floats": widest(""),
    "trap": widest("unreachable"),
    "one call": many_results(76, 1),
    "two calls": many_results(43, 2),
    "some calls": many_results(8, 11),
    "many calls": many_results(1, 54),
}


@pytest.mark.parametrize(
    ("params", "results"),
    [("f64 " * 43, ""), ("i64 " * 52, ""), ("", "f64 " * 40), ("f32 " * 240, "")],
)
async def test_what_crosses_takes_room(params: str, results: str) -> None:
    """However short the code is, a function with so many of them has a stack of its own."""
    async with loaded(crossing(params, results), "optimizing") as (artifact, _):
        assert not artifact.bounded


@pytest.mark.parametrize(("results", "calls"), [(125, 61), (100, 8), (120, 2), (60, 2)])
async def test_results_of_calls_take_room(results: int, calls: int) -> None:
    """However short the code is, a function with so many of them has a stack of its own."""
    async with loaded(many_results(results, calls), "optimizing") as (artifact, _):
        assert not artifact.bounded


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("what", WIDEST)
def test_a_bounded_call_takes_no_more_stack_than_a_sliced_one(
    compiler: CompilerName, what: str
) -> None:
    """A guest takes less than the way to a stack of its own does; a trap takes a little more."""
    found: list[int] = []

    async def measure() -> None:
        async with loaded(WIDEST[what], compiler) as (artifact, module):
            assert artifact.bounded == {"f"}
            # The first one is not counted: Python imports something for a trap.
            for sliced in (True, True, False):
                instance = started(module, sliced=sliced)
                begin = instance.function("f").begin

                values = (7,) * len(instance.function("f").type.params)

                def call(
                    begin: Any = begin, instance: Any = instance, values: tuple[int, ...] = values
                ) -> None:
                    try:
                        begin(values, PLENTY)
                    except TrapError:
                        instance.abandon()

                found.append(used_by(call))
                assert instance.sliced == sliced
                instance.close()

    in_thread(lambda: trio.run(measure), 1024 * 1024)
    _, in_slices, at_once = found
    assert 512 < at_once <= (TRAP_STACK if what == "trap" else in_slices)


def test_a_host_that_is_deep_in_its_stack_survives_it() -> None:
    """With 16 KiB left of a small stack, whatever the guest does: there is no fault."""
    script = """
        import json
        from engine.test_bounded import deep_calls
        print(json.dumps(deep_calls()))
    """
    assert json.loads(run_python(script)) == [["ok", "TrapError", "TrapError", "TrapError"]] * 2


def deep_calls() -> list[list[str]]:
    """How calls end that are made where little is left of a thread's stack."""
    found: list[list[str]] = []

    async def calls(instances: list[Any], left: int) -> list[str]:
        ends = []

        def call(begin: Any, values: tuple[int, ...]) -> str:
            try:
                begin(values, PLENTY)
            except GuestError as error:
                return type(error).__name__
            return "ok"

        def down(_: object) -> int:
            # Through C, which takes some of its stack at each step.
            if own_stack.room() > left:
                return max(map(down, [0]))
            ends.extend(call(*one) for one in instances)
            return 0

        down(0)
        return ends

    async def run() -> None:
        async with loaded(widest(""), "optimizing") as (_, wide):
            async with loaded(widest("unreachable"), "baseline") as (_, ending):
                async with loaded(wat(KINDS), "optimizing") as (_, kinds):
                    instances = [
                        (started(wide).function("f").begin, ()),
                        (started(ending).function("f").begin, ()),
                        (started(kinds).function("trap").begin, (1,)),
                        (started(kinds).function("load").begin, (-1,)),
                    ]
                    # Once where there is room, for what Python imports.
                    if not found:
                        await calls(instances[1:2], 2**20)
                        instances[1] = (started(ending).function("f").begin, ())
                    found.append(await calls(instances, 16 * 1024))

    import sys

    sys.setrecursionlimit(100_000)
    for size in (256 * 1024, 128 * 1024):
        in_thread(lambda: trio.run(run), size)
    return found


# -- signals


@pytest.mark.parametrize("step", range(1, 12))
async def test_a_signal_handler_that_raises(step: int) -> None:
    """Wherever that is, the lease ends, and nothing is left busy for the next call."""
    import sys

    class Interrupt(BaseException):
        pass

    def handler(_signal: int, _frame: FrameType | None) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        async with quiet_cache() as cache:
            f = await register(cache)
            assert await f.call(0) == 1
            left = [step]

            def trace(frame: FrameType, event: str, _: Any) -> Any:
                if frame.f_code.co_name != "begin_bounded":
                    return None
                if event == "line":
                    left[0] -= 1
                    if left[0] == 0:
                        signal.raise_signal(signal.SIGUSR1)
                return trace

            with pytest.raises(Interrupt):
                async with f.acquire() as lease:
                    sys.settrace(trace)
                    try:
                        await lease.call(0)
                    finally:
                        sys.settrace(None)
            check_invariants(cache)
            for _ in range(3):
                assert await f.call(0) in (1, 2, 3, 4, 5)
            check_invariants(cache)
    finally:
        signal.signal(signal.SIGUSR1, before)
