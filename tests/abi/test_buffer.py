"""The buffer ABI: bytes and text in and out, each convention and each allocator."""

from __future__ import annotations

import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from abi.support import PAGE, FakeGuest, drive, udf
from engine.support import quiet_cache, wat

from trio_wasmcache import (
    AbiError,
    BufferAbi,
    ExportError,
    Exports,
    Function,
    InstanceCache,
    Invoke,
    MemoryLimitError,
    SignatureError,
)
from trio_wasmcache._core.wasm.reader import FuncType
from trio_wasmcache.testing import check_invariants

STATIC = BufferAbi(result_of="guest")


@asynccontextmanager
async def checked_cache(**limits: Any) -> AsyncIterator[InstanceCache]:
    async with quiet_cache(**limits) as cache:
        yield cache
        check_invariants(cache)


async def add(
    cache: InstanceCache, name: str, *args: str, returns: str, abi: Any = "buffer", **more: Any
) -> Function:
    return await cache.register(name, udf("buffer"), args=args, returns=returns, abi=abi, **more)


@pytest.mark.parametrize(
    ("name", "abi"),
    [
        ("upper_packed", BufferAbi()),
        ("upper_packed", BufferAbi(alloc="malloc", free="free", result="packed")),
        ("upper_packed", BufferAbi(alloc="malloc")),
        ("upper_packed", BufferAbi(arguments_of="host", result_of="host")),
        ("upper_packed_low", BufferAbi(result="packed_low")),
        ("upper_area", BufferAbi(result="area")),
        ("upper_out", BufferAbi()),
        ("upper_nul", BufferAbi(argument="nul", result="nul")),
    ],
)
async def test_text_and_bytes_by_each_convention(name: str, abi: BufferAbi) -> None:
    """However addresses and lengths are passed, what goes in comes out in capitals."""
    async with checked_cache() as cache:
        for kind in ("str", "bytes"):
            upper = await add(cache, name, kind, returns=kind, abi=abi, replace=True)
            async with upper.acquire() as lease:
                for text in ("", "a", "Grüße é", "x" * 3000, "b", ""):
                    expected = text.encode().upper()
                    if kind == "str":
                        assert await lease.call(text) == expected.decode()
                    else:
                        assert await lease.call(text.encode()) == expected
                assert await lease.call(None) is None


async def test_numbers_beside_buffers() -> None:
    """Types of the plain ABI mix with buffers, as arguments and as results."""
    async with checked_cache() as cache:
        repeat = await add(cache, "repeat", "str", "u32", returns="str")
        assert await repeat.call("ab", 3) == "ababab"
        assert await repeat.call("ab", 0) == ""
        value = await add(cache, "hash", "bytes", returns="u32")
        assert await value.call(b"") == 2166136261
        assert await value.call(b"hello") == 0x4F9F2CAB
        with pytest.raises(OverflowError, match=r"argument 2 of repeat\(str, u32\): -1 is out of"):
            await repeat.call("ab", -1)


async def test_a_result_inside_the_argument_is_not_freed() -> None:
    """What lies in an argument is the host's already; what is static is said to be the guest's."""
    async with checked_cache() as cache:
        trim = await add(cache, "trim", "str", returns="str")
        fixed = await add(cache, "fixed", returns="str", abi=STATIC)
        async with trim.acquire() as first, fixed.acquire() as second:
            for _ in range(5):
                assert await first.call("  a b ") == "a b"
                assert await second.call() == "always there"


async def test_arguments_are_used_again_and_results_freed() -> None:
    """What is allocated after any number of calls is one buffer for each argument."""
    async with checked_cache() as cache:
        left = await add(cache, "left", "bytes", returns="i32")
        async with left.acquire() as lease:
            found = [await lease.call(bytes(size)) for size in (1, 5, 3, 500, 0, 400, 9000)]
            assert found == [1] * 7
        upper = await add(cache, "upper_packed", "bytes", returns="bytes")
        async with upper.acquire() as lease:
            await lease.call(bytes(100_000))
            before = lease.size
            for size in range(0, 100_000, 100):
                assert len(await lease.call(bytes(size))) == size
            assert lease.size == before


async def test_any_buffer_goes_in() -> None:
    """Whatever has the buffer protocol is bytes, also if it is not in one piece."""
    async with checked_cache() as cache:
        value = await add(cache, "hash", "bytes", returns="u32")
        async with value.acquire() as lease:
            expected = await lease.call(bytes(range(16)))
            twice = bytes(number for number in range(16) for _ in range(2))
            for same in (
                bytearray(range(16)),
                memoryview(bytes(range(16))),
                array.array("B", range(16)),
                array.array("I", memoryview(bytes(range(16))).cast("I").tolist()),
                memoryview(bytes(range(16))).cast("B", (4, 4)),
                memoryview(twice)[::2],
            ):
                assert await lease.call(same) == expected
            assert await lease.call(array.array("d")) == await lease.call(b"")


