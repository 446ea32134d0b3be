"""What a lease may find of the lease before it: the levels of isolation, and what is said of them.

- `REUSE`: all of it. An instance serves one lease after the other as it is.
- `FRESH`: nothing. Every lease gets a new instance, which is closed when the lease ends and leaves
  a *seat*: it keeps the module loaded, so that the next lease only has to instantiate it.
- `RESET`: nothing, either. When a lease ends, its instance is put back to the state in which it
  began. Where that can't be done, it is closed, and leaves a seat.

What a module's own code can change is its memories, its tables, its mutable globals, and which of
its passive segments it has dropped. The last can't be undone, so such modules are not reset.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ..config import WASM_PAGE
from .reader import ModuleInfo

REUSE: Final = "reuse"
FRESH: Final = "fresh"
RESET: Final = "reset"
ISOLATIONS: Final = (REUSE, FRESH, RESET)

SEAT_SIZE: Final = WASM_PAGE
"""Bytes that a seat counts: what an instance does beside its memories and tables."""
MAX_RESTORED: Final = 256
"""Mutable globals and tables that are put back: each is linked anew for every instance."""


def obstacle(info: ModuleInfo, starts: bool, given: Collection[tuple[str, str]]) -> str | None:
    """Why instances of a module can't be put back, as far as its sections tell; None: they can.

    Args:
        starts: whether code of the module runs before the first lease.
        given: (module, name) of the imports that the application serves.
    """
    if info.passive_data:
        return "its data segments can be dropped, which can't be undone"
    if info.passive_elements:
        return "its element segments can be dropped, which can't be undone"
    if starts and any((item.module, item.name) in given for item in info.imports):
        return "its start may call host functions, so it can't be tried beforehand"
    restored = len(info.tables) + sum(item.mutable for item in info.globals)
    if restored > MAX_RESTORED:
        return f"it has {restored} mutable globals and tables, more than {MAX_RESTORED}"
    return None


def hides_globals(info: ModuleInfo) -> bool:
    """Return whether the module has mutable globals that are not exported.

    Preparing it to be reset exports them: its code is another then.
    """
    exported = {export.index for export in info.exports if export.kind == "global"}
    return any(one.mutable and number not in exported for number, one in enumerate(info.globals))


def verdict(isolation: str, why_not: str | None) -> str:
    """What becomes of what a lease leaves behind, in one sentence.

    Args:
        why_not: an obstacle to reset, where that was asked for.
    """
    if isolation == REUSE:
        return "reuse: state stays from one lease to the next, as asked for"
    if isolation == FRESH:
        return "fresh: every lease gets a new instance, as asked for"
    if why_not is not None:
        return f"fresh: every lease gets a new instance, as reset is not possible: {why_not}"
    return (
        "reset: an instance is put back to how it began when its lease ends, "
        "or replaced if it has grown"
    )
