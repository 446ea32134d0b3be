"""Acquires in line for one instance: the short way into it and out of it, beside the long way.

With `log_uses` each acquire takes the long way. So each scenario is played both ways, and has to
come to the same.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from attrs import evolve
from kits import FakeKit, add
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, DeadlockError, GuestError, InstanceCache, WasmCacheError
from trio_wasmcache.testing import check_invariants, snapshot

I64 = ("i64",)
CONFIG = CacheConfig(offload_after=None, yield_fuel=100)
# Seconds after which a task that waits for ever fails its test, far more than any wait takes.
HANG = 600


class Play:
    """A cache with a function ``f``, and tasks that use it, each known by a letter."""

    def __init__(self, cache: InstanceCache, kit: FakeKit, nursery: trio.Nursery) -> None:
        self.cache = cache
        self.kit = kit
        self.nursery = nursery
        self.scopes: dict[str, trio.CancelScope] = {}
        self.outcomes: list[str] = []

    async def add(self, name: str = "f", **more: Any) -> None:
        """Register a function that adds 1."""
        await add(self.cache, name, self.kit.adding(1), **more)

    async def line_up(self, tasks: str, use: Callable[[str], Awaitable[object]]) -> None:
        """Start tasks; each has run as far as it can before the next one starts."""
        for task in tasks:
            self.nursery.start_soon(self._run, task, use)
            await wait_all_tasks_blocked()

    async def call(self, task: str) -> None:
        """Call ``f``, and let others run before and after it."""
        async with self.cache.acquire("f", I64) as lease:
            await trio.lowlevel.checkpoint()
            self.outcomes.append(f"{task} {await lease.call(ord(task))}")
            await trio.lowlevel.checkpoint()

    async def _run(self, task: str, use: Callable[[str], Awaitable[object]]) -> None:
        with trio.CancelScope() as self.scopes[task]:
            try:
                await use(task)
            except (WasmCacheError, trio.ClosedResourceError) as error:
                self.outcomes.append(f"{task} {type(error).__name__}")
        if self.scopes[task].cancelled_caught:
            self.outcomes.append(f"{task} cancelled")


async def served(play: Play) -> None:
    """In the order in which they came."""
    await play.add()
    async with play.cache.acquire("f", I64):
        await play.line_up("abc", play.call)
    await wait_all_tasks_blocked()
    assert play.outcomes == ["a 98", "b 99", "c 100"]


async def served_by_several(play: Play) -> None:
    """By two instances."""
    await play.add(concurrency=2)
    async with play.cache.acquire("f", I64), play.cache.acquire("f", I64):
        await play.line_up("abcde", play.call)
        assert play.cache.stats().waiting == 5


async def cancelled(play: Play) -> None:
    """One in the midst of the line, the first, and one that was cancelled before it came."""
    await play.add()
    async with play.cache.acquire("f", I64):
        await play.line_up("abcd", play.call)
        for task in "ba":
            play.scopes[task].cancel()
            await wait_all_tasks_blocked()

        async def late(task: str) -> None:
            play.scopes[task].cancel()
            await play.call(task)

        await play.line_up("e", late)


async def cancelled_when_woken(play: Play) -> None:
    """It has the instance, and gives it back when it notices."""
    await play.add()
    async with play.cache.acquire("f", I64):
        await play.line_up("ab", play.call)
    play.scopes["a"].cancel()


def fail_at_zero(number: int) -> int:
    if number == 0:
        raise GuestError("broken")
    return number


async def broken(play: Play) -> None:
    """The instance is dropped, and the first in line loads another."""
    await add(play.cache, "f", play.kit.engine.module(fail_at_zero))
    async with play.cache.acquire("f", I64) as lease:
        await play.line_up("ab", play.call)
        with contextlib.suppress(GuestError):
            await lease.call(0)


async def cancelled_while_it_loads(play: Play) -> None:
    """The first in line, as the instance is dropped; the next one loads for itself."""
    wasm = play.kit.engine.module(fail_at_zero, start_fuel=1000)
    await add(play.cache, "f", wasm)
    async with play.cache.acquire("f", I64) as lease:
        await play.line_up("abc", play.call)
        with contextlib.suppress(GuestError):
            await lease.call(0)
    for _ in range(3):
        await trio.lowlevel.checkpoint()
    play.scopes["a"].cancel()


async def removed(play: Play) -> None:
    """Nobody in line gets an instance of it any more."""
    await play.add()
    async with play.cache.acquire("f", I64) as lease:
        await play.line_up("ab", play.call)
        play.cache.remove("f", I64)
        await lease.call(1)


async def replaced(play: Play) -> None:
    """Those in line go on with the new generation."""
    await play.add()
    async with play.cache.acquire("f", I64):
        await play.line_up("abc", play.call)
        await add(play.cache, "f", play.kit.adding(100), replace=True)


async def removed_when_woken(play: Play) -> None:
    """Whoever was granted an instance uses it."""
    await play.add()
    async with play.cache.acquire("f", I64):
        await play.line_up("ab", play.call)
    play.cache.remove("f", I64)


async def bound_anew(play: Play) -> None:
    """As the length of slices has changed."""
    await add(play.cache, "f", play.kit.engine.module(fuel=1000))
    async with play.cache.acquire("f", I64):
        await play.line_up("ab", play.call)
        play.cache.resize(yield_fuel=200)
    play.cache.resize(yield_fuel=10_000)
    begun = snapshot(play.cache).loop.begun
    await wait_all_tasks_blocked()
    assert snapshot(play.cache).loop.begun == begun


async def without_room(play: Play) -> None:
    """It could not run in an empty cache any more."""
    await play.add()
    async with play.cache.acquire("f", I64):
        await play.line_up("ab", play.call)
        play.cache.resize(max_running_size=1)
        await play.line_up("c", play.call)


async def beside_another_limit(play: Play) -> None:
    """Of capacity, which one of the tasks in line looks at and changes."""
    await play.add()
    async with play.cache.scheduling_group("g", capacity=3) as group:

        async def call(task: str) -> None:
            async with group.acquire("f", I64) as lease:
                play.outcomes.append(f"{task} {await lease.call(ord(task))}")

        async with group.acquire("f", I64):
            await play.line_up("ab", call)
            play.outcomes.append(str(group.limiter.borrowed_tokens))
            group.limiter.total_tokens = 4
            await play.line_up("cd", call)
            play.outcomes.append(str(group.limiter.borrowed_tokens))
        await wait_all_tasks_blocked()
        play.outcomes.append(str(group.limiter.borrowed_tokens))


async def with_the_group(play: Play) -> None:
    """Nobody in line is served when the group closes."""
    await play.add()
    async with play.cache.scheduling_group("g", capacity=9) as group:
        async with group.acquire("f", I64):

            async def hold(task: str) -> None:
                async with group.acquire("f", I64):
                    play.outcomes.append(f"{task} holds")
                    await trio.sleep_forever()

            await play.line_up("abc", hold)
        await wait_all_tasks_blocked()
    play.scopes["a"].cancel()


async def nested(play: Play) -> None:
    """A task in line holds another instance; a wait for that is in vain."""
    await play.add("f")
    await play.add("g")

    async def both(task: str) -> None:
        async with play.cache.acquire("g", I64):
            await play.call(task)

    async with play.cache.acquire("f", I64):
        await play.line_up("a", both)
        await play.line_up("b", play.call)
        with pytest.raises(DeadlockError):
            await play.cache.acquire("g", I64).__aenter__()


async def loaded_in_advance(play: Play) -> None:
    """Somebody warms the function meanwhile."""
    await play.add(concurrency=2)
    async with play.cache.acquire("f", I64), play.cache.acquire("f", I64):

        async def warm(task: str) -> None:
            await play.cache.warm("f", I64, count=2)
            play.outcomes.append(f"{task} warm")

        await play.line_up("a", play.call)
        await play.line_up("b", warm)
        await play.line_up("c", play.call)


SCENARIOS = [
    served,
    served_by_several,
    cancelled,
    cancelled_when_woken,
    broken,
    cancelled_while_it_loads,
    removed,
    replaced,
    removed_when_woken,
    bound_anew,
    without_room,
    beside_another_limit,
    with_the_group,
    nested,
    loaded_in_advance,
]


async def played(scenario: Callable[[Play], Awaitable[None]], config: CacheConfig) -> object:
    """What a scenario comes to, with all that the cache has counted."""
    kit = FakeKit()
    async with trio.open_nursery() as nursery, kit.open(config) as cache:
        play = Play(cache, kit, nursery)
        await scenario(play)
        await wait_all_tasks_blocked()
        check_invariants(cache)
        assert snapshot(cache).group("main").tokens == 0
        stats = cache.stats()
    counts = stats.hits, stats.misses, stats.blocks, stats.calls, stats.evictions, stats.errors
    return sorted(play.outcomes), counts


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("policy", ["lru", "sieve"])
async def test_both_ways_through_a_line_come_to_the_same(
    scenario: Callable[[Play], Awaitable[None]], policy: Any
) -> None:
    """What becomes of each task, and what is counted."""
    config = evolve(CONFIG, policy=policy)
    short = await played(scenario, config)
    assert short == await played(scenario, evolve(config, log_uses=True))


async def test_running_out_of_python_stack_in_a_line_leaves_the_books_right() -> None:
    """Where a task gets into line, and where it gives the instance to the next."""

    async def down(levels: int, use: Callable[[], Awaitable[object]]) -> None:
        if levels:
            await down(levels - 1, use)
        else:
            await use()

    async def from_below(spare: int, use: Callable[[str], Awaitable[object]], task: str) -> None:
        depth = sys.getrecursionlimit() - len(inspect.stack()) - spare
        with contextlib.suppress(RecursionError):
            await down(depth, functools.partial(use, task))

    async def hold(play: Play, release: trio.Event, task: str) -> None:
        async with play.cache.acquire("f", I64):
            await release.wait()

    for spare in range(8, 48):
        kit = FakeKit()
        async with kit.open(CONFIG) as cache:
            # Where the loop could not be woken, a thread does it: so this is not at once.
            with trio.fail_after(HANG):
                async with trio.open_nursery() as nursery:
                    play, release = Play(cache, kit, nursery), trio.Event()
                    await play.add()
                    await cache.warm("f", I64)
                    holding = functools.partial(hold, play, release)
                    await play.line_up("a", functools.partial(from_below, spare, holding))
                    await play.line_up("b", functools.partial(from_below, spare, play.call))
                    await play.line_up("c", play.call)
                    release.set()
            assert play.outcomes[-1] == "c 100"
            check_invariants(cache)
