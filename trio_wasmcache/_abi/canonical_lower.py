"""Lowers Python values by the canonical ABI: to flat wasm values, and to blocks for the memory.

For each type there is one pair of functions, compiled once:

- ``store(value, image, at, job, me)`` writes a value into an image of memory, which is block number
  `me` of the job;
- ``flat(value, out, job)`` appends flat values to a list.

1. A block is memory that the guest has to allocate, with its content. What refers to it has zero as
   its address: where that lies is noted with the block. A block comes before those that its content
   refers to, which is the order in which wasmtime has them allocated.
2. Flat integers are unsigned, whatever their type.
3. A *strict* job runs no code of the values' classes, so that it can be done where nothing may
   happen in between. It raises `Detour` for what takes such code, what does not fit, and what takes
   long. A job that is not strict raises it for what takes long: it is to be done in a thread.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, TypeAlias, final

from attrs import define, evolve, field, frozen

from .._core.buffers import flat as flat_view
from .._core.wit.layout import cases_of, layout
from .._core.wit.text import parts_of, type_text
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
from .._core.wit.values import Case, Err, Ok, Some, python_name, record_class
from .base import Value
from .canonical_numbers import CODES, ELEMENTS, NUMBERS, PYTHON, kinds_of, numbers_in
from .gil import breathe
from .packing import Data
from .plain import F32_END, PlainType, reworded, shown, to_number

PIECE: Final = 1024
"""Number of values converted between two releases of the GIL."""
TEXT_SHIFT, NUMBERS_SHIFT = 8, 3
"""Powers of two: bytes of text, and numbers of a list, that count as one value of `MANY`."""
MAX_BLOCK: Final = 0x7FFFFFFF
"""Size of a block, at most (bytes)."""
PAIR: Final = struct.Struct("<II")
BYTE_FORMATS: Final = ("B", "b", "c")
"""Formats of buffers that are bytes."""
MISFITS: Final = (TypeError, ValueError, OverflowError)
_TAGS: Final = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I")}


class Detour(Exception):
    """The values can't be converted so: they take code of their classes, or they take long."""


Block: TypeAlias = "tuple[int, Data | bytearray, int, int]"
"""Alignment; content; number of the block that refers to it, or `FLAT`; where its address goes: an
offset in that block, or an index of the flat values."""
FLAT: Final = -1


@final
@define(eq=False)
class Lowering:
    """The state of one lowering."""

    strict: bool
    left: float
    """Number of values that may still be converted before it takes long."""
    views: ExitStack | None = None
    """Closes views of buffers once they are not used any more; a strict job needs none."""
    blocks: list[Block] = field(factory=list)

    def detour(self) -> None:
        """Raise `Detour` if the job is strict."""
        if self.strict:
            raise Detour

    def take(self, number: int) -> None:
        """Count values about to be converted."""
        self.left -= number
        if self.left < 0:
            raise Detour


Store: TypeAlias = Callable[[Value, bytearray, int, Lowering, int], None]
Flat: TypeAlias = "Callable[[Value, list[Any], Lowering], None]"


@final
@frozen
class Lowerer:
    """How values of one type are lowered."""

    store: Store
    flat: Flat


@functools.lru_cache(maxsize=1024)
def lowerer(one: Type) -> Lowerer:
    """Return how values of a type are lowered.

    Raises:
        ValueError: values of the type are not supported.
    """
    match one:
        case Primitive(name="char"):
            return _char()
        case Primitive(name="string"):
            return _blocks(1, _encode)
        case Primitive(name="bool"):
            return _bool()
        case Primitive(name="f32" | "f64"):
            return _real(NUMBERS[one.name])
        case Primitive():
            return _whole(NUMBERS[one.name])
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


# -- numbers and text


