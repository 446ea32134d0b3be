"""Instances of several core modules in wasmtime: order, starts, tables, memories, frames, reset."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import evolve
from engine.support import wat

from trio_wasmcache import FuelExhaustedError, TrapError
from trio_wasmcache._core.config import WASM_PAGE, MiB
from trio_wasmcache._core.errors import GuestError
from trio_wasmcache._core.wasm.graph import (
    USER,
    Entry,
    FromHost,
    FromPart,
    Graph,
    Part,
    Source,
    limit_graph,
)
from trio_wasmcache._core.wasm.reader import FuncType, read_module
from trio_wasmcache._engine.base import UNDER_WAY, Artifact, HostImport
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance

STACK = 512 * 1024
FUEL, SLICE = 10_000_000, 10_000
ASK = HostImport("host", "ask", FuncType(("i64",), ("i64",)))
Wiring = dict[tuple[str, str], Source]


def part(
    name: str, text: str, wiring: Wiring | None = None, *, generated: bool = True, **more: Any
) -> Part:
    wasm = wat(f"(module {text})")
    offset = None if generated else 0
    return Part(name, wasm, read_module(wasm), wiring or {}, offset=offset, **more)


def user(text: str, wiring: Wiring | None = None) -> Part:
    return part(USER, text, wiring, generated=False)


async def compiled(
    engine: WasmtimeEngine,
    *parts: Part,
    entries: Sequence[Entry] = (),
    reset: bool = False,
    memory_limit: int = 16 * MiB,
) -> Artifact:
    graph = limit_graph(Graph(parts, tuple(entries)), "f", memory_limit, 1000, reset=reset)
    return await engine.compile(graph.user.wasm, lambda info: graph)


@asynccontextmanager
async def running(
    *parts: Part, hosts: Sequence[HostImport] = (), **more: Any
) -> AsyncIterator[WasmtimeInstance]:
    """An instance that was told to start; and a look at whether all of it is freed."""
    engine = WasmtimeEngine(STACK)
    module = await engine.load(await compiled(engine, *parts, **more), hosts)
    instance = module.instantiate(FUEL, SLICE)
    try:
        yield instance
    finally:
        instance.close()
        module.close()
        assert engine.open_instances == 0
        engine.close()


def drive(instance: WasmtimeInstance, answer: Callable[[int, int], int] | None = None) -> int:
    """Poll to the end, and answer host calls; the number of polls."""
    polls = 0
    while True:
        polls += 1
        if instance.poll():
            return polls
        if instance.host_call is not None:
            assert answer is not None
            call = instance.host_call
            call.answer((answer(call.index, *call.values),))


def call(instance: WasmtimeInstance, name: str, *values: int) -> Any:
    function = instance.function(name)
    result = function.begin(values, FUEL)
    if result is UNDER_WAY:
        drive(instance)
        result = function.finish()
    return result


COUNTER = """(memory (export "memory") 1) (global $n (mut i32) (i32.const 0))
  (global (export "base") i32 (i32.const 40))
  (table (export "table") 4 funcref)
  (func (export "next") (result i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1)))
    (i32.store (i32.const 8) (global.get $n)) (global.get $n))
  (type $f (func (result i32)))
  (func (export "through") (param i32) (result i32) (call_indirect (type $f) (local.get 0)))"""


async def test_a_part_gives_functions_memories_tables_and_globals() -> None:
    """All kinds are shared; sizes and counts are those of where they are defined."""
    text = """(import "c" "next" (func $next (result i32))) (import "c" "memory" (memory 1))
      (import "c" "table" (table 4 funcref)) (import "c" "base" (global $base i32))
      (memory $own 2 2) (func $seven (result i32) (i32.const 7))
      (elem (i32.const 1) $seven) (data (i32.const 16) "\\2a")
      (func (export "run") (result i32) (drop (call $next))
        (i32.add (i32.load (i32.const 8))
          (i32.add (i32.load (i32.const 16)) (global.get $base))))"""
    names = ("next", "memory", "table", "base")
    wiring: Wiring = {("c", name): FromPart("counter", name) for name in names}
    async with running(part("counter", COUNTER), user(text, wiring)) as instance:
        assert drive(instance) == 1
        instance.started()
        assert [call(instance, "run") for _ in range(3)] == [83, 84, 85]
        assert instance.measure() == (1 + 2 + 1) * WASM_PAGE + 4 * 8
        counter = instance.part("counter")
        assert counter.function("next").begin((), FUEL) == 4
        assert counter.function("through").begin((1,), FUEL) == 7
        assert counter.global_value("base") == 40
        assert counter.memory("memory").read(8, 1) == b"\x04"
        assert instance.memory is not None and instance.memory.read(8, 1) == b"\x04"
        assert sum(size for _, size in instance.ranges()) == 3 * WASM_PAGE
        with pytest.raises(LookupError):
            instance.part("nobody")
        with pytest.raises(LookupError):
            counter.memory("no memory")
        with pytest.raises(LookupError, match="can grow"):
            counter.fixed_memory("memory")


async def test_starts_run_in_order_each_before_the_next_part() -> None:
    """A start function sees what is there before it, calls hosts, and is sliced and metered."""
    busy = """(local $i i32) (loop (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if 0 (i32.lt_u (local.get $i) (i32.const 5000))))"""
    asks = '(import "host" "ask" (func $ask (param i64) (result i64)))'
    first = f"""{asks} (memory (export "memory") 1)
      (func $begin {busy} (i64.store (i32.const 0) (call $ask (i64.const 10)))) (start $begin)"""
    second = f"""{asks} (import "first" "memory" (memory 1)) (memory $own (export "memory") 1)
      (func $begin {busy} (i64.store $own (i32.const 0)
        (call $ask (i64.load 0 (i32.const 0))))) (start $begin)
      (func (export "run") (result i64) (i64.load $own (i32.const 0)))"""
    seen: list[tuple[int, int, bytes]] = []

    def answer(index: int, value: int) -> int:
        assert instance.host_call is not None
        memory = instance.host_call.memory
        seen.append((index, value, b"" if memory is None else memory.read(0, 1)))
        return value + 1

    parts = (
        part("first", first, {("host", "ask"): FromHost(1)}),
        user(
            second, {("host", "ask"): FromHost(0), ("first", "memory"): FromPart("first", "memory")}
        ),
    )
    async with running(*parts, hosts=(ASK, evolve(ASK, part="first"))) as instance:
        assert drive(instance, answer) > 6
        assert 20_000 < FUEL - instance.fuel_left() < 100_000
        instance.started()
        assert seen == [(1, 10, b"\0"), (0, 11, b"\0")]
        assert call(instance, "run") == 12


@pytest.mark.parametrize("failing", range(3))
async def test_a_part_that_does_not_start_ends_all_of_them(failing: int) -> None:
    """Its error is the start's, whichever it is; and what was made by then is freed."""
    bad = "(func $begin (unreachable)) (start $begin)"
    parts = [
        part("a", bad if failing == 0 else ""),
        part("b", bad if failing == 1 else ""),
        user(bad if failing == 2 else ""),
    ]
    async with running(*parts) as instance:
        drive(instance)
        with pytest.raises(TrapError, match="unreachable") as caught:
            instance.started()
        assert len(caught.value.frames) == (1 if failing == 2 else 0)


