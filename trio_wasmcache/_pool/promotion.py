"""Promotes functions from the baseline compiler to the optimizing one: ``compiler="tiered"``.

1. `register` compiles on the baseline compiler, and answers. Once the calls of a function have used
   10 ms, its module is due (`_core/policy/promotion`). Modules are compiled one at a time, in this
   task, while no other compile runs or waits.
2. When the optimized code is ready, new instances of all functions of the module are made of it, in
   one step. Everything else of a function stays: name, generation, `Function`, counts.
3. Then instances of the optimized code are made in the background, one at a time, while they fit
   beside all that is there. Each takes the place of an idle one, or of one that is running as soon
   as its lease ends. Idle instances of baseline code are hits until then.
4. An instance that starts in the background is in no book of the policy; there is one at most. Its
   step into the books is one, and whatever happens before leaves nothing. Others wait for it, so it
   has `LONGEST_START`, and ends when its function is removed or replaced.
5. A module that can't be compiled stays as it is, and is not tried again.

A hit pays nothing for that: fuel is counted anyway, and looked at after a burst of calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, Protocol, final

import trio

from .._core.errors import CodeMemoryError, InvalidModuleError
from .._core.keys import FunctionKey
from .._core.policy.promotion import DUE_FUEL, PromotionQueue
from .._core.policy.records import Entry, FunctionRecord, Request
from .._core.policy.shares import FUEL_PER_SECOND
from .._core.tiers import TIERED
from .._core.wasm.isolation import SEAT_SIZE
from .._engine.base import GuestInstance
from .._runtime.bound import Definition
from .._runtime.call import Call
from .._runtime.module import CachedModule
from .._runtime.start import Start
from .capacity import GroupState
from .making import Making, bind_metered, explain
from .pool import Pool
from .registration import Compiler

# Entries that are looked at each time that something has become free.
MOST_LOOKED_AT = 16
LONGEST_START = 2.0
"""Seconds that an instance may take in the background, on Trio's clock, without those in which its
group waits for its `cpu_limit`."""


class Lend(Protocol):
    """Makes the result of `current_lease` for host functions that a start calls."""

    def __call__(self, group: GroupState, key: FunctionKey, upgrade: Upgrade, /) -> object:
        """Return a lease that is being loaded."""


@final
class Promoter:
    """The task, and what waits for it.

    Args:
        pool: the pool of the cache.
        compiler: compiles the modules.
        groups: {name: group} of those that are open.
        lend: see `Lend`.
    """

    def __init__(
        self, pool: Pool, compiler: Compiler, groups: Mapping[str, GroupState], lend: Lend
    ) -> None:
        self._pool = pool
        self._compiler = compiler
        self._groups = groups
        self._lend = lend
        self._queue: PromotionQueue[GroupState, CachedModule] = PromotionQueue()
        # {module that the optimizing compiler has not had: its functions}
        self._users: dict[CachedModule, dict[FunctionRecord, None]] = {}
        self._entries: dict[Entry, None] = {}  # of promoted functions, with instances left over
        self._seen: float = 0  # number of the last rest that `look` has seen
        self._is_due = self._is_freed = trio.Event()  # that each of the two tasks waits for
        self._scope = trio.CancelScope()  # around a compile
        self._compiling: CachedModule | None = None
        self._upgrading: tuple[FunctionRecord, trio.CancelScope] | None = None
        self.promotions: int = 0
        """Number of functions that were promoted."""
        self.failures: int = 0
        """Number of functions that could not be promoted."""
        if pool.config.compiler == TIERED:
            pool.runner.burnt = self.look
            pool.freed = self._look_for_room

    @property
    def waiting(self) -> int:
        """Number of modules that wait for the optimizing compiler, or are being compiled."""
        return len(self._queue) + (self._compiling is not None)

    # -- functions

    def add(self, function: FunctionRecord) -> None:
        """Note a function that is registered from now on."""
        module = Definition.of(function).module
        if module.recipe is not None:
            self._users.setdefault(module, {})[function] = None

    def forget(self, function: FunctionRecord) -> None:
        """Note that a function was removed or replaced."""
        if self._upgrading is not None and self._upgrading[0] is function:
            self._upgrading[1].cancel()
        module = Definition.of(function).module
        users = self._users.get(module)
        if users is None or function not in users:
            return
        del users[function]
        if not users:
            self._drop(module)
            if module is self._compiling:
                self._scope.cancel()

    def _drop(self, module: CachedModule) -> None:
        module.forget_recipe()
        self._users.pop(module, None)
        self._queue.discard(module)

    def look(self) -> None:
        """Find the functions that have become due, of those that were used since the last look."""
        if not self._users:
            return
        policy = self._pool.policy
        instances = policy.instances
        used = dict.fromkeys(instances.used_since(self._seen))
        used.update(dict.fromkeys(request.held.entry.function for request in policy.waits.held))
        self._seen = instances.rests
        burning = self._burning()
        for function in used:
            module = Definition.of(function).module
            if module is self._compiling or module in self._queue:
                continue
            if function not in self._users.get(module, ()):
                continue
            if instances.fuel_of(function) + burning.get(function, 0) >= DUE_FUEL:
                self._queue.add(module)
                self._is_due.set()

    def _burning(self) -> dict[FunctionRecord, int]:
        """Return {function: fuel} of calls that are not over."""
        found: dict[FunctionRecord, int] = {}
        for job in self._pool.runner.jobs:
            if isinstance(job.caller, Call):
                function = job.caller.bound.entry.function
                found[function] = found.get(function, 0) + job.burnt
        return found

    def _look_for_room(self) -> None:
        if self._entries:
            self._is_freed.set()

    # -- the task

    @trio.lowlevel.enable_ki_protection
    async def run_compiles(self) -> None:
        """Compile the modules that are due, until the cache is closed.

        **Checkpoint:** always.
        **Cancellation:** ends it; a compile is abandoned, and what it makes is dropped.
        """
        background = self._compiler.engine.compile_slots.background
        try:
            while True:
                while not self._queue:
                    self._is_due = trio.Event()
                    await self._is_due.wait()
                await background.wait()
                chosen = self._queue.pop(self._fuel_by_group, _shares, _cost)
                if chosen is not None:  # its functions may have been removed meanwhile
                    await self._compile(*chosen)
        except trio.ClosedResourceError:
            return  # the engine was closed

    @trio.lowlevel.enable_ki_protection
    async def run_upgrades(self) -> NoReturn:
        """Make instances of promoted functions, wherever they fit. It never returns.

        **Checkpoint:** always.
        **Cancellation:** ends it; an instance that starts is closed.
        """
        while True:
            while (entry := self._next_entry()) is not None:
                await self._upgrade(entry)
                await trio.lowlevel.checkpoint()
            self._is_freed = trio.Event()
            await self._is_freed.wait()

    # -- compiling

    async def _compile(self, module: CachedModule, group: GroupState) -> None:
        """Compile a module, and promote its functions."""
        fuel_of, burning = self._pool.policy.instances.fuel_of, self._burning()
        fuel = max(fuel_of(one) + burning.get(one, 0) for one in self._users[module])
        made: tuple[CachedModule, float] | None = None
        error: Exception | None = None
        self._compiling, began = module, trio.current_time()
        try:
            with trio.CancelScope() as self._scope:
                made = await self._compiler.optimize(module)
        except trio.ClosedResourceError:
            raise
        except Exception as problem:
            error = problem
        finally:
            self._compiling = None
        functions = list(self._users.get(module, ()))
        self._drop(module)
        if self._pool.closed:
            return
        name, guest_seconds = group.record.name, fuel / FUEL_PER_SECOND
        spent = trio.current_time() - began if made is None else made[1]
        for function in functions:
            if made is not None:
                self._promote(function, made[0], spent, guest_seconds, name)
            elif error is not None:
                self._fail(function, error, spent, guest_seconds, name)
            spent = 0.0  # the others share the module

    def _fuel_by_group(self, module: CachedModule) -> dict[GroupState, int]:
        fuel: dict[GroupState, int] = {}
        for function in self._users[module]:
            for entry in function.entries.values():
                group = self._groups.get(entry.group.name)
                if group is not None and group.record is entry.group:
                    fuel[group] = fuel.get(group, 0) + entry.uses.fuel
        # If none of them is used at the moment, the cache compiles it for itself.
        return fuel or {next(iter(self._groups.values())): 0}

    def _promote(
        self,
        function: FunctionRecord,
        made: CachedModule,
        compile_seconds: float,
        guest_seconds: float,
        group: str,
    ) -> None:
        """Have new instances of a function made of a module.

        Args:
            function: the function.
            made: the module, with optimized code.
            compile_seconds: time that compiling took for this function.
            guest_seconds: CPU time that the guest had used before.
            group: name of the group in whose turn it was.
        """
        pool, artifact = self._pool, made.artifact
        now, earlier = trio.current_time(), Definition.of(function)
        reserved = artifact.address_space, artifact.mappings
        try:
            step = pool.policy.promote(function, made.record, reserved, now)
        except CodeMemoryError as error:
            self._fail(function, error, compile_seconds, guest_seconds, group)
            return
        function.define(earlier.promoted(made))
        self._compiler.keep(made)
        self._compiler.drop(earlier.module)
        self.promotions += 1
        if compile_seconds:
            pool.policy.note_compiled(function, compile_seconds)
        pool.journal.promoted(
            function,
            now,
            group=group,
            guest_seconds=guest_seconds,
            compile_seconds=compile_seconds,
            module_digest=made.digest,
            module_number=made.number,
            code_bytes=made.record.code_size,
            compiler=artifact.tier.value,
            artifact_bytes=made.size,
            address_space_bytes=artifact.address_space,
            mappings=artifact.mappings,
            module_mappings=made.record.mappings,
        )
        pool.carry_out(step, now)
        self._entries.update(dict.fromkeys(function.entries.values()))
        self._look_for_room()

    def _fail(
        self,
        function: FunctionRecord,
        error: Exception,
        compile_seconds: float,
        guest_seconds: float,
        group: str,
    ) -> None:
        """Note that a function can't be promoted, and stays as it is; see `_promote`."""
        self.failures += 1
        self._pool.journal.promoted(
            function,
            trio.current_time(),
            group=group,
            guest_seconds=guest_seconds,
            compile_seconds=compile_seconds,
            module_digest=Definition.of(function).module.digest,
            error=_public_name(error),
            error_message=str(error),
        )

    # -- instances in the background

    def _next_entry(self) -> Entry | None:
        """Return an entry for which an instance can be made now; forget those that need none."""
        instances, entries = self._pool.policy.instances, self._entries
        for _ in range(min(MOST_LOOKED_AT, len(entries))):
            entry = next(iter(entries))
            del entries[entry]
            if instances.can_upgrade(entry):
                entries[entry] = None
                return entry
            if instances.has_outdated(entry):
                entries[entry] = None  # at the end
        return None

    async def _upgrade(self, entry: Entry) -> None:
        """Make an instance, or a seat, and put it in the place of one of baseline code."""
        pool = self._pool
        group = self._groups.get(entry.group.name)
        if group is None or group.record is not entry.group or pool.closed:
            self._entries.pop(entry, None)
            return
        function = entry.function
        error: BaseException | None = None
        upgrade = Upgrade(pool, group, entry)
        upgrade.lease = self._lend(group, function.key, upgrade)
        pool.background[entry] = upgrade.end
        done = False
        try:
            with pool.runner.cpu_limits.move_on_after(LONGEST_START) as scope:
                self._upgrading = function, scope
                done = await upgrade.run()
        except Exception as problem:
            definition = Definition.of(function)
            error = explain(definition, function.key, problem, pool.config)
        else:
            if scope.cancelled_caught:
                error = trio.TooSlowError(
                    f"{function.key} took more than {LONGEST_START:g} s to start in the "
                    "background, and is not tried there again"
                )
        finally:
            self._upgrading = None
            del pool.background[entry]
        if done:
            return
        # It has failed, or it does not fit: the next miss gets optimized code.
        self._entries.pop(entry, None)
        if error is not None and not (upgrade.ended or function.retired or pool.closed):
            for other in function.entries.values():
                self._entries.pop(other, None)
            pool.journal.not_upgraded(entry, error, pool.now())


