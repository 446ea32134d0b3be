"""Whatever `register` is given, it says what is wrong, and nothing of it stays."""

from __future__ import annotations

import gc
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from engine.support import WASI, compiles_held, exported, quiet_cache, wat

from trio_wasmcache import (
    CacheConfig,
    DuplicateFunctionError,
    ExportError,
    FuelExhaustedError,
    HostFunction,
    InstanceCache,
    InvalidModuleError,
    KiB,
    LinkError,
    LoadError,
    MiB,
    ModuleTooLargeError,
    SignatureError,
    TrapError,
    UnknownFunctionError,
    WasmCacheError,
    open_cache,
)
from trio_wasmcache._core.config import WASM_PAGE
from trio_wasmcache._core.text import shown
from trio_wasmcache._core.wasm.editor import encode_module, name_bytes, section
from trio_wasmcache._core.wasm.reader import Export, FuncType, Limits
from trio_wasmcache.testing import check_invariants, snapshot

GOOD = wat('(module (func (export "f") (param i64) (result i64) local.get 0))')
KEY = ("i64",)


async def refused(
    cache: InstanceCache,
    kind: type[Exception],
    *said: str,
    wasm: Any = GOOD,
    name: Any = "f",
    args: Any = KEY,
    returns: Any = "i64",
    **more: Any,
) -> Exception:
    """`register` refuses this, in these words; afterwards all is as if it had not been asked."""
    before = cache.functions()
    artifacts = cache.stats().artifact_size
    with pytest.raises(kind) as caught:
        await cache.register(name, wasm, args=args, returns=returns, **more)
    assert type(caught.value) is kind
    for words in said:
        assert words in str(caught.value)
    assert len(str(caught.value)) < 6000
    assert cache.functions() == before
    assert cache.stats().artifact_size == artifacts
    assert not snapshot(cache).reserved
    assert not cache._compiler._compiling
    check_invariants(cache)
    await works(cache)
    return caught.value


async def works(cache: InstanceCache) -> None:
    """The name is free, and the cache registers and calls."""
    await register_good(cache)
    (function,) = (one for one in cache.functions() if one.name == "f")
    assert await function.call(42) == 42
    cache.remove("f", KEY)
    check_invariants(cache)


async def register_good(cache: InstanceCache) -> None:
    await cache.register("f", GOOD, args=KEY, returns="i64")


NOT_MODULES = {
    "empty": (b"", "not a WebAssembly module"),
    "text as bytes": (b"(module)", "not a WebAssembly module"),
    "an ELF file": (b"\x7fELF" + bytes(60), "not a WebAssembly module but an ELF file"),
    "a header alone, cut": (GOOD[:7], "not a WebAssembly module"),
    "an older version": (b"\0asm\x02\0\0\0", "not a WebAssembly module"),
    "an empty component": (b"\0asm\x0d\0\1\0", "exports no functions"),
    "a component of another version": (b"\0asm\x0c\0\1\0", "a component of version 0xc"),
    "a damaged component": (b"\0asm\x0d\0\1\0\7\5\1", "it ends early"),
    "bytes after the end": (GOOD + b"\xff\xff", "section 255"),
    "an invalid body": (GOOD[:-3] + b"\x1a\x1a\x0b", "wasmtime can't compile it"),
    "a bytearray": (bytearray(b"nothing"), "not a WebAssembly module"),
    "a memoryview": (memoryview(b"nothing at all"), "not a WebAssembly module"),
}


@pytest.mark.parametrize("case", NOT_MODULES)
async def test_what_is_no_module_is_refused(case: str) -> None:
    """Bytes that are no module give InvalidModuleError, which says what they lack."""
    wasm, said = NOT_MODULES[case]
    async with quiet_cache() as cache:
        await refused(cache, InvalidModuleError, "f(i64)", said, wasm=wasm)


async def test_a_module_cut_anywhere_is_refused() -> None:
    """A module that ends too early is refused wherever it was cut."""
    whole = wat(
        '(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))) (memory 1)'
        " (table 2 funcref) (global i32 (i32.const 1)) (elem (i32.const 0) 1)"
        ' (func (export "f") (param i64) (result i64) local.get 0))'
    )
    async with quiet_cache() as cache:
        for end in range(len(whole)):
            with pytest.raises(WasmCacheError) as caught:
                await cache.register("f", whole[:end], args=KEY, returns="i64")
            # Where it ends between two sections, what is left may read well, but lacks the export.
            assert isinstance(caught.value, (InvalidModuleError, ExportError))
            assert "f(i64)" in str(caught.value)
        check_invariants(cache)
        await works(cache)


async def test_a_module_with_any_bit_flipped_is_refused_or_harmless() -> None:
    """A damaged module is refused with an error of ours, or registered, but nothing worse."""
    whole = exported(
        "(i64.load (i32.wrap_i64 (local.get 0)))",
        "(param i64) (result i64)",
        '(memory 1) (data (i32.const 8) "abcdefgh") (table 1 funcref) (elem (i32.const 0) 0)',
    )
    outcomes = set()
    async with quiet_cache(total_fuel=10_000) as cache:
        for at in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            try:
                function = await cache.register("f", bytes(damaged), args=KEY, returns="i64")
            except WasmCacheError as error:
                outcomes.add("refused" if "f(i64)" in str(error) else str(error))
                continue
            try:
                await function.call(8)
                outcomes.add("works")
            except WasmCacheError:
                outcomes.add("fails")
            cache.remove("f")
        assert outcomes == {"refused", "fails", "works"}
        check_invariants(cache)
        await works(cache)


