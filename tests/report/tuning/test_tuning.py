"""The curve of the hit rate by size: one pass over a log gives what a replay at each size gives."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, strategies as st
from kits import tries
from report.workloads import (
    PAGE,
    FunctionPlan,
    Plan,
    Use,
    draw_config,
    in_turn,
    run_on_jumping_clock,
    steady_plan,
    wild_plan,
)

from trio_wasmcache import CacheConfig
from trio_wasmcache._core.events import GroupOpened, Opened, Reason, Recycled, Registered, Removed
from trio_wasmcache._core.policy.records import Request, Stage
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay.books import Books, config_of
from trio_wasmcache.report.replay.replay import is_end_of_corrupted
from trio_wasmcache.report.replay.start import NotReplayable
from trio_wasmcache.report.tuning.distances import Stack
from trio_wasmcache.report.tuning.tuning import Tuner

Event = dict[str, Any]
GiB = 1024 * 1024 * 1024
MiB = 1024 * 1024
CONFIG = CacheConfig(stack_size=PAGE, idle_timeout=5.0, max_size=10 * PAGE)


def tuned(events: list[Event]) -> Tuner:
    tuner = Tuner()
    for event in events:
        tuner.feed(make_event(event))
    assert tuner.ignored == 0
    return tuner


def brute_force(events: list[Event], size: int, timeout: float) -> int:
    """Hits, by the cache's own policy, with leases beginning and ending when they did."""
    first = make_event(events[0]).event
    assert isinstance(first, Opened)
    opened = config_of(first)
    limit = opened.max_instance_size
    books = Books(
        evolve(
            opened,
            policy="lru",
            max_size=size,
            max_instance_size=16 * GiB,
            max_instances=16384,
            max_code_size=16 * GiB,
            max_running_size=None,
            max_address_space=None,
            idle_timeout=timeout,
        )
    )
    policy, requests = books.policy, dict[int, Request]()
    for event, following in zip(events, [*events[1:], events[-1]], strict=True):
        now, made = event["at_seconds"], make_event(event).event
        policy.expire(now)
        match event["event"].removeprefix("wasmcache."):
            case "group_opened":
                assert isinstance(made, GroupOpened)
                books.open_group(made, lambda: False)
            case "group_closed":
                group = books.groups.pop(event["group"])
                policy.close_group(group, now, Reason.GROUP_CLOSED)
            case "registered":
                assert isinstance(made, Registered)
                books.register(made.changed(concurrency=10**6), now)
            case "removed":
                assert isinstance(made, Removed)
                books.remove(made, now)
            case "resized":
                limit = event["max_instance_size_bytes"]
            case "acquired":
                function = books.functions[
                    event["function"], event["arg_types"], event["generation"]
                ]
                group = books.groups[event["group"]]
                number = event["request"]
                ahead = number in requests and not event["hit"]
                request = requests[number] = policy.request(function, group, number, ahead)
                policy.acquire(request, now)
                if request.stage is Stage.LOADING:
                    policy.loaded(request, now)
            case "requested" if event["warm"]:
                requests[event["request"]] = None  # type: ignore[assignment]
            case "recycled":
                assert isinstance(made, Recycled)
                after = make_event(following).event
                drop = Reason.CORRUPTED if is_end_of_corrupted(made, after) else None
                if event["size_bytes"] > limit:
                    drop = Reason.OVERSIZED
                request = requests[event["request"]]
                policy.recycle(request, event["size_bytes"], now, drop, event["seat"])
    return policy.hits


