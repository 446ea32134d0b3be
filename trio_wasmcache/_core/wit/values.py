"""Python values of WIT's types that Python has no type for: records, cases, results, options.

A record is a named tuple. Its class is made of the type and shared by all functions that use it. It
need not exist where a record is unpickled, which makes it again.
"""

from __future__ import annotations

import keyword
import weakref
from collections import namedtuple
from typing import Any, Final, Protocol, SupportsIndex, final

from attrs import frozen

from ..._public import public
from .types import Record


@public
@final
@frozen
class Case:
    """A value of a variant of a component: one of its cases."""

    name: str
    """The case, as WIT writes it: ``"too-large"``."""
    value: Any = None
    """The value of the case; None if it has none."""


@public
@final
@frozen
class Some:
    """A value of an option that is not none, where the value may be an option itself.

    An option of any other type is the value itself, or None.
    """

    value: Any
    """The inner option: None, or a value."""


@public
@final
@frozen
class Ok:
    """A success of a `result` type, where it is not the whole result of a function."""

    value: Any = None
    """The value; None if the type has none."""


@public
@final
@frozen
class Err:
    """A failure of a `result` type, where it is not the whole result of a function.

    A call whose whole result is a failure raises `WitError`.
    """

    value: Any = None
    """The error's value; None if the type has none."""


class RecordClass(Protocol):
    """A class of records: a named tuple."""

    _fields: tuple[str, ...]

    def __call__(self, *values: Any) -> Any:
        """Return a record."""

    def _make(self, values: Any, /) -> Any:
        """Return a record of an iterable of values."""


# {(home, name, fields): class}; a class exists as long as something uses it.
_classes: weakref.WeakValueDictionary[tuple[str, str, tuple[str, ...]], type] = (
    weakref.WeakValueDictionary()
)
_UNNAMED: Final = "Record"


def python_name(label: str) -> str:
    """Return a label of WIT as a Python name: in snake case, and no keyword."""
    name = label.replace("-", "_").lower()
    return f"{name}_" if keyword.iskeyword(name) else name


def class_name(label: str) -> str:
    """Return the name of a type of WIT as the name of a Python class."""
    return "".join(word.capitalize() for word in label.split("-")) or _UNNAMED


def record_class(one: Record) -> RecordClass:
    """Return the class of the values of a record type."""
    return _class(one.home, one.name, tuple(python_name(name) for name, _ in one.fields))


def _class(home: str, name: str, fields: tuple[str, ...]) -> RecordClass:
    key = home, name, fields
    made: Any = _classes.get(key)
    if made is None:
        make: Any = namedtuple  # checkers want its fields
        base: Any = make(class_name(name), fields)

        def reduce(self: Any, _protocol: SupportsIndex) -> tuple[object, ...]:
            return _record, (home, name, fields, tuple(self))

        made = type(
            base.__name__,
            (base,),
            {
                "__slots__": (),
                "__module__": "trio_wasmcache",
                "__doc__": f"A record {name} of {home}.".replace(" of .", "."),
                "__reduce_ex__": reduce,
            },
        )
        made = _classes.setdefault(key, made)
    found: RecordClass = made
    return found


def _record(home: str, name: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """Return a record; for pickles."""
    return _class(home, name, fields)._make(values)