async def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    """Bytes, text and files over their limits are refused before they are read to their end."""
    large = GOOD[:8] + section(1, b"\1\x60\0\0" + bytes(2000))
    padded = GOOD + section(0, name_bytes("padding") + bytes(8000))
    text = f'(module (func (export "f") (param i64) (result i64) local.get 0)) ;; {"x" * 2000}'
    wide = f'(module (func (export "{"🦀" * 500}")))'  # 600 characters, but over 2,000 bytes
    path = tmp_path / "udf.wasm"
    path.write_bytes(padded)
    async with quiet_cache(max_wasm_size=1000) as cache:
        for wasm, said in (
            (large, f"{len(large)} bytes without its custom sections, max_wasm_size is 1000"),
            (text, f"the text has {len(text)} characters, max_wasm_size is 1000"),
            (wide, "bytes without its custom sections, max_wasm_size is 1000"),
            (padded, f"{len(padded)} bytes with its custom sections, more than 8 times max_wasm"),
            (memoryview(padded), f"{len(padded)} bytes with its custom sections, more than 8"),
            (path, f"{len(padded)} bytes with its custom sections, more than 8 times"),
            (Path("/dev/zero"), "at least 8001 bytes with its custom sections, more than 8 times"),
        ):
            await refused(cache, ModuleTooLargeError, "f(i64)", said, wasm=wasm)
        fitting = GOOD + section(0, name_bytes("padding") + bytes(7000))
        await cache.register("f", fitting, args=KEY, returns="i64")


