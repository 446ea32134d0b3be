"""What a host function and a lease's owner see of the guest: its memory, and the lease itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

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
        return self._lease._guest_memory().read(at, n)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at address `at`."""
        self._lease._guest_memory().write(at, data)


def current_lease() -> Lease:
    """Inside a host function: the lease whose guest called it.

    Raises:
        RuntimeError: no host function is running in this context.
    """
    lease: Lease | None = context_of_call.get(None)
    if lease is None:
        raise RuntimeError("current_lease() has a meaning only inside a host function")
    return lease
