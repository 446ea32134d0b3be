"""Gives up the GIL now and then in a thread that runs Python code for long.

Python switches threads every 5 ms at best, and the event loop would wait that long for the GIL
whenever it returns from wasmtime.
"""

from __future__ import annotations

import time
from typing import final

# Length of a pause (seconds): enough for another thread to wake up and take the GIL.
LENGTH = 0.0001


@final
class Breath:
    """Gives up the GIL for a moment when called, if the last time was at least `every` ago."""

    def __init__(self, every: float) -> None:
        """Start counting now; `every` is the least time between two pauses (seconds)."""
        self._every = every
        self._last = time.perf_counter()

    def __call__(self) -> None:
        """Give up the GIL, if it is time."""
        if time.perf_counter() - self._last > self._every:
            time.sleep(LENGTH)
            self._last = time.perf_counter()
