"""Each finding has a log that gives it, and the same application without what it names, which gives
none: under the limits that it says to paste, with guests that do not fail, and so on."""

from __future__ import annotations

import ast
import json
import math
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from report.cli.test_report import HOSTILE, full_log
from report.logs import Log, Ran, busy_log, make, run_command, run_report, use
from report.workloads import (
    FunctionPlan,
    KiB,
    Plan,
    Use,
    draw_config,
    in_turn,
    run_on_jumping_clock,
    steady_plan,
    wild_plan,
)

from trio_wasmcache import CacheConfig, MiB
from trio_wasmcache._core.events import (
    Blocked,
    Failed,
    GroupOpened,
    GroupResized,
    Overgrown,
    Reason,
    Throttled,
)
from trio_wasmcache.report.findings.verdict import KINDS, MOST
from trio_wasmcache.report.summary import wanted as wanted_module
from trio_wasmcache.report.summary.wanted import Ghosts, Wanted

PAGE = 64 * KiB
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def read(tmp_path: Path, capsys: Capture) -> Any:
    """Runs an application, and reports on its log."""

    def report_on(plan: Plan, config: CacheConfig) -> dict[str, Any]:
        log = run_on_jumping_clock(plan, config).log
        ran = run_report(capsys, log.write(tmp_path / "log"))
        assert (ran.status, ran.err) == (0, "")
        return ran.document

    return report_on


def only(document: dict[str, Any]) -> dict[str, Any]:
    """The only finding."""
    (finding,) = document["findings"]
    assert document["verdict"] is None
    assert isinstance(finding, dict)
    return finding


def of_kind(kind: str, document: dict[str, Any]) -> dict[str, Any]:
    """The finding of this kind, among others."""
    (finding,) = (one for one in document["findings"] if one["kind"] == kind)
    assert isinstance(finding, dict)
    return finding


def nothing(document: dict[str, Any]) -> str:
    """The sentence that there is nothing to do."""
    assert document["findings"] == []
    assert isinstance(document["verdict"], str)
    return document["verdict"]


def pasted(finding: dict[str, Any]) -> dict[str, Any]:
    """The keywords of the call that is to be pasted."""
    call = ast.parse(finding["paste"].removeprefix("await "), mode="eval").body
    assert isinstance(call, ast.Call)
    names = {"KiB": KiB, "MiB": MiB, "math": math}
    return {
        str(one.arg): eval(compile(ast.Expression(one.value), "", "eval"), names)
        for one in call.keywords
    }


# {kind: (application, limits under which it suffers, evidence)}
EVICTING = {
    "too_small": (
        in_turn(6, 12, 0.1),
        CacheConfig(max_size=8 * PAGE, max_instance_size=8 * PAGE, idle_timeout=60),
        {"evictions": 68, "loaded_again": 66, "now": 8 * PAGE, "advised": 12 * PAGE},
    ),
    "short_timeout": (
        in_turn(3, 12, 2.0),
        CacheConfig(idle_timeout=5),
        {"evictions": 34, "loaded_again": 33, "now": 5.0, "advised": 8},
    ),
    "code_thrashes": (
        in_turn(6, 12, 0.1),
        CacheConfig(max_code_size=12 * PAGE, idle_timeout=60),
        {"limit": "max_code_size", "now": 12 * PAGE},
    ),
    "too_few_instances": (
        in_turn(6, 12, 0.1),
        CacheConfig(max_instances=4, idle_timeout=60),
        {"evictions": 68, "loaded_again": 66, "now": 4, "advised": 8},
    ),
}


@pytest.mark.parametrize("kind", EVICTING)
def test_limits_that_evict_too_early(kind: str, read: Any) -> None:
    """What is to be pasted mends it, as the sentence says."""
    plan, config, evidence = EVICTING[kind]
    finding = only(read(plan, config))
    assert finding["kind"] == kind
    assert evidence.items() <= finding["evidence"].items()
    assert finding["part"] > 0.9
    assert "loaded again within 10 s of going" in finding["sentence"]
    assert "would have avoided about 100 % of these loads." in finding["sentence"]
    assert finding["paste"].startswith("cache.resize(")
    mended = read(plan, evolve(config, **pasted(finding)))
    assert nothing(mended) == "Nothing to do: 91.7 % hits of 72 leases, no thrash." or (
        kind == "short_timeout" and "91.7 % hits of 36 leases, no thrash" in mended["verdict"]
    )


def test_adaptive_timeouts_that_are_all_too_short(read: Any) -> None:
    """Their limit is raised: what is used after a longer time is not worth keeping below it."""
    config = CacheConfig(idle_timeout="adaptive", min_idle_timeout=1.0, max_idle_timeout=5.0)
    finding = only(read(in_turn(3, 12, 2.0), config))
    assert finding["kind"] == "short_timeout"
    assert finding["evidence"]["limit"] == "max_idle_timeout"
    assert (finding["evidence"]["now"], finding["evidence"]["advised"]) == (5.0, 8)
    assert finding["paste"] == "cache.resize(max_idle_timeout=8)"
    assert nothing(read(in_turn(3, 12, 2.0), evolve(config, **pasted(finding))))


