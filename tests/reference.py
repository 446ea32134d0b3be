"""All that is public: names, classes, functions, methods and properties, as tests walk them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import trio_wasmcache
from trio_wasmcache import aio, blocking, prometheus, testing, udf
from trio_wasmcache.report.reading import schema

MODULES = (trio_wasmcache, testing, prometheus, blocking, aio, udf, schema)
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
}
CLASSES = {name: thing for name, thing in PUBLIC.items() if isinstance(thing, type)}
# Methods that Python or another library calls, with parameters of its choosing.
OPERATORS = {"__aenter__", "__aexit__"}


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class and its bases of this library."""
    for base in cls.__mro__:
        if base.__module__.startswith("trio_wasmcache"):
            for name, member in vars(base).items():
                if not name.startswith("_") or name in OPERATORS:
                    yield name, member


def function_of(member: Any) -> Callable[..., object] | None:
    """The function behind a method, a class method or a property; None if there is none."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, functools.cached_property):
        return member.func
    if isinstance(member, (classmethod, staticmethod)):
        return member.__func__
    return member if inspect.isfunction(member) else None


def all_functions() -> dict[str, tuple[Any, Callable[..., object]]]:
    """{dotted name: (function, method or property; the function behind it)}."""
    found = {name: (thing, thing) for name, thing in PUBLIC.items() if inspect.isfunction(thing)}
    for path, cls in CLASSES.items():
        for name, member in members(cls):
            function = function_of(member)
            if function is not None:
                found.setdefault(f"{path}.{name}", (member, function))
    return found


FUNCTIONS = all_functions()
