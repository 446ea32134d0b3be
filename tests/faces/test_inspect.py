"""``python -m trio_wasmcache inspect``: what a file is, in words that are safe to print."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
from core.wasm.test_families import go_bytes
from engine.support import quiet_cache
from hostile.zoo import ZOO
from hypothesis import given, strategies as st

from trio_wasmcache import (
    CacheConfig,
    HostFunction,
    HostMemory,
    MiB,
    WasmCacheError,
)
from trio_wasmcache.__main__ import main
from trio_wasmcache._core.config import WASM_PAGE
from trio_wasmcache._core.wasm.admission import least_size
from trio_wasmcache._core.wasm.editor import encode_module
from trio_wasmcache._core.wasm.extism_kernel import KernelSettings, kernel
from trio_wasmcache._core.wasm.formats import is_component
from trio_wasmcache._core.wasm.reader import Export, FuncType, Import, Limits, read_module
from trio_wasmcache._inspect import MAX_LISTED, inspect, laid_out

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("tests/udfs/**/*.wasm"), *ROOT.glob("examples/udfs/*.wasm")])
MODULES = [path for path in FILES if not is_component(path.read_bytes())]
COMPONENTS = [path for path in FILES if path not in MODULES]
HEADINGS = ("made by: ", "kind: ", "exports: ", "imports: ", "memory: ", "debugging: ")


def described(path: Path) -> list[str]:
    lines = list(inspect(path))
    assert all(line.isprintable() for line in lines)
    return lines


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
async def test_the_line_to_begin_with_registers_the_module(path: Path) -> None:
    """For every real module that can be registered; for others, it says why not."""
    lines = described(path)
    assert lines[0].startswith(f"{path.name}: a core module of WebAssembly, ")
    for heading in (*HEADINGS, "isolation: ", "caching: "):
        assert any(line.startswith(heading) for line in lines), heading
    calls = [line.strip() for line in lines if "cache.register(" in line]
    if not calls:
        assert "emscripten" in path.stem
        assert lines[-1] == (
            "No export is a function of numbers of its own, so there is nothing to register."
        )
        return
    name, call = calls[0].split(" = await ")
    assert name.isidentifier()
    if "_scylla_abi" in "".join(lines):
        pytest.importorskip("cassandra")
    refused = [line for line in lines if line.startswith("`register` refuses it: ")]
    names: dict[str, Any] = {"Path": Path, "HostFunction": HostFunction, "unit_price": abs}
    names |= {"HostMemory": HostMemory, "note": abs, "lookup": abs, "add": abs}
    async with quiet_cache() as cache:
        try:
            function = await eval(call, {"cache": cache, **names})
        except WasmCacheError:
            registered = None
        else:
            registered = function.name
    # Which types a UDF of ScyllaDB has is in no module.
    assert registered == (None if refused else name) or 'args=("text",)' in call


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
async def test_the_line_to_begin_with_registers_a_function_of_a_component(path: Path) -> None:
    """If it can be registered; its functions are listed as Python sees them."""
    lines = described(path)
    assert lines[0].startswith(f"{path.name}: a component of WebAssembly, ")
    if any(line.startswith("`register` refuses it: ") for line in lines):
        return
    listing = "\n".join(lines[lines.index("") : lines.index("To begin with:")])
    ast.parse(listing)
    assert "def " in listing
    name, call = lines[-1].strip().split(" = await ")
    async with quiet_cache() as cache:
        function = await eval(call, {"cache": cache, "Path": Path, "get": abs})
    assert function.name == name
    assert f"# {function.wit}" in listing


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("udfs/toolchains/assemblyscript.wasm", "made by: AssemblyScript"),
        (
            "udfs/toolchains/assemblyscript.wasm",
            'Text, bytes and lists of numbers are passed as objects: see abi="assemblyscript".',
        ),
        (
            "udfs/assemblyscript/numbers.wasm",
            (
                "For text, bytes and lists of numbers, build with asc --exportRuntime: see "
                'abi="assemblyscript".'
            ),
        ),
        (
            "udfs/assemblyscript/stub.wasm",
            (
                "  by this library, as AssemblyScript's, which grants what `wasi` says: abort, "
                "console.log, console.error, trace, Date.now, seed"
            ),
        ),
        (
            "udfs/extism/zig.wasm",
            '  by abi="extism", which runs plugins of Extism: input_length, alloc',
        ),
        (
            "udfs/extism/zig.wasm",
            '    reverse = await cache.register("reverse", Path("'
            + str(ROOT / "tests" / "udfs" / "extism" / "zig.wasm")
            + '"), args=("bytes",), returns="bytes", abi="extism")',
        ),
        ("udfs/toolchains/clang-dwarf5.wasm", "made by: C or C++, by clang (clang 22.1.8)"),
        (
            "udfs/toolchains/clang-dwarf5.wasm",
            "debugging: errors of the guest name functions, files and lines",
        ),
        ("udfs/toolchains/emscripten-embind.wasm", "  `_embind_...` registers C++ classes with"),
        (
            "udfs/toolchains/emscripten-standalone.wasm",
            "kind: a library, initialised by `_initialize` before its first call",
        ),
        (
            "udfs/toolchains/emscripten-standalone.wasm",
            "  by this library, WASI preview 1, which grants what `wasi` says: ",
        ),
        ("udfs/buffer.wasm", "Or, if it takes text by address and length (or bytes, as "),
        ("udfs/title.wasm", "  func title [i64] -> [i64]"),
    ],
)
def test_what_is_known_of_a_module_is_said(path: str, said: str) -> None:
    """In one line each."""
    assert any(line.startswith(said) for line in described(ROOT / "tests" / path))


def written(path: Path, exports: list[Export], **parts: Any) -> Path:
    """Write a module of two functions: the first takes and returns nothing."""
    wasm = encode_module(
        types=[FuncType(), FuncType(("i32",), ("i32",))],
        functions=[0, 1],
        code=[b"\0\x0b", b"\0\x20\0\x0b"],
        exports=exports,
        **parts,
    )
    path.write_bytes(wasm)
    return path


def test_constructors_that_nobody_calls_are_told(tmp_path: Path) -> None:
    """Their objects would be zeros; where `_initialize` calls them, there is nothing to say."""
    path = tmp_path / "c.wasm"
    exports = [Export("__wasm_call_ctors", "func", 0), Export("f", "func", 1)]
    (kind,) = [line for line in described(written(path, exports)) if line.startswith("kind: ")]
    assert "nobody calls `__wasm_call_ctors`" in kind
    assert "-mexec-model=reactor" in kind
    exports.append(Export("_initialize", "func", 0))
    assert "__wasm_call_ctors`" not in "\n".join(described(written(path, exports)))


def test_a_function_that_says_something_is_the_one_to_begin_with(tmp_path: Path) -> None:
    """With Emscripten's minified names, the first export runs constructors."""
    path = tmp_path / "c.wasm"
    exports = [Export("c", "func", 0), Export("d", "func", 1)]
    assert described(written(path, exports))[-1].startswith("    d = await cache.register(")
    assert described(written(path, exports[:1]))[-1].startswith("    c = await cache.register(")


