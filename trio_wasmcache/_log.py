"""Writes a cache's events to structlog; the only file that imports it.

Events are put into a bounded buffer, which never waits. A thread of the log's own takes them out
and writes them, so that a slow sink delays nobody and an error of the sink ends nothing. A full
buffer drops events, and the log reports how many and which.

An event that a task caused is rendered in a copy of the task's context, so that structlog's
`merge_contextvars` and OpenTelemetry's current span are those of the task. Another thread can't
enter the context itself. A copy is cheap, but keeps alive all that the task has bound: the buffer
holds a limited number of different ones, and drops each after its last event.

A snapshot has a lane of its own: its parts are made and written one by one, by the log's thread,
while no event waits. So it displaces no event. While one is not written whole, there is no other.

Only the writing thread numbers events, in the order in which it writes them.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
import logging
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import NamedTuple, Protocol, TypeAlias, final

import structlog
import trio

from ._core.events import Event, Lost, Output, Replayable, Stamped
from ._core.text import printable, shown
from ._ki import outlast
from ._threads import no_autojump

# At about 1 KB an event, a sink may fall 10 MB behind before events are dropped.
BUFFER_EVENTS = 10_000
# The thread gathers events for this long (seconds) before it writes them. Waking it for each event
# would make it compete with the event loop for the GIL: that cost more than loading an instance.
GATHER = 0.01
# Number of different contexts in the buffer. A context may hold a request's body and session; a
# stuck sink must not keep those of all requests since.
MAX_CONTEXTS = 1000
# With that many in the buffer, the writer looks again which are still needed after this number of
# events was written: looking takes 30 µs.
LOOK_AGAIN = 100
# What guests write has a part of the buffer of its own, so that it displaces no other event; and
# its events take no more than half of the contexts.
BUFFER_OUTPUTS = 1000
# Calls with their values have one, too: of at most 64 KiB each.
BUFFER_VALUES = 100
# Characters of a label: every event has it.
MAX_LABEL = 100
# Characters of the reason why a sink fails.
MAX_REASON = 300

Render: TypeAlias = Callable[[int], Iterator[Event]]
"""Returns the parts of a snapshot that was taken after the event of that number; any thread may
call it, and iterate."""


@final
class Origin:
    """The context of a task at its first event, for all events of one request that it causes.

    Args:
        context: the context of the task, which is copied.
    """

    __slots__ = ("context", "uses")

    def __init__(self, context: Context) -> None:
        self.context: Context = context.copy()
        self.uses: _Uses = _Uses()


@final
class _Uses:
    """Number of events of one origin that were put into the buffer, and that were written.

    Apart from the origin, so that counting does not keep its context alive. Each field is changed
    by one thread only.
    """

    # Defaults in the class, so that making one calls nothing.
    added: int = 0
    written: int = 0
    listed: bool = False  # whether the writer counts its context as one in the buffer


class LogWriter(Protocol):
    """The destination of a cache's events."""

    label: str
    """Label of the cache, which every event has."""
    lost: int
    """Number of events that were dropped because the buffer was full."""
    failures: int
    """Number of events for which the sink raised."""
    context_lost: int
    """Number of events that were written without the context of the task that caused them."""
    snapshots_lost: int
    """Number of snapshots that were not taken, as `takes_snapshot` was False."""

    @property
    def takes_snapshot(self) -> bool:
        """Whether a snapshot can be added: none is being written, and events are not dropped."""

    def add_snapshot(self, render: Render, at: float) -> None:
        """Take note of a snapshot that was taken now, at time `at`, while `takes_snapshot`."""

    def lose_snapshot(self) -> None:
        """Count a snapshot that was not taken."""

    def add(self, event: Event, at: float, origin: Origin | None = None) -> None:
        """Take note of `event`, which happened at time `at` (seconds, the cache's clock).

        It is rendered in the context of `origin`; None: in an empty one.
        """

    def add_output(self, event: Output, at: float, origin: Origin | None = None) -> bool:
        """Take note of what a guest wrote, as `add` does; return False if it was dropped.

        A dropped one is neither stamped nor counted here.
        """

    def add_values(self, event: Replayable, at: float, origin: Origin | None = None) -> bool:
        """Take note of a call with its values, as `add_output` does of what a guest wrote."""

    async def close(self, timeout: float) -> None:
        """Wait for the noted events to be written, for at most `timeout` seconds, and end.

        **Checkpoint:** always.
        **Cancellation:** shielded.
        """


