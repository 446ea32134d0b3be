"""Components that import WASI preview 2: of Rust, behind the adapter, and hostile ones."""

from __future__ import annotations

from typing import Any

import pytest
import wasmtime
from components.echo import BUMP, REALLOC
from components.samples import SPEAKING
from engine.support import quiet_cache

from trio_wasmcache import AbiError, FuelExhaustedError, LinkError, Prepare, TrapError, Wasi
from trio_wasmcache._core.wasm.isolation import Isolation
from trio_wasmcache.testing import cancel_everywhere, check_invariants

ISOLATIONS: tuple[Isolation, ...] = ("reuse", "reset", "fresh")
ENVIRONMENT = "wasi:cli/environment@0.2.3"
ARGUMENTS = '(export "get-arguments" (func (result (list string))))'


def importing(
    *,
    realloc: str = REALLOC,
    interface: str = ENVIRONMENT,
    offers: str = ARGUMENTS,
    at: str = "(i32.const 16)",
    before: str = "",
) -> bytes:
    """A component that gives the arguments of the program, by way of its memory."""
    text = f"""(component
      (import "{interface}" (instance $env {offers}))
      (core module $mem (memory (export "memory") 1) {BUMP} {realloc})
      (core instance $a (instantiate $mem))
      (alias export $env "get-arguments" (func $get))
      (core func $low (canon lower (func $get)
        (memory (core memory $a "memory")) (realloc (core func $a "cabi_realloc"))))
      (core module $m
        (import "h" "get" (func $get (param i32)))
        (func (export "f") (result i32) {before} (call $get {at}) {at}))
      (core instance $i (instantiate $m (with "h" (instance (export "get" (func $low))))))
      (func $f (result (list string)) (canon lift (core func $i "f")
        (memory (core memory $a "memory"))))
      (export "f" (func $f)))"""
    return bytes(wasmtime.wat2wasm(text))


def allocator(body: str) -> str:
    """A `cabi_realloc`."""
    return f"""(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) {body})"""


@pytest.mark.parametrize("isolation", ["reuse", "reset", "fresh"])
async def test_the_adapter_is_run_as_the_module_it_is(isolation: Any) -> None:
    """Output goes where that of preview 1 goes; variables are those that were granted."""
    lines: list[tuple[str, str]] = []
    wasi = Wasi(env={"NAME": "höher"}, stdout=lambda *line: lines.append(line))
    async with quiet_cache() as cache:
        speak = await cache.register("speak", SPEAKING, wasi=wasi, isolation=isolation)
        assert speak.isolation == isolation
        for _ in range(2):
            assert await speak.call("a line", "NAME") == "höher"
            assert await speak.call("another", "OTHER") is None
        assert lines == [("stdout", "a line"), ("stdout", "another")] * 2
        upper = await cache.register("upper", SPEAKING, isolation=isolation)
        async with upper.acquire() as lease:
            assert await lease.map([["a", "b"]]) == ["A", "B"]


async def test_the_adapter_is_prepared_too() -> None:
    """The table that a module of its own fills is filled again, under each isolation."""
    lines: list[tuple[str, str]] = []
    wasi = Wasi(env={"NAME": "Ada"}, stdout=lambda *line: lines.append(line))
    prepare = (Prepare("speak", values=("early", "NAME")),)
    async with quiet_cache() as cache:
        for isolation in ISOLATIONS:
            speak = await cache.register(
                isolation,
                SPEAKING,
                export="speak",
                wasi=wasi,
                isolation=isolation,
                prepare=prepare,
            )
            assert "elements of tables frozen" in speak.isolation_verdict
            for _ in range(2):
                assert await speak.call("a line", "NAME") == "Ada"
            assert lines[-2:] == [("stdout", "a line")] * 2


async def test_what_an_error_has_of_the_output() -> None:
    """Its end, as for preview 1."""
    async with quiet_cache(total_fuel=200_000) as cache:
        functions = {one.name: one for one in await cache.register_component(SPEAKING, wasi=Wasi())}
        with pytest.raises(FuelExhaustedError) as caught:
            await functions["speak"].call("x" * 100_000, "")
        assert "x" in caught.value.output or caught.value.output == ""


async def test_cancelled_everywhere() -> None:
    """Also while the host answers, and the guest allocates for it."""
    async with quiet_cache(yield_fuel=1000) as cache:
        speak = await cache.register("speak", SPEAKING, wasi=Wasi(env={"A": "b"}))

        async def use() -> None:
            async with speak.acquire() as lease:
                assert await lease.call("text", "A") == "b"

        assert await cancel_everywhere(use, lambda: check_invariants(cache)) > 5


