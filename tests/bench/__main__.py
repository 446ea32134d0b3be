"""``python -m tests.bench``: figures side by side, in one run. See `harness`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import attrs
import trio

from . import batches, calls, hostile, isolation, log, loop, shares, statistics
from .harness import Report

SUITES = {
    "batches": batches.run,
    "calls": calls.run,
    "hostile": hostile.run,
    "isolation": isolation.run,
    "log": log.run,
    "loop": loop.run,
    "shares": shares.run,
    "statistics": statistics.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, rougher figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    unknown = set(options.suites) - SUITES.keys()
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    report = Report()
    for name in options.suites or SUITES:
        print(f"-- {name}", flush=True)
        trio.run(SUITES[name], report, options.quick)
    if options.json:
        lines = [attrs.asdict(result) for result in report.results]
        options.json.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
