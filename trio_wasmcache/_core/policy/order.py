"""The order in which idle instances are evicted: what each eviction policy must answer.

Rules:

1. A hit calls nothing here. `Policy.rest` writes `uses` and `rested` of an instance, and a policy
   reads them when something must be evicted.
2. An instance is known from its first rest on, and stays known while it runs, when it can't be
   evicted. Of its later rests, those with another size are reported (`settled`), and those of an
   instance whose `resting_size` is -1.
3. The caller evicts each victim at once: choosing it may change what the policy remembers.

The idle timeout is not decided here: it follows the order of last use, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .records import Instance, Module
from .reservations import Among

if TYPE_CHECKING:
    from ..snapshot import SnapshotModule, SnapshotOrder, SnapshotResident

Allowed = Callable[[Instance], bool]
"""Returns whether this idle instance may be evicted."""


class OrderCopy(Protocol):
    """What a policy remembered at one moment. It does not change any more, and any thread may read
    it."""

    def of_instance(self, instance: Instance, rested: int) -> dict[str, Any]:
        """Return fields of `SnapshotResident`, of an instance whose last rest was `rested`."""

    def of_module(self, module: Module, rested: int) -> dict[str, Any]:
        """Return fields of `SnapshotModule`, of one of whose instances in the cache the last rest
        was `rested`."""

    def orders(self) -> tuple[SnapshotOrder, ...]:
        """Return what is of no instance or module."""


class EvictionOrder(Protocol):
    """Decides which idle instance, or which module of idle instances, is evicted next."""

    def settled(self, instance: Instance, changed: bool) -> None:
        """Note that `instance` became idle, with another size or as a seat if `changed`."""

    def left(self, instance: Instance) -> None:
        """Note that `instance`, if known, is gone; its module has forgotten it already."""

    def replaced(self, old: Instance, new: Instance, rests: int) -> None:
        """Note that `new`, which is idle, has taken the place of `old`, which is gone.

        `old` may be unknown. The module of `new` counts as one that was just used.

        Args:
            old: an instance of the same entry; its module has forgotten it already.
            new: an instance with the uses and the last rest of `old`.
            rests: number of times that an instance of the cache became idle so far.
        """

    def regroup(self, instances: Iterable[Instance]) -> None:
        """Note that the limits of a group have changed; these are all instances, idle or not.

        Those that are not idle are reported when they next rest.
        """

    @property
    def attentive(self) -> bool:
        """Whether it must be told what happens."""

    def victim(
        self,
        rests: int,
        *,
        by_count: bool = False,
        among: Among = ...,
        where: Allowed | None = None,
    ) -> Instance | None:
        """Return the idle instance to evict next, or None.

        Args:
            rests: number of times that an instance of the cache became idle so far.
            by_count: whether each instance counts the same, however large it is.
            among: the instances that groups' limits let go.
            where: chooses among these, by looking at all; None: all.
        """

    def victim_module(
        self, rests: int, *, spare: bool = False, but: Module | None = None
    ) -> Module | None:
        """Return the module to evict next, never one with running instances, or None.

        Args:
            rests: number of times that an instance of the cache became idle so far.
            spare: whether to leave out modules of which a reservation needs an instance.
            but: a module to leave out.
        """

    def copy(self) -> OrderCopy:
        """Return what the policy remembers, in time for little more than copying references."""

    def restore(
        self,
        instances: Mapping[Instance, SnapshotResident],
        modules: Mapping[Module, SnapshotModule],
        orders: Sequence[SnapshotOrder],
        rests: int,
    ) -> None:
        """Remember what a copy had; this policy remembers nothing yet.

        Args:
            instances: all instances, in order of their numbers.
            modules: their modules.
            orders: what is of no instance or module.
            rests: number of times that an instance of the cache became idle so far.
        """
