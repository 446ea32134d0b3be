"""The events of the cache: frozen values, turned into log lines elsewhere.

Each event's name is ``wasmcache.<past participle>``. Fields are flat, with the unit in the name;
only `snapshot.SnapshotPart` has lists of objects, which are flat in turn.
Names reserved by the standard `logging` module (``args``, ``module``, ``name``) are not used, so
that every event can pass through it.

A change of a field's meaning, or the loss of one, raises `SCHEMA_VERSION`; a new field does not.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, NoReturn, Self, dataclass_transform

SCHEMA_VERSION = 1


class Reason(enum.Enum):
    """Why an instance or a seat was evicted."""

    SIZE = "size"
    COUNT = "count"
    IDLE = "idle"
    CODE = "code"
    STACK = "stack"
    OVERSIZED = "oversized"
    CORRUPTED = "corrupted"
    REMOVED = "removed"
    GROUP_CLOSED = "group_closed"
    CLOSED = "closed"
    ADDRESS_SPACE = "address_space"
    PROMOTED = "promoted"
    PROFILED = "profiled"


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Fact:
    """Base of events and of the items of a snapshot: frozen values with named fields.

    The annotations of a subclass are fields, which follow those of its base. Facts are equal if
    they are of one kind and all fields are.

    A class of `attrs` would serve, but generates and compiles its methods when it is imported, and
    sets each field of a new value by a call. There are forty kinds of events: making their classes
    took a tenth of importing and opening, and making two events a tenth of a miss. So the methods
    are written once, here, and a fact keeps the dictionary in which its arguments come.
    """

    field_names: ClassVar[tuple[str, ...]] = ()
    """Names of the fields, in order."""
    _defaults: ClassVar[dict[str, object]] = {}  # {field: default, or None}
    _required: ClassVar[frozenset[str]] = frozenset()  # those without a default

    def __init_subclass__(cls) -> None:
        own = [name for name, it in cls.__annotations__.items() if "ClassVar" not in it]
        cls.field_names += tuple(own)
        cls._defaults = cls._defaults | {name: getattr(cls, name, None) for name in own}
        cls._required |= {name for name in own if not hasattr(cls, name)}

    def __init__(self, **fields: Any) -> None:
        if not self._required <= fields.keys() <= self._defaults.keys():
            missing, unknown = self._required - fields.keys(), fields.keys() - self._defaults.keys()
            raise TypeError(
                f"{type(self).__name__}: missing {sorted(missing)}, unknown {sorted(unknown)}"
            )
        # A default stays in the class.
        object.__setattr__(self, "__dict__", fields)

    @classmethod
    def of(cls, values: Iterable[object]) -> Self:
        """Return a fact with these values of its fields, in order."""
        return cls.of_fields(dict(zip(cls.field_names, values, strict=True)))

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> Self:
        """Return a fact with these fields, unchecked; it keeps the dictionary.

        For those that every miss makes: keywords take four times the instructions.
        """
        fact = cls.__new__(cls)
        object.__setattr__(fact, "__dict__", fields)
        return fact

    def changed(self, **fields: Any) -> Self:
        """Return the same fact with other values of these fields."""
        return type(self)(**self.__dict__ | fields)

    def fields(self) -> dict[str, object]:
        """Return {field: value}, in order, None included."""
        # The log's thread does this for every event while the event loop waits for the GIL.
        return self._all()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._all() == other._all()

    def __hash__(self) -> int:
        return hash((type(self), *self._all().values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._all().items())
        return f"{type(self).__name__}({shown})"

    def _all(self) -> dict[str, object]:
        return self._defaults | self.__dict__

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")


class Event(Fact):
    """One event. The log adds the cache, the time and the order (see `Stamped`)."""

    name: ClassVar[str] = ""
    """Name of the event in the log."""

    @property
    def level(self) -> str:
        """The level at which it is logged."""
        return "info"


class OfLimits(Event):
    """Base of the events about the limits of the cache."""

    policy: str | None = None
    """Eviction policy, as in `CacheConfig.policy`; None: a log from before this field existed, of a
    cache with ``"lru"``."""
    max_size_bytes: int
    """Limit of the sizes of all idle instances together (bytes)."""
    max_instance_size_bytes: int
    """Size above which an instance is not kept (bytes)."""
    max_instances: int
    """Limit of the number of instances, idle and running."""
    max_code_size_bytes: int
    """Limit of the code of loaded modules and the stacks of running instances together (bytes)."""
    max_running_size_bytes: int | None = None
    """Limit of the worst sizes of running instances together (bytes); None: no limit."""
    max_result_size_bytes: int | None = None
    """Limit of the result of one call or batch (bytes); None: the log is older than the limit."""
    idle_timeout_seconds: float | None
    """Seconds after which an unused instance is evicted; None: never, or "adaptive"."""
    idle_timeout_policy: str | None = None
    """"fixed", or "adaptive": each function has a timeout of its own; None: a log from before this
    field existed, of a cache with a fixed one."""
    min_idle_timeout_seconds: float | None = None
    """Shortest adaptive timeout (seconds); None: the log is older than the limit."""
    max_idle_timeout_seconds: float | None = None
    """Longest adaptive timeout (seconds); None: the log is older than the limit."""
    max_address_space_bytes: int | None = None
    """Limit of the addresses that instances and code reserve (bytes); None: no limit."""


class OfConfig(OfLimits):
    """Base of the events about all limits of the cache, those included that never change."""

    max_mappings: int | None = None
    """Number of mappings that the kernel's limit leaves to this cache; None: no limit."""
    compiler: str | None = None
    """`CacheConfig.compiler`; None: a log from before this field existed."""
    stack_size_bytes: int
    """Size of the stack of a running instance (bytes): `CacheConfig.instance_stack_size`."""
    memory_limit_bytes: int
    """Limit of the memories of one instance together (bytes)."""
    table_limit_elements: int
    """Limit of the tables of one instance together (elements)."""
    total_fuel: int
    """Units of fuel that one call may burn."""
    yield_fuel: int
    """Units of fuel that one slice of a call may burn."""
    log_uses: bool
    """Whether acquires and recycles are logged, too."""


