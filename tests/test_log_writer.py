"""The log's thread: a sink that is slow, stuck or broken is its own problem."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from kits import FakeKit, ListLogger, add
from report.logs import make

from trio_wasmcache import CacheConfig, open_cache
from trio_wasmcache._cache import open as open_file
from trio_wasmcache._cache.open import open_with
from trio_wasmcache._core.events import Event, Removed, Replayable
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._log import (
    BUFFER_EVENTS,
    BUFFER_VALUES,
    InlineLogWriter,
    Render,
    ThreadedLogWriter,
)


def fact(number: int) -> Removed:
    """An event to tell apart from others."""
    return Removed(function=f"f{number}", arg_types="", generation=1)


CALL = make(Replayable)


class StuckLogger(ListLogger):
    """Stands still at its first event, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.reached = threading.Event()
        self.wanted = 0
        self.written = threading.Event()
        """Set when `wanted` events are written."""

    def info(self, event: str, **fields: Any) -> None:
        self.reached.set()
        assert self.let_go.wait(600)
        super().info(event, **fields)
        if len(self.lines) == self.wanted:
            self.written.set()


class BrokenLogger(ListLogger):
    """Raises for every other event."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error
        self.count = 0

    def info(self, event: str, **fields: Any) -> None:
        self.count += 1
        if self.count % 2:
            raise self.error("the disk is full")
        super().info(event, **fields)


async def test_events_are_written_in_order_by_one_other_thread() -> None:
    """All of them, before closing ends."""
    threads = set()

    class Logger(ListLogger):
        def info(self, event: str, **fields: Any) -> None:
            threads.add(threading.current_thread())
            super().info(event, **fields)

    logger = Logger()
    writer = ThreadedLogWriter(logger)
    for number in range(1000):
        writer.add(fact(number), float(number))
    await writer.close(60)
    assert [fields["seq"] for _, _, fields in logger.lines] == list(range(1, 1001))
    assert [fields["at_seconds"] for _, _, fields in logger.lines] == list(range(1000))
    assert len(threads) == 1
    assert threads != {threading.current_thread()}
    assert (writer.lost, writer.failures) == (0, 0)


async def test_a_full_buffer_drops_events_and_says_how_many() -> None:
    """The gap in the numbers is told by an event in its place, as a warning."""
    logger = StuckLogger()
    writer = ThreadedLogWriter(logger)
    writer.add(fact(0), 0.0)
    await trio.to_thread.run_sync(logger.reached.wait, 60)
    for number in range(1, BUFFER_EVENTS + 1):
        writer.add(fact(number), 1.0)
    assert writer.lost == 0
    for number in range(7):
        writer.add(fact(number), 2.0)
    assert writer.lost == 7
    logger.let_go.set()
    await writer.close(60)
    numbers = [fields["seq"] for _, _, fields in logger.lines]
    first_lost = BUFFER_EVENTS + 2
    assert numbers == [*range(1, first_lost), first_lost + 7]
    level, event, fields = logger.lines[-1]
    assert (level, event) == ("warning", "wasmcache.lost")
    assert (fields["count"], fields["first_seq"]) == (7, first_lost)


async def test_the_log_goes_on_after_a_gap() -> None:
    """The `lost` event comes where the gap is, before what came after it."""
    logger = StuckLogger()
    writer = ThreadedLogWriter(logger)
    writer.add(fact(0), 0.0)
    await trio.to_thread.run_sync(logger.reached.wait, 60)
    for number in range(BUFFER_EVENTS + 3):
        writer.add(fact(number), 1.0)
    logger.wanted = BUFFER_EVENTS + 1
    logger.let_go.set()
    assert await trio.to_thread.run_sync(logger.written.wait, 60)
    writer.add(fact(99), 5.0)
    await writer.close(60)
    tail = logger.lines[-2:]
    assert [event for _, event, _ in tail] == ["wasmcache.lost", "wasmcache.removed"]
    numbers = [fields["seq"] for _, _, fields in logger.lines]
    assert numbers == sorted(numbers)
    first, count = tail[0][2]["first_seq"], tail[0][2]["count"]
    assert set(range(1, numbers[-1])) - set(numbers) == set(range(first, first + count))
    assert tail[0][2]["count"] == writer.lost == 3


@pytest.mark.parametrize("error", [OSError, SystemExit])
async def test_a_failing_sink_kills_nothing(fake: FakeKit, error: type[BaseException]) -> None:
    """What it fails on is counted; the rest is written, and the cache never notices."""
    logger = BrokenLogger(error)
    async with open_with(CacheConfig(), fake.engine, ThreadedLogWriter(logger)) as cache:
        f = await add(cache, "f", fake.adding(1))
        assert await f.call(1) == 2
    stats = cache.stats()
    assert stats.log_failures == (logger.count + 1) // 2
    assert len(logger.lines) == logger.count // 2
    assert logger.lines[-1][1] in ("wasmcache.closed", "wasmcache.evicted")


async def test_a_failing_sink_of_the_inline_writer(fake: FakeKit) -> None:
    """The same, where there is no thread."""
    logger = BrokenLogger(OSError)
    async with fake.open(logger=logger) as cache:
        f = await add(cache, "f", fake.adding(1))
        assert await f.call(1) == 2
        assert cache.stats().log_failures >= 2
    writer = InlineLogWriter(BrokenLogger(OSError))
    writer.add(fact(1), 0.0)
    assert (writer.failures, writer.lost) == (1, 0)


async def test_a_cache_that_can_not_be_made(fake: FakeKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is closed, and the log's thread ends."""
    monkeypatch.setattr(open_file, "Pool", lambda *_: 1 // 0)
    writer = ThreadedLogWriter(ListLogger())
    with pytest.raises(ZeroDivisionError):
        async with open_with(CacheConfig(), fake.engine, writer):
            pass
    assert fake.engine.closed
    assert writer._closing.is_set()


async def test_a_stuck_sink_delays_no_call(fake: FakeKit) -> None:
    """A hundred leases come and go while the log's thread stands still at the first event."""
    logger = StuckLogger()
    config = CacheConfig(log_uses=True)
    async with open_with(config, fake.engine, ThreadedLogWriter(logger)) as cache:
        f = await add(cache, "f", fake.adding(1))
        for number in range(100):
            assert await f.call(number) == number + 1
        assert logger.lines == []
        logger.let_go.set()
    assert len(logger.fields("acquired")) == 100
    assert logger.lines[-1][1] == "wasmcache.closed"


async def test_closing_waits_for_a_stuck_sink_as_long_as_it_is_told() -> None:
    """With no time at all, leaving the cache ends although nothing was written."""
    logger = StuckLogger()
    async with open_cache(CacheConfig(log_flush_timeout=0), logger=logger):
        pass
    assert logger.lines == []
    logger.let_go.set()


async def test_the_flush_is_shielded(fake: FakeKit) -> None:
    """In a cancelled scope, too, the log is written to the end."""
    logger = StuckLogger()
    with trio.CancelScope() as scope:
        async with open_with(CacheConfig(), fake.engine, ThreadedLogWriter(logger)):
            scope.cancel()
            logger.let_go.set()
    assert logger.lines[-1][1] == "wasmcache.closed"


async def test_closing_is_not_missed_by_a_thread_about_to_write() -> None:
    """It may be told between its look at whether to close and its forgetting that it was woken."""
    logger = ListLogger()
    writer = ThreadedLogWriter(logger)
    threads: list[threading.Thread] = []
    has_looked, was_told = threading.Event(), threading.Event()

    class Wake(threading.Event):
        def clear(self) -> None:
            threads.append(threading.current_thread())
            has_looked.set()
            assert was_told.wait(600)
            super().clear()

    before, writer._wake = writer._wake, Wake()
    writer.add(fact(1), 0.0)
    before.set()
    assert await trio.to_thread.run_sync(has_looked.wait, 60)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.close, 600)
        while not writer._wake.is_set() or not writer._closing.is_set():
            await trio.lowlevel.checkpoint()
        was_told.set()
    threads[0].join(600)
    assert not threads[0].is_alive()
    assert len(logger.lines) == 1


