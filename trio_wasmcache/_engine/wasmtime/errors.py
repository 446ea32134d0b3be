"""Convert the errors and traps of wasmtime to exceptions of this library, and free them.

`take_error` takes an error, an `Ending` the error or trap of a call. Both own what they are given.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from ctypes import byref, c_int, c_uint8, c_void_p
from typing import TypeAlias

from ..._core.demangle import MAX_MANGLED, demangle
from ..._core.errors import (
    ExitError,
    FuelExhaustedError,
    GuestError,
    LoadError,
    StackOverflowError,
    TrapError,
)
from ..._core.frames import Frame
from ..._core.text import fold, printable
from ..._core.wasm.custom import VEIL
from ..._core.wasm.growth import UNMOVED, CodeOffsets
from ..base import NoMemoryError
from . import native

# wasmtime_trap_code_enum (crates/c-api/include/wasmtime/trap.h), in the specification's words.
CODES = {
    0: "call stack exhausted",
    1: "out of bounds memory access",
    2: "unaligned atomic",
    3: "out of bounds table access",
    4: "uninitialized element",
    5: "indirect call type mismatch",
    6: "integer overflow",
    7: "integer divide by zero",
    8: "invalid conversion to integer",
    9: "unreachable",
    10: "interrupt",
    11: "out of fuel",
    13: "null reference",
    15: "allocation too large",
    21: "disabled opcode",
}
# What wasmtime says of exceptions, for which it has no codes.
UNCAUGHT = "thrown Wasm exception"
HEAP_FULL = "GC heap out of memory"
STACK_OVERFLOW, OUT_OF_FUEL = 0, 11
# A recursion bomb has tens of thousands of frames, all alike.
MAX_FRAMES = 32
# Frames of generated parts that are looked at, and not shown.
MAX_HIDDEN = 1000
# ENOMEM, as the last line of a message: the cause of all that stands above.
NO_MEMORY = "(os error 12)"
UNKNOWN_OFFSET = ctypes.c_size_t(-1).value
# wasmtime quotes the line that is wrong, and a line may be all of a module.
MAX_LINES, MAX_LINE_LENGTH = 12, 200


Offsets: TypeAlias = CodeOffsets | Mapping[bytes, CodeOffsets]
"""Map from the offsets of frames to those in the module as it was given.

For a graph, {name of a compiled part: map}; frames of parts that are not there are not shown.
"""


class Ending:
    """Where C says how something ended: with a trap, with an error, or well. Can be used again."""

    __slots__ = ("brief", "error", "error_ref", "offsets", "ran", "trap", "trap_ref", "within")

    def __init__(self, offsets: Offsets = UNMOVED, within: int = 0) -> None:
        self.brief: frozenset[str] = frozenset()
        """Codes of the traps whose errors have no frames: see `GuestDriver.abridge`."""
        self.ran = False
        """Whether any code had run where `take_error` found an error."""
        self.offsets = offsets
        """Map of the offsets of frames; see `Offsets`."""
        self.within = within
        """Number of outermost frames that are none of the guest's."""
        self.trap, self.error = c_void_p(), c_void_p()
        self.trap_ref, self.error_ref = byref(self.trap), byref(self.error)

    def leave(self) -> None:
        """Let it be used again: nothing is under way in it, and it has been looked at."""

    def take_error(self) -> GuestError:
        """Return what it ended with, where `trap` or `error` is set; they are no longer."""
        trap, error = self.trap.value, self.error.value
        self.trap.value = self.error.value = None
        if trap:
            return trap_error(trap, self)
        if error:
            return guest_error(error, self)
        raise AssertionError("it ended well")


def take_error(pointer: int) -> str:
    """Return the message of an owned wasmtime_error_t, which is freed; cut, and fit to be shown."""
    lines = _take_message(pointer).splitlines()
    return "\n".join(printable(line, MAX_LINE_LENGTH) for line in lines[:MAX_LINES])


def one_line(message: str) -> str:
    """Return a message of wasmtime's with its causes in one line, the first one last."""
    lines = (re.sub(r"^\d+: ", "", line.strip()) for line in message.splitlines())
    return ": ".join(line for line in lines if line not in ("", "Caused by:"))


def load_error(what: str, pointer: int) -> LoadError:
    """Make an owned wasmtime_error_t, which is freed, an error of loading; `what` failed."""
    message = take_error(pointer)
    kind = NoMemoryError if is_no_memory(message) else LoadError
    return kind(f"{what}: {message}")


def told_apart(ending: Ending) -> GuestError | NoMemoryError:
    """Return the error of an ending: `NoMemoryError` if the system refused memory.

    For what ends a start, or the first slice of a call: the first of an instance makes its stack.
    """
    error = ending.take_error()
    # Nothing had run, or there would be frames.
    if getattr(error, "code", "") == "host" and not ending.ran and is_no_memory(str(error)):
        return NoMemoryError(str(error))
    return error


def ran_out(ending: Ending) -> bool:
    """Return whether a trap ended it because the fuel was burnt; if so, forget the trap."""
    trap, code = ending.trap.value, c_uint8()
    if not trap or not native.trap_code(trap, byref(code)) or code.value != OUT_OF_FUEL:
        return False
    ending.trap.value = None
    native.wasm_trap_delete(trap)
    return True


def is_no_memory(message: str) -> bool:
    """Return whether an error of wasmtime says that the system had no memory or addresses left.

    A message may quote names of the guest's, but does not end with them.
    """
    return message.rstrip().endswith(NO_MEMORY)


