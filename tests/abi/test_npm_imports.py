"""Real modules from npm that import a memory, a table or globals: see `npm.py`.

Each does some work of its own, by an ABI that is written here: a call of a function is several
calls of exports.
"""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from abi.npm import node
from attrs import frozen
from engine.support import quiet_cache

from trio_wasmcache import (
    Exports,
    FuncType,
    Guest,
    HostFunction,
    HostGlobal,
    HostMemory,
    HostTable,
    Invoke,
    Memory,
    MiB,
    current_lease,
)
from trio_wasmcache.testing import check_invariants

Steps = Generator[Invoke, Any, Any]


@frozen
class Scripted:
    """An ABI whose one argument is converted by a generator, which says what is called."""

    run: Callable[[Guest, Any], Steps]
    signature: FuncType
    arity: int = 1
    lower = lift = None

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> Scripted:
        return self

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError(f"one argument, please, not {values!r:.100}")

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Steps:
        return (yield from self.run(guest, values[0]))


def memory_of(guest: Guest) -> Memory:
    assert guest.memory is not None
    return guest.memory


def text_at(guest: Guest, at: int) -> str:
    """The text with a zero after it."""
    memory, data = memory_of(guest), b""
    while b"\0" not in data:
        data += memory.read(at + len(data), 64)
    return data[: data.index(b"\0")].decode()


def put(guest: Guest, malloc: str, text: str) -> Generator[Invoke, Any, int]:
    """Copy a text, with a zero after it, to memory of the guest's."""
    data = text.encode() + b"\0"
    at: int = yield Invoke(malloc, (len(data),))
    memory_of(guest).write(at, data)
    return at


# -- SQLite: a database in the memory that it imports

OK, ROW, DONE = 0, 100, 101
READ_WRITE_CREATE = 2 | 4
NO_SUCH_FILE = -44


def ask_sqlite(guest: Guest, sql: str) -> Steps:
    """Run one statement in the instance's database; the rows, in which all values are text."""
    if "database" not in guest.state:
        yield Invoke("__wasm_call_ctors", ())
        assert (yield Invoke("sqlite3_initialize", ())) == OK
        name = yield from put(guest, "malloc", ":memory:")
        place = yield Invoke("malloc", (8,))
        opened = yield Invoke("sqlite3_open_v2", (name, place, READ_WRITE_CREATE, 0))
        assert opened == OK
        guest.state["place"] = place
        guest.state["database"] = struct.unpack("<i", memory_of(guest).read(place, 4))[0]
    database, place = guest.state["database"], guest.state["place"]
    text = yield from put(guest, "malloc", sql)
    prepared = yield Invoke("sqlite3_prepare_v2", (database, text, -1, place, 0))
    yield Invoke("free", (text,))
    if prepared != OK:
        raise sqlite3.OperationalError(
            text_at(guest, (yield Invoke("sqlite3_errmsg", (database,))))
        )
    (statement,) = struct.unpack("<i", memory_of(guest).read(place, 4))
    columns = yield Invoke("sqlite3_column_count", (statement,))
    rows = []
    while (stepped := (yield Invoke("sqlite3_step", (statement,)))) == ROW:
        row: list[str | None] = []
        for column in range(columns):
            at = yield Invoke("sqlite3_column_text", (statement, column))
            row.append(text_at(guest, at) if at else None)
        rows.append(row)
    yield Invoke("sqlite3_finalize", (statement,))
    if stepped != DONE:
        raise sqlite3.IntegrityError(text_at(guest, (yield Invoke("sqlite3_errmsg", (database,)))))
    return rows


