"""What failed calls left of their guests, as long as it is kept: see `CacheConfig.keep_dumps`.

The error of a call has its dump, and the book only refers to it: a dump whose error is gone takes
no place. The book lets go of the oldest ones to keep its limits, and of all when the cache closes;
then the error is still there, and its dump is not.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Final, final

from .frames import Frame

if TYPE_CHECKING:
    from .wasm.coredump import DumpedInstance

MAX_SIZE: Final = 64 * 2**20
"""Bytes of all dumps of a cache together, at most."""


@final
class Dump:
    """What one failed call left, until its book lets go of it."""

    def __init__(self, name: str, instances: tuple[DumpedInstance, ...]) -> None:
        self._name = name
        self._instances: tuple[DumpedInstance, ...] | None = instances
        self.size: int = sum(instance.size for instance in instances)

    def __reduce__(self) -> tuple[object, ...]:
        return _nothing, ()  # an error goes to other processes without it

    def drop(self) -> None:
        """Let go of it."""
        self._instances, self.size = None, 0

    def encode(self, frames: tuple[Frame, ...]) -> bytes | None:
        """Return the core dump with the frames of its error; None: it is not kept any more."""
        instances = self._instances
        if instances is None:
            return None
        from .wasm.coredump import encode_dump

        return encode_dump(self._name, instances, frames)


def _nothing() -> None:
    """Return what a pickled dump is loaded as."""


@final
class DumpBook:
    """The dumps of a cache, at most `most` of `MAX_SIZE` bytes together."""

    def __init__(self, most: int) -> None:
        self.most: int = most
        self._dumps: deque[weakref.ref[Dump]] = deque()

    def add(self, dump: Dump) -> None:
        """Keep a dump, and let go of the oldest ones beyond the limits."""
        kept = [known for one in self._dumps if (known := one()) is not None]
        self._dumps = deque(weakref.ref(one) for one in (*kept, dump))
        size = sum(one.size for one in (*kept, dump))
        while len(self._dumps) > self.most or size > MAX_SIZE:
            oldest = self._dumps.popleft()()
            if oldest is not None:
                size -= oldest.size
                oldest.drop()

    def close(self) -> None:
        """Let go of all dumps, and keep none from now on."""
        self.most = 0
        for one in self._dumps:
            if (dump := one()) is not None:
                dump.drop()
        self._dumps.clear()
