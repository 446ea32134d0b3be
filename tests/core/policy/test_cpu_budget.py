"""The CPU time of a group with a `cpu_limit`, in windows of a second."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.policy.cpu_budget import WINDOW, CpuBudget


def test_a_window_is_used_up_and_the_next_one_begins() -> None:
    """What is left of a window is lost; its excess counts in the next ones."""
    budget = CpuBudget("g", 0.25)
    assert budget.ready_at(100.0) is None
    budget.charge(0.125, 100.0)
    assert (budget.ready_at(100.5), budget.left(100.5)) == (None, 0.125)
    budget.charge(0.125, 100.5)
    assert budget.ready_at(100.5) == 101.0
    assert budget.ready_at(101.0) is None
    budget.charge(0.625, 101.0)
    assert budget.ready_at(101.75) == 103.0
    assert (budget.ready_at(103.0), budget.left(103.0)) == (None, 0.125)
    assert budget.left(200.0) == 0.25


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 0.2)), max_size=60))
@tries(100)
def test_never_more_than_the_limit(steps: list[tuple[float, float]]) -> None:
    """Over any time, but for the last slice; and never less, for a group that always wants it."""
    budget, limit = CpuBudget("g", 0.3), 0.3
    now, used, last = 50.0, 0.0, 0.0
    for pause, slice_ in steps:
        ready_at = budget.ready_at(now)
        if ready_at is not None:
            assert now < ready_at
            now = ready_at
            assert budget.ready_at(now) is None
        windows = int((now - 50.0) / WINDOW) + 1
        budget.charge(slice_, now)
        used, last = used + slice_, slice_
        assert used - last <= windows * limit * WINDOW + 1e-9
        now += pause


def test_waits_are_told_once_a_window() -> None:
    """Those under way with the time that they have waited so far."""
    budget = CpuBudget("g", 0.5)
    assert budget.take_waits(10.0) is None
    budget.begin_wait(10.0)
    budget.begin_wait(10.5)
    assert budget.waited(11.0) == 1.5
    assert budget.take_waits(11.0) == (2, 1.5)
    budget.end_wait(10.0, 11.5)
    assert budget.take_waits(11.5) is None
    assert budget.take_waits(11.75, last=True) == (0, 1.25)
    budget.end_wait(10.5, 12.0)
    assert (budget.waiting, budget.waited(99.0)) == (0, 3.0)
    assert budget.take_waits(13.0) == (0, pytest.approx(0.25))
    assert budget.take_waits(99.0) is None
