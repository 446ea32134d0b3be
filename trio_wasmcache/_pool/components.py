"""Takes a component apart for `register`: its core module, and the functions that it offers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

from attrs import define, evolve, field, frozen

from .._abi.canonical import CanonicalAbi, Lifted as LiftedAbi
from .._core.errors import (
    DuplicateFunctionError,
    ExportError,
    InvalidModuleError,
    ModuleTooLargeError,
    SignatureError,
)
from .._core.keys import MAX_NAME_LENGTH, normalise_type
from .._core.text import cut, printable
from .._core.wasm.admission import signature
from .._core.wasm.component.exports import ExportMatchError, find_export, find_interface
from .._core.wasm.component.linking import Locate, link_instances
from .._core.wasm.component.lowering import (
    BATCHES,
    CALL,
    GUEST,
    HOST,
    NEXT,
    REALLOC,
    REALLOC_TYPE,
    RUN,
    LoweredFunction,
    lowered_function,
)
from .._core.wasm.component.reader import read_component
from .._core.wasm.component.types import (
    BuiltIn,
    Component,
    CoreExport,
    ExportedFunction,
    ImportedFunction,
    Lifted,
    Lowered,
    Resource,
    Unsupported,
    UnsupportedComponentError,
    remedy,
)
from .._core.wasm.custom import custom_size, find_custom_sections
from .._core.wasm.editor import encode_module
from .._core.wasm.graph import FromHost, FromPart, ImportName, Layer, Part, Source
from .._core.wasm.reader import ExcessiveModuleError, MalformedModuleError, read_module
from .._core.wasm.types import Export, FuncType, Import
from .._core.wit.text import function_text, parts_of, type_text
from .._core.wit.types import Function, Handle, Option, Type, Unsupported as UnsupportedType
from .._runtime.wit_host import DROP_TYPE

# Characters of the types of a function in keys and in the log; a component may have any names.
MAX_TYPES: Final = 2000
# Functions that are registered at once; each takes 0.3 ms of the loop.
MAX_FUNCTIONS: Final = 1000
# Characters of a name in a message.
MAX_SHOWN: Final = 300
# Functions that are left out, of which a message says why.
MAX_REASONS: Final = 3
MEMORY: Final = "memory"


@final
@frozen(eq=False)
class Offered:
    """A function that a component offers."""

    export: str
    """Its name in the component, as ``demo:shapes/funcs@0.1.0#area``."""
    core: str
    """Name of the core function, among the exports of the core module."""
    type: Function
    args: tuple[str, ...] = field(init=False)
    """Types of its parameters, as they are in keys."""

    @args.default
    def _find_args(self) -> tuple[str, ...]:
        return tuple(normalise_type(type_text(one)) for _, one in self.type.params)

    @property
    def name(self) -> str:
        """Its name without that of its interface."""
        return self.export.rpartition("#")[2]

    @property
    def interface(self) -> str:
        """Name of its interface; empty if it is one of the world."""
        return self.export.rpartition("#")[0]

    @property
    def returns(self) -> str | None:
        """Type of its result, as it is in the log."""
        result = self.type.result
        return None if result is None else normalise_type(type_text(result))

    @property
    def takes_none(self) -> tuple[bool, ...] | None:
        """Whether None is a value of each parameter; None: of no one."""
        found = tuple(isinstance(one, Option) for _, one in self.type.params)
        return found if any(found) else None

    @property
    def wit(self) -> str:
        """Its name and its type, as WIT writes them."""
        return f"{self.name}: {function_text(self.type)}"


