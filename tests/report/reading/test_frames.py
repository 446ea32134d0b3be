"""From lines to events: by polars in whole blocks, one by one where something is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from report.logs import Log, busy_log

from trio_wasmcache._core.events import SCHEMA_VERSION, Evicted, Opened, Reason
from trio_wasmcache.report.reading.frames import FEW, OPTIONAL, SCHEMA, TYPES, USED, Parser
from trio_wasmcache.report.reading.notes import FINE, FLAWED, Notes
from trio_wasmcache.report.reading.records import make_event, read_event

# Lines as the first logs of this schema had them. A field that came later is not in them, and must
# be in `OPTIONAL`; whoever changes a line here breaks the logs of others.
FIRST_LOGS = [
    {"event": "wasmcache.opened", "max_size_bytes": 104857600, "max_instance_size_bytes": 8388608}
    | {"max_instances": 4096, "max_code_size_bytes": 41943040, "idle_timeout_seconds": 5.0}
    | {"stack_size_bytes": 524288, "memory_limit_bytes": 16777216, "table_limit_elements": 10000}
    | {"total_fuel": 1000000000, "yield_fuel": 100000, "log_uses": True},
    {"event": "wasmcache.requested", "function": "f", "arg_types": "i64", "group": "main"}
    | {"generation": 1, "request": 1, "warm": False},
    {"event": "wasmcache.acquired", "function": "f", "arg_types": "i64", "group": "main"}
    | {"generation": 1, "instance": 1, "request": 1, "hit": True, "wait_seconds": 0.0, "uses": 3}
    | {"module_digest": "d", "code_bytes": 1, "total_size_bytes": 5, "code_size_bytes": 6},
    {"event": "wasmcache.recycled", "function": "f", "arg_types": "i64", "group": "main"}
    | {"generation": 1, "instance": 1, "request": 1, "size_bytes": 7, "held_seconds": 0.1}
    | {"calls": 1, "kept": True, "total_size_bytes": 5, "code_size_bytes": 6},
    {"event": "wasmcache.evicted", "function": "f", "arg_types": "i64", "group": "main"}
    | {"generation": 1, "instance": 1, "reason": "idle", "module_digest": "d", "freed_bytes": 7}
    | {"freed_code_bytes": 1, "idle_seconds": 5.0, "age_seconds": 5.1, "uses": 4}
    | {"total_size_before_bytes": 7, "total_size_after_bytes": 0, "code_size_before_bytes": 1}
    | {"code_size_after_bytes": 0, "limit_bytes": None, "advice": None},
]


def encode(lines: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(line).encode() for line in lines]


def notes_of(parser: Parser) -> Notes:
    notes = Notes(lambda _: None)
    parser.tell(notes)
    return notes


def valid() -> dict[str, Any]:
    """One event, with a number of everything."""
    log = Log()
    log.evicted(1.5)
    return log.lines[0]


def test_polars_and_python_agree() -> None:
    """The same events come out of a block at once and out of its lines one by one."""
    lines = encode(busy_log().lines)
    fast, slow = Parser(), Parser()
    frame = fast.frame(lines)
    events = slow.records(lines)
    assert fast.events == slow.events == len(lines) == len(frame)
    for row, event in zip(frame.iter_rows(named=True), events, strict=True):
        fields = {"event": event.event.name, **event.fields()}
        assert row == {name: fields.get(name) for name in SCHEMA}
    assert [*frame.columns] == [*SCHEMA]


def test_a_bad_line_costs_only_itself() -> None:
    """Its neighbours come out as they went in, in their order."""
    lines = encode(busy_log().lines)
    spoilt = lines.copy()
    for number in range(0, len(lines), 3 * FEW):
        spoilt.insert(number, b'{"event": "wasmcache.opened"')
    parser = Parser()
    frame = parser.frame(spoilt)
    assert frame.equals(Parser().frame(lines))
    assert parser.damaged == len(spoilt) - len(lines) > 0


@pytest.mark.parametrize("line", FIRST_LOGS, ids=lambda line: line["event"])
def test_the_first_logs_can_be_read(line: dict[str, Any]) -> None:
    """A new field does not make old logs damaged."""
    stamp = {"cache": "c", "seq": 1, "at_seconds": 0.5, "schema": 1}
    lines = encode([{**stamp, **line}])
    for parse in (Parser().frame, Parser().records):
        assert len(parse(lines)) == 1
    assert set(OPTIONAL) <= {field for types in TYPES.values() for field in types}


@pytest.mark.parametrize(
    "spoil",
    [
        {"seq": 0},
        {"seq": None},
        {"seq": 1.5},
        {"seq": True},
        {"at_seconds": None},
        {"at_seconds": float("nan")},
        {"at_seconds": float("inf")},
        {"at_seconds": 1e300},
        {"uses": 2**70},
        {"uses": 10**400},  # no float is as large
        {"uses": "3"},
        {"freed_bytes": None},
        {"freed_bytes": [1]},
        {"age_seconds": float("-inf")},
        {"reason": None},
        {"function": None},
    ],
    ids=str,
)
def test_values_that_no_event_has(spoil: dict[str, Any]) -> None:
    """Such a line is left out and counted, whoever looks at it."""
    # Types that were seen before are looked at all together, others one by one.
    lines = encode([valid(), valid(), {**valid(), **spoil}])
    for parser, count in ((Parser(), Parser.frame), (Parser(), Parser.records)):
        assert len(count(parser, lines)) == 2  # type: ignore[operator]
        assert (parser.events, parser.damaged) == (2, 1)
        notes = notes_of(parser)
        assert notes.status == FLAWED
        assert notes.texts == [
            "1 damaged line: not whole, or with values that no event has; left out"
        ]


@pytest.mark.parametrize("value", [2**70, "3", [1], {"a": 1}, True], ids=str)
def test_what_an_event_has_not_got_may_be_anything(value: Any) -> None:
    """A processor may add a field that has the name of another event's: it costs nothing."""
    added = {**valid(), "wait_seconds": value, "count": value, "stream": value}
    assert not {"wait_seconds", "count", "stream"} & TYPES[added["event"]].keys()
    for parse in (Parser().frame, Parser().records):
        assert len(parse(encode([valid(), added]))) == 2