async def test_a_file_is_refused_by_its_size_before_it_is_read(tmp_path: Path) -> None:
    """The size of a file of 8 TB is in the message: no more than its size was asked for."""
    path = tmp_path / "udf.wasm"
    with path.open("wb") as file:
        file.truncate(8 * 1024**4)  # sparse
    async with quiet_cache(max_wasm_size=1000) as cache:
        await refused(cache, ModuleTooLargeError, f"{8 * 1024**4} bytes", wasm=path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(module (func (export", "1:16"),
        ("(module\n  (func $f (parm i64)))", "2:13"),
        ("(modul)", "not WebAssembly text"),
        ("; half a comment", "not WebAssembly text"),
        ("(module (func i32.const " + "9" * 100_000 + "))", "not WebAssembly text"),
        ("(" * 100_000, "not WebAssembly text"),
        ("(module (func " + "(block " * 100_000, "not WebAssembly text"),
        ('(module (func (export "\ud800")))', "not WebAssembly text"),
        ('(module (func (export "f\\1b[31m") (parm)))', "not WebAssembly text"),
    ],
    ids=lambda value: value[:20],
)
async def test_text_with_a_syntax_error_is_refused(text: str, said: str) -> None:
    """WAT with a syntax error is refused with the place, however long its line is."""
    async with quiet_cache() as cache:
        error = await refused(cache, InvalidModuleError, "f(i64)", said, wasm=text)
        assert len(str(error)) < 3000


async def test_a_path_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    """With the error of the system; a file of wrong text is a wrong module."""
    (tmp_path / "latin1.wat").write_bytes(b'(module (func (export "\xe9")))')
    (tmp_path / "broken.wat").write_text("(module (fun))")
    async with quiet_cache() as cache:
        cases: tuple[tuple[type[Exception], object, str], ...] = (
            (FileNotFoundError, tmp_path / "missing.wasm", "missing.wasm"),
            (IsADirectoryError, tmp_path, "Is a directory"),
            (OSError, Path("n" * 5000), "too long"),
            (ValueError, Path("a\0b"), "f(i64): PosixPath('a\\x00b') can't be the name of a file"),
            (InvalidModuleError, os.fsencode(tmp_path), "not a WebAssembly module"),
            (InvalidModuleError, tmp_path / "latin1.wat", "is no text"),
            (InvalidModuleError, tmp_path / "broken.wat", "not WebAssembly text"),
        )
        for kind, path, said in cases:
            error = await refused(cache, kind, said, wasm=path)
            if isinstance(error, OSError):
                assert error.__notes__ == ["while the module of f(i64) was being read"]
            else:
                assert len(str(error)) < 1000


async def test_a_str_is_never_a_path(tmp_path: Path) -> None:
    """A tenant's text can neither read a file nor find out whether there is one."""
    module = tmp_path / "f.wasm"
    module.write_bytes(GOOD)
    async with quiet_cache() as cache:
        for text in (str(module), str(tmp_path / "missing.wasm"), "", " \n", "\ufeff(module)"):
            error = await refused(cache, TypeError, "f(i64): a str must be", wasm=text)
            assert str(error) == (
                "f(i64): a str must be WebAssembly text, which begins with '(' or ';', got "
                f"{shown(text)}; to read a file, pass pathlib.Path(...)"
            )
        hostile = "\x1b[31m" * 1000
        error = await refused(cache, TypeError, "\\x1b[31m", wasm=hostile)
        assert str(error).isprintable()
        assert len(str(error)) < 300


async def test_what_is_neither_bytes_nor_text_nor_path_is_refused() -> None:
    """Anything else is a TypeError that says what can be given."""
    async with quiet_cache() as cache:
        for thing in (None, 7, ["x"], object(), [0] * 1_000_000):
            await refused(cache, TypeError, "f(i64): wasm must be bytes, ", wasm=thing)


FEATURES = {
    "gc: struct": "(type (struct (field i32)))",
    "gc: array": "(type (array i8))",
    "gc: rec": "(rec (type (func)) (type (func)))",
    "gc: anyref": "(func (param anyref))",
    "gc: eqref": "(func (param eqref))",
    "gc: i31ref": "(func (param i31ref))",
    "gc: nullref": "(func (result nullref) unreachable)",
    "gc: in a table": "(table 1 i31ref)",
    "gc: in a global": "(global anyref (ref.null any))",
    "gc: in an import": '(import "a" "b" (func (param structref)))',
    "gc: i31 in a constant": "(global i31ref (ref.i31 (i32.const 1)))",
    "function references": "(func (param (ref func)))",
    "function references: typed": "(type $t (func)) (func (param (ref null $t)))",
    "function references: null of a type": "(type $t (func)) (global (ref null $t) (ref.null $t))",
    "threads: shared memory": "(memory 1 1 shared)",
    "threads: imported shared memory": '(import "a" "b" (memory 1 2 shared))',
    "threads: atomics": "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))",
    "custom page sizes": "(memory 1 (pagesize 1))",
    "stack switching": "(type $f (func)) (type (cont $f))",
}


@pytest.mark.parametrize("feature", FEATURES)
async def test_a_feature_that_is_switched_off_is_refused(feature: str) -> None:
    """What uses a proposal that is switched off is refused, as bytes and as text."""
    source = f"""(module {FEATURES[feature]}
        (func (export "f") (param i64) (result i64) local.get 0))"""
    async with quiet_cache() as cache:
        for wasm in (wat(source), source):
            await refused(cache, InvalidModuleError, "f(i64)", wasm=wasm)


@pytest.mark.parametrize(
    "signature",
    ["(param i31ref)", "(param (ref null struct))", "(result (ref func))"],
)
async def test_an_export_of_types_that_abort_wasmtime_is_refused(signature: str) -> None:
    """Types that make wasmtime-py abort the process are refused by name, in this very process."""
    wasm = exported("unreachable", signature)
    async with quiet_cache() as cache:
        await refused(cache, InvalidModuleError, "f(i64)", "switched off here", wasm=wasm)


@pytest.mark.parametrize("signature", ["(param exnref)", "(result exnref)"])
async def test_an_export_with_exceptions_can_not_be_declared(signature: str) -> None:
    """Its values can't cross; asking wasmtime-py for the type would abort the process."""
    wasm = exported("unreachable", signature)
    async with quiet_cache() as cache:
        await refused(cache, SignatureError, "f(i64)", "exnref", wasm=wasm)


async def test_a_tag_can_not_be_given() -> None:
    """Only a module can make one."""
    source = (
        '(module (import "a" "b" (tag)) (func (export "f") (param i64) (result i64) local.get 0))'
    )
    async with quiet_cache() as cache:
        await refused(cache, LinkError, "a.b is a tag, which can't be given", wasm=wat(source))


async def test_a_missing_export_is_refused() -> None:
    """The message names the export that is missing and those that are there, cut to size."""
    several = "".join(f'(func (export "g{number}"))' for number in range(20))
    long = wat(f'(module (func (export "{"x" * 100_000}\\0a")))')
    async with quiet_cache() as cache:
        wasm = f"(module {several})"
        await refused(cache, ExportError, "f(i64)", "'f'", "'g0'", "...", wasm=wasm)
        await refused(cache, ExportError, "exports no 'nope'", "'f'", export="nope")
        await refused(cache, ExportError, "exports no ''", export="")
        await refused(cache, ExportError, "it exports no function", wasm="(module)")
        await refused(cache, ExportError, "exports no 'F'", export="F")
        await refused(cache, ExportError, "exports no", export="\ud800")
        error = await refused(cache, ExportError, "xxx...", wasm=long)
        assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        ('(memory (export "f") 1)', "memory"),
        ('(table (export "f") 1 funcref)', "table"),
        ('(global (export "f") i32 (i32.const 1))', "global"),
    ],
)
async def test_an_export_that_is_no_function_is_refused(definition: str, kind: str) -> None:
    """The message says what the export is instead."""
    said = f"'f' is a {kind}, not a function"
    async with quiet_cache() as cache:
        await refused(cache, ExportError, "f(i64)", said, wasm=f"(module {definition})")


async def test_an_export_with_a_name_of_ours_is_refused() -> None:
    """The names under which hidden memories are measured can't be taken by a module."""
    wasm = wat(
        '(module (memory 1) (func (export "f") (param i64) (result i64) local.get 0)'
        ' (func (export "\\00trio_wasmcache:memory:0")))'
    )
    async with quiet_cache() as cache:
        await refused(cache, InvalidModuleError, "f(i64)", "kept for ourselves", wasm=wasm)