async def test_a_memory_that_grows_may_tell_its_host(tmp_path: Path) -> None:
    """Emscripten builds so, also without JavaScript: a trap would end each call that grows it."""
    path = tmp_path / "f.wat"
    path.write_text(
        """(module
        (import "env" "emscripten_notify_memory_growth" (func $tell (param i32)))
        (memory 1)
        (func (export "f") (param i32) (result i32)
          (memory.grow (local.get 0)) (call $tell (i32.const 0))))"""
    )
    lines = described(path)
    assert "JavaScript" not in "\n".join(lines)
    name, call = lines[-1].strip().split(" = await ")
    names = {
        "Path": Path,
        "HostFunction": HostFunction,
        "emscripten_notify_memory_growth": lambda memory: None,
    }
    async with quiet_cache() as cache:
        function = await eval(call, {"cache": cache, **names})
        assert name == function.name
        assert await function.call(2) == 1


def test_an_object_file_is_told_to_be_linked(tmp_path: Path) -> None:
    """It has functions and exports, as a module has."""
    path = tmp_path / "f.o"
    memory = Import("env", "__linear_memory", "memory", Limits(0))
    lines = described(written(path, [Export("f", "func", 1)], imports=[memory]))
    assert "kind: an object file, not linked yet" in lines
    assert "link it with wasm-ld" in "\n".join(lines)


