"""From files to lines that may be events, block by block.

Memory is bounded by the size of a block, whatever the size of the file; a line longer than
`MAX_LINE` is no event and is passed over. Only lines that may be events become objects, the others
are counted at the speed of a search; a packed file that gives next to nothing else, and no end of
it, is left (`MAX_BARREN`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import Factory, define, field

from .notes import Notes, cite, count
from .streams import READ_ERRORS, STDIN, CountingFile, explain, open_stream, read_some
from .units import size

BLOCK = 8 * 1024 * 1024
# The longest event that the cache writes is a few KB.
MAX_LINE = 1024 * 1024
# Bytes of lines that are so long, on average, that their number is no matter.
LONG = 150
# Bytes without an event after which a packed file is left, if each of its own bytes gave more than
# `MAX_RATIO` of them: no log is packed like that, nor is gzip able to pack one much better.
MAX_BARREN = 2 * 1024 * 1024 * 1024
MAX_RATIO = 500
# Where the first event of a file is looked for, to tell which file is the oldest.
HEAD = 64 * 1024
# Whatever renders JSON writes the name of an event so.
MARK = b'"wasmcache.'
NAME = b"wasmcache."
# What a blank line may have got, beside its end.
BLANKS = b" \t\r\x0b\x0c"


@define
class Counts:
    """How many lines there were, and of what kind; empty ones are not counted."""

    lines: int = 0
    foreign: int = 0
    named: int = 0
    """How often an event's name was mentioned where no line had one as JSON."""
    half_written: int = 0


@define(eq=False)
class Reader:
    """The lines of several files, in order of time as far as their first events tell it.

    Args:
        paths: ``"-"`` is standard input.
        advanced: called with the bytes that were taken from the files since it was called before
            (packed, if they are), and the bytes that came of them.
    """

    paths: Sequence[str]
    notes: Notes
    advanced: Callable[[int, int], None] = field(default=lambda taken, unpacked: None)
    counts: Counts = Factory(Counts)
    opened: int = 0
    """Files that could be opened."""

    def blocks(self) -> Iterator[list[bytes]]:
        """Yield lists of lines, each of which may be an event."""
        for path in self._ordered():
            yield from self._blocks(path)

    @property
    def size(self) -> int | None:
        """Bytes of all files together; None if that is not known."""
        paths = [Path(path) for path in self.paths]
        if STDIN in self.paths or any(path.exists() and not path.is_file() for path in paths):
            return None
        return sum(path.stat().st_size for path in paths if path.exists())

    def _ordered(self) -> list[str]:
        """Put files in order of time: rotated ones are often named newest first."""
        paths = list(self.paths)
        # What is no file, such as a pipe, can be read only once.
        if len(paths) < 2 or not all(Path(path).is_file() for path in paths):
            return paths
        firsts = {path: first for path in paths if (first := _first_event(path)) is not None}
        for key in ("timestamp", "seq"):
            values: dict[str, Any] = {path: first.get(key) for path, first in firsts.items()}
            if key == "seq" and len({first.get("cache") for first in firsts.values()}) > 1:
                break
            kinds = {type(value) for value in values.values()}
            if len(kinds) == 1 and kinds <= {str, int, float}:
                # Files without an event have nothing to be in the wrong place with.
                return sorted(values, key=values.__getitem__) + [
                    path for path in paths if path not in values
                ]
        return paths

    def _blocks(self, path: str) -> Iterator[list[bytes]]:
        try:
            file = CountingFile(path)
        except OSError as unopened:
            self.notes.problem(f"{cite(path)}: {explain(unopened)}")
            return
        with file:
            rest, skipping = b"", False
            error: Exception | None = None
            try:
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
                found = self._candidates(data, end)
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
        if rest.strip():
            yield self._last(path, rest)

    def _candidates(self, data: bytes, end: int) -> list[bytes]:
        """Take the lines that may be events out of whole lines, and count the others.

        Args:
            data: ends with a part of a line.
            end: where that begins.
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

    def _too_long(self, number: int, counted: bool = False) -> None:
        self.counts.lines += 0 if counted else number
        self.counts.foreign += number

    def _last(self, path: str, line: bytes) -> list[bytes]:
        """Take what follows the last newline: a whole line, or the part that was written so far."""
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            if line.lstrip().startswith(b"{"):
                self.counts.lines += 1
                self.counts.half_written += 1
                self.notes.remark(f"{cite(path)}: the last line is half written; it is left out")
                return []
        return self._candidates(line + b"\n", len(line) + 1)

    def tell(self) -> None:
        """Note how many lines were no events."""
        counts = self.counts
        if counts.foreign:
            are = "is" if counts.foreign == 1 else "are"
            lines = count(counts.foreign, "line")
            self.notes.remark(f"{lines} of {counts.lines:,} {are} from elsewhere: skipped")


def _lines_with_mark(data: bytes, end: int) -> list[bytes]:
    """Find the few lines with a mark; the others are not made into objects."""
    found = []
    at = data.find(MARK, 0, end)
    while at >= 0:
        newline = data.find(b"\n", at)
        found.append(data[data.rfind(b"\n", 0, at) + 1 : newline])
        at = data.find(MARK, newline, end)
    return found


def _count_filled(data: bytes) -> int:
    """Count the lines that are not blank."""
    data = data.translate(None, BLANKS)
    while b"\n\n" in data:  # each time, half of the blank lines go
        data = data.replace(b"\n\n", b"\n")
    return data.count(b"\n") - data.startswith(b"\n")


def _first_event(path: str) -> dict[str, object] | None:
    """Return the first event of a file, if it is near the beginning; problems are noted later."""
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
