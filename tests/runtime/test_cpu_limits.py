"""Waits for the CPU in steps of async host functions, whose time is charged after each step."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any

import trio

from trio_wasmcache._core.policy.cpu_budget import CpuBudget
from trio_wasmcache._core.policy.shares import Share
from trio_wasmcache._runtime.cpu_limits import CpuLimits


async def test_a_step_in_which_a_wait_begins_can_let_the_next_one_go_on(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The next may be the task itself, which Trio does not know to sleep yet."""
    told: list[float] = []
    limits = CpuLimits(lambda: 0.0, lambda _budget, _waits, seconds, _at: told.append(seconds))
    share = Share(100)
    budget = share.budget = CpuBudget("g", 0.1)

    @types.coroutine
    def charged(steps: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        value = None
        while True:
            try:
                message = steps.send(value)
            except StopIteration:
                return
            budget.used = 0.0  # a window begins just now
            limits.charge(share, 0.05)
            value = yield message

    limits.charge(share, 0.1)
    assert limits.spent(share)
    began = trio.current_time()
    await charged(limits.wait(share))
    assert trio.current_time() == began
    assert (budget.waiting, limits.parked(share), told) == (0, 0, [])


async def test_waits_are_told_with_the_time_of_the_step_that_ends_them() -> None:
    """Of closing the group, or of changing its limit: the events that follow are not earlier."""
    told: list[float] = []
    limits = CpuLimits(lambda: 0.0, lambda _budget, _waits, _seconds, at: told.append(at))
    for end in (
        lambda share, now: limits.end(share.budget, now),
        lambda share, now: limits.change("g", share, None, now),
    ):
        share = Share(100)
        budget = share.budget = CpuBudget("g", 0.1)
        now = trio.current_time() - 5
        budget.begin_wait(now - 1)
        end(share, now)
        assert told.pop() == now
