"""What `acquire` gives: one instance, held for the length of a block, and the calls into it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

import trio
from trio.lowlevel import Task

from ._abi.protocol import Crossing
from ._batch import map_columns
from ._calls import call_in_steps, failed, is_null_call, lifted, rest_of_call
from ._core.errors import DeadlockError, GuestError
from ._core.events import Reason
from ._core.fair import BURST_FUEL, CALL_FUEL
from ._core.headroom import check_headroom
from ._core.isolation import SEAT_SIZE
from ._core.records import Entry, FunctionRecord, Instance, Request
from ._engine.seam import UNDER_WAY, GuestFunction, GuestInstance, GuestMemory
from ._group import SchedulingGroup, closed_group
from ._load import grant
from ._memory import LeaseMemory
from ._runner import Job, context_of_call
from ._shell import Shell
from ._uses import tell_acquired, tell_recycled, tell_token_block, tell_token_wait_ended

if TYPE_CHECKING:
    from ._function import Function
    from ._registry import Registered


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

    __slots__ = (
        "_args",
        "_at",
        "_began",
        "_broken",
        "_busy",
        "_calls",
        "_closed",
        "_crossing",
        "_end_reason",
        "_entered",
        "_entry",
        "_fuel",
        "_group",
        "_guest",
        "_job",
        "_name",
        "_native",
        "_number",
        "_registered",
        "_request",
        "_share",
        "_shell",
        "_task",
        "_total_fuel",
        "_warm",
    )

    def __init__(
        self,
        shell: Shell,
        group: SchedulingGroup,
        name: str,
        args: Sequence[str],
        warm: bool = False,
    ) -> None:
        self._shell = shell
        self._group = group
        self._share = group._share
        self._name = name
        self._args = args
        self._warm = warm
        self._request: Request | None = None
        self._registered: Registered | None = None
        self._native: GuestInstance | None = None
        self._guest: GuestFunction | None = None
        self._crossing: Crossing
        self._entry: Entry
        self._began: float
        self._task: Task | None = None
        self._job: Job | None = None
        self._busy = False
        self._broken = False
        self._closed = False
        self._end_reason = Reason.CORRUPTED
        self._entered = False
        self._calls = 0
        self._fuel: int | None = None
        self._total_fuel = shell.config.total_fuel
        self._number: int | None = None
        self._at = 0.0

    # -- the block

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Lease:
        """Wait for the instance, and load it if there is none idle.

        **Checkpoint:** always.
        **Cancellation:** nothing is held.

        Raises:
            UnknownFunctionError: no such function is registered (or no longer).
            LoadError, LinkError: its instance can't be made.
            CodeMemoryError: its code can't fit into `max_code_size`.
            DeadlockError: waiting would never end.
            trio.ClosedResourceError: the group or the cache is closed.
        """
        if self._entered:
            raise RuntimeError("a lease is entered once; acquire again for another")
        self._entered = True
        shell, group = self._shell, self._group
        await trio.lowlevel.checkpoint()
        if group._record.closed or shell.closed:
            raise closed_group(group)
        if shell.config.log_uses:
            self._at = trio.current_time()
        task = trio.lowlevel.current_task()
        blocked = not group._take_token_nowait(task)
        if blocked:
            record = shell.registry.find(self._name, self._args)  # unknown: say so before waiting
            self._at = trio.current_time()
            try:
                await group._wait_for_token(task, functools.partial(self._note_block, record))
            except BaseException as error:
                entry = shell.policy.residents.entry(record, group._record)
                shell.policy.note_error(entry, type(error).__name__)
                if shell.config.log_uses and not isinstance(error, DeadlockError):
                    tell_token_wait_ended(shell, record, group.name, error)
                raise
        try:
            await self._acquire(task, blocked)
        except BaseException:
            group._give_back_token(task)
            raise
        self._task = task
        return self

    async def _acquire(self, task: Task, blocked: bool) -> None:
        shell, group = self._shell, self._group
        policy = shell.policy
        # A RecursionError half-way through the policy's books would leave them wrong.
        check_headroom()
        record = shell.registry.find(self._name, self._args)
        if group._record.closed or shell.closed:
            raise closed_group(group)
        request = policy.request(record, group._record, task, self._warm)
        request.payload = self
        request.blocked = blocked
        if blocked:
            request.since = self._at
        await grant(shell, group, request)
        instance = request.instance
        assert instance is not None
        self._request = request
        self._entry = entry = instance.entry
        registered: Registered = entry.function.payload
        self._registered = registered
        self._crossing = registered.crossing
        native: GuestInstance = instance.payload
        if native.yield_fuel != shell.config.yield_fuel:
            native.set_yield_fuel(shell.config.yield_fuel)  # resized since it was made
        self._native = native
        self._guest = native.function(registered.export)
        if shell.config.log_uses:
            now = trio.current_time()
            tell_acquired(shell, request, self._at, now)
            self._at = now

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the instance back. No checkpoint, whatever happened in the block."""
        task, self._task = self._task, None
        if task is None:
            return
        if self._request is not None:
            if self._busy:
                self._end_under_a_call(Reason.CORRUPTED)
            else:
                self._recycle()
        self._group._give_back_token(task)

    def _recycle(self, reason: Reason | None = None) -> None:
        """Give the instance back to the policy. No thread is in it."""
        request, self._request = self._request, None
        native, self._native = self._native, None
        clean = self._guest is not None
        self._guest = None
        assert request is not None
        assert native is not None
        instance, registered = request.instance, self._registered
        assert instance is not None
        assert registered is not None
        shell, seat = self._shell, False
        if not clean:
            # A call failed or is half-way, whoever has it under way.
            reason = reason or Reason.CORRUPTED
            native.abandon()
        elif not registered.keeps_state and reason is None:
            seat = self._leave_seat(instance, native)
        size = SEAT_SIZE if seat else native.measure()
        now = trio.current_time()
        step = shell.policy.recycle(request, size, now, reason, seat)
        if shell.config.log_uses:
            tell_recycled(shell, request, instance, size, self._at, now)
        if step is not None:
            shell.act(step, now)
        if shell.sleep.deadline == math.inf:
            shell.expect_expiry()

    def _leave_seat(self, instance: Instance, native: GuestInstance) -> bool:
        """The next lease must find nothing of this one: the instance is closed."""
        instance.payload = None
        native.close()
        return True

    def _end_under_a_call(self, reason: Reason) -> None:
        """The block ended, or the cache closes, while another task has a call under way here.

        Whoever runs the call is told, and gives the instance back when nobody is inside any more.
        """
        self._closed = True
        self._guest = None
        self._end_reason = reason
        if self._job is not None:
            self._job.end()

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
            trio.BusyResourceError: the instance is in use by another task.
            trio.BrokenResourceError: an earlier call in this lease failed.
            trio.ClosedResourceError: the lease, its group or the cache is closed.
            Exception: whatever a host function raised, as it is.

        **Checkpoint:** cancellation is checked before the guest starts and between slices; others
        run after each slice and about every 0.5 ms of short calls. A call that finished returns
        its result.
        **Cancellation:** the guest is stopped within a slice, and its instance is dropped.
        """
        # The fast path: short on purpose. What does not end in its first slice, or fails, or needs
        # memory to cross, goes on in `_calls`. `_guest` is None while no call may begin.
        guest, share = self._guest, self._share
        if guest is None:
            raise self._unusable()
        if share.burst >= BURST_FUEL:
            await self._shell.runner.pass_turn(share)
            if guest is not self._guest:
                raise self._unusable()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        crossing, fuel = self._crossing, self._total_fuel
        if crossing.steps is not None:
            return await call_in_steps(self, crossing, values)
        self._guest = None
        try:
            result = guest.begin(values if crossing.lower is None else crossing.lower(values), fuel)
        except GuestError as error:
            raise failed(self, error, values) from None
        except (TypeError, ValueError, OverflowError):
            self._guest = guest
            if is_null_call(self, values):
                return None
            raise crossing.explain(values) from None
        except BaseException as error:
            failed(self, error, values)
            raise
        if result is UNDER_WAY:
            result = await rest_of_call(self, guest, values)
        else:
            self._guest = guest
            self._calls += 1
            self._fuel = burnt = fuel - guest.fuel_left()
            share.virtual_time += burnt / share.shares
            share.burst += burnt + CALL_FUEL
            self._entry.uses.fuels.add(burnt)
        return result if crossing.lift is None else lifted(self, result, values)

    @trio.lowlevel.enable_ki_protection
    async def map(self, columns: Any, *, rows: int | None = None) -> Any:
        """Call the function for every row of some columns: much faster than a call for each.

        Args:
            columns: for each argument a buffer of its type (`array`, NumPy), which is not copied
                first, a list, Arrow data, or a scalar for all rows. Or an Arrow table.
            rows: how many, where no column says so. `total_fuel` is for each of them.

        Returns:
            A column for each result, in a tuple if there are several: an Arrow array if one came
            in, a list if a None did or if it is not numbers, else an `array.array`, for bools a
            `memoryview`. Rows with a null give null as they do in `call`.

        Raises:
            TypeError, ValueError, OverflowError: a column, or the value in a row, does not fit.
            GuestError, LoadError: the guest failed in row `row`; there is no room for a driver.
        **Checkpoint:** always; others run after each slice.
        **Cancellation:** the guest is stopped within a slice, and its instance is dropped.
        """
        return await map_columns(self, columns, rows)

    # -- what else a lease tells

    @property
    def memory(self) -> LeaseMemory:
        """The guest's exported memory: `read(at, n)`, `write(at, data)`, `size` in bytes.

        Each raises `IndexError` outside of the memory, `trio.BusyResourceError` while a call runs
        (but not in a host function of that call), and `LookupError` if the module exports none.
        """
        return LeaseMemory(self)

    @property
    def fuel_consumed(self) -> int | None:
        """Fuel that the last call burnt, failed ones included; None before the first."""
        return self._fuel

    @property
    def size(self) -> int:
        """What the instance may touch now: all memories, tables x 8, scratch, one page (bytes)."""
        if self._native is None or (self._guest is None and not self._broken):
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
        elif self._broken:
            state = "broken"
        elif self._native is not None:
            state = "held"
        elif self._request is not None or self._closed or self._registered is not None:
            state = "ended"
        return f"<Lease of {self._name!r} in group {self._group.name!r}: {state}>"

    # -- inside

    def _check_open(self) -> None:
        if self._closed:
            raise closed_group(self._group)

    def _make_usable(self, guest: GuestFunction | None) -> None:
        """A long call is over, and well: the next may come, if the lease is still held."""
        if not self._closed:
            self._guest = guest

    def _unusable(self) -> Exception:
        if self._closed:
            closed = self._group._record.closed or self._shell.closed
            ended = trio.ClosedResourceError("this lease has ended")
            return closed_group(self._group) if closed else ended
        if self._busy:
            return trio.BusyResourceError("another call of this lease is under way")
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
        memory: GuestMemory | None
        if self._job is not None:
            # In a call, or being loaded: then only for its own host functions.
            call = self._job.native.host_call
            if call is None or context_of_call.get(None) is not self:
                raise self._unusable()
            memory = call.memory
        elif self._native is None or (self._guest is None and not self._broken):
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
            self._recycle(reason)
        return None

    def _note_block(self, record: FunctionRecord) -> None:
        """The acquire has to wait for a token; its request does not exist yet."""
        self._shell.policy.note_token_block(record, self._group._record)
        if self._shell.config.log_uses:
            tell_token_block(self._shell, record, self._group.name)
