"""The C functions of wasmtime that this library calls, each with its prototype, and nothing else.

wasmtime-py ships the shared library and its own prototypes. We declare ours, on a handle of our
own, for three reasons: hot calls want addresses as plain integers, some calls must keep the GIL
and some must give it up, and prototypes on a shared handle could be changed by others.

Rules:

1. Pointers are `c_void_p`. What they point at, and who frees it, is said where they are used.
2. What runs guest code, compiles, or touches much memory gives up the GIL (`CDLL`). What only
   reads or writes a field keeps it (`PyDLL`): dropping and taking it costs more than the call.
3. A missing symbol is an `ImportError` that names the versions that were tested.
4. A function is written as a Python function without a body: from its annotations type checkers
   know how it is called, and ctypes gets its prototype. It is replaced by the C function itself,
   so a call costs nothing more.
"""

# mypy: disable-error-code="empty-body"
# No `from __future__ import annotations`: they are read here, when each function is declared.

import ctypes
from collections.abc import Callable
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Array,
    Structure,
    byref,
    c_bool,
    c_char,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias, TypeVar, get_args

from wasmtime import _ffi

if TYPE_CHECKING:
    from ctypes import _CArgObject as Reference, _Pointer
else:
    Reference = type(byref(c_int()))
    """What `byref` gives."""

    class _Pointer:
        __class_getitem__ = staticmethod(POINTER)


TESTED_VERSIONS = "43.0.1 to 50"
# Up to 41, calls were async only after this was called; without it they abort the process.
GONE_SINCE_42 = "wasmtime_config_async_support_set"
NEW_IN_46 = "wasmtime_exnref_type"

# wasmtime_val_t: a kind, and 24 bytes of value at offset 8 (crates/c-api/include/wasmtime/val.h).
VALUE_SIZE = 32
VALUE_OFFSET = 8
# Size of a wasmtime_val_raw_t, which begins with the value.
RAW_SIZE = 16
# {value type: (kind, struct code)}
VALUE_KINDS = {"i32": (0, "i"), "i64": (1, "q"), "f32": (2, "f"), "f64": (3, "d")}
# wasmtime_valkind_t of a reference to a function.
FUNCTION_KIND = 5
# wasm_valkind_t, for building function types.
TYPE_KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3, "externref": 128, "funcref": 129}
EXTERN_FUNC, EXTERN_GLOBAL, EXTERN_TABLE, EXTERN_MEMORY = 0, 1, 2, 3
# wasmtime_extern_t: a kind, and a handle of at most 24 bytes at offset 8.
EXTERN_SIZE = 32
EXTERN_OFFSET = 8
INSTANCE_SIZE = 16


class ByteVec(Structure):
    """wasm_byte_vec_t: owned bytes."""

    _fields_ = (("size", c_size_t), ("data", c_void_p))
    if TYPE_CHECKING:
        size: int
        data: int | None


class PointerVec(Structure):
    """wasm_frame_vec_t, wasm_valtype_vec_t: owned pointers."""

    _fields_ = (("size", c_size_t), ("data", POINTER(c_void_p)))
    if TYPE_CHECKING:
        size: int
        data: _Pointer[c_void_p]


CONTINUE = CFUNCTYPE(c_bool, c_void_p)


class ProfiledModule(Structure):
    """wasmtime_guestprofiler_modules_t: a module, and the name that its frames have."""

    _fields_ = (("name", POINTER(ByteVec)), ("module", c_void_p))


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

# wasmtime_store_epoch_deadline_callback: context, data, delta, kind; an error, or null
EPOCH_CALL = CFUNCTYPE(c_void_p, c_void_p, c_void_p, POINTER(c_uint64), c_void_p)


# What is passed: the type that callers see, and the one that ctypes converts to.
Ready: TypeAlias = Reference | c_void_p | c_size_t | c_uint64
"""A converted argument, from `byref` or `from_param`: passed on as it is."""
Context: TypeAlias = Reference | c_void_p
"""A converted pointer to a store's context."""
Buffer: TypeAlias = Array[c_char]

