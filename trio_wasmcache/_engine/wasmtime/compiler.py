"""Compile modules to artifacts, and make executable code of artifacts, with wasmtime.

An artifact is serialized code, which uses no memory of the engine until it is loaded.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING, TypeAlias

from attrs import evolve

from ..._core.errors import InvalidModuleError
from ..._core.tiers import BASELINE, COMPILERS, Tier, tiers_for
from ..._core.wasm.admission import Edits, table_elements
from ..._core.wasm.bounds import bounded_exports
from ..._core.wasm.bulk import can_charge
from ..._core.wasm.custom import (
    bodies_offset,
    keep_debug_sections,
    name_module,
    without_custom_sections,
)
from ..._core.wasm.editor import (
    add_exports,
    clamp_maxima,
    defer_start,
    define_imports,
    keep_exports,
    rename_imports,
)
from ..._core.wasm.growth import CodeOffsets, code_offsets, edit_code
from ..._core.wasm.reader import MalformedModuleError, ModuleInfo, import_late, read_module
from ..._gil import Breath
from ..._threads import importing
from ..base import Artifact, PartCode
from . import native
from .errors import load_error, take_error
from .new_module import new_module
from .plan import (
    HIDDEN,
    START,
    compiled_imports,
    compiled_name,
    hidden_exports,
    note_names,
    probe_names,
    starts_later,
)
from .reservations import IMAGE_MAPPINGS, instance_reservation
from .residency import Range

if TYPE_CHECKING:
    from ..._core.wasm.graph import Graph, Part
    from ..._core.wasm.restorer import Restorer
    from .code_cache import CodeCache

Make: TypeAlias = Callable[[Tier, Sequence[bytes]], "list[tuple[bytes, int]]"]
"""Compiles modules in a tier: the code at rest of each, and its bytes once loaded; see `build`."""

# Seconds between two breaths of a thread that reads a module.
BREATH_EVERY = 0.0005
# Time that loading takes beside a nanosecond for each byte of code at rest (nanoseconds, with cold
# caches): for each export, or global, which may become one; for each parameter or result of a type;
# and for each import, with its host function.
EXPORT_TIME, VALUE_TIME, IMPORT_TIME = 600, 200, 10_000


class CompileLimitError(InvalidModuleError):
    """Compiling a module takes more time or memory than it may; another tier is not tried."""


def compile_module(
    make: Make,
    wasm: bytes,
    admit: Callable[[ModuleInfo], Edits | Graph],
    stack_size: int,
    make_constant: Make,
    first: Tier,
) -> Artifact:
    """Read, check, edit and compile a module; see `Engine.compile`. Blocks: for threads.

    Args:
        make: compiles; see `build`.
        wasm: the module, binary.
        admit: looks at what the sections say, and says what to change.
        stack_size: of a running instance (bytes).
        make_constant: compiles the parts of graphs that are the same for many modules.
        first: the tier that is tried first.
    """
    breathe = Breath(BREATH_EVERY)
    with importing:
        import_late(len(wasm))
    try:
        info = read_module(wasm, breathe)
    except MalformedModuleError as error:
        raise InvalidModuleError(str(error)) from None
    _check_names(info)
    admitted = admit(info)
    infos = [info] if isinstance(admitted, Edits) else [part.info for part in admitted.parts]
    simple = can_charge(infos) and not any(one.collected for one in infos)
    *earlier, last = tiers_for(first, simple=simple)

    def compile_in(tier: Tier) -> Artifact:
        if isinstance(admitted, Edits):
            return _compile_alone(make, tier, wasm, info, admitted, stack_size, breathe)
        return _compile_graph(make, make_constant, tier, admitted, stack_size, breathe)

    artifact = None
    for tier in earlier:
        try:
            artifact = compile_in(tier)
        except CompileLimitError:
            raise
        except InvalidModuleError:
            continue  # it may have what only the next one knows; else that says what is wrong
        break
    artifact = artifact or compile_in(last)
    debug = keep_debug_sections(wasm, breathe)
    return artifact if debug is None else evolve(artifact, debug=debug)


def _compile_alone(
    make: Make,
    tier: Tier,
    wasm: bytes,
    info: ModuleInfo,
    edits: Edits,
    stack_size: int,
    breathe: Callable[[], object],
) -> Artifact:
    first = info.bodies_begin
    edited, moves, info = _edit(wasm, info, edits, breathe, charge=_leaves_bulk_free(tier))
    if starts_later(info, edits):
        edited = defer_start(edited, read_module(edited, breathe, weigh=False), START)
    ((data, code_size),) = make(tier, [edited])
    space, mappings = instance_reservation((info,), table_elements(info, edits), stack_size)
    begin = first if edited is wasm else bodies_offset(edited)
    return Artifact(
        data,
        code_size,
        info,
        # What is written is left out, as it may be megabytes.
        edits if edits.state is None else evolve(edits, state=None),
        address_space=space,
        mappings=mappings,
        module_mappings=IMAGE_MAPPINGS,
        load_time=_load_time(data, info),
        offsets=code_offsets(wasm, edited, len(info.functions), moves, first=first),
        tier=tier,
        # By now it is known to be valid, and what is bounded is what runs.
        bounded=bounded_exports(edited, info, begin),
    )


def _load_time(data: bytes, info: ModuleInfo) -> int:
    """Return about how long loading the code of a module takes (nanoseconds)."""
    return (
        len(data)
        + (len(info.exports) + len(info.globals)) * EXPORT_TIME
        + sum(len(one.params) + len(one.results) for one in info.types) * VALUE_TIME
        + len(info.imports) * IMPORT_TIME
    )


def restorer_time(data: bytes, made: Restorer) -> int:
    """Return about how long loading the code of a restorer takes (nanoseconds)."""
    # Its imports are no host functions: each takes as long as the export that it gets.
    return len(data) + len(made.imports) * EXPORT_TIME


def _leaves_bulk_free(tier: Tier) -> bool:
    """Return whether bulk instructions are to be charged by us; see `wasm/bulk`."""
    return COMPILERS[tier] is BASELINE or not native.is_since_46()


def _compile_graph(
    make: Make,
    make_constant: Make,
    tier: Tier,
    graph: Graph,
    stack_size: int,
    breathe: Callable[[], object],
) -> Artifact:
    edited: list[bytes] = []
    offsets: list[CodeOffsets] = []
    parts: list[Part] = []
    for number, part in enumerate(graph.parts):
        _check_names(part.info)
        first = part.info.bodies_begin
        noted = part.offset is not None
        charge = _leaves_bulk_free(tier)
        wasm, moves, info = _edit(
            part.wasm, part.info, part.edits, breathe, noted=noted, charge=charge
        )
        if info is not part.info:
            part = evolve(part, info=info)
        parts.append(part)
        if part.info.start is not None:
            wasm = defer_start(wasm, read_module(wasm, breathe, weigh=False), START)
        if part.links:
            wasm = rename_imports(wasm, compiled_imports(graph, part))
        if part.offset is not None:
            wasm = name_module(wasm, compiled_name(number))
        edited.append(wasm)
        functions, begin = len(part.info.functions), part.offset or 0
        offsets.append(code_offsets(part.wasm, wasm, functions, moves, begin, first))
    graph = evolve(graph, parts=tuple(parts))
    pairs = list(zip(edited, graph.parts, strict=True))
    made = iter(make(tier, [wasm for wasm, part in pairs if not part.constant]))
    constant = iter(make_constant(tier, [wasm for wasm, part in pairs if part.constant]))
    codes, code_size = [], 0
    for part, moved in zip(graph.parts, offsets, strict=True):
        data, size = next(constant if part.constant else made)
        code_size += size
        codes.append(PartCode(data, moved))
    infos = [part.info for part in graph.parts]
    elements = sum(table_elements(part.info, part.edits) for part in graph.parts)
    space, mappings = instance_reservation(infos, elements, stack_size)
    user = graph.parts.index(graph.user)
    return Artifact(
        codes[user].data,
        code_size,
        graph.user.info,
        evolve(graph.user.edits, state=None),
        address_space=space,
        mappings=mappings,
        module_mappings=IMAGE_MAPPINGS * len(codes),
        load_time=sum(
            _load_time(code.data, part.info) for code, part in zip(codes, graph.parts, strict=True)
        ),
        offsets=codes[user].offsets,
        graph=_without_states(graph.bare()),
        codes=tuple(codes),
        tier=tier,
    )


def _without_states(graph: Graph) -> Graph:
    """Return the graph without what was written into its parts, which may be megabytes."""
    parts = (evolve(part, edits=evolve(part.edits, state=None)) for part in graph.parts)
    return evolve(graph, parts=tuple(parts))


def _check_names(info: ModuleInfo) -> None:
    for export in info.exports:
        if export.name.startswith(HIDDEN):
            raise InvalidModuleError(f"the export name {export.name!r:.60} is kept for ourselves")


def _edit(
    wasm: bytes,
    info: ModuleInfo,
    edits: Edits,
    breathe: Callable[[], object],
    *,
    noted: bool = True,
    charge: bool = False,
) -> tuple[bytes, tuple[tuple[int, int], ...], ModuleInfo]:
    """Return a module as the compiler gets it, where its code moved, and what it declares now.

    For where its code moved see `edit_code`. Only `edits.state` changes what it declares. Exports
    that `info` does not have are left out.
    """
    first = info.bodies_begin
    edited = define_imports(wasm, info, edits.initials, breathe)
    own = info if edited is wasm else read_module(edited, breathe, weigh=False)
    if (kept := keep_exports(edited, own, {one.name for one in info.exports})) is not edited:
        edited, own = kept, read_module(kept, breathe, weigh=False)
    if edits.state is not None:
        from ..._core.wasm.preparation import prepared_info, write_state

        edited = write_state(edited, own, edits.state)
        own = read_module(edited, breathe, weigh=False)
        info = prepared_info(info, own)
    edited = clamp_maxima(edited, own, edits.memory_maxima, edits.table_maxima)
    hidden = hidden_exports(info, edits)
    if hidden:
        edited = add_exports(edited, read_module(edited, breathe, weigh=False), hidden)
    names = note_names(info, edits) if noted else {}
    edited, moves = edit_code(edited, info, names, first, charge=charge)
    if edits.observed is not None and edits.observed.probes:
        from ..._core.wasm.preparation import add_probes

        probes = [body for _, _, body in edits.observed.probes]
        named = list(zip(probe_names(edits.observed), probes, strict=True))
        edited = add_probes(edited, read_module(edited, breathe, weigh=False), named)
    if own.has_custom_sections:  # which no edit adds or removes
        edited = without_custom_sections(edited, breathe)
    return edited, moves, info


def build(
    engines: Mapping[Tier, int],
    tier: Tier,
    wasms: Sequence[bytes],
    code_cache: CodeCache | None = None,
) -> list[tuple[bytes, int]]:
    """Compile modules: return the code at rest of each, and its bytes once it is loaded.

    Args:
        engines: {tier: native engine}.
        tier: in which they are compiled.
        wasms: the modules, binary.
        code_cache: where compiled code is kept; None: nowhere.

    Raises:
        InvalidModuleError: wasmtime can't compile one.
        NoMemoryError: the system has no memory for it.
    """
    return [_build(engines[tier], tier, wasm, code_cache) for wasm in wasms]


def _build(engine: int, tier: Tier, wasm: bytes, code_cache: CodeCache | None) -> tuple[bytes, int]:
    if code_cache is None:
        made = new_module(engine, wasm)
    else:
        made = code_cache.compile(engine, tier, wasm)
    try:
        out = native.ByteVec()
        if problem := native.module_serialize(made, byref(out)):
            raise InvalidModuleError(f"wasmtime can't serialize it: {take_error(problem)}")
        _, size = image_of(made)
        return native.take_bytes(out), _whole_pages(size)
    finally:
        native.module_delete(made)


def deserialize(engine: int, data: bytes) -> int:
    """Return a module made of code at rest, which is the caller's to delete.

    Raises:
        NoMemoryError: the system has no memory for it.
        LoadError: wasmtime would not load it.
    """
    made = c_void_p()
    problem = native.module_deserialize(engine, data, len(data), byref(made))
    if problem:
        raise load_error("wasmtime would not load its own artifact", problem)
    return native.pointer_in(made)


def image_of(module: int) -> Range:
    """Return where the code of a module is."""
    start, end = c_void_p(), c_void_p()
    native.module_image_range(module, byref(start), byref(end))
    return start.value or 0, (end.value or 0) - (start.value or 0)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
