"""Let one process at a time compile a module, so that the others find its code in `cache_dir`.

A lock is `flock` on an empty file. The kernel gives it back when its process ends, however it ends.
Locks save time and protect nothing: a compile that can't get one in time goes on without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import final

import trio

from ..._threads import run_in_thread
from .private_files import open_ours

with contextlib.suppress(ImportError):  # on Windows, which has no `cache_dir` either
    import fcntl

# A lock is for all modules whose digests begin alike, as files of locks can't be removed: somebody
# may just wait for one.
FILES = 256
# Seconds between two tries, which are in a thread: on some file systems they take long.
POLL = 0.02
MAX_THREADS = 2
# The lock of all who have code written and have not recorded it yet; and how often to try it.
ALL = "all"
TRIES = 100


@final
class CompileLocks:
    """The locks in a folder that only this user can use; `patience` is in seconds."""

    def __init__(self, folder: Path, patience: float) -> None:
        self.folder = folder
        self._patience = patience
        self._tries = trio.CapacityLimiter(MAX_THREADS)

    @contextlib.asynccontextmanager
    async def held(self, wasm: bytes) -> AsyncIterator[None]:
        """Hold the lock of a module until the block ends.

        If it can't be had in time, or if there are no locks on this file system, the block begins
        all the same.

        **Checkpoint:** before the block.
        **Cancellation:** nothing is locked, and no file is left open.
        """
        number, locked = await run_in_thread(self._try_first, wasm, limiter=self._tries)
        try:
            with trio.move_on_after(self._patience):
                while not locked:
                    await trio.sleep(POLL)
                    locked = await run_in_thread(_lock, number, limiter=self._tries)
            yield
        finally:
            _release(number)

    def _try_first(self, wasm: bytes) -> tuple[int | None, bool]:
        # In a thread, too, as the digest of a large module takes long.
        return _open_and_lock(self.folder / f"{hashlib.sha256(wasm).digest()[0] % FILES:02x}")

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Tell other threads and processes that code is written in this block, and then recorded.

        It is for the thread that compiles. Others may do the same at the same time.
        """
        number = _open(self.folder / ALL)
        try:
            for _ in range(TRIES):
                if _lock(number, shared=True):
                    break
                time.sleep(POLL / TRIES)  # somebody removes files
            yield
        finally:
            _release(number)

    @contextlib.contextmanager
    def nobody_records(self) -> Iterator[bool]:
        """Keep others out of such blocks until this one ends; yield False if somebody is in one."""
        number, locked = _open_and_lock(self.folder / ALL)
        try:
            yield locked
        finally:
            _release(number)


def _open(place: Path) -> int | None:
    """Open the file, or return None if there can be no locks."""
    try:
        return open_ours(place, os.O_RDWR | os.O_CREAT, 0)
    except OSError:
        return None


def _lock(number: int | None, *, shared: bool = False) -> bool:
    """Try to lock it: False if somebody else has it. Where there are no locks, nobody has."""
    try:
        if number is not None:
            fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # as on some network file systems
        pass
    return True


def _open_and_lock(place: Path) -> tuple[int | None, bool]:
    number = _open(place)
    return number, _lock(number)


def _release(number: int | None) -> None:
    if number is not None:
        # A child that was forked meanwhile has the file open, too: closing would not unlock it.
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_UN)
        os.close(number)
