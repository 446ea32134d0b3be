"""Work out once what every instance of a module needs to know: limits, exports, and parts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from ..._core.config import WASM_PAGE
from ..._core.wasm.admission import Edits, memory_remedy, rest_size
from ..._core.wasm.growth import UNMOVED, CodeOffsets, Note, notes_of
from ..._core.wasm.reader import Export, FuncType, ModuleInfo
from ..._core.wasm.restorer import Restorer
from ..base import Artifact
from . import native
from .errors import Offsets

if TYPE_CHECKING:
    from ..._core.wasm.graph import Graph, Part
    from ..._core.wasm.preparation import Observed

# No name that a toolchain emits, so it won't collide with the module's own exports.
HIDDEN = "\x00trio_wasmcache:"
# The start function of a part of a graph, of a module without host functions, and of one with notes
# of refused growth: those of an instance that instantiation itself fails to start can't be read.
START = f"{HIDDEN}start"

DATA = 11
"""Section of data segments."""

# Module name of host functions in what is compiled of a part that imports from other parts.
HOST = f"{HIDDEN}host"

NUMBERS = frozenset(native.VALUE_KINDS)

Patch = tuple[int, bytes]
"""Where in a memory, and what."""


class PartPlan:
    """What every instance of a graph needs to know of one part."""

    __slots__ = (
        "generated",
        "gives",
        "hosts",
        "name",
        "plan",
        "starts",
        "tables",
        "takes",
        "weight",
    )

    def __init__(
        self,
        name: str,
        plan: Plan,
        takes: bool,
        gives: bytes,
        hosts: tuple[tuple[str, str, int], ...],
        starts: bool,
        generated: bool,
        weight: int,
        tables: tuple[tuple[int, int, int], ...],
    ) -> None:
        self.name = name
        self.plan = plan
        """What it exports."""
        self.takes = takes
        """Whether it imports something from another part; its imports then have the names that
        `compiled_imports` gives."""
        self.gives = gives
        """Module name by which later parts import from it; empty if none does."""
        self.hosts = hosts
        """Module, name and index of each import that is a host function."""
        self.starts = starts
        """Whether it has a start function."""
        self.generated = generated
        """Whether it is none of the user's."""
        self.weight = weight
        """Imports, exports and KiB of data: how long it takes to instantiate, in some
        microseconds."""
        self.tables = tables
        """(index of a table that it imports from another part, number of the part that defines it,
        number of the table among those of that part)."""


class ObservedPlan:
    """What is exported of a module so that the state of its instances can be read, by name."""

    __slots__ = ("functions", "globals", "memories", "probes", "tables")

    def __init__(
        self,
        memories: tuple[str, ...],
        tables: tuple[tuple[str, str], ...],
        globals: tuple[tuple[int, str, str], ...],
        functions: tuple[tuple[int, str], ...],
        probes: tuple[tuple[str, int, str], ...],
    ) -> None:
        self.memories = memories
        """Export name of each memory that the module defines, in order."""
        self.tables = tables
        """Export name and type of elements of each table that it defines, in order."""
        self.globals = globals
        """Index, export name and value type of each mutable global that it defines."""
        self.functions = functions
        """Index and export name of those to which it can refer."""
        self.probes = probes
        """Kind and index of segments, and export name of a function that traps if it was
        dropped."""


class DumpedPlan:
    """The memories and globals of a module, for dumps of its instances."""

    __slots__ = ("globals", "memories")

    def __init__(self, memories: tuple[str, ...], globals: tuple[tuple[str, str], ...]) -> None:
        self.memories = memories
        """Export name of each memory, imported ones first."""
        self.globals = globals
        """(export name, value type) of each global, imported ones first."""


@frozen(eq=False, repr=False)
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
    """{name of an exported global that is a number: its value type}."""
    offsets: Offsets
    """Map from offsets in the compiled module to those in the module as it was given."""
    names: dict[tuple[str, int], str]
    """{(kind, index): the name it is exported by}"""
    remedy: str = ""
    """What `memory_remedy` returns."""
    parts: tuple[PartPlan, ...] = ()
    """Parts of the graph, in order, if there is one."""
    notes: tuple[tuple[str, str, Note], ...] = ()
    """Export names of each note of refused growth, and of its memory."""
    observed: ObservedPlan | None = None
    """What is exported so that the state of its instances can be read."""
    dumped: DumpedPlan | None = None
    """What a dump of its instances has."""
    bounded: frozenset[str] = frozenset()
    """Names of its exports of which every call is short; empty for a graph."""
    starts_later: bool = False
    """Whether its start function is exported by `START`, and not run by instantiation."""
    abi_state: Mapping[str, Any] = field(factory=dict)
    """What the ABI knows about a new instance."""
    user: int = 0
    """Position of the user's module among them."""


