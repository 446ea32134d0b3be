"""Names public classes and functions as users import them, as Trio does for its own."""

from __future__ import annotations

from typing import TypeVar

import attrs

T = TypeVar("T", bound=object)


def public(thing: T) -> T:
    """Decorate a public class or function: its `__module__` is ``trio_wasmcache``.

    So tracebacks, `repr` and pickles have the public name, and files can be moved. It must be the
    outermost decorator.

    The types of attrs fields are resolved first, which takes the names of the defining file: cattrs
    and others would look for them in `trio_wasmcache`.
    """
    if isinstance(thing, type) and attrs.has(thing):
        attrs.resolve_types(thing)
    thing.__module__ = "trio_wasmcache"
    return thing
