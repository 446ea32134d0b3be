"""The state machine that decides which requests are served, which wait, and in what order.

Rules:

1. A step is synchronous. It takes the time, changes state once, and *returns* what must be closed,
   which requests must be woken and what happened; it does none of that itself. An error changes
   nothing.
2. Every request passes the same stages in the same order: an instance of its entry (first come,
   first served), then capacity to run (first come, first served in the whole cache), then the load
   if nothing is idle.
3. An instance or capacity is granted in the step that frees it, never "assigned but still idle".
4. Recycling never waits and never fails.

These hold between two steps:

5. No entry has waiters while one of its claims is free, and no request waits for capacity that is
   available.
6. A request that waits for capacity has a claim already, so the queue for capacity never holds more
   requests of an entry than its `concurrency`.
7. Some task that holds an instance can proceed: a wait that is in vain ends with an error, at its
   beginning or, if a release made it so, in the step of the release.

Nearly every acquire and recycle is a plain hit, and takes the short way: `hit` and `rest`. They do
the same as `acquire` and `recycle`, which make a dozen calls each, but without a call, as a call in
Python costs as much as three of their lines. Where many want one instance, `queue` and `pass_on`
are the short ways into the line and out of it. In any unusual case all four change nothing and
refuse; then the long way is taken. The model of the policy in the tests checks that both ways lead
to the same state, whatever the state before.

What `rest` has left is mostly what the next `hit` wants. So the books have that one instance as
held until they are looked at, or another step begins: see `_settle`. Nearly a half of both ways is
saved if it is wanted, and a comparison is lost if it is not.

`instances` keeps the books of what is in the cache. The pool around them closes, loads, wakes and
logs; the log tool replays a log through this file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from math import trunc
from operator import attrgetter
from typing import TYPE_CHECKING, final

from ..config import ADAPTIVE, CacheConfig, SystemLimits
from ..errors import CodeMemoryError, DeadlockError, UnknownFunctionError
from ..events import Reason
from ..keys import FunctionKey
from ..metrics.counters import (
    COMPILES,
    FEW_HOLDS,
    FUELS,
    HOLDS,
    MOST,
    RUNS,
    WAITS,
    microseconds,
)
from ..stack_room import check_headroom
from .deadlock import ROOM, Resource, Waits
from .instances import Instances, Step
from .lifecycle import IDLE, LOADING, RECYCLE, RUNNING, Action, IllegalStepError, step
from .records import (
    ENDED,
    GRANTED,
    NEW,
    NO_LINE,
    Closable,
    Entry,
    FunctionRecord,
    GiveUp,
    GroupRecord,
    Instance,
    Module,
    Need,
    Request,
    RequestClosed,
    Stage,
    Variant,
)

if TYPE_CHECKING:
    from .copying import PolicyCopy, UnderWay, Whole

_FUNCTION, _MODULE = attrgetter("function"), attrgetter("module")
_LOAD_SECONDS, _STOPPED = attrgetter("load_seconds"), attrgetter("stopped")
_REQUEST = attrgetter(
    *("stage", "entry", "instance", "warm", "blocked", "hit", "handed_over", "turn", "error")
)
_ENDINGS: dict[str, Callable[[str], Exception]] = {
    error.__name__: error
    for error in (CodeMemoryError, DeadlockError, UnknownFunctionError, RequestClosed)
}
# Holds of hits that are shorter (microseconds) are put off: see `Entry.alike_bits`.
SHORT = 64
# Entry of a spare request: its last one may be of a removed function, which must not be kept.
_NO_ENTRY = Entry(FunctionRecord(FunctionKey("", ()), 0, Module("", 0)), GroupRecord(""))


@final
class Glance:
    """Counts of one moment; bytes of idle instances, and of code and stacks."""

    __slots__ = ("idle", "running", "total_size", "used", "waiting")

    def __init__(self, idle: int, running: int, total_size: int, used: int, waiting: int) -> None:
        self.idle: int = idle
        self.running: int = running
        self.total_size: int = total_size
        self.used: int = used
        self.waiting: int = waiting


class Policy:
    """Decides for one cache. The only clock is `now` (seconds), an argument of each step."""

    __slots__ = (
        "_calm",
        "_epoch",
        "_instances",
        "_limits",
        "_resting",
        "_room",
        "_spare",
        "_turns",
        "_waits",
        "blocks",
        "closed",
        "config",
        "hits",
        "misses",
        "seat_hits",
        "system",
    )

    def __init__(self, config: CacheConfig, system: SystemLimits | None = None) -> None:
        self.config: CacheConfig = config
        self.system: SystemLimits = SystemLimits() if system is None else system
        self._instances: Instances = Instances(self.config, self.system)
        self._room: OrderedDict[Request, None] = OrderedDict()
        self._waits = Waits()
        self.hits: int = 0
        self.seat_hits: int = 0
        """Number of hits for which an instance had to be loaded, on a seat."""
        self.misses: int = 0
        self.blocks: int = 0
        self.closed: bool = False
        self._turns = 0
        self._spare: Request | None = None
        """Ended requests of `hit`, which later hits use again: each refers to the next."""
        self._resting: Request | None = None
        """Request of the lease that ended last, if it ended the short way, and its instance is not
        idle in the books yet."""
        self._epoch = 0
        """Number of steps that may have changed what `rest` looks at."""
        self._calm = -1
        """The last epoch in which `pass_on` found that the cache as a whole does not hinder it."""
        self._limits = 0
        """Number of the limits, counted by `resize`."""

    # -- the books

    @property
    def instances(self) -> Instances:
        """The books of what is in the cache."""
        if self._resting is not None:
            self._settle()
        return self._instances

    @property
    def waits(self) -> Waits:
        """The tasks that wait, and the requests that hold instances."""
        if self._resting is not None:
            self._settle()
        return self._waits

    @property
    def room(self) -> Collection[Request]:
        """Requests that wait for capacity, in order."""
        return self._room

    def glance(self) -> Glance:
        """Return counts of the moment. Any thread may call it, as it changes nothing."""
        ledger, resting = self._instances.ledger, self._resting
        instance = None if resting is None else resting.instance
        rests = instance is not None
        return Glance(
            ledger.idle + rests,
            ledger.running - rests,
            ledger.total_size + (instance.size if instance is not None else 0),
            ledger.used - rests * ledger.stack_size,
            len(self._waits.waiting),
        )

    # -- the short way of a hit

    def hit(
        self,
        entry: Entry,
        owner: Hashable,
        give_up: GiveUp,
        now: float,
    ) -> Request | None:
        """Return a request that is GRANTED an idle instance, or None, having changed nothing.

        Grants only an instance that is `ready`, and only while no other request waits for it.
        """
        request = self._resting
        if request is not None:
            if (
                request.entry is entry and request.reused and request.instance.ready  # type: ignore[union-attr] # it has one
            ):
                # The instance that has just become idle: the books have it as held.
                self._resting = None
                request.owner = owner
                request.give_up = give_up
                request.since = now
                self.hits += 1
                return request
            self._settle()
        if entry.waiting or self._room:
            return None
        idle, claims, lone = entry.many_idle, entry.many_claims, entry.lone_claim
        instance = entry.lone_idle if idle is None else idle[-1] if idle else None
        if (
            instance is None
            or (lone is not None and entry.function.concurrency == 1)
            or (claims is not None and len(claims) >= entry.function.concurrency)
        ):
            return None
        instances = self._instances
        ledger = instances.ledger
        module = instance.module
        running = ledger.running + 1
        running_size = ledger.running_size + entry.worst_size
        if (
            not instance.ready
            or running > ledger.most_running
            or running_size > instances.running_limit
        ):
            return None
        request = self._spare
        if request is None:
            request = Request(entry, owner)
            request.hit = request.plain = request.reused = True
        else:
            self._spare = request.spare
        # The instance and the order of use. From here on there is not even a call of C, which
        # could still fail when Python's stack is exhausted.
        if idle is None:
            entry.lone_idle = None
        else:
            del idle[-1]
        instance.state = RUNNING
        before, after = instance.before, instance.after
        before.after, after.before = after, before
        instance.before = instance.after = None
        # The ledger.
        if module.running == 0:
            before, after = module.before, module.after
            before.after, after.before = after, before
            module.before = module.after = None
            ledger.evictable_code -= module.code_size
        module.running += 1
        ledger.running = running
        ledger.running_size = running_size
        ledger.total_size -= instance.size
        entry.group.idle_size -= instance.size
        # The request. A spare one has been plain to its end: it is a hit, and not handed over.
        request.entry = entry
        request.instance = instance
        request.owner = owner
        request.give_up = give_up
        request.stage = GRANTED
        request.since = now
        request.epoch = self._epoch
        self._waits.held[request] = None
        if claims is not None:
            claims[request] = None
        elif lone is None:
            entry.lone_claim = request
        else:
            entry.many_claims = {lone: None, request: None}
            entry.lone_claim = None
        self.hits += 1
        return request

    def rest(self, request: Request, size: int, now: float) -> bool:
        """Make the instance of a `hit`, or one allowed by `may_rest`, idle.

        Returns False, having changed nothing, if `recycle` must be called instead. `size` is what
        the instance may touch now (bytes).
        """
        if self._resting is not None:
            self._settle()
        instance, entry, instances = request.instance, request.entry, self._instances
        if instance is None or size != instance.resting_size or not request.plain:
            return False
        if request.epoch != self._epoch:
            # While no step has come between, it fits where it was taken from.
            config, group = self.config, entry.group
            if (
                size > config.max_instance_size
                or instances.ledger.total_size + size > config.max_size
                or entry.waiting
                or self._room
                or entry.function.retired
                or group.idle_size + size > group.room
                or instances.shrunk
            ):
                return False
            # A lease of the present epoch may not find its place any more.
            request.epoch = self._epoch = self._epoch + 1
        held = trunc((now - request.since) * 1e6)  # a third of what `int` takes
        bits = held.bit_length()
        if held >= SHORT or not request.hit:
            uses = entry.counted  # `UseStats.add`, written out
            uses.hold += held
            try:
                uses.few[FEW_HOLDS + bits] += 1
            except (IndexError, ValueError):
                uses.count_few(FEW_HOLDS + bits)
        else:
            time, more = entry.alike_time + held, bits - entry.alike_bits
            if time > MOST or more < 0 or more > 1:
                if entry.alike_short or entry.alike_long:
                    entry.count_alike()
                    time = held
                # A longer one counts as one bit more: the next ones are of its length, or shorter.
                entry.alike_bits = bits - (more > 0)
                more = more > 0
            if more:
                entry.alike_long += 1
            else:
                entry.alike_short += 1
            entry.alike_time = time
        # As above, no calls from here on.
        instance.last_used = entry.last_used = now
        instances.rests = instance.rested = instances.rests + 1.0
        instance.uses += 1
        request.owner = request.give_up = None
        self._resting = request
        return True

    def _settle(self) -> None:
        """Make the instance idle in the books that was left last; see `rest`.

        Callers are protected from Ctrl-C, those that only read the books included.
        """
        request = self._resting
        assert request is not None
        instance, entry, instances = request.held, request.entry, self._instances
        self._resting = None
        # The instance and the order of use; as above, no calls from here on.
        idle = entry.many_idle
        if idle is not None:
            idle.append(instance)
        elif entry.lone_idle is None:
            entry.lone_idle = instance
        else:
            entry.many_idle = [entry.lone_idle, instance]
            entry.lone_idle = None
        instance.state = IDLE
        ring = instances.lru
        last = ring.before
        instance.before, instance.after = last, ring
        last.after = ring.before = instance
        # The ledger.
        ledger = instances.ledger
        module, size = instance.module, instance.size
        module.running -= 1
        if module.running == 0:
            modules = ledger.evictable
            last = modules.before
            module.before, module.after = last, modules
            last.after = modules.before = module
            ledger.evictable_code += module.code_size
        ledger.running -= 1
        ledger.running_size -= entry.worst_size
        ledger.total_size += size
        entry.group.idle_size += size
        # The request.
        request.stage = ENDED
        request.instance = None
        del self._waits.held[request]
        if entry.many_claims is None:
            entry.lone_claim = None
        else:
            del entry.many_claims[request]
        if request.reused:
            request.entry = _NO_ENTRY
            request.spare = self._spare
            self._spare = request

    # -- the short ways into the line, and from a lease to the first in line

    def queue(
        self,
        entry: Entry,
        owner: Hashable,
        give_up: GiveUp,
        now: float,
    ) -> Request | None:
        """Return a request that is QUEUED, or None, having changed nothing.

        Does the same as `acquire`, but only while all instances of the entry are claimed, and one
        of their holders can proceed.

        Raises:
            RecursionError: there is not enough space on Python's stack; nothing has changed.
        """
        if self._resting is not None:
            self._settle()
        function, group = entry.function, entry.group
        if function.fits != self._limits or group.closed or self.closed:
            return None
        line = entry.waiting
        claims: Collection[Request] = entry.many_claims or ()
        if entry.lone_claim is not None:
            claims = (entry.lone_claim,)
        if not line and len(claims) < function.concurrency:
            return None
        waiting, registering = self._waits.waiting, self._waits.registering
        for request in claims:
            holder = request.owner
            if holder not in waiting and holder not in registering and holder != owner:
                break
        else:
            return None  # it may be in vain
        check_headroom()
        if not line:
            self._epoch += 1
            if line is NO_LINE:
                line = entry.waiting = OrderedDict()
        self._turns = turn = self._turns + 1
        request = Request(
            entry, owner, False, turn, Stage.QUEUED, blocked=True, since=now, give_up=give_up
        )
        waiting[owner] = entry
        self.blocks += 1
        entry.counted.blocks += 1
        line[request] = None
        return request

    def pass_on(self, request: Request, size: int, now: float) -> Request | None:
        """End a lease as `rest` does, and grant its instance to the first request in line.

        Does the same as `recycle`, but for the books of what is idle, in which nothing changes.
        `size` is what the instance may touch now (bytes). The caller has checked that there is
        enough space on Python's stack.

        Returns:
            The request that was granted, to be woken; or None, having changed nothing, if
            `recycle` must be called instead.
        """
        if self._resting is not None:
            self._settle()
        instance, entry, instances = request.instance, request.entry, self._instances
        line, group, ledger, config = entry.waiting, entry.group, instances.ledger, self.config
        if (
            instance is None
            or size != instance.resting_size
            or not request.plain
            or not line
            or not instance.ready
            or entry.function.retired
            or size > config.max_instance_size
            or ledger.total_size + size > config.max_size
            or group.idle_size + size > group.room
        ):
            return None
        if self._calm != self._epoch:
            if (
                self._room
                or self.closed
                or instances.told is not None
                or instances.keep_alive.learns
                or instances.shrunk
                or ledger.running > ledger.most_running
                or ledger.running_size > instances.running_limit
            ):
                return None
            self._calm = self._epoch
        following = next(iter(line))
        if following.warm:
            return None
        # `UseStats.add`, written out.
        uses = entry.counted
        held, waited = trunc((now - request.since) * 1e6), trunc((now - following.since) * 1e6)
        uses.hold += held
        uses.wait += waited
        try:
            uses.few[FEW_HOLDS + held.bit_length()] += 1
        except (IndexError, ValueError):
            uses.count_few(FEW_HOLDS + held.bit_length())
        try:
            uses.counts[WAITS + waited.bit_length()] += 1
        except KeyError:
            uses.count_in(WAITS + waited.bit_length())
        # The instance.
        instance.last_used = entry.last_used = now
        instances.rests = instance.rested = instances.rests + 1.0
        instance.uses += 1
        # The requests.
        waits, claims = self._waits, entry.many_claims
        request.stage = ENDED
        request.instance = request.give_up = None
        del line[following], waits.waiting[following.owner], waits.held[request]
        following.instance = instance
        following.stage = GRANTED
        following.hit = following.plain = True
        following.since = now
        waits.held[following] = None
        if claims is None:
            entry.lone_claim = following
        else:
            del claims[request]
            claims[following] = None
        self.hits += 1
        return following

    # -- acquire

    def may_rest(self, request: Request) -> None:
        """Let a lease that was granted the long way end the short way; see `rest`."""
        instance = request.instance
        if instance is not None and instance.entry is request.entry and not request.warm:
            request.plain = True

    def request(
        self,
        function: FunctionRecord,
        group: GroupRecord,
        owner: Hashable,
        warm: bool = False,
        give_up: GiveUp | None = None,
        blocked_since: float | None = None,
    ) -> Request:
        """Return a new request, at stage NEW; call `acquire` on it at once.

        `blocked_since` is when it asked, if it has waited for a token.
        """
        if self._resting is not None:
            self._settle()
        return Request(
            self._instances.entry(function, group),
            owner,
            warm,
            blocked=blocked_since is not None,
            since=blocked_since or 0.0,
            give_up=give_up,
        )

    def acquire(self, request: Request, now: float) -> Step | None:
        """Advance `request` as far as possible without waiting.

        Afterwards its `stage` is GRANTED (a hit), LOADING, QUEUED or ROOM. A load on a seat is a
        hit, too. A warm request is GRANTED at once where `concurrency` allows no further instance.

        Raises:
            CodeMemoryError: An empty cache could not run it.
            DeadlockError: It would have to wait for itself.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        _expect(request, NEW)
        entry = request.entry
        claimed = entry.lone_claim or entry.many_claims
        free = not entry.waiting and (not claimed or len(entry.claims) < entry.function.concurrency)
        idle = entry.lone_idle or entry.many_idle
        if free and idle and not (self._room or request.warm or entry.idle[-1].seat):
            # The fast path of a hit.
            instances, ledger = self._instances, self._instances.ledger
            if (
                ledger.running < ledger.most_running
                and ledger.running_size + entry.function.worst_size <= instances.running_limit
            ):
                entry.claim(request)
                self._grant(request, now)
                return None
        if not request.blocked:
            request.since = now
        self._turns += 1
        request.turn = self._turns
        try:
            self._instances.check_fits(entry.function)
            entry.function.fits = self._limits
            if free:
                return self._seek_room(request, now)
            self._block(request, entry)
        except (CodeMemoryError, DeadlockError):
            request.stage = Stage.ENDED
            self._instances.forget(entry)
            raise
        request.stage = Stage.QUEUED
        entry.queue(request)
        return None

    def loaded(
        self, request: Request, now: float, size: int = 0, seconds: float = 0.0
    ) -> Step | None:
        """Grant the request, whose load succeeded and took that many seconds.

        `size` is what its instance may touch now (bytes).

        If its function was retired or its group closed meanwhile, the new instance is dropped, and
        the request is at another stage: LOADING again, QUEUED or ROOM to wait, or ENDED with
        `error`. It is not among the `woken`, as it did not sleep.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        instance = _instance(request, Stage.LOADING)
        function, module = instance.entry.function, instance.module
        if size != module.size:
            module.size = size
        instance.size = size = module.size
        seat, instance.seat = instance.seat, False
        instances = self._instances
        instance.note_load(seconds)
        instance.uses_before = instance.uses
        reason = self._unwanted(instance.entry)
        if reason is None:
            instance.resting_size = size
            if (
                instances.told is not None
                or module is not function.module
                or function.variant is not None
            ):
                instance.report_rest()
            if seat:
                instances.altered(instance)
            request.hit = seat
            if not request.warm:
                instance.state = step(instance.state, Action.LOADED)
                self._count_loaded(request, now)
            request.stage = Stage.GRANTED
            request.since = now
            return None
        result = Step()
        claimed = request.entry
        self._instances.drop(instance, reason, now, result)
        self._let_go(request)
        if reason is not Reason.REMOVED:
            self._end(request, RequestClosed(), result)
        else:
            self._go_on(request, now, result)
        self._pump(claimed, now, result)
        self._pump(instance.entry, now, result)
        if request in result.woken:
            result.woken.remove(request)
        return result

    def failed(self, request: Request, now: float) -> Step:
        """Give back all that a request holds, a seat too, as its load failed or was cancelled.

        So it is for a guest that is prepared, which counts as loading until it is closed. The claim
        is given to the first waiter of the entry, which tries for itself.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        instance = _instance(request, Stage.LOADING)
        result = Step()
        claimed = request.entry
        if instance.seat:
            self._put_back(request, now, result)
        else:
            self._instances.discard(instance, result)
        self._let_go(request)
        self._pump(claimed, now, result)
        self._pump(instance.entry, now, result)
        return result

    def cancel(self, request: Request, now: float) -> Step:
        """End the wait of `request`, and serve those that waited behind it."""
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        entry = request.entry
        if request.stage is Stage.QUEUED:
            del entry.waiting[request]
        else:
            _expect(request, Stage.ROOM)
            self._leave_room(request)
        result = Step()
        self._waits.end(request.owner)
        request.stage = Stage.ENDED
        self._pump(entry, now, result)
        return result

    # -- recycle

    def hand_over(self, request: Request, owner: Hashable, now: float) -> Step | None:
        """Make `owner`, whose call outlasts the block of the lease, the holder of its instance.

        From now on `owner` determines when the instance is free. If `owner` waits, maybe for this
        very instance, the wait may be in vain now: then it ends with a `DeadlockError`.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        _expect(request, GRANTED)
        request.owner = owner
        request.handed_over = True
        resource = self._waits.wanted_by(owner)
        if resource is None or self._waits.chain(owner, resource) is None:
            return None
        result = Step()
        self._break_cycle(owner, now, result)
        return result

    def recycle(
        self,
        request: Request,
        size: int,
        now: float,
        drop: Reason | None = None,
        seat: bool = False,
        reserved: tuple[int, int] | None = None,
        error: str | None = None,
        grown: int | None = None,
    ) -> Step | None:
        """End a lease; `size` is what its instance may touch now (bytes).

        With `drop` the instance is dropped for that reason, and `error` is the type of the error
        that has left it unusable. Otherwise it is kept if the limits allow, and others are evicted
        until it fits. With `seat` it is closed already, and a seat of that size is kept; `grown` is
        its size (bytes) then if it was to be reset, and could not be, as it had grown. `reserved`
        is what the instance reserves now (bytes of addresses, mappings), where that has changed.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        instance = _instance(request, GRANTED)
        entry = instance.entry
        instances, config, group = self._instances, self.config, entry.group
        result = None
        if seat:
            instance.seat, instance.ready, instance.bound = True, False, None
            instances.ledger.reserve(instance, 0, 0)
            if grown is not None:
                result = Step()
                instances.note_growth(instance, grown, result)
        if not request.warm:
            instance.uses += 1
            entry.counted.add(HOLDS, microseconds(now - request.since))
        limit = None
        if (unwanted := self._unwanted(entry)) is not None:
            drop = drop or unwanted
        elif (
            drop is None
            and (instance.module is not entry.function.module or entry.function.variant is not None)
            and instance.misfit
        ):
            drop = Reason.PROFILED
        elif drop is None and entry.function.earlier is not None and instances.surplus(instance):
            drop = Reason.PROMOTED
        elif drop is None and size > config.max_instance_size:
            drop, limit = Reason.OVERSIZED, config.max_instance_size
        elif drop is None and (size > config.max_size or size > group.room):
            drop, limit = Reason.SIZE, min(config.max_size, group.room)
        booked = instance.address_space, instance.mappings
        if drop is None and not seat and reserved not in (None, booked):
            result = result or Step()
            if not instances.reserve(request, reserved, now, result):
                drop = Reason.ADDRESS_SPACE
        total = instances.ledger.total_size
        if drop is None and (total + size > config.max_size or group.idle_size + size > group.room):
            result = result or Step()
            if not instances.fit(request, size, now, result):
                drop = Reason.SIZE
        if drop is not None:
            result = result or Step()
            instance.size = size
            instances.drop(instance, drop, now, result, limit, error)
        else:
            # An instance that was only loaded to be warm never ran.
            action = Action.WARMED if instance.state is LOADING else RECYCLE
            instances.settle(instance, action, size, now)
        self._let_go(request)
        request.give_up = None
        if entry.waiting or self._room or drop is not None or instances.shrunk:
            result = result or Step()
            self._pump(entry, now, result)
        return result

    def replace(self, request: Request, size: int, now: float, error: str, count: int = 1) -> Step:
        """Replace the instance of a lease, which has become unusable, by a new one.

        The lease goes on with the new one, whatever became of its function meanwhile.

        Args:
            request: the request of the lease.
            size: what the old instance could touch (bytes).
            now: the time (seconds).
            error: type of the error that has left the old one unusable.
            count: number of evictions that this one stands for.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        instance = _instance(request, GRANTED)
        result = Step()
        instance.uses += 1
        request.instance = self._instances.replace(instance, size, now, result, error, count)
        return result

    def relieve(
        self, address_space: int, mappings: int, now: float, need: Need | None = None
    ) -> Step | None:
        """Evict idle instances, as the system refused memory, addresses or mappings for a need.

        Evicts the least recently used first, until those evicted have reserved that many bytes of
        addresses and that many mappings together. Returns None if no idle instance could help.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        result = Step()
        self._instances.relieve(address_space, mappings, now, result, need)
        if not result.evicted:
            return None
        self._pump_room(now, result)
        return result

    # -- promotion

    def promote(
        self,
        function: FunctionRecord,
        module: Module,
        reserved: tuple[int, int],
        now: float,
    ) -> Step:
        """Have new instances of a function made of another module: its optimized code is ready.

        Everything else of the function stays as it is. Instances of the earlier module stay, and
        are hits, until `upgrade` puts others in their places. Only those go that the limits of the
        moment, which may be lower than when they were made, would not let run.

        Args:
            function: the function, which is not retired.
            module: the module; its instances may touch as much as those of the earlier one.
            reserved: what an instance of it reserves (bytes of addresses, mappings).
            now: the time (seconds).

        Raises:
            CodeMemoryError: an empty cache could not run it; nothing has changed.
            IllegalStepError: the function was promoted before; nothing has changed.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        self._instances.check_fits(function, module, reserved)
        function.promote(module, *reserved)
        result = Step()
        for entry in list(function.entries.values()):
            self._instances.evict_unfit(list(entry.idle), now, result)
            for instance in (*entry.idle, *(request.instance for request in entry.claims)):
                if instance is not None:
                    instance.report_rest()
        self._pump_room(now, result)
        return result

    def upgrade(
        self,
        entry: Entry,
        size: int,
        now: float,
        seconds: float = 0.0,
        bound: Closable | None = None,
        *,
        ready: bool = False,
    ) -> tuple[Instance, Step] | None:
        """Add an idle instance of a promoted function, which took that many seconds to make.

        See `Instances.upgrade`; None: it is not wanted.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        result = Step()
        if self.closed:
            return None
        instance = self._instances.upgrade(entry, size, now, result, bound, ready)
        if instance is None:
            return None
        instance.note_load(seconds)
        self._pump_room(now, result)
        return instance, result

    # -- profiles

    def vary(
        self,
        function: FunctionRecord,
        variant: Variant | None,
        now: float,
    ) -> Step:
        """Have new instances of a function made of another module, or of its own one again.

        Its idle instances of the other one are evicted now, and those that run as their leases end.
        Everything else of the function stays as it is, and so do its instances in groups which the
        variant does not serve.

        Args:
            function: the function; nothing happens if it is retired.
            variant: the other module; None: its own one.
            now: the time (seconds).

        Raises:
            CodeMemoryError: an empty cache could not run the variant; nothing has changed.
            IllegalStepError: it has a variant already; nothing has changed.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        result = Step()
        if variant is not None:
            if function.variant is not None:
                raise IllegalStepError(f"{function.key} has a variant already")
            self._instances.check_fits(function, variant.module, variant.reserved)
        if function.retired and variant is not None:
            return result
        function.vary(variant)
        for entry in list(function.entries.values()):
            for instance in [instance for instance in entry.idle if instance.misfit]:
                self._instances.evict(instance, Reason.PROFILED, now, result)
            for held in [request.instance for request in entry.claims]:
                if held is not None and held.misfit:
                    held.report_rest()
            self._instances.forget(entry)
        self._pump_room(now, result)
        return result

    # -- time

    def expire(self, now: float) -> Step:
        """Evict instances idle for their timeout; some may be left over, see `next_expiry`."""
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        result = Step()
        self._instances.expire(now, result)
        self._pump_room(now, result)
        return result

    def next_expiry(self) -> float | None:
        """Return when `expire` will next have something to do (the clock of `now`), or None."""
        if self._resting is not None:
            self._settle()
        timeout = self.config.idle_timeout
        if timeout == ADAPTIVE:
            return self._instances.keep_alive.next_due()
        oldest = self._instances.lru.oldest()
        return None if oldest is None else oldest.last_used + timeout

    @property
    def expects_expiry(self) -> bool:
        """Whether an instance that becomes idle now can't be the next one for `expire`."""
        if self._resting is not None:
            self._settle()
        keep_alive = self._instances.keep_alive
        return keep_alive.has_young if keep_alive.learns else bool(self._instances.lru)

    # -- functions, groups, limits

    def retire(
        self, function: FunctionRecord, now: float, successor: FunctionRecord | None = None
    ) -> Step:
        """Retire `function`, which was removed, or replaced if there is a `successor`.

        Evicts its idle instances. Waiters continue with the successor, in order, or end with
        `UnknownFunctionError`; running leases are not disturbed; loads are handled in `loaded`.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        self._instances.fold()
        function.retired = True
        function.successor = successor
        self._instances.keep_alive.retired(function, successor)
        if successor is None:
            self._instances.book.drop_function(function.key)
        result = Step()
        for entry in list(function.entries.values()):
            self._instances.hide(entry)
            self._instances.evict_entry(entry, Reason.REMOVED, now, result)
            self._move_on(entry, result)
            self._instances.forget(entry)
        self._refuse_misfits(result)
        if successor is not None:
            for entry in list(successor.entries.values()):
                self._pump(entry, now, result)
        self._pump_room(now, result)
        return result

    def close(self) -> None:
        """Note that the cache closes: `close_group` is called for every group next."""
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        self.closed = True
        for entry in self._instances.entries:
            self._instances.hide(entry)

    def close_group(self, group: GroupRecord, now: float, reason: Reason) -> Step:
        """Refuse new leases in `group`, evict its idle instances, and end its waits.

        Waiters end with `RequestClosed`.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        self._instances.fold()
        group.close()
        self._instances.note_group(group)
        if not self.closed:
            group.gone = True
            self._instances.book.drop_group(group.name)
        result = Step()
        for entry in list(group.entries):
            self._instances.evict_entry(entry, reason, now, result)
            for request in self._take_waiters(entry):
                self._end(request, RequestClosed(), result)
            self._instances.forget(entry)
        self._pump_room(now, result)
        return result

    def resize(self, config: CacheConfig, now: float) -> Step:
        """Apply the limits of `config`; requests that wait and can never fit end with an error."""
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        self.config = config
        self._limits += 1
        result = Step()
        self._instances.resize(config, now, result)
        for entry in self._refuse_misfits(result):
            self._pump(entry, now, result)
        self._pump_room(now, result)
        return result

    def open_group(self, group: GroupRecord) -> None:
        """Note a new group, which may have bytes reserved."""
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        self._instances.note_group(group)

    def resize_group(
        self, group: GroupRecord, max_size: int | None, reserved_size: int, now: float
    ) -> Step:
        """Change the limits of a group (bytes), and evict its idle instances that no longer fit.

        The caller has checked that all reservations together fit into `max_size` of the cache.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        group.limit(max_size, reserved_size)
        result = Step()
        self._instances.resize_group(group, now, result)
        self._pump_room(now, result)
        return result

    # -- snapshots

    def copy(
        self, functions: Collection[FunctionRecord], under_way: Sequence[UnderWay]
    ) -> PolicyCopy:
        """Return a copy of the books, for a snapshot; this changes nothing.

        Args:
            functions: all registered functions; beyond `MAX_FUNCTIONS`, only those in use are
                copied.
            under_way: all requests whose end is not logged yet.
        """
        from .copying import MAX_FUNCTIONS, PolicyCopy

        if self._resting is not None:
            self._settle()
        instances = self._instances
        records = {one.request: one for one in under_way}
        held = [request for request in self._waits.held if request.instance is not None]
        residents = instances.copy([request.held for request in held])
        old = [entry.function for entry in residents.entries if entry.function.retired]
        old += [it.request.entry.function for it in under_way if it.request.entry.function.retired]
        retired = {one: one.serving for one in old}
        copied = [*functions]
        if len(copied) > MAX_FUNCTIONS:
            in_use = dict.fromkeys(map(_FUNCTION, residents.entries))
            in_use.update(dict.fromkeys([one for one in retired.values() if one is not None]))
            copied = [one for one in in_use if one not in retired]
        omitted = len(functions) - len(copied)
        copied += retired
        modules = list(map(_MODULE, copied))
        modules += [one.earlier for one in copied if one.earlier is not None]
        modules += [one.variant.module for one in copied if one.variant is not None]
        strays = (request.held for request in held)
        modules += [it.module for it in strays if it.module is not it.entry.function.module]
        order = dict.fromkeys([*held, *self._room])
        first = [records.pop(request) for request in order if request in records]
        rest = sorted(records.values(), key=lambda one: one.request.turn)
        ordered = [*first, *rest]
        claimed = dict.fromkeys([one.request.entry for one in ordered])
        claims = {it: place for one in claimed for place, it in enumerate(one.claims)}
        return PolicyCopy(
            residents,
            copied,
            list(map(_LOAD_SECONDS, copied)),
            {one: one.resets.as_text() for one in copied if one.resets is not None},
            {one: one.variant for one in copied if one.variant is not None},
            retired,
            modules,
            (list(map(_LOAD_SECONDS, modules)), list(map(_STOPPED, modules))),
            omitted,
            ordered,
            [_REQUEST(one.request) for one in ordered],
            claims,
            {
                "hits": self.hits,
                "seat_hits": self.seat_hits,
                "misses": self.misses,
                "blocks": self.blocks,
                "evictions": residents.evictions,
                "loads": residents.loads,
                "rests": residents.rests,
                "drops": residents.drops,
                "turns": self._turns,
            },
        )

    def restore(
        self,
        whole: Whole,
        functions: Mapping[tuple[str, str, int], FunctionRecord],
        groups: Mapping[str, GroupRecord],
        modules: Mapping[int, Module],
    ) -> dict[int, Request]:
        """Take over the books of a snapshot; this policy has done nothing yet.

        Counts begin at 0. Functions, groups and modules have what the snapshot says of them; tokens
        and waits for them are the caller's.

        Args:
            whole: the snapshot.
            functions: {(function, types of its arguments, generation): function}.
            groups: {name: group}.
            modules: {number: module}.

        Returns:
            {number: request}, of all requests in the snapshot.

        Raises:
            KeyError, ValueError: the snapshot contradicts itself.
        """
        from .copying import STAGES

        if self._resting is not None:
            self._settle()
        self._epoch += 1
        stages = {name: stage for stage, name in STAGES.items()}
        instances = self._instances.restore(whole, functions, groups, modules)
        requests: dict[int, Request] = {}
        claims: list[tuple[int, Request]] = []
        for it in whole.requests:
            function, group = functions[it.function, it.arg_types, it.generation], groups[it.group]
            in_books = it.entry is not None
            entry = self._instances.entry(function, group) if in_books else Entry(function, group)
            request = requests[it.request] = Request(
                entry,
                it.task,
                it.warm,
                turn=it.turn,
                stage=stages[it.stage],
                instance=None if it.instance is None else instances[it.instance],
                hit=it.hit,
                blocked=it.blocked,
                handed_over=it.left,
                number=it.request,
            )
            if it.error is not None:
                request.refuse(_ENDINGS[it.error](""))
            if it.claim is not None:
                claims.append((it.claim, request))
            if request.instance is not None:
                self._waits.held[request] = None
            if request.stage is Stage.QUEUED:
                entry.queue(request)
                self._waits.waiting[it.task] = entry
            elif request.stage is Stage.ROOM:
                self._room[request] = None
                self._waits.waiting[it.task] = ROOM
        for _, request in sorted(claims, key=lambda claim: claim[0]):
            request.entry.claim(request)
        self._turns = whole.head.turns
        return requests

    # -- counts of uses

    def note_token_block(self, function: FunctionRecord, group: GroupRecord) -> None:
        """Count an acquire that waits for a token of its group and so has no request yet."""
        self.blocks += 1
        entry = self._instances.entry(function, group)
        entry.counted.blocks += 1
        self._instances.noted(entry)

    def note_error(self, entry: Entry, error: str) -> None:
        """Count an acquire or a call that ended with an error of that type."""
        entry.counted.note_error(error)
        self._instances.noted(entry)

    def note_size(self, request: Request, size: int) -> None:
        """Note what the instance of a request, which is loading, may touch by now (bytes).

        This decides nothing: an instance that runs counts with what it may touch at most.
        """
        if self._resting is not None:
            self._settle()
        self._epoch += 1
        _instance(request, Stage.LOADING).size = size

    def note_long_call(self, entry: Entry, fuel: int, seconds: float) -> None:
        """Count a call that took more than one slice; its lease may have ended already."""
        entry.counted.add(RUNS, microseconds(seconds))
        entry.counted.add(FUELS, fuel)
        self._instances.noted(entry)

    def note_compiled(self, function: FunctionRecord, seconds: float) -> None:
        """Count a compilation of the module of `function`, made for it."""
        self._instances.book.of_function(function.key).add(COMPILES, microseconds(seconds))

    # -- from stage to stage

    def _seek_room(self, request: Request, now: float) -> Step:
        """Give `request`, for which an instance is free, capacity too, or let it wait for that."""
        result = Step()
        # First, as a claim keeps the entry in the books when making room evicts what is idle there.
        request.entry.claim(request)
        if self._room or not self._serve(request, now, result):
            try:
                self._block(request, ROOM)
            except DeadlockError:
                # A request before it in line waits for what it holds: overtake if it fits.
                if self._room and self._serve(request, now, result):
                    return result
                request.entry.unclaim(request)
                raise
            self._enter_room(request)
        return result

    def _serve(self, request: Request, now: float, result: Step) -> bool:
        """Give a request with a claim capacity and an instance; return False if there is none."""
        entry = request.entry
        hit = entry.lone_idle is not None or bool(entry.many_idle)
        if request.warm and entry.live < entry.function.concurrency:
            hit = False
        seat = hit and entry.idle[-1].seat
        if not self._instances.make_room(request, not hit, now, result, seat):
            return False
        if hit and not seat:
            self._grant(request, now)
        else:
            begin = self._instances.take if hit else self._instances.start
            request.instance = begin(entry, now, warm=request.warm)
            request.stage = Stage.LOADING
            self._waits.held[request] = None
        return True

    def _grant(self, request: Request, now: float) -> None:
        request.instance = self._instances.resume(request.entry, now, warm=request.warm)
        request.stage = GRANTED
        request.hit = True
        self._waits.held[request] = None
        if not request.warm:
            self.hits += 1
            if request.turn or request.blocked:
                self._note_wait(request, now)
        request.since = now

    def _count_loaded(self, request: Request, now: float) -> None:
        if request.hit:
            self.hits += 1
            self.seat_hits += 1
            request.entry.counted.seat_hits += 1
        else:
            self.misses += 1
            request.entry.counted.misses += 1
        self._note_wait(request, now)

    def _note_wait(self, request: Request, now: float) -> None:
        request.entry.counted.add(WAITS, microseconds(now - request.since))

    # -- serving waiters when something becomes free

    def _pump(self, entry: Entry, now: float, result: Step) -> None:
        """Serve the waiters of `entry`, then those that wait for capacity."""
        # A cache that closes, group by group, serves nothing any more.
        while not self.closed and entry.waiting and len(entry.claims) < entry.function.concurrency:
            request, _ = entry.waiting.popitem(last=False)
            try:
                self._instances.check_fits(entry.function)
            except CodeMemoryError as error:
                self._end(request, error, result)
                continue
            entry.claim(request)
            if self._room or not self._serve(request, now, result):
                # A wait in vain is detected below, where it is known which task must give way.
                self._waits.waiting[request.owner] = ROOM
                self._note_block(request)
                self._enter_room(request)
            else:
                self._waits.end(request.owner)
                result.woken.append(request)
        self._pump_room(now, result)
        self._instances.forget(entry)

    def _pump_room(self, now: float, result: Step) -> None:
        if self._instances.shrunk:
            self._instances.trim(now, result)
        while self._room and not self.closed:
            request = next(iter(self._room))
            if not self._serve(request, now, result):
                # The releasing task was perhaps the last that could; nothing else would notice.
                if self._waits.chain(request.owner, ROOM) is not None:
                    self._break_deadlock(now, result)
                return
            del self._room[request]
            self._waits.end(request.owner)
            result.woken.append(request)

    def _break_deadlock(self, now: float, result: Step) -> None:
        """Let one overtake, if it fits, or fail, as no holder of capacity can proceed.

        Failing the first in line would not help if it holds nothing: the others would be stuck as
        before. All that wait for capacity are in the same deadlock, so any holder among them will
        do.
        """
        able = self._waits.able
        for request in [request for request in self._room if request.owner in able]:
            if self._serve(request, now, result):
                del self._room[request]
                self._waits.end(request.owner)
                result.woken.append(request)
                return
        stuck = (request for request in self._waiters() if request.owner in able)
        self._give_way(next(stuck, next(iter(self._room))), now, result)

    def _break_cycle(self, owner: Hashable, now: float, result: Step) -> None:
        """Fail the wait of `owner`, which is in vain, or that of a task it depends on.

        The latter if `owner` waits for a token: such a wait is not the policy's to end.
        """
        waiters = {request.owner: request for request in self._waiters()}
        needed = (waiters[task] for task in self._waits.reach(owner) if task in waiters)
        self._give_way(next(needed), now, result)

    def _waiters(self) -> list[Request]:
        """Return all waiting requests, those that wait for capacity first."""
        queued = (request for entry in self._instances.entries for request in entry.waiting)
        return [*self._room, *queued]

    def _give_way(self, request: Request, now: float, result: Step) -> None:
        """End the wait of `request` with a `DeadlockError`."""
        error = self._waits.error(request.owner, self._waits.waiting[request.owner])
        if request.stage is Stage.ROOM:
            self._leave_room(request)
        else:
            del request.entry.waiting[request]
        self._end(request, error, result)
        self._pump(request.entry, now, result)

    # -- queues

    def _go_on(self, request: Request, now: float, result: Step) -> None:
        """Requeue a request whose load was overtaken by `retire`, before all that came after it."""
        function = request.entry.function.serving
        if function is None:
            self._end(request, _unknown(request.entry.function), result)
            return
        entry = request.entry = self._instances.entry(function, request.entry.group)
        self._queue(request)
        self._pump(entry, now, result)
        if request.stage is Stage.QUEUED:
            try:
                self._block(request, entry)
            except DeadlockError as error:
                del entry.waiting[request]
                self._end(request, error, result)

    def _move_on(self, old: Entry, result: Step) -> None:
        """Move the waiters of `old` to its successor's entry, and the claims of those that load.

        Requests that wait for capacity keep their place, as far as the successor's `concurrency`
        allows.
        """
        successor = old.function.successor
        if successor is None:
            for request in self._take_waiters(old):
                self._end(request, _unknown(old.function), result)
            return
        claims = [request for request in old.claims if request.stage is not Stage.GRANTED]
        if not (claims or old.waiting):
            return
        new = self._instances.entry(successor, old.group)
        for request in claims:
            if len(new.claims) < successor.concurrency:
                new.claim(request)
            elif request.stage is Stage.ROOM:
                del self._room[request]
                old.queue(request)
            old.unclaim(request)
            request.entry = new
        for request in old.waiting:
            request.entry = new
            self._waits.waiting[request.owner] = new
            self._queue(request)
        old.waiting.clear()

    def _refuse_misfits(self, result: Step) -> list[Entry]:
        """Fail waiting requests for which capacity can never be made; return their entries."""
        entries = []
        for request in list(self._room):
            try:
                self._instances.check_fits(request.entry.function)
            except CodeMemoryError as error:
                self._leave_room(request)
                self._end(request, error, result)
                entries.append(request.entry)
        return entries

    def _take_waiters(self, entry: Entry) -> list[Request]:
        """Remove all requests that wait in `entry` from their queues; return them in order."""
        in_room = [request for request in entry.claims if request.stage is Stage.ROOM]
        for request in in_room:
            self._leave_room(request)
        waiters = in_room + list(entry.waiting)
        entry.waiting.clear()
        return waiters

    def _queue(self, request: Request) -> None:
        """Insert `request` into the queue of its entry, before all that came later."""
        request.stage = Stage.QUEUED
        entry, later = request.entry, list[Request]()
        for other in reversed(entry.waiting):
            if other.turn <= request.turn:
                break
            later.append(other)
        entry.queue(request)
        for other in reversed(later):
            entry.waiting.move_to_end(other)

    def _enter_room(self, request: Request) -> None:
        request.stage = Stage.ROOM
        self._room[request] = None

    def _leave_room(self, request: Request) -> None:
        del self._room[request]
        request.entry.unclaim(request)

    def _block(self, request: Request, resource: Resource) -> None:
        self._waits.begin(request.owner, resource)
        self._note_block(request)

    def _note_block(self, request: Request) -> None:
        if not request.blocked:
            request.blocked = True
            self.blocks += 1
            request.entry.counted.blocks += 1

    def _end(self, request: Request, error: Exception, result: Step) -> None:
        self._waits.end(request.owner)
        request.stage = Stage.ENDED
        request.error = error
        result.woken.append(request)

    def _let_go(self, request: Request) -> None:
        request.stage = ENDED
        request.instance = None
        del self._waits.held[request]
        if request.entry.lone_claim is request:
            request.entry.lone_claim = None
        else:
            request.entry.unclaim(request)

    # -- keeping or dropping

    def _put_back(self, request: Request, now: float, result: Step) -> None:
        """Keep the seat of a request, on which nothing was loaded, as if just left, if it fits."""
        seat = request.held
        config, limit = self.config, None
        self._instances.ledger.reserve(seat, 0, 0)
        reason, group = self._unwanted(seat.entry), seat.entry.group
        if reason is None and seat.misfit:
            reason = Reason.PROFILED
        if reason is None and self._instances.surplus(seat):
            reason = Reason.PROMOTED
        if reason is None and seat.size > config.max_instance_size:
            reason, limit = Reason.OVERSIZED, config.max_instance_size
        elif reason is None and (seat.size > config.max_size or seat.size > group.room):
            reason, limit = Reason.SIZE, min(config.max_size, group.room)
        if reason is None and not self._instances.fit(request, seat.size, now, result):
            reason = Reason.SIZE
        if reason is not None:
            self._instances.drop(seat, reason, now, result, limit)
        else:
            self._instances.settle(seat, Action.LEAVE, seat.size, now)

    def _unwanted(self, entry: Entry) -> Reason | None:
        """Return why a running instance of `entry` must not be kept, or None if it may be."""
        if self.closed:
            return Reason.CLOSED
        if entry.group.closed:
            return Reason.GROUP_CLOSED
        return Reason.REMOVED if entry.function.retired else None


def _expect(request: Request, stage: Stage) -> None:
    if request.stage is not stage:
        raise _illegal(request)


def _illegal(request: Request) -> IllegalStepError:
    return IllegalStepError(f"this can't be done to a request that is {request.stage.value}")


def _instance(request: Request, stage: Stage) -> Instance:
    if request.stage is not stage:
        raise _illegal(request)
    return request.held


def _unknown(function: FunctionRecord) -> UnknownFunctionError:
    return UnknownFunctionError(f"{function.key} was removed while this acquire waited for it")
