# pyright: basic, reportUnnecessaryComparison=true
"""Lines that type checkers must refuse, each with its error: of mypy, and of pyright.

A line without a comment must have no error. Nothing here runs.
"""

from __future__ import annotations

import trio

import trio_wasmcache
from trio_wasmcache import (
    CacheConfig,
    Function,
    HostFunction,
    InstanceCache,
    Lease,
    SchedulingGroup,
    TrapError,
    Wasi,
)
from trio_wasmcache.aio import AsyncioCache
from trio_wasmcache.blocking import BlockingCache
from trio_wasmcache.udf import WasmUDF

print(trio_wasmcache.open_cach)  # attr-defined, reportAttributeAccessIssue
trio_wasmcache.open_cache(CacheConfig(), loger=None)  # call-arg, reportCallIssue
trio_wasmcache.open_cache(max_size=7)  # call-arg, reportCallIssue
CacheConfig(max_sise=1)  # call-arg, reportCallIssue
CacheConfig(max_size="1")  # arg-type, reportArgumentType
CacheConfig(log_uses="yes")  # arg-type, reportArgumentType
CacheConfig(10)  # call-arg, reportCallIssue
HostFunction(7)  # arg-type, reportArgumentType
HostFunction(print, params=(int,))  # arg-type, reportArgumentType
Wasi(args=(1,))  # arg-type, reportArgumentType
Wasi(env=3)  # arg-type, reportArgumentType
Wasi(stdin="text")  # arg-type, reportArgumentType
Wasi(stdout="file")  # arg-type, reportArgumentType
Wasi(clock="now")  # arg-type, reportArgumentType


def importing() -> None:
    from trio_wasmcache import open_cach  # attr-defined, reportAttributeAccessIssue
    from trio_wasmcache.prometheus import CacheColector  # attr-defined, reportAttributeAccessIssue
    from trio_wasmcache.testing import FakeEngin  # attr-defined, reportAttributeAccessIssue

    print(open_cach, CacheColector, FakeEngin)


async def registering(cache: InstanceCache) -> None:
    register = cache.register
    await register("a", b"", abi="plain")  # call-overload, reportCallIssue
    await register("a", b"", args=(1,))  # arg-type, reportCallIssue
    await register("a", b"", args=(), returns=1)  # call-overload, reportCallIssue
    await register("a", b"", args=(), isolation="frehs")  # call-overload, reportCallIssue
    await register("a", b"", args=(), missing="drop")  # call-overload, reportCallIssue
    await register("a", b"", args=(), isolation=None)  # call-overload, reportCallIssue
    await register("a", b"", args=(), abi="bufer")  # call-overload, reportCallIssue
    await register("a", b"", args=(), abi=7)  # call-overload, reportCallIssue
    await register("a", b"", args=(), concurency=2)  # call-overload, reportCallIssue
    await register("a", b"", args=(), concurrency="2")  # call-overload, reportCallIssue
    await register("a", b"", args=(), imports={"a": {"b": print}})  # dict-item, reportCallIssue
    await register("a", 7, args=())  # call-overload, reportCallIssue
    await register("a", b"", ("i64",))  # call-overload, reportCallIssue


async def using(cache: InstanceCache) -> None:
    fib = await cache.register("fib", b"", args=("i64",), returns="i64")
    text: str = await fib.call(1)  # assignment, reportAssignmentType
    other: Function[str] = fib  # assignment, reportAssignmentType
    another: Lease[str] = fib.acquire()  # assignment, reportAssignmentType
    async with fib.acquire() as lease:
        lease.memory.write(0, "abc")  # arg-type, reportArgumentType
        lease.memory.write(0, [1])  # arg-type, reportArgumentType
        text = await lease.call(1)  # assignment, reportAssignmentType
        print(lease.call(1) + 1)  # operator, reportOperatorIssue
    nothing = await cache.register("a", b"", args=())
    print(await nothing.call() + 1)  # operator, reportOperatorIssue
    upper = await cache.register("a", b"", args=("text",), returns="text")
    print((await upper.call("a")).lower())  # union-attr, reportOptionalMemberAccess
    async with fib:  # attr-defined, reportGeneralTypeIssues
        pass
    with cache.acquire("a", ("i64",)):  # attr-defined, reportGeneralTypeIssues
        pass
    async with cache as it:  # attr-defined, reportGeneralTypeIssues
        print(it)
    print(fib.isolation == "frehs")  # comparison-overlap, reportUnnecessaryComparison
    fib.name = "a"  # misc, reportAttributeAccessIssue
    await cache.warm("a", ("i64",), "2")  # arg-type, reportArgumentType
    cache.config.max_size = 7  # misc, reportAttributeAccessIssue
    print(cache.stats().hitz)  # attr-defined, reportAttributeAccessIssue
    print(text, other, another)


def resizing(cache: InstanceCache) -> None:
    cache.resize(max_sise=1)  # call-arg, reportCallIssue
    cache.resize(max_size="1")  # arg-type, reportArgumentType
    cache.resize(idle_timeout=None)  # arg-type, reportArgumentType
    cache.resize(stack_size=1)  # call-arg, reportCallIssue
    cache.resize(CacheConfig())  # call-arg, reportCallIssue


async def worker(number: int, text: str) -> None:
    """A task."""


async def server(port: int, *, task_status: trio.TaskStatus[str]) -> None:
    """A task that says when it is ready."""


async def old_server(
    port: int, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """The same, with a `task_status` that may be positional."""


def no_task() -> None:
    """A function that is not async."""


async def starting(group: SchedulingGroup) -> None:
    group.start_soon(worker, "7", "text")  # arg-type, reportArgumentType
    group.start_soon(worker, 7)  # arg-type, reportArgumentType
    group.start_soon(worker, 7, "text", 8)  # arg-type, reportArgumentType
    group.start_soon(worker, 7, text="text")  # call-arg, reportCallIssue
    group.start_soon(worker(7, "text"))  # arg-type, reportArgumentType
    group.start_soon(no_task)  # arg-type, reportArgumentType
    group.start_soon(server, 80)  # arg-type, reportArgumentType
    await group.start(worker, 7, "text")  # arg-type, reportCallIssue
    await group.start(server, "80")  # arg-type, reportCallIssue
    await group.start(server)  # arg-type, reportCallIssue
    await group.start(server, 80, 81)  # arg-type, reportCallIssue
    await group.start(old_server, "80")  # arg-type, reportCallIssue
    await group.start(no_task)  # arg-type, reportCallIssue


def failing() -> None:
    TrapError()  # call-arg, reportCallIssue
    TrapError("m", cod="unreachable")  # call-arg, reportCallIssue
    print(TrapError("m").status)  # attr-defined, reportAttributeAccessIssue


async def outside(threads: BlockingCache, loop: AsyncioCache) -> None:
    """The faces for threads and for asyncio."""
    threads.register("a", b"", args=(), isolation="frehs")  # call-overload, reportCallIssue
    await loop.register("a", b"", args=(), concurency=2)  # call-overload, reportCallIssue
    number = threads.register("a", b"", args=(), returns="i64")
    word: str = number.call()  # assignment, reportAssignmentType
    WasmUDF("a", b"", args=(), returns="i64", on_error="drop")  # arg-type, reportArgumentType
    print(word)
