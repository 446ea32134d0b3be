"""The policy, one named situation at a time; the numbers in the headings are DESIGN's semantics."""

from __future__ import annotations

import math

import pytest
from core.policy.policy_bench import UNIT, Bench, reasons

from trio_wasmcache._core.errors import CodeMemoryError, DeadlockError, UnknownFunctionError
from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.policy.instances import MAX_EXPIRED
from trio_wasmcache._core.policy.lifecycle import IllegalStepError, State
from trio_wasmcache._core.policy.policy import Policy
from trio_wasmcache._core.policy.records import (
    GroupRecord,
    Request,
    RequestClosed,
    Stage,
    TokenBook,
)


def test_the_whole_life_of_a_lease() -> None:
    """An instance is loaded, runs, rests, is hit, rests again and expires, and all sums follow."""
    bench = Bench(idle_timeout=5)
    policy, function = bench.policy, bench.function("f", code=3)

    request, step = bench.ask(function)
    assert (request.stage, bool(step)) == (Stage.LOADING, False)
    assert request.instance is not None
    assert request.instance.loads_module
    assert (bench.used, bench.total_size, policy.misses) == (4, 0, 0)

    assert not bench.load(request)
    assert (request.stage, request.hit, policy.misses) == (Stage.GRANTED, False, 1)
    instance = request.instance

    assert not bench.recycle(request, 20)
    assert (request.stage, request.instance) == (Stage.ENDED, None)
    assert (instance.state, instance.uses, instance.size) == (State.IDLE, 1, 20)
    assert (bench.used, bench.total_size) == (3, 20)

    again = bench.acquire(function)
    assert (again.stage, again.hit, again.instance) == (Stage.GRANTED, True, instance)
    assert (bench.used, bench.total_size) == (4, 0)
    assert not bench.recycle(again, 30)
    assert (policy.hits, policy.misses, policy.blocks, instance.uses) == (1, 1, 0, 2)

    step = policy.expire(bench.now + 5)
    ((evicted, event),) = step.evicted
    assert (evicted, step.unloaded, step.woken) == (instance, [function.module], [])
    assert event.fields() == {
        "function": "f",
        "arg_types": "i64",
        "group": "main",
        "generation": 1,
        "instance": 1,
        "reason": "idle",
        "seat": False,
        "module_digest": "f",
        "freed_bytes": 30,
        "freed_code_bytes": 3 * UNIT,
        "idle_seconds": 5.0,
        "age_seconds": 7.0,
        "uses": 2,
        "total_size_before_bytes": 30,
        "total_size_after_bytes": 0,
        "code_size_before_bytes": 3 * UNIT,
        "code_size_after_bytes": 0,
        "limit_bytes": None,
        "for_function": None,
        "for_arg_types": None,
        "for_group": None,
        "for_request": None,
        "error": None,
        "advice": None,
        "replaced_by": None,
        "evictions": None,
    }
    assert (bench.used, bench.total_size, instance.state) == (0, 0, State.CLOSED)
    assert not policy.instances.entries
    assert not function.entries
    assert not bench.main.entries
    assert policy.instances.evictions[Reason.IDLE] == 1


# -- 3: deadlocks


def test_an_instance_that_is_replaced_in_its_lease() -> None:
    """The new one has its place in all books, in one step; the old one is an eviction."""
    bench = Bench(max_code=4)
    policy, function = bench.policy, bench.function("f", code=3)
    request, _ = bench.ask(function)
    bench.load(request)
    old = request.held
    books = bench.used, bench.total_size, policy.instances.ledger.running
    step = policy.replace(request, 20, bench.now, "TrapError", 7)
    new = request.held
    ((evicted, event),) = step.evicted
    assert (evicted, step.unloaded, step.woken) == (old, [], [])
    assert (event.reason, event.error, event.freed_bytes) == (Reason.CORRUPTED, "TrapError", 20)
    assert (event.instance, event.replaced_by, event.evictions) == (1, 2, 7)
    assert (old.state, new.state, new.number) == (State.CLOSED, State.RUNNING, 2)
    assert (old.uses, new.uses, old.entry) == (1, 0, new.entry)
    assert (bench.used, bench.total_size, policy.instances.ledger.running) == books
    assert policy.instances.evictions[Reason.CORRUPTED] == 7
    assert not bench.recycle(request, 30)
    assert (new.state, new.uses) == (State.IDLE, 1)
    with pytest.raises(IllegalStepError):
        policy.replace(request, 20, bench.now, "TrapError")


def test_two_tasks_that_want_each_others_function_deadlock() -> None:
    """The one that closes the cycle gets the error, with the chain; the other is served after."""
    bench = Bench()
    first, second = bench.function("f"), bench.function("g")
    anna, ben = bench.lease(first, "anna"), bench.lease(second, "ben")
    waiting = bench.acquire(second, "anna")
    assert waiting.stage is Stage.QUEUED

    with pytest.raises(DeadlockError, match=r"g\(i64\).*release one before") as caught:
        bench.acquire(first, "ben")
    assert caught.value.chain == (
        "ben waits for an instance of f(i64) in group 'main'",
        "anna waits for an instance of g(i64) in group 'main'",
    )
    assert bench.policy.blocks == 1
    assert bench.policy.waits.waiting == {"anna": bench.entry(second)}

    assert bench.recycle(ben).woken == [waiting]
    assert (waiting.stage, waiting.hit) == (Stage.GRANTED, True)
    bench.recycle(waiting)
    bench.recycle(anna)


def test_a_task_that_wants_its_own_function_again_deadlocks() -> None:
    """With one instance, nesting a lease of the same function can't work, and says so at once."""
    bench = Bench()
    function = bench.function("f")
    lease = bench.lease(function)
    with pytest.raises(DeadlockError):
        bench.acquire(function)
    bench.recycle(lease)
    assert bench.acquire(function).hit


def test_with_concurrency_a_task_may_nest_its_own_function() -> None:
    """Two instances serve two nested leases; a third would wait for itself."""
    bench = Bench()
    function = bench.function("f", concurrency=2)
    bench.lease(function)
    bench.lease(function)
    with pytest.raises(DeadlockError):
        bench.acquire(function)


def test_one_free_holder_is_enough_to_wait_for() -> None:
    """With two instances a cycle through one of them is no deadlock: the other may be released."""
    bench = Bench()
    wide, narrow = bench.function("wide", concurrency=2), bench.function("narrow")
    bench.lease(wide, "anna")
    free = bench.lease(wide, "ben")
    bench.lease(narrow, "cleo")
    bench.acquire(narrow, "anna")
    waiting = bench.acquire(wide, "cleo")
    assert waiting.stage is Stage.QUEUED
    assert bench.recycle(free).woken == [waiting]


