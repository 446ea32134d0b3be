"""Common mistakes, each with the message that says what to write instead.

A message is compared as a whole: it is what a new user reads first.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import io
import logging
import pickle
import re
import sys
import types
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import structlog
import trio
import trio.lowlevel
from attrs import frozen
from engine.support import Quiet, quiet_cache
from wasmtime import wat2wasm

from trio_wasmcache import (
    BufferAbi,
    CacheConfig,
    DeadlockError,
    DuplicateFunctionError,
    ExportError,
    FuelExhaustedError,
    Function,
    FuncType,
    HostFunction,
    InstanceCache,
    InvalidModuleError,
    Invoke,
    Lease,
    LeaseMemory,
    LinkError,
    LoadError,
    MemoryLimitError,
    MiB,
    Prepare,
    SchedulingGroup,
    ScyllaAbi,
    SignatureError,
    StackOverflowError,
    TrapError,
    UnknownFunctionError,
    Wasi,
    aio,
    blocking,
    current_lease,
    open_cache,
)
from trio_wasmcache._core.tiers import FIRST, OPTIMIZING
from trio_wasmcache.testing import check_invariants, open_fake_cache

FIB = '(module (func (export "fib") (param i64) (result i64) (local.get 0)))'
ADD = """(module (func (export "add") (param i64 i64) (result i64)
    (i64.add (local.get 0) (local.get 1))))"""
NOW = """(module (import "env" "now" (func $now (result i64)))
    (func (export "now") (result i64) (call $now)))"""
TEXT = """(module (memory (export "memory") 1)
    (func (export "text") (param i32 i32) (result i64) (i64.const 0)))"""

U32 = '(module (func (export "fib") (param i32) (result i64) (i64.const 0)))'

Make = Callable[[InstanceCache], Awaitable[object]]


@frozen
class Mistake:
    """What somebody writes, the error that it gets, and all of its message."""

    make: Make
    kind: type[Exception]
    message: str


MISTAKES: dict[str, Mistake] = {}


def mistake(kind: type[Exception], message: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        MISTAKES[make.__name__] = Mistake(make, kind, message)
        return make

    return add


async def register(
    cache: InstanceCache, wasm: Any = FIB, name: str = "f", **given: Any
) -> Function:
    types = {"args": ("i64",), "returns": "i64", "export": "fib"}
    return await cache.register(name, wasm, **{**types, **given})


def now(_unused: int) -> int:
    return 7


# -- types


@mistake(
    TypeError,
    'f: args must be names of types, such as "i64", got 10: '
    "args are types, the values go to call()",
)
async def values_as_args(cache: InstanceCache) -> object:
    return await register(cache, args=(10,))


@mistake(
    TypeError,
    "f: args must be a sequence of types, such as (\"i64\",), got {'i64'}: "
    "args are types, the values go to call()",
)
async def a_set_of_types(cache: InstanceCache) -> object:
    return await register(cache, args={"i64"})


@mistake(
    TypeError,
    "params of a HostFunction must be a sequence of types, such as (\"i64\",), got {'i64'}",
)
async def a_set_of_types_of_a_host_function(_cache: InstanceCache) -> object:
    types: Any = {"i64"}
    return HostFunction(now, params=types)


@mistake(
    TypeError,
    "f: args must be a sequence of types, such as (\"i64\",), got {'n': 'i64'}: "
    "args are types, the values go to call()",
)
async def types_by_name(cache: InstanceCache) -> object:
    return await register(cache, args={"n": "i64"})


@mistake(TypeError, "Wasi: args must be a sequence of str, got {'prog'}")
async def a_set_of_arguments_of_a_program(_cache: InstanceCache) -> object:
    args: Any = {"prog"}
    return Wasi(args=args)


@mistake(
    TypeError,
    'fib: args must be names of types, such as "i64", got 10: '
    "args are types, the values go to call()",
)
async def values_to_acquire(cache: InstanceCache) -> object:
    async with cache.acquire("fib", (10,)) as lease:  # type: ignore[arg-type]
        return lease


@mistake(
    TypeError,
    'fib: args must be a sequence of types, such as ("i64",), got 10: '
    "args are types, the values go to call()",
)
async def a_value_to_acquire(cache: InstanceCache) -> object:
    async with cache.acquire("fib", 10) as lease:  # type: ignore[arg-type]
        return lease


@mistake(TypeError, """f: args must be a sequence of types, such as ("i64",), got 'i64'""")
async def one_type_as_args(cache: InstanceCache) -> object:
    return await register(cache, args="i64")


@mistake(
    TypeError, """f: args must be names of types, such as "i64", got <class 'int'>: write "i64\""""
)
async def a_class_as_a_type(cache: InstanceCache) -> object:
    return await register(cache, args=(int,))


@mistake(
    TypeError,
    'f(i64): returns must be a sequence of types, such as "i64" or ("i64", "f64"), '
    """got <class 'float'>: write "f64\"""",
)
async def a_class_as_the_result(cache: InstanceCache) -> object:
    return await register(cache, returns=float)


@mistake(
    SignatureError,
    "f(str): unknown type 'str': str and bytes take abi='buffer', CQL types abi='scylla'",
)
async def text_under_the_plain_abi(cache: InstanceCache) -> object:
    return await register(cache, args=("str",))


@mistake(
    SignatureError,
    "f(list<int>): unknown type 'list<int>': str and bytes take abi='buffer', "
    "CQL types abi='scylla'",
)
async def a_cql_type_under_the_plain_abi(cache: InstanceCache) -> object:
    return await register(cache, args=("list<int>",))


@mistake(SignatureError, "f(int64): unknown type 'int64': did you mean i64?")
async def a_name_of_other_places(cache: InstanceCache) -> object:
    return await register(cache, args=("int64",))


@mistake(SignatureError, "f(string): unknown type 'string': did you mean str?")
async def text_by_another_name(cache: InstanceCache) -> object:
    return await register(cache, args=("string",), abi="buffer")


@mistake(SignatureError, "f(uuid): unknown type 'uuid': CQL types take abi='scylla'")
async def a_cql_type_under_the_buffer_abi(cache: InstanceCache) -> object:
    return await register(cache, args=("uuid",), abi=BufferAbi())


@mistake(
    SignatureError, "f(i64): 'i64' is no CQL type: there is no type 'i64': did you mean bigint?"
)
async def a_wasm_type_under_the_scylla_abi(cache: InstanceCache) -> object:
    return await register(cache, abi="scylla")


