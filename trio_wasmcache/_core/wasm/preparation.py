"""Writes the state of an instance into its module, so that new instances begin with that state.

1. Code, types, imports and exports stay as they are, and so do all indexes. There is no start
   function any more.
2. Data segments that were copied to a memory, or dropped, become empty ones of the same index. Such
   element segments become declared ones, which are as empty, and keep functions referable that code
   refers to. What memories and tables contain is written as further active segments.
3. Memories, tables and globals that the module imports must have become its own before: see
   `editor.define_imports`. Those of another part of a graph are written into that part. But an
   element is written by a part that can refer to its function: by the table's, or else by one that
   imports the table. So each element is written once, whatever the order of the parts.
4. What can't be written raises `UnfreezableError`, which names it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import evolve, field, frozen

from ..config import KiB, MiB
from ..integers import signed
from .editor import extend_sections
from .encoding import name_bytes, section, sleb, uleb, vector
from .reader import (
    HEADER,
    SECTION_RANKS,
    VALUE_TYPES,
    Cursor,
    Limits,
    ModuleInfo,
    TableType,
)

TABLES, MEMORIES, GLOBALS, START, ELEMENTS, CODE, DATA, DATA_COUNT = 4, 5, 6, 8, 9, 10, 11, 12
"""Ids of sections."""
PIECE: Final = 4 * KiB
"""Bytes of memory that are written, or left out as they are zeros, at a time."""
MAX_RUNS: Final = 10_000
"""Data segments for one memory, at most; for a larger one, larger pieces are looked at."""
DENSE_SIZE: Final = 16 * MiB
"""Bytes from the first to the last that are written, from which on at least half of them have to
be: wasmtime then maps them into new instances, and does not copy them."""
MAX_PASSIVE: Final = 1000
"""Passive segments of a module to prepare, at most: each is tried by a function of its own."""
MAX_REFERABLE: Final = 20_000
"""Functions that a module to prepare can refer to, at most: each is exported."""

_TYPE_BYTES: Final = {name: bytes([byte]) for byte, name in VALUE_TYPES.items()}
_NULLS: Final = {"funcref": b"\xd0\x70\x0b", "externref": b"\xd0\x6f\x0b"}
_WRITABLE: Final = ("i32", "i64", "f32", "f64", "v128", "funcref", "externref")
_END: Final = b"\x0b"

Items = tuple[int | None, ...]
"""Elements of a table: indexes of functions, None for null."""
Run = tuple[int, bytes | memoryview]
"""Address, and what is there."""


class UnfreezableError(Exception):
    """A state can't be written into a module; the message says why."""


@frozen
class FrozenState:
    """What an instance of a module has changed. Memories, tables and globals are its own ones."""

    memories: tuple[tuple[int, tuple[Run, ...]], ...] = field(repr=False)
    """Pages, and what is not zero, of each memory."""
    tables: tuple[Items, ...] = field(repr=False)
    globals: tuple[tuple[int, bytes], ...]
    """Index and value, a constant expression with its end, of each mutable global."""
    dropped_data: frozenset[int] = frozenset()
    """Indexes of passive data segments that were dropped; likewise of element segments."""
    dropped_elements: frozenset[int] = frozenset()
    linked: tuple[tuple[int, int, int], ...] = field(default=(), repr=False)
    """(index of a table of another part, position there, index of a function) of each element that
    this module writes into such a table, in order."""

    @property
    def size(self) -> int:
        """Bytes of memory that are written into the module."""
        return sum(len(data) for _, runs in self.memories for _, data in runs)

    @property
    def pages(self) -> int:
        """Pages of all memories together."""
        return sum(pages for pages, _ in self.memories)

    @property
    def elements(self) -> int:
        """Elements of tables that are not null, and that this module writes."""
        own = sum(item is not None for items in self.tables for item in items)
        return own + len(self.linked)


@frozen
class Segment:
    """An element or data segment."""

    mode: str
    """``"active"``, ``"passive"`` or ``"declared"``."""
    target: int
    """Index of the table or memory, if it is active."""
    count: int
    """Number of elements, or bytes."""
    item: str = ""
    """Type of the elements."""
    items: bytes = b""
    """Elements, encoded with their number; they are expressions if `expressions`."""
    expressions: bool = False
    begin: int = 0
    """Offset in the module, if it is a data segment; likewise of its end."""
    end: int = 0


