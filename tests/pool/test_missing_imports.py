"""Imports that nobody provides: refused with advice, or traps that name themselves."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
from core.wasm.test_families import go_bytes
from engine.support import quiet_cache, wat

from trio_wasmcache import (
    ExportError,
    HostFunction,
    InvalidModuleError,
    LinkError,
    LoadError,
    ModuleTooLargeError,
    TrapError,
)
from trio_wasmcache.testing import check_invariants, snapshot

TOOLCHAINS = Path(__file__).parents[1] / "udfs" / "toolchains"
I64 = {"args": ("i64",), "returns": "i64"}
# Calls what nobody provides for a negative number, and what was given otherwise.
LACKING = wat(
    """(module
    (import "env" "lost" (func $lost (param i64 f32) (result i64)))
    (import "env" "given" (func $given (param i64) (result i64)))
    (import "js" "\\1b[31mref" (func $ref (param externref funcref) (result externref)))
    (func (export "f") (param i64) (result i64)
      (if (i64.lt_s (local.get 0) (i64.const 0))
        (then (return (call $lost (local.get 0) (f32.const 1)))))
      (call $given (local.get 0)))
    (func (export "g") (param i64) (result i64)
      (drop (call $ref (ref.null extern) (ref.null func)))
      (i64.const 0)))"""
)
GIVEN = {"env": {"given": HostFunction(lambda value: value + 1, ("i64",), ("i64",))}}


async def test_a_missing_import_traps_only_when_it_is_called() -> None:
    """Other calls work, and so does the next after a trap; that names the import and the remedy."""
    async with quiet_cache() as cache:
        with pytest.raises(LinkError, match=r"env\.lost \[i64 f32\] -> \[i64\] is missing"):
            await cache.register("f", LACKING, imports=GIVEN, **I64)
        function = await cache.register("f", LACKING, imports=GIVEN, missing="trap", **I64)
        for _ in range(2):
            assert await function.call(1) == 2
            with pytest.raises(TrapError) as caught:
                await function.call(-1)
            error = caught.value
            assert (error.code, error.function, error.values) == ("missing import", "f", (-1,))
            assert "f(i64) called with (-1)" in str(error)
            assert "the guest called env.lost [i64 f32] -> [i64]" in str(error)
            assert 'missing="trap"' in str(error)
        with pytest.raises(TrapError) as caught:
            async with function.acquire() as lease:
                await lease.map([array("q", [1, 2, -3])])
        assert (caught.value.row, caught.value.values) == (2, (-3,))
        check_invariants(cache)


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
@pytest.mark.parametrize("order", [("error", "trap"), ("trap", "error")])
async def test_where_nothing_is_missing_the_module_is_shared(
    isolation: Any, order: tuple[Any, Any]
) -> None:
    """It is compiled once, in whichever order the two are registered."""
    whole = wat('(module (func (export "f") (param i64) (result i64) (local.get 0)))')
    async with quiet_cache() as cache:
        for number, missing in enumerate(order):
            function = await cache.register(
                f"f{number}", whole, export="f", missing=missing, isolation=isolation, **I64
            )
            assert await function.call(number) == number
        assert cache.stats().compile.count == 1
        assert len(snapshot(cache).modules) == 1
        check_invariants(cache)


@pytest.mark.parametrize("missing", ["error", "trap"])
async def test_assemblyscripts_abort_says_its_last_words(missing: Any) -> None:
    """Nobody needs to give it: an exception's text, file and line are in the error."""
    spoken = TOOLCHAINS.parent / "spoken" / "assemblyscript.wasm"
    async with quiet_cache() as cache:
        function = await cache.register("f", spoken, export="fail", missing=missing, **I64)
        assert await function.call(0) == 0
        with pytest.raises(TrapError) as caught:
            await function.call(7)
        said = "the guest aborted in spoken.ts, line 12, column 15: the value is 7"
        assert said in str(caught.value)
        assert caught.value.output == ""
        assert caught.value.code == "abort"
        (frame,) = caught.value.frames
        assert (frame.file, frame.line, frame.column) == ("spoken.ts", 12, 15)
        check_invariants(cache)


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_an_abort_while_loading_says_its_last_words(isolation: Any) -> None:
    """In the `LoadError`, also where `register` has tried the start before."""
    broken = wat(
        """(module (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
        (memory (export "memory") 1)
        (data (i32.const 20) "\\04\\00\\00\\00n\\00o\\00")
        (func $start (call $abort (i32.const 24) (i32.const 0) (i32.const 1) (i32.const 2)))
        (func (export "f") (param i64) (result i64) (local.get 0))
        (start $start))"""
    )
    async with quiet_cache() as cache:
        function = await cache.register("f", broken, missing="trap", isolation=isolation, **I64)
        for _ in range(2):
            with pytest.raises(LoadError, match="aborted in an unknown file, line 1, column 2: no"):
                await function.call(1)
        check_invariants(cache)


