"""The result of a run under other limits: a row of the table that `whatif` shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from attrs import Factory, define

from ..reading.documents import Document
from ..replay.books import Limits


@define
class Result:
    """The counts and times of one run."""

    limits: Limits
    hits: int = 0
    misses: int = 0
    blocks: int = 0
    refused: int = 0
    gave_up: int = 0
    load_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Time until leases were granted, including loads: the sum over all leases."""
    evictions: dict[str, int] = Factory(dict)
    peak_size: int = 0
    peak_code: int = 0

    @classmethod
    def together(cls, results: Sequence[Result]) -> Result:
        """Return the sums of several caches under the same limits; of peaks, the highest."""
        evictions = Counter[str]()
        for result in results:
            evictions.update(result.evictions)
        summed = ("hits", "misses", "blocks", "refused", "gave_up", "load_seconds", "wait_seconds")
        return cls(
            results[0].limits,
            **{name: sum(getattr(it, name) for it in results) for name in summed},
            evictions=dict(evictions),
            peak_size=max(it.peak_size for it in results),
            peak_code=max(it.peak_code for it in results),
        )

    @property
    def hit_rate(self) -> float:
        """Hits per lease; 0.0 without any."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0

    def as_dict(self) -> Document:
        """Return the values for JSON; an infinite timeout is null."""
        limits = {name: None if it == math.inf else it for name, it in self.limits.items()}
        return {
            "limits": limits,
            "hit_rate": self.hit_rate,
            **{
                name: getattr(self, name)
                for name in (
                    *("hits", "misses", "blocks", "refused", "gave_up", "load_seconds"),
                    *("wait_seconds", "evictions", "peak_size", "peak_code"),
                )
            },
        }
