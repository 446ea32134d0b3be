"""With a seed and a fixed clock, a call is the same each time: result, fuel, memory, output."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from engine.support import WASI, quiet_cache

from trio_wasmcache import GuestError, Lease, Wasi

UDFS = Path(__file__).parents[1] / "udfs"
# Another length of slices, other places to run; none of it may be seen by a guest.
PLACES: list[dict[str, Any]] = [
    {},
    {"yield_fuel": 1000, "offload_after": None},
    {"yield_fuel": 3333, "offload_after": 2},
]
ASKS = f"""(module
  (import "{WASI}" "random_get" (func $random (param i32 i32) (result i32)))
  (import "{WASI}" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (import "{WASI}" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func $begin (drop (call $random (i32.const 0) (i32.const 32)))
    (drop (call $time (i32.const 1) (i64.const 0) (i32.const 32))))
  (start $begin)
  (func (export "f") (param $n i64) (result i64)
    (i32.store (i32.const 256) (i32.const 64)) (i32.store (i32.const 260) (i32.const 100))
    (i32.store (i32.const 80) (i32.const 1)) (i32.store (i32.const 64) (i32.const 0))
    (loop
      (drop (call $random (i32.const 1024) (i32.wrap_i64 (i64.mul (local.get $n) (i64.const 999)))))
      (i64.store (i32.const 88) (i64.load (i32.const 1024)))
      (drop (call $poll (i32.const 64) (i32.const 512) (i32.const 1) (i32.const 600)))
      (drop (call $time (i32.const 0) (i64.const 0) (i32.const 1032)))
      (drop (call $write (i32.const 1) (i32.const 256) (i32.const 1) (i32.const 700)))
      (local.set $n (i64.sub (local.get $n) (i64.const 1)))
      (br_if 0 (i64.gt_s (local.get $n) (i64.const 0))))
    (if (i64.eq (i64.and (i64.load (i32.const 1032)) (i64.const 1)) (i64.const 0))
      (then (unreachable)))
    (i64.load (i32.const 1032))))"""


@frozen
class Case:
    """A function, and calls of it."""

    name: str
    wasm: Any
    calls: Sequence[tuple[Any, ...]]
    args: tuple[str, ...] = ()
    returns: str | None = None
    abi: str | None = None


TEXT = "Grüße aus Köln " * 300
CASES = [
    Case("f", ASKS, [(1,), (7,), (50,)], ("i64",), "i64"),
    Case("upper_packed", "buffer", [(TEXT,), ("",)], ("str",), "str", "buffer"),
    Case("hash", "buffer", [(TEXT.encode(),)], ("bytes",), "u32", "buffer"),
    Case("count", "scylla_v1", [(TEXT, 101)], ("text", "int"), "int"),
    Case("join", "scylla_v2", [(TEXT, "x")], ("text", "text"), "text"),
    Case("title", "title", [(TEXT,), ("a b",)], ("text",), "text"),
    Case("divide", "words", [(7, 2), (7, 0)], ("i64", "i64"), "i64"),
    Case("item", "panics", [(1,), (9,)], ("i64",), "i64"),
    Case("_start", "command", [()]),
]


async def trace(lease: Lease, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """All that a call shows: its result or error, its fuel, its memory."""
    try:
        shown: Any = await lease.call(*values)
    except GuestError as error:
        shown = (type(error), str(error), error.output)
    memory = hashlib.sha256(lease.memory.read(0, lease.memory.size)).hexdigest()
    return shown, lease.fuel_consumed, memory


@pytest.mark.parametrize("isolation", ["fresh", "reset", "reuse"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.wasm}-{case.name}"[-20:])
async def test_two_runs_are_the_same(case: Case, isolation: str) -> None:
    """In new caches, wherever and in whatever slices they run; and in the next lease."""
    wasi = Wasi(args=("prog", "x", "3"), env={"A": "b"}, stdin=b"in\n", random=42, clock=1e9)
    traces = []
    for limits in PLACES:
        async with quiet_cache(**limits) as cache:
            function = await cache.register(
                case.name,
                case.wasm if case.wasm.startswith("(") else UDFS / f"{case.wasm}.wasm",
                args=case.args,
                returns=case.returns,
                abi=case.abi,
                isolation=isolation,
                wasi=wasi,
            )
            for values in case.calls:
                for _ in range(1 if isolation == "reuse" else 2):
                    async with function.acquire() as lease:
                        traces.append((values, await trace(lease, values)))
    assert len({repr(one) for one in traces}) == len(case.calls)


async def test_without_them_runs_differ() -> None:
    """What the test above looks at does depend on random bytes and time."""
    traces = set()
    for wasi in (Wasi(clock=1), Wasi(random=1, clock=1), Wasi(random=2, clock=1)):
        async with quiet_cache() as cache:
            f = await cache.register("f", ASKS, args=("i64",), returns="i64", wasi=wasi)
            async with f.acquire() as lease:
                traces.add(repr(await trace(lease, (5,))))
    assert len(traces) == 3


async def test_two_batches_are_the_same() -> None:
    """As a whole, wherever they run; each row begins its random bytes and its output anew."""
    columns = [[1, 2, 3] * 50]
    traces = set()
    for limits in PLACES:
        async with quiet_cache(**limits) as cache:
            wasi = Wasi(random=42, clock=1e9)
            body = ASKS.replace("(unreachable)", "(nop)")
            f = await cache.register("f", body, args=("i64",), returns="i64", wasi=wasi)
            async with f.acquire() as lease:
                results = (await lease.map(columns)).tolist()
                data = lease.memory.read(0, lease.memory.size)
                traces.add((*results, lease.fuel_consumed, data))
    assert len(traces) == 1
