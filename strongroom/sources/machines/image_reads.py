"""The bytes of a point's disk: from QEMU, or out of the image file itself, where they provably still lie there.

The guest goes on writing to that file. But before it overwrites anything the filter (copy-before-write) copies what the
point holds to the scratch file, and only then passes the write on. So a range is read first, and looked at afterwards:

    1. read the range of the image       nothing is known yet
    2. look for copies in the scratch    what was copied, the image may hold no more: read again, from QEMU, a cluster
                                         at a time (`scratch.py` says why)
    3. read a sample from QEMU           refused when the point is broken (scratch full, time-out), from when on nothing
                                         is copied any more; and what QEMU says has to equal what was read

Whatever had reached the image when 1 ended was copied before, so 2 sees it, or 3 hears of it; what is copied later came
too late to be read by 1. That the file is the one QEMU reads is shown by its inode, which QEMU must have open, and by
the samples. Reads from QEMU go through 2 as well.
"""

import contextlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from strongroom.base.errors import SourceError
from strongroom.base.streams import Extent, ExtentKind
from strongroom.base.units import KIB
from strongroom.sources.machines.image_map import ImageMap, Qcow2Map, RawMap
from strongroom.sources.machines.nbd import NbdClient, Reading
from strongroom.sources.machines.scratch import CLUSTER_BYTES, Scratch

SAMPLE_BYTES = 16 * KIB  # of each read


@dataclass(frozen=True, kw_only=True)
class OpenedImage:
    """fd: for what its guest stored. close: to be called in the end."""

    fd: int
    image: ImageMap
    close: Callable[[], None]


class PointReader:
    """Of one disk of a point, for several threads. image_bytes: read of the file. again_bytes: read again, a cluster at
    a time."""

    def __init__(self, client: NbdClient, scratch: Scratch, opened: OpenedImage | None) -> None:
        self.image_bytes = 0
        self.again_bytes = 0
        self._client = client
        self._scratch = scratch
        self._opened = opened
        self._chance = random.Random()  # noqa: S311 -- where samples lie need not be secret

    def extents(self) -> Iterator[Extent]:
        """As the client's; what QEMU may be wrong about is no ZERO, but read."""
        for extent in self._client.extents():
            offset, end, kind = extent.offset, extent.offset + extent.length, extent.kind
            if kind == ExtentKind.ZERO:
                doubted = Ranges(offset, end)
                for copied in self._scratch.copied(offset, end):
                    doubted.add(*copied)
                for begin, stop in doubted.merged():
                    if begin > offset:
                        yield Extent(offset, begin - offset, ExtentKind.ZERO)
                    yield Extent(begin, stop - begin, ExtentKind.DATA)
                    offset = stop
            if offset < end:
                yield Extent(offset, end - offset, kind)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Of QEMU. Raises SourceError, as all of these."""
        self.finish_read(self.begin_read(offset, buffer), offset, buffer)

    def begin_read(self, offset: int, buffer: memoryview) -> Reading:
        return self._client.begin_read(offset, buffer)

    def finish_read(self, reading: Reading, offset: int, buffer: memoryview) -> None:
        self._client.finish_read(reading)
        self._look_again(offset, buffer, Ranges(offset, offset + len(buffer)))

    def read_image(self, offset: int, buffer: memoryview) -> None:
        """Of the image file."""
        again = Ranges(offset, offset + len(buffer))
        self._read_file(offset, buffer, again)
        self._look_again(offset, buffer, again)
        end = offset + len(buffer)
        at = self._chance.randrange(offset, end) // SAMPLE_BYTES * SAMPLE_BYTES  # within one cluster
        begin, end = max(at, offset), min(at + SAMPLE_BYTES, end)
        sample = memoryview(bytearray(end - begin))
        self._client.read_into(begin, sample)
        if bytes(buffer[begin - offset : end - offset]) != bytes(sample):  # views would be compared in Python
            raise SourceError(
                reason="The image file does not hold what QEMU says of it: it was moved, or another one lies in its "
                "place. Restart the machine, then run the backup again.",
                detail=f"{len(sample)} bytes at {begin} differ",
            )
        self.image_bytes += len(buffer)  # counts for people: two threads may lose one

    def _look_again(self, offset: int, buffer: memoryview, again: "Ranges") -> None:
        """After a read: what was copied meanwhile or before, in requests within one cluster each."""
        for begin, end in self._scratch.copied(offset, offset + len(buffer)):
            again.add(begin, end)
        readings = []
        for begin, end in again.merged():
            self.again_bytes += end - begin
            while begin < end:
                stop = min(begin - begin % CLUSTER_BYTES + CLUSTER_BYTES, end)
                readings.append(self._client.begin_read(begin, buffer[begin - offset : stop - offset]))
                begin = stop
        for reading in readings:
            self._client.finish_read(reading)

    def _read_file(self, offset: int, buffer: memoryview, again: "Ranges") -> None:
        assert self._opened is not None
        try:
            for run in self._opened.image.runs(offset, len(buffer)):
                at = run.offset - offset
                view = buffer[at : at + run.length]
                got = 0 if run.place is None else os.preadv(self._opened.fd, [view], run.place)
                if got < run.length:
                    again.add(run.offset + got, run.offset + run.length)
        except OSError:  # QEMU will say what is wrong
            again.add(offset, offset + len(buffer))


class Ranges:
    """Parts of [begin, end) that were added, widened to whole clusters."""

    def __init__(self, begin: int, end: int) -> None:
        self._begin, self._end = begin, end
        self._added: list[tuple[int, int]] = []

    def add(self, begin: int, end: int) -> None:
        begin -= begin % CLUSTER_BYTES
        self._added.append((max(begin, self._begin), min(-(-end // CLUSTER_BYTES) * CLUSTER_BYTES, self._end)))

    def merged(self) -> list[tuple[int, int]]:
        """In order, none touching another."""
        found: list[tuple[int, int]] = []
        for begin, end in sorted(self._added):
            if found and begin <= found[-1][1]:
                found[-1] = (found[-1][0], max(end, found[-1][1]))
            elif begin < end:
                found.append((begin, end))
        return found


def open_image(path: str, kind: Literal["raw", "qcow2"], pid: int, *, direct: bool) -> "OpenedImage | None":
    """The image as process `pid` has it open; None when it cannot be read, or is not what it is said to be.

    direct: QEMU goes past the page cache. Then so do we: what we read would fill it for nobody.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    with contextlib.ExitStack() as closing, contextlib.suppress(OSError):
        fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
        closing.callback(os.close, fd)
        if not _is_open(fd, pid):
            return None
        image: ImageMap | None = RawMap()
        if kind == "qcow2":
            tables = os.open(f"/proc/self/fd/{fd}", flags)
            closing.callback(os.close, tables)
            image = Qcow2Map.open(tables)
        if image is not None:
            return OpenedImage(fd=fd, image=image, close=closing.pop_all().close)
    return None


def _is_open(fd: int, pid: int) -> bool:
    """Whether `pid` has that very file open: a name may lead elsewhere by now, or in its namespace."""
    ours = os.fstat(fd)
    if not (stat.S_ISREG(ours.st_mode) or stat.S_ISBLK(ours.st_mode)):
        return False
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            theirs = os.stat(f"{folder}/{name}")
            if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
                return True
    return False
