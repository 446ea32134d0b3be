"""Guests that lie to their ABI: about addresses, sizes, counts, texts and versions."""

from __future__ import annotations

from typing import Any

from trio_wasmcache import AbiError, BufferAbi, FuelExhaustedError, MemoryLimitError, TrapError

from .guest import Fails, Gives, Guest

LOOP = "(loop (br 0)) (unreachable)"


def packed(size: int, at: int) -> str:
    """A result of ScyllaDB's ABI: size and address."""
    return f"(i64.const {size << 32 | at & 0xFFFFFFFF})"


def scylla(
    name: str,
    gets: Fails | Gives,
    run: str = "(local.get 0)",
    *,
    params: str = "i64",
    malloc: str = "(i32.const 2048)",
    free: str = "",
    version: int = 2,
    at: int = 16,
    data: str = "",
    **more: Any,
) -> Guest:
    """A liar in ScyllaDB's ABI. Room for arguments is always at 2048."""
    source = f"""(memory (export "memory") 1) (global (export "_scylla_abi") i32 (i32.const {at}))
        (data (i32.const 16) "\\{version:02x}\\00\\00\\00") (data (i32.const 1024) "{data}")
        (func (export "_scylla_malloc") (param i32) (result i32) {malloc})
        (func (export "_scylla_free") (param i32) {free})
        (func (export "run") (param {params}) (result i64) {run})"""
    given = {"args": ("text",), "returns": "text", "values": ("hello",), "abi": "scylla", **more}
    return Guest(f"scylla: {name}", "the host, by its ABI", source, gets, **given)


def buffer(
    name: str,
    gets: Fails | Gives,
    run: str,
    *,
    result: str = "i64",
    malloc: str = "(i32.const 2048)",
    free: str = "",
    data: str = "",
    **more: Any,
) -> Guest:
    """A liar in the buffer ABI, with C's allocator."""
    source = f"""(memory (export "memory") 1) (data (i32.const 1024) "{data}")
        (func (export "malloc") (param i32) (result i32) {malloc})
        (func (export "free") (param i32) {free})
        (func (export "run") (param i32 i32) (result {result}) {run})"""
    given = {"args": ("str",), "returns": "str", "values": ("hello",), "abi": "buffer", **more}
    return Guest(f"buffer: {name}", "the host, by its ABI", source, gets, **given)


NULL = "bytes at address 0, which is a null pointer"
OUTSIDE = "which are not inside its memory of 65536 bytes"

