"""What the policy has to do, said a second time and as plainly as possible.

Written from DESIGN's semantics, to be compared with `Policy` after every step. It shares no code
with it: lists that are searched, sums that are added up anew, and nothing kept that can be found
out by looking. Where the policy asks "who is affected?", the model looks at everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class MCode:
    """What a function is made of."""

    module: str
    code: int
    space: int
    mappings: int


@dataclass(eq=False)
class MFunction:
    """One generation of a function."""

    label: str
    module: str
    code: int
    concurrency: int
    worst: int
    """What an instance of it may touch."""
    space: int = 0
    """Addresses that an instance of it reserves."""
    mappings: int = 0
    """Mappings of an instance of it; its module has one."""
    retired: bool = False
    successor: MFunction | None = None
    promoted: bool = False
    """Whether new ones are made of other code than it began with."""

    def __repr__(self) -> str:
        return self.label

    @property
    def made(self) -> MCode:
        return MCode(self.module, self.code, self.space, self.mappings)


@dataclass(eq=False)
class MGroup:
    """A scheduling group."""

    label: str
    max_size: int | None = None
    reserved: int = 0
    """Bytes that others' need does not take from it."""
    closed: bool = False

    def __repr__(self) -> str:
        return self.label


Key = tuple[MFunction, MGroup]


@dataclass(eq=False)
class MInstance:
    """An instance, from its load on, until it goes."""

    number: int
    key: Key
    made: MCode
    state: str = "loading"  # loading, loaded (to be warm), running, idle
    size: int = 0
    space: int = 0
    mappings: int = 0
    with_module: bool = False
    """Whether its module had to be loaded, too."""
    seat: bool = False
    """Nothing is there but a place: a lease of it loads first, and is a hit all the same."""
    last_used: float = 0.0
    rested: int = 0
    """The tick at which it became idle: the lowest is the least recently used."""
    uses: int = 0
    known: bool = False
    """Whether the order of evictions counts it: from its first rest on."""
    own: float = 0.0
    """Seconds of making one, as its function had taken by then; and of loading its module:"""
    code: float = 0.0
    floors: tuple[float, float] = (0.0, 0.0)
    """The floors of sizes and of counts when it became idle."""
    altered: bool = False
    """Whether it was loaded on a seat since it last rested."""
    has_stand_in: bool = False
    """Whether one of other code was made to be idle beside it, while it runs."""
    seen: int = 0
    """Its uses when SIEVE's hand last passed."""
    due: float | None = None
    """When it goes for time if nobody uses it, once that is known, with an adaptive timeout."""

    @property
    def module(self) -> str:
        return self.made.module

    @property
    def outdated(self) -> bool:
        return self.made != self.key[0].made


@dataclass(eq=False)
class MRequest:
    """One acquire."""

    key: Key
    owner: str
    warm: bool
    turn: int
    stage: str = "new"  # queued, room, loading, granted, ended
    claimed: int = 0
    """The tick at which it got its claim, or 0."""
    instance: MInstance | None = None
    blocked: bool = False
    error: str | None = None

    def __repr__(self) -> str:
        return f"#{self.turn} of {self.owner} for {self.key}: {self.stage}"


@dataclass
class Outcome:
    """What a step should do."""

    error: str | None = None
    """The name of what it raises; then nothing else may have changed."""
    evicted: list[tuple[int, str]] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    woken: list[MRequest] = field(default_factory=list)


