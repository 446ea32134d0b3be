"""Count the bytes of memory mappings that are in physical memory, page by page.

The kernel lists in ``/proc/self/pagemap`` which pages of the process are present. The engine knows
the addresses of memories and code. wasmtime does not tell those of stacks, so these are found by
their size, and by the guard page before each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

PAGEMAP = Path("/proc/self/pagemap")
MAPS = Path("/proc/self/maps")
# An entry of the page map has 64 bits. The highest says that the page is present, in the last byte
# of this little-endian word; the rest tells where, and is hidden from most processes.
ENTRY = 8
PRESENT = bytes(byte >> 7 for byte in range(256))
# Pages asked for at once: 64 KiB of answers.
CHUNK = 8192
LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ 0 *\n")

Range = tuple[int, int]
"""(address, bytes)."""


def count_resident(groups: Sequence[Iterable[Range]]) -> list[int]:
    """Return the bytes in memory of each group of address ranges.

    Raises:
        NotImplementedError: this system does not tell.
    """
    try:
        opened = os.open(PAGEMAP, os.O_RDONLY)
    except OSError as error:
        raise NotImplementedError(f"this system does not tell what is resident: {error}") from None
    try:
        return [sum(_resident(opened, *one) for one in ranges) for ranges in groups]
    finally:
        os.close(opened)


def _resident(pagemap: int, address: int, size: int) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    first, end = address // page, -(-(address + size) // page)
    found = 0
    while first < end:
        data = os.pread(pagemap, min(CHUNK, end - first) * ENTRY, first * ENTRY)
        if not data:
            break  # beyond all that can be mapped
        found += data[ENTRY - 1 :: ENTRY].translate(PRESENT).count(1)
        first += len(data) // ENTRY
    return found * page


def find_stacks(stack_size: int) -> Iterator[Range]:
    """Find the stacks of that size, of all engines in this process: each has a guard before it.

    One that the kernel has merged with what lies above it can't be told from other memory.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    wanted = -(-stack_size // page) * page
    guarded = 0
    for match in LINE.finditer(MAPS.read_bytes()):
        start, end, rights = int(match[1], 16), int(match[2], 16), match[3]
        if rights == b"rw-p" and end - start == wanted and start == guarded:
            yield start, wanted
        guarded = end if rights == b"---p" else 0
