"""Seats in the policy: what a lease leaves that closed its instance, and how the next one sits."""

from __future__ import annotations

import pytest
from core.policy.policy_bench import Bench, reasons

from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.policy.lifecycle import State
from trio_wasmcache._core.policy.records import GroupRecord, RequestClosed, Stage


def test_the_whole_life_of_a_seat() -> None:
    """A lease leaves it, the next loads on it and is a hit, and it expires like an instance."""
    bench = Bench(idle_timeout=5)
    policy, function = bench.policy, bench.function("f", code=3)
    seat = bench.seat(function, 20)
    assert (seat.state, seat.seat, seat.size) == (State.IDLE, True, 20)
    assert (bench.used, bench.total_size, policy.misses) == (3, 20, 1)

    request, step = bench.ask(function)
    assert (request.stage, request.instance, bool(step)) == (Stage.LOADING, seat, False)
    assert not seat.loads_module
    assert (bench.used, bench.total_size, policy.hits) == (4, 0, 0)
    assert not bench.load(request)
    assert (request.stage, request.hit, seat.seat) == (Stage.GRANTED, True, False)
    assert (policy.hits, policy.misses, policy.blocks) == (1, 1, 0)
    assert not bench.recycle(request, 30, seat=True)
    assert (seat.state, seat.uses, bench.total_size) == (State.IDLE, 2, 30)

    ((evicted, event),) = policy.expire(bench.now + 5).evicted
    assert (evicted, event.seat, event.freed_bytes) == (seat, True, 30)
    assert (bench.used, bench.total_size, seat.state) == (0, 0, State.CLOSED)


def test_a_seat_is_an_instance_again_once_it_is_loaded() -> None:
    """What goes from under a lease was an instance, and so is what its lease leaves as it is."""
    bench = Bench()
    function = bench.function("f")
    bench.seat(function)
    lease = bench.lease(function)
    ((_, event),) = bench.recycle(lease, drop=Reason.CORRUPTED).evicted
    assert not event.seat
    bench.seat(function)
    bench.recycle(bench.lease(function))
    again = bench.acquire(function)
    assert (again.stage, again.hit) == (Stage.GRANTED, True)


def test_a_load_that_fails_on_a_seat_puts_it_back() -> None:
    """Idle, the most recently used, and the first waiter of the entry tries on it for itself."""
    bench = Bench()
    function, other = bench.function("f"), bench.function("g")
    seat = bench.seat(function, 20)
    bench.idle(other)
    first = bench.acquire(function, "anna")
    second = bench.acquire(function, "ben")
    assert (first.stage, second.stage) == (Stage.LOADING, Stage.QUEUED)
    assert bench.fail(first).woken == [second]
    assert (first.stage, second.stage, second.instance) == (Stage.ENDED, Stage.LOADING, seat)
    bench.now += 1
    assert not bench.fail(second)
    assert (seat.state, seat.seat, seat.last_used) == (State.IDLE, True, bench.now)
    assert list(bench.policy.instances.lru)[-1] is seat
    assert (bench.policy.hits, bench.policy.misses, bench.total_size) == (0, 2, 30)
    assert bench.lease(function).hit


def test_a_seat_that_no_longer_fits_is_not_put_back() -> None:
    """Limits that shrank while something was loading on it hold for it, too."""
    for limits, reason in (({"max_size": 5}, "size"), ({"max_instance_size": 5}, "oversized")):
        bench = Bench()
        function = bench.function("f")
        bench.seat(function)
        request = bench.acquire(function)
        bench.resize(**limits)
        assert reasons(bench.fail(request)) == [("f", reason)]
        assert (bench.used, bench.total_size) == (0, 0)
        assert not bench.policy.instances.entries


def test_others_go_for_a_seat_that_is_put_back() -> None:
    """It was used last, so what was used before it makes way."""
    bench = Bench(max_size=30)
    function, other = bench.function("f"), bench.function("g")
    bench.seat(function, 20)
    request = bench.acquire(function)
    bench.idle(other, 20)
    assert reasons(bench.fail(request)) == [("g", "size")]
    assert bench.total_size == 20


@pytest.mark.parametrize("how", ["load", "fail"])
def test_what_loads_on_a_seat_of_a_removed_function_goes(how: str) -> None:
    """As removed, whether or not there is an instance on it by now."""
    bench = Bench()
    function = bench.function("f")
    bench.seat(function)
    request = bench.acquire(function)
    bench.retire(function)
    step = bench.load(request) if how == "load" else bench.fail(request)
    assert reasons(step) == [("f", "removed")]
    assert request.stage is Stage.ENDED
    assert (bench.used, bench.policy.hits) == (0, 0)


def test_what_loads_on_a_seat_of_a_replaced_function_goes_on_with_the_new_one() -> None:
    """There is no seat of that one: what was about to be a hit becomes a miss."""
    bench = Bench()
    old, new = bench.function("f"), bench.function("f", "other")
    bench.seat(old)
    request = bench.acquire(old)
    bench.retire(old, new)
    assert reasons(bench.load(request)) == [("f", "removed")]
    assert request.stage is Stage.LOADING
    bench.load(request)
    assert (request.hit, bench.policy.hits, bench.policy.misses) == (False, 0, 2)


def test_what_loads_on_a_seat_in_a_closed_group_goes() -> None:
    """And its acquire ends as those of the group do."""
    bench = Bench()
    function, group = bench.function("f"), GroupRecord("g")
    bench.seat(function, group=group)
    request = bench.acquire(function, group=group)
    bench.close(group)
    assert reasons(bench.load(request)) == [("f", "group_closed")]
    assert isinstance(request.error, RequestClosed)


def test_warming_where_a_seat_is_makes_another_if_there_may_be_one() -> None:
    """With one instance allowed, it loads on the seat and leaves it as it will; neither counts."""
    bench = Bench()
    wide, narrow = bench.function("wide", concurrency=2), bench.function("narrow")
    for function, loaded in ((wide, True), (narrow, False)):
        seat = bench.seat(function)
        request = bench.acquire(function, warm=True)
        assert (request.stage, request.instance is not seat) == (Stage.LOADING, loaded)
        bench.load(request)
        bench.recycle(request, seat=True)
        assert bench.entry(function).live == 1 + loaded
    assert (bench.policy.hits, bench.policy.misses) == (0, 2)


def test_a_seat_waits_for_room_like_an_instance() -> None:
    """A stack is needed to load on it, and its module is not unloaded to make room for that."""
    bench = Bench(max_code=5)
    function, other = bench.function("f", code=2), bench.function("g", code=1)
    lease = bench.lease(other)
    bench.seat(function)
    bench.policy.resize(bench.policy.config, bench.now)
    another = bench.function("h", module="g")
    held = bench.lease(another, "ben")
    waiting = bench.acquire(function, "cleo")
    assert (waiting.stage, bench.used) == (Stage.ROOM, 5)
    assert bench.recycle(held).woken == [waiting]
    assert waiting.stage is Stage.LOADING
    bench.load(waiting)
    assert waiting.hit
    bench.recycle(lease)
