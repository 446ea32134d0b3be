"""Do what all commands do: read a log under a progress bar, print the answer, then the notes.

The options that several commands have are defined here, too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..._core.config import ADAPTIVE, IdleTimeout
from ..reading.frames import Parser
from ..reading.lines import Reader
from ..reading.notes import NOTHING, Notes, cite
from ..reading.units import size

# Bytes read, packed or unpacked, below which a bar would vanish before it is seen.
BAR_FROM = 8 * 1024 * 1024
# Width of output to a file or a pipe.
PLAIN_COLUMNS = 80
_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str) -> int:
    """Parse bytes: ``65536``, ``64KiB``, ``1.5MiB``."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text, re.ASCII)
    if not found or found[2].lower() not in _UNITS:
        raise click.BadParameter(f"{text!r} is no size; 65536, 64KiB and 1.5MiB are")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def parse_seconds(text: str) -> float:
    """Parse seconds: ``2.5``, or ``inf``."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number) or number < 0:
        raise click.BadParameter(f"{text!r} is no number of seconds")
    return number


def parse_timeout(text: str) -> IdleTimeout:
    """Parse an idle timeout: seconds, or ``adaptive``."""
    if text == ADAPTIVE:
        return ADAPTIVE
    try:
        return parse_seconds(text)
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message}, nor {ADAPTIVE!r}") from None


def parse_rate(text: str) -> float:
    """Parse a rate from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:  # refuses nan, too
        raise click.BadParameter(f"{text!r} is no rate from 0 to 1")
    return number


def parse_where(text: str) -> tuple[str, str]:
    """Parse ``FIELD=VALUE``."""
    field, separator, value = text.partition("=")
    if not field or not separator:
        raise click.BadParameter(f"{text!r} is not FIELD=VALUE, such as request=17")
    return field, value


LOGS = click.argument("logs", nargs=-1, required=True, metavar="LOG...")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
HTML = click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write one self-contained page with charts.",
)
CACHE = click.option(
    "--cache",
    "only",
    # Bytes that are no text become lone surrogates, which polars refuses, and no log has.
    type=lambda text: text.encode(errors="replace").decode(),
    metavar="ID",
    help="Report on this cache of the log only.",
)
LABEL = click.option(
    "--label",
    metavar="PATTERN",
    help="Answer for all caches whose label matches, such as 'web-*', together.",
)


class _Output(Console):
    """The console for results."""

    def on_broken_pipe(self) -> None:
        raise  # for `run` to handle; rich itself would exit with 1


class Session:
    """The input of a command, the notes on it, and the consoles for its output."""

    def __init__(self, logs: Sequence[str], *, quiet: bool = False) -> None:
        self.errors: Console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", PLAIN_COLUMNS))
        self.out: Console = _Output(highlight=False, width=columns)
        self.notes: Notes = Notes(
            lambda text: None if quiet else self.errors.print(text, markup=False, style="yellow")
        )
        self.reader: Reader = Reader(logs, self.notes)
        self.parser: Parser = Parser()

    @contextlib.contextmanager
    def bar(self) -> Iterator[None]:
        """Show the progress of reading, if the input is a pipe or larger than `BAR_FROM`."""
        if not self.errors.is_terminal:
            yield
            return
        progress = self._progress()
        total = self.reader.size
        task = progress.add_task("reading", total=total)
        gone_through = 0

        def advance(taken: int, unpacked: int) -> None:
            nonlocal gone_through
            gone_through += unpacked
            progress.update(task, advance=taken, description=f"reading, {size(gone_through)}")
            if gone_through >= BAR_FROM:
                progress.start()

        self.reader.advanced = advance
        try:
            if total is None or total >= BAR_FROM:
                progress.start()
            yield
        finally:
            if progress.live.is_started:
                progress.stop()

    @contextlib.contextmanager
    def counted(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show how many of a growing number of things are done; call what is yielded with both."""
        if not self.errors.is_terminal:
            yield lambda _done, _wanted: None
            return
        with self._progress() as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, wanted: progress.update(task, completed=done, total=wanted)

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.errors, transient=True)

    def tell(self) -> None:
        """Note problems of the input."""
        self.reader.tell()
        self.parser.tell(self.notes)

    def nothing(self, only: str | None = None, label: str | None = None) -> int:
        """Print why there are no events to analyse; return the exit status."""
        counts = self.reader.counts
        if self.reader.opened:
            text = "no events to analyse"
            if not counts.lines:
                text = "the log is empty"
            elif counts.named:
                text += ": the log names events, but not as JSON; write it with JSONRenderer"
            elif only is not None:
                text += f" of cache {cite(only)}"
            elif label is not None:
                text += f" of a cache with a label like {cite(label)}"
            self.errors.print(text, style="red", markup=False)
        return NOTHING


def print_json(value: object) -> None:
    """Print JSON for programs, in ASCII, so that names cannot control a terminal."""
    json.dump(value, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def write_text(path: Path, text: str) -> None:
    """Write a page; raise a usage error if the file can't be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), error.strerror or str(error)) from None
