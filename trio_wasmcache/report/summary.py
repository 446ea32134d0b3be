"""What the log of each cache adds up to, block by block, in memory that does not grow with it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl
from attrs import Factory, define

from .._core.events import Reason
from .clock import Clock
from .entries import Fates
from .frames import TYPES
from .histogram import Histogram
from .leases import LeaseBook
from .names import MAX_KEYS, Key, Names
from .notes import Notes, cite, count
from .order import Order
from .series import Series
from .units import seconds

THRASH_SECONDS = 10.0
# A log of so many restarts is better read in parts.
MAX_CACHES = 1000
REASONS = [reason.value for reason in Reason]
OTHER = "other"  # a reason that this version does not know
LIMITS = (
    "max_size_bytes",
    "max_instance_size_bytes",
    "max_instances",
    "max_code_size_bytes",
    "idle_timeout_seconds",
)
COUNTS = ("hits", "misses", "blocks", "calls", "evictions")


@define
class Gone:
    """Evictions."""

    count: int = 0
    freed_bytes: int = 0
    freed_code_bytes: int = 0


@define(eq=False)
class CacheSummary:
    """One cache's log."""

    cache: str
    fates: Fates
    order: Order = Factory(Order)
    clock: Clock = Factory(Clock)
    names: Names = Factory(Names)
    kinds: Counter[str] = Factory(Counter)
    """{event: how many}."""
    limits: dict[str, Any] = Factory(dict)
    """Those in force at the end."""
    resizes: int = 0
    log_uses: bool = False
    closed: dict[str, int] | None = None
    """The cache's own counts, if it was closed."""
    began: str | None = None
    """The timestamp of the first event that has one."""
    ended: str | None = None
    """That of the last one."""
    leases: LeaseBook = Factory(LeaseBook)
    loads: Histogram = Factory(Histogram)
    module_loads: int = 0
    compile_seconds: float = 0.0
    ages: Histogram = Factory(Histogram)
    series: Series = Factory(Series)
    gone: dict[tuple[str, Key], Gone] = Factory(dict)
    """{(reason, who): what went}."""
    peak_size: int = 0
    peak_code: int = 0

    def take(self, frame: pl.DataFrame) -> None:
        """Add events of this cache up."""
        last = self.order.last
        frame = self.order.sort(frame)
        if not len(frame):
            return
        frame = self.names.limit(frame).with_columns(
            pl.when(pl.col("reason").is_in(REASONS) | pl.col("reason").is_null())
            .then("reason")
            .otherwise(pl.lit(OTHER))
            .alias("reason")
        )
        times = self.clock.times(frame["at_seconds"], int((frame["seq"] <= last).sum()))
        end = times.max()
        assert isinstance(end, float)
        self.series.reach(end)
        frame = frame.with_columns(times.alias("time"))
        parts = {kind: frame.clear() for kind in TYPES}
        for (kind,), part in frame.partition_by("event", as_dict=True).items():
            self.kinds[kind] += len(part)
            parts[kind] = part
        self._take_rare(frame, parts)
        self.fates.take(frame, times)
        self._take_leases(parts)
        self._take_sizes(frame)
        self._take_loads(parts["wasmcache.loaded"])
        self._take_evictions(parts["wasmcache.evicted"])

    def _take_rare(self, frame: pl.DataFrame, parts: dict[str, pl.DataFrame]) -> None:
        stamps = frame["timestamp"].drop_nulls()
        if len(stamps):
            self.began = self.began or stamps[0]
            self.ended = stamps[-1]
        for row in parts["wasmcache.opened"].iter_rows(named=True):
            self.limits = {name: row[name] for name in LIMITS}
            self.log_uses = row["log_uses"]
        for row in parts["wasmcache.resized"].iter_rows(named=True):
            self.limits = {name: row[name] for name in LIMITS}
            self.resizes += 1
        for row in parts["wasmcache.closed"].iter_rows(named=True):
            self.closed = {name: row[name] for name in COUNTS}
        for number, first in parts["wasmcache.lost"].select("count", "first_seq").iter_rows():
            self.order.lose(number, first)
        self.compile_seconds += float(parts["wasmcache.registered"]["compile_seconds"].sum())

    def _take_leases(self, parts: dict[str, pl.DataFrame]) -> None:
        acquired = self.leases.take(parts)
        if len(acquired):
            hits = acquired["hit"].cast(pl.Int64)
            self.series.add("hits", acquired["time"], hits)
            self.series.add("misses", acquired["time"], 1 - hits)

    def _take_sizes(self, frame: pl.DataFrame) -> None:
        def either(now: str, otherwise: str) -> pl.Expr:
            return pl.coalesce(now, otherwise)

        sizes = frame.select(
            "time",
            size=either("total_size_bytes", "total_size_before_bytes"),
            size_then=either("total_size_bytes", "total_size_after_bytes"),
            code=either("code_size_bytes", "code_size_before_bytes"),
            code_then=either("code_size_bytes", "code_size_after_bytes"),
        ).drop_nulls()
        if len(sizes):
            for name in ("size", "code"):
                self.series.level(name, sizes["time"], sizes[name], sizes[f"{name}_then"])
            size, code = sizes.select(pl.col("size", "code").max()).row(0)
            self.peak_size = max(self.peak_size, size)
            self.peak_code = max(self.peak_code, code)

    def _take_loads(self, loaded: pl.DataFrame) -> None:
        self.loads.take(loaded["load_seconds"])
        self.module_loads += int(loaded["module_loaded"].sum())

    def _take_evictions(self, evicted: pl.DataFrame) -> None:
        self.ages.take(evicted["age_seconds"])
        grouped = evicted.group_by("reason", "function", "arg_types", "group").agg(
            pl.len(), pl.col("freed_bytes").sum(), pl.col("freed_code_bytes").sum()
        )
        for reason, function, types, group, number, freed, freed_code in grouped.iter_rows():
            gone = self.gone.setdefault((reason, (function, types, group)), Gone())
            gone.count += number
            gone.freed_bytes += freed
            gone.freed_code_bytes += freed_code
        for (reason,), rows in evicted.group_by("reason"):
            self.series.add(f"evicted {reason}", rows["time"])

    def tell(self, notes: Notes) -> None:
        """What there is to say about this log."""
        order, name = self.order, f"cache {cite(self.cache)}"
        if order.lost:
            notes.problem(f"{name}: {count(order.lost, 'event')} lost: the cache's buffer was full")
        if order.missing:
            notes.problem(f"{name}: {count(order.missing, 'event')} missing{_where(order)}")
        if order.first > 1:
            notes.remark(f"{name}: begins with event {order.first:,}, not with the first")
        if order.late:
            notes.remark(f"{name}: {count(order.late, 'event')} came out of order: put in order")
        if order.repeated:
            notes.remark(f"{name}: {count(order.repeated, 'event')} came twice: counted once")
        if self.clock.jumps:
            jumps = count(self.clock.jumps, "time")
            notes.problem(f"{name}: the clock jumped back {jumps}: time is counted on from there")
        if self.clock.long_silences:
            notes.remark(
                f"{name}: nothing happened for {seconds(self.clock.longest_silence)}, or the clock "
                "jumped forward"
            )
        if self.names.others:
            notes.remark(
                f"{name}: more than {MAX_KEYS:,} functions in groups: the later ones are counted "
                "together, as (others)"
            )


