"""The inside of a cache as frozen values: see `trio_wasmcache.testing.snapshot`."""

from __future__ import annotations

from typing import final

from attrs import frozen

from ..._public import public_in_testing


@public_in_testing
@final
@frozen(kw_only=True)
class ResidentSnapshot:
    """One instance or seat of a cache."""

    number: int
    """Its number in the events of the log; none is used twice while the cache is open."""
    function: str
    """Name of its function."""
    args: tuple[str, ...]
    """Argument types of its function."""
    generation: int
    """Generation of its function; it may have been replaced since."""
    group: str
    """Name of its scheduling group."""
    state: str
    """``"idle"``, ``"loading"`` or ``"running"``."""
    seat: bool
    """Whether there is nothing native: it is a seat, or is being loaded on one."""
    size: int
    """Bytes, as measured when it was loaded or last became idle; 0 while it is loading."""
    address_space: int
    """Bytes of addresses that it reserves."""
    mappings: int
    """Number of memory mappings that it reserves."""
    uses: int
    """Number of leases of it that have ended."""
    last_used: float | None
    """When it last became idle (`trio.current_time()`), or None if it never did."""
    order: int | None
    """Place in the order of last use: that of the least recently used is 0. None unless idle."""


@public_in_testing
@final
@frozen(kw_only=True)
class GroupSnapshot:
    """One scheduling group of a cache."""

    name: str
    """As given to `InstanceCache.scheduling_group`; ``"main"`` is the cache's own."""
    closed: bool
    """Whether it has begun to close."""
    shares: int
    """Part of the CPU, relative to the other groups'."""
    virtual_time: float
    """Fuel burnt so far by its guests, and CPU time of the host for them, in units of fuel per
    share. After a time without calls it begins with that of the other groups."""
    capacity: float
    """Number of tokens; `math.inf` if there is no limit."""
    tokens: int
    """Number of tokens that are taken, those taken by the application itself included."""
    tasks: int
    """Number of tasks that have a token and hold or wait for an instance."""
    waiting_for_token: int
    """Number of tasks that wait for a token."""
    waiting_for_instance: int
    """Number of tasks that wait because `concurrency` instances of a function are in use."""
    waiting_for_room: int
    """Number of tasks that wait for code, stack, addresses or `max_running_size`."""


@public_in_testing
@final
@frozen(kw_only=True)
class ModuleSnapshot:
    """One module that a registered function, an instance or a waiting task uses."""

    digest: str
    """SHA-256 of the bytes that were registered, in hexadecimal."""
    functions: tuple[str, ...]
    """Registered functions that share it, such as ``"fib(i64)"``."""
    artifact_size: int
    """Bytes of the compiled code at rest, and, compressed, of the module as it was given."""
    code_size: int
    """Bytes of the executable code, once loaded."""
    loaded: bool
    """Whether the executable code is there now."""
    users: int
    """Number of instances and seats of it."""
    running: int
    """Number of these that are loading or running."""


@public_in_testing
@final
@frozen(kw_only=True)
class TurnsSnapshot:
    """The turns of the event loop, or those of worker threads."""

    slots: int
    """Number of turns at the same time."""
    taken: int
    """Number of turns that are taken now."""
    waiting: int
    """Number of calls that wait for a turn."""
    begun: int
    """Number of turns that have begun since the cache was opened."""


@public_in_testing
@final
@frozen(kw_only=True)
class CompilesSnapshot:
    """The slots for compiling."""

    running: int
    """Number of compiles that run, abandoned ones included until their threads end."""
    waiting: int
    """Number of compiles that wait for a slot."""


@public_in_testing
@final
@frozen(kw_only=True)
class NativeSnapshot:
    """Native memory and objects that are open."""

    instances: int
    """Number of instances that are not closed; a seat has none."""
    modules: int
    """Number of modules whose executable code is loaded."""
    scratch_size: int
    """Bytes of the scratch memories of `Lease.map`, in all instances."""
    results_size: int
    """Bytes that are kept for the results of the next batches."""
    pending_results_size: int
    """Bytes of results that were not returned yet."""


@public_in_testing
@final
@frozen(kw_only=True)
class CacheSnapshot:
    """The inside of a cache at one moment; nothing in it changes afterwards."""

    closed: bool
    """Whether the cache has begun to close."""
    residents: tuple[ResidentSnapshot, ...]
    """All instances and seats: first the idle ones, least recently used first, then those that are
    loading or running, in the order in which they were granted."""
    groups: tuple[GroupSnapshot, ...]
    """The open groups, oldest first; ``"main"`` is the first."""
    modules: tuple[ModuleSnapshot, ...]
    """The modules, oldest first."""
    loop: TurnsSnapshot
    """Turns of the event loop, for slices of calls that run inline."""
    threads: TurnsSnapshot
    """Turns of worker threads, for calls that run longer than `offload_after` slices."""
    reserved: tuple[str, ...]
    """Functions that are being registered, such as ``"fib(i64)"``: another `register` of the same
    raises `DuplicateFunctionError` meanwhile."""
    compiles: CompilesSnapshot
    """Slots for compiling."""
    native: NativeSnapshot
    """Native memory and objects that are open."""

    def group(self, name: str) -> GroupSnapshot:
        """Return an open group.

        Args:
            name: name of the group.

        Raises:
            LookupError: no group of that name is open.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise LookupError(f"no group {name!r} is open, only {[g.name for g in self.groups]}")

    def residents_of(self, function: str) -> tuple[ResidentSnapshot, ...]:
        """Return the instances and seats of a function and its overloads.

        Args:
            function: name of the function.
        """
        return tuple(resident for resident in self.residents if resident.function == function)
