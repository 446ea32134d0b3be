"""A life under load: clients in groups that come and go, and someone who changes everything.

Clients check every result. What goes wrong is noted, and the life goes on.
"""

from __future__ import annotations

import collections
import traceback
from random import Random
from typing import Any

import trio
from attrs import asdict

from trio_wasmcache import (
    CacheConfig,
    CodeMemoryError,
    DeadlockError,
    DuplicateFunctionError,
    HostFunction,
    InstanceCache,
    KiB,
    Lease,
    LoadError,
    MiB,
    SchedulingGroup,
    UnknownFunctionError,
)
from trio_wasmcache._cache.cache import FIXED
from trio_wasmcache.testing import check_invariants

from .drift import rss
from .guests import GUESTS, SECRET_AT, Guest

LEVELS = ("reuse", "fresh", "reset")
# What anybody may get while functions and groups go, and limits shrink.
ALWAYS = (DeadlockError, UnknownFunctionError, CodeMemoryError, trio.ClosedResourceError)
# A cancelled caller had so much time (seconds); a call takes some 10 microseconds.
PATIENCE = (0, 0.0001, 0.001, 0.01)
CONFIG = CacheConfig(
    total_fuel=1_000_000, yield_fuel=20_000, offload_after=1, max_threads=2, log_uses=True
)
MOST_PROBLEMS = 10
SECRET = b"a secret"


class AskedForItError(Exception):
    """A host function of the soak fails."""


