"""Real modules from npm packages give what their own JavaScript gives.

See `npm.py` for where they come from. Those that import a memory, a table or globals are in
`test_npm_imports.py`.

Two of the modules have no ABI that anybody else has: for those an ABI is written here, as users
would write one.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from abi.npm import node
from attrs import frozen
from batch.routes import drives
from engine.support import quiet_cache
from runtime.test_determinism import PLACES, trace

from trio_wasmcache import (
    AbiError,
    BufferAbi,
    Exports,
    FuncType,
    Guest,
    HostFunction,
    Invoke,
    Wasi,
)

TEXTS = ["", "a", "abc", "x" * 31, "Grüße aus Köln " * 40, "\0\1\2" * 3000]


async def test_a_hash_without_an_allocator(packages: Path) -> None:
    """xxhash-wasm: nothing but a memory and functions of pointer, length and seed."""
    expected = node(
        packages,
        """const hash = await require("xxhash-wasm")();
           const bytes = values[0].map((text) => Buffer.from(text));
           answer(bytes.map((data) => [hash.h32Raw(data, 7), `${hash.h64Raw(data, 7n)}`]));""",
        TEXTS,
    )
    wasm = packages / "xxhash-wasm/workerd/xxhash.wasm"
    async with quiet_cache() as cache:
        short = await cache.register(
            "xxh32", wasm, args=("bytes", "u32"), returns="u32", abi="buffer"
        )
        long = await cache.register(
            "xxh64", wasm, args=("str", "u64"), returns="u64", abi=BufferAbi()
        )
        async with short.acquire() as h32, long.acquire() as h64:
            found = [
                [await h32.call(text.encode(), 7), str(await h64.call(text, 7))] for text in TEXTS
            ]
            assert found == expected
            raw = [text.encode() for text in TEXTS]
            assert [list(await h32.map([raw * 9, 7])), list(await h64.map([TEXTS * 9, 7]))] == [
                [pair[0] for pair in expected] * 9,
                [int(pair[1]) for pair in expected] * 9,
            ]
            assert drives(h32)
            size = h32.size
            assert await h32.call(bytes(10), 0) == await h32.call(bytearray(10), 0)
            assert h32.size == size


@pytest.mark.parametrize("package", ["lz4-wasm-nodejs", "snappy-wasm"])
async def test_compressors_by_wasm_bindgen(packages: Path, package: str) -> None:
    """Rust through wasm-bindgen, whose allocator is recognised; bytes and text, in and out."""
    lz4 = package.startswith("lz4")
    expected = node(
        packages,
        """const { compress } = require(values[0]);
           const given = (text) => values[2] ? Buffer.from(text) : text;
           const pack = (text) => Buffer.from(compress(given(text))).toString("hex");
           answer(values[1].map(pack));""",
        package,
        TEXTS,
        lz4,
    )

    def never(*words: int) -> int:
        return 0

    wasm = packages / package / ("lz4_wasm_nodejs_bg.wasm" if lz4 else "cjs/snappy_bg.wasm")
    imported = "__wbindgen_string_new" if lz4 else "__wbindgen_error_new"
    host = HostFunction(never, params=("i32", "i32"), results=("i32",))
    imports = {"__wbindgen_placeholder__": {imported: host}}
    kind = "bytes" if lz4 else "str"
    values = [text.encode() for text in TEXTS] if lz4 else TEXTS
    async with quiet_cache() as cache:
        compress = await cache.register(
            "compress", wasm, args=(kind,), returns="bytes", abi="buffer", imports=imports
        )
        decompress = await cache.register(
            "decompress", wasm, args=("bytes",), returns=kind, abi="buffer", imports=imports
        )
        async with compress.acquire() as pack, decompress.acquire() as unpack:
            found = [await pack.call(value) for value in values]
            assert [data.hex() for data in found] == expected
            assert [await unpack.call(data) for data in found] == values
            assert await pack.map([values * 9]) == found * 9
            assert await unpack.map([found * 9]) == values * 9
            assert drives(pack)
            sizes = pack.size, unpack.size
            for _ in range(200):
                assert await unpack.call(await pack.call(values[-1])) == values[-1]
            assert (pack.size, unpack.size) == sizes
            with pytest.raises(AbiError, match=f"returned an error instead of a {kind}"):
                await unpack.call(found[-1][:-1])
        async with decompress.acquire() as unpack:
            with pytest.raises(AbiError, match=f"returned an error instead of a {kind}") as caught:
                await unpack.map([[*found, found[-1][:-1]]])
            assert caught.value.row == len(found)


async def test_two_runs_are_the_same(packages: Path) -> None:
    """With a seed and a fixed clock: result, fuel and memory, in whatever slices they run."""

    def never(*words: int) -> int:
        return 0

    host = HostFunction(never, params=("i32", "i32"), results=("i32",))
    imports = {"__wbindgen_placeholder__": {"__wbindgen_string_new": host}}
    data = TEXTS[-1].encode() * 20
    traces: dict[str, set[str]] = {"xxh64": set(), "compress": set()}
    for limits in PLACES:
        async with quiet_cache(**limits) as cache:
            wasi = Wasi(random=1, clock=1)
            await cache.register(
                "xxh64",
                packages / "xxhash-wasm/workerd/xxhash.wasm",
                args=("bytes", "u64"),
                returns="u64",
                abi="buffer",
                wasi=wasi,
            )
            await cache.register(
                "compress",
                packages / "lz4-wasm-nodejs/lz4_wasm_nodejs_bg.wasm",
                args=("bytes",),
                returns="bytes",
                abi="buffer",
                imports=imports,
                isolation="reset",
                wasi=wasi,
            )
            for name, values in (("xxh64", (data, 7)), ("compress", (data,))):
                (function,) = (one for one in cache.functions() if one.name == name)
                async with function.acquire() as lease:
                    traces[name].add(repr(await trace(lease, values)))
    assert [len(found) for found in traces.values()] == [1, 1]


@frozen
class LexerAbi:
    """cjs-module-lexer's own way: UTF-16 in, then one call for each name that it found."""

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> LexerAbi:
        assert (tuple(args), tuple(returns)) == (("source",), ("names",))
        return self

    arity = 1
    signature = FuncType(("i32",) * 6, ("i32",))
    lower = lift = None

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError(f"parse takes one str, got {values!r:.100}")

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
        (source,) = values
        if not isinstance(source, str):
            raise self.explain(values)
        data = source.encode("utf-16-le") + bytes(2)
        memory = guest.memory
        assert memory is not None
        missing = int(guest.global_value("__heap_base")) + 2 * len(data) - memory.size
        if missing > 0:
            memory.grow(-(-missing // 65536))
        at = yield Invoke("sa", (len(data) // 2,))
        memory.write(at, data)
        if (yield Invoke("parseCJS", (at, len(source), 0, 0, 0, 0))):
            where = yield Invoke("e", ())
            raise SyntaxError(f"parse error at {where}")
        names = []
        while (yield Invoke("re", ())):
            start = yield Invoke("es", ())
            end = yield Invoke("ee", ())
            names.append(source[start:end].strip("'"))
        return sorted(set(names))


async def test_a_lexer_with_an_abi_of_its_own(packages: Path) -> None:
    """cjs-module-lexer: a call is many calls, and the user's ABI says which."""
    sources = [
        "exports.a = 1; exports.b = 'two'; Object.defineProperty(exports, 'c', { value: 3 });",
        "module.exports = { x, y, 'z': 1 };",
        "// exports.no = 1\n/* exports.no = 1 */ 'exports.no = 1'",
        "exports.é = 1;" + " " * 50_000 + "exports.last = 1;",
        "",
    ]
    expected = node(
        packages,
        """const lexer = require("cjs-module-lexer"); await lexer.init();
           answer(values[0].map((source) => lexer.parse(source).exports.sort()));""",
        sources,
    )
    script = (packages / "cjs-module-lexer/dist/lexer.mjs").read_text()
    (embedded,) = re.findall(r'"(AGFzbQ[A-Za-z0-9+/=]+)"', script)
    async with quiet_cache() as cache:
        parse = await cache.register(
            "parse",
            base64.b64decode(embedded),
            args=("source",),
            returns="names",
            export="parseCJS",
            abi=LexerAbi(),
        )
        async with parse.acquire() as lease:
            assert [await lease.call(source) for source in sources] == expected
            with pytest.raises(TypeError, match="parse takes one str"):
                await lease.call(5)
            assert await lease.call("exports.on = 1") == ["on"]
        with pytest.raises(SyntaxError, match="parse error at"):
            await parse.call("import x from 'y'")
        assert cache.stats().evictions["corrupted"] == 1


@frozen
class MappingsAbi:
    """source-map's own way: allocate, parse, have the host called for each mapping, free."""

    arity = 1
    signature = FuncType(("i32",), ())
    lower = lift = None

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> MappingsAbi:
        return self

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError(f"one str, please, not {values!r:.100}")

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, None]:
        data = values[0].encode("ascii")
        at = yield Invoke("allocate_mappings", (len(data),))
        assert guest.memory is not None
        guest.memory.write(at, data)
        mappings = yield Invoke("parse_mappings", (at,))
        if not mappings:
            code = yield Invoke("get_last_error", ())
            raise ValueError(f"these are no mappings: code {code}")
        yield Invoke("by_generated_location", (mappings,))
        yield Invoke("free_mappings", (mappings,))


async def test_a_parser_that_calls_the_host(packages: Path) -> None:
    """source-map: Rust that calls a host function for each mapping that it has parsed."""
    mappings = "AAAA,SAASA,IAAI,CAACC;EACJA,OAAO;;AACT,CAFA;" * 50
    names = ["one", "two"] * 100
    expected = node(
        packages,
        """const { SourceMapConsumer } = require("source-map");
           const [mappings, names] = values;
           const map = { version: 3, sources: ["a.js", "b.js"], names, mappings };
           await SourceMapConsumer.with(map, null, (consumer) => {
             const found = [];
             consumer.eachMapping((m) =>
               found.push([m.generatedLine, m.generatedColumn, m.originalLine, m.originalColumn]));
             answer(found);
           });""",
        mappings,
        names,
    )
    found: list[list[int]] = []

    def mapping(*words: int) -> None:
        line, column, _, _, _, _, original_line, original_column, _, _ = words
        found.append([line + 1, column, original_line + 1, original_column])

    host = HostFunction(mapping, params=("i32",) * 10, results=())
    async with quiet_cache() as cache:
        parse = await cache.register(
            "mappings",
            packages / "source-map/lib/mappings.wasm",
            args=("mappings",),
            export="by_generated_location",
            abi=MappingsAbi(),
            imports={"env": {"mapping_callback": host}},
        )
        async with parse.acquire() as lease:
            await lease.call(mappings)
            assert found == expected
            size = lease.size
            for _ in range(20):
                await lease.call(mappings)
            assert lease.size == size
            assert len(found) == 21 * len(expected)
            with pytest.raises(ValueError, match="no mappings: code"):
                await lease.call("!!!")
