"""Scheduling groups: nurseries with a name, a capacity and CPU shares; which group code runs in.

How groups are closed, and the cache with them, whatever is running in them:

1. No new leases are given; waiting acquires fail at once.
2. Leases end now, wherever their tasks are: idle in their block, between two slices, loading, or in
   a host function. Native memory is freed in this step; the task gets the error when it next runs.
3. A call in a thread is asked to stop, which takes at most a slice, and is waited for, shielded.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import CoroutineType
from typing import Any, NoReturn, Protocol, TypeVarTuple, final, overload

import trio
from attrs import frozen

from .._core.config import bad_capacity, bad_shares
from .._core.events import Reason
from .._core.policy.records import Stage
from .._core.text import shown
from .._ki import ki_safe_contextmanager, let_others_run, outlast
from .._owner import calls_user, refuse_copy
from .._pool.capacity import GroupState, new_group_state
from .._pool.evictor import AT_ONCE
from .._pool.pool import CLOSED, Pool
from .._public import public
from .lease import Lease

MAIN = "main"
# Groups, instances and waiters to close in one step of the loop: at 20 to 50 microseconds each,
# about a millisecond. A single group is closed in one step, however many instances it has.
MAX_WORK = 32

# The groups around the running code, of all caches, innermost last.
_groups: contextvars.ContextVar[tuple[_Inside, ...]] = contextvars.ContextVar(
    "trio_wasmcache_groups", default=()
)


Args = TypeVarTuple("Args")


class Starter(Protocol[*Args]):
    """An async function for `SchedulingGroup.start`, whose ``task_status`` is a keyword.

    Where it can be given by position, too, a checker takes it for one of `Args`: hence the other
    overloads of `start`.
    """

    def __call__(self, *args: *Args, task_status: trio.TaskStatus[Any]) -> Awaitable[object]: ...


@public
@final
class SchedulingGroup:
    """A nursery whose tasks share a capacity and a part of the CPU.

    .. code-block::

        async with cache.scheduling_group("oltp", capacity=8, shares=200) as group:
            group.start_soon(worker)

    Use `InstanceCache.scheduling_group` to make one. Instances never cross groups. At most
    `capacity` of its tasks hold or wait for instances at the same time; a task counts once, however
    many leases it nests. Groups that compete for the CPU get it in proportion to their `shares`; a
    group alone gets all of it.
    """

    def __init__(self, pool: Pool, state: GroupState, nursery: trio.Nursery) -> None:
        self._pool = pool
        self._state = state
        self._nursery = nursery
        self._chain = (*_groups.get(), _Inside(self, state, pool))

    def __reduce__(self) -> NoReturn:
        refuse_copy(self, "open another with cache.scheduling_group(name, capacity=...)")

    @property
    def name(self) -> str:
        """Name of the group; unique among the open groups of its cache."""
        return self._state.record.name

    @property
    def shares(self) -> int:
        """Part of the CPU, relative to other groups; 1 to 1,000,000."""
        return self._state.share.shares

    @property
    def limiter(self) -> trio.CapacityLimiter:
        """Limiter with a token for each task that holds or waits for an instance.

        Its `total_tokens` may be set, which changes the group's capacity.

        Raises:
            RuntimeError: this is not the Trio run of the cache, or a step of it is under way.
        """
        self._pool.owner.check("SchedulingGroup.limiter")
        return self._state.capacity.watch()

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """Cancel scope of the nursery: cancelling it cancels the group's tasks and its block."""
        return self._nursery.cancel_scope

    def start_soon(
        self,
        async_fn: Callable[[*Args], Awaitable[object]],
        *args: *Args,
        name: object = None,
    ) -> None:
        """Start a task as `trio.Nursery.start_soon` does; in it, this group is the current one.

        Args:
            async_fn: async function of the task.
            *args: its arguments.
            name: name of the task, for debugging; None: that of `async_fn`.

        Raises:
            RuntimeError: this is not the Trio run of the cache, or a step of it is under way; or
                the group has closed, as a nursery does when its block and tasks have ended.
        """
        self._pool.owner.check("SchedulingGroup.start_soon")
        self._nursery.start_soon(
            _run_inside, self._chain, async_fn, args, name=async_fn if name is None else name
        )

    @overload
    async def start(self, async_fn: Starter[*Args], *args: *Args, name: object = None) -> Any: ...

    @overload
    async def start(
        self,
        async_fn: Callable[[*Args, trio.TaskStatus[Any]], Awaitable[object]],
        *args: *Args,
        name: object = None,
    ) -> Any: ...

    @overload
    async def start(
        self, async_fn: functools.partial[Any], *args: object, name: object = None
    ) -> Any: ...

    async def start(
        self, async_fn: Callable[..., Awaitable[object]], *args: object, name: object = None
    ) -> Any:
        """Start a task as `trio.Nursery.start` does; in it, this group is the current one.

        Args:
            async_fn: async function of the task; it also gets a keyword argument `task_status`.
            *args: its other arguments.
            name: name of the task, for debugging; None: that of `async_fn`.

        Returns:
            The value that the task passes to ``task_status.started()``.

        Raises:
            RuntimeError: this is not the Trio run of the cache, or a step of it is under way; the
                group has closed; or the task ended without calling ``task_status.started()``.

        **Checkpoint:** always.
        **Cancellation:** as `trio.Nursery.start`: the child is cancelled too.
        """
        self._pool.owner.check("SchedulingGroup.start", waits=True)
        return await self._nursery.start(
            _start_inside, self._chain, async_fn, args, name=async_fn if name is None else name
        )

    def acquire(self, name: str, args: Sequence[str] | None = None) -> Lease:
        """Return a lease as `InstanceCache.acquire` does, but in this group.

        The caller may be in any group, or in none. See `Lease.__aenter__` for the errors of
        entering the lease.

        Args:
            name: name of the function.
            args: types of its arguments, as registered; None if there is only one function of that
                name.
        """
        return Lease(self._pool, self._state, name, args)

    def __repr__(self) -> str:
        state = "closed" if self._state.record.closed else "open"
        borrowed, total = self._state.capacity.count()
        return (
            f"<SchedulingGroup {self.name!r} {state}: {borrowed} of {total} tokens, "
            f"{self.shares} shares>"
        )


