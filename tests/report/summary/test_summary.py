"""What a log adds up to: every number of the report, by hand and against the cache's own counts."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from report.cli.test_report import full_log
from report.logs import PAGE, Log, MiB, busy_log, make, run_command, run_report, text_of
from report.workloads import draw_config, run_on_jumping_clock, wild_plan

from trio_wasmcache._core.events import Abandoned, Blocked, Failed, Reason, Resized
from trio_wasmcache.report.reading import lines, names
from trio_wasmcache.report.reading.frames import Parser
from trio_wasmcache.report.reading.names import OTHERS
from trio_wasmcache.report.reading.schema import types_of
from trio_wasmcache.report.summary import leases, summary
from trio_wasmcache.report.summary.summary import Summary

Capture = pytest.CaptureFixture[str]


def report_on(capsys: Capture, tmp_path: Path, log: Log) -> dict[str, Any]:
    """The only cache of a log in which nothing is wrong."""
    ran = run_report(capsys, log.write(tmp_path / "log"))
    assert (ran.status, ran.err) == (0, "")
    return ran.cache


@pytest.mark.parametrize("seed", range(12))
def test_the_counts_are_the_caches_own(
    seed: int, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hits, misses, blocks, calls and evictions of a wild application, read in small blocks."""
    monkeypatch.setattr(lines, "BLOCK", 3000)
    monkeypatch.setattr(summary, "HELD_BLOCKS", 1 + seed % 3)
    outcome = run_on_jumping_clock(wild_plan(random.Random(seed)), draw_config(random.Random(seed)))
    ran = run_report(capsys, outcome.log.write(tmp_path / "log"))
    assert (ran.status, ran.err) == (0, "")
    cache = ran.cache
    names = ("hits", "seat_hits", "misses", "blocks", "calls")
    counted = {name: cache["leases"][name] for name in names}
    counted["evictions"] = cache["evictions"]["count"]
    assert counted == cache["closed"]
    for rows in (cache["functions"], cache["groups"]):
        for name in ("hits", "misses", "blocks"):
            assert sum(row[name] for row in rows) == cache["closed"][name]
        assert sum(row["evictions"] for row in rows) == cache["closed"]["evictions"]
        by_reason = [number for row in rows for number in row["by_reason"].values()]
        assert sum(by_reason) == cache["closed"]["evictions"]
    assert sum(cache["events"].values()) == ran.document["lines"]["events"]
    assert cache["sequence"] == {
        "first": 1,
        "last": len(outcome.log.lines),
        "missing": 0,
        "gaps": [],
        "lost": 0,
        "late": 0,
        "repeated": 0,
    }


def test_evictions_by_reason_function_and_group(tmp_path: Path, capsys: Capture) -> None:
    """With what they freed; each table adds up to all of them."""
    log = Log()
    log.opened()
    log.evicted(1, Reason.SIZE, "a/f", freed_bytes=10, freed_code_bytes=1)
    log.evicted(2, Reason.SIZE, "b/f", freed_bytes=20, freed_code_bytes=2)
    log.evicted(3, Reason.IDLE, "b/g", freed_bytes=40, freed_code_bytes=4)
    cache = report_on(capsys, tmp_path, log)
    assert cache["evictions"] == {
        "count": 3,
        "by_reason": {
            "size": {"count": 2, "freed_bytes": 30, "freed_code_bytes": 3},
            "idle": {"count": 1, "freed_bytes": 40, "freed_code_bytes": 4},
        },
    }
    functions = {row["function"]: row["by_reason"] for row in cache["functions"]}
    assert functions == {"f(i64)": {"size": 2}, "g(i64)": {"idle": 1}}
    groups = {row["group"]: row["by_reason"] for row in cache["groups"]}
    assert groups == {"a": {"size": 1}, "b": {"size": 1, "idle": 1}}


