"""What each function of WASI preview 1 looks at, costs and answers, for any lengths."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import trio
import wasmtime
from engine.support import WASI, quiet_cache, wat
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache import ExitError, FuelExhaustedError, InstanceCache, Wasi
from trio_wasmcache._core.policy.shares import CALL_FUEL
from trio_wasmcache._core.wasm.admission import WASI_TYPES
from trio_wasmcache._engine.base import HostCall
from trio_wasmcache._engine.wasmtime.memory import check_range
from trio_wasmcache._runtime import session
from trio_wasmcache._runtime.wasi import FUNCTIONS, PIECE, WasiFunction, functions_of

LENGTHS = (0, 1, 2**16, 2**24, 2**31, 2**32 - 1)
DESCRIPTORS = range(5)
MEMORY = 2**24
EBADF, EFAULT, EINVAL, ENOMEM = 8, 21, 28, 48
# What a call may move besides what it counts: a result, or an event for each subscription.
FIXED = 64
ITEM_SIZES = {"": 0, "iovec": 8, "subscription": 48 + 32, "byte": 1, "string": 4}


class CountingMemory:
    """A guest's memory that notes how much is read and written between two pauses."""

    def __init__(self, size: int = MEMORY) -> None:
        self.data = bytearray(size)
        self.size = size
        self.moved = 0

    def read(self, at: int, n: int) -> bytes:
        check_range(at, n, self.size)
        self.moved += n
        return bytes(self.data[at : at + n])

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        check_range(at, len(data), self.size)
        self.moved += len(data)
        self.data[at : at + len(data)] = data


class Purse:
    """The fuel of a guest's call."""

    def __init__(self, left: int = 10**12) -> None:
        self.left = left

    def take(self, fuel: int) -> int:
        taken = min(fuel, self.left)
        self.left -= taken
        return taken


def ask(
    function: WasiFunction,
    values: Sequence[int],
    memory: Any,
    state: dict[str, Any] | None = None,
    purse: Purse | None = None,
) -> tuple[Any, list[float], list[int], int]:
    """Call a function: its errno or the error, its pauses, bytes moved in each piece, fuel."""
    state = {} if state is None else state
    call = HostCall(0, tuple(values), memory, print, (purse or Purse()).take, state)
    pauses: list[float] = []
    pieces: list[int] = []
    try:
        served: Any = function.serve(call)
        while not isinstance(served, tuple):
            try:
                pauses.append(next(served))
            except StopIteration as end:
                served = end.value
            if memory is not None:
                pieces.append(memory.moved)
                memory.moved = 0
        (found,) = served
    except (ExitError, FuelExhaustedError) as error:
        found = error
    if memory is not None:
        pieces.append(memory.moved)
        memory.moved = 0
    return found, pauses, pieces, call.spent


def calls_of(function: WasiFunction) -> Iterator[tuple[int, ...]]:
    """Its arguments: a descriptor first, then lengths at every place, and all the same length."""
    rest = len(function.type.params) - 1
    if rest < 0:
        yield ()
        return
    for descriptor in DESCRIPTORS:
        for length in LENGTHS:
            yield (descriptor, *[length] * rest)
        for place in range(rest):
            for length in LENGTHS:
                yield (descriptor, *[length if n == place else 64 for n in range(rest)])


