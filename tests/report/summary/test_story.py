"""`report --where` as a story: what became of a request, where its time went, and why."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from kits import FakeKit, Kit, ListLogger, add
from report.logs import Log, make, run_command, use
from report.workloads import JsonLogger, draw_config, run_on_jumping_clock, wild_plan
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, LoadError, Prepare, TrapError
from trio_wasmcache._core.events import Abandoned, Blocked, Event, Failed, Output, Reason
from trio_wasmcache.report.output.story import REASONS
from trio_wasmcache.report.reading import lines
from trio_wasmcache.report.summary import story as stories
from trio_wasmcache.report.summary.trail import Trail

Capture = pytest.CaptureFixture[str]


def waiting(kind: type[Event], function: str = "f", **more: Any) -> Event:
    """An event of an acquire that waits."""
    known = {**use(function), "task": 1}
    del known["instance"]
    return make(kind, **known | more)


def tell(capsys: Capture, log: Log, path: Path, condition: str = "request=2") -> list[Any]:
    """The stories, as JSON; the text is told, too, and has all of their sentences.

    They are the same if the log is read in small pieces, and if all of its lines are parsed.
    """
    log.write(path)
    ran = run_command(capsys, "report", "--json", "--where", condition, path)
    assert ran.status == 0, ran.err
    told: list[Any] = ran.document["stories"]
    for changed, name, value in (
        (lines, "PIECE", 300),
        (Trail, "sought", lambda _trail: None),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(changed, name, value)
            again = run_command(capsys, "report", "--json", "--where", condition, path)
            assert again.document["stories"] == told, name
    shown = run_command(capsys, "report", "--where", condition, path)
    words = " ".join(shown.out.split())
    for one in told:
        for step in one["steps"]:
            assert " ".join(step["text"].split()) in words
    return told


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *(("a&b", r'"a\u0026b"'), ("a/b", r'"a\/b"'), ("é", '"\\u00e9"'), ("[1, 2]", "[1,2]")),
        *(("0.5", "5e-1"), ("200.0", "2e2"), ("x 7e5.", '"x 7e5."'), ("-7", "-7")),
    ],
)
def test_values_are_found_however_they_are_written(
    tmp_path: Path, capsys: Capture, value: str, written: str
) -> None:
    """Writers of other languages escape more characters than Python's."""
    log = Log()
    log.opened()
    path = log.write(tmp_path / "log")
    text = path.read_text().replace('{"', f'{{"trace":{written},"', 1)
    path.write_text(text)
    ran = run_command(capsys, "report", "--events", "--where", f"trace={value}", path)
    assert ran.status == 0, ran.err


def texts(story: Any) -> list[str]:
    return [step["text"] for step in story["steps"]]


def test_a_wait_for_a_token(tmp_path: Path, capsys: Capture) -> None:
    """It is behind the lease of its group that ended last; the request begins with the wait."""
    log = Log()
    log.opened()
    log.add(1.0, waiting(Blocked, "b/f", request=None, task=7, waits_for="a token"))
    log.recycled(1.5, "c/h", request=8)
    log.recycled(1.75, "b/g", request=9, held_seconds=3.0)
    log.requested(1.75, 2, "b/f", task=7, blocked=True)
    log.acquired(1.75, True, "b/f", request=2, instance=4)
    log.recycled(2.0, "b/f", request=2, instance=4, held_seconds=0.25, fuel=1234, calls=2)
    (story,) = tell(capsys, log, tmp_path / "log")
    assert (story["seconds"], story["outcome"], story["held_seconds"]) == (1.0, "completed", 0.25)
    assert story["waited_seconds"] == {"a token": 0.75}
    asked = "asked for an instance, after a wait for a token of its group"
    assert texts(story) == [
        f"{asked}: waited 750 ms behind request 9, g(i64) in group b, whose lease lasted 3.0 s",
        "was granted an instance that was idle (instance 4)",
        "gave it back after 250 ms: 2 calls, 1,234 units of fuel",
    ]
    assert story["steps"][0]["behind"]["request"] == 9
    shown = run_command(capsys, "report", "--where", "request=2", tmp_path / "log").out
    title = "Request 2, f(i64) in group b, took 1.0 s: 750 ms for a token, 250 ms in its lease"
    assert title in " ".join(shown.split())


