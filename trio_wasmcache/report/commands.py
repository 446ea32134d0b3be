"""The commands: ``report``, ``replay``, ``whatif`` and ``tune``; wrong usage exits with 2."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .document import make_document
from .feeding import Feeder
from .frames import Parser
from .lines import Reader, tell_counts
from .notes import NOTHING, Notes
from .replay import NotReplayable, Replay
from .results import Result
from .summary import THRASH_SECONDS, Summary
from .tasks import Application, Recorder
from .terminal import TOP, seconds, show_replay, show_report, show_tuning, show_whatif, size
from .tuning import Tuner, advise
from .whatif import WhatIf

PROGRAM = "python -m trio_wasmcache"
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

    def __init__(self, logs: Sequence[str], only: str | None) -> None:
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.out = Console(highlight=False, width=None if sys.stdout.isatty() else _columns())
        self.notes = Notes(lambda text: self.errors.print(f"{text}", markup=False, style="yellow"))
        self.reader = Reader(logs, self.notes)
        self.parser = Parser()
        self.feeder = Feeder(self.reader, self.parser, only)

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
        self.feeder.tell(self.notes)

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
    import os

    return int(os.environ.get("COLUMNS", "80"))


def _print_json(value: object) -> None:
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """What a cache's log says, and what the cache would have done under other limits.

    LOG is a file of JSON lines, plain or compressed with gzip or zstd, or - for standard input.
    Lines that are no events are skipped. The exit status is 0; 1 if some of the input was missing
    or damaged, or books and log disagree; 2 if there was nothing to analyse.
    """


@commands.command()
@LOGS
@JSON
@HTML
@CACHE
@click.option(
    "--thrash-seconds",
    type=Seconds(),
    default=THRASH_SECONDS,
    show_default=True,
    help="Loaded again so soon after an eviction is thrash.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    default=TOP,
    show_default=True,
    help="Rows of the tables by function and group.",
)
def report(
    logs: Sequence[str],
    as_json: bool,
    html: Path | None,
    only: str | None,
    thrash_seconds: float,
    top: int,
) -> int:
    """What was evicted and why, hits and waits, thrash, churn, sizes over time."""
    session = Session(logs, only)
    summary = Summary(thrash_seconds)
    with session.bar():
        for block in session.reader.blocks():
            frame = session.parser.frame(block)
            if only is not None:
                frame = frame.filter(frame["cache"] == only)
            summary.take(frame)
    session.tell()
    summary.tell(session.notes)
    if not summary.caches:
        return session.nothing()
    document = make_document(summary, session.reader, session.parser, session.notes)
    if html is not None:
        from .page import report_page

        _write(html, report_page(document))
    if as_json:
        _print_json(document)
    else:
        show_report(session.out, document, top)
    return session.notes.status


@commands.command()
@LOGS
@JSON
@CACHE
def replay(logs: Sequence[str], as_json: bool, only: str | None) -> int:
    """Run a log with log_uses through the cache's own policy, and compare."""
    session = Session(logs, only)
    replays: dict[str, Replay | None] = {}
    with session.bar():
        for event in session.feeder.events():
            cache = event["cache"]
            if cache not in replays:
                replays[cache] = Replay()
            running = replays[cache]
            if running is not None:
                try:
                    running.feed(event)
                except NotReplayable as error:
                    session.notes.problem(f"cache {cache}: {error}")
                    replays[cache] = None
    session.tell()
    rows = []
    for cache, running in replays.items():
        if running is None:
            continue
        running.finish()
        if running.disagreed:
            session.notes.status = max(session.notes.status, 1)
        rows.append(
            {
                "cache": cache,
                "events": running.events,
                "leases": running.leases,
                "evictions": running.evictions,
                "disagreed": running.disagreed,
                "disagreements": [
                    {"seq": seq, "text": text} for seq, text in running.disagreements
                ],
            }
        )
    if not rows:
        return session.nothing() if not replays else NOTHING
    if as_json:
        _print_json({"caches": rows, "notes": session.notes.texts})
    else:
        show_replay(session.out, rows)
    return session.notes.status


@commands.command()
@LOGS
@JSON
@CACHE
@click.option("--max-size", type=Size(), multiple=True, help="Bytes of idle instances together.")
@click.option("--max-instance-size", type=Size(), multiple=True, help="Bytes of one instance.")
@click.option("--max-instances", type=int, multiple=True, help="Idle and running ones.")
@click.option("--max-code-size", type=Size(), multiple=True, help="Bytes of code and stacks.")
@click.option("--idle-timeout", type=Seconds(), multiple=True, help="Seconds, or inf.")
def whatif(logs: Sequence[str], as_json: bool, only: str | None, **limits: Sequence[Any]) -> int:
    """The same requests under other limits; each option may be given several times."""
    given = {name: values for name, values in limits.items() if values}
    if not given:
        raise click.UsageError("name at least one limit, such as --max-size 64MiB")
    settings = [
        dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())
    ]
    session = Session(logs, only)
    recorders = _record(session, lambda: Recorder(), lambda one: one.made and one.made.leases)
    session.tell()
    if recorders is None:
        return session.nothing() if not session.feeder.lines else NOTHING
    recorder = recorders
    recorder.tell(session.notes)
    assert recorder.made is not None
    rows = []
    for setting in ({}, *settings):
        try:
            rows.append((_named(setting), WhatIf(recorder.made, setting).run()))
        except (TypeError, ValueError) as error:
            raise click.UsageError(str(error)) from None
    if as_json:
        results = [{"setting": name, **result.as_dict()} for name, result in rows]
        _print_json({"results": results, "notes": session.notes.texts})
    else:
        show_whatif(session.out, rows)
    return session.notes.status


