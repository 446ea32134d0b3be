"""An ABI for tests, by which one call makes several calls of exports, and gives the last result."""

from __future__ import annotations

from typing import Any

from trio_wasmcache import FuncType, Guest, Invoke


class Several:
    """Takes a list of (export, wasm values)."""

    arity, lower, lift = 1, None, None

    def __init__(self, signature: FuncType) -> None:
        self.signature = signature

    def bind(self, *_: Any) -> Several:
        return self

    def explain(self, values: tuple[object, ...]) -> Exception:
        return TypeError(f"a list of calls, not {values!r}")

    def steps(self, _guest: Guest, values: tuple[Any, ...]) -> Any:
        result = None
        for export, arguments in values if isinstance(values[0], tuple) else values[0]:
            result = yield Invoke(export, arguments)
        return result