def check(events: list[Event], timeouts: tuple[float, ...]) -> None:
    """The curve at 20 sizes and more, for each timeout, against as many replays."""
    tuner = tuned(events)
    for timeout in timeouts:
        curve = tuner.curve(timeout)
        low, high = curve.smallest, curve.largest
        for size in sorted({low + (high - low) * step // 18 for step in range(20)}):
            hits = brute_force(events, size, timeout)
            assert curve.at(size).hit_rate == pytest.approx(hits / max(1, tuner.leases))


@tries(25)
@given(st.integers(0, 2**32))
def test_one_pass_gives_what_replays_at_twenty_sizes_give(seed: int) -> None:
    """Whatever is in the log: nesting, traps, growth, replacement, groups that close, seats."""
    random = Random(seed)
    plan = wild_plan(random)
    plan = evolve(plan, changes=tuple(it for it in plan.changes if it.kind != "warm"))
    check(run_on_jumping_clock(plan, draw_config(random)).log.events, (math.inf, 0.4))


def test_a_steady_application_too() -> None:
    """Thirty functions, some much more often than others; a shorter timeout cuts it off."""
    check(run_on_jumping_clock(steady_plan(1, 3, 80), CONFIG).log.events, (math.inf, 3.0))


def test_warming_counts_neither_way() -> None:
    """But what it loads ahead is there for a hit."""
    plan = Plan(
        (FunctionPlan("f", 1, PAGE, 2, 0.0),),
        (),
        tasks=((1.0, (Use(1.0, 0, None, math.inf, 1.0),)),),
    )
    from report.workloads import Change

    plan = evolve(plan, changes=(Change(0.5, "warm"),))
    events = run_on_jumping_clock(plan, CONFIG).log.events
    tuner = tuned(events)
    assert (tuner.leases, tuner.hits) == (1, 1)
    assert tuner.curve(math.inf).at(4 * PAGE).hit_rate == 1.0


class SlowStack:
    """The same, written down as simply as can be."""

    def __init__(self) -> None:
        self.idle: list[list[Any]] = []  # [key, size, since, deepest]; the latest last

    def take(self, key: Any, now: float) -> tuple[float, float]:
        for place in reversed(range(len(self.idle))):
            if self.idle[place][0] == key:
                _, _, since, deepest = self.idle.pop(place)
                return deepest, now - since
        return math.inf, math.inf

    def give_back(self, key: Any, size: int, now: float) -> None:
        self.idle.append([key, size, now, 0])
        depth = 0
        for instance in reversed(self.idle):
            depth += instance[1]
            instance[3] = max(instance[3], depth)

    def forget(self, key: Any) -> None:
        self.idle = [instance for instance in self.idle if instance[0] != key]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "give_back", "give_back", "forget"]),
            st.integers(0, 5),
            st.integers(0, 100),
        ),
        max_size=200,
    )
)
def test_the_stack_of_distances_is_a_list_made_fast(steps: list[tuple[str, int, int]]) -> None:
    """What each instance needed, at its deepest, and for how long it was idle."""
    fast, slow = Stack(), SlowStack()
    for now, (what, key, size) in enumerate(steps):
        if what == "take":
            assert fast.take(key, now) == slow.take(key, now)
        elif what == "give_back":
            fast.give_back(key, size, now)
            slow.give_back(key, size, now)
        else:
            fast.forget(key)
            slow.forget(key)
    for key in range(6):
        assert fast.take(key, 1000) == slow.take(key, 1000)


def test_places_run_out_and_are_made() -> None:
    """Long runs move what is idle together, in a larger tree where it has to be."""
    random = Random(5)
    fast, slow = Stack(), SlowStack()
    for now in range(6000):
        key, size = random.randrange(40 if now < 3000 else 600), random.randrange(1, 9)
        assert fast.take(key, now) == slow.take(key, now)
        fast.give_back(key, size, now)
        slow.give_back(key, size, now)
        if random.random() < 0.02:
            fast.give_back(key, size, now)
            slow.give_back(key, size, now)
    assert fast.largest == 8


@pytest.mark.parametrize("first", [{"event": "wasmcache.lost", "seq": 3}, {"log_uses": False}])
def test_what_can_not_be_tuned_by(first: dict[str, Any]) -> None:
    """A log without its beginning, or without uses."""
    events = run_on_jumping_clock(in_turn(1, 1, 0.1), CONFIG).log.events
    tuner = Tuner()
    with pytest.raises(NotReplayable, match="tuning needs"):
        tuner.feed(make_event({**events[0], **first}))
        tuner.start.check()


def test_events_of_requests_without_a_beginning_are_left_out() -> None:
    """And counted."""
    events = run_on_jumping_clock(in_turn(2, 3, 0.1), CONFIG).log.events
    tuner = Tuner()
    for event in events:
        if event["event"] != "wasmcache.acquired" or event["request"] != 2:
            tuner.feed(make_event(event))
    assert (tuner.leases, tuner.ignored) == (5, 1)


@pytest.mark.parametrize("missing", ["registered", "loaded", "requested", "group_opened"])
def test_a_curve_of_a_log_with_a_hole(missing: str) -> None:
    """Leases of which something is missing are left out, and the others are the curve."""
    events = run_on_jumping_clock(in_turn(2, 3, 0.1), CONFIG).log.events
    holes = [event for event in events if event["event"] == f"wasmcache.{missing}"]
    assert holes
    tuner = Tuner()
    for event in events:
        if event is not holes[0]:
            tuner.feed(make_event(event))
    curve = tuner.curve(math.inf)
    assert curve.leases == tuner.leases <= 6
    assert 0 <= curve.at(curve.largest).hit_rate <= 1


def test_a_seat_is_loaded_on_for_every_hit() -> None:
    """So a hit costs what that takes: here nothing, as against the module's load."""
    plan = in_turn(2, 3, 0.1)
    fresh = tuple(evolve(function, isolation="fresh") for function in plan.functions)
    tuner = tuned(run_on_jumping_clock(evolve(plan, functions=fresh), CONFIG).log.events)
    curve = tuner.curve(math.inf)
    assert (curve.smallest, curve.largest) == (PAGE, 2 * PAGE)
    assert [curve.at(size).hit_rate for size in (PAGE, 2 * PAGE)] == [0.0, 4 / 6]
    assert [curve.at(size).load_seconds for size in (PAGE, 2 * PAGE)] == pytest.approx([3.0, 1.0])
