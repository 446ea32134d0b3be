"""The runner with a guest whose every slice waits to be let through: nothing is left to chance."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, HostFunction
from trio_wasmcache._core.policy.cpu_budget import CpuBudget
from trio_wasmcache._core.policy.shares import BURST_FUEL, CALL_FUEL, Share
from trio_wasmcache._engine.base import HostCall
from trio_wasmcache._runtime.runner import CHARGE_SLICES, THREAD_SLICES, Job, Runner


class Holder:
    """What a job needs of a lease: the error for one that was ended under it."""

    def _unusable(self) -> Exception:
        return trio.ClosedResourceError("ended")


class Gated:
    """Something to be polled: each slice burns ten units and, in a thread, waits for a permit."""

    host_call = None

    def __init__(self, slices: int, loop: threading.Thread) -> None:
        self.slices = slices
        self.loop = loop
        self.polled: list[str] = []
        self.permits = threading.Semaphore(0)
        self.reached = threading.Semaphore(0)

    def poll(self) -> bool:
        here = threading.current_thread() is self.loop
        self.polled.append("loop" if here else "thread")
        if not here:
            self.reached.release()
            assert self.permits.acquire(timeout=600)
        return len(self.polled) >= self.slices

    def fuel_left(self) -> int:
        return 10**6 - 10 * len(self.polled)

    async def in_slice(self) -> None:
        """Wait until a thread is in a slice."""
        assert await trio.to_thread.run_sync(self.reached.acquire, True, 20)


def start(slices: int, **config: object) -> tuple[Runner, Gated, Job]:
    """A runner, and a job of so many slices; the first is the caller's, and done."""
    # What host functions take does not count: it would, by the machine's time, end bursts.
    runner = Runner(CacheConfig(**config), lambda: 0.0)  # type: ignore[arg-type]
    guest = Gated(slices, threading.current_thread())
    assert not guest.poll()
    job = Job(guest, Share(100), (), Holder(), 10**6)
    job.charge()
    return runner, guest, job


def all_given_back(runner: Runner) -> bool:
    """No turn is taken or waited for."""
    lines = (runner.loop, runner.threads)
    return all(line.taken == 0 and not line.contended for line in lines)


@pytest.mark.parametrize(
    ("offload_after", "places"),
    [
        (None, ["loop"] * 6),
        (0, ["loop"] + ["thread"] * 5),
        (1, ["loop"] + ["thread"] * 5),
        (4, ["loop"] * 4 + ["thread"] * 2),
    ],
)
async def test_where_slices_run(offload_after: int | None, places: list[str]) -> None:
    """The first slices run inline; after `offload_after` of them the call goes on in a thread."""
    runner, guest, job = start(6, offload_after=offload_after)
    for _ in range(6):
        guest.permits.release()
    await runner.drive(job)
    assert guest.polled == places
    assert job.burnt == 60
    assert job.share.virtual_time == pytest.approx(0.6)
    assert all_given_back(runner)


async def test_cancelled_in_a_thread_it_stops_after_the_slice() -> None:
    """The thread is waited for, and does not begin another slice."""
    runner, guest, job = start(1000, offload_after=0)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.drive, job)
            await guest.in_slice()
            scope.cancel()
            await trio.lowlevel.cancel_shielded_checkpoint()
            assert job.in_thread  # it can't be abandoned: it is in there
            guest.permits.release()
    assert scope.cancelled_caught
    assert guest.polled == ["loop", "thread"]
    assert not job.in_thread
    assert all_given_back(runner)


async def test_cancelled_in_its_last_slice_it_is_over() -> None:
    """What a thread has finished by the time it looks, is finished."""
    runner, guest, job = start(2, offload_after=0)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.drive, job)
            await guest.in_slice()
            scope.cancel()
            guest.permits.release()
    assert guest.polled == ["loop", "thread"]
    assert job.burnt == 20
    assert all_given_back(runner)


async def test_told_to_stop_in_a_thread() -> None:
    """As closing the cache does: within a slice, with an error, and the event tells when."""
    runner, guest, job = start(1000, offload_after=0)
    async with trio.open_nursery() as nursery:

        async def drive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await runner.drive(job)

        nursery.start_soon(drive)
        await guest.in_slice()
        out = job.out_of_thread
        job.stop = True
        assert not out.is_set()
        guest.permits.release()
        await out.wait()
        assert guest.polled == ["loop", "thread"]
    assert all_given_back(runner)


