"""Follows evicted instances: whether they were loaded again, and how soon, or never reused.

Followed for each function in each group, in the order of evictions and loads, as the result depends
on it. A load after an eviction is charged to the reason of the latest one: it would not have been
needed, had that instance been kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import polars as pl
from attrs import Factory, define

from ..reading.names import OTHERS, Key
from .wanted import Ghosts, Wanted

# Reasons of evictions that another limit would have prevented.
LIMITS = ("size", "count", "idle", "code", "stack", "oversized")
# Number of evictions of one entry that are remembered; few entries have as many instances.
MAX_GONE = 64
# {reason: limit that would have to be raised by what went for it}.
LINES = {"size": "size", "code": "code", "stack": "code", "count": "count"}


class Gone(NamedTuple):
    """An evicted instance that was not loaded again yet."""

    at: float
    reason: str
    last_used: float
    ghost: int | None
    """Number among those that went for the same limit, except time."""


@define
class Fate:
    """Loads and evictions of one function in one group."""

    loads: int = 0
    load_seconds: float = 0.0
    evictions: int = 0
    thrashed: int = 0
    """Number of loads soon after an eviction whose reason is a limit."""
    never_reused: int = 0
    """Number of instances evicted after at most one lease."""
    gone: list[Gone] = Factory(list)
    """Evictions that no load followed, the latest last."""


@define
class Paid:
    """Loads made necessary by evictions."""

    count: int = 0
    seconds: float = 0.0


@define(eq=False)
class Fates:
    """Loads and evictions of one cache.

    Args:
        thrash_seconds: Time between an eviction and a load that counts as thrash, at most.
    """

    thrash_seconds: float
    by_key: dict[Key, Fate] = Factory(dict)
    paid: dict[str, Paid] = Factory(dict)
    """{reason of the eviction: loads}."""
    thrash_load_seconds: float = 0.0
    idle_timeout: float = math.inf
    """The timeout in force (seconds)."""
    wanted: dict[str, Wanted] = Factory(dict)
    """{reason: the loads that are thrash}."""
    on_seats: int = 0
    """Number of loads on seats, for functions that get a new instance for each lease."""
    _ghosts: dict[str, Ghosts] = Factory(dict)  # {limit: those evicted for it}

    def take(self, frame: pl.DataFrame, times: pl.Series) -> None:
        """Add events of one cache, in order; `times` are seconds since its first event."""
        relevant = frame["event"].is_in(["wasmcache.loaded", "wasmcache.evicted"])
        columns = ["function", "arg_types", "group", "reason", "load_seconds", "uses", "seat"]
        columns += ["idle_seconds", "freed_bytes", "freed_code_bytes"]
        rows = frame.filter(relevant).select(columns)
        lists = [rows[name].to_list() for name in columns]
        for at, function, types, group, reason, seconds, uses, seat, idle, freed, code in zip(
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
            if key != OTHERS:  # these can't be matched with their loads
                ghost, line = None, LINES.get(reason)
                if line is not None:
                    weight = {"size": freed, "code": code}.get(line, 1)
                    ghost = self._ghosts.setdefault(line, Ghosts()).put(weight)
                fate.gone.append(Gone(at, reason, at - idle, ghost))
                del fate.gone[:-MAX_GONE]

    def _loaded_again(self, fate: Fate, at: float, seconds: float) -> None:
        gone = fate.gone.pop()
        reason = gone.reason
        paid = self.paid.setdefault(reason, Paid())
        paid.count += 1
        paid.seconds += seconds
        need = math.inf
        if gone.ghost is not None:
            need = self._ghosts[LINES[reason]].take(gone.ghost)
            if at - gone.last_used >= self.idle_timeout:  # then it would have gone for that
                need = math.inf
        elif reason == "idle":
            need = at - gone.last_used
        if reason in LIMITS and at - gone.at <= self.thrash_seconds:
            fate.thrashed += 1
            self.thrash_load_seconds += seconds
            self.wanted.setdefault(reason, Wanted()).add(need, seconds)
