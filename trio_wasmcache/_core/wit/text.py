"""Types as WIT text: in keys and logs, in messages, and as definitions to read.

Named types appear by their name alone, without the interface that defines them.
"""

from __future__ import annotations

from .types import (
    Enum,
    Flags,
    Function,
    Handle,
    List,
    Named,
    Option,
    Primitive,
    Record,
    Result,
    Tuple,
    Type,
    Unsupported,
    Variant,
)


def type_text(one: Type) -> str:
    """Return a type as a reference to it is written, such as ``list<u8>`` or ``shape``."""
    match one:
        case Primitive():
            return one.name
        case List():
            return f"list<{type_text(one.element)}>"
        case Tuple():
            return f"tuple<{', '.join(type_text(item) for item in one.items)}>"
        case Option():
            return f"option<{type_text(one.some)}>"
        case Result():
            return _result(one)
        case Handle():
            return one.resource.name if one.owned else f"borrow<{one.resource.name}>"
        case Unsupported():
            return one.text
        case _:
            return one.name or body_text(one)


def _result(one: Result) -> str:
    if one.err is None:
        return "result" if one.ok is None else f"result<{type_text(one.ok)}>"
    return f"result<{'_' if one.ok is None else type_text(one.ok)}, {type_text(one.err)}>"


def body_text(one: Named) -> str:
    """Return a named type's definition in one line, such as ``record { x: f64, y: f64 }``."""
    match one:
        case Record():
            parts = [f"{name}: {type_text(inner)}" for name, inner in one.fields]
            kind = "record"
        case Variant():
            parts = [
                name if inner is None else f"{name}({type_text(inner)})"
                for name, inner in one.cases
            ]
            kind = "variant"
        case Enum():
            parts, kind = list(one.cases), "enum"
        case Flags():
            parts, kind = list(one.labels), "flags"
    return f"{kind} {{ {', '.join(parts)} }}"


def definition_text(one: Named) -> str:
    """Return a named type's definition with its name, such as ``enum hue { red, blue }``."""
    kind, body = body_text(one).split(" ", 1)
    return f"{kind} {one.name} {body}" if one.name else f"{kind} {body}"


def function_text(one: Function) -> str:
    """Return a function's type, such as ``func(a: s64, b: s64) -> s64``."""
    params = ", ".join(f"{name}: {type_text(inner)}" for name, inner in one.params)
    result = "" if one.result is None else f" -> {type_text(one.result)}"
    return f"func({params}){result}"


def named_types(*types: Type) -> list[Named]:
    """Return the named types that these consist of, each once, those it needs before it."""
    found: dict[Named, None] = {}
    seen: set[Type] = set()

    def visit(one: Type) -> None:
        if one in seen:
            return
        seen.add(one)
        for inner in parts_of(one):
            visit(inner)
        if isinstance(one, Named) and one.name:
            found[one] = None

    for one in types:
        visit(one)
    return list(found)


def parts_of(one: Type) -> tuple[Type, ...]:
    """Return the types that a type directly consists of."""
    match one:
        case List():
            return (one.element,)
        case Record():
            return tuple(inner for _, inner in one.fields)
        case Tuple():
            return one.items
        case Variant():
            return tuple(inner for _, inner in one.cases if inner is not None)
        case Option():
            return (one.some,)
        case Result():
            return tuple(inner for inner in (one.ok, one.err) if inner is not None)
        case _:
            return ()
