"""How an instance is put back to how it began: drop what it wrote, and run its restorer.

1. On Linux, wasmtime maps what a memory begins with copy-on-write from a file in memory. Pages that
   were written are private copies; `madvise(MADV_DONTNEED)` drops them, and what is read next is
   the image again, or zeros where there is none (madvise(2), "MADV_DONTNEED").
2. What is not in that image, because a start function wrote it or wasmtime made none, is found out
   at `register`: two instances are made, one of them is filled with rubbish and put back, and
   where it then differs from the other, what that has is noted as a *patch*, to be copied back.
3. Tables and globals are put back by a restorer (`_core/restorer`) in the same store.
4. Whatever is not as it should be makes the answer "no", and the instance is closed. It is never
   served half put back.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from ctypes import c_int, c_size_t, c_void_p
from typing import TYPE_CHECKING, final

from attrs import frozen

from ..._core.config import WASM_PAGE, KiB, MiB
from ..._core.errors import GuestError, LoadError
from ..._core.policy.shares import CALL_FUEL
from ..._core.wasm.reader import FuncType, ModuleInfo
from ..._core.wasm.restorer import Restorer
from ..base import UNDER_WAY, HostCall, HostImport, NoMemoryError
from . import native
from .companions import instantiate, part, poll_until_over
from .function import WasmtimeFunction

if TYPE_CHECKING:
    from .engine import WasmtimeModule
    from .instance import WasmtimeInstance

# Fuel that a start may burn when it is tried: about 0.1 s, in a thread.
TRIAL_FUEL = 100_000_000
TRIAL_SLICE = 1_000_000
# The memories of an instance that is tried are filled twice: about 1 ms a MiB.
TRIAL_SIZE = 64 * MiB
# Copying back more than this takes longer than making a new instance.
PATCH_SIZE = 256 * KiB
# A restorer burns a unit for each table element and each instruction; this is never the limit.
RESTORER_FUEL = 1 << 40
# What is looked at, and patched, at a time. Smaller than any system's page would do as well.
PIECE = 4 * KiB
LINUX = sys.platform == "linux"
MADV_DONTNEED = 4
# Of a table.
ELEMENT_SIZE = 8

Measure = Callable[[native.Context, bytes], int]
"""How large a memory or a table is, by context and handle."""
Patch = tuple[int, bytes]
"""Where in a memory, and what."""


@frozen
class RestorePlan:
    """How instances of one module are put back."""

    code: bytes
    """The restorer, serialized; empty: there is none."""
    restorer: Restorer | None
    patches: tuple[tuple[Patch, ...], ...] = ()
    """For each memory."""

    @property
    def size(self) -> int:
        """Bytes, all of it."""
        return len(self.code) + _total(self.patches)


class UnrestorableError(Exception):
    """Instances of a module can't be put back; the message says why."""


_madvise: Callable[[int, int, int], int] | None = None
_memcmp: Callable[[int, int, int], int] | None = None
if LINUX:
    _memcmp = ctypes.CDLL(None)["memcmp"]
    _memcmp.restype, _memcmp.argtypes = c_int, [c_void_p, c_void_p, c_size_t]
    # Keeps the GIL: waiting to get it again would take longer than the call.
    _madvise = ctypes.PyDLL(None)["madvise"]
    _madvise.restype, _madvise.argtypes = c_int, [c_void_p, c_size_t, c_int]


def discard(base: int, size: int) -> bool:
    """Whole pages become what they were mapped as; False if the system would not."""
    return _madvise is not None and (not size or _madvise(base, size, MADV_DONTNEED) == 0)


@final
class Restoring:
    """Puts one instance back. Made when it has started, as what it is then is what it goes back to.

    Raises:
        LoadError: the engine has no room for its restorer.
    """

    def __init__(
        self, instance: WasmtimeInstance, module: WasmtimeModule, plan: RestorePlan
    ) -> None:
        self._instance = instance
        # [(what measures it, its handle, its size)] of what may have grown: there is no way back.
        self._sizes: list[tuple[Measure, bytes, int]] = []
        # [(address, bytes)]: what has not grown has not moved, so addresses are asked for once.
        self.memories: list[tuple[int, int]] = []
        self.patches: tuple[tuple[Patch, ...], ...] = plan.patches
        for name, growable, size in instance.plan.memory_exports:
            handle = instance.export(name)
            self.memories.append((native.memory_data(instance.context, handle) or 0, size))
            if growable:
                self._sizes.append((native.memory_data_size, handle, size))
        for name, growable, elements in instance.plan.table_exports:
            if growable:
                self._sizes.append((native.table_size, instance.export(name), elements))
        self._run: Callable[[], bool] | None = None
        self.size: int = 0
        """Bytes that the restorer adds to its instance."""
        if plan.restorer is not None:
            self._run = _attach(instance, module, plan.restorer)
            self.size = plan.restorer.elements * ELEMENT_SIZE

    def grown(self) -> bool:
        """Whether a memory or a table is larger than the module declares."""
        context = self._instance.context
        return any(measure(context, handle) != size for measure, handle, size in self._sizes)

    def reset(self) -> bool:
        """Whether the instance is as it was when this was made; if not, it is spoilt."""
        instance = self._instance
        if self.grown() or not all(discard(base, size) for base, size in self.memories):
            return False
        for (base, _), patches in zip(self.memories, self.patches, strict=False):
            for at, data in patches:
                ctypes.memmove(base + at, data, len(data))
        if not all(driver.wipe() for driver in instance.drivers.values()):
            return False
        instance.state.clear()
        instance.host_state.clear()  # open descriptors are state, too: a guest may close them
        return self._run is None or self._run()


