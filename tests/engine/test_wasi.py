"""WASI preview 1, with nothing granted: modules of ordinary toolchains run, and get nowhere."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import trio
import trio.testing
from engine.support import WASI, exported, quiet_cache, wat

from trio_wasmcache import (
    ExitError,
    FuelExhaustedError,
    Function,
    HostFunction,
    InstanceCache,
    LoadError,
)
from trio_wasmcache._core.wasm.admission import WASI_TYPES
from trio_wasmcache.testing import check_invariants

EBADF, EFAULT, EINVAL = 8, 21, 28


def imported(name: str) -> str:
    kind = WASI_TYPES[name]
    return (
        f'(import "{WASI}" "{name}" (func ${name} (param {" ".join(kind.params)})'
        f" (result {' '.join(kind.results)})))"
    )


async def register(cache: InstanceCache, function: str, **more: Any) -> Function:
    """A function with the types of a WASI function, which calls it."""
    kind = WASI_TYPES[function]
    gets = " ".join(f"local.get {number}" for number in range(len(kind.params)))
    wasm = exported(
        f"{gets} call ${function}",
        f"(param {' '.join(kind.params)}) (result {' '.join(kind.results)})",
        f'{imported(function)} (memory (export "memory") 1 2)',
    )
    return await cache.register(
        function, wasm, args=kind.params, returns=kind.results, export="f", **more
    )


async def test_all_of_preview_1_is_there() -> None:
    """A module that imports every function, with the types that register checks, instantiates."""
    wasm = wat(f'(module {"".join(map(imported, WASI_TYPES))} (func (export "f")))')
    assert len(WASI_TYPES) == 46
    async with quiet_cache() as cache:
        assert await (await cache.register("f", wasm, args=())).call() is None
        check_invariants(cache)


async def test_output_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    """fd_write to output and errors takes all it is given, and nobody sees it."""
    async with quiet_cache() as cache, (await register(cache, "fd_write")).acquire() as lease:
        lease.memory.write(1000, b"you must not see this\n")
        lease.memory.write(0, struct.pack("<II", 1000, 22))
        for descriptor in (1, 2):
            assert await lease.call(descriptor, 0, 1, 100) == 0
            assert lease.memory.read(100, 4) == struct.pack("<I", 22)
        assert await lease.call(7, 0, 1, 100) == EBADF
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("function", ["args_sizes_get", "environ_sizes_get"])
async def test_there_are_no_arguments_and_no_environment(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count and size are 0, whatever the environment of the process is."""
    monkeypatch.setenv("SECRET", "not for guests")
    async with quiet_cache() as cache, (await register(cache, function)).acquire() as lease:
        lease.memory.write(0, b"\xff" * 8)
        assert await lease.call(0, 4) == 0
        assert lease.memory.read(0, 8) == bytes(8)


async def test_there_are_no_files_and_no_input() -> None:
    """No folder is open, none can be opened, and input is at its end."""
    async with quiet_cache() as cache:
        for descriptor in (3, 4, 100):
            assert (
                await (await register(cache, "fd_prestat_get", replace=True)).call(descriptor, 0)
                == EBADF
            )
        function = await register(cache, "path_open")
        assert await function.call(3, 0, 0, 1, 0, 0, 0, 0, 100) == EBADF
        async with (await register(cache, "fd_read")).acquire() as lease:
            lease.memory.write(0, struct.pack("<III", 1000, 50, 99))
            assert await lease.call(0, 0, 1, 8) == 0
            assert lease.memory.read(8, 4) == bytes(4)


async def test_random_bytes_are_random() -> None:
    """random_get fills the memory, differently each time, and faults outside of it."""
    async with quiet_cache() as cache, (await register(cache, "random_get")).acquire() as lease:
        seen = set()
        for _ in range(5):
            assert await lease.call(64, 32) == 0
            seen.add(lease.memory.read(64, 32))
        assert len(seen) == 5
        assert lease.memory.read(0, 64) == bytes(64)
        assert await lease.call(65536, 1) == EFAULT
        assert await lease.call(65000, -1) == EFAULT


async def test_clocks_run() -> None:
    """The clocks of WASI give the time, and not earlier than before."""
    async with quiet_cache() as cache:
        function = await register(cache, "clock_time_get")
        async with function.acquire() as lease:
            times = []
            for _ in range(3):
                assert await lease.call(1, 0, 0) == 0
                times.append(lease.memory.read(0, 8)[::-1])
            assert times == sorted(times)
            assert times[0] > bytes(8)