def _whole(kind: PlainType) -> Lowerer:
    low, high = kind.low, kind.high
    pack = struct.Struct("<" + CODES[kind.name]).pack_into
    mask = (1 << (64 if kind.wasm == "i64" else 32)) - 1

    def exact(value: Value, job: Lowering) -> int:
        job.detour()
        number: int = to_number(kind, value)
        return number if low else number & mask

    def store(value: Value, image: bytearray, at: int, job: Lowering, _me: int) -> None:
        if type(value) is int and low <= value <= high:
            pack(image, at, value)
        else:
            pack(image, at, exact(value, job))

    def flat(value: Value, out: list[Any], job: Lowering) -> None:
        if type(value) is not int or not low <= value <= high:
            value = exact(value, job)
        out.append(value & mask)

    return Lowerer(store, flat)


def _bool() -> Lowerer:
    kind = NUMBERS["bool"]

    def exact(value: Value, job: Lowering) -> int:
        if value is True or value is False:
            return int(value)
        job.detour()
        number: int = to_number(kind, value)
        return number

    def store(value: Value, image: bytearray, at: int, job: Lowering, _me: int) -> None:
        image[at] = exact(value, job)

    def flat(value: Value, out: list[Any], job: Lowering) -> None:
        out.append(exact(value, job))

    return Lowerer(store, flat)


def _packed(
    pack: Callable[[bytearray, int, Any], None], exact: Callable[[Value, Lowering], Any]
) -> Lowerer:
    """Lower values by a function that returns the number which stands for them."""

    def store(value: Value, image: bytearray, at: int, job: Lowering, _me: int) -> None:
        pack(image, at, exact(value, job))

    def flat(value: Value, out: list[Any], job: Lowering) -> None:
        out.append(exact(value, job))

    return Lowerer(store, flat)


def _real(kind: PlainType) -> Lowerer:
    pack = struct.Struct("<" + CODES[kind.name]).pack_into
    single = kind.name == "f32"

    def exact(value: Value, job: Lowering) -> float:
        if type(value) is float and (
            not single or -F32_END < value < F32_END or value - value != 0  # infinite, or no number
        ):
            return value
        job.detour()
        number: float = to_number(kind, value)
        return number

    return _packed(pack, exact)


def _char() -> Lowerer:
    pack = struct.Struct("<I").pack_into

    def exact(value: Value, job: Lowering) -> int:
        if type(value) is not str:
            job.detour()
            if not isinstance(value, str):
                raise TypeError(f"char takes a str of one character, got {shown(value)}")
            value = str.__str__(value)
        if len(value) != 1 or "\ud800" <= value <= "\udfff":
            job.detour()
            what = "half of a surrogate pair" if len(value) == 1 else f"{len(value)} characters"
            raise ValueError(f"char takes a str of one character, got {what}: {shown(value)}")
        return ord(value)

    return _packed(pack, exact)


def _blocks(align: int, encode: Callable[[Value, Lowering], tuple[Data, int]]) -> Lowerer:
    """Lower values by a function that returns the content of their block, and their length."""
    pack = PAIR.pack_into

    def store(value: Value, image: bytearray, at: int, job: Lowering, me: int) -> None:
        data, length = encode(value, job)
        pack(image, at, 0, length)
        job.blocks.append((align, data, me, at))

    def flat(value: Value, out: list[Any], job: Lowering) -> None:
        data, length = encode(value, job)
        job.blocks.append((align, data, FLAT, len(out)))
        out += 0, length

    return Lowerer(store, flat)


def _encode(value: Value, job: Lowering) -> tuple[Data, int]:
    if type(value) is not str:
        job.detour()
        if not isinstance(value, str):
            raise TypeError(f"string takes a str, got {shown(value)}")
    job.left -= 1 + (str.__len__(value) >> TEXT_SHIFT)
    if job.left < 0:
        raise Detour
    try:
        data = str.encode(value)
    except UnicodeEncodeError as error:
        job.detour()
        raise ValueError(f"string has no UTF-8 for {shown(value)}: {error.reason}") from None
    return data, _checked("string", len(data))


