"""Finds the exported function that is meant by a name that leaves out parts of it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import frozen

from ...text import listed, printable

_VERSION: Final = re.compile(
    r"(?P<major>\d+)(?:\.(?P<minor>\d+)(?:\.(?P<patch>\d+)(?P<rest>[-+].*)?)?)?", re.ASCII
)
# Names that a message shows, and its characters; a component may have any number of any length.
MAX_SHOWN: Final = 20
MAX_MESSAGE: Final = 2000
# Names that one is compared with, and characters of each: comparing takes up to 0.1 ms.
MAX_COMPARED: Final = 100


class ExportMatchError(LookupError):
    """No exported function, or more than one, is meant; says which there are."""


@frozen
class _Name:
    """A name in its parts, as ``demo:shapes/funcs@0.1.0#area``."""

    interface: str
    """Without its version; empty if it is left out."""
    version: str
    function: str

    @staticmethod
    def of(text: str) -> _Name:
        # A function of the world has no "#"; a name may have several only if it is none of WIT's.
        interface, _, function = text.rpartition("#")
        interface, _, version = interface.partition("@")
        return _Name(interface, version, function)

    def is_meant(self, wanted: _Name) -> bool:
        """Return whether a name that leaves out parts of it, or has another version, means it."""
        if wanted.function != self.function:
            return False
        if not wanted.interface:
            return True
        if wanted.interface != self.interface and not self.interface.endswith(
            f"/{wanted.interface}"
        ):
            return False
        return not wanted.version or is_compatible(self.version, wanted.version)


def is_interface(name: str, wanted: str) -> bool:
    """Return whether an interface is meant by a name that leaves out its package or version, or
    has a compatible version."""
    if not name or not wanted:
        return name == wanted
    return name == wanted or _Name.of(f"{name}#").is_meant(_Name.of(f"{wanted}#"))


def is_compatible(version: str, wanted: str) -> bool:
    """Return whether a version may take the place of another one, as semantic versioning says.

    Args:
        version: a version, such as ``0.1.3``; empty: none.
        wanted: a version, or its beginning, such as ``0.1`` or ``1``.
    """
    if version == wanted:
        return True
    have, want = _VERSION.fullmatch(version), _VERSION.fullmatch(wanted)
    if have is None or want is None or have["rest"] or want["rest"]:
        return False  # a release candidate is compatible with nothing else
    # The first number that is not 0 decides, and those before it.
    for part in ("major", "minor", "patch"):
        if want[part] is None:
            return True
        # Not as numbers, which Python makes of 4,300 digits at most.
        number = want[part].lstrip("0")
        if have[part] is None or have[part].lstrip("0") != number:
            return False
        if number:
            return True
    return True


def find_export(names: Sequence[str], wanted: str) -> str:
    """Return the one of several names that is meant.

    Args:
        names: names of exported functions, as ``demo:shapes/funcs@0.1.0#area``.
        wanted: one of them; or without its interface, its package or its version; or with a
            compatible version, if none has that version.

    Raises:
        ExportMatchError: none is meant, or several are; the message lists them.
    """
    return _find("function", names, wanted, "")


def find_interface(names: Iterable[str], wanted: str) -> str:
    """Return the interface that is meant; see `find_export`.

    Args:
        names: names of interfaces, as ``demo:shapes/funcs@0.1.0``.
        wanted: one of them; or without its package or its version; or with a compatible version.

    Raises:
        ExportMatchError: none is meant, or several are; the message lists them.
    """
    return _find("interface", list(dict.fromkeys(names)), wanted, "#")


def _find(kind: str, names: Sequence[str], wanted: str, end: str) -> str:
    if wanted in names:
        return wanted
    given, parsed = _Name.of(wanted + end), [_Name.of(name + end) for name in names]
    found = [(name, one) for name, one in zip(names, parsed, strict=True) if one.is_meant(given)]
    exact = [name for name, one in found if given.version and one.version == given.version]
    meant = exact or [name for name, _ in found]
    if len(meant) == 1:
        return meant[0]
    if meant:
        message = f"{wanted!r} may be {_or(meant)}: give more of the name, such as {meant[0]!r}"
    elif not names:
        message = f"it exports no {kind}"
    else:
        message = f"it exports no {kind} {wanted!r}, but {listed(names, MAX_SHOWN)}"
        functions = [one.function[:MAX_COMPARED] for one in parsed[:MAX_COMPARED]]
        close = difflib.get_close_matches(given.function[:MAX_COMPARED], functions, n=3)
        likely = [name for name, one in zip(names, functions, strict=False) if one and one in close]
        if likely:
            message += f"; did you mean {_or(likely)}?"
    raise ExportMatchError(printable(message, MAX_MESSAGE))


def _or(names: Sequence[str]) -> str:
    more = f" or {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return " or ".join(names[:MAX_SHOWN]) + more
