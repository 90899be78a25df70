"""Writing large runs of a file past the page cache (O_DIRECT): packs, and files that are restored.

Both fill gigabytes that nobody reads soon. In the page cache they push out what the host works with, and where
memory is full every large write first makes room: the kernel compacts memory for it, which cost up to ten times the
copy itself (docs/benchmarks/tried.md). Past the cache the bytes go from our buffer to the disk.

    run      |--head--|================ blocks ================|--tail--|      head and tail: less than a block each,
    goes to  |buffered|                 disk                    |buffered|     written as ever, in pages of their own

Only where the file system says that it can (STATX_DIOALIGN), else everything is buffered. Durable is neither before
the target's fsync or syncfs.
"""

import ctypes
import errno
import mmap
import os
import struct
import threading

from strongroom.base.units import KIB, MIB

DIRECT_BYTES_MIN = 256 * KIB  # below, waiting for the disk costs more than the page cache
# What satisfies every disk (who asks for more gets buffered writes), and never less than a page: a page that is written
# both ways at once could bring back what was there before.
BLOCK_BYTES = max(4 * KIB, mmap.PAGESIZE)
_BOUNCE_BYTES = MIB
_AT_EMPTY_PATH, _STATX_DIOALIGN, _STATX_BYTES = 0x1000, 0x2000, 256
_STATX_MASK, _STATX_ALIGNMENTS = struct.Struct("<I"), struct.Struct("<152xII")  # of memory, of offsets
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.ENOENT)  # of an open or a write: buffer it


_libc = ctypes.CDLL(None, use_errno=True)


def direct_alignment(fd: int) -> int:
    """What offsets, lengths and addresses of direct writes must be multiples of; 0 where there are no direct writes.

    0 too where the kernel (before 6.1), the C library or the file system does not tell.
    """
    statx = getattr(_libc, "statx", None)
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, found) != 0:
        return 0
    memory, offsets = _STATX_ALIGNMENTS.unpack_from(found)
    known = _STATX_MASK.unpack_from(found)[0] & _STATX_DIOALIGN and memory and offsets
    return max(memory, offsets) if known else 0


def pwrite_full(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


class _Bounce(threading.local):
    """An aligned buffer of each thread, for data that lies otherwise than it is to be written."""

    def __init__(self) -> None:
        self._view: memoryview | None = None

    def view(self) -> memoryview:
        if self._view is None:
            self._view = memoryview(mmap.mmap(-1, _BOUNCE_BYTES))
        return self._view


_bounce = _Bounce()


class DirectWriter:
    """Writes to one open regular file, whose descriptor stays the caller's. Several threads may write.

    `size` is what the file will have: it is set before the first direct write, so that none has to extend it, which
    would make all others wait. None: the caller sees to that.
    """

    def __init__(self, fd: int, size: int | None) -> None:
        self._fd = fd
        self._size = size
        self._lock = threading.Lock()  # of the two below
        self._direct = -1
        self._asked = False

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises OSError."""
        if len(data) < DIRECT_BYTES_MIN:
            pwrite_full(self._fd, data, offset)
            return
        direct = self._descriptor()
        head = -offset % BLOCK_BYTES
        end = head + (len(data) - head) // BLOCK_BYTES * BLOCK_BYTES
        if direct < 0 or not _write_blocks(direct, data[head:end], offset + head):
            pwrite_full(self._fd, data, offset)
            return
        if head:
            pwrite_full(self._fd, data[:head], offset)
        if end < len(data):
            pwrite_full(self._fd, data[end:], offset + end)

    def close(self) -> None:
        """Idempotent; the caller's descriptor stays open."""
        direct, self._direct = self._direct, -1
        if direct >= 0:
            os.close(direct)

    def _descriptor(self) -> int:
        """A second descriptor of the same file, or -1 when its file system has no direct writes."""
        with self._lock:
            if not self._asked:
                self._asked = True
                if 0 < direct_alignment(self._fd) <= BLOCK_BYTES:
                    self._direct = self._open()
            return self._direct

    def _open(self) -> int:
        try:
            direct = os.open(b"/proc/self/fd/%d" % self._fd, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as err:
            if err.errno in _REFUSED:
                return -1
            raise
        if self._size is not None:
            os.ftruncate(self._fd, self._size)
        return direct


def _write_blocks(direct: int, data: memoryview, offset: int) -> bool:
    """Write whole blocks; False when they are refused, and then any part of them may be written."""
    try:
        if _address(data) % BLOCK_BYTES == 0:
            pwrite_full(direct, data, offset)
            return True
        bounce = _bounce.view()
        for at in range(0, len(data), _BOUNCE_BYTES):
            piece = data[at : at + _BOUNCE_BYTES]
            bounce[: len(piece)] = piece
            pwrite_full(direct, bounce[: len(piece)], offset + at)
        return True
    except OSError as err:
        if err.errno in _REFUSED:
            return False
        raise


def _address(data: memoryview) -> int:
    """Where a buffer lies in memory; that of one which cannot be written counts as odd."""
    return 1 if data.readonly else ctypes.addressof(ctypes.c_char.from_buffer(data))
