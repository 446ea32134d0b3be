"""The hit rate by `max_size`: counts every lease at the size from which on it is a hit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl
from attrs import define, frozen

# Number of sizes of a curve.
POINTS = 200
# The curve is flat where it rises at less than this part of its average.
FLAT = 0.25
# Part of the hits that memory can gain, over which the average is taken.
NEARLY_ALL = 0.99


@frozen
class Point:
    """The hit rate and the time spent loading at one size."""

    max_size: int
    hit_rate: float
    load_seconds: float


@define(eq=False)
class Curve:
    """Leases by the size that they need, for idle instances evicted after `timeout` (seconds)."""

    leases: int
    smallest: int
    """Size from which on the curve is exact: that of the largest instance."""
    timeout: float
    needs: pl.DataFrame
    """size, and hits and load_seconds of all leases that need at most that, in order of size."""
    load_seconds: float
    """Time spent loading, had no lease been a hit."""

    def at(self, size: int) -> Point:
        """Return the point for `max_size=size`."""
        index = self.needs["size"].search_sorted(size, "right")
        hits = self.needs["hits"][index - 1] if index else 0
        saved = self.needs["load_seconds"][index - 1] if index else 0.0
        return Point(size, hits / self.leases if self.leases else 0.0, self.load_seconds - saved)

    @property
    def largest(self) -> int:
        """The size beyond which more memory has no effect."""
        return max(self.smallest, int(self.needs["size"].max() or 0))  # type: ignore[arg-type]

    @property
    def best(self) -> Point:
        """The point at the largest useful size."""
        return self.at(self.largest)

    def smallest_for(self, hit_rate: float) -> int | None:
        """Return the smallest size that reaches the hit rate, or None."""
        wanted = math.ceil(hit_rate * self.leases - 1e-9)
        index = self.needs["hits"].search_sorted(wanted, "left")
        if index >= len(self.needs):
            return self.smallest if wanted == 0 else None
        return max(self.smallest, int(self.needs["size"][index]))

    def knee(self) -> int:
        """Return the size where the curve flattens: more memory gains little from there on.

        It is farthest above a line that rises `FLAT` times as steeply as the curve does on average.
        A line as steep as the curve would find where it begins to flatten, which may be far below.
        """
        low = self.smallest
        first, last = self.at(low).hit_rate, self.best.hit_rate
        # Without the last few leases, which may need any size.
        end = self.smallest_for(first + NEARLY_ALL * (last - first))
        if end is None or end <= low or last == first:
            return low
        sizes = self.needs.filter(pl.col("size") >= low)
        gained = (sizes["hits"] / self.leases - first) / (last - first)
        above = gained - FLAT * (sizes["size"] - low) / (end - low)
        farthest = above.arg_max()
        if farthest is None:
            raise AssertionError(f"no size from {low} on among {len(self.needs)} is in the curve")
        return int(sizes["size"][farthest])

    def points(self, also: Sequence[int] = ()) -> list[Point]:
        """Return points for a chart: at most `POINTS` sizes, and those in `also`."""
        low, high = self.smallest, self.largest
        steps = [low + (high - low) * number // (POINTS - 1) for number in range(POINTS)]
        return [self.at(size) for size in sorted({*steps, *also})]
