"""A trial gives what the cache's policy gives, under each eviction policy."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, strategies as st
from kits import tries
from report.tuning.test_tuning import CONFIG, tuned
from report.workloads import PAGE, calm_plan, draw_config, in_turn, run_on_jumping_clock, wild_plan

from trio_wasmcache._core.config import PolicyName
from trio_wasmcache._core.events import GroupOpened, Opened, Reason, Recycled, Registered, Removed
from trio_wasmcache._core.policy.records import Request, Stage
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay.books import Books, config_of
from trio_wasmcache.report.replay.replay import is_end_of_corrupted
from trio_wasmcache.report.tuning.trace import Op, Trace
from trio_wasmcache.report.tuning.trial import Settings, Trial
from trio_wasmcache.report.tuning.trials import Trials

GiB = 1024 * 1024 * 1024
POLICIES: tuple[PolicyName, ...] = ("lru", "sieve", "gdsf", "cost")
Event = dict[str, Any]


def by_the_policy(events: list[Event], trace: Trace, settings: Settings) -> tuple[int, int, float]:
    """(hits, misses, seconds of loading) by `Policy`; leases begin and end when they did."""
    first = make_event(events[0]).event
    assert isinstance(first, Opened)
    opened = config_of(first)
    limit = opened.max_instance_size
    config = evolve(
        opened,
        policy=settings.policy,
        max_size=settings.max_size,
        idle_timeout=settings.idle_timeout,
        min_idle_timeout=settings.min_idle_timeout,
        max_idle_timeout=settings.max_idle_timeout,
        max_instance_size=16 * GiB,
        max_instances=16384,
        max_code_size=16 * GiB,
        max_running_size=None,
        max_address_space=None,
    )
    books = Books(config)
    policy, requests, seconds = books.policy, dict[int, Request](), 0.0
    begun = [
        key for op, key in zip(trace.ops, trace.keys, strict=True) if op in (Op.TAKE, Op.REUSE)
    ]
    runs = iter(enumerate(begun))
    for event, following in zip(events, [*events[1:], events[-1]], strict=True):
        now, made = event["at_seconds"], make_event(event).event
        while (due := policy.next_expiry()) is not None and due <= now:
            policy.expire(due)
        match event["event"].removeprefix("wasmcache."):
            case "group_opened":
                assert isinstance(made, GroupOpened)
                alone = made.changed(max_size_bytes=None, reserved_size_bytes=None)
                books.open_group(alone, lambda: False)
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
                run, key = next(runs)
                function = books.functions[
                    event["function"], event["arg_types"], event["generation"]
                ]
                request = policy.request(function, books.groups[event["group"]], run)
                requests[event["request"]] = request
                policy.acquire(request, now)
                if request.stage is Stage.LOADING:
                    cold = request.held.loads_module
                    took = trace.loads[run]
                    if math.isnan(took) or trace.cold[run] != cold:
                        took = trace.usual(trace.names[key], cold)
                    seconds += took
                    policy.loaded(request, now, 0, took)
            case "recycled":
                assert isinstance(made, Recycled)
                after = make_event(following).event
                drop = Reason.CORRUPTED if is_end_of_corrupted(made, after) else None
                if event["size_bytes"] > limit:
                    drop = Reason.OVERSIZED
                request = requests[event["request"]]
                policy.recycle(request, event["size_bytes"], now, drop, event["seat"])
    return policy.hits, policy.misses, seconds


@pytest.mark.parametrize("policy", POLICIES)
@tries(12)
@given(st.integers(0, 2**32))
def test_a_trial_gives_what_the_policy_gives(policy: PolicyName, seed: int) -> None:
    """Whatever is in the log: nesting, traps, growth, replacement, groups that close, seats."""
    random = Random(seed)
    plan = wild_plan(random)
    plan = evolve(plan, changes=tuple(it for it in plan.changes if it.kind != "warm"))
    events = run_on_jumping_clock(plan, draw_config(random)).log.events
    trace = tuned(events).trace.packed()
    for timeout in (math.inf, 0.4):
        for size in (PAGE, 3 * PAGE, 6 * PAGE, 12 * PAGE, 40 * PAGE):
            settings = Settings(policy, size, timeout)
            found = Trial(trace, settings).run()
            hits, misses, seconds = by_the_policy(events, trace, settings)
            assert (found.hits, found.misses) == (hits, misses)
            assert found.load_seconds == pytest.approx(seconds)


def test_under_lru_it_is_the_curve() -> None:
    """At each size, from the smallest for which the curve is exact."""
    tuner = tuned(run_on_jumping_clock(in_turn(4, 10, 0.25), CONFIG).log.events)
    curve, trace = tuner.curve(1.5), tuner.trace.packed()
    for size in range(curve.smallest, curve.largest + PAGE, PAGE):
        found = Trial(trace, Settings("lru", size, 1.5)).run()
        assert found.hit_rate == curve.at(size).hit_rate


def test_what_was_loaded_ahead_is_no_lease() -> None:
    """But a lease finds it."""
    trace = Trace()
    trace.know("key", "function", 0, 0)
    trace.end(Op.REST, "key", 1.0, trace.begin(Op.WARM, "key", 0.0, 0.5, True), PAGE)
    trace.end(Op.REST, "key", 3.0, trace.begin(Op.TAKE, "key", 2.0, None, False), PAGE)
    found = Trial(trace, Settings("cost", PAGE, 5.0)).run()
    assert (found.hits, found.misses, found.load_seconds) == (1, 0, 0.5)


def test_trials_in_processes_give_the_same() -> None:
    """Each once, however often it is asked for, and with its progress."""
    tuner = tuned(run_on_jumping_clock(in_turn(4, 10, 0.25), CONFIG).log.events)
    trace = tuner.trace.packed()
    wanted = [Settings(policy, pages * PAGE, 5.0) for policy in POLICIES for pages in (2, 4)]
    progress: list[tuple[int, int]] = []
    with Trials([trace], lambda done, all_: progress.append((done, all_)), 1) as apart:
        outcomes = apart.run(wanted)
        assert apart.run(reversed(wanted)) == outcomes[::-1]
    assert outcomes == [Trial(trace, it).run() for it in wanted]
    assert progress[0] == (0, 8)
    assert progress[-1] == (8, 8)
    assert len(progress) == 10


@pytest.mark.parametrize("policy", ["lru", "cost"])
@tries(12)
@given(st.integers(0, 2**32))
def test_adaptive_timeouts_are_those_of_the_policy(policy: PolicyName, seed: int) -> None:
    """While no group closes, and no function is replaced, each function learns the same."""
    random = Random(seed)
    plan = evolve(calm_plan(random), changes=())
    events = run_on_jumping_clock(plan, draw_config(random)).log.events
    trace = tuned(events).trace.packed()
    settings = Settings(policy, GiB, "adaptive", 0.05, random.choice([0.5, 2.0]))
    found = Trial(trace, settings).run()
    hits, misses, seconds = by_the_policy(events, trace, settings)
    assert (found.hits, found.misses) == (hits, misses)
    assert found.load_seconds == pytest.approx(seconds)


def test_idle_bytes_are_counted_while_they_are_idle() -> None:
    """Until the next use, the eviction or the end of the trace, whichever is first."""
    trace = Trace()
    trace.know("f", "f", 1, 1)
    for at in (0.0, 3.0, 20.0, 21.0):
        run = trace.begin(Op.TAKE, "f", at, 0.5, True)
        trace.end(Op.REST, "f", at, run, 100)
    found = Trial(trace.packed(), Settings("lru", GiB, 5.0)).run()
    assert (found.misses, found.idle_byte_seconds) == (2, 100 * (3 + 5 + 1))
    adaptive = Trial(trace.packed(), Settings("lru", GiB, "adaptive", 1.0, 10.0)).run()
    kept = 2 ** (8 / 4)  # a class more than that of three seconds
    assert adaptive.misses == 2
    assert adaptive.idle_byte_seconds == pytest.approx(100 * (3 + kept + 1))