@pytest.mark.parametrize(
    ("args", "returns", "said"),
    [
        (("i32",), "i64", "[i32] -> [i64], but the export 'f' is [i64] -> [i64]"),
        (("u32",), "i64", "[i32] -> [i64]"),
        (("f64",), "i64", "[f64] -> [i64]"),
        (("i64",), "i32", "[i64] -> [i32]"),
        (("i64",), "bool", "[i64] -> [i32]"),
        (("i64",), None, "[i64] -> []"),
        (("i64",), (), "[i64] -> []"),
        (("i64",), ("i64", "i64"), "[i64] -> [i64 i64]"),
        ((), "i64", "[] -> [i64]"),
        (("i64", "i64"), "i64", "[i64 i64] -> [i64]"),
        (("i64",) * 1000, "i64", "and 980 more"),
    ],
    ids=range(11),
)
async def test_declared_types_must_be_those_of_the_export(
    args: Any, returns: Any, said: str
) -> None:
    """Types or numbers of arguments or results that differ are refused, with both signatures."""
    async with quiet_cache() as cache:
        more = ", ... and 990 more" if len(args) > 10 else ""
        key = f"f({', '.join(args[:10])}{more}) is declared as"
        await refused(cache, SignatureError, key, said, args=args, returns=returns)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int", "did you mean i64 or i32?"),
        ("", "i64, u64"),
        ("i128", "i64, u64"),
        ("list<i64>", "abi='scylla'"),
        ("I 6 5", "i64, u64"),
        ("text", "abi='buffer'"),
    ],
)
async def test_unknown_types_are_refused(name: str, said: str) -> None:
    """With the name that was meant, or the list of those that are known."""
    async with quiet_cache() as cache:
        await refused(cache, SignatureError, "unknown type", said, args=(name,))
        await refused(cache, SignatureError, "f(i64)", "unknown type", returns=name)
    with pytest.raises(SignatureError, match="host function"):
        HostFunction(print, params=(name,))
    with pytest.raises(SignatureError, match="host function"):
        HostFunction(print, results=(name,))


async def test_a_type_name_that_would_spoil_a_log_is_refused() -> None:
    """Whatever the ABI knows: with control characters, no name is one."""
    async with quiet_cache() as cache:
        said = r"f: args: '\x1b[31m' can't be the name of a type"
        await refused(cache, SignatureError, said, args=("\x1b[31m",))
        await refused(cache, SignatureError, "f(i64): returns: ", returns=("i64", "a\x07"))


@pytest.mark.parametrize("name", ["v128", "funcref", "externref"])
async def test_types_that_can_not_cross_are_refused(name: str) -> None:
    """Vectors and references are good wasm, but no values for Python."""
    wasm = exported("unreachable", f"(param {name}) (result {name})")
    said = f"values of type '{name}' can't cross"
    async with quiet_cache() as cache:
        await refused(cache, SignatureError, said, wasm=wasm, args=(name,), returns=name)
        await refused(cache, SignatureError, said, wasm=wasm, returns=name)
        await refused(cache, SignatureError, f"[{name}]", wasm=wasm)


async def test_all_missing_imports_are_named_at_once() -> None:
    """One message lists every import that nobody gives, of every kind."""
    wasm = wat(
        f"""(module
        (import "env" "one" (func (param i32) (result f64)))
        (import "env" "two" (func))
        (import "env" "memory" (memory 1))
        (import "env" "table" (table 1 funcref))
        (import "env" "global" (global i32))
        (import "{WASI}" "fd_teleport" (func (param i32)))
        (import "{WASI}" "memory" (memory 1))
        (import "wasi_unstable" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (import "env" "given" (func (param i64) (result i64)))
        (import "env" "other" (func (param i64) (result i64)))
        (func (export "f") (param i64) (result i64) local.get 0))"""
    )
    given = {
        "given": HostFunction(abs, ("i64",), ("i64",)),
        "other": HostFunction(abs, params=("i32",)),
    }
    async with quiet_cache() as cache:
        error = await refused(
            cache,
            LinkError,
            "f(i64)",
            "env.one [i32] -> [f64] is missing",
            "env.two [] -> [] is missing",
            "env.memory is a memory",
            "env.table is a table",
            "env.global is a global",
            f"{WASI}.fd_teleport [i32] -> [] is missing",
            f"{WASI}.memory is a memory",
            "wasi_unstable.fd_write",
            "the module imports env.other as [i64] -> [i64], but its HostFunction says "
            '[i32] -> [i64] (results were left out, which means ("i64",)): '
            'give params=("i64",), results=("i64",)',
            'Give what is missing: imports={"env": {"one": HostFunction(function, params=("i32",), '
            'results=("f64",)), "memory": HostMemory(), "table": HostTable(), "global": '
            'HostGlobal("i32", 0)}}; or missing="trap"',
            wasm=wasm,
            imports={"env": given},
        )
        assert "env.given" not in str(error)


async def test_imports_of_long_or_odd_names_are_named_in_short() -> None:
    """A message stays readable however many, long or strange the imports are."""
    names = ["x" * 50_000, "\\1b[31m", *(f"n{number}" for number in range(200))]
    imports = "".join(f'(import "env" "{name}" (func))' for name in names)
    async with quiet_cache() as cache:
        error = await refused(cache, LinkError, "152 more", wasm=wat(f"(module {imports})"))
        assert str(error).isprintable()
        assert len(str(error)) < 4000


async def test_a_wasi_function_of_another_type_is_refused_at_register() -> None:
    """What wasmtime would not link is refused now, not when it is first acquired."""
    imported = f'(import "{WASI}" "fd_write" (func))'
    wasm = exported("local.get 0", "(param i64) (result i64)", imported)
    said = f"the module imports {WASI}.fd_write as [] -> [], but the WASI function"
    async with quiet_cache() as cache:
        await refused(cache, LinkError, "f(i64)", said, wasm=wasm)


