"""Whose need evictions served: pairs of the one that lost an instance and the one that got room."""

from __future__ import annotations

import polars as pl
from attrs import Factory, define

from ..reading.names import MAX_LETTERS, OTHERS, shown

# Number of different pairs of a cache; further ones are counted together.
MAX_PAIRS = 5000

Pair = tuple[str, str]
"""Who lost an instance, and whose need it served."""


@define
class Served:
    """Evictions that served one need."""

    count: int = 0
    freed_bytes: int = 0


@define(eq=False)
class Needs:
    """Evictions of one cache that served somebody's need, by group and by function."""

    by_group: dict[Pair, Served] = Factory(dict)
    by_function: dict[Pair, Served] = Factory(dict)

    def take(self, evicted: pl.DataFrame) -> None:
        """Add evictions; those that served nobody's need, as for the idle timeout, are left out."""
        served = evicted.filter(pl.col("for_group").is_not_null())
        if not len(served):
            return
        names = ("group", "for_group", "function", "arg_types", "for_function", "for_arg_types")
        rows = served.group_by(*names, maintain_order=True).agg(
            pl.len(), pl.col("freed_bytes").sum()
        )
        for (
            group,
            to_group,
            function,
            types,
            to_function,
            to_types,
            number,
            freed,
        ) in rows.iter_rows():
            self._add(self.by_group, (group, to_group), number, freed)
            got = OTHERS[0] if to_function is None else shown(to_function, to_types or "")
            self._add(self.by_function, (shown(function, types), got), number, freed)

    def _add(self, book: dict[Pair, Served], pair: Pair, number: int, freed: int) -> None:
        pair = pair[0][:MAX_LETTERS], pair[1][:MAX_LETTERS]
        if pair not in book and len(book) >= MAX_PAIRS:
            pair = OTHERS[0], OTHERS[0]
        served = book.setdefault(pair, Served())
        served.count += number
        served.freed_bytes += freed
