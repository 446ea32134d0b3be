"""Reentrant host functions on real wasm: depth, slices, threads, starts, and traps."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine.support import wat
from kits import PAGE, WasmtimeKit, add
from peeking import native_of
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    DeadlockError,
    ExitError,
    FuelExhaustedError,
    Function,
    HostFunction,
    InstanceCache,
    LoadError,
    StackOverflowError,
    TrapError,
    Wasi,
    current_lease,
)
from trio_wasmcache._core.policy.shares import CALL_FUEL
from trio_wasmcache._runtime.runner import MAX_INVOKES
from trio_wasmcache.testing import check_invariants, snapshot

GUEST = """(module
  (import "host" "ask" (func $ask (param i64) (result i64)))
  (import "host" "plain" (func $plain (param i64) (result i64)))
  (memory (export "memory") 1)
  (global $calls (mut i64) (i64.const 0))
  (func (export "run") (param i64) (result i64)
    (global.set $calls (i64.add (global.get $calls) (i64.const 1)))
    (call $ask (local.get 0)))
  (func (export "calls") (result i64) (global.get $calls))
  (func (export "again") (param i64) (result i64)
    (i64.add (i64.const 1) (call $ask (i64.sub (local.get 0) (i64.const 1)))))
  (func (export "plainly") (param i64) (result i64) (call $plain (local.get 0)))
  (func (export "spin") (param i64) (result i64)
    (loop (br_if 0 (i64.ne (local.tee 0 (i64.sub (local.get 0) (i64.const 1))) (i64.const 0))))
    (i64.const 77))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "peek") (param i32) (result i32) (i32.load (local.get 0)))
  (func $inmost (unreachable))
  (func $outer (export "trap") (call $inmost))
  (func $down (export "down") (param i32) (result i32)
    (i32.add (i32.const 1) (call $down (local.get 0))))
  (func (export "echo") (param i32 i64 f32 f64) (result f64 f32 i64 i32)
    (local.get 3) (local.get 2) (local.get 1) (local.get 0))
  (func (export "vector") (param v128)))"""


async def put(
    cache: InstanceCache,
    ask: Callable[..., Any],
    plain: Callable[..., Any] = abs,
    **more: Any,
) -> Function:
    """Register the guest with a reentrant host function, and one that is not."""
    imports = {
        "host": {
            "ask": HostFunction(ask, ("i64",), ("i64",), reentrant=True),
            "plain": HostFunction(plain, ("i64",), ("i64",)),
        }
    }
    function: Function = await add(
        cache, more.pop("name", "f"), wat(GUEST), imports=imports, **more
    )
    return function


async def recurse(value: int) -> int:
    """Go down as deep as the value says."""
    if value == 0:
        return 0
    result: int = await current_lease().invoke("again", value)
    return result


async def test_as_deep_as_it_may_be(real: WasmtimeKit) -> None:
    """Sixteen levels, whatever the outer call; one more is an error that names the limit."""
    async with real.open() as cache:
        f = await put(cache, recurse)
        async with f.acquire() as lease:
            for _ in range(2):
                assert await lease.call(MAX_INVOKES) == MAX_INVOKES == 16
        with pytest.raises(StackOverflowError, match="more than 16 deep") as failed:
            await f.call(MAX_INVOKES + 1)
        assert "stack_size" not in str(failed.value)
        assert "f(i64) called with (17)" in str(failed.value)
        # The host function may go on in another way, as no wasm has run.
        refusals = 0

        async def careful(value: int) -> int:
            nonlocal refusals
            try:
                return await recurse(value)
            except StackOverflowError:
                refusals += 1
                return 0

        g = await put(cache, careful, name="g")
        assert await g.call(1000) == MAX_INVOKES
        assert refusals == 1
        check_invariants(cache)


async def test_a_guest_that_recurses_through_its_host_for_ever(real: WasmtimeKit) -> None:
    """It is stopped by name, many times, with Python's stack nearly full or not."""

    async def ask(value: int) -> int:
        result: int = await current_lease().invoke("run", value)
        return result

    async with real.open() as cache:
        f = await put(cache, ask)
        for _ in range(20):
            with pytest.raises(StackOverflowError, match="16 deep"):
                await f.call(5)
        check_invariants(cache)


