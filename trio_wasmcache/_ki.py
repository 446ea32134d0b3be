"""Keeps Ctrl-C, and cancellation, out of what must not be cut in two: closing, above all.

1. Code of ours that changes state is marked with `trio.lowlevel.enable_ki_protection`: Ctrl-C waits
   for the main task's next checkpoint. But with a generator marked so, only part of an `async with`
   is: around it is the code of contextlib. `opening` is contextlib's decorator with that protected.
2. A checkpoint raises Ctrl-C in shielded scopes, too. `outlast` is a wait that it does not end.
"""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import ParamSpec, TypeVar, final

import trio

T = TypeVar("T")
P = ParamSpec("P")


async def outlast(event: trio.Event, seconds: float = math.inf) -> None:
    """Wait for an event, for at most so many seconds, whatever comes.

    **Checkpoint:** if it has not happened yet.
    **Cancellation:** shielded. Ctrl-C is raised at the next checkpoint instead.
    """
    interrupted = False
    with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds) as scope:
        while not (event.is_set() or scope.cancel_called):
            try:
                await event.wait()
            except KeyboardInterrupt:
                interrupted = True
    if interrupted:
        # Trio's handler finds protected code, and keeps it for the main task once more.
        signal.raise_signal(signal.SIGINT)


async def let_others_run() -> None:
    """Let other tasks run, whatever comes.

    **Checkpoint:** always.
    **Cancellation:** shielded. Ctrl-C is raised at the next checkpoint instead.
    """
    try:
        await trio.lowlevel.cancel_shielded_checkpoint()
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)  # as above


def opening(
    function: Callable[P, AsyncIterator[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """`contextlib.asynccontextmanager`; Ctrl-C cuts neither entering nor leaving in two."""
    make = asynccontextmanager(function)

    @functools.wraps(function)
    def protected(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _Opening(make(*args, **kwargs))

    return protected


@final
class _Opening(AbstractAsyncContextManager[T]):
    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._manager = manager

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
