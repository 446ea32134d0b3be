"""The tokens of one scheduling group, granted as by the cache's `trio.CapacityLimiter`."""

from __future__ import annotations

from collections import OrderedDict

from attrs import Factory, define

from ..._core.policy.records import GroupRecord
from .tasks import Acquire, Group


@define(eq=False)
class Tokens:
    """Grants tokens, first come, first served; a task has at most one, for all its leases."""

    index: int
    """Index of the group in `Application.groups`."""
    group: Group
    record: GroupRecord
    left: int = 0
    """Number of acquires still to come, or under way."""
    capacity: int | None = Factory(lambda self: self.group.opened.capacity_tokens, takes_self=True)
    """Number of tokens; None: no limit."""
    # Ordered, and quick to remove from at any position, as any waiter may give up.
    _waiting: OrderedDict[Acquire, None] = Factory(OrderedDict)

    def wait(self, acquire: Acquire) -> None:
        """Add an acquire to the queue."""
        self._waiting[acquire] = None

    def give_up(self, acquire: Acquire) -> bool:
        """Remove an acquire from the queue; return False if it is not in it."""
        if acquire not in self._waiting:
            return False
        del self._waiting[acquire]
        return True

    def stop_waiting(self) -> list[Acquire]:
        """Empty the queue; return the acquires that waited."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def take(self, task: int) -> bool:
        owners, capacity = self.record.tokens.owners, self.capacity
        if task in owners:
            owners[task] += 1
        elif not self._waiting and (capacity is None or len(owners) < capacity):
            owners[task] = 1
        else:
            return False
        return True

    def give_back(self, task: int) -> Acquire | None:
        """Return a token; give back the acquire that gets it next, or None."""
        owners, capacity = self.record.tokens.owners, self.capacity
        owners[task] -= 1
        if owners[task]:
            return None
        del owners[task]
        if self._waiting and capacity is not None and len(owners) < capacity:
            acquire, _ = self._waiting.popitem(last=False)
            owners[acquire.task] = 1
            return acquire
        return None
