"""The tokens of one scheduling group, as the cache's `trio.CapacityLimiter` gives them out."""

from __future__ import annotations

from collections import deque

from attrs import Factory, define

from .._core.records import GroupRecord
from .tasks import Acquire, Group


@define(eq=False)
class Tokens:
    """First come, first served; a task has at most one, however many leases it nests."""

    index: int
    """Of the group, in `Application.groups`."""
    group: Group
    record: GroupRecord
    waiting: deque[Acquire] = Factory(deque)
    left: int = 0
    """Acquires that are still to come, or under way."""

    def take(self, task: int) -> bool:
        owners, capacity = self.record.tokens.owners, self.group.capacity
        if task in owners:
            owners[task] += 1
        elif not self.waiting and (capacity is None or len(owners) < capacity):
            owners[task] = 1
        else:
            return False
        return True

    def give_back(self, task: int) -> Acquire | None:
        """Gives who is served next; it has the token already."""
        owners, capacity = self.record.tokens.owners, self.group.capacity
        owners[task] -= 1
        if owners[task]:
            return None
        del owners[task]
        if self.waiting and capacity is not None and len(owners) < capacity:
            acquire = self.waiting.popleft()
            owners[acquire.task] = 1
            return acquire
        return None
