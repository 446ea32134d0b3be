"""A component as values: its core modules, how they are linked, and the functions it exports.

`reader` makes them. The definitions of a component are evaluated statically, so nested components,
aliases and index spaces are gone: what is left is a list of core instances in the order in which
they are instantiated, and functions that refer to their exports.

Values with an identity are compared by it: two instances of one module are different.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, final

from attrs import field, frozen

from ...wit.types import Function
from ..types import MalformedModuleError

Encoding: TypeAlias = Literal["utf8", "utf16", "latin1+utf16"]
"""How strings are encoded in a memory."""
UTF8: Final = "utf8"


_ASYNC: Final = (
    r"(an? |the )?(async|stream|future|error.context|subtask|waitable|backpressure|"
    r"(task|context|thread)\.)"
)
# (regular expression for what is not supported, what to do)
_REMEDIES: Final = (
    (
        _ASYNC,
        "build it for synchronous exports",
    ),
    ("(a )?(list of fixed|map)", "take and return a list, or a list of tuples"),
    (".* call each other", "link their core modules before"),
)


def remedy(what: str) -> str:
    """Return what to do in place of something that is not supported, behind a colon; or nothing."""
    if what.startswith("the import "):  # its name may be any
        what = what.rpartition(" with ")[2]
    return next((f": {how}" for known, how in _REMEDIES if re.match(known, what)), "")


class UnsupportedComponentError(MalformedModuleError):
    """The component may be valid elsewhere, but uses something that is not supported here."""

    def __init__(self, feature: str, offset: int) -> None:
        super().__init__(
            f"the component uses {feature}, which is not supported{remedy(feature)}", offset
        )
        self.args = (feature, offset)  # the arguments with which pickle calls the class
        self.feature = feature


@final
@frozen(eq=False)
class CoreModule:
    """A core module inside the bytes of a component: ``wasm[start:end]``."""

    number: int
    """Position in `Component.modules`."""
    start: int
    end: int


@final
@frozen(eq=False)
class CoreInstance:
    """A core module that is instantiated."""

    number: int
    """Position in `Component.instances`, which is the order of instantiation."""
    module: CoreModule
    args: Mapping[str, CoreInstance | Mapping[str, CoreItem]] = field(repr=False)
    """{module name of imports: instance whose exports they are, or {name: item}}"""

    def source(self, module: str, name: str, kind: str) -> CoreItem | None:
        """Return what an import of the module is linked with; None if there is nothing.

        Args:
            module: module name of the import.
            name: its name.
            kind: its kind, as in `types.KINDS`.
        """
        given = self.args.get(module)
        if given is None:
            return None
        if isinstance(given, CoreInstance):
            return CoreExport(given, name, kind)
        return given.get(name)


@final
@frozen
class CoreExport:
    """An export of a core instance. Whether the instance has it is not checked by the reader."""

    instance: CoreInstance
    name: str
    kind: str
    """One of `types.KINDS`."""


@final
@frozen(eq=False)
class Resource:
    """A resource type: of the component itself, or imported."""

    name: str = ""
    """Its name in `home`; empty if it has none."""
    home: str = ""
    """Interface that exports or imports it."""
    imported: bool = False
    destructor: CoreItem | None = field(default=None, repr=False)
    """Called with the representation when an owned handle is dropped."""


@final
@frozen
class Options:
    """How the values of a function cross: the canonical options."""

    encoding: Encoding = UTF8
    memory: CoreExport | None = None
    realloc: CoreExport | None = None
    """Function that allocates in the memory."""
    post_return: CoreExport | None = None
    """Function that is called with the results of a function once they are read."""


@final
@frozen(kw_only=True)
class Unsupported:
    """The type of a function that can't be used here."""

    what: str
    """What it uses, as a noun, such as ``"a stream"``."""
    offset: int


@final
@frozen(eq=False)
class ImportedFunction:
    """A function that the component imports."""

    interface: str
    """Name of the interface, as ``demo:kv/store@0.1.0``; empty for a function of the world."""
    name: str
    type: Function | Unsupported
    offset: int
    """Position of the import in the bytes."""


@final
@frozen(eq=False)
class Lifted:
    """A core function with a type: ``canon lift``."""

    type: Function | Unsupported
    core: CoreExport
    options: Options
    offset: int


@final
@frozen(eq=False)
class Lowered:
    """A core function that calls a function: ``canon lower``."""

    function: ImportedFunction | Lifted
    """`Lifted`: components inside this one call each other."""
    options: Options
    offset: int
    asynchronous: bool = False
    """Whether it is of the asynchronous ABI, which is not supported."""


@final
@frozen(eq=False)
class BuiltIn:
    """A core function that the host provides to work with handles."""

    name: str
    """Such as ``"resource.drop"``."""
    resource: Resource | None
    """The resource, for ``resource.new``, ``resource.drop`` and ``resource.rep``."""
    offset: int

    @property
    def supported(self) -> bool:
        """Whether it is not one of the asynchronous ABI."""
        return self.resource is not None


CoreItem: TypeAlias = CoreExport | Lowered | BuiltIn
"""What an import of a core module may be linked with."""


@final
@frozen
class ExportedFunction:
    """A function that the component exports."""

    interface: str
    """Name of the interface, as ``demo:shapes/funcs@0.1.0``; empty for a function of the world."""
    name: str
    """Its name in the interface, as ``area``."""
    function: Lifted | ImportedFunction
    """`ImportedFunction`: the component exports what it imports."""
    type: Function | Unsupported
    """Its type, with the names that the interface gives."""

    @property
    def export(self) -> str:
        """Its name in the component: ``demo:shapes/funcs@0.1.0#area``, or ``area``."""
        return f"{self.interface}#{self.name}" if self.interface else self.name


@final
@frozen(eq=False, kw_only=True)
class Component:
    """A component, taken apart."""

    modules: tuple[CoreModule, ...]
    """Core modules that are instantiated or were defined, in the order of the bytes."""
    instances: tuple[CoreInstance, ...]
    """Core instances, in the order of instantiation. Each imports from earlier ones only."""
    exports: tuple[ExportedFunction, ...]
    """Exported functions, in order."""
    imports: tuple[ImportedFunction, ...]
    """Imported functions, in order: also those that no core module uses."""
    resources: tuple[Resource, ...] = ()
    """Resource types, imported ones first."""
    producers: tuple[tuple[str, str, str], ...] = ()
    """Field, name and version of each tool that is listed in the section `producers`."""
