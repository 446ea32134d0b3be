"""Leases and loads that failed, by function, with the last error of each."""

from __future__ import annotations

from collections import Counter

import polars as pl
from attrs import Factory, define

from ..reading.names import MAX_LETTERS, tally

Function = tuple[str, str]  # (name, argument types)


@define
class Failed:
    """Failures of one function in all groups."""

    leases: int = 0
    """Number of leases that ended with an instance that could not be used again."""
    loads: int = 0
    errors: Counter[str] = Factory(Counter)
    """{type of the error: count}, as far as the log says."""
    error: str | None = None
    """Type of the last error; None: the log does not say."""
    message: str | None = None
    """Its message, if it is in the log."""


@define(eq=False)
class Failures:
    """Failures of one cache."""

    by_function: dict[Function, Failed] = Factory(dict)

    def take(self, frame: pl.DataFrame) -> None:
        """Add events of one cache, in order."""
        failed = pl.col("event") == "wasmcache.failed"
        gave_up = (pl.col("error") == "Cancelled").fill_null(value=False)  # the caller did
        # Of a batch that goes on, an instance is replaced behind a row that fails.
        ended = (pl.col("reason") == "corrupted") & pl.col("replaced_by").is_null()
        rows = frame.filter((failed | ended) & ~gave_up)
        if not len(rows):
            return
        columns = ("function", "arg_types", "reason", "error", "error_message")
        for function, types, reason, error, message in rows.select(columns).iter_rows():
            one = self.by_function.setdefault((function, types), Failed())
            if reason is None:
                one.loads += 1
            else:
                one.leases += 1
            if error is not None:
                one.error = error[:MAX_LETTERS]
                tally(one.errors, error)
                one.message = None if message is None else message[:MAX_LETTERS]
