"""What the log of each cache adds up to, block by block, in memory that does not grow with it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl
from attrs import Factory, define

from .entries import Fates
from .histogram import Histogram
from .leases import LeaseBook
from .notes import Notes, count
from .order import Order
from .series import Series

# The clock only goes forward. Events of one step may be told with the time of its beginning, so
# some microseconds backwards are nothing; this much is another machine's clock, or a broken one.
JUMP = 1.0
THRASH_SECONDS = 10.0
EVICTED = "wasmcache.evicted"
LIMITS = (
    "max_size_bytes",
    "max_instance_size_bytes",
    "max_instances",
    "max_code_size_bytes",
    "idle_timeout_seconds",
)


@define(eq=False)
class CacheSummary:
    """One cache's log."""

    cache: str
    fates: Fates
    order: Order = Factory(Order)
    kinds: Counter[str] = Factory(Counter)
    limits: dict[str, Any] = Factory(dict)
    """Those in force at the end."""
    resizes: int = 0
    log_uses: bool = False
    closed: dict[str, int] | None = None
    """The cache's own counts, if it was closed."""
    leases: LeaseBook = Factory(LeaseBook)
    loads: Histogram = Factory(Histogram)
    module_loads: int = 0
    compile_seconds: float = 0.0
    ages: Histogram = Factory(Histogram)
    idles: Histogram = Factory(Histogram)
    series: Series = Factory(Series)
    evictions: dict[tuple[str, str, str, str], list[int]] = Factory(dict)
    """{(reason, function, argument types, group): [count, bytes, bytes of code]}."""
    jumps: int = 0
    longest_silence: float = 0.0
    peak_size: int = 0
    peak_code: int = 0
    _began: float | None = None
    _clock: float = 0.0
    _shift: float = 0.0

    def take(self, frame: pl.DataFrame) -> None:
        """Add events of this cache up."""
        last = self.order.last
        frame = self.order.sort(frame)
        if not len(frame):
            return
        times = self._times(frame["at_seconds"], int((frame["seq"] <= last).sum()))
        end = times.max()
        assert isinstance(end, float)
        self.series.reach(end)
        for kind, number in frame["event"].value_counts().iter_rows():
            self.kinds[kind] += number
        self._take_rare(frame)
        self.fates.take(frame, times)
        frame = frame.with_columns(times.alias("time"))
        self._take_leases(frame)
        self._take_loads(frame)
        self._take_evictions(frame.filter(pl.col("event") == EVICTED))

    def _times(self, clock: pl.Series, late: int) -> pl.Series:
        """Seconds since the first event; where the clock jumps back, time goes on from there.

        Args:
            late: so many at the front fill gaps that earlier blocks left.
        """
        if self._began is None:
            self._began = self._clock = clock[0]
        shifts = pl.repeat(self._shift, len(clock), eager=True)
        fresh = clock[late:]
        if len(fresh):
            before = pl.concat([pl.Series([self._clock]), fresh[:-1]])
            steps = fresh - before
            self._clock = fresh[-1]
            longest = steps.max()
            assert isinstance(longest, float)
            self.longest_silence = max(self.longest_silence, longest)
            back = steps < -JUMP
            if back.any():
                self.jumps += int(back.sum())
                zeros = pl.zeros(len(steps), eager=True)
                jumped = (-steps).zip_with(back, zeros).cum_sum() + self._shift
                shifts = pl.concat([shifts[:late], jumped])
                self._shift = jumped[-1]
        return clock - self._began + shifts

    def _take_rare(self, frame: pl.DataFrame) -> None:
        rare = ["opened", "resized", "closed", "registered", "lost"]
        rows = frame.filter(pl.col("event").is_in([f"wasmcache.{name}" for name in rare]))
        for row in rows.iter_rows(named=True):
            match row["event"].removeprefix("wasmcache."):
                case "opened":
                    self.limits = {name: row[name] for name in LIMITS}
                    self.log_uses = row["log_uses"]
                case "resized":
                    self.limits = {name: row[name] for name in LIMITS}
                    self.resizes += 1
                case "closed":
                    names = ("hits", "misses", "blocks", "calls", "evictions")
                    self.closed = {name: row[name] for name in names}
                case "registered":
                    self.compile_seconds += row["compile_seconds"]
                case _:
                    self.order.lose(row["count"])

    def _take_leases(self, frame: pl.DataFrame) -> None:
        acquired = self.leases.take(frame)
        series = self.series
        if len(acquired):
            series.add("hits", acquired["time"], acquired["hit"].cast(pl.Int64))
            series.add("misses", acquired["time"], (~acquired["hit"]).cast(pl.Int64))
        sizes = frame.select(
            "time",
            pl.coalesce("total_size_bytes", "total_size_before_bytes").alias("size"),
            pl.coalesce("code_size_bytes", "code_size_before_bytes").alias("code"),
        ).drop_nulls()
        if len(sizes):
            series.peak("size", sizes["time"], sizes["size"])
            series.peak("code", sizes["time"], sizes["code"])
            self.peak_size = max(self.peak_size, sizes["size"].max())  # type: ignore[type-var]
            self.peak_code = max(self.peak_code, sizes["code"].max())  # type: ignore[type-var]

    def _take_loads(self, frame: pl.DataFrame) -> None:
        loaded = frame.filter(pl.col("event") == "wasmcache.loaded")
        if len(loaded):
            self.loads.take(loaded["load_seconds"])
            self.module_loads += int(loaded["module_loaded"].sum())
            self.series.add("load_seconds", loaded["time"], loaded["load_seconds"])

    def _take_evictions(self, evicted: pl.DataFrame) -> None:
        if not len(evicted):
            return
        self.ages.take(evicted["age_seconds"])
        self.idles.take(evicted.filter(pl.col("reason") == "idle")["idle_seconds"])
        grouped = evicted.group_by("reason", "function", "arg_types", "group").agg(
            pl.len(), pl.col("freed_bytes").sum(), pl.col("freed_code_bytes").sum()
        )
        for reason, function, types, group, *numbers in grouped.iter_rows():
            sums = self.evictions.setdefault((reason, function, types, group), [0, 0, 0])
            for index, number in enumerate(numbers):
                sums[index] += number
        for (reason,), rows in evicted.group_by("reason"):
            self.series.add(f"evicted {reason}", rows["time"])

    @property
    def span(self) -> float:
        """Seconds from the first event to the last."""
        return self.series.end

    def tell(self, notes: Notes) -> None:
        """What there is to say about this log."""
        order, name = self.order, f"cache {self.cache}"
        if order.lost:
            notes.problem(f"{name}: {count(order.lost, 'event')} lost: the cache's buffer was full")
        if order.missing:
            where = ", ".join(
                f"{first}" if first == last else f"{first} to {last}"
                for first, last in order.gaps[:3]
            )
            more = ", ..." if len(order.gaps) > 3 else ""
            notes.problem(f"{name}: {count(order.missing, 'event')} missing: {where}{more}")
        if order.first > 1:
            notes.remark(f"{name}: begins with event {order.first:,}, not with the first")
        if order.late:
            notes.remark(f"{name}: {count(order.late, 'event')} came out of order: put in order")
        if order.repeated:
            notes.remark(f"{name}: {count(order.repeated, 'event')} came twice: counted once")
        if self.jumps:
            jumps = count(self.jumps, "time")
            notes.problem(f"{name}: the clock jumped back {jumps}: time is counted on from there")


@define(eq=False)
class Summary:
    """All caches of a log, in order of appearance."""

    thrash_seconds: float = THRASH_SECONDS
    caches: dict[str, CacheSummary] = Factory(dict)

    def take(self, frame: pl.DataFrame) -> None:
        """Add the events of a block up."""
        for part in frame.partition_by("cache", maintain_order=True):
            name = part["cache"][0]
            cache = self.caches.get(name)
            if cache is None:
                cache = self.caches[name] = CacheSummary(name, Fates(self.thrash_seconds))
            cache.take(part)

    def tell(self, notes: Notes) -> None:
        """What there is to say about all of them."""
        if len(self.caches) > 1:
            names = ", ".join([*self.caches][:4]) + (", ..." if len(self.caches) > 4 else "")
            notes.remark(f"{len(self.caches)} caches in this log: {names}; each by itself below")
        for cache in self.caches.values():
            cache.tell(notes)
