"""Let the event loop have the interpreter while a thread works in Python for long.

Python switches threads every 5 ms where it can, and the loop would wait that long whenever it comes
back from wasmtime.
"""

from __future__ import annotations

import time
from typing import final

# Seconds: another thread has to wake up meanwhile.
LENGTH = 0.0001


@final
class Breath:
    """Gives up the interpreter for a moment, when it is called and the last time is long ago."""

    def __init__(self, every: float) -> None:
        """Begin now; `every` is the least time between two breaths (seconds)."""
        self._every = every
        self._last = time.perf_counter()

    def __call__(self) -> None:
        """Take a breath, if it is time for one."""
        if time.perf_counter() - self._last > self._every:
            time.sleep(LENGTH)
            self._last = time.perf_counter()
