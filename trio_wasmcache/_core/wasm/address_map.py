"""Finds the place in a module's bytes of an address in its machine code, in wasmtime's artifacts.

An artifact is an ELF file, of which a section says where instructions come from. Its layout is
nobody's promise, so whatever does not make sense means that the place is not known. There are two:

- up to wasmtime 48, a count, all addresses, and all places (32 bits each);
- since then, blocks of 128 entries, with an index (`compile/address_map.rs` in wasmtime).

An entry is valid from its address up to that of the next.
"""

from __future__ import annotations

import bisect
import struct
from typing import Final, final

SECTION: Final = b".wasmtime.addrmap"
NOWHERE: Final = 0xFFFF_FFFF
BLOCK: Final = 128
"""Entries of a block."""
# Of ELF with 64 bits, little endian: what its header and those of its sections say.
_MAGIC: Final = b"\x7fELF\x02\x01"
_HEADER: Final = struct.Struct("<40xQ10xHHH")  # where sections are, their size, number, names
_SECTION: Final = struct.Struct("<I20xQQ")  # name, where it is, size
_MOST_SECTIONS: Final = 100


@final
class AddressMap:
    """The map of one artifact.

    Args:
        artifact: the serialized module.
    """

    def __init__(self, artifact: bytes) -> None:
        self._data = data = _find_section(artifact)
        self._count = self._blocks = 0
        if len(data) < 8:
            return
        count, blocks = struct.unpack_from("<II", data)
        # The first block begins at 0. In the other layout, a third address would be there, which is
        # no smaller than the first one.
        if (
            blocks == -(-count // BLOCK) > 0
            and len(data) >= 8 + 8 * blocks
            and not self._number(12)
        ):
            self._count, self._blocks = count, blocks
        elif len(data) == 4 + 8 * count:
            self._count = count

    def find(self, address: int, begin: int = 0, end: int = 0) -> int | None:
        """Return the place of an address, from the beginning of the code; None: it is not known.

        Code that the compiler has added, as it does around calls, has no place: then it is that of
        the code before, or else, of the code behind.

        Args:
            address: where the instruction is.
            begin: where its function begins.
            end: where its function ends; 0: it is not known.
        """
        if not self._count:
            return None
        try:
            find = self._find_in_blocks if self._blocks else self._find_flat
            place = find(address, begin, end)
        except (IndexError, struct.error):
            return None
        return None if place == NOWHERE else place

    def _number(self, at: int) -> int:
        number: int = struct.unpack_from("<I", self._data, at)[0]
        return number

    def _find_flat(self, address: int, begin: int, end: int) -> int:
        places = 4 + 4 * self._count
        at = bisect.bisect_right(
            range(self._count), address, key=lambda it: self._number(4 + 4 * it)
        )
        place, behind = NOWHERE, at
        while at and place == NOWHERE:
            at -= 1
            if self._number(4 + 4 * at) < begin:
                break
            place = self._number(places + 4 * at)
        while place == NOWHERE and behind < self._count and self._number(4 + 4 * behind) < end:
            place = self._number(places + 4 * behind)
            behind += 1
        return place

    def _find_in_blocks(self, address: int, begin: int, end: int) -> int:
        block = bisect.bisect_right(
            range(self._blocks), address, key=lambda it: self._number(8 + 8 * it)
        )
        if block == 0:
            return NOWHERE
        at = 8 + 8 * (block - 1)
        entry, at = self._number(at), 8 + 8 * self._blocks + self._number(at + 4)
        place: int | None = None
        found = NOWHERE
        for _ in range(min(BLOCK, self._count - BLOCK * (block - 1))):
            token, at = self._leb(at)
            entry += token >> 1
            if entry > address and (found != NOWHERE or entry >= end):
                break
            if token & 1:
                continue
            if place is None:
                place, at = self._leb(at)
            else:
                change, at = self._leb(at, signed=True)
                place += change
            if entry >= begin:
                found = place
        return found

    def _leb(self, at: int, *, signed: bool = False) -> tuple[int, int]:
        """Return a number, and where it ends."""
        number = shift = 0
        while True:
            byte = self._data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if signed and byte & 0x40:
            number -= 1 << shift
        return number, at


def _find_section(artifact: bytes) -> bytes:
    """Return the section of addresses; empty if there is none."""
    if artifact[: len(_MAGIC)] != _MAGIC:
        return b""
    try:
        table, size, count, names = _HEADER.unpack_from(artifact)
        if count > _MOST_SECTIONS:
            return b""
        sections = [_SECTION.unpack_from(artifact, table + size * it) for it in range(count)]
        _, texts, _ = sections[names]
        for name, at, length in sections:
            if artifact.startswith(SECTION + b"\0", texts + name):
                return artifact[at : at + length]
    except (struct.error, IndexError):
        pass
    return b""
