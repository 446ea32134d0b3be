"""`Lease`, `LeaseMemory` and `Function`: what users hold of an instance and of a function.

The three refer to each other, so they share this file. Two rules:

1. Every change of a lease's state is a step of the table below, or raises `IllegalStepError`.
2. The fast paths (a hit, and a call that ends in its first slice) write their steps inline. They
   check one thing: whether there is a bound function in `_ready`. There is one only while a call
   may begin. A hit leaves it out until the first use: an instance that its lease has not used is
   given back as it was taken, and nothing native is touched.
"""

from __future__ import annotations

import enum
import functools
import math
import operator
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from sys import _getframe
from threading import get_ident
from types import FrameType, TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Never,
    NoReturn,
    Self,
    TypeAlias,
    TypeVar,
    final,
)

import trio
from attrs import field, frozen
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    Task,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from .._abi.base import BY_STEPS, Guest, Invoke, Steps, Value
from .._abi.plain import exact_values, shown
from .._batch.failures import RowErrors, check_options, refuse_more
from .._core.buffers import Buffer
from .._core.errors import GuestError, MemoryLimitError, WitError
from .._core.events import Reason
from .._core.keys import FunctionKey
from .._core.metrics.counters import FUELS
from .._core.policy.lifecycle import IllegalStepError
from .._core.policy.records import Entry, Request, Stage
from .._core.policy.shares import BATCH_FUEL, BURST_FUEL, CALL_FUEL, UNRUN_FUEL
from .._core.stack_room import check_headroom
from .._core.wasm.isolation import Isolation
from .._engine.base import MAX_FUEL, UNDER_WAY, GuestMemory, InexactError, NoMemoryError
from .._owner import refuse_copy
from .._pool.acquisition import LOAD, Acquisition
from .._pool.capacity import GroupState
from .._pool.pool import Pool
from .._pool.promotion import Upgrade
from .._pool.replacing import Replacing
from .._public import made, only_from, public
from .._runtime.activity import Activity
from .._runtime.bound import BoundFunction, Definition, Failure
from .._runtime.call import Call
from .._runtime.runner import context_of_call
from .lent import Begun, Lent
from .watching import Facts, Use, Watcher

if TYPE_CHECKING:  # for a default, which Python's own has from 3.13 on
    from typing_extensions import TypeVar as TypeVarWithDefault

    from .._batch.small import SmallBatches
    from .._pool.preparation import Preparing

    R_co = TypeVarWithDefault("R_co", covariant=True, default=Any)
else:
    R_co = TypeVar("R_co", covariant=True)
# The module that maps batches, which is imported before the first one.
BATCH: Final = "trio_wasmcache._batch.batch"
MakeLease: TypeAlias = "Callable[..., Lease[Any]]"
"""See `make_lease`."""
E = TypeVar("E", bound=BaseException)
T = TypeVar("T")


@final
class _GivenBack(Coroutine[Any, Any, None]):
    """What a lease's `__aexit__` returns: nothing is left to wait for.

    Without the frame that each coroutine of `async def` would have.
    """

    __slots__ = ()

    # Nothing, by way of C.
    __await__ = staticmethod(().__iter__)  # type: ignore[assignment]

    def send(self, value: object) -> Any:  # noqa: ARG002 - as coroutines have it
        raise StopIteration

    def throw(self, *error: Any) -> Any:
        return super().throw(*error)

    def close(self) -> None:
        pass


GIVEN_BACK: Final = _GivenBack()


class LeaseState(enum.Enum):
    """State of a lease; the values are the words of its `repr`."""

    NEW = "not entered"
    ACQUIRING = "acquiring"
    HELD = "held"
    CALLING = "in a call"
    BROKEN = "broken"
    EXITED = "exited"
    ENDED = "ended"


NEW, ACQUIRING, HELD = LeaseState.NEW, LeaseState.ACQUIRING, LeaseState.HELD
CALLING, BROKEN, ENDED = LeaseState.CALLING, LeaseState.BROKEN, LeaseState.ENDED
EXITED = LeaseState.EXITED

# {state: states that may follow}. Progress while ACQUIRING is a matter of `Acquisition`. A call in
# its first slice is not a state of its own: no other code can run during it.
TRANSITIONS: dict[LeaseState, frozenset[LeaseState]] = {
    NEW: frozenset({ACQUIRING, HELD}),
    ACQUIRING: frozenset({HELD, ENDED}),
    HELD: frozenset({CALLING, BROKEN, ENDED}),
    CALLING: frozenset({HELD, BROKEN, EXITED, ENDED}),
    BROKEN: frozenset({ENDED}),
    EXITED: frozenset({ENDED}),
    ENDED: frozenset(),
}


