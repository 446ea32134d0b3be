"""The stories of requests that `report --where` tells, in sentences and as JSON."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..reading.documents import Document
from ..reading.names import MAX_LETTERS, shown
from ..reading.notes import cite, count
from ..reading.units import MAX_MOMENT, moment, seconds, size
from ..summary.slowest import Slowest
from ..summary.story import Story
from ..summary.trail import Fields
from ..summary.waiting import INSTANCE, TOKEN
from .terminal import show

# Stories that are printed if nobody says how many; the JSON has all of them.
MAX_TOLD: Final = 20
# Seconds between the end of a lease and the grant to the next one that are worth a word.
LATE: Final = 1e-3
# Requests without an end that are named.
MAX_UNENDED: Final = 10
# Lines of a guest, and of the message of an error, that a story shows.
MAX_LINES: Final = 8
# {reason of an eviction: why the instance went}
REASONS: Final = {
    "size": "for size",
    "count": "as there were too many",
    "idle": "at its idle timeout",
    "code": "for the code's size",
    "stack": "for a stack",
    "oversized": "as it was too large to keep",
    "corrupted": "as a call in it had failed",
    "removed": "as the function was removed or replaced",
    "group_closed": "as its group closed",
    "closed": "as the cache closed",
    "address_space": "for addresses",
    "promoted": "as one with optimized code took its place",
    "profiled": "as a profile of its function began or ended",
}


def story_document(story: Story) -> Document:
    """Return a story as plain values."""
    first = story.events[0][0]
    return {
        "cache": story.cache,
        "request": story.request,
        **{name: first.get(name) for name in ("function", "arg_types", "group")},
        "at_seconds": story.began,
        "seconds": story.seconds,
        "waited_seconds": dict(story.waited),
        "load_seconds": story.loading,
        "held_seconds": story.held,
        "outcome": story.outcome,
        "error": story.error,
        "steps": [
            {"after_seconds": max(event["at_seconds"] - story.began, 0.0), "text": text, **facts}
            for event, cause in story.events
            for text, facts in [step(story, event, cause)]
            if text
        ],
    }


def show_stories(console: Console, told: list[Story], most: int | None = None) -> None:
    """Print stories, each with a line that says where its time went and a line for each step.

    Args:
        console: the destination.
        told: the stories.
        most: number of those that are printed, at most; None: `MAX_TOLD`.
    """
    before = None
    most = most or MAX_TOLD
    for story in told[:most]:
        first = story.events[0][0]
        if story.cache != before:
            show(console, Text(of_cache(first), style="bold"))
            before = story.cache
        show(console, Text(_title(story), style="bold"))
        steps = Table.grid(padding=(0, 2, 0, 0))
        steps.add_column(justify="right", min_width=9, no_wrap=True)
        steps.add_column()
        for event, cause in story.events:
            text, facts = step(story, event, cause)
            if text:
                after = seconds(max(event["at_seconds"] - story.began, 0.0))
                words = [text, *_lines(facts.get("error_message"))]
                steps.add_row(Text(f"+{after}"), Text("\n".join(words)))
        show(console, steps)
        show(console, Text(""))
    if len(told) > most:
        more = count(len(told) - most, "more request")
        show(console, Text(f"and {more}: --top {len(told)} prints them all, as --json does"))


def slowest_document(slowest: Slowest, told: list[Story], notes: list[str]) -> Document:
    """Return the stories of the slowest requests as plain values."""
    number, first = slowest.unended
    return {
        "requests": slowest.ended,
        "slowest": [story_document(story) for story in told],
        "unended": {
            "count": number,
            "requests": [{"cache": cache, "request": request} for cache, request in first],
        },
        "notes": notes,
    }


def show_slowest(console: Console, slowest: Slowest, told: list[Story]) -> None:
    """Print the stories of the slowest requests, and which requests have no end in the log."""
    of = count(slowest.ended, "request")
    which = "The slowest" if len(told) == 1 else f"The {len(told):,} slowest"
    show(console, Text(f"{which} of {of}, from the first wait to the end of the lease"))
    show(console, Text(""))
    show_stories(console, told, len(told))
    number, first = slowest.unended
    if number:
        listed = ", ".join(str(request) for _, request in first[:MAX_UNENDED])
        more = ", ..." * (number > MAX_UNENDED)
        have = "has" if number == 1 else "have"
        text = f"{count(number, 'request')} {have} not ended in this log: {listed}{more}"
        show(console, Text(text))


def of_cache(event: Fields) -> str:
    """Return the heading over what happened in the cache of an event."""
    label = f" {cite(event['label'])}" if event.get("label") else ""
    return f"Cache {cite(event['cache'])}{label}"


def stamp_of(event: Fields) -> str:
    """Return the time that a processor has added to an event, with milliseconds, or nothing."""
    stamp = event.get("timestamp")
    if not isinstance(stamp, (str, float, int)):
        return ""
    return cite(moment(str(stamp), exact=True), MAX_MOMENT)


def sentence(event: Fields) -> str:
    """Return what happened, of an event that is known by its instance and not by a request.

    It is empty for an event that has no sentence.
    """
    if event["event"] == "wasmcache.evicted":
        return _went(event)
    if event.get("request") is None:
        return ""
    text, _ = step(Story(event["cache"], event["request"]), event, None)
    return f"request {event['request']},{_whose(event)}, {text}" if text else ""


def _went(event: Fields) -> str:
    """Return why an instance went, for whom, and what it had been good for."""
    number = event["evictions"] or 1
    what = "the seat of" if event["seat"] else f"instance {event['instance']},"
    what = f"{number:,} instances of" if number > 1 else what
    text = f"{what}{_whose(event)}{',' * (what[-1] == ',')} "
    text += f"{'was' if number == 1 else 'were'} evicted {_why(event)}{_sake(event)}"
    if event["idle_seconds"]:
        text += f", after {seconds(event['idle_seconds'])} idle"
    if not event["seat"] and number == 1:
        uses = count(event["uses"], "lease")
        text += f"; it had served {uses} in {seconds(event['age_seconds'])}"
    text += f"; {size(event['freed_bytes'])} freed"
    if event["replaced_by"] is not None:
        text += f"; instance {event['replaced_by']} took its place"
    if event["limit_bytes"] is not None:
        text += f"; the limit is {size(event['limit_bytes'])}"
    if event["advice"] is not None:
        text += f": {cite(event['advice'], MAX_LETTERS)}"
    return text


def _why(gone: Fields) -> str:
    """Return why an instance was evicted."""
    why = REASONS.get(gone["reason"], f"for {cite(gone['reason'])}")
    return why if gone["error"] is None else f"{why} ({cite(gone['error'])})"


def _title(story: Story) -> str:
    first = story.events[0][0]
    stamp = stamp_of(first)
    when = f" at {stamp}" if stamp else ""
    spent = [f"{seconds(time)} for {what}" for what, time in story.waited.items() if time > 0]
    if story.loading:
        spent.append(f"{seconds(story.loading)} to load")
    if story.held:
        spent.append(f"{seconds(story.held)} in its lease")
    ended = {
        "completed": "took",
        "failed": f"failed with {cite(story.error or '?')} after",
        "gave up": f"gave up with {cite(story.error or '?')} after",
    }.get(story.outcome, "has not ended in this log, and had taken")
    parts = f": {', '.join(spent)}" if spent else ""
    who = "An acquire without a token," if story.request is None else f"Request {story.request},"
    return f"{who}{_whose(first)}{when}, {ended} {seconds(story.seconds)}{parts}"


def step(story: Story, event: Fields, cause: Fields | None) -> tuple[str, dict[str, Any]]:
    """Return what a step was, as a sentence and as facts; an empty sentence for none."""
    kind = event["event"].removeprefix("wasmcache.")
    if event.get("request") != story.request and kind != "evicted":
        kind = ""
    facts: dict[str, Any] = {"event": kind, "seq": event["seq"]}
    text = ""
    if kind == "requested":
        text = "asked for an instance"
        if event["blocked"]:
            text += ", after a wait for a token of its group"
            if cause is not None:
                text += f": {_waited(cause, facts)}"
        text += _left(event, facts)
    elif kind == "blocked":
        text = f"waits for {cite(event['waits_for'])}"
        if cause is not None:
            text = _waited(cause, facts)
    elif kind == "loaded":
        text = _loaded(event, cause, facts)
    elif kind == "failed":
        text = f"could not load: {cite(event['error'])}"
        facts |= {name: event[name] for name in ("error", "error_message")}
    elif kind == "acquired":
        text = "was granted an instance that was idle" if event["hit"] else "was granted it"
        text += f" (instance {event['instance']})"
    elif kind == "output":
        if event["line"] is not None:
            text = f"the guest wrote to {cite(event['stream'] or '?')}: {cite(event['line'], 1024)}"
    elif kind == "replayable":
        row = "" if event["row"] is None else f" of row {event['row']}"
        text = f"the values{row} are in the log: again LOG --seq {event['seq']} --module FILE"
    elif kind == "left":
        text = "its block ended while another task had a call of the lease under way"
    elif kind == "recycled":
        text = f"gave it back after {seconds(event['held_seconds'])}: {_calls(event)}"
        if event["error"] is not None:
            text += f"; failed with {cite(event['error'])}"
        if event["error"] == "Cancelled" or not event["calls"]:
            text += _passed(story, event)
        facts |= {name: event[name] for name in ("calls", "fuel", "error", "error_message")}
    elif kind == "abandoned":
        text = f"ended without an instance: {cite(event['error'])}"
        if event["error"] == "Cancelled":
            text += _passed(story, event)
    elif kind == "preparation_requested":
        text = "asked for an instance in which to prepare the function"
    elif kind == "preparation_ended":
        text = _prepared(event)
        facts |= {name: event[name] for name in ("wait_seconds", "held_seconds", "fuel", "error")}
    elif kind == "evicted":
        text = _evicted(story, event, facts)
    return text, facts


def _left(event: Fields, facts: dict[str, Any]) -> str:
    """Return how much of its time was left to a request when it had its token."""
    deadline = event.get("deadline_seconds")
    if deadline is None:
        return ""
    left = facts["deadline_after_seconds"] = max(deadline - event["at_seconds"], 0.0)
    if not left:
        return "; its caller had been cancelled by then, or its deadline had passed"
    return f"; its deadline was {seconds(left)} later"


def _passed(story: Story, event: Fields) -> str:
    """Return that the deadline of a request had passed, if it had."""
    if story.deadline is None or story.deadline > event["at_seconds"]:
        return ""
    if story.late:
        return ", as its caller had been cancelled"
    return f"; its deadline had passed {seconds(event['at_seconds'] - story.deadline)} before"


def _prepared(event: Fields) -> str:
    held, fuel = seconds(event["held_seconds"]), event["fuel"]
    if event["instance"] is None:
        return f"ended without an instance: {cite(event['error'] or '?')}"
    if event["error"] is not None:
        return f"could not be prepared: {cite(event['error'])} after {held}"
    return f"was prepared in {held}, with {fuel:,} units of fuel"


def _calls(event: Fields) -> str:
    calls = count(event["calls"], "call")
    return f"{calls}, {event['fuel']:,} units of fuel" if event["fuel"] else calls


def _waited(cause: Fields, facts: dict[str, Any]) -> str:
    behind = cause["behind"]
    facts |= {"waits_for": cause["waits_for"], "seconds": cause["seconds"], "behind": None}
    what = {TOKEN: "", INSTANCE: " for an instance"}.get(
        cause["waits_for"], f" for {cite(cause['waits_for'])}"
    )
    text = f"waited {seconds(cause['seconds'])}{what}"
    if behind is None:
        return text
    facts["behind"] = {
        name: behind.get(name)
        for name in ("request", "function", "arg_types", "group", "held_seconds")
    }
    text += f" behind request {behind['request']},{_whose(behind)}"
    if "so_far" in cause:
        facts["behind"]["held_seconds"] = cause["so_far"]
        text += f", which had held its instance for {seconds(cause['so_far'])} by then"
    elif behind.get("held_seconds") is not None:
        text += f", whose lease lasted {seconds(behind['held_seconds'])}"
    late = cause.get("late", 0.0)
    if late >= LATE:
        facts["late_seconds"] = late
        text += f" and had ended {seconds(late)} before: until then, its task had no turn"
    return text


def _loaded(event: Fields, cause: Fields | None, facts: dict[str, Any]) -> str:
    facts |= {"seconds": event["load_seconds"], "seat": event["seat"], "gone": None}
    text = f"loaded an instance in {seconds(event['load_seconds'])}"
    if event["module_loaded"]:
        text += f", and its code of {size(event['code_bytes'])}"
    if event["seat"]:
        return f"{text}: on its seat, as every lease gets a new one"
    if cause is None:
        return text
    facts["in_use"] = cause["in_use"]
    because = []
    if cause["in_use"]:
        others = cause["in_use"]
        because.append("the other one was in use" if others == 1 else f"{others} were in use")
    gone = cause["gone"]
    if gone is not None:
        ago = max(event["at_seconds"] - event["load_seconds"] - gone["at_seconds"], 0.0)
        because.append(f"the last one had gone {seconds(ago)} before, {_why(gone)}{_sake(gone)}")
        facts["gone"] = {
            "seconds_before": ago,
            **{
                name: gone.get(name)
                for name in ("reason", "error", "instance", "for_function", "for_arg_types")
            },
            **{name: gone.get(name) for name in ("for_group", "for_request")},
        }
    if not because:
        because = ["there was none yet in this log"]
    return f"{text}: {', and '.join(because)}"


def _evicted(story: Story, event: Fields, facts: dict[str, Any]) -> str:
    why = REASONS.get(event["reason"], f"for {cite(event['reason'])}")
    facts |= {"reason": event["reason"], "freed_bytes": event["freed_bytes"]}
    if event.get("for_request") != story.request:
        return ""
    what = "a seat" if event["seat"] else "an instance"
    number = event["evictions"] or 1
    if number > 1:
        what = f"{number:,} instances"
    facts["victim"] = {name: event.get(name) for name in ("function", "arg_types", "group")}
    return f"had {what} evicted {why}, of{_whose(event)}: {size(event['freed_bytes'])}"


def _sake(gone: Fields) -> str:
    """Return for whose sake an instance was evicted, if it was for anybody's."""
    if gone.get("for_group") is None:
        return ""
    whom = {name: gone.get(f"for_{name}") for name in ("function", "arg_types", "group")}
    request = gone.get("for_request")
    number = "" if request is None else f" request {request},"
    return f", for the sake of{number}{_whose(whom)}"


def _whose(event: Fields) -> str:
    """Return `` f(i64) in group b``, of the event of a function, with a space before it."""
    function = event.get("function")
    name = "" if function is None else f" {cite(shown(function, event.get('arg_types') or ''))}"
    group = event.get("group")
    return name if group is None else f"{name} in group {cite(group)}"


def _lines(message: str | None) -> list[str]:
    """Return some lines of a message, below the text of its step."""
    lines = [line for line in (message or "").splitlines() if line.strip()]
    return [f"  {cite(line, MAX_LETTERS)}" for line in lines[:MAX_LINES]]
