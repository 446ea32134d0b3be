"""The tokens of a scheduling group: one for a task, however many leases it nests."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, final

import trio
from attrs import define
from trio.lowlevel import Task

from .._core.policy.records import GroupRecord, TokenBook
from .._core.policy.shares import Share


class TokenWait(Protocol):
    """One wait for a token, as `Capacity` reports on it."""

    def over(self) -> None:
        """The task waits no longer, for whatever reason."""

    def refused(self) -> None:
        """The group was closed: the wait will end in vain. `over` follows when the task runs."""


@final
class Capacity:
    """The tokens of one group, and who has them.

    Trio's limiter costs a hit as much as all else that it does, so there is one only while somebody
    waits, or since somebody looked at it.

    `owners`, `limiter` and `total` are public for `Lease`, whose hits take and give back a token
    inline where there is no limiter; the methods do that, too, and all else.
    """

    def __init__(self, total: float) -> None:
        self.book = TokenBook(strangers=self._strangers_have_some)
        self.owners: dict[Hashable, int] = self.book.owners
        self.total = total
        """How many tokens there are, while there is no limiter."""
        self.limiter: trio.CapacityLimiter | None = None
        self._watched = False
        self._waiting: dict[trio.CancelScope, TokenWait] = {}  # {scope around a wait: wait}

    def take_nowait(self, task: Task) -> bool:
        """Take a token for `task`, or share the one it has; False if it has to wait."""
        owners = self.owners
        held = owners.get(task)
        if held is not None:
            owners[task] = held + 1
            return True
        if self.limiter is None:
            if len(owners) >= self.total:
                return False
        else:
            try:
                self.limiter.acquire_on_behalf_of_nowait((self, task))
            except trio.WouldBlock:
                return False
        owners[task] = 1
        return True

    async def take(self, task: Task, wait: TokenWait) -> bool:
        """Wait for a token for `task`, which has none; False if the group was closed meanwhile.

        **Checkpoint:** always.
        **Cancellation:** no token is taken.
        """
        with trio.CancelScope() as scope:
            self._waiting[scope] = wait
            try:
                await self._need_limiter().acquire_on_behalf_of((self, task))
                self.owners[task] = 1
            finally:
                del self._waiting[scope]
                wait.over()
                if not (self._waiting or self._watched):
                    self.limiter = None
        return not scope.cancelled_caught

    def give_back(self, task: Task) -> None:
        """Give back what one `take_nowait` or `take` took."""
        owners = self.owners
        held = owners[task]
        if held == 1:
            del owners[task]
            if self.limiter is not None:
                self.limiter.release_on_behalf_of((self, task))
        else:
            owners[task] = held - 1

    def refuse_waits(self) -> None:
        """End all waits in vain, as the group closes."""
        for scope, wait in self._waiting.items():
            wait.refused()
            scope.cancel()

    def watch(self) -> trio.CapacityLimiter:
        """Return Trio's limiter, which is kept from now on, as somebody may change it."""
        self._watched = True
        return self._need_limiter()

    def count(self) -> tuple[int, float]:
        """Return how many tokens are borrowed, and how many there are."""
        limiter = self.limiter  # once, as `repr` may be called in any thread
        if limiter is None:
            return len(self.owners), self.total
        return limiter.borrowed_tokens, limiter.total_tokens

    def _strangers_have_some(self) -> bool:
        return self.count()[0] > len(self.owners)

    def _need_limiter(self) -> trio.CapacityLimiter:
        """Return Trio's limiter, in which the owners of tokens have them."""
        if self.limiter is None:
            self.limiter = trio.CapacityLimiter(self.total)
            for task in self.owners:
                self.limiter.acquire_on_behalf_of_nowait((self, task))
        return self.limiter


@final
@define(eq=False)
class GroupState:
    """The state of one scheduling group that its leases and its public object share."""

    record: GroupRecord
    share: Share
    capacity: Capacity


def new_group_state(name: str, capacity: float, shares: int) -> GroupState:
    """Return the state of a new group; the arguments have been checked."""
    tokens = Capacity(capacity)
    return GroupState(GroupRecord(name, tokens=tokens.book), Share(shares), tokens)