class Opened(OfConfig):
    """The cache was opened with these limits."""

    name = "wasmcache.opened"


class Resized(OfLimits):
    """The limits were changed to these."""

    name = "wasmcache.resized"


class Closed(Event):
    """The cache was closed, after this many leases and evictions. The last event except `Lost`."""

    name = "wasmcache.closed"
    hits: int
    """Number of leases granted from an idle instance or seat."""
    seat_hits: int | None = None
    """Number of hits for which an instance had to be loaded, on a seat. None: a log from before
    this field existed."""
    misses: int
    """Number of leases for which an instance had to be loaded."""
    blocks: int
    """Number of acquires that had to wait."""
    calls: int
    """Number of calls begun."""
    evictions: int
    """Number of instances and seats evicted, for any reason."""


class OfGroup(Event):
    """Base of the events about the limits of a scheduling group."""

    group: str
    """Name of the group."""
    capacity_tokens: int | None
    """Number of tasks that may hold or wait for instances; None: no limit."""
    shares: int
    """Part of the CPU, relative to other groups."""
    max_size_bytes: int | None = None
    """Limit of the sizes of its idle instances together (bytes); None: only the cache's."""
    reserved_size_bytes: int | None = None
    """Bytes of its idle instances that others' need does not evict for size; None: a log from
    before this field existed."""
    cpu_limit_cores: float | None = None
    """Limit of the CPU time of its guests (cores); None: no limit."""


class GroupOpened(OfGroup):
    """A scheduling group was opened."""

    name = "wasmcache.group_opened"


class GroupResized(OfGroup):
    """The limits of a scheduling group were changed to these; evictions may follow."""

    name = "wasmcache.group_resized"