def test_a_part_of_a_program_is_told_to_be_linked_otherwise(tmp_path: Path) -> None:
    """Its program would call its constructors; a grammar of tree-sitter is one."""
    path = tmp_path / "f.wasm"
    exports = [Export("__wasm_call_ctors", "func", 0), Export("f", "func", 1)]
    memory = Import("env", "memory", "memory", Limits(1))
    table = Import("GOT.func", "f", "func", FuncType())
    lines = described(written(path, exports, imports=[memory, table]))
    assert "kind: a part of a dynamically linked program" in lines
    assert "--import-memory" not in "\n".join(lines)


def test_stripped_names_of_functions_are_told(tmp_path: Path) -> None:
    """Sections of DWARF alone don't promise lines."""
    path = tmp_path / "f.wasm"
    debug = [(".debug_info", b""), (".debug_line", b"")]
    lines = described(written(path, [Export("f", "func", 1)], custom=debug))
    assert any(line.startswith("debugging: the names of functions were stripped") for line in lines)


def test_a_go_program_is_told_how_to_be_a_library(tmp_path: Path) -> None:
    """Only its `_start` can be registered, and that is the line."""
    path = tmp_path / "go.wasm"
    path.write_bytes(go_bytes("_start", "add"))
    text = "\n".join(described(path))
    assert "kind: a program" in text
    assert "go build -buildmode=c-shared" in text
    assert 'export="_start"' in text