async def take_turns(guest: Gated, turns: int) -> None:
    """Let a guest that is in a slice in a thread run on, until it is in one so many turns later."""
    slices = turns * CHARGE_SLICES
    polled = len(guest.polled)
    guest.permits.release(slices)
    while len(guest.polled) < polled + slices:
        await guest.in_slice()


async def test_a_lone_call_stays_in_its_thread() -> None:
    """Its group is charged for whole turns whenever someone looks, and at the end for the rest."""
    runner, guest, job = start(4 * CHARGE_SLICES + 5, offload_after=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.drive, job)
        await guest.in_slice()
        await take_turns(guest, 1)
        assert job.burnt == 10
        runner.settle()
        assert job.burnt == 10 * (1 + CHARGE_SLICES)
        assert runner.threads.line.turns == 2
        await take_turns(guest, 2)
        for _ in range(2):
            runner.settle()
            assert job.burnt == 10 * (1 + 3 * CHARGE_SLICES)
            assert job.share.virtual_time == pytest.approx(job.burnt / 100)
            assert runner.threads.line.turns == 4
        guest.permits.release(CHARGE_SLICES + 5)
    assert job.burnt == 10 * (4 * CHARGE_SLICES + 5)
    assert job.share.virtual_time == pytest.approx(job.burnt / 100)
    assert runner.threads.line.turns == 5
    assert all_given_back(runner)


async def test_a_group_that_was_away_while_a_thread_ran_gets_no_credit() -> None:
    """What the thread has not left off for counts as burnt, and as turns, when the group comes."""
    runner, guest, job = start(4 * CHARGE_SLICES, offload_after=0)
    away = Share(100)
    brief = Waiting("away", 1, [])
    brief.host_call = None
    await runner.drive(Job(brief, away, (), Holder(), 10**6))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.drive, job)
        await guest.in_slice()
        await take_turns(guest, 3)
        again = Waiting("away", 1, [])
        again.host_call = None
        await runner.drive(Job(again, away, (), Holder(), 10**6))
        assert away.virtual_time >= job.share.virtual_time >= 10 * 3 * CHARGE_SLICES / 100
        guest.permits.release(CHARGE_SLICES)


async def test_turns_in_a_thread_before_a_call_ends_do_not_make_its_group_away() -> None:
    """They are counted when it leaves, not when it comes again."""
    runner, guest, job = start(4 * CHARGE_SLICES, offload_after=0)
    share = Share(100)

    def host() -> None:
        guest.permits.release(3 * CHARGE_SLICES)
        while len(guest.polled) < 2 + 3 * CHARGE_SLICES:
            guest.reached.acquire()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.drive, job)
        await guest.in_slice()
        brief = Waiting("brief", 1, [])
        await runner.drive(Job(brief, share, (HostFunction(host, (), ()),), Holder(), 10**6))
        assert share.left == runner.threads.line.turns + runner.loop.line.turns == 4
        runner.settle()
        assert runner.threads.line.turns == 4
        guest.permits.release(CHARGE_SLICES)


@pytest.mark.parametrize("why", ["a limit of its CPU time", "so much fuel"])
async def test_a_call_leaves_its_thread_after_a_turn(why: str) -> None:
    """Where the loop has to act on what it burnt."""
    runner, guest, job = start(2 * CHARGE_SLICES, offload_after=0)
    told: list[int] = []
    runner.burnt = lambda: told.append(job.burnt)
    if why == "so much fuel":
        job.note_at = 10 * CHARGE_SLICES
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.drive, job)
        await guest.in_slice()
        if why != "so much fuel":
            job.share.budget = CpuBudget("group", 1e9)
        await take_turns(guest, 1)
        assert job.burnt == 10 * (1 + CHARGE_SLICES)
        assert job.noted == (0, 0)
        assert told == ([job.burnt] if why == "so much fuel" else [])
        guest.permits.release(CHARGE_SLICES)
    assert all_given_back(runner)


