"""Finds the source line of an address in DWARF's sections, versions 2 to 5.

1. Any bytes give lines, none, or a `DwarfError`: the sections are the guest's, and may lie.
2. Work is counted in steps, of a microsecond or so: a unit, an attribute, a range, an instruction
   of a line program. Their number, that of rows, and the bytes kept have limits; each loop counts.
   A library for DWARF could not be stopped half-way, and takes 5 microseconds a row or more.
3. Of a unit, only its first entry is read; its line program is run when an address lies in it.
4. Addresses count from the beginning of the code section's content, as toolchains do.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Final, final

from attrs import define, field, frozen

from ..config import MiB
from ..text import printable

SECTIONS: Final = (
    *(".debug_info", ".debug_abbrev", ".debug_line", ".debug_ranges", ".debug_rnglists"),
    *(".debug_str", ".debug_line_str", ".debug_str_offsets", ".debug_addr"),
)
"""Names of the sections that are read."""
MAX_SECTIONS_SIZE: Final = 64 * MiB
"""Bytes of these sections together, decompressed, at most."""
MAX_STEPS: Final = 4_000_000
"""Steps for one module, at most: a few seconds."""
MAX_ROWS: Final = 1_000_000
"""Rows of the line tables of one module, and ranges of its units, at most."""
ROW_SIZE: Final = 16
"""Bytes of a row, and of a range."""
MAX_PATH: Final = 200
"""Characters of a path that are kept."""
# Steps between two calls of `breathe`.
_BREATHS = 500
_MAX_ADDRESS: Final = (1 << 32) - 1
_DEAD: Final = (0, _MAX_ADDRESS, _MAX_ADDRESS - 1)
"""Addresses that linkers give to functions that they left out."""


class DwarfError(ValueError):
    """The sections are damaged, or more than the limits allow."""


@frozen
class Line:
    """A place in a source file; `column` is 0 if it is not known."""

    file: str
    line: int
    column: int


@final
@define
class Steps:
    """Counts steps.

    Args:
        breathe: called every now and then; may raise to end the work.
        limit: number of steps, at most.
        taken: number of steps taken before.
    """

    breathe: Callable[[], object]
    limit: int
    taken: int

    def take(self, count: int = 1) -> None:
        """Count steps before they are taken; raise `DwarfError` beyond the limit."""
        before = self.taken
        self.taken += count
        if self.taken > self.limit:
            raise DwarfError(f"more than {self.limit} steps")
        if before // _BREATHS != self.taken // _BREATHS:
            self.breathe()


class _Bytes:
    """A position in a section; nothing is read beyond `end`."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data, self.at = data, at
        self.end = len(data) if end is None else end
        if not 0 <= at <= self.end <= len(data):
            raise DwarfError("an offset outside of its section")

    def skip(self, size: int) -> int:
        """Skip bytes; return where they begin."""
        at = self.at
        if not 0 <= size <= self.end - at:
            raise DwarfError("it ends too early")
        self.at = at + size
        return at

    def fixed(self, size: int) -> int:
        at = self.skip(size)
        return int.from_bytes(self.data[at : at + size], "little")

    def uleb(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.skip(1)]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise DwarfError("a number over 64 bits")

    def sleb(self) -> int:
        begin = self.at
        value = self.uleb()
        bits = 7 * (self.at - begin)
        return value - (1 << bits) if value >> bits - 1 else value

    def text(self) -> bytes:
        """Read up to a zero, which is skipped."""
        stop = self.data.find(b"\0", self.at, self.end)
        if stop < 0:
            raise DwarfError("a text without an end")
        begin, self.at = self.at, stop + 1
        # No more than is shown, as many names may share one long text.
        return self.data[begin : min(stop, begin + 4 * MAX_PATH)]

    def unit(self) -> tuple[int, int]:
        """Read the length of a unit: return its version, and the offset of its end."""
        length = self.fixed(4)
        if length > self.end - self.at:  # 64-bit DWARF, too
            raise DwarfError("a unit beyond its section")
        end = self.at + length
        return self.fixed(2), end


