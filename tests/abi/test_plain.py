"""The plain ABI on real wasm: what goes in comes out, and what does not fit never goes in."""

from __future__ import annotations

import decimal
import fractions
import math
import struct
from typing import Any

import pytest
from engine.support import quiet_cache, wat
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache import AbiError, Function, HostFunction, InstanceCache, TrapError
from trio_wasmcache._abi.plain import TYPES, PlainAbi
from trio_wasmcache.testing import check_invariants

# Written down once more, so that a slip in the table of the library shows: {type: (wasm, range)}
INTEGERS = {
    "i8": ("i32", -128, 127),
    "i16": ("i32", -32768, 32767),
    "i32": ("i32", -2147483648, 2147483647),
    "i64": ("i64", -9223372036854775808, 9223372036854775807),
    "u8": ("i32", 0, 255),
    "u16": ("i32", 0, 65535),
    "u32": ("i32", 0, 4294967295),
    "u64": ("i64", 0, 18446744073709551615),
}
WASM_TYPES = {name: wasm for name, (wasm, _, _) in INTEGERS.items()} | {
    "bool": "i32",
    "f32": "f32",
    "f64": "f64",
}
ECHO = wat(
    "(module "
    + "".join(
        f'(func (export "{t}") (param {t}) (result {t}) local.get 0)'
        for t in ("i32", "i64", "f32", "f64")
    )
    + ")"
)
LARGEST_F32 = 3.4028234663852886e38
examples = tries(15)


def in_range(name: str) -> st.SearchStrategy[Any]:
    if name == "bool":
        return st.booleans()
    if name in ("f32", "f64"):
        return st.floats(width=32 if name == "f32" else 64)
    _, low, high = INTEGERS[name]
    return st.integers(low, high) | st.sampled_from([low, low + 1, high - 1, high])


def out_of_range(name: str) -> st.SearchStrategy[int]:
    _, low, high = INTEGERS[name]
    return st.integers(max_value=low - 1) | st.integers(min_value=high + 1)


def drawn(strategy: st.SearchStrategy[Any]) -> list[Any]:
    """Values that Hypothesis comes up with: a test that awaits can't be run once for each."""
    values: list[Any] = []

    @examples
    @given(st.lists(strategy, min_size=10, max_size=40))
    def collect(some: list[Any]) -> None:
        values.extend(some)

    collect()
    return values


async def echo(cache: InstanceCache, takes: str, gives: str | None = None, **more: Any) -> Function:
    """A function that gives back what it gets, as one type or as two of the same wasm type."""
    return await cache.register(
        "echo",
        ECHO,
        args=(takes,),
        returns=gives or takes,
        export=WASM_TYPES[takes],
        replace=True,
        **more,
    )


def same(a: Any, b: Any) -> bool:
    """Equal and of one type; for floats bit by bit, but for what tells one NaN from another."""
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b


def test_every_type_is_tested() -> None:
    """The types of the library are those of the tables here."""
    assert TYPES.keys() == WASM_TYPES.keys()


@pytest.mark.parametrize("name", WASM_TYPES)
async def test_what_goes_in_comes_out(name: str) -> None:
    """Any value in the range of a type goes to wasm and back as it was."""
    async with quiet_cache() as cache:
        async with (await echo(cache, name)).acquire() as lease:
            for value in drawn(in_range(name)):
                assert same(await lease.call(value), value)
        check_invariants(cache)


@pytest.mark.parametrize("name", INTEGERS)
async def test_integers_out_of_range_never_go_in(name: str) -> None:
    """An int over the range is an OverflowError that names it; no wasm runs, the lease is fine."""
    _, low, high = INTEGERS[name]
    always = [low - 1, high + 1, 2**64, -(2**64), 10**30, -(10**30)]
    async with quiet_cache() as cache:
        async with (await echo(cache, name)).acquire() as lease:
            for value in always + drawn(out_of_range(name)):
                with pytest.raises(OverflowError) as caught:
                    await lease.call(value)
                text = str(caught.value)
                assert text.startswith(f"argument 1 of echo({name}): {value}"[:100])
                assert f"out of the range of {name}, {low} to {high}" in text
            assert cache.stats().calls == 0
            assert await lease.call(high) == high
        check_invariants(cache)


