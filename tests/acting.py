"""Values whose own code acts while the library converts them: run by `test_acting_values`.

In a process of its own, for what is tested is that it does not end, nor read beyond what is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from typing import Any

import trio
from engine.support import quiet_cache, wat
from hostile.guest import Gives
from hostile.liars import buffer, scylla
from hostile.scripts import HONEST, script

from trio_wasmcache import HostFunction, InstanceCache, Lease, current_lease
from trio_wasmcache._abi.base import FuncType, Invoke
from trio_wasmcache._cache.cache import parts_of
from trio_wasmcache._core.events import Reason
from trio_wasmcache.testing import check_invariants

Act = Callable[[], None]


class Whole:
    """Seven, once it has acted."""

    def __init__(self, act: Act) -> None:
        self.act = act

    def __index__(self) -> int:
        self.act()
        return 7


class Real(Whole):
    """Seven as a float."""

    def __float__(self) -> float:
        self.act()
        return 7.0


class LongInt(int):
    """Seven, which says of itself that it is more."""

    act: Act = staticmethod(lambda: None)

    def __index__(self) -> int:
        self.act()
        return 2**40

    def __float__(self) -> float:
        self.act()
        return 7.0

    def __le__(self, other: object) -> bool:
        self.act()
        return True

    __ge__ = __lt__ = __gt__ = __le__


class Bytes(bytes):
    """Says that it is shorter or longer than it is, and gives other bytes than its own."""

    act: Act = staticmethod(lambda: None)

    def __bytes__(self) -> bytes:
        self.act()
        return b"!"

    def __len__(self) -> int:
        self.act()
        return 2**40

    def __iter__(self) -> Iterator[int]:
        self.act()
        return iter(())


class Text(str):
    """The same of text."""

    act: Act = staticmethod(lambda: None)

    def encode(self, *args: Any) -> Any:
        self.act()
        return Bytes(b"?" * 5)

    def __str__(self) -> str:
        self.act()
        return "!"

    def __len__(self) -> int:
        self.act()
        return 2**40


class Buffer:
    """A buffer by Python code, which Python 3.12 and later know."""

    def __init__(self, act: Act) -> None:
        self.act = act

    def __buffer__(self, flags: int) -> memoryview:
        self.act()
        return memoryview(b"hello")


class Many(list[Any]):
    """Says that it has another number of items, which are without end."""

    act: Act
    endless = False

    def __len__(self) -> int:
        self.act()
        return 3

    def __iter__(self) -> Iterator[Any]:
        self.act()
        while self.endless:
            yield 7
        yield 7

    def __getitem__(self, place: Any) -> Any:
        self.act()
        return [7] * 5 if isinstance(place, slice) else 7


class Table(Mapping[Any, Any]):
    """A mapping whose keys are without end."""

    def __init__(self, act: Act) -> None:
        self.act = act

    def __len__(self) -> int:
        self.act()
        return 2

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield str(number)

    def __getitem__(self, key: Any) -> int:
        self.act()
        return 7


def acting(kind: type, act: Act, *args: Any) -> Any:
    """An instance of one of the classes that are Python's own otherwise."""
    made = kind(*args)
    made.act = act
    return made


def endless(act: Act) -> Many:
    """As `Many`."""
    made: Many = acting(Many, act)
    made.endless = True
    return made


