"""The facts that the cache tells: what any sink, and the log tool, can rely on."""

from __future__ import annotations

import json
import logging
import re
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from trio_wasmcache._core import events
from trio_wasmcache._core.event_kinds import EVENTS
from trio_wasmcache._core.events import SCHEMA_VERSION, Event, Evicted, Reason, Stamped
from trio_wasmcache._core.snapshot import LISTS, Item, SnapshotPart

# What logging.LogRecord sets itself, and what structlog and the stamp put beside the fields.
RESERVED = {
    *vars(logging.makeLogRecord({})),
    *("message", "asctime", "event", "level", "logger", "timestamp", "exception", "stack"),
}
STAMP = {"cache", "label", "seq", "at_seconds", "schema"}
KINDS = pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
SAMPLES: dict[Any, object] = {
    str: "text",
    int: 7,
    float: 0.5,
    bool: True,
    Reason: Reason.SIZE,
    int | None: None,
    float | None: None,
    str | None: None,
}


def sample(kind: type[Event]) -> Event:
    return kind(**samples(kind))


def samples(kind: type[Event] | type[Item]) -> dict[str, Any]:
    """A value for each field, and an item in each list."""
    hints = get_type_hints(kind)
    values = {}
    for name in kind.field_names:
        hint = hints[name]
        if get_origin(hint) is tuple:
            (item, _) = get_args(hint)
            values[name] = (item(**samples(item)),)
        else:
            values[name] = SAMPLES[hint]
    return values


def test_every_kind_of_event_is_listed_once() -> None:
    """No event is left out of `EVENTS`, and no two share a name."""

    def leaves(kind: type[Event]) -> set[type[Event]]:
        below = {leaf for child in kind.__subclasses__() for leaf in leaves(child)}
        return below or {kind}

    assert leaves(Event) == {*EVENTS}
    assert len({kind.name for kind in EVENTS}) == len(EVENTS)


@KINDS
def test_a_name_is_a_past_participle(kind: type[Event]) -> None:
    """`wasmcache.` and what was done, in lower case; or a noun, for what is no step."""
    assert re.fullmatch(
        r"wasmcache\.([a-z]+_)?([a-z]+ed|left|lost|overgrown|output|replayable|snapshot)", kind.name
    )


@KINDS
def test_fields_are_flat_plain_values(kind: type[Event]) -> None:
    """Numbers, strings and None; enums by value; all of it survives JSON.

    One kind has lists, of items that are flat.
    """
    fields = sample(kind).fields()
    assert [*fields] == [*kind.field_names]
    for name, value in fields.items():
        if kind is SnapshotPart and name in LISTS:
            assert isinstance(value, list)
            ((made,), one) = (getattr(sample(kind), name), value[0])
            assert [*one] == [*type(made).field_names]
        else:
            one = {name: value}
        for part, plain in one.items():
            assert plain is None or type(plain) in {str, int, float, bool}, (name, part)
    assert json.loads(json.dumps(fields)) == fields


@KINDS
def test_no_field_is_reserved_by_logging(kind: type[Event]) -> None:
    """Every event can be the `extra` of a call to the standard library's logging."""
    names = {*kind.field_names}
    assert not names & STAMP
    assert not names & RESERVED


@KINDS
def test_an_event_can_go_through_the_standard_logging(kind: type[Event]) -> None:
    """`makeRecord` raises `KeyError` where a field would overwrite one of its own."""
    stamped = Stamped(sample(kind), "cache", 1, 0.5)
    record = logging.getLogger("wasmcache").makeRecord(
        "wasmcache", logging.INFO, "", 0, kind.name, (), None, extra=stamped.fields()
    )
    assert record.getMessage() == kind.name


@KINDS
def test_units_are_in_the_names(kind: type[Event]) -> None:
    """Times end in `_seconds`, shares of processors in `_cores`; a number of bytes says so."""
    hints = get_type_hints(kind)
    for name in kind.field_names:
        if hints[name] in (float, float | None):
            assert name.endswith(("_seconds", "_cores"))
        if "size" in name or "freed" in name:
            assert name.endswith("_bytes")


@KINDS
def test_an_event_is_a_frozen_value(kind: type[Event]) -> None:
    """Facts do not change, and two equal ones are equal."""
    event = sample(kind)
    assert event == sample(kind)
    with pytest.raises(AttributeError):
        setattr(event, kind.field_names[0], None)


def test_what_needs_attention_is_a_warning() -> None:
    """Failed loads, lost events, no memory, resets in vain, advice; the rest is information."""
    assert {kind.__name__ for kind in EVENTS if sample(kind).level == "warning"} == {
        "Failed",
        "Lost",
        "Overgrown",
        "Refused",
    }
    evicted = sample(Evicted)
    assert isinstance(evicted, Evicted)
    assert evicted.changed(advice="raise it").level == "warning"
    assert {sample(kind).level for kind in EVENTS} == {"info", "warning"}


def test_a_stamp_puts_origin_and_order_before_the_fields() -> None:
    """The log line has the cache, the sequence number, the time and the schema."""
    event = events.Lost(count=2, first_seq=9)
    assert Stamped(event, "main", 3, 12.5).fields() == {
        "cache": "main",
        "seq": 3,
        "at_seconds": 12.5,
        "schema": SCHEMA_VERSION,
        "label": "",
        "count": 2,
        "first_seq": 9,
    }


def test_the_reasons_are_those_of_the_contract() -> None:
    """Twelve words, which logs and dashboards may rely on."""
    assert [reason.value for reason in Reason] == [
        *("size", "count", "idle", "code", "stack", "oversized", "corrupted", "removed"),
        *("group_closed", "closed", "address_space", "promoted", "profiled"),
    ]
