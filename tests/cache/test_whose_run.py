"""Semantics 26: a cache is used in its own Trio run, and not in the middle of a step of its own.

Everything public is tried from another thread, from another run, from none, and, as a signal
handler or a finalizer would, at every line that the library executes. It refuses and has changed
nothing, or it is right.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import math
import os
import sys
import types
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from guests import binary
from kits import ListLogger, nightly

import trio_wasmcache
from trio_wasmcache import (
    CacheConfig,
    HostFunction,
    InstanceCache,
    Lease,
    SchedulingGroup,
    _owner,
    current_group,
    current_lease,
    open_cache,
)
from trio_wasmcache._log import ThreadedLogWriter
from trio_wasmcache.prometheus import CacheCollector
from trio_wasmcache.testing import check_invariants

ADD_ONE = '(func (export "run") (param i64) (result i64) (i64.add (local.get 0) (i64.const 1)))'
WASM = binary(f'(memory (export "memory") 1) {ADD_ONE}')
NIGHTLY = nightly()
PACKAGE = str(Path(trio_wasmcache.__file__).parent) + os.sep
I64 = ("i64",)


ADD_ONE = '(func (export "run") (param i64) (result i64) (i64.add (local.get 0) (i64.const 1)))'


class Parts:
    """A cache with all that it gives out."""

    def __init__(self, cache: InstanceCache, group: SchedulingGroup, lease: Lease) -> None:
        self.cache, self.group, self.lease = cache, group, lease
        self.function = cache.functions()[0]
        self.other = group.acquire("run", I64)
        self.collector = CacheCollector(cache)


async def nothing() -> None:
    pass


# {what: how}; awaitables are awaited.
CHANGES: dict[str, Callable[[Parts], Any]] = {
    "register": lambda p: p.cache.register("new", WASM, args=I64, returns="i64"),
    "remove": lambda p: p.cache.remove("spare"),
    "warm": lambda p: p.cache.warm("run", I64),
    "scheduling_group": lambda p: p.cache.scheduling_group("new", capacity=1).__aenter__(),
    "resize": lambda p: p.cache.resize(max_size=0),
    "pop_stats": lambda p: p.cache.pop_stats(),
    "resident_bytes": lambda p: p.cache.resident_bytes(),
    "limiter": lambda p: p.group.limiter,
    "start_soon": lambda p: p.group.start_soon(nothing),
    "start": lambda p: p.group.start(nothing),
}
READS: dict[str, Callable[[Parts], Any]] = {
    "functions": lambda p: p.cache.functions(),
    "stats": lambda p: p.cache.stats(),
    "entries": lambda p: p.cache.entries(),
    "check_invariants": lambda p: check_invariants(p.cache),
}
OF_LEASES: dict[str, Callable[[Parts], Any]] = {
    "enter": lambda p: p.other.__aenter__(),
    "exit": lambda p: p.lease.__aexit__(None, None, None),
    "call": lambda p: p.lease.call(1),
    "map": lambda p: p.lease.map([[1, 2]]),
    "Function.call": lambda p: p.function.call(1),
    "size": lambda p: p.lease.size,
    "memory.size": lambda p: p.lease.memory.size,
    "memory.read": lambda p: p.lease.memory.read(0, 1),
    "memory.write": lambda p: p.lease.memory.write(0, b"x"),
}
SYNC = {*READS, "remove", "resize", "pop_stats", "limiter", "start_soon", "size"} | {
    name for name in OF_LEASES if name.startswith("memory")
}
# These are right anywhere, also at a line at which the books are half-way.
ANYWHERE: dict[str, Callable[[Parts], Any]] = {
    "repr": lambda p: repr((p.cache, p.group, p.lease, p.other, p.function)),
    "config": lambda p: p.cache.config,
    "acquire": lambda p: p.cache.acquire("run", I64),
    "group.acquire": lambda p: p.group.acquire("run", I64),
    "Function.acquire": lambda p: p.function.acquire(),
    "fuel": lambda p: (p.lease.fuel_consumed, p.lease.function),
    "group": lambda p: (p.group.name, p.group.shares, p.group.cancel_scope, current_group()),
}


def drive(result: Any) -> Any:
    """What is awaited is begun by hand: nothing here could go on with it."""
    if isinstance(result, Lease) or not isinstance(result, Awaitable):
        return result  # to await a lease is refused everywhere
    step = result.__await__()
    try:
        return step.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        step.close()  # type: ignore[attr-defined]


PLAIN = (str, int, float, bytes, bool, type(None))


@functools.cache
def slots_of(kind: type) -> tuple[str, ...]:
    """Names of the slots of a type."""
    names = (name for one in kind.__mro__ for name in getattr(one, "__slots__", ()))
    return tuple(name for name in names if name != "__weakref__")


@functools.cache
def is_ours(kind: type) -> bool:
    """Whether a type is the library's."""
    return kind.__module__.startswith("trio_wasmcache")


