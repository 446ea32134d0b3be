"""Writes a core dump: what a failed call left of its guest, as other tools read it.

The format is that of WebAssembly's tool conventions (Coredump.md): a module that is never
instantiated, whose custom sections name the instances and the frames of the stack. Values of locals
and of the stack are not known: wasmtime's compilers keep them in registers.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from ..frames import Frame
from .encoding import name_bytes, section, sleb, uleb, vector
from .preparation import Run
from .types import HEADER

_CUSTOM, _MEMORY, _GLOBAL, _DATA = 0, 5, 6, 11
_ZERO: Final = b"\x00"
_END: Final = b"\x0b"


@frozen(eq=False)
class DumpedMemory:
    """One linear memory."""

    pages: int
    runs: tuple[Run, ...]
    """(offset, bytes) of what in it is not zero."""


@frozen(eq=False)
class DumpedGlobal:
    """One global."""

    type: bytes
    """Its value type, encoded."""
    value: bytes
    """Constant expression of its value, with its end."""


@frozen(eq=False)
class DumpedInstance:
    """One instance of a module, with all of its memories and globals, imported ones first."""

    module: str
    """Name of the part of a graph; empty: there is one module, named like the function."""
    part: bytes = b""
    """Name of the part as frames have it, in `Frame.place`."""
    memories: tuple[DumpedMemory, ...] = ()
    globals: tuple[DumpedGlobal, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its memories that are kept."""
        return sum(len(data) for memory in self.memories for _, data in memory.runs)


def encode_dump(
    name: str, instances: tuple[DumpedInstance, ...], frames: tuple[Frame, ...]
) -> bytes:
    """Return a core dump.

    Args:
        name: name of the function that was called.
        instances: the instances of the store.
        frames: the frames of the stack, innermost first; those without a `place` are left out.
    """
    memories: list[bytes] = []
    globals: list[bytes] = []
    segments: list[bytes] = []
    told: list[bytes] = []
    for number, instance in enumerate(instances):
        own: tuple[list[bytes], list[bytes]] = [], []
        for memory in instance.memories:
            index = len(memories)
            own[0].append(uleb(index))
            memories.append(_ZERO + uleb(memory.pages))
            for at, data in memory.runs:
                where = b"\x02" + uleb(index) if index else _ZERO
                # An address is unsigned; its constant is written as signed.
                address = at - (1 << 32) if at >= 1 << 31 else at
                offset = b"\x41" + sleb(address) + _END
                segments.append(where + offset + uleb(len(data)) + data)
        for one in instance.globals:
            own[1].append(uleb(len(globals)))
            globals.append(one.type + _ZERO + one.value)
        told.append(_ZERO + uleb(number) + vector(own[0]) + vector(own[1]))
    parts = {instance.part: number for number, instance in enumerate(instances)}
    stack = [
        _ZERO + uleb(parts[part]) + uleb(function) + uleb(offset) + vector(()) + vector(())
        for part, function, offset in (one.place for one in frames if one.place is not None)
        if part in parts
    ]
    modules = [_ZERO + name_bytes(instance.module or name) for instance in instances]
    return b"".join(
        (
            HEADER,
            _custom("core", _ZERO + name_bytes(name)),
            _custom("coremodules", vector(modules)),
            _custom("coreinstances", vector(told)),
            _custom("corestack", _ZERO + name_bytes("main") + vector(stack)),
            section(_MEMORY, vector(memories)),
            section(_GLOBAL, vector(globals)),
            section(_DATA, vector(segments)),
        )
    )


def _custom(name: str, payload: bytes) -> bytes:
    return section(_CUSTOM, name_bytes(name) + payload)
