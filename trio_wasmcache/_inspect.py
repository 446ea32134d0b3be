"""Say what a file is for ``python -m trio_wasmcache inspect``: what it needs, and how to begin.

Its sections are read, as `register` reads them; nothing is compiled or run. All names in it are a
stranger's: they are cut, and shown without control characters.
"""

from __future__ import annotations

import itertools
import keyword
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ._abi import exports_of
from ._abi.allocator import CABI, OTHERS, WBINDGEN
from ._abi.assemblyscript import exports_runtime
from ._abi.extism import ENV, ExtismAbi
from ._abi.marks import SCYLLA_VERSION
from ._core.config import WASM_PAGE, CacheConfig, KiB, MiB
from ._core.errors import InvalidModuleError, WasmCacheError
from ._core.text import cut, printable, written
from ._core.wasm.admission import (
    MAX_SHOWN,
    WASI_MODULE,
    WASI_TYPES,
    check_counts,
    check_limits,
    giver,
    heap_size,
    import_name,
    is_yours,
    least_size,
    signature,
)
from ._core.wasm.component.reader import read_component
from ._core.wasm.component.types import ImportedFunction
from ._core.wasm.custom import DEBUG, find_custom_sections
from ._core.wasm.extism_kernel import KernelSettings, kernel
from ._core.wasm.families import (
    ASSEMBLYSCRIPT,
    COMMAND,
    CONSTRUCTORS,
    GO_COMMAND,
    INITIALIZE,
    families_of,
    go_command,
    is_function,
    toolchain_of,
)
from ._core.wasm.formats import is_component
from ._core.wasm.isolation import cache_verdict, obstacle
from ._core.wasm.reader import (
    ExcessiveModuleError,
    Export,
    FuncType,
    Import,
    Limits,
    MalformedModuleError,
    ModuleInfo,
    read_module,
)
from ._core.wit.stubs import list_functions
from ._core.wit.types import Function
from ._engine.wasmtime.text import to_wasm
from ._pool.components import Offered, take_apart
from ._pool.registration import check_core, check_text, read_file
from ._runtime.assemblyscript import functions_for
from ._runtime.session import NOTHING
from ._runtime.wasi2 import find_function

# Width of what is printed, as of all commands.
COLUMNS = 80
# Exports and imports that are listed, at most; the rest is counted.
MAX_LISTED = 40
# Characters of a line about a component's function, and of why it can't be registered.
MAX_LINE, MAX_REASON = 500, 300
# Imports that the call of `register` shows, at most, and numbers in the type of one.
MAX_GIVEN = 8
# Exports that toolchains add, which are nobody's function.
_HELPERS = re.compile(
    r"_(?!start$).*|malloc|free|calloc|realloc|alloc|allocate|dealloc|deallocate|cabi_.*"
    r"|canonical_abi_.*|emscripten_.*|stack(Save|Restore|Alloc)|setThrew|asyncify_.*|dynCall_.*"
    r"|getTempRet0|setTempRet0|opa_(?!eval$).*|builtins|entrypoints|resume|getsp|memory|interface_version_.*|.*#_initialize|cabi_post_.*"
)
# Those of the buffer ABI, and the name that wasm-bindgen gives its own in releases.
_ALLOCATORS = (WBINDGEN[0], CABI, *(alloc for alloc, _ in OTHERS), "__wbindgen_export_0")


def inspect(path: Path, config: CacheConfig | None = None) -> Iterator[str]:
    """Yield the lines that describe a file.

    Args:
        path: the file, a module in its binary form or as text.
        config: the limits to compare with; None: the defaults.

    Raises:
        WasmCacheError: it is no module that `register` could take; says what it is.
        OSError: it can't be read.
        ValueError: the path can't be the name of a file.
    """
    config = config or CacheConfig()
    name = printable(path.name, MAX_SHOWN)
    wasm = _read(name, path, config.max_wasm_size)
    if is_component(wasm):
        yield from _component(name, path, wasm, config)
        return
    try:
        info = read_module(wasm)
    except (MalformedModuleError, ExcessiveModuleError) as error:
        raise InvalidModuleError(f"{name}: {error}") from None
    yield f"{name}: a core module of WebAssembly, {len(wasm):,} bytes"
    yield f"made by: {_shown(toolchain_of(info) or 'not known')}"
    yield f"kind: {_kind(info)}"
    yield from _exports(info)
    yield from _imports(info)
    yield from _memory(info, config)
    yield f"debugging: {_debugging(wasm)}"
    yield f"isolation: {_isolation(info)}"
    yield from _caching(info, config)
    yield ""
    yield from _registration(info, path)


