"""The benches run, on a few repetitions: what they measure is for people, not for tests."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bench import engines, harness, instructions, plot, readme
from bench.harness import BY_INSTRUCTIONS, Report, Result, medians

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "suite",
    [
        "hostile",
        "isolation",
        "log",
        "poison",
        "policies",
        "profiles",
        "reentry",
        "statistics",
        "tenants",
        "trace",
        *(("outside", "promotion") if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else ()),
    ],
)
def test_a_bench_runs_and_writes_its_figures(suite: str, tmp_path: Path) -> None:
    """With a name, a value and a unit for each."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", suite, "--quick", "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    lines = json.loads(figures.read_text())
    assert lines, done.stderr
    assert done.returncode == any(line["met"] is False for line in lines), done.stderr
    assert all(line["name"] and isinstance(line["value"], float) for line in lines)


def test_another_interpreter_and_evicted_caches(tmp_path: Path) -> None:
    """Rows of both are there, each of the other's with its version; a missed bar of it counts."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "reentry", "--quick", "--slow"]
    command += ["--beside", sys.executable, "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines()[0].endswith("caches evicted"), done.stderr
    lines = [Result(**line) for line in json.loads(figures.read_text())]
    version = platform.python_version()
    ours, others = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert {it.python for it in ours} == {""}
    assert [it.name for it in others] == [f"{version}: {it.name}" for it in ours]
    assert {it.python for it in others} == {version}
    assert done.returncode == any(it.met is False for it in lines)


def test_of_several_runs_each_row_is_the_median(tmp_path: Path) -> None:
    """With the verdict that it had; the last lines show what is written."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "reentry", "--quick", "--json", str(figures)]
    done = subprocess.run(
        [*command, "--runs", "3"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    runs, _, shown = done.stdout.partition("-- medians of 3 runs\n")
    lines = [Result(**line) for line in json.loads(figures.read_text())]
    assert lines, done.stderr
    assert all(runs.count(line.name) >= 3 for line in lines)
    assert all(str(line) in runs and str(line) in shown for line in lines)
    assert done.returncode == any(line.met is False for line in lines)
    done = subprocess.run([*command, "--runs", "2"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "--runs must be odd" in done.stderr) == (2, True)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [2.0, 1.0, 9.0]])
def test_a_median_is_one_of_the_figures(values: list[float]) -> None:
    """For each row by itself, with its note."""
    runs = [
        [Result("a", value, "us", "<= 2", value <= 2, note=f"of {value}"), Result("b", -value, "")]
        for value in values
    ]
    assert medians(runs) == [
        Result("a", 2.0, "us", "<= 2", True, note="of 2.0"),
        Result("b", -2.0, ""),
    ]


@pytest.mark.skipif(not instructions.available(), reason="there is no valgrind")
@pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="a minute under valgrind: at night"
)
def test_instructions_are_counted_for_each_ratio(tmp_path: Path) -> None:
    """Twice the same, but for a hundredth, whatever else the machine does."""
    figures, counted = tmp_path / "figures.json", []
    for _ in range(2):
        command = [sys.executable, "-m", "tests.bench", "calls", "--quick", "--instructions"]
        command += ["--json", str(figures)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        lines = [Result(**line) for line in json.loads(figures.read_text())]
        rows = {it.name: it.value for it in lines if it.name.endswith(BY_INSTRUCTIONS)}
        timed = [it.name for it in lines if not it.unit and it.name not in rows]
        assert [*rows] == [name + BY_INSTRUCTIONS for name in timed], done.stderr
        counted.append(rows)
    assert counted[0] == pytest.approx(counted[1], rel=0.01)


def test_the_table_has_a_column_for_each_kind_of_machine() -> None:
    """A run replaces the column of its own kind; rows that only others have stay in their place."""
    first, second = (
        Result(name, value, "us", "<= 2", value <= 2, suite="calls")
        for name, value in (("a", 1.0), ("b", 3.0))
    )
    of_python = Result("3.13: a", 1.0, "us", suite="calls", python="3.13")
    table = readme.add(({}, {}), "one", [first, second])
    table = readme.add(table, "two", [second, of_python])
    table = readme.read(readme.as_text(table))
    assert table == (
        {"one": {"a": "1 us PASS", "b": "3 us MISSED"}, "two": {"b": "3 us MISSED"}},
        {"a": "<= 2", "b": "<= 2"},
    )
    assert list(table[1]) == ["a", "b"]
    columns, bars = readme.add(table, "one", [second])
    assert columns == {"one": {"b": "3 us MISSED"}, "two": {"b": "3 us MISSED"}}
    assert list(bars) == ["b"]
    assert list(readme.add(table, "three", [first])[0]) == ["one", "three"]


def test_a_bench_needs_nothing_but_the_core() -> None:
    """What compares with optional packages leaves them out; nothing else is imported."""
    code = """
import sys
missing = ("pyarrow", "extism", "matplotlib", "pytest", "scylla", "cassandra", "numpy", "polars")
sys.modules.update(dict.fromkeys(missing))
import importlib
from tests.bench.__main__ import SUITES
for suite in sorted(SUITES):
    importlib.import_module(f"tests.bench.{suite}")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_the_rows_of_the_bench(tmp_path: Path) -> None:
    """All of the suites that it shows, in order, under the same names; and a picture is drawn.

    A quick run has fewer entries than they say, and without Extism there are no rows of it.
    """
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.svg"
    command = [sys.executable, "-m", "tests.bench", "--quick"]
    command += ["--json", str(figures), *(["--plot", str(picture)] if plot.available() else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stderr
    assert max(len(line) for line in done.stdout.splitlines() if line[:1] not in " (") <= 80
    results = [Result(**line) for line in json.loads(figures.read_text())]
    wanted = [re.sub(r"[\d,]{2,}", "N", result.name) for result in results if readme.shows(result)]
    has_extism = importlib.util.find_spec("extism") is not None
    there = [re.sub(r"[\d,]{2,}", "N", name) for name in readme.names()]
    assert wanted == [name for name in there if has_extism or "Extism" not in name]
    assert picture.exists() == plot.available()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["speed"], "speed"),
        (["startup", "--json", "nowhere/figures.json"], "nowhere/figures.json"),
        (["startup", "--json", "tests"], "tests"),
        (["startup", "--plot", "figures.xyz"], "figures.xyz" if plot.available() else "[bench]"),
        (["startup", "--readme"], "--readme"),
        (["--slow", "--readme"], "--slow"),
        (["startup", "--beside", "nowhere/python"], "nowhere/python"),
        (["--quick", "--readme"], "--readme"),
    ],
)
def test_what_can_not_be_done_is_refused_at_once(arguments: list[str], named: str) -> None:
    """With the exit code of a usage error, and the name, before anything is measured."""
    command = [sys.executable, "-m", "tests.bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert named in done.stderr
    assert not done.stdout


def test_what_can_not_be_counted_is_refused() -> None:
    """All of it, before anything is counted."""
    command = [sys.executable, "-m", "tests.bench.instructions", "hit", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no such thing: speed" in done.stderr


def test_rows_in_engines_are_measured() -> None:
    """By `bench_engines`, in those that the tests have; others by the suite, at night."""
    pytest.importorskip("pyarrow")
    report = Report()
    engines.bench_engines(report, 200, 1, ("polars", "DuckDB"))
    assert {line.name.partition(":")[0] for line in report.results} == {"Arrow", "polars", "DuckDB"}
    assert [line.name for line in report.results if line.bar] == [
        "DuckDB: WasmUDF in SQL / its Python UDF"
    ]
    assert all(line.value > 0 for line in report.results)


@pytest.mark.skipif(not harness.cores(), reason="the system does not say")
def test_all_threads_run_on_one_core_and_on_all_again() -> None:
    """Also those that are there already, such as the one in which a batch runs."""
    every, asked, told = harness.cores(), threading.Event(), []
    waiting = threading.Thread(target=lambda: asked.wait(600) and told.append(harness.cores()))
    waiting.start()
    harness.run_on(every[-1:])
    try:
        asked.set()
        waiting.join()
        assert [harness.cores(), *told] == [every[-1:], every[-1:]]
    finally:
        harness.run_on(every)
    assert harness.cores() == every
