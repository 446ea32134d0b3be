"""Each event has the context of the task that caused it, and what that holds is freed with it."""

from __future__ import annotations

import gc
import math
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import FrameType
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from kits import FakeKit, ListLogger, WasmtimeKit, add
from structlog.contextvars import bind_contextvars, bound_contextvars, merge_contextvars
from test_log_writer import StuckLogger
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, open_cache
from trio_wasmcache._cache.open import open_with
from trio_wasmcache._core.events import Removed
from trio_wasmcache._log import LOOK_AGAIN, MAX_CONTEXTS, Origin, ThreadedLogWriter

I64 = ("i64",)
span: ContextVar[object] = ContextVar("span", default=None)
"""What a tracer keeps in the context, as OpenTelemetry does its current span."""


class SpanLogger(ListLogger):
    """Adds the current span to each line."""

    def info(self, event: str, **fields: Any) -> None:
        super().info(event, **fields, span=span.get())

    def warning(self, event: str, **fields: Any) -> None:
        super().warning(event, **fields, span=span.get())

    def spans(self, event: str) -> list[object]:
        return [fields["span"] for fields in self.fields(event)]


async def in_span(name: object, work: Any, *args: Any) -> None:
    """Run `work` in the context of a span; for tasks of their own."""
    span.set(name)
    await work(*args)


async def test_each_event_has_the_context_of_its_task(fake: FakeKit) -> None:
    """Of three tasks at once, each event of a request; of nobody's, none."""
    log = SpanLogger()
    span.set("opener")
    config = CacheConfig(log_uses=True, offload_after=None)
    async with fake.open(config, logger=log) as cache:
        span.set("registrar")
        f = await add(cache, "f", fake.adding(1))

        async def use() -> None:
            async with f.acquire() as lease:
                await lease.call(1)
                span.set("set later")  # frozen at the request's first event

        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(in_span, name, use)
    assert log.spans("opened") == ["opener"]
    assert log.spans("registered") == ["registrar"]
    by_request: dict[int, set[object]] = {}
    for _, event, fields in log.lines:
        if "request" in fields:
            by_request.setdefault(fields["request"], set()).add(fields["span"])
        elif event in ("wasmcache.closed", "wasmcache.group_closed"):
            assert fields["span"] is None
    assert sorted(by_request.values(), key=str) == [{"a"}, {"b"}, {"c"}]
    assert len(log.fields("blocked")) == 2  # one instance for all
    assert log.spans("evicted") == [None]  # by closing


