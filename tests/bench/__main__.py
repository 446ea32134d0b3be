"""``python -m tests.bench``: figures side by side, in one run of about two minutes.

Each has a name, a value, a unit, perhaps a bar and whether it is met. Trust ratios: see `harness`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path

import attrs
import trio

from .. import compilers
from . import plot, readme
from .harness import Report, machine

# Without being asked for: what the README shows.
DEFAULT = ("calls", "misses", "first", "entries", "waiting", "batches", "loop", "startup")
# Whatever is here and no part of the machinery is a suite, with a function `run`.
MACHINERY = {"__main__", "engines", "harness", "instructions", "peers", "plot", "readme"}
HERE = Path(__file__).parent
SUITES = {path.stem for path in HERE.glob("*.py") if not path.stem.startswith("test_")} - MACHINERY


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(sorted(SUITES))}; or all")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, rougher figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them: .svg or .png")
    parser.add_argument("--readme", action="store_true", help="put them into the README's table")
    options = parser.parse_args()
    names = sorted(SUITES) if options.suites == ["all"] else options.suites or DEFAULT
    unknown = set(names) - SUITES
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    if options.plot and not plot.available():
        parser.error("--plot needs matplotlib: pip install -e '.[bench]'")
    # All this is better known before some minutes have passed.
    if options.plot and options.plot.suffix not in (".svg", ".png"):
        parser.error(f"--plot draws .svg or .png, not {options.plot}")
    if options.readme and (options.quick or not {*DEFAULT} <= {*names}):
        parser.error("--readme needs all rows of the table: neither --quick nor only some suites")
    for path in filter(None, (options.json, options.plot)):
        try:
            path.open("a").close()
        except OSError as error:
            parser.error(f"{path} can't be written: {error.strerror}")
    compilers.use()
    report = Report()
    began = time.monotonic()
    print(machine())
    for name in names:
        print(f"-- {name}", flush=True)
        report.suite = name
        suite = importlib.import_module(f"{__package__}.{name}")
        trio.run(suite.run, report, options.quick)
    verdicts = [result.verdict for result in report.results if result.met is not None]
    missed = verdicts.count("MISSED")
    seconds = time.monotonic() - began
    print(f"-- {len(verdicts) - missed} of {len(verdicts)} bars met, in {seconds:.0f} seconds")
    if options.json:
        lines = [attrs.asdict(result) for result in report.results]
        options.json.write_text(json.dumps(lines, indent=1) + "\n")
    if options.plot:
        plot.draw(report.results, options.plot)
    if options.readme:
        readme.write(report.results)


if __name__ == "__main__":
    main()
