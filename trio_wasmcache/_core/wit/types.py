"""The types of WIT, the component model's interface language, as values.

1. Types are compared by structure, with the names of records, variants, enums and flags and the
   interfaces that define them (their homes).
2. A type is checked when it is made: its labels, their uniqueness, its size and its depth. So what
   works on types may recurse and may visit each part of a type.
3. Aliases have no type of their own: ``type id = u32`` is `U32`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias, final

from attrs import field, frozen

from ..text import shown

PART_LIMIT: Final = 10_000
"""Number of types that one type may consist of, itself included. Repeated ones count repeatedly."""
DEPTH_LIMIT: Final = 100
"""Number of types nested in each other, at most."""
FLAG_LIMIT: Final = 32
"""Number of labels of flags, at most: the component model's own limit."""
PARAMETER_LIMIT: Final = 1000
"""Number of parameters of a function, at most: wasmtime's own limit."""
# Each word matches in one way only, so that matching takes linear time.
_WORD: Final = "[0-9]*[a-z][0-9a-z]*|[0-9]*[A-Z][0-9A-Z]*|[0-9]+"
LABEL: Final = f"(?:[a-z][0-9a-z]*|[A-Z][0-9A-Z]*)(?:-(?:{_WORD}))*"
"""Regular expression for a name of WIT."""
_LABEL: Final = re.compile(LABEL, re.ASCII)


def is_label(name: str) -> bool:
    """Return whether a name is one of WIT's: words in kebab case, each of one case."""
    return _LABEL.fullmatch(name) is not None


@final
@frozen(cache_hash=True)
class Primitive:
    """A type without parts, such as `U8`; there is one value of each."""

    name: str
    """Its keyword."""
    parts: int = field(default=1, init=False, eq=False, repr=False)
    depth: int = field(default=1, init=False, eq=False, repr=False)


BOOL: Final = Primitive("bool")
S8: Final = Primitive("s8")
U8: Final = Primitive("u8")
S16: Final = Primitive("s16")
U16: Final = Primitive("u16")
S32: Final = Primitive("s32")
U32: Final = Primitive("u32")
S64: Final = Primitive("s64")
U64: Final = Primitive("u64")
F32: Final = Primitive("f32")
F64: Final = Primitive("f64")
CHAR: Final = Primitive("char")
STRING: Final = Primitive("string")
PRIMITIVES: Final = {
    one.name: one for one in (BOOL, S8, U8, S16, U16, S32, U32, S64, U64, F32, F64, CHAR, STRING)
}
"""{keyword: type}"""


@final
@frozen(cache_hash=True)
class List:
    """Any number of values of one type."""

    element: Type
    parts: int = field(init=False, eq=False, repr=False)
    depth: int = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _measure(self, (self.element,))


@final
@frozen(cache_hash=True)
class Record:
    """Values with names."""

    fields: tuple[tuple[str, Type], ...]
    name: str = ""
    """Its name in `home`; empty if it has none."""
    home: str = ""
    """The interface that defines it, as ``demo:shapes/funcs@0.1.0``; empty for a world's own."""
    parts: int = field(init=False, eq=False, repr=False)
    depth: int = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_labels("record", "field", self.name, [name for name, _ in self.fields])
        _measure(self, [one for _, one in self.fields])


@final
@frozen(cache_hash=True)
class Tuple:
    """Values without names."""

    items: tuple[Type, ...]
    parts: int = field(init=False, eq=False, repr=False)
    depth: int = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not self.items:
            raise ValueError("a tuple must have at least one item")
        _measure(self, self.items)


@final
@frozen(cache_hash=True)
class Variant:
    """One of several cases, which may each have a value."""

    cases: tuple[tuple[str, Type | None], ...]
    name: str = ""
    home: str = ""
    parts: int = field(init=False, eq=False, repr=False)
    depth: int = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_labels("variant", "case", self.name, [name for name, _ in self.cases])
        _measure(self, [one for _, one in self.cases if one is not None], len(self.cases))


@final
@frozen(cache_hash=True)
class Enum:
    """One of several names."""

    cases: tuple[str, ...]
    name: str = ""
    home: str = ""
    parts: int = field(init=False, eq=False, repr=False)
    depth: int = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_labels("enum", "case", self.name, self.cases)
        _measure(self, (), len(self.cases))