async def test_an_eviction_has_the_context_of_whose_need_it_was(fake: FakeKit) -> None:
    """Not that of who used the instance; expiry has none, and removing and resizing their own."""
    log = SpanLogger()
    config = CacheConfig(max_instances=1, offload_after=None)
    async with fake.open(config, logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        g = await add(cache, "g", fake.adding(2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_span, "owner", f.call, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_span, "in need", g.call, 1)
        assert (log.reasons(), log.spans("evicted")) == (["count"], ["in need"])
        assert log.spans("loaded") == ["owner", "in need"]
        span.set("remover")
        cache.remove("g")
        assert log.spans("removed") == ["remover"]
        assert log.spans("evicted")[1:] == ["remover"]
        await f.call(1)
        span.set("resizer")
        cache.resize(max_size=0)
        assert log.spans("resized") == ["resizer"]
        assert log.spans("evicted")[2:] == ["resizer"]


async def test_expiry_has_an_empty_context(
    fake: FakeKit, autojump_clock: trio.testing.MockClock
) -> None:
    """The background task evicts for nobody, whatever context the cache was opened in."""
    log = SpanLogger()
    span.set("opener")
    async with fake.open(CacheConfig(idle_timeout=5.0, offload_after=None), logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        await f.call(1)
        await trio.sleep(6)
        assert (log.reasons(), log.spans("evicted")) == (["idle"], [None])


async def test_a_cancelled_acquire_has_its_own_context(fake: FakeKit) -> None:
    """Who cancels is another task, whose context is the current one then."""
    log = SpanLogger()
    config = CacheConfig(log_uses=True, offload_after=None)
    async with fake.open(config, logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await f.call(1)

        async with f.acquire(), trio.open_nursery() as nursery:
            nursery.start_soon(in_span, "waiter", wait)
            await wait_all_tasks_blocked()
            span.set("canceller")
            scope.cancel()
        assert log.spans("abandoned") == ["waiter"]


async def test_a_failed_call_evicts_in_the_context_of_its_task(real: WasmtimeKit) -> None:
    """Without `log_uses`, the recycle that drops the instance is the first event of its lease."""
    log = SpanLogger()
    async with real.open(logger=log) as cache:
        f = await add(cache, "f", real.trapping())

        async def fail() -> None:
            with pytest.raises(Exception, match="unreachable"):
                await f.call(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_span, "caller", fail)
        assert (log.reasons(), log.spans("evicted")) == (["corrupted"], ["caller"])


async def test_structlogs_context_variables_are_merged_by_the_logs_thread() -> None:
    """`merge_contextvars` gives what the request's task has bound, in the real log's thread."""
    lines: list[dict[str, Any]] = []

    def keep(_: object, name: str, fields: Any) -> Any:
        del name
        lines.append(dict(fields))
        raise structlog.DropEvent

    logger = structlog.wrap_logger(None, processors=[merge_contextvars, keep])
    kit = WasmtimeKit()
    async with open_cache(CacheConfig(log_uses=True), logger=logger) as cache:
        f = await add(cache, "f", kit.adding(1))

        async def serve(user: str) -> None:
            with bound_contextvars(user=user):
                assert await f.call(1) == 2

        async with trio.open_nursery() as nursery:
            for user in ("ada", "bob"):
                nursery.start_soon(serve, user)
    users: dict[int, set[str]] = {}
    for line in lines:
        if "request" in line:
            users.setdefault(line["request"], set()).add(line["user"])
        else:
            assert "user" not in line
    assert sorted(users.values(), key=str) == [{"ada"}, {"bob"}]


async def test_what_a_processor_sets_is_for_its_event_only(fake: FakeKit) -> None:
    """Neither the task nor the next event sees it."""
    seen: list[object] = []

    class Setting(ListLogger):
        def info(self, event: str, **fields: Any) -> None:
            del event, fields
            seen.append(span.get())
            bind_contextvars(event="mine")
            span.set("set by the sink")

    span.set("task")
    async with fake.open(CacheConfig(log_uses=True, offload_after=None), logger=Setting()) as cache:
        f = await add(cache, "f", fake.adding(1))
        await f.call(1)
        assert span.get() == "task"
    assert set(seen) == {"task", None}


class Session:
    """What an application binds to a request: large, and to be freed with it."""


@contextmanager
def origins_made() -> Iterator[list[None]]:
    """One item for each copy of a context that is made meanwhile."""
    made: list[None] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is Origin.__init__.__code__:
            made.append(None)

    sys.setprofile(profile)
    try:
        yield made
    finally:
        sys.setprofile(None)


async def test_a_context_is_copied_once_for_each_request(fake: FakeKit) -> None:
    """However many events a request has; and not at all if it has none."""
    async with fake.open(CacheConfig(offload_after=None)) as cache:
        f = await add(cache, "f", fake.adding(1))
        with origins_made() as made:
            await f.call(1)
        assert len(made) == 1  # loaded
        with origins_made() as made:
            for _ in range(10):
                await f.call(1)
        assert made == []
    config = CacheConfig(log_uses=True, max_instances=1, offload_after=None)
    log = ListLogger()
    async with fake.open(config, logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        g = await add(cache, "g", fake.adding(1))
        await f.call(1)
        before = len(log.lines)
        with origins_made() as made:
            await g.call(1)
        assert [line[1].removeprefix("wasmcache.") for line in log.lines[before:]] == [
            "requested", "evicted", "loaded", "acquired", "recycled",
        ]  # fmt: skip
        assert len(made) == 1


async def test_a_stalled_sink_keeps_a_thousand_requests_alive_and_no_more(fake: FakeKit) -> None:
    """Of 5,000 requests, each with a session of its own; after the flush, of none."""
    log = StuckLogger()
    alive: weakref.WeakSet[Session] = weakref.WeakSet()
    config = CacheConfig(log_uses=True, offload_after=None, log_flush_timeout=600)
    async with open_with(config, fake.engine, ThreadedLogWriter(log)) as cache:
        f = await add(cache, "f", fake.adding(1))
        await trio.to_thread.run_sync(log.reached.wait, 60)

        async def serve() -> None:
            session = Session()
            alive.add(session)
            span.set(session)
            async with f.acquire():
                pass

        for _ in range(5_000):
            await serve()
            span.set(None)
        gc.collect()
        # Three were of `opened`, `group_opened` and `registered`.
        assert len(alive) == MAX_CONTEXTS - 3
        stats = cache.stats()
        assert stats.context_lost > 0
        log.let_go.set()
    gc.collect()
    assert len(alive) == 0
    lost = [fields for _, _, fields in log.lines if "context_lost" in fields]
    assert all(fields["context_lost"] is True for fields in lost)
    assert len(lost) == stats.context_lost
    assert stats.log_lost + len(log.lines) > 15_000


def events(writer: ThreadedLogWriter, origins: int, each: int = 1) -> list[weakref.ref[Session]]:
    """Add events of so many requests; return references to their sessions."""
    sessions = []
    for number in range(origins):
        session = Session()
        sessions.append(weakref.ref(session))
        span.set(session)
        origin = Origin(copy_context())
        for _ in range(each):
            writer.add(Removed(function=f"f{number}", arg_types="", generation=1), 0.0, origin)
    span.set(None)
    return sessions


async def test_a_hundred_thousand_requests_with_a_stalled_sink() -> None:
    """The log itself: what 100,000 requests have bound is bounded, and freed by the flush."""
    log = StuckLogger()
    writer = ThreadedLogWriter(log)
    sessions = events(writer, 100_000, each=3)
    assert sum(session() is not None for session in sessions) == MAX_CONTEXTS
    assert writer.context_lost > 0
    assert writer.context_lost + writer.lost + 3 * MAX_CONTEXTS == 300_000
    log.let_go.set()
    await writer.close(60)
    gc.collect()
    assert not any(session() for session in sessions)


async def test_contexts_are_kept_again_once_others_were_written() -> None:
    """The limit is on those in the buffer, not on all that ever were."""
    log = StuckLogger()
    writer = ThreadedLogWriter(log)
    events(writer, MAX_CONTEXTS, each=2)
    assert writer.context_lost == 0
    events(writer, 3)
    assert writer.context_lost == 3
    log.wanted = 2 * MAX_CONTEXTS + 3
    log.let_go.set()
    assert await trio.to_thread.run_sync(log.written.wait, 60)
    assert log.wanted >= LOOK_AGAIN
    sessions = events(writer, MAX_CONTEXTS)
    assert writer.context_lost == 3
    await writer.close(60)
    gc.collect()
    assert not any(session() for session in sessions)


async def test_a_context_is_freed_after_its_last_event_though_the_sink_fails() -> None:
    """An exception of the sink does not keep it alive either."""

    class Broken(ListLogger):
        def info(self, event: str, **fields: Any) -> None:
            del event, fields
            raise OSError(math.pi, span.get())

    writer = ThreadedLogWriter(Broken())
    sessions = events(writer, 10, each=3)
    await writer.close(60)
    gc.collect()
    assert writer.failures == 30
    assert not any(session() for session in sessions)
