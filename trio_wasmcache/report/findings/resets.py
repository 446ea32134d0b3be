"""Functions whose instances were reset in vain, as they grow in nearly every lease."""

from __future__ import annotations

from ..reading.names import shown
from ..reading.notes import cite, count
from ..summary.summary import CacheSummary
from .finding import Finding, quoted, work_of


def resets_in_vain(cache: CacheSummary) -> Finding | None:
    """Return a finding if resets of a function were given up, and it is used."""
    work = work_of(cache)
    leases: dict[tuple[str, str], int] = {}
    for key, one in cache.sums.leases.by_key.items():
        leases[key[:2]] = leases.get(key[:2], 0) + one.hits + one.misses
    vain = {
        function: max(leases.get(function, 0), grown.leases)
        for function, grown in cache.sums.overgrown.items()
    }
    vain = {function: number for function, number in vain.items() if work.matters(number)}
    if not vain:
        return None
    worst = max(sorted(vain), key=lambda function: vain[function])
    grown = cache.sums.overgrown[worst]
    more = ""
    if len(vain) > 1:
        verb = "was" if len(vain) == 2 else "were"
        more = f", and so {verb} {count(len(vain) - 1, 'other function')}"
    text = (
        f"{cite(shown(*worst))} was reset in vain{more}: its instances had grown in "
        f"{grown.growths:,} of {count(grown.leases, 'lease')}, so every lease gets a new one, as "
        'under isolation="fresh"; a larger initial memory in the module may avoid the growth.'
    )
    paste = f'await cache.register({quoted(worst[0])}, ..., isolation="fresh", replace=True)'
    evidence = {
        "function": shown(*worst),
        "growths": grown.growths,
        "grown_leases": grown.leases,
        "leases": leases.get(worst),
        "functions": len(vain),
    }
    return Finding("resets_in_vain", text, paste, work.part(sum(vain.values())), evidence)
