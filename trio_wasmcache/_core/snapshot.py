"""The items of a snapshot: what a cache has at one moment, as values for the log.

`SnapshotPart` holds some of each kind. Together, all parts of a snapshot are enough to build
the books of the cache anew; see `Policy.restore`. Times are seconds on the cache's clock.
"""

from __future__ import annotations

from .events import Fact, OfConfig


class Item(Fact):
    """Base of the items."""


class SnapshotGroup(Item):
    """A scheduling group."""

    group: str
    """Name of the group."""
    capacity_tokens: int | None
    """Number of tasks that may hold or wait for instances; None: no limit."""
    shares: int
    """Part of the CPU, relative to other groups."""
    max_size_bytes: int | None
    """Limit of the sizes of its idle instances together (bytes); None: only the cache's."""
    reserved_size_bytes: int
    """Bytes of its idle instances that others' need does not evict for size."""
    cpu_limit_cores: float | None
    """Limit of the CPU time of its guests (cores); None: no limit."""
    closed: bool
    """Whether it is being closed, and waits for threads that run its calls."""


class SnapshotModule(Item):
    """A module of a function in the snapshot."""

    module_number: int
    """Number of the module, as in `Registered`."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    code_bytes: int
    """Size of the module's machine code, once loaded (bytes)."""
    mappings: int
    """Number of memory mappings of the code, while it is loaded."""
    load_seconds: float | None
    """Time that loading the code has taken, a mean of the last loads (seconds); None: not known."""
    stopped: int
    """When none of its instances was left running last, by an eviction: a sequence number."""
    evictable: int | None
    """Place among the loaded modules that have only idle instances, the least recently used first;
    None: it is none of them."""
    place: int | None = None
    """Under ``"sieve"``: place in the queue of modules, the oldest first; None: it is not in it."""
    seen: int | None = None
    """Under ``"sieve"``: number of rests of the cache when the hand last passed it."""
    floor_by_code: float | None = None
    """Under ``"gdsf"`` and ``"cost"``: floor at the last rest of an instance of it; None: not in
    use yet."""
    last_rest: int | None = None
    """Under ``"gdsf"`` and ``"cost"``: number of the last rest of an instance that is gone."""


class SnapshotFunction(Item):
    """A generation of a function: registered, or removed or replaced but still in use."""

    function: str
    """Name of the function."""
    arg_types: str
    """Types of its arguments, separated by commas."""
    generation: int
    """Number of this registration of the function."""
    module_number: int
    """Number of its module."""
    concurrency: int
    """Number of instances that may run at the same time in one group."""
    worst_size_bytes: int
    """Bytes that one instance may touch at most."""
    address_space_bytes: int
    """Bytes of addresses that a new instance reserves."""
    mappings: int
    """Number of memory mappings of a new instance."""
    isolation: str
    """Isolation that was asked for: ``"reuse"``, ``"fresh"`` or ``"reset"``."""
    load_seconds: float | None
    """Time that making an instance has taken while the code was loaded, a mean of the last loads
    (seconds); None: not known."""
    retired: bool
    """Whether it was removed or replaced."""
    successor: int | None
    """Generation that replaced it; None: none did."""
    resets: str | None = None
    """While its instances are reset: ``leases:growths:size:balance``, how often they have grown."""
    idle_times: str | None = None
    """With an adaptive timeout: its idle times, as ``class:weights:beyond``, with the weights as
    bytes in hexadecimal; None: none are known."""
    earlier_module_number: int | None = None
    """Number of its module before it was promoted, of which it may still have instances. None: it
    was not promoted."""
    earlier_address_space_bytes: int | None = None
    """Bytes of addresses that an instance of that reserves."""
    earlier_mappings: int | None = None
    """Number of memory mappings of an instance of that."""
    profiled_module_number: int | None = None
    """Number of the module of which its new instances are made, as it is profiled. None: it is
    not."""
    profiled_group: str | None = None
    """Name of the group whose instances are profiled; None: those of all groups, or of none."""
    profiled_address_space_bytes: int | None = None
    """Bytes of addresses that an instance of that module reserves."""
    profiled_mappings: int | None = None
    """Number of memory mappings of an instance of that module."""


