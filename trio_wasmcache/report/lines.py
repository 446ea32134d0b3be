"""From files to lines that may be events: plain, gzip or zstd, or standard input, block by block.

Memory is bounded by the size of a block, whatever the size of the file; a line longer than
`MAX_LINE` is no event and is passed over.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import zstandard
from attrs import Factory, define, field

from .notes import Notes, count

BLOCK = 8 * 1024 * 1024
# The longest event that the cache writes is a few KB.
MAX_LINE = 1024 * 1024
STDIN = "-"
# Whatever renders JSON writes the name of an event so.
MARK = b'"wasmcache.'
NAME = b"wasmcache."
# A terminal has lines of this many columns at best; more of a file name is of no use.
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@define
class Counts:
    """How many lines there were, and of what kind."""

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
        advanced: called with the bytes that were taken from the files (compressed, if they are).
    """

    paths: Sequence[str]
    notes: Notes
    advanced: Callable[[int], None] = field(default=lambda _: None)
    counts: Counts = Factory(Counts)
    opened: int = 0
    """Files that could be read at least in part."""

    def blocks(self) -> Iterator[list[bytes]]:
        """Lists of lines, each of which may be an event."""
        for path in self._ordered():
            yield from self._blocks(path)

    @property
    def size(self) -> int | None:
        """Bytes of all files together; None if that is not known."""
        if STDIN in self.paths:
            return None
        sizes = [Path(path).stat().st_size for path in self.paths if Path(path).is_file()]
        return sum(sizes)

    def _ordered(self) -> list[str]:
        """Rotated files are often named newest first; a log is read oldest first."""
        if len(self.paths) < 2 or STDIN in self.paths:
            return list(self.paths)
        firsts = {path: _first_event(path) for path in self.paths}
        found = [first for first in firsts.values() if first is not None]
        if len(found) < 2:
            return list(self.paths)
        key: Callable[[str], object] | None = None
        if all(isinstance(first.get("timestamp"), str) for first in found):
            key = _by(firsts, "timestamp", "")
        elif len({first.get("cache") for first in found}) == 1:
            key = _by(firsts, "seq", 0)
        return sorted(self.paths, key=key) if key is not None else list(self.paths)  # type: ignore[arg-type]

    def _blocks(self, path: str) -> Iterator[list[bytes]]:
        raw = _Counting(self.advanced)
        rest = b""
        skipping = False
        try:
            stream = _open(path, raw)
            self.opened += 1
            while True:
                data = stream.read(BLOCK)
                if not data:
                    break
                if skipping:
                    _, newline, data = data.partition(b"\n")
                    skipping = not newline
                lines = (rest + data).split(b"\n")
                rest = lines.pop()
                if len(rest) > MAX_LINE:
                    rest, skipping = b"", True
                    self.counts.lines += 1
                    self.counts.foreign += 1
                yield self._candidates(lines)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            what = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.notes.problem(f"{path}: {what}")
        finally:
            raw.close()
        if rest.strip():
            yield self._last(path, rest)

    def _candidates(self, lines: list[bytes]) -> list[bytes]:
        found = [line for line in lines if MARK in line]
        self.counts.lines += len(lines)
        if len(found) < len(lines):
            self.counts.foreign += len(lines) - len(found)
            if not found:
                self.counts.named += sum(NAME in line for line in lines)
        return found

    def _last(self, path: str, line: bytes) -> list[bytes]:
        """What follows the last newline: all of a line, or the part that was written so far."""
        try:
            json.loads(line)
        except ValueError:
            if line.lstrip().startswith(b"{"):
                self.counts.lines += 1
                self.counts.half_written += 1
                self.notes.remark(f"{path}: the last line is only half written; it is left out")
                return []
        return self._candidates([line])


def _by(
    firsts: dict[str, dict[str, object] | None], name: str, default: object
) -> Callable[[str], object]:
    return lambda path: (firsts[path] or {}).get(name, default)


def _first_event(path: str) -> dict[str, object] | None:
    """The first event in a file, if it is near the beginning; problems are told later."""
    raw = _Counting(lambda _: None)
    try:
        for line in _open(path, raw).read(64 * 1024).split(b"\n"):
            if MARK in line:
                event = json.loads(line)
                return event if isinstance(event, dict) else None
    except (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError):
        pass
    finally:
        raw.close()
    return None


class _Counting(io.RawIOBase):
    """A file that tells how much was read of it."""

    def __init__(self, advanced: Callable[[int], None]) -> None:
        self._advanced = advanced
        self._file: IO[bytes] | None = None
        self._owned = True

    def open(self, path: str) -> None:
        if path == STDIN:
            self._file, self._owned = sys.stdin.buffer, False
        else:
            self._file = Path(path).open("rb")  # noqa: SIM115 - closed by `close`

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        assert self._file is not None
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._advanced(len(data))
        return len(data)

    def close(self) -> None:
        if self._file is not None and self._owned:
            self._file.close()
        super().close()


def _open(path: str, raw: _Counting) -> IO[bytes]:
    """What is in the file, decompressed if its first bytes say so."""
    raw.open(path)
    buffered = io.BufferedReader(raw, 1024 * 1024)
    head = buffered.peek(4)[:4]
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind == "gzip":
        return gzip.GzipFile(fileobj=buffered)  # type: ignore[return-value]
    if kind == "zstd":
        stream = zstandard.ZstdDecompressor().stream_reader(buffered, read_across_frames=True)
        return io.BufferedReader(stream)  # type: ignore[type-var, return-value]
    return buffered


def tell_counts(counts: Counts, notes: Notes) -> None:
    """What there is to say about lines that were no events."""
    if counts.foreign:
        lines = count(counts.foreign, "line")
        notes.remark(
            f"{lines} of {counts.lines:,} {'is' if counts.foreign == 1 else 'are'} from elsewhere: skipped"
        )
