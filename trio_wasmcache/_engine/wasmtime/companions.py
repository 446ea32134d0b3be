"""Instantiate one more module in the store of an instance: its drivers, its restorer."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from ..._core.errors import LoadError
from ..base import NoMemoryError
from . import native
from .errors import Ending, is_no_memory, take_error
from .store import Store


def instantiate(
    store: Store,
    what: str,
    engine: int,
    module: int,
    parts: Mapping[str, native.Buffer],
    *,
    memory: int = 0,
    tables: int = 0,
) -> native.Buffer:
    """Make an instance of `module`, which has no start function; return its handle.

    Args:
        store: where.
        what: of it, for errors.
        engine: the native engine.
        module: the native module.
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
            problem = native.linker_define(linker, store.context, b"", 0, raw, len(raw), extern)
            if problem:
                raise LoadError(f"wasmtime would not link a {what}: {take_error(problem)}")
        # Only so are instances made in a store whose calls yield.
        with store.one_more_instance(memory=memory, tables=tables):
            future = native.linker_instantiate_async(
                linker, store.context, module, handle, ending.trap_ref, ending.error_ref
            )
            poll_until_over(future)
            native.hot_delete(future)
    finally:
        native.linker_delete(linker)
    if ending.trap or ending.error:
        message = f"there is no room for a {what}: {ending.take_error()}"
        raise (NoMemoryError if is_no_memory(message) else LoadError)(message)
    return handle


def part(store: Store, handle: native.Buffer, name: bytes) -> bytes:
    """Return the handle of an export of what `instantiate` made."""
    found = ctypes.create_string_buffer(native.EXTERN_SIZE)
    native.instance_export_get(store.context, handle, name, len(name), found)
    return found.raw[native.EXTERN_OFFSET :]


def poll_until_over(future: int) -> None:
    """Poll to its end what is short, however short a slice is."""
    while not native.call_future_poll(future):
        pass
