"""Several caches in one log: the sums come first, with the worst; each by itself if asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report.logs import Log, busy_log, run_command, run_report, text_of

from trio_wasmcache._core.events import Reason

Capture = pytest.CaptureFixture[str]


def labelled(cache: str, label: str, rounds: int) -> Log:
    log = busy_log(cache, rounds=rounds)
    for line in log.lines:
        line["label"] = label
    return log


@pytest.fixture
def logs() -> list[Log]:
    """Five caches of two services; the last ones have the most misses."""
    return [labelled(f"c{number}", f"svc-{number % 2}", 3 * number + 3) for number in range(5)]


def write(path: Path, logs: list[Log]) -> Path:
    path.write_text("".join(log.text() for log in logs))
    return path


def test_all_caches_are_summed_up(tmp_path: Path, capsys: Capture, logs: list[Log]) -> None:
    """As the parts say; the three with the most misses and the most thrash are named."""
    document = run_report(capsys, write(tmp_path / "log", logs)).document
    together, caches = document["together"], document["caches"]
    assert (together["caches"], together["more"]) == (5, False)
    assert together["labels"] == {"svc-0": 3, "svc-1": 2}
    assert [cache["label"] for cache in caches] == [f"svc-{number % 2}" for number in range(5)]
    assert together["events"] == sum(sum(cache["events"].values()) for cache in caches)
    for name in ("acquires", "hits", "misses", "blocks"):
        assert together["leases"][name] == sum(cache["leases"][name] for cache in caches) >= 0
    assert together["leases"]["hit_rate"] == 0.5
    for part, name in (
        ("evictions", "count"),
        ("reloads", "count"),
        ("reloads", "seconds"),
        ("thrash", "count"),
        ("thrash", "load_seconds"),
        ("loads", "total"),
    ):
        total = sum(cache[part][name] for cache in caches)
        assert together[part][name] == pytest.approx(total)
        assert total > 0
    by_reason = together["evictions"]["by_reason"]
    assert [*by_reason] == ["size", "idle", "code"]
    for reason, row in by_reason.items():
        for name, number in row.items():
            assert number == sum(it["evictions"]["by_reason"][reason][name] for it in caches)
    worst = together["worst"]
    assert [row["cache"] for row in worst["misses"]] == ["c4", "c3", "c2"]
    assert [row["misses"] for row in worst["misses"]] == [15, 12, 9]
    assert [row["cache"] for row in worst["thrash"]] == ["c4", "c3", "c2"]
    assert worst["thrash"][0]["label"] == "svc-0"


def test_one_cache_is_no_fleet(tmp_path: Path, capsys: Capture) -> None:
    """Also if it was picked from several."""
    path = write(tmp_path / "log", [busy_log("one"), busy_log("two")])
    assert (
        run_command(capsys, "report", "--json", "--cache", "two", path).document["together"] is None
    )
    out = run_command(capsys, "report", "--cache", "two", path).out
    assert "together" not in out
    assert "Cache two" in out


def test_caches_are_shown_one_by_one_if_asked(
    tmp_path: Path, capsys: Capture, logs: list[Log]
) -> None:
    """On a terminal the sums are enough; the page has both."""
    path, page = write(tmp_path / "log", logs), tmp_path / "page.html"
    ran = run_command(capsys, "report", "--html", page, path)
    assert "5 caches together\n" in ran.out
    assert "labels" in ran.out
    assert "c4 svc-0" in ran.out
    assert "Cache c0" not in ran.out
    assert "which --by-cache shows one by one: c0, c1, c2, c3, ..." in ran.err
    assert "Cache c0 svc-0" in run_command(capsys, "report", "--by-cache", path).out
    text = page.read_text()
    assert text.index("5 caches together</h2>") < text.index("Cache c0 svc-0</h2>")
    assert "Caches with the most misses" in text


def test_a_fleet_without_leases_uses_the_caches_own_counts(tmp_path: Path, capsys: Capture) -> None:
    """Of logs without log_uses; and logs from before there were labels can be read."""
    lines: list[dict[str, Any]] = []
    for cache, misses in (("a", 7), ("b", 1)):
        log = Log(cache)
        log.opened()
        log.evicted(1.0)
        log.closed(2.0)
        log.lines[-1] |= {"hits": 1, "misses": misses, "blocks": 0}
        lines += log.lines
    for line in lines:
        del line["label"]
    path = tmp_path / "log"
    path.write_text(text_of(lines))
    together = run_report(capsys, path).document["together"]
    assert (together["leases"]["hits"], together["leases"]["misses"]) == (2, 8)
    assert together["labels"] == {}
    assert [row["miss_rate"] for row in together["worst"]["misses"]] == [7 / 8, 1 / 2]
    assert "caches together" in run_command(capsys, "report", path).out


def test_whose_need_evictions_served(tmp_path: Path, capsys: Capture) -> None:
    """A table of victims and culprits, by group and by function; nobody's need is in none."""
    log = Log()
    need = {"for_arg_types": "i64", "for_request": 1}
    for number in range(4):
        log.evicted(number, function="a/f", for_group="b", for_function="g", **need)
    log.evicted(5, function="b/g", for_group="a", for_function="f", **need)
    log.evicted(6, function="a/f", for_group="a", for_function="h", **need)
    log.evicted(7, Reason.IDLE, function="a/f")
    path, page = log.write(tmp_path / "log"), tmp_path / "page.html"
    needs = run_report(capsys, path).cache["needs"]
    assert [(row["victim"], row["culprit"], row["evictions"]) for row in needs["groups"]] == [
        ("a", "b", 4),
        ("b", "a", 1),
        ("a", "a", 1),
    ]
    assert [(row["victim"], row["culprit"], row["evictions"]) for row in needs["functions"]] == [
        ("f(i64)", "g(i64)", 4),
        ("g(i64)", "f(i64)", 1),
        ("f(i64)", "h(i64)", 1),
    ]
    assert needs["groups"][0]["freed_bytes"] == 4 * 2 * 65536
    out = run_command(capsys, "report", "--html", page, path).out
    assert "Evicted for whose need, by group" in out
    assert "Evicted for whose need, by function" in out
    assert "Evicted for whose need, by group" in page.read_text()