def test_a_timeout_that_is_far_too_short(read: Any, capsys: Capture, tmp_path: Path) -> None:
    """What is used each 90 s is never found after a timeout of 60 s, though that is 30 s later."""
    plan = in_turn(1, 30, 90.0)
    finding = only(read(plan, CacheConfig(idle_timeout=60)))
    assert finding["kind"] == "short_timeout"
    assert "29 were loaded again within 60 s of going" in finding["sentence"]
    assert (finding["evidence"]["now"], finding["evidence"]["advised"]) == (60.0, 120)
    command = ("report", "--json", "--thrash-seconds", "10", tmp_path / "log")
    nothing(run_command(capsys, *command).document)  # as it was asked
    nothing(read(plan, CacheConfig(idle_timeout=120)))
    # What is not worth keeping for as long:
    nothing(read(in_turn(1, 30, 150.0), CacheConfig(idle_timeout=60)))


def test_an_adaptive_timeout_decides_what_its_limit_does_not(
    tmp_path: Path, capsys: Capture
) -> None:
    """What went before the longest timeout, and was wanted before it, needs no longer one."""
    for again, kinds in ((100, []), (590, ["short_timeout"])):
        log = Log()
        log.opened(idle_timeout_policy="adaptive", max_idle_timeout_seconds=600.0)
        for number in range(20):
            log.acquired(1000 * number, hit=False)
            log.evicted(1000 * number + 30, Reason.IDLE, idle_seconds=29.0)
            log.loaded(1000 * number + 30 + again)
        document = run_report(capsys, log.write(tmp_path / "log")).document
        assert document["caches"][0]["timed_out"]["loaded_again"] == 20
        assert [finding["kind"] for finding in document["findings"]] == kinds


def test_the_whole_sentence(read: Any, capsys: Capture, tmp_path: Path) -> None:
    """It has its evidence, and comes before all else, on a terminal and in the page."""
    plan, config, _ = EVICTING["too_small"]
    sentence = (
        "The cache is too small: 68 of 72 evictions were for size, and 66 were loaded again "
        "within 10 s of going, in 33.0 s of 36.0 s spent loading; max_size = 768 * KiB would "
        "have avoided about 100 % of these loads."
    )
    document = read(plan, config)
    assert only(document)["sentence"] == sentence
    assert [*document][:3] == ["report", "findings", "verdict"]
    html = tmp_path / "page.html"
    ran = run_command(capsys, "report", "--html", html, tmp_path / "log")
    assert ran.out.startswith("What to do\n1.  The cache is too small: 68 of 72 evictions")
    assert " ".join(ran.out.split()).startswith(
        f"What to do 1. {sentence} cache.resize(max_size=768 * KiB) Cache "
    )
    text = html.read_text()
    assert sentence in text
    assert text.index(sentence) < text.index("<section>")
    assert "<code>cache.resize(max_size=768 * KiB)</code>" in text


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part", [0.25, 0.5])
def test_the_advised_size_avoids_what_it_says(
    part: float, seed: int, tmp_path: Path, capsys: Capture
) -> None:
    """On applications that are not as regular, within a few per cent of all that is loaded again;
    of what is loaded soon, another part may be loaded soon then."""

    def read(config: CacheConfig) -> dict[str, Any]:
        path = run_on_jumping_clock(plan, config).log.write(tmp_path / "log")
        return run_command(capsys, "report", "--json", "--thrash-seconds", "inf", path).document

    plan = steady_plan(seed, 4, 200)
    whole = sum(function.pages + 1 for function in plan.functions) * PAGE
    config = CacheConfig(max_size=int(whole * part), idle_timeout=math.inf)
    finding = of_kind("too_small", read(config))
    after = read(evolve(config, **pasted(finding)))["caches"][0]["thrash"]["count"]
    avoided = 1 - after / finding["evidence"]["loaded_again"]
    assert avoided == pytest.approx(finding["evidence"]["avoided_part"], abs=0.08)
    assert avoided > 0.7


def test_no_size_is_advised_where_none_helps(read: Any) -> None:
    """What goes for size would have gone for its idleness anyway."""
    plan = in_turn(6, 12, 0.5)  # each is used every 6.6 seconds
    config = CacheConfig(max_size=4 * PAGE, max_instance_size=8 * PAGE, idle_timeout=3)
    small = of_kind("too_small", read(plan, config))
    assert small["evidence"]["advised"] is None
    assert "would have" not in small["sentence"]
    assert re.fullmatch(
        r"python -m trio_wasmcache tune \S+/log --target-hit-rate 0.95", small["paste"]
    )