class Throttled(Event):
    """Calls of a group waited, as it had used the CPU time of its `cpu_limit`; once a second."""

    name = "wasmcache.throttled"
    group: str
    """Name of the group."""
    cpu_limit_cores: float
    """Limit of the CPU time of its guests (cores)."""
    waits: int
    """Number of waits that have begun since the last such event."""
    wait_seconds: float
    """Time that its calls have waited since then, all together (seconds)."""
    waiting: int
    """Number of its calls that wait now."""


class GroupClosed(Event):
    """A scheduling group closes; the evictions of its idle instances follow."""

    name = "wasmcache.group_closed"
    group: str
    """Name of the group."""
    with_cache: bool
    """Whether it closes because the cache does."""


class OfFunction(Event):
    """Base of the events about a function."""

    function: str
    """Name of the function."""
    arg_types: str
    """Types of its arguments, separated by commas."""


class Registered(OfFunction):
    """A function can be acquired from now on."""

    name = "wasmcache.registered"
    generation: int
    """Number of this registration of the function; above 1, it replaced the one before."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    module_number: int
    """Number of the module, equal for functions that share it; equal bytes alone do not make it
    equal."""
    code_bytes: int
    """Size of the module's machine code, once loaded (bytes)."""
    compiler: str | None = None
    """Compiler that made the code: ``"optimizing"`` or ``"baseline"``. None: a log from before this
    field existed, when it was always the former."""
    artifact_bytes: int
    """Size of the compiled module at rest (bytes)."""
    compile_seconds: float
    """Time that compiling took (seconds); 0 if an equal module had been compiled already."""
    concurrency: int
    """Number of instances that may run at the same time in one group."""
    worst_size_bytes: int
    """Bytes that one instance may touch at most; counted against `max_running_size`."""
    address_space_bytes: int
    """Bytes of addresses that one instance reserves; counted against `max_address_space`."""
    mappings: int
    """Number of memory mappings of one instance."""
    module_mappings: int
    """Number of memory mappings of the code, while it is loaded."""
    isolation: str
    """Isolation that was asked for: ``"reuse"``, ``"fresh"`` or ``"reset"``."""
    isolation_verdict: str
    """Sentence that explains how this isolation is provided."""
    cache_verdict: str | None = None
    """Sentence that says what stays in the cache between leases. None: a log from before this field
    existed."""
    advice: str | None = None
    """The remedy, if its instances can never be kept under the limits. None: none is needed."""
    left_out: str | None = None
    """Functions of a component that `register_component` has left out, and why, in the event of the
    first one that it registered; the reasons of at most three. None: there are none, or it is
    another function."""

    @property
    def level(self) -> str:
        return "info" if self.advice is None else "warning"


class Prepared(OfFunction):
    """The calls of `prepare` were made; the `registered` event of the function follows."""

    name = "wasmcache.prepared"
    generation: int
    """Number of this registration of the function."""
    group: str
    """Name of the group that was charged."""
    calls: int
    """Number of calls."""
    prepare_seconds: float
    """Time that they took, with making the instance and reading its state (seconds)."""
    fuel: int
    """Units of fuel that the calls burnt."""
    pages: int
    """Pages of 64 KiB of the memories with which new instances begin."""
    added_bytes: int
    """Bytes of these that were written into the module, as they are not zero."""
    globals: int
    """Number of globals that were written."""
    elements: int
    """Number of elements of tables that were written."""
    frozen: str | None = None
    """Things that are the same in every instance though they should not be, separated by commas,
    such as ``"random bytes"``. None: there are none."""
    stored: bool = False
    """Whether this was found in `cache_dir`, so that no call was made now."""


