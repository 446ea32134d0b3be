"""Tools for tests: a fake engine, a look inside, a check of the books, cancellation everywhere.

The fake engine runs no wasm and needs no threads, so tests can use `trio.testing.MockClock`, choose
sizes, make any native step fail, and cancel at any of them.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import final

import trio

from ._cache.cache import InstanceCache, parts_of
from ._cache.open import open_with
from ._core.config import CacheConfig, takes_config
from ._core.metrics.snapshot import (
    CacheSnapshot as CacheSnapshot,
    CompilesSnapshot as CompilesSnapshot,
    GroupSnapshot as GroupSnapshot,
    ModuleSnapshot as ModuleSnapshot,
    NativeSnapshot as NativeSnapshot,
    ResidentSnapshot as ResidentSnapshot,
    TurnsSnapshot as TurnsSnapshot,
)
from ._core.policy.lifecycle import State
from ._core.policy.records import Stage
from ._core.text import shown
from ._engine.fake.engine import FakeEngine as FakeEngine
from ._engine.fake.instance import FakeFailure as FakeFailure
from ._ki import ki_safe_contextmanager
from ._log import InlineLogWriter, NoLogWriter, check_label
from ._runtime.bound import BoundFunction

__all__ = [
    "open_fake_cache",
    "FakeEngine",
    "FakeFailure",
    "snapshot",
    "check_invariants",
    "cancel_everywhere",
    "CacheSnapshot",
    "ResidentSnapshot",
    "GroupSnapshot",
    "ModuleSnapshot",
    "TurnsSnapshot",
    "CompilesSnapshot",
    "NativeSnapshot",
]


@ki_safe_contextmanager
@takes_config
async def open_fake_cache(
    config: CacheConfig | None = None,
    *,
    engine: FakeEngine | None = None,
    logger: object = None,
    label: str = "",
) -> AsyncIterator[InstanceCache]:
    """Open a cache on a fake engine, for the length of a block.

    `trio.testing.MockClock` with an `autojump_threshold` can be used: it does not jump while a
    thread works for the cache.

    Args:
        config: the limits; by default `CacheConfig(offload_after=None)`, with which calls never
            move to a thread.
        engine: the fake engine; a new one by default.
        logger: a structlog logger, which is called in the task that caused the event, or None to
            log nothing.
        label: label of the cache, as in `open_cache`.

    Raises:
        TypeError: `config` is not a `CacheConfig`, or `label` is no str.
        ValueError: `label` is too long, or can't be printed.
        AssertionError: on leaving, an instance was not closed or a module not unloaded. That is a
            bug of the library.

    **Checkpoint:** entering and leaving are checkpoints.
    **Cancellation:** everything is closed all the same.
    """
    config = CacheConfig(offload_after=None) if config is None else config
    if not isinstance(config, CacheConfig):
        raise TypeError(
            f"config must be a CacheConfig, got {shown(config)}"
            + (": write open_fake_cache(engine=engine)" if isinstance(config, FakeEngine) else "")
        )
    engine = FakeEngine() if engine is None else engine
    check_label(label)
    log = NoLogWriter(label) if logger is None else InlineLogWriter(logger, label)
    async with open_with(config, engine, log) as cache:
        yield cache
    assert engine.open_instances == 0, f"{engine.open_instances} instances were never closed"
    assert engine.loaded_modules == 0, f"{engine.loaded_modules} modules were never unloaded"


@trio.lowlevel.enable_ki_protection
def snapshot(cache: InstanceCache) -> CacheSnapshot:
    """Return the inside of a cache at this moment: frozen values, for tests to compare.

    It takes time in proportion to what is in the cache, and changes nothing. It may be called in a
    host function, and after the cache was closed.

    .. code-block::

        await wait_all_tasks_blocked()
        assert snapshot(cache).group("main").waiting_for_instance == 1

    Args:
        cache: a cache, open or closed.

    Raises:
        RuntimeError: the cache belongs to another thread or Trio run, or a step of its policy is
            under way.
    """
    parts = parts_of(cache)
    parts.pool.owner.check_reading("snapshot")
    return parts.statistics.look_inside()


@trio.lowlevel.enable_ki_protection
def check_invariants(cache: InstanceCache) -> None:
    """Compare the cache's books with each other and with its instances; this changes nothing.

    Args:
        cache: a cache, open or closed.

    Raises:
        AssertionError: they disagree; the message lists all disagreements. That is a bug of the
            library.
        RuntimeError: the cache belongs to another Trio run, or a step of it is under way.
    """
    parts_of(cache).pool.owner.check_reading("check_invariants", compares=True)
    problems = list(_disagreements(cache))
    assert not problems, "the books disagree:\n  " + "\n  ".join(problems)


def _disagreements(cache: InstanceCache) -> list[str]:
    parts = parts_of(cache)
    pool, groups = parts.pool, parts.groups.states.values()
    policy = pool.policy
    instances, ledger = policy.instances, policy.instances.ledger
    problems: list[str] = []

    def same(what: str, booked: object, found: object) -> None:
        if booked != found:
            problems.append(f"{what}: booked {booked!r}, found {found!r}")

    entries = list(instances.entries)
    idle = [instance for entry in entries for instance in entry.idle]
    held = list(policy.waits.held)
    running = [request.instance for request in held if request.instance is not None]
    same("requests that hold something", len(held), len(running))
    same("idle instances", ledger.idle, len(idle))
    same("running instances", ledger.running, len(running))
    same("total_size", ledger.total_size, sum(instance.size for instance in idle))
    same("order of last use", set(instances.lru), set(idle))
    times = [instance.last_used for instance in instances.lru]
    same("order of last use by time", times, sorted(times))
    due = instances.keep_alive.due
    aged = [instance for instance in instances.lru if instance in due]
    same("aged instances, which come first", list(instances.lru)[: len(due)], aged)
    same("ready aged instances", [instance for instance in aged if instance.ready], [])
    modules = {i.module for i in (*idle, *running)}
    same("loaded modules", ledger.loaded_modules, len(modules))
    same("code", ledger.code_size, sum(module.code_size for module in modules))
    most = (policy.config.max_code_size - ledger.code_size) // ledger.stack_size
    same("how many stacks may be in use", ledger.most_running, most)
    worst = sum(instance.entry.function.worst_size for instance in running)
    same("running_size", ledger.running_size, worst)
    space = sum(instance.address_space for instance in (*idle, *running))
    space += sum(module.code_size for module in modules)
    same("address_space", ledger.address_space, space)
    mappings = sum(instance.mappings for instance in (*idle, *running))
    mappings += sum(module.mappings for module in modules)
    same("mappings", ledger.mappings, mappings)
    if instances.overbooked and not instances.shrunk:
        problems.append("more addresses or mappings are reserved than the limits allow")
    for instance in idle:
        booked = instance.address_space, instance.mappings
        real = (0, 0) if instance.bound is None else BoundFunction.of(instance).native.reserved
        same(f"reservation of idle instance {instance.number}", booked, real)
    for module in modules:
        mine = [i for i in running if i.module is module]
        rest = [i for i in instances.lru if i.module is module]
        same(f"users of {module.digest[:8]}", module.users, len(mine) + len(rest))
        same(f"idle of {module.digest[:8]}", module.idle, rest)
        same(f"running of {module.digest[:8]}", module.running, len(mine))
        same(f"evictable {module.digest[:8]}", module in ledger.evictable, not mine)
    evictable = sum(module.code_size for module in ledger.evictable)
    same("evictable code", ledger.evictable_code, evictable)
    for instance in idle:
        same("state of an idle instance", instance.state, State.IDLE)
        if (instance.bound is None) is not instance.seat:
            what = "is a seat with something" if instance.seat else "has nothing"
            problems.append(f"idle instance {instance.number} {what} native")
        if instance.size > policy.config.max_instance_size:
            problems.append(f"instance {instance.number} is over max_instance_size")
        if instance.size > instance.entry.function.worst_size:
            problems.append(f"instance {instance.number} is over what it may touch at most")
    for entry in entries:
        mine = [i for i in running if i.entry is entry]
        same(f"live instances of {entry.function.key}", entry.live, len(entry.idle) + len(mine))
        if entry.vacant:
            problems.append(f"the entry of {entry.function.key} is vacant, but not forgotten")
        # One of optimized code may be beside one that runs and is to make way for it.
        leaving = sum(i.outdated and i.state is not State.IDLE for i in mine)
        if not entry.function.retired and entry.live - leaving > entry.function.concurrency:
            problems.append(f"{entry.function.key} has more than its concurrency")
        if entry.waiting and len(entry.claims) < entry.function.concurrency:
            problems.append(f"a waiter for {entry.function.key} was not woken")
    if ledger.total_size > policy.config.max_size:
        problems.append("idle instances exceed max_size")
    reserved = sum(group.record.reserved_size for group in groups if not group.record.closed)
    if reserved > policy.config.max_size:
        problems.append(f"groups have {reserved} bytes reserved, more than max_size")
    for group in groups:
        record, budget = group.record, group.share.budget
        served = [] if record.closed or policy.closed else list(record.entries)
        served = [entry for entry in served if not entry.function.retired]
        serving = {entry.function.spelling: entry for entry in served}
        same(f"entries of group {record.name!r} that hits find", record.serving, serving)
        size = sum(instance.size for instance in idle if instance.entry.group is record)
        same(f"idle bytes of group {record.name!r}", record.idle_size, size)
        if record.max_size is not None and size > record.max_size:
            problems.append(f"idle instances of group {record.name!r} exceed its max_size")
        parked = pool.runner.cpu_limits.parked(group.share)
        waiting = budget.waiting if budget else 0  # some may be awake, and have not run yet
        if parked > waiting:
            problems.append(f"group {record.name!r}: {parked} of {waiting} wait for the CPU")
    waiters = list(itertools.chain(policy.room, *(entry.waiting for entry in entries)))
    records: list[object] = [group.record for group in groups]
    tokens = [what for what in policy.waits.waiting.values() if what in records]
    same("waiting tasks", len(policy.waits.waiting), len(waiters) + len(tokens))
    for request in waiters:
        if request.stage not in (Stage.QUEUED, Stage.ROOM):
            problems.append(f"a waiter is {request.stage.value}")
    for group in groups:
        name = group.record.name
        owners = group.capacity.owners
        borrowed, _ = group.capacity.count()
        if borrowed < len(owners) or any(count < 1 for count in owners.values()):
            problems.append(f"group {name!r}: {borrowed} tokens for {len(owners)} tasks")
        for request in (*held, *waiters):
            if request.handed_over or request.entry.function.prepares:
                continue  # its token is given back; a call is under way: or it needs none
            if request.entry.group is group.record and request.owner not in owners:
                problems.append(f"group {name!r}: {request.owner} uses it without a token")
    uses, totals = instances.snapshot(), cache.stats()
    for what, several in (("function", uses.by_function()), ("group", uses.by_group())):
        counted = [part for stats in several.values() for part in stats]
        same(f"hits by {what}", totals.hits, sum(part.hits for part in counted))
        same(f"misses by {what}", totals.misses, sum(p.misses for p in counted))
        same(f"blocks by {what}", totals.blocks, sum(p.blocks for p in counted))
    if pool.closed and (idle or running or waiters):
        problems.append("something is left in a closed cache")
    return problems


async def cancel_everywhere(
    scenario: Callable[[], Awaitable[object]],
    check: Callable[[], None] = lambda: None,
    *,
    limit: int = 10_000,
) -> int:
    """Run `scenario` repeatedly, cancelled at its first checkpoint, then its second, and so on.

    A checkpoint here is each time that its task, or a task that it starts, lets others run. Each is
    cancelled in two runs: once when the task has just gone to sleep, and once when it was woken but
    has not run yet, so that it already owns what it waited for. It ends with the first run that
    completes before it could be cancelled.

    Args:
        scenario: an async function without arguments, which does all that is to be cancelled. Tasks
            that only take part, such as holders of what it waits for, must be started outside.
        check: function to call after each run, such as ``lambda: check_invariants(cache)``.
        limit: largest number of runs.

    Returns:
        Number of times that it was cancelled.

    Raises:
        TypeError: `scenario` is not a function.
        AssertionError: the scenario was still being cancelled after `limit` runs.
        Exception: whatever the scenario, or `check`, raised.

    **Checkpoint:** as the scenario.
    **Cancellation:** as the scenario; no further run begins.
    """
    if not callable(scenario):
        raise TypeError(
            "cancel_everywhere takes an async function, which it calls again and again, got "
            f"{shown(scenario)}: write cancel_everywhere(scenario), not scenario()"
        )
    task = trio.lowlevel.current_task()
    runs = 0
    for woken in (False, True):
        for number in itertools.count(1):
            if runs == limit:
                raise AssertionError(f"the scenario did not complete within {limit} runs")
            runs += 1
            with trio.CancelScope() as scope:
                countdown = _Countdown(task, scope, number, woken)
                trio.lowlevel.add_instrument(countdown)
                try:
                    await scenario()
                finally:
                    trio.lowlevel.remove_instrument(countdown)
            check()
            if countdown.left:
                break
    return runs - 2


@final
class _Countdown(trio.abc.Instrument):
    """Cancels a scope when a task that belongs to it falls asleep, or wakes, for the n-th time."""

    def __init__(
        self, task: trio.lowlevel.Task, scope: trio.CancelScope, number: int, woken: bool
    ) -> None:
        self._task = task
        self._children = set(task.child_nurseries)
        self._scope = scope
        self._woken = woken
        self.left = number

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        # Cancel once a step is over, not in the middle of one: no application could do that either.
        if not self._woken:
            self._count(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._woken:
            self._count(task)

    def _count(self, task: trio.lowlevel.Task) -> None:
        if self.left and self._belongs(task):
            self.left -= 1
            if self.left == 0:
                self._scope.cancel()

    def _belongs(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task is not self._task:
            nursery = task.parent_nursery
            if nursery is None or nursery in self._children:
                return False  # not of the scenario: its nursery was open before
            task = nursery.parent_task
        return task is self._task