def test_what_tune_needs_comes_first(tmp_path: Path, capsys: Capture) -> None:
    """A log without leases is no log for `tune`."""
    log = Log()
    log.opened()
    log.lines[0]["log_uses"] = False
    for number in range(20):  # each was idle for so long that no size would have kept it
        log.evicted(1 + number, idle_seconds=60.0)
        log.loaded(1.5 + number)
    finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
    assert (finding["kind"], finding["paste"]) == ("too_small", "CacheConfig(log_uses=True)")


def test_a_function_that_is_never_kept(read: Any) -> None:
    """The advised limits keep it, also if it would not fit into the cache."""
    large = FunctionPlan("large", 40, PAGE, 1, 0.0, load=0.5)
    small = FunctionPlan("small", 1, PAGE, 1, 0.0, load=0.5)
    uses = tuple(Use(0.1, n % 2, None, math.inf, 0.1) for n in range(40))
    plan = Plan((large, small), (), ((0.0, uses),))
    for config in (
        CacheConfig(max_instance_size=8 * PAGE),
        CacheConfig(max_instance_size=8 * PAGE, max_size=10 * PAGE),
    ):
        finding = only(read(plan, config))
        assert finding["kind"] == "never_kept"
        assert finding["sentence"].startswith(
            "large(i64) is never kept: 20 of its instances were dropped, as they take up to "
            "2.6 MiB, more than max_instance_size = 512.0 KiB; loading took 10.0 s of 10.5 s."
        )
        nothing(read(plan, evolve(config, **pasted(finding))))
    plan = evolve(plan, functions=(evolve(large, isolation="reset"), small))  # it leaves seats
    finding = only(read(plan, CacheConfig(max_instance_size=8 * PAGE)))
    assert finding["evidence"]["dropped"] == 20
    nothing(read(plan, evolve(CacheConfig(), **pasted(finding))))


def test_resets_in_vain(tmp_path: Path, capsys: Capture) -> None:
    """With and without leases in the log; of a function that is hardly used, nothing."""
    vain = make(Overgrown, **named("f"), leases=13, growths=12)
    log = Log()
    log.opened()
    log.loaded(1)
    for number in range(30):
        log.acquired(2 + number, hit=number > 0)
    nothing(run_report(capsys, log.write(tmp_path / "log")).document)
    log.add(40, vain)
    finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
    assert finding["kind"] == "resets_in_vain"
    assert finding["sentence"].startswith(
        "f(i64) was reset in vain: its instances had grown in 12 of 13 leases, so every lease gets "
    )
    assert pasted(finding) == {"isolation": "fresh", "replace": True}
    assert finding["part"] == 1.0
    log.add(41, make(Overgrown, **named("g"), leases=30, growths=29))
    finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
    assert finding["sentence"].startswith("f(i64) was reset in vain, and so was 1 other function: ")
    assert finding["evidence"]["functions"] == 2
    for number in range(2000):
        log.acquired(50 + number, hit=True, function="h")
    nothing(run_report(capsys, log.write(tmp_path / "log")).document)
    log = Log()
    log.opened()
    for number in range(20):
        log.loaded(1 + number)
    log.add(40, vain)
    assert only(run_report(capsys, log.write(tmp_path / "log")).document)["part"] == 13 / 20


def named(function: str) -> dict[str, Any]:
    """The fields that name a function."""
    return {field: use(function)[field] for field in ("function", "arg_types")}


def crowd(capacity: int | None, concurrency: int) -> Plan:
    """Four tasks of a group, each of which uses the same function most of the time."""
    uses = tuple(Use(0.1, 0, "web", math.inf, 0.5) for _ in range(10))
    function = FunctionPlan("f", 1, PAGE, concurrency, 0.0)
    return Plan((function,), (("web", capacity),), tuple((n / 100, uses) for n in range(4)))


def test_a_group_that_waits_for_tokens(read: Any) -> None:
    """With the advised capacity nobody waits."""
    finding = only(read(crowd(2, 4), CacheConfig()))
    assert finding["kind"] == "waits_for_tokens"
    assert re.match(
        r"Group web waits for tokens: \d+ of 40 acquires \(\d+\.\d %\) waited for its 2 tokens, "
        r"\d+\.\d s altogether, up to 2 at the same time\.$",
        finding["sentence"],
    )
    assert finding["paste"] == 'cache.scheduling_group("web", ..., capacity=4)'
    nothing(read(crowd(pasted(finding)["capacity"], 4), CacheConfig()))


