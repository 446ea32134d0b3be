"""Limits that evict instances which are loaded again soon, or that keep none of a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from attrs import frozen

from ..._core.config import ADAPTIVE
from ..reading.documents import Document
from ..reading.names import Key, shown
from ..reading.notes import cite, count
from ..reading.units import seconds, size, soon
from ..summary.summary import CacheSummary
from ..summary.wanted import Wanted
from ..tuning.advice import in_source
from ..tuning.search import round_up
from .finding import LOG, Finding, of_group, work_of

# A raised limit should avoid this part of the loads; this much less, if half of the raise does.
PART, LESS = 0.9, 0.75
# A limit that avoids less than this is no remedy.
LEAST_AVOIDED = 0.1
# Timeouts that people write (seconds).
TIMES = (0.5, 1, 2, 3, 5, 8, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800, 3600)
MOST_INSTANCES = 16384


@frozen
class Limit:
    """A limit of `CacheConfig`, and the evictions that it causes."""

    kind: str
    words: str
    reasons: tuple[str, ...]
    why: str
    """What these evictions were for."""
    name: str
    """Name in `CacheConfig`."""
    field: str
    """Name in the log."""
    raised: Callable[[float, float], float]
    """Returns a value that people write, given the present one and what is needed of it."""


def _bytes(now: float, need: float) -> int:
    return round_up(math.ceil(now + need))


def _instances(now: float, need: float) -> int:
    return min(MOST_INSTANCES, -(-math.ceil(now + need) // 8) * 8)


def _timeout(_now: float, need: float) -> float:
    return next((time for time in TIMES if time >= need), math.ceil(need / 3600) * 3600.0)


SIZE = Limit(
    *("too_small", "The cache is too small", ("size",), "size"),
    *("max_size", "max_size_bytes", _bytes),
)
COUNT = Limit(
    *("too_few_instances", "The cache may have too few instances", ("count",), "their number"),
    *("max_instances", "max_instances", _instances),
)
TIMEOUT = Limit(
    *("short_timeout", "The idle timeout is too short", ("idle",), "idleness"),
    *("idle_timeout", "idle_timeout_seconds", _timeout),
)
LONGEST = Limit(
    *("short_timeout", "The longest idle timeout is too short", ("idle",), "idleness"),
    *("max_idle_timeout", "max_idle_timeout_seconds", _timeout),
)
CODE = Limit(
    *("code_thrashes", "Code is unloaded too early", ("code", "stack"), "code or stacks"),
    *("max_code_size", "max_code_size_bytes", _bytes),
)


def evicts_too_early(limit: Limit, cache: CacheSummary) -> Finding | None:
    """Return a finding if instances that went for a limit were loaded again soon, too often."""
    if limit is TIMEOUT and cache.limits.get("idle_timeout_policy") == ADAPTIVE:
        limit = LONGEST
    idle = limit in {TIMEOUT, LONGEST}
    wanted = [
        one
        for (reason, group), one in cache.fates.wanted.items()
        if reason in limit.reasons and group is None
    ]
    again = sum(one.count for one in wanted)
    work = work_of(cache)
    if not work.matters(again):
        return None
    gone = sum(one.count for (reason, _), one in cache.sums.gone.items() if reason in limit.reasons)
    everything = sum(one.count for one in cache.sums.gone.values())
    text = (
        f"{limit.words}: {gone:,} of {count(everything, 'eviction')} were for {limit.why}, and "
        f"{_again(cache, wanted, cache.fates.idle_thrash_seconds if idle else None)}"
    )
    paste = f"python -m trio_wasmcache tune {LOG} --target-hit-rate 0.95"
    if not cache.log_uses:  # which `tune` needs
        paste = "CacheConfig(log_uses=True)"
    if idle:  # an adaptive one has kept them for as long as they were worth by it
        timeout = cache.fates.idle_timeout
        timeout = 60.0 if timeout == math.inf else 4 * timeout
        paste = f"cache.resize({limit.name}={in_source(limit.name, timeout)})"
    evidence: Document = {"evictions": gone, "all_evictions": everything}
    now = cache.limits.get(limit.field)
    advice, written = _advise(limit, now, wanted, evidence)
    if written is not None:
        paste = f"cache.resize({limit.name}={written})"
    evidence |= {"all_load_seconds": cache.sums.loads.total}
    return Finding(limit.kind, f"{text}{advice}.", paste, work.part(again), evidence)


def group_too_small(cache: CacheSummary) -> Finding | None:
    """Return a finding if a group's own limit evicts what is loaded again soon, too often."""
    work = work_of(cache)
    often = {
        group: one
        for (_, group), one in cache.fates.wanted.items()
        if group is not None and work.matters(one.count)
    }
    if not often:
        return None
    group = max(often, key=lambda name: often[name].count)
    wanted = [often[group]]
    text = (
        f"Group {cite(group)} is too small: its own limit evicted instances of which "
        f"{_again(cache, wanted)}"
    )
    evidence: Document = {"group": group}
    more, written = _advise(SIZE, cache.fates.own_limits.get(group), wanted, evidence)
    evidence |= {"all_load_seconds": cache.sums.loads.total}
    paste = of_group(group, "max_size", written or "...")
    part = work.part(sum(one.count for one in often.values()))
    return Finding("group_too_small", f"{text}{more}.", paste, part, evidence)


