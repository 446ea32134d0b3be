"""Where something has to be loaded: beside wasmtime-py, doing the same each time by hand."""

from __future__ import annotations

from trio_wasmcache import CacheConfig, InstanceCache, SignatureError, open_cache

from . import peers
from .harness import FIB, Candidate, Report, SilentLogger, interleave

I64 = ("i64",)
# `isolation="reset"` is measured where this version has it.
ISOLATIONS = ("fresh", "reset")


def _leases(cache: InstanceCache, name: str) -> Candidate:
    async def leases(n: int) -> None:
        for _ in range(n):
            async with cache.acquire(name, I64) as lease:
                await lease.call(1)

    return leases


async def bench_misses(report: Report, number: int, rounds: int) -> None:
    """A lease and one call, where the instance, or its code too, is not there."""
    # Where nothing may stay, every acquire is a miss.
    nothing_stays = CacheConfig(max_size=0, max_instance_size=0)
    async with (
        open_cache(nothing_stays, logger=SilentLogger()) as loaded,
        open_cache(nothing_stays, logger=SilentLogger()) as released,
        open_cache(CacheConfig(), logger=SilentLogger()) as isolated,
    ):
        for cache in (loaded, released):
            await cache.register("same", FIB, args=I64, returns="i64")
        # Another function of the same module, whose lease keeps the code loaded.
        await loaded.register("fib", FIB, args=I64, returns="i64")
        candidates: dict[str, Candidate | tuple[Candidate, int]] = {
            "new store": peers.new_store(),
            "released": _leases(released, "same"),
        }
        for isolation in ISOLATIONS:
            try:
                await isolated.register(
                    isolation, FIB, args=I64, returns="i64", export="same", isolation=isolation
                )
            except (SignatureError, ValueError):
                continue
            candidates[isolation] = _leases(isolated, isolation)
        async with loaded.acquire("fib", I64):
            candidates["loaded"] = _leases(loaded, "same")
            # Ours have code in common, so each finds it in the caches; wasmtime-py's would not.
            us = await interleave(candidates, number, rounds, warmed=True)
    base = us["new store"]
    report.add("wasmtime-py: new store, instance, call", base, "us")
    report.add("miss, module loaded", us["loaded"], "us")
    report.add("miss, module released", us["released"], "us")
    for isolation in ISOLATIONS:
        if isolation in us:
            report.add(f"{isolation} lease and a call", us[isolation], "us")
    report.add("miss, module loaded / new store", us["loaded"] / base, "", at_most=1.1)
    report.add("miss, module released / new store", us["released"] / base, "")
    if "fresh" in us:
        report.add("fresh lease and a call / new store", us["fresh"] / base, "")
    if "reset" in us:
        report.add("reset lease and a call / new store", us["reset"] / base, "", at_most=0.35)


async def run(report: Report, quick: bool) -> None:
    await bench_misses(report, *((5, 3) if quick else (10, 201)))
