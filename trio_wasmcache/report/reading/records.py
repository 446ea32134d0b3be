"""Makes events of the cache's own classes, `_core/events.py`, from the fields of a line.

A million events pass through here, so the usual case is fast: the values of all fields are fetched
together, and are accepted if values of the same types were checked one by one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter
from types import NoneType
from typing import Any, get_type_hints

from attrs import Factory, define

from ..._core.event_kinds import EVENTS
from ..._core.events import SCHEMA_VERSION, Event, Reason, Stamped
from ..._core.snapshot import Item
from .schema import STAMP_TYPES, item_type, types_of

# Numbers from here on are no sizes and no times. polars refuses whole ones itself.
ABSURD = 2**63
# Fields without a default that were added after the first logs of this schema were written: a log
# may lack them, and they are None in its events. See `Kind.absent` for all that it may lack.
OPTIONAL = frozenset(
    {"label", "deadline_seconds", "task", "blocked", "seat", "fuel"}
    | {"address_space_bytes", "mappings", "module_mappings"}
)
STAMPS = ("schema", *STAMP_TYPES)
_REASONS: dict[str, Any] = {reason.value: reason for reason in Reason}
# Characters that an item of a list counts as.
ITEM_LETTERS = 500
# Number of signatures remembered; there are a few for each kind of event.
MAX_SIGNATURES = 100


@define(eq=False)
class ItemKind:
    """How items of one class are made."""

    make: type[Item]
    types: tuple[tuple[str, tuple[type, ...]], ...]
    """(field, allowed types of its value)."""

    def build(self, values: object) -> Item:
        """Return an item with the fields of an object.

        Raises:
            ValueError: it is no object, or a value is not allowed.
        """
        if not isinstance(values, dict):
            raise ValueError("no item")
        found = {name: values.get(name) for name, _ in self.types}
        for name, kinds in self.types:
            if not fits(found[name], kinds):
                raise ValueError(name)
        return self.make(**found)


@define(eq=False)
class Kind:
    """How events of one class are made."""

    make: type[Event]
    names: tuple[str, ...]
    types: dict[str, tuple[type, ...]]
    """{field, stamps included: allowed types of its value}."""
    get: itemgetter[Any]
    """Fetches the stamps and the values of all fields."""
    reason: int | None
    """Index of the field that is the reason; None: there is none."""
    absent: dict[str, object]
    """{field that a line may lack: its value then}: in logs of older versions, which did not have
    it, and of processors that drop nulls."""
    lists: tuple[tuple[int, ItemKind], ...] = ()
    """Indices of the fields with lists of items, and their kinds."""
    known: dict[tuple[type, ...], Callable[[Any], tuple[float, ...]]] = Factory(dict)
    """{types of accepted values: getter of the numbers among them}."""

    def build(self, values: list[Any]) -> Event:
        """Return an event with these values of its fields, in order.

        Raises:
            ValueError: an item of a list is none.
        """
        if self.reason is not None:
            # A reason that this version does not know stays a text.
            values[self.reason] = _REASONS.get(values[self.reason], values[self.reason])
        for index, kind in self.lists:
            values[index] = tuple(map(kind.build, values[index]))
        return self.make.of(values)


def _kind_of(event: type[Event]) -> Kind:
    types = types_of(event)
    names = tuple(types)
    absent = {
        name: getattr(event, name, None)
        for name, kinds in types.items()
        if hasattr(event, name) or NoneType in kinds or name in OPTIONAL
    }
    return Kind(
        event,
        names,
        {**STAMP_TYPES, **types},
        itemgetter(*STAMPS, *names),
        names.index("reason") if "reason" in names else None,
        {"label": None, **absent},
        tuple(
            (names.index(name), ItemKind(item, tuple(types_of(item).items())))
            for name, hint in get_type_hints(event).items()
            if (item := item_type(hint)) is not None
        ),
    )


KINDS = {event.name: _kind_of(event) for event in EVENTS}


def read_event(fields: Any) -> Stamped | None:
    """Return an event with the fields of a line, if they have the usual types; else None.

    Raises:
        ValueError: an item of a list is none.
    """
    values = usual_values(fields)
    if values is None:
        return None
    _, cache, seq, at, label, *rest = values
    return Stamped(KINDS[fields["event"]].build(rest), cache, seq, at, label=label)


def usual_values(fields: Any) -> tuple[Any, ...] | None:
    """Return stamps and values of an event, if they have the usual types; else None.

    Then `Parser` accepts it, too, but for items of lists.
    """
    try:
        kind = KINDS[fields["event"]]
        values: tuple[Any, ...] = kind.get(fields)
        numbers = kind.known[tuple(map(type, values))](values)
        # A sum below `ABSURD` has no part above it, and none that is infinite or no number; an int
        # of hundreds of digits can't even be added to floats.
        if not sum(map(abs, numbers)) < ABSURD:
            return None
    except (KeyError, TypeError, OverflowError):
        return None
    return None if values[0] != SCHEMA_VERSION or values[2] < 1 else values


def make_event(fields: dict[str, Any]) -> Stamped:
    """Return an event with fields that were checked one by one.

    Raises:
        ValueError: an item of a list is none.
    """
    kind = KINDS[fields["event"]]
    learn_types(fields)
    event = kind.build([fields.get(name) for name in kind.names])
    label = fields.get("label") or ""
    return Stamped(event, fields["cache"], fields["seq"], fields["at_seconds"], label=label)


def learn_types(fields: dict[str, Any]) -> None:
    """Take the types of the values of an event, which were checked one by one, for usual ones."""
    kind = KINDS[fields["event"]]
    if len(kind.known) < MAX_SIGNATURES and kind.types.keys() <= fields.keys():
        signature = tuple(map(type, kind.get(fields)))
        numbers = [index for index, one in enumerate(signature) if one in (int, float)]
        kind.known[signature] = itemgetter(*numbers)  # the stamps alone are three


def letters_of(event: Event) -> int:
    """Return the number of characters in an event's texts."""
    values = [getattr(event, name) for name in KINDS[event.name].names]
    letters = sum(len(it) for it in values if isinstance(it, str))
    for it in values:
        if type(it) is tuple:
            letters += ITEM_LETTERS * len(it)
    return letters


def fits(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether a field may have this value."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) and (not isinstance(value, (int, float)) or abs(value) < ABSURD)


def is_endless(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether it is the infinity that some fields have as null."""
    return value == math.inf and NoneType in kinds