def test_room_that_only_the_waiter_itself_holds_is_a_deadlock() -> None:
    """A nested lease that needs the outer one's room gets the error and evicts nothing."""
    bench = Bench(max_code=5)
    outer, inner = bench.function("outer", code=2), bench.function("inner", code=2)
    small = bench.function("small", code=1)
    idle = bench.idle(small)
    lease = bench.lease(outer)
    with pytest.raises(DeadlockError, match="room for code, stack, memory and addresses"):
        bench.acquire(inner)
    assert idle.state is State.IDLE
    assert not bench.policy.room
    assert inner.entries == {}
    bench.recycle(lease)
    assert bench.acquire(inner).stage is Stage.LOADING


def test_a_holder_overtakes_those_who_wait_for_what_it_holds() -> None:
    """Waiting in line behind them would be a deadlock; what it asks for fits, so it is let by."""
    bench = Bench(max_code=5)
    big, small = bench.function("big", code=4), bench.function("small", code=1)
    held = bench.lease(bench.function("a", code=1), "anna")
    first = bench.acquire(big, "innocent")
    assert first.stage is Stage.ROOM
    nested = bench.acquire(small, "anna")
    assert nested.stage is Stage.LOADING
    bench.policy.loaded(nested, bench.now)
    bench.recycle(nested)
    assert bench.recycle(held).woken == [first]


def test_a_deadlock_that_a_release_leaves_is_broken_at_the_holder() -> None:
    """When the last free holder is gone, who holds and waits has to give way, not the first."""
    bench = Bench(max_code=4)
    big, large = bench.function("big", code=2), bench.function("large", code=2)
    held, free = bench.lease(bench.function("a"), "anna"), bench.lease(bench.function("x"), "xeno")
    first = bench.acquire(big, "innocent")
    nested = bench.acquire(large, "anna")
    assert [*bench.policy.room] == [first, nested]

    step = bench.recycle(free)
    assert step.woken == [nested]
    assert (nested.stage, first.stage) == (Stage.ENDED, Stage.ROOM)
    assert isinstance(nested.error, DeadlockError)
    assert nested.error.chain == ("anna waits for room for code, stack, memory and addresses",)
    assert step.evicted == []

    assert bench.recycle(held).woken == [first]
    assert first.stage is Stage.LOADING


def test_a_release_may_leave_a_deadlock_between_a_line_and_room() -> None:
    """Who holds room may wait for an instance that is claimed by one who waits for room."""
    bench = Bench(max_code=5)
    wanted = bench.function("wanted", code=3)
    held, free = bench.lease(bench.function("a"), "anna"), bench.lease(bench.function("x"), "xeno")
    claimer = bench.acquire(wanted, "ben")
    queued = bench.acquire(wanted, "anna")
    assert (claimer.stage, queued.stage) == (Stage.ROOM, Stage.QUEUED)

    assert bench.recycle(free).woken == [queued]
    assert isinstance(queued.error, DeadlockError)
    assert len(queued.error.chain) == 2
    assert bench.recycle(held).woken == [claimer]


def test_whoever_is_left_with_an_instance_may_wait_for_it() -> None:
    """The block has ended, and the call in it waits for what only its end could give back."""
    bench = Bench()
    function, other = bench.function("f"), bench.function("g")
    lease = bench.lease(function, "anna")
    waiting = bench.acquire(function, "caller")
    behind = bench.acquire(function, "ben")
    step = bench.policy.hand_over(lease, "caller", bench.now)
    assert step is not None
    assert step.woken == [waiting]
    assert isinstance(waiting.error, DeadlockError)
    assert waiting.error.chain == ("caller waits for an instance of f(i64) in group 'main'",)
    assert bench.recycle(lease).woken == [behind]
    held = bench.lease(other, "anna")
    assert bench.policy.hand_over(held, "caller", bench.now) is None


def test_whoever_is_left_with_an_instance_may_wait_for_a_token() -> None:
    """Such a wait is not the policy's to end: who has the token, and needs it, gives way."""
    bench = Bench()
    small = GroupRecord("small", tokens=TokenBook({"ben": 1}))
    function = bench.function("f")
    lease = bench.lease(function, "anna")
    first, needs = bench.acquire(function, "innocent"), bench.acquire(function, "ben")
    bench.policy.waits.begin("caller", small)
    step = bench.policy.hand_over(lease, "caller", bench.now)
    assert step is not None
    assert step.woken == [needs]
    assert isinstance(needs.error, DeadlockError)
    assert len(needs.error.chain) == 2
    assert first.stage is Stage.QUEUED


def test_waits_for_tokens_of_two_groups_can_deadlock() -> None:
    """A token is held by a task; two tasks may wait crosswise, or for an instance and a token."""
    bench = Bench()
    waits = bench.policy.waits
    red, blue = GroupRecord("red"), GroupRecord("blue")
    red.tokens.owners["anna"] = blue.tokens.owners["ben"] = 1
    waits.begin("anna", blue)
    with pytest.raises(DeadlockError) as caught:
        waits.begin("ben", red)
    assert caught.value.chain == (
        "ben waits for a token of group 'red'",
        "anna waits for a token of group 'blue'",
    )
    assert waits.waiting == {"anna": blue}
    waits.end("anna")
    waits.begin("ben", red)

    function = bench.function("f")
    bench.lease(function, "ben", red)
    with pytest.raises(DeadlockError, match=r"an instance of f.*a token of group 'red'"):
        bench.acquire(function, "anna", red)


def test_a_token_that_nobody_holds_is_about_to_be_granted() -> None:
    """Who waits for a token that was just given back is as good as free."""
    bench = Bench()
    function, red = bench.function("f"), GroupRecord("red")
    bench.lease(function, "ben")
    bench.policy.waits.waiting["ben"] = red
    assert bench.acquire(function, "anna").stage is Stage.QUEUED


# -- 4, 7: the instance asked for


def test_making_room_never_evicts_the_one_asked_for() -> None:
    """A hit that needs room for its stack evicts others, even if it was used before them."""
    bench = Bench(max_code=4)
    old, new = bench.function("old"), bench.function("new")
    wanted = bench.idle(old)
    bench.idle(new)
    bench.lease(bench.function("running"), "ben")
    request, step = bench.ask(old)
    assert reasons(step) == [("new", "stack")]
    assert (request.instance, request.hit) == (wanted, True)


