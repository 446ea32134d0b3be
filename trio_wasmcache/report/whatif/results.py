"""The result of a run under other limits: a row of the table that `whatif` shows."""

from __future__ import annotations

import math

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
