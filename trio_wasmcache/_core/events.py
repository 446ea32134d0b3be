"""The events of the cache: frozen values, turned into log lines elsewhere.

Each event's name is ``wasmcache.<past participle>``. Fields are flat, with the unit in the name.
Names reserved by the standard `logging` module (``args``, ``module``, ``name``) are not used, so
that every event can pass through it.

A change of a field's meaning, or the loss of one, raises `SCHEMA_VERSION`; a new field does not.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable
from operator import attrgetter
from typing import ClassVar

from attrs import field, fields, frozen

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


def _finite(seconds: float | None) -> float | None:
    """Return the number, or None for infinity, which JSON cannot express."""
    return None if seconds == math.inf else seconds


@frozen(kw_only=True)
class Event:
    """One event. The log adds the cache, the time and the order (see `Stamped`)."""

    name: ClassVar[str] = ""

    @property
    def level(self) -> str:
        """The level at which it is logged."""
        return "info"

    def fields(self) -> dict[str, object]:
        """Return {field: plain value}; enums by value, None included."""
        names, values_of = _reader(type(self))  # type: ignore[arg-type] # classes can be hashed
        return dict(zip(names, values_of(self), strict=True))


@functools.cache
def _reader(kind: type[Event]) -> tuple[tuple[str, ...], Callable[[Event], tuple[object, ...]]]:
    """Return the fields of a kind of event, and a getter that costs a third of `attrs.asdict`.

    The log's thread reads every event while the event loop waits for the GIL.
    """
    names = tuple(it.name for it in fields(kind))
    return names, attrgetter(*(f"{name}.value" if name == "reason" else name for name in names))


@frozen(kw_only=True)
class Opened(Event):
    """The cache was opened with these limits."""

    name = "wasmcache.opened"
    max_size_bytes: int
    max_instance_size_bytes: int
    max_instances: int
    max_code_size_bytes: int
    max_running_size_bytes: int | None = None
    """None: no limit."""
    max_result_size_bytes: int | None = None
    """None: a log from before this limit existed."""
    idle_timeout_seconds: float | None = field(converter=_finite)
    """None: unlimited."""
    max_address_space_bytes: int | None = None
    """None: no limit."""
    max_mappings: int | None = None
    """Number of mappings that the kernel's limit leaves to this cache; None: no limit."""
    stack_size_bytes: int
    memory_limit_bytes: int
    table_limit_elements: int
    total_fuel: int
    yield_fuel: int
    log_uses: bool


@frozen(kw_only=True)
class Resized(Event):
    """The limits were changed to these."""

    name = "wasmcache.resized"
    max_size_bytes: int
    max_instance_size_bytes: int
    max_instances: int
    max_code_size_bytes: int
    max_running_size_bytes: int | None = None
    """None: no limit."""
    max_result_size_bytes: int | None = None
    """None: a log from before this limit existed."""
    idle_timeout_seconds: float | None = field(converter=_finite)
    """None: unlimited."""
    max_address_space_bytes: int | None = None
    """None: no limit."""


@frozen(kw_only=True)
class Closed(Event):
    """The cache was closed, after this many leases and evictions. The last event except `Lost`."""

    name = "wasmcache.closed"
    hits: int
    misses: int
    blocks: int
    calls: int
    evictions: int


@frozen(kw_only=True)
class GroupOpened(Event):
    """A scheduling group was opened; `capacity_tokens` is None where it is unlimited."""

    name = "wasmcache.group_opened"
    group: str
    capacity_tokens: int | None
    shares: int


@frozen(kw_only=True)
class GroupClosed(Event):
    """A scheduling group closes; the evictions of its idle instances follow.

    `with_cache`: it closes because the cache does.
    """

    name = "wasmcache.group_closed"
    group: str
    with_cache: bool


@frozen(kw_only=True)
class Registered(Event):
    """A function can be acquired from now on. `generation` above 1: it replaced the one before."""

    name = "wasmcache.registered"
    function: str
    arg_types: str
    generation: int
    module_digest: str
    module_number: int
    """Equal for functions that share a module; equal bytes alone do not make one."""
    code_bytes: int
    artifact_bytes: int
    compile_seconds: float
    """Zero where an equal module had been compiled already."""
    concurrency: int
    worst_size_bytes: int
    """Bytes that one instance may touch at most; counted against `max_running_size`."""
    address_space_bytes: int
    """Bytes of addresses that one instance reserves; counted against `max_address_space`."""
    mappings: int
    """Number of memory mappings of one instance."""
    module_mappings: int
    """Number of memory mappings of the code, while it is loaded."""
    isolation: str
    isolation_verdict: str


@frozen(kw_only=True)
class Removed(Event):
    """A function can no longer be acquired; the evictions of its idle instances follow."""

    name = "wasmcache.removed"
    function: str
    arg_types: str
    generation: int


@frozen(kw_only=True)
class Refused(Event):
    """The system refused memory, addresses or mappings for a function.

    Evictions follow, of idle instances that reserve at least this much together, or of all that
    help. Then the load is tried again.
    """

    name = "wasmcache.refused"
    function: str
    arg_types: str
    address_space_bytes: int
    mappings: int
    error_message: str
    """The system's error."""

    @property
    def level(self) -> str:
        return "warning"


@frozen(kw_only=True)
class Use(Event):
    """Base of the events about one instance."""

    function: str
    arg_types: str
    group: str
    generation: int
    instance: int


