"""Prepares functions: makes calls in one instance, and reads what new instances are to begin with.

1. The calls are calls like any other: metered, limited, cancellable, and charged to the group that
   registers. From their second slice on they run in threads, as registering is not urgent.
2. The instance is in the books of the policy as one that is loading, of generation 0 of the
   function, in that group: it waits for capacity, idle ones are evicted for it, and all limits of
   running instances hold. It is no lease, so it needs no token, and is neither hit nor miss.
3. Random bytes and clocks, host functions that are not pure, and references to anything of the
   host's are refused: they would be the same in each instance, or not be there.
4. All failures become errors of `register` that name the call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar, final

import trio
from attrs import define, evolve, frozen
from trio.lowlevel import Abort, RaiseCancelT, Task

from .._abi.base import Binding, Guest, Invoke, Steps
from .._abi.plain import exact_values
from .._core.config import CacheConfig, SystemLimits
from .._core.errors import GuestError, LoadError, WasmCacheError
from .._core.events import Reason
from .._core.keys import FunctionKey
from .._core.policy.lifecycle import IllegalStepError
from .._core.policy.policy import Policy
from .._core.policy.records import (
    Entry,
    FunctionRecord,
    Preparation,
    Request,
    RequestClosed,
    Stage,
)
from .._core.text import printable
from .._core.wasm.preparation import FrozenState, UnfreezableError
from .._engine.base import GuestInstance, HostCall
from .._log import Origin
from .._runtime.activity import Activity
from .._runtime.bound import BoundFunction, Definition, bind
from .._runtime.call import Call, Runtime
from .._runtime.extism import BlockHost
from .._runtime.host import AnyHost, HostFunction
from .._runtime.module import CachedModule
from .._runtime.prepare import Prepare, Prepared
from .._runtime.source_lines import SourceLines
from .._runtime.start import Start
from .._runtime.user_code import add_note
from .._runtime.wit_function import WitFunction
from .._runtime.wit_host import WitHost
from .._threads import run_in_thread
from .capacity import GroupState
from .pool import Pool

T = TypeVar("T")
# Threads that read the state of instances at the same time: some milliseconds each.
MAX_FREEZES: Final = 2
# Characters of the name of an import, for messages.
MAX_SHOWN: Final = 300


@frozen
class PrepareCall:
    """One of the calls, and how its values cross."""

    prepare: Prepare
    binding: Binding


@final
@define(eq=False)
class _Watched:
    """A host function while the guest is prepared."""

    host: AnyHost
    function: HostFunction | WitFunction | None
    """Function of the application, if it is one."""
    preparing: Preparing
    name: str
    serve_alone: None = None

    @property
    def type(self) -> Any:
        """Type of the function."""
        return self.host.type

    def misfit(self, wanted: Any, /) -> str:
        """Return words for a message: its type."""
        return self.host.misfit(wanted)

    def serve(self, call: HostCall) -> Any:
        """Answer a call, or refuse to."""
        if self.function is not None:
            self.preparing.hosted = True
            if isinstance(self.host, WitHost):
                raise Refused(
                    f"the guest called {printable(self.host.what, MAX_SHOWN)}, and functions that "
                    "are given for the imports of a component can't be called while it is "
                    "prepared: call them later, or pass what they return in Prepare(values=...)"
                )
            if not self.function.pure:
                raise Refused(
                    f"the guest called the host function {self.name}, whose effects can't be kept: "
                    "give HostFunction(..., pure=True) if it changes nothing, and always returns "
                    "the same for the same arguments"
                )
        return self.host.serve(call)


class Refused(Exception):
    """What a guest does can't be kept for other instances; the message says why."""


