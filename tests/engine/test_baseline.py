"""The baseline compiler: what it does as the optimizing one, what it can't do, and what differs."""

from __future__ import annotations

import random
from array import array
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import compilers
import pytest
import trio
from attrs import evolve
from engine.support import quiet_cache, wat
from kits import WasmtimeKit
from promoting import TIERED, WatchedLogger, promote, settle

from trio_wasmcache import (
    CodeMemoryError,
    FuelExhaustedError,
    Function,
    GuestError,
    InstanceCache,
    KiB,
    LoadError,
    MiB,
    ModuleTooLargeError,
    StackOverflowError,
)
from trio_wasmcache._core.tiers import BASELINE, FIRST, OPTIMIZING, STACKS, Tier
from trio_wasmcache._core.wasm.admission import Edits, check_limits
from trio_wasmcache._core.wasm.bulk import HELPER_LIMIT, SLACK
from trio_wasmcache._core.wasm.driver import Shape
from trio_wasmcache._core.wasm.reader import SHORT, ModuleInfo
from trio_wasmcache._engine.wasmtime import native
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache.testing import check_invariants

COMPILERS = ("optimizing", "baseline")
BOTH = (BASELINE, OPTIMIZING)
BULK = wat(
    f"""(module (memory (export "memory") 32) (memory $other 2 16) (memory $wide i64 32)
    (table $t 1000 1000 funcref) (table $u 1000 1000 funcref)
    (table $v 1 funcref) (table $w i64 1 3000 funcref)
    (data $d "{"x" * 500}") (elem $e func {" ".join(["$z"] * 500)}) (func $z)
    (func (export "memory.fill") (param i32)
        (memory.fill (i32.const 0) (i32.const 1) (local.get 0)))
    (func (export "memory.copy") (param i32)
        (memory.copy (i32.const 0) (i32.const 65536) (local.get 0)))
    (func (export "memory.copy to another") (param i32)
        (memory.copy $other 0 (i32.const 0) (i32.const 65536) (local.get 0)))
    (func (export "memory.copy to a wide one") (param i32)
        (memory.copy $wide 0 (i64.const 0) (i32.const 65536) (local.get 0)))
    (func (export "memory.fill of a wide one") (param i32)
        (memory.fill $wide (i64.const 0) (i32.const 1) (i64.extend_i32_u (local.get 0))))
    (func (export "memory.init") (param i32)
        (memory.init $d (i32.const 0) (i32.const 0) (local.get 0)))
    (func (export "table.fill") (param i32)
        (table.fill $u (i32.const 0) (ref.null func) (local.get 0)))
    (func (export "table.copy") (param i32)
        (table.copy $u $t (i32.const 0) (i32.const 10) (local.get 0)))
    (func (export "table.init") (param i32)
        (table.init $t $e (i32.const 0) (i32.const 0) (local.get 0)))
    (func (export "table.grow") (param i32)
        (drop (table.grow $v (ref.null func) (local.get 0))))
    (func (export "table.grow of a wide one") (param i32)
        (drop (table.grow $w (ref.null func) (i64.extend_i32_u (local.get 0)))))
    (func (export "table.grow by a constant") (param i32)
        (drop (table.grow $v (ref.null func) (i32.const 60))))
    (func (export "memory.grow") (param i32) (drop (memory.grow $other (local.get 0)))))"""
)
INSTRUCTIONS = (
    *("memory.fill", "memory.copy", "memory.copy to another", "memory.copy to a wide one"),
    *("memory.fill of a wide one", "memory.init", "table.fill", "table.copy", "table.init"),
    *("table.grow", "table.grow of a wide one", "table.grow by a constant", "memory.grow"),
)
FILLS = wat(
    """(module (memory 256) (func (export "f") (param i32) (loop
    (memory.fill (i32.const 0) (i32.const 1) (i32.const 0x1000000))
    (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))))"""
)
Outcome = tuple[str, Any, Any]


