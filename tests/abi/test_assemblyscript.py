"""Modules of AssemblyScript give what they give under Node, whatever their runtime."""

from __future__ import annotations

import array
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from batch.routes import drives
from engine.support import quiet_cache, wat

from trio_wasmcache import (
    AbiError,
    AssemblyScriptAbi,
    ExportError,
    FuelExhaustedError,
    Function,
    HostFunction,
    InstanceCache,
    LinkError,
    LoadError,
    ResultTooLargeError,
    SignatureError,
    TrapError,
    Wasi,
)
from trio_wasmcache.testing import cancel_everywhere, check_invariants

FOLDER = Path(__file__).parents[1] / "udfs" / "assemblyscript"
GOLDEN: list[dict[str, Any]] = json.loads((FOLDER / "golden.json").read_text())["results"]
CASES: list[list[Any]] = json.loads((FOLDER / "cases.json").read_text())
RUNTIMES = ("incremental", "minimal", "stub")
BYTES = ("bytes", "arraybuffer", "uint8clampedarray")


def lowered(kind: str, value: Any) -> Any:
    """A value of a call, which JSON can't have as it is."""
    if value is None or kind == "str" or isinstance(value, bool):
        return value
    if kind in BYTES:
        return bytes.fromhex(value)
    if isinstance(value, list):
        return [lowered("", one) for one in value]
    return int(value) if isinstance(value, str) else value


def lifted(value: Any) -> Any:
    if isinstance(value, dict):
        ((kind, text),) = value.items()
        return {"int": int, "float": float, "bytes": bytes.fromhex}[kind](text)
    return [lifted(one) for one in value] if isinstance(value, list) else value


