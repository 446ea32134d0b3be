"""What a cache tells about itself. Reading changes nothing, save where it begins anew."""

from __future__ import annotations

from ._core.records import Stage
from ._core.stats import CacheStats, EntryInfo, ResidentBytes
from ._registry import ModuleSlot
from ._shell import Base, Shell


def count(shell: Shell, groups: int) -> CacheStats:
    """Counters and gauges of this moment."""
    policy = shell.policy
    residents, ledger = policy.residents, policy.residents.ledger
    slots: set[ModuleSlot] = {record.module.payload for record in shell.registry.functions.values()}
    base, uses = shell.base, residents.snapshot()
    return CacheStats(
        hits=policy.hits - base.hits,
        misses=policy.misses - base.misses,
        blocks=policy.blocks - base.blocks,
        calls=uses.calls,
        evictions={
            reason.value: number - base.evictions.get(reason, 0)
            for reason, number in residents.evictions.items()
        },
        functions=len(shell.registry.functions),
        groups=groups,
        entries=len(residents.entries),
        idle_instances=ledger.idle,
        running_instances=ledger.running,
        waiting=len(policy.waits.waiting),
        loaded_modules=ledger.loaded_modules,
        total_size=ledger.total_size,
        max_size=policy.config.max_size,
        running_size=ledger.running_size,
        max_running_size=policy.config.max_running_size,
        scratch_size=shell.engine.scratch_size,
        results_size=shell.results.size,
        code_size=ledger.used,
        max_code_size=policy.config.max_code_size,
        module_code_size=ledger.code_size,
        stacks_size=ledger.stacks,
        idle_stacks_size=max(0, shell.engine.open_instances - ledger.running) * ledger.stack_size,
        artifact_size=sum(slot.artifact.size for slot in slots),
        log_lost=shell.log.lost - base.log_lost,
        log_failures=shell.log.failures - base.log_failures,
        uses=uses,
    )


async def count_resident(shell: Shell) -> ResidentBytes:
    """What is in memory at this moment.

    **Checkpoint:** always.
    **Cancellation:** nothing is left behind.
    """
    residents, held = shell.policy.residents, shell.policy.waits.held
    running = [request.instance.payload for request in held if request.instance is not None]
    modules = {instance.entry.function.module for instance in residents.lru}
    modules |= {request.entry.function.module for request in held}
    return await shell.engine.count_resident(
        idle=[one.payload for one in residents.lru if one.payload is not None],
        running=[native for native in running if native is not None],
        modules=[one.payload.loaded for one in modules if one.payload.loaded is not None],
    )


def begin_anew(shell: Shell) -> None:
    """From now on, all that is counted is counted from 0, but for what the log tells in the end."""
    policy = shell.policy
    shell.base = Base(
        hits=policy.hits,
        misses=policy.misses,
        blocks=policy.blocks,
        calls=shell.count_calls(),
        evictions=dict(policy.residents.evictions),
        log_lost=shell.log.lost,
        log_failures=shell.log.failures,
    )
    policy.residents.begin_anew()


def describe_entries(shell: Shell) -> tuple[EntryInfo, ...]:
    """Every function in every group that has instances or waiters."""
    infos = []
    for entry in shell.policy.residents.entries:
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
            )
        )
    return tuple(infos)


def in_words(shell: Shell, groups: int) -> str:
    """The state for a repr."""
    policy, ledger = shell.policy, shell.policy.residents.ledger
    return (
        f"{'closed' if shell.closed else 'open'}: {len(shell.registry.functions)} functions, "
        f"{groups} groups, {ledger.idle} idle instances ({ledger.total_size} of "
        f"{policy.config.max_size} bytes), {ledger.running} running, "
        f"{len(policy.waits.waiting)} waiting, "
        f"code {ledger.used} of {policy.config.max_code_size} bytes"
    )