# {form: bytes of its value}, where that is fixed; of DWARF in 32 bits.
_SIZES: Final = {
    0x05: 2,
    0x06: 4,
    0x07: 8,
    0x0B: 1,
    0x0C: 1,
    0x0E: 4,
    0x11: 1,
    0x12: 2,
    0x13: 4,
    0x14: 8,
    0x17: 4,
    0x19: 0,
    0x1C: 4,
    0x1D: 4,
    0x1E: 16,
    0x1F: 4,
    0x20: 8,
    0x24: 8,
    0x25: 1,
    0x26: 2,
    0x27: 3,
    0x28: 4,
    0x29: 1,
    0x2A: 2,
    0x2B: 3,
    0x2C: 4,
}
_ULEBS: Final = (0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23)
_BLOCKS: Final = {0x03: 2, 0x04: 4, 0x0A: 1}  # {form: bytes of the length}
_ADDRESS, _STRING, _STRP, _LINE_STRP, _SDATA, _INDIRECT, _IMPLICIT = (
    *(0x01, 0x08, 0x0E, 0x1F, 0x0D, 0x16, 0x21),
)
_STRX: Final = (0x1A, 0x25, 0x26, 0x27, 0x28)
_ADDRX: Final = (0x1B, 0x29, 0x2A, 0x2B, 0x2C)
_RNGLISTX: Final = 0x23

_STMT_LIST, _LOW, _HIGH, _COMP_DIR, _RANGES = 0x10, 0x11, 0x12, 0x1B, 0x55
_STR_OFFSETS_BASE, _ADDR_BASE, _RNGLISTS_BASE = 0x72, 0x73, 0x74

Value = int | bytes


def _value(cursor: _Bytes, form: int, address_size: int, version: int) -> Value:
    """Read a value of a form; text and blocks are bytes."""
    if (size := _SIZES.get(form)) is not None:
        return cursor.fixed(size)
    if form in _ULEBS:
        return cursor.uleb()
    if form == _STRING:
        return cursor.text()
    if form == _ADDRESS:
        return cursor.fixed(address_size)
    if form == 0x10:  # ref_addr
        return cursor.fixed(address_size if version == 2 else 4)
    if form == _SDATA:
        return cursor.sleb()
    if form in (0x09, 0x18) or form in _BLOCKS:
        size = cursor.fixed(_BLOCKS[form]) if form in _BLOCKS else cursor.uleb()
        cursor.skip(size)
        return b""
    raise DwarfError(f"unknown form {form:#x}")


@frozen
class _Unit:
    """What is needed of a compile unit."""

    line_offset: int
    directory: bytes
    str_offsets_base: int


@frozen
class _Table:
    """The rows of a unit's line program, in sequences of rising addresses."""

    starts: list[int]
    """First address of each sequence, in order."""
    sequences: list[tuple[int, int, int]]
    """End address, first and last row + 1 of each."""
    rows: tuple[array[int], array[int], array[int], array[int]]
    """Address, file, line and column of each row."""
    files: dict[int, str]
    """{number: path} of the files that rows name."""

    @property
    def size(self) -> int:
        return ROW_SIZE * len(self.rows[0]) + 4 * MAX_PATH * len(self.files) // 2

    def find(self, address: int) -> Line | None:
        number = bisect_right(self.starts, address) - 1
        if number < 0 or address >= self.sequences[number][0]:
            return None
        _, first, last = self.sequences[number]
        addresses, files, lines, columns = self.rows
        row = bisect_right(addresses, address, first, last) - 1
        file = self.files.get(files[row])
        if row < first or not lines[row] or file is None:
            return None
        return Line(file, lines[row], columns[row])


