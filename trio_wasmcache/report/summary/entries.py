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

from ..._core.config import ADAPTIVE
from ..reading.names import KEY_LETTERS, OTHERS, Key
from .wanted import Ghosts, Wanted

# Reasons of evictions that another limit would have prevented.
LIMITS = ("size", "count", "idle", "code", "stack", "oversized")
# Number of evictions of one entry that are remembered; few entries have as many instances.
MAX_GONE = 64
# Number of pairs of groups that are followed, the first ones in the log.
MAX_PAIRS = 2000
# {reason: limit that would have to be raised by what went for it}.
LINES = {"size": "size", "code": "code", "stack": "code", "count": "count"}
Limit = tuple[str, str | None]
"""(reason, group whose own limit it is, or None)."""


class Gone(NamedTuple):
    """An evicted instance that was not loaded again yet."""

    at: float
    reason: str
    last_used: float
    group: str | None
    """The group whose own limit it was; None: a limit of the cache."""
    ghost: int | None
    """Number among those that went for the same limit, except time."""
    culprit: str | None
    """Another group, whose need it was."""
    freed_bytes: int
    timeout: float
    """The idle timeout in force when it went (seconds); of adaptive ones, the longest."""
    within: float
    """Time in which a load of it is thrash, at most (seconds)."""


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


@define
class TimedOut:
    """Instances that were evicted for time; of known functions only."""

    evictions: int = 0
    wanted: int = 0
    """Number of those that were loaded again soon."""
    load_seconds: float = 0.0
    """Time spent on these loads."""
    vain_seconds: float = 0.0
    """Time for which the others were kept, all together."""
    vain_byte_seconds: float = 0.0
    """The same, times their bytes."""

    def keep(self, seconds: float, size: int, sign: int = 1) -> None:
        """Add an instance that was kept in vain; with `sign` -1, subtract it."""
        self.vain_seconds += sign * seconds
        self.vain_byte_seconds += sign * seconds * size


@define
class Against:
    """Instances of one group that went for the need of another."""

    evictions: int = 0
    thrashed: int = 0
    """Number of loads soon after such an eviction for a limit."""
    seconds: float = 0.0
    """Time spent on these loads."""


