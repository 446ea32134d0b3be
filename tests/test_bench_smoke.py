"""The benches run, on a few repetitions: what they measure is for people, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("suite", ["calls", "isolation", "log", "loop", "statistics"])
def test_a_bench_runs_and_writes_its_figures(suite: str, tmp_path: Path) -> None:
    """With a name, a value and a unit for each."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", suite, "--quick", "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = json.loads(figures.read_text())
    assert lines
    assert all(line["name"] and isinstance(line["value"], float) for line in lines)


def test_an_unknown_suite_is_refused() -> None:
    """With the exit code of a usage error, and the name."""
    command = [sys.executable, "-m", "tests.bench", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "speed" in done.stderr
