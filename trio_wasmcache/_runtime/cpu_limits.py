"""Holds groups to their `cpu_limit`: measures their CPU time, and lets their calls wait.

1. CPU time is that of the thread that runs a slice, a host function, or a conversion. Nothing is
   measured for groups without a limit.
2. A call that waits has given up its turn or thread. It keeps its token, its instance and its
   stack, so at most `capacity` tasks of a group wait.
3. A wait ends when the next window has something left, when the limit is raised or taken away, and
   when the group closes.
4. Of the calls that wait, the first goes on when a window begins; the next one when a call has
   ended, or a sixteenth of the window was used. If all woke at once, most would wake in vain.
5. A deadline of `move_on_after` stands still while its task waits.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar, final

import trio

from .._core.policy.cpu_budget import CpuBudget
from .._core.policy.shares import Share

# CPU time (seconds) of scheduling a slice, on the loop and in a thread, which no clock here sees.
TURN_SECONDS, HOP_SECONDS = 20e-6, 200e-6
# Parts of a window's CPU time after which one more call goes on.
PARTS = 16
# Seconds by which each further call wakes later by itself, should nobody wake it.
APART = 0.05

P = ParamSpec("P")
T = TypeVar("T")


@final
class CpuLimits:
    """The waits of all groups of one cache that have a `cpu_limit`.

    Args:
        clock: function that returns the CPU time of the calling thread (seconds).
        note: function that is told of waits of a group: their number, their seconds, and the time
            at which they are told.
    """

    def __init__(
        self, clock: Callable[[], float], note: Callable[[CpuBudget, int, float, float], None]
    ) -> None:
        self.clock: Callable[[], float] = clock
        self._note = note
        self._lots: dict[CpuBudget, trio.lowlevel.ParkingLot] = {}  # of those for which calls wait
        # {task: scope of which the deadline stands still while the task waits}
        self._deadlines: dict[trio.lowlevel.Task, trio.CancelScope] = {}

    def metered(self, share: Share, run: Callable[P, T]) -> Callable[P, T]:
        """Return `run`, or a function that does the same and charges its CPU time to the group."""
        return run if share.budget is None else functools.partial(self._run, share, run)

    def metered_call(self, share: Share, begin: Callable[P, T]) -> Callable[P, T]:
        """Return what `metered` does, for a function that begins a call, and mostly ends it."""
        return begin if share.budget is None else functools.partial(self._call, share, begin)

    def _call(self, share: Share, begin: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        try:
            return self._run(share, begin, *args, **named)
        finally:
            self.pass_on(share)

    def _run(self, share: Share, run: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        began = self.clock()
        try:
            return run(*args, **named)
        finally:
            self.charge(share, self.clock() - began + TURN_SECONDS)

    def charge(self, share: Share, seconds: float) -> None:
        """Charge CPU time (seconds) to a group, if it has a limit."""
        budget = share.budget
        if budget is not None:
            now = trio.current_time()
            budget.charge(seconds, now)
            if budget.left(now) <= 0:
                share.end_burst()  # so that its next call lets others run, and waits
            elif budget.waiting and budget.used_part(PARTS):
                # Not at once: this may be a step of an async host function, of which the task is in
                # the lot already, but Trio does not know yet that it sleeps.
                trio.lowlevel.current_trio_token().run_sync_soon(self.pass_on, share)

    @staticmethod
    def spent(share: Share) -> bool:
        """Return whether the calls of a group have to wait."""
        budget = share.budget
        return budget is not None and budget.ready_at(trio.current_time()) is not None

    async def wait(self, share: Share) -> None:
        """Wait until the group may use the CPU again.

        **Checkpoint:** if it has to wait.
        **Cancellation:** nothing is left behind.
        """
        budget = share.budget
        if budget is None or budget.ready_at(began := trio.current_time()) is None:
            return
        lot = self._lots.setdefault(budget, trio.lowlevel.ParkingLot())
        budget.begin_wait(began)
        limited = self._deadlines.get(trio.lowlevel.current_task())
        deadline = math.inf if limited is None else limited.deadline
        if limited is not None:
            limited.deadline = math.inf
        try:
            while (ready_at := budget.ready_at(trio.current_time())) is not None:
                with trio.move_on_at(ready_at + APART * len(lot)):
                    await lot.park()
        except BaseException:
            lot.unpark()  # it was perhaps the one that would have woken the next
            raise
        finally:
            ended = trio.current_time()
            if limited is not None:
                limited.deadline = deadline + ended - began
            budget.end_wait(began, ended)
            if not budget.waiting:
                del self._lots[budget]
            if not budget.closed:
                self._tell(budget, ended)

    @contextlib.contextmanager
    def move_on_after(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Cancel the block after some seconds, not counting those in which its task waits here."""
        task = trio.lowlevel.current_task()
        with trio.move_on_after(seconds) as scope:
            self._deadlines[task] = scope
            try:
                yield scope
            finally:
                del self._deadlines[task]

    def parked(self, share: Share) -> int:
        """Return the number of calls of a group that wait now."""
        budget = share.budget
        return len(self._lots[budget]) if budget is not None and budget in self._lots else 0

    def change(self, group: str, share: Share, limit: float | None, now: float) -> None:
        """Change the limit of a group (cores; None: none): calls look whether they may go on."""
        budget = share.budget
        if limit is None:
            share.budget = None
            if budget is not None:
                self.end(budget, now)
        elif budget is None:
            share.budget = CpuBudget(group, limit)
        else:
            budget.limit = limit
            self._wake(budget)

    def pass_on(self, share: Share) -> None:
        """Let the next call of a group go on, if it may, as one has ended."""
        budget = share.budget
        if budget in self._lots and budget.left(trio.current_time()) > 0:
            self._lots[budget].unpark()

    def end(self, budget: CpuBudget, now: float) -> None:
        """End all waits, as the limit was taken away or the group closes."""
        budget.closed = True
        self._tell(budget, now, last=True)
        self._wake(budget)

    def _tell(self, budget: CpuBudget, now: float, *, last: bool = False) -> None:
        told = budget.take_waits(now, last=last)
        if told is not None:
            self._note(budget, *told, now)

    def _wake(self, budget: CpuBudget) -> None:
        if budget in self._lots:
            self._lots[budget].unpark_all()
