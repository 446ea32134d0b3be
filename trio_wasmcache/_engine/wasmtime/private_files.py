"""Files and folders that nobody but this user can use.

Anybody may have put something else in their place, at any time. So a folder is looked at with all
folders above it, links are not followed, and of a file it is the open one that is checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..._core.errors import CacheDirError
from ..._core.text import cut

PIECE = 1024 * 1024
# In a user namespace the system's own folders belong to it.
_NOBODY = 65534


class StrangeFileError(OSError):
    """Raised for a name of something else than a regular file of this user, or of a larger one."""


def private_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder if need be; `CacheDirError` unless it is ours, and only we can use it."""
    text = os.fsdecode(path)
    if text.startswith("~"):
        raise CacheDirError(
            f"cache_dir {shown_path(path)}: '~' is not expanded; give os.path.expanduser(...) of "
            "it, or './~...' for a folder of that name"
        )
    folder = Path(os.path.abspath(text))  # noqa: PTH100 - links are not to be followed
    if not hasattr(os, "geteuid"):
        raise CacheDirError("cache_dir needs a system on which folders have owners and modes")
    _make(folder)
    problem = problem_of(folder)
    if problem is not None:
        raise CacheDirError(
            f"cache_dir {shown_path(folder)} {problem}: what is in it is run as code, so give a "
            "folder that is yours, with mode 0700, or one that does not exist yet"
        )
    return folder


def _make(folder: Path) -> None:
    if not folder.parent.exists():
        _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)


def problem_of(folder: Path) -> str | None:
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
            return f"could be replaced by anybody, as {shown_path(parent)} is open to all"
        if seen.st_uid not in (0, os.geteuid(), _NOBODY):
            return f"could be replaced by user {seen.st_uid}, whose {shown_path(parent)} is"
    return None


def open_ours(file: Path, flags: int, most: int) -> int:
    """Open a regular file of this user, as `os.open` does.

    The open file itself is checked, so replacing the file meanwhile has no effect.

    Raises:
        StrangeFileError: it is not a regular file of this user, or is larger than `most` bytes.
    """
    # O_NONBLOCK, as opening a pipe would otherwise wait until another process opens it, too.
    try:
        number = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, or a socket
            raise StrangeFileError(f"{file} is no regular file") from None
        raise
    found = os.fstat(number)
    if not is_ours(found) or found.st_size > most:
        os.close(number)
        raise StrangeFileError(f"{file} is no regular file of ours of at most {most} bytes")
    return number


def read_ours(file: Path, most: int) -> Iterator[bytes]:
    """Read a regular file of this user in pieces; see `open_ours`."""
    with os.fdopen(open_ours(file, os.O_RDONLY, most), "rb", buffering=0) as opened:
        left = min(os.fstat(opened.fileno()).st_size, most)
        while left and (piece := opened.read(min(left, PIECE))):
            left -= len(piece)
            yield piece


def is_ours(found: os.stat_result) -> bool:
    """Return whether it is a regular file of this user."""
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def write_whole(place: Path, content: bytes) -> None:
    """Put it there whole, or not at all."""
    number, name = tempfile.mkstemp(dir=place.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.replace(name, place)  # noqa: PTH105
    except BaseException:
        Path(name).unlink(missing_ok=True)  # another process may have tidied it away
        raise


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path for a message."""
    return cut(repr(os.fsdecode(path)), 200)
