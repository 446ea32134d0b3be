"""Compiling and loading: off the loop, each module once, and nothing left of what was given up."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import trio
import trio.testing
from engine.support import (
    compiles_held,
    exported,
    quiet_cache,
    run_python,
    slots_held,
    wat,
)

from trio_wasmcache import HostFunction, InstanceCache, InvalidModuleError
from trio_wasmcache._core.config import KiB, MiB
from trio_wasmcache._core.wasm.admission import Edits, check_limits
from trio_wasmcache._core.wasm.editor import encode_module
from trio_wasmcache._core.wasm.reader import Export, FuncType, ModuleInfo
from trio_wasmcache._engine.compile_slots import CompileSlots
from trio_wasmcache._engine.wasmtime.engine import LOAD_IN_THREAD, MAX_COMPILES, WasmtimeEngine
from trio_wasmcache.testing import check_invariants, snapshot

ADD = wat(
    '(module (func (export "f") (param i64) (result i64) (i64.add (local.get 0) (i64.const 1))))'
)
KEY = ("i64",)


def large_module(functions: int) -> bytes:
    """Functions of 200 additions each; 1,000 of them compile in about 1 s."""
    body = b"\0\x20\0" + b"\x20\0\x7c" * 200 + b"\x0b"
    return encode_module(
        types=[FuncType(("i64",), ("i64",))],
        functions=[0] * functions,
        exports=[Export("f", "func", 0)],
        code=[body] * functions,
    )


def admit(info: ModuleInfo) -> Edits:
    return check_limits(info, "f", 16 * MiB, 10_000)


async def register(cache: InstanceCache, name: str = "f", wasm: bytes = ADD, **more: Any) -> Any:
    return await cache.register(name, wasm, args=KEY, returns="i64", export="f", **more)


async def idle(slots: CompileSlots) -> None:
    """Wait until no thread works in them."""
    while slots.running:
        await trio.lowlevel.checkpoint()


async def test_at_most_two_compile_at_once() -> None:
    """The third compile waits for one of the first two; each runs in a thread of its own."""
    go, lock, running, most = threading.Event(), threading.Lock(), 0, 0
    threads = set()

    def counted(info: ModuleInfo) -> Edits:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            threads.add(threading.current_thread())
        go.wait()
        with lock:
            running -= 1
        return admit(info)

    engine = WasmtimeEngine(512 * KiB)
    limiter = engine.compile_slots
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(engine.compile, ADD, counted)
        await trio.testing.wait_all_tasks_blocked()
        assert limiter.running == MAX_COMPILES == 2
        assert limiter.waiting == 3
        go.set()
    assert most <= 2
    assert threading.main_thread() not in threads
    engine.close()


async def test_a_free_slot_is_taken_in_the_same_step() -> None:
    """It is no pass of the loop, as a thread follows; who is cancelled already takes none."""
    slots, steps = CompileSlots(1), list[trio.lowlevel.Task]()

    class Steps(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            steps.append(task)

    one, other = slots.turn("a"), slots.turn("b")
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.acquire_on_behalf_of(object())
    assert scope.cancelled_caught and not slots.running
    instrument = Steps()
    trio.lowlevel.add_instrument(instrument)
    await one.acquire_on_behalf_of(object())
    trio.lowlevel.remove_instrument(instrument)
    assert slots.running == 1 and not steps
    with trio.move_on_after(0) as scope:
        await other.acquire_on_behalf_of(object())
    assert scope.cancelled_caught and not slots.waiting
    one.release_on_behalf_of(object())
    assert not slots.running


async def test_a_compile_that_is_given_up_finishes_by_itself() -> None:
    """Cancelled, its caller goes at once; the thread ends later, after the engine was closed."""
    entered, go, left = threading.Event(), threading.Event(), threading.Event()

    def held(info: ModuleInfo) -> Edits:
        entered.set()
        go.wait()
        left.set()
        return admit(info)

    engine = WasmtimeEngine(512 * KiB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.compile, ADD, held)
        await trio.to_thread.run_sync(entered.wait)
        nursery.cancel_scope.cancel()
    engine.close()
    assert not left.is_set()
    go.set()
    await idle(engine.compile_slots)
    assert left.is_set()
    with pytest.raises(trio.ClosedResourceError):
        await engine.compile(ADD, admit)


async def test_a_compile_that_never_began_leaves_nothing() -> None:
    """Cancelled while it waits for a place, it starts no thread."""
    called = []
    engine = WasmtimeEngine(512 * KiB)
    limiter = engine.compile_slots
    async with slots_held(limiter):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.compile, ADD, called.append)
                await trio.testing.wait_all_tasks_blocked()
                assert limiter.waiting == 1
                scope.cancel()
        assert limiter.waiting == 0
    await idle(limiter)
    assert called == []
    engine.close()


async def test_functions_share_a_module() -> None:
    """Same bytes, imports and isolation: compiled once, one artifact, one digest, loaded once."""
    async with quiet_cache() as cache:
        first = await register(cache, "a")
        artifact = cache.stats().artifact_size
        second = await register(cache, "b", bytearray(ADD))
        assert first.module_digest == second.module_digest
        assert cache.stats().artifact_size == artifact
        async with first.acquire() as a, second.acquire() as b:
            assert await a.call(1) == await b.call(1) == 2
            assert cache.stats().loaded_modules == 1
        cache.remove("a")
        assert cache.stats().artifact_size == artifact
        assert await second.call(4) == 5
        cache.remove("b")
        assert cache.stats().artifact_size == 0
        check_invariants(cache)


async def test_those_who_ask_at_once_share_a_compile() -> None:
    """Ten functions of the same bytes registered together are one compile."""
    async with quiet_cache() as cache:
        async with trio.open_nursery() as nursery, compiles_held(cache):
            for number in range(10):
                nursery.start_soon(register, cache, f"f{number}")
            await trio.testing.wait_all_tasks_blocked()
            assert snapshot(cache).compiles.waiting == 1
        assert len(cache.functions()) == 10
        assert len(cache._compiler.modules) == 1
        for function in cache.functions():
            assert await function.call(1) == 2
        check_invariants(cache)


class Equal:
    """Any two of them are equal, and have no hash; but they are not the same function."""

    def __init__(self, plus: int) -> None:
        self.plus = plus

    def __eq__(self, other: object) -> bool:
        return True

    def __call__(self, value: int) -> int:
        return value + self.plus

    def method(self, value: int) -> int:
        return value + self.plus


async def test_what_differs_in_its_imports_is_another_module() -> None:
    """Modules are shared for the same host functions only: the very same, not equal ones."""
    wasm = wat(
        '(module (import "env" "g" (func $g (param i64) (result i64)))'
        ' (func (export "f") (param i64) (result i64) (call $g (local.get 0))))'
    )
    one, ten = Equal(1), Equal(10)
    async with quiet_cache() as cache:
        for name, fn, modules in (
            ("a", one, 1),
            ("b", ten, 2),
            ("c", one, 2),
            ("d", one.method, 3),
            ("e", ten.method, 4),
            ("f", one.method, 4),
        ):
            await register(
                cache, name, wasm, imports={"env": {"g": HostFunction(fn, ("i64",), ("i64",))}}
            )
            assert len(cache._compiler.modules) == modules
        results = [await function.call(0) for function in cache.functions()]
        assert results == [1, 10, 1, 1, 10, 1]
        assert len({function.module_digest for function in cache.functions()}) == 1


async def test_limits_of_the_time_belong_to_a_module() -> None:
    """After resize the same bytes are another module, with the limits that hold then."""
    wasm = exported(
        "(i64.extend_i32_s (memory.grow (i32.const 3)))", "(param i64) (result i64)", "(memory 1)"
    )
    async with quiet_cache(memory_limit=128 * KiB) as cache:
        small = await register(cache, "small", wasm)
        cache.resize(memory_limit=1 * MiB)
        large = await register(cache, "large", wasm)
        assert await small.call(0) == -1
        assert await large.call(0) == 1


@pytest.mark.parametrize("gives_up", [0, 1])
async def test_others_get_the_compile_that_one_gave_up(gives_up: int) -> None:
    """Whether the first or the second of two is cancelled, the other one gets the module."""
    scopes = [trio.CancelScope(), trio.CancelScope()]

    async def one(cache: InstanceCache, number: int) -> None:
        with scopes[number]:
            await register(cache, f"f{number}")

    async with quiet_cache() as cache:
        async with trio.open_nursery() as nursery, compiles_held(cache):
            for number in range(2):
                nursery.start_soon(one, cache, number)
                await trio.testing.wait_all_tasks_blocked()
            scopes[gives_up].cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert scopes[gives_up].cancelled_caught
        (function,) = cache.functions()
        assert function.name == f"f{1 - gives_up}"
        assert await function.call(1) == 2
        check_invariants(cache)


async def test_a_compile_that_all_gave_up_leaves_nothing() -> None:
    """No artifact, no name, no waiter; asked again, the module is compiled anew."""
    async with quiet_cache() as cache:
        async with compiles_held(cache):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(register, cache, "a")
                nursery.start_soon(register, cache, "b")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert cache.functions() == ()
            await trio.testing.wait_all_tasks_blocked()
            assert snapshot(cache).compiles.waiting == 0
            assert not cache._compiler._compiling
            assert not cache._compiler.modules
            assert not snapshot(cache).reserved
        assert await (await register(cache, "a")).call(1) == 2
        assert cache.stats().artifact_size > 0
        check_invariants(cache)


async def test_who_registers_while_the_cache_is_left_is_told() -> None:
    """A register under way when the cache closes ends with ClosedResourceError."""
    outcome = []

    async def closed(cache: InstanceCache) -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            await register(cache)
        outcome.append(caught.value)

    async with trio.open_nursery() as nursery, quiet_cache() as cache:
        slots = cache._pool.engine.compile_slots  # type: ignore[attr-defined]
        for _ in range(MAX_COMPILES):
            await slots.turn(object()).acquire_on_behalf_of(None)
        nursery.start_soon(closed, cache)
        await trio.testing.wait_all_tasks_blocked()
        assert slots.waiting == 1
    assert slots.waiting == 0
    assert len(outcome) == 1


LEAVE = """
    import sys, threading, trio
    from engine.support import quiet_cache
    from engine.test_compile import idle, large_module, register
    from trio_wasmcache.testing import snapshot

    entered, go = threading.Event(), threading.Event()

    def gate(frame, event, argument):
        # Tells when the thread compiles, and keeps it from being over before it is told to.
        if frame.f_code.co_name == "compile_module":
            if event == "call":
                entered.set()
            elif event == "return" and sys.argv[1] == "wait":
                go.wait()

    threading.setprofile(gate)

    async def main():
        wasm = large_module(1500)
        async with trio.open_nursery() as nursery:
            async with quiet_cache() as cache:
                slots = cache._pool.engine.compile_slots
                nursery.start_soon(register, cache, "f", wasm)
                await trio.to_thread.run_sync(entered.wait)
                nursery.cancel_scope.cancel()
        assert snapshot(cache).closed
        print("left", flush=True)
        if sys.argv[1] == "wait":
            assert snapshot(cache).compiles.running == 1
            go.set()
            await idle(slots)
            print("compiled")

    trio.run(main)