def test_all_46_are_ours() -> None:
    """Each has the types that register checks, and says what it costs."""
    assert set(FUNCTIONS) == set(WASI_TYPES)
    assert len(FUNCTIONS) == 46
    for name, function in FUNCTIONS.items():
        assert function.name == name
        assert function.type == WASI_TYPES[name]
        assert (function.cost.item == "") == (function.cost.fuel == 0)
        assert function.cost.item in ITEM_SIZES


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_any_lengths_on_any_descriptor_are_bounded_work(name: str) -> None:
    """What is looked at between two pauses is bounded, and all of it is in the fuel."""
    function = FUNCTIONS[name]
    cost = function.cost
    if cost.most is None:
        most, longest = MEMORY, PIECE
    else:
        most, longest = cost.most, cost.most * ITEM_SIZES[cost.item] + FIXED
    memory = CountingMemory()
    for values in calls_of(function):
        found, pauses, pieces, fuel = ask(function, values, memory)
        assert isinstance(found, (int, ExitError)), values
        assert max(pieces) <= longest, values
        assert fuel <= most * cost.fuel, values
        # Apart from results of a fixed size, nothing is moved that is not paid for.
        items = fuel // cost.fuel if cost.fuel else 0
        assert sum(pieces) <= items * ITEM_SIZES[cost.item] + FIXED, values
        assert len(pauses) <= 1 + sum(pieces) // PIECE, values


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_without_a_memory_or_with_a_full_purse_none_goes_wrong(name: str) -> None:
    """No exported memory is an errno; too little fuel is an error before anything is done."""
    function = FUNCTIONS[name]
    for values in calls_of(function):
        found, _, _, _ = ask(function, values, None)
        assert isinstance(found, (int, ExitError)), values
        if function.cost.fuel:
            memory = CountingMemory(2**17)
            found, pauses, pieces, fuel = ask(function, values, memory, purse=Purse(3))
            assert isinstance(found, FuelExhaustedError) or fuel == 0, values
            if isinstance(found, FuelExhaustedError):
                assert (fuel, sum(pieces), pauses) == (3, 0, []), values


GRANTED = (
    Wasi(),
    Wasi(args=("x" * 60,) * 1000, env={"A": "b" * 60_000}, stdin=bytes(10**6), stdout="log"),
    Wasi(stdout=lambda stream, line: None, stderr="drop", stdin=b"abc", random=1, clock=1),
)


@pytest.mark.parametrize("wasi", GRANTED, ids=["nothing", "strings", "functions"])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_what_is_granted_is_bounded_work_and_paid_for(name: str, wasi: Wasi) -> None:
    """Whatever the buffers are: no call copies more than it says, nor anything for nothing."""
    function = functions_of(session.Grants(wasi))[WASI, name]
    cost = function.cost
    items = (MEMORY if cost.most is None else cost.most) * ITEM_SIZES[cost.item]
    longest = (PIECE if cost.most is None else items) + cost.copied + FIXED
    for buffer in ((0, 10), (64, 70_000), (2**20, 2**22), (2**31, 2**31), (2**24 - 1, 2)):
        memory = CountingMemory()
        memory.data[: 2**17] = struct.pack("<II", *buffer) * 2**14
        for values in calls_of(function):
            state: dict[str, Any] = {}
            found, _, pieces, fuel = ask(function, values, memory, state)
            assert isinstance(found, (int, ExitError)), values
            assert max(pieces) <= longest, values
            assert sum(pieces) <= 2 * fuel + FIXED, values
            if sum(pieces) > FIXED:
                found, _, pieces, fuel = ask(function, values, memory, {}, Purse(3))
                assert isinstance(found, FuelExhaustedError), values
                assert (fuel, sum(pieces)) == (3, 0), values


# -- in real guests

WALKER = """(module
  (import "wasi_snapshot_preview1" "{name}" (func $call (param {params}) (result {results})))
  (memory (export "memory") 256)
  (func (export "f") (param {params}) (result {results}) {gets} call $call))"""


async def add(cache: InstanceCache, name: str) -> Any:
    """A function with the types of one of preview 1, which calls it once, in 16 MiB."""
    kind = WASI_TYPES[name]
    wasm = WALKER.format(
        name=name,
        params=" ".join(kind.params),
        results=" ".join(kind.results),
        gets=" ".join(f"local.get {number}" for number in range(len(kind.params))),
    )
    return await cache.register(name, wasm, args=kind.params, returns=kind.results, export="f")


def signed(values: Sequence[int], kinds: Sequence[str]) -> list[int]:
    """As Python gives i32 and i64."""
    return [
        value - 2 ** (32 if kind == "i32" else 64) * (value >= 2 ** (31 if kind == "i32" else 63))
        for value, kind in zip(values, kinds, strict=True)
    ]


