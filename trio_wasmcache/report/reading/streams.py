"""Opens files as streams of bytes: plain, gzip or zstd, as their first bytes show."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from pathlib import Path
from typing import IO, cast

import zstandard

STDIN = "-"
# Exceptions of reading a damaged file.
READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError)
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# Number of packed bytes that are unpacked at once. A block of 128 KiB may come from three of them,
# so that even a malicious file gives no more than some 20 MB.
_ZSTD_PIECE = 512


class CountingFile(io.RawIOBase):
    """A file, or standard input, that counts the bytes read from it."""

    def __init__(self, path: str) -> None:
        self.count: int = 0
        self._owned = path != STDIN
        # A read of a pipe returns what is there: one that waited for more, in a loop in C, would
        # not see a Ctrl-C that came between its system calls.
        self._file: IO[bytes] = sys.stdin.buffer
        if self._owned:
            self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by `close`

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        read = self._file.read if self._owned else cast("io.BufferedReader", self._file).read1
        data = read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)

    def close(self) -> None:
        if self._owned and not self.closed:
            self._file.close()
        super().close()


class _Unzstd(io.RawIOBase):
    """The contents of a zstd file, one frame after the other.

    zstandard's own reader takes a truncated file for a complete one.
    """

    def __init__(self, packed: io.BufferedIOBase) -> None:
        self._packed = packed
        self._left = b""  # packed bytes that were read and belong to the next frame
        self._ready = memoryview(b"")
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            piece = self._left or self._packed.read(_ZSTD_PIECE)
            self._left = b""
            if not piece:
                if self._frame is not None:
                    raise EOFError("the file ends before its last frame does")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(piece))
            if self._frame.eof:
                self._left, self._frame = self._frame.unused_data, None
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)


def is_plain(path: str) -> bool:
    """Return whether a file can be read at any offset, and is not packed.

    Raises:
        OSError: it can't be read.
    """
    if path == STDIN or not Path(path).is_file():
        return False
    with Path(path).open("rb", buffering=0) as file:
        head = file.read(4)
    return not any(head.startswith(magic) for magic in _MAGIC)


def open_stream(file: CountingFile) -> io.BufferedIOBase:
    """Open the contents of a file, unpacked if it is packed."""
    buffered = io.BufferedReader(file, 1024 * 1024)
    head = buffered.peek(4)[:4]
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind == "gzip":
        return gzip.GzipFile(fileobj=buffered)
    if kind == "zstd":
        return io.BufferedReader(_Unzstd(buffered))
    return buffered


def read_some(stream: io.BufferedIOBase, size: int) -> tuple[bytes, Exception | None]:
    """Read up to `size` bytes, fewer at the end; also return the error that came after them."""
    parts: list[bytes] = []
    left = size
    try:
        while left:
            part = stream.read1(left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
    except READ_ERRORS as error:
        return b"".join(parts), error
    return b"".join(parts), None


def explain(error: Exception) -> str:
    """Return an error as text, whatever library it comes from."""
    strerror = getattr(error, "strerror", None)
    if strerror:
        return str(strerror)
    text = " ".join(str(error).split()) or type(error).__name__
    if text[1:2].islower():
        text = text[0].lower() + text[1:]
    return f"damaged: {text}"
