"""Turns: who gets the loop, or a thread, and that none is ever lost."""

from __future__ import annotations

import sys

import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_wasmcache._core.policy.shares import Share
from trio_wasmcache._runtime.turns import Turns
from trio_wasmcache.testing import cancel_everywhere


class Track:
    """Tasks that take turns, and the order in which they got them."""

    def __init__(self, slots: int = 1) -> None:
        self.turns = Turns(slots)
        self.order: list[str] = []

    async def work(self, name: str, share: Share, slices: int, fuel: int = 100) -> None:
        """So many slices, each a turn."""
        await self.turns.take(share)
        holding = True
        try:
            for left in reversed(range(slices)):
                assert self.turns.taken <= self.turns.slots
                self.order.append(name)
                share.charge(fuel)
                if left:
                    holding = False
                    await self.turns.keep(share)
                    holding = True
        finally:
            if holding:
                self.turns.give_back()


async def test_one_alone_keeps_its_turn() -> None:
    """Every `take` and `keep` is a checkpoint all the same."""
    track, share = Track(), Share(100)
    with assert_checkpoints():
        await track.turns.take(share)
    assert track.turns.taken == 1
    with assert_checkpoints():
        await track.turns.keep(share)
    assert not track.turns.contended
    track.turns.give_back()
    assert track.turns.taken == 0


async def test_within_a_group_tasks_alternate() -> None:
    """First come, first served, one turn each."""
    track, share = Track(), Share(100)
    async with trio.open_nursery() as nursery:
        await track.turns.take(share)
        for name in "abc":
            nursery.start_soon(track.work, name, share, 3)
            await wait_all_tasks_blocked()
        assert track.turns.contended
        track.turns.give_back()
    assert "".join(track.order) == "abcabcabc"


async def test_groups_get_turns_by_their_shares() -> None:
    """Three to one, with slices of the same size."""
    track, one, three = Track(), Share(100), Share(300)
    async with trio.open_nursery() as nursery:
        await track.turns.take(one)
        nursery.start_soon(track.work, "1", one, 100)
        nursery.start_soon(track.work, "3", three, 300)
        await wait_all_tasks_blocked()
        track.turns.give_back()
    order = "".join(track.order)
    assert (order.count("1"), order.count("3")) == (100, 300)
    for end in range(40, 400, 40):
        assert abs(order[:end].count("3") - 3 * order[:end].count("1")) <= 4


async def test_the_turn_is_handed_over_in_the_same_step() -> None:
    """Whoever comes along between the release and the wake-up is behind."""
    track, share = Track(), Share(100)
    async with trio.open_nursery() as nursery:
        await track.turns.take(share)
        nursery.start_soon(track.work, "waited", share, 1)
        await wait_all_tasks_blocked()
        track.turns.give_back()
        assert track.turns.taken == 1
        await track.work("came along", share, 1)
    assert track.order == ["waited", "came along"]


async def test_the_turn_is_looked_at_again_when_its_holder_wakes() -> None:
    """A group that is further behind joined meanwhile: it goes first."""
    track, ahead, behind = Track(), Share(100), Share(100)
    ahead.virtual_time = 50.0
    holder = Share(100)
    async with trio.open_nursery() as nursery:
        await track.turns.take(holder)
        nursery.start_soon(track.work, "ahead", ahead, 1)
        await wait_all_tasks_blocked()
        track.turns.give_back()  # "ahead" has it, but does not run yet
        assert track.turns.taken == 1
        await track.work("behind", behind, 1)
    assert track.order == ["behind", "ahead"]
    assert track.turns.taken == 0


