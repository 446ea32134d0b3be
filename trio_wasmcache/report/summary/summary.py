"""Sums over the log of each cache, block by block, in memory that does not grow with the log."""

from __future__ import annotations

import math
from collections import Counter

import polars as pl
from attrs import Factory, define

from ..._core.events import Reason
from ..reading.clock import Clock
from ..reading.frames import CONTEXT_LOST, TYPES
from ..reading.names import KEY, MAX_KEYS, OTHERS, Key, Names, Space
from ..reading.notes import Notes, cite, count
from ..reading.order import Order
from ..reading.units import seconds
from ..replay.books import Limits
from ..replay.start import MAX_SNAPSHOTS
from .entries import Fates
from .failures import Failures
from .histogram import Histogram
from .leases import LeaseBook
from .needs import Needs
from .series import Series
from .waiting import Waiting

THRASH_SECONDS = 10.0
# Number of caches with sums of their own, the first ones in the log; others are counted together.
MAX_CACHES = 100
# Characters of the name of a cache with sums of its own; `open_cache` makes up names of eight.
MAX_NAME = 1000
# Number of caches that are counted; beyond it, the report says that there are more.
MAX_COUNTED = 100_000
# Adding up takes some milliseconds for each cache, however few its events, so it is done for many
# events of a cache at once.
HELD_EVENTS = 100_000
HELD_EVENTS_OF_CACHE = 2000
HELD_BLOCKS = 8
REASONS = [reason.value for reason in Reason]
OTHER = "other"  # a reason that this version does not know
LIMITS = (
    "max_size_bytes",
    "max_instance_size_bytes",
    "max_instances",
    "max_code_size_bytes",
    "idle_timeout_seconds",
    "idle_timeout_policy",
    "min_idle_timeout_seconds",
    "max_idle_timeout_seconds",
)
COUNTS = ("hits", "seat_hits", "misses", "blocks", "calls", "evictions")


@define
class Gone:
    """Evictions: their number, and what they freed."""

    count: int = 0
    freed_bytes: int = 0
    freed_code_bytes: int = 0
    largest_bytes: int = 0
    """The most that one of them freed."""


@define
class Closed:
    """Instances that were closed at the end of a lease, for their size."""

    count: int = 0
    largest_bytes: int = 0


@define
class Overgrown:
    """Leases after which instances could not be reset, when resets of a function were given up."""

    leases: int = 0
    growths: int = 0
    """Number of `leases` whose instances had grown."""


