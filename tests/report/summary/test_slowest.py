"""`report --slowest`: which requests took the longest, from their first wait to their end."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from report.logs import Log, make, run_command, text_of, use, without
from report.workloads import draw_config, run_on_jumping_clock, wild_plan
from rich.cells import cell_len

from trio_wasmcache._core.events import Abandoned, Blocked, Event
from trio_wasmcache.report.reading import lines

Capture = pytest.CaptureFixture[str]


def waiting(kind: type[Event], function: str = "f", **more: Any) -> Event:
    known = {**use(function), "task": 1}
    del known["instance"]
    return make(kind, **known | more)


def log_of_five() -> Log:
    """Requests 1 (2 s), 2 (3 s, of which 2.5 for a token), 3 (0.1 s), 4 (no end), 5 (by `warm`)."""
    log = Log()
    log.opened()
    log.add(1.0, waiting(Blocked, "b/f", request=None, task=7, waits_for="a token"))
    log.requested(1.0, 1)
    log.requested(1.0, 5, warm=True)
    log.acquired(1.5, request=1, wait_seconds=0.5)
    log.recycled(3.0, request=1, held_seconds=1.5)
    log.requested(3.5, 2, "b/f", task=7, blocked=True)
    log.acquired(3.5, True, "b/f", request=2, wait_seconds=2.5)
    log.recycled(4.0, "b/f", request=2, held_seconds=0.5)
    log.requested(4.0, 3)
    log.requested(4.0, 4)
    log.add(4.1, waiting(Abandoned, request=3, error="Cancelled"))
    log.add(5.0, waiting(Blocked, "b/g", request=None, task=8, waits_for="a token"))
    log.add(6.0, waiting(Abandoned, "b/g", request=None, task=8, error="Cancelled"))
    log.recycled(9.0, request=5, held_seconds=1.0)
    return log


def test_the_slowest_requests(tmp_path: Path, capsys: Capture) -> None:
    """In order, with their stories; one that never had a token counts, and one without end not."""
    path = log_of_five().write(tmp_path / "log")
    ran = run_command(capsys, "report", "--json", "--slowest", "3", path)
    assert (ran.status, ran.err) == (0, "")
    document = ran.document
    assert document["requests"] == 4
    assert document["unended"] == {
        "count": 1,
        "requests": [{"cache": "cafe0001", "request": 4}],
    }
    told = [(one["request"], one["seconds"], one["outcome"]) for one in document["slowest"]]
    assert told == [(2, 3.0, "completed"), (1, 2.0, "completed"), (None, 1.0, "gave up")]
    assert document["slowest"][0]["waited_seconds"] == {"a token": 2.5}
    ran = run_command(capsys, "report", "--slowest", "2", path)
    assert ran.out.startswith(
        "The 2 slowest of 4 requests, from the first wait to the end of the lease\n\n"
        "Cache cafe0001\nRequest 2, f(i64) in group b, took 3.0 s: 2.5 s for a token, 500 ms in "
    )
    assert ran.out.endswith("1 request has not ended in this log: 4\n")
    assert "Request 1," in ran.out
    assert "gave up" not in ran.out
    events = run_command(capsys, "report", "--slowest", "1", "--events", path).out
    assert events.count("request 2") == 3


def test_events_that_are_missing_are_told(tmp_path: Path, capsys: Capture) -> None:
    """Status 1, as of the report: a slower request may be among them."""
    path = tmp_path / "log"
    path.write_text(text_of(without(log_of_five().lines, 7, 8)))
    ran = run_command(capsys, "report", "--slowest", "1", path)
    assert ran.status == 1
    assert "2 events missing" in ran.err
    assert "The slowest of 3 requests" in ran.out


def test_a_log_without_requests(tmp_path: Path, capsys: Capture) -> None:
    log = Log()
    log.opened(log_uses=False)
    ran = run_command(capsys, "report", "--slowest", "1", log.write(tmp_path / "log"))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "no requests in the log: it was written without log_uses\n"
    log = Log()
    log.opened()
    ran = run_command(capsys, "report", "--slowest", "1", log.write(tmp_path / "log"))
    assert (ran.status, ran.err) == (2, "no requests in the log: no request has ended in it\n")
    (tmp_path / "log").write_text("")
    assert run_command(capsys, "report", "--slowest", "1", tmp_path / "log").status == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--html", "page"], "--html has no page for --slowest"),
        (["--where", "request=1"], "--slowest looks at all requests: use it without --where"),
        (["-"], "--slowest reads the log twice: give it files"),
    ],
)
def test_asked_wrongly(options: list[str], told: str, tmp_path: Path, capsys: Capture) -> None:
    path = log_of_five().write(tmp_path / "log")
    ran = run_command(capsys, "report", "--slowest", "1", *options, path)
    assert (ran.status, ran.out) == (2, "")
    assert told in ran.err


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [3_000, 10**6])
def test_they_are_the_slowest(seed: int, block: int, tmp_path: Path, capsys: Capture) -> None:
    """Of all that have an end, in the log of any application, whatever the size of the blocks."""
    random = Random(seed)
    log = run_on_jumping_clock(wild_plan(random), draw_config(random)).log
    began: dict[Any, float] = {}
    took: dict[Any, float] = {}
    for event in log.events:
        kind, request = event["event"].removeprefix("wasmcache."), event.get("request")
        at, task = event["at_seconds"], ("task", event.get("task"))
        if kind == "blocked" and request is None:
            began[task] = at
        elif kind == "requested":
            since = began.pop(task, at)
            if not event["warm"]:
                began[request] = since
        elif kind in ("recycled", "abandoned"):
            since = began.pop(task if request is None else request, None)
            if since is not None:
                took[event["seq"] if request is None else request] = at - since
    path = log.write(tmp_path / "log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK", block)
        ran = run_command(capsys, "report", "--json", "--slowest", "7", path)
        shown = run_command(capsys, "report", "--slowest", "7", path)
    document = ran.document
    assert document["requests"] == len(took)
    found = [one["seconds"] for one in document["slowest"]]
    assert found == pytest.approx(sorted(took.values())[::-1][:7])
    for one in document["slowest"]:
        if one["request"] is not None:
            assert one["seconds"] == pytest.approx(took[one["request"]])
    assert max(map(cell_len, shown.out.splitlines())) <= 80
