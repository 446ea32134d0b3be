"""Turns: at most one slice between two passes of the event loop, at most so many in threads.

The order is that of `_core/fair`. Here are the waits: joining the line, handing a turn over in the
same step, and giving it back whatever happens.

A turn that was handed over is looked at again when its new holder wakes, one pass later: meanwhile
a group that is further behind may have joined. That is how a group of short calls, which is not in
line while it runs them, gets more turns than one in two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import trio
from attrs import Factory, define
from trio.lowlevel import Abort, RaiseCancelT, Task

from .._core.policy.shares import FairQueue, Share


@final
@define(eq=False)
class Turns:
    """`slots` turns at the same time; one for the loop, `max_threads` for worker threads."""

    slots: int
    taken: int = 0
    line: FairQueue[Task] = Factory(lambda: FairQueue[Task]())

    @property
    def contended(self) -> bool:
        """Whether somebody waits for a turn."""
        return bool(self.line)

    async def take(self, share: Share) -> None:
        """Wait for a turn of `share`; whoever got it gives it back with `give_back`.

        **Checkpoint:** always.
        **Cancellation:** no turn is taken.
        """
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
        """The holder has used its turn: hand it over if it has to, and wait for the next.

        **Checkpoint:** always.
        **Cancellation:** the turn is given back.
        """
        # As `take`, but written out: each call of a coroutine here is one more for every slice.
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
        """So many turns from now on: more begin in this step, fewer as they are given back."""
        self.slots = slots
        self._hand_out()

    def give_back(self) -> None:
        """The turn is over; whoever is next is woken in this step."""
        self.taken -= 1
        self._hand_out()

    def _join(self, share: Share) -> Callable[[RaiseCancelT], Abort]:
        """Join the line; return what leaves it again, for Trio to call on cancellation."""
        task = trio.lowlevel.current_task()

        def abort(_: RaiseCancelT) -> Abort:
            self.line.leave(share, task)
            return Abort.SUCCEEDED

        self.line.join(share, task)
        return abort

    def _is_ahead(self, share: Share) -> bool:
        """Return whether another group is further behind: then the turn is given back.

        That may come out so thousands of times for a group with a tiny share.
        """
        first = self.line.first()
        if first is None or first.virtual_time >= share.virtual_time:
            return False
        self.give_back()
        return True

    def _hand_out(self) -> None:
        while self.taken < self.slots and (task := self.line.pop()) is not None:
            self.taken += 1
            trio.lowlevel.reschedule(task)