def test_a_load_is_charged_to_the_eviction_before_it(tmp_path: Path, capsys: Capture) -> None:
    """Of the same function in the same group; the first one is nobody's fault."""
    log = Log()
    log.loaded(0, seconds=1.0)
    log.evicted(1, Reason.IDLE)
    log.loaded(2, "other/f", seconds=2.0)
    log.loaded(3, "g", seconds=4.0)
    log.loaded(4, seconds=8.0)
    log.loaded(5, seconds=16.0)  # a second instance: nothing has gone that it could replace
    log.evicted(6, Reason.SIZE)
    log.evicted(7, Reason.CORRUPTED)
    log.loaded(8, seconds=32.0)
    log.loaded(9, seconds=64.0)
    cache = report_on(capsys, tmp_path, log)
    assert cache["reloads"] == {
        "count": 3,
        "seconds": 104.0,
        "by_reason": {
            "size": {"count": 1, "seconds": 64.0},
            "idle": {"count": 1, "seconds": 8.0},
            "corrupted": {"count": 1, "seconds": 32.0},
        },
    }
    assert cache["loads"]["count"] == 7
    assert cache["loads"]["total"] == 127.0


def test_loads_on_seats_are_nobodys_fault(tmp_path: Path, capsys: Capture) -> None:
    """A function with a new instance for each lease is loaded for each; only a lost seat costs."""
    log = Log()
    log.loaded(0, seconds=1.0)
    log.loaded(1, seconds=2.0, seat=True)
    log.evicted(2, Reason.IDLE, seat=True)
    log.loaded(3, seconds=4.0)
    log.evicted(4, Reason.IDLE, seat=True)
    log.loaded(5, seconds=8.0, seat=True)  # another one's, with concurrency
    for number in range(5):
        log.acquired(6, number > 1)
    cache = report_on(capsys, tmp_path, log)
    assert (cache["loads"]["count"], cache["loads"]["on_seats"]) == (4, 2)
    assert cache["reloads"]["count"] == 1
    assert cache["reloads"]["seconds"] == 4.0
    assert cache["churn"]["loads_per_100_leases"] == 40.0


@pytest.mark.parametrize(("within", "thrashed"), [("2.5", 0), ("3", 1), ("inf", 2)])
def test_thrash(within: str, thrashed: int, tmp_path: Path, capsys: Capture) -> None:
    """Is what comes back soon after a limit made it go; what had to go does not count."""
    log = Log()
    for start, reason in ((0, Reason.SIZE), (100, Reason.IDLE), (200, Reason.REMOVED)):
        log.loaded(start)
        log.evicted(start + 1, reason)
        log.loaded(start + (4 if reason is not Reason.IDLE else 50), seconds=2.0)
        log.evicted(start + 60, Reason.CLOSED)
    path = log.write(tmp_path / "log")
    cache = run_command(capsys, "report", "--json", "--thrash-seconds", within, path).cache
    assert cache["thrash"] == {
        "within_seconds": None if within == "inf" else float(within),
        "within_idle_seconds": None if within == "inf" else float(within),
        "count": thrashed,
        "load_seconds": 2.0 * thrashed,
    }


def test_timed_out(tmp_path: Path, capsys: Capture) -> None:
    """Those that were wanted soon after went too early; the others were kept in vain."""
    log = Log()
    for start, again in ((0, 9), (100, 50), (200, None)):
        log.loaded(start)
        log.evicted(start + 20, Reason.IDLE, idle_seconds=6.0, freed_bytes=1000)
        if again is not None:
            log.loaded(start + 20 + again, seconds=2.0)
            log.evicted(start + 75, Reason.SIZE)
    path = log.write(tmp_path / "log")
    cache = run_command(capsys, "report", "--json", path).cache
    assert cache["timed_out"] == {
        "evictions": 3,
        "loaded_again": 1,
        "load_seconds": 2.0,
        "in_vain": 2,
        "in_vain_seconds": 12.0,
        "in_vain_byte_seconds": 12_000.0,
    }
    text = " ".join(run_command(capsys, "report", path).out.split())
    assert "1 of 3 loaded again within 10 s of going; 2 kept in vain, for 6.0 s on average" in text


