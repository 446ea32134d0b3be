"""Work out once what every instance of a module needs to know: its limits, and what it exports."""

from __future__ import annotations

import sys

from attrs import frozen

from ..._core.config import WASM_PAGE
from ..._core.wasm.admission import Edits, rest_size
from ..._core.wasm.reader import Export, FuncType, ModuleInfo
from ..._core.wasm.restorer import Restorer
from ..base import Artifact
from . import native

# No name that a toolchain emits, so it won't collide with the module's own exports.
HIDDEN = "\x00trio_wasmcache:"

NUMBERS = frozenset(native.VALUE_KINDS)

Patch = tuple[int, bytes]
"""Where in a memory, and what."""


@frozen
class Plan:
    """What every instance of a module needs to know, worked out once."""

    counts: tuple[int, int, int]
    """How many instances, tables and memories a store of one instance has."""
    memory_limit: int
    table_limit: int
    rest_size: int
    """Bytes that an instance takes beside what is measured."""
    memory_exports: tuple[tuple[str, bool, int], ...]
    """(export name, can it grow, bytes at the start) of each memory."""
    table_exports: tuple[tuple[str, bool, int], ...]
    """(export name, can it grow, elements at the start) of each table."""
    memory_name: str | None
    function_types: dict[str, FuncType]
    global_types: dict[str, str]
    """Of the exported globals that are numbers."""
    code_shift: int
    """Bytes from an offset in the compiled module's code to that in the module as it was given."""
    names: dict[tuple[str, int], str]
    """{(kind, index): the name it is exported by}"""


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


def hidden_exports(info: ModuleInfo, edits: Edits) -> list[Export]:
    """Return exports for what has none: memories and tables to measure, globals to put back."""
    named = {(export.kind, export.index) for export in info.exports}
    wanted = [("memory", index) for index in range(len(info.memories))]
    wanted += [("table", index) for index in range(len(info.tables))]
    if edits.reset:
        wanted += [("global", index) for index, one in enumerate(info.globals) if one.mutable]
    return [
        Export(f"{HIDDEN}{kind}:{index}", kind, index)
        for kind, index in wanted
        if (kind, index) not in named
    ]


def make_plan(artifact: Artifact) -> Plan:
    """Work out what every instance of an artifact needs to know."""
    info, edits = artifact.info, artifact.edits
    names: dict[tuple[str, int], str] = {}
    for export in (*info.exports, *hidden_exports(info, edits)):
        names.setdefault((export.kind, export.index), export.name)
    memories = []
    for index, limits in enumerate(info.memories):
        maximum = edits.memory_maxima[index] if index < len(edits.memory_maxima) else None
        growable = limits.minimum not in (maximum, limits.maximum)
        memories.append((names["memory", index], growable, limits.minimum * WASM_PAGE))
    tables = []
    for index, table in enumerate(info.tables):
        maximum = edits.table_maxima[index] if index < len(edits.table_maxima) else None
        growable = table.limits.minimum not in (maximum, table.limits.maximum)
        tables.append((names["table", index], growable, table.limits.minimum))
    return Plan(
        counts=(1, len(info.tables), len(info.memories)),
        # More than C can say is as good as no limit.
        memory_limit=min(edits.memory_limit, sys.maxsize),
        table_limit=min(edits.table_limit, sys.maxsize),
        rest_size=rest_size(info) + edits.heap_size,
        memory_exports=tuple(memories),
        table_exports=tuple(tables),
        memory_name=_memory_name(info, names),
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
        code_shift=artifact.code_shift,
        names=names,
    )


def _memory_name(info: ModuleInfo, names: dict[tuple[str, int], str]) -> str | None:
    """Return the export of the module's memory: of those exported or imported, the chosen one."""
    exported = [export for export in info.exports if export.kind == "memory"]
    chosen = next((e for e in exported if e.name == "memory"), exported[0] if exported else None)
    if chosen is not None:
        return names["memory", chosen.index]
    return names["memory", 0] if info.imported_memories else None
