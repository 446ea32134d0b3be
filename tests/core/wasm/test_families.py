"""Which toolchain made a module, and what its imports ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_wasmcache._core.errors import ExportError, LinkError
from trio_wasmcache._core.wasm.admission import WASI_MODULE, check_export, check_imports
from trio_wasmcache._core.wasm.editor import encode_module, name_bytes, vector
from trio_wasmcache._core.wasm.families import (
    FAMILIES,
    MAX_LOOKED_AT,
    families_of,
    go_command,
    toolchain_of,
)
from trio_wasmcache._core.wasm.reader import (
    MAX_PRODUCERS,
    Export,
    FuncType,
    Import,
    Limits,
    ModuleInfo,
    read_module,
    read_producers,
)

UDFS = Path(__file__).parents[2] / "udfs"
NONE = FuncType()
FOUR = FuncType(("i32",) * 4)


def importing(*names: tuple[str, str], type: FuncType = NONE) -> ModuleInfo:
    imports = [Import(module, name, "func", type) for module, name in names]
    return read_module(encode_module(types=[type], imports=imports))


def producers(*fields: tuple[str, dict[str, str]]) -> bytes:
    return vector(
        [
            name_bytes(field)
            + vector([name_bytes(name) + name_bytes(version) for name, version in tools.items()])
            for field, tools in fields
        ]
    )


GO = producers(("language", {"Go": "go1.27"}), ("processed-by", {"Go cmd/compile": "go1.27"}))


def go_bytes(*exports: str) -> bytes:
    return encode_module(
        types=[NONE],
        functions=[0],
        code=[b"\0\x0b"],
        exports=[Export(name, "func", 0) for name in exports],
        custom=[("producers", GO)],
    )


def go(*exports: str) -> ModuleInfo:
    return read_module(go_bytes(*exports))


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("wbg", "__wbg_log_1d3ae13c3d5e6b8e", "without wasm-bindgen"),
        ("./pkg_bg.js", "anything", "without wasm-bindgen"),
        ("__wbindgen_placeholder__", "__wbindgen_throw", "without wasm-bindgen"),
        ("gojs", "runtime.wasmExit", "GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared"),
        ("go", "syscall/js.valueGet", "GOOS=wasip1"),
        ("extism:host/env", "input_length", "Extism plugin"),
        ("extism:host/user", "lookup", '"str" or "bytes" in place of "i64"'),
        ("wasi:clocks/wall-clock@0.2.3", "now", "WASI 0.2"),
        ("demo:udf/kv@0.1.0", "get", "core module of a component"),
        ("wasi_unstable", "fd_write", "before preview 1"),
        ("wasix_32v1", "thread_spawn_v2", "Wasmer's extension"),
        ("wasi", "thread-spawn", "-pthread"),
        ("env", "_embind_register_void", "leave embind out"),
        ("env", "_emval_decref", "leave embind out"),
        ("env", "invoke_vii", "-fno-exceptions"),
        ("env", "__cxa_throw", "-fno-exceptions"),
        ("a", "b", "minified"),
        ("env", "emscripten_resize_heap", "-sSTANDALONE_WASM"),
        ("env", "emscripten_notify_memory_growth", "lambda memory: None"),
        ("env", "opa_abort", "Open Policy Agent"),
        ("env", "proxy_log", "by Proxy-Wasm"),
        ("wapc", "__guest_request", "guest of waPC"),
        ("javy_quickjs_provider_v3", "canonical_abi_realloc", "-C dynamic"),
    ],
)
def test_a_link_error_ends_with_what_to_build_instead(module: str, name: str, said: str) -> None:
    """One sentence for the family of the import, after the list of what is missing."""
    with pytest.raises(LinkError) as caught:
        check_imports(importing((module, name), (module, name)), "f(i64)", {})
    message = str(caught.value)
    assert message.count(said) == 1
    listed, remedy = message.split("imports={", 1)
    assert f"{module}.{name} [] -> [] is missing" in listed
    assert said in remedy
    assert message.endswith(".")


def test_imports_that_are_given_give_no_advice() -> None:
    """The advice is about what is missing, and an unknown import has none."""
    info = importing(("env", "invoke_vii"), ("env", "mine"))
    with pytest.raises(LinkError) as caught:
        check_imports(info, "f()", {("env", "invoke_vii"): NONE})
    assert "exceptions" not in str(caught.value)
    assert str(caught.value).endswith('missing="trap", if they are never called.')


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Import("env", "__linear_memory", "memory", Limits(1)), "link it with wasm-ld"),
        (Import("GOT.func", "f", "func", NONE), "dynamically linked"),
        (Import("env", "__memory_base", "func", NONE), "dynamically linked"),
    ],
)
def test_what_is_not_linked_is_told_that_only(other: Import, said: str) -> None:
    """And not to build without an imported memory, which it has for that reason."""
    memory = Import("env", "memory", "memory", Limits(1))
    (family,) = families_of([memory, other])
    assert said in family.advice
    assert "--import-memory" not in family.advice


def test_assemblyscripts_abort_is_known_by_its_type() -> None:
    """Another function called `abort` is not its."""
    (family,) = families_of(importing(("env", "abort"), type=FOUR).imports)
    assert family.name == "AssemblyScript"
    assert not families_of(importing(("env", "abort")).imports)


def test_assemblyscripts_standard_library_is_known_by_its_objects() -> None:
    """What is not provided of it is named, with the ABI for what is."""
    for name in ("console.time", "process.exit", "Math.log", "crypto.getRandomValuesN"):
        with pytest.raises(LinkError) as caught:
            check_imports(importing(("env", name)), "f()", {})
        assert 'abi="assemblyscript" (build with asc --exportRuntime)' in str(caught.value)
    assert not families_of(importing(("env", "console")).imports)


def test_an_imported_memory_must_be_given() -> None:
    """The message says how, and does not suggest traps, which are for functions."""
    memory = Import("env", "memory", "memory", Limits(1))
    info = read_module(encode_module(types=[], imports=[memory]))
    with pytest.raises(LinkError) as caught:
        check_imports(info, "f()", {}, trap_missing=True)
    assert 'Give what is missing: imports={"env": {"memory": HostMemory()}}.' in str(caught.value)
    assert "without --import-memory" in str(caught.value)
    with pytest.raises(LinkError) as caught:
        check_imports(info, "f()", {})
    assert "missing=" not in str(caught.value)


def test_each_family_is_named_once_however_many_imports_it_has() -> None:
    """And in the order of the table, whatever the order of the imports."""
    names = [("env", f"invoke_{'v' * n}") for n in range(1, 20)] + [("env", "_embind_x")]
    found = families_of(importing(*names).imports)
    assert [family.name for family in found] == [
        family.name for family in FAMILIES if family in found
    ]
    assert len(found) == 2


def test_not_all_of_a_million_imports_are_looked_at() -> None:
    """The work is bounded: those after the first thousand are not asked about."""
    many = [Import("m", "n", "func", NONE)] * MAX_LOOKED_AT
    late = Import("gojs", "x", "func", NONE)
    assert families_of([*many[1:], late])
    assert not families_of([*many, late])


def test_a_go_program_without_initialize_is_refused() -> None:
    """Its exports trap; `_start` itself may be called, and a shared module is fine."""
    command = go("_start", "add")
    assert go_command(command)
    with pytest.raises(ExportError, match="go build -buildmode=c-shared"):
        check_export(command, "add(i64)", "add")
    assert check_export(command, "main()", "_start") == NONE
    for info in (go("_initialize", "add"), go("_start", "_initialize", "add"), go("add")):
        assert not go_command(info)
        assert check_export(info, "add()", "add") == NONE


@pytest.mark.parametrize(
    ("file", "maker"),
    [
        ("toolchains/assemblyscript.wasm", "AssemblyScript"),
        ("toolchains/clang-dwarf5.wasm", "C or C++, by clang (clang 22.1.8)"),
        ("toolchains/emscripten-standalone.wasm", "Emscripten"),
        ("toolchains/emscripten-longjmp.wasm", "Emscripten"),
        ("toolchains/emscripten-minified.wasm", "Emscripten, with minified names"),
        ("toolchains/zig.wasm", None),
        ("title.wasm", "a toolchain for ScyllaDB's functions"),
        ("buffer.wasm", None),
        ("scylla_v2.wasm", "a toolchain for ScyllaDB's functions"),
    ],
)
def test_the_toolchain_is_known_by_exports(file: str, maker: str | None) -> None:
    """Modules that were stripped of everything else say what made them by their exports, or not."""
    assert toolchain_of(read_module((UDFS / file).read_bytes())) == maker


@pytest.mark.parametrize(
    ("file", "families"),
    [
        ("assemblyscript", ["AssemblyScript"]),
        (
            "emscripten-embind",
            [
                "Emscripten, with embind",
                "Emscripten, with exceptions or longjmp through JavaScript",
            ],
        ),
        ("emscripten-longjmp", ["Emscripten, with exceptions or longjmp through JavaScript"]),
        ("emscripten-minified", ["Emscripten, with minified names"]),
        ("emscripten-standalone", []),
        ("zig", []),
        ("clang-dwarf4", []),
    ],
)
def test_real_modules_belong_to_their_families(file: str, families: list[str]) -> None:
    """As their toolchains emit them; WASI itself is provided."""
    info = read_module((UDFS / "toolchains" / f"{file}.wasm").read_bytes())
    wanted = [item for item in info.imports if item.module != WASI_MODULE]
    assert [family.name for family in families_of(wanted)] == families
    if families:
        with pytest.raises(LinkError, match="build"):
            check_imports(info, "f()", {})


def test_the_toolchain_is_known_by_producers_first() -> None:
    """The section says it outright, with the version."""
    assert toolchain_of(go("malloc")) == "Go (Go cmd/compile go1.27)"


def test_damaged_producers_are_read_up_to_the_fault() -> None:
    """A fault there is not a fault of the module; a huge section is read in part."""
    assert read_producers(GO) == (
        ("language", "Go", "go1.27"),
        ("processed-by", "Go cmd/compile", "go1.27"),
    )
    for end in range(len(GO)):
        assert read_producers(GO[:end]) == read_producers(GO)[: len(read_producers(GO[:end]))]
    many = producers(("language", {f"n{number}": "x" * 100 for number in range(10_000)}))
    info = read_module(encode_module(types=[], custom=[("producers", many), ("producers", GO)]))
    assert 10 < len(info.producers) < MAX_PRODUCERS // 100
    assert not go_command(info)
