"""Plugins of Extism: they answer as under Extism, and their faults are their own."""

from __future__ import annotations

import base64
import json
import pickle
import struct
from collections.abc import Mapping
from typing import Any

import pytest
import trio
from abi.support import UDFS
from kits import ListLogger, WasmtimeKit, open_real_cache
from staging import stage

from trio_wasmcache import (
    AbiError,
    CacheConfig,
    ExitError,
    ExtismAbi,
    FuelExhaustedError,
    Function,
    HostFunction,
    InstanceCache,
    KiB,
    LinkError,
    LoadError,
    MemoryLimitError,
    MiB,
    PluginError,
    ResultTooLargeError,
    SignatureError,
    TrapError,
    Wasi,
)
from trio_wasmcache.testing import check_invariants, snapshot

PLUGINS = UDFS / "extism"
GOLDEN = json.loads((PLUGINS / "golden.json").read_text())
ENV, USER = "extism:host/env", "extism:host/user"
QUIET = {
    USER: {
        "lookup": HostFunction(lambda key: "", ("str",), ("str",)),
        "add": HostFunction(lambda a, b: a + b, ("i64", "i64"), ("i64",)),
        "note": HostFunction(lambda line, number: None, ("str", "i32"), ()),
    }
}


def plugin(name: str = "c") -> bytes:
    return (PLUGINS / f"{name}.wasm").read_bytes()


async def add(
    cache: InstanceCache,
    export: str,
    wasm: bytes | str | None = None,
    *,
    name: str | None = None,
    args: tuple[str, ...] = ("bytes",),
    returns: str | None = "bytes",
    abi: Any = "extism",
    imports: Mapping[str, Mapping[str, HostFunction]] = QUIET,
    **options: Any,
) -> Function:
    return await cache.register(
        name or export,
        plugin() if wasm is None else wasm,
        args=args,
        returns=returns,
        export=export,
        abi=abi,
        imports=imports,
        **options,
    )


def operation(letter: str, a: int = 0, b: int = 0) -> bytes:
    """Return one step of the plugin's `operate`; see plugin.c."""
    return letter.encode() + struct.pack("<QQ", a % (1 << 64), b % (1 << 64))


BLOCK = 1 << 63  # the offset of the first block that it allocated
NEXT = 1 << 16  # a byte behind that


