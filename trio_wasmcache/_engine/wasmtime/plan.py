"""Work out once what every instance of a module needs to know: limits, exports, and parts."""

from __future__ import annotations

import sys

from attrs import evolve, frozen

from ..._core.config import WASM_PAGE
from ..._core.wasm.admission import Edits, rest_size
from ..._core.wasm.graph import FromHost, FromPart, Graph
from ..._core.wasm.reader import Export, FuncType, ModuleInfo
from ..._core.wasm.restorer import Restorer
from ..base import Artifact
from . import native
from .errors import Shift

# No name that a toolchain emits, so it won't collide with the module's own exports.
HIDDEN = "\x00trio_wasmcache:"
# The start function of a part of a graph.
START = f"{HIDDEN}start"

NUMBERS = frozenset(native.VALUE_KINDS)

Patch = tuple[int, bytes]
"""Where in a memory, and what."""


@frozen
class Wire:
    """An import of a part that is an export of another one, as it is given to a linker."""

    module: bytes
    name: bytes
    part: int
    export: str


@frozen
class PartPlan:
    """What every instance of a graph needs to know of one part."""

    name: str
    plan: Plan
    """What it exports."""
    wires: tuple[Wire, ...]
    hosts: tuple[tuple[str, str, int], ...]
    """Module, name and index of each import that is a host function."""
    starts: bool
    """Whether it has a start function."""
    generated: bool
    """Whether it is none of the user's."""
    entries: tuple[tuple[tuple[int, str], int, tuple[int, str]], ...]
    """(part and name of a table, index there, part and name of a function), put in once this part
    is there."""


@frozen
class Plan:
    """What every instance of a module needs to know, worked out once.

    Where there is a graph, counts and sizes are those of all its parts, everything else is that of
    the module that was given.
    """

    counts: tuple[int, int, int]
    """How many instances, tables and memories a store of one instance has."""
    memory_limit: int
    table_limit: int
    rest_size: int
    """Bytes that an instance takes beside what is measured."""
    memory_exports: tuple[tuple[str, bool, int], ...]
    """(export name, can it grow, bytes at the start) of each memory that the module defines."""
    table_exports: tuple[tuple[str, bool, int], ...]
    """(export name, can it grow, elements at the start) of each table that it defines."""
    memory_name: str | None
    memory_sizes: dict[str, int | None]
    """{name of an exported memory: bytes, if it is one of the module's that can't grow}."""
    function_types: dict[str, FuncType]
    global_types: dict[str, str]
    """Of the exported globals that are numbers."""
    code_shift: Shift
    """Bytes from an offset in the compiled module's code to that in the module as it was given."""
    names: dict[tuple[str, int], str]
    """{(kind, index): the name it is exported by}"""
    parts: tuple[PartPlan, ...] = ()
    """Parts of the graph, in order, if there is one."""
    user: int = 0
    """Position of the user's module among them."""


@frozen
class RestorePlan:
    """How instances of one module are put back."""

    code: bytes
    """The restorer, serialized; empty: there is none."""
    restorer: Restorer | None
    patches: tuple[tuple[Patch, ...], ...] = ()
    """For each memory."""

    @property
    def size(self) -> int:
        """Bytes, all of it."""
        return len(self.code) + patches_size(self.patches)


def patches_size(patches: tuple[tuple[Patch, ...], ...]) -> int:
    """Return the bytes of patches, for all memories."""
    return sum(len(data) for several in patches for _, data in several)


def compiled_name(number: int) -> str:
    """Return the name that a part of a graph is given, by which frames say whose they are."""
    return f"part {number}"


def hidden_exports(info: ModuleInfo, edits: Edits) -> list[Export]:
    """Return exports for what has none: memories and tables to measure, globals to put back."""
    named = {(export.kind, export.index) for export in info.exports}
    wanted = [("memory", index) for index in range(len(info.memories))]
    first = len(info.tables) - len(info.own_tables)
    wanted += [("table", index) for index in range(first, len(info.tables))]
    if edits.reset:
        first = len(info.globals) - len(info.own_globals)
        wanted += [
            ("global", index) for index, one in enumerate(info.own_globals, first) if one.mutable
        ]
    return [
        Export(f"{HIDDEN}{kind}:{index}", kind, index)
        for kind, index in wanted
        if (kind, index) not in named
    ]