@final
@frozen(eq=False)
class Taken:
    """What a component comes to: a core module, and the functions that it offers."""

    digest: bytes = field(repr=False)
    """SHA-256 of the component."""
    offset: int | None
    """Position of the core module in the component; None: it is generated."""
    layer: Layer | None = field(repr=False)
    """Core instances of the component, if there are several: the module is the one in front."""
    abi: CanonicalAbi
    """How values cross; the same for all functions."""
    functions: Mapping[str, Offered] = field(repr=False)
    """{name in the component: function}"""
    refused: Mapping[str, str] = field(repr=False)
    """{name in the component: why the function can't be used}"""

    def find(self, what: str, wanted: str) -> Offered:
        """Return the function that is meant by a name.

        Args:
            what: the function's name, for messages.
            wanted: its name in the component, of which parts may be left out.

        Raises:
            ExportError: none is meant, or several are.
            SignatureError: the function can't be used.
        """
        if (known := self.functions.get(wanted)) is not None:
            return known
        try:
            name = find_export((*self.functions, *self.refused), wanted)
        except ExportMatchError as error:
            raise ExportError(f"{what}: the component can't be used so: {error}") from None
        if name in self.refused:
            raise SignatureError(f"{what}: {printable(name, MAX_SHOWN)} {self.refused[name]}")
        return self.functions[name]

    def of_interface(self, what: str, wanted: str | None) -> tuple[Offered, ...]:
        """Return the functions of an interface that can be used; of all if that is None.

        Raises:
            DuplicateFunctionError: two of them have the same name and types.
            ExportError: no interface is meant, or several are; or it has no such function.
        """
        found = tuple(self.functions.values())
        if wanted is not None:
            names = (name.rpartition("#")[0] for name in (*self.functions, *self.refused))
            try:
                wanted = find_interface(filter(None, names), wanted)
            except ExportMatchError as error:
                raise ExportError(f"{what}: the component can't be used so: {error}") from None
            found = tuple(one for one in found if one.interface == wanted)
        if not found:
            raise ExportError(
                f"{what}: the component exports no function that can be used"
                + ("" if (why := self.left_out(wanted)) is None else f": {why}")
            )
        if len(found) > MAX_FUNCTIONS:
            raise ExportError(
                f"{what}: the component exports {len(found)} functions, more than the "
                f"{MAX_FUNCTIONS} that can be registered at once: give an interface, or register() "
                "those that are needed"
            )
        _check_names(what, found)
        for one in found:
            if len(one.name) > MAX_NAME_LENGTH:
                raise ExportError(
                    f"{what}: the name of the function {printable(one.name, MAX_SHOWN)} has more "
                    f"than {MAX_NAME_LENGTH} characters: register() it under another one, with "
                    "export="
                )
        return found

    def left_out(self, interface: str | None) -> str | None:
        """Return the functions of an interface that can't be used, and why; None: there are none.

        Args:
            interface: name of the interface; None: all.
        """
        refused = [
            name
            for name in self.refused
            if interface is None or name.rpartition("#")[0] == interface
        ]
        reasons = [
            f"{printable(name, MAX_SHOWN)} {self.refused[name]}" for name in refused[:MAX_REASONS]
        ]
        if (more := len(refused) - len(reasons)) > 0:
            reasons.append(f"`python -m trio_wasmcache inspect` says why of {more:,} more")
        return "; ".join(reasons) or None


def _check_names(what: str, functions: Sequence[Offered]) -> None:
    """Raise `DuplicateFunctionError` if two functions have the same name and types."""
    known: dict[tuple[str, tuple[str, ...]], Offered] = {}
    for one in functions:
        other = known.setdefault((one.name, one.args), one)
        if other is not one:
            first, second = (printable(each.export, MAX_SHOWN) for each in (other, one))
            interface = other.interface or one.interface
            raise DuplicateFunctionError(
                f"{what}: {first} and {second} have the same name and types: register one interface"
                f" at a time, such as interface={cut(interface, MAX_SHOWN)!r}, each with a "
                "prefix= of its own"
            )


