"""A lease, the function that it is of, and what both show: they know each other, so they are here.

Two rules:

1. Every change of a lease's state is a step of the table below, or raises `IllegalStepError`.
2. The fast paths (of a hit, of a call that ends in its first slice) write their steps out. They ask
   one question: is there a callable in `_ready`? There is one only while a call may begin.
"""

from __future__ import annotations

import enum
import functools
import operator
import sys
from collections.abc import Callable, Sequence
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any, TypeVar, final

import trio
from attrs import field, frozen
from trio.lowlevel import Task, checkpoint, checkpoint_if_cancelled, current_task

from .._abi.base import Guest, Invoke
from .._abi.plain import exact_values, shown
from .._batch.batch import map_columns
from .._core.errors import GuestError
from .._core.events import Reason
from .._core.keys import FunctionKey
from .._core.metrics.counters import FUELS
from .._core.policy.lifecycle import IllegalStepError
from .._core.policy.records import Request
from .._core.policy.shares import BURST_FUEL, CALL_FUEL
from .._core.stack_room import check_headroom
from .._engine.base import UNDER_WAY, GuestMemory, InexactError, NoMemoryError
from .._pool.acquisition import Acquisition
from .._pool.capacity import GroupState
from .._pool.pool import Pool
from .._runtime.activity import Activity
from .._runtime.bound import BoundFunction, Definition
from .._runtime.call import STACK_SHARE, Call, Steps
from .._runtime.runner import context_of_call

E = TypeVar("E", bound=BaseException)


class LeaseState(enum.Enum):
    """Where a lease is in its life; its words are those of its `repr`."""

    NEW = "not entered"
    ACQUIRING = "acquiring"
    HELD = "held"
    CALLING = "in a call"
    BROKEN = "broken"
    ENDED = "ended"


NEW, ACQUIRING, HELD = LeaseState.NEW, LeaseState.ACQUIRING, LeaseState.HELD
CALLING, BROKEN, ENDED = LeaseState.CALLING, LeaseState.BROKEN, LeaseState.ENDED

# {state: what may follow}. How far it is while ACQUIRING, the acquisition knows. A call in its
# first slice is no state of its own: nothing else of this task or another can come in between.
TRANSITIONS: dict[LeaseState, frozenset[LeaseState]] = {
    NEW: frozenset({ACQUIRING, HELD}),
    ACQUIRING: frozenset({HELD, ENDED}),
    HELD: frozenset({CALLING, BROKEN, ENDED}),
    CALLING: frozenset({HELD, BROKEN, ENDED}),
    BROKEN: frozenset({ENDED}),
    ENDED: frozenset(),
}


