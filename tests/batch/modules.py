"""Modules for batches, for both engines: each exports ``run``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import wasmtime
from kits import FakeKit, Kit, add

from trio_wasmcache import CacheConfig, Function, InstanceCache, Lease, TrapError

# {type of the plain ABI: (wasm type, lowest, highest)}
INTEGERS = {
    f"{sign}{bits}": (
        "i64" if bits == 64 else "i32",
        -(2 ** (bits - 1)) if sign == "i" else 0,
        2 ** (bits - 1) - 1 if sign == "i" else 2**bits - 1,
    )
    for sign in "iu"
    for bits in (8, 16, 32, 64)
}


def binary(text: str) -> bytes:
    made: bytes = wasmtime.wat2wasm(text)
    return made


def same(kit: Kit, wasm: str) -> bytes:
    """Gives its argument back."""
    if isinstance(kit, FakeKit):
        return kit.engine.module(lambda x: x, params=(wasm,), results=(wasm,))
    return binary(f'(module (func (export "run") (param {wasm}) (result {wasm}) (local.get 0)))')


def dividing(kit: Kit) -> bytes:
    """Quotient of two i64; by zero it traps."""

    def divide(x: int, y: int) -> int:
        if y == 0:
            raise TrapError("wasm trap: integer divide by zero", code="integer divide by zero")
        return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)

    if isinstance(kit, FakeKit):
        return kit.engine.module(divide, params=("i64", "i64"))
    return binary(
        '(module (func (export "run") (param i64 i64) (result i64)'
        " (i64.div_s (local.get 0) (local.get 1))))"
    )


def both(kit: Kit) -> bytes:
    """Quotient and remainder of an i32 by 1000, as i32 and f64."""
    if isinstance(kit, FakeKit):
        return kit.engine.module(
            lambda x: (x // 1000, float(x % 1000)), params=("i32",), results=("i32", "f64")
        )
    return binary(
        '(module (func (export "run") (param i32) (result i32 f64)'
        " (i32.div_u (local.get 0) (i32.const 1000))"
        " (f64.convert_i32_u (i32.rem_u (local.get 0) (i32.const 1000)))))"
    )


def counting(kit: Kit) -> bytes:
    """No arguments; 1, then 2, and so on."""
    if isinstance(kit, FakeKit):
        numbers = iter(range(1, 10**9))
        return kit.engine.module(lambda: next(numbers), params=())
    return binary(
        '(module (global $n (mut i64) (i64.const 0)) (func (export "run") (result i64)'
        " (global.set $n (i64.add (global.get $n) (i64.const 1))) (global.get $n)))"
    )


def silent(kit: Kit) -> bytes:
    """Takes an i64, gives nothing."""
    if isinstance(kit, FakeKit):
        return kit.engine.module(lambda x: None, results=())
    return binary('(module (func (export "run") (param i64)))')


# Never comes back from 777.
STOPS = """(module (func (export "run") (param i64 i64) (result i64)
  (if (i64.eq (local.get 0) (i64.const 777)) (then (loop (br 0))))
  (i64.add (local.get 0) (local.get 1))))"""
# Takes a while for each row: as many rounds as it is told.
WORKS = """(module (func (export "run") (param i64) (result i64) (local i64)
  (loop (local.set 1 (i64.add (local.get 1) (i64.const 1)))
    (br_if 0 (i64.lt_u (local.get 1) (local.get 0))))
  (local.get 1)))"""


@asynccontextmanager
async def held(
    kit: Kit, wasm: bytes, config: CacheConfig | None = None, **more: Any
) -> AsyncIterator[tuple[InstanceCache, Lease]]:
    """A cache with this one function, and a lease of it."""
    async with kit.open(config) as cache:
        function: Function = await add(cache, "f", wasm, **more)
        async with function.acquire() as lease:
            yield cache, lease
