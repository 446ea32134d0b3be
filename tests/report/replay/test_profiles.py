"""The log of a cache that was profiled again and again is replayed as it was."""

from __future__ import annotations

from random import Random

from attrs import evolve
from hypothesis import given, strategies as st
from kits import tries
from report.replay.test_start import check_all, events_of, instants, replayed
from report.whatif.test_whatif import what_if
from report.workloads import (
    Change,
    Plan,
    draw_config,
    run_on_jumping_clock,
    tiered,
    wild_plan,
)


def profiled(plan: Plan, random: Random) -> Plan:
    """The same application, profiled eight times; some profiles are cancelled."""
    groups = [None, "main", *(name for name, _ in plan.groups)]
    changes = [
        Change(
            random.uniform(0, 6),
            "profile",
            random.randrange(len(plan.functions)),
            (("seconds", random.choice([0.1, 0.5, 2.0])), ("group", random.choice(groups))),
        )
        for _ in range(8)
    ]
    return evolve(plan, changes=(*plan.changes, *changes))


@tries(2)
@given(st.integers(0, 2**32))
def test_whatever_goes_on_meanwhile(seed: int) -> None:
    """From its beginning and from each snapshot, also those within a window."""
    random = Random(seed)
    config = evolve(draw_config(random), snapshot_interval=random.choice([0.2, 0.7]))
    config = tiered(config) if seed % 2 else config
    events = events_of(run_on_jumping_clock(profiled(wild_plan(random), random), config).log.events)
    assert replayed(events)[0].disagreements == []
    for after in instants(events):
        check_all([it for it in events if it.seq > after], after)


def test_what_is_in_such_logs() -> None:
    """Windows that begin and end, in groups and in all, with evictions; and what if all fitted."""
    found: set[str] = set()
    for seed in range(3):
        random = Random(seed)
        plan = profiled(wild_plan(random), random)
        config = evolve(draw_config(random), snapshot_interval=0.3)
        logged = run_on_jumping_clock(plan, config).log.events
        what_if(logged)
        for event in logged:
            if event["event"] == "wasmcache.profiled":
                found.add("begun" if event["module_number"] else "ended")
                found.add("group" if event["group"] else "all")
            if event.get("reason") == "profiled":
                found.add("evicted idle" if event["idle_seconds"] else "evicted running")
            if event["event"] == "wasmcache.snapshot":
                numbers = [one["profiled_module_number"] for one in event["functions"]]
                found.update("in a snapshot" for number in numbers if number)
    assert found >= {"begun", "ended", "group", "all", "evicted idle", "evicted running"}
    assert "in a snapshot" in found
