"""What the curve says, and what is advised by it."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from attrs import evolve
from report.tuning.test_tuning import CONFIG, MiB, tuned
from report.workloads import PAGE, Plan, in_turn, run_on_jumping_clock

from trio_wasmcache._engine.wasmtime.reservations import ADDRESS_SPACE, SHARE
from trio_wasmcache.report.tuning.advice import (
    SYSTEM_LIMIT,
    Advice,
    advise,
    in_source,
)
from trio_wasmcache.report.tuning.curve import Curve
from trio_wasmcache.report.tuning.search import Question, Search, round_up
from trio_wasmcache.report.tuning.trials import Trials
from trio_wasmcache.report.whatif.results import Result


def curve_of(needs: list[tuple[int, float]], leases: int, smallest: int = 1) -> Curve:
    """A curve where so many more are hits at each size, and save so many seconds."""
    frame = pl.DataFrame(
        {
            "size": [size for size, _ in needs],
            "hits": list(range(1, len(needs) + 1)),
            "load_seconds": pl.Series([saved for _, saved in needs], dtype=pl.Float64).cum_sum(),
        }
    )
    return Curve(leases, smallest, math.inf, frame, 10.0)


def test_a_curve_tells_hits_and_what_loads_cost() -> None:
    """A step at each size that some lease needs; what is saved is no longer spent."""
    curve = curve_of([(10, 1.0), (20, 2.0), (40, 3.0)], leases=4)
    assert [curve.at(size).hit_rate for size in (9, 10, 19, 20, 40, 99)] == [
        *(0.0, 0.25, 0.25, 0.5, 0.75, 0.75)
    ]
    assert [curve.at(size).load_seconds for size in (9, 10, 20, 40)] == [10.0, 9.0, 7.0, 4.0]
    assert (curve.largest, curve.best.hit_rate) == (40, 0.75)
    assert [curve.smallest_for(rate) for rate in (0.0, 0.1, 0.25, 0.3, 0.75, 0.76)] == [
        *(10, 10, 10, 20, 40, None)
    ]
    points = curve.points(also=[33])
    assert (points[0].max_size, points[-1].max_size) == (1, 40)
    assert 33 in [point.max_size for point in points]


def test_the_knee_is_where_more_begins_to_buy_less() -> None:
    """Nine hits for the first bytes, one for ten times as many."""
    steep = [(10 + number, 0.0) for number in range(9)]
    assert curve_of([*steep, (200, 0.0)], leases=20).knee() == 18
    assert curve_of([(5, 0.0)], leases=2, smallest=5).knee() == 5
    assert curve_of([], leases=2, smallest=7).knee() == 7


def test_a_curve_without_hits() -> None:
    """Nothing is reached but nothing; no size is of use."""
    curve = curve_of([], leases=3, smallest=8)
    assert curve.at(100).hit_rate == 0.0
    assert (curve.smallest_for(0.0), curve.smallest_for(0.1)) == (8, None)
    assert curve.largest == 8


def search_in(plan: Plan, question: Question, **limits: Any) -> Search:
    config = evolve(CONFIG, **limits)
    tuner = tuned(run_on_jumping_clock(plan, config).log.events)
    return Search(tuner, question, Trials([tuner.trace.packed()]))


def advice_for(plan: Plan, target: float, **limits: Any) -> Any:
    search = search_in(plan, Question(target), **limits)
    advice = advise(search)
    return search.curve, advice


def test_a_size_that_reaches_the_target() -> None:
    """Four functions in turn need four instances at a time, and five where one is just back."""
    curve, advice = advice_for(in_turn(4, 10, 0.25), 0.9, max_size=3 * PAGE)
    assert advice.max_size == curve.smallest_for(0.9) == 8 * PAGE
    assert advice.sentence == (
        "max_size = 512 * KiB reaches a hit rate of 90 %: 90.0 % "
        "(the log has 0.0 % with 192 * KiB)."
    )
    assert advice.line == "CacheConfig(max_size=512 * KiB, idle_timeout=5)"
    assert advice.verdict is None
    assert curve.at(advice.max_size - 1).hit_rate == 0.0
    # Forty loads of half a second each, as against four.
    assert curve.at(PAGE).load_seconds == pytest.approx(20.0)
    assert curve.at(advice.max_size).load_seconds == pytest.approx(2.0)


def test_a_timeout_that_no_size_makes_up_for() -> None:
    """Then a longer one is advised, with the size that goes with it."""
    curve, advice = advice_for(in_turn(2, 10, 4.0), 0.9, idle_timeout=1.0, max_size=MiB)
    assert (advice.idle_timeout, advice.max_size) == (10.0, 4 * PAGE)
    assert "No size reaches 90 % while idle instances go after 1 s; idle_timeout = 10" in (
        advice.sentence
    )
    assert curve.timeout == 10.0
    assert advice.hit_rate == 0.9


def test_a_target_that_nothing_reaches() -> None:
    """The first load of each function can't be a hit."""
    curve, advice = advice_for(in_turn(2, 2, 0.1), 0.99)
    assert "Nothing reaches 99 %: first loads" in advice.sentence
    assert "leave 50.0 % at best" in advice.sentence
    assert advice.max_size == round_up(curve.largest)