def numbers(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


# -- the same answers


def decoded(text: Any) -> bytes:
    if isinstance(text, list):
        piece, size = decoded(text[0]), text[1]
        return (piece[:1] + piece[1:] * (size // len(piece[1:]) + 1))[:size]
    if text.startswith("base64:"):
        return base64.b64decode(text.partition(":")[2])
    return str(text).encode()


@pytest.mark.parametrize("script", GOLDEN["scripts"], ids=lambda one: str(one["plugin"]))
async def test_golden(script: dict[str, Any]) -> None:
    """Each plugin answers in each script what it answers under Extism; see golden.py."""
    config = CacheConfig(memory_limit=64 * MiB, max_instance_size=64 * MiB)
    abi = ExtismAbi(config=script["config"])
    async with open_real_cache(config) as cache:
        functions: dict[str, Function] = {}
        for export, given, output, error in script["calls"]:
            if export not in functions:
                wasm, imports = plugin(script["plugin"]), QUIET if script["plugin"] == "c" else {}
                functions[export] = await add(cache, export, wasm, abi=abi, imports=imports)
            data = decoded(given)
            try:
                answer = await functions[export].call(data)
            except PluginError as problem:
                answer, problems = None, {problem.text or f"Error code: {problem.status}"}
            except TrapError:
                answer, problems = None, {error if "wasm backtrace" in error else "no trap"}
            else:
                problems = {None}
            if output == "the input":
                assert answer == data
            else:
                assert answer == (None if output is None else decoded(output))
            assert error in problems
        check_invariants(cache)


async def test_types() -> None:
    """Bytes, text or nothing, on either side; a buffer of any class is taken for bytes."""
    async with open_real_cache() as cache:
        for args, returns, value, answer in (
            (("str",), "str", "süß", "süß"),
            (("bytes",), "str", "süß".encode(), "süß"),
            (("str",), "bytes", "süß", "süß".encode()),
            (("str",), None, "ignored", None),
        ):
            echo = await add(cache, "echo", args=args, returns=returns, replace=True)
            assert await echo.call(value) == answer
        for kind in (bytearray, memoryview, lambda data: struct.unpack("2I", data)):
            echo = await add(cache, "echo", replace=True)
            if kind in (bytearray, memoryview):
                assert await echo.call(kind(b"12345678")) == b"12345678"
        none = await add(cache, "sum", args=())
        assert await none.call() == bytes(8)
        text = await add(cache, "echo", args=("bytes",), returns="str", replace=True)
        async with text.acquire() as lease:
            assert await lease.call("ü".encode()) == "ü"
            with pytest.raises(AbiError, match=r"returned what is not UTF-8"):
                await lease.call(b"\xff")


@pytest.mark.parametrize(
    ("args", "value", "error"),
    [
        (("str",), b"bytes", "str takes a str"),
        (("bytes",), "text", "bytes takes bytes or a buffer"),
        (("bytes",), 5, "bytes takes bytes or a buffer"),
        (("str",), "\ud800", "has no UTF-8"),
    ],
)
async def test_values_that_do_not_fit(args: tuple[str, ...], value: Any, error: str) -> None:
    """They raise before the plugin runs, and the lease goes on."""
    async with open_real_cache() as cache:
        echo = await add(cache, "echo", args=args, returns=None)
        async with echo.acquire() as lease:
            with pytest.raises((TypeError, ValueError), match=error) as raised:
                await lease.call(value)
            assert "argument 1 of echo" in str(raised.value)
            with pytest.raises(TypeError, match="takes 1 argument"):
                await lease.call()
            assert await lease.call("ok" if args == ("str",) else b"ok") is None


async def test_declarations_that_do_not_fit() -> None:
    """`register` refuses other types, other exports, and host functions that are none of these."""
    async with open_real_cache() as cache:
        for options, words in (
            ({"args": ("i64",)}, "one argument, bytes or str, or none"),
            ({"args": ("bytes", "bytes")}, "one argument"),
            ({"returns": "i32"}, "one result, bytes or str, or none"),
        ):
            with pytest.raises(SignatureError, match=words):
                await add(cache, "echo", **options)
        wrong = '(module (func (export "run") (param i32) (result i32) (i32.const 0)))'
        with pytest.raises(SignatureError, match=r"takes nothing and returns a status"):
            await add(cache, "run", wrong)
        wrong = '(module (func (export "run") (result i64) (i64.const 0)))'
        with pytest.raises(SignatureError, match=r"takes nothing and returns a status"):
            await add(cache, "run", wrong)
        given = {ENV: {"alloc": HostFunction(lambda n: 0, ("i64",), ("i64",))}}
        with pytest.raises(LinkError, match=r"alloc is a function of Extism's kernel"):
            await add(cache, "echo", imports={**QUIET, **given})
        given = {ENV: {"var_get": HostFunction(lambda n: 0, ("i32",), ("i64",))}}
        with pytest.raises(LinkError, match=r"imports extism:host/env.var_get as \[i64\]"):
            await add(cache, "swap", imports={**QUIET, **given})
        unknown = f"""(module (import "{ENV}" "fly" (func))
            (func (export "run") (result i32) (i32.const 0)))"""
        with pytest.raises(LinkError, match=r"extism:host/env.fly \[\] -> \[\] is missing"):
            await add(cache, "run", unknown)
        other = f"""(module (import "{ENV}" "alloc" (func (param i32) (result i32)))
            (func (export "run") (result i32) (i32.const 0)))"""
        with pytest.raises(LinkError, match=r"alloc as \[i32\] -> \[i32\], but it is \[i64\]"):
            await add(cache, "run", other)


@pytest.mark.parametrize(
    "imports", [{}, {USER: {"note": HostFunction(lambda n: None, ("i32",), ())}}]
)
async def test_the_types_of_blocks_are_proposed(imports: Any) -> None:
    """For a function of the application that is missing, or has another type."""
    wasm = f"""(module (import "{USER}" "note" (func (param i64)))
        (func (export "run") (result i32) (i32.const 0)))"""
    async with open_real_cache() as cache:
        with pytest.raises(LinkError, match='abi="extism", "str" or "bytes" in place of "i64"'):
            await add(cache, "run", wasm, imports=imports)


async def test_the_memory_of_the_host_is_not_proposed() -> None:
    """One that the application gives would not be that of Extism's functions."""
    wasm = f"""(module (import "{ENV}" "memory" (memory 1))
        (func (export "run") (result i32) (i32.const 0)))"""
    async with open_real_cache() as cache:
        with pytest.raises(LinkError, match=r"No plugin is given the memory") as raised:
            await add(cache, "run", wasm, imports={})
        assert "HostMemory()" not in str(raised.value)


async def test_without_the_abi() -> None:
    """A plugin that is registered as another module is refused, and the message names the ABI."""
    async with open_real_cache() as cache:
        with pytest.raises(LinkError, match=r'Extism plugin: abi="extism" gives it'):
            await add(cache, "echo", abi="plain", args=(), returns="i32", imports={})
        guest = """(module (import "host" "f" (func $f (param i64)))
            (func (export "run") (call $f (i64.const 0))))"""
        host = {"host": {"f": HostFunction(print, ("str",), ())}}
        with pytest.raises(SignatureError, match=r'only plugins of Extism \(abi="extism"\)'):
            await add(cache, "run", guest, abi=None, args=(), returns=None, imports=host)


# -- errors


async def test_an_error_leaves_the_instance_intact() -> None:
    """An error or a status that a plugin returns in order costs neither lease nor variables."""
    async with open_real_cache() as cache:
        fails = await add(cache, "fails")
        status = await add(cache, "status", returns=None)
        async with fails.acquire() as lease:
            with pytest.raises(PluginError) as raised:
                await lease.call(b"no\x1b[31m way")
            error = raised.value
            assert (error.text, error.status) == ("no\x1b[31m way", 1)
            assert "reported an error: no\\x1b[31m way" in str(error)
            assert (error.function, error.values) == ("fails", (b"no\x1b[31m way",))
            assert lease.fuel_consumed
            with pytest.raises(PluginError, match="returned status 1"):
                await lease.call(b"")
        async with status.acquire() as lease:
            with pytest.raises(PluginError, match="returned status -1") as raised:
                await lease.call(b"4294967295")
            assert raised.value.status == -1
            assert await lease.call(b"0") is None
        swap = await add(cache, "swap")
        assert await swap.call(b"afirst") == b""
        assert await swap.call(b"a") == b"first"
        assert cache.stats().misses == 3
        assert not any(cache.stats().evictions.values())


async def test_a_long_error_is_cut() -> None:
    """Of the text of an error, 2 KiB are read."""
    async with open_real_cache() as cache:
        fails = await add(cache, "fails")
        with pytest.raises(PluginError) as raised:
            await fails.call("ü".encode() * 100_000)
        assert raised.value.text == "ü" * 1024


async def test_the_last_words_of_a_trap() -> None:
    """A plugin that reports an error and then traps has both in the message; it is dropped."""
    async with open_real_cache() as cache:
        traps = await add(cache, "traps")
        with pytest.raises(TrapError, match=r"unreachable; it had reported: the last words") as e:
            await traps.call(b"")
        assert e.value.code == "unreachable"
        assert e.value.frames
        assert cache.stats().evictions["corrupted"] == 1
        panics = await add(cache, "panics", plugin("rust"), imports={})
        with pytest.raises(TrapError) as e:
            await panics.call(b"data")
        assert "index out of bounds" in e.value.output


# -- memory


async def test_memory_without_end() -> None:
    """A plugin that allocates for ever gets a trap that says so, within its share of the limit."""
    async with open_real_cache(CacheConfig(memory_limit=4 * MiB)) as cache:
        hungry = await add(cache, "hungry")
        echo = await add(cache, "echo")
        with pytest.raises(TrapError, match=r"1048576 bytes .* its share of memory_limit") as e:
            await hungry.call(b"")
        assert e.value.code == "out of memory"
        with pytest.raises(
            MemoryLimitError, match="raise memory_limit = 4194304, of which each of its 3 growable"
        ):
            await echo.call(bytes(3 * MiB))
        assert await echo.call(b"small") == b"small"
        check_invariants(cache)


async def test_memory_is_counted() -> None:
    """Both memories of the kernel count in the size, and in the worst size."""
    async with open_real_cache(CacheConfig(memory_limit=8 * MiB)) as cache:
        echo = await add(cache, "echo")
        plain = await cache.register(
            "plain", '(module (memory 2) (func (export "plain")))', args=()
        )
        async with echo.acquire() as lease, plain.acquire() as other:
            # Two pages of the plugin's own, one for each memory of the kernel.
            assert lease.size == other.size + 2 * 64 * KiB
            await lease.call(bytes(MiB))
            assert lease.size == other.size + 2 * 64 * KiB + MiB
        assert echo.worst_size <= 8 * MiB + 8 * 64 * KiB


async def test_no_memory_creeps() -> None:
    """Blocks that a plugin never frees are gone at the next call."""
    async with open_real_cache() as cache:
        copy = await add(cache, "copy")
        async with copy.acquire() as lease:
            data = bytes(range(256)) * 64
            assert await lease.call(data) == data
            size = lease.size
            for _ in range(300):
                assert await lease.call(data) == data
            assert lease.size == size


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        # (operations, results): None for a trap
        ((("a", 4), ("f", BLOCK), ("f", BLOCK), ("l", BLOCK)), [1, 0, 0, 0]),
        ((("a", 4), ("f", BLOCK + NEXT), ("l", BLOCK)), [1, 0, 4]),
        ((("f", 0), ("f", -1), ("f", 1 << 40), ("l", -1)), [0, 0, 0, 0]),
        ((("a", 0), ("l", BLOCK)), [0, 0]),
        ((("a", 8), ("W", BLOCK + NEXT, -1), ("R", BLOCK)), [1, 0, (1 << 64) - (1 << 8)]),
        ((("a", 9), ("W", BLOCK + NEXT, -1), ("R", BLOCK)), [1, 0, (1 << 64) - (1 << 8)]),
        ((("w", 0, 1), ("w", 8, 1), ("W", 3, -1), ("r", 0), ("r", 8), ("R", 8)), [0] * 6),
        ((("r", -1), ("R", -8), ("r", 1 << 32), ("w", -1, 1), ("W", -8, 1)), [0] * 5),
        ((("a", 8), ("o", BLOCK, 9)), None),
        ((("o", 0, 1), ("o", 0, 0), ("o", -1, 0)), [0, 0, 0]),
        ((("o", -1, 1),), None),
        ((("o", 1 << 50, -1),), None),
        ((("a", 8), ("o", BLOCK, -1)), None),
        ((("a", -1),), None),
        ((("a", 1 << 40),), None),
        ((("c", 1),), None),
        ((("a", 5), ("f", BLOCK), ("v", BLOCK)), None),
        ((("V", 1, 0),), None),
        ((("a", 4), ("V", BLOCK, 1)), None),
        ((("g", 1 << 33), ("g", 1 << 33)), [0, 0]),
    ],
)
async def test_hostile_offsets(steps: tuple[tuple[Any, ...], ...], found: list[int] | None) -> None:
    """Offsets that are freed, foreign, beyond or zero harm nobody but the plugin."""
    async with open_real_cache() as cache:
        operate = await add(cache, "operate")
        data = b"".join(operation(*step) for step in steps)
        if found is None:
            with pytest.raises(TrapError, match="the plugin"):
                await operate.call(data)
        else:
            assert numbers(await operate.call(data)) == found
        assert numbers(await operate.call(operation("n"))) == [17]


async def test_too_many_blocks() -> None:
    """A plugin that frees no blocks is told the limit, and what to do; freed ones do not count."""
    wasm = f"""(module
      (import "{ENV}" "alloc" (func $alloc (param i64) (result i64)))
      (import "{ENV}" "free" (func $free (param i64)))
      (func $many (export "many") (local $i i32) (local $at i64)
        (loop $next
          (local.set $at (call $alloc (i64.const 1)))
          (if (global.get $frees) (then (call $free (local.get $at))))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $i) (i32.const 70000)))))
      (func (export "freed") (global.set $frees (i32.const 1)) (call $many))
      (global $frees (mut i32) (i32.const 0)))"""
    async with open_real_cache() as cache:
        many = await add(cache, "many", wasm, imports={})
        with pytest.raises(TrapError, match=r"65536 blocks .* let it free blocks \(") as raised:
            await many.call(b"")
        assert raised.value.code == "out of memory"
        freed = await add(cache, "freed", wasm, imports={})
        assert await freed.call(b"") == b""


async def test_large_results() -> None:
    """Results are counted and limited, and cost fuel; the lease goes on."""
    async with open_real_cache(CacheConfig(max_result_size=100 * KiB)) as cache:
        echo = await add(cache, "echo")
        async with echo.acquire() as lease:
            with pytest.raises(ResultTooLargeError):
                await lease.call(bytes(200 * KiB))
            await lease.call(b"x" * 60)
            small = lease.fuel_consumed
            await lease.call(b"x" * 3000)
            larger = lease.fuel_consumed
            assert small is not None
            assert larger == small + 1500
            await lease.call(memoryview(b"x" * 3000))
            assert lease.fuel_consumed == larger
            await lease.call(b"x" * 5000)
            assert lease.fuel_consumed == small + 2500
    async with open_real_cache(CacheConfig(total_fuel=1000)) as cache:
        echo = await add(cache, "echo")
        assert await echo.call(b"x" * 60) == b"x" * 60
        with pytest.raises(FuelExhaustedError):
            await echo.call(b"x" * 3000)


# -- config, variables, isolation


async def test_variables_and_isolation() -> None:
    """Variables stay with the instance, or begin anew with each lease."""
    abi = ExtismAbi(vars={"a": "given", "b": b"\x00\xff"})
    async with open_real_cache() as cache:
        reuse = await add(cache, "swap", name="reuse", abi=abi)
        assert await reuse.call(b"anew") == b"given"
        assert await reuse.call(b"a") == b"new"
        for isolation in ("reset", "fresh"):
            swap = await add(cache, "swap", name=isolation, abi=abi, isolation=isolation)
            for _ in range(3):
                async with swap.acquire() as lease:
                    assert await lease.call(b"anew") == b"given"
                    assert await lease.call(b"a" + b"x" * 100_000) == b"new"
                    assert await lease.call(b"bmore") == b"\x00\xff"
            assert swap.isolation == isolation
            assert isolation in swap.isolation_verdict
        assert cache.stats().hits >= 4
        async with reuse.acquire() as one:
            # Another instance has variables of its own.
            both = await add(cache, "swap", name="both", abi=abi, concurrency=2)
            async with both.acquire() as first, trio.open_nursery() as nursery:
                await first.call(b"afirst")
                nursery.start_soon(second_instance, both)
            assert await one.call(b"a") == b""


async def second_instance(both: Function) -> None:
    async with both.acquire() as second:
        assert await second.call(b"a") == b"given"


async def test_no_bytes_of_another_call() -> None:
    """Memory of former calls reads as zero: a new block is empty, and so is what is behind it."""
    async with open_real_cache() as cache:
        operate = await add(cache, "operate")
        async with operate.acquire() as lease:
            for letter in "Ww":
                steps = [operation("a", 1000)]
                steps += [operation(letter, BLOCK + at * NEXT, -1) for at in range(0, 480, 8)]
                await lease.call(b"".join(steps))
            steps = [operation("a", 64), *(operation("R", BLOCK + at * NEXT) for at in (0, 56))]
            steps += [operation("R", at) for at in range(800, 1800, 50)]
            assert numbers(await lease.call(b"".join(steps))) == [1, *[0] * (len(steps) - 1)]


async def test_config_is_not_shared() -> None:
    """Functions of one module with other configs have kernels of their own."""
    async with open_real_cache() as cache:
        for number in range(3):
            abi = ExtismAbi(config={"n": str(number)})
            config = await add(cache, "config", name=f"config{number}", abi=abi)
            assert await config.call(b"n") == str(number).encode()
        again = await add(cache, "config", name="again", abi=ExtismAbi(config={"n": "2"}))
        assert cache.stats().functions == 4
        assert again.module_digest == config.module_digest
        assert len(snapshot(cache).modules) == 3


# -- the host


async def test_redact_knows_whose_answers_they_are() -> None:
    """A function's result is written by this library, under the name of the function."""
    seen: dict[str, object] = {}

    def redact(_function: str, what: str, value: object) -> object:
        seen[what] = value
        return b"" if what == f"{USER}.lookup wrote" else value

    log = ListLogger()
    functions = {
        **QUIET[USER],
        "lookup": HostFunction(lambda key: f"{key} secret", *2 * [("str",)]),
    }
    config = CacheConfig(log_values=1.0, redact=redact)
    async with open_real_cache(config, logger=log) as cache:
        asks = await add(cache, "asks", args=("str",), returns="str", imports={USER: functions})
        assert await asks.call("a") == "a secret"
    assert seen[f"{USER}.lookup wrote"] == b"a secret"
    (event,) = log.fields("replayable")
    assert base64.b64encode(b"a secret").decode() not in event["host_calls"]


async def test_host_functions() -> None:
    """Sync and async functions get and return bytes, text and numbers; None is no block."""
    asked: list[tuple[Any, ...]] = []

    async def lookup(key: str) -> str | None:
        await trio.lowlevel.checkpoint()
        asked.append(("lookup", key))
        return None if key == "nobody" else key.upper()

    def note(line: bytes, number: int) -> None:
        asked.append(("note", line, number))

    imports = {
        USER: {
            "lookup": HostFunction(lookup, ("str",), ("str",)),
            "add": HostFunction(lambda a, b: a + b, ("i64", "i64"), ("i64",)),
            "note": HostFunction(note, ("bytes", "u32"), ()),
        }
    }
    async with open_real_cache() as cache:
        asks = await add(cache, "asks", args=("str",), returns="str", imports=imports)
        assert await asks.call("straße") == "STRASSE"
        assert asked == [("note", b"asking", 3), ("lookup", "straße")]
        large = "x" * 200_000
        assert await asks.call(large) == large.upper()
        with pytest.raises(PluginError, match="status 42"):
            await asks.call("nobody")
        with pytest.raises(AbiError, match=r"lookup was called with what is not UTF-8"):
            await (await add(cache, "asks", imports=imports)).call(b"\xff")


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda key: 5, r"result 1 of host function .*: str takes a str, got 5"),
        (lambda key: b"bytes", "str takes a str"),
        (lambda key: "\ud800", "has no UTF-8"),
        (lambda key: next(iter(())), "raised StopIteration"),
    ],
)
async def test_host_functions_that_answer_wrongly(function: Any, error: str) -> None:
    """What is wrong with an answer is the call's exception, and the lease is over."""
    imports = {USER: {**QUIET[USER], "lookup": HostFunction(function, ("str",), ("str",))}}
    async with open_real_cache() as cache:
        asks = await add(cache, "asks", imports=imports)
        with pytest.raises((TypeError, ValueError, RuntimeError), match=error):
            await asks.call(b"key")
        check_invariants(cache)