async def test_a_start_without_end_burns_the_fuel_of_one_start() -> None:
    """All starts share what there is."""
    busy = "(func $begin (loop (br 0))) (start $begin)"
    async with running(part("a", busy), user("")) as instance:
        assert drive(instance) >= FUEL // SLICE
        with pytest.raises(FuelExhaustedError):
            instance.started()


async def test_functions_are_put_in_tables_before_the_later_part_starts() -> None:
    """So a part can call what is there only after it: what the user's module exports."""
    text = """(import "c" "through" (func $through (param i32) (result i32)))
      (memory (export "memory") 1)
      (func $begin (i32.store (i32.const 0) (call $through (i32.const 3)))) (start $begin)
      (func (export "nine") (result i32) (i32.const 9))
      (func (export "run") (result i32)
        (i32.add (i32.load (i32.const 0)) (call $through (i32.const 3))))"""
    entry = Entry(FromPart("counter", "table"), 3, FromPart(USER, "nine"))
    parts = part("counter", COUNTER), user(text, {("c", "through"): FromPart("counter", "through")})
    async with running(*parts, entries=[entry]) as instance:
        drive(instance)
        instance.started()
        assert call(instance, "run") == 18


async def test_only_frames_of_the_users_bytes_are_shown() -> None:
    """A trap in a generated part, or below one, has the offsets of the module that was given."""
    text = """(import "g" "call" (func $call (param i32))) (table 1 funcref)
      (func $bad (export "bad") (unreachable))
      (func (export "run") (param i32) (call $call (local.get 0)))"""
    gate = """(table (export "t") 1 funcref) (type $n (func))
      (func $call (export "call") (param i32)
        (if (i32.eqz (local.get 0)) (then (unreachable)))
        (call_indirect (type $n) (i32.const 0)))"""
    entry = Entry(FromPart("gate", "t"), 0, FromPart(USER, "bad"))
    parts = part("gate", gate), user(text, {("g", "call"): FromPart("gate", "call")})
    async with running(*parts, entries=[entry]) as instance:
        drive(instance)
        instance.started()
        offsets = []
        for value in (0, 1):
            with pytest.raises(GuestError) as caught:
                call(instance, "run", value)
            offsets.append([frame.offset for frame in caught.value.frames])
        assert [len(some) for some in offsets] == [1, 2]
        given = parts[1].wasm
        code = offsets[1][0]
        assert code is not None and given[code] == 0x00  # unreachable
        for frames in offsets:
            at = frames[-1]
            assert at is not None and given[at] == 0x10  # call