def test_a_hit_needs_no_place_among_the_instances() -> None:
    """At `max_instances` an idle instance is used again without evicting another."""
    bench = Bench(max_instances=2)
    function = bench.function("f")
    bench.idle(function)
    bench.idle(bench.function("g"))
    request, step = bench.ask(function)
    assert (request.hit, step.evicted) == (True, [])


def test_the_most_recently_used_idle_instance_goes_first() -> None:
    """Of several idle ones, the last that came back is the first that is granted."""
    bench = Bench()
    function = bench.function("f", concurrency=3)
    leases = [bench.lease(function, owner) for owner in ("anna", "ben", "cleo")]
    instances = [lease.instance for lease in leases]
    for lease in (leases[1], leases[2], leases[0]):
        bench.recycle(lease)
    again = [bench.lease(function, owner).instance for owner in ("anna", "ben", "cleo")]
    assert again == [instances[0], instances[2], instances[1]]


def test_an_entry_loads_as_many_as_its_concurrency_and_no_more() -> None:
    """The third task waits for one of two instances, and gets the one that is released."""
    bench = Bench()
    function = bench.function("f", concurrency=2)
    first, second = bench.acquire(function, "anna"), bench.acquire(function, "ben")
    third, fourth = bench.acquire(function, "cleo"), bench.acquire(function, "dora")
    assert [it.stage for it in (first, second, third)] == [
        *(Stage.LOADING, Stage.LOADING, Stage.QUEUED)
    ]
    bench.load(second)
    assert bench.recycle(second).woken == [third]
    bench.load(first)
    assert bench.recycle(first).woken == [fourth]
    assert (bench.policy.hits, bench.policy.misses, bench.policy.blocks) == (2, 2, 2)


def test_nobody_overtakes_those_who_wait_for_room() -> None:
    """A hit needs room for its stack, and takes its place behind the others."""
    bench = Bench(max_code=5)
    idle, big = bench.function("idle"), bench.function("big", code=4)
    running = bench.lease(bench.function("running"), "anna")
    bench.idle(idle)
    first = bench.acquire(big, "ben")
    second = bench.acquire(idle, "cleo")
    assert [*bench.policy.room] == [first, second]
    step = bench.recycle(running)
    assert reasons(step) == [("idle", "code"), ("running", "code")]
    assert step.woken == [first]


# -- 5: whatever fails on the way gives back all that was taken


def test_a_failed_load_gives_back_its_room() -> None:
    """Neither the stack nor the code stays reserved, and nothing counts as an eviction."""
    bench = Bench(max_code=2)
    function = bench.function("f")
    for _ in range(3):
        request = bench.acquire(function)
        step = bench.fail(request)
        assert (request.stage, step.evicted, step.unloaded) == (Stage.ENDED, [], [function.module])
    assert bench.used == 0
    assert not bench.policy.instances.entries
    assert not bench.policy.waits.held
    assert bench.acquire(bench.function("g")).stage is Stage.LOADING


def test_a_failed_load_hands_its_slot_to_the_first_waiter() -> None:
    """Nobody waits for an instance that will never come: the next in line loads for itself."""
    bench = Bench()
    function = bench.function("f")
    first = bench.acquire(function, "anna")
    waiters = [bench.acquire(function, owner) for owner in ("ben", "cleo")]
    step = bench.fail(first)
    assert step.woken == waiters[:1]
    assert [it.stage for it in waiters] == [Stage.LOADING, Stage.QUEUED]
    assert bench.fail(waiters[0]).woken == waiters[1:]


def test_a_failed_load_serves_those_who_wait_for_room() -> None:
    """The room that a failed load gives back goes to the first who waits for it."""
    bench = Bench(max_code=3)
    first = bench.acquire(bench.function("f", code=2), "anna")
    second = bench.acquire(bench.function("g", code=2), "ben")
    assert second.stage is Stage.ROOM
    assert bench.fail(first).woken == [second]


def test_a_waiter_that_gives_up_leaves_no_trace() -> None:
    """Cancelled in line for an instance, it is passed over; the block stays counted."""
    bench = Bench()
    function = bench.function("f")
    lease = bench.lease(function, "anna")
    gone, second = bench.acquire(function, "ben"), bench.acquire(function, "cleo")
    assert bench.cancel(gone).woken == []
    assert gone.stage is Stage.ENDED
    assert bench.recycle(lease).woken == [second]
    assert bench.policy.blocks == 2


def test_who_gives_up_waiting_for_room_lets_those_behind_go() -> None:
    """A small request is served when the large one before it is cancelled; so is its entry's."""
    bench = Bench(max_code=5)
    bench.lease(bench.function("running"), "anna")
    large, small = bench.function("large", code=4), bench.function("small")
    first, second = bench.acquire(large, "ben"), bench.acquire(small, "cleo")
    third = bench.acquire(large, "dora")
    assert [it.stage for it in (first, second, third)] == [Stage.ROOM, Stage.ROOM, Stage.QUEUED]
    assert bench.cancel(first).woken == [second]
    assert (second.stage, third.stage) == (Stage.LOADING, Stage.ROOM)


# -- warm


def test_warm_leaves_an_idle_instance_and_counts_nothing() -> None:
    """A warmed instance is neither a hit nor a miss nor a use; the next acquire hits it."""
    bench = Bench()
    function = bench.function("f")
    request = bench.acquire(function, warm=True)
    bench.load(request)
    instance = request.instance
    assert instance is not None
    bench.recycle(request, 20)
    assert (instance.state, instance.uses, bench.total_size) == (State.IDLE, 0, 20)
    assert (bench.policy.hits, bench.policy.misses) == (0, 0)
    assert bench.acquire(function).instance is instance


def test_warm_loads_another_even_if_one_is_idle() -> None:
    """With one idle and room in the entry, warming makes a second."""
    bench = Bench()
    function = bench.function("f", concurrency=2)
    bench.idle(function)
    request = bench.acquire(function, warm=True)
    assert request.stage is Stage.LOADING
    bench.load(request)
    bench.recycle(request)
    assert len(bench.entry(function).idle) == 2


def test_warm_never_exceeds_the_concurrency() -> None:
    """Where all instances live already, an idle one stands for the one that was to be made."""
    bench = Bench()
    function = bench.function("f")
    instance = bench.idle(function)
    request = bench.acquire(function, warm=True)
    assert (request.stage, request.instance) == (Stage.GRANTED, instance)
    bench.recycle(request, 10)
    assert (bench.entry(function).live, instance.state, instance.uses) == (1, State.IDLE, 1)
    assert (bench.policy.hits, bench.policy.misses) == (0, 1)


