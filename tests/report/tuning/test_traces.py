"""From a trace to a log, to an advice, to a cache that does what was advised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.trace import (
    Row,
    compare,
    config_for,
    draw,
    keep,
    loads_of_a_fixed_one,
    read,
    serve,
    working_set,
)
from report.logs import run_command

# A trace of the shape of the Azure sample, in small: 5,900 requests of 142 functions.
ROWS = draw(150, 3, seed=2)
Capture = pytest.CaptureFixture[str]


def test_at_a_tenth_of_the_working_set_others_load_much_less() -> None:
    """The ratios that the bench states for the large one: by time, a fifth; by number, three
    quarters."""
    figures = {it.policy: it for it in compare(ROWS, (0.1,))}
    assert figures["lru"].seconds > 5 * figures["cost"].seconds
    assert figures["lru"].loads > 1.3 * figures["gdsf"].loads
    assert figures["lru"].loads > figures["sieve"].loads


def test_adaptive_timeouts_load_less_in_the_same_memory() -> None:
    """Half as often as the fixed timeout that takes so much memory, on average."""
    kept = keep(ROWS, (600.0,))
    (adaptive,) = (it for it in kept if it.adaptive)
    assert 1.8 * adaptive.loads < loads_of_a_fixed_one(kept, adaptive.memory)


@pytest.mark.parametrize("objective", ["misses", "seconds"])
def test_a_cache_does_what_was_advised(objective: str, tmp_path: Path, capsys: Capture) -> None:
    """Its hit rate is within a point, and so is the time spent loading, on a clock that jumps."""
    rows = ROWS[:2500]
    log = tmp_path / "log"
    size = working_set(rows) // 10 // 1024 * 1024
    serve(rows, config_for(rows, max_size=size), log)
    given = "--objective", objective, "--max-size", f"{size // 1024}KiB", "--json"
    found = json.loads(run_command(capsys, "tune", log, *given).out)
    advice = found["advice"]
    assert advice["policy"] == {"misses": "gdsf", "seconds": "cost"}[objective]
    names = "policy", "max_size", "idle_timeout"
    stats = serve(rows, config_for(rows, **{name: advice[name] for name in names}))
    live = stats.hits / (stats.hits + stats.misses)
    assert live == pytest.approx(advice["hit_rate"], abs=0.01)
    assert found["checked"]["hit_rate"] == pytest.approx(live, abs=0.01)


def test_a_trace_from_a_file(tmp_path: Path) -> None:
    """The columns, in any order; whole pages, and in order of time."""
    path = tmp_path / "trace.csv"
    path.write_text("function,time,cost,size\nf,2,0.5,65537\ng,1.5,0,1\n")
    assert read(path) == [Row(1.5, "g", 1, 0.0), Row(2.0, "f", 2, 0.5)]


def test_a_trace_from_the_azure_sample(tmp_path: Path) -> None:
    """A MB is a page, a second a millisecond, and there is at most one request a minute."""
    minutes = ",".join(f"minute_{n}" for n in range(1, 1441))
    counts = ",".join(["3", "0", "1", *["0"] * 1437])
    (tmp_path / "2_inv.csv").write_text(
        f"HashFunction,HashApp,HashOwner,{minutes}\nf,a,o,{counts}\nunknown,a,o,{counts}\n"
    )
    (tmp_path / "2_mem.csv").write_text("HashApp,HashOwner,AverageAllocatedMb\na,o,170.4\n")
    (tmp_path / "2_run.csv").write_text("HashFunction,Average,Maximum\nf,1000,3000\n")
    first, second = read(tmp_path / "2_inv.csv")
    assert (first.function, first.pages, first.cost) == ("f0", 170, 0.002)
    assert 0 <= first.time < 60
    assert 120 <= second.time < 180
