"""Fixtures for all tests: both engines, and a log to look at."""

from __future__ import annotations

import pytest
from kits import FakeKit, Kit, ListLogger, WasmtimeKit


@pytest.fixture(params=[FakeKit, WasmtimeKit], ids=["fake", "wasmtime"])
def kit(request: pytest.FixtureRequest) -> Kit:
    """An engine with its modules: the fake one, then the real one."""
    made: Kit = request.param()
    return made


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