@frozen(eq=False, repr=False)
class RestorePlan:
    """How instances of one module are reset."""

    code: bytes
    """The restorer, serialized; empty: there is none."""
    restorer: Restorer | None
    patches: tuple[tuple[Patch, ...], ...] = ()
    """Bytes to copy back at a reset, for each memory."""

    @property
    def size(self) -> int:
        """Number of bytes that are kept for it."""
        return len(self.code) + patches_size(self.patches)


def patches_size(patches: tuple[tuple[Patch, ...], ...]) -> int:
    """Return the number of bytes of all patches."""
    return sum(len(data) for several in patches for _, data in several)


def note_names(info: ModuleInfo, edits: Edits) -> dict[int, str]:
    """Return {memory: export name of its note of refused growth}; see `growth`."""
    return {note.memory: f"{HIDDEN}refused:{note.memory}" for note in notes_of(info, edits)}


def starts_later(info: ModuleInfo, edits: Edits) -> bool:
    """Return whether a module by itself gets an export in place of its start function.

    It does if instances can be made synchronously otherwise (`LinkedModule.at_once`), for it has to
    be called in slices, and if it may be refused memory. An imported one does neither.
    """
    if info.start is None or info.start < info.imported_functions:
        return False
    return not info.imported_functions or bool(notes_of(info, edits))


def compiled_name(number: int) -> str:
    """Return the name that a part of a graph is given, by which frames say whose they are."""
    return f"part {number}"


def compiled_imports(graph: Graph, part: Part) -> dict[tuple[str, str], tuple[str, str]]:
    """Return {(module, name): those in what is compiled} for a part that imports from other parts.

    They are the name of the other part, and the name by which it exports: so all of its exports can
    be given to a linker at once, for whatever part imports them by whatever names.
    """
    from ..._core.wasm.graph import FromHost

    numbers = {one.name: number for number, one in enumerate(graph.parts)}
    return {
        name: (HOST, str(source.index))
        if isinstance(source, FromHost)
        else (compiled_name(numbers[source.part]), source.export)
        for name, source in part.wiring.items()
    }


def hidden_exports(info: ModuleInfo, edits: Edits) -> list[Export]:
    """Return exports for what has none: memories and tables to measure, globals to put back."""
    named = {(export.kind, export.index) for export in info.exports}
    wanted = [("memory", index) for index in range(len(info.memories))]
    first = len(info.tables) - len(info.own_tables)
    wanted += [("table", index) for index in range(first, len(info.tables))]
    if edits.observed is not None:
        wanted += [("func", index) for index in edits.observed.functions]
    if edits.dumped:
        wanted += [("global", index) for index in range(len(info.globals))]
    elif edits.reset or edits.observed is not None:
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
    info, edits, graph = artifact.info, artifact.edits, artifact.graph
    if graph is None:
        later, remedy = starts_later(info, edits), memory_remedy(*artifact.modules)
        return _plan_of(
            info,
            edits,
            artifact.offsets,
            starts_later=later,
            remedy=remedy,
            bounded=artifact.bounded,
        )
    plan = _plan_of(info, edits, artifact.offsets)
    parts = _plan_parts(graph)
    infos = [part.info for part in graph.parts]
    offsets = {
        compiled_name(number).encode(): code.offsets
        for number, (part, code) in enumerate(zip(graph.parts, artifact.codes, strict=True))
        if part.offset is not None
    }
    instances, tables, memories = zip(*(part.plan.counts for part in parts), strict=True)
    return evolve(
        plan,
        counts=(sum(instances), sum(tables), sum(memories)),
        rest_size=rest_size(*infos) + sum(part.edits.heap_size for part in graph.parts),
        offsets=offsets,
        remedy=memory_remedy(*artifact.modules),
        parts=parts,
        user=graph.parts.index(graph.user),
    )


def _plan_parts(graph: Graph) -> tuple[PartPlan, ...]:
    from ..._core.wasm.graph import FromHost, FromPart

    numbers = {part.name: number for number, part in enumerate(graph.parts)}
    givers = {
        source.part
        for part in graph.parts
        for source in part.wiring.values()
        if isinstance(source, FromPart)
    }
    plans: list[PartPlan] = []
    homes: dict[tuple[int, int], tuple[int, int]] = {}  # {part and table: where it is defined}
    for number, part in enumerate(graph.parts):
        names = compiled_imports(graph, part) if part.links else {}
        linked = _linked_tables(part, number, graph, numbers, homes)
        hosts = {
            (*names.get(name, name), source.index): None
            for name, source in part.wiring.items()
            if isinstance(source, FromHost)
        }
        plans.append(
            PartPlan(
                part.name,
                _plan_of(part.info, part.edits, UNMOVED, noted=part.offset is not None),
                takes=bool(part.links),
                gives=compiled_name(number).encode() if part.name in givers else b"",
                hosts=tuple(hosts),
                starts=part.info.start is not None,
                generated=part.offset is None,
                weight=part.links + len(part.info.exports) + _data_size(part.info) // 1024,
                tables=tuple((index, *found) for index, found in linked.items()),
            )
        )
    return tuple(plans)


