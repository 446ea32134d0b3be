"""Which module the optimizing compiler gets next, and that the others wait for nobody."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache._core.policy.promotion import DUE_FUEL, PromotionQueue
from trio_wasmcache._engine.compile_slots import CompileSlots

SHARES = {"a": 300, "b": 100, "late": 100}


def pop(
    queue: PromotionQueue[str, str], fuel: dict[str, dict[str, int]], cost: int = 600
) -> tuple[str, str] | None:
    return queue.pop(fuel.__getitem__, SHARES.__getitem__, lambda _: cost)


def test_ten_milliseconds_are_so_much_fuel() -> None:
    """At the rate by which groups are charged."""
    assert DUE_FUEL == 10_000_000


def test_groups_take_turns_by_shares() -> None:
    """Three of one for each of the other; within a group, the one with the most fuel is first."""
    queue: PromotionQueue[str, str] = PromotionQueue()
    fuel = {f"{group}{number}": {group: number} for group in "ab" for number in range(8)}
    for module in fuel:
        queue.add(module)
    assert len(queue) == 16
    order = [found[0] for _ in range(8) if (found := pop(queue, fuel))]
    assert order == ["a7", "b7", "a6", "a5", "a4", "b6", "a3", "a2"]
    assert ("a7" in queue, "a1" in queue) == (False, True)


def test_a_group_that_comes_late_is_owed_nothing() -> None:
    """It begins where the others are."""
    queue: PromotionQueue[str, str] = PromotionQueue()
    fuel = {f"b{number}": {"b": number} for number in range(6)}
    fuel |= {f"late{number}": {"late": number} for number in range(6)}
    for number in range(6):
        queue.add(f"b{number}")
    for _ in range(3):
        pop(queue, fuel)
    for number in range(6):
        queue.add(f"late{number}")
    order = [found[1] for _ in range(6) if (found := pop(queue, fuel))]
    assert sorted(order[:4]) == ["b", "b", "late", "late"]
    assert (order.count("b"), order.count("late")) == (3, 3)


def test_a_module_of_several_groups_is_compiled_once() -> None:
    """In the turn of whichever comes first; a module that is gone is not compiled."""
    queue: PromotionQueue[str, str] = PromotionQueue()
    assert pop(queue, {}) is None
    queue.add("shared")
    queue.add("gone")
    queue.discard("gone")
    queue.discard("gone")
    assert pop(queue, {"shared": {"a": 1, "b": 5}}) == ("shared", "a")
    assert (len(queue), pop(queue, {})) == (0, None)


async def test_a_compile_in_the_background_waits_for_all_others() -> None:
    """It begins only while none runs or waits, and those that come later do not wait for it."""
    slots = CompileSlots(1)
    background = slots.background
    first, second = slots.turn("g"), slots.turn("h")
    await first.acquire_on_behalf_of(None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(background.acquire_on_behalf_of, None)
        nursery.start_soon(second.acquire_on_behalf_of, None)
        await wait_all_tasks_blocked()
        assert not background.taken
        first.release_on_behalf_of(None)
        await wait_all_tasks_blocked()
        assert (background.taken, slots.running) == (False, 1)
        second.release_on_behalf_of(None)
        await wait_all_tasks_blocked()
        assert (background.taken, slots.running) == (True, 0)
        await first.acquire_on_behalf_of(None)
        first.release_on_behalf_of(None)
        nursery.start_soon(background.acquire_on_behalf_of, None)
        await wait_all_tasks_blocked()
        background.release_on_behalf_of(None)
        await wait_all_tasks_blocked()
        assert background.taken, "one that waited has it"
        background.release_on_behalf_of(None)


async def test_a_cancelled_wait_takes_nothing() -> None:
    """Of the background's slot, and of a compile."""
    slots = CompileSlots(1)
    background, turn = slots.background, slots.turn("g")
    await turn.acquire_on_behalf_of(None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(background.acquire_on_behalf_of, None)
        nursery.start_soon(slots.turn("h").acquire_on_behalf_of, None)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    turn.release_on_behalf_of(None)
    assert (background.taken, slots.running, slots.waiting) == (False, 0, 0)
    await background.acquire_on_behalf_of(None)
    assert background.taken


async def test_a_closed_engine_wakes_the_background() -> None:
    """Nothing waits for compiles that never end."""
    slots = CompileSlots(1)
    await slots.turn("g").acquire_on_behalf_of(None)
    with pytest.RaisesGroup(trio.ClosedResourceError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slots.background.acquire_on_behalf_of, None)
            await wait_all_tasks_blocked()
            slots.close()
