"""The records of the policy: modules, functions, groups, entries, instances, requests.

These have identity, not value, and only the policy and the ledger change them. The pool reads
them and attaches objects of its own by methods; the policy knows of those objects only the
protocols below.
"""

from __future__ import annotations

import enum
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, final

from ..events import Reason
from ..keys import FunctionKey
from ..metrics.counters import FEW_HOLDS, UseStats
from .lifecycle import IDLE, IllegalStepError, State
from .resets import Resets

# Part of each load in the mean of the last few.
LOAD_PART = 0.25
# Bits for the number of a drop beside that of a rest: more drops than a process lives for.
DROPS = 40
# Shared by all entries that nobody has waited for yet, which are most.
NO_LINE: OrderedDict[Request, None] = OrderedDict()
# Shared by all functions that were never used in several groups at a time.
NO_ENTRIES: dict[GroupRecord, Entry] = {}
Spelling: TypeAlias = tuple[str, tuple[str, ...]]
"""Name and argument types, in their normal spelling."""


class Unloadable(Protocol):
    """Code that can be freed, and loaded again."""

    def unload(self) -> None:
        """Free the code, as no instance uses it any more."""


class Closable(Protocol):
    """A native object that can be freed."""

    def close(self) -> None:
        """Free it. Closing twice is fine."""


class Wait(Protocol):
    """An event in the future."""

    async def wait(self) -> None:
        """Wait until it has happened."""


GiveUp = Callable[[Reason], Wait | None]
"""Revokes what a request was granted, as its group or the cache closes.

Returns an event to wait for if a thread is using the instance. Nothing was revoked then, and it
must be called again after that event.
"""


class Module:
    """Compiled code that functions share. Loaded while `users` is not zero."""

    __slots__ = (
        "after",
        "before",
        "code",
        "code_size",
        "digest",
        "instances",
        "load_seconds",
        "mappings",
        "number",
        "running",
        "size",
        "stopped",
        "users",
    )

    def __init__(
        self,
        digest: str,
        code_size: int,
        mappings: int = 0,
        load_seconds: float | None = None,
        stopped: int = 0,
        code: Unloadable | None = None,
        number: int = 0,
    ) -> None:
        self.digest: str = digest
        self.code_size: int = code_size
        self.mappings: int = mappings
        """Memory mappings of the code, while it is loaded."""
        self.load_seconds: float | None = load_seconds
        """Seconds that loading the code has taken, a mean of the last few; None: not known yet."""
        self.size: int = 0
        """Size (bytes) of the instance that was loaded, or rested the long way, last. Most have the
        same: so they share this number, and a hit finds it in the processor's caches."""
        self.users: int = 0
        """Number of its instances and seats, in any state."""
        self.running: int = 0
        """Number of those that are loading or running; the code is kept loaded while there are
        any."""
        self.instances: dict[Instance, None] = {}
        """All instances and seats of the module; each knows whether it is idle."""
        self.stopped: int = stopped
        """When a drop last left none of them running, or the last rest of one that was evicted: the
        number of that rest, shifted by `DROPS` bits, and of the drop."""
        self.code: Unloadable | None = code
        """The code itself, of the pool; None where nothing runs, as in the log tool."""
        self.number: int = number
        """Number of the module in the log."""
        self.before: Any = None
        self.after: Any = None
        """Its neighbours among the evictable modules; see `lru`."""

    @property
    def idle(self) -> list[Instance]:
        """Idle instances and seats, the least recently used first."""
        idle = [instance for instance in self.instances if instance.state is IDLE]
        return sorted(idle, key=rested)

    @property
    def rested(self) -> int:
        """The last rest of one of its instances; 0 if none has rested."""
        return max(map(rested, self.instances), default=0)

    def unload(self) -> None:
        """Free the code.

        Raises:
            IllegalStepError: it has none.
        """
        if self.code is None:
            raise IllegalStepError(f"module {self.digest!r} has no code that could be unloaded")
        self.code.unload()


