"""The benches of memory and of compiling run, on little: their figures are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("suite", "figures"), [("memory", 8), ("compile", 5)])
def test_a_bench_writes_its_figures(suite: str, figures: int, tmp_path: Path) -> None:
    """Of each phase; whether the bars are met is not asked here."""
    path = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", suite, "--quick", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stderr
    lines = json.loads(path.read_text())
    assert len(lines) == figures
    assert all(line["name"] and isinstance(line["value"], float) for line in lines)
