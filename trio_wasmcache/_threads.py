"""Runs functions in threads, while Trio's mock clock does not jump; and imports modules there.

`trio.testing.MockClock` with an `autojump_threshold` jumps to the next deadline when all tasks
wait, even if one of them waits for a thread. So a deadline would pass because a module is being
compiled, which takes no time of that clock. `no_autojump` prevents that.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Generic, Protocol, TypeGuard, TypeVar, final

import outcome
import trio

T = TypeVar("T")


class _Jumping(Protocol):
    """The part of `trio.testing.MockClock` that is used, which must not be imported for it."""

    autojump_threshold: float


# (waits for threads under way, the threshold to put back after the last one)
_held: trio.lowlevel.RunVar[tuple[int, float]] = trio.lowlevel.RunVar("trio_wasmcache clock")


async def run_in_thread(
    function: Callable[..., T],
    *values: object,
    limiter: trio.CapacityLimiter,
    abandon_on_cancel: bool = False,
) -> T:
    """Call a function in a thread, as `trio.to_thread.run_sync` does; no mock clock jumps.

    The function must not wait for a task that waits for the clock.

    **Checkpoint:** always.
    **Cancellation:** the thread is abandoned, or with `abandon_on_cancel=False` waited for.
    """
    with no_autojump():
        return await call_in_thread(
            function, *values, limiter=limiter, abandon_on_cancel=abandon_on_cancel
        )


async def call_in_thread(
    function: Callable[..., T],
    *values: object,
    limiter: trio.CapacityLimiter,
    abandon_on_cancel: bool = False,
) -> T:
    """Call a function in a thread, as `trio.to_thread.run_sync` does; an error is not kept.

    **Checkpoint:** always.
    **Cancellation:** the thread is abandoned, or with `abandon_on_cancel=False` waited for.
    """
    answer = _Answer[T]()
    try:
        await trio.to_thread.run_sync(
            answer.call, function, *values, limiter=limiter, abandon_on_cancel=abandon_on_cancel
        )
    except BaseException:
        answer.drop()
        raise
    return answer.take()


@final
class _Answer(Generic[T]):
    """What a function in a thread returns or raises, until it is taken.

    Frames of an error's traceback, and those that called them, must not refer to the error. They
    would keep it, with a module's bytes or whatever else they hold, until garbage is collected,
    which may be long after. The way that Trio passes on an error does that.
    """

    __slots__ = ("_dropped", "_result")

    def __init__(self) -> None:
        self._result: outcome.Outcome[T] | None = None
        self._dropped = False

    def call(self, function: Callable[..., T], *values: object) -> None:
        """Call the function, in the thread."""
        self._result = outcome.capture(function, *values)
        if self._dropped:
            self._result = None

    def take(self) -> T:
        """Return what it returned, or raise what it raised."""
        result, self._result = self._result, None
        assert result is not None
        try:
            return result.unwrap()
        finally:
            del result

    def drop(self) -> None:
        """Keep nothing: nobody will take it, even if the thread still runs."""
        self._dropped = True
        self._result = None


class _Importing:
    """Held by threads that import something: any number at a time, while no thread forks.

    A child would have a half of the module, whose lock no thread would ever release. So what runs
    in a thread holds this around each statement that imports, and each call of what may import
    something late, and a fork waits until no other thread holds it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders: dict[int, int] = {}  # {identity of a thread: how often it holds this}

    @property
    def held(self) -> bool:
        """Whether this thread holds it."""
        return threading.get_ident() in self._holders

    def __enter__(self) -> None:
        with self._changed:
            thread = threading.get_ident()
            self._holders[thread] = self._holders.get(thread, 0) + 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            thread = threading.get_ident()
            self._holders[thread] -= 1
            if not self._holders[thread]:
                del self._holders[thread]
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait for other threads that hold it, and let none begin."""
        self._changed.acquire()
        while self._holders.keys() - {threading.get_ident()}:
            self._changed.wait()

    def after_fork(self) -> None:
        """Let threads hold it again, in the parent and in the child."""
        self._changed.release()


importing = _Importing()


def _import(name: str) -> ModuleType:
    with importing:
        return importlib.import_module(name)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=importing.before_fork,
        after_in_parent=importing.after_fork,
        after_in_child=importing.after_fork,
    )


async def import_in_thread(name: str, limiter: trio.CapacityLimiter) -> ModuleType:
    """Import a module in a thread, and return it; a fork waits until it is there.

    **Checkpoint:** always.
    **Cancellation:** takes effect when the module is imported.
    """
    return await run_in_thread(_import, name, limiter=limiter)


def no_autojump() -> AbstractContextManager[None]:
    """Do not let a mock clock jump in the block, which waits for a thread; other clocks go on.

    The thread must not wait for a task that waits for the clock.
    """
    clock = trio.lowlevel.current_clock()
    # Most clocks never jump, and a generator takes ten times as long as this.
    return _held_still(clock) if _jumps(clock) else nullcontext()


@contextmanager
def _held_still(clock: _Jumping) -> Iterator[None]:
    count, threshold = _held.get((0, 0.0))
    if not count:
        threshold, clock.autojump_threshold = clock.autojump_threshold, math.inf
    _held.set((count + 1, threshold))
    try:
        yield
    finally:
        count, threshold = _held.get()
        _held.set((count - 1, threshold))
        if count == 1:
            clock.autojump_threshold = threshold


def _jumps(clock: object) -> TypeGuard[_Jumping]:
    return hasattr(clock, "autojump_threshold")
