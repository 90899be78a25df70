"""Where a disk's bytes lie in the image file that a running QEMU has open. Looks only; believes nothing for long.

QEMU keeps what it changes of a qcow2 image's tables in memory and writes it later. So an answer is right for clusters
that have not been written to since QEMU last flushed, and only for those: who reads by it has to find out which these
are (`image_reads.py`). Tables are changed in place, except where a snapshot shares them: then nothing is answered.

    L1 |..|##|..|      one entry for each table; "copied": nobody shares it
          |
    L2    +-> |..|##|##|..|    one entry for each cluster: place in the file, or compressed, zero, of the backing file
"""

import os
import struct
import sys
from array import array
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from strongroom.sources.qcow2_header import CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, MAGIC

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQ")  # up to the incompatible features, which version 2 has not
_HEADER_BYTES_V2 = 72
_UNDERSTOOD = 0b01001  # dirty, compression type: of no importance to what lies in the clear
_COPIED, _COMPRESSED, _ZERO = 1 << 63, 1 << 62, 1
_PLACE = 0x00FFFFFFFFFFFE00
_L1_ENTRIES_MAX = 4 << 20  # as QEMU has it: 32 MiB


class Run(NamedTuple):
    """A range of the disk, and its place in the image file; None: it is not told."""

    offset: int
    length: int
    place: int | None


class ImageMap(Protocol):
    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """In order, covering the range; neighbours may be one. May be called by several threads. Raises OSError."""
        ...


class RawMap:
    def runs(self, offset: int, length: int) -> Iterator[Run]:
        yield Run(offset, length, offset)


class Qcow2Map:
    """Of an image without internal snapshots, extended entries, or data elsewhere."""

    def __init__(self, fd: int, cluster_bits: int, l1_offset: int, l1_entries: int) -> None:
        self._fd = fd
        self._bits = cluster_bits
        self._l1 = (l1_offset, l1_entries)
        self._last = (-1, array("Q"))  # the table that was read last, by its number

    @classmethod
    def open(cls, fd: int) -> "Qcow2Map | None":
        """None for an image that is not understood. Raises OSError."""
        found = _look(fd)
        return None if found is None else cls(fd, *found)

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        size, end = 1 << self._bits, offset + length
        entries_each = size // 8
        while offset < end:
            index, within = divmod(offset >> self._bits, entries_each)
            count = min(entries_each - within, -(-(end - (offset - offset % size)) >> self._bits))
            entries = self._entries(index)[within : within + count]
            at = 0
            while at < len(entries):
                alike = self._alike(entries, at)
                step = min(alike * size - offset % size, end - offset)
                place = _place_of(entries[at])
                yield Run(offset, step, None if place is None else place + offset % size)
                offset += step
                at += alike

    def _alike(self, entries: "array[int]", at: int) -> int:
        """How many from here on are one run. Mostly it is all of them, which one comparison shows."""
        first, size, rest = entries[at], 1 << self._bits, len(entries) - at
        if _place_of(first) is None:
            return 1
        if entries[at:] == array("Q", range(first, first + rest * size, size)):
            return rest
        return next(n for n in range(1, rest + 1) if n == rest or entries[at + n] != first + n * size)

    def _entries(self, index: int) -> "array[int]":
        last, entries = self._last
        if last != index:
            entries = self._table(index) or array("Q", bytes(1 << self._bits))
            self._last = (index, entries)
        return entries

    def _table(self, index: int) -> "array[int] | None":
        """Read between two equal looks: a table that a snapshot moved meanwhile is not believed."""
        offset, entries = self._l1
        if index >= entries:
            return None
        where = os.pread(self._fd, 8, offset + 8 * index)
        entry = int.from_bytes(where, "big")
        if len(where) != 8 or not entry & _COPIED:
            return None
        raw = os.pread(self._fd, 1 << self._bits, entry & _PLACE)
        if len(raw) != 1 << self._bits or _look(self._fd) != (self._bits, *self._l1):
            return None
        if os.pread(self._fd, 8, offset + 8 * index) != where:
            return None
        table = array("Q", raw)
        if sys.byteorder == "little":
            table.byteswap()
        return table


def _place_of(entry: int) -> int | None:
    """Of a cluster that lies in the file as it is, and is nobody else's."""
    if not entry & _COPIED or entry & (_COMPRESSED | _ZERO):
        return None
    return entry & _PLACE or None


def _look(fd: int) -> tuple[int, int, int] | None:
    """(bits of a cluster's size, place of the L1 table, its entries) of an image that is understood."""
    raw = os.pread(fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
    magic, version, _, _, bits, _, crypt, entries, offset, _, _, snapshots, _, incompatible = _HEADER.unpack(raw)
    if magic != MAGIC or version not in (2, 3) or (version == 3 and incompatible & ~_UNDERSTOOD):
        return None
    if not CLUSTER_BITS_MIN <= bits <= CLUSTER_BITS_MAX or entries > _L1_ENTRIES_MAX:
        return None
    return None if crypt or snapshots else (bits, offset, entries)