def same(left: Any, right: Any) -> bool:
    """Whether two results are the same, to the sign of a zero."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(float(left)) == repr(float(right)) if isinstance(right, float) else left == right


class Calls:
    """The calls of cases.json: registered once for each list of types."""

    def __init__(self, cache: InstanceCache, wasm: Path, **options: Any) -> None:
        self._cache = cache
        self._wasm = wasm
        self._options = options
        self.functions: dict[tuple[Any, ...], Function] = {}

    async def function(self, case: Sequence[Any]) -> Function:
        name, args, returns, *_ = case
        key = (name, tuple(args))
        if key not in self.functions:
            self.functions[key] = await self._cache.register(
                name,
                self._wasm,
                args=args,
                returns=returns,
                called_on_null=True,
                **self._options,
            )
        return self.functions[key]


async def check_golden(wasm: Path, isolation: str, abi: str | None) -> None:
    said: list[list[str]] = []
    wasi = Wasi(
        stdout=lambda *line: said.append([*line]), stderr=lambda *line: said.append([*line])
    )
    async with quiet_cache() as cache:
        calls = Calls(cache, wasm, isolation=isolation, wasi=wasi, abi=abi)
        for case, golden in zip(CASES, GOLDEN, strict=True):
            said.clear()
            function = await calls.function(case)
            values = [lowered(*one) for one in zip(case[1], case[3:], strict=True)]
            if "fails" in golden:
                with pytest.raises(TrapError) as caught:
                    await function.call(*values)
                message, _, place = golden["fails"].rpartition(" in ")
                file, line, column = place.split(":")
                assert f"aborted in {file}, line {line}, column {column}: {message}" in str(
                    caught.value
                )
                (frame,) = caught.value.frames
                assert (frame.file, frame.line, frame.column) == (file, int(line), int(column))
                assert caught.value.code == "abort"
            else:
                result = await function.call(*values)
                assert same(result, lifted(golden["gives"])), (case, result)
            wanted = [
                [stream, line]
                for stream, text in golden.get("said", ())
                for line in text.split("\n")
            ]
            assert said == wanted
        check_invariants(cache)


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_results_are_those_of_node(runtime: str, isolation: str) -> None:
    """Text with halves of surrogate pairs, bytes, lists of each type, nulls, defaults, failures."""
    await check_golden(FOLDER / f"{runtime}.wasm", isolation, None)


async def test_named_and_recognised_it_is_the_same() -> None:
    """By name; numbers cross as by the plain ABI."""
    await check_golden(FOLDER / "incremental.wasm", "reuse", "assemblyscript")


async def test_batches_give_what_calls_give() -> None:
    """All rows of a function in one batch, with the rows that node failed left out."""
    async with quiet_cache() as cache:
        calls = Calls(cache, FOLDER / "incremental.wasm", isolation="fresh")
        rows: dict[Function, list[tuple[Any, ...]]] = {}
        results: dict[Function, list[Any]] = {}
        for case, golden in zip(CASES, GOLDEN, strict=True):
            if "fails" in golden or case[2] is None:
                continue
            function = await calls.function(case)
            values = [lowered(*one) for one in zip(case[1], case[3:], strict=True)]
            rows.setdefault(function, []).append(tuple(values))
            results.setdefault(function, []).append(lifted(golden["gives"]))
        for function, columns in rows.items():
            async with function.acquire() as lease:
                made = await lease.map([list(column) for column in zip(*columns, strict=True)])
                assert drives(lease)
            assert all(map(same, list(made), results[function])), (function, made)
        check_invariants(cache)


@pytest.fixture(params=[*RUNTIMES, "numbers"])
def built_anew(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A module as the compiler that is here writes it, of whatever version."""
    done = subprocess.run(
        ["sh", str(FOLDER / "build.sh"), str(tmp_path), request.param],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        pytest.skip(f"ASSEMBLYSCRIPT IS NOT BUILT ANEW: {words[-1] if words else 'nothing'}")
    return tmp_path / f"{request.param}.wasm"


async def test_what_is_built_anew_gives_the_same(built_anew: Path) -> None:
    """The source is that of the modules."""
    if built_anew.stem == "numbers":
        async with quiet_cache() as cache:
            plus = await cache.register("plus", built_anew, args=("i64",), returns="f64")
            assert await plus.call(1) == 6.5
    else:
        await check_golden(built_anew, "reuse", None)


# -- how it is recognised, and what is refused


async def test_numbers_mean_what_they_mean_in_the_plain_abi() -> None:
    """In the same range, with the same errors; and no runtime is needed for them."""
    async with quiet_cache() as cache:
        for number, (wasm, abi) in enumerate(
            [("incremental", None), ("incremental", "assemblyscript"), ("numbers", None)]
        ):
            add = await cache.register(
                f"add{number}",
                FOLDER / f"{wasm}.wasm",
                export="addI64",
                args=("i64", "i64"),
                returns="i64",
                abi=abi,
            )
            assert await add.call(2**63 - 1, 1) == -(2**63)
            assert await add.call(True, 2) == 3
            with pytest.raises(OverflowError, match=r"argument 1 of .* out of the range of i64"):
                await add.call(2**63, 1)
            async with add.acquire() as lease:
                assert list(await lease.map([range(5), 1])) == [1, 2, 3, 4, 5]
        check_invariants(cache)


@pytest.mark.parametrize("runtime", [*RUNTIMES, "numbers"])
async def test_arguments_left_out_have_their_defaults(runtime: str) -> None:
    """However many; and one function may be registered with each number of them."""
    wasm = FOLDER / f"{runtime}.wasm"
    types = ("i64", "i64", "f64")
    async with quiet_cache() as cache:
        for count, (values, wanted) in enumerate(
            [((1,), 6.5), ((1, 2), 3.5), ((1, 2, 3.25), 6.25)], start=1
        ):
            plus = await cache.register("plus", wasm, args=types[:count], returns="f64")
            assert await plus.call(*values) == wanted
            with pytest.raises(TypeError, match="takes"):
                await plus.call(*values, 1)
            async with plus.acquire() as lease:
                made = await lease.map([[value, value] for value in values])
            assert list(made) == [wanted, wanted]
        if runtime != "numbers":
            text = await cache.register("defaults", wasm, args=("i32",), returns="str")
            assert await text.call(1) == "1 7 default"
        check_invariants(cache)


async def test_only_trailing_arguments_with_their_types_can_be_left_out() -> None:
    """The types that are given must be those of the export; and not all modules have defaults."""
    async with quiet_cache() as cache:
        with pytest.raises(SignatureError, match="i32"):
            await cache.register("plus", FOLDER / "incremental.wasm", args=("i32",), returns="f64")
        without = wat('(module (func (export "f") (param i32 i32)))')
        with pytest.raises(SignatureError, match="other args"):
            await cache.register("f", without, args=("i32",), abi="assemblyscript")


async def test_a_trap_says_how_many_arguments_were_given() -> None:
    """If some were left out: of calls and of batches. Those of the runtime are not told apart."""
    async with quiet_cache() as cache:
        wasm = FOLDER / "incremental.wasm"
        units = await cache.register(
            "units", wasm, args=(), returns="i32", abi="assemblyscript", isolation="fresh"
        )
        with pytest.raises(TrapError, match=r"memory access.*; 0 of 1 arguments were given"):
            await units.call()
        fail = await cache.register("fail", wasm, args=("str",), returns="str")
        with pytest.raises(TrapError) as caught:
            await fail.call("no")
        assert "arguments were given" not in str(caught.value)
        sums = await cache.register("sum", wasm, args=("Array<f64>", "f64"), returns="f64")
        async with sums.acquire() as lease:
            with pytest.raises(TrapError, match="; 2 of 4 arguments were given"):
                await lease.map([[[1.0], [2.0]], [1.0, 2.0]])
        check_invariants(cache)


async def test_a_64_bit_memory_is_refused() -> None:
    """Its objects would have other addresses; other ABIs take the module."""
    wide = wat(
        """(module (memory (export "memory") i64 1)
        (func (export "__setArgumentsLength") (param i32))
        (func (export "f") (param i32) (result i32) (local.get 0)))"""
    )
    async with quiet_cache() as cache:
        with pytest.raises(ExportError, match=r'abi="assemblyscript" takes .* 64-bit memory'):
            await cache.register("f", wide, args=("i32",), returns="i32", abi="assemblyscript")
        plain = await cache.register("f", wide, args=("i32",), returns="i32", abi="plain")
        assert await plain.call(7) == 7


async def test_advice_names_the_classes_of_the_module() -> None:
    """A class that the module lacks, spelt as in the source, and those that it has."""
    wasm = FOLDER.parents[2] / "examples" / "cookbook" / "assemblyscript" / "slug.wasm"
    async with quiet_cache() as cache:
        mean = await cache.register("mean", wasm, args=("StaticArray< f64 >",), returns="f64")
        with pytest.raises(AbiError) as caught:
            await mean.call([1.0])
        assert str(caught.value).endswith(
            "no class for StaticArray<f64>: declare the type that its source says; its classes are "
            "Float64Array, Array<i32>"
        )


@pytest.mark.parametrize(
    ("args", "returns", "error", "said"),
    [
        (("string",), "str", SignatureError, r"did you mean str\?"),
        (("list[str]",), "str", SignatureError, r"'list\[str\]': lists hold numbers only, of"),
        (("Array<string>",), "str", SignatureError, "lists hold numbers only"),
        (("list[i128]",), "str", SignatureError, "unknown type"),
        (("array<list[i32]>",), "str", SignatureError, "unknown type"),
        (("v128",), "str", SignatureError, "v128"),
        (("str",), ("str", "i32"), SignatureError, "has one result, not 2"),
        (("str", "str"), "str", SignatureError, r"\[i32\] -> \[i32\]"),
    ],
)
async def test_what_is_declared_wrongly_is_refused(
    args: tuple[str, ...], returns: Any, error: type[Exception], said: str
) -> None:
    """By `register`, which leaves nothing behind."""
    async with quiet_cache() as cache:
        with pytest.raises(error, match=said):
            await cache.register(
                "shout",
                FOLDER / "incremental.wasm",
                args=args,
                returns=returns,
                abi="assemblyscript",
            )
        assert not cache.functions()


async def test_a_module_without_the_runtime_is_refused() -> None:
    """For text; the message says how to build it."""
    async with quiet_cache() as cache:
        with pytest.raises(ExportError, match=r"__new, __pin, .*build it with asc --exportRuntime"):
            await cache.register(
                "shout",
                FOLDER / "numbers.wasm",
                args=("str",),
                returns="str",
                abi=AssemblyScriptAbi(),
            )


async def test_a_type_that_several_classes_have_must_be_said() -> None:
    """An `Array` and a `StaticArray` differ in their layout, and the export does not tell which."""
    async with quiet_cache() as cache:
        wasm = FOLDER / "incremental.wasm"
        either = await cache.register("staticF64", wasm, args=("list[f64]",), returns="list[f64]")
        with pytest.raises(AbiError, match=r"Array<f64> or Float64Array or StaticArray<f64>"):
            await either.call([1.0])
        known = await cache.register(
            "staticF64", wasm, args=("StaticArray<f64>",), returns="Array<f64>"
        )
        with pytest.raises(AbiError, match=r"of class \d+, which is no Array<f64>"):
            await known.call([1.0])
        lacks = await cache.register("same", wasm, args=("StaticArray<u64>",), returns="str")
        with pytest.raises(AbiError, match="the module has no class for StaticArray<u64>"):
            await lacks.call([1])
        with pytest.raises(TypeError, match=r"takes 1 argument \(StaticArray<u64>\), got 0"):
            await lacks.call()
        check_invariants(cache)


# -- values


@pytest.mark.parametrize(
    ("export", "kind", "value", "error", "said"),
    [
        ("same", "str", b"x", TypeError, "str takes a str, got b'x'"),
        ("same", "str", None, TypeError, "str takes a str, got None"),
        ("reverse", "bytes", "x", TypeError, "bytes takes bytes or a buffer, got 'x'"),
        ("arrayI8", "array<i8>", [1, 128], OverflowError, "item 1: 128 is out of the range of i8"),
        ("arrayI8", "array<i8>", [1, "2"], TypeError, "item 1: i8 takes an int, got '2'"),
        ("arrayI8", "array<i8>", [1.0], TypeError, "item 0: i8 takes an int"),
        ("arrayF32", "array<f32>", [0.0, 1e39], OverflowError, "item 1: 1e.39 is too large"),
        ("arrayBool", "array<bool>", [True, 2], TypeError, "item 1: bool takes True or False"),
        ("arrayF64", "array<f64>", "12", TypeError, r"list\[f64\] takes a sequence or an array"),
        ("arrayF64", "array<f64>", {1.0}, TypeError, r"list\[f64\] takes a sequence or an array"),
        ("arrayF64", "array<f64>", 1.0, TypeError, r"list\[f64\] takes a sequence or an array"),
    ],
)
async def test_values_that_do_not_fit_say_where(
    export: str, kind: str, value: Any, error: type[Exception], said: str
) -> None:
    """Before any wasm runs: the instance is kept, in a call and in a batch."""
    returns = kind if kind in ("str", "bytes") else kind.replace("array<", "list[")[:-1] + "]"
    async with quiet_cache() as cache:
        function = await cache.register(
            export,
            FOLDER / "incremental.wasm",
            args=(kind,),
            returns=returns,
            called_on_null=value is None and kind != "str",
        )
        if value is None:
            assert await function.call(None) is None  # as nowhere else
            return
        async with function.acquire() as lease:
            with pytest.raises(error, match=rf"argument 1 of {export}.*: {said}"):
                await lease.call(value)
            with pytest.raises(error, match=rf"row 0: argument 1 of {export}.*: {said}"):
                await lease.map([[value]])
        assert cache.stats().idle_instances == 1


async def test_lists_may_be_arrays_of_any_kind() -> None:
    """Of the same numbers, which are copied as they lie; of others; and any sequence."""

    class Index:
        def __index__(self) -> int:
            return 7

    async with quiet_cache() as cache:
        wasm = FOLDER / "incremental.wasm"
        i32 = await cache.register("typedI32", wasm, args=("Int32Array",), returns="list[i32]")
        for value in (
            array.array("i", [1, 2, 3]),
            memoryview(array.array("i", [1, 2, 3])),
            memoryview(array.array("i", [1, 9, 2, 9, 3]))[::2],
            array.array("q", [1, 2, 3]),
            array.array("B", [1, 2, 3]),
            b"\1\2\3",
            range(1, 4),
            (1, 2, True + 2),
        ):
            assert await i32.call(value) == [2, 1]
        assert await i32.call([Index(), 5, 6]) == [5, 7]
        with pytest.raises(OverflowError, match="item 1: 2147483648 is out of the range of i32"):
            await i32.call(array.array("q", [0, 2**31]))
        u64 = await cache.register("arrayU64", wasm, args=("array<u64>",), returns="list[u64]")
        big = [2**64 - 1, *range(100_000)]
        assert await u64.call(big) == big[::-1]
        assert await u64.call([Index(), 2**64 - 1]) == [2**64 - 1, 7]
        f64 = await cache.register("arrayF64", wasm, args=("array<f64>",), returns="list[f64]")
        assert await f64.call(array.array("f", [0.5])) == [0.5]
        check_invariants(cache)


async def test_long_text_crosses_whole() -> None:
    """In pieces, none of which cuts a pair in two."""
    async with quiet_cache(memory_limit=2**27) as cache:
        same = await cache.register("same", FOLDER / "minimal.wasm", args=("str",), returns="str")
        for text in ("x" * 3_000_000, "\U0001f600" * 800_001, "a" + "\U0001f600" * 800_000):
            assert await same.call(text) == text


async def test_null_is_none() -> None:
    """Without `called_on_null`, the guest is not called; a result may be null in any case."""
    async with quiet_cache() as cache:
        wasm = FOLDER / "incremental.wasm"
        skips = await cache.register("orNull", wasm, args=("str",), returns="str")
        assert await skips.call(None) is None
        assert await skips.call("") is None
        async with skips.acquire() as lease:
            assert await lease.map([["a", None, ""]]) == ["a", None, None]
        passes = await cache.register(
            "passes", wasm, export="orNull", args=("str",), returns="str", called_on_null=True
        )
        assert await passes.call(None) == "it was null"
        async with passes.acquire() as lease:
            assert await lease.map([["a", None, ""]]) == ["a", "it was null", None]


async def test_a_result_is_limited_before_it_is_made() -> None:
    """The instance is intact, so that the lease goes on."""
    async with quiet_cache(max_result_size=100_000) as cache:
        repeat = await cache.register(
            "repeat", FOLDER / "incremental.wasm", args=("str", "i32"), returns="str"
        )
        async with repeat.acquire() as lease:
            for text in ("x", "\u20ac", "\U0001f600"):
                with pytest.raises(ResultTooLargeError, match="max_result_size = 100000"):
                    await lease.call(text, 100_000)
                with pytest.raises(ResultTooLargeError) as caught:
                    await lease.map([[text, text], [1, 100_000]])
                assert caught.value.row == 1
                assert await lease.call(text, 3) == text * 3


# -- the standard library


async def test_functions_of_the_application_take_precedence() -> None:
    """Of those that it gives, by the same names."""
    called = []

    def abort(*values: int) -> None:
        called.append(values)
        raise RuntimeError("mine")

    async with quiet_cache() as cache:
        fail = await cache.register(
            "fail",
            FOLDER / "incremental.wasm",
            args=("str",),
            returns="str",
            imports={"env": {"abort": HostFunction(abort, ("i32",) * 4, ())}},
        )
        with pytest.raises(RuntimeError, match="mine"):
            await fail.call("x")
        assert len(called) == 1


async def test_only_functions_of_these_types_are_provided() -> None:
    """Another `abort` is nobody's, and traps if that is asked for."""
    other = wat(
        '(module (import "env" "abort" (func $a)) (func (export "f") (result i32) (call $a) '
        "(i32.const 1)))"
    )
    async with quiet_cache() as cache:
        with pytest.raises(LinkError, match=r"env\.abort"):
            await cache.register("f", other, args=(), returns="i32")
        f = await cache.register("f", other, args=(), returns="i32", missing="trap")
        with pytest.raises(TrapError, match="nobody provides"):
            await f.call()


@pytest.mark.parametrize("isolation", ["fresh", "reset"])
async def test_clock_and_seed_are_those_of_wasi(isolation: Any) -> None:
    """With both, each call gives the same; a clock of the application is asked."""
    async with quiet_cache() as cache:
        wasm, times = FOLDER / "incremental.wasm", iter([1.5, 2.0004])
        for number, wasi in enumerate([Wasi(random=7, clock=3), Wasi(clock=lambda: next(times))]):
            now = await cache.register(
                f"now{number}", wasm, export="now", args=(), returns="f64", wasi=wasi
            )
            assert await now.call() == (3000.0, 1500.0)[number]
            random = await cache.register(
                f"random{number}",
                wasm,
                export="random",
                args=(),
                returns="f64",
                wasi=wasi,
                isolation=isolation,
            )
            made = {await random.call() for _ in range(5)}
            assert len(made) == (1, 5)[number]
            assert all(0 <= one < 1 for one in made)
        assert await cache.functions()[0].call() in (3000.0, 2000.0)


async def test_words_are_kept_for_the_error_of_a_failing_call() -> None:
    """By default the tail of the output is in the error; with "drop", nothing is even read."""
    source = """(module (import "env" "console.log" (func $log (param i32)))
        (memory (export "memory") 1) (data (i32.const 24) "\\06\\00\\00\\00h\\00\\00\\d8o\\00")
        (func (export "f") (param i32) (call $log (local.get 0)) (unreachable)))"""
    async with quiet_cache() as cache:
        f = await cache.register("f", wat(source), args=("i32",))
        with pytest.raises(TrapError) as caught:
            await f.call(28)
        assert caught.value.output == "h\ufffdo\n"
        with pytest.raises(TrapError) as caught:
            await f.call(0)
        assert caught.value.output == "null\n"
        for at in (1, 19, -1, 65537):
            with pytest.raises(AbiError, match="a string at"):
                await f.call(at)
        dropped = await cache.register(
            "g", wat(source), export="f", args=("i32",), wasi=Wasi(stdout="drop")
        )
        with pytest.raises(TrapError):
            await dropped.call(-1)


# -- wherever it ends


@pytest.mark.parametrize("isolation", ["reuse", "reset"])
@pytest.mark.parametrize("runtime", ["incremental", "minimal"])
async def test_cancelled_anywhere(runtime: str, isolation: Any) -> None:
    """While objects are made, in the function, while garbage is collected, and in a batch."""
    async with quiet_cache(yield_fuel=30_000, offload_after=None) as cache:
        wasm = FOLDER / f"{runtime}.wasm"
        join = await cache.register(
            "join", wasm, args=("str",) * 3, returns="str", isolation=isolation
        )
        litter = await cache.register(
            "litter",
            wasm,
            args=("i32",),
            returns="i32",
            abi="assemblyscript",
            isolation=isolation,
        )

        async def scenario() -> None:
            assert await join.call("a" * 300, "b", "c") == "a" * 300 + "-b-c"
            async with litter.acquire() as lease:
                assert list(await lease.map([[100, 100]])) == [10_000, 10_000]
            async with join.acquire() as lease:
                assert await lease.map([["a" * 100] * 3, "b", "c"]) == ["a" * 100 + "-b-c"] * 3

        def check() -> None:
            check_invariants(cache)
            assert cache.stats().running_instances == 0

        assert await cancel_everywhere(scenario, check) > 10
        await scenario()


async def test_failing_anywhere() -> None:
    """With any amount of fuel, a call gives its result or fails as it must, and so does a batch."""
    wasm = FOLDER / "minimal.wasm"
    types = ("array<f64>", "f64", "staticarray<f64>", "str")
    seen = set()
    for fuel in [*range(1, 400, 37), *range(400, 6000, 450), 10**6]:
        async with quiet_cache(total_fuel=fuel) as cache:
            total = await cache.register("sum", wasm, args=types, returns="f64")
            try:
                async with total.acquire() as lease:
                    assert await lease.call([1, 2], 0.5, [3], "four") == 8.5
                    made = await lease.map([[[1, 2]] * 3, 0.5, [[3]] * 3, "four"])
                    assert list(made) == [8.5] * 3
            except (LoadError, FuelExhaustedError) as error:
                seen.add(type(error))
            else:
                seen.add(float)
            check_invariants(cache)
    assert seen == {LoadError, FuelExhaustedError, float}
