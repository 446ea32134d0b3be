"""Memory and stacks for wasmtime that can be refused: the n-th that is asked for, and only that.

Run as a process of its own (`python -m engine.faults`), since what goes wrong here may abort it. It
prints what came of each refusal as a line of JSON.

A refusal is a `wasmtime_error_t *`; any other pointer would be freed as one.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import sys
from array import array
from collections.abc import Awaitable, Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from typing import Any

import trio
from kits import open_real_cache
from parts import TwoParts
from wasmtime import _bindings, _ffi, wat2wasm

from trio_wasmcache import CacheConfig, HostFunction, InstanceCache, WasmCacheError
from trio_wasmcache._engine.wasmtime import native
from trio_wasmcache.testing import check_invariants

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = c_void_p
LIBC.mmap.argtypes = [c_void_p, c_size_t, c_int, c_int, c_int, c_size_t]
LIBC.mprotect.argtypes = [c_void_p, c_size_t, c_int]
LIBC.munmap.argtypes = [c_void_p, c_size_t]
NORESERVE = 0x4000
LIBRARY = ctypes.PyDLL(str(_ffi.filename))
LIBRARY.wasmtime_error_new.restype = c_void_p
LIBRARY.wasmtime_error_new.argtypes = [c_char_p]


class Region:
    """Reserved addresses, the first of which may be used."""

    def __init__(self, used: int, reserved: int, guard: int) -> None:
        self.used, self.reserved, self.total = used, reserved, reserved + guard
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        self.base: int = LIBC.mmap(None, max(self.total, 1), 0, flags, -1, 0)
        assert self.base != c_void_p(-1).value
        self.use(used)

    def use(self, size: int) -> None:
        if size:
            assert LIBC.mprotect(self.base, size, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        self.used = size

    def free(self) -> None:
        assert LIBC.munmap(self.base, max(self.total, 1)) == 0


class Creators:
    """Makes memories and stacks for the engines that are made while it is in place."""

    def __init__(self) -> None:
        self.asked = {"memory": 0, "growth": 0, "stack": 0}
        self.refuse: tuple[str, int] | None = None
        self.live: dict[int, Region] = {}
        self._numbers = itertools.count(1)
        b = _bindings
        free = ctypes.CFUNCTYPE(None, c_void_p)(self._free)
        memory = b.wasmtime_memory_creator()
        memory.new_memory = b.wasmtime_new_memory_callback_t(self._new_memory)
        stack = b.wasmtime_stack_creator()
        stack.new_stack = b.wasmtime_new_stack_memory_callback_t(self._new_stack)
        get_memory = b.wasmtime_memory_get_callback_t(self._get_memory)
        grow_memory = b.wasmtime_memory_grow_callback_t(self._grow_memory)
        get_stack = b.wasmtime_stack_memory_get_callback_t(self._get_stack)
        # wasmtime copies the structures; what they point at has to stay.
        self.kept = memory, stack, free, get_memory, grow_memory, get_stack
        self.free, self.get_memory, self.grow_memory = free, get_memory, grow_memory
        self.get_stack = get_stack
        make = native.wasm_engine_new_with_config

        def new_engine(config: int) -> int:
            given = ctypes.cast(config, ctypes.POINTER(b.wasm_config_t))
            # It would want memory of its own making.
            b.wasmtime_config_memory_init_cow_set(given, False)
            b.wasmtime_config_host_memory_creator_set(given, byref(memory))
            b.wasmtime_config_host_stack_creator_set(given, byref(stack))
            engine: int = make(config)
            return engine

        native.wasm_engine_new_with_config = new_engine  # type: ignore[attr-defined]

    def begin(self, kind: str, number: int) -> None:
        """From now on, the `number`-th of that kind is refused."""
        self.asked = dict.fromkeys(self.asked, 0)
        self.refuse = kind, number

    def _refused(self, kind: str) -> int:
        self.asked[kind] += 1
        if self.refuse != (kind, self.asked[kind]):
            return 0
        error: int = LIBRARY.wasmtime_error_new(f"no {kind} for you".encode())
        return error

    def _new_memory(
        self, env: Any, kind: Any, least: int, most: int, reserved: int, guard: int, out: Any
    ) -> int:
        if error := self._refused("memory"):
            return error
        region = Region(least, max(reserved, least), guard)
        number = next(self._numbers)
        self.live[number] = region
        out[0].env, out[0].get_memory, out[0].grow_memory = (
            number,
            self.get_memory,
            self.grow_memory,
        )
        out[0].finalizer = self.free
        return 0

    def _get_memory(self, number: int, size: Any, capacity: Any) -> int:
        region = self.live[number]
        size[0], capacity[0] = region.used, region.reserved
        return region.base

    def _grow_memory(self, number: int, size: int) -> int:
        if error := self._refused("growth"):
            return error
        self.live[number].use(size)
        return 0

    def _new_stack(self, env: Any, size: int, zeroed: bool, out: Any) -> int:
        if error := self._refused("stack"):
            return error
        number = next(self._numbers)
        self.live[number] = Region(size, size, 0)
        out[0].env, out[0].get_stack_memory, out[0].finalizer = number, self.get_stack, self.free
        return 0

    def _get_stack(self, number: int, size: Any) -> int:
        region = self.live[number]
        size[0] = region.used
        return region.base + region.used  # stacks grow down: the top

    def _free(self, number: int) -> None:
        self.live.pop(number).free()


GUEST = """(module
  (import "host" "ask" (func $ask (param i64) (result i64)))
  (memory (export "memory") 1) (memory $hidden 1) (data (i32.const 8) "data")
  (func $begin (drop (memory.grow $hidden (i32.const 1)))) (start $begin)
  (func (export "grows") (param i64) (result i64)
    (drop (memory.grow (i32.const 1))) (drop (memory.grow $hidden (i32.const 1)))
    (i64.add (local.get 0) (i64.load8_u (i32.const 8))))
  (func (export "asks") (param i64) (result i64) (call $ask (local.get 0)))
  (func (export "long") (param i64) (result i64)
    (loop (local.set 0 (i64.add (local.get 0) (i64.const 1)))
      (br_if 0 (i64.lt_u (local.get 0) (i64.const 100000)))) (local.get 0))
  (func (export "size") (param i32 i32) (result i32) (local.get 1)))"""
# The same, with a part beside it that has a memory of its own, and grows it.
PART = """(module (memory (export "memory") 1) (data (i32.const 8) "part")
  (func (export "run") (param i64) (result i64)
    (drop (memory.grow (i32.const 1))) (i64.add (local.get 0) (i64.load8_u (i32.const 8)))))"""
LINKED = GUEST.replace(
    "(memory (export", '(import "part" "run" (func $part (param i64) (result i64))) (memory (export'
).replace(
    "(i64.add (local.get 0) (i64.load8_u",
    "(i64.add (i64.sub (call $part (local.get 0)) (i64.const 112)) (i64.load8_u",
)
ANSWERS = [101, 8, 100_000, 70_000, array("q", [101, 102])]
CONFIG = CacheConfig(yield_fuel=50_000, offload_after=2)


async def scenario(cache: InstanceCache, *, linked: bool = False) -> list[Any]:
    """Everything that takes memory or a stack: instances, growths, drivers, calls in threads."""

    async def ask(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return value + 1

    imports = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}
    answers: list[Any] = []
    names = {function.name for function in cache.functions()}
    for name in ("grows", "asks", "long"):
        if name not in names:
            wasm, abi = (LINKED, TwoParts(wat2wasm(PART))) if linked else (GUEST, None)
            await cache.register(name, wasm, args=("i64",), returns="i64", imports=imports, abi=abi)
    if "size" not in names:
        await cache.register(
            "size", GUEST, args=("bytes",), returns="u32", imports=imports, abi="buffer"
        )
    for name, value in (("grows", 1), ("asks", 7), ("long", 1)):
        async with cache.acquire(name, ("i64",)) as lease:
            answers.append(await lease.call(value))
    async with cache.acquire("size", ("bytes",)) as lease:
        answers.append(await lease.call(bytes(70_000)))  # more than a page: the host grows
    async with cache.acquire("grows", ("i64",)) as lease:
        answers.append(await lease.map([array("q", [1, 2])]))
    return answers


async def attempt(run: Callable[[], Awaitable[list[Any]]]) -> str:
    try:
        answers = await run()
    except WasmCacheError as error:
        return f"{type(error).__name__}: {error}"
    assert answers == ANSWERS, answers
    return "all answers"


async def main(kind: str, modules: str = "one") -> None:
    creators = Creators()
    linked = modules == "linked"
    for number in itertools.count(1):
        async with open_real_cache(CONFIG) as cache:
            creators.begin(kind, number)
            came = await attempt(lambda: scenario(cache, linked=linked))
            refused = creators.asked[kind] >= number
            check_invariants(cache)
            creators.refuse = None
            again = await attempt(lambda: scenario(cache, linked=linked))
            assert again == "all answers", (came, again)
            check_invariants(cache)
        assert not creators.live, f"{len(creators.live)} were never freed"
        if not refused:
            assert came == "all answers"
            break
        print(json.dumps([number, came]), flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
