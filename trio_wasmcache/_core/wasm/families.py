"""Knows families of modules by what they import and export, and what to build instead.

A family is a toolchain, or a host that it builds for. `LinkError` ends with the advice of each
family that imports ask for; ``inspect`` says the same.

1. Names are a guest's: nothing is concluded from them but words of a message.
2. Everything is decided from declarations, in time linear in them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Final

from attrs import frozen

from .types import COMMAND as COMMAND, FuncType, Import, ModuleInfo

MAX_LOOKED_AT: Final = 1000
"""Number of imports that are looked at, at most: all of them together take some milliseconds."""
ASSEMBLYSCRIPT: Final = "AssemblyScript"


@frozen
class Family:
    """Modules of one toolchain, or for one host, known by what they import."""

    name: str
    """Name of the family, as in "built by ...", or "built for ..."."""
    advice: str
    """One sentence: what the imports are, and what to build instead."""
    matches: Callable[[Import], bool]
    """Function that returns whether an import belongs to the family."""
    kind: str = ""
    """What such a file is, if it is no module that can run by itself."""
    yours: bool = False
    """Whether a host function of the application can do what its imports are for."""


def _in_module(*modules: str) -> Callable[[Import], bool]:
    return lambda item: item.module in modules


def _begins(*prefixes: str) -> Callable[[Import], bool]:
    return lambda item: item.module.startswith(prefixes)


def _in_env(pattern: str) -> Callable[[Import], bool]:
    match = re.compile(pattern).fullmatch
    return lambda item: item.module == "env" and match(item.name) is not None


def _assemblyscript(item: Import) -> bool:
    if item.module != "env":
        return False
    if item.name == "abort":
        return item.type == FuncType(("i32",) * 4, ())
    return _STANDARD.fullmatch(item.name) is not None


# Functions of AssemblyScript's standard library: of its own, of browsers' and of Node's objects.
_STANDARD: Final = re.compile(r"(console|crypto|process|performance|Date|Math|document)\.\w+")


def _wbindgen(item: Import) -> bool:
    return (
        item.module in ("wbg", "__wbindgen_placeholder__", "__wbindgen_externref_xform__")
        or item.module.endswith("_bg.js")
        or item.name.startswith(("__wbg_", "__wbindgen_"))
    )


def _wasi_threads(item: Import) -> bool:
    return item.module == "wasi" and item.name == "thread-spawn"


def _component_import(item: Import) -> bool:
    return (
        item.module == "$root"
        or item.module.startswith("[export]")
        or (":" in item.module and "/" in item.module and not item.module.startswith("extism:"))
    )


def _minified(item: Import) -> bool:
    return item.module == "a" and len(item.name) <= 2


def is_extism_memory(item: Import) -> bool:
    """Return whether an import is a memory of Extism's host, which plugins use by its functions."""
    return item.kind == "memory" and item.module == "extism:host/env"


IMPORTED_MEMORY: Final = "a linker that was told to import the memory"

