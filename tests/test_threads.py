"""Trio's mock clock does not jump while a thread of the library works."""

from __future__ import annotations

import ast
import contextlib
import gc
import math
import os
import subprocess
import sys
import threading
import weakref
from array import array
from pathlib import Path
from typing import Any

import pytest
import trio
from kits import ListLogger, WasmtimeKit, add, open_real_cache
from trio.testing import MockClock

import trio_wasmcache
from trio_wasmcache import CacheConfig
from trio_wasmcache._threads import no_autojump, run_in_thread

PACKAGE = Path(trio_wasmcache.__file__).parent
LIMITER = trio.CapacityLimiter(10)


async def test_a_deadline_does_not_pass_while_a_thread_works(autojump_clock: MockClock) -> None:
    """The clock stands, also behind the first of two threads, and jumps again afterwards."""
    begun, go = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert go.wait(600)
        return "done"

    async def short() -> None:
        await run_in_thread(begun.wait, 600, limiter=LIMITER)
        assert autojump_clock.autojump_threshold == math.inf  # the other thread still works
        go.set()

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(short)
            assert await run_in_thread(work, limiter=LIMITER) == "done"
    assert (trio.current_time(), autojump_clock.autojump_threshold) == (0, 0)
    with trio.move_on_after(1) as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 1


