"""The documents of the project as tests read them: each page, its sections, and its code."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FRONT = ROOT / "README.md"
GUIDE = ROOT / "trio_wasmcache" / "README.md"
STATISTICS = ROOT / "trio_wasmcache" / "_core" / "metrics" / "README.md"
KEPT = ROOT / "trio_wasmcache" / "_core" / "policy" / "README.md"
CODE = ROOT / "trio_wasmcache" / "_engine" / "README.md"
COMPONENTS = ROOT / "trio_wasmcache" / "_core" / "wit" / "README.md"
PROFILES = ROOT / "trio_wasmcache" / "_profile" / "README.md"
ENGINES = ROOT / "trio_wasmcache" / "udf" / "README.md"
COOKBOOK = ROOT / "examples" / "README.md"
LOG = ROOT / "trio_wasmcache" / "report" / "README.md"
TESTED = ROOT / "tests" / "README.md"
SECURITY = ROOT / ".github" / "SECURITY.md"
# Not all of them are part of a source distribution.
_ALL = (
    *(FRONT, GUIDE, STATISTICS, PROFILES, KEPT, CODE, COMPONENTS, COOKBOOK, ENGINES, LOG),
    *(TESTED, SECURITY),
)
MAIN = [page for page in _ALL if page.exists()]
CHAPTERS = sorted((ROOT / "examples" / "cookbook").glob("*/README.md"))
"""The cookbook's chapters: all have the same sections, and snippets that run in their folders."""
PAGES = [*MAIN, *CHAPTERS]

TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
ALL = "\n".join(TEXTS.values())


def load_program(path: Path) -> Any:
    """Return the module of a program, anew."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections(page: Path) -> dict[str, str]:
    """Return {title: text} of a page."""
    found = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXTS[page], re.MULTILINE | re.DOTALL)
    return dict(found)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return [(how it is run, code)] of the Python in a text."""
    return re.findall(
        r"^(?:<!-- (\w+) -->\n)?```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )


SECTIONS = {title: text for page in MAIN for title, text in sections(page).items()}
BLOCKS = [block for page in MAIN for block in blocks(TEXTS[page])]

# What the README says of its snippets: a cache is open and fib is registered.
_AROUND_SNIPPET = """
import structlog, trio, trio_wasmcache
{fib}
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
async def main():
    async with trio_wasmcache.open_cache() as cache:
        await cache.register("fib", FIB, args=("i64",), returns="i64")
{snippet}
trio.run(main)
"""


def program_of(snippet: str) -> str:
    """Return the program in which a snippet runs."""
    first = next(text for mark, text in BLOCKS if mark == "runs")
    fib = re.search(r'^FIB = """.*?"""$', first, re.MULTILINE | re.DOTALL)
    assert fib
    return _AROUND_SNIPPET.format(fib=fib[0], snippet=textwrap.indent(snippet, " " * 8))


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python program, which must end well; its output is kept."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


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
