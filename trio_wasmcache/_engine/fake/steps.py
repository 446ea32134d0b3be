"""Count the native steps of the fake engine and the objects it left open; make one step fail."""

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
        """Number of compiles, loads and instantiations, from now on, that the system refuses
        memory."""
        self.steps: list[str] = []
        """Names of the native steps taken so far, such as ``"compile"``."""
        self.loaded_modules: int = 0
        """Number of loaded modules that are not closed."""
        self.open_instances: int = 0
        """Number of instances that are not closed."""
        self.scratch_size: int = 0
        """Bytes of the scratch memories of their drivers."""
        self.code_size: int = 0
        """Bytes of code of loaded modules."""

    def step(self, name: str) -> bool:
        """Count a native step; return True if this is the one that fails.

        Args:
            name: name of the step, such as ``"compile"``.
        """
        self.steps.append(name)
        return len(self.steps) == self.fail_at

    def check_memory(self) -> None:
        """Raise `NoMemoryError` as often as `refusals` says."""
        if self.refusals:
            self.refusals -= 1
            raise NoMemoryError("Cannot allocate memory (os error 12)")

    def count_module(self, change: int, code_size: int) -> None:
        """Count a module that was loaded or closed.

        Args:
            change: 1 if it was loaded, -1 if it was closed.
            code_size: bytes of its code.
        """
        self.loaded_modules += change
        self.code_size += change * code_size

    def count_instance(self, change: int) -> None:
        """Count an instance that was made or closed.

        Args:
            change: 1 if it was made, -1 if it was closed.
        """
        self.open_instances += change

    def count_scratch(self, change: int) -> None:
        """Count the scratch memory of a driver that was made or closed.

        Args:
            change: bytes of the scratch memory; negative if it was closed.
        """
        self.scratch_size += change
