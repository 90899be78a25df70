"""Scratch files of points: what the guest overwrites is copied there before (copy-before-write), and leaves a trace.

A trace is an allocated range of the file. Data is written; zeros are allocated without being written, where the file
system can do that: only its map of extents (FIEMAP) shows them, SEEK_DATA does not. Whether both leave their traces
hangs on file system and QEMU, so it is tried with each point, by the same nodes on a file of their own.

Traces are needed because QEMU before 8.0 is wrong about what it copied: asked for a range that begins with copied
clusters and goes beyond them it looks at the disk instead (hbitmap_status(), tried on 7.2.22). So its answer may say
zeros, or hold bytes, that the guest wrote after the point. Asked for one cluster it is right.
"""

import contextlib
import errno
import fcntl
import os
import struct
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from strongroom.base.errors import SourceError
from strongroom.base.units import KIB, human_bytes
from strongroom.sources.machines.base import PREFIX
from strongroom.sources.machines.qemu_leftovers import CBW, SCRATCH
from strongroom.sources.machines.qmp import QmpClient, undoing

CLUSTER_BYTES = 64 * KIB  # what is copied at once
RIGHT_SINCE = (8, 0, 0)
_PROBE = "probe"  # instead of a disk's number
_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQIIII")  # start, length, flags, extents found, room for extents, nothing
_EXTENT = struct.Struct("=QQQQQIIII")  # place in the file, on the disk, length, nothing, flags, nothing
_EXTENTS_AT_ONCE = 64


def open_scratch(folder: str, size: int) -> BinaryIO:
    """A sparse file without a name."""
    try:
        file = tempfile.TemporaryFile(dir=folder, prefix=PREFIX)  # noqa: SIM115 -- the point closes it
        file.truncate(size)
    except OSError as err:
        raise SourceError(
            reason=f"No scratch file of {human_bytes(size)} could be made in {folder}: {os.strerror(err.errno or 0)}. "
            "Name another folder (scratch= in the address of the machine).",
            detail=repr(err),
        ) from err
    return file


def add_scratch(monitor: QmpClient, name: str, fd: int) -> None:
    """A node on an open file. The set that hands it over goes at once: the node has its own descriptor by then."""
    number = monitor.execute("add-fd", fds=[fd])["fdset-id"]
    try:
        file = {"driver": "file", "filename": f"/dev/fdset/{number}", "node-name": f"{name}.file"}
        monitor.execute("blockdev-add", {"driver": "raw", "node-name": name, "file": file})
    finally:
        monitor.execute("remove-fd", {"fdset-id": number})


class Scratch:
    """Of one disk of a point. `fd` is the caller's. shows_copies: traces can be told, of data and of zeros."""

    def __init__(self, fd: int, *, shows_copies: bool, qemu: tuple[int, ...]) -> None:
        self.shows_copies = shows_copies
        self._fd = fd
        self._trusted = qemu >= RIGHT_SINCE

    def copied(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Ranges of [begin, end) of which QEMU may be wrong, unless it is asked for each cluster by itself."""
        if self.shows_copies:
            yield from _traces(self._fd, begin, end)
        elif not self._trusted:
            yield begin, end


def shows_copies(monitor: QmpClient, folder: str) -> bool:
    """Whether this QEMU's copies of data and of zeros can be seen in a scratch file in this folder."""
    return all(_leaves_trace(monitor, folder, zeros=zeros) for zeros in (False, True))


def _traces(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    try:
        yield from _extents(fd, begin, end)
        yield from _data(fd, begin, end)
    except OSError:
        yield begin, end


def _leaves_trace(monitor: QmpClient, folder: str, *, zeros: bool) -> bool:
    with contextlib.ExitStack() as undo:
        file = undo.enter_context(open_scratch(folder, 2 * CLUSTER_BYTES))
        scratch, filter_ = SCRATCH + _PROBE, CBW + _PROBE
        add_scratch(monitor, scratch, file.fileno())
        undo.callback(undoing, monitor.execute, "blockdev-del", {"node-name": scratch})
        disk = {"driver": "null-co", "size": 2 * CLUSTER_BYTES, "read-zeroes": zeros}
        cbw = {"driver": "copy-before-write", "node-name": filter_, "file": disk, "target": scratch}
        monitor.execute("blockdev-add", cbw)
        undo.callback(undoing, monitor.execute, "blockdev-del", {"node-name": filter_})
        if any(_traces(file.fileno(), 0, 2 * CLUSTER_BYTES)):
            return False  # it says so of everything
        write = f'qemu-io {filter_} "write -q 0 {CLUSTER_BYTES}"'
        monitor.execute("human-monitor-command", {"command-line": write})
        return (0, CLUSTER_BYTES) in _traces(file.fileno(), 0, 2 * CLUSTER_BYTES)


def _extents(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """What is allocated, written or not, and what waits to be written. Raises OSError."""
    while begin < end:
        request = bytearray(_HEAD.size + _EXTENTS_AT_ONCE * _EXTENT.size)
        _HEAD.pack_into(request, 0, begin, end - begin, 0, 0, _EXTENTS_AT_ONCE, 0)
        fcntl.ioctl(fd, _FIEMAP, request)
        found = _HEAD.unpack_from(request)[3]
        for at in range(found):
            place, _, length, *_ = _EXTENT.unpack_from(request, _HEAD.size + at * _EXTENT.size)
            yield max(place, begin), min(place + length, end)
            begin = place + length
        if found < _EXTENTS_AT_ONCE:
            return


def _data(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """What holds data. Raises OSError."""
    while begin < end:
        try:
            start = os.lseek(fd, begin, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # no data from here on
                return
            raise
        if start >= end:
            return
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        yield start, stop
        begin = stop
