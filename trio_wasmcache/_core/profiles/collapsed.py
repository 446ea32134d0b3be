"""Writes a profile as collapsed stacks, which all tools for flame graphs read.

A line is a path and its weight: ``group;function;callee;callee 4711``, in units of fuel.
"""

from __future__ import annotations

from collections.abc import Iterator

from .names import folded_name
from .tally import ProfileTally


def collapsed_lines(tally: ProfileTally) -> Iterator[str]:
    """Yield the lines, without line breaks; a path may occur more than once."""
    for origin, root in tally.roots.items():
        waiting = [(root, f"{folded_name(origin.group)};{folded_name(root.name)}")]
        while waiting:
            node, path = waiting.pop()
            if node.fuel:
                yield f"{path} {node.fuel}"
            waiting += [(one, f"{path};{folded_name(one.name)}") for one in node.calls.values()]
