"""Reads a component and evaluates its definitions: what is linked with what.

1. Any bytes result in a `Component` or a `MalformedModuleError` or `ExcessiveModuleError`, never
   another exception.
2. Nothing is trusted: counts are compared with the bytes that are left, nesting has a limit, and
   each definition costs steps (see `Cursor.spend`), each time that it is evaluated. Nested
   components are read when they are instantiated, so that instantiating one twice costs twice.
3. Accepted does not mean valid. Core modules are not looked at, and of types it is compared only
   whether they have the same shape.
4. A function whose type is not supported is kept as `Unsupported`: others may be used.

Types are compared by structure, as in the component model; their names are those by which they are
imported or exported. So each type in an index space is a `_Type`, which is made a type of WIT once
the names are known. A type that is exported gets a name once: other names for it are aliases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeAlias, cast

from attrs import define, field, frozen

from ...wit import types as wit
from ...wit.types import LABEL
from ..reader import MAX_PRODUCERS, PRODUCERS, Cursor, read_producers
from ..types import HEADER, KINDS, ExcessiveModuleError
from .types import (
    BuiltIn,
    Component,
    CoreExport,
    CoreInstance,
    CoreItem,
    CoreModule,
    Encoding,
    ExportedFunction,
    ImportedFunction,
    Lifted,
    Lowered,
    Options,
    Resource,
    Unsupported,
    UnsupportedComponentError,
)

COMPONENT_HEADER: Final = b"\0asm\x0d\0\1\0"
NESTING_LIMIT: Final = 32
"""Depth of components in components, and of types of components and instances in each other."""
MODULE_LIMIT: Final = 1000
"""Number of core modules: wasmtime's own limit."""
INSTANCE_LIMIT: Final = 1000
"""Number of core instances: wasmtime's own limit."""
STEPS_PER_ITEM: Final = 4
"""Steps of a definition, see `Cursor.spend`: it takes some microseconds, and some hundred bytes."""

_PRIMITIVES: Final = dict(
    zip(
        range(0x7F, 0x72, -1),
        (
            *("bool", "s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64", "f32", "f64"),
            *("char", "string"),
        ),
        strict=True,
    )
)
# Names of imports and exports: of functions and types, as a label or ``[method]a.b``; of
# interfaces, as ``demo:shapes/funcs@0.1.0``; and of components elsewhere, as ``url=<...>``.
_EXTERN_NAME: Final = re.compile(
    rf"(?:\[[a-z][ -Z^-~]*\])?(?:{LABEL})(?:\.(?:{LABEL}))?"
    rf"|(?:{LABEL})(?::(?:{LABEL}))+(?:/(?:{LABEL}))*(?:@[0-9A-Za-z.+-]+)?"
    r"|[a-z-]+=<[!-~]*>(?:,integrity=<[ -~]*>)?",
    re.ASCII,
)
_ERROR_CONTEXT: Final = 0x64
_ENCODINGS: Final[tuple[Encoding, ...]] = ("utf8", "utf16", "latin1+utf16")
# {byte: sort}, of core items, and of those of components
_CORE_SORTS: Final = {**dict(enumerate(KINDS)), 0x10: "type", 0x11: "module", 0x12: "instance"}
_SORTS: Final = {1: "func", 2: "value", 3: "type", 4: "component", 5: "instance"}
# {byte: (name of a built-in function, what follows)}: t index of a type, u another index, b a byte,
# o options, r the type of a result
_BUILT_INS: Final = {
    0x05: ("task.cancel", ""),
    0x06: ("subtask.cancel", "b"),
    0x08: ("backpressure.set", ""),
    0x09: ("task.return", "ro"),
    0x0A: ("context.get", "bu"),
    0x0B: ("context.set", "bu"),
    0x0C: ("thread.yield", "b"),
    0x0D: ("subtask.drop", ""),
    0x0E: ("stream.new", "t"),
    0x0F: ("stream.read", "to"),
    0x10: ("stream.write", "to"),
    0x11: ("stream.cancel-read", "tb"),
    0x12: ("stream.cancel-write", "tb"),
    0x13: ("stream.drop-readable", "t"),
    0x14: ("stream.drop-writable", "t"),
    0x15: ("future.new", "t"),
    0x16: ("future.read", "to"),
    0x17: ("future.write", "to"),
    0x18: ("future.cancel-read", "tb"),
    0x19: ("future.cancel-write", "tb"),
    0x1A: ("future.drop-readable", "t"),
    0x1B: ("future.drop-writable", "t"),
    0x1C: ("error-context.new", "o"),
    0x1D: ("error-context.debug-message", "o"),
    0x1E: ("error-context.drop", ""),
    0x1F: ("waitable-set.new", ""),
    0x20: ("waitable-set.wait", "bu"),
    0x21: ("waitable-set.poll", "bu"),
    0x22: ("waitable-set.drop", ""),
    0x23: ("waitable.join", ""),
    0x24: ("backpressure.inc", ""),
    0x25: ("backpressure.dec", ""),
    0x26: ("thread.index", ""),
    0x27: ("thread.new-indirect", "uu"),
    0x28: ("thread.resume-later", ""),
    0x29: ("thread.suspend", "b"),
    0x2A: ("thread.suspend-then-resume", "b"),
    0x2B: ("thread.yield-then-resume", "b"),
    0x2C: ("thread.suspend-then-promote", "b"),
    0x2D: ("thread.yield-then-promote", "b"),
    0x40: ("thread.spawn-ref", "bu"),
    0x41: ("thread.spawn-indirect", "buu"),
    0x42: ("thread.available-parallelism", "b"),
}
_RESOURCE_BUILT_INS: Final = {2: "resource.new", 3: "resource.drop", 4: "resource.rep"}


