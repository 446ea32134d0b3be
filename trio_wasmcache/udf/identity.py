"""What a declaration is, as a digest: the same in each process, and for equal declarations only.

Functions are known by where they are imported from, as they are pickled. So a process that is given
a declaration again has its function already, and two versions of it are two functions.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

import attrs

from .._core.text import shown

# Objects within objects, at most: more are a circle, or nobody's declaration.
MAX_DEPTH: Final = 50


def digest_of(*values: object) -> str:
    """Return the digest of values (hexadecimal).

    Raises:
        TypeError: a function can't be imported by its name, or an object can't be pickled.
    """
    digest = hashlib.sha256()
    for value in values:
        _feed(digest.update, value, MAX_DEPTH)
    return digest.hexdigest()


def _feed(put: Callable[[bytes], object], value: Any, depth: int) -> None:
    if not depth:
        raise TypeError("is nested too deep to be pickled")
    kind, depth = type(value), depth - 1
    if kind in (bytes, bytearray):
        put(b"b%d:" % len(value))
        put(value)
    elif kind is str:
        data = value.encode("utf-8", "surrogatepass")
        put(b"s%d:" % len(data))
        put(data)
    elif value is None or kind in (bool, int):
        put(f"{value!r};".encode())
    elif kind is float:
        put(b"f" + struct.pack("<d", value))
    elif kind in (tuple, list):
        put(b"t%d:" % len(value))
        for item in value:
            _feed(put, item, depth)
    elif kind in (set, frozenset):
        put(b"e%d:" % len(value))
        for digest in sorted(map(digest_of, value)):
            put(digest.encode())
    elif isinstance(value, Mapping):
        put(b"m%d:" % len(value))
        for key, item in value.items():
            _feed(put, key, depth)
            _feed(put, item, depth)
    elif isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        put(b"g")
        _feed(put, _import_name(value), depth)
    elif attrs.has(kind):
        put(b"a")
        _feed(put, kind, depth)
        _feed(put, said(value), depth)
    else:
        put(b"o")
        _feed(put, _reduced(value), depth)


def said(value: Any) -> dict[str, Any]:
    """Return {parameter: value} of an attrs object, without those that have their default.

    So a version of the library that adds a parameter still reads what an older one has pickled, and
    the other way round while nobody uses the new one.
    """
    found = {}
    for one in attrs.fields(type(value)):
        if not one.init:
            continue
        default: Any = one.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = attrs.NOTHING if default.takes_self else default.factory()
        given = getattr(value, one.name)
        same = type(given) is type(default) and given == default
        if not same:
            found[one.alias or one.name] = given
    return found


def _reduced(value: object) -> object:
    """Return of what an object is pickled."""
    try:
        reduced: Any = value.__reduce_ex__(2)
    except Exception as error:
        raise TypeError(f"has {shown(value)}, which can't be pickled: {error}") from None
    if isinstance(reduced, str):
        return _import_name(value)
    make, args, *state = reduced
    return (
        make,
        args,
        *(part if part is None or number == 0 else [*part] for number, part in enumerate(state)),
    )


def _import_name(thing: Any) -> str:
    """Return from where a function or class is imported.

    Raises:
        TypeError: it can't be.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    home = sys.modules.get(module or "")
    found: Any = home
    for part in (name or "<>").split("."):
        found = getattr(found, part, None)
    # A worker's `__main__` is another program; there, cloudpickle brings the function.
    elsewhere = (home is None or module == "__main__") and name and "<" not in name
    if found != thing and not elsewhere:
        raise TypeError(
            f"has {shown(thing)}, which other processes can't import: define it at the top level "
            "of a module"
        )
    return f"{module}:{name}"