def test_the_advised_capacity_is_for_the_longest_queue(tmp_path: Path, capsys: Capture) -> None:
    """However short it was at the end; and a resize counts."""
    log = Log()
    log.opened()
    for event in (GroupOpened, GroupResized):
        log.add(0, make(event, group="web", capacity_tokens=1 if event is GroupOpened else 2))
    task = 0
    for waiting in (1, 3, 2, 1):
        for number in range(waiting):
            known = {**use("web/f"), "request": None, "task": task + number}
            del known["instance"]
            log.add(1 + task, make(Blocked, **known, waits_for="a token"))
        for number in range(waiting):
            log.requested(2 + task, task + number, "web/f", task=task + number, blocked=True)
            log.acquired(2 + task, True, "web/f", request=task + number)
        task += waiting
    finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
    assert (finding["evidence"]["waits"], finding["evidence"]["wait_seconds"]) == (7, 7.0)
    assert finding["paste"] == 'cache.scheduling_group("web", ..., capacity=5)'


def test_a_function_with_too_few_instances(read: Any) -> None:
    """Likewise with the advised concurrency."""
    finding = only(read(crowd(None, 1), CacheConfig()))
    assert finding["kind"] == "waits_for_instances"
    assert re.match(
        r"f\(i64\) has too few instances in group web: \d+ of 40 leases \(\d+\.\d %\) waited for "
        r"the only one, \d+\.\d s altogether, up to 3 at the same time\.$",
        finding["sentence"],
    )
    assert finding["paste"] == 'await cache.register("f", ..., concurrency=4, replace=True)'
    nothing(read(crowd(None, pasted(finding)["concurrency"]), CacheConfig()))


def neighbours(rounds: int, functions: int) -> Plan:
    """A group that uses three functions each second, and one that uses others all the time."""
    plans = tuple(
        FunctionPlan(f"f{number}", 1, PAGE, 1, 0.0, load=0.01) for number in range(3 + functions)
    )
    quiet = tuple(Use(0.99, n % 3, "quiet", math.inf, 0.01) for n in range(3 * rounds))
    busy = tuple(Use(0.01, 3 + n % functions, "noisy", math.inf, 0.01) for n in range(100 * rounds))
    return Plan(plans, (("quiet", None), ("noisy", None)), ((0.0, quiet), (0.005, busy)))


def test_one_tenant_against_another(read: Any) -> None:
    """One that flushes another's instances; what it does to itself is its own affair."""
    config = CacheConfig(max_size=16 * PAGE, max_instance_size=4 * PAGE, idle_timeout=60)
    document = read(neighbours(12, 20), config)
    finding = of_kind("tenant_against_tenant", document)
    assert re.match(
        r"Group noisy evicts group quiet: \d+ of its instances went for the need of noisy, and "
        r"\d+ were loaded again within 10 s of going, in \d+ ms, for \d+\.\d % of its 36 leases\.$",
        finding["sentence"],
    )
    assert finding["paste"] == 'cache.scheduling_group("quiet", ..., reserved_size=384 * KiB)'
    mended = evolve(neighbours(12, 20), group_limits={"quiet": pasted(finding)})
    kinds = {one["kind"] for one in read(mended, config)["findings"]}
    assert kinds == {"too_small"}  # for the other, still
    # Both are as large, and suffer as much from each other: then the cache is too small for both.
    both = neighbours(12, 3)
    busy = tuple(evolve(use, rest=0.99, hold=0.01) for use in both.tasks[1][1][:36])
    both = evolve(both, tasks=(both.tasks[0], (0.005, busy)))
    document = read(both, evolve(config, max_size=6 * PAGE))
    groups = {row["group"]: row["thrashed"] for row in document["caches"][0]["groups"]}
    assert min(groups["quiet"], groups["noisy"]) > 20
    assert only(document)["kind"] == "too_small"
    nothing(read(neighbours(12, 3), config))


def test_a_group_whose_own_limit_is_too_small(read: Any) -> None:
    """The limit to raise is that of the group."""
    uses = tuple(Use(0.1, n % 6, "web", math.inf, 0.1) for n in range(72))
    plan = evolve(in_turn(6, 1, 0.1), groups=(("web", None),), tasks=((0.0, uses),))
    config = CacheConfig(max_instance_size=2 * PAGE, idle_timeout=60)
    finding = only(read(evolve(plan, group_limits={"web": {"max_size": 8 * PAGE}}), config))
    assert finding["kind"] == "group_too_small"
    assert finding["sentence"] == (
        "Group web is too small: its own limit evicted instances of which 66 were loaded again "
        "within 10 s of going, in 33.0 s of 36.0 s spent loading; max_size = 768 * KiB would have "
        "avoided about 100 % of these loads."
    )
    assert finding["paste"] == 'cache.scheduling_group("web", ..., max_size=768 * KiB)'
    nothing(read(evolve(plan, group_limits={"web": pasted(finding)}), config))


