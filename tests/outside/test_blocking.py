"""`trio_wasmcache.blocking`: what each sentence of its page promises, from threads of a test."""

from __future__ import annotations

import contextvars
import ctypes
import functools
import pickle
import signal
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio
import trio.lowlevel
from kits import FakeKit, Kit, ListLogger
from outside.support import DECLARED, DIVIDE, HANG, I64, opening

from trio_wasmcache import (
    CacheConfig,
    FuelExhaustedError,
    HostFunction,
    Profile,
    TrapError,
    UnknownFunctionError,
    blocking,
    current_lease,
)
from trio_wasmcache._engine.wasmtime import sampling
from trio_wasmcache._portal import POLL
from trio_wasmcache.blocking import BlockingCache


@pytest.fixture
def cache(kit: Kit, log: ListLogger) -> Iterator[BlockingCache]:
    """A cache on each engine; closing it checks that nothing is left open."""
    with blocking._open(opening(kit, log)) as cache:
        yield cache


def add(cache: BlockingCache, name: str, wasm: bytes, **more: Any) -> Any:
    """Register a module of a kit."""
    return cache.register(name, wasm, **{**DECLARED, **more})


def add_asking(cache: BlockingCache, kit: Kit, ask: Any, name: str = "asks", **more: Any) -> Any:
    """Register a function that asks a host function; its answer is the result."""
    imports = {"host": {"ask": HostFunction(ask, I64, I64)}}
    return add(cache, name, kit.asking(), imports=imports, **more)


