"""The events that `report --where` shows, as lines of text and as JSON."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from ..reading.documents import Document
from ..reading.names import shown
from ..reading.notes import cite
from ..reading.units import MAX_MOMENT, moment, seconds
from ..summary.trail import Trail
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
    return {
        "where": {"field": trail.field, "value": trail.value},
        "requests": requests,
        "instances": instances,
        "events": [{name: _plain(it) for name, it in one.items()} for one in trail.events],
        "left_out": trail.left_out,
        "notes": notes,
    }


def _plain(value: object) -> object:
    """Return a value that JSON can express: a processor may have added any."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return repr(value)[:MAX_VALUE]
    return value


def show_trail(console: Console, trail: Trail) -> None:
    """Print a line for each event: time, what happened to what, and the other fields."""
    begins: dict[str, float] = {}
    before = None
    for event in trail.events:
        cache, at = event["cache"], event["at_seconds"]
        if cache != before:
            label = f" {cite(event['label'])}" if event.get("label") else ""
            show(console, Text(f"Cache {cite(cache)}{label}", style="bold"))
            before = cache
        begin = begins.setdefault(cache, at)
        when = f"+{seconds(max(at - begin, 0))}"
        stamp = event.get("timestamp")
        if isinstance(stamp, str):
            when = cite(moment(stamp), MAX_MOMENT)
        name = event["event"].removeprefix("wasmcache.")
        show(console, Text(f"{when:>9}  {name:<10} {_what(event)}", no_wrap=False))


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
        f"{cite(name)}={cite(value if isinstance(value, str) else repr(value), MAX_VALUE)}"
        for name, value in event.items()
        if name not in SHOWN_FIRST and value is not None
    ]
    return " ".join(parts)
