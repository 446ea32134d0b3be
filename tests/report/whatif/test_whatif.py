"""The same application under other limits: what a live run under those limits gives."""

from __future__ import annotations

import itertools
import math
from random import Random
from typing import Any

import pytest
import trio
from attrs import evolve
from hypothesis import assume, example, given, strategies as st
from kits import tries
from report.workloads import (
    PAGE,
    FunctionPlan,
    JsonLogger,
    Plan,
    Use,
    calm_plan,
    draw_config,
    draw_limits,
    run_on_jumping_clock,
    tiered,
    wild_plan,
)
from trio.testing import MockClock

from trio_wasmcache import CacheConfig
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay.start import NotReplayable
from trio_wasmcache.report.whatif.results import Result
from trio_wasmcache.report.whatif.tasks import Application, Recorder
from trio_wasmcache.report.whatif.whatif import WhatIf
from trio_wasmcache.testing import FakeEngine, open_fake_cache

Event = dict[str, Any]
WHAT = ("function", "group", "generation", "reason", "seat", "freed_bytes", "uses")
CONFIG = CacheConfig(stack_size=PAGE, idle_timeout=10.0)


def recorded(events: list[Event]) -> Application:
    recorder = Recorder()
    for event in events:
        recorder.feed(make_event(event))
    assert recorder.ignored == 0
    assert recorder.made is not None
    return recorder.made


def what_if(events: list[Event], **limits: Any) -> tuple[Result, list[tuple[Any, ...]]]:
    """The result, and what was evicted, in order."""
    evicted: list[tuple[Any, ...]] = []

    def note(event: Any) -> None:
        fields = event.fields()
        evicted.append(tuple(fields[name] for name in WHAT))

    return WhatIf(recorded(events), limits, evicted=note).run(), evicted


def evictions(events: list[Event]) -> list[tuple[Any, ...]]:
    return [
        tuple(event[name] for name in WHAT)
        for event in events
        if event["event"] == "wasmcache.evicted"
    ]


def is_calm(events: list[Event]) -> bool:
    """Whether nobody was refused, and each function was used: see the docstring of `whatif`."""
    asked, used = set(), set()
    for event in events:
        match event["event"]:
            case "wasmcache.abandoned" if event["error"] != "Cancelled":
                return False
            case "wasmcache.requested" | "wasmcache.blocked":
                asked.add(event["function"])
            case "wasmcache.recycled":
                used.add(event["function"])
    return asked <= used


def roomy_config(random: Random) -> CacheConfig:
    """`draw_config`, with room for the code of each function."""
    return evolve(draw_config(random), max_code_size=random.randint(8, 14) * PAGE)


def without_resizes(plan: Plan) -> Plan:
    return evolve(plan, changes=tuple(it for it in plan.changes if it.kind != "resize"))


@tries(25)
@given(st.integers(0, 2**32))
def test_other_limits_give_what_a_live_run_under_them_gave(seed: int) -> None:
    """The same evictions in the same order; as many hits, misses and waits; the same peak."""
    random = Random(seed)
    plan, config, limits = calm_plan(random), roomy_config(random), dict(draw_limits(random))
    logged = run_on_jumping_clock(plan, config).log.events
    assume(is_calm(logged))
    live = run_on_jumping_clock(without_resizes(plan), evolve(config, **limits)).log.events
    result, evicted = what_if(logged, **limits)
    assert evicted == evictions(live)
    closed = live[-1]
    assert (result.hits, result.misses, result.blocks) == (
        closed["hits"],
        closed["misses"],
        closed["blocks"],
    )
    loads = [it["load_seconds"] for it in live if it["event"] == "wasmcache.loaded"]
    gave_up = [it for it in live if it["event"] == "wasmcache.abandoned"]
    assert len(gave_up) == result.gave_up + result.refused
    if not gave_up:
        assert result.load_seconds == pytest.approx(sum(loads))
    recycled = [it["total_size_bytes"] for it in live if it["event"] == "wasmcache.recycled"]
    assert result.peak_size == max(recycled, default=0)


@tries(10)
@given(st.integers(0, 2**32))
def test_its_own_limits_give_the_log_itself(seed: int) -> None:
    """Also where limits changed in between: those changes are part of the log."""
    random = Random(seed)
    logged = run_on_jumping_clock(calm_plan(random), roomy_config(random)).log.events
    assume(is_calm(logged))
    result, evicted = what_if(logged)
    assert evicted == evictions(logged)
    assert result.hits == logged[-1]["hits"]


