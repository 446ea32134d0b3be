"""Storms, small ones, in which `weather` asserts it all; and the command for large ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kits import Kit
from storm.weather import blow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", range(8))
async def test_storm(kit: Kit, seed: int) -> None:
    """Whatever happens, the books agree, everybody finishes, and nothing is left."""
    assert await blow(kit, seed) > 20


def test_the_command_counts_operations() -> None:
    """Storms on both engines, one after the other, until there were as many as were asked for."""
    command = [sys.executable, "-m", "tests.storm", "--operations", "400", "--rounds", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert int(last.split()[0].replace(",", "")) >= 400
    assert "invariants intact" in last
