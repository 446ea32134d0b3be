"""The short ways into a line and out of it leave the books as the long ways do."""

from __future__ import annotations

from typing import Any

import pytest
from core.policy.policy_bench import Bench, limits, short_hit, short_queue
from peeking import slots_of

from trio_wasmcache._core.errors import DeadlockError
from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.policy.records import FunctionRecord, Request, Stage


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
    ledger = slots_of(policy.instances.ledger)
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
        (policy.instances.ledger, "total_size", 1000),
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


def busy(bench: Bench) -> FunctionRecord:
    """A function whose instance anna holds; an acquire has looked whether it fits."""
    function = bench.function("f")
    held = bench.lease(function, owner="anna")
    held.held.hold(Native(), ready=True)
    bench.policy.may_rest(held)
    return function


def give_up(reason: Reason) -> None:
    pass


def test_both_ways_lead_into_the_same_line() -> None:
    """Of those that come the short way, and of those that come the long way."""
    states = []
    for short in (True, False):
        bench = Bench()
        function = busy(bench)
        requests = [*function.entries[bench.main].claims]
        for owner in ("berta", "clara"):
            bench.now += 1
            request: Request | None
            if short:
                request = short_queue(bench.policy, function, bench.main, owner, give_up, bench.now)
                assert request is not None
            else:
                request = bench.policy.request(function, bench.main, owner, give_up=give_up)
                bench.policy.acquire(request, bench.now)
            requests.append(request)
        states.append((state(bench, (*requests,)), [one.turn for one in requests]))
    assert states[0] == states[1]


def test_no_place_in_line_where_acquiring_may_do_more() -> None:
    """Nothing has changed then."""
    bench = Bench()
    function = busy(bench)
    policy, entry = bench.policy, function.entries[bench.main]
    requests = (*entry.claims,)
    before = state(bench, requests)

    def refused(owner: str = "berta", where: FunctionRecord = function) -> bool:
        return short_queue(policy, where, bench.main, owner, give_up, bench.now) is None

    assert refused("anna"), "as it would wait for itself"
    assert refused(where=bench.function("g")), "as it has no entry"
    for owner, field, value in (
        (policy, "closed", True),
        (bench.main, "closed", True),
        (function, "concurrency", 2),
        (function, "fits", -1),
    ):
        kept: object = getattr(owner, field)
        setattr(owner, field, value)
        assert refused(), field
        setattr(owner, field, kept)
    assert state(bench, requests) == before
    assert not refused()


def test_a_wait_in_vain_is_found_behind_others() -> None:
    """All that hold the instance wait for what the task has."""
    bench = Bench()
    f, g = busy(bench), bench.function("g")
    bench.lease(g, owner="berta")
    assert short_queue(bench.policy, g, bench.main, "anna", give_up, bench.now) is not None
    assert short_queue(bench.policy, f, bench.main, "berta", give_up, bench.now) is None
    with pytest.raises(DeadlockError):
        bench.policy.acquire(bench.policy.request(f, bench.main, "berta"), bench.now)


def test_an_instance_with_a_line_does_not_become_idle() -> None:
    """Also if nothing else has happened since its holder took it the short way."""
    bench = Bench()
    function = busy(bench)
    (held,) = function.entries[bench.main].claims
    assert bench.policy.rest(held, 10, bench.now)
    hit = short_hit(bench.policy, function, bench.main, "anna", give_up, bench.now)
    assert hit is not None
    assert bench.policy.rest(hit, 10, bench.now)
    hit = short_hit(bench.policy, function, bench.main, "anna", give_up, bench.now)
    assert hit is not None
    following = short_queue(bench.policy, function, bench.main, "berta", give_up, bench.now)
    assert not bench.policy.rest(hit, 10, bench.now)
    assert bench.policy.pass_on(hit, 10, bench.now) is following
    # Once more: the line has been empty meanwhile.
    assert following is not None
    third = short_queue(bench.policy, function, bench.main, "clara", give_up, bench.now)
    assert not bench.policy.rest(following, 10, bench.now)
    assert bench.policy.pass_on(following, 10, bench.now) is third


def test_what_hinders_the_whole_cache_is_looked_at_again_after_each_step() -> None:
    """One instance is passed on, then limits change, a request waits for room, or all closes."""
    for hinder in ("resize", "room", "close"):
        bench = Bench()
        held, second, _ = in_line(bench)
        policy = bench.policy
        assert policy.pass_on(held, 10, bench.now) is second
        if hinder == "resize":
            policy.resize(limits(idle_timeout="adaptive"), bench.now)
        elif hinder == "room":
            policy.resize(limits(max_code=2), bench.now)
            waits = policy.request(bench.function("g"), bench.main, "dora")
            policy.acquire(waits, bench.now)
            assert waits.stage is Stage.ROOM
        else:
            policy.close()
        assert policy.pass_on(second, 10, bench.now) is None, hinder