class Indexed:
    def __index__(self) -> int:
        return 7


class Real:
    def __float__(self) -> float:
        return 2.5


class Nothing:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


MISFITS: list[tuple[str, Any]] = [
    *((name, value) for name in INTEGERS for value in (1.0, 1.5, "1", b"1", None, [1], 1j, Real())),
    *((name, value) for name in ("f32", "f64") for value in ("1", b"1", None, [1.0], 1j, object())),
    *(("bool", value) for value in (0, 1, 2, "True", None, 1.0, Indexed())),
    ("i64", decimal.Decimal(1)),
    ("u8", fractions.Fraction(1)),
]


async def test_values_of_another_type_never_go_in() -> None:
    """What is no number of the kind is a TypeError that names argument, type and value."""
    async with quiet_cache() as cache:
        for name, value in MISFITS:
            function = await echo(cache, name, called_on_null=True)
            async with function.acquire() as lease:
                with pytest.raises(TypeError) as caught:
                    await lease.call(value)
                text = str(caught.value)
                assert text.startswith(f"argument 1 of echo({name}): {name} takes ")
                assert text.endswith(f", got {value!r}")
        assert cache.stats().calls == 0
        check_invariants(cache)


@pytest.mark.parametrize("name", ["i64", "u8", "i32", "f64", "f32"])
async def test_an_int_too_long_to_be_printed_is_an_overflow(name: str) -> None:
    """Python prints no int of over 4300 digits; the error is about its size all the same."""
    async with quiet_cache() as cache:
        function = await echo(cache, name)
        for value in (10**5000, -(10**5000)):
            with pytest.raises(OverflowError, match=r"argument 1 of echo\(.*a value of type int"):
                await function.call(value)
        assert cache.stats().calls == 0


async def test_a_value_without_a_repr_is_named_by_its_type() -> None:
    """A broken __repr__ does not hide which argument it was."""
    async with quiet_cache() as cache:
        with pytest.raises(TypeError, match="got a value of type Nothing"):
            await (await echo(cache, "u8")).call(Nothing())


class Unprintable:
    """A number and a buffer that has no repr."""

    def __index__(self) -> int:
        raise OverflowError("too large to tell")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize("name", ["i32", "i64", "u8"])
async def test_a_number_whose_repr_raises_is_refused_all_the_same(name: str) -> None:
    """Nobody asks it for more than it can say, and the instance is not spoilt."""
    async with quiet_cache() as cache:
        function = await cache.register(
            "f", ECHO, args=(name,), returns=name, export=WASM_TYPES[name]
        )
        async with function.acquire() as lease:
            with pytest.raises((TypeError, OverflowError)):
                await lease.call(Unprintable())
            assert await lease.call(7) == 7


class Broken:
    """Neither an index nor a float after all."""

    def __index__(self) -> int:
        raise KeyError("no index")

    def __float__(self) -> float:
        raise ZeroDivisionError("no float")


@pytest.mark.parametrize("name", ["i32", "i64", "u8", "f32", "f64"])
async def test_a_number_that_raises_whatever_is_refused_all_the_same(name: str) -> None:
    """Its error is named in a TypeError; no wasm has run, so the lease goes on."""
    problem = "ZeroDivisionError" if name.startswith("f") else "KeyError"
    async with quiet_cache() as cache, (await echo(cache, name)).acquire() as lease:
        for value in (lease.call(Broken()), lease.map([[1, Broken()]])):
            with pytest.raises(TypeError, match=rf"argument 1 of echo\(.*, which raised {problem}"):
                await value
        assert await lease.call(7) == 7


async def test_a_bool_of_numpy_is_one() -> None:
    """By itself, in a list, for all rows, and as what a host function gives."""
    numpy = pytest.importorskip("numpy")
    async with quiet_cache() as cache, (await echo(cache, "bool")).acquire() as lease:
        assert await lease.call(numpy.True_) is True
        assert await lease.call(numpy.False_) is False
        assert (await lease.map([[numpy.True_, False]])).tolist() == [True, False]
        assert (await lease.map([numpy.True_], rows=2)).tolist() == [True, True]
        for value in (numpy.int8(1), numpy.array([True]), b"x"):
            with pytest.raises(TypeError, match="bool takes True or False, got"):
                await lease.call(value)


