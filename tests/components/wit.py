"""Types and neutral values of `shapes` as the library has them, for its canonical ABI by itself."""

from __future__ import annotations

import functools
from typing import Any

from trio_wasmcache import Case, Err, Ok, Some
from trio_wasmcache._core.wit import types as wit
from trio_wasmcache._core.wit.values import record_class

from .shapes import Shape, cases, members

HOME = "gen:echo/echoes@0.1.0"


@functools.cache
def wit_type(shape: Shape) -> wit.Type:
    """The library's type for one of the generator's."""
    if isinstance(shape, str):
        return wit.PRIMITIVES[shape]
    match shape:
        case ("list", of):
            return wit.List(wit_type(of))
        case ("tuple", *parts):
            return wit.Tuple(tuple(map(wit_type, parts)))
        case ("option", of):
            return wit.Option(wit_type(of))
        case ("result", ok, err):
            return wit.Result(
                None if ok is None else wit_type(ok), None if err is None else wit_type(err)
            )
        case ("record", fields):
            return wit.Record(tuple((name, wit_type(of)) for name, of in fields), "r", HOME)
        case ("variant", given):
            made = tuple((name, None if of is None else wit_type(of)) for name, of in given)
            return wit.Variant(made, "v", HOME)
        case ("enum", given):
            return wit.Enum(tuple(given), "e", HOME)
        case _:
            return wit.Flags(tuple(shape[1]), "f", HOME)


def function_type(params: tuple[Shape, ...], result: Shape | None) -> wit.Function:
    """The library's type of a function."""
    return wit.Function(
        tuple((f"p{at}", wit_type(of)) for at, of in enumerate(params)),
        None if result is None else wit_type(result),
    )


def to_python(shape: Shape, value: Any) -> Any:
    """The value that a caller of the library passes and gets."""
    if isinstance(shape, str) or shape[0] in ("enum", "flags") or shape == ("list", "u8"):
        return value
    match shape:
        case ("list", of):
            return [to_python(of, one) for one in value]
        case ("record" | "tuple", *_):
            made = tuple(to_python(of, one) for of, one in zip(members(shape), value, strict=True))
            kind: Any = wit_type(shape)
            return record_class(kind)(*made) if shape[0] == "record" else made
        case ("option", of):
            if value is None:
                return None
            inner = to_python(of, value[1])
            return Some(inner) if isinstance(of, tuple) and of[0] == "option" else inner
    name, inner = value
    of = dict(cases(shape))[name]
    made = None if of is None else to_python(of, inner)
    if shape[0] == "result":
        return (Ok if name == "ok" else Err)(made)
    return Case(name, made)