def write(logger: object, stamped: Stamped, origin: Origin | None) -> None:
    """Write one event to structlog, at its level, in the context of its origin."""
    # A copy again, as a processor may set variables, which are not for the next event.
    context = Context() if origin is None else origin.context.copy()
    context.run(_write_here, logger, stamped)


def check_logger(logger: object) -> None:
    """Check that a logger takes events with fields.

    A logger that raises for every event would lose the whole log, and only `stats()` would tell.

    Raises:
        TypeError: it is no structlog logger, nor works as one.
    """
    if logger is None or callable(getattr(logger, "bind", None)):
        return
    remedy = "leave it out for structlog's own configuration, or pass structlog.wrap_logger(...)"
    if not callable(getattr(logger, "info", None)) or isinstance(logger, type):
        raise TypeError(f"logger must be a structlog logger, got {shown(logger)}: {remedy}")
    takes_fields = not isinstance(logger, (logging.Logger, logging.LoggerAdapter))
    if takes_fields:
        with contextlib.suppress(ValueError):  # a function may have no signature
            info: Callable[..., object] = getattr(logger, "info")  # noqa: B009 -- has one by now
            parameters = inspect.signature(info).parameters.values()
            takes_fields = any(one.kind is one.VAR_KEYWORD for one in parameters)
    if not takes_fields:
        raise TypeError(
            f"logger must be a structlog logger, which takes fields, got {shown(logger)}: "
            "pass structlog.wrap_logger(logger)"
        )


def check_label(label: object) -> str:
    """Return the label of a cache.

    Raises:
        TypeError: it is no str.
        ValueError: it is longer than `MAX_LABEL`, or can't be printed.
    """
    if not isinstance(label, str):
        raise TypeError(f"label must be a str, got {shown(label)}")
    if len(label) > MAX_LABEL or not label.isprintable():
        raise ValueError(
            f"label must be printable, of at most {MAX_LABEL} characters, got {shown(label)}"
        )
    return label


def _report(failures: int, event: str, label: str, error: BaseException) -> None:
    """Say on stderr that the sink has failed, the first time: a dead log has no other place.

    Neither by `warnings`, which a program may turn into errors, nor by `logging`, which may be the
    sink that has failed.
    """
    # Stderr may be closed, or the application's own; an error may have no text. Whatever that
    # raises, `SystemExit` included, must not end the log's thread.
    with contextlib.suppress(BaseException):
        if failures > 1 or sys.stderr is None:
            return
        cache = f"trio_wasmcache ({label})" if label else "trio_wasmcache"
        reason = printable(f"{type(error).__name__}: {error}", MAX_REASON)
        print(
            f"{cache}: the log's sink raised for {event}: {reason}; "
            "further failures are counted in stats().log_failures only",
            file=sys.stderr,
            flush=True,
        )


def _write_here(logger: object, stamped: Stamped) -> None:
    getattr(logger, stamped.event.level)(stamped.event.name, **stamped.fields())


class Stamper:
    """Stamps the events of one cache with its identifier, its label and a sequence number.

    Only one thread uses it.
    """

    def __init__(self, label: str) -> None:
        self.cache = secrets.token_hex(4)
        self.label = label
        self.last: int = 0
        """The last sequence number."""
        self._at = 0.0

    def stamp(self, event: Event, at: float, context_lost: bool = False) -> Stamped:
        """Return `event` with the next sequence number of this cache."""
        self.last += 1
        self._at = at
        return Stamped(event, self.cache, self.last, at, context_lost, self.label)

    def stamp_part(self, part: Event, at: float) -> Stamped:
        """Return a part of a snapshot taken at time `at`, as of the time of the event before it."""
        return self.stamp(part, max(at, self._at))

    def stamp_lost(self, count: int, at: float) -> Stamped:
        """Return an event about `count` events that were dropped: their numbers are before it."""
        first = self.last + 1
        self.last += count
        return self.stamp(Lost(count=count, first_seq=first), at)


@final
class _Dropped(NamedTuple):
    """A mark in the buffer: a number of events that were dropped here."""

    events: int


@final
class _Taken(NamedTuple):
    """A mark in the buffer: a snapshot was taken here."""

    render: Render


