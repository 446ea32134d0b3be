"""Fields that processors add to events, with the names of fields that other events have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from report.logs import busy_log, run_command, text_of
from report.questions import Lines, answers, lines_of_all
from report.workloads import run_on_jumping_clock, steady_plan

from trio_wasmcache import CacheConfig, MiB
from trio_wasmcache.report.reading.frames import TYPES, Parser

# {field: types of its value in some event}
KINDS = {field: kinds for types in TYPES.values() for field, kinds in sorted(types.items())}
VALUES: tuple[Any, ...] = (
    *(None, "x", "size", 1, -1, 2**70, 0.5, True),
    *(["x"], [{"function": "f"}], {"a": 1}),
)
STORIES = (
    ("report",),
    ("report", "--json"),
    ("report", "--slowest", "9", "--events"),
    *(
        ("report", "--where", condition, "--json")
        for condition in ("reason=count", "instance=1", "group=g", "error=null")
    ),
    ("report", "--where", "group=g", "--events"),
)
# {log: what is asked of it}
ASKED = {
    "all": STORIES,
    "busy": STORIES,
    "run": (
        ("replay", "--json"),
        ("whatif", "--max-size", "1MiB", "--json"),
        ("tune", "--no-check", "--json"),
    ),
}


def fitting(name: str, number: int) -> Any:
    """A value that the field has in its own event, so that polars takes it."""
    some: dict[type, Any] = {str: ("x", "main", "f")[number % 3], int: 1 + number % 3}
    some |= {float: number % 3 / 2, bool: number % 2 == 0}
    return next((some[kind] for kind in KINDS[name] if kind in some), None)


def add(lines: Lines, value: Callable[[str, int], Any], part: float = 1.0) -> Lines:
    """The lines with fields of other events, before or after their own.

    Args:
        lines: a log.
        value: gives the value of a field, for its name and the number of the line.
        part: how many of the fields are added to a line.
    """
    made, random = [], Random(1)
    for number, line in enumerate(lines):
        own = TYPES[line["event"]]
        new = {
            name: value(name, number)
            for name in KINDS
            if name not in own and random.random() < part
        }
        made.append(line | new if number % 2 else new | line)
    assert made != lines
    return made


@pytest.fixture(scope="module")
def logs() -> dict[str, Lines]:
    """Logs of many kinds of events, of many lines, and of a run that can be run again."""
    plan = steady_plan(1, tasks=4, uses=10, functions=5)
    outcome = run_on_jumping_clock(plan, CacheConfig(max_size=MiB))
    return {"all": lines_of_all(), "busy": busy_log(rounds=6).lines, "run": outcome.log.events}


def any_value(random: Random) -> Callable[[str, int], Any]:
    return lambda _name, _number: random.choice(VALUES)


WAYS: dict[str, tuple[Callable[[str, int], Any], float]] = {
    "fitting": (fitting, 1.0),
    "some fitting": (fitting, 0.1),
    **{f"all {value!r:.9}": (lambda _name, _number, it=value: it, 1.0) for value in VALUES},
    **{f"any, seed {seed}": (any_value(Random(seed)), 0.3) for seed in range(3)},
}


@pytest.mark.parametrize("log", ASKED)
def test_a_field_of_another_event_changes_no_answer(
    log: str, logs: dict[str, Lines], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is, and whatever is asked: it is not taken for the event's own."""
    path, lines = tmp_path / "log", logs[log]
    expected = answers(capsys, path, lines, ASKED[log])
    for way, (value, part) in WAYS.items():
        assert answers(capsys, path, add(lines, value, part), ASKED[log]) == expected, way


@pytest.mark.parametrize("log", ASKED)
def test_polars_and_python_leave_it_out(log: str, logs: dict[str, Lines]) -> None:
    """Blocks that are parsed at once have what their lines have, parsed one by one."""
    lines, plain = (
        [json.dumps(line).encode() for line in it] for it in (add(logs[log], fitting), logs[log])
    )
    at_once = Parser()
    frame = at_once.frame(lines)
    assert at_once.parsed == len(lines)
    singly = Parser().frame([it for line in lines for it in (line, b"{")])
    assert frame.equals(singly)
    assert frame.equals(Parser().frame(plain))
    assert Parser().dicts(lines) == Parser().dicts(plain)
    assert Parser().records(lines) == Parser().records(plain)


def test_fields_of_no_event_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a trace id; one that has the name of another event's field is not seen."""
    lines = [line | {"trace": "abc", "stream": "abc"} for line in busy_log().lines]
    path = tmp_path / "log"
    path.write_text(text_of(lines))
    ran = run_command(capsys, "report", "--where", "trace=abc", path)
    assert ran.status == 0
    assert "Request 0, f0(i64)" in ran.out
    ran = run_command(capsys, "report", "--where", "stream=abc", path)
    assert ran.status == 2
    assert ran.err == (
        "no event has stream=abc: none of them has a field stream of its own, and a field that a "
        "processor adds can't have the name of another event's\n"
    )
