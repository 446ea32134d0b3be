"""From lines to events: frames of polars for adding up, dictionaries for going through one by one.

A block of well-formed lines is parsed by polars at once. If that fails, its lines are looked at
one by one, and those that are no events are left out and counted.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import polars as pl
from attrs import Factory, define, fields

from .._core.events import EVENTS, SCHEMA_VERSION
from .notes import Notes, count
from .schema import STAMP_TYPES, types_of

_POLARS: dict[type, pl.DataType] = {
    str: pl.String(),
    int: pl.Int64(),
    float: pl.Float64(),
    bool: pl.Boolean(),
}
# Long texts that nothing is worked out from.
_LEFT_OUT = {"message", "advice", "isolation_verdict", "artifact_bytes", "deadline_seconds"}
TYPES = {event.name: {**STAMP_TYPES, **types_of(event)} for event in EVENTS}
# Fields that came after the first logs were written; a log without them is fine.
OPTIONAL = {"deadline_seconds", "task", "blocked"}


def _column(kinds: tuple[type, ...]) -> pl.DataType:
    return next(_POLARS[kind] for kind in kinds if kind in _POLARS)


SCHEMA: dict[str, pl.DataType] = {
    "event": pl.String(),
    "schema": pl.Int64(),
    **{name: _column(kinds) for name, kinds in STAMP_TYPES.items()},
    **{
        name: _column(kinds)
        for event in EVENTS
        for name, kinds in types_of(event).items()
        if name not in _LEFT_OUT
    },
}


@define(eq=False)
class Parser:
    """Lines in, events out; what is not understood is counted."""

    events: int = 0
    damaged: int = 0
    unknown: Counter[str] = Factory(Counter)
    """{event of this schema that this version does not know: how many}."""
    other_schemas: Counter[str] = Factory(Counter)
    foreign: int = 0
    """JSON that mentions an event, but is none."""

    def frame(self, lines: list[bytes]) -> pl.DataFrame:
        """The events among `lines`, with all the columns of `SCHEMA`."""
        try:
            made = pl.read_ndjson(b"\n".join(lines), schema=SCHEMA)
            if self._is_clean(made):
                self.events += len(made)
                return made
        except pl.exceptions.PolarsError:
            pass
        events = self.records(lines)
        rows = {name: [event.get(name) for event in events] for name in SCHEMA}
        return pl.DataFrame(rows, schema=SCHEMA)

    def records(self, lines: Iterable[bytes]) -> list[dict[str, Any]]:
        """The events among `lines`, as dictionaries."""
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                self.damaged += 1
                continue
            if self._is_event(event):
                found.append(event)
        self.events += len(found)
        return found

    def _is_clean(self, frame: pl.DataFrame) -> bool:
        """Whether every row is an event of this schema, complete as to what all events have."""
        stamps = frame.select(
            pl.col("event").is_in(list(TYPES)).all(),
            (pl.col("schema") == SCHEMA_VERSION).fill_null(False).all().alias("version"),
            pl.all_horizontal(pl.col("cache", "seq", "at_seconds").is_not_null())
            .all()
            .alias("stamp"),
        )
        return len(frame) == 0 or (
            all(stamps.row(0)) and frame["at_seconds"].is_finite().all() and self._is_whole(frame)
        )

    def _is_whole(self, frame: pl.DataFrame) -> bool:
        """Whether no event lacks a field that it must have."""
        for name in frame["event"].unique():
            needed = [
                column
                for column, kinds in TYPES[name].items()
                if type(None) not in kinds and column in SCHEMA and column not in OPTIONAL
            ]
            rows = frame.filter(pl.col("event") == name).select(needed)
            if any(rows.null_count().row(0)):
                return False
        return True

    def _is_event(self, event: Any) -> bool:
        name = event.get("event") if isinstance(event, dict) else None
        if not (isinstance(name, str) and name.startswith("wasmcache.")):
            self.foreign += 1
            return False
        version = event.get("schema")
        if version != SCHEMA_VERSION or isinstance(version, bool):
            self.other_schemas[str(version)[:20]] += 1
            return False
        if name not in TYPES:
            self.unknown[name[:60]] += 1
            return False
        for field, kinds in TYPES[name].items():
            value = event.get(field)
            if isinstance(value, bool):
                fits = bool in kinds
            elif field in OPTIONAL and value is None:
                fits = True
            else:
                fits = isinstance(value, kinds) and _is_sane(value)
            if not fits:
                self.damaged += 1
                return False
            if value == math.inf:
                event[field] = None
        return event["at_seconds"] is not None

    def tell(self, notes: Notes) -> None:
        """What there is to say about what was not understood."""
        if self.damaged:
            lines = count(self.damaged, "damaged line")
            notes.problem(f"{lines}: not whole, or with values that no event has; left out")
        for version, number in self.other_schemas.items():
            notes.problem(
                f"{count(number, 'event')} of schema {version}: this tool reads schema "
                f"{SCHEMA_VERSION}; left out"
            )
        for name, number in self.unknown.items():
            notes.remark(f"{count(number, 'event')} {name}: not known to this version; left out")


def _is_sane(value: Any) -> bool:
    """Whether a number is one, and fits where events' numbers go."""
    return not isinstance(value, (int, float)) or value == math.inf or abs(value) < 2**63


assert all(field.name in SCHEMA or field.name in _LEFT_OUT for e in EVENTS for field in fields(e))
