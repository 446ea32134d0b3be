"""Memories, tables and globals that a module imports and is given, on real WebAssembly."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any

import pytest
from batch.routes import drives
from engine.support import quiet_cache, wat
from hypothesis import given, strategies as st
from kits import WasmtimeKit
from parts import TwoParts

from trio_wasmcache import (
    CodeMemoryError,
    HostFunction,
    HostGlobal,
    HostMemory,
    HostTable,
    LinkError,
    LoadError,
    MiB,
    ModuleTooLargeError,
    SignatureError,
    TrapError,
    Wasi,
    current_lease,
)
from trio_wasmcache._core.wasm.custom import code_offset
from trio_wasmcache.testing import check_invariants, snapshot

PAGE = 65536
# Counts its calls in a global, keeps its argument in a memory and a function in a table; adds all.
STATEFUL = wat(
    """(module
    (import "env" "memory" (memory 1 4))
    (import "env" "table" (table 3 funcref))
    (import "env" "base" (global $base i32))
    (import "env" "calls" (global $calls (mut i64)))
    (data (global.get $base) "\\05")
    (elem (i32.const 1) func $seven)
    (export "calls" (global $calls))
    (func $seven (result i64) (i64.const 7))
    (func $nine (export "nine") (result i64) (i64.const 9))
    (func (export "f") (param i64) (result i64) (local $sum i64)
      (local.set $sum (i64.add (i64.load8_u (global.get $base))
        (i64.add (call_indirect (result i64) (i32.const 1)) (global.get $calls))))
      (i64.store8 (global.get $base) (local.get 0))
      (table.set (i32.const 1) (ref.func $nine))
      (global.set $calls (i64.add (global.get $calls) (i64.const 100)))
      (local.get $sum)))"""
)
GIVEN = {
    "memory": HostMemory(),
    "table": HostTable(),
    "base": HostGlobal("u32", 70),
    "calls": HostGlobal("i64", 1000),
}
I64 = {"args": ("i64",), "returns": "i64", "export": "f"}


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_all_of_them_are_the_instances_own(isolation: str) -> None:
    """They begin as they were given, and are left, new or put back in the next lease."""
    async with quiet_cache() as cache:
        f = await cache.register("f", STATEFUL, imports={"env": GIVEN}, isolation=isolation, **I64)
        assert f.isolation_verdict.startswith(isolation)
        for number in range(3):
            async with f.acquire() as lease:
                first = 5 + 7 + 1000
                if isolation == "reuse" and number:
                    first = 3 + 9 + 1000 + 200 * number
                assert await lease.call(2) == first
                again = 2 + 9 + (1100 if first == 1012 else 1100 + 200 * number)
                assert await lease.call(3) == again
                assert lease.memory.read(70, 1) == b"\3"
                check_invariants(cache)
        assert cache.stats().misses == 1


async def test_other_imports_make_another_module() -> None:
    """Equal ones share the compiled module; -0.0 is not 0.0, and a missing one is no other one."""
    wasm = wat(
        """(module (import "env" "g" (global $g f64))
        (func (export "f") (param i64) (result i64)
          (i64.add (local.get 0) (i64.reinterpret_f64 (global.get $g)))))"""
    )
    values = (0.0, -0.0, 0, 1.5, 1.5, math.nan, math.nan)
    results = [0, -(2**63), 0, 0x3FF8 << 48, 0x3FF8 << 48, 0x7FF8 << 48, 0x7FF8 << 48]
    async with quiet_cache() as cache:
        found = []
        for number, value in enumerate(values):
            imports = {"env": {"g": HostGlobal("f64", value)}}
            f = await cache.register(f"f{number}", wasm, imports=imports, **I64)
            found.append(await f.call(0))
        assert found == results
        assert len(snapshot(cache).modules) == 4
        check_invariants(cache)


async def test_host_functions_see_the_imported_memory() -> None:
    """In a call and in the start function, though the module exports no memory."""
    wasm = wat(
        """(module (import "env" "m" (memory 1)) (import "env" "look" (func $look))
        (data (i32.const 8) "data") (start $look)
        (func (export "f") (param i64) (result i64)
          (i64.store (i32.const 8) (local.get 0)) (call $look) (i64.load (i32.const 0))))"""
    )
    seen: list[bytes] = []

    def look() -> None:
        memory = current_lease().memory
        seen.append(memory.read(8, 4))
        memory.write(0, b"\x2a")

    imports = {"env": {"m": HostMemory(), "look": HostFunction(look, (), ())}}
    async with quiet_cache() as cache:
        f = await cache.register("f", wasm, imports=imports, **I64)
        assert await f.call(0x6F6C6C6548) == 0x2A
        assert seen == [b"data", b"Hell"]


async def test_wasi_reads_and_writes_the_imported_memory() -> None:
    """As it does with an exported one."""
    wasm = wat(
        """(module (import "env" "m" (memory 1))
        (import "wasi_snapshot_preview1" "fd_write"
          (func $write (param i32 i32 i32 i32) (result i32)))
        (data (i32.const 0) "\\10\\00\\00\\00\\06\\00\\00\\00") (data (i32.const 16) "hello\\n")
        (func (export "f") (param i64) (result i64)
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (i64.load (i32.const 8))))"""
    )
    lines: list[str] = []
    wasi = Wasi(stdout=lambda stream, line: lines.append(line))
    async with quiet_cache() as cache:
        f = await cache.register("f", wasm, imports={"env": {"m": HostMemory()}}, wasi=wasi, **I64)
        assert await f.call(0) == 6
    assert lines == ["hello"]


async def test_buffers_cross_through_the_imported_memory() -> None:
    """In calls and in batches, with a driver, and grown for arguments within the limits."""
    wasm = wat(
        """(module (import "env" "memory" (memory 1))
        (func (export "f") (param $at i32) (param $size i32) (result i64) (local $sum i64)
          (block (loop (br_if 1 (i32.eqz (local.get $size)))
            (local.set $size (i32.sub (local.get $size) (i32.const 1)))
            (local.set $sum (i64.add (local.get $sum)
              (i64.load8_u (i32.add (local.get $at) (local.get $size))))) (br 0)))
          (local.get $sum)))"""
    )
    async with quiet_cache() as cache:
        f = await cache.register(
            "f",
            wasm,
            args=("bytes",),
            returns="u64",
            abi="buffer",
            imports={"env": {"memory": HostMemory()}},
        )
        async with f.acquire() as lease:
            assert await lease.call(b"\1\2\3") == 6
            assert await lease.call(bytes([1]) * 100_000) == 100_000
            rows = [bytes([n % 200]) * (n % 50) for n in range(5000)]
            assert list(await lease.map([rows])) == [sum(row) for row in rows]
            assert drives(lease)
            check_invariants(cache)


async def test_numbers_in_a_batch_cross_as_in_any() -> None:
    """A driver calls the export of a module whose imports became its own."""
    async with quiet_cache() as cache:
        f = await cache.register("f", STATEFUL, imports={"env": GIVEN}, **I64)
        async with f.acquire() as lease:
            found = await lease.map([array("q", range(1000))])
            assert list(found)[:3] == [1012, 0 + 9 + 1100, 1 + 9 + 1200]


async def test_limits_are_shared_with_the_modules_own() -> None:
    """All memories together grow to the limit, and all tables."""
    wasm = wat(
        """(module (import "env" "memory" (memory $a 1))
        (import "env" "table" (table $t 10 funcref)) (table $u 10 funcref) (memory $b 1)
        (func (export "f") (param i64) (result i64) (local $n i64)
          (loop (br_if 0 (i32.ne (memory.grow $a (i32.const 1)) (i32.const -1))))
          (loop (br_if 0 (i32.ne (memory.grow $b (i32.const 1)) (i32.const -1))))
          (loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 1)) (i32.const -1))))
          (loop (br_if 0 (i32.ne (table.grow $u (ref.null func) (i32.const 1)) (i32.const -1))))
          (i64.add (i64.extend_i32_u (i32.add (memory.size $a) (memory.size $b)))
            (i64.extend_i32_u (i32.mul (i32.const 1000)
              (i32.add (table.size $t) (table.size $u)))))))"""
    )
    imports = {"env": {"memory": HostMemory(), "table": HostTable()}}
    async with quiet_cache(memory_limit=10 * PAGE, table_limit=40) as cache:
        f = await cache.register("f", wasm, imports=imports, **I64)
        async with f.acquire() as lease:
            before = lease.size
            assert await lease.call(0) == 10 + 40_000
            assert lease.size == before + 8 * PAGE + 20 * 8
            assert lease.memory.size == 5 * PAGE
        large = wat('(module (import "env" "table" (table 41 funcref)) (func (export "f")))')
        with pytest.raises(ModuleTooLargeError, match="table_limit is 40"):
            await cache.register("large", large, args=(), imports=imports, export="f")
    async with quiet_cache(memory_limit=10 * PAGE, max_running_size=9 * PAGE) as cache:
        f = await cache.register("f", wasm, imports=imports, **I64)
        with pytest.raises(CodeMemoryError):
            await f.call(0)


MEMORY, TABLE = '(import "env" "memory" (memory 1))', '(import "env" "table" (table 1 funcref))'
BASE, LOADS = '(import "env" "base" (global i32))', "(drop (i32.load (i32.const 65535)))"
DATA = "a data segment lies outside of its memory (wasm trap: out of bounds memory access)"
ELEMENT = "an element segment lies outside of its table (wasm trap: out of bounds table access)"
SIZE = "that is imported begins with the size that its import declares"
OUTSIDE = {
    f'{MEMORY} {BASE} (data (global.get 0) "ab") (func $f (export "f"))': (
        f"{DATA}; check what imports= gives for env.base; a memory {SIZE}"
    ),
    f'{TABLE} {BASE} (elem (global.get 0) $f) (func $f (export "f"))': (
        f"{ELEMENT}; check what imports= gives for env.base; a table {SIZE}"
    ),
    f'{MEMORY} (data (i32.const 65535) "ab") (func (export "f"))': f"{DATA}; a memory {SIZE}",
    '(memory 1) (data (i32.const 65535) "ab") (func (export "f"))': DATA,
    '(table 1 funcref) (elem (i32.const 1) $f) (func $f (export "f"))': ELEMENT,
    f'{MEMORY} (start $f) (func $f (export "f") {LOADS})': (
        "its start function failed: wasm trap: out of bounds memory access"
    ),
}


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
@pytest.mark.parametrize("source", OUTSIDE)
async def test_segments_outside_are_no_start_function(source: str, isolation: Any) -> None:
    """The message names them, and the imports that may be wrong."""
    env = {"memory": HostMemory(), "table": HostTable(), "base": HostGlobal("i32", PAGE - 1)}
    async with quiet_cache() as cache:
        f = await cache.register(
            "f", wat(f"(module {source})"), args=(), imports={"env": env}, isolation=isolation
        )
        with pytest.raises(LoadError) as caught:
            await f.call()
        first = str(caught.value).splitlines()[0]
        assert first == f"f() could not be instantiated: {OUTSIDE[source]}"


async def test_one_memory_imported_twice_is_not_advised_to_be_given() -> None:
    """It is given."""
    source = """(module (import "e" "m" (memory 1)) (import "e" "m" (memory 1))
      (func (export "f")))"""
    async with quiet_cache() as cache:
        with pytest.raises(LinkError, match=r"it imports e\.m twice, .* as one\.$"):
            await cache.register("f", source, args=(), imports={"e": {"m": HostMemory()}})


async def test_refused_memory_is_named() -> None:
    """As that of any module: the growth that the limit refused, and where it was asked for."""
    wasm = wat(
        """(module (import "env" "memory" (memory 1)) (import "env" "g" (global i64))
        (func (export "f") (param i64) (result i64)
          (if (i32.eq (memory.grow (i32.const 600)) (i32.const -1)) (then (unreachable)))
          (local.get 0)))"""
    )
    imports = {"env": {"memory": HostMemory(), "g": HostGlobal("i64", -(2**60))}}
    async with quiet_cache() as cache:
        f = await cache.register("f", wasm, imports=imports, **I64)
        with pytest.raises(TrapError) as caught:
            await f.call(1)
        assert caught.value.refused_memory == 600 * PAGE
        assert wasm[caught.value.frames[0].offset] == 0x00  # unreachable


async def test_memories_of_64_bits_are_given_as_any() -> None:
    """Addresses are as wide as the import says."""
    wasm = wat(
        """(module (import "env" "m" (memory i64 1)) (data (i64.const 5) "x")
        (func (export "f") (param i64) (result i64) (i64.load8_u (local.get 0))))"""
    )
    async with quiet_cache() as cache:
        f = await cache.register("f", wasm, imports={"env": {"m": HostMemory()}}, **I64)
        assert await f.call(5) == ord("x")


async def test_a_segment_out_of_bounds_fails_as_in_any_module() -> None:
    """The offset may be the application's mistake."""
    wasm = wat(
        """(module (import "env" "m" (memory 1)) (import "env" "at" (global $at i32))
        (data (global.get $at) "x") (func (export "f") (param i64) (result i64) (local.get 0)))"""
    )
    async with quiet_cache() as cache:
        imports = {"env": {"m": HostMemory(), "at": HostGlobal("u32", 2**32 - 1)}}
        f = await cache.register("f", wasm, imports=imports, **I64)
        with pytest.raises(Exception, match="out of bounds memory access"):
            await f.call(0)
        check_invariants(cache)