@commands.command()
@LOGS
@JSON
@HTML
@CACHE
@click.option("--target-hit-rate", type=click.FloatRange(0, 1), default=0.99, show_default=True)
@click.option(
    "--check/--no-check", default=True, help="Run the advised limits through the policy, too."
)
def tune(
    logs: Sequence[str],
    as_json: bool,
    html: Path | None,
    only: str | None,
    target_hit_rate: float,
    check: bool,
) -> int:
    """How large the cache has to be for a hit rate, and what each size would give."""
    session = Session(logs, only)
    made = _record(session, lambda: _Both(check), lambda both: both.tuner.leases)
    session.tell()
    if made is None:
        return session.nothing() if not session.feeder.lines else NOTHING
    tuner = made.tuner
    if not tuner.leases:
        session.errors.print("no leases to tune by", style="red")
        return NOTHING
    curve, advice = advise(tuner, target_hit_rate)
    checked = None
    if made.recorder is not None and made.recorder.made is not None:
        checked = _check(made.recorder.made, advice.max_size, advice.idle_timeout)
    if html is not None:
        from .page import tuning_page

        _write(html, tuning_page(tuner, curve, advice, checked, session.notes.texts))
    if as_json:
        timeout = None if advice.idle_timeout == math.inf else advice.idle_timeout
        _print_json(
            {
                "leases": tuner.leases,
                "hit_rate": tuner.hits / tuner.leases,
                "target_hit_rate": target_hit_rate,
                "advice": {
                    "sentence": advice.sentence,
                    "line": advice.line,
                    "max_size": advice.max_size,
                    "idle_timeout": timeout,
                    "hit_rate": curve.at(advice.max_size).hit_rate,
                },
                "checked": None if checked is None else checked.as_dict(),
                "knee": curve.knee(),
                "curve": [
                    {
                        "max_size": point.max_size,
                        "hit_rate": point.hit_rate,
                        "load_seconds": point.load_seconds,
                    }
                    for point in curve.points()
                ],
                "notes": session.notes.texts,
            }
        )
    else:
        show_tuning(session.out, tuner, curve, advice, checked)
    return session.notes.status


class _Both:
    """What `tune` needs: leases by what they need, and programs to check the advice with."""

    def __init__(self, check: bool) -> None:
        self.tuner = Tuner()
        self.recorder = Recorder() if check else None

    def feed(self, event: dict[str, Any]) -> None:
        self.tuner.feed(event)
        if self.recorder is not None:
            self.recorder.feed(event)


def _record(session: Session, make: Callable[[], Any], leases: Callable[[Any], Any]) -> Any:
    """Feed the events of each cache to one of `make`'s; gives that with the most leases."""
    made: dict[str, Any] = {}
    with session.bar():
        for event in session.feeder.events():
            cache = event["cache"]
            if cache not in made:
                made[cache] = make()
            if made[cache] is not None:
                try:
                    made[cache].feed(event)
                except NotReplayable as error:
                    session.notes.problem(f"cache {cache}: {error}")
                    made[cache] = None
    found = {cache: one for cache, one in made.items() if one is not None}
    if not found:
        return None
    cache, best = max(found.items(), key=lambda item: leases(item[1]) or 0)
    if len(found) > 1:
        session.notes.remark(
            f"{len(found)} caches in this log; this is about {cache}, which has the most leases "
            "(--cache ID is for the others)"
        )
    return best


def _check(application: Application, max_size: int, idle_timeout: float) -> Result | None:
    try:
        return WhatIf(application, {"max_size": max_size, "idle_timeout": idle_timeout}).run()
    except ValueError:
        return None


def _named(setting: dict[str, Any]) -> str:
    if not setting:
        return "as logged"
    parts = []
    for name, value in setting.items():
        shown = str(value) if name == "max_instances" else size(value)
        parts.append(f"{name}={seconds(value) if name == 'idle_timeout' else shown}")
    return " ".join(parts)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), error.strerror or str(error)) from None


def run(arguments: Sequence[str]) -> int:
    """Run a command; gives the exit status."""
    try:
        status = commands.main(list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return NOTHING
    return status if isinstance(status, int) else 0
