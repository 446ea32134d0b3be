"""Instances on real wasm: sizes, memory, results, traps, backtraces, and that all is freed."""

from __future__ import annotations

import ctypes
from contextlib import AsyncExitStack
from typing import Any

import pytest
from engine.support import WASI, exported, quiet_cache, run_python, wat

from trio_wasmcache import (
    FuelExhaustedError,
    Function,
    GuestError,
    InstanceCache,
    StackOverflowError,
    TrapError,
)
from trio_wasmcache._core.config import WASM_PAGE, KiB, MiB
from trio_wasmcache._engine.wasmtime.errors import CODES, MAX_FRAMES
from trio_wasmcache.testing import check_invariants


async def register(
    cache: InstanceCache, body: str, rest: str = "", returns: Any = None
) -> Function:
    result = f"(result {returns})" if isinstance(returns, str) else ""
    return await cache.register("f", exported(body, result, rest), args=(), returns=returns)


@pytest.mark.parametrize(
    ("definitions", "size"),
    [
        ("", 0),
        ("(memory 2)", 2 * WASM_PAGE),
        ("(memory 2 2)", 2 * WASM_PAGE),
        ('(memory (export "memory") 2)', 2 * WASM_PAGE),
        ('(memory (export "a") (export "b") 2)', 2 * WASM_PAGE),
        ('(memory (export "a") 1) (memory 2) (memory 3 3)', 6 * WASM_PAGE),
        ("(table 10 funcref)", 80),
        ("(table 10 10 externref)", 80),
        ('(table (export "t") 5 funcref) (table 6 externref) (table 7 7 funcref)', 144),
        ("(memory 1) (table 100 funcref)", WASM_PAGE + 800),
        ("(memory 0) (table 0 funcref)", 0),
    ],
)
async def test_size_is_memories_tables_and_a_page(definitions: str, size: int) -> None:
    """Size counts every memory and table, hidden or shown, once, and one page for the rest."""
    async with quiet_cache() as cache:
        function = await register(cache, "nop", definitions)
        async with function.acquire() as lease:
            assert lease.size == size + WASM_PAGE
        assert cache.stats().total_size == size + WASM_PAGE
        check_invariants(cache)


MANY = 9000
PARTS = {
    "passive items": f"(elem func {'0 ' * 10 * MANY})",
    "passive items that are no functions": f"(elem externref {'(ref.null extern) ' * MANY})",
    "passive element segments": "(elem func)" * MANY,
    "passive data segments": "(memory 0)" + '(data "")' * MANY,
    "globals": "(global (mut v128) (v128.const i64x2 1 2))" * MANY,
    "exported functions": "".join(f'(func (export "{n}"))' for n in range(MANY)),
    "functions to refer to": "(func)" * MANY
    + f"(elem declare func {' '.join(map(str, range(MANY)))})",
    "tables": "(table 1 funcref)" * 99,
    "imports": f'(import "{WASI}" "sched_yield" (func (result i32)))' * MANY,
}


class MallInfo(ctypes.Structure):
    """C's `struct mallinfo2`."""

    NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def heap_in_use() -> int:
    """Bytes that C's `malloc` has given out in this process."""
    ask = ctypes.CDLL(None)["mallinfo2"]
    ask.restype = MallInfo
    info = ask()
    return int(info.uordblks + info.hblkhd)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="it is glibc's")
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
async def test_no_part_of_a_module_takes_more_than_is_booked(parts: str) -> None:
    """What wasmtime has in its heap for an instance, whatever the module consists of."""
    count = 10
    async with quiet_cache() as cache, AsyncExitStack() as leases:
        function = await cache.register(
            "f", wat(f'(module {parts} (func (export "f")))'), args=(), concurrency=count + 1
        )
        # The first has the code loaded, and whatever else there is but once.
        await leases.enter_async_context(function.acquire())
        before = heap_in_use()
        held = [await leases.enter_async_context(function.acquire()) for _ in range(count)]
        assert heap_in_use() - before <= sum(lease.size for lease in held)
        assert held[0].size <= function.worst_size
        check_invariants(cache)