NUMBERS: dict[str, list[Callable[[Act], Any]]] = {
    **{
        kind: [Whole, lambda act: acting(LongInt, act, 7)]
        for kind in ("i32", "i64", "u8", "u64", "bigint", "varint", "counter")
    },
    **{kind: [Real, lambda act: acting(LongInt, act, 7)] for kind in ("f32", "f64", "double")},
}
VALUES: dict[str, list[Callable[[Act], Any]]] = {
    **NUMBERS,
    "bytes": [lambda act: acting(Bytes, act, b"hello"), Buffer],
    "blob": [lambda act: acting(Bytes, act, b"hello"), Buffer],
    "str": [lambda act: acting(Text, act, "hello")],
    "text": [lambda act: acting(Text, act, "hello")],
    "array<f64>": [
        lambda act: acting(Many, act),
        endless,
        lambda act: [7, Real(act)],
        lambda act: (Buffer(act),),
        Table,
    ],
    "list<int>": [lambda act: acting(Many, act), endless, lambda act: [7, Whole(act)]],
    "list<blob>": [lambda act: [acting(Bytes, act, b"hello"), Buffer(act)]],
    "set<int>": [lambda act: acting(Many, act), endless],
    "map<text,int>": [Table, lambda act: {acting(Text, act, "hello"): Whole(act)}],
    "tuple<int,text>": [lambda act: (Whole(act), acting(Text, act, "hello"))],
}
SCRIPT = ("str", "bytes", "array<f64>")
PLAIN = {"i32": "i32", "i64": "i64", "u8": "i32", "u64": "i64", "f32": "f32", "f64": "f64"}
NATIVE = {"bigint": "i64", "double": "f64"}  # of CQL
ECHO = (
    "(i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))"
    " (i64.extend_i32_u (local.get 1)))"
)


class Binding:
    """An ABI of one's own that passes on what it is given; see `trio_wasmcache.Binding`."""

    signature = FuncType(("i64",), ("i64",))
    arity = 1
    lower: Any = None
    lift = None
    steps: Any = None

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError("no")


class Lowers(Binding):
    """Lowers to a sequence of its own class."""

    def lower(self, values: tuple[Any, ...]) -> Sequence[Any]:
        return acting(Many, values[0].act) if isinstance(values[0], Whole) else values


