"""What the log tool passes from one part to the next as plain dictionaries."""

from __future__ import annotations

from typing import Any, TypeAlias

Document: TypeAlias = dict[str, Any]
"""A JSON object of what the log tool found out, as `--json` prints it."""