async def test_all_parts_are_put_back() -> None:
    """Memories, tables and globals of each, as they were when all had started."""
    text = """(import "c" "next" (func $next (result i32))) (import "c" "memory" (memory 1))
      (import "c" "table" (table $t 4 funcref))
      (memory $own (export "memory") 1) (global $g (mut i32) (i32.const 5))
      (data (memory $own) (i32.const 4) "own")
      (func $begin (drop (call $next))) (start $begin)
      (func (export "spoil")
        (drop (call $next)) (global.set $g (i32.const 99))
        (i32.store $own (i32.const 4) (i32.const 1))
        (table.set $t (i32.const 0) (ref.func $begin)))
      (func (export "state") (result i32 i32 i32 i32)
        (i32.load (i32.const 8)) (global.get $g) (i32.load $own (i32.const 4))
        (ref.is_null (table.get $t (i32.const 0))))"""
    names = ("next", "memory", "table")
    wiring: Wiring = {("c", name): FromPart("counter", name) for name in names}
    engine = WasmtimeEngine(STACK)
    made = await compiled(engine, part("counter", COUNTER), user(text, wiring), reset=True)
    artifact = await engine.prove(made, (), None)
    assert artifact.obstacle is None
    assert artifact.code_size > made.code_size
    module = await engine.load(artifact, ())
    instance = module.instantiate(FUEL, SLICE)
    drive(instance)
    instance.started()
    instance.mark()
    before = call(instance, "state")
    counter = instance.part("counter").function("next")
    for _ in range(3):
        call(instance, "spoil")
        assert call(instance, "state") != before
        assert instance.reset()
        assert call(instance, "state") == before
        assert counter.begin((), FUEL) == 2
    instance.close()
    module.close()
    engine.close()


async def test_a_constant_part_is_compiled_once() -> None:
    """For any number of modules, with each maximum that its memory gets."""
    engine = WasmtimeEngine(STACK)
    shared = part("counter", COUNTER, constant=True)
    one = await compiled(engine, shared, user(""))
    other = await compiled(engine, shared, user("(func)"))
    assert one.codes[0].data is other.codes[0].data
    assert one.codes[1].data != other.codes[1].data
    assert one.size == sum(len(code.data) for code in one.codes)
    engine.close()