LONELY = r"\00\d8" * 1200  # first halves of surrogate pairs


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("(i32.const 0)", ""),
        ("(i32.const 2)", ""),
        ("(i32.const -1)", ""),
        ("(i32.const 65534)", ""),  # its size is there, and nothing of it
        ("(i32.const 24)", r": A\x1b"),  # control characters
        ("(i32.const 48)", ": " + "\ufffd" * 997 + "..."),  # half pairs, and too long
        ("(i32.const 4000)", ""),  # its size is that of no memory
    ],
)
async def test_damaged_words_of_an_abort_are_a_trap(at: str, said: str) -> None:
    """Wild addresses and sizes cost nobody anything; the next call works."""
    hostile = wat(
        f"""(module (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
        (memory (export "memory") 1)
        (data (i32.const 20) "\\04\\00\\00\\00\\41\\00\\1b\\00")
        (data (i32.const 44) "\\60\\09\\00\\00{LONELY}")
        (data (i32.const 3996) "\\ff\\ff\\ff\\0f")
        (data (i32.const 65530) "\\ff\\ff\\ff\\ff")
        (func (export "f") (param i64) (result i64)
          (if (i64.eqz (local.get 0)) (then
            (call $abort {at} (i32.const 0) (i32.const 1) (i32.const 2))))
          (local.get 0)))"""
    )
    async with quiet_cache() as cache:
        function = await cache.register("f", hostile, missing="trap", **I64)
        for _ in range(2):
            with pytest.raises(TrapError) as caught:
                await function.call(0)
            said_all = f"the guest aborted in an unknown file, line 1, column 2{said}"
            assert str(caught.value).partition("fuel: ")[2] == said_all
            assert await function.call(1) == 1
        check_invariants(cache)


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_a_missing_import_may_take_references(isolation: str) -> None:
    """As those of JavaScript glue do; its name is shown without control characters."""
    async with quiet_cache() as cache:
        function = await cache.register(
            "g", LACKING, imports=GIVEN, missing="trap", isolation=isolation, **I64
        )
        for _ in range(3):
            with pytest.raises(TrapError) as caught:
                await function.call(1)
            assert r"js.?[31mref [externref funcref] -> [externref]" in str(caught.value)
        check_invariants(cache)
    assert snapshot(cache).native.instances == 0


@pytest.mark.parametrize("isolation", ["reuse", "reset"])
async def test_a_start_that_calls_a_missing_import_fails_to_load(isolation: str) -> None:
    """`register` succeeds, as nothing runs there but the trials of a reset."""
    wasm = wat(
        '(module (import "env" "lost" (func $lost)) (start $lost)'
        ' (func (export "f") (param i64) (result i64) local.get 0))'
    )
    async with quiet_cache() as cache:
        function = await cache.register("f", wasm, missing="trap", isolation=isolation, **I64)
        with pytest.raises(Exception, match=r"the guest called env\.lost") as caught:
            await function.call(1)
        assert type(caught.value).__name__ == "LoadError"
        assert isinstance(caught.value.__cause__, TrapError)
        if isolation == "reset":
            assert function.isolation_verdict.startswith("fresh: ")


