"""What a lease may find of the lease before it: the levels of isolation, and what is said of them.

- `REUSE`: all of it. An instance serves one lease after the other as it is.
- `FRESH`: nothing. Every lease gets a new instance, which is closed when the lease ends and leaves
  a *seat*: it keeps the module loaded, so that the next lease only has to instantiate it.
"""

from __future__ import annotations

from typing import Final

from .config import WASM_PAGE

REUSE: Final = "reuse"
FRESH: Final = "fresh"
ISOLATIONS: Final = (REUSE, FRESH)

SEAT_SIZE: Final = WASM_PAGE
"""Bytes that a seat counts: what an instance does beside its memories and tables."""


def verdict(isolation: str) -> str:
    """What becomes of what a lease leaves behind, in one sentence."""
    if isolation == FRESH:
        return "fresh: every lease gets a new instance, as asked for"
    return "reuse: state stays from one lease to the next, as asked for"
