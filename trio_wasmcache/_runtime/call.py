"""One call under way in an instance: what is left of it after its first slice, and how it fails.

The first slice is in `Lease.call`; most calls end in it, and need nothing of this. A batch is one
call, too, whose rows are made by `_batch`.

An instance whose call failed or was cancelled half-way holds whatever the guest left in the middle
of its work, so it serves no other call, and is dropped when its lease ends.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, final

import trio
from attrs import frozen

from .._abi.base import Guest, Invoke, Step
from .._abi.plain import exact_values
from .._core.config import MiB
from .._core.errors import GuestError, ResultTooLargeError
from .._core.events import Reason
from .._core.keys import FunctionKey
from .._core.policy.policy import Policy
from .._core.policy.shares import BURST_FUEL, Share
from .._core.stack_room import check_headroom
from .._core.tally import Tally, size_of
from .._engine.base import (
    UNDER_WAY,
    DriverCode,
    Engine,
    GuestDriver,
    GuestFunction,
    InexactError,
    NoMemoryError,
)
from .activity import Activity
from .bound import BoundFunction
from .metered import MeteredGuest
from .results import ResultBook, ResultMemory
from .runner import Job, Runner

T = TypeVar("T")
Steps = Generator[Step, Any, Any]

# Bytes of addresses and mappings that are freed first for a stack that gets no memory.
STACK_SHARE = 64 * MiB, 64


class Relieve(Protocol):
    """Evicts idle instances, as the system gave no memory for something of a function."""

    def __call__(
        self, key: FunctionKey, needed: tuple[int, int], error: Exception, attempt: int = 0, /
    ) -> None:
        """See `Pool.relieve`."""


@final
@frozen
class Runtime:
    """What all calls of one cache share."""

    engine: Engine
    runner: Runner
    policy: Policy
    book: ResultBook
    results: ResultMemory
    relieve: Relieve


class Finished(Exception):
    """The ABI has made all steps of a call."""

    def __init__(self, result: Any) -> None:
        super().__init__(result)
        self.result = result


@final
class Call(Activity):
    """A call, or a batch of them, from where other tasks may run until it ends.

    Args:
        runtime: what it has in common with others.
        bound: the instance, and how values cross.
        share: of the group that is charged.
        lease: what `current_lease` gives in host functions.
    """

    def __init__(self, runtime: Runtime, bound: BoundFunction, share: Share, lease: object) -> None:
        check_headroom()  # for its end, too
        super().__init__(runtime.runner, share, bound.definition.module.hosts, lease)
        self.bound = bound
        self.native = bound.native
        self.name = bound.entry.function.key.name
        self.engine = runtime.engine
        self.results = runtime.results
        """Memory for the results of batches."""
        self.tally: Tally = runtime.book.begin()
        """Counts what the guest makes the host allocate for results."""
        self.caller = trio.lowlevel.current_task()
        self.fuel = 0
        """Units burnt so far, by the guest and for it."""
        self.failed = False
        """Whether it failed half-way, so that no other call of this instance can be made."""
        self.drop: Reason | None = None
        """Why the instance goes when the call is over, if another task has ended it."""
        self._runtime = runtime
        self._began = trio.current_time()
        bound.uses.continued += 1

    def close(self) -> None:
        """Note what the call took. Nothing of it is under way any more."""
        self._runtime.book.end(self.tally)
        seconds = trio.current_time() - self._began
        self._runtime.policy.note_long_call(self.bound.entry, self.fuel, seconds)

    # -- one call

    async def finish(self, function: GuestFunction, fuel: int) -> Any:
        """Finish what `function` has begun with that fuel; return the result, in wasm's terms.

        **Checkpoint:** always.
        **Cancellation:** the guest is stopped within a slice; `fail` is to be called.
        """
        job = self.new_job(self.native, fuel)
        try:
            job.charge()
            await self.runner.drive(job)
            return function.finish()
        finally:
            self.end_job(job)

    async def run_steps(
        self, make: Callable[[Guest, tuple[Any, ...]], Steps], values: tuple[Any, ...]
    ) -> Any:
        """Make the call by the steps of an ABI, on `total_fuel` for all of them together.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped, and no other call can be made.
        """
        native, total = self.native, self.bound.total_fuel
        steps: Steps | None = None
        invoke: Invoke | None = None
        inside = False
        try:
            steps = make(MeteredGuest(native, self.tally), values)
            invoke = await self.step(steps, None, total)
            while True:
                left = total - self.fuel
                function = native.function(invoke.export)
                inside = True
                result = self.begin(function, invoke.values, left)
                if result is UNDER_WAY:
                    # As `finish`, but written out: that would be one more coroutine to resume for
                    # every slice.
                    job = self.new_job(native, left)
                    try:
                        job.charge()
                        await self.runner.drive(job)
                        result = function.finish()
                    finally:
                        self.end_job(job)
                inside = False
                invoke = await self.step(steps, result, total - self.fuel)
        except Finished as finished:
            return finished.result
        except BaseException as error:
            if invoke is None and not isinstance(error, GuestError):
                pass  # before the first step, values that do not fit are the caller's mistake
            elif isinstance(error, ResultTooLargeError) and not inside:
                self.refuse(error, values)
            else:
                self.fail(error, values)
            raise
        finally:
            if steps is not None:
                self.put_away(steps)

    # -- parts of a call, for batches too

    def begin(self, function: GuestFunction, values: Sequence[Any], fuel: int) -> Any:
        """Begin to call a function and run its first slice: see `GuestFunction.begin`.

        What it burns is charged, also if it fails; if it is UNDER_WAY, by `finish`.

        Raises:
            trio.ClosedResourceError: the lease has ended, as code of the values' own may see to.
            CodeMemoryError: the system has no memory for a stack, though all idle was evicted.
        """
        exact = values
        while True:
            self.check_open()
            try:
                result = function.begin(exact, fuel)
            except InexactError:
                exact = exact_values(function.type, values)
            except NoMemoryError as error:  # for its stack: none of the guest has run
                self.relieve_stack(error)
            except GuestError:
                self._account(fuel - self.native.fuel_left())
                raise
            else:
                if result is not UNDER_WAY:
                    self._account(fuel - self.native.fuel_left())
                return result

    async def step(self, steps: Steps, result: Any, left: int) -> Invoke:
        """Let the ABI convert values, up to the next thing to call; `Finished` if there is none.

        The group is charged with the CPU time that takes, unless it is a thread's. What the ABI
        reads of the guest's memory, and the values it makes, cost fuel of the call, which has
        `left` of it.

        **Checkpoint:** if something takes long.
        **Cancellation:** only there; nothing is under way in the guest.

        Raises:
            trio.ClosedResourceError: there is something to call, and the lease has ended.
        """
        tally = self.tally
        tally.allowed = left
        send, sent = steps.send, result
        meter = self.runner.meter(self.share)
        try:
            while True:
                try:
                    with meter:
                        asked = send(sent)
                except StopIteration as stop:
                    self.count_result(stop.value)
                    raise Finished(stop.value) from None
                except Exception:
                    if self.ended:
                        # By code of the values' own; the ABI met an instance that is gone.
                        raise self.error() from None
                    raise
                if isinstance(asked, Invoke):
                    self.check_open()  # a thread was in the call before, and has finished it
                    return asked
                try:
                    send, sent = steps.send, await self.convert(asked.function, *asked.values)
                except Exception as error:
                    if self.ended:
                        raise
                    send, sent = steps.throw, error
        finally:
            self.take_spent()

    def put_away(self, steps: Steps) -> None:
        """Close an ABI's steps, which are over; it may clean up, in a guest that may be gone."""
        try:
            steps.close()
        except Exception:
            if not self.ended:
                raise

    async def convert(self, function: Callable[..., T], *values: Any) -> T:
        """Return what the function returns, called in a thread.

        The group is charged with the CPU time that it took there.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned, and so it is if another task ends the call.
        """
        clock, seconds = self.runner.cpu_clock, 0.0

        def run() -> T:
            nonlocal seconds
            began = clock()
            try:
                return function(*values)
            finally:
                seconds = clock() - began

        try:
            return await self.unless_ended(self.runner.convert, run)
        finally:
            self.share.charge_host(seconds, self.share.burst)

    async def yield_if_due(self) -> None:
        """Let others run if the group has had its burst of short calls.

        **Checkpoint:** maybe.
        **Cancellation:** nothing is under way in the guest.

        Raises:
            trio.ClosedResourceError: the lease has ended meanwhile.
        """
        if self.share.burst >= BURST_FUEL:
            await self.runner.pass_turn(self.share)
        self.check_open()

    def attach(self, code: DriverCode, exports: Mapping[str, str]) -> GuestDriver:
        """Attach a driver to the instance: see `BoundFunction.attach`."""
        return self.bound.attach(self._runtime.relieve, code, exports)

    def relieve_stack(self, error: NoMemoryError) -> None:
        """Evict idle instances, as there was no memory for a stack; the call may begin again.

        Raises:
            CodeMemoryError: nothing idle is left.
        """
        self._runtime.relieve(self.bound.entry.function.key, STACK_SHARE, error)

    # -- what it costs

    def end_job(self, job: Job) -> None:
        """End being driven: see `new_job`. What the job burnt is fuel of the call."""
        self.fuel += self.job_over(job)

    def take_spent(self) -> None:
        """Charge the call with what the host did with its results."""
        if self.tally.spent:
            self.fuel += self.tally.take_spent()

    def charge_spent(self) -> None:
        """Charge the call, and its group, with what a thread did with its results."""
        if spent := self.tally.take_spent():
            self._account(spent)

    def count_result(self, value: Any) -> None:
        """Count what an ABI of the user's own has made, which did not count it itself."""
        tally = self.tally
        if not self.bound.counts_results:
            size = size_of(value, tally.limit - tally.begun)
            tally.add(max(size - (tally.size - tally.begun), 0))

    def _account(self, burnt: int) -> None:
        self.fuel += burnt
        self.share.charge(burnt)

    # -- how it fails

    def fail(self, error: BaseException, values: tuple[Any, ...]) -> None:
        """Note that the call failed half-way, and say in the error which call it was."""
        self.failed = True
        self.bound.fail(self._runtime.policy, error, values, self.fuel)

    def refuse(self, error: ResultTooLargeError, values: tuple[Any, ...]) -> None:
        """Say in the error which call it was; the guest had returned, so it is intact."""
        self._runtime.policy.note_error(self.bound.entry, type(error).__name__)
        self.bound.complete(error, values, self.fuel)