def books(p: Parts) -> list[Any]:
    """All that a cache knows, object by object: the same list means that nothing has changed."""
    found: list[Any] = []
    seen: set[int] = set()
    absent = object()
    todo: list[Any] = [p.cache, p.group, p.lease, p.other]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        parts: list[Any] = []
        if isinstance(one, dict):
            parts = [part for pair in one.items() for part in pair]
        elif isinstance(one, (list, tuple, set, frozenset)):
            parts = list(one)
        elif isinstance(one, ThreadedLogWriter):
            continue  # its thread is at work
        elif is_ours(type(one)):
            values = (getattr(one, name, absent) for name in slots_of(type(one)))
            parts = [value for value in values if value is not absent]
            parts += [part for pair in getattr(one, "__dict__", {}).items() for part in pair]
        others = [part for part in parts if not isinstance(part, PLAIN)]
        found.append((id(one), [part for part in parts if isinstance(part, PLAIN)]))
        found.append([id(part) for part in others])
        todo += others
    return found


async def with_parts(
    test: Callable[[Parts], Awaitable[Any]], config: CacheConfig | None = None
) -> None:
    """Run a test on a cache that has something of everything, and evicts nothing meanwhile."""
    config = config or CacheConfig(idle_timeout=math.inf)
    async with open_cache(config, logger=ListLogger()) as cache:
        for name in ("run", "spare"):
            await cache.register(name, WASM, args=I64, returns="i64", export="run", concurrency=2)
            async with cache.acquire(name, I64) as lease:
                assert await lease.call(1) == 2
        async with cache.scheduling_group("oltp", capacity=3) as group:
            async with group.acquire("run", I64) as lease:
                assert await lease.call(1) == 2
                parts = Parts(cache, group, lease)
                await test(parts)
                check_invariants(cache)
                assert await lease.call(1) == 2
            async with parts.other as lease:
                assert await lease.call(1) == 2
        check_invariants(cache)


@pytest.mark.parametrize("runs", [False, True], ids=["thread", "run"])
async def test_another_thread_and_another_run_are_refused(runs: bool) -> None:
    """The message names the way; the books are as they were."""

    async def test(p: Parts) -> None:
        for what, how in {**CHANGES, **READS, **OF_LEASES}.items():
            before = books(p)
            with pytest.raises(RuntimeError, match=r"Trio run that opened the cache.*token") as e:
                await elsewhere(p, how)
            assert books(p) == before, what
            way = "from_thread.run_sync(" if what in SYNC else "from_thread.run("
            assert way in str(e.value), what
        for how in ANYWHERE.values():
            await elsewhere(p, how)

    async def elsewhere(p: Parts, how: Callable[[Parts], Any]) -> None:
        async def main() -> None:
            result = how(p)
            if isinstance(result, Awaitable) and not isinstance(result, Lease):
                await result

        if runs:
            await trio.to_thread.run_sync(trio.run, main)
        else:
            await trio.to_thread.run_sync(lambda: drive(how(p)))

    await with_parts(test)


