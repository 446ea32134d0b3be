"""Fakes of Python values, also in place of files: they give what the real ones give."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from abi.support import udf
from attrs import field, frozen
from counting import no_new_threads
from engine.support import quiet_cache, wat
from kits import WasmtimeKit
from trio.testing import MockClock

from trio_wasmcache import (
    BufferAbi,
    CacheConfig,
    Function,
    HostFunction,
    InstanceCache,
    InvalidModuleError,
    ResultTooLargeError,
    ScyllaAbi,
    SignatureError,
)
from trio_wasmcache.testing import FakeEngine, check_invariants, open_fake_cache

ADD = wat(
    '(module (func (export "add") (param i64 i32) (result i64)'
    " (i64.add (local.get 0) (i64.extend_i32_s (local.get 1)))))"
)
TWO = wat(
    '(module (func (export "two") (param i64) (result i64 f64)'
    " (local.get 0) (f64.convert_i64_s (local.get 0))))"
)
NOTHING = wat('(module (func (export "nothing") (param i64)))')


def plus(one: int | None, other: int | None) -> int | None:
    return None if one is other is None else (one or 0) + (other or 0)


@frozen(kw_only=True)
class Pair:
    """A function, once as WebAssembly and once as a fake, and what to call it with."""

    name: str
    wasm: bytes
    fake: Callable[..., Any]
    args: tuple[str, ...]
    returns: str | tuple[str, ...] | None
    rows: list[tuple[Any, ...]]
    more: dict[str, Any] = field(factory=dict)


PAIRS = [
    Pair(
        name="add",
        wasm=ADD,
        fake=lambda one, other: one + other,
        args=("i64", "i32"),
        returns="i64",
        rows=[(1, 2), (-5, 3), (None, 1), (1, "x"), (1,), (1, 2**31), (1.5, 1), (2**63, 1)],
    ),
    Pair(
        name="add",
        wasm=ADD,
        fake=lambda one, other: one + other,
        args=("u64", "i8"),
        returns="u64",
        rows=[(2**64 - 2, 1), (-1, 1), (1, 200)],
        more={"called_on_null": True, "abi": "plain"},
    ),
    Pair(
        name="two",
        wasm=TWO,
        fake=lambda one: (one, float(one)),
        args=("i64",),
        returns=("i64", "f64"),
        rows=[(4,), (-1,), (None,)],
    ),
    Pair(
        name="nothing",
        wasm=NOTHING,
        fake=lambda one: one,
        args=("i64",),
        returns=None,
        rows=[(4,), (None,)],
    ),
    Pair(
        name="upper_packed",
        wasm=udf("buffer"),
        fake=str.upper,
        args=("str",),
        returns="str",
        rows=[("abc",), ("",), (None,), (b"abc",), ("\ud800",), (5,), ()],
        more={"abi": "buffer"},
    ),
    Pair(
        name="upper_nul",
        wasm=udf("buffer"),
        fake=bytes.upper,
        args=("bytes",),
        returns="bytes",
        rows=[(b"abc",), (b"a\0c",), ("abc",)],
        more={"abi": BufferAbi(argument="nul", result="nul", alloc="malloc", free="free")},
    ),
    Pair(
        name="repeat",
        wasm=udf("buffer"),
        fake=lambda text, times: text * times,
        args=("str", "u32"),
        returns="str",
        rows=[("ab", 2), ("ab", -1), (3, 3), ("ab", None)],
        more={"abi": "buffer"},
    ),
    Pair(
        name="join",
        wasm=udf("scylla_v2"),
        fake=lambda one, other: one + other,
        args=("text", "text"),
        returns="text",
        rows=[("a", "b"), ("", ""), (None, "b"), (1, "b")],
    ),
    Pair(
        name="count",
        wasm=udf("scylla_v1"),
        fake=lambda text, letter: text.count(chr(letter)),
        args=("text", "int"),
        returns="int",
        rows=[("banana", 97), ("banana", "a"), ("banana", 2**31), (None, 1)],
        more={"abi": "scylla"},
    ),
    Pair(
        name="plus",
        wasm=udf("scylla_v2"),
        fake=plus,
        args=("int", "int"),
        returns="int",
        rows=[(40, 2), (None, 2), (-3, None), (None, None), (1, "x")],
        more={"called_on_null": True},
    ),
    Pair(
        name="echo",
        wasm=udf("scylla_v2"),
        fake=lambda value: value,
        args=("list<int>",),
        returns="list<int>",
        rows=[([1, 2],), ([],), (None,), (["x"],), ("xy",)],
        more={"abi": ScyllaAbi()},
    ),
]


async def outcome(function: Function, values: tuple[Any, ...]) -> tuple[type, object]:
    """The type and value of a result, or the type and message of an error."""
    try:
        result = await function.call(*values)
    except (TypeError, ValueError, OverflowError) as error:
        return type(error), str(error)
    return type(result), result


async def mapped(function: Function, columns: list[Any]) -> tuple[object, ...]:
    """The same of a batch; a column in numbers is compared as a list with its format."""
    async with function.acquire() as lease:
        try:
            result = await lease.map(columns)
        except (TypeError, ValueError, OverflowError) as error:
            return type(error), str(error)
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(
        (type(one), getattr(one, "format", ""), None if one is None else list(one)) for one in parts
    )


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.name} {pair.args}")
async def test_a_fake_gives_what_the_real_one_gives(pair: Pair) -> None:
    """Results, nulls, and the errors of values that don't fit; in calls and in batches."""
    engine = FakeEngine()
    fake = engine.function(pair.fake, args=pair.args, returns=pair.returns)
    async with quiet_cache() as cache, open_fake_cache(engine=engine) as other:

        async def register(to: InstanceCache, wasm: bytes) -> Function:
            return await to.register(
                pair.name, wasm, args=pair.args, returns=pair.returns, **pair.more
            )

        real, faked = await register(cache, pair.wasm), await register(other, fake)
        for values in pair.rows:
            assert await outcome(faked, values) == await outcome(real, values)
        complete = [values for values in pair.rows if len(values) == len(pair.args)]
        fitting = [
            one for one in complete if not issubclass((await outcome(real, one))[0], Exception)
        ]
        # One misfit at most: which of several is named depends on the order of checking.
        for rows in (fitting, [], *([*fitting, one] for one in complete)):
            columns = [list(column) for column in zip(*rows, strict=True)]
            columns = columns or [[] for _ in pair.args]
            assert await mapped(faked, columns) == await mapped(real, columns)
        check_invariants(other)