def take_apart(
    what: str, wasm: bytes, limit: int, breathe: Callable[[], object]
) -> tuple[bytes, Taken]:
    """Return the core module of a component, and what it offers. Blocks: for threads.

    Args:
        what: the function's name, for messages.
        wasm: the component.
        limit: `max_wasm_size` (bytes).
        breathe: called every now and then, so that the thread lets others run.

    Raises:
        InvalidModuleError: it is damaged, or uses something that is not supported.
        ModuleTooLargeError: it has too much of something.
    """
    try:
        component = read_component(wasm, breathe)
        _check_size(what, wasm, component, limit)
        memory = _memory_of(component)
        refused: dict[str, str] = {}
        for one in component.exports:
            breathe()
            if (reason := _reason(one, memory)) is not None:
                refused[one.export] = reason
        usable = [one for one in component.exports if one.export not in refused]
        core, names, layer, offset = _core(component, wasm, usable, breathe)
    except MalformedModuleError as error:
        raise InvalidModuleError(f"{what}: {error}") from None
    except ExcessiveModuleError as error:
        raise ModuleTooLargeError(f"{what}: {error}") from None
    functions: dict[str, Offered] = {}
    lifted: dict[str, LiftedAbi] = {}
    for one in usable:
        breathe()
        assert isinstance(one.function, Lifted)
        assert isinstance(one.type, Function)
        options, name = one.function.options, names[one.function.core]
        crossing = LiftedAbi(
            name,
            one.type,
            None if options.realloc is None else names[options.realloc],
            None if options.post_return is None else names[options.post_return],
        )
        if lifted.setdefault(name, crossing) != crossing:
            refused[one.export] = (
                "is the same core function as another one, with another type, which is not "
                "supported: export a core function for each"
            )
            continue
        functions[one.export] = Offered(one.export, name, one.type)
    taken = Taken(
        hashlib.sha256(wasm).digest(),
        offset,
        layer,
        CanonicalAbi(tuple(lifted.values())),
        functions,
        refused,
    )
    return core, taken


def _needs(one: ExportedFunction) -> list[CoreExport]:
    """Return the exports of core instances that calls of a function need."""
    if not isinstance(one.function, Lifted):
        return []
    options = one.function.options
    exports = (one.function.core, options.memory, options.realloc, options.post_return)
    return [item for item in exports if item is not None]


def _core(
    component: Component,
    wasm: bytes,
    usable: Sequence[ExportedFunction],
    breathe: Callable[[], object],
) -> tuple[bytes, Mapping[CoreExport, str], Layer | None, int | None]:
    """Return the core module, names of its exports, what is behind it, and its position.

    Raises:
        UnsupportedComponentError: it imports functions.
        MalformedModuleError: a core module is damaged.
        ExcessiveModuleError: a core module has too much of something.
    """
    needed = [item for one in usable for item in _needs(one)]
    if len(component.instances) == 1 and not component.instances[0].args:
        module = component.instances[0].module
        names = {item: item.name for item in needed}
        return wasm[module.start : module.end], names, None, module.start
    supply = _Supply()
    linked = link_instances(component, wasm, needed, supply, breathe)
    layer = evolve(linked.layer, hosts=tuple(supply.hosts), memories=supply.memories)
    return linked.front, linked.names, layer, None


@final
@frozen
class Needed:
    """A host function that a component needs."""

    function: LoweredFunction | None
    """Function that it imports; None: a host function of its adapters."""
    batches: bool = False
    """Whether it is `BATCHES` of its adapters, and not `NEXT`."""
    resource: Resource | None = None
    """Resource whose handles it drops."""
    signature: str = ""
    """Type of the function, as WIT writes it."""
    handles: bool = False
    """Whether it takes or returns handles."""

    @property
    def what(self) -> str:
        """Name of the function for messages."""
        if self.function is not None:
            return printable(self.function.what, MAX_SHOWN)
        return "allocated" if self.resource is None else f"resource.drop {self.resource.name}"


