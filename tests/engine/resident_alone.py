"""What is in memory of a whole cache, by kind: `test_resident` runs these in their own process."""

from __future__ import annotations

import mmap
from typing import Any

import trio
from engine.support import quiet_cache, wat
from peeking import job_of

from trio_wasmcache import CacheConfig, HostFunction
from trio_wasmcache._core.config import KiB, MiB
from trio_wasmcache._engine.wasmtime.residency import find_stacks
from trio_wasmcache.testing import check_invariants

PAGE = mmap.PAGESIZE
# Of its own, so that no other test's stacks are counted.
STACK_SIZE = 1236 * KiB
STACK = CacheConfig(stack_size=STACK_SIZE).instance_stack_size
# Writes to the first byte of so many system pages; and calls itself so often.
TOUCH = wat(
    f"""(module (memory (export "memory") 32)
    (func $deep (param i32) (if (i32.gt_s (local.get 0) (i32.const 0)) (then
      (call $deep (i32.sub (local.get 0) (i32.const 1))) (call $deep (i32.const 0)))))
    (func (export "f") (param i32 i32) (call $deep (local.get 1))
      (loop (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
        (i32.store8 (i32.mul (local.get 0) (i32.const {PAGE})) (i32.const 1))
        (br_if 0 (i32.gt_s (local.get 0) (i32.const 0))))))"""
)


async def test_each_kind_is_told_apart() -> None:
    """Memories by what was touched of them, in idle and in running instances; code; stacks."""
    limits = {"stack_size": STACK_SIZE, "memory_limit": 8 * MiB}
    async with quiet_cache(**limits) as cache:
        f = await cache.register("f", TOUCH, args=("i32", "i32"), export="f", concurrency=3)
        nothing = await cache.resident_bytes()
        assert (nothing.total, nothing.stacks) == (0, 0)
        async with f.acquire() as one, f.acquire() as two:
            for _ in range(2):  # the first call of an instance may have no stack of its own
                await one.call(10, 0)
                await two.call(100, 0)
            both = await cache.resident_bytes()
            assert (both.idle, both.running) == (0, 110 * PAGE)
            assert 0 < both.code <= f.code_size
            assert 2 * PAGE <= both.stacks <= 8 * PAGE
        rest = await cache.resident_bytes()
        assert (rest.idle, rest.running) == (110 * PAGE, 0)
        assert (rest.code, rest.stacks) == (both.code, both.stacks)
        assert rest.total == 110 * PAGE + rest.code + rest.stacks
        assert rest.idle <= cache.stats().total_size
        check_invariants(cache)
        cache.remove("f")
        assert (await cache.resident_bytes()) == nothing


async def test_idle_instances_keep_the_stacks_they_touched() -> None:
    """wasmtime does not give them back, so the books count them, as large as they may be."""
    async with quiet_cache(stack_size=STACK_SIZE) as cache:
        f = await cache.register("f", TOUCH, args=("i32", "i32"), export="f")
        assert cache.stats().idle_stacks_size == 0
        for _ in range(2):
            await f.call(1, 10_000)
        kept = (await cache.resident_bytes()).stacks
        stats = cache.stats()
        assert 300 * KiB < kept <= stats.idle_stacks_size == STACK
        assert stats.accounted_size == (
            stats.total_size + STACK + stats.code_size + stats.artifact_size
        )
        assert len(list(find_stacks(STACK))) == 1
        async with f.acquire():
            stats = cache.stats()
            assert (stats.idle_stacks_size, stats.stacks_size) == (0, STACK)


async def test_what_runs_meanwhile_is_counted_too() -> None:
    """Suspended in a host function, or in a thread: its store is left alone."""
    source = """(module (import "host" "nap" (func $nap)) (memory (export "memory") 1)
      (func (export "naps") (i32.store (i32.const 9) (i32.const 1)) (call $nap))
      (func (export "forever") (i32.store (i32.const 9) (i32.const 1)) (loop (br 0))))"""
    inside = trio.Event()
    after: list[Any] = []

    async def nap() -> None:
        after.append(await cache.resident_bytes())
        inside.set()

    config = {"offload_after": 0, "memory_limit": 8 * MiB, "total_fuel": 10**15}
    async with quiet_cache(**config) as cache:
        host = {"host": {"nap": HostFunction(nap, (), ())}}
        for name in ("naps", "forever"):
            await cache.register(name, source, args=(), imports=host)
        async with cache.acquire("naps", ()) as lease:
            await lease.call()
        assert inside.is_set()
        async with cache.acquire("forever", ()) as lease, trio.open_nursery() as nursery:
            nursery.start_soon(lease.call)
            while (job := job_of(lease)) is None or not job.in_thread:
                await trio.lowlevel.checkpoint()
            after.append(await cache.resident_bytes())
            nursery.cancel_scope.cancel()
    assert [one.running for one in after] == [PAGE, PAGE]
    assert [one.idle for one in after] == [0, PAGE]