async def test_http() -> None:
    """A request is refused by its own words; with a host function, it is that one's."""
    async with open_real_cache() as cache:
        fetch = await add(cache, "fetch")
        with pytest.raises(TrapError, match=r"made an HTTP request, .*localhost.*, which") as e:
            await fetch.call(b"")
        assert e.value.code == "no http"

        async def served(request: bytes, body: bytes) -> tuple[bytes, int, str]:
            await trio.lowlevel.checkpoint()
            assert (json.loads(request), body) == ({"url": "http://localhost/"}, b"body")
            return b"answer", 200, '{"x": "y"}'

        full = HostFunction(served, ("bytes", "bytes"), ("bytes", "i32", "str"))
        fetch = await add(
            cache, "fetch", imports={**QUIET, ENV: {"http_request": full}}, replace=True
        )
        assert await fetch.call(b"") == b'{"x": "y"}'
        short = HostFunction(lambda request, body: body[::-1], ("bytes", "bytes"), ("bytes",))
        fetch = await add(
            cache, "fetch", imports={**QUIET, ENV: {"http_request": short}}, replace=True
        )
        assert await fetch.call(b"") == b"ydob"


async def test_replaced_functions() -> None:
    """An application can serve config and variables itself, for all instances together."""
    store: dict[str, bytes] = {}

    def put(key: str, value: bytes) -> None:
        store[key] = value

    given = {
        "var_get": HostFunction(lambda key: store.get(key), ("str",), ("bytes",)),
        "var_set": HostFunction(put, ("str", "bytes"), ()),
    }
    async with open_real_cache() as cache:
        swap = await add(cache, "swap", imports={**QUIET, ENV: given}, isolation="fresh")
        assert await swap.call(b"aone") == b""
        assert await swap.call(b"atwo") == b"one"
        assert store == {"a": b"two"}


