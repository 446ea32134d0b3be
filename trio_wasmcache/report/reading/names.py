"""Who is told apart: as many functions and groups as memory allows, and the others together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import polars as pl
from attrs import Factory, define

# (function, argument types, group)
Key = tuple[str, str, str]
KEY = ("function", "arg_types", "group")
# In all caches together, at about 1 KB each: a service that opens a group for each connection has
# no end of them.
MAX_KEYS = 20_000
# Letters of a name that count as one key: the names that applications give are shorter.
KEY_LETTERS = 500
# Letters of a word that are kept.
MAX_LETTERS = 200
# Errors, kinds of waits, schemas: there are a few of each.
MAX_WORDS = 30
OTHERS: Key = ("(others)", "", "(others)")


@define(eq=False)
class Space:
    """What is left for keys, of what all caches share."""

    keys: int = Factory(lambda: MAX_KEYS)

    def take(self, keys: Sequence[tuple[str | None, ...]]) -> int:
        """Take the space for the first of these keys; returns how many found some."""
        for number, key in enumerate(keys):
            needed = 1 + sum(len(part or "") for part in key) // KEY_LETTERS
            if needed > self.keys:
                return number
            self.keys -= needed
        return len(keys)


@define(eq=False)
class Names:
    """Those of one cache, as many as find space."""

    space: Space = Factory(Space)
    others: bool = False
    """Whether there were more."""
    _known: set[tuple[str | None, ...]] = Factory(set)

    def limit(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rename the keys that came too late to `OTHERS`."""
        fresh = frame.select(KEY).unique(maintain_order=True).rows()
        fresh = [key for key in fresh if key not in self._known]
        kept = self.space.take(fresh)
        self._known.update(fresh[:kept])
        late = fresh[kept:]
        if not late:
            return frame
        self.others = True
        schema = dict.fromkeys(KEY, pl.String())
        marks = pl.DataFrame(late, schema=schema, orient="row").with_columns(late=True)
        marked = frame.join(marks, on=KEY, how="left", nulls_equal=True, maintain_order="left")
        return marked.with_columns(
            pl.when("late", pl.col(name).is_not_null())
            .then(pl.lit(other))
            .otherwise(name)
            .alias(name)
            for name, other in zip(KEY, OTHERS, strict=True)
        ).drop("late")


def shown(function: str, types: str) -> str:
    """``add(i64, i64)``."""
    return function if (function, types) == OTHERS[:2] else f"{function}({types})"


def tally(counter: Counter[str], word: str, number: int = 1) -> None:
    """Count a word; those that come after `MAX_WORDS` different ones are counted together."""
    word = word[:MAX_LETTERS]
    counter[word if word in counter or len(counter) < MAX_WORDS else OTHERS[0]] += number
