"""The C functions of wasmtime that this library calls, each with its prototype, and nothing else.

wasmtime-py ships the shared library and its own prototypes. We declare ours, on a handle of our
own, for three reasons: hot calls want addresses as plain integers, some calls must keep the GIL
and some must give it up, and prototypes on a shared handle could be changed by others.

Rules:

1. Pointers are `c_void_p`. What they point at, and who frees it, is said where they are used.
2. What runs guest code, compiles, or touches much memory gives up the GIL (`CDLL`). What only
   reads or writes a field keeps it (`PyDLL`): dropping and taking it costs more than the call.
3. A missing symbol is an `ImportError` that names the versions that were tested.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

from wasmtime import _ffi

TESTED_VERSIONS = "42 to 50"
# Up to 41, calls were async only after this was called; without it they abort the process.
GONE_SINCE_42 = "wasmtime_config_async_support_set"

# wasmtime_val_t: a kind, and 24 bytes of value at offset 8 (crates/c-api/include/wasmtime/val.h).
VALUE_SIZE = 32
VALUE_OFFSET = 8
# {value type: (kind, struct code)}
VALUE_KINDS = {"i32": (0, "i"), "i64": (1, "q"), "f32": (2, "f"), "f64": (3, "d")}
# wasm_valkind_t, for building function types.
TYPE_KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3}
EXTERN_FUNC, EXTERN_GLOBAL, EXTERN_TABLE, EXTERN_MEMORY = 0, 1, 2, 3
# wasmtime_extern_t: a kind, and a handle of at most 24 bytes at offset 8.
EXTERN_SIZE = 32
EXTERN_OFFSET = 8
INSTANCE_SIZE = 16


class ByteVec(Structure):
    """wasm_byte_vec_t: owned bytes."""

    _fields_ = (("size", c_size_t), ("data", c_void_p))


class PointerVec(Structure):
    """wasm_frame_vec_t, wasm_valtype_vec_t: owned pointers."""

    _fields_ = (("size", c_size_t), ("data", POINTER(c_void_p)))


CONTINUE = CFUNCTYPE(c_bool, c_void_p)


class Continuation(Structure):
    """wasmtime_async_continuation_t: how a suspended host call learns that it may go on."""

    _fields_ = (("callback", CONTINUE), ("env", c_void_p), ("finalizer", c_void_p))


# wasmtime_func_async_callback_t: env, caller, args, nargs, results, nresults, trap, continuation
HOST_CALL = CFUNCTYPE(
    None,
    c_void_p,
    c_void_p,
    c_void_p,
    c_size_t,
    c_void_p,
    c_size_t,
    POINTER(c_void_p),
    POINTER(Continuation),
)

P = c_void_p
_VEC = POINTER(ByteVec)
_PVEC = POINTER(PointerVec)
_OUT = POINTER(c_void_p)

# {name: (result, arguments)}; these give up the GIL.
_SLOW: dict[str, tuple[Any, list[Any]]] = {
    "wasmtime_config_cache_config_load": (P, [P, c_char_p]),
    "wasm_engine_new_with_config": (P, [P]),
    "wasm_engine_delete": (None, [P]),
    "wasmtime_wat2wasm": (P, [c_char_p, c_size_t, _VEC]),
    "wasmtime_module_new": (P, [P, c_char_p, c_size_t, _OUT]),
    "wasmtime_module_serialize": (P, [P, _VEC]),
    "wasmtime_module_deserialize": (P, [P, c_char_p, c_size_t, _OUT]),
    "wasmtime_module_delete": (None, [P]),
    "wasmtime_store_delete": (None, [P]),
    "wasmtime_call_future_poll": (c_bool, [P]),
    "wasmtime_call_future_delete": (None, [P]),
}

# These keep it.
_FAST: dict[str, tuple[Any, list[Any]]] = {
    "wasm_config_new": (P, []),
    "wasm_config_delete": (None, [P]),
    "wasmtime_config_consume_fuel_set": (None, [P, c_bool]),
    "wasmtime_config_max_wasm_stack_set": (None, [P, c_size_t]),
    "wasmtime_config_async_stack_size_set": (None, [P, c_size_t]),
    "wasmtime_config_parallel_compilation_set": (None, [P, c_bool]),
    "wasmtime_config_native_unwind_info_set": (None, [P, c_bool]),
    "wasmtime_config_wasm_threads_set": (None, [P, c_bool]),
    "wasmtime_config_wasm_gc_set": (None, [P, c_bool]),
    "wasmtime_config_wasm_function_references_set": (None, [P, c_bool]),
    "wasmtime_config_wasm_exceptions_set": (None, [P, c_bool]),
    "wasmtime_config_wasm_memory64_set": (None, [P, c_bool]),
    "wasmtime_config_wasm_multi_memory_set": (None, [P, c_bool]),
    "wasmtime_engine_clone": (P, [P]),
    "wasmtime_module_image_range": (None, [P, _OUT, _OUT]),
    "wasm_byte_vec_delete": (None, [_VEC]),
    "wasmtime_linker_new": (P, [P]),
    "wasmtime_linker_delete": (None, [P]),
    "wasmtime_linker_allow_shadowing": (None, [P, c_bool]),
    "wasmtime_linker_define_wasi": (P, [P]),
    "wasmtime_linker_define_async_func": (
        P,
        [P, c_char_p, c_size_t, c_char_p, c_size_t, P, HOST_CALL, P, P],
    ),
    "wasmtime_linker_define": (P, [P, P, c_char_p, c_size_t, c_char_p, c_size_t, P]),
    "wasmtime_linker_instantiate_pre": (P, [P, P, _OUT]),
    "wasmtime_linker_instantiate_async": (P, [P, P, P, P, P, P]),
    "wasmtime_instance_pre_delete": (None, [P]),
    "wasmtime_instance_pre_instantiate_async": (P, [P, P, P, P, P]),
    "wasmtime_instance_export_get": (c_bool, [P, P, c_char_p, c_size_t, P]),
    "wasmtime_store_new": (P, [P, P, P]),
    "wasmtime_store_context": (P, [P]),
    "wasmtime_store_limiter": (None, [P, c_int64, c_int64, c_int64, c_int64, c_int64]),
    "wasmtime_context_set_wasi": (P, [P, P]),
    "wasi_config_new": (P, []),
    "wasmtime_context_set_fuel": (P, [P, c_uint64]),
    "wasmtime_context_get_fuel": (P, [P, P]),
    "wasmtime_context_get_data": (P, [P]),
    "wasmtime_context_fuel_async_yield_interval": (P, [P, c_uint64]),
    "wasmtime_func_call_async": (P, [P, P, P, c_size_t, P, c_size_t, P, P]),
    "wasmtime_caller_context": (P, [P]),
    "wasmtime_caller_export_get": (c_bool, [P, c_char_p, c_size_t, P]),
    "wasmtime_memory_data": (P, [P, P]),
    "wasmtime_memory_data_size": (c_size_t, [P, P]),
    "wasmtime_memory_grow": (P, [P, P, c_uint64, POINTER(c_uint64)]),
    "wasmtime_table_size": (c_uint64, [P, P]),
    "wasmtime_global_get": (None, [P, P, P]),
    "wasm_valtype_new": (P, [c_uint8]),
    "wasm_valtype_vec_new": (None, [_PVEC, c_size_t, _OUT]),
    "wasm_functype_new": (P, [_PVEC, _PVEC]),
    "wasm_functype_delete": (None, [P]),
    "wasmtime_error_message": (None, [P, _VEC]),
    "wasmtime_error_exit_status": (c_bool, [P, POINTER(c_int)]),
    "wasmtime_error_wasm_trace": (None, [P, _PVEC]),
    "wasmtime_error_delete": (None, [P]),
    "wasm_trap_message": (None, [P, _VEC]),
    "wasm_trap_trace": (None, [P, _PVEC]),
    "wasmtime_trap_code": (c_bool, [P, POINTER(c_uint8)]),
    "wasm_trap_delete": (None, [P]),
    "wasm_frame_vec_delete": (None, [_PVEC]),
    "wasm_frame_func_index": (c_uint32, [P]),
    "wasm_frame_module_offset": (c_size_t, [P]),
    "wasmtime_frame_func_name": (_VEC, [P]),
}


def declare(library: Any, table: dict[str, tuple[Any, list[Any]]]) -> dict[str, Any]:
    """{name without prefix: function} of what `table` lists, with its prototypes set.

    Raises:
        ImportError: the library lacks some of it, or is too old to be used.
    """
    functions = {}
    missing = []
    for name, (result, arguments) in table.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            missing.append(name)
            continue
        function.restype, function.argtypes = result, arguments
        functions[name.removeprefix("wasmtime_")] = function
    if missing or hasattr(library, GONE_SINCE_42):
        version = importlib.metadata.version("wasmtime")
        problem = f"lacks {', '.join(sorted(missing))}" if missing else "is too old"
        raise ImportError(
            f"the installed wasmtime ({version}) {problem}; trio_wasmcache works with wasmtime "
            f"{TESTED_VERSIONS}"
        )
    return functions


globals().update(declare(ctypes.CDLL(str(_ffi.filename)), _SLOW))
globals().update(declare(ctypes.PyDLL(str(_ffi.filename)), _FAST))


# The four calls of every guest call, without prototypes: their arguments are ctypes objects that
# were made once, which halves what the call costs. `library[name]` gives a function of one's own.
_hot = ctypes.PyDLL(str(_ffi.filename))
hot_set_fuel = _hot["wasmtime_context_set_fuel"]
hot_set_fuel.restype = None
hot_get_fuel = _hot["wasmtime_context_get_fuel"]
hot_get_fuel.restype = None
hot_call = _hot["wasmtime_func_call_async"]
hot_call.restype = c_void_p
hot_delete = _hot["wasmtime_call_future_delete"]
hot_delete.restype, hot_delete.argtypes = None, [P]


def memory_view(address: int, size: int) -> memoryview:
    """Writable bytes at an address, for as long as they are there."""
    view: memoryview = _view(address, size, 0x200)  # PyBUF_WRITE
    return view


_view = ctypes.pythonapi["PyMemoryView_FromMemory"]
_view.restype, _view.argtypes = ctypes.py_object, [P, c_size_t, c_int]


def __getattr__(name: str) -> Any:
    # Only reached for what is not declared; it also tells type checkers that there is more here.
    raise AttributeError(f"{name} is not a declared function of wasmtime")


def take_bytes(vec: ByteVec) -> bytes:
    """The bytes of an owned vector, which is freed."""
    try:
        return ctypes.string_at(vec.data, vec.size) if vec.size else b""
    finally:
        globals()["wasm_byte_vec_delete"](ctypes.byref(vec))