@pytest.mark.parametrize("uses", [True, False])
@pytest.mark.parametrize("group", ["web", "main"])
def test_a_group_that_waits_for_cpu_time(
    group: str, uses: bool, tmp_path: Path, capsys: Capture
) -> None:
    """Much of the time of its leases, or of the log; a tenth of it is healthy."""

    def report_on(waited: float) -> dict[str, Any]:
        log = Log()
        log.opened()
        if uses:
            log.loaded(0, f"{group}/f")
            log.acquired(0, True, f"{group}/f")
        for number in range(10):
            known = {"group": group, "cpu_limit_cores": 0.1, "waiting": number % 4}
            log.add(number + 1, make(Throttled, **known, waits=2, wait_seconds=waited))
        if uses:
            log.recycled(10, f"{group}/f", held_seconds=10.0)
        ran = run_report(capsys, log.write(tmp_path / "log"))
        assert (ran.status, ran.err) == (0, "")
        return ran.document

    nothing(report_on(0.09))
    document = report_on(0.75)
    finding = only(document)
    assert finding["kind"] == "throttled"
    of = "for which its leases were held" if uses else "of the log"
    assert finding["sentence"] == (
        f"Calls of group {group} wait for CPU time: by its cpu_limit of 0.1 cores, 20 waits took "
        f"7.5 s, 75.0 % of the 10.0 s {of}."
    )
    assert finding["paste"] == (
        "CacheConfig(main_cpu_limit=0.4)" if group == "main" else "group.resize(cpu_limit=0.4)"
    )
    assert finding["evidence"]["held_seconds"] == (10.0 if uses else None)
    row = {"group": group, "cpu_limit_cores": 0.1, "waits": 20, "wait_seconds": 7.5, "at_once": 3}
    assert document["caches"][0]["throttled"] == [row]
    page = tmp_path / "page.html"
    text = run_command(capsys, "report", "--html", page, tmp_path / "log").out
    assert re.search(
        rf"Waits for the cpu_limit of a group\ngroup .*\n{group} +0\.1 +20 +7\.5 s +3", text
    )
    assert "Waits for the cpu_limit of a group" in page.read_text()


def test_the_last_words_of_a_guest_are_in_the_finding(tmp_path: Path, capsys: Capture) -> None:
    """Those of the end of the lease, which the eviction behind it has not; on one line, cut."""
    log = Log()
    log.opened()
    for number in range(6):
        log.acquired(number, request=number)
        words = "unreachable; its last output:\n    panicked at\n  score.rs:9:5" + 400 * "!"
        log.recycled(number, request=number, error="TrapError", error_message=words, kept=False)
        if number == 5:  # of another group
            log.recycled(number, "b/f", error="HostError", error_message="no", kept=False)
        log.evicted(number, Reason.CORRUPTED, error="TrapError")
    ran = run_report(capsys, log.write(tmp_path / "log"))
    (finding,) = [it for it in ran.document["findings"] if it["kind"] == "guests_fail"]
    said = "the error was TrapError: unreachable; its last output: panicked at score.rs:9:5!!!"
    assert said in finding["sentence"]
    assert finding["sentence"].endswith("!….")
    assert finding["evidence"]["error_message"].startswith("unreachable; its last output:\n    pan")
    # An eviction for another error has not these words.
    log.recycled(9, error="TrapError", error_message="stale", kept=False)
    log.evicted(9, Reason.CORRUPTED, error="HostError")
    (finding,) = run_report(capsys, log.write(tmp_path / "log")).document["findings"]
    assert "stale" not in finding["sentence"]
    assert finding["evidence"]["error_message"] is None


def test_guests_that_fail(read: Any) -> None:
    """By the function that fails most, whether its calls fail or its loads."""
    plan = in_turn(3, 20, 0.1)
    first, *others = plan.functions
    traps = evolve(plan, functions=(evolve(first, traps=True), *others))
    finding = only(read(traps, CacheConfig()))
    assert finding["kind"] == "guests_fail"
    assert finding["sentence"] == (
        "f0(i64) fails: 20 of 20 leases ended with a failed call; the error was TrapError: wasm "
        "trap: unreachable."
    )
    assert finding["paste"].endswith("log --where function=f0 --where error=TrapError")
    assert finding["evidence"]["error_message"] == "wasm trap: unreachable"
    # Every other load fails, and then there is no lease.
    flaky = evolve(plan, functions=(evolve(first, flaky=True, traps=True), *others))
    finding = only(read(flaky, CacheConfig(idle_timeout=60)))
    assert re.match(
        r"f0\(i64\) fails: \d+ of \d+ leases ended with a failed call and \d+ loads failed "
        r"\((TrapError|LoadError) \d+, (TrapError|LoadError) \d+\); the last error was \w+",
        finding["sentence"],
    )
    nothing(read(plan, CacheConfig()))


