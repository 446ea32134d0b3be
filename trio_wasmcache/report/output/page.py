"""One self-contained HTML page: tables and charts, no scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from attrs import Factory, define

from ..reading.documents import Document
from ..reading.notes import cite, count
from ..reading.units import MAX_MOMENT, moment, rate, seconds, size
from .charts import Chart, charts_of
from .terminal import cache_name, longest_of, needs_of, thrash_soon, timeout_of

TEMPLATE = Path(__file__).with_name("page.html.j2")
TOP = 50
# A log of many restarts has many caches: those with fewer events get tables only, and the last ones
# nothing.
MAX_CHARTED, MAX_SHOWN = 8, 50
MAX_TEXT = 2000


@define
class Table:
    """One table of the page; numbers are aligned right, the first `left` columns left."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: int = 1
    marked: int | None = None
    """Column whose text, if there is any, marks its row."""


@define
class PageSection:
    """One cache, or one result."""

    title: str
    subtitle: str = ""
    facts: list[tuple[str, str]] = Factory(list)
    """(number, its description)."""
    texts: list[str] = Factory(list)
    code: str = ""
    charts: list[Chart] = Factory(list)
    tables: list[Table] = Factory(list)


def report_page(document: Document) -> str:
    """Return the page of a report's document."""
    caches = sorted(document["caches"], key=lambda cache: -sum(cache["events"].values()))
    kept = [id(cache) for cache in caches[:MAX_SHOWN]]
    sections = [
        _section(cache, f"c{number}", id(cache) in kept[:MAX_CHARTED])
        for number, cache in enumerate(document["caches"])
        if id(cache) in kept
    ]
    lines = document["lines"]
    files = ", ".join("standard input" if file == "-" else file for file in document["files"][:4])
    if len(document["files"]) > 4:
        files += f" and {count(len(document['files']) - 4, 'more file')}"
    subtitle = f"{count(lines['events'], 'event')} in {count(lines['read'], 'line')} of {files}"
    notes = list(document["notes"])
    if document["together"] is not None:
        sections.insert(0, _together(document["together"]))
    if document["others"] is not None:
        sections.append(_others(document["others"]))
    if len(caches) > MAX_SHOWN:
        notes.append(f"the {MAX_SHOWN} caches with the most events are shown here")
    return render("What the instance cache did", subtitle, notes, sections, document)


def _together(together: Document) -> PageSection:
    """Return the section of all caches together."""
    more = "More than " * together["more"]
    leases, thrash, reloads = together["leases"], together["thrash"], together["reloads"]
    section = PageSection(f"{more}{count(together['caches'], 'cache')} together")
    section.subtitle = f"{together['events']:,} events"
    granted = leases["hits"] + leases["misses"]
    if granted:
        section.facts.append((rate(leases["hit_rate"]), f"hits, of {granted:,} leases"))
    section.facts += [
        (f"{together['evictions']['count']:,}", "evictions"),
        (f"{thrash['count']:,}", f"thrash: loaded again {thrash_soon(thrash)}"),
        (
            seconds(reloads["seconds"]),
            f"loading again what was evicted, {reloads['count']:,} times",
        ),
    ]
    worst = together["worst"]
    tables = [
        _reasons(together),
        Table(
            "Caches with the most misses",
            ["cache", "misses", "leases", "missed"],
            [
                [
                    cache_name(row),
                    f"{row['misses']:,}",
                    f"{row['hits'] + row['misses']:,}",
                    rate(row["miss_rate"]),
                ]
                for row in worst["misses"]
            ],
        ),
        Table(
            "Caches with the most thrash",
            ["cache", "loaded again", "time paid"],
            [
                [cache_name(row), f"{row['count']:,}", seconds(row["load_seconds"])]
                for row in worst["thrash"]
            ],
        ),
    ]
    section.tables = [table for table in tables if table.rows]
    return section


