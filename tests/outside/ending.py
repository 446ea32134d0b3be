"""A program that ends in some way while an endless guest is under way: `test_endings` runs it.

``python ending.py WAY ENGINE``: how it ends (a function of `WAYS`), and ``fake``, ``wasmtime``, or
``udf``: a `WasmUDF` on wasmtime.
It prints JSON lines: the log, and marks. ``{"mark": "ready"}``: now is the time for a signal.
``{"mark": "native"}`` comes when a cache is closed: what of it is open still.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextlib
import functools
import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import compilers
import trio

from trio_wasmcache import CacheConfig, HostFunction, InstanceCache, aio, blocking
from trio_wasmcache._cache.open import open_with
from trio_wasmcache._log import ThreadedLogWriter
from trio_wasmcache.testing import FakeEngine
from trio_wasmcache.udf import WasmUDF

TERMINATED = 143
# Long enough for a machine under load.
HANG = 600
# Asks the host, and then never ends.
ENDLESS = """(module (import "host" "mark" (func $mark)) (memory (export "memory") 1)
  (func (export "run") (call $mark) (loop (br 0)))
  (func (export "spin") (param i64) (result i64) (call $mark) (loop (br 0)) (local.get 0)))"""


def say(**fields: Any) -> None:
    """One line, in one piece, whatever thread it comes from."""
    os.write(1, json.dumps({"process": os.getpid(), **fields}).encode() + b"\n")


class Printer:
    """A logger that prints each event."""

    def info(self, event: str, **fields: Any) -> None:
        say(event=event, **fields)

    warning = info


@contextlib.asynccontextmanager
async def opening(engine: Any, config: CacheConfig) -> AsyncIterator[InstanceCache]:
    """A cache, and a look at what native things of it are open once it is closed."""
    before = [*stores()]  # of the parent, in a forked child
    async with open_with(config, engine, ThreadedLogWriter(Printer())) as cache:
        yield cache
    if isinstance(engine, FakeEngine):
        left = engine.open_instances + engine.loaded_modules
    else:
        left = sum(one not in before for one in stores())
    say(mark="native", open=left)


def stores() -> Iterator[object]:
    """wasmtime's stores that are open."""
    for one in gc.get_objects():
        if type(one).__name__ == "WasmtimeInstance" and one._store:
            yield one


class Program:
    """A cache, and its endless function."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.under_way = threading.Event()
        self.cache = blocking._open(self.opening())
        self.spin = self.cache.register("spin", **self.endless(self.under_way.set))

    def opening(self) -> Any:
        """Make an engine; return what opens a cache on it."""
        if self.name == "fake":
            self.engine: Any = FakeEngine()
            config = CacheConfig(total_fuel=10**15, offload_after=None, log_flush_timeout=HANG)
        else:
            from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine

            # Slices in threads, too.
            config = CacheConfig(total_fuel=10**15, offload_after=3, log_flush_timeout=HANG)
            self.engine = WasmtimeEngine(config.instance_stack_size)
        return functools.partial(opening, self.engine, config)

    def endless(self, mark: Callable[[], Any]) -> dict[str, Any]:
        """Arguments of `register`."""
        wasm: Any = ENDLESS
        if self.name == "fake":
            wasm = self.engine.module(
                params=(), results=(), host_imports=[("host", "mark")], fuel=float("inf")
            )
        imports = {"host": {"mark": HostFunction(mark, (), ())}}
        return {"wasm": wasm, "args": (), "export": "run", "imports": imports}

    def announce(self) -> None:
        """Have the endless function print that it is ready."""
        ready = self.endless(lambda: say(mark="ready"))
        self.cache.register("spin", replace=True, **ready)

    def call(self) -> None:
        """Call the endless function, and print how that ends."""
        try:
            self.spin.call()
        except BaseException as error:
            say(mark="ended", how=type(error).__name__)
            raise

    def calls(self) -> int:
        """Return how many calls were made."""
        return self.cache.stats().calls

    def begin(self, *, daemon: bool = False) -> None:
        """Have a thread call the endless function, and wait until its guest is under way."""

        def run() -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                self.call()

        threading.Thread(target=run, daemon=daemon).start()
        assert self.under_way.wait(HANG)

    def submit(self) -> tuple[ThreadPoolExecutor, Future[None]]:
        """Have a thread of an executor call it, likewise."""
        executor = ThreadPoolExecutor()
        future = executor.submit(self.call)
        assert self.under_way.wait(HANG)
        return executor, future


class UDFProgram(Program):
    """A `WasmUDF`: a cache of each process, which nobody opens or closes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.under_way = threading.Event()
        Marks.mark = self.under_way.set
        blocking.open_cache = lambda *_, **__: blocking._open(self.opening())  # type: ignore[assignment]
        self.cache: Any = contextlib.nullcontext(self)
        self.spin: Any = self
        self.udf = WasmUDF(
            "spin",
            ENDLESS,
            args=("i64",),
            returns="i64",
            imports={"host": {"mark": HostFunction(mark, (), ())}},
        )

    def announce(self) -> None:
        Marks.mark = functools.partial(say, mark="ready")

    def call(self) -> None:
        try:
            self.udf([1])
        except BaseException as error:
            say(mark="ended", how=type(error).__name__)
            raise

    def calls(self) -> int:
        return 0  # nobody sees its cache