@mistake(
    SignatureError,
    "f(void): unknown type 'void': a function without arguments has args=(), "
    "one without a result returns=None",
)
async def void(cache: InstanceCache) -> object:
    return await register(cache, args=("void",))


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        ("int8 s8 tinyint int8_t np.int8", "i8"),
        ("uint8 byte np.uint8", "u8"),
        ("int16 short", "i16"),
        ("int32 Int32 INT32 int32_t isize", "i32"),
        ("uint32 usize size_t ptr", "u32"),
        ("int64 np.int64 pa.int64() pyarrow.int64() numpy.int64 int64_t longlong", "i64"),
        ("int integer long", "i64 or i32"),
        ("uint64 np.uint64", "u64"),
        ("float32 single np.float32", "f32"),
        ("float64 double np.float64", "f64"),
        ("float", "f64 or f32"),
        ("boolean np.bool_ pa.bool_()", "bool"),
    ],
)
async def test_names_of_types_of_other_places_are_translated(names: str, meant: str) -> None:
    """Those of C, Rust, NumPy, Arrow and CQL, if they mean a number."""
    async with quiet_cache() as cache:
        for name in names.split():
            said = f"f({name.lower()}): unknown type '{name.lower()}': did you mean {meant}?"
            with pytest.raises(SignatureError) as caught:
                await register(cache, args=(name,))
            assert str(caught.value) == said
            with pytest.raises(SignatureError, match="did you mean"):
                HostFunction(now, params=(name,), results=())


@mistake(
    SignatureError,
    "f(i64) is declared as [i64] -> [], but the export 'fib' is [i64] -> [i64]: "
    'give returns="i64" (it was left out)',
)
async def returns_left_out(cache: InstanceCache) -> object:
    return await cache.register("f", FIB, args=("i64",), export="fib")


@mistake(
    SignatureError,
    "f(i64, u32) is declared as [i64 i32] -> [], but the export 'add' is [i64 i64] -> [i64]: "
    'give args=("i64", "i64"), returns="i64" (it was left out)',
)
async def wrong_types(cache: InstanceCache) -> object:
    return await cache.register("f", ADD, args=("i64", "u32"), export="add")


@mistake(
    SignatureError,
    "f(str) is declared as [i32 i32] -> [], but the export 'text' is [i32 i32] -> [i64]: "
    "give returns=, the type of its result (it was left out)",
)
async def returns_left_out_under_the_buffer_abi(cache: InstanceCache) -> object:
    return await cache.register("f", TEXT, args=("str",), abi="buffer", export="text")


@mistake(
    ExportError,
    "fob(i64): the module exports no 'fob'; the functions it exports are 'fib': give export='fib'",
)
async def a_misspelt_export(cache: InstanceCache) -> object:
    return await cache.register("fob", FIB, args=("i64",), returns="i64")


@mistake(
    TrapError,
    "text(str) called with ('x') after 9 units of fuel: wasm trap: unreachable; the library "
    "called 'free' to free the arguments, or the result: for a result that is no memory of the "
    'allocator, such as a static text, give BufferAbi(result_of="guest"); for halves of a number '
    'in the other order, result="packed_low"\n  free at 0x',
)
async def a_static_text_as_the_result(cache: InstanceCache) -> object:
    static = """(module (memory (export "memory") 1) (data (i32.const 8) "ok")
        (func (export "malloc") (param i32) (result i32) (i32.const 1024))
        (func (export "free") (param i32)
            (if (i32.eq (local.get 0) (i32.const 8)) (then (unreachable))))
        (func (export "text") (param i32 i32) (result i64) (i64.const 0x800000002)))"""
    text = await cache.register("text", static, args=("str",), returns="str", abi="buffer")
    return await text.call("x")


MALLOC = """(module (memory (export "memory") 1)
    (func (export "malloc") (param i32) (result i32) (i32.const 8))
    (func (export "free") (param i32))
    (func (export "text") (param i32 i32) (result i64) (i64.const 0)))"""


@mistake(
    ExportError,
    "f(str): the module exports no function 'mallocc'; the functions it exports are 'malloc', "
    "'free', 'text': give alloc='malloc'",
)
async def a_misspelt_allocator(cache: InstanceCache) -> object:
    abi = BufferAbi(alloc="mallocc", free="free")
    return await register(cache, MALLOC, args=("str",), returns="str", abi=abi, export="text")


@mistake(
    ExportError,
    "f(str): the module exports no function 'dealloc'; the functions it exports are 'malloc', "
    "'free', 'text': give one of them as free=",
)
async def another_name_of_the_freeing_export(cache: InstanceCache) -> object:
    abi = BufferAbi(alloc="malloc", free="dealloc")
    return await register(cache, MALLOC, args=("str",), returns="str", abi=abi, export="text")


@mistake(
    ExportError,
    "f(i64): call 1 of prepare: the module exports no 'init'; the functions it exports are 'fib': "
    "give Prepare('fib')",
)
async def a_misspelt_export_to_prepare(cache: InstanceCache) -> object:
    return await register(cache, prepare=(Prepare("init"),))


# -- modules


@mistake(
    InvalidModuleError,
    "f(i64): it ends early, as a file that was not copied whole: section 10 has 4 bytes, and 2 of "
    "them are there, at offset 0x",
)
async def a_file_that_was_not_copied_whole(cache: InstanceCache) -> object:
    return await register(cache, wat2wasm('(module (func (export "fib")))')[:-2])


@mistake(
    InvalidModuleError,
    "f(i64): not a WebAssembly module but text that begins with '#include <stdint.h>'",
)
async def a_source_file_as_a_module(cache: InstanceCache) -> object:
    return await register(cache, b"#include <stdint.h>\n#include <stdio.h>\n")


@mistake(
    InvalidModuleError,
    "f(i64): wasmtime can't compile it: failed to compile: wasm[0]::function[0]: WebAssembly "
    "translation error: Invalid input WebAssembly code at offset 36: type mismatch: expected i64, "
    "found i32",
)
async def a_module_that_is_not_valid(cache: InstanceCache) -> object:
    return await register(
        cache, '(module (func (export "fib") (param i64) (result i64) (i32.const 0)))'
    )


@mistake(TypeError, "register_component(): this is a core module: use register() for its functions")
async def a_core_module_as_a_component(cache: InstanceCache) -> object:
    return await cache.register_component(FIB)


@mistake(FileNotFoundError, "[Errno 2] No such file or directory: '/nowhere/fib.wasm'")
async def a_missing_file(cache: InstanceCache) -> object:
    return await register(cache, Path("/nowhere/fib.wasm"))


@mistake(
    TypeError,
    "f(i64): a str must be WebAssembly text, which begins with '(' or ';', "
    "got '/nowhere/fib.wasm'; to read a file, pass pathlib.Path(...)",
)
async def a_path_as_a_str(cache: InstanceCache) -> object:
    return await register(cache, "/nowhere/fib.wasm")


# -- host functions


async def register_now(cache: InstanceCache, **hosts: Any) -> Function:
    imports = {"env": hosts}
    return await cache.register("now", NOW, args=(), returns="i64", imports=imports)


@mistake(
    LinkError,
    "now() imports what it is not given: env.now [] -> [i64] is missing. Give host functions: "
    'imports={"env": {"now": HostFunction(function, params=(), results=("i64",))}}; '
    'or missing="trap", if they are never called.',
)
async def a_missing_host_function(cache: InstanceCache) -> object:
    return await register_now(cache)


@mistake(
    LinkError,
    "now() can't be linked: the module imports env.now as [] -> [i64], but its "
    'HostFunction says [i64] -> [i64] (params were left out, which means ("i64",)): '
    'give params=(), results=("i64",).',
)
async def a_host_function_of_the_default_type(cache: InstanceCache) -> object:
    return await register_now(cache, now=HostFunction(now, results=("i64",)))


