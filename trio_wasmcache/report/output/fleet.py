"""All caches of a log together, from their documents: sums, and those that do worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ..reading.documents import Document
from ..summary.summary import OTHER, REASONS

WORST = 3
"""Number of caches that are named for each kind of trouble."""
# Labels that are listed; each has at most 100 characters, if a cache has written it.
MAX_LABELS = 100


def fleet(caches: Sequence[Document], others: Document | None) -> Document | None:
    """Return the sums over all caches; None: there is only one.

    Args:
        caches: the documents of the caches that are summed up by themselves.
        others: the document of those that are only counted together, or None.
    """
    if len(caches) + (0 if others is None else others["caches"]) < 2:
        return None
    every = [*caches, *([] if others is None else [others])]
    used = [_uses(cache) for cache in every]
    hits, misses, blocks, acquires = (sum(column) for column in zip(*used, strict=True))
    labels = Counter(cache["label"] for cache in caches if cache["label"])
    return {
        "caches": len(caches) + (0 if others is None else others["caches"]),
        "more": others is not None and others["more"],
        "labels": dict(labels.most_common(MAX_LABELS)),
        "events": sum(sum(cache["events"].values()) for cache in every),
        "lost": sum(_lost(cache) for cache in every),
        "leases": {
            "acquires": acquires,
            "hits": hits,
            "seat_hits": sum(cache["leases"]["seat_hits"] for cache in every),
            "misses": misses,
            "blocks": blocks,
            "hit_rate": hits / (hits + misses) if hits + misses else None,
            "miss_rate": misses / (hits + misses) if hits + misses else None,
            "block_rate": blocks / acquires if acquires else None,
        },
        "loads": {
            "count": sum(cache["loads"]["count"] for cache in every),
            "total": sum(cache["loads"]["total"] for cache in every),
            "failed": sum(cache["loads"]["failed"] for cache in every),
        },
        "evictions": _evictions(every),
        "never_reused": sum(cache["never_reused"] for cache in caches),
        "reloads": {
            "count": sum(cache["reloads"]["count"] for cache in caches),
            "seconds": sum(cache["reloads"]["seconds"] for cache in caches),
            "by_reason": _by_reason([cache["reloads"]["by_reason"] for cache in caches]),
        },
        "thrash": {
            "within_seconds": caches[0]["thrash"]["within_seconds"] if caches else None,
            "within_idle_seconds": _longest([cache["thrash"] for cache in caches]),
            "count": sum(cache["thrash"]["count"] for cache in caches),
            "load_seconds": sum(cache["thrash"]["load_seconds"] for cache in caches),
        },
        "worst": {
            "misses": _worst(caches, lambda cache: _uses(cache)[1], _misses),
            "thrash": _worst(caches, lambda cache: cache["thrash"]["count"], _thrash),
        },
    }


def _longest(thrash: Sequence[Document]) -> float | None:
    """Return the longest time in which a load after an eviction for time is thrash."""
    times = [one["within_idle_seconds"] for one in thrash]
    return None if None in times else max(times, default=None)


def _uses(cache: Document) -> tuple[int, int, int, int]:
    """Return hits, misses, blocks and acquires; without log_uses, as the cache itself counted."""
    leases, closed = cache["leases"], cache.get("closed")
    if closed and not leases["hits"] + leases["misses"]:
        granted = closed["hits"] + closed["misses"]
        return closed["hits"], closed["misses"], closed["blocks"], granted
    return leases["hits"], leases["misses"], leases["blocks"], leases["acquires"]


def _lost(cache: Document) -> int:
    lost: int = cache["sequence"]["lost"] if "sequence" in cache else cache["lost"]
    return lost


def _evictions(caches: Sequence[Document]) -> Document:
    return {
        "count": sum(cache["evictions"]["count"] for cache in caches),
        "by_reason": _by_reason([cache["evictions"]["by_reason"] for cache in caches]),
    }


def _by_reason(parts: Sequence[Document]) -> Document:
    """Return {reason: sums of its numbers}, in the order in which reports list reasons."""
    found: dict[str, dict[str, float]] = {}
    for reason in (*REASONS, OTHER):
        for part in parts:
            for name, number in part.get(reason, {}).items():
                sums = found.setdefault(reason, {})
                sums[name] = sums.get(name, 0) + number
    return found


def _worst(
    caches: Sequence[Document],
    trouble: Callable[[Document], int],
    describe: Callable[[Document], Document],
) -> list[Document]:
    """Return the caches with the most trouble, none without any."""
    sorted_ones = sorted(caches, key=lambda cache: -trouble(cache))
    return [
        {"cache": cache["cache"], "label": cache["label"], **describe(cache)}
        for cache in sorted_ones[:WORST]
        if trouble(cache)
    ]


def _misses(cache: Document) -> Document:
    hits, misses, _, _ = _uses(cache)
    return {"misses": misses, "hits": hits, "miss_rate": misses / (hits + misses)}


def _thrash(cache: Document) -> Document:
    thrash = cache["thrash"]
    return {"count": thrash["count"], "load_seconds": thrash["load_seconds"]}
