"""The Scylla ABI with UDFs built from C and Rust, in both of its versions."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from abi.support import PAGE, VERSIONS, udf
from engine.support import quiet_cache, wat

from trio_wasmcache import (
    AbiError,
    FuelExhaustedError,
    Function,
    InstanceCache,
    MemoryLimitError,
    ScyllaAbi,
    SignatureError,
    TrapError,
)
from trio_wasmcache.testing import check_invariants

ADDRESS = ScyllaAbi(user_types={"address": {"street": "text", "zip": "int"}})


@pytest.fixture(params=VERSIONS, ids=["v1", "v2"])
def wasm(request: pytest.FixtureRequest) -> bytes:
    """The UDFs, built for one version of the ABI, then the other."""
    return udf(f"scylla_v{request.param}")


@asynccontextmanager
async def checked_cache(**limits: Any) -> AsyncIterator[InstanceCache]:
    async with quiet_cache(**limits) as cache:
        yield cache
        check_invariants(cache)


async def add(
    cache: InstanceCache, wasm: bytes, name: str, *args: str, returns: str, **more: Any
) -> Function:
    return await cache.register(name, wasm, args=args, returns=returns, **more)


def packed(size: int, at: int) -> int:
    """What a guest returns for a value, as a signed bigint."""
    whole = (size & 0xFFFFFFFF) << 32 | at
    return whole - (1 << 64) if whole >> 63 else whole


async def test_a_module_is_recognised_by_its_global(wasm: bytes) -> None:
    """What exports `_scylla_abi` is for ScyllaDB, unless another ABI is asked for."""
    async with checked_cache() as cache:
        join = await add(cache, wasm, "join", "text", "text", returns="text")
        assert await join.call("ab", "c") == "abc"
        with pytest.raises(SignatureError, match="'i64' is no CQL type"):
            await add(cache, wasm, "fib", "i64", returns="i64")
        fib = await add(cache, wasm, "fib", "i32", returns="i64", abi="plain")
        assert await fib.call(10) == 55


async def test_texts_go_in_and_out(wasm: bytes) -> None:
    """Empty ones, long ones and any letters; types are spelt in any way."""
    async with checked_cache() as cache:
        join = await add(cache, wasm, "join", " Text ", "TEXT", returns="text", abi="scylla")
        async with join.acquire() as lease:
            for left, right in (
                ("", ""),
                ("", "x"),
                ("x", ""),
                ("aé€", "\U0001f600"),
                ("a\0", "b"),
            ):
                assert await lease.call(left, right) == left + right
            assert await lease.call("x" * 50_000, "y" * 10_000) == "x" * 50_000 + "y" * 10_000
            assert await lease.call(None, "x") is None


async def test_native_types_cross_beside_others(wasm: bytes) -> None:
    """A text goes through memory, an int beside it, and the int that comes back, does not."""
    async with checked_cache() as cache:
        count = await add(cache, wasm, "count", "text", "int", returns="int")
        assert await count.call("banana", ord("a")) == 3
        assert await count.call("", 0) == 0
        with pytest.raises(TypeError, match=r"argument 2 of count\(text, int\): int takes an int"):
            await count.call("banana", "a")


async def test_called_on_null_makes_all_types_cross_through_memory(wasm: bytes) -> None:
    """Then null is a value like any other, for arguments and for the result."""
    async with checked_cache() as cache:
        plus = await add(cache, wasm, "plus", "int", "int", returns="int", called_on_null=True)
        async with plus.acquire() as lease:
            assert await lease.call(40, 2) == 42
            assert await lease.call(None, 2) == 2
            assert await lease.call(-3, None) == -3
            assert await lease.call(None, None) is None
        with pytest.raises(SignatureError):
            await add(cache, wasm, "fib", "int", returns="bigint", called_on_null=True)


async def test_results_that_are_too_wide_are_cut(wasm: bytes) -> None:
    """Of what a guest returns for a small type, the low bits count, as in ScyllaDB."""
    async with checked_cache() as cache:
        for returns, value, result in (
            ("tinyint", 300, 44),
            ("tinyint", 128, -128),
            ("tinyint", -1, -1),
            ("smallint", 65536 + 7, 7),
            ("smallint", -40000, 25536),
            ("boolean", 2, True),
            ("boolean", 0, False),
            ("int", -(2**31), -(2**31)),
        ):
            wide = await add(cache, wasm, "wide", "int", returns=returns, replace=True)
            found = await wide.call(value)
            assert (type(found), found) == (type(result), result)


async def test_native_signatures_need_no_version() -> None:
    """Where nothing crosses through memory, `_scylla_abi` may lead nowhere, or be missing."""
    far = '(global (export "_scylla_abi") i32 (i32.const -4))'
    body = '(func (export "f") (param f32) (result f64) (f64.promote_f32 (local.get 0)))'
    async with checked_cache() as cache:
        for source in (f"(module {far} {body})", f"(module {body})"):
            half = await cache.register(
                "f", wat(source), args=("float",), returns="double", abi="scylla", replace=True
            )
            assert await half.call(0.5) == 0.5
            assert math.isnan(await half.call(math.nan))


@pytest.mark.parametrize(
    ("where", "version", "said"),
    [
        (-4, 1, "4 bytes at address 4294967292, which are not inside its memory of 65536"),
        (65533, 1, "4 bytes at address 65533, which are not inside"),
        (8, 0, r"is 0 \(at address 8\); versions are 1 and 2"),
        (8, 3, r"is 3 \(at address 8\)"),
        (8, 2, "_scylla_malloc is missing"),
    ],
)
async def test_a_version_that_can_not_be_is_an_error(where: int, version: int, said: str) -> None:
    """The version is read when a value crosses through memory, and not believed unseen."""
    source = wat(f"""(module (memory (export "memory") 1)
        (global (export "_scylla_abi") i32 (i32.const {where}))
        (data (i32.const 8) "\\0{version}\\00\\00\\00")
        (func (export "f") (param i64) (result i64) (local.get 0)))""")
    async with checked_cache() as cache:
        function = await cache.register("f", source, args=("text",), returns="text")
        with pytest.raises(AbiError, match=said):
            await function.call("x")
        assert cache.stats().evictions["corrupted"] == 1


async def test_an_allocator_of_another_shape_is_refused() -> None:
    """Version 2 wants `_scylla_malloc` and `_scylla_free` with the types that they have."""
    source = wat("""(module (memory (export "memory") 1)
        (global (export "_scylla_abi") i32 (i32.const 8))
        (data (i32.const 8) "\\02\\00\\00\\00")
        (func (export "_scylla_malloc") (param i64) (result i32) (i32.const 64))
        (func (export "_scylla_free") (param i32))
        (func (export "f") (param i64) (result i64) (local.get 0)))""")
    async with checked_cache() as cache:
        function = await cache.register("f", source, args=("text",), returns="text")
        with pytest.raises(AbiError, match=r"its _scylla_malloc is \[i64\] -> \[i32\]"):
            await function.call("x")


async def test_memory_does_not_creep(wasm: bytes) -> None:
    """A thousand calls later an instance is no larger, whatever the sizes were in between."""
    async with checked_cache() as cache:
        echo = await add(cache, wasm, "echo", "blob", returns="blob")
        async with echo.acquire() as lease:
            await lease.call(bytes(100_000))
            before = lease.size
            for number in range(1000):
                data = bytes(number * 100)
                assert await lease.call(data) == data
            assert lease.size == before


async def test_nothing_stays_allocated() -> None:
    """In version 2 the guest frees its arguments, the host results; nothing is left."""
    async with checked_cache() as cache:
        wasm = udf("scylla_v2")
        left = await add(cache, wasm, "left", "text", returns="int")
        async with left.acquire() as lease:
            assert [await lease.call("x" * n) for n in range(50)] == [0] * 50


async def test_room_is_found_again_after_the_guest_grew() -> None:
    """In version 1, pages that the guest grew lie behind ours; ours are used on all the same."""
    async with checked_cache() as cache:
        grow = await add(cache, udf("scylla_v1"), "grow", "text", returns="int")
        async with grow.acquire() as lease:
            first = await lease.call("x" * PAGE)
            pages = [await lease.call("x" * PAGE) for _ in range(20)]
            assert pages == [first + n + 1 for n in range(20)]
            # More than was there: ours can't be added to, so there are new ones.
            assert await lease.call("x" * (PAGE + 1)) == first + 21 + 2
            assert await lease.call("x" * (PAGE + 1)) == first + 21 + 3


LIES = [
    (packed(4, 2**32 - 2), "returned 4 bytes at address 4294967294, which are not inside"),
    (packed(2**31 - 1, 0), "returned 2147483647 bytes at address 0"),
    (packed(-2, 64), "returned -2 bytes at address 64"),
    (packed(-(2**31), 64), "returned -2147483648 bytes"),
    (packed(0, 2**32 - 1), "returned 0 bytes at address 4294967295"),
]


@pytest.mark.parametrize(("claim", "said"), LIES)
async def test_lies_about_addresses_and_sizes_are_found_out(
    wasm: bytes, claim: int, said: str
) -> None:
    """What leads out of memory is an AbiError and costs the instance; the next call is fine."""
    async with checked_cache() as cache:
        lie = await add(cache, wasm, "lie_of_text", "text", "bigint", returns="text")
        with pytest.raises(AbiError, match=r"lie_of_text\(text, bigint\) called with") as caught:
            await lie.call("t", claim)
        assert said in str(caught.value)
        assert cache.stats().evictions["corrupted"] == 1
        assert await lie.call("t", packed(-1, 0)) is None
        # Without arguments through memory there is still a result to check.
        lie = await add(cache, wasm, "lie", "bigint", returns="text")
        with pytest.raises(AbiError, match="returned"):
            await lie.call(claim)


async def test_a_text_that_is_none_is_found_out(wasm: bytes) -> None:
    """Bytes that are no UTF-8, declared as text, are an AbiError."""
    async with checked_cache() as cache:
        echo = await add(cache, wasm, "echo", "blob", returns="text")
        assert await echo.call("é".encode()) == "é"
        with pytest.raises(AbiError, match="returned no text: text that can't be: 'utf-8' codec"):
            await echo.call(b"\xff")
        assert await echo.call(b"ok") == "ok"


@pytest.mark.parametrize(
    ("size", "error", "said"),
    [
        (1013, TrapError, "unreachable"),
        (1019, MemoryLimitError, r"_scylla_malloc\(1019\) of the module returned 0"),
        (1021, AbiError, r"_scylla_malloc\(1021\) returned the address 4294967280"),
        (1031, FuelExhaustedError, "fuel"),
    ],
)
async def test_an_allocator_that_fails_costs_the_instance(
    size: int, error: type[Exception], said: str
) -> None:
    """A trap, no room, an address out of memory, no end: each ends the call, and only it."""
    async with checked_cache(total_fuel=2_000_000) as cache:
        echo = await add(cache, udf("scylla_v2"), "echo", "blob", returns="blob")
        async with echo.acquire() as lease:
            with pytest.raises(error, match=said):
                await lease.call(bytes(size))
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(b"x")
        assert cache.stats().evictions["corrupted"] == 1
        assert await echo.call(b"x") == b"x"


async def test_a_trap_while_freeing_costs_the_instance() -> None:
    """The result was there, but nobody knows what state the guest is in."""
    async with checked_cache() as cache:
        poisoned = await add(cache, udf("scylla_v2"), "poisoned", "text", returns="blob")
        with pytest.raises(TrapError):
            await poisoned.call("x")
        assert cache.stats().evictions["corrupted"] == 1


async def test_an_endless_allocator_can_be_cancelled() -> None:
    """A call can be cut off in any of its steps."""
    async with checked_cache(offload_after=None) as cache:
        echo = await add(cache, udf("scylla_v2"), "echo", "blob", returns="blob")
        async with echo.acquire() as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lease.call, bytes(1031))
                while not cache.stats().calls and not lease.fuel_consumed:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            with pytest.raises(trio.BrokenResourceError):
                await lease.call(b"x")
        assert await echo.call(b"x") == b"x"


async def test_fuel_is_for_all_steps_together() -> None:
    """What malloc, the function, free and the result cost is one sum, under one limit."""
    async with checked_cache() as cache:
        join = await add(cache, udf("scylla_v2"), "join", "text", "text", returns="text")
        async with join.acquire() as lease:
            await lease.call("a" * 1000, "b" * 1000)
            whole = lease.fuel_consumed
        assert whole is not None
    async with checked_cache(total_fuel=whole) as cache:
        join = await add(cache, udf("scylla_v2"), "join", "text", "text", returns="text")
        assert len(await join.call("a" * 1000, "b" * 1000)) == 2000
    async with checked_cache(total_fuel=whole - 1) as cache:
        join = await add(cache, udf("scylla_v2"), "join", "text", "text", returns="text")
        with pytest.raises(FuelExhaustedError):
            await join.call("a" * 1000, "b" * 1000)


async def test_arguments_over_the_memory_limit(wasm: bytes) -> None:
    """What has no room in the guest is a MemoryLimitError, and the next call finds its own."""
    async with checked_cache(memory_limit=8 * PAGE) as cache:
        echo = await add(cache, wasm, "echo", "blob", returns="blob")
        with pytest.raises(MemoryLimitError):
            await echo.call(bytes(9 * PAGE))
        assert await echo.call(bytes(PAGE)) == bytes(PAGE)


async def test_values_that_do_not_fit_cost_nothing(wasm: bytes) -> None:
    """They are refused before any wasm runs, and the lease goes on."""
    async with checked_cache() as cache:
        echo = await add(cache, wasm, "echo", "list<int>", returns="list<int>")
        async with echo.acquire() as lease:
            for bad, kind in (([1, 2**31], OverflowError), ("12", TypeError), ([b""], TypeError)):
                with pytest.raises(kind, match=r"argument 1 of echo\(list<int>\)"):
                    await lease.call(bad)
            with pytest.raises(TypeError, match="takes 1 argument "):
                await lease.call([1], [2])
            assert not lease.fuel_consumed
            assert await lease.call([1, None]) == [1, None]
        assert cache.stats().evictions["corrupted"] == 0


async def test_user_types(wasm: bytes) -> None:
    """Declared on the ABI object, they go in as mappings or tuples and come out as named tuples."""
    async with checked_cache() as cache:
        echo = await add(
            cache, wasm, "echo", "list<frozen<address>>", returns="list<address>", abi=ADDRESS
        )
        (home,) = await echo.call([{"street": "Main", "zip": 5}])
        assert (home.street, home.zip) == ("Main", 5)
        assert await echo.call([home, ("x", None)]) == [home, ("x", None)]


async def test_several_arguments_do_not_overlap(wasm: bytes) -> None:
    """Each argument has room of its own, the empty and the null ones included."""
    async with checked_cache() as cache:
        second = await add(
            cache, wasm, "second", "blob", "blob", returns="blob", called_on_null=True
        )
        for first in (b"", b"x" * 17, None, b"y" * PAGE):
            for value in (b"", b"z" * 31, None, b"w" * PAGE):
                assert await second.call(first, value) == value


async def test_a_udf_in_rust() -> None:
    """Rust's own strings, in version 2: what the guest frees and the host frees is one heap."""
    async with checked_cache() as cache:
        title = await add(cache, udf("title"), "title", "text", returns="text")
        async with title.acquire() as lease:
            assert await lease.call("grüße aus élan-vital") == "Grüße Aus Élan-Vital"
            assert await lease.call("") == ""
            assert await lease.call("ß") == "SS"
            before = lease.size
            for _ in range(200):
                await lease.call("some words " * 100)
            assert lease.size == before
