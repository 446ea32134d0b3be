"""What a host function and a lease's owner see of the guest: its memory, and the lease itself."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, final

from ._abi.plain import shown
from ._runner import context_of_call

if TYPE_CHECKING:
    from ._lease import Lease


@final
class LeaseMemory:
    """The linear memory of the instance that a lease holds. See `Lease.memory`."""

    __slots__ = ("_lease",)

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    @property
    def size(self) -> int:
        """Bytes; always whole pages of 64 KiB."""
        return self._lease._guest_memory().size

    def read(self, at: int, n: int) -> bytes:
        """A copy of the `n` bytes from address `at`."""
        at, n = _whole("at", at), _whole("n", n)
        return self._lease._guest_memory().read(at, n)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at address `at`."""
        at = _whole("at", at)
        try:
            view = memoryview(data)  # before the look at the lease, as it may run code of its own
        except TypeError:
            raise TypeError(f"data must be bytes or a buffer, got {shown(data)}") from None
        with view:
            self._lease._guest_memory().write(at, view)


def _whole(what: str, value: object) -> int:
    """A whole number, NumPy's included; anything else would get as far as C."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be an int, got {shown(value)}") from None


def current_lease() -> Lease:
    """Inside a host function: the lease whose guest called it.

    Raises:
        RuntimeError: no host function is running in this context.
    """
    lease: Lease | None = context_of_call.get(None)
    if lease is None:
        raise RuntimeError("current_lease() has a meaning only inside a host function")
    return lease
