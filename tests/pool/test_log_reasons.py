"""Every reason for which an instance goes: a scenario for each, and exactly one event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from kits import PAGE, FakeKit, ListLogger, add

from trio_wasmcache import InstanceCache, KiB, TrapError

TYPES = ("i64",)
CODE = 16 * KiB
STACK = 512 * KiB

# One scenario for each reason, on a cache with functions a, b and c of 2 pages each.

Scenario = Callable[[InstanceCache, FakeKit], Awaitable[None]]


async def use(cache: InstanceCache, *names: str) -> None:
    for name in names:
        async with cache.acquire(name, TYPES) as lease:
            await lease.call(1)


async def for_size(cache: InstanceCache, fake: FakeKit) -> None:
    cache.resize(max_size=3 * PAGE)
    await use(cache, "a", "b")


async def for_count(cache: InstanceCache, fake: FakeKit) -> None:
    cache.resize(max_instances=1)
    await use(cache, "a", "b")


async def for_idleness(cache: InstanceCache, fake: FakeKit) -> None:
    await use(cache, "a")
    await trio.sleep(5.1)


async def for_code(cache: InstanceCache, fake: FakeKit) -> None:
    cache.resize(max_code_size=CODE + STACK)
    await use(cache, "a", "b")


async def for_a_stack(cache: InstanceCache, fake: FakeKit) -> None:
    cache.resize(max_code_size=2 * CODE + STACK)
    await use(cache, "a", "b")
    cache.resize(max_code_size=2 * CODE + STACK - 1)
    await use(cache, "b")


async def for_being_oversized(cache: InstanceCache, fake: FakeKit) -> None:
    cache.resize(max_instance_size=2 * PAGE - 1)
    await use(cache, "a")


async def for_being_corrupted(cache: InstanceCache, fake: FakeKit) -> None:
    trapping = await add(cache, "t", fake.trapping())
    with pytest.raises(TrapError):
        await trapping.call(1)


async def for_removal(cache: InstanceCache, fake: FakeKit) -> None:
    await use(cache, "a")
    cache.remove("a")


async def for_its_group(cache: InstanceCache, fake: FakeKit) -> None:
    async with cache.scheduling_group("g", capacity=1):
        await use(cache, "a")


@pytest.mark.parametrize(
    ("reason", "scenario"),
    [
        ("size", for_size),
        ("count", for_count),
        ("idle", for_idleness),
        ("code", for_code),
        ("stack", for_a_stack),
        ("oversized", for_being_oversized),
        ("corrupted", for_being_corrupted),
        ("removed", for_removal),
        ("group_closed", for_its_group),
    ],
)
async def test_each_eviction_is_one_event_with_its_reason(
    fake: FakeKit,
    log: ListLogger,
    autojump_clock: trio.testing.MockClock,
    reason: str,
    scenario: Scenario,
) -> None:
    """And what is left when the cache closes, goes as `closed`."""
    async with fake.open(logger=log) as cache:
        for number, name in enumerate("abc"):
            await add(cache, name, fake.adding(number))
        await scenario(cache, fake)
        assert log.reasons() == [reason]
        assert cache.stats().evictions[reason] == 1
        await use(cache, "c")
        kept = cache.stats().idle_instances
    assert log.reasons().count("closed") == kept
    counted = {key: number for key, number in cache.stats().evictions.items() if number}
    assert counted == {key: log.reasons().count(key) for key in log.reasons()}
    instances = [event["instance"] for event in log.fields("evicted")]
    assert len(set(instances)) == len(instances)
    sizes = log.fields("evicted")
    assert all(e["total_size_before_bytes"] >= e["total_size_after_bytes"] for e in sizes)
