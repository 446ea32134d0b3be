"""The command line: ``python -m trio_wasmcache``."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from ._core.text import printable
from ._demo import Teller, demo

# The log tool's commands. The log tool parses its own options, and is imported only for these
# commands: it needs libraries that the cache does not.
LOG_COMMANDS = {
    "report": "report a log's evictions, hits, waits, thrash, and sizes over time",
    "replay": "run a log through the cache's own policy, and compare",
    "whatif": "run the requests of a log under other limits",
    "tune": "find the size of the cache for a hit rate",
}
NEEDED = ("click", "jinja2", "matplotlib", "polars", "rich", "zstandard")
# Characters of a message of `inspect`.
MAX_MESSAGE = 2000
MISUSED = 2
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. Wrong arguments exit with status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in LOG_COMMANDS:
        return read_log(given)
    parser = make_parser()
    options = parser.parse_args(given)
    if options.command is None:
        parser.print_help()
        return 0
    if options.command == "schema":
        from .report.reading.schema import as_text

        sys.stdout.write(as_text())
        return 0
    if options.command == "inspect":
        return inspect_file(options.file)
    if options.command == "again":
        return run_again(options)
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    status = 0
    try:
        trio.run(demo, Teller(colours), options.pause)
    except* KeyboardInterrupt:
        status = INTERRUPTED
    except* BrokenPipeError:
        # The reader closed the pipe. Python would report it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def read_log(arguments: Sequence[str]) -> int:
    """Run a command of the log tool; report the libraries that are missing."""
    if lacks_libraries(arguments[0]):
        return MISUSED
    try:
        # This import takes a second; Ctrl-C during it is handled, too.
        from .report.cli.commands import run

        return run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def lacks_libraries(command: str) -> bool:
    """Return whether libraries of the log tool are missing, and report them."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{command} needs {', '.join(missing)}: pip install '.[report]'", file=sys.stderr)
    return bool(missing)


def run_again(options: argparse.Namespace) -> int:
    """Run logged calls again; return the exit status."""
    if lacks_libraries("again"):
        return MISUSED
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    status = INTERRUPTED
    try:
        from ._again import Wanted, again

        wanted = Wanted(options.request, options.seq, options.row, options.cache)
        status = again(options.logs, options.module, wanted, as_json=options.json)
        sys.stdout.flush()
    except* KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except* BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    return status


def inspect_file(file: str) -> int:
    """Print what a file is and how to register it; return 1 if it is no module."""
    from ._core.errors import WasmCacheError
    from ._inspect import inspect, laid_out

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack characters of a name
            stream.reconfigure(errors="backslashreplace")
    try:
        for line in inspect(Path(file)):
            print(*laid_out(line), sep="\n")
    except (WasmCacheError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        said = f"{file!r} can't be read: {reason}" if reason else str(error)
        print(printable(said, MAX_MESSAGE), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m trio_wasmcache",
        description="WebAssembly user-defined functions for Trio, kept warm between calls.",
    )
    parser.add_argument("--version", action="version", version=f"trio_wasmcache {version()}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="command")
    tour = commands.add_parser(
        "demo",
        help="show a small cache at work, in a few seconds",
        description="Registers three functions in a small cache and shows everything that can "
        "happen to them, with the cache's own log of it.",
    )
    tour.add_argument(
        "--pause",
        type=seconds,
        default=0.3,
        metavar="SECONDS",
        help="pause after each step, 0 to 60 (default: %(default)s)",
    )
    for name, text in LOG_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    looking = commands.add_parser(
        "inspect",
        help="what a file is, what it needs, and how to register it",
        description="Reads a module, without compiling or running it: what made it, its exports "
        "and imports and who provides them, its memory, the isolation and caching it gets, and "
        "the register(...) line to begin with. Ends with status 1 if it is no module.",
    )
    looking.add_argument("file", metavar="FILE", help="a module, binary or text")
    repeating = commands.add_parser(
        "again",
        help="run logged calls again: same result, fuel and trap?",
        description="Runs calls that a cache with log_values has logged, each in a new instance of "
        "the given module, with the answers of its host from the log. Ends with status 0 if all "
        "end as in the log, with 1 if some end otherwise, with 2 if some can't be run.",
    )
    repeating.add_argument("logs", nargs="+", metavar="LOG", help="files of JSON lines")
    repeating.add_argument(
        "--module",
        action="append",
        required=True,
        metavar="FILE",
        help="the module that was registered; may be given several times",
    )
    repeating.add_argument(
        "--request", type=int, metavar="N", help="only calls of that request (default: all)"
    )
    repeating.add_argument("--seq", type=int, metavar="N", help="only the event of that number")
    repeating.add_argument("--row", type=int, metavar="N", help="only that row of a batch")
    repeating.add_argument("--cache", metavar="ID", help="only calls of that cache")
    repeating.add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser("schema", help="print the JSON Schema of the log's events")
    return parser


def seconds(text: str) -> float:
    """Return the pause given on the command line (seconds, 0 to 60)."""
    value = float(text)
    if not 0 <= value <= 60:
        raise argparse.ArgumentTypeError(f"must be from 0 to 60, got {text}")
    return value


def version() -> str:
    """Return the version of the installed package."""
    try:
        return importlib.metadata.version("trio-wasmcache")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
