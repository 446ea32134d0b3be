"""Greedy-dual: what is least worth its bytes is evicted first, and what stays grows old.

The priority of an idle instance is

    floor when it last became idle + uses * worth / size

where the *floor* is the priority of the last victim: so an instance that is not used again falls
behind, however good it was. Evictions by count take 1 for the size. Those of modules, for code,
add up `uses * worth` of the instances, and divide by the size of the code. Each of the three has a
floor of its own.

Nothing is computed at a hit. A heap holds one entry for each member, whose key is its priority as
it was at some earlier rest. A later use only raises a priority, so a key is never above it: the
least key is taken, computed anew if its member rested since, and put back, until one is up to date.
Where a priority may have fallen, the member gets an entry below all others (`doubt`), so that it is
computed anew first; the old entry is skipped when it comes up.

The floor at an earlier rest is looked up in a list of (rests, floor) that grows with each eviction.
When it has four times as many pairs as there are members, the floors of all members are noted, and
the list begins anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar, final

from .lifecycle import IDLE
from .order import Allowed, AllowedModule
from .records import Instance, Module

T = TypeVar("T")
# Entries and floors that are kept whatever the number of members.
SLACK = 64


class Worth(Protocol):
    """What is saved by each use of an instance that is in the cache."""

    shared: bool
    """Whether the worth of an instance depends on there being others of its module."""

    def settled(self, instance: Instance) -> None:
        """Note that `instance` rests for the first time, or with another size, or as a seat."""

    def left(self, instance: Instance) -> None:
        """Forget `instance`."""

    def of(self, instance: Instance, *, alone: bool) -> float:
        """Return what `instance` saves; `alone` if it is the only one of its module."""

    def with_code(self, instance: Instance) -> float:
        """Return what `instance` and the code of its module save together."""


class _Heap(Generic[T]):
    """Members by priority, and the floor.

    Args:
        busy: returns whether a member can't be evicted now.
        park: is told of a busy member that was left out until `doubt` is called.
        stamp: returns the number of the last rest of a member.
        value: returns its priority above the floor.
    """

    __slots__ = (
        *("_busy", "_doubts", "_floors", "_heap", "_noted", "_park", "_rests"),
        *("_stamp", "_value", "entries"),
    )

    def __init__(
        self,
        busy: Callable[[T], object],
        park: Callable[[T], None],
        stamp: Callable[[T], int],
        value: Callable[[T], float],
    ) -> None:
        self._busy, self._park, self._stamp, self._value = busy, park, stamp, value
        # (key, its rest, member). The key of an entry that must be computed anew is below zero, and
        # the only one of that value; of others, the rest is. So no two members are ever compared.
        self._heap: list[tuple[float, int, T]] = []
        self.entries: dict[T, tuple[float, int, T] | None] = {}
        """The valid entry of each member; None while it is left out."""
        self._doubts = 0
        # The floor was `_floors[i]` from the rest after `_rests[i]` on.
        self._rests = [0]
        self._floors = [0.0]
        self._noted: dict[T, tuple[int, float]] = {}  # {member: (rest, floor then)}

    def doubt(self, member: T) -> None:
        """Add `member`, or have its priority computed anew, as it may have fallen."""
        entry = self.entries.get(member)
        if entry is not None and entry[0] < 0:
            return
        self._doubts += 1
        entry = self.entries[member] = (-float(self._doubts), -1, member)
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self.entries) + SLACK:
            self._heap = [entry for entry in self.entries.values() if entry is not None]
            heapify(self._heap)

    def remove(self, member: T) -> None:
        """Remove `member`, if it is in."""
        self.entries.pop(member, None)
        self._noted.pop(member, None)

    def least(self, rests: int, allowed: Callable[[T], bool] | None = None) -> T | None:
        """Return the member with the least priority, the first to rest if equal; raise the floor.

        Leaves out those that are busy or not allowed.
        """
        heap, entries = self._heap, self.entries
        refused = []
        least = None
        while heap:
            entry = heap[0]
            key, rest, member = entry
            if entries.get(member) is not entry:
                heappop(heap)
            elif self._busy(member):
                heappop(heap)
                entries[member] = None
                self._park(member)
            elif rest != (stamp := self._stamp(member)):
                priority = self._floor(member, stamp) + self._value(member)
                entries[member] = entry = (priority, stamp, member)
                heapreplace(heap, entry)
            elif allowed is not None and not allowed(member):
                refused.append(heappop(heap))
            else:
                least = member
                self._raise(key, rests)
                break
        for entry in refused:
            heappush(heap, entry)
        return least

    def _floor(self, member: T, rest: int) -> float:
        """Return the floor at a rest of `member`."""
        noted = self._noted.get(member)
        if noted is not None and noted[0] == rest:
            return noted[1]
        return self._floors[max(bisect_right(self._rests, rest - 1) - 1, 0)]

    def _raise(self, key: float, rests: int) -> None:
        floor = max(key, self._floors[-1])
        if self._rests[-1] == rests:
            self._floors[-1] = floor
            return
        self._rests.append(rests)
        self._floors.append(floor)
        if len(self._rests) > 4 * len(self.entries) + SLACK:
            stamps = [(member, self._stamp(member)) for member in self.entries]
            self._noted = {member: (rest, self._floor(member, rest)) for member, rest in stamps}
            self._rests, self._floors = [rests], [floor]


@final
class GreedyDual:
    """The eviction order of GDSF, and of "cost", which differ in what they save: the `worth`.

    The heaps for counts and for modules are made when something is first evicted from them.
    """

    def __init__(self, worth: Worth) -> None:
        self._worth = worth
        self._sizes = _Heap(_runs, _leave_out, _rested, self._by_size)
        self._counts: _Heap[Instance] | None = None
        self._modules: _Heap[Module] | None = None
        self._last: dict[Module, int] = {}  # {module: last rest of an instance that has left}
        self._busy: dict[Module, None] = {}  # modules left out of the heap

    def settled(self, instance: Instance, changed: bool) -> None:
        """Add an instance that is not known yet, or that was left out while it was running.

        Its worth is computed anew if it has `changed`.
        """
        module = instance.entry.function.module
        new = instance not in self._sizes.entries
        if new:
            self._doubt_other(module, instance)
        if new or changed:
            self._worth.settled(instance)
        for heap in self._heaps():
            if new or changed or heap.entries[instance] is None:
                heap.doubt(instance)
        if new or changed:
            self._doubt_module(module)

    def left(self, instance: Instance) -> None:
        """Remove an instance, and with the last one its module."""
        if instance not in self._sizes.entries:
            return
        self._worth.left(instance)
        for heap in self._heaps():
            heap.remove(instance)
        module = instance.entry.function.module
        self._doubt_other(module, None)
        if self._modules is None:
            return
        if any(other in self._sizes.entries for other in module.instances):
            self._last[module] = max(self._last.get(module, 0), instance.rested)
            self._doubt_module(module)
        else:
            self._modules.remove(module)
            self._last.pop(module, None)
            self._busy.pop(module, None)

    def victim(
        self, rests: int, *, by_count: bool = False, allowed: Allowed | None = None
    ) -> Instance | None:
        """Return the idle instance with the least priority."""
        if not by_count:
            return self._sizes.least(rests, allowed)
        if self._counts is None:
            self._counts = _Heap(_runs, _leave_out, _rested, self._by_count)
            _fill(self._counts, self._sizes.entries)
        return self._counts.least(rests, allowed)

    def victim_module(self, rests: int, allowed: AllowedModule | None = None) -> Module | None:
        """Return the module with the least priority among those that have only idle instances."""
        heap = self._modules
        if heap is None:
            heap = self._modules = _Heap(_running, self._leave_out, self._used, self._by_code)
            _fill(heap, dict.fromkeys(it.entry.function.module for it in self._sizes.entries))
        for module in [module for module in self._busy if not module.running]:
            del self._busy[module]
            heap.doubt(module)
        return heap.least(rests, allowed)

    def _heaps(self) -> Iterable[_Heap[Instance]]:
        return (self._sizes,) if self._counts is None else (self._sizes, self._counts)

    def _doubt_other(self, module: Module, instance: Instance | None) -> None:
        """Doubt the only other instance of a module, which was, or is now, the only one."""
        if not self._worth.shared:
            return
        only = None
        for other in module.instances:
            if other is not instance and other in self._sizes.entries:
                if only is not None:
                    return
                only = other
        if only is not None:
            for heap in self._heaps():
                if heap.entries[only] is not None:
                    heap.doubt(only)

    def _doubt_module(self, module: Module) -> None:
        if self._modules is not None and module not in self._busy:
            self._modules.doubt(module)

    def _by_count(self, instance: Instance) -> float:
        others = instance.entry.function.module.instances
        alone = not self._worth.shared or not any(
            other is not instance and other in self._sizes.entries for other in others
        )
        return max(instance.uses, 1) * self._worth.of(instance, alone=alone)

    def _by_size(self, instance: Instance) -> float:
        return self._by_count(instance) / max(instance.size, 1)

    def _by_code(self, module: Module) -> float:
        total = 0.0
        for instance in module.instances:
            if instance in self._sizes.entries:
                total += max(instance.uses, 1) * self._worth.with_code(instance)
        return total / max(module.code_size, 1)

    def _used(self, module: Module) -> int:
        last = max((instance.rested for instance in module.instances), default=0)
        return max(last, self._last.get(module, 0))

    def _leave_out(self, module: Module) -> None:
        self._busy[module] = None


def _fill(heap: _Heap[T], members: Iterable[T]) -> None:
    for member in members:
        heap.doubt(member)


def _runs(instance: Instance) -> bool:
    return instance.state is not IDLE


def _running(module: Module) -> int:
    return module.running


def _rested(instance: Instance) -> int:
    return instance.rested


def _leave_out(instance: Instance) -> None:
    """Have the next rest of a running instance reported."""
    instance.resting_size = -1
