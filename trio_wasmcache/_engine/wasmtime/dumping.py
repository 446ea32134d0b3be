"""Reads what a failed call left of its instance: memories and globals, for a core dump."""

from __future__ import annotations

import ctypes
from typing import Final

from ..._core.wasm.coredump import DumpedGlobal, DumpedInstance, DumpedMemory
from ..._core.wasm.preparation import UnfreezableError, constant, runs_of
from . import native
from .plan import DumpedPlan, compiled_name
from .store import Store

# {value type: itself, encoded}; that of another reference is written as a null reference to any.
_TYPES: Final = {
    "i32": b"\x7f",
    "i64": b"\x7e",
    "f32": b"\x7d",
    "f64": b"\x7c",
    "v128": b"\x7b",
    "funcref": b"\x70",
}
_EXTERNREF: Final = b"\x6f"


def dump(store: Store, most: int) -> tuple[DumpedInstance, ...]:
    """Return the instances of a store in which nothing runs, except those of generated modules.

    Args:
        store: the store; its modules were compiled with `Edits.dumped`.
        most: bytes of memories that are read, at most. What is beyond is left out, as zeros.
    """
    parts = store.plan.parts
    found = []
    for number, (handle, plan) in enumerate(store.pieces):
        if plan.dumped is None or (parts and parts[number].generated):
            continue
        memories = []
        for name in plan.dumped.memories:
            memory = _memory(store, store.export(name, handle), most)
            most -= sum(len(data) for _, data in memory.runs)
            memories.append(memory)
        name, part = (parts[number].name, compiled_name(number).encode()) if parts else ("", b"")
        found.append(
            DumpedInstance(name, part, tuple(memories), _globals(store, handle, plan.dumped))
        )
    return tuple(found)


def _memory(store: Store, handle: bytes, most: int) -> DumpedMemory:
    size = min(native.memory_data_size(store.context, handle), most)
    pages = native.memory_size(store.context, handle)
    if size <= 0:
        return DumpedMemory(pages, ())
    base = native.memory_data(store.context, handle)
    view = memoryview((ctypes.c_uint8 * size).from_address(base or 0)).cast("B")
    return DumpedMemory(pages, runs_of(view))


def _globals(store: Store, handle: bytes, plan: DumpedPlan) -> tuple[DumpedGlobal, ...]:
    cell = ctypes.create_string_buffer(native.VALUE_SIZE)
    found = []
    for name, value_type in plan.globals:
        native.global_get(store.context, store.export(name, handle), cell)
        kind = _TYPES.get(value_type, _EXTERNREF)
        try:
            value = constant(value_type, cell.raw[native.VALUE_OFFSET :], what=name)
        except UnfreezableError:  # a reference, to something that the dump does not have
            value = b"\xd0" + kind + b"\x0b"
        found.append(DumpedGlobal(kind, value))
    return tuple(found)
