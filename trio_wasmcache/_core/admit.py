"""What a module must be like to be let in, judged from its sections alone, before it is compiled.

Limits are the configuration's, for all memories and all tables of an instance together. wasmtime
limits each memory and each table by itself, so where there are several, the room that is left over
is shared out among them here and written into the module as maxima.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from .config import WASM_PAGE
from .errors import ExportError, LinkError, ModuleTooLargeError, SignatureError
from .wasm import FuncType, Limits, ModuleInfo

WASI_MODULE = "wasi_snapshot_preview1"
WASI_FUNCTIONS = frozenset(
    """
    args_get args_sizes_get environ_get environ_sizes_get clock_res_get clock_time_get fd_advise
    fd_allocate fd_close fd_datasync fd_fdstat_get fd_fdstat_set_flags fd_fdstat_set_rights
    fd_filestat_get fd_filestat_set_size fd_filestat_set_times fd_pread fd_prestat_get
    fd_prestat_dir_name fd_pwrite fd_read fd_readdir fd_renumber fd_seek fd_sync fd_tell fd_write
    path_create_directory path_filestat_get path_filestat_set_times path_link path_open
    path_readlink path_remove_directory path_rename path_symlink path_unlink_file poll_oneoff
    proc_exit proc_raise random_get sched_yield sock_accept sock_recv sock_send sock_shutdown
    """.split()
)


@frozen
class Edits:
    """What is changed in a module before it is compiled, so that its limits hold."""

    memory_limit: int
    """Bytes for any one memory."""
    table_limit: int
    """Elements for any one table."""
    memory_maxima: tuple[int | None, ...] = ()
    """Pages, for each memory; None leaves what the module declares."""
    table_maxima: tuple[int | None, ...] = ()


def check_limits(info: ModuleInfo, what: str, memory_limit: int, table_limit: int) -> Edits:
    """How the limits are kept for this module.

    Args:
        what: names the function in messages.
        memory_limit: bytes, all memories together.
        table_limit: elements, all tables together.

    Raises:
        ModuleTooLargeError: it starts over a limit.
    """
    tables = tuple(table.limits for table in info.tables)
    pages = sum(memory.minimum for memory in info.memories)
    if pages * WASM_PAGE > memory_limit:
        raise ModuleTooLargeError(
            f"{what} starts with {pages * WASM_PAGE} bytes in {len(info.memories)} memories, "
            f"memory_limit is {memory_limit}: raise it, or build the module with a smaller memory"
        )
    elements = sum(table.minimum for table in tables)
    if elements > table_limit:
        raise ModuleTooLargeError(
            f"{what} starts with {elements} elements in {len(tables)} tables, "
            f"table_limit is {table_limit}: raise it, or build the module with smaller tables"
        )
    return Edits(
        memory_limit,
        table_limit,
        share_out(info.memories, memory_limit // WASM_PAGE),
        share_out(tables, table_limit),
    )


def share_out(limits: Sequence[Limits], budget: int) -> tuple[int | None, ...]:
    """Maxima that add up to at most `budget`, as equal as the minima and declared maxima allow.

    One alone needs none: the engine's own limit holds it.
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


def check_imports(
    info: ModuleInfo, what: str, given: Mapping[tuple[str, str], FuncType]
) -> tuple[tuple[str, str], ...]:
    """The (module, name) of the imports that host functions have to serve, in order.

    WASI preview 1 is there by itself, unless a function of it is given. What the module does not
    import may be given; it is not used.

    Raises:
        LinkError: imports that nobody gives, or of another type than what is given: all of them.
    """
    wanted: list[tuple[str, str]] = []
    problems = []
    for item in info.imports:
        name = f"{item.module}.{item.name}"
        if not isinstance(item.type, FuncType):
            problems.append(f"{name} is a {item.kind}, and only functions can be given")
            continue
        offered = given.get((item.module, item.name))
        if offered is None:
            if item.module != WASI_MODULE or item.name not in WASI_FUNCTIONS:
                problems.append(f"{name} {signature(item.type)} is missing")
        elif offered != item.type:
            problems.append(
                f"{name} is imported as {signature(item.type)}, but given as {signature(offered)}"
            )
        elif (item.module, item.name) not in wanted:
            wanted.append((item.module, item.name))
    if problems:
        shown = problems[:50] + ([f"{len(problems) - 50} more"] if len(problems) > 50 else [])
        raise LinkError(
            f"{what} imports what it is not given: {'; '.join(shown)}. "
            'Give host functions: imports={"module": {"name": HostFunction(...)}}'
        )
    return tuple(wanted)


def check_export(info: ModuleInfo, what: str, export: str) -> FuncType:
    """The type of the exported function.

    Raises:
        ExportError: there is none of that name, or it is not a function.
    """
    found = info.export(export)
    if found is None:
        names = [item.name for item in info.exports if item.kind == "func"]
        listed = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
        raise ExportError(
            f"{what}: the module exports no {export!r}; "
            + (f"the functions it exports are {listed}" if names else "it exports no function")
        )
    if found.kind != "func":
        raise ExportError(f"{what}: the export {export!r} is a {found.kind}, not a function")
    return info.functions[found.index]


def check_signature(what: str, export: str, declared: FuncType, actual: FuncType) -> None:
    """`SignatureError` unless the declared types cross as the exported function's."""
    if declared != actual:
        raise SignatureError(
            f"{what} is declared as {signature(declared)}, but the export {export!r} is "
            f"{signature(actual)}"
        )


def signature(function_type: FuncType) -> str:
    """A function type the way WebAssembly's specification writes it."""
    return f"[{' '.join(function_type.params)}] -> [{' '.join(function_type.results)}]"
