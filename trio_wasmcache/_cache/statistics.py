"""The statistics of one cache, computed from the books of its parts when somebody asks.

Its only state is what the counters were at the last restart. Nothing else is changed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, final

from attrs import Factory, frozen

from .._core.events import Reason
from .._core.policy.cpu_budget import CpuBudget
from .._core.policy.records import Entry, Instance, Stage
from .._engine.base import GuestInstance
from .._pool.capacity import GroupState
from .._pool.pool import Pool
from .._pool.promotion import Promoter
from .._runtime.bound import BoundFunction, Definition
from .._runtime.module import CachedModule

if TYPE_CHECKING:
    from .._core.metrics.snapshot import (
        CacheSnapshot,
        GroupSnapshot,
        ModuleSnapshot,
        ResidentSnapshot,
    )
    from .._core.metrics.stats import CacheStats, EntryInfo, ResidentBytes


@frozen(kw_only=True, eq=False, repr=False)
class _Base:
    """The counters of a cache at the last restart."""

    hits: int = 0
    seat_hits: int = 0
    misses: int = 0
    blocks: int = 0
    calls: int = 0
    evictions: Mapping[Reason, int] = Factory(dict)
    log_lost: int = 0
    log_failures: int = 0
    context_lost: int = 0
    snapshots_lost: int = 0
    output_dropped: int = 0
    values_dropped: int = 0
    promotions: int = 0
    throttled: Mapping[CpuBudget, tuple[float, int]] = Factory(dict)


@final
class Statistics:
    """Counters since the last restart, gauges of this moment, and totals for the log."""

    def __init__(self, pool: Pool, groups: Mapping[str, GroupState], promoter: Promoter) -> None:
        self._pool = pool
        self._promoter = promoter
        self._groups = groups  # {name: group}, of those that are open
        self._base = _Base()

    def count(self) -> CacheStats:
        """Return counters since the last restart, and gauges."""
        from .._core.metrics.stats import CacheStats

        pool = self._pool
        policy = pool.policy
        instances, ledger = policy.instances, policy.instances.ledger
        modules = {Definition.of(it).module for it in pool.registry.functions.values()}
        base, uses = self._base, instances.snapshot()
        throttled = {
            budget.group: (seconds - before[0], waits - before[1])
            for budget, (seconds, waits) in self._throttled().items()
            for before in [base.throttled.get(budget, (0.0, 0))]
        }
        return CacheStats(
            hits=policy.hits - base.hits,
            seat_hits=policy.seat_hits - base.seat_hits,
            misses=policy.misses - base.misses,
            blocks=policy.blocks - base.blocks,
            calls=uses.calls,
            evictions={
                reason.value: number - base.evictions.get(reason, 0)
                for reason, number in instances.evictions.items()
            },
            functions=len(pool.registry.functions),
            groups=len(self._groups),
            entries=len(instances.entries),
            idle_instances=ledger.idle,
            running_instances=ledger.running,
            waiting=len(policy.waits.waiting),
            loaded_modules=ledger.loaded_modules,
            total_size=ledger.total_size,
            max_size=policy.config.max_size,
            running_size=ledger.running_size,
            max_running_size=policy.config.max_running_size,
            scratch_size=pool.engine.scratch_size,
            results_size=pool.results.size,
            pending_results_size=pool.result_book.size,
            max_result_size=pool.config.max_result_size,
            code_size=ledger.used,
            max_code_size=policy.config.max_code_size,
            module_code_size=ledger.code_size,
            compiler_code_sizes={tier.value: size for tier, size in pool.engine.code_sizes.items()},
            stacks_size=ledger.stacks,
            address_space=ledger.address_space,
            max_address_space=policy.system.max_address_space(policy.config),
            mappings=ledger.mappings,
            max_mappings=policy.system.mappings,
            idle_stacks_size=max(0, pool.engine.open_instances - ledger.running)
            * ledger.stack_size,
            artifact_size=sum(module.size for module in modules),
            log_lost=pool.log.lost - base.log_lost,
            log_failures=pool.log.failures - base.log_failures,
            context_lost=pool.log.context_lost - base.context_lost,
            snapshots_lost=pool.log.snapshots_lost - base.snapshots_lost,
            output_dropped=pool.journal.output_dropped_lines - base.output_dropped,
            values_dropped=pool.journal.values_dropped - base.values_dropped,
            promotions=self._promoter.promotions - base.promotions,
            promotions_waiting=self._promoter.waiting,
            throttled_seconds={group: seconds for group, (seconds, _) in throttled.items()},
            throttled_waits={group: waits for group, (_, waits) in throttled.items()},
            uses=uses,
        )

    async def count_resident(self) -> ResidentBytes:
        """Return the bytes that are in memory at this moment.

        **Checkpoint:** always.
        **Cancellation:** nothing is left behind.
        """
        pool = self._pool
        instances, held = pool.policy.instances, pool.policy.waits.held
        running = [request.instance for request in held if request.instance is not None]
        modules = {CachedModule.of(instance.module) for instance in (*instances.lru, *running)}
        functions = {request.entry.function for request in held}
        modules |= {Definition.of(function).module for function in functions}
        return await pool.engine.count_resident(
            idle=_natives(instances.lru),
            running=_natives(running),
            modules=[one.loaded for one in modules if one.loaded is not None],
        )

    def restart(self) -> None:
        """Count from 0 from now on. The totals of the log are not affected."""
        pool = self._pool
        policy = pool.policy
        self._base = _Base(
            hits=policy.hits,
            seat_hits=policy.seat_hits,
            misses=policy.misses,
            blocks=policy.blocks,
            calls=self._count_calls(),
            evictions=dict(policy.instances.evictions),
            log_lost=pool.log.lost,
            log_failures=pool.log.failures,
            context_lost=pool.log.context_lost,
            snapshots_lost=pool.log.snapshots_lost,
            output_dropped=pool.journal.output_dropped_lines,
            values_dropped=pool.journal.values_dropped,
            promotions=self._promoter.promotions,
            throttled=self._throttled(),
        )
        policy.instances.begin_anew()

    def _throttled(self) -> dict[CpuBudget, tuple[float, int]]:
        """Return {CPU time of a group with a limit: seconds and number of the waits for it}."""
        budgets = [group.share.budget for group in self._groups.values()]
        now = self._pool.now()
        return {it: (it.waited(now), it.waits) for it in budgets if it is not None}

    def describe_entries(self) -> tuple[EntryInfo, ...]:
        """Return every function in every group that has instances or waiters."""
        from .._core.metrics.stats import EntryInfo

        infos = []
        for entry in self._pool.policy.instances.entries:
            key = entry.function.key
            rooms = sum(request.stage is Stage.ROOM for request in entry.claims)
            infos.append(
                EntryInfo(
                    function=key.name,
                    args=key.args,
                    generation=entry.function.generation,
                    group=entry.group.name,
                    idle=len(entry.idle),
                    running=entry.live - len(entry.idle),
                    waiting=len(entry.waiting) + rooms,
                    size=sum(instance.size for instance in entry.idle),
                    last_used=entry.last_used,
                    tiers=_tiers(entry),
                )
            )
        return tuple(infos)

    def look_inside(self) -> CacheSnapshot:
        """Return the inside of the cache at this moment."""
        from .._core.metrics.snapshot import CacheSnapshot, CompilesSnapshot, NativeSnapshot

        pool, instances = self._pool, self._pool.policy.instances
        pool.runner.settle()
        idle = list(instances.lru)
        held = [request.instance for request in pool.policy.waits.held]
        running = [instance for instance in held if instance is not None]
        modules = self._describe_modules([*idle, *running])
        return CacheSnapshot(
            closed=pool.closed,
            residents=(
                *(_describe_resident(instance, order) for order, instance in enumerate(idle)),
                *(_describe_resident(instance, None) for instance in running),
            ),
            groups=tuple(map(self._describe_group, self._groups.values())),
            modules=modules,
            loop=pool.runner.loop.describe(),
            threads=pool.runner.threads.describe(),
            reserved=tuple(sorted(map(str, pool.registry.reserved))),
            compiles=CompilesSnapshot(
                running=pool.engine.compile_slots.running,
                waiting=pool.engine.compile_slots.waiting,
            ),
            native=NativeSnapshot(
                instances=pool.engine.open_instances,
                modules=sum(module.loaded for module in modules),
                scratch_size=pool.engine.scratch_size,
                results_size=pool.results.size,
                pending_results_size=pool.result_book.size,
            ),
        )

    def _describe_group(self, group: GroupState) -> GroupSnapshot:
        from .._core.metrics.snapshot import GroupSnapshot

        policy, record = self._pool.policy, group.record
        tokens, capacity = group.capacity.count()
        return GroupSnapshot(
            name=record.name,
            closed=record.closed,
            shares=group.share.shares,
            virtual_time=group.share.virtual_time,
            capacity=capacity,
            tokens=tokens,
            tasks=len(group.capacity.owners),
            waiting_for_token=sum(what is record for what in policy.waits.waiting.values()),
            waiting_for_instance=sum(len(entry.waiting) for entry in record.entries),
            waiting_for_room=sum(request.entry.group is record for request in policy.room),
        )

    def _describe_modules(self, instances: Iterable[Instance]) -> tuple[ModuleSnapshot, ...]:
        """Describe the modules of registered functions, of waiting tasks and of `instances`."""
        from .._core.metrics.snapshot import ModuleSnapshot

        functions: dict[CachedModule, list[str]] = {}  # {module: registered functions}
        for key, function in self._pool.registry.functions.items():
            functions.setdefault(Definition.of(function).module, []).append(str(key))
        for instance in instances:
            functions.setdefault(CachedModule.of(instance.module), [])
        for entry in self._pool.policy.instances.entries:
            functions.setdefault(Definition.of(entry.function).module, [])
        return tuple(
            ModuleSnapshot(
                digest=module.digest,
                functions=tuple(functions[module]),
                artifact_size=module.size,
                code_size=module.record.code_size,
                loaded=module.loaded is not None,
                users=module.record.users,
                running=module.record.running,
            )
            for module in sorted(functions, key=lambda module: module.number)
        )

    def in_words(self) -> str:
        """Return the state in words and counts, for `repr`."""
        pool = self._pool
        policy, now = pool.policy, pool.policy.glance()
        return (
            f"{'closed' if pool.closed else 'open'}: {len(pool.registry.functions)} functions, "
            f"{len(self._groups)} groups, {now.idle} idle instances ({now.total_size} of "
            f"{policy.config.max_size} bytes), {now.running} running, "
            f"{now.waiting} waiting, "
            f"code {now.used} of {policy.config.max_code_size} bytes"
        )

    def totals(self) -> dict[str, int]:
        """Return the counters since the cache was opened, for the last event of the log."""
        policy = self._pool.policy
        return {
            "hits": policy.hits,
            "seat_hits": policy.seat_hits,
            "misses": policy.misses,
            "blocks": policy.blocks,
            "calls": self._count_calls(),
            "evictions": sum(policy.instances.evictions.values()),
        }

    def _count_calls(self) -> int:
        return self._base.calls + self._pool.policy.instances.count_calls()


def _natives(instances: Iterable[Instance]) -> list[GuestInstance]:
    """Return the native instances of those that have one."""
    return [BoundFunction.of(one).native for one in instances if one.bound is not None]


def _describe_resident(instance: Instance, order: int | None) -> ResidentSnapshot:
    from .._core.metrics.snapshot import ResidentSnapshot

    function = instance.entry.function
    return ResidentSnapshot(
        number=instance.number,
        function=function.key.name,
        args=function.key.args,
        generation=function.generation,
        group=instance.entry.group.name,
        state=instance.state.value,
        seat=instance.seat,
        size=instance.size,
        address_space=instance.address_space,
        mappings=instance.mappings,
        uses=instance.uses,
        last_used=instance.last_used if instance.rested else None,
        order=order,
    )


def _tiers(entry: Entry) -> dict[str, int]:
    modules = tuple(dict.fromkeys(entry.modules))
    if len(modules) == 1:
        counts = {modules[0]: entry.live}
    else:
        counts = {it: sum(one.entry is entry for one in it.instances) for it in modules}
    tiers = {CachedModule.of(it).artifact.tier.value: count for it, count in counts.items()}
    return {tier: count for tier, count in tiers.items() if count}
