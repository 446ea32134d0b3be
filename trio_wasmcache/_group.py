"""Scheduling groups: a nursery with a name, a capacity and CPU shares, and who is in which."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import trio
from trio.lowlevel import Task

from ._core.config import bad_capacity, bad_shares
from ._core.fair import Share
from ._core.records import GroupRecord
from ._ctrl_c import opening
from ._shell import Shell

if TYPE_CHECKING:
    from ._lease import Lease

# The groups around the running code, innermost last; of all caches.
_groups: contextvars.ContextVar[tuple[SchedulingGroup, ...]] = contextvars.ContextVar(
    "trio_wasmcache_groups", default=()
)


@final
class SchedulingGroup:
    """A nursery whose tasks share a capacity and a part of the CPU.

    .. code-block::

        async with cache.scheduling_group("oltp", capacity=8, shares=200) as group:
            group.start_soon(worker)

    Instances never cross groups. At most `capacity` of its tasks hold or wait for instances at the
    same time; a task counts once, however many leases it nests. When groups compete for the CPU,
    each gets it in proportion to its `shares`; one alone gets all of it.

    Made by `InstanceCache.scheduling_group`.
    """

    def __init__(
        self, shell: Shell, record: GroupRecord, nursery: trio.Nursery, capacity: float, shares: int
    ) -> None:
        self._shell = shell
        self._record = record
        self._nursery = nursery
        self._chain = (*_groups.get(), self)
        self._share = Share(shares)
        # Who has tokens is in the record. Trio's limiter costs a hit as much as all else that it
        # does, so there is one only while somebody waits, or since somebody looked.
        self._capacity = capacity
        self._limiter: trio.CapacityLimiter | None = None
        self._watched = False
        # {around a wait for a token: (whose it is, how to note that it was in vain)}
        self._waiting: dict[trio.CancelScope, tuple[Task, Callable[[str], None]]] = {}
        record.others = self._others_have_tokens

    @property
    def name(self) -> str:
        """As given; unique among the open groups of its cache."""
        return self._record.name

    @property
    def shares(self) -> int:
        """Its part of the CPU, relative to the other groups'."""
        return self._share.shares

    @property
    def limiter(self) -> trio.CapacityLimiter:
        """A token for each task that holds or waits for an instance; `total_tokens` may be set."""
        self._watched = True
        return self._need_limiter()

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The nursery's: cancelling it cancels the group's tasks and its block."""
        return self._nursery.cancel_scope

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """`trio.Nursery.start_soon`; inside, this group is the current one."""
        self._nursery.start_soon(
            _run_inside, self._chain, async_fn, args, name=async_fn if name is None else name
        )

    async def start(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> Any:
        """`trio.Nursery.start`; inside, this group is the current one.

        **Checkpoint:** always.
        **Cancellation:** as `trio.Nursery.start`: the child is cancelled too.
        """
        return await self._nursery.start(
            _start_inside, self._chain, async_fn, args, name=async_fn if name is None else name
        )

    def acquire(self, name: str, args: Sequence[str]) -> Lease:
        """`InstanceCache.acquire` in this group, whatever group the caller is in."""
        lease: Lease = self._shell.new_lease(self, name, args)
        return lease

    def __repr__(self) -> str:
        state = "closed" if self._record.closed else "open"
        borrowed, total = self._count_tokens()
        return (
            f"<SchedulingGroup {self.name!r} {state}: {borrowed} of {total} tokens, "
            f"{self.shares} shares>"
        )

    def note_opened(self) -> None:
        """Note for the log that it is open."""
        self._shell.journal.group_opened(self.name, self._count_tokens()[1], self.shares)

    # -- tokens: one for a task, however many leases it nests

    def _take_token_nowait(self, task: Task) -> bool:
        """Take the task's token, or share the one it has; False if it has to wait."""
        owners = self._record.token_owners
        held = owners.get(task)
        if held is not None:
            owners[task] = held + 1
            return True
        if self._limiter is None:
            if len(owners) >= self._capacity:
                return False
        else:
            try:
                self._limiter.acquire_on_behalf_of_nowait((self._record, task))
            except trio.WouldBlock:
                return False
        owners[task] = 1
        return True

    async def _wait_for_token(
        self, task: Task, note_block: Callable[[], None], note_end: Callable[[str], None]
    ) -> None:
        """Wait for a token for `task`, which holds nothing here; first, `note_block` is called.

        `note_end` is called where the group is closed meanwhile, in that step.

        **Checkpoint:** always.
        **Cancellation:** no token is taken.
        """
        waits = self._shell.policy.waits
        owners = self._record.token_owners
        waits.begin(task, self._record)
        note_block()
        with trio.CancelScope() as scope:
            self._waiting[scope] = task, note_end
            try:
                await self._need_limiter().acquire_on_behalf_of((self._record, task))
                owners[task] = 1
            finally:
                del self._waiting[scope]
                waits.end(task)
                if not (self._waiting or self._watched):
                    self._limiter = None
        if scope.cancelled_caught:
            raise closed_group(self)

    def _give_back_token(self, task: Task) -> None:
        owners = self._record.token_owners
        held = owners[task]
        if held == 1:
            del owners[task]
            if self._limiter is not None:
                self._limiter.release_on_behalf_of((self._record, task))
        else:
            owners[task] = held - 1

    def _end_token_waits(self) -> None:
        for scope, (task, note_end) in self._waiting.items():
            self._shell.policy.waits.end(task)
            note_end(trio.ClosedResourceError.__name__)
            scope.cancel()

    def _others_have_tokens(self) -> bool:
        return self._count_tokens()[0] > len(self._record.token_owners)

    def _count_tokens(self) -> tuple[int, float]:
        """How many are borrowed, of how many."""
        if self._limiter is None:
            return len(self._record.token_owners), self._capacity
        return self._limiter.borrowed_tokens, self._limiter.total_tokens

    def _need_limiter(self) -> trio.CapacityLimiter:
        """Trio's limiter, in which those who have tokens have them."""
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(self._capacity)
            for task in self._record.token_owners:
                self._limiter.acquire_on_behalf_of_nowait((self._record, task))
        return self._limiter


