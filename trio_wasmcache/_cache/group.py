"""Scheduling groups: nurseries with a name, a capacity and CPU shares; which group code runs in."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, final

import trio
from attrs import frozen

from .._core.config import bad_capacity, bad_shares
from .._ki import ki_safe_contextmanager
from .._owner import calls_user
from .._pool.capacity import GroupState
from .._pool.pool import Pool
from .lease import Lease

# The groups around the running code, of all caches, innermost last.
_groups: contextvars.ContextVar[tuple[_Inside, ...]] = contextvars.ContextVar(
    "trio_wasmcache_groups", default=()
)


@final
class SchedulingGroup:
    """A nursery whose tasks share a capacity and a part of the CPU.

    .. code-block::

        async with cache.scheduling_group("oltp", capacity=8, shares=200) as group:
            group.start_soon(worker)

    Instances never cross groups. At most `capacity` of its tasks hold or wait for instances at the
    same time; a task counts once, however many leases it nests. Groups that compete for the CPU get
    it in proportion to their `shares`; a group alone gets all of it.

    Use `InstanceCache.scheduling_group` to make one.
    """

    def __init__(self, pool: Pool, state: GroupState, nursery: trio.Nursery) -> None:
        self._pool = pool
        self._state = state
        self._nursery = nursery
        self._chain = (*_groups.get(), _Inside(self, state, pool))

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
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Start a task as `trio.Nursery.start_soon` does; in it, this group is the current one.

        Raises:
            RuntimeError: this is not the Trio run of the cache, or a step of it is under way.
        """
        self._pool.owner.check("SchedulingGroup.start_soon")
        self._nursery.start_soon(
            _run_inside, self._chain, async_fn, args, name=async_fn if name is None else name
        )

    async def start(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> Any:
        """Start a task as `trio.Nursery.start` does; in it, this group is the current one.

        Returns:
            The value that the task passes to ``task_status.started()``.

        Raises:
            RuntimeError: this is not the Trio run of the cache, or a step of it is under way; or
                the task ended without calling ``task_status.started()``.

        **Checkpoint:** always.
        **Cancellation:** as `trio.Nursery.start`: the child is cancelled too.
        """
        self._pool.owner.check("SchedulingGroup.start", waits=True)
        return await self._nursery.start(
            _start_inside, self._chain, async_fn, args, name=async_fn if name is None else name
        )

    def acquire(self, name: str, args: Sequence[str]) -> Lease:
        """Acquire as `InstanceCache.acquire` does, in this group, whatever group the caller is in.

        See `Lease.__aenter__` for the errors of entering the lease.
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


def current_group() -> SchedulingGroup | None:
    """Return the innermost scheduling group around the caller, of any cache, or None."""
    groups = _groups.get()
    return groups[-1].group if groups else None


groups_around = _groups.get
"""Returns the groups around the caller, of all caches, innermost last."""


def find_group(pool: Pool, main: GroupState) -> GroupState:
    """Return the state of the innermost group of the pool's cache, or of its main group."""
    for inside in reversed(_groups.get()):
        if inside.pool is pool:
            return inside.state
    return main


def check_group(name: object, capacity: object, shares: object) -> None:
    """Check the parameters of a group.

    Raises:
        TypeError: the name is not a str.
        ValueError: the name is empty or not printable, or capacity or shares are out of range.
    """
    if not isinstance(name, str):
        raise TypeError(f"a group's name must be a str, got {name!r}")
    if not name or not name.isprintable():
        raise ValueError(f"a group's name must be printable and not empty, got {name!r}")
    for what, problem in (("capacity", bad_capacity(capacity)), ("shares", bad_shares(shares))):
        if problem is not None:
            raise ValueError(f"{what} of group {name!r} {problem}")


@ki_safe_contextmanager
async def open_group(pool: Pool, state: GroupState) -> AsyncIterator[SchedulingGroup]:
    """Open a nursery that is a scheduling group, and run the block in it. The caller closes it.

    **Checkpoint:** as of a `trio.Nursery`.
    **Cancellation:** as of a `trio.Nursery`.
    """
    async with trio.open_nursery() as nursery:
        group = SchedulingGroup(pool, state, nursery)
        note_opened(pool, state)
        reset = _groups.set((*_groups.get(), _Inside(group, state, pool)))
        try:
            yield group
        finally:
            _groups.reset(reset)


def note_opened(pool: Pool, state: GroupState) -> None:
    """Note for the log that a group is open."""
    _, capacity = state.capacity.count()
    pool.journal.group_opened(state.record.name, capacity, state.share.shares)


@calls_user
async def _run_inside(
    chain: tuple[_Inside, ...],
    async_fn: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
) -> None:
    _groups.set(chain)
    await _coroutine(async_fn, args)


@calls_user
async def _start_inside(
    chain: tuple[_Inside, ...],
    async_fn: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    *,
    task_status: trio.TaskStatus[Any],
) -> None:
    _groups.set(chain)
    await _coroutine(functools.partial(async_fn, task_status=task_status), args)


@calls_user
def _coroutine(async_fn: Any, args: tuple[Any, ...]) -> Awaitable[Any]:
    """Call a task's function and return what to await; explain the two common mistakes.

    Raises:
        TypeError: it was given a coroutine, or a function that is not async.
    """
    if inspect.iscoroutine(async_fn):
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
    awaitable: Awaitable[Any] = result
    return awaitable
