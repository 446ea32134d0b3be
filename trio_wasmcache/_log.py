"""From facts to structlog: the only file that imports it.

Facts are put into a bounded buffer, which never waits; one thread of its own takes them out and
writes them, so that a slow sink delays nobody and a failing one is nobody's failure. What does not
fit into the buffer is dropped, and the log says how many and which.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import secrets
import threading
from collections.abc import Callable
from typing import Any, Protocol, final

import structlog
import trio

from ._core.events import Event, Lost, Stamped
from ._ki import outlast

# At about 1 KB an event, a sink may fall 10 MB behind before anything is lost.
BUFFER_EVENTS = 10_000
# The thread lets events come in for so long (seconds) before it writes them. To wake it for each
# would have it fight with the event loop for the GIL: that cost more than loading an instance.
GATHER = 0.01


class LogWriter(Protocol):
    """Where a cache's facts go."""

    lost: int
    """Events that were dropped because the buffer was full."""
    failures: int
    """Events that the sink raised on."""

    def add(self, event: Event, at: float) -> None:
        """Take note of `event`, which happened at time `at` (seconds, the cache's clock)."""

    async def close(self, timeout: float) -> None:
        """Let what is noted be written, for at most `timeout` seconds, and end."""


def write(logger: Any, stamped: Stamped) -> None:
    """One event to structlog, at its level."""
    getattr(logger, stamped.event.level)(stamped.event.name, **stamped.fields())


class Sequence:
    """Stamps events of one cache with its name and the next number."""

    def __init__(self) -> None:
        self.cache = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def stamp(self, event: Event, at: float) -> Stamped:
        """The next event of this cache."""
        return Stamped(event, self.cache, next(self._numbers), at)


@final
class ThreadedLogWriter:
    """A `LogWriter` with a thread of its own.

    The thread is a daemon: a sink that never returns can't keep the process from ending.
    """

    def __init__(self, logger: Any = None) -> None:
        self._logger = structlog.get_logger("trio_wasmcache") if logger is None else logger
        self._sequence = Sequence()
        self._events: collections.deque[Stamped] = collections.deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._written: Callable[[], object] | None = None
        """Tells who closes the log that all is written; None until somebody does."""
        self._awake = False  # so that it need not be woken
        self._gap: tuple[int, int, float] | None = None  # (first lost, how many, when)
        self.lost = 0
        self.failures = 0
        threading.Thread(target=self._run, name="trio_wasmcache log", daemon=True).start()

    def add(self, event: Event, at: float) -> None:
        full = len(self._events) >= BUFFER_EVENTS
        if self._gap is not None and not full:
            self._tell_gap()
        stamped = self._sequence.stamp(event, at)
        if full:
            first, count, _ = self._gap or (stamped.seq, 0, at)
            self._gap = (first, count + 1, at)
            self.lost += 1
            return
        self._put(stamped)

    async def close(self, timeout: float) -> None:
        if self._gap is not None:
            self._tell_gap()
        # Not by `trio.to_thread`, whose threads may all be taken.
        written, token = trio.Event(), trio.lowlevel.current_trio_token()
        self._written = functools.partial(token.run_sync_soon, written.set)
        self._closing.set()
        self._wake.set()
        await outlast(written, timeout)

    def _tell_gap(self) -> None:
        assert self._gap is not None
        first, count, at = self._gap
        self._gap = None
        self._put(self._sequence.stamp(Lost(count=count, first_seq=first), at))

    def _put(self, stamped: Stamped) -> None:
        self._events.append(stamped)
        if not self._awake:
            self._awake = True
            self._wake.set()

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait()
            self._closing.wait(GATHER)
            # In this order: what comes in after it is either written now, or wakes the thread; and
            # who closes has said so before waking it.
            self._wake.clear()
            self._awake = False
            closing = self._closing.is_set()
            while self._events:
                self._write(self._events.popleft())
        assert self._written is not None
        with contextlib.suppress(trio.RunFinishedError):  # they did not wait for so long
            self._written()

    def _write(self, stamped: Stamped) -> None:
        try:
            write(self._logger, stamped)
        except BaseException:  # `SystemExit` would end this thread, and the log, in silence
            # There is nobody to tell but the sink that just failed; `stats()` counts it.
            self.failures += 1


@final
class InlineLogWriter:
    """A `LogWriter` that writes at once, in the caller's thread: for tests and clocks that jump."""

    def __init__(self, logger: Any = None) -> None:
        self._logger = structlog.get_logger("trio_wasmcache") if logger is None else logger
        self._sequence = Sequence()
        self.lost = 0
        self.failures = 0

    def add(self, event: Event, at: float) -> None:
        stamped = self._sequence.stamp(event, at)
        try:
            write(self._logger, stamped)
        except Exception:
            self.failures += 1

    async def close(self, timeout: float) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
