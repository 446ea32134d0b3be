"""Decides whether it pays to reset the instances of a function, by how often they grow.

A memory or table can't be made smaller. So an instance that has grown in its lease is closed, and
the next lease makes a new one, as under ``"fresh"``, but at a higher cost: each new instance is
prepared for a reset. Where nearly every lease grows its instance, resets are given up: from then on
every lease gets a new instance that is not prepared for one.

New instances are not made larger instead. A guest can read the size of a memory, and find its end
by a trap, so it would find out what earlier leases have done; and one that calls ``memory.grow``
without looking at the size would grow all the same.
"""

from __future__ import annotations

from typing import Final, final

CLEAN_WORTH: Final = 3
"""Number of leases that must grow to cost as much as one reset saves. Preparing an instance takes a
quarter to a third of what making it takes, which a reset saves."""
GIVE_UP_AT: Final = 12
"""Value of `Resets.balance` at which resets are given up."""


@final
class Resets:
    """How often instances of one function have grown, while they are reset between leases."""

    __slots__ = ("balance", "growths", "leases", "size")

    def __init__(self, leases: int = 0, growths: int = 0, size: int = 0, balance: int = 0) -> None:
        self.leases: int = leases
        """Number of leases of the instances that have grown, up to their growth."""
        self.growths: int = growths
        """Number of instances that have grown."""
        self.size: int = size
        """Size (bytes) of the largest of these."""
        self.balance: int = balance
        """Growths, less what resets have saved since; never below 0."""

    def as_text(self) -> str:
        """Return all counts, for a snapshot."""
        return f"{self.leases}:{self.growths}:{self.size}:{self.balance}"

    def note_growth(self, size: int, resets: int) -> bool:
        """Note an instance that has grown, after so many resets; return whether to give up.

        `size` is what it may touch now (bytes).
        """
        self.leases += 1 + resets
        self.growths += 1
        self.size = max(self.size, size)
        self.balance = max(0, self.balance - CLEAN_WORTH * resets) + 1
        return self.balance >= GIVE_UP_AT
