# pyright: strict, reportUnusedFunction=false
"""Lines that type checkers must accept, and the types that they must see; nothing here runs."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_type

import numpy
import trio

import trio_wasmcache
from trio_wasmcache import (
    AbiError,
    BufferAbi,
    CacheConfig,
    ExitError,
    Exports,
    Function,
    FuncType,
    GuestError,
    HostFunction,
    InstanceCache,
    Lease,
    MiB,
    SchedulingGroup,
    ScyllaAbi,
    TrapError,
    current_lease,
    open_cache,
)
from trio_wasmcache._abi.base import Binding
from trio_wasmcache.aio import AsyncioCache
from trio_wasmcache.blocking import BlockingCache
from trio_wasmcache.testing import FakeEngine, open_fake_cache
from trio_wasmcache.udf import BatchUDF, WasmUDF

WASM = b""
NONE: Sequence[str] = ()


class OwnAbi:
    """An `Abi` of an application's own, whose types may have any names."""

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> Binding:
        """See `Abi.bind`."""
        raise NotImplementedError


async def results(cache: InstanceCache, text: str) -> None:
    """The result of a call has the Python type that `returns` names."""
    fib = await cache.register("fib", WASM, args=("i64",), returns="i64")
    assert_type(fib, Function[int])
    assert_type(await fib.call(10), int)
    assert_type(fib.acquire(), Lease[int])
    async with fib.acquire() as lease:
        assert_type(lease, Lease[int])
        assert_type(await lease.call(10), int)
        assert_type(lease.function, Function[int])
    for number in (
        await cache.register("a", WASM, args=NONE, returns="u8"),
        await cache.register("a", WASM, args=NONE, returns="i32", abi="plain"),
        await cache.register("a", WASM, args=NONE, returns="u64", abi="buffer"),
        await cache.register("a", WASM, args=NONE, returns="bigint"),
        await cache.register("a", WASM, args=NONE, returns="tinyint", abi=ScyllaAbi()),
    ):
        assert_type(number, Function[int])
    real = await cache.register("a", WASM, args=("f64",), returns="f64")
    assert_type(await real.call(0.5), float)
    assert_type(await cache.register("a", WASM, args=NONE, returns="double"), Function[float])
    assert_type(await cache.register("a", WASM, args=NONE, returns="bool"), Function[bool])
    assert_type(await cache.register("a", WASM, args=NONE, returns="boolean"), Function[bool])
    upper = await cache.register("a", WASM, args=("str",), returns="str", abi="buffer")
    assert_type(await upper.call("x"), str)
    packed = await cache.register(
        "a", WASM, args=("bytes",), returns="bytes", abi=BufferAbi(alloc="get")
    )
    assert_type(await packed.call(b"x"), bytes)
    assert_type(await cache.register("a", WASM, args=NONE), Function[None])
    assert_type(await cache.register("a", WASM, args=NONE, returns=None), Function[None])

    # CQL's are None where they may be null.
    nullable = await cache.register("a", WASM, args=NONE, returns="int", called_on_null=True)
    assert_type(nullable, Function[int | None])
    assert_type(await cache.register("a", WASM, args=NONE, returns="text"), Function[str | None])
    assert_type(await cache.register("a", WASM, args=NONE, returns="blob"), Function[bytes | None])
    assert_type(await cache.register("a", WASM, args=NONE, returns="varint"), Function[int | None])
    assert_type(
        await cache.register("a", WASM, args=NONE, returns="double", called_on_null=True),
        Function[float | None],
    )
    assert_type(
        await cache.register("a", WASM, args=NONE, returns="boolean", called_on_null=True),
        Function[bool | None],
    )

    # Whatever else it is, a checker does not know.
    assert_type(await cache.register("a", WASM, args=NONE, returns=text), Function[Any])
    assert_type(await cache.register("a", WASM, args=NONE, returns="list<int>"), Function[Any])
    assert_type(await cache.register("a", Path("a.wasm"), export="b:c/d#a"), Function[Any])
    assert_type(await cache.register("a", WASM, returns="s64"), Function[Any])
    plain = {"b:c/d": {"get": len}}
    assert_type(await cache.register("a", WASM, imports=plain), Function[Any])
    assert_type(await cache.register_component(WASM, imports=plain), tuple[Function[Any], ...])
    assert_type(await cache.register("a", WASM, args=NONE, returns=("i64", "f64")), Function[Any])
    assert_type(
        await cache.register("a", WASM, args=NONE, returns="i64", abi=OwnAbi()), Function[Any]
    )
    bare: Function = fib
    assert_type(await bare.call(10), Any)
    wider: Function[object] = fib
    either: Function[int | None] = fib
    some: list[Function[object]] = [wider, either, fib, upper]
    assert_type(some[0].name, str)
    assert_type(cache.functions(), tuple[Function[Any], ...])


