"""A finding: a sentence on which a person can act, with its evidence and a line to paste."""

from __future__ import annotations

from attrs import frozen

from ..._core.text import written
from ..reading.documents import Document
from ..summary.summary import CacheSummary

# A part of the leases, or of the loads if leases are not in the log, that is not worth a sentence.
LEAST_PART, LEAST_PART_OF_LOADS = 0.02, 0.2
# Likewise a number of occurrences.
LEAST_COUNT = 5
MAIN = "main"
# Characters of a name in source code, which are those of a line to paste for the most part.
MAX_QUOTED = 500
LOG = "LOG..."
"""Stands for the files of the log in a command."""


@frozen
class Finding:
    """One thing that is wrong with a cache, its limits, its functions or its log."""

    kind: str
    sentence: str
    paste: str
    """A line of Python, or a command."""
    part: float
    """Which part (0 to 1) of the cache's work it affects; the largest is the worst."""
    evidence: Document
    """Numbers on which the sentence is based."""


@frozen
class Work:
    """What a cache did, of which a finding concerns a part."""

    count: int
    noun: str
    least_part: float

    def part(self, number: int) -> float:
        """Return the part (0 to 1) that this number is."""
        return min(1.0, number / self.count) if self.count else 0.0

    def matters(self, number: int) -> bool:
        """Whether this number of occurrences is worth a sentence."""
        return number >= LEAST_COUNT and self.part(number) >= self.least_part


def quoted(name: str) -> str:
    """Return a name in source code; ``...`` for one that is too long to be pasted."""
    text = written(name)
    return text if len(text) <= MAX_QUOTED else "..."


def of_group(group: str, limit: str, written: str) -> str:
    """Return the line that opens a group with a limit."""
    if group == MAIN:
        return f"CacheConfig(main_{limit}={written})"
    return f"cache.scheduling_group({quoted(group)}, ..., {limit}={written})"


def work_of(cache: CacheSummary) -> Work:
    """Return the leases of a cache; if they are not known, its loads."""
    leases = cache.sums.leases
    granted = leases.hits + leases.misses
    if not granted and cache.closed is not None:
        granted = cache.closed["hits"] + cache.closed["misses"]
    if granted:
        return Work(granted, "lease", LEAST_PART)
    return Work(cache.sums.loads.count, "load", LEAST_PART_OF_LOADS)