def test_a_wait_for_an_instance(tmp_path: Path, capsys: Capture) -> None:
    """It is behind a lease of the same function in the same group, the last that ended."""
    log = Log()
    log.opened()
    log.requested(1.0, 2)
    log.add(1.0, waiting(Blocked, request=2, waits_for="an instance"))
    log.recycled(1.125, request=5, held_seconds=2.0)
    log.recycled(1.25, request=6, held_seconds=4.0)
    log.recycled(1.25, "g", request=7)
    log.recycled(1.25, "b/f", request=8)
    log.acquired(1.25, True, request=2)
    log.recycled(1.5, request=2, held_seconds=0.25)
    log.recycled(1.5, request=9)
    (story,) = tell(capsys, log, tmp_path / "log")
    assert story["waited_seconds"] == {"an instance": 0.25}
    assert texts(story)[1] == (
        "waited 250 ms for an instance behind request 6, f(i64) in group main, whose lease lasted "
        "4.0 s"
    )


def test_a_wait_that_was_given_up(tmp_path: Path, capsys: Capture) -> None:
    """It is behind the lease that had its instance for the longest time."""
    log = Log()
    log.opened()
    log.acquired(0.25, request=4)
    log.acquired(0.5, request=5)
    log.acquired(0.75, request=6, instance=2)
    log.recycled(0.875, request=4)
    log.requested(1.0, 2)
    log.add(1.0, waiting(Blocked, request=2, waits_for="an instance"))
    log.add(1.5, waiting(Abandoned, request=2, error="Cancelled"))
    (story,) = tell(capsys, log, tmp_path / "log")
    assert (story["outcome"], story["error"]) == ("gave up", "Cancelled")
    assert texts(story)[1] == (
        "waited 500 ms for an instance behind request 5, f(i64) in group main, which had held its "
        "instance for 1.0 s by then"
    )
    assert texts(story)[2:] == ["ended without an instance: Cancelled"]


def test_a_wait_whose_instance_another_got(tmp_path: Path, capsys: Capture) -> None:
    """Before it was given up: that says nothing about the turn of its task."""
    log = Log()
    log.opened()
    log.requested(1.0, 2)
    log.add(1.0, waiting(Blocked, request=2, waits_for="an instance"))
    log.recycled(1.25, request=5, held_seconds=2.0)
    log.add(1.75, waiting(Abandoned, request=2, error="Cancelled"))
    (story,) = tell(capsys, log, tmp_path / "log")
    assert texts(story)[1] == (
        "waited 750 ms for an instance behind request 5, f(i64) in group main, whose lease lasted "
        "2.0 s"
    )


def test_a_wait_for_a_token_that_was_given_up(tmp_path: Path, capsys: Capture) -> None:
    """It has no request, and is found by a field of the application's, alone or beside requests.

    It was behind the lease of its group that ended last, or that is the oldest one under way.
    """
    log = Log()
    log.opened()
    log.acquired(0.25, True, "b/g", request=3)
    log.acquired(0.5, True, "b/h", request=4)
    for task, began, ended in ((7, 1.0, 1.5), (8, 1.75, 2.5), (9, 3.0, None)):
        log.add(began, waiting(Blocked, "b/f", request=None, task=task, waits_for="a token"))
        log.lines[-1]["trace"] = f"t{task}"
        if ended is not None:
            if task == 8:
                log.recycled(2.0, "b/g", request=3, held_seconds=1.75)
            log.add(ended, waiting(Abandoned, "b/f", request=None, task=task, error="Cancelled"))
            log.lines[-1]["trace"] = f"t{task}"
    log.requested(4.0, 5, "b/f", task=7)
    log.lines[-1]["trace"] = "t8"
    path = tmp_path / "log"
    (story,) = tell(capsys, log, path, "trace=t7")
    assert (story["request"], story["outcome"], story["error"]) == (None, "gave up", "Cancelled")
    assert story["waited_seconds"] == {"a token": 0.5}
    waited, gave_up = texts(story)
    assert waited == (
        "waited 500 ms behind request 3, g(i64) in group b, which had held its instance for 1.2 s "
        "by then"
    )
    assert gave_up == "ended without an instance: Cancelled"
    title = "An acquire without a token, f(i64) in group b, gave up with Cancelled after 500 ms"
    shown = run_command(capsys, "report", "--where", "trace=t7", path).out
    assert title in " ".join(shown.split())
    asked, story = tell(capsys, log, path, "trace=t8")
    assert (asked["request"], story["request"]) == (5, None)
    assert texts(story)[0] == (
        "waited 750 ms behind request 3, g(i64) in group b, whose lease lasted 1.8 s"
    )
    (story,) = tell(capsys, log, path, "trace=t9")
    assert (story["outcome"], texts(story)) == ("under way", ["waits for a token"])


