"""Greedy-dual: what is least worth its bytes is evicted first, and what stays grows old.

The priority of an idle instance is

    floor when it last became idle + uses * worth / size

where the *floor* is the priority of the last victim: so an instance that is not used again falls
behind, however good it was. Evictions by count take 1 for the size. Those of modules, for code,
add up `uses * worth` of the instances, and divide by the size of the code. Each of the three has a
floor of its own.

Nothing is computed at a hit, which only raises a priority: see `parts`.

The floor at an earlier rest is looked up in a list of (rests, floor) that grows with each eviction.
When it has four times as many pairs as there are members, the floors of all members are noted, and
the list begins anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, final

from attrs import frozen

from ..snapshot import SnapshotModule, SnapshotOrder, SnapshotResident
from . import parts
from .lifecycle import IDLE
from .order import Allowed, OrderCopy
from .parts import Parts
from .records import Instance, Module, rested, running, runs
from .reservations import EVERY, SPARE, Among, Keepers, Reservations

T = TypeVar("T")


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

    def copy(self) -> Mapping[Instance, tuple[float, float]]:
        """Return the seconds of loading that are kept of each instance: its own, its module's."""

    def restore(self, instances: Mapping[Instance, SnapshotResident]) -> None:
        """Keep what a copy had of these instances."""


class _Ranking(Generic[T]):
    """Members by priority, in `parts`, and the floor.

    Args:
        busy: returns whether a member can't be evicted now.
        park: is told of a busy member that was left out until `doubt` is called.
        stamp: returns the number of the last rest of a member.
        value: returns its priority above the floor.
        others: what else `Parts` takes.
    """

    __slots__ = ("_floors", "_noted", "_rests", "_stamp", "_value", "parts")

    def __init__(
        self,
        busy: Callable[[T], object],
        park: Callable[[T], None],
        stamp: Callable[[T], int],
        value: Callable[[T], float],
        **others: Any,
    ) -> None:
        self._stamp, self._value = stamp, value
        self.parts: Parts[T] = Parts(busy, park, stamp, self.priority, **others)
        # The floor was `_floors[i]` from the rest after `_rests[i]` on.
        self._rests = [0]
        self._floors = [0.0]
        self._noted: dict[T, tuple[int, float]] = {}  # {member: (rest, floor then)}

    def remove(self, member: T) -> None:
        """Remove `member`, if it is in."""
        self.parts.remove(member)
        self._noted.pop(member, None)

    def replace(self, old: T, new: T) -> None:
        """Let `new`, which rested last when `old` did, have the floor of then."""
        if old in self._noted:
            self._noted[new] = self._noted[old]

    def least(self, rests: int, among: Among = EVERY, but: T | None = None) -> T | None:
        """Return the member with the least priority, the first to rest if equal; raise the floor.

        Leaves out those that are busy, those that are not `among` them, and `but`.
        """
        entry = self.parts.least(among, but)
        if entry is None:
            return None
        self._raise(entry[0], rests)
        member: T = entry[2]
        return member

    def least_where(self, rests: int, where: Callable[[T], bool]) -> T | None:
        """Return the same of those for which `where` is true, by looking at all."""
        found = [
            (self.priority(it, self._stamp(it)), self._stamp(it), it)
            for it in self.parts.entries
            if where(it)
        ]
        if not found:
            return None
        key, _, member = min(found, key=lambda entry: entry[:2])
        self._raise(key, rests)
        return member

    def priority(self, member: T, rest: int) -> float:
        """Return the priority of a member that rested last at that rest."""
        return self._floor(member, rest) + self._value(member)

    def copy(self) -> _HeapCopy[T]:
        """Return the members, and the floors at their rests."""
        noted = self._noted.copy()
        return _HeapCopy(self.parts.entries.copy(), noted, self._rests.copy(), self._floors.copy())

    def restore(self, floors: Mapping[T, float], floor: float, rests: int) -> None:
        """Add members with the floors at their last rests, and take over the floor."""
        for member, noted in floors.items():
            self._noted[member] = self._stamp(member), noted
            self.parts.doubt(member)
        self._rests, self._floors = [rests], [floor]

    def _floor(self, member: T, rest: int) -> float:
        """Return the floor at a rest of `member`."""
        return _floor_at(member, rest, self._noted, self._rests, self._floors)

    def _raise(self, key: float, rests: int) -> None:
        floor = max(key, self._floors[-1])
        if self._rests[-1] == rests:
            self._floors[-1] = floor
            return
        self._rests.append(rests)
        self._floors.append(floor)
        if len(self._rests) > 4 * len(self.parts.entries) + parts.SLACK:
            stamps = [(member, self._stamp(member)) for member in self.parts.entries]
            self._noted = {member: (rest, self._floor(member, rest)) for member, rest in stamps}
            self._rests, self._floors = [rests], [floor]


