"""Finds the source lines of a failed call's frames, in the module's DWARF sections.

1. It is a service to a call that has failed: it never raises, and delays the error by `PATIENCE` at
   most. Whatever is wrong with the sections means that there are no lines.
2. What takes longer is finished in its thread, within `MAX_SECONDS`, and serves the next error.
3. One thread at a time, for all modules of a cache; it gives up the GIL every half a millisecond.
4. Tables belong to their module, count in its size, and are freed with its debug sections.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import trio
from attrs import evolve

from .._core.errors import GuestError
from .._core.text import fold
from .._core.wasm.custom import CODE, DebugSections
from .._gil import Breath
from .._threads import run_in_thread
from .module import CachedModule, DebugBook

if TYPE_CHECKING:
    from .._core.wasm.dwarf import Line, LineTables

# Seconds that an error waits for its lines, and that the thread may take for a module.
PATIENCE, MAX_SECONDS = 0.1, 2.0
# Bytes from the beginning of a function to its first instruction, for its locals: less than this.
DECLARED = 12
# Seconds between two pauses of the thread.
BREATH_EVERY = 0.0005


# Errors that were looked at: their frames are not those of any other module.
_located: weakref.WeakSet[GuestError] = weakref.WeakSet()


@final
class SourceLines:
    """Adds source lines to the errors of one cache.

    Args:
        book: the book of debug sections, in which the tables are counted.
    """

    def __init__(self, book: DebugBook) -> None:
        self._book = book
        self._limiter = trio.CapacityLimiter(1)
        # Modules whose tables were begun, and may have grown since the book counted them.
        self._begun: list[weakref.ref[CachedModule]] = []

    async def locate(self, error: GuestError, module: CachedModule) -> None:
        """Add files and lines to the frames of an error of an instance of `module`.

        **Checkpoint:** if tables have to be made.
        **Cancellation:** takes effect later: the wait is at most `PATIENCE`.
        """
        if error in _located or not error.frames:
            return
        self._recount_begun()
        # Also if there are no lines: a host function of another module's may pass it on.
        _located.add(error)
        sections = module.debug_sections
        if sections is None:
            return
        tables = _tables_of(module)
        known = [frame.offset for frame in error.frames if frame.offset is not None]
        addresses = _addresses(module, known)
        found = tables.look_up(addresses)
        if found is None:
            # It may be that the system has no thread left: the error is more than its lines.
            with trio.move_on_after(PATIENCE, shield=True), contextlib.suppress(Exception):
                found = await run_in_thread(
                    *(self._find, weakref.ref(module), tables, sections, addresses),
                    limiter=self._limiter,
                    abandon_on_cancel=True,
                )
        self._recount_begun()
        if found:
            _apply(error, dict(zip(known, found, strict=True)))

    async def find(self, module: CachedModule, offsets: Sequence[int]) -> dict[int, Line]:
        """Return {offset in the module: its line}, as far as they are known.

        The beginning of a function has the line of its first instruction.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned.
        """
        lines = await self._find_exactly(module, offsets)
        left = [offset for offset in offsets if offset not in lines]
        if left:
            near = sorted({offset + more for offset in left for more in range(1, DECLARED)})
            others = await self._find_exactly(module, near)
            for offset in left:
                places = range(offset + 1, offset + DECLARED)
                line = next((others[at] for at in places if at in others), None)
                if line is not None:
                    lines[offset] = line
        return lines

    async def _find_exactly(self, module: CachedModule, offsets: Sequence[int]) -> dict[int, Line]:
        await trio.lowlevel.checkpoint()
        self._recount_begun()
        sections = module.debug_sections
        if sections is None:
            return {}
        tables = _tables_of(module)
        found = await run_in_thread(
            *(self._find, weakref.ref(module), tables, sections, _addresses(module, offsets)),
            limiter=self._limiter,
            abandon_on_cancel=True,
        )
        self._recount_begun()
        lines = zip(offsets, found or (), strict=False)
        return {offset: line for offset, line in lines if line is not None}

    def _recount_begun(self) -> None:
        """Count tables, also of threads that were not waited for, whosever error it is now."""
        for begun in self._begun:
            module = begun()
            if module is not None:
                self._book.recount(module)
        # Only the last one can still be worked on.
        del self._begun[: -1 if self._limiter.borrowed_tokens else None]

    def _find(
        self,
        module: weakref.ref[CachedModule],
        tables: LineTables,
        sections: DebugSections,
        addresses: list[int],
    ) -> list[Line | None] | None:
        """Call `_find` in the one thread that works."""
        self._begun.append(module)
        return _find(tables, sections, addresses)


def _tables_of(module: CachedModule) -> LineTables:
    tables = module.line_tables
    if tables is None:
        from .._core.wasm.dwarf import LineTables

        tables = module.line_tables = LineTables()
    return tables


def _addresses(module: CachedModule, offsets: Sequence[int]) -> list[int]:
    """Return the addresses, as DWARF counts them, of offsets in a module."""
    artifact = module.artifact
    begin = next((one.start for one in artifact.info.sections if one.id == CODE), 0)
    if artifact.graph is not None:
        begin += artifact.graph.user.offset or 0  # of a component
    return [offset - begin for offset in offsets]


def _find(
    tables: LineTables, sections: DebugSections, addresses: list[int]
) -> list[Line | None] | None:
    """Return the line of each address, or None if there are no lines."""
    from .._core.wasm.dwarf import MAX_SECTIONS_SIZE, SECTIONS, DwarfError

    breath, end = Breath(BREATH_EVERY), time.perf_counter() + MAX_SECONDS

    def breathe() -> None:
        breath()
        if time.perf_counter() > end:
            raise DwarfError(f"they take more than {MAX_SECONDS} seconds")

    if tables.broken:
        return None
    if sum(sections.sizes.get(name, 0) for name in SECTIONS) > MAX_SECTIONS_SIZE:
        tables.broken = True
        return None
    try:
        return tables.find(addresses, sections.read, breathe)
    except Exception:  # a `DwarfError`, or the system has no memory
        tables.broken = True
        return None


def _apply(error: GuestError, lines: dict[int, Line | None]) -> None:
    """Put lines into the frames of an error, and into its message."""
    frames = []
    for frame in error.frames:
        line = None if frame.offset is None else lines[frame.offset]
        if line is not None:
            frame = evolve(frame, file=line.file, line=line.line, column=line.column or None)
        frames.append(frame)
    before = _trace(error.backtrace)
    error.frames = tuple(frames)
    error.backtrace = tuple(fold([str(frame) for frame in frames]))
    message = str(error.args[0]) if error.args else ""
    if message.endswith(before):  # a guest may print such lines, too, but not at the end
        message = message.removesuffix(before) + _trace(error.backtrace)
        error.args = (message, *error.args[1:])


def _trace(backtrace: tuple[str, ...]) -> str:
    return "".join(f"\n  {frame}" for frame in backtrace)
