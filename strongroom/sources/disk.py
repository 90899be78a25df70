"""What images and devices have in common: a stream of fixed size that is read from a descriptor."""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence

from strongroom.base.errors import SourceError, SourceShort
from strongroom.base.streams import Extent, ExtentKind
from strongroom.sources.inodes import OPEN_READ, data_extents, open_quietly, pread_full
from strongroom.sources.oserrors import shown, source_error
from strongroom.sources.pace import Pace

FLUSH_NEEDLESS = (errno.EROFS, errno.EINVAL)  # read-only media, and special files without a cache


class DiskStream:
    """BlockStream over a descriptor that stays the caller's.

    same   the parent's bytes are proven to be these: all is SAME and nothing has to be read
    holes  ask the file system which ranges were never written; block devices do not know
    changed  sorted (offset, length): the parent's bytes are proven to be these everywhere else; None: not known
    explain  called when a read failed; it may raise a better error, as that a snapshot ran full
    """

    def __init__(
        self,
        fd: int,
        path: bytes,
        size: int,
        pace: Pace,
        *,
        same: bool,
        holes: bool,
        changed: Sequence[tuple[int, int]] | None = None,
        explain: Callable[[], None] | None = None,
    ) -> None:
        self.size = size
        self._fd = fd
        self._path = path
        self._pace = pace
        self._same = same
        self._holes = holes
        self._changed = changed
        self._explain = explain

    def extents(self) -> Iterator[Extent]:
        if not self.size:
            return
        if self._same:
            yield Extent(0, self.size, ExtentKind.SAME)
            return
        found = [Extent(0, self.size, ExtentKind.DATA)]
        if self._holes:
            try:
                found = data_extents(self._fd, self.size)
            except OSError as err:
                raise source_error(err, self._path, "read") from err
        yield from found if self._changed is None else only_changed(found, self._changed)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._pace.take(len(buffer))
        try:
            got = pread_full(self._fd, buffer, offset)
        except OSError as err:
            if self._explain is not None:
                self._explain()
            raise source_error(err, self._path, "read") from err
        if got != len(buffer):
            raise SourceShort(
                reason=f"{shown(self._path)} became shorter while it was read: {offset + got} of {self.size} bytes."
            )
        return got


def only_changed(extents: Iterable[Extent], changed: Iterable[tuple[int, int]]) -> Iterator[Extent]:
    """Extents of a whole disk, SAME where nothing changed.

    extents  |----DATA----|-----ZERO-----|--DATA--|
    changed     |--|    |-----|
    result   |SAM|D|SAME|D|Z  |---------SAME------|
    """
    ranges = iter(changed)
    start = end = 0
    for offset, length, kind in extents:
        at, stop = offset, offset + length
        while at < stop:
            while end <= at:
                start, size = next(ranges, (1 << 63, 1))
                end = start + size
            if start > at:
                upto = min(start, stop)
                yield Extent(at, upto - at, ExtentKind.SAME)
            else:
                upto = min(end, stop)
                yield Extent(at, upto - at, kind)
            at = upto


def flush_quietly(fd: int) -> None:
    """Write out what is dirty of one file or device; a read-only one has nothing."""
    try:
        os.fsync(fd)
    except OSError as err:
        if err.errno not in FLUSH_NEEDLESS:
            raise


def open_image(path: bytes) -> int:
    """A descriptor for reading. Raises SourceGone, SourceDenied, SourceError; the last part of the path is no link."""
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            raise SourceError(reason=f"{shown(path)} is a symbolic link. Register the file it leads to.")
        if not stat.S_ISREG(info.st_mode):
            raise SourceError(reason=f"{shown(path)} is not a disk image. Register a file or a block device.")
        return open_quietly(path, OPEN_READ, None)
    except (OSError, ValueError) as err:
        known = err if isinstance(err, OSError) else OSError(str(err))
        raise source_error(known, path, "read") from err