async def test_a_failed_or_cancelled_wait_lets_the_clock_jump_again(
    autojump_clock: MockClock,
) -> None:
    """Whatever ends the wait; with other clocks nothing is done."""
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(lambda: 1 // 0, limiter=LIMITER)
    assert autojump_clock.autojump_threshold == 0
    go = threading.Event()
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_in_thread(go.wait, 60, limiter=LIMITER, abandon_on_cancel=True)
    go.set()
    assert scope.cancelled_caught
    assert autojump_clock.autojump_threshold == 0


class Kept:
    """Something large that a function in a thread works on."""


def fail(_kept: Kept) -> None:
    raise ZeroDivisionError


async def test_an_error_keeps_nothing_once_it_is_dropped() -> None:
    """What its frames hold goes at once, not when garbage is collected."""
    gc.disable()
    try:
        kept = Kept()
        gone = weakref.ref(kept)
        with contextlib.suppress(ZeroDivisionError):
            await run_in_thread(fail, kept, limiter=LIMITER)
        del kept
        # Trio's thread, which waits for work by now, had it in its hands, too.
        await run_in_thread(int, limiter=LIMITER)
        assert gone() is None
    finally:
        gc.enable()


async def test_an_error_that_nobody_waits_for_keeps_nothing() -> None:
    """Its thread was abandoned before it failed."""
    begun, go = threading.Event(), threading.Event()

    def fail_late(kept: Kept) -> None:
        begun.set()
        assert go.wait(600)
        fail(kept)

    async def cancel() -> None:
        await run_in_thread(begun.wait, 600, limiter=LIMITER)
        scope.cancel()

    gc.disable()
    try:
        kept = Kept()
        gone = weakref.ref(kept, lambda _: dropped.set())
        dropped = threading.Event()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                await run_in_thread(fail_late, kept, limiter=LIMITER, abandon_on_cancel=True)
        assert scope.cancelled_caught
        assert gone() is kept
        del kept
        go.set()
        assert await run_in_thread(dropped.wait, 60, limiter=LIMITER)
    finally:
        gc.enable()


async def test_no_other_clock_is_touched() -> None:
    """The system's clock has no threshold."""
    before = dict(vars(trio.lowlevel.current_clock())) if _has_fields() else None
    with no_autojump():
        pass
    assert before is None or before == vars(trio.lowlevel.current_clock())


def _has_fields() -> bool:
    return hasattr(trio.lowlevel.current_clock(), "__dict__")


async def test_register_is_not_cancelled_by_a_jump(
    real: WasmtimeKit, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Text, bytes and files are read and compiled in threads, at no time of the clock."""
    file = tmp_path / "add.wasm"
    file.write_bytes(real.adding(1))
    text = '(module (func (export "run") (param i64) (result i64) (local.get 0)))'
    async with real.open() as cache:
        for number, wasm in enumerate((text, real.adding(2), file)):
            with trio.fail_after(1):
                function = await add(cache, f"f{number}", wasm)  # type: ignore[arg-type]
                reset = await add(
                    cache,
                    f"reset{number}",
                    wasm,
                    isolation="reset",  # type: ignore[arg-type]
                )
                assert await function.call(1) in (1, 2, 3)
                assert await reset.call(1) in (1, 2, 3)
        assert trio.current_time() == 0


async def test_calls_and_batches_are_not_cancelled_by_a_jump(
    real: WasmtimeKit, autojump_clock: MockClock
) -> None:
    """Slices in threads, drivers that are compiled, and values that are converted in threads."""
    config = CacheConfig(offload_after=1, yield_fuel=10_000)
    async with real.open(config) as cache:
        costly = await add(cache, "costly", real.costly())
        async with costly.acquire() as lease:
            with trio.fail_after(1):
                assert await lease.call(7) == 7
                assert list(await lease.map([array("q", range(10))])) == list(range(10))
        assert trio.current_time() == 0


async def test_a_log_is_flushed_though_a_jump_would_end_the_wait(
    real: WasmtimeKit, autojump_clock: MockClock
) -> None:
    """A sink takes its time; `log_flush_timeout` is not over meanwhile."""
    go = threading.Event()

    class Slow(ListLogger):
        def info(self, event: str, **fields: Any) -> None:
            assert go.wait(600)
            super().info(event, **fields)

    logger = Slow()
    async with trio_wasmcache.open_cache(logger=logger) as cache:
        await add(cache, "f", real.adding(1))
        trio.lowlevel.spawn_system_task(_set_soon, go)
    assert [event for _, event, _ in logger.lines][-1] == "wasmcache.closed"
    assert trio.current_time() == 0


async def _set_soon(go: threading.Event) -> None:
    await trio.to_thread.run_sync(int)
    go.set()


# Its first batch imports what maps batches in a thread, which waits in the middle of that until the
# loop's thread forks. The child has 20 seconds to use the module, or ends by a signal.
FORKING = """
import importlib.abc, os, signal, sys, threading
import trio, trio_wasmcache
from trio_wasmcache import CacheConfig

reached, forks, ended = threading.Event(), threading.Event(), []

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "trio_wasmcache._batch.row_loop":
            reached.set()
            assert forks.wait(600)

async def fork():
    await trio.to_thread.run_sync(reached.wait, 60)
    os.register_at_fork(before=forks.set)  # before what was registered earlier
    child = os.fork()
    if not child:
        signal.alarm(20)
        from trio_wasmcache._batch.batch import map_columns
        os._exit(7)
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

async def main():
    sys.meta_path.insert(0, Finder())
    async with trio_wasmcache.open_cache(CacheConfig()) as cache:
        f = await cache.register("f", '(module (func (export "f") (param i64) (result i64)'
                                 ' (local.get 0)))', args=("i64",), returns="i64")
        async with f.acquire() as lease, trio.open_nursery() as nursery:
            nursery.start_soon(fork)
            assert list(await lease.map([[1, 2]])) == [1, 2]

trio.run(main)
sys.exit(ended[0])
"""


def assert_the_child_ends_well(script: str) -> None:
    """Run a script that forks, and passes on the status of its child: 7."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 7, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_waits_for_an_import() -> None:
    """The child of a program that forks during its first batch can make batches, too."""
    assert_the_child_ends_well(FORKING)


# Forks while this thread itself imports, and in the child, whose thread goes on with that.
FORKING_ITSELF = """
import os, threading
from trio_wasmcache._threads import importing

def fork():
    with importing:
        child = os.fork()
    assert not importing.held
    with importing:
        assert importing.held
    if not child:
        os._exit(7)
    status.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

status = []
thread = threading.Thread(target=fork)
thread.start()
thread.join()
os._exit(status[0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_does_not_wait_for_its_own_thread() -> None:
    """What is imported may fork."""
    assert_the_child_ends_well(FORKING_ITSELF)


# Says what other threads than the main one import, and whether a fork would wait for that.
IMPORTING = """
import importlib.abc, pathlib, sys, threading
import trio, trio_wasmcache
from trio_wasmcache import CacheConfig, LinkError, Prepare, blocking
from trio_wasmcache._threads import importing

F = '(func (export "f") (param i64) (result i64) (local.get 0))'
PLAIN = f'(module (memory (export "memory") 1) (func (export "set") (nop)) {F})'
GIVEN = f'(module (import "gojs" "runtime.wasmExit" (func)) {F})'
LONG = f'(module {F} (func ' + '(drop (i32.clz (i32.const 1)))' * 5000 + '))'
KINDS = {"plain": {}, "reset": {"isolation": "reset"}, "set": {"prepare": (Prepare("set"),)}}

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if threading.current_thread() is not threading.main_thread():
            found.append(("held" if importing.held else "late", name))

async def main():
    async with trio_wasmcache.open_cache(CacheConfig()) as cache:
        async def register(name, wasm, **more):
            return await cache.register(
                name, wasm, args=("i64",), returns="i64", export="f", **more)
        for name, more in KINDS.items():
            await (await register(name, PLAIN, **more)).call(1)
        await register("long", LONG)
        try:
            await register("given", GIVEN)
        except LinkError:
            await cache.register("greet", pathlib.Path(sys.argv[1]))
        async with cache.acquire("plain") as lease:
            await lease.map([[1, 2]])
        await cache.profile(0.01)

found = []
sys.meta_path.insert(0, Finder())
with blocking.open_cache(CacheConfig()):
    pass
trio.run(main)
for line in found:  # now, as the threads of the caches have written their logs
    print("import", *line)
"""


def test_a_fork_would_wait_for_whatever_a_thread_imports() -> None:
    """No thread imports but with what a fork waits for, nor calls what does so of itself."""
    greet = PACKAGE.parent / "examples/udfs/greet.component.wasm"
    command = [sys.executable, "-c", IMPORTING, str(greet)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    said = [line[1:] for line in lines if line[:1] == ["import"]]
    held = {line[1].rpartition(".")[2] for line in said if line[0] == "held"}
    assert not [line[1] for line in said if line[0] == "late"]
    assert held >= {
        *("engine", "restore_trial", "freezing", "sampling"),
        *("families", "height", "components", "batch"),
    }


def test_threads_are_started_in_one_place() -> None:
    """But for those that may wait for a task, and the log's own."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        uses = [name for name in names if name.endswith(("to_thread.run_sync", "thread_soon"))]
        if uses:
            found[path.relative_to(PACKAGE).as_posix()] = uses
    assert found == {
        "_threads.py": ["trio.to_thread.run_sync"],
        "_runtime/runner.py": ["trio.lowlevel.start_thread_soon"],
    }


async def test_a_cache_under_a_mock_clock_evicts_at_its_time(
    real: WasmtimeKit, autojump_clock: MockClock
) -> None:
    """Where no thread works the clock jumps, and the idle instance goes when its time is over."""
    async with open_real_cache(CacheConfig(idle_timeout=60)) as cache:
        function = await add(cache, "f", real.adding(1))
        with trio.fail_after(59):
            await function.call(1)
        await trio.sleep(59)
        assert cache.stats().idle_instances == 1
        await trio.sleep(2)
        assert cache.stats().evictions["idle"] == 1
