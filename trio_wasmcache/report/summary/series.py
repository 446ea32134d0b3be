"""Values over time, in at most `BINS` equal bins that widen as the log goes on."""

from __future__ import annotations

import polars as pl
from attrs import Factory, define

BINS = 240
FIRST_WIDTH = 1 / 64  # seconds; doubled until all fits


@define(eq=False)
class Series:
    """Sums of events, and levels of quantities.

    Times are seconds since the first event.
    """

    width: float = FIRST_WIDTH
    """Width of a bin (seconds)."""
    end: float = 0.0
    sums: dict[str, dict[int, float]] = Factory(dict)
    """{measure: {bin: sum}}."""
    levels: dict[str, dict[int, tuple[float, float]]] = Factory(dict)
    """{measure: {bin: (highest, last)}}."""

    def reach(self, end: float) -> None:
        """Widen the bins until `end` is in one of them."""
        self.end = max(self.end, end)
        while end >= self.width * BINS:
            self.width *= 2
            for name, bins in self.sums.items():
                added: dict[int, float] = {}
                for number, value in bins.items():
                    added[number // 2] = added.get(number // 2, 0.0) + value
                self.sums[name] = added
            for name, levels in self.levels.items():
                joined: dict[int, tuple[float, float]] = {}
                for number, level in sorted(levels.items()):
                    joined[number // 2] = _join(joined.get(number // 2), level)
                self.levels[name] = joined

    def add(self, name: str, times: pl.Series, values: pl.Series | None = None) -> None:
        """Add `values` (1 each, if None) at `times`."""
        bins = self.sums.setdefault(name, {})
        if values is None:
            values = pl.repeat(1, len(times), eager=True, dtype=pl.Int64)
        frame = pl.DataFrame({"bin": self._numbers(times), "value": values})
        for number, value in frame.group_by("bin").agg(pl.col("value").sum()).iter_rows():
            bins[number] = bins.get(number, 0.0) + value

    def level(self, name: str, times: pl.Series, highest: pl.Series, last: pl.Series) -> None:
        """Add levels: at each of `times` up to `highest`, and `last` from then on."""
        levels = self.levels.setdefault(name, {})
        frame = pl.DataFrame({"bin": self._numbers(times), "highest": highest, "last": last})
        grouped = frame.group_by("bin", maintain_order=True)
        for number, *level in grouped.agg(
            pl.col("highest").max(), pl.col("last").last()
        ).iter_rows():
            levels[number] = _join(levels.get(number), (level[0], level[1]))

    def points(self, name: str) -> list[float]:
        """Return a value for each bin: the sum, or the highest level, which continues."""
        count = int(self.end // self.width) + 1
        if name in self.sums:
            bins = self.sums[name]
            return [bins.get(number, 0.0) for number in range(count)]
        levels, value, found = self.levels[name], 0.0, []
        for number in range(count):
            highest, last = levels.get(number, (value, value))
            found.append(max(highest, value))
            value = last
        return found

    def busiest(self, prefix: str, seconds: float) -> tuple[float, float]:
        """Return (the largest sum of all measures whose names begin with `prefix`, its time).

        The time is one bin, or as many as amount to `seconds`.
        """
        wide = max(1, round(seconds / self.width))
        sums: dict[int, float] = {}
        for name, bins in self.sums.items():
            if name.startswith(prefix):
                for number, value in bins.items():
                    sums[number // wide] = sums.get(number // wide, 0.0) + value
        return max(sums.values(), default=0.0), wide * self.width

    def _numbers(self, times: pl.Series) -> pl.Series:
        return (times.clip(lower_bound=0.0) / self.width).floor().cast(pl.Int64)


def _join(before: tuple[float, float] | None, after: tuple[float, float]) -> tuple[float, float]:
    return after if before is None else (max(before[0], after[0]), after[1])
