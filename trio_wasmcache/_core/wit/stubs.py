"""Functions of a component as Python signatures, as in a stub file: for people to read.

Records become named tuples; names for variants, enums and flags become aliases of what their values
are. The listing is valid Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from .text import body_text, function_text, named_types
from .types import (
    U8,
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
from .values import class_name, python_name

_PRIMITIVES: Final = {
    "bool": "bool",
    "f32": "float",
    "f64": "float",
    "char": "str",
    "string": "str",
}
# Names that a listing may import.
_TYPING: Final = ("Literal", "NamedTuple")
_VALUES: Final = ("Case", "Err", "Ok", "Some")


def list_functions(functions: Iterable[tuple[str, Function]]) -> list[str]:
    """Return the lines of a stub file with these functions, and all types that they need.

    Args:
        functions: name in WIT and type of each.
    """
    return list(_Listing(list(functions)).lines())


class _Listing:
    def __init__(self, functions: list[tuple[str, Function]]) -> None:
        self.functions = functions
        self.used: set[str] = set()
        self.names: dict[Named, str] = {}
        self.taken: set[str] = {*_TYPING, *_VALUES}

    def lines(self) -> Iterator[str]:
        types = [
            one
            for _, function in self.functions
            for one in (*(kind for _, kind in function.params), function.result)
            if one is not None
        ]
        body: list[str] = []
        for one in named_types(*types):
            body += [*self.definition(one), ""]
        for name, function in self.functions:
            body += self.signature(name, function)
        for module, names in (("typing", _TYPING), ("trio_wasmcache", _VALUES)):
            if used := [name for name in names if name in self.used]:
                yield f"from {module} import {', '.join(used)}"
        if self.used:
            yield ""
        yield from body

    def use(self, name: str) -> str:
        self.used.add(name)
        return name

    def name_of(self, one: Named) -> str:
        found = self.names.get(one)
        if found is None:
            found = base = class_name(one.name)
            number = 1
            while found in self.taken:
                number += 1
                found = f"{base}{number}"
            self.taken.add(found)
            self.names[one] = found
        return found

    def definition(self, one: Named) -> Iterator[str]:
        home = f" of {one.home}" if one.home else ""
        comment = f"  # {body_text(one).split(' ', 1)[0]} {one.name}{home}"
        if isinstance(one, Record):
            fields = [f"    {python_name(name)}: {self.type(kind)}" for name, kind in one.fields]
            yield f"class {self.name_of(one)}({self.use('NamedTuple')}):{comment}"
            yield from fields
        elif isinstance(one, Variant):
            yield f"{self.name_of(one)} = {self.cases(one)}{comment}"
        else:
            yield f"{self.name_of(one)} = {self.body(one)}{comment}"

    def cases(self, one: Variant) -> str:
        """Return what a variant is, with its cases as a comment."""
        cases = [
            f'Case("{name}")' if kind is None else f'Case("{name}", {self.type(kind)})'
            for name, kind in one.cases
        ]
        return f"{self.use('Case')}  # {' | '.join(cases)};"

    def body(self, one: Enum | Flags) -> str:
        labels = one.cases if isinstance(one, Enum) else one.labels
        listed = ", ".join(f'"{label}"' for label in labels)
        found = f"{self.use('Literal')}[{listed}]"
        return found if isinstance(one, Enum) else f"frozenset[{found}]"

    def type(self, one: Type) -> str:
        """Return a type as an annotation."""
        match one:
            case Primitive():
                return _PRIMITIVES.get(one.name, "int")
            case List():
                return "bytes" if one.element == U8 else f"list[{self.type(one.element)}]"
            case Tuple():
                return f"tuple[{', '.join(self.type(item) for item in one.items)}]"
            case Option():
                inner = self.use("Some") if isinstance(one.some, Option) else self.type(one.some)
                return f"{inner} | None"
            case Result():
                return f"{self.use('Ok')} | {self.use('Err')}"
            case Handle() | Unsupported():
                return "object"
            case _:
                if one.name:
                    return self.name_of(one)
                if isinstance(one, Variant):
                    return self.use("Case")
                return "tuple[object, ...]" if isinstance(one, Record) else self.body(one)

    def signature(self, name: str, function: Function) -> Iterator[str]:
        params = ", ".join(
            f"{python_name(label)}: {self.type(kind)}" for label, kind in function.params
        )
        result, raises = function.result, ""
        if isinstance(result, Result):
            error = "" if result.err is None else self.type(result.err)
            raises = f"; raises WitError({error})"
            result = result.ok
        returned = "None" if result is None else self.type(result)
        made = f"def {python_name(name)}({params}) -> {returned}: ..."
        yield f"{made}  # {name}: {function_text(function)}{raises}"
