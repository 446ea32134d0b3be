"""SIEVE: a hand walks from the oldest to the newest, and evicts the first that was not used again.

Instances keep the place that they got when they first rested, also while they run. The hand passes
over those that were used since it last passed, and over running ones; it stays where it evicted
one, and begins again at the oldest when it has passed the newest. Sizes do not matter. Modules have
a queue and a hand of their own.

"Used since" needs no mark at each use: an instance that has more `uses` than the hand saw last was.
A first use is that for which it was loaded, so one use is as good as none.

A hit pays for each used one that the hand passes, but nothing pays for a running one, or for one
that a group has reserved, which may be passed at each eviction. So for one victim the hand passes
`MOST_PASSED` of them at most; then it stays where it is, and the least recently used that can be
evicted is the victim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar, final

from attrs import frozen

from ..snapshot import SnapshotModule, SnapshotOrder, SnapshotResident
from .lifecycle import IDLE
from .lru import LRU
from .order import Allowed, OrderCopy
from .recency import Recency
from .records import Instance, Module
from .reservations import EVERY, Among, Reservations

T = TypeVar("T")
# Members that can't be evicted now that the hand passes for one victim; 4,096 would take 0.3 ms.
MOST_PASSED = 64
_SEEN = attrgetter("seen")


class _Place(Generic[T]):
    """Place of one member in its queue."""

    __slots__ = ("after", "before", "member", "seen")

    def __init__(self, member: T, seen: int) -> None:
        self.member = member
        self.seen = seen
        self.before: Any = None
        self.after: Any = None


class _Queue(Generic[T]):
    """Members in the order in which they were added, and a hand; a ring like `LRU`."""

    __slots__ = ("_hand", "after", "before", "places")

    def __init__(self) -> None:
        self.places: dict[T, _Place[T]] = {}
        self.before: Any = self
        self.after: Any = self
        self._hand: Any = self

    def add(self, member: T, seen: int) -> None:
        """Add `member` as the newest."""
        place = self.places[member] = _Place(member, seen)
        last = self.before
        place.before, place.after = last, self
        last.after = self.before = place

    def remove(self, member: T) -> None:
        """Remove `member`; a hand that points at it moves on to the next newer one."""
        place = self.places.pop(member)
        if self._hand is place:
            self._hand = place.after
        place.before.after, place.after.before = place.after, place.before

    def replace(self, member: T, other: T) -> None:
        """Put `other` in the place of `member`."""
        self.places[member].member = other
        # In the order of the ring: see `copy`.
        self.places = {place.member: place for place in self.places.values()}

    def copy(self) -> _QueueCopy[T]:
        """Return the members in order, with what was seen of them, and the hand's."""
        hand = self._hand
        # A dictionary keeps the order of the ring: both only append, except in `replace`.
        return _QueueCopy(
            list(self.places),
            list(map(_SEEN, self.places.values())),
            None if hand is self else hand.member,
        )

    def put_hand(self, member: T) -> None:
        """Put the hand at a member."""
        self._hand = self.places[member]

    def stop(self, barred: Callable[[T], object], used: Callable[[_Place[T]], bool]) -> T | None:
        """Move the hand to the next member to evict; return that, or None after `MOST_PASSED`.

        In two rounds it sees each member twice, and so finds one if there is any.

        Args:
            barred: returns whether a member can't be evicted now.
            used: returns whether a member was used since it was last asked about it.
        """
        place, rounds, passed = self._hand, 0, 0
        while rounds < 3:
            if passed == MOST_PASSED:
                self._hand = place
                break
            if place is self:
                place, rounds = self.after, rounds + 1
                if place is self:
                    break
            elif barred(place.member):
                place, passed = place.after, passed + 1
            elif used(place):
                place = place.after
            else:
                self._hand = place
                member: T = place.member
                return member
        return None


@frozen(eq=False)
class _QueueCopy(Generic[T]):
    members: Sequence[T]
    seen: Sequence[int]
    hand: T | None

    def fields(self) -> dict[T, dict[str, Any]]:
        """Return the fields of each member in a snapshot."""
        places = enumerate(zip(self.members, self.seen, strict=True))
        return {member: {"place": place, "seen": seen} for place, (member, seen) in places}


@final
class _SieveCopy:
    """What was remembered at one moment."""

    def __init__(self, instances: _QueueCopy[Instance], modules: _QueueCopy[Module]) -> None:
        self._instances, self._modules = instances, modules
        # Made when it is first asked for, in another thread.
        self._of_instances: dict[Instance, dict[str, Any]] | None = None
        self._of_modules: dict[Module, dict[str, Any]] | None = None

    def of_instance(self, instance: Instance, rested: int) -> dict[str, Any]:  # noqa: ARG002
        """Return its place, and what was seen of it."""
        if self._of_instances is None:
            self._of_instances = self._instances.fields()
        return self._of_instances.get(instance, {})

    def of_module(self, module: Module, rested: int) -> dict[str, Any]:  # noqa: ARG002
        """Return its place, and what was seen of it."""
        if self._of_modules is None:
            self._of_modules = self._modules.fields()
        return self._of_modules.get(module, {})

    def orders(self) -> tuple[SnapshotOrder, ...]:
        """Return where the hands stand."""
        instance, module = self._instances.hand, self._modules.hand
        return (
            SnapshotOrder(by="instances", hand=None if instance is None else instance.number),
            SnapshotOrder(by="modules", hand=None if module is None else module.number),
        )


