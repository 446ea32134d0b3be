"""The facts that the cache tells: frozen values, turned into log lines elsewhere.

Each event's name is ``wasmcache.<past participle>``. Fields are flat, with the unit in the name.
Names that the standard `logging` module keeps for itself (``args``, ``module``, ``name``) are not
used, so that every event can go through it.

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
    """Why an instance or a seat went."""

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
    """JSON has no word for infinity."""
    return None if seconds == math.inf else seconds


@frozen(kw_only=True)
class Event:
    """A fact. Which cache, when and in what order is added by the log (see `Stamped`)."""

    name: ClassVar[str] = ""

    @property
    def level(self) -> str:
        """The log level that it deserves."""
        return "info"

    def fields(self) -> dict[str, object]:
        """{field: plain value}; enums by value, None left in."""
        names, values_of = _reader(type(self))  # type: ignore[arg-type] # classes can be hashed
        return dict(zip(names, values_of(self), strict=True))


@functools.cache
def _reader(kind: type[Event]) -> tuple[tuple[str, ...], Callable[[Event], tuple[object, ...]]]:
    """The fields of a kind of event, and what reads them at a third of what `attrs.asdict` costs.

    The log's thread does this for every event, while the event loop waits for the GIL.
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
    """None: a log from before there was one."""
    idle_timeout_seconds: float | None = field(converter=_finite)
    """None: for ever."""
    max_address_space_bytes: int | None = None
    """None: no limit."""
    max_mappings: int | None = None
    """What the kernel's limit on mappings leaves this cache; None: no limit."""
    stack_size_bytes: int
    memory_limit_bytes: int
    table_limit_elements: int
    total_fuel: int
    yield_fuel: int
    log_uses: bool


@frozen(kw_only=True)
class Resized(Event):
    """The limits are these from now on."""

    name = "wasmcache.resized"
    max_size_bytes: int
    max_instance_size_bytes: int
    max_instances: int
    max_code_size_bytes: int
    max_running_size_bytes: int | None = None
    """None: no limit."""
    max_result_size_bytes: int | None = None
    """None: a log from before there was one."""
    idle_timeout_seconds: float | None = field(converter=_finite)
    """None: for ever."""
    max_address_space_bytes: int | None = None
    """None: no limit."""


@frozen(kw_only=True)
class Closed(Event):
    """The cache was closed after so many leases and evictions. The last event, save `Lost`."""

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

    `with_cache`: because the cache does.
    """

    name = "wasmcache.group_closed"
    group: str
    with_cache: bool


@frozen(kw_only=True)
class Registered(Event):
    """A function may be acquired. `generation` above 1: it replaced the one before."""

    name = "wasmcache.registered"
    function: str
    arg_types: str
    generation: int
    module_digest: str
    module_number: int
    """The same for functions that share a module; equal bytes alone do not make one."""
    code_bytes: int
    artifact_bytes: int
    compile_seconds: float
    """Zero where an equal module was compiled already."""
    concurrency: int
    worst_size_bytes: int
    """What one instance may touch at most; counted against `max_running_size`."""
    address_space_bytes: int
    """Addresses that one instance reserves; counted against `max_address_space`."""
    mappings: int
    """Memory mappings of one instance."""
    module_mappings: int
    """Memory mappings of the code, while it is loaded."""
    isolation: str
    isolation_verdict: str


@frozen(kw_only=True)
class Removed(Event):
    """A function may no longer be acquired; the evictions of its idle instances follow."""

    name = "wasmcache.removed"
    function: str
    arg_types: str
    generation: int


@frozen(kw_only=True)
class Refused(Event):
    """The system gave no memory, addresses or mappings for a function: idle instances go for it.

    The evictions follow, reserving at least so much together if there was so much to evict. Then
    it is tried again.
    """

    name = "wasmcache.refused"
    function: str
    arg_types: str
    address_space_bytes: int
    mappings: int
    error_message: str
    """What the system said."""

    @property
    def level(self) -> str:
        return "warning"


@frozen(kw_only=True)
class Use(Event):
    """What the events about one instance share."""

    function: str
    arg_types: str
    group: str
    generation: int
    instance: int


@frozen(kw_only=True)
class Loaded(Use):
    """An instance was made. `module_loaded`: its code had to be loaded first."""

    name = "wasmcache.loaded"
    request: int | None
    """The acquire it was made for; None without `log_uses`."""
    module_digest: str
    module_loaded: bool
    seat: bool
    """Whether it was made on the seat of that number, and the lease is a hit."""
    warmed: bool
    load_seconds: float
    size_bytes: int
    """What it may touch, before its first call."""
    code_bytes: int


@frozen(kw_only=True)
class Failed(Use):
    """An instance could not be made; `error` is the type of what the caller got."""

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
    """An instance or a seat went. Sizes are of the whole cache, before and after it went."""

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
    """The limit that this one alone exceeds, where that is why."""
    advice: str | None = None
    """What to do about it, said once for each function whose instances are too large."""

    @property
    def level(self) -> str:
        return "info" if self.advice is None else "warning"


@frozen(kw_only=True)
class Requested(Event):
    """With `log_uses`: an acquire has its token and asks for an instance.

    What it evicts to make room follows, then `Blocked`, `Acquired`, `Loaded` or `Abandoned`.
    """

    name = "wasmcache.requested"
    function: str
    arg_types: str
    group: str
    generation: int
    request: int
    """Numbers the acquires of a cache."""
    task: int
    """Numbers the tasks; who waits for oneself is told by it."""
    warm: bool
    blocked: bool
    """Whether it waited for its token."""
    deadline_seconds: float | None
    """When the caller's cancel scopes give up waiting, on the cache's clock; None: never."""


@frozen(kw_only=True)
class OfTask(Event):
    """Of an acquire or its lease, and of the task whose it is."""

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

    Those that wait for a token have no `request` yet.
    """

    name = "wasmcache.blocked"
    waits_for: str


@frozen(kw_only=True)
class Abandoned(OfTask):
    """With `log_uses`: an acquire ended without a lease: cancelled, refused, or its load failed."""

    name = "wasmcache.abandoned"
    error: str
    """The type of what the caller got."""


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
    """With `log_uses`: a block ended, and another task has a call of its lease under way.

    From now on the instance is that `task`'s. `Recycled` follows when the call is over.
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
    """Whether its instance was closed, and left a seat."""
    closed_size_bytes: int | None = None
    """The size of an instance that was closed, and left a seat, only because that exceeds
    `max_instance_size`."""
    kept: bool
    address_space_bytes: int
    """Addresses that its instance reserves now."""
    mappings: int
    """Memory mappings of its instance now."""
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
"""Every kind of event, one for each name."""


@frozen
class Stamped:
    """An event with what makes a log of it: order, time and origin."""

    event: Event
    cache: str
    seq: int
    at_seconds: float
    """The cache's clock, `trio.current_time()`: only differences mean something."""

    def fields(self) -> dict[str, object]:
        """The flat fields of the log line, without its name."""
        return {
            "cache": self.cache,
            "seq": self.seq,
            "at_seconds": self.at_seconds,
            "schema": SCHEMA_VERSION,
            **self.event.fields(),
        }
