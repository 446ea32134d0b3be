"""Keep on disk what prepared functions begin with: see `_core/wasm/preparation`.

A file begins with the digest of the rest, so that damage is noticed. Of the files, those that were
used last are kept. Several processes may share a folder. If anything fails, a function is prepared
again: that only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from ..._core.config import MiB
from .private_files import is_ours, read_ours, write_whole

# Bytes of one file, and of all of them together.
MAX_FILE_SIZE: Final = 256 * MiB
MAX_SIZE: Final = 1024 * MiB
DIGEST_SIZE: Final = 32


@final
class StateCache:
    """Keeps bytes under keys in a folder that only this user can use. Any thread may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def find(self, key: str) -> memoryview | None:
        """Return what was kept under a key, a name of a file; None if there is nothing."""
        file = self._folder / key
        with contextlib.suppress(OSError):
            content = memoryview(b"".join(read_ours(file, MAX_FILE_SIZE)))
            data = content[DIGEST_SIZE:]
            if hashlib.sha256(data).digest() == content[:DIGEST_SIZE]:
                os.utime(file)
                return data
            file.unlink()
        return None

    def keep(self, key: str, data: bytes) -> None:
        """Keep bytes under a key, if there is room; files that were not used lately make way."""
        size = DIGEST_SIZE + len(data)
        if size > MAX_FILE_SIZE:
            return
        with self._lock, contextlib.suppress(OSError):
            left = MAX_SIZE - size
            for _, used, file in sorted(self._files(), reverse=True):
                left -= used
                if left < 0:
                    file.unlink(missing_ok=True)
            write_whole(self._folder / key, hashlib.sha256(data).digest() + data)

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Yield time of the last use, size and path of each file of ours."""
        for file in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = file.lstat()
                if is_ours(found):
                    yield found.st_mtime_ns, found.st_size, file