class Variant:
    """A second module of a function, of which its new instances are made while it is profiled."""

    __slots__ = ("group", "module", "reserved")

    def __init__(self, module: Module, reserved: tuple[int, int], group: str | None = None) -> None:
        self.module: Module = module
        self.reserved: tuple[int, int] = reserved
        """Bytes of addresses, and number of mappings, of an instance of it."""
        self.group: str | None = group
        """Name of the group whose instances are made of it; None: those of all groups."""

    def serves(self, group: GroupRecord) -> bool:
        """Return whether new instances in a group are made of it."""
        return self.group is None or self.group == group.name


class FunctionRecord:
    """One generation of a function, from 1 on; `retired` once it is removed or replaced."""

    __slots__ = (
        "__weakref__",
        "address_space",
        "burnt",
        "concurrency",
        "definition",
        "earlier",
        "earlier_reserved",
        "fits",
        "generation",
        "isolation",
        "key",
        "load_seconds",
        "lone_entry",
        "many_entries",
        "mappings",
        "module",
        "names",
        "resets",
        "retired",
        "spelling",
        "successor",
        "variant",
        "warned_oversized",
        "worst_size",
    )

    def __init__(
        self,
        key: FunctionKey,
        generation: int,
        module: Module,
        concurrency: int = 1,
        worst_size: int = 0,
        address_space: int = 0,
        mappings: int = 0,
        isolation: str = "",
        load_seconds: float | None = None,
        retired: bool = False,
    ) -> None:
        self.key: FunctionKey = key
        self.generation: int = generation
        self.module: Module = module
        self.concurrency: int = concurrency
        self.worst_size: int = worst_size
        """Bytes that one instance of it may touch at most."""
        self.address_space: int = address_space
        """Bytes of addresses that a new instance of it reserves."""
        self.mappings: int = mappings
        """Number of memory mappings of a new instance of it."""
        self.isolation: str = isolation
        """Isolation that was asked for; for the log only."""
        self.load_seconds: float | None = load_seconds
        """Seconds that making an instance has taken while the code was loaded, a mean of the last
        few; None: not known yet."""
        self.retired: bool = retired
        self.spelling: Spelling = (key.name, key.args)
        """Its key, as most acquires spell it; one tuple for `GroupRecord.serving` of all groups."""
        self.successor: FunctionRecord | None = None
        self.lone_entry: Entry | None = None
        """Its only entry, unless there are `many_entries`; as mostly, and without a dictionary of
        its own."""
        self.many_entries: dict[GroupRecord, Entry] = NO_ENTRIES
        self.warned_oversized: bool = False
        self.burnt: int = 0
        """Units of fuel of its calls that are no longer in `uses` of one of its entries."""
        self.resets: Resets | None = None
        """Whether resets of its instances pay; None if they are not reset, or not any more."""
        self.earlier: Module | None = None
        """Module of which instances were made before the function was promoted; None: it was
        not."""
        self.earlier_reserved: tuple[int, int] = (0, 0)
        """Bytes of addresses, and number of mappings, of an instance of that."""
        self.variant: Variant | None = None
        """Module of which new instances are made at the moment, as it is profiled; None: it is
        not."""
        self.definition: object = None
        """The pool's description of the function."""
        self.fits: int = -1
        """Number of the limits, counted by `resize`, under which an empty cache can run it, as far
        as `acquire` has looked."""
        self.names: dict[str, Any] = {
            "function": key.name,
            "arg_types": key.arg_types,
            "generation": generation,
        }
        """The fields by which events and items of snapshots name it."""

    @property
    def entries(self) -> Mapping[GroupRecord, Entry]:
        """{group: its entry there}, of those that it has at the moment."""
        if self.lone_entry is not None:
            return {self.lone_entry.group: self.lone_entry}
        return self.many_entries

    def add_entry(self, entry: Entry) -> None:
        """Add an entry of a group in which it has none."""
        if self.many_entries is not NO_ENTRIES:
            self.many_entries[entry.group] = entry
        elif self.lone_entry is None:
            self.lone_entry = entry
        else:
            self.many_entries = {self.lone_entry.group: self.lone_entry, entry.group: entry}
            self.lone_entry = None

    def remove_entry(self, entry: Entry) -> None:
        """Remove an entry."""
        if self.lone_entry is entry:
            self.lone_entry = None
        else:
            del self.many_entries[entry.group]

    def define(self, definition: object) -> None:
        """Keep what the pool knows of it."""
        self.definition = definition

    def begin_resets(self, *counts: int) -> None:
        """Note that its instances are reset between leases; `counts`: of earlier ones."""
        self.resets = Resets(*counts)

    def promote(self, module: Module, address_space: int, mappings: int) -> None:
        """Have new instances made of another module, once; see `Policy.promote`.

        Raises:
            IllegalStepError: it was promoted before.
        """
        if self.earlier is not None:
            raise IllegalStepError(f"{self.key} was promoted before")
        # In this order: a snapshot may be rendered in another thread, of the module of then.
        self.earlier_reserved = self.address_space, self.mappings
        self.earlier = self.module
        self.module, self.address_space, self.mappings = module, address_space, mappings

    def reserved(self, module: Module) -> tuple[int, int]:
        """Return the bytes of addresses, and the number of mappings, of an instance of a module."""
        if module is self.earlier:
            return self.earlier_reserved
        if self.variant is not None and module is self.variant.module:
            return self.variant.reserved
        return self.address_space, self.mappings

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules of which its instances are, except those still held after a profile."""
        modules = (self.module,) if self.earlier is None else (self.module, self.earlier)
        return modules if self.variant is None else (*modules, self.variant.module)

    def vary(self, variant: Variant | None) -> None:
        """Have new instances made of another module, or of its own one again (None)."""
        self.variant = variant

    @staticmethod
    def to_prepare(
        key: FunctionKey, module: Module, worst_size: int, address_space: int, mappings: int
    ) -> FunctionRecord:
        """Return the record of a function that is prepared: no acquire can find it."""
        return FunctionRecord(key, 0, module, 1, worst_size, address_space, mappings, retired=True)

    @property
    def prepares(self) -> bool:
        """Whether its only instance is one in which the calls of `prepare` are made."""
        return self.generation == 0

    @property
    def serving(self) -> FunctionRecord | None:
        """The generation that serves now, itself or a later one; None: the function is gone."""
        function = self
        while function.retired and function.successor is not None:
            function = function.successor
        return None if function.retired else function


class TokenBook:
    """Holders of the tokens of a group, for the detection of deadlocks."""

    __slots__ = ("owners", "strangers")

    def __init__(
        self,
        owners: dict[Hashable, int] | None = None,
        strangers: Callable[[], bool] = lambda: False,
    ) -> None:
        # {task: leases that share its token}
        self.owners: dict[Hashable, int] = {} if owners is None else owners
        self.strangers: Callable[[], bool] = strangers
        """Returns whether a token is held by anything else: a task to which one was granted but
        which has not run since, or any other use the application makes of the limiter."""


class Preparation:
    """A guest that is prepared, for which tasks wait that register functions."""

    __slots__ = ("owner", "what")

    def __init__(self, what: str, owner: Hashable = None) -> None:
        self.what: str = what
        """The function that is registered, for messages."""
        self.owner: Hashable = owner
        """The task that prepares it: the owner of its request; None before it has asked for
        capacity."""


class GroupRecord:
    """A scheduling group, as seen by the policy."""

    __slots__ = (
        "__weakref__",
        "closed",
        "entries",
        "gone",
        "idle_size",
        "max_size",
        "name",
        "reserved_size",
        "room",
        "serving",
        "tokens",
    )

    def __init__(
        self,
        name: str,
        max_size: int | None = None,
        reserved_size: int = 0,
        tokens: TokenBook | None = None,
    ) -> None:
        self.name: str = name
        self.max_size = max_size
        """Bytes of its idle instances together, at most; None: only the cache's limit."""
        self.reserved_size: int = reserved_size
        """Bytes of its idle instances that others' need does not evict."""
        self.idle_size: int = 0
        """Bytes of its idle instances together; only the ledger, and the short way of a hit, change
        it."""
        self.room: int
        """Bytes that `idle_size` may become; below 0 once the group is closed."""
        self.closed: bool = False
        self.gone: bool = False
        """Whether it was closed while the cache stayed open."""
        self.entries: dict[Entry, None] = {}
        self.serving: dict[Spelling, Entry] = {}
        """Those of registered functions, by their keys. So a hit, among many, finds its entry in
        one step and has not to touch what else is known of the function."""
        self.tokens: TokenBook = TokenBook() if tokens is None else tokens
        self.limit(self.max_size, self.reserved_size)

    def limit(self, max_size: int | None, reserved_size: int) -> None:
        """Change the limits (bytes)."""
        self.max_size, self.reserved_size = max_size, reserved_size
        self.room = -1 if self.closed else sys.maxsize if max_size is None else max_size

    def close(self) -> None:
        """Let none of its instances become idle any more, and no hit find one."""
        self.closed, self.room = True, -1
        self.serving.clear()

    def keeps(self, size: int) -> bool:
        """Whether the group would have less than it has reserved without so many idle bytes."""
        return self.idle_size - size < self.reserved_size


