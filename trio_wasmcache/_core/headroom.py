"""Room on Python's stack, asked for while running out of it can still be said.

Where a `RecursionError` would come too late (half-way through a change of several books, or in a
callback that C made), the place before it makes sure that there are frames left.
"""

from __future__ import annotations

# What the deepest of these places needs, and some to spare.
FRAMES = 20


def check_headroom(frames: int = FRAMES) -> None:
    """`RecursionError` if fewer than `frames` more calls can be nested here."""
    if frames:
        check_headroom(frames - 1)
