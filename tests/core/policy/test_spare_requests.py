"""The requests that hits use again: few, and they keep nothing of the leases before."""

from __future__ import annotations

import gc
import weakref

from core.policy.policy_bench import Bench

from trio_wasmcache._core.policy.records import FunctionRecord, Request, Stage


class Owner:
    """A task."""


def hit(bench: Bench, function: FunctionRecord, owner: object) -> Request:
    """A hit, the short way."""
    request = bench.policy.hit(function, bench.main, owner, lambda _: None, bench.now)
    assert request is not None
    return request


def loaded(bench: Bench, name: str) -> FunctionRecord:
    """A function with an idle instance, whose lease ended the short way."""
    function = bench.function(name)
    request = bench.lease(function)
    request.held.hold(Native(), ready=True)
    bench.policy.may_rest(request)
    assert bench.policy.rest(request, 10, bench.now)
    return function


class Native:
    """A loaded instance."""

    def close(self) -> None:
        pass


def test_hits_that_follow_each_other_share_one_request() -> None:
    """Whatever the function; hits at the same time have one each."""
    bench = Bench()
    one, other = loaded(bench, "one"), loaded(bench, "other")
    first = hit(bench, one, "anna")
    second = hit(bench, other, "berta")
    assert first is not second
    for request in (first, second):
        assert bench.policy.rest(request, 10, bench.now)
        assert (request.stage, request.owner, request.instance) == (Stage.ENDED, None, None)
    assert {hit(bench, one, "anna"), hit(bench, other, "berta")} == {first, second}


def test_a_request_that_took_the_long_way_is_not_used_again() -> None:
    """Else each miss would leave one more."""
    bench = Bench()
    function = bench.function("f")
    request = bench.lease(function)
    request.held.hold(Native(), ready=True)
    bench.policy.may_rest(request)
    assert bench.policy.rest(request, 10, bench.now)
    assert hit(bench, function, "anna") is not request


def test_spare_requests_keep_neither_tasks_nor_removed_functions() -> None:
    """Both are gone when nothing else has them."""
    bench = Bench()
    function, owner = loaded(bench, "f"), Owner()
    assert bench.policy.rest(hit(bench, function, owner), 10, bench.now)
    bench.policy.retire(function, bench.now)
    gone = weakref.ref(function), weakref.ref(owner)
    del function, owner
    gc.collect()
    assert [one() for one in gone] == [None, None]
