"""Tries inputs one after the other in a process of its own, which is free to die.

Each input is in the file before it is tried, and its outcome is a line of JSON after it. What is
neither an error of the library's nor a harmless result is told as such, and the next one follows.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import trio
import wasmtime

from trio_wasmcache import (
    CacheConfig,
    Case,
    HostFunction,
    HostGlobal,
    HostMemory,
    HostTable,
    InstanceCache,
    KiB,
    MiB,
    Ok,
    SignatureError,
    Wasi,
    WasmCacheError,
    current_lease,
    open_cache,
)
from trio_wasmcache._core.wasm.formats import is_component
from trio_wasmcache._core.wasm.isolation import ISOLATIONS
from trio_wasmcache._core.wasm.reader import FuncType, MalformedModuleError, ModuleInfo, read_module
from trio_wasmcache._engine.wasmtime.hosts import INSTANCES
from trio_wasmcache.testing import check_invariants

from .. import compilers
from ..open_stores import check_all_closed
from ..parts import Relayed
from .generate import BACK, NAMES
from .mutate import make
from .verdict import ENGINE

CONFIG = CacheConfig(
    total_fuel=50_000, memory_limit=1 * MiB, max_size=2 * MiB, max_wasm_size=512 * KiB
)
# Inputs for one cache; then it is closed, and it is looked at whether anything is left.
INPUTS_EACH = 50
VALUES = {"i32": (0, -1, 65_535, 2**31 - 1), "i64": (0, -1, 2**63 - 1), "f32": (0.0, 1e38)}


def _raises(stream: str, line: str) -> None:
    raise ValueError("the disk is full")


# Clocks are fixed, as a guest may ask to sleep.
REFERENCES = ("funcref", "externref")
GRANTS = (
    Wasi(clock=0),
    Wasi(stdout="log", stderr="drop", random=1, clock=10**9),
    Wasi(
        args=("a", "b"),
        env={"A": "b"},
        stdin=bytes(range(256)),
        stdout=_raises,
        stderr=lambda stream, line: None,
        clock=1.5,
    ),
)
DICE = Random()
"""What host functions do. It is thrown alike each time that an input is tried."""
EXPORTS: dict[str, FuncType] = {}
"""The functions that the input exports, as far as it can be read."""


def _calls_back(type: FuncType) -> HostFunction:
    """A host function that has the guest do something else, whatever that may be."""

    async def call_back(*values: float) -> Any:
        lease = current_lease()
        for _ in range(DICE.choice((0, 1, 1, 2))):
            name = DICE.choice([*EXPORTS, DICE.choice(NAMES)])
            params = EXPORTS[name].params if name in EXPORTS else ()
            given = DICE.choice((_values(DICE, params), _values(DICE, params), values))
            with suppress(LookupError, TypeError, ValueError, OverflowError):
                await lease.invoke(name, *given)
        if DICE.random() < 0.1:
            raise ValueError("the host function fails")
        return values[0] if type.results else None

    return HostFunction(call_back, type.params, type.results, reentrant=True)


# What generated modules may import, under these names.
IMPORTS: dict[str, dict[str, HostFunction | HostMemory | HostTable | HostGlobal]] = {
    "back": {name: _calls_back(type) for name, type in BACK.items()},
    "env": {
        **{f"memory{n}": HostMemory() for n in range(4)},
        **{f"table{n}": HostTable() for n in range(4)},
        **{f"{kind}{n}": HostGlobal(kind, 7) for kind in ("i32", "i64", "f32") for n in range(6)},
        **{f"f64{n}": HostGlobal("f64", float("nan")) for n in range(6)},
        **{f"{kind}{n}": HostGlobal(kind, None) for kind in REFERENCES for n in range(6)},
    },
}
ABIS = (None, None, "plain", "scylla", "buffer", "assemblyscript")
TYPES = (
    "i32",
    "i64",
    "f32",
    "f64",
    "text",
    "blob",
    "list<int>",
    "str",
    "bytes",
    "bool",
    "list[f64]",
)


class Silent:
    """A logger that writes nothing."""

    def info(self, event: str, **fields: Any) -> None:
        pass

    warning = info


def read(wasm: bytes) -> ModuleInfo | None:
    """What the section reader finds; what wasmtime takes, it must read."""
    try:
        return read_module(wasm, weigh=False)
    except MalformedModuleError as error:
        refusal = error
    try:
        wasmtime.Module.validate(ENGINE, wasm)
    except wasmtime.WasmtimeError:
        return None
    raise AssertionError(f"wasmtime takes what the reader refuses: {refusal}")


async def one(cache: InstanceCache, wasm: bytes, random: Random) -> str:
    """The outcome of one input: the name of an error, or ``result``.

    One in three is tried once more between parts of ours, which must not change the outcome.
    """
    if is_component(wasm):
        return await _component(cache, wasm, random)
    info = read(wasm)
    functions = [one for one in info.exports if one.kind == "func"] if info is not None else []
    EXPORTS.clear()
    EXPORTS.update((one.name, info.functions[one.index]) for one in functions if info is not None)
    args, returns, export = _declared(random)
    declared = {
        "args": args,
        "returns": returns,
        "export": export,
        "called_on_null": False,
        "isolation": random.choice(ISOLATIONS),
        "wasi": random.choice(GRANTS),
        "imports": random.choice((None, IMPORTS, IMPORTS, IMPORTS)),
    }
    abi, values = random.choice(ABIS), [_values(random, args) for _ in range(2)]
    outcome = await _tried(cache, wasm, values, abi=abi, **declared)
    if random.randrange(3) == 0 and not _draws(info):
        again = await _tried(cache, wasm, values, abi=Relayed(abi), **declared)
        # The way through a part costs some fuel, and some of the stack.
        near = ("call: FuelExhaustedError", "call: StackOverflowError", "call: LoadError")
        assert again == outcome or {again, outcome}.intersection(near), f"{outcome}, then {again}"
    return outcome


async def _component(cache: InstanceCache, wasm: bytes, random: Random) -> str:
    """The outcome of a component: all of its functions are registered, and some called."""
    try:
        functions = await cache.register_component(
            wasm,
            isolation=random.choice(ISOLATIONS),
            wasi=random.choice(GRANTS),
            missing=random.choice(("error", "trap")),
        )
    except (WasmCacheError, SignatureError) as error:
        _check(error)
        return f"register: {type(error).__name__}"
    outcomes = []
    try:
        for function in random.sample(functions, min(3, len(functions))):
            given = [_wit_value(random, type) for type in function.args]
            try:
                async with function.acquire() as lease:
                    await lease.call(*given)
                outcomes.append("result")
            except (WasmCacheError, TypeError, ValueError, OverflowError) as error:
                _check(error)
                outcomes.append(f"call: {type(error).__name__}")
    finally:
        for function in functions:
            cache.remove(function.name, function.args)
    return outcomes[0]


def _wit_value(random: Random, type: str) -> Any:
    """A value that may fit a type of WIT."""
    fitting: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("u8", "u16", "u32", "u64"), (0, 1, 255)),
        **dict.fromkeys(("s8", "s16", "s32", "s64"), (0, -1, 127)),
        **dict.fromkeys(("f32", "f64"), (0.5, float("nan"))),
        "bool": (True, False),
        "char": ("x", "🦀"),
        "string": ("", "é🦀", "x" * 5_000),
        "list<u8>": (b"", b"\0\xff", bytes(5_000)),
    }
    others = (None, 1, "a", [], ["b"], {"x": 1.0, "name": "n"}, Case("some", (1, "s")), Ok(7))
    return random.choice(fitting.get(type, others))


def _draws(info: ModuleInfo | None) -> bool:
    """Whether it may ask for random bytes, which are others each time."""
    return info is not None and any(item.name == "random_get" for item in info.imports)


async def _tried(
    cache: InstanceCache, wasm: bytes, values: list[list[Any]], **declared: Any
) -> str:
    try:
        await cache.register("f", wasm, **declared)
    except (WasmCacheError, SignatureError) as error:
        _check(error)
        return f"register: {type(error).__name__}"
    try:
        DICE.seed(1)
        async with cache.acquire("f", declared["args"]) as lease:
            for given in values:
                await lease.call(*given)
        return "result"
    except RuntimeError as error:
        if "call the guest after its start" not in str(error):
            raise
        return "call: it calls back from its start"
    except (
        WasmCacheError,
        TypeError,
        ValueError,
        OverflowError,
        trio.BrokenResourceError,  # a host function went on after an invoke that failed
    ) as error:
        _check(error)
        return f"call: {type(error).__name__}"
    finally:
        cache.remove("f")


def _check(error: Exception) -> None:
    message = str(error)
    assert len(message) < 20_000, f"a message of {len(message)} characters"
    assert message.replace("\n", "").isprintable(), ascii(message)


def _declared(random: Random) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Types and export: now and then at random, otherwise what the module shows."""
    if not EXPORTS or random.random() < 0.2:
        return tuple(random.choices(TYPES, k=random.randrange(3))), ("i64",), "run"
    name, kind = random.choice([*EXPORTS.items()])
    return kind.params, kind.results, name


