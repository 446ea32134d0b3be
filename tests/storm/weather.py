"""Everything at once, at random: many tasks, tight limits, replacing, cancelling, closing groups.

What order Trio runs tasks in is random as well, so a failure may not come back with its seed; it is
a bug all the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random

import trio
from kits import COSTLY, PAGE, Kit, add, add_calling_back, add_two_parts, stack_of
from promoting import due_at_once
from staging import look

from trio_wasmcache import (
    CacheConfig,
    CodeMemoryError,
    DeadlockError,
    DuplicateFunctionError,
    HostFunction,
    InstanceCache,
    LoadError,
    Prepare,
    SchedulingGroup,
    TrapError,
    UnknownFunctionError,
    current_lease,
)
from trio_wasmcache._core.policy import cpu_budget
from trio_wasmcache._runtime import cpu_limits
from trio_wasmcache.testing import snapshot

TYPES = ("i64",)
# Exports that a host function may invoke, and with what; see `kits.CALLED_BACK`.
INVOKED = (("double", 3), ("swap", 1, 2.5), ("nothing",), ("trap",))
LEVELS = ("reuse", "fresh", "reset")
PREPARE = (Prepare("run", (1,), TYPES, "i64"),)
# Leases of each task, one after the other, in a small storm.
ROUNDS = 5
# Passes of the loop for each round, until somebody must be waiting for ever. They are some hundreds
# in a small storm, but with threads the loop may spin many times until one of them gets the GIL.
ENOUGH = 100_000
# Limits of groups (cores), where a window is a millisecond and each slice takes a tenth of it.
CORES = (None, None, 0.5, 1000.0)
SHORT_WINDOW, SLICE = 0.001, 0.0001


class Storm:
    """One cache in it."""

    def __init__(self, cache: InstanceCache, kit: Kit, random: Random, rounds: int) -> None:
        self.cache = cache
        self.kit = kit
        self.random = random
        self.rounds = rounds
        self.modules: list[bytes] = []
        self.names: list[str] = []
        """Of functions that are replaced and removed; the others stay as they are."""
        self.groups: list[SchedulingGroup | None] = [None]
        self.scopes: list[trio.CancelScope] = []
        self.working = 0
        self.leases = 0
        self.operations = 0
        """Leases asked for, calls, and disturbances."""
        self.reserved: dict[SchedulingGroup | None, int] = {}
        self.disturbances = 8 * rounds  # left; with more, hardly any lease would be granted

    async def register(self) -> None:
        """Two functions of one module, slow and costly ones, one that traps, and what stays.

        One that asks, one that is called back, and one with an instance of its own beside it.
        """
        kit, shared = self.kit, self.kit.adding(1)
        self.modules += [shared, shared, kit.adding(1, slow_start=True), kit.costly()]
        self.modules += [kit.trapping(), kit.growing()]
        for number, wasm in enumerate(self.modules):
            concurrency, isolation = self.random.choice([1, 1, 2]), self.random.choice(LEVELS)
            await add(self.cache, f"f{number}", wasm, concurrency=concurrency, isolation=isolation)
        self.names = [f"f{number}" for number in range(len(self.modules))]
        imports = {"host": {"ask": HostFunction(self.ask, ("i64",), ("i64",))}}
        choose = self.random.choice
        await add(self.cache, "asks", kit.asking(), imports=imports, isolation=choose(LEVELS))
        await add_calling_back(
            self.cache, kit, self.ask_back, name="called", isolation=choose(LEVELS)
        )
        part = choose([kit.adding(1), kit.costly(), kit.trapping(), kit.growing()])
        await add_two_parts(self.cache, kit, part, name="parts", isolation=choose(LEVELS))
        code = max(function.code_size for function in self.cache.functions())
        room = self.random.choice([2, 3, 100]) * (code + stack_of(self.cache))
        self.cache.resize(max_code_size=room, max_instances=self.random.choice([2, 5, 50]))
        worst = max(function.worst_size for function in self.cache.functions())
        times = self.random.choice([None, 1, 2, 5])
        self.cache.resize(max_running_size=None if times is None else times * worst)

    async def ask(self, value: int) -> int:
        """A host function that takes its time, fails, or works."""
        await trio.lowlevel.checkpoint()
        if self.random.random() < 0.2:
            raise ZeroDivisionError
        return value

    async def ask_back(self, value: int) -> int:
        """A reentrant host function: it has the guest do something first, or leases something."""
        lease = current_lease()
        for _ in range(self.random.randrange(3)):
            self.operations += 1
            await lease.invoke(*self.random.choice(INVOKED))
        return await self.ask(value)

    async def work(self) -> None:
        """Some leases, one after the other; anybody may cancel one."""
        self.working += 1
        try:
            for _ in range(self.rounds):
                with trio.CancelScope() as scope:
                    self.scopes.append(scope)
                    await self.lease(1)
                self.scopes.remove(scope)
        finally:
            self.working -= 1

    async def lease(self, depth: int) -> None:
        """A lease of anything, in any group, with calls and perhaps another lease in it."""
        random = self.random
        group = random.choice(self.groups)
        name = random.choice([*self.names, "asks", "called", "parts"])
        self.operations += 1
        try:
            async with (group or self.cache).acquire(name, TYPES) as lease:
                self.leases += 1
                if lease.function.isolation != "reuse":
                    assert lease.memory.read(1000, 8) == bytes(8), "it was left by another lease"
                lease.memory.write(1000, b"a secret")
                for _ in range(random.randrange(3)):
                    self.operations += 1
                    try:
                        await lease.call(random.randrange(100))
                    except (TrapError, ZeroDivisionError, trio.BrokenResourceError):
                        break
                if depth < 3 and random.random() < 0.5:
                    await self.lease(depth + 1)
        except (DeadlockError, UnknownFunctionError, CodeMemoryError, trio.ClosedResourceError):
            pass
        look(self.cache, self.kit)

    def limit_group(self) -> None:
        """Other limits for one of the groups, or for the cache's own."""
        random, cache = self.random, self.cache
        group = random.choice(self.groups)
        most, cores = random.choice([None, None, 0, 4, 12]), random.choice(CORES)
        others = sum(size for name, size in self.reserved.items() if name is not group)
        reserved = min(random.choice([0, 0, 2, 4, 8]) * PAGE, cache.config.max_size - others)
        if most is not None:
            most *= PAGE
            reserved = min(reserved, most)
        try:
            if group is None:
                cache.resize(main_max_size=most, main_reserved_size=reserved, main_cpu_limit=cores)
            else:
                group.resize(max_size=most, reserved_size=reserved, cpu_limit=cores)
        except trio.ClosedResourceError:
            reserved = 0  # its tasks have ended, and others still work
        self.reserved[group] = reserved

    async def disturb(self) -> None:
        """Until everybody has finished, do something unexpected now and then."""
        random, cache = self.random, self.cache
        for _ in range(ENOUGH * self.rounds):
            await trio.lowlevel.checkpoint()
            chance = random.random() if self.disturbances else 1.0
            self.disturbances -= chance < 0.07
            if chance < 0.03 and self.scopes:
                random.choice(self.scopes).cancel()
            elif chance < 0.05:
                name, wasm = random.choice(self.names), random.choice(self.modules)
                try:
                    more = {
                        "concurrency": random.choice([1, 2]),
                        "isolation": random.choice(LEVELS),
                        "prepare": random.choice([(), (), PREPARE]),
                    }
                    await add(cache, name, wasm, replace=True, **more)
                except LoadError as error:  # of the one that traps
                    if "can't be prepared: call 1" not in str(error):
                        raise
                except DuplicateFunctionError:
                    raise AssertionError("nobody else registers") from None
            elif chance < 0.055 and len(cache.functions()) > 5:
                kept = {function.name for function in cache.functions()} & set(self.names)
                cache.remove(random.choice(sorted(kept)))
            elif chance < 0.06:
                self.limit_group()
            elif chance < 0.07:
                reserved = sum(self.reserved.values())
                cache.resize(max_size=max(reserved, random.choice([0, 3, 10, 100]) * PAGE))
            if chance < 0.07:
                self.operations += 1
                cache._promoter.look()
                look(cache, self.kit)
            if not self.working:
                return
        raise AssertionError(f"somebody waits for ever: {cache!r}, {cache.entries()}")