class Overgrown(OfFunction):
    """The instances of a function are not reset any more: they had grown in nearly every lease.

    From now on every lease gets a new instance, as under ``"fresh"``, which costs less.
    """

    name = "wasmcache.overgrown"
    generation: int
    """Number of the registration of the function."""
    leases: int
    """Number of leases of the instances that had grown, since it was registered."""
    growths: int
    """Number of these instances."""
    size_bytes: int
    """Size of the largest of these instances (bytes)."""
    cache_verdict: str | None = None
    """Sentence that says what stays in the cache between leases from now on; None: what did."""
    advice: str | None = None
    """Remedy that lets its instances be reset again; None: there is none."""

    @property
    def level(self) -> str:
        return "warning"


class Promoted(OfFunction):
    """The code of a function that the optimizing compiler made is ready, or can't be made.

    From now on new instances are made of it. Instances of the earlier code are hits until others
    take their places, in the background: then they are evicted for ``"promoted"``.
    """

    name = "wasmcache.promoted"
    generation: int
    """Number of the registration of the function, which stays the same."""
    group: str
    """Name of the group in whose turn it was compiled."""
    guest_seconds: float
    """Time that its calls had used when it was queued, by the fuel that they burnt (seconds)."""
    compile_seconds: float
    """Time that compiling took (seconds); 0 for a further function of the same module."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    module_number: int | None = None
    """Number of the module that the compiler made; None: it could not."""
    code_bytes: int | None = None
    """Size of the module's machine code, once loaded (bytes); None as for `module_number`."""
    compiler: str | None = None
    """Compiler that made it: ``"optimizing"``; None as for `module_number`."""
    artifact_bytes: int | None = None
    """Size of the compiled module at rest (bytes); None as for `module_number`."""
    address_space_bytes: int | None = None
    """Bytes of addresses that one instance of it reserves; None as for `module_number`."""
    mappings: int | None = None
    """Number of memory mappings of one instance of it; None as for `module_number`."""
    module_mappings: int | None = None
    """Number of memory mappings of the code, while it is loaded; None as for `module_number`."""
    error: str | None = None
    """Type of the error for which the function stays as it is; it is not tried again. None: it was
    promoted."""
    error_message: str | None = None
    """Message of that error; None as for `error`."""

    @property
    def level(self) -> str:
        return "info" if self.error is None else "warning"


class Profiled(OfFunction):
    """A profile of a function begins, or ends: its new instances are made of another module.

    Idle instances of the earlier module are evicted for ``"profiled"`` now, and those that run as
    their leases end. See `InstanceCache.profile`.
    """

    name = "wasmcache.profiled"
    generation: int
    """Number of the registration of the function, which stays the same."""
    group: str | None = None
    """Name of the group whose instances are profiled; None: those of all groups, or of none."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    module_number: int | None = None
    """Number of the module in which samples are taken, if the profile begins. None: it ends, and
    new instances are made of the function's own module again."""
    compile_seconds: float = 0.0
    """Time that compiling took (seconds); 0 for a further function of the same module, and at the
    end."""
    code_bytes: int | None = None
    """Size of the module's machine code, once loaded (bytes); None as for `module_number`."""
    compiler: str | None = None
    """Compiler that made it: ``"optimizing, profiled"`` or ``"baseline, profiled"``; None as for
    `module_number`."""
    artifact_bytes: int | None = None
    """Size of the compiled module at rest (bytes); None as for `module_number`."""
    address_space_bytes: int | None = None
    """Bytes of addresses that one instance of it reserves; None as for `module_number`."""
    mappings: int | None = None
    """Number of memory mappings of one instance of it; None as for `module_number`."""
    module_mappings: int | None = None
    """Number of memory mappings of the code, while it is loaded; None as for `module_number`."""
    samples: int | None = None
    """Number of samples that were taken of the function; None if the profile begins."""
    fuel: int | None = None
    """Units of fuel for which these samples stand; None if the profile begins."""


class Removed(OfFunction):
    """A function can no longer be acquired; the evictions of its idle instances follow."""

    name = "wasmcache.removed"
    generation: int
    """Number of the registration of the function that was removed."""


