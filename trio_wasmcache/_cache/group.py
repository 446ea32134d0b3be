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
from typing import Any, NoReturn, Protocol, TypeVarTuple, Unpack, final, overload

import trio
from attrs import evolve

from .._core.config import CacheConfig, GroupLimits
from .._core.events import Reason
from .._core.policy.records import Stage
from .._core.text import shown
from .._ki import ki_safe_contextmanager, let_others_run, outlast
from .._owner import calls_user, refuse_copy
from .._pool.capacity import GroupState
from .._pool.evictor import AT_ONCE
from .._pool.pool import CLOSED, Pool
from .._public import made, only_from, public
from .lease import Lease, MakeLease, make_lease
from .options import GroupChanges

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
@only_from("is made by scheduling_group: async with cache.scheduling_group(name, ...) as group")
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

    def __init__(
        self, groups: Groups, pool: Pool, state: GroupState, nursery: trio.Nursery
    ) -> None:
        self._groups = groups
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
    @trio.lowlevel.enable_ki_protection
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
        return self._groups.lease(self._pool, self._state, name, args)

    @trio.lowlevel.enable_ki_protection
    def resize(self, **changes: Unpack[GroupChanges]) -> None:
        """Change limits of the group, and evict those of its instances that no longer fit.

        ``group.resize(reserved_size=32 * MiB)``

        Args:
            **changes: `capacity`, `shares`, `max_size`, `reserved_size` or `cpu_limit`, as for
                `InstanceCache.scheduling_group`.

        Raises:
            TypeError: there is no such limit; nothing has changed.
            ValueError: a value is out of range, `reserved_size` exceeds `max_size`, or the groups
                would have more reserved than the cache's `max_size`; nothing has changed.
            trio.ClosedResourceError: the group or the cache is closed; nothing has changed.
            RuntimeError: this is not the Trio run of the cache, or a step of it is under way.
        """
        pool, state = self._pool, self._state
        pool.owner.check("SchedulingGroup.resize")
        unknown = changes.keys() - GroupChanges.__annotations__.keys()
        if unknown:
            known = ", ".join(GroupChanges.__annotations__)
            raise TypeError(
                f"resize() of a group knows no limit {shown(min(unknown))}: it changes {known}"
            )
        if state.record.closed or pool.closed:
            raise pool.closed_error(state.record, f"group {shown(self.name)}")
        self._groups.resize(state, evolve(state.now, **changes))

    def __repr__(self) -> str:
        state = "closed" if self._state.record.closed else "open"
        borrowed, total = self._state.capacity.count()
        return (
            f"<SchedulingGroup {self.name!r} {state}: {borrowed} of {total} tokens, "
            f"{self.shares} shares>"
        )


@final
class _Inside:
    """A group, as the context of the code that runs in it has it."""

    __slots__ = ("group", "pool", "state")

    def __init__(self, group: SchedulingGroup, state: GroupState, pool: Pool) -> None:
        self.group = group
        self.state = state
        self.pool = pool


@public
def current_group() -> SchedulingGroup | None:
    """Return the innermost scheduling group around the caller, of any cache, or None."""
    groups = _groups.get()
    return groups[-1].group if groups else None


groups_around = _groups.get
"""Returns the groups around the caller, of all caches, innermost last."""


def _check_name(name: object) -> str:
    """Return the name of a group.

    Raises:
        TypeError: it is not a str.
        ValueError: it is empty or not printable.
    """
    if not isinstance(name, str):
        raise TypeError(f"a group's name must be a str, got {shown(name)}")
    if not name or not name.isprintable():
        raise ValueError(f"a group's name must be printable and not empty, got {shown(name)}")
    return name


