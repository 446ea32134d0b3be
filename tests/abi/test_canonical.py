"""The canonical ABI by itself: generated echoes give back what they get."""

from __future__ import annotations

import array
import threading
from typing import Any

import pytest
import trio
import wasmtime
from abi.canonical import CoreGuest, abi_of, bind, call
from components.echo import BUMP, REALLOC, echo_function, result_of
from components.shapes import Shape, parameters, same, values
from components.wit import function_type, to_python
from hypothesis import HealthCheck, given, strategies as st
from kits import WasmtimeKit, tries

from trio_wasmcache import (
    AbiError,
    Err,
    FuelExhaustedError,
    HostFunction,
    Ok,
    ResultTooLargeError,
    TrapError,
    WitError,
)
from trio_wasmcache._abi.canonical import BLOCKS_AT_ONCE, CanonicalAbi, Lifted
from trio_wasmcache._abi.canonical_lift import COPY_PIECE
from trio_wasmcache._abi.gil import MANY
from trio_wasmcache._core.tally import Tally


def core(params: tuple[Shape, ...], *, post: bool) -> str:
    """The text of a core module with an `echo`."""
    function = echo_function(params, "echo", post=post)
    return f'(module (memory (export "memory") 1) {BUMP} {REALLOC} {function})'


@tries(12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(params=parameters(), post=st.booleans(), data=st.data())
def test_echoes_of_any_types(params: tuple[Shape, ...], post: bool, data: st.DataObject) -> None:
    """What a function gets, it gives back, flat or through memory, and post-return is called."""
    result = result_of(params)
    abi = abi_of(params, result, post=post)
    guest, binding = CoreGuest(core(params, post=post), abi), bind(abi)
    for way in ("direct", "steps", "no adapter"):
        neutral = tuple(data.draw(values(of)) for of in params)
        given_values = tuple(to_python(of, one) for of, one in zip(params, neutral, strict=True))
        expected: Any = given_values[0] if len(params) == 1 else given_values
        try:
            answer = call(binding, guest, *given_values, way=way)
        except WitError as error:
            answer = Err(error.value)
        else:
            if isinstance(result, tuple) and result[0] == "result":
                answer = Ok(answer)
        assert same(answer, expected), f"{params}: {given_values!r} came back as {answer!r}"
    if post:
        assert guest.invoked[-1].export == "cabi_post_echo"


WAYS = ("direct", "steps", "no adapter")
LIST: Shape = ("list", "string")


def echo(*params: Shape, post: bool = True) -> tuple[CoreGuest, Any]:
    """A guest that echoes, and its bound function."""
    abi = abi_of(params, result_of(params), post=post)
    return CoreGuest(core(params, post=post), abi), bind(abi)


def answering(result: Shape, address: int, data: bytes = b"") -> tuple[CoreGuest, Any]:
    """A guest whose function takes nothing, and returns an address; there, and at 0, is `data`."""
    text = "".join(f"\\{byte:02x}" for byte in data)
    abi = abi_of((), result, post=True)
    guest = CoreGuest(
        f"""(module (memory (export "memory") 1)
          (global $told (export "told") (mut i32) (i32.const 0))
          {BUMP} {REALLOC} (data (i32.const 0) "{text}")
          (func (export "echo") (result i32) (i32.const {address}))
          (func (export "cabi_post_echo") (param i32)
            (global.set $told (i32.add (global.get $told) (i32.const 1)))))""",
        abi,
    )
    return guest, bind(abi)


def pair(address: int, length: int) -> bytes:
    """An address and a length in memory."""
    return address.to_bytes(4, "little") + length.to_bytes(4, "little")


@pytest.mark.parametrize("way", WAYS[1:])
def test_many_blocks_are_allocated_and_written_in_batches(way: str) -> None:
    """More texts than fit into a scratch arrive, in pieces, between which others may run."""
    guest, binding = echo(LIST)
    texts = [f"{number}" * (number % 5) for number in range(2 * BLOCKS_AT_ONCE + 7)]
    texts.append("x" * 100_000)
    assert call(binding, guest, texts, way=way) == texts
    assert guest.pauses >= 2
    if way == "steps":
        invoked = sum(one.export == "allocate 0" for one in guest.invoked)
        assert invoked == 3
        assert len(guest.invoked) < 10


def test_what_takes_long_is_converted_in_a_thread() -> None:
    """Both ways; the guest's post-return function is called before that, once all is copied."""
    guest, binding = echo(LIST)
    texts = ["a"] * (MANY + 1)
    assert call(binding, guest, texts) == texts
    assert guest.converts == 2
    assert guest.invoked[-1].export == "post 0"
    guest, binding = echo(("list", "s64"))
    numbers = [*range(40_000)]
    assert call(binding, guest, numbers) == numbers
    assert guest.converts == 2


@pytest.mark.parametrize("kind", ["string", ("list", "u8"), ("list", "u32"), ("tuple", LIST, "u8")])
def test_large_content_is_copied_in_pieces(kind: Shape) -> None:
    """Both ways, also of a single value; and a thread converts it."""
    size = 3 * COPY_PIECE + 100
    values: dict[Shape, Any] = {"string": "a" * size, ("list", "u8"): b"\xff" * size}
    value = values.get(kind, array.array("I", [7]) * (size // 4))
    if kind == ("tuple", LIST, "u8"):
        value = ["a" * size, "", "b" * size], 3
    guest, binding = echo(kind)
    answer = call(binding, guest, value)
    assert answer == (value.tolist() if isinstance(value, array.array) else value)
    assert guest.pauses >= 8
    assert guest.converts >= 1
    assert guest.most_written == COPY_PIECE


@pytest.mark.parametrize("way", WAYS)
def test_a_guest_is_told_to_free_a_result_that_is_too_large(way: str) -> None:
    """The refusal comes after post-return, so the instance is intact."""
    guest, binding = answering("string", 8, b"\0" * 8 + pair(0, 50_000))
    guest.tally = Tally(40_000, allowed=2**40)
    with pytest.raises(ResultTooLargeError):
        call(binding, guest, way=way)
    assert guest.exports["told"].value(guest.store) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["string", ("list", "u8"), LIST, ("list", LIST)], ids=str)
@pytest.mark.parametrize(
    ("address", "length"), [(65_536, 1), (65_532, 0xFFFFFFFF), (0xFFFFFFFC, 4), (65_540, 0)]
)
def test_what_lies_outside_of_the_memory_is_refused(
    kind: Shape, address: int, length: int, way: str
) -> None:
    """Addresses and lengths are added without wrapping; the beginning counts for empty ones too."""
    guest, binding = answering(kind, 8, b"\0" * 8 + pair(address, length))
    with pytest.raises(AbiError, match="not inside its memory of 65536 bytes"):
        call(binding, guest, way=way)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_aligned_is_refused(way: str) -> None:
    """The result itself, and lists; also empty ones."""
    for kind, address, data in (
        ("string", 6, b""),
        (("list", "u64"), 8, b"\0" * 8 + pair(4, 1)),
        (("list", "u16"), 8, b"\0" * 8 + pair(1, 0)),
        (LIST, 8, b"\0" * 8 + pair(2, 1)),
    ):
        guest, binding = answering(kind, address, data)
        with pytest.raises(AbiError, match="which is not a multiple of"):
            call(binding, guest, way=way)


@pytest.mark.parametrize("way", WAYS)
def test_texts_chars_and_cases_are_checked(way: str) -> None:
    """Text must be UTF-8, a char a scalar value, and a case must exist."""
    for kind, data, message in (
        ("string", pair(16, 1) + b"\xff", "a string that is not UTF-8"),
        (("tuple", "char", "char"), pair(97, 0xD800), "0xd800 as a char"),
        (("tuple", "char", "char"), pair(97, 0x110000), "0x110000 as a char"),
        (("option", "u8"), b"\2", "case 2 of option<u8>, which has 2"),
    ):
        guest, binding = answering(kind, 8, b"\0" * 8 + data)
        with pytest.raises(AbiError, match=message):
            call(binding, guest, way=way)


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_small_memory_that_says_a_huge_value_is_bounded(way: str) -> None:
    """Lists that lie in each other cost fuel for each value, and are limited by the result's size.

    Each of 1000 lists is the same 1000 lists, four levels deep: 10^12 values in 8 KB.
    """
    kind: Shape = "u8"
    for _ in range(5):
        kind = ("list", kind)
    data = b"\0" * 8 + pair(8, 1000) * 1001
    guest, binding = answering(kind, 8, data)
    guest.tally = Tally(2**20, allowed=2**40)
    with pytest.raises(ResultTooLargeError):
        call(binding, guest, way=way)
    guest, binding = answering(kind, 8, data)
    guest.tally = Tally(2**40, allowed=10_000_000)
    with pytest.raises(FuelExhaustedError):
        call(binding, guest, way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("(i32.const 3)", "the address 3, which is not a multiple of 8"),
        (
            "(i32.const 65536)",
            "the address 65536: that many bytes there exceed its memory of 65536",
        ),
        ("(i32.const -8)", "the address 4294967288: that many bytes there exceed its memory"),
    ],
)
def test_the_answers_of_an_allocator_are_checked(answer: str, message: str, way: str) -> None:
    """Addresses that are not aligned, or outside of the memory, are refused first."""
    abi = abi_of((("list", "u64"),), None)
    guest = CoreGuest(
        f"""(module (memory (export "memory") 1)
          (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) {answer})
          (func (export "echo") (param i32 i32) (unreachable)))""",
        abi,
    )
    with pytest.raises(AbiError, match=message):
        call(bind(abi), guest, [1, 2], way=way)


@pytest.mark.parametrize(
    ("kind", "value", "error", "message"),
    [
        ("u8", 256, OverflowError, r"argument 1 \(p0\) of echo: 256 is out of the range of u8"),
        ("string", b"a", TypeError, "string takes a str"),
        ("string", "\ud800", ValueError, "string has no UTF-8"),
        ("char", "ab", ValueError, "char takes a str of one character, got 2 characters"),
        (("list", "u64"), [1, -1], OverflowError, "item 1: -1 is out of the range of u64"),
        (("list", "u64"), "12", TypeError, "list<u64> takes a sequence"),
        (LIST, ["a", 1], TypeError, "item 1: string takes a str"),
        (("option", ("option", "u8")), 1, TypeError, r"Some\(value\)"),
        (("enum", ("a", "b")), "c", ValueError, "has no case 'c'; there are a, b"),
        (("flags", ("a", "b")), {"c"}, ValueError, "has no label 'c'; there are a, b"),
        (("record", (("a-b", "u8"),)), {"a": 1}, TypeError, "with the keys, .* a_b"),
        (("record", (("a-b", "u8"),)), {"a_b": -1}, OverflowError, "field a_b: -1 is out of"),
        (("tuple", "u8", "u8"), (1,), TypeError, "takes 2 values, got 1"),
        (("variant", (("a", "u8"),)), 1, TypeError, "takes a Case"),
        (("result", "u8", None), 1, TypeError, r"takes an Ok\(value\) or an Err\(value\)"),
    ],
    ids=str,
)
def test_values_that_do_not_fit(
    kind: Shape, value: object, error: type[Exception], message: str
) -> None:
    """The message names the argument, the place in it, the type and the value; no wasm runs."""
    guest, binding = echo(kind, "string")
    assert not binding.direct(guest).lower((value, "x"))
    with pytest.raises(error, match=message):
        call(binding, guest, value, "x")
    assert not guest.invoked


class Number:
    """An int by its method only."""

    def __index__(self) -> int:
        return 7


def test_values_of_other_classes() -> None:
    """Mappings, objects with attributes, buffers and other numbers are taken, in steps."""
    record: Shape = ("record", (("a", "u8"), ("b-c", "string")))

    class Thing:
        a, b_c = 3, "x"

    for value in ({"a": 3, "b_c": "x"}, Thing(), (3, "x")):
        guest, binding = echo(record)
        assert call(binding, guest, value) == (3, "x")
    guest, binding = echo(("list", "u8"))
    for data in (bytearray(b"ab"), memoryview(b"ab"), [97, 98]):
        assert call(binding, guest, data) == b"ab"
    guest, binding = echo("u8", "string")
    assert not binding.direct(guest).lower((Number(), ""))
    assert call(binding, guest, Number(), "") == (7, "")


HOSTED = f"""(module (import "h" "f" (func $f)) (memory (export "memory") 1) {BUMP}
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (if (i32.eq (local.get 3) (i32.const 1)) (then (call $f)))
    (call $alloc (local.get 2) (local.get 3)))
  (func (export "echo") (param i32 i32) (result i32) (call $f) (local.get 1))
  (func (export "cabi_post_echo") (param i32)
    (if (i32.eq (local.get 0) (i32.const 2)) (then (call $f)))))"""


@pytest.mark.parametrize(
    ("given", "when"),
    [
        ("abc", None),
        ("a", "while it allocated memory for an argument (cabi_realloc)"),
        ("ab", "after it had returned (cabi_post_echo)"),
    ],
)
@pytest.mark.parametrize("kind", [str, type("Text", (str,), {})])
async def test_the_host_is_not_called_while_memory_is_allocated_or_after_the_return(
    real: WasmtimeKit, given: str, when: str | None, kind: Any
) -> None:
    """The component model forbids it: the call traps, and the host function does not run."""
    called: list[int] = []
    abi = CanonicalAbi(
        (Lifted("echo", function_type(("string",), "u32"), "cabi_realloc", "cabi_post_echo"),)
    )
    host = HostFunction(lambda: called.append(threading.get_ident()), params=(), results=())
    async with real.open() as cache:
        await cache.register(
            "echo",
            bytes(wasmtime.wat2wasm(HOSTED)),
            args=("string",),
            returns="u32",
            abi=abi,
            imports={"h": {"f": host}},
        )
        async with cache.acquire("echo", ("string",)) as echo:
            if when is None:
                assert await echo.call(kind(given)) == 3
                assert len(called) == 1
                return
            with pytest.raises(TrapError) as caught:
                await echo.call(kind(given))
    assert when in str(caught.value)
    assert caught.value.code == "cannot leave component instance"
    assert len(called) == (1 if "return" in when else 0)


async def test_wasi_may_be_called_while_memory_is_allocated(real: WasmtimeKit) -> None:
    """Libraries do, and the adapter that it stands for would answer inside of the component."""
    wasi = HOSTED.replace(
        '(import "h" "f" (func $f))',
        """
      (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))""",
    )
    wasi = wasi.replace("(call $f)", "(drop (call $yield))")
    lifted = Lifted("echo", function_type(("string",), "u32"), "cabi_realloc", "cabi_post_echo")
    async with real.open() as cache:
        await cache.register(
            "echo",
            bytes(wasmtime.wat2wasm(wasi)),
            args=("string",),
            returns="u32",
            abi=CanonicalAbi((lifted,)),
        )
        async with cache.acquire("echo", ("string",)) as echo:
            assert [await echo.call(text) for text in ("a", "ab")] == [1, 2]


@pytest.mark.parametrize(
    ("kind", "value", "fuel"),
    [
        ("string", "abc", 250),
        ("string", "x" * 1000, 250 + 500),
        (("list", "u8"), b"x" * 1000, 250 + 500),
        (("list", "s64"), [1] * 100, 250 + 400 + 20 * 100),
        (("record", (("a", "u8"), ("b", "string"))), (1, "b"), 250 * 3),
        (("list", ("tuple", "u8", "u8")), [(1, 2)] * 10, 250 * 31),
        (("option", "f64"), 0.5, 250),
    ],
    ids=str,
)
def test_what_a_result_costs_is_the_same_by_each_way(kind: Shape, value: Any, fuel: int) -> None:
    """The units of fuel are those in the documentation, whichever way a value crosses."""
    guest, binding = echo(kind)
    direct = binding.direct(guest)
    assert direct.lower((value,))
    lifted, spent = direct.lift(guest.adapter["call 0"](guest.store))
    assert lifted == value
    assert spent == fuel
    for way in WAYS[1:]:
        guest.tally.spent = 0
        assert call(binding, guest, value, way=way) == value
        assert guest.tally.spent == fuel


async def test_numbers_and_their_post_return_function_are_one_entry(real: WasmtimeKit) -> None:
    """A function of numbers is told each time that its result was taken."""
    wasm = wasmtime.wat2wasm("""(module (memory (export "memory") 1)
      (global $busy (mut i32) (i32.const 0))
      (func (export "echo") (param i32) (result i32)
        (if (global.get $busy) (then (unreachable)))
        (global.set $busy (i32.const 1)) (i32.add (local.get 0) (i32.const 256)))
      (func (export "cabi_post_echo") (param i32) (global.set $busy (i32.const 0))))""")
    lifted = Lifted("echo", function_type(("u8",), "u8"), None, "cabi_post_echo")
    async with real.open() as cache:
        await cache.register(
            "echo", bytes(wasm), args=("u8",), returns="u8", abi=CanonicalAbi((lifted,))
        )
        async with cache.acquire("echo", ("u8",)) as echo:
            assert [await echo.call(number) for number in (0, 7, 255)] == [0, 7, 255]
            assert list(await echo.map([[0, 7, 255]])) == [0, 7, 255]
            assert await echo.call(Number()) == 7
            with pytest.raises(OverflowError, match="256 is out of the range of u8"):
                await echo.call(256)
            assert await echo.call(1) == 1


async def cancel_after(passes: int, scope: trio.CancelScope) -> None:
    """Cancel a scope once others have run so often."""
    for _ in range(passes):
        await trio.lowlevel.cancel_shielded_checkpoint()
    scope.cancel()


@pytest.mark.parametrize("size", [3, MANY + 5], ids=["small", "large"])
async def test_a_call_that_is_cancelled_anywhere_leaves_no_guest_in_its_midst(
    real: WasmtimeKit, size: int
) -> None:
    """An instance goes on only if it was told that its result was read, as another call finds."""
    data = pair(16, size) + b"a" + bytes(7) + pair(8, 1) * size
    text = "".join(f"\\{byte:02x}" for byte in data)
    wasm = wasmtime.wat2wasm(f"""(module (memory (export "memory") 2)
      (global $busy (mut i32) (i32.const 0)) (data (i32.const 0) "{text}")
      (func (export "echo") (result i32)
        (if (global.get $busy) (then (unreachable)))
        (global.set $busy (i32.const 1)) (i32.const 0))
      (func (export "cabi_post_echo") (param i32) (global.set $busy (i32.const 0))))""")
    lifted = Lifted("echo", function_type((), LIST), None, "cabi_post_echo")
    ended: set[str] = set()
    async with real.open() as cache:
        await cache.register("echo", bytes(wasm), args=(), returns="x", abi=CanonicalAbi((lifted,)))
        for passes in range(12):
            async with cache.acquire("echo", ()) as echo:
                scope = trio.CancelScope()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, passes, scope)
                    with scope:
                        assert await echo.call() == ["a"] * size
                try:
                    assert await echo.call() == ["a"] * size
                except trio.BrokenResourceError:
                    ended.add("broken")
                else:
                    ended.add("cancelled" if scope.cancelled_caught else "done")
    assert ended == {"done"} or size > MANY
