"""Reads what a WebAssembly module declares: types, imports, exports and sizes, not instructions.

1. Any bytes result in a `ModuleInfo` or a `MalformedModuleError`, never another exception.
2. Counts of the input are not trusted: one is refused before anything is allocated if the rest of
   the bytes cannot hold that many items. Each byte is read once and nothing nests: time and memory
   are linear.
   Work that takes Python a statement of its own is a *step*. Steps have a limit, far below the
   number of bytes: reading a module of 4 MiB takes about a second, whatever it contains.
3. Accepted does not mean valid: initial values are skipped, and instructions only weighed; wasmtime
   validates them.
4. Features that the engine has switched off are refused by name, before wasmtime-py can abort on
   their types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from .custom import custom_size, find_custom_sections
from .formats import foreign
from .stack import FUNCTION_LIMIT as FUNCTION_WEIGHT, MODULE_LIMIT as MODULE_WEIGHT, Weigher
from .types import (
    ELEMENT_LIMIT as ELEMENT_LIMIT,
    GROWTH_LIMIT as GROWTH_LIMIT,
    HEADER as HEADER,
    HEIGHT_FROM,
    HEIGHT_LIMIT,
    ITEM_LIMITS as ITEM_LIMITS,
    ITEM_NAMES as ITEM_NAMES,
    KINDS as KINDS,
    NUMBER_TYPES as NUMBER_TYPES,
    OTHER_TYPES as OTHER_TYPES,
    PAGE_LIMIT as PAGE_LIMIT,
    REFERENCE_TYPES as REFERENCE_TYPES,
    REFUSED_TYPES as REFUSED_TYPES,
    SECTION_LIMIT as SECTION_LIMIT,
    SECTION_RANKS as SECTION_RANKS,
    SHORT as SHORT,
    VALUE_LIMIT as VALUE_LIMIT,
    VALUE_TYPES as VALUE_TYPES,
    WIDE_ELEMENT_LIMIT as WIDE_ELEMENT_LIMIT,
    WIDE_PAGE_LIMIT as WIDE_PAGE_LIMIT,
    Bulk as Bulk,
    ExcessiveModuleError as ExcessiveModuleError,
    Export as Export,
    ExternType as ExternType,
    ForeignFormatError as ForeignFormatError,
    FuncType as FuncType,
    GlobalType as GlobalType,
    Growth as Growth,
    Import as Import,
    Limits as Limits,
    MalformedModuleError as MalformedModuleError,
    ModuleInfo as ModuleInfo,
    Section as Section,
    TableType as TableType,
    TagType as TagType,
    UnsupportedFeatureError as UnsupportedFeatureError,
)

if TYPE_CHECKING:
    from .height import Heights

# Items, or instructions of constants, between two calls of `breathe`: about half a millisecond.
BREATHS = 256
# Steps of reading a module: each item, parameter, result, group of locals, instruction of a
# constant, or run of instructions is one, and so are four indexes of an element segment. Real
# modules take one for 100 bytes. A step takes about a microsecond.
STEPS, BYTES_PER_STEP = 200_000, 16
INDEXES_PER_STEP = 4
# Ids of the sections with types of functions, and with their bodies.
FUNCTIONS, BODIES = 3, 10
# Instructions of one constant expression, at most. Compilers write up to three.
CONSTANT_LIMIT = 1000
# The custom section that lists what made the module, and its bytes that are read, at most.
PRODUCERS, MAX_PRODUCERS = "producers", 4096


def import_late(size: int) -> None:
    """Import what `read_module` would of itself, for some modules of that many bytes."""
    if size >= HEIGHT_FROM:
        from . import height  # noqa: F401


def read_module(
    wasm: bytes, breathe: Callable[[], object] = lambda: None, *, weigh: bool = True
) -> ModuleInfo:
    """Return what the module declares.

    Args:
        wasm: the module.
        breathe: called every now and then, so that a thread lets others run.
        weigh: whether to check how much instructions keep on the stack.

    Raises:
        MalformedModuleError: the module is damaged or uses an unsupported feature.
        ExcessiveModuleError: the module has too much of something.
    """
    return _Reader(wasm, breathe, weigh=weigh).read()


def find_global_gets(
    wasm: bytes, breathe: Callable[[], object] = lambda: None
) -> list[tuple[int, int, int]]:
    """Return (begin, end, index of the global) of each `global.get` in constant expressions.

    Args:
        wasm: a module that was read before.
        breathe: called every now and then, so that a thread lets others run.
    """
    reader = _Reader(wasm, breathe, weigh=False)
    found = reader.cursor.gets = []
    reader.read()
    return found


class Cursor:
    """A position in the bytes; nothing reads beyond `end`, the end of the section."""

    __slots__ = ("_size", "at", "begin", "breathe", "data", "end", "gets", "steps")

    def __init__(
        self,
        data: bytes,
        at: int,
        end: int,
        breathe: Callable[[], object] = lambda: None,
    ) -> None:
        self.data = data
        self.at = at
        self.end = end
        self.begin = 0
        """Where the last number, name or byte began; errors report this position."""
        self.breathe = breathe
        self.steps = 0
        """Number of steps taken so far; see `STEPS`."""
        self._size: int | None = None
        self.gets: list[tuple[int, int, int]] | None = None
        """Where each `global.get` in a constant begins and ends, and its global; None: nobody
        asks."""

    @property
    def size(self) -> int:
        """Bytes without custom sections, which allow no steps."""
        if self._size is None:
            self._size = len(self.data) - custom_size(find_custom_sections(self.data))
        return self._size

    def spend(self, steps: int) -> None:
        """Count steps, before they are taken.

        Raises:
            ExcessiveModuleError: they are more than a module of this size may take.
        """
        before = self.steps
        self.steps += steps
        if self.steps // BREATHS > before // BREATHS:
            self.breathe()
        if self.steps <= STEPS:
            return
        limit = STEPS + self.size // BYTES_PER_STEP
        if self.steps > limit:
            raise ExcessiveModuleError(
                f"it declares more than a module of {self.size} bytes needs: reading it takes "
                f"over {limit} steps, at offset {self.begin:#x}"
            )

    def items(self, count: int, per_step: int = 1) -> Iterator[int]:
        """Yield the numbers from 0 of `count` items, and call `breathe` every now and then.

        Args:
            count: number of items.
            per_step: number of items that are one step.
        """
        self.spend(-(-count // per_step))
        for number in range(count):
            if number % BREATHS == 0:
                self.breathe()
            yield number

    def fail(self, what: str) -> NoReturn:
        raise MalformedModuleError(what, self.begin)

    def refuse(self, feature: str) -> NoReturn:
        raise UnsupportedFeatureError(feature, self.begin)

    def unknown(self, what: str, byte: int) -> NoReturn:
        """Refuse the byte of a type, with the name of its proposal if it has one."""
        if byte in REFUSED_TYPES:
            self.refuse(REFUSED_TYPES[byte])
        self.fail(f"unknown {what} {byte:#x}")

    def skip(self, size: int) -> None:
        self.begin = self.at
        if size > self.end - self.at:
            self.fail(f"{size} bytes needed where {self.end - self.at} are left")
        self.at += size

    def byte(self) -> int:
        at = self.begin = self.at
        if at >= self.end:
            self.skip(1)  # fails
        self.at = at + 1
        return self.data[at]

    def number(self, bits: int, *, signed: bool = False) -> int:
        """Read a LEB128 number; refuse one that is longer than `bits` needs, or exceeds them."""
        begin = self.at
        if not signed and begin < self.end and (small := self.data[begin]) < 0x80:
            self.begin, self.at = begin, begin + 1  # most are one byte
            return small
        value = shift = 0
        byte = 0x80
        while byte >= 0x80 and shift < bits:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
        self.begin = begin
        if signed and byte & 0x40:
            value -= 1 << shift
        low, high = (-1 << bits - 1, 1 << bits - 1) if signed else (0, 1 << bits)
        if byte >= 0x80 or not low <= value < high:
            self.fail(f"a number over {bits} bits")
        return value

    def count(self, smallest: int = 1) -> int:
        """Read the number of items that follow, each of at least `smallest` bytes."""
        count = self.number(32)
        if count * smallest > self.end - self.at:
            self.fail(f"{count} items announced with {self.end - self.at} bytes left")
        return count

    def section_size(self, section: int) -> int:
        """Read the size of a section, which must be there as a whole."""
        size = self.number(32)
        if size > self.end - self.at:
            early = "it ends early, as a file that was not copied whole: "
            self.fail(
                f"{early if self.end == len(self.data) else ''}section {section} has {size} bytes, "
                f"and {self.end - self.at} of them are there"
            )
        return size

    def index(self, size: int, what: str) -> int:
        index = self.number(32)
        if index >= size:
            self.fail(f"{what} {index} named where there are {size}")
        return index

    def name(self) -> str:
        self.skip(self.number(32))
        try:
            return self.data[self.begin : self.at].decode()
        except UnicodeDecodeError:
            self.fail("a name that is not UTF-8")

    def value_type(self) -> str:
        byte = self.byte()
        return VALUE_TYPES.get(byte) or self.unknown("value type", byte)

    def value_types(self) -> tuple[str, ...]:
        count = self.count()
        if count > VALUE_LIMIT:
            self.fail(f"{count} parameters or results, over {VALUE_LIMIT}")
        self.spend(count)
        return tuple(self.value_type() for _ in range(count))

    def reference_type(self) -> str:
        name = self.value_type()
        if name not in REFERENCE_TYPES.values():
            self.fail(f"{name} where a reference type is due")
        return name

    def limits(self, kind: str) -> Limits:
        flags = self.byte()
        if flags > (15 if kind == "memory" else 7):
            self.fail(f"unknown {kind} flags {flags:#x}")
        for bit, feature in (2, f"shared {kind}"), (8, "custom page sizes"):
            if flags & bit:
                self.refuse(feature)
        wide = flags & 4 != 0
        minimum = self.number(64)  # 64 bits in the format, though fewer are usable
        maximum = self.number(64) if flags & 1 else None
        if maximum is not None and maximum < minimum:
            self.fail(f"a {kind} from {minimum} up to {maximum}")
        if kind == "memory":
            limit = WIDE_PAGE_LIMIT if wide else PAGE_LIMIT
        else:
            limit = WIDE_ELEMENT_LIMIT if wide else ELEMENT_LIMIT
        if max(minimum, maximum or 0) > limit:
            self.fail(f"a {kind} over {limit}")
        return Limits(minimum, maximum, wide)

    def global_type(self) -> GlobalType:
        value_type, mutable = self.value_type(), self.byte()
        if mutable > 1:
            self.fail(f"unknown mutability {mutable:#x}")
        return GlobalType(value_type, mutable == 1)

    def initial_mark(self) -> bool:
        """Skip the mark of a table with an initial value; return whether it was there."""
        marked = self.data.startswith(b"\x40\0", self.at, self.end)
        self.at += 2 * marked
        return marked

    def expression(self) -> None:
        """Skip a constant expression, including its end."""
        begin, instructions = self.at, 0
        while (opcode := self.byte()) != 0x0B:  # end
            instructions += 1
            if instructions > CONSTANT_LIMIT:
                self.begin = begin
                self.fail(f"a constant expression of more than {CONSTANT_LIMIT} instructions")
            self.spend(1)
            match opcode:
                case 0x41 | 0x42:  # i32.const, i64.const
                    self.number(32 if opcode == 0x41 else 64, signed=True)
                case 0x43 | 0x44:  # f32.const, f64.const
                    self.skip(4 if opcode == 0x43 else 8)
                case 0xFD if self.number(32) == 12:  # v128.const
                    self.skip(16)
                case 0x23 | 0xD2:  # global.get, ref.func
                    at = self.begin
                    index = self.number(32)
                    if self.gets is not None and opcode == 0x23:
                        self.gets.append((at, self.at, index))
                case 0xD0:  # ref.null
                    heap_type = self.number(33, signed=True)  # index of a type, or a negative byte
                    if heap_type >= 0:
                        self.refuse("typed function references")
                    if heap_type < -64 or heap_type & 0x7F not in REFERENCE_TYPES:
                        self.unknown("heap type", heap_type & 0x7F)
                case 0xFB:
                    self.refuse("gc types")
                case 0x6A | 0x6B | 0x6C | 0x7C | 0x7D | 0x7E:  # add, sub, mul of i32 and i64
                    pass
                case _:
                    self.fail(f"opcode {opcode:#x} in a constant")


class _Reader:
    """Reads the sections once. Nearly all of them are a count and then items."""

    def __init__(self, wasm: bytes, breathe: Callable[[], object], *, weigh: bool) -> None:
        self.weigh = weigh
        self.weigher: Weigher | None = None
        self.weight = 0
        self.heights: Heights | None = None
        self.height = 0
        self.growths: list[Growth] = []
        self.bulks: list[Bulk] | None = []
        self.knows_growths = weigh
        self.cursor = Cursor(wasm, 0, len(wasm), breathe=breathe)
        self.types: list[FuncType] = []
        self.imports: list[Import] = []
        self.spaces: dict[str, list[Any]] = {kind: [] for kind in KINDS}  # {kind: index space}
        self.exports: dict[str, Export] = {}
        self.sections: list[Section] = []
        self.counts: Counter[int] = Counter()  # {section id: items}
        self.producers: tuple[tuple[str, str, str], ...] = ()
        self.start: int | None = None
        self.data_count: int | None = None
        self.passive_elements = self.passive_data = self.code_bytes = self.bodies_begin = 0
        self.elements = self.passive_items = self.extern_items = self.locals = 0
        self.collected = False

    def read(self) -> ModuleInfo:
        cursor, size, last = self.cursor, self.cursor.end, -1
        if (what := foreign(cursor.data)) is not None:
            raise ForeignFormatError(what)
        cursor.at = len(HEADER)
        while cursor.at < size:
            if section := cursor.byte():
                rank = SECTION_RANKS.get(section, -1)
                if rank <= last:
                    cursor.fail(f"section {section} unknown, repeated or out of order")
                last = rank
            length = cursor.section_size(section)
            cursor.end = cursor.at + length
            cursor.spend(1)
            if len(self.sections) == SECTION_LIMIT:
                raise ExcessiveModuleError(f"more than {SECTION_LIMIT} sections")
            self.sections.append(Section(section, cursor.at, cursor.end))
            self.section(section)
            if cursor.at < cursor.end:
                cursor.begin = cursor.at
                cursor.fail(f"{cursor.end - cursor.at} bytes too many in section {section}")
            cursor.end = size
        return self.finish()

    def section(self, section: int) -> None:
        cursor = self.cursor
        if section in _ITEMS:
            smallest, read_item = _ITEMS[section]
            count = self.counts[section] = cursor.count(smallest)
            limit = ITEM_LIMITS.get(section, count)
            if count > limit:
                raise ExcessiveModuleError(f"{count} {ITEM_NAMES[section]}, more than {limit}")
            if section == BODIES:
                self.bodies(count)
                return
            if section == FUNCTIONS:
                count -= self.plain_functions(count)
            for _ in cursor.items(count):
                read_item(self)
        elif section == 8:
            self.start = cursor.index(len(self.spaces["func"]), "start function")
        elif section == 12:
            self.data_count = cursor.number(32)
        else:
            name = cursor.name()
            begin = cursor.at
            cursor.skip(cursor.end - cursor.at)
            if name == PRODUCERS and not self.producers:
                self.producers = read_producers(cursor.data[begin : begin + MAX_PRODUCERS])

    def finish(self) -> ModuleInfo:
        spaces, counts = self.spaces, self.counts
        self.cursor.begin = self.cursor.at
        if counts[3] != counts[10]:
            self.cursor.fail(f"{counts[3]} functions declared, {counts[10]} bodies found")
        if self.data_count not in (None, counts[11]):
            self.cursor.fail(f"{self.data_count} data segments declared, {counts[11]} found")
        return ModuleInfo(
            types=tuple(self.types),
            imports=tuple(self.imports),
            functions=tuple(spaces["func"]),
            tables=tuple(spaces["table"]),
            memories=tuple(spaces["memory"]),
            globals=tuple(spaces["global"]),
            tags=tuple(spaces["tag"]),
            exports=tuple(self.exports.values()),
            start=self.start,
            imported_functions=len(spaces["func"]) - counts[3],
            imported_tables=len(spaces["table"]) - counts[4],
            imported_memories=len(spaces["memory"]) - counts[5],
            imported_globals=len(spaces["global"]) - counts[6],
            imported_tags=len(spaces["tag"]) - counts[13],
            element_segments=counts[9],
            passive_elements=self.passive_elements,
            data_segments=counts[11],
            passive_data=self.passive_data,
            code_bytes=self.code_bytes,
            bodies_begin=self.bodies_begin,
            elements=self.elements,
            passive_items=self.passive_items,
            extern_items=self.extern_items,
            locals=self.locals,
            collected=self.collected or self.holds_references(),
            sections=tuple(self.sections),
            producers=self.producers,
            growths=tuple(self.growths),
            bulks=None if self.bulks is None else tuple(self.bulks),
        )

    def holds_references(self) -> bool:
        """Return whether tags, tables or globals are for values that are garbage-collected."""
        spaces = self.spaces
        held = {one.element for one in spaces["table"]}
        held.update(one.value_type for one in spaces["global"])
        references = held.intersection(REFERENCE_TYPES.values())
        return bool(spaces["tag"]) or not references <= {"funcref"}

    def kind(self) -> str:
        byte = self.cursor.byte()
        if byte >= len(KINDS):
            self.cursor.fail(f"unknown kind {byte:#x}")
        return KINDS[byte]

    def declare(self, kind: str) -> ExternType:
        """Read a type of that kind, and give it the next index of its space."""
        cursor = self.cursor
        found: ExternType
        match kind:
            case "func":
                found = self.types[cursor.index(len(self.types), "type")]
            case "table":
                found = TableType(cursor.reference_type(), cursor.limits(kind))
            case "memory":
                found = cursor.limits(kind)
            case "global":
                found = cursor.global_type()
            case _:
                found = self.tag_type()
        self.spaces[kind].append(found)
        return found

    def tag_type(self) -> TagType:
        cursor = self.cursor
        if attribute := cursor.byte():
            cursor.fail(f"unknown attribute {attribute:#x} of a tag")
        kind = self.types[cursor.index(len(self.types), "type")]
        if kind.results:
            cursor.fail("a tag with results")
        return TagType(kind.params)

    def type(self) -> None:
        form = self.cursor.byte()
        if form != 0x60:
            self.cursor.unknown("type", form)
        self.types.append(FuncType(self.cursor.value_types(), self.cursor.value_types()))

    def import_(self) -> None:
        module, name, kind = self.cursor.name(), self.cursor.name(), self.kind()
        self.imports.append(Import(module, name, kind, self.declare(kind)))

    def table(self) -> None:
        marked = self.cursor.initial_mark()
        self.declare("table")
        if marked:
            self.cursor.expression()

    def global_(self) -> None:
        self.declare("global")
        self.cursor.expression()

    def export(self) -> None:
        name, kind = self.cursor.name(), self.kind()
        index = self.cursor.index(len(self.spaces[kind]), kind)
        if name in self.exports:
            self.cursor.fail(f"a second export named {name!r:.60}")
        self.exports[name] = Export(name, kind, index)

    def element(self) -> None:
        cursor = self.cursor
        flags = cursor.index(8, "element form")
        functions = len(self.spaces["func"])
        if flags & 1:  # passive, or only declared
            self.passive_elements += not flags & 2
        else:
            if flags & 2:
                cursor.index(len(self.spaces["table"]), "table")
            cursor.expression()
        item = "funcref"
        if flags & 3 and flags & 4:
            item = cursor.reference_type()
        elif flags & 3 and (kind := cursor.byte()):
            cursor.fail(f"unknown element kind {kind:#x}")
        count = cursor.count()
        self.elements += count
        self.collected |= item != "funcref"
        if flags & 3 == 1:
            self.passive_items += count
        elif not flags & 1 and item != "funcref":
            self.extern_items += count
        for _ in cursor.items(count, 1 if flags & 4 else INDEXES_PER_STEP):
            cursor.expression() if flags & 4 else cursor.index(functions, "function")

    def plain_functions(self, count: int) -> int:
        """Declare functions whose types have indexes of one byte; return how many: all or none."""
        cursor, types = self.cursor, self.types
        indexes = cursor.data[cursor.at : cursor.end]
        if len(indexes) != count or not count or max(indexes) >= min(len(types), 0x80):
            return 0
        cursor.spend(count)
        cursor.at = cursor.end
        self.spaces["func"] += [types[index] for index in indexes]
        return count

    def bodies(self, count: int) -> None:
        """Read the bodies of functions, the plain ones in a loop of their own.

        That takes a tenth of the time of `body`, which reads the others; what is counted, noted and
        refused is the same.
        """
        self.cursor.spend(count)
        self.bodies_begin = self.cursor.at
        while count:
            count -= self.plain_bodies(count)
            if count:
                self.body()
                count -= 1

    def plain_bodies(self, count: int) -> int:
        """Read plain bodies, `count` at most, up to one that is not plain; return their number.

        A plain one has a size below `HEIGHT_FROM`, numbers of locals below 0x80, and instructions
        that are a single run which weighs nothing: see `Weigher.plain`.
        """
        cursor, match, known = self.cursor, None, frozenset(VALUE_TYPES)
        if self.weigh:
            if self.weigher is None:
                self.weigher = Weigher(self.types, self.spaces["func"])
            match = self.weigher.plain.match
        data, at, end = cursor.data, cursor.at, cursor.end
        read = steps = code_bytes = local_count = 0
        # No number is beyond the section's end: each is below 0x4000, and that many bytes are left.
        last = end - 4
        while read < count and at <= last:
            size = data[at]
            begin = at + 1
            if size >= 0x80:
                more = data[begin]
                if more >= 0x80:
                    break
                size += (more << 7) - 0x80
                begin += 1
            stop = begin + size
            if size < 2 or size >= HEIGHT_FROM or stop > end:
                break
            groups = data[begin]
            begin += 1
            if groups:
                types = begin + 2 * groups
                if groups >= 0x80 or types >= stop:
                    break
                if groups == 1:
                    number = data[begin]
                    if number >= 0x80 or data[begin + 1] not in VALUE_TYPES:
                        break
                else:
                    numbers = data[begin:types:2]
                    if max(numbers) >= 0x80 or not known.issuperset(data[begin + 1 : types : 2]):
                        break
                    number = sum(numbers)
                begin = types
            else:
                number = 0
            if match is not None:
                found = match(data, begin, stop)
                if found is None or found.end() < stop:
                    break
            local_count += number
            code_bytes += size
            steps += groups + 1
            read += 1
            at = stop
            if steps >= BREATHS:
                cursor.begin = cursor.at = at
                cursor.spend(steps)
                steps = 0
        cursor.begin = cursor.at = at
        self.code_bytes += code_bytes
        self.locals += local_count
        cursor.spend(steps)
        return read

    def body(self) -> None:
        cursor, end = self.cursor, self.cursor.end
        place = cursor.at
        size = cursor.number(32)
        cursor.skip(size)
        self.code_bytes += size
        # A few bytes may declare any number of locals: they are counted, the rest is skipped.
        begin = cursor.at = cursor.begin
        cursor.end = begin + size
        if groups := cursor.count(2):
            for _ in cursor.items(groups):
                self.locals += cursor.number(32)
                cursor.value_type()
        if self.weigh:
            growths = self.weigh_body(size)
            self.note_bulks(place, begin)
            if growths or not self.knows_growths:
                self.note_growths(place, begin, growths)
        cursor.at, cursor.end = cursor.end, end

    def note_growths(self, size: int, body: int, growths: list[tuple[int, int, int]]) -> None:
        """Note where a body has `memory.grow`; or forget all, if they are too many or unknown."""
        memories = len(self.spaces["memory"])
        self.growths += [Growth(size, body, self.cursor.end, *one) for one in growths]
        self.knows_growths &= len(self.growths) <= GROWTH_LIMIT and all(
            memory < memories for _, _, memory in growths
        )
        if not self.knows_growths:
            self.growths = []

    def note_bulks(self, size: int, body: int) -> None:
        """Note where a body has bulk instructions; or forget all, if not all are known."""
        weigher, cursor = self.weigher, self.cursor
        assert weigher is not None
        if self.bulks is None or not (weigher.understood and weigher.knows_bulks):
            self.bulks = None
            return
        for at, end, length in weigher.bulks:
            code = cursor.data[at:end]
            self.bulks.append(Bulk(size, body, cursor.end, at, end, code, length))

    def weigh_body(self, size: int) -> list[tuple[int, int, int]]:
        """Refuse a body that keeps too much on the stack; see `stack`.

        Returns:
            Offset, end and memory of each `memory.grow`.
        """
        cursor, functions = self.cursor, self.spaces["func"]
        if self.weigher is None:
            self.weigher = Weigher(self.types, functions)
        left = MODULE_WEIGHT - self.weight
        if left < FUNCTION_WEIGHT:
            left += cursor.size
        limit = min(FUNCTION_WEIGHT, left)
        weight = self.weigher.weigh(
            cursor.data, cursor.at, cursor.end, limit, partial(cursor.spend, 1)
        )
        self.weight += weight
        if weight > limit:
            raise ExcessiveModuleError(
                f"the function at offset {cursor.at:#x}, of {size} bytes, keeps over {limit} "
                "values on the stack across calls and blocks: too many to compile"
            )
        self.knows_growths &= self.weigher.understood
        if size >= HEIGHT_FROM and self.weigher.understood:
            self.weigh_height(size)
        return self.weigher.growths

    def weigh_height(self, size: int) -> None:
        """Refuse a body that is high on the stack where that costs time; see `height`."""
        from .height import RUN_STEPS, Heights

        cursor = self.cursor
        if self.heights is None:
            self.heights = Heights(self.types, self.spaces["func"])
        limit = HEIGHT_LIMIT - self.height
        self.height += self.heights.weigh(
            cursor.data, cursor.at, cursor.end, limit, partial(cursor.spend, RUN_STEPS)
        )
        if self.height > HEIGHT_LIMIT:
            raise ExcessiveModuleError(
                f"the function at offset {cursor.at:#x}, of {size} bytes, leaves so many values on "
                "the stack across calls, blocks and jumps that they are too many to compile: keep "
                "them in locals, or split the function"
            )

    def data(self) -> None:
        cursor = self.cursor
        flags = cursor.index(3, "data form")
        if flags == 1:
            self.passive_data += 1
        else:
            if flags == 2:
                cursor.index(len(self.spaces["memory"]), "memory")
            cursor.expression()
        cursor.skip(cursor.number(32))


# {section id: (bytes of the smallest item, method that reads one)}. Not in each reader, where it
# would be a cycle that keeps the module's bytes until garbage is collected.
_ITEMS: dict[int, tuple[int, Callable[[_Reader], object]]] = {
    1: (2, _Reader.type),
    2: (4, _Reader.import_),
    3: (1, lambda reader: reader.declare("func")),
    4: (3, _Reader.table),
    5: (2, lambda reader: reader.declare("memory")),
    6: (3, _Reader.global_),
    7: (3, _Reader.export),
    9: (3, _Reader.element),
    10: (1, _Reader.body),
    11: (2, _Reader.data),
    13: (2, lambda reader: reader.declare("tag")),
}


def read_producers(payload: bytes) -> tuple[tuple[str, str, str], ...]:
    """Return field, name and version of each tool in a section `producers`, up to a fault."""
    cursor = Cursor(payload, 0, len(payload))
    found: list[tuple[str, str, str]] = []
    try:
        # The payload may have been cut, so the counts say nothing; each item takes a byte or more.
        for _ in range(cursor.number(32)):
            field = cursor.name()
            for _ in range(cursor.number(32)):
                found.append((field, cursor.name(), cursor.name()))
    except MalformedModuleError:
        pass  # custom sections are nobody's business but ours
    return tuple(found)
