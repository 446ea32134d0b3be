"""Limits the names that are distinguished: functions and groups up to a number, the rest as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import polars as pl
from attrs import Factory, define

# (function, argument types, group)
Key = tuple[str, str, str]
KEY = ("function", "arg_types", "group")
# Number of keys in all caches together, at about 1 KB each: a service that opens a group for each
# connection has any number of them.
MAX_KEYS = 20_000
# Characters of a name that count as one key: names in applications are shorter.
KEY_LETTERS = 500
# Characters of a word that are kept.
MAX_LETTERS = 200
# Number of different errors, kinds of waits, or schemas: normally there are a few of each.
MAX_WORDS = 30
OTHERS: Key = ("(others)", "", "(others)")


@define(eq=False)
class Space:
    """The number of keys that can still be added, shared by all caches."""

    """What is left for keys, of what all caches share."""

    keys: int = Factory(lambda: MAX_KEYS)

    def take(self, keys: Sequence[tuple[str | None, ...]]) -> int:
        """Take the budget of the first keys; return the number of keys for which it sufficed."""
        for number, key in enumerate(keys):
            needed = 1 + sum(len(part or "") for part in key) // KEY_LETTERS
            if needed > self.keys:
                return number
            self.keys -= needed
        return len(keys)


@define(eq=False)
class Names:
    """The keys of one cache, as far as the budget allows."""

    space: Space = Factory(Space)
    others: bool = False
    """Whether some keys were replaced by `OTHERS`."""
    _known: set[tuple[str | None, ...]] = Factory(set)

    def limit(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Replace the keys beyond the budget by `OTHERS`."""
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
    """Return a function's name and types: ``add(i64, i64)``."""
    return function if (function, types) == OTHERS[:2] else f"{function}({types})"


def tally(counter: Counter[str], word: str, number: int = 1) -> None:
    """Count a word; words after the first `MAX_WORDS` different ones are counted together."""
    word = word[:MAX_LETTERS]
    counter[word if word in counter or len(counter) < MAX_WORDS else OTHERS[0]] += number