@mistake(
    LinkError,
    "now() can't be linked: the module imports env.now as [] -> [i64], but its "
    'HostFunction says [] -> [i32]: give params=(), results=("i64",).',
)
async def a_host_function_of_another_type(cache: InstanceCache) -> object:
    return await register_now(cache, now=HostFunction(lambda: 7, params=(), results=("u32",)))


@mistake(
    TypeError,
    'host function now has no types: write HostFunction(fn, params=("i64",), results=("i64",)), '
    "with () where there is none",
)
async def a_bare_host_function(cache: InstanceCache) -> object:
    return await register_now(cache, now=HostFunction(now))


@mistake(
    SignatureError,
    "now(): the HostFunction for env.now has str or bytes among its types, which only plugins of "
    'Extism (abi="extism") can pass: take the address and the length as i32, and read the bytes by '
    "current_lease().memory",
)
async def text_for_a_host_function(cache: InstanceCache) -> object:
    return await register_now(cache, now=HostFunction(now, params=("str",), results=()))


@mistake(
    TypeError,
    "now(): imports['env']['now'] must be a HostFunction(function, params=..., results=...), "
    "got <built-in function abs>",
)
async def a_function_as_a_host_function(cache: InstanceCache) -> object:
    return await register_now(cache, now=abs)


@mistake(
    TypeError,
    'host function zero can\'t be called with the ("i64", "i64") that it gets by params: '
    "too many positional arguments",
)
async def a_host_function_of_too_few_parameters(_cache: InstanceCache) -> object:
    def zero(_one: int) -> int:
        return 0

    zero.__qualname__ = "zero"
    return HostFunction(zero, params=("i64", "i64"))


@mistake(
    TypeError,
    'host function zero can\'t be called with the ("i64",) that it gets by params, which were '
    "left out: missing a required argument: '_two'",
)
async def a_host_function_of_too_many_parameters(_cache: InstanceCache) -> object:
    def zero(_one: int, _two: int) -> int:
        return 0

    zero.__qualname__ = "zero"
    return HostFunction(zero, results=("i64",))


def test_host_functions_that_say_little_of_their_parameters_are_taken() -> None:
    """Of what is not written in Python the parameters may be unknown: the call will tell."""

    class Price:
        @functools.lru_cache  # noqa: B019
        def each(self, number: int) -> int:
            return number

    for fn in (Price().each, types.MethodType(min, 3), types.MethodType(int, "7"), max):
        HostFunction(fn, params=("i64",), results=("i64",))


# -- leases and groups


@mistake(
    UnknownFunctionError,
    "there are 2 functions add: add(i64, i64), add(u32); give the types of the arguments of one, "
    'such as args=("i64", "i64")',
)
async def acquire_an_overloaded_function_by_its_name(cache: InstanceCache) -> object:
    await register(cache, name="add", args=("u32",), wasm=U32)
    return await cache.acquire("add").__aenter__()


@mistake(UnknownFunctionError, "no function fob is registered; did you mean fib(i64)?")
async def a_misspelt_name(cache: InstanceCache) -> object:
    return await cache.acquire("fob").__aenter__()


SPELT_OUT = (
    "no function is named fib(i64): give its name and the types of its arguments apart, as "
    '"fib", ("i64",)'
)


@mistake(UnknownFunctionError, SPELT_OUT)
async def a_name_with_its_types(cache: InstanceCache) -> object:
    return await cache.acquire("fib(i64)").__aenter__()


@mistake(UnknownFunctionError, SPELT_OUT.replace("fib(i64)", "fib( I64 )"))
async def a_name_with_its_types_spelt_otherwise(cache: InstanceCache) -> object:
    return await cache.acquire("fib( I64 )", ("i64",)).__aenter__()


@mistake(UnknownFunctionError, SPELT_OUT)
async def a_name_with_its_types_to_warm(cache: InstanceCache) -> object:
    return await cache.warm("fib(i64)")


@mistake(UnknownFunctionError, SPELT_OUT)
async def a_name_with_its_types_to_remove(cache: InstanceCache) -> object:
    return cache.remove("fib(i64)")


@mistake(UnknownFunctionError, SPELT_OUT)
async def a_name_with_its_types_to_profile(cache: InstanceCache) -> object:
    return await cache.profile(function="fib(i64)")


@mistake(
    UnknownFunctionError,
    "no function is named add(f64): give its name and the types of its arguments apart, as "
    '"add", ("i64", "i64") or "add", ("u32",)',
)
async def a_name_with_types_of_no_function(cache: InstanceCache) -> object:
    await register(cache, name="add", args=("u32",), wasm=U32)
    return await cache.acquire("add(f64)").__aenter__()


FUNCTION = (
    'a function name must be a str, got the function fib(i64): give its name and types, "fib", '
    '("i64",), or use its own acquire() and call()'
)


@mistake(TypeError, FUNCTION)
async def acquire_a_function(cache: InstanceCache) -> object:
    fib: Any = cache.functions()[0]
    return await cache.acquire(fib).__aenter__()


@mistake(TypeError, FUNCTION)
async def warm_a_function(cache: InstanceCache) -> object:
    fib: Any = cache.functions()[0]
    return await cache.warm(fib)


async def use_with(manager: Any) -> None:
    with manager:
        pass


@mistake(TypeError, "use async with cache.acquire('fib', ...) as lease, not with")
async def with_acquire(cache: InstanceCache) -> object:
    return await use_with(cache.acquire("fib"))


@mistake(TypeError, "use async with cache.acquire('fib', ...) as lease, not with")
async def with_function_acquire(cache: InstanceCache) -> object:
    return await use_with(cache.functions()[0].acquire())


@mistake(TypeError, "use async with cache.acquire('fib', ...) as lease, not await")
async def await_acquire(cache: InstanceCache) -> object:
    lease: Any = cache.acquire("fib")
    return await lease


@mistake(TypeError, "use async with open_fake_cache(...) as ..., not await")
async def await_a_fake_cache(_cache: InstanceCache) -> object:
    fake: Any = open_fake_cache()
    return await fake


@mistake(TypeError, "use async with cache.scheduling_group('oltp', ...) as group, not await")
async def await_a_group_of_asyncio(_cache: InstanceCache) -> object:
    group: Any = aio.open_cache().scheduling_group("oltp", capacity=1)
    return await group


@mistake(TypeError, "use async with cache.scheduling_group('oltp', ...) as group, not with")
async def with_a_group_of_asyncio(_cache: InstanceCache) -> object:
    return await use_with(aio.open_cache().scheduling_group("oltp", capacity=1))


@mistake(TypeError, "use async with aio.open_cache(...) as cache, not with")
async def with_a_cache_of_asyncio(_cache: InstanceCache) -> object:
    return await use_with(aio.open_cache())


@mistake(TypeError, "CacheConfig() knows no limit 'max_sizes': did you mean max_size?")
async def a_misspelt_limit_of_a_configuration(_cache: InstanceCache) -> object:
    more: Any = {"max_sizes": 1}
    return CacheConfig(**more)


