"""LRU: the least recently used instance is evicted first.

The cache keeps the order of last use anyway, for the idle timeout; nothing else is remembered. Only
once a group has limits of its own, `Parts` keep the instances by group, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from .lifecycle import IDLE
from .lru import LRU
from .order import Allowed, OrderCopy
from .parts import Parts
from .records import DROPS, Instance, Module, rested, running, runs
from .reservations import EVERY, Among, Keepers, Reservations

if TYPE_CHECKING:
    from ..snapshot import SnapshotModule, SnapshotOrder, SnapshotResident


@final
class Recency:
    """The eviction order of LRU.

    Args:
        idle: idle instances, in order of last use.
        evictable: modules that have only idle instances, in order of last use.
        reservations: what groups have reserved.
    """

    def __init__(
        self, idle: LRU[Instance], evictable: LRU[Module], reservations: Reservations
    ) -> None:
        self._idle, self._evictable, self._reservations = idle, evictable, reservations
        self._instances: Parts[Instance] | None = None
        self._modules: Parts[Module] | None = None
        self._keepers = Keepers(reservations)
        self._busy: dict[Module, None] = {}  # modules left out

    @property
    def attentive(self) -> bool:
        """Whether it must be told what happens."""
        return self._reservations.limits

    def settled(self, instance: Instance, changed: bool) -> None:
        """Note an instance that is not known yet, that was left out, or whose size has changed."""
        instances, modules = self._instances, self._modules
        if instances is None or modules is None:
            return
        new = instance not in instances.entries
        if new or changed or instances.entries[instance] is None or instances.moved(instance):
            instances.doubt(instance)
        module = instance.module
        if (new or changed or modules.moved(module)) and module not in self._busy:
            modules.doubt(module)

    def left(self, instance: Instance) -> None:
        """Remove an instance, and with the last one its module."""
        instances, modules = self._instances, self._modules
        if instances is None or modules is None:
            return
        instances.remove(instance)
        module = instance.module
        if not module.instances:
            modules.remove(module)
            self._busy.pop(module, None)
            self._keepers.forget(module)
        elif module in modules.entries and module not in self._busy and modules.moved(module):
            modules.doubt(module)

    def replaced(self, old: Instance, new: Instance, rests: int) -> None:  # noqa: ARG002
        """Put another instance in the place of one: it has rested last when that has."""
        if self._instances is not None:
            self._instances.expunge(old)
        self.left(old)
        self.settled(new, True)

    def regroup(self, instances: Iterable[Instance]) -> None:
        """Keep the idle ones of these instances by group, as the limits of a group have changed."""
        if self._instances is None:
            reservations, keepers = self._reservations, self._keepers
            self._instances = Parts(
                *(runs, Instance.report_rest, rested, _by_rest),
                home=reservations.home,
                limited=reservations.limited,
            )
            self._modules = Parts(
                *(running, self._leave_out, _stopped, _by_rest),
                home=keepers.home,
                elsewhere=keepers.elsewhere,
            )
        for instance in instances:
            if instance.state is IDLE:
                self.settled(instance, True)

    def victim(
        self,
        rests: int,  # noqa: ARG002
        *,
        by_count: bool = False,  # noqa: ARG002
        among: Among = EVERY,
        where: Allowed | None = None,
    ) -> Instance | None:
        """Return the least recently used instance that may go."""
        if where is not None:
            return next((it for it in self._idle if among(it) and where(it)), None)
        if among is EVERY:
            return self._idle.oldest()
        if self._instances is None:
            return next(filter(among, self._idle), None)
        entry = self._instances.least(among)
        return None if entry is None else entry[2]

    def victim_module(
        self,
        rests: int,  # noqa: ARG002
        *,
        spare: bool = False,
        but: Module | None = None,
    ) -> Module | None:
        """Return the module whose last instance has been idle for the longest time."""
        modules = self._modules
        if not spare or modules is None:
            return next((it for it in self._evictable if it is not but), None)
        for module in [module for module in self._busy if not module.running]:
            del self._busy[module]
            modules.doubt(module)
        entry = modules.least(Among(spare=True), but)
        return None if entry is None else entry[2]

    def copy(self) -> OrderCopy:
        """Return nothing, as the order of last use is all that there is."""
        return Nothing()

    def restore(
        self,
        instances: Mapping[Instance, SnapshotResident],
        modules: Mapping[Module, SnapshotModule],  # noqa: ARG002
        orders: Sequence[SnapshotOrder],  # noqa: ARG002
        rests: int,  # noqa: ARG002
    ) -> None:
        """Keep the idle ones by group, if a group has limits."""
        if self.attentive:
            self.regroup(instances)

    def _leave_out(self, module: Module) -> None:
        self._busy[module] = None


def _stopped(module: Module) -> int:
    """Return when the last instance of a module stopped running: see `Module.stopped`."""
    return max(module.rested << DROPS, module.stopped)


def _by_rest(_: object, rest: int) -> int:
    return rest


@final
class Nothing:
    """The copy of an order that remembers nothing."""

    def of_instance(self, instance: Instance, rested: int) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing."""
        return {}

    def of_module(self, module: Module, rested: int) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing."""
        return {}

    def orders(self) -> tuple[SnapshotOrder, ...]:
        """Return nothing."""
        return ()