@final
class Upgrade:
    """One instance of optimized code in the making, for no lease."""

    __slots__ = ("_making", "call", "definition", "ended", "entry", "group", "lease", "pool")

    def __init__(self, pool: Pool, group: GroupState, entry: Entry) -> None:
        self.pool: Pool = pool
        self.group: GroupState = group
        self.entry: Entry = entry
        self.lease: object = None
        """The result of `current_lease` in host functions that its start calls."""
        self.definition: Definition | None = None
        """Definition of its function."""
        self.call: None = None
        self._making: Making | None = None
        self.ended: bool = False
        """Whether its group or the cache has closed."""

    @property
    def start(self) -> Start | None:
        """Start of the instance; None while it does not start."""
        return None if self._making is None else self._making.start

    async def run(self) -> bool:
        """Make it, and put it into the books; return whether it has got there.

        Raises:
            Exception: whatever its start has raised, or a host function in it.

        **Checkpoint:** maybe.
        **Cancellation:** nothing is left.
        """
        pool, entry = self.pool, self.entry
        definition = self.definition = Definition.of(entry.function)
        idle = [instance for instance in entry.idle if instance.outdated]
        seat = idle[-1].seat if idle else not definition.serves_again
        # For the output of its start, which has a request wherever there is a lease.
        request = Request(entry, self)
        making = self._making = Making(pool, self.group.share, self.lease, request)
        began, native = pool.now(), None
        with definition.module.pinned():
            try:
                if seat:
                    await making.load(definition)
                else:
                    native = await making.run(definition)
            finally:
                self._making = None
            if self.ended:
                if native is not None:
                    native.close()
                return False
            return self._enter(definition, native, began)

    def _enter(self, definition: Definition, native: GuestInstance | None, began: float) -> bool:
        pool, entry, now = self.pool, self.entry, self.pool.now()
        if native is None:
            done = pool.policy.upgrade(entry, SEAT_SIZE, now, now - began)
        else:
            bound = bind_metered(pool, self.group.share, definition, entry, native)
            ready = definition.serves_again
            size = native.measure()
            done = pool.policy.upgrade(entry, size, now, now - began, bound, ready=ready)
        if done is None:
            if native is not None:
                native.close()
            return False
        instance, step = done
        pool.journal.upgraded(instance, began, now)
        pool.carry_out(step, now)
        pool.evictor.expect_expiry()
        return True

    def end(self) -> trio.Event | None:
        """End it, as its group or the cache closes.

        Returns:
            An event if a thread runs its start, which is set when the thread has left it; this must
            be called again then. Otherwise None.
        """
        making, start = self._making, self.start
        self.ended = True
        if making is None:
            return None
        if start is not None:
            start.end(trio.ClosedResourceError)
            if start.out_of_thread is not None:
                return start.out_of_thread
        making.close()
        return None


def _public_name(error: Exception) -> str:
    """Return the name of an error's class; of a private one of an engine, that of its base."""
    if isinstance(error, InvalidModuleError):
        return InvalidModuleError.__name__
    return type(error).__name__


def _shares(group: GroupState) -> int:
    return group.share.shares


def _cost(module: CachedModule) -> int:
    return module.artifact.size
