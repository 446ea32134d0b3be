"""Semantics 24: what the log says, event by event, with whole dictionaries."""

from __future__ import annotations

import math
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from kits import PAGE, FakeKit, ListLogger, add
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, KiB, LoadError, open_cache
from trio_wasmcache.testing import open_fake_cache

TYPES = ("i64",)
CODE = 16 * KiB
STACK = CacheConfig().instance_stack_size


def told(log: ListLogger, event: str) -> list[dict[str, Any]]:
    """The fields of every such event, without those that all events have."""
    lines = [dict(fields) for fields in log.fields(event)]
    for fields in lines:
        for key in ("cache", "label", "seq", "at_seconds", "schema"):
            del fields[key]
    return lines


async def test_every_event_is_stamped(fake: FakeKit, log: ListLogger) -> None:
    """With the cache's name, a number without gaps, the cache's clock and the schema's version."""
    async with fake.open(CacheConfig(log_uses=True), logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        await f.call(1)
        cache.remove("f")
    assert [fields["seq"] for _, _, fields in log.lines] == list(range(1, len(log.lines) + 1))
    (name,) = {fields["cache"] for _, _, fields in log.lines}
    assert len(name) == 8
    assert {fields["schema"] for _, _, fields in log.lines} == {1}
    times = [fields["at_seconds"] for _, _, fields in log.lines]
    assert times == sorted(times)
    assert all(event.startswith("wasmcache.") for _, event, _ in log.lines)
    other = ListLogger()
    async with fake.open(logger=other):
        pass
    assert other.lines[0][2]["cache"] != name


async def test_opened_resized_closed(fake: FakeKit, log: ListLogger) -> None:
    """The limits, whole; and at the end, the counts."""
    async with fake.open(CacheConfig(idle_timeout=7.0), logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        await f.call(1)
        await f.call(1)
        cache.resize(max_size=10 * PAGE, max_instances=5)
    limits = {
        "policy": "lru",
        "max_size_bytes": 256 * 2**20,
        "max_instance_size_bytes": 24 * 2**20,
        "max_instances": 4096,
        "max_code_size_bytes": 64 * 2**20,
        "max_running_size_bytes": None,
        "max_result_size_bytes": 256 * 2**20,
        "idle_timeout_seconds": 7.0,
        "idle_timeout_policy": "fixed",
        "min_idle_timeout_seconds": 1.0,
        "max_idle_timeout_seconds": 600.0,
        "max_address_space_bytes": None,
    }
    assert told(log, "opened") == [
        {
            **limits,
            "max_mappings": None,
            "compiler": "optimizing",
            "stack_size_bytes": STACK,
            "memory_limit_bytes": 32 * 2**20,
            "table_limit_elements": 10_000,
            "total_fuel": 1_000_000_000,
            "yield_fuel": 100_000,
            "log_uses": False,
        }
    ]
    assert log.lines[0][1] == "wasmcache.opened"
    assert told(log, "resized") == [{**limits, "max_size_bytes": 10 * PAGE, "max_instances": 5}]
    assert told(log, "closed") == [
        {"hits": 1, "seat_hits": 0, "misses": 1, "blocks": 0, "calls": 2, "evictions": 1}
    ]
    assert log.lines[-1][1] == "wasmcache.closed"


async def test_registered_removed_loaded(fake: FakeKit, log: ListLogger) -> None:
    """Functions come and go; the second of the same bytes takes no compile and no load."""
    async with fake.open(logger=log) as cache:
        wasm = fake.adding(1)
        f = await add(cache, "f", wasm, concurrency=2)
        g = await add(cache, "g", wasm)
        await cache.warm("f", TYPES)
        await g.call(1)
        cache.remove("g")
    common = {
        "arg_types": "i64",
        "generation": 1,
        "module_digest": f.module_digest,
        "code_bytes": CODE,
    }
    registered = {
        **common,
        "module_number": 1,
        "compiler": "optimizing",
        "artifact_bytes": len(wasm) + len(zlib.compress(wasm, 1)),  # kept for a profile
        "worst_size_bytes": f.worst_size,
        "address_space_bytes": 0,
        "mappings": 0,
        "module_mappings": 0,
        "isolation": "reuse",
        "isolation_verdict": f.isolation_verdict,
        "left_out": None,
        "cache_verdict": f.cache_verdict,
        "advice": None,
    }
    first, second = told(log, "registered")
    assert first.pop("compile_seconds") >= 0
    assert first == {**registered, "function": "f", "concurrency": 2}
    assert second == {**registered, "function": "g", "concurrency": 1, "compile_seconds": 0.0}
    assert told(log, "removed") == [{"function": "g", "arg_types": "i64", "generation": 1}]
    loaded = told(log, "loaded")
    assert all(event.pop("load_seconds") >= 0 for event in loaded)
    assert loaded == [
        {
            **common,
            "function": name,
            "group": "main",
            "instance": number,
            "request": None,
            "module_loaded": name == "f",
            "seat": False,
            "warmed": name == "f",
            "promoted": False,
            "size_bytes": 2 * PAGE,
        }
        for name, number in (("f", 1), ("g", 2))
    ]


async def test_evicted(fake: FakeKit, log: ListLogger, mock_clock: trio.testing.MockClock) -> None:
    """Why, what it was, how long it was idle and alive, its uses, and sizes before and after."""
    async with fake.open(logger=log) as cache:
        f = await add(cache, "f", fake.adding(1, pages=3))
        g = await add(cache, "g", fake.adding(1))
        mock_clock.jump(10.0)
        await f.call(1)
        mock_clock.jump(1.0)
        await f.call(1)
        await g.call(1)
        mock_clock.jump(2.0)
        cache.resize(max_size=3 * PAGE)
        (event,) = told(log, "evicted")
    assert event == {
        "function": "f",
        "arg_types": "i64",
        "group": "main",
        "generation": 1,
        "instance": 1,
        "reason": "size",
        "seat": False,
        "module_digest": f.module_digest,
        "freed_bytes": 4 * PAGE,
        "freed_code_bytes": CODE,
        "idle_seconds": 2.0,
        "age_seconds": 3.0,
        "uses": 2,
        "total_size_before_bytes": 6 * PAGE,
        "total_size_after_bytes": 2 * PAGE,
        "code_size_before_bytes": 2 * CODE,
        "code_size_after_bytes": CODE,
        "limit_bytes": None,
        "for_function": None,
        "for_arg_types": None,
        "for_group": None,
        "for_request": None,
        "error": None,
        "advice": None,
        "replaced_by": None,
        "evictions": None,
    }


async def test_failed(log: ListLogger) -> None:
    """A warning with what the caller got."""
    kit = FakeKit()
    kit.engine.fail_at = 3
    async with kit.open(logger=log) as cache:
        f = await add(cache, "f", kit.adding(1))
        with pytest.raises(LoadError) as caught:
            await f.call(1)
    assert told(log, "failed") == [
        {
            "function": "f",
            "arg_types": "i64",
            "group": "main",
            "generation": 1,
            "instance": 1,
            "request": None,
            "promoted": False,
            "error": "LoadError",
            "error_message": str(caught.value),
        }
    ]
    assert [level for level, event, _ in log.lines if event == "wasmcache.failed"] == ["warning"]


async def test_uses(fake: FakeKit, log: ListLogger, mock_clock: trio.testing.MockClock) -> None:
    """With `log_uses`, every acquire, block and recycle, with what a replay needs."""
    async with fake.open(CacheConfig(log_uses=True), logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))

        async def use() -> None:
            async with f.acquire() as lease:
                await lease.call(1)
                mock_clock.jump(2.0)
                await lease.call(2)

        async with trio.open_nursery() as nursery:
            async with f.acquire():
                nursery.start_soon(use)
                await wait_all_tasks_blocked()
                mock_clock.jump(3.0)
    names = [event.removeprefix("wasmcache.") for _, event, _ in log.lines]
    assert names[3:-3] == [
        *("requested", "loaded", "acquired"),
        *("requested", "blocked", "recycled", "acquired", "recycled"),
    ]
    common = {"function": "f", "arg_types": "i64", "group": "main", "generation": 1}
    first, second = told(log, "requested")
    assert first == {
        **common,
        "request": 1,
        "task": 1,
        "warm": False,
        "blocked": False,
        "deadline_seconds": None,
    }
    assert second == {**first, "request": 2, "task": 2}
    assert told(log, "blocked") == [{**common, "request": 2, "task": 2, "waits_for": "an instance"}]
    held = {**common, "instance": 1, "total_size_bytes": 0}
    assert told(log, "acquired") == [
        {
            **held,
            "request": number,
            "hit": hit,
            "wait_seconds": wait,
            "uses": number - 1,
            "module_digest": f.module_digest,
            "code_bytes": CODE,
            "code_size_bytes": CODE + STACK,
        }
        for number, hit, wait in ((1, False, 0.0), (2, True, 3.0))
    ]
    first, second = told(log, "recycled")
    assert second == {
        **held,
        "request": 2,
        "size_bytes": 2 * PAGE,
        "held_seconds": 2.0,
        "calls": 2,
        "fuel": 200,
        "seat": False,
        "closed_size_bytes": None,
        "grown_size_bytes": None,
        "kept": True,
        "error": None,
        "error_message": None,
        "address_space_bytes": 0,
        "mappings": 0,
        "total_size_bytes": 2 * PAGE,
        "code_size_bytes": CODE,
    }
    assert (first["request"], first["held_seconds"], first["calls"]) == (1, 3.0, 0)


async def test_uses_of_a_token(
    fake: FakeKit, log: ListLogger, mock_clock: trio.testing.MockClock
) -> None:
    """Waiting for a token is a block, and part of the time that the acquire waited."""
    limits = CacheConfig(log_uses=True, main_capacity=1)
    async with fake.open(limits, logger=log) as cache:
        f = await add(cache, "f", fake.adding(1), concurrency=2)
        async with trio.open_nursery() as nursery:
            async with f.acquire():
                nursery.start_soon(f.call, 1)
                await wait_all_tasks_blocked()
                mock_clock.jump(3.0)
    assert [event["waits_for"] for event in told(log, "blocked")] == ["a token"]
    assert [event["blocked"] for event in told(log, "requested")] == [False, True]
    assert [event["wait_seconds"] for event in told(log, "acquired")] == [0.0, 3.0]
    assert told(log, "closed")[0]["blocks"] == 1


async def test_an_acquire_cancelled_as_it_gets_its_token(
    fake: FakeKit, log: ListLogger, mock_clock: trio.testing.MockClock
) -> None:
    """Its deadline is that moment: a log has no infinite times."""
    async with fake.open(CacheConfig(log_uses=True), logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        scope = trio.CancelScope()

        async def use() -> None:
            with scope:
                await f.call(1)

        async with cache.scheduling_group("g", capacity=1) as group:
            async with f.acquire():
                group.start_soon(use)
                await wait_all_tasks_blocked()
                mock_clock.jump(2.0)
            scope.cancel()
    assert scope.cancelled_caught
    for line in told(log, "requested"):
        assert line["deadline_seconds"] in (None, trio.current_time())


async def test_without_log_uses_there_are_no_uses(fake: FakeKit, log: ListLogger) -> None:
    """Acquire and recycle are events only when asked for."""
    async with fake.open(logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        async with f.acquire(), trio.open_nursery() as nursery:
            nursery.start_soon(f.call, 1)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    names = {event.removeprefix("wasmcache.") for _, event, _ in log.lines}
    assert names == {
        *("opened", "group_opened", "registered", "loaded"),
        *("group_closed", "evicted", "closed"),
    }


@asynccontextmanager
async def quiet() -> AsyncIterator[list[Any]]:
    """Catch what structlog's own configuration is told."""
    with structlog.testing.capture_logs() as lines:
        yield lines


async def test_structlogs_capture_logs_works() -> None:
    """Without a logger of its own, the cache writes to structlog as it is configured."""
    async with quiet() as lines, open_cache(CacheConfig(max_size=5 * PAGE)):
        pass
    assert [line["event"] for line in lines] == [
        "wasmcache.opened",
        "wasmcache.group_opened",
        "wasmcache.group_closed",
        "wasmcache.closed",
    ]
    assert {line["log_level"] for line in lines} == {"info"}
    assert lines[0]["max_size_bytes"] == 5 * PAGE
    closed = {key: lines[-1][key] for key in lines[-1] if key not in ("at_seconds", "cache")}
    assert closed == {
        "event": "wasmcache.closed",
        "log_level": "info",
        "seq": 4,
        "schema": 1,
        "label": "",
        "hits": 0,
        "seat_hits": 0,
        "misses": 0,
        "blocks": 0,
        "calls": 0,
        "evictions": 0,
    }


async def test_the_inline_writer_goes_to_structlog_too() -> None:
    """`open_fake_cache` with a logger of structlog's."""
    logger = structlog.get_logger("trio_wasmcache")
    async with quiet() as lines, open_fake_cache(logger=logger):
        assert [line["event"] for line in lines] == [
            "wasmcache.opened",
            "wasmcache.group_opened",
        ]


async def test_an_adaptive_idle_timeout_is_no_number(fake: FakeKit, log: ListLogger) -> None:
    """Of both events with limits; a number follows when there is one again, and null is never."""
    async with fake.open(CacheConfig(idle_timeout="adaptive"), logger=log) as cache:
        cache.resize(max_idle_timeout=60.0)
        for timeout in (9.0, math.inf):
            cache.resize(idle_timeout=timeout)
    events = [*log.fields("opened"), *log.fields("resized")]
    names = "idle_timeout_seconds", "idle_timeout_policy", "max_idle_timeout_seconds"
    assert [tuple(event[name] for name in names) for event in events] == [
        (None, "adaptive", 600.0),
        (None, "adaptive", 60.0),
        (9.0, "fixed", 60.0),
        (None, "fixed", 60.0),
    ]
