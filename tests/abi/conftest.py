"""The packages of npm, installed once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest
from abi.npm import install


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `node_modules` with the packages in it."""
    return install(tmp_path_factory.mktemp("npm"))