def _checked(name: str, size: int) -> int:
    if size > MAX_BLOCK:
        raise OverflowError(f"{name} of {size} bytes is too large")
    return size


# -- lists


def _list(one: List) -> Lowerer:
    element = one.element
    if isinstance(element, Primitive) and element.name in CODES:
        return _blocks(layout(element).size, _numbers(one, element.name))
    name, inner = type_text(one), layout(element)
    size, align, store_one = inner.size, inner.align, lowerer(element).store
    pack = PAIR.pack_into

    def fill(value: Value, job: Lowering, me: int, at: int) -> int:
        values = _sequence(name, value, job)
        count = len(values)
        job.take(count)
        image = bytearray(_checked(name, count * size))
        mine = len(job.blocks)
        job.blocks.append((align, image, me, at))
        to = 0
        try:
            for start in range(0, count, PIECE):
                if start:
                    breathe()
                for item in values[start : start + PIECE]:
                    store_one(item, image, to, job, mine)
                    to += size
        except MISFITS as error:
            raise reworded(error, f"item {to // size}: {error}") from None
        return count

    def store(value: Value, image: bytearray, at: int, job: Lowering, me: int) -> None:
        pack(image, at, 0, fill(value, job, me, at))

    def flat(value: Value, out: list[Any], job: Lowering) -> None:
        out += 0, 0
        out[-1] = fill(value, job, FLAT, len(out) - 2)

    return Lowerer(store, flat)


def _numbers(one: List, name: str) -> Callable[[Value, Lowering], tuple[Data, int]]:
    """Return the function that encodes lists of numbers."""
    elements, title, kind = ELEMENTS[name], type_text(one), PYTHON[name]
    size, only, is_bytes = elements.size, frozenset({kind}), name == "u8"

    def encode(value: Value, job: Lowering) -> tuple[Data, int]:
        if type(value) is list or type(value) is tuple:
            job.take(1 + (len(value) >> NUMBERS_SHIFT))
            if job.strict:
                if not only.issuperset(map(type, value)):
                    raise Detour
                try:
                    return elements.lower(value), len(value)
                except MISFITS:
                    raise Detour from None
        elif job.strict:
            if not is_bytes or type(value) is not bytes:
                raise Detour
            return value, len(value)
        elif is_bytes and (data := _view(value, job)) is not None:
            return data, _checked(title, len(data))
        else:
            job.take(1 + (_length(value) >> NUMBERS_SHIFT))
        numbers = elements.lower(value)
        return numbers, _checked(title, len(numbers)) // size

    return encode


def _view(value: Value, job: Lowering) -> memoryview | None:
    """Return a view of the bytes in a buffer of bytes, which is not copied; None if it is none.

    Items of any other format are values, as are those of a list.
    """
    assert job.views is not None
    try:
        view = job.views.enter_context(memoryview(value))
    except TypeError:
        return None
    if view.format.lstrip("@=<>!") not in BYTE_FORMATS or view.ndim != 1:
        return None
    return job.views.enter_context(flat_view(view))


def _length(value: Value) -> int:
    """Return the length of what may be converted to a list; 0 if it has none."""
    try:
        return max(len(value), 0)
    except Exception:  # of a class with methods of any kind
        return 0


def _sequence(name: str, value: Value, job: Lowering) -> Sequence[Value]:
    if type(value) is list or type(value) is tuple:
        found: Sequence[Value] = value
        return found
    job.detour()
    # By Python's own methods, whatever a subclass overrides; others may be without end.
    if isinstance(value, list):
        return list(list.__iter__(value))
    if isinstance(value, tuple):
        return list(tuple.__iter__(value))
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} takes a sequence, got {shown(value)}")
    job.take(_length(value))
    return [value[place] for place in range(_length(value))]


# -- records


