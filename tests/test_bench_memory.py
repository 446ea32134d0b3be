"""The bench of memory runs, on a few instances: its figures are for people, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_bench_of_memory_writes_its_figures(tmp_path: Path) -> None:
    """Of each phase of the life that it scripts, and of what is left in the end."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "memory", "--quick", "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    names = [line["name"] for line in json.loads(figures.read_text())]
    assert len(names) == 8
    for phase in ("running", "grown", "idle", "evicted"):
        assert any(f" {phase}: RSS" in name for name in names)
