"""The documents of the project as tests read them: each page, its sections, and its code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FRONT = ROOT / "README.md"
GUIDE = ROOT / "trio_wasmcache" / "README.md"
COOKBOOK = ROOT / "examples" / "README.md"
LOG = ROOT / "trio_wasmcache" / "report" / "README.md"
TESTED = ROOT / "tests" / "README.md"
SECURITY = ROOT / ".github" / "SECURITY.md"
# Not all of them are part of a source distribution.
PAGES = [page for page in (FRONT, GUIDE, COOKBOOK, LOG, TESTED, SECURITY) if page.exists()]

TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
ALL = "\n".join(TEXTS.values())
SECTIONS = {
    title: text
    for page in TEXTS.values()
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
}
BLOCKS = re.findall(r"^(?:<!-- (\w+) -->\n)?```python\n(.*?)^```$", ALL, re.MULTILINE | re.DOTALL)
"""[(how it is run, code)]"""


def rows(section: str, header: str) -> list[list[str]]:
    """Return the cells of the table in a section whose first column is called `header`."""
    lines = SECTIONS[section].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {header} |"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return table


def code(cell: str) -> list[str]:
    """Return what is in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def anchors(text: str) -> set[str]:
    """Return the names by which the headings of a page can be linked to."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
