"""The search for a policy, a size and a timeout, and what is said of it."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import polars as pl
import pytest
from attrs import define, evolve
from hypothesis import given, strategies as st
from kits import tries
from report.tuning.test_advice import search_in
from report.tuning.test_tuning import MiB, tuned
from report.workloads import (
    PAGE,
    draw_config,
    in_turn,
    run_on_jumping_clock,
    steady_plan,
    wild_plan,
)

from trio_wasmcache.report.tuning.advice import advise, in_source
from trio_wasmcache.report.tuning.curve import Curve
from trio_wasmcache.report.tuning.search import POLICIES, Question, Search, round_up, steps
from trio_wasmcache.report.tuning.trace import Trace
from trio_wasmcache.report.tuning.trials import Trials

LRU = ("lru",)


@define
class Curved:
    """A tuner whose curve is given: {size: leases that are hits from there on}, of 1,000."""

    needs: dict[int, int]
    limits: Any
    leases: int = 1000
    hits: int = 0
    load_seconds: float = 0.0

    def curve(self, timeout: float) -> Curve:
        frame = pl.DataFrame(
            {"size": list(self.needs), "hits": list(self.needs.values())},
            schema={"size": pl.Int64, "hits": pl.Int64},
        ).with_columns(load_seconds=pl.col("hits").cast(pl.Float64))
        return Curve(self.leases, PAGE, timeout, frame, 1000.0)

    def timeout_for(self, hit_rate: float) -> float:
        return 1.0


def search_on(needs: dict[int, int], target: float) -> Search:
    limits = {"policy": "lru", "max_size": 20 * MiB, "idle_timeout": 5.0}
    tuner: Any = Curved(needs, limits)
    return Search(tuner, Question(target, policies=LRU), Trials([Trace()]))


# -- cliffs


def test_a_size_at_the_foot_of_a_cliff_is_not_advised() -> None:
    """2 % more bytes take 95.9 % to 99.4 %, and so are worth it though 95 % was asked for."""
    search = search_on({50 * MiB: 800, 100 * MiB: 959, 102 * MiB: 994, 300 * MiB: 995}, 0.95)
    advice = advise(search)
    assert advice.max_size == 102 * MiB
    assert advice.sentence == (
        "max_size = 102 * MiB reaches a hit rate of 95 %: 99.4 % (100 * MiB would do, but that "
        "little more takes it from 95.9 % to 99.4 %; the log has 0.0 % with 20 * MiB)."
    )


def test_a_cliff_in_two_steps_is_climbed() -> None:
    """By steps of 1 %; but not for ever: memory that is not asked for has to be little."""
    needs = {100 * MiB: 900, 104 * MiB: 950, 108 * MiB: 975, 113 * MiB: 988, 118 * MiB: 994}
    assert advise(search_on(needs, 0.9)).max_size == 109 * MiB


@pytest.mark.parametrize(
    "needs",
    [
        {100 * MiB: 959, 120 * MiB: 994},  # a cliff, but far off
        {100 * MiB: 959, 102 * MiB: 965, 300 * MiB: 994},  # a slope
        {100 * MiB: 998, 102 * MiB: 999},  # three quarters of nothing
    ],
)
def test_what_is_no_cliff(needs: dict[int, int]) -> None:
    """The smallest size that reaches the target is advised, as ever."""
    advice = advise(search_on(needs, 0.95))
    assert advice.max_size == 100 * MiB
    assert "would do" not in advice.sentence


# -- targets that nothing reaches


@tries(15)
@given(st.integers(0, 2**32))
def test_more_is_advised_for_more(seed: int) -> None:
    """Each target that can be reached is; for 1.0, whatever can be is, by a longer timeout too."""
    random = Random(seed)
    events = run_on_jumping_clock(wild_plan(random), draw_config(random)).log.events
    tuner = tuned(events)
    if not tuner.leases:
        return
    best = tuner.curve(math.inf).best.hit_rate
    found = {}
    for target in (0.3, 0.6, 0.8, 0.95, 1.0):
        for policies in (LRU, POLICIES):
            search = Search(
                tuner, Question(target, policies=policies), Trials([tuner.trace.packed()])
            )
            advice = advise(search)
            found[target, policies] = advice.hit_rate
            assert advice.hit_rate >= min(target, best) - 1e-9
            assert ("Nothing reaches" in advice.sentence) == (target > best)
    assert found[1.0, LRU] == max(found.values())
    assert found[1.0, POLICIES] == max(found.values())


def test_for_a_target_of_1_a_longer_timeout_is_tried() -> None:
    """It advised less than for 0.95, as it gave up before it tried one."""
    plan = in_turn(2, 40, 4.0)
    limits = {"idle_timeout": 1.0, "max_size": MiB}
    nearly = advise(search_in(plan, Question(0.95, policies=LRU), **limits))
    whole = advise(search_in(plan, Question(1.0, policies=LRU), **limits))
    assert nearly.hit_rate == whole.hit_rate == 0.975
    assert whole.idle_timeout == nearly.idle_timeout == 10.0
    assert whole.sentence.startswith(
        "Nothing reaches 100 %: first loads and corrupted instances alone leave 97.5 % at best; "
        "idle_timeout = 10 with max_size = 256 * KiB reaches 97.5 %"
    )


def test_a_timeout_that_needs_too_much_memory_is_not_kept() -> None:
    """It is just able to reach the target, if all is kept that long."""

    class Slow(Curved):
        def curve(self, timeout: float) -> Curve:
            needs = {30 * MiB: 900} if timeout > 5 else {200 * MiB: 900}
            return Curved(needs, self.limits).curve(timeout)

        def timeout_for(self, hit_rate: float) -> float:
            return 4.5

    search = search_on({}, 0.9)
    search.tuner = Slow({}, search.tuner.limits)  # type: ignore[assignment]
    advice = advise(search)
    assert (advice.idle_timeout, advice.max_size) == (10.0, 30 * MiB)
    assert advice.sentence.startswith("idle_timeout = 10 with max_size = 30 * MiB reaches")


# -- the knee


def test_the_knee_is_where_the_curve_flattens() -> None:
    """Not where it begins to: the slope up to 40 gains as much as all of memory on average."""
    needs = {at * MiB: 40 * at for at in range(1, 21)}
    needs |= {at * MiB: 800 + 9 * (at - 20) for at in range(21, 41)}
    needs |= {at * MiB: 980 + (at - 40) // 4 for at in range(41, 101)}
    tuner: Any = Curved(needs, {})
    assert tuner.curve(5.0).knee() == 40 * MiB


def test_the_knee_minds_no_last_straw() -> None:
    """One lease that needs a hundred times as much does not move it."""
    needs = {at * MiB: 40 * at for at in range(1, 21)} | {40 * MiB: 820, 60 * MiB: 830}
    tuner: Any = Curved(needs, {})
    with_straw: Any = Curved(needs | {6000 * MiB: 831}, {})
    assert tuner.curve(5.0).knee() == with_straw.curve(5.0).knee() == 20 * MiB


# -- the policies


PLAN = steady_plan(1, 3, 200)  # large functions and small ones, some used 30 times as often


def test_the_policy_that_needs_least_is_advised() -> None:
    """With what the policy in the log would need."""
    search = search_in(PLAN, Question(0.5), max_size=40 * PAGE)
    advice = advise(search)
    assert advice.policy == "gdsf"
    assert search.needs["lru"] == search.curve.smallest_for(0.5)
    assert round_up(search.needs["gdsf"]) == advice.max_size < 0.9 * search.needs["lru"]
    below = search.outcome("gdsf", int(0.98 * search.needs["gdsf"]))
    assert below.hit_rate < 0.5 <= advice.hit_rate
    lru, size = round_up(search.needs["lru"]) // 1024, advice.max_size // 1024
    logged = search.tuner.hits / search.tuner.leases
    assert advice.sentence == (
        f'policy = "gdsf" with max_size = {size} * KiB reaches a hit rate of 50 %: '
        f'{100 * advice.hit_rate:.1f} % ("lru" needs {lru} * KiB; '
        f"the log has {100 * logged:.1f} % with 2560 * KiB)."
    )
    assert advice.line == f'CacheConfig(policy="gdsf", max_size={size} * KiB, idle_timeout=5)'


def test_the_policy_of_the_log_is_kept_if_it_is_as_good() -> None:
    """Where everything fits, all are."""
    for present in POLICIES:
        question = Question(0.9)
        advice = advise(search_in(in_turn(4, 10, 0.25), question, max_size=MiB, policy=present))
        assert advice.policy == present


def test_the_best_for_a_size() -> None:
    """Says what the policy in the log has with that size, and how much of it would do."""
    search = search_in(PLAN, Question(max_size=60 * PAGE), max_size=40 * PAGE)
    advice = advise(search)
    outcomes = {it.settings.policy: it.hit_rate for it in search.at(60 * PAGE)}
    assert advice.hit_rate == outcomes[advice.policy] == max(outcomes.values())
    assert advice.max_size == 60 * PAGE
    assert advice.sentence.startswith(
        f'With max_size = 3840 * KiB, policy = "{advice.policy}" with idle_timeout = '
    )
    assert f'% hits ("lru" has {100 * outcomes["lru"]:.1f} %; ' in advice.sentence
    enough = advise(search_in(PLAN, Question(max_size=64 * MiB), max_size=40 * PAGE))
    assert enough.policy == "lru"
    assert enough.max_size < 64 * MiB
    assert f"({in_source('max_size', enough.max_size)} would do; " in enough.sentence


def test_seconds_are_another_objective() -> None:
    """One function takes long to load; the others, used more, are loaded instead of it."""
    plan = in_turn(6, 30, 0.25)
    slow = evolve(plan.functions[0], load=20.0)
    plan = evolve(plan, functions=(slow, *(evolve(it, load=0.01) for it in plan.functions[1:])))
    search = search_in(
        plan,
        Question(max_size=4 * PAGE, objective="seconds"),
        max_size=4 * PAGE,
        idle_timeout=math.inf,
    )
    advice = advise(search)
    assert advice.policy == "cost"
    assert advice.load_seconds < 25
    assert search.outcome("lru", 4 * PAGE).load_seconds > 500
    assert "has the least loading: " in advice.sentence
    assert '("lru" has 10 min' in advice.sentence


def test_only_policies_in_question_are_advised() -> None:
    """LRU is compared with them all the same."""
    search = search_in(in_turn(10, 20, 0.25), Question(0.5, policies=("sieve",)), max_size=4 * PAGE)
    assert advise(search).policy == "sieve"
    assert search.compared == ["lru", "sieve"]


def test_sizes_by_equal_parts() -> None:
    """With both ends, and no more than there are."""
    assert steps(100, 800, 4) == [100, 200, 400, 800]
    assert steps(0, 4, 3) == [1, 2, 4]
    assert steps(7, 7, 5) == steps(7, 3, 5) == [7]
    assert steps(1, 3, 9) == [1, 2, 3]