@frozen(kw_only=True)
class Loaded(Use):
    """An instance was made. `module_loaded`: its module had to be loaded first."""

    name = "wasmcache.loaded"
    request: int | None
    """The acquire that it was made for; None without `log_uses`."""
    module_digest: str
    module_loaded: bool
    seat: bool
    """Whether it was made on the seat of that number; the lease is a hit then."""
    warmed: bool
    load_seconds: float
    size_bytes: int
    """Bytes that it may touch, before its first call."""
    code_bytes: int


@frozen(kw_only=True)
class Failed(Use):
    """An instance could not be made; `error` is the type of the error raised to the caller."""

    name = "wasmcache.failed"
    request: int | None
    """As in `Loaded`."""
    error: str
    error_message: str

    @property
    def level(self) -> str:
        return "warning"


@frozen(kw_only=True)
class Evicted(Use):
    """An instance or a seat was evicted. Sizes are of the whole cache, before and after that."""

    name = "wasmcache.evicted"
    reason: Reason
    seat: bool
    """Whether it was a seat."""
    module_digest: str
    freed_bytes: int
    freed_code_bytes: int
    idle_seconds: float
    age_seconds: float
    uses: int
    total_size_before_bytes: int
    total_size_after_bytes: int
    code_size_before_bytes: int
    code_size_after_bytes: int
    limit_bytes: int | None = None
    """The limit exceeded by this instance alone, if that is the reason."""
    advice: str | None = None
    """The remedy, given once for each function whose instances are too large."""

    @property
    def level(self) -> str:
        return "info" if self.advice is None else "warning"


@frozen(kw_only=True)
class Requested(Event):
    """With `log_uses`: an acquire has its token and asks for an instance.

    Evictions made for it follow, then `Blocked`, `Acquired`, `Loaded` or `Abandoned`.
    """

    name = "wasmcache.requested"
    function: str
    arg_types: str
    group: str
    generation: int
    request: int
    """Number of the acquire in its cache."""
    task: int
    """Number of the task; shows a task that waits for an instance of its own."""
    warm: bool
    blocked: bool
    """Whether it waited for its token."""
    deadline_seconds: float | None
    """Time at which the caller's cancel scopes end the wait, on the cache's clock; None: never."""


@frozen(kw_only=True)
class OfTask(Event):
    """Base of the events about an acquire or its lease, and its task."""

    function: str
    arg_types: str
    group: str
    generation: int
    request: int | None
    """None: it has no number yet, as while it waits for a token."""
    task: int
    """As in `Requested`."""


@frozen(kw_only=True)
class Blocked(OfTask):
    """With `log_uses`: an acquire has to wait, for ``"a token"``, ``"an instance"`` or ``"room"``.

    One that waits for a token has no `request` yet.
    """

    name = "wasmcache.blocked"
    waits_for: str


@frozen(kw_only=True)
class Abandoned(OfTask):
    """With `log_uses`: an acquire ended without a lease: cancelled, refused, or the load failed."""

    name = "wasmcache.abandoned"
    error: str
    """The type of the error raised to the caller."""


@frozen(kw_only=True)
class Acquired(Use):
    """With `log_uses`: a lease was granted. `uses` counts those before it."""

    name = "wasmcache.acquired"
    request: int | None
    hit: bool
    wait_seconds: float
    uses: int
    module_digest: str
    code_bytes: int
    total_size_bytes: int
    code_size_bytes: int


@frozen(kw_only=True)
class Left(OfTask):
    """With `log_uses`: a block ended while another task has a call of its lease under way.

    From now on `task` holds the instance. `Recycled` follows when the call ends.
    """

    name = "wasmcache.left"


@frozen(kw_only=True)
class Recycled(Use):
    """With `log_uses`: a lease ended. `kept` is False where an eviction follows."""

    name = "wasmcache.recycled"
    request: int | None
    size_bytes: int
    held_seconds: float
    calls: int
    seat: bool
    """Whether its instance was closed and replaced by a seat."""
    closed_size_bytes: int | None = None
    """The size of an instance that was replaced by a seat only because it exceeds
    `max_instance_size`."""
    kept: bool
    address_space_bytes: int
    """Bytes of addresses that its instance reserves now."""
    mappings: int
    """Number of memory mappings of its instance now."""
    total_size_bytes: int
    code_size_bytes: int


@frozen(kw_only=True)
class Lost(Event):
    """The log's buffer was full: `count` events from sequence number `first_seq` on are missing."""

    name = "wasmcache.lost"
    count: int
    first_seq: int

    @property
    def level(self) -> str:
        return "warning"


EVENTS: tuple[type[Event], ...] = (
    Opened,
    Resized,
    Closed,
    GroupOpened,
    GroupClosed,
    Registered,
    Removed,
    Refused,
    Loaded,
    Failed,
    Evicted,
    Requested,
    Blocked,
    Acquired,
    Left,
    Recycled,
    Abandoned,
    Lost,
)
"""All classes of events, one for each name."""


@frozen
class Stamped:
    """An event with its position in a log: order, time and origin."""

    event: Event
    cache: str
    seq: int
    at_seconds: float
    """The cache's clock, `trio.current_time()`: only differences have a meaning."""

    def fields(self) -> dict[str, object]:
        """Return the flat fields of the log line, without its name."""
        return {
            "cache": self.cache,
            "seq": self.seq,
            "at_seconds": self.at_seconds,
            "schema": SCHEMA_VERSION,
            **self.event.fields(),
        }
