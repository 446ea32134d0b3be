"""The command line of the log tool; what it exits with is told in `notes`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from .document import make_document
from .notes import NOTHING
from .questions import replay, tune, whatif
from .session import CACHE, HTML, JSON, LOGS, Seconds, Session, print_json, write_text
from .summary import THRASH_SECONDS, Summary
from .terminal import TOP, show_report

PROGRAM = "python -m trio_wasmcache"


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
    session = Session(logs)
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

        write_text(html, report_page(document))
    if as_json:
        print_json(document)
    else:
        show_report(session.out, document, top)
    return session.notes.status


for question in (replay, whatif, tune):
    commands.add_command(question)


def run(arguments: Sequence[str]) -> int:
    """Run a command; gives the exit status."""
    try:
        status = commands.main(list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return NOTHING
    return status if isinstance(status, int) else 0
