"""Charges bulk instructions for their length, where the compiler does not: on the baseline tier.

With wasmtime before 46, the optimizing compiler does not either.

The optimizing compiler charges `memory.fill` and its like a unit of fuel for each byte or element,
and `memory.grow` and `table.grow` one for each page or element that was added. The baseline
compiler charges nothing for that, so that a slice of a few units could fill gigabytes. There, each
such instruction becomes a call of a function that is added to the module: it executes the
instruction, and then burns the length.

1. Fuel is the same to the unit for lengths from `SLACK` on, and differs by at most 24 units below,
   and where a memory or table grows.
2. What burns fuel is a constant that is dropped: no code at all, but a unit. `burn` has blocks of
   1, 16 and 128 of them, and a loop of 1,024, which lets others run every now and then.
3. An instruction whose length is a small constant stays where it is, with that many of them behind
   it: its time is the same as without, and its fuel the same to the unit as on the other tier.
4. The instruction is executed at once, and charged afterwards, as the optimizing tier does it. If
   it traps, nothing is burnt.
5. The function that is called is not shown in backtraces, as it is behind the module's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from .encoding import sleb, uleb
from .types import Bulk, ModuleInfo

SLACK: Final = 38
"""Units that a call burns in any case, and from which on the length is charged to the unit."""
HELPER_LIMIT: Final = 1000
"""Number of different bulk instructions in a module that is compiled by the baseline compiler; most
modules have two, and a further one for each passive segment."""
UNITS_LIMIT: Final = 1 << 15
"""Units burnt behind instructions of small constant lengths in a module: they add three bytes each,
and all together less than a millisecond to compiling it. Further instructions become calls."""

_I32, _I64, _FUNCREF = b"\x7f", b"\x7e", b"\x70"
_PAIR: Final = b"\x41\x00\x1a"  # i32.const 0; drop: one unit
_LOOP, _HIGH, _LOW = 1024, 128, 16
_LENGTH: Final = b"\x20\x00"  # local.get 0
BURN_TYPE: Final = b"\x60\x01" + _I64 + b"\x00"
"""(i64) -> nothing: the type of the function that burns fuel."""


def can_charge(infos: Iterable[ModuleInfo]) -> bool:
    """Return whether all bulk instructions of modules are known, and few enough kinds of them."""
    return all(
        one.bulks is not None and len({bulk.code for bulk in split(one.bulks)[1]}) <= HELPER_LIMIT
        for one in infos
    )


def split(bulks: Sequence[Bulk]) -> tuple[list[Bulk], list[Bulk]]:
    """Return a module's bulk instructions that stay in place, and those that become calls."""
    left = UNITS_LIMIT
    staying: list[Bulk] = []
    called: list[Bulk] = []
    for bulk in bulks:
        if bulk.length is None or bulk.length > left:
            called.append(bulk)
        else:
            left -= bulk.length
            staying.append(bulk)
    return staying, called


def charged_inline(bulk: Bulk) -> bytes:
    """Return code that executes a bulk instruction of a constant length, and burns the length."""
    assert bulk.length is not None
    return bulk.code + _PAIR * bulk.length


