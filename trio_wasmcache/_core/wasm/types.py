"""The declarations of a WebAssembly module as values; the format's numbers; the errors of a reader.

`reader` reads these values from bytes, `editor` writes them. Small ones are named tuples: importing
such a class takes a third of what one of `attrs` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import attrs

from ..._public import public

HEADER: Final = b"\0asm\x01\0\0\0"
USER: Final = ""
"""Name of the part of a graph that is the user's module; see `graph`."""
COMMAND: Final = "_start"
"""Export that runs a program from its beginning to its end."""
PAGE_LIMIT: Final = 65_536  # pages of 64 KiB: the range of 32-bit addresses
WIDE_PAGE_LIMIT: Final = 1 << 48  # likewise, of 64-bit addresses
ELEMENT_LIMIT: Final = (1 << 32) - 1  # elements of a table: likewise
WIDE_ELEMENT_LIMIT: Final = (1 << 64) - 1
# Parameters or results of one signature. It is wasmtime's own limit, and it bounds the cost of a
# hostile signature, which each function of that type adds again.
VALUE_LIMIT: Final = 1000
# {section id: items in it, at most}. For tables, memories and segments it is wasmtime's own limit;
# types, imports, globals and exports are kept as objects, and while there are millions, Python's
# garbage collector stops all threads for tenths of a second. `admission` has lower limits.
ITEM_LIMITS: Final = {
    1: 20_000,
    2: 10_000,
    6: 10_000,
    7: 60_000,
    13: 10_000,
    **dict.fromkeys((4, 5), 100),
    **dict.fromkeys((9, 11), 100_000),
}
ITEM_NAMES: Final = {
    1: "types",
    2: "imports",
    4: "tables",
    5: "memories",
    6: "globals",
    7: "exports",
    9: "element segments",
    11: "data segments",
    13: "tags",
}
SECTION_LIMIT: Final = 10_000  # sections, including custom ones
GROWTH_LIMIT: Final = 1000
"""Number of `memory.grow` instructions whose positions are kept; toolchains emit a few."""
BULK_LIMIT: Final = 10_000
"""Number of bulk instructions whose positions are kept; each takes a microsecond or two."""
TABLE_GROW: Final = 15
"""Second number of `table.grow`."""
SHORT: Final = 256
"""Largest constant length of a bulk instruction that is noted; it takes two bytes at most."""
HEIGHT_FROM: Final = 16 * 1024
"""Bytes of the smallest body of which the height is weighed; see `height`."""
HEIGHT_LIMIT: Final = 100_000_000
"""Weight of the heights of all functions of a module, at most: 2 seconds for the compiler."""
BOUNDED_FUEL: Final = 1000
"""Fuel that a call of a bounded function burns, at most; see `bounds`. It is some microseconds, and
up to one more for each page that is touched for the first time."""
# Section ids in their required order; 0, custom, may stand anywhere.
_ORDER: Final = (1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11)
SECTION_RANKS: Final = {section: rank for rank, section in enumerate(_ORDER)}
KINDS: Final = ("func", "table", "memory", "global", "tag")  # the position is the byte
REFERENCE_TYPES: Final = {  # {byte: name}
    0x70: "funcref",
    0x6F: "externref",
    0x69: "exnref",
    0x74: "nullexnref",
}
VALUE_TYPES: Final = REFERENCE_TYPES | dict(
    zip(range(0x7B, 0x80), ("v128", "f64", "f32", "i64", "i32"), strict=True)
)
NUMBER_TYPES: Final = ("i32", "i64", "f32", "f64")
"""The value types that cross between Python and wasm."""
OTHER_TYPES: Final = (
    *("v128", "funcref", "externref", "exnref", "anyref", "eqref", "i31ref", "structref"),
    *("arrayref", "contref", "nullref", "nullfuncref", "nullexternref", "nullexnref"),
    "nullcontref",
)
"""The other types, including those of proposals: they are known, but can't be declared."""
REFUSED_TYPES: Final = {  # {byte: its proposal}
    **dict.fromkeys((0x63, 0x64), "typed function references"),
    **dict.fromkeys((0x6A, 0x6B, 0x6C, 0x6D, 0x6E, 0x71, 0x72, 0x73), "gc types"),
    **dict.fromkeys((0x4E, 0x4F, 0x50, 0x5E, 0x5F), "gc types"),  # rec, sub, array, struct
    **dict.fromkeys((0x5D, 0x68, 0x75), "stack switching"),
}