async def test_the_way_that_the_message_names_works() -> None:
    """From a thread, and from a thread of another run."""

    async def test(p: Parts) -> None:
        token = trio.lowlevel.current_trio_token()

        def use() -> int:
            trio.from_thread.run(p.function.call, 1, trio_token=token)
            stats = trio.from_thread.run_sync(p.cache.stats, trio_token=token)
            return stats.calls

        async def main() -> int:
            return await trio.to_thread.run_sync(use)

        before = p.cache.stats().calls
        assert await trio.to_thread.run_sync(use) == before + 1
        assert await trio.to_thread.run_sync(trio.run, main) == before + 2
        token.run_sync_soon(p.cache.resize)
        await trio.testing.wait_all_tasks_blocked()

    await with_parts(test)


async def test_outside_of_all_tasks_nothing_changes() -> None:
    """In the loop itself, between two tasks, where a signal handler may come, reading is right."""

    async def test(p: Parts) -> None:
        class Between(trio.abc.Instrument):
            def before_io_wait(self, timeout: float) -> None:
                if results:
                    return
                before = books(p)
                for what, how in CHANGES.items():
                    with pytest.raises(RuntimeError, match="no task of it is running here"):
                        drive(how(p))
                    assert books(p) == before, what
                with pytest.raises(RuntimeError, match="no task of it is running here"):
                    drive(p.other.__aenter__())
                assert books(p) == before
                results.extend(how(p) for how in READS.values())

        results: list[Any] = []
        trio.lowlevel.add_instrument(Between())
        while not results:
            await trio.lowlevel.checkpoint()

    await with_parts(test)


def test_a_closed_cache_can_be_read_anywhere() -> None:
    """Nobody changes its books any more: after the run, in any thread, and by a collector."""
    parts = []

    async def main() -> None:
        async def test(p: Parts) -> None:
            parts.append(p)

        await with_parts(test)

    trio.run(main)
    (p,) = parts
    for how in {**READS, **ANYWHERE}.values():
        how(p)
    assert list(p.collector.collect())
    assert p.cache.stats().idle_instances == 0
    for how in CHANGES.values():
        with pytest.raises((RuntimeError, trio.ClosedResourceError)):
            drive(how(p))


def test_asyncio_is_told_how_to_run_trio() -> None:
    """And so is a program with no loop at all."""

    async def main() -> None:
        with pytest.raises(
            RuntimeError, match=r"under Trio.*trio\.run.*anyio.*Hypercorn.*wasmcache\.aio"
        ):
            async with open_cache():
                raise AssertionError

    asyncio.run(main())
    with pytest.raises(RuntimeError, match="runs under Trio"):
        drive(open_cache().__aenter__())


async def test_a_collector_is_made_in_the_run_of_its_cache() -> None:
    """It would ask the wrong run for the numbers."""

    async def test(p: Parts) -> None:
        async def main() -> None:
            with pytest.raises(RuntimeError, match="another Trio run"):
                CacheCollector(p.cache)

        await trio.to_thread.run_sync(trio.run, main)
        assert list(await trio.to_thread.run_sync(p.collector.collect))

    await with_parts(test)


