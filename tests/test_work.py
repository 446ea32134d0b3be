"""What hits, calls, misses and first calls do is counted, and is what `work.json` says, no less.

Time differs from machine to machine; what is done does not. `python tests/test_work.py` writes the
file anew, for the Python that runs it; then look at what has changed, and why.

Native calls and checkpoints are the same with any Python. Calls of our Python functions, and the
bytes that are allocated at the peak, are counted for each version of it, with some slack, as they
differ a little between releases of Python and Trio.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import pytest
import trio
import trio.lowlevel
import wasmtime
from counting import uncollected

from trio_wasmcache import CacheConfig, HostFunction, InstanceCache, KiB, Lease, open_cache
from trio_wasmcache._cache.open import open_with
from trio_wasmcache._core.config import PolicyName
from trio_wasmcache._engine.wasmtime import native
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._log import InlineLogWriter

NUMBERS = Path(__file__).parent / "work.json"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
# As a part of the number, and at least so many. In 20 runs on a busy machine, calls differed by one
# (a hit after which the evictor is told). An idle entry keeps three sums of microseconds, and a
# number takes 32 bytes if it is not small, as on a slow machine.
SLACK, LEAST, LEAST_IDLE = 0.02, {"python": 1, "bytes": 8}, 3 * 32
I64 = ("i64",)
# Py_TPFLAGS_IMMUTABLETYPE
IMMUTABLE = 1 << 8
SAME = '(module (memory 1 2) (func (export "same") (param i64) (result i64) (local.get 0)))'
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
Work = dict[str, Any]


class Silent:
    """A logger that writes nothing."""

    def info(self, event: str, **fields: Any) -> None:
        pass

    warning = info


class Checkpoints(trio.abc.Instrument):
    """How often the task that made it let others run."""

    def __init__(self) -> None:
        self.task = trio.lowlevel.current_task()
        self.count = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self.task


@contextmanager
def counted_native_calls() -> Iterator[Counter[str]]:
    """{C function: calls}, of what is made from now on."""
    counter = Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        for name, function in list(vars(native).items()):
            if not hasattr(function, "restype"):
                continue

            def count(*args: Any, function: Any = function) -> Any:
                counter[function.__name__] += 1
                return function(*args)

            patch.setattr(native, name, count)
        yield counter


def python_calls(frames: list[str]) -> Callable[[FrameType, str, Any], None]:
    """A profile function that notes each function of ours that is called."""

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "trio_wasmcache" in frame.f_code.co_filename:
            frames.append(frame.f_code.co_name)

    return profile


async def work_of(action: Callable[[], Awaitable[Any]], counter: Counter[str]) -> Work:
    """What `action` does when it is not new any more."""
    for _ in range(20):
        await action()
    checkpoints = Checkpoints()
    trio.lowlevel.add_instrument(checkpoints)
    counter.clear()
    await action()
    calls = dict(sorted(counter.items()))
    trio.lowlevel.remove_instrument(checkpoints)
    called = []
    for _ in range(3):  # as a hit counts once in a while what some before it have put off
        frames: list[str] = []
        with uncollected():
            sys.setprofile(python_calls(frames))
            await action()
            sys.setprofile(None)
        called.append(len(frames))
    peaks = []
    tracemalloc.start()
    gc.collect()
    for _ in range(10):
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        await action()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    return {
        "native": calls,
        "checkpoints": checkpoints.count,
        "python": {VERSION: min(called)},
        "bytes": {VERSION: min(peaks)},
    }


async def bytes_of_an_idle_entry(policy: PolicyName) -> int:
    """What Python keeps for each; wasmtime's own is not seen here."""
    async with open_with(
        CacheConfig(policy=policy), WasmtimeEngine(512 * KiB), InlineLogWriter(Silent())
    ) as cache:
        names = [f"f{number}" for number in range(120)]
        for name in names:
            await cache.register(name, SAME, args=I64, returns="i64", export="same")
        for few, many in ((0, 20), (20, 120)):
            gc.collect()
            tracemalloc.start()
            for name in names[few:many]:
                async with cache.acquire(name, I64) as lease:
                    await lease.call(1)
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return kept // (many - few)


def under(policy: PolicyName, what: str) -> str:
    """The name of some work under a policy."""
    return what if policy == "lru" else f"{what} under {policy}"