def test_the_line_keeps_what_else_was_set() -> None:
    """Limits that are not as by default, so that pasting it loses none."""
    _, advice = advice_for(
        in_turn(2, 2, 0.1), 0.5, max_instances=7, max_code_size=3 * MiB, idle_timeout=math.inf
    )
    assert advice.line == (
        "CacheConfig(max_size=256 * KiB, max_instances=7, max_code_size=3 * MiB, "
        "idle_timeout=math.inf)"
    )


def test_the_line_has_no_limit_that_is_the_system_s() -> None:
    """A cache that is given none logs what it worked out, which is of one machine."""
    part, whole = SHARE
    assert ("max_address_space", ADDRESS_SPACE * part // whole) == SYSTEM_LIMIT
    _, advice = advice_for(in_turn(2, 2, 0.1), 0.5, **dict([SYSTEM_LIMIT]))
    assert "max_address_space" not in advice.line
    _, advice = advice_for(in_turn(2, 2, 0.1), 0.5, max_address_space=2**40)
    assert f"max_address_space={2**40}" in advice.line


@pytest.mark.parametrize(
    ("checked", "told"),
    [
        ({"hits": 9, "misses": 1}, None),
        ({"hits": 5, "misses": 5, "evictions": {"size": 4}}, None),
        (
            {"hits": 5, "misses": 5, "evictions": {"code": 2, "stack": 3, "count": 9, "idle": 1}},
            "It is limited by max_instances (9 times) and max_code_size (5 times): `whatif`",
        ),
        (
            {"hits": 1, "misses": 1, "refused": 2, "evictions": {"stack": 1}},
            "It refuses 2 acquires. It is limited by max_code_size (1 time)",
        ),
        ({"hits": 1, "misses": 1, "evictions": {"oversized": 2}}, "max_instance_size (2 times)"),
    ],
)
def test_the_policy_has_the_last_word(checked: dict[str, Any], told: str | None) -> None:
    """Where it does not reach what the curve promises, the limits that it met are named."""
    advice = Advice("", {"max_size": MiB, "idle_timeout": 5.0}, 0.9)
    advice.checked = Result({}, peak_size=MiB, **checked)
    verdict = advice.verdict
    assert verdict is not None
    assert "1.0 MiB idle at most" in verdict
    assert ("It is limited by" in verdict) == (told is not None)
    assert told is None or told in verdict


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("max_size", 64 * MiB, "64 * MiB"),
        ("max_size", 192 * 1024, "192 * KiB"),
        ("max_size", 1000, "1000"),
        ("max_size", 0, "0"),
        ("max_instances", 1024, "1024"),
        ("idle_timeout", 2.5, "2.5"),
        ("idle_timeout", math.inf, "math.inf"),
        ("policy", "gdsf", '"gdsf"'),
    ],
)
def test_limits_as_one_would_write_them(name: str, value: float | str, written: str) -> None:
    """Units where they come out even."""
    assert in_source(name, value) == written


def test_sizes_are_rounded_up_to_what_one_would_write() -> None:
    """Whole pages, and from 16 MiB on whole MiB."""
    sizes = (0, 1, PAGE, PAGE + 1, 16 * MiB, 16 * MiB + 1)
    assert [round_up(size) for size in sizes] == [*(PAGE, PAGE, PAGE, 2 * PAGE, 16 * MiB, 17 * MiB)]
