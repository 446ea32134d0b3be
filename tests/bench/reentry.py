"""What it costs that a host function may call the guest: beside the same one that may not."""

from __future__ import annotations

from trio_wasmcache import CacheConfig, HostFunction, InstanceCache, current_lease, open_cache

from .harness import Candidate, Report, SilentLogger, interleave

I64 = ("i64",)
# Calls the host as often as its argument says. Exports enough to be like a module of a toolchain.
EXPORTS = " ".join(
    f'(func (export "f{n}") (param i32 i32) (result i32) (i32.const {n}))' for n in range(40)
)
GUEST = f"""(module (import "host" "f" (func $f (param i64) (result i64)))
  (memory (export "memory") 17)
  (func (export "many") (param i64) (result i64)
    (loop (drop (call $f (local.get 0)))
          (br_if 0 (i64.ne (local.tee 0 (i64.sub (local.get 0) (i64.const 1))) (i64.const 0))))
    (i64.const 0))
  (func (export "double") (param i64) (result i64) (i64.mul (local.get 0) (i64.const 2)))
  (func (export "malloc") (param i32) (result i32) (local.get 0)) {EXPORTS})"""
CALLS = 200


async def answer(value: int) -> int:
    """Await nothing, so that what is measured is the way there and back."""
    return value


async def invoke(value: int) -> int:
    """Call the guest back."""
    return int(await current_lease().invoke("double", value))


def _calls(cache: InstanceCache, name: str) -> Candidate:
    async def calls(n: int) -> None:
        async with cache.acquire(name, I64) as lease:
            for _ in range(n):
                await lease.call(CALLS)

    return calls


def _loads(cache: InstanceCache, name: str) -> Candidate:
    async def loads(n: int) -> None:
        for _ in range(n):
            async with cache.acquire(name, I64):
                pass

    return loads


async def bench_reentry(report: Report, number: int, rounds: int) -> None:
    """Host calls within one call of the guest, and instances."""
    hosts = {
        "direct": HostFunction(answer, I64, I64),
        "reentrant": HostFunction(answer, I64, I64, reentrant=True),
        "invoke": HostFunction(invoke, I64, I64, reentrant=True),
    }
    nothing_stays = CacheConfig(max_size=0, max_instance_size=0)
    async with (
        open_cache(CacheConfig(), logger=SilentLogger()) as kept,
        open_cache(nothing_stays, logger=SilentLogger()) as loaded,
    ):
        for name, host in hosts.items():
            for cache in (kept, loaded):
                await cache.register(
                    name,
                    GUEST,
                    args=I64,
                    returns="i64",
                    export="many",
                    imports={"host": {"f": host}},
                )
                # Its lease keeps the code loaded.
                await cache.register(
                    f"{name} held",
                    GUEST,
                    args=I64,
                    returns="i64",
                    export="double",
                    imports={"host": {"f": host}},
                )
        us = await interleave({name: _calls(kept, name) for name in hosts}, number, rounds)
        async with (
            loaded.acquire("direct held", I64),
            loaded.acquire("reentrant held", I64),
        ):
            made = await interleave(
                {name: _loads(loaded, name) for name in ("direct", "reentrant")},
                10 * number,
                rounds,
            )
    direct, reentrant, invoked = (us[name] / CALLS for name in hosts)
    report.add("async host call", direct, "us")
    report.add("reentrant host call", reentrant, "us")
    report.add("host call with an invoke", invoked, "us")
    report.add("reentrant host call / direct one", reentrant / direct, "", at_most=1.3)
    report.add("invoke / direct host call", (invoked - reentrant) / direct, "")
    report.add("miss, module loaded", made["direct"], "us")
    report.add("reentrant adds to it", made["reentrant"] - made["direct"], "us", at_most=60)
    # What 60 us are where a plain one takes 73, as on a quiet machine.
    report.add("reentrant miss / plain one", made["reentrant"] / made["direct"], "", at_most=1.8)


async def run(report: Report, quick: bool) -> None:
    await bench_reentry(report, *((2, 3) if quick else (3, 101)))
