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
FLOORLESS = "_planted.py"
# {contract: (file, line)}: the files are new ones, which no contract names.
BREACHES = {
    "Imports point down": ("_pool/planted.py", "from .._cache import lease"),
    "Imports point down, for types too": (
        "_runtime/planted.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .._pool import pool",
    ),
    "Imports point down, from files that say nothing of their floor": (FLOORLESS, ""),
    "The log tool's imports point down": (
        "report/reading/planted.py",
        "from ..summary import summary",
    ),
    "No circles": ("_batch/columns.py", "from . import byte_columns"),
    "The core is pure": ("_core/policy/planted.py", "import time"),
    "The log tool runs nothing": ("report/reading/planted.py", "import trio"),
    "Only one folder imports wasmtime or ctypes": ("_cache/planted.py", "import ctypes"),
    "Only the log imports structlog": ("_engine/fake/planted.py", "import structlog"),
    "Only the collector imports prometheus_client": (
        "_cache/planted.py",
        "import prometheus_client",
    ),
    "Only the tracer imports opentelemetry": ("_cache/planted.py", "import opentelemetry.trace"),
    "Only the log tool imports what it is made with": ("_core/planted.py", "import polars"),
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
            text = spoiled.read_text() if spoiled.exists() else ""
            spoiled.write_text(f"{text}\n{line}\n")
            verdict = lint(tree)
        said = f"{verdict.stdout}{verdict.stderr}"
        name = contract.split(", ")[0]
        # A file without a floor ends the check itself, with its name.
        floorless = file == FLOORLESS and FLOORLESS.removesuffix(".py") in said
        refused = verdict.returncode != 0 and (f"{name} BROKEN" in said or floorless)
        print(f"{contract!r} {'refuses' if refused else 'DOES NOT REFUSE'} {line!r} in {file}")
        failures += not refused
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
