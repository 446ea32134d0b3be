"""Lets the event loop have the interpreter while a thread works through a large module.

Python switches threads every 5 ms where it can, and the loop would wait that long whenever it comes
back from wasmtime.
"""

from __future__ import annotations

import time
from typing import final

# Seconds between two breaths, and how long one is: another thread has to wake up for it.
EVERY, LENGTH = 0.0005, 0.0001


@final
class Breath:
    """Call it now and then."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._last > EVERY:
            time.sleep(LENGTH)
            self._last = time.perf_counter()