async def test_size_follows_what_hidden_memories_and_tables_grow() -> None:
    """What the guest grows is seen in the size, and counted when the instance is given back."""
    body = """(drop (memory.grow $a (i32.const 2))) (drop (memory.grow $b (i32.const 3)))
        (drop (table.grow $t (ref.null func) (i32.const 10)))"""
    definitions = (
        "(memory $a 1) (memory $b 1 9) (memory 1 1) (table $t 1 funcref) (table 1 1 funcref)"
    )
    async with quiet_cache() as cache:
        function = await register(cache, body, definitions)
        size = 4 * WASM_PAGE + 16
        async with function.acquire() as lease:
            assert lease.size == size
            for _ in range(2):
                await lease.call()
                size += 5 * WASM_PAGE + 80
                assert lease.size == size
        assert cache.stats().total_size == size
        check_invariants(cache)


async def test_memory_is_read_and_written_within_its_bounds() -> None:
    """Every byte can be reached, none beyond; a write over the end writes nothing."""
    body = "(drop (memory.grow (i32.const 1)))"
    async with quiet_cache() as cache:
        function = await register(cache, body, '(memory (export "memory") 1 2)')
        async with function.acquire() as lease:
            memory = lease.memory
            for end in (WASM_PAGE, 2 * WASM_PAGE):
                assert memory.size == end
                assert memory.read(0, end) == memory.read(0, 0) + memory.read(0, end)
                for data in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
                    memory.write(end - 3, data)
                    assert memory.read(end - 3, 3) == b"abc"
                assert memory.read(end, 0) == b""
                memory.write(end, b"")
                for at, n in ((end, 1), (end - 3, 4), (0, end + 1), (-1, 1), (0, -1), (2**64, 1)):
                    with pytest.raises(IndexError, match=f"memory of {end} bytes"):
                        memory.read(at, n)
                for at in (end - 2, end, -1, 2**32, 2**70):
                    with pytest.raises(IndexError):
                        memory.write(at, b"xyz")
                assert memory.read(end - 3, 3) == b"abc"
                await lease.call()
            memory.write(5, memoryview(b"a-b-c-")[::2])
            assert memory.read(5, 3) == b"abc"
        check_invariants(cache)


@pytest.mark.parametrize(
    ("definitions", "at"),
    [
        ('(memory (export "memory") 1) (memory (export "other") 1)', 0),
        ('(memory (export "other") 1) (memory (export "memory") 1)', 1),
        ('(memory 1) (memory (export "only") 1)', 1),
    ],
)
async def test_the_memory_of_a_lease_is_the_exported_one(definitions: str, at: int) -> None:
    """The one called ``memory``, or else the first exported one, whatever its name is."""
    async with quiet_cache() as cache:
        body = f"(i32.load {at} (i32.const 8))"
        function = await register(cache, body, definitions, "i32")
        async with function.acquire() as lease:
            lease.memory.write(8, (7).to_bytes(4, "little"))
            assert await lease.call() == 7


async def test_a_hidden_memory_is_not_given_out() -> None:
    """That we export hidden memories to measure them does not open them to the application."""
    async with quiet_cache() as cache:
        function = await register(cache, "nop", "(memory 1)")
        async with function.acquire() as lease:
            with pytest.raises(LookupError, match="exports no memory"):
                lease.memory.read(0, 1)


TRAPS = {
    "unreachable": [("unreachable", "")],
    "integer divide by zero": [
        ("(drop (i32.div_s (i32.const 1) (i32.const 0)))", ""),
        ("(drop (i32.rem_u (i32.const 1) (i32.const 0)))", ""),
        ("(drop (i64.div_u (i64.const 1) (i64.const 0)))", ""),
    ],
    "integer overflow": [
        ("(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", ""),
        ("(drop (i64.div_s (i64.const 0x8000000000000000) (i64.const -1)))", ""),
        ("(drop (i32.trunc_f64_s (f64.const 1e10)))", ""),
        ("(drop (i64.trunc_f32_u (f32.const inf)))", ""),
    ],
    "invalid conversion to integer": [
        ("(drop (i32.trunc_f32_s (f32.const nan)))", ""),
        ("(drop (i64.trunc_f64_u (f64.const nan)))", ""),
    ],
    "out of bounds memory access": [
        ("(drop (i32.load (i32.const 65533)))", "(memory 1)"),
        ("(i64.store (i32.const -1) (i64.const 0))", "(memory 1)"),
        ("(drop (i32.load offset=4294967295 (i32.const -1)))", "(memory 1)"),
        ("(drop (i32.load (i32.const 0)))", "(memory 0)"),
        ("(memory.fill (i32.const 65530) (i32.const 0) (i32.const 7))", "(memory 1)"),
        ("(memory.copy (i32.const 0) (i32.const 65530) (i32.const 7))", "(memory 1)"),
        ("(memory.init 0 (i32.const 0) (i32.const 0) (i32.const 4))", '(memory 1) (data "abc")'),
        ("(drop (v128.load (i32.const 65521)))", "(memory 1)"),
    ],
    "out of bounds table access": [
        ("(drop (table.get (i32.const 1)))", "(table 1 funcref)"),
        ("(table.set (i32.const -1) (ref.null func))", "(table 1 funcref)"),
        ("(table.fill (i32.const 0) (ref.null func) (i32.const 2))", "(table 1 funcref)"),
        (
            "(table.init 0 (i32.const 0) (i32.const 0) (i32.const 2))",
            "(table 9 funcref) (elem func)",
        ),
        ("(call_indirect (i32.const 1))", "(table 1 funcref)"),
    ],
    "uninitialized element": [("(call_indirect (i32.const 0))", "(table 1 funcref)")],
    "indirect call type mismatch": [
        (
            "(call_indirect (i32.const 0))",
            "(table 1 funcref) (elem (i32.const 0) $g) (func $g (param i32))",
        )
    ],
}


