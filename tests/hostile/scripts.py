"""Guests that lie to AssemblyScript's ABI: about addresses, headers, classes and sizes."""

from __future__ import annotations

import struct
from typing import Any

from trio_wasmcache import AbiError, FuelExhaustedError, TrapError
from trio_wasmcache._core.wasm.memory_layout import ARRAY, FLOATS, SIGNED, STATIC_ARRAY, TYPED_ARRAY

from .guest import Fails, Gives, Guest

LOOP = "(loop (br 0)) (unreachable)"
# Address of the table of classes, and the flags of those from 3 on.
RTTI = 64
F64 = 1 << 9 | SIGNED | FLOATS
CLASSES = (
    0,
    ARRAY | F64,
    TYPED_ARRAY | F64,
    STATIC_ARRAY | F64,
    TYPED_ARRAY | 1 << 6,
    ARRAY | 1 << 14,
)
ARRAY_F64, TYPED_F64, STATIC_F64, UINT8, TEXTS = range(4, 9)
# Where an object of the tests is, and its buffer.
AT, BUFFER = 1024, 2048

# A `__new` that writes the header of an object of AssemblyScript; the last ones are overwritten.
HONEST = """(local $at i32)
    (local.set $at (i32.add (i32.const 1024) (i32.and (i32.load (i32.const 0)) (i32.const 0xfff))))
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 256)))
    (i32.store (i32.sub (local.get $at) (i32.const 8)) (local.get 1))
    (i32.store (i32.sub (local.get $at) (i32.const 4)) (local.get 0))
    (local.get $at)"""


def escaped(data: bytes) -> str:
    """Bytes as WebAssembly text writes them."""
    return "".join(f"\\{byte:02x}" for byte in data)


def header(at: int, kind: int, size: int) -> str:
    """A data segment with the class and the size of an object."""
    return words(at - 8, kind, size)


def words(at: int, *values: int) -> str:
    """A data segment with 32 bits for each value."""
    data = struct.pack(f"<{len(values)}I", *(value & 0xFFFFFFFF for value in values))
    return f'(data (i32.const {at}) "{escaped(data)}")'


def runtime(
    *,
    new: str = f"(i32.const {AT})",
    pin: str = "(local.get 0)",
    unpin: str = "",
    collect: str = "",
    rtti: int = RTTI,
    count: int = 3 + len(CLASSES),
) -> str:
    """The exports of a runtime; room for objects is always at `AT`."""
    return f"""(memory (export "memory") 1) (global (export "__rtti_base") i32 (i32.const {rtti}))
        {words(RTTI, count, 32, 32, 32, *CLASSES)}
        (func (export "__new") (param i32 i32) (result i32) {new})
        (func (export "__pin") (param i32) (result i32) {pin})
        (func (export "__unpin") (param i32) {unpin})
        (func (export "__collect") {collect})"""


def script(
    name: str,
    gets: Fails | Gives,
    run: str = f"(i32.const {AT})",
    data: str = "",
    *,
    params: str = "i32",
    result: str = "i32",
    extra: str = "",
    **more: Any,
) -> Guest:
    """A liar in AssemblyScript's ABI."""
    parts = {key: more.pop(key) for key in [*more] if key in runtime.__kwdefaults__}
    source = f"""{extra} {runtime(**parts)} {data}
        (func (export "run") (param {params}) (result {result}) {run})"""
    given = {"args": ("str",), "returns": "str", "values": ("hello",), "abi": None, **more}
    return Guest(f"assemblyscript: {name}", "the host, by its ABI", source, gets, **given)


def array(kind: int, *fields: int, size: int = 16, buffer: tuple[int, int] = (1, 64)) -> str:
    """An array with these fields at `AT`, and the header of a buffer at `BUFFER`."""
    return header(AT, kind, size) + words(AT, *fields) + header(BUFFER, *buffer)


LISTS: dict[str, Any] = {"returns": "list[f64]", "args": ("i32",), "values": (1,)}
BYTES: dict[str, Any] = {"returns": "bytes", "args": ("i32",), "values": (1,)}
TEXT: dict[str, Any] = {"returns": "str", "args": ("i32",), "values": (1,)}
OUTSIDE = "not inside its memory of 65536 bytes"
NOWHERE = "no object can be there"
HALVES = escaped("\ud800x\udc00".encode("utf-16-le", "surrogatepass"))

