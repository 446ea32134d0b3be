"""Read the state of an instance, so that it can be written into its modules: see `preparation`.

1. wasmtime tells references to functions apart by an address, which is the same each time that a
   function of an instance is exported. So the functions to which code can refer are exported
   (`Plan.observed`), and a reference is that to the function whose export equals it.
2. A table of a graph may have elements that other parts put there, by functions of theirs or that
   they import. Each is written by the first part that has the table and can refer to the function.
3. Whether a passive segment was dropped can't be asked. A probe, which copies nothing from the
   segment's end, traps if it was.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

from attrs import evolve, frozen

from ..._core.errors import TrapError
from ..._core.wasm.graph import USER
from ..._core.wasm.preparation import (
    FrozenState,
    Items,
    Run,
    UnfreezableError,
    constant,
    reference,
    runs_of,
)
from ..._core.wasm.reader import FuncType
from ..base import UNDER_WAY
from . import native
from .companions import poll_until_over
from .function import Callers, WasmtimeFunction
from .plan import ObservedPlan
from .store import Store

# A probe burns some ten units.
PROBE_FUEL: Final = 10_000
# Bytes of a reference to a function, of which the first eight are 0 if it is null.
REFERENCE_SIZE, STORE_SIZE = 16, 8


def freeze(store: Store, callers: Callers) -> dict[str, FrozenState]:
    """Return the state of each part of an instance that was compiled for it. Blocks: for threads.

    Args:
        store: the instance, which has started, and in which nothing is under way.
        callers: of its module.

    Raises:
        UnfreezableError: something of it can't be written into a module.
    """
    names = [part.name for part in store.plan.parts] or [USER]
    pieces = [
        (name, handle, plan.observed)
        for name, (handle, plan) in zip(names, store.pieces, strict=True)
        if plan.observed is not None
    ]
    written: dict[str, list[tuple[int, int, int]]] = {name: [] for name, _, _ in pieces}
    owners = {
        name: _Writer(None, _referable(store, handle, found), written[name])
        for name, handle, found in pieces
    }
    others: dict[tuple[str, int], list[_Writer]] = {}
    for part in store.plan.parts:
        for index, owner, number in part.tables if part.name in owners else ():
            writer = evolve(owners[part.name], table=index)
            others.setdefault((names[owner], number), []).append(writer)
    states = {}
    for name, handle, found in pieces:
        writers = [others.get((name, number), ()) for number in range(len(found.tables))]
        states[name] = _read(store, handle, found, owners[name], writers)
    # Last, though they change nothing.
    for name, handle, found in pieces:
        dropped: dict[str, set[int]] = {"data": set(), "elem": set()}
        for kind, index, export in found.probes:
            if _is_dropped(store, handle, callers, export):
                dropped[kind].add(index)
        states[name] = evolve(
            states[name],
            dropped_data=frozenset(dropped["data"]),
            dropped_elements=frozenset(dropped["elem"]),
            linked=tuple(sorted(written[name])),
        )
    return states


@frozen(eq=False)
class _Writer:
    """A part that can write elements of a table."""

    table: int | None
    """Index of the table in it; None: the table is its own."""
    functions: dict[bytes, int]
    """{reference: index} of the functions to which it can refer."""
    linked: list[tuple[int, int, int]]
    """What it writes into tables of others; see `FrozenState.linked`."""


def _referable(store: Store, instance: bytes, plan: ObservedPlan) -> dict[bytes, int]:
    return {store.export(name, instance)[:REFERENCE_SIZE]: index for index, name in plan.functions}


def _read(
    store: Store,
    instance: bytes,
    plan: ObservedPlan,
    owner: _Writer,
    others: Sequence[Sequence[_Writer]],
) -> FrozenState:
    """Return the state of a part.

    Args:
        store: the instance.
        instance: the part.
        plan: what is exported of it.
        owner: the part as a writer of its tables.
        others: for each table of its own, the other parts that have it.
    """
    memories = tuple(_memory(store, store.export(name, instance)) for name in plan.memories)
    tables = tuple(
        _table(store, store.export(name, instance), number, element, (owner, *others[number]))
        for number, (name, element) in enumerate(plan.tables)
    )
    globals = tuple(
        (index, _global(store, store.export(name, instance), index, value_type, owner.functions))
        for index, name, value_type in plan.globals
    )
    return FrozenState(memories, tables, globals)


def _memory(store: Store, handle: bytes) -> tuple[int, tuple[Run, ...]]:
    size = native.memory_data_size(store.context, handle)
    pages = native.memory_size(store.context, handle)
    if not size:
        return pages, ()
    base = native.memory_data(store.context, handle)
    view = memoryview((ctypes.c_uint8 * size).from_address(base or 0)).cast("B")
    return pages, runs_of(view)


def _table(
    store: Store, handle: bytes, number: int, element: str, writers: Sequence[_Writer]
) -> Items:
    """Return what the table's own part writes, and note what others write."""
    cell = ctypes.create_string_buffer(native.VALUE_SIZE)
    items: list[int | None] = []
    for at in range(native.table_size(store.context, handle)):
        if not native.table_get(store.context, handle, at, cell):
            raise AssertionError("wasmtime does not know an element of a table")
        what = f"element {at} of its table {number}"
        raw = _reference(cell, element, what)
        item = None if raw is None else _write(raw, at, what, writers)
        items.append(item)
    return tuple(items)


def _global(
    store: Store, handle: bytes, index: int, value_type: str, functions: dict[bytes, int]
) -> bytes:
    cell = ctypes.create_string_buffer(native.VALUE_SIZE)
    native.global_get(store.context, handle, cell)
    what = f"its global {index}"
    if value_type in ("funcref", "externref"):
        return reference(value_type, _function(cell, value_type, what, functions), what=what)
    return constant(value_type, cell.raw[native.VALUE_OFFSET :], what=what)


def _write(raw: bytes, at: int, what: str, writers: Sequence[_Writer]) -> int | None:
    """Return the function of an element if the table's own part writes it, or have another one."""
    for writer in writers:
        index = writer.functions.get(raw)
        if index is None:
            continue
        if writer.table is None:
            return index
        writer.linked.append((writer.table, at, index))
        return None
    raise UnfreezableError(
        f"{what} is a function of another module, which does not have the table: no module could "
        "put it there, so leave out prepare"
    )


def _function(
    cell: native.Buffer, element: str, what: str, functions: dict[bytes, int]
) -> int | None:
    """Return the function to which a value refers; None if it is null."""
    raw = _reference(cell, element, what)
    if raw is None:
        return None
    index = functions.get(raw)
    if index is None:
        raise UnfreezableError(f"{what} is a function of another module: leave out prepare")
    return index


def _reference(cell: native.Buffer, element: str, what: str) -> bytes | None:
    """Return a value that is a reference to a function; None if it is null."""
    raw = cell.raw[native.VALUE_OFFSET : native.VALUE_OFFSET + REFERENCE_SIZE]
    if not any(raw[:STORE_SIZE]):
        return None
    if element != "funcref":
        raise UnfreezableError(f"{what} is a reference to something of the host's ({element})")
    return raw


def _is_dropped(store: Store, instance: bytes, callers: Callers, export: str) -> bool:
    handle = store.export(export, instance)
    probe = WasmtimeFunction(store, export, handle, callers.frame(FuncType()))
    try:
        if probe.begin((), PROBE_FUEL) is UNDER_WAY:
            poll_until_over(store.future)
            probe.finish()
    except TrapError:
        return True
    return False