async def test_a_list_of_strings() -> None:
    """The guest allocates each one, where the specification has the host ask for it."""
    async with quiet_cache() as cache:
        f = await cache.register("f", importing(), wasi=Wasi(args=("prog", "", "é")))
        assert await f.call() == ["prog", "", "é"]
        none = await cache.register("none", importing(), export="f")
        assert await none.call() == []


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("(unreachable)", TrapError, "unreachable"),
        ("(loop (br 0)) (unreachable)", FuelExhaustedError, ""),
        ("(i32.const 65533)", AbiError, "at address 65533, which is no multiple of 4"),
        ("(i32.const 65536)", AbiError, "at address 65536, which .* not inside its memory"),
        ("(i32.const -4)", AbiError, "at address 4294967292"),
    ],
)
async def test_an_allocator_that_misbehaves(body: str, error: type, message: str) -> None:
    """Its call ends so, and nothing is written."""
    async with quiet_cache(total_fuel=100_000) as cache:
        wasm = importing(realloc=allocator(body))
        f = await cache.register("f", wasm, wasi=Wasi(args=("prog",)))
        for _ in range(2):
            with pytest.raises(error, match=message or None):
                await f.call()


async def test_an_allocator_that_grows_the_memory() -> None:
    """The result is written where the memory is by then."""
    grow = "(i32.mul (memory.grow (i32.const 1)) (i32.const 65536))"
    async with quiet_cache() as cache:
        wasm = importing(realloc=allocator(grow))
        f = await cache.register("f", wasm, wasi=Wasi(args=("prog", "more")))
        assert await f.call() == ["prog", "more"]


@pytest.mark.parametrize("at", ["(i32.const 65532)", "(i32.const 17)", "(i32.const -8)"])
async def test_where_a_result_can_not_be(at: str) -> None:
    """It is refused before anything is allocated."""
    async with quiet_cache() as cache:
        f = await cache.register("f", importing(at=at))
        with pytest.raises(AbiError, match=r"8 bytes for the result of .*get-arguments at address"):
            await f.call()


async def test_the_host_is_not_called_while_memory_is_allocated() -> None:
    """That is a trap, as in wasmtime."""
    text = f"""(component
      (import "{ENVIRONMENT}" (instance $env {ARGUMENTS}))
      (core module $mem (memory (export "memory") 1) (table (export "t") 1 funcref)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
          (call_indirect (param i32) (i32.const 16) (i32.const 0)) (i32.const 64)))
      (core instance $a (instantiate $mem))
      (alias export $env "get-arguments" (func $get))
      (core func $low (canon lower (func $get)
        (memory (core memory $a "memory")) (realloc (core func $a "cabi_realloc"))))
      (core module $m
        (import "a" "t" (table 1 funcref))
        (import "h" "get" (func $get (param i32))) (elem (i32.const 0) $get)
        (func (export "f") (result i32) (call $get (i32.const 16)) (i32.const 16)))
      (core instance $i (instantiate $m (with "a" (instance $a))
        (with "h" (instance (export "get" (func $low))))))
      (func $f (result (list string)) (canon lift (core func $i "f")
        (memory (core memory $a "memory"))))
      (export "f" (func $f)))"""
    async with quiet_cache() as cache:
        wasm = bytes(wasmtime.wat2wasm(text))
        f = await cache.register("f", wasm, wasi=Wasi(args=("prog",)))
        with pytest.raises(TrapError, match="while it allocated for a result"):
            await f.call()


@pytest.mark.parametrize(
    ("version", "offers", "message"),
    [
        ("0.3.0", ARGUMENTS, "nobody provides: wasi:cli/environment@0.3.0#get-arguments"),
        (
            "0.2.0",
            ARGUMENTS.replace("string", "u8"),
            r"as func\(\) -> list<u8>, but WASI 0.2 has func\(\) -> list<string>",
        ),
    ],
)
async def test_other_versions_and_types(version: str, offers: str, message: str) -> None:
    """They are refused by name."""
    wasm = importing(interface=f"wasi:cli/environment@{version}", offers=offers)
    async with quiet_cache() as cache:
        with pytest.raises(LinkError, match=message):
            await cache.register("f", wasm)


async def test_functions_of_files_need_a_handle() -> None:
    """They are there, and calling one is a trap, as no guest has a handle of a file."""
    offers = """(export "descriptor" (type $d (sub resource)))
      (export "[method]descriptor.sync" (func (param "self" (borrow $d)) (result u8)))"""
    text = f"""(component
      (import "wasi:filesystem/types@0.2.0" (instance $files {offers}))
      (alias export $files "[method]descriptor.sync" (func $sync))
      (alias export $files "descriptor" (type $d))
      (core func $low (canon lower (func $sync)))
      (core func $drop (canon resource.drop $d))
      (core module $m
        (import "h" "sync" (func $sync (param i32) (result i32)))
        (import "h" "drop" (func $drop (param i32)))
        (func (export "f") (result i32) (call $sync (i32.const 1)))
        (func (export "g") (result i32) (call $drop (i32.const 1)) (i32.const 0)))
      (core instance $i (instantiate $m (with "h" (instance
        (export "sync" (func $low)) (export "drop" (func $drop))))))
      (func $f (result u8) (canon lift (core func $i "f"))) (export "f" (func $f))
      (func $g (result u8) (canon lift (core func $i "g"))) (export "g" (func $g)))"""
    async with quiet_cache() as cache:
        wasm = bytes(wasmtime.wat2wasm(text))
        f = await cache.register("f", wasm)
        with pytest.raises(TrapError, match=r"called wasi:filesystem/types \[method\]descriptor"):
            await f.call()
        g = await cache.register("g", wasm)
        with pytest.raises(TrapError, match="gave 1 as a handle of a descriptor"):
            await g.call()