def runs_of(memory: bytes | memoryview) -> tuple[Run, ...]:
    """Return what in a memory is not zero, in whole pieces but for the last."""
    view = memoryview(memory)
    size = len(view)
    piece = PIECE
    while True:
        runs = _runs(view, piece)
        if len(runs) <= MAX_RUNS:
            break
        piece *= 2
    runs = _dense(runs)
    return tuple((at, view[at : min(end, size)].tobytes()) for at, end in runs)


def _runs(view: memoryview, piece: int) -> list[tuple[int, int]]:
    zeros = bytes(piece)
    runs: list[tuple[int, int]] = []
    size = len(view)
    for at in range(0, size, piece):
        end = min(at + piece, size)
        if view[at:end] == (zeros if end - at == piece else bytes(end - at)):
            continue
        if runs and runs[-1][1] == at:
            runs[-1] = runs[-1][0], end
        else:
            runs.append((at, end))
    return runs


def _dense(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Fill gaps, from the smallest on, until at least half of a large range is written."""
    if not runs or runs[-1][1] - runs[0][0] <= DENSE_SIZE:
        return runs
    missing = (runs[-1][1] - runs[0][0]) // 2 + PIECE - sum(end - at for at, end in runs)
    gaps = sorted(range(1, len(runs)), key=lambda n: runs[n][0] - runs[n - 1][1])
    filled = set()
    for n in gaps:
        if missing <= 0:
            break
        filled.add(n)
        missing -= runs[n][0] - runs[n - 1][1]
    made: list[tuple[int, int]] = []
    for n, (at, end) in enumerate(runs):
        if n in filled:
            made[-1] = made[-1][0], end
        else:
            made.append((at, end))
    return made


def constant(value_type: str, raw: bytes, *, what: str) -> bytes:
    """Return the constant expression, with its end, of a global's value.

    Args:
        value_type: type of the global.
        raw: its value as wasmtime has it in memory, little-endian, from its first byte on.
        what: the global for messages.

    Raises:
        UnfreezableError: values of this type can't be written.
    """
    match value_type:
        case "i32":
            return b"\x41" + sleb(int.from_bytes(raw[:4], "little", signed=True)) + _END
        case "i64":
            return b"\x42" + sleb(int.from_bytes(raw[:8], "little", signed=True)) + _END
        case "f32":
            return b"\x43" + raw[:4] + _END
        case "f64":
            return b"\x44" + raw[:8] + _END
        case "v128":
            return b"\xfd\x0c" + raw[:16] + _END
        case _:
            raise UnfreezableError(f"{what} is of type {value_type}, whose values can't be written")


def reference(value_type: str, function: int | None, *, what: str) -> bytes:
    """Return the constant expression of a reference: to a function, or null.

    Raises:
        UnfreezableError: references of this type can't be written.
    """
    if value_type not in _NULLS:
        raise UnfreezableError(f"{what} is of type {value_type}, whose values can't be written")
    return _NULLS[value_type] if function is None else b"\xd2" + uleb(function) + _END


# -- reading segments


def read_elements(wasm: bytes, info: ModuleInfo) -> tuple[list[Segment], frozenset[int]]:
    """Return the element segments of a module, and the functions to which they refer."""
    segments: list[Segment] = []
    cursor = _cursor(wasm, info, ELEMENTS)
    functions: set[int] = set()
    if cursor is None:
        return segments, frozenset()
    found: list[tuple[int, int]] = []
    for _ in range(cursor.number(32)):
        flags = cursor.number(32)
        target = 0
        if not flags & 1:
            if flags & 2:
                target = cursor.number(32)
            cursor.expression()
        item = "funcref"
        if flags & 3 and flags & 4:
            item = cursor.reference_type()
        elif flags & 3:
            cursor.byte()
        begin = cursor.at
        count = cursor.number(32)
        for _ in range(count):
            if flags & 4:
                at = cursor.at
                cursor.expression()
                found.append((at, cursor.at))
            else:
                functions.add(cursor.number(32))
        mode = "active" if not flags & 1 else "declared" if flags & 2 else "passive"
        items = wasm[begin : cursor.at]
        segments.append(Segment(mode, target, count, item, items, bool(flags & 4)))
    functions.update(_referred(wasm, found))
    return segments, frozenset(functions)


def read_data(wasm: bytes, info: ModuleInfo) -> list[Segment]:
    """Return the data segments of a module, without what is in them."""
    segments: list[Segment] = []
    cursor = _cursor(wasm, info, DATA)
    if cursor is None:
        return segments
    for _ in range(cursor.number(32)):
        begin = cursor.at
        flags, target = cursor.number(32), 0
        if flags != 1:
            if flags == 2:
                target = cursor.number(32)
            cursor.expression()
        size = cursor.number(32)
        cursor.skip(size)
        mode = "passive" if flags == 1 else "active"
        segments.append(Segment(mode, target, size, begin=begin, end=cursor.at))
    return segments


def read_globals(wasm: bytes, info: ModuleInfo) -> list[tuple[bytes, bytes]]:
    """Return type and initial value of each global that a module defines, as they are encoded."""
    found: list[tuple[bytes, bytes]] = []
    cursor = _cursor(wasm, info, GLOBALS)
    if cursor is None:
        return found
    for _ in range(cursor.number(32)):
        at = cursor.at
        cursor.global_type()
        middle = cursor.at
        cursor.expression()
        found.append((wasm[at:middle], wasm[middle : cursor.at]))
    return found


@frozen
class Observed:
    """What is exported of a module so that the state of its instances can be read."""

    functions: tuple[int, ...]
    """Functions to which segments and globals refer, in order. Code can refer to these only, and to
    those that are exported."""
    probes: tuple[tuple[str, int, bytes], ...]
    """Kind (``"data"`` or ``"elem"``) and index of each passive segment that can be dropped, and
    the body of a function that traps if it was. The function copies nothing, from the end of the
    segment. For empty segments there is none, as dropping makes no difference to them."""


def observe(wasm: bytes, info: ModuleInfo) -> Observed:
    """Return what is to be exported of a module.

    Raises:
        UnfreezableError: its state can't be read, or would be too large.
    """
    for index, one in enumerate(info.globals):
        if one.mutable and one.value_type not in _WRITABLE:
            raise UnfreezableError(f"its global {index} is of type {one.value_type}")
    for index, table in enumerate(info.tables):
        if table.element not in _NULLS:
            raise UnfreezableError(f"its table {index} is of type {table.element}")
    segments, functions = read_elements(wasm, info)
    found = tuple(sorted(functions | _initial(read_globals(wasm, info))))
    if len(found) > MAX_REFERABLE:
        raise UnfreezableError(
            f"its tables can refer to {len(found)} functions, more than {MAX_REFERABLE}"
        )
    probes = []
    # Without a count of data segments, code can neither copy nor drop them.
    if info.memories and any(one.id == DATA_COUNT for one in info.sections):
        for number, segment in enumerate(read_data(wasm, info)):
            if segment.mode == "passive" and segment.count:
                copy = b"\xfc\x08" + uleb(number) + b"\0"
                wide = info.memories[0].wide
                probes.append(("data", number, _probe(segment.count, copy, wide=wide)))
    tables: dict[str, int] = {}
    for index, table in enumerate(info.tables):
        tables.setdefault(table.element, index)
    for number, segment in enumerate(segments):
        if segment.mode == "passive" and segment.count and segment.item in tables:
            index = tables[segment.item]
            copy = b"\xfc\x0c" + uleb(number) + uleb(index)
            wide = info.tables[index].limits.wide
            probes.append(("elem", number, _probe(segment.count, copy, wide=wide)))
    if len(probes) > MAX_PASSIVE:
        raise UnfreezableError(f"it has {len(probes)} passive segments, more than {MAX_PASSIVE}")
    return Observed(found, tuple(probes))


def _referred(wasm: bytes, expressions: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Yield the functions of expressions, each of which may be one ``ref.func``."""
    for at, end in expressions:
        if wasm[at] == 0xD2:
            yield Cursor(wasm, at + 1, end).number(32)


def _initial(globals: Iterable[tuple[bytes, bytes]]) -> set[int]:
    """Return the functions to which the initial values of globals refer; see `read_globals`."""
    return {function for _, one in globals for function in _referred(one, [(0, len(one))])}


def _cursor(wasm: bytes, info: ModuleInfo, id: int) -> Cursor | None:
    for known in info.sections:
        if known.id == id:
            return Cursor(wasm, known.start, known.end)
    return None


def add_probes(wasm: bytes, info: ModuleInfo, probes: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the module with the probes of `Observed` as its last functions.

    Args:
        wasm: the module.
        info: what these very bytes declare.
        probes: export name and body of each.
    """
    first = len(info.functions)
    exports = [
        name_bytes(name) + b"\0" + uleb(first + number) for number, (name, _) in enumerate(probes)
    ]
    added = {
        1: [b"\x60\0\0"],
        3: [uleb(len(info.types))] * len(probes),
        7: exports,
        CODE: [body for _, body in probes],
    }
    return extend_sections(wasm, added) if probes else wasm


def _probe(count: int, copy: bytes, *, wide: bool) -> bytes:
    """Return the body of a function that copies nothing from the end of a segment."""
    to = b"\x42\0" if wide else b"\x41\0"
    body = b"\0" + to + b"\x41" + sleb(signed(count)) + b"\x41\0" + copy + _END
    return uleb(len(body)) + body


# -- writing


def write_state(wasm: bytes, info: ModuleInfo, state: FrozenState) -> bytes:
    """Return the module whose new instances begin with a state; see the rules above.

    Args:
        wasm: the module, which imports no memories, tables and globals but those of other parts.
        info: what these very bytes declare.
        state: the state of an instance of it.
    """
    payloads = {one.id: wasm[one.start : one.end] for one in info.sections if one.id}
    custom = b"".join(section(0, wasm[one.start : one.end]) for one in info.sections if not one.id)
    payloads.pop(START, None)
    memories = info.memories[info.imported_memories :]
    if memories:
        payloads[MEMORIES] = vector(
            [
                _limits(one._replace(minimum=pages))
                for one, (pages, _) in zip(memories, state.memories, strict=True)
            ]
        )
    tables = info.tables[info.imported_tables :]
    if tables:
        payloads[TABLES] = vector(
            [_table(one, len(items)) for one, items in zip(tables, state.tables, strict=True)]
        )
    values = dict(state.globals)
    globals = read_globals(wasm, info)
    if globals:
        payloads[GLOBALS] = vector(
            [
                type + values.get(index, initial)
                for index, (type, initial) in enumerate(globals, info.imported_globals)
            ]
        )
    elements = _elements(wasm, info, state, globals)
    if elements:
        payloads[ELEMENTS] = vector(elements)
    segments, pieces = _data(wasm, info, state)  # may be megabytes, so they are joined once
    if DATA_COUNT in payloads:
        payloads[DATA_COUNT] = uleb(segments)
    made: list[bytes | memoryview] = [HEADER]
    for id in SECTION_RANKS:
        if id == DATA and segments:
            count = uleb(segments)
            size = len(count) + sum(len(piece) for piece in pieces)
            made += [bytes([id]) + uleb(size) + count, *pieces]
        elif id in payloads:
            made.append(section(id, payloads[id]))
    return b"".join([*made, custom])


def prepared_info(info: ModuleInfo, written: ModuleInfo) -> ModuleInfo:
    """Return what a module declares, once a state was written into it.

    Its imports, and all offsets, stay those of the module as it was given.

    Args:
        info: what the module as it was given declares.
        written: what the result of `write_state` declares.
    """
    return evolve(
        info,
        memories=written.memories,
        tables=written.tables,
        start=None,
        element_segments=written.element_segments,
        passive_elements=written.passive_elements,
        data_segments=written.data_segments,
        passive_data=written.passive_data,
        elements=written.elements,
        passive_items=written.passive_items,
        extern_items=written.extern_items,
    )


def _limits(limits: Limits) -> bytes:
    flags = 4 * limits.wide + (limits.maximum is not None)
    maximum = b"" if limits.maximum is None else uleb(limits.maximum)
    return bytes([flags]) + uleb(limits.minimum) + maximum


def _table(table: TableType, size: int) -> bytes:
    # An initial value is of no use: every element is written that is not null.
    return _TYPE_BYTES[table.element] + _limits(table.limits._replace(minimum=size))


def _elements(
    wasm: bytes, info: ModuleInfo, state: FrozenState, globals: Sequence[tuple[bytes, bytes]]
) -> list[bytes]:
    segments, known = read_elements(wasm, info)
    made = []
    for number, one in enumerate(segments):
        if one.mode == "passive" and number not in state.dropped_elements:
            kind = _TYPE_BYTES[one.item] if one.expressions else b"\0"
            made.append((b"\5" if one.expressions else b"\1") + kind + one.items)
        elif one.expressions:
            made.append(b"\7" + _TYPE_BYTES[one.item] + one.items)
        else:
            made.append(b"\3\0" + one.items)
    # Of the first value of a global, which code may refer to after it has changed.
    initial = _initial(globals) - known
    if initial:
        made.append(b"\3\0" + vector([uleb(function) for function in sorted(initial)]))
    for table, at, functions in _filled(_written_items(info, state)):
        indexes = vector([uleb(function) for function in functions])
        wide = info.tables[table].limits.wide
        made.append(b"\2" + uleb(table) + _address(at, wide=wide) + b"\0" + indexes)
    return made


def _written_items(info: ModuleInfo, state: FrozenState) -> Iterator[tuple[int, int, int]]:
    """Yield table, position and function of each element that the module writes, in order."""
    yield from state.linked
    for table, items in enumerate(state.tables, info.imported_tables):
        for at, item in enumerate(items):
            if item is not None:
                yield table, at, item


def _filled(items: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, list[int]]]:
    """Yield the table of each run of elements, where it begins, and what they are."""
    first, run = (-1, 0), list[int]()
    for table, at, item in items:
        if run and (table, at) == (first[0], first[1] + len(run)):
            run.append(item)
            continue
        if run:
            yield *first, run
        first, run = (table, at), [item]
    if run:
        yield *first, run


def _data(
    wasm: bytes, info: ModuleInfo, state: FrozenState
) -> tuple[int, list[bytes | memoryview]]:
    """Return the number of data segments, and what they consist of."""
    made: list[bytes | memoryview] = []
    segments = 0
    for number, one in enumerate(read_data(wasm, info)):
        segments += 1
        if one.mode == "passive" and number not in state.dropped_data:
            made.append(wasm[one.begin : one.end])
        elif info.memories:
            wide = info.memories[one.target].wide
            made.append(b"\2" + uleb(one.target) + _address(0, wide=wide) + b"\0")
        else:
            made.append(b"\1\0")
    for memory, (_, runs) in enumerate(state.memories, info.imported_memories):
        wide = info.memories[memory].wide
        place = b"\0" if memory == 0 else b"\2" + uleb(memory)
        segments += len(runs)
        for at, data in runs:
            made += [place + _address(at, wide=wide) + uleb(len(data)), data]
    return segments, made


def _address(at: int, *, wide: bool) -> bytes:
    return (b"\x42" + sleb(signed(at, 64)) if wide else b"\x41" + sleb(signed(at))) + _END


# -- keeping states on disk


FORMAT: Final = 2
"""Version of what `pack_states` returns."""


def pack_states(states: Mapping[str, FrozenState], facts: Mapping[str, Any]) -> bytes:
    """Return states, and facts about them that JSON can express, as bytes.

    Args:
        states: {name of a part of a graph: its state}.
        facts: what else is to be kept.
    """
    blobs: list[bytes | memoryview] = []
    parts = {}
    for name, state in states.items():
        memories = []
        for pages, runs in state.memories:
            memories.append([pages, [[at, len(data)] for at, data in runs]])
            blobs += [data for _, data in runs]
        parts[name] = {
            "memories": memories,
            "tables": state.tables,
            "globals": [[index, value.hex()] for index, value in state.globals],
            "dropped_data": sorted(state.dropped_data),
            "dropped_elements": sorted(state.dropped_elements),
            "linked": state.linked,
        }
    head = json.dumps({"format": FORMAT, "parts": parts, "facts": dict(facts)}).encode()
    return struct.pack("<Q", len(head)) + head + b"".join(blobs)


def unpack_states(packed: bytes | memoryview) -> tuple[dict[str, FrozenState], dict[str, Any]]:
    """Return what was given to `pack_states`. The contents of memories are views of `packed`.

    Raises:
        ValueError: it is something else, or of another version.
    """
    try:
        (size,) = struct.unpack_from("<Q", packed)
        packed = memoryview(packed)
        head = json.loads(bytes(packed[8 : 8 + size]))
        if head["format"] != FORMAT:
            raise ValueError(f"format {head['format']!r:.20}")
        at = 8 + size
        states = {}
        for name, part in head["parts"].items():
            memories = []
            for pages, places in part["memories"]:
                runs = []
                for address, length in places:
                    runs.append((address, packed[at : at + length]))
                    at += length
                memories.append((pages, tuple(runs)))
            states[name] = FrozenState(
                tuple(memories),
                tuple(tuple(items) for items in part["tables"]),
                tuple((index, bytes.fromhex(value)) for index, value in part["globals"]),
                frozenset(part["dropped_data"]),
                frozenset(part["dropped_elements"]),
                tuple((table, at, function) for table, at, function in part["linked"]),
            )
        if at != len(packed):
            raise ValueError("another size")
        return states, dict(head["facts"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, struct.error) as error:
        raise ValueError(f"no states: {error!r:.100}") from None