def test_there_is_no_page_of_stories(tmp_path: Path, capsys: Capture) -> None:
    log = Log()
    log.opened()
    page = tmp_path / "page.html"
    log.write(tmp_path / "log")
    ran = run_command(capsys, "report", "--where", "a=1", "--html", page, tmp_path / "log")
    assert ran.status == 2
    assert "--html has no page for --where" in ran.err
    assert not page.exists()


def test_deadlines(tmp_path: Path, capsys: Capture) -> None:
    """How much time the caller had left when it asked, and by how much it was overrun."""
    log = Log()
    log.opened()
    log.requested(1.0, 2, deadline_seconds=1.05)
    log.acquired(1.0, request=2)
    log.recycled(1.0625, request=2, held_seconds=0.0625, error="Cancelled", kept=False)
    log.requested(2.0, 3, deadline_seconds=2.5)
    log.add(2.0, waiting(Blocked, request=3, waits_for="an instance"))
    log.add(2.75, waiting(Abandoned, request=3, error="Cancelled"))
    log.requested(3.0, 4, deadline_seconds=9.0)
    log.acquired(3.0, request=4)
    log.recycled(3.5, request=4, calls=0)
    path = tmp_path / "log"
    (story,) = tell(capsys, log, path)
    assert [texts(story)[0], texts(story)[-1]] == [
        "asked for an instance; its deadline was 50.0 ms later",
        (
            "gave it back after 62.5 ms: 1 call; failed with Cancelled; its deadline had passed "
            "12.5 ms before"
        ),
    ]
    assert story["steps"][0]["deadline_after_seconds"] == pytest.approx(0.05)
    (story,) = tell(capsys, log, path, "request=3")
    late = "ended without an instance: Cancelled; its deadline had passed 250 ms before"
    assert texts(story)[-1] == late
    (story,) = tell(capsys, log, path, "request=4")
    assert texts(story)[-1] == "gave it back after 500 ms: 0 calls"


def test_a_task_that_had_no_turn(tmp_path: Path, capsys: Capture) -> None:
    """Between the end of the lease before it and its own grant, in which its caller gave up."""
    log = Log()
    log.opened()
    log.add(1.0, waiting(Blocked, "b/f", request=None, task=7, waits_for="a token"))
    log.recycled(1.25, "b/g", request=9, held_seconds=0.5)
    log.requested(1.75, 2, "b/f", task=7, blocked=True, deadline_seconds=1.75)
    log.acquired(1.75, True, "b/f", request=2)
    log.recycled(2.0, "b/f", request=2, held_seconds=0.25, calls=0)
    (story,) = tell(capsys, log, tmp_path / "log")
    assert texts(story)[0] == (
        "asked for an instance, after a wait for a token of its group: waited 750 ms behind "
        "request 9, g(i64) in group b, whose lease lasted 500 ms and had ended 500 ms before: "
        "until then, its task had no turn; its caller had been cancelled by then, or its deadline "
        "had passed"
    )
    assert texts(story)[-1] == (
        "gave it back after 250 ms: 0 calls, as its caller had been cancelled"
    )
    assert story["steps"][0]["late_seconds"] == 0.5


