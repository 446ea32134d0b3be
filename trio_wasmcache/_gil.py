"""Checks that there is a GIL, and gives it up now and then in a thread that runs Python for long.

Python switches threads every 5 ms at best, and the event loop would wait that long for the GIL
whenever it returns from wasmtime.
"""

from __future__ import annotations

import sys
import time
from typing import final

# Length of a pause (seconds): enough for another thread to wake up and take the GIL.
LENGTH = 0.0001


def check_gil(function: str) -> None:
    """Check that only one thread runs Python code at a time.

    Threads of a cache share instances, jobs and the log with the event loop, one step of Python at
    a time. Free-threaded builds of Python do not promise that, unless they are told to.

    Raises:
        RuntimeError: this interpreter runs without the GIL.
    """
    enabled = getattr(sys, "_is_gil_enabled", None)
    if enabled is not None and not enabled():
        raise RuntimeError(
            f"{function}() needs the GIL, which is off in this free-threaded build of Python: set "
            "PYTHON_GIL=1 or run it with -X gil=1, or use an ordinary build"
        )


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
