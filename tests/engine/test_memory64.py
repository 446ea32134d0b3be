"""Memories and tables of 64-bit addresses: limited, read and reset as others."""

from __future__ import annotations

import pytest
from engine.support import quiet_cache, wat

from trio_wasmcache import AbiError, MiB, SignatureError
from trio_wasmcache.testing import check_invariants

SOURCE = wat("""(module (memory (export "memory") i64 1) (data (i64.const 8) "\\07")
  (type $f (func (result i64))) (table $t i64 3 funcref) (elem (table $t) (i64.const 1) func $seven)
  (func $seven (type $f) (i64.const 7))
  (func (export "add") (param i64) (result i64)
    (i64.store (i64.const 8) (i64.add (i64.load (i64.const 8)) (local.get 0)))
    (i64.load (i64.const 8)))
  (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0)))
  (func (export "swap") (param i64) (result i64)
    (if (ref.is_null (table.get $t (local.get 0))) (then (return (i64.const -1))))
    (table.set $t (local.get 0) (ref.null func))
    (i64.const 1)))""")


async def test_it_is_reused_or_put_back() -> None:
    """Its own memory and table, in calls and batches; a lease reads and writes it."""
    async with quiet_cache() as cache:
        for isolation, expected in (("reuse", [8, 9, 10]), ("reset", [8, 8, 8])):
            f = await cache.register(
                isolation, SOURCE, args=("i64",), returns="i64", export="add", isolation=isolation
            )
            assert f.isolation_verdict.startswith(isolation)
            assert [await f.call(1) for _ in range(3)] == expected
            async with f.acquire() as lease:
                assert list(await lease.map([[1, 1]])) == [
                    expected[0] + i + (3 if isolation == "reuse" else 0) for i in range(2)
                ]
                lease.memory.write(8, bytes([5]) + bytes(7))
                assert await lease.call(1) == 6
                assert lease.memory.read(8, 1) == b"\6"
            check_invariants(cache)
        swap = await cache.register(
            "swap", SOURCE, args=("i64",), returns="i64", export="swap", isolation="reset"
        )
        assert [await swap.call(n) for n in (1, 1, 0)] == [1, 1, -1]


async def test_it_grows_up_to_the_limit() -> None:
    """And counts what it has grown to."""
    async with quiet_cache(memory_limit=1 * MiB) as cache:
        f = await cache.register("f", SOURCE, args=("i64",), returns="i64", export="grow")
        assert [await f.call(n) for n in (14, 2, 1, 1, 2**40)] == [1, -1, 15, -1, -1]
        assert cache.stats().total_size == 1 * MiB + 3 * 8 + 65536
        check_invariants(cache)


async def test_abis_of_pointers_say_that_they_take_32_bits() -> None:
    """A pointer of 64 bits is another type, which they name."""
    source = wat("""(module (memory (export "memory") i64 1)
      (func (export "malloc") (param i64) (result i64) (local.get 0))
      (func (export "f") (param i64 i64) (result i64) (local.get 0)))""")
    async with quiet_cache() as cache:
        with pytest.raises((SignatureError, AbiError), match="i64"):
            await cache.register("f", source, args=("str",), returns="i64", abi="buffer")
