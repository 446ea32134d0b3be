"""Room for arguments in a guest's memory, and reading what a guest says is there.

Room is made in one of two ways: pages that the host grows for itself (`grown_room`), for modules
that have no allocator to ask, or the guest's own allocator, which the ABIs call.
"""

from __future__ import annotations

from .._core.config import WASM_PAGE
from .._core.errors import AbiError, MemoryLimitError, ResultTooLargeError
from .base import Guest, Memory

ROOM = "grown room"


# Where grown room begins in a memory that has no page yet. Address 0 is a null pointer to a guest,
# and so it is to us. A multiple of what any ABI aligns to.
FIRST_ADDRESS = 16


def memory_of(guest: Guest) -> Memory:
    """The guest's memory; an ABI that needs it has refused modules without one."""
    memory = guest.memory
    assert memory is not None
    return memory


def grown_room(guest: Guest, need: int) -> int:
    """The address of `need` bytes that are the host's: grown once, and used again by each call.

    If the guest has not grown its memory since, more pages are added where ours end. Otherwise new
    room is at least twice the old, so that what is left behind is never more than what is used.
    """
    memory = memory_of(guest)
    at, size = guest.state.get(ROOM, (0, 0))
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
    guest.state[ROOM] = at, size
    return int(at)


def read(got: str, memory: Memory, at: int, size: int) -> bytes:
    """Return the bytes that a guest says are its result.

    Raises:
        AbiError: they are not inside its memory, or the address is 0, a null pointer.
    """
    data = read_anywhere(got, memory, at, size)
    if size:
        check_address(f"{got} {size} bytes at", at)
    return data


def read_result(
    got: str, memory: Memory, at: int, size: int
) -> tuple[bytes, ResultTooLargeError | None]:
    """Return what `read` does, and None; or nothing, and why the result is refused as too large.

    Then the guest can be told to free it before the error is raised.
    """
    try:
        return read(got, memory, at, size), None
    except ResultTooLargeError as error:
        return b"", error


def check_address(got: str, at: int) -> None:
    """Raise `AbiError` for the address 0, which guests have for "nothing"."""
    if at == 0:
        raise AbiError(f"{got} address 0, which is a null pointer")


def read_anywhere(got: str, memory: Memory, at: int, size: int) -> bytes:
    """Return bytes of a guest's memory, at address 0 too; `AbiError` if they are not inside it."""
    if at < 0 or size < 0 or at + size > memory.size:
        raise AbiError(
            f"{got} {size} bytes at address {at}, which are not inside its memory of "
            f"{memory.size} bytes"
        )
    return memory.read(at, size)


def check_allocated(what: str, export: str, memory: Memory, at: int, size: int) -> None:
    """Whether the guest's allocator may be believed.

    Raises:
        MemoryLimitError: it says that there is no room.
        AbiError: it gave room that does not lie in its memory.
    """
    if at == 0:
        raise MemoryLimitError(f"{what}: {export}({size}) of the module found no room")
    if at + size > memory.size:
        raise AbiError(
            f"{what}: {export}({size}) returned the address {at}, which has no room for it in a "
            f"memory of {memory.size} bytes"
        )


def _pages(size: int) -> int:
    return -(-size // WASM_PAGE)
