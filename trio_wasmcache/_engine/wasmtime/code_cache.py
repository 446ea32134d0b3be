"""Keep compiled code on disk: wasmtime's own cache, in a folder that only this user can use.

wasmtime runs the code it finds in its cache, which is neither signed nor checksummed. Of single
flipped bits, two in five made it load other code without an error, and one in five made it fail.
So:

1. The folder belongs to the user, nobody else may read or write it, and it is not a symbolic link.
2. Only regular files of the user are opened. wasmtime opens files by name; so before each compile,
   links, pipes, sockets, devices, and folders in place of files are removed. Files are read here
   with `_read`, which checks the open file itself, so replacing a file in between has no effect.
3. After each compile, the size and digest of each file that it left are recorded. Before the next
   compile, files that differ from their record, or have none, are removed. A file of another size
   is not read for that.
4. If anything fails all the same, the module is compiled without the cache, and the cache is
   emptied. That only costs time.

In the folder, ``wasmtime`` belongs to wasmtime, which limits its size and removes files that it
does not know; ``digests`` has a record for each of those. Several processes may share a folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator
from ctypes import byref, c_void_p
from pathlib import Path
from typing import final

from ..._core.errors import CacheDirError, InvalidModuleError
from ..._core.text import cut
from ..base import NoMemoryError
from . import native
from .config import new_config
from .errors import is_no_memory, take_error

# Folders within wasmtime's own: ``modules``, and one for each of its compilers.
CODE_DEPTH = 2
# Of what is kept of a file: its size and its digest, as text.
MAX_NOTE_SIZE = 128
# Of what wasmtime notes of it, which it reads whole.
MAX_OTHER_SIZE = 64 * 1024
PIECE = 1024 * 1024
# In a user namespace the system's own folders belong to it.
_NOBODY = 65534


LEGACY = "legacy_exceptions feature required"
LEGACY_ADVICE = (
    ". Build it with the exceptions of the standard: clang -mllvm -wasm-use-legacy-eh=false, or "
    "Emscripten -sWASM_LEGACY_EXCEPTIONS=0"
)


def new_module(engine: int, wasm: bytes) -> int:
    """Compile a module, which is the caller's to delete; `InvalidModuleError` if it is none."""
    made = c_void_p()
    problem = native.module_new(engine, wasm, len(wasm), byref(made))
    if problem:
        message = f"wasmtime can't compile it: {take_error(problem)}"
        if LEGACY in message:
            message += LEGACY_ADVICE
        raise (NoMemoryError if is_no_memory(message) else InvalidModuleError)(message)
    return native.pointer_in(made)


@final
class CodeCache:
    """Compiles through the cache in a folder. All its methods may be called in any thread.

    Raises:
        CacheDirError: the folder can't be used.
    """

    def __init__(self, folder: str | os.PathLike[str], stack_size: int) -> None:
        try:
            self._root = root = _private_folder(folder)
            self._code = _private_folder(root / "wasmtime")
            self._digests = _private_folder(root / "digests")
            with _settings(root, self._code) as path:
                config = new_config(stack_size)
                problem = native.config_cache_config_load(config, path)
        except (OSError, ValueError) as error:  # a name with a zero byte is a `ValueError`
            raise CacheDirError(f"cache_dir {_shown(folder)} can't be used: {error}") from error
        if problem:
            native.wasm_config_delete(config)
            raise CacheDirError(f"cache_dir {_shown(folder)} can't be used: {take_error(problem)}")
        self._engine = native.wasm_engine_new_with_config(config)
        # At the end of the process its thread goes by itself.
        weakref.finalize(self, native.wasm_engine_delete, self._engine).atexit = False
        self._lock = threading.Lock()
        # {file of code: what a change of it would change}, of files that are as they should be.
        self._good: dict[Path, tuple[int, int, int]] = {}
        with contextlib.suppress(OSError):
            self._forget_digests()

    def compile(self, plain: int, wasm: bytes) -> int:
        """Compile a module, or take it out of the cache if it is there; see `new_module`.

        Args:
            wasm: the module, binary.
            plain: an engine without a cache, for when this one can't be trusted.
        """
        try:
            self._check()
        except OSError:
            return new_module(plain, wasm)
        try:
            module = new_module(self._engine, wasm)
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
        if (problem := _problem(self._root)) is not None:
            raise PermissionError(f"cache_dir {problem} now")
        with self._lock:
            _remove_strangers(self._code, CODE_DEPTH)
            _remove_strangers(self._digests, 0)
            for file in self._files():
                with contextlib.suppress(FileNotFoundError):
                    look = _look(file)
                    if self._good.get(file) == look:
                        continue
                    noted = self._noted(file)
                    if noted is not None and noted == _note(file, noted):
                        self._good[file] = look
                    else:
                        self._good.pop(file, None)
                        file.unlink()

    def _note(self) -> None:
        """Keep the digests of files that have come since the last look."""
        with self._lock:
            for file in self._files():
                if file in self._good:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    look = _look(file)
                    _write(self._place(file), _note(file))
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
            return b"".join(_read(self._place(file), MAX_NOTE_SIZE))
        except (FileNotFoundError, StrangeFileError):
            return None


