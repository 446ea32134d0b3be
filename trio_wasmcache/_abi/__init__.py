"""ABIs: how Python values cross into a guest and back, and which ABI a function uses.

`base` defines the protocol; `plain` is the default, `scylla`, `buffer` and `assemblyscript` pass
values through memory, `extism` through the memory of a part of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar, final

from .._core.errors import SignatureError
from .._core.text import shown
from .._core.wasm.reader import ModuleInfo
from .base import Abi, Binding, Exports
from .marks import RTTI, SCYLLA_VERSION, SET_COUNT

T = TypeVar("T")
_NAMES: Final = ("plain", "scylla", "buffer", "assemblyscript", "extism")


@final
class _Abis(Mapping[str, Abi]):
    """{name: ABI}; an ABI is imported when it is first looked up, as few programs use several."""

    def __init__(self) -> None:
        self._made: dict[str, Abi] = {}

    def __getitem__(self, name: str) -> Abi:
        if name not in self._made:
            self._made[name] = _make(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in _NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


def _make(name: str) -> Abi:
    match name:
        case "plain":
            from .plain import Plain

            return Plain()
        case "scylla":
            from .scylla import ScyllaAbi

            return ScyllaAbi()
        case "buffer":
            from .buffer import BufferAbi

            return BufferAbi()
        case "assemblyscript":
            from .assemblyscript import AssemblyScriptAbi

            return AssemblyScriptAbi()
        case "extism":
            from .extism import ExtismAbi

            return ExtismAbi()
        case _:
            raise KeyError(name)


ABIS: Final = _Abis()

# What a binding has.
FUNCTIONS = ("lower", "lift", "steps", "explain")
BINDING = ("signature", "arity", *FUNCTIONS)


def check_abi(what: str, abi: object) -> Abi | None:
    """Return the ABI given, by name or as an object of the user's; None: the module determines it.

    Raises:
        SignatureError: there is no ABI of that name.
        TypeError: it is neither a name nor an ABI.
    """
    if abi is None:
        return None
    if isinstance(abi, str):
        if abi not in ABIS:
            raise SignatureError(f"{what}: unknown abi {shown(abi)}; there is {', '.join(ABIS)}")
        return ABIS[abi]
    if isinstance(abi, type):
        raise TypeError(f"{what}: abi must be an object, not a class: write {abi.__name__}(...)")
    if not callable(getattr(abi, "bind", None)):
        raise TypeError(f"{what}: abi must be a name or have a method bind, got {shown(abi)}")
    own: Abi = abi  # type: ignore[assignment]
    return own


def check_binding(what: str, binding: Binding) -> Binding:
    """Return what the `bind` of an ABI returned, which may be an object of the user's.

    Raises:
        TypeError: it lacks an attribute of `Binding`, or one is not of its type.
    """
    if missing := [name for name in BINDING if not hasattr(binding, name)]:
        raise TypeError(
            f"{what}: bind() of its ABI must return a Binding, but {shown(binding)} has no "
            f"{', '.join(missing)}"
        )
    if not isinstance(binding.arity, int):
        raise TypeError(
            f"{what}: arity of a binding must be the number of arguments, got "
            f"{shown(binding.arity)}"
        )
    for name in FUNCTIONS:
        value = getattr(binding, name)
        if not callable(value) and (value is not None or name == "explain"):
            kind = "a function" if name == "explain" else "a function or None"
            raise TypeError(f"{what}: {name} of a binding must be {kind}, got {shown(value)}")
    return binding


def recognise(info: ModuleInfo, types: Sequence[str]) -> Abi:
    """Return the ABI that a module's exports indicate, by default plain.

    Args:
        info: the module.
        types: types of arguments and results; AssemblyScript's ABI is chosen if they need it.
    """
    shown = info.export(SCYLLA_VERSION)
    if shown is not None and shown.kind == "global":
        return ABIS["scylla"]
    if info.export(SET_COUNT) is not None or info.export(RTTI) is not None:
        from .assemblyscript import is_needed

        if is_needed(types, exports_of(info)):
            return ABIS["assemblyscript"]
    return ABIS["plain"]


def exports_of(info: ModuleInfo) -> Exports:
    """Return the exports of a module for an ABI. Copies nothing: there may be tens of thousands."""
    memories = info.exported_memories
    if not memories and info.imported_memories:
        # The host gives it, so it can be used like an exported one.
        memories = (next(item.name for item in info.imports if item.kind == "memory"),)
    return Exports(
        _Named(info, "func", lambda index: info.functions[index]),
        _Named(info, "global", lambda index: info.globals[index].value_type),
        memories,
    )


@final
class _Named(Mapping[str, T]):
    """{name: type} of the exports of one kind."""

    __slots__ = ("_info", "_kind", "_type")

    def __init__(self, info: ModuleInfo, kind: str, type: Callable[[int], T]) -> None:
        self._info, self._kind, self._type = info, kind, type

    def __getitem__(self, name: str) -> T:
        found = self._info.export(name)
        if found is None or found.kind != self._kind:
            raise KeyError(name)
        return self._type(found.index)

    def __iter__(self) -> Iterator[str]:
        return (export.name for export in self._info.exports if export.kind == self._kind)

    def __len__(self) -> int:
        return sum(export.kind == self._kind for export in self._info.exports)
