"""Shows that the layer contracts can refuse: breaks each in a copy, and sees import-linter say no.

Run by `.ci/run`, not by pytest: it takes import-linter, which the tests do not need.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# {contract: (file to spoil, line to put into it)}
BREACHES = {
    "Imports point down": ("_turns.py", "from . import _runner"),
    "The core is pure": ("_core/lru.py", "import time"),
    "Only the engine imports wasmtime or ctypes": ("_lease.py", "import ctypes"),
    "Only the log imports structlog": ("_evictor.py", "import structlog"),
    "Only the collector imports prometheus_client": ("_statistics.py", "import prometheus_client"),
    "The log tool's imports point down": (
        "report/reading/frames.py",
        "from ..summary import summary",
    ),
    "No circles in the log tool": ("report/reading/notes.py", "from . import feeding"),
    "The log tool runs nothing": ("report/reading/lines.py", "import trio"),
    "Only the log tool imports what it is made with": ("_core/stats.py", "import polars"),
}


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """import-linter's verdict on a copy of the project."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(
        command, cwd=tree, capture_output=True, text=True, env={"PYTHONPATH": str(tree)}
    )


def main() -> int:
    """0 if every contract refused its breach."""
    failures = 0
    for contract, (file, line) in BREACHES.items():
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder)
            shutil.copytree(ROOT / "trio_wasmcache", tree / "trio_wasmcache")
            shutil.copy(ROOT / "pyproject.toml", tree)
            spoiled = tree / "trio_wasmcache" / file
            spoiled.write_text(f"{spoiled.read_text()}\n{line}\n")
            verdict = lint(tree)
        refused = verdict.returncode != 0 and f"{contract} BROKEN" in verdict.stdout
        print(f"{contract!r} {'refuses' if refused else 'DOES NOT REFUSE'} {line!r} in {file}")
        failures += not refused
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
