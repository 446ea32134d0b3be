"""Who waits for whom: the search for a wait that is in vain."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import pairwise

import pytest
from core.policy.policy_bench import Bench
from hypothesis import given, strategies as st

from trio_wasmcache._core.errors import DeadlockError
from trio_wasmcache._core.policy.deadlock import ROOM, Waits, find_deadlock
from trio_wasmcache._core.policy.records import Entry, GroupRecord, Request

Waiting = dict[Hashable, str]
Held = dict[str, list[Hashable]]


def search(
    owner: Hashable, wanted: str, waiting: Waiting, held: Held
) -> tuple[tuple[Hashable, str], ...] | None:
    def holders(resource: str) -> Iterable[Hashable]:
        return held.get(resource, [])

    return find_deadlock(owner, wanted, waiting, holders)


def test_waiting_for_oneself_is_the_shortest_deadlock() -> None:
    """Who alone holds what it wants waits for ever; with another holder it does not."""
    assert search("a", "x", {}, {"x": ["a"]}) == (("a", "x"),)
    assert search("a", "x", {}, {"x": ["a", "b"]}) is None


def test_what_nobody_holds_is_no_deadlock() -> None:
    """It is about to be granted, whether it is wanted first or at the end of a chain."""
    assert search("a", "x", {}, {}) is None
    assert search("a", "x", {"b": "y"}, {"x": ["b"]}) is None


def test_a_chain_back_to_the_first_is_told_in_order() -> None:
    """Three tasks in a ring: each waits for what the next one holds."""
    waiting: Waiting = {"b": "z", "c": "x"}
    held: Held = {"x": ["a"], "y": ["b"], "z": ["c"]}
    assert search("a", "y", waiting, held) == (("a", "y"), ("b", "z"), ("c", "x"))


def test_one_that_is_free_at_any_distance_breaks_the_chain() -> None:
    """A holder that does not wait may give way, and then the others go on in turn."""
    waiting: Waiting = {"b": "z", "c": "x"}
    held: Held = {"x": ["a", "free"], "y": ["b"], "z": ["c"]}
    assert search("a", "y", waiting, held) is None


def test_the_chain_leaves_out_those_who_are_not_on_it() -> None:
    """Of two stuck holders, the chain follows the one that leads back."""
    waiting: Waiting = {"b": "b's", "c": "x"}
    held: Held = {"y": ["b", "c"], "b's": ["c"], "x": ["a"]}
    assert search("a", "y", waiting, held) == (("a", "y"), ("c", "x"))


def test_a_deadlock_of_others_is_as_hopeless() -> None:
    """Who waits for tasks that are stuck among themselves learns of one of them."""
    waiting: Waiting = {"b": "y", "c": "x"}
    held: Held = {"x": ["b"], "y": ["c"]}
    assert search("a", "x", waiting, held) == (("a", "x"), ("b", "y"), ("c", "x"))


TASKS = st.sampled_from("abcde")
RESOURCES = st.sampled_from("uvwxyz")


@given(
    owner=TASKS,
    wanted=RESOURCES,
    waiting=st.dictionaries(TASKS, RESOURCES),
    held=st.dictionaries(RESOURCES, st.lists(TASKS, max_size=3)),
)
def test_a_wait_is_in_vain_exactly_if_nobody_can_go_on(
    owner: str, wanted: str, waiting: dict[str, str], held: dict[str, list[str]]
) -> None:
    """The search agrees with releasing, again and again, what those hold who can go on."""
    waits = {**waiting, owner: wanted}
    going = {task for task in "abcde" if task not in waits}
    while more := {
        task
        for task, resource in waits.items()
        if task not in going and (not held.get(resource) or going & {*held[resource]})
    }:
        going |= more
    chain = search(owner, wanted, {**waiting}, {**held})
    assert (chain is None) == (owner in going)
    if chain is not None:
        assert chain[0] == (owner, wanted)
        assert all(waits[task] == resource for task, resource in chain)
        for (_, resource), (task, _) in pairwise(chain):
            assert task in held[resource]
        last = chain[-1][1]
        assert any(task in {*dict(chain)} | {owner} for task in held[last]) or len(chain) > 1


def test_a_wait_that_is_refused_does_not_begin() -> None:
    """`begin` raises with the chain in words and leaves the graph as it was."""

    class Task:
        name = "app.worker"

    bench = Bench()
    waits, task = Waits(), Task()
    request = Request(Entry(bench.function("f"), bench.main), task)
    request.entry.claim(request)
    waits.held[request] = None
    for resource, words in (
        (request.entry, "an instance of f(i64) in group 'main'"),
        (ROOM, "room for code, stack, memory and addresses"),
    ):
        with pytest.raises(DeadlockError) as caught:
            waits.begin(task, resource)
        assert caught.value.chain == (f"app.worker waits for {words}",)
        assert str(caught.value) == (
            f"this wait would never end: app.worker waits for {words}, held by itself; "
            "release one before acquiring the other, or raise concurrency or the limits"
        )
        assert waits.waiting == {}


def test_a_claim_that_is_free_is_nobodys() -> None:
    """An entry that could serve another at once is no reason to despair."""
    bench = Bench()
    request = Request(Entry(bench.function("f", concurrency=2), bench.main), "anna")
    request.entry.claim(request)
    waits = Waits()
    assert waits.chain("anna", request.entry) is None
    waits.begin("anna", request.entry)
    assert waits.waiting == {"anna": request.entry}


def test_who_waits_no_longer_is_free() -> None:
    """`end` takes the edge out; ending a wait that is not there is no error."""
    waits, group = Waits(), GroupRecord("red")
    group.tokens.owners["ben"] = 2
    waits.begin("anna", group)
    waits.end("anna")
    waits.end("anna")
    assert waits.waiting == {}


def test_a_stranger_with_a_token_may_give_way() -> None:
    """As long as somebody unknown has one of the tokens, waiting for one is not in vain."""
    waits, group, strange = Waits(), GroupRecord("red"), [True]
    group.tokens.strangers = lambda: strange[0]
    group.tokens.owners["anna"] = 1
    assert waits.chain("anna", group) is None
    strange[0] = False
    assert waits.chain("anna", group) == (("anna", group),)