async def test_log() -> None:
    """Lines of the level or above go where standard error does, in the output of an error too."""
    lines: list[tuple[str, str]] = []
    wasi = Wasi(stderr=lambda stream, line: lines.append((stream, line)))
    async with open_real_cache() as cache:
        logs = await add(cache, "logs", wasi=wasi)
        assert await logs.call(b"") == b""
        assert lines == [("stderr", "info: hello"), ("stderr", "error: it went wrong")]
        tail = await add(cache, "logs", name="all", abi=ExtismAbi(log_level="trace"))
        with pytest.raises(PluginError) as raised:  # as the level is not the one it expects
            await tail.call(b"")
        assert raised.value.output == "debug: a detail\ninfo: hello\nerror: it went wrong\n"
        none = await add(cache, "logs", name="off", abi=ExtismAbi(log_level="off"))
        with pytest.raises(PluginError) as raised:
            await none.call(b"")
        assert raised.value.output == ""


# -- starts


def starting(exports: str, *, start: bool = False) -> str:
    """A plugin that outputs which of its initializers ran, in order."""
    return f"""(module
      (import "{ENV}" "alloc" (func $alloc (param i64) (result i64)))
      (import "{ENV}" "store_u8" (func $store (param i64 i32)))
      (import "{ENV}" "output_set" (func $output (param i64 i64)))
      (global $order (mut i64) (i64.const 0)) (global $count (mut i64) (i64.const 0))
      (memory (export "memory") 1)
      (func $ran (param i64)
        (global.set $order (i64.or (i64.shl (global.get $order) (i64.const 8)) (local.get 0)))
        (global.set $count (i64.add (global.get $count) (i64.const 1)))
        (drop (call $alloc (i64.const 100))))
      (func (export "run") (result i32) (local $at i64) (local $i i64)
        (if (i64.eqz (global.get $count)) (then (return (i32.const 0))))
        (local.set $at (call $alloc (global.get $count)))
        (loop $next
          (call $store (i64.add (local.get $at) (local.get $i))
            (i32.wrap_i64 (i64.shr_u (global.get $order)
              (i64.mul (i64.const 8)
                (i64.sub (i64.sub (global.get $count) (i64.const 1)) (local.get $i))))))
          (local.set $i (i64.add (local.get $i) (i64.const 1)))
          (br_if $next (i64.lt_u (local.get $i) (global.get $count))))
        (call $output (local.get $at) (global.get $count))
        (i32.const 0))
      (func $start (call $ran (i64.const 83)))
      {"(start $start)" if start else ""}
      {exports})"""


