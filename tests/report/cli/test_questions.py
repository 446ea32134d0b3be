"""``replay``, ``whatif`` and ``tune`` from the command line: answers, notes and exit statuses."""

from __future__ import annotations

import functools
import io
import json
import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from report.logs import run_command
from report.workloads import (
    PAGE,
    FunctionPlan,
    Plan,
    Use,
    in_turn,
    run_on_jumping_clock,
    steady_plan,
)
from rich.console import Console

from trio_wasmcache import CacheConfig
from trio_wasmcache.report.cli import questions
from trio_wasmcache.report.output.answers import Ran, Setting, show_whatif, whatif_document
from trio_wasmcache.report.reading import processes
from trio_wasmcache.report.whatif.results import Result

Capture = pytest.CaptureFixture[str]
RESIZED = "wasmcache.resized"
CONFIG = CacheConfig(stack_size=PAGE, idle_timeout=5.0, max_size=40 * PAGE)


@functools.cache
def _lines() -> tuple[str, ...]:
    return tuple(run_on_jumping_clock(steady_plan(2, 3, 60, functions=8), CONFIG).log.lines)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with uses of an application at work."""
    return write(tmp_path / "log", _lines())


def write(path: Path, lines: Any) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def events_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- replay


def test_replay_of_a_whole_log(log: Path, capsys: Capture) -> None:
    """The books agree; nothing on standard error; status 0."""
    ran = run_command(capsys, "replay", log)
    assert (ran.status, ran.err) == (0, "")
    assert "The books agree with the log everywhere." in ran.out
    assert f"{len(_lines()):,} events, 180 leases" in ran.out


def test_replay_for_programs(log: Path, capsys: Capture) -> None:
    """All counts, and no disagreement."""
    ran = run_command(capsys, "replay", log, "--json")
    (cache,) = json.loads(ran.out)["caches"]
    assert ran.status == 0
    assert (cache["agrees"], cache["complete"], cache["missing"]) == (True, True, None)
    assert (cache["events"], cache["leases"], cache["left_out"]) == (len(_lines()), 180, 0)
    assert cache["disagreements"] == []


def test_replay_where_books_and_log_disagree(log: Path, capsys: Capture) -> None:
    """Status 1, and each disagreement by the number of its event."""
    events = events_of(log)
    changed = next(it for it in events if it["event"] == "wasmcache.evicted")
    changed["freed_bytes"] += 1
    write(log, map(json.dumps, events))
    ran = run_command(capsys, "replay", log)
    assert ran.status == 1
    assert "The books disagree with the log 1 times:" in ran.out
    assert f"event {changed['seq']:,}: evicted: freed_bytes is" in ran.out
    document = json.loads(run_command(capsys, "replay", log, "--json").out)
    assert document["caches"][0]["agrees"] is False
    assert [it["seq"] for it in document["caches"][0]["disagreements"]] == [changed["seq"]]


def test_replay_of_a_log_with_a_hole(log: Path, capsys: Capture) -> None:
    """It ends there: status 1, and what is missing is told."""
    lines = log.read_text().splitlines()
    write(log, lines[:40] + lines[43:])
    ran = run_command(capsys, "replay", log)
    assert ran.status == 1
    assert "3 events missing" in ran.err
    left = len(lines) - 43
    assert f"replayed up to event 40; those after it are missing, and {left} events" in ran.err
    assert "The books agree with the log as far as it goes." in ran.out


def test_replay_of_a_log_that_ends_too_soon(log: Path, capsys: Capture) -> None:
    """A remark, and status 0: what is there agrees."""
    lines = log.read_text().splitlines()
    write(log, [*lines[:60], lines[60][:50]])
    log.write_text(log.read_text().rstrip("\n"))
    ran = run_command(capsys, "replay", log)
    assert ran.status == 0
    assert "the log ends before the cache was closed" in ran.err


@pytest.mark.parametrize("command", ["replay", "tune", "whatif"])
def test_a_log_without_its_beginning(log: Path, capsys: Capture, command: str) -> None:
    """Says from which event it is, and what it would need; status 2."""
    write(log, log.read_text().splitlines()[9:])
    options = ["--max-size", "1MiB"] if command == "whatif" else []
    ran = run_command(capsys, command, log, *options)
    assert (ran.status, ran.out) == (2, "")
    assert "the log begins with event 10" in ran.err
    assert "`wasmcache.opened`" in ran.err


@pytest.mark.parametrize("command", ["replay", "tune", "whatif"])
def test_a_log_without_uses(log: Path, capsys: Capture, command: str) -> None:
    """Names the setting that it should have been written with; status 2."""
    events = events_of(log)
    events[0]["log_uses"] = False
    write(log, map(json.dumps, events))
    options = ["--max-size", "1MiB"] if command == "whatif" else []
    ran = run_command(capsys, command, log, *options)
    assert (ran.status, ran.out) == (2, "")
    assert "CacheConfig(log_uses=True)" in ran.err


@pytest.mark.parametrize("command", ["replay", "tune"])
def test_nothing_to_ask(tmp_path: Path, capsys: Capture, command: str) -> None:
    """An empty file, a file that is not there, other lines: status 2, and why."""
    empty, other = write(tmp_path / "empty", []), write(tmp_path / "other", ["hello"])
    for path, told in (
        (empty, "the log is empty"),
        (other, "no events to analyse"),
        (tmp_path / "none", "No such file"),
    ):
        ran = run_command(capsys, command, path)
        assert (ran.status, ran.out) == (2, "")
        assert told in ran.err


def test_replay_of_two_caches_in_one_log(log: Path, capsys: Capture) -> None:
    """Each by itself; one that can't be replayed is told, and the other is replayed."""
    other = [{**event, "cache": "ffff"} for event in events_of(log)]
    mixed = [it for pair in zip(events_of(log), other, strict=True) for it in pair]
    write(log, map(json.dumps, mixed))
    ran = run_command(capsys, "replay", log)
    assert (ran.status, ran.out.count("agree with the log everywhere")) == (0, 2)
    ran = run_command(capsys, "replay", log, "--cache", "ffff")
    assert (ran.status, ran.out.count("agree with the log everywhere")) == (0, 1)
    write(log, map(json.dumps, mixed[1:]))
    ran = run_command(capsys, "replay", log)
    assert (ran.status, ran.out.count("agree with the log everywhere")) == (1, 1)
    assert ran.err.count("the log begins with event 2") == 1


