"""What people see on a terminal: tables that fit into 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .results import Result
from .tuning import Advice, Curve, Tuner

TOP = 10
# Rows of the curve that `tune` shows.
CURVE_ROWS = 12


def size(number: float | None) -> str:
    """``3.4 MiB``."""
    if number is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def seconds(number: float | None) -> str:
    """``12 µs``, ``3.4 ms``, ``5.6 s``, ``2 h 03 min``."""
    if number is None or number == math.inf:
        return "never" if number == math.inf else "-"
    if number == 0:
        return "0 s"
    if number < 1e-3:
        return f"{number * 1e6:.0f} µs"
    if number < 1:
        return f"{number * 1e3:.1f} ms"
    if number < 120:
        return f"{number:.1f} s"
    minutes = int(number // 60)
    if minutes < 120:
        return f"{minutes} min {number % 60:02.0f} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def rate(number: float | None) -> str:
    """``97.12 %``."""
    return "-" if number is None else f"{number:.2%}".replace("%", " %")


def show_report(console: Console, document: dict[str, Any], top: int = TOP) -> None:
    """All caches, one after the other."""
    for cache in document["caches"]:
        console.print(_overview(cache))
        for part in (_reasons(cache), _loads(cache), _waits(cache)):
            if part is not None:
                console.print(part)
        for what in ("function", "group"):
            console.print(_rows(cache, what, top))


def _table(title: str, first: str, *columns: str) -> Table:
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
                f"{size(peak['code_size_bytes'])} at most, of "
                f"{size(limits['max_code_size_bytes'])}",
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
            f"{thrash['count']:,} loaded again within {thrash['within_seconds']:g} s of "
            f"going: {seconds(thrash['load_seconds'])}",
        ),
        ("never reused", f"{cache['never_reused']:,} of {evictions:,} evicted"),
        (
            "churn",
            f"{_number(churn['loads_per_100_leases'])} loads per 100 leases; "
            f"{_number(churn['evictions_per_minute'])} evictions a minute, "
            f"{_number(churn['peak_evictions_per_minute'])} at worst",
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
    table = _table("Evictions", "reason", "count", "part", "freed", "code", "loaded again", "paid")
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
    table = _table("Times", "", "count", "median", "95 %", "99 %", "longest", "total")
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
    table = _table(
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


def show_whatif(console: Console, rows: Sequence[tuple[str, Result]]) -> None:
    """A row for each setting; the first one is the log's own."""
    table = _table(
        "Under other limits", "limits", "hit rate", "misses", "waits", "evicted", "load", "peak"
    )
    for name, result in rows:
        table.add_row(
            Text(name),
            rate(result.hit_rate),
            f"{result.misses:,}",
            f"{result.blocks:,}",
            f"{sum(result.evictions.values()):,}",
            seconds(result.load_seconds),
            size(result.peak_size),
        )
    console.print(table)


def show_tuning(
    console: Console, tuner: Tuner, curve: Curve, advice: Advice, checked: Result | None
) -> None:
    """The curve in a few rows, and what to do."""
    knee, low, high = curve.knee(), curve.smallest, curve.largest
    assert tuner.limits is not None
    marks = {tuner.limits["max_size"]: "now", knee: "knee", advice.max_size: "advised"}
    steps = [
        int(low * (high / max(low, 1)) ** (number / (CURVE_ROWS - 1))) if low else high
        for number in range(CURVE_ROWS)
    ]
    table = _table(
        f"Hit rate by size, idle instances going after {seconds(curve.timeout)}",
        "max_size",
        "hit rate",
        "loads cost",
        "",
    )
    for step in sorted({*steps, *(mark for mark in marks if low <= mark)}):
        point = curve.at(step)
        bar = "█" * round(point.hit_rate * 30)
        table.add_row(
            f"{size(step)}  {marks.get(step, '')}",
            rate(point.hit_rate),
            seconds(point.load_seconds),
            Text(f"{bar:30}", style="cyan"),
            style="bold" if step in marks else None,
        )
    console.print(table)
    console.print()
    console.print(Text(advice.sentence))
    if checked is not None:
        console.print(
            Text(
                f"Run through the policy with all other limits as they are, it has "
                f"{checked.hit_rate:.2%}, and {size(checked.peak_size)} idle at most."
            )
        )
    console.print(Text(f"\n{advice.line}", style="bold"))


def show_replay(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Whether books and logs agree, for each cache."""
    for row in rows:
        agreed = not row["disagreed"]
        console.print(
            Text(
                f"Cache {row['cache']}: {row['events']:,} events, {row['leases']:,} leases, "
                f"{row['evictions']:,} evictions replayed"
            )
        )
        if agreed:
            console.print(Text("The books agree with the log everywhere.", style="green"))
            continue
        console.print(
            Text(f"The books disagree with the log {row['disagreed']:,} times:", style="bold red")
        )
        for one in row["disagreements"][:TOP]:
            console.print(Text(f"  event {one['seq']:,}: {one['text']}"))
        console.print(Text("The first one is the one to look at: others may come of it."))
