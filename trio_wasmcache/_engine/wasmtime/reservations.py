"""Compute the addresses and memory mappings that wasmtime reserves, and what the system allows.

wasmtime reserves all addresses to which a memory with 32-bit addresses could grow, and guard pages
around them, so that compiled code need not check its bounds. This takes no physical memory, but
addresses, and entries in the kernel's table of mappings; both are limited. The figures are those of
``/proc/self/maps`` for wasmtime's default configuration on a 64-bit system, which a test compares.
"""

from __future__ import annotations

import mmap
import resource
from collections.abc import Sequence
from pathlib import Path

from ..._core.config import KiB, MiB, SystemLimits
from ..._core.wasm.reader import ModuleInfo

# 4 GiB that it may grow to, and guards of 32 MiB before and after it.
MEMORY_SPACE = 4096 * MiB + 64 * MiB
# Its image (mapped from a file, where the module has data), what it may use beside that, and the
# rest with the guards, which merges with the neighbour's.
MEMORY_MAPPINGS = 3
# A driver's scratch has no image.
SCRATCH_MAPPINGS = 2
# The stack and its guard. An instance keeps its stack after its first call.
STACK_MAPPINGS = 2
# Of an image of code: what is read, what is executed, and what is read after it.
IMAGE_MAPPINGS = 3
# C's `malloc` gives blocks from this size on a mapping of their own: those of large tables.
LARGE_BLOCK = 128 * KiB
TABLE_ELEMENT_SIZE = 8
# Elements that a table of 32-bit indices can grow to.
MAX_TABLE = 2**32 - 1
# User space of x86-64, and no more than that of other 64-bit systems.
ADDRESS_SPACE = 2**47
# What is left of the system's limits for everything else in the process: a quarter.
SHARE = 3, 4
MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")


def instance_reservation(
    infos: Sequence[ModuleInfo], elements: int, stack_size: int
) -> tuple[int, int]:
    """Return what a new instance reserves: bytes of addresses, and mappings.

    Args:
        infos: of the modules that are instantiated in it.
        elements: of all tables together, at most.
        stack_size: bytes.
    """
    tables = sum(len(info.own_tables) for info in infos)
    elements = min(elements, tables * MAX_TABLE)
    # A heap for references is a memory, too. A store has one.
    memories = sum(len(info.own_memories) for info in infos) + any(one.collected for one in infos)
    space = memories * MEMORY_SPACE + stack_size + mmap.PAGESIZE
    mappings = memories * MEMORY_MAPPINGS + STACK_MAPPINGS
    if elements * TABLE_ELEMENT_SIZE >= LARGE_BLOCK:
        # Where one grows, the old block and the new one are there at the same time.
        space += 2 * elements * TABLE_ELEMENT_SIZE
        mappings += tables + 1
    return space, mappings


def read_system_limits() -> SystemLimits:
    """Return what the system leaves a cache: three quarters of each of its limits."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    space = ADDRESS_SPACE if allowed == resource.RLIM_INFINITY else min(allowed, ADDRESS_SPACE)
    try:
        mappings = int(MAX_MAP_COUNT.read_text())
    except (OSError, ValueError):  # not Linux, or hidden
        return SystemLimits(address_space=_share(space))
    return SystemLimits(address_space=_share(space), mappings=_share(mappings))


def _share(limit: int) -> int:
    part, whole = SHARE
    return limit * part // whole
