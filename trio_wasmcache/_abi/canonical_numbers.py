"""The numbers of WIT for the canonical ABI: their ranges, and how they lie in memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from .._core.wit.layout import align_up, layout
from .._core.wit.types import Primitive, Record, Tuple
from .elements import Elements
from .plain import PlainType

# {keyword: type code of `struct` and `array`}
CODES: Final = {
    "bool": "?",
    "s8": "b",
    "u8": "B",
    "s16": "h",
    "u16": "H",
    "s32": "i",
    "u32": "I",
    "s64": "q",
    "u64": "Q",
    "f32": "f",
    "f64": "d",
}


def _number(name: str) -> PlainType:
    if name == "bool":
        return PlainType(name, "i32", 0, 1, truth=True)
    if name[0] == "f":
        return PlainType(name, name, native=True)
    bits = int(name[1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if name[0] == "s" else (0, (1 << bits) - 1)
    return PlainType(
        name, "i64" if bits == 64 else "i32", low, high, native=bool(low) and bits >= 32
    )


NUMBERS: Final = {name: _number(name) for name in CODES}
"""{keyword: range and wasm type}"""
ELEMENTS: Final = {name: Elements(NUMBERS[name], code, "list<{}>") for name, code in CODES.items()}
"""{keyword: how a list of such numbers crosses}"""
PYTHON: Final = {
    name: bool if name == "bool" else float if name[0] == "f" else int for name in CODES
}
"""{keyword: Python type of the numbers}"""


def numbers_in(one: Record | Tuple) -> tuple[struct.Struct, list[type]] | None:
    """Return how all items of a type are packed at once, and their Python types.

    None: they are not all numbers.
    """
    parts = [inner for _, inner in one.fields] if isinstance(one, Record) else one.items
    form, at = "<", 0
    kinds: list[type] = []
    outer = layout(one)
    for part, offset in zip(parts, outer.offsets, strict=True):
        if not isinstance(part, Primitive) or part.name not in CODES:
            return None
        form += "x" * (offset - at) + CODES[part.name]
        at = offset + layout(part).size
        kinds.append(PYTHON[part.name])
    return struct.Struct(form + "x" * (align_up(at, outer.align) - at)), kinds


def kinds_of(values: Sequence[object]) -> list[type]:
    """Return the exact types of values."""
    return list(map(type, values))
