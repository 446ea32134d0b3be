"""The instances in the cache: how each enters, runs, becomes idle, and which is evicted next.

Nothing waits here. `policy` decides which request is served; this file keeps the three books that
must agree (the entry, the ledger, the order of last use) and changes them together, one instance at
a time. Each eviction and unload is recorded in the `Step` that the pool receives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..config import ADAPTIVE, CacheConfig, PolicyName, SystemLimits
from ..errors import CodeMemoryError
from ..events import Evicted, Overgrown, Reason
from ..keys import FunctionKey
from ..metrics.counters import Snapshot, UseBook
from .choice import make_order
from .keep_alive import KeepAlive
from .ledger import Ledger
from .lifecycle import ACQUIRE, IDLE, TRANSITIONS, Action, IllegalStepError, State, step
from .lru import LRU
from .order import Allowed, EvictionOrder
from .records import (
    DROPS,
    GRANTED,
    NO_ENTRIES,
    Closable,
    Entry,
    FunctionRecord,
    GroupRecord,
    Instance,
    Module,
    Need,
    Request,
    rested,
)
from .reservations import NO_LIMIT, Among, Passes, Reservations

if TYPE_CHECKING:
    from ..snapshot import SnapshotModule, SnapshotRequest, SnapshotResident
    from .copying import Residents, Whole

# Vacant entries kept with their uncollected counts: enough for the functions an application uses
# in turn, and few enough to take no memory.
PARKED = 64
# Instances that time out in one step: freeing one that touched much memory takes 1 or 2 ms.
MAX_EXPIRED = 8


class Step:
    """The work that a step of the policy leaves to the pool, each list in order."""

    __slots__ = ("evicted", "overgrown", "unloaded", "woken")

    def __init__(self, woken: list[Request] | None = None) -> None:
        self.evicted: list[tuple[Instance, Evicted]] = []
        """Instances to close, each with its event for the log."""
        self.unloaded: list[Module] = []
        """Modules whose code nothing uses any more."""
        self.overgrown: list[tuple[FunctionRecord, Overgrown]] = []
        """Functions whose instances are not reset any more, each with its event for the log."""
        self.woken: list[Request] = [] if woken is None else woken
        """Requests that need not wait any longer; their `stage` and `error` tell why."""

    def __bool__(self) -> bool:
        return bool(self.evicted or self.unloaded or self.woken or self.overgrown)


class Instances:
    """The instances of one cache."""

    __slots__ = (
        "_altered",
        "_drops",
        "_numbers",
        "_paired",
        "_parked",
        "book",
        "config",
        "entries",
        "evictions",
        "keep_alive",
        "ledger",
        "lru",
        "mapping_limit",
        "order",
        "reservations",
        "rests",
        "running_limit",
        "shrunk",
        "space_limit",
        "system",
        "told",
    )

    def __init__(self, config: CacheConfig, system: SystemLimits | None = None) -> None:
        self.config: CacheConfig = config
        self.system: SystemLimits = SystemLimits() if system is None else system
        self.ledger: Ledger = Ledger(self.config.instance_stack_size, self.config.max_code_size)
        self.lru: LRU[Instance] = LRU[Instance]()
        """Idle instances in order of last use, kept under every policy for the idle timeout."""
        self.keep_alive: KeepAlive = KeepAlive(self.config, self.lru)
        """When idle instances are due, while `idle_timeout` is "adaptive"."""
        self.reservations: Reservations = Reservations()
        """The bytes that groups have reserved."""
        self.order: EvictionOrder = self._order(self.config.policy)
        """The order of evictions for size, count, code and addresses, by `CacheConfig.policy`."""
        self.told: EvictionOrder | None = self._told()
        """The same, if it must be told what happens; None under LRU without limits of groups, for
        which the calls are saved."""
        self.evictions: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self.entries: dict[Entry, None] = {}
        self.book: UseBook = UseBook()
        self.running_limit: int = _number(self.config.max_running_size)
        """`max_running_size`, as a number."""
        self.space_limit: int = self._space_limit()
        """`max_address_space` (bytes), as a number."""
        self.mapping_limit: int = _number(self.system.mappings)
        """Number of mappings that instances and code may have together."""
        self.shrunk: bool = False
        """Whether the cache may be `crowded`: set only by `resize`, updated by `trim`."""
        self._parked: dict[tuple[FunctionRecord, GroupRecord], Entry] = {}
        """Vacant entries whose counts are not collected yet. Where nothing is kept, each acquire
        makes an entry, and would otherwise collect the counts every time."""
        self.rests: float = 0.0
        """Number of times an instance became idle so far; a float, as `Instance.rested` is."""
        self._numbers = 0
        self._drops = 0
        self._altered: set[Instance] = set()
        """Running instances that were loaded on a seat: not what last rested, whatever their
        size."""
        self._paired: set[Instance] = set()
        """Instances of earlier modules for which one of optimized code stood in while they ran."""

    # -- snapshots

    def copy(self, held: Sequence[Instance]) -> Residents:
        """Return a copy of all that is in the cache; `held` are the loading and running ones."""
        from .copying import COLUMNS, Residents

        instances = self.lru.members()
        instances += held
        # Lists of numbers, and no tuple for each instance, which would make the garbage collector
        # run.
        columns = map(attrgetter, COLUMNS)
        return Residents(
            instances,
            [list(map(get, instances)) for get in columns],
            [(it.state, it.loads_module, it in self._altered) for it in held],
            list(self.entries),
            self.ledger.evictable.members(),
            self.order.copy(),
            self.keep_alive.copy(),
            frozenset(self._paired),
            sum(self.evictions.values()),
            self._numbers,
            int(self.rests),
            self._drops,
        )

    def restore(
        self,
        whole: Whole,
        functions: Mapping[tuple[str, str, int], FunctionRecord],
        groups: Mapping[str, GroupRecord],
        modules: Mapping[int, Module],
    ) -> dict[int, Instance]:
        """Take over what a snapshot has; nothing is in this cache yet.

        Args:
            whole: the snapshot.
            functions: {(function, types of its arguments, generation): function}.
            groups: {name: group}.
            modules: {number: module}.

        Returns:
            {number: instance}.

        Raises:
            KeyError: the snapshot refers to something that it does not have.
        """
        used: list[SnapshotResident | SnapshotRequest] = [*whole.residents, *whole.requests]
        entries = {
            it.entry: (functions[it.function, it.arg_types, it.generation], groups[it.group])
            for it in used
            if it.entry is not None
        }
        made = {place: self.entry(*entries[place]) for place in sorted(entries)}
        found: dict[Instance, SnapshotResident] = {}
        for it in sorted(whole.residents, key=_instance_of):
            instance = Instance(it.instance, made[it.entry], it.created_at_seconds)
            if it.module_number is not None:
                instance.module = modules[it.module_number]
            self.ledger.enter(instance)
            self.ledger.reserve(instance, it.address_space_bytes, it.mappings)
            instance.module.instances[instance] = None
            instance.entry.live += 1
            instance.state = State(it.state)
            instance.size, instance.seat = it.size_bytes, it.seat
            instance.last_used, instance.rested, instance.uses = (
                it.last_used_at_seconds,
                it.rest,
                it.uses,
            )
            instance.loads_module, instance.uses_before = it.module_loaded, it.uses_before
            idle = instance.state is IDLE and not instance.outdated
            instance.resting_size = it.size_bytes if idle else -1
            if it.altered:
                self._altered.add(instance)
            if it.paired:
                self._paired.add(instance)
            found[instance] = it
        for instance in sorted(found, key=rested):
            if instance.state is IDLE:
                self.ledger.suspend(instance)
                self.lru.touch(instance)
                instance.entry.push(instance)
                instance.entry.last_used = instance.last_used
        evictable = [it for it in whole.modules if it.evictable is not None]
        for module in sorted(evictable, key=_evictable):
            self.ledger.evictable.touch(modules[module.module_number])
        self._numbers, self.rests = whole.head.loads, whole.head.rests
        self._drops = whole.head.drops
        if self.reservations.limits:
            for instance in found:
                if instance.rested:
                    self.reservations.entered(instance)
        of_modules = {modules[it.module_number]: it for it in whole.modules}
        self.order.restore(found, of_modules, whole.orders, whole.head.rests)
        self.keep_alive.restore(
            whole.head.idle_times,
            {functions[_key(it)]: it.idle_times for it in whole.functions},
            {one: it.due_at_seconds for one, it in found.items() if it.due_at_seconds is not None},
            [
                it
                for it in whole.gone
                if it.group in groups and (it.function is None or _key(it) in functions)
            ],
            lambda it: (None if it.function is None else functions[_key(it)], groups[it.group]),
        )
        self.shrunk = self.crowded
        return {instance.number: instance for instance in found}

    # -- entries: made on request, forgotten once vacant

    def entry(self, function: FunctionRecord, group: GroupRecord) -> Entry:
        """Return the entry of `function` in `group`; make it if there is none."""
        entry = function.lone_entry
        if entry is None or entry.group is not group:
            entry = function.many_entries.get(group)
        if entry is None:
            entry = self._parked.pop((function, group), None) or Entry(function, group)
            if function.many_entries is NO_ENTRIES and function.lone_entry is None:
                function.lone_entry = entry
            else:
                function.add_entry(entry)
            group.entries[entry] = None
            self.entries[entry] = None
            if not (function.retired or group.closed):
                group.serving[function.spelling] = entry
        return entry

    def forget(self, entry: Entry) -> None:
        """Drop `entry` if nothing lives, waits or runs in it."""
        if entry.vacant and entry in self.entries:
            del self.entries[entry]
            del entry.group.entries[entry]
            self.hide(entry)
            if entry.function.lone_entry is entry:
                entry.function.lone_entry = None
            else:
                entry.function.remove_entry(entry)
            entry.last_used = None
            if entry.function.retired or entry.group.closed:
                self._collect(entry)
            else:
                if len(self._parked) >= PARKED:
                    self.fold()
                self._parked[entry.function, entry.group] = entry

    def hide(self, entry: Entry) -> None:
        """Let no hit find `entry` any more."""
        if entry.group.serving.get(entry.function.spelling) is entry:
            del entry.group.serving[entry.function.spelling]

    # -- counts of uses

    def noted(self, entry: Entry) -> None:
        """Collect or forget `entry` after a count was added; it may have been vacant."""
        if entry in self.entries:
            self.forget(entry)
        else:
            self._collect(entry)

    def fold(self) -> None:
        """Add the counts of vacant entries to their functions and groups."""
        for entry in self._parked.values():
            self._collect(entry)
        self._parked.clear()

    def snapshot(self) -> Snapshot:
        """Return all uses so far."""
        self.fold()
        frozen = [entry.uses.freeze(_held(entry)) for entry in self.entries]
        names = list(map(self._names, self.entries))
        return Snapshot(*self.book.share(), self.count_calls(), frozen, names)

    def count_calls(self) -> int:
        """Return the number of calls begun since uses are counted."""
        self.fold()
        return self.book.calls + sum(entry.uses.calls for entry in self.entries)

    def begin_anew(self) -> None:
        """Restart all counts of uses at 0."""
        self.fold()
        self.book.clear()
        for entry in self.entries:
            entry.function.burnt += entry.uses.fuel
            entry.uses.clear(_held(entry))

    def _collect(self, entry: Entry) -> None:
        self.book.add(entry.uses, *self._names(entry))
        entry.function.burnt += entry.uses.fuel
        entry.uses.clear()

    def _names(self, entry: Entry) -> tuple[FunctionKey | None, str | None]:
        function, group = entry.function, entry.group
        key = None if function.serving is None else function.key
        return key, None if group.gone else group.name

    def fuel_of(self, function: FunctionRecord) -> int:
        """Return the units of fuel of all calls of a function that are over."""
        parked = (entry for (owner, _), entry in self._parked.items() if owner is function)
        return function.burnt + sum(
            entry.uses.fuel for entry in (*function.entries.values(), *parked)
        )

    def used_in(self, group: str | None) -> Callable[[FunctionRecord], bool]:
        """Return what tells whether a function has instances in a group, or was called there.

        Where it is not known any more in which group it was called, it is taken to be that one.

        Args:
            group: name of the group; None: any.
        """
        users: dict[FunctionRecord, set[str]] = {}
        for entry in (*self.entries, *self._parked.values()):
            users.setdefault(entry.function, set()).add(entry.group.name)

        def is_used(function: FunctionRecord) -> bool:
            groups = users.get(function)
            if groups is None:
                return function.burnt > 0
            return group is None or group in groups

        return is_used

    def used_since(self, rest: float) -> list[FunctionRecord]:
        """Return the functions of which an instance became idle after that rest."""
        found: dict[FunctionRecord, None] = {}
        member, lru = self.lru.before, self.lru
        while member is not lru and member.rested > rest:
            found[member.entry.function] = None
            member = member.before
        return list(found)

    # -- entering, and becoming idle

    def start(
        self, entry: Entry, now: float, *, warm: bool = False, module: Module | None = None
    ) -> Instance:
        """Add a new instance of `entry`, which begins to load.

        Args:
            entry: the entry.
            now: the time (seconds).
            warm: whether it is made ahead, for no lease.
            module: of which it is made; None: that of new instances.
        """
        if self.keep_alive.learns and not warm:
            self.keep_alive.started(entry, now)
        self._numbers += 1
        function = entry.function
        if module is None:
            module = function.module if function.variant is None else entry.module
        instance = Instance(self._numbers, entry, now, module=module)
        instance.state = step(instance.state, Action.LOAD)
        instance.loads_module = self.ledger.enter(instance)
        if function.earlier is None and function.variant is None:  # as mostly: a call less
            self.ledger.reserve(instance, function.address_space, function.mappings)
        else:
            self.ledger.reserve(instance, *function.reserved(module))
        module.instances[instance] = None
        entry.live += 1
        return instance

    def resume(self, entry: Entry, now: float, *, warm: bool = False) -> Instance:
        """Let the most recently used idle instance of `entry` run again; `warm`: for no lease."""
        instance = entry.idle[-1]
        state = TRANSITIONS[instance.state][ACQUIRE]
        if self.keep_alive.learns:
            self.keep_alive.taken(instance, now, used=not warm)
        entry.take(instance)
        self.lru.remove(instance)
        self.ledger.resume(instance)
        instance.state = state
        return instance

    def take(self, entry: Entry, now: float, *, warm: bool = False) -> Instance:
        """Let an instance begin to load on the most recently used idle one of `entry`, a seat."""
        instance = entry.idle[-1]
        state = step(instance.state, Action.TAKE)
        if self.keep_alive.learns:
            self.keep_alive.taken(instance, now, used=not warm)
        entry.take(instance)
        self.lru.remove(instance)
        self.ledger.resume(instance)
        self.ledger.reserve(instance, *entry.function.reserved(instance.module))
        instance.state = state
        instance.loads_module = False
        return instance

    def altered(self, instance: Instance) -> None:
        """Note that an instance was loaded on a seat, which it no longer is when it rests."""
        self._altered.add(instance)

    def settle(self, instance: Instance, action: Action, size: int, now: float) -> None:
        """Make a running (or just loaded) instance idle. The caller has checked that it fits."""
        entry = instance.entry
        instance.state = step(instance.state, action)
        changed = size != instance.size or instance.seat or instance in self._altered
        self._altered.discard(instance)
        module = instance.module
        if size != module.size:
            module.size = size
        instance.size = instance.resting_size = module.size
        if module is not entry.function.module:
            instance.report_rest()  # it may be `surplus`, or a `misfit`, by then
        instance.last_used = entry.last_used = now
        self.rests += 1
        instance.rested = self.rests
        self.ledger.suspend(instance)
        self.lru.touch(instance)
        if entry.many_idle is None and entry.lone_idle is None:
            entry.lone_idle = instance
        else:
            entry.push(instance)
        if self.told is not None:
            self.reservations.entered(instance)
            self.told.settled(instance, changed)

    # -- leaving

    def drop(
        self,
        instance: Instance,
        reason: Reason,
        now: float,
        result: Step,
        limit: int | None = None,
        error: str | None = None,
    ) -> None:
        """Drop a loading or running instance, and record an eviction.

        `error` is the type of the error that has left it unusable.
        """
        state = step(instance.state, Action.DROP)
        before = self.ledger.total_size, self.ledger.used
        instance.last_used = now
        self._leave_running(instance, result)
        instance.state = state
        self._record(instance, reason, now, result, before, limit, error)

    def replace(
        self, old: Instance, size: int, now: float, result: Step, error: str, count: int
    ) -> Instance:
        """Replace a running instance by a new one of its entry, which runs; record the eviction.

        The new one takes the place of the old one under each limit, so there is capacity for it.

        Args:
            old: the instance, which is corrupted.
            size: what it could touch (bytes).
            now: the time (seconds).
            result: the step to which the eviction is added.
            error: type of the error that has left it unusable.
            count: number of evictions that this one stands for.
        """
        state = step(old.state, Action.DROP)
        before = self.ledger.total_size, self.ledger.used
        # First, so that the module is in use all the time.
        new = self.start(old.entry, now, module=old.module)
        new.state = step(new.state, Action.LOADED)
        if old in self._paired:
            self._paired.add(new)
        new.report_rest()
        old.size, old.last_used = size, now
        self._leave_running(old, result)
        old.state = state
        self.evictions[Reason.CORRUPTED] += count - 1
        self._record(
            old,
            Reason.CORRUPTED,
            now,
            result,
            before,
            None,
            error,
            replacing=(new.number, count if count > 1 else None),
        )
        return new

    def discard(self, instance: Instance, result: Step) -> None:
        """Remove an instance whose load failed; as it was never loaded, it is no eviction."""
        state = step(instance.state, Action.DROP)
        self._leave_running(instance, result)
        instance.state = state

    def evict(
        self,
        instance: Instance,
        reason: Reason,
        now: float,
        result: Step,
        limit: int | None = None,
        need: Need | None = None,
    ) -> None:
        """Evict an idle instance, for somebody's need."""
        state = step(instance.state, Action.EVICT)
        entry = instance.entry
        before = self.ledger.total_size, self.ledger.used
        if self.keep_alive.learns:
            self.keep_alive.left(instance, now)
        self.lru.remove(instance)
        if entry.lone_idle is instance:
            entry.lone_idle = None
        else:
            entry.take(instance)
        self._leave_idle(instance, result)
        if self.told is not None:
            self.reservations.left(instance)
            self.told.left(instance)
        instance.state = state
        self._record(instance, reason, now, result, before, limit, need=need)
        self.forget(entry)

    @staticmethod
    def has_outdated(entry: Entry) -> bool:
        """Return whether an instance of a promoted function is of its earlier module."""
        if not Instances._is_promoted(entry):
            return False
        held = [request.instance for request in entry.claims if request.instance is not None]
        return any(it.outdated and it.entry is entry for it in (*entry.idle, *held))

    @staticmethod
    def _is_promoted(entry: Entry) -> bool:
        """Return whether instances of its optimized code are made for an entry."""
        function = entry.function
        gone = function.retired or entry.group.closed
        return not gone and function.earlier is not None and function.variant is None

    def can_upgrade(self, entry: Entry) -> bool:
        """Return whether an instance of a promoted function may be made beside all that is there.

        It must fit while it starts, without an eviction, and be of use: see `upgrade`.
        """
        function, ledger, config = entry.function, self.ledger, self.config
        if not self._wants_upgrade(entry):
            return False
        module = function.module
        code = (0 if module.users else module.code_size) + ledger.stack_size
        return (
            ledger.used + code <= config.max_code_size
            and ledger.running_size + function.worst_size <= self.running_limit
            and ledger.instances < config.max_instances
            and max(self._missing(function, module)) <= 0
        )

    def upgrade(
        self,
        entry: Entry,
        size: int,
        now: float,
        result: Step,
        bound: Closable | None,
        ready: bool,
    ) -> Instance | None:
        """Add an idle instance of a promoted function, made in the background.

        It takes the place of the idle instance of the earlier module that was used last, which is
        evicted. If all of these are running, it stands in for one of them: it is idle beside it,
        and may be evicted as any other. No other is made for that one while it runs. If one is idle
        when that one is given back, that is evicted.
        Returns None, and changes nothing, if it is of no use or does not fit.

        Args:
            entry: the entry.
            size: what it may touch now (bytes).
            now: the time (seconds).
            result: the step to which the eviction is added.
            bound: the loaded instance; None: it is a seat.
            ready: whether the next hit can use it without preparation.
        """
        function, ledger, config, group = entry.function, self.ledger, self.config, entry.group
        if not self._wants_upgrade(entry):
            return None
        module = function.module
        idle = [instance for instance in entry.idle if instance.outdated]
        old = idle[-1] if idle else None
        more = size - (0 if old is None else old.size)
        code = 0 if module.users else module.code_size
        if (
            size > config.max_instance_size
            or ledger.total_size + more > config.max_size
            or group.idle_size + more > group.room
            or ledger.used + code > config.max_code_size
            or ledger.instances >= config.max_instances
            or max(self._missing(function, module)) > 0
        ):
            return None
        before = ledger.total_size, ledger.used
        new = self.start(entry, now, warm=True)
        if bound is None:
            new.seat = True
            ledger.reserve(new, 0, 0)
        else:
            new.hold(bound, ready=ready)
        if old is None:
            self._paired.add(next(self._unpaired(entry)))
            self.settle(new, Action.WARMED, size, now)
            return new
        state = step(old.state, Action.EVICT)
        new.state = step(new.state, Action.WARMED)
        new.size = new.resting_size = size
        new.last_used, new.rested = old.last_used, old.rested
        new.uses = new.uses_before = old.uses
        ledger.suspend(new)
        self.rests += 1
        self._drops += 1
        module.stopped = (int(self.rests) << DROPS) + self._drops
        self.lru.replace(old, new)
        entry.exchange(old, new)
        if self.keep_alive.learns:
            self.keep_alive.replaced(old, new)
        self._leave_idle(old, result)
        if self.told is not None:
            self.reservations.left(old)
            self.reservations.entered(new)
            self.told.replaced(old, new, int(self.rests))
        old.state = state
        self._record(old, Reason.PROMOTED, now, result, before, None, replacing=(new.number, None))
        return new

    def _wants_upgrade(self, entry: Entry) -> bool:
        """Return whether an entry has use for one more instance of its optimized code."""
        function = entry.function
        if not self._is_promoted(entry):
            return False
        if any(instance.outdated for instance in entry.idle):
            return True
        if next(self._unpaired(entry), None) is None:
            return False
        held = [request.instance for request in entry.claims if request.instance is not None]
        leaving = sum(it.outdated and it.entry is entry for it in held)
        return entry.live - leaving < function.concurrency

    def _unpaired(self, entry: Entry) -> Iterator[Instance]:
        """Yield the running instances of an earlier module for which none has stood in yet."""
        for request in entry.claims:
            it = request.instance
            if it is not None and it.entry is entry and it.outdated and it not in self._paired:
                yield it

    def _leave_idle(self, instance: Instance, result: Step) -> None:
        module = instance.module
        self._paired.discard(instance)
        instance.entry.live -= 1
        del module.instances[instance]
        if self.ledger.leave_idle(instance):
            result.unloaded.append(module)
        module.stopped = max(module.stopped, rested(instance) << DROPS)

    def surplus(self, instance: Instance) -> bool:
        """Return whether a running instance must not be kept, as its function was promoted.

        So it is if an idle one of the new module has come beside it, or if it can never run again
        under the limits.
        """
        entry = instance.entry
        return instance.outdated and (
            entry.live > entry.function.concurrency
            or any(not it.outdated for it in entry.idle)
            or self._lacking(instance) is not None
        )

    def evict_unfit(self, idle: Iterable[Instance], now: float, result: Step) -> None:
        """Evict those of an earlier module that an empty cache could not run.

        A request is checked for the module of new instances: it would wait for ever for room for
        such a one.
        """
        for instance in idle:
            if instance.outdated and (reason := self._lacking(instance)) is not None:
                self.evict(instance, reason, now, result)

    def _lacking(self, instance: Instance) -> Reason | None:
        """Return what an instance lacks even in an empty cache, loaded anew; None: nothing."""
        module = instance.module
        used, space, mappings = self._alone(module, instance.entry.function.reserved(module))
        if used > self.config.max_code_size:
            return Reason.CODE
        if space > self.space_limit or mappings > self.mapping_limit:
            return Reason.ADDRESS_SPACE
        return None

    def _alone(self, module: Module, reserved: tuple[int, int]) -> tuple[int, int, int]:
        """Return what an instance of a module takes in an empty cache, with its code.

        Args:
            module: the module.
            reserved: what the instance reserves (bytes of addresses, mappings).

        Returns:
            Bytes of code and stack; bytes of addresses; mappings.
        """
        space, mappings = reserved
        return (
            module.code_size + self.ledger.stack_size,
            space + module.code_size,
            mappings + module.mappings,
        )

    def evict_entry(self, entry: Entry, reason: Reason, now: float, result: Step) -> None:
        """Evict all idle instances of `entry`, the least recently used first."""
        for instance in list(entry.idle):
            self.evict(instance, reason, now, result)

    def evict_module(
        self,
        module: Module,
        reason: Reason,
        now: float,
        result: Step,
        need: Need | None = None,
    ) -> None:
        """Evict all instances of a module that has only idle ones, which unloads its code."""
        for instance in module.idle:
            self.evict(instance, reason, now, result, need=need)

    def fit(self, request: Request, size: int, now: float, result: Step) -> bool:
        """Evict idle instances until `size` more bytes fit, for the instance of a request.

        Its group must be open, and the size allowed if nothing else were idle. Returns False if the
        reservations of other groups leave no room for it.
        """
        ledger, limit = self.ledger, self.config.max_size
        group, reservations = request.held.entry.group, self.reservations
        within = group.idle_size + size <= group.reserved_size
        if reservations.groups and not within and reservations.kept_from(group) + size > limit:
            return False

        while group.idle_size + size > group.room:
            if (victim := self._victim((Among(only=group),))) is None:
                return False
            self.evict(victim, Reason.SIZE, now, result, need=request.need)
        while ledger.total_size + size > limit:
            if (victim := self._victim(reservations.for_size(group, size))) is None:
                return False
            self.evict(victim, Reason.SIZE, now, result, need=request.need)
        return True

    def note_group(self, group: GroupRecord) -> None:
        """Note that a group is new, was closed, or has other limits."""
        if self.reservations.note(group):
            self.told = self.order
            self._regroup()

    def _regroup(self) -> None:
        """Have all instances filed anew, as a group has other limits, or the first ones."""
        instances = self._all()
        for instance in instances:
            if instance.state is IDLE:
                self.reservations.entered(instance)
            else:
                instance.report_rest()
        self.order.regroup(instances)

    def resize_group(self, group: GroupRecord, now: float, result: Step) -> None:
        """Note a change of a group's limits, and evict its idle instances that no longer fit."""
        self.note_group(group)
        if group.entries:
            self._regroup()
        while group.idle_size > group.room >= 0:
            if (victim := self._victim((Among(only=group),))) is None:
                return
            self.evict(victim, Reason.SIZE, now, result)

    def _shrink(self, now: float, result: Step) -> None:
        """Evict idle instances until those left take at most `max_size` bytes."""
        while self.ledger.total_size > self.config.max_size:
            if (victim := self._victim(self.reservations.for_size(None))) is None:
                return
            self.evict(victim, Reason.SIZE, now, result)

    def _victim(
        self, passes: Passes, *, by_count: bool = False, where: Allowed | None = None
    ) -> Instance | None:
        """Return the instance to evict next: the first that is found in one of the passes."""
        for among in passes:
            rests = int(self.rests)
            victim = self.order.victim(rests, by_count=by_count, among=among, where=where)
            if victim is not None:
                return victim
        return None

    def _victim_module(self, needed: Module | None = None) -> Module | None:
        """Return the module to evict next, never `needed`: one that no group has reserved first."""
        if self.reservations.groups:
            module = self.order.victim_module(int(self.rests), spare=True, but=needed)
            if module is not None:
                return module
        return self.order.victim_module(int(self.rests), but=needed)

    def expire(self, now: float, result: Step) -> None:
        """Evict instances idle for their timeout, at most `MAX_EXPIRED` in one step."""
        if self.keep_alive.learns:
            self.keep_alive.age(now)
        for _ in range(MAX_EXPIRED):
            if (instance := self._overdue(now)) is None:
                return
            self.evict(instance, Reason.IDLE, now, result)

    def _overdue(self, now: float) -> Instance | None:
        timeout = self.config.idle_timeout
        if timeout == ADAPTIVE:
            return self.keep_alive.overdue(now)
        oldest = self.lru.oldest()
        return None if oldest is None or oldest.last_used + timeout > now else oldest

    def resize(self, config: CacheConfig, now: float, result: Step) -> None:
        """Apply the limits of `config`, and evict idle instances that no longer fit."""
        if config.policy != self.config.policy:
            self._reorder(config.policy)
        if config.timeouts != self.config.timeouts:
            self.keep_alive.resize(config, now)
        self.config = config
        self.running_limit = _number(config.max_running_size)
        self.space_limit = self._space_limit()
        self.ledger.limit_code(config.max_code_size)
        limit = config.max_instance_size
        for instance in [instance for instance in self.lru if instance.size > limit]:
            self.evict(instance, Reason.OVERSIZED, now, result, limit)
        self.evict_unfit(self.lru.members(), now, result)
        self._shrink(now, result)
        self.trim(now, result)

    @property
    def crowded(self) -> bool:
        """Whether usage exceeds the limits: after a `resize`, while too much is running."""
        ledger, config = self.ledger, self.config
        return (
            ledger.idle + ledger.running > config.max_instances
            or ledger.code_size + ledger.stacks > config.max_code_size
            or self.overbooked
        )

    @property
    def overbooked(self) -> bool:
        """Whether more addresses or mappings are reserved than the limits allow."""
        ledger = self.ledger
        return ledger.address_space > self.space_limit or ledger.mappings > self.mapping_limit

    def trim(self, now: float, result: Step) -> None:
        """Evict idle instances while count, code or addresses exceed their limits."""
        ledger, config = self.ledger, self.config
        while ledger.idle + ledger.running > config.max_instances:
            if (victim := self._victim(self.reservations.for_others(), by_count=True)) is None:
                break
            self.evict(victim, Reason.COUNT, now, result)
        while ledger.used > config.max_code_size:
            if (module := self._victim_module()) is None:
                break
            self.evict_module(module, Reason.CODE, now, result)
        while self.overbooked and (victim := self._space_victim()) is not None:
            self.evict(victim, Reason.ADDRESS_SPACE, now, result)
        self.shrunk = self.crowded

    # -- capacity to run: for code, for a stack, for worst sizes and for reserved addresses

    def check_fits(
        self,
        function: FunctionRecord,
        module: Module | None = None,
        reserved: tuple[int, int] | None = None,
    ) -> None:
        """Raise `CodeMemoryError` if an empty cache could not run an instance of `function`.

        Args:
            function: the function.
            module: of which it would be made; None: that of new instances.
            reserved: what an instance of that reserves (bytes of addresses, mappings).
        """
        if module is None and function.variant is not None:
            self.check_fits(function, function.variant.module, function.variant.reserved)
        module = module or function.module
        reserved = reserved or (function.address_space, function.mappings)
        used, space, mappings = self._alone(module, reserved)
        worst = function.worst_size
        if worst > self.running_limit:
            raise CodeMemoryError(
                f"{function.key} may touch {worst} bytes while it runs, but max_running_size is "
                f"{self.running_limit}: raise it, or register under a smaller memory_limit"
            )
        if used > self.config.max_code_size:
            raise CodeMemoryError(
                f"{function.key} needs {used} bytes ({module.code_size} of code, "
                f"{self.ledger.stack_size} of stack), but max_code_size is "
                f"{self.config.max_code_size}: raise it, or split the module"
            )
        if space > self.space_limit:
            raise CodeMemoryError(
                f"{function.key} reserves {space} bytes of addresses, but max_address_space is "
                f"{self.space_limit}: raise it (or the process's RLIMIT_AS), or build the module "
                "with fewer memories"
            )
        if mappings > self.mapping_limit:
            raise CodeMemoryError(
                f"{function.key} needs {mappings} memory mappings, but the cache may have "
                f"{self.mapping_limit}: raise the system's vm.max_map_count, or build the module "
                "with fewer memories"
            )

    def make_room(
        self, request: Request, another: bool, now: float, result: Step, seat: bool = False
    ) -> bool:
        """Evict what is necessary for one more running instance, for a request.

        Checks first whether evictions can free enough at all; if not, changes nothing and returns
        False. Evicts whole modules, in the order of the policy, never one that is in use and never
        that of the request: an eviction that frees no code would be useless. No eviction lowers
        `running_size`.

        Args:
            request: The request that needs the instance.
            another: Whether it will be a new instance, which counts against `max_instances`.
            now: The time (seconds).
            result: The step to which evictions are added.
            seat: Whether the instance will be loaded on a seat of its module.
        """
        function = request.entry.function
        ledger, limit = self.ledger, self.config.max_code_size
        module = function.module if another else request.entry.idle[-1].module
        if another and function.variant is not None:
            module = request.entry.module
        if ledger.running_size + function.worst_size > self.running_limit:
            return False
        needed = ledger.stack_size + (0 if module.users else module.code_size)
        possible = ledger.evictable_code
        if module in ledger.evictable:
            possible -= module.code_size
        if ledger.used + needed - possible > limit:
            return False
        full = ledger.idle + ledger.running >= self.config.max_instances
        if another and full and not ledger.idle:
            return False
        if (another or seat) and not self._space_for(function, module):
            return False
        reason = Reason.STACK if module.users else Reason.CODE
        while ledger.used + needed > limit:
            other = self._victim_module(module)
            if other is None:
                raise self._no_victim(function, reason, f"{ledger.evictable_code} bytes of code")
            self.evict_module(other, reason, now, result, request.need)
        while (another or seat) and max(self._missing(function, module)) > 0:
            victim = self._space_victim(module)
            if victim is None:
                space, mappings = self._idle_space(module)
                free = f"{space} bytes of addresses and {mappings} mappings"
                raise self._no_victim(function, Reason.ADDRESS_SPACE, free)
            self.evict(victim, Reason.ADDRESS_SPACE, now, result, need=request.need)
        # Last, as evicting code may have removed enough instances. If this one was the last of
        # `module`, that is unloaded and loaded again: as many bytes are freed as are needed.
        if another and ledger.idle + ledger.running >= self.config.max_instances:
            victim = self._victim(self.reservations.for_others(), by_count=True)
            if victim is None:
                raise self._no_victim(function, Reason.COUNT, f"{ledger.idle} instances")
            self.evict(victim, Reason.COUNT, now, result, need=request.need)
        return True

    def _no_victim(self, function: FunctionRecord, reason: Reason, idle: str) -> IllegalStepError:
        return IllegalStepError(
            f'policy "{self.config.policy}" names nothing to evict for {function.key} '
            f"(reason: {reason.value}), though {idle} are idle"
        )

    def reserve(
        self, request: Request, reserved: tuple[int, int], now: float, result: Step
    ) -> bool:
        """Record what the running instance of a request reserves now (bytes, mappings).

        Evicts idle instances for it. Returns False, and evicts none, if they do not reserve enough.
        """
        ledger = self.ledger
        ledger.reserve(request.held, *reserved)
        if not self.overbooked:
            return True
        space, mappings = self._idle_space(None)
        if (
            ledger.address_space - space > self.space_limit
            or ledger.mappings - mappings > self.mapping_limit
        ):
            return False
        while self.overbooked and (victim := self._space_victim()) is not None:
            self.evict(victim, Reason.ADDRESS_SPACE, now, result, need=request.need)
        return True

    def relieve(
        self,
        address_space: int,
        mappings: int,
        now: float,
        result: Step,
        need: Need | None = None,
    ) -> None:
        """Evict idle instances until this much less is reserved, or none is left that helps."""
        ledger = self.ledger
        space_target = ledger.address_space - address_space
        mapping_target = ledger.mappings - mappings
        while ledger.address_space > space_target or ledger.mappings > mapping_target:
            if (victim := self._space_victim()) is None:
                return
            self.evict(victim, Reason.ADDRESS_SPACE, now, result, need=need)

    def _space_limit(self) -> int:
        return _number(self.system.max_address_space(self.config))

    def _missing(self, function: FunctionRecord, module: Module) -> tuple[int, int]:
        """Return how many bytes of addresses and mappings an instance of a module lacks."""
        ledger, reserved = self.ledger, (function.address_space, function.mappings)
        if function.earlier is not None or function.variant is not None:
            reserved = function.reserved(module)
        space = ledger.address_space + reserved[0] - self.space_limit
        mappings = ledger.mappings + reserved[1] - self.mapping_limit
        if module.users == 0:
            return space + module.code_size, mappings + module.mappings
        return space, mappings

    def _space_for(self, function: FunctionRecord, module: Module) -> bool:
        """Whether evicting idle instances can free what an instance of a module reserves."""
        missing = self._missing(function, module)
        if max(missing) <= 0:
            return True
        idle = self._idle_space(module)
        return missing[0] <= idle[0] and missing[1] <= idle[1]

    def _idle_space(self, needed: Module | None) -> tuple[int, int]:
        """Return the addresses (bytes) and mappings that evicting all idle instances would free.

        Leaves out the code of `needed`, which would be loaded again at once. Summed up on request,
        which is rare: a running total would have to be updated on every hit.
        """
        space = mappings = 0
        for instance in self.lru:
            space += instance.address_space
            mappings += instance.mappings
        for module in self.ledger.evictable:
            if module is not needed:
                space += module.code_size
                mappings += module.mappings
        return space, mappings

    def _space_victim(self, needed: Module | None = None) -> Instance | None:
        """Return the idle instance to evict next for addresses or mappings, if any helps.

        Instances first; then, once only seats are left, seats whose module has nothing running and
        is not `needed`.
        """

        def helps(instance: Instance) -> bool:
            module = instance.module
            return module.running == 0 and module is not needed

        passes = self.reservations.for_others()
        return self._victim(passes, by_count=True, where=_is_no_seat) or self._victim(
            passes, by_count=True, where=helps
        )

    # -- the policy

    def _order(self, policy: PolicyName) -> EvictionOrder:
        return make_order(policy, self.lru, self.ledger.evictable, self.reservations)

    def _reorder(self, policy: PolicyName) -> None:
        """Begin with another policy, which knows the idle instances but not their past.

        It is told of the others when they next rest.
        """
        self.order = self._order(policy)
        self.told = self._told()
        instances = self._all()
        if self.told is not None and self.reservations.limits:
            self.order.regroup(())
        for instance in instances:
            if instance.state is IDLE:
                self.order.settled(instance, True)
            else:
                instance.report_rest()

    def _all(self) -> list[Instance]:
        """Return all instances, in the order in which they came."""
        modules = {module for entry in self.entries for module in entry.modules}
        instances = (instance for module in modules for instance in module.instances)
        return sorted(instances, key=_number_of)

    def _told(self) -> EvictionOrder | None:
        return self.order if self.order.attentive else None

    # -- resets

    def note_growth(self, instance: Instance, size: int, result: Step) -> None:
        """Note that a running instance has grown and can't be reset; give resets up if need be."""
        function, resets = instance.entry.function, instance.entry.function.resets
        if resets is None or not resets.note_growth(size, instance.uses - instance.uses_before):
            return
        function.resets = None
        event = Overgrown(
            **function.names,
            leases=resets.leases,
            growths=resets.growths,
            size_bytes=resets.size,
        )
        result.overgrown.append((function, event))

    # -- shared by the above

    def _leave_running(self, instance: Instance, result: Step) -> None:
        module = instance.module
        del module.instances[instance]
        self._altered.discard(instance)
        self._paired.discard(instance)
        if self.ledger.leave_running(instance):
            result.unloaded.append(module)
        instance.entry.live -= 1
        if module.running == 0:
            self._drops += 1
            module.stopped = (int(self.rests) << DROPS) + self._drops
        if self.told is not None:
            self.reservations.left(instance)
            self.told.left(instance)

    def _record(
        self,
        instance: Instance,
        reason: Reason,
        now: float,
        result: Step,
        before: tuple[int, int],
        limit: int | None,
        error: str | None = None,
        need: Need | None = None,
        replacing: tuple[int | None, int | None] = (None, None),
    ) -> None:
        function, module = instance.entry.function, instance.module
        self.evictions[reason] += 1
        advice = None
        if reason is Reason.OVERSIZED and not function.warned_oversized:
            function.warned_oversized = True
            advice = (
                f"{function.key} takes {instance.size} bytes, more than max_instance_size = "
                f"{limit}: it is loaded anew for every lease until the limit is raised"
            )
        fields = {
            "group": instance.entry.group.name,
            "instance": instance.number,
            "reason": reason,
            "seat": instance.seat,
            "module_digest": module.digest,
            "freed_bytes": instance.size,
            "freed_code_bytes": 0 if module.users else module.code_size,
            "idle_seconds": now - instance.last_used,
            "age_seconds": now - instance.created_at,
            "uses": instance.uses,
            "total_size_before_bytes": before[0],
            "total_size_after_bytes": self.ledger.total_size,
            "code_size_before_bytes": before[1],
            "code_size_after_bytes": self.ledger.used,
            "limit_bytes": limit,
            "error": error,
            "advice": advice,
            "replaced_by": replacing[0],
            "evictions": replacing[1],
            **function.names,  # last, as the dictionary would grow four times
        }
        if need is not None:
            fields.update(_whose(need))
        event = Evicted.of_fields(fields)
        result.evicted.append((instance, event))


def _number(limit: int | None) -> int:
    # No infinity: to compare a whole number with a float takes three times as long.
    return NO_LIMIT if limit is None else limit


def _instance_of(resident: SnapshotResident) -> int:
    return resident.instance


def _key(item: Any) -> tuple[str, str, int]:
    return item.function, item.arg_types, item.generation


def _evictable(module: SnapshotModule) -> int:
    return module.evictable or 0


def _number_of(instance: Instance) -> int:
    return instance.number


def _is_no_seat(instance: Instance) -> bool:
    return not instance.seat


def _whose(need: Need) -> dict[str, Any]:
    """Return the fields of an eviction that say whose need it served."""
    return {
        "for_function": need.key.name,
        "for_arg_types": need.key.arg_types,
        "for_group": need.group.name,
        "for_request": need.number,
    }


def _held(entry: Entry) -> int:
    """Return the number of leases of `entry` that have not ended."""
    if not entry.claims:
        return 0
    return sum(request.stage is GRANTED and not request.warm for request in entry.claims)