def test_a_group_that_only_evicts_its_own_has_no_table(tmp_path: Path, capsys: Capture) -> None:
    """By function it is of interest all the same."""
    log = Log()
    log.evicted(1, for_group="main", for_function="g", for_arg_types="i64", for_request=1)
    out = run_command(capsys, "report", log.write(tmp_path / "log")).out
    assert "whose need, by group" not in out
    assert "whose need, by function" in out


def story() -> Log:
    """Two requests of `f` and one of `g`, whose need evicts what `f` used and had spoilt."""
    log = Log("cafe")
    log.opened()
    log.requested(1, 1)
    log.loaded(2, request=1, instance=1)
    log.acquired(2, False, request=1, instance=1)
    log.recycled(3, request=1, instance=1)
    log.requested(4, 2, "g")
    log.evicted(4, instance=1, for_function="g", for_arg_types="i64", for_request=2)
    log.loaded(5, "g", request=2, instance=2)
    log.acquired(5, False, "g", request=2, instance=2)
    log.recycled(6, "g", request=2, instance=2, error="TrapError", kept=False)
    log.evicted(6, Reason.CORRUPTED, "g", instance=2, error="TrapError")
    log.closed(7)
    log.lines[5]["http_request"] = "abc"  # as a processor adds it
    return log


def where(capsys: Capture, path: Path, condition: str) -> list[int]:
    ran = run_command(capsys, "report", "--json", "--where", condition, path)
    assert ran.status == 0, ran.err
    return [event["seq"] for event in ran.document["events"]]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("request=1", [2, 3, 4, 5]),
        ("request=2", [6, 7, 8, 9, 10]),
        ("for_request=2", [3, 4, 5, 7]),  # what became of that instance
        ("instance=1", [3, 4, 5, 7]),
        ("error=TrapError", [6, 7, 8, 9, 10, 11]),
        ("http_request=abc", [6, 7, 8, 9, 10]),
        ("hit=false", [2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("reason=corrupted", [8, 9, 10, 11]),
        ("log_uses=true", [1]),
    ],
)
def test_a_request_or_an_instance_is_followed(
    condition: str, expected: list[int], tmp_path: Path, capsys: Capture
) -> None:
    """All of its events, also those before the one with the value."""
    log = story()
    if condition == "log_uses=true":
        log.lines[0]["log_uses"] = True
    assert where(capsys, log.write(tmp_path / "log"), condition) == expected


def test_what_is_followed_is_shown_in_time(tmp_path: Path, capsys: Capture) -> None:
    """A line for each event, of which nothing can control a terminal."""
    log = story()
    log.lines[5]["http_request"] = "\x1b[2Jabc"
    path = log.write(tmp_path / "log")
    ran = run_command(capsys, "report", "--events", "--where", "request=2", path)
    lines = ran.out.splitlines()
    assert lines[0] == "Cache cafe"
    assert [line.split()[2] for line in lines[1:] if line.lstrip().startswith("+")] == [
        *("requested", "evicted", "loaded", "acquired", "recycled")
    ]
    assert "error=TrapError" in ran.out
    assert "\x1b" not in ran.out