def test_what_is_not_used_is_not_needed() -> None:
    """The report does without fields that it makes nothing of; a replay does not."""
    line = valid()
    del line["module_digest"]
    assert "module_digest" not in USED
    assert len(Parser().frame(encode([line]))) == 1
    assert len(Parser().records(encode([line]))) == 0


def test_what_is_usual_is_done_at_once() -> None:
    """Events are the same whether they are the first of their kind, looked at field by field, or
    a later one; and a reason of the future stays a word."""
    lines = [json.loads(line) for line in encode(busy_log().lines)]
    singly = [make_event(line) for line in lines]
    at_once = [read_event(line) for line in lines]
    assert at_once == singly
    assert {type(one.event).__name__ for one in singly} >= {"Requested", "Acquired", "Evicted"}
    assert isinstance(singly[-2].event, Evicted)
    assert isinstance(singly[-2].event.reason, Reason)
    future = read_event({**lines[-2], "reason": "whim"})
    assert future is not None
    assert isinstance(future.event, Evicted)
    assert future.event.reason == "whim"  # type: ignore[comparison-overlap]


def test_infinite_where_null_may_be() -> None:
    """A limit that there is not, written by a renderer that knows no null for it."""
    log = Log()
    log.opened()
    line = {**log.lines[0], "idle_timeout_seconds": float("inf")}
    for _ in range(2):
        opened = Parser().records(encode([line, line]))[1].event
        assert isinstance(opened, Opened)
        assert opened.idle_timeout_seconds is None
    assert Parser().frame(encode([line]))["idle_timeout_seconds"].to_list() == [None]


