"""Frames of errors: offsets of the bytes that were given, and lines where there is DWARF."""

from __future__ import annotations

import pickle
import threading
from array import array
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import wasmtime
from engine.support import quiet_cache, wat

from trio_wasmcache import (
    Frame,
    FuelExhaustedError,
    HostFunction,
    InstanceCache,
    LoadError,
    StackOverflowError,
    TrapError,
)
from trio_wasmcache._core.wasm import dwarf
from trio_wasmcache._core.wasm.custom import DebugSections, find_custom_sections
from trio_wasmcache._core.wasm.editor import name_bytes, section
from trio_wasmcache._runtime import source_lines
from trio_wasmcache._runtime.bound import MAX_SEARCHED
from trio_wasmcache.testing import check_invariants

TOOLCHAINS = Path(__file__).parents[1] / "udfs" / "toolchains"
FILES = ("clang-dwarf4", "clang-dwarf5")
TYPES: dict[str, Any] = {"args": ("i32", "i32"), "returns": "i32"}
LINES = (
    Frame("quotient", 0xAB, "/src/clang.c", 11, 9),
    Frame("half_of", 0x73, "/src/clang.c", 21, 13),
)
SHOWN = ("quotient at 0xab (/src/clang.c:11:9)", "half_of at 0x73 (/src/clang.c:21:13)")
BARE = tuple(attrs.evolve(frame, file=None, line=None, column=None) for frame in LINES)

# All that is edited before it is compiled: two memories and tables, a global that is hidden, and
# custom sections before the code.
EDITED = (
    b"\0asm\1\0\0\0"
    + section(0, name_bytes("before") + bytes(100))
    + wat(
        """(module
    (memory 1) (memory 1) (table 1 funcref) (table 1 funcref) (global $n (mut i32) (i32.const 0))
    (func $inner (param i64) (result i64)
      (i64.div_s (i64.const 1) (local.get 0)))
    (func $outer (export "f") (param i64) (result i64)
      (global.set $n (i32.const 1))
      (i64.add (i64.const 1) (call $inner (local.get 0)))))"""
    )[8:]
)


def bytes_of(file: str) -> bytes:
    return (TOOLCHAINS / f"{file}.wasm").read_bytes()


async def failing(cache: InstanceCache, wasm: bytes, **more: Any) -> TrapError:
    """The error of a call of `half_of`."""
    function = await cache.register("half_of", wasm, replace=True, **TYPES, **more)
    with pytest.raises(TrapError) as caught:
        await function.call(5, 0)
    return caught.value


def offsets_by_wasmtime(wasm: bytes, export: str, *values: int) -> list[tuple[str | None, int]]:
    """Names and offsets of the frames of a trap, of the module as it is.

    With fuel, as here: it decides to which of two instructions a trap is attributed.
    """
    config = wasmtime.Config()
    config.consume_fuel = True
    store = wasmtime.Store(wasmtime.Engine(config))
    store.set_fuel(1_000_000)
    instance = wasmtime.Instance(store, wasmtime.Module(store.engine, wasm), [])
    function = instance.exports(store)[export]
    assert isinstance(function, wasmtime.Func)
    with pytest.raises(wasmtime.Trap) as caught:
        function(store, *values)
    return [(frame.func_name, frame.module_offset) for frame in caught.value.frames]


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_offsets_are_those_of_the_bytes_given(isolation: str) -> None:
    """As wasmtime itself finds them in these bytes, whatever was edited before they compiled."""
    expected = offsets_by_wasmtime(EDITED, "f", 0)
    assert [name for name, _ in expected] == ["inner", "outer"]
    async with quiet_cache() as cache:
        function = await cache.register(
            "f", EDITED, args=("i64",), returns="i64", isolation=isolation
        )
        for _ in range(2):
            with pytest.raises(TrapError) as caught:
                await function.call(0)
            error = caught.value
            assert [(frame.function, frame.offset) for frame in error.frames] == expected
            assert error.backtrace == tuple(f"{name} at {at:#x}" for name, at in expected)
        with pytest.raises(TrapError) as caught:
            async with function.acquire() as lease:
                await lease.map([array("q", [1, 2, 0])])
        # The frame of the driver of the batch is none of the guest's.
        found = [(frame.function, frame.offset) for frame in caught.value.frames]
        assert (found, caught.value.row) == (expected, 2)


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
@pytest.mark.parametrize("file", FILES)
async def test_a_trap_has_file_line_and_column(file: str, isolation: str) -> None:
    """In its frames and in its message, the first time and when the tables are there."""
    async with quiet_cache() as cache:
        function = await cache.register("half_of", bytes_of(file), isolation=isolation, **TYPES)
        errors = []
        for _ in range(2):
            with pytest.raises(TrapError) as caught:
                await function.call(5, 0)
            errors.append(caught.value)
        with pytest.raises(TrapError) as caught:
            async with function.acquire() as lease:
                await lease.map([array("i", [1, 2]), array("i", [1, 0])])
        for error in (*errors, caught.value):
            assert error.frames == LINES
            assert error.backtrace == SHOWN
            assert str(error).endswith("unreachable\n  " + "\n  ".join(SHOWN))
            assert pickle.loads(pickle.dumps(error)).frames == LINES
        check_invariants(cache)


