"""What people would use instead, and the floor under any cache: what the others are compared with.

Each is an async function that makes `n` calls of a function that gives back its argument.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import trio
import trio.lowlevel
import wasmtime

from trio_wasmcache._core.wasm.admission import check_limits
from trio_wasmcache._engine.wasmtime import native
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine

from .harness import FIB, Candidate

# It copies the eight bytes that it is given.
PLUGIN = """(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "input_load_u64" (func $input (param i64) (result i64)))
  (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (func (export "same") (result i32) (local i64)
    (local.set 0 (call $alloc (i64.const 8)))
    (call $store (local.get 0) (call $input (i64.const 0)))
    (call $output (local.get 0) (i64.const 8))
    (i32.const 0)))"""
EIGHT_BYTES = bytes(range(8))


def python() -> Candidate:
    """The same in Python."""

    def same(value: int) -> int:
        return value

    async def calls(n: int) -> None:
        for _ in range(n):
            same(1)

    return calls


def bare() -> Candidate:
    """wasmtime-py's `Func.__call__` on an instance that is held."""
    same, store = _instance()

    async def calls(n: int) -> None:
        for _ in range(n):
            same(store, 1)

    return calls


def in_thread() -> Candidate:
    """The same in `trio.to_thread.run_sync`: what keeps an event loop responsive today."""
    same, store = _instance()

    async def calls(n: int) -> None:
        for _ in range(n):
            await trio.to_thread.run_sync(same, store, 1)

    return calls


def new_store() -> Candidate:
    """A store and an instance for each call, of a module that is compiled: what isolates calls."""
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, FIB)

    async def calls(n: int) -> None:
        for _ in range(n):
            store = wasmtime.Store(engine)
            instance = wasmtime.Instance(store, module, [])
            same: Any = instance.exports(store)["same"]
            same(store, 1)

    return calls


def extism() -> Candidate | None:
    """Extism's `Plugin.call` of 8 bytes; None where it is not installed (extra `[bench]`)."""
    try:
        module = importlib.import_module("extism")
    except ImportError:
        return None
    plugin = module.Plugin(bytes(wasmtime.wat2wasm(PLUGIN)))
    assert plugin.call("same", EIGHT_BYTES) == EIGHT_BYTES

    async def calls(n: int) -> None:
        for _ in range(n):
            plugin.call("same", EIGHT_BYTES)

    return calls


class _Block:
    """What any lease has to be: a block that begins with a checkpoint."""

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()

    async def __aexit__(self, *exception: object) -> None:
        pass


@asynccontextmanager
async def floor() -> AsyncIterator[Candidate]:
    """`async with`, a checkpoint, a look whether it is cancelled, fuel, and the native call.

    There is no cache in it: no lookup, no lock, no accounts, and what burnt is not asked.
    """
    engine = WasmtimeEngine(512 * 1024)
    wasm = await engine.to_wasm(FIB)
    artifact = await engine.compile(wasm, lambda info: check_limits(info, "floor", 2**20, 10))
    module = await engine.load(artifact, ())
    instance = module.instantiate(10**9, 100_000)
    while not instance.poll():
        pass
    instance.started()
    # A call of ours ends with asking what it burnt; here that is something in C which does nothing.
    with patch.object(native, "hot_get_fuel", operator.is_):
        begin = instance.function("same").begin
    block = _Block()

    async def calls(n: int) -> None:
        for _ in range(n):
            async with block:
                await trio.lowlevel.checkpoint_if_cancelled()
                begin((1,), 10**9)

    try:
        yield calls
    finally:
        instance.close()
        module.close()
        engine.close()


def _instance() -> tuple[Any, wasmtime.Store]:
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    instance = wasmtime.Instance(store, wasmtime.Module(engine, FIB), [])
    return instance.exports(store)["same"], store