@pytest.mark.parametrize("first", ["error", "trap"])
async def test_modules_that_trap_and_those_that_do_not_are_not_mixed(first: str) -> None:
    """Registering with traps lets nobody in who asked for an error, in either order."""
    async with quiet_cache() as cache:
        for missing in (first, "trap" if first == "error" else "error"):
            if missing == "error":
                with pytest.raises(LinkError):
                    await cache.register("e", LACKING, export="f", imports=GIVEN, **I64)
            else:
                await cache.register("t", LACKING, export="f", imports=GIVEN, missing="trap", **I64)


async def test_traps_are_for_functions_that_are_not_given() -> None:
    """A memory, a vector or a wrong type is refused all the same."""
    async with quiet_cache() as cache:
        for imported, said in (
            ('(import "env" "memory" (memory 1))', "env.memory is a memory"),
            ('(import "env" "v" (func (param v128)))', "env.v"),
            (
                '(import "wasi_snapshot_preview1" "fd_write" (func))',
                "fd_write as [] -> [], but the WASI function",
            ),
        ):
            wasm = wat(
                f'(module {imported} (func (export "f") (param i64) (result i64) local.get 0))'
            )
            with pytest.raises(LinkError) as caught:
                await cache.register("f", wasm, missing="trap", **I64)
            assert said in str(caught.value)
            assert 'or missing="trap"' not in str(caught.value)
            assert "HostFunction(" not in str(caught.value)  # none would be accepted


@pytest.mark.parametrize("missing", ["Trap", "", None, 1, True, ["trap"]])
async def test_missing_is_one_of_two_words(missing: Any) -> None:
    """Anything else is a ValueError that says which."""
    async with quiet_cache() as cache:
        with pytest.raises(ValueError, match="missing must be 'error' or 'trap', got "):
            await cache.register("f", LACKING, missing=missing, **I64)


async def test_emscriptens_javascript_is_told_from_what_runs() -> None:
    """The module is refused with what to build; with traps, exports that need no JavaScript run."""
    path = TOOLCHAINS / "emscripten-longjmp.wasm"
    types: dict[str, Any] = {"args": ("i32", "i32"), "returns": "i32"}
    async with quiet_cache() as cache:
        with pytest.raises(LinkError, match="build with -fno-exceptions and -sSUPPORT_LONGJMP=0"):
            await cache.register("add", path, **types)
        function = await cache.register("add", path, missing="trap", **types)
        with pytest.raises(TrapError, match=r"the guest called env\.\w+ \["):
            await function.call(1, 2)


async def test_what_is_no_module_is_told_what_it_is_however_large() -> None:
    """Its size is not what is wrong with it, and neither is that of another format."""
    async with quiet_cache(max_wasm_size=4096) as cache:
        for data, said in (
            (b"PK\3\4", "but a ZIP archive"),
            (b"\x7fELF\2\1\1\0", "but an ELF file"),
        ):
            for padding in (0, 100_000):
                with pytest.raises(InvalidModuleError, match=said):
                    await cache.register("f", data + bytes(padding), **I64)
        with pytest.raises(ModuleTooLargeError):
            await cache.register("f", LACKING + bytes(100_000), **I64)


async def test_a_go_program_is_refused_with_what_to_build() -> None:
    """Its exports trap in the middle of Go's runtime, which nothing has started."""
    async with quiet_cache() as cache:
        wasm = go_bytes("_start", "add")
        with pytest.raises(ExportError, match=r"a program of Go.* -buildmode=c-shared"):
            await cache.register("add", wasm, args=(), returns=None)
        await cache.register("add", go_bytes("_initialize", "add"), args=(), returns=None)