@pytest.mark.parametrize("kind", ["call", "load", "old", "control", "long"])
def test_the_command_shows_the_failures(tmp_path: Path, capsys: Capture, kind: str) -> None:
    """All of them, of calls or of loads, and in logs that do not name the error; and no others."""
    error = {"old": None, "control": "\x1b[2JError", "long": "E" * 5000}.get(kind, "KeyError")
    name = "\x1b[2Jf" if kind == "control" else "f"
    log, failures = Log(), set()
    log.opened()
    for number in range(30):
        log.requested(number, number, name)
        if kind == "load" and number % 3:
            fields = {**use(name), "request": number, "instance": number}
            log.add(number, make(Failed, **fields, error="KeyError"))
        else:
            log.loaded(number, name, request=number, instance=number)
            log.acquired(number, False, name, request=number, instance=number)
            log.recycled(number, name, request=number, instance=number, error=error, kept=False)
            log.evicted(number, Reason.CORRUPTED, name, instance=number, error=error)
        failures.add(len(log.lines))
        log.loaded(number, "other", request=100 + number, instance=100 + number)
    finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
    assert finding["kind"] == "guests_fail"
    assert finding["paste"].isprintable()
    command = shlex.split(finding["paste"])
    assert command[:3] == ["python", "-m", "trio_wasmcache"]
    ran = run_command(capsys, *command[3:], "--json")
    events = ran.document["events"]
    assert failures <= {one["seq"] for one in events}
    assert {one["function"] for one in events} == {name}


def test_a_function_that_always_fails_is_named_however_seldom_it_is_used(read: Any) -> None:
    """But not one that fails now and then."""
    plan = in_turn(2, 1, 0.1)
    first, second = plan.functions
    uses = tuple(Use(0.01, int(n % 80 == 0), None, math.inf, 0.01) for n in range(480))
    rare = Plan((first, evolve(second, traps=True)), (), ((0.0, uses),))
    assert only(read(rare, CacheConfig()))["evidence"]["failed_leases"] == 6
    nothing(read(Plan((first, second), (), ((0.0, uses),)), CacheConfig()))


def test_the_limit_that_a_failing_guest_needs(tmp_path: Path, capsys: Capture) -> None:
    """By the last error."""
    for error, limit in (("FuelExhaustedError", " (total_fuel sets its limit)"), ("TrapError", "")):
        log = Log()
        log.opened()
        for number in range(20):
            log.acquired(1 + number, hit=False)
            log.evicted(2 + number, Reason.CORRUPTED, error=error)
        finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
        assert finding["paste"].endswith(f" --where error={error}")
        assert finding["sentence"].endswith(f"; the error was {error}{limit}.")


def test_a_batch_that_goes_on_is_no_failing_guest(tmp_path: Path, capsys: Capture) -> None:
    """Behind a row that fails, its instance is replaced, and the lease goes on as asked."""
    log = Log()
    log.opened()
    for number in range(20):
        log.acquired(1 + number)
        failed = {"error": "TrapError", "instance": number, "replaced_by": 1 + number}
        log.evicted(2 + number, Reason.CORRUPTED, **failed)
    log.evicted(30, Reason.CORRUPTED, error="TrapError", replaced_by=90, evictions=1000)
    nothing(run_report(capsys, log.write(tmp_path / "log")).document)
    for number in range(5):
        log.evicted(40 + number, Reason.CORRUPTED, error="TrapError")
    finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
    assert finding["evidence"]["failed_leases"] == 5


@pytest.mark.parametrize("loads", [False, True])
def test_a_caller_who_gives_up_is_no_failing_guest(
    loads: bool, tmp_path: Path, capsys: Capture
) -> None:
    """Neither while it calls nor while it loads; and it hides none of those that fail."""
    log = Log()
    log.opened()
    for number in range(20):
        log.acquired(1 + number)
        if loads:
            known = use("f") | {"error": "Cancelled", "error_message": "Cancelled"}
            log.add(2 + number, make(Failed, **known))
        else:
            log.evicted(2 + number, Reason.CORRUPTED, error="Cancelled")
    nothing(run_report(capsys, log.write(tmp_path / "log")).document)
    for number in range(5):
        log.evicted(30 + number, Reason.CORRUPTED, error="TrapError")
    finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
    assert finding["sentence"] == (
        "f(i64) fails: 5 of 20 leases ended with a failed call; the error was TrapError."
    )


@pytest.mark.parametrize(
    ("functions", "never", "fails"),
    [
        (1, "f0(i64) is never kept: ", "f0(i64) fails: "),
        (2, " (nor is 1 other function): ", " fails, and so does 1 other function: "),
        (3, " (nor are 2 other functions): ", " fails, and so do 2 other functions: "),
    ],
)
def test_one_other_function_or_several(
    functions: int, never: str, fails: str, tmp_path: Path, capsys: Capture
) -> None:
    """The verb has the number of its subject."""
    log = Log()
    log.opened()
    for number in range(20 * functions):
        name = f"f{number % functions}"
        log.acquired(2 * number, hit=False, function=name)
        log.evicted(2 * number + 1, Reason.OVERSIZED, name)
        log.evicted(2 * number + 1, Reason.CORRUPTED, name, error="TrapError")
    document = run_report(capsys, log.write(tmp_path / "log")).document
    assert never in of_kind("never_kept", document)["sentence"]
    assert fails in of_kind("guests_fail", document)["sentence"]