def _again(cache: CacheSummary, wanted: Sequence[Wanted], within: float | None = None) -> str:
    within = cache.fates.thrash_seconds if within is None else within
    return (
        f"{sum(one.count for one in wanted):,} were loaded again "
        f"{soon(None if within == math.inf else within)}, in "
        f"{seconds(sum(one.seconds for one in wanted))} of {seconds(cache.sums.loads.total)} "
        "spent loading"
    )


def _advise(
    limit: Limit, now: float | None, wanted: Sequence[Wanted], evidence: Document
) -> tuple[str, str | None]:
    """Return (the end of a sentence, a value in source code or None); add the evidence."""
    again = sum(one.count for one in wanted)
    advised, avoided = (None, None) if now is None else _advice(limit, now, wanted, again)
    evidence |= {
        "loaded_again": again,
        "load_seconds": sum(one.seconds for one in wanted),
        "limit": limit.name,
        "now": now,
        "advised": advised,
        "avoided_part": avoided,
    }
    if advised is None or avoided is None:
        return "", None
    written = in_source(limit.name, advised)
    return (
        f"; {limit.name} = {written} would have avoided about {100 * avoided:.0f} % of these loads",
        written,
    )


def _advice(
    limit: Limit, now: float, wanted: Sequence[Wanted], again: int
) -> tuple[float | None, float | None]:
    """Return (a value for the limit, the part of the loads that it would have avoided)."""
    base = 0.0 if limit in (TIMEOUT, LONGEST) else now

    def avoided(value: float) -> float:
        return sum(one.part(value - base) * one.count for one in wanted) / again

    def least(part: float) -> float | None:
        needs = [one.least(part * one.part(math.inf)) for one in wanted]
        found = [need for need in needs if need is not None]
        return limit.raised(base, max(found)) if found else None

    much, less = least(PART), least(LESS)
    if much is None or less is None:
        return None, None
    value = less if less - now <= (much - now) / 2 else much
    part = avoided(value)
    return (value, part) if part >= LEAST_AVOIDED and value > now else (None, None)


def never_kept(cache: CacheSummary) -> Finding | None:
    """Return a finding if instances of a function are over `max_instance_size`, each time."""
    work = work_of(cache)
    dropped: dict[tuple[str, str], list[int]] = {}
    evicted: dict[tuple[str, str], int] = {}
    for (reason, key), gone in cache.sums.gone.items():
        evicted[key[:2]] = evicted.get(key[:2], 0) + gone.count
        if reason == "oversized":
            _add(dropped, key, gone.count, gone.largest_bytes)
    for key, closed in cache.sums.closed.items():  # they left a seat
        evicted[key[:2]] = evicted.get(key[:2], 0) + closed.count
        _add(dropped, key, closed.count, closed.largest_bytes)
    never = {
        function: (number, largest)
        for function, (number, largest) in dropped.items()
        if 2 * number >= evicted[function] and work.matters(number)
    }
    if not never:
        return None
    worst = max(never, key=lambda function: never[function][0])
    number, largest = never[worst]
    total, most = sum(one for one, _ in never.values()), max(one for _, one in never.values())
    more = ""
    if len(never) > 1:
        verb = "is" if len(never) == 2 else "are"
        more = f" (nor {verb} {count(len(never) - 1, 'other function')})"
    now = cache.limits.get("max_instance_size_bytes")
    limit = "max_instance_size" if now is None else f"max_instance_size = {size(now)}"
    loading = sum(fate.load_seconds for key, fate in cache.fates.by_key.items() if key[:2] in never)
    text = (
        f"{cite(shown(*worst))} is never kept{more}: {number:,} of its instances were dropped, as "
        f"they take up to {size(largest)}, more than {limit}; loading took {seconds(loading)} of "
        f"{seconds(cache.sums.loads.total)}."
    )
    advised = round_up(most)
    paste = f"max_instance_size={in_source('max_instance_size', advised)}"
    whole = cache.limits.get("max_size_bytes")
    if whole is not None and advised > whole:
        paste = f"max_size={in_source('max_size', round_up(2 * most))}, {paste}"
    evidence = {
        "function": shown(*worst),
        "dropped": number,
        "largest_bytes": largest,
        "functions": len(never),
        "load_seconds": loading,
        "all_load_seconds": cache.sums.loads.total,
        "now": now,
        "advised": advised,
    }
    return Finding("never_kept", text, f"cache.resize({paste})", work.part(total), evidence)


def _add(dropped: dict[tuple[str, str], list[int]], key: Key, number: int, largest: int) -> None:
    row = dropped.setdefault(key[:2], [0, 0])
    row[0] += number
    row[1] = max(row[1], largest)