@final
@define(eq=False)
class _Supply:
    """Provides what core modules import that is no export of a core module."""

    hosts: list[Needed] = field(factory=list)
    memories: dict[int, str] = field(factory=dict)
    """{position of a host function: part whose memory it uses}"""
    _adapters: dict[str, tuple[int, int]] = field(factory=dict)
    """{part: host functions of the adapters with its memory}"""
    _parts: int = 0

    def __call__(
        self, item: Lowered | BuiltIn, wanted: FuncType, locate: Locate
    ) -> tuple[tuple[Part, ...], Source]:
        """Return what an import is linked with; see `Supply`."""
        if isinstance(item, BuiltIn):
            return (), self._built_in(item, wanted)
        if isinstance(item.function, Lifted):
            what = "functions of components inside it that call each other"
            raise UnsupportedComponentError(what, item.offset)
        function, kind = item.function, item.function.type
        name = f"{function.interface}#{function.name}" if function.interface else function.name
        name = printable(name, MAX_SHOWN)
        if isinstance(kind, Unsupported) or item.asynchronous:
            what = kind.what if isinstance(kind, Unsupported) else "the asynchronous ABI"
            raise UnsupportedComponentError(f"the import {name} with {what}", item.offset)
        lowered = lowered_function(function.interface, function.name, kind)
        options = item.options
        if options.encoding != "utf8":
            raise UnsupportedComponentError(
                f"strings encoded as {options.encoding} for the import {name}", item.offset
            )
        if wanted != lowered.core:
            raise MalformedModuleError(
                f"the import {name} as {signature(wanted)}, and not {signature(lowered.core)}",
                item.offset,
            )
        parts: list[Part] = []
        handles = any(isinstance(part, Handle) for _, _, part in _all_parts(kind))
        index = self._add(Needed(lowered, signature=function_text(kind), handles=handles))
        if options.memory is not None:
            self.memories[index] = self._memory(options.memory, locate, parts)
        if not lowered.allocates:
            return tuple(parts), FromHost(index)
        if options.memory is None or options.realloc is None:
            raise MalformedModuleError(f"the import {name} without memory or realloc", item.offset)
        found, realloc = locate(options.realloc)
        if realloc != REALLOC_TYPE:
            raise MalformedModuleError(f"realloc of the import {name} is no allocator", item.offset)
        following, batches = self._allocated(self.memories[index])
        wiring: dict[ImportName, Source] = {
            (HOST, CALL): FromHost(index),
            (HOST, NEXT): FromHost(following),
            (HOST, BATCHES): FromHost(batches),
            (GUEST, REALLOC): found,
        }
        part = self._part(lowered.adapter(), wiring)
        parts.append(part)
        return tuple(parts), FromPart(part.name, RUN)

    def _allocated(self, memory: str) -> tuple[int, int]:
        """Return `NEXT` and `BATCHES`, which all adapters with the memory of a part share."""
        found = self._adapters.get(memory)
        if found is None:
            found = self._add(Needed(None)), self._add(Needed(None, batches=True))
            self._adapters[memory] = found
            self.memories.update(dict.fromkeys(found, memory))
        return found

    def _add(self, needed: Needed) -> int:
        self.hosts.append(needed)
        return len(self.hosts) - 1

    def _part(self, wasm: bytes, wiring: Mapping[ImportName, Source]) -> Part:
        self._parts += 1
        return Part(f"import {self._parts}", wasm, read_module(wasm), wiring)

    def _memory(self, memory: CoreExport, locate: Locate, parts: list[Part]) -> str:
        """Return the part whose memory, which is the one of its name or its only one, it is."""
        found, extern = locate(memory)
        if found.export == MEMORY:
            return found.part
        # A part that exports several memories has only one for host functions.
        wasm = encode_module(
            types=(),
            imports=[Import(GUEST, MEMORY, MEMORY, extern)],
            exports=[Export(MEMORY, MEMORY, 0)],
        )
        parts.append(self._part(wasm, {(GUEST, MEMORY): found}))
        return parts[-1].name

    def _built_in(self, item: BuiltIn, wanted: FuncType) -> Source:
        if item.name == "resource.drop" and item.resource is not None and item.resource.imported:
            if wanted != DROP_TYPE:
                raise MalformedModuleError(
                    f"{item.name} as {signature(wanted)}, and not {signature(DROP_TYPE)}",
                    item.offset,
                )
            return FromHost(self._add(Needed(None, resource=item.resource)))
        raise UnsupportedComponentError(item.name, item.offset)


