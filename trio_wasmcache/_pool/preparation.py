"""Prepares functions: makes calls in one instance, and reads what new instances are to begin with.

1. The calls are calls like any other: metered, limited, cancellable, and charged to the group that
   registers. From their second slice on they run in threads, as registering is not urgent.
2. The instance is in no book of the policy, as a module that is compiled is in none. It is closed
   whatever happens.
3. Random bytes and clocks, host functions that are not pure, and references to anything of the
   host's are refused: they would be the same in each instance, or not be there.
4. All failures become errors of `register` that name the call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeVar, final

import trio
from attrs import define, evolve, frozen

from .._abi.base import Binding, Guest, Invoke, Steps
from .._abi.plain import exact_values
from .._core.config import CacheConfig, SystemLimits
from .._core.errors import GuestError, LoadError
from .._core.keys import FunctionKey
from .._core.policy.policy import Policy
from .._core.policy.records import Entry, FunctionRecord, Request
from .._core.text import printable
from .._core.wasm.preparation import UnfreezableError
from .._engine.base import GuestInstance, HostCall
from .._runtime.activity import Activity
from .._runtime.bound import Definition, bind
from .._runtime.call import Call, Runtime
from .._runtime.extism import BlockHost
from .._runtime.host import AnyHost, HostFunction
from .._runtime.module import CachedModule
from .._runtime.prepare import Prepare, Prepared
from .._runtime.source_lines import SourceLines
from .._runtime.start import Start
from .._runtime.wit_host import WitFunction, WitHost
from .._threads import run_in_thread
from .capacity import GroupState

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
class Preparing:
    """The preparation of one module.

    Args:
        key: the function that is registered.
        runtime: parts of the cache that all calls share.
        lines: the source lines of the cache.
        config: the limits.
        group: the group that is charged.
        system: limits of the system.
    """

    def __init__(
        self,
        key: FunctionKey,
        runtime: Runtime,
        lines: SourceLines,
        config: CacheConfig,
        group: GroupState,
        system: SystemLimits,
    ) -> None:
        self.start: Activity | None = None
        """The call under way, or the start of the instance."""
        self.call: Call | None = None
        """The call under way, if it is not the start."""
        self.definition: None = None
        self.hosted = False
        """Whether the guest called host functions of the application."""
        self._what = str(key)
        self._key = key
        # Its books are nobody's: what is counted of these calls is not of the function's.
        self._runtime = evolve(runtime, policy=Policy(config, system))
        self._lines = lines
        self._config = config
        self._group = group
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
            NoMemoryError: the system has no memory for it.
            Exception: whatever a pure host function, or the conversion of values, raised.

        **Checkpoint:** always.
        **Cancellation:** the guest is stopped within a slice, and its instance is closed.
        """
        native: GuestInstance | None = None
        try:
            loaded = await module.get()
            native = loaded.instantiate(self._config.total_fuel, self._config.yield_fuel)
            # A start may ask for the same as the call that is the least strict.
            self._allowed = any(call.prepare.allow_frozen_random for call in calls)
            await self._step(
                "its start", module, self._run_start(native, module, lease, loaded.at_once)
            )
            for number, call in enumerate(calls, 1):
                self._allowed = call.prepare.allow_frozen_random
                where = f"call {number} of prepare, {call.prepare}"
                await self._step(where, module, self._run_call(native, module, call, lease))
            try:
                states = await run_in_thread(native.freeze, limiter=_freezers())
            except UnfreezableError as error:
                raise LoadError(f"{self._what} can't be prepared: {error}") from None
            try:
                abi_state = copy.deepcopy(native.state)
            except Exception as error:
                raise LoadError(
                    f"{self._what} can't be prepared: its ABI keeps something in Guest.state that "
                    f"can't be copied: {error!r:.200}"
                ) from error
        finally:
            if native is not None:
                native.close()
            module.unload()
        return Prepared.of(
            states,
            abi_state=abi_state,
            calls=len(calls),
            fuel=self._fuel,
            frozen=tuple(self._drawn),
            hosted=self.hosted,
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
                error.add_note(self._note(where))
            raise
        except Exception as error:
            if not isinstance(error, trio.ClosedResourceError):
                error.add_note(self._note(where))
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
            self._request(module),
        )
        start.watch, start.aside = self, True
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
            self.start = None

    def _request(self, module: CachedModule) -> Request:
        """Return a request for what the guest writes to the log; it is in no book, either."""
        record = FunctionRecord(self._key, 0, module.record)
        return Request(Entry(record, self._group.record), self)

    async def _run_call(
        self, native: GuestInstance, module: CachedModule, one: PrepareCall, lease: object
    ) -> None:
        prepare, binding = one.prepare, one.binding
        record = FunctionRecord(FunctionKey(prepare.export, prepare.args), 0, module.record)
        definition = Definition(None, prepare.returns, module, binding, prepare.export, False)
        record.define(definition)
        bound = bind(
            definition,
            Entry(record, self._group.record),
            native,
            self._config.total_fuel,
        )
        if bound.gives_null(prepare.values):
            return
        make = binding.steps
        if make is None:
            make = _plain_steps(bound.guest.type, binding, prepare.export)
        call = Call(self._runtime, bound, self._group.share, lease, self._request(module))
        call.watch, call.aside = self, True
        self.start = self.call = call
        try:
            await call.run_steps(make, prepare.values)
        finally:
            self.start = self.call = None
            self._fuel += call.fuel
            call.close()


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
