"""Admission of a module, decided from its sections alone, before it is compiled.

Limits are the configuration's, for all memories and all tables of an instance together. wasmtime
limits each memory and each table by itself, so where there are several, the rest of the limit is
divided among them here and written into the module as maxima.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from attrs import field, frozen

from ..config import SCRATCH_LIMIT, WASM_PAGE, KiB
from ..errors import AbiError, ExportError, LinkError, ModuleTooLargeError, SignatureError
from ..keys import MAX_COMPARED
from ..text import cut, printable, quoted, written
from .reader import (
    NUMBER_TYPES,
    OTHER_TYPES,
    FuncType,
    GlobalType,
    Import,
    Limits,
    ModuleInfo,
    TagType,
)
from .types import COMMAND

if TYPE_CHECKING:
    from .preparation import FrozenState, Observed

WASI_MODULE = "wasi_snapshot_preview1"
# Parameters of each function: i is i32, I is i64. All but `proc_exit` return an errno, an i32.
_WASI = """
    args_get ii, args_sizes_get ii, environ_get ii, environ_sizes_get ii, clock_res_get ii,
    clock_time_get iIi, fd_advise iIIi, fd_allocate iII, fd_close i, fd_datasync i,
    fd_fdstat_get ii, fd_fdstat_set_flags ii, fd_fdstat_set_rights iII, fd_filestat_get ii,
    fd_filestat_set_size iI, fd_filestat_set_times iIIi, fd_pread iiiIi, fd_prestat_get ii,
    fd_prestat_dir_name iii, fd_pwrite iiiIi, fd_read iiii, fd_readdir iiiIi, fd_renumber ii,
    fd_seek iIii, fd_sync i, fd_tell ii, fd_write iiii, path_create_directory iii,
    path_filestat_get iiiii, path_filestat_set_times iiiiIIi, path_link iiiiiii,
    path_open iiiiiIIii, path_readlink iiiiii, path_remove_directory iii, path_rename iiiiii,
    path_symlink iiiii, path_unlink_file iii, poll_oneoff iiii, proc_exit i, proc_raise i,
    random_get ii, sched_yield -, sock_accept iii, sock_recv iiiiii, sock_send iiiii,
    sock_shutdown ii
