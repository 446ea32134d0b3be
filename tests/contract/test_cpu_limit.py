"""`cpu_limit`: a group uses so much CPU time in each second, and its calls wait beyond that."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import trio
from attrs import evolve
from kits import COSTLY, PAGE, FakeKit, Kit, ListLogger, add, add_asking
from staging import look, stage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, DeadlockError, Function, InstanceCache
from trio_wasmcache.testing import cancel_everywhere, check_invariants

# Each slice, host function and start takes a millisecond of the clock below.
TICK = 0.001
INLINE = CacheConfig(offload_after=None, total_fuel=10**12, idle_timeout=math.inf)


def tick(cache: InstanceCache) -> list[float]:
    """Give a cache a CPU clock that goes on by itself; return [its time now]."""
    now, reads = [0.0], itertools.count()

    def clock() -> float:
        now[0] += TICK * (next(reads) % 2)  # it is read before and after
        return now[0]

    cache._pool.runner.cpu_clock = clock
    return now


async def loop_for(seconds: float, function: Function) -> None:
    """Call an endless function for so long."""
    with trio.move_on_after(seconds):
        await function.call(1)


async def test_endless_loops_keep_to_it(fake: FakeKit, autojump_clock: None) -> None:
    """A tenth of a core for twenty loops at once, over ten seconds."""
    async with fake.open(INLINE) as cache:
        loops = [await add(cache, f"f{n}", fake.endless()) for n in range(20)]
        used = tick(cache)
        async with cache.scheduling_group("slow", capacity=20, cpu_limit=0.1) as slow:
            for loop in loops:
                slow.start_soon(loop_for, 9.5, loop)
        assert 0.95 <= used[0] <= 1.0 + 21 * TICK
        check_invariants(cache)


async def test_short_calls_keep_to_it_too(fake: FakeKit, autojump_clock: None) -> None:
    """Also if each ends in its first slice, in one lease or in many, and with steps of an ABI."""
    async with fake.open(INLINE) as cache:
        f = await add(cache, "f", fake.adding(1))
        text = await cache.register(
            "text", fake.engine.function(str.upper), args=("str",), returns="str", abi="buffer"
        )
        used = tick(cache)
        async with cache.scheduling_group("slow", capacity=2, cpu_limit=0.1) as slow:
            for function, value in ((f, 1), (text, "a")):
                began, before = trio.current_time(), used[0]
                async with slow.acquire(function.name) as lease:
                    for _ in range(250):
                        await lease.call(value)
                for _ in range(250):
                    async with slow.acquire(function.name) as lease:
                        await lease.call(value)
                seconds = trio.current_time() - began
                assert used[0] - before >= 0.5 * (1 - TICK)
                assert used[0] - before <= (math.ceil(seconds) + 1) * 0.1 + 2 * TICK


async def test_many_that_wait_go_on_one_after_the_other(
    fake: FakeKit, autojump_clock: None
) -> None:
    """A window is used up, whatever they do in it: a call each, or endless loops."""
    async with fake.open(INLINE) as cache:
        f = await add(cache, "f", fake.adding(1))
        endless = await add(cache, "endless", fake.endless(), concurrency=40)
        used = tick(cache)
        async with cache.scheduling_group("slow", capacity=math.inf, cpu_limit=0.1) as slow:
            for _ in range(3):
                with trio.move_on_after(2.5):
                    async with trio.open_nursery() as nursery:
                        for _ in range(40):
                            nursery.start_soon(loop_for, 9.0, endless)
            began, before = trio.current_time(), used[0]

            async def call() -> None:
                async with slow.acquire(f.name) as lease:
                    await lease.call(1)

            async with trio.open_nursery() as nursery:
                for _ in range(400):
                    nursery.start_soon(call)
            seconds = trio.current_time() - began
            assert used[0] - before >= (seconds - 2) * 0.1
            assert seconds <= 400 * TICK / 0.1 + 2


async def test_host_functions_count(fake: FakeKit, autojump_clock: None) -> None:
    """By the time that they take, sync and async."""
    async with fake.open(INLINE) as cache:
        used = tick(cache)

        async def slow_answer(value: int) -> int:
            used[0] += 0.05
            await trio.lowlevel.checkpoint()
            return value

        asks = await add_asking(cache, fake, slow_answer)
        async with cache.scheduling_group("slow", capacity=1, cpu_limit=0.1):
            began = trio.current_time()
            for _ in range(20):
                await asks.call(1)
            assert trio.current_time() - began >= 20 * 0.05 / 0.1 - 1


async def test_short_batches_count(kit: Kit, autojump_clock: None) -> None:
    """Also if the first slice of a driver is the last, and it calls no host function."""
    config = CacheConfig(offload_after=None, main_cpu_limit=0.1, idle_timeout=math.inf)
    async with kit.open(config) as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        used = tick(cache)
        async with f.acquire() as lease:
            await lease.map([[1, 2]])
            budget = cache._groups.main.share.budget
            assert budget is not None
            before, charged = used[0], budget.used
            await lease.map([[3, 4]])
            slices = used[0] - before
            assert slices >= 2 * TICK  # the columns were read, and the guest ran
            assert budget.used - charged >= slices
            began, before = trio.current_time(), used[0]
            for _ in range(200):
                await lease.map([[5, 6]])
            assert trio.current_time() - began >= (used[0] - before) / 0.1 - 2


async def test_others_run_meanwhile(fake: FakeKit, log: ListLogger, autojump_clock: None) -> None:
    """A call that waits holds no turn; the log and the statistics say for how long it waited."""
    async with fake.open(INLINE, logger=log) as cache:
        endless = await add(cache, "endless", fake.endless())
        f = await add(cache, "f", fake.costly())
        tick(cache)
        async with cache.scheduling_group("slow", capacity=2, cpu_limit=0.01) as slow:
            slow.start_soon(loop_for, 5.0, endless)
            slow.start_soon(loop_for, 5.0, endless)
            await trio.sleep(2.5)
            before = cache.stats()
            assert before.throttled_seconds["slow"] >= 2.0
            assert before.throttled_waits["slow"] >= 2
            began = trio.current_time()
            async with cache.scheduling_group("fast", capacity=1) as fast:
                for _ in range(1000):
                    async with fast.acquire(f.name) as lease:
                        await lease.call(1)
            assert trio.current_time() == began
            cache.pop_stats()
            assert cache.stats().throttled_seconds == {"slow": 0.0}
            assert cache.stats().throttled_waits == {"slow": 0}
        assert cache.stats().throttled_seconds == {}
    told = log.fields("throttled")
    assert sum(one["waits"] for one in told) >= before.throttled_waits["slow"]
    assert {one["group"] for one in told} == {"slow"}
    assert {one["cpu_limit_cores"] for one in told} == {0.01}
    assert 4.0 <= sum(one["wait_seconds"] for one in told) <= 10.0
    times = [one["at_seconds"] for one in told]
    assert all(later - sooner >= 1.0 for sooner, later in itertools.pairwise(times[:-1]))


@pytest.fixture(params=["long", "short"])
def how(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whether the call that waits has begun, or is about to."""
    return request.param  # type: ignore[no-any-return]


