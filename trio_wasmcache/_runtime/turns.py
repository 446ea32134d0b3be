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
from contextlib import suppress
from typing import TYPE_CHECKING, final

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from .._core.policy.shares import FairQueue, Share

if TYPE_CHECKING:
    from .._core.metrics.snapshot import TurnsSnapshot


@final
class Wait:
    """A task's wait for a turn, which an exception may end at any line."""

    __slots__ = ("handed", "line", "share", "task")

    def __init__(self, line: FairQueue[Wait], share: Share) -> None:
        self.line = line
        self.share = share
        self.task: Task = trio.lowlevel.current_task()
        self.handed = False
        """Whether it got a turn."""

    def leave(self, _: RaiseCancelT) -> Abort:
        """Leave the line, as the task is cancelled: Trio's abort function."""
        self.line.leave(self.share, self)
        return Abort.SUCCEEDED

    def end(self) -> bool:
        """Return whether it got a turn; if not, leave the line."""
        if not self.handed:
            with suppress(LookupError, ValueError):
                self.line.leave(self.share, self)
        return self.handed


@final
class Turns:
    """Turns that groups take in a fair order: one slot for the loop, `max_threads` for threads."""

    __slots__ = ("line", "settle", "slots", "taken")

    def __init__(self, slots: int, settle: Callable[[], None] = lambda: None) -> None:
        self.slots: int = slots
        """Number of turns at the same time."""
        self.settle: Callable[[], None] = settle
        """Function that charges groups for turns which are not over; it is called before the
        virtual times of groups are compared."""
        self.taken: int = 0
        self.line: FairQueue[Wait] = FairQueue[Wait]()

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
        holds: bool = False
        wait: Wait | None = None
        try:
            if self.taken < self.slots and self.line:
                # A signal handler's exception kept a turn that ended from being handed over.
                self._hand_out()
            if self.taken < self.slots:
                self.taken += 1
                holds = True
                await trio.lowlevel.checkpoint()
            while not holds or self._is_ahead(share):
                if holds:
                    self.taken -= 1
                    holds, wait = False, None
                    self._hand_out()
                wait = Wait(self.line, share)
                self.line.join(share, wait)
                await trio.lowlevel.wait_task_rescheduled(wait.leave)
                holds = True
            self.line.begin(share)
        except BaseException:
            if holds or (wait is not None and wait.end()):
                self.give_back()
            raise

    async def keep(self, share: Share) -> None:
        """End a turn and wait for the next: keep the slot, or hand it over to a group that is due.

        **Checkpoint:** always.
        **Cancellation:** the turn is given back.
        """
        # `take`, inline: each coroutine called here would be one more to resume for every slice.
        # And a signal handler's error at its beginning would find nobody who knows of the slot.
        holds: bool = True
        wait: Wait | None = None
        try:
            if self.line:
                self.settle()
            yields = self.line.must_yield(share)
            if not yields:
                await trio.lowlevel.checkpoint()
            while yields or self._is_ahead(share):
                self.taken -= 1
                yields, holds, wait = False, False, None
                self._hand_out()
                wait = Wait(self.line, share)
                self.line.join(share, wait)
                await trio.lowlevel.wait_task_rescheduled(wait.leave)
                holds = True
            self.line.begin(share)
        except BaseException:
            if holds or (wait is not None and wait.end()):
                self.give_back()
            raise

    def resize(self, slots: int) -> None:
        """Change the number of slots: more are handed out in this step, fewer as turns end."""
        self.slots = slots
        self._hand_out()

    def give_back(self) -> None:
        """End a turn, and wake the next task in line in this step."""
        self.taken -= 1
        self._hand_out()

    def _is_ahead(self, share: Share) -> bool:
        """Return whether another group is further behind, so that the turn is to be given back.

        For a group with a tiny share, this may be so thousands of times in a row.
        """
        if self.line:
            self.settle()
        first = self.line.first()
        return first is not None and first.virtual_time < share.virtual_time

    def _hand_out(self) -> None:
        if self.line:
            self.settle()
        while self.taken < self.slots and (wait := self.line.pop()) is not None:
            self.taken += 1
            wait.handed = True
            trio.lowlevel.reschedule(wait.task)
