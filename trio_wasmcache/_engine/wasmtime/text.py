"""Convert WebAssembly text to a binary module, with wasmtime's parser."""

from __future__ import annotations

from ctypes import byref

from ..._core.errors import InvalidModuleError
from . import native
from .errors import take_error
from .own_stack import on_usual_stack


def to_wasm(text: str) -> bytes:
    """Return the binary module; `InvalidModuleError` with line and column if the text is wrong."""
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidModuleError(f"not WebAssembly text: {error}") from None
    out = native.ByteVec()
    problem = on_usual_stack(native.wat2wasm, raw, len(raw), byref(out))
    if problem:
        raise InvalidModuleError(f"not WebAssembly text: {take_error(problem)}")
    return native.take_bytes(out)