async def blow(kit: Kit, seed: int, rounds: int = ROUNDS) -> int:
    """One storm, from the opening of its cache until nothing is left; how many operations it had.

    Whatever happens, the books agree, and everybody finishes.
    """
    random = Random(seed)
    with short_windows(), due_at_once():
        return await _blow(kit, random, rounds)


@contextmanager
def short_windows() -> Iterator[None]:
    """Let no call wait long for the CPU."""
    before = cpu_budget.WINDOW, cpu_limits.APART
    cpu_budget.WINDOW = cpu_limits.APART = SHORT_WINDOW
    try:
        yield
    finally:
        cpu_budget.WINDOW, cpu_limits.APART = before


async def _blow(kit: Kit, random: Random, rounds: int) -> int:
    config = CacheConfig(
        yield_fuel=COSTLY // 3,
        offload_after=random.choice([None, None, 0]),
        main_capacity=random.choice([1, 3, math.inf]),
        max_threads=random.choice([1, 2]),
        log_uses=random.random() < 0.5,
        compiler=random.choice(["optimizing", "tiered"]),
    )
    async with kit.open(config) as cache:
        ticks = itertools.count()
        cache._pool.runner.cpu_clock = lambda: next(ticks) * SLICE
        storm = Storm(cache, kit, random, rounds)
        await storm.register()
        capacities: Sequence[int] = random.choices([1, 2, 5], k=2)
        async with trio.open_nursery() as nursery:
            async with (
                cache.scheduling_group("a", capacity=capacities[0], cpu_limit=0.5) as a,
                cache.scheduling_group("b", capacity=capacities[1]) as b,
            ):
                storm.groups += [a, b]
                for _ in range(4):
                    for start in (a.start_soon, b.start_soon, nursery.start_soon):
                        start(storm.work)
                await trio.lowlevel.checkpoint()
                if random.random() < 0.5:
                    await storm.disturb()
            if storm.working:
                await storm.disturb()
        assert storm.leases > 10
        look(cache, kit)
        stats = cache.stats()
        assert (stats.running_instances, stats.waiting) == (0, 0)
        assert snapshot(cache).group("main").tokens == 0
        assert not cache._pool.runner.cpu_limits._lots, "somebody waits for the CPU"
        with trio.fail_after(600):  # an instance that is made in the background may be starting
            while snapshot(cache).loop.taken or snapshot(cache).threads.taken:
                await trio.lowlevel.checkpoint()
    return storm.operations
