"""The distribution of values, in a few hundred numbers whatever their count.

Buckets are equal parts of a power of ten, so that a quantile is exact to 6 %.
"""

from __future__ import annotations

import polars as pl
from attrs import Factory, define

BUCKETS = 40  # of a power of ten
BARS = 10  # likewise
# Seconds; shorter times than a nanosecond count as 0.
LEAST = 1e-9


@define(eq=False)
class Histogram:
    """Values from 0 on; zeros have a bucket of their own."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0
    largest_of: int | None = None
    """Number of the request whose value is the largest, if it is known."""
    _zeros: int = 0
    _buckets: dict[int, int] = Factory(dict)  # {n: values from 10**(n/BUCKETS) to the next}

    def take(self, values: pl.Series, whose: pl.Series | None = None) -> None:
        """Add `values`, except null ones.

        Args:
            values: the values.
            whose: the number of the request of each; None: they are not known.
        """
        at = None if whose is None else values.arg_max()
        if whose is not None and at is not None and not (self.count and values[at] <= self.largest):
            self.largest_of = whose[at]
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
        """Return the value not exceeded by `part` (0 to 1) of all values; 0.0 if there are none."""
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
        """Return (upper bound, count), `BARS` to a power of ten; the first one is for the zeros."""
        found: dict[int, int] = {}
        for number, count in self._buckets.items():
            bar = number // (BUCKETS // BARS)
            found[bar] = found.get(bar, 0) + count
        between = range(min(found), max(found) + 1) if found else ()
        bars = [(10 ** ((bar + 1) / BARS), found.get(bar, 0)) for bar in between]
        return [(0.0, self._zeros), *bars]

    def as_dict(self, *, numbered: bool = False) -> dict[str, float | None]:
        """Return count, sum, quantiles and maximum, for JSON.

        Args:
            numbered: whether to add the number of the request with the largest value.
        """
        whose = {"max_request": self.largest_of} if numbered else {}
        return {
            "count": self.count,
            "total": self.total,
            "p50": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "p99": self.quantile(0.99),
            "max": self.largest,
            **whose,
        }
