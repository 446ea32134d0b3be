"""The fuzzer in its small profile, and that it sees a crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
INPUTS = 300


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_every_input_gets_a_typed_error_or_a_result(tmp_path: Path) -> None:
    """No crash, no other exception, nothing left open; and inputs of every kind got everywhere."""
    done = fuzz("--inputs", str(INPUTS), "--keep", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{INPUTS} inputs of seed 1, 0 problems" in done.stdout
    for outcome in ("result", "register: InvalidModuleError", "call: TrapError"):
        assert f" {outcome}\n" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_crash_is_seen_and_its_input_kept(tmp_path: Path) -> None:
    """The report names the file, and the inputs after it are tried by another process."""
    from tests.fuzz.mutate import make

    done = fuzz("--inputs", "9", "--seed", "5", "--keep", str(tmp_path), "--crash-at", "4")
    assert done.returncode == 1
    kept = tmp_path / "seed-5-input-4.wasm"
    assert f"input 4: the process ended with status -6: \n  kept in {kept}" in done.stdout
    assert "9 inputs of seed 5, 1 problems" in done.stdout
    assert kept.read_bytes() == make(5, 4)[1]
