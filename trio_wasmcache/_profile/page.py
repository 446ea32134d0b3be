"""Makes the page of a profile: one file with a flame graph, which fetches nothing.

Names are guests' and callers'. They are in the page as JSON, in which no character can end the
element, and the script writes them as text only. The page's policy allows this script alone, by its
digest, so that no other one could run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .._core.profiles.names import shown_name
from .._core.profiles.tally import Node, ProfileTally

FOLDER: Final = Path(__file__).parent
MAX_PLACES: Final = 10
"""Lines that are shown of one node, those with the most fuel."""


@functools.cache
def _parts() -> tuple[string.Template, str]:
    text = (FOLDER / "page.html").read_text(encoding="utf-8")
    return string.Template(text), (FOLDER / "page.js").read_text(encoding="utf-8")


def page(tally: ProfileTally, title: str, subtitle: str, notes: Sequence[str]) -> str:
    """Return the page.

    Args:
        tally: the samples.
        title: heading.
        subtitle: a line below it.
        notes: sentences on what is missing.
    """
    template, script = _parts()
    items = "\n".join(f"<li>{html.escape(shown_name(note))}</li>" for note in notes)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.substitute(
        digest=f"sha256-{digest}",
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        notes=f'<ul class="notes">\n{items}\n</ul>' if notes else "",
        data=as_json(page_data(tally)),
        script=script,
    )


def as_json(data: object) -> str:
    """Return JSON for an element of a page: only characters that mean nothing there."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def page_data(tally: ProfileTally) -> dict[str, Any]:
    """Return the trees as the script of the page reads them: under each group its functions."""
    names: dict[str, int] = {}

    def name(text: str) -> int:
        return names.setdefault(shown_name(text), len(names))

    nodes: list[list[Any]] = []
    groups: dict[str, int] = {}
    for origin, root in tally.roots.items():
        if origin.group not in groups:
            groups[origin.group] = len(nodes)
            nodes.append([-1, name(origin.group), 0, 0, []])
        waiting = [(root, groups[origin.group])]
        while waiting:
            node, parent = waiting.pop()
            place = len(nodes)
            nodes.append([parent, name(node.name), node.fuel, node.samples, _places(node, name)])
            waiting += [(one, place) for one in node.calls.values()]
    return {"names": list(names), "nodes": nodes}


def _places(node: Node, name: Any) -> list[list[int]]:
    """Return [name of a line, fuel] of those with the most fuel, as far as lines are known."""
    lines: dict[str, int] = {}
    for frame, (fuel, _) in node.places.items():
        if frame.file is not None:
            text = f"{frame.file}:{frame.line}"
            lines[text] = lines.get(text, 0) + fuel
    hottest = sorted(lines.items(), key=lambda it: -it[1])[:MAX_PLACES]
    return [[name(text), fuel] for text, fuel in hottest]