@pytest.fixture(autouse=True)
def both_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "optimizing" be that compiler, whatever `--compiler` says."""
    monkeypatch.setitem(FIRST, "optimizing", OPTIMIZING)
    monkeypatch.setitem(STACKS, "optimizing", 1)


def cache_on(compiler: str, **limits: Any) -> AbstractAsyncContextManager[InstanceCache]:
    return quiet_cache(compiler=compiler, **limits)


def tier_of(cache: InstanceCache, function: Function) -> Tier:
    record = cache._pool.registry.find(function.name, function.args)  # type: ignore[attr-defined]
    return record.definition.module.artifact.tier  # type: ignore[no-any-return]


async def outcome(function: Function, *values: Any) -> tuple[Outcome, int]:
    """How a call ends: with a result, or with an error and where; and the fuel that it took."""
    async with function.acquire() as lease:
        try:
            result = await lease.call(*values)
        except GuestError as error:
            how = type(error).__name__, getattr(error, "code", None), error.backtrace
            return how, lease.fuel_consumed
        return ("result", result, None), lease.fuel_consumed


async def outcomes(wasm: bytes, export: str, values: list[tuple[Any, ...]], **more: Any) -> Any:
    """{compiler: how calls end, each in an instance of its own}."""
    found = {}
    for compiler in COMPILERS:
        async with cache_on(compiler) as cache:
            function = await cache.register(
                "f", wasm, export=export, isolation="fresh", **{"args": ("i32",), **more}
            )
            assert tier_of(cache, function) is Tier(compiler)
            found[compiler] = [await outcome(function, *some) for some in values]
            check_invariants(cache)
    return found


@pytest.mark.parametrize("export", INSTRUCTIONS)
async def test_bulk_instructions_cost_the_same(export: str) -> None:
    """They are charged for their length on both tiers, and trap in the same place."""
    lengths = [0, 1, SLACK - 1, SLACK, 39, 127, 490, 501, 1023, 1024, MiB, MiB + 1, -1]
    found = await outcomes(BULK, export, [(one,) for one in lengths])
    for length, optimizing, baseline in zip(lengths, *found.values(), strict=True):
        (how, fuel), (other, more) = optimizing, baseline
        assert how == other
        if how[0] == "result":
            most = 0 if length >= SLACK and "grow" not in export else 24
            assert abs(more - fuel) <= most, length


# {instruction: its text, for an address that the caller gives and a constant length}
CONSTANT = {
    "memory.fill": "(memory.fill (local.get 0) (i32.const 1) (i32.const {0}))",
    "memory.copy": "(memory.copy (local.get 0) (i32.const 1) (i32.const {0}))",
    "memory.copy of a wide one": """(memory.copy $w $w (i64.extend_i32_u (local.get 0))
        (i64.const 1) (i64.const {0}))""",
    "memory.init": "(memory.init $d (local.get 0) (i32.const 0) (i32.const {0}))",
    "table.fill": "(table.fill (local.get 0) (ref.null func) (i32.const {0}))",
    "table.copy": "(table.copy $u $t (local.get 0) (i32.const 1) (i32.const {0}))",
    "table.init": "(table.init $t $e (local.get 0) (i32.const 0) (i32.const {0}))",
}
SHORTS = (0, 1, SLACK - 1, SLACK, 63, 64, 255, SHORT, SHORT + 1)


@pytest.mark.parametrize("name", CONSTANT)
async def test_small_constant_lengths_cost_exactly_the_same(name: str) -> None:
    """Each of the six, to the unit; and they trap in the same place."""
    functions = "".join(
        f"""(func (export "{length}") (param i32) {CONSTANT[name].format(length)})"""
        for length in SHORTS
    )
    wasm = wat(
        f"""(module (memory 1) (memory $w i64 1) (table $t 999 funcref) (table $u 999 funcref)
        (data $d "{"x" * 300}") (elem $e func {" ".join(["$z"] * 300)}) (func $z) {functions})"""
    )
    found: dict[str, list[Any]] = {}
    for compiler in COMPILERS:
        async with cache_on(compiler) as cache:
            for length in SHORTS:
                function = await cache.register(str(length), wasm, args=("i32",), isolation="fresh")
                found.setdefault("fuel", []).append((await outcome(function, 0))[1])
                ends = [(await outcome(function, at))[0] for at in (0, 900, -1)]
                found.setdefault(compiler, []).append(ends)
            assert tier_of(cache, function) is Tier(compiler)
    assert found["optimizing"] == found["baseline"]
    assert [how for *_, (how, _, _) in found["baseline"]] == ["TrapError"] * len(SHORTS)
    assert found["fuel"][: len(SHORTS)] == found["fuel"][len(SHORTS) :]


async def test_a_length_that_only_looks_constant_is_charged() -> None:
    """The bytes before the instruction are those of (i32.const 26), but belong to another."""
    locals_ = " ".join(["i32"] * 65)
    wasm = wat(
        f"""(module (memory 32) (func (export "f") (param i32) (local {locals_})
        (memory.fill (i32.const 0) (i32.const 1) (local.get 0) (drop (local.get 65)))))"""
    )
    assert b"\x41\x1a\xfc\x0b\x00" in wasm
    (_, optimizing), (_, baseline) = (
        ends[0] for ends in (await outcomes(wasm, "f", [(MiB,)])).values()
    )
    assert optimizing == baseline > MiB


async def test_an_old_wasmtime_leaves_bulk_instructions_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before 46, so they are charged by us on both tiers: here, where it charges them, twice."""
    burnt = []
    for since_46 in (True, False):
        monkeypatch.setattr(native, "is_since_46", lambda since_46=since_46: since_46)
        async with cache_on("optimizing") as cache:
            function = await cache.register("memory.fill", BULK, args=("i32",))
            burnt.append((await outcome(function, MiB))[1])
    assert burnt[1] - burnt[0] == MiB


