"""A check for free frames on Python's stack, made while a `RecursionError` is still harmless.

Where a `RecursionError` would come too late (half-way through a change of several books, or in a
callback that C made), the code before it checks that enough frames are left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

# Frames needed by the deepest of these places, and a reserve.
FRAMES = 20


def _nested(inner: Callable[[], None]) -> Callable[[], None]:
    return lambda: inner()


def _nothing() -> None:
    pass


check_headroom: Callable[[], None] = functools.reduce(
    lambda inner, _: _nested(inner), range(FRAMES), _nothing
)
"""Raises `RecursionError` if fewer than `FRAMES` more calls can be nested here.

Each function only calls the next: that takes half the time of counting the frames.
"""
