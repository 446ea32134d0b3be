"""Runs the leases of a log under another policy, `max_size` and `idle_timeout`.

Leases begin and end as in the log, and no other limit interferes: what the curve of `tuning`
assumes for LRU, so the two agree. The eviction orders are those of the cache. Nothing waits, so all
that is left of the cache's books are idle instances in order of last use, and their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import Factory, define, frozen

from ..._core.config import ADAPTIVE, CacheConfig, IdleTimeout, PolicyName
from ..._core.keys import FunctionKey
from ..._core.policy.choice import make_order
from ..._core.policy.idle_times import IdleTimes
from ..._core.policy.keep_alive import KeepAlive
from ..._core.policy.lifecycle import IDLE, RUNNING, State
from ..._core.policy.lru import LRU
from ..._core.policy.order import EvictionOrder
from ..._core.policy.records import Entry, FunctionRecord, GroupRecord, Instance, Module
from ..._core.policy.reservations import Reservations
from .trace import Op, Trace

TAKE, WARM, REUSE, REST, DROP, FORGET, HELD = map(int, Op)
# The group of all keys: a key has but one, and nothing is asked of it here.
GROUP = GroupRecord("")


@frozen
class Settings:
    """What a trial changes."""

    policy: PolicyName
    max_size: int
    idle_timeout: IdleTimeout
    min_idle_timeout: float = 1.0
    """Shortest adaptive timeout (seconds)."""
    max_idle_timeout: float = 600.0
    """Longest adaptive timeout (seconds)."""


@frozen
class Outcome:
    """What came of a trial."""

    settings: Settings
    hits: int = 0
    misses: int = 0
    load_seconds: float = 0.0
    peak_size: int = 0
    idle_byte_seconds: float = 0.0
    """Bytes of idle instances, times the seconds for which they were idle."""

    @classmethod
    def together(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """Return the sums over several caches under the same settings, and the highest peak."""
        if len(outcomes) == 1:
            return outcomes[0]
        return cls(
            outcomes[0].settings,
            sum(it.hits for it in outcomes),
            sum(it.misses for it in outcomes),
            math.fsum(it.load_seconds for it in outcomes),
            max(it.peak_size for it in outcomes),
            math.fsum(it.idle_byte_seconds for it in outcomes),
        )

    @property
    def hit_rate(self) -> float:
        """Hits per lease; 0.0 without any."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0