async def test_a_call_in_a_thread_makes_way_for_one_that_waits() -> None:
    """With one thread and two calls of one group, each gets its turns."""
    runner, guest, job = start(1000, offload_after=0, max_threads=1)
    other = Gated(3, threading.current_thread())
    assert not other.poll()
    second = Job(other, job.share, (), Holder(), 10**6)
    scope = trio.CancelScope()

    async def first() -> None:
        with scope:
            await runner.drive(job)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await guest.in_slice()
        nursery.start_soon(runner.drive, second)
        while not runner.threads.contended:
            await trio.lowlevel.checkpoint()
        for _ in range(THREAD_SLICES):
            guest.permits.release()
        await other.in_slice()
        assert guest.polled.count("thread") == THREAD_SLICES
        assert runner.threads.taken == 1
        scope.cancel()  # while it waits for its next turn
        other.permits.release()
        other.permits.release()
    assert other.polled == ["loop", "thread", "thread"]
    assert guest.polled.count("thread") == THREAD_SLICES
    assert all_given_back(runner)


async def test_a_call_that_waits_for_a_thread_gets_one_when_there_are_more() -> None:
    """`resize` upwards is for those who wait, too: nobody has to give a thread back first."""
    runner, guest, job = start(3, offload_after=0, max_threads=1)
    other = Gated(2, threading.current_thread())
    assert not other.poll()
    second = Job(other, job.share, (), Holder(), 10**6)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.drive, job)
        await guest.in_slice()
        nursery.start_soon(runner.drive, second)
        while not runner.threads.contended:
            await trio.lowlevel.checkpoint()
        runner.resize(CacheConfig(offload_after=0, max_threads=2))
        await other.in_slice()  # while the first call is still in the only thread there was
        other.permits.release()
        guest.permits.release()
        guest.permits.release()
    assert all_given_back(runner)


class Waiting:
    """Something to be polled inline: its host function waits first, then come so many slices."""

    def __init__(self, name: str, slices: int, order: list[str], burns: int = 1000) -> None:
        self.name = name
        self.burns = burns
        self.order = order
        self.left = slices
        self.burnt = 0
        self.host_call: HostCall | None = HostCall(0, (), None, self.answer, self.take_fuel)

    def answer(self, values: object) -> None:
        self.host_call = None

    def take_fuel(self, fuel: int) -> int:
        self.burnt += fuel
        return fuel

    def poll(self) -> bool:
        self.order.append(self.name)
        self.left -= 1
        self.burnt += self.burns
        return not self.left

    def fuel_left(self) -> int:
        return 10**6 - self.burnt


async def test_who_sleeps_in_a_host_function_gets_no_credit() -> None:
    """A group whose call waits for the host is away: what others burn meanwhile, it is not owed."""
    runner = Runner(CacheConfig(offload_after=None), lambda: 0.0)
    wake = trio.Event()
    order: list[str] = []
    slept, worked = Share(100), Share(100)

    async def drive(name: str, share: Share, slices: int, host: Callable[[], object]) -> None:
        guest = Waiting(name, slices, order, 400_000)  # nothing else counts beside that
        await runner.drive(Job(guest, share, (HostFunction(host, (), ()),), Holder(), 10**6))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drive, "s", slept, 20, wake.wait)
        await wait_all_tasks_blocked()
        await drive("w", worked, 100, lambda: None)
        order.clear()
        wake.set()
        nursery.start_soon(drive, "w", worked, 20, lambda: None)
    assert order[:20].count("w") in (9, 10, 11)
    assert slept.active == worked.active == 0


async def test_calls_that_burn_next_to_nothing_take_turns_as_others_do() -> None:
    """What they cost beside their fuel is their group's: it is not behind for ever."""
    runner = Runner(CacheConfig(), lambda: 0.0)
    order: list[str] = []

    async def work(name: str, share: Share, fuel: int) -> None:
        for _ in range(30):
            while share.burst < BURST_FUEL:
                share.charge(fuel)
            order.append(name)
            await runner.pass_turn(share)

    cheap, dear = Share(100), Share(100)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work, "cheap", cheap, 0)
            nursery.start_soon(work, "dear", dear, BURST_FUEL - CALL_FUEL)
    assert order[:80].count("dear") in range(36, 45)
    assert cheap.virtual_time == pytest.approx(dear.virtual_time, rel=0.05)


