"""The report as plain values: what `--json` prints, and what the terminal and the page show."""

from __future__ import annotations

from typing import Any

from .._core.events import Reason
from .frames import Parser
from .leases import Leases
from .lines import Reader
from .notes import Notes
from .summary import CacheSummary, Summary

# Grows when a field changes its meaning or goes; new ones do not count.
REPORT_VERSION = 1


def make_document(summary: Summary, reader: Reader, parser: Parser, notes: Notes) -> dict[str, Any]:
    """The whole report."""
    return {
        "report": REPORT_VERSION,
        "files": list(reader.paths),
        "lines": {
            "read": reader.counts.lines,
            "events": parser.events,
            "foreign": reader.counts.foreign + parser.foreign,
            "damaged": parser.damaged,
            "half_written": reader.counts.half_written,
            "other_schemas": dict(parser.other_schemas),
        },
        "notes": list(notes.texts),
        "caches": [_cache(cache) for cache in summary.caches.values()],
    }


def _cache(cache: CacheSummary) -> dict[str, Any]:
    order, fates, leases = cache.order, cache.fates, cache.leases
    functions, groups = _functions(cache), _groups(cache)
    evictions = sum(numbers[0] for numbers in cache.evictions.values())
    granted = leases.hits + leases.misses
    minutes = cache.span / 60
    peak_minute = _peak(cache, "evicted ")
    return {
        "cache": cache.cache,
        "log_uses": cache.log_uses,
        "span_seconds": cache.span,
        "limits": cache.limits,
        "resizes": cache.resizes,
        "closed": cache.closed,
        "events": dict(cache.kinds),
        "sequence": {
            "first": order.first,
            "last": order.last,
            "missing": order.missing,
            "lost": order.lost,
            "late": order.late,
            "repeated": order.repeated,
        },
        "clock": {"jumps_back": cache.jumps, "longest_silence_seconds": cache.longest_silence},
        "evictions": {"count": evictions, "by_reason": _reasons(cache)},
        "leases": {
            "hits": leases.hits,
            "misses": leases.misses,
            "hit_rate": leases.hits / granted if granted else None,
            "warmed": leases.warm,
            "calls": leases.calls,
            "wait_seconds": leases.waits.as_dict(),
            "held_seconds": leases.holds.as_dict(),
            "blocked": dict(leases.waits_for),
            "abandoned": dict(leases.abandoned),
        },
        "loads": {
            **cache.loads.as_dict(),
            "modules": cache.module_loads,
            "failed": cache.kinds["wasmcache.failed"],
            "compile_seconds": cache.compile_seconds,
        },
        "reloads": {
            "count": int(sum(loads for loads, _ in fates.paid.values())),
            "seconds": sum(seconds for _, seconds in fates.paid.values()),
            "by_reason": {
                reason: {"count": int(loads), "seconds": seconds}
                for reason, (loads, seconds) in sorted(fates.paid.items())
            },
        },
        "thrash": {
            "within_seconds": fates.thrash_seconds,
            "count": fates.total("thrashed"),
            "load_seconds": fates.thrash_seconds_paid,
        },
        "never_reused": fates.total("never_reused"),
        "age_seconds": cache.ages.as_dict(),
        "churn": {
            "loads_per_100_leases": 100 * fates.total("loads") / granted if granted else None,
            "evictions_per_minute": evictions / minutes if minutes else None,
            "peak_evictions_per_minute": peak_minute,
        },
        "peak": {"total_size_bytes": cache.peak_size, "code_size_bytes": cache.peak_code},
        "functions": functions,
        "groups": groups,
        "over_time": _over_time(cache),
        "wait_bars": leases.waits.bars() if leases.waits.count else [],
    }


def _reasons(cache: CacheSummary) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for reason in (member.value for member in Reason):
        rows = [numbers for key, numbers in cache.evictions.items() if key[0] == reason]
        if rows:
            found[reason] = {
                "count": sum(row[0] for row in rows),
                "freed_bytes": sum(row[1] for row in rows),
                "freed_code_bytes": sum(row[2] for row in rows),
            }
    return found


def _functions(cache: CacheSummary) -> list[dict[str, Any]]:
    """A row for each function, those that were loaded for the longest first."""
    rows: dict[str, dict[str, Any]] = {}
    for key, fate in cache.fates.by_key.items():
        row = rows.setdefault(f"{key[0]}({key[1]})", _blank())
        row["loads"] += fate.loads
        row["load_seconds"] += fate.load_seconds
        row["evictions"] += fate.evictions
        row["thrashed"] += fate.thrashed
        row["never_reused"] += fate.never_reused
    for key, leases in cache.leases.by_key.items():
        _add_leases(rows.setdefault(f"{key[0]}({key[1]})", _blank()), leases)
    return _ranked("function", rows)


def _groups(cache: CacheSummary) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for key, fate in cache.fates.by_key.items():
        row = rows.setdefault(key[2], _blank())
        row["loads"] += fate.loads
        row["load_seconds"] += fate.load_seconds
        row["evictions"] += fate.evictions
        row["thrashed"] += fate.thrashed
        row["never_reused"] += fate.never_reused
    for key, leases in cache.leases.by_key.items():
        _add_leases(rows.setdefault(key[2], _blank()), leases)
    return _ranked("group", rows)


def _blank() -> dict[str, Any]:
    names = ("hits", "misses", "blocks", "abandoned", "loads", "evictions", "thrashed")
    return dict.fromkeys((*names, "never_reused"), 0) | dict.fromkeys(
        ("load_seconds", "wait_seconds", "held_seconds"), 0.0
    )


def _add_leases(row: dict[str, Any], leases: Leases) -> None:
    for name in ("hits", "misses", "blocks", "abandoned", "wait_seconds", "held_seconds"):
        row[name] += getattr(leases, name)


def _ranked(what: str, rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    def rank(item: tuple[str, dict[str, Any]]) -> tuple[float, ...]:
        row = item[1]
        return -row["load_seconds"], -row["evictions"], -row["misses"], -row["hits"]

    return [{what: name, **row} for name, row in sorted(rows.items(), key=rank)]


def _peak(cache: CacheSummary, prefix: str) -> float | None:
    """The most in one bin, by the minute."""
    bins: dict[int, float] = {}
    for name, found in cache.series.sums.items():
        if name.startswith(prefix):
            for number, value in found.items():
                bins[number] = bins.get(number, 0) + value
    width = min(cache.series.width, cache.span)
    return max(bins.values()) * 60 / width if bins and width else None


def _over_time(cache: CacheSummary) -> dict[str, Any]:
    series = cache.series
    names = [*series.sums, *series.peaks]
    points = {name: [value for _, value in series.points(name)] for name in sorted(names)}
    return {"width_seconds": series.width, "points": points}
