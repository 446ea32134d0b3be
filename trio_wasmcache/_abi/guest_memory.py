"""Memory for arguments in a guest, and checked reads of a guest's results.

Memory is obtained in one of two ways: pages that the host grows for itself (`grown_memory`), for
modules without an allocator, or the guest's own allocator, which the ABIs call.
"""

from __future__ import annotations

from .._core.config import WASM_PAGE
from .._core.errors import AbiError, MemoryLimitError, ResultTooLargeError
from .base import Guest, Memory

GROWN = "grown memory"


# Where grown memory begins in a memory without pages. Address 0 is a null pointer to a guest, and
# is treated as one here. A multiple of the alignment of any ABI.
FIRST_ADDRESS = 16


def memory_of(guest: Guest) -> Memory:
    """Return the guest's memory; `bind` of the ABI has refused modules without one."""
    memory = guest.memory
    assert memory is not None
    return memory


def grown_memory(guest: Guest, need: int) -> int:
    """Return the address of `need` bytes owned by the host: grown once, and reused by each call.

    If the guest has not grown its memory since, more pages are added at the end of the host's.
    Otherwise the new ones are at least twice as many, so that the pages left behind are never more
    than those in use.
    """
    memory = memory_of(guest)
    at, size = guest.state.get(GROWN, (0, 0))
    if need <= size:
        return int(at)
    null = 0 if memory.size else FIRST_ADDRESS
    missing = _pages(need + null - size)
    begin = memory.grow(missing)
    if begin == at + size and size:
        size += missing * WASM_PAGE
    else:
        wanted = max(_pages(need + null), 2 * _pages(size))
        try:
            memory.grow(wanted - missing)
        except MemoryLimitError:
            wanted = _pages(need + null)
            memory.grow(wanted - missing)
        at, size = begin + null, wanted * WASM_PAGE - null
    guest.state[GROWN] = at, size
    return int(at)


def read(got: str, memory: Memory, at: int, size: int) -> bytes:
    """Return the bytes of a guest's result.

    Raises:
        AbiError: they are not inside its memory, or the address is 0, a null pointer.
    """
    data = read_anywhere(got, memory, at, size)
    if size:
        check_address(f"{got} {size} bytes at", at)
    return data


def read_result(
    got: str, memory: Memory, at: int, size: int, *, anywhere: bool = False
) -> tuple[bytes, ResultTooLargeError | None]:
    """Return what `read` does, and None; or no bytes, and the error if the result is too large.

    Then the caller can have the guest free it before raising the error. With `anywhere`, the bytes
    may begin at address 0.
    """
    try:
        return (read_anywhere if anywhere else read)(got, memory, at, size), None
    except ResultTooLargeError as error:
        return b"", error


def check_address(got: str, at: int) -> None:
    """Raise `AbiError` for the address 0, which is a null pointer to guests."""
    if at == 0:
        raise AbiError(f"{got} address 0, which is a null pointer")


def read_anywhere(got: str, memory: Memory, at: int, size: int) -> bytes:
    """Return bytes of a guest's memory, at any address; raise `AbiError` if they are outside."""
    if at < 0 or size < 0 or at + size > memory.size:
        raise AbiError(
            f"{got} {size} bytes at address {at}, which are not inside its memory of "
            f"{memory.size} bytes"
        )
    return memory.read(at, size)


def check_allocated(what: str, export: str, memory: Memory, at: int, size: int) -> None:
    """Check what the guest's allocator returned.

    Raises:
        MemoryLimitError: it returned 0: it has no memory left.
        AbiError: the memory it returned is not inside the guest's.
    """
    if at == 0:
        raise MemoryLimitError(f"{what}: {export}({size}) of the module returned 0: no memory")
    if at + size > memory.size:
        raise AbiError(
            f"{what}: {export}({size}) returned the address {at}: that many bytes there exceed its "
            f"memory of {memory.size} bytes"
        )


def _pages(size: int) -> int:
    return -(-size // WASM_PAGE)