class Refused(OfFunction):
    """The system refused memory, addresses or mappings for a function.

    Evictions of idle instances follow, until they reserved at least this much together, or none is
    left that helps. Then the load is tried again.
    """

    name = "wasmcache.refused"
    address_space_bytes: int
    """Bytes of addresses to be freed by evictions."""
    mappings: int
    """Number of memory mappings to be freed by evictions."""
    error_message: str
    """Message of the system's error."""
    group: str | None = None
    """Name of the group whose acquire or call needs it; None: a log from before this field
    existed."""
    request: int | None = None
    """Number of that acquire; None without `log_uses`."""

    @property
    def level(self) -> str:
        return "warning"


class OfEntry(OfFunction):
    """Base of the events about a function in a group."""

    group: str
    """Name of the scheduling group."""
    generation: int
    """Number of the registration of the function."""


class Use(OfEntry):
    """Base of the events about one instance."""

    instance: int
    """Number of the instance or seat in its cache."""


class Loaded(Use):
    """An instance was made."""

    name = "wasmcache.loaded"
    request: int | None
    """Number of the acquire that it was made for; None without `log_uses`."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    module_loaded: bool
    """Whether the code of its module had to be loaded first."""
    seat: bool
    """Whether it was made on the seat of that number; the lease is a hit then."""
    warmed: bool
    """Whether it was made by `InstanceCache.warm`."""
    promoted: bool = False
    """Whether it was made in the background, as its function was promoted. It is idle now; the
    instance whose place it takes, if there is one, is evicted next."""
    load_seconds: float
    """Time that making it took, including any load of its code (seconds)."""
    size_bytes: int
    """Bytes that it may touch, before its first call."""
    code_bytes: int
    """Size of its module's machine code (bytes)."""


class Failed(OfEntry):
    """An instance could not be made."""

    name = "wasmcache.failed"
    instance: int | None
    """Number of the instance or seat in its cache; None if `promoted`, as it has got none."""
    request: int | None
    """Number of the acquire that it was to be made for; None without `log_uses`, or if
    `promoted`."""
    promoted: bool = False
    """Whether it was to be made in the background, as its function was promoted. That is not tried
    again: instances of optimized code are made for leases only."""
    error: str
    """Type of the error raised to the caller; if `promoted`, there is none."""
    error_message: str
    """Message of that error."""

    @property
    def level(self) -> str:
        return "warning"


class Evicted(Use):
    """An instance or a seat was evicted."""

    name = "wasmcache.evicted"
    reason: Reason
    """Reason for the eviction."""
    seat: bool
    """Whether it was a seat."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    freed_bytes: int
    """Size of the instance or seat (bytes)."""
    freed_code_bytes: int
    """Size of its module's code (bytes) if that was unloaded; otherwise 0."""
    idle_seconds: float
    """Time since its last use (seconds)."""
    age_seconds: float
    """Time since it was made (seconds)."""
    uses: int
    """Number of leases of it."""
    total_size_before_bytes: int
    """Size of all idle instances together, before the eviction (bytes)."""
    total_size_after_bytes: int
    """Size of all idle instances together, after the eviction (bytes)."""
    code_size_before_bytes: int
    """Code of loaded modules and stacks of running instances, before the eviction (bytes)."""
    code_size_after_bytes: int
    """Code of loaded modules and stacks of running instances, after the eviction (bytes)."""
    limit_bytes: int | None = None
    """Limit that this instance alone exceeds (bytes); None if it exceeds none."""
    for_function: str | None = None
    """Name of the function whose need it served; None if it was nobody's. A lease that keeps its
    instance needs room for that, an acquire needs code, stack, count or addresses."""
    for_arg_types: str | None = None
    """Types of that function's arguments, separated by commas; None as for `for_function`."""
    for_group: str | None = None
    """Name of the group whose need it served; None as for `for_function`."""
    for_request: int | None = None
    """Number of the acquire, or of the preparation, whose need it served; None as for
    `for_function`, and without `log_uses`."""
    error: str | None = None
    """Type of the error that left the instance unusable, as for ``"corrupted"``: ``"Cancelled"`` if
    its call was cancelled, ``"TrapError"``, or the type of a host function's exception. None: none
    did."""
    advice: str | None = None
    """Remedy, given once for each function whose instances are too large; otherwise None."""
    replaced_by: int | None = None
    """Number of the instance that its lease continued with, as a row of a batch failed under
    ``on_error="null"``; or for ``"promoted"`` the one that has taken its place. None: there is
    none."""
    evictions: int | None = None
    """Number of evictions that it stands for: in a batch, those after the first 99 have one event
    together. None: one."""

    def fields(self) -> dict[str, object]:
        """Return {field: plain value}; the reason by its value."""
        found = super().fields()
        found["reason"] = self.reason.value
        return found

    @property
    def level(self) -> str:
        return "info" if self.advice is None else "warning"


