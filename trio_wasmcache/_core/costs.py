"""Costs of the host's work for a guest, in fuel of the guest's call: the same on each machine.

A unit of fuel is about a nanosecond (100,000 take 50 to 140 microseconds). Measured: copying a byte
takes 0.03 ns, and 1 ns where the kernel has to find the pages; decoding UTF-8 takes 0.04 to 1 ns a
byte; making a value of a collection takes 400 ns to 3 microseconds.
"""

from __future__ import annotations

from typing import Final

BYTES_PER_UNIT: Final = 2
"""Number of bytes copied or scanned for one unit of fuel."""
ITEM_FUEL: Final = 250
"""Units of fuel for a value that Python makes. Less than its real cost: any collection that fits
into the default `memory_limit` can be converted with the default `total_fuel`."""
NUMBER_FUEL: Final = 20
"""Units of fuel for a number that Python makes together with all others of an array: 20 ns."""


def copy_fuel(size: int) -> int:
    """Return the cost of copying or scanning `size` bytes (units of fuel)."""
    return -(-size // BYTES_PER_UNIT)
