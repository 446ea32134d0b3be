"""Who got a lease, at once or after a wait, and from what: the part of a log with `log_uses`."""

from __future__ import annotations

from collections import Counter

import polars as pl
from attrs import Factory, define

from ..reading.names import KEY, Key, tally
from .histogram import Histogram

# Requests of a cache that are followed until they are granted; a log has more only if it is not a
# log.
MAX_OPEN = 20_000


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
    """{what was waited for: how often}; an acquire can wait for several things in turn."""
    abandoned: Counter[str] = Factory(Counter)
    """{what the caller got: how many}."""
    waits: Histogram = Factory(Histogram)
    holds: Histogram = Factory(Histogram)
    acquires: int = 0
    """Those by `warm` included, as in `blocks`."""
    calls: int = 0
    warm: int = 0
    """Leases that `warm` took to load ahead; neither hit nor miss."""
    _ahead: set[int] = Factory(set)  # requests by `warm` that were not granted yet
    _waited: set[int] = Factory(set)  # requests that were counted as blocks, and are not over yet

    @property
    def hits(self) -> int:
        return sum(leases.hits for leases in self.by_key.values())

    @property
    def misses(self) -> int:
        return sum(leases.misses for leases in self.by_key.values())

    @property
    def blocks(self) -> int:
        """Acquires that had to wait."""
        return sum(leases.blocks for leases in self.by_key.values())

    def take(self, parts: dict[str, pl.DataFrame]) -> pl.DataFrame:
        """Add events of one cache up; return the leases granted, without those by `warm`.

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
        self.waits.take(acquired["wait_seconds"])
        hits = pl.col("hit").sum()
        for leases, row in self._rows(
            acquired, hits, pl.len() - hits, pl.col("wait_seconds").sum()
        ):
            leases.hits += int(row[0])
            leases.misses += int(row[1])
            leases.wait_seconds += row[2]
        self.holds.take(recycled["held_seconds"])
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
        """Count blocks: an acquire is one, however many waits it has, tokens included."""
        self._waited.update(requested.filter(pl.col("blocked"))["request"])
        for what, number in blocked["waits_for"].value_counts().iter_rows():
            tally(self.waits_for, what, number)
        # Those without a number wait for a token.
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
