"""Drives what an instance has under way: in slices, inline or in a thread, until it is over.

1. The first slice runs at once. A call that ends in it has cost no scheduling.
2. Every further slice needs a turn of the loop (`_turns`).
3. After `offload_after` slices the same half-run call goes on in a worker thread, with the GIL
   free, and stays there while nobody else needs the thread.
4. When the guest calls the host, it is suspended, turn and thread are given back, and the Python
   function runs here, in the calling task. It costs the call fuel, and the group CPU time.
5. However it ends, nobody is inside the instance any more when `drive` returns or raises.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Protocol, TypeVar, final

import outcome
import trio
from attrs import define, field
from trio.lowlevel import Abort, RaiseCancelT

from .._abi.gil import paced
from .._core.config import CacheConfig
from .._core.policy.shares import BURST_FUEL, CALL_FUEL, PASS_FUEL, Share
from .._engine.base import HostCall
from .host import AnyHost
from .turns import Turns

T = TypeVar("T")

# A thread looks this often (in slices) whether another call waits for it: at 0.1 ms a slice, the
# hop there and back (0.3 ms) stays under a tenth of it.
THREAD_SLICES = 32
# And comes back this often in any case, so that what it burns is charged to its group.
CHARGE_SLICES = 256

# A group that asks again within so many turns of others was not away: it was between two calls.
AWAY_TURNS = 2

context_of_call: contextvars.ContextVar[object] = contextvars.ContextVar("trio_wasmcache_lease")
"""The lease whose guest called the host function that is running."""


class Polled(Protocol):
    """What is driven: an instance with a call under way, or a batch. See `GuestInstance`."""

    @property
    def host_call(self) -> HostCall | None:
        """Set by `poll` when the guest waits for the host."""

    def poll(self) -> bool:
        """Run one slice; True when it is over. Any thread may call it."""

    def fuel_left(self) -> int:
        """Of the job's fuel."""


@define(eq=False)
class Job:
    """One thing under way in one instance, and how to stop it."""

    native: Polled
    share: Share
    hosts: Sequence[AnyHost]
    lease: object
    """What `current_lease` gives in host functions."""
    fuel: int
    burnt: int = 0
    """Fuel so far: what the guest burnt, and what the host did for it cost."""
    ended: Callable[[], Exception] = field(default=trio.ClosedResourceError, kw_only=True)
    """Makes the error with which it ends if it is told to stop."""
    stop: bool = False
    """Set by another task or the loop: whoever drives it stops at the next slice."""
    parked: trio.CancelScope | None = None
    """Around the last wait for a turn; cancelling it is only for `end`."""
    in_thread: bool = False
    out_of_thread: trio.Event = field(factory=trio.Event)

    def end(self) -> None:
        """Tell whoever drives it to stop: at once if it waits for a turn, else in a slice."""
        self.stop = True
        if self.parked is not None:
            self.parked.cancel()

    def check_open(self) -> None:
        """Raise the error that it was told to stop with, if it was."""
        if self.stop:
            raise self.ended()

    def charge(self) -> None:
        """Charge the group for what the guest burnt since the last time."""
        burnt = self.fuel - self.native.fuel_left()
        self.share.charge(burnt - self.burnt)
        self.burnt = burnt


@final
class Meter:
    """Charges a group with the CPU time that this thread takes inside the block.

    The event loop must not go on meanwhile. What tasks do that a host function starts is not seen.
    """

    __slots__ = ("_began", "_burst", "_clock", "_share")

    def __init__(self, share: Share, clock: Callable[[], float]) -> None:
        self._share = share
        self._clock = clock

    def __enter__(self) -> None:
        self._burst = self._share.burst
        self._began = self._clock()

    def __exit__(self, *_: object) -> None:
        self._share.charge_host(self._clock() - self._began, self._burst)


