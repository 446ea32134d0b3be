"""Functions of AssemblyScript's standard library that a host provides, under the module `env`.

They are provided where a module imports them with exactly these types, and the application gives
none. They write where a `Wasi` says, and take its clock and its seed; see `wasi` for the rules on
costs, which hold here, too. Strings are objects of the guest (see `_abi/managed`), whose headers
are not believed.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Mapping
from decimal import Decimal
from typing import Final, NoReturn, TypeAlias, cast, final

from attrs import evolve, field, frozen

from .._abi.base import Value
from .._core.costs import copy_fuel
from .._core.errors import AbiError, TrapError
from .._core.frames import Frame
from .._core.output import TAIL
from .._core.text import cut, escaped
from .._core.wasm.admission import signature
from .._core.wasm.memory_layout import HEADER_SIZE
from .._core.wasm.reader import FuncType, ModuleInfo
from .._engine.base import GuestMemory, HostCall
from .session import IF_DUE, NOTHING, Grants, Session
from .wasi import LINE_FUEL, PIECE, RANDOM_FUEL

MODULE: Final = "env"
MAX_WORDS: Final = 1000
"""Characters of one string of `abort` that its error has, at most."""
MAX_NUMBERS: Final = 5
"""Numbers that `trace` takes."""
OUT, ERR = 0, 1
NANOSECONDS: Final = 10**6
"""Nanoseconds in a millisecond."""

Results: TypeAlias = tuple[object, ...]
Steps: TypeAlias = Generator[float, None, Results]


@final
@frozen
class ScriptFunction:
    """One function of the standard library, for the runner to serve."""

    name: str
    type: FuncType = field(eq=False)
    _run: Callable[..., Results | Steps] = field(eq=False, repr=False)
    grants: Grants = NOTHING

    @property
    def serve_alone(self) -> Callable[[HostCall], Value]:
        """Function `serve`, which needs no task: see `HostImport.serve`."""
        return self.serve

    def misfit(self, _wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return f"AssemblyScript's function of that name is {signature(self.type)}"

    def serve(self, call: HostCall) -> Results | Steps:
        """Answer a call: return the result values, or steps that return them.

        Raises:
            TrapError: the guest aborts.
            AbiError: a string is not inside the guest's memory.
            FuelExhaustedError: it costs more fuel than the call has left.
            Exception: what the clock of the application has raised.
        """
        call.grants = self.grants
        return self._run(call, *call.values)


def _session(call: HostCall) -> Session:
    return Session.of(call, cast("Grants", call.grants))


# -- strings


def _string(call: HostCall, at: int) -> tuple[GuestMemory, int, int]:
    """Return the memory, and address and size of the text of a string.

    Raises:
        AbiError: it is not inside the memory.
    """
    memory, at = call.memory, at & 0xFFFFFFFF
    if memory is None:
        raise AbiError("the guest passes a string to its host, and exports no memory")
    if HEADER_SIZE <= at <= memory.size:
        size = int.from_bytes(memory.read(at - 4, 4), "little")
        if at + size <= memory.size:
            return memory, at, size & ~1
    raise AbiError(
        f"the guest passed a string at {at} to its host, which is not inside its memory of "
        f"{memory.size} bytes"
    )


def _beginning(call: HostCall, at: int) -> str:
    """Return the beginning of a string as printable text; empty if it is null, or no string."""
    if not at:
        return ""
    try:
        memory, begin, size = _string(call, at)
    except AbiError:
        return ""
    size = min(size, 2 * MAX_WORDS + 2)
    call.spend(copy_fuel(size))
    text = memory.read(begin, size).decode("utf-16-le", "replace")
    return escaped(cut(text, MAX_WORDS))


def abort(call: HostCall, message: int, file: int, line: int, column: int) -> NoReturn:
    """End the call with a trap that has the guest's message."""
    said, source = _beginning(call, message), _beginning(call, file)
    line, column = line & 0xFFFFFFFF, column & 0xFFFFFFFF
    where = f" in {source or 'an unknown file'}, line {line}, column {column}"
    frame = Frame("abort", None, source or None, line or None, column or None)
    raise TrapError(
        f"the guest aborted{where}" + (f": {said}" if said else ""), code="abort", frames=(frame,)
    )


# -- output


