"""Snapshots in the log: when they are taken, what is in them, and what the pass does."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from counting import uncollected
from kits import FakeKit, ListLogger, add
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache._cache.open import open_with
from trio_wasmcache._core.policy import copying
from trio_wasmcache._core.snapshot import LISTS
from trio_wasmcache._log import ThreadedLogWriter

CONFIG = CacheConfig(log_uses=True, offload_after=None)


def next_deadline() -> float:
    return trio.lowlevel.current_statistics().seconds_to_next_deadline


async def at(clock: MockClock, seconds: float) -> None:
    clock.jump(seconds - trio.current_time())
    await wait_all_tasks_blocked()


async def test_one_comes_an_interval_after_the_first_event_and_none_while_nothing_happens(
    fake: FakeKit, mock_clock: MockClock, log: ListLogger
) -> None:
    """One wakeup for each, and none in between or in an idle cache."""
    async with fake.open(
        CacheConfig(log_uses=True, idle_timeout=50.0, snapshot_interval=100.0), logger=log
    ) as cache:
        f = await add(cache, "f", fake.adding(1))
        await wait_all_tasks_blocked()
        assert next_deadline() == 100.0
        await at(mock_clock, 99.0)
        assert log.fields("snapshot") == []
        await at(mock_clock, 100.0)
        (first,) = log.fields("snapshot")
        assert (first["at_seq"], first["taken_at_seconds"]) == (log.lines[-2][2]["seq"], 100.0)
        assert next_deadline() == math.inf
        await at(mock_clock, 10_000.0)
        assert len(log.fields("snapshot")) == 1
        await f.call(1)
        await wait_all_tasks_blocked()
        assert next_deadline() == 50.0  # when it is idle for too long
        await at(mock_clock, 10_050.0)
        assert next_deadline() == 50.0  # the snapshot
        await at(mock_clock, 10_100.0)
        assert [it["taken_at_seconds"] for it in log.fields("snapshot")] == [100.0, 10_100.0]
        assert next_deadline() == math.inf
        cache.resize(snapshot_interval=7.0)
        assert next_deadline() == 7.0
        cache.resize(snapshot_interval=math.inf)
        assert next_deadline() == math.inf
    assert log.lines[-1][1] == "wasmcache.closed"


async def test_without_uses_there_is_none(
    fake: FakeKit, mock_clock: MockClock, log: ListLogger
) -> None:
    """Nor is there a wakeup for it."""
    config = CacheConfig(snapshot_interval=1.0, idle_timeout=math.inf)
    async with fake.open(config, logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        await f.call(1)
        await wait_all_tasks_blocked()
        assert next_deadline() == math.inf
        await at(mock_clock, 10.0)
    assert log.fields("snapshot") == []


async def fill(cache: InstanceCache, fake: FakeKit, functions: int) -> None:
    for number in range(functions):
        await (await add(cache, f"f{number}", fake.adding(1))).call(1)


async def test_parts_have_at_most_fifty_items_and_all_are_there(
    fake: FakeKit, log: ListLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where names are long: then a part has fewer."""
    async with fake.open(CONFIG, logger=log) as cache:
        await fill(cache, fake, 130)
        for name in ("a", "b" * 600, "c" * 600):
            async with cache.scheduling_group(name, capacity=1) as group:
                async with group.acquire("f0", ("i64",)):
                    for most in (copying.MOST_LETTERS, 1000):
                        monkeypatch.setattr(copying, "MOST_LETTERS", most)
                        log.lines.clear()
                        parts_of(cache).snapshots.take()
                        found = log.fields("snapshot")
                        assert [it["part"] for it in found] == [*range(1, len(found) + 1)]
                        assert {it["parts"] for it in found} == {len(found)}
                        assert max(sum(len(it[one]) for one in LISTS) for it in found) <= 50
                        items = {one: [i for it in found for i in it[one]] for one in LISTS}
                        counts = {one: len(list_) for one, list_ in items.items()}
                        assert counts == {
                            "groups": 2,
                            "modules": 130,
                            "functions": 130,
                            "residents": 131,
                            "requests": 1,
                            "token_waits": 0,
                            "orders": 0,
                            "gone": 0,
                        }
                        assert {it["group"] for it in items["residents"]} == {"main", name}


async def test_beyond_a_number_of_functions_only_those_in_use_are_there(
    fake: FakeKit, log: ListLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And their number is said. One that replaces a generation that is held is in use."""
    monkeypatch.setattr(copying, "MAX_FUNCTIONS", 5)
    async with fake.open(CONFIG, logger=log) as cache:
        for number in range(5):
            await add(cache, f"f{number}", fake.adding(1))
        snapshots = parts_of(cache).snapshots
        snapshots.take()
        await add(cache, "f5", fake.adding(1))
        async with cache.acquire("f3", ("i64",)):
            await add(cache, "f3", fake.adding(2), replace=True)
            snapshots.take()
    first, second = log.fields("snapshot")
    assert (len(first["functions"]), first["omitted_functions"]) == (5, 0)
    kept = [(it["function"], it["generation"], it["successor"]) for it in second["functions"]]
    assert kept == [("f3", 2, None), ("f3", 1, 2)]
    assert second["omitted_functions"] == 5


async def test_a_stuck_sink_costs_snapshots_and_no_event(
    fake: FakeKit, mock_clock: MockClock
) -> None:
    """What is due while one is not written is left out whole, and counted."""
    log = ListLogger()
    let_go = threading.Event()

    class Stuck(ListLogger):
        def info(self, event: str, **fields: Any) -> None:
            assert let_go.wait(600)
            log.info(event, **fields)

    config = CacheConfig(log_uses=True, offload_after=None, snapshot_interval=10.0)
    async with open_with(config, fake.engine, ThreadedLogWriter(Stuck())) as cache:
        f = await add(cache, "f", fake.adding(1))
        for number in range(1, 5):
            await at(mock_clock, number * 10.0)
            await f.call(1)
        assert cache.stats().snapshots_lost == 3
        assert cache.stats().log_lost == 0
        cache.pop_stats()
        assert cache.stats().snapshots_lost == 0
        let_go.set()
    (only,) = log.fields("snapshot")
    assert only["taken_at_seconds"] == 10.0
    assert [fields["seq"] for _, _, fields in log.lines] == [*range(1, len(log.lines) + 1)]


@pytest.mark.parametrize("name", ["lru", "sieve", "gdsf", "cost"])
async def test_the_pass_calls_nothing_for_each_instance(fake: FakeKit, name: Any) -> None:
    """What it does for each is done in C, so that 4,096 take a millisecond.

    Of the functions in Python, it calls as many with 30 instances as with 90.
    """
    calls: list[Counter[str]] = []
    for number in (30, 90):
        # Without a log, so that nothing is rendered.
        async with fake.open(CacheConfig(policy=name, log_uses=True)) as cache:
            await fill(cache, fake, number)
            pool = parts_of(cache).pool
            counted: Counter[str] = Counter()

            def profile(frame: FrameType, event: str, _: Any, counted: Any = counted) -> None:
                if event == "call" and "trio_wasmcache" in frame.f_code.co_filename:
                    counted[frame.f_code.co_name] += 1

            with uncollected():
                sys.setprofile(profile)
                pool.policy.copy(pool.registry.functions.values(), [])
                sys.setprofile(None)
            calls.append(counted)
    assert calls[0] == calls[1]
    assert calls[0].total() < 40