def read_component(wasm: bytes, breathe: Callable[[], object] = lambda: None) -> Component:
    """Return what a component consists of.

    Args:
        wasm: the component.
        breathe: called every now and then, so that a thread lets others run.

    Raises:
        MalformedModuleError: it is damaged, or uses a feature that is not supported.
        ExcessiveModuleError: it has too much of something.
    """
    return _Reader(wasm, breathe).read()


@define(eq=False)
class _Type:
    """A type in an index space. One with a `label` is another type that was given a name."""

    kind: str
    """Keyword of WIT, or ``"func"``, ``"resource"``, ``"instance type"``, ``"component type"``."""
    shape: int
    """The same number for types of the same structure."""
    offset: int
    depth: int = 1
    labels: tuple[str, ...] = ()
    """Names of fields, cases or parameters."""
    inner: tuple[_Type | None, ...] = ()
    """Types in it; of a function, the result is the last."""
    exports: Mapping[str, _Extern] = field(factory=dict)
    """Of an instance type: {name: what it exports}"""
    resource: Resource | None = None
    label: str = ""
    home: str | None = None
    """Interface that gives the label; None: unknown so far, or none."""
    named: _Type | None = None
    """Of one with a label: the type without. Else the first one that gives it a label."""

    @property
    def plain(self) -> _Type:
        """The type without a label."""
        return self.named if self.label and self.named is not None else self


@frozen(eq=False)
class _Function:
    """A function in an index space."""

    function: Lifted | ImportedFunction
    type: _Type


@frozen(eq=False)
class _Instance:
    """An instance of a component, or of exports that were put together."""

    exports: Mapping[str, _Extern]


@frozen(eq=False)
class _Nested:
    """A component inside the component, which is read when it is instantiated."""

    start: int
    end: int
    scope: _Scope
    """Where it is defined."""


@frozen
class _Extern:
    """What is exported or given: its sort, and the value, of which the class depends on it."""

    sort: str
    """``"func"``, ``"type"``, ``"instance"``, ``"component"`` or ``"core module"``."""
    value: Any


CoreExports: TypeAlias = CoreInstance | dict[str, CoreItem]


@define(eq=False)
class _Scope:
    """The index spaces of a component, or of the type of a component or an instance."""

    outer: _Scope | None
    depth: int
    args: Mapping[str, _Extern] | None = None
    """What a nested component is instantiated with; None: it is the outermost one, or a type."""
    is_type: bool = False
    spaces: dict[str, list[Any]] = field(
        factory=lambda: {sort: [] for sort in ("func", "type", "instance", "component")}
    )
    """{sort: items}"""
    core: dict[str, list[Any]] = field(
        factory=lambda: {sort: [] for sort in _CORE_SORTS.values() if sort != "type"}
    )
    """{sort of core items: items}. Core types are not kept."""
    imports: set[str] = field(factory=set)
    exports: dict[str, _Extern] = field(factory=dict)

    def space(self, sort: str) -> list[Any]:
        """Return the items of a sort."""
        return self.core["module"] if sort == "core module" else self.spaces[sort]


