"""CPU shares as arithmetic: what fair queueing promises, checked in a simulated loop."""

from __future__ import annotations

from itertools import combinations

import pytest
from attrs import define, field
from hypothesis import given, strategies as st

from trio_wasmcache._core.policy.shares import CALL_FUEL, FairQueue, Share

MAX_SLICE = 1000


@define(eq=False)
class Group:
    """A group in the simulation: always with `tasks` calls that never end."""

    share: Share
    tasks: int
    fuel: int = 0
    turns: list[int] = field(factory=list)
    """At which turns it was served."""


def serve(queue: FairQueue[tuple[Group, int]], groups: list[Group], slices: list[int]) -> None:
    """One turn for each of `slices` (its fuel), as the loop does it: run, charge, hand over."""
    holder = queue.pop()
    for number, fuel in enumerate(slices):
        assert holder is not None
        group = holder[0]
        queue.begin(group.share)
        group.fuel += fuel
        group.share.charge(fuel)
        group.turns.append(number)
        if queue.must_yield(group.share):
            queue.join(group.share, holder)
            holder = queue.pop()
    assert holder is not None
    queue.join(holder[0].share, holder)


def begin(shares: list[tuple[int, int]]) -> tuple[FairQueue[tuple[Group, int]], list[Group]]:
    """A queue with groups of (shares, tasks), all in line."""
    queue: FairQueue[tuple[Group, int]] = FairQueue()
    groups = [Group(Share(number), tasks) for number, tasks in shares]
    for group in groups:
        arrive(queue, group)
    return queue, groups


def arrive(queue: FairQueue[tuple[Group, int]], group: Group) -> None:
    """All tasks of a group that was away get in line."""
    queue.enter(group.share)
    group.share.active += 1
    for number in range(group.tasks):
        queue.join(group.share, (group, number))


def unfairness(one: Group, other: Group, since: tuple[int, int] = (0, 0)) -> float:
    """By how much fuel per share they differ, in slices of the larger per-share cost of both."""
    first = (one.fuel - since[0]) / one.share.shares
    second = (other.fuel - since[1]) / other.share.shares
    slack = MAX_SLICE / one.share.shares + MAX_SLICE / other.share.shares
    return abs(first - second) / slack


sizes = st.lists(st.integers(1, MAX_SLICE), min_size=50, max_size=400)
some_groups = st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 5)), min_size=2, max_size=5)


@given(some_groups, sizes)
def test_fuel_is_in_proportion_to_shares(shares: list[tuple[int, int]], slices: list[int]) -> None:
    """Whatever the shares, tasks and slices: never further apart than a slice of each."""
    queue, groups = begin(shares)
    serve(queue, groups, slices)
    for one, other in combinations(groups, 2):
        assert unfairness(one, other) <= 1


@pytest.mark.parametrize("tasks", [(1, 1), (1, 3), (3, 1), (3, 3), (1, 30)])
def test_three_to_one_is_three_to_one(tasks: tuple[int, int]) -> None:
    """However many tasks share what a group gets."""
    queue, groups = begin([(300, tasks[0]), (100, tasks[1])])
    serve(queue, groups, [100] * 4000)
    assert groups[0].fuel / groups[1].fuel == pytest.approx(3, rel=0.01)


@given(st.integers(1, 1000), st.integers(1, 10), sizes)
def test_one_alone_gets_everything(shares: int, tasks: int, slices: list[int]) -> None:
    """And its tasks take turns."""
    queue, (group,) = begin([(shares, tasks)])
    serve(queue, [group], slices)
    assert group.fuel == sum(slices)
    assert len(queue) == tasks


@given(some_groups, sizes, sizes, st.integers(1, 1000))
def test_who_was_away_gets_no_credit(
    shares: list[tuple[int, int]], before: list[int], after: list[int], newcomer: int
) -> None:
    """A group that comes late, or back, shares what is served from then on, and no more."""
    queue, groups = begin(shares)
    late = Group(Share(newcomer), 1)
    serve(queue, groups, before)
    since = [group.fuel for group in groups]
    arrive(queue, late)
    serve(queue, groups, after)
    for group, fuel in zip(groups, since, strict=True):
        # The other one may have been behind, or ahead, by what all may be.
        assert unfairness(late, group, (0, fuel)) <= 2