async def test_columns_of_numbers_are_buffers() -> None:
    """In and out, as with a driver."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:
        fake = engine.function(lambda one: one > 1)
        big = await cache.register("big", fake, args=("i64",), returns="bool")
        async with big.acquire() as lease:
            result = await lease.map([array("q", [1, 2, 3])])
        assert (type(result), result.tolist()) == (memoryview, [False, True, True])


@pytest.mark.parametrize(
    ("returns", "abi", "made", "message"),
    [
        (
            "str",
            "buffer",
            3,
            r"returned what does not fit: str takes a str, got 3",
        ),
        (
            "str",
            "buffer",
            None,
            r"returned what does not fit: str takes a str, got None",
        ),
        (
            "i64",
            "buffer",
            "x",
            r"returned what does not fit: i64 takes an int, got 'x'",
        ),
        (
            "i8",
            "buffer",
            200,
            r"returned what does not fit: 200 is out of the range of i8",
        ),
        (("i64", "i64"), "buffer", 1, r"the fake of f\(str\) returned 1: 2 results take a tuple"),
    ],
)
async def test_a_result_that_does_not_fit_is_named(
    returns: Any, abi: str, made: object, message: str
) -> None:
    """As no real function could return it; the instance is dropped, like after any failure."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:
        fake = engine.function(lambda _: made)
        function = await cache.register("f", fake, args=("str",), returns=returns, abi=abi)
        with pytest.raises((TypeError, OverflowError), match=message):
            await function.call("x")
        assert cache.stats().evictions["corrupted"] == 1
        check_invariants(cache)


