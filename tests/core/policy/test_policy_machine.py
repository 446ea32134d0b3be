"""The policy against a plain model of it, step by step, with whatever Hypothesis comes up with.

After each step the two must agree in everything: who was evicted, in what order and why, who was
woken, who waits where, and every sum. What must hold whatever the model says is checked besides,
so that a mistake made in both is seen too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any, get_args

import pytest
from core.policy.policy_bench import short_hit, short_queue
from core.policy.policy_model import (
    MCode,
    MFunction,
    MGroup,
    MIdleTimes,
    Model,
    MRequest,
    Outcome,
    name_of,
)
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trio_wasmcache._core.config import CacheConfig, KiB, PolicyName, SystemLimits
from trio_wasmcache._core.errors import DeadlockError, WasmCacheError
from trio_wasmcache._core.events import Evicted, Reason, Stamped
from trio_wasmcache._core.keys import FunctionKey
from trio_wasmcache._core.metrics.counters import WAITS, add_up
from trio_wasmcache._core.policy import parts, sieve
from trio_wasmcache._core.policy.copying import MOST_ITEMS, UnderWay, Whole
from trio_wasmcache._core.policy.idle_times import IdleTimes
from trio_wasmcache._core.policy.instances import Step
from trio_wasmcache._core.policy.lifecycle import IllegalStepError, State
from trio_wasmcache._core.policy.policy import Policy
from trio_wasmcache._core.policy.records import (
    Entry,
    FunctionRecord,
    GroupRecord,
    Instance,
    Module,
    Preparation,
    Request,
    Stage,
)
from trio_wasmcache._core.snapshot import LISTS, SnapshotGroup
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay.books import LIMITS as LOGGED, Books

# Code is counted in stacks of the smallest size allowed: a module has 1 to 4, the budget 4 to 12.
UNIT = 64 * KiB
OWNERS = ("anna", "ben", "cleo", "dora", "emil")
# Tasks that prepare functions.
PREPARERS = ("paul", "pia", "pim")
ALL = (*OWNERS, *PREPARERS)
SIZES = st.one_of(st.just(10), st.integers(0, 60))
POLICIES = get_args(PolicyName)
# Each is a sum of a few powers of two, so that equal priorities occur.
SECONDS = (0.0, 0.25, 1.0, 3.0)
LIMITS = st.fixed_dictionaries(
    {
        "max_size": st.integers(0, 200),
        "max_instance_size": st.sampled_from([100, 50, 20]),
        "max_instances": st.integers(1, 9),
        "max_code": st.integers(4, 12),
        "max_running": st.sampled_from([None, 4, 6, 10]),
        "max_space": st.sampled_from([None, None, 9, 12, 20]),
        "idle_timeout": st.sampled_from([2.0, 5.0, 1000.0, "adaptive", "adaptive"]),
        "least_idle": st.sampled_from([0.5, 1.0, 2.0]),
        "most_idle": st.sampled_from([2.0, 6.0, 30.0]),
        "policy": st.sampled_from(POLICIES),
    }
)
# {step: the stages at which a request may take it}.
STAGES_OF = {
    "acquire": {Stage.NEW},
    "loaded": {Stage.LOADING},
    "failed": {Stage.LOADING},
    "cancel": {Stage.QUEUED, Stage.ROOM},
    "recycle": {Stage.GRANTED},
}
WALK = 800
Limits = Mapping[str, Any]
PICK = st.integers(0, 11)


def config_of(limits: Limits) -> CacheConfig:
    most, space = limits["max_running"], limits["max_space"]
    return CacheConfig(
        max_size=int(limits["max_size"]),
        max_instance_size=int(limits["max_instance_size"]),
        max_instances=int(limits["max_instances"]),
        max_code_size=int(limits["max_code"]) * UNIT,
        max_running_size=None if most is None else int(most),
        max_address_space=None if space is None else int(space) * UNIT,
        idle_timeout=limits["idle_timeout"],
        min_idle_timeout=limits["least_idle"],
        max_idle_timeout=limits["most_idle"],
        policy=limits["policy"],
        stack_size=UNIT,
    )


def snapshot(policy: Policy) -> list[object]:
    """All that the policy remembers, as plain values that can be compared."""
    instances, ledger = policy.instances, policy.instances.ledger
    entries = [
        (
            *(id(entry.function), id(entry.group), entry.live, entry.last_used),
            *([*entry.idle], [*entry.waiting], [*entry.claims]),
        )
        for entry in instances.entries
    ]
    modules = {module for entry in instances.entries for module in entry.function.modules}
    functions = {entry.function for entry in instances.entries}
    return [
        *(policy.config, policy.hits, policy.misses, policy.blocks, policy.closed),
        *([*policy.room], dict(policy.waits.waiting), [*policy.waits.held]),
        dict(policy.waits.registering),
        *(ledger.total_size, ledger.code_size, ledger.stacks, ledger.idle, ledger.running),
        *(ledger.loaded_modules, [*ledger.evictable], ledger.evictable_code),
        *(ledger.running_size, ledger.address_space, ledger.mappings),
        {(id(entry.group), entry.group.idle_size) for entry in instances.entries},
        *([*instances.lru], dict(instances.evictions), entries),
        [(it.seat, it.address_space, it.mappings, it.ready) for it in instances.lru],
        dict(instances.keep_alive.due),
        *(weights(instances.keep_alive.everyone), dict(instances.keep_alive.gone)),
        {(id(f), weights(it)) for f, it in instances.keep_alive.times.items()},
        {(module.digest, module.users, module.running, *module.idle) for module in modules},
        {(id(f), f.retired, f.warned_oversized, *map(id, f.entries.values())) for f in functions},
        {(id(f), f.address_space, f.mappings, *map(id, f.modules)) for f in functions},
        {(id(r), r.stage, r.error) for entry in instances.entries for r in entry.claims},
    ]


def weights(times: IdleTimes) -> tuple[tuple[int, int], ...]:
    """(class, weight) of those that have any; that of times beyond the longest timeout is last."""
    found = [(place, weight) for place, weight in enumerate(times.weights, times.first) if weight]
    assert times.total == times.beyond + sum(times.weights)
    return (*found, (999, times.beyond))


def model_weights(times: MIdleTimes) -> tuple[tuple[int, int], ...]:
    return (*sorted(times.weights.items()), (999, times.beyond))


class Loaded:
    """An instance that was made in the background."""

    def close(self) -> None:
        pass


class PolicyMachine(RuleBasedStateMachine):
    """Tasks that acquire and recycle, functions and groups that come and go, limits that change."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.short = True  # whether the short ways may be taken
        self.turns = 0
        self.labels = Counter[str]()
        self.functions: dict[MFunction, FunctionRecord] = {}
        self.groups: dict[MGroup, GroupRecord] = {}
        self.requests: dict[MRequest, Request] = {}
        self.ended: list[Request] = []
        self.preparations: dict[str, Preparation] = {}  # {owner: of its preparation}
        self.upgraded: set[int] = set()  # numbers of those made in the background
        self.granted = 0

    @initialize(
        limits=LIMITS,
        codes=st.lists(st.integers(1, 4), min_size=4, max_size=4),
        concurrency=st.integers(2, 3),
        mappings=st.sampled_from([None, None, 8, 12]),
    )
    def open(
        self, limits: Limits, codes: list[int], concurrency: int, mappings: int | None
    ) -> None:
        self.policy = Policy(config_of(limits), SystemLimits(mappings=mappings))
        self.model = Model(
            stack=1,
            unit=UNIT,
            max_mappings=mappings,
            now=self.now,
            **limits,  # type: ignore[arg-type]
        )
        self.modules = [
            Module(f"m{number}", code * UNIT, 1, number=number) for number, code in enumerate(codes)
        ]
        # What each is promoted to.
        self.optimized = {
            one: Module(f"o{number}", (1 + number // 2) * UNIT, 1, number=10 + number)
            for number, one in enumerate(self.modules)
        }
        for _ in range(2):
            self.open_group()
        for number in range(3):
            self.register(number, 1 if number else concurrency)

    # -- what tasks do

    @rule(owner=PICK, function=PICK, group=PICK)
    def acquire(self, owner: int, function: int, group: int) -> None:
        self.begin(owner, function, group)

    @rule(owner=PICK, function=PICK, group=PICK)
    def acquire_and_load(self, owner: int, function: int, group: int) -> None:
        ours = self.begin(owner, function, group)
        if ours is not None and ours.stage == "loading":
            self.load(self.at("loading").index(ours))

    @rule(owner=PICK, function=PICK, group=PICK, size=SIZES, seat=st.booleans())
    def use(self, owner: int, function: int, group: int, size: int, seat: bool) -> None:
        ours = self.begin(owner, function, group)
        if ours is not None and ours.stage == "loading":
            self.load(self.at("loading").index(ours))
        if ours is not None and ours.stage == "granted":
            self.recycle(self.at("granted").index(ours), size, seat)

    @precondition(lambda self: self.short and self.at("granted"))
    @rule(pick=PICK, size=SIZES, owner=PICK, function=st.none() | PICK, group=PICK)
    def go_on(self, pick: int, size: int, owner: int, function: int | None, group: int) -> None:
        """A lease ends the short way, and the next one begins, before the books are looked at."""
        ours, theirs = self.choose(pick, "granted")
        if not self.policy.rest(theirs, size, self.now):
            return
        outcomes = [self.model.recycle(ours, size, self.now, None, False, 0)]
        del self.requests[ours]
        key = ours.key
        functions = [it for it in self.functions if not it.retired]
        groups = [it for it in self.groups if not it.closed]
        if function is not None:
            key = functions[function % len(functions)], groups[group % len(groups)]
        owners = self.free_owners()
        if owners:
            new = MRequest(key, owners[owner % len(owners)], False, self.turns + 1)
            where = self.functions[key[0]], self.groups[key[1]]
            request = short_hit(self.policy, *where, new.owner, new, self.now)
            if request is not None:
                self.turns += 1
                self.granted += 1
                self.requests[new] = request
                outcomes.append(self.model.acquire(new))
        assert all(outcome == Outcome() for outcome in outcomes)
        self.compare(lambda: None, Outcome)

    @rule(owner=PICK, function=PICK, group=PICK)
    def warm(self, owner: int, function: int, group: int) -> None:
        self.begin(owner, function, group, warm=True)

    def begin(self, owner: int, function: int, group: int, warm: bool = False) -> MRequest | None:
        owners = self.free_owners()
        functions = [it for it in self.functions if not it.retired]
        groups = [it for it in self.groups if not it.closed]
        if not (owners and functions and groups):
            return None
        key = functions[function % len(functions)], groups[group % len(groups)]
        self.turns += 1
        ours = MRequest(key, owners[owner % len(owners)], warm, self.turns)
        theirs = None
        idle = self.model.idle_of(key)
        aged = bool(idle) and idle[-1].due is not None

        def act() -> Step | None:
            nonlocal theirs
            where = self.functions[key[0]], self.groups[key[1]]
            short = self.short and not warm
            if short:
                before = snapshot(self.policy)
                theirs = short_hit(self.policy, *where, ours.owner, ours, self.now)
                if theirs is None:
                    assert snapshot(self.policy) == before, "refused, and changed something"
                    theirs = short_queue(self.policy, *where, ours.owner, ours, self.now)
                if theirs is not None:
                    self.requests[ours] = theirs
                    return None
                assert snapshot(self.policy) == before, "refused, and changed something"
            fitted, entry = where[0].fits, where[0].entries.get(where[1])
            unable = {ours.owner, *self.policy.waits.waiting, *self.model.awaits}
            able = entry is not None and {it.owner for it in entry.claims} - unable
            theirs = self.policy.request(*where, ours.owner, warm)
            self.requests[ours] = theirs
            step = self.policy.acquire(theirs, self.now)
            plain = theirs.hit and step is None and not aged
            assert not (short and plain), "a plain hit was refused"
            in_line = theirs.stage is Stage.QUEUED and fitted == where[0].fits
            assert not (short and in_line and able), "a place in line was refused"
            return step

        self.compare(act, lambda: self.model.acquire(ours))
        assert theirs is not None
        if theirs.hit and not warm:
            assert theirs.instance is not None
            assert theirs.instance.number == idle[-1].number, "not the most recently used"
        return ours

    @rule(module=PICK, group=PICK)
    def prepare(self, module: int, group: int) -> None:
        """A guest is to be prepared: it asks for capacity, and ends as a load that fails."""
        groups = self.open_groups()
        preparers = [it for it in PREPARERS if it not in self.preparations]
        if not (groups and preparers):
            return
        owner = preparers[0]
        record = self.modules[module % len(self.modules)]
        size, space, mappings = 1 + module % 4, module % 5, 1 + module % 3
        code = record.code_size // UNIT
        function = MFunction(f"{owner}/0", record.digest, code, 1, size, space, mappings, True)
        key = FunctionKey(owner, ("i64",))
        made = FunctionRecord.to_prepare(key, record, size, space * UNIT, mappings)
        self.functions[function] = made
        ours = MRequest((function, groups[group % len(groups)]), owner, True, 0, blocked=True)
        self.turns += 1
        ours.turn = self.turns
        where = made, self.groups[ours.key[1]]
        self.preparations[owner] = Preparation(owner, owner)

        def act() -> Step | None:
            theirs = self.policy.request(*where, owner, True, None, self.now)
            self.requests[ours] = theirs
            return self.policy.acquire(theirs, self.now)

        self.compare(act, lambda: self.model.acquire(ours))

    @precondition(lambda self: self.preparations)
    @rule(owner=PICK, pick=PICK)
    def register_and_wait(self, owner: int, pick: int) -> None:
        """A task registers a function, and waits for a preparation, unless that is in vain."""
        owners = self.free_owners()
        if not owners:
            return
        task = owners[owner % len(owners)]
        preparers = [*self.preparations]
        what = self.preparations[preparers[pick % len(preparers)]]
        self.model.awaits[task] = str(what.owner)
        if task in self.model.stuck():
            del self.model.awaits[task]
            before = snapshot(self.policy)
            with pytest.raises(DeadlockError, match=f"waits for the preparation of {what.owner}"):
                self.policy.waits.register(task, what)
            assert snapshot(self.policy) == before
        else:
            self.policy.waits.register(task, what)

    @precondition(lambda self: self.model.awaits)
    @rule(pick=PICK)
    def give_registering_up(self, pick: int) -> None:
        tasks = [*self.model.awaits]
        self.end_registration(tasks[pick % len(tasks)])

    def end_registration(self, task: str) -> None:
        del self.model.awaits[task]
        self.policy.waits.end_registration(task)

    def free_owners(self) -> list[str]:
        """The tasks that wait for nothing."""
        busy = {it.owner for it in self.model.requests if it.stage != "granted"}
        return [it for it in OWNERS if it not in busy and it not in self.model.awaits]

    @precondition(lambda self: self.at("loading"))
    @rule(pick=PICK)
    def load(self, pick: int) -> None:
        ours, theirs = self.choose(pick, "loading")
        if ours.owner in PREPARERS:
            return  # it is loading to its end
        assert theirs.instance is not None
        theirs.instance.ready = True
        seconds = SECONDS[pick // 3 % 4]
        self.compare(
            lambda: self.policy.loaded(theirs, self.now, 10, seconds),
            lambda: self.model.loaded(ours, 10, seconds),
        )

    @precondition(lambda self: self.at("loading"))
    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        ours, theirs = self.choose(pick, "loading")
        self.compare(
            lambda: self.policy.failed(theirs, self.now),
            lambda: self.model.failed(ours, self.now),
        )

    @precondition(lambda self: self.at("queued", "room"))
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        ours, theirs = self.choose(pick, "queued", "room")
        self.compare(lambda: self.policy.cancel(theirs, self.now), lambda: self.model.cancel(ours))

    @precondition(lambda self: self.at("granted"))
    @rule(pick=PICK, size=SIZES, seat=st.booleans())
    def recycle(self, pick: int, size: int, seat: bool) -> None:
        self.give_back(pick, size, None, seat)

    @precondition(lambda self: self.at("granted"))
    @rule(pick=PICK, size=SIZES)
    def recycle_corrupted(self, pick: int, size: int) -> None:
        self.give_back(pick, size, Reason.CORRUPTED)

    @precondition(lambda self: self.at("granted"))
    @rule(pick=PICK, size=SIZES, grown=st.integers(1, 4))
    def recycle_grown(self, pick: int, size: int, grown: int) -> None:
        """It reserves more than it did when it was granted."""
        self.give_back(pick, size, None, grown=grown)

    @rule(space=st.integers(0, 9), mappings=st.integers(1, 9))
    def relieve(self, space: int, mappings: int) -> None:
        """The system refuses memory for a load."""
        self.compare(
            lambda: self.policy.relieve(space * UNIT, mappings, self.now),
            lambda: self.model.relieve(space, mappings),
        )

    def give_back(
        self, pick: int, size: int, drop: Reason | None, seat: bool = False, grown: int = 0
    ) -> None:
        ours, theirs = self.choose(pick, "granted")
        group, limits = ours.key[1], self.policy.config
        # A group that keeps within its reservation is never refused.
        safe = (
            not (drop or grown or group.closed or ours.key[0].retired)
            and size <= limits.max_instance_size
            and self.model.idle_size(group) + size <= group.reserved
            and sum(it.reserved for it in self.open_groups()) <= limits.max_size
        )

        def act() -> Step | None:
            assert theirs.instance is not None
            instance = theirs.instance
            step = recycle(instance)
            for gone, event in [] if step is None else step.evicted:
                assert not (safe and gone is instance and event.reason is Reason.SIZE)
            return step

        def recycle(instance: Instance) -> Step | None:
            usual = instance.resting_size
            short = self.short and not (drop or seat or grown) and theirs.plain
            if short:
                before = snapshot(self.policy)
                if self.policy.rest(theirs, size, self.now):
                    return None
                following = self.policy.pass_on(theirs, size, self.now)
                if following is not None:
                    return Step(woken=[following])
                assert snapshot(self.policy) == before, "refused, and changed something"
            more = instance.address_space + grown * UNIT, instance.mappings + grown
            step = self.policy.recycle(theirs, size, self.now, drop, seat, more)
            assert step is not None or not short or size != usual, "a plain recycle was refused"
            return step

        self.compare(
            act,
            lambda: self.model.recycle(ours, size, self.now, drop and drop.value, seat, grown),
        )

    # -- what the background does

    @precondition(lambda self: any(not it.promoted for it in self.live_functions()))
    @rule(pick=PICK)
    def promote(self, pick: int) -> None:
        functions = [it for it in self.live_functions() if not it.promoted]
        ours = functions[pick % len(functions)]
        record = self.functions[ours]
        module = self.optimized[record.module]
        made = MCode(module.digest, module.code_size // UNIT, pick % 3, 1)
        self.compare(
            lambda: self.policy.promote(record, module, (made.space * UNIT, 1), self.now),
            lambda: self.model.promote(ours, made),
        )

    @precondition(lambda self: any(it.outdated for it in self.model.instances))
    @rule(pick=PICK, size=SIZES, seat=st.booleans())
    def upgrade(self, pick: int, size: int, seat: bool) -> None:
        keys = [it.key for it in self.model.instances if it.outdated]
        ours = keys[pick % len(keys)]
        entry = self.functions[ours[0]].entries[self.groups[ours[1]]]
        assert self.policy.instances.can_upgrade(entry) == self.model.may_upgrade(ours)
        seconds = SECONDS[pick // 3 % 4]
        bound = None if seat else Loaded()
        here, number = self.now, self.model.made + 1

        def act() -> Step | None:
            done = self.policy.upgrade(entry, size, here, seconds, bound, ready=True)
            if done is None:
                return None
            instance, step = done
            assert instance.number == number
            assert instance.bound is bound
            self.upgraded.add(number)
            return step

        self.compare(act, lambda: self.model.upgrade(ours, size, seat, seconds))

    # -- what time and the application do

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
    def advance(self, seconds: float) -> None:
        self.now = self.model.now = self.now + seconds
        due = self.policy.next_expiry()
        idle = self.model.idle()
        assert due == min(map(self.model.due, idle), default=None)
        adaptive = self.model.idle_timeout == "adaptive"
        young = [it for it in idle if it.due is None]
        assert self.policy.expects_expiry == bool(young if adaptive else idle)
        self.compare(lambda: self.policy.expire(self.now), lambda: self.model.expire(self.now))
        later = self.policy.next_expiry()
        assert later is None or later > self.now

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        """One rule for all that disturbs, so that most steps are what tasks do."""
        pick, concurrency = data.draw(PICK), st.integers(1, 3)
        kinds = ["resize"]
        if len(self.live_functions()) < 5:
            kinds.append("register")
        if self.live_functions():
            kinds += ["replace", "remove"]
        if len(self.open_groups()) < 3:
            kinds.append("open_group")
        if self.open_groups():
            kinds += ["close_group", "limit_group"]
        match data.draw(st.sampled_from(kinds)):
            case "resize":
                self.resize(data.draw(LIMITS))
            case "register":
                self.register(pick, data.draw(concurrency))
            case "replace":
                self.replace(pick, data.draw(PICK), data.draw(concurrency))
            case "remove":
                self.remove(pick)
            case "open_group":
                self.open_group()
            case "close_group":
                self.close_group(pick)
            case "limit_group":
                most = st.sampled_from([None, None, 0, 60, 150])
                self.limit_group(pick, data.draw(most), data.draw(st.integers(0, 150)))

    def register(self, module: int, concurrency: int) -> None:
        self.make_function(f"f{len(self.labels)}", module, concurrency)

    def make_function(self, label: str, module: int, concurrency: int) -> MFunction:
        record = self.modules[module % len(self.modules)]
        self.labels[label] += 1
        ours = MFunction(
            f"{label}/{self.labels[label]}",
            record.digest,
            record.code_size // UNIT,
            concurrency,
            worst=1 + module % 4,
            space=module % 5,
            mappings=1 + module % 3,
        )
        self.functions[ours] = FunctionRecord(
            FunctionKey(label, ("i64",)),
            self.labels[label],
            record,
            concurrency,
            ours.worst,
            ours.space * UNIT,
            ours.mappings,
        )
        return ours

    def remove(self, pick: int) -> None:
        functions = self.live_functions()
        ours = functions[pick % len(functions)]
        self.compare(
            lambda: self.policy.retire(self.functions[ours], self.now),
            lambda: self.model.retire(ours, None),
        )

    def replace(self, pick: int, module: int, concurrency: int) -> None:
        functions = self.live_functions()
        old = functions[pick % len(functions)]
        new = self.make_function(old.label.partition("/")[0], module, concurrency)
        record = self.functions[old]
        self.compare(
            lambda: self.policy.retire(record, self.now, self.functions[new]),
            lambda: self.model.retire(old, new),
        )

    def open_group(self) -> None:
        label = f"g{len(self.groups)}"
        record = self.groups[MGroup(label)] = GroupRecord(label)
        self.policy.open_group(record)

    def limit_group(self, pick: int, max_size: int | None, reserved: int) -> None:
        groups = self.open_groups()
        ours = groups[pick % len(groups)]
        # The cache around the policy allows no more.
        others = sum(it.reserved for it in groups if it is not ours)
        reserved = min(reserved, self.model.max_size - others)
        if max_size is not None:
            reserved = min(reserved, max_size)
        record = self.groups[ours]
        self.compare(
            lambda: self.policy.resize_group(record, max_size, reserved, self.now),
            lambda: self.model.resize_group(ours, max_size, reserved),
        )

    def close_group(self, pick: int) -> None:
        groups = self.open_groups()
        ours = groups[pick % len(groups)]
        self.shut(ours, Reason.GROUP_CLOSED)

    def shut(self, ours: MGroup, reason: Reason) -> None:
        self.compare(
            lambda: self.policy.close_group(self.groups[ours], self.now, reason),
            lambda: self.model.close_group(ours, reason.value),
        )

    def resize(self, limits: Limits) -> None:
        reserved = sum(it.reserved for it in self.open_groups())
        limits = {**limits, "max_size": max(limits["max_size"], reserved)}
        config = config_of(limits)
        self.compare(
            lambda: self.policy.resize(config, self.now),
            lambda: self.model.resize(**limits),  # type: ignore[arg-type]
        )

    @rule(pick=PICK)
    def go_the_other_way(self, pick: int) -> None:
        """The short way of a hit and the long one lead to the same, also one after the other."""
        self.short = pick % 3 != 0

    @rule()
    def begin_again(self) -> None:
        """A policy made of the lines of a snapshot goes on as the one that it was taken of."""
        old = self.policy
        numbers = {it: number for number, it in enumerate(self.requests.values(), 1)}
        under_way = [
            UnderWay(it, number, ALL.index(str(it.owner)), True, 0.0, None, self.awaiting(it.owner))
            for it, number in numbers.items()
        ]
        copied = old.copy([self.functions[it] for it in self.live_functions()], under_way)
        config, made = old.config, Books(old.config, old.system)
        head = {
            **{field: getattr(config, name) for name, field in LOGGED.items()},
            **({"idle_timeout_seconds": None} if config.idle_timeout == "adaptive" else {}),
            **dict.fromkeys(("memory_limit_bytes", "table_limit_elements"), 0),
            **dict.fromkeys(("total_fuel", "yield_fuel", "at_seq"), 1),
            "idle_timeout_policy": "adaptive" if config.idle_timeout == "adaptive" else "fixed",
            "stack_size_bytes": UNIT,
            "log_uses": True,
            "taken_at_seconds": self.now,
        }
        groups = [
            SnapshotGroup(
                group=ours.label,
                capacity_tokens=None,
                shares=100,
                max_size_bytes=it.max_size,
                reserved_size_bytes=it.reserved_size,
                cpu_limit_cores=None,
                closed=it.closed,
            )
            for ours, it in self.groups.items()
        ]
        parts = []
        for part in copied.parts(head, groups, []):
            assert sum(len(getattr(part, name)) for name in LISTS) <= MOST_ITEMS
            line = json.loads(json.dumps(Stamped(part, "c", 1, 0.0).fields()))
            parts.append(make_event({**line, "event": part.name}).event)
        assert parts == [*copied.parts(head, groups, [])]
        Random(len(parts)).shuffle(parts)
        requests = made.begin(Whole.join(parts))
        new = made.policy
        # Counts are not in a snapshot.
        new.hits, new.misses, new.blocks = old.hits, old.misses, old.blocks
        old.instances.fold()
        new.instances.book = old.instances.book
        for before, after in zip(old.instances.entries, new.instances.entries, strict=True):
            after.counted = before.uses
            assert after.function.key == before.function.key
        for ours, it in self.functions.items():
            # One that is not in the snapshot is not used again.
            key = it.key.name, ", ".join(it.key.args), it.generation
            self.functions[ours] = made.functions.get(key, it)
        for ours in self.groups:
            self.groups[ours] = made.groups[ours.label]
        loaded = {one for f in made.functions.values() for one in f.modules}
        numbered = {one.number: one for one in loaded}

        def again(module: Module) -> Module:
            # One without a function is loaded nowhere.
            size, mappings = module.code_size, module.mappings
            fresh = Module(module.digest, size, mappings, number=module.number)
            fresh.load_seconds = module.load_seconds
            return numbered.get(module.number, fresh)

        optimized = [again(self.optimized[module]) for module in self.modules]
        self.modules = list(map(again, self.modules))
        self.optimized = dict(zip(self.modules, optimized, strict=True))
        for ours, it in self.requests.items():
            self.requests[ours] = requests[numbers[it]]
            self.requests[ours].owner = it.owner
        new.waits.waiting = {ALL[it]: what for it, what in new.waits.waiting.items()}  # type: ignore[index]
        new.waits.registering.clear()
        for task, preparer in self.model.awaits.items():
            new.waits.registering[task] = self.preparations[preparer]
        aged = new.instances.keep_alive.due
        for instance in new.instances.lru:
            instance.ready = not instance.seat
            if instance in aged:
                instance.age()
        for request in new.waits.held:
            request.held.ready = request.stage is Stage.GRANTED
        self.policy = new
        # Of no use any more, so they are left out.
        self.model.gone = [one for one in self.model.gone if not one[1].closed]

    def awaiting(self, owner: object) -> str | None:
        """The numbers of the tasks that wait for a preparation; None: it is none."""
        if owner not in PREPARERS:
            return None
        tasks = [it for it, preparer in self.model.awaits.items() if preparer == owner]
        return ",".join(str(ALL.index(it)) for it in tasks)

    @rule(pick=PICK, step=st.sampled_from([*STAGES_OF]))
    def misuse(self, pick: int, step: str) -> None:
        """A step at the wrong stage raises and changes nothing."""
        right = STAGES_OF[step]
        wrong = [it for it in (*self.requests.values(), *self.ended[-3:]) if it.stage not in right]
        if not wrong:
            return
        request = wrong[pick % len(wrong)]
        arguments = (1, self.now) if step == "recycle" else (self.now,)
        before = snapshot(self.policy)
        with pytest.raises(IllegalStepError):
            getattr(self.policy, step)(request, *arguments)
        assert snapshot(self.policy) == before

    def teardown(self) -> None:
        """The cache is closed under whatever still runs, and nothing is left of anything."""
        if not hasattr(self, "policy"):
            return
        self.policy.closed = self.model.closed = True
        for group in self.open_groups():
            self.shut(group, Reason.CLOSED)
        while self.at("loading"):
            preparing = self.at("loading")[0].owner in PREPARERS
            (self.fail if preparing else self.load)(0)
        while self.at("granted"):
            self.give_back(0, 10, None)
        assert not self.requests
        instances = self.policy.instances
        ledger = instances.ledger
        assert not (instances.entries or instances.lru or self.policy.room)
        assert not (self.policy.waits.waiting or self.policy.waits.held)
        assert (ledger.total_size, ledger.used, ledger.idle, ledger.running) == (0, 0, 0, 0)
        assert (ledger.running_size, ledger.address_space, ledger.mappings) == (0, 0, 0)
        assert (ledger.loaded_modules, ledger.evictable_code, len(ledger.evictable)) == (0, 0, 0)
        all_modules = [*self.modules, *self.optimized.values()]
        assert all((it.users, it.running, it.instances) == (0, 0, {}) for it in all_modules)
        assert not any(it.entries for it in self.functions.values())
        assert not any(it.entries for it in self.groups.values())

    # -- how they are compared

    def compare(self, act: Callable[[], Step | None], expect: Callable[[], Outcome]) -> None:
        waiting = {it for it in self.requests.values() if it.stage in {Stage.QUEUED, Stage.ROOM}}
        lines = [[*entry.waiting] for entry in self.policy.instances.entries]
        holders = {it.instance.number: it for it in self.model.requests if it.instance is not None}
        running_before = {it for it in self.requests.values() if it.stage is Stage.GRANTED}
        before = snapshot(self.policy)
        had = {it: (self.model.idle_size(it), it.reserved) for it in self.open_groups()}
        outcome = expect()
        try:
            step = act()
        except WasmCacheError as error:
            assert type(error).__name__ == outcome.error  # noqa: PT017
            assert snapshot(self.policy) == before
            self.forget_ended()
            return
        assert outcome.error is None, "should have raised"
        step = step or Step()
        for _, event in step.evicted:
            self.check_event(event)
        for group, (size, reserved) in had.items():
            gone = [event for _, event in step.evicted if event.group == group.label]
            for_others = [it for it in gone if it.for_group not in (None, it.group)]
            if any(ours.key[1] is group for ours in outcome.woken):
                continue  # it may have taken others of its own
            if gone and all(it.reason is Reason.SIZE for it in gone) and gone == for_others:
                left = self.model.idle_size(group)
                # An instance of which a part was borrowed goes as a whole, but for an owner only.
                assert left >= min(size, reserved) or left + gone[-1].freed_bytes > reserved
        evicted = [(instance.number, event.reason.value) for instance, event in step.evicted]
        assert evicted == outcome.evicted
        assert [module.digest for module in step.unloaded] == outcome.unloaded
        assert step.woken == [self.requests[it] for it in outcome.woken]
        assert waiting >= {*step.woken}
        assert len({*step.woken}) == len(step.woken)
        self.check_fifo(lines, step)
        assert all(instance.state is State.CLOSED for instance, _ in step.evicted)
        # What was held was given back in this step, by the one whose step it was.
        given_back = [holders[number] for number, _ in evicted if number in holders]
        assert len(given_back) <= 1
        assert not any(it.instance and it.instance.number in dict(evicted) for it in given_back)
        held = {*self.policy.waits.held}  # the books are looked at, so nothing is put off any more
        assert held == {it for it in self.requests.values() if it.instance is not None}
        for ours, theirs in self.requests.items():
            assert theirs.stage.name.lower() == ours.stage, ours
            assert (theirs.error and type(theirs.error).__name__) == ours.error
            assert (theirs.instance and theirs.instance.number) == (
                ours.instance and ours.instance.number
            )
        leases = {it for it in self.requests.values() if it.stage is Stage.GRANTED and not it.warm}
        self.granted += len(leases - running_before)
        self.forget_ended()

    def check_event(self, event: Evicted) -> None:
        fields: dict[str, Any] = event.fields()
        if event.replaced_by is None:
            assert fields["total_size_before_bytes"] >= fields["total_size_after_bytes"]
            freed = fields["code_size_before_bytes"] - fields["code_size_after_bytes"]
            assert freed - fields["freed_code_bytes"] in {0, UNIT, 2 * UNIT}
        assert fields["idle_seconds"] >= 0
        # One that took the place of another was not used itself.
        assert fields["age_seconds"] >= fields["idle_seconds"] or event.instance in self.upgraded

    @staticmethod
    def check_fifo(lines: list[list[Request]], step: Step) -> None:
        """Of those in one line, whoever was served was before all who still stand in it."""
        for line in lines:
            places = [line.index(it) for it in step.woken if it in line and it.error is None]
            left = [place for place, it in enumerate(line) if it.stage is Stage.QUEUED]
            assert places == sorted(places)
            assert not (places and left) or max(places) < min(left)

    def forget_ended(self) -> None:
        for ours in [it for it in self.requests if it.stage == "ended" or it.stage == "new"]:
            theirs = self.requests.pop(ours)
            assert theirs.stage is Stage.ENDED
            self.ended.append(theirs)
            if self.preparations.pop(ours.owner, None) is not None:
                del self.functions[ours.key[0]]
                for task in [it for it, of in self.model.awaits.items() if of == ours.owner]:
                    self.end_registration(task)

    @invariant()
    def sums_are_what_is_there(self) -> None:
        model, ledger = self.model, self.policy.instances.ledger
        assert ledger.total_size == model.total_size() <= model.max_size
        for ours, theirs in self.groups.items():
            assert theirs.idle_size == model.idle_size(ours)
            assert ours.closed or ours.max_size is None or theirs.idle_size <= ours.max_size
        assert ledger.code_size == sum(model.code().values()) * UNIT
        assert ledger.stacks == model.stacks() * UNIT
        assert ledger.running_size == model.running_size()
        space, mappings = model.reserved()
        assert (ledger.address_space, ledger.mappings) == (space * UNIT, mappings)
        reserves = [(it.space * UNIT, it.mappings) for it in model.idle()]
        lru = self.policy.instances.lru
        assert [(it.address_space, it.mappings) for it in lru] == reserves
        assert all(it == (0, 0) for it, one in zip(reserves, lru, strict=True) if one.seat)
        spare = model.max_code - sum(model.code().values())
        assert ledger.most_running == spare // model.stack
        assert (ledger.idle, ledger.running) == (len(model.idle()), len(model.busy()))
        assert ledger.loaded_modules == len(model.code())
        assert [it.digest for it in ledger.evictable] == model.idle_modules()
        assert ledger.evictable_code == sum(it.code_size for it in ledger.evictable)
        idle = [(it.number, it.seat) for it in model.idle()]
        assert [(it.number, it.seat) for it in self.policy.instances.lru] == idle
        assert self.policy.instances.crowded is (
            len(model.instances) > model.max_instances
            or model.used() > model.max_code
            or not model.may_reserve(*model.reserved())
        )
        assert self.policy.instances.shrunk or not self.policy.instances.crowded
        if self.policy.instances.crowded:
            if len(model.instances) > model.max_instances:
                assert not model.idle()
            if model.used() > model.max_code:
                assert not model.idle_modules()
            if not model.may_reserve(*model.reserved()):
                assert not model.space_victims(None)
        for module in (*self.modules, *self.optimized.values()):
            of_it = [it for it in model.instances if it.module == module.digest]
            busy = [it for it in of_it if it.state != "idle"]
            assert (module.users, module.running) == (len(of_it), len(busy))
            idle_ones = [it.number for it in model.idle() if it.module == module.digest]
            assert [it.number for it in module.idle] == idle_ones
            assert len(module.instances) == len(of_it)

    @invariant()
    def times_are_what_was_learned(self) -> None:
        model, instances = self.model, self.policy.instances
        for ours, theirs in self.functions.items():
            if not ours.retired:
                learned = model.times.get(name_of(ours), MIdleTimes())
                times = instances.keep_alive.times.get(theirs, IdleTimes())
                assert weights(times) == model_weights(learned)
            else:
                assert theirs not in instances.keep_alive.times
        assert weights(instances.keep_alive.everyone) == model_weights(model.first_times)
        last_used = [one[2] for one in model.gone]
        assert [*instances.keep_alive.gone.values()] == last_used
        due = instances.keep_alive.due
        assert [due.get(it) for it in instances.lru] == [it.due for it in model.idle()]
        ready = [(None if it in due else True) for it in instances.lru if not it.seat]
        assert [it.ready for it in instances.lru if not it.seat] == ready

    @invariant()
    def entries_are_what_is_there(self) -> None:
        model = self.model
        seen: list[Entry] = []
        for key in model.keys:
            entry = self.functions[key[0]].entries[self.groups[key[1]]]
            seen.append(entry)
            assert entry in self.policy.instances.entries
            assert entry in self.groups[key[1]].entries
            assert entry.live == len(model.live(key))
            assert [it.number for it in entry.idle] == [it.number for it in model.idle_of(key)]
            assert [*entry.waiting] == [self.requests[it] for it in model.queue(key)]
            assert [*entry.claims] == [self.requests[it] for it in model.claims(key)]
            assert len(entry.claims) <= key[0].concurrency
            if not key[0].retired:
                running = [it for it in model.live(key) if it.outdated and it.state != "idle"]
                assert entry.live - len(running) <= key[0].concurrency
            assert not (entry.waiting and len(entry.claims) < key[0].concurrency), "lost wakeup"
        for group, theirs in self.groups.items():
            found = [it for it in seen if it.group is theirs and not it.function.retired]
            serving = {} if group.closed else {it.function.spelling: it for it in found}
            assert theirs.serving == serving
        assert len(self.policy.instances.entries) == len(seen)
        assert sum(len(it.entries) for it in self.functions.values()) == len(seen)
        assert sum(len(it.entries) for it in self.groups.values()) == len(seen)
        assert [*self.policy.room] == [self.requests[it] for it in model.room]

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        waiting = {it.owner: it for it in self.model.requests if it.stage in {"queued", "room"}}
        assert {*self.policy.waits.waiting} == {*waiting}
        held = [it for it in self.requests.values() if it.instance is not None]
        assert {*self.policy.waits.held} == {*held}
        assert {*self.policy.waits.registering} == {*self.model.awaits}
        if waiting:
            going_on = {it.owner for it in held} - {*waiting} - {*self.model.awaits}
            helped = {self.model.awaits[it.owner] for it in held if it.owner in self.model.awaits}
            assert going_on or helped - {*waiting}, "everyone who holds waits"
        assert not self.model.stuck()
        if self.model.room:
            first = next(iter(self.policy.room))
            assert not self.policy._serve(first, self.now, Step()), "there was room"

    @invariant()
    def leases_are_hits_and_misses(self) -> None:
        policy, model = self.policy, self.model
        assert policy.hits + policy.misses == self.granted
        assert (policy.hits, policy.blocks) == (model.hits, model.blocks)
        uses = policy.instances.snapshot()
        for by in (uses.by_function(), uses.by_group()):
            all_of_it = add_up(part for several in by.values() for part in several)
            counted = all_of_it.hits, all_of_it.misses, all_of_it.blocks
            assert counted == (policy.hits, policy.misses, policy.blocks)
            assert policy.misses <= all_of_it.count(WAITS) <= all_of_it.granted

    # -- what there is to choose from

    def live_functions(self) -> list[MFunction]:
        return [it for it in self.functions if not it.retired]

    def open_groups(self) -> list[MGroup]:
        return [it for it in self.groups if not it.closed]

    def at(self, *stages: str) -> list[MRequest]:
        return [it for it in self.requests if it.stage in stages]

    def choose(self, pick: int, *stages: str) -> tuple[MRequest, Request]:
        found = self.at(*stages)
        ours = found[pick % len(found)]
        return ours, self.requests[ours]


TestPolicy = PolicyMachine.TestCase


def draw_limits(random: Random, wide: bool = False, policy: str | None = None) -> Limits:
    """Limits that leave something to do; `wide` ones now and then let the cache fill up."""
    return {
        "max_size": random.choice([30, 100, 200, 400]),
        "max_instance_size": random.choice([40, 50, 100]),
        "max_instances": random.randint(6, 14) if wide else random.randint(2, 9),
        "max_code": random.randint(9, 20) if wide else random.randint(4, 12),
        "max_running": random.choice([None, None, 8, 12, 20] if wide else [None, 3, 4, 6, 10]),
        "idle_timeout": random.choice([2.0, 20.0, 1000.0, "adaptive", "adaptive"]),
        "least_idle": random.choice([0.5, 1.0, 2.0]),
        "most_idle": random.choice([2.0, 6.0, 30.0]),
        "max_space": random.choice([None, None, 14, 20, 30] if wide else [None, 9, 12, 18]),
        "policy": random.choice(POLICIES) if policy is None else policy,
    }


def roomy(policy: str) -> Limits:
    """Limits that leave a few instances in peace, but for those that a test sets itself."""
    return {
        **draw_limits(Random(0), True, policy),
        "max_size": 400,
        "max_instances": 9,
        "idle_timeout": 1000.0,
        "max_instance_size": 100,
        "max_running": None,
    }


@pytest.mark.parametrize("earlier", [False, True])
def test_between_equal_modules_a_use_counts_of_an_instance_that_is_gone(*, earlier: bool) -> None:
    """The model, too, has the module go whose last use is the oldest; see `test_eviction_order`."""
    machine = PolicyMachine()
    limits: Limits = {**roomy("gdsf"), "max_code": 8}
    machine.open(limits, [1, 1, 3, 1], 1, None)
    machine.register(0, 1)
    rest, other, large, used = range(4)
    if earlier:
        machine.use(0, large, 0, 10, False)
        machine.resize({**limits, "max_code": 2})
        machine.resize(limits)
    for function in (rest, other, used):
        machine.use(0, function, 0, 10, False)
    machine.remove(used)
    machine.resize({**limits, "max_code": 1})
    assert [it.key[0].label for it in machine.model.instances] == ["f0/1"]
    machine.teardown()


@pytest.mark.parametrize("lower", [{"max_code": 4}, {"max_space": 4}])
def test_nobody_waits_for_a_seat_that_can_never_be_loaded(lower: dict[str, int]) -> None:
    """A promotion evicts what lower limits have left of large code, as nobody could run it."""
    machine = PolicyMachine()
    limits: Limits = {**roomy("lru"), "max_code": 20, "max_space": 20}
    machine.open(limits, [4, 4, 4, 4], 1, None)
    function = machine.live_functions()[1]
    assert function.space > 0
    machine.use(0, 1, 0, 10, True)
    machine.resize({**limits, **lower})
    assert [it.seat for it in machine.model.instances] == [True]
    machine.promote(1)
    assert (function.code, machine.model.instances) == (1, [])
    machine.acquire(0, 1, 0)
    assert [it.stage for it in machine.model.requests] == ["loading"]
    machine.nobody_waits_in_vain()
    machine.teardown()


@pytest.mark.parametrize("seed", [*range(settings().max_examples // 4), 372])
def test_the_policy_agrees_with_the_model_on_a_long_walk(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of random steps from one cache's life, deeper than Hypothesis gets, agree.

    Under each eviction policy, and under changing ones.
    """
    random = Random(seed)
    policy = (*POLICIES, None)[seed % (len(POLICIES) + 1)]
    machine = PolicyMachine()
    pick = partial(random.randrange, 1000)
    size = partial(random.choice, (10, 10, 10, 10, 10, 40, 0, 59))
    monkeypatch.setattr(parts, "SLACK", seed % 3)  # so that its lists begin anew often
    machine.open(
        draw_limits(random, True, policy),
        [random.randint(1, 4) for _ in "1234"],
        2,
        random.choice([None, 12, 20]),
    )
    most = random.choice([0, 1, 2, 5, 64])
    monkeypatch.setattr(sieve, "MOST_PASSED", most)
    machine.model.most_passed = most
    weights = {
        lambda: machine.acquire(pick(), pick(), pick()): 20,
        lambda: machine.acquire_and_load(pick(), pick(), pick()): 10,
        lambda: machine.use(pick(), pick(), pick(), size(), pick() % 3 == 0): 40,
        lambda: machine.warm(pick(), pick(), pick()): 6,
        lambda: machine.prepare(pick(), pick()): 8,
        lambda: machine.preparations and machine.register_and_wait(pick(), pick()): 8,
        lambda: machine.model.awaits and machine.give_registering_up(pick()): 3,
        lambda: machine.at("loading") and machine.load(pick()): 50,
        lambda: machine.at("loading") and machine.fail(pick()): 4,
        lambda: machine.at("queued", "room") and machine.cancel(pick()): 6,
        lambda: machine.at("granted") and machine.recycle(pick(), size(), pick() % 3 == 0): 40,
        lambda: machine.at("granted") and machine.recycle_corrupted(pick(), 9): 3,
        lambda: machine.at("granted") and machine.recycle_grown(pick(), 9, 1 + pick() % 4): 3,
        lambda: machine.relieve(pick() % 6, 1 + pick() % 6): 1,
        lambda: (
            [it for it in machine.live_functions() if not it.promoted] and machine.promote(pick())
        ): 4,
        lambda: (
            any(it.outdated for it in machine.model.instances)
            and machine.upgrade(pick(), size(), pick() % 3 == 0)
        ): 12,
        lambda: machine.advance(random.choice([0.1, 0.1, 1.0, 1.7])): 6,
        lambda: machine.live_functions()[4:] or machine.register(pick(), 1 + pick() % 3): 6,
        lambda: machine.live_functions()[1:] and machine.remove(pick()): 1,
        lambda: machine.live_functions() and machine.replace(pick(), pick(), 1 + pick() % 3): 3,
        lambda: machine.open_groups()[1:] or machine.open_group(): 4,
        lambda: machine.open_groups()[1:] and machine.close_group(pick()): 1,
        lambda: machine.resize(draw_limits(random, pick() % 3 > 0, policy)): 2,
        lambda: machine.limit_group(pick(), random.choice([None, None, 60, 150]), pick() % 150): 4,
        lambda: machine.misuse(pick(), random.choice([*STAGES_OF])): 5,
    }
    for number, act in enumerate(random.choices([*weights], [*weights.values()], k=WALK)):
        act()
        if number % 40 == 39:
            machine.begin_again()
        machine.sums_are_what_is_there()
        machine.times_are_what_was_learned()
        machine.entries_are_what_is_there()
        machine.nobody_waits_in_vain()
        machine.leases_are_hits_and_misses()
    machine.teardown()
