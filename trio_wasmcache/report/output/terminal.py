"""The report on a terminal: tables that fit 80 columns."""

from __future__ import annotations

import math

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..._core.config import ADAPTIVE
from ..reading.documents import Document
from ..reading.notes import cite, count
from ..reading.units import MAX_MOMENT, moment, rate, seconds, short, size, soon

TOP = 10
# Width of the column of names, at least.
LEAST_COLUMNS = 8
# Characters of a sentence about the log.
MAX_SENTENCE = 1000
NOTHING_PAID: dict[str, float] = {"count": 0, "seconds": 0.0}


def show_report(
    console: Console, document: Document, top: int = TOP, *, by_cache: bool = False
) -> None:
    """Print the findings, then all caches together, then each: if it is the only one, or if asked.

    Args:
        console: the destination.
        document: the report.
        top: number of rows of tables.
        by_cache: whether to print each of several caches, too.
    """
    show(console, Group(_findings(document), Text()))
    if document["together"] is not None:
        _show_together(console, document["together"])
        if not by_cache:
            return
    for cache in document["caches"]:
        parts = [_overview(cache), _reasons(cache), _times(cache), _waits(cache)]
        parts.append(_throttled(cache, top))
        parts += [_rows(cache, what, top) for what in ("function", "group")]
        parts += [_needs(cache, what, top) for what in ("group", "function")]
        for part in parts:
            if isinstance(part, Table) and part.show_header:
                fit(part, console.width)
        show(console, Group(*(Group(part, Text()) for part in parts if part is not None)))
    if document["others"] is not None:
        _show_others(console, document["others"])


def _findings(document: Document) -> RenderableType:
    """Return the sentences, each with the line to paste."""
    if not document["findings"]:
        return Text(cite(document["verdict"], MAX_SENTENCE), style="green")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for number, finding in enumerate(document["findings"], 1):
        sentence = Text(cite(finding["sentence"], MAX_SENTENCE))
        line = finding["paste"]
        paste = Text(cite(line, len(line)), style="cyan")  # whole, or it is of no use
        table.add_row(f"{number}.", Group(sentence, paste))
    return Group(Text("What to do", style="bold"), table)


