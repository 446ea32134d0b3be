"""Host functions on real wasm: values of every type, the guest's memory, and what can go wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing
from engine.support import WASI, exported, quiet_cache, run_python, wat
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache import (
    AbiError,
    Function,
    HostFunction,
    InstanceCache,
    KiB,
    LoadError,
    TrapError,
    current_lease,
)
from trio_wasmcache._abi.plain import TYPES
from trio_wasmcache._engine.wasmtime.hosts import INSTANCES
from trio_wasmcache.testing import check_invariants


async def register(cache: InstanceCache, host: HostFunction, name: str = "f") -> Function:
    """A function with the types of a host function, which calls it."""
    kind = host.type
    params, results = (" ".join(types) for types in (kind.params, kind.results))
    gets = " ".join(f"local.get {number}" for number in range(len(kind.params)))
    signature = f"(param {params}) (result {results})"
    wasm = exported(
        f"{gets} call $g",
        signature,
        f'(import "env" "g" (func $g {signature})) (memory (export "memory") 1)',
    )
    return await cache.register(
        name,
        wasm,
        args=host.params,
        returns=host.results,
        export="f",
        imports={"env": {"g": host}},
    )


VALUES = {
    "i8": [-128, 127, 0],
    "i16": [-32768, 32767],
    "i32": [-(2**31), 2**31 - 1, -1],
    "i64": [-(2**63), 2**63 - 1, -1],
    "u8": [0, 255],
    "u16": [0, 65535],
    "u32": [0, 2**31, 2**32 - 1],
    "u64": [0, 2**63, 2**64 - 1],
    "bool": [True, False],
    "f32": [0.5, -0.0, math.inf, 2.0**-149],
    "f64": [0.1, -0.0, -math.inf, 5e-324],
}


@pytest.mark.parametrize("name", TYPES)
async def test_values_of_every_type_go_out_and_back(name: str) -> None:
    """What the guest gives arrives as a value of its type; what is returned arrives there."""
    got: list[Any] = []

    def host(value: Any) -> Any:
        got.append(value)
        return value

    async with quiet_cache() as cache:
        function = await register(cache, HostFunction(host, (name,), (name,)))
        async with function.acquire() as lease:
            for value in VALUES[name]:
                result = await lease.call(value)
                for seen in (got.pop(), result):
                    assert seen == value
                    assert type(seen) is type(value)
                    assert math.copysign(1, seen) == math.copysign(1, value)
        check_invariants(cache)


async def test_all_types_go_together() -> None:
    """One call with a value of each type, out and back, each in its place."""
    names = tuple(TYPES)
    got: list[tuple[Any, ...]] = []

    def host(*values: Any) -> tuple[Any, ...]:
        got.append(values)
        return values

    async with quiet_cache() as cache:
        function = await register(cache, HostFunction(host, names, names))
        async with function.acquire() as lease:

            @tries(10)
            @given(st.tuples(*(st.sampled_from(VALUES[name]) for name in names)))
            def collect(values: tuple[Any, ...]) -> None:
                chosen.append(values)

            chosen: list[tuple[Any, ...]] = []
            collect()
            for values in chosen:
                assert await lease.call(*values) == values
                assert got.pop() == values


async def test_a_host_function_may_take_and_give_nothing() -> None:
    """No parameters, no results, None for no result: the shortest function there is."""
    calls = []
    async with quiet_cache() as cache:
        function = await register(cache, HostFunction(lambda: calls.append(1), (), ()))
        assert await function.call() is None
        assert calls == [1]


async def test_an_async_host_function_is_awaited() -> None:
    """The guest is suspended while it runs; others run, and call the same function meanwhile."""
    gate = trio.Event()

    async def wait(value: int) -> int:
        await gate.wait()
        return 2 * value

    results = []
    async with quiet_cache() as cache:
        function = await register(cache, HostFunction(wait, ("i64",), ("i64",)))
        other = await register(cache, HostFunction(abs, ("i64",), ("i64",)), "other")

        async def call(value: int) -> None:
            results.append(await function.call(value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, 21)
            await trio.testing.wait_all_tasks_blocked()
            assert results == []
            assert await other.call(-1) == 1
            gate.set()
        assert results == [42]
        check_invariants(cache)


class OwnError(Exception):
    """An error of the application."""


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_exception_of_a_host_function_is_that_of_the_call(asynchronous: bool) -> None:
    """It comes out as it is; the instance is dropped, and the next call gets another."""
    error = OwnError("mine")
    fail = True

    def host(value: int) -> int:
        if fail:
            raise error
        return value

    async def later(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return host(value)

    async with quiet_cache() as cache:
        function = await register(
            cache, HostFunction(later if asynchronous else host, ("i64",), ("i64",))
        )
        with pytest.raises(OwnError) as caught:
            await function.call(1)
        assert caught.value is error
        assert cache.stats().evictions["corrupted"] == 1
        fail = False
        assert await function.call(1) == 1
        check_invariants(cache)


@pytest.mark.parametrize(
    ("results", "returned", "kind", "said"),
    [
        (("i64",), "x", TypeError, "result 1 of host function"),
        (("i64",), None, TypeError, "result 1 of host function"),
        (("u8",), 256, OverflowError, "result 1 of host function"),
        (("i32",), 2**31, OverflowError, "result 1 of host function"),
        (("i64", "u8"), (1, -1), OverflowError, "result 2 of host function"),
        (("i64", "u8"), (1,), TypeError, "must return a tuple of 2 values"),
        (("i64", "u8"), 1, TypeError, "must return a tuple of 2 values"),
        (("f32",), 1e39, OverflowError, "too large for f32"),
        ((), 1, TypeError, "must return nothing"),
    ],
)
async def test_a_host_function_that_returns_nonsense_is_told(
    results: tuple[str, ...], returned: Any, kind: type[Exception], said: str
) -> None:
    """Results of the wrong number, type or range are an error of the call that names which."""
    async with quiet_cache() as cache:
        function = await register(cache, HostFunction(lambda: returned, (), results))
        with pytest.raises(kind, match=said) as caught:
            await function.call()
        assert "<lambda>" in str(caught.value)
        check_invariants(cache)


async def test_a_guest_that_passes_nonsense_breaks_the_abi() -> None:
    """A value out of the declared range is AbiError, and the Python function is not called."""
    wasm = wat(
        '(module (import "env" "g" (func $g (param i32)))'
        ' (func (export "f") (call $g (i32.const 256))))'
    )
    calls: list[int] = []
    host = HostFunction(calls.append, ("u8",), ())
    async with quiet_cache() as cache:
        function = await cache.register("f", wasm, args=(), imports={"env": {"g": host}})
        with pytest.raises(AbiError, match=r"append was called with 256, out of the range of u8"):
            await function.call()
        assert calls == []
        check_invariants(cache)


async def test_a_host_function_sees_the_memory_of_its_caller() -> None:
    """While it runs, the lease's memory can be read and written, and the guest sees what was."""

    def upper(at: int, n: int) -> int:
        memory = current_lease().memory
        data = memory.read(at, n)
        memory.write(at, data.upper())
        with pytest.raises(IndexError):
            memory.read(memory.size, 1)
        return memory.size

    async with quiet_cache() as cache:
        host = HostFunction(upper, ("u32", "u32"), ("u32",))
        async with (await register(cache, host)).acquire() as lease:
            lease.memory.write(100, b"hello")
            assert await lease.call(100, 5) == 65536
            assert lease.memory.read(100, 5) == b"HELLO"