def in_thread(function: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def test_a_profile_while_others_call(
    cache: BlockingCache, kit: Kit, log: ListLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for its window, or for as long as it may."""
    monkeypatch.setattr(sampling, "INTERVAL", 1_000)
    monkeypatch.setattr(sampling, "REST", 0)
    f = add(cache, "f", kit.costly())
    f.call(1)
    profiles: list[Profile] = []
    while not any(profile.samples for profile in profiles):  # on a slow machine, in the next one
        thread = in_thread(lambda: profiles.append(cache.profile(seconds=0.05, function="f")))
        while thread.is_alive():
            f.call(1)
    assert set(profiles[-1].fuel_by_group) == {"main"}
    with pytest.raises(TimeoutError, match="profile"):
        cache.profile(seconds=HANG, timeout=0.001)
    with pytest.raises(UnknownFunctionError):
        cache.profile(function="g")
    assert f.call(2) == 2


class Spinning:
    """A function that asks the host, which notes it, and then never ends."""

    def __init__(self, cache: BlockingCache, kit: Kit, **more: Any) -> None:
        self.under_way = threading.Event()
        if isinstance(kit, FakeKit):
            wasm: Any = kit.engine.module(host_imports=[("host", "mark")], fuel=float("inf"))
        else:
            wasm = """(module (import "host" "mark" (func $mark (param i64) (result i64)))
                (memory (export "memory") 1) (func (export "run") (param i64) (result i64)
                (drop (call $mark (local.get 0))) (loop (br 0)) (unreachable)))"""
        imports = {"host": {"mark": HostFunction(self.mark, I64, I64)}}
        self.function = add(cache, "spin", wasm, imports=imports, **more)

    def mark(self, value: int) -> int:
        self.under_way.set()
        return value


# -- calls


def test_the_life_of_a_cache(cache: BlockingCache, kit: Kit, log: ListLogger) -> None:
    """Register, call by handle and by name, map, warm, read, resize, remove."""
    plus = add(cache, "plus", kit.adding(3), concurrency=2)
    assert (plus.name, plus.args, plus.returns, str(plus.key)) == ("plus", I64, "i64", "plus(i64)")
    assert plus.function.generation == 1
    assert repr(plus) == "<BlockingFunction plus(i64)>"
    cache.warm("plus", I64, 2)
    assert [plus.call(1), cache.call("plus", 2), cache.call(plus, 3)] == [4, 5, 6]
    assert cache.call("plus", 4, args=I64, timeout=HANG) == 7
    assert list(plus.map([array("q", [1, 2])])) == [4, 5]
    assert list(cache.map("plus", [[1]], rows=1, timeout=HANG)) == [4]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.idle_instances) == (6, 0, 2)
    assert [entry.idle for entry in cache.entries()] == [2]
    assert [one.key for one in cache.functions()] == [plus.key]
    cache.resize(idle_timeout=7.0)
    assert (cache.config.idle_timeout, cache.label) == (7.0, "")
    cache.remove("plus")
    with pytest.raises(UnknownFunctionError):
        plus.call(1)
    assert "<BlockingCache of <InstanceCache open:" in repr(cache)
    cache.close()
    cache.close()
    assert log.lines[-1][1] == "wasmcache.closed"
    assert cache.stats().calls == 6
    assert cache.functions() == ()
    with pytest.raises(trio.ClosedResourceError, match=r"call of plus\(i64\): the cache is closed"):
        plus.call(1)


def test_errors_are_those_of_the_call(cache: BlockingCache, kit: Kit) -> None:
    """With their type and message, and no reference from the request."""
    with pytest.raises(TypeError, match="f"):
        add(cache, "f", kit.adding(1)).call("text")

    def fail(value: int) -> int:
        raise LookupError("of a host function")

    with pytest.raises(LookupError, match="of a host function"):
        add_asking(cache, kit, fail).call(1)


def test_opening_fails_as_in_trio() -> None:
    """In the caller, with the same error."""
    with pytest.raises(TypeError, match="config must be a CacheConfig"):
        blocking.open_cache(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label"):
        blocking.open_cache(label="x" * 1000)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)],
)
def test_a_timeout_is_a_number_of_seconds(
    cache: BlockingCache, kit: Kit, timeout: Any, error: type[Exception]
) -> None:
    """Anything else is refused before anything runs."""
    with pytest.raises(error, match="timeout must be a number of seconds"):
        add(cache, "f", kit.adding(1)).call(1, timeout=timeout)


def test_a_timeout_stops_the_guest(cache: BlockingCache, kit: Kit, log: ListLogger) -> None:
    """Call and batch: nobody is inside when `TimeoutError` is raised, and the next call works."""
    spin = Spinning(cache, kit)
    words = r"call of spin\(i64\) was stopped, as it did not end within its timeout of 0.05 seconds"
    with pytest.raises(TimeoutError, match=words):
        spin.function.call(1, timeout=0.05)
    assert cache.stats().running_instances == 0
    with pytest.raises(TimeoutError, match=r"map of spin\(i64\)"):
        spin.function.map([[1, 2]], timeout=0.05)
    assert cache.stats().running_instances == 0
    # The time until it is started counts: nothing has run.
    with pytest.raises(TimeoutError):
        add(cache, "f", kit.adding(1)).call(1, timeout=0)
    assert cache.call("f", 1, timeout=float("inf")) == 2


def test_a_timeout_is_that_of_one_call(cache: BlockingCache, kit: Kit) -> None:
    """Later calls, which the same task runs, have none."""

    async def ask(value: int) -> int:
        deadlines.append(trio.current_effective_deadline())
        return value

    deadlines: list[float] = []
    asks = add_asking(cache, kit, ask)
    asks.call(1, timeout=HANG)
    asks.call(1)
    assert deadlines[0] < deadlines[1] == float("inf")


def test_a_batch_goes_past_rows_that_fail(real: Kit) -> None:
    """As in Trio; the errors of the rows are in the dict that was given."""
    with blocking._open(real.open) as cache:
        divide = add(cache, "divide", DIVIDE)
        options: dict[str, Any] = {"on_error": "null", "row_errors": {}}
        with cache.scheduling_group("group", capacity=1) as group:
            for map_by_name in (cache.map, group.map):
                assert map_by_name("divide", [[1, 0, 5]], **options) == [100, None, 20]
                assert isinstance(options["row_errors"].pop(1), TrapError)
                assert options["row_errors"] == {}
        assert divide.map([[1, 0, 5]], **options) == [100, None, 20]
        with pytest.raises(TrapError):
            divide.map([[0, 0]], on_error="null", max_errors=1)
        calls = cache.stats().calls
        bad: Any = []
        with pytest.raises(TypeError, match="row_errors must be a dict"):
            divide.map([[0]], row_errors=bad)
        assert cache.stats().calls == calls


def test_the_caller_context_is_copied(cache: BlockingCache, kit: Kit) -> None:
    """A call sees what the caller has bound, and changes nothing of it."""
    variable = contextvars.ContextVar("variable", default="none")

    def ask(value: int) -> int:
        seen.append(variable.get())
        variable.set("changed")
        return value

    seen: list[str] = []
    asks = add_asking(cache, kit, ask)
    variable.set("mine")
    asks.call(1)
    asks.call(1)
    thread = in_thread(asks.call, 1)
    thread.join()
    assert seen == ["mine", "mine", "none"]
    assert variable.get() == "mine"


def test_host_functions_run_in_the_thread_of_the_cache(cache: BlockingCache, kit: Kit) -> None:
    """Sync ones there, async ones under Trio there, with the whole lease."""

    def ask(value: int) -> int:
        where.append(threading.current_thread().name)
        return current_lease().memory.size

    async def ask_async(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return ask(value)

    where: list[str] = []
    sizes = [
        add_asking(cache, kit, ask).call(1),
        add_asking(cache, kit, ask_async, name="waits").call(1),
    ]
    assert sizes == [65536, 65536]
    assert where == ["trio_wasmcache", "trio_wasmcache"]


def test_64_threads_share_a_cache(cache: BlockingCache, kit: Kit) -> None:
    """At the same time: each gets its own results."""
    plus = add(cache, "plus", kit.adding(1000), concurrency=4)
    barrier = threading.Barrier(64)

    def work(number: int) -> list[int]:
        barrier.wait(HANG)
        return [plus.call(number + step) for step in range(5)]

    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(work, range(64)))
    assert results == [[1000 + n + step for step in range(5)] for n in range(64)]
    stats = cache.stats()
    assert stats.calls == stats.hits + stats.misses == 320
    assert stats.misses <= 4


# -- Ctrl-C, and what else ends the wait


@pytest.mark.parametrize("way", ["call", "map"])
def test_ctrl_c_stops_the_guest(cache: BlockingCache, kit: Kit, way: str) -> None:
    """It is raised when nobody is inside; the cache goes on."""
    spin = Spinning(cache, kit)

    def interrupt() -> None:
        assert spin.under_way.wait(HANG)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        spin.function.call(1) if way == "call" else spin.function.map([[1]])
    thread.join()
    assert cache.stats().running_instances == 0
    assert add(cache, "f", kit.adding(1)).call(1) == 2


def test_ctrl_c_again_and_again(cache: BlockingCache, kit: Kit, log: ListLogger) -> None:
    """However often it is pressed, the wait for the guest goes on to its end."""
    interrupts = 0

    def handler(*_: object) -> None:
        nonlocal interrupts
        interrupts += 1
        raise KeyboardInterrupt

    inside, go = threading.Event(), threading.Event()

    def ask(value: int) -> int:
        inside.set()
        assert go.wait(HANG)
        return value

    asks = add_asking(cache, kit, ask)

    def interrupt() -> None:
        assert inside.wait(HANG)
        for number in range(1, 4):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            while interrupts < number:  # or signals would be one
                pass
        go.set()

    thread = in_thread(interrupt)
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asks.call(1)
        assert go.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert interrupts == 3
    assert cache.stats().running_instances == 0


def test_an_exception_set_for_a_thread_stops_the_guest(cache: BlockingCache, kit: Kit) -> None:
    """It wakes no lock, as `_thread.interrupt_main` does not; so the wait polls."""
    assert POLL < 1
    spin = Spinning(cache, kit)
    ends: list[str] = []

    def call() -> None:
        try:
            spin.function.call(1)
        except BaseException as error:
            ends.append(type(error).__name__)

    thread = in_thread(call)
    assert spin.under_way.wait(HANG)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(LookupError)
    )
    thread.join(HANG)
    assert ends == ["LookupError"]
    assert cache.stats().running_instances == 0


# -- where it is refused


def test_its_own_thread_is_refused(cache: BlockingCache, kit: Kit) -> None:
    """It would wait for itself."""

    def ask(value: int) -> int:
        for call in (cache.stats, cache.close, functools.partial(plus.call, 1)):
            with pytest.raises(RuntimeError, match="own thread") as caught:
                call()
            errors.append(str(caught.value))
        return value

    errors: list[str] = []
    plus = add(cache, "plus", kit.adding(1))
    assert add_asking(cache, kit, ask).call(1) == 1
    assert errors[2].startswith("call of plus(i64): this is the BlockingCache's own thread")
    assert plus.call(1) == 2


def test_nothing_of_it_is_pickled(cache: BlockingCache, kit: Kit) -> None:
    """Each process has a cache of its own."""
    plus = add(cache, "plus", kit.adding(1))
    for thing in (cache, plus, cache.scheduling_group("a", capacity=1)):
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(thing)


# -- groups


def test_a_group_is_that_of_its_block(cache: BlockingCache, kit: Kit) -> None:
    """And of its methods, in any thread; nested blocks run in the inner one."""
    plus = add(cache, "plus", kit.adding(1))

    def groups() -> list[str]:
        return sorted(entry.group for entry in cache.entries())

    with cache.scheduling_group("outer", capacity=2) as outer:
        assert plus.call(1) == 2
        assert groups() == ["outer"]
        with cache.scheduling_group("inner", capacity=2, shares=50) as inner:
            assert cache.call("plus", 1) == 2
            assert groups() == ["inner", "outer"]
            thread = in_thread(plus.call, 1)  # which has a context of its own
            thread.join()
            assert groups() == ["inner", "main", "outer"]
            assert repr(inner) == "<BlockingGroup 'inner' open>"
        assert groups() == ["main", "outer"]
        assert repr(inner) == "<BlockingGroup 'inner' closed>"
    with cache.scheduling_group("third", capacity=2) as third, ThreadPoolExecutor(1) as pool:
        third.resize(capacity=3)
        assert pool.submit(third.call, plus, 1).result() == 2
        assert list(pool.submit(third.map, "plus", [[1]]).result()) == [2]
        pool.submit(third.warm, "plus").result()
        assert groups() == ["main", "third"]
    for ended in (outer, third):
        with pytest.raises(trio.ClosedResourceError, match=r"group '.*' is closed"):
            ended.call(plus, 1)
    with pytest.raises(RuntimeError, match="entered once"):
        outer.__enter__()
    with cache.scheduling_group("twice", capacity=1):
        with pytest.raises(ValueError, match="open already"):
            cache.scheduling_group("twice", capacity=1).__enter__()


def test_the_end_of_a_group_ends_its_calls(cache: BlockingCache, kit: Kit) -> None:
    """In other threads, by `ClosedResourceError`; those of other groups go on."""
    spin = Spinning(cache, kit)
    with ThreadPoolExecutor() as pool:
        with cache.scheduling_group("ends", capacity=2) as group:
            call = pool.submit(group.call, spin.function, 1)
            assert spin.under_way.wait(HANG)
        with pytest.raises(trio.ClosedResourceError, match="group 'ends' or the cache was closed"):
            call.result(HANG)
    assert cache.stats().running_instances == 0


# -- closing


def test_each_call_after_closing_is_refused(cache: BlockingCache, kit: Kit) -> None:
    """Also the later ones, which find that another was refused before."""
    f = add(cache, "f", kit.adding(1))
    assert f.call(1) == 2
    cache.close()
    for _ in range(3):
        with pytest.raises(trio.ClosedResourceError):
            f.call(1)


def test_closing_ends_all_calls(cache: BlockingCache, kit: Kit, log: ListLogger) -> None:
    """In a group or in none, running or waiting, by `ClosedResourceError`; the log is whole."""
    spin = Spinning(cache, kit)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(spin.function.call, 1)
        assert spin.under_way.wait(HANG)
        waiting = [pool.submit(spin.function.call, 1) for _ in range(3)]
        cache.close()
        for call in (running, *waiting):
            assert isinstance(call.exception(HANG), trio.ClosedResourceError)
    assert log.lines[-1][1] == "wasmcache.closed"
    assert log.reasons() == ["corrupted"]


def test_an_exception_of_the_block_is_unchanged(kit: Kit) -> None:
    """Not wrapped in a group."""
    error = LookupError("of the block")
    with pytest.raises(LookupError) as caught:
        with blocking._open(kit.open):
            raise error
    assert caught.value is error


def test_fuel_ends_a_call_without_a_timeout(kit: Kit) -> None:
    """As in Trio."""
    config = CacheConfig(total_fuel=100_000, offload_after=None)
    with blocking._open(functools.partial(kit.open, config)) as cache:
        with pytest.raises(FuelExhaustedError):
            add(cache, "endless", kit.endless()).call(1)