def _record(one: Record | Tuple) -> Lowerer:
    parts = [inner for _, inner in one.fields] if isinstance(one, Record) else one.items
    lowerers = [lowerer(part) for part in parts]
    rows = [(part.store, at) for part, at in zip(lowerers, layout(one).offsets, strict=True)]
    flats = [part.flat for part in lowerers]
    names = [name for name, _ in one.fields] if isinstance(one, Record) else []
    values_of = _fields(one) if isinstance(one, Record) else _items(one)
    packed = numbers_in(one)
    pack, kinds = (None, []) if packed is None else (packed[0].pack_into, packed[1])

    def blame(number: int, error: Exception) -> Exception:
        place = f"field {python_name(names[number])}" if names else f"item {number}"
        return reworded(error, f"{place}: {error}")

    def store(value: Value, image: bytearray, at: int, job: Lowering, me: int) -> None:
        values = values_of(value, job)
        if pack is not None and kinds_of(values) == kinds:
            try:
                pack(image, at, *values)
            except (struct.error, OverflowError):
                pass  # one of them is out of its range: it is found below
            else:
                return
        number = 0
        try:
            for number, (store_one, offset) in enumerate(rows):
                store_one(values[number], image, at + offset, job, me)
        except MISFITS as error:
            raise blame(number, error) from None

    def flat(value: Value, out: list[Any], job: Lowering) -> None:
        values, number = values_of(value, job), 0
        try:
            for number, flat_one in enumerate(flats):
                flat_one(values[number], out, job)
        except MISFITS as error:
            raise blame(number, error) from None

    return Lowerer(store, flat)


def _fields(one: Record) -> Callable[[Value, Lowering], Sequence[Value]]:
    """Return the function that takes the values of a record's fields, in order."""
    made: Any = record_class(one)
    names, title = made._fields, type_text(one)
    count = len(names)

    def take(value: Value, job: Lowering) -> Sequence[Value]:
        if type(value) is made or (type(value) is tuple and len(value) == count):
            found: Sequence[Value] = value
            return found
        if type(value) is dict and len(value) == count:
            try:
                return [value[name] for name in names]
            except KeyError:
                pass
        job.detour()
        return _slow_fields(title, names, value)

    return take


def _slow_fields(title: str, names: Sequence[str], value: Value) -> Sequence[Value]:
    """Return the values of fields of an object of any class."""
    listed = ", ".join(names)
    try:
        if isinstance(value, Mapping):
            found = [value[name] for name in names]
            if others := [key for key in value if key not in names]:
                raise TypeError(f"{title} has no field {shown(others[0])}; there are {listed}")
            return found
        return [getattr(value, name) for name in names]
    except (AttributeError, KeyError):
        pass
    except MISFITS:
        raise
    except Exception as error:  # a value's own method may raise anything
        raise TypeError(f"{title}: {shown(value)} raised {shown(error)}") from None
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        raise TypeError(f"{title} takes {len(names)} values ({listed}), got {shown(value)}")
    raise TypeError(
        f"{title} takes a mapping with the keys, or an object with the attributes, {listed}; "
        f"got {shown(value)}"
    )


def _items(one: Tuple) -> Callable[[Value, Lowering], Sequence[Value]]:
    """Return the function that takes the items of a tuple, in order."""
    count, title = len(one.items), type_text(one)

    def take(value: Value, job: Lowering) -> Sequence[Value]:
        if (type(value) is tuple or type(value) is list) and len(value) == count:
            found: Sequence[Value] = value
            return found
        job.detour()
        values = _sequence(title, value, job)
        if len(values) != count:
            raise TypeError(f"{title} takes {count} values, got {len(values)}: {shown(value)}")
        return values

    return take


