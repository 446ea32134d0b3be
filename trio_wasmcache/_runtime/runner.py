"""Drives calls of an instance in slices, inline or in a thread, until they end.

1. The first slice runs at once. A call that ends in it costs no scheduling.
2. Every further slice needs a turn of the event loop (`turns`).
3. After `offload_after` slices the same half-run call goes on in a worker thread, with the GIL
   free, and stays there until it ends or another call needs the thread.
4. When the guest calls the host, it is suspended, turn and thread are given back, and the Python
   function runs here, in the calling task. The call is charged fuel for it, the group CPU time.
5. A reentrant host function may have the guest call an export before it goes on (`invoke`). Then
   the task that awaits it drives the same job, until the export has returned to that host call.
6. When `drive` returns or raises, nothing runs in the instance any more.
"""

from __future__ import annotations

import contextvars
import functools
import math
import threading
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, NoReturn, Protocol, TypeVar, final

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT

from .._abi.base import Convert
from .._abi.gil import paced
from .._core.config import CacheConfig
from .._core.policy.cpu_budget import CpuBudget
from .._core.policy.promotion import DUE_FUEL
from .._core.policy.shares import BURST_FUEL, CALL_FUEL, PASS_FUEL, Share
from .._engine.base import HostCall, HostCaller
from .._threads import call_in_thread, import_in_thread, no_autojump, run_in_thread
from .cpu_limits import HOP_SECONDS, CpuLimits
from .host import AnyHost, is_wasi
from .session import IF_DUE
from .turns import Turns
from .user_code import note_invoked

T = TypeVar("T")

# Slices after which a thread checks whether another call waits for it: at 0.1 ms a slice, the hop
# to the loop and back (0.3 ms) stays under a tenth of the time.
THREAD_SLICES = 32
# Slices after which a thread notes the fuel that was burnt, so that its group is charged with it:
# as a turn, without the way to the loop and back, which is a twentieth of the time of these slices.
CHARGE_SLICES = 256

# Seconds that the loop waits for a thread whose call is cancelled: a slice takes 0.1 to 0.3 ms.
# If the thread was told and waited for by way of the loop, both would take turns at the GIL, 5 ms
# each if the loop is busy, and two passes of the loop. It waits for a tenth of its time at most.
STOP_WAIT, STOP_WAIT_EVERY = 0.0005, 0.005

# Turns of other groups within which a group that asks again was not away, but between two calls.
AWAY_TURNS = 2

# Invokes under way in one call, at most. A level takes a dozen frames of Python's stack, and what
# its functions need of the guest's.
MAX_INVOKES = 16

context_of_call: contextvars.ContextVar[object] = contextvars.ContextVar("trio_wasmcache_lease")
"""The lease whose guest called the host function that is running."""
served_call: contextvars.ContextVar[HostCall] = contextvars.ContextVar("trio_wasmcache_host_call")
"""The host call that it answers, if that is reentrant or within an invoke."""


class Polled(Protocol):
    """An instance with a call under way, or a batch, to be driven. See `GuestInstance`."""

    @property
    def host_call(self) -> HostCall | None:
        """Call of the host for which the guest waits, set by `poll`; None if it does not wait."""

    def poll(self) -> bool:
        """Run one slice; return whether the call is over. Any thread may call it."""

    def fuel_left(self) -> int:
        """Return the units that are left of the job's fuel."""