@final
@define(eq=False)
class LineTables:
    """Line tables of one module, made as addresses are asked for. For one thread at a time."""

    _begins: array[int] = field(factory=lambda: array("I"))
    """First address of each range, in order."""
    _ranges: list[tuple[int, int]] = field(factory=list)
    """End address and unit of each."""
    _units: list[_Unit] = field(factory=list)
    _tables: dict[int, _Table] = field(factory=dict)  # {offset of the line program: its table}
    _indexed: bool = False
    _rows: int = 0
    steps_taken: int = 0
    """Steps taken so far, of `MAX_STEPS`."""
    broken: bool = False
    """Whether there are no lines, as the sections are damaged or exceed a limit."""

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        tables = sum(table.size for table in list(self._tables.values()))
        return tables + 8 * ROW_SIZE * (len(self._ranges) + len(self._units))

    def look_up(self, addresses: list[int]) -> list[Line | None] | None:
        """Return what `find` does if that needs no work; None if it does."""
        if self.broken:
            return [None] * len(addresses)
        if not self._indexed:
            return None
        found: list[Line | None] = []
        for address in addresses:
            unit = self._unit(address)
            table = None if unit is None else self._tables.get(unit.line_offset)
            if unit is not None and table is None:
                return None
            found.append(None if table is None else table.find(address))
        return found

    def find(
        self, addresses: list[int], read: Callable[[str], bytes], breathe: Callable[[], object]
    ) -> list[Line | None]:
        """Return the line of each address, or None where there is none.

        Args:
            addresses: offsets in the content of the code section.
            read: returns the content of a section by its name, empty if there is none.
            breathe: called every now and then; may raise to end the work.

        Raises:
            DwarfError: the sections are damaged, or more than the limits allow.
        """
        steps = Steps(breathe, MAX_STEPS, self.steps_taken)
        sections = _Sections(read, steps)
        try:
            if not self._indexed:
                self._index(sections)
            return [self._line(sections, address) for address in addresses]
        except (IndexError, OverflowError, TypeError) as error:
            raise DwarfError(f"damaged: {error}") from None
        finally:
            self.steps_taken = steps.taken

    def _line(self, sections: _Sections, address: int) -> Line | None:
        unit = self._unit(address)
        if unit is None:
            return None
        table = self._tables.get(unit.line_offset)
        if table is None:
            table = _run(sections, unit, MAX_ROWS - self._rows)
            self._rows += len(table.rows[0])
            self._tables[unit.line_offset] = table
        return table.find(address)

    def _unit(self, address: int) -> _Unit | None:
        number = bisect_right(self._begins, address) - 1
        if number < 0 or address >= self._ranges[number][0]:
            return None
        return self._units[self._ranges[number][1]]

    def _index(self, sections: _Sections) -> None:
        """Find the ranges of all units."""
        found: list[tuple[int, int, int]] = []
        units: list[_Unit] = []
        for unit, ranges in sections.units():
            for begin, end in ranges:
                sections.steps.take()
                if begin < end <= _MAX_ADDRESS and begin not in _DEAD:
                    found.append((begin, end, len(units)))
                    if len(found) > MAX_ROWS:
                        raise DwarfError(f"more than {MAX_ROWS} ranges")
            units.append(unit)
        found.sort()
        self._begins = array("I", [begin for begin, _, _ in found])
        self._ranges = [(end, unit) for _, end, unit in found]
        self._units, self._indexed = units, True