class Requested(OfEntry):
    """With `log_uses`: an acquire has its token and asks for an instance.

    Evictions made for it follow, then `Blocked`, `Acquired`, `Loaded` or `Abandoned`.
    """

    name = "wasmcache.requested"
    request: int
    """Number of the acquire in its cache."""
    task: int
    """Number of the task; shows a task that waits for an instance of its own."""
    warm: bool
    """Whether it was made by `InstanceCache.warm`."""
    blocked: bool
    """Whether it waited for its token."""
    deadline_seconds: float | None
    """Time at which the caller's cancel scopes end the wait (seconds on the cache's clock); None:
    never."""


class OfTask(OfEntry):
    """Base of the events about an acquire or its lease, and its task."""

    request: int | None
    """Number of the acquire in its cache; None while it waits for a token."""
    task: int
    """Number of the task, as in `Requested`."""


class Blocked(OfTask):
    """With `log_uses`: an acquire has to wait."""

    name = "wasmcache.blocked"
    waits_for: str
    """Resource that it waits for: ``"a token"``, ``"an instance"`` or ``"room"``."""


class Abandoned(OfTask):
    """With `log_uses`: an acquire ended without a lease: cancelled, refused, or the load failed."""

    name = "wasmcache.abandoned"
    error: str
    """Type of the error raised to the caller."""


class Acquired(Use):
    """With `log_uses`: a lease was granted."""

    name = "wasmcache.acquired"
    request: int | None
    """Number of the acquire in its cache."""
    hit: bool
    """Whether it was granted from an idle instance or seat."""
    wait_seconds: float
    """Time from the request for an instance to its grant (seconds)."""
    uses: int
    """Number of leases of the instance before this one."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    code_bytes: int
    """Size of the module's machine code (bytes)."""
    total_size_bytes: int
    """Size of all idle instances together, now (bytes)."""
    code_size_bytes: int
    """Code of loaded modules and stacks of running instances, now (bytes)."""


class Left(OfTask):
    """With `log_uses`: a block ended while another task has a call of its lease under way.

    From now on `task` holds the instance. `Recycled` follows when the call ends.
    """

    name = "wasmcache.left"


class Recycled(Use):
    """With `log_uses`: a lease ended."""

    name = "wasmcache.recycled"
    request: int | None
    """Number of the acquire in its cache."""
    size_bytes: int
    """Bytes that the instance may touch now; of a seat, one page."""
    held_seconds: float
    """Length of the lease (seconds)."""
    calls: int
    """Number of calls in the lease."""
    fuel: int = 0
    """Units of fuel that its calls burnt."""
    seat: bool
    """Whether its instance was closed and replaced by a seat."""
    closed_size_bytes: int | None = None
    """Size of an instance that was replaced by a seat only because it exceeds `max_instance_size`
    (bytes); otherwise None."""
    grown_size_bytes: int | None = None
    """Size of an instance that was replaced by a seat because it had grown, and so could not be
    reset (bytes); otherwise None."""
    kept: bool
    """Whether the instance or seat was kept; if not, its eviction follows."""
    error: str | None = None
    """Type of the error that left the instance unusable; None: none did."""
    error_message: str | None = None
    """Why the guest failed, and some of the last lines that it wrote; no argument of the call. None
    if no error of a guest left the instance unusable."""
    address_space_bytes: int
    """Bytes of addresses that its instance reserves now."""
    mappings: int
    """Number of memory mappings of its instance now."""
    total_size_bytes: int
    """Size of all idle instances together, now (bytes)."""
    code_size_bytes: int
    """Code of loaded modules and stacks of running instances, now (bytes)."""


