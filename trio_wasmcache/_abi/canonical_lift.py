"""Lifts the values of a guest by the canonical ABI: from flat wasm values, and from its memory.

For each type there is one set of functions, compiled once:

- ``load(buffer, at, job)`` makes the value of what lies there;
- ``flat(values, job)`` makes it of flat values, which it takes from an iterator;
- ``collect(buffer, at, job)`` copies what a value refers to, for types that refer to more memory.

1. Nothing of a guest is trusted: addresses, lengths, numbers of cases, characters and texts are
   checked where they are used.
2. A value is counted before it is made, in bytes and fuel: lists when they begin, with all that
   their elements have at most, besides lists and texts in these.
3. Lists may overlap, so that a small memory says a huge value. Its values are counted each time.
4. What takes long raises `Detour`. Then `collect` copies all parts out of the memory, large ones in
   pieces, and a thread makes the same values of the copies.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any, Final, TypeAlias, final

from attrs import define, field, frozen

from .._core.costs import ITEM_FUEL, NUMBER_FUEL, copy_fuel
from .._core.errors import AbiError
from .._core.tally import ASCII_SIZE, BYTES_SIZE, FREE, NUMBER, SLOT, Tally
from .._core.wit.layout import align_up, cases_of, layout
from .._core.wit.text import type_text
from .._core.wit.types import (
    Enum,
    Flags,
    List,
    Option,
    Primitive,
    Record,
    Result,
    Tuple,
    Type,
    Variant,
)
from .._core.wit.values import Case, Err, Ok, Some, record_class
from .base import PAUSE, Convert, Value
from .bytes_and_text import lift_text
from .canonical_lower import NUMBERS_SHIFT, PAIR, PIECE, TEXT_SHIFT, Detour
from .canonical_numbers import CODES, ELEMENTS, NUMBERS, numbers_in
from .elements import LIST_SIZE, NUMBERS_PIECE
from .gil import breathe

_TAGS: Final = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I")}
_CHAR: Final = struct.Struct("<I")
_NATIVE: Final = sys.byteorder == "little"
CHAR_SIZE: Final = 80
"""Size of a str of one character (bytes), at most."""
CASE_SIZE: Final = sys.getsizeof(Case("", None))
COPY_PIECE: Final = 1024 * 1024
"""Bytes that are copied between two pauses: 0.1 to 1 ms."""
COPY_SIZE: Final = 200
"""Bytes that the copy of a part takes, besides its content."""

Buffer: TypeAlias = bytes | memoryview
Load: TypeAlias = "Callable[[Buffer, int, Lifting], Value]"
LiftFlat: TypeAlias = "Callable[[Iterator[Any], Lifting], Value]"
Collect: TypeAlias = "Callable[[Buffer, int, Lifting], object]"


@final
@define(eq=False)
class Lifting:
    """The state of one lifting."""

    got: str
    """The beginning of messages about the values."""
    memory: Buffer
    """The guest's memory, which nothing changes meanwhile; empty if there are copies."""
    tally: Tally
    left: float
    """Number of values that may still be made before it takes long."""
    copies: dict[tuple[int, int], bytes] | None = None
    """{(address, size): content} of the parts that were copied; None: they are in the memory."""
    cursor: int | None = None
    """Address of the next part, if all of them lie in `memory` in the order of lifting, each at a
    multiple of eight; None: they lie where the guest has them."""
    pending: list[tuple[Collect, int, int, int]] = field(factory=list)
    """What elements refer to is still to be copied: (how, address of the elements, their number,
    size of one)."""
    large: list[tuple[int, int]] = field(factory=list)
    """Address and size of parts that are still to be copied, in pieces."""
    collected: set[tuple[Collect, int, int]] = field(factory=set)
    fetch: Callable[[int, int], bytes] | None = None
    """Function that returns a copy of a part of the memory, given address and size, or raises
    `IndexError`; None: the memory is in `memory`."""

    def take(self, number: int) -> None:
        """Count values about to be made."""
        self.left -= number
        if self.left < 0:
            raise Detour

    def place(
        self, what: str, at: int, size: int, align: int, *, check: bool = False
    ) -> tuple[Buffer, int]:
        """Return the buffer with a part of the memory, and where in it the part begins.

        Args:
            what: the part, for messages.
            at: its address.
            size: its size (bytes).
            align: what its address must be a multiple of.
            check: whether it is only checked that the memory has it, so that nothing is copied.
        """
        if self.copies is not None:
            return self.copies[at, size], 0
        if at % align:
            raise AbiError(f"{self.got} {what} at address {at}, which is not a multiple of {align}")
        if self.fetch is not None:
            if size > COPY_PIECE and not check and self.left < math.inf:
                raise Detour  # before it is copied at once
            try:
                return self.fetch(*((at + size - 1, 1) if check else (at, size))), 0
            except IndexError:
                raise AbiError(
                    f"{self.got} {what} of {size} bytes at address {at}, which are not inside its "
                    "memory"
                ) from None
        if self.cursor is not None:
            begin, self.cursor = self.cursor, align_up(self.cursor + size, 8)
            return self.memory, begin
        if at + size > len(self.memory):
            raise AbiError(
                f"{self.got} {what} of {size} bytes at address {at}, which are not inside its "
                f"memory of {len(self.memory)} bytes"
            )
        return self.memory, at

    def copy(self, what: str, at: int, size: int, align: int) -> bytes:
        """Copy a part of the memory, to make values of it later; return the copy."""
        assert self.copies is not None
        found = self.copies.get((at, size))
        if found is None:
            buffer, at_in = self._reserve(what, at, size, align, check=False)
            found = self.copies[at, size] = bytes(buffer[at_in : at_in + size])
        return found

    def copy_content(self, what: str, at: int, size: int, align: int) -> None:
        """Copy the content of a text or a list; `copy_large` does so if it is large."""
        assert self.copies is not None
        if size <= COPY_PIECE:
            self.copy(what, at, size, align)
        elif (at, size) not in self.copies:
            self._reserve(what, at, size, align, check=True)
            self.copies[at, size] = b""
            self.large.append((at, size))

    def _reserve(
        self, what: str, at: int, size: int, align: int, *, check: bool
    ) -> tuple[Buffer, int]:
        """Count the copy of a part; return what `place` does."""
        copies, self.copies = self.copies, None
        found = self.place(what, at, size, align, check=check)
        self.copies = copies
        self.tally.check(self.tally.raw + size + COPY_SIZE)
        self.tally.raw += size + COPY_SIZE
        return found

    def copy_large(self) -> Iterator[Convert]:
        """Copy the large parts; yields `PAUSE` after each piece."""
        assert self.copies is not None
        while self.large:
            at, size = self.large.pop()
            made = BytesIO()  # whose content becomes bytes without one more copy
            for start in range(at, at + size, COPY_PIECE):
                stop = min(at + size, start + COPY_PIECE)
                fetch = self.fetch
                made.write(self.memory[start:stop] if fetch is None else fetch(start, stop - start))
                yield PAUSE
            self.copies[at, size] = made.getvalue()

    def text(self, at: int, size: int) -> str:
        """Return the text of a part of the memory."""
        self.left -= 1 + (size >> TEXT_SHIFT)
        if self.left < 0:
            raise Detour
        if self.cursor is None:
            buffer, begin = self.place("a string", at, size, 1)
        else:  # as `place` does, which is a third of all for a short text
            buffer, begin = self.memory, self.cursor
            self.cursor = (begin + size + 7) & -8
        if size > FREE:
            self.tally.spend(copy_fuel(size))
        data = bytes(buffer[begin : begin + size])
        if data.isascii():
            self.tally.add_made(ASCII_SIZE + size, 1)
            return data.decode("ascii")
        return lift_text(f"{self.got} a string that is", data, self.tally)


