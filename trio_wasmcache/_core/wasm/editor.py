"""Writes WebAssembly: more exports, lower maxima and fewer imports, or a small module from parts.

1. Everything that an edit does not name stays as it was, byte for byte.
2. Offsets come from the `ModuleInfo` of the very same bytes: read an edited module again before the
   next edit.
3. An edit that would break the module raises `ValueError`. The encoder writes its arguments
   unchecked; wasmtime validates the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from trio_wasmcache._core.wasm.custom import find_sections
from trio_wasmcache._core.wasm.encoding import (
    name_bytes as name_bytes,
    section as section,
    sleb as sleb,
    uleb as uleb,
    vector as vector,
)
from trio_wasmcache._core.wasm.reader import (
    HEADER,
    KINDS,
    SECTION_RANKS,
    VALUE_TYPES,
    Cursor,
    Export,
    ExternType,
    FuncType,
    GlobalType,
    Import,
    Limits,
    ModuleInfo,
    Section,
    TableType,
    TagType,
    find_global_gets,
)

_TYPE_BYTES: Final = {name: bytes([byte]) for byte, name in VALUE_TYPES.items()}
_DEFINED_IN: Final = {"table": 4, "memory": 5, "global": 6}  # {kind: section}
_CODE: Final = 10
# Any byte may be the first one of the instruction, so matches may overlap.
_REFERENCE: Final = re.compile(rb"\xd2(?=[\x80-\xff]{0,3}[\x00-\x7f]|[\x80-\xff]{4}[\x00-\x0f])")
_KIND_BYTES: Final = {kind: bytes([byte]) for byte, kind in enumerate(KINDS)}


def add_exports(wasm: bytes, info: ModuleInfo, exports: Sequence[Export]) -> bytes:
    """Return the module with `exports` added after its own.

    Raises:
        ValueError: a name is taken, an index does not exist, or `info` is of other bytes.
    """
    _check_same(wasm, info)
    spaces = (info.functions, info.tables, info.memories, info.globals, info.tags)
    sizes = {kind: len(space) for kind, space in zip(KINDS, spaces, strict=True)}
    taken = {export.name for export in info.exports}
    for export in exports:
        if export.name in taken:
            raise ValueError(f"the module already exports {export.name!r}")
        if not 0 <= export.index < sizes[export.kind]:
            raise ValueError(
                f"cannot export {export.kind} {export.index} as {export.name!r}: "
                f"the module has {sizes[export.kind]}"
            )
        taken.add(export.name)
    if not exports:
        return wasm
    begin, payload, end = _find(info, 7)
    cursor = Cursor(wasm, payload, end)
    if payload < end:
        cursor.number(32)  # the old count
    count = uleb(len(info.exports) + len(exports))
    items = wasm[cursor.at : end] + b"".join(map(_export, exports))
    return wasm[:begin] + section(7, count + items) + wasm[end:]


def keep_exports(wasm: bytes, info: ModuleInfo, names: Collection[str]) -> bytes:
    """Return the module without exports of other names than these.

    A function that is referred to must stay exported, as that is what allows the reference: see
    `find_references`.

    Raises:
        ValueError: `info` is of other bytes.
    """
    _check_same(wasm, info)
    begin, payload, end = _find(info, 7)
    if payload == end:
        return wasm
    cursor = Cursor(wasm, payload, end)
    count, items = cursor.number(32), []
    for _ in range(count):
        first = cursor.at
        name = cursor.name()
        cursor.byte()
        cursor.number(32)
        if name in names:
            items.append(wasm[first : cursor.at])
    if len(items) == count:
        return wasm
    return wasm[:begin] + (section(7, vector(items)) if items else b"") + wasm[end:]


def find_references(wasm: bytes, info: ModuleInfo) -> set[int]:
    """Return the functions to which code refers by `ref.func`, and maybe a few others.

    Code is not read instruction by instruction: whatever looks like one counts.
    """
    return {
        Cursor(wasm, match.start() + 1, one.end).number(32)
        for one in info.sections
        if one.id == _CODE
        for match in _REFERENCE.finditer(wasm, one.start, one.end)
    }


def clamp_maxima(
    wasm: bytes,
    info: ModuleInfo,
    memories: Sequence[int | None],
    tables: Sequence[int | None],
) -> bytes:
    """Return the module with its own memories and tables limited to these maxima.

    Maxima are pages and elements, one for each memory or table that the module defines; imported
    ones are not counted, as they are limited where they are defined. None leaves one as it is, and
    so does a maximum that is not below the declared one: maxima are only ever lowered.

    Raises:
        ValueError: a memory or table starts over its maximum, the number of maxima differs from
            that of definitions, or `info` is of other bytes.
    """
    _check_same(wasm, info)
    # The memory section is the later one: edited first, it keeps the other's offsets valid.
    for id, kind, maxima, defined in (
        (5, "memory", memories, len(info.memories) - info.imported_memories),
        (4, "table", tables, len(info.tables) - info.imported_tables),
    ):
        if len(maxima) != defined:
            raise ValueError(f"{len(maxima)} {kind} maxima where the module defines {defined}")
        if all(maximum is None for maximum in maxima):
            continue
        begin, payload, end = _find(info, id)
        cursor = Cursor(wasm, payload, end)
        cursor.number(32)  # the count
        items = [_clamped(cursor, kind, maximum) for maximum in maxima]
        wasm = wasm[:begin] + section(id, vector(items)) + wasm[end:]
    return wasm


def define_imports(
    wasm: bytes,
    info: ModuleInfo,
    initials: Sequence[bytes],
    breathe: Callable[[], object] = lambda: None,
) -> bytes:
    """Return the module with memories, tables and globals of its own in place of imported ones.

    Imports of these kinds, unless they are `info.linked`, become definitions of the same types,
    before the module's own, so that no index changes. A constant expression may read an imported
    global, but none that is defined: there, the initial value takes the place of the global.

    Args:
        wasm: the module.
        info: what it declares.
        initials: the initial values of imported globals, in order: expressions with their end.
        breathe: called every now and then, so that a thread lets others run.

    Raises:
        ValueError: there are not as many values as imported globals, or `info` is of other bytes.
    """
    _check_same(wasm, info)
    globals = 0 if "global" in info.linked else info.imported_globals
    if len(initials) != globals:
        raise ValueError(f"{len(initials)} values where the module imports {globals} globals")
    if not any(item.kind in _DEFINED_IN.keys() - info.linked for item in info.imports):
        return wasm
    kept, moved = _parted_imports(wasm, info)
    moved[6] = [type + initial for type, initial in zip(moved[6], initials, strict=True)]
    constants = {
        index: initial[:-1]
        for index, (type, initial) in enumerate(zip(info.globals, initials, strict=False))
        if not type.mutable
    }
    gets = find_global_gets(wasm, breathe) if constants else []
    gets = [get for get in gets if get[2] in constants]
    # From the last section to the first, so that the offsets of those to come stay valid.
    for id in sorted((4, 5, 6, 9, 11), key=SECTION_RANKS.__getitem__, reverse=True):
        added = moved.get(id, [])
        begin, payload, end = _find(info, id)
        inside = [get for get in gets if payload <= get[0] < end]
        if not (added or inside):
            continue
        cursor = Cursor(wasm, payload, end)
        count = cursor.number(32) if payload < end else 0
        pieces, at = [uleb(len(added) + count), *added], cursor.at
        for first, last, index in inside:
            pieces += [wasm[at:first], constants[index]]
            at = last
        wasm = wasm[:begin] + section(id, b"".join([*pieces, wasm[at:end]])) + wasm[end:]
    begin, _, end = _find(info, 2)
    return wasm[:begin] + (section(2, vector(kept)) if kept else b"") + wasm[end:]


def rename_imports(wasm: bytes, names: Mapping[tuple[str, str], tuple[str, str]]) -> bytes:
    """Return the module with other names of imports.

    Args:
        wasm: the module.
        names: {(module, name): the new ones}. Other imports stay as they are.
    """
    places = [Section(id, start, end) for id, _, start, end in find_sections(wasm)]
    begin, payload, end = _place(places, 2)
    if payload == end:
        return wasm
    cursor = Cursor(wasm, payload, end)
    items = []
    for _ in range(cursor.number(32)):
        name = cursor.name(), cursor.name()
        first = cursor.at
        _skip_import(cursor)
        new = names.get(name, name)
        items.append(name_bytes(new[0]) + name_bytes(new[1]) + wasm[first : cursor.at])
    return wasm[:begin] + section(2, vector(items)) + wasm[end:]


def _skip_import(cursor: Cursor) -> str:
    """Read what is imported, and return its kind; the cursor is behind it then."""
    kind = KINDS[cursor.byte()]
    match kind:
        case "table":
            cursor.reference_type()
            cursor.limits(kind)
        case "memory":
            cursor.limits(kind)
        case "global":
            cursor.global_type()
        case "tag":
            cursor.byte()
            cursor.number(32)
        case _:
            cursor.number(32)
    return kind


def _parted_imports(wasm: bytes, info: ModuleInfo) -> tuple[list[bytes], dict[int, list[bytes]]]:
    """Return the imports that stay, and {section: types} of those to define there."""
    kept: list[bytes] = []
    moved: dict[int, list[bytes]] = {id: [] for id in _DEFINED_IN.values()}
    _, payload, end = _find(info, 2)
    cursor = Cursor(wasm, payload, end)
    for _ in range(cursor.number(32)):
        first = cursor.at
        cursor.name()
        cursor.name()
        begin = cursor.at + 1
        kind = _skip_import(cursor)
        if kind in _DEFINED_IN and kind not in info.linked:
            moved[_DEFINED_IN[kind]].append(wasm[begin : cursor.at])
        else:
            kept.append(wasm[first : cursor.at])
    return kept, moved


def defer_start(wasm: bytes, info: ModuleInfo, name: str) -> bytes:
    """Return the module with its start function exported by `name`, and not run by itself.

    Raises:
        ValueError: the module has no start function, the name is taken, or `info` is of other
            bytes.
    """
    if info.start is None:
        raise ValueError("the module has no start function")
    exported = add_exports(wasm, info, [Export(name, "func", info.start)])
    # The section of exports comes before it, and is longer now.
    begin, _, end = (at + len(exported) - len(wasm) for at in _find(info, 8))
    return exported[:begin] + exported[end:]


def extend_sections(wasm: bytes, items: Mapping[int, Sequence[bytes]]) -> bytes:
    """Return the module with items added after those of sections.

    Args:
        wasm: the module.
        items: {section id: encoded items}; a section that is missing is made.
    """
    places = [Section(id, start, end) for id, _, start, end in find_sections(wasm)]
    pieces = []
    for id, added in items.items():
        begin, payload, end = _place(places, id)
        cursor = Cursor(wasm, payload, end)
        count = cursor.number(32) if payload < end else 0
        content = uleb(count + len(added)) + wasm[cursor.at : end] + b"".join(added)
        pieces.append((begin, end, section(id, content)))
    out, at = [], 0
    # Sections that are missing may be put in one place: in their order.
    for begin, end, piece in sorted(pieces, key=lambda one: (*one[:2], SECTION_RANKS[one[2][0]])):
        out += [wasm[at:begin], piece]
        at = end
    return b"".join([*out, wasm[at:]])


def _check_same(wasm: bytes, info: ModuleInfo) -> None:
    end = info.sections[-1].end if info.sections else len(HEADER)
    if end != len(wasm):
        raise ValueError(f"info is of a module of {end} bytes, not of these {len(wasm)}")


def _find(info: ModuleInfo, id: int) -> tuple[int, int, int]:
    return _place(info.sections, id)


def _place(sections: Sequence[Section], id: int) -> tuple[int, int, int]:
    """Return the begin of a section, of its payload, and its end; if missing, its position."""
    begin = place = len(HEADER)
    for known in sections:
        if known.id == id:
            return begin, known.start, known.end
        begin = known.end
        # Custom sections do not move the position: `name` must come after all others.
        if known.id and SECTION_RANKS[known.id] < SECTION_RANKS[id]:
            place = known.end
    return place, place, place


def _clamped(cursor: Cursor, kind: str, maximum: int | None) -> bytes:
    """Read one definition; return its bytes with the limits lowered to `maximum`."""
    first = cursor.at
    has_initial = kind == "table" and cursor.initial_mark()
    if kind == "table":
        cursor.reference_type()
    before = cursor.at
    limits = cursor.limits(kind)
    after = cursor.at
    if has_initial:
        cursor.expression()
    if maximum is None or (limits.maximum is not None and limits.maximum <= maximum):
        return cursor.data[first : cursor.at]
    if limits.minimum > maximum:
        raise ValueError(f"a {kind} starts with {limits.minimum}, over its new maximum {maximum}")
    clamped = _limits(Limits(limits.minimum, maximum, limits.wide))
    return cursor.data[first:before] + clamped + cursor.data[after : cursor.at]


def encode_module(
    *,
    types: Sequence[FuncType],
    imports: Sequence[Import] = (),
    functions: Sequence[int] = (),
    tables: Sequence[TableType] = (),
    memories: Sequence[Limits] = (),
    globals: Sequence[tuple[GlobalType, bytes]] = (),
    exports: Sequence[Export] = (),
    start: int | None = None,
    elements: Sequence[tuple[int | None, int, Sequence[int]]] = (),
    data: Sequence[tuple[int | None, int, bytes]] = (),
    code: Sequence[bytes] = (),
    custom: Sequence[tuple[str, bytes]] = (),
) -> bytes:
    """Return a module made of these parts. Empty sections are left out.

    Args:
        types: the signatures; they must include those of imported functions.
        imports: the imports.
        functions: the index of its type, for each function defined.
        tables: the tables defined.
        memories: the sizes of the memories defined (pages).
        globals: type and initial value, an expression with its end (`i32_const` makes one).
        exports: the exports.
        start: the index of the start function; None: there is none.
        elements: table (None: passive), offset in elements, indexes of functions.
        data: memory (None: passive), offset in bytes, content.
        code: for each function defined, local declarations, instructions and end, without size.
        custom: name and content of sections, which are written last.
    """
    vectors: dict[int, list[bytes]] = {
        1: [b"\x60" + _values(type.params) + _values(type.results) for type in types],
        2: [_import(item, types) for item in imports],
        3: [uleb(type) for type in functions],
        4: [_extern(table, types) for table in tables],
        5: [_limits(memory) for memory in memories],
        6: [_extern(type, types) + initial for type, initial in globals],
        7: [_export(export) for export in exports],
        9: [_segment(table, at, _indexes(items), b"\0") for table, at, items in elements],
        10: [uleb(len(body)) + body for body in code],
        11: [_segment(memory, at, _content(items), b"") for memory, at, items in data],
    }
    payloads = {id: vector(items) for id, items in vectors.items() if items}
    if start is not None:
        payloads[8] = uleb(start)
    if any(memory is None for memory, _, _ in data):
        payloads[12] = uleb(len(data))  # required before code that copies passive data
    sections = [section(id, payloads[id]) for id in SECTION_RANKS if id in payloads]
    sections += [section(0, name_bytes(name) + content) for name, content in custom]
    return HEADER + b"".join(sections)


def i32_const(number: int) -> bytes:
    """Return the constant expression for a 32-bit number, signed or not."""
    if not -(1 << 31) <= number < 1 << 32:
        raise ValueError(f"{number} does not fit 32 bits")
    return b"\x41" + sleb(number - (1 << 32) if number >> 31 > 0 else number) + b"\x0b"


def _values(names: Sequence[str]) -> bytes:
    return vector([_TYPE_BYTES[name] for name in names])


def _limits(limits: Limits) -> bytes:
    flags = 4 * limits.wide + (limits.maximum is not None)
    maximum = b"" if limits.maximum is None else uleb(limits.maximum)
    return bytes([flags]) + uleb(limits.minimum) + maximum


def _extern(type: ExternType, types: Sequence[FuncType]) -> bytes:
    match type:
        case FuncType():
            if type not in types:
                raise ValueError(f"{type} of an imported function is not among the types")
            return uleb(types.index(type))
        case TableType():
            return _TYPE_BYTES[type.element] + _limits(type.limits)
        case Limits():
            return _limits(type)
        case TagType():
            return b"\0" + _extern(FuncType(type.params), types)
        case _:
            return _TYPE_BYTES[type.value_type] + bytes([type.mutable])


def _import(item: Import, types: Sequence[FuncType]) -> bytes:
    names = name_bytes(item.module) + name_bytes(item.name)
    return names + _KIND_BYTES[item.kind] + _extern(item.type, types)


def _export(export: Export) -> bytes:
    return name_bytes(export.name) + _KIND_BYTES[export.kind] + uleb(export.index)


def _indexes(functions: Sequence[int]) -> bytes:
    return vector([uleb(function) for function in functions])


def _content(data: bytes) -> bytes:
    return uleb(len(data)) + data


def _segment(target: int | None, offset: int, items: bytes, kind: bytes) -> bytes:
    """Return a data or element segment; `kind` is for the latter, except in its shortest form."""
    if target is None:
        return b"\1" + kind + items
    if target == 0:
        return b"\0" + i32_const(offset) + items
    return b"\2" + uleb(target) + i32_const(offset) + kind + items