class Marks:
    """What the endless function of this process says when it is under way."""

    mark: Callable[[], Any]


def mark() -> None:
    """Host function, which processes import by its name."""
    Marks.mark()


def program(name: str) -> Program:
    """Return the program on an engine."""
    return UDFProgram(name) if name == "udf" else Program(name)


# -- ways to end


def leave(program: Program) -> None:
    """The block ends."""
    with program.cache:
        program.begin()


def raise_(program: Program) -> None:
    """An exception ends the block."""
    with program.cache:
        program.begin()
        raise LookupError("of the block")


def never_closed(program: Program) -> None:
    """Nobody closes it."""
    program.begin()


def daemon(program: Program) -> None:
    """Nor does anybody wait for the thread."""
    program.begin(daemon=True)


def executor(program: Program) -> None:
    """The end of the program waits for the executor's threads, one of which is in the guest."""
    program.submit()


def executor_block(program: Program) -> None:
    """So does the end of the executor's block, once the cache's has ended."""
    pool, future = program.submit()
    with pool, program.cache:
        pass
    assert isinstance(future.exception(), trio.ClosedResourceError)


def interrupt_in_call(program: Program) -> None:
    """Ctrl-C while the main thread waits for the guest."""
    program.announce()
    with program.cache:
        program.call()


def interrupt_elsewhere(program: Program) -> None:
    """Ctrl-C while another thread is in the guest, and nobody closes the cache."""
    program.begin()
    say(mark="ready")
    time.sleep(HANG)


def interrupt_main(program: Program) -> None:
    """What wakes no lock, as Ray cancels."""
    threading.Thread(
        target=lambda: (program.under_way.wait(HANG), _thread.interrupt_main())
    ).start()
    with program.cache:
        program.call()


def terminate(program: Program) -> None:
    """SIGTERM, with a handler that ends the program; the main thread waits for the guest."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    interrupt_in_call(program)


def exit_in_thread(program: Program) -> None:
    """`sys.exit` in another thread ends that; the program ends later, without closing."""
    program.begin()
    thread = threading.Thread(target=sys.exit, args=(3,))
    thread.start()
    thread.join()


def exit_in_host(program: Program) -> None:
    """`sys.exit` in a host function is for its caller, not for the cache's thread."""
    program.begin()
    ending = program.cache.register("ending", **program.endless(functools.partial(sys.exit, 4)))
    with program.cache:
        ending.call()