"""
WASI_TYPES = {
    name: FuncType(
        tuple({"i": "i32", "I": "i64"}[letter] for letter in letters.strip("-")),
        () if name == "proc_exit" else ("i32",),
    )
    for name, letters in (item.split() for item in _WASI.split(","))
}
# Most that a module may declare. A few bytes of each cost the compiler some KB and up to 50 µs, so
# that a module of 4 MiB could take 9 GB and a minute; real modules of that size are far below.
MAX_TYPES, MAX_FUNCTIONS, MAX_EXPORTS, MAX_ELEMENTS = 10_000, 50_000, 50_000, 100_000
# Elements that are no functions: a compiler takes 22 KB and 280 µs for each, of 3 bytes. They can
# only be null, so no module needs them.
MAX_EXTERN_ITEMS = 1000
# Locals beyond one for each byte of code can't be used by the code.
SPARE_LOCALS = 100_000
# Characters of a module's own names that a message shows.
MAX_SHOWN = 100
TABLE_ELEMENT_SIZE = 8
# Bytes that wasmtime keeps for any instance, and for each global, each referable function, each
# imported function, each item of a passive element segment, each element segment, each data segment
# and each table, at most.
STORE_SIZE, GLOBAL_SIZE, REFERENCE_SIZE, IMPORT_SIZE = 16 * KiB, 16, 32, 96
ITEM_SIZE, ELEMENTS_SIZE, DATA_SIZE, TABLE_SIZE = 16, 32, 16, 256
# Bytes of an exception, and of each value that it carries; and of a reference to one on the stack.
EXCEPTION_SIZE, CARRIED_SIZE, ON_STACK_SIZE = 48, 16, 8
# An instance keeps a scratch for batches with nulls and one for those without; if values cross
# through memory, there is only one.
SCRATCHES = 2


@frozen
class Provided:
    """A memory, table or global that each instance gets of its own in the place of an import."""

    kind: str
    """``"memory"``, ``"table"`` or ``"global"``."""
    value_type: str = ""
    """Value type of a global."""
    initial: bytes = b""
    """Initial value of a global: a constant expression with its end."""

    def __str__(self) -> str:
        """Return what gives it in Python, for messages."""
        if self.kind == "global":
            return f'HostGlobal("{self.value_type}", ...)'
        return f"Host{self.kind.capitalize()}()"


REFERENCE_GLOBALS = {"funcref": b"\xd0\x70\x0b", "externref": b"\xd0\x6f\x0b"}
"""{value type: initial value} of the globals of references that can be given: null."""


@frozen(repr=False)
class Edits:
    """The changes to a module before it is compiled, which make its limits hold."""

    memory_limit: int
    """Bytes of any one memory, at most."""
    table_limit: int
    """Elements of any one table, at most."""
    memory_maxima: tuple[int | None, ...] = ()
    """Pages of each memory that it defines, at most; None leaves what the module declares."""
    table_maxima: tuple[int | None, ...] = ()
    heap_size: int = 0
    """Bytes that an instance's exceptions may take, at most; see `heap_size`."""
    initials: tuple[bytes, ...] = ()
    """Initial value of each imported global, in order; see `define_imports`."""
    reset: bool = False
    """Whether its instances will be reset, for which all of its mutable state is exported."""
    observed: Observed | None = None
    """What is exported of it beside that, so that the state of an instance can be read."""
    dumped: bool = False
    """Whether its instances are dumped when a call fails, for which all globals are exported."""
    state: FrozenState | None = None
    """What its instances begin with, in place of what the module says."""
    abi_state: Mapping[str, Any] = field(factory=dict, eq=False, repr=False)
    """What the ABI knows about new instances, see `Guest.state`."""


class MoreEdits(TypedDict, total=False):
    """Changes that do not come of the limits: fields of `Edits`."""

    heap_size: int
    initials: tuple[bytes, ...]
    reset: bool
    dumped: bool


def check_limits(
    info: ModuleInfo, what: str, memory_limit: int, table_limit: int, **more: Unpack[MoreEdits]
) -> Edits:
    """Return the edits that make a module keep the limits.

    Args:
        info: the module.
        what: the function's name for messages.
        memory_limit: bytes, all memories together.
        table_limit: elements, all tables together.
        **more: further fields of the edits.

    Raises:
        ModuleTooLargeError: the module starts over a limit.
    """
    (edits,) = share_limits((info,), what, memory_limit, table_limit, **more)
    return edits


