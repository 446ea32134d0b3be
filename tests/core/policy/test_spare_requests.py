"""The requests that hits use again: few, and they keep nothing of the leases before."""

from __future__ import annotations

import gc
import inspect
import weakref

from core.policy.policy_bench import Bench, short_hit

from trio_wasmcache._core.policy.policy import Policy
from trio_wasmcache._core.policy.records import FunctionRecord, Request, Stage


class Owner:
    """A task."""


def hit(bench: Bench, function: FunctionRecord, owner: object) -> Request:
    """A hit, the short way."""
    request = short_hit(bench.policy, function, bench.main, owner, lambda _: None, bench.now)
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
        assert not bench.policy.waits.held.keys() & {request}  # the books are looked at
        assert (request.stage, request.owner, request.instance) == (Stage.ENDED, None, None)
    assert {hit(bench, one, "anna"), hit(bench, other, "berta")} == {first, second}


def test_the_next_hit_of_what_has_just_rested_finds_its_request_as_it_was() -> None:
    """Nothing is kept of the lease before, and nobody sees that the instance was not idle."""
    bench = Bench()
    function, owner = loaded(bench, "f"), Owner()
    request = hit(bench, function, owner)
    assert bench.policy.rest(request, 10, bench.now)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert (gone(), request.give_up) == (None, None)
    assert bench.policy.glance().idle == 1
    assert hit(bench, function, "berta") is request
    assert bench.policy.glance().idle == 0
    assert bench.policy.rest(request, 10, bench.now)
    ledger = bench.policy.instances.ledger
    assert (ledger.idle, ledger.running, request.stage) == (1, 0, Stage.ENDED)
    assert bench.policy.glance().idle == 1


def test_an_instance_that_was_set_aside_after_it_rested_is_no_hit() -> None:
    """Its next lease binds it anew."""
    bench = Bench()
    function = loaded(bench, "f")
    request = hit(bench, function, "anna")
    assert bench.policy.rest(request, 10, bench.now)
    request.held.set_aside()
    assert short_hit(bench.policy, function, bench.main, "berta", lambda _: None, bench.now) is None


def test_a_lease_does_not_rest_where_another_has_taken_its_place_meanwhile() -> None:
    """Each of the two would fit where it was, but both together do not."""
    bench = Bench(max_size=20)
    older, newer = loaded(bench, "older"), loaded(bench, "newer")
    first = hit(bench, older, "anna")
    loaded(bench, "other")  # where the first was
    second = hit(bench, newer, "berta")
    assert bench.policy.rest(first, 10, bench.now)
    assert not bench.policy.rest(second, 10, bench.now)


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


# They read or change nothing that is put off.
UNCONCERNED = {
    *("glance", "may_rest", "note_compiled", "note_error", "note_long_call"),
    "note_token_block",
}


def test_every_step_begins_with_books_that_are_complete() -> None:
    """A new one that forgot it would find the instance that was left last held by nobody."""
    steps = {
        name
        for name, method in vars(Policy).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    unguarded = {name for name in steps if "_settle" not in getattr(Policy, name).__code__.co_names}
    assert unguarded == UNCONCERNED
