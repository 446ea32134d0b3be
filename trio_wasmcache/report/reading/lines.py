"""Reads files, and yields lines that may be events, block by block.

Memory is bounded by the size of a block, whatever the size of the file; a line longer than
`MAX_LINE` is no event and is skipped. Only lines that may be events become objects, the others are
counted at the speed of a search. A packed file that expands to almost nothing but other data,
without end, is abandoned (`MAX_BARREN`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, final

from attrs import Factory, define, field, frozen

from .notes import Notes, cite, count
from .streams import READ_ERRORS, STDIN, CountingFile, explain, is_plain, open_stream, read_some
from .units import size

T = TypeVar("T")
Piece: TypeAlias = tuple[bytes, int]
"""Lines, and the offset of their end; a part of another line may follow."""

BLOCK = 8 * 1024 * 1024
PIECE = 1024 * 1024
# The longest event that the cache writes is a few KB.
MAX_LINE = 1024 * 1024
# Average length of lines (bytes) from which on their number does not matter.
LONG = 150
# Number of bytes without an event after which a packed file is abandoned, if each of its own bytes
# gave more than `MAX_RATIO` of them: no log is packed like that, and gzip can hardly do better.
MAX_BARREN = 2 * 1024 * 1024 * 1024
MAX_RATIO = 500
# Bytes in which the first event of a file is searched, to find which file is the oldest.
HEAD = 64 * 1024
# The beginning of an event's name, as every JSON renderer writes it.
MARK = b'"wasmcache.'
NAME = b"wasmcache."
# Characters of a blank line, besides its end.
BLANKS = b" \t\r\x0b\x0c"


@define
class Counts:
    """Number of lines by kind, without empty ones."""

    lines: int = 0
    foreign: int = 0
    named: int = 0
    """Number of names of events in blocks in which no line has one as JSON."""
    half_written: int = 0


@define(eq=False)
class Reader:
    """The lines of several files, in order of time as far as their first events show it.

    Args:
        paths: files; ``"-"`` is standard input.
        notes: receives the problems of the input.
        advanced: called with the number of bytes read from the files since the last call (packed,
            if they are), and the number of bytes they expanded to.
    """

    paths: Sequence[str]
    notes: Notes
    advanced: Callable[[int, int], None] = field(default=lambda _taken, _unpacked: None)
    counts: Counts = Factory(Counts)
    opened: int = 0
    """Number of files that could be opened."""

    def blocks(self) -> Iterator[list[bytes]]:
        """Yield lists of lines, each of which may be an event."""
        for path in self._ordered():
            yield from self._blocks(path, self._candidates)

    def pieces(self, *, counted: bool = True) -> Iterator[Piece]:
        """Yield the same as pieces of the log, with other lines and too long ones among them.

        They are small enough for the processor's caches, as each is searched several times. To
        search a piece for the few lines that matter takes a fifth of the time of making all of
        its lines objects.

        Args:
            counted: whether lines are counted, for `tell`.
        """
        for path in self._ordered():
            yield from self._blocks(path, self._whole if counted else _uncounted, PIECE)

    @property
    def size(self) -> int | None:
        """Size of all files together (bytes); None if it is unknown."""
        paths = [Path(path) for path in self.paths]
        if STDIN in self.paths or any(path.exists() and not path.is_file() for path in paths):
            return None
        return sum(path.stat().st_size for path in paths if path.exists())

    def _ordered(self) -> list[str]:
        """Return files in order of time: rotated ones are often named newest first."""
        paths = list(self.paths)
        # A pipe, for example, can be read only once.
        if len(paths) < 2 or not all(Path(path).is_file() for path in paths):
            return paths
        firsts = {path: first for path in paths if (first := _first_event(path)) is not None}
        for key in ("timestamp", "seq"):
            values: dict[str, Any] = {path: first.get(key) for path, first in firsts.items()}
            if key == "seq" and len({first.get("cache") for first in firsts.values()}) > 1:
                break
            kinds = {type(value) for value in values.values()}
            if len(kinds) == 1 and kinds <= {str, int, float}:
                # Files without an event can stay in any place.
                return sorted(values, key=values.__getitem__) + [
                    path for path in paths if path not in values
                ]
        return paths

    def _blocks(
        self, path: str, take: Callable[[bytes, int], T | tuple[()]], plain: int | None = None
    ) -> Iterator[T]:
        """Yield what `take` makes of each block: see `_candidates`; nothing, if that is empty.

        `plain` is the size of the blocks of a file that is not packed (bytes); None: as of others.
        """
        try:
            file = CountingFile(path)
        except OSError as unopened:
            self.notes.problem(f"{cite(path)}: {explain(unopened)}")
            return
        with file:
            rest, skipping = b"", False
            error: Exception | None = None
            try:
                if is_plain(path):
                    self.opened += 1
                    yield from self._plain_blocks(path, take, plain or BLOCK)
                    return
                stream = open_stream(file)
            except READ_ERRORS as unreadable:  # a directory, for one
                self.notes.problem(f"{cite(path)}: {explain(unreadable)}")
                return
            self.opened += 1
            told = fruitful_at = barren = 0
            while error is None:
                data, error = read_some(stream, BLOCK)
                self.advanced(file.count - told, len(data))
                told = file.count
                if not data:
                    break
                barren += len(data)
                if skipping:
                    _, newline, data = data.partition(b"\n")
                    skipping = not newline
                data = rest + data
                end = data.rfind(b"\n") + 1
                rest = data[end:]
                if len(rest) > MAX_LINE:
                    rest, skipping = b"", True
                    self._too_long(1)
                found = take(data, end)
                if found:
                    barren, fruitful_at = 0, file.count
                    yield found
                elif barren > max(MAX_BARREN, MAX_RATIO * (file.count - fruitful_at)):
                    self.notes.problem(
                        f"{cite(path)}: it is packed so that it goes on for {size(barren)} without "
                        "an event; the rest is left out"
                    )
                    return
        if error is not None:
            self.notes.problem(f"{cite(path)}: {explain(error)}; what came before is analysed")
        if rest.strip() and (last := self._last(path, rest, take)):
            yield last

    def _plain_blocks(
        self, path: str, take: Callable[[bytes, int], T | tuple[()]], size: int
    ) -> Iterator[T]:
        """Yield the same as `_blocks`, of a file that is not packed: its bytes are copied once.

        A map of the file would kill the process if the file is truncated meanwhile.
        """
        error: OSError | None = None
        with Path(path).open("rb", buffering=0) as file:
            descriptor, at, told, length, data = file.fileno(), 0, 0, size, b""
            while True:
                try:
                    data = os.pread(descriptor, length, at)
                except OSError as problem:
                    error, data = problem, b""
                self.advanced(max(at + len(data) - told, 0), max(at + len(data) - told, 0))
                told = max(told, at + len(data))
                end = data.rfind(b"\n") + 1
                if len(data) - end > MAX_LINE:
                    # Skip the rest of that line; what came before it is whole.
                    data = data[:end]
                    self._too_long(1)
                    at, length = _next_line(descriptor, at + end), size
                elif end:
                    at, length = at + end, size
                elif len(data) < length:
                    break  # the last line has no end, or there is none
                else:
                    length *= 2
                if end and (found := take(data, end)):
                    yield found
        if error is not None:
            self.notes.problem(f"{cite(path)}: {explain(error)}; what came before is analysed")
        if data.strip() and (last := self._last(path, data, take)):
            yield last

    def _candidates(self, data: bytes, end: int) -> list[bytes]:
        """Return the lines that may be events, and count the others.

        Args:
            data: whole lines, and a part of one.
            end: offset of that part.
        """
        lines = data.count(b"\n")
        if LONG * lines < len(data) or 2 * data.count(MARK) > lines:
            parts = data.split(b"\n")
            del parts[-1]
            found = [line for line in parts if MARK in line]
        else:
            found = _lines_with_mark(data, end)
        if len(found) < lines:
            lines = _count_filled(data)
            self.counts.foreign += lines - len(found)
            if not found:
                self.counts.named += data.count(NAME)
        self.counts.lines += lines
        if found and max(map(len, found)) > MAX_LINE:
            short = [line for line in found if len(line) <= MAX_LINE]
            self._too_long(len(found) - len(short), counted=True)
            return short
        return found

    def _whole(self, data: bytes, end: int) -> Piece | tuple[()]:
        """Return the data, if some may be events, and count the others: as `_candidates`."""
        lines, marked = data.count(b"\n"), data.count(MARK, 0, end)
        if marked < lines:
            lines = _count_filled(data)
            self.counts.foreign += max(lines - marked, 0)
            if not marked:
                self.counts.named += data.count(NAME)
        self.counts.lines += lines
        return (data, end) if marked else ()

    def _too_long(self, number: int, counted: bool = False) -> None:
        self.counts.lines += 0 if counted else number
        self.counts.foreign += number

    def _last(self, path: str, line: bytes, take: Callable[[bytes, int], T]) -> T:
        """Take the line without a newline at the end, if it is whole; note a half-written one."""
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            if line.lstrip().startswith(b"{"):
                self.counts.lines += 1
                self.counts.half_written += 1
                self.notes.remark(f"{cite(path)}: the last line is half written; it is left out")
                return take(b"", 0)
        return take(line + b"\n", len(line) + 1)

    def tell(self) -> None:
        """Note the number of lines that were no events."""
        counts = self.counts
        if counts.foreign:
            are = "is" if counts.foreign == 1 else "are"
            lines = count(counts.foreign, "line")
            self.notes.remark(f"{lines} of {counts.lines:,} {are} from elsewhere: skipped")


def _uncounted(data: bytes, end: int) -> Piece | tuple[()]:
    return (data, end) if end else ()


@final
@frozen
class Sought:
    """What makes a line one of those that are looked for."""

    pattern: re.Pattern[bytes]
    """A pattern that is found in it, which begins with plain text."""
    text: bytes = b""
    """Bytes that are in each such line, and in few others: they are searched first, at 2 GB a
    second. Empty: the pattern is searched at once."""

    def is_in(self, line: bytes) -> bool:
        """Return whether a line is one of them."""
        return self.text in line and self.pattern.search(line) is not None


def find_lines(piece: Piece, sought: Sequence[Sought] | None) -> list[tuple[int, bytes]]:
    """Return the lines of a piece that are looked for, each with its offset, in order.

    Args:
        piece: the piece.
        sought: what is looked for; None: all lines that may be events.
    """
    data, end = piece
    found: dict[int, bytes] = {}
    for one in (_ANY,) if sought is None else sought:
        _find(data, end, one, found)
    return sorted(found.items())


def _find(data: bytes, end: int, sought: Sought, found: dict[int, bytes]) -> None:
    """Add the lines that are looked for to those that are found: {offset: line}."""
    text, search, find, rfind = sought.text, sought.pattern.search, data.find, data.rfind
    # Backwards, as `rfind` takes two thirds of the time of `find`.
    at = end
    while text and (place := rfind(text, 0, at)) >= 0:
        start = rfind(b"\n", 0, place) + 1
        stop = find(b"\n", place, end)
        line = data[start : stop if stop >= 0 else end]
        at = start
        if len(line) < MAX_LINE and search(line) is not None:
            found[start] = line
    at = 0
    while not text and at < end and (match := search(data, at, end)) is not None:
        start = rfind(b"\n", 0, match.start()) + 1
        stop = find(b"\n", match.start(), end)
        line = data[start : stop if stop >= 0 else end]
        at = start + len(line) + 1
        if len(line) < MAX_LINE:
            found[start] = line


_ANY = Sought(re.compile(re.escape(MARK)))


def _next_line(descriptor: int, at: int) -> int:
    """Return where the next line of a file begins, after the one that is at an offset."""
    while data := os.pread(descriptor, BLOCK, at):
        newline = data.find(b"\n")
        if newline >= 0:
            return at + newline + 1
        at += len(data)
    return at


def _lines_with_mark(data: bytes, end: int) -> list[bytes]:
    """Return the few lines with a mark; the others are not made into objects."""
    found = []
    at = data.find(MARK, 0, end)
    while at >= 0:
        newline = data.find(b"\n", at)
        found.append(data[data.rfind(b"\n", 0, at) + 1 : newline])
        at = data.find(MARK, newline, end)
    return found


def _count_filled(data: bytes) -> int:
    """Return the number of lines that are not blank."""
    data = data.translate(None, BLANKS)
    while b"\n\n" in data:  # each pass removes half of the blank lines
        data = data.replace(b"\n\n", b"\n")
    return data.count(b"\n") - data.startswith(b"\n")


def _first_event(path: str) -> dict[str, object] | None:
    """Return the first event near the beginning of a file, or None; problems are noted later."""
    try:
        with CountingFile(path) as file:
            head, _ = read_some(open_stream(file), HEAD)
        for line in head.split(b"\n"):
            if MARK in line:
                event = json.loads(line)
                return event if isinstance(event, dict) else None
    except (*READ_ERRORS, ValueError, RecursionError):
        pass
    return None