def runs(name: str, letter: str, params: str = "", result: str = "") -> str:
    return (
        f'(func (export "{name}") {params} {"(result i32)" if result else ""}'
        f" (call $ran (i64.const {ord(letter)})) {result})"
    )


HASKELL = runs("hs_init", "h", "(param i32 i32)", "(i32.const 7)")


@pytest.mark.parametrize(
    ("exports", "start", "order"),
    [
        ("", False, b""),
        ("", True, b"S"),
        (runs("_initialize", "i"), True, b"Si"),
        (runs("__wasm_call_ctors", "c"), False, b"c"),
        (runs("__wasm_call_ctors", "c") + runs("_initialize", "i"), False, b"c"),
        (runs("_initialize", "i", "(param i32)"), False, b""),
        (HASKELL, False, b"h"),
        (HASKELL + runs("_initialize", "i") + runs("__wasm_call_ctors", "c"), True, b"Sih"),
    ],
)
@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_start(exports: str, start: bool, order: bytes, isolation: Any) -> None:
    """Instances start as Extism starts them: constructors, reactors, Haskell's runtime."""
    async with open_real_cache() as cache:
        run = await add(
            cache, "run", starting(exports, start=start), imports={}, isolation=isolation
        )
        for _ in range(3):
            assert await run.call(b"") == order


