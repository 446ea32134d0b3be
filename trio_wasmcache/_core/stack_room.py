"""Room on Python's stack, asked for while running out of it can still be said.

Where a `RecursionError` would come too late (half-way through a change of several books, or in a
callback that C made), the place before it makes sure that there are frames left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

# What the deepest of these places needs, and some to spare.
FRAMES = 20


def _nested(inner: Callable[[], None]) -> Callable[[], None]:
    return lambda: inner()


def _nothing() -> None:
    pass


check_headroom: Callable[[], None] = functools.reduce(
    lambda inner, _: _nested(inner), range(FRAMES), _nothing
)
"""`RecursionError` if fewer than `FRAMES` more calls can be nested here.

Each function calls the next, and does nothing else: half of what it costs to count.
"""