@final
@frozen(kw_only=True)
class Lifter:
    """How values of one type are lifted."""

    load: Load
    flat: LiftFlat
    collect: Collect | None = None
    """None: the type refers to no more memory."""
    size: int = 0
    """Bytes that a value takes in Python, besides lists and texts in it."""
    items: int = 1
    """Number of values that Python makes for a value, likewise."""


@functools.lru_cache(maxsize=1024)
def lifter(one: Type) -> Lifter:
    """Return how values of a type are lifted.

    Raises:
        ValueError: values of the type are not supported.
    """
    match one:
        case Primitive(name="char"):
            return _char()
        case Primitive(name="string"):
            return _string()
        case Primitive(name="bool"):
            return Lifter(
                load=lambda buffer, at, _: buffer[at] != 0,
                flat=lambda values, _: next(values) & 0xFFFFFFFF != 0,
            )
        case Primitive():
            return _number(one.name)
        case List():
            return _list(one)
        case Record() | Tuple():
            return _record(one)
        case Flags():
            return _flags(one)
        case Variant() | Enum() | Option() | Result():
            return _variant(one)
        case _:
            raise ValueError(f"values of the type {type_text(one)} are not supported")


def collect_all(job: Lifting) -> Iterator[Convert]:
    """Copy all that is pending; yields `PAUSE` between pieces, when others may run."""
    yield from job.copy_large()
    while job.pending:
        collect, begin, count, size = job.pending.pop()
        assert job.copies is not None
        data = job.copies[begin, count * size]
        for start in range(0, count, PIECE):
            stop = min(count, start + PIECE)
            job.tally.spend(ITEM_FUEL * (stop - start))
            for at in range(start * size, stop * size, size):
                collect(data, at, job)
            yield PAUSE
        yield from job.copy_large()