"""


def test_leaving_does_not_wait_for_a_compile() -> None:
    """The cache closes while a large module compiles; its thread ends by itself, and well."""
    assert run_python(LEAVE, "wait") == "left\ncompiled\n"


def test_a_process_may_end_while_something_compiles() -> None:
    """The thread that still compiles neither holds the process up nor crashes it."""
    assert run_python(LEAVE, "exit") == "left\n"


FORK = """
    import os, signal, trio, warnings
    from engine.support import quiet_cache
    from engine.test_compile import large_module, register

    async def main():
        async with quiet_cache() as cache:
            function = await register(cache, "f", large_module(30))
            print(await function.call(1), flush=True)

    trio.run(main)
    warnings.simplefilter("ignore")  # fork and threads: the very thing that is tried
    if (child := os.fork()) == 0:
        signal.alarm(60)
        trio.run(main)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_was_forked_compiles_too() -> None:
    """It has none of the threads that its parent compiled in."""
    first, second = run_python(FORK).split()
    assert first == second


async def test_an_artifact_outlives_its_loaded_form() -> None:
    """Unloaded and loaded again, a module is not compiled again, and its artifact is the same."""
    async with quiet_cache(max_size=0) as cache:
        function = await register(cache)
        (module,) = cache._compiler.modules.values()
        artifact = module.artifact
        for turn in range(3):
            async with function.acquire() as lease:
                assert cache.stats().loaded_modules == 1
                assert await lease.call(turn) == turn + 1
            assert cache.stats().loaded_modules == 0
            assert module.loaded is None
        assert module.artifact is artifact
        kept = module.source or module.recipe
        assert kept is not None
        assert cache.stats().artifact_size == len(artifact.data) + kept.size
        assert function.code_size == artifact.code_size
        assert artifact.code_size % 4096 == 0
        assert artifact.code_size > 0


