"""Errors go to other processes, as those of a pool do, and are the same there."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from trio_wasmcache import DeadlockError, ExitError, FuelExhaustedError, TrapError, WasmCacheError

ERRORS = [
    TrapError("m", code="unreachable", function="f", values=(1,), backtrace=("f",), row=2),
    ExitError("m", status=3, function="f"),
    FuelExhaustedError("m", values=(1, 2)),
    DeadlockError("m", chain=("a", "b")),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_an_error_is_copied_with_all_it_tells(
    error: WasmCacheError, again: Callable[[WasmCacheError], WasmCacheError]
) -> None:
    """Its message, and what it has besides."""
    error.args = ("f(i64): m",)  # as it is completed by who knows the function
    found = again(error)
    assert type(found) is type(error)
    assert (found.args, found.__dict__) == (error.args, error.__dict__)