async def test_a_failed_call_of_a_value_whose_repr_raises_says_so() -> None:
    """The error of the guest is not lost on the way to naming its arguments."""

    class Bytes(bytes):
        __repr__ = Unprintable.__repr__

    wasm = wat(
        '(module (memory (export "memory") 1)'
        ' (func (export "f") (param i32 i32) (result i32) unreachable))'
    )
    async with quiet_cache() as cache:
        function = await cache.register("f", wasm, args=("bytes",), returns="u32", abi="buffer")
        with pytest.raises(TrapError, match=r"called with \(a value of type Bytes\)"):
            await function.call(Bytes(b"x"))


async def test_a_value_as_long_as_a_book_is_cut() -> None:
    """A message stays short whatever was passed."""
    async with quiet_cache() as cache:
        with pytest.raises(TypeError) as caught:
            await (await echo(cache, "i64")).call("x" * 1_000_000)
        assert len(str(caught.value)) < 200


async def test_braces_in_a_name_are_only_braces() -> None:
    """The name of a function is shown as it is, whatever it looks like to str.format."""
    async with quiet_cache() as cache:
        name = "f{}{x}%s"
        function = await cache.register(name, ECHO, args=("u8",), returns="u8", export="i32")
        with pytest.raises(OverflowError) as caught:
            await function.call(256)
        assert f"argument 1 of {name}(u8)" in str(caught.value)


async def test_what_can_be_an_index_or_a_float_is_one() -> None:
    """__index__ does for every int, __float__ for a float, bool for any number."""
    async with quiet_cache() as cache:
        for name in INTEGERS:
            function = await echo(cache, name)
            assert await function.call(Indexed()) == 7
            assert await function.call(True) == 1
        for name in ("f32", "f64"):
            function = await echo(cache, name)
            assert await function.call(Real()) == 2.5
            assert await function.call(3) == 3.0
            assert await function.call(True) == 1.0
            assert await function.call(decimal.Decimal("0.5")) == 0.5


async def test_a_float_of_32_bits_is_rounded_or_refused() -> None:
    """f32 rounds to the nearest; what would round to infinity is refused, infinity is not."""
    end = (2 - 2**-24) * 2.0**127
    async with quiet_cache() as cache, (await echo(cache, "f32")).acquire() as lease:
        assert await lease.call(0.1) == struct.unpack("f", struct.pack("f", 0.1))[0]
        assert await lease.call(LARGEST_F32) == LARGEST_F32
        assert await lease.call(math.nextafter(end, 0)) == LARGEST_F32
        assert await lease.call(-math.nextafter(end, 0)) == -LARGEST_F32
        assert await lease.call(1e-50) == 0.0
        assert await lease.call(math.inf) == math.inf
        assert await lease.call(-math.inf) == -math.inf
        assert math.isnan(await lease.call(math.nan))
        for value in (end, -end, 1e39, -1e300, 10**40, 10**400, -(10**400)):
            with pytest.raises(OverflowError, match=r"argument 1 of echo\(f32\): .* f32"):
                await lease.call(value)
        assert await lease.call(1.5) == 1.5


async def test_an_int_too_large_for_a_float_is_refused() -> None:
    """An int that no 64-bit float comes near is an OverflowError; between two, the nearest."""
    async with quiet_cache() as cache, (await echo(cache, "f64")).acquire() as lease:
        assert await lease.call(2**53) == await lease.call(2**53 + 1) == 2.0**53
        assert await lease.call(2**53 + 3) == 2.0**53 + 4
        for value in (10**400, -(10**400)):
            with pytest.raises(OverflowError, match="too large for f64"):
                await lease.call(value)
        assert await lease.call(1.5) == 1.5


