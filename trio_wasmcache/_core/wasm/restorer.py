"""Writes restorers: small modules that restore tables and mutable globals of another instance.

A restorer imports each of them and has one of its own for each. On instantiation it copies theirs
to its own, and `reset` copies them back. Values never leave the store, so references and vectors
work as well as numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..integers import signed
from .editor import encode_module, sleb, uleb
from .growth import NOTE_TYPE
from .types import Export, FuncType, Import, Limits, ModuleInfo, TableType

_END, _GLOBAL_GET, _GLOBAL_SET, _I32_CONST, _I64_CONST = 0x0B, 0x23, 0x24, 0x41, 0x42
_TABLE_COPY: Final = bytes([0xFC, 14])
_ZEROS: Final = {
    "i32": bytes([_I32_CONST, 0]),
    "i64": bytes([0x42, 0]),
    "f32": bytes([0x43]) + bytes(4),
    "f64": bytes([0x44]) + bytes(8),
    "v128": bytes([0xFD, 12]) + bytes(16),
    "funcref": bytes([0xD0, 0x70]),
    "externref": bytes([0xD0, 0x6F]),
    "exnref": bytes([0xD0, 0x69]),
    "nullexnref": bytes([0xD0, 0x74]),
}


class Restorer:
    """A restorer module, and its imports."""

    __slots__ = ("elements", "imports", "wasm")

    def __init__(
        self, wasm: bytes, imports: tuple[tuple[int, str, int], ...], elements: int
    ) -> None:
        self.wasm = wasm
        self.imports = imports
        """(number of the module, kind, index there); an import's name is its position here."""
        self.elements = elements
        """Number of elements of its tables together."""


def restorer(*infos: ModuleInfo, notes: Sequence[int] = ()) -> Restorer | None:
    """Return the restorer for instances of modules; None if there is nothing to restore.

    Args:
        *infos: what the sections say, of each module that is instantiated in a store. What one
            module imports from another is restored once.
        notes: number of notes of refused growth of each, globals that follow its own; see `growth`.
    """
    tables = [
        (module, n, one)
        for module, info in enumerate(infos)
        for n, one in enumerate(info.own_tables, len(info.tables) - len(info.own_tables))
    ]
    globals = [
        (module, n, one)
        for module, info in enumerate(infos)
        for n, one in enumerate(info.own_globals, len(info.globals) - len(info.own_globals))
        if one.mutable
    ]
    globals += [
        (module, len(infos[module].globals) + n, NOTE_TYPE)
        for module, number in enumerate(notes)
        for n in range(number)
    ]
    if not (tables or globals):
        return None
    imports = [Import("", str(n), "table", _start_of(one)) for n, (*_, one) in enumerate(tables)]
    imports += [
        Import("", str(n), "global", one) for n, (*_, one) in enumerate(globals, len(tables))
    ]
    nothing = FuncType()
    wasm = encode_module(
        types=[nothing],
        imports=imports,
        functions=[0, 0],
        tables=[_fixed(one) for *_, one in tables],
        globals=[(one, _ZEROS[one.value_type] + bytes([_END])) for *_, one in globals],
        exports=[Export("reset", "func", 1)],
        start=0,
        code=[
            _copies([one for *_, one in tables], len(globals), back=back) for back in (False, True)
        ],
    )
    return Restorer(
        wasm,
        (
            *((module, "table", n) for module, n, _ in tables),
            *((module, "global", n) for module, n, _ in globals),
        ),
        sum(one.limits.minimum for *_, one in tables),
    )


def _start_of(table: TableType) -> TableType:
    return TableType(table.element, Limits(table.limits.minimum, None, table.limits.wide))


def _fixed(table: TableType) -> TableType:
    size = table.limits.minimum
    return TableType(table.element, Limits(size, size, table.limits.wide))


def _copies(tables: Sequence[TableType], globals: int, *, back: bool) -> bytes:
    """Return a function body that copies their state to its own, or with `back` its own to them."""
    code = bytearray([0])  # no locals
    for number, table in enumerate(tables):
        theirs, ours = number, number + len(tables)
        to, source = (theirs, ours) if back else (ours, theirs)
        size = table.limits.minimum
        if table.limits.wide:
            code += bytes([_I64_CONST, 0, _I64_CONST, 0, _I64_CONST]) + sleb(signed(size, 64))
        else:
            code += bytes([_I32_CONST, 0, _I32_CONST, 0, _I32_CONST]) + sleb(signed(size))
        code += _TABLE_COPY + uleb(to) + uleb(source)
    for number in range(globals):
        theirs, ours = number, number + globals
        to, source = (theirs, ours) if back else (ours, theirs)
        code += bytes([_GLOBAL_GET]) + uleb(source) + bytes([_GLOBAL_SET]) + uleb(to)
    return bytes(code) + bytes([_END])