async def test_code_has_nothing_that_only_debuggers_want() -> None:
    """No unwind tables: traps, their messages and where they happened do not need them."""
    engine = WasmtimeEngine(512 * KiB)
    artifact = await engine.compile(ADD, admit)
    assert b".text" in artifact.data
    assert b".eh_frame" not in artifact.data
    engine.close()


async def test_an_artifact_that_is_damaged_is_refused() -> None:
    """Bytes that are no artifact of this engine are a LoadError, and nothing is loaded."""
    from trio_wasmcache import LoadError
    from trio_wasmcache._engine.base import Artifact

    engine = WasmtimeEngine(512 * KiB)
    good = await engine.compile(ADD, admit)
    for data in (b"", b"rubbish", good.data[:100]):
        with pytest.raises(LoadError, match="would not load its own artifact"):
            await engine.load(Artifact(data, good.code_size, good.info, good.edits), ())
    engine.close()


LARGE = large_module(600)


ADDITION = '(func $f (export "f") (param i64) (result i64) (i64.add (local.get 0) (i64.const 1)))'
EXPORTS = "".join(f'(export "e{number}" (func $f))' for number in range(1000))
IMPORTS = "".join(f'(import "a" "i{number}" (func))' for number in range(60))
GLOBALS = "(global (mut i64) (i64.const 1))" * 500
SLOWLY_LOADED: dict[str, tuple[bytes, dict[str, Any]]] = {
    "code": (LARGE, {}),
    "exports": (wat(f"(module {ADDITION} {EXPORTS})"), {}),
    "imports": (wat(f"(module {IMPORTS} {ADDITION})"), {"missing": "trap"}),
    "restorer": (wat(f"(module {ADDITION} {GLOBALS})"), {"isolation": "reset"}),
}


