"""Compile a module by wasmtime, with or without its cache."""

from __future__ import annotations

from ctypes import byref, c_void_p

from ..._core.errors import InvalidModuleError
from ..base import NoMemoryError
from . import native
from .errors import is_no_memory, one_line, take_error
from .own_stack import on_usual_stack

LEGACY = "legacy_exceptions feature required"
LEGACY_ADVICE = (
    ". Build it with the exceptions of the standard: clang -mllvm -wasm-use-legacy-eh=false, or "
    "Emscripten -sWASM_LEGACY_EXCEPTIONS=0"
)


def new_module(engine: int, wasm: bytes) -> int:
    """Compile a module, which is the caller's to delete; `InvalidModuleError` if it is none."""
    made = c_void_p()
    problem = on_usual_stack(native.module_new, engine, wasm, len(wasm), byref(made))
    if problem:
        message = f"wasmtime can't compile it: {one_line(take_error(problem))}"
        if LEGACY in message:
            message += LEGACY_ADVICE
        raise (NoMemoryError if is_no_memory(message) else InvalidModuleError)(message)
    return native.pointer_in(made)
