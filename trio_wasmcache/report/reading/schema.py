"""The format of the log's lines: a JSON Schema, generated from the event classes.

``python -m trio_wasmcache schema`` prints it; `events.schema.json` is its last output.
Lines may have fields besides those of the schema: any that a structlog processor adds, such as
``level`` and ``timestamp``.
"""

from __future__ import annotations

import enum
import inspect
import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..._core.event_kinds import EVENTS
from ..._core.events import SCHEMA_VERSION, Event, Stamped
from ..._core.snapshot import Item
from ..._public import described_fields

__all__ = ["make_schema", "as_text"]

SHIPPED = Path(__file__).parent.parent / "events.schema.json"
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_STAMP: dict[str, dict[str, Any]] = {
    "cache": {
        "type": "string",
        "description": "The cache: a name made up when it was opened.",
    },
    "label": {
        "type": "string",
        "description": "Label of the cache, as given to `open_cache`; empty: it has none.",
    },
    "seq": {
        "type": "integer",
        "minimum": 1,
        "description": "Number of the event in its cache, from 1, without gaps.",
    },
    "at_seconds": {
        "type": "number",
        "description": "Time by the cache's clock: only differences have a meaning.",
    },
}


def make_schema() -> dict[str, Any]:
    """Return the schema, as plain values for `json.dumps`."""
    names = [event.name for event in EVENTS]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:trio-wasmcache:events:{SCHEMA_VERSION}",
        "title": f"A line of a trio_wasmcache log, schema {SCHEMA_VERSION}",
        "type": "object",
        "required": ["event", *_STAMP, "schema"],
        "properties": {
            "event": {"enum": names},
            **_STAMP,
            "schema": {"const": SCHEMA_VERSION},
            "context_lost": {
                "type": "boolean",
                "description": "Whether the context of the task that caused it is missing, as the "
                "log kept too many. Absent: no.",
            },
        },
        "allOf": [
            {
                "if": {"properties": {"event": {"const": event.name}}},
                "then": {"$ref": f"#/$defs/{_short(event)}"},
            }
            for event in EVENTS
        ],
        "$defs": {_short(event): _definition(event) for event in EVENTS},
    }


def types_of(event: type[Event] | type[Item]) -> dict[str, tuple[type, ...]]:
    """Return {field: the Python types that its value in a parsed line may have}."""
    hints = get_type_hints(event)
    return {name: _plain(hints[name]) for name in event.field_names}


def item_type(hint: Any) -> type[Item] | None:
    """Return the class of the items, if the type is that of a list of them."""
    return get_args(hint)[0] if get_origin(hint) is tuple else None


def _plain(hint: Any) -> tuple[type, ...]:
    if get_origin(hint) is tuple:
        return (list,)
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _plain(part))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return (str,)
    return (float, int) if hint is float else (hint,)


def _short(event: type[Event]) -> str:
    return event.name.removeprefix("wasmcache.")


def _definition(event: type[Event] | type[Item]) -> dict[str, Any]:
    hints = get_type_hints(event)
    told = described_fields(event)
    properties = {}
    for name in event.field_names:
        properties[name] = _property(hints[name])
        properties[name]["description"] = told[name].text
    return {
        "description": inspect.cleandoc(event.__doc__ or ""),
        "required": list(properties),
        "properties": properties,
    }


def _property(hint: object) -> dict[str, Any]:
    item = item_type(hint)
    if item is not None:
        return {"type": "array", "items": {"type": "object", **_definition(item)}}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [_TYPES[part] for part in parts if part is not NoneType]
    if NoneType in parts:
        kinds.append("null")
    made: dict[str, Any] = {"type": kinds[0] if len(kinds) == 1 else kinds}
    if int in parts:
        made["minimum"] = 0
    return made


def as_text() -> str:
    """Return the contents of the shipped file."""
    return json.dumps(make_schema(), indent=1) + "\n"


STAMP_TYPES: dict[str, tuple[type, ...]] = {
    "cache": (str,),
    "seq": (int,),
    "at_seconds": (float, int),
    "label": (str,),
}
assert {*STAMP_TYPES} <= {*Stamped._fields}
