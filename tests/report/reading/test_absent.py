"""Logs that lack fields: of older versions, and of processors that drop nulls."""

from __future__ import annotations

from pathlib import Path

import pytest
from report.questions import Lines, answers, lines_of_all
from report.workloads import run_on_jumping_clock, steady_plan

from trio_wasmcache import CacheConfig, MiB
from trio_wasmcache._core.event_kinds import EVENTS
from trio_wasmcache.report.reading.frames import OPTIONAL
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


@pytest.mark.parametrize("field", sorted(OPTIONAL))
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_logs_of_older_versions_are_run_again(
    field: str, some: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a field that came later, in all lines or in those before an update of the library."""
    plan = steady_plan(1, tasks=4, uses=10, functions=5)
    lines = run_on_jumping_clock(plan, CacheConfig(max_size=MiB)).log.events
    old = lines[: len(lines) // 2] if some else lines
    older = [{name: it for name, it in line.items() if name != field} for line in old]
    questions = (
        ("replay", "--json"),
        ("whatif", "--max-size", "1MiB", "--json"),
        ("tune", "--no-check", "--json"),
    )
    path = tmp_path / "log"
    found = answers(capsys, path, [*older, *lines[len(old) :]], questions)
    expected = answers(capsys, path, lines, questions)
    assert all(status in (0, 1, 2) for _, status, *_ in found)
    assert "damaged" not in "".join(errors for *_, errors in found)
    if field in ("seat", "label", "fuel", "deadline_seconds"):  # no instance leaves a seat here
        assert found[2] == expected[2]