async def test_a_buffer_is_not_held_after_the_call() -> None:
    """A bytearray may change its size again once the call is over, however it ended."""
    async with checked_cache() as cache:
        value = await add(cache, "hash", "bytes", returns="u32")
        data = bytearray(b"hello")
        assert await value.call(data) == 0x4F9F2CAB
        data.append(1)
        lie = await cache.register(
            "lie", wat(LYING), args=("bytes", "i64"), returns="bytes", abi="buffer"
        )
        with pytest.raises(AbiError):
            await lie.call(data, -1)
        data.append(2)
        with pytest.raises(TypeError):
            await lie.call(data, "no int")
        data.append(3)


LYING = """(module (memory (export "memory") 1)
    (func (export "lie") (param i32 i32 i64) (result i64) (local.get 2)))"""


@pytest.mark.parametrize(
    ("name", "abi", "claim", "said"),
    [
        ("lie", STATIC, 0xFFFFFFFF_00000001, "1 bytes at address 4294967295, which are not inside"),
        ("lie", STATIC, 0x00000000_FFFFFFFF, "4294967295 bytes at address 0"),
        (
            "lie",
            BufferAbi(result="packed_low"),
            0x80000000_00000010,
            "2147483648 bytes at address 16",
        ),
        (
            "lie_nul",
            BufferAbi(result="nul"),
            0xFFFFFFF0,
            "address 4294967280, after which there is",
        ),
        (
            "lie_nul",
            BufferAbi(result="area"),
            0xFFFFFFF0,
            "its result's place in 8 bytes at address",
        ),
    ],
)
async def test_lies_are_found_out(name: str, abi: BufferAbi, claim: int, said: str) -> None:
    """Addresses and lengths that lead out of memory are an AbiError and cost the instance."""
    async with checked_cache() as cache:
        types = "u64" if name == "lie" else "u32"
        lie = await add(cache, name, types, returns="bytes", abi=abi)
        with pytest.raises(AbiError) as caught:
            await lie.call(claim)
        assert said in str(caught.value)
        assert cache.stats().evictions["corrupted"] == 1


@pytest.mark.parametrize(
    ("size", "error", "said"),
    [
        (1019, MemoryLimitError, r"malloc\(1019\) of the module returned 0"),
        (1021, AbiError, r"malloc\(1021\) returned the address 4294967280"),
    ],
)
async def test_an_allocator_is_not_believed(size: int, error: type[Exception], said: str) -> None:
    """No room is a MemoryLimitError, an address out of memory an AbiError."""
    async with checked_cache() as cache:
        upper = await add(cache, "upper_packed", "bytes", returns="bytes")
        with pytest.raises(error, match=said):
            await upper.call(bytes(size))
        assert cache.stats().evictions["corrupted"] == 1
        assert await upper.call(b"x") == b"X"


async def test_a_result_that_is_no_text() -> None:
    """Bytes that are not UTF-8, declared as str, are an AbiError."""
    async with checked_cache() as cache:
        trim = await add(cache, "trim", "bytes", returns="str")
        assert await trim.call(b" \xc3\xa9 ") == "é"
        with pytest.raises(AbiError, match="what is not UTF-8"):
            await trim.call(b"\xff")


@pytest.mark.parametrize(
    ("name", "abi", "value", "kind", "said"),
    [
        ("str", BufferAbi(), b"x", TypeError, "str takes a str, got b'x'"),
        ("str", BufferAbi(), "\ud800", ValueError, "str has no UTF-8 for '\\ud800'"),
        ("bytes", BufferAbi(), "x", TypeError, "bytes takes bytes or a buffer, got 'x'"),
        ("bytes", BufferAbi(), 5, TypeError, "bytes takes bytes or a buffer, got 5"),
        ("bytes", BufferAbi(), None, TypeError, "bytes takes bytes or a buffer, got None"),
        ("str", BufferAbi(argument="nul"), "a\0b", ValueError, "'a\\x00b' has a zero in it"),
        ("bytes", BufferAbi(argument="nul"), bytearray(1), ValueError, "has a zero in it"),
    ],
)
def test_values_that_do_not_fit_never_go_in(
    name: str, abi: BufferAbi, value: Any, kind: type[Exception], said: str
) -> None:
    """The error names argument, type and value, before the first step; `explain` says the same."""
    length = () if abi.argument == "nul" else ("i32",)
    exports = Exports({"run": FuncType(("i32", "i32", *length), ("i64",))}, {}, ("memory",))
    binding = abi.bind("f", "run", ("i32", name), ("i64",), exports, True)

    def never(invoke: Invoke) -> Any:
        raise AssertionError(invoke)

    with pytest.raises(kind) as caught:
        drive(binding, FakeGuest(), (1, value), never)
    text = str(caught.value)
    assert text.startswith("argument 2 of f: ")
    assert said in text
    assert str(binding.explain((1, value))) == text
    assert "takes 2 arguments (i32, " in str(binding.explain((1,)))
    assert "can't be passed" in str(binding.explain((1, "x" if name == "str" else b"x")))


