"""Writes a cache's events to structlog; the only file that imports it.

Events are put into a bounded buffer, which never waits. A thread of the log's own takes them out
and writes them, so that a slow sink delays nobody and an error of the sink ends nothing. A full
buffer drops events, and the log reports how many and which.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import secrets
import threading
from collections.abc import Callable
from typing import Protocol, final

import structlog
import trio

from ._core.events import Event, Lost, Stamped
from ._ki import outlast
from ._threads import no_autojump

# At about 1 KB an event, a sink may fall 10 MB behind before events are dropped.
BUFFER_EVENTS = 10_000
# The thread gathers events for this long (seconds) before it writes them. Waking it for each event
# would make it compete with the event loop for the GIL: that cost more than loading an instance.
GATHER = 0.01


class LogWriter(Protocol):
    """The destination of a cache's events."""

    lost: int
    """Number of events that were dropped because the buffer was full."""
    failures: int
    """Number of events for which the sink raised."""

    def add(self, event: Event, at: float) -> None:
        """Take note of `event`, which happened at time `at` (seconds, the cache's clock)."""

    async def close(self, timeout: float) -> None:
        """Wait for the noted events to be written, for at most `timeout` seconds, and end.

        **Checkpoint:** always.
        **Cancellation:** shielded.
        """


def write(logger: object, stamped: Stamped) -> None:
    """Write one event to structlog, at its level."""
    getattr(logger, stamped.event.level)(stamped.event.name, **stamped.fields())


class Stamper:
    """Stamps the events of one cache with the cache's identifier and a sequence number."""

    def __init__(self) -> None:
        self.cache = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def stamp(self, event: Event, at: float) -> Stamped:
        """Return `event` with the next sequence number of this cache."""
        return Stamped(event, self.cache, next(self._numbers), at)


@final
class ThreadedLogWriter:
    """A `LogWriter` that writes in a thread of its own.

    The thread is a daemon: a sink that never returns can't keep the process from exiting.
    """

    def __init__(self, logger: object = None) -> None:
        self._logger = structlog.get_logger("trio_wasmcache") if logger is None else logger
        self._stamper = Stamper()
        self._events: collections.deque[Stamped] = collections.deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._written: Callable[[], object] | None = None
        """Callback that tells `close` that all events are written; None until `close` is called."""
        self._awake = False  # whether the thread has been woken and has not begun to write
        self._gap: tuple[int, int, float] | None = None  # (first seq, count, time) of dropped ones
        self.lost = 0
        self.failures = 0
        threading.Thread(target=self._run, name="trio_wasmcache log", daemon=True).start()

    def add(self, event: Event, at: float) -> None:
        full = len(self._events) >= BUFFER_EVENTS
        if self._gap is not None and not full:
            self._note_gap(*self._gap)
        stamped = self._stamper.stamp(event, at)
        if full:
            first, count, _ = self._gap or (stamped.seq, 0, at)
            self._gap = (first, count + 1, at)
            self.lost += 1
            return
        self._put(stamped)

    async def close(self, timeout: float) -> None:
        if self._gap is not None:
            self._note_gap(*self._gap)
        # Not by `trio.to_thread`, whose threads may all be busy.
        written, token = trio.Event(), trio.lowlevel.current_trio_token()
        self._written = functools.partial(token.run_sync_soon, written.set)
        self._closing.set()
        self._wake.set()
        with no_autojump():
            await outlast(written, timeout)

    def _note_gap(self, first: int, count: int, at: float) -> None:
        self._gap = None
        self._put(self._stamper.stamp(Lost(count=count, first_seq=first), at))

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
            # In this order: an event added after `clear` is either written below or wakes the
            # thread again; and `close` sets `_closing` before it wakes the thread.
            self._wake.clear()
            self._awake = False
            closing = self._closing.is_set()
            while self._events:
                self._write(self._events.popleft())
        assert self._written is not None
        with contextlib.suppress(trio.RunFinishedError):  # `close` timed out, and the run is over
            self._written()

    def _write(self, stamped: Stamped) -> None:
        try:
            write(self._logger, stamped)
        except BaseException:  # `SystemExit` would silently end this thread, and the log
            # There is nowhere to report it but the sink that just failed; `stats()` counts it.
            self.failures += 1


@final
class NoLogWriter:
    """A `LogWriter` that drops all events, for tests that look at none."""

    def __init__(self) -> None:
        self.lost = 0
        self.failures = 0

    def add(self, event: Event, at: float) -> None:
        """Drop `event`."""

    async def close(self, timeout: float) -> None:
        del timeout  # nothing is to be written
        await trio.lowlevel.cancel_shielded_checkpoint()


@final
class InlineLogWriter:
    """A `LogWriter` that writes at once, in the calling thread, for tests and mock clocks."""

    def __init__(self, logger: object = None) -> None:
        self._logger = structlog.get_logger("trio_wasmcache") if logger is None else logger
        self._stamper = Stamper()
        self.lost = 0
        self.failures = 0

    def add(self, event: Event, at: float) -> None:
        stamped = self._stamper.stamp(event, at)
        try:
            write(self._logger, stamped)
        except Exception:
            self.failures += 1

    async def close(self, timeout: float) -> None:
        del timeout  # everything is written already
        await trio.lowlevel.cancel_shielded_checkpoint()