class _Reader:
    """Reads the sections of the component, and of each nested one that is instantiated."""

    def __init__(self, wasm: bytes, breathe: Callable[[], object]) -> None:
        self.cursor = Cursor(wasm, 0, len(wasm), breathe=breathe)
        self.modules: dict[int, CoreModule] = {}  # {start: module}
        self.instances: list[CoreInstance] = []
        self.imports: list[ImportedFunction] = []
        self.resources: list[Resource] = []
        self.producers: tuple[tuple[str, str, str], ...] = ()
        self.shapes: dict[tuple[object, ...], int] = {}
        self.converted: dict[_Type, wit.Type] = {}

    def read(self) -> Component:
        scope = _Scope(None, 0)
        self.component(scope, 0, self.cursor.end)
        exports = self.exports(scope)
        return Component(
            modules=tuple(self.modules.values()),
            instances=tuple(self.instances),
            exports=exports,
            imports=tuple(self.imports),
            resources=tuple(self.resources),
            producers=self.producers,
        )

    def refuse(self, what: str) -> NoReturn:
        raise UnsupportedComponentError(what, self.cursor.begin)

    def item(self) -> None:
        """Count the steps of a definition."""
        self.cursor.spend(STEPS_PER_ITEM)

    # Sections

    def component(self, scope: _Scope, start: int, end: int) -> None:
        """Read the component in some bytes."""
        cursor = self.cursor
        back = cursor.at, cursor.end
        cursor.at, cursor.end = start, end
        cursor.skip(len(COMPONENT_HEADER))
        header = cursor.data[start : start + len(COMPONENT_HEADER)]
        if header != COMPONENT_HEADER:
            if header[:4] == HEADER[:4] and header[6:] == COMPONENT_HEADER[6:]:
                version = int.from_bytes(header[4:6], "little")
                cursor.fail(f"a component of version {version:#x}, and not 0xd")
            cursor.fail("not a component")
        while cursor.at < end:
            section = cursor.byte()
            length = cursor.section_size(section)
            cursor.end = cursor.at + length
            cursor.spend(1)
            self.section(scope, section)
            if cursor.at < cursor.end:
                cursor.begin = cursor.at
                cursor.fail(f"{cursor.end - cursor.at} bytes too many in section {section}")
            cursor.end = end
        cursor.at, cursor.end = back

    def section(self, scope: _Scope, section: int) -> None:
        cursor = self.cursor
        begin = cursor.at
        match section:
            case 0:
                if cursor.name() == PRODUCERS and scope.outer is None and not self.producers:
                    payload = cursor.data[cursor.at : min(cursor.end, cursor.at + MAX_PRODUCERS)]
                    self.producers = read_producers(payload)
                cursor.at = cursor.end
            case 1:
                cursor.skip(cursor.end - begin)
                self.module(scope, begin)
            case 3:
                cursor.skip(cursor.end - begin)  # nothing that is supported refers to core types
            case 4:
                cursor.skip(cursor.end - begin)
                self.item()
                scope.spaces["component"].append(_Nested(begin, cursor.end, scope))
            case 9:
                self.refuse("a start function")
            case 12:
                self.refuse("values")
            case _:
                items: dict[int, tuple[int, Callable[[_Scope], object]]] = {
                    2: (2, self.core_instance),
                    5: (2, self.instance),
                    6: (4, self.alias),
                    7: (1, self.type),
                    8: (1, self.canon),
                    10: (4, self.import_),
                    11: (4, self.export),
                }
                if section not in items:
                    cursor.fail(f"unknown section {section} of a component")
                smallest, read_item = items[section]
                for _ in cursor.items(cursor.count(smallest)):
                    self.item()
                    read_item(scope)

    def module(self, scope: _Scope, start: int) -> None:
        """Define the core module that has just been skipped."""
        found = self.modules.get(start)
        if found is None:  # a nested component may be read several times
            if len(self.modules) == MODULE_LIMIT:
                raise ExcessiveModuleError(f"more than {MODULE_LIMIT} core modules")
            if self.cursor.data[start : start + len(HEADER)] != HEADER:
                self.cursor.fail("a core module that does not begin as one")
            found = CoreModule(len(self.modules), start, self.cursor.end)
            self.modules[start] = found
        scope.core["module"].append(found)

    # Indexes

    def sort(self) -> str:
        """Read the sort of an item of a component; of core items only modules may be one."""
        byte = self.cursor.byte()
        if byte == 0:
            byte = self.cursor.byte()
            if byte != 0x11:
                self.cursor.fail(f"a core item of sort {byte:#x} where only a module may be")
            return "core module"
        if byte == 2:
            self.refuse("values")
        if byte not in _SORTS:
            self.cursor.fail(f"unknown sort {byte:#x}")
        return _SORTS[byte]

    def core_sort(self) -> str:
        byte = self.cursor.byte()
        if byte not in _CORE_SORTS:
            self.cursor.fail(f"unknown sort {byte:#x} of a core item")
        return _CORE_SORTS[byte]

    def take(self, items: list[Any], sort: str) -> Any:
        """Read an index, and return the item."""
        return items[self.cursor.index(len(items), sort)]

    def core_item(self, scope: _Scope, sort: str) -> CoreItem:
        return cast("CoreItem", self.take(scope.core[sort], f"core {sort}"))

    def core_export(self, scope: _Scope, sort: str) -> CoreExport:
        """Read the index of a core item that must be an export of a core instance."""
        found = self.core_item(scope, sort)
        if not isinstance(found, CoreExport):
            self.refuse("a function of the host in place of one of a core module")
        return found

    def type_index(self, scope: _Scope, *kinds: str) -> _Type:
        found: _Type = self.take(scope.spaces["type"], "type")
        kind = found.plain.kind
        if kinds and kind not in kinds:
            self.cursor.fail(f"a {kind} where a {' or '.join(kinds)} is due")
        return found

    def extern_name(self) -> str:
        cursor = self.cursor
        form = cursor.byte()
        if form > 2:
            cursor.fail(f"unknown form {form:#x} of a name")
        name = cursor.name()
        if _EXTERN_NAME.fullmatch(name) is None:
            cursor.fail(f"{name!r:.60} is no name of WIT")
        if form == 2:
            for _ in cursor.items(cursor.count(2)):
                if (attribute := cursor.byte()) > 2:
                    cursor.fail(f"unknown attribute {attribute:#x} of a name")
                cursor.name()
        return name

    # Core instances

    def core_instance(self, scope: _Scope) -> None:
        cursor = self.cursor
        form = cursor.byte()
        if form == 1:
            bag: dict[str, CoreItem] = {}
            for _ in cursor.items(cursor.count(3)):
                name, sort = cursor.name(), self.core_sort()
                if sort not in KINDS:
                    cursor.fail(f"a core instance that exports a {sort}")
                self.unique(name, bag)
                bag[name] = self.core_item(scope, sort)
            scope.core["instance"].append(bag)
            return
        if form != 0:
            cursor.fail(f"unknown form {form:#x} of a core instance")
        module: CoreModule = self.take(scope.core["module"], "core module")
        args: dict[str, CoreExports] = {}
        for _ in cursor.items(cursor.count(3)):
            name, sort = cursor.name(), self.core_sort()
            if sort != "instance":
                cursor.fail(f"a core module is instantiated with a {sort}")
            self.unique(name, args)
            args[name] = self.take(scope.core["instance"], "core instance")
        if len(self.instances) == INSTANCE_LIMIT:
            raise ExcessiveModuleError(f"more than {INSTANCE_LIMIT} core instances")
        self.instances.append(CoreInstance(len(self.instances), module, args))
        scope.core["instance"].append(self.instances[-1])

    def unique(self, name: str, names: Mapping[str, object] | set[str]) -> None:
        if name in names:
            self.cursor.fail(f"a second item named {name!r:.60}")

    # Instances of components

    def instance(self, scope: _Scope) -> None:
        cursor = self.cursor
        form = cursor.byte()
        if form == 1:
            exports: dict[str, _Extern] = {}
            for _ in cursor.items(cursor.count(4)):
                name, sort = self.extern_name(), self.sort()
                self.unique(name, exports)
                exports[name] = self.exported(name, sort, self.take(scope.space(sort), sort))
            scope.spaces["instance"].append(_Instance(exports))
            return
        if form != 0:
            cursor.fail(f"unknown form {form:#x} of an instance")
        nested: _Nested = self.take(scope.spaces["component"], "component")
        args: dict[str, _Extern] = {}
        for _ in cursor.items(cursor.count(3)):
            name, sort = cursor.name(), self.sort()
            self.unique(name, args)
            args[name] = _Extern(sort, self.take(scope.space(sort), sort))
        inner = self.deeper(nested.scope, args=args)
        self.component(inner, nested.start, nested.end)
        scope.spaces["instance"].append(_Instance(inner.exports))

    def deeper(self, scope: _Scope, **more: Any) -> _Scope:
        if scope.depth == NESTING_LIMIT:
            self.cursor.fail(f"nested more than {NESTING_LIMIT} deep")
        return _Scope(scope, scope.depth + 1, **more)

    def alias(self, scope: _Scope) -> None:
        cursor = self.cursor
        at = cursor.at
        byte = cursor.byte()
        core = self.core_sort() if byte == 0 else None
        sort = "value" if core else _SORTS.get(byte)
        if sort is None:
            cursor.fail(f"unknown sort {byte:#x}")
        form = cursor.byte()
        match form:
            case 0:
                instance: _Instance = self.take(scope.spaces["instance"], "instance")
                name = cursor.name()
                found = instance.exports.get(name)
                if core is not None:
                    sort = f"core {core}"
                if found is None or found.sort != sort:
                    cursor.fail(f"an instance exports no {sort} named {name!r:.60}")
                scope.space(sort).append(found.value)
            case 1:
                if core not in KINDS:
                    cursor.begin = at
                    cursor.fail("an alias of what core instances do not export")
                self.core_alias(scope, core)
            case 2:
                self.outer_alias(scope, f"core {core}" if core else sort)
            case _:
                cursor.fail(f"unknown form {form:#x} of an alias")

    def core_alias(self, scope: _Scope, sort: str) -> None:
        exports: CoreExports = self.take(scope.core["instance"], "core instance")
        name = self.cursor.name()
        found: CoreItem | None
        if isinstance(exports, CoreInstance):
            found = CoreExport(exports, name, sort)
        else:
            found = exports.get(name)
            if found is None or _kind(found) != sort:
                self.cursor.fail(f"a core instance exports no {sort} named {name!r:.60}")
        scope.core[sort].append(found)

    def outer_alias(self, scope: _Scope, sort: str) -> None:
        cursor = self.cursor
        target: _Scope | None = scope
        for _ in cursor.items(cursor.index(NESTING_LIMIT + 1, "enclosing component")):
            target = target and target.outer
        if target is None:
            cursor.fail("an alias of an item outside of the component")
        if sort == "core type":
            cursor.number(32)
            return
        if sort not in ("type", "component", "core module"):
            cursor.fail(f"an outer alias of a {sort}")
        scope.space(sort).append(self.take(target.space(sort), sort))

    # Types

    def type(self, scope: _Scope) -> None:
        scope.spaces["type"].append(self.defined_type(scope))

    def made(
        self,
        kind: str,
        offset: int,
        inner: tuple[_Type | None, ...] = (),
        labels: tuple[str, ...] = (),
        unique: object = None,
    ) -> _Type:
        """Return a new type; the shape of one that is `unique` is that object's own."""
        shapes = tuple(one and one.shape for one in inner)
        key = (kind, shapes, labels, unique)
        depth = 1 + max((one.depth for one in inner if one is not None), default=0)
        if depth > wit.DEPTH_LIMIT:
            self.cursor.begin = offset
            self.cursor.fail(f"a type is nested more than {wit.DEPTH_LIMIT} deep")
        shape = self.shapes.setdefault(key, len(self.shapes))
        return _Type(kind, shape, offset, depth, labels, inner)

    def value_type(self, scope: _Scope) -> _Type:
        cursor = self.cursor
        at = cursor.at
        number = cursor.number(33, signed=True)
        if number >= 0:
            cursor.at = at
            found = self.type_index(scope)
            if found.plain.kind in _NO_VALUES:
                cursor.fail(f"a {found.plain.kind} where the type of a value is due")
            return found
        return self.primitive(number & 0x7F, at)

    def primitive(self, byte: int, at: int) -> _Type:
        if byte in _PRIMITIVES:
            return self.made(_PRIMITIVES[byte], at)
        if byte == _ERROR_CONTEXT:
            return self.made("error-context", at)
        return self.cursor.fail(f"unknown type {byte:#x}")

    def optional_type(self, scope: _Scope) -> _Type | None:
        if (mark := self.cursor.byte()) > 1:
            self.cursor.fail(f"unknown mark {mark:#x} of an optional type")
        return self.value_type(scope) if mark else None

    def labels(self) -> tuple[str, ...]:
        count = self.cursor.count()
        self.cursor.spend(count)
        return tuple(self.cursor.name() for _ in range(count))

    def labelled(
        self, read_one: Callable[[], _Type | None]
    ) -> tuple[tuple[str, ...], tuple[_Type | None, ...]]:
        count = self.cursor.count(2)
        self.cursor.spend(count)
        pairs = [(self.cursor.name(), read_one()) for _ in range(count)]
        return tuple(name for name, _ in pairs), tuple(one for _, one in pairs)

    def defined_type(self, scope: _Scope) -> _Type:
        cursor = self.cursor
        at = cursor.at
        byte = cursor.byte()
        if byte in (0x40, 0x43):
            return self.function_type(scope, at, asynchronous=byte == 0x43)
        if byte in (0x41, 0x42):
            return self.declared(scope, at, "component type" if byte == 0x41 else "instance type")
        if byte == 0x3F:
            return self.resource_type(scope, at)
        labels: tuple[str, ...] = ()
        inner: tuple[_Type | None, ...] = ()
        match byte:
            case 0x72:
                kind = "record"
                labels, inner = self.labelled(lambda: self.value_type(scope))
            case 0x71:
                kind = "variant"
                labels, inner = self.labelled(lambda: self.case(scope))
            case 0x6F:
                kind = "tuple"
                count = cursor.count()
                cursor.spend(count)
                inner = tuple(self.value_type(scope) for _ in range(count))
            case 0x6E | 0x6D:
                kind = "flags" if byte == 0x6E else "enum"
                labels = self.labels()
            case 0x70 | 0x6B:
                kind = "list" if byte == 0x70 else "option"
                inner = (self.value_type(scope),)
            case 0x6A:
                kind = "result"
                inner = (self.optional_type(scope), self.optional_type(scope))
            case 0x69 | 0x68:
                kind = "own" if byte == 0x69 else "borrow"
                inner = (self.type_index(scope, "resource"),)
            case 0x66 | 0x65:
                kind = "stream" if byte == 0x66 else "future"
                inner = (self.optional_type(scope),)
            case 0x67:
                inner = (self.value_type(scope),)
                kind, labels = "list of fixed length", (str(cursor.number(32)),)
            case 0x63:
                kind, inner = "map", (self.value_type(scope), self.value_type(scope))
            case _:
                return self.primitive(byte, at)
        return self.made(kind, at, inner, labels)

    def case(self, scope: _Scope) -> _Type | None:
        found = self.optional_type(scope)
        if self.cursor.byte():
            self.cursor.fail("a case that refines another one")
        return found

    def function_type(self, scope: _Scope, at: int, *, asynchronous: bool) -> _Type:
        labels, inner = self.labelled(lambda: self.value_type(scope))
        kind = "async func" if asynchronous else "func"
        return self.made(kind, at, (*inner, self.result(scope)), labels)

    def result(self, scope: _Scope) -> _Type | None:
        cursor = self.cursor
        form = cursor.byte()
        if form == 0:
            return self.value_type(scope)
        if form != 1:
            cursor.fail(f"unknown form {form:#x} of a result")
        if cursor.byte():
            self.refuse("several results of one function")
        return None

    def resource_type(self, scope: _Scope, at: int) -> _Type:
        cursor = self.cursor
        if scope.is_type:
            cursor.fail("a resource that is defined in a type")
        if cursor.byte() != 0x7F:
            cursor.fail("a resource that is not represented by an i32")
        if (mark := cursor.byte()) > 1:
            cursor.fail(f"unknown mark {mark:#x} of a destructor")
        destructor = self.core_item(scope, "func") if mark else None
        found = self.made("resource", at, unique=object())
        found.resource = Resource(destructor=destructor)
        self.resources.append(found.resource)
        return found

    def declared(self, scope: _Scope, at: int, kind: str) -> _Type:
        """Read the type of a component or of an instance."""
        cursor = self.cursor
        inner = self.deeper(scope, is_type=True)
        for _ in cursor.items(cursor.count(2)):
            self.item()
            form = cursor.byte()
            match form:
                case 0:
                    self.refuse("core types in the type of a component or an instance")
                case 1:
                    self.type(inner)
                case 2:
                    self.alias(inner)
                case 3 if kind == "component type":
                    self.declared_extern(inner, inner.imports)
                case 4:
                    name, extern = self.declared_extern(inner, inner.exports)
                    inner.exports[name] = extern
                case _:
                    cursor.fail(f"unknown declaration {form:#x} in a {kind}")
        found = self.made(kind, at, unique=object())
        found.exports = inner.exports
        return found

    def declared_extern(
        self, scope: _Scope, names: set[str] | dict[str, _Extern]
    ) -> tuple[str, _Extern]:
        name = self.extern_name()
        self.unique(name, names)
        if isinstance(names, set):
            names.add(name)
        extern = self.extern_type(scope, name)
        value = extern.value
        if extern.sort == "instance":
            value = _Instance(value.plain.exports)  # for aliases of what is in it
        scope.space(extern.sort).append(value)
        return name, extern

    def extern_type(self, scope: _Scope, name: str) -> _Extern:
        """Read the type of an import or export; of a type, it is the type itself."""
        cursor = self.cursor
        form = cursor.byte()
        match form:
            case 0:
                if cursor.byte() != 0x11:
                    cursor.fail("the type of a core item that is no module")
                cursor.number(32)
                return _Extern("core module", None)
            case 1:
                return _Extern("func", self.type_index(scope, "func", "async func"))
            case 2:
                return self.refuse("values")
            case 3:
                if (bound := cursor.byte()) > 1:
                    cursor.fail(f"unknown bound {bound:#x} of a type")
                if bound == 0:
                    return _Extern("type", self.label(name, self.type_index(scope)))
                return _Extern("type", self.made("resource", cursor.begin, unique=object()))
            case 4:
                return _Extern("component", self.type_index(scope, "component type"))
            case 5:
                return _Extern("instance", self.type_index(scope, "instance type"))
            case _:
                return cursor.fail(f"unknown extern type {form:#x}")

    def label(self, name: str, given: _Type) -> _Type:
        """Return a type with a name; one that has a name, or needs none, as it is."""
        if given.label or given.kind not in _NAMED:
            return given
        found = _Type(given.kind, given.shape, given.offset, given.depth, label=name, named=given)
        if given.named is None:
            given.named = found
        return found

    def exported(self, name: str, sort: str, value: Any) -> _Extern:
        return _Extern(sort, self.label(name, value) if sort == "type" else value)

    # Imports and exports

    def import_(self, scope: _Scope) -> None:
        cursor = self.cursor
        at, name = cursor.at, self.extern_name()
        self.unique(name, scope.imports)
        scope.imports.add(name)
        wanted = self.extern_type(scope, name)
        if scope.args is None:
            found = self.from_host(name, wanted, at)
        else:
            given = scope.args.get(name)
            if given is None or given.sort != wanted.sort:
                cursor.fail(f"a component is instantiated without the {wanted.sort} {name!r:.60}")
            found = given
            self.check_shape(name, wanted, found.value)
        scope.space(wanted.sort).append(found.value)

    def check_shape(self, name: str, wanted: _Extern, given: Any) -> None:
        """Refuse a function or type that differs from the declared one."""
        actual: _Type | None = None
        if wanted.sort == "func":
            actual = given.type
        elif wanted.sort == "type":
            actual = given
            if wanted.value.kind == "resource" and given.plain.kind == "resource":
                return  # any resource will do; it takes the place of the declared one
        if actual is not None and actual.shape != wanted.value.shape:
            self.cursor.fail(f"{name!r:.60} is of another type than is declared")

    def from_host(self, name: str, wanted: _Extern, at: int) -> _Extern:
        """Return what the outermost component imports."""
        match wanted.sort:
            case "func":
                return _Extern("func", self.imported("", name, wanted.value, at))
            case "type":
                self.own(wanted.value, "", name)
                return wanted
            case "instance":
                return _Extern("instance", self.imported_instance(name, wanted.value, at))
            case _:
                return self.refuse(f"an import of a {wanted.sort}")

    def imported_instance(self, interface: str, declared: _Type, at: int) -> _Instance:
        exports = declared.plain.exports
        self.cursor.spend(len(exports))
        self.converted.clear()
        for name, one in exports.items():
            if one.sort == "type":
                self.own(one.value, interface, name)
        found: dict[str, _Extern] = {}
        for name, one in exports.items():
            match one.sort:
                case "type":
                    found[name] = one
                case "func":
                    imported = self.imported(interface, name, one.value, at)
                    found[name] = _Extern("func", imported)
                case _:
                    article = "an" if one.sort == "instance" else "a"
                    self.refuse(f"an import of {article} {one.sort} in an interface")
        return _Instance(found)

    def own(self, given: _Type, interface: str, name: str) -> None:
        """Note the interface that gives a type its name, and make an imported resource one."""
        if given.label and given.home is None:
            given.home = interface
        if given.kind == "resource" and given.resource is None:
            given.resource = Resource(name, interface, imported=True)
            self.resources.append(given.resource)

    def imported(self, interface: str, name: str, type_: _Type, at: int) -> _Function:
        function = ImportedFunction(interface, name, self.function(type_), at)
        self.imports.append(function)
        return _Function(function, type_)

    def export(self, scope: _Scope) -> None:
        cursor = self.cursor
        name, sort = self.extern_name(), self.sort()
        value = self.take(scope.space(sort), sort)
        if (mark := cursor.byte()) > 1:
            cursor.fail(f"unknown mark {mark:#x} of the type of an export")
        if mark:
            wanted = self.extern_type(scope, name)
            if wanted.sort != sort:
                cursor.fail(f"a {sort} exported as a {wanted.sort}")
            self.check_shape(name, wanted, value)
            if sort == "func":
                value = _Function(value.function, wanted.value)
        self.unique(name, scope.exports)
        found = scope.exports[name] = self.exported(name, sort, value)
        scope.space(sort).append(found.value)

    def exports(self, scope: _Scope) -> tuple[ExportedFunction, ...]:
        """Return the functions that the outermost component exports."""
        found: list[tuple[str, str, _Function]] = []
        for name, one in scope.exports.items():
            if one.sort == "func":
                found.append(("", name, one.value))
            elif one.sort == "type":
                self.own(one.value, "", name)
            elif one.sort == "instance":
                self.cursor.spend(len(one.value.exports))
                for inner, item in one.value.exports.items():
                    if item.sort == "func":
                        found.append((name, inner, item.value))
                    elif item.sort == "type":
                        self.own(item.value, name, inner)
        self.converted.clear()
        return tuple(
            ExportedFunction(interface, name, one.function, self.function(one.type))
            for interface, name, one in found
        )

    # Canonical definitions

    def canon(self, scope: _Scope) -> None:
        cursor = self.cursor
        at = cursor.at
        form = cursor.byte()
        if form in (0, 1):
            if cursor.byte():
                cursor.fail("a canonical definition of what is no function")
            self.lift(scope, at) if form == 0 else self.lower(scope, at)
            return
        made: BuiltIn
        if form in _RESOURCE_BUILT_INS:
            resource = self.type_index(scope, "resource").plain.resource
            if resource is None:
                cursor.fail("a resource that nobody defines")
            made = BuiltIn(_RESOURCE_BUILT_INS[form], resource, at)
        elif form in (7, 0x26) or form not in _BUILT_INS:
            cursor.fail(f"unknown canonical definition {form:#x}")
        else:
            name, operands = _BUILT_INS[form]
            for operand in operands:
                match operand:
                    case "t":
                        self.type_index(scope)
                    case "u":
                        cursor.number(32)
                    case "b":
                        cursor.byte()
                    case "o":
                        self.options(scope)
                    case _:
                        self.result(scope)
            made = BuiltIn(name, None, at)
        scope.core["func"].append(made)

    def lift(self, scope: _Scope, at: int) -> None:
        core = self.core_export(scope, "func")
        options, asynchronous = self.options(scope)
        type_ = self.type_index(scope, "func", "async func")
        found = self.function(type_)
        if asynchronous:
            found = Unsupported(what="the asynchronous ABI", offset=at)
        lifted = Lifted(found, core, options, at)
        scope.spaces["func"].append(_Function(lifted, type_))

    def lower(self, scope: _Scope, at: int) -> None:
        function: _Function = self.take(scope.spaces["func"], "function")
        options, asynchronous = self.options(scope)
        lowered = Lowered(function.function, options, at, asynchronous)
        scope.core["func"].append(lowered)

    def options(self, scope: _Scope) -> tuple[Options, bool]:
        """Return the canonical options, and whether they are of the asynchronous ABI."""
        cursor = self.cursor
        found: dict[str, Any] = {}
        for _ in cursor.items(cursor.count()):
            option = cursor.byte()
            name = ""
            value: object = None
            match option:
                case 0 | 1 | 2:
                    name, value = "encoding", _ENCODINGS[option]
                case 3:
                    name, value = "memory", self.core_export(scope, "memory")
                case 4:
                    name, value = "realloc", self.core_export(scope, "func")
                case 5:
                    name, value = "post_return", self.core_export(scope, "func")
                case 6:
                    name, value = "async", True
                case 7:
                    name, value = "callback", self.core_item(scope, "func")
                case _:
                    cursor.fail(f"unknown canonical option {option:#x}")
            self.unique(name, found)
            found[name] = value
        asynchronous = bool(found.pop("async", False)) | (found.pop("callback", None) is not None)
        return Options(**found), asynchronous

    # Types of WIT

    def function(self, given: _Type) -> wit.Function | Unsupported:
        """Return the type of a function, or what of it is not supported."""
        plain = given.plain
        if plain.kind != "func":
            return Unsupported(what="an async function", offset=plain.offset)
        *params, result = plain.inner
        try:
            return wit.Function(
                tuple(
                    (label, self.convert(one))
                    for label, one in zip(plain.labels, params, strict=True)
                    if one is not None
                ),
                None if result is None else self.convert(result),
            )
        except _UnsupportedError as error:
            return error.unsupported
        except ValueError as error:
            return Unsupported(what=str(error), offset=plain.offset)

    def convert(self, given: _Type) -> wit.Type:
        """Return a type of WIT.

        Raises:
            _UnsupportedError: it is not supported.
            ValueError: it can't be one, or is too large.
        """
        found = self.converted.get(given)
        if found is None:
            self.cursor.spend(1)
            found = self.converted[given] = self.new_type(given)
        return found

    def new_type(self, given: _Type) -> wit.Type:
        plain = given.plain
        if plain.kind in wit.PRIMITIVES:
            return wit.PRIMITIVES[plain.kind]
        if plain.kind in _UNSUPPORTED:
            raise _UnsupportedError(_UNSUPPORTED[plain.kind], plain.offset)
        if plain.kind in _HANDLES:
            (resource,) = plain.inner
            assert resource is not None
            return wit.Handle(wit.Resource(*_name(resource)), owned=plain.kind == "own")
        label, home = _name(given)
        inner = tuple(None if one is None else self.convert(one) for one in plain.inner)
        whole = tuple(one for one in inner if one is not None)
        match plain.kind:
            case "record":
                return wit.Record(tuple(zip(plain.labels, whole, strict=True)), label, home)
            case "variant":
                return wit.Variant(tuple(zip(plain.labels, inner, strict=True)), label, home)
            case "enum":
                return wit.Enum(plain.labels, label, home)
            case "flags":
                return wit.Flags(plain.labels, label, home)
            case "tuple":
                return wit.Tuple(whole)
            case "list":
                return wit.List(*whole)
            case "option":
                return wit.Option(*whole)
            case _:
                return wit.Result(*inner)


class _UnsupportedError(Exception):
    """A type uses something that is not supported."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what, offset)
        self.unsupported = Unsupported(what=what, offset=offset)


def _name(given: _Type) -> tuple[str, str]:
    """Return the name of a type, and the interface that gives it; empty if there is none."""
    plain = given.plain
    if plain.resource is not None and plain.resource.imported:
        return plain.resource.name, plain.resource.home
    named = given if given.label else plain.named
    return ("", "") if named is None else (named.label, named.home or "")


# Kinds of types that get a name where they are imported or exported.
_NAMED: Final = frozenset(("record", "variant", "enum", "flags", "resource"))
_HANDLES: Final = frozenset(("own", "borrow"))
_NO_VALUES: Final = frozenset(("func", "async func", "resource", "instance type", "component type"))
# {kind of a type that is not supported: what a message calls it}
_UNSUPPORTED: Final = {
    "stream": "a stream",
    "future": "a future",
    "error-context": "an error context",
    "list of fixed length": "a list of fixed length",
    "map": "a map",
}


def _kind(item: CoreItem) -> str:
    return item.kind if isinstance(item, CoreExport) else "func"
