"""`examples/engines.py` and `examples/ray_data.py`, with each engine that is installed.

CI has some of them; `pip install -e '.[test,examples,engines]'` has all, for the night.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import engines
import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# A cluster starts in minutes on a machine under load.
HANG = 1800
# Those that start threads or processes that stay, and would disturb the tests that follow.
APART = ("daft", "spark")


@pytest.fixture
def closed() -> Iterator[None]:
    """Close the cache of this process afterwards."""
    yield
    engines.unit_price.close()


def run(*arguments: str | Path) -> str:
    """Run a program; return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}"},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_an_engine_calls_the_function(engine: str, closed: None) -> None:
    """Each row has its price, and a row in which the guest fails has a null."""
    if not engines.installed(engine):
        pytest.skip(f"{engine} is not installed (the extra [engines])")
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("spark needs Java, which is not installed")
    functions = engines.ENGINES[engine]
    if engine in APART:
        out = run("examples/engines.py", engine)
        assert out.splitlines() == [f"{one.__name__}: [300, None, 300]" for one in functions]
    else:
        for function in functions:
            assert function(engines.ORDERS) == [300, None, 300]


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (the extra [engines])"
)


@needs_ray
def test_ray_data(tmp_path: Path) -> None:
    """The pipeline's rows are whole, and the logs of its workers are read as one fleet."""
    out = run("examples/ray_data.py", tmp_path / "run")
    printed = out.splitlines()[-1]
    assert printed.startswith("8000 prices, 80 of them failed: TrapError: unit_price@")
    assert printed.endswith("integer divide by zero")
    logs = sorted((tmp_path / "run/logs").glob("*.jsonl"))
    assert 1 <= len(logs) <= 2
    report = json.loads(run("-m", "trio_wasmcache", "report", "--json", *logs))
    assert report["together"]["caches"] == len(report["caches"]) == len(logs)
    # A worker loads the function once, and is warm for all its other batches.
    closed = [cache["closed"] for cache in report["caches"]]
    assert [one["misses"] for one in closed] == [1] * len(logs)
    assert sum(one["hits"] for one in closed) == 8 - len(logs)


@needs_ray
def test_ray_retries_what_may_get_better(tmp_path: Path) -> None:
    """A batch of a lost worker runs again, and one without capacity; one that traps never does."""
    out = run(HERE / "ray_faults.py", tmp_path / "run")
    lines = out.splitlines()
    for fault in FAULTS:
        assert fault in lines


FAULTS = ("lost: 3 runs, 10 rows", "room: 3 runs, 10 rows", "trap: 1 runs, TrapError row 3")