@pytest.mark.parametrize("status", [0, 1, 125, 126, 255, -1])
async def test_an_exit_is_an_error_with_its_status(status: int) -> None:
    """proc_exit ends the call with ExitError, 0 included; the next call gets a new instance."""
    async with quiet_cache() as cache:
        function = await register(cache, "proc_exit")
        for _ in range(2):
            with pytest.raises(
                ExitError, match=rf"proc_exit\(i32\).*proc_exit\({status}\)"
            ) as caught:
                await function.call(status)
            assert caught.value.status == status
            assert caught.value.function == "proc_exit"
            assert caught.value.values == (status,)
        assert cache.stats().evictions["corrupted"] == 2
        check_invariants(cache)


async def test_a_module_without_memory_is_told_so() -> None:
    """A WASI call that needs the memory that a module does not export faults."""
    wasm = exported(
        "(call $random_get (i32.const 0) (i32.const 1))", "(result i32)", imported("random_get")
    )
    async with quiet_cache() as cache:
        function = await cache.register("f", wasm, args=(), returns="i32")
        assert await function.call() == EFAULT


GREEDY = r"""(module
  (import "wasi_snapshot_preview1" "{name}" (func $greedy {type}))
  (memory (export "memory") 64)
  (data (i32.const 0) "\00\00\00\00\00\00\40\00")
  (func (export "f") (loop (drop (call $greedy {values})) (br 0))))"""


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("random_get", "(param i32 i32) (result i32)", "(i32.const 0) (i32.const 4194304)"),
        (
            "fd_write",
            "(param i32 i32 i32 i32) (result i32)",
            "(i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)",
        ),
    ],
)
async def test_a_guest_can_not_keep_the_loop_by_calling_wasi(
    name: str, kind: str, values: str
) -> None:
    """What costs in proportion to a length makes way for others, and can be cancelled."""
    wasm = GREEDY.format(name=name, type=kind, values=values)
    async with quiet_cache() as cache:
        function = await cache.register("f", wasm, args=())
        passes = 0
        async with trio.open_nursery() as nursery:

            async def others() -> None:
                nonlocal passes
                while passes < 50:
                    passes += 1
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

            nursery.start_soon(others)
            await function.call()
        assert passes == 50
        assert cache.stats().evictions["corrupted"] == 1


async def test_what_the_host_does_for_a_guest_is_fuel_of_its_call() -> None:
    """A guest that has the host make random bytes for ever burns its budget by that alone."""
    wasm = exported(
        "(loop (drop (call $random_get (i32.const 0) (i32.const 65536))) (br 0))",
        "",
        f'{imported("random_get")} (memory (export "memory") 1)',
    )
    async with quiet_cache(total_fuel=1_000_000) as cache:
        function = await cache.register("f", wasm, args=())
        async with function.acquire() as lease:
            with pytest.raises(FuelExhaustedError, match="all fuel is burnt"):
                await lease.call()
            assert lease.fuel_consumed == 1_000_000  # each of the calls costs 262,144, and 4,000
        async with function.acquire() as lease:
            with pytest.raises(FuelExhaustedError, match="in row 0 of a batch"):
                await lease.map([], rows=1)
        check_invariants(cache)


def clock(timeout: int, userdata: int = 7, absolute: bool = False) -> bytes:
    """A subscription of poll_oneoff to a clock, in nanoseconds."""
    return struct.pack("<QB7xI4xQQH6x", userdata, 0, 1, timeout, 0, absolute)


async def test_sleeping_is_a_wait_of_the_task() -> None:
    """While a guest sleeps an hour, others run, and it can be cancelled."""
    async with quiet_cache() as cache:
        sleeper, other = await register(cache, "poll_oneoff"), await register(cache, "sched_yield")
        async with trio.open_nursery() as nursery, sleeper.acquire() as lease:
            lease.memory.write(0, clock(3600 * 10**9))
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_when_asleep, scope, other)
                await lease.call(0, 256, 1, 512)
            assert scope.cancelled_caught
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)


async def cancel_when_asleep(scope: trio.CancelScope, other: Function) -> None:
    await trio.testing.wait_all_tasks_blocked()
    assert await other.call() == 0
    scope.cancel()


