"""How the canonical ABI of the component model lays out values: in memory, and as wasm values.

Flat values are those that a function takes and returns directly. A function with too many of them
gets, or returns, the address of a record instead: they are *spilled*.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Final, final

from attrs import frozen

from .types import (
    Enum,
    Flags,
    Function,
    Handle,
    List,
    Option,
    Primitive,
    Record,
    Result,
    Tuple,
    Type,
    Unsupported,
    Variant,
)

FLAT_PARAMETERS: Final = 16
"""Number of flat values that a function takes, at most; more are spilled."""
FLAT_RESULTS: Final = 1
"""Number of flat values that a function returns, at most; more are spilled."""
# {keyword: (size and alignment (bytes), flat type)}
_PRIMITIVES: Final = {
    **dict.fromkeys(("bool", "s8", "u8"), (1, "i32")),
    **dict.fromkeys(("s16", "u16"), (2, "i32")),
    **dict.fromkeys(("s32", "u32", "char"), (4, "i32")),
    **dict.fromkeys(("s64", "u64"), (8, "i64")),
    "f32": (4, "f32"),
    "f64": (8, "f64"),
}
_PAIR: Final = ("i32", "i32")  # address and length


@final
@frozen
class Layout:
    """Size, alignment and flat values of a type."""

    size: int
    """Size in memory (bytes); a multiple of `align`."""
    align: int
    """Alignment in memory (bytes)."""
    flat: tuple[str, ...]
    """Types of its flat values."""
    offsets: tuple[int, ...] = ()
    """Offset of each field of a record, or of each item of a tuple (bytes)."""
    tag: int = 0
    """Size of what says which case a variant has (bytes); 0 for other types."""
    payload: int = 0
    """Offset of the value of a case (bytes)."""
    has_pointers: bool = False
    """Whether a value refers to more of the memory: it has strings or lists in it."""


@functools.lru_cache(maxsize=4096)
def layout(one: Type) -> Layout:
    """Return the layout of a type.

    Raises:
        ValueError: values of the type are not supported.
    """
    match one:
        case Primitive(name="string") | List():
            return Layout(8, 4, _PAIR, has_pointers=True)
        case Primitive():
            size, wasm = _PRIMITIVES[one.name]
            return Layout(size, size, (wasm,))
        case Record():
            return _record([inner for _, inner in one.fields])
        case Tuple():
            return _record(one.items)
        case Flags():
            size = 1 if len(one.labels) <= 8 else 2 if len(one.labels) <= 16 else 4
            return Layout(size, size, ("i32",))
        case Handle():
            return Layout(4, 4, ("i32",))
        case Unsupported():
            raise ValueError(f"values of the type {one.text} are not supported")
        case _:
            return _variant(cases_of(one))


def cases_of(one: Variant | Enum | Option | Result) -> tuple[Type | None, ...]:
    """Return the type of the value of each case, in order."""
    match one:
        case Variant():
            return tuple(inner for _, inner in one.cases)
        case Enum():
            return (None,) * len(one.cases)
        case Option():
            return None, one.some
        case Result():
            return one.ok, one.err


def align_up(offset: int, align: int) -> int:
    """Return the first multiple of `align` that is not below `offset`."""
    return -(-offset // align) * align


def _record(parts: Sequence[Type]) -> Layout:
    at, align, pointers = 0, 1, False
    flat: list[str] = []
    offsets: list[int] = []
    for part in parts:
        inner = layout(part)
        at = align_up(at, inner.align)
        offsets.append(at)
        at += inner.size
        align = max(align, inner.align)
        flat += inner.flat
        pointers = pointers or inner.has_pointers
    return Layout(align_up(at, align), align, tuple(flat), tuple(offsets), has_pointers=pointers)


def _variant(cases: Sequence[Type | None]) -> Layout:
    number = len(cases)
    tag = 1 if number <= 1 << 8 else 2 if number <= 1 << 16 else 4
    inner = [layout(case) for case in cases if case is not None]
    align = max((tag, *(one.align for one in inner)))
    payload = align_up(tag, max((1, *(one.align for one in inner))))
    size = payload + max((0, *(one.size for one in inner)))
    return Layout(
        align_up(size, align),
        align,
        ("i32", *join_flat(one.flat for one in inner)),
        tag=tag,
        payload=payload,
        has_pointers=any(one.has_pointers for one in inner),
    )


def join_flat(several: Iterable[Sequence[str]]) -> list[str]:
    """Return the flat types that hold the values of any one of several cases."""
    joined: list[str] = []
    for flat in several:
        for place, kind in enumerate(flat):
            if place == len(joined):
                joined.append(kind)
            elif joined[place] != kind:
                joined[place] = "i32" if {joined[place], kind} == {"i32", "f32"} else "i64"
    return joined


@final
@frozen
class Signature:
    """The core function behind a function: its wasm types, and what is spilled."""

    params: tuple[str, ...]
    results: tuple[str, ...]
    arguments: Layout | None
    """Layout of the record of all arguments, whose address is passed; None: they are flat."""
    returned: Layout | None
    """Layout of the result, whose address is returned; None: it is flat, or there is none."""


def lifted_signature(function: Function) -> Signature:
    """Return the type of the core function that a component exports as `function`.

    Raises:
        ValueError: values of one of its types are not supported.
    """
    arguments = _record([inner for _, inner in function.params]) if function.params else None
    result = None if function.result is None else layout(function.result)
    params: tuple[str, ...] = () if arguments is None else arguments.flat
    results: tuple[str, ...] = () if result is None else result.flat
    spilled = len(params) > FLAT_PARAMETERS
    returned = len(results) > FLAT_RESULTS
    return Signature(
        ("i32",) if spilled else params,
        ("i32",) if returned else results,
        arguments if spilled else None,
        result if returned else None,
    )


def lowered_signature(function: Function) -> Signature:
    """Return the type of the core function as which a component imports `function`.

    A spilled result is written to an address that is the last parameter.

    Raises:
        ValueError: values of one of its types are not supported.
    """
    one = lifted_signature(function)
    if one.returned is None:
        return one
    return Signature((*one.params, "i32"), (), one.arguments, one.returned)
