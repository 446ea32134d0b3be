"""Logs that lack fields: of older versions, and of processors that drop nulls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report.logs import Log, make, run_command, text_of, use

from trio_wasmcache._core.event_kinds import EVENTS
from trio_wasmcache._core.events import (
    Abandoned,
    Acquired,
    Blocked,
    Event,
    Evicted,
    Failed,
    Left,
    Loaded,
    Lost,
    Output,
    PreparationEnded,
    PreparationRequested,
    Reason,
    Recycled,
    Replayable,
    Requested,
)
from trio_wasmcache.report.reading.schema import types_of

Lines = list[dict[str, Any]]
CONDITIONS = (
    *("reason=count", "reason=corrupted", "instance=1", "group=g"),
    *("error=null", "evictions=null"),
)
QUESTIONS = (
    ["report"],
    ["report", "--json"],
    ["report", "--slowest", "9"],
    ["report", "--slowest", "9", "--json"],
    *(
        ["report", "--where", condition, *more]
        for condition in CONDITIONS
        for more in ([], ["--json"])
    ),
    ["report", "--where", "group=g", "--events"],
    ["replay", "--json"],
)


def absent_fields() -> dict[str, dict[str, object]]:
    """{field: {event in which it may be null or has a default: its value where it is absent}}."""
    found: dict[str, dict[str, object]] = {}
    for event in EVENTS:
        for field, kinds in types_of(event).items():
            if hasattr(event, field) or type(None) in kinds:
                found.setdefault(field, {})[event.name] = getattr(event, field, None)
    return found


ABSENT = absent_fields()


def full(kind: type[Event], **known: Any) -> Event:
    """An event with a value in each field, null being none."""
    some: dict[type, object] = {str: "x", int: 1, float: 0.25, bool: True}
    fields = {
        field: next(some[one] for one in kinds if one in some)
        for field, kinds in types_of(kind).items()
        if list not in kinds
    }
    named = {**use("g/f"), "request": 2, **known}
    return make(kind, **fields | {name: it for name, it in named.items() if name in fields})


def lines_of_all() -> Lines:
    """A log of the events that stories tell of, with values in all of their fields."""
    log = Log()
    log.opened()
    steps = (
        full(Blocked, waits_for="a token", request=None),
        full(Requested, deadline_seconds=9.0),
        full(Blocked, waits_for="an instance"),
        full(Evicted, reason=Reason.COUNT, for_request=2, instance=7, seat=False),
        full(Loaded, seat=False),
        full(Acquired, hit=False),
        full(Output, line="said"),
        full(Replayable),
        full(Left),
        full(Recycled, error_message="why"),
        full(Evicted, reason=Reason.CORRUPTED, evictions=1, seat=False),
        full(Requested, request=3),
        full(Failed, request=3),
        full(Abandoned, request=3, error="TrapError"),
        full(Blocked, waits_for="a token", request=None, task=5),
        full(Abandoned, request=None, task=5, error="Cancelled"),
        full(PreparationRequested, request=4),
        full(PreparationEnded, request=4),
        full(Lost),
    )
    for number, event in enumerate(steps):
        log.add(1.0 + number / 8, event)
    log.closed(9.0)
    return log.lines


def told(capsys: pytest.CaptureFixture[str], path: Path, lines: Lines) -> list[Any]:
    """What all questions get for an answer, and as status; without their order."""
    path.write_text(text_of(lines))
    answers = []
    for question in QUESTIONS:
        ran = run_command(capsys, *question, path)
        as_json = question[-1] == "--json" and ran.out
        out = json.loads(ran.out) if as_json else sorted(ran.out.split())
        answers.append((question, ran.status, out, ran.err))
    return answers


def changed(lines: Lines, names: set[str], *, leave_out: bool) -> Lines:
    """The lines without some fields, where they may be absent, or with what stands for that."""
    made = []
    for line in lines:
        absent = {
            name: kinds[line["event"]]
            for name, kinds in ABSENT.items()
            if name in names and line["event"] in kinds
        }
        kept = {name: it for name, it in line.items() if name not in absent}
        made.append(kept if leave_out else line | absent)
    return made


_EVENTS = {line["event"] for line in lines_of_all()}
FIELDS = [field for field, events in ABSENT.items() if _EVENTS & events.keys()]


@pytest.mark.parametrize("field", ["all", *FIELDS])
def test_a_field_that_is_absent_has_its_default(
    field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is asked: a log that lacks it tells the same as one that has it so."""
    lines, names = lines_of_all(), {*ABSENT} if field == "all" else {field}
    without, with_default = (changed(lines, names, leave_out=it) for it in (True, False))
    assert without != with_default
    path = tmp_path / "log"
    first = told(capsys, path, with_default)
    assert told(capsys, path, without) == first
    assert all("damaged" not in errors for *_, errors in first)