def laid_out(line: str, width: int = COLUMNS) -> list[str]:
    """Return a line of `inspect` as lines of at most this width, if it has places to break it.

    Lines of Python stay Python: a call is broken behind commas.
    """
    if _columns(line) <= width:
        return [line]
    code, mark, comment = line.partition("  # ")
    if mark and code.lstrip().startswith("def "):
        return [*laid_out(f"# {comment}", width), *laid_out(code, width)]
    indent = line[: len(line) - len(line.lstrip())]
    if "(" in line and (" = await " in line or line.startswith("def ")):
        return _broken(line, indent, width)
    more = "# " if line.startswith("#") else f"{indent}  "
    first, *words = line[len(indent) :].split(" ")
    found, filled = [], indent + first
    for word in words:
        if _columns(filled) + 1 + _columns(word) <= width:
            filled += f" {word}"
        else:
            found.append(filled)
            filled = more + word
    return [*found, filled]


def _columns(text: str) -> int:
    """Return the number of columns that a terminal needs: two for a wide character."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _broken(line: str, indent: str, width: int) -> list[str]:
    """Return a call or a definition on several lines, with as many of its parts on each as fit."""
    parts: list[str] = []
    depth, quote, opened, begin, end = 0, "", 0, 0, 0
    escaped = False
    for at, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote and not escaped else quote
            escaped = letter == "\\" and not escaped
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
            if depth == 1:
                opened = begin = at + 1
        elif letter in ")]}":
            depth -= 1
            if not depth:
                end = at
                break
        elif letter == "," and depth == 1:
            parts.append(line[begin : at + 1].strip())
            begin = at + 1
    if not end:
        return [line]
    if last := line[begin:end].strip():
        # Behind the last index of a type, a comma would make it another type.
        parts.append(last if line[opened - 1] == "[" else f"{last},")
    inner = f"{indent}    "
    found, filled = [line[:opened]], inner
    for part in parts:
        space = " " * (filled != inner)
        if _columns(filled) + len(space) + _columns(part) <= width:
            filled += space + part
            continue
        if filled != inner:
            found.append(filled)
        filled = inner + part
        if _columns(filled) > width:
            found += _broken(filled, inner, width)
            filled = inner
    return [*found, *([filled] if filled != inner else []), f"{indent}{line[end:]}"]


def _read(name: str, path: Path, limit: int) -> bytes:
    data = read_file(name, path, limit)
    if data.lstrip()[:1] in (b"(", b";"):
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise InvalidModuleError(f"{name} is no text: {error}") from None
        check_text(name, text, limit)
        try:
            data = to_wasm(text)
        except InvalidModuleError as error:
            raise InvalidModuleError(f"{name}: {error}") from None
    return check_core(name, data, limit)


def _component(name: str, path: Path, wasm: bytes, config: CacheConfig) -> Iterator[str]:
    """Yield the lines that describe a component."""
    try:
        component = read_component(wasm)
    except (MalformedModuleError, ExcessiveModuleError) as error:
        raise InvalidModuleError(f"{name}: {error}") from None
    yield f"{name}: a component of WebAssembly, {len(wasm):,} bytes"
    made = " ".join(f"{tool} {version}".strip() for _, tool, version in component.producers)
    yield f"made by: {_shown(made or 'not known')}"
    instances = _count(len(component.instances), "time")
    yield f"core modules: {len(component.modules)}, instantiated {instances}"
    yours: dict[str, list[ImportedFunction]] = {}
    ours: dict[str, None] = {}
    for imported in component.imports:
        if find_function(imported.interface, imported.name) is None:
            yours.setdefault(imported.interface, []).append(imported)
        else:
            ours[imported.interface] = None
    yield f"imports: {len(yours) + len(ours) or 'none'}"
    for interface in list(yours)[:MAX_LISTED]:
        yield f"  {_shown(interface) or 'functions of its world'}: yours to give by imports="
    if ours:
        names = ", ".join(map(_shown, list(ours)[:MAX_LISTED]))
        yield f"  by this library, WASI 0.2, which grants what `wasi` says: {names}"
    try:
        _, taken = take_apart(name, wasm, config.max_wasm_size, lambda: None)
    except WasmCacheError as error:
        yield f"`register` refuses it: {error}"
        try:  # as it would be with a max_wasm_size that suffices
            _, taken = take_apart(name, wasm, max(len(wasm), config.max_wasm_size), lambda: None)
        except WasmCacheError:
            return
    yield f"exports: {_count(len(taken.functions) + len(taken.refused), 'function')}"
    for number, (export, reason) in enumerate(taken.refused.items()):
        if number == MAX_LISTED:
            yield f"  and {len(taken.refused) - MAX_LISTED:,} more that can't be registered"
            break
        yield f"  {_shown(export)} can't be registered: it {printable(reason, MAX_REASON)}"
    for interface, wanted in list(yours.items())[:MAX_LISTED]:
        typed = [(one.name, one.type) for one in wanted if isinstance(one.type, Function)]
        yield ""
        yield f"# Functions that it imports from {_shown(interface) or 'its world'}:"
        for line in list_functions(typed[:MAX_LISTED]):
            yield printable(line, MAX_LINE)
    functions = list(taken.functions.values())
    interfaces: dict[str, list[Offered]] = {}
    for one in functions[:MAX_LISTED]:
        interfaces.setdefault(one.export.rpartition("#")[0], []).append(one)
    for interface, offered in interfaces.items():
        where = f"of {_shown(interface)}" if interface else "of the component itself"
        yield ""
        yield f"# Functions {where}, as Python sees them:"
        for line in list_functions([(one.name, one.type) for one in offered]):
            yield printable(line, MAX_LINE)
    if len(functions) > MAX_LISTED:
        yield f"# and {len(functions) - MAX_LISTED:,} more"
    if not functions:
        return
    yield ""
    yield "To begin with:"
    # Toolchains add interfaces of their own, such as the `init` of Python's.
    first = next((one for one in functions if "#" not in one.export), functions[0])
    made = _identifier(first.name)
    arguments = [written(made), f"Path({written(str(path))})"]
    if first.name != made or sum(one.name == first.name for one in functions) > 1:
        arguments.append(f"export={written(cut(first.export, MAX_SHOWN))}")
    given: list[str] = []
    if yours and sum(map(len, yours.values())) <= MAX_GIVEN:
        given = [
            f"{written(interface)}: {{"
            + ", ".join(f"{written(one.name)}: {_identifier(one.name)}" for one in wanted)
            + "}"
            for interface, wanted in yours.items()
        ]
    if given and len(", ".join(given)) <= MAX_LINE:
        arguments.append(f"imports={{{', '.join(given)}}}")
    elif yours:
        arguments.append('missing="trap"')
    yield f"    {made} = await cache.register({', '.join(arguments)})"


def _shown(text: str) -> str:
    return printable(text, MAX_SHOWN)


def _count(number: int, one: str) -> str:
    return f"{number:,} {one}{'s' * (number != 1)}"


def _size(size: int) -> str:
    """Return bytes in the unit that suits them."""
    if size < MiB:
        return f"{size / KiB:.4g} KiB"
    return f"{size / MiB:.4g} MiB"


def _kind(info: ModuleInfo) -> str:
    kinds = [family.kind for family in families_of(info.imports) if family.kind]
    if kinds:
        return kinds[0]
    if is_function(info, INITIALIZE):
        return "a library, initialised by `_initialize` before its first call"
    if is_function(info, COMMAND):
        return "a program: its export `_start` runs it from its beginning to its end"
    if is_function(info, CONSTRUCTORS):
        return (
            f"a library; nobody calls `{CONSTRUCTORS}`, so its global objects are not constructed: "
            "let `_initialize` call it (Emscripten: -sSTANDALONE_WASM --no-entry; "
            "clang for WASI: -mexec-model=reactor)"
        )
    return "a library" + (", with a start function" if info.start is not None else "")


def _exports(info: ModuleInfo) -> Iterator[str]:
    yield f"exports: {len(info.exports) or 'none'}"
    # Functions that are somebody's first.
    exports = sorted(info.exports, key=lambda export: (export.kind != "func", _is_helper(export)))
    for export in exports[:MAX_LISTED]:
        described = f"{export.kind} {_shown(export.name)}"
        if export.kind == "func":
            described += f" {signature(info.functions[export.index])}"
        elif export.kind == "memory":
            described += f": {_pages(info.memories[export.index])}"
        elif export.kind == "global":
            described += f": {info.globals[export.index].value_type}"
        yield f"  {described}"
    if len(exports) > MAX_LISTED:
        yield f"  and {len(exports) - MAX_LISTED:,} more"


def _is_helper(export: Export) -> bool:
    return _HELPERS.fullmatch(export.name) is not None


def _imports(info: ModuleInfo) -> Iterator[str]:
    yield f"imports: {len(info.imports) or 'none'}"
    missing = _missing(info)
    for item in missing[:MAX_LISTED]:
        described = signature(item.type) if isinstance(item.type, FuncType) else f"({item.kind})"
        yield f"  {import_name(item.module, item.name)} {described}: {_provider(item)}"
    if len(missing) > MAX_LISTED:
        yield f"  and {len(missing) - MAX_LISTED:,} more that the library does not provide"
    if provided := [item.name for item in info.imports if item.module == WASI_MODULE]:
        names = ", ".join(name for name in dict.fromkeys(provided) if name in WASI_TYPES)
        yield f"  by this library, WASI preview 1, which grants what `wasi` says: {names or 'none'}"
    if standard := functions_for(info, NOTHING):
        names = ", ".join(name for _, name in standard)
        yield f"  by this library, as AssemblyScript's, which grants what `wasi` says: {names}"
    if _is_plugin(info):
        names = ", ".join(item.name for item in info.imports if item not in missing)
        yield f'  by abi="extism", which runs plugins of Extism: {names}'
    for family in families_of(missing):
        yield f"  {family.advice}"


def _missing(info: ModuleInfo) -> list[Import]:
    standard = functions_for(info, NOTHING)
    extism = ExtismAbi().supplies if _is_plugin(info) else {}
    return [
        item
        for item in info.imports
        if (item.module != WASI_MODULE or WASI_TYPES.get(item.name) != item.type)
        and ((item.module, item.name) not in standard)
        and extism.get((item.module, item.name)) != item.type
    ]


def _is_plugin(info: ModuleInfo) -> bool:
    """Return whether it is a plugin of Extism."""
    return any(item.module == ENV for item in info.imports)


def _provider(item: Import) -> str:
    if not isinstance(item.type, FuncType):
        if not is_yours(item):
            return "nobody, as that can't be given"
        return f"yours to give by imports=, as {giver(item)}"
    if item.module == WASI_MODULE and item.name in WASI_TYPES:
        if WASI_TYPES[item.name] == item.type:
            return "by this library"
        return f"nobody, as WASI's is {signature(WASI_TYPES[item.name])}"
    if item.type.uncrossable() is not None:
        return 'nobody, as such values can\'t cross (missing="trap" traps)'
    return "yours to give by imports="


def _pages(limits: Limits) -> str:
    most = "" if limits.maximum is None else f", at most {_size(limits.maximum * WASM_PAGE)}"
    return f"{_size(limits.minimum * WASM_PAGE)} at the start{most}"


def _memory(info: ModuleInfo, config: CacheConfig) -> Iterator[str]:
    if not info.memories:
        yield "memory: none"
    for number, limits in enumerate(info.memories[:MAX_LISTED]):
        which = "" if len(info.memories) == 1 else f" {number}"
        grows = limits.maximum != limits.minimum
        yield f"memory{which}: {_pages(limits)}" + (
            f"; memory_limit is {_size(config.memory_limit)}" if grows else ""
        )


def _debugging(wasm: bytes) -> str:
    names = {section.name for section in find_custom_sections(wasm)}
    lines = f"{DEBUG}line" in names and f"{DEBUG}info" in names
    if lines and "name" not in names:
        return (
            "the names of functions were stripped, by wasm-opt maybe, which empties the table of "
            "lines, too, unless it is given -g"
        )
    if lines:
        return "errors of the guest name functions, files and lines"
    if "name" in names:
        return "errors of the guest name functions; build with -g for files and lines"
    return "stripped: errors of the guest name functions by number"


def _isolation(info: ModuleInfo) -> str:
    starts = info.start is not None or is_function(info, INITIALIZE)
    functions = [item for item in _missing(info) if isinstance(item.type, FuncType)]
    given = [(item.module, item.name) for item in functions if not _traps(functions)]
    why_not = obstacle(info, starts, given)
    if why_not is not None:
        found = f'"reuse" and "fresh"; "reset" is not possible: {why_not}'
    else:
        found = '"reuse", "fresh" and, if a trial by `register` agrees, "reset"'
    if is_function(info, COMMAND):
        found += f". `{COMMAND}` is a command: it runs once in an instance, which is never reused"
    return found


def _caching(info: ModuleInfo, config: CacheConfig) -> Iterator[str]:
    infos = [info]
    if _is_plugin(info):
        infos.append(read_module(kernel(KernelSettings())))
    least = least_size(heap_size(info, config.memory_limit, config.instance_stack_size), *infos)
    # An instance in which a program has run is of no use to the next one.
    program = is_function(info, COMMAND)
    said, _ = cache_verdict(config, least, seats=program, restored=False)
    if program:
        said = f"of `{COMMAND}`, {said}"
        if any(_is_candidate(info, one) and one.name != COMMAND for one in info.exports):
            of_others, _ = cache_verdict(config, least, seats=False, restored=False)
            said += f"; of its other functions, {of_others}"
    yield f"caching: {said}"
    try:
        check_counts(info, "it", config.table_limit)
        check_limits(info, "it", config.memory_limit, config.table_limit)
    except WasmCacheError as error:
        yield f"`register` refuses it: {error}"


def _registration(info: ModuleInfo, path: Path) -> Iterator[str]:
    """Yield the call of `register` to begin with."""
    refused = [
        item for item in _missing(info) if not (isinstance(item.type, FuncType) or is_yours(item))
    ]
    if refused:
        name = import_name(refused[0].module, refused[0].name)
        yield f"`register` refuses it, as it imports the {refused[0].kind} {name}."
        return
    candidates = [one for one in info.exports if _is_candidate(info, one)]
    plugin = _is_plugin(info)
    if plugin:
        statuses = (FuncType(), FuncType((), ("i32",)))
        candidates = [one for one in candidates if info.functions[one.index] in statuses]
    if not candidates:
        yield "No export is a function of numbers of its own, so there is nothing to register."
        return
    # One that takes and returns nothing sets something up, unless it is a program.
    says = (one for one in candidates if one.name == COMMAND or _says(info, one))
    export = next(says, candidates[0])
    if go_command(info):
        yield f"Of its exports, only `_start` can be registered: {GO_COMMAND}."
    kind = info.functions[export.index]
    name = _identifier(export.name)
    arguments = [written(name), f"Path({written(str(path))})"]
    scylla = info.export(SCYLLA_VERSION)
    if scylla is not None and scylla.kind == "global":
        yield "To begin with (the types are those of its CREATE FUNCTION in CQL):"
        arguments += ['args=("text",)', 'returns="text"']
    elif plugin:
        yield "To begin with (the argument and the result may also be str, or left out):"
        arguments += ['args=("bytes",)', 'returns="bytes"', 'abi="extism"']
    else:
        yield "To begin with:"
        arguments.append(f"args={_spelt(kind.params)}")
        if kind.results:
            one = len(kind.results) == 1
            arguments.append(f"returns={written(kind.results[0]) if one else _spelt(kind.results)}")
    if export.name != name:
        arguments.append(f"export={written(export.name)}")
    arguments += _imports_arguments(_missing(info))
    yield f"    {name} = await cache.register({', '.join(arguments)})"
    with_text = None if plugin or scylla is not None else _with_text(info, kind)
    if with_text is not None:
        takes, returns = with_text
        changed = [f"args={_spelt(takes)}", *(f"returns={written(one)}" for one in returns)]
        others = [one for one in arguments[2:] if not one.startswith(("args=", "returns="))]
        yield 'Or, if it takes text by address and length (or bytes, as "bytes"):'
        listed = ", ".join([*arguments[:2], *changed, 'abi="buffer"', *others])
        yield f"    {name} = await cache.register({listed})"
    externs = sum(not isinstance(item.type, FuncType) for item in _missing(info))
    if more := externs - len(_shown_externs(_missing(info))):
        yield f"{more:,} more memories, tables and globals are given in the same way."
    if exports_runtime(exports_of(info)):
        yield 'Text, bytes and lists of numbers are passed as objects: see abi="assemblyscript".'
    elif toolchain_of(info) == ASSEMBLYSCRIPT:
        yield (
            "For text, bytes and lists of numbers, build with asc --exportRuntime: see "
            'abi="assemblyscript".'
        )
    elif with_text is None and scylla is None and _allocates(info):
        yield 'Bytes and text are passed by address and length: see abi="buffer".'


def _allocates(info: ModuleInfo) -> bool:
    """Return whether it exports an allocator that the buffer ABI knows."""
    return any(is_function(info, allocator) for allocator in _ALLOCATORS)


def _with_text(info: ModuleInfo, kind: FuncType) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the types of arguments and result, if text may be among them; None: it can't.

    Its address and its length are two numbers of 32 bits, and one of 64 bits as the result.
    """
    params = list(kind.params)
    takes: list[str] = []
    while params[:2] == ["i32", "i32"]:
        takes.append("str")
        del params[:2]
    if not takes or kind.results not in ((), ("i64",)):
        return None
    if not _allocates(info) or not any(one.kind == "memory" for one in info.exports):
        return None
    takes += ["u32" if one == "i32" else one for one in params]
    return tuple(takes), ("str",) if kind.results else ()