def test_why_an_instance_was_evicted(tmp_path: Path, capsys: Capture) -> None:
    """A sentence for each eviction: why, for whom, and what it had been good for."""
    log = story()
    need = {"for_function": "g", "for_arg_types": "i64", "for_group": "b", "for_request": 2}
    log.evicted(8, instance=3, idle_seconds=0.0007390980026684701, **need)
    log.evicted(8.5, Reason.OVERSIZED, instance=4, limit_bytes=2**20, advice="raise it", uses=1)
    log.evicted(8.5, Reason.CLOSED, instance=5, seat=True, idle_seconds=0.0)
    log.evicted(9, Reason.CORRUPTED, instance=6, error="TrapError", replaced_by=7)
    log.evicted(9, Reason.CORRUPTED, instance=8, error="TrapError", evictions=12)
    path = log.write(tmp_path / "log")
    ran = run_command(capsys, "report", "--where", "event=wasmcache.evicted", path)
    assert (ran.status, ran.err) == (0, "")
    told = " ".join(ran.out.split())
    for text in (
        "Cache cafe +0 s instance 1, f(i64) in group main, was evicted for size, after 1.0 s",
        (
            "+4.0 s instance 3, f(i64) in group main, was evicted for size, for the sake of "
            "request 2, g(i64) in group b, after 739 µs idle; it had served 3 leases in 2.0 s"
        ),
        (
            "+4.5 s instance 4, f(i64) in group main, was evicted as it was too large to keep, "
            "after 1.0 s idle; it had served 1 lease in 2.0 s; 128.0 KiB freed; the limit is 1.0"
        ),
        "+4.5 s the seat of f(i64) in group main was evicted as the cache closed; 128.0 KiB freed",
        (
            "was evicted as a call in it had failed (TrapError), after 1.0 s idle; it had served 3 "
            "leases in 2.0 s; 128.0 KiB freed; instance 7 took its place"
        ),
        "+5.0 s 12 instances of f(i64) in group main were evicted as a call in it had failed (",
    ):
        assert text in told
    assert max(map(len, ran.out.splitlines())) <= 80
    assert ran.out.endswith("--events prints the events with all their fields.\n")
    raw = run_command(capsys, "report", "--where", "seq=13", "--events", path).out
    assert "idle_seconds=0.000739098" in " ".join(raw.split())
    # JSON has the sentences beside the events.
    document = run_command(capsys, "report", "--json", "--where", "seq=13", path).document
    assert len(document["events"]) == 1
    (one,) = document["sentences"]
    assert (one["cache"], one["seq"]) == ("cafe", 13)
    assert one["text"] in told


def test_so_many_evictions_are_told(tmp_path: Path, capsys: Capture) -> None:
    """As `--top` says, or 20; the last line says how many there are, and how to see them."""
    log = Log("cafe")
    log.opened()
    for number in range(30):
        log.evicted(number, instance=number)
    path = log.write(tmp_path / "log")
    ran = run_command(capsys, "report", "--where", "reason=size", path)
    assert ran.out.count("was evicted") == 20
    assert "and 10 more evictions: --top 30 tells of them, too\n" in ran.out
    assert (
        run_command(capsys, "report", "--where", "reason=size", "--top", "30", path).out.count(
            "was evicted"
        )
        == 30
    )
    ran = run_command(capsys, "report", "--where", "reason=size", "--top", "29", path)
    assert "and 1 more eviction: " in ran.out
    raw = run_command(capsys, "report", "--where", "reason=size", "--events", path)
    assert raw.out.count("reason=size") == 30


def test_what_happened_in_an_instance(tmp_path: Path, capsys: Capture) -> None:
    """Its load, its leases, and its end, each in a sentence; at the times of the log's stamps."""
    log = story()
    for number, line in enumerate(log.lines):
        line["timestamp"] = f"2025-01-01T00:00:{number:02}.123456Z"
    path = log.write(tmp_path / "log")
    ran = run_command(capsys, "report", "--where", "instance=2", path)
    assert ran.out.splitlines()[:5] == [
        "Cache cafe, 2025-01-01",
        "00:00:07.123Z  request 2, g(i64) in group main, loaded an instance in 500 ms",
        "00:00:08.123Z  request 2, g(i64) in group main, was granted it (instance 2)",
        "00:00:09.123Z  request 2, g(i64) in group main, gave it back after 500 ms: 1",
        "               call; failed with TrapError",
    ]
    for number, line in enumerate(log.lines):
        line["timestamp"] = 1735689600.5 + 86400 * number
    log.write(path)
    ran = run_command(capsys, "report", "--where", "instance=2", path)
    assert "2025-01-08 00:00:00.500Z  request 2," in ran.out
    title = run_command(capsys, "report", "--where", "request=2", path).out.splitlines()[1]
    assert title.startswith("Request 2, g(i64) in group main at 2025-01-06 00:00:00.500Z, ")


