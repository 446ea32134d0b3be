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

from collections.abc import Callable
from typing import Protocol

from .records import Instance, Module

Allowed = Callable[[Instance], bool]
"""Returns whether this idle instance may be evicted."""
AllowedModule = Callable[[Module], bool]
"""Returns whether this module of idle instances may be evicted."""


class EvictionOrder(Protocol):
    """Decides which idle instance, or which module of idle instances, is evicted next."""

    def settled(self, instance: Instance, changed: bool) -> None:
        """Note that `instance` became idle, with another size or as a seat if `changed`."""

    def left(self, instance: Instance) -> None:
        """Note that `instance`, if known, is gone; its module has forgotten it already."""

    def victim(
        self, rests: int, *, by_count: bool = False, allowed: Allowed | None = None
    ) -> Instance | None:
        """Return the idle instance to evict next, or None.

        Args:
            rests: number of times that an instance of the cache became idle so far.
            by_count: whether each instance counts the same, however large it is.
            allowed: chooses among the idle instances; None: all.
        """

    def victim_module(self, rests: int, allowed: AllowedModule | None = None) -> Module | None:
        """Return the module to evict next, never one with running instances, or None.

        Args:
            rests: number of times that an instance of the cache became idle so far.
            allowed: chooses among the modules; None: all.
        """
