"""What can be asked of a log, and a log with all that stories tell of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from report.logs import Log, make, run_command, text_of, use

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
QUESTIONS: tuple[tuple[str, ...], ...] = (
    ("report",),
    ("report", "--json"),
    ("report", "--slowest", "9"),
    ("report", "--slowest", "9", "--json"),
    *(
        ("report", "--where", condition, *more)
        for condition in CONDITIONS
        for more in ((), ("--json",))
    ),
    ("report", "--where", "group=g", "--events"),
    ("replay", "--json"),
)


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


def answers(
    capsys: pytest.CaptureFixture[str],
    path: Path,
    lines: Lines,
    questions: Iterable[Sequence[str]] = QUESTIONS,
) -> list[Any]:
    """What all questions get for an answer, and as status; without their order."""
    path.write_text(text_of(lines))
    found = []
    for question in questions:
        ran = run_command(capsys, *question, path)
        as_json = question[-1] == "--json" and ran.out
        out = json.loads(ran.out) if as_json else sorted(ran.out.split())
        found.append((question, ran.status, out, ran.err))
    return found