def _attach(
    instance: WasmtimeInstance, module: WasmtimeModule, made: Restorer
) -> Callable[[], bool]:
    """Instantiate the restorer in the store of `instance`; what puts back."""
    parts = {
        str(number): instance.extern(instance.plan.names[kind, index])
        for number, (kind, index) in enumerate(made.imports)
    }
    tables = sum(kind == "table" for kind, _ in made.imports)
    handle = instantiate(instance, "restorer", module.engine, module.restorer, parts, tables=tables)
    exported = part(instance, handle, b"reset")
    function = WasmtimeFunction(instance, "reset", exported, module.frame(FuncType()))
    begin = function.begin

    def run() -> bool:
        try:
            if begin((), RESTORER_FUEL) is UNDER_WAY:
                poll_until_over(instance.future)
                function.finish()
        except (GuestError, RecursionError):
            return False
        return True

    return run


# -- the trial


def find_patches(
    module: WasmtimeModule, plan: RestorePlan, info: ModuleInfo, initialize: str | None
) -> tuple[tuple[Patch, ...], ...]:
    """Try it: make two instances, spoil one and put it back, and see what differs.

    Raises:
        UnrestorableError: it can't be put back, or would not be what a new instance is.
    """
    if _madvise is None:
        raise UnrestorableError("memory can't be put back on this system")
    if sum(memory.minimum for memory in info.memories) * WASM_PAGE > TRIAL_SIZE:
        raise UnrestorableError(f"its memories have more than {TRIAL_SIZE} bytes")
    first = second = None
    try:
        first, second = _started(module, initialize), _started(module, initialize)
        spoilt = Restoring(first, module, plan)
        model = Restoring(second, module, plan)
        if spoilt.grown() or model.grown():
            raise UnrestorableError("its start makes it grow")
        if any(_differences(spoilt, model)):
            raise UnrestorableError("its start does not do the same each time")
        _spoil(spoilt)
        spoilt.patches = patches = _differences(spoilt, model)
        size = _total(patches)
        if size > PATCH_SIZE:
            raise UnrestorableError(
                f"{size} bytes would have to be copied each time, which takes longer than to make "
                "a new instance"
            )
        _spoil(spoilt)
        if any(_differences(spoilt, model)):
            raise UnrestorableError("its memory does not stay put back")
        return patches
    except GuestError as error:
        raise UnrestorableError(f"its start failed when it was tried: {error}") from None
    except NoMemoryError:
        raise  # that says nothing about the module
    except LoadError as error:
        raise UnrestorableError(str(error)) from None
    finally:
        for instance in (first, second):
            if instance is not None:
                instance.close()


def _started(module: WasmtimeModule, initialize: str | None) -> WasmtimeInstance:
    instance = module.instantiate(TRIAL_FUEL, TRIAL_SLICE)
    try:
        poll_to_the_end(instance)
        instance.started()
        if initialize is not None:
            function = instance.function(initialize)
            if function.begin((), TRIAL_FUEL) is UNDER_WAY:
                poll_to_the_end(instance)
                function.finish()
    except BaseException:
        instance.close()
        raise
    return instance


def poll_to_the_end(instance: WasmtimeInstance) -> None:
    """Drive what is under way as the runner would, with nobody else to wait for."""
    over = False
    while not over:
        if instance.host_call is not None:
            _answer(instance.hosts.imports[instance.host_call.index], instance.host_call)
        over = instance.poll()


def _answer(host: HostImport, call: HostCall) -> None:
    """Answer a host call at once, as nobody waits in a trial."""
    if host.serve is None:
        raise UnrestorableError(f"its start calls {host.module}.{host.name}")
    call.spend(CALL_FUEL)
    served = host.serve(call)
    while not isinstance(served, tuple):
        try:
            pause = next(served)
        except StopIteration as end:
            served = end.value
        else:
            if pause:
                raise UnrestorableError(f"its start waits in {host.module}.{host.name}")
    call.answer(served)


def _spoil(restoring: Restoring) -> None:
    """Fill all memories, and put them back."""
    for base, size in restoring.memories:
        ctypes.memset(base, 0xA5, size)
    if not restoring.reset():
        raise UnrestorableError("the engine could not put it back")


def _differences(ours: Restoring, theirs: Restoring) -> tuple[tuple[Patch, ...], ...]:
    """What would have to be copied to the memories of one so that they are as the other's."""
    return tuple(
        tuple(_patches(base, model, size))
        for (base, size), (model, _) in zip(ours.memories, theirs.memories, strict=True)
    )


def _total(patches: tuple[tuple[Patch, ...], ...]) -> int:
    return sum(len(data) for several in patches for _, data in several)


def _patches(base: int, model: int, size: int) -> Iterator[Patch]:
    for start in range(0, 0 if _same(base, model, size) else size, WASM_PAGE):
        if _same(base + start, model + start, WASM_PAGE):
            continue
        for at in range(start, start + WASM_PAGE, PIECE):
            if not _same(base + at, model + at, PIECE):
                yield at, ctypes.string_at(model + at, PIECE)


def _same(one: int, other: int, size: int) -> bool:
    # Without a copy, and without the GIL, which the event loop wants.
    return _memcmp is not None and not _memcmp(one, other, size)