@pytest.mark.parametrize(
    ("limits", "within"),
    [
        ({"idle_timeout_seconds": 5.0}, 10),
        ({"idle_timeout_seconds": 40.0}, 40),
        ({"idle_timeout_seconds": None, "idle_timeout_policy": "fixed"}, 10),
        ({"idle_timeout_policy": "adaptive", "max_idle_timeout_seconds": 40.0}, 40),
    ],
)
def test_the_timeout_in_force_is_soon(
    limits: dict[str, Any], within: int, tmp_path: Path, capsys: Capture
) -> None:
    """For what went for it, whatever the timeout was before and after."""
    log = Log()
    log.opened(idle_timeout_seconds=200.0)
    for name, value in (("Resized", limits), ("Later", {"idle_timeout_seconds": 300.0})):
        known = {field: log.lines[0].get(field) for field in types_of(Resized)}
        log.add(1, make(Resized, **known | value))
        if name == "Later":
            break
        for number, again in enumerate((9, 39, 41)):
            log.loaded(100 * number)
            log.evicted(100 * number + 1, Reason.IDLE)
            log.loaded(100 * number + 1 + again)
            log.evicted(100 * number + 60, Reason.SIZE)
    path = log.write(tmp_path / "log")
    cache = run_command(capsys, "report", "--json", path).cache
    assert cache["thrash"]["within_idle_seconds"] == within
    assert cache["timed_out"]["loaded_again"] == (2 if within == 40 else 1)
    assert cache["timed_out"]["in_vain"] == (1 if within == 40 else 2)
    text = " ".join(run_command(capsys, "report", path).out.split())
    assert f"loaded again within {within} s of going; " in text
    assert (" (40 s if for idle)" in text) == (within == 40)


def test_adaptive_timeouts_in_words(tmp_path: Path, capsys: Capture) -> None:
    """On the terminal and on the page, with their ends."""
    log = Log()
    log.opened(
        idle_timeout_seconds=None,
        idle_timeout_policy="adaptive",
        min_idle_timeout_seconds=2.0,
        max_idle_timeout_seconds=300.0,
    )
    log.loaded(1)
    path, page = log.write(tmp_path / "log"), tmp_path / "page.html"
    text = " ".join(run_command(capsys, "report", "--html", page, path).out.split())
    assert "adaptive, 2.0 s to 5 min" in text or "adaptive, 2.0 s to 300 s" in text
    assert "adaptive, 2.0 s to" in page.read_text()


def test_never_reused_and_ages(tmp_path: Path, capsys: Capture) -> None:
    """An instance that went after one lease or none was not worth keeping."""
    log = Log()
    for number, uses in enumerate((0, 1, 2, 3)):
        log.evicted(number, uses=uses, age_seconds=float(number))
    cache = report_on(capsys, tmp_path, log)
    assert cache["never_reused"] == 2
    assert cache["age_seconds"]["count"] == 4
    assert cache["age_seconds"]["max"] == 3.0
    assert cache["age_seconds"]["total"] == 6.0


def test_churn(tmp_path: Path, capsys: Capture) -> None:
    """Loads per lease, evictions per minute, and those of the busiest second."""
    log = Log()
    log.opened()
    for at in (1.0, 10.0, 10.1, 10.2, 10.9, 50.0):
        log.evicted(at)
    log.loaded(55)
    for _ in range(4):
        log.acquired(60)
    cache = report_on(capsys, tmp_path, log)
    assert cache["churn"] == {
        "loads_per_100_leases": 25.0,
        "evictions_per_minute": 6.0,
        "busiest_evictions": 4,
        "busiest_seconds": 1.0,
    }


