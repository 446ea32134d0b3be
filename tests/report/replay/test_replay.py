"""A log with `log_uses`, run through the policy again: the books agree, or say where not."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st
from kits import PAGE, WasmtimeKit, add_asking
from report.workloads import (
    Change,
    CoarseRandom,
    FunctionPlan,
    JsonLogger,
    Plan,
    Use,
    draw_config,
    run_on_jumping_clock,
    tiered,
    wild_plan,
)

from trio_wasmcache import CacheConfig, CodeMemoryError, DeadlockError, Prepare
from trio_wasmcache._core.config import SystemLimits
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay.replay import MAX_KEPT, Replay
from trio_wasmcache.report.replay.start import NotReplayable
from trio_wasmcache.testing import FakeEngine, open_fake_cache

Event = dict[str, Any]


def replayed(events: list[Event]) -> tuple[Replay, list[tuple[int, str, int]]]:
    """The replay, and (instance, reason, size) of what it evicted, in order."""
    evicted: list[tuple[int, str, int]] = []
    replay = Replay(
        evicted=lambda it: evicted.append((it.instance, it.reason.value, it.freed_bytes))
    )
    for event in events:
        replay.feed(make_event(event))
    replay.finish()
    return replay, evicted


def logged(events: list[Event]) -> list[tuple[int, str, int]]:
    return [
        (event["instance"], event["reason"], event["freed_bytes"])
        for event in events
        if event["event"] == "wasmcache.evicted"
    ]


def numbered(events: list[Event]) -> list[Event]:
    """As if the cache had logged just these."""
    return [{**event, "seq": number} for number, event in enumerate(events, 1)]


def find(events: list[Event], name: str, **fields: Any) -> int | None:
    """Index of the first event of that name with these fields."""
    for index, event in enumerate(events):
        if event["event"] == f"wasmcache.{name}" and fields.items() <= event.items():
            return index
    return None


# What the log of `wild_log` has in it.
FIRST = 10313
NEEDED = (
    ("evicted", {"reason": "size"}),
    ("evicted", {"reason": "idle"}),
    ("acquired", {"hit": True}),
    ("blocked", {"waits_for": "an instance"}),
    ("blocked", {"waits_for": "a token"}),
    ("abandoned", {"error": "Cancelled"}),
    ("group_closed", {"with_cache": False}),
)


@functools.cache
def _wild_log() -> str:
    for seed in itertools.count(FIRST):  # it has it all, until `wild_plan` draws differently
        plan = wild_plan(Random(seed))
        events = run_on_jumping_clock(plan, draw_config(Random(seed))).log.events
        if len(events) > 200 and all(
            find(events, name, **fields) is not None for name, fields in NEEDED
        ):
            return json.dumps(events)
    raise AssertionError


@pytest.fixture
def wild_log() -> list[Event]:
    """A log with about everything in it."""
    events: list[Event] = json.loads(_wild_log())
    return events


@given(st.integers(0, 2**32), st.booleans())
def test_a_log_replayed_under_its_own_limits_gives_its_own_evictions(
    seed: int, coarse: bool
) -> None:
    """In the same order, with nothing to disagree about, whatever the application did.

    On a coarse clock many things happen at the same moment; on a fine one, more of them overlap.
    """
    random = CoarseRandom(seed) if coarse else Random(seed)
    plan, config = wild_plan(random), draw_config(random)
    config = tiered(config) if seed % 2 else config
    events = run_on_jumping_clock(plan, config).log.events
    replay, evicted = replayed(events)
    assert replay.disagreements == []
    assert replay.complete
    assert replay.events == len(events)
    assert evicted == logged(events)


async def test_a_log_of_real_modules_and_threads_agrees() -> None:
    """Calls in threads that a closing group waits for, traps, several groups, small limits."""
    log = JsonLogger()
    kit = WasmtimeKit()
    config = CacheConfig(log_uses=True, offload_after=0, max_size=300_000, max_instances=6)
    async with kit.open(config, logger=log) as cache:
        for name, wasm in (
            ("one", kit.adding(1)),
            ("two", kit.adding(2, pages=3)),
            ("ever", kit.endless()),
            ("trap", kit.trapping()),
        ):
            prepare = (Prepare("run", (1,), ("i64",), "i64"),) if name == "two" else ()
            await cache.register(
                name,
                wasm,
                args=("i64",),
                returns="i64",
                export="run",
                concurrency=2,
                prepare=prepare,
            )

        async def use(name: str) -> None:
            async with cache.acquire(name, ("i64",)) as lease:
                await lease.call(1)

        async def use_all() -> None:
            for name in ("one", "two", "one"):
                await use(name)
            with pytest.raises(trio.TooSlowError):
                with trio.fail_after(0.01):
                    await use("ever")

        async with cache.scheduling_group("a", capacity=2) as group:
            for _ in range(4):
                group.start_soon(use_all)
        async with cache.scheduling_group("b", capacity=3) as group:
            for name in ("ever", "one", "two", "ever"):
                group.start_soon(use, name)
            await trio.sleep(0.02)
            group.cancel_scope.cancel()
        await use_all()
        with pytest.raises(Exception, match="unreachable"):
            await use("trap")
    replay, evicted = replayed(log.events)
    assert replay.disagreements == []
    assert replay.complete
    assert evicted == logged(log.events)
    assert {"corrupted", "group_closed"} <= {reason for _, reason, _ in evicted}
    assert find(log.events, "prepared", function="two") is not None


async def test_what_goes_for_addresses_agrees() -> None:
    """Loads that need them, batches that reserve more, a system that refuses, other limits."""
    log, engine = JsonLogger(), FakeEngine()
    engine.system = SystemLimits(mappings=20)
    space = 10 * PAGE
    config = CacheConfig(log_uses=True, offload_after=None, max_address_space=4 * space)
    async with open_fake_cache(config, engine=engine, logger=log) as cache:
        for name, part, mappings in (
            ("a", 1, 3),
            ("b", 2, 2),
            ("c", 1, 9),
            ("d", 1, 1),
            ("e", 1, 1),
        ):
            wasm = engine.module(lambda x: x, address_space=part * space // 2, mappings=mappings)
            await cache.register(name, wasm, args=("i64",), returns="i64", export="run")
        for name in "abcdab":
            async with cache.acquire(name, ("i64",)) as lease:
                await lease.call(1)
        for name in "abab":
            async with cache.acquire(name, ("i64",)) as lease:
                await lease.map([[1, 2]])
                await lease.map([[1, None]])
        cache.resize(max_address_space=20 * space)
        for name in "abdc":
            engine.refusals = int(name == "c")
            async with cache.acquire(name, ("i64",)) as lease:
                await lease.call(1)
        async with cache.acquire("c", ("i64",)):
            engine.refusals = 9
            with pytest.raises(CodeMemoryError):
                await cache.acquire("e", ("i64",)).__aenter__()
            engine.refusals = 0
        cache.resize(max_address_space=space)
        async with cache.acquire("a", ("i64",)) as lease:
            await lease.call(1)
    assert {"wasmcache.refused", "wasmcache.resized"} <= {it["event"] for it in log.events}
    replay, evicted = replayed(log.events)
    assert replay.disagreements == []
    assert replay.complete
    assert evicted == logged(log.events)
    assert [reason for _, reason, _ in evicted].count("address_space") > 5
    # Without what was needed, and with other limits, it would have been different.
    for name in ("refused", "opened", "recycled"):
        changed = [
            {**it, "address_space_bytes": 0, "mappings": 0, "max_mappings": None}
            if it["event"] == f"wasmcache.{name}"
            else it
            for it in log.events
        ]
        assert replayed(changed)[0].disagreed, name


async def test_a_lease_that_is_granted_in_the_moment_of_the_closing_agrees() -> None:
    """Its task was woken, but finds the cache closed: it has a hit, and no lease."""
    log = JsonLogger()
    engine = FakeEngine()
    config = CacheConfig(log_uses=True, offload_after=None)
    async with trio.open_nursery() as nursery:
        async with open_fake_cache(config, engine=engine, logger=log) as cache:
            await cache.register("f", engine.module(), args=("i64",), returns="i64", export="run")

            async def come_too_late() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    async with cache.acquire("f", ("i64",)):
                        pass

            async with cache.acquire("f", ("i64",)):
                nursery.start_soon(come_too_late)
                await trio.testing.wait_all_tasks_blocked()
    assert log.events[-1]["hits"] == 1
    replay, evicted = replayed(log.events)
    assert replay.disagreements == []
    assert evicted == logged(log.events) == [(1, "closed", 2 * PAGE)]


def change(name: str, index: dict[str, Any], **fields: Any) -> Callable[[list[Event]], None]:
    """Change fields of the first event of that name."""

    def tamper(events: list[Event]) -> None:
        found = find(events, name, **index)
        assert found is not None
        events[found].update(fields)

    return tamper


def leave_out(name: str, **index: Any) -> Callable[[list[Event]], None]:
    def tamper(events: list[Event]) -> None:
        found = find(events, name, **index)
        assert found is not None
        del events[found]

    return tamper


def change_why_abandoned(events: list[Event]) -> None:
    """Of all who gave up: who did while it loaded may have got any error."""
    for event in events:
        if event["event"] == "wasmcache.abandoned" and event["error"] == "Cancelled":
            event["error"] = "LinkError"


def swap_evictions(events: list[Event]) -> None:
    """The first two of one step."""
    for index, (one, two) in enumerate(itertools.pairwise(events)):
        evicted = one["event"] == two["event"] == "wasmcache.evicted"
        if evicted and one["at_seconds"] == two["at_seconds"]:
            events[index : index + 2] = [two, one]
            return
    raise AssertionError("no two evictions in a row")


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (leave_out("evicted", reason="size"), "(size)"),
        (leave_out("evicted", reason="idle"), ""),
        (swap_evictions, "evicted: "),
        (change("evicted", {"reason": "size"}, reason="count"), "reason is 'count' in the log"),
        (change("evicted", {}, freed_bytes=1), "freed_bytes is 1 in the log"),
        (change("evicted", {}, code_size_after_bytes=7), "code_size_after_bytes is 7"),
        (change("acquired", {"hit": True}, hit=False), "a hit is False in the log, True by"),
        (change("acquired", {}, total_size_bytes=5), "total_size_bytes is 5 in the log"),
        (change("acquired", {}, instance=999), "the instance is 999 in the log"),
        (leave_out("acquired"), "logged as acquired is False in the log"),
        (change("requested", {}, generation=7), "requested: the books know nothing of it"),
        (leave_out("requested", warm=False), "the books know nothing of it"),
        (change("recycled", {"kept": True}, kept=False), "kept is False in the log"),
        (change("recycled", {}, size_bytes=2**40), ""),
        (change("blocked", {"waits_for": "an instance"}, waits_for="room"), "what it waits for"),
        (change("loaded", {}, module_loaded=False), "module_loaded is False in the log"),
        (change_why_abandoned, "the error is 'LinkE"),
        (change("closed", {}, hits=0), "hits is 0 in the log"),
        (change("closed", {}, evictions=0), "evictions is 0 in the log"),
        (change("opened", {}, max_size_bytes=0), ""),
        (change("registered", {}, code_bytes=1), ""),
    ],
)
def test_what_was_changed_is_found(
    wild_log: list[Event], tamper: Callable[[list[Event]], None], told: str
) -> None:
    """Each field that is compared, and each event that is missing without a gap in the numbers."""
    assert replayed(wild_log)[0].disagreed == 0
    tamper(wild_log)
    replay, _ = replayed(numbered(wild_log))
    assert replay.disagreed
    assert any(told in text for _, text in replay.disagreements), replay.disagreements


def test_disagreements_name_the_event(wild_log: list[Event]) -> None:
    """By its sequence number; the first is the first that was changed."""
    index = find(wild_log, "acquired")
    assert index is not None
    wild_log[index]["uses"] = 1000
    replay, _ = replayed(wild_log)
    assert replay.disagreements == [
        (wild_log[index]["seq"], "acquired: uses is 1000 in the log, 0 by the books")
    ]


def test_many_disagreements_are_counted_and_some_are_kept(wild_log: list[Event]) -> None:
    """So that a log that is off from the start takes no more memory than another."""
    for event in wild_log:
        if event["event"] in ("wasmcache.acquired", "wasmcache.recycled"):
            event["total_size_bytes"] = event["code_size_bytes"] = -1
    replay, _ = replayed(wild_log)
    assert replay.disagreed > MAX_KEPT
    assert len(replay.disagreements) == MAX_KEPT


def test_it_ends_where_events_are_missing(wild_log: list[Event]) -> None:
    """With what comes after left out, and no disagreement made up for it."""
    rest = wild_log[:60] + wild_log[64:]
    replay, evicted = replayed(rest)
    assert replay.gap == (61, 64)
    assert replay.events == 60
    assert replay.left_out == len(wild_log) - 64
    assert replay.disagreements == []
    assert not replay.complete
    assert evicted == logged(wild_log)[: len(evicted)]


def test_a_log_that_breaks_off_agrees_as_far_as_it_goes(wild_log: list[Event]) -> None:
    """Wherever it does, also between a step and what it evicted."""
    for end in range(1, len(wild_log), 3):
        replay, _ = replayed(wild_log[:end])
        assert replay.disagreements == []
        assert not replay.complete


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"event": "wasmcache.group_opened", "seq": 7},
            "begins with event 7, and no snapshot after it is all there: a replay needs its",
        ),
        ({"log_uses": False}, "written without log_uses"),
        ({"max_size_bytes": -1}, "no cache has these limits: .*max_size must be at least 0"),
    ],
)
def test_what_can_not_be_replayed(wild_log: list[Event], fields: dict[str, Any], told: str) -> None:
    """A log without its beginning, without uses, or with limits that no cache has."""
    replay = Replay()
    with pytest.raises(NotReplayable, match=told):
        replay.feed(make_event({**wild_log[0], **fields}))
        replay.start.check()


def test_an_empty_log_is_nothing() -> None:
    """No events, no disagreement."""
    replay, _ = replayed([])
    assert (replay.events, replay.disagreed) == (0, 0)


@pytest.mark.parametrize("how", ["waits before", "waits after", "others wait"])
async def test_a_lease_whose_block_ended_under_a_call(real: WasmtimeKit, how: str) -> None:
    """The log tells whose it is from then on, and so the replay knows what is a deadlock."""
    left, logger = trio.Event(), JsonLogger()
    results: list[object] = []

    async def ask(value: int) -> int:
        if how != "waits before":
            await left.wait()
        if how != "others wait":
            with pytest.raises(DeadlockError):
                await function.call(value)
            results.append("deadlock")
        return value

    async def call() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await lease.call(1)

    async def set_when_all_wait() -> None:
        await trio.testing.wait_all_tasks_blocked()
        left.set()

    async with (
        real.open(CacheConfig(log_uses=True), logger=logger) as cache,
        trio.open_nursery() as nursery,
    ):
        function = await add_asking(cache, real, ask)
        async with function.acquire() as lease:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(set_when_all_wait)
        if how == "others wait":
            async with function.acquire():
                results.append("granted")
    assert results == ["granted" if how == "others wait" else "deadlock"]
    events = logger.events
    (told,) = [event for event in events if event["event"] == "wasmcache.left"]
    requested = [event for event in events if event["event"] == "wasmcache.requested"]
    assert told["request"] == requested[0]["request"]
    assert told["task"] != requested[0]["task"]
    replay, evicted = replayed(events)
    assert (replay.disagreements, evicted) == ([], logged(events))
    assert replay.complete
    without = numbered([event for event in events if event is not told])
    assert replayed(without)[0].disagreements


def test_adaptive_timeouts_are_replayed() -> None:
    """Event for event: what each function learned, and when the background task looked."""
    random = Random(3)
    functions = tuple(FunctionPlan(f"f{n}", 1, PAGE, 1 + n % 2, 0.0) for n in range(6))

    def program(number: int) -> tuple[float, tuple[Use, ...]]:
        rest = 1.5 ** (number + 1)
        uses = [
            Use(rest * random.uniform(0.9, 1.1), number, None, math.inf, random.random() / 10)
            for _ in range(20)
        ]
        return random.random(), tuple(uses)

    tasks = tuple(program(number % 6) for number in range(12))
    changes = (Change(30.0, "resize", limits=(("max_idle_timeout", 20.0),)),)
    config = CacheConfig(
        idle_timeout="adaptive", min_idle_timeout=0.5, max_idle_timeout=9.0, max_size=30 * PAGE
    )
    events = run_on_jumping_clock(Plan(functions, (), tasks, changes), config).log.events
    replay, evicted = replayed(events)
    assert replay.disagreements == []
    assert evicted == logged(events)
    assert sum(reason == "idle" for _, reason, _ in evicted) > 10
    kept = {round(event["idle_seconds"], 3) for event in events if event.get("reason") == "idle"}
    assert len(kept) > 5