@mistake(TypeError, "CacheConfig() knows no limit 'colour': see help(CacheConfig)")
async def an_unknown_limit(_cache: InstanceCache) -> object:
    more: Any = {"colour": 1}
    return attrs.evolve(CacheConfig(), **more)


@mistake(
    TypeError,
    "open_cache() takes no 'max_size': limits are in its configuration, "
    "open_cache(CacheConfig(max_size=...))",
)
async def a_limit_to_open_cache(_cache: InstanceCache) -> object:
    more: Any = {"max_size": 1}
    return open_cache(**more)


@mistake(
    TypeError,
    "open_fake_cache() takes no 'totl_fuel': limits are in its configuration, "
    "open_fake_cache(CacheConfig(total_fuel=...))",
)
async def a_misspelt_limit_to_open_fake_cache(_cache: InstanceCache) -> object:
    more: Any = {"totl_fuel": 1}
    return open_fake_cache(**more)


@mistake(TypeError, "open_cache() got an unexpected keyword argument 'colour'")
async def what_is_no_limit_to_open_cache(_cache: InstanceCache) -> object:
    more: Any = {"colour": 1}
    return open_cache(**more)


LIMIT_OUTSIDE = (
    "open_cache() takes no 'total_fuell': limits are in its configuration, "
    "open_cache(CacheConfig(total_fuel=...))"
)


@mistake(TypeError, LIMIT_OUTSIDE)
async def a_limit_to_open_cache_for_threads(_cache: InstanceCache) -> object:
    more: Any = {"total_fuell": 1}
    return blocking.open_cache(**more)


@mistake(TypeError, LIMIT_OUTSIDE)
async def a_limit_to_open_cache_for_asyncio(_cache: InstanceCache) -> object:
    more: Any = {"total_fuell": 1}
    return aio.open_cache(**more)


@mistake(TypeError, "use async with open_cache(...), not with")
async def with_open_cache(_cache: InstanceCache) -> object:
    return await use_with(open_cache())


@mistake(
    AttributeError,
    "open_cache() has no attribute 'register' before it is entered: "
    "use async with open_cache(...) as ...",
)
async def a_cache_that_is_not_entered(_cache: InstanceCache) -> object:
    cache: Any = open_cache()
    return await cache.register("f", FIB, args=("i64",))


@mistake(TypeError, "use async with scheduling_group(...), not with")
async def with_a_group(cache: InstanceCache) -> object:
    return await use_with(cache.scheduling_group("oltp", capacity=1))


@mistake(
    AttributeError,
    "scheduling_group() has no attribute 'start_soon' before it is entered: "
    "use async with scheduling_group(...) as ...",
)
async def a_group_that_is_not_entered(cache: InstanceCache) -> object:
    group: Any = cache.scheduling_group("oltp", capacity=1)
    return group.start_soon(trio.sleep, 0)


@mistake(RuntimeError, "enter the lease first: async with cache.acquire('fib', ...) as lease")
async def a_lease_that_is_not_entered(cache: InstanceCache) -> object:
    return await cache.acquire("fib").call(7)


@mistake(trio.ClosedResourceError, "this lease of 'fib' has ended; acquire another")
async def a_lease_after_its_block(cache: InstanceCache) -> object:
    async with cache.acquire("fib") as lease:
        pass
    return await lease.call(7)


@mistake(
    trio.BusyResourceError,
    "another call of 'now' is under way in this lease; await it first, or acquire a lease in each "
    "task",
)
async def two_calls_in_one_lease(cache: InstanceCache) -> object:
    entered = trio.Event()

    async def wait() -> int:
        entered.set()
        await trio.sleep_forever()
        return 7

    await register_now(cache, now=HostFunction(wait, params=()))
    async with cache.acquire("now") as lease, trio.open_nursery() as nursery:
        nursery.start_soon(lease.call)
        await entered.wait()
        try:
            return await lease.call()
        except trio.BusyResourceError as error:
            busy = error
            nursery.cancel_scope.cancel()
    raise busy


@mistake(trio.ClosedResourceError, "'fib' can't be used: the cache is closed")
async def a_function_of_a_closed_cache(_cache: InstanceCache) -> object:
    async with quiet_cache() as other:
        fib = await other.register("fib", FIB, args=("i64",), returns="i64")
    return await fib.call(7)


@mistake(trio.ClosedResourceError, "'f' can't be used: the cache is closed")
async def register_in_a_closed_cache(_cache: InstanceCache) -> object:
    async with quiet_cache() as other:
        pass
    return await register(other)


@mistake(trio.ClosedResourceError, "'fib' can't be used: the scheduling group 'oltp' is closed")
async def a_function_of_a_closed_group(cache: InstanceCache) -> object:
    async with cache.scheduling_group("oltp", capacity=1) as group:
        pass
    return await group.acquire("fib").__aenter__()


@mistake(
    DeadlockError,
    "this wait would never end: TASK waits for an instance of fib(i64) in group 'main', "
    "held by itself; release one before acquiring the other, or raise concurrency or the limits",
)
async def acquiring_twice(cache: InstanceCache) -> object:
    async with cache.acquire("fib"):
        return await cache.acquire("fib").__aenter__()


COPIES = [pickle.dumps, copy.copy, copy.deepcopy]


@pytest.mark.parametrize("make", COPIES, ids=["pickle", "copy", "deepcopy"])
async def test_what_belongs_to_a_cache_is_not_copied(make: Callable[[object], object]) -> None:
    """Each says what to do in its place; values and errors that hold one are copied as before."""
    async with quiet_cache() as cache, cache.scheduling_group("oltp", capacity=1) as group:
        fib = await cache.register("fib", FIB, args=("i64",), returns="i64")
        async with fib.acquire() as lease:
            for thing, remedy in (
                (fib, "keep its name and args, and use cache.acquire(name, args) of any cache"),
                (lease, "acquire another"),
                (lease.memory, "copy the bytes that read() returns"),
                (group, "open another with cache.scheduling_group(name, capacity=...)"),
                (cache, "open one in each process, and register its functions there"),
            ):
                with pytest.raises(TypeError) as caught:
                    make(thing)
                assert str(caught.value) == (
                    f"{type(thing).__name__} can't be pickled or copied, as it belongs to an "
                    f"open cache: {remedy}"
                )
            assert await lease.call(7) == 7
        assert attrs.evolve(fib, generation=9).generation == 9
        check_invariants(cache)


# -- guests


LOOP = """(module (func (export "loop") (loop $again (br $again)))
    (func $a (export "a") (call $b)) (func $b (call $a)))"""


@mistake(
    FuelExhaustedError,
    "loop() called with () after 1000000000 units of fuel: all fuel is burnt; total_fuel is "
    "1000000000: raise it, unless the guest is in an endless loop\n  loop at 0x",
)
async def an_endless_loop(cache: InstanceCache) -> object:
    loop = await cache.register("loop", LOOP, args=())
    return await loop.call()