# An import belongs to the first family that matches it.
FAMILIES: Final = (
    Family(
        "wasm-bindgen, for a JavaScript host",
        "wasm-bindgen makes it for a JavaScript host: build the crate without wasm-bindgen, as a "
        'cdylib with exports that are `#[no_mangle] pub extern "C" fn`, for the target '
        "wasm32-unknown-unknown or wasm32-wasip1.",
        _wbindgen,
    ),
    Family(
        "Go, for a JavaScript host",
        "Go made it for a JavaScript host (GOOS=js): export functions with `//go:wasmexport` "
        "(Go 1.24 or later), and build with "
        "`GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared`.",
        lambda item: (
            item.module == "gojs"
            or (item.module == "go" and item.name.startswith(("runtime.", "syscall/", "debug")))
        ),
    ),
    Family(
        "Extism's plug-in kit",
        'It is an Extism plugin: abi="extism" gives it the functions of Extism\'s host.',
        lambda item: (
            item.module.startswith("extism:")
            and item.module != "extism:host/user"
            and not is_extism_memory(item)
        ),
        yours=True,
    ),
    Family(
        "Extism's plug-in kit, for functions of the application",
        'Functions of `extism:host/user` are the application\'s: with abi="extism", "str" or '
        '"bytes" in place of "i64" passes the contents of a block instead of its offset.',
        _in_module("extism:host/user"),
        yours=True,
    ),
    Family(
        "Extism's plug-in kit, for the memory of its host",
        "No plugin is given the memory of Extism's host: use a kit that reads and writes it by "
        "`load_u8` and `store_u8`.",
        is_extism_memory,
    ),
    Family(
        "WASI 0.2, as the core module of a component",
        "`wasi:...@0.2` is WASI 0.2, for components: build for WASI preview 1, such as with "
        "Rust's target wasm32-wasip1, or without WASI.",
        _begins("wasi:"),
    ),
    Family(
        "a component, as its core module",
        "It is the core module of a component that imports interfaces: build it without these "
        "imports, or give each as a host function of its core types.",
        _component_import,
    ),
    Family(
        "WASI before preview 1",
        "`wasi_unstable` is WASI before preview 1: build with a toolchain of 2020 or later, which "
        "imports `wasi_snapshot_preview1`.",
        _in_module("wasi_unstable"),
    ),
    Family(
        "WASIX",
        "WASIX is Wasmer's extension of WASI by threads and sockets: build for WASI preview 1, "
        "such as with wasi-sdk, or Rust's target wasm32-wasip1.",
        _begins("wasix_"),
    ),
    Family(
        "WASI threads",
        "`wasi.thread-spawn` starts threads, which a function has none of: build without "
        "-pthread, for wasm32-wasip1.",
        _wasi_threads,
    ),
    Family(
        "Emscripten, with embind",
        "`_embind_...` registers C++ classes with JavaScript: leave embind out, and export "
        'functions that are `extern "C"` and EMSCRIPTEN_KEEPALIVE.',
        _in_env(r"_embind_.*|_emval_.*"),
    ),
    Family(
        "Emscripten, with exceptions or longjmp through JavaScript",
        "`invoke_...` is how Emscripten catches C++ exceptions and longjmp, through JavaScript: "
        "build with -fno-exceptions and -sSUPPORT_LONGJMP=0.",
        _in_env(
            r"invoke_[a-z]*|__cxa_.*|_?emscripten_throw_longjmp|__resumeException"
            r"|(get|set)TempRet0|llvm_eh_typeid_for|getTempRet0|__throw_exception_with_stack_trace"
        ),
    ),
    Family(
        "Emscripten, with minified names",
        "The module `a` with names of a letter or two is Emscripten's, minified with its "
        "JavaScript: build with -sSTANDALONE_WASM --no-entry.",
        _minified,
    ),
    Family(
        "Emscripten, for a memory that grows",
        "`emscripten_notify_memory_growth` is told that the memory has grown, and need not do "
        'anything: give HostFunction(lambda memory: None, params=("i32",), results=()), as '
        'missing="trap" would trap.',
        _in_env("emscripten_notify_memory_growth"),
        yours=True,
    ),
    Family(
        "Emscripten, for its JavaScript",
        "Emscripten made it for its own JavaScript: build with -sSTANDALONE_WASM --no-entry.",
        _in_env(
            r"_?emscripten_.*|__syscall_.*|_abort_js|_tzset_js|_mmap_js|_munmap_js|__assert_fail"
        ),
    ),
    Family(
        ASSEMBLYSCRIPT,
        "It is AssemblyScript's: `abort`, `trace`, `seed`, `Date.now`, `performance.now` and the "
        "`console` of text are provided, other functions of its standard library are not; text, "
        'bytes and lists of numbers cross by abi="assemblyscript" (build with asc '
        "--exportRuntime).",
        _assemblyscript,
    ),
    Family(
        "Open Policy Agent",
        "It is a policy of Open Policy Agent: examples/abis/opa.py has its ABI. Give HostMemory(), "
        'and missing="trap" for `opa_abort` and the functions that are built into its host.',
        _in_env(r"opa_.*"),
    ),
    Family(
        "Proxy-Wasm",
        "`proxy_...` are functions of an HTTP proxy, by Proxy-Wasm: build the function without "
        "Proxy-Wasm's SDK.",
        _in_env(r"proxy_.*"),
    ),
    Family(
        "waPC",
        "It is a guest of waPC: build the function without waPC, with exports of its own.",
        _in_module("wapc"),
    ),
    Family(
        "Javy, without its engine",
        "Javy left its JavaScript engine out: build without `-C dynamic`.",
        _begins("javy_quickjs_provider", "javy-default-plugin"),
    ),
    Family(
        "a compiler, as an object file",
        "It is an object file, not linked yet: link it with wasm-ld (`clang` without -c).",
        _in_env(r"__linear_memory"),
        kind="an object file, not linked yet",
    ),
    Family(
        "a linker, for dynamic linking",
        "It is a part of a dynamically linked program, whose parts share a memory and a table: "
        "link it as a module of its own (Emscripten: without -sSIDE_MODULE and -sMAIN_MODULE; "
        "clang: without -shared and -pie).",
        lambda item: (
            item.module in ("GOT.mem", "GOT.func")
            or (item.module == "env" and item.name in ("__memory_base", "__table_base"))
        ),
        kind="a part of a dynamically linked program",
    ),
    Family(
        IMPORTED_MEMORY,
        "A module has a memory of its own if it is built without --import-memory (AssemblyScript: "
        "--importMemory); otherwise, give HostMemory().",
        lambda item: item.kind == "memory",
        yours=True,
    ),
)


