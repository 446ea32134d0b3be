"""Samples of guests on wasmtime: they burn and return the same, and who burnt it is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import guests
import pytest
import trio
from attrs import define, field

from trio_wasmcache import CacheConfig, Frame, FuelExhaustedError, StackOverflowError
from trio_wasmcache._core.tiers import BASELINE, COMPILERS, OPTIMIZING, PROFILED, Tier
from trio_wasmcache._core.wasm.admission import Edits
from trio_wasmcache._engine.base import UNDER_WAY
from trio_wasmcache._engine.wasmtime import sampling
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance

YIELD = 20_000
FUEL = 10**9
WAT = """
(func $fib (export "fib") (param $n i64) (result i64)
  (if (result i64) (i64.lt_s (local.get $n) (i64.const 2))
    (then (local.get $n))
    (else (i64.add (call $fib (i64.sub (local.get $n) (i64.const 1)))
                   (call $fib (i64.sub (local.get $n) (i64.const 2)))))))
(func $spin (param $n i64)
  (loop $l (local.set $n (i64.sub (local.get $n) (i64.const 1)))
           (br_if $l (i64.gt_s (local.get $n) (i64.const 0)))))
(func $_ZN4slow4spinEv (param $n i64) (call $spin (i64.mul (local.get $n) (i64.const 9))))
(func (export "both") (param $n i64) (result i64)
  (call $spin (local.get $n)) (call $_ZN4slow4spinEv (local.get $n)) (i64.const 7))
(func $deep (export "deep") (param $n i64) (result i64)
  (if (i64.eqz (local.get $n)) (then (call $spin (i64.const 200000)) (return (i64.const 1))))
  (i64.add (i64.const 1) (call $deep (i64.sub (local.get $n) (i64.const 1)))))
"""


@define
class Recorded:
    """A recording that keeps all."""

    leaves: Counter[str | None] = field(factory=Counter)
    stacks: set[tuple[str, ...]] = field(factory=set)
    offsets: Counter[int | None] = field(factory=Counter)
    fuel: int = 0
    samples: int = 0
    lost: int = 0
    over: bool = False

    __hash__ = object.__hash__

    def add(self, frames: Sequence[Frame], fuel: int, samples: int) -> None:
        self.leaves[frames[0].function if frames else None] += fuel
        self.stacks.add(tuple(frame.function for frame in frames))
        self.offsets[frames[0].offset if frames else None] += 1
        self.fuel += fuel
        self.samples += samples

    def lose(self, fuel: int) -> None:
        self.lost += fuel


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "INTERVAL", YIELD)
    monkeypatch.setattr(sampling, "REST", 0)


async def load(engine: WasmtimeEngine, tier: Tier, wat: str = WAT) -> tuple[Any, WasmtimeInstance]:
    wasm = guests.binary(wat)
    maxima = (16,) * wat.count("(memory 1")
    edits = Edits(memory_limit=2**20, table_limit=10, memory_maxima=maxima)
    artifact = await engine.compile(bytes(wasm), lambda _: edits, tier=tier)
    assert artifact.tier is tier
    module = await engine.load(artifact, ())
    return module, start(module)


def start(module: Any) -> WasmtimeInstance:
    instance: WasmtimeInstance = module.instantiate(FUEL, YIELD)
    while not instance.poll():
        pass
    instance.started()
    return instance


def call(
    instance: WasmtimeInstance, name: str, value: int, fuel: int = FUEL
) -> tuple[Any, int, int]:
    """The result of a call, what it burnt, and its number of slices."""
    function = instance.function(name)
    result, slices = function.begin((value,), fuel), 1
    if result is not UNDER_WAY:
        return result, fuel - function.left.value, slices
    while not instance.poll():
        slices += 1
    burnt = fuel - instance.fuel_left()
    return function.finish(), burnt, slices


@pytest.mark.parametrize("compiler", ["optimizing", "baseline"])
async def test_fuel_and_slices_are_the_same(compiler: Any) -> None:
    """Of short and of long calls; and the samples stand for what was burnt."""
    engine = WasmtimeEngine(512 * 1024, compiler=compiler)
    plain = {"optimizing": OPTIMIZING, "baseline": BASELINE}[compiler]
    assert COMPILERS[PROFILED[plain]] is plain
    (module, before), (sampled, instance) = (
        await load(engine, plain),
        await load(engine, PROFILED[plain]),
    )
    recorded, burnt = Recorded(), 0
    instance.pass_samples(recorded)
    for name, value, times in (
        ("fib", 20, 3),
        ("both", 10_000, 5),
        ("both", 20, 300),
        ("fib", 1, 9),
    ):
        for _ in range(times):
            expected, got = call(before, name, value), call(instance, name, value)
            assert got[:2] == expected[:2]
            assert abs(got[2] - expected[2]) <= 1 + expected[2] // 5
            burnt += got[1]
    sampled.collect()
    assert burnt - 2 * YIELD < recorded.fuel <= burnt
    assert recorded.samples > burnt // YIELD // 2
    assert recorded.lost == 0
    # Nine parts of ten are burnt in the second one's calls.
    share = {
        name: sum(fuel for leaf, fuel in recorded.leaves.items() if leaf == name)
        for name in ("spin", "fib")
    }
    assert share["spin"] + share["fib"] > 0.9 * recorded.fuel
    paths = {path for path in recorded.stacks if path[0] == "spin"}
    assert ("spin", "slow::spin", "func[3]") in paths
    assert None not in recorded.offsets
    for one in (before, instance, module, sampled):
        one.close()
    engine.close()


async def test_offsets_are_in_the_given_bytes(tmp_path: Any) -> None:
    """They are where the loop is, whatever was added to the module before it was compiled."""
    engine = WasmtimeEngine(512 * 1024)
    wat = WAT + '(memory 1 99) (func (export "grow") (drop (memory.grow (i32.const 1))))'
    module, instance = await load(engine, Tier.PROFILED_OPTIMIZING, wat)
    recorded = Recorded()
    instance.pass_samples(recorded)
    call(instance, "both", 50_000)
    module.collect()
    wasm = bytes(guests.binary(wat))
    ((offset, _),) = recorded.offsets.most_common(1)
    assert offset is not None
    assert wasm[offset] == 0x03, "no loop is there"
    instance.close()
    module.close()
    engine.close()


async def test_a_deep_recursion_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its samples take long, so there are few of them; a trap or an end of fuel ends it as ever."""
    monkeypatch.setattr(sampling, "REST", 10**6)
    engine = WasmtimeEngine(512 * 1024)
    module, instance = await load(engine, Tier.PROFILED_OPTIMIZING)
    recorded = Recorded()
    instance.pass_samples(recorded)
    result, burnt, _ = call(instance, "deep", 3_000)
    assert result == 3_001
    module.collect()
    assert recorded.samples == 1 < burnt // YIELD
    assert max(map(len, recorded.stacks)) > 1_000 or recorded.stacks
    with pytest.raises(StackOverflowError):
        call(instance, "deep", 10**6)
    instance.abandon()
    instance.close()
    other = start(module)
    other.pass_samples(recorded)
    with pytest.raises(FuelExhaustedError):
        call(other, "fib", 40, 10 * YIELD)
    other.abandon()
    other.close()
    module.close()
    engine.close()


