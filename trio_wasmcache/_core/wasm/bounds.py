"""Finds exported functions whose calls burn little fuel and take little stack, whatever they do.

A call of such a *bounded* function is over before any slice is, so it needs no way to be
interrupted. It has no loop, so each of its instructions is executed at most once.

1. A function is bounded if all of its instructions are in `_FORMS`, and all functions that it calls
   are bounded. There is no loop, no recursion, no call of an import or through a table, nothing
   that works on a whole memory or table, nothing of exceptions, references or vectors.
2. Each instruction counts as a unit of fuel, and so does each call by itself. wasmtime charges a
   unit for most, and none for some.
3. What a frame keeps is at most a slot for each instruction, and for each parameter, result and
   local, and argument and result of a call; two if it is a float, which takes 16 bytes. So the
   slots of nested functions are bounded, too. What crosses at an export takes some on its way.
4. Instructions are decoded one by one. An unknown one, or a form that compilers do not write, ends
   it: then the function is not bounded.
5. Only a few small functions are looked at, so that it takes no time to speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .stack import by_number, leb, skip
from .types import BOUNDED_FUEL, FuncType, ModuleInfo

SLOTS_LIMIT: Final = 256
"""Values that its frames keep, with those of the functions that it calls, at most."""
BODY_LIMIT: Final = 512
"""Bytes of its body, at most, and of each that it calls."""
# Of each module, at most: instructions that are decoded, exported functions that are looked at, and
# bodies that are skipped over to find them.
_DECODED, _EXPORTS, _SKIPPED = 2000, 64, 4096
# Calls that are nested, at most.
_DEPTH: Final = 8

_NONE, _NUMBER, _ACCESS, _FOUR, _EIGHT, _BLOCK, _CALL, _TABLE, _MISC = range(1, 10)
# Types of values that take one slot: i32, i64, f32, f64; and, of blocks, no value.
_SLOT_TYPES: Final = frozenset((0x7F, 0x7E, 0x7D, 0x7C))
_BLOCK_TYPES: Final = _SLOT_TYPES | {0x40}
_SLOTS: Final = {"i32": 1, "i64": 1, "f32": 2, "f64": 2}
_FLOATS: Final = frozenset((0x7D, 0x7C))
# Slots for each parameter and result of an exported function, on the way into it and back.
_CROSSING: Final = 4
_END: Final = 0x0B
# i32.trunc_sat_f32_s up to i64.trunc_sat_f64_u, behind the prefix 0xfc.
_TRUNCATIONS: Final = 8
# Alignments of loads and stores; from here on, the number says that a memory is named, too.
_ALIGNMENTS: Final = 0x40


_FORM_OF: Final = by_number(
    {
        # unreachable, nop, else, end, return, drop, select; comparisons, arithmetic, conversions.
        _NONE: "00 01 05 0b 0f 1a 1b 45-c4",
        # br, br_if, locals and globals, memory.size, i32.const, i64.const.
        _NUMBER: "0c 0d 20-24 3f 41 42",
        _ACCESS: "28-3e",
        _FOUR: "43",
        _EIGHT: "44",
        _BLOCK: "02 04",
        _CALL: "10",
        _TABLE: "0e",
        _MISC: "fc",
    }
)
_FORMS: Final = bytes(_FORM_OF.get(opcode, 0) for opcode in range(256))
"""What follows each opcode of one byte; 0 if no bounded function has it."""


def bounded_exports(wasm: bytes, info: ModuleInfo, begin: int) -> frozenset[str]:
    """Return the names of the exported functions that are bounded.

    Args:
        wasm: the module as it is compiled. It is valid, so no instruction is cut off.
        info: what it declares. There may be more functions behind those.
        begin: offset of the first function body, with its size; 0: there is none.
    """
    if info.imported_functions or not begin:
        return frozenset()
    bounds = Bounds(wasm, info.functions, begin)
    exports = [export for export in info.exports if export.kind == "func"][:_EXPORTS]
    return frozenset(export.name for export in exports if bounds.fits(export.index))


def _slots(kind: FuncType) -> int:
    """Return the slots of parameters and results."""
    return sum(_SLOTS[name] for name in kind.params + kind.results)


class Bounds:
    """Finds the bounds of the functions of one module; see `bounded_exports` for the arguments."""

    def __init__(self, wasm: bytes, functions: Sequence[FuncType], begin: int) -> None:
        self._wasm = wasm
        self._functions = functions
        # [(offset behind the size, offset of the end)] of each body up to the last that was asked.
        self._bodies: list[tuple[int, int]] = []
        self._next = begin
        self._left = _DECODED
        self._depth = 0
        # {function: (fuel, slots) at most, or None}; also None while it is being found, so that a
        # recursion has no bound.
        self._found: dict[int, tuple[int, int] | None] = {}

    def fits(self, function: int) -> bool:
        """Return whether an exported function is bounded, with what crosses on the way into it."""
        kind, found = self._functions[function], self.find(function)
        crossing = _CROSSING * len(kind.params + kind.results)
        return found is not None and found[1] + crossing <= SLOTS_LIMIT

    def find(self, function: int) -> tuple[int, int] | None:
        """Return the fuel and the slots of a call, at most; None if it is not bounded."""
        if function not in self._found:
            self._found[function] = None
            if self._depth < _DEPTH:
                self._depth += 1
                self._found[function] = self._bound(function)
                self._depth -= 1
        return self._found[function]

    def _bound(self, function: int) -> tuple[int, int] | None:
        if function >= min(len(self._functions), _SKIPPED):
            return None
        kind = self._functions[function]
        at, end = self._body(function)
        if end - at > BODY_LIMIT or not _SLOTS.keys() >= {*kind.params, *kind.results}:
            return None
        slots, at = self._locals(at, end)
        slots += _slots(kind)
        return None if slots > SLOTS_LIMIT else self._instructions(at, end, slots)

    def _instructions(self, at: int, end: int, slots: int) -> tuple[int, int] | None:
        """Return the bound of a body, of which `slots` are known."""
        data, forms = self._wasm, _FORMS
        opcode, deepest = _END, 0
        fuel = 1  # of the call by itself
        while at < end:
            opcode = data[at]
            form = forms[opcode]
            at += 1
            fuel += 1
            slots += 1
            self._left -= 1
            if self._left < 0:
                return None
            if form == _NONE:
                continue
            if form == _NUMBER:
                _, at = leb(data, at, end)
            elif form == _ACCESS:
                if data[at] >= _ALIGNMENTS:
                    return None
                _, at = leb(data, at + 1, end)
            elif form == _CALL:
                number, at = leb(data, at, end)
                called = self.find(number)
                if called is None:
                    return None
                fuel += called[0]
                slots += _slots(self._functions[number])
                deepest = max(deepest, called[1])
            elif form == _BLOCK:
                if data[at] not in _BLOCK_TYPES:
                    return None
                at += 1
            elif form == _FOUR:
                at += 4
            elif form == _EIGHT:
                at += 8
            elif form == _TABLE:
                number, at = leb(data, at, end)
                if number > BODY_LIMIT:
                    return None
                at = skip(data, at, end, number + 1)
            elif form == _MISC and data[at] < _TRUNCATIONS:
                at += 1
            else:
                return None
            if at < 0:
                return None
        slots += deepest
        if at != end or opcode != _END or fuel > BOUNDED_FUEL or slots > SLOTS_LIMIT:
            return None
        return fuel, slots

    def _locals(self, at: int, end: int) -> tuple[int, int]:
        """Return the slots of the locals of a body, and the offset of its first instruction.

        Where one is of another type, or unknown, it is more slots than there may be.
        """
        data = self._wasm
        groups, at = leb(data, at, end)
        count = 0
        for _ in range(groups):
            if at >= end:
                return SLOTS_LIMIT + 1, at
            number, at = leb(data, at, end)
            count += number * (1 + (data[at] in _FLOATS))
            if data[at] not in _SLOT_TYPES:
                return SLOTS_LIMIT + 1, at
            at += 1
        return count, at

    def _body(self, function: int) -> tuple[int, int]:
        while len(self._bodies) <= function:
            size, at = leb(self._wasm, self._next, len(self._wasm))
            self._next = at + size
            self._bodies.append((at, at + size))
        return self._bodies[function]
