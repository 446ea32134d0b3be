"""The table of figures in the tests' README: which rows are in it, and how a run is put there.

It has a column for each of two kinds of machine, as a figure that holds on one only is luck. A run
replaces the column of its own kind; that of a third kind replaces the second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .harness import BY_INSTRUCTIONS, Result, machine, shown

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
            "tiered: register and first call",
            "tiered / plain",
        )
    ),
    "map / the driver's loop in place",
    "map / a call for each row",
    "map / wasmtime-py",
    "ticker p99 above idle during fib(35), inline",
    "ticker p99 above idle during fib(35), offloaded",
    "two heavy calls / one after the other",
    "cancel an endless call, offloaded: median",
)


# Columns before those of machines.
NAME, BAR = "what", "bar"
MACHINES = 2
# {kind of machine: {name of a row: its figure and verdict}}, and {name of a row: its bar}
Table = tuple[dict[str, dict[str, str]], dict[str, str]]


def shows(result: Result) -> bool:
    """Whether the table has a row for it."""
    if result.python:
        return False
    return result.suite in SUITES or result.name in OTHERS


def read(text: str) -> Table:
    """The table in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = {
        machine: {row[0]: row[place] for row in cells[2:] if row[place]}
        for place, machine in enumerate(cells[0])
        if place >= 2
    }
    return columns, {row[0]: row[1] for row in cells[2:]}


def add(table: Table, name: str, results: Sequence[Result]) -> Table:
    """A table with the rows of a run on that kind of machine."""
    columns, old = table
    shown_ = [result for result in results if shows(result)]
    column = {
        it.name: " ".join(filter(None, (shown(it.value), it.unit, it.verdict))) for it in shown_
    }
    others = {machine: figures for machine, figures in columns.items() if machine != name}
    if name in columns:
        kept = columns | {name: column}
    else:
        kept = dict(list(others.items())[: MACHINES - 1]) | {name: column}
    bars = {it.name: it.bar for it in shown_}
    # Without valgrind or an extra, a run has fewer rows; the others stay, if anybody has them.
    left = {row: bar for row, bar in old.items() if any(row in it for it in kept.values())}
    return kept, {row: bars.get(row, left.get(row, "")) for row in _merged(left, bars)}


def _merged(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The rows of both, each old one that is not new behind the one that it was behind."""
    rows, before = list(new), ""
    for row in old:
        if row not in new:
            rows.insert(rows.index(before) + 1 if before else 0, row)
        before = row
    return rows


def as_text(table: Table) -> str:
    """The table as Markdown."""
    columns, bars = table
    lines = [f"| {NAME} | {BAR} | {' | '.join(columns)} |", "|---|---|" + "---:|" * len(columns)]
    for row, bar in bars.items():
        figures = " | ".join(figures.get(row, "") for figures in columns.values())
        lines.append(f"| {row} | {bar} | {figures} |")
    return re.sub(r" +\|", " |", "\n".join(lines)) + "\n"


def write(results: Sequence[Result]) -> None:
    """Put a run's rows where the old ones of this kind of machine are."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    table = add(read(old), machine(), results)
    README.write_text(f"{before}{BEGIN}{as_text(table)}{END}{after}")


def names() -> list[str]:
    """Of the rows that the table has now, without those that are counted."""
    text = README.read_text().split(BEGIN)[1].split(END)[0]
    return [row for row in read(text)[1] if not row.endswith(BY_INSTRUCTIONS)]