def bind(
    abi: BufferAbi, kind: FuncType, returns: str = "bytes", **functions: FuncType
) -> Exception | None:
    exports = Exports({"run": kind, **functions}, {}, ("memory",))
    try:
        abi.bind("f", "run", ("bytes",), (returns,), exports, False)
    except (ExportError, SignatureError) as error:
        return error
    return None


def test_what_a_module_lacks_is_refused() -> None:
    """Allocators of a shape that is unknown, results whose form can't be seen, missing memory."""
    one, take = FuncType(("i32",), ("i32",)), FuncType(("i32", "i32"), ("i64",))
    for abi, kind, functions, said in (
        (BufferAbi(alloc="get"), take, {}, "exports no function 'get'"),
        (BufferAbi(alloc="get", free="put"), take, {"get": one}, "exports no function 'put'"),
        (BufferAbi(free="put"), take, {}, "without alloc"),
        (BufferAbi(alloc="get"), take, {"get": take}, "not how memory is allocated"),
        (BufferAbi(alloc="get", free="get"), take, {"get": one}, "not how memory is freed"),
        (BufferAbi(), FuncType(("i32", "i32"), ("i32",)), {}, "can't be seen; say it: abi=Buffer"),
        (BufferAbi(), FuncType(("i32", "i32"), ("f64",)), {}, r"[i32 i32] -> [f64]"),
    ):
        error = bind(abi, kind, **functions)
        assert error is not None
        assert said in str(error)
    with pytest.raises(ExportError, match="exports no memory"):
        BufferAbi().bind("f", "run", ("bytes",), (), Exports({"run": take}, {}, ()), False)
    exports = Exports({"run": take}, {}, ("memory",))
    with pytest.raises(SignatureError, match=r"unknown type 'text': did you mean str\?"):
        BufferAbi().bind("f", "run", ("text",), (), exports, False)
    with pytest.raises(SignatureError, match="only be the one result"):
        BufferAbi().bind("f", "run", (), ("bytes", "i32"), exports, False)


def test_options_that_do_not_exist_are_refused() -> None:
    """A convention that is misspelt is a ValueError when the ABI is made."""
    for options in ({"argument": "c"}, {"result": "c"}, {"arguments_of": "me"}, {"result_of": "x"}):
        with pytest.raises(ValueError, match="must be one of"):
            BufferAbi(**options)  # type: ignore[arg-type]


async def test_several_results_of_which_none_is_a_buffer() -> None:
    """Numbers come back as in the plain ABI: none, one or a tuple, checked against their type."""
    source = wat("""(module (memory (export "memory") 1)
        (func (export "both") (param i32 i32) (result i32 i32) (local.get 0) (local.get 1))
        (func (export "pair") (param i32 i32) (result i32 i32) (local.get 0) (local.get 1))
        (func (export "none") (param i32 i32))
        (func (export "size") (param i32 i32) (result i32) (local.get 1)))""")
    async with checked_cache() as cache:
        for name, returns, result in (
            ("both", ("u32", "u8"), (PAGE, 3)),
            ("pair", ("bytes",), b"abc"),
            ("none", (), None),
            ("size", "u8", 3),
        ):
            function = await cache.register(
                name, source, args=("bytes",), returns=returns, abi="buffer"
            )
            assert await function.call(b"abc") == result
        with pytest.raises(AbiError, match=r"size\(bytes\) returned 256, out of the range of u8"):
            await cache.functions()[-1].call(bytes(256))


async def test_without_an_allocator_pages_are_grown() -> None:
    """Two buffers and the place of the result fit into pages that are grown once."""
    source = wat("""(module (memory (export "memory") 1)
        (func (export "join") (param $out i32) (param $a i32) (param $n i32) (param $b i32)
            (param $m i32)
          (memory.copy (i32.const 64) (local.get $a) (local.get $n))
          (memory.copy (i32.add (i32.const 64) (local.get $n)) (local.get $b) (local.get $m))
          (i32.store (local.get $out) (i32.const 64))
          (i32.store offset=4 (local.get $out) (i32.add (local.get $n) (local.get $m)))))""")
    async with checked_cache() as cache:
        join = await cache.register(
            "join", source, args=("bytes", "bytes"), returns="bytes", abi="buffer"
        )
        async with join.acquire() as lease:
            for _ in range(10):
                assert await lease.call(b"abc", b"defgh") == b"abcdefgh"
                assert await lease.call(b"", b"") == b""
            assert lease.memory.size == 2 * PAGE