STATEMENTS = [
    "CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT UNIQUE, people REAL)",
    "INSERT INTO city (name, people) VALUES ('Köln', 1.08e6), ('Łódź', 672e3), ('東京', 14e6)",
    "SELECT name, people * 2 FROM city WHERE people > 7e5 ORDER BY name DESC",
    """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
    INSERT INTO city (name) SELECT 'village ' || i FROM n""",
    "SELECT count(*), sum(length(name)), max(id), min(people) FROM city",
    "SELECT name FROM city WHERE name LIKE '%9%' ORDER BY id LIMIT 5",
    "SELECT json_group_array(name) FROM (SELECT name FROM city ORDER BY id LIMIT 3)",
    "CREATE INDEX by_people ON city (people)",
    "UPDATE city SET people = id WHERE people IS NULL",
    "SELECT people FROM city INDEXED BY by_people WHERE people BETWEEN 100 AND 104",
    "DELETE FROM city WHERE id > 10",
    "SELECT group_concat(name, ', ') FROM city",
]


@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_sqlite_in_a_memory_that_it_imports(packages: Path, isolation: str) -> None:
    """What Python's own SQLite answers; a later lease finds the database, or an empty one."""
    wasm = packages / "@sqlite.org/sqlite-wasm/sqlite-wasm/jswasm/sqlite3.wasm"
    release = json.loads((packages / "@sqlite.org/sqlite-wasm/package.json").read_text())["version"]
    with sqlite3.connect(":memory:") as connection:
        expected = [connection.execute(one).fetchall() for one in STATEMENTS]
    connection.close()
    async with quiet_cache(total_fuel=10**10) as cache:
        ask = await cache.register(
            "ask",
            wasm,
            args=("sql",),
            returns="rows",
            export="sqlite3_step",
            abi=Scripted(ask_sqlite, FuncType(("i32",), ("i32",))),
            imports={
                "env": {
                    "memory": HostMemory(),
                    "emscripten_date_now": HostFunction(lambda: 0.0, (), ("f64",)),
                    # It would read random numbers from a file.
                    "__syscall_openat": HostFunction(
                        lambda *_: NO_SUCH_FILE, ("i32",) * 4, ("i32",)
                    ),
                }
            },
            missing="trap",
            isolation=isolation,
        )
        assert ask.isolation_verdict.startswith(isolation)
        async with ask.acquire() as lease:
            assert release.startswith((await lease.call("SELECT sqlite_version()"))[0][0])
            for statement, rows in zip(STATEMENTS, expected, strict=True):
                assert await lease.call(statement) == [
                    [None if value is None else str(value) for value in row] for row in rows
                ], statement
        with pytest.raises(sqlite3.OperationalError, match="syntax error"):
            await ask.call("SELEKT 1")
        async with ask.acquire() as lease:
            await lease.call("CREATE TABLE once (a)")
            await lease.call("INSERT INTO once VALUES (1)")
            assert lease.memory.size >= 16 * MiB
        if isolation == "reuse":
            assert await ask.call("SELECT a FROM once") == [["1"]]
        else:
            with pytest.raises(sqlite3.OperationalError, match="no such table: once"):
                await ask.call("SELECT a FROM once")
        check_invariants(cache)


# -- QuickJS: a JavaScript engine


def evaluate_with(names: dict[str, str]) -> Callable[[Guest, str], Steps]:
    """How scripts are evaluated, with the short names that exports have."""

    def evaluate(guest: Guest, script: str) -> Steps:
        if "context" not in guest.state:
            yield Invoke(names["ctors"], ())
            runtime = yield Invoke(names["QTS_NewRuntime"], ())
            guest.state["context"] = yield Invoke(names["QTS_NewContext"], (runtime, 0))
        context = guest.state["context"]
        code = yield from put(guest, names["malloc"], script)
        name = yield from put(guest, names["malloc"], "script.js")
        size = len(script.encode())
        value = yield Invoke(names["QTS_Eval"], (context, code, size, name, 0, 0))
        failed = yield Invoke(names["QTS_ResolveException"], (context, value))
        dumped = yield Invoke(names["QTS_Dump"], (context, failed or value))
        text = text_at(guest, dumped)
        for pointer in {value, failed} - {0}:
            yield Invoke(names["QTS_FreeValuePointer"], (context, pointer))
        for pointer in (code, name):
            yield Invoke(names["free"], (pointer,))
        if failed:
            raise ValueError(text)
        return text

    return evaluate


