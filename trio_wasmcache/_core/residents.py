"""What is in the cache, and how it goes: every way for an instance to enter, rest, run and leave.

Nobody waits here. `policy` decides who is served; this file keeps the three books that must agree
(the entry, the ledger, the order of last use) and changes them together, one instance at a time.
Whatever leaves is recorded in the `Step` that the shell gets.
"""

from __future__ import annotations

from attrs import Factory, define

from .config import CacheConfig
from .events import Evicted, Reason
from .ledger import Ledger
from .lru import LRU
from .records import Entry, FunctionRecord, GroupRecord, Instance, Module, Request
from .state import TRANSITIONS, Action, step


@define
class Step:
    """What a step of the policy leaves for the shell to do, each list in order."""

    evicted: list[tuple[Instance, Evicted]] = Factory(list)
    """To be closed, with the fact for the log."""
    unloaded: list[Module] = Factory(list)
    """Nobody uses their code any more."""
    woken: list[Request] = Factory(list)
    """They need wait no longer: `stage` and `error` tell why."""

    def __bool__(self) -> bool:
        return bool(self.evicted or self.unloaded or self.woken)


@define(eq=False)
class Residents:
    """The instances of one cache."""

    config: CacheConfig
    ledger: Ledger = Factory(lambda self: Ledger(self.config.stack_size), takes_self=True)
    lru: LRU[Instance] = Factory(lambda: LRU[Instance]())
    evictions: dict[Reason, int] = Factory(lambda: dict.fromkeys(Reason, 0))
    entries: dict[Entry, None] = Factory(dict)
    _numbers: int = 0

    # -- entries: made when asked for, forgotten when nothing needs them

    def entry(self, function: FunctionRecord, group: GroupRecord) -> Entry:
        """The entry of `function` in `group`, made if there is none."""
        entry = function.entries.get(group)
        if entry is None:
            entry = function.entries[group] = Entry(function, group)
            group.entries[entry] = None
            self.entries[entry] = None
        return entry

    def forget(self, entry: Entry) -> None:
        """Drop `entry` if nothing lives, waits or runs in it."""
        if entry.vacant and entry in self.entries:
            del self.entries[entry]
            del entry.group.entries[entry]
            del entry.function.entries[entry.group]

    # -- in, and back

    def start(self, entry: Entry, now: float) -> Instance:
        """A new instance begins to load."""
        self._numbers += 1
        instance = Instance(self._numbers, entry, now)
        instance.state = step(instance.state, Action.LOAD)
        instance.loads_module = self.ledger.enter(entry.function.module)
        entry.live += 1
        return instance

    def resume(self, entry: Entry) -> Instance:
        """The most recently used idle instance of `entry` runs again."""
        instance = entry.idle[-1]
        state = TRANSITIONS[instance.state][Action.ACQUIRE]
        entry.idle.pop()
        self.lru.remove(instance)
        self.ledger.resume(instance)
        instance.state = state
        return instance

    def settle(self, instance: Instance, action: Action, size: int, now: float) -> None:
        """A running (or just loaded) instance becomes idle. The caller has seen to its fitting."""
        entry = instance.entry
        instance.state = step(instance.state, action)
        instance.size = size
        instance.last_used = entry.last_used = now
        self.ledger.suspend(instance)
        self.lru.touch(instance)
        entry.idle.append(instance)

    # -- out

    def drop(
        self, instance: Instance, reason: Reason, now: float, result: Step, limit: int | None = None
    ) -> None:
        """A loading or running instance goes, and is an eviction."""
        state = step(instance.state, Action.DROP)
        before = self.ledger.total_size, self.ledger.used
        instance.last_used = now
        self._leave_running(instance, result)
        instance.state = state
        self._record(instance, reason, now, result, before, limit)

    def discard(self, instance: Instance, result: Step) -> None:
        """An instance that could not be loaded goes; it never was, so it is no eviction."""
        state = step(instance.state, Action.DROP)
        self._leave_running(instance, result)
        instance.state = state

    def evict(
        self, instance: Instance, reason: Reason, now: float, result: Step, limit: int | None = None
    ) -> None:
        """An idle instance goes."""
        state = step(instance.state, Action.EVICT)
        entry = instance.entry
        before = self.ledger.total_size, self.ledger.used
        self.lru.remove(instance)
        entry.idle.remove(instance)
        entry.live -= 1
        if self.ledger.leave_idle(instance):
            result.unloaded.append(entry.function.module)
        instance.state = state
        self._record(instance, reason, now, result, before, limit)
        self.forget(entry)

    def evict_entry(self, entry: Entry, reason: Reason, now: float, result: Step) -> None:
        """All idle instances of `entry` go, the least recently used first."""
        for instance in list(entry.idle):
            self.evict(instance, reason, now, result)

    def evict_module(self, module: Module, reason: Reason, now: float, result: Step) -> None:
        """All idle instances of a module that has no others go, and so does its code."""
        for instance in list(module.idle):
            self.evict(instance, reason, now, result)

    def shrink(self, target: int, now: float, result: Step) -> None:
        """Least recently used first, until idle instances take at most `target` bytes."""
        while self.ledger.total_size > target and (oldest := self.lru.oldest()) is not None:
            self.evict(oldest, Reason.SIZE, now, result)

    def expire(self, now: float, result: Step) -> None:
        """What has been idle for `idle_timeout` goes."""
        while (oldest := self.lru.oldest()) is not None:
            if oldest.last_used + self.config.idle_timeout > now:
                return
            self.evict(oldest, Reason.IDLE, now, result)

    def resize(self, config: CacheConfig, now: float, result: Step) -> None:
        """Under smaller limits, what no longer fits goes."""
        self.config = config
        limit = config.max_instance_size
        for instance in [instance for instance in self.lru if instance.size > limit]:
            self.evict(instance, Reason.OVERSIZED, now, result, limit)
        self.shrink(config.max_size, now, result)
        while self.ledger.idle + self.ledger.running > config.max_instances:
            if (oldest := self.lru.oldest()) is None:
                break
            self.evict(oldest, Reason.COUNT, now, result)
        while self.ledger.used > config.max_code_size:
            if (module := self.ledger.evictable.oldest()) is None:
                break
            self.evict_module(module, Reason.CODE, now, result)

    # -- room for code and stack

    def make_room(self, module: Module, another: bool, now: float, result: Step) -> bool:
        """Evict what must go for one more running instance of `module`.

        Looks first whether room can be made at all; if not, nothing changes and the answer is
        False. Whole modules go, least recently used first, never one that is in use and never
        `module` itself: an eviction that frees no code would be for nothing.

        Args:
            another: it will be a new instance, which counts against `max_instances`.
        """
        ledger, limit = self.ledger, self.config.max_code_size
        possible = ledger.evictable_code
        if module in ledger.evictable:
            possible -= module.code_size
        if ledger.used + self._needed(module) - possible > limit:
            return False
        if another and ledger.idle + ledger.running >= self.config.max_instances:
            victim = self.lru.oldest()
            if victim is None:
                return False
            self.evict(victim, Reason.COUNT, now, result)
        # Only now, as that may have unloaded the module itself: as many bytes, needed again.
        needed = self._needed(module)
        reason = Reason.STACK if module.users else Reason.CODE
        while ledger.used + needed > limit:
            oldest = next(other for other in ledger.evictable if other is not module)
            self.evict_module(oldest, reason, now, result)
        return True

    def _needed(self, module: Module) -> int:
        return self.ledger.stack_size + (0 if module.users else module.code_size)

    # -- what it all comes down to

    def _leave_running(self, instance: Instance, result: Step) -> None:
        if self.ledger.leave_running(instance.entry.function.module):
            result.unloaded.append(instance.entry.function.module)
        instance.entry.live -= 1

    def _record(
        self,
        instance: Instance,
        reason: Reason,
        now: float,
        result: Step,
        before: tuple[int, int],
        limit: int | None,
    ) -> None:
        function = instance.entry.function
        module = function.module
        self.evictions[reason] += 1
        advice = None
        if reason is Reason.OVERSIZED and not function.warned_oversized:
            function.warned_oversized = True
            advice = (
                f"{function.key} takes {instance.size} bytes, more than max_instance_size = {limit}: "
                "it is loaded anew for every lease until the limit is raised"
            )
        event = Evicted(
            function=function.key.name,
            arg_types=", ".join(function.key.args),
            group=instance.entry.group.name,
            generation=function.generation,
            instance=instance.number,
            reason=reason,
            module_digest=module.digest,
            freed_bytes=instance.size,
            freed_code_bytes=0 if module.users else module.code_size,
            idle_seconds=now - instance.last_used,
            age_seconds=now - instance.created_at,
            uses=instance.uses,
            total_size_before_bytes=before[0],
            total_size_after_bytes=self.ledger.total_size,
            code_size_before_bytes=before[1],
            code_size_after_bytes=self.ledger.used,
            limit_bytes=limit,
            advice=advice,
        )
        result.evicted.append((instance, event))
