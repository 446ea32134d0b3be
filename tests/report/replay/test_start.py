"""A log that has lost its beginning: it is replayed from the first snapshot that is all there."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings, strategies as st
from report.logs import text_of
from report.workloads import (
    CoarseRandom,
    calm_plan,
    draw_config,
    run_on_jumping_clock,
    steady_plan,
    tiered,
    wild_plan,
)

from trio_wasmcache import CacheConfig
from trio_wasmcache._core.events import Stamped
from trio_wasmcache._core.policy import copying
from trio_wasmcache._core.snapshot import SnapshotPart
from trio_wasmcache.report.cli.commands import run
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay import start
from trio_wasmcache.report.replay.replay import Replay
from trio_wasmcache.report.replay.start import NotReplayable
from trio_wasmcache.report.tuning.tuning import Tuner
from trio_wasmcache.report.whatif.tasks import Recorder
from trio_wasmcache.report.whatif.whatif import WhatIf

Lines = list[dict[str, Any]]


def events_of(lines: Lines) -> list[Stamped]:
    return [make_event(line) for line in lines]


def is_part(event: Stamped) -> bool:
    return isinstance(event.event, SnapshotPart)


def instants(events: list[Stamped]) -> list[int]:
    """The event before each snapshot."""
    found = {it.event.at_seq for it in events if isinstance(it.event, SnapshotPart)}
    return sorted(found)


def replayed(events: list[Stamped]) -> tuple[Replay, list[tuple[int, str, int]]]:
    evicted: list[tuple[int, str, int]] = []
    replay = Replay(
        evicted=lambda it: evicted.append((it.instance, it.reason.value, it.freed_bytes))
    )
    for event in events:
        replay.feed(event)
    replay.start.check()
    replay.finish()
    return replay, evicted


def logged(events: list[Stamped], after: int) -> list[tuple[int, str, int]]:
    return [
        (it.event.instance, it.event.reason.value, it.event.freed_bytes)  # type: ignore[attr-defined]
        for it in events
        if it.event.name == "wasmcache.evicted" and it.seq > after
    ]


def check_all(events: list[Stamped], after: int) -> None:
    replay, evicted = replayed(events)
    assert replay.disagreements == []
    assert replay.complete
    assert replay.start.beginning is not None
    assert replay.start.beginning.seq == after
    opened = replay.start.beginning.whole is None
    assert replay.events == opened + len([it for it in events if it.seq > after])
    assert evicted == logged(events, after)


@settings(max_examples=max(10, settings().max_examples // 4))
@given(st.integers(0, 2**32), st.booleans())
def test_from_each_snapshot_on_the_log_agrees_event_for_event(seed: int, coarse: bool) -> None:
    """Whatever was held, waited for, being loaded, resized, replaced, removed or closed then."""
    random = CoarseRandom(seed) if coarse else Random(seed)
    config = evolve(draw_config(random), snapshot_interval=random.choice([0.2, 0.7, 2.0]))
    config = tiered(config) if seed % 2 else config
    events = events_of(run_on_jumping_clock(wild_plan(random), config).log.events)
    for after in instants(events):
        check_all([it for it in events if it.seq > after], after)


@functools.cache
def _long_log() -> str:
    config = CacheConfig(policy="cost", max_size=3 * 2**20, idle_timeout=3.0, snapshot_interval=5.0)
    plan = steady_plan(7, tasks=8, uses=25, functions=80)
    events = run_on_jumping_clock(plan, config).log.events
    assert any(it.get("parts", 1) > 2 for it in events)
    return json.dumps(events)


@pytest.fixture
def long_log() -> Lines:
    """A log with snapshots of several parts each."""
    lines: Lines = json.loads(_long_log())
    return lines


def mix(lines: Lines, random: Random, distance: int = 40) -> Lines:
    """The same log, written by a thread that is late with its snapshots: parts in any order."""
    found = [it for it in lines if it["event"] == "wasmcache.snapshot"]
    others = [it for it in lines if it["event"] != "wasmcache.snapshot"]
    at: dict[int, int] = {}
    for place, line in enumerate(others):
        at[line["seq"]] = place
    slots: dict[int, Lines] = {}
    random.shuffle(found)
    for part in found:
        first = max(place for seq, place in at.items() if seq <= part["at_seq"])
        last = min(first + distance, len(others) - 1)
        slots.setdefault(random.randint(first, last), []).append(part)
    mixed = []
    numbers = {0: 0}
    for place, line in enumerate(others):
        for one in (line, *slots.get(place, ())):
            mixed.append(one)
            numbers.setdefault(one["seq"], len(mixed))
    made = []
    for number, line in enumerate(mixed, 1):
        made.append({**line, "seq": number})
        if line["event"] == "wasmcache.snapshot":
            made[-1]["at_seq"] = numbers[line["at_seq"]]
    return made


def test_parts_come_late_and_in_any_order_between_other_events(long_log: Lines) -> None:
    """Also between a step and its evictions; all that followed their moment is replayed."""
    random = Random(3)
    for _ in range(3):
        lines = mix(long_log, random)
        events = events_of(lines)
        check_all(events, 1)  # from `opened` on, they are in nobody's way
        for after in instants(events)[:2]:
            check_all([it for it in events if it.seq > after], after)


def test_one_that_lacks_a_part_is_not_begun_with(long_log: Lines) -> None:
    """The next one is; without any, there is no beginning."""
    events = events_of(long_log)
    first, second, *_ = instants(events)
    for missing in (1, 2):
        rest = [
            it
            for it in events
            if it.seq > first
            and not (
                isinstance(it.event, SnapshotPart)
                and (it.event.at_seq, it.event.part) == (first, missing)
            )
        ]
        check_all(rest, second)
    with pytest.raises(NotReplayable, match="no snapshot after it is all there"):
        replayed([it for it in events if it.seq > 1 and not is_part(it)])


def test_one_whose_following_events_are_not_there_is_not_begun_with(long_log: Lines) -> None:
    """As where a file begins between its moment and its parts."""
    events = events_of(long_log)
    first, second, *_ = instants(events)
    late = events_of(mix(long_log, Random(5)))
    moments = instants(late)
    parts_at = [it.seq for it in late if is_part(it) and it.event.at_seq == moments[0]]  # type: ignore[attr-defined]
    cut = min(parts_at) - 1
    assert cut > moments[0] + 1
    check_all([it for it in late if it.seq > cut], moments[1])
    assert first < second


def test_damaged_ones_are_no_beginning(long_log: Lines) -> None:
    """What contradicts itself, or has an item that is none."""
    first = min(it["at_seq"] for it in long_log if it["event"] == "wasmcache.snapshot")
    events = events_of(long_log)
    second = instants(events)[1]
    resident = next(it for it in long_log if it.get("residents") and it["at_seq"] == first)
    resident["residents"][0]["group"] = "nowhere"
    check_all([it for it in events_of(long_log) if it.seq > first], second)
    resident["residents"][0]["size_bytes"] = "many"
    with pytest.raises(ValueError, match="size_bytes"):
        make_event(resident)


def test_no_more_than_so_many_events_are_held_back(
    long_log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log without a beginning takes no more memory than another."""
    monkeypatch.setattr(start, "MAX_HELD", 20)
    replay = Replay()
    for event in events_of(long_log)[1:]:
        if not is_part(event):
            replay.feed(event)
            assert replay.start.held.count <= 20
    with pytest.raises(NotReplayable):
        replay.start.check()