def test_a_wait_for_room_ends_when_the_load_begins(tmp_path: Path, capsys: Capture) -> None:
    """What was given back while it loaded was not what it waited for; loads have a cause."""
    log = Log()
    log.opened()
    log.requested(1.0, 2)
    log.add(1.0, waiting(Blocked, request=2, waits_for="room"))
    log.recycled(1.5, "c/h", request=8, held_seconds=1.0)
    log.recycled(1.75, "c/h", request=9)
    log.loaded(2.0, request=2, seconds=0.5)
    log.acquired(2.0, False, request=2)
    (story,) = tell(capsys, log, tmp_path / "log")
    assert (story["outcome"], story["load_seconds"]) == ("under way", 0.5)
    assert story["waited_seconds"] == {"room": 0.5}
    assert texts(story) == [
        "asked for an instance",
        "waited 500 ms for room behind request 8, h(i64) in group c, whose lease lasted 1.0 s",
        "loaded an instance in 500 ms: there was none yet in this log",
        "was granted it (instance 1)",
    ]


def test_why_it_loaded(tmp_path: Path, capsys: Capture) -> None:
    """The last instance went for somebody's need; others are in use; or leases have new ones."""
    need = {"for_group": "c", "for_function": "g", "for_arg_types": "str", "for_request": 7}
    log = Log()
    log.opened()
    log.loaded(0.25, request=1, instance=1)
    log.loaded(0.5, request=1, instance=2, function="b/f")  # of another group
    log.evicted(0.5, instance=1, **need)
    log.loaded(0.75, request=3, instance=3)
    log.requested(1.0, 2)
    log.loaded(4.0, request=2, instance=4, seconds=0.5, module_loaded=True, code_bytes=2048)
    log.acquired(4.0, False, request=2, instance=4)
    log.requested(5.0, 11)
    log.evicted(5.0, Reason.CORRUPTED, instance=3, error="TrapError")
    log.evicted(5.0, Reason.CORRUPTED, instance=4, error="TrapError")
    log.loaded(6.0, request=11, instance=5, seconds=1.0)
    log.requested(7.0, 12)
    log.loaded(8.0, request=12, instance=5, seat=True)
    (story,) = tell(capsys, log, tmp_path / "log")
    assert texts(story)[1] == (
        "loaded an instance in 500 ms, and its code of 2.0 KiB: the other one was in use, and the "
        "last one had gone 3.0 s before, for size, for the sake of request 7, g(str) in group c"
    )
    assert story["steps"][1]["gone"]["for_request"] == 7
    (story,) = tell(capsys, log, tmp_path / "log", "request=11")
    assert texts(story)[1] == (
        "loaded an instance in 1.0 s: the last one had gone 0 s before, as a call in it had failed "
        "(TrapError)"
    )
    (story,) = tell(capsys, log, tmp_path / "log", "request=12")
    assert texts(story)[1].endswith("on its seat, as every lease gets a new one")


def test_what_it_did_to_others_and_what_its_guest_said(tmp_path: Path, capsys: Capture) -> None:
    """Evictions for its need are its own steps; its lines and its last words are shown, cut."""
    log = Log()
    log.opened()
    log.requested(1.0, 2)
    log.evicted(1.0, function="c/h", for_group="main", for_function="f", for_request=2)
    log.add(1.0, make(Failed, **use("f"), request=2, error="LoadError", error_message="no\nluck"))
    log.requested(2.0, 3)
    log.acquired(2.0, request=3)
    told = {**use("f"), "request": 3, "stream": "stderr", "line": "look"}
    del told["instance"]
    log.add(2.0, make(Output, **told))
    words = "unreachable; its last output:\n    \x1b[2Jpanicked\n" + "\n".join("abcdefghijkl")
    log.recycled(2.5, request=3, error="TrapError", error_message=words, kept=False)
    path = tmp_path / "log"
    (story,) = tell(capsys, log, path)
    assert (story["outcome"], story["error"]) == ("failed", "LoadError")
    assert texts(story) == [
        "asked for an instance",
        "had an instance evicted for size, of h(i64) in group c: 128.0 KiB",
        "could not load: LoadError",
    ]
    assert story["steps"][2]["error_message"] == "no\nluck"
    (story,) = tell(capsys, log, path, "request=3")
    assert texts(story)[2:] == [
        "the guest wrote to stderr: look",
        "gave it back after 500 ms: 1 call; failed with TrapError",
    ]
    shown = run_command(capsys, "report", "--where", "request=3", path).out
    assert "\n             unreachable; its last output:\n" in shown
    assert "\\x1b[2Jpanicked" in shown
    assert "\x1b" not in shown
    assert "  f\n" in shown
    assert "  g\n" not in shown


