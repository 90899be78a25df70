"""Room for what the guest overwrites while it is read: QEMU puts the old blocks here first.

When this room is full, QEMU (before 10) fails the GUEST's write, and libvirt has no way to let the backup fail
instead. So a backup does not start without the room it can need, the room is looked at each second while it runs, and
the job is ended while there is still a reserve: the backup is lost, the guest never notices.

    <folder of the first image, or the setting>/.strongroom-scratch/   0711, ours
        <resource>-<random>/        0700, of QEMU's user: one point
            vda, vdb ...            made and removed by libvirt
            nbd                     the socket that the point is read from
            frozen                  while the guest holds still: `recover` thaws it when we died
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence

from strongroom.base.errors import SourceError
from strongroom.base.units import GIB, MIB, human_bytes
from strongroom.sources.machines.libvirt.definition import DiskDefinition
from strongroom.sources.oserrors import shown, source_error, target_error

FOLDER = ".strongroom-scratch"
DEFAULT_BASE = "/var/lib/libvirt/images"  # where no disk is a file
FROZEN = "frozen"
LOOK_INTERVAL_S = 1.0
RESERVE_BYTES_MIN, RESERVE_BYTES_MAX, RESERVE_PART = 16 * MIB, GIB, 8  # an eighth of what it needs, within these
SLACK_BYTES, SLACK_PART = 64 * MIB, 16  # tables of the scratch image, and blocks smaller than its clusters
SOCKET_BYTES_MAX = 107  # of a path in sockaddr_un


class Scratch:
    """One point's place. `make` it, `close` it."""

    def __init__(self, path: str, needed_bytes: int) -> None:
        self.path = path
        self.needed_bytes = needed_bytes
        self.reserve_bytes = max(RESERVE_BYTES_MIN, min(RESERVE_BYTES_MAX, needed_bytes // RESERVE_PART))
        self._socket_folder: str | None = None

    @classmethod
    def make(cls, base: str, resource_id: str, needed_bytes: int, owner: tuple[int, int] | None) -> "Scratch":
        """Raises SourceError when the room is not there, or the folder cannot be made."""
        scratch = cls(os.path.join(base, FOLDER, f"{_mark(resource_id)}-{secrets.token_hex(4)}"), needed_bytes)
        parent = os.path.dirname(scratch.path)
        try:
            os.makedirs(parent, 0o711, exist_ok=True)
            free = free_bytes(parent)
            if free < needed_bytes + scratch.reserve_bytes:
                raise SourceError(
                    reason=f"The scratch folder {shown(os.fsencode(parent))} has {human_bytes(free)} free; what the "
                    f"machine may overwrite while it is read can take {human_bytes(needed_bytes)}, and "
                    f"{human_bytes(scratch.reserve_bytes)} stay free. Free space, or set another scratch folder."
                )
            _make_for(scratch.path, owner)
            if len(os.fsencode(scratch.socket)) > SOCKET_BYTES_MAX:
                scratch._socket_folder = tempfile.mkdtemp(prefix="strongroom-")
                _give_to(scratch._socket_folder, owner)
        except OSError as err:
            raise target_error(err, os.fsencode(scratch.path), "make the scratch folder") from err
        return scratch

    @property
    def socket(self) -> str:
        return os.path.join(self._socket_folder or self.path, "nbd")

    def mark_frozen(self, frozen: bool) -> None:
        """Durable before the guest is frozen. Raises SourceError."""
        path = os.path.join(self.path, FROZEN)
        try:
            if frozen:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        except OSError as err:
            raise target_error(err, os.fsencode(path), "write") from err

    def close(self) -> None:
        """Idempotent; what cannot be removed is found by the next point of the resource."""
        for path in filter(None, (self.path, self._socket_folder)):
            shutil.rmtree(path, ignore_errors=True)


class Watch:
    """Looks at the room once a second on a thread of its own; calls `on_low` once when it is below the reserve."""

    def __init__(self, scratch: Scratch, on_low: Callable[[SourceError], None]) -> None:
        self._scratch = scratch
        self._on_low = on_low
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="scratch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _look(self) -> None:
        folder = self._scratch.path
        while not self._ended.wait(LOOK_INTERVAL_S):
            try:
                free = free_bytes(folder)
            except OSError as err:
                self._on_low(source_error(err, os.fsencode(folder), "look at"))
                return
            if free < self._scratch.reserve_bytes:
                self._on_low(
                    SourceError(
                        reason=f"The backup was ended to save the machine: its scratch folder {folder} had only "
                        f"{human_bytes(free)} left. Free space there, or set another, and run it again."
                    )
                )
                return


def needed_bytes(disks: Sequence[tuple[DiskDefinition, int]]) -> int:
    """What the guest can overwrite of these, (definition, size): what is written now, or all where that is unknown."""
    return sum(_written_bytes(definition, size) for definition, size in disks)


def scratch_base(disks: Sequence[DiskDefinition], setting: str | None) -> str:
    """The folder in which FOLDER is."""
    if setting is not None:
        return setting
    first = next((disk.place for disk in disks if disk.kind == "file" and disk.place.startswith("/")), None)
    return DEFAULT_BASE if first is None else os.path.dirname(first)


def free_bytes(folder: str) -> int:
    """For others than root, as QEMU runs. Raises OSError."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def room_in(base: str) -> int | None:
    """Free bytes where the scratch folder would be made; None when that is not there."""
    try:
        return free_bytes(base)
    except OSError:
        return None


def left_behind(base: str, resource_id: str) -> list[Scratch]:
    """Places of points of this resource that nobody closed."""
    parent = os.path.join(base, FOLDER)
    try:
        names = os.listdir(parent)
    except OSError:
        return []
    return [
        Scratch(os.path.join(parent, name), 0) for name in sorted(names) if name.startswith(_mark(resource_id) + "-")
    ]


def was_frozen(scratch: Scratch) -> bool:
    return os.path.lexists(os.path.join(scratch.path, FROZEN))


def _written_bytes(definition: DiskDefinition, size: int) -> int:
    if definition.kind != "file" or definition.layered:
        return size
    try:
        written = os.stat(definition.place).st_blocks * 512
    except OSError:
        return size
    return min(size, written + written // SLACK_PART + SLACK_BYTES)


def _mark(resource_id: str) -> str:
    return hashlib.sha256(resource_id.encode()).hexdigest()[:8]


def _make_for(path: str, owner: tuple[int, int] | None) -> None:
    os.mkdir(path, 0o700)
    _give_to(path, owner)


def _give_to(path: str, owner: tuple[int, int] | None) -> None:
    """To QEMU's user, which is another one only when we are root."""
    if owner is not None and os.geteuid() == 0:
        os.chown(path, *owner)
