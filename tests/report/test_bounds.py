"""The log tool's work is in proportion to its input, and its memory bounded, whatever that is."""

from __future__ import annotations

import gzip
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import zstandard
from report.cli.test_questions import CONFIG
from report.logs import Log, busy_log, run_command
from report.workloads import PAGE, FunctionPlan, Plan, Use, run_on_jumping_clock

from trio_wasmcache._core.events import Removed, Stamped
from trio_wasmcache.report.cli import session
from trio_wasmcache.report.reading import feeding, lines
from trio_wasmcache.report.reading.feeding import Feeder
from trio_wasmcache.report.reading.frames import Parser
from trio_wasmcache.report.reading.lines import Reader
from trio_wasmcache.report.reading.notes import FLAWED, Notes
from trio_wasmcache.report.reading.order import EVENT_LETTERS, WINDOW, Line
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay.replay import Replay
from trio_wasmcache.report.tuning.tuning import Tuner
from trio_wasmcache.report.whatif.tasks import Recorder
from trio_wasmcache.report.whatif.whatif import WhatIf

Capture = pytest.CaptureFixture[str]
REPORT = str(Path(feeding.__file__).parent.parent)


def steps(act: Callable[[], object]) -> int:
    """Bytecode instructions of the log tool that `act` runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "call":
            if not frame.f_code.co_filename.startswith(REPORT):
                return None
            frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "line",
    [
        b'{"event":"wasmcache.opened"}',
        b'"wasmcache.',
        b'{"event":"wasmcache.opened","x":' + b"[" * 5000,
        b'{"event":"wasmcache.evicted","uses":' + b"9" * 5000 + b"}",
        b'{"event":"wasmcache.evicted","age_seconds":1e' + b"9" * 500 + b"}",
    ],
    ids=["no fields", "no JSON", "deep", "huge whole number", "huge number"],
)
def test_a_line_is_parsed_three_times_at_most(line: bytes) -> None:
    """By polars in the block and in its piece, and alone: whatever the lines are."""
    good = busy_log(rounds=200).text().encode().splitlines()
    for share in (1, 2, 100):
        mixed = [line if number % share == 0 else good[number] for number in range(1400)]
        parser = Parser()
        frame = parser.frame(mixed)
        assert parser.parsed <= 3 * len(mixed)
        assert len(frame) == parser.events == len(mixed) - len(mixed[::share])
        assert frame.n_chunks() == 1


@pytest.mark.parametrize("filler", [b"\n", b" \r\n", b"x\n", b"\n\nwasmcache.\n"], ids=repr)
@pytest.mark.parametrize("marked", [False, True])
def test_lines_from_elsewhere_become_no_objects(
    filler: bytes, marked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted as they are: the steps are those for blocks, not for lines."""
    monkeypatch.setattr(lines, "BLOCK", 2**16)
    events = busy_log().text().encode().splitlines(keepends=True)[0]
    part = filler * (2**16 // len(filler)) + events * marked
    path = tmp_path / "log"
    path.write_bytes(part * 20)
    reader = Reader([str(path)], Notes(lambda _: None))
    found: list[list[bytes]] = []
    assert steps(lambda: found.extend(reader.blocks())) < 22 * 700
    assert sum(map(len, found)) == 20 * marked
    filled = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    assert reader.counts.lines == len(filled)
    assert reader.counts.foreign == len(filled) - 20 * marked


def test_a_packed_file_without_end_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """If nothing but blank lines comes of it, many times its size; what came before is analysed."""
    monkeypatch.setattr(lines, "BLOCK", 2**20)
    monkeypatch.setattr(lines, "MAX_BARREN", 4 * 2**20)
    good = busy_log().text().encode()
    for pack in (gzip.compress, zstandard.ZstdCompressor().compress):
        path = tmp_path / "log"
        path.write_bytes(pack(good) + pack(b"\n" * 2**26))
        ran = run_command(capsys, "report", "--json", path)
        assert ran.status == FLAWED
        assert ran.document["lines"]["events"] == len(busy_log().lines)
        (told,) = ran.err.splitlines()
        assert "it is packed so that it goes on for " in told
        assert told.endswith("MiB without an event; the rest is left out")
        # What is packed like a log is read to its end.
        path.write_bytes(pack(good + b"".join(b"%x\n" % (n * n) for n in range(10**6)) + good))
        assert run_command(capsys, "report", "--json", path).status == 0


def test_a_bar_for_what_unpacks_to_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """However small the file is; and while `whatif` runs its settings."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(session, "BAR_FROM", 2**20)
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(busy_log().text().encode() + b"\n" * 2**22))
    assert path.stat().st_size < 2**20
    assert "reading, 4.1 MiB" in run_command(capsys, "report", path).err
    log = run_on_jumping_clock(grouped(3), CONFIG).log.write(tmp_path / "uses")
    assert "running" in run_command(capsys, "whatif", log, "--max-size", "1MiB").err


def grouped(number: int) -> Plan:
    """So many groups and functions, and a task of a few leases in each; all groups have waiters."""
    functions = tuple(FunctionPlan(f"f{n}", 1, PAGE, 1, 0.1) for n in range(number))
    groups = tuple((f"g{n}", 1) for n in range(number))
    tasks = tuple(
        (0.01 * n, (Use(0.1, n, f"g{n}", math.inf, 0.5), Use(0.1, n, f"g{n}", 0.2, 0.1)))
        for n in range(number)
        for _ in range(2)
    )
    return Plan(functions, groups, tasks)


def test_steps_are_in_proportion_to_events() -> None:
    """Four times the groups, functions, tasks and leases are four times the steps."""

    def run(number: int) -> dict[str, float]:
        logged = run_on_jumping_clock(grouped(number), CONFIG).log.events
        events = [make_event(fields) for fields in logged]
        recorder, counted = Recorder(), {}
        for name, made in (("replay", Replay()), ("tune", Tuner()), ("record", recorder)):
            feed = made.feed
            counted[name] = steps(lambda feed=feed: [feed(event) for event in events])
        assert recorder.made is not None
        counted["whatif"] = steps(WhatIf(recorder.made, {}).run)
        return {name: count / len(events) for name, count in counted.items()}

    run(5)  # Python 3.13 misses instructions of code that is traced for the first time
    few, many = run(20), run(80)
    for name, count in many.items():
        assert count < 1.2 * few[name], name


def test_events_that_are_held_back_are_bounded(tmp_path: Path) -> None:
    """Of all caches together, and long ones count as several."""
    path = tmp_path / "log"
    with path.open("w") as file:
        for number in range(100):  # of each cache, the first event is missing
            log = Log(f"c{number}")
            for at in range(300):
                log.evicted(at)
            file.write("".join(f"{line}\n" for line in log.text().splitlines()[1:]))
    feeder = Feeder(Reader([str(path)], Notes(lambda _: None)), Parser())
    most = 0
    for _ in feeder.events():
        most = max(most, sum(line.holding for line in feeder.lines.values()))
    assert WINDOW - 300 < most <= WINDOW + 100 * feeding.LEAST_WINDOW

    def long(seq: int) -> Stamped:
        return Stamped(
            Removed(function="x" * 100 * EVENT_LETTERS, arg_types="", generation=1), "c", seq, 0
        )

    line = Line()
    for seq in range(2, 100):
        list(line.put(long(seq)))
    assert line.holding == 98 * 101
    list(line.put(long(100)))
    list(line.put(long(101)))
    assert line.holding <= WINDOW


def test_caches_that_are_gone_through_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The later ones are left out, which is a flaw, and can be asked for by name."""
    monkeypatch.setattr(feeding, "MAX_CACHES", 2)
    path = tmp_path / "log"
    logs = [run_on_jumping_clock(grouped(2), CONFIG).log for _ in range(3)]
    path.write_text("".join(f"{line}\n" for log in logs for line in log.lines))
    ran = run_command(capsys, "replay", "--json", path)
    assert ran.status == FLAWED
    assert len(ran.document["caches"]) == 2
    told = f"more than 2 caches: {len(logs[2].lines)} events of the later ones left out"
    assert told in ran.err
    ran = run_command(capsys, "replay", "--cache", logs[2].events[0]["cache"], path)
    assert (ran.status, ran.err) == (0, "")