GUESTS = [
    scylla("its argument for its result", Gives("hello")),
    scylla("no room", Fails(MemoryLimitError, "returned 0: no memory"), malloc="(i32.const 0)"),
    scylla("room at -1", Fails(AbiError, "exceed its memory"), malloc="(i32.const -1)"),
    scylla("room at the last byte", Fails(AbiError, "4294967295"), malloc="(i32.const 0xffffffff)"),
    scylla("room over the end", Fails(AbiError, "exceed its memory"), malloc="(i32.const 65533)"),
    scylla("a trap in its allocator", Fails(TrapError, "unreachable"), malloc="(unreachable)"),
    scylla("a loop in its allocator", Fails(FuelExhaustedError, "all fuel"), malloc=LOOP),
    scylla("a trap where it frees", Fails(TrapError, "unreachable"), free="(unreachable)"),
    scylla("a loop where it frees", Fails(FuelExhaustedError, "all fuel"), free=LOOP),
    scylla("a size of -2", Fails(AbiError, OUTSIDE), packed(-2, 1024)),
    scylla("the smallest size", Fails(AbiError, OUTSIDE), packed(-(2**31), 0)),
    scylla("the largest size", Fails(AbiError, OUTSIDE), packed(2**31 - 1, 1024)),
    scylla("a result at -1", Fails(AbiError, OUTSIDE), packed(5, -1)),
    scylla("a result over the end", Fails(AbiError, OUTSIDE), packed(5, 65532)),
    scylla("five bytes at a null pointer", Fails(AbiError, NULL), packed(5, 0)),
    scylla("nothing at a null pointer", Gives(""), packed(0, 0)),
    scylla("nothing at the end", Gives(""), packed(0, 65536)),
    scylla("null, somewhere", Gives(None), packed(-1, -1)),
    scylla(
        "text that is not UTF-8",
        Fails(AbiError, "returned no text"),
        packed(2, 1024),
        data="\\ff\\fe",
    ),
    scylla("an unknown version", Fails(AbiError, "versions are 1 and 2"), version=3),
    scylla("a version outside of memory", Fails(AbiError, OUTSIDE), at=-2),
    scylla(
        "two arguments in one place",
        Gives("ab"),
        params="i64 i64",
        args=("text", "text"),
        values=("xx", "ab"),
    ),
    scylla(
        "a list of two thousand million",
        Fails(AbiError, "items in 8 bytes"),
        packed(8, 1024),
        data="\\7f\\ff\\ff\\ff\\00\\00\\00\\00",
        returns="list<int>",
    ),
    scylla(
        "a list of -1",
        Fails(AbiError, "of -1 items"),
        packed(4, 1024),
        data="\\ff\\ff\\ff\\ff",
        returns="list<int>",
    ),
    scylla(
        "a list with an item over its end",
        Fails(AbiError, "with an item of 2147483647 bytes"),
        packed(8, 1024),
        data="\\00\\00\\00\\01\\7f\\ff\\ff\\ff",
        returns="list<blob>",
    ),
    scylla(
        "a varint of 60,000 bytes",
        Gives(0),
        packed(60_000, 4096),
        returns="varint",
    ),
    buffer("its argument for its result", Gives("hello"), "(i64.const 0x80000000005)"),
    buffer("a size of -1", Fails(AbiError, OUTSIDE), "(i64.const 0x400ffffffff)"),
    buffer("five bytes at a null pointer", Fails(AbiError, NULL), "(i64.const 5)"),
    buffer("nothing at a null pointer", Gives(""), "(i64.const 0)"),
    buffer(
        "five bytes at a null pointer, the other way round",
        Fails(AbiError, NULL),
        "(i64.const 0x500000000)",
        abi=BufferAbi(result="packed_low"),
    ),
    buffer(
        "text at a null pointer",
        Fails(AbiError, NULL),
        "(i32.const 0)",
        result="i32",
        abi=BufferAbi(result="nul"),
    ),
    buffer(
        "an area at a null pointer",
        Fails(AbiError, "its result's place in 8 bytes at address 0"),
        "(i32.const 0)",
        result="i32",
        abi=BufferAbi(result="area"),
    ),
    buffer(
        "an area with a null pointer in it",
        Fails(AbiError, NULL),
        "(i32.store offset=1028 (i32.const 0) (i32.const 5)) (i32.const 1024)",
        result="i32",
        abi=BufferAbi(result="area"),
    ),
    buffer(
        "a pair with a null pointer in it",
        Fails(AbiError, NULL),
        "(i32.const 0) (i32.const 5)",
        result="i32 i32",
    ),
    buffer("a result at the end", Fails(AbiError, OUTSIDE), "(i64.const 0xfffffff000000008)"),
    buffer(
        "no room",
        Fails(MemoryLimitError, "returned 0: no memory"),
        "(i64.const 0)",
        malloc="(i32.const 0)",
    ),
    buffer(
        "room at -4", Fails(AbiError, "exceed its memory"), "(i64.const 0)", malloc="(i32.const -4)"
    ),
    buffer(
        "a trap in its allocator",
        Fails(TrapError, "unreachable"),
        "(i64.const 0)",
        malloc="(unreachable)",
    ),
    buffer(
        "a trap where it frees",
        Fails(TrapError, "unreachable"),
        "(i64.const 0x40000000001)",
        data="abc",
        free="(unreachable)",
    ),
    buffer(
        "text that is not UTF-8",
        Fails(AbiError, "not UTF-8"),
        "(i64.const 0x40000000003)",
        data="\\c0\\80\\ff",
    ),
    buffer(
        "text without an end",
        Fails(AbiError, "after which there is no zero"),
        "(memory.fill (i32.const 0) (i32.const 65) (i32.const 65536)) (i32.const 1)",
        result="i32",
        abi=BufferAbi(result="nul"),
    ),
    buffer(
        "an area outside of memory",
        Fails(AbiError, "its result's place in"),
        "(i32.const -3)",
        result="i32",
        abi=BufferAbi(result="area"),
    ),
]
