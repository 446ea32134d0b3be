"""How values are spread, in a few hundred numbers whatever their count.

Buckets are equal parts of a power of ten, so that a quantile is right to 6 %.
"""

from __future__ import annotations

import polars as pl
from attrs import Factory, define

BUCKETS = 40  # of a power of ten
BARS = 10  # likewise
# Times are in seconds: below a nanosecond there is nothing.
LEAST = 1e-9


@define(eq=False)
class Histogram:
    """Values of at least 0; those of 0 are in a bucket of their own."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0
    _zeros: int = 0
    _buckets: dict[int, int] = Factory(dict)  # {n: values from 10**(n/BUCKETS) to the next}

    def take(self, values: pl.Series) -> None:
        """Add all of `values`; those that are null are passed over."""
        values = values.drop_nulls()
        above = values.filter(values >= LEAST)
        self.count += len(values)
        self._zeros += len(values) - len(above)
        if not len(above):
            return
        self.total += float(above.sum())
        largest = above.max()
        assert isinstance(largest, (int, float))
        self.largest = max(self.largest, float(largest))
        numbers = (above.log10() * BUCKETS).floor().cast(pl.Int64)
        for number, count in numbers.value_counts().iter_rows():
            self._buckets[number] = self._buckets.get(number, 0) + count

    def quantile(self, part: float) -> float:
        """Return the value that `part` (0 to 1) of all do not exceed; 0.0 without any."""
        wanted = part * self.count
        seen = self._zeros
        if seen >= wanted:
            return 0.0
        for number in sorted(self._buckets):
            seen += self._buckets[number]
            if seen >= wanted:
                return float(min(10 ** ((number + 1) / BUCKETS), self.largest))
        return self.largest

    def bars(self) -> list[tuple[float, int]]:
        """Return (upper end, how many), `BARS` to a power of ten; the first one is of the zeros."""
        found: dict[int, int] = {}
        for number, count in self._buckets.items():
            bar = number // (BUCKETS // BARS)
            found[bar] = found.get(bar, 0) + count
        between = range(min(found), max(found) + 1) if found else ()
        bars = [(10 ** ((bar + 1) / BARS), found.get(bar, 0)) for bar in between]
        return [(0.0, self._zeros), *bars]

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
