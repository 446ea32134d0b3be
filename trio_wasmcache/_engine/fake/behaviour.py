"""Describe a module of the fake engine: its exports, what they return, and what they burn."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from ..._core.integers import signed
from ..._core.text import shown
from ..base import WasmValue

BITS = {"i32": 32, "i64": 64}


@frozen(kw_only=True)
class Behaviour:
    """What a fake module does; made by `FakeEngine.module`."""

    run: Callable[..., Any]
    export: str
    results: tuple[str, ...]
    code_size: int
    fuel: float
    start_fuel: float
    seconds: float
    start_seconds: float
    grow_pages: int
    host_calls: int
    resettable: bool
    address_space: int
    mappings: int
    exports: Mapping[str, Callable[..., Any]] = {}
    """{name: function} of exports that host functions may invoke."""
    takes_values: bool = False
    """Whether it takes and returns Python values, in place of wasm's numbers."""
    args: Sequence[str] | None = None
    returns: str | Sequence[str] | None = None

    def result(self, values: tuple[object, ...]) -> Any:
        """Return what the export returns, as wasm does: None, a number, or a tuple of numbers.

        Raises:
            TypeError, OverflowError: what `run` returned is not of the export's types.
            Exception: whatever `run` raised.
        """
        made = self.run(*values)
        if self.takes_values:
            return made
        if not self.results:
            return None
        if len(self.results) == 1:
            return self._number(self.results[0], made)
        if not isinstance(made, tuple) or len(made) != len(self.results):
            raise TypeError(
                f"{self._returned(made)}: its {len(self.results)} results, "
                f"{', '.join(self.results)}, take a tuple of that many values"
            )
        return tuple(map(self._number, self.results, made))

    def _number(self, kind: str, value: object) -> WasmValue:
        bits = BITS.get(kind)
        if bits is None:
            if not isinstance(value, (int, float)):
                raise TypeError(f"{self._returned(value)}: {kind} takes a float")
            if kind == "f64":
                return float(value)
            (rounded,) = struct.unpack("<f", struct.pack("<f", value))
            return float(rounded)
        if not isinstance(value, int):
            raise TypeError(f"{self._returned(value)}: {kind} takes an int")
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise OverflowError(f"{self._returned(value)}: {kind} has {bits} bits")
        return signed(value, bits)

    def _returned(self, value: object) -> str:
        return f"the fake of export {self.export!r} returned {shown(value)}"
