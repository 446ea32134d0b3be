"""The key of a function: its name and argument types, as the caller spelt them.

Overloads are separate functions, so the types are part of the key. The exact spelling is looked
up first, because that is one dictionary access; types are normalised only when that fails.
"""

from __future__ import annotations

import enum
import heapq
import re
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import frozen

from .text import cut, listed, printable, shown

_SPACE = re.compile(r"\s+")
# A name appears in logs and messages: no control characters, and a limited length.
MAX_NAME_LENGTH = 256
# Characters of a key that a message shows; an unknown one may be of any length.
MAX_SHOWN = 1000
# Characters of the name of a type in a line to write.
MAX_TYPE = 50
# {name of a class, of Python's or NumPy's: name of the type that is mostly meant}
_NAME_OF = {
    "int": "i64",
    "float": "f64",
    "bool": "bool",
    "str": "str",
    "bytes": "bytes",
    **{f"int{bits}": f"i{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"u{bits}" for bits in (8, 16, 32, 64)},
    "float32": "f32",
    "float64": "f64",
}
# Number of names that an unknown one is compared with: each takes up to 0.1 ms.
MAX_COMPARED = 50


class Inferred(enum.Enum):
    """See `INFERRED`; an enum, so that type checkers can tell it from types."""

    INFERRED = "inferred"

    def __repr__(self) -> str:
        return "INFERRED"


INFERRED: Final = Inferred.INFERRED
"""What stands for types that are left out: those of a component's function are its own."""


@frozen
class FunctionKey:
    """Name and argument types; `str()` gives ``name(type, type)``, with ten types at most."""

    name: str
    args: tuple[str, ...]

    def __str__(self) -> str:
        return printable(f"{self.name}({listed(self.args)})", MAX_SHOWN)

    @property
    def arg_types(self) -> str:
        """The types as events have them: separated by commas."""
        return ", ".join(self.args)

    @staticmethod
    def logged(name: str, arg_types: str) -> FunctionKey:
        """Return the key of which events have that name and these types."""
        return FunctionKey(name, tuple(arg_types.split(", ")) if arg_types else ())


def normalise_type(name: str) -> str:
    """Return a type in lower case and without spaces (``List< Int >`` becomes ``list<int>``)."""
    return _SPACE.sub("", str.__str__(name)).lower()


def _remedy(given: object, what: str) -> str:
    """Return what to do about a type that is no `str`, as the end of a message."""
    if isinstance(given, type) and given.__name__ in _NAME_OF:
        return f': write "{_NAME_OF[given.__name__]}"'
    return ": args are types, the values go to call()" if what.endswith("args") else ""


def normalise_types(names: object, what: str = "args") -> tuple[str, ...]:
    """Apply `normalise_type` to each name.

    Args:
        names: the names of types.
        what: the name of the parameter for messages; values may be given as ``args`` by mistake.

    Raises:
        TypeError: `names` is not a sequence of strings.
    """
    if isinstance(names, str):
        name = str.__str__(names)
        right = f'("{cut(name, MAX_TYPE)}",)' if name.isidentifier() else '("i64",)'
        raise TypeError(f"{what} must be a sequence of types, such as {right}, got {shown(names)}")
    # A set has no order, so types would change places from run to run.
    if not isinstance(names, Iterable) or isinstance(names, (set, frozenset, Mapping, bytes)):
        # One result may be given by its name alone.
        sample = '"i64" or ("i64", "f64")' if what.endswith("returns") else '("i64",)'
        raise TypeError(
            f"{what} must be a sequence of types, such as {sample}, got {shown(names)}"
            f"{_remedy(names, what)}"
        )
    types = tuple(names)
    for name in types:
        if not isinstance(name, str):
            raise TypeError(
                f'{what} must be names of types, such as "i64", got {shown(name)}'
                f"{_remedy(name, what)}"
            )
    normal = tuple(normalise_type(name) for name in types)
    # As it was given, if it is spelt so: then functions share a tuple that callers share.
    return types if {*map(type, types)} <= {str} and types == normal else normal


def check_name(name: object) -> str:
    """Return `name` if it is valid: a `str` of 1 to 256 printable characters; else raise."""
    if not isinstance(name, str):
        raise TypeError(f"a function name must be a str, got {shown(name)}")
    name = str.__str__(name)  # an instance of a subclass may be equal to anything
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError(
            f"a function name must be 1 to {MAX_NAME_LENGTH} printable characters, "
            f"got {cut(name, 43)!r}"
        )
    return name


def spelt_out(name: str, known: Iterable[FunctionKey]) -> tuple[FunctionKey, ...]:
    """Return the functions that a name with types means, which is how messages and logs spell them.

    If none has these types, all of that name; at most four, and none if there are no types in it.
    """
    head, _, rest = name.rpartition("(")
    if not rest.endswith(")") or len(name) > MAX_SHOWN:
        return ()
    named = [key for key in known if key.name == head.strip()]
    exact = [key for key in named if normalise_type(str(key)) == normalise_type(name)]
    return tuple((exact or named)[:4])


def near_misses(wanted: FunctionKey, known: Iterable[FunctionKey]) -> tuple[str, ...]:
    """Return similar keys to suggest: other overloads first, then similar names; at most four."""
    keys = list(known)
    overloads = [str(key) for key in keys if key.name == wanted.name]
    others = {key.name for key in keys if key.name != wanted.name}
    likely: list[str] = []
    if len(wanted.name) <= MAX_NAME_LENGTH:
        # Misspelt names mostly have the same first letter and a similar length.
        length, first = len(wanted.name), wanted.name[:1]
        likely = heapq.nsmallest(
            MAX_COMPARED,
            others,
            key=lambda name: (abs(len(name) - length) + (name[:1] != first), name),
        )
    import difflib

    similar = set(difflib.get_close_matches(wanted.name, likely, n=3)) if likely else set()
    named = [str(key) for key in keys if key.name in similar]
    return tuple((overloads + named)[:4])
