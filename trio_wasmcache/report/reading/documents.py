"""The type of plain dictionaries that the parts of the log tool pass to each other."""

from __future__ import annotations

from typing import Any, TypeAlias

Document: TypeAlias = dict[str, Any]
"""A JSON object with results, as printed by `--json`."""