Pointer = Annotated[int, c_void_p]
Nullable = Annotated[int | None, c_void_p]
Problem = Annotated[int | None, c_void_p]
"""An error that the caller owns, or null."""
StoreContext = Annotated[Context | int, c_void_p]
Handle = Annotated[bytes, c_void_p]
"""wasmtime_func_t and its like, by address."""
Place = Annotated[Buffer | Reference | int, c_void_p]
"""Where C writes, or reads what was written there before."""
Address = Annotated[Buffer | bytes, c_void_p]
"""wasmtime_instance_t, by address."""
Externs = Annotated[bytes, c_void_p]
"""Consecutive wasmtime_extern_t."""
Text = Annotated[bytes, c_char_p]
Size = Annotated[int, c_size_t]
Bool = Annotated[bool, c_bool]
Byte = Annotated[int, c_uint8]
Index = Annotated[int, c_uint32]
Fuel = Annotated[int, c_uint64]
Pages = Annotated[int, c_uint64]
Elements = Annotated[int, c_uint64]
Limit = Annotated[int, c_int64]
IntegerOut = Annotated[Reference, POINTER(c_int)]
ByteOut = Annotated[Reference, POINTER(c_uint8)]
PagesOut = Annotated[Reference, POINTER(c_uint64)]
PointerOut = Annotated[Reference, POINTER(c_void_p)]
Pointers = Annotated[_Pointer[c_void_p], POINTER(c_void_p)]
Bytes = Annotated[Reference, POINTER(ByteVec)]
Vector = Annotated[Reference, POINTER(PointerVec)]
Name = Annotated[_Pointer[ByteVec] | None, POINTER(ByteVec)]
"""Bytes that C keeps, or null."""
Callback = Annotated[Any, HOST_CALL]
EpochCallback = Annotated[Any, EPOCH_CALL]


class Declaration(Protocol):
    """A C function, written as a Python function without a body."""

    __name__: str
    __call__: Callable[..., Any]


D = TypeVar("D", bound=Declaration)