class SnapshotResident(Item):
    """An instance or a seat in the cache, whatever its state."""

    function: str
    """Name of the function."""
    arg_types: str
    """Types of its arguments, separated by commas."""
    group: str
    """Name of the scheduling group."""
    generation: int
    """Number of the registration of the function."""
    entry: int
    """Place of its function and group among all that have instances or waiting acquires."""
    instance: int
    """Number of the instance or seat in its cache."""
    module_number: int | None = None
    """Number of the module of which it is made. None: a log from before this field existed, when it
    was that of its function."""
    state: str
    """``"idle"``, ``"loading"`` or ``"running"``."""
    seat: bool
    """Whether it is a seat."""
    size_bytes: int
    """Bytes that it may touch; of a running one, when it was last measured."""
    address_space_bytes: int
    """Bytes of addresses that it reserves."""
    mappings: int
    """Number of its memory mappings."""
    module_loaded: bool
    """Whether the code of its module had to be loaded for it."""
    altered: bool
    """Whether it runs, and was loaded on a seat."""
    paired: bool = False
    """Whether it is of baseline code, and one of optimized code was made to be idle beside it while
    it ran."""
    uses: int
    """Number of leases of it that have ended."""
    uses_before: int
    """Number of its uses before it was last made, on a seat."""
    created_at_seconds: float
    """Time at which it began to load (seconds)."""
    last_used_at_seconds: float
    """Time at which it last became idle (seconds); 0 if it never did."""
    rest: int
    """Number of the last rest of it: the order in which instances became idle; 0: none."""
    place: int | None = None
    """Under ``"sieve"``: place in the queue, the oldest first; None: it is not in it."""
    seen: int | None = None
    """Under ``"sieve"``: number of its uses when the hand last passed it."""
    floor_by_size: float | None = None
    """Under ``"gdsf"`` and ``"cost"``: floor at its last rest, for evictions by size; None: the
    policy does not know it yet."""
    floor_by_count: float | None = None
    """Under ``"gdsf"`` and ``"cost"``: the same for evictions by count; None: not in use yet."""
    own_load_seconds: float | None = None
    """Under ``"cost"``: time of making it that its priority counts (seconds)."""
    module_load_seconds: float | None = None
    """Under ``"cost"``: time of loading its code that its priority counts (seconds)."""
    due_at_seconds: float | None = None
    """With an adaptive timeout: time at which it is evicted if it stays idle (seconds); None: that
    is not decided yet."""


class SnapshotRequest(Item):
    """An acquire, or a preparation, under way: it waits, loads or holds an instance."""

    function: str
    """Name of the function."""
    arg_types: str
    """Types of its arguments, separated by commas."""
    group: str
    """Name of the scheduling group."""
    generation: int
    """Number of the registration of the function that it will get or has got."""
    entry: int | None
    """Place of its function and group, as in `SnapshotResident`; None: it has ended."""
    request: int
    """Number of the acquire in its cache."""
    task: int
    """Number of the task that waits for or holds the instance."""
    stage: str
    """``"instance"`` or ``"room"`` while it waits for that; ``"loading"``; ``"granted"``; or
    ``"ended"``: it was refused, and its task has not noticed yet."""
    instance: int | None
    """Number of the instance that it loads or holds; None: none."""
    warm: bool
    """Whether it was made by `InstanceCache.warm`."""
    blocked: bool
    """Whether it had to wait."""
    hit: bool
    """Whether it was granted an idle instance or seat."""
    acquired: bool
    """Whether its task has its lease, as `Acquired` says."""
    left: bool
    """Whether its block has ended while a call of it goes on, as `Left` says."""
    claim: int | None
    """Place among those that may have an instance of its function and group; None: it may not."""
    turn: int
    """Number of its place among the acquires that were not served at once; 0: it was."""
    error: str | None
    """Type of the error with which it ended; None: it has not ended."""
    requested_at_seconds: float
    """Time of its `Requested`, or `PreparationRequested` (seconds)."""
    deadline_seconds: float | None
    """Time at which the caller's cancel scopes end the wait (seconds); None: never."""
    for_tasks: str | None = None
    """Numbers of the tasks that wait for a preparation, separated by commas. None: it is an
    acquire."""


