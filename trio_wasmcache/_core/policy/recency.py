"""LRU: the least recently used instance is evicted first.

The cache keeps the order of last use anyway, for the idle timeout; nothing else is remembered.
"""

from __future__ import annotations

from typing import final

from attrs import frozen

from .lru import LRU
from .order import Allowed, AllowedModule
from .records import Instance, Module


@final
@frozen(eq=False)
class Recency:
    """The eviction order of LRU."""

    instances: LRU[Instance]
    """Idle instances, in order of last use."""
    modules: LRU[Module]
    """Modules that have only idle instances, in order of last use."""

    def settled(self, instance: Instance, changed: bool) -> None:
        """Do nothing."""

    def left(self, instance: Instance) -> None:
        """Do nothing."""

    def victim(
        self,
        rests: int,  # noqa: ARG002
        *,
        by_count: bool = False,  # noqa: ARG002
        allowed: Allowed | None = None,
    ) -> Instance | None:
        """Return the least recently used instance that is allowed."""
        if allowed is None:
            return self.instances.oldest()
        return next(filter(allowed, self.instances), None)

    def victim_module(
        self,
        rests: int,  # noqa: ARG002
        allowed: AllowedModule | None = None,
    ) -> Module | None:
        """Return the module whose last instance has been idle for the longest time."""
        if allowed is None:
            return self.modules.oldest()
        return next(filter(allowed, self.modules), None)
