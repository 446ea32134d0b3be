"""From files to lines that may be events, block by block.

Memory is bounded by the size of a block, whatever the size of the file; a line longer than
`MAX_LINE` is no event and is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import Factory, define, field

from .notes import Notes, cite, count
from .streams import READ_ERRORS, STDIN, CountingFile, explain, open_stream, read_some

BLOCK = 8 * 1024 * 1024
# The longest event that the cache writes is a few KB.
MAX_LINE = 1024 * 1024
# Where the first event of a file is looked for, to tell which file is the oldest.
HEAD = 64 * 1024
# Whatever renders JSON writes the name of an event so.
MARK = b'"wasmcache.'
NAME = b"wasmcache."


@define
class Counts:
    """How many lines there were, and of what kind; empty ones are not counted."""

    lines: int = 0
    foreign: int = 0
    named: int = 0
    """Foreign lines that mention an event's name all the same."""
    half_written: int = 0


@define(eq=False)
class Reader:
    """The lines of several files, in order of time as far as their first events tell it.

    Args:
        paths: ``"-"`` is standard input.
        advanced: called with the bytes that were taken from the files (packed, if they are).
    """

    paths: Sequence[str]
    notes: Notes
    advanced: Callable[[int], None] = field(default=lambda _: None)
    counts: Counts = Factory(Counts)
    opened: int = 0
    """Files that could be opened."""

    def blocks(self) -> Iterator[list[bytes]]:
        """Lists of lines, each of which may be an event."""
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
        """Rotated files are often named newest first; a log is read oldest first."""
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
            file = CountingFile(path, self.advanced)
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
            while error is None:
                data, error = read_some(stream, BLOCK)
                if not data:
                    break
                if skipping:
                    _, newline, data = data.partition(b"\n")
                    skipping = not newline
                lines = (rest + data).split(b"\n")
                rest = lines.pop()
                if len(rest) > MAX_LINE:
                    rest, skipping = b"", True
                    self._too_long(1)
                yield self._candidates(lines)
        if error is not None:
            self.notes.problem(f"{cite(path)}: {explain(error)}; what came before is analysed")
        if rest.strip():
            yield self._last(path, rest)

    def _candidates(self, lines: list[bytes]) -> list[bytes]:
        found = [line for line in lines if MARK in line]
        self.counts.lines += len(lines)
        if len(found) < len(lines):
            empty = sum(not line or line.isspace() for line in lines)
            self.counts.lines -= empty
            self.counts.foreign += len(lines) - len(found) - empty
            if not found:
                self.counts.named += sum(NAME in line for line in lines)
        if found and max(map(len, found)) > MAX_LINE:
            short = [line for line in found if len(line) <= MAX_LINE]
            self._too_long(len(found) - len(short), counted=True)
            return short
        return found

    def _too_long(self, number: int, counted: bool = False) -> None:
        self.counts.lines += 0 if counted else number
        self.counts.foreign += number

    def _last(self, path: str, line: bytes) -> list[bytes]:
        """What follows the last newline: all of a line, or the part that was written so far."""
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            if line.lstrip().startswith(b"{"):
                self.counts.lines += 1
                self.counts.half_written += 1
                self.notes.remark(f"{cite(path)}: the last line is half written; it is left out")
                return []
        return self._candidates([line])

    def tell(self) -> None:
        """What there is to say about lines that were no events."""
        counts = self.counts
        if counts.foreign:
            are = "is" if counts.foreign == 1 else "are"
            lines = count(counts.foreign, "line")
            self.notes.remark(f"{lines} of {counts.lines:,} {are} from elsewhere: skipped")


def _first_event(path: str) -> dict[str, object] | None:
    """The first event in a file, if it is near the beginning; problems are told later."""
    try:
        with CountingFile(path, lambda _: None) as file:
            head, _ = read_some(open_stream(file), HEAD)
        for line in head.split(b"\n"):
            if MARK in line:
                event = json.loads(line)
                return event if isinstance(event, dict) else None
    except (*READ_ERRORS, ValueError, RecursionError):
        pass
    return None