class Steps(Binding):
    """Makes a call of it, with the value as it is."""

    def steps(self, guest: Any, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
        return (yield Invoke("run", values))


class Own:
    """One of these as an ABI."""

    def __init__(self, binding: Binding) -> None:
        self.binding = binding

    def bind(self, *args: Any) -> Any:
        return self.binding


def module(abi: str, kind: str) -> bytes:
    """Gives its argument back."""
    wasm = PLAIN.get(kind, NATIVE.get(kind))
    if wasm is not None:
        return wat(
            '(module (memory (export "memory") 1)'
            f' (func (export "run") (param {wasm}) (result {wasm}) (local.get 0)))'
        )
    if abi == "assemblyscript":
        return script("", Gives(None), "(local.get 0)", new=HONEST).wasm()
    if abi == "buffer":
        return buffer("", Gives(None), ECHO).wasm()
    return scylla("", Gives(None), version=2 if abi == "scylla" else 1).wasm()


def drive(coroutine: Coroutine[Any, Any, Any]) -> None:
    """As far as it comes without a checkpoint; what it raises is its own affair."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    except Exception:
        return
    finally:
        coroutine.close()


class World:
    """A cache with a function, a lease of it, and one of another instance of it."""

    def __init__(self, cache: InstanceCache, lease: Lease, other: Lease, plain: Any) -> None:
        self.cache = cache
        self.lease = lease
        self.other = other
        self.plain = plain
        self.acts = 0

    def does(self, name: str) -> Act:
        """What a value does when its code runs: a thousand times at most."""

        def act() -> None:
            self.acts += 1
            if self.acts > 1000:
                raise RuntimeError("it never ends")
            try:
                getattr(self, name)()
            except RuntimeError as error:
                # What changes the books is refused where a column is looked at.
                if "in the middle of a step" not in str(error):
                    raise

        return act

    def nothing(self) -> None:
        """Only lie."""

    def end(self) -> None:
        """End the lease."""
        drive(self.lease.__aexit__(None, None, None))

    def close(self) -> None:
        """Close all groups."""
        drive(parts_of(self.cache).groups.close([self.lease._group], Reason.CLOSED))

    def call_other(self) -> None:
        """Call in another instance of the same module, whose cells are the same."""
        drive(self.other.call(self.plain))

    def call_other_two(self) -> None:
        """The same of a function that takes two values."""
        drive(self.other.call(100, 200))

    def call_itself(self) -> None:
        """Call in the same lease."""
        drive(self.lease.call(self.plain))

    def write(self) -> None:
        """Write to the guest's memory."""
        for lease in (self.lease, self.other):
            try:
                lease.memory.write(0, b"\xff" * 1000)
            except (trio.ClosedResourceError, trio.BusyResourceError, LookupError):
                continue

    def remove(self) -> None:
        """Remove the function."""
        for function in self.cache.functions():
            self.cache.remove(function.name, function.args)

    def resize(self) -> None:
        """Leave no room for anything."""
        self.cache.resize(max_size=0)


ACTS = "nothing end close call_other call_itself write remove resize".split()
REFUSALS = (
    TypeError,
    ValueError,
    OverflowError,
    trio.ClosedResourceError,
    trio.BusyResourceError,
    trio.BrokenResourceError,
)
SEVENS: tuple[Any, ...] = (7, 7.0, "hello", b"hello", [7], {7}, [7, 7], (7, "hello"), {"hello": 7})
SAME: dict[str, Any] = {"array<f64>": [7.0], "str": "a", "bytes": b"a", "text": "a", "blob": b"a"}


def fine(result: Any) -> bool:
    """Whether that is what the value stands for, alone or as a column."""
    if isinstance(result, memoryview):
        result = result.tolist()
    return result in SEVENS or (isinstance(result, list) and all(map(fine, result)))


CASES: list[tuple[str, Any, str]] = [
    *(("plain", "plain", kind) for kind in PLAIN),
    *(("buffer", "buffer", kind) for kind in ("str", "bytes")),
    *(("scylla", "scylla", kind) for kind in VALUES if kind not in (*PLAIN, *SCRIPT)),
    *(("assemblyscript", "assemblyscript", kind) for kind in SCRIPT),
    *(("scylla 1", "scylla", kind) for kind in ("text", "blob", "list<blob>", "varint")),
    *(("plain", Own(binding), "i64") for binding in (Binding(), Lowers(), Steps())),
]


async def one(name: str, abi: Any, kind: str, act: str) -> None:
    """A value by every route: each gives what it stands for, or an error of the right kind."""
    async with quiet_cache(total_fuel=1_000_000) as cache:
        for make in VALUES[kind]:
            for route in ("call", "list", "scalar", "both"):
                await cache.register(
                    "run",
                    module(name, kind),
                    args=(kind,),
                    returns=kind,
                    abi=abi,
                    concurrency=2,
                    replace=True,
                )
                async with entered(cache, (kind,), SAME.get(kind, 7)) as world:
                    value, lease = make(world.does(act)), world.lease
                    try:
                        if route == "call":
                            result = await lease.call(value)
                        elif route == "list":
                            result = await lease.map([[value, value]])
                        elif route == "scalar":
                            result = await lease.map([value], rows=2)
                        else:
                            result = await lease.map([acting(Many, world.does(act), [value])])
                    except REFUSALS:
                        continue
                    assert fine(result), (name, kind, act, route, result)
        check_invariants(cache)


@asynccontextmanager
async def entered(
    cache: InstanceCache, args: tuple[str, ...], plain: Any = 7
) -> AsyncIterator[World]:
    """Two leases in a group that may be closed."""
    with contextlib.suppress(trio.ClosedResourceError):
        async with cache.scheduling_group("group", capacity=2) as group:
            async with group.acquire("run", args) as other, group.acquire("run", args) as lease:
                yield World(cache, lease, other, plain)
    cache.resize(max_size=2**20)


async def host(act: str) -> None:
    """The same of what a host function gives."""
    world: World | None = None
    maker: Callable[[Act], Any] = Whole

    def ask() -> Any:
        assert current_lease() is not None
        return 7 if world is None else maker(world.does(act))

    async with quiet_cache() as cache:
        for kind, wasm in PLAIN.items():
            text = (
                f'(module (import "host" "ask" (func $ask (result {wasm})))'
                f' (func (export "run") (result {wasm}) (call $ask)))'
            )
            for maker in NUMBERS[kind]:  # noqa: B007 - `ask` has it
                await cache.register(
                    "run",
                    wat(text),
                    args=(),
                    returns=kind,
                    concurrency=2,
                    imports={"host": {"ask": HostFunction(ask, params=(), results=(kind,))}},
                    replace=True,
                )
                async with entered(cache, ()) as world:
                    with contextlib.suppress(*REFUSALS):
                        result = await world.lease.call()
                        assert fine(result), (kind, act, result)
                    world = None
        check_invariants(cache)


async def invoked(act: str) -> None:
    """The same of what a host function has the guest called with."""
    world: World | None = None
    maker: Callable[[Act], Any] = Whole

    async def ask() -> Any:
        lease = current_lease()
        try:
            return await lease.invoke("same", 7 if world is None else maker(world.does(act)))
        except REFUSALS:
            if world is not None and act == "end":
                assert repr(lease).endswith("ended>")
            raise

    async with quiet_cache() as cache:
        for kind, wasm in PLAIN.items():
            text = (
                f'(module (import "host" "ask" (func $ask (result {wasm})))'
                ' (memory (export "memory") 1)'
                f' (func (export "same") (param {wasm}) (result {wasm}) (local.get 0))'
                f' (func (export "run") (result {wasm}) (call $ask)))'
            )
            for maker in NUMBERS[kind]:  # noqa: B007 - `ask` has it
                ask_it = HostFunction(ask, params=(), results=(kind,), reentrant=True)
                await cache.register(
                    "run",
                    wat(text),
                    args=(),
                    returns=kind,
                    concurrency=2,
                    imports={"host": {"ask": ask_it}},
                    replace=True,
                )
                async with entered(cache, ()) as world:
                    with contextlib.suppress(*REFUSALS):
                        result = await world.lease.call()
                        assert fine(result), (kind, act, result)
                    world = None
        check_invariants(cache)


async def two(act: str) -> None:
    """The cells of a call of two arguments are its own, whichever of the values acts."""
    body = "(i64.sub (local.get 0) (local.get 1))"
    wasm = wat(f'(module (func (export "run") (param i64 i64) (result i64) {body}))')
    async with quiet_cache() as cache:
        for values in ((Whole, 2), (9, Whole), (Whole, Whole)):
            function = await cache.register(
                "run", wasm, args=("i64", "i64"), returns="i64", concurrency=2, replace=True
            )
            async with entered(cache, function.args) as world:
                does = world.does(act)
                given = [one(does) if one is Whole else one for one in values]
                with contextlib.suppress(*REFUSALS):
                    assert await world.lease.call(*given) == (7 if values[0] is Whole else 9) - (
                        7 if values[1] is Whole else 2
                    )


async def memory(act: str) -> None:
    """The same of what is written into memory, and where: nothing but the buffer's own bytes."""
    async with quiet_cache() as cache:
        for make in (*VALUES["bytes"], lambda _: memoryview(b"hello")):
            for where in (lambda _: 8, Whole, lambda act: acting(LongInt, act, 7)):
                await cache.register(
                    "run",
                    module("plain", "i64"),
                    args=("i64",),
                    returns="i64",
                    concurrency=2,
                    replace=True,
                )
                async with entered(cache, ("i64",)) as world:
                    memory = world.lease.memory
                    memory.write(0, b"." * 64)
                    try:
                        memory.write(where(world.does(act)), make(world.does(act)))
                        found = memory.read(0, 64)
                    except (*REFUSALS, IndexError):
                        continue
                    assert found.count(b"hello") == 1, found
                    assert set(found) <= set(b".hello\xff"), found


async def main(act: str) -> None:
    """All of it, for one of the acts."""
    for name, abi, kind in CASES:
        await one(name, abi, kind, act)
    await host(act)
    await invoked(act)
    await two("call_other_two" if act == "call_other" else act)
    await memory(act)
    print("survived")