@pytest.mark.parametrize("left", range(60, 420, 30))
async def test_with_little_left_of_pythons_stack(real: WasmtimeKit, left: int) -> None:
    """`RecursionError`, never a crash in a callback; and the next call works."""

    async def nested(depth: int) -> int:
        if depth:
            return await nested(depth - 1)
        result: int = await f.call(MAX_INVOKES)
        return result

    async with real.open() as cache:
        f = await put(cache, recurse)
        frame, used = sys._getframe(), 0
        while frame is not None:
            frame, used = frame.f_back, used + 1  # type: ignore[assignment]
        with contextlib.suppress(RecursionError):
            assert await nested(sys.getrecursionlimit() - used - left) == MAX_INVOKES
        assert await f.call(3) == 3
        check_invariants(cache)


@pytest.mark.parametrize("offload_after", [None, 0, 1])
async def test_in_slices(real: WasmtimeKit, offload_after: int | None) -> None:
    """Others run meanwhile, and it can be cancelled at once, in a loop without end too."""
    config = CacheConfig(yield_fuel=5_000, offload_after=offload_after, total_fuel=10**15)
    passes = 0

    async def watch() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async def ask(value: int) -> int:
        result: int = await current_lease().invoke("spin", value)
        return result

    async with real.open(config) as cache, trio.open_nursery() as nursery:
        f = await put(cache, ask)
        nursery.start_soon(watch)
        assert await f.call(100_000) == 77
        assert passes > (50 if offload_after is None else 0)
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_after, 5, scope)
            await f.call(10**14)
        assert scope.cancelled_caught
        check_invariants(cache)
        assert await f.call(5) == 77
        nursery.cancel_scope.cancel()


async def _cancel_after(passes: int, scope: trio.CancelScope) -> None:
    for _ in range(passes):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_the_fuel_is_that_of_the_outer_call(real: WasmtimeKit) -> None:
    """A loop without end in an export ends with it; so does one in the host function."""

    async def ask(value: int) -> int:
        lease = current_lease()
        if value:
            await lease.invoke("spin", -1)
        while True:
            await lease.invoke("calls")

    async with real.open(CacheConfig(total_fuel=1_000_000, yield_fuel=10_000)) as cache:
        f = await put(cache, ask)
        for value in (1, 0):
            async with f.acquire() as lease:
                with pytest.raises(FuelExhaustedError, match="total_fuel is 1000000"):
                    await lease.call(value)
                assert lease.fuel_consumed == 1_000_000
        check_invariants(cache)


async def test_the_group_is_charged_with_fuel_once(real: WasmtimeKit) -> None:
    """Not with what the invokes cost besides, which it is charged with as CPU time."""
    charged: list[float] = []

    async with real.open() as cache:
        cache._pool.runner.cpu_clock = lambda: 0.0  # what is charged by time, besides

        def fuel() -> float:
            group = snapshot(cache).group("main")
            return group.virtual_time * group.shares

        async def ask(value: int) -> int:
            before = fuel()
            for _ in range(value):
                await current_lease().invoke("calls")
            charged.append(fuel() - before)
            return value

        f = await put(cache, ask)
        burnt = []
        async with f.acquire() as lease:
            for times in (0, 10):
                assert await lease.call(times) == times
                assert lease.fuel_consumed is not None
                burnt.append(lease.fuel_consumed)
    spent = 10 * CALL_FUEL
    assert 0 <= charged[1] - charged[0] <= burnt[1] - burnt[0] - spent + CALL_FUEL