@final
class Booking:
    """The instance of a guest that is prepared, in the books of the policy, and what it waits for.

    Tasks that register functions wait for it: a wait of its own for capacity that only they could
    end is in vain, and ends with a `DeadlockError`.

    Args:
        pool: the pool of the cache.
        group: the group that registers.
        key: the function that is registered.
    """

    activity: Activity | None = None
    """What is under way in the instance: its start, or a call; None: nothing is."""

    def __init__(self, pool: Pool, group: GroupState, key: FunctionKey) -> None:
        self.group = group
        self.key = key
        self._pool = pool
        self._preparation = Preparation(str(key))
        self._tasks: dict[Task, None] = {}  # those that wait for it
        self._request: Request | None = None
        self._module: CachedModule | None = None
        self._native: GuestInstance | None = None
        self._read: trio.Event | None = None  # set when the thread has read its state
        self._fuel = 0

    # -- the tasks that wait for it

    def join(self, task: Task) -> None:
        """Note that a task waits for the preparation.

        Raises:
            DeadlockError: it holds what the preparation waits for.
        """
        self._pool.policy.waits.register(task, self._preparation)
        self._tasks[task] = None
        self._note_tasks()

    def leave(self, task: Task) -> None:
        """Note that a task waits no longer."""
        self._pool.policy.waits.end_registration(task)
        del self._tasks[task]
        self._note_tasks()

    def _note_tasks(self) -> None:
        request = self._request
        if request is not None and request.stage in (Stage.ROOM, Stage.LOADING):
            self._pool.journal.preparation_awaited(request, self._tasks)

    # -- the instance

    async def enter(self, module: CachedModule, definition: Definition) -> Request:
        """Take capacity for an instance of a module; return the request that holds it.

        Raises:
            CodeMemoryError: an empty cache could not run it.
            DeadlockError: the tasks that wait for it hold what it would wait for.
            trio.ClosedResourceError: the group or the cache is closed.

        **Checkpoint:** if it has to wait.
        **Cancellation:** nothing is held.
        """
        pool, policy, group = self._pool, self._pool.policy, self.group.record
        artifact = module.artifact
        if group.closed or pool.closed:
            raise self._closed_error()
        task = self._preparation.owner = trio.lowlevel.current_task()
        record = FunctionRecord.to_prepare(
            self.key, module.record, module.worst_size, artifact.address_space, artifact.mappings
        )
        record.define(definition)
        now = pool.now()
        # It is no acquire, so its wait is not counted as the block of one.
        request = policy.request(record, group, task, True, self._end, now)
        self._request, self._module = request, module
        pool.journal.preparation_requested(request, self._tasks, now, self._origin())
        try:
            step = policy.acquire(request, now)
        except WasmCacheError as error:
            pool.journal.abandoned(request, type(error).__name__, now)
            raise
        pool.carry_out(step, now, self._origin)
        while request.stage is Stage.ROOM:
            await self._wait(request)
        if request.stage is Stage.LOADING:
            pool.journal.preparation_granted(request, pool.now())
            return request
        if request.error is None or isinstance(request.error, RequestClosed):
            raise self._closed_error()  # closing has noted it in the log already
        pool.journal.abandoned(request, type(request.error).__name__, pool.now())
        raise request.error

    async def _wait(self, request: Request) -> None:
        def abort(_: RaiseCancelT) -> Abort:
            return self._pool.abandon(request, self._origin)

        request.asleep = True
        await trio.lowlevel.wait_task_rescheduled(abort)

    @property
    def request(self) -> Request:
        """The request that holds the capacity, or held it.

        Raises:
            IllegalStepError: it has not asked for any.
        """
        if self._request is None:
            raise IllegalStepError("this preparation has not asked for capacity yet")
        return self._request

    def hold(self, native: GuestInstance) -> None:
        """Keep the instance, which `give_back` closes.

        Raises:
            trio.ClosedResourceError: the group or the cache was closed meanwhile.
        """
        self._native = native
        if self.request.stage is not Stage.LOADING:
            native.close()
            raise self._closed_error()

    def note(self, native: GuestInstance, fuel: int, bound: BoundFunction | None = None) -> None:
        """Note what the instance may touch by now, for statistics; nothing runs in it.

        Args:
            native: the instance.
            fuel: units that it has burnt so far.
            bound: function of it that is called next, if one is.

        Raises:
            trio.ClosedResourceError: the group or the cache was closed meanwhile.
        """
        self.check_open()
        self._fuel = fuel
        self._pool.policy.note_size(self.request, native.measure())
        if bound is not None:
            self.request.held.hold(bound)

    def check_open(self) -> None:
        """Raise `trio.ClosedResourceError` if the group or the cache was closed meanwhile."""
        if self.request.stage is not Stage.LOADING:
            raise self._closed_error()

    async def read(self, native: GuestInstance) -> Mapping[str, FrozenState]:
        """Return the state of the instance, in which nothing runs.

        Raises:
            UnfreezableError: it can't be read.
            trio.ClosedResourceError: the group or the cache was closed meanwhile.

        **Checkpoint:** always.
        **Cancellation:** the thread is waited for.
        """
        self.check_open()
        read = self._read = trio.Event()
        try:
            return await run_in_thread(native.freeze, limiter=_freezers())
        finally:
            self._read = None
            read.set()

    def give_back(self, error: BaseException | None) -> None:
        """Close the instance, and give back all that it held; do nothing if it holds nothing."""
        request, native = self._request, self._native
        if native is not None:
            native.close()
        if request is not None and request.stage is Stage.LOADING:
            pool, now = self._pool, self._pool.now()
            request.held.release()
            name = None if error is None else type(error).__name__
            pool.journal.preparation_ended(request, now, name, self._fuel)
            pool.carry_out(pool.policy.failed(request, now), now, self._origin)
        if self._module is not None and not self._module.record.users:
            self._module.unload()  # it may have been loaded after the group was closed

    def _end(self, _reason: Reason) -> trio.Event | None:
        """Give it all back, as the group or the cache closes: see `GiveUp`."""
        activity = self.activity
        if activity is not None:
            activity.end(self._closed_error)
            if activity.out_of_thread is not None:
                return activity.out_of_thread
        if self._read is not None:
            return self._read
        self.give_back(self._closed_error())
        return None

    def _closed_error(self) -> trio.ClosedResourceError:
        return self._pool.closed_error(self.group.record, str(self.key))

    def _origin(self) -> Origin:
        """Return the origin of its events: its task has the context of one that registers."""
        task = self._preparation.owner
        assert isinstance(task, Task)
        return Origin(task.context)


