"""One call under way in an instance, from the end of its first slice; its fuel and its failure.

The first slice is in `Lease.call`; most calls end in it and need no `Call`. A batch is one call,
too, whose rows are called by `_batch`.

An instance whose call failed or was cancelled half-way is in an unknown state, so it serves no
other call, and is dropped when its lease ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, Unpack, final

import trio
from attrs import frozen

from .._abi.base import PAUSE, Convert, Guest, Invoke, InvokePart, Steps, Value
from .._abi.plain import exact_values
from .._core.config import MiB
from .._core.dumps import DumpBook
from .._core.errors import INTACT, CodeMemoryError, ExitError, GuestError, WitError
from .._core.events import Reason
from .._core.policy.policy import Policy
from .._core.policy.records import Need, Request
from .._core.policy.shares import BURST_FUEL, Share
from .._core.stack_room import check_headroom
from .._core.tally import Tally, size_of
from .._core.text import shown
from .._core.wasm.admission import import_name
from .._engine.base import (
    UNDER_WAY,
    DriverCode,
    Engine,
    GuestDriver,
    GuestFunction,
    GuestInstance,
    GuestMemory,
    HostCall,
    InexactError,
    NoMemoryError,
)
from .activity import Activity, OutputLog
from .bound import BoundFunction, Failure
from .host import AnyHost, HostFunction
from .metered import MeteredGuest
from .relief import Relief, Reserved
from .results import ResultBook, ResultMemory
from .runner import Job, Runner
from .user_code import add_note

if TYPE_CHECKING:
    from .._core.wasm.graph import FromPart

Args = TypeVarTuple("Args")
T = TypeVar("T")

# Bytes of addresses, and mappings, to free first when the system has no memory for a stack.
STACK_SHARE: Reserved = 64 * MiB, 64


def function_of(native: GuestInstance, asked: Invoke) -> GuestFunction:
    """Return the exported function that an ABI asks to be called."""
    if isinstance(asked, InvokePart):
        return native.part(asked.part).function(asked.export)
    return native.function(asked.export)


class CallRecorder(Protocol):
    """Notes calls to be run again, or runs them again: see `recording` and `playing`."""

    def wrap(self, hosts: Sequence[AnyHost], names: Sequence[str]) -> tuple[AnyHost, ...]:
        """Return what takes the places of the host functions of a module.

        Args:
            hosts: all of them, those included that this library adds.
            names: their names for messages; of those that the engine answers, there are none.
        """

    def watched(self, native: GuestInstance) -> GuestMemory | None:
        """Return the memory of an instance, in which nothing runs, for the application."""


def rest_of(binding: Any, result: object) -> Callable[[Guest, tuple[object, ...]], Steps]:
    """Return what makes the rest of a call, of which the first export has returned `result`."""

    def rest(guest: Guest, _values: tuple[object, ...]) -> Steps:
        if hasattr(binding, "rest"):
            return (yield from binding.rest(guest, result))
        return binding.leave(guest, result)

    return rest


@final
@frozen(eq=False, repr=False)
class Runtime:
    """The parts of one cache that all its calls share."""

    engine: Engine
    runner: Runner
    policy: Policy
    book: ResultBook
    results: ResultMemory
    relief: Relief
    log: OutputLog
    dumps: DumpBook
    recorder: CallRecorder | None = None
    """What wraps host functions, to note what they answer, or to answer for them; None: nothing
    does."""


class Replacement(Protocol):
    """The making of an instance that replaces the one of a call; see `Call.renew`."""

    @property
    def start(self) -> Activity | None:
        """Start of the new instance; None while it does not start."""

    async def run(self, bound: BoundFunction, error: str) -> BoundFunction:
        """Close an instance, which is unusable, and return the function bound to a new one.

        Args:
            bound: the function bound to the old one, in which nothing runs.
            error: type of the error that has left it unusable.
        """

    def close(self) -> None:
        """Free the new instance, which is starting: the lease has ended."""


class Finished(Exception):
    """Raised when the ABI has made all steps of a call."""

    def __init__(self, result: object) -> None:
        super().__init__(result)
        self.result = result


class Call(Activity):
    """A call, or a batch, from the moment when other tasks may run to its end.

    Args:
        runtime: parts of the cache that all calls share.
        bound: the function bound to the instance.
        share: share of the group that is charged.
        lease: the result of `current_lease` in host functions.
        request: the request of the lease.
        replacement: what replaces its instance when a row of a batch fails; None: nothing does.
    """

    def __init__(
        self,
        runtime: Runtime,
        bound: BoundFunction,
        share: Share,
        lease: object,
        request: Request | None,
        replacement: Replacement | None = None,
    ) -> None:
        check_headroom()  # for its end, too
        hosts = bound.definition.module.hosts
        super().__init__(runtime.runner, share, hosts, lease, runtime.log, request)
        self.bound: BoundFunction = bound
        self.native: GuestInstance = bound.native
        self.name: str = bound.entry.function.key.name
        self.engine: Engine = runtime.engine
        self.results: ResultMemory = runtime.results
        """Memory for the results of batches."""
        self.tally: Tally = runtime.book.begin()
        """Count of the bytes that the host allocates for results."""
        self.caller: trio.lowlevel.Task = trio.lowlevel.current_task()
        self.rows: int | None = None
        """Number of rows of a batch, once it is known."""
        self.fuel: int = 0
        """Units of fuel burnt so far, by the guest and by the host for it, without those of a job
        that is under way."""
        self.failed: Failure | None = None
        """How it failed half-way, so that the instance can serve no other call; None: it has
        not."""
        self.exited: bool = False
        """Whether it was a command that has exited well, so that nothing runs in the instance, and
        no other call may begin before it is reset."""
        self.drop: Reason | None = None
        """Reason for evicting the instance after the call, if another task has ended it."""
        self._replacement = replacement
        self._runtime = runtime
        self._began = trio.current_time()
        bound.entry.counted.note_continued()

    def close(self) -> None:
        """Note the fuel and time of the call, which has ended.

        At its end, the application may get the last lines of output, and may raise.
        """
        self._runtime.book.end(self.tally)
        seconds = trio.current_time() - self._began
        self._runtime.policy.note_long_call(self.bound.entry, self.fuel, seconds)
        self.runner.burnt()
        self.end_session()

    def end_for(self, reason: Reason, error: Callable[[], Exception]) -> None:
        """End it from another task, as `end` does; its instance is dropped for that reason."""
        self.drop = reason
        self.end(error)
        if self._replacement is not None and self.out_of_thread is None:
            # First, as its start may use the code that is unloaded next.
            self._replacement.close()

    # -- another instance in its course

    @property
    def _start(self) -> Activity | None:
        return None if self._replacement is None else self._replacement.start

    @property
    def host_call(self) -> HostCall | None:
        """Host call for which the guest, or the start of its new instance, is suspended."""
        return super().host_call if self._start is None else self._start.host_call

    def refuse_host_call(self) -> Exception | None:
        """Return the error for a host call that the guest makes while its ABI forbids it."""
        binding: Any = self.bound.binding
        if not hasattr(binding, "refuse_host_call"):
            return None
        refused: Exception | None = binding.refuse_host_call(self.native)
        return refused

    def end(self, error: Callable[[], Exception]) -> None:
        """End it from another task, and the start of its new instance: see `Activity.end`."""
        super().end(error)
        if self._start is not None:
            self._start.end(error)

    @property
    def out_of_thread(self) -> trio.Event | None:
        """Event that is set when the thread has left the guest; None if no thread runs it."""
        return super().out_of_thread if self._start is None else self._start.out_of_thread

    async def renew(self, error: BaseException, keep: GuestDriver | None = None) -> bool:
        """Put the instance back, or replace it by a new one, as a call in it has failed.

        Args:
            error: the error of the call, which has its facts already.
            keep: driver to go on with if the instance can be put back; its scratch stays as it is.

        Returns:
            Whether it is the same instance; `bound` and `native` are another otherwise.

        Raises:
            LoadError: the new instance can't be made, or its start failed.
            CodeMemoryError: the system has no memory for it.
            trio.ClosedResourceError: the lease has ended.

        **Checkpoint:** maybe.
        **Cancellation:** the lease has no usable instance any more; the caller must call `fail`.
        """
        native, bound = self.native, self.bound
        native.abandon()
        self.check_open()
        with self.runner.meter(self.share):
            if bound.definition.resets and native.reset(keep):
                return True
        assert self._replacement is not None
        self.bound = bound = await self._replacement.run(bound, type(error).__name__)
        self.native = bound.native
        return False

    # -- one call

    async def finish(self, function: GuestFunction, fuel: int) -> Value:
        """Finish what `function` has begun with `fuel`; return the result as wasm values.

        **Checkpoint:** always.
        **Cancellation:** the guest is stopped within a slice; the caller must call `fail`.
        """
        job = self.new_job(self.native, fuel, finish=function.finish)
        try:
            job.charge()
            await self.runner.drive(job)
            return function.finish()
        finally:
            self.end_job(job)

    async def run_steps(
        self,
        make: Callable[[Guest, tuple[object, ...]], Steps],
        values: tuple[object, ...],
        *,
        begun: bool = False,
    ) -> Value:
        """Make the call in the steps of an ABI, which share `total_fuel`.

        Args:
            make: makes the steps.
            values: arguments of the call.
            begun: whether the guest has run already, so that even their beginning may leave it
                unusable.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped, and the instance can serve no other call.
        """
        native, total = self.native, self.bound.total_fuel
        steps: Steps | None = None
        invoke: Invoke | None = None
        inside, ran = False, begun
        try:
            steps = make(MeteredGuest(native, self.tally), values)
            invoke = await self.step(steps, None, total)
            while True:
                left = total - self.fuel
                function = function_of(native, invoke)
                inside = True
                result = self.begin(function, invoke.values, left)
                ran = True
                if result is UNDER_WAY:
                    # `finish`, inline: calling it would be one more coroutine to resume for every
                    # slice.
                    job = self.new_job(native, left, finish=function.finish)
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
            if invoke is None and not begun and not isinstance(error, GuestError):
                pass  # before the first step: values that do not fit leave the instance intact
            elif isinstance(error, CodeMemoryError) and not ran:
                # The first call of an export has no stack: the instance is intact.
                self._runtime.policy.note_error(self.bound.entry, type(error).__name__)
            elif isinstance(error, INTACT) and not inside:
                self.refuse(error, values)
            elif isinstance(error, WitError) and not inside:
                self.note_returned(error)
            elif self.ends_well(error):
                return self._left(values)
            else:
                self.fail(error, values)
            raise
        finally:
            if steps is not None:
                self.put_away(steps)

    async def run_rest(self, result: object, burnt: int, values: tuple[object, ...]) -> Value:
        """Make the rest of a call whose first slice ran without steps: see `Direct`.

        Args:
            result: result of that slice, as wasm values.
            burnt: units of fuel that it burnt, if it was the last.
            values: arguments of the call.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped, and the instance can serve no other call.
        """
        bound = self.bound
        if result is UNDER_WAY:
            try:
                result = await self.finish(bound.guest, bound.total_fuel)
            except BaseException as error:
                self.fail(error, values)
                raise
        else:
            self.account(burnt)
        return await self.run_steps(rest_of(bound.binding, result), values, begun=True)

    def _left(self, values: tuple[object, ...]) -> Value:
        """Return the result of a command that has exited well, if its ABI has any."""
        leave = getattr(self.bound.binding, "leave", None)
        if leave is None:
            return None
        self.tally.allow(self.bound.total_fuel - self.fuel)
        try:
            return leave(MeteredGuest(self.native, self.tally), None)
        except INTACT as error:
            self.refuse(error, values)
            raise
        finally:
            self.take_spent()

    # -- parts of a call, for batches too

    def begin(self, function: GuestFunction, values: Sequence[object], fuel: int) -> Value:
        """Begin to call a function, and run its first slice: see `GuestFunction.begin`.

        The burnt fuel is charged, also if the call fails; for a call that is UNDER_WAY, `finish`
        charges it.

        Raises:
            trio.ClosedResourceError: the lease has ended, maybe by code of the values' classes.
            CodeMemoryError: the system has no memory for a stack, though all idle instances were
                evicted.
        """
        begin, exact = self.runner.cpu_limits.metered_call(self.share, function.begin), values
        while True:
            self.check_open()
            try:
                result = begin(exact, fuel)
            except InexactError:
                exact = exact_values(function.type, values)
            except NoMemoryError:  # for its stack: the guest has not run
                begin = functools.partial(self._begin_with_stack, function)
            except GuestError:
                self.account(fuel - self.native.fuel_left())
                raise
            else:
                if result is not UNDER_WAY:
                    self.account(fuel - self.native.fuel_left())
                return result

    def _begin_with_stack(
        self, function: GuestFunction, values: Sequence[object], fuel: int
    ) -> Value:
        return self.with_stack(function.begin, values, fuel)

    async def step(self, steps: Steps, result: object, left: int) -> Invoke:
        """Let the ABI convert values up to its next call of an export, which is returned.

        The group is charged with the CPU time of the conversion. Bytes that the ABI reads from the
        guest's memory, and values that it makes, cost fuel of the call.

        Args:
            steps: the steps of the ABI.
            result: result of the last call of an export, as wasm values; None at first.
            left: fuel that is left to the call.

        Raises:
            Finished: the ABI has made its last step.
            trio.ClosedResourceError: there is an export to call, but the lease has ended.

        **Checkpoint:** if a conversion takes long.
        **Cancellation:** only during a long conversion; nothing is under way in the guest.
        """
        tally = self.tally
        tally.allow(left)
        try:
            send, sent = steps.send, result
        except AttributeError:
            raise TypeError(
                f"{self.name}: steps of its ABI must be a generator function, with yield in it; it "
                f"returned {shown(steps)}"
            ) from None
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
                        # By code of the values' classes; the ABI then used a closed instance.
                        raise self.error() from None
                    raise
                if isinstance(asked, Invoke):
                    self.check_open()  # a thread may have finished the last call after the end
                    return asked
                if asked is PAUSE:
                    await self.yield_if_due()
                    send, sent = steps.send, None
                    continue
                if not isinstance(asked, Convert):
                    raise TypeError(
                        f"{self.name}: steps of its ABI must yield an Invoke or a Convert, got "
                        f"{shown(asked)}"
                    )
                try:
                    send, sent = steps.send, await self.convert(asked.function, *asked.values)
                except Exception as error:
                    if self.ended:
                        raise
                    send, sent = steps.throw, error
        finally:
            self.take_spent()

    def put_away(self, steps: Steps) -> None:
        """Close the steps of an ABI, which may clean up in the guest, even in a closed one."""
        try:
            steps.close()
        except Exception:
            if not self.ended and hasattr(steps, "close"):
                raise

    async def convert(self, function: Callable[..., T], *values: object) -> T:
        """Call a function in a thread, and return its result.

        The group is charged with the CPU time that it takes there.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned, also if another task ends the call.
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
            self.runner.cpu_limits.charge(self.share, seconds)

    async def yield_if_due(self) -> None:
        """Let other tasks run if the group has had its burst of short calls.

        Raises:
            trio.ClosedResourceError: the lease has ended meanwhile.

        **Checkpoint:** maybe.
        **Cancellation:** nothing is under way in the guest.
        """
        if self.share.burst >= BURST_FUEL:
            await self.runner.pass_turn(self.share)
        self.check_open()

    def attach(self, code: DriverCode, exports: Mapping[str, str | FromPart]) -> GuestDriver:
        """Attach a driver to the instance: see `BoundFunction.attach`."""
        return self.bound.attach(self._runtime.relief, self._need, code, exports)

    def with_stack(self, begin: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Return the result of ``begin(*args)``, for which the system makes the guest's stack.

        Idle instances are evicted if the system has no memory for it: see `Relief.run`.

        Raises:
            CodeMemoryError: no idle instance is left to evict.
        """
        begin = self.runner.cpu_limits.metered_call(self.share, begin)
        return self._runtime.relief.run(self._need, STACK_SHARE, begin, *args)

    @property
    def _need(self) -> Need:
        return self.bound.entry.need if self._request is None else self._request.need

    # -- fuel

    @property
    def fuel_before(self) -> int:
        """Units of fuel that were burnt before the job that is under way."""
        return self.fuel

    def end_job(self, job: Job) -> None:
        """End a job of `new_job`, and add the fuel that it burnt to that of the call."""
        self.fuel += self.job_over(job)

    def take_spent(self) -> None:
        """Add the cost of the host's work on results to the fuel of the call."""
        if self.tally.spent:
            self.fuel += self.tally.take_spent()

    def charge_spent(self) -> None:
        """Charge the call and its group for a thread's work on results."""
        if spent := self.tally.take_spent():
            self.account(spent)

    def count_result(self, value: object) -> None:
        """Count a result made by an ABI of the user's own, which did not count it itself."""
        tally = self.tally
        if not self.bound.counts_results:
            size = size_of(value, tally.limit - tally.begun)
            tally.add(max(size - (tally.size - tally.begun), 0))

    def account(self, burnt: int) -> None:
        """Add fuel that the guest has burnt in a slice that was not of a job."""
        self.fuel += burnt
        self.share.charge(burnt)

    # -- failure

    def ends_well(self, error: BaseException) -> bool:
        """Return whether the call ends well with this error: a command has exited with status 0."""
        if (
            not isinstance(error, ExitError)
            or error.status
            or error.function  # of another guest, which a host function of this one called
            or not self.bound.definition.command
        ):
            return False
        self.native.abandon()
        self.exited = True
        return True

    def note_host_error(self, index: int, error: Exception) -> None:
        if isinstance(error, (GuestError, WitError)):
            return  # which names its own function
        module = self.bound.definition.module
        made, host = module.host_imports[index], module.hosts[index]
        # That of a component is imported by a part that this library has made.
        inner = getattr(host, "function", None)
        of_wit = None if isinstance(inner, HostFunction) else getattr(inner, "what", None)
        if isinstance(of_wit, str):
            what = of_wit.removeprefix("host function ")
        else:
            what = import_name(made.module, made.name)
        add_note(error, f"in host function {what}, called by {self.bound.entry.function.key}")

    def fail(self, error: BaseException, values: tuple[object, ...]) -> None:
        """Note that the call failed half-way, and complete the error with its facts."""
        self.failed = Failure(type(error).__name__)
        self._say(error)
        runtime = self._runtime
        self.failed = self.bound.fail(runtime.policy, runtime.dumps, error, values, self.fuel)
        self.share.charge(self.failed.fuel)

    def explain(self, error: GuestError, values: tuple[object, ...]) -> None:
        """Complete the error of a row without which the batch goes on; nothing runs any more."""
        self._say(error)
        if isinstance(error, INTACT):
            self.bound.complete(error, values, self.fuel)
        else:
            self.bound.explain(self._runtime.policy, error, values, self.fuel)

    def _say(self, error: BaseException) -> None:
        """Add what the guest wrote in the failed call, or in the failed row, to its error."""
        if isinstance(error, GuestError) and not error.function:
            error.output = self.output(error.row)

    def note_returned(self, error: WitError) -> None:
        """Count an error that a component's function returned: the instance is intact."""
        error.function = self.name
        self._runtime.policy.note_error(self.bound.entry, type(error).__name__)

    def refuse(self, error: GuestError, values: tuple[object, ...]) -> None:
        """Complete an error of `INTACT` with its facts."""
        self._runtime.policy.note_error(self.bound.entry, type(error).__name__)
        self._say(error)
        self.bound.complete(error, values, self.fuel)
