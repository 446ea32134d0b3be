"""The core instances of a component as the parts of a graph, and a module in front of them.

A component's functions, its memory and its allocator may be exports of different core instances,
which are linked with each other. The *front* is a generated module that imports what the exported
functions need and exports it again. It is the user's module of the graph, the last of its parts:
what is called, and whose memory a lease has, are its exports.

1. A core instance is a part, in the order of the component. All are there, used or not, as each may
   fill a table of another one or run a start function.
2. Functions and globals that no other part imports are exported no more: each instance would give
   them to the linker of the graph for nothing. What code refers to stays exported, as it must.
3. What is imported from the host, and functions that work with handles, come from a `Supply`, which
   may add parts of its own before the one that imports.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Protocol, final

from attrs import evolve, field, frozen

from ..editor import encode_module, find_references
from ..graph import USER, FromPart, ImportName, Layer, Part, Source, fits
from ..reader import read_module
from ..types import (
    Export,
    ExternType,
    FuncType,
    Import,
    MalformedModuleError,
    ModuleInfo,
)
from .types import BuiltIn, Component, CoreExport, CoreInstance, CoreItem, Lowered

IDLE: Final = frozenset(("func", "global"))
"""Kinds of exports that are left out if no part imports them."""
FRONT: Final = "core"
"""Module name of all that the front imports."""

Locate = Callable[[CoreExport], tuple[FromPart, ExternType]]
"""Returns where an export of a core instance is, and its type."""


class Supply(Protocol):
    """Provides the functions that no core instance exports."""

    def __call__(
        self, item: Lowered | BuiltIn, wanted: FuncType, locate: Locate
    ) -> tuple[tuple[Part, ...], Source]:
        """Return what an import is linked with, and parts that have to be there before.

        Args:
            item: the function, which is asked for once, if several instances import it.
            wanted: type that the first import of it has.
            locate: finds exports of the instances before the one that imports.
        """


@final
@frozen(eq=False)
class Linked:
    """A component as a graph, but for the host functions."""

    front: bytes = field(repr=False)
    """The module that exports what the functions need."""
    layer: Layer
    """Parts before it, and what it is linked with."""
    names: Mapping[CoreExport, str]
    """{export of a core instance: its name among the exports of the front}"""


def link_instances(
    component: Component,
    wasm: bytes,
    needed: Iterable[CoreExport],
    supply: Supply,
    breathe: Callable[[], object] | None = None,
) -> Linked:
    """Return a component as a graph.

    Args:
        component: the component, taken apart.
        wasm: its bytes.
        needed: exports of core instances that are called, or used with values.
        supply: provides imported functions.
        breathe: called every now and then.

    Raises:
        MalformedModuleError: a module is damaged, or they can't be linked so.
        ExcessiveModuleError: there is too much of something.
    """
    return _Linking(component, wasm, supply, breathe).link(needed)


class _Linking:
    """The parts that were made so far."""

    def __init__(
        self,
        component: Component,
        wasm: bytes,
        supply: Supply,
        breathe: Callable[[], object] | None,
    ) -> None:
        self.component, self.wasm, self.supply, self.breathe = component, wasm, supply, breathe
        self.infos: dict[int, ModuleInfo] = {}  # {number of a module: its sections}
        self.parts: list[Part] = []
        # {id of a function: where it is, and its type}
        self.supplied: dict[int, tuple[Source, FuncType]] = {}
        self.done: set[int] = set()  # numbers of the instances that are parts

    def link(self, needed: Iterable[CoreExport]) -> Linked:
        for instance in self.component.instances:
            self._add(instance)
        names = _names(needed)
        imports, wiring, exports = [], {}, []
        counts: dict[str, int] = {}
        types: dict[FuncType, None] = {}
        for item, name in names.items():
            source, extern = self._locate(item)
            if isinstance(extern, FuncType):
                types[extern] = None
            imports.append(Import(FRONT, name, item.kind, extern))
            exports.append(Export(name, item.kind, counts.get(item.kind, 0)))
            counts[item.kind] = counts.get(item.kind, 0) + 1
            wiring[FRONT, name] = source
        front = encode_module(types=tuple(types), imports=imports, exports=exports)
        parts = self._without_idle_exports(wiring.values())
        return Linked(front, Layer(parts=tuple(parts), supplies=wiring), names)

    def _without_idle_exports(self, fronts: Iterable[Source]) -> list[Part]:
        """Return the parts without the exports of functions and globals that none imports."""
        used: dict[str, set[str]] = {}
        sources = [source for part in self.parts for source in part.wiring.values()]
        for source in (*sources, *fronts):
            if isinstance(source, FromPart):
                used.setdefault(source.part, set()).add(source.export)
        return [self._keep(part, used.get(part.name, set())) for part in self.parts]

    def _keep(self, part: Part, names: Collection[str]) -> Part:
        """Return a part that exports functions and globals by these names only."""
        info = part.info
        idle = [one for one in info.exports if one.kind in IDLE and one.name not in names]
        if not idle:
            return part
        if self.breathe is not None:
            self.breathe()
        referred = find_references(part.wasm, info)
        left_out = {one for one in idle if one.kind == "global" or one.index not in referred}
        exports = tuple(one for one in info.exports if one not in left_out)
        return evolve(part, info=evolve(info, exports=exports))

    def _add(self, instance: CoreInstance) -> None:
        """Make a part of a core instance."""
        module = instance.module
        info = self.infos.get(module.number)
        if info is None:
            data = self.wasm[module.start : module.end]
            info = self.infos[module.number] = read_module(data, self.breathe or (lambda: None))
        wiring: dict[ImportName, Source] = {}
        for item in info.imports:
            source = instance.source(item.module, item.name, item.kind)
            if source is None:
                raise MalformedModuleError(
                    f"a core instance without the import {item.module!r} {item.name!r}",
                    module.start,
                )
            wiring[item.module, item.name] = self._source(source, item, module.start)
        self.parts.append(
            Part(
                _name(instance),
                self.wasm[module.start : module.end],
                info,
                wiring,
                offset=module.start,
            )
        )
        self.done.add(instance.number)

    def _source(self, source: CoreItem, item: Import, offset: int) -> Source:
        if isinstance(source, CoreExport):
            place, extern = self._locate(source)
            if not fits(extern, item.type):
                raise _misfit(item, offset)
            return place
        if not isinstance(item.type, FuncType):
            raise MalformedModuleError(f"a {item.kind} that is given a function", offset)
        made = self.supplied.get(id(source))
        if made is None:
            parts, found = self.supply(source, item.type, self._locate)
            self.parts += parts
            made = self.supplied[id(source)] = found, item.type
        found, type = made
        if type != item.type:
            raise _misfit(item, offset)
        return found

    def _locate(self, item: CoreExport) -> tuple[FromPart, ExternType]:
        instance = item.instance
        start = instance.module.start
        if instance.number not in self.done:
            raise MalformedModuleError("an export of an instance that is not there yet", start)
        info = self.infos[instance.module.number]
        export = info.export(item.name)
        if export is None or export.kind != item.kind:
            raise MalformedModuleError(
                f"an alias of a {item.kind} {item.name!r}, which the module does not export", start
            )
        return FromPart(_name(instance), item.name), info.extern(export)


def _misfit(item: Import, offset: int) -> MalformedModuleError:
    name = f"{item.module!r:.60} {item.name!r:.60}"
    return MalformedModuleError(
        f"a core instance that is given a {item.kind} of another type for its import {name}", offset
    )


def _name(instance: CoreInstance) -> str:
    """Return the name of the part."""
    return f"instance {instance.number}"


def _names(needed: Iterable[CoreExport]) -> dict[CoreExport, str]:
    """Return how the front names exports: as their instances do, as far as names differ."""
    names: dict[CoreExport, str] = {}
    taken: set[str] = {USER}
    for item in needed:
        if item not in names:
            name = item.name if item.name not in taken else f"{item.instance.number}:{item.name}"
            names[item] = name
            taken.add(name)
    return names