def test_an_entry_stays_in_the_books_when_warming_evicts_what_is_idle_in_it() -> None:
    """The only idle instance may be of the very entry that is warmed; a close still finds it."""
    bench = Bench(max_instances=1)
    function = bench.function("f", concurrency=2)
    bench.idle(function)
    request, step = bench.ask(function, warm=True)
    assert reasons(step) == [("f", "count")]
    bench.load(request)
    bench.recycle(request)
    assert reasons(bench.retire(function)) == [("f", "removed")]
    assert bench.used == 0


def test_a_warm_instance_that_has_no_place_is_dropped() -> None:
    """What was loaded to be warm goes like any other if its function went meanwhile."""
    bench = Bench()
    function = bench.function("f")
    request = bench.acquire(function, warm=True)
    bench.load(request)
    bench.retire(function)
    assert reasons(bench.recycle(request)) == [("f", "removed")]


# -- 8, 9, 10: recycling


def test_a_corrupted_instance_is_dropped_and_the_next_loads_anew() -> None:
    """The slot of what trapped goes to the waiter, which gets a new instance."""
    bench = Bench()
    function = bench.function("f")
    lease, waiter = bench.lease(function, "anna"), bench.acquire(function, "ben")
    step = bench.recycle(lease, 10, Reason.CORRUPTED)
    assert reasons(step) == [("f", "corrupted")]
    assert (step.woken, waiter.stage) == ([waiter], Stage.LOADING)


def test_an_oversized_instance_is_dropped_with_advice_the_first_time() -> None:
    """The warning names the limit once for each function; the log line is there every time."""
    bench = Bench(max_instance_size=50)
    function = bench.function("f")
    events = []
    for size in (50, 51, 60):
        events += [event for _, event in bench.recycle(bench.lease(function), size).evicted]
    assert [(it.reason, it.freed_bytes, it.limit_bytes) for it in events] == [
        (Reason.OVERSIZED, 51, 50),
        (Reason.OVERSIZED, 60, 50),
    ]
    assert [it.level for it in events] == ["warning", "info"]
    assert events[0].advice is not None
    assert "max_instance_size = 50" in events[0].advice


def test_the_least_recently_used_go_until_a_recycled_instance_fits() -> None:
    """As many as needed, oldest first, and no more."""
    bench = Bench(max_size=100)
    for name in "abc":
        bench.idle(bench.function(name), 30)
    lease = bench.lease(bench.function("d"))
    assert reasons(bench.recycle(lease, 40)) == [("a", "size")]
    assert bench.total_size == 100


def test_an_instance_larger_than_the_whole_cache_goes_alone() -> None:
    """What can never fit evicts nobody, and the empty order of last use is not looked at."""
    bench = Bench(max_size=100, max_instance_size=500)
    bench.idle(bench.function("a"), 100)
    lease = bench.lease(bench.function("b"))
    step = bench.recycle(lease, 101)
    assert [(event.reason, event.limit_bytes) for _, event in step.evicted] == [(Reason.SIZE, 100)]
    assert bench.total_size == 100

    empty = Bench(max_size=0)
    assert reasons(empty.recycle(empty.lease(empty.function("a")), 1)) == [("a", "size")]
    assert reasons(empty.recycle(empty.lease(empty.function("b")), 0)) == []


def test_a_running_instance_does_not_count_and_does_not_go() -> None:
    """While it runs, its size is nobody's and it can't be evicted to make another fit."""
    bench = Bench(max_size=50)
    bench.idle(bench.function("a"), 50)
    lease = bench.lease(bench.function("a", "a"))
    held = bench.lease(bench.function("b"))
    assert bench.total_size == 50
    assert reasons(bench.recycle(held, 50)) == [("a", "size")]
    assert lease.stage is Stage.GRANTED


# -- 11, 12: room for code and stack


def test_functions_of_one_module_share_its_code() -> None:
    """The code is counted once, and unloaded when the last instance of any of them goes."""
    bench = Bench()
    first, second = bench.function("f", "m", 3), bench.function("g", "m")
    lease = bench.lease(first, "anna")
    other = bench.acquire(second, "ben")
    assert other.instance is not None
    assert not other.instance.loads_module
    assert bench.used == 5
    bench.load(other)
    assert bench.recycle(lease, drop=Reason.CORRUPTED).unloaded == []
    assert bench.recycle(other, drop=Reason.CORRUPTED).unloaded == [first.module]


def test_whole_modules_go_least_recently_used_first() -> None:
    """All idle instances of the oldest module go, before any of a younger one."""
    bench = Bench(max_code=6)
    a, b = bench.function("a", "m", 2), bench.function("b", "m")
    bench.idle(a)
    bench.idle(b)
    bench.idle(bench.function("c", code=2))
    request, step = bench.ask(bench.function("d", code=2))
    assert reasons(step) == [("a", "code"), ("b", "code")]
    assert [it.digest for it in step.unloaded] == ["m"]
    assert [event.freed_code_bytes for _, event in step.evicted] == [0, 2 * UNIT]
    assert request.stage is Stage.LOADING


def test_a_module_was_last_used_when_its_last_running_instance_stopped() -> None:
    """An old idle instance does not make its module old, if another of it ran since."""
    bench = Bench(max_code=6)
    bench.idle(bench.function("a", "m", 2))
    bench.idle(bench.function("c", code=2))
    bench.idle(bench.function("b", "m"))
    _, step = bench.ask(bench.function("d", code=2))
    assert reasons(step) == [("c", "code")]


def test_no_instance_goes_whose_going_frees_no_code() -> None:
    """The idle instances of a module that a running one pins stay; another module goes."""
    bench = Bench(max_code=6)
    bench.idle(bench.function("pinned", "m", 2))
    bench.lease(bench.function("running", "m"), "anna")
    bench.idle(bench.function("victim", code=2))
    request, step = bench.ask(bench.function("new", code=2), "ben")
    assert reasons(step) == [("victim", "code")]
    assert request.stage is Stage.LOADING


def test_if_room_cannot_be_made_nothing_is_evicted() -> None:
    """The cache is not emptied for a request that has to wait all the same."""
    bench = Bench(max_code=8)
    idle = [bench.idle(bench.function(name)) for name in "ab"]
    lease = bench.lease(bench.function("running", code=4), "anna")
    request, step = bench.ask(bench.function("new", code=5), "ben")
    assert (request.stage, step.evicted) == (Stage.ROOM, [])
    assert all(it.state is State.IDLE for it in idle)
    assert reasons(bench.recycle(lease)) == [(name, "code") for name in ("a", "b", "running")]
    assert request.stage is Stage.LOADING


