"""Acquires that wait for a token of their group, or for an instance of their function."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..reading.names import Key, shown
from ..reading.notes import cite, count
from ..reading.units import rate, seconds
from ..summary.summary import CacheSummary
from ..summary.waiting import Queue
from .finding import LEAST_COUNT, MAIN, Finding, of_group, quoted

# A part of the acquires of a group or an entry that may wait, as limits are meant to be reached now
# and then; and a part of all acquires that is not worth a sentence.
MAY_WAIT, LEAST_PART = 0.1, 0.02
# A limit of CPU time is raised tenfold at most, whatever its calls seem to need.
MOST_RAISED = 0.9


def waits_for_tokens(cache: CacheSummary) -> Finding | None:
    """Return a finding about the group whose acquires wait most often for a token."""
    waiting = cache.waiting
    everything = sum(waiting.acquires.values())
    often = {
        group: queue
        for group, queue in waiting.tokens.items()
        if _matters(queue, waiting.acquires.get(group, 0), everything)
    }
    if not often:
        return None
    group = max(often, key=lambda name: (often[name].waits, often[name].seconds))
    queue, acquires = often[group], waiting.acquires[group]
    capacity = waiting.capacities.get(group)
    of = "its tokens" if capacity is None else f"its {count(capacity, 'token')}"
    more = f", as did those of {count(len(often) - 1, 'other group')}" if len(often) > 1 else ""
    text = (
        f"Group {cite(group)} waits for tokens: {queue.waits:,} of {count(acquires, 'acquire')} "
        f"({rate(queue.waits / acquires)}) waited for {of}, {seconds(queue.seconds)} altogether, "
        f"up to {queue.longest:,} at the same time{more}."
    )
    advised = None if capacity is None else capacity + queue.longest
    written = "..." if advised is None else f"{advised}"
    paste = of_group(group, "capacity", written)
    evidence = {
        "group": group,
        "waits": queue.waits,
        "acquires": acquires,
        "wait_seconds": queue.seconds,
        "at_once": queue.longest,
        "groups": len(often),
        "now": capacity,
        "advised": advised,
    }
    part = _part(often, everything)
    return Finding("waits_for_tokens", text, paste, part, evidence)


def waits_for_instances(cache: CacheSummary) -> Finding | None:
    """Return a finding about the function for whose instances acquires wait most often."""
    leases = cache.sums.leases.by_key
    everything = sum(cache.waiting.acquires.values())
    often: dict[Key, Queue] = {}
    for key, queue in cache.waiting.instances.items():
        granted = leases[key].hits + leases[key].misses if key in leases else 0
        if _matters(queue, granted, everything):
            often[key] = queue
    if not often:
        return None
    key = max(often, key=lambda one: (often[one].waits, often[one].seconds))
    queue, granted = often[key], leases[key].hits + leases[key].misses
    function, types, group = key
    most = cache.waiting.concurrency.get((function, types), 1)
    text = (
        f"{cite(shown(function, types))} has too few instances in group {cite(group)}: "
        f"{queue.waits:,} of {count(granted, 'lease')} ({rate(min(1.0, queue.waits / granted))}) "
        f"waited for {'the only one' if most == 1 else f'one of {most}'}, "
        f"{seconds(queue.seconds)} altogether, up to {queue.longest:,} at the same time."
    )
    advised = most + queue.longest
    paste = f"await cache.register({quoted(function)}, ..., concurrency={advised}, replace=True)"
    evidence = {
        "function": shown(function, types),
        "group": group,
        "waits": queue.waits,
        "leases": granted,
        "wait_seconds": queue.seconds,
        "at_once": queue.longest,
        "now": most,
        "advised": advised,
    }
    part = _part(often, everything)
    return Finding("waits_for_instances", text, paste, part, evidence)


def throttled(cache: CacheSummary) -> Finding | None:
    """Return a finding about the group whose calls wait longest for its `cpu_limit`."""
    held: dict[str, float] = {}
    for key, leases in cache.sums.leases.by_key.items():
        held[key[2]] = held.get(key[2], 0.0) + leases.held_seconds
    span = cache.series.end

    def part(group: str) -> float:
        time = held.get(group) or span  # leases may not be in the log
        return min(1.0, often[group].seconds / time) if time else 1.0

    often = {
        group: one
        for group, one in cache.waiting.throttled.items()
        if one.waits >= LEAST_COUNT and one.seconds > 0
    }
    often = {group: one for group, one in often.items() if part(group) >= MAY_WAIT}
    if not often:
        return None
    group = max(often, key=lambda name: often[name].seconds)
    one, share, known = often[group], part(group), bool(held.get(group))
    of = "for which its leases were held" if known else "of the log"
    time = held[group] if known else span
    more = f", as do those of {count(len(often) - 1, 'other group')}" if len(often) > 1 else ""
    text = (
        f"Calls of group {cite(group)} wait for CPU time{more}: by its cpu_limit of "
        f"{one.cores:g} core{'s' * (one.cores != 1)}, {count(one.waits, 'wait')} took "
        f"{seconds(one.seconds)}, {rate(share)} of the {seconds(time)} {of}."
    )
    # The calls need the same CPU time without the waits.
    advised = float(f"{one.cores / (1 - min(share, MOST_RAISED)):.2g}")
    evidence = {
        "group": group,
        "waits": one.waits,
        "wait_seconds": one.seconds,
        "held_seconds": held.get(group),
        "at_once": one.at_once,
        "groups": len(often),
        "now": one.cores,
        "advised": advised,
    }
    paste = f"group.resize(cpu_limit={advised!r})"
    if group == MAIN:
        paste = of_group(group, "cpu_limit", f"{advised!r}")
    everything = sum(held.values()) or span
    waited = sum(each.seconds for each in often.values())
    whole = min(1.0, waited / everything) if everything else 1.0
    return Finding("throttled", text, paste, whole, evidence)


def _matters(queue: Queue, acquires: int, everything: int) -> bool:
    least = max(LEAST_COUNT, math.ceil(MAY_WAIT * acquires), math.ceil(LEAST_PART * everything))
    return queue.waits >= least and acquires > 0


def _part(queues: Mapping[Key, Queue] | Mapping[str, Queue], acquires: int) -> float:
    waits = sum(queue.waits for queue in queues.values())
    return min(1.0, waits / acquires) if acquires else 0.0
