"""Logs with gaps, of several caches, of a clock that jumps: what is told, and what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report.logs import Log, busy_log, run_command, run_report, text_of, without

from trio_wasmcache.report.reading import clock, lines
from trio_wasmcache.report.reading.clock import JUMP, LONG_SILENCE

Capture = pytest.CaptureFixture[str]


def report_on(capsys: Capture, tmp_path: Path, log: Log) -> dict[str, Any]:
    """The only cache of a log in which nothing is wrong."""
    ran = run_report(capsys, log.write(tmp_path / "log"))
    assert (ran.status, ran.err) == (0, "")
    return ran.cache


def test_gaps_lateness_and_repeats_are_told(tmp_path: Path, capsys: Capture) -> None:
    """By number; missing events are a flaw, those that came late or twice are not."""
    log = busy_log()
    rows = without(log.lines, 10, 20, 21, 22, 30, 40, 50)
    rows[5], rows[7] = rows[7], rows[5]
    rows.insert(60, rows[59])
    path = tmp_path / "log"
    path.write_text(text_of(rows))
    ran = run_report(capsys, path)
    assert ran.status == 1
    assert ran.cache["sequence"]["missing"] == 7
    assert ran.cache["sequence"]["gaps"][:2] == [[10, 10], [20, 22]]
    assert ran.err.splitlines() == [
        "cache cafe0001: 7 events missing: 10, 20 to 22, 30, ...",
        "cache cafe0001: 2 events came out of order: put in order",
        "cache cafe0001: 1 event came twice: counted once",
    ]
    assert ran.document["notes"] == ran.err.splitlines()


def test_a_log_from_its_middle(tmp_path: Path, capsys: Capture) -> None:
    """Is analysed for the time that it tells of; the status says that its beginning is missing."""
    path = tmp_path / "log"
    path.write_text(text_of(busy_log().lines[50:]))
    ran = run_report(capsys, path)
    assert ran.status == 1
    assert ran.err == "cache cafe0001: begins with event 51, not with the first\n"
    assert ran.cache["limits"] == {}


def test_lost_events(tmp_path: Path, capsys: Capture) -> None:
    """Are the cache's own loss, and said to be."""
    log = busy_log()
    log.lost(30, 5, 10)
    path = tmp_path / "log"
    path.write_text(text_of(without(log.lines, *range(10, 15))))
    ran = run_report(capsys, path)
    assert ran.status == 1
    assert ran.err == "cache cafe0001: 5 events lost: the cache's buffer was full\n"
    assert (ran.cache["sequence"]["lost"], ran.cache["sequence"]["missing"]) == (5, 0)


def test_events_without_their_context(tmp_path: Path, capsys: Capture) -> None:
    """Are counted, also where lines from elsewhere have any value in that field."""
    lines = busy_log().lines
    for line in lines[10:15]:
        line["context_lost"] = True
    path = tmp_path / "log"
    for other in ([], [{"event": "mine"}], [{"event": "mine", "context_lost": [1]}]):
        path.write_text(text_of([*lines, *other]))
        ran = run_report(capsys, path)
        assert ran.status == 0
        assert ran.cache["context_lost"] == 5
        said = "5 events without the context of their tasks: the log's sink was too slow"
        assert f"cache cafe0001: {said}" in ran.err.splitlines()
    lines[20]["context_lost"] = "what a processor adds"
    path.write_text(text_of(lines))
    assert run_report(capsys, path).cache["context_lost"] == 5


def test_two_caches(tmp_path: Path, capsys: Capture) -> None:
    """Mixed in one log, each is told by itself, as if it were alone; or one of them only."""
    one, two = busy_log("one"), busy_log("two", rounds=7)
    mixed = [line for pair in zip(one.lines, two.lines, strict=False) for line in pair]
    mixed += one.lines[len(two.lines) :]
    path = tmp_path / "log"
    path.write_text(text_of(mixed))
    ran = run_report(capsys, path)
    assert ran.status == 0
    assert ran.err == "2 caches in this log, which --by-cache shows one by one: one, two\n"
    alone = [report_on(capsys, tmp_path, log) for log in (one, two)]
    assert ran.document["caches"] == alone
    path.write_text(text_of(mixed))
    only = run_command(capsys, "report", "--json", "--cache", "two", path)
    assert only.document["caches"] == [alone[1]]
    assert only.err == ""
    none = run_command(capsys, "report", "--json", "--cache", "three", path)
    assert (none.status, none.out) == (2, "")
    assert none.err == "no events to analyse of cache three\n"


@pytest.mark.parametrize("cut", [10_000_000, 3000])
def test_the_clock_jumps(
    cut: int, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backwards: told, and time goes on from there. Forwards: it may be so. A little is nothing."""
    monkeypatch.setattr(lines, "BLOCK", cut)
    log = busy_log()
    for line in log.lines[30:]:
        line["at_seconds"] -= 1000.0
    for line in log.lines[60:]:
        line["at_seconds"] -= JUMP / 2
    for line in log.lines[90:]:
        line["at_seconds"] += LONG_SILENCE + 1
    ran = run_report(capsys, log.write(tmp_path / "log"))
    assert ran.status == 1
    assert ran.err.splitlines() == [
        "cache cafe0001: the clock jumped back 1 time: time is counted on from there",
        "cache cafe0001: nothing happened for 24 h 00 min, or the clock jumped forward",
    ]
    assert ran.cache["clock"]["jumps_back"] == 1
    assert ran.cache["clock"]["longest_silence_seconds"] == pytest.approx(86401, abs=1)
    straight = busy_log().lines[-1]["at_seconds"]
    expected = straight + LONG_SILENCE + 1 - JUMP / 2
    assert ran.cache["span_seconds"] == pytest.approx(expected, abs=0.5)
    assert clock.JUMP == JUMP
