"""The component model's post-return functions: how a module learns that a call's result was taken.

A core module of a component may export ``cabi_post_<export>``, which takes the results of that
export. It frees what the results point to, and it is what makes the next call possible: modules of
languages with a runtime of their own, such as JavaScript, trap at their second call without it.
"""

from __future__ import annotations

from typing import Any

from .._core.errors import ExportError
from .._core.wasm.admission import signature
from .._core.wasm.reader import FuncType
from .base import Exports

PREFIX = "cabi_post_"


def find_post(what: str, export: str, exports: Exports) -> str | None:
    """Return the name of an export's post-return function, None if the module has none.

    Raises:
        ExportError: the function of that name does not take those results, or returns something.
    """
    name = PREFIX + export
    kind = exports.functions.get(name)
    if kind is None:
        return None
    wanted = FuncType(exports.functions[export].results)
    if kind != wanted:
        raise ExportError(
            f"{what}: {name!r:.300} is called after {export!r:.300}, so it must be "
            f"{signature(wanted)}, but it is {signature(kind)}"
        )
    return name


def post_values(result: Any, results: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the arguments of a post-return function for what its export returned."""
    if len(results) > 1:
        return tuple(result)
    return (result,) if results else ()
