"""What guests write to stdout and stderr: the tail that errors keep, and lines and their limits.

1. Nothing here grows with the output: a tail has at most `TAIL` bytes, an unfinished line at most
   `MAX_LINE`.
2. All text is printable: bytes that are not UTF-8 and control characters are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Final, final

from .config import KiB
from .text import cut, escaped

TAIL: Final = 2 * KiB
"""Bytes of each stream that are kept for the error of a failing call: a panic with its location and
the first frames of its trace."""
MAX_LINE: Final = KiB
"""Largest size of a line (bytes). A longer one is passed on in pieces of this size."""
CALL_LINES: Final = 16
"""Number of lines that one call may log."""
GROUP_LINES: Final = 100
"""Number of events about output that a group may log in a second, and at once."""
GROUP_VALUES: Final = 1024 * KiB
"""Characters of values of calls that a group may log in a second, and at once."""
MESSAGE_LINES, MESSAGE_WIDTH = 8, 200
"""Number of lines of output in the message of an error, and characters of each."""

# The beginnings of last words, as toolchains print them: Rust, Go and Zig; C's assert; abort of
# AssemblyScript and Emscripten; Go's runtime; Python and JavaScript.
_CAUSE = re.compile(
    r"\bpanic(?:ked)?\b|\bassert(?:ion)?\b|\babort(?:ed)?\b|^fatal error|^Traceback|\bUncaught\b",
    re.IGNORECASE,
)


def line_text(data: bytes) -> str:
    r"""Return a line as printable text: what can't be printed is escaped as ``\xNN``."""
    return escaped(data.decode("utf-8", "backslashreplace"))


def escapes(data: bytes) -> int:
    """Return the number of bytes that are not UTF-8, each of which takes an escape (300 ns)."""
    if data.isascii():
        return 0
    # Both are fast, unlike `backslashreplace`: they make no exception for each byte.
    return len(data) - len(data.decode("utf-8", "surrogateescape").encode("utf-8", "ignore"))


@final
class Tail:
    """The last bytes that a call wrote to one stream."""

    __slots__ = ("data", "size")

    def __init__(self) -> None:
        self.data = b""
        self.size = 0
        """Number of all bytes written."""

    def add(self, size: int, end: bytes) -> None:
        """Count `size` bytes more, of which `end` has the last, up to `TAIL`."""
        self.size += size
        self.data = end if len(end) >= TAIL else (self.data + end)[-TAIL:]

    def text(self) -> str:
        """Return the bytes as lines of printable text; the first begins with dots if it was cut."""
        data = self.data
        if not data:
            return ""
        cut = self.size > len(data)
        if cut:
            data = data.lstrip(_FOLLOWING)  # the rest of a character that was cut
        lines = data.removesuffix(b"\n").split(b"\n")
        text = "\n".join(line_text(line.removesuffix(b"\r")) for line in lines)
        return f"...{text}\n" if cut else f"{text}\n"


# Bytes of UTF-8 that continue a character.
_FOLLOWING = bytes(range(0x80, 0xC0))


def last_words(output: str) -> str:
    """Return the few lines of a call's output that the message of its error shows, if there are.

    They begin with the last line that names a cause, such as a panic, whose trace may be long; if
    none does, they are the last ones.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    first = max(len(lines) - MESSAGE_LINES, 0)
    for number in range(first - 1, -1, -1):
        if _CAUSE.search(lines[number]):
            first = number
            break
    shown = [cut(line, MESSAGE_WIDTH) for line in lines[first : first + MESSAGE_LINES]]
    return "".join(["; its last output:", *(f"\n    {line}" for line in shown)]) if shown else ""


@final
class Lines:
    """Cuts what is written to one stream into lines."""

    __slots__ = ("_open", "_rest", "muted", "muted_bytes", "muted_lines")

    def __init__(self, muted: bool = False) -> None:
        self.muted = muted
        """Whether lines are only counted from now on."""
        self.muted_lines = 0
        self.muted_bytes = 0
        """Bytes of these lines, without their ends."""
        self._rest = b""  # the unfinished line, of at most `MAX_LINE` bytes
        self._open = False  # whether the last line that was only counted is unfinished

    def add(self, data: bytes) -> Iterator[bytes]:
        """Add bytes; return the lines that are complete, without their ends, one when asked.

        A line over `MAX_LINE` comes in pieces. The iterator must be used up before more is added.
        """
        at = 0
        while at < len(data):
            if self.muted:
                self._count(data, at)
                return
            end, space = data.find(b"\n", at), MAX_LINE - len(self._rest)
            if (end if end >= 0 else len(data)) - at > space:
                piece, self._rest = self._rest + data[at : at + space], b""
                at += space
                yield piece
            elif end < 0:
                self._rest += data[at:]
                return
            else:
                line, self._rest = self._rest + data[at:end], b""
                at = end + 1
                yield line.removesuffix(b"\r")

    def _count(self, data: bytes, at: int) -> None:
        """Count the lines from there on: at the speed of C, as there may be one for each byte."""
        ends = data.count(b"\n", at)
        self.muted_lines += ends
        self.muted_bytes += len(self._rest) + len(data) - at - ends
        self._rest = b""
        self._open = not data.endswith(b"\n")

    def finish(self) -> bytes | None:
        """Return the unfinished line, or None if there is none; the stream has ended."""
        self.muted_lines += self._open
        rest, self._rest, self._open = self._rest, b"", False
        return rest or None


class _Budget:
    """How much a group may log: so much at once, and as much again each second."""

    __slots__ = ("left", "since")

    RATE: ClassVar[int]

    def __init__(self) -> None:
        self.left: float = self.RATE
        self.since = 0.0
        """Time at which that much was left (seconds)."""

    def take(self, now: float, number: int = 1) -> bool:
        """Take some of it at time `now` (seconds); return False if not so much is left."""
        if not self.has(now, number):
            return False
        self.left -= number
        return True

    def has(self, now: float, number: int) -> bool:
        """Return whether so much is left at time `now` (seconds)."""
        self.left = min(self.left + max(now - self.since, 0.0) * self.RATE, self.RATE)
        self.since = now
        return self.left >= number


@final
class ByteBudget(_Budget):
    """How many characters of values a group may log, and the calls that it has not logged."""

    __slots__ = ("dropped",)

    RATE: ClassVar[int] = GROUP_VALUES

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        """Number of calls that were not logged since the last one that was."""


@final
class LineBudget(_Budget):
    """How many events about output a group may log, and what it has not logged since the last."""

    __slots__ = ("dropped_bytes", "dropped_lines")

    RATE: ClassVar[int] = GROUP_LINES

    def __init__(self) -> None:
        super().__init__()
        self.dropped_lines = 0
        self.dropped_bytes = 0

    def drop(self, lines: int, size: int) -> None:
        """Count lines that are not logged, and their bytes."""
        self.dropped_lines += lines
        self.dropped_bytes += size

    def take_dropped(self) -> tuple[int, int]:
        """Return the numbers of lines and bytes that were dropped, and count from 0 again."""
        dropped = self.dropped_lines, self.dropped_bytes
        self.dropped_lines = self.dropped_bytes = 0
        return dropped