@final
class Lease:
    """An instance of one function, held by one task at a time.

    .. code-block::

        async with cache.acquire("fib", ("i64",)) as fib:
            assert await fib.call(10) == 55

    The instance goes back into the cache when the block ends, unless a call of it failed or was
    cancelled half-way: then it is dropped, and the next acquire gets another.

    Made by `InstanceCache.acquire`, `SchedulingGroup.acquire` and `Function.acquire`; entered once.
    Entering is a checkpoint, leaving is not: it never waits, and works in a cancelled scope.
    """

    # As long as nothing else is said; most leases end without having said it.
    _state = NEW
    _task: Task | None = None
    """The task that has the group's token for it."""
    _request: Request | None = None
    """None when nothing is held, or no longer."""
    _bound: BoundFunction | None = None
    """Of the instance that is held, or was."""
    _ready: Callable[[Sequence[Any], int], Any] | None = None
    """Begins a call; None while none may begin."""
    _acquisition: Acquisition | None = None
    """While it is ACQUIRING."""
    _under_way: Call | None = None
    """The call that is under way; it may outlive the block."""
    _fuel: int | None = None
    _entered_from: FrameType | None = None
    """The frame that awaited `__aenter__`, while it is HELD and went the long way."""

    def __init__(
        self,
        pool: Pool,
        group: GroupState,
        name: str,
        args: Sequence[str],
        warm: bool = False,
    ) -> None:
        self._pool = pool
        self._group = group
        self._name = name
        self._args = args
        self._warm = warm
        self._calls = 0

    # -- the block

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Lease:
        """Wait for the instance, and load it if there is none idle.

        **Checkpoint:** always.
        **Cancellation:** nothing is held.

        Raises:
            UnknownFunctionError: no such function is registered (or no longer).
            LoadError, LinkError: its instance can't be made.
            CodeMemoryError: it can't fit into `max_code_size`, or `max_running_size`.
            DeadlockError: waiting would never end.
            trio.ClosedResourceError: the group or the cache is closed.
        """
        pool = self._pool
        if get_ident() != pool.thread:
            raise pool.owner.refusal("acquire", waits=True)
        if self._state is not NEW:
            raise RuntimeError("a lease is entered once; acquire again for another")
        try:
            task = current_task()
        except RuntimeError:
            raise pool.owner.refusal("acquire", waits=True) from None
        self._state = ACQUIRING
        try:
            await checkpoint()
        except BaseException:
            self._state = ENDED
            raise
        # The fast path of a hit: short on purpose, like the policy's part of it. With no token
        # free, nothing idle, or much to log, it goes the long way.
        group = self._group
        capacity = group.capacity
        owners = capacity.owners
        try:
            # First, as a name may be of a class whose `__hash__` does whatever it likes.
            function = pool.exact[self._name, self._args]  # type: ignore[index]
        except (KeyError, TypeError):
            return await self._acquire(task)
        if (
            capacity.limiter is None
            and task not in owners
            and len(owners) < capacity.total
            and not (self._warm or pool.journal.log_uses)
        ):
            now = pool.now
            request = pool.policy.hit(function, group.record, task, self._end, now())
            if request is not None:
                owners[task] = 1
                self._task = task
                self._request = request
                self._bound = bound = request.instance.bound  # type: ignore[union-attr,assignment]
                self._ready = bound.begin  # type: ignore[union-attr]
                self._state = HELD
                return self
        return await self._acquire(task)

    async def _acquire(self, task: Task) -> Lease:
        acquisition = Acquisition(self._pool, self._group, task, self, self._end, warm=self._warm)
        self._acquisition = acquisition
        try:
            self._request, self._bound = await acquisition.run(self._name, self._args)
        except BaseException:
            self._step(ENDED)
            raise
        finally:
            self._acquisition = None
        self._task = task
        self._ready = self._bound.begin
        self._entered_from = sys._getframe(2)
        self._step(HELD)
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the instance back. No checkpoint, whatever happened in the block."""
        task, pool = self._task, self._pool
        if task is None:
            return
        if kind is GeneratorExit and not pool.owner.may_leave():
            # A coroutine is finalized that was never run to its end: maybe at any line.
            self._task = None
            pool.exits.add(functools.partial(self._leave_late, task))
            return
        if get_ident() != pool.thread:
            raise pool.owner.refusal("acquire", waits=True)
        self._task = None
        # Both are there as long as a call may begin; to look again would cost what it is to save.
        request: Any = self._request
        bound: Any = self._bound
        capacity, now = self._group.capacity, pool.now
        owners = capacity.owners
        try:
            # The fast path again: of a lease after which the instance rests, and nobody is waiting.
            measure = None if self._ready is None else bound.measure
            if measure is not None and pool.policy.rest(request, measure(bound.native), now()):
                self._ready = self._request = None
                self._state = ENDED
                if not pool.evictor.expects_expiry:
                    pool.evictor.expect_expiry()
            else:
                self._leave(task)
                return
            if capacity.limiter is None and owners[task] == 1:
                del owners[task]
            else:
                check_headroom()
                capacity.give_back(task)
        except RecursionError:
            pool.exits.add(functools.partial(self._leave_late, task))

    def _leave(self, task: Task) -> None:
        """End the block: give back the token now, and the instance when no call is under way.

        Raises:
            RecursionError: there is not enough room on Python's stack; nothing has changed.
        """
        entered_from, self._entered_from = self._entered_from, None
        if entered_from is None or entered_from is not sys._getframe(2):
            check_headroom()  # else there is as much room as there was on entering
        request, call = self._request, self._under_way
        if request is not None and call is not None:
            pool, now = self._pool, trio.current_time()
            self._end_call_early(call, Reason.CORRUPTED)
            pool.journal.left(request, call.caller, now)
            pool.carry_out(pool.policy.hand_over(request, call.caller, now), now)
        elif request is not None:
            self._recycle(request)
        self._group.capacity.give_back(task)

    def _leave_late(self, task: Task) -> None:
        """End the block from the top of Python's stack."""
        self._leave(task)
        self._pool.evictor.expect_expiry()

    def _recycle(self, request: Request, reason: Reason | None = None) -> None:
        """Give the instance back, which nobody is in; or have it dropped, for that reason."""
        clean, self._ready = self._ready is not None, None
        self._request = None
        if self._state is not ENDED:
            self._step(ENDED)
        bound = self._bound
        assert bound is not None
        self._pool.recycle(request, bound, clean=clean, calls=self._calls, reason=reason)

    def _end(self, reason: Reason) -> trio.Event | None:
        """Give the instance up, as the group or the cache closes: see `GiveUp`."""
        if self._acquisition is not None:
            return self._acquisition.end(reason)
        call = self._under_way
        if call is not None:
            self._end_call_early(call, reason)
            if call.out_of_thread is not None:
                return call.out_of_thread
        if self._request is not None:
            self._recycle(self._request, reason)
        return None

    # -- calls

    @trio.lowlevel.enable_ki_protection
    async def call(self, *values: Any) -> Any:
        """Call the function.

        Returns:
            Its result; None if it has none, a tuple if it has several. With
            `called_on_null=False`, None for any argument gives None without a call.

        Raises:
            TypeError, ValueError, OverflowError: a value does not fit; no wasm has run.
            GuestError: the guest trapped, ran out of fuel or stack, exited, or broke its ABI.
            ResultTooLargeError: the result exceeds `max_result_size`; the lease goes on.
            CodeMemoryError: the system has no memory for its stack, though everything idle was
                evicted; the lease can go on.
            trio.BusyResourceError: the instance is in use by another task.
            trio.BrokenResourceError: an earlier call in this lease failed.
            trio.ClosedResourceError: the lease, its group or the cache is closed.
            Exception: whatever a host function raised, as it is.

        **Checkpoint:** cancellation is checked before the guest starts and between slices; others
        run after each slice and about every 0.5 ms of short calls. A call that finished returns
        its result.
        **Cancellation:** the guest is stopped within a slice, and its instance is dropped.
        """
        pool = self._pool
        if get_ident() != pool.thread:
            raise pool.owner.refusal("call", waits=True)
        # The fast path: short on purpose. What does not end in its first slice, or fails, or needs
        # memory to cross, is a `Call`.
        begin, bound, share = self._ready, self._bound, self._group.share
        if begin is None or bound is None:
            raise self._unusable()
        if share.burst >= BURST_FUEL:
            await pool.runner.pass_turn(share)
            if begin is not self._ready:
                raise self._unusable()
        else:
            await checkpoint_if_cancelled()
        if bound.steps is not None:
            return await self._call_in_steps(bound, bound.steps, values)
        lower, fuel = bound.lower, bound.total_fuel
        self._ready = None
        try:
            if lower is None:
                try:
                    result = begin(values, fuel)
                except InexactError:
                    lowered: Sequence[Any] = exact_values(bound.guest.type, values)
                    if self._request is None:  # as below
                        raise self._unusable() from None
                    result = begin(lowered, fuel)
            else:
                lowered = lower(values)
                if self._request is None:  # code of the values' own has run, and ended the lease
                    raise self._unusable()
                result = begin(lowered, fuel)
        except NoMemoryError as error:  # for its stack: none of the guest has run
            self._ready = begin
            pool.relieve(bound.entry.function.key, STACK_SHARE, error)
            return await self.call(*values)
        except GuestError as error:
            raise self._failed(error, values) from None
        except (TypeError, ValueError, OverflowError):
            if self._request is None:
                raise self._unusable() from None
            self._ready = begin
            return await self._call_converted(bound, values)
        except BaseException as error:
            self._failed(error, values)
            raise
        if result is UNDER_WAY:
            call = self._begin_call(bound)
            try:
                result = await call.finish(bound.guest, fuel)
            except BaseException as error:
                call.fail(error, values)
                raise
            finally:
                self._end_call(call)
        else:
            self._ready = begin
            self._calls += 1
            self._fuel = burnt = fuel - bound.left.value
            share.virtual_time += burnt / share.shares
            share.burst += burnt + CALL_FUEL
            uses, place = bound.uses, burnt.bit_length()  # `UseStats.add`, written out
            uses.fuel += burnt
            try:
                uses.counts[place] += 1
            except KeyError:
                uses.count_in(place)
        return result if bound.lift is None else self._lifted(bound, result, values)

    @trio.lowlevel.enable_ki_protection
    async def map(self, columns: Any, *, rows: int | None = None) -> Any:
        """Call the function for every row of some columns: much faster than a call for each.

        Args:
            columns: for each argument a buffer of its type (`array`, NumPy), which is not copied
                first, a list, Arrow data, or a scalar for all rows. Or an Arrow table.
            rows: how many, where no column says so. `total_fuel` is for each of them.

        Returns:
            A column for each result, in a tuple if there are several: an Arrow array if one came
            in, a list if a None did or if it is not numbers, else a `memoryview`. Rows with a null
            give null as they do in `call`.

        Raises:
            TypeError, ValueError, OverflowError: a column, or the value in a row, does not fit.
            GuestError, LoadError: the guest failed in row `row`; there is no room for a driver.
            ResultTooLargeError: the results up to row `row` exceed `max_result_size`; the lease
                goes on.
            CodeMemoryError: the system has no memory for a driver, though everything idle was
                evicted; the lease can go on.
            MemoryError: there is none for the results.
        **Checkpoint:** always; others run after each slice.
        **Cancellation:** the guest is stopped within a slice, and its instance is dropped.
        """
        self._check_thread("map", waits=True)
        bound, share = self._bound, self._group.share
        if self._ready is None or bound is None:
            raise self._unusable()
        await self._pool.runner.pass_turn(share)
        if self._ready is None:
            raise self._unusable()
        call = self._begin_call(bound)
        try:
            return await map_columns(call, columns, rows)
        finally:
            self._end_call(call)

    async def _call_in_steps(
        self,
        bound: BoundFunction,
        make: Callable[[Guest, tuple[Any, ...]], Steps],
        values: tuple[Any, ...],
    ) -> Any:
        """Make a call whose values cross in steps."""
        if bound.gives_null(values):
            return None
        if len(values) != bound.crossing.arity:
            raise bound.crossing.explain(values)
        return await self._run_steps(bound, make, values)

    async def _call_converted(self, bound: BoundFunction, values: tuple[Any, ...]) -> Any:
        """Make a call whose values are no plain ints and floats, or do not fit."""
        if bound.gives_null(values):
            return None
        crossing, ready = bound.crossing, self._ready
        try:
            lowered = values if crossing.lower is None else crossing.lower(values)
            exact = exact_values(bound.guest.type, lowered)
        except (TypeError, ValueError, OverflowError):
            raise crossing.explain(values) from None
        if ready is None or ready is not self._ready:
            # Code of the values' own has run, and the lease may have ended.
            raise self._unusable()
        export, lift = bound.definition.export, crossing.lift

        def steps(native: Guest, values: tuple[Any, ...]) -> Steps:
            result = yield Invoke(export, exact)
            return result if lift is None else lift(result)

        return await self._run_steps(bound, steps, values)

    async def _run_steps(
        self,
        bound: BoundFunction,
        make: Callable[[Guest, tuple[Any, ...]], Steps],
        values: tuple[Any, ...],
    ) -> Any:
        call = self._begin_call(bound)
        try:
            return await call.run_steps(make, values)
        finally:
            self._end_call(call)

    def _begin_call(self, bound: BoundFunction) -> Call:
        """From here on, until `_end_call`, other tasks may run, and find the lease busy."""
        call = Call(self._pool.runtime, bound, self._group.share, self)
        self._step(CALLING)
        self._under_way = call
        self._ready = None
        self._calls += 1
        return call

    def _end_call(self, call: Call) -> None:
        self._under_way = None
        self._fuel = call.fuel
        call.close()
        if self._state is ENDED:
            # Its block has ended meanwhile, or the cache closes.
            if self._request is not None:
                self._recycle(self._request, call.drop)
        elif call.failed:
            self._step(BROKEN)
        else:
            self._step(HELD)
            self._ready = call.bound.begin

    def _end_call_early(self, call: Call, reason: Reason) -> None:
        """End the lease while another task has a call under way, whose instance goes for `reason`.

        The caller is told, and gives the instance back when nobody is inside any more.
        """
        if self._state is not ENDED:
            self._step(ENDED)
        call.drop = reason
        call.end(self._unusable)

    def _failed(self, error: E, values: tuple[Any, ...]) -> E:
        """End a call that failed in its first slice; return the error, complete."""
        bound = self._bound
        assert bound is not None
        if self._request is None:
            return error  # what converts the values ended the lease, and then raised this
        self._calls += 1
        self._fuel = fuel = bound.total_fuel - bound.native.fuel_left()
        self._group.share.charge(fuel)
        bound.uses.add(FUELS, fuel)
        self._step(BROKEN)
        bound.fail(self._pool.policy, error, values, fuel)
        return error

    def _lifted(self, bound: BoundFunction, result: Any, values: tuple[Any, ...]) -> Any:
        """Return the Python value of a result; a guest that returns what can't be is broken."""
        assert bound.lift is not None
        try:
            return bound.lift(result)
        except GuestError as error:
            if self._request is not None:
                self._ready = None
                self._step(BROKEN)
                bound.fail(self._pool.policy, error, values, self._fuel or 0)
            raise

    # -- what else a lease tells

    @property
    def memory(self) -> LeaseMemory:
        """The guest's exported memory: `read(at, n)`, `write(at, data)`, `size` in bytes.

        Each raises `IndexError` outside of the memory, `trio.BusyResourceError` while a call runs
        (but not in a host function of that call), `LookupError` if the module exports none, and
        `TypeError` for what is no address, no length or no bytes.
        """
        return LeaseMemory(self._guest_memory)

    @property
    def fuel_consumed(self) -> int | None:
        """Fuel that the last call burnt, failed ones included; None before the first."""
        return self._fuel

    @property
    def size(self) -> int:
        """What the instance may touch now: all memories, tables x 8, scratch, one page (bytes)."""
        self._check_thread("size")
        return self._resting().native.measure()

    @property
    def function(self) -> Function:
        """The function that is held: the generation that was current when it was granted."""
        definition = None if self._bound is None else self._bound.definition
        if self._acquisition is not None:
            definition = self._acquisition.definition
        if definition is None:
            raise self._unusable()
        return function_of(definition)

    def __repr__(self) -> str:
        acquisition = self._acquisition
        loading = acquisition is not None and acquisition.start is not None
        state = "loading" if loading else self._state.value
        return f"<Lease of {self._name!r} in group {self._group.record.name!r}: {state}>"

    # -- inside

    def _step(self, state: LeaseState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise IllegalStepError(f"a lease that is {self._state.value} can't be {state.value}")
        self._state = state

    def _resting(self) -> BoundFunction:
        """Return what is held, if nothing is under way in it; raise the error if not."""
        bound = self._bound
        if bound is None or self._task is None or self._request is None:
            raise self._unusable()
        if self._ready is None and self._state is not BROKEN:
            raise self._unusable()
        return bound

    def _check_thread(self, method: str, *, waits: bool = False) -> None:
        if get_ident() != self._pool.thread:
            raise self._pool.owner.refusal(method, waits=waits)

    def _unusable(self) -> Exception:
        """Return the error for a use that the state does not allow."""
        state = self._state
        if state is ENDED:
            if self._group.record.closed or self._pool.closed:
                return self._pool.closed_error(self._group.record)
            return trio.ClosedResourceError("this lease has ended")
        if state is NEW:
            return RuntimeError("enter the lease first: async with cache.acquire(...) as lease")
        if state is ACQUIRING:
            return trio.BusyResourceError("the instance of this lease is being made")
        if state is BROKEN:
            return trio.BrokenResourceError(
                f"an earlier call of {self._name!r} in this lease failed or was cancelled: "
                "its instance is spoilt; acquire another"
            )
        return trio.BusyResourceError("another call of this lease is under way")

    def _guest_memory(self) -> GuestMemory:
        """Return the memory as it can be used now: suspended in a host call, or the instance's."""
        self._check_thread("memory")
        memory: GuestMemory | None
        activity = self._activity()
        if activity is None:
            memory = self._resting().native.memory
        else:
            # In a call, or being loaded: then only for its own host functions.
            call = activity.host_call
            if call is None or context_of_call.get(None) is not self:
                raise self._unusable()
            memory = call.memory
        if memory is None:
            raise LookupError(f"the module of {self._name!r} exports no memory")
        return memory

    def _activity(self) -> Activity | None:
        return self._under_way if self._acquisition is None else self._acquisition.start


@final
class LeaseMemory:
    """The linear memory of the instance that a lease holds. See `Lease.memory`."""

    __slots__ = ("_memory",)

    def __init__(self, memory: Callable[[], GuestMemory]) -> None:
        self._memory = memory

    @property
    def size(self) -> int:
        """Bytes; always whole pages of 64 KiB."""
        return self._memory().size

    def read(self, at: int, n: int) -> bytes:
        """A copy of the `n` bytes from address `at`."""
        at, n = _whole("at", at), _whole("n", n)
        return self._memory().read(at, n)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at address `at`."""
        at = _whole("at", at)
        try:
            view = memoryview(data)  # before the look at the lease, as it may run code of its own
        except TypeError:
            raise TypeError(f"data must be bytes or a buffer, got {shown(data)}") from None
        with view:
            self._memory().write(at, view)


def _whole(what: str, value: object) -> int:
    """A whole number, NumPy's included; anything else would get as far as C."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be an int, got {shown(value)}") from None


def current_lease() -> Lease:
    """Inside a host function: the lease whose guest called it.

    Raises:
        RuntimeError: no host function is running in this context.
    """
    lease = context_of_call.get(None)
    if not isinstance(lease, Lease):
        raise RuntimeError("current_lease() has a meaning only inside a host function")
    return lease


@final
@frozen
class Function:
    """A registered UDF: what it is called, its types, and what was made of it.

    A value, and a handle: `acquire` and `call` use whatever generation is current.
    """

    name: str
    args: tuple[str, ...]
    returns: str | tuple[str, ...] | None
    """As registered: None if it returns nothing, several types if a call gives a tuple."""
    generation: int
    """1 at first; each replacement makes a new one."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    code_size: int
    """Bytes of machine code while the module is loaded, in whole system pages."""
    worst_size: int
    """Bytes that one instance of it may touch at most, under the limits it was registered with."""
    isolation: str
    isolation_verdict: str
    """Why the isolation is what it is."""
    _acquire: Callable[[str, tuple[str, ...]], Lease] = field(repr=False, eq=False)

    @property
    def key(self) -> FunctionKey:
        """Name and argument types together; `str()` of it is how messages name the function."""
        return FunctionKey(self.name, self.args)

    def acquire(self) -> Lease:
        """`InstanceCache.acquire` of this name and these types."""
        return self._acquire(self.name, self.args)

    @trio.lowlevel.enable_ki_protection
    async def call(self, *values: Any) -> Any:
        """Acquire, call once, recycle. See `Lease.call`.

        **Checkpoint:** always.
        **Cancellation:** nothing is held; a call that was under way is stopped.
        """
        async with self.acquire() as lease:
            return await lease.call(*values)


def function_of(definition: Definition) -> Function:
    """Return the public handle of a function."""
    function = definition.public
    assert isinstance(function, Function)
    return function