@pytest.mark.parametrize("seed", [2, 6, 8, 10])
def test_functions_are_promoted_as_in_the_log(seed: int) -> None:
    """At the same moments, which on this clock are those of other steps, so not with any seed."""
    random = Random(seed)
    plan, config = calm_plan(random), tiered(roomy_config(random))
    logged = run_on_jumping_clock(plan, config).log.events
    assert any(event.get("promoted") for event in logged)
    result, evicted = what_if(logged)
    assert evicted == evictions(logged)
    assert result.hits == logged[-1]["hits"]
    assert what_if(logged, max_code_size=3 * PAGE)[0].hits <= result.hits


@tries(20)
@given(st.integers(0, 2**32))
@example(1369)  # a group closes under a lease that has another one nested in it
def test_whatever_the_application_does_it_comes_to_an_end(seed: int) -> None:
    """An approximation at worst: each acquire is served, refused or given up, and none is lost."""
    random = Random(seed)
    plan, config = wild_plan(random), draw_config(random)
    config = tiered(config) if seed % 2 else config
    logged = run_on_jumping_clock(plan, config).log.events
    made = recorded(logged)
    run = WhatIf(made, dict(draw_limits(random)))
    result = run.run()
    ledger = run._books.policy.instances.ledger
    assert result.hits + result.misses + result.refused + result.gave_up <= sum(
        1 for program in made.programs.values() for item in program if hasattr(item, "outcome")
    )
    if made.closed_at is not None:
        assert (ledger.idle, ledger.running, ledger.total_size) == (0, 0, 0)


def one_after_the_other(*functions: int, patience: float = math.inf) -> Plan:
    """One task that uses these, a second apart, for half a second each."""
    plans = tuple(
        FunctionPlan(f"f{number}", 1, PAGE, 1, 0.5, load=0.25)
        for number in range(max(functions) + 1)
    )
    uses = tuple(Use(0.5, number, None, patience, 0.5) for number in functions)
    return Plan(plans, (), tasks=((0.0, uses),))


def test_a_smaller_cache_misses_and_loads_more() -> None:
    """Two functions in turn: each use is a miss where only one instance fits."""
    logged = run_on_jumping_clock(one_after_the_other(0, 1, 0, 1, 0, 1), CONFIG).log.events
    roomy, _ = what_if(logged)
    tight, evicted = what_if(logged, max_size=3 * PAGE)
    assert (roomy.hits, roomy.misses, roomy.hit_rate) == (4, 2, 4 / 6)
    assert (tight.hits, tight.misses) == (0, 6)
    assert roomy.load_seconds == pytest.approx(0.5)
    assert tight.load_seconds == pytest.approx(1.5)
    assert [reason for _, _, _, reason, *_ in evicted] == ["size"] * 5 + ["closed"]
    assert (roomy.peak_size, tight.peak_size) == (4 * PAGE, 2 * PAGE)
    assert tight.as_dict()["limits"]["max_size"] == 3 * PAGE


def test_a_shorter_timeout_evicts_in_between() -> None:
    """What rests for half a second goes after a quarter; an endless one is null in JSON."""
    logged = run_on_jumping_clock(one_after_the_other(0, 0, 0), CONFIG).log.events
    result, _ = what_if(logged, idle_timeout=0.25)
    assert (result.hits, result.misses) == (0, 3)
    endless, _ = what_if(logged, idle_timeout=math.inf)
    assert endless.hits == 2
    assert endless.as_dict()["limits"]["idle_timeout"] is None


def test_a_function_that_does_not_fit_is_refused() -> None:
    """And the task goes on without it."""
    logged = run_on_jumping_clock(one_after_the_other(0, 1, 0), CONFIG).log.events
    result, _ = what_if(logged, max_code_size=PAGE)
    assert (result.hits, result.misses, result.refused) == (0, 0, 3)
    assert result.hit_rate == 0.0


def test_more_concurrency_lets_two_tasks_run_at_a_time() -> None:
    """Who waited for an instance loads one of its own."""
    plan = one_after_the_other(0)
    plan = evolve(
        plan, tasks=tuple((start, uses) for start in (0.0, 0.1) for _, uses in plan.tasks)
    )
    made = recorded(run_on_jumping_clock(plan, CONFIG).log.events)
    one, two = (WhatIf(made, {}, concurrency=number).run() for number in (1, 2))
    assert (one.blocks, one.hits, one.misses) == (1, 1, 1)
    assert (two.blocks, two.hits, two.misses) == (0, 0, 2)
    assert two.wait_seconds < one.wait_seconds