def test_several_conditions(tmp_path: Path, capsys: Capture) -> None:
    """One event must have all of the values."""
    log = story()
    path = log.write(tmp_path / "log")

    def found(*conditions: str) -> list[int]:
        options = [it for condition in conditions for it in ("--where", condition)]
        ran = run_command(capsys, "report", "--json", *options, path)
        return [event["seq"] for event in ran.document["events"]] if ran.out else []

    assert found("error=TrapError", "function=g") == [6, 7, 8, 9, 10, 11]
    assert found("function=f", "request=1", "hit=false") == [2, 3, 4, 5]
    assert found("error=TrapError", "function=f") == []
    assert found("instance=2", "hit=false") == [8, 9, 10, 11]
    ran = run_command(capsys, "report", "--where", "error=TrapError", "--where", "function=f", path)
    assert (ran.status, ran.err) == (
        2,
        (
            "no event has error=TrapError and function=f; there are 2 events with error: TrapError"
            ", and 10 events with function: f, g\n"
        ),
    )
    ran = run_command(capsys, "report", "--json", "--where", "reason=size", path)
    assert ran.document["where"] == {"field": "reason", "value": "size"}
    assert ran.document["conditions"] == [ran.document["where"]]


def test_caches_and_files_are_kept_apart(tmp_path: Path, capsys: Capture) -> None:
    """A number is one of its cache; with timestamps, events of several are in order of these."""
    one, two = story(), story()
    for line in two.lines:
        line["cache"] = "beef"
    for number, line in enumerate(one.lines + two.lines):
        line["timestamp"] = f"2025-01-01T00:00:{59 - number:02}Z"
    paths = [log.write(tmp_path / f"log{number}") for number, log in enumerate((one, two))]
    ran = run_command(capsys, "report", "--json", "--where", "request=1", *paths)
    events = ran.document["events"]
    assert [event["timestamp"] for event in events] == sorted(it["timestamp"] for it in events)
    assert {event["cache"] for event in events} == {"cafe", "beef"}
    only = run_command(
        capsys, "report", "--json", "--where", "request=1", "--cache", "beef", *paths
    )
    assert {event["cache"] for event in only.document["events"]} == {"beef"}


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("http_reqest=abc", ", nor any field http_reqest: did you mean http_request?"),
        ("xyzzy=abc", ", nor any field xyzzy"),
        ("http_request=abd", "; there is 1 event with http_request: abc"),
        ("deadline_seconds=1", ": deadline_seconds is null in all of them"),
        ("seq=99", "; there are 12 events with seq: 1, 2, 3, ..."),
    ],
)
def test_why_there_is_none(condition: str, told: str, tmp_path: Path, capsys: Capture) -> None:
    """A field may be misspelt, or have other values."""
    path = story().write(tmp_path / "log")
    ran = run_command(capsys, "report", "--where", condition, path)
    assert (ran.status, ran.out, ran.err) == (2, "", f"no event has {condition}{told}\n")
    ran = run_command(capsys, "report", "--where", condition, "--cache", "other", path)
    assert ran.err == "no events to analyse of cache other\n"


def test_what_is_not_there_or_can_not_be_asked(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has the value; standard input can't be read twice; and more than can be shown."""
    path = story().write(tmp_path / "log")
    ran = run_command(capsys, "report", "--where", "request=99", path)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "no event has request=99; there are 8 events with request: 1, 2\n"
    assert run_command(capsys, "report", "--where", "request", path).status == 2
    ran = run_command(capsys, "report", "--where", "request=1", "-")
    assert ran.status == 2
    assert "reads the log twice" in ran.err
    monkeypatch.setattr("trio_wasmcache.report.summary.trail.MAX_EVENTS", 2)
    ran = run_command(capsys, "report", "--json", "--where", "request=1", path)
    assert (len(ran.document["events"]), ran.document["left_out"]) == (2, 2)
    assert "2 events are shown, 2 are left out" in ran.err
    text = path.read_text().replace('"abc"', "NaN")
    path.write_text(text)
    ran = run_command(capsys, "report", "--json", "--where", "request=2", path)
    assert [it["http_request"] for it in json.loads(ran.out)["events"] if "http_request" in it] == [
        "nan"
    ]