def collect_flat(one: Type, values: Iterator[Any], job: Lifting) -> None:
    """Copy what a flat value refers to, as `Lifter.collect` does for one in memory."""
    collect = lifter(one).collect
    slots = list(itertools.islice(values, len(layout(one).flat)))
    if collect is None:
        return
    inner = iter(slots)
    match one:
        case Primitive() | List():
            collect(PAIR.pack(*[slot & 0xFFFFFFFF for slot in slots]), 0, job)
        case Record() | Tuple():
            items = [part for _, part in one.fields] if isinstance(one, Record) else one.items
            for part in items:
                collect_flat(part, inner, job)
        case Variant() | Option() | Result():
            cases, number = cases_of(one), next(inner) & 0xFFFFFFFF
            if number < len(cases) and (case := cases[number]) is not None:
                collect_flat(case, inner, job)


# -- numbers and text


def _number(name: str) -> Lifter:
    kind = NUMBERS[name]
    unpack = struct.Struct("<" + CODES[name]).unpack_from

    def load(buffer: Buffer, at: int, _job: Lifting) -> Value:
        return unpack(buffer, at)[0]

    if kind.real:
        return Lifter(load=load, flat=lambda values, _: next(values), size=NUMBER)
    low, mask = kind.low, kind.high - kind.low
    # Bits above those of the type are not looked at.
    return Lifter(
        load=load, flat=lambda values, _: ((next(values) - low) & mask) + low, size=NUMBER
    )


def _char() -> Lifter:
    unpack = _CHAR.unpack_from

    def made(code: int, job: Lifting) -> str:
        if code < 0xD800 or 0xDFFF < code < 0x110000:
            return chr(code)
        raise AbiError(f"{job.got} {code:#x} as a char, which is no Unicode scalar value")

    return Lifter(
        load=lambda buffer, at, job: made(unpack(buffer, at)[0], job),
        flat=lambda values, job: made(next(values) & 0xFFFFFFFF, job),
        size=CHAR_SIZE,
    )


def _string() -> Lifter:
    unpack = PAIR.unpack_from

    def load(buffer: Buffer, at: int, job: Lifting) -> str:
        address, size = unpack(buffer, at)
        return job.text(address, size)

    def flat(values: Iterator[Any], job: Lifting) -> str:
        address = next(values) & 0xFFFFFFFF
        return job.text(address, next(values) & 0xFFFFFFFF)

    def collect(buffer: Buffer, at: int, job: Lifting) -> None:
        address, size = unpack(buffer, at)
        job.copy_content("a string", address, size, 1)

    return Lifter(load=load, flat=flat, collect=collect, items=0)


# -- lists

Make: TypeAlias = Callable[[Buffer, int, int, Lifting], Value]
"""Makes a list of elements: (buffer, where they begin, their number)."""


def _list(one: List) -> Lifter:
    inner, title = layout(one.element), f"a {type_text(one)}"
    size, align, unpack = inner.size, inner.align, PAIR.unpack_from
    make = _maker(one.element)
    deeper = lifter(one.element).collect

    def made(address: int, count: int, job: Lifting) -> Value:
        buffer, at = job.place(title, address, count * size, align)
        return make(buffer, at, count, job)

    def load(buffer: Buffer, at: int, job: Lifting) -> Value:
        address, count = unpack(buffer, at)
        return made(address, count, job)

    def flat(values: Iterator[Any], job: Lifting) -> Value:
        address = next(values) & 0xFFFFFFFF
        return made(address, next(values) & 0xFFFFFFFF, job)

    def collect(buffer: Buffer, at: int, job: Lifting) -> None:
        address, count = unpack(buffer, at)
        job.copy_content(title, address, count * size, align)
        if deeper is not None and (key := (deeper, address, count)) not in job.collected:
            job.collected.add(key)
            job.pending.append((deeper, address, count, size))

    return Lifter(load=load, flat=flat, collect=collect, items=0)


