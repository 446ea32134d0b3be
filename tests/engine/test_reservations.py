"""What is booked of addresses and mappings, beside what the kernel shows in ``/proc/self/maps``."""

from __future__ import annotations

import json

import pytest
from engine.support import run_python

from trio_wasmcache import CacheConfig
from trio_wasmcache._core.config import MiB, SystemLimits
from trio_wasmcache._engine.wasmtime import reservations
from trio_wasmcache._engine.wasmtime.reservations import read_system_limits

MEASURE = """
import json, sys
from pathlib import Path
import trio
from engine.support import quiet_cache, wat
from parts import TwoParts
from trio_wasmcache._core.config import MiB

fields, use, isolation = json.loads(sys.argv[1])
FEW, MANY = 4, 36
PART = \"\"\"(memory 1) (memory 2) (data (i32.const 9) "data") (table 3 funcref) (global (mut i32)
  (i32.const 0)) (func (export "run") (param i64) (result i64) (local.get 0))\"\"\"
TWO_PARTS = TwoParts(wat(f"(module {PART})"))

def maps():
    lines = Path("/proc/self/maps").read_text().splitlines()
    lines = [line.split()[0].split("-") for line in lines]
    return sum(int(end, 16) - int(start, 16) for start, end in lines), len(lines)

async def measure():
    limits = {"memory_limit": 64 * MiB, "table_limit": 10**6, "max_code_size": 2**31,
              "max_size": 2**33, "max_instance_size": 2**30, "offload_after": None}
    async with quiet_cache(**limits) as cache:
        f = await cache.register(
            "f", f"(module {fields})", args=("i64",), returns="i64", concurrency=MANY,
            isolation=isolation, abi=TWO_PARTS if "part" in fields else None,
        )

        async def hold(started, ended):
            async with f.acquire() as lease:
                if use == "map":
                    await lease.map([[1, 2]])
                    await lease.map([[1, None]])
                else:
                    await lease.call(1)
                    await lease.call(1)  # the first one may have no stack of its own
                started.append(f)
                await ended.wait()

        async def running(count):
            ended, started = trio.Event(), []
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(hold, started, ended)
                while len(started) < count:
                    await trio.lowlevel.checkpoint()
                ended.set()
            stats = cache.stats()
            return *maps(), stats.address_space, stats.mappings

        # Now they are idle, each with all that it reserves.
        few, many = await running(FEW), await running(MANY)
        print(json.dumps([(b - a) / (MANY - FEW) for a, b in zip(few, many)]))

trio.run(measure)
"""
# With a loop, so that its calls are sliced, on a stack of its own.
SAME = '(func (export "f") (param i64) (result i64) (loop) (local.get 0))'
DATA = '(data (i32.const 9) "data")'
DATA64 = '(data (i64.const 9) "data")'
CASES = {
    "no memory": (SAME, "call", "reuse"),
    "a memory": (f"(memory 1) {SAME}", "call", "reuse"),
    "a memory with data": (f"(memory 3) {DATA} {SAME}", "call", "reuse"),
    "ten memories": (f"{'(memory 1)' * 10} {SAME}", "call", "reuse"),
    "ten empty memories": (f"{'(memory 0)' * 10} {SAME}", "call", "reuse"),
    "a memory of 64 bits": (f"(memory i64 1) {DATA64} {SAME}", "call", "reuse"),
    "a memory, and a table of references": (
        f"(memory 1) (table 2 externref) {SAME}",
        "call",
        "reuse",
    ),
    "a memory, and a table of null exceptions": (
        f"(memory 1) (table 2 nullexnref) {SAME}",
        "call",
        "reset",
    ),
    "a memory, and a global for a reference": (
        f"(memory 1) (global externref (ref.null extern)) {SAME}",
        "call",
        "reset",
    ),
    "a memory, and a segment of references": (
        f"(memory 1) (elem externref (ref.null extern)) {SAME}",
        "call",
        "reuse",
    ),
    "a memory, and exceptions": (
        """(memory 1) (tag $e) (func (export "f") (param i64) (result i64)
        (block $h (try_table (catch $e $h) (throw $e))) (local.get 0))""",
        "call",
        "reuse",
    ),
    "a large table": (f"(table 100000 funcref) {SAME}", "call", "reuse"),
    "batches": (f"(memory 1) {DATA} {SAME}", "map", "reuse"),
    "reset": (
        f"(memory 1) (table 2 funcref) (global (mut i32) (i32.const 0)) {DATA} {SAME}",
        "call",
        "reset",
    ),
    **{
        f"two parts, {use}, {isolation}": (
            f"""(import "part" "run" (func (param i64) (result i64))) (memory 1) {DATA} {SAME}""",
            use,
            isolation,
        )
        for use, isolation in (("call", "reuse"), ("map", "reuse"), ("call", "reset"))
    },
    "one that grows": (
        """(memory 0) (func (export "f") (param i64) (result i64)
        (i64.extend_i32_s (memory.grow (i32.const 1))))""",
        "call",
        "reuse",
    ),
}
# A few mappings of C's and Python's own may come and go meanwhile.
NOISE = 0.5


@pytest.mark.parametrize("case", CASES)
def test_what_is_booked_is_what_the_kernel_shows(case: str) -> None:
    """Of each instance, never less than there is, and for what has memories hardly more."""
    space, mappings, booked_space, booked_mappings = json.loads(
        run_python(MEASURE, json.dumps(CASES[case]))
    )
    assert space <= booked_space + MiB
    assert mappings <= booked_mappings + NOISE
    if "memor" in case:
        assert booked_space <= 1.01 * space
    assert booked_mappings <= 2 * mappings + 32


def test_the_systems_limits_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three quarters of the smaller of `RLIMIT_AS` and 2^47, and of the kernel's mappings."""
    unlimited = reservations.resource.RLIM_INFINITY
    for allowed, space in ((unlimited, 2**47), (2**50, 2**47), (2**32, 2**32)):
        monkeypatch.setattr(reservations.resource, "getrlimit", lambda _, it=allowed: (it, it))
        assert read_system_limits().address_space == space * 3 // 4


def test_a_system_that_tells_no_limit_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Of mappings; what the configuration says goes before what the system does."""
    for text, limit in ((None, None), ("many", None), ("1000\n", 750)):
        monkeypatch.setattr(reservations, "MAX_MAP_COUNT", tmp_path / f"limit {text}")
        if text is not None:
            reservations.MAX_MAP_COUNT.write_text(text)
        assert read_system_limits().mappings == limit
    limits = SystemLimits(address_space=5)
    assert limits.max_address_space(CacheConfig()) == 5
    assert limits.max_address_space(CacheConfig(max_address_space=7)) == 7
