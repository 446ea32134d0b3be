"""Presents public classes and functions as users import them: their names, and their fields.

Python discards the string below a field, which describes it. `help()` shows it all the same: the
docstring of a public class is completed from its source when it is first read.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import (
    Any,
    NamedTuple,
    NoReturn,
    ParamSpec,
    TypeVar,
    final,
    get_overloads,
    get_type_hints,
    overload,
)

import attrs

T = TypeVar("T", bound=object)

C = TypeVar("C")
P = ParamSpec("P")

# {class that users only get from others: what fills a new instance of it}
_inits: dict[type, Callable[..., None]] = {}
_sources: dict[type, str] = {}  # {public class: the module in which it is defined}


def public(thing: T) -> T:
    """Decorate a public class or function: its `__module__` is ``trio_wasmcache``.

    So tracebacks, `repr` and pickles have the public name, and files can be moved. It must be the
    outermost decorator.

    The types of attrs fields are resolved first, which takes the names of the defining file: cattrs
    and others would look for them in `trio_wasmcache`.
    """
    return _present("trio_wasmcache", thing)


def public_in_testing(thing: T) -> T:
    """Decorate a class of `trio_wasmcache.testing`, as `public` does."""
    return _present("trio_wasmcache.testing", thing)


def public_in_udf(thing: T) -> T:
    """Decorate a class of `trio_wasmcache.udf`, as `public` does."""
    return _present("trio_wasmcache.udf", thing)


def _present(module: str, thing: T) -> T:
    if isinstance(thing, type):
        cls: Any = thing
        if attrs.has(cls):
            types = get_type_hints(cls, include_extras=True)
            cls.__annotations__.update((name, types[name]) for name in cls.__annotations__)
            attrs.resolve_types(cls)  # finds them resolved, which took as long again
            # Its value is the class, so help() would show the docstring of the class twice.
            delattr(cls, "__attrs_types_resolved__")
        else:
            # `get_type_hints` would look for their types in `trio_wasmcache`, too.
            annotations = vars(cls).get("__annotations__", {})
            for name in [name for name in annotations if name.startswith("_")]:
                del annotations[name]
        for member in vars(cls).values():
            if inspect.isfunction(member):
                overloads = get_overloads(member)  # which Python finds by the module's name
                member.__module__ = module
                for one in overloads:
                    one.__module__ = module
                    overload(one)
        _sources[cls] = cls.__module__
        documentation: Any = _Documentation(cls)
        if type(cls) is type:
            cls.__doc__ = documentation
        elif attrs.has(cls):
            # `inspect.getdoc` takes what lies in a class of another metaclass as it is.
            cls.__doc__ = documentation.__get__(None, cls)
    thing.__module__ = module
    return thing


def only_from(way: str) -> Callable[[type[C]], type[C]]:
    """Decorate a class that users only get from others: to call it raises `TypeError`; see `made`.

    Args:
        way: what the message says after the name of the class.
    """

    def decorate(cls: type[C]) -> type[C]:
        def refuse(_self: object, *_: object, **__: object) -> NoReturn:
            article = "an" if cls.__name__[0] in "AEIO" else "a"
            raise TypeError(f"{article} {cls.__name__} {way}")

        anything: Any = cls
        _inits[cls] = anything.__init__
        anything.__init__ = refuse
        return cls

    return decorate


def made(cls: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make an instance of a class that is decorated with `only_from`."""
    kind: Any = cls
    self: T = kind.__new__(kind)
    _inits[kind](self, *args, **kwargs)
    return self


@final
class FieldDoc(NamedTuple):
    """The description of a field, from its source."""

    type: str
    default: str | None
    """Expression of the default; None: there is none."""
    text: str
    """String below the field, or an empty string."""

    def __str__(self) -> str:
        return self.type if self.default is None else f"{self.type} = {self.default}"


def described_fields(cls: type) -> dict[str, FieldDoc]:
    """Return {field: description} of a class and its bases, in order; empty without a source."""
    found: dict[str, FieldDoc] = {}
    for base in reversed(cls.__mro__):
        module = _sources.get(base, base.__module__)
        if module.partition(".")[0] != "trio_wasmcache":
            continue
        try:
            tree: ast.AST = ast.parse(inspect.getsource(sys.modules[module]))
        except (OSError, TypeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                found.update(_fields_in(node))
    return found


def _fields_in(tree: ast.AST) -> Iterator[tuple[str, FieldDoc]]:
    """Find the fields of a class, in its body or in its ``__init__``."""
    body: list[ast.stmt] = getattr(tree, "body", [])
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            yield from _fields_in(node)
        if not isinstance(node, ast.AnnAssign):
            continue
        target = ast.unparse(node.target)
        name = target.removeprefix("self.")
        if name.isidentifier() and not name.startswith("_"):
            default = _default(node.value) if name == target else None
            yield name, FieldDoc(ast.unparse(node.annotation), default, _text(below))


def _default(value: ast.expr | None) -> str | None:
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        options = {option.arg: option.value for option in value.keywords}
        factory = options.get("factory")
        if isinstance(factory, ast.Lambda):
            return ast.unparse(factory.body)
        if factory is not None:
            return f"{ast.unparse(factory)}()"
        value = options.get("default")
    if isinstance(value, ast.Constant) and type(value.value) is int:
        return f"{value.value:_}" if value.value >= 10_000 else str(value.value)
    return None if value is None else ast.unparse(value)


def _text(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return inspect.cleandoc(str(node.value.value))
    return ""


@final
class _Documentation:
    """The docstring of a class: as written, with a list of its fields."""

    def __init__(self, cls: type) -> None:
        self._written = cls.__doc__
        self._complete: str | None = None

    def __get__(self, _instance: object, cls: type) -> str | None:
        if self._complete is None and self._written is not None:
            parts = [inspect.cleandoc(self._written)]
            fields = {name: doc for name, doc in described_fields(cls).items() if doc.text}
            if fields:
                parts += ["\n\nFields:"]
            for name, doc in fields.items():
                parts += [f"\n    {name}: {doc}\n", textwrap.indent(doc.text, " " * 8)]
            self._complete = "".join(parts)
        return self._complete