@final
class Groups:
    """The scheduling groups of one cache: its own, ``"main"``, and those that are open."""

    def __init__(self, pool: Pool, service: trio.Nursery) -> None:
        self._pool = pool
        self.main: GroupState = GroupState.new(MAIN, pool.config.main_group)
        """The state of its own group."""
        self.main_group: SchedulingGroup = made(SchedulingGroup, self, pool, self.main, service)
        self.states: dict[str, GroupState] = {MAIN: self.main}
        """{name: state} of the groups that are open."""
        self.lease: MakeLease = make_lease
        """Makes the leases of all groups."""
        self._opening: set[str] = set()
        self._reserved: dict[GroupState, int] = {}  # {group: bytes that it has reserved}
        self._reserve(self.main, pool.config.max_size)
        self._note_opened(self.main)

    def find(self) -> GroupState:
        """Return the innermost group of this cache around the caller, or ``"main"``."""
        for inside in reversed(_groups.get()):
            if inside.pool is self._pool:
                return inside.state
        return self.main

    @ki_safe_contextmanager
    async def open(self, name: str, limits: GroupLimits) -> AsyncIterator[SchedulingGroup]:
        """Open a group, run the block in it, and close it.

        Raises:
            ValueError: the name is in use, or a parameter is out of range, or the groups would have
                more reserved than the cache may keep.
            TypeError: the name is not a str.

        **Checkpoint:** as of a `trio.Nursery`; leaving waits for threads that run a call.
        **Cancellation:** as of a `trio.Nursery`; the group's instances are closed all the same.
        """
        limits.check(_check_name(name))
        if name in self.states or name in self._opening:
            raise ValueError(f"a scheduling group {shown(name)} is open already")
        state = GroupState.new(name, limits)
        self._reserve(state, self._pool.config.max_size)
        self._opening.add(name)
        try:
            async with trio.open_nursery() as nursery:
                group = made(SchedulingGroup, self, self._pool, state, nursery)
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
            self._reserved.pop(state, None)

    def resize(self, state: GroupState, limits: GroupLimits) -> None:
        """Change the limits of a group; see `SchedulingGroup.resize`."""
        pool, name = self._pool, state.record.name
        limits.check(name)
        self._check_reserved({**self._reserved, state: limits.reserved_size}, pool.config.max_size)
        self._change(state, limits)

    def resize_cache(self, config: CacheConfig) -> None:
        """Change the limits of the cache, and of its own group; see `InstanceCache.resize`."""
        main = evolve(
            self.main.now,
            max_size=config.main_max_size,
            reserved_size=config.main_reserved_size,
            cpu_limit=config.main_cpu_limit,
        )
        self._check_reserved({**self._reserved, self.main: main.reserved_size}, config.max_size)
        self._pool.resize(config)
        if main != self.main.now:
            self._change(self.main, main)

    def _change(self, state: GroupState, limits: GroupLimits) -> None:
        pool, now = self._pool, trio.current_time()
        origin = pool.journal.here()
        old = state.limits
        state.resize(limits)
        self._reserved[state] = limits.reserved_size
        pool.journal.group_resized(state.record.name, limits, now, origin)
        if limits.cpu_limit != old.cpu_limit:
            name, share = state.record.name, state.share
            pool.runner.cpu_limits.change(name, share, limits.cpu_limit, now)
            pool.set_aside(state.record.entries)
        step = pool.policy.resize_group(state.record, limits.max_size, limits.reserved_size, now)
        pool.carry_out(step, now, lambda: origin, in_pieces=True)
        if pool.freed is not None:
            pool.freed()

    def _reserve(self, state: GroupState, max_size: int) -> None:
        reserved = {**self._reserved, state: state.limits.reserved_size}
        self._check_reserved(reserved, max_size)
        self._reserved = reserved
        name, share = state.record.name, state.share
        now = trio.current_time()
        self._pool.runner.cpu_limits.change(name, share, state.limits.cpu_limit, now)
        self._pool.policy.open_group(state.record)

    def _check_reserved(self, reserved: dict[GroupState, int], max_size: int) -> None:
        """Raise `ValueError` if groups would have more reserved than the cache may keep."""
        total = sum(reserved.values())
        if total > max_size:
            parts = ", ".join(
                f"{shown(state.record.name)} {size}" for state, size in reserved.items() if size
            )
            raise ValueError(
                f"groups would have {total} bytes reserved ({parts}), but max_size is {max_size}: "
                "raise it, or lower a reserved_size"
            )

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
            if group.share.budget is not None:
                pool.runner.cpu_limits.end(group.share.budget, now)
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
        for entry, end in list(pool.background.items()):
            while entry.group in records and (left := end()) is not None:
                await outlast(left)

    def _note_opened(self, state: GroupState) -> None:
        """Note for the log that a group is open."""
        self._pool.journal.group_opened(state.record.name, state.now)


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