def _floor_at(
    member: T,
    rest: int,
    noted: Mapping[T, tuple[int, float]],
    rests: Sequence[int],
    floors: Sequence[float],
) -> float:
    known = noted.get(member)
    if known is not None and known[0] == rest:
        return known[1]
    return floors[max(bisect_right(rests, rest - 1) - 1, 0)]


@frozen(eq=False)
class _HeapCopy(Generic[T]):
    members: Mapping[T, object]
    noted: Mapping[T, tuple[int, float]]
    rests: Sequence[int]
    floors: Sequence[float]

    def floor(self, member: T, rest: int) -> float | None:
        """Return the floor at a rest of a member; None if it is none."""
        if member not in self.members:
            return None
        return _floor_at(member, rest, self.noted, self.rests, self.floors)


@final
@frozen(eq=False)
class _GreedyCopy:
    """What was remembered at one moment."""

    sizes: _HeapCopy[Instance]
    counts: _HeapCopy[Instance] | None
    modules: _HeapCopy[Module] | None
    last: Mapping[Module, int]
    seconds: Mapping[Instance, tuple[float, float]]

    def of_instance(self, instance: Instance, rested: int) -> dict[str, Any]:
        """Return the floors at its last rest, and the seconds of its loads."""
        own, module = self.seconds.get(instance, (None, None))
        return {
            "floor_by_size": self.sizes.floor(instance, rested),
            "floor_by_count": self.counts and self.counts.floor(instance, rested),
            "own_load_seconds": own,
            "module_load_seconds": module,
        }

    def of_module(self, module: Module, rested: int) -> dict[str, Any]:
        """Return the floor at the last rest of its instances."""
        last = self.last.get(module)
        rested = max(rested, last or 0)
        return {
            "floor_by_code": self.modules and self.modules.floor(module, rested),
            "last_rest": last,
        }

    def orders(self) -> tuple[SnapshotOrder, ...]:
        """Return the floor of each priority in use."""
        heaps = ("size", self.sizes), ("count", self.counts), ("code", self.modules)
        return tuple(SnapshotOrder(by=by, floor=it.floors[-1]) for by, it in heaps if it)


