"""Leases and loads that failed, by function, with the last error of each."""

from __future__ import annotations

from collections import Counter

import polars as pl
from attrs import Factory, define

from ..reading.names import MAX_LETTERS, Key, tally

# Characters of a message that are kept: a guest's last words come behind the reason.
MAX_MESSAGE = 1000
# Ends of leases that wait for their evictions.
MAX_OPEN = 1000
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

    def fail(self, error: str, message: str | None) -> None:
        """Count an error, the last one as yet."""
        self.error = error[:MAX_LETTERS]
        tally(self.errors, error)
        self.message = None if message is None else message[:MAX_MESSAGE]


@define(eq=False)
class Failures:
    """Failures of one cache."""

    by_function: dict[Function, Failed] = Factory(dict)
    _words: dict[Key, tuple[str | None, str | None]] = Factory(dict)
    # {key: error and message of a lease that has ended, whose eviction may follow}

    def take(self, frame: pl.DataFrame) -> None:
        """Add events of one cache, in order."""
        failed = pl.col("event") == "wasmcache.failed"
        gave_up = (pl.col("error") == "Cancelled").fill_null(value=False)  # the caller did
        # Of a batch that goes on, an instance is replaced behind a row that fails.
        ended = (pl.col("reason") == "corrupted") & pl.col("replaced_by").is_null()
        # The end of the lease has the guest's words, and the eviction that follows has none.
        said = pl.col("error_message").is_not_null() & ~failed
        rows = frame.filter((failed | ended | said) & ~gave_up)
        if not len(rows):
            return
        columns = ("event", "function", "arg_types", "group", "error", "error_message")
        for event, function, types, group, error, message in rows.select(columns).iter_rows():
            where = function, types, group
            if event == "wasmcache.recycled":
                self._words[where] = error, message
                continue
            one = self.by_function.setdefault((function, types), Failed())
            if event == "wasmcache.failed":
                one.loads += 1
            else:
                one.leases += 1
                words = self._words.pop(where, (None, None))
                message = words[1] if words[0] == error else None
            if error is not None:
                one.fail(error, message)
        while len(self._words) > MAX_OPEN:
            del self._words[next(iter(self._words))]