@final
class Sieve:
    """The eviction order of SIEVE.

    Args:
        idle: idle instances, in order of last use.
        evictable: modules that have only idle instances, in order of last use.
        reservations: what groups have reserved.
    """

    def __init__(
        self, idle: LRU[Instance], evictable: LRU[Module], reservations: Reservations
    ) -> None:
        self._oldest = Recency(idle, evictable, reservations)
        self._reservations = reservations
        self._instances: _Queue[Instance] = _Queue()
        self._modules: _Queue[Module] = _Queue()

    @property
    def attentive(self) -> bool:
        """True: it must be told what happens."""
        return True

    def settled(self, instance: Instance, changed: bool) -> None:
        """Add an instance that is not known yet, as the newest."""
        self._oldest.settled(instance, changed)
        if instance in self._instances.places:
            return
        self._instances.add(instance, max(instance.uses, 1))
        self._add_module(instance)

    def _add_module(self, instance: Instance) -> None:
        module = instance.module
        place = self._modules.places.get(module)
        if place is None:
            self._modules.add(module, 0)
        else:
            place.seen = -1

    def left(self, instance: Instance) -> None:
        """Remove an instance, and with the last one its module."""
        self._oldest.left(instance)
        if instance not in self._instances.places:
            return
        self._instances.remove(instance)
        self._leave_module(instance)

    def replaced(self, old: Instance, new: Instance, rests: int) -> None:
        """Put another instance in the place of one, in the queue, too."""
        self._oldest.replaced(old, new, rests)
        self._instances.replace(old, new)
        self._leave_module(old)
        self._add_module(new)

    def _leave_module(self, instance: Instance) -> None:
        module = instance.module
        if not any(other in self._instances.places for other in module.instances):
            self._modules.remove(module)

    def regroup(self, instances: Iterable[Instance]) -> None:
        """Keep instances by group, to find the least recently used one that may go."""
        self._oldest.regroup(instances)

    def victim(
        self,
        rests: int,
        *,
        by_count: bool = False,  # noqa: ARG002
        among: Among = EVERY,
        where: Allowed | None = None,
    ) -> Instance | None:
        """Return the next idle instance that was not used again since the hand last passed it."""

        def barred(it: Instance) -> bool:
            return it.state is not IDLE or not among(it) or not (where is None or where(it))

        oldest = self._oldest.victim(rests, among=among, where=where)
        return oldest and (self._instances.stop(barred, _used) or oldest)

    def victim_module(
        self, rests: int, *, spare: bool = False, but: Module | None = None
    ) -> Module | None:
        """Return the next module with none running that was not used again since.

        It was used again if one of its instances was a hit, or another one came.
        """
        keeps = self._reservations.keeps

        def barred(it: Module) -> bool:
            return it.running > 0 or it is but or (spare and keeps(it) is not None)

        def used(place: _Place[Module]) -> bool:
            seen, place.seen = place.seen, rests
            instances = place.member.instances
            return seen < 0 or any(it.uses > 1 and it.rested > seen for it in instances)

        oldest = self._oldest.victim_module(rests, spare=spare, but=but)
        return oldest and (self._modules.stop(barred, used) or oldest)

    def copy(self) -> OrderCopy:
        """Return the places, and where the hands stand."""
        return _SieveCopy(self._instances.copy(), self._modules.copy())

    def restore(
        self,
        instances: Mapping[Instance, SnapshotResident],
        modules: Mapping[Module, SnapshotModule],
        orders: Sequence[SnapshotOrder],
        rests: int,
    ) -> None:
        """Put all in their places, and the hands where they stood."""
        hands = {order.by: order.hand for order in orders}
        _refill(self._instances, instances, hands.get("instances"))
        _refill(self._modules, modules, hands.get("modules"))
        self._oldest.restore(instances, modules, orders, rests)


def _refill(queue: _Queue[Any], items: Mapping[Any, Any], hand: int | None) -> None:
    placed = [(item.place, item.seen, one) for one, item in items.items() if item.place is not None]
    for _, seen, member in sorted(placed, key=_place):
        queue.add(member, seen)
        if member.number == hand:
            queue.put_hand(member)


def _place(placed: tuple[int, int, object]) -> int:
    return placed[0]


def _used(place: _Place[Instance]) -> bool:
    uses = max(place.member.uses, 1)
    used, place.seen = uses != place.seen, uses
    return used