async def test_values_of_every_type(real: WasmtimeKit) -> None:
    """As wasm has them; integers may be unsigned on the way in, and are signed on the way out."""
    seen: list[object] = []

    async def ask(value: int) -> int:
        lease = current_lease()
        for one in ((1, 2, 0.5, 0.1), (2**32 - 1, 2**64 - 1, math.inf, 3), (-5, -6, True, -0.0)):
            seen.append(await lease.invoke("echo", *one))
        for bad, error in (
            ((1, 2, 3), TypeError),
            ((1, 2, 3, 4, 5), TypeError),
            ((1.5, 2, 3, 4), TypeError),
            ((2**32, 2, 3, 4), OverflowError),
            ((1, -(2**63) - 1, 3, 4), OverflowError),
            ((1, 2, 1e39, 4), OverflowError),
            ((1, 2, 3, 10**400), OverflowError),
            ((1, 2, "3", 4), TypeError),
            ((None, 2, 3, 4), TypeError),
        ):
            with pytest.raises(error, match=r"invoke\('echo'\)"):
                await lease.invoke("echo", *bad)  # type: ignore[arg-type]
        with pytest.raises(LookupError, match="can't cross"):
            await lease.invoke("vector", 1)
        for name in ("memory", "nothing", ""):
            with pytest.raises(LookupError, match="exports no function"):
                await lease.invoke(name)
        with pytest.raises((LookupError, TypeError)):
            await lease.invoke(5)  # type: ignore[arg-type]
        return value

    async with real.open() as cache:
        f = await put(cache, ask)
        assert await f.call(3) == 3
    assert seen == [
        (0.1, 0.5, 2, 1),
        (3.0, math.inf, -1, -1),
        (-0.0, 1.0, -6, -5),
    ]


async def test_memory_is_read_anew(real: WasmtimeKit) -> None:
    """An export may have grown it, and a host function within; all see the same bytes."""

    async def ask(value: int) -> int:
        lease = current_lease()
        memory = lease.memory
        size = memory.size
        if value == 2:
            memory.write(size - 4, b"\x07\0\0\0")
            assert await lease.invoke("peek", size - 4) == 7
            await lease.invoke("run", 1)  # grows it in the host function below
            assert memory.size == size + 3 * PAGE
            assert memory.read(size + PAGE, 4) == b"deep"
            assert memory.read(size - 4, 4) == b"\x07\0\0\0"
            return 2
        assert await lease.invoke("grow", 2) == size // PAGE
        assert memory.size == size + 2 * PAGE
        assert memory.grow(1) == size + 2 * PAGE
        memory.write(size + PAGE, b"deep")
        assert await lease.invoke("peek", size + PAGE) == int.from_bytes(b"deep", "little")
        return 1

    async with real.open() as cache:
        f = await put(cache, ask)
        async with f.acquire() as lease:
            assert await lease.call(2) == 2
            assert lease.memory.size == 4 * PAGE
        assert cache.stats().total_size >= 5 * PAGE


async def test_memory_is_not_lent_during_an_invoke(real: WasmtimeKit) -> None:
    """Another task of the host function can't look into a guest that runs."""
    config = CacheConfig(yield_fuel=1000, offload_after=None)

    async def ask(value: int) -> int:
        lease = current_lease()

        async def peek() -> None:
            await trio.lowlevel.checkpoint()
            with pytest.raises(trio.BusyResourceError):
                lease.memory.read(0, 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(peek)
            assert await lease.invoke("spin", 10_000) == 77
        return value

    async with real.open(config) as cache:
        f = await put(cache, ask)
        assert await f.call(1) == 1


async def test_frames_are_the_guests(real: WasmtimeKit) -> None:
    """Of the export and of the outer call, without what is between them."""
    seen: list[TrapError] = []

    async def ask(value: int) -> int:
        try:
            await current_lease().invoke("trap")
        except TrapError as error:
            seen.append(error)
            raise
        return value

    async with real.open() as cache:
        f = await put(cache, ask)
        with pytest.raises(TrapError, match="unreachable") as failed:
            await f.call(1)
    assert [frame.function for frame in failed.value.frames] == ["inmost", "outer", "func[2]"]
    assert "trampoline" not in str(failed.value)
    assert seen == [failed.value]


async def test_a_stack_that_overflows(real: WasmtimeKit) -> None:
    """The limit is that of the stack, and its remedy is named."""

    async def ask(value: int) -> int:
        await current_lease().invoke("down", 1)
        return value

    async with real.open() as cache:
        f = await put(cache, ask)
        with pytest.raises(StackOverflowError, match="stack_size is"):
            await f.call(1)
        check_invariants(cache)


async def test_host_functions_within(real: WasmtimeKit) -> None:
    """A plain one in an export: what it raises ends it all; it may not invoke."""
    leases: list[object] = []

    def plain(value: int) -> int:
        leases.append(current_lease())
        if value < 0:
            raise ZeroDivisionError
        return value + 1

    async def plain_later(value: int) -> int:
        with pytest.raises(RuntimeError, match="reentrant=True"):
            await current_lease().invoke("calls")
        return plain(value)

    async def ask(value: int) -> int:
        try:
            result: int = await current_lease().invoke("plainly", value)
        except ZeroDivisionError:
            return 0
        return result

    async with real.open() as cache:
        for name, host in (("f", plain), ("g", plain_later)):
            f = await put(cache, ask, host, name=name)
            async with f.acquire() as lease:
                assert await lease.call(4) == 5
                assert leases.pop() is lease
                with pytest.raises(ZeroDivisionError):
                    await lease.call(-1)
                with pytest.raises(trio.BrokenResourceError):
                    await lease.call(4)
        assert cache.stats().evictions["corrupted"] == 2


async def test_leases_that_wait_for_each_other(real: WasmtimeKit) -> None:
    """A nested acquire is an edge of the graph of waits, however deep the host function is."""

    async with real.open() as cache:
        here, there = trio.Event(), trio.Event()

        def crossing(mine: trio.Event, other: trio.Event, name: str) -> Callable[..., Any]:
            async def ask(value: int) -> int:
                if value:
                    return int(await current_lease().invoke("run", value - 1))
                mine.set()
                await other.wait()
                async with cache.acquire(name, ("i64",)):
                    return 1

            return ask

        f = await put(cache, crossing(here, there, "g"), name="f")
        g = await put(cache, crossing(there, here, "f"), name="g")
        outcomes: list[object] = []

        async def use(function: Function) -> None:
            try:
                outcomes.append(await function.call(2))
            except DeadlockError as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, f)
            nursery.start_soon(use, g)
        assert sorted(type(one).__name__ for one in outcomes) == ["DeadlockError", "int"]
        check_invariants(cache)


