"""Who got a lease, at once or after a wait, and from what: the part of a log with `log_uses`."""

from __future__ import annotations

from collections import Counter

import polars as pl
from attrs import Factory, define

from .histogram import Histogram

Key = tuple[str, str, str]  # (function, argument types, group)


@define
class Leases:
    """Of one function in one group."""

    hits: int = 0
    misses: int = 0
    wait_seconds: float = 0.0
    held_seconds: float = 0.0
    blocks: int = 0
    abandoned: int = 0


@define(eq=False)
class LeaseBook:
    """Of all."""

    by_key: dict[Key, Leases] = Factory(dict)
    waits_for: Counter[str] = Factory(Counter)
    abandoned: Counter[str] = Factory(Counter)
    """{what the caller got: how many}."""
    waits: Histogram = Factory(Histogram)
    holds: Histogram = Factory(Histogram)
    calls: int = 0
    warm: int = 0
    """Leases that `warm` took to load ahead; neither hit nor miss."""
    _ahead: set[int] = Factory(set)  # requests by `warm` that were not granted yet

    def take(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add events of one cache up; gives those that are `acquired`, the warming ones left out."""
        warm = frame.filter(pl.col("warm") == True)["request"]  # noqa: E712 - null is not False
        self._ahead.update(warm.to_list())
        acquired = frame.filter(pl.col("event") == "wasmcache.acquired")
        if self._ahead:
            ahead = acquired["request"].is_in(list(self._ahead)).fill_null(False)
            self._ahead -= set(acquired.filter(ahead)["request"].to_list())
            self.warm += int(ahead.sum())
            acquired = acquired.filter(~ahead)
        self.waits.take(acquired["wait_seconds"])
        hits = pl.col("hit").sum()
        waited = pl.col("wait_seconds").sum()
        for key, leases, row in self._rows(acquired, hits, pl.len() - hits, waited):
            del key
            leases.hits += row[0]
            leases.misses += row[1]
            leases.wait_seconds += row[2]
        recycled = frame.filter(pl.col("event") == "wasmcache.recycled")
        self.holds.take(recycled["held_seconds"])
        self.calls += int(recycled["calls"].sum() or 0)
        for _, leases, row in self._rows(recycled, pl.col("held_seconds").sum()):
            leases.held_seconds += row[0]
        blocked = frame.filter(pl.col("event") == "wasmcache.blocked")
        for _, leases, row in self._rows(blocked, pl.len()):
            leases.blocks += row[0]
        for what, number in blocked["waits_for"].value_counts().iter_rows():
            self.waits_for[what] += number
        abandoned = frame.filter(pl.col("event") == "wasmcache.abandoned")
        for _, leases, row in self._rows(abandoned, pl.len()):
            leases.abandoned += row[0]
        for error, number in abandoned["error"].value_counts().iter_rows():
            self.abandoned[error] += number
        return acquired

    def _rows(
        self, frame: pl.DataFrame, *sums: pl.Expr
    ) -> list[tuple[Key, Leases, tuple[float, ...]]]:
        named = [expression.alias(f"sum{number}") for number, expression in enumerate(sums)]
        found = []
        grouped = frame.group_by("function", "arg_types", "group").agg(*named)
        for function, types, group, *values in grouped.iter_rows():
            key = (function, types, group)
            leases = self.by_key.setdefault(key, Leases())
            found.append((key, leases, tuple(values)))
        return found

    @property
    def hits(self) -> int:
        return sum(leases.hits for leases in self.by_key.values())

    @property
    def misses(self) -> int:
        return sum(leases.misses for leases in self.by_key.values())