@final
@frozen(cache_hash=True)
class Flags:
    """Any of several names."""

    labels: tuple[str, ...]
    name: str = ""
    home: str = ""
    parts: int = field(init=False, eq=False, repr=False)
    depth: int = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_labels("flags", "label", self.name, self.labels)
        if len(self.labels) > FLAG_LIMIT:
            raise ValueError(
                f"{_called('flags', self.name)} may have {FLAG_LIMIT} labels at most, but has "
                f"{len(self.labels)}"
            )
        _measure(self, ())


@final
@frozen(cache_hash=True)
class Option:
    """A value or none."""

    some: Type
    parts: int = field(init=False, eq=False, repr=False)
    depth: int = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _measure(self, (self.some,))


@final
@frozen(cache_hash=True)
class Result:
    """Success or failure, which may each have a value."""

    ok: Type | None = None
    err: Type | None = None
    parts: int = field(init=False, eq=False, repr=False)
    depth: int = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _measure(self, [one for one in (self.ok, self.err) if one is not None])


@final
@frozen(cache_hash=True)
class Resource:
    """A kind of objects to which there are handles; it is no type of a value by itself."""

    name: str
    home: str = ""


@final
@frozen(cache_hash=True)
class Handle:
    """A handle to an object of a resource."""

    resource: Resource
    owned: bool
    """Whether the one who gets it owns the object; if not, it is lent for the call."""
    parts: int = field(default=1, init=False, eq=False, repr=False)
    depth: int = field(default=1, init=False, eq=False, repr=False)


@final
@frozen(cache_hash=True)
class Unsupported:
    """A type whose values this library can't convert, such as a stream."""

    text: str
    """The type as WIT writes it, as far as messages need it: ``stream<u8>``."""
    parts: int = field(default=1, init=False, eq=False, repr=False)
    depth: int = field(default=1, init=False, eq=False, repr=False)


Type: TypeAlias = (
    Primitive
    | List
    | Record
    | Tuple
    | Variant
    | Enum
    | Flags
    | Option
    | Result
    | Handle
    | Unsupported
)
"""A type of a value."""
Named: TypeAlias = Record | Variant | Enum | Flags
"""A type that its interface gives a name."""


@final
@frozen(cache_hash=True)
class Function:
    """The type of a function. Its own name is not part of it."""

    params: tuple[tuple[str, Type], ...]
    """(name, type) of each parameter."""
    result: Type | None = None
    """The type of its result; None: it has none."""

    def __attrs_post_init__(self) -> None:
        if len(self.params) > PARAMETER_LIMIT:
            raise ValueError(
                f"a function may have {PARAMETER_LIMIT} parameters at most, but one has "
                f"{len(self.params)}"
            )
        if self.params:
            _check_labels("function", "parameter", "", [name for name, _ in self.params])
        parts = sum(one.parts for _, one in self.params)
        if parts > PART_LIMIT:
            raise ValueError(
                f"the parameters of a function consist of {parts} types, more than {PART_LIMIT}"
            )


def _called(kind: str, name: str) -> str:
    if name or kind == "flags":
        return f"{kind} {name}".rstrip()
    return f"an {kind}" if kind == "enum" else f"a {kind}"


def _check_labels(kind: str, what: str, name: str, labels: Iterable[str]) -> None:
    """Raise `ValueError` if there are no labels, one is none of WIT's, or two are the same."""
    if name and not is_label(name):
        raise ValueError(f"{shown(name)} can't be the name of a {kind}: it is not in kebab case")
    seen: dict[str, str] = {}
    for label in labels:
        if not is_label(label):
            raise ValueError(
                f"{_called(kind, name)}: {shown(label)} can't be the name of a {what}: it is not "
                f"in kebab case"
            )
        if (folded := label.lower()) in seen:
            raise ValueError(
                f"{_called(kind, name)}: two {what}s are named {shown(seen[folded])} and "
                f"{shown(label)}"
            )
        seen[folded] = label
    if not seen:
        raise ValueError(f"{_called(kind, name)} must have at least one {what}")


def _measure(
    self: List | Record | Tuple | Variant | Enum | Flags | Option | Result,
    inner: Iterable[Type],
    cases: int = 0,
) -> None:
    """Set the number of parts, of which each case is one at least, and the depth."""
    inner = tuple(inner)
    parts = 1 + max(sum(one.parts for one in inner), cases)
    depth = 1 + max((one.depth for one in inner), default=0)
    if parts > PART_LIMIT:
        raise ValueError(f"a type consists of {parts} types, more than {PART_LIMIT}")
    if depth > DEPTH_LIMIT:
        raise ValueError(f"a type is nested {depth} deep, more than {DEPTH_LIMIT}")
    object.__setattr__(self, "parts", parts)
    object.__setattr__(self, "depth", depth)
