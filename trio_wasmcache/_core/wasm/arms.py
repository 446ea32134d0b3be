"""What an engine knows of trampolines: how it talks with them; see `trampoline`."""

from __future__ import annotations

from typing import Final, NamedTuple

from .types import FuncType

DONE: Final = 0
"""Answer of the host: give the guest the results. Arms are numbered from 1, so that a host that
failed, and answers with zeros, is done."""
TRAMPOLINE: Final = "trampoline"
"""Name of the part of a graph that is a trampoline."""
TABLE: Final = "\x00table"
"""Name of the export that is the table; no function has it, see `_export_names`."""


class Arm(NamedTuple):
    """An import of a trampoline by which it gets the arguments of an export."""

    number: int
    """Number of the arm, and index of the export in the table."""
    export: FuncType
    """Type of the export."""

    @property
    def type(self) -> FuncType:
        """Type of the import."""
        return FuncType((), self.export.params)


class Returned(NamedTuple):
    """An import of a trampoline by which it gives the host what an export returned."""

    values: tuple[str, ...]
    """Types of what the export returned."""
    results: tuple[str, ...]
    """Types of the results of the reentrant function that goes on."""

    @property
    def type(self) -> FuncType:
        """Type of the import."""
        return FuncType(self.values, (*self.results, "i32"))


def widened(function: FuncType) -> FuncType:
    """Return the type of the host function behind a reentrant function of the guest."""
    return FuncType(function.params, (*function.results, "i32"))
