"""Make tasks wait for turns, in a fair order between groups, on the loop and in threads.

A turn is one slice of a call. At most one runs on the loop between two of its passes, and at most
`max_threads` run in threads. `_core/policy/shares` decides the order; here are the waits. A turn
that ends is handed over in the same step, and is given back whatever happens.

A task that gets a turn wakes one pass later. It then checks again that no group is further behind,
as one may have joined the line meanwhile: a group of short calls is not in line while it runs them.
Without this check such a group would get at most every second turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from .._core.policy.shares import FairQueue, Share

if TYPE_CHECKING:
    from .._core.metrics.snapshot import TurnsSnapshot


@final
class Turns:
    """Turns that groups take in a fair order: one slot for the loop, `max_threads` for threads."""

    __slots__ = ("line", "settle", "slots", "taken")

    def __init__(self, slots: int, settle: Callable[[], None] = lambda: None) -> None:
        self.slots = slots
        """Number of turns at the same time."""
        self.settle = settle
        """Function that charges groups for turns which are not over; it is called before the
        virtual times of groups are compared."""
        self.taken = 0
        self.line = FairQueue[Task]()

    @property
    def contended(self) -> bool:
        """Whether a task waits for a turn."""
        return bool(self.line)

    def describe(self) -> TurnsSnapshot:
        """Return who has turns, and how many wait, at this moment."""
        from .._core.metrics.snapshot import TurnsSnapshot

        return TurnsSnapshot(
            slots=self.slots, taken=self.taken, waiting=len(self.line), begun=self.line.turns
        )

    async def take(self, share: Share) -> None:
        """Wait for a turn of `share`, which the caller must give back with `give_back`.

        **Checkpoint:** always.
        **Cancellation:** no turn is taken.
        """
        self.settle()
        self.line.enter(share)
        if self.taken < self.slots and not self.line:
            self.taken += 1
            try:
                await trio.lowlevel.checkpoint()
            except BaseException:
                self.give_back()
                raise
        else:
            await trio.lowlevel.wait_task_rescheduled(self._join(share))
        while self._is_ahead(share):
            await trio.lowlevel.wait_task_rescheduled(self._join(share))
        self.line.begin(share)

    async def keep(self, share: Share) -> None:
        """End a turn and wait for the next: keep the slot, or hand it over to a group that is due.

        **Checkpoint:** always.
        **Cancellation:** the turn is given back.
        """
        # `take`, inline: each coroutine called here would be one more to resume for every slice.
        if self.line:
            self.settle()
        if self.line.must_yield(share):
            self.give_back()
            await trio.lowlevel.wait_task_rescheduled(self._join(share))
        else:
            try:
                await trio.lowlevel.checkpoint()
            except BaseException:
                self.give_back()
                raise
        while self._is_ahead(share):
            await trio.lowlevel.wait_task_rescheduled(self._join(share))
        self.line.begin(share)

    def resize(self, slots: int) -> None:
        """Change the number of slots: more are handed out in this step, fewer as turns end."""
        self.slots = slots
        self._hand_out()

    def give_back(self) -> None:
        """End a turn, and wake the next task in line in this step."""
        self.taken -= 1
        self._hand_out()

    def _join(self, share: Share) -> Callable[[RaiseCancelT], Abort]:
        """Join the line; return the abort function with which Trio leaves it on cancellation."""
        task = trio.lowlevel.current_task()

        def abort(_: RaiseCancelT) -> Abort:
            self.line.leave(share, task)
            return Abort.SUCCEEDED

        self.line.join(share, task)
        return abort

    def _is_ahead(self, share: Share) -> bool:
        """Return whether another group is further behind; if so, give the turn back.

        For a group with a tiny share, this may be so thousands of times in a row.
        """
        if self.line:
            self.settle()
        first = self.line.first()
        if first is None or first.virtual_time >= share.virtual_time:
            return False
        self.give_back()
        return True

    def _hand_out(self) -> None:
        if self.line:
            self.settle()
        while self.taken < self.slots and (task := self.line.pop()) is not None:
            self.taken += 1
            trio.lowlevel.reschedule(task)
