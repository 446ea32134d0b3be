"""The book of bytes, the order of last use, and the table of what may follow what."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_wasmcache._core.keys import FunctionKey
from trio_wasmcache._core.policy.ledger import Ledger
from trio_wasmcache._core.policy.lifecycle import TRANSITIONS, Action, IllegalStepError, State, step
from trio_wasmcache._core.policy.lru import LRU
from trio_wasmcache._core.policy.records import Entry, FunctionRecord, GroupRecord, Instance, Module

LEGAL = {
    (State.ABSENT, Action.LOAD): State.LOADING,
    (State.LOADING, Action.LOADED): State.RUNNING,
    (State.LOADING, Action.WARMED): State.IDLE,
    (State.LOADING, Action.LEAVE): State.IDLE,
    (State.LOADING, Action.DROP): State.CLOSED,
    (State.RUNNING, Action.RECYCLE): State.IDLE,
    (State.RUNNING, Action.DROP): State.CLOSED,
    (State.IDLE, Action.ACQUIRE): State.RUNNING,
    (State.IDLE, Action.TAKE): State.LOADING,
    (State.IDLE, Action.EVICT): State.CLOSED,
}


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("state", State)
def test_what_is_not_in_the_table_is_refused(state: State, action: Action) -> None:
    """Every pair of state and action either leads where it should or raises, with both words."""
    if (state, action) in LEGAL:
        assert step(state, action) is LEGAL[state, action]
        return
    words = f"can't {action.value} an instance that is {state.value}"
    with pytest.raises(IllegalStepError, match=f"^{words}$"):
        step(state, action)


def test_every_state_can_be_reached_and_left_but_the_last() -> None:
    """No life gets stuck, and what is closed stays closed."""
    reached = {following for actions in TRANSITIONS.values() for following in actions.values()}
    assert reached | {State.ABSENT} == {*State} == {*TRANSITIONS}
    assert [state for state, actions in TRANSITIONS.items() if not actions] == [State.CLOSED]


class TestLRU:
    def test_the_whole_life_of_an_order(self) -> None:
        """Touched members go last, removed ones leave, and looking changes nothing."""
        order = LRU[Module]()
        assert (order.oldest(), bool(order), len(order), [*order]) == (None, False, 0, [])
        a, b, c, z = (Module(name, 1) for name in "abcz")
        for member in (a, b, c):
            order.touch(member)
        order.touch(a)
        assert [*order] == [b, c, a]
        assert (order.oldest(), order.oldest(), bool(order), len(order)) == (b, b, True, 3)
        assert a in order
        assert z not in order
        order.remove(b)
        assert [*order] == [c, a]
        with pytest.raises(KeyError):
            order.remove(b)
        assert [*order] == [c, a]

    def test_members_may_leave_while_it_is_gone_through(self) -> None:
        """The one that was given out last, too: what comes after it is known by then."""
        order, members = LRU[Module](), [Module(name, 1) for name in "abc"]
        for member in members:
            order.touch(member)
        seen = []
        for member in order:
            order.remove(member)
            seen.append(member)
        assert (seen, [*order]) == (members, [])

    @given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcde"))))
    def test_it_agrees_with_a_list(self, steps: list[tuple[bool, str]]) -> None:
        """Whatever is touched and removed, the order is that of the last touches."""
        order, plain = LRU[Module](), list[Module]()
        members = {name: Module(name, 1) for name in "abcde"}
        for touch, name in steps:
            member = members[name]
            present = member in plain
            if present:
                plain.remove(member)
            if touch:
                order.touch(member)
                plain.append(member)
            elif present:
                order.remove(member)
            assert [*order] == plain
            assert order.oldest() == (plain[0] if plain else None)
            assert len(order) == len(plain)


STACK = 10


def function_of(module: Module, worst: int = 50) -> FunctionRecord:
    return FunctionRecord(FunctionKey("f", ()), 1, module, worst_size=worst)


def instance_of(function: FunctionRecord, size: int = 0) -> Instance:
    return Instance(1, Entry(function, GroupRecord("g")), 0.0, size=size)


class TestLedger:
    def test_one_instance_from_its_load_to_its_end(self) -> None:
        """Code is there from the load on, a stack and its worst case while it runs, its size while
        it is idle."""
        ledger, module = Ledger(STACK), Module("m", 100)
        function = function_of(module)
        instance = instance_of(function, size=7)
        assert ledger.enter(instance)
        assert (ledger.used, ledger.total_size, ledger.running, ledger.idle) == (110, 0, 1, 0)
        assert ledger.running_size == 50
        assert (ledger.loaded_modules, ledger.evictable_code) == (1, 0)
        ledger.suspend(instance)
        assert (ledger.used, ledger.total_size, ledger.running, ledger.idle) == (100, 7, 0, 1)
        assert ledger.running_size == 0
        assert (ledger.evictable_code, [*ledger.evictable]) == (100, [module])
        ledger.resume(instance)
        assert (ledger.used, ledger.total_size, ledger.evictable_code) == (110, 0, 0)
        assert ledger.running_size == 50
        ledger.suspend(instance)
        assert ledger.leave_idle(instance)
        assert (ledger.used, ledger.total_size, ledger.idle, ledger.loaded_modules) == (0, 0, 0, 0)
        assert (ledger.evictable_code, [*ledger.evictable]) == (0, [])
        assert (module.users, module.running) == (0, 0)

    def test_addresses_and_mappings_are_those_of_instances_and_of_loaded_code(self) -> None:
        """Booked as what each reserves now; an instance that goes takes its own with it."""
        ledger, module = Ledger(STACK), Module("m", 100, 3)
        instance = instance_of(function_of(module))
        ledger.enter(instance)
        assert (ledger.address_space, ledger.mappings) == (100, 3)
        ledger.reserve(instance, 1000, 5)
        ledger.reserve(instance, 1500, 7)
        assert (ledger.address_space, ledger.mappings) == (1600, 10)
        ledger.suspend(instance)
        ledger.resume(instance)
        assert (ledger.address_space, ledger.mappings) == (1600, 10)
        assert ledger.leave_running(instance)
        assert (ledger.address_space, ledger.mappings) == (0, 0)

    def test_a_module_is_unloaded_with_the_last_that_uses_it(self) -> None:
        """Loaded once however many use it; `leave` says when its code is to go."""
        ledger, module = Ledger(STACK), Module("m", 100)
        function, other = function_of(module), function_of(module, worst=5)
        idle = instance_of(function, size=7)
        others = instance_of(other), instance_of(other)
        assert [ledger.enter(one) for one in (idle, *others)] == [True, False, False]
        assert (ledger.used, ledger.running_size) == (130, 60)
        ledger.suspend(idle)
        assert not ledger.leave_running(others[0])
        assert (ledger.evictable_code, ledger.running_size) == (0, 5), "one still runs"
        assert not ledger.leave_running(others[1])
        assert ledger.evictable_code == 100
        assert ledger.leave_idle(idle)
        assert (ledger.used, ledger.evictable_code, ledger.running_size) == (0, 0, 0)

    def test_modules_are_evictable_in_the_order_in_which_they_stopped(self) -> None:
        """The least recently used first: the order of stopping, not of loading."""
        ledger = Ledger(STACK)
        instances = [instance_of(function_of(Module(name, 100))) for name in "abc"]
        for instance in instances:
            ledger.enter(instance)
        for number in (2, 0, 1):
            ledger.suspend(instances[number])
        ledger.resume(instances[2])
        assert [it.digest for it in ledger.evictable] == ["a", "b"]
        ledger.suspend(instances[2])
        assert [it.digest for it in ledger.evictable] == ["a", "b", "c"]
        assert ledger.evictable_code == 300