class MalformedModuleError(ValueError):
    """The bytes are not a well-formed module; names the fault and its offset."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what, offset)
        self.what, self.offset = what, offset

    def __str__(self) -> str:
        return f"{self.what}, at offset {self.offset:#x}"


class UnsupportedFeatureError(MalformedModuleError):
    """The module may be valid elsewhere, but uses a `feature` that is switched off here."""

    def __init__(self, feature: str, offset: int) -> None:
        super().__init__(f"the module uses {feature}, which is switched off here", offset)
        self.args = (feature, offset)  # the arguments with which pickle calls the class
        self.feature = feature


class ForeignFormatError(MalformedModuleError):
    """The bytes are no core module but something else, which is `what`."""

    def __init__(self, what: str) -> None:
        super().__init__(what, 0)
        self.args = (what,)  # the argument with which pickle calls the class

    def __str__(self) -> str:
        return f"not a WebAssembly module but {self.what}"


class ExcessiveModuleError(ValueError):
    """The module may be well-formed, but has more of something than any useful module."""


@public
@attrs.frozen(cache_hash=True)
class FuncType:
    """The type of a wasm function."""

    params: tuple[str, ...] = ()
    """Value types of the parameters, such as ``("i32", "i64")``."""
    results: tuple[str, ...] = ()
    """Value types of the results."""

    def uncrossable(self) -> str | None:
        """Return the first type whose values can't cross between Python and wasm, or None."""
        types = (*self.params, *self.results)
        return next((name for name in types if name not in NUMBER_TYPES), None)


class Limits(NamedTuple):
    """Initial size and maximal size: pages of a memory, elements of a table."""

    minimum: int
    maximum: int | None = None
    wide: bool = False
    """Whether addresses or indexes have 64 bits: the memory64 proposal."""


class TableType(NamedTuple):
    """The type of a table's elements (such as ``funcref``), and their number."""

    element: str
    limits: Limits


class GlobalType(NamedTuple):
    """The type of a global, and whether it is mutable."""

    value_type: str
    mutable: bool


class TagType(NamedTuple):
    """The types of the values that an exception carries."""

    params: tuple[str, ...]


ExternType = FuncType | TableType | Limits | GlobalType | TagType  # in the order of KINDS


class Import(NamedTuple):
    """An import of the module; the class of `type` depends on the `kind`."""

    module: str
    name: str
    kind: str
    type: ExternType


@attrs.frozen(repr=False)  # a tuple has an `index` of its own
class Export:
    """An export of the module; `index` counts in the index space of its `kind`."""

    name: str
    kind: str
    index: int


class Section(NamedTuple):
    """The position of a section's payload: ``wasm[start:end]``, without its id and size."""

    id: int
    start: int
    end: int


class Growth(NamedTuple):
    """The position of a `memory.grow`, and of the function body that has it (offsets)."""

    size: int
    """Offset of the size of the body, which is before it."""
    body: int
    body_end: int
    at: int
    end: int
    memory: int
    """Index of the memory that is to grow."""


class Bulk(NamedTuple):
    """The position of a bulk instruction, as in `Growth`: `memory.init`, `copy` or `fill`, one of
    the same names of tables, or `table.grow`."""

    size: int
    body: int
    body_end: int
    at: int
    end: int
    code: bytes
    """The instruction itself, with its operands."""
    length: int | None = None
    """Its length, where the instruction before it is that constant, of `SHORT` at most."""


Instruction: TypeAlias = Growth | Bulk


