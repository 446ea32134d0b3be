"""Calls, but for their first slice (that is in `Lease.call`): their rest, their failures, ABIs.

An instance whose call failed or was cancelled half-way is *spoilt*: it holds whatever the guest
left in the middle of its work, so it serves no other call, and is dropped when its lease ends.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from ._abi.plain import exact_values, shown
from ._abi.protocol import Crossing, Guest, Invoke, Step
from ._core.config import KiB
from ._core.errors import GuestError, ResultTooLargeError
from ._core.headroom import check_headroom
from ._core.tally import Tally, size_of
from ._core.uses import FUELS
from ._engine.seam import (
    UNDER_WAY,
    GuestFunction,
    GuestInstance,
    InexactError,
    NoMemoryError,
)
from ._metered import MeteredGuest
from ._runner import Job
from ._shell import STACK_SHARE
from ._taking import recycle

if TYPE_CHECKING:
    from ._lease import Lease
    from ._registry import Registered


E = TypeVar("E", bound=BaseException)

# Bytes of the arguments of a failed call that its error keeps; characters or bytes of a longer one;
# and arguments that its message shows.
MAX_KEPT, BEGINNING, MAX_SHOWN = 64 * KiB, 1000, 20


async def rest_of_call(lease: Lease, guest: GuestFunction, values: tuple[Any, ...]) -> Any:
    """What is left of a call that did not end in its first slice.

    **Checkpoint:** always.
    **Cancellation:** the guest is stopped, and its instance is spoilt.
    """
    native = _begin(lease)
    try:
        result = await _finish(lease, native, guest, lease._total_fuel)
    except BaseException as error:
        _spoil(lease, native, error, values)
        raise
    finally:
        _end(lease, native)
    lease._make_usable(guest)
    return result


async def call_in_steps(lease: Lease, crossing: Crossing, values: tuple[Any, ...]) -> Any:
    """A call by an ABI that makes several of it: `total_fuel` is for all of them together.

    **Checkpoint:** between slices.
    **Cancellation:** the guest is stopped, and its instance is spoilt.
    """
    assert crossing.steps is not None
    if is_null_call(lease, values):
        return None
    if len(values) != crossing.arity:
        raise crossing.explain(values)
    return await _make_steps(lease, crossing.steps, values)


async def call_converted(lease: Lease, guest: GuestFunction, values: tuple[Any, ...]) -> Any:
    """Make a call whose values are no plain ints and floats, or do not fit.

    **Checkpoint:** between slices.
    **Cancellation:** the guest is stopped, and its instance is spoilt.
    """
    if is_null_call(lease, values):
        return None
    crossing, registered = lease._crossing, lease._registered
    assert registered is not None
    try:
        lowered = values if crossing.lower is None else crossing.lower(values)
        exact = exact_values(guest.type, lowered)
    except (TypeError, ValueError, OverflowError):
        raise crossing.explain(values) from None
    if guest is not lease._guest:  # code of the values' own has run, and the lease may have ended
        raise lease._unusable()
    export, lift = registered.export, crossing.lift

    def steps(native: Guest, values: tuple[Any, ...]) -> Generator[Step, Any, Any]:
        result = yield Invoke(export, exact)
        return result if lift is None else lift(result)

    return await _make_steps(lease, steps, values)


async def _make_steps(
    lease: Lease,
    make: Callable[[Guest, tuple[Any, ...]], Generator[Step, Any, Any]],
    values: tuple[Any, ...],
) -> Any:
    """See `call_in_steps`."""
    guest = lease._guest
    native = _begin(lease)
    book = lease._shell.result_book
    tally = book.begin()
    steps: Generator[Step, Any, Any] | None = None
    invoke: Invoke | None = None
    inside = False
    try:
        steps = make(MeteredGuest(native, tally), values)
        invoke = await step(lease, steps, None, tally, lease._total_fuel)
        while True:
            left = lease._total_fuel - (lease._fuel or 0)
            function = native.function(invoke.export)
            inside = True
            result = begin(lease, native, function, invoke.values, left)
            if result is UNDER_WAY:
                result = await _finish(lease, native, function, left)
            else:
                _account(lease, left - native.fuel_left())
            inside = False
            left = lease._total_fuel - (lease._fuel or 0)
            invoke = await step(lease, steps, result, tally, left)
    except Finished as finished:
        lease._make_usable(guest)
        return finished.result
    except BaseException as error:
        # Before the first step, values that do not fit are the caller's mistake.
        if invoke is None and not isinstance(error, GuestError):
            lease._make_usable(guest)
        elif isinstance(error, ResultTooLargeError) and not inside:
            refuse(lease, error, values)
            lease._make_usable(guest)
        else:
            _spoil(lease, native, error, values)
        raise
    finally:
        try:
            if steps is not None:
                put_away(lease, steps)
        finally:
            book.end(tally)
            _end(lease, native)


def begin(
    lease: Lease, native: GuestInstance, function: GuestFunction, values: Sequence[Any], fuel: int
) -> Any:
    """Begin one of the calls that a lease makes; what it burns is charged also where it fails.

    Raises:
        trio.ClosedResourceError: the lease has ended, as code of the values' own may have seen to.
        CodeMemoryError: the system has no memory for a stack, though everything idle was evicted.
    """
    exact = values
    while True:
        if lease._closed:
            raise lease._unusable()
        try:
            return function.begin(exact, fuel)
        except InexactError:
            exact = exact_values(function.type, values)
        except NoMemoryError as error:  # for its stack: none of the guest has run
            lease._shell.relieve(lease._entry.function.key, STACK_SHARE, error)
        except GuestError:
            _account(lease, fuel - native.fuel_left())
            raise


class Finished(Exception):
    """The ABI has made all steps of a call."""

    def __init__(self, result: Any) -> None:
        super().__init__(result)
        self.result = result


async def step(
    lease: Lease, steps: Generator[Step, Any, Any], result: Any, tally: Tally, left: int
) -> Invoke:
    """Let the ABI convert values, up to the next thing to call; `Finished` if there is none.

    The group is charged with the CPU time that takes, unless it is a thread's. What the ABI reads
    of the guest's memory, and the values it makes, cost fuel of the call, which has `left` of it.

    **Checkpoint:** if something takes long.
    **Cancellation:** only there; nothing is under way in the guest.

    Raises:
        trio.ClosedResourceError: there is something to call, and the lease has ended.
    """
    tally.allowed = left
    send, sent = steps.send, result
    meter = lease._shell.runner.meter(lease._share)
    try:
        while True:
            try:
                with meter:
                    asked = send(sent)
            except StopIteration as stop:
                count_result(lease, stop.value, tally)
                raise Finished(stop.value) from None
            except Exception:
                if lease._closed:
                    # By code of the values' own; the ABI met an instance that is gone.
                    raise lease._unusable() from None
                raise
            if isinstance(asked, Invoke):
                if lease._closed:  # a thread was in the call before, and has finished it
                    raise lease._unusable()
                return asked
            try:
                send, sent = steps.send, await convert(lease, asked.function, *asked.values)
            except Exception as error:
                if lease._closed:
                    raise
                send, sent = steps.throw, error
    finally:
        if tally.spent:
            lease._fuel = (lease._fuel or 0) + tally.take_spent()


def count_result(lease: Lease, value: Any, tally: Tally) -> None:
    """Count what an ABI of the user's own has made, which did not count it itself."""
    if not counts_results(lease._crossing):
        size = size_of(value, tally.limit - tally.begun)
        tally.add(max(size - (tally.size - tally.begun), 0))