def no_environment(count_at: int, size_at: int) -> int:
    """WASI's `environ_sizes_get`, by the name that it has here."""
    memory = current_lease().memory
    memory.write(count_at, bytes(4))
    memory.write(size_at, bytes(4))
    return 0


SCRIPTS = [
    "1 + 2 ** 10",
    "[3, 1, 2].sort().map((x) => x * x)",
    "const fib = (n) => n < 2 ? n : fib(n - 1) + fib(n - 2); fib(20)",
    '({ text: "grün".toUpperCase(), big: String(2n ** 100n), nested: { list: [null, true] } })',
    '"a-b-c".replace(/-(\\w)/g, (_, letter) => letter.toUpperCase())',
    "JSON.stringify([...new Set([1, 1, 2])].concat(Object.entries({ k: 1 })))",
    "class A { #x = 5; get x() { return this.#x } }; typeof A + new A().x",
]


async def test_quickjs_evaluates_javascript(packages: Path) -> None:
    """What node answers; a later script sees what an earlier one defined; errors are its own."""
    folder = packages / "@jitl/quickjs-wasmfile-release-sync/dist"
    glue = (folder / "emscripten-module.mjs").read_text()
    names = dict(re.findall(r"_(QTS_\w+|malloc|free)=b\.(\w+)", glue))
    expected = node(
        packages, "answer(values[0].map((one) => JSON.stringify(eval(`(0, eval)`)(one))));", SCRIPTS
    )
    wasm = folder / "emscripten-module.wasm"
    names["ctors"] = "u"
    async with quiet_cache(total_fuel=10**10) as cache:
        f = await cache.register(
            "f",
            wasm,
            args=("script",),
            returns="value",
            export=names["QTS_Eval"],
            abi=Scripted(evaluate_with(names), FuncType(("i32",) * 6, ("i32",))),
            imports={
                "a": {
                    "a": HostMemory(),
                    "p": HostFunction(lambda: 0.0, (), ("f64",)),  # Date.now
                    "f": HostFunction(no_environment, ("u32", "u32"), ("i32",)),
                    "e": HostFunction(lambda *_: 0, ("u32", "u32"), ("i32",)),
                }
            },
            missing="trap",
        )
        async with f.acquire() as lease:
            found = [await lease.call(one) for one in SCRIPTS]
            assert [json.loads(one) for one in found] == [json.loads(one) for one in expected]
            await lease.call("var kept = 7")
            assert await lease.call("kept * 6") == "42"
            size = lease.memory.size
            for _ in range(50):
                await lease.call(SCRIPTS[1])
            assert lease.memory.size == size
        with pytest.raises(ValueError, match="ReferenceError"):
            await f.call("nothing.there")


# -- A grammar of tree-sitter: a part of a dynamically linked program

SYMBOL_COUNT_AT, SYMBOL_NAMES_AT = 4, 56


def read_grammar(guest: Guest, _: None) -> Steps:
    """The names of a grammar's symbols, from the structure that describes it."""
    yield Invoke("__wasm_apply_data_relocs", ())
    yield Invoke("__wasm_call_ctors", ())
    at = yield Invoke("tree_sitter_json", ())
    memory = memory_of(guest)

    def number(place: int) -> int:
        return int.from_bytes(memory.read(place, 4), "little")

    names = number(at + SYMBOL_NAMES_AT)
    return at, [text_at(guest, number(names + 4 * n)) for n in range(number(at + SYMBOL_COUNT_AT))]


