"""An exported function of the fake engine: what a call is given, and how it begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define

from ..._core.wasm.reader import FuncType
from ..base import UNDER_WAY, InexactError

if TYPE_CHECKING:
    from .engine import FakeInstance


@define(eq=False)
class FakeFunction:
    """See `GuestFunction`."""

    instance: FakeInstance
    type: FuncType

    @property
    def left(self) -> FakeFunction:
        return self

    @property
    def value(self) -> int:
        return self.instance.fuel_left()

    def begin(self, values: Sequence[Any], fuel: int) -> Any:
        if type(values) is not tuple or not {int, float}.issuperset(map(type, values)):
            raise InexactError
        if len(values) != len(self.type.params):
            raise ValueError("wrong number of values")
        for value, kind in zip(values, self.type.params, strict=True):
            if isinstance(value, float) and kind not in ("f32", "f64"):
                raise TypeError(f"{value!r} is no {kind}")
            if isinstance(value, int) and value.bit_length() > 63:
                raise OverflowError(f"{value!r} is too large")
        self.instance.begin(values, fuel)
        return self.finish() if self.instance.poll() else UNDER_WAY

    def finish(self) -> Any:
        return self.instance.finish()