@attrs.frozen(kw_only=True, repr=False)
class ModuleInfo:
    """The declarations of a module. Index spaces are complete: imported items come first."""

    types: tuple[FuncType, ...]
    imports: tuple[Import, ...]
    functions: tuple[FuncType, ...]
    tables: tuple[TableType, ...]
    memories: tuple[Limits, ...]
    globals: tuple[GlobalType, ...]
    tags: tuple[TagType, ...]
    exports: tuple[Export, ...]
    start: int | None
    imported_functions: int
    imported_tables: int
    imported_memories: int
    imported_globals: int
    imported_tags: int
    element_segments: int
    passive_elements: int
    data_segments: int
    passive_data: int
    code_bytes: int
    """Bytes of function bodies, without the size before each."""
    elements: int
    """Number of items of all element segments together."""
    passive_items: int
    """Number of `elements` in passive segments; every instance keeps them in memory, as values."""
    extern_items: int
    """Number of `elements` in active segments that are no functions; code is made to store each."""
    locals: int
    """Number of locals of all functions together, without their parameters."""
    collected: bool
    """Whether it may hold values that are garbage-collected: exceptions, and references other than
    to functions. wasmtime then gives each instance a heap for them."""
    sections: tuple[Section, ...]
    """Sections in the order of the file, including custom ones."""
    producers: tuple[tuple[str, str, str], ...] = ()
    """Field, name and version of each tool that is listed in the section `producers`."""
    linked: frozenset[str] = frozenset()
    """Kinds of imports that are another module's memories, tables and globals, in a graph. Those of
    the other kinds become the module's own: see `define_imports`."""
    growths: tuple[Growth, ...] = ()
    """Each `memory.grow`, in order; none if there are more than `GROWTH_LIMIT`, if an instruction
    is unknown, or if instructions were not weighed."""
    bulks: tuple[Bulk, ...] | None = ()
    """Each bulk instruction, in order; None if there are more than `BULK_LIMIT`, or if an
    instruction is unknown. Empty, too, if instructions were not weighed."""
    bodies_begin: int = attrs.field(default=0, eq=False, repr=False)
    """Offset of the first function body, with its size; 0 if there is no code section."""
    # {name: export}; a dict has no hash, so it stays out of comparisons.
    _by_name: dict[str, Export] = attrs.field(init=False, eq=False, repr=False, factory=dict)

    exported_memories: tuple[str, ...] = attrs.field(init=False, eq=False, repr=False)
    """Names of exported memories, in order."""

    def __attrs_post_init__(self) -> None:
        self._by_name.update((export.name, export) for export in self.exports)
        memories = tuple(export.name for export in self.exports if export.kind == "memory")
        object.__setattr__(self, "exported_memories", memories)

    def export(self, name: str) -> Export | None:
        """Return the export of that name, or None."""
        return self._by_name.get(name)

    @property
    def has_custom_sections(self) -> bool:
        """Whether the module has custom sections, such as the names of functions."""
        return any(section.id == 0 for section in self.sections)

    @property
    def own_tables(self) -> tuple[TableType, ...]:
        """Tables of the module itself; imported ones are, unless they are `linked`."""
        return self.tables[self.imported_tables if "table" in self.linked else 0 :]

    @property
    def own_memories(self) -> tuple[Limits, ...]:
        """Memories of the module itself; imported ones are, unless they are `linked`."""
        return self.memories[self.imported_memories if "memory" in self.linked else 0 :]

    @property
    def own_globals(self) -> tuple[GlobalType, ...]:
        """Globals of the module itself; imported ones are, unless they are `linked`."""
        return self.globals[self.imported_globals if "global" in self.linked else 0 :]

    def extern(self, export: Export) -> ExternType:
        """Return the type of an export."""
        spaces: dict[str, Sequence[ExternType]] = {
            "func": self.functions,
            "table": self.tables,
            "memory": self.memories,
            "global": self.globals,
            "tag": self.tags,
        }
        return spaces[export.kind][export.index]