def _data_size(info: ModuleInfo) -> int:
    return sum(one.end - one.start for one in info.sections if one.id == DATA)


def _linked_tables(
    part: Part,
    number: int,
    graph: Graph,
    numbers: Mapping[str, int],
    homes: dict[tuple[int, int], tuple[int, int]],
) -> dict[int, tuple[int, int]]:
    """Return {table that a part imports from another one: part, and number there, that define it}.

    Args:
        part: the part.
        number: its number.
        graph: the graph.
        numbers: {name of a part: its number}.
        homes: {part and index of a table: what is returned}, of the tables of earlier parts; those
            of this part are added.
    """
    from ..._core.wasm.graph import FromPart

    linked = {}
    imported = [item for item in part.info.imports if item.kind == "table"]
    for index, item in enumerate(imported):
        source = part.wiring.get((item.module, item.name))
        if isinstance(source, FromPart):
            giver = numbers[source.part]
            export = graph.parts[giver].info.export(source.export)
            if export is None:
                raise AssertionError(f"part {source.part!r} exports no {source.export!r}")
            linked[index] = homes[number, index] = homes[giver, export.index]
    first = len(part.info.tables) - len(part.info.own_tables)
    for index in range(first, len(part.info.tables)):
        homes[number, index] = number, index - first
    return linked


def _plan_of(
    info: ModuleInfo, edits: Edits, offsets: CodeOffsets, *, noted: bool = True, **more: Any
) -> Plan:
    """Work out what every instance of a module needs to know, by itself; `more`: further fields."""
    names: dict[tuple[str, int], str] = {}
    for export in (*info.exports, *hidden_exports(info, edits)):
        names.setdefault((export.kind, export.index), export.name)
    notes = notes_of(info, edits) if noted else ()
    note_of = note_names(info, edits)
    for number, note in enumerate(notes, len(info.globals)):
        names["global", number] = note_of[note.memory]
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
        offsets=offsets,
        names=names,
        observed=_observed(info, edits, names),
        dumped=_dumped(info, names) if edits.dumped else None,
        abi_state=edits.abi_state,
        notes=tuple((note_of[note.memory], names["memory", note.memory], note) for note in notes),
        **more,
    )


def probe_names(observed: Observed) -> list[str]:
    """Return the export name of each probe."""
    return [f"{HIDDEN}probe:{kind}:{index}" for kind, index, _ in observed.probes]


def _dumped(info: ModuleInfo, names: dict[tuple[str, int], str]) -> DumpedPlan:
    return DumpedPlan(
        tuple(names["memory", index] for index in range(len(info.memories))),
        tuple((names["global", index], one.value_type) for index, one in enumerate(info.globals)),
    )


def _observed(
    info: ModuleInfo, edits: Edits, names: dict[tuple[str, int], str]
) -> ObservedPlan | None:
    observed = edits.observed
    if observed is None:
        return None
    memory = len(info.memories) - len(info.own_memories)
    table = len(info.tables) - len(info.own_tables)
    first = len(info.globals) - len(info.own_globals)
    # Code can refer to functions that are exported, too.
    functions = {index: name for (kind, index), name in names.items() if kind == "func"}
    return ObservedPlan(
        tuple(names["memory", index] for index in range(memory, len(info.memories))),
        tuple(
            (names["table", index], one.element) for index, one in enumerate(info.own_tables, table)
        ),
        tuple(
            (index, names["global", index], one.value_type)
            for index, one in enumerate(info.own_globals, first)
            if one.mutable
        ),
        tuple(functions.items()),
        tuple(
            (kind, index, name)
            for (kind, index, _), name in zip(observed.probes, probe_names(observed), strict=True)
        ),
    )


def _memory_name(info: ModuleInfo, names: dict[tuple[str, int], str]) -> str | None:
    """Return the export of the module's memory: of those exported or imported, the chosen one."""
    exported = [export for export in info.exports if export.kind == "memory"]
    chosen = next((e for e in exported if e.name == "memory"), exported[0] if exported else None)
    if chosen is not None:
        return names["memory", chosen.index]
    return names["memory", 0] if info.imported_memories else None