@define(eq=False)
class Sums:
    """Sums that do not depend on the order of events, of one cache or of many."""

    kinds: Counter[str] = Factory(Counter)
    """{event: count}."""
    leases: LeaseBook = Factory(LeaseBook)
    loads: Histogram = Factory(Histogram)
    module_loads: int = 0
    seat_hits: int = 0
    """Number of leases that were hits, and for which an instance was loaded on a seat."""
    compile_seconds: float = 0.0
    ages: Histogram = Factory(Histogram)
    gone: dict[tuple[str, Key], Gone] = Factory(dict)
    """{(reason, key): evictions}."""
    closed: dict[Key, Closed] = Factory(dict)
    """{key: instances that left a seat, as they exceed `max_instance_size`}."""
    overgrown: dict[tuple[str, str], Overgrown] = Factory(dict)
    """{function and types: leases, of those that are not reset any more}."""
    lost: int = 0
    """Number of events that a cache reports as dropped."""
    context_lost: int = 0
    """Number of events without the context of the task that caused them."""

    def take(self, frame: pl.DataFrame) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
        """Add events.

        Returns:
            {kind of event: events}, and the leases granted, without those by `warm`.
        """
        nothing = frame.clear()
        parts = dict.fromkeys(TYPES, nothing)
        for (kind,), part in frame.partition_by("event", as_dict=True).items():
            self.kinds[kind] += len(part)
            parts[kind] = part
        loaded, evicted = parts["wasmcache.loaded"], parts["wasmcache.evicted"]
        self.compile_seconds += float(parts["wasmcache.registered"]["compile_seconds"].sum())
        self.lost += int(parts["wasmcache.lost"]["count"].sum())
        self.context_lost += int(frame[CONTEXT_LOST].sum())
        if len(loaded):
            self.loads.take(loaded["load_seconds"], loaded["request"])
            self.module_loads += int(loaded["module_loaded"].sum())
            unasked = pl.any_horizontal(pl.col("warmed", "promoted").fill_null(value=False)).not_()
            self.seat_hits += len(loaded.filter(pl.col("seat") & unasked))
        if len(evicted):
            self._take_evictions(evicted)
        closed = parts["wasmcache.recycled"].filter(pl.col("closed_size_bytes").is_not_null())
        for function, types, group, number, largest in (
            closed.group_by(KEY).agg(pl.len(), pl.col("closed_size_bytes").max()).iter_rows()
        ):
            one = self.closed.setdefault((function, types, group), Closed())
            one.count += number
            one.largest_bytes = max(one.largest_bytes, largest)
        grown = parts["wasmcache.overgrown"]
        for function, types, leases, growths in (
            grown.group_by(KEY[:2]).agg(pl.col("leases").sum(), pl.col("growths").sum()).iter_rows()
        ):
            vain = self.overgrown.setdefault((function, types), Overgrown())
            vain.leases += leases
            vain.growths += growths
        return parts, self.leases.take(parts)

    def _take_evictions(self, evicted: pl.DataFrame) -> None:
        self.ages.take(evicted["age_seconds"])
        grouped = evicted.group_by("reason", "function", "arg_types", "group").agg(
            pl.col("evictions").fill_null(1).sum(),
            pl.col("freed_bytes").sum(),
            pl.col("freed_code_bytes").sum(),
            pl.col("freed_bytes").max().alias("largest"),
        )
        for reason, function, types, group, number, freed, freed_code, most in grouped.iter_rows():
            gone = self.gone.setdefault((reason, (function, types, group)), Gone())
            gone.count += number
            gone.freed_bytes += freed
            gone.freed_code_bytes += freed_code
            gone.largest_bytes = max(gone.largest_bytes, most)


def _without_context(sums: Sums) -> str:
    number = count(sums.context_lost, "event")
    return f"{number} without the context of their tasks: the log's sink was too slow"