@pytest.mark.parametrize("command", [["replay"], ["tune"], ["whatif", "--max-size", "8MiB"]])
def test_clocks_that_jump(log: Path, capsys: Capture, command: list[str]) -> None:
    """Backwards: told, with status 1, as `report` does. Forwards: it may be so."""
    events = events_of(log)
    for event in events[100:]:
        event["at_seconds"] -= 1000.0
    write(log, map(json.dumps, events))
    ran = run_command(capsys, *command, log)
    assert ran.status == 1
    assert "the clock jumped back 1 time; what is worked out" in ran.err
    for event in events[100:]:
        event["at_seconds"] += 1000.0 + 2 * 86_400
    write(log, map(json.dumps, events))
    ran = run_command(capsys, *command, log)
    assert ran.status == 0
    assert "or the clock jumped forward" in ran.err


@pytest.mark.parametrize("target", ["nan", "-0.1", "1.1", "most"])
def test_a_rate_that_is_none(log: Path, capsys: Capture, target: str) -> None:
    """Wrong usage, said before anything is read."""
    ran = run_command(capsys, "tune", log, "--target-hit-rate", target)
    assert (ran.status, ran.out) == (2, "")
    assert "is no rate from 0 to 1" in ran.err


def test_the_id_of_a_cache_can_do_nothing(log: Path, capsys: Capture) -> None:
    """Whoever writes a log can name a cache as they like: a terminal does not obey it."""
    events = [{**event, "cache": "\x1b[2Jx"} for event in events_of(log)]
    write(log, map(json.dumps, events[:50] + events[60:]))
    for command in (["replay"], ["tune"], ["whatif", "--max-size", "8MiB"]):
        ran = run_command(capsys, *command, log)
        assert ran.status == 1
        assert "\x1b" not in ran.out + ran.err
        assert "\\x1b[2Jx" in ran.err
    write(log, map(json.dumps, events[1:]))
    assert "\x1b" not in run_command(capsys, "replay", log).err


# -- whatif