def burn_body() -> bytes:
    """Return the body, with its size, of a function that burns so much fuel less `SLACK`."""

    def constant(number: int) -> bytes:
        return b"\x42" + sleb(number)

    less = _LENGTH + constant(SLACK)
    # if (n < SLACK) return; n -= SLACK
    body = b"\x00" + less + b"\x54\x04\x40\x0f\x0b" + less + b"\x7d\x21\x00"
    # block loop: br_if 1 (n < 1024); 1024 units, these instructions included; n -= 1024; br 0
    step = _LENGTH + constant(_LOOP)
    body += b"\x02\x40\x03\x40" + step + b"\x54\x0d\x01" + _PAIR * (_LOOP - 9)
    body += step + b"\x7d\x21\x00\x0c\x00\x0b\x0b"
    body += _slide(_LOOP // _HIGH - 1, _HIGH, _LENGTH + b"\x42\x07\x88\xa7")
    body += _slide(_HIGH // _LOW - 1, _LOW, _LENGTH + b"\x42\x04\x88\xa7\x41\x07\x71")
    body += _slide(_LOW - 1, 1, _LENGTH + b"\xa7\x41\x0f\x71")
    body += b"\x0b"
    return uleb(len(body)) + body


def _slide(count: int, units: int, selector: bytes) -> bytes:
    """Return code that burns `units` as many times as the selected number, `count` at most."""
    targets = b"".join(uleb(count - number) for number in range(count + 1))
    code = b"\x02\x40" * (count + 1) + selector + b"\x0e" + uleb(count) + targets + b"\x0b"
    return code + (_PAIR * units + b"\x0b") * count


def charged_type(code: bytes, info: ModuleInfo) -> bytes:
    """Return the type of the function that takes the place of a bulk instruction."""
    params, results = _signature(code, info)
    return b"\x60" + uleb(len(params)) + b"".join(params) + uleb(len(results)) + b"".join(results)


def charged_body(code: bytes, info: ModuleInfo, burn: int) -> bytes:
    """Return the body, with its size, of the function that takes the place of a bulk instruction.

    Args:
        code: the instruction.
        info: the module.
        burn: index of the function that burns fuel.
    """
    params, results = _signature(code, info)
    wide = params[-1] == _I64
    if results:
        # One local, for the result; (local.set 2 (table.grow (local.get 0) (local.get 1)))
        body = b"\x01\x01" + results[0] + b"\x20\x00\x20\x01" + code + b"\x21\x02"
        added = b"\x20\x01" if wide else b"\x20\x01\xad"
        refused = b"\x20\x02" + (b"\x42\x7f\x51" if wide else b"\x41\x7f\x46")
        # (call burn (select (i64.const 0) (added) (refused))) (local.get 2)
        body += b"\x42\x00" + added + refused + b"\x1b\x10" + uleb(burn) + b"\x20\x02\x0b"
        return uleb(len(body)) + body
    body = b"\x00\x20\x00\x20\x01\x20\x02" + code
    # A conversion takes a unit.
    body += _PAIR + b"\x20\x02" if wide else b"\x20\x02\xad"
    body += b"\x10" + uleb(burn) + b"\x0b"
    return uleb(len(body)) + body


def _signature(code: bytes, info: ModuleInfo) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Return the types of the operands of a bulk instruction, its length last, and of results.

    An index that is out of range, for which wasmtime refuses the module, counts as narrow.
    """
    kind, *operands = _numbers(code[1:])
    memories = [memory.wide for memory in info.memories]
    tables = [table.limits.wide for table in info.tables]

    def index(space: list[bool], number: int) -> bytes:
        return _I64 if number < len(space) and space[number] else _I32

    match kind:
        case 8:  # memory.init segment memory
            return (index(memories, operands[1]), _I32, _I32), ()
        case 10:  # memory.copy to from
            to, source = (index(memories, number) for number in operands)
            return (to, source, _narrower(to, source)), ()
        case 11:  # memory.fill memory
            address = index(memories, operands[0])
            return (address, _I32, address), ()
        case 12:  # table.init segment table
            return (index(tables, operands[1]), _I32, _I32), ()
        case 14:  # table.copy to from
            to, source = (index(tables, number) for number in operands)
            return (to, source, _narrower(to, source)), ()
        case 15:  # table.grow table
            length = index(tables, operands[0])
            return (_FUNCREF, length), (length,)
        case _:  # table.fill table
            at = index(tables, operands[0])
            return (at, _FUNCREF, at), ()


def _narrower(one: bytes, other: bytes) -> bytes:
    return _I64 if one == other == _I64 else _I32


def _numbers(data: bytes) -> list[int]:
    """Return the numbers that code consists of."""
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(value)
            value = shift = 0
    return found