@pytest.mark.parametrize("where", ["subprocess", "folder"])
async def test_what_is_compiled_elsewhere_is_what_is_given(where: str, tmp_path: Path) -> None:
    """Another value is other code, in the folder of a cache as well."""
    tmp_path.chmod(0o700)
    limits: dict[str, Any] = {"compile_memory": 2048 * MiB}
    if where == "folder":
        limits = {"cache_dir": tmp_path}
    for _ in range(2):
        async with quiet_cache(**limits) as cache:
            for start in (1000, 2000):
                imports = {"env": {**GIVEN, "calls": HostGlobal("i64", start)}}
                f = await cache.register("f", STATEFUL, imports=imports, replace=True, **I64)
                assert await f.call(0) == start + 12


async def test_frames_are_in_the_module_as_it_was_given() -> None:
    """Though its imports, which lie before its code, became longer definitions after them."""
    names = "".join(f'(import "env" "g{n}" (global i64))' for n in range(300))
    reads = "".join(f"(global i64 (global.get {n}))" for n in range(300))
    wasm = wat(
        f"""(module {names} (import "env" "memory" (memory 1)) {reads}
        (func $fails (param i64) (result i64) (unreachable))
        (func (export "f") (param i64) (result i64) (call $fails (local.get 0))))"""
    )
    given = {f"g{n}": HostGlobal("i64", -(2**62) + n) for n in range(300)}
    async with quiet_cache() as cache:
        f = await cache.register(
            "f", wasm, imports={"env": {"memory": HostMemory(), **given}}, **I64
        )
        with pytest.raises(TrapError) as caught:
            await f.call(1)
        offsets = [frame.offset for frame in caught.value.frames]
        assert wasm[offsets[0]] == 0x00  # unreachable
        assert wasm[offsets[1]] == 0x10  # call
        assert all(offset > code_offset(wasm) for offset in offsets)


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_they_are_given_beside_other_parts(isolation: str) -> None:
    """In a store with several core modules, those of the user's module are its own as well."""
    kit = WasmtimeKit()
    wasm = wat(
        """(module (import "part" "run" (func $part (param i64) (result i64)))
        (import "env" "memory" (memory 2 9)) (import "env" "table" (table 3 funcref))
        (import "env" "base" (global $base i32)) (import "env" "calls" (global $calls (mut i64)))
        (data (global.get $base) "\\05") (elem (i32.const 1) func $part) (start $begin)
        (func $begin (i64.store8 (i32.const 0) (i64.const 4)))
        (func $fails (export "fails") (unreachable))
        (func (export "f") (param i64) (result i64)
          (global.set $calls (i64.add (global.get $calls) (i64.const 100)))
          (i64.store8 (i32.const 0)
            (i64.add (i64.load8_u (i32.const 0)) (i64.load8_u (global.get $base))))
          (if (i64.lt_s (local.get 0) (i64.const 0)) (then (call $fails)))
          (i64.add (i64.add (global.get $calls) (i64.load8_u (i32.const 0)))
            (call_indirect (param i64) (result i64) (local.get 0) (i32.const 1)))))"""
    )
    async with kit.open() as cache:
        f = await cache.register(
            "f",
            wasm,
            imports={"env": GIVEN},
            abi=TwoParts(kit.adding(1, pages=3)),
            isolation=isolation,
            **I64,
        )
        assert f.isolation_verdict.startswith(isolation)
        for number in range(3):
            async with f.acquire() as lease:
                kept = number if isolation == "reuse" else 0
                assert await lease.call(10) == 1100 + 100 * kept + 9 + 5 * kept + 11
                assert lease.memory.read(70, 1) == b"\5"
                assert (lease.memory.size, lease.size // PAGE) == (2 * PAGE, 2 + 3 + 1)
        async with f.acquire() as lease:
            column = array("q", [10] * 100)
            assert len({*(await lease.map([column]))}) == 100
        with pytest.raises(TrapError) as caught:
            await f.call(-1)
        assert wasm[caught.value.frames[0].offset] == 0x00  # unreachable, in the bytes as given
        check_invariants(cache)


@pytest.mark.parametrize(
    ("type", "value", "error", "said"),
    [
        ("i32", 3.5, TypeError, "HostGlobal: i32 takes an int, got 3.5"),
        ("i32", "1", TypeError, "HostGlobal: i32 takes an int, got '1'"),
        ("f32", "1", TypeError, "HostGlobal: f32 takes a float, got '1'"),
        ("i32", 2**31, OverflowError, "out of the range of i32"),
        ("u32", -1, OverflowError, "out of the range of u32"),
        ("i64", 2**63, OverflowError, "out of the range of i64"),
        ("f32", 1e300, OverflowError, "too large for f32"),
        ("i32", None, TypeError, "HostGlobal: i32 takes an int, got None"),
        ("funcref", 0, TypeError, "the one value of funcref is None, got 0"),
        ("v128", 0, SignatureError, "HostGlobal: values of type 'v128' can't cross"),
        ("int", 0, SignatureError, "HostGlobal: unknown type 'int'"),
        ("q", 0, SignatureError, "f64; a global can also be funcref or externref"),
        (5, 0, TypeError, "the type of a HostGlobal"),
    ],
)
def test_a_global_of_another_type_is_no_global(
    type: Any, value: Any, error: type[Exception], said: str
) -> None:
    """It is refused where it is made, before any module is read."""
    with pytest.raises(error) as caught:
        HostGlobal(type, value)
    assert said in str(caught.value)


@given(
    st.sampled_from(("i32", "i64", "u32", "u64", "u8", "i16", "bool", "f32", "f64")),
    st.integers() | st.floats() | st.booleans(),
)
def test_equal_globals_have_equal_bits(type: str, value: Any) -> None:
    """Which decide whether two registrations can share a module; and none raises anything else."""
    try:
        one, other = HostGlobal(type, value), HostGlobal(type, value)
    except (TypeError, OverflowError):
        return
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == f"HostGlobal(type={type!r}, value={value!r})"


async def test_values_arrive_as_given() -> None:
    """The ends of the ranges of all types."""
    values = {
        "i32": (-(2**31), 2**31 - 1),
        "u32": (0, 2**32 - 1),
        "i64": (-(2**63), 2**63 - 1),
        "u64": (0, 2**64 - 1),
        "f32": (-0.5, 3.4028234663852886e38, math.inf),
        "f64": (5e-324, 1.7976931348623157e308, -math.inf),
        "bool": (False, True),
    }
    kinds = {"u32": "i32", "u64": "i64", "bool": "i32"}
    async with quiet_cache() as cache:
        for type, several in values.items():
            kind = kinds.get(type, type)
            for number, value in enumerate(several):
                wasm = f"""(module (import "a" "b" (global $g {kind}))
                    (func (export "f") (result {kind}) (global.get $g)))"""
                f = await cache.register(
                    f"{type}_{number}",
                    wasm,
                    args=(),
                    returns=type,
                    export="f",
                    imports={"a": {"b": HostGlobal(type, value)}},
                )
                assert await f.call() == value


async def test_null_references_are_given() -> None:
    """Globals of references are null, and may be set to what the module has."""
    wasm = wat(
        """(module (import "a" "f" (global $f (mut funcref))) (import "a" "e" (global $e externref))
        (func (export "f") (param i64) (result i64)
          (if (ref.is_null (global.get $f))
            (then (global.set $f (ref.func 0)) (return (i64.const 1))))
          (i64.extend_i32_u (i32.add (i32.const 2) (ref.is_null (global.get $e))))))"""
    )
    imports = {"a": {"f": HostGlobal("funcref", None), "e": HostGlobal("externref", None)}}
    async with quiet_cache() as cache:
        for isolation, expected in (("reuse", [1, 3, 3]), ("reset", [1, 1, 1])):
            f = await cache.register(isolation, wasm, imports=imports, isolation=isolation, **I64)
            assert [await f.call(0) for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (HostMemory, "must be an object, not a class: write HostMemory()"),
        (HostTable, "must be an object, not a class: write HostTable()"),
        (HostGlobal, 'must be an object, not a class: write HostGlobal("i32", 0)'),
        (5, "must be a HostFunction(function, params=..., results=...), HostMemory(), HostTable()"),
        (None, "or HostGlobal(type, value), got None"),
    ],
)
async def test_only_these_can_be_given(given: Any, said: str) -> None:
    """Anything else is named with what to write."""
    async with quiet_cache() as cache:
        with pytest.raises(TypeError) as caught:
            await cache.register("f", STATEFUL, imports={"env": {"memory": given}}, **I64)
        assert said in str(caught.value)


