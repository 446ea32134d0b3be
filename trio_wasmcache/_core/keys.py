"""What names a function: its name and argument types, spelt as the caller spelt them.

Overloads are separate functions, so the types are part of the key. The exact spelling is looked
up first, because that is one dictionary access; only a miss pays for normalising.
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Iterable

from attrs import frozen

from .text import cut, printable

_SPACE = re.compile(r"\s+")
# A name ends up in logs and messages: no control characters, and no essays.
MAX_NAME_LENGTH = 256
# Whoever asks for what is not there may ask for anything: it is shown up to here.
MAX_SHOWN = 1000
# Names that an unknown one is compared with: each takes up to a tenth of a millisecond.
MAX_COMPARED = 50


@frozen
class FunctionKey:
    """Name and argument types; `str()` gives ``name(type, type)``."""

    name: str
    args: tuple[str, ...]

    def __str__(self) -> str:
        return printable(f"{self.name}({', '.join(self.args)})", MAX_SHOWN)


def normalise_type(name: str) -> str:
    """The one spelling of a type name: lower case, no spaces (``List< Int >`` is ``list<int>``)."""
    return _SPACE.sub("", str.__str__(name)).lower()


def normalise_types(names: Iterable[str]) -> tuple[str, ...]:
    """`normalise_type` for each; a `TypeError` for what is not a sequence of strings."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f'argument types must be a sequence such as ("i64",), got {names!r:.100}')
    types = tuple(names)
    for name in types:
        if not isinstance(name, str):
            raise TypeError(f"a type name must be a str, got {name!r}")
    return tuple(normalise_type(name) for name in types)


def check_name(name: object) -> str:
    """The name, if it can be one: a `str`, not empty, printable, at most 256 characters."""
    if not isinstance(name, str):
        raise TypeError(f"a function name must be a str, got {name!r}")
    name = str.__str__(name)  # one of a class of its own may be equal to anything
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError(
            f"a function name must be 1 to {MAX_NAME_LENGTH} printable characters, "
            f"got {cut(name, 43)!r}"
        )
    return name


def near_misses(wanted: FunctionKey, known: Iterable[FunctionKey]) -> tuple[str, ...]:
    """What the caller may have meant: other overloads first, then similar names; at most four."""
    keys = list(known)
    overloads = [str(key) for key in keys if key.name == wanted.name]
    others = {key.name for key in keys if key.name != wanted.name}
    likely: list[str] = []
    if len(wanted.name) <= MAX_NAME_LENGTH:
        # Slips of the pen begin alike, and are about as long.
        length, first = len(wanted.name), wanted.name[:1]
        likely = heapq.nsmallest(
            MAX_COMPARED,
            others,
            key=lambda name: (abs(len(name) - length) + (name[:1] != first), name),
        )
    similar = set(difflib.get_close_matches(wanted.name, likely, n=3)) if likely else set()
    named = [str(key) for key in keys if key.name in similar]
    return tuple((overloads + named)[:4])
