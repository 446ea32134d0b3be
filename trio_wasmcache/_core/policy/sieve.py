"""SIEVE: a hand walks from the oldest to the newest, and evicts the first that was not used again.

Instances keep the place that they got when they first rested, also while they run. The hand passes
over those that were used since it last passed, and over running ones; it stays where it evicted
one, and begins again at the oldest when it has passed the newest. Sizes do not matter. Modules have
a queue and a hand of their own.

"Used since" needs no mark at each use: an instance that has more `uses` than the hand saw last was.
A first use is that for which it was loaded, so one use is as good as none.

A hit pays for each used one that the hand passes, but nothing pays for a running one, which may be
passed at each eviction. So for one victim the hand passes `MOST_PASSED` of them at most; then it
stays where it is, and the least recently used that can be evicted is the victim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, final

from .lifecycle import IDLE
from .lru import LRU
from .order import Allowed, AllowedModule
from .records import Instance, Module

T = TypeVar("T")
# Members that can't be evicted now that the hand passes for one victim; 4,096 would take 0.3 ms.
MOST_PASSED = 64


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


@final
class Sieve:
    """The eviction order of SIEVE.

    Args:
        idle: idle instances, in order of last use.
        evictable: modules that have only idle instances, in order of last use.
    """

    def __init__(self, idle: LRU[Instance], evictable: LRU[Module]) -> None:
        self._idle, self._evictable = idle, evictable
        self._instances: _Queue[Instance] = _Queue()
        self._modules: _Queue[Module] = _Queue()

    def settled(self, instance: Instance, changed: bool) -> None:  # noqa: ARG002
        """Add an instance that is not known yet, as the newest."""
        if instance in self._instances.places:
            return
        self._instances.add(instance, max(instance.uses, 1))
        module = instance.entry.function.module
        place = self._modules.places.get(module)
        if place is None:
            self._modules.add(module, 0)
        else:
            place.seen = -1

    def left(self, instance: Instance) -> None:
        """Remove an instance, and with the last one its module."""
        if instance not in self._instances.places:
            return
        self._instances.remove(instance)
        module = instance.entry.function.module
        if not any(other in self._instances.places for other in module.instances):
            self._modules.remove(module)

    def victim(
        self,
        rests: int,  # noqa: ARG002
        *,
        by_count: bool = False,  # noqa: ARG002
        allowed: Allowed | None = None,
    ) -> Instance | None:
        """Return the next idle instance that was not used again since the hand last passed it."""

        def barred(instance: Instance) -> bool:
            return instance.state is not IDLE or (allowed is not None and not allowed(instance))

        oldest = next((it for it in self._idle if allowed is None or allowed(it)), None)
        return oldest and (self._instances.stop(barred, _used) or oldest)

    def victim_module(self, rests: int, allowed: AllowedModule | None = None) -> Module | None:
        """Return the next module with none running that was not used again since.

        It was used again if one of its instances was a hit, or another one came.
        """

        def barred(module: Module) -> bool:
            return module.running > 0 or (allowed is not None and not allowed(module))

        def used(place: _Place[Module]) -> bool:
            seen, place.seen = place.seen, rests
            instances = place.member.instances
            return seen < 0 or any(it.uses > 1 and it.rested > seen for it in instances)

        oldest = next((it for it in self._evictable if allowed is None or allowed(it)), None)
        return oldest and (self._modules.stop(barred, used) or oldest)


def _used(place: _Place[Instance]) -> bool:
    uses = max(place.member.uses, 1)
    used, place.seen = uses != place.seen, uses
    return used