@pytest.mark.parametrize("compiler", COMPILERS)
async def test_fills_without_end_are_cancelled(compiler: str) -> None:
    """A slice is not so many fills, but so many bytes."""
    async with cache_on(compiler, total_fuel=2**62, offload_after=None) as cache:
        fills = await cache.register("f", FILLS, args=("i32",))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fills.call, 10_000)
            while cache.stats().running_instances == 0:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        check_invariants(cache)
    async with cache_on(compiler, total_fuel=100_000_000) as cache:
        fills = await cache.register("f", FILLS, args=("i32",))
        with pytest.raises(FuelExhaustedError):
            await fills.call(10_000)


async def test_a_module_with_too_many_kinds_of_bulk_instructions() -> None:
    """It goes to the compiler that charges them by itself."""
    count = HELPER_LIMIT + 1
    segments = '(data "x")' * count
    inits = "".join(
        f"(memory.init {number} (i32.const 0) (i32.const 0) (local.get 0))"
        for number in range(count)
    )
    wasm = wat(f'(module (memory 1) {segments} (func (export "f") (param i32) {inits}))')
    async with cache_on("baseline") as cache:
        function = await cache.register("f", wasm, args=("i32",))
        assert tier_of(cache, function) is Tier.OPTIMIZING
        await function.call(1)


LOCALS = " ".join(["i64"] * 64)
DEEP = f"""(module (func $f (export "f") (param i32) (result i32) (local {LOCALS})
    (if (result i32) (i32.eqz (local.get 0)) (then (i32.const 0)) (else (i32.add (i32.const 1)
    (call $f (i32.sub (local.get 0) (i32.const 1))))))))"""
PLAIN = DEEP.replace(f"(local {LOCALS})", "")


async def test_what_fits_on_one_stack_fits_on_the_other() -> None:
    """Frames are larger, and so are the stacks; the ledger counts them."""
    for compiler in COMPILERS:
        async with cache_on(compiler) as cache:
            plain = await cache.register("plain", PLAIN, args=("i32",), returns="i32", export="f")
            assert await plain.call(5000) == 5000
            deep = await cache.register("deep", DEEP, args=("i32",), returns="i32", export="f")
            assert await deep.call(1500) == 1500
            with pytest.raises(StackOverflowError, match="stack_size is 524288"):
                await deep.call(1_000_000)
            async with plain.acquire():
                stacks = cache.stats().stacks_size
                assert stacks == cache.config.instance_stack_size
                check_invariants(cache)
            (entry,) = (one for one in cache.entries() if one.function == "plain")
            assert entry.tiers == {compiler: 1}


async def test_the_configuration_decides_the_size_of_all_stacks() -> None:
    """Of whichever tier the code is: one cache has stacks of one size."""
    reference = DEEP.replace("(module", "(module (table 1 externref)")
    async with cache_on("baseline", max_code_size=2 * MiB) as cache:
        assert cache.config.instance_stack_size == 2 * MiB
        one = await cache.register("one", reference, args=("i32",), returns="i32", export="f")
        other = await cache.register("other", DEEP, args=("i32",), returns="i32", export="f")
        assert tier_of(cache, one) is Tier.OPTIMIZING
        assert tier_of(cache, other) is Tier.BASELINE
        for function in (one, other):
            with pytest.raises(CodeMemoryError, match="2097152 of stack"):
                await function.call(1)
        cache.resize(max_code_size=5 * MiB)
        for function in (one, other):
            async with function.acquire() as lease:
                assert await lease.call(1500) == 1500
                assert cache.stats().stacks_size == 2 * MiB
        async with one.acquire() as lease:
            assert await lease.call(15_000) == 15_000
            assert cache.stats().idle_stacks_size == 2 * MiB
        check_invariants(cache)


