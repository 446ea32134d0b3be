"""Between the neutral types and values of `shapes` and those of the library."""

from __future__ import annotations

from typing import Any

from trio_wasmcache import Case, Err, Ok, Some
from trio_wasmcache._core.wit import types as wit

from .shapes import Shape, cases, members


def shape_of(one: wit.Type) -> Shape:
    """The neutral type of one of the library's."""
    match one:
        case wit.Primitive():
            return one.name
        case wit.List():
            return "list", shape_of(one.element)
        case wit.Tuple():
            return "tuple", *map(shape_of, one.items)
        case wit.Option():
            return "option", shape_of(one.some)
        case wit.Result():
            return "result", *(None if of is None else shape_of(of) for of in (one.ok, one.err))
        case wit.Record():
            return "record", tuple((name, shape_of(of)) for name, of in one.fields)
        case wit.Variant():
            return "variant", tuple(
                (name, None if of is None else shape_of(of)) for name, of in one.cases
            )
        case wit.Enum():
            return "enum", one.cases
        case wit.Flags():
            return "flags", one.labels
    raise AssertionError(one)


def to_python(shape: Shape, value: Any) -> Any:
    """What the library takes and gives for a neutral value; records are tuples."""
    if isinstance(shape, str):
        return value
    match shape:
        case ("list", of):
            return value if of == "u8" else [to_python(of, one) for one in value]
        case ("enum" | "flags", _):
            return value
        case ("record" | "tuple", *_):
            return tuple(to_python(of, one) for of, one in zip(members(shape), value, strict=True))
        case ("option", of):
            if value is None:
                return None
            inner = to_python(of, value[1])
            return Some(inner) if of[0] == "option" else inner
    name, payload = value
    of = dict(cases(shape))[name]
    inner = None if of is None else to_python(of, payload)
    if shape[0] == "result":
        return Ok(inner) if name == "ok" else Err(inner)
    return Case(name, inner)


def to_neutral(shape: Shape, value: Any) -> Any:
    """The neutral value of what the library gives, whose classes are checked."""
    if isinstance(shape, str):
        return value
    match shape:
        case ("list", of):
            if of == "u8":
                assert type(value) is bytes
                return value
            assert type(value) is list
            return [to_neutral(of, one) for one in value]
        case ("enum" | "flags", _):
            return value
        case ("record" | "tuple", *_):
            assert isinstance(value, tuple)
            assert hasattr(value, "_fields") == (shape[0] == "record")
            return tuple(to_neutral(of, one) for of, one in zip(members(shape), value, strict=True))
        case ("option", of):
            if value is None:
                return None
            if of[0] == "option":
                assert type(value) is Some
                value = value.value
            return "some", to_neutral(of, value)
    if shape[0] == "result":
        assert type(value) in (Ok, Err)
        name = "ok" if type(value) is Ok else "err"
    else:
        assert type(value) is Case
        name = value.name
    of = dict(cases(shape))[name]
    return name, None if of is None else to_neutral(of, value.value)