def test_whatif_tells_what_the_log_has(log: Path, capsys: Capture) -> None:
    """Where the log's own limits do not give the log's own hits, its hit rate is told, too."""
    command = ["whatif", log, "--max-size", "8MiB"]
    assert "The log itself" not in run_command(capsys, *command).out
    events = events_of(log)
    hit = next(it for it in events if it["event"] == "wasmcache.acquired" and not it["hit"])
    hit["hit"] = True
    write(log, map(json.dumps, events))
    ran = run_command(capsys, *command)
    assert "The log itself has" in ran.out
    assert "it is approximated, by -0.6 points, and so are the others" in " ".join(ran.out.split())
    document = json.loads(run_command(capsys, *command, "--json").out)
    assert document["logged"]["hits"] == document["results"][0]["hits"] + 1
    assert document["logged"]["off_by_points"] == pytest.approx(-100 / 180)


def test_whatif_tries_every_combination(log: Path, capsys: Capture) -> None:
    """After the log's own limits; a larger cache misses less."""
    sizes = ["--max-size", "512KiB", "--max-size", "8MiB"]
    times = ["--idle-timeout", "1", "--idle-timeout", "inf"]
    ran = run_command(capsys, "whatif", log, *sizes, *times, "--json")
    assert ran.status == 0
    document = json.loads(ran.out)
    settings = [row["setting"] for row in document["results"]]
    assert settings[0] == {}
    assert [(it["max_size"], it["idle_timeout"]) for it in settings[1:]] == [
        (512 * 1024, 1.0),
        (512 * 1024, None),
        (8 * 1024 * 1024, 1.0),
        (8 * 1024 * 1024, None),
    ]
    own, small, _, _, large = document["results"]
    assert small["hit_rate"] < own["hit_rate"] < large["hit_rate"]
    assert small["load_seconds"] >= 0.0
    assert large["peak_size"] > own["peak_size"]
    closed = events_of(log)[-1]
    assert (own["hits"], own["misses"]) == (closed["hits"], closed["misses"])


def test_whatif_tries_every_policy_with_every_size(log: Path, capsys: Capture) -> None:
    """Each as the cache would be with it; the policy of the log is LRU."""
    policies = ["--policy", "lru", "--policy", "gdsf", "--policy", "cost"]
    sizes = ["--max-size", "1MiB", "--max-size", "2560KiB"]
    document = json.loads(run_command(capsys, "whatif", log, *policies, *sizes, "--json").out)
    assert document["logged"]["off_by_points"] == 0
    rows = document["results"]
    assert [(it["limits"]["policy"], it["limits"]["max_size"]) for it in rows[1:]] == [
        (policy, size) for policy in ("lru", "gdsf", "cost") for size in (2**20, 40 * PAGE)
    ]
    own, _, lru, _, gdsf, _, cost = (it["hits"] for it in rows)
    assert own == lru < gdsf
    assert cost != lru
    text = run_command(capsys, "whatif", log, *policies, *sizes).out
    assert "policy=gdsf" in text
    assert max(map(len, text.splitlines())) <= 80


def test_whatif_tries_adaptive_timeouts(log: Path, capsys: Capture) -> None:
    """Beside fixed ones, with limits of their own, from any log."""
    times = ["--idle-timeout", "adaptive", "--idle-timeout", "0.25", "--max-idle-timeout", "60"]
    command = ["whatif", log, *times, "--min-idle-timeout", "0.25"]
    document = json.loads(run_command(capsys, *command, "--json").out)
    _, adaptive, short = document["results"]
    assert adaptive["setting"]["idle_timeout"] == "adaptive"
    assert adaptive["limits"]["max_idle_timeout"] == 60
    assert adaptive["hits"] > short["hits"]
    assert "idle_timeout=adaptive" in run_command(capsys, *command).out
    refused = run_command(capsys, "whatif", log, "--idle-timeout", "soon")
    assert refused.status == 2
    assert "'soon' is no number of seconds, nor 'adaptive'" in refused.err


def test_tune_of_a_cache_with_adaptive_timeouts(capsys: Capture, tmp_path: Path) -> None:
    """The longest stands for them; for a size, they are tried beside fixed ones."""
    config = CacheConfig(
        idle_timeout="adaptive", min_idle_timeout=0.5, max_idle_timeout=20.0, max_size=40 * PAGE
    )
    logged = run_on_jumping_clock(in_turn(3, 10, 2.0), config).log
    path = logged.write(tmp_path / "adaptive")
    for given in (["--target-hit-rate", "0.8"], ["--max-size", "4MiB"]):
        ran = run_command(capsys, "tune", path, *given, "--html", tmp_path / "page.html")
        assert ran.status == 0, ran.err
        assert "CacheConfig(" in ran.out
    found = json.loads(run_command(capsys, "tune", path, *given, "--json").out)["advice"]
    assert found["idle_timeout"] == "adaptive"
    assert 'idle_timeout="adaptive"' in found["line"]