@final
class Runner:
    """Runs the calls of one cache.

    Args:
        config: limits, and how many threads there are.
        cpu_clock: seconds of CPU time that the calling thread has taken.
    """

    def __init__(
        self, config: CacheConfig, cpu_clock: Callable[[], float] = time.thread_time
    ) -> None:
        self.config: CacheConfig = config
        self.cpu_clock: Callable[[], float] = cpu_clock
        self.loop: Turns = Turns(1)
        self.threads: Turns = Turns(config.max_threads)
        self.converters: trio.CapacityLimiter = trio.CapacityLimiter(config.max_threads)
        self.importers: trio.CapacityLimiter = trio.CapacityLimiter(1)

    def resize(self, config: CacheConfig) -> None:
        """Live under other limits: more threads are used at once, fewer as they come free."""
        self.config = config
        self.threads.resize(config.max_threads)
        self.converters.total_tokens = config.max_threads

    def meter(self, share: Share) -> Meter:
        """A block in which the host works for a guest of a group."""
        return Meter(share, self.cpu_clock)

    async def pass_turn(self, share: Share) -> None:
        """Let others run: wait for a turn of the loop, and begin a new burst of short calls.

        **Checkpoint:** always.
        **Cancellation:** nothing is left behind.
        """
        share.burst += PASS_FUEL
        share.settle()
        await self.loop.take(share)
        self.loop.give_back()
        share.begin_burst()

    async def convert(self, function: Callable[..., T], *values: Any) -> T:
        """Call a function that converts values, in a thread, for it takes long.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned.
        """
        return await trio.to_thread.run_sync(
            paced, function, *values, abandon_on_cancel=True, limiter=self.converters
        )

    async def import_module(self, name: str) -> Any:
        """Import a module in a thread.

        **Checkpoint:** always.
        **Cancellation:** waits for the thread.
        """
        return await trio.to_thread.run_sync(importlib.import_module, name, limiter=self.importers)

    async def read(self, function: Callable[..., T], *values: Any) -> T:
        """Call a function that reads what the user gave, in a thread, for it may take any time.

        As that may wait for anything, such as another call of this cache, it waits for no token:
        there are no more of these threads than leases that are held.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned.
        """
        return await trio.to_thread.run_sync(
            function, *values, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
        )

    async def drive(self, job: Job) -> None:
        """Poll until what is under way is over. The first poll is the caller's to have done.

        **Checkpoint:** between slices, so at least once.
        **Cancellation:** at a slice's end; what was under way is still there, to be abandoned.

        Raises:
            trio.ClosedResourceError: the cache or the group was closed meanwhile.
        """
        share, native = job.share, job.native
        offload_after = self.config.offload_after
        slices, over = 1, False
        self._arrive(share)
        try:
            while not over:
                job.check_open()
                if native.host_call is not None:
                    await self._answer(job)
                    if share.burst >= BURST_FUEL:
                        # Nor must a guest that does little but call the host keep the loop, nor
                        # many that go on in the same pass.
                        await self._parked(job, self.pass_turn)
                        job.check_open()
                    slices = 0
                    over = native.poll()
                    job.charge()
                    continue
                inline = offload_after is None or slices < offload_after
                turns = self.loop if inline else self.threads
                # Each slice resumes all coroutines from the task down to the wait for a turn. So
                # that wait is right here, and not in methods of its own.
                with trio.CancelScope() as job.parked:
                    await turns.take(share)
                    holding = True
                    try:
                        while True:
                            job.check_open()
                            over = native.poll() if inline else await self._hop(job)
                            job.charge()
                            slices += 1
                            if over or native.host_call is not None:
                                break
                            if inline and offload_after is not None and slices >= offload_after:
                                break
                            job.check_open()
                            holding = False
                            await turns.keep(share)
                            holding = True
                    finally:
                        if holding:
                            turns.give_back()
        finally:
            self._leave(share)

    def _arrive(self, share: Share) -> None:
        """One more call of the group takes turns."""
        if not share.active and self._turns() - share.left > AWAY_TURNS:
            # Others had turns of either kind while it asked for none: it was away.
            self.loop.line.enter(share)
            self.threads.line.enter(share)
        share.active += 1

    def _leave(self, share: Share) -> None:
        """One call fewer of the group takes turns."""
        share.active -= 1
        share.left = self._turns()

    def _turns(self) -> int:
        return self.loop.line.turns + self.threads.line.turns

    async def _hop(self, job: Job) -> bool:
        """Run slices in a thread until the call is over, waits for the host, or must make way.

        Cancelling does not abandon the thread: it is told to stop, does within a slice, and is
        waited for. A call that was over by then returns its result all the same.
        """
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()
        raise_cancel: RaiseCancelT | None = None

        def abort(how: RaiseCancelT) -> Abort:
            nonlocal raise_cancel
            raise_cancel = how
            job.stop = True
            return Abort.FAILED

        def deliver(result: outcome.Outcome[bool]) -> None:
            token.run_sync_soon(trio.lowlevel.reschedule, task, result)

        job.in_thread = True
        try:
            trio.lowlevel.start_thread_soon(
                functools.partial(_slices, job, self.threads), deliver, "trio_wasmcache call"
            )
            over: bool = await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            job.in_thread = False
            job.out_of_thread.set()
            job.out_of_thread = trio.Event()
        if raise_cancel is not None and not over:
            raise_cancel()
        return over

    async def _answer(self, job: Job) -> None:
        call = job.native.host_call
        assert call is not None
        host = job.hosts[call.index]
        meter = self.meter(job.share)
        reset = context_of_call.set(job.lease)
        try:
            call.spend(CALL_FUEL)
            with meter:
                served = host.serve(call)
            if isinstance(served, tuple):
                results = served
            elif isinstance(served, Coroutine):
                results = await self._metered(job.share, meter, served)
            else:
                results = await self._run_steps(job, meter, served)
        finally:
            context_of_call.reset(reset)
            # The group is charged with CPU time in its place.
            job.burnt += call.spent
        job.check_open()
        call.answer(results)

    async def _run_steps(
        self, job: Job, meter: Meter, steps: Generator[float, None, tuple[Any, ...]]
    ) -> tuple[Any, ...]:
        """What a host function of our own returns, which yields how long it waits (seconds)."""
        try:
            while True:
                with meter:
                    try:
                        pause = next(steps)
                    except StopIteration as end:
                        results: tuple[Any, ...] = end.value
                        return results
                if pause:
                    await self._parked(job, functools.partial(self._sleep, pause))
                else:
                    await self._parked(job, self.pass_turn)
                job.check_open()
        finally:
            steps.close()

    async def _sleep(self, seconds: float, share: Share) -> None:
        self._leave(share)
        try:
            await trio.sleep(seconds)
        finally:
            self._arrive(share)

    @types.coroutine
    def _metered(
        self, share: Share, meter: Meter, function: Coroutine[Any, Any, tuple[Any, ...]]
    ) -> Generator[Any, Any, tuple[Any, ...]]:
        """Await an async host function: its steps are charged, the time that it waits is not."""
        go_on, value = function.send, None
        while True:
            with meter:
                try:
                    message = go_on(value)
                except StopIteration as end:
                    results: tuple[Any, ...] = end.value
                    return results
            # It may wait for hours, and a group that burns nothing is not owed turns for them.
            self._leave(share)
            try:
                value = yield message
                go_on = function.send
            except BaseException as error:
                go_on, value = function.throw, error
            finally:
                self._arrive(share)

    async def _parked(self, job: Job, wait: Callable[[Share], Awaitable[None]]) -> None:
        """Wait for a turn, but not while the lease ends: then it is told at once, turn or no."""
        job.check_open()
        with trio.CancelScope() as job.parked:
            await wait(job.share)
        if job.parked.cancelled_caught:
            job.check_open()


def _slices(job: Job, threads: Turns) -> bool:
    """Runs in a worker thread. Touches the instance and the job, and only looks at `threads`."""
    native = job.native
    slices = 0
    while True:
        over = native.poll()
        slices += 1
        if over or native.host_call is not None or job.stop:
            return over
        if slices >= CHARGE_SLICES or (slices >= THREAD_SLICES and threads.contended):
            return False