async def test_limits_of_a_guest_are_named() -> None:
    """The stack's, in a call and in a start, and the memory's, each with what to change."""
    optimizing = FIRST["optimizing"] is OPTIMIZING
    more = "and it can use 2 times as much with compiler='optimizing'"
    part = "of which it can use half" if optimizing else more
    limit = f"stack_size is 524288, {part}: raise it, unless its recursion"
    start = LOOP.replace("(func $a (export", "(start $a) (func $a (export")
    assert start != LOOP
    async with quiet_cache() as cache:
        function = await cache.register("a", LOOP, args=())
        with pytest.raises(StackOverflowError) as caught:
            await function.call()
        assert f": the guest's stack is exhausted; {limit}" in str(caught.value)
        function = await cache.register("a", start, args=(), replace=True)
        with pytest.raises(LoadError) as refused:
            await function.call()
        assert f"start function failed: the guest's stack is exhausted; {limit}" in str(
            refused.value
        )
        text = await cache.register("text", TEXT, args=("str",), returns="u64", abi="buffer")
        with pytest.raises(MemoryLimitError) as full:
            await text.call("a" * 33 * MiB)
        assert (
            ": its memory of 1 pages of 64 KiB can't have 528 more: raise memory_limit = 33554432, "
            "unless the module itself limits its memory to less; or pass less at once"
        ) in str(full.value)


async def test_a_recursion_is_shown_once() -> None:
    """However deep it went: the frames that repeat are counted, in the message and in the list."""
    async with quiet_cache() as cache:
        function = await cache.register("a", LOOP, args=())
        with pytest.raises(StackOverflowError) as caught:
            await function.call()
    trace = [re.sub(r"0x\w+", "0x", frame) for frame in caught.value.backtrace]
    one, other = ("a", "b") if trace[0] == "a" else ("b", "a")  # in which there was no stack left
    assert trace == [
        one,
        f"{other} at 0x",
        f"{one} at 0x",
        "... and these 2 frames 8 more times",
        f"{other} at 0x",
    ]
    assert str(caught.value).count("\n") == len(trace)


@mistake(
    RuntimeError,
    "host function stop raised StopIteration, which no coroutine can raise further: return a "
    "value, or raise another exception",
)
async def a_host_function_that_raises_stop_iteration(cache: InstanceCache) -> object:
    def stop() -> int:
        return next(iter(()))

    stop.__qualname__ = "stop"
    function = await register_now(cache, now=HostFunction(stop, params=()))
    return await function.call()


# -- columns


async def fetch() -> int:
    return 7


async def map_fib(cache: InstanceCache, columns: object) -> object:
    async with cache.acquire("fib") as lease:
        return await lease.map(columns)


KINDS = (
    "argument 1 of fib: a column is a list, a tuple, a range, a buffer such as NumPy's, Arrow "
    "data, or a single number or text, got "
)
OUTER = (
    "map takes a list with a column for each argument, such as map([column]), or a table in "
    "Arrow's format, got "
)


BUFFER = "a buffer of format 'q' (8 bytes an item), got one of format "
ARROW = "an Arrow array of int64, got one of "


@pytest.mark.parametrize(
    ("column", "got", "cast"),
    [
        (np.array([1, 2], "int32"), BUFFER + "'i' (4 bytes an item)", 'column.astype("int64")'),
        (np.array([1, 2], ">i8"), BUFFER + "'>q' (8 bytes an item)", 'column.astype("int64")'),
        (array("i", [1, 2]), BUFFER + "'i' (4 bytes an item)", 'array("q", column)'),
        (b"abc", BUFFER + "'B' (1 bytes an item)", "list(column)"),
        (pa.array([1, 2], pa.int32()), ARROW + "int32", "column.cast(pyarrow.int64())"),
        (pl.Series([1, 2], dtype=pl.Int32), ARROW + "int32", "column.cast(polars.Int64)"),
    ],
    ids=["numpy", "byte order", "array", "bytes", "pyarrow", "polars"],
)
async def test_a_column_of_another_type_names_the_cast(column: Any, got: str, cast: str) -> None:
    """In the words of the library that it comes from; with that, it is a column."""
    async with quiet_cache() as cache:
        fib = await cache.register("fib", FIB, args=("i64",), returns="i64")
        async with fib.acquire() as lease:
            with pytest.raises(TypeError) as caught:
                await lease.map([column])
            assert str(caught.value) == f"argument 1 of fib(i64): i64 takes {got}: give {cast}"
            names = {"column": column, "array": array, "pyarrow": pa, "polars": pl}
            result = await lease.map([eval(cast, names)])
            assert result.tolist() == getattr(column, "tolist", lambda: list(column))()


@pytest.mark.parametrize(
    ("kind", "cell", "cast"),
    [
        ("u8", "uint8", "polars.UInt8"),
        ("f32", "float32", "polars.Float32"),
        ("bool", "bool", "polars.Boolean"),
        ("i16", "int16", "polars.Int16"),
    ],
)
async def test_a_cast_names_the_type_of_each_library(kind: str, cell: str, cast: str) -> None:
    """For each type of the plain ABI."""
    wasm = {"f32": "f32"}.get(kind, "i32")
    same = f'(module (func (export "same") (param {wasm}) (result {wasm}) (local.get 0)))'
    async with quiet_cache() as cache:
        function = await cache.register("same", same, args=(kind,), returns=kind)
        async with function.acquire() as lease:
            for column, remedy in (
                (np.array([1], "int64"), f'column.astype("{cell}")'),
                (pl.Series([1]), f"column.cast({cast})"),
            ):
                with pytest.raises(TypeError) as caught:
                    await lease.map([column])
                assert str(caught.value).endswith(f": give {remedy}")
                values = await lease.map([eval(remedy, {"column": column, "polars": pl})])
                assert getattr(values, "tolist", list)() == [1]


@mistake(TypeError, KINDS + "generator: give list(...) of it")
async def a_generator_as_a_column(cache: InstanceCache) -> object:
    return await map_fib(cache, [(number for number in range(3))])


@mistake(TypeError, KINDS + "set: give list(...) of it")
async def a_set_as_a_column(cache: InstanceCache) -> object:
    return await map_fib(cache, [{1, 2}])


@mistake(TypeError, KINDS + "coroutine: await it first")
async def a_coroutine_as_a_column(cache: InstanceCache) -> object:
    coroutine = fetch()
    try:
        return await map_fib(cache, [coroutine])
    finally:
        coroutine.close()


@mistake(TypeError, KINDS + "LazyFrame: call its collect() first")
async def a_lazy_frame_as_a_column(cache: InstanceCache) -> object:
    return await map_fib(cache, [pl.LazyFrame({"a": [1]})])


@mistake(
    TypeError,
    KINDS + "Expr: an expression has no values: evaluate it first, such as by df.select(...)",
)
async def an_expression_as_a_column(cache: InstanceCache) -> object:
    return await map_fib(cache, [pl.col("a")])


@mistake(TypeError, OUTER + "LazyFrame: call its collect() first")
async def a_lazy_frame(cache: InstanceCache) -> object:
    return await map_fib(cache, pl.LazyFrame({"a": [1]}))