class OfPreparation(OfEntry):
    """Base of the events about the instance in which a function is prepared.

    Their `generation` is 0. They are no acquires, but have numbers of the same sequence.
    """

    request: int
    """Number of the preparation among the acquires of its cache."""


class PreparationRequested(OfPreparation):
    """With `log_uses`: `register` asks for an instance in which the calls of `prepare` are made.

    Evictions made for it follow. From then on, or from when there is capacity for it, the instance
    counts as running, and holds its code, until `PreparationEnded`. It is neither hit nor miss.
    """

    name = "wasmcache.preparation_requested"
    task: int
    """Number of the task that prepares it."""
    for_tasks: str
    """Numbers of the tasks that register functions and wait for it, separated by commas; holders of
    leases among them may be why it could wait in vain."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    module_number: int
    """Number of the module in which the calls are made; it is not that of the prepared function."""
    code_bytes: int
    """Size of that module's machine code, once loaded (bytes)."""
    worst_size_bytes: int
    """Bytes that the instance may touch at most; counted against `max_running_size`."""
    address_space_bytes: int
    """Bytes of addresses that the instance reserves; counted against `max_address_space`."""
    mappings: int
    """Number of memory mappings of the instance."""
    module_mappings: int
    """Number of memory mappings of the code, while it is loaded."""


class PreparationAwaited(OfPreparation):
    """With `log_uses`: other tasks wait for a preparation than before."""

    name = "wasmcache.preparation_awaited"
    for_tasks: str
    """Numbers of the tasks that wait now, as in `PreparationRequested`."""


class PreparationEnded(OfPreparation):
    """With `log_uses`: the instance of a preparation was closed, or there is none."""

    name = "wasmcache.preparation_ended"
    instance: int | None
    """Number of the instance in its cache; None: it got no capacity."""
    error: str | None
    """Type of the error by which the preparation ended; None: its calls were made."""
    wait_seconds: float
    """Time that it waited for capacity (seconds)."""
    held_seconds: float
    """Time from then to its end (seconds); 0 if it got no capacity."""
    size_bytes: int
    """Bytes that the instance might touch after its last call, or after its start (bytes)."""
    fuel: int
    """Units of fuel that its calls burnt."""


class Output(Event):
    """A guest wrote a line, where `Wasi` says ``"log"``; or lines were dropped."""

    name = "wasmcache.output"
    function: str | None = None
    """Name of the function; None if lines of several functions were dropped."""
    arg_types: str | None = None
    """Types of its arguments, separated by commas; None as for `function`."""
    group: str
    """Name of the group."""
    generation: int | None = None
    """Generation of the function, 0 while it is prepared; None as for `function`."""
    request: int | None = None
    """Number of the acquire of the lease, or of the preparation; None without `log_uses`, without
    either, and as for `function`."""
    stream: str | None = None
    """Name of the stream, ``"stdout"`` or ``"stderr"``; None if lines were dropped."""
    line: str | None = None
    """Line of printable text, of at most 1,024 characters; None if lines were dropped."""
    dropped_lines: int = 0
    """Number of lines of the group that were dropped since its last event with such a number."""
    dropped_bytes: int = 0
    """Bytes of these lines."""


