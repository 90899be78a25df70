"""Where the blocks of a file lie, and from that: which ranges of two files that share blocks differ.

A file that was made as a reflink copy pins the blocks it shares. So, while the copy is there, a range of the live file
that still lies on the same blocks has the same content, and every write moved its range to other blocks.

    old copy  |--A--|--B--|--C--|..hole..|
    new copy  |--A--|--X--|--C--|..hole..|     B's range changed, nothing else

Only plain blocks and holes are compared. Compressed, inline and delayed ones do not say where their bytes lie: such a
range counts as changed. Blocks may be moved by the file system itself (a balance): the old map is read before and after
the new one, and a difference means that nothing is known.
"""

import fcntl
import os
import struct
from collections.abc import Callable, Iterator

from blake3 import blake3

from strongroom.sources.snapshots.base import RANGES_MAX, Ranges

_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP
_HEAD = struct.Struct("=QQIIII")  # start, length, flags, mapped, room for, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_BATCH = 1024  # extents of one call: 56 KB
_SYNC = 1
_LAST, _UNWRITTEN, _SHARED, _MERGED = 0x1, 0x800, 0x2000, 0x1000
_PLAIN = _LAST | _UNWRITTEN | _SHARED | _MERGED  # flags of extents whose place says all about their content
_HOLE = -1 << 70  # no difference of two places in a file system

Span = tuple[int, int, int | None]  # start, end, physical minus logical place; _HOLE reads as zeros; None: cannot tell


def changed_ranges(old_fd: int, new_fd: int, size: int) -> Ranges | None:
    """Ranges of [0, size) that may differ, sorted and joined; None when it is not known. Raises OSError.

    Neither file may be written to meanwhile. OSError with EOPNOTSUPP or ENOTTY: the file system tells no places.
    """
    first, again = blake3(), blake3()
    changed: list[tuple[int, int]] = []
    for start, end, same in _merged(_spans(old_fd, size, first.update), _spans(new_fd, size, None)):
        if same:
            continue
        if changed and sum(changed[-1]) == start:
            changed[-1] = (changed[-1][0], end - changed[-1][0])
        else:
            changed.append((start, end - start))
        if len(changed) > RANGES_MAX:
            return None
    for _ in _spans(old_fd, size, again.update):
        pass
    return changed if first.digest() == again.digest() else None


def _merged(old: Iterator[Span], new: Iterator[Span]) -> Iterator[tuple[int, int, bool]]:
    """Both cover the same range without gaps; (start, end, equal) of the pieces that they cut each other into."""
    old_end = new_end = at = 0
    old_place: int | None = None
    new_place: int | None = None
    while True:
        if at == old_end:
            item = next(old, None)
            if item is None:
                return
            _, old_end, old_place = item
        if at == new_end:
            item = next(new, None)
            if item is None:
                return
            _, new_end, new_place = item
        end = min(old_end, new_end)
        yield at, end, old_place is not None and old_place == new_place
        at = end


def _spans(fd: int, size: int, note: Callable[[bytes], object] | None) -> Iterator[Span]:
    """All of [0, size), without gaps. `note` gets what was found, for a comparison of two passes."""
    at = 0
    for logical, physical, length, flags in _extents(fd, size):
        start, end = max(logical, at), min(logical + length, size)
        if note is not None:
            note(_EXTENT.pack(logical, physical, length, flags & ~(_SHARED | _LAST)))
        if end <= start:
            continue
        if start > at:
            yield at, start, _HOLE
        if flags & _UNWRITTEN:
            yield start, end, _HOLE
        else:
            yield start, end, None if flags & ~_PLAIN else physical - logical
        at = end
    if at < size:
        yield at, size, _HOLE


def _extents(fd: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    at = 0
    while at < size:
        raw = bytearray(_HEAD.size + _BATCH * _EXTENT.size)
        _HEAD.pack_into(raw, 0, at, size - at, 0 if at else _SYNC, 0, _BATCH, 0)
        fcntl.ioctl(fd, _FIEMAP, raw)
        count = _HEAD.unpack_from(raw)[3]
        if not count:
            return
        for index in range(count):
            found = _EXTENT.unpack_from(raw, _HEAD.size + index * _EXTENT.size)
            yield found
        logical, _, length, flags = found
        if flags & _LAST:
            return
        at = max(at + 1, logical + length)


def can_map(fd: int) -> bool:
    """Whether the file system tells where the blocks of a file lie."""
    raw = bytearray(_HEAD.size)
    _HEAD.pack_into(raw, 0, 0, os.fstat(fd).st_size or 1, 0, 0, 0, 0)
    try:
        fcntl.ioctl(fd, _FIEMAP, raw)
    except OSError:
        return False
    return True
