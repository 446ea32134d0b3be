"""Reset an instance to its first state: discard the pages it wrote, and run its restorer.

1. On Linux, wasmtime maps the initial contents of a memory copy-on-write, from a file in memory.
   Written pages are private copies. `madvise(MADV_DONTNEED)` discards them, and the next read sees
   the file again, or zeros where there is none (madvise(2), "MADV_DONTNEED").
2. Some initial bytes are not in that file: those that a start function wrote, and all of a memory
   for which wasmtime made no file. `register` finds them by a trial (`restore_trial`): it makes two
   instances, overwrites the memory of one, resets that one, and compares the two. Each range that
   differs becomes a *patch*: its bytes are kept, and copied back at each reset.
3. A restorer module in the same store (`_core/wasm/restorer`) resets tables and globals.
4. If any step fails, `reset` returns False and the instance is closed. A half reset instance never
   serves a call.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import c_int, c_size_t, c_void_p
from typing import final

from ..._core.errors import GuestError
from ..._core.wasm.reader import FuncType
from ..._core.wasm.restorer import Restorer
from ..base import UNDER_WAY, GuestDriver
from . import native
from .companions import instantiate, part, poll_until_over
from .function import WasmtimeFunction
from .linking import LinkedModule
from .plan import Patch, RestorePlan
from .residency import Range
from .store import Measure, Store

# A restorer burns a unit for each table element and each instruction; this is never the limit.
RESTORER_FUEL = 1 << 40
LINUX = sys.platform == "linux"
MADV_DONTNEED = 4
# Of a table.
ELEMENT_SIZE = 8

_madvise: Callable[[int, int, int], int] | None = None
if LINUX:
    # Keeps the GIL: waiting to get it again would take longer than the call.
    _madvise = ctypes.PyDLL(None)["madvise"]
    _madvise.restype, _madvise.argtypes = c_int, [c_void_p, c_size_t, c_int]


def can_discard() -> bool:
    """Return whether `discard` works on this system."""
    return _madvise is not None


def discard(base: int, size: int) -> bool:
    """Make whole pages what they were mapped as; return False if the system would not."""
    return _madvise is not None and (not size or _madvise(base, size, MADV_DONTNEED) == 0)


@final
class Restoring:
    """Resets one instance to its state when this is made: when it has started.

    Raises:
        LoadError: the engine could not make its restorer.
    """

    def __init__(self, instance: Store, module: LinkedModule, plan: RestorePlan) -> None:
        self._instance = instance
        # [(what measures it, its handle, its size)] of what may have grown: there is no way back.
        self._sizes: list[tuple[Measure, bytes, int]] = []
        # [(address, bytes)]: what has not grown has not moved, so addresses are asked for once.
        self.memories: list[Range] = []
        self.patches: tuple[tuple[Patch, ...], ...] = plan.patches
        for piece, exports in instance.pieces:
            for name, growable, size in exports.memory_exports:
                handle = instance.export(name, piece)
                self.memories.append((native.memory_data(instance.context, handle) or 0, size))
                if growable:
                    self._sizes.append((native.memory_data_size, handle, size))
            for name, growable, elements in exports.table_exports:
                if growable:
                    table = instance.export(name, piece)
                    self._sizes.append((native.table_size, table, elements))
        self._run: Callable[[], bool] | None = None
        self.size: int = 0
        """Bytes that the restorer adds to its instance."""
        if plan.restorer is not None:
            self._run = _attach(instance, module, plan.restorer)
            self.size = plan.restorer.elements * ELEMENT_SIZE

    def use(self, patches: tuple[tuple[Patch, ...], ...]) -> None:
        """Copy these bytes back at each reset from now on."""
        self.patches = patches

    def grown(self) -> bool:
        """Return whether a memory or a table is larger than the module declares."""
        context = self._instance.context
        return any(measure(context, handle) != size for measure, handle, size in self._sizes)

    def reset(self, keep: GuestDriver | None = None) -> bool:
        """Reset the instance to what it was when this was made; if it fails, return False.

        Then the instance is unusable.

        The scratch of the driver `keep` is left as it is.
        """
        instance = self._instance
        if self.grown() or not all(discard(base, size) for base, size in self.memories):
            return False
        for (base, _), patches in zip(self.memories, self.patches, strict=False):
            for at, data in patches:
                ctypes.memmove(base + at, data, len(data))
        return instance.forget(keep) and (self._run is None or self._run())


def _attach(instance: Store, module: LinkedModule, made: Restorer) -> Callable[[], bool]:
    """Instantiate the restorer in the store of `instance`; return what puts back."""
    parts = {}
    for number, (module_number, kind, index) in enumerate(made.imports):
        piece, exports = instance.pieces[module_number]
        parts[str(number)] = instance.extern(exports.names[kind, index], piece)
    tables = sum(kind == "table" for _, kind, _ in made.imports)
    names = list(parts)  # in the order of its imports
    handle = instantiate(
        instance, "restorer", module.engine, module.restorer, names, parts, tables=tables
    )
    exported = part(instance, handle, b"reset")
    function = WasmtimeFunction(instance, "reset", exported, module.callers.frame(FuncType()))
    begin = function.plain_begin

    def run() -> bool:
        try:
            if begin((), RESTORER_FUEL) is UNDER_WAY:
                poll_until_over(instance.future)
                function.finish()
        except (GuestError, RecursionError):
            return False
        return True

    return run