async def test_in_threads_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two instances in threads share a profiler that is read in between; then it is over."""
    monkeypatch.setattr(sampling, "MOST_SAMPLES", 10)
    engine = WasmtimeEngine(512 * 1024)
    module, instance = await load(engine, Tier.PROFILED_OPTIMIZING)
    other = start(module)
    recordings, burnt = (Recorded(), Recorded()), []
    for one, recording in zip((instance, other), recordings, strict=True):
        one.pass_samples(recording)

    async def run(one: WasmtimeInstance) -> None:
        function = one.function("both")
        assert function.begin((300_000,), FUEL) is UNDER_WAY
        while not await trio.to_thread.run_sync(one.poll):
            pass
        burnt.append(FUEL - one.fuel_left())
        assert function.finish() == 7

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, instance)
        nursery.start_soon(run, other)
    module.collect()
    assert sum(burnt) - 4 * YIELD < sum(one.fuel for one in recordings) <= sum(burnt)
    before = [one.samples for one in recordings]
    for one in recordings:
        one.over = True
    call(instance, "both", 100_000)
    module.collect()
    assert [one.samples for one in recordings] == before
    for made in (instance, other, module):
        made.close()
    engine.close()


async def test_an_unknown_format_loses_samples_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call goes on, and the profile says how much is missing."""
    engine = WasmtimeEngine(512 * 1024)
    module, instance = await load(engine, Tier.PROFILED_OPTIMIZING)
    recorded = Recorded()
    instance.pass_samples(recorded)
    monkeypatch.setattr(sampling.json, "loads", lambda _: {"threads": [{}]})
    assert call(instance, "both", 50_000)[0] == 7
    module.collect()
    assert (recorded.samples, recorded.fuel) == (0, 0)
    assert recorded.lost > YIELD
    instance.close()
    module.close()
    engine.close()


async def test_other_instances_have_nothing_of_it() -> None:
    """They are of another class, with the methods that they always had."""
    engine = WasmtimeEngine(CacheConfig().stack_size)
    module, instance = await load(engine, OPTIMIZING)
    assert type(instance) is WasmtimeInstance
    function = instance.function("fib")
    assert function.begin.__func__ is function.frame.begin  # type: ignore[attr-defined]
    assert not engine.code_sizes.keys() & set(PROFILED.values())
    instance.close()
    module.close()
    engine.close()
