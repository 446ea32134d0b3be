"""Makes instances: loads their code, instantiates them, runs their start, and binds them."""

from __future__ import annotations

import functools
from typing import Final, final

from .._core.config import CacheConfig
from .._core.errors import (
    FuelExhaustedError,
    GuestError,
    LinkError,
    LoadError,
    StackOverflowError,
    TrapError,
)
from .._core.keys import FunctionKey
from .._core.output import last_words
from .._core.policy.records import Entry, FunctionRecord, Request
from .._core.policy.shares import BURST_FUEL, Share
from .._core.wasm.admission import import_name
from .._engine.base import GuestInstance, NoMemoryError
from .._runtime.bound import BoundFunction, Definition, bind, fuel_limit, refusal, stack_limit
from .._runtime.relief import Reserved
from .._runtime.start import Start
from .pool import Pool


@final
class Making:
    """One instance in the making, for a lease.

    Args:
        pool: the pool of the cache.
        share: share of the group that is charged.
        lease: the result of `current_lease` in host functions that its start calls.
        request: the request of the lease.
    """

    start: Start | None = None
    """Start of the instance; None before and afterwards."""
    _native: GuestInstance | None = None  # while it starts

    def __init__(self, pool: Pool, share: Share, lease: object, request: Request) -> None:
        self._pool = pool
        self._share = share
        self._lease = lease
        self._request = request

    async def run(self, definition: Definition) -> GuestInstance:
        """Load the code if it is not loaded, make an instance, and run its start to the end.

        Raises:
            GuestError: its start failed; `explain` makes the error for callers of it.
            NoMemoryError: the system has no memory for it; nothing is left, so try again.
            LoadError: the engine could not make it.

        **Checkpoint:** maybe.
        **Cancellation:** nothing is left.
        """
        pool, share, module = self._pool, self._share, definition.module
        self.start = start = Start(
            pool.runner, share, module.hosts, self._lease, pool.journal, self._request
        )
        try:
            code = module.loaded or module.get_nowait()
            if code is None:
                code = await start.unless_ended(module.get)
            if share.burst >= BURST_FUEL:
                await pool.runner.pass_turn(share)
                start.check_open()
            config = pool.config
            make = code.instantiate
            if code.at_once and share.budget is not None:
                make = pool.runner.cpu_limits.metered(share, make)
            self._native = native = make(config.total_fuel, config.yield_fuel)
            if module.samples_of is not None:
                entry = self._request.entry
                native.pass_samples(module.samples_of(entry.group.name, entry.function.key))
            await start.run(
                native,
                config.total_fuel,
                initialize=module.initialize,
                load_fuel=module.load_fuel,
                at_once=code.at_once,
            )
            if definition.resets and native.measure() <= config.max_instance_size:
                native.mark()
        except GuestError as error:
            self.close()
            await pool.lines.locate(error, module)
            raise
        except BaseException as error:
            self.close()
            if isinstance(error, NoMemoryError):
                start.check_open()  # if another task has ended it, it is not tried again
            raise
        finally:
            self.start = self._native = None
        return native

    async def load(self, definition: Definition) -> None:
        """Load the code if it is not loaded, and make no instance: that is enough for a seat.

        Raises:
            LoadError: the engine could not make it.
            NoMemoryError: the system has no memory for it.

        **Checkpoint:** maybe.
        **Cancellation:** nothing is left.
        """
        pool, module = self._pool, definition.module
        self.start = start = Start(
            pool.runner, self._share, module.hosts, self._lease, pool.journal, self._request
        )
        try:
            if module.loaded is None and module.get_nowait() is None:
                await start.unless_ended(module.get)
        finally:
            self.start = None

    def close(self) -> None:
        """Free the instance that is starting, if there is one; no thread runs it."""
        if self._native is not None:
            self._native.close()


def bind_metered(
    pool: Pool, share: Share, definition: Definition, entry: Entry, native: GuestInstance
) -> BoundFunction:
    """Bind the function of an entry to an instance, for leases of the group with that share.

    If the group has a `cpu_limit`, the beginning of each call charges its CPU time.
    """
    limits = pool.runner.cpu_limits
    metered = functools.partial(limits.metered_call, share) if share.budget else None
    recorded = pool.runtime.recorder is not None
    return bind(definition, entry, native, pool.config.total_fuel, metered, recorded)


def needed(function: FunctionRecord) -> Reserved:
    """Return what one more instance reserves, if its code has to be loaded, too."""
    module = function.module
    return (
        function.address_space + module.code_size,
        max(1, function.mappings + module.mappings),
    )


# {code of a trap: (kind of a segment, where it belongs)}
_SEGMENTS: Final = {
    "out of bounds memory access": ("a data", "memory"),
    "out of bounds table access": ("an element", "table"),
}


def _failed(error: GuestError, definition: Definition) -> str:
    """Return what failed in instantiating: a segment, or the start function."""
    found = _SEGMENTS.get(error.code) if isinstance(error, TrapError) else None
    if found is None or error.backtrace:  # with frames, it is code that accessed it
        return f"its start function failed: {error}"
    kind, place = found
    imports = definition.module.artifact.info.imports
    bases = [import_name(item.module, item.name) for item in imports if item.kind == "global"]
    hint = f"; check what imports= gives for {', '.join(bases[:10])}" if bases else ""
    if any(item.kind == place for item in imports):
        hint += f"; a {place} that is imported begins with the size that its import declares"
    return f"{kind} segment lies outside of its {place} ({error}){hint}"


def explain(
    definition: Definition, key: FunctionKey, error: BaseException, config: CacheConfig
) -> BaseException:
    """Return the error that the caller gets for an error of loading."""
    if isinstance(error, GuestError) and getattr(error, "code", "") != "host":
        limit = ""
        if isinstance(error, FuelExhaustedError):
            limit = f"; {fuel_limit(config.total_fuel)}"
        elif isinstance(error, StackOverflowError):
            limit = f"; {stack_limit(config)}"
        if error.refused_memory is not None:
            limit = f"{limit}; {refusal(error.refused_memory, definition.module.artifact)}"
        trace = "".join(f"\n  {frame}" for frame in error.backtrace)
        return LoadError(
            f"{key} could not be instantiated: {_failed(error, definition)}{limit}"
            f"{last_words(error.output)}{trace}",
            output=error.output,
            refused_memory=error.refused_memory,
        )
    if isinstance(error, GuestError):  # wasmtime itself failed: it got no memory, or no stack
        return LoadError(f"{key} could not be instantiated: {error}")
    if isinstance(error, (LoadError, LinkError)):
        return type(error)(f"{key} could not be instantiated: {error}")
    return error