async def test_a_fake_function_raises_takes_time_and_burns_fuel(
    autojump_clock: MockClock,
) -> None:
    """As `module` does: the same exception, in batches with the row."""
    engine = FakeEngine()
    error = ValueError("no vowels")

    def run(text: str) -> str:
        if text == "xyz":
            raise error
        return text

    async with open_fake_cache(engine=engine) as cache:
        fake = engine.function(run, seconds=10, fuel=250_000)
        function = await cache.register("f", fake, args=("str",), returns="str", abi="buffer")
        async with function.acquire() as lease:
            assert await lease.call("abc") == "abc"
            assert (trio.current_time(), lease.fuel_consumed) == (10, 250_000)
            with trio.move_on_after(25) as scope:
                await lease.map([["a", "b", "c"]])
            assert (scope.cancelled_caught, trio.current_time()) == (True, 35)
        with pytest.raises(ValueError, match="no vowels") as caught:
            await function.call("xyz")
        assert caught.value is error
        async with function.acquire() as lease:
            with pytest.raises(ValueError, match="no vowels") as caught:
                await lease.map([["a", "xyz"]])
        assert caught.value is error
        assert error.__notes__ == ["in row 1 of a batch of f"]
        check_invariants(cache)


async def test_results_are_counted() -> None:
    """`max_result_size` holds for fakes, too."""
    engine = FakeEngine()
    config = CacheConfig(max_result_size=10_000, offload_after=None)
    async with open_fake_cache(config, engine=engine) as cache:
        fake = engine.function(lambda times: "x" * times)
        function = await cache.register("f", fake, args=("i64",), returns="str", abi="buffer")
        assert len(await function.call(1000)) == 1000
        with pytest.raises(ResultTooLargeError):
            await function.call(20_000)


async def test_types_must_be_those_of_the_fake() -> None:
    """Of arguments and result; they may be left out. Types are those of the ABI."""
    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:
        fake = engine.function(str.upper, args=[" STR"], returns="str")
        await cache.register("f", fake, args=("str",), returns="Str", abi="buffer")
        for args, returns in ((("bytes",), "str"), (("str",), "bytes"), (("str",), None)):
            with pytest.raises(SignatureError, match="but its fake has"):
                await cache.register("g", fake, args=args, returns=returns, abi="buffer")
        with pytest.raises(SignatureError, match="'str'"):
            await cache.register("g", fake, args=("str",), returns="str", abi="plain")
        with pytest.raises(SignatureError, match="'str'"):
            await cache.register("g", engine.function(str.upper), args=("str",), returns="str")
        assert [one.name for one in cache.functions()] == ["f"]


async def test_an_abi_of_ones_own_is_not_used() -> None:
    """Values of any types go in and out."""

    class Own:
        def bind(self, *_: Any) -> Any:
            raise AssertionError("needs a real module")

    engine = FakeEngine()
    async with open_fake_cache(engine=engine) as cache:
        fake = engine.function(lambda point: {"norm": abs(point["x"])})
        function = await cache.register("f", fake, args=("point",), returns="json", abi=Own())
        assert await function.call({"x": -3}) == {"norm": 3}


# -- in place of files


async def shouting(cache: InstanceCache, folder: Path) -> Function:
    """An application: it registers a file of its own, which is not there in tests."""
    return await cache.register(
        "shout",
        folder / "shout.wasm",
        args=("str",),
        returns="str",
        abi="buffer",
        export="upper_packed",
        imports={"env": {"log": HostFunction(print, params=("i64",), results=())}},
        isolation="reset",
    )