async def measure() -> dict[str, Work]:
    """{what: its work}."""
    found: dict[str, Work] = {}
    for policy in POLICIES:
        kept = await bytes_of_an_idle_entry(policy)
        found[under(policy, "idle entry")] = {"bytes": {VERSION: kept}}
    with counted_native_calls() as counter:
        for policy in POLICIES:
            async with open_cache(CacheConfig(policy=policy), logger=Silent()) as cache:
                await cache.register("same", SAME, args=I64, returns="i64")

                async def hit(cache: InstanceCache = cache) -> None:
                    async with cache.acquire("same", I64) as lease:
                        await lease.call(1)

                found[under(policy, "hit")] = await work_of(hit, counter)
        async with open_cache(CacheConfig(), logger=Silent()) as cache:
            await cache.register("same", SAME, args=I64, returns="i64")
            async with cache.acquire("same", I64) as held:

                async def call() -> None:
                    await held.call(1)

                found["held call"] = await work_of(call, counter)
        async with open_cache(CacheConfig(), logger=Silent()) as cache:
            await cache.register("same", SAME, args=I64, returns="i64")

            async def use() -> None:
                for _ in range(10):
                    async with cache.acquire("same", I64):
                        await trio.lowlevel.checkpoint()

            async def take_turns() -> None:
                async with trio.open_nursery() as nursery:
                    for _ in range(10):
                        nursery.start_soon(use)

            found["100 leases in line"] = await work_of(take_turns, counter)
            del found["100 leases in line"]["bytes"]  # most are of Trio's tasks
        async with open_cache(CacheConfig(max_size=0), logger=Silent()) as cache:
            for name in ("same", "other"):
                await cache.register(name, SAME, args=I64, returns="i64", export="same")

            async def miss() -> None:
                async with cache.acquire("same", I64) as lease:
                    await lease.call(1)

            async with cache.acquire("other", I64):  # keeps the code loaded
                found["miss"] = await work_of(miss, counter)
                del found["miss"]["bytes"]  # the log's thread allocates meanwhile
        async with open_cache(CacheConfig(idle_timeout=1000), logger=Silent()) as cache:
            numbers = itertools.count()

            async def first() -> None:
                name = f"f{next(numbers)}"
                wasm = f"(module (global i64 (i64.const {name[1:]})) {SAME[8:]}"
                function = await cache.register(
                    name, bytes(wasmtime.wat2wasm(wasm)), args=I64, returns="i64", export="same"
                )
                await function.call(1)

            # Calls of Python functions are those on the loop; reading has a test of its own.
            found["first call"] = await work_of(first, counter)
            del found["first call"]["bytes"]
    return found


@pytest.fixture(scope="module")
def works() -> dict[str, Work]:
    """As `measure` finds them, in a process in which no tracer allocates: those of coverage do."""
    script = "import json, test_work, trio; print(json.dumps(trio.run(test_work.measure)))"
    here = Path(__file__).parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    environment["PYTHONPATH"] = str(here.parent)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=here, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Work] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "what",
    [
        "held call",
        "100 leases in line",
        "miss",
        "first call",
        *(under(policy, "idle entry") for policy in POLICIES),
    ],
)
def test_the_work_is_what_was_agreed(works: dict[str, Work], what: str) -> None:
    """Native calls and checkpoints exactly; of Python functions and memory, not more."""
    check(works, what, what)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_hit_is_the_same_work_under_each_policy(
    works: dict[str, Work], policy: PolicyName
) -> None:
    """It calls nothing of the policy, and so is held to the same numbers."""
    check(works, under(policy, "hit"), "hit")


def check(works: dict[str, Work], what: str, like: str) -> None:
    """Compare what was found with what was agreed for `like`."""
    agreed: Work = json.loads(NUMBERS.read_text())[like]
    found = works[what]
    for kind in ("native", "checkpoints"):
        assert found.get(kind) == agreed.get(kind), kind
    for kind in ("python", "bytes"):
        limit = agreed.get(kind, {}).get(VERSION)
        if limit is not None:
            least = LEAST_IDLE if like.startswith("idle entry") else LEAST[kind]
            assert found[kind][VERSION] <= limit + max(least, SLACK * limit), kind


def test_defaults_of_a_lease_are_of_types_that_can_not_change() -> None:
    """The interpreter does not remember where a field is that hides something else in its class.

    `type` in C has the flag: Python's own types can't change, classes written in Python can.
    """
    methods = {name for name, value in vars(Lease).items() if hasattr(value, "__get__")}
    defaults = {name: type(value) for name, value in vars(Lease).items() if name not in methods}
    changeable = [name for name, kind in defaults.items() if not kind.__flags__ & IMMUTABLE]
    assert "_task" in defaults
    assert not [name for name in changeable if not name.startswith("__")]


async def test_reentrant_imports_are_linked_at_once() -> None:
    """An instance with many of them takes no more native calls than one with two."""

    async def ask() -> None:
        pass

    host = HostFunction(ask, (), (), reentrant=True)
    found = []
    with counted_native_calls() as counter:
        async with open_cache(CacheConfig(), logger=Silent()) as cache:
            for count in (2, 40):
                names = [f"f{number}" for number in range(count)]
                imports = "".join(f'(import "env" "{name}" (func))' for name in names)
                await cache.register(
                    f"asks{count}",
                    f'(module {imports} (func (export "run")))',
                    args=(),
                    returns=None,
                    export="run",
                    imports={"env": dict.fromkeys(names, host)},
                    isolation="fresh",
                )
                for _ in range(2):
                    counter.clear()
                    async with cache.acquire(f"asks{count}", ()) as lease:
                        await lease.call()
                found.append(dict(counter))
    assert found[0] == found[1]


def main() -> None:
    """Write what is found now; numbers of other versions of Python stay."""
    agreed = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    for what, work in trio.run(measure).items():
        if what.startswith("hit under"):
            continue  # that of LRU is the limit of all
        for kind, value in work.items():
            mine = agreed.setdefault(what, {})
            if kind in ("native", "checkpoints"):
                mine[kind] = value
            else:
                mine[kind] = dict(sorted({**mine.get(kind, {}), **value}.items()))
    NUMBERS.write_text(json.dumps(agreed, indent=1) + "\n")


if __name__ == "__main__":
    main()