@define(eq=False)
class Fates:
    """Loads and evictions of one cache.

    Args:
        thrash_seconds: time between an eviction and a load that counts as thrash, at most.
        or_timeout: whether that is the idle timeout in force, for evictions for time, if that is
            longer: an instance that was worth keeping for as long is worth it once more.
    """

    thrash_seconds: float
    or_timeout: bool = False
    by_key: dict[Key, Fate] = Factory(dict)
    paid: dict[str, Paid] = Factory(dict)
    """{reason of the eviction: loads}."""
    thrash_load_seconds: float = 0.0
    timed_out: TimedOut = Factory(TimedOut)
    idle_thrash_seconds: float = Factory(lambda self: self.thrash_seconds, takes_self=True)
    """The same time for evictions for time; the longest, if it has changed."""
    idle_timeout: float = math.inf
    """The timeout in force (seconds); of adaptive ones, the longest."""
    adaptive: bool = False
    """Whether that is so."""
    max_size: float = math.inf
    """The limit in force (bytes)."""
    own_limits: dict[str, int] = Factory(dict)
    """{group: limit of its idle instances (bytes)}, of groups that have one."""
    wanted: dict[Limit, Wanted] = Factory(dict)
    """{limit: the loads that are thrash}."""
    against: dict[tuple[str, str], Against] = Factory(dict)
    """{(group, group whose need it was): evictions}."""
    on_seats: int = 0
    """Number of loads on seats, for functions that get a new instance for each lease."""
    _ghosts: dict[Limit, Ghosts] = Factory(dict)  # {limit: those evicted for it}

    def resize(self, policy: str | None, timeout: float | None, longest: float | None) -> None:
        """Take the idle timeout from now on, as events of limits have it."""
        self.adaptive = policy == ADAPTIVE
        timeout = longest if self.adaptive else timeout
        self.idle_timeout = math.inf if timeout is None else timeout

    def take(self, frame: pl.DataFrame, times: pl.Series) -> None:
        """Add events of one cache, in order; `times` are seconds since its first event."""
        relevant = frame["event"].is_in(
            ["wasmcache.loaded", "wasmcache.evicted", "wasmcache.opened", "wasmcache.resized"]
        )
        columns = ["function", "arg_types", "group", "reason", "load_seconds", "uses", "seat"]
        # An instance that was made in the background was made for no lease.
        relevant &= ~(frame["promoted"].fill_null(False))
        columns += ["idle_seconds", "freed_bytes", "freed_code_bytes"]
        columns += ["total_size_before_bytes", "for_group", "replaced_by", "evictions"]
        columns += ["idle_timeout_policy", "idle_timeout_seconds", "max_idle_timeout_seconds"]
        rows = frame.filter(relevant).select(columns)
        lists = [rows[name].to_list() for name in columns]
        for at, *row in zip(times.filter(relevant).to_list(), *lists, strict=True):
            function, types, group, reason, seconds, uses, seat = row[:7]
            if function is None:
                self.resize(*row[-3:])
                continue
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
                    self._loaded_again(fate, group, at, seconds)
                continue
            *facts, replaced_by, several = row[7:-3]
            fate.evictions += several or 1
            if replaced_by is not None:
                continue  # its lease went on, and no load will follow
            fate.never_reused += uses <= 1
            if key != OTHERS:  # these can't be matched with their loads
                idle, freed, code, before, culprit = facts
                own = None
                if reason == "size" and group in self.own_limits and culprit == group:
                    # With room left in the cache, it was the limit of the group.
                    own = group if before + freed <= self.max_size else None
                if culprit == group or not self._note(group, culprit):
                    culprit = None
                ghost, line = None, LINES.get(reason)
                if line is not None:
                    weight = {"size": freed, "code": code}.get(line, 1)
                    ghost = self._ghosts.setdefault((line, own), Ghosts()).put(weight)
                within = self._within(reason)
                fate.gone.append(
                    Gone(
                        *(at, reason, at - idle, own, ghost, culprit, freed),
                        *(self.idle_timeout, within),
                    )
                )
                if reason == "idle":
                    self.idle_thrash_seconds = max(self.idle_thrash_seconds, within)
                    self.timed_out.evictions += 1
                    self.timed_out.keep(idle, freed)
                del fate.gone[:-MAX_GONE]

    def _within(self, reason: str) -> float:
        if reason == "idle" and self.or_timeout and self.idle_timeout < math.inf:
            return max(self.thrash_seconds, self.idle_timeout)
        return self.thrash_seconds

    def _note(self, group: str, culprit: str | None) -> bool:
        """Count an eviction for the need of another group; return whether it is followed."""
        if culprit is None or len(culprit) > KEY_LETTERS:
            return False
        pair = (group, culprit)
        if pair not in self.against and len(self.against) >= MAX_PAIRS:
            return False
        self.against.setdefault(pair, Against()).evictions += 1
        return True

    def _loaded_again(self, fate: Fate, group: str, at: float, seconds: float) -> None:
        gone = fate.gone.pop()
        reason = gone.reason
        paid = self.paid.setdefault(reason, Paid())
        paid.count += 1
        paid.seconds += seconds
        need = math.inf
        if gone.ghost is not None:
            need = self._ghosts[LINES[reason], gone.group].take(gone.ghost)
            if at - gone.last_used >= self.idle_timeout:  # then it would have gone for that
                need = math.inf
        elif reason == "idle":
            need = at - gone.last_used
        if reason in LIMITS and at - gone.at <= gone.within:
            fate.thrashed += 1
            self.thrash_load_seconds += seconds
            if reason == "idle":
                self.timed_out.wanted += 1
                self.timed_out.load_seconds += seconds
                self.timed_out.keep(gone.at - gone.last_used, gone.freed_bytes, -1)
            if reason != "idle" or not self.adaptive or need > gone.timeout:
                # An adaptive timeout below the longest is a decision, which no limit would change.
                self.wanted.setdefault((reason, gone.group), Wanted()).add(need, seconds)
            if gone.culprit is not None:
                against = self.against[group, gone.culprit]
                against.thrashed += 1
                against.seconds += seconds
