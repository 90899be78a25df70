"""What a machine's disks are read by: streams over NBD that say why when they break."""

import os
from collections.abc import Callable, Iterator, Mapping

from strongroom.base.errors import SourceChanged, SourceError, SourceGone
from strongroom.base.streams import BlockStream, Extent
from strongroom.sources.base import Detail
from strongroom.sources.machines.base import Disk
from strongroom.sources.machines.nbd import NbdClient
from strongroom.sources.pace import Pace


class MachineStream:
    """BlockStream of one disk. `why` gives the reason of a break when somebody knows a better one than the socket."""

    def __init__(self, client: NbdClient, pace: Pace, why: Callable[[], SourceError | None]) -> None:
        self.size = client.size
        self.read_bytes = 0
        self._client = client
        self._pace = pace
        self._why = why

    def extents(self) -> Iterator[Extent]:
        try:
            yield from self._client.extents()
        except SourceError as err:
            raise self._why() or err from err

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._pace.take(len(buffer))
        try:
            got = self._client.read_into(offset, buffer)
        except SourceError as err:
            raise self._why() or err from err
        self.read_bytes += got  # a count for people: two threads may lose one
        return got

    def close(self) -> None:
        self._client.close()


class MachineDisk:
    """DiskPoint."""

    def __init__(self, disk: Disk, stream: MachineStream, token: bytes, full_reason: str | None) -> None:
        self.disk = disk
        self.stream: BlockStream = stream
        self.token = token
        self.full_reason = full_reason
        self._read = stream

    @property
    def metadata(self) -> Mapping[str, Detail]:
        return {
            "device": self.disk.name,
            "size_bytes": self.disk.size_bytes,
            "read_bytes": self._read.read_bytes,
            "incremental": self.full_reason is None,
            "read_whole": self.full_reason,
        }


class StillStream(MachineStream):
    """Of an image that nobody may have open for writing: each read is checked to be of the file as it was opened."""

    def __init__(self, client: NbdClient, pace: Pace, path: str, opened: os.stat_result) -> None:
        super().__init__(client, pace, lambda: None)
        self._path = path
        self._opened = stamp(opened)

    def extents(self) -> Iterator[Extent]:
        for extent in super().extents():
            self._require_still()
            yield extent

    def read_into(self, offset: int, buffer: memoryview) -> int:
        got = super().read_into(offset, buffer)
        self._require_still()
        return got

    def _require_still(self) -> None:
        try:
            now = stamp(os.stat(self._path))
        except OSError as err:
            raise SourceGone(reason=f"The image {self._path} is gone.", detail=repr(err)) from err
        if now != self._opened:
            raise SourceChanged(
                reason="The machine was started, or its image was changed, while it was read switched off. "
                "Run the backup again."
            )


def stamp(info: os.stat_result) -> tuple[int, int, int, int, int]:
    """Changes when anybody writes to the file, or puts another in its place."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