async def test_a_host_function_sees_memory_that_has_grown() -> None:
    """Between two calls of the host the memory may grow and move; each sees it as it is then."""
    wasm = wat(
        """(module (import "env" "g" (func $g)) (memory (export "memory") 1)
        (func (export "f") (call $g) (drop (memory.grow (i32.const 20)))
            (i32.store8 (i32.const 1000000) (i32.const 9)) (call $g)))"""
    )
    sizes = []

    def look() -> None:
        memory = current_lease().memory
        sizes.append(memory.size)
        if memory.size > 65536:
            assert memory.read(1000000, 1) == b"\x09"

    async with quiet_cache() as cache:
        host = HostFunction(look, (), ())
        function = await cache.register("f", wasm, args=(), imports={"env": {"g": host}})
        await function.call()
        assert sizes == [65536, 21 * 65536]


async def test_a_start_function_may_call_the_host() -> None:
    """While an instance starts, host functions run too; what they raise fails the acquire."""
    wasm = wat(
        '(module (import "env" "g" (func $g (param i64) (result i64))) (global $n (mut i64)'
        " (i64.const 0)) (func $start (global.set $n (call $g (i64.const 20)))) (start $start)"
        ' (func (export "f") (result i64) global.get $n))'
    )
    fail = False

    async def host(value: int) -> int:
        await trio.lowlevel.checkpoint()
        if fail:
            raise OwnError
        return value + 1

    async with quiet_cache(max_size=0) as cache:
        imports = {"env": {"g": HostFunction(host, ("i64",), ("i64",))}}
        function = await cache.register("f", wasm, args=(), returns="i64", imports=imports)
        assert await function.call() == 21
        fail = True
        with pytest.raises((OwnError, LoadError)):
            await function.call()
        check_invariants(cache)
        fail = False
        assert await function.call() == 21


