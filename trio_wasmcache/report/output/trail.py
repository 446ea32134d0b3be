"""The events that `report --where` shows, as lines of text and as JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..reading.documents import Document
from ..reading.names import shown
from ..reading.notes import cite, count
from ..reading.units import seconds
from ..summary.trail import Fields, Trail
from .story import MAX_TOLD, of_cache, sentence, stamp_of
from .terminal import show

# Fields that are shown first, or not at all.
SHOWN_FIRST = {
    *("event", "schema", "cache", "label", "seq", "at_seconds", "timestamp", "level", "logger"),
    *("function", "arg_types", "group", "request", "instance", "generation", "module_digest"),
}
MAX_VALUE = 200


def trail_document(trail: Trail, notes: list[str]) -> Document:
    """Return the events as plain values, with all their fields."""
    requests, instances = trail.followed
    field, value = trail.conditions[0]
    told = ((event, sentence(event)) for event in trail.direct)
    return {
        "where": {"field": field, "value": value},
        "conditions": [{"field": name, "value": text} for name, text in trail.conditions],
        "requests": requests,
        "instances": instances,
        "events": [{name: _plain(it) for name, it in one.items()} for one in trail.events],
        "left_out": trail.left_out,
        "sentences": [
            {"cache": event["cache"], "seq": event["seq"], "text": text}
            for event, text in told
            if text
        ],
        "notes": notes,
    }


def _plain(value: object) -> object:
    """Return a value that JSON can express: a processor may have added any."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return repr(value)[:MAX_VALUE]
    return value


def show_trail(console: Console, events: list[Fields]) -> None:
    """Print a line for each event: time, what happened to what, and the other fields."""
    _show(console, events, _line)


def show_sentences(console: Console, trail: Trail, most: int | None = None) -> None:
    """Print a sentence for each event that has the values and is of no request.

    Args:
        console: the destination.
        trail: the events.
        most: number of those that are printed, at most; None: `MAX_TOLD`.
    """
    told = trail.direct[: most or MAX_TOLD]
    _show(console, told, lambda event: sentence(event) or _line(event))
    if trail.directly > len(told):
        gone = all(event["event"] == "wasmcache.evicted" for event in trail.direct)
        more = count(trail.directly - len(told), f"more {'eviction' if gone else 'event'}")
        text = f"and {more}: --top {trail.directly} tells of them, too"
        show(console, Text(text))
    show(console, Text("--events prints the events with all their fields."))


def _show(console: Console, events: list[Fields], tell: Callable[[Fields], str]) -> None:
    """Print events under the names of their caches, each beside its time."""
    begins: dict[str, float] = {}
    before = None
    for cache, group in itertools.groupby(events, key=lambda event: event["cache"]):
        if before is not None:
            show(console, Text(""))
        before, some = cache, [*group]
        stamps = [stamp_of(event) for event in some]
        dates = {stamp.partition(" ")[0] for stamp in stamps}
        day = ""
        if len(dates) == 1 and all(" " in stamp for stamp in stamps):
            day = f", {dates.pop()}"
            stamps = [stamp.partition(" ")[2] for stamp in stamps]
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(justify="right", no_wrap=True)
        table.add_column()
        for event, stamp in zip(some, stamps, strict=True):
            begin = begins.setdefault(cache, event["at_seconds"])
            after = f"+{seconds(max(event['at_seconds'] - begin, 0))}"
            table.add_row(Text(stamp or after), Text(tell(event)))
        show(console, Text(f"{of_cache(some[0])}{day}", style="bold"))
        show(console, table)


def _line(event: Fields) -> str:
    """Return an event with all its fields."""
    return f"{event['event'].removeprefix('wasmcache.'):<10} {_what(event)}"


def _what(event: dict[str, Any]) -> str:
    parts = []
    if event.get("function") is not None:
        parts.append(cite(shown(event["function"], event.get("arg_types") or "")))
    if event.get("group") is not None:
        parts.append(f"in {cite(event['group'])}")
    for name in ("request", "instance"):
        if event.get(name) is not None:
            parts.append(f"{name} {event[name]}")
    parts += [
        f"{cite(name)}={cite(_written(value), MAX_VALUE)}"
        for name, value in event.items()
        if name not in SHOWN_FIRST and value is not None
    ]
    return " ".join(parts)


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else repr(value)