async def test_host_functions_and_tasks_of_groups_may_do_all_of_it() -> None:
    """They are called by the library, but not in the middle of a step."""
    done = []

    def use(p: Parts) -> None:
        for how in (*READS.values(), *ANYWHERE.values()):
            how(p)
        p.cache.resize(idle_timeout=60.0)
        p.cache.pop_stats()
        p.group.start_soon(nothing)
        assert p.group.limiter.total_tokens == 3
        done.append(p)

    async def host(value: int) -> int:
        use(parts[0])
        async with current_lease().function.acquire():
            pass
        return value

    async def task(p: Parts, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        use(p)
        task_status.started()

    async def test(p: Parts) -> None:
        parts.append(p)
        asking = '(import "env" "ask" (func $ask (param i64) (result i64)))'
        run = '(func (export "ask") (param i64) (result i64) (call $ask (local.get 0)))'
        imports = {"env": {"ask": HostFunction(host, ("i64",), ("i64",))}}
        ask = await p.cache.register(
            "ask", binary(asking + run), args=I64, returns="i64", imports=imports, concurrency=2
        )
        assert await ask.call(5) == 5
        p.group.start_soon(task, p)
        await p.group.start(task, p)
        p.group.start_soon(p.cache.warm, "run", I64)
        await p.group.start(task, p)

    parts: list[Parts] = []
    await with_parts(test)
    assert len(done) == 4


# Files whose functions change no books.
NOTHING_UNDER_WAY = ("testing.py", "_owner.py", "_ki.py")


class AtEveryLine:
    """Does something when a line of the library is about to be executed, as a handler might.

    Once for each line.
    """

    TIMES = 1

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._seen = Counter[tuple[types.CodeType, int, str]]()
        self.lines = 0

    def __enter__(self) -> AtEveryLine:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: types.FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) or name.endswith(NOTHING_UNDER_WAY):
            return None
        if frame.f_code in _owner._callers:
            return None
        place = frame.f_code, frame.f_lineno, event
        if event in ("line", "return") and self._seen[place] < self.TIMES:
            self._seen[place] += 1
            self.lines += 1
            self._action()
        return self._trace


async def use_all(p: Parts) -> None:
    """Go through the ways that a lease can take."""
    cache, group = p.cache, p.group
    async with cache.acquire("run", I64) as lease:  # a hit
        assert await lease.call(1) == 2
        assert list(await lease.map([[1, 2]])) == [2, 3]
        lease.memory.write(0, b"x")
    fresh = await cache.register(
        "fresh", binary(ADD_ONE), args=I64, returns="i64", export="run", isolation="fresh"
    )
    for _ in range(2):  # a miss, and one on its seat
        assert await fresh.call(1) == 2
    cache.remove("fresh")
    async with cache.scheduling_group("short", capacity=1) as short, trio.open_nursery() as nursery:

        async def wait() -> None:
            async with short.acquire("run", I64) as lease:
                assert await lease.call(1) == 2

        async with short.acquire("run", I64):
            nursery.start_soon(wait)  # for a token
            await trio.testing.wait_all_tasks_blocked()
    async with group.acquire("run", I64), trio.open_nursery() as nursery:

        async def wait_in_vain() -> None:
            async with group.acquire("run", I64):
                raise AssertionError

        nursery.start_soon(wait_in_vain)  # for an instance
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await cache.warm("run", I64, 2)
    cache.resize(max_size=1 << 20)


def error_of(how: Callable[[Parts], Any], p: Parts) -> str:
    """What a refusal says; less work than `pytest.raises` is."""
    try:
        drive(how(p))
    except RuntimeError as error:
        return str(error)
    return "not refused"


def consistent(p: Parts) -> None:
    """What is told at one line goes together."""
    stats, entries = p.cache.stats(), p.cache.entries()
    assert stats.idle_instances == sum(entry.idle for entry in entries)
    assert stats.running_instances == sum(entry.running for entry in entries)
    assert stats.total_size == sum(entry.size for entry in entries)
    assert stats.hits == sum(one.hits for one in stats.per_function.values())
    assert len(p.cache.functions()) == stats.functions


