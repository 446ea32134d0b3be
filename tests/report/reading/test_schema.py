"""The JSON Schema of the events: it is shipped and up to date, and what is written keeps to it."""

from __future__ import annotations

import io
import json
import logging
from typing import Any, get_type_hints

import jsonschema
import pytest
import structlog
from kits import FakeKit, add
from report.logs import Log, busy_log

from trio_wasmcache import CacheConfig
from trio_wasmcache.__main__ import main
from trio_wasmcache._core.event_kinds import EVENTS
from trio_wasmcache._core.events import SCHEMA_VERSION, Event, Reason, Stamped
from trio_wasmcache._core.snapshot import LISTS, SnapshotPart
from trio_wasmcache.report.reading.schema import (
    SHIPPED,
    as_text,
    item_type,
    make_schema,
    types_of,
)

SCHEMA = json.loads(SHIPPED.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
KINDS = pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)


def line_of(kind: type[Event], *, nothing: bool = False) -> dict[str, Any]:
    """A line with such an event, with null in every field that may have it, or in none."""
    values: dict[str, Any] = {}
    samples = {str: "text", int: 7, float: 0.5, bool: True}
    hints = get_type_hints(kind)
    for name in kind.field_names:
        kinds = types_of(kind)[name]
        if nothing and type(None) in kinds:
            values[name] = None
        elif hints[name] is Reason:
            values[name] = Reason.SIZE
        elif (item := item_type(hints[name])) is not None:
            told = {
                name: None if nothing and type(None) in kinds else samples[kinds[0]]
                for name, kinds in types_of(item).items()
            }
            values[name] = (item(**told),)
        else:
            values[name] = samples[kinds[0]]
    return {**Stamped(kind(**values), "c", 1, 0.5).fields(), "event": kind.name}


def test_the_shipped_schema_is_up_to_date() -> None:
    """`events.schema.json` is what the event classes make; the command below makes it anew."""
    command = "python -m trio_wasmcache schema > trio_wasmcache/report/events.schema.json"
    assert SHIPPED.read_text(encoding="utf-8") == as_text(), command
    assert make_schema() == SCHEMA


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Without any of the log tool's libraries."""
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == as_text()


def test_it_is_a_schema_of_this_version() -> None:
    """A valid one, whose name and whose `schema` field say which events it is of."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"].endswith(f":{SCHEMA_VERSION}")
    assert SCHEMA["properties"]["schema"] == {"const": SCHEMA_VERSION}


@KINDS
def test_it_knows_every_event_and_field(kind: type[Event]) -> None:
    """With what the class says of each; an event is valid with a value or null where it may be."""
    definition = SCHEMA["$defs"][kind.name.removeprefix("wasmcache.")]
    assert definition["description"]
    assert [*definition["properties"]] == [*kind.field_names]
    VALIDATOR.validate(line_of(kind))
    VALIDATOR.validate(line_of(kind, nothing=True))


@KINDS
def test_it_refuses_what_is_no_event(kind: type[Event]) -> None:
    """A field that is missing or of another type, and other stamps."""
    line = line_of(kind)
    for field in line:
        less = {name: value for name, value in line.items() if name != field}
        assert not VALIDATOR.is_valid(less), field
        assert not VALIDATOR.is_valid({**line, field: ["no", "such", "value"]}), field
    assert not VALIDATOR.is_valid({**line, "schema": SCHEMA_VERSION + 1})
    assert not VALIDATOR.is_valid({**line, "event": "wasmcache.nonsense"})
    assert not VALIDATOR.is_valid({**line, "seq": 0})


def test_items_of_lists_are_described_and_checked() -> None:
    """Each field of each, as those of events are; one with a bad field is none."""
    definition = SCHEMA["$defs"]["snapshot"]["properties"]
    line = line_of(SnapshotPart)
    for name in LISTS:
        items = definition[name]["items"]
        (item,) = line[name]
        assert items["description"]
        assert [*items["properties"]] == items["required"] == [*item]
        assert all(it["description"] for it in items["properties"].values())
        for field in item:
            less = {one: value for one, value in item.items() if one != field}
            for bad in (less, {**item, field: ["no", "such"]}, 7):
                assert not VALIDATOR.is_valid({**line, name: [bad]}), (name, field)


def test_it_allows_what_processors_add() -> None:
    """Other fields, such as a level and a timestamp."""
    VALIDATOR.validate({**line_of(EVENTS[0]), "level": "info", "timestamp": "2026-01-01T00:00:00Z"})


def test_descriptions_come_from_the_classes() -> None:
    """Also those of fields, which stand below them in the source."""
    registered = SCHEMA["$defs"]["registered"]["properties"]
    assert registered["compile_seconds"] == {
        "type": "number",
        "description": "Time that compiling took (seconds); "
        "0 if an equal module had been compiled already.",
    }
    inherited = registered["function"]
    assert inherited == {"type": "string", "description": "Name of the function."}


async def write_a_log(kit: FakeKit, logger: Any) -> None:
    """A short life of a cache, with most kinds of events in it."""
    config = CacheConfig(log_uses=True, max_size=4 * 65536, offload_after=None)
    async with kit.open(config, logger=logger) as cache:
        for name in ("f", "g", "h"):
            await add(cache, name, kit.adding(1))
        async with cache.scheduling_group("tenant", capacity=2) as group:
            for name in ("f", "g", "h", "f"):
                async with group.acquire(name, ("i64",)) as lease:
                    await lease.call(1)
        await cache.warm("f", ("i64",))
        cache.resize(max_size=2 * 65536)
        cache.remove("g")


def check(text: str) -> None:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        VALIDATOR.validate(line)
    assert {line["event"].removeprefix("wasmcache.") for line in lines} >= {
        *("opened", "registered", "removed", "resized", "closed", "group_opened", "group_closed"),
        *("requested", "acquired", "loaded", "recycled", "evicted"),
    }


async def test_what_json_renderer_writes_is_valid(fake: FakeKit) -> None:
    """structlog straight to a file, with a level and a time."""
    file = io.StringIO()
    logger = structlog.wrap_logger(
        structlog.WriteLogger(file),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
    )
    await write_a_log(fake, logger)
    check(file.getvalue())


async def test_what_the_standard_logging_writes_is_valid(fake: FakeKit) -> None:
    """structlog through the standard library's logging, rendered by its handler."""
    file = io.StringIO()
    handler = logging.StreamHandler(file)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ]
        )
    )
    standard = logging.Logger("trio_wasmcache")
    standard.addHandler(handler)
    logger = structlog.wrap_logger(
        standard,
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
    )
    await write_a_log(fake, logger)
    check(file.getvalue())


@pytest.mark.parametrize("log", [busy_log()], ids=["busy"])
def test_the_logs_of_these_tests_are_valid(log: Log) -> None:
    """What is made by hand here is what a cache writes."""
    for line in log.lines:
        VALIDATOR.validate(line)
