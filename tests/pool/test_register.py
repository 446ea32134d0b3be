"""What `register` takes, what it gives, and what replacing and removing make of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from engine.support import compiles_held, quiet_cache, wat

from trio_wasmcache import Function, InstanceCache, UnknownFunctionError
from trio_wasmcache.testing import cancel_everywhere, check_invariants, snapshot

TEXT = '(module (func (export "f") (param i64) (result i64) (i64.add (local.get 0) (i64.const 1))))'
WASM = wat(TEXT)
KEY = ("i64",)


async def register(
    cache: InstanceCache, wasm: Any = WASM, name: str = "f", **more: Any
) -> Function:
    return await cache.register(name, wasm, args=KEY, returns="i64", **{"export": "f", **more})


async def test_a_module_comes_as_bytes_text_or_path(tmp_path: Path) -> None:
    """Bytes of any kind, text, and a path to either give the same module."""
    (tmp_path / "udf.wasm").write_bytes(WASM)
    (tmp_path / "udf.wat").write_text(f"\n ;; a comment\n{TEXT}")
    sources = (
        WASM,
        bytearray(WASM),
        memoryview(WASM),
        TEXT,
        f"  \n{TEXT}\n",
        f"(; a comment ;) {TEXT}",
        f";; a comment\n{TEXT}",
        '(func (export "f") (param i64) (result i64) (i64.add (local.get 0) (i64.const 1)))',
        tmp_path / "udf.wasm",
        tmp_path / "udf.wat",
    )
    async with quiet_cache() as cache:
        for number, source in enumerate(sources):
            function = await register(cache, source, f"f{number}")
            assert await function.call(41) == 42
            assert function.module_digest == hashlib.sha256(WASM).hexdigest()
        assert cache.stats().functions == len(sources)
        assert len(cache._compiler.modules) == 1
        check_invariants(cache)


async def test_bytes_are_taken_as_they_were() -> None:
    """A buffer that changes while its module compiles does not change the module."""
    buffer = bytearray(WASM)
    async with quiet_cache() as cache:
        async with trio.open_nursery() as nursery, compiles_held(cache):
            nursery.start_soon(register, cache, buffer)
            await trio.testing.wait_all_tasks_blocked()
            buffer[:] = bytes(len(buffer))
        assert await cache.functions()[0].call(1) == 2


async def test_a_function_says_what_it_is() -> None:
    """The handle holds what was declared and what was made of it; its key is how it is named."""
    async with quiet_cache() as cache:
        function = await cache.register("plus one", WASM, args=[" I64"], returns="I64", export="f")
        assert function.name == "plus one"
        assert function.args == KEY
        assert function.returns == "i64"
        assert function.generation == 1
        assert function.isolation == "reuse"
        assert function.code_size > 0
        assert str(function.key) == "plus one(i64)"
        assert cache.functions() == (function,)
        async with function.acquire() as lease:
            assert lease.function is function
        with pytest.raises(AttributeError):
            function.name = "other"  # type: ignore[misc]


async def test_the_export_is_named_as_the_function_unless_said_otherwise() -> None:
    """Without `export` the name is looked up in the module."""
    async with quiet_cache() as cache:
        assert await (await cache.register("f", WASM, args=KEY, returns="i64")).call(1) == 2


async def test_functions_are_listed_in_order() -> None:
    """functions() lists them in order of registration; a replacement keeps the place."""
    async with quiet_cache() as cache:
        for name in "cab":
            await register(cache, name=name)
        await register(cache, name="a", replace=True)
        assert [function.name for function in cache.functions()] == ["c", "a", "b"]
        assert [function.generation for function in cache.functions()] == [1, 2, 1]


async def test_generations_never_come_again() -> None:
    """Replaced or removed and registered again, a function has a new generation each time."""
    async with quiet_cache() as cache:
        assert (await register(cache)).generation == 1
        assert (await register(cache, replace=True)).generation == 2
        cache.remove("f")
        assert (await register(cache)).generation == 3
        assert (await register(cache, name="other")).generation == 1
        check_invariants(cache)


async def test_replace_may_be_the_first() -> None:
    """replace=True without anything to replace is a plain registration."""
    async with quiet_cache() as cache:
        assert (await register(cache, replace=True)).generation == 1


async def test_remove_takes_one_or_all_of_a_name() -> None:
    """With types one overload goes, without them all; what is not there is an error."""
    narrow = wat('(module (func (export "f") (param i32) (result i32) local.get 0))')
    async with quiet_cache() as cache:
        for _ in range(2):
            await register(cache)
            await cache.register("f", narrow, args=("i32",), returns="i32")
            await register(cache, name="g")
            cache.remove("f", (" I32 ",))
            assert [str(function.key) for function in cache.functions()] == ["f(i64)", "g(i64)"]
            with pytest.raises(UnknownFunctionError, match=r"f\(i32\).*did you mean f\(i64\)"):
                cache.remove("f", ("i32",))
            await cache.register("f", narrow, args=("i32",), returns="i32")
            cache.remove("f")
            assert [function.name for function in cache.functions()] == ["g"]
            with pytest.raises(UnknownFunctionError):
                cache.remove("f")
            cache.remove("g", KEY)
            assert cache.stats().artifact_size == 0
            check_invariants(cache)


async def test_register_is_a_checkpoint() -> None:
    """Also when the module is there already, and nothing has to be compiled."""
    async with quiet_cache() as cache:
        with trio.testing.assert_checkpoints():
            await register(cache)
        with trio.testing.assert_checkpoints():
            await register(cache, name="g")


@pytest.mark.parametrize("source", [WASM, TEXT], ids=["bytes", "text"])
async def test_register_may_be_cancelled_anywhere(source: Any) -> None:
    """Cancelled at any of its checkpoints, it leaves nothing; the next one works."""
    async with quiet_cache() as cache:

        async def scenario() -> None:
            await register(cache, source)
            cache.remove("f")

        def check() -> None:
            assert cache.functions() == ()
            assert not snapshot(cache).reserved
            assert cache.stats().artifact_size == 0
            check_invariants(cache)

        assert await cancel_everywhere(scenario, check) >= 1
        assert await (await register(cache, source)).call(1) == 2


async def test_a_closed_cache_registers_nothing() -> None:
    """After the block, register and remove raise ClosedResourceError."""
    async with quiet_cache() as cache:
        await register(cache)
    with pytest.raises(trio.ClosedResourceError):
        await register(cache, name="g")
    with pytest.raises(trio.ClosedResourceError):
        cache.remove("f")