class CpuClock:
    """CPU time of the loop's thread, which passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        """Take CPU time."""
        self.now += seconds


async def charged(host: Callable[[Share], object], clock: CpuClock, slices: int = 1) -> Share:
    """The share of a group whose guest calls a host function, and burns 1,000 units a slice."""
    runner, share = Runner(CacheConfig(offload_after=None), clock), Share(100)
    guest = Waiting("g", slices, [])
    function = HostFunction(lambda: host(share), (), ())
    await runner.drive(Job(guest, share, (function,), Holder(), 10**6))
    assert share.active == 0
    assert all_given_back(runner)
    return share


async def test_cpu_time_of_a_sync_host_function_is_its_groups() -> None:
    """All of it, at 1,000 units a microsecond, beside what the guest burns."""
    clock = CpuClock()
    share = await charged(lambda _: clock.work(0.0003), clock)
    assert share.virtual_time * 100 == pytest.approx(300_000 + 1000, abs=10)
    assert share.burst == 300_000 + 1000 + CALL_FUEL


async def test_steps_of_an_async_host_function_are_charged_and_its_waits_are_not() -> None:
    """While it waits, the thread may do anything; an error goes through it like a value."""
    clock = CpuClock()
    waiting, go_on = trio.Event(), trio.Event()
    active: list[int] = []

    async def host(share: Share) -> None:
        for _ in range(2):
            clock.work(0.0001)
            active.append(share.active)
            waiting.set()
            await go_on.wait()
        with trio.move_on_after(0):
            await trio.sleep_forever()
        clock.work(0.0001)

    async with trio.open_nursery() as nursery:

        async def other() -> None:
            await waiting.wait()
            clock.work(1)
            go_on.set()

        nursery.start_soon(other)
        share = await charged(host, clock)
    assert share.virtual_time * 100 == pytest.approx(300_000 + 1000, abs=10)
    assert active == [1, 1]


async def test_what_a_host_function_raises_passes_and_is_charged() -> None:
    """As it is, after its CPU time; a cancelled one, too."""
    clock = CpuClock()
    shares: list[Share] = []

    def sync(share: Share) -> None:
        shares.append(share)
        clock.work(0.0002)
        raise ZeroDivisionError

    async def later(share: Share) -> None:
        shares.append(share)
        await trio.lowlevel.checkpoint()
        clock.work(0.0002)
        raise ZeroDivisionError

    async def cancelled(share: Share) -> None:
        shares.append(share)
        try:
            await trio.sleep_forever()
        finally:
            clock.work(0.0002)

    for host in (sync, later):
        with pytest.raises(ZeroDivisionError):
            await charged(host, clock)
    with trio.move_on_after(0) as scope:
        await charged(cancelled, clock)
    assert scope.cancelled_caught
    for share in shares:
        assert share.virtual_time * 100 == pytest.approx(200_000, abs=10)
        assert share.active == 0


async def test_what_a_host_function_has_guests_burn_is_charged_once() -> None:
    """Calls that it makes in its own group are charged there, with the CPU time that they take."""
    clock = CpuClock()

    def host(share: Share) -> None:
        share.charge(150_000)
        clock.work(0.0002)

    share = await charged(host, clock)
    assert share.burst == 200_000 + 1000 + CALL_FUEL
    assert share.virtual_time * 100 == pytest.approx(200_000 - CALL_FUEL + 1000)


@pytest.mark.parametrize(("calls", "passes"), [(4, 0), (5, 1), (23, 4)])
async def test_after_half_a_millisecond_of_host_work_a_turn_is_passed(
    calls: int, passes: int
) -> None:
    """Counted over calls of the host, however short each is."""
    clock = CpuClock()
    runner, share = Runner(CacheConfig(offload_after=None), clock), Share(100)

    class Asking(Waiting):
        def poll(self) -> bool:
            self.host_call = HostCall(0, (), None, self.answer, self.take_fuel)
            return super().poll()

    guest = Asking("g", calls, [])
    function = HostFunction(lambda: clock.work(0.0001), (), ())
    await runner.drive(Job(guest, share, (function,), Holder(), 10**6))
    assert runner.loop.line.turns == passes
