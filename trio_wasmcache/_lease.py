"""What `acquire` gives: one instance, held for the length of a block, and the calls into it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, final

import trio
from trio.lowlevel import Task, checkpoint, checkpoint_if_cancelled, current_task

from ._abi.plain import exact_values
from ._abi.protocol import Crossing
from ._batch import map_columns
from ._calls import call_converted, call_in_steps, failed, lifted, rest_of_call
from ._capacity import GroupState
from ._core.errors import GuestError
from ._core.events import Reason
from ._core.fair import BURST_FUEL, CALL_FUEL, Share
from ._core.records import Entry, Request
from ._engine.seam import (
    UNDER_WAY,
    GuestFunction,
    GuestInstance,
    GuestMemory,
    InexactError,
    NoMemoryError,
)
from ._held import Held
from ._memory import LeaseMemory
from ._runner import Job, context_of_call
from ._shell import STACK_SHARE, Shell
from ._taking import give_back, give_back_token, leave, recycle, take

if TYPE_CHECKING:
    from ._function import Function
    from ._registry import Registered

T = TypeVar("T")


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
    _task: Task | None = None
    """Who has the group's token for it."""
    _request: Request | None = None
    _held: Held | None = None
    """What is held, or was."""
    _guest: GuestFunction | None = None
    """None while no call may begin."""
    _job: Job | None = None
    _apart: trio.CancelScope | None = None
    """Around what is waited for that is no turn; cancelling it is only for the end of the lease."""
    _busy = False
    _caller: Task | None = None
    """Who has the call under way, while it is busy."""
    _broken = False
    _closed = False
    _end_reason = Reason.CORRUPTED
    _loading: Registered | None = None
    _fuel: int | None = None
    _began = 0.0
    _total_fuel = 0
    _at = 0.0

    def __init__(
        self,
        shell: Shell,
        group: GroupState,
        name: str,
        args: Sequence[str],
        warm: bool = False,
    ) -> None:
        self._shell = shell
        self._group = group
        self._name = name
        self._args = args
        self._warm = warm
        self._entered = False
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
        shell = self._shell
        if get_ident() != shell.thread:
            raise shell.owner.refusal("acquire", waits=True)
        if self._entered:
            raise RuntimeError("a lease is entered once; acquire again for another")
        try:
            task = current_task()
        except RuntimeError:
            raise shell.owner.refusal("acquire", waits=True) from None
        self._entered = True
        await checkpoint()
        # The fast path of a hit: short on purpose, like the policy's part of it. With no token
        # free, nothing idle, or much to log, it goes the long way, in `_taking`.
        group = self._group
        capacity = group.capacity
        owners = capacity.owners
        try:
            # First, as a name may be of a class whose `__hash__` does whatever it likes.
            function = shell.exact[self._name, self._args]  # type: ignore[index]
        except (KeyError, TypeError):
            return await take(self, task)
        if (
            capacity.limiter is None
            and task not in owners
            and len(owners) < capacity.total
            and not (self._warm or shell.journal.log_uses)
        ):
            now = shell.now
            request = shell.policy.hit(function, group.record, task, self, now())
            if request is not None:
                owners[task] = 1
                self._task = task
                self._request = request
                self._held = held = request.instance.ready  # type: ignore[union-attr]
                self._guest = held.guest
                self._total_fuel = shell.config.total_fuel
                return self
        return await take(self, task)

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the instance back. No checkpoint, whatever happened in the block."""
        task, shell = self._task, self._shell
        if task is None:
            return
        if kind is GeneratorExit and not shell.owner.may_leave():
            # A coroutine is finalized that was never run to its end: maybe at any line.
            self._task = None
            shell.exits.add(functools.partial(leave, self, task))
            return
        if get_ident() != shell.thread:
            raise shell.owner.refusal("acquire", waits=True)
        self._task = None
        # Both are there as long as a call may begin; to look again would cost what it is to save.
        request: Any = self._request
        held: Any = self._held
        group = self._group
        capacity, now = group.capacity, shell.now
        owners = capacity.owners
        try:
            # The fast path again: of a hit after which the instance rests, and nobody is waiting.
            measure = None if self._guest is None else held.measure
            if measure is not None and shell.policy.rest(request, measure(held.native), now()):
                self._guest = self._request = None
                if not shell.evictor.expects_expiry:
                    shell.evictor.expect_expiry()
            else:
                give_back(self, task)
                return
            if capacity.limiter is None and owners[task] == 1:
                del owners[task]
            else:
                give_back_token(self, task)
        except RecursionError:
            shell.exits.add(functools.partial(leave, self, task))

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
        if get_ident() != self._shell.thread:
            raise self._shell.owner.refusal("call", waits=True)
        # The fast path: short on purpose. What does not end in its first slice, or fails, or needs
        # memory to cross, goes on in `_calls`.
        guest, held, share = self._guest, self._held, self._group.share
        if guest is None or held is None:
            raise self._unusable()
        if share.burst >= BURST_FUEL:
            await self._shell.runner.pass_turn(share)
            if guest is not self._guest:
                raise self._unusable()
        else:
            await checkpoint_if_cancelled()
        if held.steps is not None:
            return await call_in_steps(self, held.crossing, values)
        lower, fuel = held.lower, self._total_fuel
        self._guest = None
        try:
            begin = held.begin
            if lower is None:
                try:
                    result = begin(values, fuel)
                except InexactError:
                    lowered: Sequence[Any] = exact_values(guest.type, values)
                    if self._request is None:  # as below
                        raise self._unusable() from None
                    result = begin(lowered, fuel)
            else:
                lowered = lower(values)
                if self._request is None:  # code of the values' own has run, and ended the lease
                    raise self._unusable()
                result = begin(lowered, fuel)
        except NoMemoryError as error:  # for its stack: none of the guest has run
            self._guest = guest
            self._shell.relieve(held.entry.function.key, STACK_SHARE, error)
            return await self.call(*values)
        except GuestError as error:
            raise failed(self, error, values) from None
        except (TypeError, ValueError, OverflowError):
            if self._request is None:
                raise self._unusable() from None
            self._guest = guest
            return await call_converted(self, guest, values)
        except BaseException as error:
            failed(self, error, values)
            raise
        if result is UNDER_WAY:
            result = await rest_of_call(self, guest, values)
        else:
            self._guest = guest
            self._calls += 1
            self._fuel = burnt = fuel - held.left.value
            share.virtual_time += burnt / share.shares
            share.burst += burnt + CALL_FUEL
            uses, place = held.uses, burnt.bit_length()  # `UseStats.add`, written out
            uses.fuel += burnt
            try:
                uses.counts[place] += 1
            except KeyError:
                uses.count_in(place)
        return result if held.lift is None else lifted(self, result, values)

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
        return await map_columns(self, columns, rows)

    # -- what else a lease tells

    @property
    def memory(self) -> LeaseMemory:
        """The guest's exported memory: `read(at, n)`, `write(at, data)`, `size` in bytes.

        Each raises `IndexError` outside of the memory, `trio.BusyResourceError` while a call runs
        (but not in a host function of that call), `LookupError` if the module exports none, and
        `TypeError` for what is no address, no length or no bytes.
        """
        return LeaseMemory(self)

    @property
    def fuel_consumed(self) -> int | None:
        """Fuel that the last call burnt, failed ones included; None before the first."""
        return self._fuel

    @property
    def size(self) -> int:
        """What the instance may touch now: all memories, tables x 8, scratch, one page (bytes)."""
        self._check_thread("size")
        if self._task is None or self._native is None or not (self._guest or self._broken):
            raise self._unusable()
        return self._native.measure()

    @property
    def function(self) -> Function:
        """The function that is held: the generation that was current when it was granted."""
        if self._registered is None:
            raise self._unusable()
        function: Function = self._registered.function
        return function

    def __repr__(self) -> str:
        state = "not entered"
        if self._busy:
            state = "in a call"
        elif self._job is not None:
            state = "loading"
        elif self._broken:
            state = "broken"
        elif self._native is not None:
            state = "held"
        elif self._request is not None or self._closed or self._registered is not None:
            state = "ended"
        return f"<Lease of {self._name!r} in group {self._group.record.name!r}: {state}>"

    # -- inside: what is held, seen from the parts of a lease that are files of their own

    @property
    def _share(self) -> Share:
        return self._group.share

    @property
    def _native(self) -> GuestInstance | None:
        """None when nothing is held, or no longer."""
        return None if self._request is None or self._held is None else self._held.native

    @property
    def _registered(self) -> Registered | None:
        """Of what is held, was, or is being loaded."""
        return self._loading if self._held is None else self._held.registered

    @property
    def _crossing(self) -> Crossing:
        assert self._held is not None
        return self._held.crossing

    @property
    def _entry(self) -> Entry:
        assert self._held is not None
        return self._held.entry

    def _check_thread(self, method: str, *, waits: bool = False) -> None:
        if get_ident() != self._shell.thread:
            raise self._shell.owner.refusal(method, waits=waits)

    def _check_open(self) -> None:
        if self._closed:
            raise self._shell.closed_error(self._group.record)

    def _make_usable(self, guest: GuestFunction | None) -> None:
        """A long call is over, and well: the next may come, if the lease is still held."""
        if not self._closed and self._request is not None:
            self._guest = guest

    def _end_under_a_call(self, reason: Reason) -> None:
        """The block ended, or the cache closes, while another task has a call under way here.

        Whoever runs the call is told, and gives the instance back when nobody is inside any more.
        """
        self._closed = True
        self._guest = None
        self._end_reason = reason
        if self._job is not None:
            self._job.end()
        if self._apart is not None:
            self._apart.cancel()

    async def _unless_closed(self, wait: Callable[..., Awaitable[T]], *args: Any) -> T:
        """What `wait` gives: a load, or work in a thread. The end of the lease ends it.

        **Checkpoint:** as of `wait`.
        **Cancellation:** as of `wait`.

        Raises:
            trio.ClosedResourceError: the lease, its group or the cache was closed meanwhile.
        """
        with trio.CancelScope() as self._apart:
            try:
                result = await wait(*args)
            except Exception:
                if not self._closed:
                    raise
            if not self._closed:
                return result
        raise self._unusable()

    def _unusable(self) -> Exception:
        if self._closed:
            closed = self._group.record.closed or self._shell.closed
            ended = trio.ClosedResourceError("this lease has ended")
            return self._shell.closed_error(self._group.record) if closed else ended
        if self._busy:
            return trio.BusyResourceError("another call of this lease is under way")
        if self._job is not None:
            return trio.BusyResourceError("the instance of this lease is being made")
        if self._broken:
            return trio.BrokenResourceError(
                f"an earlier call of {self._name!r} in this lease failed or was cancelled: "
                "its instance is spoilt; acquire another"
            )
        if self._registered is None:
            return RuntimeError("enter the lease first: async with cache.acquire(...) as lease")
        if self._native is not None:
            return trio.BusyResourceError("another thread has a call of this lease under way")
        return trio.ClosedResourceError("this lease has ended")

    def _guest_memory(self) -> GuestMemory:
        """The memory as it can be used now: suspended in a host call, or the instance's own."""
        self._check_thread("memory")
        memory: GuestMemory | None
        if self._job is not None:
            # In a call, or being loaded: then only for its own host functions.
            call = self._job.native.host_call
            if call is None or context_of_call.get(None) is not self:
                raise self._unusable()
            memory = call.memory
        elif self._task is None or self._native is None or not (self._guest or self._broken):
            raise self._unusable()
        else:
            memory = self._native.memory
        if memory is None:
            raise LookupError(f"the module of {self._name!r} exports no memory")
        return memory

    def _shut(self, reason: Reason) -> trio.Event | None:
        """The cache or the group closes: give the instance up now, if there is one.

        Returns an event if a thread is in it: set when it is out; then nothing was given up yet.
        """
        self._end_under_a_call(reason)
        if self._job is not None and self._job.in_thread:
            return self._job.out_of_thread
        if self._request is not None:
            recycle(self, reason)
        return None