@settings(max_examples=max(10, settings().max_examples // 5))
@given(st.integers(0, 2**32))
def test_whatif_from_a_snapshot_on_does_what_the_log_did(seed: int) -> None:
    """For the applications for which it promises that, with leases, loads and waits under way.

    Each function must have been loaded, or its size and time of loading are not known.
    """
    random = Random(seed)
    config = evolve(draw_config(random), snapshot_interval=random.choice([0.7, 2.0]))
    config = tiered(config) if seed % 2 else config
    events = events_of(run_on_jumping_clock(calm_plan(random), config).log.events)
    for after in random.sample(instants(events), min(3, len(instants(events)))):
        rest = [it for it in events if it.seq > after]
        recorder, tuner = Recorder(), Tuner()
        for event in rest:
            recorder.feed(event)
            tuner.feed(event)
        made = recorder.made
        assert made is not None
        assert recorder.ignored == tuner.ignored == 0
        assert (tuner.leases, tuner.hits) == (made.leases, made.hits)
        asked = {name for program in made.programs.values() for name in names_in(program)}
        loaded = {
            (it.event.function, it.event.arg_types)  # type: ignore[attr-defined]
            for it in rest
            if it.event.name == "wasmcache.loaded"
        }
        if not asked <= loaded:
            continue
        evicted: list[tuple[str, int]] = []
        result = WhatIf(
            made,
            {},
            evicted=lambda it, into=evicted: into.append((it.reason.value, it.freed_bytes)),
        ).run()
        assert evicted == [(reason, size) for _, reason, size in logged(rest, after)]
        assert (result.hits, result.misses) == (made.hits, made.leases - made.hits)


def names_in(program: Any) -> set[tuple[str, str]]:
    return {item.name for item in program if hasattr(item, "name")}


def write(lines: Lines, path: Path) -> str:
    path.write_text(text_of(lines), encoding="utf-8")
    return str(path)


def test_all_commands_answer_from_a_rotated_log(
    long_log: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit status 0, of two caches in one stream, where it was 2 without snapshots."""
    other = [{**line, "cache": "beef0002", "label": "other"} for line in long_log]
    cut = len(long_log) // 3
    both = [line for pair in zip(long_log[cut:], other[cut + 9 :], strict=False) for line in pair]
    path = write(both, tmp_path / "rotated.jsonl")
    for command in (
        ["replay"],
        ["whatif", "--max-size", "2MiB"],
        ["tune", "--max-size", "2MiB"],
        ["report"],
    ):
        status = run([command[0], path, *command[1:]])
        out, err = capsys.readouterr()
        assert status == 0, err
        assert out
        assert "begins with event" in err
    assert run(["report", path, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    limits = [cache["limits"]["max_size_bytes"] for cache in document["caches"]]
    assert limits == [3 * 2**20] * 2
    assert run(["replay", path, "--json"]) == 0
    replays = json.loads(capsys.readouterr().out)
    assert "disagree" in str(replays)
    bare = [line for line in both if line["event"] != "wasmcache.snapshot"]
    path = write(bare, tmp_path / "bare.jsonl")
    assert run(["replay", path]) == 2
    assert run(["report", path]) == 1


def test_trials_from_a_snapshot_are_those_of_the_whole_log_at_its_end(long_log: Lines) -> None:
    """The curve counts the same hits as the log where its limits are the log's."""
    events = events_of(long_log)
    after = instants(events)[1]
    tuner = Tuner()
    for event in events:
        if event.seq > after:
            tuner.feed(event)
    # With room for all and no timeout, only first uses miss, and what was there is a hit.
    whole = Tuner()
    for event in events:
        whole.feed(event)
    assert tuner.leases < whole.leases
    needs = tuner.curve(float("inf"))
    assert needs.at(2**40).hit_rate >= tuner.hits / tuner.leases


def test_a_part_stays_below_a_line_of_a_mebibyte() -> None:
    """Whatever the names: letters of one part are bounded, too."""
    assert 10 * copying.MOST_LETTERS <= 2**20
