"""What tests of the two routes share: the same batch through a driver, and row by row."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from batch.modules import binary
from peeking import native_of

from trio_wasmcache import CacheConfig, Function, GuestError, HostFunction, InstanceCache, Lease
from trio_wasmcache._batch import byte_chunks
from trio_wasmcache._core.wasm.memory_layout import MemoryShape

UDFS = Path(__file__).parents[1] / "udfs"

# (str) -> str with packed results, whose mood is the first letter; others come back as they are.
# Its allocator is a stack, and `asks` asks the host in between.
MOODY = """(module (import "host" "ask" (func $ask (param i64) (result i64)))
  (memory (export "memory") 1)
  (global $top (mut i32) (i32.const 1024))
  (func $malloc (export "malloc") (param $size i32) (result i32)
    (if (i32.eq (local.get $size) (i32.const 1013)) (then (unreachable)))
    (if (i32.eq (local.get $size) (i32.const 1019)) (then (return (i32.const 0))))
    (if (i32.eq (local.get $size) (i32.const 1021)) (then (return (i32.const -16))))
    (global.get $top)
    (global.set $top (i32.add (global.get $top) (local.get $size)))
    (block (loop
      (br_if 1 (i32.le_u (global.get $top) (i32.mul (memory.size) (i32.const 65536))))
      (drop (memory.grow (i32.const 1)))
      (br 0))))
  (func (export "free") (param $at i32)
    (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 102)) (then (unreachable)))  ;; f
    (global.set $top (local.get $at)))
  (func $is (param $at i32) (param $size i32) (param $mood i32) (result i32)
    (if (i32.eqz (local.get $size)) (then (return (i32.const 0))))
    (i32.eq (i32.load8_u (local.get $at)) (local.get $mood)))
  (func $packed (param $at i32) (param $size i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $size))))
  (func (export "run") (param $at i32) (param $size i32) (result i64) (local $to i32)
    (if (call $is (local.get $at) (local.get $size) (i32.const 116)) (then (unreachable)))  ;; t
    (if (call $is (local.get $at) (local.get $size) (i32.const 101))  ;; e
      (then (loop (br 0))))
    (if (call $is (local.get $at) (local.get $size) (i32.const 103))  ;; g
      (then (drop (memory.grow (i32.const 1)))))
    (if (call $is (local.get $at) (local.get $size) (i32.const 104))  ;; h
      (then (return (call $packed (local.get $at)
        (i32.wrap_i64 (call $ask (i64.extend_i32_u (local.get $size))))))))
    (if (call $is (local.get $at) (local.get $size) (i32.const 108))  ;; l
      (then (return (i64.const -1))))
    (if (call $is (local.get $at) (local.get $size) (i32.const 98))  ;; b
      (then (i32.store8 (local.get $at) (i32.const 255))))
    (if (call $is (local.get $at) (local.get $size) (i32.const 97))  ;; a
      (then (return (call $packed (local.get $at) (local.get $size)))))
    (local.set $to (call $malloc (local.get $size)))
    (memory.copy (local.get $to) (local.get $at) (local.get $size))
    (call $packed (local.get $to) (local.get $size))))"""


HASH = """(func (export "hash") (param $at i32) (param $size i32) (result i32)
    (local $sum i32) (local $end i32)
    (local.set $end (i32.add (local.get $at) (local.get $size)))
    (block (loop
      (br_if 1 (i32.ge_u (local.get $at) (local.get $end)))
      (local.set $sum (i32.add (i32.mul (local.get $sum) (i32.const 31))
        (i32.load8_u (local.get $at))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br 0)))
    (local.get $sum))"""
# The same of bytes up to a zero.
HASH_NUL = (
    HASH.replace('"hash"', '"hash_nul"')
    .replace("(param $size i32)", "")
    .replace("(local.set $end (i32.add (local.get $at) (local.get $size)))", "")
    .replace(
        "(i32.ge_u (local.get $at) (local.get $end))", "(i32.eqz (i32.load8_u (local.get $at)))"
    )
)


def hashes(*, alone: bool = False) -> bytes:
    """(str) -> u32; with the allocator of `MOODY`, or with none."""
    if alone:
        return binary(f'(module (memory (export "memory") 1) {HASH})')
    begin, end = MOODY.index("(func $malloc"), MOODY.index("(func $is")
    allocator = MOODY[begin:end].replace("(then (unreachable)))  ;; f", "(then))")
    top = "(global $top (mut i32) (i32.const 1024))"
    return binary(f'(module (memory (export "memory") 1) {top} {allocator} {HASH} {HASH_NUL})')


def udf(name: str) -> bytes:
    return (UDFS / f"{name}.wasm").read_bytes()


def moody() -> bytes:
    return binary(MOODY)


@contextmanager
def row_by_row() -> Iterator[None]:
    """No driver makes calls whose values cross through memory."""
    real = byte_chunks.bulk_of
    byte_chunks.bulk_of = lambda binding, native: None
    try:
        yield
    finally:
        byte_chunks.bulk_of = real


def drives(lease: Lease) -> bool:
    """Whether its instance has a driver for values that cross through memory."""
    return any(isinstance(shape, MemoryShape) for shape, _ in native_of(lease).drivers)


def seen(result: Any) -> Any:
    """A result, or what is the same of an error however its row was reached."""
    if not isinstance(result, GuestError):
        return (type(result), result)
    # Neither fuel nor frames of a driver, and how a message begins is enough.
    text = re.sub(r" after \d+ units of fuel", "", str(result).split("\n")[0])
    return type(result), result.row, result.values, text


async def outcome(function: Function, columns: Any, rows: int | None = None) -> Any:
    async with function.acquire() as lease:
        try:
            return await lease.map(columns, rows=rows)
        except GuestError as error:
            return error


async def both(function: Function, columns: Any, rows: int | None = None) -> Any:
    """The outcome of a batch, which is the same row by row."""
    driven = await outcome(function, columns, rows)
    with row_by_row():
        single = await outcome(function, columns, rows)
    assert seen(driven) == seen(single)
    return driven


@asynccontextmanager
async def moody_cache(
    kit: Any, host: Any, **limits: Any
) -> AsyncIterator[tuple[InstanceCache, Function]]:
    """A cache with the moody function in it."""
    async with kit.open(CacheConfig(**limits)) as cache:
        function = await cache.register(
            "f",
            moody(),
            args=("str",),
            returns="str",
            export="run",
            abi="buffer",
            imports={"host": {"ask": HostFunction(host, ("i64",), ("i64",))}},
        )
        yield cache, function
