"""CQL's types: parses their names to codecs, and converts collections, tuples and user types.

The driver package converts single values (see `scalars`). Framing in lists, sets, maps, tuples and
user types is done here, because the driver trusts the server that it reads from: a length that
exceeds the value is cut there, and an error here.

Results are plain Python: list, set, dict, tuple, a named tuple for a user type. In a set or the key
of a map, where Python requires hashable values, lists become tuples, sets become frozensets, and
maps become tuples of pairs; these are accepted as arguments, too.
"""

from __future__ import annotations

import collections
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized

from attrs import field, frozen

from ..._core.errors import SignatureError
from ..._core.tally import SLOT, Tally
from ..base import Value
from ..gil import breathe
from ..plain import shown
from ..suggestions import suggest_cql
from .framing import (
    HASHED,
    LIST_SIZE,
    PACE,
    Codec,
    Data,
    Joined,
    MalformedError,
    check_end,
    check_hashes,
    counted,
    listed,
    put,
    read_count,
    read_fields,
    read_items,
    take,
    write_count,
)

# Limits the nesting, as a name appears in messages, and each level takes stack.
MAX_DEPTH = 32
_PAIR_SIZE = sys.getsizeof((None, None))
_TOKENS = re.compile(r"[<>,]|[^<>,]+")


@frozen
class ListCodec:
    """``list<item>``."""

    name: str
    item: Codec
    single: bool = field(default=False, init=False)
    each: int = field(default=0, init=False)

    @property
    def hashable(self) -> bool:
        return self.item.hashable

    def encode(self, value: object) -> bytes:
        if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or not (
            isinstance(value, Sized) and hasattr(value, "__getitem__")
        ):
            raise TypeError(f"{self.name} takes a sequence, got {shown(value)}")
        return counted(value, self.item)

    def decode(self, data: bytes, at: int, end: int, tally: Tally, hashable: bool = False) -> Value:
        items = read_items(self.name, data, at, end, self.item, tally, hashable)
        return tuple(items) if hashable else items


@frozen
class SetCodec:
    """``set<item>``."""

    name: str
    item: Codec
    single: bool = field(default=False, init=False)
    each: int = field(default=0, init=False)

    @property
    def hashable(self) -> bool:
        return True

    def encode(self, value: object) -> bytes:
        if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or not (
            isinstance(value, Sized) and isinstance(value, Iterable)
        ):
            raise TypeError(f"{self.name} takes a set, got {shown(value)}")
        items = listed(self.name, value, len(value))
        if any(item is None for item in items):
            raise ValueError(f"{self.name} can't hold None")
        return counted(_in_order(items), self.item)

    def decode(self, data: bytes, at: int, end: int, tally: Tally, hashable: bool = False) -> Value:
        items = read_items(self.name, data, at, end, self.item, tally, True)
        if None in items:
            raise MalformedError(f"{self.name} with a null in it")
        tally.check(HASHED * len(items))
        check_hashes(self.name, items)
        made = frozenset(items) if hashable else set(items)
        tally.add(sys.getsizeof(made) - sys.getsizeof(items))
        return made