async def test_a_handler_at_every_line_is_refused_or_right() -> None:
    """Changes are refused there, whole; what is read goes together; a `repr` always works.

    At each line one change in turn, at each fifth all the rest; at night all of it at each.
    """
    counts = {"refused": 0, "read": 0}
    lines_for_all = 1 if NIGHTLY else 5

    async def test(p: Parts) -> None:
        changes = itertools.cycle(CHANGES.values())

        def handler() -> None:
            whole = lines.lines % lines_for_all == 0
            before = books(p) if whole else None
            for how in CHANGES.values() if NIGHTLY else [next(changes)]:
                assert "in the middle of a step" in error_of(how, p)
            if not whole:
                return
            for how in ANYWHERE.values():
                how(p)
            assert books(p) == before
            refused = None
            try:
                consistent(p)
            except RuntimeError as error:
                refused = str(error)
            counts["read" if refused is None else "refused"] += 1
            if refused is not None:
                assert "in the middle of a step" in refused
                assert books(p) == before

        with AtEveryLine(handler) as lines:
            await use_all(p)
        assert lines.lines // lines_for_all == sum(counts.values())

    await with_parts(test)
    assert min(counts.values()) > 500 // lines_for_all


async def test_what_finalizers_do_is_refused_or_right() -> None:
    """`__del__`, callbacks of weak references and of the garbage collector."""
    seen: list[str] = []

    class Dropped:
        def __del__(self) -> None:
            attempt("del")

    async def test(p: Parts) -> None:
        parts.append(p)

        def handler() -> None:
            one = Dropped()
            reference = weakref.ref(one, lambda _: attempt("weakref"))
            del one
            assert reference() is None

        def collected(phase: str, _: object) -> None:
            attempt("gc")

        thresholds = gc.get_threshold()
        gc.callbacks.append(collected)
        gc.set_threshold(500)
        try:
            for _ in range(3):
                assert await p.function.call(1) == 2
        finally:
            gc.set_threshold(*thresholds)
            gc.callbacks.remove(collected)
        with AtEveryLine(handler):
            assert await p.function.call(1) == 2

    def attempt(what: str) -> None:
        (p,) = parts
        before = books(p)
        try:
            p.cache.resize(max_size=0)
        except RuntimeError:
            assert books(p) == before
            seen.append(what)
        else:
            check_invariants(p.cache)  # then it came between two steps
        p.cache.acquire("run", I64)

    parts: list[Parts] = []
    await with_parts(test)
    assert {"del", "weakref"} <= set(seen)


async def test_a_coroutine_that_is_dropped_in_a_step_gives_its_lease_back_later() -> None:
    """Wherever the interpreter finds out that nobody will run it to its end."""

    @types.coroutine
    def suspend() -> Iterator[None]:
        yield

    async def hold(lease: Lease) -> None:
        class Held:
            async def __aenter__(self) -> None:
                pass

            async def __aexit__(self, *exc: Any) -> None:
                await lease.__aexit__(*exc)

        async with Held():
            await suspend()

    async def held(p: Parts) -> Any:
        lease = await p.cache.acquire("spare", I64).__aenter__()
        coroutine: Any = hold(lease)
        coroutine.send(None)
        return lease, coroutine

    async def given_back(p: Parts, lease: Lease) -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert p.cache.stats().running_instances == 1
        check_invariants(p.cache)
        with pytest.raises(trio.ClosedResourceError):
            await lease.call(1)

    async def test(p: Parts) -> None:
        for line in range(0, 120, 3):  # a hit and a call have some more
            lease, coroutine = await held(p)
            lines = 0

            def drop(line: int = line, lease: Any = lease, coroutine: Any = coroutine) -> None:
                nonlocal lines
                if lines == line:
                    coroutine.close()
                    assert lease._request is not None  # not yet: when the step is over
                lines += 1

            with AtEveryLine(drop):
                assert await p.function.call(1) == 2
            assert lines > line
            await given_back(p, lease)
        lease, coroutine = await held(p)
        await trio.to_thread.run_sync(coroutine.close)
        await given_back(p, lease)
        lease, coroutine = await held(p)
        coroutine.close()
        await given_back(p, lease)

    await with_parts(test)
