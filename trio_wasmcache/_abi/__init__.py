"""How Python values cross into a guest and back: what ABIs there are, and which one is meant.

`protocol` says what an ABI is; `plain` is the default, `scylla` and `buffer` go through memory.
"""

from __future__ import annotations

from .._core.errors import SignatureError
from .._core.wasm import ModuleInfo
from .buffer import BufferAbi
from .plain import Plain
from .protocol import Abi, Exports
from .scylla import VERSION_GLOBAL, ScyllaAbi

# {name: ABI}
ABIS: dict[str, Abi] = {"plain": Plain(), "scylla": ScyllaAbi(), "buffer": BufferAbi()}


def check_abi(what: str, abi: object) -> Abi | None:
    """The ABI that is asked for, by name or as one of the user's own; None: let the module tell.

    Raises:
        SignatureError: there is none of that name.
        TypeError: it is neither a name nor an ABI.
    """
    if abi is None:
        return None
    if isinstance(abi, str):
        if abi not in ABIS:
            raise SignatureError(f"{what}: unknown abi {abi!r}; there is {', '.join(ABIS)}")
        return ABIS[abi]
    if not callable(getattr(abi, "bind", None)):
        raise TypeError(f"{what}: abi must be a name or have a method bind, got {abi!r:.100}")
    own: Abi = abi  # type: ignore[assignment]
    return own


def recognise(info: ModuleInfo) -> Abi:
    """The ABI that a module shows by what it exports: plain without another sign."""
    scylla = any(e.kind == "global" and e.name == VERSION_GLOBAL for e in info.exports)
    return ABIS["scylla" if scylla else "plain"]


def exports_of(info: ModuleInfo) -> Exports:
    """What an ABI sees of a module."""
    return Exports(
        {e.name: info.functions[e.index] for e in info.exports if e.kind == "func"},
        {e.name: info.globals[e.index].value_type for e in info.exports if e.kind == "global"},
        tuple(e.name for e in info.exports if e.kind == "memory"),
    )