def test_the_code_of_the_module_asked_for_is_no_room_to_be_made() -> None:
    """A hit needs its own module: what that weighs does not count as code that could go."""
    bench = Bench(max_code=4)
    wanted = bench.function("wanted", code=2)
    bench.idle(wanted)
    bench.lease(bench.function("running"), "anna")
    request, step = bench.ask(wanted, "ben")
    assert (request.stage, step.evicted) == (Stage.ROOM, [])
    assert bench.entry(wanted).idle != []


def test_a_stack_alone_evicts_with_its_own_reason() -> None:
    """Where the code is loaded and only the stack is missing, the reason is `stack`."""
    bench = Bench(max_code=4)
    function = bench.function("f", concurrency=2)
    bench.lease(function, "anna")
    bench.idle(bench.function("g"))
    _, step = bench.ask(bench.function("h", "f"), "ben")
    assert step.evicted == []
    _, step = bench.ask(function, "cleo")
    assert reasons(step) == [("g", "stack")]


def test_room_is_given_in_the_order_of_asking() -> None:
    """A small request waits behind a large one, and both go when room is enough for both."""
    bench = Bench(max_code=8)
    lease = bench.lease(bench.function("running", code=5), "anna")
    large = bench.acquire(bench.function("large", code=4), "ben")
    small = bench.acquire(bench.function("small"), "cleo")
    assert bench.recycle(lease).woken == [large, small]


def test_what_would_not_fit_an_empty_budget_is_refused_at_once() -> None:
    """The message names the function, what it needs and the limit; exactly fitting is fine."""
    bench = Bench(max_code=4)
    with pytest.raises(CodeMemoryError) as caught:
        bench.acquire(bench.function("f", code=4))
    assert str(caught.value) == (
        f"f(i64) needs {5 * UNIT} bytes ({4 * UNIT} of code, {UNIT} of stack), but max_code_size "
        f"is {4 * UNIT}: raise it, or split the module"
    )
    assert not bench.policy.instances.entries
    assert bench.acquire(bench.function("g", code=3)).stage is Stage.LOADING


def test_at_max_instances_the_least_recently_used_goes() -> None:
    """Idle and running count; with nothing idle, the request waits for a lease to end."""
    bench = Bench(max_instances=2)
    bench.idle(bench.function("a"))
    bench.lease(bench.function("b"), "anna")
    request, step = bench.ask(bench.function("c"), "ben")
    assert reasons(step) == [("a", "count")]
    bench.load(request)
    waiter, step = bench.ask(bench.function("d"), "cleo")
    assert (waiter.stage, step.evicted) == (Stage.ROOM, [])
    step = bench.recycle(request)
    assert (reasons(step), step.woken) == ([("c", "count")], [waiter])


def test_code_that_goes_may_take_instances_enough_with_it() -> None:
    """No further instance is evicted for the count, if making room for code made a place too."""
    bench = Bench(max_code=6, max_instances=3)
    bench.idle(bench.function("kept", "m", 1))
    bench.lease(bench.function("running", "m"), "anna")
    bench.idle(bench.function("victim", code=3))
    _, step = bench.ask(bench.function("new", code=3), "ben")
    assert reasons(step) == [("victim", "code")]


def test_the_last_idle_instance_of_a_module_may_go_for_the_count_of_the_same_module() -> None:
    """Its code is then unloaded and loaded again within the step, and the sums say so."""
    bench = Bench(max_code=3, max_instances=1)
    bench.idle(bench.function("f", "m", 2))
    request, step = bench.ask(bench.function("g", "m"))
    assert reasons(step) == [("f", "count")]
    assert (request.stage, bench.used) == (Stage.LOADING, 3)
    assert request.instance is not None
    assert request.instance.loads_module


# -- 14: time


def test_an_idle_instance_goes_when_its_time_is_up_and_not_later() -> None:
    """`next_expiry` is exact, nothing goes before it, and what is due goes then."""
    bench = Bench(idle_timeout=5)
    assert bench.policy.next_expiry() is None
    bench.idle(bench.function("a"))
    bench.idle(bench.function("b"))
    assert bench.policy.next_expiry() == 1 + 5
    assert not bench.policy.expire(math.nextafter(6, 0))
    assert reasons(bench.policy.expire(6)) == [("a", "idle")]
    assert bench.policy.next_expiry() == 2 + 5
    assert reasons(bench.policy.expire(100)) == [("b", "idle")]
    assert bench.policy.next_expiry() is None


def test_what_is_due_at_the_same_time_goes_in_several_steps() -> None:
    """In order, and `next_expiry` says that there is more."""
    bench = Bench(idle_timeout=5)
    names = [str(number) for number in range(2 * MAX_EXPIRED + 1)]
    for name in names:
        bench.idle(bench.function(name))
    now = bench.now + 5
    gone: list[tuple[str, str]] = []
    for count in (MAX_EXPIRED, MAX_EXPIRED, 1):
        assert (due := bench.policy.next_expiry()) is not None
        assert due <= now
        step = reasons(bench.policy.expire(now))
        assert len(step) == count
        gone += step
    assert gone == [(name, "idle") for name in names]
    assert bench.policy.next_expiry() is None


def test_a_running_instance_has_no_expiry() -> None:
    """Only what is idle can time out; a lease may last as long as it likes."""
    bench = Bench(idle_timeout=5)
    function = bench.function("f")
    bench.idle(function)
    lease = bench.lease(function)
    assert bench.policy.next_expiry() is None
    assert not bench.policy.expire(1000)
    bench.now = 1000
    bench.recycle(lease)
    assert bench.policy.next_expiry() == 1001 + 5


def test_an_infinite_timeout_keeps_everything() -> None:
    """The time at which the next one is due never comes."""
    bench = Bench(idle_timeout=math.inf)
    bench.idle(bench.function("f"))
    assert bench.policy.next_expiry() == math.inf
    assert not bench.policy.expire(1e12)


# -- 15: remove and replace


def test_a_function_removed_while_it_runs_never_comes_back() -> None:
    """What is idle goes at once; its holder finishes, and its instance is dropped then."""
    bench = Bench()
    function = bench.function("f", concurrency=2)
    first, second = bench.lease(function, "anna"), bench.lease(function, "ben")
    bench.recycle(first)
    assert reasons(bench.retire(function)) == [("f", "removed")]
    assert bench.used == 2
    assert reasons(bench.recycle(second)) == [("f", "removed")]
    assert (bench.total_size, bench.used, function.entries) == (0, 0, {})