async def test_a_start_that_fails() -> None:
    """A plugin whose start traps or exits is refused when its instance is made."""
    trap = '(func (export "_initialize") unreachable)'
    async with open_real_cache() as cache:
        run = await add(cache, "run", starting(trap), imports={})
        with pytest.raises(LoadError) as raised:
            await run.call(b"")
        assert isinstance(raised.value.__cause__, TrapError)


async def test_commands() -> None:
    """A command that exits well has an output; each call has an instance of its own."""
    command = f"""(module
      (import "{ENV}" "input_offset" (func $at (result i64)))
      (import "{ENV}" "input_length" (func $n (result i64)))
      (import "{ENV}" "output_set" (func $output (param i64 i64)))
      (import "{ENV}" "input_load_u8" (func $load (param i64) (result i32)))
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1)
      (func (export "_start")
        (call $output (call $at) (call $n))
        (call $exit (i32.sub (call $load (i64.const 0)) (i32.const 48)))))"""
    async with open_real_cache() as cache:
        run = await add(cache, "_start", command, imports={})
        assert await run.call(b"0 is well") == b"0 is well"
        with pytest.raises(ExitError) as raised:
            await run.call(b"3 is not")
        assert raised.value.status == 3


# -- batches


async def test_batches() -> None:
    """A batch does for each row what a call does; variables go on from row to row."""
    async with open_real_cache() as cache:
        count = await add(cache, "count_vowels", args=("str",), returns="str")
        async with count.acquire() as lease:
            rows = await lease.map([["a", "bee", None, "x"]])
        assert [row and json.loads(row)["total"] for row in rows] == [1, 3, None, 3]
        fails = await add(cache, "fails")
        async with fails.acquire() as lease:
            with pytest.raises(PluginError, match="reported an error: one") as raised:
                await lease.map([[b"one", b"two"]])
            assert raised.value.row == 0
            with pytest.raises(PluginError, match="two"):
                await lease.call(b"two")