def test_other_schemas_and_unknown_events() -> None:
    """Are left out, and told apart: one is a problem, the other is not."""
    lines = [{**valid(), "schema": version} for version in (2, 2, "1", True, None)]
    parser = Parser()
    assert len(parser.frame(encode([*lines, valid()]))) == 1
    notes = notes_of(parser)
    assert notes.status == FLAWED
    assert notes.texts == [
        f"{events} of schema {version}: this tool reads schema {SCHEMA_VERSION}; left out"
        for version, events in (
            *(("2", "2 events"), ("1", "1 event"), ("True", "1 event"), ("None", "1 event")),
        )
    ]
    parser = Parser()
    assert len(parser.frame(encode([{**valid(), "event": "wasmcache.invented"}, valid()]))) == 1
    notes = notes_of(parser)
    assert notes.status == FINE
    assert notes.texts == ["1 event wasmcache.invented: not known to this version; left out"]


def test_kinds_without_end_are_counted_together() -> None:
    """Whoever invents names can't fill the memory."""
    lines = [{**valid(), "event": f"wasmcache.e{number}"} for number in range(500)]
    lines += [{**valid(), "schema": f"s{number}"} for number in range(500)]
    parser = Parser()
    assert len(parser.frame(encode(lines))) == 0
    for counter in (parser.unknown, parser.other_schemas):
        assert len(counter) < 50
        assert counter.total() == 500


def test_json_that_only_mentions_an_event() -> None:
    """Is foreign: another program's line, or none of ours."""
    parser = Parser()
    lines = encode([{"message": "wasmcache.opened"}, {"event": 5}, {"event": "opened"}])
    assert len(parser.frame([*lines, b'"wasmcache.opened"', b"[]"])) == 0
    assert parser.foreign == 5
    assert notes_of(parser).texts == []


@pytest.mark.parametrize(
    "line",
    [
        b"{" + b'"wasmcache.' * 50,
        b'{"event": "wasmcache.opened", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"event": "wasmcache.opened", "x": "\xff\xfe"}',
        b'\xff{"event": "wasmcache.opened"}',
        b"\0" * 40 + b'"wasmcache.',
    ],
    ids=["open", "deep", "no UTF-8", "odd start", "NULs"],
)
def test_garbage_with_a_name_in_it(line: bytes) -> None:
    """Harms nobody."""
    for parser, parse in ((Parser(), Parser.frame), (Parser(), Parser.records)):
        assert len(parse(parser, [line, *encode([valid()])])) == 1  # type: ignore[operator]
        assert parser.damaged == 1


@pytest.mark.parametrize("text", ["half \ud800 a character", "\U0001f600", "a\0b", "\u202eabc"])
def test_odd_names(text: str) -> None:
    """Whatever JSON can write can be read; half a character becomes a replacement."""
    line = json.dumps({**valid(), "function": text, "seq": 1.0}).encode()
    fine = json.dumps({**valid(), "function": text}).encode()
    expected = text.replace("\ud800", "\ufffd")
    assert [event.event.fields()["function"] for event in Parser().records([fine])] == [expected]
    # The other line makes sure that they are looked at one by one.
    assert Parser().frame([line, fine])["function"].to_list() == [expected]


def test_timestamps_of_any_kind() -> None:
    """Are kept as text, whichever way the block is parsed."""
    lines = [{**valid(), "timestamp": stamp} for stamp in ("2026-01-01T00:00:00Z", 1.5, None)]
    assert Parser().frame(encode(lines))["timestamp"].to_list() == [
        *("2026-01-01T00:00:00Z", "1.5", None),
    ]
    slow = Parser().frame([*encode(lines), b"{"])["timestamp"].to_list()
    assert slow == ["2026-01-01T00:00:00Z", "1.5", None]


def test_a_byte_order_mark() -> None:
    """At the start of a file is no damage."""
    parser = Parser()
    assert len(parser.frame([b"\xef\xbb\xbf" + encode([valid()])[0]])) == 1
    assert parser.damaged == 0