@define(eq=False)
class Trial:
    """One run of a trace."""

    trace: Trace
    settings: Settings
    _total: int = 0
    """Bytes of all idle instances."""
    _lru: LRU[Instance] = Factory(lambda: LRU[Instance]())
    _order: EvictionOrder = Factory(
        lambda self: make_order(self.settings.policy, self._lru, LRU[Module](), Reservations()),
        takes_self=True,
    )
    _entries: list[Entry] = Factory(list)
    """The entry of each key."""
    _keep_alive: KeepAlive | None = Factory(
        lambda self: _keep_alive(self.settings, self._lru), takes_self=True
    )
    """The timeouts of functions, if they are adaptive."""
    _idle_byte_seconds: float = 0.0

    def run(self) -> Outcome:
        """Run everything, from the first step to the last."""
        trace, lru, order = self.trace, self._lru, self._order
        max_size, keep_alive = self.settings.max_size, self._keep_alive
        told = self.settings.policy != "lru"
        entries = self._entries = _entries_of(trace, keep_alive)
        running: dict[int, Instance] = {}
        ahead: set[int] = set()  # runs that are no leases
        hits = misses = peak = rests = 0
        seconds = 0.0
        columns = trace.ops, trace.at, trace.keys, trace.runs, trace.sizes, trace.seats
        for op, now, key, run, size, seat in zip(*columns, strict=True):
            self._expire(now)
            entry = entries[key]
            if op == REST:
                instance = running.pop(run)
                if run not in ahead:
                    instance.uses += 1
                if size > max_size:
                    self._leave(instance)
                    continue
                while self._total + size > max_size:
                    victim = order.victim(rests)
                    if victim is None:
                        raise AssertionError(f"{self._total} bytes are idle, but no instance")
                    self._evict(victim, now)
                rests += 1
                changed = size != instance.size or seat
                report = told and (changed or size != instance.resting_size)
                instance.size = instance.resting_size = size
                instance.seat = bool(seat)
                instance.state, instance.rested, instance.last_used = IDLE, rests, now
                self._total += size
                lru.touch(instance)
                entry.push(instance)
                if report:
                    order.settled(instance, changed)
                if self._total > peak:
                    peak = self._total
            elif op <= REUSE:
                if op != WARM and (idle := entry.idle):
                    instance = idle[-1]
                    entry.take(instance)
                    if keep_alive is not None:
                        keep_alive.taken(instance, now, used=op == TAKE)
                    self._take_out(instance, now)
                    instance.state = RUNNING
                    hits += op == TAKE
                    if instance.seat:
                        seconds += self._load(instance, key, run)
                else:
                    if keep_alive is not None and op == TAKE:
                        keep_alive.started(entry, now)
                    instance = self._make(entry)
                    seconds += self._load(instance, key, run)
                    misses += op == TAKE
                running[run] = instance
                if op != TAKE:
                    ahead.add(run)
            elif op == HELD:
                running[run] = instance = self._make(entry)
                instance.uses = size
                self._know_loads(instance, key)
            elif op == DROP:
                self._leave(running.pop(run))
            else:
                if keep_alive is not None:
                    entry.group.close()
                for instance in list(entry.idle):
                    self._evict(instance, now)
        for instance in list(lru):
            self._take_out(instance, now)
        return Outcome(self.settings, hits, misses, seconds, peak, self._idle_byte_seconds)

    def _expire(self, now: float) -> None:
        """Evict instances at the times when they are due, up to now."""
        lru, keep_alive, timeout = self._lru, self._keep_alive, self.settings.idle_timeout
        if timeout != ADAPTIVE:
            while (oldest := lru.after) is not lru and oldest.last_used + timeout <= now:
                self._evict(oldest, oldest.last_used + timeout)
            return
        assert keep_alive is not None
        while (due := keep_alive.next_due()) is not None and due <= now:
            keep_alive.age(due)
            while (instance := keep_alive.overdue(due)) is not None:
                self._evict(instance, due)

    def _make(self, entry: Entry) -> Instance:
        module = entry.function.module
        instance = Instance(0, entry, 0.0, RUNNING)
        instance.loads_module = module.users == 0
        instance.report_rest()
        module.users += 1
        module.instances[instance] = None
        return instance

    def _load(self, instance: Instance, key: int, run: int) -> float:
        """Load an instance, or on a seat; return the seconds that it takes."""
        trace = self.trace
        if instance.seat:
            instance.seat = instance.loads_module = False
            instance.size, instance.resting_size = 0, -1
        cold = instance.loads_module
        seconds = trace.loads[run]
        if math.isnan(seconds) or trace.cold[run] != cold:
            seconds = trace.usual(trace.names[key], cold)
        instance.note_load(seconds)
        return seconds

    def _know_loads(self, instance: Instance, key: int) -> None:
        """Take the usual seconds for those that loading took before the log began."""
        trace, function = self.trace, instance.entry.function
        name, module = trace.names[key], instance.module
        own = trace.usual(name, False)
        if function.load_seconds is None:
            function.load_seconds = own
        if module.load_seconds is None:
            module.load_seconds = max(0.0, trace.usual(name, True) - own)

    def _evict(self, instance: Instance, at: float) -> None:
        if self._keep_alive is not None:
            self._keep_alive.left(instance, at)
        self._take_out(instance, at)
        instance.entry.take(instance)
        self._leave(instance)

    def _take_out(self, instance: Instance, at: float) -> None:
        self._lru.remove(instance)
        self._total -= instance.size
        self._idle_byte_seconds += instance.size * (at - instance.last_used)

    def _leave(self, instance: Instance) -> None:
        module = instance.module
        del module.instances[instance]
        module.users -= 1
        self._order.left(instance)
        instance.state = State.CLOSED


def _keep_alive(settings: Settings, idle: LRU[Instance]) -> KeepAlive | None:
    if settings.idle_timeout != ADAPTIVE:
        return None
    least, most = settings.min_idle_timeout, settings.max_idle_timeout
    config = CacheConfig(idle_timeout=ADAPTIVE, min_idle_timeout=least, max_idle_timeout=most)
    return KeepAlive(config, idle)


def _entries_of(trace: Trace, keep_alive: KeepAlive | None) -> list[Entry]:
    modules: dict[int, Module] = {}
    functions: dict[int, FunctionRecord] = {}
    entries = []
    times: dict[int, IdleTimes] = {}  # {number of a name: those of all its generations}
    columns = trace.functions, trace.modules, trace.names
    for function, module, name in zip(*columns, strict=True):
        record = functions.get(function)
        if record is None:
            code = modules.setdefault(module, Module("", 0))
            record = functions[function] = FunctionRecord(FunctionKey("", ()), 0, code)
            if keep_alive is not None:
                keep_alive.times[record] = times.setdefault(name, IdleTimes())
        entries.append(Entry(record, GROUP if keep_alive is None else GroupRecord("")))
    return entries