async def test_a_promotion_takes_no_stack_from_a_function() -> None:
    """What recurses as deep as baseline code can go, goes on with that once it is promoted."""
    logger = WatchedLogger()
    async with WasmtimeKit().open(TIERED, logger=logger) as cache:
        f = await cache.register("f", PLAIN, args=("i32",), returns="i32")
        found: dict[str, int] = {}
        for tier in ("baseline", "optimizing"):
            await f.call(1)
            assert [entry.tiers for entry in cache.entries()] == [{tier: 1}]
            found[tier] = await deepest(f)
            await f.call(1)
            if tier == "baseline":
                await promote(cache, logger, f)
                await settle(cache)
        assert 10_000 < found["baseline"] < found["optimizing"]
        check_invariants(cache)


async def deepest(function: Function) -> int:
    """How deep a recursion may be."""
    fits, fails = 1, 100_000
    while fails - fits > 1:
        depth = (fits + fails) // 2
        try:
            await function.call(depth)
            fits = depth
        except StackOverflowError:
            fails = depth
    return fits


RELAXED = """(module (func (export "f") (param i32) (result i32) (i32x4.extract_lane 0
    (i32x4.relaxed_trunc_f32x4_s (f32x4.splat (f32.convert_i32_s (local.get 0)))))))"""
CAUGHT = """(module (func $f (param i32) (if (local.get 0) (then (unreachable))))
    (func (export "f") (param i32) (result i32) (block (try_table (catch_all 0)
    (call $f (i32.const 0)))) (local.get 0)))"""
EXTERN = '(module (table 1 externref) (func (export "f") (param i32) (result i32) (local.get 0)))'
TAIL = """(module (func $f (export "f") (param i32) (result i32)
    (if (result i32) (i32.eqz (local.get 0)) (then (i32.const 7))
    (else (return_call $f (i32.sub (local.get 0) (i32.const 1)))))))"""


@pytest.mark.parametrize(
    ("text", "value", "result", "tier"),
    [
        (RELAXED, 7, 7, Tier.OPTIMIZING),
        (CAUGHT, 7, 7, Tier.OPTIMIZING),
        (EXTERN, 7, 7, Tier.OPTIMIZING),
        (TAIL, 1_000_000, 7, Tier.BASELINE),
    ],
    ids=["relaxed SIMD", "exceptions", "externref", "tail calls"],
)
@pytest.mark.parametrize("memory", [None, 512 * MiB], ids=["here", "apart"])
async def test_what_it_can_not_compile(
    text: str, value: int, result: int, tier: Tier, memory: int | None
) -> None:
    """The other compiler does, in a process of its own, too."""
    async with cache_on("baseline", compile_memory=memory) as cache:
        function = await cache.register("f", text, args=("i32",), returns="i32")
        assert tier_of(cache, function) is tier
        assert await function.call(value) == result


async def test_what_neither_can_compile() -> None:
    """The error says what is wrong with it, and the name stays free."""
    wrong = wat('(module (func (export "f") drop))')
    async with cache_on("baseline") as cache:
        with pytest.raises(Exception, match="can't compile it"):
            await cache.register("f", wrong, args=())
        assert cache.functions() == ()


@pytest.mark.parametrize("isolation", ["reuse", "reset", "fresh"])
async def test_two_engines_in_one_cache(isolation: Any) -> None:
    """Drivers, restorers and host functions are those of the instance's tier."""
    text = """(module {} (memory (export "memory") 1) (global $n (mut i64) (i64.const 0))
        (func (export "f") (param i64) (result i64)
        (global.set $n (i64.add (global.get $n) (i64.const 1)))
        (i64.add (local.get 0) (global.get $n))))"""
    async with cache_on("baseline") as cache:
        for name, rest in (("fast", "(table 1 externref)"), ("slow", "")):
            function = await cache.register(
                name,
                text.format(rest),
                args=("i64",),
                returns="i64",
                export="f",
                isolation=isolation,
            )
            kept = isolation == "reuse"
            for lease_number in range(2):
                async with function.acquire() as lease:
                    column = array("q", [10, 20, 30])
                    first = 3 * lease_number * kept
                    expected = [11 + first, 22 + first, 33 + first]
                    assert list(await lease.map([column])) == expected
        tiers = {entry.function: entry.tiers for entry in cache.entries()}
        assert tiers == {"fast": {"optimizing": 1}, "slow": {"baseline": 1}}
        check_invariants(cache)
        modules = {
            name: cache._pool.registry.find(name, ("i64",)).definition.module  # type: ignore[attr-defined]
            for name in ("fast", "slow")
        }
        sizes = {"optimizing": modules["fast"].artifact.code_size}
        sizes["baseline"] = modules["slow"].artifact.code_size
        stats = cache.stats()
        assert stats.compiler_code_sizes == sizes
        assert stats.module_code_size == sum(sizes.values())
        cache.remove("fast")
        assert cache.stats().compiler_code_sizes == {**sizes, "optimizing": 0}