def _imports_arguments(missing: list[Import]) -> Iterator[str]:
    """Yield the arguments of `register` for imports that nobody provides yet."""
    functions = [item for item in missing if isinstance(item.type, FuncType)]
    shown = _shown_externs(missing)
    if not _traps(functions):
        shown += functions
    modules: dict[str, list[str]] = {}
    for item in shown:
        given = giver(item)
        if isinstance(item.type, FuncType):
            given = (
                f"HostFunction({_identifier(item.name)}, params={_spelt(item.type.params)}, "
                f"results={_spelt(item.type.results)})"
            )
        modules.setdefault(item.module, []).append(f"{written(item.name)}: {given}")
    if modules:
        listed = [f"{written(name)}: {{{', '.join(given)}}}" for name, given in modules.items()]
        yield f"imports={{{', '.join(listed)}}}"
    if _traps(functions):
        yield 'missing="trap"'


def _shown_externs(missing: list[Import]) -> list[Import]:
    """Return the memories, tables and globals that the call of `register` shows."""
    externs = (item for item in missing if not isinstance(item.type, FuncType))
    short = (item for item in externs if len(item.module) + len(item.name) <= MAX_SHOWN)
    return list(itertools.islice(short, MAX_GIVEN))


def _traps(functions: list[Import]) -> bool:
    """Return whether the call of `register` lets functions trap that nobody provides yet."""
    return (
        len(functions) > MAX_GIVEN
        # Those of a toolchain's own host are not the user's to write.
        or not all(family.yours for family in families_of(functions))
        or not all(_is_writable(item) for item in functions)
    )


def _is_writable(item: Import) -> bool:
    """Return whether a host function for the import can be shown whole."""
    return (
        isinstance(item.type, FuncType)
        and item.type.uncrossable() is None
        and len(item.module) + len(item.name) <= MAX_SHOWN
        and len(item.type.params) + len(item.type.results) <= MAX_GIVEN
    )


def _is_candidate(info: ModuleInfo, export: Export) -> bool:
    return (
        export.kind == "func"
        and not _is_helper(export)
        and len(export.name) <= MAX_SHOWN
        and (export.name == COMMAND or not go_command(info))
        and info.functions[export.index].uncrossable() is None
    )


def _says(info: ModuleInfo, export: Export) -> bool:
    """Return whether a function takes or returns something."""
    kind = info.functions[export.index]
    return bool(kind.params or kind.results)


def _identifier(name: str) -> str:
    """Return a name that can be a variable of Python's."""
    found = re.sub(r"\W+", "_", name.rpartition("#")[2], flags=re.ASCII).strip("_") or "function"
    return f"f_{found}" if found[0].isdigit() or keyword.iskeyword(found) else found


def _spelt(names: tuple[str, ...]) -> str:
    listed = ", ".join(map(written, names))
    return f"({listed}{',' * (len(names) == 1)})"
