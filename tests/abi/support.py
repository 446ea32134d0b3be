"""What the tests of the ABIs share: a guest that is no wasm, the built UDFs, CQL strategies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cassandra.util import Date, Duration, Time
from hypothesis import strategies as st

from trio_wasmcache import Binding, Exports, Guest, Invoke, MemoryLimitError
from trio_wasmcache._abi.cql.types import _in_order
from trio_wasmcache._core.tally import Tally
from trio_wasmcache._core.wasm.reader import FuncType

UDFS = Path(__file__).parents[1] / "udfs"
PAGE = 65536
VERSIONS = (1, 2)


def udf(name: str) -> bytes:
    """One of the built modules."""
    return (UDFS / f"{name}.wasm").read_bytes()


class FakeGuest:
    """Memory, state and globals, and no instance behind them. Room for `max_pages`."""

    def __init__(self, pages: int = 1, max_pages: int = 4, **values: int) -> None:
        self.bytes = bytearray(pages * PAGE)
        self.max_pages = max_pages
        self.memory = self
        self.state: dict[str, Any] = {}
        self.values = values
        self.tally = Tally(2**40, allowed=2**40)

    @property
    def size(self) -> int:
        return len(self.bytes)

    def read(self, at: int, n: int) -> bytes:
        if at < 0 or at + n > len(self.bytes):
            raise IndexError(at)
        return bytes(self.bytes[at : at + n])

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        size = memoryview(data).nbytes
        if at < 0 or at + size > len(self.bytes):
            raise IndexError(at)
        self.bytes[at : at + size] = data

    def grow(self, pages: int) -> int:
        begin = len(self.bytes)
        if begin + pages * PAGE > self.max_pages * PAGE:
            raise MemoryLimitError("no more pages")
        self.bytes += bytes(pages * PAGE)
        return begin

    def global_value(self, name: str) -> int:
        return self.values[name]


def drive(
    binding: Binding, guest: Guest, values: tuple[Any, ...], answer: Callable[[Invoke], Any]
) -> Any:
    """The result of a call whose every step `answer` answers: what the lease does, without wasm."""
    assert binding.steps is not None
    steps = binding.steps(guest, values)
    try:
        invoke = next(steps)
        while True:
            invoke = steps.send(answer(invoke))
    except StopIteration as stop:
        return stop.value


def scylla_exports(*args: str, result: str = "i64", **functions: FuncType) -> Exports:
    """Of a module for ScyllaDB whose function is ``run``."""
    return Exports(
        {"run": FuncType(args, (result,)), **functions}, {"_scylla_abi": "i32"}, ("memory",)
    )


# -- CQL values for Hypothesis

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTS = {
    name: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for name, bits in (("tinyint", 8), ("smallint", 16), ("int", 32), ("bigint", 64))
}
DURATIONS = st.tuples(
    st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1)
).flatmap(lambda parts: st.sampled_from([Duration(*parts), Duration(*(-part for part in parts))]))
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    **INTS,
    "counter": INTS["bigint"],
    "varint": st.integers(),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "boolean": st.booleans(),
    "text": TEXTS,
    "ascii": st.text(st.characters(codec="ascii"), max_size=20),
    "blob": st.binary(max_size=40),
    "uuid": st.uuids(),
    "timeuuid": st.uuids(version=1),
    "inet": st.ip_addresses().map(
        lambda one: socket.inet_ntop(
            socket.AF_INET6 if one.version == 6 else socket.AF_INET, one.packed
        )
    ),
    "date": st.integers(-(2**31), 2**31 - 1).map(Date),
    "time": st.integers(0, 86_400 * 10**9 - 1).map(Time),
    "timestamp": st.datetimes().map(lambda d: d.replace(microsecond=d.microsecond // 1000 * 1000)),
    "duration": DURATIONS,
}


def cql_types(*, hashable: bool = False) -> st.SearchStrategy[str]:
    """Names of types, nested at most three deep."""
    simple = st.sampled_from([name for name in SCALARS if name != "duration" or not hashable])
    return st.recursive(simple, _compound, max_leaves=6)


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    plain = inner.filter(lambda name: "duration" not in name)
    return st.one_of(
        inner.map(lambda name: f"list<{name}>"),
        inner.map(lambda name: f"frozen<list<{name}>>"),
        plain.map(lambda name: f"set<{name}>"),
        st.tuples(plain, inner).map(lambda names: f"map<{','.join(names)}>"),
        st.lists(inner, min_size=1, max_size=3).map(lambda names: f"tuple<{','.join(names)}>"),
    )


def cql_values(name: str, *, hashable: bool = False) -> st.SearchStrategy[Any]:
    """Values of a type as they come back: nulls in lists, maps' values and tuples included."""
    if name in SCALARS:
        return SCALARS[name]
    word, _, rest = name.partition("<")
    inner = split_types(rest[:-1])
    if word == "frozen":
        return cql_values(inner[0], hashable=hashable)
    if word == "list":
        items = st.lists(st.none() | cql_values(inner[0], hashable=hashable), max_size=4)
        return items.map(tuple) if hashable else items
    if word == "set":
        kind = frozenset if hashable else set
        return st.lists(cql_values(inner[0], hashable=True), max_size=4).map(kind)
    if word == "map":
        values = st.none() | cql_values(inner[1], hashable=hashable)
        pairs = st.dictionaries(cql_values(inner[0], hashable=True), values, max_size=4)
        if not hashable:
            return pairs
        return pairs.map(lambda made: tuple((key, made[key]) for key in _in_order(list(made))))
    return st.tuples(*(st.none() | cql_values(one, hashable=hashable) for one in inner))


def split_types(names: str) -> list[str]:
    """``int,map<int,text>`` to its two types."""
    parts, depth = [""], 0
    for letter in names:
        depth += (letter == "<") - (letter == ">")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
