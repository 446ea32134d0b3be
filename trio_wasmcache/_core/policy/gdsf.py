"""GDSF: greedy-dual by frequency over size, which loads instances least often.

Each use saves one load, so every instance is worth the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from ..snapshot import SnapshotResident
from .records import Instance


@final
class Loads:
    """Worth in loads saved: 1 for each use."""

    shared = False

    def settled(self, instance: Instance) -> None:
        """Do nothing."""

    def left(self, instance: Instance) -> None:
        """Do nothing."""

    def of(self, instance: Instance, *, alone: bool) -> float:  # noqa: ARG002
        """Return 1."""
        return 1.0

    def with_code(self, instance: Instance) -> float:  # noqa: ARG002
        """Return 1."""
        return 1.0

    def copy(self) -> Mapping[Instance, tuple[float, float]]:
        """Return nothing."""
        return {}

    def restore(self, instances: Mapping[Instance, SnapshotResident]) -> None:
        """Do nothing."""