@final
class Need:
    """Whose need an eviction serves."""

    __slots__ = ("group", "key", "number")

    def __init__(self, key: FunctionKey, group: GroupRecord, number: int | None = None) -> None:
        self.key: FunctionKey = key
        """Key of the function."""
        self.group: GroupRecord = group
        """The group in which it is used."""
        self.number: int | None = number
        """Number of the request in the log, if it is one that is logged."""


class Entry:
    """One function in one group: its instances, and the requests for them.

    A *claim* is the right to one of the `concurrency` instances: each request that waits for
    capacity, loads, or runs holds one. Idle instances are unclaimed.

    Most have one instance at most. So the only claim and the only idle instance are fields, which
    the short ways of `Policy` read and write; a dictionary or a list, which would be two more
    objects that a hit has to touch, is made once there are several at a time. It is kept then.

    For the same reason a hit mostly counts nothing in `uses`: `Policy.rest` puts off holds that are
    alike. The numbers for them stay below 256. Python has each of these once, so they are no
    objects of the entry's own, that a hit would have to touch.
    """

    __slots__ = (
        "alike_bits",
        "alike_long",
        "alike_short",
        "alike_time",
        "counted",
        "function",
        "group",
        "last_used",
        "live",
        "lone_claim",
        "lone_idle",
        "many_claims",
        "many_idle",
        "waiting",
        "worst_size",
    )

    def __init__(self, function: FunctionRecord, group: GroupRecord, live: int = 0) -> None:
        self.function: FunctionRecord = function
        self.group: GroupRecord = group
        self.worst_size: int = function.worst_size
        """That of its function, for hits; see `GroupRecord.serving`."""
        self.live: int = live
        """Number of instances that are loading, running or idle."""
        self.lone_idle: Instance | None = None
        """The only idle instance, or seat, unless there is `many_idle`."""
        self.many_idle: list[Instance] | None = None
        self.waiting: OrderedDict[Request, None] = NO_LINE
        """Requests that wait for an instance, in order: any may leave, at the same cost."""
        self.lone_claim: Request | None = None
        """The only claim, unless there is `many_claims`."""
        self.many_claims: dict[Request, None] | None = None
        self.last_used: float | None = None
        self.counted: UseStats = UseStats()
        """Its `uses` without the holds that are put off: to add to."""
        self.alike_bits: int = 0
        """Number of bits of holds (microseconds) that are put off, or one less."""
        self.alike_short: int = 0
        """Number of those with as many bits."""
        self.alike_long: int = 0
        """Number of those with one more."""
        self.alike_time: int = 0
        """Their sum (microseconds)."""

    # -- idle instances

    @property
    def idle(self) -> Sequence[Instance]:
        """Idle instances and seats, the most recently used last."""
        if self.many_idle is not None:
            return self.many_idle
        return () if self.lone_idle is None else (self.lone_idle,)

    def push(self, instance: Instance) -> None:
        """Add an instance that has become idle."""
        if self.many_idle is not None:
            self.many_idle.append(instance)
        elif self.lone_idle is None:
            self.lone_idle = instance
        else:
            self.many_idle = [self.lone_idle, instance]
            self.lone_idle = None

    def take(self, instance: Instance) -> None:
        """Remove an instance that is idle no longer."""
        if self.many_idle is None:
            self.lone_idle = None
        elif self.many_idle[-1] is instance:
            self.many_idle.pop()
        else:
            self.many_idle.remove(instance)

    def exchange(self, old: Instance, new: Instance) -> None:
        """Put another idle instance in the place of one."""
        if self.many_idle is None:
            self.lone_idle = new
        else:
            self.many_idle[self.many_idle.index(old)] = new

    # -- claims

    @property
    def claims(self) -> Collection[Request]:
        """Requests that have a claim, in order."""
        if self.many_claims is not None:
            return self.many_claims
        return () if self.lone_claim is None else (self.lone_claim,)

    def claim(self, request: Request) -> None:
        """Give a request a claim."""
        if self.many_claims is not None:
            self.many_claims[request] = None
        elif self.lone_claim is None:
            self.lone_claim = request
        else:
            self.many_claims = {self.lone_claim: None, request: None}
            self.lone_claim = None

    def unclaim(self, request: Request) -> None:
        """Take the claim of a request away, if it has one here."""
        if self.many_claims is not None:
            self.many_claims.pop(request, None)
        elif self.lone_claim is request:
            self.lone_claim = None

    # -- uses

    @property
    def uses(self) -> UseStats:
        """Uses since it was made, or since all statistics were reset."""
        if self.alike_short or self.alike_long:
            self.count_alike()
        return self.counted

    def count_alike(self) -> None:
        """Count the holds that are put off."""
        self.counted.hold += self.alike_time
        self.counted.count_few(FEW_HOLDS + self.alike_bits, self.alike_short)
        self.counted.count_few(FEW_HOLDS + self.alike_bits + 1, self.alike_long)
        self.alike_short = self.alike_long = self.alike_time = 0

    # -- the whole

    @property
    def need(self) -> Need:
        """The need of one of its calls."""
        return Need(self.function.key, self.group)

    @property
    def module(self) -> Module:
        """Module of which new instances are made."""
        variant = self.function.variant
        if variant is not None and variant.serves(self.group):
            return variant.module
        return self.function.module

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules of which its instances are."""
        held = [request.instance for request in self.claims]
        return *self.function.modules, *(it.module for it in held if it is not None)

    def queue(self, request: Request) -> None:
        """Put a request at the end of the line."""
        if self.waiting is NO_LINE:
            self.waiting = OrderedDict()
        self.waiting[request] = None

    @property
    def vacant(self) -> bool:
        """Whether nothing keeps this entry alive."""
        return not (self.live or self.waiting or self.lone_claim or self.many_claims)


class Instance:
    """One instance, or one seat. Its `entry` and its `module` never change."""

    __slots__ = (
        "address_space",
        "after",
        "before",
        "bound",
        "created_at",
        "entry",
        "last_used",
        "loads_module",
        "mappings",
        "module",
        "number",
        "ready",
        "rested",
        "resting_size",
        "seat",
        "size",
        "state",
        "uses",
        "uses_before",
    )

    def __init__(
        self,
        number: int,
        entry: Entry,
        created_at: float,
        state: State = State.ABSENT,
        size: int = 0,
        module: Module | None = None,
    ) -> None:
        self.number: int = number
        self.entry: Entry = entry
        self.created_at: float = created_at
        self.state: State = state
        self.size: int = size
        self.address_space: int = 0
        """Bytes of addresses that it reserves (a seat: 0); only the ledger changes it."""
        self.mappings: int = 0
        """Number of its memory mappings; only the ledger changes it."""
        self.last_used: float = 0.0
        self.resting_size: int = 0
        """Size (bytes) with which a hit may rest the short way; -1: with none, as the policy must
        be told."""
        self.rested: float = 0
        """Sequence number, assigned each time the instance becomes idle. `rested` returns it as an
        int. It is a float, as Python keeps the memory of freed ones at hand; to free an int takes
        two further pages of memory that a hit has not touched."""
        self.uses: int = 0
        self.uses_before: int = 0
        """Value of `uses` when it was loaded last."""
        self.bound: Closable | None = None
        """The loaded instance, ready for calls; None for a seat."""
        self.ready: bool | None = False
        """Whether a hit can use `bound` without preparation; None: it can, but its next hit has to
        take the long way, as it has aged (see `keep_alive`)."""
        self.loads_module: bool = False
        """Whether its module had to be loaded when it began to load."""
        self.seat: bool = False
        """Whether it is a seat: nothing native is left, and a lease has to load it again."""
        self.before: Any = None
        self.after: Any = None
        """Its neighbours in the order of last use, while it is idle: see `lru`."""
        self.module: Module = self.entry.module if module is None else module
        """Module of which it is made."""

    @property
    def outdated(self) -> bool:
        """Whether new instances of its entry are made of another module, since it was made."""
        return self.module is not self.entry.module

    @property
    def misfit(self) -> bool:
        """Whether it must not be kept, as a profile of its function has begun, or ended, since."""
        function = self.entry.function
        if function.variant is not None and function.variant.serves(self.entry.group):
            return self.module is not function.variant.module
        return self.module is not function.module and self.module is not function.earlier

    def note_load(self, seconds: float) -> None:
        """Add its load, with its code if `loads_module`, to the means (seconds)."""
        function = self.entry.function
        loaded: FunctionRecord | Module = function
        if self.loads_module:
            loaded = self.module
            seconds = max(0.0, seconds - (function.load_seconds or 0.0))
        mean = loaded.load_seconds
        loaded.load_seconds = seconds if mean is None else mean + LOAD_PART * (seconds - mean)

    def hold(self, bound: Closable, *, ready: bool = False) -> None:
        """Keep the loaded instance; `ready` if the next hit can use it without preparation."""
        self.bound = bound
        self.ready = ready

    def report_rest(self) -> None:
        """Have its next rest reported, whatever its size."""
        self.resting_size = -1

    def set_aside(self) -> None:
        """Mark `bound` as not ready; it has to be made again before a hit."""
        self.ready = False

    def age(self) -> None:
        """Have its next hit take the long way."""
        self.ready = None if self.ready else False

    def wake(self) -> None:
        """Undo `age`."""
        self.ready = self.ready is not False

    def release(self) -> Closable | None:
        """Give up `bound`; return it for the caller to close, if there is one."""
        bound, self.bound = self.bound, None
        self.ready = False
        return bound


def rested(instance: Instance) -> int:
    """Return the last rest of an instance, by which instances are sorted."""
    return int(instance.rested)


def runs(instance: Instance) -> bool:
    """Return whether an instance is not idle, and so can't be evicted."""
    return instance.state is not IDLE