def test_waits(tmp_path: Path, capsys: Capture) -> None:
    """An acquire that waits is one block, for however many things it waits in turn."""
    log = Log()
    of_f = {"function": "f", "arg_types": "i64", "group": "main", "generation": 1}

    def blocked(at: float, request: int | None, what: str) -> None:
        log.add(at, Blocked(**of_f, request=request, task=1, waits_for=what))

    blocked(1, None, "a token")
    log.requested(2, 1, blocked=True)
    blocked(2, 1, "an instance")
    blocked(3, 1, "room")
    log.acquired(4, request=1, wait_seconds=3.0)
    log.requested(5, 2)
    blocked(5, 2, "an instance")
    blocked(6, 2, "an instance")
    log.acquired(7, request=2, wait_seconds=2.0)
    log.requested(8, 3)
    log.acquired(8, hit=False, request=3)
    blocked(9, None, "a token")
    log.add(10, Abandoned(**of_f, request=None, task=1, error="Cancelled"))
    log.add(10, Failed(**of_f, instance=2, request=None, error="LoadError", error_message="no"))
    cache = report_on(capsys, tmp_path, log)
    taken = cache["leases"]
    assert (taken["acquires"], taken["blocks"], taken["block_rate"]) == (4, 3, 0.75)
    assert (taken["hits"], taken["misses"]) == (2, 1)
    assert taken["hit_rate"] == pytest.approx(2 / 3)
    assert taken["miss_rate"] == pytest.approx(1 / 3)
    assert taken["waits_for"] == {"a token": 2, "an instance": 3, "room": 1}
    assert taken["abandoned"] == {"Cancelled": 1}
    assert taken["wait_seconds"]["total"] == 5.0
    assert (taken["wait_seconds"]["max"], taken["wait_seconds"]["max_request"]) == (3.0, 1)
    assert taken["held_seconds"]["max_request"] is None
    assert cache["loads"]["failed"] == 1
    assert cache["functions"][0]["abandoned"] == 1
    assert cache["wait_bars"][0] == [0.0, 1]
    assert sum(number for _, number in cache["wait_bars"]) == 3


