"""How values of WIT's types lie in Arrow's arrays, which is known before there are values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, final

from attrs import field, frozen

from .._core.wit.text import type_text
from .._core.wit.types import U8, Enum, Flags, List, Option, Primitive, Record, Tuple, Type
from .._core.wit.values import python_name
from .base import Value

_PRIMITIVES: Final = {
    "bool": "bool_",
    **{f"s{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "f32": "float32",
    "f64": "float64",
    "char": "string",
    "string": "string",
}


@final
@frozen
class ArrowForm:
    """A type of Arrow, and how Python values are made such that it takes them."""

    factory: str
    """Name of pyarrow's factory: ``list_``, ``struct``, or that of a type without parts."""
    parts: tuple[tuple[str, ArrowForm], ...] = ()
    """(name, form) of each field of a struct, or of the element of a list, whose name is empty."""
    convert: Callable[[Value], Value] | None = field(default=None, eq=False)
    """Converts a value that is not None; None: it is taken as it is."""


NULL: Final = ArrowForm("null")


@functools.lru_cache(maxsize=1024)
def arrow_form(one: Type) -> ArrowForm:
    """Return the form of a type.

    Raises:
        TypeError: Arrow has no type for its values.
    """
    match one:
        case Primitive():
            return ArrowForm(_PRIMITIVES[one.name])
        case Enum():
            return ArrowForm("string")
        case Flags(labels=labels):
            flags = ArrowForm("string")
            return ArrowForm(
                "list_", (("", flags),), lambda value: [x for x in labels if x in value]
            )
        case List() if one.element == U8:
            return ArrowForm("binary")
        case List():
            element = arrow_form(one.element)
            return ArrowForm("list_", (("", element),), _each(element))
        case Option() if not isinstance(one.some, Option):
            return arrow_form(one.some)
        case Record():
            names = [python_name(name) for name, _ in one.fields]
            return _struct(names, [inner for _, inner in one.fields])
        case Tuple():
            return _struct([f"field_{place}" for place in range(len(one.items))], list(one.items))
        case _:
            raise TypeError(f"Arrow has no type for {type_text(one)}")


def _struct(names: list[str], types: list[Type]) -> ArrowForm:
    parts = [arrow_form(one) for one in types]
    converts = [part.convert for part in parts]
    convert = None
    if any(converts):

        def convert(value: Value) -> Value:
            return tuple(
                item if one is None or item is None else one(item)
                for one, item in zip(converts, value, strict=True)
            )

    return ArrowForm("struct", tuple(zip(names, parts, strict=True)), convert)


def _each(element: ArrowForm) -> Callable[[Value], Value] | None:
    one = element.convert
    if one is None:
        return None
    return lambda value: [None if item is None else one(item) for item in value]
