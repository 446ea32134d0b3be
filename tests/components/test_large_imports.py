"""Large values between a component and functions that it imports: nothing holds the event loop."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from components.test_imports import relay
from engine.support import quiet_cache
from kits import ListLogger

from trio_wasmcache import AbiError, CacheConfig, Ok, WitError, open_cache
from trio_wasmcache._abi.base import Convert
from trio_wasmcache._abi.gil import MANY
from trio_wasmcache._core.wasm.component.lowering import (
    BATCH,
    BATCHES_TYPE,
    DONE,
    SEVERAL,
    lowered_function,
)
from trio_wasmcache._core.wit.types import (
    STRING,
    U8,
    U16,
    U32,
    Function,
    List,
    Option,
    Record,
    Result,
    Tuple,
    Type,
    Variant,
)
from trio_wasmcache._core.wit.values import Case
from trio_wasmcache._engine.base import HostCall
from trio_wasmcache._engine.fake.memory import FakeMemory
from trio_wasmcache._runtime import wit_host
from trio_wasmcache._runtime.wit_host import (
    BLOCKS_AT_ONCE,
    PIECE,
    VALUES_LIMIT,
    WitAllocated,
    WitFunction,
    WitHost,
)
from trio_wasmcache.testing import cancel_everywhere, check_invariants

WORDS = [f"{number}" for number in range(MANY + 1000)]


def with_memory(wasm: str) -> str:
    """A component with more memory."""
    assert '(export "memory") 2)' in wasm
    return wasm.replace('(export "memory") 2)', '(export "memory") 20)')


class Hand:
    """Makes host calls as a guest does, and answers them as a runner does; counts all steps."""

    def __init__(self, memory: FakeMemory | None = None) -> None:
        self.memory = memory or FakeMemory(2**24)
        self.state: dict[str, Any] = {}
        self.calls = self.pauses = self.converted = self.fuel = 0
        self.at = 4096

    def serve(self, host: Any, *values: int) -> Any:
        def take(fuel: int) -> int:
            self.fuel += fuel
            return fuel

        self.calls += 1
        memory: Any = self.memory
        served = host.serve(HostCall(0, values, memory, print, take, self.state))
        while not isinstance(served, tuple):
            served = self._run(served)
        return served

    def _run(self, steps: Any) -> Any:
        sent = None
        while True:
            try:
                asked = steps.send(sent)
            except StopIteration as end:
                return end.value
            sent = None
            if isinstance(asked, Convert):
                self.converted += 1
                sent = asked.function(*asked.values)
            else:
                self.pauses += 1

    def allocate(self, request: int) -> int:
        if request == DONE:
            return 0
        size, align = request & 0xFFFFFFFF, request >> 32
        self.at = at = -(-self.at // align) * align
        self.at += size
        return at

    def call(self, host: WitHost, *values: int) -> None:
        """Make a whole call, as an adapter does."""
        (request,) = self.serve(host, *values)
        while request >= 0:
            (request,) = self.serve(WitAllocated(), self.allocate(request))
        if request == SEVERAL:
            addresses = [0] * BATCH
            while True:
                over, *requests = self.serve(WitAllocated(BATCHES_TYPE), *addresses)
                if over:
                    break
                addresses = [self.allocate(one) for one in reversed(requests)]


def host_of(fn: Any, *params: Type, result: Type | None = None) -> WitHost:
    named = tuple((f"p{number}", one) for number, one in enumerate(params))
    return WitHost(lowered_function("a:b/c", "f", Function(named, result)), WitFunction(fn))


@pytest.mark.parametrize("is_async", [False, True])
def test_a_result_of_many_strings(is_async: bool) -> None:
    """They are converted in a thread, allocated many at once, and written in pieces."""

    async def later() -> list[str]:
        return WORDS

    hand = Hand()
    hand.call(host_of(later if is_async else lambda: WORDS, result=List(STRING)), 64)
    blocks = len(WORDS) + 2  # the list, and what is returned
    assert hand.converted == 1
    assert hand.calls <= blocks / BATCH + 3
    assert hand.pauses >= 2 * (blocks // BLOCKS_AT_ONCE) - 2
    assert hand.fuel < 10 * blocks
    assert hand.state == {}
    at = int.from_bytes(hand.memory.read(64, 4), "little")
    assert int.from_bytes(hand.memory.read(68, 4), "little") == len(WORDS)
    for number in (0, 1, BATCH, len(WORDS) - 1):
        pair = hand.memory.read(at + 8 * number, 8)
        begin, size = int.from_bytes(pair[:4], "little"), int.from_bytes(pair[4:], "little")
        assert hand.memory.read(begin, size).decode() == WORDS[number]


def test_few_values_take_no_thread_and_no_pause() -> None:
    hand = Hand()
    hand.call(host_of(lambda: "abc", result=STRING), 64)
    assert (hand.calls, hand.converted, hand.pauses) == (2, 0, 0)
    hand = Hand()
    hand.call(host_of(lambda: ["a"] * 50, result=List(STRING)), 64)
    assert (hand.calls, hand.converted, hand.pauses) == (3, 0, 1)


@pytest.mark.parametrize(
    ("kind", "result", "converted"),
    [
        (List(U8), [1] * (8 * MANY + 8), 1),
        (List(U32), [1] * (8 * MANY + 8), 1),
        (STRING, "x" * 2**20, 1),
        (List(U8), bytes(3 * PIECE), 0),
        (List(U8), bytearray(3 * PIECE), 1),
        (Tuple((List(U8),) * 4), (bytearray(PIECE),) * 4, 1),
    ],
    ids=["list<u8> of a list", "numbers", "text", "bytes", "a buffer", "buffers"],
)
def test_large_blocks(kind: Type, result: Any, converted: int) -> None:
    """What is to be copied or encoded is done in a thread; each piece is written on its own."""
    hand = Hand()
    hand.call(host_of(lambda: result, result=kind), 64)
    assert hand.converted == converted
    assert hand.pauses >= (hand.at - 4096) // PIECE - 1


def test_a_buffer_that_is_changed_while_the_guest_allocates() -> None:
    given = bytearray(b"before")
    hand = Hand()
    host = host_of(lambda: given, result=List(U8))
    (request,) = hand.serve(host, 64)
    given[:] = b"after!"
    at = hand.allocate(request)
    assert hand.serve(WitAllocated(), at) == (DONE,)
    assert hand.memory.read(at, 6) == b"before"


FLAT: list[Type] = [
    List(STRING),
    Option(List(STRING)),
    Record((("a", U8), ("b", List(STRING)))),
    Variant((("x", U8), ("y", Tuple((U8, List(STRING)))))),
    Tuple((Result(U16, List(STRING)),)),
    List(Tuple((U8, Option(STRING)))),
]


def values_of(kind: Type) -> Any:
    match kind:
        case Record():
            return (1, WORDS)
        case Variant():
            return Case("y", (2, WORDS))
        case Tuple():
            return (Ok(7),)
        case List(element=Tuple()):
            return [(number % 7, None if number % 3 else word) for number, word in enumerate(WORDS)]
        case _:
            return WORDS


@pytest.mark.parametrize(("kind", "params"), [*((kind, 1) for kind in FLAT), (FLAT[2], 9)], ids=str)
async def test_many_values_cross_both_ways(kind: Type, params: int) -> None:
    """The function is called in the task that called the guest, whoever converts its arguments."""
    task = trio.lowlevel.current_task()
    seen: list[Any] = []

    async def f(*given: Any) -> Any:
        assert trio.lowlevel.current_task() is task
        seen.append(given)
        await trio.lowlevel.checkpoint()
        return given[0]

    value = values_of(kind)
    others: tuple[Any, ...] = ("a",) * (params - 1) * 2
    async with quiet_cache() as cache:
        wasm = with_memory(relay(kind, *[STRING] * len(others), result=kind))
        for name, fn in (("async", f), ("sync", lambda *given: given[0])):
            function = await cache.register(name, wasm, export="f", imports={"it": {"f": fn}})
            async with function.acquire() as lease:
                assert await lease.call(value, *others) == value
    assert seen == [(value, *others)]


def lie(kind: Type, *words: int) -> tuple[Hand, WitHost]:
    hand = Hand()
    for number, word in enumerate(words):
        hand.memory.write(4 * number, word.to_bytes(4, "little"))
    return hand, host_of(lambda _: None, kind)


def test_arguments_are_copied_in_pieces_and_converted_in_a_thread() -> None:
    hand, host = lie(List(STRING))
    assert hand.serve(host, 64, 2 * MANY) == ()
    assert hand.converted == 1
    assert hand.pauses >= 8
    assert 250 * 2 * MANY < hand.fuel < 600 * 2 * MANY
    hand, host = lie(List(STRING))
    assert hand.serve(host, 64, MANY // 4) == ()
    assert (hand.converted, hand.pauses) == (0, 0)


class Counting(FakeMemory):
    """Notes the largest read."""

    most = 0

    def read(self, at: int, n: int) -> bytes:
        self.most = max(self.most, n)
        return super().read(at, n)


@pytest.mark.parametrize("kind", [STRING, List(U8), List(U32)], ids=str)
def test_large_arguments_are_copied_in_pieces(kind: Type) -> None:
    """Also a text, bytes, or a list of numbers that is a single value; in it is what it was."""
    size = (3 if kind == List(U32) else 5) * PIECE + 100
    data = bytes(number % 113 for number in range(251)) * (size // 251 + 1)
    memory = Counting(2**24)
    memory.write(64, data[:size])
    seen: list[Any] = []
    for kinds, flat in (((kind,), ()), ((Tuple((U8, kind)),), (7,))):
        hand, host = Hand(memory), host_of(seen.append, *kinds)
        count = size // 4 if kind == List(U32) else size
        assert hand.serve(host, *flat, 64, count) == ()
        assert (hand.converted, hand.pauses) == (1, size // PIECE + 1)
        assert memory.most == PIECE
    expected: Any = data[:size]
    if kind == STRING:
        expected = expected.decode()
    elif kind == List(U32):
        expected = list(memoryview(expected).cast("I"))
    assert seen == [expected, (7, expected)]
    end = memory.size - size
    assert hand.serve(host, 7, end, count) == ()
    with pytest.raises(AbiError, match="which are not inside its memory"):
        hand.serve(host, 7, end + 4, count)


@pytest.mark.parametrize(
    ("kind", "flat"),
    [
        (List(STRING), (64, VALUES_LIMIT + 1)),
        (List(List(U8)), (64, VALUES_LIMIT + 1)),
        (List(Tuple((STRING, STRING))), (64, VALUES_LIMIT // 2 + 1)),
        (Option(List(STRING)), (1, 64, VALUES_LIMIT + 1)),
    ],
    ids=str,
)
def test_more_values_than_a_guest_may_pass(kind: Type, flat: tuple[int, ...]) -> None:
    hand, host = lie(kind)
    with pytest.raises(AbiError, match=r"the guest passed to .* more than 100000 values"):
        hand.serve(host, *flat)


def test_texts_that_overlap_are_limited_as_well() -> None:
    """Each of many lists says the same text of 64 KiB."""
    hand = Hand()
    for number in range(MANY + 1):
        hand.memory.write(8 * number, (2**20).to_bytes(4, "little") + b"\0\0\1\0")
    with pytest.raises(AbiError, match="values of more than 67108864 bytes"):
        hand.serve(host_of(lambda _: None, List(STRING)), 0, MANY + 1)


def test_what_a_thread_finds_is_an_error_of_the_guests() -> None:
    hand, host = lie(List(STRING))
    hand.memory.write(64 + 8 * MANY, b"\0\0\0\0\1\0\0\0")
    hand.memory.write(0, b"\xff")
    with pytest.raises(AbiError, match="a string that is not UTF-8"):
        hand.serve(host, 64, 2 * MANY)
    hand.memory.write(64 + 8 * MANY, b"\xff\xff\xff\xff\1\0\0\0")
    with pytest.raises(AbiError, match="which are not inside its memory"):
        hand.serve(host, 64, 2 * MANY)
    option = host_of(lambda _: None, Tuple((List(STRING), Option(STRING))))
    hand = Hand()
    with pytest.raises(AbiError, match="case 7"):
        hand.serve(option, 64, 2 * MANY, 7, 0, 0)


async def test_what_a_thread_finds_is_the_applications_mistake() -> None:
    async with quiet_cache() as cache:
        given: Any = [*WORDS, 3]
        f = await cache.register(
            "f", relay(result=List(STRING)), imports={"it": {"f": lambda: given}}
        )
        with pytest.raises(TypeError, match=rf"#f must return list<string>.*item {len(WORDS)}"):
            await f.call()


async def test_an_error_of_many_values() -> None:
    async with quiet_cache() as cache:

        async def fail() -> Any:
            raise WitError(WORDS)

        wasm = relay(result=Result(U8, List(STRING)))
        f = await cache.register("f", wasm, imports={"it": {"f": fail}})
        with pytest.raises(WitError) as caught:
            await f.call()
        assert caught.value.value == WORDS


async def test_cancelled_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """While arguments and results are copied, converted, allocated and written."""
    monkeypatch.setattr(wit_host, "MANY", 10)
    monkeypatch.setattr(wit_host, "BLOCKS_AT_ONCE", 20)
    async with quiet_cache(max_size=0, offload_after=None) as cache:

        async def f(given: Any) -> Any:
            return given

        kind = List(STRING)
        relayed = await cache.register("f", relay(kind, result=kind), imports={"it": {"f": f}})

        async def scenario() -> None:
            assert await relayed.call(WORDS[:90]) == WORDS[:90]

        assert await cancel_everywhere(scenario, lambda: check_invariants(cache)) >= 16
        await scenario()


async def test_a_lease_that_ends_meanwhile() -> None:
    """Another task closes it while a thread converts: the call ends, and the thread is left."""
    begun, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    class Slow(Sequence[str]):
        def __len__(self) -> int:
            return len(WORDS)

        def __getitem__(self, place: Any) -> Any:
            token.run_sync_soon(begun.set)
            assert go_on.wait(600)
            return WORDS[place]

    async with quiet_cache() as cache:
        imports: Any = {"it": {"f": Slow}}
        f = await cache.register("f", relay(result=List(STRING)), imports=imports)

        async def use(lease: Any) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await lease.call()

        async with trio.open_nursery() as nursery:
            async with f.acquire() as lease:
                nursery.start_soon(use, lease)
                await begun.wait()
        go_on.set()
        check_invariants(cache)
        assert cache.stats().evictions["corrupted"] == 1


async def test_calls_with_large_values_are_logged_as_others() -> None:
    log = ListLogger()
    async with open_cache(CacheConfig(log_values=1.0), logger=log) as cache:

        async def f(given: Any) -> Any:
            await trio.lowlevel.checkpoint()
            return given

        kind, words = List(STRING), WORDS
        for name, fn in (("f", f), ("g", lambda given: given)):
            wasm = with_memory(relay(kind, result=kind))
            imports: Any = {"it": {"f": fn}}
            relayed = await cache.register(name, wasm, export="f", imports=imports)
            assert await relayed.call(words) == words
    found = [(one["function"], one["error"]) for one in log.fields("replayable")]
    assert found == [("f", None), ("g", None)]
