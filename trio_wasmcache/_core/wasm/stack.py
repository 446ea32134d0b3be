"""Weighs what functions keep on their stacks: a few KB of code can keep millions of values there.

Each result of a call that is not used at once is spilled around all later calls, and each value
that passes through a block becomes a parameter of it in the compiler: with a type of a thousand
results, one instruction of two bytes makes a thousand. That took wasmtime 12 s for 9 KB of calls,
and 13 s and 5.6 GB for 4.5 KB of loops.

1. An instruction weighs nothing unless it is a call of a type with several results, or a block that
   names a type: compilers of C, Rust or Go never write the latter, and hardly ever the former.
2. Instructions are decoded only as far as to find their length, by one regular expression: a whole
   module in a fifth of the time that wasmtime takes for it.
3. An unknown instruction ends the decoding, and the rest of the body weighs as if each byte began
   such an instruction. wasmtime will most likely refuse it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .types import FuncType

BLOCK_WEIGHT: Final = 20
"""Weight of a value that passes through a block; one that is kept across a call weighs 1."""
FUNCTION_LIMIT: Final = 100_000
"""Weight of one function, at most: half a second and half a GB for the compiler."""
MODULE_LIMIT: Final = 1_000_000
"""Weight of a module, at most, beside one for each of its bytes."""

_LEB: Final = rb"[\x80-\xff]{0,9}[\x00-\x7f]"
_MEMARG: Final = rb"(?:[\x40-\x7f]L|[\xc0-\xff][\x80-\xff]{0,8}[\x00-\x7f]L|L)L".replace(
    b"L", b"(?:" + _LEB + b")"
)
_PLAIN: Final = (
    rb"[\x00\x01\x05\x0b\x0f\x1a\x1b\x45-\xc4\xd1]",
    rb"[\x0c\x0d\x12\x20-\x26\x3f-\x42\xd0\xd2]L",
    rb"[\x28-\x3e]M",
    rb"[\x02-\x04][\x40-\x7f]",
    rb"\x43.{4}",
    rb"\x44.{8}",
    rb"\x13LL",
    rb"\x1c\x01[\x40-\x7f]",
    rb"\xfc(?:[\x00-\x07\x13-\x16]|[\x09\x0b\x0d\x0f-\x11]L|[\x08\x0a\x0c\x0e]LL)",
    rb"\xfd(?:[\x00-\x0b\x5c\x5d]M|[\x0c\x0d].{16}|[\x15-\x22].|[\x54-\x5b]M.)",
    rb"\xfd(?:[\x0e-\x14\x23-\x53\x5e-\x7f]|[\x80-\xff]{1,4}[\x01-\x7f])",
)
_CALLS: Final = (rb"\x10L", rb"\x11LL")


def _run(parts: Sequence[bytes]) -> re.Pattern[bytes]:
    """Return a pattern that matches a run of instructions of these forms."""
    each = b"|".join(parts).replace(b"M", _MEMARG).replace(b"L", b"(?:" + _LEB + b")")
    # Limited, so that the state kept by `re` is bounded.
    return re.compile(b"(?:" + each + b"){0,1000}", re.DOTALL)


_ANY_CALL, _NO_CALL = _run((*_PLAIN, *_CALLS)), _run(_PLAIN)
# Calls, blocks and jump tables, of which a run contains none or only some.
_SINGLE: Final = frozenset((0x02, 0x03, 0x04, 0x0E, 0x10, 0x11))
_NUMBER: Final = re.compile(_LEB)
# {power of two: pattern of that many numbers}, for the targets of a jump table.
_NUMBERS: Final = [re.compile(b"(?:" + _LEB + b"){%d}" % (1 << power)) for power in range(23)]


class Weigher:
    """Weighs the bodies of a module's functions, one after the other.

    Args:
        types: All types of the module.
        functions: The type of each function, imported ones first.
    """

    def __init__(self, types: Sequence[FuncType], functions: Sequence[FuncType]) -> None:
        self._types = types
        # {index: weight}
        self._calls: Mapping[int, int] = {
            number: _width(kind) for number, kind in enumerate(functions) if len(kind.results) > 1
        }
        self._indirect: Mapping[int, int] = {
            number: _width(kind) for number, kind in enumerate(types) if len(kind.results) > 1
        }
        several = self._calls or self._indirect
        self._run = _NO_CALL if several else _ANY_CALL
        widest = max(map(_width, types), default=0)
        self._worst = BLOCK_WEIGHT * max(widest, 1)

    def weigh(self, data: bytes, at: int, end: int, limit: int, step: Callable[[], object]) -> int:
        """Return the weight of the instructions there; may stop once it exceeds `limit`.

        Args:
            data: The module.
            at: Offset of the first instruction.
            end: Offset of the end of the body.
            limit: Weight above which the result need not be exact.
            step: Called for each run of instructions, and each instruction read by itself.
        """
        weight, match_run = 0, self._run.match
        while weight <= limit:
            step()
            found = match_run(data, at, end)
            assert found is not None
            begin, at = at, found.end()
            if at >= end:
                break
            opcode = data[at]
            typed = opcode > 0x04 or at + 1 == end or not 0x40 <= data[at + 1] < 0x80
            if opcode not in _SINGLE or not typed:
                if at == begin:
                    return weight + (end - at) * self._worst
                continue  # the run had the maximal length
            number, at = _leb(data, at + 1, end)
            if opcode <= 0x04:
                if number < len(self._types):
                    weight += BLOCK_WEIGHT * max(_width(self._types[number]), 1)
            elif opcode == 0x10:
                weight += self._calls.get(number, 0)
            elif opcode == 0x11:
                weight += self._indirect.get(number, 0)
                at = _skip(data, at, end, 1)
            else:
                at = _skip(data, at, end, number + 1)
            if at < 0:
                return weight + (end - begin) * self._worst
        return weight


def _width(kind: FuncType) -> int:
    return len(kind.params) + len(kind.results)


def _leb(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and the offset of its end; -1 if there is none."""
    found = _NUMBER.match(data, at, end)
    if found is None:
        return -1, -1
    value = 0
    for byte in reversed(found.group()):
        value = value << 7 | byte & 0x7F
    return value, found.end()


def _skip(data: bytes, at: int, end: int, count: int) -> int:
    """Return the offset of the end of `count` numbers; -1 if there are fewer."""
    if at < 0 or not 0 < count <= end - at:
        return -1
    for numbers in _NUMBERS:
        if count & 1:
            found = numbers.match(data, at, end)
            if found is None:
                return -1
            at = found.end()
        count >>= 1
        if not count:
            return at
    return -1