def counts_results(crossing: Crossing) -> bool:
    """Whether it counts all that it makes of a result: those of this library do."""
    return getattr(crossing, "counts_results", False)


def put_away(lease: Lease, steps: Generator[Step, Any, Any]) -> None:
    """An ABI's steps are over, or will never be; it may clean up, in a guest that may be gone."""
    try:
        steps.close()
    except Exception:
        if not lease._closed:
            raise


async def convert(lease: Lease, function: Callable[..., Any], *values: Any) -> Any:
    """What the function returns, called in a thread.

    **Checkpoint:** always.
    **Cancellation:** the thread is abandoned.

    Raises:
        trio.ClosedResourceError: the lease, its group or the cache was closed meanwhile.
    """
    return await lease._unless_closed(lease._shell.runner.convert, function, *values)


def failed(lease: Lease, error: E, values: tuple[Any, ...]) -> E:
    """A call ended badly in its first slice: the error, complete."""
    native = lease._native
    if native is None:  # what converts the values ended the lease, and then raised this
        return error
    lease._calls += 1
    lease._fuel = 0
    _account(lease, lease._total_fuel - native.fuel_left())
    lease._entry.uses.add(FUELS, lease._fuel)
    _spoil(lease, native, error, values)
    return error


def lifted(lease: Lease, result: Any, values: tuple[Any, ...]) -> Any:
    """The Python value of a result; a guest that returns what can't be is spoilt."""
    lift, native = lease._crossing.lift, lease._native
    assert lift is not None
    try:
        return lift(result)
    except GuestError as error:
        if native is not None:
            _spoil(lease, native, error, values)
        raise