@pytest.mark.parametrize("code", TRAPS)
async def test_a_trap_says_what_it_was(code: str) -> None:
    """Each trap has WebAssembly's name for it as its code; the next call gets a new instance."""
    assert code in CODES.values()
    for body, definitions in TRAPS[code]:
        async with quiet_cache() as cache:
            function = await register(cache, body, definitions)
            for _ in range(2):
                with pytest.raises(TrapError) as caught:
                    await function.call()
                assert type(caught.value) is TrapError
                assert caught.value.code == code
                assert "f() called with ()" in str(caught.value)
                assert f"wasm trap: {code}" in str(caught.value)
                assert caught.value.function == "f"
                assert caught.value.values == ()
            assert cache.stats().evictions["corrupted"] == 2
            check_invariants(cache)


async def test_recursion_without_end_is_a_stack_overflow() -> None:
    """The guest's half of the stack runs out: StackOverflowError, with a backtrace cut to size."""
    for stack_size in (64 * KiB, 512 * KiB, 8 * MiB):
        async with quiet_cache(stack_size=stack_size) as cache:
            function = await register(cache, "call $deep", "(func $deep call $deep)")
            for _ in range(2):
                with pytest.raises(StackOverflowError, match="stack is exhausted") as caught:
                    await function.call()
                assert 1 < len(caught.value.backtrace) <= MAX_FRAMES + 1
                # Where the first is can't be known: it found no room for itself.
                assert caught.value.backtrace[0] == "deep"
                assert caught.value.backtrace[1].startswith("deep at 0x")
            check_invariants(cache)


@pytest.mark.parametrize("limits", [{}, {"yield_fuel": 1000}, {"offload_after": None}])
async def test_a_loop_without_end_runs_out_of_fuel(limits: dict[str, Any]) -> None:
    """However it is sliced, and wherever it runs, it ends when total_fuel is burnt."""
    async with quiet_cache(total_fuel=200_000, **limits) as cache:
        function = await register(cache, "(loop br 0)")
        async with function.acquire() as lease:
            with pytest.raises(FuelExhaustedError, match=r"f\(\).*fuel is burnt"):
                await lease.call()
            assert lease.fuel_consumed is not None
            assert 199_000 < lease.fuel_consumed <= 201_000
        check_invariants(cache)


async def test_a_backtrace_names_functions() -> None:
    """Frames are innermost first, with names from the name section, or numbers without one."""
    source = """(module (func $inner unreachable) (func $middle call $inner) (func call $middle)
        (func $outer (export "f") call 2))"""
    async with quiet_cache() as cache:
        function = await cache.register("f", source, args=())
        with pytest.raises(TrapError) as caught:
            await function.call()
        names = [frame.partition(" at 0x")[0] for frame in caught.value.backtrace]
        assert names == ["inner", "middle", "func[2]", "outer"]
        offsets = [int(frame.partition(" at ")[2], 16) for frame in caught.value.backtrace]
        assert all(0 < offset < len(wat(source)) for offset in offsets)
        assert "\n  inner at 0x" in str(caught.value)