async def test_a_call_of_several_slices_has_lines_too() -> None:
    """And so have errors other than traps."""
    async with quiet_cache(total_fuel=30, yield_fuel=1) as cache:
        function = await cache.register("half_of", bytes_of("clang-dwarf4"), **TYPES)
        with pytest.raises(TrapError) as caught:
            await function.call(5, 0)
        assert caught.value.frames == LINES
        with pytest.raises(FuelExhaustedError) as exhausted:
            await function.call(5, 1)
        assert exhausted.value.frames[-1].file == "/src/clang.c"


async def test_a_start_that_fails_has_its_frames() -> None:
    """`LoadError` shows them, and its cause has them."""
    wasm = wat('(module (func $begin unreachable) (start $begin) (func (export "f")))')
    async with quiet_cache() as cache:
        function = await cache.register("f", wasm, args=())
        with pytest.raises(LoadError, match=r"unreachable\n  begin at 0x\w+$") as caught:
            await function.call()
        assert isinstance(caught.value.__cause__, TrapError)
        (frame,) = caught.value.__cause__.frames
        assert frame.function == "begin"


async def test_the_frames_of_another_guest_are_looked_up_in_its_module_only() -> None:
    """An error that a host function passes on has nothing to do with the module that called it."""
    nops = "nop " * 60  # so that it traps where the outer one's code has lines
    inner = wat(f'(module (func $f (export "f") (param i32) (result i32) {nops} unreachable))')
    async with quiet_cache() as cache:
        trap = await cache.register("trap", inner, args=("i32",), returns="i32", export="f")

        async def pass_on(value: int) -> object:
            return await trap.call(value)

        # The outer one has DWARF, and lines where the inner one traps.
        body = bytes_of("clang-dwarf4")
        asks = wat(
            '(module (import "app" "ask" (func $ask (param i32) (result i32)))'
            ' (func (export "f") (param i32) (result i32) (call $ask (local.get 0))))'
        )
        outer = asks + b"".join(
            body[one.begin : one.end]
            for one in find_custom_sections(body)
            if one.name.startswith(".debug_")
        )
        host = HostFunction(pass_on, ("i32",), ("i32",))
        function = await cache.register(
            "ask", outer, args=("i32",), returns="i32", export="f", imports={"app": {"ask": host}}
        )
        with pytest.raises(TrapError) as caught:
            await function.call(1)
        assert caught.value.function == "trap"
        assert [frame.file for frame in caught.value.frames] == [None]


async def test_a_recursion_has_its_innermost_frames() -> None:
    """wasmtime gives no more than twenty, so its message stays short."""
    wasm = wat('(module (func $f (export "f") (result i32) (i32.add (call $f) (i32.const 1))))')
    async with quiet_cache() as cache:
        function = await cache.register("f", wasm, args=(), returns="i32")
        with pytest.raises(StackOverflowError) as caught:
            await function.call()
        assert len(caught.value.frames) == 20
        assert caught.value.backtrace == ("f", f"{caught.value.frames[1]} (19 times)")
        # The innermost one had no stack, so it is nowhere in the code.
        assert [frame.offset is None for frame in caught.value.frames] == [True] + 19 * [False]


