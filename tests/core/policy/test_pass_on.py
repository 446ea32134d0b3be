"""A lease that passes its instance on leaves the books as recycling it does."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import asdict
from core.policy.policy_bench import Bench

from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.policy.records import Request, Stage


class Native:
    """A loaded instance."""

    def close(self) -> None:
        pass


def in_line(bench: Bench) -> tuple[Request, Request, Request]:
    """A held request that may rest, and two that wait for its instance."""
    function = bench.function("f")
    held = bench.lease(function)
    held.held.hold(Native(), ready=True)
    bench.policy.may_rest(held)
    waiting = []
    for owner in ("berta", "clara"):
        request = bench.policy.request(function, bench.main, owner)
        bench.policy.acquire(request, bench.now)
        assert request.stage is Stage.QUEUED
        waiting.append(request)
    return held, *waiting


def state(bench: Bench, requests: tuple[Request, ...]) -> Any:
    """All that the two ways could leave different."""
    policy = bench.policy
    (entry,) = policy.instances.entries
    instances = [request.instance and request.instance.number for request in requests]
    (instance,) = {request.instance for request in requests if request.instance is not None}
    ledger = asdict(policy.instances.ledger, recurse=False)
    del ledger["evictable"]
    return (
        [(one.stage, one.since, one.hit, one.blocked, one.give_up) for one in requests],
        instances,
        (policy.hits, policy.misses, policy.blocks, policy.instances.rests),
        (instance.state, instance.uses, instance.rested, instance.last_used, entry.last_used),
        entry.uses.freeze(0),
        ([requests.index(one) for one in entry.claims], [*map(requests.index, entry.waiting)]),
        [requests.index(one) for one in policy.waits.held],
        sorted(map(str, policy.waits.waiting)),
        ledger,
        (entry.group.idle_size, len(policy.instances.lru)),
    )


def test_both_ways_lead_to_the_same_state() -> None:
    """The first in line has the instance, and the counts are the same."""
    states = []
    for short in (True, False):
        bench = Bench()
        requests = in_line(bench)
        bench.now += 1.5
        if short:
            assert bench.policy.pass_on(requests[0], 10, bench.now) is requests[1]
        else:
            step = bench.policy.recycle(requests[0], 10, bench.now)
            assert step is not None
            assert step.woken == [requests[1]]
        states.append(state(bench, requests))
    assert states[0] == states[1]


def test_it_is_refused_where_recycling_may_do_more() -> None:
    """Nothing has changed then."""
    bench = Bench()
    held, *_ = requests = in_line(bench)
    policy, instance, function = bench.policy, held.held, held.entry.function
    before = state(bench, requests)
    assert policy.pass_on(held, 11, bench.now) is None, "as it has grown"
    for owner, field, value in (
        (held, "plain", False),
        (policy, "closed", True),
        (instance, "ready", False),
        (function, "retired", True),
        (policy.instances, "shrunk", True),
        (policy.instances, "told", policy.instances.order),
        (policy.instances, "running_limit", -1),
        (held.entry.group, "room", 9),
        (next(iter(held.entry.waiting)), "warm", True),
    ):
        kept: object = getattr(owner, field)
        setattr(owner, field, value)
        assert policy.pass_on(held, 10, bench.now) is None, field
        setattr(owner, field, kept)
    assert state(bench, requests) == before


@pytest.mark.parametrize("closes", [False, True])
def test_what_was_passed_on_is_a_lease_like_any_other(closes: bool) -> None:
    """It can rest, be passed on again, and be given up."""
    bench = Bench()
    held, second, third = in_line(bench)
    assert bench.policy.pass_on(held, 10, bench.now) is second
    bench.policy.may_rest(second)
    if closes:
        bench.policy.close_group(bench.main, bench.now, Reason.GROUP_CLOSED)
        assert bench.policy.pass_on(second, 10, bench.now) is None
        bench.policy.recycle(second, 10, bench.now)
        assert (second.stage, third.stage) == (Stage.ENDED, Stage.ENDED)
        return
    assert bench.policy.pass_on(second, 10, bench.now) is third
    bench.policy.may_rest(third)
    assert bench.policy.rest(third, 10, bench.now)
    ledger = bench.policy.instances.ledger
    assert (ledger.idle, ledger.running) == (1, 0)
