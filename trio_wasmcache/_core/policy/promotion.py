"""Decides which module the optimizing compiler gets next, under ``compiler="tiered"``.

1. A module is *due* once the calls of one of its functions have used `DUE_FUEL`.
2. The groups that use modules that are due take turns by their shares: the group for which the
   least was compiled for its shares is next. A group that had none is treated as if as much had
   been compiled for it as for the last one chosen. So, one that comes late is not owed anything.
3. Of the modules that the group uses, that on which its calls have burnt the most fuel is next.

A module is compiled once, whoever uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Final, Generic, TypeVar, final

from .shares import FUEL_PER_SECOND

G = TypeVar("G", bound=Hashable)
T = TypeVar("T", bound=Hashable)

DUE_SECONDS: Final = 0.01
"""Guest time of a function from which on its module is due (seconds). Compiling takes some 15 ms
for 70 KB, and makes code faster by a quarter or so."""
DUE_FUEL: Final = int(DUE_SECONDS * FUEL_PER_SECOND)
"""The same in units of fuel, at the rate by which groups are charged."""


@final
class PromotionQueue(Generic[G, T]):
    """Modules that are due, and what was compiled for each group."""

    def __init__(self) -> None:
        self._due: dict[T, None] = {}  # in the order in which they became due
        self._spent: dict[G, float] = {}  # {group: bytes per share}, of groups with modules due
        self._now = 0.0  # that of the group that was chosen last

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, module: T) -> bool:
        return module in self._due

    def add(self, module: T) -> None:
        """Add a module that is due."""
        self._due[module] = None

    def discard(self, module: T) -> None:
        """Remove a module, if it is in."""
        self._due.pop(module, None)

    def pop(
        self,
        fuel_of: Callable[[T], Mapping[G, int]],
        shares_of: Callable[[G], int],
        cost_of: Callable[[T], int],
    ) -> tuple[T, G] | None:
        """Remove and return the module to compile next, and the group that is charged for it.

        Args:
            fuel_of: returns {group: units of fuel} of the calls of a module's functions; at least
                one group.
            shares_of: returns the shares of a group.
            cost_of: returns what compiling a module costs, in bytes.
        """
        fuel = {module: fuel_of(module) for module in self._due}
        groups = dict.fromkeys(group for of_module in fuel.values() for group in of_module)
        if not groups:
            return None
        spent = {group: max(self._spent.get(group, self._now), 0.0) for group in groups}
        group = min(groups, key=spent.__getitem__)
        module = max(
            (module for module in self._due if group in fuel[module]),
            key=lambda module: fuel[module][group],
        )
        self._now = spent[group]
        spent[group] += cost_of(module) / shares_of(group)
        self._spent = spent
        del self._due[module]
        return module, group
