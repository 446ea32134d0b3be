"""Finds the requests that took the longest, block by block: from their first wait to their end.

A request begins when it waits for a token of its group, or asks for an instance, and ends when its
lease does, or without one. Loads by `warm` and preparations by `register` are nobody's request.
"""

from __future__ import annotations

from typing import Final, final

import polars as pl
from attrs import Factory, define, field, frozen

from .trail import Entry, Trail
from .waiting import MAX_OPEN

# Requests that can be asked for, whose events `Trail` keeps.
MAX_SLOWEST: Final = 500
# Requests without an end that are named.
MAX_NAMED: Final = 100
_ASKED, _BLOCKED, _ABANDONED = (
    f"wasmcache.{name}" for name in ("requested", "blocked", "abandoned")
)
_ENDS: Final = ("wasmcache.recycled", _ABANDONED)
_ENTRY: Final = ("cache", "function", "arg_types", "group")
_COLUMNS: Final = (*_ENTRY, "event", "seq", "at_seconds", "request", "task", "blocked", "warm")


@final
@frozen
class Slow:
    """One of the slowest requests."""

    seconds: float
    entry: Entry
    request: int | None
    """Its number; None: it never had a token of its group."""
    seqs: tuple[int | None, int]
    """Numbers of the events with which its wait for a token began, and with which it ended."""

    @property
    def place(self) -> tuple[str, int]:
        """What tells it from others: its cache, and its number or that of its end."""
        return self.entry[0], -self.seqs[1] if self.request is None else self.request


@final
@define(eq=False)
class Slowest:
    """The slowest requests of a log, `number` of them."""

    number: int
    ended: int = 0
    """Number of requests that have ended."""
    _found: dict[tuple[str, int], Slow] = Factory(dict)
    _open: pl.DataFrame | None = field(default=None)
    # Requests that have not ended, and since when.
    _waits: pl.DataFrame | None = field(default=None)
    # The last wait for a token of each task.

    def take(self, frame: pl.DataFrame) -> None:
        """Add the events of a block."""
        kind, numbered = pl.col("event"), pl.col("request").is_not_null()
        rows = frame.select(_COLUMNS).filter(
            (kind == _ASKED) | ((kind == _BLOCKED) & ~numbered) | kind.is_in(_ENDS)
        )
        begun = self._begun(rows)
        ends = rows.filter(kind.is_in(_ENDS) & numbered)
        opened = begun.filter(numbered & ~pl.col("warm").fill_null(value=False))
        opened = opened.select(*_ENTRY, "request", "since", "waited")
        if self._open is not None:
            opened = pl.concat([self._open, opened])
        keys = ["cache", "request"]
        opened = opened.unique(keys, keep="last", maintain_order=True)
        ends = ends.select(*keys, "seq", "at_seconds")
        self._note(opened.join(ends, on=keys))
        self._note(begun.filter(~numbered))  # they gave up without a token
        self._open = opened.join(ends, on=keys, how="anti").tail(MAX_OPEN)

    def _begun(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the acquires that got a token, or gave up, with the beginnings of their waits."""
        kind, numbered = pl.col("event"), pl.col("request").is_not_null()
        rows = rows.filter((kind == _ASKED) | ~numbered)
        if self._waits is not None:
            rows = pl.concat([self._waits, rows])
        waits = (kind == _BLOCKED) & ~numbered
        self._waits = rows.filter(waits)
        self._waits = self._waits.unique(["cache", "task"], keep="last", maintain_order=True)
        self._waits = self._waits.tail(MAX_OPEN)

        def of_wait(name: str) -> pl.Expr:
            last = pl.when(waits).then(name).forward_fill().over("cache", "task")
            return pl.when(pl.col("blocked") | ~numbered).then(last)

        return rows.with_columns(
            since=pl.coalesce(of_wait("at_seconds"), "at_seconds"), waited=of_wait("seq")
        ).filter(~waits)

    def _note(self, rows: pl.DataFrame) -> None:
        """Keep the slowest of some requests that have ended."""
        self.ended += len(rows)
        seconds = pl.col("at_seconds") - pl.col("since")
        most = rows.with_columns(seconds=seconds).top_k(self.number, by="seconds")
        for *entry, request, seq, waited, spent in most.select(
            *_ENTRY, "request", "seq", "waited", "seconds"
        ).iter_rows():
            cache, function, types, group = entry
            slow = Slow(spent, (cache, function, types, group), request, (waited, seq))
            self._found[slow.place] = slow
        ranked = sorted(self._found.items(), key=lambda item: -item[1].seconds)
        self._found = dict(ranked[: self.number])

    @property
    def found(self) -> list[Slow]:
        """The slowest requests, the slowest one first."""
        return [*self._found.values()]

    @property
    def unended(self) -> tuple[int, list[tuple[str, int]]]:
        """How many requests have no end in the log, and the first of them: (cache, number)."""
        if self._open is None:
            return 0, []
        return len(self._open), self._open.select("cache", "request").head(MAX_NAMED).rows()

    def trail(self) -> Trail:
        """Return a trail of the slowest requests, for which the log is read again."""
        trail = Trail(())
        for slow in self.found:
            if slow.request is not None:
                trail.follow(slow.entry, slow.request)
            else:
                trail.choose(slow.entry, [seq for seq in slow.seqs if seq is not None])
        return trail