def test_who_waits_for_a_function_that_is_removed_is_told() -> None:
    """In line for an instance or for room, it gets `UnknownFunctionError` in the same step."""
    bench = Bench(max_code=4)
    function, big = bench.function("f"), bench.function("big", code=3)
    lease, waiter = bench.lease(function, "anna"), bench.acquire(function, "ben")
    for_room, behind = bench.acquire(big, "cleo"), bench.acquire(big, "dora")
    assert bench.retire(function).woken == [waiter]
    assert bench.retire(big).woken == [for_room, behind]
    assert all(
        isinstance(it.error, UnknownFunctionError) and "removed while" in str(it.error)
        for it in (waiter, for_room, behind)
    )
    assert not bench.policy.waits.waiting
    assert not bench.policy.room
    bench.recycle(lease)


def test_a_function_removed_while_it_loads_is_not_granted() -> None:
    """What was loaded in vain is dropped, its lease ends with the error, the stack is free."""
    bench = Bench()
    function = bench.function("f")
    request = bench.acquire(function)
    assert not bench.retire(function)
    step = bench.load(request)
    assert reasons(step) == [("f", "removed")]
    assert step.woken == [], "it did not sleep"
    assert (request.stage, bench.used) == (Stage.ENDED, 0)
    assert isinstance(request.error, UnknownFunctionError)
    assert bench.policy.misses == 0
    assert not bench.policy.instances.entries


def test_a_removal_lets_those_behind_in_line_for_room_go() -> None:
    """Once the large request is gone with its function, the small one behind it is served."""
    bench = Bench(max_code=4)
    large = bench.function("large", code=3)
    bench.lease(bench.function("running"), "anna")
    first, second = bench.acquire(large, "ben"), bench.acquire(bench.function("small"), "cleo")
    assert bench.retire(large).woken == [first, second]
    assert (first.stage, second.stage) == (Stage.ENDED, Stage.LOADING)


def test_who_runs_when_a_function_is_replaced_finishes_on_the_old_generation() -> None:
    """A new lease loads the new generation at once; the old instance is never cached again."""
    bench = Bench()
    old, new = bench.function("f"), bench.function("f", "new")
    bench.idle(old)
    lease = bench.lease(old, "anna")
    assert not bench.retire(old, new)
    fresh = bench.lease(new, "ben")
    assert lease.instance is not None
    assert lease.instance.entry.function is old
    assert [event.generation for _, event in bench.recycle(lease).evicted] == [1]
    bench.recycle(fresh)
    assert bench.acquire(new, "cleo").hit


def test_replaced_while_loading_all_go_on_in_order() -> None:
    """The loader first, then its waiters, each on the new generation; the old code is dropped."""
    bench = Bench()
    old, new = bench.function("f"), bench.function("f", "new")
    loader = bench.acquire(old, "anna")
    waiters = [bench.acquire(old, owner) for owner in ("ben", "cleo")]
    assert not bench.retire(old, new)
    late = bench.acquire(new, "dora")

    step = bench.load(loader)
    assert reasons(step) == [("f", "removed")]
    assert (loader.stage, step.woken) == (Stage.LOADING, [])
    assert loader.instance is not None
    assert loader.instance.entry.function is new
    for current, following in zip((loader, *waiters), (*waiters, late), strict=True):
        if current.stage is Stage.LOADING:
            bench.load(current)
        assert bench.recycle(current).woken == [following]
    assert (bench.policy.hits, bench.policy.misses, bench.policy.blocks) == (3, 1, 3)


def test_replaced_twice_while_loading_the_last_generation_is_loaded() -> None:
    """The loader follows the chain of successors, and nothing of those between is left."""
    bench = Bench()
    first, second, third = (bench.function("f", module) for module in ("m1", "m2", "m3"))
    loader, waiter = bench.acquire(first, "anna"), bench.acquire(first, "ben")
    bench.retire(first, second)
    bench.retire(second, third)
    bench.load(loader)
    assert loader.instance is not None
    assert loader.instance.entry.function is third
    bench.load(loader)
    bench.recycle(loader)
    assert (waiter.stage, waiter.entry, waiter.hit) == (Stage.GRANTED, bench.entry(third), True)
    assert first.entries == second.entries == {}


def test_replaced_with_a_smaller_concurrency_the_order_is_kept() -> None:
    """Three load, one may go on: whoever came first, whichever load ends first."""
    bench = Bench()
    old, new = bench.function("f", concurrency=3), bench.function("f", "new")
    loaders = [bench.acquire(old, owner) for owner in ("anna", "ben", "cleo")]
    waiter = bench.acquire(old, "dora")
    bench.retire(old, new)
    bench.load(loaders[1])
    bench.load(loaders[2])
    assert [*bench.entry(new).waiting] == [*loaders[1:], waiter]
    bench.load(loaders[0])
    assert loaders[0].stage is Stage.LOADING
    bench.load(loaders[0])
    assert bench.recycle(loaders[0]).woken == [loaders[1]]
    assert bench.recycle(loaders[1]).woken == [loaders[2]]
    assert bench.recycle(loaders[2]).woken == [waiter]


def test_replaced_with_a_larger_concurrency_more_go_on() -> None:
    """Those in line load side by side where the new generation allows it."""
    bench = Bench()
    old, new = bench.function("f"), bench.function("f", "new", concurrency=2)
    bench.lease(old, "anna")
    waiters = [bench.acquire(old, owner) for owner in ("ben", "cleo", "dora")]
    assert bench.retire(old, new).woken == waiters[:2]
    assert [it.stage for it in waiters] == [Stage.LOADING, Stage.LOADING, Stage.QUEUED]


def test_who_waits_for_room_keeps_its_place_when_its_function_is_replaced() -> None:
    """Others that asked for room later do not overtake it."""
    bench = Bench(max_code=4)
    old, new = bench.function("f", code=3), bench.function("f", "new", 3)
    lease = bench.lease(bench.function("running"), "anna")
    first, second = bench.acquire(old, "ben"), bench.acquire(bench.function("g", code=3), "cleo")
    bench.retire(old, new)
    assert [*bench.policy.room] == [first, second]
    assert bench.recycle(lease).woken == [first]
    assert first.instance is not None
    assert first.instance.entry.function is new