class Replayable(OfEntry):
    """With `log_values`: a call, or a row of a batch, with all that is needed to run it again.

    Values are JSON in a text, with a tag for each type; see `tagged` and `answers`. Together they
    have at most 64 KiB.
    """

    name = "wasmcache.replayable"
    instance: int | None = None
    """Number of the instance in its cache; None if its lease has ended meanwhile."""
    request: int | None = None
    """Number of the acquire of the lease; None without `log_uses`."""
    row: int | None = None
    """Number of the row, from 0; None for a call."""
    pristine: bool
    """Whether it was the first one in its instance since that was made or reset. If not, memory
    that earlier ones have changed may matter."""
    error: str | None = None
    """Type of the error by which it ended; None: it gave a result."""
    trap: str | None = None
    """Code of a trap, or the status of an exit, as in ``"status 3"``; None: it was neither."""
    trap_offset: int | None = None
    """Position of the innermost instruction that was running when it failed, in the bytes of the
    module; None if it is not known."""
    fuel: int | None = None
    """Units of fuel that it burnt; None for a row."""
    arguments: str | None = None
    """Tuple of its arguments; None: they were cut, or withheld by `redact`."""
    result: str | None = None
    """Its result, or the error that a component's function returned (`WitError`); None if it
    failed, and as for `arguments`."""
    host_calls: str | None = None
    """Answers of host functions, WASI's included, in it: values that they returned, errors that
    they raised, bytes that they wrote to memory, fuel that they took; None: they were cut."""
    start_calls: str | None = None
    """Answers of host functions in the start of its instance; None: they were cut."""
    setup: str | None = None
    """Options of `register` that decide how it runs: ABI, imports, seed and clock, and the like;
    None: they were cut."""
    cut: str | None = None
    """Names of the fields above that were cut, separated by commas; None: all is there."""
    redacted: bool = False
    """Whether `redact` has replaced a value, so that a call with these may end otherwise."""
    returns: str | None = None
    """Types of its results, separated by commas; None: it has none."""
    export: str
    """Name of the export that was called; of a component, its name there."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    isolation: str
    """Isolation that was asked for: ``"reuse"``, ``"fresh"`` or ``"reset"``."""
    compiler: str
    """Compiler that made the code: ``"optimizing"`` or ``"baseline"``."""
    versions: str
    """Versions of wasmtime and of this library."""
    total_fuel: int
    """Units of fuel that it might burn."""
    stack_size_bytes: int
    """Size of the stack of its instance (bytes): `CacheConfig.instance_stack_size`."""
    memory_limit_bytes: int
    """Limit of the memories of one instance together (bytes)."""
    table_limit_elements: int
    """Limit of the tables of one instance together (elements)."""
    max_result_size_bytes: int
    """Limit of its result (bytes)."""
    dropped: int = 0
    """Number of such events that were dropped before this one, as its group had used up its part of
    the log, or the log its buffer."""


class Lost(Event):
    """The log's buffer was full, so events are missing."""

    name = "wasmcache.lost"
    count: int
    """Number of events that are missing."""
    first_seq: int
    """Sequence number of the first of them."""

    @property
    def level(self) -> str:
        return "warning"


class Stamped(NamedTuple):
    """An event with its position in a log: order, time and origin."""

    event: Event
    cache: str
    seq: int
    at_seconds: float
    """The cache's clock, `trio.current_time()`: only differences have a meaning."""
    context_lost: bool = False
    """Whether the context of the task that caused it is missing, as the log kept too many."""
    label: str = ""
    """Label of the cache: the parameter of `open_cache`."""

    def fields(self) -> dict[str, object]:
        """Return the flat fields of the log line, without its name."""
        found = {
            "cache": self.cache,
            "label": self.label,
            "seq": self.seq,
            "at_seconds": self.at_seconds,
            "schema": SCHEMA_VERSION,
            **self.event.fields(),
        }
        if self.context_lost:
            found["context_lost"] = True
        return found
