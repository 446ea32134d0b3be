"""Protects code that must run to its end, such as closing, from Ctrl-C and cancellation.

1. Code of this library that changes state is marked with `trio.lowlevel.enable_ki_protection`:
   Ctrl-C waits for the main task's next checkpoint. Marking a generator protects only part of an
   `async with`, as the code of contextlib around it stays unprotected. `ki_safe_contextmanager` is
   contextlib's decorator with that code protected.
2. A checkpoint raises Ctrl-C in shielded scopes, too. `outlast` waits without being ended by it.
"""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar, final

import trio

T = TypeVar("T")
P = ParamSpec("P")


async def outlast(event: trio.Event, seconds: float = math.inf) -> None:
    """Wait for an event, for at most `seconds`; neither cancellation nor Ctrl-C ends the wait.

    **Checkpoint:** if the event is not set yet.
    **Cancellation:** shielded. Ctrl-C is raised at the next checkpoint after the wait.
    """
    interrupted = False
    with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds) as scope:
        while not (event.is_set() or scope.cancel_called):
            try:
                await event.wait()
            except KeyboardInterrupt:
                interrupted = True
    if interrupted:
        # Trio's handler finds protected code, and defers the signal to the main task again.
        signal.raise_signal(signal.SIGINT)


async def let_others_run() -> None:
    """Let other tasks run; neither cancellation nor Ctrl-C is raised here.

    **Checkpoint:** always.
    **Cancellation:** shielded. Ctrl-C is raised at the next checkpoint.
    """
    try:
        await trio.lowlevel.cancel_shielded_checkpoint()
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)  # as above


def ki_safe_contextmanager(
    function: Callable[P, AsyncIterator[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """Decorate as `contextlib.asynccontextmanager`, with entering and leaving safe from Ctrl-C."""
    make = asynccontextmanager(function)

    @functools.wraps(function)
    def protected(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _KISafe(make(*args, **kwargs), function.__name__)

    return protected


@final
class _KISafe(AbstractAsyncContextManager[T]):
    def __init__(self, manager: AbstractAsyncContextManager[T], name: str) -> None:
        self._manager = manager
        self._name = name

    if not TYPE_CHECKING:  # checkers find these mistakes by themselves

        def __enter__(self) -> NoReturn:
            raise TypeError(f"use async with {self._name}(...), not with")

        def __exit__(self, *_: object) -> NoReturn:
            raise AssertionError("it can't be entered so")

        def __await__(self) -> NoReturn:
            raise TypeError(f"use async with {self._name}(...) as ..., not await")

        def __getattr__(self, name: str) -> NoReturn:
            function = vars(self).get("_name", "it")  # it may be copied without its attributes
            raise AttributeError(
                f"{function}() has no attribute {name!r} before it is entered: use async with "
                f"{function}(...) as ..."
            )

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> T:
        return await self._manager.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, traceback)
