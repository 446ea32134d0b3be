"""Checks that a cache is used in the Trio run that opened it, and not in the middle of a step.

1. A cache belongs to one Trio run. Its public methods raise in another thread, in another run and
   outside of any run, before they change anything.
2. A signal handler and a finalizer may run at any line, also in the middle of a step that changes
   the books. So all methods but those of a lease inspect the stack: a step is under way if it has
   a function of this library that has not called the user's code.
3. Reading is refused only in a step of the policy (`_core`): elsewhere the books are complete.

Rejected: a flag that each step sets and clears. A hit would pay for it, and every new step would
have to remember it. Here a hit pays for one comparison of thread identifiers (30 ns), and only
methods that need it pay for inspecting the stack (2 us for 50 frames).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from sys import _getframe
from threading import get_ident
from types import CodeType, FrameType
from typing import NoReturn, TypeVar, final

import trio

F = TypeVar("F", bound=Callable[..., object])

# What is used without being called, for messages.
PROPERTIES = frozenset(("size", "memory", "SchedulingGroup.limiter"))
# Code of our functions that call the user's code, which is no part of a step.
_callers: set[CodeType] = set()


def calls_user(function: F) -> F:
    """Mark a function that calls or awaits the user's code, which may use the cache.

    It must be the innermost decorator, as others may wrap the function.
    """
    _callers.add(function.__code__)
    return function


# Spelt as in the `co_filename` of this package's code.
_FOLDER = os.path.join(os.path.dirname(calls_user.__code__.co_filename), "")  # noqa: PTH118, PTH120
_CORE = os.path.join(_FOLDER, "_core", "")  # noqa: PTH118
# Files that use a cache as any program does, or that only wrap public methods.
_OUTSIDE = tuple(
    _FOLDER + name
    for name in (
        *(
            "_again.py",
            "_demo.py",
            "_ki.py",
            "__main__.py",
            "testing.py",
            "prometheus.py",
            "report",
        ),
        *("_outside.py", "_portal.py", "aio.py", "blocking.py", "udf"),
    )
)


def _on_stack(frame: FrameType | None, folder: str) -> bool:
    """Return whether a function of `folder` runs in `frame` or its callers, up to user code."""
    while frame is not None:
        code = frame.f_code
        if code in _callers:
            return False
        name = code.co_filename
        if name.startswith(folder) and not name.startswith(_OUTSIDE):
            return True
        frame = frame.f_back
    return False


@final
class Owner:
    """The Trio run that opened a cache. It is made in that run."""

    def __init__(self) -> None:
        self.thread: int = get_ident()
        """Identifier of the run's thread; the only thing that a hit compares, for speed."""
        self._token = trio.lowlevel.current_trio_token()
        self._over = False

    def end(self) -> None:
        """Allow reading from anywhere: the cache is closed, and its books do not change again."""
        self._over = True

    def check(self, method: str, *, waits: bool = False) -> None:
        """Check that a public method may change something now. The method itself must call it.

        Args:
            method: name of the method.
            waits: whether the method is async.

        Raises:
            RuntimeError: this is another thread or another run, no task is running, or a step is
                under way.
        """
        if not self.is_here() or not _in_task():
            raise self.refusal(method, waits=waits)
        if _on_stack(_getframe(2), _FOLDER):
            raise self._busy(method)

    def check_reading(self, method: str, *, compares: bool = False) -> None:
        """Check that a public method may read the books now. The method itself must call it.

        It needs no task, and only steps of the policy are refused. Once the cache is closed,
        reading is allowed anywhere.

        Args:
            method: name of the method.
            compares: whether it compares the policy's books with others; all steps are refused
                then.

        Raises:
            RuntimeError: this is another thread or another run, or a step is under way.
        """
        if self._over:
            return
        if not self.is_here():
            raise self.refusal(method)
        if _on_stack(_getframe(2), _FOLDER if compares else _CORE):
            raise self._busy(method)

    def may_leave(self) -> bool:
        """Return whether a lease may be given back now, as its coroutine is finalized."""
        return self.is_here() and _in_task() and not _on_stack(_getframe(2), _FOLDER)

    def is_here(self) -> bool:
        """Return whether this is the thread of the run, and the run is under way."""
        return _current_token() is self._token

    def refusal(self, method: str, *, waits: bool = False) -> RuntimeError:
        """Return the error for a method called in another thread, or outside of the run."""
        run = "run" if waits else "run_sync"
        way = f"trio.from_thread.{run}(..., trio_token=token)"
        if get_ident() == self.thread:
            here, way = "no task of it is running here", f"from another thread, use {way}"
            if _current_token() not in (None, self._token):
                here = "this is another run"
        elif _current_token() is None:
            here, way = "this is another thread", f"use {way}"
        else:
            here = "this is another Trio run"
            way = f"use {way} in a worker thread (trio.to_thread.run_sync)"
        others = ""
        if waits and _current_token() is None:
            others = "; under asyncio, use trio_wasmcache.aio, in threads trio_wasmcache.blocking"
            if method == "acquire":
                method = "acquire() or Function.call"
        asked = f"{method} must be used" if method in PROPERTIES else f"{method}() must be called"
        return RuntimeError(
            f"{asked} in the Trio run that opened the cache, but {here}; {way}, "
            "where token is trio.lowlevel.current_trio_token() of the run that opened it"
            f"{others}"
        )

    def _busy(self, method: str) -> RuntimeError:
        return RuntimeError(
            f"{method}() was called in the middle of a step of the cache, as a signal handler or a "
            "finalizer may; there, use token.run_sync_soon(...), where token is "
            "trio.lowlevel.current_trio_token() of the run that opened the cache, or receive "
            "signals with trio.open_signal_receiver"
        )


def refuse_copy(thing: object, remedy: str) -> NoReturn:
    """Refuse to pickle or copy a part of an open cache: `__reduce__` of its class.

    Raises:
        TypeError: always.
    """
    raise TypeError(
        f"{type(thing).__name__} can't be pickled or copied, as it belongs to an open cache: "
        f"{remedy}"
    )


def check_trio(function: str) -> None:
    """Check that a Trio task is running here.

    Raises:
        RuntimeError: none is; the message says how to start Trio.
    """
    if not _in_task():
        raise RuntimeError(
            f"{function}() runs under Trio, and no Trio task is running here: start the program "
            "with trio.run(main), or with anyio.run(main, backend='trio'); under Hypercorn, choose "
            "its Trio worker (--worker-class trio). Under asyncio, use trio_wasmcache.aio; "
            "in a program without an event loop, trio_wasmcache.blocking"
        )


def _current_token() -> trio.lowlevel.TrioToken | None:
    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None


def _in_task() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True
