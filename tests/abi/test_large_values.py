"""Values whose conversion takes long are converted in a thread, and the event loop goes on."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Generator, Sequence
from typing import Any

import pytest
import trio
from abi.support import udf
from attrs import define, field
from batch.routes import both
from kits import Kit, WasmtimeKit, add

from trio_wasmcache import AbiError, Convert, Exports, FuncType, Guest, Invoke
from trio_wasmcache._abi.cql import framing
from trio_wasmcache._abi.cql.framing import PACE, counted
from trio_wasmcache._abi.cql.scalars import scalars
from trio_wasmcache._abi.cql.types import parse_type
from trio_wasmcache._abi.gil import MANY, is_large, paced
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache._core.policy.shares import FUEL_PER_SECOND
from trio_wasmcache.testing import check_invariants, snapshot

LISTS = {"args": ("text", "list<int>"), "returns": "list<int>"}


class Here:
    """An int that notes which thread asks for it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def __index__(self) -> int:
        self.threads.add(threading.get_ident())
        return 7


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def scylla(request: pytest.FixtureRequest) -> bytes:
    """UDFs for ScyllaDB, built for both versions of its ABI."""
    return udf(f"scylla_v{request.param}")


def test_what_is_large() -> None:
    """It is counted, however deep, and no further than it has to be."""
    assert is_large(([0] * MANY,))
    assert not is_large(([0] * (MANY - 20),))
    assert is_large([{1: [0] * (MANY // 2)}, {2: (0,) * (MANY // 2)}])
    assert not is_large(("x" * 10**6, b"x" * 10**6, 10**100, range(10**9)))
    deep: list[Any] = []
    deep.append(deep)
    assert not is_large(deep)


async def test_a_large_list(real: WasmtimeKit, scylla: bytes) -> None:
    """Goes in and comes out by another thread; a small one stays here."""
    here = threading.get_ident()
    async with real.open() as cache:
        second = await cache.register("second", scylla, **LISTS)
        async with second.acquire() as lease:
            for number, elsewhere in ((10, False), (MANY, True), (12_000, True)):
                one = Here()
                assert await lease.call("", [one] * number) == [7] * number
                assert (here not in one.threads) is elsewhere
            with pytest.raises(TypeError, match=r"argument 2 of second.*takes an int, got 'x'"):
                await lease.call("", [*[1] * MANY, "x"])
            assert await lease.call("", [1]) == [1]
        check_invariants(cache)


async def test_a_large_result_that_is_malformed(real: WasmtimeKit) -> None:
    """Costs the instance, as a small one does."""
    async with real.open() as cache:
        wrong = await cache.register(
            "echo", udf("scylla_v2"), args=("blob",), returns="list<int>", export="echo"
        )
        for size in (9, 100_000):
            async with wrong.acquire() as lease:
                with pytest.raises(AbiError, match=r"returned no list<int>"):
                    await lease.call(b"\0" * (size - 1) + b"\1")
                with pytest.raises(trio.BrokenResourceError):
                    await lease.call(b"")


async def test_batches_of_large_values(real: WasmtimeKit, scylla: bytes) -> None:
    """Among small ones, and what is wrong with one is told with its row."""
    columns = [[n] * n for n in (0, 3, 5000, 1, 20_000, 9000, 2)]
    async with real.open() as cache:
        second = await cache.register("second", scylla, **LISTS)
        assert await both(second, ["", columns]) == columns
        many = [[n] for n in range(1000)]
        assert await both(second, ["", many]) == many
        async with second.acquire() as lease:
            with pytest.raises(TypeError, match=r"row 999: argument 2 of second"):
                await lease.map(["", [*many[:-1], ["x"]]])
            assert await lease.map(["", [[1]]]) == [[1]]
        wrong = await cache.register(
            "echo", udf("scylla_v2"), args=("blob",), returns="list<int>", export="echo"
        )
        error = await both(wrong, [[b"\0" * 4, b"\0" * 99_999 + b"\1", b"\0"]])
        assert (type(error), error.row) == (AbiError, 1)
        check_invariants(cache)


def test_a_collection_that_changes_meanwhile() -> None:
    """Is an error: the guest would get a count that is wrong."""
    items = list(range(3 * PACE))

    class Shrinks(list[int]):
        def __len__(self) -> int:
            return super().__len__() + 1

    with pytest.raises(ValueError, match=f"had {3 * PACE + 1} items, and then {3 * PACE}"):
        counted(Shrinks(items), scalars()["bigint"])


def test_a_paced_conversion_breathes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short it has been told to hold its breath, the result is the same."""
    monkeypatch.setattr("trio_wasmcache._abi.gil.EVERY", 0)
    codec = scalars()["int"]
    assert paced(counted, range(200), codec) == counted(range(200), codec)


@pytest.mark.parametrize("name", ["list<int>", "set<int>", "map<int,int>"])
def test_parts_are_joined_piece_by_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To join all of a large collection at once, and to free them, holds the loop for long."""
    values = dict.fromkeys(range(100 * PACE), 1)
    blocks: list[int] = []
    monkeypatch.setattr(framing, "breathe", lambda: blocks.append(sys.getallocatedblocks()))
    codec = parse_type("f", name, lambda word: scalars().get(word), {})
    data = codec.encode(values if name.startswith("map") else [*values])
    assert len(blocks) == 100
    # A piece each, and not the parts of all items, two or four each.
    assert blocks[-1] - blocks[0] < 10 * len(blocks)
    items = 2 if name.startswith("map") else 1
    assert data[:4] == (100 * PACE).to_bytes(4, "big")
    assert data[4:12] == bytes((0, 0, 0, 4, 0, 0, 0, 0))
    assert len(data) == 4 + 8 * 100 * PACE * items


@pytest.mark.parametrize("count", [0, 1, PACE - 1, PACE, PACE + 1, 2 * PACE])
@pytest.mark.parametrize("name", ["list<int>", "map<int,int>"])
def test_collections_are_framed_item_by_item(name: str, count: int) -> None:
    """Wherever a piece ends."""
    codec = parse_type("f", name, lambda word: scalars().get(word), {})
    cell = [b"\0\0\0\4" + number.to_bytes(4, "big") for number in range(count)]
    if name == "list<int>":
        data = codec.encode(range(count))
    else:
        data, cell = codec.encode({n: n for n in range(count)}), [2 * one for one in cell]
    assert data == count.to_bytes(4, "big") + b"".join(cell)


@pytest.mark.parametrize("value", [0, 127, 128, -128, -129, 255, 32767, -32768, 2**63, -(2**64)])
def test_varints_are_as_short_as_can_be(value: int) -> None:
    """As the driver's, which takes the square of their length."""
    from cassandra.marshal import varint_pack

    assert scalars()["varint"].encode(value) == varint_pack(value)


# -- what an ABI leaves to a thread

I64_TO_I64 = FuncType(("i64",), ("i64",))


@define
class Slow:
    """Converts before the call, after it, or both, by functions that are given."""

    before: Any = None
    after: Any = None
    caught: list[Exception] = field(factory=list)
    arity: int = 1
    signature: FuncType = I64_TO_I64
    lower: Any = None
    lift: Any = None

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> Slow:
        return self

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError("one value")

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Any, Any, Any]:
        (value,) = values
        if self.before is not None:
            try:
                value = yield Convert(self.before, (value,))
            except KeyError as error:
                self.caught.append(error)
                raise ValueError("it has no such value") from None
        result = yield Invoke("run", (value,))
        if self.after is not None:
            return (yield Convert(self.after, (result,)))
        return result


class Gate:
    """A conversion that waits in its thread until it is let go."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.open = threading.Event()
        self.token = trio.lowlevel.current_trio_token()

    def __call__(self, value: int) -> int:
        self.token.run_sync_soon(self.entered.set)
        self.open.wait()
        return value + 1


async def test_conversions_in_a_thread_are_charged_to_the_group(kit: Kit) -> None:
    """With the CPU time that they take there, also where they fail."""
    now = [0.0]

    def work(value: int) -> int:
        now[0] += 0.5  # seconds of this thread
        return {1: 10}[value]

    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(5), abi=Slow(work, None))
        cache._pool.runner.cpu_clock = lambda: now[0]
        async with f.acquire() as lease:
            for value in (1, 2):
                before = snapshot(cache).group("main").virtual_time
                with contextlib.suppress(ValueError):
                    await lease.call(value)
                main = snapshot(cache).group("main")
                charged = (main.virtual_time - before) * main.shares
                assert round(charged) >= 0.5 * FUEL_PER_SECOND


async def test_conversions_in_a_thread(kit: Kit) -> None:
    """Their results go on; what they raise is raised in the ABI, before anything has run."""
    async with kit.open() as cache:
        abi = Slow({1: 10, 2: 20}.__getitem__, str)
        f = await add(cache, "f", kit.adding(5), abi=abi)
        async with f.acquire() as lease:
            assert await lease.call(1) == "15"
            assert await lease.map([[1, 2]]) == ["15", "25"]
            with pytest.raises(ValueError, match="it has no such value"):
                await lease.call(3)
            with pytest.raises(ValueError, match="row 1: it has no such value"):
                await lease.map([[1, 3]])
            assert len(abi.caught) == 2
            assert await lease.call(2) == "25"
        check_invariants(cache)


@pytest.mark.parametrize("batch", [False, True], ids=["call", "map"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_cancelled_while_converting(kit: Kit, batch: bool, late: bool) -> None:
    """Before the guest has run the lease goes on; afterwards its instance is dropped."""
    gate = Gate()
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(5), abi=Slow(**{"after" if late else "before": gate}))
        async with f.acquire() as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lease.map if batch else lease.call, [[1]] if batch else 1)
                await gate.entered.wait()
                with pytest.raises(trio.BusyResourceError):
                    await lease.call(1)
                nursery.cancel_scope.cancel()
            gate.open.set()
            # Row by row, a batch can't tell: its instance goes in any case.
            if late or batch:
                with pytest.raises(trio.BrokenResourceError):
                    await lease.call(1)
            else:
                assert await lease.call(1) == 7
        check_invariants(cache)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_closed_while_converting(kit: Kit, late: bool) -> None:
    """The call ends as the conversion does, and nothing is left."""
    gate = Gate()
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(5), abi=Slow(**{"after" if late else "before": gate}))

        async def call() -> None:
            async with f.acquire() as lease:
                with pytest.raises(trio.ClosedResourceError):
                    await lease.call(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await gate.entered.wait()
            await parts_of(cache).close()
            gate.open.set()
