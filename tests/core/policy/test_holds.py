"""Holds of hits are put off while they are alike, and none is lost or counted otherwise."""

from __future__ import annotations

from math import trunc

from core.policy.policy_bench import Bench, short_hit
from core.policy.test_pass_on import Native, give_up
from hypothesis import example, given, strategies as st

from trio_wasmcache._core.metrics.counters import HOLDS, MOST, UseStats
from trio_wasmcache._core.policy.records import Entry

# How long a hit holds its instance (microseconds): mostly much the same, and sometimes anything.
HELD = st.one_of(st.integers(0, 20), st.integers(100, 140), st.integers(0, 2**50))


def use(bench: Bench, held: list[int], reads: list[bool]) -> tuple[Entry, UseStats]:
    """An entry after such hits, and what they count; `reads`: whether it is read in between."""
    function = bench.function("f")
    bench.policy.may_rest(first := bench.lease(function))
    first.held.hold(Native(), ready=True)
    entry, expected = first.entry, UseStats()
    assert bench.policy.rest(first, 10, bench.now)
    expected.add(HOLDS, 0)
    for number, (microseconds, read) in enumerate(zip(held, reads, strict=True)):
        request = short_hit(bench.policy, function, bench.main, "berta", give_up, bench.now)
        assert request is not None
        bench.now += microseconds / 1e6
        expected.add(HOLDS, trunc((bench.now - request.since) * 1e6))
        if read:
            assert entry.uses.count(HOLDS) == number + 1
        assert bench.policy.rest(request, 10, bench.now)
    return entry, expected


@given(st.lists(st.tuples(HELD, st.booleans())))
@example([(MOST - 1, False), (1, False), (1, False)])
@example([(5, False), (3, False), (9, False), (4, False)])
@example([(0, False)] * 300 + [(1, True), (0, True)])
def test_none_is_lost(uses: list[tuple[int, bool]]) -> None:
    """Whatever follows whatever, and whenever somebody looks."""
    entry, expected = use(Bench(), [held for held, _ in uses], [read for _, read in uses])
    assert entry.uses.distribution(HOLDS) == expected.distribution(HOLDS)
    assert entry.uses.copy().distribution(HOLDS) == expected.distribution(HOLDS)


def test_holds_that_are_alike_touch_no_counts() -> None:
    """Also where they are on both sides of a power of two, and one between them is not."""
    held = [9, 7, 8, 10, 7, 9, 200, 8]
    entry, _ = use(Bench(), held, [False] * len(held))
    assert entry.counted.count(HOLDS) == 2, "that of the miss, and the long one"
    assert entry.uses.count(HOLDS) == 1 + len(held)


def test_the_numbers_stay_small() -> None:
    """So that Python makes none of them anew."""
    entry, _ = use(Bench(), [7] * 1000, [False] * 1000)
    assert entry.alike_short + entry.alike_long <= entry.alike_time <= MOST
    entry, _ = use(Bench(), [1] * 1000, [False] * 1000)
    assert entry.alike_short <= entry.alike_time <= MOST


def test_instances_share_the_number_that_is_their_size() -> None:
    """A hit reads it, and finds that of its function, not one of the instance's own."""
    bench = Bench()
    function = bench.function("f", concurrency=2)
    large = 10**6
    one, other = bench.lease(function, "anna"), bench.lease(function, "berta")
    for request in (one, other):
        bench.recycle(request, int(str(large)) - 999_900)
    sizes = [(it.size, it.resting_size) for it in bench.policy.instances.lru]
    assert sizes == [(100, 100)] * 2
    first, second = bench.policy.instances.lru
    assert first.size is first.resting_size is second.size is second.resting_size
