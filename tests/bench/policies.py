"""Misses and seconds of loading under each eviction policy, on one drawn sequence of requests."""

from __future__ import annotations

import time
from random import Random
from typing import Any, get_args

from trio_wasmcache._core.config import CacheConfig, KiB, PolicyName
from trio_wasmcache._core.keys import FunctionKey
from trio_wasmcache._core.policy.policy import Policy
from trio_wasmcache._core.policy.records import FunctionRecord, GroupRecord, Module, Stage

from .harness import Report

SIZES = (1, 2, 17, 17, 40, 100)


class Native:
    """A bound function that does nothing."""

    def close(self) -> None:
        pass


def bench_policy(report: Report, policy: PolicyName, functions: int, requests: int) -> None:
    """Leases of no length, of functions drawn by Zipf's law with 0.8; a fifth of all fit."""
    random = Random(5)
    sizes = [random.choice(SIZES) for _ in range(functions)]
    seconds = [random.lognormvariate(0, 1.5) / 1000 for _ in range(functions)]
    weights = [1 / (rank + 1) ** 0.8 for rank in range(functions)]
    trace = random.choices(range(functions), weights, k=requests)
    config = CacheConfig(
        policy=policy, max_size=sum(sizes) // 5, max_code_size=2**50, stack_size=64 * KiB
    )
    object.__setattr__(config, "max_instances", 10**9)  # as more are idle than a cache may have
    cache, group, native = Policy(config), GroupRecord("main"), Native()
    records = [
        FunctionRecord(FunctionKey(str(key), ()), 1, Module(str(key), 0))
        for key in range(functions)
    ]
    give_up: Any = None
    missed = loading = evicting = 0.0
    for key in trace:
        entry = group.serving.get(records[key].spelling)
        request = None if entry is None else cache.hit(entry, 0, give_up, 0.0)
        if request is None:
            request = cache.request(records[key], group, 0)
            cache.acquire(request, 0.0)
            assert request.stage is Stage.LOADING
            request.held.hold(native, ready=True)
            cache.loaded(request, 0.0, sizes[key], seconds[key])
            cache.may_rest(request)
            missed += 1
            loading += seconds[key]
        if not cache.rest(request, sizes[key], 0.0):
            began = time.perf_counter()
            cache.recycle(request, sizes[key], 0.0)
            evicting += time.perf_counter() - began
    report.add(f"{policy}: misses", missed / requests, "")
    report.add(f"{policy}: loading", loading, "s")
    report.add(f"{policy}: a recycle that may evict", evicting / missed * 1e6, "us")


async def run(report: Report, quick: bool) -> None:
    for policy in get_args(PolicyName):
        bench_policy(report, policy, *((2000, 10_000) if quick else (20_000, 200_000)))