@public
@final
@only_from("is made by acquire: async with cache.acquire(name, args) as lease")
class Lease(Generic[R_co]):
    """An instance of one function, held by one task at a time.

    .. code-block::

        async with cache.acquire("fib", ("i64",)) as fib:
            assert await fib.call(10) == 55

    Use `InstanceCache.acquire`, `SchedulingGroup.acquire` or `Function.acquire` to make one. It can
    be entered once. Entering is a checkpoint. Leaving is not: it never waits, and works in a
    cancelled scope.

    The instance returns to the cache when the block ends. If a call failed or was cancelled
    half-way, the instance is dropped instead, and the next acquire gets another.

    Ctrl-C is deferred while a lease is entered or left, but an exception of your own signal handler
    is not. At most places it leaves nothing held. At the very beginning of the exit, at the end of
    a call, or in a step of the cache's books, it may leave the instance or its turn held until the
    cache is closed. So a handler must not raise, which Trio itself would not bear either: use
    `trio.open_signal_receiver`.

    The type parameter is the type of a call's result, as that of `Function` is: ``Lease[int]``.
    """

    # Assigned by `make_lease`.
    _pool: Pool
    _group: GroupState
    _name: str
    _args: Sequence[str] | None
    _warm: bool
    _state: LeaseState
    _calls: int
    _burnt: int
    # Defaults in the class, so that making a lease assigns none of them. Not of the state: as its
    # type is a class of Python's, which may change, the interpreter would look it up each time.
    _task: Task | None = None
    """Task that has the group's token for this lease."""
    _request: Request | None = None
    """Request that was granted, or that is in line the short way; None while there is none."""
    _entry: Entry | None = None
    """Entry of a hit; see `_first_use`."""
    _bound: BoundFunction | None = None
    """Bound function of the instance that is, or last was, held; None until the first use of that
    of a hit."""
    _ready: BoundFunction | None = None
    """The same, while a call may begin; None while none may."""
    _acquisition: Acquisition | Preparing | Upgrade | None = None
    """Acquisition under way, while ACQUIRING."""
    _under_way: Call | None = None
    """Call under way; it may outlive the block."""
    _row_errors: RowErrors | None = None
    """Errors of the rows of the last batch; None if its first error ended it."""
    _replacing: Replacing | None = None
    """Replaces the instance when a row fails, while a batch is under way that goes on then."""
    _lent: Lent | None = None
    """The instance, while it is lent to another thread."""
    _fuel: int | None = None
    _failed_by: Failure | None = None
    """How a call failed half-way."""
    _entered_from: FrameType | None = None
    """Frame that awaited `__aenter__`, while HELD by a lease that did not take the fast path."""
    _reach: Callable[[str, Collection[Request]], None] | None = None
    """Called when an acquire begins to wait or to load; see `watching.Use.reach`."""
    _rows: int | None = None
    """Number of rows of the last batch, once it was known."""

    # -- the block

    if not TYPE_CHECKING:  # checkers find these mistakes by themselves

        def __enter__(self) -> NoReturn:
            raise TypeError(
                f"use async with cache.acquire({shown(self._name)}, ...) as lease, not with"
            )

        def __exit__(self, *_: object) -> NoReturn:
            raise AssertionError("it can't be entered so")

        def __await__(self) -> NoReturn:
            raise TypeError(
                f"use async with cache.acquire({shown(self._name)}, ...) as lease, not await"
            )

        def __call__(self, *_: object, **_named: object) -> NoReturn:
            raise TypeError(f"{shown(self._name)} is called by await lease.call(...)")

    def __reduce__(self) -> NoReturn:
        refuse_copy(self, "acquire another")

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        """Acquire an instance: an idle one if there is one, else wait, or load a new one.

        Raises:
            UnknownFunctionError: the function is not registered, or was removed during the wait;
                or `args` were not given and there are several functions of that name.
            LoadError: the instance can't be made, or its start function failed.
            LinkError: an import of the module can't be linked.
            CodeMemoryError: the instance can't fit into `max_code_size` or `max_running_size`; or
                the system has no memory for it, though all idle instances were evicted.
            DeadlockError: the wait would close a cycle of tasks that wait for each other.
            trio.ClosedResourceError: the group or the cache is closed.
            RuntimeError: the lease was entered before, or this is not the Trio run of the cache.

        **Checkpoint:** always.
        **Cancellation:** nothing is held.
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
        behind = False
        try:
            entry = self._find_entry() if pool.waiting else None
            if entry is not None and entry.waiting and not (self._warm or pool.exits.pending):
                # Waiting is a checkpoint; another one would be a pass of the loop for nothing.
                behind = True
                await checkpoint_if_cancelled()
            else:
                await checkpoint()
            # Now, as others have run; and in here, as the name may be of a class whose `__hash__`
            # runs any code.
            try:
                entry = self._group.record.serving[self._name, self._args]  # type: ignore[index]
            except (KeyError, TypeError):
                entry = self._find_entry() if self._args is None else None
        except BaseException:
            self._state = ENDED
            raise
        if entry is None:
            return await self._acquire(task)
        # The fast paths of a hit and of a place in line: short on purpose, like the policy's part
        # of them. `_acquire` does the rest: no free token, something to load, or uses to log.
        group = self._group
        capacity = group.capacity
        owners = capacity.owners
        if (
            capacity.limiter is None
            and task not in owners
            and len(owners) < capacity.most
            and not (self._warm or pool.journal.log_uses)
        ):
            request = None
            if not behind:
                now = pool.clock() + pool.clock_offset  # `Pool.now`, written out
                request = pool.policy.hit(entry, task, self._end, now)
            if request is not None:
                owners[task] = 1
                self._task = task
                self._request = request
                self._entry = entry
                self._bound = self._ready = None  # set, as to read a default takes ten times longer
                self._state = HELD
                return self
            if self._reach is None and not pool.exits.pending:
                try:
                    request = pool.policy.queue(entry, task, self._end, pool.now())
                    if request is not None:
                        owners[task] = 1
                        self._request = request
                        self._entered_from = _getframe(1)
                        request.asleep = True
                        await wait_task_rescheduled(self._leave_line)
                        instance = request.instance
                        if not request.plain and instance is not None and instance.ready:
                            pool.policy.may_rest(request)
                except BaseException as error:
                    self._fail_in_line(task, error)
                    raise
            if request is not None:
                instance = request.instance
                if instance is not None and instance.ready:
                    self._task = task
                    self._bound = self._ready = instance.bound  # type: ignore[assignment]
                    self._state = HELD
                    return self
                return await self._acquire(task, request)
        return await self._acquire(task)

    def _find_entry(self) -> Entry | None:
        """Return the entry in which a hit may find an instance.

        None if there is none, as far as the normal spelling of the types tells.
        """
        serving = self._group.record.serving
        try:
            if self._args is not None:
                return serving.get((self._name, self._args))  # type: ignore[arg-type]
            function = self._pool.exact.get((self._name, None))
        except (KeyError, TypeError):  # such as of a list, which has no hash
            return None
        return None if function is None else serving.get(function.spelling)

    def _leave_line(self, _: RaiseCancelT) -> Abort:
        """Leave the line, as the task is cancelled: an abort function."""
        pool, request = self._pool, self._request
        assert request is not None
        return pool.abandon(request, functools.partial(pool.journal.origin_of, request.owner))

    def _fail_in_line(self, task: Task, error: BaseException) -> None:
        """Give back what an acquire has taken that failed in line, or on its way there."""
        request, self._request, self._entered_from = self._request, None, None
        self._state = ENDED
        if request is not None:
            self._long_way(task, request).withdraw(error)
            self._pool.policy.note_error(request.entry, type(error).__name__)
            self._group.capacity.give_back(task)

    async def _acquire(self, task: Task, waited: Request | None = None) -> Self:
        """Acquire the long way; `waited`: the request, if it was in line and was woken."""
        acquisition = self._acquisition = self._long_way(task, waited)
        entered_from = _getframe(2)
        try:
            if waited is None:
                self._request, self._bound = await acquisition.run(self._name, self._args)
            else:
                self._bound = await acquisition.go_on(self._name)
        except BaseException:
            self._request = self._entered_from = None
            self._step(ENDED)
            raise
        finally:
            self._acquisition = None
        # Without a call, as a signal handler could raise in one, and nobody would end the lease.
        self._task = task
        self._ready = self._bound
        self._entered_from = entered_from
        self._state = HELD
        return self

    def _long_way(self, task: Task, waited: Request | None) -> Acquisition:
        return Acquisition(
            self._pool,
            self._group,
            task,
            self,
            self._end,
            warm=self._warm,
            reach=self._reach,
            request=waited,
        )

    # No coroutine, as it never waits: it has given the instance back when it returns.
    @trio.lowlevel.enable_ki_protection
    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        """Give the instance back.

        **Checkpoint:** never, whatever happened in the block.
        **Cancellation:** has no effect here.
        """
        task, pool = self._task, self._pool
        if task is None:
            return GIVEN_BACK
        if kind is GeneratorExit and not pool.owner.may_leave():
            # An unfinished coroutine is being finalized, which may happen at any line.
            self._task = None
            pool.exits.add(functools.partial(self._leave_late, task))
            return GIVEN_BACK
        try:
            if get_ident() != pool.thread:
                raise pool.owner.refusal("acquire", waits=True)
            self._task = None
            # Not None while a call may begin; checking would cost what the fast path saves.
            request: Any = self._request
            bound = self._ready
            capacity = self._group.capacity
            owners = capacity.owners
            # The fast path: the instance becomes idle, and nobody is waiting.
            if bound is not None:
                size = bound.fixed_size
                if size is None:
                    size = bound.measure(bound.native)
            elif self._bound is None:  # nothing has used it
                size = request.instance.size
            else:
                self._leave(task)
                return GIVEN_BACK
            if pool.waiting and request.entry.waiting:
                if self._entered_from is None or self._entered_from is not _getframe(1):
                    check_headroom()  # see `_leave`
                following = pool.policy.pass_on(request, size, pool.now())
                if following is None:
                    self._leave(task)
                    return GIVEN_BACK
                self._ready = self._request = self._entered_from = None
                self._state = ENDED
                following.asleep = False
                reschedule(following.owner)  # type: ignore[arg-type] # owners are tasks here
            elif pool.policy.rest(request, size, pool.clock() + pool.clock_offset):
                self._ready = self._request = None
                self._state = ENDED
                if not pool.evictor.expects_expiry:
                    pool.evictor.expect_expiry()
            else:
                self._leave(task)
                return GIVEN_BACK
            if capacity.limiter is None and owners[task] == 1:
                del owners[task]
            else:
                check_headroom()
                capacity.give_back(task)
        except RecursionError:
            pool.exits.add(functools.partial(self._leave_late, task))
        except BaseException:
            if get_ident() == pool.thread:
                self._leave_after_all(task)
            raise
        return GIVEN_BACK

    def _leave(self, task: Task) -> None:
        """End the block: give back the token now, and the instance when no call is under way.

        Raises:
            RecursionError: there is not enough space on Python's stack; nothing has changed.
        """
        entered_from, self._entered_from = self._entered_from, None
        if entered_from is None or entered_from is not _getframe(2):
            check_headroom()  # in the same frame there is as much space as on entering
        request, call = self._request, self._under_way
        if request is not None and call is not None:
            pool, now = self._pool, trio.current_time()
            self._end_call_early(call, Reason.CORRUPTED)
            pool.journal.left(request, call.caller, now)
            step = pool.policy.hand_over(request, call.caller, now)
            pool.carry_out(step, now, functools.partial(pool.journal.origin_of, task))
        elif request is not None:
            self._recycle(request)
        self._group.capacity.give_back(task)

    def _leave_after_all(self, task: Task) -> None:
        """End the block where an error from outside, as a signal handler's, kept it from ending.

        What that error has cut in two inside of a step of the policy can't be mended.
        """
        self._task = None
        if self._request is not None and self._request.stage is not Stage.GRANTED:
            self._request = self._ready = None
            self._state = ENDED
        if task in self._group.capacity.owners:
            self._leave(task)

    def _leave_late(self, task: Task) -> None:
        """End the block from the top of Python's stack."""
        self._leave(task)
        self._pool.evictor.expect_expiry()

    def _recycle(self, request: Request, reason: Reason | None = None) -> None:
        """Give the instance back, in which nothing runs; with a reason, have it dropped."""
        if self._replacing is not None and self._under_way is not None:
            self._end_replacing(self._under_way)
        bound = self._bound or self._first_use()
        assert bound is not None
        try:
            clean, self._ready = self._ready is not None or self._state is EXITED, None
            self._request = None
            if self._state is not ENDED:
                self._step(ENDED)
            self._pool.recycle(
                request,
                bound,
                clean=clean,
                calls=self._calls,
                fuel=self._burnt,
                reason=reason,
                failure=self._failed_by,
            )
        except BaseException:
            if request.stage is Stage.GRANTED:
                self._request = request  # see `_leave_after_all`
            raise

    def _end(self, reason: Reason) -> trio.Event | None:
        """Give up the instance, as the group or the cache closes: see `GiveUp`."""
        if self._lent is not None:
            self._lent.end()
        if isinstance(self._acquisition, Acquisition):
            return self._acquisition.end(reason)
        if self._state is ACQUIRING and self._request is not None:
            # It was woken in line, and its task has not run since.
            task: Any = self._request.owner
            return self._long_way(task, self._request).end(reason)
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
    async def call(self, *values: object) -> R_co:
        """Call the function, with at most `total_fuel` units of fuel.

        Args:
            *values: an argument for each of the function's argument types.

        Returns:
            The result: None if the function returns nothing, a tuple if it has several results.
            With `called_on_null=False`, a call with a None among its arguments returns None without
            running the guest.

        Raises:
            TypeError, ValueError, OverflowError: a value does not fit its type, or there are too
                many or too few; no wasm has run.
            GuestError: the guest trapped, ran out of fuel or stack, exited, or broke its ABI. A
                command (see `InstanceCache.register`) that exits with status 0 returns None.
            ResultTooLargeError: the result exceeds `max_result_size`; the lease can still be used.
            WitError: the function of a component returned the error of its `result` type; the lease
                can still be used.
            CodeMemoryError: the system has no memory for the guest's stack, though all idle
                instances were evicted; the lease can still be used.
            trio.BusyResourceError: another call of this lease is under way.
            trio.BrokenResourceError: an earlier call in this lease failed or was cancelled.
            trio.ClosedResourceError: the lease has ended, or its group or the cache is closed.
            RuntimeError: the lease was not entered, or this is not the Trio run of the cache.
            Exception: whatever a host function raised, unchanged.

        **Checkpoint:** cancellation is checked before the guest starts and between slices; others
        run after each slice and about every 0.5 ms of short calls. A call that has finished
        returns its result.
        **Cancellation:** the guest is stopped within a slice, and its instance is dropped.
        """
        if get_ident() != self._pool.thread:
            raise self._pool.owner.refusal("call", waits=True)
        # The fast path: short on purpose, also in local variables, as each task in a call has its
        # own. A call that does not end in its first slice, or whose values cross through memory,
        # needs a `Call`.
        bound, share = self._ready, self._group.share
        if bound is None:
            if self._bound is not None or self._state is not HELD:
                raise self._unusable()
            # `_first_use`, written out.
            held: Any = self._request
            bound = self._bound = self._ready = held.instance.bound
        if share.burst >= BURST_FUEL:
            await self._pool.runner.pass_turn(share)
            bound = self._ready  # another: a batch of another task has replaced the instance
            if bound is None:
                raise self._unusable()
        else:
            await checkpoint_if_cancelled()
        if bound.steps is not None:
            if bound.lower is not None and bound.lower(values):
                return await self._call_direct(bound, values)  # type: ignore[no-any-return]
            return await self._call_in_steps(bound, bound.steps, values)  # type: ignore[no-any-return]
        begin, fuel = bound.begin, bound.total_fuel
        self._ready = None
        try:
            if bound.lower is None:
                try:
                    result = begin(values, fuel)
                except InexactError:
                    lowered: Sequence[object] = exact_values(bound.guest.type, values)
                    if self._request is None:  # as below
                        raise self._unusable() from None
                    result = begin(lowered, fuel)
            else:
                lowered = bound.lower(values)
                if self._request is None:  # code of the values' classes has ended the lease
                    raise self._unusable()
                result = begin(lowered, fuel)
        except NoMemoryError:  # for its stack: the guest has not run
            self._ready = bound
            return await self._call_converted(bound, values)  # type: ignore[no-any-return]
        except GuestError as error:
            self._failed(bound, error, values)
            await self._pool.lines.locate(error, bound.definition.module)
            raise error from None
        except (TypeError, ValueError, OverflowError):
            if self._request is None:
                raise self._unusable() from None
            self._ready = bound
            return await self._call_converted(bound, values)  # type: ignore[no-any-return]
        except BaseException as error:
            self._failed(bound, error, values)
            raise
        if result is UNDER_WAY:
            call = self._begin_call(bound)
            try:
                try:
                    result = await call.finish(bound.guest, fuel)
                    return result if bound.lift is None else bound.lift(result)  # type: ignore[no-any-return]
                except BaseException as error:
                    if call.ends_well(error):
                        return None  # type: ignore[return-value] # a command has no result
                    if result is not UNDER_WAY and isinstance(error, WitError):
                        call.note_returned(error)
                    else:
                        call.fail(error, values)
                    raise
                finally:
                    self._end_call(call)
            except GuestError as error:
                await self._pool.lines.locate(error, bound.definition.module)
                raise
        else:
            self._ready = bound
            self._calls += 1
            self._fuel = burnt = fuel - bound.left.value
            self._burnt += burnt
            share.virtual_time += burnt / share.shares
            share.burst += burnt + CALL_FUEL
            uses = bound.entry.counted
            uses.fuel += burnt  # `UseStats.add`, written out
            try:
                uses.few[burnt.bit_length()] += 1
            except (IndexError, ValueError):
                uses.count_few(burnt.bit_length())
        if bound.lift is None:
            return result  # type: ignore[no-any-return]
        return self._lifted(bound, bound.lift, result, values)  # type: ignore[no-any-return]

    @trio.lowlevel.enable_ki_protection
    async def map(
        self,
        columns: object,
        *_more: Never,
        rows: int | None = None,
        on_error: Literal["raise", "null"] = "raise",
        max_errors: int = 1000,
    ) -> Value:
        """Call the function for every row of some columns; much faster than one call for each row.

        Each row may burn `total_fuel` units of fuel. If a row fails, no results are returned, or
        its result is null with ``on_error="null"``.

        Then the batch goes on with the next row. A ``"reset"`` instance is put back to how it
        began; any other is replaced by a new one, which is an eviction for ``"corrupted"``. A batch
        logs at most 100 of these, the last one with the number of all later ones. `row_errors` and
        `row_error_count` say which rows failed. Effects of failed rows on the host stay. A text
        that can't be decoded is found when further rows of its chunk have run; these keep their
        results.

        The batch ends all the same if a host function raises, a new instance can't be made, there
        is no capacity, or it is cancelled. It also ends if its results exceed `max_result_size`
        together, if more than `max_errors` rows fail, and if those that fail have burnt 10 times
        `total_fuel` together.

        .. code-block::

            assert await divide.map([[6, 7, "x"], [2, 0, 1]], on_error="null") == [3, None, None]
            assert sorted(divide.row_errors) == [1, 2]

        Args:
            columns: a sequence with one column for each argument, not one item for each row:
                rows become columns by ``list(zip(*rows))``. A column is a buffer of the argument's
                type (`array`, NumPy), a list, Arrow data, or one value for all rows. `columns` may
                also be an Arrow table; or, for a function of a component, which names its
                arguments, a mapping of these names to columns.
            rows: number of rows; None: the length of the columns. It must be given if no column
                has a length.
            on_error: what becomes of a row in which the guest fails, or whose values do not fit:
                ``"raise"`` ends the batch with the error, ``"null"`` makes its result null.
            max_errors: number of rows that may fail, from 0; the error of one more is raised.

        Returns:
            A column for each result, in a tuple if there are several. It is an Arrow array if a
            column is Arrow's; a list if a column has a None, the results are not numbers, or with
            ``on_error="null"``; and otherwise a `memoryview`. None if the function returns nothing.
            Rows with a null are treated as in `call`.

        Raises:
            TypeError, ValueError, OverflowError: a column, or a value in a row, does not fit. The
                error of a row has its number in `row`.
            GuestError: the guest failed; the error's `row` says in which row.
            LoadError: the driver, the code that calls the function for each row, can't be made,
                or the instance with which the batch is to go on after a row that failed.
            ResultTooLargeError: the results up to row `row` exceed `max_result_size`; the lease can
                still be used.
            CodeMemoryError: the system has no memory for the driver, though all idle instances
                were evicted; the lease can still be used.
            MemoryError: there is no memory for the results.
            Exception: as of `call` for a lease that can't be used, and for host functions.

        **Checkpoint:** as of `call`: others run after each slice and about every 0.5 ms of short
        batches.
        **Cancellation:** the guest is stopped within a slice, and its instance is dropped.
        """
        self._check_thread("map", waits=True)
        if _more:
            refuse_more(_more)
        max_failed = check_options(on_error, max_errors)
        if BATCH not in sys.modules:
            await self._pool.runner.import_module(BATCH)  # which takes some 15 ms
        share = self._group.share
        if self._first_use() is None:
            raise self._unusable()
        if share.burst >= BURST_FUEL:
            await self._pool.runner.pass_turn(share)
        else:
            await checkpoint_if_cancelled()
        bound = self._ready  # only now: a batch of another task may have replaced the instance
        if bound is None:
            raise self._unusable()
        self._row_errors = self._rows = None
        small: SmallBatches | None = None
        if max_failed is None and rows is None:
            small = bound.small
        if small is not None and share.budget is None:
            looked = small.look_at(columns)
            if self._ready is None:
                raise self._unusable()
            if looked is not None:
                return await self._map_small(bound, small, columns, *looked)
        return await self._map_any(bound, columns, rows, max_failed)

    async def _map_small(
        self,
        bound: BoundFunction,
        small: SmallBatches,
        columns: Any,
        rows: int,
        cells: list[Any],
        arrow: bool,
    ) -> Value:
        """Map a small batch, which mostly ends in its first slice: the fast path of `map`."""
        ready, fuel = self._ready, rows * small.row_fuel
        self._rows = rows
        if rows * small.result_size > self._pool.result_book.limit or fuel > MAX_FUEL:
            return await self._map_any(bound, columns, None, None)
        self._ready = None
        try:
            begun: object = small.begin(rows, cells, fuel)
        except NoMemoryError:  # for its stack: the guest has not run
            self._ready = ready
            return await self._map_any(bound, columns, None, None)
        except BaseException as error:
            begun = error
        if begun == rows:
            self._ready = ready
            self._calls += 1
            self._fuel = burnt = fuel - bound.native.fuel_left()
            self._burnt += burnt
            self._group.share.charge(burnt)
            bound.entry.counted.add(FUELS, burnt)
            return small.results(rows, arrow)
        return await self._go_on(bound, small, columns, rows, arrow, fuel, begun)

    async def _go_on(
        self,
        bound: BoundFunction,
        small: SmallBatches,
        columns: Any,
        rows: int,
        arrow: bool,
        fuel: int,
        begun: object,
    ) -> Value:
        """Go on with a small batch that has not ended well in its first slice."""
        from .._batch.batch import go_on

        call = self._begin_call(bound)
        try:
            try:
                return await go_on(call, small, columns, rows, arrow, fuel, begun)
            finally:
                self._end_call(call)
        except GuestError as error:
            error.__traceback__ = None  # frames would keep the columns
            await self._pool.lines.locate(error, bound.definition.module)
            raise

    async def _map_any(
        self, bound: BoundFunction, columns: object, rows: int | None, max_failed: int | None
    ) -> Value:
        from .._batch.batch import map_columns

        errors: RowErrors | None = None
        if max_failed is not None:
            errors = self._row_errors = RowErrors(max_failed, bound.total_fuel)
            request = self._request
            assert request is not None
            self._replacing = Replacing(
                self._pool, self._group.share, self, request, current_task()
            )
        call = self._begin_call(bound)
        self._group.share.charge(0, BATCH_FUEL)
        module = bound.definition.module
        try:
            try:
                result = await map_columns(call, columns, rows, errors)
            finally:
                self._end_call(call)
        except GuestError as error:
            await self._pool.lines.locate(error, module)
            raise
        if errors is not None:
            for failed in errors.kept.values():
                if isinstance(failed, GuestError):
                    await self._pool.lines.locate(failed, module)
        return result

    def lend(self) -> Lent | None:
        """Lend the instance to another thread for small batches: for `trio_wasmcache.blocking`.

        Until it is taken back, the lease can't be used.

        Returns:
            The instance; None if it can't be lent. A thread may have one whose function keeps its
            state from lease to lease, has a concurrency above 1, has just mapped a small batch, and
            calls no host functions. Its group must not limit CPU time or capacity.
        """
        self._check_thread("lend")
        bound = self._first_use()
        if bound is None or bound.small is None:
            return None
        definition, function = bound.definition, bound.entry.function
        if not definition.keeps_state or definition.module.hosts or function.concurrency == 1:
            return None
        if self._group.share.budget is not None or self._group.capacity.total != math.inf:
            return None  # others may wait for the CPU, or for the token
        limit = self._pool.result_book.limit
        self._lent = Lent(
            bound, bound.small, limit, self._book, self._take_back, self._go_on_with_begun
        )
        self._ready = None
        return self._lent

    def _book(self, burnt: list[int]) -> None:
        """Book batches that another thread has run in the instance."""
        bound = self._bound
        assert bound is not None
        self._calls += len(burnt)
        for fuel in burnt:
            self._group.share.charge(fuel)
            bound.entry.counted.add(FUELS, fuel)

    def _take_back(self, burnt: list[int], dirty: bool) -> None:
        """End what `lend` has begun; with `dirty`, the instance can't be used any more."""
        self._book(burnt)
        self._lent = None
        bound = self._bound
        if not dirty and bound is not None and self._request is not None:
            self._ready = bound

    async def _go_on_with_begun(self, begun: Begun) -> Value:
        bound = self._bound
        if bound is None or bound.small is None or self._ready is None:
            raise self._unusable()
        columns, rows, arrow = begun.columns, begun.rows, begun.arrow
        return await self._go_on(bound, bound.small, columns, rows, arrow, begun.fuel, begun.result)

    @property
    def row_errors(self) -> dict[int, Exception]:
        """Errors of the rows that failed in the last `map` with ``on_error="null"``, by row.

        They are at most 1,000, and those that were found first: values that do not fit come before
        errors of the guest. Of each kind of error, the first 16 have all facts; later ones have no
        frames, values or output. Empty before the first `map`, and after one that raises errors of
        rows.
        """
        return {} if self._row_errors is None else self._row_errors.kept

    @property
    def row_error_count(self) -> int:
        """Number of rows that failed in the last `map` with ``on_error="null"``, 0 without one."""
        return 0 if self._row_errors is None else self._row_errors.count

    @trio.lowlevel.enable_ki_protection
    async def invoke(self, export: str, *values: float) -> Value:
        """Call an export of the guest from a reentrant host function, which the guest has called.

        .. code-block::

            at = await current_lease().invoke("malloc", 64)

        The export runs as a part of the guest's call: it burns the fuel of that call, in its slices
        and in its thread. It may call host functions in turn, which may invoke exports, 16 levels
        deep. `memory` shows what it has written, also if it has grown the memory.

        If the export fails or is cancelled, the guest can't go on. So its call fails as well, with
        the same error, even if the host function catches it. If the host function raises another
        exception instead, the call raises that one. It has the guest's error as its context.

        Args:
            export: name of an exported function.
            *values: wasm values, one for each parameter of the export: ints and floats. An integer
                may be signed or unsigned.

        Returns:
            The result as a wasm value, signed if it is an integer: None if the export returns
            nothing, a tuple if it has several results.

        Raises:
            LookupError: the module exports no such function, or one whose types can't cross.
            TypeError, ValueError, OverflowError: `export` is not a str, a value does not fit its
                type, or there are too many or too few; no wasm has run.
            GuestError: the export trapped, ran out of fuel or stack, or exited.
            StackOverflowError: 16 invokes are under way in this call, one within the other; no wasm
                has run.
            RuntimeError: this is not a reentrant host function that the guest of this lease has
                called and waits for; or the guest is starting; or this is not the Trio run of the
                cache.
            trio.BusyResourceError: another task awaits an invoke of this lease.
            trio.BrokenResourceError: an earlier invoke failed or was cancelled.
            trio.ClosedResourceError: the lease has ended, or its group or the cache is closed.
            Exception: whatever a host function raised that the export called.

        **Checkpoint:** cancellation is checked before the export starts and between slices; others
        run after each slice.
        **Cancellation:** the guest is stopped within a slice, and its call fails.
        """
        self._check_thread("invoke", waits=True)
        call = self._under_way
        if self._acquisition is not None and not isinstance(self._acquisition, Acquisition):
            call = self._acquisition.call
        if call is None or context_of_call.get(None) is not self:
            if self._state is ENDED:
                raise self._unusable()
            when = "after its start" if self._acquisition is not None else "by call()"
            raise RuntimeError(
                f"invoke() works only in a reentrant host function, while a call of "
                f"{shown(self._name)} in this lease waits for it: call the guest {when}"
            )
        return await call.invoke(export, values)

    async def _call_in_steps(
        self,
        bound: BoundFunction,
        make: Callable[[Guest, tuple[object, ...]], Steps],
        values: tuple[object, ...],
    ) -> Value:
        """Make a call whose values cross in the steps of an ABI."""
        if self._gives_null(bound, values):
            return None
        if len(values) != bound.binding.arity:
            self._group.share.charge(0, UNRUN_FUEL)
            raise bound.binding.explain(values)
        return await self._run_steps(bound, make, values)

    async def _call_direct(self, bound: BoundFunction, values: tuple[object, ...]) -> Value:
        """Make a call whose values were lowered without steps: the fast path of `call` for it."""
        begin, fuel, steps, lift = bound.begin, bound.total_fuel, bound.steps, bound.lift
        assert steps is not None
        assert lift is not None
        self._ready = None
        try:
            result = begin((), fuel)
        except NoMemoryError:  # for its stack: the guest has not run
            self._ready = bound
            return await self._run_steps(bound, steps, values)
        except GuestError as error:
            self._failed(bound, error, values)
            await self._pool.lines.locate(error, bound.definition.module)
            raise error from None
        except BaseException as error:
            self._failed(bound, error, values)
            raise
        burnt = 0
        if result is not UNDER_WAY:
            burnt = fuel - bound.left.value
            lifted = lift(result)
            if lifted is not BY_STEPS and burnt + lifted[1] <= fuel:
                value, spent = lifted
                self._ready = bound
                self._calls += 1
                self._fuel = burnt = burnt + spent
                self._burnt += burnt
                self._group.share.charge(burnt)
                bound.entry.counted.add(FUELS, burnt)
                return value
        call = self._begin_call(bound)
        try:
            try:
                return await call.run_rest(result, burnt, values)
            finally:
                self._end_call(call)
        except GuestError as error:
            await self._pool.lines.locate(error, bound.definition.module)
            raise

    async def _call_converted(self, bound: BoundFunction, values: tuple[object, ...]) -> Value:
        """Make a call whose values are not plain ints and floats, or do not fit.

        Also one that the system refused a stack: a `Call` evicts idle instances for it.
        """
        if self._gives_null(bound, values):
            return None
        binding, ready = bound.binding, self._ready
        try:
            lowered = values if binding.lower is None else binding.lower(values)
            exact = exact_values(bound.guest.type, lowered)
        except (TypeError, ValueError, OverflowError):
            self._group.share.charge(0, UNRUN_FUEL)
            raise binding.explain(values) from None
        if ready is None or ready is not self._ready:
            # Code of the values' classes has run, and may have ended the lease.
            raise self._unusable()
        export, lift = bound.definition.export, binding.lift

        def steps(_native: Guest, _values: tuple[object, ...]) -> Steps:
            result = yield Invoke(export, exact)
            return result if lift is None else lift(result)

        return await self._run_steps(bound, steps, values)

    def _gives_null(self, bound: BoundFunction, values: tuple[object, ...]) -> bool:
        """Return whether a call returns None without running the guest, and charge for it if so.

        A series of calls that cost nothing would never let others run.
        """
        if not bound.gives_null(values):
            return False
        self._group.share.charge(0)
        return True

    async def _run_steps(
        self,
        bound: BoundFunction,
        make: Callable[[Guest, tuple[object, ...]], Steps],
        values: tuple[object, ...],
    ) -> Value:
        call = self._begin_call(bound)
        try:
            try:
                return await call.run_steps(make, values)
            finally:
                self._end_call(call)
        except GuestError as error:
            await self._pool.lines.locate(error, bound.definition.module)
            raise

    def _begin_call(self, bound: BoundFunction) -> Call:
        """Begin a call during which other tasks may run; they find the lease busy."""
        call = self._pool.call_type(
            self._pool.runtime, bound, self._group.share, self, self._request, self._replacing
        )
        self._step(CALLING)
        self._under_way = call
        self._ready = None
        self._calls += 1
        return call

    def _end_call(self, call: Call) -> None:
        self._under_way = None
        self._fuel = call.fuel
        self._burnt += call.fuel
        if not call.fuel:  # the guest has not run, so nothing is charged yet
            self._group.share.charge(0, UNRUN_FUEL)
        if call.rows is not None:
            self._rows = call.rows
        if self._replacing is not None:
            self._end_replacing(call)
        try:
            call.close()
        finally:
            self._failed_by = call.failed
            if self._state is ENDED:
                # The block has ended meanwhile, or the cache is being closed.
                if self._request is not None:
                    self._recycle(self._request, call.drop)
            elif call.failed:
                self._step(BROKEN)
            elif call.exited:
                self._step(EXITED)
            else:
                self._step(HELD)
                self._ready = call.bound

    def _end_replacing(self, call: Call) -> None:
        """Note the instance that the lease has after a batch in which rows may have failed."""
        replacing, self._replacing = self._replacing, None
        self._bound = call.bound
        if replacing is not None:
            replacing.finish()

    def _end_call_early(self, call: Call, reason: Reason) -> None:
        """End the lease while a task has a call under way; its instance is evicted for `reason`.

        The task gets the error, and gives the instance back when nothing runs in it any more.
        """
        if self._state is not ENDED:
            self._step(ENDED)
        call.end_for(reason, self._unusable)

    def _failed(self, bound: BoundFunction, error: E, values: tuple[object, ...]) -> E:
        """End a call that failed in its first slice; return the error, completed with its facts."""
        if self._request is None:
            return error  # the code that converts the values ended the lease, then raised this
        self._calls += 1
        self._fuel = fuel = bound.total_fuel - bound.native.fuel_left()
        self._burnt += fuel
        self._group.share.charge(fuel)
        bound.entry.counted.add(FUELS, fuel)
        self._step(BROKEN)
        self._fail(bound, error, values, fuel)
        return error

    def _fail(
        self, bound: BoundFunction, error: BaseException, values: tuple[object, ...], fuel: int
    ) -> None:
        pool = self._pool
        failure = bound.fail(pool.policy, pool.runtime.dumps, error, values, fuel)
        self._failed_by = failure
        self._group.share.charge(failure.fuel)

    def _lifted(
        self,
        bound: BoundFunction,
        lift: Callable[[Value], Value],
        result: object,
        values: tuple[object, ...],
    ) -> Value:
        """Return the Python value of a result; a guest that broke its ABI breaks the lease."""
        try:
            return lift(result)
        except WitError as error:
            error.function = bound.entry.function.key.name
            self._pool.policy.note_error(bound.entry, type(error).__name__)
            raise
        except GuestError as error:
            if self._request is not None:
                self._ready = None
                self._step(BROKEN)
                self._fail(bound, error, values, self._fuel or 0)
            raise

    # -- other facts

    @property
    def memory(self) -> LeaseMemory:
        """Memory of the guest, exported or imported; use it between calls, or in host functions.

        Getting it never raises; see `LeaseMemory` for the errors of using it.
        """
        return made(LeaseMemory, self._guest_memory, self._name)

    @property
    def fuel_consumed(self) -> int | None:
        """Units of fuel that the last call burnt, failed ones included; None before the first."""
        return self._fuel

    @property
    def size(self) -> int:
        """Bytes that the instance may touch now.

        They are all its memories, 8 bytes for each element of its tables, its scratch memories, and
        one page.

        Raises:
            trio.BusyResourceError: a call is under way, or the lease is still waiting.
            trio.ClosedResourceError: the lease has ended, or its group or the cache is closed.
            RuntimeError: the lease was not entered, or this is another thread.
        """
        self._check_thread("size")
        return self._resting().size

    @property
    def function(self) -> Function[R_co]:
        """Function of the instance, which may be an older generation than the registered one.

        Raises:
            RuntimeError: the lease was not entered.
            trio.BusyResourceError: the lease is still waiting.
            trio.ClosedResourceError: the lease ended without an instance.
        """
        definition = None
        if self._bound is not None:
            definition = self._bound.definition
        elif self._entry is not None:
            definition = Definition.of(self._entry.function)
        if self._acquisition is not None:
            definition = self._acquisition.definition
        if definition is None:
            raise self._unusable()
        return function_of(definition)

    def __repr__(self) -> str:
        acquisition = self._acquisition
        loading = acquisition is not None and acquisition.start is not None
        state = "loading" if loading else self._state.value
        name, group = shown(self._name), shown(self._group.record.name)
        return f"<Lease of {name} in group {group}: {state}>"

    # -- inside

    def _step(self, state: LeaseState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise IllegalStepError(f"a lease that is {self._state.value} can't be {state.value}")
        self._state = state

    def _first_use(self) -> BoundFunction | None:
        """Return the bound function if a call may begin; whoever asks may use the instance."""
        if self._bound is None and self._state is HELD:
            self._bound = self._ready = self._request.instance.bound  # type: ignore[union-attr,assignment]
        return self._ready

    def _resting(self) -> BoundFunction:
        """Return the bound function if an instance is held and no call is under way; else raise."""
        bound = self._bound or self._first_use()
        if bound is None or self._task is None or self._request is None:
            raise self._unusable()
        if self._ready is None and self._state not in (BROKEN, EXITED):
            raise self._unusable()
        return bound

    def _check_thread(self, method: str, *, waits: bool = False) -> None:
        if get_ident() != self._pool.thread:
            raise self._pool.owner.refusal(method, waits=waits)

    def _unusable(self) -> Exception:
        """Return the error for a use that the state does not allow."""
        state, name = self._state, shown(self._name)
        if state is ENDED:
            if self._group.record.closed or self._pool.closed:
                return self._pool.closed_error(self._group.record, name)
            return trio.ClosedResourceError(f"this lease of {name} has ended; acquire another")
        if state is NEW:
            return RuntimeError(
                f"enter the lease first: async with cache.acquire({shown(self._name)}, ...) as "
                "lease"
            )
        if state is ACQUIRING:
            return trio.BusyResourceError(
                f"the instance of this lease of {name} is being made; it can't be used before its "
                "start has ended"
            )
        if state is BROKEN:
            return trio.BrokenResourceError(
                f"an earlier call of {name} in this lease failed or was cancelled: "
                "its instance is unusable; acquire another"
            )
        if state is EXITED:
            return trio.BrokenResourceError(
                f"the command {name} has exited in this lease: acquire another to run it"
            )
        if context_of_call.get(None) is self:
            return trio.BusyResourceError(
                f"the call of {name} that called this host function is under way in this lease: "
                "the guest can't be called again before it ends, but a host function with "
                "reentrant=True can call its exports by invoke()"
            )
        return trio.BusyResourceError(
            f"another call of {name} is under way in this lease; await it first, or acquire a "
            "lease in each task"
        )

    def _guest_memory(self) -> GuestMemory:
        """Return the memory as it can be used now: suspended in a host call, or the instance's."""
        self._check_thread("memory")
        memory: GuestMemory | None
        activity = self._activity()
        if activity is None:
            native, recorder = self._resting().native, self._pool.runtime.recorder
            memory = native.memory if recorder is None else recorder.watched(native)
        else:
            # In a call, or being loaded: only host functions that it called may use it.
            call = activity.host_call
            if call is None or context_of_call.get(None) is not self:
                raise self._unusable()
            memory = call.memory
        if memory is None:
            raise LookupError(f"the module of {shown(self._name)} exports no memory")
        return memory

    def _activity(self) -> Activity | None:
        return self._under_way if self._acquisition is None else self._acquisition.start


def _made_here(kind: type[Lease[Any]], **more: object) -> type[Lease[Any]]:
    """Return a class of leases as that one, which can be called; users' can't."""
    # C finds that nothing is to be done, as for a class without an `__init__`.
    namespace = {"__init__": object.__init__, "__module__": Lease.__module__, **more}
    return type(Lease.__name__, (kind,), namespace)


_PLAIN = _made_here(Lease)


def make_lease(
    pool: Pool,
    group: GroupState,
    name: str,
    args: Sequence[str] | None,
    warm: bool = False,
    kind: type[Lease[Any]] = _PLAIN,
) -> Lease[Any]:
    """Make a lease. In an `__init__`, which C would call, this would take a quarter more."""
    self: Lease[Any] = kind()
    self._pool = pool
    self._group = group
    self._name = name
    self._args = args
    self._warm = warm
    self._state = NEW
    self._calls = self._burnt = 0
    return self


def watched(watcher: Watcher) -> MakeLease:
    """Return what makes leases whose uses are shown to a watcher."""
    kind = _made_here(_WatchedLease, _watcher=watcher)
    return functools.partial(make_lease, kind=kind)


class _WatchedLease(Lease[R_co]):  # type: ignore[misc] # it is final for users
    """A lease whose uses are shown to a `Watcher`, those that it wants.

    Its methods are not async, so that a use which is not shown costs one question and no coroutine.
    """

    _watcher: Watcher
    _held: Request | None = None
    """Request that the watcher knows to be held."""
    _cold = False
    """Whether the instance was loaded for this lease, and not called since."""
    _use: Use | None = None
    """Acquire that is shown, while it is under way."""

    @trio.lowlevel.enable_ki_protection
    def __aenter__(self) -> Coroutine[Any, Any, Self]:
        if not self._watcher.wants():
            return Lease.__aenter__(self)  # type: ignore[return-value]
        return self._show_acquire()

    @trio.lowlevel.enable_ki_protection
    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        held, self._held = self._held, None
        if held is not None:
            self._watcher.release(held)
        return Lease.__aexit__(self, kind, error, traceback)

    @trio.lowlevel.enable_ki_protection
    def call(self, *values: object) -> Coroutine[Any, Any, R_co]:
        if not self._watcher.wants():
            return Lease.call(self, *values)
        return self._show_call("call", functools.partial(Lease.call, self, *values))

    @trio.lowlevel.enable_ki_protection
    def map(
        self,
        columns: object,
        *_more: Never,
        rows: int | None = None,
        on_error: Literal["raise", "null"] = "raise",
        max_errors: int = 1000,
    ) -> Coroutine[Any, Any, Value]:
        work = functools.partial(
            Lease.map, self, columns, *_more, rows=rows, on_error=on_error, max_errors=max_errors
        )
        return self._show_call("map", work) if self._watcher.wants() else work()

    def lend(self) -> None:
        """Lend nothing: what another thread does with the instance would not be shown."""

    @trio.lowlevel.enable_ki_protection
    async def _show_acquire(self) -> Self:
        use = self._watcher.begin("acquire", self._name, self._args, self._group.record.name)
        self._use, self._reach = use, self._note_stage
        try:
            await Lease.__aenter__(self)
        except BaseException as error:
            use.end(error, Facts(cold=self._cold))
            raise
        finally:
            self._use = self._reach = None
        facts = self._names()
        request = self._request
        if request is not None and request.instance is not None:
            facts["instance"], facts["request"] = request.instance.number, request.number
            facts["hit"], facts["cold"] = request.hit, self._cold
            if self._warm:
                facts["warm"] = True
            self._held = request
            use.hold(request)
        use.end(None, facts)
        return self

    def _note_stage(self, stage: str, behind: Collection[Request]) -> None:
        if stage == LOAD:
            self._cold = True
        if self._use is not None:
            self._use.reach(stage, behind)

    @trio.lowlevel.enable_ki_protection
    async def _show_call(self, what: Literal["call", "map"], work: Callable[[], Awaitable[T]]) -> T:
        use = self._watcher.begin(what, self._name, self._args, self._group.record.name)
        before, cold = self._calls, self._cold
        try:
            result = await work()
        except BaseException as error:
            use.end(error, self._facts_of_call(what, before, cold))
            raise
        use.end(None, self._facts_of_call(what, before, cold))
        return result

    def _facts_of_call(self, what: Literal["call", "map"], before: int, cold: bool) -> Facts:
        """Return the facts about a call or batch, before which there were so many."""
        facts = self._names()
        facts["cold"] = cold
        if self._calls != before:  # else no guest has run
            self._cold = False
            facts["fuel"] = self._fuel
        if self._failed_by is not None and self._failed_by.reason is not None:
            facts["reason"] = self._failed_by.reason
        if what == "map":
            facts["rows"] = self._rows
            if self._row_errors is not None:
                facts["row_errors"] = self._row_errors.count
        return facts

    def _names(self) -> Facts:
        entry = self._entry if self._bound is None else self._bound.entry
        if entry is None:
            return Facts()
        function = entry.function
        return Facts(key=function.key, generation=function.generation)


for _name in ("__aenter__", "__aexit__", "call", "map"):
    getattr(_WatchedLease, _name).__doc__ = getattr(Lease, _name).__doc__


@public
@final
@only_from("is the memory of a lease: lease.memory")
class LeaseMemory:
    """The memory of the instance that a lease holds: the exported one, else the imported one.

    Use `Lease.memory` to get it. Besides the errors below, its methods and `size` raise:

    - `LookupError` if the module neither exports nor imports a memory;
    - `trio.BusyResourceError` during a call or a load, except in a host function of that call;
    - `trio.ClosedResourceError` after the lease has ended;
    - `RuntimeError` before the lease is entered, and in another thread.
    """

    __slots__ = ("_memory", "_name")

    def __reduce__(self) -> NoReturn:
        refuse_copy(self, "copy the bytes that read() returns")

    def __init__(self, memory: Callable[[], GuestMemory], name: str) -> None:
        self._memory = memory
        self._name = name

    @property
    def size(self) -> int:
        """Size in bytes, a multiple of 64 KiB."""
        return self._memory().size

    def read(self, at: int, n: int) -> bytes:
        """Return a copy of some bytes.

        Args:
            at: address of the first byte.
            n: number of bytes.

        Raises:
            IndexError: some of these bytes are outside of the memory.
            TypeError: `at` or `n` is not an int.
        """
        at, n = _whole("at", at), _whole("n", n)
        return self._memory().read(at, n)

    def write(self, at: int, data: Buffer) -> None:
        """Write some bytes.

        Args:
            at: address of the first byte.
            data: bytes, or any object with the buffer protocol.

        Raises:
            IndexError: some of these bytes would be outside of the memory; none is written.
            TypeError: `at` is not an int, or `data` is not bytes or a buffer.
        """
        at = _whole("at", at)
        try:
            # Before checking the lease, as it may run any code.
            view = memoryview(data)  # type: ignore[arg-type]
        except TypeError:
            remedy = ": give its encode()" if hasattr(data, "encode") else ""
            raise TypeError(f"data must be bytes or a buffer, got {shown(data)}{remedy}") from None
        with view:
            self._memory().write(at, view)

    @trio.lowlevel.enable_ki_protection  # or it might not notice where the memory is now
    def grow(self, pages: int) -> int:
        """Add pages of 64 KiB, and return the address of the first one.

        As WebAssembly's ``memory.grow``, it can't be undone: a ``"reset"`` instance that has grown
        is replaced.

        Args:
            pages: number of pages, from 0.

        Raises:
            MemoryLimitError: the memory would exceed `memory_limit`, or the maximum in the module;
                nothing has changed, and the lease can still be used.
            ValueError: `pages` is negative.
            TypeError: `pages` is not an int.
        """
        pages = _whole("pages", pages)
        if pages < 0:
            raise ValueError(f"pages must not be negative, got {pages}")
        memory = self._memory()
        try:
            return memory.grow(pages)
        except MemoryLimitError as error:
            error.function = self._name
            what = f"memory.grow({pages}) in a lease of {shown(self._name)}"
            error.args = (f"{what}: {error.args[0]}", *error.args[1:])
            raise


def _whole(what: str, value: object) -> int:
    """Return an int, NumPy's included; anything else would reach C.

    Raises:
        TypeError: `value` is not an int.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be an int, got {shown(value)}") from None


def lend_lease(
    pool: Pool, group: GroupState, key: FunctionKey, preparing: Preparing | Upgrade
) -> Lease:
    """Return the result of `current_lease` in host functions of an instance that no lease has."""
    lease = make_lease(pool, group, key.name, key.args)
    lease._acquisition, lease._state = preparing, ACQUIRING  # noqa: SLF001 - in its own file
    return lease


@public
def current_lease() -> Lease:
    """Return the lease whose guest called the host function that is running.

    Raises:
        RuntimeError: no host function is running in this context.
    """
    lease = context_of_call.get(None)
    if not isinstance(lease, (Lease, SuspendedLease)):
        raise RuntimeError("current_lease() has a meaning only inside a host function")
    return lease  # type: ignore[return-value] # of the second, it is documented in `aio`


@final
class SuspendedLease:
    """What `current_lease` returns in a coroutine on another event loop: a lease's memory only.

    The guest is suspended until the coroutine has ended. That may be noticed late, or be given up,
    so each use checks it, under a lock, as the instance may be closed afterwards.

    Args:
        name: name of the function, for messages.
        memory: memory of the guest, if it has one.
        thread: identifier of the thread in which the coroutine runs.
    """

    def __init__(self, name: str, memory: GuestMemory | None, thread: int) -> None:
        self._name = name
        self._lent = _LentMemory(name, memory, thread)

    @property
    def memory(self) -> LeaseMemory:
        """Memory of the guest, to be used until the host function ends."""
        return made(LeaseMemory, self._lent.check, self._name)

    def end(self) -> None:
        """Refuse further use, as the host function has ended."""
        self._lent.end()

    def __reduce__(self) -> NoReturn:
        refuse_copy(self, "copy what you read of its memory")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"current_lease() has no {name!r} in a coroutine host function under asyncio, but "
                "only its memory: the lease belongs to the cache's own thread"
            )


@final
class _LentMemory:
    """A `GuestMemory` for the thread of a `SuspendedLease`."""

    def __init__(self, name: str, memory: GuestMemory | None, thread: int) -> None:
        self._name = name
        self._memory = memory
        self._thread = thread
        self._ended = False
        self._lock = threading.Lock()

    def check(self) -> GuestMemory:
        """Check that it may be used here and now; return itself."""
        if get_ident() != self._thread:
            raise RuntimeError(
                "memory must be used in the thread of the event loop on which the host function "
                "runs, but this is another thread"
            )
        with self._lock:
            self._now()
        return self

    def end(self) -> None:
        """Refuse further use."""
        with self._lock:
            self._ended, self._memory = True, None

    @property
    def size(self) -> int:
        with self._lock:
            return self._now().size

    def read(self, at: int, n: int) -> bytes:
        with self._lock:
            return self._now().read(at, n)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        with self._lock:
            self._now().write(at, data)

    @trio.lowlevel.enable_ki_protection
    def grow(self, pages: int) -> int:
        with self._lock:
            return self._now().grow(pages)

    def _now(self) -> GuestMemory:
        if self._ended:
            raise trio.ClosedResourceError(
                f"the host function that {shown(self._name)} called has ended, or was given up: "
                "the memory of the guest can't be used any more"
            )
        if self._memory is None:
            raise LookupError(f"the module of {shown(self._name)} exports no memory")
        return self._memory


@public
@final
@frozen
class Function(Generic[R_co]):
    """A registered UDF: its name, its types, and facts about its compiled module.

    .. code-block::

        fib = await cache.register("fib", wasm, args=("i64",), returns="i64")
        assert await fib.call(10) == 55

    Use `InstanceCache.register` or `InstanceCache.functions` to get one. It is a value that does
    not change. If the function is replaced, `acquire` and `call` use the new generation, although
    the fields describe the old one.

    The type parameter is the type of a call's result: type checkers see a ``Function[int]`` if the
    function was registered with ``returns="i64"``. It is `Any` for results of unknown type, such as
    those of an ABI of your own, and where it is left out.
    """

    name: str
    """Name of the function."""
    args: tuple[str, ...]
    """Types of the arguments, in their normal spelling."""
    returns: str | tuple[str, ...] | None
    """Type of the result; several types if a call returns a tuple, None if it returns nothing."""
    generation: int
    """Number of this registration of the name and types: 1, and one more for each later one."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    code_size: int
    """Bytes of machine code while the module is loaded, in whole system pages."""
    worst_size: int
    """Number of bytes that one instance may touch at most, under the limits at registration."""
    isolation: Isolation
    """Isolation that was asked for: ``"reuse"``, ``"fresh"`` or ``"reset"``."""
    isolation_verdict: str
    """Sentence that explains how this isolation is provided, and why."""
    cache_verdict: str
    """Sentence that says what stays in the cache between leases, under the limits at registration;
    if that is nothing or only a seat, because an instance is too large, which limit to raise."""
    wit: str | None
    """Name and type of the function in its component, as WIT's text, such as
    ``area: func(shape: shape) -> f64``; None if it is one of a core module."""
    _acquire: Callable[[str, tuple[str, ...]], Lease[R_co]] = field(repr=False, eq=False)

    if not TYPE_CHECKING:  # checkers find this mistake by themselves

        def __call__(self, *_: object, **_named: object) -> NoReturn:
            raise TypeError(f"{self.key} is called by await function.call(...)")

    def __reduce__(self) -> NoReturn:
        refuse_copy(self, "keep its name and args, and use cache.acquire(name, args) of any cache")

    @property
    def key(self) -> FunctionKey:
        """Name and argument types; `str()` of it is the name in messages, such as ``fib(i64)``."""
        return FunctionKey(self.name, self.args)

    def acquire(self) -> Lease[R_co]:
        """Return a lease, as `InstanceCache.acquire` does for this name and these types."""
        return self._acquire(self.name, self.args)

    @trio.lowlevel.enable_ki_protection
    async def call(self, *values: object) -> R_co:
        """Acquire an instance, call it once, and give it back.

        Args:
            *values: see `Lease.call`.

        Returns:
            The result: see `Lease.call`.

        Raises:
            Exception: the errors of `Lease.__aenter__` and `Lease.call`.

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
