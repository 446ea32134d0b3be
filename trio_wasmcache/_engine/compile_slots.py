"""Let a few tasks compile at a time: `CompileSlots` makes the others wait for a slot.

`CompileQueue` in the core decides the order, which is fair between groups; the waits are here.

A compile for which nobody waits has a slot of its own, `CompileSlots.background`: it begins only
while no other compile runs or waits, and takes no slot from those that come later.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeAlias, final

import trio

from .._core.compile_queue import CompileQueue


@final
class CompileSlots:
    """The slots of one engine, and who waits for them. One Trio run's."""

    def __init__(self, slots: int) -> None:
        self._queue: CompileQueue[Hashable, Turn] = CompileQueue(slots)
        self._closed = False
        self.background: BackgroundTurn = BackgroundTurn(self)
        """The slot of compiles for which nobody waits."""
        self._idle: trio.Event | None = None  # set when no compile runs or waits

    @property
    def running(self) -> int:
        """Number of slots that are taken, by abandoned compiles too until their threads end."""
        return self._queue.running

    @property
    def waiting(self) -> int:
        """Number of compiles that wait for a slot."""
        return self._queue.waiting

    def turn(self, group: Hashable) -> Turn:
        """Return a compile of that group, which neither runs nor waits yet."""
        return Turn(self, group)

    def close(self) -> None:
        """Wake all who wait with `trio.ClosedResourceError`, and give out no more slots."""
        self._closed = True
        for turn in self._queue.clear():
            turn.wake()
        self._note_idle()

    async def wait_idle(self) -> None:
        """Wait until no compile runs or waits.

        **Checkpoint:** if it waits.
        **Cancellation:** nothing is left behind.

        Raises:
            trio.ClosedResourceError: the engine was closed.
        """
        while True:
            self.check_open()
            if self._queue.idle:
                return
            self._idle = self._idle or trio.Event()
            await self._idle.wait()

    def _note_idle(self) -> None:
        idle = self._idle
        if idle is not None and (self._closed or self._queue.idle):
            self._idle = None
            idle.set()

    async def take(self, turn: Turn) -> None:
        """Wait for a slot; see `Turn.acquire_on_behalf_of`."""
        self.check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        self._start(self._queue.add(turn, turn.groups))
        if turn.is_woken:  # whoever takes a slot waits for a thread next
            return
        try:
            await turn.woken()
        except BaseException:
            # Granted and cancelled in one step, it has the slot.
            if self._queue.is_waiting(turn):
                self._queue.withdraw(turn)
            else:
                self.give_back(turn)
            raise
        self.check_open()

    def give_back(self, turn: Turn) -> None:
        """Free the slot of a compile; the next one takes it in this step."""
        self._start(self._queue.finish(turn))
        self._note_idle()

    def join(self, turn: Turn, group: Hashable) -> None:
        """Let a compile wait in one more group, if it waits."""
        if self._queue.is_waiting(turn):
            self._start(self._queue.join(turn, group))

    def _start(self, turns: list[Turn]) -> None:
        for turn in turns:
            turn.wake()

    def check_open(self) -> None:
        """Raise `trio.ClosedResourceError` if the engine was closed."""
        if self._closed:
            raise trio.ClosedResourceError("this engine is closed")


@final
class BackgroundTurn:
    """The slot of compiles for which nobody waits, as a limiter like `Turn`."""

    def __init__(self, slots: CompileSlots) -> None:
        self._slots = slots
        self._free = trio.Event()
        self._free.set()

    @property
    def taken(self) -> bool:
        """Whether a compile has it, an abandoned one too until its thread ends."""
        return not self._free.is_set()

    async def wait(self) -> None:
        """Wait until the slot is free, and no other compile runs or waits.

        **Checkpoint:** always.
        **Cancellation:** nothing is left behind.

        Raises:
            trio.ClosedResourceError: the engine was closed.
        """
        await trio.lowlevel.checkpoint()
        while True:
            await self._free.wait()
            await self._slots.wait_idle()
            if self._free.is_set():
                return

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Wait for the slot, and until no other compile runs or waits.

        **Checkpoint:** always.
        **Cancellation:** nothing is taken.

        Raises:
            trio.ClosedResourceError: the engine was closed.
        """
        await self.wait()
        self._free = trio.Event()

    def release_on_behalf_of(self, borrower: object) -> None:
        """Free the slot."""
        self._free.set()


@final
class Turn:
    """One compile, as a limiter for `trio.to_thread.run_sync`: a thread that is abandoned keeps it.

    It may be taken again once it was given back.
    """

    def __init__(self, slots: CompileSlots, group: Hashable) -> None:
        self._slots = slots
        self._event = trio.Event()
        self.groups: dict[Hashable, None] = {group: None}
        """Groups of those who want it."""

    def join(self, group: Hashable) -> None:
        """Let it be compiled in another group's turn, too: whichever comes first."""
        if group not in self.groups:
            self.groups[group] = None
            self._slots.join(self, group)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Wait for a slot.

        **Checkpoint:** always.
        **Cancellation:** nothing is taken, and nobody waits.

        Raises:
            trio.ClosedResourceError: the engine was closed.
        """
        self._event = trio.Event()
        await self._slots.take(self)

    def release_on_behalf_of(self, borrower: object) -> None:
        """Free the slot."""
        self._slots.give_back(self)

    def wake(self) -> None:
        """Let the wait for a slot end."""
        self._event.set()

    @property
    def is_woken(self) -> bool:
        """Whether the wait for a slot has ended."""
        return self._event.is_set()

    async def woken(self) -> None:
        """Wait for `wake`."""
        await self._event.wait()


AnyTurn: TypeAlias = Turn | BackgroundTurn
"""What a compile waits for."""