def test_a_log_that_loses_events(tmp_path: Path, capsys: Capture) -> None:
    """Lost events come first if they are many; a log without is not blamed."""
    log = Log()
    log.opened()
    log.loaded(1)
    for number in range(20):
        log.acquired(2 + number, hit=number > 0)
    nothing(run_report(capsys, log.write(tmp_path / "log")).document)
    log.lost(30, 100, len(log.lines) + 2)
    ran = run_report(capsys, log.write(tmp_path / "log"))
    finding = only(ran.document)
    assert finding["kind"] == "log_loses"
    assert finding["sentence"].startswith("The log lost 100 of 123 events, so all figures here")
    assert finding["paste"] == "CacheConfig(log_uses=False)"
    log.lines.pop()
    for line in log.lines[:5]:
        line["context_lost"] = True
    finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
    assert finding["sentence"].startswith("The log lost the context of 5 of 22 events:")


def test_the_worst_come_first_and_name_their_cache(tmp_path: Path, capsys: Capture) -> None:
    """Of several caches; there are five at most."""
    paths = []
    for number, (plan, config, _) in enumerate(EVICTING.values()):
        log = run_on_jumping_clock(plan, config).log
        paths.append(log.write(tmp_path / f"log {number}"))
    log = run_on_jumping_clock(crowd(2, 1), CacheConfig()).log
    paths.append(log.write(tmp_path / "more"))
    document = run_report(capsys, *paths).document
    findings = document["findings"]
    assert len(findings) == MOST
    parts = [finding["part"] for finding in findings]
    assert parts == sorted(parts, reverse=True)
    names = {cache["cache"] for cache in document["caches"]}
    for finding in findings:
        assert finding["cache"] in names
        assert finding["sentence"].startswith(f"Cache {finding['cache']}: ")
        assert finding["label"] == ""
    named = Log()
    named.lines = [{**json.loads(str(line)), "label": "web-7"} for line in log.lines]
    document = run_report(capsys, *paths[:2], named.write(tmp_path / "more")).document
    (finding,) = (it for it in document["findings"] if it["kind"] == "waits_for_instances")
    assert finding["sentence"].startswith(f"Cache {finding['cache']} web-7: ")
    assert finding["label"] == "web-7"
    healthy = [
        run_on_jumping_clock(in_turn(3, 100, 0.1), CacheConfig()).log.write(tmp_path / name)
        for name in ("a", "b")
    ]
    said = nothing(run_report(capsys, *healthy).document)
    assert said == "Nothing to do in 2 caches: 99.0 % hits of 600 leases, no thrash."


def test_a_log_without_uses(tmp_path: Path, capsys: Capture) -> None:
    """Evictions and loads suffice for limits; hits are the cache's own count, if it was closed."""
    plan, config, _ = EVICTING["too_small"]
    log = run_on_jumping_clock(plan, config).log
    told = ("requested", "blocked", "acquired", "recycled", "abandoned", "left")
    log.lines = [
        line for line in log.lines if not re.search(rf'wasmcache\.({"|".join(told)})"', line)
    ]
    finding = only(run_report(capsys, log.write(tmp_path / "log")).document)
    assert finding["evidence"]["advised"] == 12 * PAGE
    ran = run_report(capsys, Log().write(tmp_path / "log"))
    assert ran.status == 2
    quiet = Log()
    quiet.opened()
    quiet.loaded(1)
    assert nothing(run_report(capsys, quiet.write(tmp_path / "log")).document) == (
        "Nothing to do: 1 load where leases are not in the log, no thrash."
    )


@pytest.mark.parametrize(("leases", "again"), [(1000, 19), (100, 4)])
def test_a_little_thrash_is_nothing_to_do(
    leases: int, again: int, tmp_path: Path, capsys: Capture
) -> None:
    """Less than 2 % of the leases, or fewer than five loads; one more is worth a sentence."""
    for more, told in ((0, f"{again} loads soon after an eviction"), (1, None)):
        log = Log()
        log.opened()
        for _ in range(leases):
            log.acquired(1)
        for number in range(again + more):
            log.evicted(2 + number)
            log.loaded(2.5 + number)
        document = run_report(capsys, log.write(tmp_path / "log")).document
        if told is None:
            assert only(document)["kind"] == "too_small"
        else:
            assert nothing(document) == f"Nothing to do: 100.0 % hits of {leases:,} leases, {told}."


