"""Logs that lack fields: of older versions, and of processors that drop nulls."""

from __future__ import annotations

from pathlib import Path

import pytest
from report.questions import Lines, answers, lines_of_all

from trio_wasmcache._core.event_kinds import EVENTS
from trio_wasmcache.report.reading.schema import types_of


def absent_fields() -> dict[str, dict[str, object]]:
    """{field: {event in which it may be null or has a default: its value where it is absent}}."""
    found: dict[str, dict[str, object]] = {}
    for event in EVENTS:
        for field, kinds in types_of(event).items():
            if hasattr(event, field) or type(None) in kinds:
                found.setdefault(field, {})[event.name] = getattr(event, field, None)
    return found


ABSENT = absent_fields()


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
    first = answers(capsys, path, with_default)
    assert answers(capsys, path, without) == first
    assert all("damaged" not in errors for *_, errors in first)