async def test_names_of_a_guest_can_not_write_to_a_terminal() -> None:
    """Control characters in function names are masked, and long names are cut."""
    source = """(module
        (func $evil (@name "\\1b[31mred\\0a\\07\\e2\\80\\ae") unreachable)
        (func $long (@name "%s") call $evil)
        (func (export "f") call $long))"""
    async with quiet_cache() as cache:
        function = await cache.register("f", source % ("é" * 5000), args=())
        with pytest.raises(TrapError) as caught:
            await function.call()
        evil, long, _ = caught.value.backtrace
        assert evil.startswith("?[31mred??? at 0x")
        assert long.startswith("éééé")
        assert len(long) < 230
        assert all(line.isprintable() for line in str(caught.value).split("\n"))


async def test_errors_of_a_guest_have_one_base() -> None:
    """One except clause catches whatever a guest may end with."""
    for body, definitions in (("unreachable", ""), ("call $d", "(func $d call $d)")):
        async with quiet_cache() as cache:
            with pytest.raises(GuestError):
                await (await register(cache, body, definitions)).call()


async def test_many_arguments_and_results_cross() -> None:
    """100 arguments of all types come back as 100 results, in their places."""
    types = ["i32", "i64", "f32", "f64"] * 25
    values = [
        number * (-1 if number % 3 else 1) if kind[0] == "i" else number / 4
        for number, kind in enumerate(types)
    ]
    gets = " ".join(f"local.get {number}" for number in range(100))
    wasm = exported(gets, f"(param {' '.join(types)}) (result {' '.join(types)})")
    async with quiet_cache() as cache:
        function = await cache.register("f", wasm, args=types, returns=types)
        async with function.acquire() as lease:
            for _ in range(3):
                result = await lease.call(*values)
                assert result == tuple(values)
                assert [type(value) for value in result] == [type(value) for value in values]
        check_invariants(cache)


async def test_results_are_of_this_call() -> None:
    """A slow call, one that traps and one that is quick do not see each other's cells."""
    wasm = exported(
        """(if (i64.eqz (local.get 0)) (then unreachable))
        (loop (br_if 0 (i64.ne (local.get 1)
            (local.tee 2 (i64.add (local.get 2) (i64.const 1))))))
        (i64.add (local.get 0) (local.get 2))""",
        "(param i64 i64) (result i64) (local i64)",
    )
    async with quiet_cache(yield_fuel=1000) as cache:
        function = await cache.register("f", wasm, args=("i64", "i64"), returns="i64")
        for first in (1, 0, 2, 3, 0, 4):
            for second in (1, 20_000, 3):
                if first:
                    assert await function.call(first, second) == first + second
                else:
                    with pytest.raises(TrapError):
                        await function.call(first, second)
        check_invariants(cache)


def test_what_is_evicted_is_freed() -> None:
    """2,000 instances of 1 MiB that came, were used, trapped or were cancelled, and went again."""
    grown = run_python(
        """
        import resource, trio
        from engine.support import WASI, quiet_cache
        from trio_wasmcache import HostFunction, TrapError

        SOURCE = f'''(module
            (import "env" "g" (func $g (param i64) (result i64)))
            (import "{WASI}" "random_get" (func (param i32 i32) (result i32)))
            (memory (export "memory") 16) (table 1000 funcref)
            (func (export "f") (param i64) (result i64)
                (memory.fill (i32.const 0) (i32.const 1) (i32.const 1048576))
                (if (i64.eq (local.get 0) (i64.const 1)) (then unreachable))
                (if (i64.eq (local.get 0) (i64.const 2)) (then (loop br 0)))
                (call $g (local.get 0))))'''

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()

        async def main():
            async with quiet_cache(max_size=0, yield_fuel=2_000_000, offload_after=None) as cache:
                f = await cache.register(
                    "f", SOURCE, args=("i64",), returns="i64",
                    imports={"env": {"g": HostFunction(abs, ("i64",), ("i64",))}},
                )
                for cycle in range(2200):
                    if cycle == 200:
                        before = resident()
                    kind = cycle % 4
                    if kind == 1:
                        try:
                            await f.call(1)
                        except TrapError:
                            pass
                    elif kind == 2:
                        with trio.CancelScope() as scope:
                            async with f.acquire() as lease:
                                scope.deadline = trio.current_time()
                                await lease.call(2)
                        assert scope.cancelled_caught
                    else:
                        assert await f.call(kind) == kind
                    assert cache.stats().loaded_modules == 0
                print(resident() - before)

        trio.run(main)
        """
    )
    # A hundredth of what 2,000 such instances would take.
    assert int(grown) < 20 * MiB