class _Sections:
    """The sections of a module, read when they are needed."""

    def __init__(self, read: Callable[[str], bytes], steps: Steps) -> None:
        self.steps = steps
        self._read = read
        self._data: dict[str, bytes] = {}
        # {(offset of the table, code): (attribute, form, value of implicit constants) of each}
        self._abbreviations: dict[tuple[int, int], list[tuple[int, int, int]]] = {}

    def __getitem__(self, name: str) -> bytes:
        found = self._data.get(name)
        if found is None:
            found = self._data[name] = self._read(f".debug_{name}")
        return found

    def units(self) -> Iterator[tuple[_Unit, list[tuple[int, int]]]]:
        """Yield each compile unit that has a line program, and its ranges."""
        info = self["info"]
        cursor = _Bytes(info)
        while cursor.at < cursor.end:
            self.steps.take()
            version, end = cursor.unit()
            unit = _Bytes(info, cursor.at, end)
            cursor.at = end
            if not 2 <= version <= 5:
                raise DwarfError(f"unknown version {version}")
            kind = unit.fixed(1) if version == 5 else 1
            if version == 5:
                address_size, abbreviations = unit.fixed(1), unit.fixed(4)
            else:
                abbreviations, address_size = unit.fixed(4), unit.fixed(1)
            if address_size not in (4, 8):
                raise DwarfError(f"addresses of {address_size} bytes")
            if kind not in (1, 3) or unit.at >= unit.end:  # compile and partial units
                continue
            found = self._first(unit, abbreviations, address_size, version)
            line = found.get(_STMT_LIST, (0, None))[1]
            if not isinstance(line, int):
                continue
            base = found.get(_STR_OFFSETS_BASE, (0, 8))[1]
            str_offsets = base if isinstance(base, int) else 8
            form, directory = found.get(_COMP_DIR, (_STRING, b""))
            text = self.string(form, directory, str_offsets)
            ranges = self._ranges(found, address_size, version)
            yield _Unit(line, text, str_offsets), ranges

    def _first(
        self, unit: _Bytes, abbreviations: int, address_size: int, version: int
    ) -> dict[int, tuple[int, Value]]:
        """Read the first entry of a unit: {attribute: (form, value)}."""
        code = unit.uleb()
        found: dict[int, tuple[int, Value]] = {}
        for attribute, form, constant in self._abbreviation(abbreviations, code):
            self.steps.take()
            while form == _INDIRECT:  # each takes a byte
                self.steps.take()
                form = unit.uleb()
            if form == _IMPLICIT:
                found[attribute] = form, constant
            else:
                found[attribute] = form, _value(unit, form, address_size, version)
        return found

    def _abbreviation(self, offset: int, wanted: int) -> list[tuple[int, int, int]]:
        known = self._abbreviations.get((offset, wanted))
        if known is not None or not wanted:
            return known or []
        cursor = _Bytes(self["abbrev"], offset)
        while code := cursor.uleb():
            self.steps.take()
            cursor.uleb()
            cursor.skip(1)
            attributes: list[tuple[int, int, int]] = []
            while True:
                self.steps.take()
                attribute, form = cursor.uleb(), cursor.uleb()
                constant = cursor.sleb() if form == _IMPLICIT else 0
                if not attribute and not form:
                    break
                attributes.append((attribute, form, constant))
            if code == wanted:
                self._abbreviations[offset, wanted] = attributes
                return attributes
        raise DwarfError(f"no abbreviation {wanted}")

    def string(self, form: int, value: Value, str_offsets_base: int) -> bytes:
        """Return the text of a value."""
        if isinstance(value, bytes):
            return value
        if form in (_STRP, _LINE_STRP):
            return _Bytes(self["line_str" if form == _LINE_STRP else "str"], value).text()
        if form in _STRX:
            at = _Bytes(self["str_offsets"], str_offsets_base + 4 * value).fixed(4)
            return _Bytes(self["str"], at).text()
        return b""

    def _address(self, form: int, value: Value, base: int, size: int) -> int:
        if not isinstance(value, int):
            raise DwarfError("a text where an address is due")
        if form in _ADDRX:
            return _Bytes(self["addr"], base + size * value).fixed(size)
        return value

    def _ranges(
        self, found: Mapping[int, tuple[int, Value]], size: int, version: int
    ) -> list[tuple[int, int]]:
        addr_base = found.get(_ADDR_BASE, (0, 8))[1]
        if not isinstance(addr_base, int):
            addr_base = 8
        low = self._address(*found[_LOW], addr_base, size) if _LOW in found else 0
        if _RANGES in found:
            form, at = found[_RANGES]
            if not isinstance(at, int):
                raise DwarfError("a text where an offset is due")
            if version < 5:
                return self._old_ranges(at, low, size)
            if form == _RNGLISTX:
                base = found.get(_RNGLISTS_BASE, (0, 12))[1]
                if not isinstance(base, int):
                    base = 12
                at = base + _Bytes(self["rnglists"], base + 4 * at).fixed(4)
            return self._new_ranges(at, low, size, addr_base)
        if _HIGH in found:
            form, high = found[_HIGH]
            end = self._address(form, high, addr_base, size)
            return [(low, end if form == _ADDRESS or form in _ADDRX else low + end)]
        return []

    def _old_ranges(self, at: int, base: int, size: int) -> list[tuple[int, int]]:
        cursor, highest = _Bytes(self["ranges"], at), (1 << 8 * size) - 1
        ranges: list[tuple[int, int]] = []
        while True:
            self.steps.take()
            begin, end = cursor.fixed(size), cursor.fixed(size)
            if begin == highest:
                base = end
            elif not begin and not end:
                return ranges
            elif begin < highest - 1:
                ranges.append((base + begin, base + end))

    def _new_ranges(self, at: int, base: int, size: int, addr_base: int) -> list[tuple[int, int]]:
        cursor = _Bytes(self["rnglists"], at)
        ranges: list[tuple[int, int]] = []

        def indexed() -> int:
            return self._address(_ADDRX[0], cursor.uleb(), addr_base, size)

        while True:
            self.steps.take()
            kind = cursor.fixed(1)
            match kind:
                case 0:
                    return ranges
                case 1 | 5:
                    base = indexed() if kind == 1 else cursor.fixed(size)
                    continue
                case 2:
                    begin, end = indexed(), indexed()
                case 3:
                    begin = indexed()
                    end = begin + cursor.uleb()
                case 4:
                    begin, end = base + cursor.uleb(), base + cursor.uleb()
                case 6:
                    begin, end = cursor.fixed(size), cursor.fixed(size)
                case 7:
                    begin = cursor.fixed(size)
                    end = begin + cursor.uleb()
                case _:
                    raise DwarfError(f"unknown entry {kind} of a range list")
            ranges.append((begin, end))