STARTS = """(module
  (import "host" "ask" (func $ask (param i64) (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (param i64) (result i64) (call $ask (local.get 0)))
  (func (export "double") (param i64) (result i64) (i64.mul (local.get 0) (i64.const 2)))
  (func $begin {export} (drop (call $ask (i64.const -1)))) {start})"""


@pytest.mark.parametrize("start", ["start", "_initialize"])
@pytest.mark.parametrize("isolation", ["reuse", "reset"])
async def test_a_start_can_not_invoke(real: WasmtimeKit, start: str, isolation: Any) -> None:
    """By name; it may call the host function, which can invoke later."""
    parts = {"start": ("", "(start $begin)"), "_initialize": ('(export "_initialize")', "")}
    export, section = parts[start]
    refusals: list[str] = []

    async def ask(value: int) -> int:
        lease = current_lease()
        if value == -1:
            lease.memory.write(0, b"begun")
            with pytest.raises(RuntimeError, match="after its start") as refused:
                await lease.invoke("double", 1)
            refusals.append(str(refused.value))
            return 0
        assert lease.memory.read(0, 5) == b"begun"
        result: int = await lease.invoke("double", value)
        return result

    imports = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",), reentrant=True)}}
    async with real.open() as cache:
        wasm = wat(STARTS.format(export=export, start=section))
        f = await add(cache, "f", wasm, imports=imports, isolation=isolation)
        for value in (3, 4):
            assert await f.call(value) == 2 * value
        assert refusals


async def test_a_start_that_lets_it_fail(real: WasmtimeKit) -> None:
    """Then the load fails with what the host function raised."""

    async def ask(value: int) -> int:
        result: int = await current_lease().invoke("double", value)
        return result

    imports = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",), reentrant=True)}}
    async with real.open() as cache:
        f = await add(
            cache, "f", wat(STARTS.format(export="", start="(start $begin)")), imports=imports
        )
        with pytest.raises((RuntimeError, LoadError), match="after its start"):
            await f.call(1)
        check_invariants(cache)


async def test_an_exit_within(real: WasmtimeKit) -> None:
    """It ends the outer call too, with its status."""
    wasm = wat(
        """(module
        (import "host" "ask" (func $ask (param i64) (result i64)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "run") (param i64) (result i64) (call $ask (local.get 0)))
        (func (export "leave") (param i32) (call $exit (local.get 0))))"""
    )
    seen: list[ExitError] = []

    async def ask(value: int) -> int:
        try:
            await current_lease().invoke("leave", value)
        except ExitError as error:
            seen.append(error)
        return value

    imports = {"host": {"ask": HostFunction(ask, ("i64",), ("i64",), reentrant=True)}}
    async with real.open() as cache:
        f = await add(cache, "f", wasm, imports=imports, wasi=Wasi())
        for status in (0, 3):
            with pytest.raises(ExitError) as failed:
                await f.call(status)
            assert failed.value.status == status
            assert seen.pop() is failed.value


