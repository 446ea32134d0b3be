"""Long conversions: which ones count as long, and how a thread that runs one lets others run.

Python switches threads every 5 ms where it can. That is too seldom for an event loop, so a thread
that converts releases the GIL more often, wherever the conversion calls `breathe`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from .._gil import Breath
from .base import Value

T = TypeVar("T")

# Number of values in a collection, and bytes of one, whose conversion takes about 2 ms.
MANY, LONG = 4096, 32 * 1024
# Seconds between two releases of the GIL.
EVERY = 0.001
_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})
MAX_DEPTH = 32
_thread = threading.local()


def is_large(values: object) -> bool:
    """Return whether collections contain at least `MANY` values, including nested ones.

    Only Python's own classes are inspected, as those of others may run any code.
    """
    return _count(values, MANY, MAX_DEPTH) >= MANY


def _count(value: Value, limit: int, depth: int) -> int:
    if type(value) not in _CONTAINERS or not depth:
        return 1
    number = len(value) + 1
    if number >= limit:
        return number
    for item in value.values() if isinstance(value, dict) else value:
        number += _count(item, limit - number, depth - 1) - 1
        if number >= limit:
            break
    return number


def breathe() -> None:
    """Release the GIL if it is time to; called every now and then by long conversions."""
    breath: Breath | None = getattr(_thread, "breath", None)
    if breath is not None:
        breath()


def paced(function: Callable[..., T], *values: object) -> T:
    """Call the function in a thread in which `breathe` has an effect."""
    _thread.breath = Breath(EVERY)
    try:
        return function(*values)
    finally:
        _thread.breath = None