async def test_a_sleep_ends_with_an_event() -> None:
    """The earliest of several timeouts is slept and reported; an absolute one by its clock."""
    async with quiet_cache() as cache:
        function = await register(cache, "poll_oneoff")
        async with function.acquire() as lease:
            for subscriptions, winner in (
                (clock(1000, 7), 7),
                (clock(10**18, 1) + clock(1000, 2) + clock(10**18, 3), 2),
                (clock(10**18, 1) + clock(1, 4, absolute=True), 4),
                (clock(2**64 - 1, 1, absolute=True) + clock(1000, 5), 5),
            ):
                lease.memory.write(0, subscriptions)
                lease.memory.write(256, b"\xff" * 40)
                assert await lease.call(0, 256, len(subscriptions) // 48, 512) == 0
                assert lease.memory.read(256, 32) == struct.pack("<QHB21x", winner, 0, 0)
                assert lease.memory.read(288, 8) == b"\xff" * 8
                assert lease.memory.read(512, 4) == struct.pack("<I", 1)


async def test_a_poll_that_asks_for_nonsense_gets_an_errno() -> None:
    """Nothing, too much, what is not open, or addresses outside of the memory: an errno."""
    async with quiet_cache() as cache:
        function = await register(cache, "poll_oneoff")
        async with function.acquire() as lease:
            lease.memory.write(0, clock(0))
            lease.memory.write(48, struct.pack("<QB7xI28x", 1, 1, 3))
            lease.memory.write(1024, struct.pack("<QB7xI28x", 1, 3, 0))
            lease.memory.write(1072, clock(0)[:16] + struct.pack("<I28x", 2))
            for values, errno in (
                ((0, 256, 0, 512), EINVAL),
                ((0, 256, 65, 512), EINVAL),
                ((0, 256, -1, 512), EINVAL),
                ((48, 256, 1, 512), EBADF),
                ((0, 256, 2, 512), EBADF),
                ((1024, 256, 1, 512), EINVAL),
                ((1072, 256, 1, 512), EINVAL),
                ((65530, 256, 1, 512), EFAULT),
                ((-1, 256, 1, 512), EFAULT),
                ((0, 65530, 1, 512), EFAULT),
                ((0, 256, 1, 65533), EFAULT),
                ((0, 256, 1, 512), 0),
            ):
                assert await lease.call(*values) == errno


async def test_a_host_function_may_stand_for_one_of_wasi() -> None:
    """What the application gives under WASI's name is taken instead of WASI's own."""
    given = {
        "random_get": HostFunction(lambda at, n: at + n, ("i32", "i32"), ("i32",)),
        "poll_oneoff": HostFunction(lambda a, b, c, d: 77, ("i32",) * 4, ("i32",)),
    }
    async with quiet_cache() as cache:
        function = await register(cache, "random_get", imports={WASI: given})
        assert await function.call(40, 2) == 42
        function = await register(cache, "poll_oneoff", imports={WASI: given})
        assert await function.call(0, 0, 0, 0) == 77
        function = await register(cache, "sched_yield", imports={WASI: given})
        assert await function.call() == 0


REACTOR = """(module
  (global $ready (mut i64) (i64.const 0))
  (func (export "_initialize") (global.set $ready (i64.add (global.get $ready) (i64.const 1))))
  (func (export "ready") (result i64) (global.get $ready)))"""
STUCK = """(module (func (export "_initialize") (loop (br 0))) (func (export "ready")))"""


async def test_a_reactor_is_initialized_once_before_the_first_call() -> None:
    """WASI asks it: toolchains put constructors there."""
    async with quiet_cache() as cache:
        ready = await cache.register("ready", REACTOR, args=(), returns="i64")
        assert [await ready.call(), await ready.call()] == [1, 1]


async def test_an_initialize_that_never_ends_is_a_load_that_failed() -> None:
    """It burns its fuel in slices, and nothing of the instance stays."""
    async with quiet_cache(total_fuel=1000, yield_fuel=100) as cache:
        stuck = await cache.register("ready", STUCK, args=())
        with pytest.raises(LoadError) as caught:
            await stuck.call()
        assert isinstance(caught.value.__cause__, FuelExhaustedError)
        assert cache.stats().running_instances == 0