def _private_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder if need be; `CacheDirError` unless it is ours, and only we can use it."""
    text = os.fsdecode(path)
    if text.startswith("~"):
        raise CacheDirError(
            f"cache_dir {_shown(path)}: '~' is not expanded; give os.path.expanduser(...) of it, "
            "or './~...' for a folder of that name"
        )
    folder = Path(os.path.abspath(text))  # noqa: PTH100 - links are not to be followed
    if not hasattr(os, "geteuid"):
        raise CacheDirError("cache_dir needs a system on which folders have owners and modes")
    _make(folder)
    problem = _problem(folder)
    if problem is not None:
        raise CacheDirError(
            f"cache_dir {_shown(folder)} {problem}: what is in it is run as code, so give a folder "
            "that is yours, with mode 0700, or one that does not exist yet"
        )
    return folder


def _make(folder: Path) -> None:
    if not folder.parent.exists():
        _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)


def _problem(folder: Path) -> str | None:
    """Why somebody else could put code there, or None."""
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to {os.geteuid()}"
    if found.st_mode & 0o077:
        return f"is open to others (mode {stat.S_IMODE(found.st_mode):04o})"
    for parent in folder.resolve().parents:
        seen = parent.stat()
        if seen.st_mode & stat.S_IWOTH and not seen.st_mode & stat.S_ISVTX:
            return f"could be replaced by anybody, as {_shown(parent)} is open to all"
        if seen.st_uid not in (0, os.geteuid(), _NOBODY):
            return f"could be replaced by user {seen.st_uid}, whose {_shown(parent)} is"
    return None


@contextlib.contextmanager
def _settings(root: Path, code: Path) -> Iterator[bytes]:
    """Make a file that tells wasmtime where its cache is, and lets it choose all else."""
    try:
        # JSON's strings are TOML's, but for DEL and for how they escape what is not ASCII.
        quoted = json.dumps(str(code), ensure_ascii=False).replace("\x7f", "\\u007f")
        text = f"[cache]\ndirectory = {quoted}\n".encode()
    except UnicodeEncodeError:
        raise CacheDirError(f"cache_dir {_shown(code)} is not a path in UTF-8") from None
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
    for piece in _read(file, size):
        digest.update(piece)
    return b"%d %s" % (size, digest.hexdigest().encode())


class StrangeFileError(OSError):
    """What has that name is no regular file of ours, or is larger than it may be."""


def _read(file: Path, most: int) -> Iterator[bytes]:
    """Read a regular file of this user in pieces.

    The open file itself is checked, so replacing the file meanwhile has no effect.

    Raises:
        StrangeFileError: it is not a regular file of this user, or is larger than `most` bytes.
    """
    # O_NONBLOCK, as opening a pipe would otherwise wait until another process writes to it.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(file, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, or a socket
            raise StrangeFileError(f"{file} is no regular file") from None
        raise
    with os.fdopen(number, "rb", buffering=0) as opened:
        found = os.fstat(number)
        if not _is_ours(found) or found.st_size > most:
            raise StrangeFileError(f"{file} is no regular file of ours of at most {most} bytes")
        left = found.st_size
        while left and (piece := opened.read(min(left, PIECE))):
            left -= len(piece)
            yield piece


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _remove_strangers(folder: Path, depth: int) -> None:
    """Remove what is neither a regular file of ours, nor a folder down to that depth."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    if depth and found.st_uid == os.geteuid():
                        _remove_strangers(folder / entry.name, depth - 1)
                    else:
                        shutil.rmtree(folder / entry.name)
                elif not _is_ours(found) or (
                    # Files of code, which have a digest, are the only ones that may be large.
                    found.st_size > MAX_OTHER_SIZE and (depth or entry.name.endswith(".stats"))
                ):
                    (folder / entry.name).unlink()


def _write(place: Path, content: bytes) -> None:
    """Put it there whole, or not at all."""
    number, name = tempfile.mkstemp(dir=place.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.replace(name, place)  # noqa: PTH105
    except BaseException:
        Path(name).unlink()
        raise


def _shown(path: str | os.PathLike[str]) -> str:
    return cut(repr(os.fsdecode(path)), 200)