@pytest.mark.parametrize(("wasm", "options"), SLOWLY_LOADED.values(), ids=SLOWLY_LOADED)
async def test_a_module_that_is_loaded_slowly_is_loaded_in_a_thread(
    wasm: bytes, options: dict[str, Any]
) -> None:
    """One that takes less than half a millisecond is loaded at once; others wait for a thread."""
    async with quiet_cache() as cache:
        threads: trio.CapacityLimiter = cache._pool.engine._loaders  # type: ignore[attr-defined]
        small = await register(cache, "small", large_module(200))  # also of baseline code
        large = await register(cache, "large", wasm, **options)
        slot = list(cache._compiler.modules.values())[-1]
        assert slot.artifact.load_time > LOAD_IN_THREAD
        places = [object() for _ in range(int(threads.total_tokens))]
        for place in places:
            threads.acquire_on_behalf_of_nowait(place)
        try:
            await small.call(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(large.call, 1)
                await trio.testing.wait_all_tasks_blocked()
                assert slot.loaded is None
                threads.release_on_behalf_of(places.pop())
        finally:
            for place in places:
                threads.release_on_behalf_of(place)
        assert slot.loaded is not None
        check_invariants(cache)


async def test_an_engine_may_be_closed_while_a_thread_loads() -> None:
    """The load ends with ClosedResourceError; the thread used a reference of its own."""
    engine = WasmtimeEngine(512 * KiB)
    artifact = await engine.compile(LARGE, admit)
    assert artifact.load_time > LOAD_IN_THREAD
    threads = engine._loaders
    places = [object() for _ in range(int(threads.total_tokens))]
    with pytest.RaisesGroup(trio.ClosedResourceError):
        async with trio.open_nursery() as nursery:
            for place in places:
                threads.acquire_on_behalf_of_nowait(place)
            nursery.start_soon(engine.load, artifact, ())
            await trio.testing.wait_all_tasks_blocked()
            engine.close()
            engine.close()
            for place in places:
                threads.release_on_behalf_of(place)
    with pytest.raises(trio.ClosedResourceError):
        await engine.load(artifact, ())


async def test_a_module_may_be_closed_before_its_instances() -> None:
    """Instances live on without their module and without the engine; closing twice is fine."""
    engine = WasmtimeEngine(512 * KiB)
    module = await engine.load(await engine.compile(ADD, admit), ())
    instance = module.instantiate(10_000, 10_000)
    assert instance.poll()
    instance.started()
    module.close()
    module.close()
    engine.close()
    assert instance.function("f").begin((41,), 10_000) == 42
    instance.close()
    instance.close()
    with pytest.raises(trio.ClosedResourceError, match="this module is closed"):
        module.instantiate(10_000, 10_000)
    assert engine.open_instances == 0


async def test_text_is_turned_into_wasm_off_the_loop() -> None:
    """WebAssembly text is a module too; what is wrong with it is told with its place."""
    engine = WasmtimeEngine(512 * KiB)
    assert await engine.to_wasm("(module)") == b"\0asm\1\0\0\0"
    with pytest.raises(InvalidModuleError, match=r"(?s)not WebAssembly text.*1:2"):
        await engine.to_wasm("(nonsense)")
    engine.close()


class InOrder:
    """Modules that note when they are compiled, and wait there until they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.changed = trio.Event()
        self._go: dict[str, threading.Event] = {}
        self._token = trio.lowlevel.current_trio_token()

    async def compile(self, engine: WasmtimeEngine, group: object, name: str) -> None:
        self._go[name] = threading.Event()

        def held(info: ModuleInfo) -> Edits:
            self._token.run_sync_soon(self._note, name)
            self._go[name].wait()
            return admit(info)

        await engine.compile(ADD, held, engine.turn(group))

    def _note(self, name: str) -> None:
        self.begun.append(name)
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, *names: str) -> None:
        while self.begun != list(names):
            await self.changed.wait()

    def let_go(self, name: str) -> None:
        self._go[name].set()


async def test_compiles_go_round_the_groups() -> None:
    """One for each group at a time; the first of a group comes before others' second."""
    engine, order = WasmtimeEngine(512 * KiB), InOrder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(order.compile, engine, "a", "a1")
        await order.until("a1")  # before another thread may note something
        for name in ("a2", "a3", "b1", "b2"):
            nursery.start_soon(order.compile, engine, name[0], name)
            await trio.testing.wait_all_tasks_blocked()
        await order.until("a1", "b1")
        nursery.start_soon(order.compile, engine, "c", "c1")
        await trio.testing.wait_all_tasks_blocked()
        order.let_go("a1")
        await order.until("a1", "b1", "c1")
        order.let_go("b1")
        await order.until("a1", "b1", "c1", "a2")
        order.let_go("c1")
        await order.until("a1", "b1", "c1", "a2", "b2")
        order.let_go("b2")
        await idle_but_one(engine.compile_slots)
        assert len(order.begun) == 5  # the other slot is no second one for `a`
        order.let_go("a2")
        await order.until("a1", "b1", "c1", "a2", "b2", "a3")
        order.let_go("a3")
    assert (engine.compile_slots.running, engine.compile_slots.waiting) == (0, 0)
    engine.close()


async def idle_but_one(slots: CompileSlots) -> None:
    while slots.running > 1:
        await trio.lowlevel.checkpoint()


async def test_closing_the_engine_wakes_all_who_wait() -> None:
    """They get ClosedResourceError, and so does who comes later."""
    engine, told = WasmtimeEngine(512 * KiB), []

    async def wait(group: int) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await engine.compile(ADD, admit, engine.turn(group))
        told.append(group)

    async with slots_held(engine.compile_slots):
        async with trio.open_nursery() as nursery:
            for group in (1, 2, 2, 3):
                nursery.start_soon(wait, group)
            await trio.testing.wait_all_tasks_blocked()
            assert engine.compile_slots.waiting == 4
            engine.close()
        assert sorted(told) == [1, 2, 2, 3]
        assert engine.compile_slots.waiting == 0


async def test_a_register_waits_in_the_turn_of_its_group() -> None:
    """A module that another group wants, too, waits in the lines of both."""

    def module(number: int) -> bytes:
        return exported(f"(i64.const {number})", "(param i64) (result i64)")

    async with quiet_cache() as cache:
        slots: CompileSlots = cache._pool.engine.compile_slots  # type: ignore[attr-defined]
        async with (
            cache.scheduling_group("busy", capacity=9) as busy,
            cache.scheduling_group("other", capacity=1) as other,
        ):
            async with compiles_held(cache):
                for number in range(4):
                    busy.start_soon(register, cache, f"b{number}", module(number))
                    await trio.testing.wait_all_tasks_blocked()
                other.start_soon(register, cache, "shared", module(3))
                other.start_soon(register, cache, "own", module(4))
                await trio.testing.wait_all_tasks_blocked()
                assert slots.waiting == 5
                lines = list(slots._queue._waiting.values())
                assert [len(line) for line in lines] == [4, 2]
                assert list(lines[0])[3] is next(iter(lines[1]))
        assert len(cache.functions()) == 6
        assert (slots.running, slots.waiting) == (0, 0)
        assert len(cache._compiler.modules) == 5
        check_invariants(cache)