class Job:
    """One call, batch or start under way in one instance, for the runner to drive."""

    __slots__ = (
        "aside",
        "broken",
        "burnt",
        "caller",
        "cpu_seconds",
        "ended",
        "finish",
        "fuel",
        "hosts",
        "in_thread",
        "lease",
        "left",
        "native",
        "note_at",
        "noted",
        "out_of_thread",
        "parked",
        "serving",
        "settled",
        "share",
        "stop",
    )

    def __init__(
        self,
        native: Polled,
        share: Share,
        hosts: Sequence[AnyHost],
        lease: object,
        fuel: int,
        burnt: int = 0,
        *,
        ended: Callable[[], Exception] = trio.ClosedResourceError,
        caller: HostCaller | None = None,
        finish: Callable[[], object] | None = None,
        aside: bool = False,
    ) -> None:
        self.native: Polled = native
        self.share: Share = share
        self.hosts: Sequence[AnyHost] = hosts
        """Host functions, in the order of the module's imports."""
        self.lease: object = lease
        """Result of `current_lease` in host functions."""
        self.fuel: int = fuel
        """Units of fuel that the guest had at the beginning."""
        self.burnt: int = burnt
        """Units of fuel burnt so far, by the guest and by the host for it."""
        self.note_at: float = DUE_FUEL
        """Units at which it is told that they are burnt; see `Runner.burnt`."""
        self.ended: Callable[[], Exception] = ended
        """Function that makes the error to raise if another task stops the job."""
        self.caller: HostCaller | None = caller
        """The call, batch or start that it is a part of, for host functions."""
        self.finish: Callable[[], object] | None = finish
        """Function that raises how the guest failed, once `poll` says that it is over; None: `poll`
        raises that itself."""
        self.aside: bool = aside
        """Whether all further slices run in threads, whatever `offload_after` is."""
        self.serving: list[HostCall] = []
        """Host calls that are being answered, the innermost last: those that are reentrant, and all
        that were made within an invoke."""
        self.broken: BaseException | None = None
        """Exception by which an invoke ended, after which the guest can't go on."""
        self.left: trio.Event | None = None
        """Event to be set when an invoke ends; None while nobody waits for that."""
        self.stop: bool = False
        """Whether it must stop after the current slice; set by another task or on cancellation."""
        self.parked: trio.CancelScope | None = None
        """Cancel scope around the last wait for a turn; only `end` may cancel it."""
        self.in_thread: bool = False
        """Whether a thread runs it now."""
        self.noted: tuple[int, int] = (0, 0)
        """Turns that it has had in threads without leaving them, and `burnt` at the end of the last
        of these; only the thread that runs it sets this."""
        self.settled: int = 0
        """Turns of these for which the group is charged; see `Runner.settle`."""
        self.cpu_seconds: float = 0.0
        """CPU time of its last stay in a thread, if its group has a `cpu_limit` (seconds)."""
        self.out_of_thread: trio.Event = trio.Event()
        """Event that is set when the thread has left it; each hop to a thread has a new one."""

    def end(self) -> None:
        """Stop it from another task: at once if it waits for a turn, else within a slice."""
        self.stop = True
        if self.parked is not None:
            self.parked.cancel()

    def reason(self) -> Exception:
        """Return why it must stop: the error of an invoke that failed, or that made by `ended`."""
        broken = self.broken
        if broken is None:
            return self.ended()
        if isinstance(broken, Exception):
            return broken
        return trio.BrokenResourceError(
            "a host function was cancelled in its await of invoke(), and went on: the guest, which "
            "is half-way in that export, can't go on"
        )

    @property
    def invokes(self) -> int:
        """Number of invokes under way."""
        return sum(call.invoking for call in self.serving)

    def charge(self) -> None:
        """Charge the group for the fuel that the guest burnt since the last time."""
        burnt = self.fuel - self.native.fuel_left()
        self.share.charge(burnt - self.burnt)
        self.burnt = burnt


