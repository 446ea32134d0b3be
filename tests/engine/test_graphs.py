"""Instances of several core modules in wasmtime: order, starts, tables, memories, frames, reset."""

from __future__ import annotations

import ctypes
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from engine.faults import LIBRARY
from engine.support import wat
from engine.test_instance import PARTS, heap_in_use
from kits import WasmtimeKit, add_two_parts

from trio_wasmcache import (
    CacheConfig,
    FuelExhaustedError,
    InvalidModuleError,
    LoadError,
    TrapError,
)
from trio_wasmcache._core.config import WASM_PAGE, MiB
from trio_wasmcache._core.errors import GuestError
from trio_wasmcache._core.wasm.admission import rest_size
from trio_wasmcache._core.wasm.driver import Shape
from trio_wasmcache._core.wasm.graph import (
    USER,
    FromHost,
    FromPart,
    Graph,
    Part,
    Source,
    limit_graph,
)
from trio_wasmcache._core.wasm.reader import FuncType, read_module
from trio_wasmcache._engine.base import UNDER_WAY, Artifact, HostImport
from trio_wasmcache._engine.wasmtime import native
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance
from trio_wasmcache._engine.wasmtime.linking import Linkers
from trio_wasmcache._engine.wasmtime.starting import ENOUGH

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
    reset: bool = False,
    memory_limit: int = 16 * MiB,
) -> Artifact:
    graph = limit_graph(Graph(parts), "f", memory_limit, 1000, reset=reset)
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


async def test_a_part_can_call_what_the_users_module_puts_in_its_table() -> None:
    """Also while that starts."""
    text = """(import "c" "through" (func $through (param i32) (result i32)))
      (import "c" "table" (table 4 funcref)) (elem (i32.const 3) $nine)
      (memory (export "memory") 1)
      (func $begin (i32.store (i32.const 0) (call $through (i32.const 3)))) (start $begin)
      (func $nine (result i32) (i32.const 9))
      (func (export "run") (result i32)
        (i32.add (i32.load (i32.const 0)) (call $through (i32.const 3))))"""
    wiring: Wiring = {("c", name): FromPart("counter", name) for name in ("through", "table")}
    async with running(part("counter", COUNTER), user(text, wiring)) as instance:
        drive(instance)
        instance.started()
        assert call(instance, "run") == 18


async def test_only_frames_of_the_users_bytes_are_shown() -> None:
    """A trap in a generated part, or below one, has the offsets of the module that was given."""
    text = """(import "g" "call" (func $call (param i32))) (import "g" "t" (table 1 funcref))
      (elem (i32.const 0) $bad) (func $bad (unreachable))
      (func (export "run") (param i32) (call $call (local.get 0)))"""
    gate = """(table (export "t") 1 funcref) (type $n (func))
      (func $call (export "call") (param i32)
        (if (i32.eqz (local.get 0)) (then (unreachable)))
        (call_indirect (type $n) (i32.const 0)))"""
    wiring: Wiring = {("g", name): FromPart("gate", name) for name in ("call", "t")}
    parts = part("gate", gate), user(text, wiring)
    async with running(*parts) as instance:
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
    artifact = await engine.prove(made, (), ())
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


SHARED = """(import "c" "next" (func $next (result i32))) (import "c" "table" (table 4 funcref))
  (func $begin (drop (call $next))) (start $begin) (func (export "nine") (result i32) (i32.const 9))
  (func (export "run") (result i32) (call $next))"""
WIRED: Wiring = {("c", name): FromPart("counter", name) for name in ("next", "table")}
BY_THEMSELVES = 1
"""Parts that import from no other one, which have a linker each."""


class Refusing:
    """In place of a native function: refuses its n-th call, as wasmtime would, or by raising."""

    def __init__(self, function: Callable[..., Any], number: int, error: type | None) -> None:
        self.function, self.number, self.error = function, number, error
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls != self.number:
            return self.function(*args)
        if self.error is not None:
            raise self.error
        return LIBRARY.wasmtime_error_new(b"not today")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize(("name", "times"), [("linker_define_instance", 1)])