@pytest.mark.parametrize("source", ["shout", Path("udfs/shout.wasm"), Path("x/../udfs/shout.wasm")])
async def test_a_fake_stands_in_for_a_file(
    source: str | Path, autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of the function, or by its path; no thread reads anything, no time passes."""
    monkeypatch.chdir(tmp_path)
    engine = FakeEngine()
    engine.replace(source, engine.function(str.upper))
    async with open_fake_cache(engine=engine) as cache:
        with no_new_threads(), trio.fail_after(1):
            shout = await shouting(cache, tmp_path / "udfs")
            assert await shout.call("hi") == "HI"
        assert trio.current_time() == 0
        with pytest.raises(FileNotFoundError):
            await cache.register("other", tmp_path / "other.wasm", args=(), returns="i64")


async def test_the_same_application_runs_on_the_real_file(
    real: WasmtimeKit, tmp_path: Path
) -> None:
    """The pattern changes nothing of the application."""
    (tmp_path / "shout.wasm").write_bytes(udf("buffer"))
    async with real.open() as cache:
        shout = await shouting(cache, tmp_path)
        assert await shout.call("hi") == "HI"


async def test_a_fake_stands_in_for_bytes_and_text_by_name() -> None:
    """Of wasm's numbers, too: the export's name is the fake's."""
    engine = FakeEngine()
    engine.replace(ADD, engine.module(lambda one, two: one * two, params=("i64", "i32")))
    engine.replace("text", engine.function(lambda one: -one))
    async with open_fake_cache(engine=engine) as cache:
        for wasm in (ADD, bytearray(ADD), memoryview(ADD)):
            add = await cache.register(
                "add", wasm, args=("i64", "i32"), returns="i64", replace=True
            )
            assert await add.call(6, 7) == 42
        text = await cache.register("text", "(module)", args=("i64",), returns="i64")
        assert await text.call(6) == -6
        with pytest.raises(SignatureError):
            await cache.register("other", ADD, args=("i64", "i64"), returns="i64")


def test_what_stands_in_must_be_a_fake() -> None:
    """Of the same engine; and something must be named that it stands in for."""
    engine = FakeEngine()
    engine.function(str.upper)  # the other engine's first fake is not taken for its own first
    for wasm in (ADD, b"", FakeEngine().module(), FakeEngine().function(str.lower)):
        with pytest.raises(InvalidModuleError, match=r"not made by FakeEngine\.module"):
            engine.replace("f", wasm)
    with pytest.raises(TypeError, match=r"fake must be bytes made by FakeEngine\.function"):
        engine.replace("f", str.upper)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source must be a path, bytes or the name of a function"):
        engine.replace(5, engine.module())  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [FakeEngine.module, FakeEngine.function])
def test_a_fake_is_made_of_a_plain_function(make: Callable[..., bytes]) -> None:
    """Neither of an async one, whose coroutine nobody would await, nor of a value."""

    async def run() -> None:
        raise AssertionError("never called")

    with pytest.raises(TypeError, match="is async; to take time, give seconds="):
        make(FakeEngine(), run)
    with pytest.raises(TypeError, match="a fake takes a function, got 5"):
        make(FakeEngine(), 5)


async def test_a_file_without_a_fake_is_named_with_those_that_have_one() -> None:
    """A path is easily misspelt, in the application or in its test."""
    engine = FakeEngine()
    engine.replace(Path("udfs/shout.wasm"), engine.function(str.upper))
    engine.replace("whisper", engine.function(str.lower))
    async with open_fake_cache(engine=engine) as cache:
        with pytest.raises(FileNotFoundError, match="No such file or directory") as caught:
            await cache.register(
                "shout", Path("udf/shout.wasm"), args=("str",), returns="str", abi="buffer"
            )
    (note,) = caught.value.__notes__
    assert note.startswith(
        "the fake engine has nothing in the place of 'udf/shout.wasm' or of the function 'shout'; "
        "FakeEngine.replace was called for: "
    )
    assert note.endswith("udfs/shout.wasm'), 'whisper'")
