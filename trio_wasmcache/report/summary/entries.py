"""What became of what was evicted: loaded again, and how soon; or never used a second time.

Followed for each function in each group, one eviction and one load after the other, because it is
the order that tells. A load that comes after an eviction is charged to the reason of the latest
one: it would not have been needed, had that instance stayed.
"""

from __future__ import annotations

import polars as pl
from attrs import Factory, define

from ..reading.names import OTHERS, Key

# Reasons for which an instance goes that another limit would have kept.
LIMITS = ("size", "count", "idle", "code", "stack", "oversized")
# Evictions of one entry that still wait for a load; few entries have so many instances.
MAX_GONE = 64


@define
class Fate:
    """Of one function in one group."""

    loads: int = 0
    load_seconds: float = 0.0
    evictions: int = 0
    thrashed: int = 0
    """Loads soon after an eviction that a limit was the reason of."""
    never_reused: int = 0
    """Instances that went after at most one lease."""
    gone: list[tuple[float, str]] = Factory(list)
    """(when, why) of what was evicted and not loaded again, the latest last."""


@define
class Paid:
    """Loads that evictions made necessary."""

    count: int = 0
    seconds: float = 0.0


@define(eq=False)
class Fates:
    """Of all. Args: thrash_seconds: what counts as soon."""

    thrash_seconds: float
    by_key: dict[Key, Fate] = Factory(dict)
    paid: dict[str, Paid] = Factory(dict)
    """By the reason of the eviction."""
    thrash_load_seconds: float = 0.0
    on_seats: int = 0
    """Loads of functions that get a new instance for each lease; no eviction made them so."""

    def take(self, frame: pl.DataFrame, times: pl.Series) -> None:
        """Take events of one cache in order; `times` are seconds since its first event."""
        relevant = frame["event"].is_in(["wasmcache.loaded", "wasmcache.evicted"])
        columns = ["function", "arg_types", "group", "reason", "load_seconds", "uses", "seat"]
        rows = frame.filter(relevant).select(columns)
        lists = [rows[name].to_list() for name in columns]
        for at, function, types, group, reason, seconds, uses, seat in zip(
            times.filter(relevant).to_list(), *lists, strict=True
        ):
            key = (function, types, group)
            fate = self.by_key.get(key)
            if fate is None:
                fate = self.by_key[key] = Fate()
            if reason is None:
                fate.loads += 1
                fate.load_seconds += seconds
                if seat:
                    self.on_seats += 1
                elif fate.gone:
                    self._loaded_again(fate, at, seconds)
                continue
            fate.evictions += 1
            fate.never_reused += uses <= 1
            if key != OTHERS:  # of whom it is not known who is loaded again
                fate.gone.append((at, reason))
                del fate.gone[:-MAX_GONE]

    def _loaded_again(self, fate: Fate, at: float, seconds: float) -> None:
        gone_at, reason = fate.gone.pop()
        paid = self.paid.setdefault(reason, Paid())
        paid.count += 1
        paid.seconds += seconds
        if reason in LIMITS and at - gone_at <= self.thrash_seconds:
            fate.thrashed += 1
            self.thrash_load_seconds += seconds
