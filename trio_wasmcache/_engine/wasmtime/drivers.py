"""Compile drivers once for each shape, and instantiate them beside the guest in its store."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from ctypes import byref, c_uint8, c_void_p
from typing import final

import trio

from ..._core.config import WASM_PAGE
from ..._core.wasm.driver import Layout, Shape, layout
from ..._core.wasm.graph import FromPart
from ..._core.wasm.memory_driver import memory_layout
from ..._core.wasm.memory_layout import MemoryLayout, MemoryShape
from ..._core.wasm.reader import FuncType, read_module
from ..._threads import run_in_thread
from ..base import UnderWay
from . import native
from .companions import instantiate, part
from .errors import load_error
from .function import Caller, WasmtimeFunction
from .own_stack import on_usual_stack
from .residency import Range
from .restore import discard
from .store import Store
from .text import to_wasm

# Shapes of which the code is kept: each is a page or two of code.
MAX_DRIVERS = 64
RUN = FuncType(("i32",), ("i32",))


@final
class WasmtimeDriverCode:
    """The compiled driver of a shape. Its native parts go with it."""

    def __init__(self, engine: int, shape: Shape | MemoryShape) -> None:
        self.shape = shape
        self.layout: Layout | MemoryLayout
        if isinstance(shape, Shape):
            self.layout = layout(shape)
            wasm = self.layout.wasm
        else:
            self.layout = memory_layout(shape)
            wasm = to_wasm(self.layout.text)
        self.imports = [item.name for item in read_module(wasm).imports]
        made = c_void_p()
        problem = on_usual_stack(native.module_new, engine, wasm, len(wasm), byref(made))
        if problem:
            raise load_error(f"wasmtime can't compile a driver for {shape}", problem)
        self.module = native.pointer_in(made)
        self.engine: int = native.engine_clone(engine)
        # At the end of the process, the engines of others may be gone already.
        weakref.finalize(self, native.module_delete, self.module).atexit = False
        weakref.finalize(self, native.wasm_engine_delete, self.engine).atexit = False

    def attach(self, instance: Store, exports: Mapping[str, str | FromPart]) -> WasmtimeDriver:
        """See `DriverCode` in `base`."""
        key = self.shape, tuple(exports.items())
        driver = instance.drivers.get(key)
        if not isinstance(driver, WasmtimeDriver):
            driver = WasmtimeDriver(instance, self, exports)
            instance.add_driver(key, driver)
        return driver


@final
class Drivers:
    """The drivers of one engine."""

    def __init__(self) -> None:
        self._codes: OrderedDict[Shape | MemoryShape, WasmtimeDriverCode] = (
            OrderedDict()
        )  # the last used at the end

    async def get(
        self,
        engine: Callable[[], int],
        shape: Shape | MemoryShape,
        limiter: trio.CapacityLimiter,
    ) -> WasmtimeDriverCode:
        """Return the driver of a shape; compiled in a thread, once, or now and then twice.

        Args:
            engine: gives the native engine; raises if that is closed.
            shape: of the driver.
            limiter: of the threads that compile.

        **Checkpoint:** if it has to be compiled.
        **Cancellation:** the thread is abandoned; it works on a reference of its own.
        """
        code = self._codes.get(shape)
        if code is None:
            owned = native.engine_clone(engine())
            # Whoever is the last to hold it frees it: this call, or a thread that was abandoned.
            holder = _Held(owned)
            code = await run_in_thread(
                holder.compile, shape, abandon_on_cancel=True, limiter=limiter
            )
            engine()  # it may have been closed meanwhile
            code = self._codes.setdefault(shape, code)
        self._codes.move_to_end(shape)
        if len(self._codes) > MAX_DRIVERS:
            self._codes.popitem(last=False)
        return code

    def close(self) -> None:
        """Keep none any more; those in use go with who uses them."""
        self._codes.clear()


@final
class _Held:
    """A reference to an engine that goes with whoever holds it."""

    def __init__(self, engine: int) -> None:
        self._engine = engine
        weakref.finalize(self, native.wasm_engine_delete, engine).atexit = False

    def compile(self, shape: Shape | MemoryShape) -> WasmtimeDriverCode:
        return WasmtimeDriverCode(self._engine, shape)


@final
class WasmtimeDriver:
    """See `GuestDriver`; made by `WasmtimeDriverCode.attach`."""

    def __init__(
        self, instance: Store, code: WasmtimeDriverCode, exports: Mapping[str, str | FromPart]
    ) -> None:
        self.size: int = code.layout.pages * WASM_PAGE
        parts = {
            name: instance.extern(export)
            if isinstance(export, str)
            else instance.extern(export.export, instance.piece(export.part))
            for name, export in exports.items()
        }
        if isinstance(code.shape, MemoryShape) and "memory" not in parts:
            # Only modules with a memory have functions whose values cross through it.
            parts["memory"] = instance.extern(instance.plan.memory_name or "")
        handle = instantiate(
            instance, "driver", code.engine, code.module, code.imports, parts, memory=self.size
        )
        made = part(instance, handle, b"run")
        # A frame of its own, as chunks begin in any thread, and those of instances at once.
        caller = Caller(RUN, instance.hosted, instance.plan.offsets, within=1)
        run = WasmtimeFunction(instance, "run", made, caller.frame)
        self._frame = caller.frame
        self._begin, self._finish = run.begin, run.finish
        # The memory can't grow, so it stays where it is for as long as the store does.
        base = native.memory_data(instance.context, part(instance, handle, b"scratch")) or 0
        self.range: Range = (base, self.size)
        self._scratch = memoryview((c_uint8 * self.size).from_address(base)).cast("B")
        self._base, self._clean = base, True

    def put(self, at: int, data: bytes | memoryview) -> None:
        self._clean = False
        self._scratch[at : at + len(data)] = data

    def get(self, at: int, size: int) -> memoryview:
        return self._scratch[at : at + size]

    def wipe(self) -> bool:
        """Forget what lies in the scratch; return False if the system would not."""
        if not self._clean:
            self._clean = discard(self._base, self.size)
        return self._clean

    def begin(self, rows: int, fuel: int) -> int | UnderWay:
        self._clean = False
        done: int | UnderWay = self._begin((rows,), fuel)
        return done

    def abridge(self, codes: frozenset[str]) -> None:
        self._frame.brief = codes

    def finish(self) -> int:
        done: int = self._finish()
        return done

    def close(self) -> None:
        """Read and write nothing any more: the store goes."""
        self._scratch = memoryview(b"")
