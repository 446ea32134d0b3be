"""When resets of a function are given up: once they cost more than new instances would."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, strategies as st

from trio_wasmcache._core.policy.resets import CLEAN_WORTH, GIVE_UP_AT, Resets


def given_up(resets: Resets, clean: Iterable[int]) -> int | None:
    """After how many growths, each after so many resets; None: they are kept on."""
    for number, before in enumerate(clean, 1):
        if resets.note_growth(number, before):
            return number
    return None


def test_growth_in_each_lease_ends_resets_soon() -> None:
    """The record says how many leases, of how many instances, and the largest size."""
    resets = Resets()
    assert given_up(resets, [0] * 100) == GIVE_UP_AT
    assert (resets.leases, resets.growths, resets.size) == (GIVE_UP_AT, GIVE_UP_AT, GIVE_UP_AT)


@pytest.mark.parametrize("clean", [1, 2, 50])
def test_growth_in_every_second_lease_or_less_often_does_not(clean: int) -> None:
    """A reset saves more than a growth costs."""
    resets = Resets()
    assert given_up(resets, [clean] * 1000) is None
    assert (resets.leases, resets.growths) == (1000 * (clean + 1), 1000)


@given(st.lists(st.integers(0, 3), max_size=60))
def test_they_are_given_up_only_where_they_have_not_paid_for_a_while(clean: list[int]) -> None:
    """And as soon as that is so: over some latest growths, they have saved too little."""
    at = given_up(Resets(), clean)

    def is_loss(growths: list[int]) -> bool:
        # What came before the first of them is not counted.
        return len(growths) - CLEAN_WORTH * sum(growths[1:]) >= GIVE_UP_AT

    losses = [
        end
        for end in range(1, len(clean) + 1)
        if any(is_loss(clean[begin:end]) for begin in range(end))
    ]
    assert at == (losses[0] if losses else None)