def _maker(element: Type) -> Make:
    """Return the function that makes lists of elements of a type."""
    if isinstance(element, Primitive) and element.name in CODES:
        return _bytes if element.name == "u8" else _numbers(element.name)
    size, one = layout(element).size, lifter(element)
    load, each, items = one.load, SLOT + one.size, max(one.items, 1)
    packed = numbers_in(element) if isinstance(element, (Record, Tuple)) else None
    whole = None if packed is None else packed[0].iter_unpack
    record: Any = record_class(element)._make if isinstance(element, Record) else None

    def make(buffer: Buffer, at: int, count: int, job: Lifting) -> list[Value]:
        job.take(1 + count * items)
        tally = job.tally
        if count * size > FREE:
            tally.spend(copy_fuel(count * size))
        tally.add_made(LIST_SIZE + count * each, 1 + count * one.items)
        values: list[Value] = []
        for start in range(at, at + count * size, PIECE * size):
            stop = min(at + count * size, start + PIECE * size)
            if whole is not None:
                found = whole(buffer[start:stop])
                values += found if record is None else map(record, found)
            else:
                values += [load(buffer, place, job) for place in range(start, stop, size)]
            if job.copies is not None:
                breathe()
        return values

    return make


def _bytes(buffer: Buffer, at: int, count: int, job: Lifting) -> bytes:
    job.take(1 + (count >> TEXT_SHIFT))
    if count > FREE:
        job.tally.spend(copy_fuel(count))
    job.tally.add_made(BYTES_SIZE + count, 1)
    return bytes(buffer[at : at + count])


def _numbers(name: str) -> Make:
    code, size = CODES[name], ELEMENTS[name].size

    def make(buffer: Buffer, at: int, count: int, job: Lifting) -> list[Value]:
        job.take(1 + (count >> NUMBERS_SHIFT))
        tally = job.tally
        copying = copy_fuel(count * size) if count * size > FREE else 0
        tally.spend(copying + NUMBER_FUEL * count)
        tally.add_made(LIST_SIZE + count * (SLOT + NUMBER), 1)
        view = memoryview(buffer)
        values: list[Value] = []
        for start in range(at, at + count * size, NUMBERS_PIECE * size):
            piece = view[start : min(at + count * size, start + NUMBERS_PIECE * size)]
            if name == "bool":
                values += map(bool, piece)
            elif _NATIVE:
                values += piece.cast(code).tolist()  # type: ignore[call-overload]
            else:
                values += struct.unpack(f"<{len(piece) // size}{code}", piece)
            if job.copies is not None:
                breathe()
        return values

    return make


# -- records


def _record(one: Record | Tuple) -> Lifter:
    parts = [inner for _, inner in one.fields] if isinstance(one, Record) else one.items
    lifters, offsets = [lifter(part) for part in parts], layout(one).offsets
    rows = [(part.load, at) for part, at in zip(lifters, offsets, strict=True)]
    flats = [part.flat for part in lifters]
    made: Any = record_class(one)._make if isinstance(one, Record) else tuple
    collects = [
        (part.collect, at)
        for part, at in zip(lifters, offsets, strict=True)
        if part.collect is not None
    ]
    packed = numbers_in(one)
    unpack = None if packed is None else packed[0].unpack_from

    def load_numbers(buffer: Buffer, at: int, _job: Lifting) -> Value:
        assert unpack is not None
        return made(unpack(buffer, at))

    def load(buffer: Buffer, at: int, job: Lifting) -> Value:
        return made([load_one(buffer, at + offset, job) for load_one, offset in rows])

    def flat(values: Iterator[Any], job: Lifting) -> Value:
        return made([flat_one(values, job) for flat_one in flats])

    def collect(buffer: Buffer, at: int, job: Lifting) -> None:
        for collect_one, offset in collects:
            collect_one(buffer, at + offset, job)

    return Lifter(
        load=load if unpack is None else load_numbers,
        flat=flat,
        collect=collect if collects else None,
        size=sys.getsizeof((None,) * len(parts)) + sum(part.size for part in lifters),
        items=1 + sum(part.items for part in lifters),
    )