def is_null_call(lease: Lease, values: tuple[Any, ...]) -> bool:
    """Whether this is a call with a None that gives None without a call."""
    registered = lease._registered
    return (
        registered is not None
        and not registered.called_on_null
        and len(values) == registered.crossing.arity
        and any(value is None for value in values)
    )


def _begin(lease: Lease) -> GuestInstance:
    """From here on, until `_end`, other tasks may run, and find the lease busy."""
    check_headroom()  # for `_end`, too
    native = lease._native
    assert native is not None
    lease._busy = True
    lease._caller = trio.lowlevel.current_task()
    lease._guest = None
    lease._calls += 1
    lease._fuel = 0
    lease._began = trio.current_time()
    lease._entry.uses.continued += 1
    return native


def _end(lease: Lease, native: GuestInstance) -> None:
    lease._busy = False
    lease._caller = None
    seconds = trio.current_time() - lease._began
    lease._shell.policy.note_long_call(lease._entry, lease._fuel or 0, seconds)
    if lease._closed and lease._request is not None:
        recycle(lease, lease._end_reason)


def charge(lease: Lease, fuel: int) -> None:
    """What the host has done for a call is fuel of that call, and of its group."""
    if fuel:
        _account(lease, fuel)


def _account(lease: Lease, burnt: int) -> None:
    lease._fuel = (lease._fuel or 0) + burnt
    lease._share.charge(burnt)


def _spoil(
    lease: Lease, native: GuestInstance, error: BaseException, values: tuple[Any, ...]
) -> None:
    """A call failed half-way: no other will be made, and the error says which it was."""
    lease._broken = True
    lease._shell.policy.note_error(lease._entry, type(error).__name__)
    lease._guest = None
    native.abandon()
    if isinstance(error, GuestError) and not error.function:
        # Not if it is another guest's, that a host function of this one called.
        assert lease._registered is not None
        _complete(error, lease._registered, values, lease._fuel)


def refuse(lease: Lease, error: ResultTooLargeError, values: tuple[Any, ...]) -> None:
    """A result is too large; the guest has returned and knows nothing of it, so it is intact."""
    lease._shell.policy.note_error(lease._entry, type(error).__name__)
    assert lease._registered is not None
    _complete(error, lease._registered, values, lease._fuel)


async def _finish(lease: Lease, native: GuestInstance, guest: GuestFunction, fuel: int) -> Any:
    assert lease._registered is not None
    job = Job(native, lease._share, lease._registered.slot.hosts, lease, fuel)
    before = lease._fuel or 0
    lease._job = job
    try:
        job.charge()
        await lease._shell.runner.drive(job)
        return guest.finish()
    finally:
        lease._job = None
        if not lease._closed:
            job.charge()
        lease._fuel = before + job.burnt


def _complete(
    error: GuestError, registered: Registered, values: tuple[Any, ...], fuel: int | None
) -> None:
    """Say in the error which function it was, and with what it was called."""
    key = registered.function.key
    error.function = key.name
    error.values = kept_values(values)
    listed = ", ".join(shown(value) for value in values[:MAX_SHOWN])
    if len(values) > MAX_SHOWN:
        listed += f", and {len(values) - MAX_SHOWN} more"
    trace = "".join(f"\n  {frame}" for frame in error.backtrace)
    burnt = f" after {fuel} units of fuel" if fuel else ""
    row = "" if error.row is None else f" in row {error.row} of a batch,"
    what = f"{key}{row} called with ({listed}){burnt}"
    error.args = (f"{what}: {error.args[0]}{trace}", *error.args[1:])
    if counts_results(registered.crossing):
        # Frames of a conversion, and errors of others in it, have the data that was converted.
        error.__traceback__ = error.__context__ = None


def kept_values(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a failed call as its error keeps them: the beginning of what is large."""
    kept, left = [], MAX_KEPT
    for value in values:
        size = size_of(value, left)
        if size > left:
            value, size = _beginning(value), 0
        left -= size
        kept.append(value)
    return tuple(kept)


def _beginning(value: Any) -> Any:
    if type(value) in (str, bytes):
        return value[:BEGINNING]
    return shown(value)
