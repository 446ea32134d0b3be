"""Compile modules to artifacts, and make executable code of artifacts, with wasmtime.

An artifact is serialized code, which uses no memory of the engine until it is loaded.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from ctypes import byref, c_void_p

from ..._core.errors import InvalidModuleError
from ..._core.wasm.admission import Edits, table_elements
from ..._core.wasm.custom import code_offset, keep_debug_sections, without_custom_sections
from ..._core.wasm.editor import add_exports, clamp_maxima, define_imports
from ..._core.wasm.reader import MalformedModuleError, ModuleInfo, read_module
from ..._gil import Breath
from ..base import Artifact
from . import native
from .code_cache import CodeCache, new_module
from .errors import load_error, take_error
from .plan import HIDDEN, hidden_exports
from .reservations import IMAGE_MAPPINGS, instance_reservation
from .residency import Range

# Seconds between two breaths of a thread that reads a module.
BREATH_EVERY = 0.0005


def compile_module(
    make: Callable[[bytes], tuple[bytes, int]],
    wasm: bytes,
    admit: Callable[[ModuleInfo], Edits],
    stack_size: int,
) -> Artifact:
    """Read, check, edit and compile a module; see `Engine.compile`. Blocks: for threads.

    Args:
        make: compiles; see `build`.
        wasm: the module, binary.
        admit: looks at what the sections say, and says what to change.
        stack_size: bytes of the stacks that its instances get.
    """
    breathe = Breath(BREATH_EVERY)
    try:
        info = read_module(wasm, breathe)
    except MalformedModuleError as error:
        raise InvalidModuleError(str(error)) from None
    for export in info.exports:
        if export.name.startswith(HIDDEN):
            raise InvalidModuleError(f"the export name {export.name!r:.60} is kept for ourselves")
    edits = admit(info)
    edited = define_imports(wasm, info, edits.initials, breathe)
    own = info if edited is wasm else read_module(edited, breathe, weigh=False)
    edited = clamp_maxima(edited, own, edits.memory_maxima, edits.table_maxima)
    hidden = hidden_exports(info, edits)
    if hidden:
        edited = add_exports(edited, read_module(edited, breathe, weigh=False), hidden)
    edited = without_custom_sections(edited, breathe)
    data, code_size = make(edited)
    space, mappings = instance_reservation(info, table_elements(info, edits), stack_size)
    return Artifact(
        data,
        code_size,
        info,
        edits,
        address_space=space,
        mappings=mappings,
        module_mappings=IMAGE_MAPPINGS,
        code_shift=code_offset(wasm) - code_offset(edited),
        debug=keep_debug_sections(wasm, breathe),
    )


def build(engine: int, wasm: bytes, code_cache: CodeCache | None = None) -> tuple[bytes, int]:
    """Compile a module: return its code at rest, and its bytes once it is loaded.

    Raises:
        InvalidModuleError: wasmtime can't compile it.
        NoMemoryError: the system has no memory for it.
    """
    compile_it = new_module if code_cache is None else code_cache.compile
    made = compile_it(engine, wasm)
    try:
        out = native.ByteVec()
        if problem := native.module_serialize(made, byref(out)):
            raise InvalidModuleError(f"wasmtime can't serialize it: {take_error(problem)}")
        _, size = image_of(made)
        return native.take_bytes(out), _whole_pages(size)
    finally:
        native.module_delete(made)


def deserialize(engine: int, data: bytes) -> int:
    """Return a module made of code at rest, which is the caller's to delete.

    Raises:
        NoMemoryError: the system has no memory for it.
        LoadError: wasmtime would not load it.
    """
    made = c_void_p()
    problem = native.module_deserialize(engine, data, len(data), byref(made))
    if problem:
        raise load_error("wasmtime would not load its own artifact", problem)
    return native.pointer_in(made)


def image_of(module: int) -> Range:
    """Return where the code of a module is."""
    start, end = c_void_p(), c_void_p()
    native.module_image_range(module, byref(start), byref(end))
    return start.value or 0, (end.value or 0) - (start.value or 0)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