async def wait_in(cache: InstanceCache, fake: FakeKit, how: str) -> None:
    """Register a function, and call it until its group waits for the CPU."""
    if how == "long":
        await (await add(cache, "f", fake.endless())).call(1)
    else:
        f = await add(cache, "f", fake.adding(1))
        while True:
            await f.call(1)


async def test_a_wait_can_be_cancelled(fake: FakeKit, how: str, autojump_clock: None) -> None:
    """At once, and nothing is left."""
    async with fake.open(INLINE) as cache:
        tick(cache)
        async with cache.scheduling_group("slow", capacity=1, cpu_limit=0.001) as slow:
            began = trio.current_time()
            slow.start_soon(wait_in, cache, fake, how)
            await trio.sleep(0.5)
            assert cache._pool.runner.loop.taken == 0
            slow.cancel_scope.cancel()
        assert trio.current_time() == began + 0.5
        assert cache.stats().running_instances == 0
        check_invariants(cache)


@pytest.mark.parametrize("what", ["call", "start", "host", "batch"])
async def test_cancelled_everywhere(fake: FakeKit, what: str, autojump_clock: None) -> None:
    """Before a call, between its slices, while it starts, and beside others that wait, too."""
    config = evolve(INLINE, max_size=0 if what == "start" else 100 * PAGE, yield_fuel=COSTLY // 3)
    async with stage(fake, config) as at:
        cache = at.cache
        slow = await add(cache, "slow", fake.adding(1, slow_start=True), concurrency=3)
        costly = await add(cache, "costly", fake.costly(), concurrency=3)

        async def ask(value: int) -> int:
            await costly.call(1)
            return value

        asks = await add_asking(cache, fake, ask)
        used = tick(cache)
        # Each step of a host function takes a tick, too.
        cores = 10 * TICK if what == "host" else TICK
        async with cache.scheduling_group("slow", capacity=3, cpu_limit=cores) as group:

            async def use(value: int) -> None:
                function = {"start": slow, "host": asks}.get(what, costly)
                async with group.acquire(function.name) as lease:
                    if what == "batch":
                        await lease.map([[value, value]])
                    else:
                        await lease.call(value)

            async def scenario() -> None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(use, 1)
                    if what in {"call", "start"}:
                        nursery.start_soon(use, 2)

            def check() -> None:
                look(cache, fake)
                budget = group._state.share.budget
                assert budget is not None
                assert budget.waiting == 0
                assert cache._pool.runner.loop.taken == 0

            count = await cancel_everywhere(scenario, check)
            assert count >= 12
            assert cache.stats().throttled_seconds["slow"] > count * 0.5
            began = trio.current_time()
            await use(3)
            assert trio.current_time() - began < 60
        assert used[0] > count * TICK


async def test_a_wait_for_the_cpu_is_no_deadlock(fake: FakeKit, autojump_clock: None) -> None:
    """It ends by itself; so others may wait for what it holds, and a real deadlock is found."""
    config = evolve(INLINE, yield_fuel=COSTLY // 3)
    async with fake.open(config) as cache, trio.open_nursery() as nursery:
        costly = await add(cache, "costly", fake.costly())
        f = await add(cache, "f", fake.adding(1))
        tick(cache)
        order = []
        holds = trio.Event()

        async def holds_f() -> None:
            async with f.acquire() as lease:
                holds.set()
                async with group.acquire(costly.name) as other:
                    order.append("waited")
                    await other.call(1)
                await lease.call(1)

        async with cache.scheduling_group("slow", capacity=5, cpu_limit=TICK) as group:
            async with group.acquire(costly.name) as lease:
                nursery.start_soon(holds_f)
                await holds.wait()  # its start takes CPU time of the group, too
                began = trio.current_time()
                await lease.call(1)  # waits for the CPU, and the other for this
                order.append("called")
                assert trio.current_time() - began > 2
                assert cache.stats().waiting == 1
                with pytest.raises(DeadlockError, match="this wait would never end"):
                    async with cache.acquire(f.name):
                        raise AssertionError("granted")
                check_invariants(cache)
            async with cache.acquire(f.name):  # once the other has gone through, too
                pass
            assert order == ["called", "waited"]
        check_invariants(cache)


async def test_closing_ends_waits(fake: FakeKit, how: str, autojump_clock: None) -> None:
    """The call gets `ClosedResourceError` in the step in which its cache closes."""
    began = []

    async def wait(cache: InstanceCache) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait_in(cache, fake, how)
        began.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        async with fake.open(CacheConfig(offload_after=None, main_cpu_limit=0.001)) as cache:
            tick(cache)
            nursery.start_soon(wait, cache)
            await trio.sleep(0.5)
            closed = trio.current_time()
        await wait_all_tasks_blocked()
        assert began == [closed]


@pytest.mark.parametrize("limit", [None, 1000.0])
async def test_more_of_it_ends_waits(
    fake: FakeKit, how: str, limit: float | None, autojump_clock: None
) -> None:
    """At once, and for instances that were made under the old limit."""
    async with fake.open(INLINE) as cache:
        used = tick(cache)
        async with cache.scheduling_group("slow", capacity=1, cpu_limit=0.001) as slow:
            slow.start_soon(wait_in, cache, fake, how)
            await trio.sleep(0.5)
            before, began = used[0], trio.current_time()
            slow.resize(cpu_limit=limit)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert trio.current_time() == began
            assert slow.name in cache.stats().throttled_seconds or limit is None
            assert used[0] > before or limit is None
            slow.cancel_scope.cancel()


async def test_a_limit_that_comes_later_holds_for_instances_that_are_there(
    fake: FakeKit, autojump_clock: None
) -> None:
    """Idle ones, and those of leases: from their next lease on."""
    async with fake.open(INLINE) as cache:
        f = await add(cache, "f", fake.adding(1))
        used = tick(cache)
        async with cache.scheduling_group("slow", capacity=1) as slow:
            await f.call(1)
            assert used[0] == 0.0
            slow.resize(cpu_limit=0.1)
            began = trio.current_time()
            for _ in range(500):
                await f.call(1)
            assert trio.current_time() - began >= 4.0


async def test_threads_keep_to_it(kit: Kit, mock_clock: MockClock) -> None:
    """The time of a thread is its own clock's; it comes back once the window is used up."""
    config = CacheConfig(offload_after=0, total_fuel=10**12)
    async with kit.open(config) as cache:
        endless = await add(cache, "endless", kit.endless())
        used = tick(cache)
        async with cache.scheduling_group("slow", capacity=1, cpu_limit=0.005) as slow:
            budget = slow._state.share.budget
            assert budget is not None
            slow.start_soon(endless.call, 1)
            while not budget.waiting:  # in the first window: the clock stands
                await trio.lowlevel.checkpoint()
            slow.cancel_scope.cancel()
        assert 0.005 <= used[0] <= 0.005 + 3 * TICK