def _flags(one: Flags) -> Lowerer:
    bits = {label: 1 << number for number, label in enumerate(one.labels)}
    title = type_text(one)
    pack = _TAGS[layout(one).size].pack_into

    def exact(value: Value, job: Lowering) -> int:
        if job.strict and (
            type(value) not in (frozenset, set) or not {str}.issuperset(map(type, value))
        ):
            raise Detour
        if isinstance(value, (str, Mapping)) or not isinstance(value, (set, frozenset, Sequence)):
            raise TypeError(f"{title} takes a set of str, got {shown(value)}")
        found = 0
        for label in value:
            try:
                found |= bits[label]
            except (KeyError, TypeError):
                job.detour()
                raise ValueError(
                    f"{title} has no label {shown(label)}; there are {', '.join(bits)}"
                ) from None
        return found

    return _packed(pack, exact)


# -- for the log


def plain_value(one: Type, value: Value, job: Lowering) -> Value:
    """Return a value that was lowered, with named tuples for objects that stand for records.

    All of it that is not in records, or has none in it, stays as it is.

    Raises:
        Detour: it has more values than the job may convert.
        TypeError, ValueError, OverflowError: it does not fit, or not any more.
    """
    if not _has_records(one):
        return value

    def inner(part: Type | None, value: Value) -> Value:
        return None if part is None else plain_value(part, value, job)

    job.take(1)
    match one:
        case Record(fields=fields):
            made: Any = record_class(one)
            kinds, values = [kind for _, kind in fields], _fields(one)(value, job)
            items = [inner(kind, item) for kind, item in zip(kinds, values, strict=True)]
            return (
                dict(zip(made._fields, items, strict=True)) if type(value) is dict else made(*items)
            )
        case List(element=element):
            return [inner(element, item) for item in _sequence(type_text(one), value, job)]
        case Tuple(items=parts):
            values = _items(one)(value, job)
            return tuple([inner(part, item) for part, item in zip(parts, values, strict=True)])
        case Variant() | Option() | Result():
            number, held = _picker(one)(value, job)
            held = inner(cases_of(one)[number], held)
            return evolve(value, value=held) if type(value) in _WRAPPERS else held
    raise AssertionError(one)


@functools.lru_cache(maxsize=1024)
def _has_records(one: Type) -> bool:
    return isinstance(one, Record) or any(map(_has_records, parts_of(one)))


# -- variants

_WRAPPERS: Final = (Case, Some, Ok, Err)
Pick: TypeAlias = "Callable[[Value, Lowering], tuple[int, Value]]"
"""Returns the number of a value's case, and the case's value."""


def _variant(one: Variant | Enum | Option | Result) -> Lowerer:
    cases, outer = cases_of(one), layout(one)
    pick = _picker(one)
    lowerers = [None if case is None else lowerer(case) for case in cases]
    pack, payload = _TAGS[outer.tag].pack_into, outer.payload
    names = [name for name, _ in one.cases] if isinstance(one, Variant) else []
    joined = outer.flat[1:]
    joins = [_joins(case, joined) for case in cases]
    padding = [_padding(case, joined) for case in cases]

    def blame(number: int, error: Exception) -> Exception:
        if names:
            return reworded(error, f"case {names[number]}: {error}")
        return error

    def store(value: Value, image: bytearray, at: int, job: Lowering, me: int) -> None:
        number, inner = pick(value, job)
        pack(image, at, number)
        one = lowerers[number]
        if one is not None:
            try:
                one.store(inner, image, at + payload, job, me)
            except MISFITS as error:
                raise blame(number, error) from None
        elif inner is not None:
            raise _no_value(number, inner, job)

    def flat(value: Value, out: list[Any], job: Lowering) -> None:
        number, inner = pick(value, job)
        out.append(number)
        one = lowerers[number]
        if one is not None:
            start = len(out)
            try:
                one.flat(inner, out, job)
            except MISFITS as error:
                raise blame(number, error) from None
            for place, convert in joins[number]:
                out[start + place] = convert(out[start + place])
        elif inner is not None:
            raise _no_value(number, inner, job)
        out += padding[number]

    def _no_value(number: int, inner: Value, job: Lowering) -> Exception:
        job.detour()
        what = names[number] if names else "it"
        return TypeError(f"{type_text(one)}: {what} has no value, got {shown(inner)}")

    return Lowerer(store, flat)