@given(some_groups, st.integers(1, 1000))
def test_nobody_starves(shares: list[tuple[int, int]], fuel: int) -> None:
    """Between two turns of a group, another gets at most its proportion, and one turn more."""
    queue, groups = begin(shares)
    rounds = sum(number for number, _ in shares) * 3
    serve(queue, groups, [fuel] * rounds)
    for group in groups:
        assert group.turns
        others = [other for other in groups if other is not group]
        most = sum(other.share.shares / group.share.shares + 2 for other in others)
        gaps = [b - a for a, b in zip(group.turns, group.turns[1:], strict=False)]
        assert max([group.turns[0], *gaps]) <= most + 1


def test_a_group_that_goes_away_and_comes_back_keeps_what_it_is_ahead() -> None:
    """Leaving the line does not make one forget what one burnt."""
    queue: FairQueue[str] = FairQueue()
    greedy, modest = Share(100), Share(100)
    for share in (greedy, modest):
        queue.enter(share)
    queue.begin(greedy)
    greedy.charge(10_000)
    queue.begin(modest)
    queue.enter(greedy)
    assert greedy.virtual_time == 100
    assert modest.virtual_time == 0


def test_being_active_elsewhere_is_not_being_away() -> None:
    """Who has a call in another line keeps what it is behind."""
    queue: FairQueue[str] = FairQueue()
    ahead, behind = Share(100), Share(100)
    ahead.charge(10_000)
    queue.begin(ahead)
    behind.active = 1
    queue.enter(behind)
    assert behind.virtual_time == 0
    behind.active = 0
    queue.enter(behind)
    assert behind.virtual_time == 100


def test_what_calls_cost_beside_their_fuel_is_charged_once() -> None:
    """Whenever it is asked for, and whatever the group was given for being away."""
    queue: FairQueue[str] = FairQueue(now=1000.0)
    share = Share(100)
    for _ in range(10):
        share.charge(50)
    for _ in range(2):
        share.settle()
        assert share.virtual_time == pytest.approx(10 * (50 + CALL_FUEL) / 100)
    share.begin_burst()
    share.charge(50)
    queue.enter(share)
    assert share.virtual_time == 1000
    for _ in range(2):
        share.begin_burst()
        assert share.virtual_time == pytest.approx(1000 + CALL_FUEL / 100)
        assert share.burst == 0


def test_between_equals_the_holder_keeps_the_turn() -> None:
    """A hand-over that changes nothing is not worth it, except within a group."""
    queue: FairQueue[str] = FairQueue()
    mine, others = Share(1), Share(1)
    assert not queue.must_yield(mine)
    queue.join(others, "other")
    assert not queue.must_yield(mine)
    mine.charge(1)
    assert queue.must_yield(mine)
    queue.leave(others, "other")
    queue.join(mine, "of my own group")
    assert queue.must_yield(mine)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 2)),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("pop"), st.just(0)),
        st.tuples(st.just("charge"), st.integers(0, 2)),
    ),
    max_size=60,
)


@given(steps)
def test_within_a_group_it_is_first_come_first_served(steps: list[tuple[str, int]]) -> None:
    """Joining, leaving and being served in any order, against three plain lists."""
    queue: FairQueue[int] = FairQueue()
    shares = [Share(1), Share(2), Share(3)]
    model: list[list[int]] = [[], [], []]
    for number, (step, which) in enumerate(steps):
        waiting = [(i, waiter) for i, line in enumerate(model) for waiter in line]
        if step == "join":
            queue.join(shares[which], number)
            model[which].append(number)
        elif step == "leave" and waiting:
            index, waiter = waiting[which % len(waiting)]
            queue.leave(shares[index], waiter)
            model[index].remove(waiter)
        elif step == "charge":
            shares[which].charge(10)
        elif step == "pop":
            popped = queue.pop()
            if not waiting:
                assert popped is None
            else:
                served = next(i for i, line in enumerate(model) if popped in line)
                assert model[served].pop(0) == popped
                times = [shares[i].virtual_time for i, _ in waiting]
                assert shares[served].virtual_time == min(times)
        assert len(queue) == sum(map(len, model))
        assert bool(queue) == any(model)


def test_leaving_a_line_one_is_not_in() -> None:
    """An error, and nothing changes."""
    queue: FairQueue[str] = FairQueue()
    share = Share(1)
    with pytest.raises(KeyError):
        queue.leave(share, "nobody")
    queue.join(share, "somebody")
    with pytest.raises(ValueError, match="not in deque"):
        queue.leave(share, "nobody")
    assert len(queue) == 1
    assert queue.first() is share
