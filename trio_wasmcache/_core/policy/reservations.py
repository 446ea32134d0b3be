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

from attrs import Factory, define

from .order import Allowed
from .records import GroupRecord, Instance, Module

Passes = Sequence[Allowed | None]
"""Which instances to look for first, next, and so on; None: any."""
ANY: Passes = (None,)


@final
@define(eq=False)
class Reservations:
    """The groups of one cache that have bytes reserved."""

    groups: dict[GroupRecord, None] = Factory(dict)

    def note(self, group: GroupRecord) -> None:
        """Note that the reservation of `group` is new, was changed, or ends as the group closes."""
        if group.reserved_size and not group.closed:
            self.groups[group] = None
        else:
            self.groups.pop(group, None)

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
            return _spare, _borrowed
        if group.idle_size + size > group.reserved_size:
            return (lambda instance: instance.entry.group is group or _spare(instance),)
        return (
            lambda instance: instance.entry.group is not group and _spare(instance),
            lambda instance: instance.entry.group is not group and _borrowed(instance),
        )

    def for_others(self) -> Passes:
        """Return what may be evicted for code, stacks, the number of instances, or addresses."""
        return (_spare, None) if self.groups else ANY

    def spare(self, module: Module) -> bool:
        """Return whether no reservation needs the idle instances of a module."""
        sizes: dict[GroupRecord, int] = {}
        for instance in module.idle:
            group = instance.entry.group
            sizes[group] = sizes.get(group, 0) + instance.size
        return not any(group.keeps(size) for group, size in sizes.items())


def _spare(instance: Instance) -> bool:
    """Whether no reservation needs the instance."""
    return not instance.entry.group.keeps(instance.size)


def _borrowed(instance: Instance) -> bool:
    """Whether the group of the instance has more than it has reserved."""
    group = instance.entry.group
    return group.idle_size > group.reserved_size