async def test_where_no_thread_can_start_no_cache_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing native is left."""

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    engines: list[WasmtimeEngine] = []
    make = WasmtimeEngine.__init__

    def note(engine: WasmtimeEngine, *arguments: Any) -> None:
        engines.append(engine)
        make(engine, *arguments)

    monkeypatch.setattr(WasmtimeEngine, "__init__", note)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError, match="new thread"):
        async with open_cache():
            pass
    (engine,) = engines
    with pytest.raises(trio.ClosedResourceError):
        engine.open()


def snapshot_of(parts: int, taken: list[int] | None = None) -> Render:
    """A snapshot of so many parts; `taken` is told at which event."""

    def render(last: int) -> Iterator[Event]:
        if taken is not None:
            taken.append(last)
        return (Removed(function=f"part {n}", arg_types="", generation=last) for n in range(parts))

    return render


async def test_calls_with_their_values_displace_no_event() -> None:
    """They have places of their own, few as they are large."""
    logger = StuckLogger()
    writer = ThreadedLogWriter(logger)
    writer.add(fact(0), 0.0)
    await trio.to_thread.run_sync(logger.reached.wait, 60)
    kept = [writer.add_values(CALL, 1.0) for _ in range(BUFFER_VALUES + 5)]
    assert kept == [True] * BUFFER_VALUES + [False] * 5
    for number in range(BUFFER_EVENTS):
        writer.add(fact(number), 2.0)
    assert writer.lost == 0
    logger.wanted = 1 + BUFFER_VALUES
    logger.let_go.set()
    assert await trio.to_thread.run_sync(logger.written.wait, 60)
    assert writer.add_values(CALL, 3.0)
    await writer.close(60)
    assert [fields["seq"] for _, _, fields in logger.lines] == [*range(1, len(logger.lines) + 1)]
    assert len(logger.fields("replayable")) == BUFFER_VALUES + 1
    assert len(logger.fields("removed")) == 1 + BUFFER_EVENTS


async def test_a_snapshot_is_written_while_no_event_waits() -> None:
    """After all events that were in the buffer, also those that came later; it knows its own."""
    logger = StuckLogger()
    writer = ThreadedLogWriter(logger)
    writer.add(fact(0), 5.0)
    await trio.to_thread.run_sync(logger.reached.wait, 60)
    taken: list[int] = []
    writer.add(fact(1), 6.0)
    writer.add_snapshot(snapshot_of(3, taken), 7.0)
    assert not writer.takes_snapshot, "one at a time"
    for number in range(2, 50):
        writer.add(fact(number), 8.0)
    logger.wanted = 53
    logger.let_go.set()
    assert await trio.to_thread.run_sync(logger.written.wait, 60)
    await writer.close(60)
    assert taken == [2]
    lines = [fields for _, _, fields in logger.lines]
    assert [line["function"] for line in lines] == [
        *(f"f{number}" for number in range(50)),
        *(f"part {number}" for number in range(3)),
    ]
    assert [line["seq"] for line in lines] == [*range(1, 54)]
    # Its parts have the time of the event before them, so that no clock seems to go back.
    assert [line["at_seconds"] for line in lines[-4:]] == [8.0] * 4
    assert writer.takes_snapshot
    assert (writer.lost, writer.snapshots_lost) == (0, 0)


async def test_a_snapshot_displaces_no_event() -> None:
    """A full buffer holds as many events with one in it; with events dropped, none is taken."""
    logger = StuckLogger()
    writer = ThreadedLogWriter(logger)
    writer.add(fact(0), 0.0)
    await trio.to_thread.run_sync(logger.reached.wait, 60)
    writer.add_snapshot(snapshot_of(1000), 0.0)
    for number in range(BUFFER_EVENTS):
        writer.add(fact(number), 1.0)
    assert writer.lost == 0
    writer.add(fact(7), 2.0)
    assert writer.lost == 1
    assert not writer.takes_snapshot
    logger.wanted = 1 + BUFFER_EVENTS
    logger.let_go.set()
    assert await trio.to_thread.run_sync(logger.written.wait, 60)
    assert {fields["function"][0] for _, _, fields in logger.lines[: 1 + BUFFER_EVENTS]} == {"f"}
    await writer.close(60)
    assert [event for _, event, _ in logger.lines].count("wasmcache.lost") == 1
    numbers = [fields["seq"] for _, _, fields in logger.lines]
    assert numbers == sorted(numbers)
    assert len(numbers) == 1 + BUFFER_EVENTS + 1 + 1000


@pytest.mark.parametrize("error", [OSError, SystemExit])
async def test_a_dead_sink_is_reported_once(
    error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line on stderr, as nothing else would tell until somebody reads `stats()`."""
    writer = ThreadedLogWriter(BrokenLogger(error), label="prices")
    for number in range(8):
        writer.add(fact(number), 1.0)
    await writer.close(60)
    assert writer.failures == 4
    assert capsys.readouterr().err == (
        "trio_wasmcache (prices): the log's sink raised for wasmcache.removed: "
        f"{error.__name__}: the disk is full; "
        "further failures are counted in stats().log_failures only\n"
    )