@final
@frozen
class _Inside:
    """A group, as the context of the code that runs in it has it."""

    group: SchedulingGroup
    state: GroupState
    pool: Pool


@public
def current_group() -> SchedulingGroup | None:
    """Return the innermost scheduling group around the caller, of any cache, or None."""
    groups = _groups.get()
    return groups[-1].group if groups else None


groups_around = _groups.get
"""Returns the groups around the caller, of all caches, innermost last."""


def _check_group(name: object, capacity: object, shares: object) -> None:
    """Check the parameters of a group.

    Raises:
        TypeError: the name is not a str.
        ValueError: the name is empty or not printable, or capacity or shares are out of range.
    """
    if not isinstance(name, str):
        raise TypeError(f"a group's name must be a str, got {shown(name)}")
    if not name or not name.isprintable():
        raise ValueError(f"a group's name must be printable and not empty, got {shown(name)}")
    for what, problem in (("capacity", bad_capacity(capacity)), ("shares", bad_shares(shares))):
        if problem is not None:
            raise ValueError(f"{what} of group {shown(name)} {problem}")


@final
class Groups:
    """The scheduling groups of one cache: its own, ``"main"``, and those that are open."""

    def __init__(self, pool: Pool, service: trio.Nursery) -> None:
        self._pool = pool
        config = pool.config
        self.main: GroupState = new_group_state(MAIN, config.main_capacity, config.main_shares)
        """The state of its own group."""
        self.main_group: SchedulingGroup = SchedulingGroup(pool, self.main, service)
        self.states: dict[str, GroupState] = {MAIN: self.main}
        """{name: state} of the groups that are open."""
        self._opening: set[str] = set()
        self._note_opened(self.main)

    def find(self) -> GroupState:
        """Return the innermost group of this cache around the caller, or ``"main"``."""
        for inside in reversed(_groups.get()):
            if inside.pool is self._pool:
                return inside.state
        return self.main

    @ki_safe_contextmanager
    async def open(self, name: str, capacity: float, shares: int) -> AsyncIterator[SchedulingGroup]:
        """Open a group, run the block in it, and close it.

        Raises:
            ValueError: the name is in use, or a parameter is out of range.
            TypeError: the name is not a str.

        **Checkpoint:** as of a `trio.Nursery`; leaving waits for threads that run a call.
        **Cancellation:** as of a `trio.Nursery`; the group's instances are closed all the same.
        """
        _check_group(name, capacity, shares)
        if name in self.states or name in self._opening:
            raise ValueError(f"a scheduling group {shown(name)} is open already")
        self._opening.add(name)
        state = new_group_state(name, capacity, shares)
        try:
            async with trio.open_nursery() as nursery:
                group = SchedulingGroup(self._pool, state, nursery)
                self._note_opened(state)
                reset = _groups.set((*_groups.get(), _Inside(group, state, self._pool)))
                self.states[name] = state
                try:
                    yield group
                finally:
                    _groups.reset(reset)
        finally:
            if name in self.states:
                if not state.record.closed:  # the cache was closed before
                    await self.close([state], Reason.GROUP_CLOSED)
                del self.states[name]
            self._opening.discard(name)

    async def close(self, groups: Sequence[GroupState], reason: Reason) -> None:
        """Close `groups`; when this returns, none of their calls is running.

        **Checkpoint:** if a thread is in a call, or there is more than `MAX_WORK` to close.
        **Cancellation:** shielded, from Ctrl-C as well; a thread stops within a slice.
        """
        pool, now = self._pool, trio.current_time()
        work = 0
        for group in groups:
            if work >= MAX_WORK:
                await let_others_run()
                now, work = trio.current_time(), 0
            if group.record.closed:
                continue  # it is being closed already, and waits for a thread
            pool.journal.group_closed(group.record.name, pool.closed, now)
            step = pool.policy.close_group(group.record, now, reason)
            pool.carry_out(step, now, in_pieces=True)
            for request in step.woken:
                if request.stage is Stage.ENDED:
                    # Noted now, as the cache's log ends before its tasks get the error.
                    pool.journal.abandoned(request, CLOSED, now)
            group.capacity.refuse_waits()
            work += 1 + min(len(step.evicted), AT_ONCE) + len(step.woken)
        records = {group.record for group in groups}
        in_threads = []
        for request in [one for one in pool.policy.waits.held if one.entry.group in records]:
            if work >= MAX_WORK:
                await let_others_run()
                work = 0
            if request not in pool.policy.waits.held:
                continue  # its lease has ended meanwhile
            out_of_thread = request.revoke(reason)
            if isinstance(out_of_thread, trio.Event):
                in_threads.append((request, out_of_thread))
            work += 1
        while pool.evictor.close_some():
            await let_others_run()
        for request, out_of_thread in in_threads:
            await outlast(out_of_thread)
            if request in pool.policy.waits.held:
                request.revoke(reason)

    def _note_opened(self, state: GroupState) -> None:
        """Note for the log that a group is open."""
        _, capacity = state.capacity.count()
        self._pool.journal.group_opened(state.record.name, capacity, state.share.shares)