def fork(program: Program) -> None:
    """A forked child can't use the cache, and ends; the parent's guest is under way meanwhile."""
    program.begin()
    child = os.fork()
    if child == 0:
        with program.cache:  # whose end does nothing here
            try:
                program.spin.call()
            except RuntimeError as error:
                say(mark="refused", why=str(error))
            sys.exit(5)
    say(mark="child", status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def fork_and_open(program: Program) -> None:
    """A forked child opens a cache of its own, and ends without closing it."""
    program.begin()
    child = os.fork()
    if child == 0:
        never_closed(type(program)(program.name))
        sys.exit(5)
    say(mark="child", status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def process(method: str, program: Program) -> None:
    """A process of `multiprocessing` has a cache of its own."""
    program.begin()
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=other_process, args=(program.name,))
    child.start()
    child.join()
    say(mark="child", status=child.exitcode)


def other_process(name: str) -> None:
    """What runs in it: neither the thread nor the cache is waited for."""
    executor(program(name))
    sys.exit(5)


def late_call(program: Program) -> None:
    """What is called as the interpreter ends is refused, and does not hang."""
    program.begin()

    def call() -> None:
        try:
            program.spin.call()
        except trio.ClosedResourceError:
            say(mark="refused", why="", calls=program.calls())

    atexit.register(call)


def late_open(program: Program) -> None:
    """A cache that is opened as the interpreter ends is closed, or refused."""
    program.begin()

    def open_another() -> None:
        try:
            other = blocking._open(program.opening())
        except RuntimeError as error:  # since Python 3.12
            say(mark="refused", why=str(error))
        else:
            other.close()

    atexit.register(open_another)


# -- with asyncio


async def asyncio_spin(program: Program, name: str = "spin") -> tuple[Any, Any]:
    """A cache, and a task in its endless guest."""
    under_way, loop = asyncio.Event(), asyncio.get_running_loop()
    cache: Any = await aio._open(program.opening())
    spin = await cache.register(
        name, **program.endless(lambda: loop.call_soon_threadsafe(under_way.set) and None)
    )

    async def call() -> None:
        try:
            await spin.call()
        except BaseException as error:
            say(mark="ended", how=type(error).__name__)
            raise

    task = asyncio.create_task(call())
    await under_way.wait()
    return cache, task


def asyncio_leave(program: Program) -> None:
    """The block ends under a call; then the program does."""

    async def main() -> None:
        cache, task = await asyncio_spin(program)
        async with cache:
            pass
        with contextlib.suppress(trio.ClosedResourceError):
            await task

    program.cache.close()
    asyncio.run(main())


def asyncio_never_closed(program: Program) -> None:
    """`asyncio.run` cancels the task; nobody closes the cache."""

    async def main() -> None:
        await asyncio_spin(program)

    program.cache.close()
    asyncio.run(main())


def asyncio_interrupt(program: Program) -> None:
    """Ctrl-C cancels the main task, in the block."""

    async def main() -> None:
        cache, task = await asyncio_spin(program)
        async with cache:
            say(mark="ready")
            await task

    program.cache.close()
    asyncio.run(main())


def asyncio_host_call(program: Program) -> None:
    """`asyncio.run` ends inside of a host call."""

    async def main() -> None:
        inside = asyncio.Event()

        async def mark() -> None:
            inside.set()
            try:
                await asyncio.sleep(HANG)
            finally:
                say(mark="coroutine ended")

        cache: Any = await aio._open(program.opening())
        spin = await cache.register("spin", **program.endless(mark))
        global task
        task = asyncio.create_task(spin.call())
        await inside.wait()

    program.cache.close()
    asyncio.run(main())
    say(mark="ended", how="cancelled" if task.cancelled() else repr(task))


def asyncio_loop_left(program: Program) -> None:
    """A loop is closed with a host call under way, and nobody cancels anything."""

    async def main() -> None:
        inside = asyncio.Event()

        async def mark() -> None:
            inside.set()
            await asyncio.sleep(HANG)

        cache: Any = await aio._open(program.opening())
        spin = await cache.register("spin", **program.endless(mark))
        global task
        task = asyncio.create_task(spin.call())
        await inside.wait()

    program.cache.close()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()


task: Any = None
# Of a `WasmUDF`. Its end does not stop calls that are under way, the program's does.
UDF_WAYS = (
    "never_closed",
    "daemon",
    "executor",
    "interrupt_in_call",
    "interrupt_elsewhere",
    "interrupt_main",
    "terminate",
    "exit_in_thread",
    "fork_and_open",
    "late_call",
    "process_fork",
    "process_spawn",
    "process_forkserver",
)
WAYS: dict[str, Callable[[Program], None]] = {
    way.__name__: way
    for way in (
        leave,
        raise_,
        never_closed,
        daemon,
        executor,
        executor_block,
        interrupt_in_call,
        interrupt_elsewhere,
        interrupt_main,
        terminate,
        exit_in_thread,
        exit_in_host,
        fork,
        fork_and_open,
        late_call,
        late_open,
        asyncio_leave,
        asyncio_never_closed,
        asyncio_interrupt,
        asyncio_host_call,
        asyncio_loop_left,
    )
} | {
    f"process_{method}": functools.partial(process, method)
    for method in ("fork", "spawn", "forkserver")
}


if __name__ == "__main__":
    # Of Python since 3.12, for any program with threads that forks.
    warnings.filterwarnings("ignore", ".*use of fork\\(\\) may lead", DeprecationWarning)
    compilers.use()
    WAYS[sys.argv[1]](program(sys.argv[2]))
