"""Plain functions among `imports`, which are given for what a component imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast, final

from attrs import field, frozen

from .._abi.base import Value
from .host import HostFunction, HostGlobal, HostMemory, HostTable
from .user_code import identity

_CLASSES: Final = (HostFunction, HostMemory, HostTable, HostGlobal)


@final
@frozen
class WitFunction:
    """A function that is given for an import of a component."""

    fn: Callable[..., Value] = field(eq=identity)

    @property
    def pure(self) -> bool:
        """Whether it can be called while a guest is prepared: see `HostFunction.pure`."""
        return False


def plain_functions(
    imports: Any,
) -> tuple[Any, dict[tuple[str, str], WitFunction]]:
    """Return what `imports` has beside plain functions; and these, by interface and name.

    Args:
        imports: what `register` was given; anything else is returned as it is.
    """
    functions: dict[tuple[str, str], WitFunction] = {}
    if not isinstance(imports, Mapping):
        return imports, functions
    rest: dict[str, Any] = {}
    for module, names in imports.items():
        if not isinstance(names, Mapping) or not isinstance(module, str):
            rest[module] = names
            continue
        rest[module] = {}
        for name, given in names.items():
            plain = callable(given) and not isinstance(given, HostFunction)
            if plain and isinstance(name, str) and given not in _CLASSES:
                functions[module, name] = WitFunction(cast("Callable[..., Value]", given))
            else:
                rest[module][name] = given
    return rest, functions
