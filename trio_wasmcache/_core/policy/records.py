"""What the policy keeps its books about: modules, functions, groups, entries, instances, requests.

These have identity, not value, and only the policy and the ledger change them. The pool reads
them; what it hangs on them it does by a method, and the policy knows no more of it than a protocol
says here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from attrs import Factory, define, field

from ..events import Reason
from ..keys import FunctionKey
from ..metrics.counters import UseStats
from .lifecycle import IDLE, State


class Unloadable(Protocol):
    """Code that can be freed, and loaded again."""

    def unload(self) -> None:
        """Free it, as no instance uses it any more."""


class Closable(Protocol):
    """Something native that can be freed."""

    def close(self) -> None:
        """Free it. Closing twice is fine."""


class Wait(Protocol):
    """Something that will have happened."""

    async def wait(self) -> None:
        """Wait until it has."""


GiveUp = Callable[[Reason], Wait | None]
"""Gives up what a request was granted, as its group or the cache closes.

It returns what to wait for if a thread is in it. Then nothing was given up yet, and it has to be
called again after that.
"""


@define(eq=False)
class Module:
    """Compiled code that functions share. Loaded while `users` is not zero."""

    digest: str
    code_size: int
    mappings: int = 0
    """Memory mappings of the code, while it is loaded."""
    users: int = 0
    """Instances and seats of it, whatever their state."""
    running: int = 0
    """Those of them that are loading or running: while there are any, the code can't go."""
    instances: dict[Instance, None] = field(factory=dict, repr=False)
    """All of them. Which are idle they know themselves."""
    slot: Unloadable | None = None
    """Where its code is, for the pool."""
    before: Any = field(default=None, repr=False)
    after: Any = field(default=None, repr=False)
    """Its neighbours among those that are evictable: see `lru`."""

    @property
    def idle(self) -> list[Instance]:
        """The least recently used first."""
        idle = [instance for instance in self.instances if instance.state is IDLE]
        return sorted(idle, key=_rested)


@define(eq=False)
class FunctionRecord:
    """One generation of a function. `retired` once it was removed or replaced."""

    key: FunctionKey
    generation: int
    module: Module
    concurrency: int = 1
    worst_size: int = 0
    """What one instance of it may touch at most (bytes)."""
    address_space: int = 0
    """Addresses that a new instance of it reserves (bytes)."""
    mappings: int = 0
    """Memory mappings of a new instance of it."""
    retired: bool = False
    successor: FunctionRecord | None = None
    entries: dict[GroupRecord, Entry] = Factory(dict)
    warned_oversized: bool = False
    definition: object = None
    """What the pool knows of it."""

    @property
    def gone(self) -> bool:
        """Whether it was removed, and not replaced by what is there still."""
        function = self
        while function.retired and function.successor is not None:
            function = function.successor
        return function.retired


@define(eq=False)
class TokenBook:
    """Who has the tokens of a group, for the search for deadlocks."""

    owners: dict[Hashable, int] = Factory(dict)  # {task: leases that share its token}
    strangers: Callable[[], bool] = field(default=lambda: False)
    """Tells whether somebody else has a token: a task to which one was granted but which does not
    run yet, or whatever else the application uses the limiter for."""


@define(eq=False)
class GroupRecord:
    """A scheduling group, as far as the policy cares."""

    name: str
    closed: bool = False
    gone: bool = False
    """Whether it was closed while the cache stayed open."""
    entries: dict[Entry, None] = Factory(dict)
    tokens: TokenBook = Factory(TokenBook)


@define(eq=False)
class Entry:
    """The slot of one function in one group.

    A *claim* is the right to one of the `concurrency` instances: requests that wait for room,
    load, or run hold one each. Idle instances are unclaimed.
    """

    function: FunctionRecord
    group: GroupRecord
    live: int = 0
    """Instances that are loading, running or idle."""
    idle: list[Instance] = Factory(list)
    """The most recently used last."""
    waiting: list[Request] = Factory(list)
    claims: dict[Request, None] = Factory(dict)
    last_used: float | None = None
    uses: UseStats = Factory(UseStats)
    """Since it was made, or since all statistics began anew."""

    @property
    def vacant(self) -> bool:
        """Whether nothing keeps this entry alive."""
        return not (self.live or self.waiting or self.claims)


@define(eq=False)
class Instance:
    """One instance, or one seat. Its `entry` never changes."""

    number: int
    entry: Entry
    created_at: float
    state: State = State.ABSENT
    size: int = 0
    address_space: int = 0
    """Addresses that it reserves (bytes); a seat reserves none. The ledger changes it."""
    mappings: int = 0
    """Its memory mappings. The ledger changes it."""
    last_used: float = 0.0
    rested: int = 0
    """Its place among all that ever became idle: who did first has the lower one."""
    uses: int = 0
    request: Request | None = None
    """Of its hits, one after the other: see `Policy.hit`."""
    bound: Closable | None = None
    """What calls of it need, once it is loaded; None for a seat."""
    ready: bool = False
    """Whether a hit can use `bound` as it is."""
    loads_module: bool = False
    """Whether its code was not loaded when it began to load."""
    seat: bool = False
    """Whether there is nothing native behind it: it has to be loaded again for a lease."""
    before: Any = field(default=None, repr=False)
    after: Any = field(default=None, repr=False)
    """Its neighbours in the order of last use, while it is idle: see `lru`."""

    def hold(self, bound: Closable, *, ready: bool = False) -> None:
        """Keep what calls of it need; `ready` if the next hit can use that as it is."""
        self.bound = bound
        self.ready = ready

    def set_aside(self) -> None:
        """Keep hits from using `bound` as it is; it has to be made anew."""
        self.ready = False

    def release(self) -> None:
        """Free what is native, if it is there still."""
        bound, self.bound = self.bound, None
        self.ready = False
        if bound is not None:
            bound.close()


def _rested(instance: Instance) -> int:
    return instance.rested


class Stage(enum.Enum):
    """How far a request has come. The order is the order of DESIGN's acquire."""

    NEW = "new"
    QUEUED = "waiting for an instance"
    ROOM = "waiting for room"
    LOADING = "loading"
    GRANTED = "running"
    ENDED = "ended"


# For what is done on every hit: an attribute of an enum takes 40 ns, a name of a module 2.
NEW, GRANTED, ENDED = Stage.NEW, Stage.GRANTED, Stage.ENDED


@define(eq=False)
class Request:
    """One acquire, from its first step to its recycle."""

    entry: Entry
    owner: Hashable
    """The task that waits for or holds its instance; once the block of the lease has ended, who
    still has a call of it under way, and need not have a token."""
    warm: bool = False
    """Load another instance even if one is idle, and leave it idle: `cache.warm`."""
    turn: int = 0
    """Its place among all that were not served at once: who came first has the lower one."""
    stage: Stage = Stage.NEW
    instance: Instance | None = None
    hit: bool = False
    blocked: bool = False
    since: float = 0.0
    """When it asked, if it had to wait; from when it is granted on, when that was (seconds)."""
    error: Exception | None = field(default=None)
    """Why it ended, if it did not end well. `Closed` where a group or the cache was closed."""
    wake: Callable[[], object] | None = None
    """Wakes its task, while that sleeps; the policy does not look at it."""
    give_up: GiveUp | None = None
    """For who has to take back what was granted; None once it has ended."""
    handed_over: bool = False
    """Whether the block of its lease has ended, and only a call of it goes on."""

    def rouse(self) -> None:
        """Wake its task, if it sleeps."""
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()


class Closed(Exception):
    """A request ended because its group or the cache did; the pool says it in Trio's words."""
