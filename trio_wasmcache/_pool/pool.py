"""Carries out the decisions of the policy: closes, unloads, wakes and logs; it decides nothing."""

from __future__ import annotations

import contextlib
import functools
import time
from _thread import start_new_thread  # C code: it needs no frame of Python's stack
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import final

import trio
from trio.lowlevel import Abort, reschedule

from .._core.config import CacheConfig, MiB
from .._core.dumps import DumpBook
from .._core.errors import CodeMemoryError
from .._core.events import Overgrown, Reason
from .._core.policy.deadlock import Resource
from .._core.policy.instances import Step
from .._core.policy.policy import Policy
from .._core.policy.records import Entry, FunctionRecord, GroupRecord, Need, Request
from .._core.text import shown
from .._core.wasm.isolation import ADVICE, SEAT_SIZE, cache_verdict, overgrown_verdict
from .._engine.base import Engine
from .._log import LogWriter, Origin
from .._owner import Owner
from .._runtime.bound import BoundFunction, Definition, Failure
from .._runtime.call import Call, CallRecorder, Runtime
from .._runtime.module import DebugBook, SourceBook
from .._runtime.relief import Relief, Reserved
from .._runtime.results import ResultBook, ResultMemory
from .._runtime.runner import Runner
from .._runtime.source_lines import SourceLines
from .evictor import AT_ONCE, Evictor
from .journal import Cause, Journal
from .registry import Registry

# Name of the error that acquires get when their group or cache is closed.
CLOSED = trio.ClosedResourceError.__name__
# Bytes of addresses, and mappings, to free first when the system has no memory for a compile.
COMPILE_SHARE: Reserved = 64 * MiB, 64