def _with_known_reasons(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(
        pl.when(pl.col("reason").is_in(REASONS) | pl.col("reason").is_null())
        .then("reason")
        .otherwise(pl.lit(OTHER))
        .alias("reason")
    )


@define(eq=False)
class CacheSummary:
    """Sums over one cache's log."""

    cache: str
    fates: Fates
    names: Names = Factory(Names)
    label: str = ""
    """Label of the cache, as it was given to `open_cache`."""
    order: Order = Factory(Order)
    clock: Clock = Factory(Clock)
    sums: Sums = Factory(Sums)
    limits: Limits = Factory(dict)
    """The limits in force at the end."""
    resizes: int = 0
    log_uses: bool = False
    whole_from: int = 0
    """Number of the event before the first snapshot that is all there; 0: there is none."""
    closed: dict[str, int] | None = None
    """The cache's own counts, if it was closed."""
    began: str | None = None
    """The timestamp of the first event that has one."""
    ended: str | None = None
    """The timestamp of the last event that has one."""
    waiting: Waiting = Factory(Waiting)
    failures: Failures = Factory(Failures)
    needs: Needs = Factory(Needs)
    series: Series = Factory(Series)
    peak_size: int = 0
    peak_code: int = 0
    _parts: dict[int, set[int]] = Factory(dict)
    """{number of the event before a snapshot: numbers of its parts}."""

    def take(self, frame: pl.DataFrame) -> None:
        """Add events of this cache."""
        last = self.order.last
        frame = self.order.sort(frame)
        if not len(frame):
            return
        frame = _with_known_reasons(self.names.limit(frame))
        times = self.clock.times(frame["at_seconds"], int((frame["seq"] <= last).sum()))
        end = times.max()
        assert isinstance(end, float)
        self.series.reach(end)
        frame = frame.with_columns(times.alias("time"))
        parts, acquired = self.sums.take(frame)
        known = bool(self.limits)
        self._take_rare(frame, parts)
        self.needs.take(parts["wasmcache.evicted"])
        if not known and self.limits and not len(parts["wasmcache.opened"]):  # by a snapshot
            names = ("idle_timeout_policy", "idle_timeout_seconds", "max_idle_timeout_seconds")
            self.fates.resize(*(self.limits.get(name) for name in names))
        self.fates.max_size = self.limits.get("max_size_bytes", math.inf)
        for name in ("group_opened", "group_resized"):
            limits = parts[f"wasmcache.{name}"].select("group", "max_size_bytes")
            for group, limit in limits.iter_rows():
                self.fates.own_limits.pop(group, None)
                if limit is not None:
                    self.fates.own_limits[group] = limit
        self.fates.take(frame, times)
        self.waiting.take(frame, times)
        self.failures.take(frame)
        self._take_sizes(frame)
        if len(acquired):
            hits = acquired["hit"].cast(pl.Int64)
            self.series.add("hits", acquired["time"], hits)
            self.series.add("misses", acquired["time"], 1 - hits)
        for (reason,), rows in parts["wasmcache.evicted"].group_by("reason"):
            self.series.add(f"evicted {reason}", rows["time"])

    def _take_rare(self, frame: pl.DataFrame, parts: dict[str, pl.DataFrame]) -> None:
        if not self.label:
            labels = frame["label"].drop_nulls()
            self.label = labels[0][:MAX_NAME] if len(labels) else ""
        stamps = frame["timestamp"].drop_nulls()
        if len(stamps):
            self.began = self.began or stamps[0][:MAX_NAME]
            self.ended = stamps[-1][:MAX_NAME]
        for row in parts["wasmcache.opened"].iter_rows(named=True):
            self.limits = {name: row[name] for name in LIMITS}
            self.log_uses = row["log_uses"]
        for row in parts["wasmcache.snapshot"].iter_rows(named=True):
            if not self.limits:  # the log has lost its beginning
                self.limits = {name: row[name] for name in LIMITS}
                self.log_uses = row["log_uses"]
            if not self.whole_from:
                self._take_part(row["at_seq"], row["part"], row["parts"])
        for row in parts["wasmcache.resized"].iter_rows(named=True):
            self.limits = {name: row[name] for name in LIMITS}
            self.resizes += 1
        for row in parts["wasmcache.closed"].iter_rows(named=True):
            self.closed = {name: row[name] for name in COUNTS}
        for number, first in parts["wasmcache.lost"].select("count", "first_seq").iter_rows():
            self.order.lose(number, first)

    def _take_part(self, at: int, part: int, parts: int) -> None:
        """Take note of a part of a snapshot, until one is all there."""
        found = self._parts.setdefault(at, set())
        found.add(part)
        if len(found) == parts and at >= self.order.first - 1:
            self.whole_from = at
            self._parts.clear()
        elif len(self._parts) > MAX_SNAPSHOTS:
            del self._parts[min(self._parts)]

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

    def tell(self, notes: Notes) -> None:
        """Note problems of this log."""
        order, name = self.order, f"cache {cite(self.cache)}"
        if order.lost:
            notes.problem(f"{name}: {count(order.lost, 'event')} lost: the cache's buffer was full")
        if self.sums.context_lost:
            notes.remark(f"{name}: {_without_context(self.sums)}")
        if order.missing:
            notes.problem(f"{name}: {count(order.missing, 'event')} missing{_where(order)}")
        if order.first > 1:
            text = f"{name}: begins with event {order.first:,}, not with the first"
            if self.whole_from:  # by rotation: the limits are known, and all that follows is there
                notes.remark(f"{text}; the earlier ones are not counted")
            else:
                notes.problem(text)
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
class Others:
    """Sums over the caches that are counted together.

    Each has its own clock and sequence numbers, so times and orders are not reported; a request is
    identified by its number and the name of its cache.
    """

    sums: Sums = Factory(Sums)
    peak_size: int = 0
    peak_code: int = 0
    _names: set[int] = Factory(set)  # hashes of the caches' names

    @property
    def count(self) -> int:
        """Number of caches, at most `MAX_COUNTED`."""
        return len(self._names)

    @property
    def more(self) -> bool:
        """Whether there may be more caches than were counted."""
        return self.count >= MAX_COUNTED

    @property
    def counted(self) -> str:
        """The number as text: ``19,900 caches``, or more than that."""
        more = "more than " * self.more
        return more + count(self.count, "cache")

    def take(self, frame: pl.DataFrame) -> None:
        """Add events of several caches."""
        if self.count < MAX_COUNTED:
            self._names.update(frame["cache"].unique().hash()[: MAX_COUNTED - self.count])
        named = pl.col("function").is_not_null(), pl.col("group").is_not_null()
        function, types, group = (pl.lit(name) for name in OTHERS)
        frame = _with_known_reasons(frame).with_columns(
            pl.when(named[0]).then(function).alias("function"),
            pl.when(named[0]).then(types).alias("arg_types"),
            pl.when(named[1]).then(group).alias("group"),
            pl.when(pl.col("request").is_not_null()).then(
                pl.struct("cache", "request").hash().reinterpret(signed=True).alias("request")
            ),
        )
        self.sums.take(frame)
        size, code = frame.select(
            pl.max_horizontal("total_size_bytes", "total_size_before_bytes").max().fill_null(0),
            pl.max_horizontal("code_size_bytes", "code_size_before_bytes")
            .max()
            .fill_null(0)
            .alias("code"),
        ).row(0)
        self.peak_size = max(self.peak_size, size)
        self.peak_code = max(self.peak_code, code)


@define(eq=False)
class Summary:
    """All caches of a log: the first `MAX_CACHES` by themselves, the others together."""

    thrash_seconds: float | None = None
    """Time within which a load is thrash; None: `THRASH_SECONDS`, or the timeout, if longer."""
    caches: dict[str, CacheSummary] = Factory(dict)
    """{name: sums}, in order of appearance."""
    others: Others = Factory(Others)
    space: Space = Factory(Space)
    _held: list[pl.DataFrame] = Factory(list)  # blocks that are not added up yet
    _held_events: int = 0

    def take(self, frame: pl.DataFrame) -> None:
        """Add the events of a block, now or in `add_up`."""
        self._held.append(frame)
        self._held_events += len(frame)
        enough = min(HELD_EVENTS, HELD_EVENTS_OF_CACHE * len(self.caches))
        if self._held_events >= enough or len(self._held) >= HELD_BLOCKS:
            self.add_up()

    def add_up(self) -> None:
        """Add up the blocks held back."""
        if not self._held:
            return
        frame = self._held[0] if len(self._held) == 1 else pl.concat(self._held, rechunk=True)
        self._held, self._held_events = [], 0
        late = False
        for name in frame["cache"].unique(maintain_order=True):
            if name not in self.caches:
                if len(self.caches) < MAX_CACHES and len(name) <= MAX_NAME:
                    self._open(name)
                else:
                    late = True
        if late:
            apart = frame["cache"].is_in([*self.caches])
            self.others.take(frame.filter(~apart))
            frame = frame.filter(apart)
        for (name,), part in frame.partition_by("cache", maintain_order=True, as_dict=True).items():
            self.caches[name].take(part)

    def _open(self, name: str) -> None:
        names = Names(self.space)
        within = self.thrash_seconds
        fates = Fates(THRASH_SECONDS, or_timeout=True) if within is None else Fates(within)
        self.caches[name] = CacheSummary(name, fates, names)

    def tell(self, notes: Notes) -> None:
        """Note the number of caches, and problems of their logs."""
        others = self.others
        if len(self.caches) > 1 or others.count:
            names = ", ".join(map(cite, [*self.caches][:4]))
            more = ", ..." if len(self.caches) > 4 else ""
            notes.remark(
                f"{count(len(self.caches), 'cache')} in this log, which --by-cache shows one by "
                f"one: {names}{more}"
            )
        if others.count:
            notes.remark(
                f"{others.counted} more, whose events are only added up, all together: "
                "--cache ID tells of one of them"
            )
        if others.sums.lost:
            notes.problem(
                f"other caches: {count(others.sums.lost, 'event')} lost: a cache's buffer was full"
            )
        if others.sums.context_lost:
            notes.remark(f"other caches: {_without_context(others.sums)}")
        for cache in self.caches.values():
            cache.tell(notes)
