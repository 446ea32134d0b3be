"""Trying again what the system refused memory, after evicting idle instances of the cache.

Rules:

1. Each attempt that is refused evicts instances that reserve twice as much as the one before; so a
   few attempts evict all that is idle.
2. Once nothing is idle, the attempt is not repeated: `CodeMemoryError` says what to change.
3. A refused attempt has left nothing behind: that is up to what is tried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, TypeVarTuple, Unpack, final

from .._core.policy.records import Need
from .._engine.base import NoMemoryError

Args = TypeVarTuple("Args")
T = TypeVar("T")

Reserved = tuple[int, int]
"""Bytes of addresses, and number of mappings."""


class Evict(Protocol):
    """Evicts idle instances, as the system refused memory: see `Pool.evict_for`."""

    def __call__(self, need: Need, reserved: Reserved, error: Exception, attempt: int) -> None:
        """Evict idle instances, or raise if none is left."""


@final
class Relief:
    """Tries what needs memory of the system until it succeeds, or nothing is left to evict."""

    __slots__ = ("evict",)

    def __init__(self, evict: Evict) -> None:
        self.evict: Evict = evict

    def run(
        self,
        need: Need,
        reserved: Reserved,
        make: Callable[[Unpack[Args]], T],
        *args: *Args,
    ) -> T:
        """Return the result of ``make(*args)``.

        Args:
            need: whose need it is.
            reserved: bytes of addresses, and mappings, that `make` reserves.
            make: what is tried; it raises `NoMemoryError` when the system refuses.
            *args: arguments of `make`.

        Raises:
            CodeMemoryError: the system still has no memory, and no idle instance is left to evict.
            trio.ClosedResourceError: the cache is closed.
        """
        attempt = 0
        while True:
            try:
                return make(*args)
            except NoMemoryError as error:
                self.evict(need, reserved, error, attempt)
            attempt += 1

    async def run_async(
        self,
        need: Need,
        reserved: Reserved,
        make: Callable[[Unpack[Args]], Awaitable[T]],
        *args: *Args,
        attempt: int = 0,
    ) -> T:
        """Await and return the result of ``make(*args)``: see `run`.

        `attempt` is the number of attempts that the caller has made, and has evicted for.

        **Checkpoint:** as of `make`.
        **Cancellation:** as of `make`.
        """
        while True:
            try:
                return await make(*args)
            except NoMemoryError as error:
                self.evict(need, reserved, error, attempt)
            attempt += 1
