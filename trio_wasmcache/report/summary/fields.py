"""Says why no event has some values: a field is misspelt, or has other values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any, Final, final

from attrs import Factory, define

from ..reading.frames import EVENT_FIELDS
from ..reading.notes import cite, count

# Different fields, and different values of one, that are remembered.
MAX_FIELDS: Final = 1_000
MAX_VALUES: Final = 1_000
# Values that are shown.
MAX_SHOWN: Final = 3
# Characters of a field or a value that are compared.
MAX_COMPARED: Final = 100


@final
@define(eq=False)
class Fields:
    """The fields of events, and the values of those that are asked for."""

    asked: tuple[str, ...]
    _known: set[str] = Factory(set)
    _values: dict[str, dict[str, None]] = Factory(dict)
    """{field that is asked for: its different values, in order}."""
    _number: dict[str, int] = Factory(dict)
    """{field that is asked for: number of events that have it}."""

    def take(self, events: Iterable[dict[str, Any]]) -> None:
        """Add some events."""
        for event in events:
            if len(self._known) < MAX_FIELDS:
                self._known.update(event)
            for name in self.asked:
                found = event.get(name)
                if found is None:
                    continue
                self._number[name] = self._number.get(name, 0) + 1
                values = self._values.setdefault(name, {})
                if len(values) < MAX_VALUES:
                    text = found if isinstance(found, str) else json.dumps(found)
                    values[text[:MAX_COMPARED]] = None

    @property
    def none(self) -> bool:
        """Whether there were no events."""
        return not self._known

    def why(self) -> str:
        """Return what to add to ``no event has FIELD=VALUE``."""
        for name in self.asked:
            if name in self._values:
                continue
            if name in self._known:
                return f": {cite(name)} is null in all of them"
            if name in EVENT_FIELDS:
                return (
                    f": none of them has a field {name} of its own, and a field that a processor "
                    "adds can't have the name of another event's"
                )
            close = difflib.get_close_matches(name[:MAX_COMPARED], self._known, 1)
            hint = f": did you mean {cite(close[0])}?" if close else ""
            return f", nor any field {cite(name)}{hint}"
        told = []
        for name in dict.fromkeys(self.asked):
            values = list(self._values[name])
            some = ", ".join(map(cite, values[:MAX_SHOWN])) + ", ..." * (len(values) > MAX_SHOWN)
            told.append(f"{count(self._number[name], 'event')} with {cite(name)}: {some}")
        be = "is" if self._number[self.asked[0]] == 1 else "are"
        return f"; there {be} {', and '.join(told)}"
