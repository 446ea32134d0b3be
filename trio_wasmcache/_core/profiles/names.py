"""Writes names, which guests and callers have chosen, so that they are taken for nothing else."""

from __future__ import annotations

from typing import Final

from ..text import printable

MAX_NAME: Final = 300
"""Characters of a name, at most."""


def shown_name(name: str) -> str:
    """Return a name as a page or a table shows it: cut, without control characters."""
    return printable(name, MAX_NAME)


def folded_name(name: str) -> str:
    """Return a name for collapsed stacks, where ``;``, spaces and line breaks have a meaning."""
    return "".join(map(_folded, shown_name(name))) or "?"


def _folded(letter: str) -> str:
    return ":" if letter == ";" else "_" if letter.isspace() else letter
