"""The order of tasks in a test is the same in each run with a seed."""

from __future__ import annotations

import pytest
import trio
from ready_order import VARIABLE, begin_test, choose_seed


def order(name: str) -> list[int]:
    """The order in which twenty tasks go on, three times each."""
    went: list[int] = []

    async def go(number: int) -> None:
        for _ in range(3):
            went.append(number)
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(go, number)

    begin_test(name)
    trio.run(main)
    return went


def test_a_seed_says_what_the_order_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for a test each time; another for other tests, and in another run at night."""
    monkeypatch.setenv(VARIABLE, "0")
    names = [str(number) for number in range(20)]
    by_name = [order(name) for name in names]
    assert by_name == [order(name) for name in names]
    assert len({tuple(it) for it in by_name}) > 1
    monkeypatch.setenv(VARIABLE, "1")
    assert by_name != [order(name) for name in names]


def test_a_seed_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 0 in CI, another at night, and in both the one that is given."""
    monkeypatch.delenv(VARIABLE)
    assert choose_seed(nightly=False) == "0"
    monkeypatch.delenv(VARIABLE)
    chosen = choose_seed(nightly=True)
    assert choose_seed(nightly=True) == choose_seed(nightly=False) == chosen