def running(module: Module) -> int:
    """Return how many instances of a module are not idle."""
    return module.running


class Stage(enum.Enum):
    """Progress of a request. The order is that of the acquire steps in the design."""

    NEW = "new"
    QUEUED = "waiting for an instance"
    ROOM = "waiting for room"
    LOADING = "loading"
    GRANTED = "running"
    ENDED = "ended"


# For the steps of every hit: an attribute of an enum takes 40 ns, a name of a module 2.
NEW, GRANTED, ENDED = Stage.NEW, Stage.GRANTED, Stage.ENDED


class Request:
    """One acquire, from its first step to its recycle."""

    __slots__ = (
        "asleep",
        "blocked",
        "entry",
        "epoch",
        "error",
        "give_up",
        "handed_over",
        "hit",
        "instance",
        "number",
        "owner",
        "plain",
        "reused",
        "since",
        "spare",
        "stage",
        "turn",
        "warm",
    )

    def __init__(
        self,
        entry: Entry,
        owner: Hashable,
        warm: bool = False,
        turn: int = 0,
        stage: Stage = Stage.NEW,
        instance: Instance | None = None,
        hit: bool = False,
        blocked: bool = False,
        since: float = 0.0,
        give_up: GiveUp | None = None,
        handed_over: bool = False,
        number: int | None = None,
    ) -> None:
        self.entry: Entry = entry
        self.owner: Hashable = owner
        """The task that waits for or holds its instance. Once the block of the lease has ended: the
        task that still has a call of it under way, and need not have a token."""
        self.warm: bool = warm
        """Whether to load another instance even if one is idle, and leave it idle: `cache.warm`."""
        self.turn: int = turn
        """Sequence number among requests that were not served at once, in order of arrival."""
        self.stage: Stage = stage
        self.instance: Instance | None = instance
        self.hit: bool = hit
        self.blocked: bool = blocked
        self.since: float = since
        """Time of the request, if it had to wait; once granted, time of the grant (seconds)."""
        self.error: Exception | None = None
        """Reason of a failed end; `RequestClosed` where a group or the cache was closed."""
        self.asleep: bool = False
        """Whether its task sleeps until it is woken; the policy does not use it."""
        self.give_up: GiveUp | None = give_up
        """Callback that revokes the grant; None once the lease has ended."""
        self.handed_over: bool = handed_over
        """Whether the block of its lease has ended while a call of it continues."""
        self.plain: bool = False
        """Whether its lease can end the short way, unless something unusual happens; see
        `Policy.rest`."""
        self.reused: bool = False
        """Whether a later hit uses it again, once its lease has ended the short way."""
        self.epoch: int = -1
        """Number of the steps of the policy before a hit was granted, or rested; see
        `Policy.rest`."""
        self.number: int | None = number
        """Number in the log, of an acquire that is logged; for the events of evictions only."""
        self.spare: Request | None = None
        """While it is a spare request itself: the next one. See `Policy.hit`."""

    @property
    def need(self) -> Need:
        """What an eviction for this request serves."""
        return Need(self.entry.function.key, self.entry.group, self.number)

    @property
    def held(self) -> Instance:
        """The instance that it loads or was granted.

        Raises:
            IllegalStepError: it has none.
        """
        if self.instance is None:
            raise IllegalStepError(f"a request that is {self.stage.value} has no instance")
        return self.instance

    def revoke(self, reason: Reason) -> Wait | None:
        """Have its instance given up, as its group or the cache closes: see `GiveUp`.

        Raises:
            IllegalStepError: it holds none that could be given up.
        """
        if self.give_up is None:
            raise IllegalStepError(f"a request that is {self.stage.value} can't be revoked")
        return self.give_up(reason)

    def refuse(self, error: Exception) -> None:
        """Keep the error that its first step raised."""
        self.error = error


class RequestClosed(Exception):
    """A request ended because its group or the cache did; callers get Trio's error instead."""
