"""The tables of drivers: which one serves a resource of this type at this path, and which a machine at this address."""

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
from strongroom.sources.inodes import OPEN_READ, open_quietly
from strongroom.sources.machines.base import MachineDriver
from strongroom.sources.machines.libvirt.driver import LibvirtDriver
from strongroom.sources.machines.qemu import QemuDriver
from strongroom.sources.openstack.cinder import CinderDriver
from strongroom.sources.openstack.cloud import CINDER
from strongroom.sources.openstack.nova import NovaDriver
from strongroom.sources.qcow2 import Qcow2Driver
from strongroom.sources.qcow2_header import is_qcow2
from strongroom.sources.rbd import RbdDriver
from strongroom.sources.snapshots.rbd import SCHEME

_Shape = Literal["device", "qcow2", "rbd", "cinder", "other"]

_DRIVERS: dict[tuple[str, _Shape], Callable[[Clock | None], Driver]] = {
    ("OS::Sfs::Turbo", "other"): FolderDriver,
    ("OS::Sfs::Turbo", "device"): FolderDriver,
    ("OS::Sfs::Turbo", "qcow2"): FolderDriver,
    ("OS::Cinder::Volume", "other"): ImageDriver,
    ("OS::Cinder::Volume", "qcow2"): Qcow2Driver,
    ("OS::Cinder::Volume", "device"): DeviceDriver,
    ("OS::Cinder::Volume", "rbd"): RbdDriver,
    ("OS::Cinder::Volume", "cinder"): CinderDriver,
}
_ADDRESSED: tuple[_Shape, ...] = ("rbd", "cinder")  # not paths of this host


def _image_driver(path: bytes) -> Driver:
    return driver_for("OS::Cinder::Volume", path)


# By the scheme of the address: what stands before its first colon.
MACHINE_DRIVERS: dict[bytes, Callable[[], MachineDriver]] = {
    b"libvirt": LibvirtDriver,
    b"nova": NovaDriver,
    b"qemu": lambda: QemuDriver(_image_driver),
}


def machine_driver_for(address: bytes) -> MachineDriver:
    """Never fails for a machine that is not there: the driver then says so. Raises InvalidRequest for a scheme that
    none serves."""
    scheme, colon, _ = address.partition(b":")
    make = MACHINE_DRIVERS.get(scheme) if colon else None
    if make is None:
        known = ", ".join(f"{name.decode()}:" for name in sorted(MACHINE_DRIVERS))
        raise InvalidRequest(reason=f"Invalid path: no driver serves this address of a server. Use one of {known}.")
    return make()


def driver_for(resource_type: str, path: bytes, clock: Clock | None = None) -> Driver:
    """Never fails for a path that is missing: the driver then says so. Raises InvalidRequest for an unknown type."""
    shape = _shape(path)
    if shape not in _ADDRESSED and not path.startswith(b"/"):
        raise InvalidRequest(reason="Invalid path: give an absolute path, or the address of a disk: rbd: or cinder:.")
    make = _DRIVERS.get((resource_type, shape))
    if make is None:
        raise InvalidRequest(reason=f"Resources of type {resource_type} cannot be read by this worker.")
    return make(clock)


def _shape(path: bytes) -> _Shape:
    """An image file is what its first bytes say; one that is not there is what its name says."""
    if path.startswith(SCHEME):
        return "rbd"
    if path.startswith(CINDER):
        return "cinder"
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISBLK(mode):
            return "device"
        return "qcow2" if stat.S_ISREG(mode) and _begins_as_qcow2(path) else "other"
    except (OSError, ValueError):
        if path.startswith(b"/dev/"):
            return "device"  # a disk that is unplugged now
        return "qcow2" if path.endswith(b".qcow2") and not os.path.lexists(path) else "other"


def _begins_as_qcow2(path: bytes) -> bool:
    fd = open_quietly(path, OPEN_READ, None)
    try:
        return is_qcow2(fd)
    finally:
        os.close(fd)
