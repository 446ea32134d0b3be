"""The hit rate by `max_size`: every lease counted at the size from which on it is a hit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl
from attrs import define, frozen

# Sizes of a curve that are told.
POINTS = 200


@frozen
class Point:
    """The cache at one size."""

    max_size: int
    hit_rate: float
    load_seconds: float


@define(eq=False)
class Curve:
    """Every lease by the size that it needs. `timeout`: idle instances go after so long."""

    leases: int
    smallest: int
    """From this size on it is exact: that of the largest instance."""
    timeout: float
    needs: pl.DataFrame
    """size, hits and load_seconds of all that need at most that, in order of size."""
    load_seconds: float
    """Of all leases, had none been a hit."""

    def at(self, size: int) -> Point:
        """Return what the cache does with `max_size=size`."""
        index = self.needs["size"].search_sorted(size, "right")
        hits = self.needs["hits"][index - 1] if index else 0
        saved = self.needs["load_seconds"][index - 1] if index else 0.0
        return Point(size, hits / self.leases if self.leases else 0.0, self.load_seconds - saved)

    @property
    def largest(self) -> int:
        """From this size on, more is of no use."""
        return max(self.smallest, int(self.needs["size"].max() or 0))  # type: ignore[arg-type]

    @property
    def best(self) -> Point:
        """With all the memory that could be of use."""
        return self.at(self.largest)

    def smallest_for(self, hit_rate: float) -> int | None:
        """Return the smallest size that reaches the hit rate; None: none does."""
        wanted = math.ceil(hit_rate * self.leases - 1e-9)
        index = self.needs["hits"].search_sorted(wanted, "left")
        if index >= len(self.needs):
            return self.smallest if wanted == 0 else None
        return max(self.smallest, int(self.needs["size"][index]))

    def knee(self) -> int:
        """Find where more memory begins to buy less: farthest above the line from end to end."""
        low, high = self.smallest, self.largest
        first, last = self.at(low).hit_rate, self.at(high).hit_rate
        if high == low or last == first:
            return low
        sizes = self.needs.filter(pl.col("size") >= low)
        gained = (sizes["hits"] / self.leases - first) / (last - first)
        above = gained - (sizes["size"] - low) / (high - low)
        index = above.arg_max()
        assert index is not None
        return int(sizes["size"][index])

    def points(self, also: Sequence[int] = ()) -> list[Point]:
        """Return points for a chart: at most `POINTS` sizes, and those named."""
        low, high = self.smallest, self.largest
        steps = [low + (high - low) * number // (POINTS - 1) for number in range(POINTS)]
        return [self.at(size) for size in sorted({*steps, *also})]