async def test_slow_tables_serve_the_next_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error does not wait for them; their thread goes on."""
    go_on, read = threading.Event(), DebugSections.read

    def slow(self: DebugSections, name: str) -> bytes:
        assert go_on.wait(600)
        return read(self, name)

    monkeypatch.setattr(DebugSections, "read", slow)
    monkeypatch.setattr(source_lines, "PATIENCE", 0.0)
    async with quiet_cache() as cache:
        function = await cache.register("half_of", bytes_of("clang-dwarf4"), **TYPES)
        for _ in range(2):
            with pytest.raises(TrapError) as caught:
                await function.call(5, 0)
            assert caught.value.frames == BARE
        go_on.set()
        monkeypatch.setattr(source_lines, "PATIENCE", 60.0)
        with pytest.raises(TrapError) as caught:
            await function.call(5, 0)
        assert caught.value.frames == LINES


async def test_a_cancelled_call_that_failed_still_raises_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancellation waits for the lines, which is at most a tenth of a second."""
    async with quiet_cache() as cache:
        function = await cache.register("half_of", bytes_of("clang-dwarf4"), **TYPES)
        scope, read = trio.CancelScope(), DebugSections.read
        token = trio.lowlevel.current_trio_token()

        def cancelling(self: DebugSections, name: str) -> bytes:
            token.run_sync_soon(scope.cancel)
            return read(self, name)

        monkeypatch.setattr(DebugSections, "read", cancelling)
        monkeypatch.setattr(source_lines, "PATIENCE", 60.0)
        with scope:
            with pytest.raises(TrapError) as caught:
                await function.call(5, 0)
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert caught.value.frames == LINES


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_STEPS", 10), ("MAX_ROWS", 1), ("MAX_SECTIONS_SIZE", 10)]
)
async def test_beyond_a_limit_there_are_no_lines(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it tried again: the next error costs no work."""
    reads, read = [], DebugSections.read

    def counting(self: DebugSections, name: str) -> bytes:
        reads.append(name)
        return read(self, name)

    monkeypatch.setattr(DebugSections, "read", counting)
    monkeypatch.setattr(dwarf, limit, value)
    if hasattr(source_lines, limit):
        monkeypatch.setattr(source_lines, limit, value)
    monkeypatch.setattr(source_lines, "PATIENCE", 60.0)
    async with quiet_cache() as cache:
        assert (await failing(cache, bytes_of("clang-dwarf4"))).frames == BARE
        tried = len(reads)
        function = cache.functions()[0]
        with pytest.raises(TrapError) as caught:
            await function.call(5, 0)
        assert caught.value.frames == BARE
        assert len(reads) == tried


async def test_a_system_without_memory_or_threads_gives_the_same_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are no lines then, and no other error."""

    def refuse(*_: object, **__: object) -> bytes:
        raise MemoryError

    async def no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(DebugSections, "read", refuse)
    monkeypatch.setattr(source_lines, "PATIENCE", 60.0)
    async with quiet_cache() as cache:
        assert (await failing(cache, bytes_of("clang-dwarf4"))).frames == BARE
        monkeypatch.setattr(source_lines, "run_in_thread", no_thread)
        assert (await failing(cache, bytes_of("clang-dwarf5"))).frames == BARE


async def test_a_module_that_takes_too_long_has_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread ends after a time of its own."""
    monkeypatch.setattr(source_lines, "MAX_SECONDS", -1.0)
    monkeypatch.setattr(source_lines, "PATIENCE", 60.0)
    monkeypatch.setattr(dwarf, "_BREATHS", 1)
    async with quiet_cache() as cache:
        assert (await failing(cache, bytes_of("clang-dwarf4"))).frames == BARE


@pytest.mark.parametrize("name", [".debug_info", ".debug_abbrev", ".debug_line"])
async def test_damaged_sections_change_nothing_but_the_lines(name: str) -> None:
    """Whatever byte is damaged, the error is the same."""
    wasm = bytes_of("clang-dwarf5")
    (found,) = (one for one in find_custom_sections(wasm) if one.name == name)
    async with quiet_cache() as cache:
        whole = await failing(cache, wasm)
        for at in range(found.start, found.end, 7):
            damaged = wasm[:at] + bytes([wasm[at] ^ 0xFF]) + wasm[at + 1 :]
            error = await failing(cache, damaged)
            assert type(error) is TrapError
            bare = [
                attrs.evolve(frame, file=None, line=None, column=None) for frame in error.frames
            ]
            assert tuple(bare) == BARE
            assert error.code == whole.code
            assert str(error).splitlines()[0] == str(whole).splitlines()[0]
        check_invariants(cache)


async def test_tables_are_counted_and_go_with_their_module() -> None:
    """They are part of what a module takes at rest."""
    async with quiet_cache() as cache:
        function = await cache.register("half_of", bytes_of("clang-dwarf4"), **TYPES)
        before = cache.stats().artifact_size
        with pytest.raises(TrapError):
            await function.call(5, 0)
        book = cache._pool.debug_book
        assert cache.stats().artifact_size > before
        assert book.size == cache.stats().artifact_size - before + book_of_sections(cache)
        cache.remove("half_of")
        assert book.size == 0
        assert cache.stats().artifact_size == 0


async def test_tables_that_are_finished_late_are_counted_with_any_next_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tenant whose modules fail once each makes the cache keep nothing that is in no book."""
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    find = source_lines._find

    def late(*values: Any) -> Any:
        begun.set()
        assert go_on.wait(600)
        try:
            return find(*values)
        finally:
            done.set()

    monkeypatch.setattr(source_lines, "_find", late)
    monkeypatch.setattr(source_lines, "PATIENCE", 0.1)
    async with quiet_cache() as cache:
        text = '(module (func (export "other") (param i32 i32) (result i32) unreachable))'
        other = await cache.register("other", text, **TYPES)
        function = await cache.register("half_of", bytes_of("clang-dwarf4"), **TYPES)
        book, sections = cache._pool.debug_book, cache._pool.debug_book.size
        while not begun.is_set():  # an error may be raised before its thread has begun
            with pytest.raises(TrapError) as caught:
                await function.call(5, 0)
            assert caught.value.frames == BARE
        go_on.set()
        assert await trio.to_thread.run_sync(done.wait, 600)
        with pytest.raises(TrapError):
            await other.call(5, 0)  # its module has no such sections
        kept = sum(module.debug_size for module in cache._compiler.modules.values())
        assert book.size == kept > sections


def book_of_sections(cache: InstanceCache) -> int:
    (module,) = cache._compiler.modules.values()
    assert module.debug_sections is not None
    return module.debug_sections.size


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        (Frame("f"), "f"),
        (Frame("f", 16), "f at 0x10"),
        (Frame("f", 16, "a.c", 3), "f at 0x10 (a.c:3)"),
        (Frame("f", 16, "a.c", 3, 4), "f at 0x10 (a.c:3:4)"),
        (Frame("f", None, "a.c"), "f (a.c)"),
    ],
)
def test_a_frame_shows_what_is_known(frame: Frame, shown: str) -> None:
    """As it stands in messages."""
    assert str(frame) == shown


@pytest.mark.parametrize(
    ("more", "names"),
    [(0, ("one", "func[2]")), (MAX_SEARCHED, ("func[1]", "func[2]"))],
)
async def test_exports_name_functions_without_names(more: int, names: tuple[str, ...]) -> None:
    """By the first that has a name, unless there are so many that each trap would cost much."""
    exports = "".join(f'(export "{number}" (func 0))' for number in range(more))
    wasm = f"""(module (func) (func (unreachable)) (func (call 1))
        (export "" (func 1)) (export "one" (func 1)) (export "again" (func 1))
        (func (export "run") (call 2)) {exports})"""
    async with quiet_cache() as cache:
        run = await cache.register("run", wasm, args=())
        with pytest.raises(TrapError) as caught:
            await run.call()
    assert tuple(frame.function for frame in caught.value.frames[:2]) == names
