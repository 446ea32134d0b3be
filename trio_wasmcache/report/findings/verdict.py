"""The findings of a report, worst first, or the sentence that there is nothing to do."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial

from attrs import evolve

from ..reading.documents import Document
from ..reading.names import MAX_LETTERS
from ..reading.notes import cite, count
from ..reading.units import rate
from ..summary.summary import CacheSummary, Summary
from .failures import guests_fail, log_loses
from .finding import LOG, Finding, work_of
from .limits import CODE, COUNT, SIZE, TIMEOUT, evicts_too_early, group_too_small, never_kept
from .resets import resets_in_vain
from .tenants import one_against_another
from .waits import throttled, waits_for_instances, waits_for_tokens

# Number of findings that are shown; one who mends these reads the next log.
MOST = 5
# Number of files that are named in a command.
MOST_FILES = 3
COMMAND = "python -m "

# Each looks at one cache. In the order in which findings of the same weight are shown.
KINDS: dict[str, Callable[[CacheSummary], Finding | None]] = {
    "log_loses": log_loses,
    "guests_fail": guests_fail,
    "tenant_against_tenant": one_against_another,
    "too_small": partial(evicts_too_early, SIZE),
    "short_timeout": partial(evicts_too_early, TIMEOUT),
    "code_thrashes": partial(evicts_too_early, CODE),
    "too_few_instances": partial(evicts_too_early, COUNT),
    "group_too_small": group_too_small,
    "never_kept": never_kept,
    "resets_in_vain": resets_in_vain,
    "waits_for_tokens": waits_for_tokens,
    "waits_for_instances": waits_for_instances,
    "throttled": throttled,
}


def findings_of(summary: Summary, files: Sequence[str]) -> list[Document]:
    """Return the findings about all caches, the worst first, at most `MOST`."""
    found, several = [], len(summary.caches) > 1
    for cache in summary.caches.values():
        of_cache = [finding for kind in KINDS.values() if (finding := kind(cache)) is not None]
        if several:
            of_cache = [
                evolve(one, sentence=f"Cache {_named(cache)}: {one.sentence}") for one in of_cache
            ]
        found += [(cache, one) for one in of_cache]
    found.sort(key=lambda pair: -pair[1].part)  # stable
    return [
        {
            "kind": one.kind,
            "cache": cache.cache,
            "label": cache.label,
            "sentence": one.sentence,
            "paste": _with_files(one.paste, files, cache.cache if several else None),
            "part": one.part,
            "evidence": one.evidence,
        }
        for cache, one in found[:MOST]
    ]


def _named(cache: CacheSummary) -> str:
    """Return the name of a cache, with its label if it has one."""
    return f"{cite(cache.cache)} {cite(cache.label)}" if cache.label else cite(cache.cache)


def _with_files(paste: str, files: Sequence[str], cache: str | None) -> str:
    """Name the files in a command, and the cache if the log has several.

    A cache whose name can't be pasted is left out: then the command is about all of them.
    """
    if not paste.startswith(COMMAND):
        return paste
    log = " ".join(map(shlex.quote, files[:MOST_FILES])) + " ..." * (len(files) > MOST_FILES)
    if cache is not None and cache.isprintable() and len(cache) < MAX_LETTERS:
        log += f" --cache {shlex.quote(cache)}"
    return paste.replace(LOG, log, 1)


def nothing_to_do(summary: Summary) -> str:
    """Return the sentence of a report without findings."""
    caches = [*summary.caches.values()]
    leases = loads = hits = thrashed = 0
    for cache in caches:
        work = work_of(cache)
        thrashed += sum(fate.thrashed for fate in cache.fates.by_key.values())
        if work.noun == "load":
            loads += work.count
            continue
        leases += work.count
        own = cache.sums.leases
        hits += own.hits if own.hits + own.misses else (cache.closed or {}).get("hits", 0)
    parts = [f"{rate(hits / leases)} hits of {count(leases, 'lease')}"] if leases else []
    if loads:
        parts.append(f"{count(loads, 'load')} where leases are not in the log")
    parts.append(f"{count(thrashed, 'load')} soon after an eviction" if thrashed else "no thrash")
    several = f" in {count(len(caches), 'cache')}" if len(caches) > 1 else ""
    return f"Nothing to do{several}: {', '.join(parts)}."
