"""What is counted is of what a test does, and not of what earlier tests have left."""

from __future__ import annotations

import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected in the block.

    Else a profile function would count the finalizers of what earlier tests have left, and what
    Hypothesis has the collector call, whenever it comes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def no_new_threads() -> Iterator[None]:
    """Fail if this thread starts one in the block. Others may: they are not of this test."""
    mine, start, started = threading.get_ident(), threading.Thread.start, list[str]()

    def watched(thread: threading.Thread) -> None:
        if threading.get_ident() == mine:
            started.append(thread.name)
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", watched)
        yield
    assert started == []


async def passes(use: Callable[[], Awaitable[object]]) -> int:
    """How often another task runs in the course of a use."""
    count = 0

    async def other() -> None:
        nonlocal count
        while True:
            await trio.lowlevel.checkpoint()
            count += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        before = count
        await use()
        happened = count - before
        nursery.cancel_scope.cancel()
    return happened