def _where(order: Order) -> str:
    first = [f"{one:,}" if one == last else f"{one:,} to {last:,}" for one, last in order.gaps[:3]]
    return ": " * bool(first) + ", ".join(first) + ", ..." * (len(order.gaps) > 3)


@define(eq=False)
class Summary:
    """All caches of a log, in order of appearance."""

    thrash_seconds: float = THRASH_SECONDS
    caches: dict[str, CacheSummary] = Factory(dict)
    left_out: int = 0
    """Events of caches that were too many."""

    def take(self, frame: pl.DataFrame) -> None:
        """Add the events of a block up."""
        for (name,), part in frame.partition_by("cache", maintain_order=True, as_dict=True).items():
            cache = self.caches.get(name)
            if cache is None:
                if len(self.caches) >= MAX_CACHES:
                    self.left_out += len(part)
                    continue
                cache = self.caches[name] = CacheSummary(name, Fates(self.thrash_seconds))
            cache.take(part)

    def tell(self, notes: Notes) -> None:
        """What there is to say about all of them."""
        if len(self.caches) > 1:
            names = ", ".join(map(cite, [*self.caches][:4]))
            more = ", ..." if len(self.caches) > 4 else ""
            notes.remark(
                f"{len(self.caches):,} caches in this log, each by itself below: {names}{more}"
            )
        if self.left_out:
            notes.problem(
                f"more than {MAX_CACHES:,} caches: {count(self.left_out, 'event')} of the later "
                "ones left out"
            )
        for cache in self.caches.values():
            cache.tell(notes)
