"""The report as plain values: printed by `--json`, and shown by the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..findings.verdict import findings_of, nothing_to_do
from ..reading.documents import Document
from ..reading.frames import Parser
from ..reading.lines import Reader
from ..reading.names import Key, shown
from ..reading.notes import Notes
from ..reading.order import Order
from ..summary.entries import Fate
from ..summary.leases import Leases
from ..summary.needs import Pair, Served
from ..summary.summary import OTHER, REASONS, CacheSummary, Gone, Others, Summary, Sums
from .fleet import fleet

# Raised when a field changes its meaning or is removed; not for new fields.
REPORT_VERSION = 1
# Gaps that are listed one by one.
MAX_GAPS = 100
# Pairs of victim and culprit that are listed, of groups and of functions.
MAX_NEEDS = 1000
# The interval of which the worst churn is reported, in seconds; longer in a long log.
BUSY_SECONDS = 1.0


def make_document(summary: Summary, reader: Reader, parser: Parser, notes: Notes) -> Document:
    """Return the whole report."""
    findings = findings_of(summary, reader.paths)
    caches = [_cache(cache) for cache in summary.caches.values()]
    others = _others(summary.others) if summary.others.count else None
    return {
        "report": REPORT_VERSION,
        "findings": findings,
        "verdict": None if findings else nothing_to_do(summary),
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
        "together": fleet(caches, others),
        "caches": caches,
        "others": others,
    }


def _others(others: Others) -> Document:
    """Return the sums of the caches that are only counted together, without order and clocks."""
    sums = others.sums
    return {
        "caches": others.count,
        "more": others.more,
        "events": dict(sorted(sums.kinds.items())),
        "lost": sums.lost,
        "context_lost": sums.context_lost,
        **_uses(sums, on_seats=None, numbered=False),
        "evictions": _gone(sums),
        "age_seconds": sums.ages.as_dict(),
        "peak": {"total_size_bytes": others.peak_size, "code_size_bytes": others.peak_code},
    }


def _cache(cache: CacheSummary) -> Document:
    return {
        "cache": cache.cache,
        "label": cache.label,
        "log_uses": cache.log_uses,
        "span_seconds": cache.series.end,
        "began": cache.began,
        "ended": cache.ended,
        "limits": cache.limits,
        "resizes": cache.resizes,
        "closed": cache.closed,
        "events": dict(sorted(cache.sums.kinds.items())),
        "sequence": _sequence(cache.order),
        "context_lost": cache.sums.context_lost,
        "clock": {
            "jumps_back": cache.clock.jumps,
            "longest_silence_seconds": cache.clock.longest_silence,
        },
        **_uses(cache.sums, cache.fates.on_seats),
        **_evictions(cache),
        "peak": {"total_size_bytes": cache.peak_size, "code_size_bytes": cache.peak_code},
        "functions": _rows(cache, "function", lambda key: shown(key[0], key[1])),
        "groups": _rows(cache, "group", lambda key: key[2]),
        "needs": {
            "groups": _needs(cache.needs.by_group),
            "functions": _needs(cache.needs.by_function),
        },
        "throttled": _throttled(cache),
        "over_time": _over_time(cache),
    }


def _sequence(order: Order) -> Document:
    return {
        "first": order.first,
        "last": order.last,
        "missing": order.missing,
        "gaps": order.gaps[:MAX_GAPS],
        "lost": order.lost,
        "late": order.late,
        "repeated": order.repeated,
    }


def _uses(sums: Sums, on_seats: int | None, numbered: bool = True) -> Document:
    """Return acquires, leases and loads."""
    leases = sums.leases
    granted = leases.hits + leases.misses
    return {
        "leases": {
            "acquires": leases.acquires,
            "hits": leases.hits,
            "seat_hits": sums.seat_hits,
            "misses": leases.misses,
            "blocks": leases.blocks,
            "hit_rate": leases.hits / granted if granted else None,
            "miss_rate": leases.misses / granted if granted else None,
            "block_rate": leases.blocks / leases.acquires if leases.acquires else None,
            "warmed": leases.warm,
            "calls": leases.calls,
            "wait_seconds": leases.waits.as_dict(numbered=numbered),
            "held_seconds": leases.holds.as_dict(numbered=numbered),
            "waits_for": dict(leases.waits_for),
            "abandoned": dict(leases.abandoned),
        },
        "loads": {
            **sums.loads.as_dict(numbered=numbered),
            "modules": sums.module_loads,
            "on_seats": on_seats,
            "failed": sums.kinds["wasmcache.failed"],
            "compile_seconds": sums.compile_seconds,
        },
        "wait_bars": leases.waits.bars() if leases.waits.count else [],
    }


def _evictions(cache: CacheSummary) -> Document:
    """Return evictions and their consequences."""
    fates, leases = cache.fates, cache.sums.leases
    timed_out = fates.timed_out
    gone = _gone(cache.sums)
    total = gone["count"]
    loads = sum(fate.loads for fate in fates.by_key.values()) - fates.on_seats
    granted = leases.hits + leases.misses
    busiest, busy_seconds = cache.series.busiest("evicted ", BUSY_SECONDS)
    return {
        "evictions": gone,
        "age_seconds": cache.sums.ages.as_dict(),
        "never_reused": sum(fate.never_reused for fate in fates.by_key.values()),
        "reloads": {
            "count": sum(paid.count for paid in fates.paid.values()),
            "seconds": sum(paid.seconds for paid in fates.paid.values()),
            "by_reason": {
                reason: {"count": fates.paid[reason].count, "seconds": fates.paid[reason].seconds}
                for reason in (*REASONS, OTHER)
                if reason in fates.paid
            },
        },
        "thrash": {
            "within_seconds": _finite(fates.thrash_seconds),
            "within_idle_seconds": _finite(fates.idle_thrash_seconds),
            "count": sum(fate.thrashed for fate in fates.by_key.values()),
            "load_seconds": fates.thrash_load_seconds,
        },
        "timed_out": {
            "evictions": timed_out.evictions,
            "loaded_again": timed_out.wanted,
            "load_seconds": timed_out.load_seconds,
            "in_vain": timed_out.evictions - timed_out.wanted,
            "in_vain_seconds": timed_out.vain_seconds,
            "in_vain_byte_seconds": timed_out.vain_byte_seconds,
        },
        "churn": {
            "loads_per_100_leases": 100 * loads / granted if granted else None,
            "evictions_per_minute": 60 * total / cache.series.end if cache.series.end else None,
            "busiest_evictions": int(busiest),
            "busiest_seconds": busy_seconds,
        },
    }


def _finite(seconds: float) -> float | None:
    return None if seconds == math.inf else seconds


def _gone(sums: Sums) -> Document:
    """Return evictions by reason."""
    by_reason: dict[str, Gone] = {}
    for (reason, _), gone in sums.gone.items():
        one = by_reason.setdefault(reason, Gone())
        one.count += gone.count
        one.freed_bytes += gone.freed_bytes
        one.freed_code_bytes += gone.freed_code_bytes
    return {
        "count": sum(gone.count for gone in by_reason.values()),
        "by_reason": {
            reason: {
                "count": by_reason[reason].count,
                "freed_bytes": by_reason[reason].freed_bytes,
                "freed_code_bytes": by_reason[reason].freed_code_bytes,
            }
            for reason in (*REASONS, OTHER)
            if reason in by_reason
        },
    }


_FATE = ("loads", "load_seconds", "evictions", "thrashed", "never_reused")
_LEASES = ("hits", "misses", "blocks", "abandoned", "wait_seconds", "held_seconds")


def _rows(cache: CacheSummary, what: str, name: Callable[[Key], str]) -> list[Document]:
    """Return a row for each function or group, those with the most time spent loading first."""
    rows: dict[str, Document] = {}

    def add(key: Key, numbers: Fate | Leases, fields: tuple[str, ...]) -> None:
        row = rows.get(name(key))
        if row is None:
            blank = {field: getattr(Leases(), field) for field in _LEASES}
            blank |= {field: getattr(Fate(), field) for field in _FATE}
            row = rows[name(key)] = {what: name(key), **blank, "by_reason": {}}
        for field in fields:
            row[field] += getattr(numbers, field)

    for key, fate in cache.fates.by_key.items():
        add(key, fate, _FATE)
    for key, leases in cache.sums.leases.by_key.items():
        add(key, leases, _LEASES)
    for (reason, key), gone in cache.sums.gone.items():
        by_reason = rows[name(key)]["by_reason"]
        by_reason[reason] = by_reason.get(reason, 0) + gone.count

    for row in rows.values():
        # In the order of the reasons, not in that of polars.
        row["by_reason"] = {
            reason: row["by_reason"][reason]
            for reason in (*REASONS, OTHER)
            if reason in row["by_reason"]
        }

    def rank(row: Document) -> tuple[float, ...]:
        return -row["load_seconds"], -row["evictions"], -row["misses"], -row["hits"]

    return sorted(rows.values(), key=rank)


def _needs(pairs: Mapping[Pair, Served]) -> list[Document]:
    """Return a row for each pair of a victim and a culprit, those with most evictions first."""
    most = sorted(pairs.items(), key=lambda item: (-item[1].count, -item[1].freed_bytes))
    return [
        {
            "victim": victim,
            "culprit": culprit,
            "evictions": served.count,
            "freed_bytes": served.freed_bytes,
        }
        for (victim, culprit), served in most[:MAX_NEEDS]
    ]


def _throttled(cache: CacheSummary) -> list[Document]:
    """Return a row for each group whose calls waited for its `cpu_limit`, the longest first."""
    most = sorted(cache.waiting.throttled.items(), key=lambda item: -item[1].seconds)
    return [
        {
            "group": group,
            "cpu_limit_cores": one.cores,
            "waits": one.waits,
            "wait_seconds": one.seconds,
            "at_once": one.at_once,
        }
        for group, one in most
    ]


def _over_time(cache: CacheSummary) -> Document:
    series = cache.series
    names = sorted([*series.sums, *series.levels])
    return {
        "width_seconds": series.width,
        "points": {name: series.points(name) for name in names},
    }