GUESTS = [
    script("its argument for its result", Gives("hello"), data=header(AT, 2, 10)),
    script(
        "halves of pairs",
        Gives("\ud800x\udc00"),
        data=f'{header(AT, 2, 6)} (data (i32.const {AT}) "{HALVES}")',
        **TEXT,
    ),
    script("null", Gives(None), "(i32.const 0)"),
    script("nothing", Gives(""), data=header(AT, 2, 0), **TEXT),
    script("an object at 1", Fails(AbiError, NOWHERE), "(i32.const 1)"),
    script("an object at 19", Fails(AbiError, NOWHERE), "(i32.const 19)"),
    script("an object at -1", Fails(AbiError, NOWHERE), "(i32.const -1)"),
    script("an object behind the end", Fails(AbiError, NOWHERE), "(i32.const 65537)"),
    script("an object at the end", Fails(AbiError, "of class 0"), "(i32.const 65536)"),
    script("a size of -1", Fails(AbiError, OUTSIDE), data=header(AT, 2, -1)),
    script("a size of -2147483648", Fails(AbiError, OUTSIDE), data=header(AT, 2, -(2**31))),
    script("a size over the end", Fails(AbiError, OUTSIDE), data=header(AT, 2, 65536 - AT + 2)),
    script("an odd size", Fails(AbiError, "which is not even"), data=header(AT, 2, 5), **TEXT),
    script(
        "a buffer for text",
        Fails(AbiError, "of class 1, ArrayBuffer"),
        data=header(AT, 1, 4),
        **TEXT,
    ),
    script("a class of -1", Fails(AbiError, "which is no str"), data=header(AT, -1, 4), **TEXT),
    script("text for bytes", Fails(AbiError, "of class 2, String"), data=header(AT, 2, 4), **BYTES),
    script("bytes", Gives(b"\0" * 4), data=header(AT, 1, 4), **BYTES),
    script(
        "an unknown class",
        Fails(AbiError, "the module has 9 classes"),
        data=header(AT, 9, 4),
        **BYTES,
    ),
    script(
        "the largest class",
        Fails(AbiError, "the module has 9 classes"),
        data=header(AT, -1, 4),
        **BYTES,
    ),
    script(
        "a table of -1 classes",
        Fails(AbiError, "the entry for its class 268435456"),
        data=header(AT, 2**28, 4),
        count=-1,
        **BYTES,
    ),
    script(
        "a table outside",
        Fails(AbiError, "table of classes"),
        data=header(AT, 7, 12),
        rtti=-3,
        **BYTES,
    ),
    script(
        "a table at the last byte",
        Fails(AbiError, "table of classes"),
        data=header(AT, 7, 12),
        rtti=65535,
        **BYTES,
    ),
    script(
        "an array of 11 bytes",
        Fails(AbiError, "it must have 16"),
        data=array(ARRAY_F64, size=11),
        **LISTS,
    ),
    script(
        "a typed array of 12 bytes",
        Gives([0.0]),
        data=array(TYPED_F64, BUFFER, BUFFER, 8, size=12),
        **LISTS,
    ),
    script("an array", Gives([0.0] * 8), data=array(ARRAY_F64, BUFFER, BUFFER, 64, 8), **LISTS),
    script("a static array", Gives([0.0, 0.0]), data=header(AT, STATIC_F64, 16), **LISTS),
    script(
        "a static array of 15 bytes",
        Fails(AbiError, "no multiple of 8"),
        data=header(AT, STATIC_F64, 15),
        **LISTS,
    ),
    script(
        "a typed array of 15 bytes",
        Fails(AbiError, "no multiple of 8"),
        data=array(TYPED_F64, BUFFER, BUFFER, 15),
        **LISTS,
    ),
    script(
        "a length of -1",
        Fails(AbiError, "not inside its buffer"),
        data=array(ARRAY_F64, BUFFER, BUFFER, 64, -1),
        **LISTS,
    ),
    script(
        "a length whose size is 2 ** 32",
        Fails(AbiError, "of 4294967296 bytes"),
        data=array(ARRAY_F64, BUFFER, BUFFER, 64, 2**29),
        **LISTS,
    ),
    script(
        "a length beyond its buffer",
        Fails(AbiError, "not inside its buffer"),
        data=array(ARRAY_F64, BUFFER, BUFFER, 64, 9),
        **LISTS,
    ),
    script(
        "data before its buffer",
        Fails(AbiError, "not inside its buffer"),
        data=array(TYPED_F64, BUFFER, BUFFER - 8, 8),
        **LISTS,
    ),
    script(
        "a buffer at 0",
        Fails(AbiError, "whose buffer is the address 0"),
        data=array(TYPED_F64, 0, 0, 0),
        **LISTS,
    ),
    script(
        "a buffer at -8",
        Fails(AbiError, "whose buffer is the address"),
        data=array(TYPED_F64, -8, -8, 8),
        **LISTS,
    ),
    script(
        "itself for its buffer",
        Fails(AbiError, "not inside its buffer"),
        data=array(TYPED_F64, AT, AT, 8),
        **LISTS,
    ),
    script(
        "a buffer over the end",
        Fails(AbiError, OUTSIDE),
        data=array(TYPED_F64, BUFFER, BUFFER, 8, buffer=(1, 65536)),
        **LISTS,
    ),
    script(
        "a string for its buffer",
        Fails(AbiError, "of class 2 and"),
        data=array(TYPED_F64, BUFFER, BUFFER, 8, buffer=(2, 64)),
        **LISTS,
    ),
    script(
        "texts for numbers",
        Fails(AbiError, "which is no list"),
        data=array(TEXTS, BUFFER, BUFFER, 8, 1),
        **LISTS,
    ),
    script(
        "bytes for numbers",
        Fails(AbiError, "which is no list"),
        data=array(UINT8, BUFFER, BUFFER, 8, 1),
        **LISTS,
    ),
    script(
        "an object of __new at 0",
        Fails(AbiError, r"__new(10) returned the address 0"),
        new="(i32.const 0)",
    ),
    script("an object of __new at 19", Fails(AbiError, "the address 19"), new="(i32.const 19)"),
    script(
        "an object of __new at -1", Fails(AbiError, "the address 4294967295"), new="(i32.const -1)"
    ),
    script(
        "an object of __new over the end",
        Fails(AbiError, "the address 65530"),
        new="(i32.const 65530)",
    ),
    script("a trap in __new", Fails(TrapError, "unreachable"), new="(unreachable)"),
    script("a loop in __new", Fails(FuelExhaustedError, "all fuel"), new=LOOP),
    script(
        "memory that grows in __new",
        Gives("hello"),
        new=f"(drop (memory.grow (i32.const 1))) (i32.const {AT})",
        data=header(AT, 2, 10),
    ),
    script(
        "memory that grows in __new, and an object there",
        Gives(None),
        "(i32.const 0)",
        new="(i32.shl (memory.grow (i32.const 1)) (i32.const 16))",
    ),
    script(
        "a trap in __pin",
        Fails(TrapError, "unreachable"),
        pin="(unreachable)",
        params="i32 i32",
        args=("str", "str"),
        values=("a", "b"),
    ),
    script(
        "a loop in __unpin",
        Fails(FuelExhaustedError, "all fuel"),
        unpin=LOOP,
        params="i32 i32",
        args=("str", "str"),
        values=("a", "b"),
    ),
    script(
        "a trap in __collect",
        Fails(TrapError, "unreachable"),
        "(drop (memory.grow (i32.const 1))) (i32.const 0)",
        collect="(unreachable)",
    ),
    script(
        "two arguments in one place",
        Gives("bx"),
        data=header(AT, 2, 4),
        params="i32 i32",
        args=("str", "str"),
        values=("ax", "b"),
    ),
    script(
        "a view in the place of its buffer",
        Gives(None),
        "(i32.const 0)",
        args=("array<f64>",),
        values=([1.0],),
    ),
    script(
        "too many classes for an argument",
        Fails(AbiError, "has 65537 of them"),
        args=("array<f64>",),
        values=([1.0],),
        count=65537,
    ),
    script(
        "a table over the end, for an argument",
        Fails(AbiError, "has 16384 of them"),
        args=("array<f64>",),
        values=([1.0],),
        count=16384,
    ),
    script(
        "a string of a gigabyte, to the console",
        Fails(AbiError, "a string at 1024"),
        f"(call $log (i32.const {AT})) (i32.const 0)",
        data=header(AT, 2, 2**30),
        extra='(import "env" "console.log" (func $log (param i32)))',
    ),
    script(
        "an abort with a string of a gigabyte",
        Fails(TrapError, "the guest aborted in an unknown file, line 1, column 2"),
        f"(call $abort (i32.const {AT}) (i32.const -1) (i32.const 1) (i32.const 2)) (i32.const 0)",
        data=header(AT, 2, 2**30),
        extra='(import "env" "abort" (func $abort (param i32 i32 i32 i32)))',
    ),
]