@mistake(TypeError, OUTER + "generator: give list(...) of it")
async def a_generator(cache: InstanceCache) -> object:
    return await map_fib(cache, (column for column in [[1]]))


@mistake(TypeError, OUTER + "range: for one column, write map([column])")
async def one_column(cache: InstanceCache) -> object:
    return await map_fib(cache, range(3))


@mistake(
    TypeError,
    "map takes a list with a column for each argument, or a table in Arrow's format, got Series: "
    "for one column, write map([column])",
)
async def one_arrow_column(cache: InstanceCache) -> object:
    return await map_fib(cache, pl.Series([1, 2]))


@mistake(TypeError, OUTER + "dict: give a list of its values, in the order of the arguments")
async def columns_by_name(cache: InstanceCache) -> object:
    return await map_fib(cache, {"a": [1, 2]})


@mistake(
    TypeError,
    "fib(i64) takes 1 argument, and map a column for each, got 3 of them; for one column, write "
    "map([column])",
)
async def values_as_columns(cache: InstanceCache) -> object:
    return await map_fib(cache, [1, 2, 3])


@mistake(
    TypeError,
    "add(i64, i64) takes 2 arguments, and map a column for each, got 3 of them; if they are "
    "rows, write map(list(zip(*rows)))",
)
async def rows_as_columns(cache: InstanceCache) -> object:
    async with cache.acquire("add") as lease:
        return await lease.map([(1, 2), (30, 40), (5, 6)])


ONE_BY_ONE = (
    "map takes all columns in one list, and options by name, such as map({}[a, b], rows=2), got 2 "
    "arguments in place of the list"
)


@mistake(TypeError, ONE_BY_ONE.format(""))
async def columns_one_by_one(cache: InstanceCache) -> object:
    async with cache.acquire("add") as lease:
        return await lease.map([1], [2])  # type: ignore[arg-type]


def test_mistakes_outside_of_trio() -> None:
    """Caches for threads and for asyncio say the same of columns, and how functions are called."""
    called = (
        "fib(i64) is called by function.call(...), and for each row of some columns by "
        "function.map([...])"
    )
    with blocking.open_cache(logger=Quiet()) as cache:
        fib: Any = cache.register("fib", FIB, args=("i64",), returns="i64")
        for act, function in ((fib.map, ""), (functools.partial(cache.map, fib), "function, ")):
            with pytest.raises(TypeError) as caught:
                act([1], [2])
            assert str(caught.value) == ONE_BY_ONE.format(function)
        with pytest.raises(TypeError) as caught:
            fib(7)
        assert str(caught.value) == called
        assert fib.map([[7]]).tolist() == [7]

    async def with_asyncio() -> None:
        async with aio.open_cache(logger=Quiet()) as cache:
            fib: Any = await cache.register("fib", FIB, args=("i64",), returns="i64")
            for act, function in ((fib.map, ""), (functools.partial(cache.map, fib), "function, ")):
                with pytest.raises(TypeError) as caught:
                    await act([1], [2])
                assert str(caught.value) == ONE_BY_ONE.format(function)
            with pytest.raises(TypeError) as caught:
                await fib(7)
            assert str(caught.value) == called
            assert (await fib.map([[7]])).tolist() == [7]

    asyncio.run(with_asyncio())


@mistake(
    ValueError,
    "no column of fib(i64) says how many rows there are: give a list or an array as a column, or "
    "map(columns, rows=...)",
)
async def a_single_value(cache: InstanceCache) -> object:
    return await map_fib(cache, [7])


@mistake(
    OverflowError,
    f"argument 1 of fib: a column has at most {sys.maxsize} rows, "
    "got range(0, 1000000000000000000000000000000)",
)
async def a_range_without_end(cache: InstanceCache) -> object:
    return await map_fib(cache, [range(10**30)])


@mistake(TypeError, "fib(i64) takes 1 argument (i64), got 2")
async def too_many_values(cache: InstanceCache) -> object:
    async with cache.acquire("fib") as lease:
        return await lease.call(1, 2)


@mistake(
    TypeError,
    "argument 1 of fib(i64): i64 takes an int, got <coroutine object fetch at 0x>: await it first",
)
async def a_coroutine_as_a_value(cache: InstanceCache) -> object:
    coroutine = fetch()
    try:
        async with cache.acquire("fib") as lease:
            return await lease.call(coroutine)
    finally:
        coroutine.close()


async def test_messages_about_a_thousand_types_are_short() -> None:
    """Lists of types are cut after ten, wherever they are shown."""
    many = ("i64",) * 1000
    big = f'(module (func (export "big") (param {"i64 " * 1000}) (result i64) (local.get 0)))'

    async def message(kind: type[Exception], given: Awaitable[object]) -> None:
        with pytest.raises(kind, match=r", \.\.\. and 990 more") as caught:
            await given
        assert len(str(caught.value)) < 300

    async with quiet_cache() as cache:
        await message(SignatureError, register(cache, args=many))
        await message(SignatureError, register(cache, wasm=big, export="big"))
        await message(UnknownFunctionError, cache.acquire("fib", many).__aenter__())
        function = await cache.register("big", big, args=many, returns="i64")
        assert str(function.key).endswith("i64, ... and 990 more)")
        await message(DuplicateFunctionError, register(cache, wasm=big, name="big", args=many))
        async with function.acquire() as lease:
            await message(TypeError, lease.call(1))
            await message(TypeError, lease.call(*("x" for _ in many)))
            await message(TypeError, lease.map([1]))


async def test_messages_about_hostile_names_and_values_are_short() -> None:
    """What is a megabyte long, or moves the cursor, is cut and escaped wherever it is shown."""
    evil: Any = "\x1b[31m" * 200_000
    many: Any = [evil] * 10
    odd: Any = "\x1b[31m"

    async def message(given: Awaitable[object]) -> None:
        with pytest.raises((TypeError, ValueError, SignatureError, UnknownFunctionError)) as caught:
            await given
        assert len(str(caught.value)) < 1500
        assert str(caught.value).isprintable()

    async with quiet_cache() as cache:
        await register(cache, name="fib")
        for bad in (evil, many, odd):
            await message(cache.acquire(bad).__aenter__())
            await message(cache.acquire(bad, ("i64",)).__aenter__())
            await message(cache.acquire("fib", (bad,)).__aenter__())
            await message(cache.acquire("fib", bad).__aenter__())
            await message(register(cache, name=bad))
            await message(register(cache, wasm=bad))
            await message(cache.scheduling_group(bad, capacity=bad).__aenter__())
            for (
                parameter
            ) in "args returns abi imports isolation concurrency called_on_null".split():
                await message(register(cache, **{parameter: bad}))
            await message(register(cache, args=(bad,)))
            with pytest.raises((TypeError, SignatureError)) as caught:
                HostFunction(bad, params=bad, results=(bad,))
            assert len(str(caught.value)) < 1500
            lease = cache.acquire(bad)
            assert len(repr(lease)) < 1000
            await message(use_with(lease))


# -- extras


