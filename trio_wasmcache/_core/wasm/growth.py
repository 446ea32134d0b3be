"""Makes a module note the growth of a memory that was refused, so that errors can name it.

The engine does not report a refused growth: the guest just gets -1, and usually traps soon after.
So each `memory.grow` of a memory that a limit of the cache can stop becomes a call of a function
that is added at the end. It grows the memory, and stores the number of pages asked for in an
exported global: the *note* of that memory. A growth that succeeds sets the note to 0.

1. Modules without `memory.grow` are not edited, nor are memories whose own maximum is within the
   limit.
2. No index changes: functions, globals and types are added after the module's own.
3. The call can be longer than the instruction that it replaces. `CodeOffsets` maps offsets back.
4. Only the guest's own instructions are seen, not memory that the host adds.
5. On the baseline tier, bulk instructions are charged in the same pass, and growth is in its
   function: see `bulk`.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

from ..config import WASM_PAGE
from .admission import Edits
from .bulk import BURN_TYPE, burn_body, charged_body, charged_inline, charged_type, split
from .custom import bodies_offset, find_sections
from .editor import extend_sections
from .encoding import name_bytes, section, uleb
from .types import PAGE_LIMIT, WIDE_PAGE_LIMIT, GlobalType, Instruction, ModuleInfo

_CALL: Final = b"\x10"
_TYPES, _FUNCTIONS, _GLOBALS, _EXPORTS, _CODE = 1, 3, 6, 7, 10
# (i32) -> i32 and (i64) -> i64.
_NARROW_TYPE, _WIDE_TYPE = b"\x60\x01\x7f\x01\x7f", b"\x60\x01\x7e\x01\x7e"
NOTE_TYPE: Final = GlobalType("i64", True)
"""Type of a note."""
# Of that type, and 0 at first.
_NOTE: Final = b"\x7e\x01\x42\x00\x0b"
_GLOBAL_KIND: Final = b"\3"


class Note:
    """The note of a memory, and which refusals are the cache's."""

    __slots__ = ("limit", "maximum", "memory")

    def __init__(self, memory: int, limit: int, maximum: int) -> None:
        self.memory = memory
        """Index of the memory."""
        self.limit = limit
        """Largest size that the cache allows (bytes)."""
        self.maximum = maximum
        """Largest size that the module itself, or its addresses, allow (bytes)."""

    def refused(self, asked: int, size: int) -> int | None:
        """Return the bytes that were refused because of `limit`; None if they were not.

        Args:
            asked: the note's value (pages); 0: the last growth succeeded, or there was none.
            size: size of the memory (bytes).
        """
        wanted = (asked & 0xFFFF_FFFF_FFFF_FFFF) * WASM_PAGE
        return wanted if wanted and self.limit < size + wanted <= self.maximum else None


def notes_of(info: ModuleInfo, edits: Edits) -> tuple[Note, ...]:
    """Return a note for each memory that grows, and that a limit stops before its maximum."""
    notes = []
    first = len(info.memories) - len(info.own_memories)
    for memory in sorted({growth.memory for growth in info.growths}):
        if memory < first:
            continue  # of another part of a graph, which has limits of its own
        declared = info.memories[memory]
        limit = edits.memory_limit
        maxima = edits.memory_maxima[memory - first :]
        if maxima and (pages := maxima[0]) is not None:
            limit = min(limit, pages * WASM_PAGE)
        maximum = declared.maximum
        if maximum is None:
            maximum = WIDE_PAGE_LIMIT if declared.wide else PAGE_LIMIT
        if limit < maximum * WASM_PAGE:
            notes.append(Note(memory, limit, maximum * WASM_PAGE))
    return tuple(notes)


class CodeOffsets:
    """Maps offsets in a compiled module to those in the module as it was given."""

    __slots__ = ("_shifts", "_starts", "functions")

    def __init__(
        self,
        functions: float = math.inf,
        starts: tuple[int, ...] = (0,),
        shifts: tuple[int, ...] = (0,),
    ) -> None:
        self.functions: float = functions
        """Number of functions of the module as it was given; those that were added are behind
        them."""
        self._starts = starts
        self._shifts = shifts
        """Bytes to add to an offset from each of `_starts` on."""

    def given(self, offset: int) -> int:
        """Return the offset in the module as it was given."""
        return offset + self._shifts[bisect.bisect_right(self._starts, offset) - 1]


UNMOVED: Final = CodeOffsets()


def code_offsets(
    wasm: bytes,
    edited: bytes,
    functions: int,
    moves: tuple[tuple[int, int], ...] = (),
    begin: int = 0,
    first: int | None = None,
) -> CodeOffsets:
    """Return the map from `edited` to `wasm`.

    Args:
        wasm: the module as it was given.
        edited: the module as it is compiled.
        functions: number of functions of `wasm`.
        moves: what `edit_code` returned, if it was called.
        begin: offset of `wasm` in what was given.
        first: offset of the first function body in `wasm`; None: it is looked for.
    """
    if first is None:
        first = bodies_offset(wasm)
    base = first if edited is wasm else bodies_offset(edited)
    shift = begin + first - base
    return CodeOffsets(
        functions,
        (0, *(base + at for at, _ in moves)),
        (shift, *(shift - longer for _, longer in moves)),
    )


