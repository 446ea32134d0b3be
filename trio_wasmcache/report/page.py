"""One self-contained HTML page: tables and charts, no scripts, nothing from the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from attrs import Factory, define

from .charts import charts_of, curve_chart
from .results import Result
from .terminal import rate, seconds, size
from .tuning import Advice, Curve, Tuner

TEMPLATE = Path(__file__).with_name("page.html.j2")
TOP = 50
# A log of many restarts has many caches; charts are drawn of the longest ones.
MAX_CHARTED = 8


@define
class Table:
    """One table of the page."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@define
class Section:
    """One cache, or one answer."""

    title: str
    facts: list[tuple[str, str]] = Factory(list)
    texts: list[str] = Factory(list)
    code: str = ""
    charts: dict[str, tuple[str, str]] = Factory(dict)
    tables: list[Table] = Factory(list)


def report_page(document: dict[str, Any]) -> str:
    """The page of a report's document."""
    caches = document["caches"]
    longest = sorted(caches, key=lambda cache: -sum(cache["events"].values()))[:MAX_CHARTED]
    sections = [_section(cache, any(cache is one for one in longest)) for cache in caches]
    lines = document["lines"]
    files = ", ".join(document["files"])
    subtitle = f"{lines['events']:,} events in {lines['read']:,} lines of {files}"
    return _render("What the instance cache did", subtitle, document["notes"], sections)


def tuning_page(
    tuner: Tuner, curve: Curve, advice: Advice, checked: Result | None, notes: Sequence[str]
) -> str:
    """The page of a tuning."""
    assert tuner.limits is not None
    knee = curve.knee()
    texts = [advice.sentence]
    if checked is not None:
        texts.append(
            f"Run through the policy with all other limits as they are, it has "
            f"{checked.hit_rate:.2%}, and {size(checked.peak_size)} idle at most."
        )
    chart = curve_chart(curve, advice, tuner.limits["max_size"])
    rows = [
        (size(point.max_size), rate(point.hit_rate), seconds(point.load_seconds))
        for point in curve.points()[::10]
    ]
    section = Section(
        "Hit rate by size",
        facts=[
            ("leases", f"{tuner.leases:,}"),
            ("hit rate in the log", rate(tuner.hits / tuner.leases if tuner.leases else None)),
            ("knee", size(knee)),
            ("advised max_size", size(advice.max_size)),
            ("advised idle_timeout", seconds(advice.idle_timeout)),
        ],
        texts=texts,
        code=advice.line,
        charts={"curve": ("Hit rate by max_size", chart)},
        tables=[Table("The curve", ("max_size", "hit rate", "loads cost"), rows)],
    )
    timeout = seconds(min(math.inf, curve.timeout))
    return _render(
        "How large the instance cache should be",
        f"Idle instances going after {timeout}",
        notes,
        [section],
    )


def _section(cache: dict[str, Any], charted: bool) -> Section:
    leases, thrash = cache["leases"], cache["thrash"]
    granted = leases["hits"] + leases["misses"]
    evictions = cache["evictions"]["count"]
    section = Section(f"Cache {cache['cache']}")
    section.facts = [
        ("from first to last event", seconds(cache["span_seconds"])),
        ("hit rate", rate(leases["hit_rate"])),
        ("leases", f"{granted:,}" if granted else "not logged"),
        ("evictions", f"{evictions:,}"),
        ("never reused", f"{cache['never_reused']:,}"),
        (f"thrash within {thrash['within_seconds']:g} s", f"{thrash['count']:,}"),
        ("loading because of evictions", seconds(cache["reloads"]["seconds"])),
        ("idle instances at most", size(cache["peak"]["total_size_bytes"])),
    ]
    if charted:
        section.charts = charts_of(cache)
    section.tables = [_reason_table(cache), *(_table(cache, it) for it in ("function", "group"))]
    if cache["limits"]:
        rows = [(name, "never" if it is None else str(it)) for name, it in cache["limits"].items()]
        section.tables.append(Table("Limits", ("limit", "value"), rows))
    return section


def _reason_table(cache: dict[str, Any]) -> Table:
    paid = cache["reloads"]["by_reason"]
    nothing = {"count": 0, "seconds": 0.0}
    rows = [
        (
            reason,
            f"{row['count']:,}",
            size(row["freed_bytes"]),
            size(row["freed_code_bytes"]),
            f"{paid.get(reason, nothing)['count']:,}",
            seconds(paid.get(reason, nothing)["seconds"]),
        )
        for reason, row in cache["evictions"]["by_reason"].items()
    ]
    columns = ("reason", "evictions", "freed", "code freed", "loaded again", "time paid")
    return Table("Evictions", columns, rows)


def _table(cache: dict[str, Any], what: str) -> Table:
    rows = []
    for row in cache[f"{what}s"][:TOP]:
        granted = row["hits"] + row["misses"]
        rows.append(
            (
                row[what],
                f"{granted:,}" if granted else "-",
                f"{row['hits'] / granted:.1%}" if granted else "-",
                f"{row['blocks']:,}",
                seconds(row["wait_seconds"]),
                f"{row['loads']:,}",
                seconds(row["load_seconds"]),
                f"{row['evictions']:,}",
                f"{row['thrashed']:,}",
                f"{row['never_reused']:,}",
            )
        )
    columns = (
        *(what, "leases", "hit rate", "waits", "waited", "loads", "loading", "evicted"),
        *("thrash", "never reused"),
    )
    title = f"{what.capitalize()}s"
    if len(cache[f"{what}s"]) > TOP:
        title += f" (the first {TOP} of {len(cache[f'{what}s']):,})"
    return Table(title, columns, rows)


def _render(title: str, subtitle: str, notes: Sequence[str], sections: Sequence[Section]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, notes=notes, sections=sections)