class Life:
    """What goes on in one cache, what was counted, and what was wrong."""

    def __init__(self, cache: InstanceCache, random: Random) -> None:
        self.cache = cache
        self.random = random
        self.calls = 0
        self.operations = 0
        """Leases asked for, batches, and whatever changes the cache."""
        self.errors = collections.Counter[str]()
        self.problems: list[str] = []
        self.groups: list[SchedulingGroup] = []
        self.most_accounted = self.most_rss = 0
        self._number = 0
        self._until = 0.0

    def wrong(self, what: str) -> None:
        """Note it; the first few are enough."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(what)

    @property
    def over(self) -> bool:
        return trio.current_time() >= self._until or len(self.problems) >= MOST_PROBLEMS

    async def live(self, seconds: float) -> None:
        """For so long, from the registering of all functions until everybody has stopped."""
        self._until = trio.current_time() + seconds
        for name in GUESTS:
            await self.register(name)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(self.client)
            for number in range(3):
                nursery.start_soon(self.tenant, f"tenant {number}")
            for _ in range(2):
                nursery.start_soon(self.changes)
            nursery.start_soon(self.inspect)

    def empty(self) -> None:
        """Remove everything, under the limits of the beginning, which would let it stay."""
        limits = asdict(CONFIG)
        self.cache.resize(**{name: limits[name] for name in limits.keys() - FIXED})
        for name in {function.name for function in self.cache.functions()}:
            self.cache.remove(name)

    # -- who takes part

    async def client(self) -> None:
        """Leases, one after the other; some are given little time."""
        while not self.over:
            try:
                if self.random.random() < 0.15:
                    with trio.move_on_after(self.random.choice(PATIENCE)) as scope:
                        await self.lease(1)
                    self.errors["cancelled"] += scope.cancelled_caught
                else:
                    await self.lease(1)
            except Exception as error:
                self.note(error, None)
            await trio.lowlevel.checkpoint()

    async def tenant(self, name: str) -> None:
        """Groups, one after the other; they end, or are cancelled."""
        random = self.random
        while not self.over:
            capacity, shares = random.choice([1, 2, 8]), random.choice([10, 100, 1000])
            self.operations += 1
            async with self.cache.scheduling_group(name, capacity=capacity, shares=shares) as group:
                self.groups.append(group)
                for _ in range(random.randrange(1, 5)):
                    group.start_soon(self.client)
                left = max(0.0, self._until - trio.current_time())
                await trio.sleep(min(random.choice([0, 0.01, 0.2, 2]), left))
                self.groups.remove(group)
                group.cancel_scope.cancel()

    async def changes(self) -> None:
        """Whatever an application may do to a cache at any time."""
        random = self.random
        while not self.over:
            await trio.sleep(random.choice([0, 0.001, 0.01, 0.05]))
            self.operations += 1
            name = random.choice(list(GUESTS))
            try:
                await random.choice([self.replace, self.remove, self.resize, self.warm, self.ask])(
                    name
                )
            except Exception as error:
                self.note(error, None)

    async def inspect(self) -> None:
        """The books agree at any moment."""
        while not self.over:
            await trio.sleep(0.05)
            try:
                check_invariants(self.cache)
            except AssertionError as error:
                self.wrong(f"check_invariants: {error}")
            self.most_accounted = max(self.most_accounted, self.cache.stats().accounted_size)
            self.most_rss = max(self.most_rss, rss())

    # -- what they do

    async def lease(self, depth: int) -> None:
        """One lease of anything, from here or from a group; calls; perhaps another lease in it."""
        random = self.random
        name = random.choice(list(GUESTS))
        guest = GUESTS[name]
        group = random.choice(self.groups) if self.groups and random.random() < 0.2 else None
        self.operations += 1
        try:
            async with (group or self.cache).acquire(name, guest.args) as lease:
                if guest.on_load:
                    self.wrong(f"{name!r} was loaded")
                self.hide(name, guest, lease)
                for number in range(random.randrange(4)):
                    if not await self.use(name, guest, lease, number):
                        break
                if depth < 3 and random.random() < 0.2:
                    await self.lease(depth + 1)
        except LoadError as error:
            self.note(error, guest if guest.on_load else None)
        except ALWAYS as error:
            self.note(error, None)

    def hide(self, name: str, guest: Guest, lease: Lease) -> None:
        """Leave something in its memory that nobody else may find."""
        if guest.memory:
            if lease.function.isolation != "reuse":
                found = lease.memory.read(SECRET_AT, len(SECRET))
                if any(found):
                    self.wrong(f"{name!r}, {lease.function.isolation}, has another's {found!r}")
            lease.memory.write(SECRET_AT, SECRET)

    async def use(self, name: str, guest: Guest, lease: Lease, number: int) -> bool:
        """One call or batch; False if the lease can't be used for another."""
        random = self.random
        batch = guest.column is not None and random.random() < 0.3
        rows = random.choice([1, 10, 300]) if batch else 1
        given = [guest.values(random) for _ in range(rows)]
        self.calls += 1
        try:
            if batch:
                assert guest.column is not None
                columns = [guest.column(list(column)) for column in zip(*given, strict=True)]
                got = list(await lease.map(columns))
            else:
                got = [await lease.call(*given[0])]
        except Exception as error:
            self.note(error, guest, batch=batch)
            return False
        if guest.fails is not None:
            self.wrong(f"{name!r} of {given!r:.200} gave {got!r:.200}")
        elif guest.counts:
            known = lease.function.isolation != "reuse"
            if got[0] != number + 1 if known else got[0] <= number:
                self.wrong(f"{name!r}, {lease.function.isolation}: call {number} gave {got[0]}")
        else:
            right = [guest.result(*values) for values in given]
            if got != right:
                self.wrong(f"{name!r} of {given!r:.200} gave {got!r:.200}, not {right!r:.200}")
        return True

    def note(self, error: Exception, guest: Guest | None, *, batch: bool = False) -> None:
        """Count what may come; anything else is wrong."""
        kind = type(error)
        self.errors[kind.__name__] += 1
        may: tuple[type[Exception], ...] = ALWAYS
        if guest is not None and guest.fails is not None:
            may += (guest.fails,)
        if guest is not None and guest.host is not None:
            may += (AskedForItError,)
        if batch:
            may += (LoadError,)  # there is no room for what drives it
        if kind not in may:
            self.wrong("".join(traceback.format_exception(error)))

    async def register(self, name: str, replace: bool = False) -> None:
        """A function, as another module than before."""
        guest, random = GUESTS[name], self.random
        self._number += 1
        host = None
        if guest.host is not None:
            host = {"host": {"ask": HostFunction(getattr(self, guest.host), ("i64",), ("i64",))}}
        await self.cache.register(
            name,
            guest.make(self._number),
            args=guest.args,
            returns=guest.returns,
            export=guest.export,
            abi=guest.abi,
            imports=host,
            concurrency=min(random.choice([1, 1, 2, 4]), self.cache.config.max_instances),
            isolation=random.choice(LEVELS),
            replace=replace,
        )

    async def replace(self, name: str) -> None:
        """Or register it again; now and then given up half-way."""
        with trio.move_on_after(self.random.choice([0.001, 0.01, 30, 30, 30])):
            try:
                await self.register(name, replace=True)
            except DuplicateFunctionError:
                self.errors["DuplicateFunctionError"] += 1  # the other one is at it

    async def remove(self, name: str) -> None:
        if self.random.random() < 0.1:  # it is a while until it is registered again
            self.cache.remove(name)

    async def resize(self, name: str) -> None:
        """Any limits that leave room for something."""
        random = self.random
        limits: dict[str, Any] = {
            "max_size": random.choice([0, 128 * KiB, 1 * MiB, 100 * MiB]),
            "max_instance_size": random.choice([0, 256 * KiB, 8 * MiB]),
            "max_instances": random.choice([1, 4, 100, 4096]),
            "max_code_size": random.choice([600 * KiB, 2 * MiB, 40 * MiB]),
            "max_running_size": random.choice([None, 36 * MiB, 100 * MiB]),
            "memory_limit": random.choice([4 * MiB, 32 * MiB]),
            "idle_timeout": random.choice([0.01, 0.5, 5.0]),
            "yield_fuel": random.choice([1_000, 20_000, 10_000_000]),
            "offload_after": random.choice([None, 0, 1, 4]),
            "max_threads": random.choice([1, 2, 4]),
        }
        chosen = random.sample(sorted(limits), k=random.randrange(1, 4))
        self.cache.resize(**{limit: limits[limit] for limit in chosen})

    async def warm(self, name: str) -> None:
        try:
            await self.cache.warm(name, GUESTS[name].args)
        except LoadError as error:
            self.note(error, GUESTS[name])

    async def ask(self, name: str) -> None:
        """What a service's own pages show."""
        random = self.random
        if random.random() < 0.05:
            await self.cache.resident_bytes()
        self.cache.entries()
        if random.random() < 0.5:
            self.cache.pop_stats()
        else:
            self.cache.stats()

    # -- host functions

    def sync(self, value: int) -> int:
        if self.random.random() < 0.05:
            raise AskedForItError
        return value

    async def asynchronous(self, value: int) -> int:
        """It waits, fails, or has a lease of its own."""
        chance = self.random.random()
        if chance < 0.05:
            raise AskedForItError
        if chance < 0.2:
            async with self.cache.acquire("adds", ("i64",)) as lease:
                return int(await lease.call(value)) - 7
        await trio.sleep(self.random.choice([0, 0, 0.001]))
        return value