@final
class GreedyDual:
    """The eviction order of GDSF, and of "cost", which differ in what they save: the `worth`.

    The rankings for counts and for modules are made when something is first evicted from them.
    """

    def __init__(self, worth: Worth, reservations: Reservations) -> None:
        self._worth = worth
        self._reservations = reservations
        self._keepers = Keepers(reservations)
        self._sizes = self._ranking(self._by_size)
        self._counts: _Ranking[Instance] | None = None
        self._modules: _Ranking[Module] | None = None
        self._last: dict[Module, int] = {}  # {module: last rest of an instance that has left}
        self._busy: dict[Module, None] = {}  # modules left out

    @property
    def attentive(self) -> bool:
        """True: it must be told what happens."""
        return True

    def settled(self, instance: Instance, changed: bool) -> None:
        """Add an instance that is not known yet, or that was left out while it was running.

        Its worth is computed anew if it has `changed`.
        """
        module = instance.module
        new = instance not in self._sizes.parts.entries
        if new:
            self._doubt_other(module, instance)
        if new or changed:
            self._worth.settled(instance)
        for it in self._by_instance():
            if new or changed or it.parts.entries[instance] is None or it.parts.moved(instance):
                it.parts.doubt(instance)
        self._doubt_module(module, new or changed)

    def left(self, instance: Instance) -> None:
        """Remove an instance, and with the last one its module."""
        if instance not in self._sizes.parts.entries:
            return
        self._worth.left(instance)
        for it in self._by_instance():
            it.remove(instance)
        module = instance.module
        self._doubt_other(module, None)
        if any(other in self._sizes.parts.entries for other in module.instances):
            self._last[module] = max(self._last.get(module, 0), rested(instance))
            self._doubt_module(module, True)
            return
        self._last.pop(module, None)
        if self._modules is not None:
            self._modules.remove(module)
            self._busy.pop(module, None)
            self._keepers.forget(module)

    def replaced(self, old: Instance, new: Instance, rests: int) -> None:
        """Put another instance in the place of one: it has the same floors and uses."""
        for it in self._by_instance():
            it.replace(old, new)
        self.left(old)
        for it in self._by_instance():
            it.parts.expunge(old)
        self._last[new.module] = rests
        self.settled(new, True)

    def regroup(self, instances: Iterable[Instance]) -> None:
        """Keep the known ones of these instances by group, as a group has other limits."""
        for instance in instances:
            if instance in self._sizes.parts.entries:
                for it in self._by_instance():
                    if it.parts.moved(instance):
                        it.parts.doubt(instance)
                self._doubt_module(instance.module, False)

    def victim(
        self,
        rests: int,
        *,
        by_count: bool = False,
        among: Among = EVERY,
        where: Allowed | None = None,
    ) -> Instance | None:
        """Return the idle instance with the least priority."""
        ranking = self._sizes
        if by_count:
            if self._counts is None:
                self._counts = self._ranking(self._by_count)
                _fill(self._counts, self._sizes.parts.entries)
            ranking = self._counts
        if where is None:
            return ranking.least(rests, among)
        return ranking.least_where(rests, lambda it: it.state is IDLE and among(it) and where(it))

    def victim_module(
        self, rests: int, *, spare: bool = False, but: Module | None = None
    ) -> Module | None:
        """Return the module with the least priority among those that have only idle instances."""
        ranking = self._modules
        if ranking is None:
            ranking = self._modules = self._module_ranking()
            known = self._sizes.parts.entries
            _fill(ranking, dict.fromkeys(it.module for it in known))
        for module in [module for module in self._busy if not module.running]:
            del self._busy[module]
            ranking.parts.doubt(module)
        return ranking.least(rests, SPARE if spare else EVERY, but)

    def _module_ranking(self) -> _Ranking[Module]:
        keepers = self._keepers
        return _Ranking(
            *(running, self._leave_out, self._used, self._by_code),
            home=keepers.home,
            elsewhere=keepers.elsewhere,
        )

    def _ranking(self, value: Callable[[Instance], float]) -> _Ranking[Instance]:
        reservations = self._reservations
        return _Ranking(
            *(runs, Instance.report_rest, rested, value),
            home=reservations.home,
            limited=reservations.limited,
        )

    def copy(self) -> OrderCopy:
        """Return the members, floors and seconds; priorities are computed from them."""
        return _GreedyCopy(
            self._sizes.copy(),
            None if self._counts is None else self._counts.copy(),
            None if self._modules is None else self._modules.copy(),
            self._last.copy(),
            self._worth.copy(),
        )

    def restore(
        self,
        instances: Mapping[Instance, SnapshotResident],
        modules: Mapping[Module, SnapshotModule],
        orders: Sequence[SnapshotOrder],
        rests: int,
    ) -> None:
        """Take over members, floors and seconds; all priorities are computed anew when needed."""
        known = {one: it for one, it in instances.items() if it.floor_by_size is not None}
        self._worth.restore(known)
        self._last = {one: it.last_rest for one, it in modules.items() if it.last_rest is not None}
        floors = {order.by: order.floor or 0.0 for order in orders}
        by_size = {one: it.floor_by_size or 0.0 for one, it in known.items()}
        self._sizes.restore(by_size, floors.get("size", 0.0), rests)
        if "count" in floors:
            self._counts = self._ranking(self._by_count)
            by_count = {one: it.floor_by_count or 0.0 for one, it in known.items()}
            self._counts.restore(by_count, floors["count"], rests)
        if "code" in floors:
            self._modules = self._module_ranking()
            of_known = dict.fromkeys(one.module for one in known)
            by_code = {one: modules[one].floor_by_code or 0.0 for one in of_known}
            self._modules.restore(by_code, floors["code"], rests)

    def _by_instance(self) -> Iterable[_Ranking[Instance]]:
        return (self._sizes,) if self._counts is None else (self._sizes, self._counts)

    def _doubt_other(self, module: Module, instance: Instance | None) -> None:
        """Doubt the only other instance of a module, which was, or is now, the only one."""
        if not self._worth.shared:
            return
        only = None
        for other in module.instances:
            if other is not instance and other in self._sizes.parts.entries:
                if only is not None:
                    return
                only = other
        if only is not None:
            for it in self._by_instance():
                if it.parts.entries[only] is not None:
                    it.parts.doubt(only)

    def _doubt_module(self, module: Module, changed: bool) -> None:
        if self._modules is None or module in self._busy:
            return
        if changed or self._modules.parts.moved(module):
            self._modules.parts.doubt(module)

    def _by_count(self, instance: Instance) -> float:
        others = instance.module.instances
        alone = not self._worth.shared or not any(
            other is not instance and other in self._sizes.parts.entries for other in others
        )
        return max(instance.uses, 1) * self._worth.of(instance, alone=alone)

    def _by_size(self, instance: Instance) -> float:
        return self._by_count(instance) / max(instance.size, 1)

    def _by_code(self, module: Module) -> float:
        total = 0.0
        for instance in module.instances:
            if instance in self._sizes.parts.entries:
                total += max(instance.uses, 1) * self._worth.with_code(instance)
        return total / max(module.code_size, 1)

    def _used(self, module: Module) -> int:
        return max(module.rested, self._last.get(module, 0))

    def _leave_out(self, module: Module) -> None:
        self._busy[module] = None


def _fill(ranking: _Ranking[T], members: Iterable[T]) -> None:
    for member in members:
        ranking.parts.doubt(member)