@final
class Preparing:
    """The preparation of one module.

    Args:
        runtime: parts of the cache that all calls share.
        lines: the source lines of the cache.
        config: the limits.
        booking: the books of its instance.
        system: limits of the system.
    """

    def __init__(
        self,
        runtime: Runtime,
        lines: SourceLines,
        config: CacheConfig,
        booking: Booking,
        system: SystemLimits,
    ) -> None:
        self.start: Activity | None = None
        """The call under way, or the start of the instance."""
        self.call: Call | None = None
        """The call under way, if it is not the start."""
        self.definition: None = None
        self.hosted = False
        """Whether the guest called host functions of the application."""
        self._what = str(booking.key)
        self._booking = booking
        # Its books are nobody's: what is counted of these calls is not of the function's.
        self._runtime = evolve(runtime, policy=Policy(config, system))
        self._lines = lines
        self._config = config
        self._group = booking.group
        self._drawn: dict[str, None] = {}
        self._allowed = True
        self._fuel = 0

    # -- what the guest does, for a `Watch`

    def drawn(self, what: str, remedy: str) -> None:
        """Note that the guest gets something that is not the same each time; see `Watch`."""
        if not self._allowed:
            raise Refused(
                f"the guest asked for {what}, which would then be the same in every instance: give "
                f"{remedy}, or Prepare(..., allow_frozen_random=True)"
            )
        self._drawn[what] = None

    def changed(self, what: str) -> NoReturn:
        """Refuse that the guest changes something of its host's; see `Watch`."""
        raise Refused(f"the guest {what}, which can't be kept for other instances")

    def watched(self, name: str, host: AnyHost) -> AnyHost:
        """Return a host function as it is while the guest is prepared."""
        function: HostFunction | WitFunction | None = None
        if isinstance(host, HostFunction):
            function = host
        elif isinstance(host, WitHost):
            function = host.given
        if isinstance(host, BlockHost):
            function = host.function
        return _Watched(host, function, self, name)

    # -- the calls

    async def run(
        self, module: CachedModule, calls: Sequence[PrepareCall], lease: object
    ) -> Prepared:
        """Make an instance, make the calls, and return what it has become.

        Args:
            module: compiled with `Edits.observed`, with host functions that are `watched`.
            calls: the calls.
            lease: the result of `current_lease` in host functions.

        Raises:
            LoadError: the start or a call failed, or something of it can't be kept.
            CodeMemoryError, DeadlockError: there is no capacity for it; see `Booking.enter`.
            NoMemoryError: the system has no memory for it.
            trio.ClosedResourceError: the group or the cache is closed.
            Exception: whatever a pure host function, or the conversion of values, raised.

        **Checkpoint:** always.
        **Cancellation:** the guest is stopped within a slice, and its instance is closed.
        """
        booking, problem = self._booking, None
        try:
            first = calls[0]
            definition = _definition(module, first.prepare, first.binding)
            await booking.enter(module, definition)
            began = trio.current_time()
            loaded = await module.get()
            booking.check_open()
            native = loaded.instantiate(self._config.total_fuel, self._config.yield_fuel)
            booking.hold(native)
            # A start may ask for the same as the call that is the least strict.
            self._allowed = any(call.prepare.allow_frozen_random for call in calls)
            await self._step(
                "its start", module, self._run_start(native, module, lease, loaded.at_once)
            )
            booking.note(native, self._fuel)
            for number, call in enumerate(calls, 1):
                self._allowed = call.prepare.allow_frozen_random
                where = f"call {number} of prepare, {call.prepare}"
                await self._step(where, module, self._run_call(native, module, call, lease))
            try:
                states = await booking.read(native)
            except UnfreezableError as error:
                raise LoadError(f"{self._what} can't be prepared: {error}") from None
            booking.check_open()
            try:
                abi_state = copy.deepcopy(native.state)
            except Exception as error:
                raise LoadError(
                    f"{self._what} can't be prepared: its ABI keeps something in Guest.state that "
                    f"can't be copied: {error!r:.200}"
                ) from error
        except BaseException as error:
            problem = error
            raise
        finally:
            booking.give_back(problem)
        return Prepared.of(
            states,
            abi_state=abi_state,
            calls=len(calls),
            fuel=self._fuel,
            frozen=tuple(self._drawn),
            hosted=self.hosted,
            seconds=trio.current_time() - began,
        )

    async def _step(self, where: str, module: CachedModule, step: Any) -> None:
        """Await a step; give its errors the name of the step."""
        try:
            await step
        except Refused as error:
            raise LoadError(f"{self._what} can't be prepared: in {where}, {error}") from None
        except GuestError as error:
            await self._lines.locate(error, module)
            raise LoadError(
                f"{self._what} can't be prepared: {where} failed: {error}",
                output=error.output,
                refused_memory=error.refused_memory,
            ) from error
        except (TypeError, ValueError, OverflowError) as error:
            if type(error) in (TypeError, ValueError, OverflowError) and len(error.args) == 1:
                error.args = (f"{self._what}: in {where}: {error.args[0]}",)
            else:
                add_note(error, self._note(where))
            raise
        except Exception as error:
            if not isinstance(error, trio.ClosedResourceError):
                add_note(error, self._note(where))
            raise

    def _note(self, where: str) -> str:
        """Return a note for an error that is left as it is: a host function has raised it."""
        return (
            f"in {where} of {self._what}: register prepares nothing if a host function fails; "
            "let it return a value, or leave the call out of prepare"
        )

    async def _run_start(
        self, native: GuestInstance, module: CachedModule, lease: object, at_once: bool
    ) -> None:
        runtime = self._runtime
        start = self.start = Start(
            runtime.runner,
            self._group.share,
            module.hosts,
            lease,
            runtime.log,
            self._booking.request,
        )
        start.watch, start.aside = self, True
        self._booking.activity = start
        fuel = self._config.total_fuel
        try:
            await start.run(
                native,
                fuel,
                at_once=at_once,
                initialize=module.initialize,
                load_fuel=module.load_fuel,
            )
        finally:
            self.start = self._booking.activity = None

    async def _run_call(
        self, native: GuestInstance, module: CachedModule, one: PrepareCall, lease: object
    ) -> None:
        prepare, binding = one.prepare, one.binding
        record = FunctionRecord(FunctionKey(prepare.export, prepare.args), 0, module.record)
        definition = _definition(module, prepare, binding)
        record.define(definition)
        bound = bind(
            definition,
            Entry(record, self._group.record),
            native,
            self._config.total_fuel,
        )
        booking = self._booking
        booking.note(native, self._fuel, bound)
        if bound.gives_null(prepare.values):
            return
        make = binding.steps
        if make is None:
            make = _plain_steps(bound.guest.type, binding, prepare.export)
        call = Call(self._runtime, bound, self._group.share, lease, booking.request)
        call.watch, call.aside = self, True
        self.start = self.call = booking.activity = call
        try:
            await call.run_steps(make, prepare.values)
        finally:
            self.start = self.call = booking.activity = None
            self._fuel += call.fuel
            call.close()
        booking.note(native, self._fuel)


def _definition(module: CachedModule, prepare: Prepare, binding: Binding) -> Definition:
    return Definition(None, prepare.returns, module, binding, prepare.export, False)


def _plain_steps(
    signature: Any, binding: Binding, export: str
) -> Callable[[Guest, tuple[object, ...]], Steps]:
    def steps(_guest: Guest, values: tuple[object, ...]) -> Steps:
        try:
            lowered = values if binding.lower is None else binding.lower(values)
            exact = exact_values(signature, lowered)
        except (TypeError, ValueError, OverflowError):
            raise binding.explain(values) from None
        result = yield Invoke(export, exact)
        return result if binding.lift is None else binding.lift(result)

    return steps


_limiters: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar(
    "trio_wasmcache freezers"
)


def _freezers() -> trio.CapacityLimiter:
    """Return the limiter of the threads that read the state of instances, of this run."""
    try:
        return _limiters.get()
    except LookupError:
        limiter = trio.CapacityLimiter(MAX_FREEZES)
        _limiters.set(limiter)
        return limiter
