"""The table of drivers: which one serves a resource of this type at this path."""

import os
import stat
from collections.abc import Callable
from typing import Literal

from strongroom.base.clock import Clock
from strongroom.base.errors import InvalidRequest
from strongroom.sources.base import Driver
from strongroom.sources.device import DeviceDriver
from strongroom.sources.folder import FolderDriver
from strongroom.sources.image import ImageDriver

_Shape = Literal["device", "other"]

_DRIVERS: dict[tuple[str, _Shape], Callable[[Clock | None], Driver]] = {
    ("OS::Sfs::Turbo", "other"): FolderDriver,
    ("OS::Sfs::Turbo", "device"): FolderDriver,
    ("OS::Cinder::Volume", "other"): ImageDriver,
    ("OS::Cinder::Volume", "device"): DeviceDriver,
}


def driver_for(resource_type: str, path: bytes, clock: Clock | None = None) -> Driver:
    """Never fails for a path that is missing: the driver then says so. Raises InvalidRequest for an unknown type."""
    make = _DRIVERS.get((resource_type, _shape(path)))
    if make is None:
        raise InvalidRequest(reason=f"Resources of type {resource_type} cannot be read by this worker.")
    return make(clock)


def _shape(path: bytes) -> _Shape:
    try:
        return "device" if stat.S_ISBLK(os.stat(path).st_mode) else "other"
    except (OSError, ValueError):
        return "device" if path.startswith(b"/dev/") else "other"  # a disk that is unplugged now