@dataclass(eq=False)
class MIdleTimes:
    """How long something was idle, by classes of 2 ** (1 / 4)."""

    weights: dict[int, int] = field(default_factory=dict)
    beyond: int = 0

    def total(self) -> int:
        return sum(self.weights.values()) + self.beyond

    def add(self, seconds: float, most: float) -> None:
        if self.total() + 4 > 240:
            faded = {place: weight * 3 // 4 for place, weight in self.weights.items()}
            self.weights = {place: weight for place, weight in faded.items() if weight}
            self.beyond = self.beyond * 3 // 4
        if seconds >= most:
            self.beyond += 4
        else:
            places = [it for it in range(-40, 121) if 2 ** (it / 4) <= seconds]
            place = max(places, default=-40)
            self.weights[place] = self.weights.get(place, 0) + 4

    def timeout(self, least: float, most: float) -> float:
        """The one that pays best: `most` for each that would be a hit, less the time spent."""
        found, best = least, 0.0
        for last in sorted(self.weights):
            if 2 ** (last / 4) >= most:
                continue
            timeout = min(2 ** ((last + 2) / 4), most)
            worth, missed = 0.0, self.total()
            for place in sorted(self.weights):
                if place <= last:
                    middle = (2 ** (place / 4) + 2 ** ((place + 1) / 4)) / 2
                    worth += self.weights[place] * (most - min(middle, most))
                    missed -= self.weights[place]
            if worth - missed * timeout > best + 1e-9:
                found, best = timeout, worth - missed * timeout
        return max(found, least)


@dataclass(eq=False)
class Model:
    """The whole cache."""

    stack: int
    unit: int
    """Bytes of a unit of code."""
    max_size: int
    max_instance_size: int
    max_instances: int
    max_code: int
    max_running: int | None
    idle_timeout: float | str
    least_idle: float = 1.0
    most_idle: float = 600.0
    policy: str = "lru"
    max_space: int | None = None
    max_mappings: int | None = None
    closed: bool = False
    awaits: dict[str, str] = field(default_factory=dict)
    """{owner: the owner of the preparation that it waits for, to register a function}."""
    instances: list[MInstance] = field(default_factory=list)
    requests: list[MRequest] = field(default_factory=list)
    """Those that have not ended, in order of arrival."""
    room: list[MRequest] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    """Where something lives, waits or runs, in order of appearance."""
    stopped: dict[str, int] = field(default_factory=dict)
    """{module: tick at which the last one of it stopped}."""
    means: dict[MFunction | str, float] = field(default_factory=dict)
    """{function: seconds of making one; module: seconds of loading it}."""
    floors: dict[str, float] = field(default_factory=dict)
    """{"size", "count" or "code": the priority of the last that went for it}."""
    module_floors: dict[str, float] = field(default_factory=dict)
    """{module: the floor of code when one of it last became idle}."""
    module_rested: dict[str, int] = field(default_factory=dict)
    """{module: tick of the last rest of one that has left, while others of it are known}."""
    line: list[MInstance] = field(default_factory=list)
    """SIEVE's queue, the oldest first, and where the hand is (None: before all):"""
    hand: MInstance | None = None
    most_passed: int = 64
    """Those that can't go that the hand passes for one victim, before the oldest goes instead."""
    module_line: list[str] = field(default_factory=list)
    module_hand: str | None = None
    module_seen: dict[str, int] = field(default_factory=dict)
    """{module: tick at which the hand last passed; -1: another one of it came since}."""
    now: float = 0.0
    times: dict[str, MIdleTimes] = field(default_factory=dict)
    """{name of a function: its idle times}, under an adaptive timeout."""
    first_times: MIdleTimes = field(default_factory=MIdleTimes)
    """The first four of each."""
    gone: list[tuple[str, MGroup, float]] = field(default_factory=list)
    """Last uses of evicted ones that were not wanted since: the last one of each key."""
    hits: int = 0
    misses: int = 0
    blocks: int = 0
    ticks: int = 0
    made: int = 0
    moving: MRequest | None = None
    """Back from a load in vain: in line, but it does not wait yet."""

    # -- what there is

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    def idle(self) -> list[MInstance]:
        """Least recently used first."""
        found = [it for it in self.instances if it.state == "idle"]
        return sorted(found, key=lambda it: it.rested)

    def busy(self) -> list[MInstance]:
        return [it for it in self.instances if it.state != "idle"]

    def live(self, key: Key) -> list[MInstance]:
        return [it for it in self.instances if it.key == key]

    def idle_of(self, key: Key) -> list[MInstance]:
        return [it for it in self.idle() if it.key == key]

    def total_size(self) -> int:
        return sum(it.size for it in self.idle())

    def code(self) -> dict[str, int]:
        """{loaded module: bytes}."""
        return {it.module: it.made.code for it in self.instances}

    def used(self) -> int:
        return sum(self.code().values()) + self.stacks()

    def stacks(self) -> int:
        return self.stack * len(self.busy())

    def claims(self, key: Key) -> list[MRequest]:
        found = [it for it in self.requests if it.claimed and it.key == key]
        return sorted(found, key=lambda it: it.claimed)

    def queue(self, key: Key) -> list[MRequest]:
        found = [it for it in self.requests if it.stage == "queued" and it.key == key]
        return sorted(found, key=lambda it: it.turn)

    def free(self, key: Key) -> bool:
        return len(self.claims(key)) < key[0].concurrency

    def idle_modules(self) -> list[str]:
        """Modules of which nothing runs, the least recently used first."""
        busy = {it.module for it in self.busy()}
        return sorted((it for it in self.code() if it not in busy), key=self.stopped.__getitem__)

    def fits(self, key: Key) -> bool:
        function = key[0]
        alone = function.space + function.code, function.mappings + 1
        return (
            function.code + self.stack <= self.max_code
            and self.may_run(function.worst)
            and self.may_reserve(*alone)
        )

    def may_reserve(self, space: int, mappings: int) -> bool:
        return (self.max_space is None or space <= self.max_space) and (
            self.max_mappings is None or mappings <= self.max_mappings
        )

    def reserved(self) -> tuple[int, int]:
        """By all instances and all loaded code; a module has one mapping."""
        code = self.code()
        return (
            sum(it.space for it in self.instances) + sum(code.values()),
            sum(it.mappings for it in self.instances) + len(code),
        )

    def least_reserved(self, needed: str | None) -> tuple[int, int]:
        """If all that is idle went, but for the code of the module that is needed."""
        busy = self.busy()
        code = {it.module: it.made.code for it in busy}
        if needed is not None and needed in self.code():
            code[needed] = self.code()[needed]
        return (
            sum(it.space for it in busy) + sum(code.values()),
            sum(it.mappings for it in busy) + len(code),
        )

    def space_victims(self, needed: str | None) -> list[MInstance]:
        """Who may go for addresses: seats only if nothing else is left."""
        seats = [it for it in self.idle() if it.seat and it.module in self.idle_modules()]
        return self.reserved_last(
            [it for it in self.idle() if not it.seat] or [it for it in seats if it.module != needed]
        )

    # -- what groups have reserved

    def idle_size(self, group: MGroup) -> int:
        return sum(it.size for it in self.idle() if it.key[1] is group)

    def spare(self, it: MInstance) -> bool:
        """Whether its group has all that it has reserved without it."""
        return self.idle_size(it.key[1]) - it.size >= it.key[1].reserved

    def reserved_last(self, among: list[MInstance]) -> list[MInstance]:
        return [it for it in among if self.spare(it)] or among

    def spare_module(self, module: str) -> bool:
        of_it = [it for it in self.idle() if it.module == module]
        return all(
            self.idle_size(group) - sum(it.size for it in of_it if it.key[1] is group)
            >= group.reserved
            for group in {it.key[1] for it in of_it}
        )

    def for_size(self, group: MGroup | None, size: int = 0) -> list[MInstance]:
        """Who may go so that a group (None: nobody) can have so many more bytes."""
        idle = self.idle()
        if group is not None and self.idle_size(group) + size > group.reserved:
            return [it for it in idle if it.key[1] is group or self.spare(it)]
        others = [it for it in idle if it.key[1] is not group]
        borrowed = [it for it in others if self.idle_size(it.key[1]) > it.key[1].reserved]
        return [it for it in others if self.spare(it)] or borrowed

    def fit(self, group: MGroup, size: int, out: Outcome) -> bool:
        """Whether there is room for it, once others have gone."""
        limit = group.max_size
        others = {it.key[1] for it in self.idle()} - {group}
        kept = sum(min(self.idle_size(it), it.reserved) for it in others)
        within = self.idle_size(group) + size <= group.reserved
        full = self.total_size() + size > self.max_size
        over = limit is not None and self.idle_size(group) + size > limit
        if (full or over) and not within and kept + size > self.max_size:
            return False
        while limit is not None and self.idle_size(group) + size > limit:
            own = self.victim("size", [it for it in self.idle() if it.key[1] is group])
            assert own is not None
            self.evict(own, "size", out)
        while self.total_size() + size > self.max_size:
            victim = self.victim("size", self.for_size(group, size))
            if victim is None:
                return False
            self.evict(victim, "size", out)
        return True

    # -- who goes next

    def alone(self, instance: MInstance) -> bool:
        same = [it for it in self.instances if it.known and it.module == instance.module]
        return same == [instance]

    def worth(self, it: MInstance, alone: bool) -> float:
        if self.policy == "gdsf":
            return 1.0
        return (0.0 if it.seat else it.own) + (it.code if alone else 0.0)

    def priority(self, it: MInstance, kind: str) -> float:
        value = max(it.uses, 1) * self.worth(it, self.alone(it))
        if kind == "size":
            return it.floors[0] + value / max(it.size, 1)
        return it.floors[1] + value

    def module_priority(self, module: str) -> float:
        value = 0.0
        for it in self.instances:
            if it.module == module:
                value += max(it.uses, 1) * self.worth(it, True)
        return self.module_floors[module] + value / (self.code()[module] * self.unit)

    def victim(self, kind: str, among: list[MInstance] | None = None) -> MInstance | None:
        """Which of the idle ones (or of `among` them) goes first for "size" or "count"."""
        among = self.idle() if among is None else among
        if not among:
            return None
        if self.policy == "lru":
            return among[0]
        if self.policy == "sieve":

            def used(it: MInstance) -> bool:
                seen, it.seen = it.seen, max(it.uses, 1)
                return seen != it.seen

            self.hand, goes = walk(
                self.line, self.hand, lambda it: it not in among, used, self.most_passed
            )
            return goes or among[0]
        found = min(among, key=lambda it: (self.priority(it, kind), it.rested))
        self.floors[kind] = max(self.floors.get(kind, 0.0), self.priority(found, kind))
        return found

    def victim_module(self, needed: str | None = None) -> str | None:
        among = [it for it in self.idle_modules() if it != needed]
        among = [it for it in among if self.spare_module(it)] or among
        if not among:
            return None
        if self.policy == "lru":
            return among[0]
        if self.policy == "sieve":

            def used_module(module: str) -> bool:
                seen, self.module_seen[module] = self.module_seen[module], self.ticks
                of_it = [it for it in self.instances if it.module == module]
                return seen < 0 or any(it.uses > 1 and it.rested > seen for it in of_it)

            self.module_hand, goes_module = walk(
                self.module_line,
                self.module_hand,
                lambda module: module not in among,
                used_module,
                self.most_passed,
            )
            return goes_module or among[0]
        last = self.module_rested.copy()
        for it in self.idle():
            last[it.module] = max(last.get(it.module, 0), it.rested)
        found = min(among, key=lambda it: (self.module_priority(it), last[it]))
        self.floors["code"] = max(self.floors.get("code", 0.0), self.module_priority(found))
        return found

    def enter(self, it: MInstance) -> None:
        """From now on it counts."""
        it.own = self.means.get(it.key[0], 0.0)
        it.code = self.means.get(it.module, 0.0)
        if it.known:
            return
        it.known = True
        it.seen = max(it.uses, 1)
        self.line.append(it)
        if it.module in self.module_line:
            self.module_seen[it.module] = -1
        else:
            self.module_line.append(it.module)
            self.module_seen[it.module] = 0

    def step_out(self, it: MInstance) -> None:
        if not it.known:
            return
        it.known = False
        if self.hand is it:
            self.hand = after(self.line, it)
        self.line.remove(it)
        self.note_rest(it)
        if not any(other.known and other.module == it.module for other in self.instances):
            if self.module_hand == it.module:
                self.module_hand = after(self.module_line, it.module)
            self.module_line.remove(it.module)

    def note_rest(self, gone: MInstance) -> None:
        """Its module was used when it was last used."""
        module = gone.module
        last = max(self.module_rested.pop(module, 0), gone.rested)
        if any(it.known and it.module == module for it in self.instances):
            self.module_rested[module] = last

    def count_load(self, it: MInstance, with_module: bool, seconds: float) -> None:
        what: MFunction | str = it.module if with_module else it.key[0]
        if with_module:
            seconds = max(0.0, seconds - self.means.get(it.key[0], 0.0))
        old = self.means.get(what)
        self.means[what] = seconds if old is None else old + 0.25 * (seconds - old)

    def change_policy(self, policy: str) -> None:
        """The new one knows who is there, and nothing of what they did before."""
        if policy == self.policy:
            return
        self.policy = policy
        self.floors.clear()
        self.module_floors = dict.fromkeys(self.code(), 0.0)
        self.module_rested.clear()
        self.line, self.hand = [], None
        self.module_line, self.module_hand = [], None
        for it in self.instances:
            it.floors = 0.0, 0.0
            it.known = False
            if it.state == "idle":
                self.enter(it)

    # -- how long who is kept

    def times_of(self, key: Key) -> MIdleTimes:
        return self.times.setdefault(name_of(key[0]), MIdleTimes())

    def learn(self, name: str, seconds: float) -> None:
        times = self.times.setdefault(name, MIdleTimes())
        if times.total() < 16:
            self.first_times.add(seconds, self.most_idle)
        times.add(seconds, self.most_idle)

    def give_up(self, now: float) -> None:
        while self.gone and self.gone[0][2] + self.most_idle <= now:
            name, group, _ = self.gone.pop(0)
            if not group.closed:
                self.learn(name, math.inf)

    def age(self, now: float) -> None:
        """Whoever has been idle for long enough learns when to go."""
        for it in self.idle():
            at = it.last_used + self.least_idle
            if it.due is None and at <= now:
                self.give_up(at)
                times = self.times_of(it.key)
                if not times.total():
                    times = self.first_times
                timeout = times.timeout(self.least_idle, self.most_idle)
                if times is self.first_times and times.total() < 64:
                    timeout = self.most_idle
                it.due = it.last_used + timeout

    def note_use(self, it: MInstance) -> None:
        """It was idle, and is wanted for a lease."""
        idle = self.now - it.last_used
        if self.idle_timeout == "adaptive" and idle >= self.least_idle:
            self.age(self.now)
            self.give_up(self.now)
            self.learn(name_of(it.key[0]), idle)

    def note_start(self, key: Key) -> None:
        """Nothing was idle, and a lease wants one."""
        if self.idle_timeout != "adaptive":
            return
        self.age(self.now)
        self.give_up(self.now)
        for one in [it for it in self.gone if it[:2] == (name_of(key[0]), key[1])]:
            self.gone.remove(one)
            if self.now - one[2] >= self.least_idle:
                self.learn(one[0], self.now - one[2])

    def note_gone(self, it: MInstance) -> None:
        function, group = it.key
        if self.idle_timeout == "adaptive" and not (function.retired or group.closed):
            self.age(self.now)
            name = name_of(function)
            self.gone = [one for one in self.gone if one[:2] != (name, group)]
            self.gone.append((name, group, it.last_used))

    def due(self, it: MInstance) -> float:
        """When there is something to do for an idle one."""
        if self.idle_timeout != "adaptive":
            return it.last_used + float(self.idle_timeout)
        return it.last_used + self.least_idle if it.due is None else it.due

    def may_run(self, size: int) -> bool:
        return self.max_running is None or size <= self.max_running

    def running_size(self) -> int:
        return sum(it.key[0].worst for it in self.busy())

    def stuck(self) -> set[str]:
        """The owners that can never go on: the greatest set in which all wait for each other."""
        waiting = {
            it.owner: it
            for it in self.requests
            if it.stage == "room" or (it.stage == "queued" and it is not self.moving)
        }
        held = [it for it in self.requests if it.instance is not None]
        doomed = {*waiting, *self.awaits}
        while True:
            able = set()
            for owner in doomed:
                if owner in self.awaits:
                    if self.awaits[owner] not in doomed:
                        able.add(owner)
                    continue
                request = waiting[owner]
                if request.stage == "room":
                    givers = held
                elif self.free(request.key):
                    able.add(owner)
                    continue
                else:
                    givers = self.claims(request.key)
                if not givers or any(it.owner not in doomed for it in givers):
                    able.add(owner)
            if not able:
                return doomed
            doomed -= able

    # -- how it changes

    def leave(self, instance: MInstance, out: Outcome) -> None:
        self.instances.remove(instance)
        self.step_out(instance)
        if instance.state != "idle":
            self.stop(instance)
        if instance.module not in self.code():
            out.unloaded.append(instance.module)

    def stop(self, instance: MInstance) -> None:
        others = [it for it in self.busy() if it.module == instance.module and it is not instance]
        if not others:
            self.stopped[instance.module] = self.tick()

    def evict(self, instance: MInstance, reason: str, out: Outcome) -> None:
        if instance.state == "idle":
            self.note_gone(instance)
        self.leave(instance, out)
        out.evicted.append((instance.number, reason))

    def evict_module(self, module: str, reason: str, out: Outcome) -> None:
        for it in [it for it in self.idle() if it.module == module]:
            self.evict(it, reason, out)

    def make_room(self, worst: int, made: MCode, another: bool, seat: bool, out: Outcome) -> bool:
        loaded = made.module in self.code()
        needed = self.stack + (0 if loaded else made.code)
        free = sum(self.code()[it] for it in self.idle_modules() if it != made.module)
        if self.used() + needed - free > self.max_code or not self.may_run(
            self.running_size() + worst
        ):
            return False
        if another and len(self.instances) >= self.max_instances and not self.idle():
            return False
        if (another or seat) and not self.may_have(made, self.least_reserved(made.module)):
            return False
        while self.used() + needed > self.max_code:
            module = self.victim_module(made.module)
            assert module is not None
            self.evict_module(module, "stack" if loaded else "code", out)
        while (another or seat) and not self.may_have(made, self.reserved()):
            self.evict_for_space(made.module, out)
        if another and len(self.instances) >= self.max_instances:
            victim = self.victim("count", self.reserved_last(self.idle()))
            assert victim is not None
            self.evict(victim, "count", out)
        return True

    def evict_for_space(self, needed: str | None, out: Outcome) -> None:
        victim = self.victim("count", self.space_victims(needed))
        assert victim is not None
        self.evict(victim, "address_space", out)

    def may_have(self, made: MCode, beside: tuple[int, int]) -> bool:
        """Whether another instance of that code fits beside what is reserved."""
        space, mappings = beside[0] + made.space, beside[1] + made.mappings
        if made.module not in self.code():
            space, mappings = space + made.code, mappings + 1
        return self.may_reserve(space, mappings)

    def serve(self, request: MRequest, out: Outcome) -> bool:
        idle = self.idle_of(request.key)
        if request.warm and len(self.live(request.key)) < request.key[0].concurrency:
            idle = []
        seat = bool(idle) and idle[-1].seat
        function = request.key[0]
        made = idle[-1].made if idle else function.made
        if not self.make_room(function.worst, made, not idle, seat, out):
            return False
        if idle and not request.warm:
            self.note_use(idle[-1])
        elif not request.warm:
            self.note_start(request.key)
        if idle and idle[-1].seat:
            request.stage = "loading"
            request.instance = idle[-1]
            request.instance.state = "loading"
            request.instance.with_module = False
            self.start(request.instance)
        elif idle:
            request.stage = "granted"
            request.instance = idle[-1]
            request.instance.state = "running"
            self.hits += not request.warm
        else:
            self.made += 1
            request.stage = "loading"
            first = request.key[0].module not in self.code()
            request.instance = MInstance(self.made, request.key, made, with_module=first)
            self.start(request.instance)
            self.instances.append(request.instance)
        return True

    def start(self, instance: MInstance) -> None:
        instance.space, instance.mappings = instance.made.space, instance.made.mappings

    def end(self, request: MRequest, error: str, out: Outcome) -> None:
        self.drop_out(request)
        request.error = error
        out.woken.append(request)

    def drop_out(self, request: MRequest) -> None:
        self.requests.remove(request)
        if request in self.room:
            self.room.remove(request)
        request.stage = "ended"
        request.claimed = 0
        request.instance = None

    def let_go(self, request: MRequest) -> None:
        request.claimed = 0
        request.instance = None

    def wait_for_room(self, request: MRequest) -> None:
        request.stage = "room"
        self.room.append(request)
        self.blocks += not request.blocked
        request.blocked = True

    def trim(self, out: Outcome) -> None:
        while len(self.instances) > self.max_instances and self.idle():
            victim = self.victim("count", self.reserved_last(self.idle()))
            assert victim is not None
            self.evict(victim, "count", out)
        while self.used() > self.max_code and (module := self.victim_module()):
            self.evict_module(module, "code", out)
        while not self.may_reserve(*self.reserved()) and self.space_victims(None):
            self.evict_for_space(None, out)

    def settle(self, out: Outcome) -> None:
        """Whoever can be served is, until nobody can: entries first, then room, then deadlocks."""
        if self.closed:
            self.trim(out)
            return  # a cache that closes, group by group, serves nobody any more
        for key in list(self.keys):
            while self.queue(key) and self.free(key):
                request = self.queue(key)[0]
                if not self.fits(key):
                    self.end(request, "CodeMemoryError", out)
                    continue
                request.claimed = self.tick()
                if self.room or not self.serve(request, out):
                    self.wait_for_room(request)
                else:
                    out.woken.append(request)
        self.trim(out)
        while self.room and self.serve(self.room[0], out):
            out.woken.append(self.room.pop(0))
        if self.room and self.room[0].owner in self.stuck():
            # Somebody who holds has to give way; who holds nothing would do so for nothing.
            holders = {it.owner for it in self.requests if it.instance is not None}
            holders |= {self.awaits[it] for it in holders if it in self.awaits}
            # One of them overtakes, if what it asks for fits.
            for request in [it for it in self.room if it.owner in holders]:
                if self.serve(request, out):
                    self.room.remove(request)
                    out.woken.append(request)
                    self.prune()
                    return
            lines = self.room + [it for key in self.keys for it in self.queue(key)]
            self.end(next(it for it in lines if it.owner in holders), "DeadlockError", out)
            self.settle(out)
        self.prune()

    def prune(self) -> None:
        self.keys = [it for it in self.keys if self.live(it) or self.queue(it) or self.claims(it)]

    def appear(self, key: Key) -> None:
        if key not in self.keys:
            self.keys.append(key)

    # -- the steps

    def acquire(self, request: MRequest) -> Outcome:
        out = Outcome()
        key = request.key
        if not self.fits(key):
            out.error = "CodeMemoryError"
            return out
        free = self.free(key) and not self.queue(key)
        self.appear(key)
        self.requests.append(request)
        if free:
            request.claimed = self.tick()
            if not self.room and self.serve(request, out):
                self.prune()
                return out
        request.stage = "room" if free else "queued"
        if request.owner in self.stuck():
            if free and self.room and self.serve(request, out):
                # Those before it in line wait for what it holds.
                self.prune()
                return out
            self.drop_out(request)
            self.prune()
            out.error = "DeadlockError"
            return out
        self.blocks += not request.blocked
        request.blocked = True
        if free:
            self.room.append(request)
        return out

    def loaded(self, request: MRequest, size: int, seconds: float) -> Outcome:
        out = Outcome()
        instance = request.instance
        assert instance is not None
        function, group = instance.key
        seat, instance.seat = instance.seat, False
        self.count_load(instance, instance.with_module, seconds)
        reason = self.unwanted(instance)
        if reason is None:
            instance.size = size
            instance.altered = seat
            request.stage = "granted"
            instance.state = "loaded" if request.warm else "running"
            self.hits += seat and not request.warm
            self.misses += not seat and not request.warm
            return out
        self.evict(instance, reason, out)
        self.let_go(request)
        function = request.key[0]
        while function.retired and function.successor is not None:
            function = function.successor
        if reason != "removed":
            self.end(request, "RequestClosed", out)
        elif function.retired:
            self.end(request, "UnknownFunctionError", out)
        else:
            request.stage = "queued"
            request.key = (function, group)
            self.appear(request.key)
            self.moving = request
        self.settle(out)
        self.moving = None
        if request.stage == "queued":
            if request.owner in self.stuck():
                self.end(request, "DeadlockError", out)
            else:
                self.blocks += not request.blocked
                request.blocked = True
        out.woken = [it for it in out.woken if it is not request]
        return out

    def failed(self, request: MRequest, now: float) -> Outcome:
        out = Outcome()
        instance = request.instance
        assert instance is not None
        if instance.seat:
            instance.space = instance.mappings = 0
            reason = self.unwanted(instance) or self.surplus(instance)
            self.rest(instance, instance.size, now, reason, out)
        else:
            self.leave(instance, out)
        self.drop_out(request)
        self.settle(out)
        return out

    def cancel(self, request: MRequest) -> Outcome:
        out = Outcome()
        self.drop_out(request)
        self.settle(out)
        return out

    def recycle(
        self,
        request: MRequest,
        size: int,
        now: float,
        drop: str | None,
        seat: bool,
        grown: int = 0,
    ) -> Outcome:
        out = Outcome()
        instance = request.instance
        assert instance is not None
        instance.seat = seat
        instance.uses += not request.warm
        if seat:
            instance.space = instance.mappings = 0
        drop = drop or self.unwanted(instance) or self.surplus(instance)
        self.rest(instance, size, now, drop, out, grown)
        self.drop_out(request)
        self.settle(out)
        return out

    def unwanted(self, instance: MInstance) -> str | None:
        function, group = instance.key
        if self.closed:
            return "closed"
        if group.closed:
            return "group_closed"
        return "removed" if function.retired else None

    def surplus(self, instance: MInstance) -> str | None:
        """Whether other code has come in the place of its own."""
        many = len(self.live(instance.key)) > instance.key[0].concurrency
        beside = any(not it.outdated for it in self.idle_of(instance.key))
        unfit = self.lacking(instance) is not None
        return "promoted" if instance.outdated and (many or beside or unfit) else None

    def lacking(self, instance: MInstance) -> str | None:
        """What it would lack in an empty cache."""
        made = instance.made
        if made.code + self.stack > self.max_code:
            return "code"
        alone = made.space + made.code, made.mappings + 1
        return None if self.may_reserve(*alone) else "address_space"

    def evict_unfit(self, instances: list[MInstance], out: Outcome) -> None:
        for it in instances:
            if it.outdated and (reason := self.lacking(it)) is not None:
                self.evict(it, reason, out)

    def promote(self, function: MFunction, made: MCode) -> Outcome:
        """New ones are made of that code."""
        out = Outcome()
        alone = made.space + made.code, made.mappings + 1
        if (
            made.code + self.stack > self.max_code
            or not self.may_run(function.worst)
            or not self.may_reserve(*alone)
        ):
            out.error = "CodeMemoryError"
            return out
        function.promoted = True
        function.module, function.code = made.module, made.code
        function.space, function.mappings = made.space, made.mappings
        for key in self.keys:
            if key[0] is function:
                self.evict_unfit(self.idle_of(key), out)
        self.settle(out)
        return out

    def wants_upgrade(self, key: Key) -> bool:
        function, group = key
        live = self.live(key)
        running = [it for it in live if it.outdated and it.state != "idle"]
        beside = len(live) - len(running) < function.concurrency
        beside = beside and any(not it.has_stand_in for it in running)
        idle = any(it.outdated for it in self.idle_of(key))
        return not (function.retired or group.closed) and (idle or beside)

    def may_upgrade(self, key: Key) -> bool:
        """Whether one that starts fits beside all that is there, and somebody wants it."""
        function = key[0]
        code = 0 if function.module in self.code() else function.code
        return (
            self.wants_upgrade(key)
            and self.used() + code + self.stack <= self.max_code
            and self.may_run(self.running_size() + function.worst)
            and len(self.instances) < self.max_instances
            and self.may_have(function.made, self.reserved())
        )

    def upgrade(self, key: Key, size: int, seat: bool, seconds: float) -> Outcome:
        """One of the new code takes the place of an old one, or is there besides."""
        out, (function, group) = Outcome(), key
        idle = [it for it in self.idle_of(key) if it.outdated]
        more = size - (idle[-1].size if idle else 0)
        first = function.module not in self.code()
        if (
            not self.wants_upgrade(key)
            or size > self.max_instance_size
            or self.total_size() + more > self.max_size
            or (group.max_size is not None and self.idle_size(group) + more > group.max_size)
            or self.used() + (function.code if first else 0) > self.max_code
            or len(self.instances) >= self.max_instances
            or not self.may_have(function.made, self.reserved())
        ):
            return out
        self.made += 1
        new = MInstance(self.made, key, function.made, with_module=first, seat=seat)
        if not seat:
            self.start(new)
        self.instances.append(new)
        if not idle:
            held = (it.instance for it in self.claims(key))
            old = next(it for it in held if it and it.outdated and not it.has_stand_in)
            old.has_stand_in = True
            self.rest(new, size, self.now, None, out)
        else:
            self.take_place(idle[-1], new, size, out)
        self.count_load(new, first, seconds)
        self.settle(out)
        return out

    def take_place(self, old: MInstance, new: MInstance, size: int, out: Outcome) -> None:
        self.stop(new)
        new.state, new.size = "idle", size
        new.last_used, new.rested, new.uses = old.last_used, old.rested, old.uses
        new.floors, new.due, new.seen = old.floors, old.due, old.seen
        self.module_floors[new.module] = self.floors.get("code", 0.0)
        new.own, new.code = self.means.get(new.key[0], 0.0), self.means.get(new.module, 0.0)
        self.line[self.line.index(old)] = new
        if self.hand is old:
            self.hand = new
        new.known, old.known = True, False
        self.instances.remove(old)
        self.note_rest(old)
        self.module_rested[new.module] = self.tick()
        if not any(it.known and it.module == old.module for it in self.instances):
            if self.module_hand == old.module:
                self.module_hand = after(self.module_line, old.module)
            self.module_line.remove(old.module)
        if new.module in self.module_line:
            self.module_seen[new.module] = -1
        else:
            self.module_line.append(new.module)
            self.module_seen[new.module] = 0
        if old.module not in self.code():
            out.unloaded.append(old.module)
        out.evicted.append((old.number, "promoted"))

    def rest(
        self,
        instance: MInstance,
        size: int,
        now: float,
        drop: str | None,
        out: Outcome,
        grown: int = 0,
    ) -> None:
        """What was busy becomes idle, or goes."""
        if drop is None and size > self.max_instance_size:
            drop = "oversized"
        group = instance.key[1]
        most = self.max_size if group.max_size is None else min(self.max_size, group.max_size)
        if drop is None and size > most:
            drop = "size"
        if drop is None and grown:
            instance.space += grown
            instance.mappings += grown
            if not self.may_reserve(*self.reserved()):
                if self.may_reserve(*self.least_reserved(None)):
                    while not self.may_reserve(*self.reserved()):
                        self.evict_for_space(None, out)
                else:
                    drop = "address_space"
        if drop is None and not self.fit(group, size, out):
            drop = "size"
        if drop is not None:
            self.evict(instance, drop, out)
        else:
            self.stop(instance)
            instance.state = "idle"
            changed = size != instance.size or instance.seat or not instance.known
            changed = changed or instance.altered
            instance.altered = False
            instance.size = size
            instance.last_used = now
            instance.due = None
            instance.rested = self.tick()
            floors = [self.floors.get(kind, 0.0) for kind in ("size", "count", "code")]
            instance.floors = floors[0], floors[1]
            self.module_floors[instance.module] = floors[2]
            if changed:
                self.enter(instance)

    def relieve(self, space: int, mappings: int) -> Outcome:
        out = Outcome()
        left = self.reserved()[0] - space, self.reserved()[1] - mappings
        while any(one > target for one, target in zip(self.reserved(), left, strict=True)):
            if not self.space_victims(None):
                break
            self.evict_for_space(None, out)
        if out.evicted:
            self.settle(out)
        return out

    def expire(self, now: float) -> Outcome:
        out = Outcome()
        if self.idle_timeout == "adaptive":
            self.age(now)
        for it in sorted(self.idle(), key=lambda it: (self.due(it), it.rested)):
            if self.due(it) <= now:
                self.evict(it, "idle", out)
        self.settle(out)
        return out

    def change_timeout(self, timeout: float | str, least: float, most: float) -> None:
        """What was learned is still true; when whom to keep how long is decided anew."""
        if (timeout, least, most) == (self.idle_timeout, self.least_idle, self.most_idle):
            return
        if self.idle_timeout == "adaptive":
            self.age(self.now)
        self.idle_timeout, self.least_idle, self.most_idle = timeout, least, most
        for it in self.instances:
            it.due = None
        if timeout == "adaptive":
            self.age(self.now)
        else:
            self.gone.clear()

    def waiters(self, key: Key) -> list[MRequest]:
        """Those ahead first: a claim comes before a place in line."""
        return [it for it in self.claims(key) if it.stage == "room"] + self.queue(key)

    def retire(self, function: MFunction, successor: MFunction | None) -> Outcome:
        out = Outcome()
        function.retired = True
        function.successor = successor
        for key in [it for it in self.keys if it[0] is function]:
            for it in self.idle_of(key):
                self.evict(it, "removed", out)
            if successor is None:
                for request in self.waiters(key):
                    self.end(request, "UnknownFunctionError", out)
                continue
            new = (successor, key[1])
            claims = [it for it in self.claims(key) if it.stage != "granted"]
            queue = self.queue(key)
            if claims or queue:
                self.appear(new)
            for request in claims + queue:
                if request.claimed and not self.free(new):
                    request.claimed = 0
                    if request.stage == "room":
                        self.room.remove(request)
                        request.stage = "queued"
                request.key = new
        self.refuse(out)
        self.settle(out)
        return out

    def refuse(self, out: Outcome) -> None:
        for request in list(self.room):
            if not self.fits(request.key):
                self.end(request, "CodeMemoryError", out)

    def close_group(self, group: MGroup, reason: str) -> Outcome:
        out = Outcome()
        group.closed = True
        for key in [it for it in self.keys if it[1] is group]:
            for it in self.idle_of(key):
                self.evict(it, reason, out)
            for request in self.waiters(key):
                self.end(request, "RequestClosed", out)
        self.settle(out)
        return out

    def resize_group(self, group: MGroup, max_size: int | None, reserved: int) -> Outcome:
        out = Outcome()
        group.max_size, group.reserved = max_size, reserved
        while max_size is not None and self.idle_size(group) > max_size:
            victim = self.victim("size", [it for it in self.idle() if it.key[1] is group])
            assert victim is not None
            self.evict(victim, "size", out)
        self.settle(out)
        return out

    def resize(
        self,
        max_size: int,
        max_instance_size: int,
        max_instances: int,
        max_code: int,
        max_running: int | None,
        idle_timeout: float | str,
        least_idle: float,
        most_idle: float,
        policy: str,
        max_space: int | None = None,
    ) -> Outcome:
        out = Outcome()
        self.change_policy(policy)
        self.change_timeout(idle_timeout, least_idle, most_idle)
        self.max_space = max_space
        self.max_size, self.max_instance_size = max_size, max_instance_size
        self.max_instances, self.max_code = max_instances, max_code
        self.max_running = max_running
        for it in self.idle():
            if it.size > max_instance_size:
                self.evict(it, "oversized", out)
        self.evict_unfit(self.idle(), out)
        while self.total_size() > max_size and (victim := self.victim("size", self.for_size(None))):
            self.evict(victim, "size", out)
        self.trim(out)
        self.refuse(out)
        self.settle(out)
        return out


def name_of(function: MFunction) -> str:
    """Without the generation."""
    return function.label.partition("/")[0]


def walk(
    line: list[T],
    hand: T | None,
    barred: Callable[[T], bool],
    used: Callable[[T], bool],
    most: int,
) -> tuple[T | None, T | None]:
    """Where the hand stops, and whether it found one to evict there.

    It goes on from where it is, and begins again at the end; past `most` that can't go.
    """
    start = 0 if hand is None else line.index(hand)
    passed = 0
    for it in line[start:] + line + line:
        if passed == most:
            return it, None
        if barred(it):
            passed += 1
        elif not used(it):
            return it, it
    return hand, None


def after(line: list[T], it: T) -> T | None:
    """The next newer one."""
    rest = line[line.index(it) + 1 :]
    return rest[0] if rest else None