def make_plan(artifact: Artifact) -> Plan:
    """Work out what every instance of an artifact needs to know."""
    plan = _plan_of(artifact.info, artifact.edits, artifact.code_shift)
    graph = artifact.graph
    if graph is None:
        return plan
    parts = _plan_parts(graph)
    infos = [part.info for part in graph.parts]
    shifts = {
        compiled_name(number).encode(): code.shift
        for number, (part, code) in enumerate(zip(graph.parts, artifact.codes, strict=True))
        if part.offset is not None
    }
    instances, tables, memories = zip(*(part.plan.counts for part in parts), strict=True)
    return evolve(
        plan,
        counts=(sum(instances), sum(tables), sum(memories)),
        rest_size=rest_size(*infos) + sum(part.edits.heap_size for part in graph.parts),
        code_shift=shifts,
        parts=parts,
        user=graph.parts.index(graph.user),
    )


def _plan_parts(graph: Graph) -> tuple[PartPlan, ...]:
    numbers = {part.name: number for number, part in enumerate(graph.parts)}
    entries: dict[int, list[tuple[tuple[int, str], int, tuple[int, str]]]] = {}
    for entry in graph.entries:
        table, function = numbers[entry.table.part], numbers[entry.function.part]
        entries.setdefault(max(table, function), []).append(
            ((table, entry.table.export), entry.at, (function, entry.function.export))
        )
    return tuple(
        PartPlan(
            part.name,
            _plan_of(part.info, part.edits, 0),
            wires=tuple(
                Wire(module.encode(), name.encode(), numbers[source.part], source.export)
                for (module, name), source in part.wiring.items()
                if isinstance(source, FromPart)
            ),
            hosts=tuple(
                (module, name, source.index)
                for (module, name), source in part.wiring.items()
                if isinstance(source, FromHost)
            ),
            starts=part.info.start is not None,
            generated=part.offset is None,
            entries=tuple(entries.get(number, ())),
        )
        for number, part in enumerate(graph.parts)
    )


def _plan_of(info: ModuleInfo, edits: Edits, shift: int) -> Plan:
    """Work out what every instance of a module needs to know, by itself."""
    names: dict[tuple[str, int], str] = {}
    for export in (*info.exports, *hidden_exports(info, edits)):
        names.setdefault((export.kind, export.index), export.name)
    memories = []
    for index, limits in enumerate(info.own_memories):
        maximum = edits.memory_maxima[index] if index < len(edits.memory_maxima) else None
        growable = limits.minimum not in (maximum, limits.maximum)
        name = names["memory", len(info.memories) - len(info.own_memories) + index]
        memories.append((name, growable, limits.minimum * WASM_PAGE))
    tables = []
    for index, table in enumerate(info.own_tables):
        maximum = edits.table_maxima[index] if index < len(edits.table_maxima) else None
        growable = table.limits.minimum not in (maximum, table.limits.maximum)
        name = names["table", len(info.tables) - len(info.own_tables) + index]
        tables.append((name, growable, table.limits.minimum))
    fixed = {name: None if growable else size for name, growable, size in memories}
    exported = [export for export in info.exports if export.kind == "memory"]
    return Plan(
        counts=(1, len(info.own_tables), len(info.own_memories)),
        # More than C can say is as good as no limit.
        memory_limit=min(edits.memory_limit, sys.maxsize),
        table_limit=min(edits.table_limit, sys.maxsize),
        rest_size=rest_size(info) + edits.heap_size,
        memory_exports=tuple(memories),
        table_exports=tuple(tables),
        memory_name=_memory_name(info, names),
        memory_sizes={export.name: fixed.get(names["memory", export.index]) for export in exported},
        function_types={
            export.name: info.functions[export.index]
            for export in info.exports
            if export.kind == "func"
        },
        global_types={
            export.name: info.globals[export.index].value_type
            for export in info.exports
            if export.kind == "global" and info.globals[export.index].value_type in NUMBERS
        },
        code_shift=shift,
        names=names,
    )


def _memory_name(info: ModuleInfo, names: dict[tuple[str, int], str]) -> str | None:
    """Return the export of the module's memory: of those exported or imported, the chosen one."""
    exported = [export for export in info.exports if export.kind == "memory"]
    chosen = next((e for e in exported if e.name == "memory"), exported[0] if exported else None)
    if chosen is not None:
        return names["memory", chosen.index]
    return names["memory", 0] if info.imported_memories else None
