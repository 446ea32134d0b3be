"""The report on a terminal: tables that fit into 80 columns."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .units import rate, seconds, size

TOP = 10


def show_report(console: Console, document: dict[str, Any], top: int = TOP) -> None:
    """All caches, one after the other."""
    for cache in document["caches"]:
        console.print(_overview(cache))
        for part in (_reasons(cache), _loads(cache), _waits(cache)):
            if part is not None:
                console.print(part)
        for what in ("function", "group"):
            console.print(_rows(cache, what, top))


def make_table(title: str, first: str, *columns: str) -> Table:
    """A table whose first column gives way where the others need the room."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(first, overflow="ellipsis", no_wrap=True, ratio=1)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _overview(cache: dict[str, Any]) -> RenderableType:
    limits, leases, churn = cache["limits"], cache["leases"], cache["churn"]
    facts = [
        ("time", f"{seconds(cache['span_seconds'])}, {sum(cache['events'].values()):,} events"),
    ]
    if limits:
        peak = cache["peak"]
        timeout = limits["idle_timeout_seconds"]
        facts += [
            (
                "idle instances",
                f"{size(peak['total_size_bytes'])} at most, of {size(limits['max_size_bytes'])}",
            ),
            (
                "code and stacks",
                (
                    f"{size(peak['code_size_bytes'])} at most, of "
                    f"{size(limits['max_code_size_bytes'])}"
                ),
            ),
            ("idle timeout", seconds(math.inf if timeout is None else timeout)),
        ]
    if leases["hit_rate"] is not None:
        facts.append(
            (
                "hit rate",
                f"{rate(leases['hit_rate'])} of {leases['hits'] + leases['misses']:,} leases",
            )
        )
    elif cache["closed"]:
        closed = cache["closed"]
        granted = closed["hits"] + closed["misses"]
        part = rate(closed["hits"] / granted) if granted else "-"
        facts.append(("hit rate", f"{part} of {granted:,} leases (by the cache's own count)"))
    else:
        facts.append(("hit rate", "not in this log: it was written without log_uses"))
    thrash, reloads = cache["thrash"], cache["reloads"]
    evictions = cache["evictions"]["count"]
    facts += [
        (
            "thrash",
            (
                f"{thrash['count']:,} loaded again within {thrash['within_seconds']:g} s of "
                f"going: {seconds(thrash['load_seconds'])}"
            ),
        ),
        ("never reused", f"{cache['never_reused']:,} of {evictions:,} evicted"),
        (
            "churn",
            (
                f"{_number(churn['loads_per_100_leases'])} loads per 100 leases; "
                f"{_number(churn['evictions_per_minute'])} evictions a minute, "
                f"{_number(churn['peak_evictions_per_minute'])} at worst"
            ),
        ),
        ("paid for evictions", f"{reloads['count']:,} loads, {seconds(reloads['seconds'])}"),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in facts:
        table.add_row(name, text)
    return Group(Text(f"Cache {cache['cache']}", style="bold"), table, Text())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _reasons(cache: dict[str, Any]) -> RenderableType | None:
    reasons, paid = cache["evictions"]["by_reason"], cache["reloads"]["by_reason"]
    if not reasons:
        return Text("No evictions.\n")
    table = make_table(
        "Evictions", "reason", "count", "part", "freed", "code", "loaded again", "paid"
    )
    total = cache["evictions"]["count"]
    for reason, row in reasons.items():
        again = paid.get(reason, {"count": 0, "seconds": 0.0})
        table.add_row(
            reason,
            f"{row['count']:,}",
            f"{row['count'] / total:.0%}",
            size(row["freed_bytes"]),
            size(row["freed_code_bytes"]),
            f"{again['count']:,}",
            seconds(again["seconds"]),
        )
    return Group(table, Text())


def _loads(cache: dict[str, Any]) -> RenderableType | None:
    rows = [("to be loaded", cache["loads"])]
    if cache["leases"]["wait_seconds"]["count"]:
        rows.append(("to get a lease", cache["leases"]["wait_seconds"]))
        rows.append(("lease held", cache["leases"]["held_seconds"]))
    if cache["age_seconds"]["count"]:
        rows.append(("age when evicted", cache["age_seconds"]))
    rows = [(name, row) for name, row in rows if row["count"]]
    if not rows:
        return None
    table = make_table("Times", "", "count", "median", "95 %", "99 %", "longest", "total")
    for name, row in rows:
        quantiles = [seconds(row[part]) for part in ("p50", "p95", "p99", "max", "total")]
        table.add_row(name, f"{row['count']:,}", *quantiles)
    return Group(table, Text())


def _waits(cache: dict[str, Any]) -> RenderableType | None:
    leases = cache["leases"]
    parts = []
    if leases["blocked"]:
        waits = ", ".join(f"{number:,} for {what}" for what, number in leases["blocked"].items())
        parts.append(f"Waits: {waits}")
    if leases["abandoned"]:
        ends = ", ".join(f"{number:,} {error}" for error, number in leases["abandoned"].items())
        parts.append(f"Ended without a lease: {ends}")
    return Text("\n".join(parts) + "\n") if parts else None


def _rows(cache: dict[str, Any], what: str, top: int) -> RenderableType:
    rows = cache[f"{what}s"]
    title = f"{what.capitalize()}s"
    if len(rows) > top:
        title += f" (the first {top} of {len(rows):,})"
    table = make_table(
        title, what, "leases", "hit rate", "waits", "loads", "evicted", "thrash", "unused", "load s"
    )
    for row in rows[:top]:
        granted = row["hits"] + row["misses"]
        table.add_row(
            Text(row[what]),
            f"{granted:,}" if granted else "-",
            f"{row['hits'] / granted:.1%}" if granted else "-",
            f"{row['blocks']:,}",
            f"{row['loads']:,}",
            f"{row['evictions']:,}",
            f"{row['thrashed']:,}",
            f"{row['never_reused']:,}",
            f"{row['load_seconds']:.3g}",
        )
    return Group(table, Text())