def test_who_waits_for_room_may_lose_its_claim_to_a_smaller_concurrency() -> None:
    """Two waited for room, one may: the other goes back in line for an instance, in order."""
    bench = Bench(max_code=5)
    old, new = bench.function("f", code=3, concurrency=2), bench.function("f", "new", 3)
    lease = bench.lease(bench.function("running"), "anna")
    first, second = bench.acquire(old, "ben"), bench.acquire(old, "cleo")
    third = bench.acquire(old, "dora")
    assert [*bench.policy.room] == [first, second]
    bench.retire(old, new)
    assert [*bench.policy.room] == [first]
    assert [*bench.entry(new).waiting] == [second, third]
    assert bench.recycle(lease).woken == [first]


def test_a_replacement_that_never_fits_ends_those_who_wait() -> None:
    """In line, for room, or loading the old one: each gets `CodeMemoryError`."""
    bench = Bench(max_code=5)
    old, new = bench.function("f", code=3, concurrency=2), bench.function("f", "new", 9)
    running = bench.lease(bench.function("running"), "anna")
    for_room = [bench.acquire(old, owner) for owner in ("ben", "cleo")]
    in_line = bench.acquire(old, "dora")
    step = bench.retire(old, new)
    assert step.woken == [*for_room, in_line]
    assert all(isinstance(it.error, CodeMemoryError) for it in step.woken)
    bench.recycle(running)

    other, larger = bench.function("g"), bench.function("g", "larger", 9)
    loader = bench.acquire(other, "anna")
    bench.retire(other, larger)
    assert bench.load(loader).woken == []
    assert isinstance(loader.error, CodeMemoryError)
    assert not other.entries
    assert not larger.entries


def test_a_load_that_fails_after_a_replacement_wakes_the_next_generation() -> None:
    """The claim that the loader kept for the new generation goes to the first waiter."""
    bench = Bench()
    old, new = bench.function("f"), bench.function("f", "new")
    loader, waiter = bench.acquire(old, "anna"), bench.acquire(old, "ben")
    bench.retire(old, new)
    assert bench.fail(loader).woken == [waiter]
    assert waiter.instance is not None
    assert waiter.instance.entry.function is new
    assert old.entries == {}


def test_replaced_and_removed_while_loading_nothing_is_left() -> None:
    """The entry that was made for the successor goes too, when nobody needs it any more."""
    bench = Bench()
    old, new = bench.function("f"), bench.function("f", "new")
    loader = bench.acquire(old)
    bench.retire(old, new)
    bench.retire(new)
    bench.load(loader)
    assert isinstance(loader.error, UnknownFunctionError)
    assert not bench.policy.instances.entries
    assert not bench.main.entries


def test_going_on_with_the_successor_may_be_a_deadlock() -> None:
    """A loader that has to wait in line again, for one that waits for it, gets the error."""
    bench = Bench()
    old, new = bench.function("f", concurrency=2), bench.function("f", "new")
    side = bench.function("side")
    held = bench.lease(side, "ben")
    first, second = bench.acquire(old, "anna"), bench.acquire(old, "ben")
    bench.retire(old, new)
    bench.load(first)
    bench.load(first)
    waiting = bench.acquire(side, "anna")
    assert waiting.stage is Stage.QUEUED
    assert bench.load(second).woken == []
    assert isinstance(second.error, DeadlockError)
    assert bench.recycle(held).woken == [waiting]


# -- 17, 18: closing


def test_instances_never_cross_groups() -> None:
    """The same function in two groups has two entries, and no group hits the other's instance."""
    bench = Bench()
    function, red, blue = bench.function("f"), GroupRecord("red"), GroupRecord("blue")
    bench.idle(function, group=red)
    request = bench.acquire(function, group=blue)
    assert (request.stage, bench.entry(function, red).live) == (Stage.LOADING, 1)


def test_a_closed_group_gives_up_all_it_has_and_nothing_else() -> None:
    """Idle ones go, waiters end, running and loading ones go when they end; others stay."""
    bench = Bench(max_code=9)
    red, blue = GroupRecord("red"), GroupRecord("blue")
    f, g, big = bench.function("f"), bench.function("g"), bench.function("big", code=4)
    bench.idle(f, group=red)
    kept = bench.idle(f, group=blue)
    running, queued = bench.lease(g, "anna", red), bench.acquire(g, "ben", red)
    loading = bench.acquire(bench.function("h"), "cleo", red)
    warm = bench.acquire(bench.function("w"), "emil", red, warm=True)
    bench.load(warm)
    for_room = bench.acquire(big, "dora", red)
    assert for_room.stage is Stage.ROOM

    step = bench.close(red)
    assert reasons(step) == [("f", "group_closed")]
    assert step.woken == [queued, for_room]
    assert all(isinstance(it.error, RequestClosed) for it in step.woken)
    assert reasons(bench.load(loading)) == [("h", "group_closed")]
    assert isinstance(loading.error, RequestClosed)
    assert reasons(bench.recycle(running)) == [("g", "group_closed")]
    assert reasons(bench.recycle(warm)) == [("w", "group_closed")]
    assert not red.entries
    assert kept.state is State.IDLE
    assert [*bench.policy.instances.entries] == [bench.entry(f, blue)]


def test_a_closed_group_lets_others_have_its_room() -> None:
    """Who waits for room in another group is served in the step of the closing."""
    bench = Bench(max_code=4)
    red, blue = GroupRecord("red"), GroupRecord("blue")
    bench.lease(bench.function("running"), "anna", blue)
    first = bench.acquire(bench.function("large", code=3), "ben", red)
    second = bench.acquire(bench.function("small"), "cleo", blue)
    assert bench.close(red).woken == [first, second]
    assert second.stage is Stage.LOADING


def test_closed_and_replaced_while_loading_nothing_is_left() -> None:
    """The entry that the loader was moved to is forgotten with the group."""
    bench = Bench()
    old, new, red = bench.function("f"), bench.function("f", "new"), GroupRecord("red")
    loader = bench.acquire(old, "anna", red)
    bench.retire(old, new)
    bench.close(red)
    assert reasons(bench.load(loader)) == [("f", "group_closed")]
    assert not bench.policy.instances.entries
    assert not red.entries


def test_a_closed_cache_keeps_nothing() -> None:
    """After `closed`, whatever ends is dropped for that reason, whatever else is true of it."""
    bench = Bench()
    red = GroupRecord("red")
    running = bench.lease(bench.function("f"), "anna", red)
    corrupted = bench.lease(bench.function("g"), "ben")
    loading = bench.acquire(bench.function("h"), "cleo")
    bench.idle(bench.function("i"))
    bench.policy.closed = True
    assert reasons(bench.close(red, Reason.CLOSED)) == []
    assert reasons(bench.close(bench.main, Reason.CLOSED)) == [("i", "closed")]
    assert reasons(bench.recycle(running)) == [("f", "closed")]
    assert reasons(bench.recycle(corrupted, 10, Reason.CORRUPTED)) == [("g", "corrupted")]
    assert reasons(bench.load(loading)) == [("h", "closed")]
    assert isinstance(loading.error, RequestClosed)
    assert (bench.used, bench.total_size) == (0, 0)
    assert not bench.policy.instances.entries