async def test_fuel_of_each_function_in_a_real_guest() -> None:
    """Each call costs 4,000 units, what it says for each item, and a few of the guest's own."""
    async with quiet_cache(memory_limit=MEMORY, max_instance_size=2 * MEMORY) as cache:
        for name, function in FUNCTIONS.items():
            registered = await add(cache, name)
            most = MEMORY if function.cost.most is None else function.cost.most
            # All places at once; one place at a time is what `CountingMemory` is for.
            for descriptor, length in itertools.product(DESCRIPTORS, LENGTHS):
                rest = len(function.type.params) - 1
                values = (descriptor, *[length] * rest)[: rest + 1]
                with trio.move_on_after(0.001 if name == "poll_oneoff" else 100):
                    async with registered.acquire() as lease:
                        try:
                            found = await lease.call(*signed(values, function.type.params))
                        except ExitError:
                            found = 0
                        assert 0 <= found < 77
                        assert lease.fuel_consumed is not None
                        own = lease.fuel_consumed - CALL_FUEL
                        assert 0 < own <= most * function.cost.fuel + 50, (name, values)


async def test_iovecs_are_fuel_of_the_call() -> None:
    """`fd_write` with 1,024 buffers in a loop ends after `total_fuel`, by what the host did."""
    wasm = """(module
      (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "f") (param i64) (result i64) (local i64)
        (loop
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1024) (i32.const 64)))
          (local.set 1 (i64.add (local.get 1) (i64.const 1)))
          (br_if 0 (i64.lt_u (local.get 1) (local.get 0))))
        (local.get 1)))"""
    async with quiet_cache(total_fuel=1_000_000) as cache:
        function = await cache.register("f", wasm, args=("i64",), returns="i64")
        async with function.acquire() as lease:
            assert await lease.call(1) == 1
            one = lease.fuel_consumed
            assert one is not None
            assert 106_400 < one < 106_450
            assert await lease.call(9) == 9
            nine = lease.fuel_consumed
            assert nine is not None
            assert 106_400 < (nine - one) / 8 < 106_450
            with pytest.raises(FuelExhaustedError, match="after 1000000 units"):
                await lease.call(10)
            assert lease.fuel_consumed == 1_000_000


# -- beside wasmtime's own

ENGINE = wasmtime.Engine()
LINKER = wasmtime.Linker(ENGINE)
LINKER.define_wasi()
SMALL = 4 * 65536
# These differ on purpose: times, random bytes, an exit; what all iovecs hold, and not the first
# only, is written; and padding of events is zeros.
DIFFERENT = {"clock_time_get", "random_get", "proc_exit", "fd_write", "poll_oneoff"}


def theirs(name: str, calls: Sequence[Sequence[int]], data: bytes) -> list[tuple[Any, bytes]]:
    """What wasmtime's own functions answer, one after the other in one store; None: a trap."""
    kind = WASI_TYPES[name]
    gets = " ".join(f"local.get {number}" for number in range(len(kind.params)))
    closing = (
        ""
        if name == "fd_close"
        else f'(import "{WASI}" "fd_close" (func (param i32) (result i32)))'
    )
    module = wasmtime.Module(
        ENGINE,
        wat(
            f'(module {closing} (import "{WASI}" "{name}" (func $f (param {" ".join(kind.params)})'
            f' (result {" ".join(kind.results)}))) (memory (export "memory") 4)'
            f' (func (export "f") (param {" ".join(kind.params)})'
            f" (result {' '.join(kind.results)}) {gets} call $f))"
        ),
    )
    store = wasmtime.Store(ENGINE)
    store.set_wasi(wasmtime.WasiConfig())
    exports = LINKER.instantiate(store, module).exports(store)
    memory, function = exports["memory"], exports["f"]
    assert isinstance(memory, wasmtime.Memory)
    assert isinstance(function, wasmtime.Func)
    answers = []
    for values in calls:
        memory.write(store, data, 0)
        memory.write(store, bytes(SMALL - len(data)), len(data))
        try:
            found = function(store, *signed(values, kind.params))
        except (wasmtime.WasmtimeError, wasmtime.Trap):
            found = None
        answers.append((found, bytes(memory.read(store, 0, 4096))))
    return answers


NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 4, 8, 64, 128, 1000, 4096, SMALL - 8, SMALL, 2**31, 2**32 - 1]
)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - DIFFERENT))
@given(data=st.data())
@tries(15)
def test_answers_are_those_of_wasmtime(name: str, data: st.DataObject) -> None:
    """The same errno and the same bytes in memory; an errno where wasmtime traps."""
    kind = WASI_TYPES[name]
    arguments = st.tuples(*[NUMBERS] * len(kind.params))
    calls = data.draw(st.lists(arguments, min_size=1, max_size=6))
    raw = data.draw(st.binary(max_size=64)) * 16
    memory = CountingMemory(SMALL)
    state: dict[str, Any] = {}
    for values, (wanted, after) in zip(calls, theirs(name, calls, raw), strict=True):
        memory.data[:] = raw + bytes(SMALL - len(raw))
        before = bytes(memory.data[:4096])
        found, _, _, _ = ask(FUNCTIONS[name], values, memory, state)
        if wanted in (None, ENOMEM):
            # A trap of theirs, for what is no address or no value of a type, is an errno of
            # ours, and what is not aligned is fine; lengths that they refuse are not looked at.
            assert found in (0, EBADF, EFAULT, EINVAL, 54, 57, 58, 70), values
            continue
        assert found == wanted, values
        # Padding of a result is zeros here; wasmtime leaves there what was.
        mine = bytes(memory.data[:4096])
        assert all(a == b or (a, b) == (0, c) for a, b, c in zip(mine, after, before, strict=True))


def test_closed_and_renumbered_streams() -> None:
    """As in wasmtime: closing is once, and what takes a number's place is what it was."""
    state: dict[str, Any] = {}
    memory = CountingMemory(2**16)

    def does(name: str, *values: int) -> Any:
        return ask(FUNCTIONS[name], values, memory, state)[0]

    assert does("fd_close", 2) == 0
    assert does("fd_close", 2) == EBADF
    assert does("fd_write", 2, 0, 0, 64) == EBADF
    assert does("fd_renumber", 0, 2) == EBADF
    assert does("fd_renumber", 1, 0) == 0
    assert does("fd_write", 0, 0, 0, 64) == 0
    assert does("fd_read", 0, 0, 0, 64) == EBADF
    assert does("fd_write", 1, 0, 0, 64) == EBADF
    assert ask(FUNCTIONS["fd_write"], (1, 0, 0, 64), memory, {})[0] == 0  # another instance's is


# -- polls


def clock(timeout: int, userdata: int = 7, *, number: int = 1, absolute: bool = False) -> bytes:
    return struct.pack("<QB7xI4xQQH6x", userdata, 0, number, timeout, 0, absolute)


def stream(kind: int, descriptor: int, userdata: int = 7) -> bytes:
    return struct.pack("<QB7xI28x", userdata, kind, descriptor)


@pytest.mark.parametrize(
    ("subscriptions", "pauses", "events"),
    [
        (clock(10**9), [1.0], [(7, 0, 0)]),
        (clock(10**9) + clock(10**9, 8) + clock(2 * 10**9, 9), [1.0], [(7, 0, 0), (8, 0, 0)]),
        (clock(6 * 10**9, absolute=True), [3.0], [(7, 0, 0)]),  # it first asked 3 s ago
        (clock(2 * 10**9, absolute=True), [0.0], [(7, 0, 0)]),
        (clock(12 * 10**9, number=0, absolute=True), [2.0], [(7, 0, 0)]),
        (stream(1, 0) + clock(10**9), [], [(7, 1, 1)]),
        (stream(1, 0) + stream(2, 1, 8) + stream(2, 2, 9), [], [(7, 1, 1), (8, 2, 1), (9, 2, 1)]),
    ],
)
def test_what_a_poll_waits_for(
    subscriptions: bytes,
    pauses: list[float],
    events: list[tuple[int, int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The earliest clocks, unless a stream is there, which is always ready."""
    memory, state = CountingMemory(2**16), {"clock origin": 100 * 10**9}
    monkeypatch.setattr(session, "wall_clock", lambda: 10 * 10**9)
    monkeypatch.setattr(session, "monotonic_clock", lambda: 103 * 10**9)
    memory.write(0, subscriptions)
    count = len(subscriptions) // 48
    found, waited, _, fuel = ask(FUNCTIONS["poll_oneoff"], (0, 1024, count, 4096), memory, state)
    assert (found, waited, fuel) == (0, pauses, 1000 * count)
    assert memory.data[4096] == len(events)
    for number, (userdata, kind, size) in enumerate(events):
        raw = memory.data[1024 + 32 * number :][:32]
        assert raw == struct.pack("<QHB5xQ8x", userdata, 0, kind, size)
