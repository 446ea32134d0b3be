"""Types and values of components, as Hypothesis draws them, and their layout in memory.

The layouts are written from the specification, apart from the library's own: where the two differ,
a test fails. A type is a name, such as ``"u8"``, or a tuple:

    ("list", t)  ("tuple", t, ...)  ("option", t)  ("result", t or None, t or None)
    ("record", ((name, t), ...))  ("variant", ((name, t or None), ...))
    ("enum", (name, ...))  ("flags", (name, ...))

Values are neutral, neither of wasmtime-py's classes nor of the library's: `list<u8>` is bytes,
other lists are lists, tuples and records are tuples, flags a frozenset, an enum its name. Variants
and results are (name, payload); an option is None or ("some", value).
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from attrs import frozen
from hypothesis import strategies as st

Shape: TypeAlias = Any
"""A type: see above."""

# {name: (bytes in memory, core type)}
SCALARS = {
    "bool": (1, "i32"),
    "s8": (1, "i32"),
    "u8": (1, "i32"),
    "s16": (2, "i32"),
    "u16": (2, "i32"),
    "s32": (4, "i32"),
    "u32": (4, "i32"),
    "s64": (8, "i64"),
    "u64": (8, "i64"),
    "f32": (4, "f32"),
    "f64": (8, "f64"),
    "char": (4, "i32"),
}
MAX_FLAT_PARAMS, MAX_FLAT_RESULTS = 16, 1


@frozen
class Layout:
    """How a type is in memory and in the parameters of a core function."""

    size: int
    align: int
    flat: tuple[str, ...]


def up(offset: int, align: int) -> int:
    """The next offset that is aligned."""
    return -(-offset // align) * align


def join(first: str, second: str) -> str:
    """The core type that holds either."""
    if first == second:
        return first
    return "i32" if {first, second} == {"i32", "f32"} else "i64"


def cases(shape: Shape) -> tuple[tuple[str, Shape | None], ...]:
    """Of what is laid out as a variant."""
    match shape:
        case ("variant", given):
            return tuple(given)
        case ("option", payload):
            return (("none", None), ("some", payload))
        case ("result", ok, err):
            return (("ok", ok), ("err", err))
        case ("enum", names):
            return tuple((name, None) for name in names)
    raise AssertionError(shape)


def members(shape: Shape) -> tuple[Shape, ...]:
    """Types of what follows each other in memory."""
    return tuple(of for _, of in shape[1]) if shape[0] == "record" else shape[1:]


def discriminant(shape: Shape) -> int:
    """Bytes of it."""
    number = len(cases(shape))
    return 1 if number <= 0x100 else 2 if number <= 0x10000 else 4


def payload_offset(shape: Shape) -> int:
    """Where the payload of a variant begins."""
    aligns = [layout(of).align for _, of in cases(shape) if of is not None]
    return up(discriminant(shape), max(aligns, default=1))


@functools.cache
def layout(shape: Shape) -> Layout:
    """Of a type."""
    if isinstance(shape, str):
        if shape == "string":
            return Layout(8, 4, ("i32", "i32"))
        size, core = SCALARS[shape]
        return Layout(size, size, (core,))
    kind = shape[0]
    if kind == "list":
        return Layout(8, 4, ("i32", "i32"))
    if kind == "flags":
        number = len(shape[1])
        size = 1 if number <= 8 else 2 if number <= 16 else 4
        return Layout(size, size, ("i32",))
    if kind in ("record", "tuple"):
        end = offsets_of(shape)[-1]
        parts = [layout(of) for of in members(shape)]
        align = max((part.align for part in parts), default=1)
        return Layout(up(end, align), align, tuple(one for part in parts for one in part.flat))
    flat: list[str] = []
    parts = [layout(of) for _, of in cases(shape) if of is not None]
    for part in parts:
        for number, core in enumerate(part.flat):
            if number < len(flat):
                flat[number] = join(flat[number], core)
            else:
                flat.append(core)
    align = max([discriminant(shape), *(part.align for part in parts)])
    end = payload_offset(shape) + max((part.size for part in parts), default=0)
    return Layout(up(end, align), align, ("i32", *flat))


def offsets_of(shape: Shape) -> list[int]:
    """Of the members of a record or tuple, and where the last one ends."""
    offsets, at = [], 0
    for of in members(shape):
        part = layout(of)
        at = up(at, part.align)
        offsets.append(at)
        at += part.size
    return [*offsets, at]


# ----- what Hypothesis draws

# Some are words of Python or of WIT; several differ in what is no part of a Python name only.
NAMES = (
    "a b c value class from import none some ok err list string two-words ab12 a-b-c x0 self n1x"
    " index count u8 result record type HTTP-code"
).split()
PLAIN = st.sampled_from([*SCALARS, "string"])
# About as many as change the size of flags, or of a discriminant.
FLAGS, CASES = (8, 9, 16, 17, 32), (256, 257)
KINDS = ("enum", "flags", "list", "tuple", "record", "variant", "option", "result")
MAX_DEPTH = 3


@st.composite
def names(draw: st.DrawFn, most: int) -> tuple[str, ...]:
    """Different ones."""
    return tuple(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=most, unique=True)))


@st.composite
def types(draw: st.DrawFn, depth: int = 0) -> Shape:
    """Any type."""
    if depth == MAX_DEPTH or draw(st.integers(0, 2)) < min(depth, 2):
        return draw(PLAIN)
    kind = draw(st.sampled_from(KINDS))
    if kind in ("enum", "flags"):
        given = draw(names(5))
        if draw(st.integers(0, 3)) == 3:
            number = draw(st.sampled_from(CASES if kind == "enum" else FLAGS))
            given = tuple(f"n{at}" for at in range(number))
        return kind, given
    inner = types(depth + 1)
    if kind in ("list", "option"):
        return kind, draw(inner)
    if kind == "tuple":
        return kind, *draw(st.lists(inner, min_size=1, max_size=5))
    if kind == "record":
        return kind, tuple((name, draw(inner)) for name in draw(names(5)))
    maybe = st.none() | inner
    if kind == "result":
        return kind, draw(maybe), draw(maybe)
    return kind, tuple((name, draw(maybe)) for name in draw(names(5)))


@st.composite
def parameters(draw: st.DrawFn) -> tuple[Shape, ...]:
    """Types of the parameters of a function: one, a few, or about as many as are passed flat."""
    number = draw(st.sampled_from((1, 1, 2, 3, 15, 16, 17)))
    return tuple(draw(types() if number < 15 else PLAIN) for _ in range(number))


@st.composite
def values(draw: st.DrawFn, shape: Shape) -> Any:
    """Draw a value of a type, its edges more often than others."""
    if isinstance(shape, str):
        return draw(_scalars(shape))
    match shape:
        case ("list", "u8"):
            return draw(st.binary(max_size=40))
        case ("list", of):
            return [draw(values(of)) for _ in range(draw(st.integers(0, 4)))]
        case ("flags", given):
            bits = draw(st.integers(0, 2 ** len(given) - 1))
            return frozenset(name for at, name in enumerate(given) if bits >> at & 1)
        case ("enum", given):
            return given[draw(st.integers(0, len(given) - 1))]
        case ("option", of):
            return ("some", draw(values(of))) if draw(st.booleans()) else None
        case ("record" | "tuple", *_):
            return tuple(draw(values(of)) for of in members(shape))
    all_cases = cases(shape)
    name, of = all_cases[draw(st.integers(0, len(all_cases) - 1))]
    return name, None if of is None else draw(values(of))


@functools.cache
def _scalars(shape: str) -> st.SearchStrategy[Any]:
    if shape == "bool":
        return st.booleans()
    if shape == "string":
        return st.text(st.characters(codec="utf-8"), max_size=12)
    if shape == "char":
        return st.sampled_from("\0\ud7ff\ue000\U0010ffff") | st.characters(codec="utf-8")
    if shape[0] == "f":
        return st.floats(width=32 if shape == "f32" else 64)
    low, high = integers(shape)
    return st.sampled_from((low, high)) | st.integers(low, high)


def integers(shape: str) -> tuple[int, int]:
    """The lowest and highest value of an integer type."""
    bits = int(shape[1:])
    return (0, 2**bits - 1) if shape[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal, and of the same type; all NaN are, and zeros have signs."""
    if type(first) is not type(second):
        return False
    if isinstance(first, float):
        if math.isnan(first) or math.isnan(second):
            return math.isnan(first) and math.isnan(second)
        return struct.pack("<d", first) == struct.pack("<d", second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def walk(shape: Shape) -> Iterator[Shape]:
    """A type, and all types in it."""
    yield shape
    inner: Sequence[Shape | None] = ()
    if not isinstance(shape, str):
        match shape[0]:
            case "list" | "record" | "tuple":
                inner = members(shape)
            case "variant" | "option" | "result":
                inner = [of for _, of in cases(shape)]
    for of in inner:
        if of is not None:
            yield from walk(of)