async def test_a_grammar_that_imports_where_it_lies(packages: Path) -> None:
    """Its data and its functions lie where the globals say, in a memory and a table of its own."""
    wasm = packages / "tree-sitter-json/tree-sitter-json.wasm"
    expected = node(
        packages,
        """const { Parser, Language } = require("web-tree-sitter");
           await Parser.init();
           const language = await Language.load(values[0]);
           const names = [];
           for (let n = 0; n < language.nodeTypeCount; n++) names.push(language.nodeTypeForId(n));
           answer(names);""",
        str(wasm),
    )
    found = []
    async with quiet_cache() as cache:
        for base in (0, 1024, 40_000):
            f = await cache.register(
                "grammar",
                wasm,
                args=("nothing",),
                returns="names",
                export="tree_sitter_json",
                abi=Scripted(read_grammar, FuncType((), ("i32",))),
                called_on_null=True,
                imports={
                    "env": {
                        "memory": HostMemory(),
                        "__indirect_function_table": HostTable(),
                        "__memory_base": HostGlobal("u32", base),
                        "__table_base": HostGlobal("u32", 0),
                    }
                },
                isolation="reset",
                replace=True,
            )
            at, names = await f.call(None)
            assert names == expected
            found.append(at - base)
        assert len(set(found)) == 1
        check_invariants(cache)


def init_library(guest: Guest, rounds: int) -> Steps:
    """The versions of grammars that the library reads; and memory from its allocator, freed."""
    if "buffer" not in guest.state:
        yield Invoke("__wasm_apply_data_relocs", ())
        yield Invoke("__wasm_call_ctors", ())
        guest.state["buffer"] = yield Invoke("ts_init", ())
        guest.state["versions"] = memory_of(guest).read(guest.state["buffer"], 8)
    memory, places = memory_of(guest), []
    for n in range(rounds):
        places.append((yield Invoke("malloc", (1000 + n,))))
        memory.write(places[-1], bytes([n]) * 1000)
    kept = [memory.read(at, 1)[0] for at in places]
    yield Invoke("ts_parser_new_wasm", ())
    (parser,) = struct.unpack("<i", memory.read(guest.state["buffer"], 4))
    yield Invoke("ts_parser_delete", (parser,))
    for at in places:
        yield Invoke("free", (at,))
    return min(places) >= STACK, kept, struct.unpack("<2i", guest.state["versions"])


STACK, STACK_SIZE = 2 * MiB, 64 * 1024


async def test_the_library_of_tree_sitter_runs_with_all_of_it(packages: Path) -> None:
    """It imports a memory, a table, and six globals, three of which its linker would work out."""
    imports = {
        "env": {
            "memory": HostMemory(),
            "__indirect_function_table": HostTable(),
            "__memory_base": HostGlobal("u32", 1024),
            "__table_base": HostGlobal("u32", 0),
            "__stack_pointer": HostGlobal("u32", STACK),
        },
        "GOT.mem": {
            "__stack_low": HostGlobal("u32", STACK - STACK_SIZE),
            "__stack_high": HostGlobal("u32", STACK),
            "__heap_base": HostGlobal("u32", STACK),
        },
    }
    versions = node(
        packages,
        """const loaded = require("web-tree-sitter");
           await loaded.Parser.init();
           answer([loaded.LANGUAGE_VERSION, loaded.MIN_COMPATIBLE_VERSION]);""",
    )
    async with quiet_cache(max_instance_size=64 * MiB, memory_limit=64 * MiB) as cache:
        f = await cache.register(
            "f",
            packages / "web-tree-sitter/web-tree-sitter.wasm",
            args=("rounds",),
            returns="facts",
            export="malloc",
            abi=Scripted(init_library, FuncType(("i32",), ("i32",))),
            imports=imports,
            missing="trap",
        )
        async with f.acquire() as lease:
            for _ in range(3):
                above, kept, found = await lease.call(50)
                assert (above, kept) == (True, [*range(50)])
                assert list(found) == versions
            assert lease.memory.size == 32 * MiB
        check_invariants(cache)