def _values(random: Random, args: tuple[str, ...]) -> list[Any]:
    given: dict[str, tuple[Any, ...]] = {
        **VALUES,
        "text": ("", "some text", "é🦀"),
        "str": ("", "some text", "é🦀"),
        "blob": (b"", b"\0\xff"),
        "bytes": (b"", b"\0\xff"),
        "list<int>": ([], [1, 2]),
        "bool": (True, False),
    }
    return [random.choice(given.get(name, (0.5,))) for name in args]


async def run(seed: int, begin: int, end: int, path: Path, crash_at: int) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for first in range(begin, end, INPUTS_EACH):
        async with open_cache(CONFIG, logger=Silent()) as cache:
            for number in range(first, min(first + INPUTS_EACH, end)):
                kind, wasm = make(seed, number)
                os.ftruncate(file, 0)
                os.pwrite(file, wasm, 0)
                print(json.dumps({"begins": number, "kind": kind}), flush=True)
                if number == crash_at:
                    os.abort()
                try:
                    outcome = await one(cache, wasm, Random(number))
                    check_invariants(cache)
                    wrong = False
                except Exception as error:
                    outcome, wrong = f"{type(error).__name__}: {error}", True
                print(json.dumps({"ends": number, "outcome": outcome, "wrong": wrong}), flush=True)
        assert not INSTANCES
        check_all_closed()
        print(json.dumps({"resident": _resident()}), flush=True)


def _resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    compilers.use()
    trio.run(run, *map(int, sys.argv[1:4]), Path(sys.argv[4]), int(sys.argv[5]))
