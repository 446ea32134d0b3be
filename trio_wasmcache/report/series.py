"""What happened over time, in at most `BINS` equal bins that widen as the log goes on."""

from __future__ import annotations

import polars as pl
from attrs import Factory, define

BINS = 240
FIRST_WIDTH = 1 / 64  # seconds; doubled until all fits


@define(eq=False)
class Series:
    """{measure: {bin: value}}; what is measured is added up or its peak is kept.

    Times are seconds since the first event.
    """

    width: float = FIRST_WIDTH
    sums: dict[str, dict[int, float]] = Factory(dict)
    peaks: dict[str, dict[int, float]] = Factory(dict)
    end: float = 0.0

    def reach(self, end: float) -> None:
        """Widen the bins until `end` is in one of them."""
        self.end = max(self.end, end)
        while end >= self.width * BINS:
            self.width *= 2
            for measures, join in ((self.sums, sum), (self.peaks, max)):
                for name, bins in measures.items():
                    halves: dict[int, list[float]] = {}
                    for number, value in bins.items():
                        halves.setdefault(number // 2, []).append(value)
                    measures[name] = {number: join(values) for number, values in halves.items()}

    def add(self, name: str, times: pl.Series, values: pl.Series | None = None) -> None:
        """Add `values` (1 each, if there are none) up at `times`."""
        bins = self.sums.setdefault(name, {})
        frame = self._binned(times, values)
        for number, value in frame.group_by("bin").agg(pl.col("value").sum()).iter_rows():
            bins[number] = bins.get(number, 0) + value

    def peak(self, name: str, times: pl.Series, values: pl.Series) -> None:
        """Keep the largest of `values` in each bin."""
        bins = self.peaks.setdefault(name, {})
        frame = self._binned(times, values)
        for number, value in frame.group_by("bin").agg(pl.col("value").max()).iter_rows():
            bins[number] = max(bins.get(number, 0), value)

    def points(self, name: str) -> list[tuple[float, float]]:
        """(start of a bin in seconds, value), with zeros where nothing was added.

        A peak holds on until there is another one.
        """
        count = int(self.end // self.width) + 1
        if name in self.sums:
            bins = self.sums[name]
            return [(number * self.width, bins.get(number, 0.0)) for number in range(count)]
        value, found = 0.0, []
        for number in range(count):
            value = self.peaks.get(name, {}).get(number, value)
            found.append((number * self.width, value))
        return found

    def _binned(self, times: pl.Series, values: pl.Series | None) -> pl.DataFrame:
        numbers = (times.clip(lower_bound=0.0) / self.width).floor().cast(pl.Int64)
        if values is None:
            values = pl.repeat(1, len(times), eager=True, dtype=pl.Int64)
        frame = pl.DataFrame({"bin": numbers, "value": values})
        return frame.drop_nulls()
