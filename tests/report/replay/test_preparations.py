"""The log of a cache in which functions are prepared is replayed as it was."""

from __future__ import annotations

import math
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
    wild_plan,
)


def preparing(plan: Plan, random: Random) -> Plan:
    """The same application, in which twelve functions are prepared, some for the same module."""
    functions = [
        evolve(one, asks=random.choice([one.asks, random.random() * 2])) for one in plan.functions
    ]
    held = [None, None, *(one.name for one in functions)]
    changes = [
        Change(
            random.uniform(0, 6),
            "prepare",
            random.randrange(len(functions)),
            (
                ("name", f"p{random.randrange(8)}"),
                ("held", random.choice(held)),
                ("patience", random.choice([math.inf, math.inf, random.random() * 2])),
            ),
        )
        for _ in range(12)
    ]
    return evolve(plan, functions=tuple(functions), changes=(*plan.changes, *changes))


@tries(2)
@given(st.integers(0, 2**32))
def test_whatever_goes_on_meanwhile(seed: int) -> None:
    """From its beginning and from each snapshot, also while something is prepared."""
    random = Random(seed)
    config = evolve(draw_config(random), snapshot_interval=random.choice([0.2, 0.7]))
    events = events_of(
        run_on_jumping_clock(preparing(wild_plan(random), random), config).log.events
    )
    assert replayed(events)[0].disagreements == []
    for after in instants(events):
        check_all([it for it in events if it.seq > after], after)


def test_what_is_in_such_logs() -> None:
    """Preparations that succeed, fail, wait, evict, are refused, cancelled, shared and closed."""
    found: set[str] = set()
    for seed in range(6):
        random = Random(seed)
        config = evolve(draw_config(random), snapshot_interval=0.3)
        logged = run_on_jumping_clock(preparing(wild_plan(random), random), config).log.events
        what_if(logged)
        requests = set()
        for event in logged:
            match event["event"].removeprefix("wasmcache."):
                case "preparation_requested":
                    requests.add(event["request"])
                    found.add("begun")
                case "preparation_awaited":
                    found.add("shared" if "," in event["for_tasks"] else "awaited")
                case "preparation_ended":
                    found.add(event["error"] or "ended")
                    found.add("waited" if event["wait_seconds"] else "at once")
                case "evicted" if event["for_request"] in requests:
                    found.add("evicts")
                case "snapshot":
                    found.update(
                        f"in a snapshot, {one['stage']}"
                        for one in event["requests"]
                        if one["for_tasks"] is not None
                    )
    assert found >= {"begun", "ended", "shared", "awaited", "waited", "at once", "evicts"}
    assert found >= {"Cancelled", "DeadlockError", "LoadError"}
    assert found >= {"in a snapshot, loading", "in a snapshot, room"}