class SnapshotTokenWait(Item):
    """An acquire that waits for a token of its group."""

    function: str
    """Name of the function."""
    arg_types: str
    """Types of its arguments, separated by commas."""
    group: str
    """Name of the scheduling group."""
    generation: int
    """Number of the registration of the function."""
    task: int
    """Number of the task that waits."""
    blocked_at_seconds: float
    """Time at which it began to wait (seconds)."""


class SnapshotOrder(Item):
    """What the eviction policy has besides what it has of each instance and module."""

    by: str
    """``"size"``, ``"count"`` or ``"code"``: a priority of ``"gdsf"`` or ``"cost"``;
    ``"instances"`` or ``"modules"``: a queue of ``"sieve"``."""
    floor: float | None = None
    """Priority of the last victim."""
    hand: int | None = None
    """Number of the instance or module at which the hand stands; None: at the end."""


class SnapshotGone(Item):
    """With an adaptive timeout: a function and group whose last instance was evicted."""

    function: str | None
    """Name of the function; None: it was removed since."""
    arg_types: str | None
    """Types of its arguments, separated by commas; None as for `function`."""
    generation: int | None
    """Number of the registration of the function; None as for `function`."""
    group: str
    """Name of the scheduling group."""
    last_used_at_seconds: float
    """Time at which the instance last became idle (seconds)."""
    removed: int | None = None
    """Number of the removed function; None: it was not removed."""
    idle_times: str | None = None
    """Idle times of a removed function, as in `SnapshotFunction`."""


class SnapshotPart(OfConfig):
    """With `log_uses`: a part of what was in the cache after event `at_seq`.

    A snapshot is complete with all `parts` parts of the same `at_seq`. They may come long after
    that event, between later ones, and describe nothing of what happened since. Each part has the
    limits and counts, and at most 50 items in all lists together.
    """

    name = "wasmcache.snapshot"
    at_seq: int
    """Number of the last event before the snapshot."""
    taken_at_seconds: float
    """Time of the snapshot (seconds on the cache's clock)."""
    part: int
    """Number of this part, from 1."""
    parts: int
    """Number of parts of this snapshot."""
    hits: int
    """Number of leases granted from an idle instance or seat."""
    misses: int
    """Number of leases for which an instance had to be loaded."""
    blocks: int
    """Number of acquires that had to wait."""
    seat_hits: int
    """Number of hits for which an instance was made on a seat."""
    evictions: int
    """Number of instances and seats evicted, for any reason."""
    loads: int
    """Number of instances made so far: that of the last one."""
    rests: int
    """Number of times that an instance became idle so far."""
    drops: int
    """Number of running instances dropped that were the last running ones of their modules."""
    turns: int
    """Number of acquires that were not served at once so far."""
    idle_times: str | None = None
    """With an adaptive timeout: the first idle times of all functions, as in `SnapshotFunction`.
    None: with a fixed one."""
    omitted_functions: int
    """Number of registered functions that are left out, as there are too many and no instance of
    them is in the cache."""
    groups: tuple[SnapshotGroup, ...] = ()
    """Open groups."""
    modules: tuple[SnapshotModule, ...] = ()
    """Modules of the functions."""
    functions: tuple[SnapshotFunction, ...] = ()
    """Registered functions, and old generations that are in use."""
    residents: tuple[SnapshotResident, ...] = ()
    """Instances and seats."""
    requests: tuple[SnapshotRequest, ...] = ()
    """Acquires that hold an instance or wait for one."""
    token_waits: tuple[SnapshotTokenWait, ...] = ()
    """Acquires that wait for a token."""
    orders: tuple[SnapshotOrder, ...] = ()
    """State of the eviction policy."""
    gone: tuple[SnapshotGone, ...] = ()
    """With an adaptive timeout: the last uses of evicted instances, in the order of evictions."""

    def fields(self) -> dict[str, object]:
        """Return {field: plain value}; each list has {field: plain value} of each item."""
        found = super().fields()
        for name in LISTS:
            found[name] = [item.fields() for item in getattr(self, name)]
        return found


LISTS = (
    *("groups", "modules", "functions", "residents", "requests", "token_waits", "orders"),
    "gone",
)
"""Fields of `SnapshotPart` with lists of items."""