def test_who_gave_up_is_served_where_there_is_more() -> None:
    """And holds its lease for as long as is usual for the function."""
    plan = Plan(
        (FunctionPlan("f", 1, PAGE, 1, 3.0),),
        (),
        tasks=(
            (0.0, (Use(0.0, 0, None, math.inf, 3.0),)),
            (0.1, (Use(0.0, 0, None, 0.5, 3.0), Use(0.0, 0, None, math.inf, 3.0))),
        ),
    )
    made = recorded(run_on_jumping_clock(plan, CONFIG).log.events)
    one, two = (WhatIf(made, {}, concurrency=number).run() for number in (1, 2))
    assert (one.gave_up, one.hits, one.misses, one.wait_seconds) == (1, 1, 1, 3.0 - 0.6)
    assert (two.gave_up, two.hits, two.misses, two.wait_seconds) == (0, 1, 2, 0.0)


def test_a_task_that_is_earlier_waits_for_what_it_uses() -> None:
    """A function that is registered, and registered anew, while a task waited in the log."""
    log = JsonLogger()

    async def main() -> None:
        engine = FakeEngine()
        config = evolve(CONFIG, log_uses=True, idle_timeout=math.inf)
        async with open_fake_cache(config, engine=engine, logger=log) as cache:
            module = engine.module()
            await cache.register("f", module, args=("i64",), returns="i64", export="run")

            async def hold_f(seconds: float) -> None:
                async with cache.acquire("f", ("i64",)):
                    await trio.sleep(seconds)

            async def use_both() -> None:
                await hold_f(1.0)
                async with cache.acquire("g", ("i64",)):
                    await trio.sleep(1.0)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold_f, 10.0)
                await trio.sleep(0.5)
                nursery.start_soon(use_both)
                await trio.sleep(4.5)
                await cache.register("g", module, args=("i64",), returns="i64", export="run")
                cache.remove("g", ("i64",))
                await trio.sleep(1.0)
                await cache.register("g", module, args=("i64",), returns="i64", export="run")

    trio.run(main, clock=MockClock(autojump_threshold=0))
    made = recorded(log.events)
    one, two = (WhatIf(made, {}, concurrency=number).run() for number in (1, 2))
    assert (one.refused, one.hits, one.misses, one.blocks) == (0, 1, 2, 1)
    assert (two.refused, two.hits, two.misses, two.blocks) == (0, 0, 3, 0)


@pytest.mark.parametrize(
    "first", [{"event": "wasmcache.registered", "seq": 2}, {"log_uses": False}]
)
def test_what_can_not_be_asked(first: dict[str, Any]) -> None:
    """A log without its beginning, or without uses."""
    logged = run_on_jumping_clock(one_after_the_other(0), CONFIG).log.events
    recorder = Recorder()
    with pytest.raises(NotReplayable, match="needs"):
        recorder.feed(make_event({**logged[0], **first}))
        recorder.start.check()


def test_limits_that_no_cache_has() -> None:
    """Are refused as the cache refuses them."""
    logged = run_on_jumping_clock(one_after_the_other(0), CONFIG).log.events
    with pytest.raises(ValueError, match="max_size must be at least 0"):
        what_if(logged, max_size=-1)
    with pytest.raises(TypeError, match="max_instances must be an int"):
        what_if(logged, max_instances="many")


def test_a_log_with_a_hole_is_used_as_far_as_it_goes() -> None:
    """Events about requests of which the beginning is missing are left out, and counted."""
    logged = run_on_jumping_clock(one_after_the_other(0, 1, 0, 1), CONFIG).log.events
    requested = [it["seq"] for it in logged if it["event"] == "wasmcache.requested"]
    recorder = Recorder()
    for event in logged:
        if event["seq"] != requested[1]:
            recorder.feed(make_event(event))
    assert recorder.ignored == 3  # loaded, acquired, recycled
    assert recorder.made is not None
    result = WhatIf(recorder.made, {}).run()
    assert result.hits + result.misses == 3


def test_a_log_that_breaks_off_is_used_as_far_as_it_goes() -> None:
    """Leases that the log leaves open stay open; nothing fails wherever it ends."""
    logged = run_on_jumping_clock(calm_plan(Random(3)), draw_config(Random(3))).log.events
    for end in itertools.islice(range(1, len(logged)), 0, None, 7):
        what_if(logged[:end], max_size=4 * PAGE)
