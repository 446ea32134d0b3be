"""Groups whose need evicts what another group uses."""

from __future__ import annotations

import math

from ..reading.notes import cite, count
from ..reading.units import rate, seconds, soon
from ..summary.summary import CacheSummary
from ..tuning.advice import in_source
from ..tuning.search import round_up
from .finding import LEAST_COUNT, Finding, of_group

# A part of a group's leases that others may cost; and how much more than it costs them itself.
MAY_COST, MORE = 0.1, 2.0
PAGE = 65536


def one_against_another(cache: CacheSummary) -> Finding | None:
    """Return a finding about the group that loses most of its hits to the need of another.

    Each load of an instance that went for another group evicts something in its turn, so both lose
    about as many instances. One is against the other if that is a larger part of its leases.
    """
    work = _work_by_group(cache)

    def part(victim: str, culprit: str) -> float:
        against = cache.fates.against.get((victim, culprit))
        return 0.0 if against is None else min(1.0, against.thrashed / max(1, work.get(victim, 0)))

    parts = {
        (victim, culprit): part(victim, culprit)
        for (victim, culprit), against in cache.fates.against.items()
        if against.thrashed >= LEAST_COUNT
        and part(victim, culprit) >= max(MAY_COST, MORE * part(culprit, victim))
    }
    if not parts:
        return None
    victim, culprit = max(parts, key=lambda pair: parts[pair])
    against = cache.fates.against[victim, culprit]
    within = cache.fates.thrash_seconds
    text = (
        f"Group {cite(culprit)} evicts group {cite(victim)}: {against.evictions:,} of its "
        f"instances went for the need of {cite(culprit)}, and {against.thrashed:,} were loaded "
        f"again {soon(None if within == math.inf else within)}, in {seconds(against.seconds)}, "
        f"for {rate(parts[victim, culprit])} of its {count(work.get(victim, 0), 'lease')}."
    )
    size = _size_of(cache, victim)
    most = cache.limits.get("max_size_bytes")
    if most is not None and size > most // 2:  # others need something, too
        size = max(PAGE, most // 2 // PAGE * PAGE)
    evidence = {
        "group": victim,
        "culprit": culprit,
        "evictions": against.evictions,
        "loaded_again": against.thrashed,
        "load_seconds": against.seconds,
        "leases": work.get(victim, 0),
        "advised": size,
    }
    paste = of_group(victim, "reserved_size", in_source("reserved_size", size))
    return Finding("tenant_against_tenant", text, paste, parts[victim, culprit], evidence)


def _work_by_group(cache: CacheSummary) -> dict[str, int]:
    """Return {group: leases}, or loads if there are no leases in the log."""
    found: dict[str, int] = {}
    for key, leases in cache.sums.leases.by_key.items():
        found[key[2]] = found.get(key[2], 0) + leases.hits + leases.misses
    if not any(found.values()):
        for key, fate in cache.fates.by_key.items():
            found[key[2]] = found.get(key[2], 0) + fate.loads
    return found


def _size_of(cache: CacheSummary, group: str) -> int:
    """Return about what all functions of a group take, with an instance of each."""
    largest: dict[tuple[str, str], int] = {}
    for (_, key), gone in cache.sums.gone.items():
        if key[2] == group:
            largest[key[:2]] = max(largest.get(key[:2], 0), gone.largest_bytes)
    return round_up(sum(largest.values()))