# -- the ABI as an object


def test_abi_objects() -> None:
    """They are values: equal, hashable, to be pickled, and quiet about what they contain."""
    one = ExtismAbi(config={"key": "secret"}, vars={"a": "text"})
    two = ExtismAbi(config={"key": "secret"}, vars={"a": b"text"})
    assert one == two == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(two)
    assert one != ExtismAbi(config={"key": "other"})
    assert "secret" not in repr(one)
    assert "text" not in repr(one)
    assert "'key'" in repr(one)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"config": [("a", "b")]}, TypeError, "config must be a mapping"),
        ({"config": {"a": b"bytes"}}, TypeError, "of str to str, got bytes for 'a'$"),
        ({"config": {1: "a"}}, TypeError, "of str to str, got the key 1 of type int$"),
        ({"config": {"a": "\ud800"}}, ValueError, "no UTF-8"),
        ({"config": {"a": "x" * MiB}}, ValueError, "config may have"),
        ({"vars": {"a": 5}}, TypeError, "vars must be a mapping of str to bytes or str"),
        ({"vars": {"a": bytes(MiB - 48)}}, ValueError, "vars may have"),
        ({"log_level": "loud"}, ValueError, "log_level must be one of"),
        ({"log_level": ["info"]}, ValueError, "log_level must be one of"),
    ],
)
def test_bad_abi_objects(options: Any, error: type[Exception], words: str) -> None:
    """Parameters are checked when it is made."""
    with pytest.raises(error, match=words) as raised:
        ExtismAbi(**options)
    assert "secret" not in str(raised.value)


async def test_cancelled_everywhere(real: WasmtimeKit) -> None:
    """Cancelled at each checkpoint, of the load, the slices and the host functions too."""

    async def lookup(key: str) -> str:
        await trio.lowlevel.checkpoint()
        return key * 2

    given = {**QUIET[USER], "lookup": HostFunction(lookup, ("str",), ("str",))}
    async with stage(real, CacheConfig(max_size=0, yield_fuel=2000, offload_after=None)) as at:
        asks = await add(at.cache, "asks", imports={USER: given})
        copy = await add(at.cache, "copy")

        async def scenario() -> None:
            assert await asks.call(b"key") == b"keykey"
            assert await copy.call(b"x" * 600) == b"x" * 600

        await at.run(scenario, least=8)
        assert await asks.call(b"key") == b"keykey"
