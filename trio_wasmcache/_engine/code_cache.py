"""Compiled code that survives a restart: wasmtime's own cache, in a folder that only we can use.

wasmtime runs what it finds in its cache: nothing there is signed, or has a checksum. Of single
flipped bits, two in five made it load other code without a word, and one in five made it fail. So:

1. The folder belongs to the user, nobody else may read or write it, and it is no symbolic link.
2. A digest is kept of each file that a compile of ours left. Before each compile, what is not as
   its digest says is removed, and so is what has none.
3. Where something is wrong all the same, code is compiled without the cache, and the cache is
   emptied. Having none only costs time.

In the folder, ``wasmtime`` is wasmtime's, which limits its size and removes what it does not know;
``digests`` is ours, a file for each of its own. Several processes may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator
from ctypes import byref, c_void_p
from pathlib import Path
from typing import final

from .._core.errors import CacheDirError, InvalidModuleError
from . import native
from .settings import new_config
from .traps import take_error

# In a user namespace the system's own folders belong to it.
_NOBODY = 65534


def new_module(engine: int, wasm: bytes) -> int:
    """A compiled module, which is the caller's to delete; `InvalidModuleError` if it is none."""
    made = c_void_p()
    problem = native.module_new(engine, wasm, len(wasm), byref(made))
    if problem:
        raise InvalidModuleError(f"wasmtime can't compile it: {take_error(problem)}")
    assert made.value is not None
    return made.value


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
        self._engine: int = native.wasm_engine_new_with_config(config)
        # At the end of the process its thread goes by itself.
        weakref.finalize(self, native.wasm_engine_delete, self._engine).atexit = False
        self._lock = threading.Lock()
        # {file of code: what a change of it would change}, of files that are as they should be.
        self._good: dict[Path, tuple[int, int, int]] = {}
        with contextlib.suppress(OSError):
            self._forget_digests()

    def compile(self, plain: int, wasm: bytes) -> int:
        """A compiled module, out of the cache if it is there; see `new_module`.

        Args:
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
            for file in self._files():
                with contextlib.suppress(FileNotFoundError):
                    look = _look(file)
                    if self._good.get(file) == look:
                        continue
                    if _digest(file) == self._noted(file):
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
                    _write(self._place(file), _digest(file))
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
            return self._place(file).read_bytes()
        except FileNotFoundError:
            return None


def _private_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if need be; `CacheDirError` unless only its owner, who is us, can use it."""
    folder = Path(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100 - links are not to be followed
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
    """A file that tells wasmtime where its cache is, and lets it choose all else."""
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


def _digest(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest().encode()


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
    return repr(os.fsdecode(path))[:200]