async def test_a_host_function_may_call_another_guest() -> None:
    """Nested calls, a guest in a host function in a guest, keep their leases and values apart."""
    async with quiet_cache() as cache:

        def add(value: int) -> int:
            assert current_lease().function.name == "inner"
            return value + 1

        inner = await register(cache, HostFunction(add, ("i64",), ("i64",)), "inner")

        async def host(value: int) -> int:
            assert current_lease().function.name == "outer"
            result: int = await inner.call(value)
            assert current_lease().function.name == "outer"
            return result * 2

        outer = await register(cache, HostFunction(host, ("i64",), ("i64",)), "outer")
        assert await outer.call(20) == 42
        with pytest.raises(RuntimeError, match="only inside a host function"):
            current_lease()
        check_invariants(cache)


async def test_a_trap_after_a_host_call_is_a_trap() -> None:
    """The guest goes on after the host's answer, in slices, wherever that leads."""
    wasm = exported(
        """(loop $more (call $g) (local.set 0 (i64.add (local.get 0) (i64.const 1)))
            (br_if $more (i64.lt_u (local.get 0) (i64.const 3000)))) unreachable""",
        "(local i64)",
        '(import "env" "g" (func $g))',
    )
    calls: list[int] = []
    async with quiet_cache(yield_fuel=500, offload_after=3) as cache:
        host = HostFunction(lambda: calls.append(1), (), ())
        function = await cache.register("f", wasm, args=(), imports={"env": {"g": host}})
        with pytest.raises(TrapError, match="unreachable"):
            await function.call()
        assert len(calls) == 3000
        check_invariants(cache)


async def test_no_instance_is_remembered_longer_than_it_lives() -> None:
    """The table by which callbacks find their instance is empty when the cache is closed."""
    before = dict(INSTANCES)
    async with quiet_cache() as cache:
        function = await register(cache, HostFunction(abs, ("i64",), ("i64",)))
        assert await function.call(-1) == 1
        assert len(INSTANCES) == len(before) + 1
    assert before == INSTANCES


