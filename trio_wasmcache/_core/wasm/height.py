"""Weighs how high the operand stack of a function is where its height costs a compiler time.

Both compilers look at each value that is on the stack, at each call, block, jump and write of a
local: 100 KB with 20,000 values and as many loops take Cranelift 6 s, 480 KB with 240,000 calls
that leave one each take Winch 34 s. `stack` weighs only single instructions of that kind.

1. The weight of a function is the sum of the heights at these instructions. Compilers of C, Rust
   and Go write code with heights of a few values: a thousandth of the limit in 2.5 MB.
2. It goes with the square of the size, so it is found only for functions of `HEIGHT_FROM` bytes or
   more, of which all instructions are known. Smaller ones of 4 MiB together take Cranelift 40 s at
   most, and Winch 5.
3. Heights are exact in code that can be reached. Behind a jump, code is not compiled up to the end
   of its block, and its heights count only where they are above zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from .stack import by_number, instructions, leb, skip, skip_catches
from .types import FuncType

RUN_STEPS: Final = 64
"""Steps that reading a run of a thousand instructions counts as."""

_TYPED: Final = rb"[\x02-\x04](?:[\x00-\x3f]|[\x80-\xff]{1,4}[\x00-\x7f])"
_ELSE, _END, _JUMPS, _TRY_TABLE = 0x05, 0x0B, 0x0E, 0x1F
_CALL, _CALL_INDIRECT, _MISC, _VECTOR = 0x10, 0x11, 0xFC, 0xFD
_IF, _EMPTY = 0x04, 0x40
# unreachable, throw, throw_ref, br, return, return_call, return_call_indirect.
_ENDING: Final = frozenset((0x00, 0x08, 0x0A, 0x0C, 0x0F, 0x12, 0x13))


_BYTE_EFFECTS: Final = by_number(
    {
        0: "01 22 25 28-35 40 45 50 67-69 79-7b 8b-91 99-9f a7-c4 d1",
        1: "20 23 3f 41-44 d0 d2",
        -1: "0d 1a 21 24 46-4f 51-66 6a-78 7c-8a 92-98 a0-a6",
        -2: "1b 1c 26 36-3e",
    }
)
_EFFECTS: Final = [_BYTE_EFFECTS.get(code) for code in range(256)]
"""By how much each instruction of one byte changes the height; None: it depends."""
# The same by the number behind a prefix; 0 if it is not here.
_MISC_EFFECTS: Final = by_number({1: "10", -1: "0f", -2: "13 14", -3: "8 a-c e 11"})
_VECTOR_EFFECTS: Final = by_number(
    {
        1: "c",
        -1: "d e 17 1a 1c 1e 20 22-4c 4e-51 54-57 65 66 6b-73 76-79 7b 82 85 86 8b-93 95-99 9b-9f "
        "ab-ae b1 b5-ba bc-bf cb-ce d1 d5-df e4-eb f0-f7 100 10d-112",
        -2: "b 52 58-5b 105-10c 113",
    }
)
# Instructions of one byte at which the height costs time: br_if, local.set, local.tee, and those
# that call the engine: table.get, table.set, memory.grow.
_COSTLY: Final = frozenset((0x0D, 0x21, 0x22, 0x25, 0x26, 0x40))


class Heights:
    """Weighs the heights of a module's functions, one after the other.

    Args:
        types: all types of the module.
        functions: the type of each function, imported ones first.
    """

    def __init__(self, types: Sequence[FuncType], functions: Sequence[FuncType]) -> None:
        self._types = types
        self._functions = functions
        self.last: int = 0
        """Height before the end of the last body that was weighed."""

    def weigh(self, data: bytes, at: int, end: int, limit: int, step: Callable[[], object]) -> int:
        """Return the weight of the instructions there, all of them known; see `Weigher`.

        Args:
            data: the module.
            at: offset of the first instruction.
            end: offset of the end of the body.
            limit: weight above which the result need not be exact.
            step: called for each run of instructions.
        """
        run_of, tokens = instructions(_TYPED, repeated=True), instructions(_TYPED)
        weight = height = 0
        # Of each block: the height below its parameters, and the number of these and its results.
        blocks: list[tuple[int, int, int]] = [(0, 0, 0)]
        while at < end and blocks and weight <= limit:
            step()
            run = run_of.match(data, at, end)
            assert run is not None
            begin, at = at, run.end()
            for token in tokens.findall(data, begin, at):
                opcode = token[0]
                change = _EFFECTS[opcode]
                if change is not None:
                    if opcode in _COSTLY and height > 0:
                        weight += height
                    height += change
                    continue
                if opcode == _VECTOR:
                    height += _VECTOR_EFFECTS.get(leb(token, 1, len(token))[0], 0)
                    continue
                if opcode == _MISC:
                    height += _MISC_EFFECTS.get(token[1], 0)
                elif opcode == _CALL:
                    height += _change(self._functions, token, 0)
                elif opcode == _CALL_INDIRECT:
                    height += _change(self._types, token, -1)
                elif opcode == _END:
                    below, _, given = blocks.pop()
                    if not blocks:
                        break
                    height = below + given
                elif opcode == _ELSE:
                    below, taken, _ = blocks[-1]
                    height = below + taken
                elif opcode in _ENDING:
                    height = blocks[-1][0]
                else:
                    height -= opcode == _IF
                    blocks.append(self._block(height, token, 1))
                if height > 0:
                    weight += height
            if at == begin and blocks:
                opcode = data[at] if at < end else -1
                if opcode == _JUMPS:
                    number, at = leb(data, at + 1, end)
                    at = skip(data, at, end, number + 1)
                    weight += max(height, 0)
                    height = blocks[-1][0]
                elif opcode == _TRY_TABLE:
                    blocks.append(self._block(height, data, at + 1))
                    at = skip(data, at + 1, end, 1)
                    _, at = skip_catches(data, at, end, step)
                    weight += max(height, 0)
                else:
                    break
                if at < 0:
                    break
        self.last = height
        return weight

    def _block(self, height: int, data: bytes, at: int) -> tuple[int, int, int]:
        """Return what `blocks` has of a block with the type at an offset."""
        kind = data[at]
        if kind == _EMPTY:
            return height, 0, 0
        if _EMPTY < kind < 0x80:
            return height, 0, 1
        number, _ = leb(data, at, len(data))
        if not 0 <= number < len(self._types):
            return height, 0, 0
        found = self._types[number]
        return height - len(found.params), len(found.params), len(found.results)


def _change(kinds: Sequence[FuncType], token: bytes, more: int) -> int:
    number, _ = leb(token, 1, len(token))
    if not 0 <= number < len(kinds):
        return 0
    return len(kinds[number].results) - len(kinds[number].params) + more
