"""The tokens of a scheduling group: one for each task, however many leases the task nests."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable
from typing import Protocol, final

import trio
from attrs import evolve
from trio.lowlevel import Task

from .._core.config import GroupLimits
from .._core.policy.records import GroupRecord, TokenBook
from .._core.policy.shares import Share


class TokenWait(Protocol):
    """One wait for a token; `Capacity` reports its end."""

    def over(self) -> None:
        """Note that the task no longer waits, for whatever reason."""

    def refused(self) -> None:
        """Note that the wait fails, as the group was closed; `over` follows when the task runs."""


@final
class Capacity:
    """The tokens of one group, and the tasks that own them.

    Using Trio's limiter would double the cost of a hit. So a limiter exists only while a task
    waits for a token, or once a user has asked for it.

    `owners`, `limiter` and `most` are public for `Lease`, whose hits take and give back a token
    inline when there is no limiter. The methods are the slow path, for all cases.
    """

    def __init__(self, total: float) -> None:
        self.book: TokenBook = TokenBook(strangers=self._strangers_have_some)
        self.owners: dict[Hashable, int] = self.book.owners  # {task: leases that share its token}
        self._set_total(total)
        self.limiter: trio.CapacityLimiter | None = None
        self._watched = False
        self._waiting: dict[trio.CancelScope, TokenWait] = {}  # {scope around a wait: wait}

    def _set_total(self, total: float) -> None:
        self.total: float = total
        """Number of tokens, while there is no limiter."""
        self.most: int = sys.maxsize if total == math.inf else int(total)
        """The same as an int, which is compared in a third of the time."""

    def take_nowait(self, task: Task) -> bool:
        """Take a token for `task`, or share the one it has; return False if it has to wait."""
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
        """Wait for a token for `task`, which has none; return False if the group was closed.

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
        """Undo one `take_nowait` or `take`; the last one gives back the token."""
        owners = self.owners
        held = owners[task]
        if held == 1:
            del owners[task]
            if self.limiter is not None:
                self.limiter.release_on_behalf_of((self, task))
        else:
            owners[task] = held - 1

    def resize(self, total: float) -> None:
        """Change the number of tokens: more end waits at once, fewer count as leases end."""
        self._set_total(total)
        if self.limiter is not None:
            self.limiter.total_tokens = total

    def refuse_waits(self) -> None:
        """Make all waits fail, as the group closes."""
        for scope, wait in self._waiting.items():
            wait.refused()
            scope.cancel()

    def watch(self) -> trio.CapacityLimiter:
        """Return Trio's limiter, which is kept from now on, as the user may change it."""
        self._watched = True
        return self._need_limiter()

    def count(self) -> tuple[int, float]:
        """Return the number of borrowed tokens, and of all tokens."""
        limiter = self.limiter  # once, as `repr` may be called in any thread
        if limiter is None:
            return len(self.owners), self.total
        return limiter.borrowed_tokens, limiter.total_tokens

    def _strangers_have_some(self) -> bool:
        return self.count()[0] > len(self.owners)

    def _need_limiter(self) -> trio.CapacityLimiter:
        """Return Trio's limiter; a new one is made with the tokens of all owners borrowed."""
        if self.limiter is None:
            self.limiter = limiter = trio.CapacityLimiter(math.inf)
            for task in self.owners:
                limiter.acquire_on_behalf_of_nowait((self, task))
            limiter.total_tokens = self.total  # maybe fewer than are borrowed, after a `resize`
        return self.limiter


@final
class GroupState:
    """The state of one scheduling group, shared by its leases and its `SchedulingGroup`."""

    __slots__ = ("capacity", "limits", "record", "share")

    def __init__(
        self, limits: GroupLimits, record: GroupRecord, share: Share, capacity: Capacity
    ) -> None:
        self.limits: GroupLimits = limits
        self.record: GroupRecord = record
        self.share: Share = share
        self.capacity: Capacity = capacity

    @staticmethod
    def new(name: str, limits: GroupLimits) -> GroupState:
        """Return the state of a new group; the caller has checked the limits."""
        tokens = Capacity(limits.capacity)
        record = GroupRecord(name, limits.max_size, limits.reserved_size, tokens=tokens.book)
        return GroupState(limits, record, Share(limits.shares), tokens)

    @property
    def now(self) -> GroupLimits:
        """The limits as they are; the application may have changed the limiter's tokens."""
        _, capacity = self.capacity.count()
        return evolve(self.limits, capacity=capacity)

    def resize(self, limits: GroupLimits) -> None:
        """Apply other limits, but for those of bytes, which are the policy's."""
        self.limits = limits
        self.share.shares = limits.shares
        self.capacity.resize(limits.capacity)
