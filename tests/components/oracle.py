"""wasmtime's own calls of components, by its C functions: what the library's are compared with.

wasmtime-py's classes would do, but for variants: they guess the case from the class of the value,
for which True is an integer. So values are converted here.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from ctypes import byref
from typing import Any

import pytest
import wasmtime
from wasmtime import _ffi as ffi

from .shapes import Shape, cases

component = pytest.importorskip("wasmtime.component", reason="wasmtime-py has it from 45 on")
FUEL = 10**7
Write = Callable[[Any, Any], None]
Read = Callable[[Any], Any]


class Refused(Exception):
    """wasmtime ended the call, or refused what the guest answered; `args` is its message."""


class Oracle:
    """A component in a store of its own, and its functions."""

    def __init__(self, wasm: bytes, *, define: Callable[[Any, Any], None] | None = None) -> None:
        self.engine = _engine()
        self.store = wasmtime.Store(self.engine)
        self.store.set_fuel(FUEL)
        self.component = component.Component(self.engine, wasm)
        linker = component.Linker(self.engine)
        if define is not None:
            define(linker, self.store)
        try:
            self.instance = linker.instantiate(self.store, self.component)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise Refused(str(error)) from None

    def call(self, path: str, params: Sequence[Shape], result: Shape | None, *given: Any) -> Any:
        """What a function, by the names of its instance and of itself, gives for these values."""
        index = None
        for name in path.split("#"):
            index = self.component.get_export_index(name, index)
            assert index is not None, name
        func = self.instance.get_func(self.store, index)
        assert func is not None
        self.store.set_fuel(FUEL)
        cells = (ffi.wasmtime_component_val_t * max(1, len(params)))()
        for cell, of, value in zip(cells, params, given, strict=False):
            writer(of)(cell, value)
        gives = ffi.wasmtime_component_val_t()
        error = ffi.wasmtime_component_func_call(
            byref(func._func), self.store._context(), cells, len(params), byref(gives),
            int(result is not None),
        )  # fmt: skip
        for cell in cells[: len(params)]:
            ffi.wasmtime_component_val_delete(byref(cell))
        if error:
            raise Refused(str(wasmtime.WasmtimeError._from_ptr(error)))
        if result is None:
            return None
        try:
            return reader(result)(gives)
        finally:
            ffi.wasmtime_component_val_delete(byref(gives))


@functools.cache
def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.consume_fuel = True
    return wasmtime.Engine(config)


# ----- values to C, and from C

FIELDS = {"bool": "boolean", "char": "character"} | {
    name: name for name in "s8 u8 s16 u16 s32 u32 s64 u64 f32 f64".split()
}


def _kind(name: str) -> Any:
    return getattr(ffi, f"WASMTIME_COMPONENT_{name.upper()}")


def _bytes(text: str) -> Any:
    data = text.encode()
    made = ffi.wasm_byte_vec_t()
    ffi.wasm_byte_vec_new(
        byref(made), len(data), (ctypes.c_ubyte * len(data)).from_buffer_copy(data)
    )
    return made


def _text(vec: Any) -> str:
    return bytes(vec.data[: vec.size]).decode() if vec.size else ""


def _boxed(write: Write, value: Any) -> Any:
    cell = ffi.wasmtime_component_val_t()
    write(cell, value)
    return ffi.wasmtime_component_val_new(byref(cell))


@functools.cache
def writer(shape: Shape) -> Write:
    """Writes values of a type into a cell."""
    if isinstance(shape, str):
        kind = _kind(shape)
        if shape == "string":

            def write(cell: Any, value: Any) -> None:
                cell.kind, cell.of.string = kind, _bytes(value)
        elif shape == "char":

            def write(cell: Any, value: Any) -> None:
                cell.kind, cell.of.character = kind, ord(value)
        else:
            name = FIELDS[shape]

            def write(cell: Any, value: Any) -> None:
                cell.kind = kind
                setattr(cell.of, name, value)

        return write
    kind = _kind("enum" if shape[0] == "enum" else shape[0])
    match shape:
        case ("list" | "tuple", *parts):
            vec = f"val{shape[0]}"
            inner = [writer(of) for of in parts]

            def write(cell: Any, value: Any) -> None:
                made = getattr(ffi, f"wasmtime_component_{vec}_t")()
                getattr(ffi, f"wasmtime_component_{vec}_new_uninit")(byref(made), len(value))
                for at, one in enumerate(value):
                    inner[at if shape[0] == "tuple" else 0](made.data[at], one)
                cell.kind = kind
                setattr(cell.of, shape[0], made)
        case ("record", fields):
            named = [(name, writer(of)) for name, of in fields]

            def write(cell: Any, value: Any) -> None:
                made = ffi.wasmtime_component_valrecord_t()
                ffi.wasmtime_component_valrecord_new_uninit(byref(made), len(named))
                for at, (name, put) in enumerate(named):
                    made.data[at].name = _bytes(name)
                    put(made.data[at].val, value[at])
                cell.kind, cell.of.record = kind, made
        case ("flags", _):

            def write(cell: Any, value: Any) -> None:
                made = ffi.wasmtime_component_valflags_t()
                ffi.wasmtime_component_valflags_new_uninit(byref(made), len(value))
                for at, name in enumerate(sorted(value)):
                    made.data[at] = _bytes(name)
                cell.kind, cell.of.flags = kind, made
        case ("enum", _):

            def write(cell: Any, value: Any) -> None:
                cell.kind, cell.of.enumeration = kind, _bytes(value)
        case ("option", of):
            some = writer(of)

            def write(cell: Any, value: Any) -> None:
                cell.kind = kind
                cell.of.option = None if value is None else _boxed(some, value[1])
        case _:
            payloads = {name: None if of is None else writer(of) for name, of in cases(shape)}

            def write(cell: Any, value: Any) -> None:
                name, payload = value
                put = payloads[name]
                box = None if put is None else _boxed(put, payload)
                cell.kind = kind
                if shape[0] == "result":
                    cell.of.result.is_ok, cell.of.result.val = name == "ok", box
                else:
                    cell.of.variant.discriminant, cell.of.variant.val = _bytes(name), box

    return write


@functools.cache
def reader(shape: Shape) -> Read:
    """Reads values of a type from a cell, which stays as it is."""
    if isinstance(shape, str):
        if shape == "string":
            return lambda cell: _text(cell.of.string)
        if shape == "char":
            return lambda cell: chr(cell.of.character)
        return lambda cell: getattr(cell.of, FIELDS[shape])
    match shape:
        case ("list", "u8"):
            return lambda cell: bytes(
                cell.of.list.data[at].of.u8 for at in range(cell.of.list.size)
            )
        case ("list", of):
            one = reader(of)
            return lambda cell: [one(cell.of.list.data[at]) for at in range(cell.of.list.size)]
        case ("tuple", *parts):
            inner = [reader(of) for of in parts]
            return lambda cell: tuple(read(cell.of.tuple.data[at]) for at, read in enumerate(inner))
        case ("record", fields):
            inner = [reader(of) for _, of in fields]
            return lambda cell: tuple(
                read(cell.of.record.data[at].val) for at, read in enumerate(inner)
            )
        case ("flags", _):
            return lambda cell: frozenset(
                _text(cell.of.flags.data[at]) for at in range(cell.of.flags.size)
            )
        case ("enum", _):
            return lambda cell: _text(cell.of.enumeration)
        case ("option", of):
            some = reader(of)
            return lambda cell: ("some", some(cell.of.option.contents)) if cell.of.option else None
    payloads = {name: None if of is None else reader(of) for name, of in cases(shape)}

    def read(cell: Any) -> Any:
        if shape[0] == "result":
            name, box = ("ok" if cell.of.result.is_ok else "err"), cell.of.result.val
        else:
            name, box = _text(cell.of.variant.discriminant), cell.of.variant.val
        get = payloads[name]
        return name, None if get is None else get(box.contents)

    return read
