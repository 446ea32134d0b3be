"""Fixtures for all tests: both engines, and a log to look at; and how hard Hypothesis tries.

Tests are marked `once` and `twice` by their files, below.
`--compiler baseline` has every module compiled by the baseline compiler that it can compile.
`HYPOTHESIS_PROFILE` is "ci" (the default), which tries the same examples each time, so that a
change is judged by what it changed; or "nightly": ten times as many, and others every night.
So it is with the order in which Trio runs tasks: see `ready_order`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import compilers
import pytest
from hypothesis import settings
from kits import FakeKit, Kit, ListLogger, WasmtimeKit, nightly
from ready_order import VARIABLE, begin_test, choose_seed

from trio_wasmcache._core import tiers
from trio_wasmcache._runtime import source_lines

settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

TESTS = Path(__file__).parent
# Beginnings of paths. See `markers` in pyproject.toml. `TWICE` goes before `ONCE`: the second run
# measures the coverage.
ONCE = (
    "abi/test_assemblyscript.py",
    "abi/test_extism.py",
    "abi/test_npm_",
    "batch/test_allocators.py",
    "batch/test_object_driver.py",
    "batch/test_poison.py",
    "batch/test_routes.py",
    "bench/",
    "components/",
    "cookbook/",
    "core/wasm/",
    "engine/test_baseline.py",
    "engine/test_faults.py",
    "engine/test_no_memory.py",
    "engine/test_reservations.py",
    "fuzz/",
    "hostile/",
    "runtime/test_determinism.py",
    "runtime/test_prepared_guests.py",
    "runtime/test_results.py",
    "runtime/test_toolchains.py",
    "soak/",
    "storm/",
)
TWICE = (
    "abi/test_canonical",
    "components/test_imports.py",
    "components/test_register.py",
    "components/test_wasi.py",
    "core/metrics/",
    "core/policy/",
    "core/profiles/",
    "core/wasm/test_address_map.py",
    "core/wasm/test_component",
    "core/wasm/test_wasm_height.py",
    "engine/test_apart.py",
    "engine/test_code_cache.py",
    "engine/test_compile_locks.py",
    "engine/test_exceptions.py",
    "engine/test_sampling.py",
    "engine/test_wasi_costs.py",
    "faces/test_engines.py",
    "faces/test_english.py",
    "faces/test_examples.py",
    "faces/test_readme.py",
    "faces/test_service",
    "profile/",
    "report/",
    "runtime/test_profiles.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long, and would find the same on each interpreter."""
    for item in items:
        for mark, paths in (("twice", TWICE), ("once", ONCE)):
            if item.path.relative_to(TESTS).as_posix().startswith(paths):
                item.add_marker(mark)
                break


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which the tests run on the other compiler."""
    parser.addoption("--compiler", choices=tuple(tiers.FIRST), default=compilers.chosen())


def pytest_configure(config: pytest.Config) -> None:
    """Let modules get the compiler that the option names, and tests send Ctrl-C."""
    compilers.use(config.getoption("compiler"))
    choose_seed(nightly=nightly())
    # Errors have their source lines however slow the machine is.
    source_lines.PATIENCE = source_lines.MAX_SECONDS = 600.0
    # A shell has what it starts in the background ignore Ctrl-C, and tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have Trio draw the lots of this test."""
    begin_test(item.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to run what has failed again, with tasks in the same order."""
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(
            f"The order of tasks was that of {VARIABLE}={os.environ[VARIABLE]}"
        )


@pytest.fixture(params=[FakeKit, WasmtimeKit], ids=["fake", "wasmtime"])
def kit(request: pytest.FixtureRequest) -> Kit:
    """An engine with its modules: the fake one, then the real one."""
    made: Kit = request.param()
    return made


@pytest.fixture
def optimizing_only() -> None:
    """Skip a test that is about the optimizing compiler where modules get the other one."""
    if tiers.FIRST["optimizing"] is not tiers.OPTIMIZING:
        pytest.skip("it is about the optimizing compiler")


@pytest.fixture
def fake() -> FakeKit:
    """The fake engine alone: for clocks that jump, and for counting what is open."""
    return FakeKit()


@pytest.fixture
def real() -> WasmtimeKit:
    """wasmtime alone."""
    return WasmtimeKit()


@pytest.fixture
def log() -> ListLogger:
    """A logger that keeps its events."""
    return ListLogger()