@final
class ThreadedLogWriter:
    """A `LogWriter` that writes in a thread of its own.

    The thread is a daemon: a sink that never returns can't keep the process from exiting.
    """

    def __init__(self, logger: object = None, label: str = "") -> None:
        self._logger = structlog.get_logger("trio_wasmcache") if logger is None else logger
        self.label: str = label
        self._stamper = Stamper(label)
        # (event, its time, whether its context is lost, its origin)
        self._events: collections.deque[
            tuple[Event | _Dropped | _Taken, float, bool, Origin | None]
        ] = collections.deque()
        self._parts: Iterator[Event] | None = None
        """Parts of a snapshot that are not written yet; only the log's thread uses it."""
        self._parts_at = 0.0
        self._contexts: list[_Uses] = []  # of the different contexts that may be in the buffer
        self._written_events = 0  # changed by the log's thread only
        self._looked_at = 0  # `_written_events` when it was last looked which are still needed
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._written: Callable[[], object] | None = None
        """Callback that tells `close` that all events are written; None until `close` is called."""
        self._awake = False  # whether the thread has been woken and has not begun to write
        self._gap: tuple[int, float] | None = None  # (count, time) of dropped ones
        # Each is changed by one thread only: the one that adds, and the log's.
        self._outputs_added = self._outputs_written = 0
        self._values_added = self._values_written = 0
        self._snapshots_added = self._snapshots_begun = self._snapshots_written = 0
        self.lost = 0
        self.failures = 0
        self.context_lost = 0
        self.snapshots_lost = 0
        threading.Thread(target=self._run, name="trio_wasmcache log", daemon=True).start()

    def add(self, event: Event, at: float, origin: Origin | None = None) -> None:
        full = len(self._events) >= BUFFER_EVENTS and self._full
        if self._gap is not None and not full:
            self._note_gap(*self._gap)
        if full:
            count, _ = self._gap or (0, at)
            self._gap = (count + 1, at)
            self.lost += 1
            return
        self._put(event, at, origin, MAX_CONTEXTS)

    @property
    def _full(self) -> bool:
        """Whether the buffer has no place for another event that is no output."""
        others = self._outputs_added - self._outputs_written
        others += self._values_added - self._values_written
        others += self._snapshots_added - self._snapshots_begun
        return len(self._events) - others >= BUFFER_EVENTS

    @property
    def takes_snapshot(self) -> bool:
        written = self._snapshots_added == self._snapshots_written
        return written and self._gap is None and not self._full

    def add_snapshot(self, render: Render, at: float) -> None:
        self._snapshots_added += 1
        self._append(_Taken(render), at, False, None)

    def lose_snapshot(self) -> None:
        self.snapshots_lost += 1

    def add_output(self, event: Output, at: float, origin: Origin | None = None) -> bool:
        if self._outputs_added - self._outputs_written >= BUFFER_OUTPUTS:
            return False
        self._outputs_added += 1
        self._put(event, at, origin, MAX_CONTEXTS // 2)
        return True

    def add_values(self, event: Replayable, at: float, origin: Origin | None = None) -> bool:
        if self._values_added - self._values_written >= BUFFER_VALUES:
            return False
        self._values_added += 1
        self._put(event, at, origin, MAX_CONTEXTS // 2)
        return True

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

    def _put(self, event: Event, at: float, origin: Origin | None, max_contexts: int) -> None:
        """Stamp an event and put it into the buffer, with its context if that can be kept."""
        context_lost = False
        if origin is not None:
            uses = origin.uses
            if not uses.listed:
                if len(self._contexts) >= max_contexts:
                    self._forget_written_contexts()
                if len(self._contexts) < max_contexts:
                    self._contexts.append(uses)
                    uses.listed = True
            if uses.listed:
                uses.added += 1
            else:
                context_lost, origin = True, None
                self.context_lost += 1
        self._append(event, at, context_lost, origin)

    def _append(
        self, event: Event | _Dropped | _Taken, at: float, context_lost: bool, origin: Origin | None
    ) -> None:
        self._events.append((event, at, context_lost, origin))
        if not self._awake:
            self._awake = True
            self._wake.set()

    def _forget_written_contexts(self) -> None:
        if self._written_events - self._looked_at < LOOK_AGAIN:
            return
        self._looked_at = self._written_events
        queued = []
        for uses in self._contexts:
            uses.listed = uses.written < uses.added
            if uses.listed:
                queued.append(uses)
        self._contexts = queued

    def _note_gap(self, count: int, at: float) -> None:
        self._gap = None
        self._append(_Dropped(count), at, False, None)

    def _run(self) -> None:
        closing = False
        while not closing:
            if self._parts is None:
                self._wake.wait()
            self._closing.wait(GATHER)
            # In this order: an event added after `clear` is either written below or wakes the
            # thread again; and `close` sets `_closing` before it wakes the thread.
            self._wake.clear()
            self._awake = False
            closing = self._closing.is_set()
            self._write_events()
            # One part at a time, as rendering it keeps the event loop from the GIL.
            self._write_part()
            while closing and self._parts is not None:
                self._write_part()
        assert self._written is not None
        with contextlib.suppress(trio.RunFinishedError):  # `close` timed out, and the run is over
            self._written()

    def _write_events(self) -> None:
        """Write all events that are in the buffer."""
        while self._events:
            event, at, context_lost, origin = self._events.popleft()
            if isinstance(event, _Taken):
                self._snapshots_begun += 1
                self._parts, self._parts_at = event.render(self._stamper.last), at
            elif isinstance(event, _Dropped):
                self._write(self._stamper.stamp_lost(event.events, at), None)
            else:
                self._outputs_written += isinstance(event, Output)
                self._values_written += isinstance(event, Replayable)
                self._write(self._stamper.stamp(event, at, context_lost), origin)
            del event, origin  # or they keep a context, and a snapshot, until the next event

    def _write_part(self) -> None:
        """Write the next part of a snapshot, if there is one."""
        if self._parts is None:
            return
        try:
            part = next(self._parts, None)
        except Exception as error:  # for lack of memory
            self._note_failure("a snapshot", error)
            part = None
        if part is None:
            self._parts = None
            self._snapshots_written += 1
        else:
            self._write(self._stamper.stamp_part(part, self._parts_at), None)

    def _write(self, stamped: Stamped, origin: Origin | None) -> None:
        try:
            write(self._logger, stamped, origin)
        except BaseException as error:  # `SystemExit` would silently end this thread, and the log
            self._note_failure(stamped.event.name, error)
        self._written_events += 1
        if origin is not None:
            origin.uses.written += 1

    def _note_failure(self, event: str, error: BaseException) -> None:
        self.failures += 1
        _report(self.failures, event, self.label, error)


@final
class NoLogWriter:
    """A `LogWriter` that drops all events, for tests that look at none."""

    def __init__(self, label: str = "") -> None:
        self.label: str = label
        self.lost = 0
        self.failures = 0
        self.context_lost = 0
        self.snapshots_lost = 0

    @property
    def takes_snapshot(self) -> bool:
        return False

    def add_snapshot(self, render: Render, at: float) -> None:
        """Drop the snapshot."""

    def lose_snapshot(self) -> None:
        """Do nothing, as no log is kept at all."""

    def add(self, event: Event, at: float, origin: Origin | None = None) -> None:
        """Drop `event`."""

    def add_output(self, event: Output, at: float, origin: Origin | None = None) -> bool:
        """Drop `event`."""
        del event, at, origin
        return True

    def add_values(self, event: Replayable, at: float, origin: Origin | None = None) -> bool:
        """Drop `event`."""
        del event, at, origin
        return True

    async def close(self, timeout: float) -> None:
        del timeout  # nothing is to be written
        await trio.lowlevel.cancel_shielded_checkpoint()


@final
class InlineLogWriter:
    """A `LogWriter` that writes at once, in the calling thread, for tests and mock clocks."""

    def __init__(self, logger: object = None, label: str = "") -> None:
        self._logger = structlog.get_logger("trio_wasmcache") if logger is None else logger
        self.label: str = label
        self._stamper = Stamper(label)
        self.lost = 0
        self.failures = 0
        self.context_lost = 0
        self.snapshots_lost = 0

    @property
    def takes_snapshot(self) -> bool:
        return True

    def add_snapshot(self, render: Render, at: float) -> None:
        for part in render(self._stamper.last):
            self._write(self._stamper.stamp_part(part, at), None)

    def lose_snapshot(self) -> None:
        self.snapshots_lost += 1

    def add(self, event: Event, at: float, origin: Origin | None = None) -> None:
        self._write(self._stamper.stamp(event, at), origin)

    def _write(self, stamped: Stamped, origin: Origin | None) -> None:
        try:
            write(self._logger, stamped, origin)
        except Exception as error:
            self.failures += 1
            _report(self.failures, stamped.event.name, self.label, error)

    def add_output(self, event: Output, at: float, origin: Origin | None = None) -> bool:
        self.add(event, at, origin)
        return True

    def add_values(self, event: Replayable, at: float, origin: Origin | None = None) -> bool:
        self.add(event, at, origin)
        return True

    async def close(self, timeout: float) -> None:
        del timeout  # everything is written already
        await trio.lowlevel.cancel_shielded_checkpoint()