@pytest.mark.parametrize(
    ("module", "library", "message"),
    [
        (
            "trio_wasmcache.prometheus",
            "prometheus_client",
            "trio_wasmcache.prometheus takes prometheus_client: pip install '.[prometheus]'",
        ),
        (
            "trio_wasmcache.otel",
            "opentelemetry",
            "trio_wasmcache.otel takes opentelemetry-api: pip install '.[otel]'",
        ),
    ],
)
def test_a_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, library: str, message: str
) -> None:
    """With the line that installs it; Arrow, CQL and the log tool have tests of their own."""
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(module)
    assert str(caught.value) == message


# -- the cache


@mistake(TypeError, "resize() knows no limit 'max_sise': did you mean max_size?")
async def a_misspelt_limit(cache: InstanceCache) -> object:
    return cache.resize(max_sise=1)  # type: ignore[call-arg]


@mistake(
    TypeError,
    "bad cache configuration: max_size must be an int, got 1572864.0: round it by int(...)",
)
async def a_part_of_a_byte(_cache: InstanceCache) -> object:
    return CacheConfig(max_size=1.5 * MiB)  # type: ignore[arg-type]


@mistake(TypeError, "f(i64): replace must be True or False, got 'no'")
async def a_word_as_a_flag(cache: InstanceCache) -> object:
    return await register(cache, replace="no")


async def opened(logger: object) -> None:
    async with open_cache(logger=logger):
        raise AssertionError("its whole log would be lost")


@mistake(
    TypeError,
    "logger must be a structlog logger, got 'log': leave it out for structlog's own "
    "configuration, or pass structlog.wrap_logger(...)",
)
async def a_name_as_the_logger(_cache: InstanceCache) -> object:
    return await opened("log")


@mistake(
    TypeError,
    "logger must be a structlog logger, which takes fields, got <Logger app (WARNING)>: "
    "pass structlog.wrap_logger(logger)",
)
async def a_logger_of_logging(_cache: InstanceCache) -> object:
    return await opened(logging.getLogger("app"))


@mistake(
    TypeError,
    "logger must be a structlog logger, which takes fields, got "
    "<PrintLogger(file=<_io.StringIO object at 0x>)>: pass structlog.wrap_logger(logger)",
)
async def a_logger_below_structlogs(_cache: InstanceCache) -> object:
    return await opened(structlog.PrintLogger(io.StringIO()))


@mistake(TypeError, "use async with open_cache(...) as ..., not await")
async def await_in_place_of_async_with(_cache: InstanceCache) -> object:
    return await open_cache()  # type: ignore[misc]


@mistake(TypeError, "fib(i64) is called by await function.call(...)")
async def a_function_called_as_pythons_are(cache: InstanceCache) -> object:
    return await cache.functions()[0](10)  # type: ignore[operator]


@mistake(TypeError, "'fib' is called by await lease.call(...)")
async def a_lease_called_as_a_function(cache: InstanceCache) -> object:
    async with cache.acquire("fib") as lease:
        return await lease(10)  # type: ignore[operator]


@mistake(
    ExportError,
    "add(i64): the module exports no 'add'; the functions it exports are 'Add', '_sub': "
    "give export='Add'",
)
async def an_export_in_other_letters(cache: InstanceCache) -> object:
    exports = '(func (export "Add") (param i64)) (func (export "_sub"))'
    return await cache.register("add", f"(module {exports})", args=("i64",))


@mistake(
    LinkError,
    "now() imports what it is not given: env.now [] -> [i64] is missing (env.nov is given, which "
    'it does not import). Give host functions: imports={"env": {"now": HostFunction(function, '
    'params=(), results=("i64",))}}; or missing="trap", if they are never called.',
)
async def a_misspelt_import(cache: InstanceCache) -> object:
    host = HostFunction(lambda: 1, (), ("i64",))
    return await cache.register("now", NOW, args=(), returns="i64", imports={"env": {"nov": host}})


@mistake(
    trio.BusyResourceError,
    "the call of 'now' that called this host function is under way in this lease: the guest can't "
    "be called again before it ends, but a host function with reentrant=True can call its exports "
    "by invoke()",
)
async def a_host_function_that_calls_its_guest(cache: InstanceCache) -> object:
    async def again() -> int:
        return int(await current_lease().call())

    function = await register_now(cache, now=HostFunction(again, params=()))
    return await function.call()


@mistake(
    RuntimeError,
    "acquire() or Function.call() must be called in the Trio run that opened the cache, but this "
    "is another thread; use trio.from_thread.run(..., trio_token=token), where token is "
    "trio.lowlevel.current_trio_token() of the run that opened it; under asyncio, use "
    "trio_wasmcache.aio, in threads trio_wasmcache.blocking",
)
async def a_call_in_another_event_loop(cache: InstanceCache) -> object:
    function = cache.functions()[0]
    return await trio.to_thread.run_sync(lambda: asyncio.run(function.call(7)))


@mistake(
    RuntimeError,
    "size must be used in the Trio run that opened the cache, but this is another thread; use "
    "trio.from_thread.run_sync(..., trio_token=token), where token is "
    "trio.lowlevel.current_trio_token() of the run that opened it",
)
async def a_property_in_another_thread(cache: InstanceCache) -> object:
    async with cache.acquire("fib") as lease:
        return await trio.to_thread.run_sync(lambda: lease.size)


@mistake(
    TypeError,
    "argument 1 of fib: its items are no numbers: cannot include dtype 'M' in a buffer: give "
    'column.astype("int64")',
)
async def a_column_of_dates(cache: InstanceCache) -> object:
    return await map_fib(cache, [np.array(["2026-01-01"], "M8[s]")])


@mistake(TypeError, "an InstanceCache is made by open_cache: async with open_cache(...) as cache")
async def a_cache_made_by_its_class(_cache: InstanceCache) -> object:
    return InstanceCache(CacheConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [(), ("values", 1, 2)])
def test_what_comes_from_a_cache_is_not_made_by_hand(values: tuple[object, ...]) -> None:
    """The message says where each comes from."""
    ways: dict[Any, str] = {
        InstanceCache: "open_cache: ",
        Lease: "acquire: ",
        LeaseMemory: "lease.memory",
        SchedulingGroup: "scheduling_group: ",
        aio.AsyncioCache: "aio.open_cache: ",
        aio.AsyncioFunction: "register",
        aio.AsyncioGroup: "scheduling_group: ",
        blocking.BlockingCache: "blocking.open_cache: ",
        blocking.BlockingFunction: "register",
        blocking.BlockingGroup: "scheduling_group: ",
    }
    for kind, way in ways.items():
        with pytest.raises(TypeError, match=rf"^an? {kind.__name__} is .*{re.escape(way)}"):
            kind(*values)


@mistake(TypeError, "data must be bytes or a buffer, got 'abc': give its encode()")
async def text_into_memory(cache: InstanceCache) -> object:
    async with cache.acquire("fib") as lease:
        return lease.memory.write(0, "abc")  # type: ignore[arg-type]