@frozen
class _Header:
    """The header of a line program."""

    version: int
    lowest: int
    """Bytes of the shortest instruction."""
    line_base: int
    line_range: int
    lengths: bytes
    """Number of operands of each standard opcode."""
    directories: list[bytes]
    files: list[tuple[bytes, int]]
    """Name and directory of each."""

    def path(self, number: int, directory: bytes) -> str | None:
        """Return the path of a file, cut and printable; None: there is none of that number."""
        index = number if self.version >= 5 else number - 1
        if not 0 <= index < len(self.files):
            return None
        name, place = self.files[index]
        parts = [name]
        if self.version < 5:
            place -= 1
        if 0 <= place < len(self.directories):
            parts.insert(0, self.directories[place])
        path = b""
        for part in [directory, *parts]:
            path = part if part.startswith(b"/") or not path else path.rstrip(b"/") + b"/" + part
        text = path.decode("utf-8", "replace")
        # The end says more than the beginning.
        return printable(text if len(text) <= MAX_PATH else "..." + text[3 - MAX_PATH :], MAX_PATH)


def _header(sections: _Sections, cursor: _Bytes, version: int, unit: _Unit) -> _Header:
    if not 2 <= version <= 5:
        raise DwarfError(f"unknown version {version} of a line program")
    address_size = 4
    if version == 5:
        address_size = cursor.fixed(1)
        cursor.skip(1)
    length = cursor.fixed(4)
    begin = cursor.skip(length)
    fields = _Bytes(cursor.data, begin, begin + length)
    lowest = fields.fixed(1)
    if version >= 4 and fields.fixed(1) != 1:
        raise DwarfError("several operations in an instruction")
    fields.skip(1)
    line_base = fields.fixed(1)
    line_range, opcode_base = fields.fixed(1), fields.fixed(1)
    if not line_range or not opcode_base:
        raise DwarfError("a line program without a range of lines")
    at = fields.skip(opcode_base - 1)
    lengths = fields.data[at : at + opcode_base - 1]
    directories: list[bytes] = []
    files: list[tuple[bytes, int]] = []
    if version >= 5:
        directories = [name for name, _ in _entries(sections, fields, unit, address_size)]
        files = list(_entries(sections, fields, unit, address_size))
    else:
        while name := fields.text():
            sections.steps.take()
            directories.append(name)
        while name := fields.text():
            sections.steps.take()
            files.append((name, fields.uleb()))
            fields.uleb()
            fields.uleb()
    signed = line_base - 256 if line_base > 127 else line_base
    return _Header(version, lowest, signed, line_range, lengths, directories, files)


