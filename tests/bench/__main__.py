"""``python -m tests.bench``: figures side by side, in one run of about two minutes.

Each has a name, a value, a unit, perhaps a bar and whether it is met. Trust ratios: see `harness`.
The command exits with 1 if a bar was missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio

from .. import compilers
from . import instructions, plot, readme
from .harness import WAY, Report, Result, machine, medians

# Without being asked for: what the README shows.
DEFAULT = ("calls", "misses", "first", "entries", "waiting", "batches", "loop", "startup")
# Whatever is here and no part of the machinery is a suite, with a function `run`.
MACHINERY = {"__main__", "engines", "harness", "instructions", "peers", "plot", "readme"}
# What these measure takes the same steps each time, and can be counted.
COUNTABLE = ("calls", "misses", "waiting")
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SUITES = {path.stem for path in HERE.glob("*.py") if not path.stem.startswith("test_")} - MACHINERY


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(sorted(SUITES))}; or all")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, rougher figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them: .svg or .png")
    parser.add_argument(
        "--runs", type=int, default=1, metavar="N", help="run all N times (odd), and keep medians"
    )
    parser.add_argument("--readme", action="store_true", help="put them into the README's table")
    parser.add_argument("--slow", action="store_true", help="evict caches before each turn")
    parser.add_argument(
        "--instructions",
        action="store_true",
        help=f"also count them, of {', '.join(COUNTABLE)}; needs valgrind",
    )
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="PYTHON",
        help="run each suite with this interpreter, too, which has what the tests need",
    )
    parser.add_argument("--counting", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = sorted(SUITES) if options.suites == ["all"] else options.suites or DEFAULT
    unknown = set(names) - SUITES
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    if options.plot and not plot.available():
        parser.error("--plot needs matplotlib: pip install -e '.[bench]'")
    if options.runs < 1 or options.runs % 2 == 0:
        parser.error(f"--runs must be odd, as a median is one of the figures: got {options.runs}")
    if options.instructions and not instructions.available():
        parser.error("--instructions needs valgrind: apt-get install valgrind")
    for python in options.beside:
        if not shutil.which(python):
            parser.error(f"there is no interpreter {python}")
    # All this is better known before some minutes have passed.
    if options.plot and options.plot.suffix not in (".svg", ".png"):
        parser.error(f"--plot draws .svg or .png, not {options.plot}")
    if options.readme and (options.quick or options.slow or not {*DEFAULT} <= {*names}):
        parser.error("--readme needs all rows of the table: not --quick, --slow or some suites")
    for path in filter(None, (options.json, options.plot)):
        try:
            path.open("a").close()
        except OSError as error:
            parser.error(f"{path} can't be written: {error.strerror}")
    compilers.use()
    WAY.slow = options.slow
    if options.counting:
        WAY.counting = instructions.Callgrind(options.counting)
    began = time.monotonic()
    print(machine() + (", caches evicted" if options.slow else ""))
    figures = medians([measure(names, options) for _ in range(options.runs)])
    if options.runs > 1:
        print(f"-- medians of {options.runs} runs")
        Report().extend(figures)
    verdicts = [result.verdict for result in figures if result.met is not None]
    missed = verdicts.count("MISSED")
    seconds = time.monotonic() - began
    print(f"-- {len(verdicts) - missed} of {len(verdicts)} bars met, in {seconds:.0f} seconds")
    if options.json:
        lines = [attrs.asdict(result) for result in figures]
        options.json.write_text(json.dumps(lines, indent=1) + "\n")
    if options.plot:
        plot.draw(figures, options.plot)
    if options.readme:
        readme.write(figures)
    sys.exit(1 if missed else 0)


def measure(names: Sequence[str], options: argparse.Namespace) -> list[Result]:
    """The rows of all suites, once, shown as they come.

    Several suites have a process each: otherwise, what one does to the heap and to the processor's
    caches would be in the figures of the next.
    """
    report = Report()
    for name in names:
        print(f"-- {name}", flush=True)
        report.suite = name
        if len(names) > 1 or options.runs > 1:
            report.extend(apart(sys.executable, name, options))
        else:
            suite = importlib.import_module(f"{__package__}.{name}")
            trio.run(suite.run, report, options.quick)
            if options.instructions and name in COUNTABLE:
                report.extend(counted(name))
        for python in options.beside:
            print(f"-- {name}, {python}", flush=True)
            report.extend(beside(python, name, options))
    return report.results


def counted(suite: str) -> list[Result]:
    """The ratios of a suite by instructions, from a process under valgrind."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = ["tests.bench", suite, "--quick", "--counting", "{output}", "--json"]
        instructions.run_counted([*command, str(figures)])
        return results(figures)


def beside(python: str, suite: str, options: argparse.Namespace) -> list[Result]:
    """The rows of a suite with another interpreter."""
    version = subprocess.run(
        [python, "-c", "import platform; print(platform.python_version())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return [
        attrs.evolve(result, name=f"{version}: {result.name}", python=version)
        for result in apart(python, suite, options)
    ]


def apart(python: str, suite: str, options: argparse.Namespace) -> list[Result]:
    """The rows of a suite in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [python, "-m", "tests.bench", suite, "--json", str(figures)]
        for option in ("quick", "slow", "instructions"):
            command += [f"--{option}"] * getattr(options, option)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode not in (0, 1) or not figures.exists():
            raise SystemExit(f"{python} has failed: {done.stderr}")
        return results(figures)


def results(figures: Path) -> list[Result]:
    """The rows that a command has written."""
    return [Result(**line) for line in json.loads(figures.read_text())]


if __name__ == "__main__":
    main()