def test_whatif_on_a_terminal(log: Path, capsys: Capture) -> None:
    """A table, a row for each setting, with what was refused below."""
    ran = run_command(
        capsys, "whatif", log, "--max-size", "512KiB", "--max-code-size", "1", "--concurrency", "2"
    )
    assert ran.status == 0
    assert "as logged" in ran.out
    assert "max_size=512.0 KiB" in ran.out
    assert "concurrency=2" in ran.out
    assert "180 acquires refused" in ran.out
    one_at_a_time = run_command(capsys, "whatif", log, "--max-running-size", "36MiB", "--json")
    own, narrow = json.loads(one_at_a_time.out)["results"]
    assert narrow["blocks"] > own["blocks"]
    assert narrow["limits"]["max_running_size"] == 36 * 2**20
    assert max(map(len, ran.out.splitlines())) <= 80


def test_whatif_runs_settings_in_processes(
    log: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is much to do; the answer is the same."""
    command = ["whatif", log, "--max-size", "512KiB", "--max-size", "8MiB", "--concurrency", "2"]
    alone = run_command(capsys, *command, "--json")
    monkeypatch.setattr(questions, "PROCESSES_FROM", 0)
    started: list[int | None] = []

    class Counted(ProcessPoolExecutor):
        def __init__(self, most: int | None, *others: Any) -> None:
            started.append(most)
            super().__init__(most, *others)

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Counted)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert run_command(capsys, *command, "--json") == alone
    assert started == [3]
    # A copy of a large log takes memory in each of them.
    monkeypatch.setattr(questions, "MOST_COPIED", 2 * 180)
    monkeypatch.setattr(questions, "run_one", lambda *_: pytest.fail("in this process"))
    monkeypatch.setattr(processes, "ProcessPoolExecutor", refuse)
    with pytest.raises(Started, match=r"^2$"):
        run_command(capsys, *command)


class Started(Exception):
    """With the number of processes."""


def refuse(most: int, *_: Any) -> None:
    raise Started(most)


@pytest.fixture
def fleet(tmp_path: Path) -> dict[str, Path]:
    """{label: log} of three caches, two of which have the same limits and label."""
    plans = {
        "web-1": (steady_plan(2, 3, 60, functions=8), CONFIG),
        "web-2": (in_turn(12, 10, 0.05), CONFIG),
        "web-3": (in_turn(4, 3, 0.05), evolve(CONFIG, max_size=30 * PAGE)),
        "batch": (in_turn(3, 3, 0.05), CONFIG),
    }
    logs = {}
    for label, (plan, config) in plans.items():
        events = run_on_jumping_clock(plan, config).log.events
        lines = [json.dumps({**it, "label": label, "cache": f"of {label}"}) for it in events]
        logs[label] = write(tmp_path / label, lines)
    return logs


def test_whatif_for_a_fleet(fleet: dict[str, Path], capsys: Capture) -> None:
    """Sums of what each cache of the label does with its own log, and which ones would differ."""
    settings = ["--max-size", "16MiB", "--idle-timeout", "0.01", "--idle-timeout", "inf"]
    alone = [
        json.loads(run_command(capsys, "whatif", fleet[label], *settings, "--json").out)
        for label in ("web-1", "web-2")
    ]
    ran = run_command(capsys, "whatif", *fleet.values(), "--label", "web-*", *settings, "--json")
    assert ran.status == 0
    assert "1 cache with other limits left out: of web-3 (this is about 2, which have" in ran.err
    document = json.loads(ran.out)
    assert [it["cache"] for it in document["caches"]] == ["of web-1", "of web-2"]
    for one, cache in zip(alone, document["caches"], strict=True):
        assert cache["results"] == one["results"]
        assert cache["logged"] == one["logged"]
    for row, both in enumerate(document["results"]):
        parts = [one["results"][row] for one in alone]
        for name in ("hits", "misses", "load_seconds", "wait_seconds", "blocks"):
            assert both[name] == pytest.approx(sum(part[name] for part in parts)), name
        assert both["peak_size"] == max(part["peak_size"] for part in parts)
    assert document["logged"]["hits"] == sum(one["logged"]["hits"] for one in alone)
    assert document["different"] == []
    # One of them needs more than there is in the row that is best for both.
    small = run_command(
        capsys, "whatif", *fleet.values(), "--label", "web-*", "--policy", "gdsf", "--policy", "lru"
    )
    assert "2 caches, each run with its own log; the sums:" in small.out
    none = run_command(capsys, "whatif", *fleet.values(), "--label", "nothing", *settings)
    assert (none.status, none.out) == (2, "")
    assert "no events to analyse of a cache with a label like nothing" in none.err


def test_whatif_says_for_which_cache_another_row_is_the_best() -> None:
    """If it is so by a twentieth of its misses."""
    settings = [Setting({}), Setting({"policy": "gdsf"}), Setting({"policy": "cost"})]

    def ran(cache: str, *misses: int) -> Ran:
        return Ran(cache, "web", 0, 100, [Result({}, 100 - it, it) for it in misses])

    caches = [ran("a", 90, 10, 50), ran("b", 30, 22, 20), ran("c", 30, 21, 20)]
    document = whatif_document(settings, caches)
    assert document["different"] == [
        {"cache": "b", "setting": {"policy": "cost"}, "fewer_misses": 2}
    ]
    console = Console(width=80, file=io.StringIO())
    show_whatif(console, settings, caches)
    assert isinstance(console.file, io.StringIO)
    assert "For b (web), another row is the best: policy=cost, with 2 fewer misses than" in (
        console.file.getvalue()
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "name at least one limit"),
        (["--max-size", "lots"], "no size"),
        (["--idle-timeout", "0"], "idle_timeout must be above 0"),
        (["--max-instances", "99999"], "max_instances must be at most 16384"),
        (["--concurrency", "0"], "concurrency must be at least 1"),
        (["--policy", "fifo"], "'fifo' is not one of 'lru', 'sieve', 'gdsf', 'cost'"),
    ],
)
def test_limits_that_make_no_sense(
    log: Path, capsys: Capture, options: list[str], told: str
) -> None:
    """Wrong usage, said before anything is read."""
    ran = run_command(capsys, "whatif", log, *options)
    assert (ran.status, ran.out) == (2, "")
    assert told in ran.err


def test_whatif_says_what_it_can_not_know(tmp_path: Path, capsys: Capture) -> None:
    """Refused acquires, failed loads, removed functions: a remark, and still an answer."""
    plan = in_turn(1, 3, 0.1)
    flaky = tuple(evolve(function, flaky=True) for function in plan.functions)
    log = run_on_jumping_clock(evolve(plan, functions=flaky), CONFIG).log
    ran = run_command(capsys, "whatif", log.write(tmp_path / "log"), "--max-instances", "9")
    assert ran.status == 0
    assert "1 load failed: what would have come after that is not known" in ran.err


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(0, 2, "no cache has these limits"), (-1, 1, "1 event left out")],
)
@pytest.mark.parametrize(
    "command", [["whatif", "--max-instances", "9"], ["tune"]], ids=["whatif", "tune"]
)
def test_limits_that_no_cache_has_in_a_log(
    log: Path, capsys: Capture, command: list[str], number: int, status: int, told: str
) -> None:
    """At the beginning there is nothing to go by; later, they are left out."""
    events = events_of(log)
    opened = {**events[0], "max_address_space_bytes": -1}
    last = {"seq": len(events) + 1, "at_seconds": events[-1]["at_seconds"]}
    lines = [json.dumps(event) for event in (*events, {**opened, "event": RESIZED, **last})]
    if not number:
        lines[0] = json.dumps(opened)
        del lines[-1]
    ran = run_command(capsys, command[0], write(log, lines), *command[1:])
    assert ran.status == status
    assert told in ran.err


# -- tune


def test_tune_on_a_terminal(log: Path, capsys: Capture) -> None:
    """The curve with its knee, one sentence, and the line to paste."""
    ran = run_command(capsys, "tune", log, "--target-hit-rate", "0.9")
    assert (ran.status, ran.err) == (0, "")
    for part in ("knee", "now", "advised", "Run through the policy", "reaches a hit rate of"):
        assert part in ran.out
    line = ran.out.splitlines()[-1]
    assert line.startswith("CacheConfig(max_size=")
    made = eval(line, {"CacheConfig": CacheConfig, "MiB": 2**20, "KiB": 1024, "math": math})
    assert made.idle_timeout == 5.0
    assert max(map(len, ran.out.splitlines())) <= max(80, len(line))


def test_tune_for_programs(log: Path, capsys: Capture) -> None:
    """The whole curve; what is advised reaches the target, and one page less does not."""
    ran = run_command(capsys, "tune", log, "--target-hit-rate", "0.9", "--json")
    document = json.loads(ran.out)
    advice, curve = document["advice"], document["curve"]
    assert advice["hit_rate"] >= 0.9
    assert document["checked"]["hit_rate"] == pytest.approx(advice["hit_rate"], abs=0.02)
    rates = [point["hit_rate"] for point in curve]
    assert rates == sorted(rates)
    assert curve[0]["max_size"] == document["exact_from"]
    smaller = [it["hit_rate"] for it in curve if it["max_size"] <= advice["max_size"] - PAGE]
    assert all(rate < 0.9 for rate in smaller)
    assert document["exact_from"] <= document["knee"] <= curve[-1]["max_size"]
    unchecked = run_command(capsys, "tune", log, "--no-check", "--json")
    assert json.loads(unchecked.out)["checked"] is None


def test_tune_for_a_size(log: Path, capsys: Capture) -> None:
    """The policies are compared at sizes over the whole curve, and at that one."""
    given = "--max-size", "1MiB", "--objective", "seconds"
    document = json.loads(run_command(capsys, "tune", log, *given, "--json").out)
    assert (document["objective"], document["max_size"]) == ("seconds", 2**20)
    assert document["target_hit_rate"] is None
    advice = document["advice"]
    assert advice["sentence"].startswith("With max_size = 1 * MiB, policy = ")
    at_size = {it["policy"]: it for it in document["policies"] if it["max_size"] == 2**20}
    assert [*at_size] == ["lru", "sieve", "gdsf", "cost"]
    least = min(it["load_seconds"] for it in at_size.values())
    assert advice["load_seconds"] == at_size[advice["policy"]]["load_seconds"] <= 1.01 * least
    text = run_command(capsys, "tune", log, *given).out
    assert "Loading by size and policy" in text
    assert max(map(len, text.splitlines())) <= 80
    alone = json.loads(run_command(capsys, "tune", log, *given, "--policy", "lru", "--json").out)
    assert alone["advice"]["policy"] == "lru"
    assert {it["policy"] for it in alone["policies"]} == {"lru"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--target-hit-rate", "0.5", "--max-size", "1MiB"], "use one of them"),
        (["--objective", "bytes"], "'bytes' is not one of 'misses', 'seconds'"),
        (["--max-size", "lots"], "no size"),
    ],
)
def test_tune_asked_wrongly(log: Path, capsys: Capture, options: list[str], told: str) -> None:
    """Said before anything is read."""
    ran = run_command(capsys, "tune", log, *options)
    assert (ran.status, ran.out) == (2, "")
    assert told in ran.err


@pytest.mark.parametrize("question", [["--target-hit-rate", "0.8"], ["--max-size", "1MiB"]])
def test_tune_for_a_fleet(fleet: dict[str, Path], capsys: Capture, question: list[str]) -> None:
    """One answer for all of the label: each is run with its own log, and the sums count."""
    command = ["tune", *fleet.values(), "--label", "web-[12]", *question, "--json"]
    ran = run_command(capsys, *command)
    assert (ran.status, ran.err) == (0, "")
    document = json.loads(ran.out)
    assert [it["cache"] for it in document["caches"]] == ["of web-1", "of web-2"]
    assert document["leases"] == sum(it["leases"] for it in document["caches"])
    advice = document["advice"]
    limits = [
        *("--max-size", str(advice["max_size"])),
        *("--idle-timeout", str(advice["idle_timeout"] or "inf")),
        *("--policy", advice["policy"]),
    ]
    each = [
        json.loads(run_command(capsys, "whatif", fleet[label], *limits, "--json").out)["results"][1]
        for label in ("web-1", "web-2")
    ]
    hits, misses = (sum(it[name] for it in each) for name in ("hits", "misses"))
    assert document["checked"]["hits"] == hits
    assert advice["hit_rate"] == pytest.approx(hits / (hits + misses), abs=0.02)
    # In one cache of them much less memory does, or another policy is better; it is named.
    for one in document["different"]:
        assert one["cache"] in one["sentence"]
    text = run_command(capsys, *command[:-1]).out
    assert "For 2 caches, each run with its own log:" in text
    for one in document["different"]:
        assert one["sentence"] in " ".join(text.split())


def test_tune_writes_a_page(log: Path, tmp_path: Path, capsys: Capture) -> None:
    """With the curve as a picture, the sentence and the line."""
    page = tmp_path / "tune.html"
    ran = run_command(capsys, "tune", log, "--target-hit-rate", "0.9", "--html", page)
    assert ran.status == 0
    html = page.read_text()
    for part in ("<svg", "Hit rate by max_size", "CacheConfig(max_size=", "Run through the policy"):
        assert part in html


def test_tune_without_leases(tmp_path: Path, capsys: Capture) -> None:
    """There is nothing to tune by; status 2."""
    lines = run_on_jumping_clock(Plan((), ()), CONFIG).log.lines
    ran = run_command(capsys, "tune", write(tmp_path / "log", lines))
    assert (ran.status, ran.out) == (2, "")
    assert "no leases to tune by" in ran.err


def test_tune_says_that_it_ignores_limits_of_groups(tmp_path: Path, capsys: Capture) -> None:
    """In the curve and the trials; the run that checks the advice keeps them."""
    uses = tuple(Use(0.1, n % 6, "web", math.inf, 0.1) for n in range(72))
    plan = evolve(in_turn(6, 1, 0.1), groups=(("web", None),), tasks=((0.0, uses),))
    plan = evolve(plan, group_limits={"web": {"max_size": 4 * PAGE}})
    log = run_on_jumping_clock(plan, CONFIG).log.write(tmp_path / "log")
    ran = run_command(capsys, "tune", log, "--max-size", "8MiB", "--policy", "lru", "--json")
    assert "1 group with a max_size or reserved_size of its own (web): the curve" in ran.err
    document = json.loads(ran.out)
    assert document["checked"]["hits"] == 0 < document["advice"]["hit_rate"]


def test_tune_says_it_of_several_groups(tmp_path: Path, capsys: Capture) -> None:
    """In the plural."""
    uses = tuple(Use(0.1, n % 2, ("web", "api")[n % 2], math.inf, 0.1) for n in range(12))
    plan = evolve(in_turn(2, 1, 0.1), groups=(("web", None), ("api", None)), tasks=((0.0, uses),))
    plan = evolve(plan, group_limits={it: {"max_size": 4 * PAGE} for it in ("web", "api")})
    log = run_on_jumping_clock(plan, CONFIG).log.write(tmp_path / "log")
    ran = run_command(capsys, "tune", log, "--max-size", "8MiB", "--policy", "lru")
    assert "2 groups with a max_size or reserved_size of their own (api, web): " in ran.err


def test_whatif_counts_what_is_refused() -> None:
    """One acquire, or several."""
    for number, text in ((1, "1 acquire refused"), (2, "2 acquires refused")):
        console = Console(width=80, file=io.StringIO())
        show_whatif(console, [Setting({})], [Ran("a", "", 1, 1, [Result({}, 1, refused=number)])])
        assert isinstance(console.file, io.StringIO)
        assert text in console.file.getvalue()


def test_tune_takes_the_cache_with_the_most_leases(
    log: Path, tmp_path: Path, capsys: Capture
) -> None:
    """And says so; another one can be named."""
    use = (0.0, (Use(0.1, 0, None, math.inf, 0.1),))
    plan = Plan((FunctionPlan("f", 1, PAGE, 1, 0.0),), (), tasks=(use,))
    small = run_on_jumping_clock(plan, CONFIG).log
    other = small.write(tmp_path / "other")
    ran = run_command(capsys, "tune", log, other, "--json")
    assert json.loads(ran.out)["leases"] == 180
    assert "2 caches in this log; this is about" in ran.err
    assert "--label PATTERN for several together" in ran.err
    name = small.events[0]["cache"]
    ran = run_command(capsys, "tune", log, other, "--json", "--cache", name)
    assert json.loads(ran.out)["leases"] == 1