async def test_each_misfit_is_named_with_what_to_give() -> None:
    """All of them in one message."""
    imports = {
        "env": {
            "memory": HostTable(),
            "table": HostMemory(),
            "base": HostGlobal("i64", 1),
            "calls": HostFunction(print, (), ()),
        }
    }
    async with quiet_cache() as cache:
        with pytest.raises(LinkError) as caught:
            await cache.register("f", STATEFUL, imports=imports, **I64)
    for said in (
        "env.memory is a memory, but what is given is HostTable(): give HostMemory()",
        "env.table is a table, but what is given is HostMemory(): give HostTable()",
        (
            'env.base is a global of type i32, but what is given is HostGlobal("i64", ...): give '
            'HostGlobal("i32", 0)'
        ),
        'env.calls is a global of type i64, but what is given is a function: give HostGlobal("i64"',
    ):
        assert said in str(caught.value)
    assert "Give what is missing" not in str(caught.value)


async def test_what_no_value_of_python_fits_can_not_be_given() -> None:
    """Vectors and exceptions in globals."""
    async with quiet_cache() as cache:
        for kind in ("v128", "exnref"):
            wasm = wat(f'(module (import "m" "g" (global {kind})) (func (export "run")))')
            for imports in (None, {"m": {"g": HostGlobal("i64", 0)}}):
                with pytest.raises(LinkError, match=f"of type {kind}, which can't be given"):
                    await cache.register("run", wasm, args=(), imports=imports)