def guest_error(pointer: int, ending: Ending) -> GuestError:
    """Make an error of an owned wasmtime_error_t: an exit, or what the host side made of a call."""
    status = c_int()
    exited = native.error_exit_status(pointer, byref(status))
    trace = native.PointerVec()
    native.error_wasm_trace(pointer, byref(trace))
    frames, backtrace = _take_frames(trace, ending)
    message = _take_message(pointer)
    if exited:
        return ExitError(
            f"the guest called proc_exit({status.value})",
            status=status.value,
            backtrace=backtrace,
            frames=frames,
        )
    return _host_error(_cause(message), backtrace, frames)


def _host_error(cause: str, backtrace: tuple[str, ...], frames: tuple[Frame, ...]) -> TrapError:
    """Make an error of a message of wasmtime's that is about no trap of its list.

    Asynchronous calls give it as an error, synchronous ones as a trap without a code.
    """
    if cause == UNCAUGHT:
        return TrapError(
            "the guest threw an exception and did not catch it",
            code="uncaught exception",
            backtrace=backtrace,
            frames=frames,
        )
    if cause.startswith(HEAP_FULL):
        return TrapError(
            "the guest's exceptions need more memory than memory_limit",
            code="exceptions over memory_limit",
            backtrace=backtrace,
            frames=frames,
        )
    return TrapError(cause, code="host", backtrace=backtrace, frames=frames)


def trap_error(pointer: int, ending: Ending) -> GuestError:
    """Make an error of an owned wasm_trap_t that ended a call."""
    code = c_uint8()
    known = native.trap_code(pointer, byref(code))
    frames: tuple[Frame, ...] = ()
    backtrace: tuple[str, ...] = ()
    message = ""
    if not (ending.brief and known and CODES.get(code.value) in ending.brief):
        trace = native.PointerVec()
        native.wasm_trap_trace(pointer, byref(trace))
        frames, backtrace = _take_frames(trace, ending)
        text = native.ByteVec()
        native.wasm_trap_message(pointer, byref(text))
        message = _cause(native.take_bytes(text).decode("utf-8", "replace"))
    native.wasm_trap_delete(pointer)
    if known and code.value == OUT_OF_FUEL:
        return FuelExhaustedError("all fuel is burnt", backtrace=backtrace, frames=frames)
    if known and code.value == STACK_OVERFLOW:
        return StackOverflowError(
            "the guest's stack is exhausted", backtrace=backtrace, frames=frames
        )
    if not known:
        return _host_error(message, backtrace, frames)
    name = CODES.get(code.value, message)
    return TrapError(f"wasm trap: {name}", code=name, backtrace=backtrace, frames=frames)


def _take_message(pointer: int) -> str:
    message = native.ByteVec()
    native.error_message(pointer, byref(message))
    native.error_delete(pointer)
    return native.take_bytes(message).decode("utf-8", "replace")


def _cause(message: str) -> str:
    # wasmtime says "error while executing at wasm backtrace:", the frames, and then why.
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # The last one: a function may be named so, too.
    for number in range(len(lines) - 2, 0, -1):
        if lines[number] == "Caused by:":
            return printable(lines[number + 1], MAX_LINE_LENGTH)
    return printable(lines[0] if lines else "unknown error", MAX_LINE_LENGTH)


def _take_frames(
    trace: native.PointerVec, ending: Ending
) -> tuple[tuple[Frame, ...], tuple[str, ...]]:
    """Return frames of a trace, which is freed, and what shows them."""
    frames: list[Frame] = []
    ending.ran = trace.size > 0
    count = max(0, trace.size - ending.within)
    hidden = 0
    for number in range(count):
        if len(frames) == MAX_FRAMES or hidden > MAX_HIDDEN:
            break
        frame = trace.data[number]
        offsets = _offsets(frame, ending.offsets)
        if offsets is None or native.wasm_frame_func_index(frame) >= offsets.functions:
            hidden += 1  # a generated part, or a function that was added to the module
            continue
        name = native.frame_func_name(frame)
        if name:
            size = min(name.contents.size, MAX_MANGLED)
            raw = ctypes.string_at(name.contents.data or 0, size).decode("utf-8", "replace")
            label = printable(demangle(raw.removeprefix(VEIL)), MAX_LINE_LENGTH)
        else:
            label = f"func[{native.wasm_frame_func_index(frame)}]"
        index = native.wasm_frame_func_index(frame)
        offset = native.wasm_frame_module_offset(frame)
        given: int | None = None
        inside = 0
        # Where it is not known, as in the prologue that found no stack, the offset is -1.
        if offset != UNKNOWN_OFFSET:
            given = offsets.given(offset)
            inside = given - offsets.given(offset - native.wasm_frame_func_offset(frame))
        part = b"" if isinstance(ending.offsets, CodeOffsets) else _part_name(frame)
        frames.append(Frame(label, given, place=(part, index, max(inside, 0))))
    native.wasm_frame_vec_delete(byref(trace))
    lines = fold([str(frame) for frame in frames])
    left = count - hidden - len(frames)
    if left:
        lines.append(f"... {left} more")
    return tuple(frames), tuple(lines)


def _offsets(frame: int | None, offsets: Offsets) -> CodeOffsets | None:
    """Return the map for the offset of a frame; None: the frame is not shown."""
    return offsets if isinstance(offsets, CodeOffsets) else offsets.get(_part_name(frame))


def _part_name(frame: int | None) -> bytes:
    """Return the name of the compiled part of a graph whose frame it is; empty: of none."""
    name = native.frame_module_name(frame)
    return ctypes.string_at(name.contents.data or 0, name.contents.size) if name else b""
