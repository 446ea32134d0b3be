"""The tokens of one scheduling group, as the cache's `trio.CapacityLimiter` gives them out."""

from __future__ import annotations

from collections import OrderedDict

from attrs import Factory, define

from ..._core.policy.records import GroupRecord
from .tasks import Acquire, Group


@define(eq=False)
class Tokens:
    """First come, first served; a task has at most one, however many leases it nests."""

    index: int
    """Of the group, in `Application.groups`."""
    group: Group
    record: GroupRecord
    left: int = 0
    """Acquires that are still to come, or under way."""
    # Whoever gives up may be anywhere in the line.
    _waiting: OrderedDict[Acquire, None] = Factory(OrderedDict)

    def wait(self, acquire: Acquire) -> None:
        """Stand in line."""
        self._waiting[acquire] = None

    def give_up(self, acquire: Acquire) -> bool:
        """Leave the line; False for an acquire that is not in it."""
        if acquire not in self._waiting:
            return False
        del self._waiting[acquire]
        return True

    def stop_waiting(self) -> list[Acquire]:
        """Let nobody wait any longer; returns those who did."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def take(self, task: int) -> bool:
        owners, capacity = self.record.tokens.owners, self.group.capacity
        if task in owners:
            owners[task] += 1
        elif not self._waiting and (capacity is None or len(owners) < capacity):
            owners[task] = 1
        else:
            return False
        return True

    def give_back(self, task: int) -> Acquire | None:
        """Return the acquire that is served next; it has the token already."""
        owners, capacity = self.record.tokens.owners, self.group.capacity
        owners[task] -= 1
        if owners[task]:
            return None
        del owners[task]
        if self._waiting and capacity is not None and len(owners) < capacity:
            acquire, _ = self._waiting.popitem(last=False)
            owners[acquire.task] = 1
            return acquire
        return None
