"""The component model's post-return functions, which a module needs called after a result is taken.

A core module of a component may export ``cabi_post_<export>``, which takes the results of that
export. It frees what the results point to, and enables the next call: modules of languages with a
runtime of their own, such as JavaScript, trap at their second call without it.
"""

from __future__ import annotations

from .._core.errors import ExportError
from .._core.wasm.admission import signature
from .._core.wasm.reader import FuncType
from .base import Exports, Value

PREFIX = "cabi_post_"


def find_post(what: str, export: str, exports: Exports) -> str | None:
    """Return the name of an export's post-return function, or None.

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


def post_values(result: Value, results: tuple[str, ...]) -> tuple[object, ...]:
    """Return the arguments of a post-return function, given the result of its export."""
    if len(results) > 1:
        return tuple(result)
    return (result,) if results else ()