def _picker(one: Variant | Enum | Option | Result) -> Pick:
    title = type_text(one)
    if isinstance(one, Enum):
        return _names(title, {name: number for number, name in enumerate(one.cases)})
    if isinstance(one, Variant):
        return _cases(title, {name: number for number, (name, _) in enumerate(one.cases)})
    if isinstance(one, Result):
        return _outcomes(title)
    if isinstance(one.some, Option):
        return _wrapped(title)

    def option(value: Value, _job: Lowering) -> tuple[int, Value]:
        if type(value) is Some:
            value = value.value
            return 1, value
        return (0, None) if value is None else (1, value)

    return option


def _names(title: str, numbers: dict[str, int]) -> Pick:
    def pick(value: Value, job: Lowering) -> tuple[int, Value]:
        if type(value) is str and value in numbers:
            return numbers[value], None
        job.detour()
        if not isinstance(value, str):
            raise TypeError(f"{title} takes a str, got {shown(value)}")
        value = str.__str__(value)
        if value in numbers:
            return numbers[value], None
        raise ValueError(f"{title} has no case {shown(value)}; there are {', '.join(numbers)}")

    return pick


def _cases(title: str, numbers: dict[str, int]) -> Pick:
    def pick(value: Value, job: Lowering) -> tuple[int, Value]:
        if type(value) is Case:
            name: Value = value.name
            if type(name) is not str:
                job.detour()
                name = str.__str__(name) if isinstance(name, str) else None
            if name in numbers:
                return numbers[name], value.value
            job.detour()
            raise ValueError(
                f"{title} has no case {shown(value.name)}; there are {', '.join(numbers)}"
            )
        job.detour()
        raise TypeError(f"{title} takes a Case(name, value), got {shown(value)}")

    return pick


def _outcomes(title: str) -> Pick:
    def pick(value: Value, job: Lowering) -> tuple[int, Value]:
        if type(value) is Ok:
            return 0, value.value
        if type(value) is Err:
            return 1, value.value
        job.detour()
        raise TypeError(f"{title} takes an Ok(value) or an Err(value), got {shown(value)}")

    return pick


def _wrapped(title: str) -> Pick:
    def pick(value: Value, job: Lowering) -> tuple[int, Value]:
        if value is None:
            return 0, None
        if type(value) is Some:
            return 1, value.value
        job.detour()
        raise TypeError(f"{title} takes None, Some(None) or Some(value), got {shown(value)}")

    return pick


_SINGLE, _DOUBLE = struct.Struct("<f"), struct.Struct("<d")


def _single_bits(value: float) -> int:
    return int.from_bytes(_SINGLE.pack(value), "little")


def _double_bits(value: float) -> int:
    return int.from_bytes(_DOUBLE.pack(value), "little")


def _joins(case: Type | None, joined: Sequence[str]) -> list[tuple[int, Callable[[Any], int]]]:
    """Return (index, conversion) of the flat values of a case that are passed as another type.

    Unsigned integers need none: an i32 is the i64 of its number.
    """
    if case is None:
        return []
    bits = {"f32": _single_bits, "f64": _double_bits}
    return [
        (place, bits[own])
        for place, (own, kind) in enumerate(zip(layout(case).flat, joined, strict=False))
        if own != kind and own in bits
    ]


def _padding(case: Type | None, joined: Sequence[str]) -> list[int | float]:
    """Return zeros for the flat values that a case does not need."""
    used = 0 if case is None else len(layout(case).flat)
    return [0.0 if kind in ("f32", "f64") else 0 for kind in joined[used:]]