def _check_size(what: str, wasm: bytes, component: Component, limit: int) -> None:
    """Raise `ModuleTooLargeError` if a component is too large without custom sections."""
    if len(wasm) <= limit:
        return
    size = len(wasm) - custom_size(find_custom_sections(wasm))
    for module in component.modules:
        size -= custom_size(find_custom_sections(wasm[module.start : module.end]))
    if size > limit:
        raise ModuleTooLargeError(
            f"{what}: the component has {size} bytes without its custom sections, max_wasm_size is "
            f"{limit}: raise it. Components with a language in them have some 10 to 20 MB "
            "(JavaScript, Python)"
        )


def _memory_of(component: Component) -> CoreExport | None:
    """Return the memory that functions use for values; None: they need none.

    Raises:
        MalformedModuleError: it exports no functions of its own.
    """
    lifted = [one.function for one in component.exports if isinstance(one.function, Lifted)]
    if not lifted:
        raise MalformedModuleError("a component that exports no functions of its own", 0)
    found = (one.options.memory for one in lifted)
    return next((memory for memory in found if memory is not None), None)


def _reason(one: ExportedFunction, memory: CoreExport | None) -> str | None:
    """Return why an exported function can't be used; None: it can."""
    kind, function = one.type, one.function
    if isinstance(function, ImportedFunction):
        return "is a function that the component imports, and has to be called where it is from"
    if isinstance(function.type, Unsupported) and not isinstance(kind, Unsupported):
        kind = function.type  # the asynchronous ABI of a function of any type
    if isinstance(kind, Unsupported):
        return (
            f"uses {kind.what}, at offset {kind.offset:#x}, which is not supported"
            f"{remedy(kind.what)}"
        )
    offset = f"(its `canon lift` is at offset {function.offset:#x})"
    for what, label, part in _all_parts(kind):
        if isinstance(part, Handle):
            resource = part.resource.name or "a resource"
            return (
                f"has a handle of the resource {resource} {what} {label}, and resources in "
                f"signatures are not supported: let it take and return values, such as "
                f"a record or list<u8> {offset}"
            )
        if isinstance(part, UnsupportedType):
            return f"uses {part.text}, which is not supported {offset}{remedy(part.text)}"
    options = function.options
    if options.encoding != "utf8":
        return (
            f"encodes strings as {options.encoding}, which is not supported: build it with "
            f"string-encoding=utf8 {offset}"
        )
    if options.memory not in (None, memory):
        return f"uses another memory than other functions, which is not supported {offset}"
    if sum(map(len, Offered(one.export, "", kind).args)) > MAX_TYPES:
        return f"has types of more than {MAX_TYPES} characters: give its records names"
    return None


def _all_parts(kind: Function) -> list[tuple[str, str, Type]]:
    """Return (as what, name of the parameter, type) of all that values of a function have."""
    found: list[tuple[str, str, Type]] = []
    seen: set[tuple[str, Type]] = set()

    def visit(what: str, label: str, one: Type) -> None:
        if (label, one) in seen:
            return
        seen.add((label, one))
        found.append((what, label, one))
        for inner in parts_of(one):
            visit(what, label, inner)

    for label, one in kind.params:
        visit("in its parameter", label, one)
    if kind.result is not None:
        visit("in", "its result", kind.result)
    return found