async def parameters(cache: InstanceCache, path: Path) -> None:
    """All forms of all parameters."""
    await cache.register(
        "a",
        path,
        args=["i64"],
        returns="i64",
        export="b",
        abi="plain",
        called_on_null=False,
        imports={"env": {"now": HostFunction(lambda: 7, params=(), results=("i64",))}},
        concurrency=2,
        isolation="fresh",
        replace=True,
    )
    await cache.register("a", "(module)", args=(), isolation="reset", abi=OwnAbi())
    cache.remove("a")
    cache.resize(max_size=64 * MiB, idle_timeout=1, offload_after=None)
    await cache.warm("a", ("i64",), count=2)
    async with cache.acquire("a", ("i64",)) as lease:
        assert_type(lease, Lease[Any])
        await lease.map([[1, 2], 3], rows=2)
    CacheConfig(max_size=1, cache_dir=path, max_running_size=None)


def lines() -> None:
    """Tasks without arguments."""


async def no_arguments() -> None:
    """A task without arguments."""


async def worker(number: int, text: str = "") -> int:
    """A task with arguments."""
    return number + len(text)


async def server(port: int, *, task_status: trio.TaskStatus[str]) -> None:
    """A task that says when it is ready."""
    task_status.started(str(port))


async def old_server(
    port: int, host: str = "", task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """The same, with a `task_status` that may be positional."""
    task_status.started(port + len(host))


async def handler(stream: trio.SocketStream) -> None:
    """A handler of connections."""
    await stream.aclose()


async def tasks(group: SchedulingGroup) -> None:
    """Functions and their arguments."""
    group.start_soon(no_arguments)
    group.start_soon(worker, 7)
    group.start_soon(worker, 7, "text", name="worker 7")
    group.start_soon(functools.partial(worker, 7, text="text"))
    await group.start(server, 80)
    await group.start(old_server, 80)
    await group.start(old_server, 80, "host")
    await group.start(functools.partial(old_server, 80, host="host"))
    await group.start(trio.serve_tcp, handler, 80, name="server")
    assert_type(await group.start(server, 80), Any)
    lease: Lease[int] = group.acquire("a", ("i64",))
    assert_type(lease.fuel_consumed, int | None)


async def caches() -> None:
    """The ways to open one."""
    async with open_cache() as cache:
        assert_type(cache, InstanceCache)
        async with cache.scheduling_group("g", capacity=2) as group:
            assert_type(group, SchedulingGroup)
    async with trio_wasmcache.open_cache(CacheConfig(), logger=None) as cache:
        assert_type(cache.stats().hits, int)
    async with open_fake_cache(engine=FakeEngine()) as cache:
        assert_type(cache, InstanceCache)


def errors(error: GuestError) -> None:
    """Errors, made and read."""
    assert_type(error.row, int | None)
    assert_type(error.values, tuple[object, ...])
    assert_type(TrapError("m").code, str)
    assert_type(ExitError("m", status=3).status, int)
    assert_type(AbiError("m", row=3).backtrace, tuple[str, ...])
    assert_type(FuncType(("i64",), ()).params, tuple[str, ...])
    memory = current_lease().memory
    memory.write(0, b"")
    memory.write(0, memoryview(b""))
    memory.write(0, array("q"))
    memory.write(0, numpy.zeros(3))


async def outside(threads: BlockingCache, loop: AsyncioCache) -> None:
    """The same in the faces for threads and for asyncio; and columns of any kind."""
    fib = threads.register("fib", WASM, args=("i64",), returns="i64", timeout=1.0)
    assert_type(fib.call(10), int)
    assert_type(threads.call(fib, 10), int)
    awaited = await loop.register("upper", WASM, args=("str",), returns="str", abi="buffer")
    assert_type(await awaited.call("a"), str)
    assert_type(threads.register("a", WASM, args=NONE).call(), None)
    add = WasmUDF("add", WASM, args=("i64", "i64"), returns="i64", on_error="null")
    assert_type(add.on("a", "b", into="c", error="why"), BatchUDF)
