"""Keep compiled code on disk: wasmtime's own cache, in a folder that only this user can use.

wasmtime runs the code it finds in its cache, which is neither signed nor checksummed. Of single
flipped bits, two in five made it load other code without an error, and one in five made it fail.
So:

1. The folder belongs to the user, nobody else may read or write it, and it is not a symbolic link.
2. Only regular files of the user are opened. wasmtime opens files by name; so before each compile,
   links, pipes, sockets, devices, and folders in place of files are removed. Files are opened here
   with `open_ours`, which checks the open file itself.
3. After each compile, the size and digest of each file that it left are recorded. Before the next
   compile, files that differ from their record, or have none, are removed; for a second at most
   they are not, if somebody else may just be about to record them. A file of another size is not
   read for that.
4. If anything fails all the same, the module is compiled without the cache, and the cache is
   emptied. That only costs time.

In the folder, ``wasmtime`` belongs to wasmtime, which limits its size and removes files that it
does not know; ``digests`` has a record for each of those; ``locks`` is empty files by which
processes that share the folder take turns, see `CompileLocks`; ``states`` has what prepared
functions begin with, see `StateCache`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

from ..._core.errors import CacheDirError, InvalidModuleError
from ..._core.tiers import OPTIMIZING, Tier
from . import native
from .compile_locks import CompileLocks
from .config import new_config
from .errors import take_error
from .new_module import new_module
from .private_files import (
    StrangeFileError,
    is_ours,
    private_folder,
    problem_of,
    read_ours,
    shown_path,
    write_whole,
)
from .state_cache import StateCache

# Folders within wasmtime's own: ``modules``, and one for each of its compilers.
CODE_DEPTH = 2
# Of what is kept of a file: its size and its digest, as text.
MAX_NOTE_SIZE = 128
# Of what wasmtime notes of it, which it reads whole.
MAX_OTHER_SIZE = 64 * 1024
# How often to look for the record of a file of code, and the seconds in between.
CHECKS = 100
WAIT = 0.01


@final
class CodeCache:
    """Compiles through the cache in a folder. All its methods may be called in any thread.

    Args:
        patience: seconds to wait for another process that compiles the same module; see `locks`.

    Raises:
        CacheDirError: the folder can't be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        stack_size: int,
        patience: float = 0.0,
        tiers: Sequence[Tier] = (OPTIMIZING,),
    ) -> None:
        self._engines: dict[Tier, int] = {}
        self._stack_size = stack_size
        try:
            self._root = root = private_folder(folder)
            self._code = private_folder(root / "wasmtime")
            self._digests = private_folder(root / "digests")
            self.locks = CompileLocks(private_folder(root / "locks"), patience)
            self.states = StateCache(private_folder(root / "states"))
            problem = self._make_engines(tiers)
        except (OSError, ValueError) as error:  # a name with a zero byte is a `ValueError`
            raise CacheDirError(f"cache_dir {shown_path(folder)} can't be used: {error}") from error
        if problem is not None:
            raise CacheDirError(f"cache_dir {shown_path(folder)} can't be used: {problem}")
        self._lock = threading.Lock()
        # {file of code: what a change of it would change}, of files that are as they should be.
        self._good: dict[Path, tuple[int, int, int]] = {}
        with contextlib.suppress(OSError):
            self._forget_digests()

    def _make_engines(self, tiers: Sequence[Tier]) -> str | None:
        """Make the engines of tiers; return why that can't be done, and then make none.

        Raises:
            OSError, ValueError: the folder can't be used.
        """
        configs: dict[Tier, int] = {}
        problem = None
        with _settings(self._root, self._code) as path:
            for tier in tiers:
                configs[tier] = new_config(self._stack_size, tier)
                problem = problem or native.config_cache_config_load(configs[tier], path)
        if problem:
            for config in configs.values():
                native.wasm_config_delete(config)
            return take_error(problem)
        for tier, config in configs.items():
            self._engines[tier] = native.wasm_engine_new_with_config(config)
            # At the end of the process its thread goes by itself.
            weakref.finalize(self, native.wasm_engine_delete, self._engines[tier]).atexit = False
        return None

    def compile(self, plain: int, tier: Tier, wasm: bytes) -> int:
        """Compile a module, or take it out of the cache if it is there; see `new_module`.

        Args:
            plain: an engine without a cache, for when this one can't be trusted.
            tier: of that engine. wasmtime keeps the code of tiers apart.
            wasm: the module, binary.
        """
        try:
            self._check()
        except OSError:
            return new_module(plain, wasm)
        with self._lock, contextlib.suppress(OSError, CacheDirError):
            if tier not in self._engines:  # that of samples, which are seldom taken
                self._make_engines((tier,))
        if tier not in self._engines:
            return new_module(plain, wasm)
        with self.locks.recording():
            try:
                module = new_module(self._engines[tier], wasm)
            except InvalidModuleError:
                module = new_module(plain, wasm)  # raises again, if it is the module's own fault
                with contextlib.suppress(OSError):
                    self._empty()
                return module
            with contextlib.suppress(OSError):
                self._note()
            return module

    def _check(self) -> None:
        """Remove all code that is not as it was left by who compiled it; `OSError` if we can't."""
        if (problem := problem_of(self._root)) is not None:
            raise PermissionError(f"cache_dir {problem} now")
        with self._lock:
            _remove_strangers(self._code, CODE_DEPTH, large=True)
            _remove_strangers(self._digests, 0, large=False)
            _remove_strangers(self.locks.folder, 0, large=False)
        for _ in range(CHECKS):
            with self._lock:
                bad = self._unrecorded()
                if not bad:
                    return
                with self.locks.nobody_records() as certain:
                    # Whoever compiles elsewhere may just have written one, and not its digest yet.
                    if certain:
                        # It may have got it in between.
                        self._remove(self._unrecorded())
                        return
            time.sleep(WAIT)
        with self._lock:
            self._remove(self._unrecorded())

    def _unrecorded(self) -> list[Path]:
        """Files of code that differ from their record, or have none."""
        bad = []
        for file in self._files():
            with contextlib.suppress(FileNotFoundError):
                look = _look(file)
                if self._good.get(file) == look:
                    continue
                noted = self._noted(file)
                if noted is not None and noted == _note(file, noted):
                    self._good[file] = look
                else:
                    bad.append(file)
        return bad

    def _remove(self, files: list[Path]) -> None:
        for file in files:
            self._good.pop(file, None)
            file.unlink(missing_ok=True)

    def _note(self) -> None:
        """Keep the digests of files that have come since the last look."""
        with self._lock:
            for file in self._files():
                if file in self._good:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    look = _look(file)
                    write_whole(self._place(file), _note(file))
                    self._good[file] = look

    def _empty(self) -> None:
        with self._lock:
            self._good.clear()
            for file in self._files():
                file.unlink(missing_ok=True)

    def _forget_digests(self) -> None:
        """Remove those of files that wasmtime has removed."""
        # In this order: who makes code writes its digest after it.
        digests = list(self._digests.iterdir())
        places = {self._place(file) for file in self._files()}
        for digest in digests:
            if digest not in places:
                digest.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Where code is: ``modules/<compiler>/<hash>``. What has a suffix is no code."""
        return [file for file in self._code.glob("modules/*/*") if not file.suffix]

    def _place(self, file: Path) -> Path:
        return self._digests / f"{file.parent.name}+{file.name}"

    def _noted(self, file: Path) -> bytes | None:
        try:
            return b"".join(read_ours(self._place(file), MAX_NOTE_SIZE))
        except (FileNotFoundError, StrangeFileError):
            return None


@contextlib.contextmanager
def _settings(root: Path, code: Path) -> Iterator[bytes]:
    """Make a file that tells wasmtime where its cache is, and lets it choose all else."""
    try:
        # JSON's strings are TOML's, but for DEL and for how they escape what is not ASCII.
        quoted = json.dumps(str(code), ensure_ascii=False).replace("\x7f", "\\u007f")
        text = f"[cache]\ndirectory = {quoted}\n".encode()
    except UnicodeEncodeError:
        raise CacheDirError(f"cache_dir {shown_path(code)} is not a path in UTF-8") from None
    # Not a file that removes itself: it would try again, in vain, where writing it failed.
    number, name = tempfile.mkstemp(dir=root, suffix=".toml")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(text)
        yield os.fsencode(name)
    finally:
        Path(name).unlink()


def _look(file: Path) -> tuple[int, int, int]:
    found = file.lstat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _note(file: Path, noted: bytes | None = None) -> bytes:
    """Size and digest of a file; not the digest, if it has not the size that was noted."""
    size = file.lstat().st_size
    if noted is not None and noted.split(b" ")[0] != b"%d" % size:
        return b""
    digest = hashlib.sha256()
    for piece in read_ours(file, size):
        digest.update(piece)
    return b"%d %s" % (size, digest.hexdigest().encode())


def _remove_strangers(folder: Path, depth: int, *, large: bool) -> None:
    """Remove what is neither a regular file of ours, nor a folder down to that depth.

    Only files of code may be `large`. They are at that depth, and have no suffix.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    if depth and found.st_uid == os.geteuid():
                        _remove_strangers(folder / entry.name, depth - 1, large=large)
                    else:
                        shutil.rmtree(folder / entry.name)
                elif not is_ours(found) or (
                    found.st_size > MAX_OTHER_SIZE
                    and (depth or not large or entry.name.endswith(".stats"))
                ):
                    (folder / entry.name).unlink()