def good_with(memories: list[Limits]) -> bytes:
    return encode_module(
        types=[FuncType(("i64",), ("i64",))],
        functions=[0],
        exports=[Export("f", "func", 0)],
        code=[b"\0\x20\0\x0b"],
        memories=memories,
    )


async def test_memories_that_start_over_the_limit_are_refused() -> None:
    """One large memory, 40 small ones, or the largest there is: the sum is what counts."""
    limit = f"memory_limit is {16 * WASM_PAGE}"
    async with quiet_cache(memory_limit=16 * WASM_PAGE) as cache:
        for sizes in ([17], [1] * 40, [16, 1], [65536]):
            said = f"{sum(sizes) * WASM_PAGE} bytes in {len(sizes)} memories"
            wasm = good_with([Limits(size) for size in sizes])
            await refused(cache, ModuleTooLargeError, "f(i64)", limit, said, wasm=wasm)
        await cache.register("f", good_with([Limits(16)]), args=KEY, returns="i64")
    async with quiet_cache(memory_limit=0) as cache:
        wasm = good_with([Limits(1)])
        await refused(cache, ModuleTooLargeError, "memory_limit is 0", wasm=wasm)


async def test_tables_that_start_over_the_limit_are_refused() -> None:
    """One large table, 40 small ones, or the largest there is: the sum is what counts."""
    async with quiet_cache(table_limit=100) as cache:
        for tables, size in (
            ("(table 101 funcref)", 101),
            ("(table 3 externref)" * 40, 120),
            ("(table 4294967295 funcref)", 4294967295),
        ):
            wasm = exported("local.get 0", "(param i64) (result i64)", tables)
            said = f"{size} elements"
            limit = "table_limit is 100"
            await refused(cache, ModuleTooLargeError, "f(i64)", said, limit, wasm=wasm)


GROW_ALL = """(module {definitions}
    (func $all (result i32) (local $sum i32) {grow} local.get $sum)
    (func (export "f") (param i64) (result i64) (i64.extend_i32_u (call $all))))"""


async def test_forty_memories_can_together_not_grow_over_the_limit() -> None:
    """40 memories within the limit work; grown as far as wasm can, they add up to no more."""
    grow = "".join(
        f"""(loop (br_if 0 (i32.ne (memory.grow {index} (i32.const 1)) (i32.const -1))))
            (local.set $sum (i32.add (local.get $sum) (memory.size {index})))"""
        for index in range(40)
    )
    mixed = "".join(f"(memory 1 {3 if n % 4 == 0 else 60000})" for n in range(40))
    for definitions, most in (("(memory 1)" * 40, 256), ("(memory 1 2)" * 40, 80), (mixed, 256)):
        wasm = wat(GROW_ALL.format(definitions=definitions, grow=grow))
        async with quiet_cache(memory_limit=256 * WASM_PAGE, max_instance_size=64 * MiB) as cache:
            function = await cache.register("f", wasm, args=KEY, returns="i64")
            async with function.acquire() as lease:
                assert lease.size == 41 * WASM_PAGE
                pages = await lease.call(0)
                # Nothing of the limit is lost but what does not divide by 40.
                assert most - 40 < pages <= most
                assert lease.size == (pages + 1) * WASM_PAGE
            check_invariants(cache)


async def test_one_memory_grows_to_the_limit_and_not_beyond() -> None:
    """A single memory may have all of the limit, to the page, and then growing gives -1."""
    grow = """(loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (local.set $sum (memory.size))"""
    wasm = wat(GROW_ALL.format(definitions="(memory 1)", grow=grow))
    async with quiet_cache(memory_limit=10 * WASM_PAGE + 5) as cache:
        function = await cache.register("f", wasm, args=KEY, returns="i64")
        assert await function.call(0) == 10


async def test_forty_tables_can_together_not_grow_over_the_limit() -> None:
    """The same for tables, which count by elements."""
    grow = "".join(
        f"""(loop (br_if 0
                (i32.ne (table.grow {index} (ref.null func) (i32.const 1)) (i32.const -1))))
            (local.set $sum (i32.add (local.get $sum) (table.size {index})))"""
        for index in range(40)
    )
    wasm = wat(GROW_ALL.format(definitions="(table 2 funcref)" * 40, grow=grow))
    async with quiet_cache(table_limit=400) as cache:
        function = await cache.register("f", wasm, args=KEY, returns="i64")
        async with function.acquire() as lease:
            assert lease.size == WASM_PAGE + 80 * 8
            assert await lease.call(0) == 400
            assert lease.size == WASM_PAGE + 400 * 8


STARTS = {
    "trapping": ("(func $start unreachable)", TrapError, "unreachable"),
    "endless": ("(func $start (loop br 0))", FuelExhaustedError, "fuel"),
    "recursive": ("(func $start call $start)", WasmCacheError, "stack"),
    "out of its memory": (
        '(memory 1) (data (i32.const 65530) "too long") (func $start)',
        TrapError,
        "out of bounds memory access",
    ),
    "out of its table": (
        "(table 1 funcref) (elem (i32.const 1) $start) (func $start)",
        TrapError,
        "out of bounds table access",
    ),
    "exiting": (
        (
            f'(import "{WASI}" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)'
            " (func $start (call $exit (i32.const 3)))"
        ),
        WasmCacheError,
        "proc_exit(3)",
    ),
}