class Library:
    """Functions of one handle on a shared library, and which of them it lacks."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.missing: list[str] = []

    def declare(self, written: D) -> D:
        """Give the C function its prototype, and take it in place of what is written."""
        name = written.__name__
        if not name.startswith("wasm_"):
            name = f"wasmtime_{name}"
        found: Any = getattr(self._handle, name, None)
        if found is None:
            self.missing.append(name)
            return written  # `check` refuses the library
        *arguments, found.restype = map(_c_type, written.__annotations__.values())
        found.argtypes = arguments
        declared: D = found
        return declared

    def is_too_old(self) -> bool:
        """Whether calls are not asynchronous from the start."""
        return hasattr(self._handle, GONE_SINCE_42)

    def is_since_46(self) -> bool:
        """Whether it is wasmtime 46 or later."""
        return hasattr(self._handle, NEW_IN_46)


def _c_type(annotation: Any) -> Any:
    return None if annotation is None else get_args(annotation)[1]


def check(*libraries: Library) -> None:
    """Refuse libraries that lack what was declared, or that are too old to be used.

    Raises:
        ImportError: it names all that is missing.
    """
    missing = sorted(name for library in libraries for name in library.missing)
    if missing or any(library.is_too_old() for library in libraries):
        import importlib.metadata  # takes 10 ms

        version = importlib.metadata.version("wasmtime")
        problem = f"lacks {', '.join(missing)}" if missing else "is too old"
        raise ImportError(
            f"the installed wasmtime ({version}) {problem}; trio_wasmcache works with wasmtime "
            f"{TESTED_VERSIONS}"
        )


_slow = Library(ctypes.CDLL(str(_ffi.filename)))
_fast = Library(ctypes.PyDLL(str(_ffi.filename)))


def is_since_46() -> bool:
    """Return whether the library is wasmtime 46 or later."""
    return _slow.is_since_46()


# These give up the GIL.
@_slow.declare
def config_cache_config_load(config: Pointer, path: Text, /) -> Problem: ...


@_slow.declare
def wasm_engine_new_with_config(config: Pointer, /) -> Pointer: ...


@_slow.declare
def wasm_engine_delete(engine: Pointer, /) -> None: ...


@_slow.declare
def wat2wasm(text: Text, size: Size, wasm: Bytes, /) -> Problem: ...


@_slow.declare
def module_new(engine: Pointer, wasm: Text, size: Size, module: PointerOut, /) -> Problem: ...


@_slow.declare
def module_serialize(module: Pointer, code: Bytes, /) -> Problem: ...


@_slow.declare
def module_deserialize(
    engine: Pointer, code: Text, size: Size, module: PointerOut, /
) -> Problem: ...


@_slow.declare
def module_delete(module: Pointer, /) -> None: ...


@_slow.declare
def store_delete(store: Pointer, /) -> None: ...


@_slow.declare
def call_future_poll(future: Pointer, /) -> Bool: ...


@_slow.declare
def call_future_delete(future: Pointer, /) -> None: ...


# These keep it.
@_fast.declare
def wasm_config_new() -> Pointer: ...


@_fast.declare
def wasm_config_delete(config: Pointer, /) -> None: ...


@_fast.declare
def config_consume_fuel_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_epoch_interruption_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_max_wasm_stack_set(config: Pointer, size: Size, /) -> None: ...


@_fast.declare
def config_async_stack_size_set(config: Pointer, size: Size, /) -> None: ...


@_fast.declare
def config_strategy_set(config: Pointer, strategy: Byte, /) -> None: ...


@_fast.declare
def config_wasm_tail_call_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_parallel_compilation_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_native_unwind_info_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_wasm_threads_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_wasm_gc_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_wasm_function_references_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_wasm_exceptions_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_wasm_memory64_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def config_wasm_multi_memory_set(config: Pointer, on: Bool, /) -> None: ...


@_fast.declare
def engine_clone(engine: Pointer, /) -> Pointer: ...


@_fast.declare
def module_image_range(module: Pointer, start: PointerOut, end: PointerOut, /) -> None: ...


@_fast.declare
def wasm_byte_vec_delete(vec: Bytes, /) -> None: ...


@_fast.declare
def linker_new(engine: Pointer, /) -> Pointer: ...


@_fast.declare
def linker_clone(linker: Pointer, /) -> Pointer: ...


@_fast.declare
def linker_allow_shadowing(linker: Pointer, allow: Bool, /) -> None: ...


@_fast.declare
def linker_delete(linker: Pointer, /) -> None: ...


@_fast.declare
def linker_define_async_func(
    linker: Pointer,
    module: Text,
    module_size: Size,
    name: Text,
    name_size: Size,
    type_: Pointer,
    callback: Callback,
    env: Nullable,
    finalizer: Nullable,
    /,
) -> Problem: ...


@_fast.declare
def linker_define(
    linker: Pointer,
    context: StoreContext,
    module: Text,
    module_size: Size,
    name: Text,
    name_size: Size,
    extern: Place,
    /,
) -> Problem: ...


@_fast.declare
def linker_define_instance(
    linker: Pointer, context: StoreContext, name: Text, size: Size, instance: Address, /
) -> Problem: ...


@_fast.declare
def linker_instantiate_pre(linker: Pointer, module: Pointer, pre: PointerOut, /) -> Problem: ...


@_fast.declare
def linker_instantiate_async(
    linker: Pointer,
    context: StoreContext,
    module: Pointer,
    instance: Place,
    trap: Place,
    error: Place,
    /,
) -> Pointer: ...


@_fast.declare
def instance_pre_delete(pre: Pointer, /) -> None: ...


@_fast.declare
def instance_pre_instantiate_async(
    pre: Pointer, context: StoreContext, instance: Place, trap: Place, error: Place, /
) -> Pointer: ...


@_fast.declare
def instance_pre_instantiate(
    pre: Pointer, context: StoreContext, instance: Place, trap: Place, /
) -> Problem: ...


@_fast.declare
def instance_new(
    context: StoreContext,
    module: Pointer,
    imports: Externs,
    number: Size,
    instance: Place,
    trap: Place,
    /,
) -> Problem: ...


@_fast.declare
def instance_export_get(
    context: StoreContext, instance: Address, name: Text, size: Size, extern: Place, /
) -> Bool: ...


@_fast.declare
def store_new(engine: Pointer, data: Nullable, finalizer: Nullable, /) -> Pointer: ...


@_fast.declare
def store_context(store: Pointer, /) -> Pointer: ...


@_fast.declare
def store_limiter(
    store: Pointer,
    memory_size: Limit,
    table_elements: Limit,
    instances: Limit,
    tables: Limit,
    memories: Limit,
    /,
) -> None: ...


@_fast.declare
def context_set_fuel(context: StoreContext, fuel: Fuel, /) -> Problem: ...


@_fast.declare
def context_get_fuel(context: StoreContext, fuel: Place, /) -> Problem: ...


@_fast.declare
def context_get_data(context: StoreContext, /) -> Pointer: ...


@_fast.declare
def context_fuel_async_yield_interval(context: StoreContext, fuel: Fuel, /) -> Problem: ...


@_fast.declare
def func_call_async(
    context: StoreContext,
    function: Handle,
    arguments: Place,
    number: Size,
    results: Place,
    results_number: Size,
    trap: Place,
    error: Place,
    /,
) -> Pointer: ...


@_fast.declare
def caller_context(caller: Pointer, /) -> Pointer: ...


@_fast.declare
def caller_export_get(caller: Pointer, name: Text, size: Size, extern: Place, /) -> Bool: ...


@_fast.declare
def memory_data(context: StoreContext, memory: Handle, /) -> Nullable: ...


@_fast.declare
def memory_data_size(context: StoreContext, memory: Handle, /) -> Size: ...


@_fast.declare
def memory_grow(
    context: StoreContext, memory: Handle, pages: Pages, before: PagesOut, /
) -> Problem: ...


@_fast.declare
def table_size(context: StoreContext, table: Handle, /) -> Elements: ...


@_fast.declare
def memory_size(context: StoreContext, memory: Handle, /) -> Pages: ...


@_fast.declare
def table_get(context: StoreContext, table: Handle, index: Elements, value: Place, /) -> Bool: ...


@_fast.declare
def table_set(
    context: StoreContext, table: Handle, index: Elements, value: Address, /
) -> Problem: ...


@_fast.declare
def global_get(context: StoreContext, global_: Handle, value: Place, /) -> None: ...


@_fast.declare
def wasm_valtype_new(kind: Byte, /) -> Pointer: ...


@_fast.declare
def wasm_valtype_vec_new(vec: Vector, number: Size, types: Pointers, /) -> None: ...


@_fast.declare
def wasm_functype_new(params: Vector, results: Vector, /) -> Pointer: ...


@_fast.declare
def wasm_functype_delete(type_: Pointer, /) -> None: ...


@_fast.declare
def error_message(error: Pointer, message: Bytes, /) -> None: ...


@_fast.declare
def error_exit_status(error: Pointer, status: IntegerOut, /) -> Bool: ...


@_fast.declare
def error_wasm_trace(error: Pointer, frames: Vector, /) -> None: ...


@_fast.declare
def error_delete(error: Pointer, /) -> None: ...


@_fast.declare
def wasm_trap_message(trap: Pointer, message: Bytes, /) -> None: ...


@_fast.declare
def wasm_trap_trace(trap: Pointer, frames: Vector, /) -> None: ...


@_fast.declare
def trap_code(trap: Pointer, code: ByteOut, /) -> Bool: ...


@_fast.declare
def wasm_trap_delete(trap: Pointer, /) -> None: ...


@_fast.declare
def wasm_frame_vec_delete(frames: Vector, /) -> None: ...


@_fast.declare
def wasm_frame_func_index(frame: Nullable, /) -> Index: ...


@_fast.declare
def wasm_frame_func_offset(frame: Nullable, /) -> Size: ...


@_fast.declare
def wasm_frame_module_offset(frame: Nullable, /) -> Size: ...


@_fast.declare
def frame_func_name(frame: Nullable, /) -> Name: ...


@_fast.declare
def frame_module_name(frame: Nullable, /) -> Name: ...


# For samples of a guest's stack: see `sampling`. They keep the GIL, by which samples and the end of
# a profiler exclude each other.
@_fast.declare
def engine_increment_epoch(engine: Pointer, /) -> None: ...


@_fast.declare
def context_set_epoch_deadline(context: StoreContext, ticks: Fuel, /) -> None: ...


@_fast.declare
def store_epoch_deadline_callback(
    store: Pointer, callback: EpochCallback, data: Nullable, finalizer: Nullable, /
) -> None: ...


@_fast.declare
def guestprofiler_new(
    engine: Pointer, name: Bytes, interval: Fuel, modules: Place, number: Size, /
) -> Pointer: ...


@_fast.declare
def guestprofiler_sample(profiler: Pointer, store: Pointer, nanoseconds: Fuel, /) -> None: ...


@_fast.declare
def guestprofiler_finish(profiler: Pointer, json: Bytes, /) -> Problem: ...


@_fast.declare
def guestprofiler_delete(profiler: Pointer, /) -> None: ...


check(_slow, _fast)


# The four calls of every guest call, without prototypes: their arguments are ctypes objects that
# were made once, which halves what the call costs. `library[name]` gives a function of one's own.
_hot = ctypes.PyDLL(str(_ffi.filename))


def _without_prototype(name: str, result: Any) -> Any:
    found = _hot[name]
    found.restype = result
    return found


hot_set_fuel: Callable[[Context, Ready], None] = _without_prototype(
    "wasmtime_context_set_fuel", None
)
hot_get_fuel: Callable[[Context, Ready], None] = _without_prototype(
    "wasmtime_context_get_fuel", None
)
hot_call: Callable[[Context, bytes, Ready, Ready, Ready, Ready, Ready, Ready], int] = (
    _without_prototype("wasmtime_func_call_async", c_void_p)
)
# It gives up the GIL, as it runs guest code.
_hot_slow = ctypes.CDLL(str(_ffi.filename))
hot_call_at_once: Callable[[Context, bytes, Ready, Ready, Ready, Ready, Ready], int | None] = (
    _hot_slow["wasmtime_func_call"]
)
hot_call_at_once.restype = c_void_p  # type: ignore[attr-defined]
# Without a look at the kinds of the values, in half of the time. For what takes a few microseconds,
# whatever it does, so it keeps the GIL.
hot_call_bounded: Callable[[Context, bytes, Ready, Ready, Ready], int | None] = _without_prototype(
    "wasmtime_func_call_unchecked", c_void_p
)
hot_poll: Callable[[Ready], bool] = _hot_slow["wasmtime_call_future_poll"]
hot_poll.restype = c_bool  # type: ignore[attr-defined]
hot_delete: Callable[[Ready], None] = _without_prototype("wasmtime_call_future_delete", None)
as_pointer: Callable[[int], Ready] = c_void_p.from_param
"""Converts a pointer that is new for each call: once, as it is passed twice."""


def memory_view(address: int, size: int) -> memoryview:
    """Return writable bytes at an address, for as long as they are there."""
    view: memoryview = _view(address, size, 0x200)  # PyBUF_WRITE
    return view


_view = ctypes.pythonapi["PyMemoryView_FromMemory"]
_view.restype, _view.argtypes = ctypes.py_object, [c_void_p, c_size_t, c_int]


def pointer_in(place: c_void_p) -> int:
    """Return what C has put there, of a function that reported no problem: it is not null."""
    if place.value is None:
        raise AssertionError("wasmtime reported no problem, and made nothing")
    return place.value


def take_bytes(vec: ByteVec) -> bytes:
    """Return the bytes of an owned vector, which is freed."""
    try:
        return ctypes.string_at(vec.data, vec.size) if vec.data and vec.size else b""
    finally:
        wasm_byte_vec_delete(byref(vec))