@calls_user
async def _run_inside(
    chain: tuple[_Inside, ...],
    async_fn: Callable[..., Awaitable[object]],
    args: tuple[object, ...],
) -> None:
    _groups.set(chain)
    await _coroutine(async_fn, args)


@calls_user
async def _start_inside(
    chain: tuple[_Inside, ...],
    async_fn: Callable[..., Awaitable[object]],
    args: tuple[object, ...],
    *,
    task_status: trio.TaskStatus[object],
) -> None:
    _groups.set(chain)
    await _coroutine(functools.partial(async_fn, task_status=task_status), args)


@calls_user
def _coroutine(
    async_fn: Callable[..., object] | CoroutineType[object, object, object],
    args: tuple[object, ...],
) -> Awaitable[object]:
    """Call a task's function and return what to await; explain the two common mistakes.

    Raises:
        TypeError: it was given a coroutine, or a function that is not async.
    """
    if isinstance(async_fn, CoroutineType):
        async_fn.close()
        raise TypeError(
            f"a task starts from an async function, not from a coroutine such as {async_fn!r}: "
            "write start_soon(fn, arg), not start_soon(fn(arg))"
        )
    result = async_fn(*args)
    if not inspect.isawaitable(result):
        raise TypeError(
            f"a task starts from an async function, but {async_fn!r} is none: it gave {result!r}"
        )
    awaitable: Awaitable[object] = result
    return awaitable
