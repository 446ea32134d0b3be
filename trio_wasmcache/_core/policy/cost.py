"""Cost: greedy-dual by frequency times seconds of loading over size, which waits for loads least.

An instance is worth what its function and its module have taken to load lately. The time of its
module counts only while it is the only instance, as others keep the code loaded. A seat saves the
load of the module alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from ..snapshot import SnapshotResident
from .records import Instance


@final
class LoadSeconds:
    """Worth in seconds of loading saved, as known when an instance last changed."""

    shared = True

    def __init__(self) -> None:
        self._seconds: dict[Instance, tuple[float, float]] = {}  # {instance: (own, its module's)}

    def settled(self, instance: Instance) -> None:
        """Keep what its function and module have taken to load lately."""
        function = instance.entry.function
        self._seconds[instance] = function.load_seconds or 0.0, instance.module.load_seconds or 0.0

    def left(self, instance: Instance) -> None:
        """Forget it."""
        del self._seconds[instance]

    def of(self, instance: Instance, *, alone: bool) -> float:
        """Return the seconds of loading it again (seconds)."""
        own, module = self._seconds[instance]
        return (0.0 if instance.seat else own) + (module if alone else 0.0)

    def with_code(self, instance: Instance) -> float:
        """Return the seconds of loading it and its module again."""
        return self.of(instance, alone=True)

    def copy(self) -> Mapping[Instance, tuple[float, float]]:
        """Return what is kept of each instance."""
        return self._seconds.copy()

    def restore(self, instances: Mapping[Instance, SnapshotResident]) -> None:
        """Keep what a copy had of these instances."""
        self._seconds = {
            one: (it.own_load_seconds or 0.0, it.module_load_seconds or 0.0)
            for one, it in instances.items()
        }