# -- resize


def test_under_smaller_limits_what_does_not_fit_goes() -> None:
    """Each limit evicts for its own reason, least recently used first."""
    bench = Bench()
    for name, size in zip("abcdef", (100, 60, 10, 10, 10, 10), strict=True):
        bench.idle(bench.function(name), size)
    step = bench.resize(max_instance_size=70, max_size=60, max_instances=3, max_code=2)
    assert reasons(step) == [
        ("a", "oversized"),
        ("b", "size"),
        ("c", "count"),
        ("d", "code"),
    ]
    assert (bench.total_size, bench.used) == (20, 2)


def test_what_runs_over_a_smaller_limit_is_trimmed_as_it_ends() -> None:
    """A lease in progress is not disturbed; when it ends, its instance does not stay too many."""
    bench = Bench()
    leases = [bench.lease(bench.function(name), name) for name in "abc"]
    assert not bench.resize(max_instances=1)
    assert reasons(bench.recycle(leases[0])) == [("a", "count")]
    assert reasons(bench.recycle(leases[1])) == [("b", "count")]
    assert reasons(bench.recycle(leases[2])) == []

    by_code = Bench()
    leases = [by_code.lease(by_code.function(name), name) for name in "abc"]
    assert not by_code.resize(max_code=2)
    assert reasons(by_code.recycle(leases[0])) == [("a", "code")]
    assert reasons(by_code.recycle(leases[1], drop=Reason.CORRUPTED)) == [("b", "corrupted")]
    assert reasons(by_code.recycle(leases[2])) == []


def test_a_waiter_takes_what_would_be_trimmed() -> None:
    """Over the limit, an instance that somebody waits for is handed over, not evicted."""
    bench = Bench()
    function = bench.function("f")
    lease, waiter = bench.lease(function, "anna"), bench.acquire(function, "ben")
    bench.lease(bench.function("g"), "cleo")
    bench.resize(max_instances=1)
    step = bench.recycle(lease)
    assert (step.evicted, step.woken, waiter.hit) == ([], [waiter], True)


def test_who_can_never_fit_a_smaller_limit_is_told() -> None:
    """For room at once, in line when its turn comes; those who fit go on waiting."""
    bench = Bench(max_code=7)
    held = bench.lease(bench.function("held", code=5), "anna")
    large = bench.function("large", code=5)
    first, second = bench.acquire(large, "ben"), bench.acquire(large, "cleo")
    third = bench.acquire(bench.function("small"), "dora")
    step = bench.resize(max_code=5)
    assert step.woken == [first, second]
    assert all(isinstance(it.error, CodeMemoryError) for it in step.woken)
    assert [*bench.policy.room] == [third]
    step = bench.recycle(held)
    assert (reasons(step), step.woken) == ([("held", "code")], [third])


def test_under_larger_limits_those_who_wait_are_served() -> None:
    """More room goes to the line at once."""
    bench = Bench(max_code=3)
    bench.lease(bench.function("a"), "anna")
    waiters = [bench.acquire(bench.function(name), name) for name in "bc"]
    assert bench.resize(max_code=6).woken == waiters


def test_a_changed_timeout_holds_for_what_is_idle_already() -> None:
    """`next_expiry` follows the new timeout, not the one at the time of the recycle."""
    bench = Bench(idle_timeout=100)
    bench.idle(bench.function("f"))
    bench.resize(idle_timeout=2)
    assert bench.policy.next_expiry() == 3
    assert reasons(bench.policy.expire(3)) == [("f", "idle")]


# -- illegal steps


def at_stage(bench: Bench, stage: Stage) -> Request:
    """A request that has come so far."""
    function = bench.function("f")
    match stage:
        case Stage.NEW:
            return bench.policy.request(function, bench.main, "anna")
        case Stage.QUEUED:
            bench.lease(function, "ben")
        case Stage.ROOM:
            bench.lease(bench.function("g", code=2), "ben")
        case Stage.GRANTED:
            return bench.lease(function)
        case Stage.ENDED:
            request = bench.lease(function)
            bench.recycle(request)
            return request
        case Stage.LOADING:
            pass
    request = bench.acquire(function)
    assert request.stage is stage
    return request


def state_of(policy: Policy) -> list[object]:
    """What an illegal step might change."""
    instances, ledger = policy.instances, policy.instances.ledger
    return [
        *(policy.hits, policy.misses, policy.blocks, [*policy.room], [*policy.waits.held]),
        *(dict(policy.waits.waiting), [*instances.lru], dict(instances.evictions)),
        *(ledger.total_size, ledger.used, ledger.idle, ledger.running, ledger.evictable_code),
        [(it.live, [*it.idle], [*it.waiting], [*it.claims]) for it in instances.entries],
    ]


LEGAL = {
    ("acquire", Stage.NEW),
    ("loaded", Stage.LOADING),
    ("failed", Stage.LOADING),
    ("cancel", Stage.QUEUED),
    ("cancel", Stage.ROOM),
    ("recycle", Stage.GRANTED),
}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("step", ["acquire", "loaded", "failed", "cancel", "recycle"])
def test_a_step_at_the_wrong_stage_raises_and_changes_nothing(step: str, stage: Stage) -> None:
    """Each step is legal at the stages that are listed, and refused at all others."""
    bench = Bench(max_code=4)
    request = at_stage(bench, stage)
    before = state_of(bench.policy), request.stage, request.instance
    take = getattr(bench.policy, step)
    arguments = (10, 1.0) if step == "recycle" else (1.0,)
    if (step, stage) in LEGAL:
        take(request, *arguments)
        return
    with pytest.raises(IllegalStepError, match=stage.value):
        take(request, *arguments)
    assert (state_of(bench.policy), request.stage, request.instance) == before


def test_dropping_for_a_reason_at_the_wrong_stage_raises_too() -> None:
    """A loading instance can't be recycled as corrupted: its load has to fail."""
    bench = Bench()
    request = bench.acquire(bench.function("f"))
    with pytest.raises(IllegalStepError):
        bench.recycle(request, 10, Reason.CORRUPTED)
    assert request.stage is Stage.LOADING
