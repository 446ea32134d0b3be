"""Which idle instances may be evicted for whose need, as groups may have bytes reserved.

1. An eviction for size spares an instance without which its group would have less than it has
   reserved. A group's own need spares none of its own.
2. A group that keeps within its reservation is never refused room: others go, down to what they
   have reserved themselves. As all reservations together fit into the cache, that is enough.
3. Code, stacks, the number of instances and addresses are not reserved: for them, such instances go
   too, but after all others.

A reservation that is not used is free for others to borrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from .records import GroupRecord, Instance, Module

# Above the sum of any sizes and limits, which may be arbitrarily large ints.
NO_LIMIT = 1 << 4096


@final
class Among:
    """Idle instances among which the next one to be evicted is looked for."""

    __slots__ = ("borrowed", "freely", "only", "spare", "without")

    def __init__(
        self,
        spare: bool = False,
        borrowed: bool = False,
        freely: GroupRecord | None = None,
        without: GroupRecord | None = None,
        only: GroupRecord | None = None,
    ) -> None:
        self.spare: bool = spare
        """Whether to leave out those that a reservation needs."""
        self.borrowed: bool = borrowed
        """Whether to leave out groups that have no more than they have reserved."""
        self.freely: GroupRecord | None = freely
        """A group of which any may go."""
        self.without: GroupRecord | None = without
        """A group of which none may go."""
        self.only: GroupRecord | None = only
        """The only group of which any may go; None: all groups."""

    def most(self, group: GroupRecord) -> int:
        """Return the size of the largest instance of a group that may go; below 0 if none may."""
        if group is self.without:
            return -1
        if group is self.freely:
            return NO_LIMIT
        if self.spare:
            return group.idle_size - group.reserved_size
        if self.borrowed and group.idle_size <= group.reserved_size:
            return -1
        return NO_LIMIT

    def __call__(self, instance: Instance) -> bool:
        """Return whether an idle instance may go."""
        group = instance.entry.group
        if self.only is not None:
            return group is self.only
        return instance.size <= self.most(group)


EVERY, SPARE, BORROWED = Among(), Among(spare=True), Among(borrowed=True)
Passes = Sequence[Among]
"""Which instances to look for first, next, and so on."""
ANY: Passes = (EVERY,)


@final
class Reservations:
    """The groups of one cache that have bytes reserved, and what their instances take.

    `entered` and `left` are called only once a group has limits.
    """

    __slots__ = ("_shares", "_sizes", "groups", "limits")

    def __init__(self) -> None:
        self.groups: dict[GroupRecord, None] = {}
        """Those with reserved bytes."""
        self.limits: bool = False
        """Whether any group ever had reserved bytes, or a `max_size`."""
        self._sizes: dict[Instance, int] = {}  # of those groups, as they last rested
        self._shares: dict[Module, dict[GroupRecord, list[int]]] = {}  # [number, bytes]

    def note(self, group: GroupRecord) -> bool:
        """Note that the limits of `group` are new, were changed, or end as the group closes.

        Returns whether it is the first group with any.
        """
        if group.reserved_size and not group.closed:
            self.groups[group] = None
        else:
            self.groups.pop(group, None)
        first = not self.limits and (group.reserved_size > 0 or group.max_size is not None)
        self.limits = self.limits or first
        return first

    def entered(self, instance: Instance) -> None:
        """Note that an instance rests for the first time, or with another size."""
        group = instance.entry.group
        if group in self.groups:
            self.left(instance)
            self._sizes[instance] = instance.size
            shares = self._shares.setdefault(instance.module, {})
            share = shares.setdefault(group, [0, 0])
            share[0] += 1
            share[1] += instance.size

    def left(self, instance: Instance) -> None:
        """Note that an instance, if known, is gone, or in a group that has nothing reserved."""
        size = self._sizes.pop(instance, None)
        if size is None:
            return
        module, group = instance.module, instance.entry.group
        shares = self._shares[module]
        share = shares[group]
        share[0] -= 1
        share[1] -= size
        if not share[0]:
            del shares[group]
        if not shares:
            del self._shares[module]

    def kept_from(self, group: GroupRecord) -> int:
        """Return how many idle bytes the reservations of others keep from `group`."""
        return sum(
            min(other.idle_size, other.reserved_size) for other in self.groups if other is not group
        )

    def for_size(self, group: GroupRecord | None, size: int = 0) -> Passes:
        """Return what may be evicted so that `group` can have `size` more idle bytes.

        Args:
            group: the group; None: it is nobody's need, but that of a smaller limit.
            size: the bytes.
        """
        if not self.groups:
            return ANY
        if group is None:
            return SPARE, BORROWED
        if group.idle_size + size > group.reserved_size:
            return (Among(spare=True, freely=group),)
        return Among(spare=True, without=group), Among(borrowed=True, without=group)

    def for_others(self) -> Passes:
        """Return what may be evicted for code, stacks, the number of instances, or addresses."""
        return (SPARE, EVERY) if self.groups else ANY

    def home(self, instance: Instance) -> tuple[GroupRecord | None, int]:
        """Return the group whose reservation keeps an instance, if any, and its size."""
        group = instance.entry.group
        return group if group in self.groups else None, instance.size

    def limited(self, instance: Instance) -> GroupRecord | None:
        """Return the group of an instance if that has a `max_size`."""
        group = instance.entry.group
        return None if group.max_size is None else group

    def shares(self, module: Module) -> dict[GroupRecord, int]:
        """Return {group: bytes} of the instances of a module in groups with reserved bytes."""
        found = self._shares.get(module)
        return {} if found is None else {group: share[1] for group, share in found.items()}

    def keeps(self, module: Module) -> GroupRecord | None:
        """Return a group whose reservation needs the idle instances of a module, or None."""
        for group, share in self._shares.get(module, {}).items():
            if group.keeps(share[1]):
                return group
        return None


@final
class Keepers:
    """For each module, the one group that is asked whether its reservation lets the module go.

    A module may be kept by several. It is in the part of one of them; when that would let it go,
    but another does not, it moves to the part of the other.
    """

    def __init__(self, reservations: Reservations) -> None:
        self._reservations = reservations
        self._chosen: dict[Module, GroupRecord] = {}

    def home(self, module: Module) -> tuple[GroupRecord | None, int]:
        """Return the group that is asked, and the bytes that the module has there."""
        shares = self._reservations.shares(module)
        if not shares:
            self._chosen.pop(module, None)
            return None, 0
        group = self._chosen.get(module)
        if group not in shares:
            group = self._chosen[module] = next(iter(shares))
        return group, shares[group]

    def elsewhere(self, module: Module, among: Among) -> bool:
        """Return whether another group keeps a module that was found, and choose that."""
        if not among.spare:
            return False
        keeper = self._reservations.keeps(module)
        if keeper is None:
            return False
        self._chosen[module] = keeper
        return True

    def forget(self, module: Module) -> None:
        """Forget a module that is gone."""
        self._chosen.pop(module, None)