async def test_results_that_overlap(real: WasmtimeKit) -> None:
    """Many leases of one module in host functions at once: none gets the values of another."""

    async def ask(value: int) -> int:
        await trio.lowlevel.checkpoint()
        result: int = await current_lease().invoke("again", value)
        await trio.lowlevel.checkpoint()
        return result if value else 0

    async def deep(value: int) -> int:
        if value % 10 == 0:
            await wait_all_tasks_blocked()
            return 1000 * value
        return await ask(value)

    async with real.open(CacheConfig(main_capacity=50)) as cache:
        f = await put(cache, deep, concurrency=20)
        results: dict[int, int] = {}

        async def use(value: int) -> None:
            async with f.acquire() as lease:
                for _ in range(3):
                    results[value] = await lease.call(value)

        async with trio.open_nursery() as nursery:
            for value in range(20):
                nursery.start_soon(use, value)
    for value, result in results.items():
        assert result == 1000 * (value - value % 10) + value % 10


async def test_what_has_no_reentrant_import_pays_nothing(real: WasmtimeKit) -> None:
    """Its instances are one module, as ever; the others have a trampoline, without a memory."""
    async with real.open() as cache:
        imports = {
            "host": {
                "ask": HostFunction(abs, ("i64",), ("i64",)),
                "plain": HostFunction(abs, ("i64",), ("i64",)),
            }
        }
        f = await add(cache, "f", wat(GUEST), imports=imports)
        g = await put(cache, recurse, name="g")
        async with f.acquire() as plain, g.acquire() as reentrant:
            assert native_of(plain).module.pre and not native_of(plain).plan.parts
            assert await plain.call(1) == await reentrant.call(1) == 1
            assert native_of(plain).stages is None
            # Eight bytes for each element of its table.
            assert plain.size < reentrant.size < plain.size + 200
            assert native_of(reentrant).reserved[0] == native_of(plain).reserved[0]
        assert f.code_size < g.code_size
        assert f.worst_size < g.worst_size < f.worst_size + 200


NAMES = [
    *(("host", str(number)) for number in range(1, 6)),
    ("host", "table"),
    ("other", "1"),
    ("other", "\0start"),
    ("other", "6"),
    ("", ""),
    ("host", "\0table"),
    ("host", "\0table2"),
    ("host", "\0" + "6"),
    ("host", "\0trio_wasmcache:start"),
    ("other", "\0trio_wasmcache:table:0"),
]


@pytest.mark.parametrize("reentrant", [NAMES, NAMES[:6], NAMES[::2], NAMES[1::2], NAMES[6:]])
async def test_names_of_imports(real: WasmtimeKit, reentrant: list[tuple[str, str]]) -> None:
    """Whatever they are, each import is its own host function, beside others of its module."""
    imports: dict[str, dict[str, HostFunction]] = {}
    written = calls = ""
    for number, (module, name) in enumerate(NAMES):

        async def ask(value: int, number: int = number) -> int:
            return value * 5 + number

        async def back(value: int, number: int = number) -> int:
            return int(await current_lease().invoke("times", value)) + number

        again = (module, name) in reentrant
        imports.setdefault(module, {})[name] = HostFunction(
            back if again else ask, ("i64",), ("i64",), reentrant=again
        )
        quoted = name.replace("\0", "\\00")
        written += f'(import "{module}" "{quoted}" (func $f{number} (param i64) (result i64)))'
        calls = f"(call $f{number} {calls or '(local.get 0)'})"
    wasm = (
        f'(module {written} (memory (export "memory") 1)'
        f'(func (export "run") (param i64) (result i64) {calls})'
        '(func (export "times") (param i64) (result i64) (i64.mul (local.get 0) (i64.const 5))))'
    )
    expected = 1
    for number in range(len(NAMES)):
        expected = expected * 5 + number
    async with real.open() as cache:
        f = await add(cache, "f", wat(wasm), imports=imports)
        for _ in range(2):
            assert await f.call(1) == expected