def _section(cache: Document, prefix: str, charted: bool) -> PageSection:
    leases, thrash, peak = cache["leases"], cache["thrash"], cache["peak"]
    granted = leases["hits"] + leases["misses"]
    evictions, reloads = cache["evictions"]["count"], cache["reloads"]
    timed_out = cache["timed_out"]
    section = PageSection(f"Cache {cache_name(cache)}")
    section.subtitle = (
        f"{sum(cache['events'].values()):,} events in {seconds(cache['span_seconds'])}"
    )
    if cache["began"]:
        began, ended = (cite(moment(cache[name]), MAX_MOMENT) for name in ("began", "ended"))
        section.subtitle += f", from {began} to {ended}"
    if granted:
        section.facts = [
            (rate(leases["hit_rate"]), f"hits, of {granted:,} leases"),
            (rate(leases["block_rate"]), f"waits, of {leases['acquires']:,} acquires"),
        ]
        if leases["seat_hits"]:
            section.facts.insert(1, (f"{leases['seat_hits']:,}", "of the hits had to load"))
    elif cache["closed"]:
        closed = cache["closed"]
        total = closed["hits"] + closed["misses"]
        hit_rate = rate(closed["hits"] / total if total else None)
        section.facts = [(hit_rate, f"hits, of {total:,} leases, by the cache's own count")]
    else:
        section.facts = [("-", "hits: not in this log, which was written without log_uses")]
    section.facts += [
        (f"{evictions:,}", "evictions"),
        (f"{cache['never_reused']:,}", "of them never reused"),
        (f"{timed_out['in_vain']:,}", f"of {timed_out['evictions']:,} timed out kept in vain"),
        (f"{thrash['count']:,}", f"thrash: loaded again {thrash_soon(thrash)}"),
        (
            seconds(reloads["seconds"]),
            f"loading again what was evicted, {reloads['count']:,} times",
        ),
        (size(peak["total_size_bytes"]), "of idle instances at most"),
        (size(peak["code_size_bytes"]), "of code and stacks at most"),
    ]
    if charted:
        section.charts = charts_of(cache, prefix)
    tables = [_reasons(cache), _times(cache), _counts(cache), _throttled(cache)]
    tables += [_rows(cache, "function"), _rows(cache, "group")]
    tables += [_needs(cache, "group"), _needs(cache, "function"), _limits(cache)]
    section.tables = [table for table in tables if table.rows]
    return section


def _needs(cache: Document, what: str) -> Table:
    rows = needs_of(cache, what)
    more = f"the first {TOP} of {len(rows):,} pairs" if len(rows) > TOP else ""
    return Table(
        f"Evicted for whose need, by {what}",
        ["victim", "for", "evicted", "freed"],
        [
            [
                cite(row["victim"]),
                cite(row["culprit"]),
                f"{row['evictions']:,}",
                size(row["freed_bytes"]),
            ]
            for row in rows[:TOP]
        ],
        more,
        left=2,
    )


def _others(others: Document) -> PageSection:
    """Return the section of the caches that are only counted together."""
    more = "More than " * others["more"]
    section = PageSection(f"{more}{count(others['caches'], 'other cache')}, added up together")
    section.subtitle = f"{sum(others['events'].values()):,} events"
    leases = others["leases"]
    granted = leases["hits"] + leases["misses"]
    section.facts = [
        (f"{others['evictions']['count']:,}", "evictions"),
        (size(others["peak"]["total_size_bytes"]), "idle instances, at most in one cache"),
    ]
    if granted:
        section.facts.insert(0, (rate(leases["hit_rate"]), f"hits, of {granted:,} leases"))
    tables = [_reasons(others), _times(others), _counts(others)]
    section.tables = [table for table in tables if table.rows]
    return section


def _reasons(cache: Document) -> Table:
    total = cache["evictions"]["count"]
    # Not for caches counted together, whose order of events is not known.
    paid = cache["reloads"]["by_reason"] if "reloads" in cache else None
    columns = ["reason", "count", "part", "freed", "code freed"]
    if paid is not None:
        columns += ["loaded again", "time paid"]
    rows = []
    for reason, row in cache["evictions"]["by_reason"].items():
        cells = [
            reason,
            f"{row['count']:,}",
            rate(row["count"] / total),
            size(row["freed_bytes"]),
            size(row["freed_code_bytes"]),
        ]
        if paid is not None:
            again = paid.get(reason, {"count": 0, "seconds": 0.0})
            cells += [f"{again['count']:,}", seconds(again["seconds"])]
        rows.append(cells)
    return Table("Evictions", columns, rows)


