"""Instantiate one more module in the store of an instance: its drivers, its restorer."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

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
    imports: Sequence[str],
    parts: Mapping[str, native.Buffer],
    *,
    memory: int = 0,
    tables: int = 0,
) -> native.Buffer:
    """Make an instance of `module`, whose start function is short, if any; return its handle.

    Args:
        store: where.
        what: of it, for errors.
        engine: the native engine.
        module: the native module.
        imports: the name of each of its imports, in order.
        parts: {name of an import: what it gets}.
        memory: bytes of its memory; 0: it has none.
        tables: how many it has.

    Raises:
        LoadError: it can't be linked, or there is no room for it.
    """
    handle, ending = ctypes.create_string_buffer(native.INSTANCE_SIZE), Ending()
    with store.one_more_instance(memory=memory, tables=tables):
        if store.sliced:
            _link(store, what, engine, module, parts, handle, ending)
        else:
            # Far faster: nothing is linked by name, and there is no future.
            externs = b"".join([parts[name].raw for name in imports])
            ending.error.value = native.instance_new(
                store.context, module, externs, len(imports), handle, ending.trap_ref
            )
    if ending.trap or ending.error:
        message = f"there is no room for a {what}: {ending.take_error()}"
        raise (NoMemoryError if is_no_memory(message) else LoadError)(message)
    return handle


def _link(
    store: Store,
    what: str,
    engine: int,
    module: int,
    parts: Mapping[str, native.Buffer],
    handle: native.Buffer,
    ending: Ending,
) -> None:
    """Make the instance in a store whose calls yield: that takes a linker, and a future."""
    linker = native.linker_new(engine)
    try:
        for name, extern in parts.items():
            raw = name.encode()
            problem = native.linker_define(linker, store.context, b"", 0, raw, len(raw), extern)
            if problem:
                raise LoadError(f"wasmtime would not link a {what}: {take_error(problem)}")
        future = native.linker_instantiate_async(
            linker, store.context, module, handle, ending.trap_ref, ending.error_ref
        )
        poll_until_over(future)
        native.hot_delete(native.as_pointer(future))
    finally:
        native.linker_delete(linker)


def part(store: Store, handle: native.Buffer, name: bytes) -> bytes:
    """Return the handle of an export of what `instantiate` made."""
    found = ctypes.create_string_buffer(native.EXTERN_SIZE)
    native.instance_export_get(store.context, handle, name, len(name), found)
    return found.raw[native.EXTERN_OFFSET :]


def poll_until_over(future: int) -> None:
    """Poll to its end what is short, however short a slice is."""
    while not native.call_future_poll(future):
        pass