@pytest.mark.parametrize(
    ("takes", "gives", "value", "result"),
    [
        ("i64", "u64", -1, 2**64 - 1),
        ("i64", "u64", -(2**63), 2**63),
        ("u64", "i64", 2**64 - 1, -1),
        ("u64", "i64", 2**63, -(2**63)),
        ("u64", "i64", 2**63 - 1, 2**63 - 1),
        ("i32", "u32", -1, 2**32 - 1),
        ("i32", "u32", -(2**31), 2**31),
        ("u32", "i32", 2**32 - 1, -1),
        ("u32", "i32", 2**31, -(2**31)),
        ("u32", "i32", 2**31 - 1, 2**31 - 1),
        ("i8", "u32", -1, 2**32 - 1),
        ("u16", "i32", 65535, 65535),
        ("bool", "u8", True, 1),
        ("u8", "bool", 0, False),
    ],
)
async def test_a_sign_is_what_the_type_says(
    takes: str, gives: str, value: int, result: int
) -> None:
    """The same bits are another number as another type: unsigned ones have no sign bit."""
    async with quiet_cache() as cache:
        assert same(await (await echo(cache, takes, gives)).call(value), result)


@pytest.mark.parametrize(
    ("gives", "value", "shown"),
    [
        ("u8", 256, "256"),
        ("u8", -1, "4294967295"),
        ("i8", 128, "128"),
        ("i8", -129, "-129"),
        ("u16", 65536, "65536"),
        ("i16", -32769, "-32769"),
        ("bool", 2, "2"),
        ("bool", -1, "4294967295"),
    ],
)
async def test_a_result_out_of_range_breaks_the_abi(gives: str, value: int, shown: str) -> None:
    """A guest that returns what its type can't hold gives AbiError with the value and the range."""
    async with quiet_cache() as cache:
        function = await echo(cache, "i32", gives)
        with pytest.raises(AbiError) as caught:
            await function.call(value)
        assert "echo(i32)" in str(caught.value)
        assert f"returned {shown}, out of the range of {gives}" in str(caught.value)
        assert await function.call(1) == 1
        check_invariants(cache)


async def test_none_for_any_argument_gives_none_without_a_call() -> None:
    """With called_on_null=False, None anywhere gives None; other values are not even looked at."""
    source = '(module (func (export "f") (param i64 f64) (result i64) unreachable))'
    async with quiet_cache() as cache:
        function = await cache.register("f", source, args=("i64", "f64"), returns="i64")
        async with function.acquire() as lease:
            assert await lease.call(None, 1.0) is None
            assert await lease.call(1, None) is None
            assert await lease.call(None, "nonsense") is None
            assert cache.stats().calls == 0
            assert lease.fuel_consumed is None
            with pytest.raises(TypeError, match=r"takes 2 arguments \(i64, f64\), got 1"):
                await lease.call(None)
            with pytest.raises(TrapError):
                await lease.call(1, 1.0)


async def test_none_has_no_number() -> None:
    """With called_on_null=True the plain ABI has to pass None, and can't."""
    async with quiet_cache() as cache:
        function = await echo(cache, "i64", called_on_null=True)
        with pytest.raises(TypeError, match=r"argument 1 of echo\(i64\): i64 takes an int, got No"):
            await function.call(None)
        assert cache.stats().calls == 0


async def test_the_argument_that_is_wrong_is_numbered() -> None:
    """Among several arguments the message counts from 1; too many or too few are told apart."""
    source = '(module (func (export "f") (param i64 i32 f32) (result i64) local.get 0))'
    for types in (("i64", "u16", "f32"), ("i64", "i32", "f32")):
        async with quiet_cache() as cache:
            function = await cache.register("f", source, args=types, returns="i64")
            for values, kind, said in (
                (("a", 1, 1.0), TypeError, "argument 1 of f("),
                ((1, "b", 1.0), TypeError, "argument 2 of f("),
                ((1, 2**32, 1.0), OverflowError, "argument 2 of f("),
                ((1, 2, "c"), TypeError, "argument 3 of f("),
                ((1, 2, 1e39), OverflowError, "argument 3 of f("),
                ((1, 2), TypeError, "takes 3 arguments"),
                ((1, 2, 3.0, 4), TypeError, "got 4"),
                ((), TypeError, "got 0"),
            ):
                with pytest.raises(kind) as caught:
                    await function.call(*values)
                assert said in str(caught.value)
                assert f"f({', '.join(types)})" in str(caught.value)
            assert cache.stats().calls == 0
            assert await function.call(5, 2, 3.0) == 5


