"""Facts: frozen values with named fields, for events and the items of a snapshot.

A class of `attrs` would serve, but generates and compiles its methods when it is imported, and sets
each field of a new value by a call. There are forty kinds of events: making their classes took a
tenth of importing and opening, and making two events a tenth of the bytecode of a miss. So the
methods are written once, here, and a fact keeps the dictionary in which its arguments come.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NoReturn, Self, dataclass_transform


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Fact:
    """Base of all facts. The annotations of a subclass are fields, which follow those of its base.

    Facts are equal if they are of one kind and all fields are.
    """

    field_names: ClassVar[tuple[str, ...]] = ()
    """Names of the fields, in order."""
    _defaults: ClassVar[dict[str, object]] = {}  # {field: default, or None}
    _required: ClassVar[frozenset[str]] = frozenset()  # those without a default

    def __init_subclass__(cls) -> None:
        own = [name for name, it in cls.__annotations__.items() if "ClassVar" not in it]
        cls.field_names += tuple(own)
        cls._defaults = cls._defaults | {name: getattr(cls, name, None) for name in own}
        cls._required |= {name for name in own if not hasattr(cls, name)}

    def __init__(self, **fields: Any) -> None:
        if not self._required <= fields.keys() <= self._defaults.keys():
            missing, unknown = self._required - fields.keys(), fields.keys() - self._defaults.keys()
            raise TypeError(
                f"{type(self).__name__}: missing {sorted(missing)}, unknown {sorted(unknown)}"
            )
        # A default stays in the class.
        object.__setattr__(self, "__dict__", fields)

    @classmethod
    def of(cls, values: Iterable[object]) -> Self:
        """Return a fact with these values of its fields, in order."""
        return cls.of_fields(dict(zip(cls.field_names, values, strict=True)))

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> Self:
        """Return a fact with these fields, unchecked; it keeps the dictionary.

        For those that every miss makes: keywords take four times the instructions.
        """
        fact = cls.__new__(cls)
        object.__setattr__(fact, "__dict__", fields)
        return fact

    def changed(self, **fields: Any) -> Self:
        """Return the same fact with other values of these fields."""
        return type(self)(**self.__dict__ | fields)

    def fields(self) -> dict[str, object]:
        """Return {field: value}, in order, None included."""
        # The log's thread does this for every event while the event loop waits for the GIL.
        return self._all()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._all() == other._all()

    def __hash__(self) -> int:
        return hash((type(self), *self._all().values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._all().items())
        return f"{type(self).__name__}({shown})"

    def _all(self) -> dict[str, object]:
        return self._defaults | self.__dict__

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")