@final
class DeferredExits:
    """Lease exits that were deferred, by a finalizer or for lack of space on Python's stack.

    They run in the next pass of the event loop, at the top of the stack, or before the next
    acquire. Any thread may add one.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.pending: list[Callable[[], None]] = []

    def add(self, leave: Callable[[], None]) -> None:
        """Run `leave` later.

        Entering the lease had a checkpoint at the same depth, so the stack suffices for this much.
        If it does not quite, a thread wakes the event loop, as it has a stack of its own.
        """
        self.pending.append(leave)
        try:
            self._token.run_sync_soon(self.run)
        except trio.RunFinishedError:
            pass
        except RecursionError:
            try:  # noqa: SIM105  # that takes frames, too
                start_new_thread(self._wake, ())
            except (RecursionError, RuntimeError):
                pass  # the next acquire runs it

    def _wake(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.run)

    def run(self) -> None:
        """Run all deferred exits; one that raises stays."""
        while self.pending:
            leave = self.pending.pop()
            try:
                leave()
            except BaseException:
                self.pending.append(leave)
                raise


@final
class Pool:
    """The parts of one cache, shared by its leases, groups and background task."""

    def __init__(
        self,
        config: CacheConfig,
        engine: Engine,
        log: LogWriter,
        recorder: CallRecorder | None = None,
    ) -> None:
        self.config: CacheConfig = config
        self.engine = engine
        self.log = log
        self.journal: Journal = Journal(log, config.log_uses)
        self.policy: Policy = Policy(config, engine.system)
        self.waiting: Mapping[Hashable, Resource] = self.policy.waits.waiting
        """{task: what it waits for in the cache}; as `exact`, for the fast path of a hit."""
        self.registry: Registry = Registry()
        self.exact: Mapping[tuple[str, tuple[str, ...] | None], FunctionRecord] = (
            self.registry.exact
        )
        self.runner: Runner = Runner(config, note_waits=self.journal.throttled)
        self.results: ResultMemory = ResultMemory()
        self.result_book: ResultBook = ResultBook(config.max_result_size)
        self.relief: Relief = Relief(self.evict_for)
        self.debug_book: DebugBook = DebugBook()
        self.source_book: SourceBook = SourceBook()
        self.lines: SourceLines = SourceLines(self.debug_book)
        self.call_type: type[Call] = Call
        """Class of the calls of leases."""
        if config.log_values is not None and recorder is None:
            from .._runtime.recording import RecordedCall, Recorder
            from .._runtime.versions import library_versions

            recorder = Recorder(config, self.journal, library_versions())
            self.call_type = RecordedCall
        self.runtime: Runtime = Runtime(
            engine,
            self.runner,
            self.policy,
            self.result_book,
            self.results,
            self.relief,
            self.journal,
            DumpBook(self.config.keep_dumps),
            recorder,
        )
        self.closed: bool = False
        self.owner: Owner = Owner()
        # Copies for the fast path of a hit: the thread of the run, and the clock.
        self.thread: int = self.owner.thread
        self.clock: Callable[[], float]
        self.clock_offset: float
        self.clock, self.clock_offset = _short_way_to_the_clock()
        self.now: Callable[[], float] = _sum_of(self.clock, self.clock_offset)
        """Returns `trio.current_time` of this run; on the fast paths it is written out."""
        self.exits: DeferredExits = DeferredExits()
        self.evictor: Evictor = Evictor(self.policy, self.carry_out)
        self.freed: Callable[[], None] | None = None
        """Called when something may fit that did not fit before; None: nobody wants to know."""
        self.background: dict[Entry, Callable[[], trio.Event | None]] = {}
        """Instances that start for no lease, by entry, and what ends each; see `Upgrade.end`."""

    def abandon(self, request: Request, cause: Cause, error: str = "Cancelled") -> Abort:
        """Take a request out of its line, as its sleeping task is cancelled: for abort functions.

        Args:
            request: the request.
            cause: as for `carry_out`.
            error: type of the error with which the acquire ends.
        """
        request.asleep = False
        now = self.now()
        self.journal.abandoned(request, error, now)
        self.carry_out(self.policy.cancel(request, now), now, cause)
        return Abort.SUCCEEDED

    def carry_out(
        self,
        step: Step | None,
        at: float | None = None,
        cause: Cause | None = None,
        *,
        in_pieces: bool = False,
    ) -> None:
        """Carry out what a step of the policy left to do. This never waits and never fails.

        Args:
            step: the step.
            at: the time that the policy was given (seconds), for the log.
            cause: returns the origin of the evictions, if there are any: the task whose need they
                serve; None if it is nobody's.
            in_pieces: whether the evictor's task may close most of the instances, as nothing waits
                for their memory: closing one takes about 50 microseconds.
        """
        if step is None:
            return
        origin = cause() if cause is not None and (step.evicted or step.overgrown) else None
        for number, (instance, event) in enumerate(step.evicted):
            native = instance.release()
            if native is not None:
                if in_pieces and number >= AT_ONCE:
                    self.evictor.close_later(native)
                else:
                    native.close()
            self.journal.note(event, at, origin)
        if step.evicted:
            # Memory is short, or the cache has less to do.
            self.results.forget()
        for function, overgrown in step.overgrown:
            self._give_up_resets(function, overgrown, at, origin)
        for module in step.unloaded:
            # The same step may have needed it again.
            if module.users == 0:
                module.unload()
        for request in step.woken:
            if request.asleep:
                request.asleep = False
                reschedule(request.owner)  # type: ignore[arg-type] # owners are tasks here
        if self.freed is not None and (step.evicted or step.unloaded):
            self.freed()

    def recycle(
        self,
        request: Request,
        bound: BoundFunction,
        *,
        clean: bool,
        calls: int,
        fuel: int,
        reason: Reason | None = None,
        failure: Failure | None = None,
    ) -> None:
        """Give back the instance of a lease that has ended, in which nothing runs.

        Args:
            request: the request that it was granted to.
            bound: the function bound to the instance.
            clean: whether no call failed or ended half-way.
            calls: number of calls that were made.
            fuel: units of fuel that they burnt.
            reason: why the instance must be evicted; None if it need not be.
            failure: how a call failed half-way; None: none did.
        """
        instance, native, definition = request.held, bound.native, bound.definition
        seat, closed_size, grown = False, None, None
        if not clean:
            reason = reason or Reason.CORRUPTED
            native.abandon()
        elif reason is None and not definition.keeps_state:
            # The next lease must find nothing of this one.
            seat = True
            if definition.resets:
                size = native.measure()
                if size > self.config.max_instance_size:
                    closed_size = size
                elif native.reset():
                    seat = False
                else:
                    grown = size
            if seat:
                native.close()
        if seat:
            size, reserved = SEAT_SIZE, (0, 0)
        else:
            size, reserved = bound.last or (native.measure(), native.reserved)
        if reserved != (instance.address_space, instance.mappings):
            instance.set_aside()  # it was kept off the fast path: see `BoundFunction.attach`
        now = self.now()
        error = None if failure is None else failure.error
        step = self.policy.recycle(request, size, now, reason, seat, reserved, error, grown)
        origin = None
        if self.journal.log_uses:
            ledger = self.policy.instances.ledger
            origin = self.journal.recycled(
                request,
                instance,
                calls,
                now,
                ledger,
                fuel=fuel,
                size_bytes=size,
                error=error,
                error_message=None if failure is None else failure.reason,
                closed_size_bytes=closed_size,
                grown_size_bytes=grown,
                address_space_bytes=reserved[0],
                mappings=reserved[1],
            )
        if step is not None:
            cause: Cause | None = None  # evictions by closing are nobody's
            if reason is not Reason.GROUP_CLOSED and reason is not Reason.CLOSED:
                cause = functools.partial(self.journal.origin_of, request.owner)
                if origin is not None:
                    cause = functools.partial(_given, origin)
            self.carry_out(step, now, cause)
        if self.freed is not None and instance.outdated:
            self.freed()
        self.evictor.expect_expiry()

    def _give_up_resets(
        self, function: FunctionRecord, event: Overgrown, at: float | None, origin: Origin | None
    ) -> None:
        """Have the next instances of a function made as those of a `fresh` one, and log it."""
        definition = Definition.of(function)
        kept, _ = cache_verdict(self.config, SEAT_SIZE, seats=True, restored=False)
        verdict = overgrown_verdict(event.growths, event.leases)
        if definition.module.prepared is not None:
            verdict = f"{verdict}; {definition.module.prepared}"
        function.define(definition.without_resets(verdict, kept))
        advice = ADVICE.format(function=function.key, size=event.size_bytes)
        self.journal.note(event.changed(cache_verdict=kept, advice=advice), at, origin)

    def evict_for(self, need: Need, reserved: Reserved, error: Exception, attempt: int) -> None:
        """Evict idle instances, as the system refused memory for an instance or code.

        `Relief` calls it before each further attempt. Evicted instances that are not closed yet are
        closed first; if there are any, nothing else is evicted in that attempt.

        Args:
            need: whose need it is.
            reserved: bytes of addresses, and mappings, that are needed.
            error: the error of the system.
            attempt: number of earlier attempts, each of which evicted half as much as the next.

        Raises:
            CodeMemoryError: no idle instance is left to evict.
            trio.ClosedResourceError: the cache is closed.
        """
        if self.closed:
            raise trio.ClosedResourceError("the cache is closed")
        if self.evictor.close_all():
            return  # that may suffice: evicted instances were still mapped
        now = self.now()
        space, mappings = reserved[0] << attempt, reserved[1] << attempt
        step = self.policy.relieve(space, mappings, now, need)
        if step is None:
            ledger = self.policy.instances.ledger
            raise CodeMemoryError(
                f"the system has no memory, addresses or mappings left for {need.key}, which "
                f"reserves some {reserved[0]} bytes and {reserved[1]} mappings, and nothing of the "
                f"cache is idle: {error}. The cache has reserved {ledger.address_space} bytes and "
                f"{ledger.mappings} mappings in all. Raise RLIMIT_AS (ulimit -v) or "
                "vm.max_map_count, or lower max_address_space or max_instances, so that the cache "
                "leaves more to the rest of the process"
            ) from error
        origin = self.journal.here()
        self.journal.refused(need, space, mappings, error, now, origin)
        self.carry_out(step, now, lambda: origin)

    def close(self) -> None:
        """Grant no more leases, and cancel the registrations that are under way."""
        self.closed = True
        self.policy.close()
        self.registry.close()
        self.runtime.dumps.close()

    def closed_error(self, group: GroupRecord, function: str) -> trio.ClosedResourceError:
        """Return the error for using a function in a group that is closed, or whose cache is."""
        what = "cache" if self.closed else f"scheduling group {shown(group.name)}"
        return trio.ClosedResourceError(f"{function} can't be used: the {what} is closed")

    def resize(self, config: CacheConfig) -> None:
        """Change the limits, and evict instances that no longer fit."""
        self.config = config
        self.runner.resize(config)
        self.result_book.resize(config.max_result_size)
        now = trio.current_time()
        origin = self.journal.here()
        self.journal.resized(config, self.engine.system, now, origin)
        self.carry_out(self.policy.resize(config, now), now, lambda: origin, in_pieces=True)
        self.evictor.sleep_until(self.policy.next_expiry())
        # The next lease of each instance takes the slow path, which adapts it to limits.
        self.set_aside(self.policy.instances.entries)
        if self.freed is not None:
            self.freed()

    def set_aside(self, entries: Iterable[Entry]) -> None:
        """Have the next leases of all instances take the slow path, which binds them anew."""
        for entry in entries:
            for instance in (*entry.idle, *(request.instance for request in entry.claims)):
                if instance is not None:
                    instance.set_aside()


def _given(origin: Origin) -> Origin:
    return origin


def _short_way_to_the_clock() -> tuple[Callable[[], float], float]:
    """Return a clock, and what to add to it for `trio.current_time` of this run.

    Trio's own clock adds a constant to `perf_counter`, by way of three Python functions, which
    would cost a hit a quarter of its time. Any other clock is called as it is.
    """
    clock = trio.lowlevel.current_clock()
    # Trio does not export the class of its clock; an application's may have the same name.
    kind = type(clock)
    if kind.__name__ != "SystemClock" or not kind.__module__.startswith("trio."):
        return clock.current_time, 0.0
    # Another thread may have run between the two calls: the largest difference is the best.
    return time.perf_counter, max(clock.current_time() - time.perf_counter() for _ in range(10))


def _sum_of(clock: Callable[[], float], offset: float) -> Callable[[], float]:
    """Return a function without arguments that adds them; C does that, too."""
    return map(offset.__add__, iter(clock, None)).__next__ if offset else clock
