"""When samples are taken, and what they weigh: by fuel, of which none is counted twice or lost."""

from __future__ import annotations

from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.profiles.pace import LEAST, Pace

SLICE, INTERVAL = 100_000, 200_000


def run(pace: Pace, fuel: int, most: int = SLICE) -> tuple[list[int], int]:
    """What a call weighs that burns so much, as an engine asks; and the number of its slices."""
    length = pace.slice_of(most)
    assert LEAST // 2 <= length <= most
    assert most - length < length * (most // length) <= most
    weights, burnt, slices = [], 0, 0
    while burnt + length < fuel:
        burnt += length
        slices += 1
        if pace.is_due(burnt):
            weights.append(pace.weigh(burnt))
            pace.note_sample(burnt)
    pace.end_call(fuel)
    return weights, slices


@tries(50)
@given(st.lists(st.integers(1, 3_000_000), min_size=1, max_size=30), st.integers(0, 9))
def test_weights_add_up(calls: list[int], seed: int) -> None:
    """To the fuel of all calls, except what was burnt since the last sample."""
    pace = Pace(seed, INTERVAL)
    weights = [weight for fuel in calls for weight in run(pace, fuel)[0]]
    assert all(weight > 0 for weight in weights)
    missing = sum(calls) - sum(weights)
    # A sample comes with the next slice, and in the last calls none may have been due in time.
    assert 0 <= missing <= 1.5 * INTERVAL + SLICE + 2 * max(calls)


def test_samples_come_as_often_as_is_said() -> None:
    """For a long call as for many short ones, at all places of them."""
    long_call, _ = run(Pace(1, INTERVAL), 400 * INTERVAL)
    assert 300 < len(long_call) < 500
    pace, places = Pace(1, INTERVAL), []
    for _ in range(20_000):
        length = pace.slice_of(SLICE)
        burnt = length
        while burnt < 2_000:
            if pace.is_due(burnt):
                places.append(burnt)
                pace.note_sample(burnt)
            burnt += length
        pace.end_call(2_000)
    assert 100 < len(places) < 300
    quarters = [sum(place // 500 == quarter for place in places) for quarter in range(4)]
    assert min(quarters) > len(places) / 10


def test_calls_are_not_cut_into_too_many_slices() -> None:
    """A dozen on average between two samples, at most."""
    for fuel in (500, 5_000, 50_000, 500_000, 5_000_000):
        pace, slices, number = Pace(3, INTERVAL), 0, max(3, 20 * INTERVAL // fuel)
        for _ in range(number):
            slices += run(pace, fuel)[1]
        assert slices < 12 * (number * fuel / INTERVAL + 1), fuel


def test_rest_is_kept() -> None:
    """A sample that was slow to take is followed by none for as much as is said."""
    pace = Pace(0, INTERVAL)
    pace.note_sample(1_000, rest=10 * INTERVAL)
    assert not pace.is_due(10 * INTERVAL)
    assert pace.is_due(1_000 + 10 * INTERVAL)