@pytest.mark.parametrize("case", STARTS)
async def test_a_start_function_that_fails_is_a_load_error(case: str) -> None:
    """It is registered; each acquire fails with LoadError from the guest's error; others go on."""
    definitions, kind, said = STARTS[case]
    wasm = wat(
        f'(module {definitions} (start $start) (func (export "f") (param i64) (result i64)'
        " local.get 0))"
    )
    async with quiet_cache(total_fuel=300_000, yield_fuel=10_000) as cache:
        fine = await cache.register("fine", GOOD, args=KEY, returns="i64", export="f")
        bad = await cache.register("f", wasm, args=KEY, returns="i64")
        async with fine.acquire() as lease:
            for _ in range(3):
                with pytest.raises(LoadError, match="could not be instantiated") as caught:
                    await bad.call(1)
                assert "f(i64)" in str(caught.value)
                assert said in str(caught.value)
                assert isinstance(caught.value.__cause__, kind)
                check_invariants(cache)
            assert await lease.call(7) == 7
        assert cache.stats().running_instances == 0
        assert cache.stats().loaded_modules == 1
        await cache.register("f", GOOD, args=KEY, returns="i64", replace=True)
        assert await bad.call(8) == 8


async def test_a_name_is_registered_once() -> None:
    """A second registration is refused, whatever it brings; the first goes on serving."""
    async with quiet_cache() as cache:
        first = await cache.register("f", GOOD, args=KEY, returns="i64")
        for types in (KEY, (" I64 ",), ["i64"]):
            with pytest.raises(DuplicateFunctionError, match=r"f\(i64\) is registered already"):
                await cache.register("f", b"rubbish", args=types, returns="i64")
        assert cache.functions() == (first,)
        assert await first.call(3) == 3
        narrow = exported("local.get 0", "(param i32) (result i32)")
        overload = await cache.register("f", narrow, args=("i32",), returns="i32")
        assert cache.functions() == (first, overload)
        check_invariants(cache)


async def test_a_name_is_taken_while_it_compiles() -> None:
    """The name is reserved from the start: a second register is refused, also as a replacement."""
    async with quiet_cache() as cache:
        async with compiles_held(cache), trio.open_nursery() as first:
            first.start_soon(register_good, cache)
            await trio.testing.wait_all_tasks_blocked()
            assert cache.functions() == ()
            for replace in (False, True):
                with pytest.raises(DuplicateFunctionError, match="being registered already"):
                    await cache.register("f", GOOD, args=KEY, returns="i64", replace=replace)
            with pytest.raises(UnknownFunctionError):
                await cache.acquire("f", KEY).__aenter__()
            first.cancel_scope.cancel()
        assert not snapshot(cache).reserved
        await works(cache)


async def test_a_replacement_reserves_the_name_while_it_compiles() -> None:
    """While one replacement compiles, a second is refused, and the old generation serves."""
    other = exported("(i64.add (local.get 0) (i64.const 1))", "(param i64) (result i64)")

    async def replace(cache: InstanceCache) -> None:
        await cache.register("f", other, args=KEY, returns="i64", replace=True)

    async with quiet_cache() as cache:
        old = await cache.register("f", GOOD, args=KEY, returns="i64")
        async with trio.open_nursery() as nursery, compiles_held(cache):
            nursery.start_soon(replace, cache)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(DuplicateFunctionError, match="being registered already"):
                await replace(cache)
            assert await old.call(1) == 1
        assert await old.call(1) == 2
        check_invariants(cache)


async def test_of_two_that_register_at_once_one_is_refused() -> None:
    """Whichever comes first wins; the other is refused, and the function works."""
    refusals = []

    async def register(cache: InstanceCache) -> None:
        try:
            await register_good(cache)
        except DuplicateFunctionError as error:
            refusals.append(error)

    async with quiet_cache() as cache:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(register, cache)
            nursery.start_soon(register, cache)
        assert len(refusals) == 1
        (function,) = cache.functions()
        assert await function.call(5) == 5
        check_invariants(cache)


async def test_a_bad_replacement_leaves_the_old_function() -> None:
    """What would be refused as a new function is refused as a replacement; the old one serves."""
    async with quiet_cache() as cache:
        old = await cache.register("f", GOOD, args=KEY, returns="i64")
        for wasm, kind in (
            (b"rubbish", InvalidModuleError),
            ("(module)", ExportError),
            (exported("local.get 0", "(param i32) (result i32)"), SignatureError),
        ):
            with pytest.raises(kind):
                await cache.register("f", wasm, args=KEY, returns="i64", replace=True)
            assert cache.functions() == (old,)
            assert await old.call(6) == 6
            check_invariants(cache)