def test_a_component_over_the_limit_is_described() -> None:
    """After the refusal: the limit can be raised, and then it is what one has."""
    path = ROOT / "examples" / "udfs" / "greet.component.wasm"
    lines = list(inspect(path, CacheConfig(max_wasm_size=1000)))
    (refused,) = [line for line in lines if line.startswith("`register` refuses it: ")]
    assert "max_wasm_size is 1000: raise it" in refused
    assert [line for line in lines if line != refused] == described(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_lines_are_laid_out_in_80_columns(path: Path) -> None:
    """Without a loss; Python stays Python."""
    for line in inspect(path):
        parts = laid_out(line)
        assert max(map(len, parts)) <= 80 or any(len(word) > 60 for word in line.split()), parts
        code = line.lstrip()
        if " = await " in line:
            found, wanted = (
                ast.dump(ast.parse(text)) for text in (textwrap.dedent("\n".join(parts)), code)
            )
            assert found == wanted
        elif code.startswith("def "):
            ast.parse("\n".join(parts))
        elif not code.startswith("#"):
            assert "".join("".join(parts).split()) == "".join(line.split())


@pytest.mark.parametrize(
    ("line", "laid"),
    [
        ("short", ["short"]),
        (
            '    f = await cache.register("a, (b\\"", imports={"m": {"n": g, "o": h}}, x=(1, 2))',
            [
                "    f = await cache.register(",
                '        "a, (b\\"",',
                '        imports={"m": {"n": g, "o": h}},',
                "        x=(1, 2),",
                "    )",
            ],
        ),
        (
            "def f(one: int, two: list[tuple[int, str]]) -> int: ...  # f: func(one: s32)",
            [
                "# f: func(one: s32)",
                "def f(",
                "    one: int,",
                "    two: list[tuple[int, str]],",
                ") -> int: ...",
            ],
        ),
        (
            "def f(one: dict[str, tuple[int, float, bytes]]) -> int: ...",
            [
                "def f(",
                "    one: dict[",
                "        str, tuple[int, float, bytes]",
                "    ],",
                ") -> int: ...",
            ],
        ),
        (
            '    f = await cache.register("漢字漢字漢字", Path("x"), args=())',
            [
                "    f = await cache.register(",
                '        "漢字漢字漢字", Path("x"),',
                "        args=(),",
                "    )",
            ],
        ),
        ("# 漢字漢字 漢字漢字 odd", ["# 漢字漢字 漢字漢字", "# odd"]),
        (
            "# e\u0301e\u0301e\u0301e\u0301 and others of a",
            ["# e\u0301e\u0301e\u0301e\u0301 and others of a"],
        ),
        ("  by: this, that and others of a kind", ["  by: this, that and", "    others of a kind"]),
        ("# a comment that is long", ["# a comment that is", "# long"]),
    ],
)
def test_how_lines_are_laid_out(line: str, laid: list[str]) -> None:
    """Broken behind commas that are in no brackets and in no text."""
    assert laid_out(line, 22 if "of a kind" in line or line[0] == "#" else 40) == laid


async def test_functions_of_text_get_a_line_of_their_own() -> None:
    """The line of numbers would give them addresses out of the air."""
    path = ROOT / "examples" / "cookbook" / "zig" / "slug.wasm"
    lines = described(path)
    at = lines.index('Or, if it takes text by address and length (or bytes, as "bytes"):')
    call = lines[at + 1].strip()
    assert call.endswith('args=("str", "u32"), returns="str", abi="buffer")')
    async with quiet_cache() as cache:
        slug = await eval(call.split(" = await ")[1], {"cache": cache, "Path": Path})
        async with slug.acquire() as lease:
            assert await lease.call("Hello World", 80) == "hello-world"


def test_a_program_keeps_no_instance(tmp_path: Path) -> None:
    """As each run has a new one; other functions of its module are kept."""
    path = tmp_path / "f.wat"
    path.write_text('(module (memory 1) (func (export "_start")))')
    (said,) = [line for line in described(path) if line.startswith("caching: ")]
    seat = "caching: of `_start`, a seat is kept: an instance is closed when its lease ends"
    assert said == seat
    path.write_text('(module (memory 1) (func (export "_start")) (func (export "f")))')
    (said,) = [line for line in described(path) if line.startswith("caching: ")]
    assert said.startswith(f"{seat}; of its other functions, kept: an instance takes at least ")


def test_text_is_read_as_a_module(tmp_path: Path) -> None:
    """With its limits, its state that can't be reset, and what is too large."""
    path = tmp_path / "f.wat"
    path.write_text(
        '(module (import "app" "m" (memory 1)) (memory 500) (data "x") (func (export "f")))'
    )
    lines = described(path)
    assert "  app.m (memory): yours to give by imports=, as HostMemory()" in lines
    assert any(
        line.startswith("caching: never kept: an instance takes at least 32") for line in lines
    )
    assert any('"reset" is not possible: its data segments' in line for line in lines)
    assert lines[-1].endswith('args=(), imports={"app": {"m": HostMemory()}})')


def test_an_extism_plugin_is_counted_with_the_memories_of_its_host() -> None:
    """As `register` counts an instance, which has them."""
    path = ROOT / "tests/udfs/extism/c.wasm"
    info = read_module(path.read_bytes())
    size = least_size(0, info, read_module(kernel(KernelSettings())))
    assert size > least_size(0, info) + 2 * WASM_PAGE - 1
    config = CacheConfig(max_instance_size=size - 1, max_size=100 * MiB)
    lines = list(inspect(path, config))
    assert any(f"an instance takes at least {size} bytes" in line for line in lines)
    assert '  Functions of `extism:host/user` are the application\'s: with abi="extism", ' in (
        "\n".join(lines)
    )


def test_the_memory_of_extisms_host_is_nobodys(tmp_path: Path) -> None:
    """It is not proposed to give one, which would not be that of Extism's functions."""
    path = tmp_path / "f.wat"
    path.write_text('(module (import "extism:host/env" "memory" (memory 1)) (func (export "f")))')
    lines = described(path)
    assert "  extism:host/env.memory (memory): nobody, as that can't be given" in lines
    assert "HostMemory()" not in "".join(lines)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "but nothing: there are no bytes"),
        (b"\x7fELF\2\1\1", "but an ELF file"),
        (b"\0asm\x0d\0\1\0\7\5\1", "section 7 has 5 bytes, and 1 of them are there, at offset 0x9"),
        (b"<html>\x1b[31m", "but unknown data that begins with 3c 68"),
        (b"version https://git-lfs.github.com/spec/v1", "but a Git LFS pointer"),
        (b"\0asm\1\0\0\0\1\5\0", "section 1 has 5 bytes, and 1 of them are there"),
        (b"(module \xff)", "is no text"),
        (b"(module (func (export \x22f\x22)", "not WebAssembly text"),
    ],
)
def test_what_is_no_module_ends_with_one_and_a_sentence(
    data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, and nothing on standard output."""
    path = tmp_path / "file\x1b[31m.wasm"
    path.write_bytes(data)
    assert main(["inspect", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.removesuffix("\n").isprintable()
    assert len(err) < 1000


@pytest.mark.parametrize("file", ["missing", ".", "a\0b", "n" * 5000, "/dev/zero"])
def test_what_can_not_be_read_ends_with_one_and_a_sentence(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, no file, no name of one, or a file without an end."""
    assert main(["inspect", str(tmp_path / file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.strip().isprintable()


def test_huge_and_odd_names_are_cut(tmp_path: Path) -> None:
    """Thousands of them make a few lines, without control characters."""
    kind = FuncType(("i32",), ("i32",))
    names = ["x" * 1_000_000, "\x1b[31m", "\u202egnp", *(f"n{number}" for number in range(5000))]
    path = tmp_path / "f.wasm"
    path.write_bytes(
        encode_module(
            types=[kind],
            imports=[Import("m\r\n" + name, name, "func", kind) for name in names],
            exports=[Export(name, "func", 0) for name in names],
        )
    )
    lines = described(path)
    assert len(lines) < 2 * MAX_LISTED + 20
    assert sum(map(len, lines)) < 20_000
    assert "  and 4,963 more" in lines


@pytest.mark.parametrize("guest", ZOO, ids=lambda guest: guest.name)
def test_hostile_modules_are_described_or_refused(guest: Any, tmp_path: Path) -> None:
    """All of the zoo: printable lines, or an error of ours."""
    path = tmp_path / "guest.wasm"
    path.write_bytes(guest.wasm())
    try:
        said = "".join(described(path))
    except WasmCacheError as error:
        said = str(error)
    assert len(said) < 40_000


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_described_or_refused(data: bytes, header: bool) -> None:
    """Never another exception."""
    path = Path(tempfile.gettempdir()) / f"inspect{os.getpid()}"
    path.write_bytes(b"\0asm\1\0\0\0" * header + data)
    try:
        described(path)
    except WasmCacheError:
        pass
    finally:
        path.unlink()


def test_a_terminal_may_lack_characters() -> None:
    """They are escaped; nothing but the core's libraries is needed."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('click', 'rich', 'polars')));"
        "from trio_wasmcache.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", "häßlich"],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 1
    assert done.stderr == b"'h\\xe4\\xdflich' can't be read: No such file or directory\n"