@frozen
class MapCodec:
    """``map<key,value>``."""

    name: str
    key: Codec
    value: Codec
    single: bool = field(default=False, init=False)
    each: int = field(default=0, init=False)

    @property
    def hashable(self) -> bool:
        return self.value.hashable

    def encode(self, value: object) -> bytes:
        if isinstance(value, tuple):
            try:
                value = dict(value)
            except (TypeError, ValueError):
                raise TypeError(
                    f"{self.name} takes a mapping, or a tuple of pairs, got {shown(value)}"
                ) from None
        if not isinstance(value, Mapping):
            raise TypeError(f"{self.name} takes a mapping, got {shown(value)}")
        # Copied once: in a thread, it may change meanwhile.
        pairs = {key: value[key] for key in listed(self.name, value, len(value))}
        if None in pairs:
            raise ValueError(f"{self.name} can't have None for a key")
        joined = Joined(write_count(len(pairs)))
        for number, key in enumerate(_in_order(list(pairs)), 1):
            put(joined.parts, self.key, key)
            put(joined.parts, self.value, pairs[key])
            if not number % PACE:
                joined.pace()
        return joined.result()

    def decode(self, data: bytes, at: int, end: int, tally: Tally, hashable: bool = False) -> Value:
        count, at = read_count(self.name, data, at, end, 8)
        each = self.key.each + self.value.each
        tally.add_made(LIST_SIZE + (SLOT + _PAIR_SIZE + each) * count, 2 * count if each else 1)
        pairs: list[tuple[Value, Value]] = []
        single: list[object] = []  # values not counted yet
        for number in range(count):
            if not number % PACE:
                breathe()
                if single:
                    tally.add_values(single)
                    single.clear()
            key, at = take(self.name, data, at, end, self.key, tally, True)
            item, at = take(self.name, data, at, end, self.value, tally, hashable)
            if key is None:
                raise MalformedError(f"{self.name} with a null for a key")
            pairs.append((key, item))
            if self.key.single and not self.key.each:
                single.append(key)
            if self.value.single and not self.value.each:
                single.append(item)
        tally.add_values(single)
        check_end(self.name, at, end)
        if hashable:
            return tuple(pairs)
        tally.check(HASHED * count)
        check_hashes(self.name, [key for key, _ in pairs])
        made = dict(pairs)
        tally.add(sys.getsizeof(made) - LIST_SIZE - (SLOT + _PAIR_SIZE) * count)
        return made


@frozen
class TupleCodec:
    """``tuple<a,b,...>``; each of its values may be None."""

    name: str
    items: tuple[Codec, ...]
    single: bool = field(default=False, init=False)
    each: int = field(default=0, init=False)

    @property
    def hashable(self) -> bool:
        return all(item.hashable for item in self.items)

    def encode(self, value: object) -> bytes:
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{self.name} takes a tuple, got {shown(value)}")
        if len(value) != len(self.items):
            raise ValueError(
                f"{self.name} takes {len(self.items)} values, got {len(value)}: {shown(value)}"
            )
        parts: list[Data] = []
        for codec, item in zip(self.items, value, strict=True):
            put(parts, codec, item)
        return b"".join(parts)

    def decode(self, data: bytes, at: int, end: int, tally: Tally, hashable: bool = False) -> Value:
        return read_fields(self.name, data, at, end, self.items, tally, hashable)


@frozen
class UserCodec:
    """A user type: a named tuple of its fields; fields that are not given are null."""

    name: str
    fields: tuple[str, ...]
    items: tuple[Codec, ...]
    make: Callable[..., tuple[object, ...]]
    single: bool = field(default=False, init=False)
    each: int = field(default=0, init=False)

    @property
    def hashable(self) -> bool:
        return all(item.hashable for item in self.items)

    def encode(self, value: object) -> bytes:
        parts: list[Data] = []
        for codec, item in zip(self.items, self._values(value), strict=True):
            put(parts, codec, item)
        return b"".join(parts)

    def _values(self, value: object) -> Sequence[object]:
        if isinstance(value, Mapping):
            unknown = [name for name in value if name not in self.fields]
            if unknown:
                raise ValueError(
                    f"{self.name} has the fields {', '.join(self.fields)}, got {shown(unknown[0])}"
                )
            return [value.get(name) for name in self.fields]
        if isinstance(value, (tuple, list)):
            if len(value) != len(self.fields):
                raise ValueError(
                    f"{self.name} takes {len(self.fields)} values, got {len(value)}: {shown(value)}"
                )
            return value
        try:
            return [getattr(value, name) for name in self.fields]
        except AttributeError:
            raise TypeError(
                f"{self.name} takes a mapping, a tuple, or an object with the attributes "
                f"{', '.join(self.fields)}, got {shown(value)}"
            ) from None

    def decode(self, data: bytes, at: int, end: int, tally: Tally, hashable: bool = False) -> Value:
        return self.make(*read_fields(self.name, data, at, end, self.items, tally, hashable))