async def test_each_native_step_fails_in_turn(
    name: str, times: int, error: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was made by then is freed, and the next instance works."""
    engine = WasmtimeEngine(STACK)
    parts = part("counter", COUNTER), user(SHARED, WIRED)
    module = await engine.load(await compiled(engine, *parts), ())
    linkers: dict[str, int] = {}
    for counted in ("linker_clone", "linker_delete"):
        function = getattr(native, counted)

        def count(*args: Any, function: Any = function, counted: str = counted) -> Any:
            linkers[counted] = linkers.get(counted, 0) + 1
            return function(*args)

        monkeypatch.setattr(native, counted, count)
    real = getattr(native, name)
    for number in range(1, times + 2):
        refusing = Refusing(real, number, error)
        monkeypatch.setattr(native, name, refusing)
        instance = module.instantiate(FUEL, SLICE)
        if number <= times:
            with pytest.raises(error or LoadError, match=None if error else "not today"):
                drive(instance)
        else:
            drive(instance)
            instance.started()
            assert call(instance, "run") == 2
        assert refusing.calls == min(number, times)
        instance.close()
        instance.close()
        assert engine.open_instances == 0
    assert linkers == {"linker_clone": 1}  # it is used again
    module.close()
    engine.close()
    assert linkers["linker_delete"] == linkers["linker_clone"] + 1 + BY_THEMSELVES


@pytest.mark.parametrize("polls", range(6))
async def test_a_start_can_be_abandoned_between_any_two_polls(polls: int) -> None:
    """Within a start function, and between two parts."""
    busy = """(func $begin (local $i i32)
      (loop (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if 0 (i32.lt_u (local.get $i) (i32.const 5000))))) (start $begin)"""
    parts = [evolve(part(str(n), f"(memory 1) {busy}"), offset=0) for n in range(3)]
    async with running(*parts, user(busy)) as instance:
        for _ in range(polls):
            assert not instance.poll()
        instance.abandon()
        instance.close()


async def test_a_closed_module_makes_no_instances() -> None:
    """One of several parts neither; those that are there live on."""
    engine = WasmtimeEngine(STACK)
    parts = part("counter", COUNTER), user(SHARED, WIRED)
    module = await engine.load(await compiled(engine, *parts), ())
    instance = module.instantiate(FUEL, SLICE)
    drive(instance)
    instance.started()
    module.close()
    module.close()
    engine.close()
    assert call(instance, "run") == 2
    instance.close()


async def test_memories_of_parts_end_with_their_instance() -> None:
    """They hold nothing then, and do not touch what is freed."""
    fixed = '(memory (export "fixed") 1 1) (memory (export "m") 1) (data (i32.const 0) "abc")'
    async with running(part("fixed", fixed), user("")) as instance:
        drive(instance)
        instance.started()
        ours = instance.part("fixed")
        memories = ours.memory("m"), ours.fixed_memory("fixed")
        assert [memory.size for memory in memories] == [WASM_PAGE, WASM_PAGE]
        assert memories[1].read(0, 3) == b"abc"
        assert memories[0].grow(1) == WASM_PAGE
        instance.close()
        assert [memory.size for memory in memories] == [0, 0]
        for memory in memories:
            with pytest.raises(IndexError):
                memory.read(0, 1)


async def test_a_fixed_memory_can_be_used_while_the_guest_waits() -> None:
    """As it neither moves nor grows."""
    text = """(import "h" "ask" (func $ask (param i64) (result i64)))
      (memory (export "m") 1 1)
      (func (export "f") (result i64) (i64.store (i32.const 8) (i64.const 77))
        (drop (call $ask (i64.const 1))) (i64.load (i32.const 16)))"""
    parts = (
        part("fixed", text, {("h", "ask"): FromHost(0)}),
        user(
            '(import "f" "f" (func $f (result i64))) (func (export "run") (result i64) (call $f))',
            {("f", "f"): FromPart("fixed", "f")},
        ),
    )
    async with running(*parts, hosts=(ASK,)) as instance:
        drive(instance)
        instance.started()
        memory = instance.part("fixed").fixed_memory("m")
        function = instance.function("run")
        assert function.begin((), FUEL) is UNDER_WAY

        def answer(index: int, value: int) -> int:
            assert memory.read(8, 1) == b"\x4d"
            memory.write(16, b"\x2a")
            return 0

        assert instance.host_call is not None
        instance.host_call.answer((answer(0, 1),))
        drive(instance, answer)
        assert function.finish() == 42


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="it is glibc's")
@pytest.mark.parametrize("what", ["linked globals", "exported functions", "tables"])
async def test_no_part_takes_more_than_is_booked(what: str) -> None:
    """What wasmtime has in its heap for instances of two such parts, and of what links them."""
    count, wired, parts = 10, "", PARTS.get(what, "")
    same = '(func (export "run") (param i64) (result i64) (local.get 0))'
    if not parts:
        parts = "".join(f'(global (export "g{n}") (mut i64) (i64.const 0))' for n in range(900))
        wired = "".join(f'(import "c" "g{n}" (global (mut i64)))' for n in range(900))
    wiring: Wiring = {("c", f"g{n}"): FromPart("one", f"g{n}") for n in range(900)}
    engine = WasmtimeEngine(STACK)
    hosts = (HostImport("wasi_snapshot_preview1", "sched_yield", FuncType((), ("i32",))),)
    wasi: Wiring = {("wasi_snapshot_preview1", "sched_yield"): FromHost(0)}
    one = part("one", parts + same, wasi)
    other = user((wired or parts) + same, wiring if wired else wasi)
    module = await engine.load(await compiled(engine, one, other), hosts)

    def started() -> WasmtimeInstance:
        instance = module.instantiate(FUEL, SLICE)
        drive(instance)
        instance.started()
        return instance

    first = started()
    before = heap_in_use()
    held = [started() for _ in range(count)]
    assert heap_in_use() - before <= sum(instance.measure() for instance in held)
    for instance in (first, *held):
        instance.close()
    module.close()
    engine.close()


async def test_drivers_take_exports_of_parts() -> None:
    """A batch may call what is no export of the user's module."""
    text = '(func (export "twice") (param i64) (result i64) (i64.shl (local.get 0) (i64.const 1)))'
    engine = WasmtimeEngine(STACK)
    artifact = await compiled(engine, part("one", text), user(""))
    module = await engine.load(artifact, ())
    instance = module.instantiate(FUEL, SLICE)
    drive(instance)
    instance.started()
    code = await engine.driver(Shape(("i64",), ("i64",)), artifact.tier)
    driver = code.attach(instance, {"function": FromPart("one", "twice")})
    assert driver is code.attach(instance, {"function": FromPart("one", "twice")})
    with pytest.raises(LookupError):
        code.attach(instance, {"function": FromPart("two", "twice")})
    instance.close()
    module.close()
    engine.close()


async def test_parts_are_compiled_apart_and_kept_on_disk(tmp_path: Path) -> None:
    """In one process, by one folder: as a module alone."""
    kit = WasmtimeKit()
    config = CacheConfig(cache_dir=tmp_path / "code", compile_seconds=30.0)
    for _ in range(2):
        async with kit.open(config) as cache:
            f = await add_two_parts(cache, kit, kit.adding(5))
            assert await f.call(1) == 6
            g = await add_two_parts(cache, kit, kit.adding(5), name="g", pages=2)
            assert await g.call(1) == 6
            bad = bytes(kit.adding(7)).replace(b"\x7c\x0b", b"\x92\x0b")  # f32.add
            with pytest.raises(InvalidModuleError, match="can't compile it"):
                await add_two_parts(cache, kit, bad, name="h")


async def test_linking_costs_a_call_for_each_part_that_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many imports there are, by whatever names, of whatever parts, the host included."""
    given = "".join(f'(func (export "f{n}") (result i32) (i32.const {n}))' for n in range(50))
    wiring: Wiring = {(f"any {n}", "x"): FromPart(f"giver{n % 2}", f"f{n}") for n in range(50)} | {
        ("any 0", "ask"): FromHost(0)
    }
    imports = "".join(f'(import "any {n}" "x" (func $f{n} (result i32)))' for n in range(50))
    text = f"""{imports} (import "any 0" "ask" (func $ask (param i64) (result i64)))
      (func (export "run") (result i32) (drop (call $ask (i64.const 1)))
        {" ".join(f"(call $f{n})" for n in range(50))} {"(i32.add) " * 49})"""
    engine = WasmtimeEngine(STACK)
    parts = part("giver0", given), part("giver1", given), user(text, wiring)
    module = await engine.load(await compiled(engine, *parts), [ASK])
    calls: dict[str, int] = {}
    for name in ("linker_clone", "linker_define_instance", "linker_define", "instance_export_get"):
        function = getattr(native, name)

        def count(*args: Any, function: Any = function, name: str = name) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return function(*args)

        monkeypatch.setattr(native, name, count)
    instance = module.instantiate(FUEL, SLICE)
    drive(instance)
    assert calls == {"linker_clone": 1, "linker_define_instance": 2}
    instance.started()
    function = instance.function("run")
    assert function.begin((), FUEL) is UNDER_WAY
    drive(instance, lambda index, value: value)
    assert function.finish() == sum(range(50))
    instance.close()
    module.close()
    engine.close()


async def test_others_may_run_while_much_is_linked() -> None:
    """After `ENOUGH` imports and exports, and KiB of data; a start function is one slice more."""
    names = [f"f{number}" for number in range(ENOUGH // 4)]
    giving = '(memory (export "memory") 4)' + "".join(
        f'(func (export "{name}") (result i32) (i32.const 7))' for name in names
    )
    taking = '(import "a" "memory" (memory 1))' + "".join(
        f'(import "a" "{name}" (func (result i32)))' for name in names
    )
    wiring: Wiring = {("a", name): FromPart("a", name) for name in ("memory", *names)}
    data = f'(data (i32.const 0) "{"x" * 1024 * (ENOUGH * 3 // 4)}")'
    for text, pauses in (
        (taking, 1),
        (f"{taking} (func $begin) (start $begin)", 3),
        (taking + data, 3),
    ):
        parts = [part(f"b{n}", text, wiring, generated=False) for n in range(3)]
        engine = WasmtimeEngine(STACK)
        made = await compiled(engine, part("a", giving, generated=False), *parts, user(""))
        module = await engine.load(made, ())
        instance = module.instantiate(FUEL, SLICE)
        polls = drive(instance)
        # wasmtime may pause while it writes data, too.
        assert polls > pauses if "data" in text else polls == pauses + 1
        instance.close()
        module.close()
        engine.close()


async def test_linkers_are_used_again() -> None:
    """One after the other; two instances that start at the same time have one each."""
    engine = WasmtimeEngine(STACK)
    linkers = Linkers()
    linkers.make(next(iter(engine._engines.values())))
    one, two = linkers.take(), linkers.take()
    assert one != two
    linkers.give(one)
    assert linkers.take() == one
    linkers.give(one)
    linkers.give(two)
    linkers.give(linkers.take())
    kept = linkers.take()
    linkers.close()
    linkers.give(kept)
    assert linkers._spare == []
    engine.close()


async def test_instances_that_start_at_the_same_time() -> None:
    """Each one's parts are linked with its own, whichever linker they got."""
    engine = WasmtimeEngine(STACK)
    parts = part("counter", COUNTER), user(SHARED, WIRED)
    module = await engine.load(await compiled(engine, *parts), ())
    for _ in range(2):
        instances = [module.instantiate(FUEL, SLICE) for _ in range(3)]
        over = [False] * 3
        while not all(over):
            over = [done or one.poll() for done, one in zip(over, instances, strict=True)]
        for one in instances:
            one.started()
        assert [call(one, "run") for one in instances] == [2, 2, 2]
        assert [call(one, "run") for one in instances[1:]] == [3, 3]
        for one in instances:
            one.close()
    module.close()
    engine.close()


async def test_forty_modules_of_the_users_share_a_memory_and_a_table() -> None:
    """As those of a component that is linked dynamically."""
    first = '(memory (export "memory") 1) (table (export "table") 40 funcref)'
    text = """(import "env" "memory" (memory 1)) (import "env" "table" (table 40 funcref))
      (func $f (result i32) (i32.load8_u (i32.const {n}))) (elem (i32.const {n}) $f)
      (data (i32.const {n}) "\\{n:02x}") (global (export "g") (mut i32) (i32.const {n}))"""
    last = """(import "env" "memory" (memory 1)) (import "env" "table" (table 40 funcref))
      (type $f (func (result i32)))
      (func (export "run") (param i32) (result i32) (call_indirect (type $f) (local.get 0)))"""
    shared: Wiring = {("env", name): FromPart("first", name) for name in ("memory", "table")}
    parts = [
        part("first", first, generated=False),
        *(part(f"part{n}", text.format(n=n), shared, generated=False) for n in range(38)),
        user(last, shared),
    ]
    engine = WasmtimeEngine(STACK)
    made = await compiled(engine, *parts, reset=True)
    module = await engine.load(await engine.prove(made, (), ()), ())
    instance = module.instantiate(FUEL, SLICE)
    assert drive(instance) == 1
    instance.started()
    instance.mark()
    assert instance.measure() == sum(
        (WASM_PAGE, 2 * 40 * 8, rest_size(*(one.info for one in parts)))
    )
    for _ in range(2):
        assert [call(instance, "run", n) for n in range(38)] == [*range(38)]
        assert instance.memory is not None
        instance.memory.write(0, bytes(38))
        assert {call(instance, "run", n) for n in range(38)} == {0}
        assert instance.reset()
    instance.close()
    module.close()
    engine.close()
