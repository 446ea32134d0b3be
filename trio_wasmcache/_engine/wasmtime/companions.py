"""One more module in the store of an instance: how its drivers and its restorer come there."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..._core.errors import LoadError
from ..base import NoMemoryError
from . import native
from .errors import Ending, is_no_memory, take_error

if TYPE_CHECKING:
    from .instance import WasmtimeInstance


def instantiate(
    instance: WasmtimeInstance,
    what: str,
    engine: int,
    module: int,
    parts: Mapping[str, native.Buffer],
    *,
    memory: int = 0,
    tables: int = 0,
) -> native.Buffer:
    """A new instance of `module`, which has no start function; its handle.

    Args:
        what: of it, for errors.
        parts: {name of an import: what it gets}.
        memory: bytes of its memory; 0: it has none.
        tables: how many it has.

    Raises:
        LoadError: it can't be linked, or there is no room for it.
    """
    handle = ctypes.create_string_buffer(native.INSTANCE_SIZE)
    linker, ending = native.linker_new(engine), Ending()
    try:
        for name, extern in parts.items():
            raw = name.encode()
            problem = native.linker_define(linker, instance.context, b"", 0, raw, len(raw), extern)
            if problem:
                raise LoadError(f"wasmtime would not link a {what}: {take_error(problem)}")
        # Only so are instances made in a store whose calls yield.
        with instance.room_for(memory=memory, tables=tables):
            future = native.linker_instantiate_async(
                linker, instance.context, module, handle, ending.trap_ref, ending.error_ref
            )
            poll_until_over(future)
            native.hot_delete(future)
    finally:
        native.linker_delete(linker)
    if ending.trap or ending.error:
        message = f"there is no room for a {what}: {ending.take_error()}"
        raise (NoMemoryError if is_no_memory(message) else LoadError)(message)
    return handle


def part(instance: WasmtimeInstance, handle: native.Buffer, name: bytes) -> bytes:
    """The handle of an export of what `instantiate` made."""
    found = ctypes.create_string_buffer(native.EXTERN_SIZE)
    native.instance_export_get(instance.context, handle, name, len(name), found)
    return found.raw[native.EXTERN_OFFSET :]


def poll_until_over(future: int) -> None:
    """Of what is short, however short a slice is."""
    while not native.call_future_poll(future):
        pass
