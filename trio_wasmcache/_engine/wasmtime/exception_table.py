"""Make the `try` of a function hold from the function's first instruction on.

Python looks for signals at the first instruction of each call, and no `try` in the source begins
before the second. A function that must never raise, as one that C calls, has a gap there.
Where a `try` holds is not in the instructions: it is in a table of the code object, which can be
replaced. CPython's format since 3.11 (Objects/exception_handling_notes.txt, in its source):

- An entry is four numbers: where the `try` starts, how long it is, where its handler is (all three
  in instructions of two bytes), and twice the depth of the stack, plus one if the handler wants to
  know where the exception came from.
- A number is one byte or more of six bits each, the highest first. 0x40 is set in all but the last
  byte of a number, 0x80 in the first byte of an entry.

It is nobody's promise, so nothing is changed that is not understood: the table must be read without
an error, make sense for its code, and be the same when it is written again. The new table is read
again, too. Otherwise the function stays as it is, and `holds_from_the_start` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

ENTRY, MORE, BITS = 0x80, 0x40, 0x3F


class Entry(NamedTuple):
    """Where a `try` holds."""

    start: int
    length: int
    handler: int
    depth: int
    """Twice the depth of the stack, plus one if the handler is told the place."""


def tried_from_the_start(function: F) -> F:
    """Extend the first `try` of a function to its beginning, if its table is understood."""
    code: CodeType = function.__code__
    table = extend(getattr(code, "co_exceptiontable", b""), len(code.co_code) // 2)
    if table is not None:
        function.__code__ = code.replace(co_exceptiontable=table)
    return function


def holds_from_the_start(function: Callable[..., Any]) -> bool:
    """Read the table of a function, and tell whether a `try` holds at its first instruction."""
    code: CodeType = function.__code__
    entries = read(getattr(code, "co_exceptiontable", b""), len(code.co_code) // 2)
    return bool(entries) and entries[0].start == 0


def extend(table: bytes, size: int) -> bytes | None:
    """Return a table whose first entry starts at 0, or None if that can't be done with certainty.

    Args:
        table: as CPython keeps it.
        size: of the code that the table belongs to (instructions of two bytes).
    """
    entries = read(table, size)
    if not entries or entries[0].depth != 0:
        return None  # no `try`, or none that begins with nothing on the stack
    first, *others = entries
    wanted = [first._replace(start=0, length=first.start + first.length), *others]
    extended = write(wanted)
    return extended if read(extended, size) == wanted else None


def read(table: bytes, size: int) -> list[Entry]:
    """Return the entries of a table, in order; none if it is in another format."""
    entries = []
    end = at = 0
    while at < len(table):
        numbers = []
        for place in range(len(Entry._fields)):
            number, more, mark = 0, MORE, 0 if place else ENTRY
            while more:
                if at == len(table) or table[at] & ENTRY != mark:
                    return []
                number = number << 6 | table[at] & BITS
                more, mark = table[at] & MORE, 0
                at += 1
            numbers.append(number)
        entry = Entry(*numbers)
        if entry.start < end or not entry.length or entry.handler >= size:
            return []
        end = entry.start + entry.length
        entries.append(entry)
    return entries if end <= size and write(entries) == table else []


def write(entries: list[Entry]) -> bytes:
    """Return the table of these entries."""
    table = bytearray()
    for entry in entries:
        begin = len(table)
        for number in entry:
            groups = [number & BITS]
            while number := number >> 6:
                groups.append(number & BITS | MORE)
            table += bytes(reversed(groups))
        table[begin] |= ENTRY
    return bytes(table)
