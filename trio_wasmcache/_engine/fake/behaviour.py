"""Say what the modules of the fake engine do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen


@frozen
class Behaviour:
    """What a fake module does; made by `FakeEngine.module`."""

    run: Callable[..., Any]
    code_size: int
    fuel: float
    start_fuel: float
    grow_pages: int
    host_calls: int
    resettable: bool
    address_space: int
    mappings: int