async def test_a_turn_that_is_looked_at_again_very_often() -> None:
    """Whoever is far ahead waits as long as it takes, and not deeper and deeper on the stack."""
    track, ahead, behind = Track(), Share(1), Share(1_000_000)
    ahead.virtual_time = 1e9
    async with trio.open_nursery() as nursery:
        await track.turns.take(behind)
        nursery.start_soon(track.work, "a", ahead, 1)
        await wait_all_tasks_blocked()
        track.turns.give_back()
        for _ in range(sys.getrecursionlimit()):
            await track.work("b", behind, 1)
    assert track.order == ["b"] * sys.getrecursionlimit() + ["a"]
    assert track.turns.taken == 0


async def test_a_holder_that_is_ahead_hands_over() -> None:
    """And takes its place behind the others."""
    track, heavy, light = Track(), Share(100), Share(100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(track.work, "heavy", heavy, 3, 1000)
        await wait_all_tasks_blocked()
        nursery.start_soon(track.work, "light", light, 1)
    assert sorted(track.order) == ["heavy", "heavy", "heavy", "light"]
    track.order.clear()
    async with trio.open_nursery() as nursery:
        await track.turns.take(Share(1))
        for name, share, fuel in (("heavy", heavy, 1000), ("light", light, 100)):
            nursery.start_soon(track.work, name, share, 3, fuel)
            await wait_all_tasks_blocked()
        track.turns.give_back()
    assert track.order[-2:] == ["heavy", "heavy"]


async def test_several_slots() -> None:
    """Two at the same time, never three."""
    track, share = Track(slots=2), Share(100)
    busiest = 0

    async def work() -> None:
        nonlocal busiest
        await track.turns.take(share)
        busiest = max(busiest, track.turns.taken)
        await trio.lowlevel.checkpoint()
        track.turns.give_back()

    async with trio.open_nursery() as nursery:
        for _ in range(7):
            nursery.start_soon(work)
    assert busiest == 2
    assert track.turns.taken == 0


async def test_more_slots_wake_who_waits() -> None:
    """In the step that makes them, as many as there are new ones; fewer take none away."""
    track, share = Track(), Share(100)
    async with trio.open_nursery() as nursery:
        await track.turns.take(share)
        for name in "abc":
            nursery.start_soon(track.work, name, share, 1)
            await wait_all_tasks_blocked()
        track.turns.resize(3)
        assert (track.turns.taken, len(track.turns.line)) == (3, 1)
        track.turns.resize(1)
        assert track.turns.taken == 3
        track.turns.give_back()
        assert (track.turns.taken, len(track.turns.line)) == (2, 1)
        track.turns.resize(3)
    assert sorted(track.order) == ["a", "b", "c"]
    assert track.turns.taken == 0


async def test_cancelled_in_line() -> None:
    """It leaves the line, and those behind move up."""
    track, share = Track(), Share(100)
    async with trio.open_nursery() as nursery:
        await track.turns.take(share)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as impatient:
                impatient.start_soon(track.work, "impatient", share, 1)
                await wait_all_tasks_blocked()
                nursery.start_soon(track.work, "patient", share, 1)
                await wait_all_tasks_blocked()
                assert len(track.turns.line) == 2
                scope.cancel()
        assert len(track.turns.line) == 1
        track.turns.give_back()
    assert track.order == ["patient"]
    assert track.turns.taken == 0


async def test_cancelled_anywhere_no_turn_is_lost() -> None:
    """In line, just handed a turn, keeping it: others get it, and in the end none is taken."""
    track = Track()
    mine, others = Share(100), Share(100)
    done = 0

    async def other() -> None:
        nonlocal done
        await track.work("other", others, 3)
        done += 1

    async with trio.open_nursery() as nursery:
        begun = 0

        async def scenario() -> None:
            nonlocal begun
            begun += 2
            nursery.start_soon(other)
            nursery.start_soon(other)
            await track.work("mine", mine, 4)
            await track.work("mine", others, 4)

        def check() -> None:
            assert track.turns.taken <= 1
            if track.turns.line:
                assert track.turns.taken == 1

        assert await cancel_everywhere(scenario, check) > 12
    assert done == begun
    assert track.turns.taken == 0
    assert not track.turns.contended
