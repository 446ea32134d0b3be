"""Guests that fail, and a log that loses events."""

from __future__ import annotations

import math
import shlex

from ..reading.names import MAX_LETTERS, OTHERS, shown
from ..reading.notes import cite, count
from ..reading.units import rate
from ..summary.failures import Failed
from ..summary.summary import CacheSummary
from .finding import LEAST_COUNT, LOG, Finding, work_of

# {error: limit of `CacheConfig` that raises it}.
RAISED_BY = {
    "FuelExhaustedError": "total_fuel",
    "MemoryLimitError": "memory_limit",
    "StackOverflowError": "stack_size",
    "CodeMemoryError": "max_code_size",
}
# A function that fails this often is worth a sentence, however seldom it is used.
MOST_FAIL = 0.5
# Characters of a message that are shown.
MAX_SAID = 300
# Number of kinds of errors that are named.
MOST_ERRORS = 3
# Number of lost contexts, as a part of all events, that is not worth a sentence.
LEAST_CONTEXTS = 0.01


def guests_fail(cache: CacheSummary) -> Finding | None:
    """Return a finding about the function that fails most often."""
    work, leases = work_of(cache), _leases_by_function(cache)
    often = {
        function: failed
        for function, failed in cache.failures.by_function.items()
        if work.matters(number := failed.leases + failed.loads)
        or (number >= LEAST_COUNT and number >= MOST_FAIL * leases.get(function, math.inf))
    }
    if not often:
        return None
    worst = max(often, key=lambda one: often[one].leases + often[one].loads)
    failed = often[worst]
    name = shown(*worst)
    parts = []
    if failed.leases:
        of = leases.get(worst, 0)
        lost = count(failed.leases, "lease") if not of else f"{failed.leases:,} of {of:,} leases"
        parts.append(f"{lost} ended with a failed call")
    if failed.loads:
        parts.append(f"{count(failed.loads, 'load')} failed")
    errors = ", ".join(
        f"{cite(error)} {number:,}" for error, number in failed.errors.most_common(MOST_ERRORS)
    )
    last = ""
    if failed.error is not None:
        said = f": {_words(failed.message)}" if failed.message else ""
        last = f"; the error was {cite(failed.error)}{said}"
        if len(failed.errors) > 1:
            last = f" ({errors}); the last error was {cite(failed.error)}{said}"
    more = ""
    if len(often) > 1:
        more = f", and so do{'es' * (len(often) == 2)} {count(len(often) - 1, 'other function')}"
    limit = RAISED_BY.get(failed.error or "")
    raised = "" if limit is None else f" ({limit} sets its limit)"
    text = f"{cite(name)} fails{more}: {' and '.join(parts)}{last}{raised}."
    where = " ".join(f"--where {shlex.quote(one)}" for one in _where(worst, failed))
    paste = f"python -m trio_wasmcache report {LOG} {where}"
    evidence = {
        "function": name,
        "failed_leases": failed.leases,
        "failed_loads": failed.loads,
        "leases": leases.get(worst),
        "errors": dict(failed.errors),
        "error": failed.error,
        "error_message": failed.message,
        "functions": len(often),
    }
    number = sum(one.leases + one.loads for one in often.values())
    return Finding("guests_fail", text, paste, work.part(number), evidence)


def _words(message: str) -> str:
    """Return a message on one line: the reason, and the last words of the guest."""
    return cite(" ".join(message.split()), MAX_SAID).rstrip(".")


def _where(function: tuple[str, str], failed: Failed) -> list[str]:
    """Return the conditions that show the failures: the function, and its most frequent error.

    A log of an older cache does not have errors; and a terminal shows printable text only.
    """
    errors = [error for error, _ in failed.errors.most_common() if error != OTHERS[0]]
    whole = [
        it
        for it in (f"function={function[0]}", *(f"error={error}" for error in errors))
        if it.isprintable() and len(it) < MAX_LETTERS
    ]
    named = [it for it in whole if it.startswith("function=")]
    named += [it for it in whole if it.startswith("error=")][:1]
    if errors and named:
        return named
    event = "reason=corrupted" if failed.leases else "event=wasmcache.failed"
    return [*named, event]


def _leases_by_function(cache: CacheSummary) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for key, leases in cache.sums.leases.by_key.items():
        found[key[:2]] = found.get(key[:2], 0) + leases.hits + leases.misses
    return found


def log_loses(cache: CacheSummary) -> Finding | None:
    """Return a finding if the cache dropped events, or many contexts, as the sink was too slow."""
    kept, lost = sum(cache.sums.kinds.values()), cache.order.lost
    contexts = cache.sums.context_lost
    if not lost and contexts <= LEAST_CONTEXTS * kept:
        return None
    what = (
        f"{lost:,} of {count(kept + lost, 'event')}, so all figures here are too low"
        if lost
        else f"the context of {contexts:,} of {count(kept, 'event')}"
    )
    part = lost / (kept + lost) if lost else contexts / kept
    text = f"The log lost {what}: its sink is slower than the cache ({rate(part)} is missing)."
    # The recipe is in the log tool's README.
    paste = (
        "CacheConfig(log_uses=False)"
        if cache.log_uses
        else 'open_cache(config, logger=...)  # "Written to files, with rotation" has a fast sink'
    )
    evidence = {"lost": lost, "context_lost": contexts, "events": kept}
    return Finding("log_loses", text, paste, part, evidence)