def share_limits(
    infos: Sequence[ModuleInfo],
    what: str,
    memory_limit: int,
    table_limit: int,
    **more: Unpack[MoreEdits],
) -> tuple[Edits, ...]:
    """Return the edits that make modules keep the limits, which one instance has together.

    Args:
        infos: the modules; each memory and each table counts where it is defined.
        what: the function's name for messages.
        memory_limit: bytes, all memories together.
        table_limit: elements, all tables together.
        **more: further fields of the edits of each.

    Raises:
        ModuleTooLargeError: the modules start over a limit.
    """
    memories = [memory for info in infos for memory in info.own_memories]
    tables = [table.limits for info in infos for table in info.own_tables]
    pages = sum(memory.minimum for memory in memories)
    if pages * WASM_PAGE > memory_limit:
        raise ModuleTooLargeError(
            f"{what} starts with {pages * WASM_PAGE} bytes in {len(memories)} memories, "
            f"memory_limit is {memory_limit}: raise it, or build the module with a smaller memory"
        )
    elements = sum(table.minimum for table in tables)
    if elements > table_limit:
        raise ModuleTooLargeError(
            f"{what} starts with {elements} elements in {len(tables)} tables, "
            f"table_limit is {table_limit}: raise it, or build the module with smaller tables"
        )
    maxima = iter(share_out(memories, memory_limit // WASM_PAGE))
    table_maxima = iter(share_out(tables, table_limit))
    return tuple(
        Edits(
            memory_limit,
            table_limit,
            tuple(itertools.islice(maxima, len(info.own_memories))),
            tuple(itertools.islice(table_maxima, len(info.own_tables))),
            **more,
        )
        for info in infos
    )


def check_counts(info: ModuleInfo, what: str, table_limit: int) -> None:
    """Raise `ModuleTooLargeError` if `info` has more of something than a compiler should get."""
    for noun, count, most in (
        ("types", len(info.types), MAX_TYPES),
        ("functions", len(info.functions), MAX_FUNCTIONS),
        ("exports", len(info.exports), MAX_EXPORTS),
        ("elements in its segments", info.elements, max(MAX_ELEMENTS, table_limit)),
        ("externref elements in its segments", info.extern_items, MAX_EXTERN_ITEMS),
        ("locals", info.locals, SPARE_LOCALS + info.code_bytes),
    ):
        if count > most:
            raise ModuleTooLargeError(
                f"{what} has {count} {noun}, over {most}: too many to compile"
            )


def share_out(limits: Sequence[Limits], budget: int) -> tuple[int | None, ...]:
    """Return maxima that add up to at most `budget`, as equal as minima and declared maxima allow.

    A single memory or table needs none, as the engine's own limit applies to it.
    """
    if len(limits) < 2:
        return (None,) * len(limits)
    maxima = [limit.minimum for limit in limits]
    left = budget - sum(maxima)
    # The smallest first: each step raises the lowest of those that may still grow.
    growing = [i for i, limit in enumerate(limits) if limit.maximum != limit.minimum]
    while left > 0 and growing:
        lowest = min(maxima[i] for i in growing)
        level = [i for i in growing if maxima[i] == lowest]
        ceilings = [limits[i].maximum for i in level]
        above = [maxima[i] for i in growing if maxima[i] > lowest]
        target = min(
            [ceiling for ceiling in ceilings if ceiling is not None] + above + [lowest + left]
        )
        rise = min(target - lowest, left // len(level))
        if rise == 0:
            break
        for i in level:
            maxima[i] += rise
        left -= rise * len(level)
        growing = [
            i for i in growing if (ceiling := limits[i].maximum) is None or maxima[i] < ceiling
        ]
    return tuple(maxima)


def sharing(*modules: tuple[ModuleInfo, Edits]) -> str:
    """Return words for messages about `memory_limit`: how many memories share it, if several do.

    Args:
        *modules: what the sections say, and the edits, of each module of an instance.
    """
    count = sum(
        limits.maximum != limits.minimum for info, _ in modules for limits in info.own_memories
    )
    return f", of which each of its {count} growable memories has a fixed part" if count > 1 else ""


def memory_remedy(*modules: tuple[ModuleInfo, Edits]) -> str:
    """Return what to do about a memory that the host could not grow, as the end of a message.

    Args:
        *modules: what the sections say, and the edits, of each module of an instance.
    """
    limit = modules[0][1].memory_limit
    return (
        f"raise memory_limit = {limit}{sharing(*modules)}, unless the module itself limits its "
        "memory to less"
    )


def worst_size(*modules: tuple[ModuleInfo, Edits]) -> int:
    """Return the most that an instance may touch (bytes).

    The sum of all memories and tables at their maxima, the scratches of batches, and the rest.

    Args:
        *modules: what the sections say, and the edits, of each module that is instantiated in it.
    """
    size = rest_size(*(info for info, _ in modules)) + SCRATCHES * SCRATCH_LIMIT
    for info, edits in modules:
        pages = _maxima(info.own_memories, edits.memory_maxima, edits.memory_limit // WASM_PAGE)
        elements = table_elements(info, edits)
        size += pages * WASM_PAGE + elements * TABLE_ELEMENT_SIZE + edits.heap_size
    return size


def least_size(heap: int, *infos: ModuleInfo) -> int:
    """Return what an instance takes at least (bytes): what it starts with.

    Args:
        heap: what `heap_size` returns, which counts as a whole from the start.
        *infos: what the sections say, of each module that is instantiated in it.
    """
    pages = sum(memory.minimum for info in infos for memory in info.own_memories)
    elements = sum(table.limits.minimum for info in infos for table in info.own_tables)
    return pages * WASM_PAGE + elements * TABLE_ELEMENT_SIZE + rest_size(*infos) + heap


def rest_size(*infos: ModuleInfo) -> int:
    """Return what an instance takes beside memories, elements of tables and scratches (bytes).

    That is one page, or more for modules with so many parts that wasmtime needs more.

    Args:
        *infos: what the sections say, of each module that is instantiated in it.
    """
    return max(WASM_PAGE, sum(map(_kept_size, infos)))


def _kept_size(info: ModuleInfo) -> int:
    """Return the bytes that wasmtime keeps for an instance of a module, at most."""
    exported = sum(export.kind == "func" for export in info.exports)
    held = sum(one.value_type == "funcref" for one in info.globals)
    references = min(len(info.functions), info.elements + exported + held)
    return (
        STORE_SIZE
        + len(info.globals) * GLOBAL_SIZE
        + references * REFERENCE_SIZE
        + info.imported_functions * IMPORT_SIZE
        + sum(item.kind in info.linked for item in info.imports) * IMPORT_SIZE
        + info.passive_items * ITEM_SIZE
        + info.element_segments * ELEMENTS_SIZE
        + info.data_segments * DATA_SIZE
        + len(info.tables) * TABLE_SIZE
    )


def heap_size(info: ModuleInfo, memory_limit: int, stack_size: int) -> int:
    """Return the most that the heap for an instance's exceptions may take (bytes).

    The heap has the limit of a memory. It grows only where a collection frees too little, so that
    it holds what the guest can refer to, and room for as much. That is what its stack can refer to,
    of which code uses half at most; or any number, if exceptions can be kept in tables, in globals
    or in each other.
    """
    if not info.tags:  # it can make none, and is given none
        return 0
    held = {table.element for table in info.tables}
    held.update(one.value_type for one in info.globals)
    held.update(name for tag in info.tags for name in tag.params)
    if "exnref" in held:
        return memory_limit
    carried = max(len(tag.params) for tag in info.tags)
    on_stack = stack_size // 2 // ON_STACK_SIZE
    return min(memory_limit, 2 * on_stack * (EXCEPTION_SIZE + CARRIED_SIZE * carried))


def table_elements(info: ModuleInfo, edits: Edits) -> int:
    """Return how many elements all tables of an instance may have together."""
    tables = [table.limits for table in info.own_tables]
    return _maxima(tables, edits.table_maxima, edits.table_limit)


def _maxima(declared: Sequence[Limits], edited: Sequence[int | None], limit: int) -> int:
    """Return the sum of what each may grow to: the declared or edited maximum, or the limit."""
    total = 0
    for number, limits in enumerate(declared):
        clamp = edited[number] if number < len(edited) else None
        bounds = [bound for bound in (limits.maximum, clamp) if bound is not None]
        total += min([*bounds, limit])
    return total


def check_imports(
    info: ModuleInfo,
    what: str,
    given: Mapping[tuple[str, str], FuncType | Provided],
    *,
    misfit: Callable[[tuple[str, str], FuncType], str] | None = None,
    trap_missing: bool = False,
) -> tuple[tuple[str, str], ...]:
    """Return the (module, name) of the imports that host functions must provide, in order.

    Args:
        info: the module.
        what: the function's name for messages.
        given: {(module, name): type} of the host functions, and what else each instance gets; the
            module need not import all.
        misfit: returns what is given in place of a function of that name and type, and a remedy;
            None: the message has only the type.
        trap_missing: whether functions that are not given are fine, as calling one traps. The
            engine can't make one whose type contains v128.

    Raises:
        LinkError: imports are missing, or have another type than given; the message lists them.
    """
    wanted: dict[tuple[str, str], None] = {}
    problems = []
    bad: list[Import] = []
    missing: dict[str, Import] = {}
    seen: set[tuple[str, str]] = set()
    repeated: set[tuple[str, str]] = set()
    for item in info.imports:
        name = item.module, item.name
        problem = _problem(item, given, misfit, trap_missing)
        if problem is None and item.kind != "func":
            if name in seen and not (isinstance(item.type, GlobalType) and not item.type.mutable):
                problem = f"it imports {import_name(*name)} twice, which can't be given as one"
                repeated.add(name)
            seen.add(name)
        elif problem is None:
            wanted[name] = None
        if problem is not None:
            problems.append(problem)
            if name not in repeated:  # no advice to give what is given
                bad.append(item)
            if name not in given and is_yours(item):
                missing.setdefault(item.kind, item)
    if problems:
        shown = problems[:50] + ([f"{len(problems) - 50} more"] if len(problems) > 50 else [])
        remedy = ""
        if missing:
            function = missing.get("func")
            similar = _similar(info, function or next(iter(missing.values())), given)
            nouns = "host functions" if [*missing] == ["func"] else "what is missing"
            remedy = f"{similar}. Give {nouns}: {_sample(missing.values())}"
            if function is not None and not trap_missing:
                remedy += '; or missing="trap", if they are never called'
        from .families import advice

        lacks = any((item.module, item.name) not in given for item in bad)
        fault = "imports what it is not given" if lacks else "can't be linked"
        raise LinkError(f"{what} {fault}: {'; '.join(shown)}{remedy}.{advice(bad)}")
    return tuple(wanted)


def initials_of(
    info: ModuleInfo, given: Mapping[tuple[str, str], FuncType | Provided]
) -> tuple[bytes, ...]:
    """Return the initial value of each imported global, in order; see `define_imports`.

    Args:
        info: a module whose imports `check_imports` has accepted.
        given: see `check_imports`.
    """
    found = (
        given[item.module, item.name] for item in info.imports if isinstance(item.type, GlobalType)
    )
    return tuple(one.initial for one in found if isinstance(one, Provided))


def missing_imports(
    info: ModuleInfo, given: Mapping[tuple[str, str], object]
) -> dict[tuple[str, str], FuncType]:
    """Return {(module, name): type} of the imported functions that are not given."""
    return {
        (item.module, item.name): item.type
        for item in info.imports
        if isinstance(item.type, FuncType) and (item.module, item.name) not in given
    }


def _problem(
    item: Import,
    given: Mapping[tuple[str, str], FuncType | Provided],
    misfit: Callable[[tuple[str, str], FuncType], str] | None,
    trap_missing: bool,
) -> str | None:
    """Return why an import can't be linked, or None if it can."""
    name = import_name(item.module, item.name)
    offered = given.get((item.module, item.name))
    if not isinstance(item.type, FuncType):
        return _other_problem(item, name, offered)
    if isinstance(offered, Provided):
        return (
            f"{name} {signature(item.type)} is a function, but what is given is {offered}: give "
            "a HostFunction"
        )
    if offered is None and trap_missing and "v128" not in item.type.params + item.type.results:
        return None
    if (other := item.type.uncrossable()) is not None:
        return f"{name} {signature(item.type)} can't be given: {no_crossing(other)}"
    if offered is None:
        return f"{name} {signature(item.type)} is missing"
    if offered != item.type:
        instead = f"it is {signature(offered)}"
        if misfit is not None:
            instead = misfit((item.module, item.name), item.type)
        return f"the module imports {name} as {signature(item.type)}, but {instead}"
    return None


def _other_problem(item: Import, name: str, offered: FuncType | Provided | None) -> str | None:
    """Return why an import that is no function can't be linked, or None if it can."""
    if isinstance(item.type, TagType):
        return f"{name} is a tag, which can't be given"
    described = item.kind
    if isinstance(item.type, GlobalType):
        described += f" of type {item.type.value_type}"
        if not is_givable(item):
            return f"{name} is a {described}, which can't be given"
    if offered is None:
        return f"{name} is a {described}, and missing"
    wanted = giver(item)
    if isinstance(offered, FuncType):
        return f"{name} is a {described}, but what is given is a function: give {wanted}"
    if offered.kind == item.kind and (
        not isinstance(item.type, GlobalType) or offered.value_type == item.type.value_type
    ):
        return None
    return f"{name} is a {described}, but what is given is {offered}: give {wanted}"


def is_givable(item: Import) -> bool:
    """Return whether there is something in Python that can be given for the import."""
    match item.type:
        case FuncType():
            return item.type.uncrossable() is None
        case GlobalType():
            return item.type.value_type in (*NUMBER_TYPES, *REFERENCE_GLOBALS)
        case _:
            return not isinstance(item.type, TagType)


def is_yours(item: Import) -> bool:
    """Return whether a message may propose to give the import."""
    from .families import is_extism_memory

    return is_givable(item) and not is_extism_memory(item)


def giver(item: Import) -> str:
    """Return the expression that gives an import."""
    match item.type:
        case FuncType():
            params, results = quoted(item.type.params), quoted(item.type.results)
            return f"HostFunction(function, params={params}, results={results})"
        case GlobalType():
            value = "None" if item.type.value_type in REFERENCE_GLOBALS else "0"
            return f'HostGlobal("{item.type.value_type}", {value})'
        case _:
            return f"Host{item.kind.capitalize()}()"


def _similar(info: ModuleInfo, missing: Import, given: Mapping[tuple[str, str], object]) -> str:
    """Return words about a similar name that is given, and that the module does not import."""
    imported = {(item.module, item.name) for item in info.imports}
    spare = itertools.islice(
        (name for name in given if name[0] != WASI_MODULE and name not in imported), MAX_COMPARED
    )
    names = [import_name(*name) for name in spare]
    import difflib

    close = difflib.get_close_matches(import_name(missing.module, missing.name), names, 1, 0.8)
    return f" ({close[0]} is given, which it does not import)" if close else ""


def _sample(missing: Iterable[Import]) -> str:
    """Return the parameter that gives missing imports, one of each kind."""
    modules: dict[str, list[str]] = {}
    for item in missing:
        module, name = (written(cut(part, MAX_SHOWN)) for part in (item.module, item.name))
        modules.setdefault(module, []).append(f"{name}: {giver(item)}")
    listed = [f"{module}: {{{', '.join(names)}}}" for module, names in modules.items()]
    return f"imports={{{', '.join(listed)}}}"


def import_name(module: str, name: str) -> str:
    """Return the name of an import for messages, cut and printable."""
    return f"{printable(module, MAX_SHOWN)}.{printable(name, MAX_SHOWN)}"


def check_export(info: ModuleInfo, what: str, export: str, remedy: str = "export={}") -> FuncType:
    """Return the type of the exported function.

    Args:
        info: the module.
        what: the function's name for messages.
        export: the name of the export.
        remedy: what to give, with braces in the place of a name.

    Raises:
        ExportError: there is no export of that name, it is not a function, or it is one of a Go
            program that works only while the program runs.
    """
    found = info.export(export)
    if found is None:
        names = [item.name for item in info.exports if item.kind == "func"]
        raise ExportError(
            f"{what}: the module exports no {export!r:.300}; {exported(export, names, remedy)}"
        )
    if found.kind != "func":
        raise ExportError(f"{what}: the export {export!r:.300} is a {found.kind}, not a function")
    if export != COMMAND and info.producers and info.export(COMMAND) is not None:
        from .families import GO_COMMAND, go_command

        if go_command(info):
            raise ExportError(f"{what}: {GO_COMMAND}")
    return info.functions[found.index]


def exported(wanted: str, names: Sequence[str], remedy: str, but: str | None = None) -> str:
    """Return words for a message: the functions that a module exports, and which may be meant.

    Args:
        wanted: the name of an export that it lacks.
        names: the names of the functions that it exports.
        remedy: what to give, with braces in the place of a name.
        but: name of an export that is not meant.
    """
    if not names:
        return "it exports no function"
    listed = ", ".join(repr(cut(name, MAX_SHOWN)) for name in names[:8])
    listed += ", ..." if len(names) > 8 else ""
    likely = _likely(wanted, [one for one in names if one != but], remedy)
    return f"the functions it exports are {listed}: give {likely}"


def _plain(name: str) -> str:
    return name[:MAX_SHOWN].casefold().strip("_")


def _likely(wanted: str, names: Sequence[str], remedy: str) -> str:
    """Return what to give for a function that is exported by another name."""
    if len(names) == 1:
        likely = names[:1]
    else:
        # Names that differ in what languages add: case, and underscores.
        plain = {_plain(name): name for name in names[:MAX_COMPARED]}
        import difflib

        close = difflib.get_close_matches(_plain(wanted), plain, n=1)
        likely = [plain[name] for name in close]
    if not likely:
        return "one of them as " + remedy.format("")
    return remedy.format(repr(cut(likely[0], MAX_SHOWN)))


def check_signature(
    what: str, export: str, declared: FuncType, actual: FuncType, remedy: str
) -> None:
    """Raise `SignatureError` unless the declared type equals the exported function's."""
    if declared != actual:
        if (name := actual.uncrossable()) is not None:
            remedy = no_crossing(name)
        raise SignatureError(
            f"{what} is declared as {signature(declared)}, but the export {export!r:.300} is "
            f"{signature(actual)}: {remedy}"
        )


def check_crossing(what: str, declared: object) -> FuncType:
    """Return the type that an ABI declares for an export, if values of all its types can cross.

    Raises:
        TypeError: it is no `FuncType` of two tuples of names.
        SignatureError: it contains an unknown type, or one that can't cross.
    """
    if not isinstance(declared, FuncType) or not all(
        isinstance(types, tuple) and all(isinstance(name, str) for name in types)
        for types in (declared.params, declared.results)
    ):
        raise TypeError(
            f"{what}: the signature of a binding must be a FuncType, got {declared!r:.200}"
        )
    if (name := declared.uncrossable()) is not None:
        raise SignatureError(f"{what}: {no_crossing(name)}")
    return declared


def check_call(exported: FuncType | None, export: object) -> FuncType:
    """Return the type of an export that an ABI wants to call; None: there is no such function.

    Raises:
        AbiError: there is none, or values of one of its types can't cross.
    """
    if exported is None:
        raise AbiError(f"its ABI calls {export!r:.300}, and the module exports no such function")
    if (name := exported.uncrossable()) is not None:
        raise AbiError(
            f"its ABI calls {export!r:.300}, which is {signature(exported)}: {no_crossing(name)}"
        )
    return exported


def no_crossing(name: str) -> str:
    """Return a message: values of the type can't cross, or there is no such type."""
    if name in OTHER_TYPES or name.startswith("(ref"):
        return f"values of type {name!r:.100} can't cross between Python and wasm"
    return f"unknown type {name!r:.100}; wasm's numbers are {', '.join(NUMBER_TYPES)}"


def signature(function_type: FuncType) -> str:
    """Return a function type in the notation of WebAssembly's specification; a long one is cut."""
    params, results = (
        " ".join(types[:20]) + (f" and {len(types) - 20} more" if len(types) > 20 else "")
        for types in (function_type.params, function_type.results)
    )
    return f"[{params}] -> [{results}]"