@pytest.mark.parametrize("spaces", [True, False])
@pytest.mark.parametrize("names", ["f", "föö"])
def test_lines_are_found_however_they_are_written(
    names: str, spaces: bool, tmp_path: Path, capsys: Capture
) -> None:
    """With and without spaces, and with names that JSON may write in two ways."""
    log = Log()
    log.opened()
    for number in range(1, 30):
        log.loaded(number, names, request=100 + number, instance=number)
        log.evicted(number, function=names, instance=number)
        log.requested(number, 2 if number == 29 else 200 + number, names)
    log.loaded(40, names, request=2, instance=40)
    log.lines[-1]["tenant"] = "it's me"
    path = tmp_path / "log"
    separators = (", ", ": ") if spaces else (",", ":")
    for condition in ("request=2", "tenant=it's me"):
        path.write_text("".join(f"{json.dumps(it, separators=separators)}\n" for it in log.lines))
        ran = run_command(capsys, "report", "--json", "--where", condition, path)
        (story,) = ran.document["stories"]
        assert "the last one had gone" in texts(story)[1]
        assert [step["event"] for step in story["steps"]] == ["requested", "loaded"]


def test_it_is_bounded(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limits, waits have no cause, and stories are in the JSON only."""
    monkeypatch.setattr(stories, "MAX_EXPLAINED", 1)
    monkeypatch.setattr(stories, "MAX_OPEN", 1)
    log = Log()
    log.opened()
    for number in range(3):
        log.add(number, waiting(Blocked, request=None, task=number, waits_for="a token"))
    log.recycled(3.0, request=99)
    for number in range(3):
        log.requested(3.0 + number, 10 + number, task=number, blocked=True)
    for number in range(2):
        log.add(6.0, waiting(Blocked, request=10 + number, waits_for="an instance"))
    log.recycled(6.0, request=98)
    log.acquired(7.0, request=10)
    log.acquired(7.0, request=11)
    told = tell(capsys, log, tmp_path / "log", "function=f")
    told = [one for one in told if one["request"] in {10, 11, 12}]
    assert [one["steps"][0].get("behind") for one in told[:2]] == [None, None]
    assert told[2]["steps"][0]["behind"]["request"] == 99
    assert [one["steps"][1]["behind"] for one in told[:2]] == [None, None]
    monkeypatch.setattr("trio_wasmcache.report.output.story.MAX_TOLD", 1)
    shown = run_command(capsys, "report", "--where", "function=f", tmp_path / "log").out
    assert "and 4 more requests: --top 5 prints them all, as --json does" in shown


def test_each_reason_has_words() -> None:
    assert set(REASONS) == {reason.value for reason in Reason}


def test_events_need_a_condition(tmp_path: Path, capsys: Capture) -> None:
    log = Log()
    log.opened()
    ran = run_command(capsys, "report", "--events", log.write(tmp_path / "log"))
    assert ran.status == 2
    assert "--events is for --where and --slowest" in ran.err


async def test_a_lease_logs_its_fuel_and_why_it_failed(kit: Kit) -> None:
    """The reason has no argument of the call, which may be a secret."""
    log = ListLogger()
    async with kit.open(CacheConfig(log_uses=True), logger=log) as cache:
        await add(cache, "f", kit.adding(1))
        await add(cache, "bad", kit.trapping())
        async with cache.acquire("f") as lease:
            burnt = 0
            for work in (lease.call(1), lease.map([[1, 2]]), lease.map([[1, 2]])):
                await work  # the second small batch takes a way of its own
                burnt += lease.fuel_consumed or 0
        with pytest.raises(TrapError, match=r"\(424242\)"):
            async with cache.acquire("bad") as lease:
                await lease.call(424242)
    ended = log.fields("recycled")
    assert [it["fuel"] for it in ended] == [burnt, lease.fuel_consumed]
    assert ended[0]["error_message"] is None
    assert "unreachable" in ended[1]["error_message"]
    assert "424242" not in ended[1]["error_message"]


async def test_a_preparation(tmp_path: Path, capsys: Capture) -> None:
    """It is told as a request: whom it waited for, how it ended; others may have waited for it."""
    log, kit = JsonLogger(), FakeKit()
    prepare = (Prepare("run", (5,), ("i64",), "i64"),)
    async with kit.open(CacheConfig(log_uses=True, max_instances=1), logger=log) as cache:
        g = await add(cache, "g", kit.adding(1))

        async def fail() -> None:
            with pytest.raises(LoadError):
                await add(cache, "bad", kit.trapping(), prepare=prepare)

        async with trio.open_nursery() as nursery:
            async with g.acquire():
                nursery.start_soon(fail)
                await wait_all_tasks_blocked()
        await add(cache, "f", kit.adding(1), prepare=prepare)
    path = log.write(tmp_path / "log")
    told = {}
    for number in (2, 3):
        ran = run_command(capsys, "report", "--json", "--where", f"request={number}", path)
        (told[number],) = ran.document["stories"]
    assert told[2]["function"] == "bad" and list(told[2]["waited_seconds"]) == ["room"]
    assert (told[2]["outcome"], told[2]["error"]) == ("failed", "LoadError")
    asked, evicts, ended = texts(told[2])
    assert asked == "asked for an instance in which to prepare the function"
    assert evicts.startswith("had an instance evicted as there were too many, of g(i64)")
    assert ended.startswith("could not be prepared: LoadError after")
    assert told[3]["outcome"] == "completed"
    assert texts(told[3])[-1].startswith("was prepared in ")


@pytest.mark.parametrize("seed", range(4))
def test_searching_tells_the_same_as_parsing(seed: int, tmp_path: Path, capsys: Capture) -> None:
    """Of requests and values in logs of all kinds of applications, spelt in different ways."""
    random = Random(seed)
    logged = run_on_jumping_clock(wild_plan(random), draw_config(random)).log.events
    for event in logged:
        event["trace"] = f"trace {event.get('request') or event['seq'] % 7}"
        for name in ("request", "for_request"):
            if event.get(name) is not None:
                event[name] += 10_000  # long enough to be searched
    spaces = (", ", ": ") if seed % 2 else (",", ":")
    written = [json.dumps(event, separators=spaces) for event in logged]
    written.insert(20, '{"event": "another", "request": 10002, "trace": "trace 10002"}')
    path = tmp_path / "log"
    path.write_text("\n".join(written) + "\n" * (seed % 3))
    numbers = sorted({event["request"] for event in logged if event.get("request") is not None})
    conditions = [f"request={number}" for number in random.sample(numbers, min(4, len(numbers)))]
    conditions += [
        "trace=trace 3",
        "function=f1",
        "instance=3",
        "task=2",
        f"trace=trace {numbers[0]}",
    ]
    for condition in conditions:
        told = []
        for slow in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(lines, "PIECE", random.choice([500, 5_000, 10**6]))
                if slow:
                    patch.setattr(Trail, "sought", lambda _trail: None)
                ran = run_command(capsys, "report", "--json", "--where", condition, path)
                told.append((ran.status, ran.status == 0 and ran.document, ran.err))
        assert told[0] == told[1], condition