async def refused(ended: Callable[[], Exception]) -> Exception:
    """Return the error made by `ended`, for what another task has ended.

    **Checkpoint:** only if the task is cancelled, too, which it is to know first.
    **Cancellation:** nothing is left behind.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    return ended()


@final
class Meter:
    """Charges a group with the CPU time of the current thread inside a ``with`` block.

    The block must not let the event loop run. Tasks started by a host function are not charged.
    """

    __slots__ = ("_began", "_burst", "_limits", "_share")

    def __init__(self, share: Share, limits: CpuLimits) -> None:
        self._share = share
        self._limits = limits

    def __enter__(self) -> None:
        self._burst = self._share.burst
        self._began = self._limits.clock()

    def __exit__(self, *_: object) -> None:
        seconds = self._limits.clock() - self._began
        self._share.charge_host(seconds, self._burst)
        if self._share.budget is not None:
            self._limits.charge(self._share, seconds)


@final
class Runner:
    """Runs the calls of one cache.

    Args:
        config: the limits, with the number of threads.
        cpu_clock: function that returns the CPU time of the calling thread (seconds).
        note_waits: function that is told of waits of a group for its `cpu_limit`: see `CpuLimits`.
    """

    def __init__(
        self,
        config: CacheConfig,
        cpu_clock: Callable[[], float] = time.thread_time,
        note_waits: Callable[[CpuBudget, int, float, float], None] = lambda *_: None,
    ) -> None:
        self.config: CacheConfig = config
        self.cpu_limits: CpuLimits = CpuLimits(cpu_clock, note_waits)
        self.loop: Turns = Turns(1, self.settle)
        self.threads: Turns = Turns(config.max_threads, self.settle)
        self.converters: trio.CapacityLimiter = trio.CapacityLimiter(config.max_threads)
        self.importers: trio.CapacityLimiter = trio.CapacityLimiter(1)
        self._waits_from = 0.0  # when the loop may wait for a thread again; see `STOP_WAIT`
        self.burnt: Callable[[], None] = _nothing
        """Called after a burst of short calls, after each longer one, and in each that alone has
        burnt what makes its function due for promotion."""
        self.jobs: dict[Job, None] = {}
        """Jobs that are driven now."""
        self._in_threads: dict[Job, None] = {}

    def resize(self, config: CacheConfig) -> None:
        """Apply other limits: more threads are used at once, fewer as their turns end."""
        self.config = config
        self.threads.resize(config.max_threads)
        self.converters.total_tokens = config.max_threads

    def meter(self, share: Share) -> Meter:
        """Return a meter for blocks in which the host works for a guest of a group."""
        return Meter(share, self.cpu_limits)

    @property
    def cpu_clock(self) -> Callable[[], float]:
        """Function that returns the CPU time of the calling thread (seconds)."""
        return self.cpu_limits.clock

    @cpu_clock.setter
    def cpu_clock(self, clock: Callable[[], float]) -> None:
        self.cpu_limits.clock = clock

    def settle(self) -> None:
        """Charge groups for the turns of their calls in threads, as far as the threads noted them.

        It is called whenever virtual times or turns are compared.
        """
        for job in self._in_threads:
            turns, burnt = job.noted
            if turns != job.settled:
                job.share.charge(burnt - job.burnt)
                self.threads.line.begin(job.share, turns - job.settled)
                job.burnt, job.settled = burnt, turns

    async def pass_turn(self, share: Share) -> None:
        """Let others run: wait for a turn of the loop, and begin a new burst of short calls.

        **Checkpoint:** always.
        **Cancellation:** nothing is left behind.
        """
        share.settle(PASS_FUEL)
        while True:
            if share.budget is not None:
                await self.cpu_limits.wait(share)
            await self.loop.take(share)
            self.loop.give_back()
            # Of many calls that have waited, the first ones may use up a window.
            if share.budget is None or not self.cpu_limits.spent(share):
                break
        share.begin_burst()
        self.burnt()

    async def convert(self, function: Callable[..., T], *values: object) -> T:
        """Call a function that converts values and takes long, in a thread; return its result.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned.
        """
        return await run_in_thread(
            paced, function, *values, abandon_on_cancel=True, limiter=self.converters
        )

    async def import_module(self, name: str) -> types.ModuleType:
        """Import a module in a thread, and return it.

        **Checkpoint:** always.
        **Cancellation:** takes effect when the thread has ended.
        """
        return await import_in_thread(name, self.importers)

    async def read(self, function: Callable[..., T], *values: object) -> T:
        """Call a function that reads the user's data and may take any time, in a thread.

        The function may wait for anything, such as another call of this cache, so the thread does
        not wait for a token: there are at most as many of these threads as held leases.
        For the same reason a mock clock may jump meanwhile.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned.
        """
        return await call_in_thread(
            function, *values, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
        )

    async def drive(self, job: Job, until: HostCall | None = None) -> None:
        """Poll a job until it is over; the caller must have made the first poll.

        Args:
            job: the job.
            until: a host call with an invoke: poll until the export has returned to it.

        Raises:
            GuestError: the guest failed.
            Exception: whatever a host function raised; or the error of `Job.ended`, such as
                `trio.ClosedResourceError`, as another task has stopped the job.

        **Checkpoint:** between slices, so at least once.
        **Cancellation:** at the end of a slice; the caller must abandon the call in the instance.
        """
        share, native = job.share, job.native
        offload_after = 0 if job.aside else self.config.offload_after
        slices, over = 1, False
        self._arrive(share)
        if until is None:
            self.jobs[job] = None
        try:
            while not over:
                if job.stop:
                    raise await refused(job.reason)
                if share.budget is not None and self.cpu_limits.spent(share):
                    await self._parked(job, self._wait_for_cpu)
                    continue
                host_call = native.host_call
                if host_call is not None:
                    if host_call is until:
                        return
                    if host_call.invoke is None and not job.serving:
                        await self._answer(job, host_call)
                    else:
                        await self._answer_within(job, host_call)
                    if share.burst >= BURST_FUEL:
                        # A guest that does little but call the host must not keep the loop, nor
                        # must many that go on in the same pass.
                        await self._parked(job, self.pass_turn)
                        if job.stop:
                            raise await refused(job.reason)
                    slices = 0
                    over = self.cpu_limits.metered(share, native.poll)()
                    job.charge()
                    continue
                inline = offload_after is None or slices < offload_after
                turns = self.loop if inline else self.threads
                # A turn is taken, kept from slice to slice, and given back in `finally`. It is lost
                # in `keep` alone, which gives it back itself: then it is not `holding`.
                # Each slice resumes all coroutines from the task down to the wait for a turn. So
                # the wait is inline, not in methods of its own.
                with trio.CancelScope() as job.parked:
                    await turns.take(share)
                    holding = True
                    try:
                        while True:
                            if job.stop:  # by another task, while this one waited
                                break  # type: ignore[unreachable]
                            if share.budget is not None and self.cpu_limits.spent(share):
                                break
                            if not inline:
                                over = await self._hop(job)
                            elif share.budget is None:
                                over = native.poll()
                            else:
                                over = self.cpu_limits.metered(share, native.poll)()
                            job.charge()
                            if job.burnt >= job.note_at:
                                job.note_at = math.inf
                                self.burnt()
                            slices += 1
                            if over or native.host_call is not None:
                                break
                            if inline and offload_after is not None and slices >= offload_after:
                                break
                            if job.stop:  # by another task, meanwhile
                                break  # type: ignore[unreachable]
                            holding = False
                            await turns.keep(share)
                            holding = True
                    finally:
                        if holding:
                            turns.give_back()
        finally:
            if until is None:
                del self.jobs[job]
            self._leave(share)
            if share.budget is not None:
                self.cpu_limits.pass_on(share)
        if until is not None:
            _fail(job)

    async def invoke(
        self, job: Job, call: HostCall, export: str, values: Sequence[object]
    ) -> object:
        """Have the guest, which waits for a host function, call an export; return its result.

        Args:
            job: the job in which the guest called the host function.
            call: that host call, which must be the innermost of `Job.serving` and reentrant, with
                no invoke under way.
            export: name of the export.
            values: wasm values.

        Raises:
            LookupError, TypeError, ValueError, OverflowError: see `HostCall.invoke`; the host
                function can go on.
            BaseException: as of `drive`; the job can't go on.

        **Checkpoint:** between slices.
        **Cancellation:** at the end of a slice; the job can't go on.
        """
        assert call.invoke is not None
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            call.spend(CALL_FUEL)
        except BaseException as error:
            note_invoked(error)
            job.broken, job.stop = error, True
            raise
        # Counted now, so that the group is not charged for it with the guest's.
        job.burnt += call.spent
        call.spent = 0
        try:
            call.invoke(export, values)
        except Exception:
            if job.stop:  # code of the values' classes has ended the lease
                raise job.reason() from None
            raise
        call.invoking = True
        try:
            if job.share.burst >= BURST_FUEL:
                await self._parked(job, self.pass_turn)
            if job.stop:
                raise await refused(job.reason)
            over = self.cpu_limits.metered(job.share, job.native.poll)()
            job.charge()
            if over:
                _fail(job)
            if job.native.host_call is not call:
                await self.drive(job, call)
        except BaseException as error:
            note_invoked(error)
            job.broken = job.broken or error
            job.stop = True
            raise
        finally:
            call.invoking = False
            if job.left is not None:
                job.left.set()
        return call.result

    def _may_wait(self) -> bool:
        """Return whether the loop may wait for a thread now, and note that it does."""
        now = time.perf_counter()
        if now < self._waits_from:
            return False
        self._waits_from = now + STOP_WAIT_EVERY
        return True

    def _arrive(self, share: Share) -> None:
        """Count one more call of the group that takes turns."""
        self.settle()
        turns = self.loop.line.turns + self.threads.line.turns
        if not share.active and turns - share.left > AWAY_TURNS:
            # Other groups had turns of either kind while this one asked for none: it was away.
            self.loop.line.enter(share)
            self.threads.line.enter(share)
        share.arrive()

    def _leave(self, share: Share) -> None:
        """Count one call fewer of the group that takes turns."""
        self.settle()
        share.leave(self.loop.line.turns + self.threads.line.turns)

    async def _hop(self, job: Job) -> bool:
        """Run slices in a thread until the call is over, calls the host, or must make way.

        Return whether the call is over.

        **Checkpoint:** always.
        **Cancellation:** the thread is not abandoned: it is asked to stop, which takes at most a
        slice, and is waited for. A call that was over by then returns its result all the same.
        """
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()
        raise_cancel: RaiseCancelT | None = None
        delivered: list[outcome.Outcome[bool]] = []  # what the thread ended with
        left = threading.Lock()
        left.acquire()

        def abort(how: RaiseCancelT) -> Abort:
            nonlocal raise_cancel
            job.stop = True
            if self._may_wait() and left.acquire(timeout=STOP_WAIT):
                result = delivered[0]
                if isinstance(result, outcome.Value) and not result.value:
                    delivered.clear()
                    return Abort.SUCCEEDED
            raise_cancel = how
            return Abort.FAILED

        def deliver(result: outcome.Outcome[bool]) -> None:
            delivered.append(result)
            left.release()
            token.run_sync_soon(resume)

        def resume() -> None:
            if delivered:  # else `abort` has taken it
                trio.lowlevel.reschedule(task, delivered[0])

        budget = job.share.budget
        most = None if budget is None else budget.left(trio.current_time())
        job.cpu_seconds, job.in_thread = 0.0, True
        self._in_threads[job] = None
        try:
            with no_autojump():
                run = functools.partial(_slices, job, self.threads, self.cpu_clock, most)
                trio.lowlevel.start_thread_soon(run, deliver, "trio_wasmcache call")
                over: bool = await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            self.cpu_limits.charge(job.share, job.cpu_seconds + HOP_SECONDS)
            self.settle()
            del self._in_threads[job]
            job.in_thread = False
            job.out_of_thread.set()
            job.out_of_thread = trio.Event()
        if raise_cancel is not None and not over:
            raise_cancel()
        return over

    async def _answer_within(self, job: Job, call: HostCall) -> None:
        """Answer a host call that may invoke exports, or that was made within an invoke."""
        job.serving.append(call)
        reset = served_call.set(call)
        try:
            await self._answer(job, call)
        finally:
            served_call.reset(reset)
            job.serving.remove(call)

    async def _end_invoke(self, job: Job) -> None:
        """End an invoke of a host function that has returned: a task that it left behind awaits it.

        When this returns, nothing runs in the instance, and nothing will.
        """
        job.broken = job.broken or RuntimeError(
            "a host function has returned while another task awaited its invoke(): await all tasks "
            "that use current_lease().invoke() before it returns"
        )
        job.end()
        if job.serving[-1].invoking:  # otherwise that task is in a host function, for any time
            job.left = trio.Event()
            with trio.CancelScope(shield=True):
                await job.left.wait()

    async def _answer(self, job: Job, call: HostCall) -> None:
        serve: Callable[[HostCall], Any] | None = call.serve
        meter = self.meter(job.share)
        call.caller = job.caller
        reset = context_of_call.set(job.lease)
        try:
            if serve is None:
                host = job.hosts[call.index]
                if job.caller is not None and not is_wasi(host):
                    forbidden = job.caller.refuse_host_call()
                    if forbidden is not None:
                        raise forbidden
                serve = host.serve
                call.spend(CALL_FUEL)
            with meter:
                served = serve(call)
            # A host function that has awaited may have steps left, and one in steps may await.
            while not isinstance(served, tuple):
                if isinstance(served, Coroutine):
                    served = await self._metered(job.share, meter, served)
                else:
                    served = await self._run_steps(job, meter, served)
            results = served
        except Exception as error:
            if call.serve is None and job.caller is not None and not job.stop:
                job.caller.note_host_error(call.index, error)
            raise
        finally:
            context_of_call.reset(reset)
            # Not charged to the group, which is charged with CPU time instead.
            job.burnt += call.spent
            if call.invoking:
                await self._end_invoke(job)
        if job.stop:
            raise await refused(job.reason)
        call.answer(results)

    async def _run_steps(self, job: Job, meter: Meter, steps: Generator[Any, Any, Any]) -> Any:
        """Run a host function of our own, which yields pauses (see `wasi`), or what a thread is to
        do; return its results, or what makes them."""
        go_on: Callable[[Any], Any] = steps.send
        value: object = None
        try:
            while True:
                with meter:
                    try:
                        asked = go_on(value)
                    except StopIteration as end:
                        return end.value
                go_on, value = steps.send, None
                if isinstance(asked, Convert):
                    try:
                        value = await self._converted(job, asked)
                    except Exception as error:
                        if job.stop:
                            raise
                        go_on, value = steps.throw, error
                elif asked > 0:
                    await self._parked(job, functools.partial(self._sleep, asked))
                elif asked != IF_DUE or job.share.burst >= BURST_FUEL:
                    await self._parked(job, self.pass_turn)
                if job.stop:
                    raise await refused(job.reason)
        finally:
            steps.close()

    async def _converted(self, job: Job, asked: Convert) -> object:
        """Convert in a thread for a host function; the group is charged with the CPU time."""
        clock, seconds, result = self.cpu_clock, 0.0, None

        def run() -> object:
            nonlocal seconds
            began = clock()
            try:
                return asked.function(*asked.values)
            finally:
                seconds = clock() - began

        async def wait(share: Share) -> None:
            nonlocal result
            self._leave(share)
            try:
                result = await self.convert(run)
            finally:
                self._arrive(share)

        try:
            await self._parked(job, wait)
        finally:
            job.share.charge_host(seconds, job.share.burst)
            self.cpu_limits.charge(job.share, seconds)
        return result

    async def _wait_for_cpu(self, share: Share) -> None:
        self._leave(share)
        try:
            await self.cpu_limits.wait(share)
        finally:
            self._arrive(share)

    async def _sleep(self, seconds: float, share: Share) -> None:
        self._leave(share)
        try:
            await trio.sleep(seconds)
        finally:
            self._arrive(share)

    @types.coroutine
    def _metered(
        self, share: Share, meter: Meter, function: Coroutine[object, object, tuple[object, ...]]
    ) -> Generator[object, object, tuple[object, ...]]:
        """Await an async host function: its steps are charged, its waits are not."""
        go_on: Callable[..., object] = function.send
        value: object = None
        while True:
            with meter:
                try:
                    message = go_on(value)
                except StopIteration as end:
                    results: tuple[object, ...] = end.value
                    return results
            # It may wait for hours, for which a group that burns nothing must not be owed turns.
            self._leave(share)
            try:
                value = yield message
                go_on = function.send
            except BaseException as error:
                go_on, value = function.throw, error
            finally:
                self._arrive(share)

    async def _parked(self, job: Job, wait: Callable[[Share], Awaitable[None]]) -> None:
        """Wait for a turn, or raise at once when another task stops the job."""
        if job.stop:
            raise await refused(job.reason)
        with trio.CancelScope() as job.parked:
            await wait(job.share)
        if job.parked.cancelled_caught and job.stop:
            raise await refused(job.reason)


def _nothing() -> None:
    pass


def _fail(job: Job) -> NoReturn:
    """Raise how the guest failed, whose call is over though it waited for a host function."""
    if job.finish is not None:
        job.finish()
    raise AssertionError("the guest returned before the host function that it called")


def _slices(job: Job, threads: Turns, clock: Callable[[], float], most: float | None) -> bool:
    """Run slices in a worker thread; return whether the call is over.

    It uses the instance and the job, and only reads `threads.contended`, and whether the group has
    a `cpu_limit`. With `most`, it ends once it has used that much CPU time (seconds).
    """
    native = job.native
    slices, began = 0, 0.0 if most is None else clock()
    while True:
        over = native.poll()
        slices += 1
        if most is not None:
            job.cpu_seconds = clock() - began
        if over or native.host_call is not None or job.stop:
            return over
        if most is not None and job.cpu_seconds >= most:
            return False
        if slices >= THREAD_SLICES and threads.contended:
            return False
        if slices % CHARGE_SLICES == 0:
            burnt = job.fuel - native.fuel_left()
            if job.share.budget is not None or burnt >= job.note_at:
                return False
            job.noted = job.noted[0] + 1, burnt