def check(ran: Ran) -> None:
    """Findings are few, and what they say to paste is Python or a command of this tool."""
    findings = ran.document["findings"]
    assert len(findings) <= MOST
    assert (ran.document["verdict"] is None) == bool(findings)
    for finding in findings:
        assert finding["kind"] in KINDS
        assert finding["sentence"].isprintable()
        assert finding["paste"].isprintable()
        assert 0 < finding["part"] <= 1
        if not finding["paste"].startswith("python -m trio_wasmcache "):
            ast.parse(re.sub("^await ", "", finding["paste"]), mode="eval")


@pytest.mark.parametrize("seed", range(12))
def test_wild_logs(seed: int, tmp_path: Path, capsys: Capture) -> None:
    """Whatever an application does."""
    outcome = run_on_jumping_clock(wild_plan(random.Random(seed)), draw_config(random.Random(seed)))
    check(run_report(capsys, outcome.log.write(tmp_path / "log")))
    lines = outcome.log.lines
    outcome.log.lines = lines[len(lines) // 2 :]  # its beginning is missing, with all limits
    check(run_report(capsys, outcome.log.write(tmp_path / "log")))


@pytest.mark.parametrize("name", ["f", 'a"b', "a\\b", HOSTILE, "f LOG... g"])
def test_names_from_the_log_do_nothing(name: str, tmp_path: Path, capsys: Capture) -> None:
    """Neither in a sentence nor in a line to paste."""
    log = full_log(name)
    for number in range(20):
        log.evicted(300 + number, [*Reason][number % len(Reason)], name)
        log.loaded(301 + number, name, 5.0)
    check(run_report(capsys, log.write(tmp_path / "log")))
    ran = run_command(capsys, "report", tmp_path / "log")
    assert all(letter.isprintable() or letter == "\n" for letter in ran.out)
    check(run_report(capsys, busy_log().write(tmp_path / "log")))


@pytest.mark.parametrize("name", ["k" * 150, "k" * 495, "k" * 499, "\x1b" * 90, '[b]"'])
def test_a_line_to_paste_is_whole(name: str, tmp_path: Path, capsys: Capture) -> None:
    """However long a name is: it is left out, or there with all of its characters."""
    log = Log(name)
    log.opened()
    for number in range(20):
        log.requested(number, number, name)
        known = {**use(name), "request": number, "task": number, "waits_for": "an instance"}
        del known["instance"]
        log.add(number, make(Blocked, **known))
        log.acquired(number + 0.1, False, name, request=number, instance=number)
        log.recycled(number + 0.2, name, request=number, instance=number, error="TrapError")
        log.evicted(number + 0.3, Reason.CORRUPTED, name, instance=number, error="TrapError")
    other = busy_log()
    (tmp_path / "log").write_text(log.text() + other.text())
    ran = run_report(capsys, tmp_path / "log")
    check(ran)
    shown = "".join(run_command(capsys, "report", tmp_path / "log").out.split())
    pasted = [finding["paste"] for finding in ran.document["findings"]]
    assert any(paste.startswith("await") for paste in pasted)
    for paste in pasted:
        assert "…" not in paste
        assert "".join(paste.split()) in shown
        if paste.startswith("python"):
            again = run_command(capsys, *shlex.split(paste)[3:])
            assert (again.status, again.err) == (0, "")
        elif paste.startswith("await"):
            function = ast.parse(paste.removeprefix("await "), mode="eval").body.args[0]
            assert ast.literal_eval(function) in (name, ...)


# -- what a limit would have to be


def test_needs_are_those_of_a_larger_cache() -> None:
    """Against a plain list of what went, latest first."""
    draw = random.Random(7)
    ghosts, plain = Ghosts(), []
    for _ in range(5000):
        if plain and draw.random() < 0.45:
            place = draw.randrange(len(plain))
            number, weight = plain[place]
            depth = weight + sum(other for _, other in plain[:place])
            assert ghosts.take(number) == depth
            del plain[place]
        else:
            weight = draw.randrange(100)
            plain.insert(0, (ghosts.put(weight), weight))
    assert ghosts.take(10**6) == math.inf


def test_only_the_latest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many went and never came back."""
    monkeypatch.setattr(wanted_module, "MAX_GHOSTS", 100)
    ghosts = Ghosts()
    numbers = [ghosts.put(1) for _ in range(5000)]
    assert len(ghosts._places) <= 300
    assert ghosts.take(numbers[0]) == math.inf
    assert ghosts.take(numbers[-1]) == 1


def test_the_least_that_helps() -> None:
    """To 5 %, and never too little; needs that nothing meets count as not avoided."""
    wanted = Wanted()
    for need in (100, 200, 300, 400, math.inf):
        wanted.add(need, 1.0)
    assert (wanted.count, wanted.seconds) == (5, 5.0)
    for part, need in ((0.2, 100), (0.4, 200), (0.8, 400)):
        least = wanted.least(part)
        assert least is not None
        assert need <= least <= need * 1.05
        assert wanted.part(least) == pytest.approx(part)
    assert wanted.least(0.9) is None
    assert wanted.part(math.inf) == pytest.approx(0.8)
