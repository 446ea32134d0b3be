"""The table of figures in the tests' README: which rows are in it, and how a run is put there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .harness import Result, machine, shown

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
# Of these suites, every row; of the others, what is named here.
SUITES = ("calls", "misses", "entries", "waiting", "startup")
OTHERS = (
    *(
        f"{name} ({size})"
        for size in ("3 KB", "70 KB")
        for name in (
            "plain compile, instantiate, call",
            "plain, metered, one thread",
            "register and first call",
            "register and first call / plain",
            "the same / plain, metered, one thread",
        )
    ),
    "map / a call for each row",
    "map / wasmtime-py",
    "ticker p99 above idle during fib(35), inline",
    "ticker p99 above idle during fib(35), offloaded",
)


def shows(result: Result) -> bool:
    """Whether the table has a row for it."""
    return result.suite in SUITES or result.name in OTHERS


def table(results: Sequence[Result]) -> str:
    """The rows of a run, as Markdown."""
    lines = ["| what | figure | bar | |", "|---|---:|---|---|"]
    lines += [
        f"| {result.name} | {shown(result.value)} {result.unit} | {result.bar} | {result.verdict} |"
        for result in results
        if shows(result)
    ]
    return re.sub(r" +\|", " |", "\n".join(lines)) + "\n"


def write(results: Sequence[Result]) -> None:
    """Put a run's rows where the old ones are, and on what kind of machine it was."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}On {machine()}:\n\n{table(results)}{END}{after}")


def names() -> list[str]:
    """Of the rows that the table has now."""
    text = README.read_text().split(BEGIN)[1].split(END)[0]
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    return rows[1:]