_NUMBERS: Final = {family.name: number for number, family in enumerate(FAMILIES)}
_EMSCRIPTEN: Final = _NUMBERS["Emscripten, for its JavaScript"]
_IMPORTED_MEMORY: Final = _NUMBERS[IMPORTED_MEMORY]
# Families that import a memory, and of which there is more to say.
_UNLINKED: Final = {
    _NUMBERS["a compiler, as an object file"],
    _NUMBERS["a linker, for dynamic linking"],
    _NUMBERS["Open Policy Agent"],
}


def families_of(imports: Iterable[Import]) -> tuple[Family, ...]:
    """Return the families that imports belong to, in the order of `FAMILIES`.

    Of thousands of imports, the first ones tell as much.
    """
    found: set[int] = set()
    for item in itertools.islice(imports, MAX_LOOKED_AT):
        belongs = (number for number, family in enumerate(FAMILIES) if family.matches(item))
        found.update(itertools.islice(belongs, 1))
    if any(FAMILIES[number].name.startswith("Emscripten, with") for number in found):
        found.discard(_EMSCRIPTEN)  # the others say more
    if not _UNLINKED.isdisjoint(found):
        found.discard(_IMPORTED_MEMORY)  # the same
    return tuple(FAMILIES[number] for number in sorted(found))


# Names in a producers section, and what they tell; the first that is there counts.
_PRODUCERS: Final = (
    ("wasm-bindgen", "Rust with wasm-bindgen"),
    ("componentize-py", "componentize-py"),
    ("componentize-js", "componentize-js"),
    ("TinyGo", "TinyGo"),
    ("Javy", "Javy"),
    ("Emscripten", "Emscripten"),
    ("rustc", "Rust"),
    ("Go cmd/compile", "Go"),
    ("Zig", "Zig"),
    ("swift", "Swift"),
    ("Kotlin", "Kotlin"),
    ("Dart", "Dart"),
    ("clang", "C or C++, by clang"),
)
# Exports of which one is enough, and who makes them.
_EXPORTS: Final = (
    (("interface_version_8", "interface_version_7"), "CosmWasm"),
    (("opa_eval", "opa_eval_ctx_new"), "Open Policy Agent"),
    (("__rtti_base", "__pin", "__new"), ASSEMBLYSCRIPT),
    (("emscripten_stack_get_current", "emscripten_stack_init", "stackSave"), "Emscripten"),
    (("_emscripten_stack_restore", "__get_exception_message"), "Emscripten"),
    (("cabi_realloc",), "a component's toolchain"),
    (("_scylla_abi",), "a toolchain for ScyllaDB's functions"),
    (("__heap_base", "__data_end", "__wasm_call_ctors"), "LLVM's linker"),
)
INITIALIZE: Final = "_initialize"
CONSTRUCTORS: Final = "__wasm_call_ctors"


def toolchain_of(info: ModuleInfo) -> str | None:
    """Return what made a module, or None if nothing in it tells."""
    names = [f"{name} {version}" for field, name, version in info.producers if field != "sdk"]
    names += [f"{name} {version}" for field, name, version in info.producers if field == "sdk"]
    lowered = [name.lower() for name in names]
    for word, maker in _PRODUCERS:
        for number, name in enumerate(lowered):
            if word.lower() in name:
                return f"{maker} ({names[number].strip()})"
    for exports, maker in _EXPORTS:
        if any(info.export(name) is not None for name in exports):
            return maker
    makers = families_of(info.imports)
    return makers[0].name if makers else None


def is_function(info: ModuleInfo, name: str) -> bool:
    """Return whether the module exports a function of that name."""
    found = info.export(name)
    return found is not None and found.kind == "func"


def go_command(info: ModuleInfo) -> bool:
    """Return whether it is a program of Go, whose other exports work only while it runs."""
    return (
        is_function(info, COMMAND)
        and not is_function(info, INITIALIZE)
        and any(
            (field == "language" and name == "Go") or name == "Go cmd/compile"
            for field, name, _ in info.producers
        )
    )


GO_COMMAND: Final = (
    "the module is a program of Go, whose exports trap unless its main function is running: build "
    "it with `go build -buildmode=c-shared`, which makes `_initialize`"
)


def advice(imports: Iterable[Import]) -> str:
    """Return a sentence for each family that imports belong to, each after a space."""
    return "".join(f" {family.advice}" for family in families_of(imports))
