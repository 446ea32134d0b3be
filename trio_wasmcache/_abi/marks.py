"""Exports by which an ABI is recognised, known without loading the ABI."""

from __future__ import annotations

from typing import Final

SCYLLA_VERSION: Final = "_scylla_abi"
"""Global that modules with ScyllaDB's ABI export."""
SET_COUNT: Final = "__setArgumentsLength"
"""Function that modules of AssemblyScript export if a function has optional arguments."""
RTTI: Final = "__rtti_base"
"""Global that modules with AssemblyScript's runtime export."""
