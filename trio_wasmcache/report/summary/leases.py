"""Leases: hits, misses and waits, from a log with `log_uses`."""

from __future__ import annotations

from collections import Counter

import polars as pl
from attrs import Factory, define

from ..reading.names import KEY, Key, tally
from .histogram import Histogram

# Number of requests of a cache that are followed until granted; only an invalid log has more.
MAX_OPEN = 20_000


@define
class Leases:
    """Leases of one function in one group."""

    hits: int = 0
    misses: int = 0
    wait_seconds: float = 0.0
    held_seconds: float = 0.0
    blocks: int = 0
    abandoned: int = 0


@define(eq=False)
class LeaseBook:
    """Leases of one cache, or of several."""

    by_key: dict[Key, Leases] = Factory(dict)
    waits_for: Counter[str] = Factory(Counter)
    """{resource: number of waits for it}; an acquire can wait for several in turn."""
    abandoned: Counter[str] = Factory(Counter)
    """{error raised to the caller: count}."""
    waits: Histogram = Factory(Histogram)
    holds: Histogram = Factory(Histogram)
    acquires: int = 0
    """Number of acquires, including those by `warm`, as in `blocks`."""
    calls: int = 0
    warm: int = 0
    """Number of leases for loads by `warm`; neither hits nor misses."""
    _ahead: set[int] = Factory(set)  # requests by `warm` that were not granted yet
    _waited: set[int] = Factory(set)  # requests under way that were counted as blocks

    @property
    def hits(self) -> int:
        return sum(leases.hits for leases in self.by_key.values())

    @property
    def misses(self) -> int:
        return sum(leases.misses for leases in self.by_key.values())

    @property
    def blocks(self) -> int:
        """Number of acquires that had to wait."""
        return sum(leases.blocks for leases in self.by_key.values())

    def take(self, parts: dict[str, pl.DataFrame]) -> pl.DataFrame:
        """Add events of one cache; return the leases granted, without those by `warm`.

        Args:
            parts: {kind of event: events}.
        """
        requested, blocked, acquired, recycled, abandoned = (
            parts[f"wasmcache.{name}"]
            for name in ("requested", "blocked", "acquired", "recycled", "abandoned")
        )
        self.acquires += len(requested) + abandoned["request"].null_count()
        over = {*acquired["request"], *abandoned["request"]}
        self._take_blocks(requested, blocked, over)
        acquired = self._without_warm(requested, acquired, over)
        self.waits.take(acquired["wait_seconds"], acquired["request"])
        hits = pl.col("hit").sum()
        for leases, row in self._rows(
            acquired, hits, pl.len() - hits, pl.col("wait_seconds").sum()
        ):
            leases.hits += int(row[0])
            leases.misses += int(row[1])
            leases.wait_seconds += row[2]
        self.holds.take(recycled["held_seconds"], recycled["request"])
        self.calls += int(recycled["calls"].sum() or 0)
        for leases, row in self._rows(recycled, pl.col("held_seconds").sum()):
            leases.held_seconds += row[0]
        for leases, row in self._rows(abandoned, pl.len()):
            leases.abandoned += int(row[0])
        for error, number in abandoned["error"].value_counts().iter_rows():
            tally(self.abandoned, error, number)
        return acquired

    def _take_blocks(
        self, requested: pl.DataFrame, blocked: pl.DataFrame, over: set[int | None]
    ) -> None:
        """Count blocks: an acquire is one, however many waits it has, including for tokens."""
        self._waited.update(requested.filter(pl.col("blocked"))["request"])
        for what, number in blocked["waits_for"].value_counts().iter_rows():
            tally(self.waits_for, what, number)
        # Events without a number are waits for a token.
        again = pl.col("request").is_not_null() & pl.col("request").is_in(list(self._waited))
        numbered = pl.col("request").is_not_null()
        first = blocked.filter(~again & (pl.col("request").is_first_distinct() | ~numbered))
        for leases, row in self._rows(first, pl.len()):
            leases.blocks += int(row[0])
        self._waited.update(first.filter(numbered)["request"])
        self._waited -= over
        if len(self._waited) > MAX_OPEN:
            self._waited.clear()

    def _without_warm(
        self, requested: pl.DataFrame, acquired: pl.DataFrame, over: set[int | None]
    ) -> pl.DataFrame:
        self._ahead.update(requested.filter(pl.col("warm"))["request"])
        if not self._ahead:
            return acquired
        ahead = acquired["request"].is_in(list(self._ahead)).fill_null(False)
        self.warm += int(ahead.sum())
        self._ahead -= over
        if len(self._ahead) > MAX_OPEN:
            self._ahead.clear()
        return acquired.filter(~ahead)

    def _rows(self, frame: pl.DataFrame, *sums: pl.Expr) -> list[tuple[Leases, tuple[float, ...]]]:
        named = [expression.alias(f"sum{number}") for number, expression in enumerate(sums)]
        return [
            (self.by_key.setdefault((function, types, group), Leases()), tuple(values))
            for function, types, group, *values in frame.group_by(KEY).agg(*named).iter_rows()
        ]
