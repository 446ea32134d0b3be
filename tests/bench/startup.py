"""What importing costs beyond what it needs anyway, each time in a new process.

Modules are compiled to bytecode before, as those of an installed package are.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from .harness import Report

TIMED = """
import time
began = time.perf_counter(), time.process_time()
{}
print((time.perf_counter() - began[0]) * 1e3, (time.process_time() - began[1]) * 1e3)
"""
NEEDED, OURS = "import trio, wasmtime, structlog", "import trio_wasmcache"
# What is imported when it is first used, a program that opens a cache and registers does need.
OPENED = f"""
{NEEDED}, trio_wasmcache
async def main():
    async with trio_wasmcache.open_cache(logger=structlog.get_logger()):
        pass
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
trio.run(main)
"""
# The same without a cache: a run of Trio's, and a native engine.
BARE = f"""
{NEEDED}
async def main():
    wasmtime.Engine()
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
trio.run(main)
"""


def import_ms(what: str, bytecode: str) -> tuple[float, float]:
    """Milliseconds, and those of CPU time.

    Args:
        what: statements to execute.
        bytecode: folder of compiled modules.
    """
    environment = os.environ | {"PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(what)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


async def run(report: Report, quick: bool) -> None:
    taken: dict[str, list[tuple[float, float]]] = {NEEDED: [], OURS: [], BARE: [], OPENED: []}
    with tempfile.TemporaryDirectory() as bytecode:
        import_ms(OPENED, bytecode)
        for _ in range(1 if quick else 15):
            for what, times in taken.items():
                times.append(import_ms(what, bytecode))
    ms = {what: statistics.median(wall for wall, _ in times) for what, times in taken.items()}
    cpu = {what: statistics.median(it for _, it in times) for what, times in taken.items()}
    for what, name in (
        (NEEDED, NEEDED),
        (OURS, OURS),
        (BARE, "the first, a run of Trio's and an engine"),
        (OPENED, "and a cache that is opened and closed"),
    ):
        report.add(name, ms[what], "ms", note=f"{cpu[what]:.3g} ms of CPU time")
    report.add("import: ours / what it needs", ms[OURS] / ms[NEEDED], "", at_most=1.15)
    report.add("import and open: ours / what it needs", ms[OPENED] / ms[BARE], "", at_most=1.6)
