"""Restoring a disk into a qcow2 image: a new one beside the old one, written through `qemu-nbd`, renamed over it.

Everything but the bytes' way is that of an image file (`image_target.py`). The new image stands alone, keeps the size
of clusters of the old one, and has no internal snapshots and no bitmaps: the next backup reads all of it.
"""

import os

from strongroom.base.errors import SourceError
from strongroom.base.units import KIB
from strongroom.sources.disk import open_image
from strongroom.sources.image_target import ImageTarget, require_inside
from strongroom.sources.qcow2_header import load_header
from strongroom.sources.qemu_tools import qcow2_of, served
from strongroom.sources.tools import run_tool

CLUSTER_BYTES = 64 * KIB  # of an image that replaces nothing: QEMU's own choice


class Qcow2Target(ImageTarget):
    """A new qcow2 image beside the old one; Target and BlockTarget. `size` is that of the disk inside."""

    def _begin(self) -> None:
        self._ended = False
        self.size = -(-self.size // 512) * 512
        options = f"compat=1.1,cluster_size={_cluster_bytes(self._path)}"
        place = f"/proc/self/fd/{self._fd}"
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, place, str(self.size)], [self._fd])
        self._serving = self._fds.enter_context(served(qcow2_of(self._fd), [self._fd], writable=True))

    def write(self, offset: int, data: memoryview) -> None:
        require_inside(offset, len(data), self.size)
        self._serving.client.write(offset, data)
        self._written += len(data)

    def zero(self, offset: int, length: int) -> None:
        """Nothing to do: a new image reads as zeros where nothing was written, and each range comes once."""
        require_inside(offset, length, self.size)

    def flush(self) -> None:
        if not self._ended:
            self._serving.client.flush()
            return
        super().flush()

    def seal(self) -> None:
        if not self._ended:
            self._serving.finish()
            self._ended = True
        super().seal()


def _cluster_bytes(path: bytes) -> int:
    try:
        fd = open_image(path)
    except SourceError:
        return CLUSTER_BYTES
    try:
        return load_header(fd, path).cluster_bytes
    except (SourceError, OSError):
        return CLUSTER_BYTES
    finally:
        os.close(fd)
