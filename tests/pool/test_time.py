"""Semantics 14: what is idle goes when it is due; with nothing idle nothing wakes."""

from __future__ import annotations

import itertools
import math
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio
import trio.testing
from kits import FakeKit, ListLogger, add, stack_of
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache
from trio_wasmcache.testing import check_invariants


def next_deadline() -> float:
    """Seconds until Trio has to wake for anybody."""
    return trio.lowlevel.current_statistics().seconds_to_next_deadline


async def at(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let the clock show `seconds`, and everybody do what is due by then."""
    clock.jump(seconds - trio.current_time())
    await wait_all_tasks_blocked()


@pytest.fixture
def clock(mock_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """A clock that moves only when told."""
    return mock_clock


async def test_an_instance_goes_exactly_at_its_timeout(
    fake: FakeKit, clock: trio.testing.MockClock, log: ListLogger
) -> None:
    """Not before, and not up to twice as late."""
    async with fake.open(CacheConfig(idle_timeout=5.0), logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        await at(clock, 3.0)
        await f.call(1)
        await at(clock, 7.875)
        assert cache.stats().idle_instances == 1
        assert next_deadline() == 0.125
        await at(clock, 8.0)
        assert cache.stats().idle_instances == 0
        assert cache.stats().total_size == cache.stats().code_size == 0
        (event,) = log.fields("evicted")
        assert (event["reason"], event["idle_seconds"], event["at_seconds"]) == ("idle", 5.0, 8.0)
        assert event["age_seconds"] == 5.0
        assert next_deadline() == math.inf
        check_invariants(cache)


async def test_with_nothing_idle_ever_there_is_no_deadline(
    fake: FakeKit, clock: trio.testing.MockClock
) -> None:
    """Neither in an empty cache, nor while its instances run."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1))
        await wait_all_tasks_blocked()
        assert next_deadline() == math.inf
        async with f.acquire() as lease:
            await lease.call(1)
            await wait_all_tasks_blocked()
            assert next_deadline() == math.inf
            await at(clock, 100.0)
            assert next_deadline() == math.inf
        assert next_deadline() == 5.0


async def test_use_puts_it_off(fake: FakeKit, clock: trio.testing.MockClock) -> None:
    """Each recycle begins a new timeout; what still runs at the old one is not touched."""
    async with fake.open(CacheConfig(idle_timeout=5.0)) as cache:
        f = await add(cache, "f", fake.adding(1))
        for second in (0.0, 4.0, 8.0):
            await at(clock, second)
            await f.call(1)
        await at(clock, 12.0)
        async with f.acquire():
            await at(clock, 20.0)
            assert cache.stats().running_instances == 1
        await at(clock, 24.9)
        assert cache.stats().idle_instances == 1
        await at(clock, 25.0)
        assert cache.stats().idle_instances == 0
        assert cache.stats().hits == 3


async def test_each_goes_at_its_own_time(
    fake: FakeKit, clock: trio.testing.MockClock, log: ListLogger
) -> None:
    """In the order of last use, whoever was loaded first."""
    async with fake.open(CacheConfig(idle_timeout=5.0), logger=log) as cache:
        for number, name in enumerate("abc"):
            await add(cache, name, fake.adding(number))
        for second, name in ((0.0, "a"), (1.0, "b"), (2.0, "a"), (3.0, "c")):
            await at(clock, second)
            async with cache.acquire(name, ("i64",)):
                pass
        for second in (5.0, 6.0, 7.0, 8.0):
            await at(clock, second)
        gone = [(event["function"], event["at_seconds"]) for event in log.fields("evicted")]
        assert gone == [("b", 6.0), ("a", 7.0), ("c", 8.0)]


async def test_it_wakes_only_when_something_is_due(
    fake: FakeKit, clock: trio.testing.MockClock
) -> None:
    """Ten uses before the timeout cost the background task at most one look in vain."""
    async with fake.open(CacheConfig(idle_timeout=5.0)) as cache:
        f = await add(cache, "f", fake.adding(1))
        wakes = 0

        class Count(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal wakes
                wakes += task.name.endswith("Evictor.run")

        await f.call(1)
        await wait_all_tasks_blocked()
        instrument = Count()
        trio.lowlevel.add_instrument(instrument)
        for second in range(1, 11):
            await at(clock, second * 0.4)
            await f.call(1)
        await at(clock, 8.0)
        trio.lowlevel.remove_instrument(instrument)
        assert wakes <= 1
        assert cache.stats().idle_instances == 1
        await at(clock, 9.0)
        assert cache.stats().idle_instances == 0


async def test_others_run_while_much_is_due(fake: FakeKit, clock: trio.testing.MockClock) -> None:
    """All goes without the clock's going on, but some in each step."""
    async with fake.open(CacheConfig(idle_timeout=5.0, max_code_size=2**30)) as cache:
        f = await add(cache, "f", fake.adding(1), concurrency=40)
        async with AsyncExitStack() as leases:
            for _ in range(40):
                await leases.enter_async_context(f.acquire())
        left = [40]

        class Count(trio.abc.Instrument):
            def after_task_step(self, task: trio.lowlevel.Task) -> None:
                left.append(cache.stats().idle_instances)

        instrument = Count()
        trio.lowlevel.add_instrument(instrument)
        await at(clock, 5.0)
        trio.lowlevel.remove_instrument(instrument)
        assert left[-1] == 0
        assert max(a - b for a, b in itertools.pairwise(left)) <= 8
        check_invariants(cache)


async def test_resizing_the_timeout(fake: FakeKit, clock: trio.testing.MockClock) -> None:
    """A shorter one holds for what is idle already; with none, nothing is ever due."""
    async with fake.open(CacheConfig(idle_timeout=50.0)) as cache:
        f = await add(cache, "f", fake.adding(1))
        g = await add(cache, "g", fake.adding(2))
        await f.call(1)
        await at(clock, 2.0)
        await g.call(1)
        cache.resize(idle_timeout=3.0)
        await at(clock, 3.0)
        assert [info.function for info in cache.entries()] == ["g"]
        cache.resize(idle_timeout=math.inf)
        await wait_all_tasks_blocked()
        assert next_deadline() == math.inf
        await at(clock, 1000.0)
        assert cache.stats().idle_instances == 1
        cache.resize(idle_timeout=1.0)
        await wait_all_tasks_blocked()
        assert cache.stats().idle_instances == 0


async def test_everything_idle_goes_and_so_does_the_code(
    fake: FakeKit, clock: trio.testing.MockClock
) -> None:
    """After the timeout the cache is as empty as it began, functions apart."""
    async with fake.open() as cache:
        async with cache.scheduling_group("g", capacity=9):
            await fill(cache, fake)
            assert cache.stats().total_size > 0
            await at(clock, 5.0)
            stats = cache.stats()
            assert (stats.total_size, stats.code_size, stats.entries) == (0, 0, 0)
            assert (stats.loaded_modules, stats.idle_instances) == (0, 0)
            assert fake.engine.open_instances == fake.engine.loaded_modules == 0
            assert stats.evictions["idle"] == 6
            assert stats.functions == 3
            check_invariants(cache)


async def fill(cache: InstanceCache, fake: FakeKit) -> None:
    """Two idle instances of each of three functions."""
    for number, name in enumerate("abc"):
        f = await add(cache, name, fake.adding(number), concurrency=2)
        async with f.acquire(), f.acquire():
            pass


async def test_expiry_makes_room_for_who_waits(
    fake: FakeKit, clock: trio.testing.MockClock
) -> None:
    """An idle instance that pins nothing of use goes by time, and the books let a waiter in."""
    async with fake.open() as cache:
        shared = fake.adding(1)
        idle = await add(cache, "idle", shared)
        await idle.call(1)
        running = await add(cache, "running", shared)
        other = await add(cache, "other", fake.adding(2))
        results: list[int] = []

        async def use() -> None:
            results.append(await other.call(1))

        async with trio.open_nursery() as nursery:
            async with running.acquire():
                cache.resize(max_code_size=other.code_size + stack_of(cache))
                nursery.start_soon(use)
                await at(clock, 5.0)
                assert cache.stats().evictions["idle"] == 1
                assert results == []
                check_invariants(cache)
        assert results == [3]


async def test_a_seat_that_was_taken_in_vain_goes_on_time(
    fake: FakeKit, clock: trio.testing.MockClock
) -> None:
    """Nothing was idle for a while, so nobody looks any more; putting it back is a reason to."""
    async with fake.open(CacheConfig(yield_fuel=100, offload_after=None)) as cache:
        f = await add(cache, "f", fake.adding(1, slow_start=True), isolation="fresh")
        await f.call(1)
        assert cache.stats().idle_instances == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(f.call, 1)
            while cache.stats().running_instances == 0:
                await trio.lowlevel.checkpoint()
            clock.jump(7.0)
            while next_deadline() != math.inf:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert cache.stats().idle_instances == 1
        await at(clock, 11.875)
        assert cache.stats().idle_instances == 1
        await at(clock, 12.0)
        assert cache.stats().idle_instances == 0
        check_invariants(cache)


async def test_time_is_trios(
    fake: FakeKit, autojump_clock: trio.testing.MockClock, log: ListLogger
) -> None:
    """A sleeping application wakes up to find it gone."""
    async with fake.open(CacheConfig(idle_timeout=60.0), logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        await f.call(1)
        await trio.sleep(59.9)
        assert cache.stats().idle_instances == 1
        await trio.sleep(0.2)
        assert cache.stats().idle_instances == 0
    assert [event["at_seconds"] for event in log.fields("evicted")] == [60.0]


class SystemClock(trio.abc.Clock):
    """An application's clock, which stands still; its class is called as that of Trio's own."""

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return 7.0

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return max(0.0, deadline - 7.0)


async def test_a_hit_reads_the_clock_that_trio_reads(fake: FakeKit) -> None:
    """By a shorter way, where it is Trio's own; a clock that stands still is asked as it is."""
    async with fake.open() as cache:
        before = trio.current_time()
        now = cache._pool.now()
        after = trio.current_time()
        assert before - 0.01 <= now <= after + 0.01
    times = []

    async def on_another_clock() -> None:
        async with FakeKit().open() as cache:
            times.append((cache._pool.now(), trio.current_time()))

    for clock in (MockClock(), SystemClock()):
        await trio.to_thread.run_sync(partial(trio.run, on_another_clock, clock=clock))
    assert times == [(0.0, 0.0), (7.0, 7.0)]


async def until(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let the clock show `seconds`, and everything on the way that a deadline is for."""
    while (due := trio.current_time() + next_deadline()) < seconds:
        await at(clock, due)
    await at(clock, seconds)


ADAPTIVE = CacheConfig(idle_timeout="adaptive", min_idle_timeout=1.0, max_idle_timeout=60.0)


async def test_an_adaptive_timeout_ends_on_time(
    fake: FakeKit, clock: trio.testing.MockClock, log: ListLogger
) -> None:
    """For each function at its own, in whatever order they were used; then nothing wakes."""
    async with fake.open(ADAPTIVE, logger=log) as cache:
        often, seldom = [await add(cache, name, fake.adding(1)) for name in ("often", "seldom")]
        for second in (0.0, 2.0, 4.0, 6.0):
            await until(clock, second)
            await often.call(1)
        for second in (7.0, 27.0):
            await until(clock, second)
            await seldom.call(1)
        (first,) = log.fields("evicted")
        assert first["function"] == "often"
        assert 8.0 < first["at_seconds"] < 10.0
        await until(clock, 28.0)
        check_invariants(cache)
        while cache.stats().idle_instances:
            await at(clock, trio.current_time() + next_deadline())
        assert next_deadline() == math.inf
        *_, last = log.fields("evicted")
        assert (last["function"], last["reason"]) == ("seldom", "idle")
        assert 47.0 < last["at_seconds"] < 60.0
        assert last["at_seconds"] - 27.0 == last["idle_seconds"]
        check_invariants(cache)


async def test_a_new_idle_instance_is_looked_at_before_those_that_are_due_later(
    fake: FakeKit, clock: trio.testing.MockClock
) -> None:
    """The deadline comes forward when all others have been idle for long; a hit does not know."""
    async with fake.open(ADAPTIVE) as cache:
        f, g = [await add(cache, name, fake.adding(1), concurrency=2) for name in "fg"]
        await g.call(1)
        async with g.acquire():  # so that another one of it is idle from the same time on
            await g.call(1)
        await at(clock, 1.0)
        assert next_deadline() == 59.0
        await f.call(1)
        assert next_deadline() == 1.0
        await at(clock, 1.5)
        for _ in range(3):
            await f.call(1)
        assert next_deadline() == 0.5
        await at(clock, 2.0)
        assert next_deadline() == 0.5
        await at(clock, 2.5)
        assert next_deadline() == 57.5
        check_invariants(cache)


async def test_idle_timeouts_are_switched_by_resize(
    fake: FakeKit, clock: trio.testing.MockClock
) -> None:
    """The deadline follows at once, there and back."""
    async with fake.open(CacheConfig(idle_timeout=5.0)) as cache:
        f = await add(cache, "f", fake.adding(1))
        await f.call(1)
        await at(clock, 2.0)
        cache.resize(idle_timeout="adaptive")
        assert next_deadline() == 598.0
        cache.resize(max_idle_timeout=100.0)
        assert next_deadline() == 98.0
        assert cache.stats().idle_instances == 1
        cache.resize(idle_timeout=10.0)
        assert next_deadline() == 8.0
        await f.call(1)
        assert cache.stats().hits == 1
        assert next_deadline() == 8.0
        check_invariants(cache)
