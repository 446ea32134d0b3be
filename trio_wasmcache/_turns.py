"""Turns: at most one slice between two passes of the event loop, at most so many in threads.

The order is that of `_core/fair`. Here are the waits: joining the line, handing a turn over in the
same step, and giving it back whatever happens.

A turn that was handed over is looked at again when its new holder wakes, one pass later: meanwhile
a group that is further behind may have joined. That is how a group of short calls, which is not in
line while it runs them, gets more turns than one in two.
"""

from __future__ import annotations

from typing import final

import trio
from attrs import Factory, define
from trio.lowlevel import Abort, RaiseCancelT, Task

from ._core.fair import FairQueue, Share


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
            await self._pass()
        else:
            await self._wait(share)
        await self._begin(share)

    async def keep(self, share: Share) -> None:
        """The holder has used its turn: hand it over if it has to, and wait for the next.

        **Checkpoint:** always.
        **Cancellation:** the turn is given back.
        """
        if self.line.must_yield(share):
            self.give_back()
            await self._wait(share)
        else:
            await self._pass()
        await self._begin(share)

    def resize(self, slots: int) -> None:
        """So many turns from now on: more begin in this step, fewer as they are given back."""
        self.slots = slots
        self._hand_out()

    def give_back(self) -> None:
        """The turn is over; whoever is next is woken in this step."""
        self.taken -= 1
        self._hand_out()

    async def _pass(self) -> None:
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            self.give_back()
            raise

    async def _wait(self, share: Share) -> None:
        task = trio.lowlevel.current_task()

        def abort(_: RaiseCancelT) -> Abort:
            self.line.leave(share, task)
            return Abort.SUCCEEDED

        self.line.join(share, task)
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _begin(self, share: Share) -> None:
        # As often as it takes, which may be thousands of times for a group with a tiny share.
        while (first := self.line.first()) and first.virtual_time < share.virtual_time:
            self.give_back()
            await self._wait(share)
        self.line.begin(share)

    def _hand_out(self) -> None:
        while self.taken < self.slots and (task := self.line.pop()) is not None:
            self.taken += 1
            trio.lowlevel.reschedule(task)
