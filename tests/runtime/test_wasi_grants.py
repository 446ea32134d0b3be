"""`Wasi`: arguments, environment, input, a seed and a clock; what it refuses; and commands."""

from __future__ import annotations

import copy
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from engine.support import WASI, quiet_cache, wat
from engine.test_wasi import register
from kits import ListLogger, open_real_cache

import trio_wasmcache._runtime.session as session
from trio_wasmcache import (
    ExitError,
    FuelExhaustedError,
    Function,
    HostFunction,
    InstanceCache,
    TrapError,
    Wasi,
)
from trio_wasmcache.testing import check_invariants

UDFS = Path(__file__).parents[1] / "udfs"
EFAULT = 21
EXIT = f'(import "{WASI}" "proc_exit" (func $exit (param i32)))'


def strings(data: bytes, pointers: int, count: int) -> list[bytes]:
    """What a guest finds by its pointers."""
    found = struct.unpack_from(f"<{count}I", data, pointers)
    return [data[at : data.index(b"\0", at)] for at in found]


@pytest.mark.parametrize(
    ("what", "wasi", "wanted"),
    [
        ("args", Wasi(args=("prog", "", "ü\udc80")), [b"prog", b"", b"\xc3\xbc\x80"]),
        ("args", Wasi(args=["x"] * 1024), [b"x"] * 1024),
        ("environ", Wasi(env={"A": "1", "PATH": "a=b"}), [b"A=1", b"PATH=a=b"]),
    ],
)
async def test_arguments_and_environment(what: str, wasi: Wasi, wanted: list[bytes]) -> None:
    """Sizes first, then pointers and bytes, at the cost of a copy; or a fault, and nothing."""
    size = sum(len(text) + 1 for text in wanted)
    async with quiet_cache() as cache:
        async with (await register(cache, f"{what}_sizes_get", wasi=wasi)).acquire() as lease:
            assert await lease.call(0, 4) == 0
            assert lease.memory.read(0, 8) == struct.pack("<II", len(wanted), size)
        async with (await register(cache, f"{what}_get", wasi=wasi)).acquire() as lease:
            assert await lease.call(64, 8192) == 0
            data = lease.memory.read(0, 65536)
            assert strings(data, 64, len(wanted)) == wanted
            assert lease.fuel_consumed is not None
            paid = lease.fuel_consumed - 4000 - 100 * len(wanted) - -(-size // 2)
            assert 0 < paid < 50
            for pointers, at in ((65536 - 4, 8192), (64, 65536 - size + 1), (-4, 0), (0, -4)):
                expected = 0 if pointers == 65536 - 4 and len(wanted) == 1 else EFAULT
                assert await lease.call(pointers, at) == expected


async def test_input_is_read_anew_by_each_call() -> None:
    """In pieces of any sizes, by several buffers, at most 32 KiB at once; then it is at its end."""
    stdin = bytes(range(256)) * 256
    wasm = wat(f"""(module
      (import "{WASI}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 2)
      (func (export "f") (param $calls i32) (result i32)
        (loop
          (if (call $read (i32.const 0) (i32.const 0) (i32.const 2) (i32.const 16))
            (then (unreachable)))
          (local.set $calls (i32.sub (local.get $calls) (i32.const 1)))
          (br_if 0 (local.get $calls)))
        (i32.load (i32.const 16))))""")
    async with quiet_cache() as cache:
        f = await cache.register("f", wasm, args=("i32",), returns="i32", wasi=Wasi(stdin=stdin))
        async with f.acquire() as lease:
            lease.memory.write(0, struct.pack("<IIII", 1000, 3, 2000, 300))
            for calls in (1, 2, 10):
                assert await lease.call(calls) == 303
                start = 303 * (calls - 1)
                assert lease.memory.read(1000, 3) == stdin[start : start + 3]
                assert lease.memory.read(2000, 300) == stdin[start + 3 : start + 303]
            assert await lease.call(217) == 65536 - 216 * 303
            assert await lease.call(218) == 0
            lease.memory.write(0, struct.pack("<IIII", 1000, 60000, 2000, 60000))
            assert await lease.call(1) == 32768
            assert lease.fuel_consumed is not None
            assert 0 < lease.fuel_consumed - 4000 - 200 - 32768 // 2 < 50
            assert (await lease.map([[1, 2, 1]])).tolist() == [32768] * 3
            lease.memory.write(0, struct.pack("<IIII", 131_000, 600, 2000, 60000))
            with pytest.raises(TrapError):  # a fault, and nothing is read
                await lease.call(1)


async def test_random_bytes_of_a_seed_are_one_stream() -> None:
    """The same in each call, instance, row and function, however it is cut; others for others."""
    async with quiet_cache() as cache:

        async def draw(seed: int, *sizes: int) -> bytes:
            function = await register(cache, "random_get", wasi=Wasi(random=seed), replace=True)
            async with function.acquire() as lease:
                for size in sizes:
                    assert await lease.call(0, size) == 0
                    first = lease.memory.read(0, size)
                    assert await lease.call(0, size) == 0
                    assert lease.memory.read(0, size) == first
                return first

        longest = await draw(7, 5, 3000, 65536)
        assert len(set(longest)) == 256
        assert (await draw(7, 100)) == longest[:100]
        assert (await draw(8, 100)) != longest[:100]
        assert (await draw(-7, 100)) != longest[:100]
        assert len(await draw(10**6000, 8)) == 8
    # What it is must not change from one release or Python to the next.
    assert longest[:8].hex() == "3f15f72dbddae72a"


TWICE = f"""(module (import "{WASI}" "random_get" (func $get (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "f") (param $first i32) (result i64)
    (drop (call $get (i32.const 0) (local.get $first)))
    (drop (call $get (local.get $first) (i32.sub (i32.const 16) (local.get $first))))
    (i64.load (i32.const 8))))"""


async def test_rows_of_a_batch_are_as_calls() -> None:
    """Each row begins the stream anew."""
    async with quiet_cache() as cache:
        wasi = Wasi(random=3)
        f = await cache.register("f", TWICE, args=("i32",), returns="i64", wasi=wasi)
        one = await f.call(0)
        async with f.acquire() as lease:
            assert (await lease.map([[0, 1, 8, 16, 15]])).tolist() == [one] * 5


TIMES = f"""(module
  (import "{WASI}" "clock_time_get" (func $get (param i32 i64 i32) (result i32)))
  (import "{WASI}" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "now") (param i32) (result i64)
    (drop (call $get (local.get 0) (i64.const 0) (i32.const 0))) (i64.load (i32.const 0)))
  (func (export "later") (param $loops i64) (result i64)
    (drop (call $get (i32.const 0) (i64.const 0) (i32.const 0)))
    (loop (local.set $loops (i64.sub (local.get $loops) (i64.const 1)))
      (br_if 0 (i64.gt_s (local.get $loops) (i64.const 0))))
    (drop (call $get (i32.const 1) (i64.const 0) (i32.const 8)))
    (i64.sub (i64.load (i32.const 8)) (i64.load (i32.const 0))))
  (func (export "slept") (param $ns i64) (result i64)
    (drop (call $get (i32.const 0) (i64.const 0) (i32.const 0)))
    (i32.store (i32.const 64) (i32.const 0)) (i32.store (i32.const 80) (i32.const 1))
    (i64.store (i32.const 88) (local.get $ns))
    (if (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 200))
      (then (unreachable)))
    (drop (call $get (i32.const 0) (i64.const 0) (i32.const 8)))
    (i64.sub (i64.load (i32.const 8)) (i64.load (i32.const 0)))))"""


async def add(cache: InstanceCache, export: str, param: str, wasi: Wasi, **more: Any) -> Function:
    return await cache.register(
        export, TIMES, args=(param,), returns="i64", wasi=wasi, replace=True, **more
    )


async def test_a_fixed_clock_advances_with_fuel_and_waits() -> None:
    """From the same time in each call, both clocks; a year of sleep takes no time."""
    async with quiet_cache() as cache:
        now = await add(cache, "now", "i32", Wasi(clock=1.5))
        first = await now.call(0)
        assert 1_500_004_000 < first < 1_500_004_100  # the host call costs 4,000 units of fuel
        assert [await now.call(0), await now.call(1)] == [first, first]
        later = await add(cache, "later", "i64", Wasi(clock=0))
        few, many = await later.call(10), await later.call(100_010)
        assert 4000 < few < 5000
        assert 100_000 <= many - few <= 1_000_000
        async with later.acquire() as lease:
            assert await lease.call(100_010) == many
            assert lease.fuel_consumed is not None
            assert many < lease.fuel_consumed
        slept, year = await add(cache, "slept", "i64", Wasi(clock=0)), 365 * 86400 * 10**9
        with trio.fail_after(60):
            assert 0 < await slept.call(year) - year < 20_000
            # The last time that WASI can express is not exceeded.
            assert -(2**63) < await slept.call(-1) < 0
        check_invariants(cache)


async def test_slices_do_not_change_what_a_fixed_clock_shows() -> None:
    """Fuel is what it counts, whatever yields and wherever it runs."""
    seen = set()
    for yield_fuel, offload_after in ((1000, None), (7777, 2), (1_000_000, 1)):
        async with quiet_cache(yield_fuel=yield_fuel, offload_after=offload_after) as cache:
            later = await add(cache, "later", "i64", Wasi(clock=0))
            seen.add(await later.call(50_000))
    assert len(seen) == 1


async def test_a_function_is_asked_for_the_time() -> None:
    """At each read; what it raises is the call's error, and what is no time is refused."""
    times: list[Any] = [1.25, 3, -1, float("nan"), 2**64, "noon", True]
    async with quiet_cache() as cache:
        now = await add(cache, "now", "i32", Wasi(clock=lambda: times.pop(0)))
        assert [await now.call(0), await now.call(1)] == [1_250_000_000, 3 * 10**9]
        for kind in (ValueError, ValueError, ValueError, TypeError, TypeError):
            with pytest.raises(kind, match="a clock gives seconds"):
                await now.call(0)
        with pytest.raises(IndexError, match="pop from empty list"):
            await now.call(0)

        async def never() -> float:
            raise AssertionError("nobody awaits it")

        now = await add(cache, "now", "i32", Wasi(clock=lambda: never()))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must not return an awaitable"):
            await now.call(0)
        check_invariants(cache)


async def test_without_a_clock_it_is_the_system_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `Wasi()` as of none."""
    monkeypatch.setattr(session, "wall_clock", lambda: 5)
    monkeypatch.setattr(session, "monotonic_clock", lambda: 1000)
    async with quiet_cache() as cache:
        now = await add(cache, "now", "i32", Wasi())
        async with now.acquire() as lease:
            assert [await lease.call(0), await lease.call(1)] == [5, 1]


async def test_equal_grants_share_a_module(log: ListLogger) -> None:
    """By value, and functions by identity; `Wasi()` is the same as none."""

    def write(stream: str, line: str) -> None:
        raise AssertionError

    async with open_real_cache(logger=log) as cache:
        for number, wasi in enumerate(
            (
                None,
                Wasi(),
                Wasi(stdout="tail"),
                Wasi(args=["a"], env={"A": "b"}, stdout=write),
                Wasi(args=("a",), env={"A": "b"}, stdout=write),
                Wasi(args=("a",), env={"A": "b"}, stdout=write, clock=1),
            )
        ):
            await cache.register(
                f"f{number}", TIMES, args=("i32",), returns="i64", export="now", wasi=wasi
            )
    numbers = [fields["module_number"] for fields in log.fields("registered")]
    assert numbers == [1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        ({"args": "prog"}, TypeError, "args must be a sequence of str"),
        ({"args": (b"x",)}, TypeError, "one is b'x'"),
        ({"args": ("a\0b",)}, ValueError, "a null character"),
        ({"args": ("x" * 65536,)}, ValueError, "65536 bytes, an end for each included, got 65537"),
        ({"args": ("",) * 1025}, ValueError, "1024 strings, got 1025"),
        ({"env": [("a", "b")]}, TypeError, "env must be a mapping"),
        ({"env": {"A": 1}}, TypeError, "env must be a mapping of str to str"),
        ({"env": {"A=B": "1"}}, ValueError, "can't be the name of a variable"),
        ({"env": {"": "1"}}, ValueError, "can't be the name of a variable"),
        ({"env": {"A": "\0"}}, ValueError, "a null character"),
        ({"stdin": "text"}, TypeError, "stdin must be bytes"),
        ({"stdout": "file"}, ValueError, 'stdout must be "drop", "tail", "log" or a function'),
        ({"stderr": 2}, TypeError, "stderr must be a str or a function"),
        ({"stderr": trio.sleep}, TypeError, "stderr must not be an async function"),
        ({"random": 1.5}, TypeError, "random must be an int or None"),
        ({"random": True}, TypeError, "random must be an int or None"),
        ({"clock": "now"}, TypeError, "seconds since 1970 as a number"),
        ({"clock": -1}, ValueError, "seconds from 0 to 18446744073"),
        ({"clock": float("inf")}, ValueError, "seconds from 0 to 18446744073"),
        ({"clock": trio.sleep}, TypeError, "clock must not be an async function"),
    ],
)
def test_bad_grants_are_refused(bad: dict[str, Any], kind: type[Exception], words: str) -> None:
    """When they are made, by a message with the parameter and the value."""
    with pytest.raises(kind, match=words):
        Wasi(**bad)


async def test_what_is_no_wasi_is_refused() -> None:
    """By name, before anything is compiled."""
    async with quiet_cache() as cache:
        with pytest.raises(TypeError, match=r"f\(\): wasi must be a Wasi"):
            await cache.register("f", "(module)", args=(), wasi={"args": ()})  # type: ignore[arg-type]


async def test_a_host_function_takes_the_place_of_wasi_s() -> None:
    """Whatever `wasi` grants."""
    async with quiet_cache() as cache:
        given = {WASI: {"random_get": HostFunction(lambda at, n: 99, ("i32", "i32"), ("i32",))}}
        function = await register(cache, "random_get", imports=given, wasi=Wasi(random=1))
        assert await function.call(0, 8) == 99


# -- commands


def command(body: str, rest: str = "") -> str:
    """A module with a counter, whose `_start` runs the body."""
    return f"""(module {EXIT} (memory (export "memory") 1) {rest}
      (global $n (mut i64) (i64.const 0))
      (func (export "_start")
        (global.set $n (i64.add (global.get $n) (i64.const 1)))
        (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1))) {body})
      (func (export "count") (result i64) (i64.add (global.get $n) (i64.load (i32.const 8)))))"""


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
@pytest.mark.parametrize("body", ["", "(call $exit (i32.const 0)) (unreachable)"])
async def test_a_command_runs_in_a_pristine_instance(isolation: str, body: str) -> None:
    """Whatever was asked; the verdict says so; exit status 0 is a good end, and a hit follows."""
    async with quiet_cache() as cache:
        run = await cache.register(
            "run", command(body), args=(), export="_start", isolation=isolation
        )
        wanted = "reset: " if isolation == "reset" else "fresh: every lease gets a new instance"
        assert run.isolation == isolation
        assert run.isolation_verdict.startswith(wanted)
        for _ in range(3):
            async with run.acquire() as lease:
                assert await lease.call() is None
                assert lease.memory.read(8, 8) == struct.pack("<Q", 1)
                if body:
                    with pytest.raises(trio.BrokenResourceError, match="has exited"):
                        await lease.call()
                    assert "exited" in repr(lease)
                check_invariants(cache)
            check_invariants(cache)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.evictions["corrupted"]) == (2, 1, 0)
        assert stats.idle_instances == 1
    check_invariants(cache)


async def test_reuse_of_a_command_says_why_it_is_fresh() -> None:
    """In words."""
    async with quiet_cache() as cache:
        run = await cache.register("_start", command(""), args=())
        assert "_start is a command, which runs once" in run.isolation_verdict


async def test_other_exits_stay_errors() -> None:
    """Any other status, any other export, an export of another type, a start, and a batch."""
    exits = f"""(module {EXIT} (memory (export "memory") 1)
      (func (export "f") (call $exit (i32.const 0)))
      (func (export "_start") (param i64) (call $exit (i32.const 0))))"""
    async with quiet_cache() as cache:
        three = command("(call $exit (i32.const 3))")
        run = await cache.register("run", three, args=(), export="_start", isolation="reset")
        for _ in range(2):
            with pytest.raises(ExitError, match=r"proc_exit\(3\)") as caught:
                await run.call()
            assert caught.value.status == 3
        f = await cache.register("f", exits, args=())
        with pytest.raises(ExitError, match=r"proc_exit\(0\)"):
            await f.call()
        start = await cache.register("start", exits, args=("i64",), export="_start")
        assert start.isolation_verdict.startswith("reuse: ")
        with pytest.raises(ExitError, match=r"proc_exit\(0\)"):
            await start.call(1)
        zero = await cache.register(
            "run", command("(call $exit (i32.const 0))"), args=(), export="_start", replace=True
        )
        async with zero.acquire() as lease:
            with pytest.raises(ExitError, match="in row 0 of a batch"):
                await lease.map([], rows=2)
        check_invariants(cache)


async def test_a_command_of_c_gets_what_it_is_given() -> None:
    """Built by clang with wasi-libc: arguments, environment, input, random bytes, time, status."""
    lines: list[tuple[str, str]] = []
    wasi = Wasi(
        args=("prog", "a b", "0"),
        env={"NAME": "Grüße"},
        stdin=b"one\ntwo\nthree",
        stdout=lambda stream, line: lines.append((stream, line)),
        random=1,
        clock=86400,
    )
    async with quiet_cache() as cache:
        run = await cache.register(
            "run", UDFS / "command.wasm", args=(), export="_start", isolation="reset", wasi=wasi
        )
        assert run.isolation_verdict.startswith("reset: ")
        for _ in range(2):
            lines.clear()
            assert await run.call() is None
            assert [line for _, line in lines if not line.startswith("random ")] == [
                "argument prog",
                "argument a b",
                "argument 0",
                "name Grüße",
                "input 13 bytes, 3 lines",
                "time 86400, slept 3600",
            ]
            assert {stream for stream, _ in lines} == {"stdout"}
        assert cache.stats().hits == 1
        failing = Wasi(args=("prog", "7"))
        run = await cache.register(
            "run", UDFS / "command.wasm", args=(), export="_start", wasi=failing, replace=True
        )
        with pytest.raises(ExitError) as caught:
            await run.call()
        assert caught.value.status == 7
        assert caught.value.output.endswith("done\n")
        assert "name (none)\ninput 0 bytes, 0 lines" in caught.value.output
        check_invariants(cache)


async def test_a_seed_lets_a_start_be_reset_that_asks_for_random_bytes() -> None:
    """With bytes of the system it does not do the same each time; with a seed it does."""
    wasm = f"""(module
      (import "{WASI}" "random_get" (func $random (param i32 i32) (result i32)))
      (import "{WASI}" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
      (memory (export "memory") 1)
      (func $begin (drop (call $random (i32.const 0) (i32.const 8)))
        (drop (call $time (i32.const 0) (i64.const 0) (i32.const 8))))
      (start $begin)
      (func (export "_initialize") (drop (call $random (i32.const 16) (i32.const 8)))
        (drop (call $time (i32.const 1) (i64.const 0) (i32.const 24))))
      (func (export "f") (result i64)
        (i64.store (i32.const 0) (i64.xor (i64.load (i32.const 0)) (i64.const -1)))
        (i64.load (i32.const 0))))"""
    async with quiet_cache() as cache:
        plain = await cache.register("f", wasm, args=(), returns="i64", isolation="reset")
        assert "its start does not do the same each time" in plain.isolation_verdict
        memories = set()
        for isolation in ("reset", "fresh"):
            f = await cache.register(
                "f",
                wasm,
                args=(),
                returns="i64",
                isolation=isolation,
                wasi=Wasi(random=5, clock=9),
                replace=True,
            )
            assert f.isolation_verdict.startswith(f"{isolation}: ")
            for _ in range(3):
                async with f.acquire() as lease:
                    memories.add(lease.memory.read(0, 32))
                    await lease.call()
        assert len(memories) == 1
        (first, start, second, begin) = struct.unpack("<4Q", memories.pop())
        assert first != second
        assert 9 * 10**9 < start < begin < 9 * 10**9 + 100_000


@pytest.mark.parametrize("isolation", ["reuse", "reset"])
async def test_wild_pointers_are_faults(isolation: str) -> None:
    """For every function that is given something, each address outside; and no fuel, no copy."""
    wasi = Wasi(args=("a", "b"), env={"A": "b"}, stdin=b"abc", stdout="log", random=1, clock=1)
    async with quiet_cache() as cache:
        for name, values in (
            ("args_get", (0, 64)),
            ("args_sizes_get", (0, 4)),
            ("environ_get", (0, 64)),
            ("environ_sizes_get", (0, 4)),
            ("random_get", (0, 8)),
        ):
            function = await register(cache, name, wasi=wasi, isolation=isolation)
            async with function.acquire() as lease:
                assert await lease.call(*values) == 0
                places = (0,) if name == "random_get" else (0, 1)
                for place in places:
                    for wild in (65533, 65536, -1, -(2**31), 2**31 - 1):
                        asked = [*values]
                        asked[place] = wild
                        assert await lease.call(*asked) == EFAULT
        for name in ("fd_read", "fd_write"):
            function = await register(cache, name, wasi=wasi, isolation=isolation)
            async with function.acquire() as lease:
                for iovecs, count, result_at in (
                    (65533, 1, 64),
                    (-8, 1, 64),
                    (0, 1, 65533),
                    (0, 1, -1),
                ):
                    lease.memory.write(0, struct.pack("<II", 0, 10))
                    descriptor = int(name == "fd_write")
                    assert await lease.call(descriptor, iovecs, count, result_at) == EFAULT
                for at, size in ((65530, 10), (2**32 - 1, 1), (0, 2**32 - 1), (2**31, 2**31)):
                    lease.memory.write(0, struct.pack("<II", at, size))
                    assert await lease.call(descriptor, 0, 1, 64) == EFAULT
        check_invariants(cache)


async def test_too_little_fuel_copies_nothing() -> None:
    """What is copied is paid for first."""
    async with quiet_cache(total_fuel=6000, yield_fuel=1000) as cache:
        wasi = Wasi(args=("x" * 5000,), stdin=bytes(5000))
        function = await register(cache, "args_get", wasi=wasi)
        async with function.acquire() as lease:
            with pytest.raises(FuelExhaustedError):
                await lease.call(0, 64)
            assert lease.memory.read(0, 65536) == bytes(65536)
        function = await register(cache, "fd_read", wasi=wasi)
        async with function.acquire() as lease:
            lease.memory.write(0, struct.pack("<II", 1000, 5000))
            lease.memory.write(1000, b"\xff" * 5000)
            with pytest.raises(FuelExhaustedError):
                await lease.call(0, 0, 1, 64)
            assert lease.memory.read(1000, 5000) == b"\xff" * 5000


async def test_a_sleep_by_a_fixed_clock_lets_others_run() -> None:
    """It does not wait, but a guest that sleeps for ever does not keep the loop, and is stopped."""
    async with quiet_cache(total_fuel=10**12) as cache:
        wasm = f"""(module
          (import "{WASI}" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "f") (loop
            (i32.store (i32.const 16) (i32.const 1)) (i64.store (i32.const 24) (i64.const 1000))
            (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
            (br 0))))"""
        f = await cache.register("f", wasm, args=(), wasi=Wasi(clock=0))
        with trio.move_on_after(0.01) as scope:
            await f.call()
        assert scope.cancelled_caught
        check_invariants(cache)


def test_it_is_a_value() -> None:
    """Equal ones are equal, hashable, and can't be changed; the environment neither."""
    one = Wasi(args=["a"], env={"A": "b"}, stdin=bytearray(b"x"))
    assert one == Wasi(args=("a",), env={"A": "b"}, stdin=b"x")
    assert hash(one) == hash(Wasi(args=("a",), env={"A": "b"}, stdin=b"x"))
    assert one != Wasi(args=("a",))
    with pytest.raises(AttributeError):
        one.args = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        one.env["A"] = "c"  # type: ignore[index]
    assert "secret" * 100 not in repr(Wasi(stdin=b"secret" * 100))


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_it_is_copied_and_pickled(duplicate: Callable[[Wasi], Wasi]) -> None:
    """Its environment is a view that can be neither."""
    wasi = Wasi(args=["a"], env={"B": "1", "A": "2"}, stdin=b"x", stdout="log", random=7, clock=0.5)
    made = duplicate(wasi)
    assert made == wasi
    assert list(made.env.items()) == [("B", "1"), ("A", "2")]
    assert duplicate(Wasi(stderr=print)).stderr is print
