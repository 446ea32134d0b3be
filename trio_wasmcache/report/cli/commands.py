"""Define the command ``report``, and run the tool: `run` turns errors into an exit status.

The exit status of each command is explained in `notes`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path

import click
import polars as pl

from ..output.document import make_document
from ..output.story import (
    MAX_TOLD,
    show_slowest,
    show_stories,
    slowest_document,
    story_document,
)
from ..output.terminal import TOP, show_report
from ..output.trail import show_sentences, show_trail, trail_document
from ..reading.lines import find_lines
from ..reading.notes import FINE, NOTHING, cite
from ..summary.fields import Fields
from ..summary.slowest import MAX_SLOWEST, Slowest
from ..summary.story import Causes, stories
from ..summary.summary import Summary
from ..summary.trail import Trail
from .questions import replay, tune, whatif
from .session import (
    CACHE,
    HTML,
    JSON,
    LOGS,
    Session,
    parse_seconds,
    parse_where,
    print_json,
    write_text,
)

PROGRAM = "python -m trio_wasmcache"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Analyse what a cache's log contains, and what other limits would have changed.

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
    "--by-cache", is_flag=True, help="Also print each cache by itself, if there are several."
)
@click.option(
    "--slowest",
    type=click.IntRange(1, MAX_SLOWEST),
    metavar="N",
    help="Tell where the time of the N slowest requests went, and why, and nothing else.",
)
@click.option(
    "--where",
    "conditions",
    type=parse_where,
    multiple=True,
    metavar="FIELD=VALUE",
    help="Tell what became of the requests that have this value in any event, and why; given "
    "several times, that have all of them in one event. Of evictions, tell why, and for whom.",
)
@click.option(
    "--events",
    is_flag=True,
    help="With --where or --slowest: print the events of those requests, or of those instances.",
)
@click.option(
    "--thrash-seconds",
    type=parse_seconds,
    metavar="SECONDS",
    help="A load this soon after an eviction is thrash.  [default: 10, or the idle timeout after "
    "an eviction for that, if it is longer]",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    help="Number of rows of the tables by function and group, or of the requests and evictions "
    f"of --where.  [default: {TOP}, or {MAX_TOLD} of --where]",
)
def report(
    logs: Sequence[str],
    as_json: bool,
    html: Path | None,
    only: str | None,
    by_cache: bool,
    slowest: int | None,
    conditions: tuple[tuple[str, str], ...],
    events: bool,
    thrash_seconds: float | None,
    top: int | None,
) -> int:
    """Report what was evicted and why, hits and waits, thrash, churn, sizes over time.

    Of several caches, it prints the sums and the worst of them; with --by-cache, each by itself.
    LOG is a file of JSON lines, plain or compressed with gzip or zstd, or - for standard input;
    several files are one log. Lines that are no events are skipped and counted. The exit status is
    0; 1 if some of the input was missing or damaged; 2 if there was nothing to analyse.
    """
    session = Session(logs)
    if conditions or slowest is not None:
        option = "--where" if conditions else "--slowest"
        if html is not None:
            raise click.UsageError(f"--html has no page for {option}: use --json")
        if conditions and slowest is not None:
            raise click.UsageError("--slowest looks at all requests: use it without --where")
        if not all(Path(path).is_file() for path in logs):
            raise click.UsageError(f"{option} reads the log twice: give it files")
        if slowest is not None:
            return _tell_slowest(session, logs, slowest, only, as_json=as_json, events=events)
        trail = Trail(conditions)
        return _follow(session, logs, trail, only, as_json=as_json, events=events, top=top)
    if events:
        raise click.UsageError("--events is for --where and --slowest")
    summary = Summary(thrash_seconds)
    _take(session, only, summary.take)
    summary.add_up()
    session.tell()
    summary.tell(session.notes)
    if not summary.caches:
        return session.nothing(only)
    document = make_document(summary, session.reader, session.parser, session.notes)
    if html is not None:
        # Importing charts takes a second, which runs without --html should not pay.
        from ..output.page import report_page

        write_text(html, report_page(document))
    if as_json:
        print_json(document)
    else:
        show_report(session.out, document, top or TOP, by_cache=by_cache)
    return session.notes.status


def _take(session: Session, only: str | None, *takers: Callable[[pl.DataFrame], None]) -> None:
    """Give the events of a log to some who take them, block by block."""
    with session.bar():
        for block in session.reader.blocks():
            frame = session.parser.frame(block)
            if only is not None:
                frame = frame.filter(frame["cache"] == only)
            for take in takers:
                take(frame)


def _follow(
    session: Session,
    logs: Sequence[str],
    trail: Trail,
    only: str | None,
    *,
    as_json: bool,
    events: bool,
    top: int | None,
) -> int:
    """Print the stories of a trail, or its events; return the exit status."""
    sought = trail.sought()
    with session.bar():
        for piece in session.reader.pieces():
            lines = (line for _, line in find_lines(piece, sought))
            for event in session.parser.dicts(lines):
                if only is None or event["cache"] == only:
                    trail.look(event)
        session.tell()
        # Sentences about instances need no second reading.
        wanted = as_json or events or trail.requests or trail.groups
        causes = _read_again(logs, trail, only) if wanted else None
    trail.sort()
    if not trail.events and not trail.direct:
        where = " and ".join(f"{cite(name)}={cite(value)}" for name, value in trail.conditions)
        fields = Fields(tuple(name for name, _ in trail.conditions))
        again = Session(logs, quiet=True)
        for block in again.reader.blocks():
            fields.take(
                event for event in again.parser.dicts(block) if only in (None, event["cache"])
            )
        if fields.none:
            return session.nothing(only)
        session.errors.print(f"no event has {where}{fields.why()}", style="red", markup=False)
        return NOTHING
    if causes is not None and (trail.left_out or trail.unfollowed):
        session.notes.remark(
            f"{len(trail.events):,} events are shown, {trail.left_out:,} are left out, and those "
            f"of {trail.unfollowed:,} more requests or instances"
        )
    told = [] if causes is None else stories(trail, causes)
    if as_json:
        document = trail_document(trail, session.notes.texts)
        document["stories"] = [story_document(story) for story in told]
        print_json(document)
    elif events:
        show_trail(session.out, trail.events)
    elif told:
        show_stories(session.out, told, top)
    else:
        show_sentences(session.out, trail, top)
    return session.notes.status


def _tell_slowest(
    session: Session,
    logs: Sequence[str],
    number: int,
    only: str | None,
    *,
    as_json: bool,
    events: bool,
) -> int:
    """Print the stories of the slowest requests, or their events; return the exit status."""
    slowest = Slowest(number)
    summary = Summary()  # which knows if events are missing
    _take(session, only, summary.take, slowest.take)
    summary.add_up()
    session.tell()
    summary.tell(session.notes)
    if not summary.caches:
        return session.nothing(only)
    found = slowest.found
    if not found:
        used = any(cache.log_uses for cache in summary.caches.values())
        why = "no request has ended in it" if used else "it was written without log_uses"
        session.errors.print(f"no requests in the log: {why}", style="red")
        return NOTHING
    trail = slowest.trail()
    told = stories(trail, _read_again(logs, trail, only))
    told.sort(key=lambda story: -story.seconds)
    if as_json:
        print_json(slowest_document(slowest, told, session.notes.texts))
    elif events:
        trail.sort()
        show_trail(session.out, trail.events)
    else:
        show_slowest(session.out, slowest, told)
    return session.notes.status


def _read_again(logs: Sequence[str], trail: Trail, only: str | None) -> Causes:
    """Read the log again, as often as the causes of the events of a trail take."""
    causes = _find_causes(logs, trail, only)
    if causes.lacks_holders:
        trail.begin_anew()
        causes = _find_causes(logs, trail, only, with_holders=True)
    return causes


def _find_causes(
    logs: Sequence[str], trail: Trail, only: str | None, *, with_holders: bool = False
) -> Causes:
    """Read the log again, for the events of a trail and their causes."""
    again = Session(logs, quiet=True)  # what is wrong with the log has been said
    causes = Causes(trail, again.parser.dicts, with_holders=with_holders)
    for piece in again.reader.pieces(counted=False):
        causes.take(piece, only)
    return causes


commands.add_command(replay)
commands.add_command(whatif)
commands.add_command(tune)


def run(arguments: Sequence[str]) -> int:
    """Run a command; return the exit status.

    Args:
        arguments: the command line, without the program.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    # polars, when imported, makes the system resume a read that Ctrl-C has interrupted; on a pipe
    # without input, that would be for ever.
    signal.siginterrupt(signal.SIGINT, True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that cannot encode a character gets its code.
            stream.reconfigure(errors="backslashreplace")
    try:
        # Not `commands.main`, which has an exit status of its own for a broken pipe.
        with commands.make_context(PROGRAM, list(arguments)) as context:
            status: int = commands.invoke(context)
        sys.stdout.flush()
        return status
    except click.exceptions.Exit as asked:  # raised by --help
        return asked.exit_code
    except click.ClickException as error:
        error.show()
        return NOTHING
    except OSError as error:  # while writing: unreadable input is a note
        # Python would report the error again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader needs no more
            return FINE
        print(f"the answer can't be written: {error.strerror}", file=sys.stderr)
        return NOTHING