async def test_results_are_none_a_value_or_a_tuple() -> None:
    """No result is None, one is the value, several are a tuple with each as its type says."""
    body = "i32.const -1 i64.const -1 f32.const 0.5 f64.const 0.25 i32.const 1"
    source = f"""(module (func (export "none"))
        (func (export "one") (result i32) i32.const 3)
        (func (export "many") (result i32 i64 f32 f64 i32) {body}))"""
    async with quiet_cache() as cache:
        for export, returns, expected in (
            ("none", None, None),
            ("none", (), None),
            ("one", "i32", 3),
            ("one", ("u8",), 3),
            ("many", ("i32", "i64", "f32", "f64", "i32"), (-1, -1, 0.5, 0.25, 1)),
            (
                "many",
                ("u32", "u64", "f32", "f64", "bool"),
                (2**32 - 1, 2**64 - 1, 0.5, 0.25, True),
            ),
        ):
            function = await cache.register(
                "f", source, args=(), returns=returns, export=export, replace=True
            )
            assert function.returns == returns
            result = await function.call()
            assert result == expected
            if isinstance(expected, tuple):
                assert [type(value) for value in result] == [type(value) for value in expected]


async def test_type_names_are_spelt_freely() -> None:
    """Case and spaces of a type name do not matter."""
    async with quiet_cache() as cache:
        function = await cache.register("f", ECHO, args=(" U 64 ",), returns="\tI64", export="i64")
        assert function.args == ("u64",)
        assert function.returns == "i64"
        assert await function.call(2**64 - 1) == -1


async def test_numpy_scalars_are_numbers() -> None:
    """numpy's integers and floats go in as Python's do, and out of range they stay out."""
    numpy = pytest.importorskip("numpy")
    async with quiet_cache() as cache:
        for name in INTEGERS:
            function = await echo(cache, name)
            for kind in (numpy.int8, numpy.uint8, numpy.int32, numpy.int64, numpy.uint64):
                assert same(await function.call(kind(7)), 7)
            with pytest.raises(TypeError, match="argument 1 of echo"):
                await function.call(numpy.float64(7))
        for name in ("f32", "f64"):
            function = await echo(cache, name)
            for kind in (numpy.float16, numpy.float32, numpy.float64, numpy.int16):
                assert same(await function.call(kind(2)), 2.0)
        assert await (await echo(cache, "u64")).call(numpy.uint64(2**64 - 1)) == 2**64 - 1
        for name, value, kind in (
            ("i64", numpy.uint64(2**64 - 1), OverflowError),
            ("u8", numpy.int64(-1), OverflowError),
            ("f32", numpy.float64(1e300), OverflowError),
            ("bool", numpy.int64(1), TypeError),
        ):
            with pytest.raises(kind, match=rf"argument 1 of echo\({name}\)"):
                await (await echo(cache, name)).call(value)


@pytest.mark.parametrize("name", WASM_TYPES)
def test_host_functions_convert_the_other_way(name: str) -> None:
    """A host function's results are what Python gives: they are checked as arguments are."""
    host = HostFunction(print, params=(name,), results=(name,))
    assert host.type.params == host.type.results == (WASM_TYPES[name],)
    abi = PlainAbi("host function f", (name,), (name,), host=True)
    bits = 64 if WASM_TYPES[name] == "i64" else 32
    for value in drawn(in_range(name)):
        (raw,) = abi.checked((value,))
        if name not in ("f32", "f64"):
            assert -(2 ** (bits - 1)) <= raw < 2 ** (bits - 1)
            assert (raw - value) % 2**bits == 0
        assert same(raw if abi.lift is None else abi.lift(raw), value)
    with pytest.raises(TypeError, match="result 1 of host function f"):
        abi.checked(("x",))
    if name in INTEGERS:
        with pytest.raises(OverflowError, match="result 1 of host function f"):
            abi.checked((2**70,))