def _times(cache: Document) -> Table:
    leases = cache["leases"]
    rows = [
        (
            *(name, f"{row['count']:,}"),
            *(seconds(row[part]) for part in ("p50", "p95", "p99", "max")),
            longest_of(row) or "-",
        )
        for name, row in (
            ("to load an instance", cache["loads"]),
            ("to get a lease", leases["wait_seconds"]),
            ("lease held", leases["held_seconds"]),
            ("age at eviction", cache["age_seconds"]),
        )
        if row["count"]
    ]
    columns = ("what", "count", "median", "95 %", "99 %", "longest", "of request")
    return Table("Times", columns, rows)


def _counts(cache: Document) -> Table:
    leases = cache["leases"]
    rows = [
        ("waited for", cite(what), f"{number:,}") for what, number in leases["waits_for"].items()
    ]
    rows += [
        ("ended without a lease", cite(what), f"{number:,}")
        for what, number in leases["abandoned"].items()
    ]
    if cache["loads"]["failed"]:
        rows.append(("loads", "failed", f"{cache['loads']['failed']:,}"))
    return Table("Waits and failures", ("what", "", "count"), rows, left=2)


def _throttled(cache: Document) -> Table:
    rows = [
        (
            cite(row["group"]),
            f"{row['cpu_limit_cores']:g}",
            f"{row['waits']:,}",
            seconds(row["wait_seconds"]),
            f"{row['at_once']:,}",
        )
        for row in cache["throttled"][:TOP]
    ]
    columns = ("group", "cores", "waits", "waited", "at once")
    return Table("Waits for the cpu_limit of a group", columns, rows)


def _rows(cache: Document, what: str) -> Table:
    rows = []
    for row in cache[f"{what}s"][:TOP]:
        granted = row["hits"] + row["misses"]
        rows.append(
            (
                cite(row[what]),
                f"{granted:,}" if granted else "-",
                rate(row["hits"] / granted if granted else None),
                f"{row['blocks']:,}" if granted else "-",
                f"{row['loads']:,}",
                seconds(row["load_seconds"]),
                f"{row['evictions']:,}",
                f"{row['thrashed']:,}",
                f"{row['never_reused']:,}",
                ", ".join(f"{reason} {number:,}" for reason, number in row["by_reason"].items()),
            )
        )
    columns = (
        *(what, "leases", "hits", "waits", "loads", "loading", "evicted", "thrash"),
        *("never reused", "evicted for"),
    )
    table = Table(f"{what.capitalize()}s", columns, rows)
    if len(cache[f"{what}s"]) > TOP:
        table.note = f"The first {TOP} of {len(cache[f'{what}s']):,}, by time spent loading."
    return table


def _limits(cache: Document) -> Table:
    rows = []
    for name, value in cache["limits"].items():
        if name == "idle_timeout_seconds":
            text = timeout_of(cache["limits"])
        elif "idle_timeout" in name:
            continue
        else:
            text = size(value) if name.endswith("_bytes") else f"{value:,}"
        rows.append((name.removesuffix("_bytes").removesuffix("_seconds"), text))
    table = Table("Limits", ("limit", "value"), rows)
    if cache["resizes"]:
        table.note = f"As they were at the end, after {count(cache['resizes'], 'resize')}."
    return table


def render(
    title: str,
    subtitle: str,
    notes: Sequence[str],
    sections: Sequence[PageSection],
    report: Document | None = None,
) -> str:
    """Render a page; everything on it is escaped, except the charts.

    Args:
        title: heading of the page.
        subtitle: text under it.
        notes: remarks on the log.
        sections: what follows.
        report: document whose findings come first; None: there are none.
    """

    def visible(value: object) -> Any:
        """Return texts as a terminal shows them; the template's safe texts are no plain `str`."""
        return cite(value, MAX_TEXT) if type(value) is str else value

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=visible, trim_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title,
        subtitle=subtitle,
        findings=[] if report is None else report["findings"],
        verdict=None if report is None else report["verdict"],
        notes=notes,
        sections=sections,
    )