def _flags(one: Flags) -> Lifter:
    labels = [(1 << number, label) for number, label in enumerate(one.labels)]
    unpack = _TAGS[layout(one).size].unpack_from

    def made(bits: int) -> frozenset[str]:
        # Bits without a label are not looked at.
        return frozenset([label for bit, label in labels if bits & bit])

    return Lifter(
        load=lambda buffer, at, _: made(unpack(buffer, at)[0]),
        flat=lambda values, _: made(next(values)),
        size=sys.getsizeof(frozenset(one.labels)),
    )


# -- variants


def _variant(one: Variant | Enum | Option | Result) -> Lifter:
    cases, outer, title = cases_of(one), layout(one), type_text(one)
    lifters = [None if case is None else lifter(case) for case in cases]
    loads = [None if inner is None else inner.load for inner in lifters]
    flats = [None if inner is None else inner.flat for inner in lifters]
    collects = [None if inner is None else inner.collect for inner in lifters]
    unpack, payload, count = _TAGS[outer.tag].unpack_from, outer.payload, len(cases)
    joined = outer.flat[1:]
    width = len(joined)
    splits = [_splits(case, joined) for case in cases]
    empty, make = _cases_made(one)

    def wrong(number: int, job: Lifting) -> AbiError:
        return AbiError(f"{job.got} case {number} of {title}, which has {count}")

    def load(buffer: Buffer, at: int, job: Lifting) -> Value:
        (number,) = unpack(buffer, at)
        if number >= count:
            raise wrong(number, job)
        inner = loads[number]
        return empty[number] if inner is None else make(number, inner(buffer, at + payload, job))

    def flat(values: Iterator[Any], job: Lifting) -> Value:
        number = next(values) & 0xFFFFFFFF
        given = [next(values) for _ in range(width)]
        if number >= count:
            raise wrong(number, job)
        inner = flats[number]
        if inner is None:
            return empty[number]
        for place, convert in splits[number]:
            given[place] = convert(given[place])
        return make(number, inner(iter(given), job))

    def collect(buffer: Buffer, at: int, job: Lifting) -> None:
        (number,) = unpack(buffer, at)
        if number >= count:
            raise wrong(number, job)
        inner = collects[number]
        if inner is not None:
            inner(buffer, at + payload, job)

    own = 0 if isinstance(one, Enum) or (isinstance(one, Option) and not _is_wrapped(one)) else 1
    return Lifter(
        load=load,
        flat=flat,
        collect=collect if any(collects) else None,
        size=CASE_SIZE * own + max((inner.size for inner in lifters if inner), default=0),
        items=max(1, own + max((inner.items for inner in lifters if inner), default=0)),
    )


def _is_wrapped(one: Option) -> bool:
    return isinstance(one.some, Option)


def _cases_made(
    one: Variant | Enum | Option | Result,
) -> tuple[Sequence[Value], Callable[[int, Value], Value]]:
    """Return the value of each case without a value of its own, and what makes those with one."""
    match one:
        case Enum():
            return one.cases, lambda _, inner: inner
        case Variant():
            names = [name for name, _ in one.cases]
            return [Case(name) for name in names], lambda number, inner: Case(names[number], inner)
        case Option():
            if _is_wrapped(one):
                return (None, None), lambda _, inner: Some(inner)
            return (None, None), lambda _, inner: inner
        case Result():
            kinds = (Ok, Err)
            return (Ok(), Err()), lambda number, inner: kinds[number](inner)


_SINGLE, _DOUBLE = struct.Struct("<f"), struct.Struct("<d")


def _single(bits: int) -> Value:
    return _SINGLE.unpack((bits & 0xFFFFFFFF).to_bytes(4, "little"))[0]


def _double(bits: int) -> Value:
    return _DOUBLE.unpack((bits & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little"))[0]


def _splits(case: Type | None, joined: Sequence[str]) -> list[tuple[int, Callable[[int], Value]]]:
    """Return (index, conversion) of the flat values of a case that are passed as another type.

    Integers need none: bits above those of their type are not looked at.
    """
    if case is None:
        return []
    floats = {"f32": _single, "f64": _double}
    return [
        (place, floats[own])
        for place, (own, kind) in enumerate(zip(layout(case).flat, joined, strict=False))
        if own != kind and own in floats
    ]