def parse_type(
    what: str,
    name: str,
    scalar: Callable[[str], Codec | None],
    user_types: Mapping[str, Mapping[str, str]],
) -> Codec:
    """Return the codec for a type name such as ``map<text,frozen<list<int>>>``.

    Args:
        what: the function's name for messages.
        name: the type name, normalised.
        scalar: returns the codec of a single type, or None.
        user_types: {name: {field: type name}}.

    Raises:
        SignatureError: it is no CQL type, or one that CQL does not allow.
    """
    return _Parser(what, scalar, user_types).parse(name, ())


@frozen
class _Parser:
    what: str
    scalar: Callable[[str], Codec | None]
    user_types: Mapping[str, Mapping[str, str]]

    def parse(self, name: str, within: tuple[str, ...]) -> Codec:
        tokens = _TOKENS.findall(name)[::-1]
        codec = self._type(name, tokens, within, 0)
        if tokens:
            raise self._error(name, f"there is {tokens[-1]!r} after its end")
        return codec

    def _type(self, whole: str, tokens: list[str], within: tuple[str, ...], depth: int) -> Codec:
        if depth > MAX_DEPTH:
            raise self._error(whole, f"it is nested over {MAX_DEPTH} deep")
        word = tokens.pop() if tokens else ""
        if not word or word in "<>,":
            raise self._error(whole, "a type name is missing")
        if not tokens or tokens[-1] != "<":
            return self._simple(whole, word, within)
        inner: list[Codec] = []
        while tokens and tokens[-1] in ("<" if not inner else ","):
            tokens.pop()
            inner.append(self._type(whole, tokens, within, depth + 1))
        if not tokens or tokens.pop() != ">":
            raise self._error(whole, "a '>' is missing")
        return self._compound(whole, word, tuple(inner))

    def _simple(self, whole: str, word: str, within: tuple[str, ...]) -> Codec:
        if word in self.user_types:
            return self._user(word, within)
        codec = self.scalar(word)
        if codec is None:
            hint = suggest_cql(word)
            hint = "" if hint is None else f": {hint}"
            raise self._error(whole, f"there is no type {shown(word)}{hint}")
        return codec

    def _compound(self, whole: str, word: str, inner: tuple[Codec, ...]) -> Codec:
        counts = {"frozen": 1, "list": 1, "set": 1, "map": 2, "tuple": len(inner)}
        if word not in counts:
            raise self._error(whole, f"{word!r} takes no types")
        if len(inner) != counts[word]:
            raise self._error(whole, f"{word!r} takes {counts[word]} types, not {len(inner)}")
        if word == "frozen":
            return inner[0]
        name = f"{word}<{','.join(codec.name for codec in inner)}>"
        if word in ("set", "map") and not inner[0].hashable:
            raise self._error(whole, f"CQL allows no duration in {name!r}")
        if word == "list":
            return ListCodec(name, inner[0])
        if word == "set":
            return SetCodec(name, inner[0])
        return MapCodec(name, *inner) if word == "map" else TupleCodec(name, inner)

    def _user(self, word: str, within: tuple[str, ...]) -> Codec:
        if word in within:
            raise self._error(word, "the user type contains itself")
        fields = self.user_types[word]
        items = tuple(self.parse(kind, (*within, word)) for kind in fields.values())
        names = tuple(fields)
        # Fields whose names are invalid in Python are named by position: _0, _1.
        title = word if word.isidentifier() else "user_type"
        make = collections.namedtuple(title, names, rename=True)  # type: ignore[misc]
        return UserCodec(word, names, items, make)

    def _error(self, name: str, problem: str) -> SignatureError:
        return SignatureError(f"{self.what}: {shown(name)} is no CQL type: {problem}")


def _in_order(items: list[Value]) -> list[Value]:
    """Return items sorted, as CQL keeps sets and maps; unchanged if Python can't sort them."""
    try:
        return sorted(items)
    except (TypeError, ArithmeticError):  # a Decimal that is no number has no place in an order
        return items