@pytest.mark.parametrize("order", [("typo", "right"), ("right", "typo")])
async def test_the_error_is_about_the_one_who_asked(order: tuple[str, str]) -> None:
    """Two who register the same bytes at once share the compile, but not each other's mistakes."""
    caught: dict[str, Exception] = {}

    async def register(cache: InstanceCache, name: str) -> None:
        export = "f" if name == "right" else "ff"
        try:
            await cache.register(name, GOOD, args=KEY, returns="i64", export=export)
        except WasmCacheError as error:
            caught[name] = error

    async with quiet_cache() as cache:
        async with trio.open_nursery() as nursery, compiles_held(cache):
            for name in order:
                nursery.start_soon(register, cache, name)
                await trio.testing.wait_all_tasks_blocked()
        assert list(caught) == ["typo"]
        assert "typo(i64)" in str(caught["typo"])
        (function,) = cache.functions()
        assert function.name == "right"
        assert await function.call(9) == 9
        check_invariants(cache)


async def test_each_who_registers_broken_bytes_gets_an_error_of_its_own() -> None:
    """A compile that fails for three tells each of them, by its own name."""
    broken = GOOD[:-3] + b"\x1a\x1a\x0b"
    caught: dict[str, Exception] = {}

    async def register(cache: InstanceCache, name: str) -> None:
        with pytest.raises(InvalidModuleError) as info:
            await cache.register(name, broken, args=KEY, returns="i64", export="f")
        caught[name] = info.value

    async with quiet_cache() as cache:
        async with trio.open_nursery() as nursery, compiles_held(cache):
            for name in "abc":
                nursery.start_soon(register, cache, name)
            await trio.testing.wait_all_tasks_blocked()
        assert len({id(error) for error in caught.values()}) == 3
        assert all(f"{name}(i64)" in str(error) for name, error in caught.items())
        assert cache.functions() == ()
        assert not cache._compiler._compiling
        await works(cache)


ABSURD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "name: none": ({"name": None}, TypeError, "must be a str"),
    "name: bytes": ({"name": b"f"}, TypeError, "must be a str"),
    "name: empty": ({"name": ""}, ValueError, "1 to 256"),
    "name: long": ({"name": "n" * 257}, ValueError, "1 to 256"),
    "name: control characters": ({"name": "f\n"}, ValueError, "printable"),
    "name: surrogate": ({"name": "\ud800"}, ValueError, "printable"),
    "args: a string": ({"args": "i64"}, TypeError, '("i64",)'),
    "args: none": ({"args": None}, TypeError, "sequence"),
    "args: a number": ({"args": 5}, TypeError, "sequence"),
    "args: numbers": ({"args": (5,)}, TypeError, "must be names of types"),
    "args: none inside": ({"args": (None,)}, TypeError, "must be names of types"),
    "returns: a number": ({"returns": 5}, TypeError, "sequence"),
    "returns: numbers": ({"returns": (5,)}, TypeError, "must be names of types"),
    "export: a number": ({"export": 5}, TypeError, "export must be a str"),
    "export: bytes": ({"export": b"f"}, TypeError, "export must be a str"),
    "abi: unknown": ({"abi": "rust"}, SignatureError, "'rust'"),
    "abi: a number": ({"abi": 5}, TypeError, "got 5"),
    "isolation: unknown": ({"isolation": "total"}, ValueError, "'total'"),
    "isolation: none": ({"isolation": None}, ValueError, "None"),
    "concurrency: zero": ({"concurrency": 0}, ValueError, "from 1 to max_instances"),
    "concurrency: negative": ({"concurrency": -1}, ValueError, "got -1"),
    "concurrency: absurd": ({"concurrency": 10**9}, ValueError, "got 1000000000"),
    "concurrency: a float": ({"concurrency": 1.5}, TypeError, "concurrency must be an int"),
    "concurrency: true": ({"concurrency": True}, TypeError, "concurrency must be an int"),
    "called_on_null: a string": ({"called_on_null": "no"}, TypeError, "called_on_null"),
    "imports: a list": ({"imports": []}, TypeError, "imports must be"),
    "imports: not nested": ({"imports": {"env": abs}}, TypeError, "imports['env']"),
    "imports: a function": ({"imports": {"env": {"f": abs}}}, TypeError, "HostFunction"),
    "imports: a number as module": ({"imports": {5: {}}}, TypeError, "must be a str, got 5"),
    "imports: a number as name": (
        {"imports": {"env": {5: HostFunction(abs, ("i64",), ("i64",))}}},
        TypeError,
        "must be a str, got 5",
    ),
}


@pytest.mark.parametrize("case", ABSURD)
async def test_absurd_parameters_are_refused(case: str) -> None:
    """Each bad parameter of register is refused in a sentence that says what it was."""
    parameters, kind, said = ABSURD[case]
    async with quiet_cache() as cache:
        error = await refused(cache, kind, said, **parameters)
        assert "name" in parameters or str(error).startswith(("f(i64): ", "f: "))


async def test_a_host_function_must_be_callable() -> None:
    """HostFunction of what can't be called is a TypeError at once."""
    for thing in (None, 5, "print"):
        with pytest.raises(TypeError, match="must be callable"):
            HostFunction(thing, ("i64",), ("i64",))  # type: ignore[arg-type]


CONFIGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_size": -1}, ValueError, "max_size must be at least 0, got -1"),
    ({"max_size": 1.5}, TypeError, "max_size must be an int, got 1.5"),
    ({"max_size": "1"}, TypeError, "max_size must be an int, got '1'"),
    ({"max_size": None}, TypeError, "max_size"),
    ({"max_size": True}, TypeError, "max_size"),
    ({"max_instance_size": -5}, ValueError, "max_instance_size"),
    ({"max_instances": 0}, ValueError, "max_instances must be at least 1"),
    ({"max_instances": 10**6}, ValueError, "max_instances must be at most 16384"),
    ({"max_code_size": 0}, ValueError, "max_code_size"),
    ({"idle_timeout": 0}, ValueError, "idle_timeout"),
    ({"idle_timeout": -1.0}, ValueError, "idle_timeout"),
    ({"idle_timeout": math.nan}, ValueError, "idle_timeout"),
    ({"memory_limit": -1}, ValueError, "memory_limit"),
    ({"table_limit": -1}, ValueError, "table_limit"),
    ({"max_wasm_size": 0}, ValueError, "max_wasm_size"),
    ({"total_fuel": 0}, ValueError, "total_fuel"),
    ({"total_fuel": 2**64}, ValueError, "total_fuel"),
    ({"yield_fuel": -1}, ValueError, "yield_fuel"),
    ({"offload_after": -1}, ValueError, "offload_after"),
    ({"max_threads": 0}, ValueError, "max_threads"),
    ({"stack_size": 1024}, ValueError, "stack_size must be at least 65536"),
    ({"stack_size": 1024**4}, ValueError, "stack_size must be at most"),
    ({"main_capacity": 0}, ValueError, "main_capacity"),
    ({"main_capacity": 1.5}, ValueError, "main_capacity"),
    ({"main_shares": 0}, ValueError, "main_shares"),
    ({"log_uses": "yes"}, TypeError, "log_uses"),
    ({"log_flush_timeout": math.inf}, ValueError, "log_flush_timeout must be finite"),
    ({"no_such_limit": 1}, TypeError, "no_such_limit"),
]


@pytest.mark.parametrize(("limits", "kind", "said"), CONFIGS, ids=str)
async def test_absurd_limits_are_refused(
    limits: dict[str, Any], kind: type[Exception], said: str
) -> None:
    """A bad limit is refused when the configuration is made, and by resize, changing nothing."""
    with pytest.raises(kind, match=said):
        CacheConfig(**limits)
    async with quiet_cache() as cache:
        before = cache.config
        with pytest.raises((TypeError, ValueError)):
            cache.resize(**limits)
        assert cache.config is before
        await works(cache)


def test_all_bad_limits_are_named_at_once() -> None:
    """One error lists every bad field."""
    with pytest.raises(TypeError) as caught:
        CacheConfig(max_size=-1, idle_timeout=None, total_fuel=0)  # type: ignore[arg-type]
    for field in ("max_size", "idle_timeout", "total_fuel"):
        assert field in str(caught.value)


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_limit": 10**30, "table_limit": 10**30},
        {"memory_limit": 2**63, "table_limit": 2**63},
        {"memory_limit": 2**64, "table_limit": 2**64},
        {"max_size": 10**30, "max_instance_size": 10**30, "max_code_size": 10**30},
        {"max_running_size": 10**30},
        {"total_fuel": 2**63 - 1, "yield_fuel": 2**63 - 1},
        {"yield_fuel": 1},
        {"stack_size": 64 * KiB},
        {"stack_size": 64 * KiB + 1},
        {"stack_size": 512 * KiB + 4097},
        {"max_wasm_size": 10**30},
    ],
    ids=str,
)
async def test_extreme_limits_that_are_allowed_work(limits: dict[str, int]) -> None:
    """What the configuration lets through, the engine takes: no number wraps around in C."""
    source = """(module (memory 1) (table 1 funcref)
        (func (export "f") (param i64) (result i64)
            (drop (memory.grow (i32.const 3)))
            (drop (table.grow (ref.null func) (i32.const 9)))
            (i64.extend_i32_s (i32.add (memory.size) (table.size)))))"""
    async with quiet_cache(**limits) as cache:
        function = await cache.register("f", source, args=KEY, returns="i64")
        assert await function.call(1) == 14
        check_invariants(cache)


async def test_a_cache_needs_a_config() -> None:
    """Anything but a CacheConfig is a TypeError."""
    with pytest.raises(TypeError, match="must be a CacheConfig"):
        await open_cache({"max_size": 5}).__aenter__()  # type: ignore[arg-type]


@pytest.mark.parametrize("compiler", ["optimizing", "tiered"])
@pytest.mark.parametrize("source", ["good", "no export", "unlinked", "damaged", "cut", "component"])
async def test_nothing_keeps_the_bytes(source: str, compiler: Any) -> None:
    """They go when the caller drops them, not when garbage is collected, which may be long after.

    A hostile application could have the process keep as many modules as it sends.
    """
    wasm = {
        "good": GOOD,
        "no export": wat("(module)"),
        "unlinked": wat('(module (import "a" "b" (func)) (func (export "f")))'),
        "damaged": GOOD[:-1] + b"\xff",
        "cut": GOOD[:-3],
        "component": b"\0asm\x0d\0\1\0\1",
    }[source]
    wasm = bytes(bytearray(wasm))  # nobody else has these
    async with quiet_cache(compiler=compiler) as cache:
        gc.disable()
        try:
            before = sys.getrefcount(wasm)
            try:
                await cache.register("f", wasm, args=KEY, returns="i64", export="f")
            except WasmCacheError:
                assert source != "good"
            else:
                assert source == "good"
            # Trio's thread, which waits for work by now, had them in its hands, too.
            await trio.to_thread.run_sync(int)
            assert sys.getrefcount(wasm) == before
        finally:
            gc.enable()
