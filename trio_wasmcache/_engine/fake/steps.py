"""Count the native steps of the fake engine, and what they left open; make one of them fail."""

from __future__ import annotations

from ..base import NoMemoryError


class Steps:
    """Counts what a fake engine, its modules and its instances do. Base of `FakeEngine`.

    Args:
        fail_at: the number of the native step (from 1) that fails; None: none does.
    """

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.refusals: int = 0
        """How many compiles, loads and instantiations from now on get no memory from the system."""
        self.steps: list[str] = []
        self.loaded_modules: int = 0
        """Executable modules that were not closed yet."""
        self.open_instances: int = 0
        """Instances that were not closed yet."""
        self.scratch_size: int = 0
        """Bytes of the scratches of their drivers."""

    def step(self, name: str) -> bool:
        """Count a native step; True if this is the one that fails."""
        self.steps.append(name)
        return len(self.steps) == self.fail_at

    def check_memory(self) -> None:
        """Raise `NoMemoryError` as often as `refusals` says."""
        if self.refusals:
            self.refusals -= 1
            raise NoMemoryError("Cannot allocate memory (os error 12)")

    def count_module(self, change: int) -> None:
        """Count a module that is loaded (1), or closed (-1)."""
        self.loaded_modules += change

    def count_instance(self, change: int) -> None:
        """Count an instance that is made (1), or closed (-1)."""
        self.open_instances += change

    def count_scratch(self, change: int) -> None:
        """Count the bytes of a scratch that is made, or of one that goes (negative)."""
        self.scratch_size += change