def _entries(
    sections: _Sections, cursor: _Bytes, unit: _Unit, address_size: int
) -> Iterator[tuple[bytes, int]]:
    """Yield name and directory of each entry of a table of DWARF 5."""
    formats = [(cursor.uleb(), cursor.uleb()) for _ in range(cursor.fixed(1))]
    count = cursor.uleb()
    for _ in range(count):
        sections.steps.take(1 + len(formats))
        name, place = b"", 0
        for content, form in formats:
            value = _value(cursor, form, address_size, 5)
            if content == 1:
                name = sections.string(form, value, unit.str_offsets_base)
            elif content == 2 and isinstance(value, int):
                place = value
        yield name, place


def _run(sections: _Sections, unit: _Unit, max_rows: int) -> _Table:
    """Run the line program of a unit."""
    data, steps = sections["line"], sections.steps
    cursor = _Bytes(data, unit.line_offset)
    version, end = cursor.unit()
    cursor.end = end
    header = _header(sections, cursor, version, unit)
    lowest, line_base, line_range = header.lowest, header.line_base, header.line_range
    opcode_base = len(header.lengths) + 1
    rows = array("I"), array("I"), array("I"), array("I")
    addresses, files, lines, columns = rows
    sequences: list[tuple[int, int, int, int]] = []
    address, file, line, column, first, rising = 0, 1, 1, 0, 0, True
    constant = (255 - opcode_base) // line_range * lowest
    while cursor.at < end:
        if not steps.taken % 64 and len(addresses) > max_rows:
            raise DwarfError(f"more than {MAX_ROWS} rows")
        steps.take()
        opcode = data[cursor.at]
        cursor.at += 1
        if opcode >= opcode_base:
            advance, change = divmod(opcode - opcode_base, line_range)
            address += advance * lowest
            line += line_base + change
        elif opcode == 0:
            length = cursor.uleb()
            after = cursor.skip(length) + length
            operands = _Bytes(data, after - length, after)
            extended = operands.fixed(1) if length else 0
            if extended == 2:
                address = operands.fixed(length - 1)
            elif extended == 1:
                if rising and first < len(addresses) and addresses[first] not in _DEAD:
                    sequences.append((addresses[first], address, first, len(addresses)))
                else:
                    for column_of in rows:
                        del column_of[first:]
                address, file, line, column = 0, 1, 1, 0
                first, rising = len(addresses), True
            continue
        elif opcode != 1:
            if opcode == 2:
                address += cursor.uleb() * lowest
            elif opcode == 3:
                line += cursor.sleb()
            elif opcode == 4:
                file = cursor.uleb()
            elif opcode == 5:
                column = cursor.uleb()
            elif opcode == 8:
                address += constant
            elif opcode == 9:
                address += cursor.fixed(2)
            elif opcode >= 12:
                for _ in range(header.lengths[opcode - 1]):
                    cursor.uleb()
            continue
        # Only here there is a row. A line or file beyond 32 bits is an OverflowError.
        if address > _MAX_ADDRESS or (len(addresses) > first and address < addresses[-1]):
            rising = False  # damaged, or of a function that was left out
            continue
        addresses.append(address)
        files.append(file)
        lines.append(line)
        columns.append(min(column, 0xFFFF))
    sequences.sort()
    names = {number: header.path(number, unit.directory) for number in set(files)}
    return _Table(
        [begin for begin, _, _, _ in sequences],
        [(stop, start, last) for _, stop, start, last in sequences],
        rows,
        {number: name for number, name in names.items() if name is not None},
    )
