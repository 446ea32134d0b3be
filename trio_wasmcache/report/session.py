"""What the commands share: reading a log with a bar, remarks on it, options, and printing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .frames import Parser
from .lines import Reader, tell_counts
from .notes import NOTHING, Notes

# Below this a bar would be gone before it is seen.
BAR_FROM = 8 * 1024 * 1024
_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}


class Size(click.ParamType):
    """Bytes: ``65536``, ``64KiB``, ``100MiB``."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
        if not found or found[2].lower() not in _UNITS:
            self.fail(f"{value!r} is no size; 65536, 64KiB and 100MiB are", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].lower()])


class Seconds(click.ParamType):
    """``2.5``, or ``inf``."""

    name = "seconds"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isnan(number) or number < 0:
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return number


class Session:
    """What all commands share: the input, remarks on it, and a bar while it is read."""

    def __init__(self, logs: Sequence[str]) -> None:
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.out = Console(highlight=False, width=None if sys.stdout.isatty() else _columns())
        self.notes = Notes(lambda text: self.errors.print(f"{text}", markup=False, style="yellow"))
        self.reader = Reader(logs, self.notes)
        self.parser = Parser()

    @contextlib.contextmanager
    def bar(self) -> Iterator[None]:
        """While the input is read."""
        total = self.reader.size
        if not self.errors.is_terminal or (total is not None and total < BAR_FROM):
            yield
            return
        columns = (TextColumn("reading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.errors, transient=True) as progress:
            task = progress.add_task("", total=total)
            self.reader.advanced = lambda number: progress.advance(task, number)
            yield

    def tell(self) -> None:
        """What there is to say about the input."""
        tell_counts(self.reader.counts, self.notes)
        self.parser.tell(self.notes)

    def nothing(self) -> int:
        """There are no events to analyse: say why."""
        counts = self.reader.counts
        if self.reader.opened:
            text = "no events to analyse"
            if not counts.lines:
                text = "the log is empty"
            elif counts.named:
                text += ": the log names events, but not as JSON; write it with JSONRenderer"
            self.errors.print(text, style="red", markup=False)
        return NOTHING


def _columns() -> int:
    return int(os.environ.get("COLUMNS", "80"))


def print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=1)
    sys.stdout.write("\n")


LOGS = click.argument("logs", nargs=-1, required=True, metavar="LOG...")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
HTML = click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write one self-contained page with charts.",
)
CACHE = click.option("--cache", "only", metavar="ID", help="Only this cache of the log.")


def write_text(path: Path, text: str) -> None:
    """Write a page; a file that can't be written is wrong usage."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), error.strerror or str(error)) from None