async def test_a_dead_sink_of_the_inline_writer_is_reported_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same, where there is no thread."""
    writer = InlineLogWriter(BrokenLogger(OSError))
    for number in range(8):
        writer.add(fact(number), 1.0)
    said = capsys.readouterr().err
    assert said.startswith("trio_wasmcache: the log's sink raised for wasmcache.removed: OSError")
    assert said.count("\n") == 1


class Unreadable(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("closed", [False, True])
async def test_a_dead_sink_without_a_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed: bool
) -> None:
    """Nothing is said, and nothing fails: there may be none, it may be closed, or the text fail."""
    stream = io.StringIO()
    stream.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream if closed else None)
        writer = InlineLogWriter(BrokenLogger(OSError))
        writer.add(fact(1), 1.0)
        assert writer.failures == 1

    class Logger(ListLogger):
        def info(self, event: str, **fields: Any) -> None:
            raise Unreadable

    InlineLogWriter(Logger()).add(fact(1), 1.0)
    assert capsys.readouterr() == ("", "")


class ExitingStream(io.StringIO):
    """A stderr of an application's own that ends whoever writes to it."""

    def write(self, text: str) -> int:
        raise SystemExit(text)


async def test_no_stderr_ends_the_thread_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, later events are written."""
    logger = BrokenLogger(OSError)
    monkeypatch.setattr(sys, "stderr", ExitingStream())
    writer = ThreadedLogWriter(logger)
    for number in range(8):
        writer.add(fact(number), 1.0)
    await writer.close(60)
    assert (writer.failures, len(logger.lines), writer.lost) == (4, 4, 0)


async def test_a_snapshot_that_can_not_be_rendered_ends_nothing() -> None:
    """It is counted as a failure, and the next one is written."""
    logger = ListLogger()
    writer = ThreadedLogWriter(logger)

    def render(last: int) -> Iterator[Event]:
        yield fact(last)
        raise MemoryError

    writer.add(fact(0), 0.0)
    writer.add_snapshot(render, 0.0)
    await writer.close(60)
    assert (writer.failures, len(logger.lines)) == (1, 2)
    assert writer.takes_snapshot