def current_group() -> SchedulingGroup | None:
    """The innermost scheduling group around the caller, of whichever cache; None outside of all."""
    groups = _groups.get()
    return groups[-1] if groups else None


groups_around = _groups.get
"""The groups around the caller, innermost last; of all caches."""


def find_group(shell: Shell, main: SchedulingGroup) -> SchedulingGroup:
    """The innermost group of the shell's cache, or its main group."""
    for group in reversed(_groups.get()):
        if group._shell is shell:
            return group
    return main


def closed_group(group: SchedulingGroup) -> trio.ClosedResourceError:
    """The error for using a group that is closed, or whose cache is."""
    what = "cache" if group._shell.closed else f"scheduling group {group.name!r}"
    return trio.ClosedResourceError(f"the {what} is closed")


def check_group(name: object, capacity: object, shares: object) -> None:
    """`TypeError` or `ValueError` for what can't make a group."""
    if not isinstance(name, str):
        raise TypeError(f"a group's name must be a str, got {name!r}")
    if not name or not name.isprintable():
        raise ValueError(f"a group's name must be printable and not empty, got {name!r}")
    for what, problem in (("capacity", bad_capacity(capacity)), ("shares", bad_shares(shares))):
        if problem is not None:
            raise ValueError(f"{what} of group {name!r} {problem}")


@opening
async def open_group(
    shell: Shell, name: str, capacity: float, shares: int
) -> AsyncIterator[SchedulingGroup]:
    """A nursery that is a scheduling group; the block runs in it. Closing is the caller's."""
    record = GroupRecord(name)
    async with trio.open_nursery() as nursery:
        group = SchedulingGroup(shell, record, nursery, capacity, shares)
        group.note_opened()
        reset = _groups.set(group._chain)
        try:
            yield group
        finally:
            _groups.reset(reset)


async def _run_inside(
    chain: tuple[SchedulingGroup, ...],
    async_fn: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
) -> None:
    _groups.set(chain)
    await _coroutine(async_fn, args)


async def _start_inside(
    chain: tuple[SchedulingGroup, ...],
    async_fn: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    *,
    task_status: trio.TaskStatus[Any],
) -> None:
    _groups.set(chain)
    await _coroutine(functools.partial(async_fn, task_status=task_status), args)


def _coroutine(async_fn: Any, args: tuple[Any, ...]) -> Awaitable[Any]:
    """What to await for a task; the two common mistakes get the message they deserve."""
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