CTRL_C = """
    import signal, sys, trio
    from engine.support import wat
    from trio_wasmcache._core.wasm.admission import check_limits
    from trio_wasmcache._core.wasm.reader import FuncType
    from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
    from trio_wasmcache._engine.base import UNDER_WAY, HostImport

    SOURCE = wat(
        '(module (import "env" "g" (func $g (param i64) (result i64)))'
        ' (func (export "f") (param i64) (result i64) (call $g (local.get 0))))'
    )
    # A parent in the background may have had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hit = []

    def profile(frame, event, argument):
        if event == "call" and frame.f_code.co_name == sys.argv[1] and not hit:
            hit.append(frame)
            signal.raise_signal(signal.SIGINT)

    async def main():
        engine = WasmtimeEngine(512 * 1024)
        artifact = await engine.compile(SOURCE, lambda info: check_limits(info, "f", 0, 0))
        signature = FuncType(("i64",), ("i64",))
        module = await engine.load(artifact, [HostImport("env", "g", signature)])
        instance = module.instantiate(10_000, 10_000)
        assert instance.poll()
        instance.started()
        function = instance.function("f")
        sys.setprofile(profile)
        assert function.begin((21,), 10_000) is UNDER_WAY
        instance.host_call.answer((42,))
        assert instance.poll()
        sys.setprofile(None)
        print(hit != [], function.finish())
        instance.close()
        module.close()
        engine.close()
        await trio.lowlevel.checkpoint()

    try:
        trio.run(main)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("callback", ["_on_call", "_note"])
def test_ctrl_c_does_not_hit_a_callback(callback: str) -> None:
    """Ctrl-C while a callback runs is kept for later: raised there, it would abort the process."""
    assert run_python(CTRL_C, callback) == "True 42\ninterrupted\n"


def test_what_a_signal_handler_raises_in_a_callback_ends_the_call() -> None:
    """Not the process, wherever in the callback it is raised: at its very first instruction, too.

    The guest is busy for many times as long as it takes the signal to come, on any machine, so
    Python sees that when the callback begins. Another one comes soon after, and may hit the
    callback while it deals with the first.
    """
    output = run_python(
        """
        import signal, trio, trio_wasmcache
        from engine.support import quiet_cache

        SOURCE = '''(module (import "env" "g" (func $g (param i64) (result i64)))
            (func (export "f") (param i64) (result i64) (local i64)
                (loop (local.set 1 (i64.add (local.get 1) (i64.const 1)))
                    (br_if 0 (i64.lt_u (local.get 1) (i64.const 2_000_000))))
                (call $g (local.get 0))))'''
        hits = []

        def handler(number, frame):
            if frame.f_code.co_name in ("_on_call", "_note"):
                hits.append((frame.f_code.co_name, frame.f_lasti))
                raise ZeroDivisionError

        async def main():
            async with quiet_cache(yield_fuel=100_000_000) as cache:
                host = trio_wasmcache.HostFunction(abs, ("i64",), ("i64",))
                f = await cache.register(
                    "f", SOURCE, args=("i64",), returns="i64", imports={"env": {"g": host}}
                )
                raised = 0
                for _ in range(1000):
                    async with f.acquire() as lease:
                        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
                        try:
                            assert await lease.call(-1) == 1
                        except ZeroDivisionError:
                            raised += 1
                        signal.setitimer(signal.ITIMER_REAL, 0)
                        if raised:
                            try:
                                await lease.call(-1)
                            except trio.BrokenResourceError:
                                print("broken")
                    if raised and ("_on_call", 0) in hits:
                        break
                print(("_on_call", 0) in hits, raised > 0, await f.call(-2))

        signal.signal(signal.SIGALRM, handler)
        trio.run(main)
        """
    )
    assert set(output.splitlines()) == {"broken", "True True 2"}


def test_a_host_call_with_no_python_stack_left_is_a_recursion_error() -> None:
    """However deep the caller is nested, it gets a result or RecursionError, never an abort."""
    output = run_python(
        """
        import sys, trio
        from engine.support import quiet_cache
        from engine.test_hosts import register
        from trio_wasmcache import HostFunction

        async def down(levels, call):
            return await (down(levels - 1, call) if levels else call())

        async def main():
            async with quiet_cache() as cache:
                function = await register(cache, HostFunction(abs, ("i64",), ("i64",)))
                good = bad = 0
                for levels in range(800, sys.getrecursionlimit()):
                    try:
                        async with function.acquire() as lease:
                            assert await down(levels, lambda: lease.call(-1)) == 1
                        good += 1
                    except RecursionError:
                        bad += 1
                assert await function.call(-5) == 5
                print(good > 0, bad > 0)

        trio.run(main)
        """
    )
    assert output == "True True\n"


def test_callbacks_fit_at_the_edge_of_the_stack() -> None:
    """With the guest's half of the smallest stack used up, the host's half is enough."""
    output = run_python(
        f"""
        import gc, trio
        from engine.support import quiet_cache
        from trio_wasmcache import HostFunction, StackOverflowError

        SOURCE = '''(module
            (import "env" "g" (func $g (param i64) (result i64)))
            (import "{WASI}" "random_get" (func $r (param i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func $deep (export "f") (param i64) (result i64)
                (if (i64.eqz (local.get 0)) (then
                    (drop (call $r (i32.const 0) (i32.const 5000)))
                    (return (call $g (i64.const 7)))))
                (i64.add (i64.const 1) (call $deep (i64.sub (local.get 0) (i64.const 1))))))'''

        class Garbage:
            def __init__(self):
                self.me = self

            def __del__(self):
                sorted([3, 1, 2])

        async def main():
            async with quiet_cache(stack_size={64 * KiB}) as cache:
                f = await cache.register(
                    "f", SOURCE, args=("i64",), returns="i64",
                    imports={{"env": {{"g": HostFunction(abs, ("i64",), ("i64",))}}}},
                )
                async def fits(depth):
                    try:
                        assert await f.call(depth) == depth + 7
                    except StackOverflowError:
                        return False
                    return True
                low, high = 1, 10_000
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if await fits(middle) else (low, middle)
                gc.set_threshold(1)
                for depth in range(low - 20, low + 3):
                    Garbage()
                    await fits(depth)
                print("survived")

        trio.run(main)
        """
    )
    assert output == "survived\n"