def _show_together(console: Console, together: Document) -> None:
    """Print the sums of all caches, and those that do worst."""
    more = "More than " * together["more"]
    leases, thrash, reloads = together["leases"], together["thrash"], together["reloads"]
    facts = [("events", f"{together['events']:,}")]
    if together["labels"]:
        facts.append(("labels", _named(together["labels"])))
    if leases["hits"] + leases["misses"]:
        facts.append(_hits(leases))
        if leases["acquires"]:
            waits = f"{rate(leases['block_rate'])} of {leases['acquires']:,} acquires"
            facts.append(("waits", waits))
    facts += [
        ("thrash", _thrash(thrash)),
        ("paid for evictions", _paid(reloads, together["loads"])),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in facts:
        table.add_row(name, Text(text))
    title = f"{more}{count(together['caches'], 'cache')} together"
    parts = [Group(Text(title, style="bold"), table), _reasons(together)]
    worst = together["worst"]
    if worst["misses"]:
        misses = make_table("Caches with the most misses", "cache", "misses", "leases", "missed")
        for row in worst["misses"]:
            granted = row["hits"] + row["misses"]
            cells = short(row["misses"]), short(granted), rate(row["miss_rate"])
            misses.add_row(Text(cache_name(row)), *cells)
        parts.append(misses)
    if worst["thrash"]:
        again = make_table("Caches with the most thrash", "cache", "loaded again", "time paid")
        for row in worst["thrash"]:
            again.add_row(Text(cache_name(row)), short(row["count"]), seconds(row["load_seconds"]))
        parts.append(again)
    for part in parts:
        if isinstance(part, Table) and part.show_header:
            fit(part, console.width)
    show(console, Group(*(Group(part, Text()) for part in parts)))


def _named(labels: dict[str, int]) -> str:
    listed = ", ".join(f"{cite(label)} {number:,}" for label, number in [*labels.items()][:TOP])
    return listed + ", ..." * (len(labels) > TOP)


def cache_name(cache: Document) -> str:
    """Return the name of a cache, with its label if it has one."""
    label = f" {cite(cache['label'])}" if cache["label"] else ""
    return f"{cite(cache['cache'])}{label}"


def _show_others(console: Console, others: Document) -> None:
    """Print the sums of the caches that are only counted together."""
    more = "More than " * others["more"]
    title = f"{more}{count(others['caches'], 'other cache')}, added up together"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    leases, peak = others["leases"], others["peak"]
    granted = leases["hits"] + leases["misses"]
    facts = [("events", f"{_sum(others['events']):,}")]
    if granted:
        facts.append(_hits(leases))
    facts += [
        ("idle instances", f"{size(peak['total_size_bytes'])} at most in one cache"),
        ("code and stacks", f"{size(peak['code_size_bytes'])} at most in one cache"),
    ]
    for name, text in facts:
        table.add_row(name, Text(text))
    parts = [Group(Text(title, style="bold"), table), _reasons(others), _times(others)]
    parts.append(_waits(others))
    show(console, Group(*(Group(part, Text()) for part in parts if part is not None)))


def _hits(leases: Document) -> tuple[str, str]:
    granted = leases["hits"] + leases["misses"]
    rates = f"{rate(leases['hit_rate'])} and {rate(leases['miss_rate'])}"
    loaded = f"; {leases['seat_hits']:,} hits had to load" if leases["seat_hits"] else ""
    return "hits, misses", f"{rates} of {granted:,} leases{loaded}"


def show(console: Console, what: RenderableType) -> None:
    """Print `what`; to a file or a pipe without trailing spaces."""
    if console.is_terminal:
        console.print(what)
        return
    with console.capture() as captured:
        console.print(what)
    for line in captured.get().splitlines():
        console.out(line.rstrip(), highlight=False)


def make_table(title: str, first: str, *columns: str) -> Table:
    """Return an empty table of numbers, with a first column for names."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(
        first, overflow="ellipsis", no_wrap=True, min_width=LEAST_COLUMNS, header_style="dim"
    )
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, header_style="dim")
    return table


def fit(table: Table, width: int) -> None:
    """Narrow the first column where the others need the width; rich would shrink all of them."""
    first, *others = table.columns
    needed = sum(
        2 + max(cell_len(str(cell)) for cell in (column.header, *column.cells)) for column in others
    )
    first.max_width = max(LEAST_COLUMNS, width - needed)


def _overview(cache: Document) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in _facts(cache):
        table.add_row(name, Text(text))
    return Group(Text(f"Cache {cache_name(cache)}", style="bold"), table)


def _facts(cache: Document) -> list[tuple[str, str]]:
    leases, thrash = cache["leases"], cache["thrash"]
    evictions = cache["evictions"]["count"]
    facts = [("time", f"{seconds(cache['span_seconds'])}, {_sum(cache['events']):,} events")]
    if cache["began"]:
        began, ended = (cite(moment(cache[name]), MAX_MOMENT) for name in ("began", "ended"))
        facts.append(("from, to", f"{began}, {ended}"))
    facts += _limits(cache)
    granted = leases["hits"] + leases["misses"]
    if granted:
        facts += [
            _hits(leases),
            ("waits", f"{rate(leases['block_rate'])} of {leases['acquires']:,} acquires"),
        ]
    elif cache["closed"]:
        closed = cache["closed"]
        granted = closed["hits"] + closed["misses"]
        hit_rate = rate(closed["hits"] / granted if granted else None)
        facts.append(("hits", f"{hit_rate} of {granted:,} leases, by the cache's own count"))
    else:
        facts.append(("hits", "not in this log, which was written without log_uses"))
    churn = f"{count(cache['churn']['busiest_evictions'], 'eviction')} in the busiest "
    churn += seconds(cache["churn"]["busiest_seconds"])
    average = cache["churn"]["evictions_per_minute"]
    if average is not None:
        often = (
            f"{_number(average / 60)} a second" if average > 60 else f"{_number(average)} a minute"
        )
        churn += f", {often} on average"
    if cache["churn"]["loads_per_100_leases"] is not None:
        churn += f"; {_number(cache['churn']['loads_per_100_leases'])} loads per 100 leases"
    reloads = cache["reloads"]
    return [
        *facts,
        ("churn", churn),
        ("never reused", f"{cache['never_reused']:,} of {evictions:,} evicted"),
        ("thrash", _thrash(thrash)),
        *([("timed out", timed_out(cache))] if cache["timed_out"]["evictions"] else []),
        ("paid for evictions", _paid(reloads, cache["loads"])),
    ]


def _thrash(thrash: Document) -> str:
    return (
        f"{thrash['count']:,} loaded again "
        f"{thrash_soon(thrash)}, "
        f"in {seconds(thrash['load_seconds'])}"
    )


def thrash_soon(thrash: Document) -> str:
    """Return what counts as thrash."""
    return soon(thrash["within_seconds"], thrash["within_idle_seconds"])


def timed_out(cache: Document) -> str:
    """Return how many instances went for time: too early, or too late."""
    gone = cache["timed_out"]
    text = (
        f"{gone['loaded_again']:,} of {gone['evictions']:,} loaded again "
        f"{soon(cache['thrash']['within_idle_seconds'])}"
    )
    if not gone["in_vain"]:
        return text
    kept = seconds(gone["in_vain_seconds"] / gone["in_vain"])
    return f"{text}; {gone['in_vain']:,} kept in vain, for {kept} on average"


def timeout_of(limits: Document) -> str:
    """Return the idle timeout in words."""
    timeout = limits["idle_timeout_seconds"]
    if limits["idle_timeout_policy"] != ADAPTIVE:
        return seconds(math.inf if timeout is None else timeout)
    least, most = (limits[f"{which}_idle_timeout_seconds"] for which in ("min", "max"))
    return f"adaptive, {seconds(least)} to {seconds(most)}"


def _paid(reloads: Document, loads: Document) -> str:
    return (
        f"{reloads['count']:,} loads, {seconds(reloads['seconds'])} of "
        f"{seconds(loads['total'])} spent loading"
    )


def _limits(cache: Document) -> list[tuple[str, str]]:
    limits, peak = cache["limits"], cache["peak"]
    idle, code = size(peak["total_size_bytes"]), size(peak["code_size_bytes"])
    if not limits:
        return [("idle instances", f"{idle} at most"), ("code and stacks", f"{code} at most")]
    resizes = cache["resizes"]
    changed = f" (limits as at the end, after {count(resizes, 'resize')})" if resizes else ""
    return [
        ("idle instances", f"{idle} at most, of {size(limits['max_size_bytes'])}"),
        ("code and stacks", f"{code} at most, of {size(limits['max_code_size_bytes'])}"),
        ("idle timeout", timeout_of(limits) + changed),
    ]


def needs_of(cache: Document, what: str) -> list[Document]:
    """Return pairs of victim and culprit; groups only if one has evicted another's instances."""
    rows: list[Document] = cache["needs"][f"{what}s"]
    if what == "group" and all(row["victim"] == row["culprit"] for row in rows):
        return []
    return rows


def _needs(cache: Document, what: str, top: int) -> RenderableType | None:
    rows = needs_of(cache, what)
    if not rows:
        return None
    title = f"Evicted for whose need, by {what}"
    if len(rows) > top:
        title += f" (the first {top} of {len(rows):,} pairs)"
    table = make_table(title, "victim", "evicted", "freed")
    table.add_column("for", overflow="ellipsis", no_wrap=True, header_style="dim")
    for row in rows[:top]:
        table.add_row(
            Text(cite(row["victim"])),
            short(row["evictions"]),
            size(row["freed_bytes"]),
            Text(cite(row["culprit"])),
        )
    return table


def _sum(counts: dict[str, int]) -> int:
    return sum(counts.values())


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 99.95 else short(value)


def _reasons(cache: Document) -> RenderableType:
    reasons = cache["evictions"]["by_reason"]
    if not reasons:
        return Text("No evictions.")
    columns = ["count", "part", "freed", "code freed"]
    paid = None
    if "reloads" in cache:  # not for caches counted together, whose order of events is not known
        paid = cache["reloads"]["by_reason"]
        columns += ["loaded again", "time paid"]
    table = make_table("Evictions", "reason", *columns)
    total = cache["evictions"]["count"]
    for reason, row in reasons.items():
        cells = [
            short(row["count"]),
            rate(row["count"] / total),
            size(row["freed_bytes"]),
            size(row["freed_code_bytes"]),
        ]
        if paid is not None:
            again = paid.get(reason, NOTHING_PAID)
            cells += [short(again["count"]), seconds(again["seconds"])]
        table.add_row(reason, *cells)
    return table


def _times(cache: Document) -> RenderableType | None:
    leases = cache["leases"]
    rows = [
        ("to load", cache["loads"]),
        ("to get a lease", leases["wait_seconds"]),
        ("lease held", leases["held_seconds"]),
        ("age at eviction", cache["age_seconds"]),
    ]
    rows = [(name, row) for name, row in rows if row["count"]]
    if not rows:
        return None
    named = any(longest_of(row) for _, row in rows)
    more = ["request"] if named else []
    table = make_table("Times", "what", "count", "median", "95 %", "99 %", "longest", *more)
    for name, row in rows:
        quantiles = [seconds(row[part]) for part in ("p50", "p95", "p99", "max")]
        whose = [longest_of(row) or "-"] if named else []
        table.add_row(name, short(row["count"]), *quantiles, *whose)
    return table


def longest_of(row: Document) -> str:
    """Return the number of the request with the longest time, as `--where request=N` takes it."""
    number = row.get("max_request")
    return "" if number is None else str(number)


def _waits(cache: Document) -> RenderableType | None:
    leases = cache["leases"]
    parts = []
    for title, counts in (
        ("Waited for", leases["waits_for"]),
        ("Ended without a lease", leases["abandoned"]),
    ):
        if counts:
            told = ", ".join(f"{cite(what)} {number:,}" for what, number in _largest(counts))
            parts.append(f"{title}: {told}")
    if cache["loads"]["failed"]:
        parts.append(f"Loads that failed: {cache['loads']['failed']:,}")
    return Text("\n".join(parts)) if parts else None


def _throttled(cache: Document, top: int) -> RenderableType | None:
    rows = cache["throttled"]
    if not rows:
        return None
    title = "Waits for the cpu_limit of a group"
    if len(rows) > top:
        title += f" (the first {top} of {len(rows):,})"
    table = make_table(title, "group", "cores", "waits", "waited", "at once")
    for row in rows[:top]:
        cores, waited = f"{row['cpu_limit_cores']:g}", seconds(row["wait_seconds"])
        cells = cores, short(row["waits"]), waited, short(row["at_once"])
        table.add_row(Text(cite(row["group"])), *cells)
    return table


def _largest(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP]


def _rows(cache: Document, what: str, top: int) -> RenderableType | None:
    rows = cache[f"{what}s"]
    if not rows:
        return None
    title = f"{what.capitalize()}s"
    if len(rows) > top:
        title += f" (the first {top} of {len(rows):,}, by time spent loading)"
    columns = ("leases", "hits", "waits", "loads", "loading", "evicted", "thrash", "no reuse")
    table = make_table(title, what, *columns)
    for row in rows[:top]:
        granted = row["hits"] + row["misses"]
        table.add_row(
            Text(cite(row[what])),
            short(granted) if granted else "-",
            rate(row["hits"] / granted if granted else None),
            short(row["blocks"]) if granted else "-",
            short(row["loads"]),
            seconds(row["load_seconds"]),
            short(row["evictions"]),
            short(row["thrashed"]),
            short(row["never_reused"]),
        )
    return table