def test_warming_is_neither_hit_nor_miss(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leases are told apart, also where they are granted blocks later."""
    monkeypatch.setattr(lines, "BLOCK", 500)
    log = Log()
    log.requested(1, 1, warm=True)
    log.requested(1, 2)
    log.requested(1, 3, warm=True)
    log.loaded(2, warmed=True)
    log.acquired(3, hit=False, request=1)
    log.acquired(3, hit=False, request=2)
    log.recycled(4, request=1, held_seconds=0.0)
    log.add(
        5,
        Abandoned(
            function="f",
            arg_types="i64",
            group="main",
            generation=1,
            request=3,
            task=1,
            error="Cancelled",
        ),
    )
    taken = report_on(capsys, tmp_path, log)["leases"]
    assert (taken["hits"], taken["misses"], taken["warmed"]) == (0, 1, 1)


def test_requests_that_never_end_are_forgotten(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log in which nothing is ever granted does not fill the memory."""
    monkeypatch.setattr(leases, "MAX_OPEN", 10)
    log = Log()
    for number in range(1, 40):
        log.requested(1, number, warm=True, blocked=True)
    log.acquired(2, hit=True, request=7)
    taken = report_on(capsys, tmp_path, log)["leases"]
    assert taken["acquires"] == 39
    assert taken["hits"] + taken["warmed"] == 1


def test_size_over_time(tmp_path: Path, capsys: Capture) -> None:
    """The highest of each bin; where nothing happens, the last one holds on."""
    log = Log()
    log.opened(0)
    log.recycled(16, total_size_bytes=5 * PAGE, code_size_bytes=100)
    log.recycled(16.5, total_size_bytes=3 * PAGE, code_size_bytes=300)
    log.evicted(
        160, total_size_before_bytes=9 * PAGE, total_size_after_bytes=PAGE, code_size_after_bytes=7
    )
    log.closed(239)
    cache = report_on(capsys, tmp_path, log)
    assert cache["over_time"]["width_seconds"] == 1.0
    sizes = cache["over_time"]["points"]["size"]
    assert sizes[:16] == [0.0] * 16
    assert sizes[16] == 5 * PAGE
    assert sizes[17:160] == [3 * PAGE] * 143
    assert sizes[160] == 9 * PAGE
    assert sizes[161:] == [PAGE] * 79
    assert cache["over_time"]["points"]["code"][16:18] == [300, 300]
    assert cache["over_time"]["points"]["evicted size"][160] == 1
    assert cache["peak"] == {"total_size_bytes": 9 * PAGE, "code_size_bytes": 8192}


def test_limits_and_times(tmp_path: Path, capsys: Capture) -> None:
    """Those in force at the end; when the log began and ended, if its lines say so."""
    log = Log()
    log.opened(100.0)
    log.registered(100.0, "f")
    log.registered(101.0, "g")
    more = {"max_instance_size_bytes": MiB, "max_code_size_bytes": MiB, "max_instances": 5}
    log.add(102.5, Resized(max_size_bytes=MiB, idle_timeout_seconds=None, **more))
    log.closed(103.0)
    for number, line in enumerate(log.lines[1:]):
        line["timestamp"] = f"2026-01-01T00:00:0{number}Z"
    cache = report_on(capsys, tmp_path, log)
    older = ("idle_timeout_policy", "min_idle_timeout_seconds", "max_idle_timeout_seconds")
    timeouts = dict.fromkeys(["idle_timeout_seconds", *older])
    assert cache["limits"] == {"max_size_bytes": MiB, **more, **timeouts}
    assert cache["resizes"] == 1
    assert cache["span_seconds"] == 3.0
    assert (cache["began"], cache["ended"]) == ("2026-01-01T00:00:00Z", "2026-01-01T00:00:03Z")
    assert cache["loads"]["compile_seconds"] == 0.5
    assert cache["log_uses"] is True


def test_functions_and_groups_without_end(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later ones are counted together, so that the memory stays bounded and the sums right."""
    monkeypatch.setattr(names, "MAX_KEYS", 10)
    monkeypatch.setattr(summary, "MAX_KEYS", 10)
    log = Log()
    log.opened()
    for number in range(50):
        function = f"g{number}/f{number}"
        log.loaded(number, function)
        log.acquired(number, number % 2 == 0, function)
        log.evicted(number + 0.5, Reason.SIZE, function)
    log.loaded(60, "g3/f3")
    ran = run_report(capsys, log.write(tmp_path / "log"))
    assert ran.err == (
        "cache cafe0001: more than 10 functions in groups: the later ones are counted together, "
        "as (others)\n"
    )
    for what in ("functions", "groups"):
        assert len(ran.cache[what]) <= 11
        assert sum(row["evictions"] for row in ran.cache[what]) == 50
        assert sum(row["hits"] for row in ran.cache[what]) == 25
    others = [row for row in ran.cache["functions"] if row["function"] == "(others)"]
    assert others[0]["evictions"] >= 40
    assert ran.cache["reloads"]["count"] == 1


def test_caches_without_end(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later ones are added up, with the same sums as if they were told apart."""
    path = tmp_path / "log"
    logs = [full_log() if number > 5 else busy_log(rounds=number + 1) for number in range(8)]
    for number, log in enumerate(logs):
        for line in log.lines:
            line["cache"] = f"c{number}"
    # One after the other, and mixed: a request is one of its cache.
    lines = [line for log in logs[:4] for line in log.lines]
    lines += [line for row in itertools.zip_longest(*(it.lines for it in logs[4:])) for line in row]
    path.write_text(text_of(line for line in lines if line is not None))
    apart = run_report(capsys, path).document
    assert apart["others"] is None
    monkeypatch.setattr(summary, "MAX_CACHES", 3)
    ran = run_report(capsys, path)
    assert ran.status == 0
    assert ran.document["caches"] == apart["caches"][:3]
    told = ran.err.splitlines()
    assert told[0] == "3 caches in this log, which --by-cache shows one by one: c0, c1, c2"
    assert told[1].startswith(
        "5 caches more, whose events are only added up, all together: --cache"
    )
    others, late = ran.document["others"], apart["caches"][3:]
    assert (others["caches"], others["more"]) == (5, False)
    assert others["events"] == sum((Counter(it["events"]) for it in late), Counter())
    for name in ("acquires", "hits", "misses", "blocks", "calls"):
        assert others["leases"][name] == sum(it["leases"][name] for it in late), name
    assert others["leases"]["waits_for"] == {"an instance": 2}
    for name in ("count", "failed", "modules"):
        assert others["loads"][name] == sum(it["loads"][name] for it in late)
    assert others["evictions"]["count"] == sum(it["evictions"]["count"] for it in late)
    for reason, row in others["evictions"]["by_reason"].items():
        for name, number in row.items():
            rows = [it["evictions"]["by_reason"].get(reason) for it in late]
            assert number == sum(row[name] for row in rows if row is not None)
    for name, number in others["peak"].items():
        assert number == max(it["peak"][name] for it in late)
    page = tmp_path / "page"
    ran = run_command(capsys, "report", "--by-cache", "--html", page, path)
    text = re.sub(" +", " ", ran.out)
    assert "\n8 caches together\n" in text
    assert "5 other caches, added up together\n" in text
    assert f" of {others['leases']['hits'] + others['leases']['misses']} leases" in text
    assert "5 other caches, added up together</h2>" in page.read_text()
    monkeypatch.setattr(summary, "MAX_COUNTED", 4)
    ran = run_report(capsys, path)
    assert "more than 4 caches more" in ran.err
    assert (ran.document["others"]["caches"], ran.document["others"]["more"]) == (4, True)


def test_objects_for_caches_are_bounded() -> None:
    """However many caches there are: those apart, the space for all their names, and numbers."""
    made = Summary()
    for start in range(0, 1000, 100):
        rows = []
        for number in range(start, start + 100):
            log = Log(f"c{number}")
            log.opened()
            log.evicted(1, function=f"g/{number}" + "x" * 5000)
            rows += log.text().encode().splitlines()
        made.take(Parser().frame(rows))
    made.add_up()
    assert len(made.caches) == summary.MAX_CACHES
    assert made.others.count == 900
    assert made.others.sums.gone.keys() == {("size", OTHERS)}
    spent = names.MAX_KEYS - made.space.keys
    assert spent == 2 * summary.MAX_CACHES + 5000 // names.KEY_LETTERS * summary.MAX_CACHES


def test_long_names_take_more_space() -> None:
    """So that no names, however long, are more than some MB."""
    space = names.Space(keys=10)
    assert (
        space.take([("x" * 5000, "", ""), ("f", "", ""), ("g" * 4999, "", ""), ("h", "", "")]) == 0
    )
    assert space.take([("f", "", ""), ("g" * 4000, "", ""), ("h", "", "")]) == 2
    assert space.keys == 0
    counter = Counter[str]()
    names.tally(counter, "x" * 10**6)
    assert counter == {"x" * names.MAX_LETTERS: 1}


def test_a_reason_of_the_future(tmp_path: Path, capsys: Capture) -> None:
    """Is counted as another one."""
    log = Log()
    log.evicted(1)
    log.loaded(2)
    log.evicted(3)
    log.lines[0]["reason"] = "<b>whim</b>"
    cache = report_on(capsys, tmp_path, log)
    assert cache["evictions"]["by_reason"].keys() == {"size", "other"}
    assert cache["reloads"]["by_reason"] == {"other": {"count": 1, "seconds": 0.5}}
    assert cache["thrash"]["count"] == 0


def test_the_document_is_json(tmp_path: Path, capsys: Capture) -> None:
    """In ASCII, without words that JSON does not have."""
    log = busy_log()
    log.evicted(50, function="naïve \x1b[31m\u202e")
    ran = run_command(
        capsys, "report", "--json", "--thrash-seconds", "inf", log.write(tmp_path / "log")
    )
    assert ran.out.isascii()
    assert ran.out.isprintable() or set(ran.out) & set(map(chr, range(32))) == {"\n"}
    assert "naïve \x1b[31m\u202e(i64)" in [row["function"] for row in ran.cache["functions"]]

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(ran.out, parse_constant=refuse)


def test_loads_that_no_lease_asked_for_are_no_seat_hits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a seat, an instance may be made by `warm`, or in the background after a promotion."""
    log = Log()
    log.opened()
    for more in ({}, {"warmed": True}, {"promoted": True}):
        log.loaded(1.0, seat=True, **more)
    log.acquired(1.0, request=1)
    path = log.write(tmp_path / "log")
    assert run_report(capsys, path).cache["leases"]["seat_hits"] == 1
