"""The levels of isolation between leases, and their descriptions.

- `REUSE`: none. An instance serves one lease after the other as it is.
- `FRESH`: complete. Every lease gets a new instance, which is closed when the lease ends and leaves
  a *seat*: it keeps the module loaded, so that the next lease only has to instantiate it.
- `RESET`: complete, too. When a lease ends, its instance is restored to its initial state. Where
  that is impossible, it is closed, and leaves a seat.

A module's own code can change its memories, its tables, its mutable globals, and which of its
passive segments are dropped. Dropping can't be undone, so modules with passive segments are not
reset.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal, TypeAlias

from ..config import WASM_PAGE, CacheConfig
from .reader import ModuleInfo
from .types import COMMAND

Isolation: TypeAlias = Literal["reuse", "fresh", "reset"]
REUSE: Final = "reuse"
FRESH: Final = "fresh"
RESET: Final = "reset"
ISOLATIONS: Final[tuple[Isolation, ...]] = (REUSE, FRESH, RESET)

SEAT_SIZE: Final = WASM_PAGE
"""Bytes that a seat counts: those of an instance beside its memories and tables."""
MAX_RESTORED: Final = 1000
"""Number of mutable globals and tables to restore, at most: each is linked for every instance, in a
few microseconds. CPython in a component, dynamically linked, has some 500."""


def obstacle(
    info: ModuleInfo, starts: bool, given: Collection[tuple[str, str]], *others: ModuleInfo
) -> str | None:
    """Return why instances of a module can't be reset, judged from its sections; None: they can.

    Args:
        info: the module.
        starts: whether code of the module runs before the first lease.
        given: (module, name) of the imports that the application provides.
        *others: further modules in its instances.
    """
    infos = (info, *others)
    if any(one.passive_data for one in infos):
        return "its data segments can be dropped, which can't be undone"
    if any(one.passive_elements for one in infos):
        return "its element segments can be dropped, which can't be undone"
    starts = starts or any(one.start is not None for one in others)
    if starts and any((item.module, item.name) in given for one in infos for item in one.imports):
        return "its start may call host functions, so it can't be tried beforehand"
    restored = sum(
        len(one.own_tables) + sum(item.mutable for item in one.own_globals) for one in infos
    )
    if restored > MAX_RESTORED:
        return f"it has {restored} mutable globals and tables, more than {MAX_RESTORED}"
    return None


def hides_globals(info: ModuleInfo) -> bool:
    """Return whether the module has mutable globals that are not exported.

    Preparing it for reset exports them, which makes its code a different one.
    """
    exported = {export.index for export in info.exports if export.kind == "global"}
    first = len(info.globals) - len(info.own_globals)
    own = enumerate(info.own_globals, first)
    return any(one.mutable and number not in exported for number, one in own)


def verdict(isolation: Isolation, why_not: str | None, *, command: bool = False) -> str:
    """Return a sentence that says what happens to the state a lease leaves behind.

    Args:
        isolation: the isolation asked for.
        why_not: the obstacle to a reset, where that was asked for; None: there is none.
        command: whether the function is a WASI command.
    """
    if isolation == REUSE and command:
        return f"fresh: every lease gets a new instance, as {COMMAND} is a command, which runs once"
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


ADVICE: Final = (
    "{function} grows in nearly every lease, up to {size} bytes, so that it was reset in vain: "
    "every lease gets a new instance from now on; build the module with a larger initial memory "
    "(wasm-ld --initial-memory) if its allocator uses that, or register it with isolation='fresh'"
)
"""What would let the instances of an overgrown function be reset, with names to fill in."""


def overgrown_verdict(growths: int, leases: int) -> str:
    """Return what `verdict` does, once resets are given up."""
    return (
        "fresh: every lease gets a new instance, as reset does not pay: "
        f"instances had grown in {growths} of {leases} leases"
    )


def cache_verdict(
    config: CacheConfig, least_size: int, *, seats: bool, restored: bool
) -> tuple[str, str | None]:
    """Return what stays in the cache between leases of a function, and what to raise, if anything.

    Args:
        config: the limits.
        least_size: bytes that an instance takes at least.
        seats: whether a lease may leave a seat: whether the function does not keep its state.
        restored: whether its instances are restored, and not closed.

    Returns:
        A sentence, and the remedy if what should stay never can; None also where a limit of 0 asks
        for that.
    """
    keeps = restored or not seats
    size, what = (least_size, "an instance") if keeps else (SEAT_SIZE, "a seat")
    limits = {"max_instance_size": config.max_instance_size, "max_size": config.max_size}
    short = {name: limit for name, limit in limits.items() if size > limit}
    takes = f"{what} takes at least {size} bytes"
    if not short:
        if not keeps:
            return "a seat is kept: an instance is closed when its lease ends", None
        name, limit = min(limits.items(), key=lambda item: item[1])
        said = f"kept: {takes}, and is kept up to {name} = {limit}"
        if size + WASM_PAGE > limit:
            said += f"; not after a batch, which takes at least {WASM_PAGE} bytes more"
        return said, None
    names = " and ".join(short)
    reached = " and ".join(f"{name} is {limit}" for name, limit in short.items())
    left = "never kept"
    if keeps and seats and min(limits.values()) >= SEAT_SIZE:
        left = "only a seat is kept"
    remedy = f"raise {names} to at least {size}"
    said = f"{left}: {takes}, and {reached}; {remedy}"
    return said, remedy if 0 not in short.values() else None