def edit_code(
    wasm: bytes, info: ModuleInfo, names: Mapping[int, str], begin: int, *, charge: bool = False
) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """Return the module with its edited instructions, and where its code moved.

    Args:
        wasm: the module; its types, functions, globals and bodies are those of `info`.
        info: the module as it was given.
        names: {memory: export name of its note}, of the memories whose refused growth it notes.
        begin: offset of the first function body in the module as it was given.
        charge: whether bulk instructions, and growth, are charged for their length, too.

    Returns:
        The module, and [(bytes from the first body on, bytes by which code from there on has become
        longer)].
    """
    staying, called = split((info.bulks or ()) if charge else ())
    growths = [one for one in info.growths if charge or one.memory in names]
    if not (staying or called or growths):
        return wasm, ()
    added = _Added(len(info.types), len(info.functions))
    burn = added.function(BURN_TYPE, burn_body()) if charge and (called or growths) else None
    notes = {memory: len(info.globals) + number for number, memory in enumerate(names)}
    grow = {}
    for memory in sorted({one.memory for one in growths}):
        wide = info.memories[memory].wide
        kind = _WIDE_TYPE if wide else _NARROW_TYPE
        grow[memory] = added.function(kind, _wrapper(memory, notes.get(memory), burn, wide=wide))
    new: list[tuple[Instruction, bytes]] = [(one, _call(grow[one.memory])) for one in growths]
    if burn is not None:
        codes = {
            code: added.function(charged_type(code, info), charged_body(code, info, burn))
            for code in dict.fromkeys(bulk.code for bulk in called)
        }
        new += [(bulk, _call(codes[bulk.code])) for bulk in called]
    new += [(bulk, charged_inline(bulk)) for bulk in staying]
    new.sort(key=lambda pair: pair[0].at)
    edited, moves = _replaced(wasm, new, begin)
    exports = [
        name_bytes(name) + _GLOBAL_KIND + uleb(notes[memory]) for memory, name in names.items()
    ]
    items = {
        _TYPES: added.types,
        _FUNCTIONS: [uleb(number) for number in added.type_indexes],
        _GLOBALS: [_NOTE] * len(names),
        _EXPORTS: exports,
        _CODE: added.bodies,
    }
    return extend_sections(edited, {id: some for id, some in items.items() if some}), moves


class _Added:
    """Functions that are added to a module, each with a type of its own."""

    def __init__(self, types: int, functions: int) -> None:
        self._first_type, self._first = types, functions
        self.types: list[bytes] = []
        self.type_indexes: list[int] = []
        self.bodies: list[bytes] = []

    def function(self, kind: bytes, body: bytes) -> int:
        """Add a function; return its index."""
        if kind not in self.types:
            self.types.append(kind)
        self.type_indexes.append(self._first_type + self.types.index(kind))
        self.bodies.append(body)
        return self._first + len(self.bodies) - 1


def _call(function: int) -> bytes:
    return _CALL + uleb(function)


def _replaced(
    wasm: bytes, new: Sequence[tuple[Instruction, bytes]], begin: int
) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """Return the module with other code in the place of instructions, and where its code moved.

    Args:
        wasm: the module.
        new: each instruction and the code that replaces it, in order.
        begin: offset of the first function body in the module as it was given.
    """
    start, content, code_end = next(
        (start, content, end) for id, start, content, end in find_sections(wasm) if id == _CODE
    )
    at = first = bodies_offset(wasm)
    pieces: list[bytes] = [wasm[content:first]]
    moves: list[tuple[int, int]] = []
    longer = 0
    for _, group in itertools.groupby(new, lambda pair: pair[0].size):
        for begin_given, end_given, code in _replacements(list(group)):
            old, end = begin_given - begin + first, end_given - begin + first
            pieces += [wasm[at:old], code]
            at = end
            longer += len(code) - (end - old)
            moves.append((end - first + longer, longer))
    made = section(_CODE, b"".join([*pieces, wasm[at:code_end]]))
    return wasm[:start] + made + wasm[code_end:], tuple(moves)


def _replacements(new: list[tuple[Instruction, bytes]]) -> list[tuple[int, int, bytes]]:
    """Return [(begin, end, what replaces it)] for the size of a body and instructions in it."""
    made = [(one.at, one.end, code) for one, code in new]
    longer = sum(len(code) - (end - at) for at, end, code in made)
    body = new[0][0]
    return [(body.size, body.body, uleb(body.body_end - body.body + longer)), *made]


def _wrapper(memory: int, note: int | None, burn: int | None, *, wide: bool) -> bytes:
    """Return the body, with its size, of a function that grows a memory.

    Args:
        memory: index of the memory.
        note: index of its note; None: it has none.
        burn: index of the function that burns fuel for each page that was added; None: none does.
        wide: whether addresses have 64 bits.
    """
    # One local, for the result; then: (local.set 1 (memory.grow (local.get 0)))
    body = b"\x01\x01" + (b"\x7e" if wide else b"\x7f")
    body += b"\x20\x00\x40" + uleb(memory) + b"\x21\x01"
    pages = b"\x20\x00" if wide else b"\x20\x00\xad"
    refused = b"\x20\x01" + (b"\x42\x7f\x51" if wide else b"\x41\x7f\x46")
    if burn is not None:
        # (call burn (select (i64.const 0) (pages) (refused)))
        body += b"\x42\x00" + pages + refused + b"\x1b\x10" + uleb(burn)
    if note is not None:
        # (global.set note (select (pages) (i64.const 0) (refused)))
        body += pages + b"\x42\x00" + refused + b"\x1b\x24" + uleb(note)
    body += b"\x20\x01\x0b"
    return uleb(len(body)) + body
