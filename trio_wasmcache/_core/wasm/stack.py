"""Weighs what functions keep on their stacks: a few KB of code can keep millions of values there.

Each result of a call that is not used at once is spilled around all later calls, and each value
that passes through a block becomes a parameter of it in the compiler: with a type of a thousand
results, one instruction of two bytes makes a thousand. That took wasmtime 12 s for 9 KB of calls,
and 13 s and 5.6 GB for 4.5 KB of loops.

1. An instruction weighs nothing unless it is a call of a type with several results, a block that
   names a type, or a call or throw inside a `try_table`: compilers of C, Rust or Go never write a
   block with a type, and hardly ever a call with several results.
2. Instructions are decoded only as far as to find their length, by one regular expression: a whole
   module in a fifth of the time that wasmtime takes for it.
3. An unknown instruction ends the decoding, and the rest of the body weighs as if each byte began
   such an instruction. wasmtime will most likely refuse it. An instruction of a feature that is
   switched off ends it, too, but the rest weighs nothing: wasmtime refuses the function there, and
   names the feature, which helps its author more than a weight does.
4. A call is compiled with all catches of the `try_table`s around it, which takes a microsecond for
   each pair of them: 10 s for 1000 calls, 100 catches and 3 KB. So it weighs the square of their
   number. Only inside of `try_table`s, blocks and ends are looked at one by one.
5. `memory.grow` and bulk instructions are noted on the way, as they may become calls: see
   `growth` and `bulk`. So is the length of a bulk instruction that directly follows a small
   constant. Bytes that look like one are not enough, as they may be the end of another instruction:
   the run of instructions is decoded again, up to there.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .types import BULK_LIMIT, SHORT, TABLE_GROW, FuncType

BLOCK_WEIGHT: Final = 20
"""Weight of a value that passes through a block; one that is kept across a call weighs 1."""
CATCHES_WEIGHT: Final = 5
"""Number of pairs of catches that weigh 1 for a call inside of them."""
FUNCTION_LIMIT: Final = 100_000
"""Weight of one function, at most: half a second and half a GB for the compiler."""
MODULE_LIMIT: Final = 1_000_000
"""Weight of a module, at most, beside one for each of its bytes."""

_LEB: Final = rb"[\x80-\xff]{0,9}[\x00-\x7f]"
_MEMARG: Final = rb"(?:[\x40-\x7f]L|[\xc0-\xff][\x80-\xff]{0,8}[\x00-\x7f]L|L)L".replace(
    b"L", b"(?:" + _LEB + b")"
)
# Limited, so that the state kept by `re` is bounded.
_REPEATED: Final = b"{0,1000}"
# The same without any state, which halves the time, but not for forms with groups. In earlier
# versions of Python it does not match all that it should (gh-106052).
_STATELESS: Final = _REPEATED + b"+" if sys.version_info >= (3, 11, 5) else _REPEATED
_PLAIN: Final = (
    # Those with a number below 0x80 are most, so they are tried first; the others are below.
    rb"[\x0c\x0d\x12\x20-\x26\x3f\x41\x42\xd0\xd2][\x00-\x7f]",
    rb"[\x00\x01\x05\x0f\x1a\x1b\x45-\xc4\xd1]",
    rb"[\x0c\x0d\x12\x20-\x26\x3f\x41\x42\xd0\xd2]L",
    rb"[\x28-\x3e]M",
    rb"\x43.{4}",
    rb"\x44.{8}",
    rb"\x13LL",
    rb"\x1c\x01[\x40-\x7f]",
    rb"\xfc(?:[\x00-\x07\x13-\x16]|[\x09\x0d\x10]L)",
    rb"\xfd(?:[\x00-\x0b\x5c\x5d]M|[\x0c\x0d].{16}|[\x15-\x22].|[\x54-\x5b]M.)",
    rb"\xfd(?:[\x0e-\x14\x23-\x53\x5e-\x7f]|[\x80-\xff]{1,4}[\x01-\x7f])",
)
_BULK: Final = rb"\xfc(?:[\x0b\x0f\x11]L|[\x08\x0a\x0c\x0e]LL)"
# Blocks without a type, and ends; throws.
_BLOCKS: Final = (rb"[\x02-\x04][\x40-\x7f]", rb"\x0b", rb"\x08L", rb"\x0a")
_CALLS: Final = (rb"\x10L", rb"\x11LL")


@functools.cache
def _run(parts: tuple[bytes, ...], repeated: bytes = _STATELESS) -> re.Pattern[bytes]:
    """Return a pattern that matches a run of instructions of these forms.

    Patterns are made when a module first needs them: each takes a millisecond or two.
    """
    return re.compile(b"(?:" + _one(parts).pattern + b")" + repeated, re.DOTALL)


def _one(parts: Sequence[bytes]) -> re.Pattern[bytes]:
    """Return a pattern that matches one instruction of these forms."""
    each = b"|".join(parts).replace(b"M", _MEMARG).replace(b"L", b"(?:" + _LEB + b")")
    return re.compile(each, re.DOTALL)


@functools.cache
def instructions(*more: bytes, repeated: bool = False) -> re.Pattern[bytes]:
    """Return a pattern that matches an instruction, or a run of them; see `_run` for its length.

    It knows all of fixed length: neither jump tables nor `try_table`.

    Args:
        more: further forms.
        repeated: whether it matches a run.
    """
    parts = (*_PLAIN, *_BLOCKS, *_CALLS, _BULK, rb"\x40L", *more)
    return _run(parts) if repeated else _one(parts)


_NO_CALL: Final = (*_PLAIN, *_BLOCKS)
_ANY_CALL: Final = (*_NO_CALL, *_CALLS)
# With a group for the last constant in the run: (i32.const or i64.const).
_CONSTANTS: Final = (rb"([\x41\x42]L)", *_ANY_CALL)
_BLOCK, _LOOP, _IF, _THROW, _THROW_REF, _END, _JUMPS = 0x02, 0x03, 0x04, 0x08, 0x0A, 0x0B, 0x0E
_CALL, _CALL_INDIRECT, _TRY_TABLE, _GROW, _MISC = 0x10, 0x11, 0x1F, 0x40, 0xFC
_CONST, _WIDE_CONST = 0x41, 0x42
# {second number of a bulk instruction: number of its operands}: memory.init, memory.copy,
# memory.fill, table.init, table.copy, table.grow, table.fill.
_BULK_OPERANDS: Final = {8: 2, 10: 2, 11: 1, 12: 2, 14: 2, 15: 1, 17: 1}
# Legacy exceptions (try, catch, rethrow, delegate, catch_all), and the prefix of threads.
REFUSED: Final = frozenset((0x06, 0x07, 0x09, 0x18, 0x19, 0xFE))
"""Opcodes that wasmtime refuses, as their feature is switched off, before it compiles the rest."""
# Of which a run contains none or only some.
_SINGLE: Final = frozenset(
    (_BLOCK, _LOOP, _IF, _JUMPS, _CALL, _CALL_INDIRECT, _TRY_TABLE, _GROW, _MISC)
)
_SINGLE_INSIDE: Final = _SINGLE | {_THROW, _THROW_REF, _END}
_OPENING: Final = (_BLOCK, _LOOP, _IF, _TRY_TABLE)
_NUMBER: Final = re.compile(_LEB)


@functools.cache
def _numbers(power: int) -> re.Pattern[bytes]:
    """Return a pattern of as many numbers as that power of two, for targets of a jump table."""
    return re.compile(b"(?:" + _LEB + b"){%d}" % (1 << power))


def by_number(numbers: Mapping[int, str]) -> dict[int, int]:
    """Return {number: key} of {key: numbers and ranges of numbers, in hexadecimal}."""
    found = {}
    for key, text in numbers.items():
        for part in text.split():
            first, _, last = part.partition("-")
            found.update(dict.fromkeys(range(int(first, 16), int(last or first, 16) + 1), key))
    return found


class Weigher:
    """Weighs the bodies of a module's functions, one after the other.

    Args:
        types: all types of the module.
        functions: the type of each function, imported ones first.
    """

    def __init__(self, types: Sequence[FuncType], functions: Sequence[FuncType]) -> None:
        self._types = types
        # {index: weight}
        self._calls: Mapping[int, int] = {}
        self._indirect: Mapping[int, int] = {
            number: _width(kind) for number, kind in enumerate(types) if len(kind.results) > 1
        }
        if self._indirect:  # else no function has such a type
            self._calls = {
                number: _width(kind)
                for number, kind in enumerate(functions)
                if len(kind.results) > 1
            }
        self._forms = _NO_CALL if self._indirect else _ANY_CALL
        self.plain: re.Pattern[bytes] = _run(self._forms)
        """What matches a run of instructions that weigh nothing, and of which nothing is noted."""
        self._inside: re.Pattern[bytes] | None = None  # for the insides of `try_table`s, if needed
        self._bulk: tuple[bytes, ...] = ()  # further forms, for when no more of them are noted
        self._bulks_left = BULK_LIMIT
        self.growths: list[tuple[int, int, int]] = []
        """[(offset, offset of its end, memory)] of each `memory.grow` in the last body."""
        self.bulks: list[tuple[int, int, int | None]] = []
        """[(offset, offset of its end, constant length or None)] of each bulk instruction in the
        last body."""
        self.knows_bulks = True
        """Whether `bulks` has been complete so far, if all instructions are known."""
        self.understood = True
        """Whether all instructions so far are known, so that `growths` were complete."""
        widest = max(map(_width, types), default=0)
        self._worst = BLOCK_WEIGHT * max(widest, 1)

    def weigh(self, data: bytes, at: int, end: int, limit: int, step: Callable[[], object]) -> int:
        """Return the weight of the instructions there; may stop once it exceeds `limit`.

        Args:
            data: the module.
            at: offset of the first instruction.
            end: offset of the end of the body.
            limit: weight above which the result need not be exact.
            step: called for each run of instructions, each instruction read by itself, and each
                catch.
        """
        weight = 0
        self.growths = []
        self.bulks = []
        opened: list[int] = []  # the catches of each block, from the outermost `try_table` on
        catches = 0  # of all of these
        while weight <= limit:
            step()
            found = (self._inside or self._run_inside() if opened else self.plain).match(
                data, at, end
            )
            assert found is not None
            begin, at = at, found.end()
            if at >= end:
                break
            opcode = data[at]
            if opcode not in (_SINGLE_INSIDE if opened else _SINGLE):
                if at == begin:
                    self.understood = False
                    return weight if opcode in REFUSED else weight + (end - at) * self._worst
                continue  # the run had the maximal length
            at += 1
            if opcode == _MISC:
                started = at - 1
                number, at = leb(data, at, end)
                if number not in _BULK_OPERANDS and started > begin:
                    at = started
                    continue  # likewise
                at = skip(data, at, end, _BULK_OPERANDS.get(number, 0))
                if at > 0 and self.knows_bulks:
                    # A growth may be refused, and is not charged then.
                    length = None if number == TABLE_GROW else _constant(data, begin, started)
                    self._note_bulk(started, at, length)
            elif opcode == _JUMPS:
                number, at = leb(data, at, end)
                at = skip(data, at, end, number + 1)
            elif opcode in _OPENING:
                if at < end and 0x40 <= data[at] < 0x80:
                    if not opened and opcode != _TRY_TABLE:
                        at -= 1
                        continue  # likewise
                    at += 1
                else:
                    number, at = leb(data, at, end)
                    if 0 <= number < len(self._types):
                        weight += BLOCK_WEIGHT * max(_width(self._types[number]), 1)
                caught = 0
                if opcode == _TRY_TABLE and at >= 0:
                    caught, at = skip_catches(data, at, end, step)
                if opened or opcode == _TRY_TABLE:
                    opened.append(caught)
                    catches += caught
            elif opcode == _END:
                catches -= opened.pop()
            else:
                weight += catches * catches // CATCHES_WEIGHT
                started = at - 1
                if opcode != _THROW_REF:
                    number, at = leb(data, at, end)
                if opcode == _GROW:
                    self.growths.append((started, at, number))
                elif opcode == _CALL:
                    weight += self._calls.get(number, 0)
                elif opcode == _CALL_INDIRECT:
                    weight += self._indirect.get(number, 0)
                    at = skip(data, at, end, 1)
            if at < 0:
                self.understood = False
                return weight + (end - begin) * self._worst
        return weight

    def _run_inside(self) -> re.Pattern[bytes]:
        self._inside = found = _run((*_PLAIN, *self._bulk))
        return found

    def _note_bulk(self, at: int, end: int, length: int | None) -> None:
        """Note a bulk instruction, or that there are too many."""
        self.bulks.append((at, end, length))
        self._bulks_left -= 1
        if self._bulks_left < 0:
            self.knows_bulks = False
            self._bulk = (_BULK,)
            self.plain, self._inside = _run((*self._forms, _BULK)), None


def _constant(data: bytes, begin: int, end: int) -> int | None:
    """Return the constant up to `SHORT` that ends a run of instructions; None if none does."""
    at = end - 2
    if at > begin and data[at] >= 0x80:
        at -= 1
    if at < begin or data[at] not in (_CONST, _WIDE_CONST) or data[end - 1] >= 0x40:  # negative
        return None
    value, _ = leb(data, at + 1, end)
    run = _run(_CONSTANTS, _REPEATED).match(data, begin, end)
    assert run is not None
    return value if value <= SHORT and run.end() == run.end(1) == end else None


def skip_catches(data: bytes, at: int, end: int, step: Callable[[], object]) -> tuple[int, int]:
    """Return the number of catches of a `try_table`, and the offset of their end, or -1."""
    count, at = leb(data, at, end)
    for _ in range(count):
        if not 0 <= at < end:
            return count, -1
        step()
        kind = data[at]
        at = skip(data, at + 1, end, 2 if kind < 2 else 1)  # a tag and a label, or a label
    return count, at


def _width(kind: FuncType) -> int:
    return len(kind.params) + len(kind.results)


def leb(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and the offset of its end; -1 if there is none."""
    found = _NUMBER.match(data, at, end)
    if found is None:
        return -1, -1
    value = 0
    for byte in reversed(found.group()):
        value = value << 7 | byte & 0x7F
    return value, found.end()


def skip(data: bytes, at: int, end: int, count: int) -> int:
    """Return the offset of the end of `count` numbers; -1 if there are fewer."""
    if at < 0 or not 0 < count <= end - at:
        return -1
    for power in range(23):
        if count & 1:
            found = _numbers(power).match(data, at, end)
            if found is None:
                return -1
            at = found.end()
        count >>= 1
        if not count:
            return at
    return -1