@mistake(
    SignatureError,
    "f(list): 'list' is no CQL type: there is no type 'list': write list<...>, with the types of "
    "what is in it",
)
async def a_cql_list_of_nothing(cache: InstanceCache) -> object:
    return await register(cache, args=("list",), abi="scylla")


# -- ABIs


@mistake(
    ValueError,
    "BufferAbi: result must be one of 'packed', 'packed_low', 'pair', 'area', 'out', 'nul' or "
    "None, got 'pairs'",
)
async def an_unknown_form_of_a_buffer(_cache: InstanceCache) -> object:
    return BufferAbi(result="pairs")  # type: ignore[arg-type]


@mistake(ValueError, "BufferAbi: argument must be one of 'pair', 'nul', got None")
async def no_form_of_a_buffer(_cache: InstanceCache) -> object:
    return BufferAbi(argument=None)  # type: ignore[arg-type]


@mistake(TypeError, "BufferAbi: alloc must be the name of an export or None, got 3")
async def an_allocator_without_a_name(_cache: InstanceCache) -> object:
    return BufferAbi(alloc=3)  # type: ignore[arg-type]


@mistake(
    TypeError,
    'ScyllaAbi: user_types must be a mapping such as {"address": {"street": "text", "zip": '
    "\"int\"}}, got {'address': 'text'}",
)
async def a_user_type_without_fields(_cache: InstanceCache) -> object:
    return ScyllaAbi(user_types={"address": "text"})  # type: ignore[dict-item]


@mistake(
    TypeError,
    'ScyllaAbi: user_types must be a mapping such as {"address": {"street": "text", "zip": '
    "\"int\"}}, got ['address']",
)
async def names_of_user_types(_cache: InstanceCache) -> object:
    return ScyllaAbi(user_types=["address"])  # type: ignore[arg-type]


@mistake(TypeError, "f(i64): abi must be an object, not a class: write BufferAbi(...)")
async def a_class_as_an_abi(cache: InstanceCache) -> object:
    return await register(cache, abi=BufferAbi)


class Own:
    """An ABI of one's own, which returns what it is told to."""

    arity, lower, lift = 1, None, None
    signature = FuncType(("i64",), ("i64",))

    def __init__(self, binding: object, asked: object = None) -> None:
        self.binding = binding
        self.asked = asked

    def __repr__(self) -> str:
        return "Own()"

    def bind(self, *_: object) -> Any:
        return self if self.binding is ... else self.binding


class Explained(Own):
    """One that is a complete binding."""

    def explain(self, _values: object) -> Exception:
        return TypeError("no")

    def steps(self, _guest: object, _values: object) -> Any:
        def generate() -> Any:
            return (yield self.asked)

        return 3 if self.asked is None else generate()


@mistake(
    TypeError,
    "f(i64): bind() of its ABI must return a Binding, but None has no signature, arity, lower, "
    "lift, steps, explain",
)
async def an_abi_that_binds_nothing(cache: InstanceCache) -> object:
    return await register(cache, abi=Own(None))


@mistake(
    TypeError,
    "f(i64): bind() of its ABI must return a Binding, but Own() has no steps, explain",
)
async def a_binding_that_is_incomplete(cache: InstanceCache) -> object:
    return await register(cache, abi=Own(...))


@mistake(TypeError, "f(i64): steps of a binding must be a function or None, got 5")
async def steps_that_are_no_function(cache: InstanceCache) -> object:
    abi: Any = Explained(...)
    abi.steps = 5
    return await register(cache, abi=abi)


@mistake(
    TypeError,
    "f: steps of its ABI must be a generator function, with yield in it; it returned 3",
)
async def steps_without_yield(cache: InstanceCache) -> object:
    return await (await register(cache, abi=Explained(...))).call(1)


@mistake(TypeError, "f: steps of its ABI must yield an Invoke or a Convert, got 'fib'")
async def a_name_as_a_step(cache: InstanceCache) -> object:
    return await (await register(cache, abi=Explained(..., "fib"))).call(1)


@mistake(
    ValueError,
    "an export of type [i64] -> [i64] was called with 2 values, of types int, int",
)
async def a_step_with_too_many_values(cache: InstanceCache) -> object:
    return await (await register(cache, abi=Explained(..., Invoke("fib", (1, 2))))).call(1)


# -- names that Python writes with escapes

ODD = ('say "hi"', "it's", "a \\\\ b", "both ' and \"")
UNPRINTABLE = ("two\nlines", "\x1b[31mred", "\u202eabc")


def wat(name: str) -> str:
    """A name as WebAssembly text writes it."""
    return '"' + "".join(f"\\{byte:02x}" for byte in name.encode()) + '"'


async def message_of(kind: type[Exception], given: Awaitable[object]) -> str:
    with pytest.raises(kind) as caught:
        await given
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("name", ODD)
async def test_the_name_that_acquire_hints_at_is_python(name: str) -> None:
    """Name and types apart, as they are to be written."""
    async with quiet_cache() as cache:
        await cache.register(name, FIB, args=("i64",), returns="i64", export="fib")
        said = await message_of(UnknownFunctionError, cache.warm(f"{name}(i64)"))
        hint = said.partition("arguments apart, as ")[2]
        found, types = eval(f"({hint})")
        async with cache.acquire(found, types) as lease:
            assert await lease.call(7) == 7


@pytest.mark.parametrize("name", [*ODD, *UNPRINTABLE])
async def test_names_of_exports_and_imports_that_register_hints_at_are_python(name: str) -> None:
    """What is printed can be pasted, and registers the function."""
    exports = f"(module (func (export {wat(name)}) (result i64) (i64.const 7)))"
    imports = f"""(module (import {wat(name)} {wat(name)} (func $f (result i64)))
        (func (export "f") (result i64) (call $f)))"""
    async with quiet_cache() as cache:
        said = await message_of(ExportError, cache.register("f", exports, args=(), returns="i64"))
        export = said.rpartition("give export=")[2]
        function = await cache.register("f", exports, args=(), returns="i64", export=eval(export))
        assert await function.call() == 7
        said = await message_of(LinkError, cache.register("g", imports, args=(), returns="i64"))
        hint = said.rpartition("Give host functions: imports=")[2].rpartition("; or missing=")[0]
        known = {"HostFunction": HostFunction, "function": lambda: 8}
        given = eval(hint, known)
        function = await cache.register(
            "g", imports, args=(), returns="i64", export="f", imports=given
        )
        assert await function.call() == 8


# -- the test


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_gets_a_message_that_says_what_to_write(name: str) -> None:
    """The message is the expected one, it fits on a screen, and the cache works as before."""
    one = MISTAKES[name]
    async with quiet_cache() as cache:
        fib = await cache.register("fib", FIB, args=("i64",), returns="i64")
        await cache.register("add", ADD, args=("i64", "i64"), returns="i64")
        with pytest.raises(one.kind) as caught:
            await one.make(cache)
        assert type(caught.value) is one.kind
        task = trio.lowlevel.current_task().name
        message = re.sub("0x[0-9a-f]+", "0x", str(caught.value).replace(task, "TASK"))
        assert message == one.message
        assert len(one.message) < 400
        assert await fib.call(7) == 7
        check_invariants(cache)
