"""Parses lines to events: frames of polars for sums, objects for going through one by one.

Polars parses a block of well-formed lines at once. If that fails, it parses the block in a few
pieces, and the lines of a piece that fails, too, are parsed one by one. So no line is parsed more
than three times, whatever its content; lines that are no events are left out and counted.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Any

import polars as pl
from attrs import Factory, define

from ..._core.events import SCHEMA_VERSION, Stamped
from .names import tally
from .notes import Notes, cite, count
from .records import (
    ABSURD,
    KINDS,
    OPTIONAL,
    fits,
    is_endless,
    learn_types,
    make_event,
    read_event,
    usual_values,
)
from .schema import STAMP_TYPES

# Fields that the report uses. Others may be missing.
USED = frozenset(
    """
    function arg_types group request reason uses warm blocked waits_for error hit max_size_bytes
    max_instance_size_bytes max_instances max_code_size_bytes idle_timeout_seconds log_uses hits
    misses blocks calls evictions count compile_seconds module_loaded load_seconds seat
    wait_seconds held_seconds age_seconds idle_seconds freed_bytes freed_code_bytes
    total_size_bytes code_size_bytes total_size_before_bytes code_size_before_bytes
    total_size_after_bytes code_size_after_bytes first_seq task capacity_tokens limit_bytes
    closed_size_bytes error_message concurrency for_group for_function for_arg_types replaced_by
    idle_timeout_policy min_idle_timeout_seconds max_idle_timeout_seconds
    warmed promoted seat_hits leases growths
    at_seq part parts
    waits waiting cpu_limit_cores
    """.split()
)
# Field of events that were logged without the context of their task, and of no others.
CONTEXT_LOST = "context_lost"
Types = dict[str, dict[str, tuple[type, ...]]]
# {event: {field: allowed types of its value}}
TYPES: Types = {name: kind.types for name, kind in KINDS.items()}
_USED_TYPES: Types = {
    name: {field: kinds for field, kinds in types.items() if field in USED | STAMP_TYPES.keys()}
    for name, types in TYPES.items()
}
_OWN = {
    name: {"event", "schema", "timestamp", CONTEXT_LOST, *fields}
    for name, fields in _USED_TYPES.items()
}
_NEEDED = {
    name: [
        field for field, kinds in types.items() if NoneType not in kinds and field not in OPTIONAL
    ]
    for name, types in _USED_TYPES.items()
}
# Fields of any event.
EVENT_FIELDS = frozenset(field for types in TYPES.values() for field in types)
# {event: fields of other events}, which a processor may have added to this one.
_OTHERS = {name: EVENT_FIELDS - types.keys() for name, types in TYPES.items()}
_POLARS: dict[type, pl.DataType] = {
    str: pl.String(),
    int: pl.Int64(),
    float: pl.Float64(),
    bool: pl.Boolean(),
}
SCHEMA: dict[str, pl.DataType] = {
    "event": pl.String(),
    "schema": pl.Int64(),
    "timestamp": pl.String(),
    CONTEXT_LOST: pl.Boolean(),
    **{
        field: next(_POLARS[kind] for kind in kinds if kind in _POLARS)
        for types in _USED_TYPES.values()
        for field, kinds in types.items()
    },
}
# `json.loads`, without its detection of the encoding.
_decode = json.JSONDecoder().decode
# Number of pieces of a block that contains other lines: a few such lines cost a few pieces.
PIECES = 16
# Number of lines for which a call of polars is not worth it.
FEW = 64


@define(eq=False)
class Parser:
    """Parses lines to events; counts lines that are none."""

    events: int = 0
    damaged: int = 0
    unknown: Counter[str] = Factory(Counter)
    """{event of this schema, unknown to this version: count}."""
    other_schemas: Counter[str] = Factory(Counter)
    foreign: int = 0
    """Number of JSON lines that mention an event, but are none."""
    parsed: int = 0
    """Number of lines parsed, each counted as often as it was: at most three times."""

    def frame(self, lines: list[bytes]) -> pl.DataFrame:
        """Return the events among `lines`, with all the columns of `SCHEMA`."""
        made = self._at_once(lines)
        if made is not None:
            return made
        length = max(FEW, -(-len(lines) // PIECES))
        pieces = [lines[start : start + length] for start in range(0, len(lines), length)]
        return pl.concat([self._piece(piece) for piece in pieces], rechunk=True)

    def _at_once(self, lines: list[bytes]) -> pl.DataFrame | None:
        """Parse all lines with polars; return None if not all are events."""
        self.parsed += len(lines)
        try:
            made = pl.read_ndjson(b"\n".join(lines), schema=SCHEMA)
        except pl.exceptions.PolarsError:
            return None
        if len(made) != len(lines) or not _is_clean(made):
            return None
        counts = made.group_by("event").agg(pl.all().count()).rows(named=True)
        if not all(_is_whole(count) for count in counts):
            return None
        self.events += len(made)
        return _without_others(made, counts)

    def _piece(self, lines: list[bytes]) -> pl.DataFrame:
        made = self._at_once(lines) if len(lines) > FEW else None
        if made is not None:
            return made
        events = self._parse(lines, _USED_TYPES)
        for event in events:
            if event.get("timestamp") is not None:
                event["timestamp"] = str(event["timestamp"])
            if type(event.get(CONTEXT_LOST)) is not bool:
                event[CONTEXT_LOST] = None
        # Fields that do not belong to the event may have any value.
        kept = [
            {name: event[name] for name in _OWN[event["event"]] if name in event}
            for event in events
        ]
        rows = {name: [event.get(name) for event in kept] for name in SCHEMA}
        return pl.DataFrame(rows, schema=SCHEMA)

    def records(self, lines: Iterable[bytes]) -> list[Stamped]:
        """Return the events among `lines`, parsed one by one."""
        found = []
        for fields in self._load(lines):
            try:
                event = read_event(fields)
                if event is None and self._is_event(fields, TYPES):
                    event = make_event(fields)
            except ValueError:  # an item of a list is none
                self.damaged += 1
                continue
            if event is not None:
                found.append(event)
        self.events += len(found)
        return found

    def dicts(self, lines: Iterable[bytes]) -> list[dict[str, Any]]:
        """Return the events among `lines` with all fields, also those that processors added.

        A field that has the name of another event's is left out: nothing may take it for that.
        """
        found = []
        for fields in self._load(lines):
            if usual_values(fields) is None:
                if not self._is_event(fields, TYPES):
                    continue
                learn_types(fields)
            others = _OTHERS[fields["event"]]
            if not others.isdisjoint(fields):
                fields = {name: it for name, it in fields.items() if name not in others}
            found.append(fields)
        self.events += len(found)
        return found

    def _load(self, lines: Iterable[bytes]) -> Iterator[Any]:
        for line in lines:
            self.parsed += 1
            try:
                fields = _decode(line.removeprefix(BOM_UTF8).decode())
            except (ValueError, RecursionError):
                self.damaged += 1
                continue
            if b"\\ud" in line or b"\\uD" in line:
                _mend_surrogates(fields)
            yield fields

    def _parse(self, lines: Iterable[bytes], types: Types) -> list[dict[str, Any]]:
        found = [fields for fields in self._load(lines) if self._is_event(fields, types)]
        self.events += len(found)
        return found

    def _is_event(self, event: Any, types: Types) -> bool:
        name = event.get("event") if isinstance(event, dict) else None
        if not (isinstance(name, str) and name.startswith("wasmcache.")):
            self.foreign += 1
            return False
        version = event.get("schema")
        if version != SCHEMA_VERSION or type(version) is not int:
            tally(self.other_schemas, str(version))
            return False
        if name not in types:
            tally(self.unknown, name)
            return False
        absent = KINDS[name].absent
        for field, kinds in types[name].items():
            value = event.get(field)
            if value is None and field in absent:
                event[field] = absent[field]
            elif is_endless(value, kinds):
                event[field] = None
            elif not fits(value, kinds):
                self.damaged += 1
                return False
        if event["seq"] < 1:
            self.damaged += 1
            return False
        return True

    def tell(self, notes: Notes) -> None:
        """Note lines that were left out."""
        if self.damaged:
            lines = count(self.damaged, "damaged line")
            notes.problem(f"{lines}: not whole, or with values that no event has; left out")
        for version, number in self.other_schemas.items():
            notes.problem(
                f"{count(number, 'event')} of schema {cite(version)}: this tool reads schema "
                f"{SCHEMA_VERSION}; left out"
            )
        for name, number in self.unknown.items():
            notes.remark(
                f"{count(number, 'event')} {cite(name)}: not known to this version; left out"
            )


def _is_clean(frame: pl.DataFrame) -> bool:
    """Whether every row is an event of this schema, with numbers that the report can use."""
    if not len(frame):
        return True
    seq, version = frame["seq"], frame["schema"]
    if not (
        frame["event"].is_in(list(TYPES)).fill_null(False).all()
        and (version == SCHEMA_VERSION).fill_null(False).all()
        and (seq > 0).fill_null(False).all()
    ):
        return False
    sane = frame.select(pl.selectors.float().abs().max() < ABSURD).row(0)
    return False not in sane


def _is_whole(counts: dict[str, Any]) -> bool:
    """Whether no event of a kind lacks a required field, by the number of values of each."""
    return all(counts[field] == counts["schema"] for field in _NEEDED[counts["event"]])


def _without_others(frame: pl.DataFrame, counts: list[dict[str, Any]]) -> pl.DataFrame:
    """Return the frame without the values of fields that do not belong to their event.

    Args:
        frame: events.
        counts: for each kind of event, the number of values of each field.
    """
    added: dict[str, list[str]] = {}  # {field: events that have it, though it is not theirs}
    for kind in counts:
        name = kind["event"]
        for field in SCHEMA.keys() - _OWN[name]:
            if kind[field]:
                added.setdefault(field, []).append(name)
    return frame.with_columns(
        pl.when(~pl.col("event").is_in(events)).then(field).alias(field)
        for field, events in added.items()
    )


def _mend_surrogates(event: object) -> None:
    """Replace lone surrogates, which JSON can contain and UTF-8 cannot."""
    if isinstance(event, dict):
        for field, value in event.items():
            if isinstance(value, str):
                event[field] = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            elif isinstance(value, list):
                for item in value:
                    _mend_surrogates(item)