def _write(call: HostCall, which: int, at: int, more: str = "") -> Results | Steps:
    """Write a string, more text, and the end of the line, to one of the outputs."""
    stream = _session(call).streams[which]
    if not stream.keeps:
        return ()
    ending = f"{more}\n".encode()
    if not at:
        data = b"null" + ending
        stream.tail.add(len(data), data)
        return () if stream.lines is None else _write_pieces(call, which, None, ending)
    memory, begin, size = _string(call, at)
    if stream.lines is not None:
        return _write_pieces(call, which, (memory, begin, size), ending)
    # Each unit takes a byte at least, so this many give the tail.
    last = min(size, 2 * TAIL)
    call.spend(copy_fuel(last))
    text = memory.read(begin + size - last, last).decode("utf-16-le", "replace")
    data = text.encode() + ending
    stream.tail.add(max(size // 2 + len(ending), len(data)), data[-TAIL:])
    return ()


def _write_pieces(
    call: HostCall, which: int, text: tuple[GuestMemory, int, int] | None, ending: bytes
) -> Steps:
    """Pass on lines, a piece of the text at a time."""
    session = _session(call)
    stream = session.streams[which]
    decode = codecs.getincrementaldecoder("utf-16-le")("replace").decode
    if text is None:
        yield from session.write_lines(call, stream, b"null")
    else:
        memory, begin, size = text
        for start in range(0, size, PIECE):
            part = min(PIECE, size - start)
            call.spend(part * LINE_FUEL)
            data = decode(memory.read(begin + start, part), start + part == size).encode()
            stream.tail.add(len(data), data[-TAIL:])
            yield from session.write_lines(call, stream, data)
            if start + part < size:
                yield IF_DUE
        stream.tail.add(len(ending), ending)
    yield from session.write_lines(call, stream, ending)
    return ()


def log(call: HostCall, text: int) -> Results | Steps:
    """Write a line to standard output."""
    return _write(call, OUT, text)


def error(call: HostCall, text: int) -> Results | Steps:
    """Write a line to standard error."""
    return _write(call, ERR, text)


def trace(call: HostCall, message: int, count: int, *numbers: float) -> Results | Steps:
    """Write a line with a message and some numbers to standard output."""
    some = numbers[: min(max(count, 0), MAX_NUMBERS)]
    return _write(call, OUT, message, "".join(f" {number_text(number)}" for number in some))


def check(call: HostCall, condition: int, text: int) -> Results | Steps:
    """Write a line to standard error if a condition does not hold."""
    return () if condition else _write(call, ERR, text)


def number_text(number: float) -> str:
    """Return a number as JavaScript writes it to a console."""
    if number != number:  # NaN
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "Infinity" if number > 0 else "-Infinity"
    sign, digits, exponent = Decimal(repr(number)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0") or "0"
    # The decimal point is behind that many digits.
    point = int(exponent) + len(digits)
    minus = "-" * sign
    if text == "0":
        return f"{minus}0"
    text = text.lstrip("0")
    if len(text) <= point <= 21:
        return minus + text.ljust(point, "0")
    if 0 < point <= 21:
        return f"{minus}{text[:point]}.{text[point:]}"
    if -6 < point <= 0:
        return f"{minus}0.{'0' * -point}{text}"
    rest = f".{text[1:]}" if len(text) > 1 else ""
    return f"{minus}{text[0]}{rest}e{point - 1:+}"


# -- time and random numbers


def seed(call: HostCall) -> Results:
    """Return a number for a generator of random ones, which must not be 0."""
    call.spend(8 * RANDOM_FUEL)
    return (float(int.from_bytes(_session(call).random(8), "little") >> 12 | 1),)


def date_now(call: HostCall) -> Results:
    """Return the time since 1970 (milliseconds, whole)."""
    return (float(_session(call).now(True, call.state) // NANOSECONDS),)


def performance_now(call: HostCall) -> Results:
    """Return the time since the instance first asked for a monotonic one (milliseconds)."""
    return (_session(call).now(False, call.state) / NANOSECONDS,)


_TEXT: Final = FuncType(("i32",))
_NUMBER: Final = FuncType((), ("f64",))
FUNCTIONS: Final = {
    (MODULE, name): ScriptFunction(name, kind, run)
    for name, kind, run in (
        ("abort", FuncType(("i32",) * 4), abort),
        ("trace", FuncType(("i32", "i32", *("f64",) * MAX_NUMBERS)), trace),
        ("seed", _NUMBER, seed),
        ("Date.now", _NUMBER, date_now),
        ("performance.now", _NUMBER, performance_now),
        ("console.log", _TEXT, log),
        ("console.debug", _TEXT, log),
        ("console.info", _TEXT, log),
        ("console.warn", _TEXT, error),
        ("console.error", _TEXT, error),
        ("console.assert", FuncType(("i32", "i32")), check),
    )
}
"""{(module, name): function} of all functions, with no more than `NOTHING` granted."""


def functions_for(info: ModuleInfo, grants: Grants) -> Mapping[tuple[str, str], ScriptFunction]:
    """Return {(module, name): function} of those that a module imports, by name and type."""
    found = {}
    for item in info.imports:
        known = FUNCTIONS.get((item.module, item.name))
        if known is not None and known.type == item.type:
            found[item.module, item.name] = evolve(known, grants=grants)
    return found
