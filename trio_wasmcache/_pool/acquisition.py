"""Acquires that are not a plain hit: they take a token and an instance, and wait or load for them.

The plain hit is in `Lease.__aenter__`; an `Acquisition` handles all cases.

A `RecursionError` half-way through a change of the books would leave them wrong. So the space on
Python's stack is checked before. This costs a few calls, which a hit saves: its steps make no calls
(see `Policy.hit`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import final

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from .._core.errors import DeadlockError, WasmCacheError
from .._core.events import Reason
from .._core.metrics.counters import LOADS, microseconds
from .._core.policy.instances import Step
from .._core.policy.lifecycle import IllegalStepError
from .._core.policy.records import (
    GRANTED,
    FunctionRecord,
    GiveUp,
    Instance,
    Request,
    RequestClosed,
    Stage,
)
from .._core.stack_room import check_headroom
from .._core.text import shown
from .._engine.base import GuestInstance, NoMemoryError
from .._log import Origin
from .._runtime.bound import BoundFunction, Definition
from .._runtime.module import CachedModule
from .._runtime.start import Start
from .capacity import GroupState
from .making import Making, bind_metered, explain, needed
from .pool import CLOSED, Pool

# Stages of an acquire that is watched, besides those of `Stage`.
TOKEN, LOAD = "a token", "load"


@final
class Acquisition:
    """One acquire under way; a failure or cancellation gives back everything that it has taken.

    Args:
        pool: the pool of the cache.
        group: the group of which a token and an instance are taken.
        task: the task that acquires, which gets the token.
        lease: the result of `current_lease` in host functions that the start of the instance calls.
        give_up: function that gives up the granted instance, when the group or the cache closes.
        warm: whether to load another instance even if one is idle.
        reach: called when it begins to wait or to load, with what for, and with the requests that
            hold what it waits for, as far as they are known; None: nobody watches.
        request: a request whose task has a token and was woken; see `go_on`. None: `run` makes one.
    """

    def __init__(
        self,
        pool: Pool,
        group: GroupState,
        task: Task,
        lease: object,
        give_up: GiveUp,
        *,
        warm: bool,
        reach: Callable[[str, Collection[Request]], None] | None = None,
        request: Request | None = None,
    ) -> None:
        self._pool = pool
        self._group = group
        self._task = task
        self._name: object = None  # of the function
        self._lease = lease
        self._give_up = give_up
        self._warm = warm
        self._reach = reach
        self._blocked = False
        self._asked_at = 0.0
        self._request = request
        self._origin: Origin | None = None  # of its events, once there is one
        self._making: Making | None = None
        self.definition: Definition | None = None
        """Definition of the function whose instance is, or was, being made."""

    async def run(self, name: str, args: Sequence[str] | None) -> tuple[Request, BoundFunction]:
        """Take a token, then an instance of the function.

        Returns:
            The request that was granted, and the function bound to its instance.

        Raises:
            WasmCacheError: the function is unknown, the load failed, or the policy refused.
            trio.ClosedResourceError: the group or the cache is closed.

        **Checkpoint:** maybe, if it has to wait or load.
        **Cancellation:** nothing is held.
        """
        pool, capacity = self._pool, self._group.capacity
        self._name = name
        if pool.exits.pending:
            pool.exits.run()
        if self._group.record.closed or pool.closed:
            raise self._closed_error()
        if pool.journal.log_uses:
            self._asked_at = pool.now()
        record: FunctionRecord | None = None
        if not capacity.take_nowait(self._task):
            record = pool.registry.find(name, args)  # raises for an unknown function before waiting
            await self._wait_for_token(record)
        try:
            check_headroom()
            try:
                record = pool.registry.find(name, args)
            except Exception as error:
                if record is not None and not self._group.record.closed:
                    # Removed during the wait; in the log it is still waiting for its token.
                    self._note_no_token(record, type(error).__name__)
                raise
            if self._group.record.closed or pool.closed:
                raise self._closed_error()
            request = self._ask(record)
            return request, await self._take_instance(request)
        except BaseException as error:
            self.withdraw(error)
            capacity.give_back(self._task)
            raise

    async def go_on(self, name: str) -> BoundFunction:
        """Go on where the wait of a request has ended that was put into line without `run`.

        Returns:
            The function bound to its instance.

        Raises:
            WasmCacheError: the load failed, or the policy refused.
            trio.ClosedResourceError: the group or the cache is closed.

        **Checkpoint:** maybe, if it has to wait again or load.
        **Cancellation:** nothing is held.
        """
        self._name = name
        try:
            check_headroom()
            if self._request is None:
                raise IllegalStepError("this acquire was not put into line")
            return await self._take_instance(self._request)
        except BaseException as error:
            self.withdraw(error)
            self._group.capacity.give_back(self._task)
            raise

    @property
    def start(self) -> Start | None:
        """Start of the instance that is being made; None when none is."""
        return None if self._making is None else self._making.start

    def end(self, reason: Reason) -> trio.Event | None:
        """Give up what was granted so far, as the group or the cache closes.

        Returns:
            An event if a thread runs the start of the instance, which is set when the thread has
            left it; nothing is given up until then. Otherwise None.

        Raises:
            IllegalStepError: nothing was granted yet.
        """
        pool, request = self._pool, self._request
        if request is None:
            raise IllegalStepError("this acquire has not asked for an instance yet")
        instance = request.held
        making = self._making
        if making is not None and making.start is not None:
            making.start.end(self._closed_error)
            if making.start.out_of_thread is not None:
                return making.start.out_of_thread
        now = pool.now()
        pool.journal.abandoned(request, CLOSED, now)
        if request.stage is Stage.LOADING:
            if making is not None:
                making.close()  # first, as its start may use the code that is unloaded next
            pool.carry_out(pool.policy.failed(request, now), now)
        elif request.stage is Stage.GRANTED:
            # The task was woken but has not run yet.
            pool.carry_out(pool.policy.recycle(request, instance.size, now, reason), now)
        return None

    def withdraw(self, error: BaseException) -> None:
        """Give back what the request has, or leave its line, as the acquire has failed.

        Where a step of the acquire has failed, that has been done already. It has not been if the
        error came from outside: a signal handler's may be raised between any two lines.
        """
        pool, request = self._pool, self._request
        if request is None or request.stage is Stage.ENDED:
            return
        policy, kind = pool.policy, type(error).__name__
        if request.stage is Stage.QUEUED or request.stage is Stage.ROOM:
            pool.abandon(request, self._cause, kind)
        elif request.stage is Stage.NEW:
            policy.instances.forget(request.entry)
        else:
            now = pool.now()
            pool.journal.abandoned(request, kind, now)
            if request.stage is Stage.LOADING:
                step: Step | None = policy.failed(request, now)
            else:
                size = request.held.size
                step = policy.recycle(request, size, now, Reason.CORRUPTED, error=kind)
            pool.carry_out(step, now, self._cause)
            pool.evictor.expect_expiry()

    def _cause(self) -> Origin:
        """Return the origin of its events: a copy of the context of its task, made once."""
        if self._origin is None:
            self._origin = Origin(self._task.context)
        return self._origin

    # -- the token

    async def _wait_for_token(self, record: FunctionRecord) -> None:
        pool, group = self._pool, self._group
        policy = pool.policy
        self._blocked, self._asked_at = True, pool.now()
        if self._reach is not None:
            self._reach(TOKEN, ())
        try:
            policy.waits.begin(self._task, group.record)
            policy.note_token_block(record, group.record)
            pool.journal.token_blocked(record, group.record.name, self._task, self._cause)
            wait = _TokenWait(self._stop_waiting, functools.partial(self._note_no_token, record))
            if not await group.capacity.take(self._task, wait):
                raise self._closed_error()
        except BaseException as error:
            policy.note_error(policy.instances.entry(record, group.record), type(error).__name__)
            if not (group.record.closed or isinstance(error, DeadlockError)):
                self._note_no_token(record, type(error).__name__)
            raise

    def _stop_waiting(self) -> None:
        self._pool.policy.waits.end(self._task)

    def _note_no_token(self, record: FunctionRecord, error: str) -> None:
        journal, group = self._pool.journal, self._group.record.name
        journal.token_abandoned(record, group, self._task, error, self._cause)

    # -- the instance

    def _ask(self, record: FunctionRecord) -> Request:
        """Return a request for an instance; it is granted, or its task has to wait or load."""
        pool = self._pool
        policy, journal = pool.policy, pool.journal
        request = self._request = policy.request(
            record,
            self._group.record,
            self._task,
            warm=self._warm,
            give_up=self._give_up,
            blocked_since=self._asked_at if self._blocked else None,
        )
        now = pool.now()
        if journal.log_uses:
            journal.requested(request, now, self._cause())
        try:
            step = policy.acquire(request, now)
        except WasmCacheError as error:
            policy.note_error(request.entry, type(error).__name__)
            journal.abandoned(request, type(error).__name__, now)
            raise
        if step is not None:
            pool.carry_out(step, now, self._cause)
        return request

    async def _take_instance(self, request: Request) -> BoundFunction:
        """Return the function bound to the instance of a request, once that is granted."""
        pool = self._pool
        policy, journal = pool.policy, pool.journal
        instance = request.instance
        if instance is None or request.stage is not GRANTED:
            try:
                instance = await self._see_through(request)
            except BaseException as error:
                policy.note_error(request.entry, type(error).__name__)
                raise
        bound = self._bind(instance)
        if journal.log_uses:
            journal.acquired(request, instance, self._asked_at, pool.now(), policy.instances.ledger)
        elif instance.ready:
            policy.may_rest(request)
        return bound

    def _bind(self, instance: Instance) -> BoundFunction:
        """Return the function bound to the instance; bind it anew if the instance was set aside."""
        pool, bound = self._pool, BoundFunction.of(instance)
        if not instance.ready and bound.definition.serves_again:
            native = bound.native
            if native.yield_fuel != pool.config.yield_fuel:
                native.set_yield_fuel(pool.config.yield_fuel)
            before = bound
            bound = bind_metered(pool, self._group.share, bound.definition, instance.entry, native)
            bound.keep_attached(before)
            instance.hold(bound, ready=True)
        return bound

    async def _see_through(self, request: Request) -> Instance:
        """Wait and load, as long as it takes; return the instance that was granted."""
        while True:
            instance = request.instance
            if instance is not None:
                if request.stage is GRANTED:
                    return instance
                await self._load(request, instance)
            elif request.stage is Stage.ENDED:
                if request.error is None or isinstance(request.error, RequestClosed):
                    raise self._closed_error()  # closing has noted it in the log already
                pool = self._pool
                pool.journal.abandoned(request, type(request.error).__name__, pool.now())
                raise request.error
            else:
                await self._wait(request)

    async def _wait(self, request: Request) -> None:
        pool = self._pool

        def abort(_: RaiseCancelT) -> Abort:
            return pool.abandon(request, self._cause)

        pool.journal.blocked(request)
        if self._reach is not None:
            what = request.stage.value.removeprefix("waiting for ")
            self._reach(what, () if request.stage is Stage.ROOM else tuple(request.entry.claims))
        request.asleep = True
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _load(self, request: Request, instance: Instance) -> None:
        pool = self._pool
        function = instance.entry.function
        definition = Definition.of(function)
        module = instance.module
        if definition.module.record is not module:  # the function was promoted meanwhile
            definition = definition.promoted(CachedModule.of(module))
        self.definition = definition
        began = pool.now()
        if self._reach is not None:
            self._reach(LOAD, ())
        native: GuestInstance | None = None
        self._making = making = Making(pool, self._group.share, self._lease, request)
        try:
            try:
                native = await making.run(definition)
            except NoMemoryError as error:
                pool.relief.evict(request.need, needed(function), error, 0)
            if native is None:
                native = await pool.relief.run_async(
                    request.need, needed(function), making.run, definition, attempt=1
                )
        except BaseException as error:
            if request.stage is Stage.ENDED:
                # Closed meanwhile, with the books in order; code loaded since was never used.
                if module.users == 0:
                    definition.module.unload()
                raise
            now = pool.now()
            problem = explain(definition, function.key, error, pool.config)
            if isinstance(problem, Exception) and not isinstance(problem, trio.ClosedResourceError):
                pool.journal.failed(request, instance, problem, now, self._cause())
            pool.journal.abandoned(request, type(problem).__name__, now)
            pool.carry_out(pool.policy.failed(request, now), now, self._cause)
            pool.evictor.expect_expiry()  # of a seat, which is idle again
            if problem is error:
                raise
            raise problem from error
        try:
            bound = bind_metered(pool, self._group.share, definition, instance.entry, native)
            instance.hold(bound, ready=definition.serves_again)
            now, seat = pool.now(), instance.seat
            instance.entry.counted.add(LOADS, microseconds(now - began))
            step = pool.policy.loaded(request, now, native.measure(), now - began)
        except BaseException:
            native.close()  # the books don't have it: see `withdraw`
            raise
        pool.journal.loaded(request, instance, seat, began, now, self._cause())
        pool.carry_out(step, now, self._cause)
        if isinstance(request.error, RequestClosed):
            # The group was closed meanwhile; the lease would have begun in the next pass.
            pool.journal.abandoned(request, CLOSED, now)

    # -- closing

    def _closed_error(self) -> Exception:
        return self._pool.closed_error(self._group.record, shown(self._name))


@final
class _TokenWait:
    """The wait of one acquisition for a token: a `capacity.TokenWait`."""

    __slots__ = ("note", "over")

    def __init__(self, over: Callable[[], None], note: Callable[[str], None]) -> None:
        self.over = over
        self.note = note

    def refused(self) -> None:
        self.over()
        self.note(CLOSED)
