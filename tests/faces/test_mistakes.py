"""Common mistakes, each with the message that says what to write instead.

A message is compared as a whole: it is what a new user reads first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from engine.support import quiet_cache

from trio_wasmcache import (
    BufferAbi,
    ExportError,
    HostFunction,
    InstanceCache,
    LinkError,
    SignatureError,
)
from trio_wasmcache.testing import check_invariants

FIB = '(module (func (export "fib") (param i64) (result i64) (local.get 0)))'
ADD = """(module (func (export "add") (param i64 i64) (result i64)
    (i64.add (local.get 0) (local.get 1))))"""
NOW = """(module (import "env" "now" (func $now (result i64)))
    (func (export "now") (result i64) (call $now)))"""
TEXT = """(module (memory (export "memory") 1)
    (func (export "text") (param i32 i32) (result i64) (i64.const 0)))"""

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


async def register(cache: InstanceCache, wasm: Any = FIB, name: str = "f", **given: Any) -> object:
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
    "fob(i64): the module exports no 'fob'; the functions it exports are 'fib'",
)
async def a_misspelt_export(cache: InstanceCache) -> object:
    return await cache.register("fob", FIB, args=("i64",), returns="i64")


# -- modules


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


async def register_now(cache: InstanceCache, **hosts: Any) -> object:
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
    "now() imports what it is not given: the module imports env.now as [] -> [i64], but its "
    'HostFunction says [i64] -> [i64] (params were left out, which means ("i64",)): '
    'give params=(), results=("i64",).',
)
async def a_host_function_of_the_default_type(cache: InstanceCache) -> object:
    return await register_now(cache, now=HostFunction(now, results=("i64",)))


@mistake(
    LinkError,
    "now() imports what it is not given: the module imports env.now as [] -> [i64], but its "
    'HostFunction says [] -> [i32]: give params=(), results=("i64",).',
)
async def a_host_function_of_another_type(cache: InstanceCache) -> object:
    return await register_now(cache, now=HostFunction(now, params=(), results=("u32",)))


@mistake(
    TypeError,
    'host function now has no types: write HostFunction(fn, params=("i64",), results=("i64",)), '
    "with () where there is none",
)
async def a_bare_host_function(cache: InstanceCache) -> object:
    return await register_now(cache, now=HostFunction(now))


@mistake(
    SignatureError,
    "host function now: unknown type 'str': only numbers cross to a host function: take the "
    "address and the length as i32, and read the bytes by current_lease().memory",
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
        assert str(caught.value) == one.message
        assert len(one.message) < 400
        assert await fib.call(7) == 7
        check_invariants(cache)
