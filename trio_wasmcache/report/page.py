"""One self-contained HTML page: tables and charts, no scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from attrs import Factory, define

from .charts import charts_of
from .units import rate, seconds, size

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
    return render("What the instance cache did", subtitle, document["notes"], sections)


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


def render(title: str, subtitle: str, notes: Sequence[str], sections: Sequence[Section]) -> str:
    """The page, everything in it escaped save the charts."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, notes=notes, sections=sections)