def test_processes_that_tests_start_use_the_same_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that `--compiler` names, by a variable of the environment."""
    for name in COMPILERS:
        monkeypatch.setenv(compilers.VARIABLE, name)
        monkeypatch.setitem(FIRST, "optimizing", OPTIMIZING)
        monkeypatch.setitem(STACKS, "optimizing", 1)
        compilers.use()
        assert FIRST["optimizing"] is Tier(name)


async def test_the_baseline_compiler_has_a_bomb_of_its_own() -> None:
    """9 KB took it 12 s; it is rejected before it is compiled, as by the other compiler."""
    several = " ".join(["i64"] * 1000)
    wasm = wat(
        f"""(module (func $g (result {several}) unreachable)
        (func (export "f") {"(call $g)" * 1000} unreachable))"""
    )
    for compiler in COMPILERS:
        async with cache_on(compiler) as cache:
            with pytest.raises(ModuleTooLargeError, match="values on the stack across calls"):
                await cache.register("f", wasm, args=())
            assert cache.stats().compile.count == 0


@pytest.mark.parametrize("isolation", ["reuse", "reset", "fresh"])
async def test_two_caches_share_a_folder(tmp_path: Path, isolation: Any) -> None:
    """With the same module at the same time, on a compiler each, and each again from the folder."""
    text = """(module (memory (export "memory") 1) (func (export "f") (param i64) (result i64)
        (memory.fill (i32.const 8) (i32.const 1) (i32.wrap_i64 (local.get 0)))
        (i64.add (i64.load (i32.const 8)) (local.get 0))))"""
    folder, found = tmp_path / "code", []
    for _ in range(2):
        async with (
            cache_on("baseline", cache_dir=folder) as baseline,
            cache_on("optimizing", cache_dir=folder) as optimizing,
        ):
            for cache, tier in ((baseline, Tier.BASELINE), (optimizing, Tier.OPTIMIZING)):
                function = await cache.register(
                    "f", text, args=("i64",), returns="i64", isolation=isolation
                )
                assert tier_of(cache, function) is tier
                async with function.acquire() as lease:
                    assert list(await lease.map([array("q", [8, 9])])) == [
                        0x0101010101010109,
                        0x010101010101010A,
                    ]
                assert await function.call(8) == 0x0101010101010109
                check_invariants(cache)
        found.append(sorted(path.name for path in (folder / "digests").iterdir()))
    assert found[0] == found[1]


async def test_both_tiers_of_a_module_in_one_engine() -> None:
    """Each has its instances, its restorer and its driver; those of the other are refused."""
    text = """(module (memory (export "memory") 1) (global $n (mut i64) (i64.const 5))
        (func (export "f") (param i64) (result i64) (global.set $n (i64.add (global.get $n)
        (local.get 0))) (i64.store (i32.const 0) (global.get $n)) (global.get $n)))"""
    engines = {tier: WasmtimeEngine(512 * KiB, compiler=tier.value) for tier in BOTH}
    engine = engines[Tier.BASELINE]  # which knows both
    shape = Shape(("i64",), ("i64",))
    open_ones: list[Any] = []
    try:
        artifacts, instances, drivers = {}, {}, {}
        for tier in BOTH:
            artifact = await engines[tier].compile(wat(text), admit_reset)
            artifacts[tier] = await engine.prove(artifact, (), ())
            assert artifact.tier is tier
        for tier, artifact in artifacts.items():
            module = await engine.load(artifact, ())
            instance = instances[tier] = module.instantiate(10**9, 10**9)
            open_ones += [module, instance]
            assert instance.poll()
            instance.started()
            instance.mark()
            drivers[tier] = await engine.driver(shape, tier)
        assert engine.code_sizes == {tier: one.code_size for tier, one in artifacts.items()}
        for _ in range(2):
            for instance in instances.values():
                assert instance.function("f").begin((2,), 10**9) == 7
                assert instance.reset()
        for tier, other in (BOTH, BOTH[::-1]):
            with pytest.raises(LoadError):
                drivers[other].attach(instances[tier], {"function": "f"})
            drivers[tier].attach(instances[tier], {"function": "f"})
            for wrong in (
                evolve(artifacts[tier], tier=other),
                evolve(artifacts[tier], restore=artifacts[other].restore),
            ):
                with pytest.raises(LoadError):
                    await engine.load(wrong, ())
        assert engine.code_sizes == {tier: one.code_size for tier, one in artifacts.items()}
    finally:
        for one in reversed(open_ones):
            one.close()
        assert set(engine.code_sizes.values()) == {0}
        for one in engines.values():
            one.close()


def admit_reset(info: ModuleInfo) -> Edits:
    return evolve(check_limits(info, "f", MiB, 100), reset=True)


async def test_a_folder_keeps_the_code_of_both(tmp_path: Path) -> None:
    """Each restart finds what its compiler made."""
    counts = []
    for compiler in (*COMPILERS, *COMPILERS):
        async with cache_on(compiler, cache_dir=tmp_path / "code") as cache:
            function = await cache.register("f", TAIL, args=("i32",), returns="i32")
            assert await function.call(3) == 7
            assert tier_of(cache, function) is Tier(compiler)
        counts.append(len(list((tmp_path / "code" / "digests").iterdir())))
    assert counts == [1, 2, 2, 2]


def generated(seed: int) -> bytes:
    """A module with loops, memory, calls, jumps, bulk instructions and traps, by a number."""
    chance = random.Random(seed)

    def number(depth: int) -> str:
        kind = chance.randrange(13 if depth else 3)
        inner = [number(depth - 1) for _ in range(3)] if kind > 2 else []
        match kind:
            case 0:
                return f"(i64.const {chance.randrange(-9, 99)})"
            case 1 | 2:
                return f"(local.get {chance.randrange(3)})"
            case 3:
                operator = chance.choice("add sub mul and or xor shl shr_s rotl".split())
                return f"(i64.{operator} {inner[0]} {inner[1]})"
            case 4:
                return f"(i64.{chance.choice(['div_s', 'rem_u'])} {inner[0]} {inner[1]})"
            case 5:
                return f"(if (result i64) (i64.eqz {inner[0]}) (then {inner[1]}) (else {inner[2]}))"
            case 6:
                return f"(i64.load (i32.and (i32.wrap_i64 {inner[0]}) (i32.const 131064)))"
            case 7:
                return f"(block (result i64) (br_table 0 0 {inner[0]} (i32.wrap_i64 {inner[1]})))"
            case 8:
                return f"(local.tee {chance.randrange(3)} {inner[0]})"
            case 9:
                return f"(call $g {inner[0]})"
            case 10:
                return f"(select {inner[0]} {inner[1]} (i32.wrap_i64 {inner[2]}))"
            case 11:
                return f"(i64.extend_i32_s (memory.grow (i32.eqz (i32.wrap_i64 {inner[0]}))))"
            case _:
                return f"(i64.trunc_f64_s (f64.convert_i64_s {inner[0]}))"

    return wat(
        f"""(module (memory (export "memory") 1)
        (func $g (param i64) (result i64) (i64.mul (local.get 0) (i64.const 3)))
        (func (export "f") (param i64) (result i64) (local i64 i64 i64)
        (local.set 3 (i64.const 5))
        (loop $l (local.set 1 {number(4)}) (i64.store (i32.const 64) (local.get 1))
        (memory.copy (i32.const 1000) (i32.const 64) (i32.and (i32.wrap_i64 (local.get 1))
            (i32.const 66000)))
        (local.set 3 (i64.sub (local.get 3) (i64.const 1)))
        (br_if $l (i64.ne (local.get 3) (i64.const 0)))) {number(4)}))"""
    )


@pytest.mark.parametrize("seed", range(12))
async def test_generated_modules_do_the_same(seed: int) -> None:
    """Results, traps and backtraces are the same; so is fuel, but for what short copies cost."""
    values = [(one,) for one in (0, 1, -7, 12345)]
    found = await outcomes(generated(seed), "f", values, args=("i64",), returns="i64")
    for (how, fuel), (other, more) in zip(*found.values(), strict=True):
        assert how == other
        if how[0] == "result":
            assert abs(more - fuel) <= 24 * 10 + fuel // 100
