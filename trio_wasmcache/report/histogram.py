"""How values are spread, in a few hundred numbers whatever their count.

Buckets are powers of `BASE`, so that a quantile is right to 5 %, from nanoseconds to years.
"""

from __future__ import annotations

import math

import polars as pl
from attrs import Factory, define

BASE = 1.05
_LOG = math.log(BASE)


@define(eq=False)
class Histogram:
    """Values of at least 0; those of 0 are in a bucket of their own."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0
    _zeros: int = 0
    _buckets: dict[int, int] = Factory(dict)  # {n: values above BASE**n, up to BASE**(n+1)}

    def take(self, values: pl.Series) -> None:
        """Add all of `values`; those that are null are passed over."""
        values = values.drop_nulls()
        if not len(values):
            return
        above = values.filter(values > 0)
        self.count += len(values)
        self._zeros += len(values) - len(above)
        if len(above):
            self.total += float(above.sum())
            largest = above.max()
            assert isinstance(largest, (int, float))
            self.largest = max(self.largest, float(largest))
            numbers = (above.log() / _LOG).floor().cast(pl.Int64)
            for number, count in numbers.value_counts().iter_rows():
                self._buckets[number] = self._buckets.get(number, 0) + count

    def quantile(self, part: float) -> float:
        """The value that `part` (0 to 1) of all do not exceed; 0.0 without any."""
        wanted = part * self.count
        seen = self._zeros
        if seen >= wanted or not self._buckets:
            return 0.0
        for number in sorted(self._buckets):
            seen += self._buckets[number]
            if seen >= wanted:
                return float(min(BASE ** (number + 1), self.largest))
        return self.largest

    def bars(self) -> list[tuple[float, int]]:
        """(upper end, how many), ten to a power of ten; the first one is of the zeros."""
        found: dict[int, int] = {}
        for number, count in self._buckets.items():
            step = math.ceil((number + 1) * _LOG / math.log(10) * 10 - 1e-9)
            found[step] = found.get(step, 0) + count
        return [(0.0, self._zeros), *((10 ** (step / 10), found[step]) for step in sorted(found))]

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {
            "count": self.count,
            "total": self.total,
            "p50": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "p99": self.quantile(0.99),
            "max": self.largest,
        }
