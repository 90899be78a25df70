"""A point of a QEMU machine: all disks at one moment, for reading, while the guest goes on.

    scratch files, tmp bitmaps, server          the guest runs
    freeze, pause                               it is held still
    filter above each disk; one transaction:    tmp = copy of the parent's bitmap, new bitmap begins
    run, thaw                                   it goes on: what it overwrites is copied to the scratch file before
    reading node and export of each disk        read: unchanged from the disk, overwritten from the scratch file

A scratch file that cannot be written breaks the point of its disk (`on-cbw-error=break-snapshot`): reads are refused
from then on, the backup fails with a sentence, and the guest notices nothing.

The parent's bitmap goes on recording beside the new one until commit(). So abort, a death at any moment, and a commit
that nobody carried out lose nothing: whichever of the two the next point names as its parent, all changes are in it.
Scratch files have no name and QEMU gets them, like the server's socket, as descriptors: nothing stays in a folder.
"""

import contextlib
import json
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from strongroom.base.clock import Clock
from strongroom.base.errors import SourceError
from strongroom.base.streams import BlockStream, Extent
from strongroom.base.units import KIB, human_bytes
from strongroom.sources.base import Detail, SourceRef
from strongroom.sources.machines.ahead import ReadAhead
from strongroom.sources.machines.base import Consistency, Disk, DiskPoint, MachineWanted
from strongroom.sources.machines.hold import hold_guest
from strongroom.sources.machines.image_reads import OpenedImage, PointReader, open_image
from strongroom.sources.machines.nbd import NbdClient
from strongroom.sources.machines.nbd_wire import UnixAddress
from strongroom.sources.machines.qemu_leftovers import (
    ACCESS,
    BITMAP,
    CBW,
    CHANGES,
    EXPORT,
    LISTENER,
    SCRATCH,
    remove_bitmaps,
    remove_export,
    replace_node,
    settle,
    stop_server,
)
from strongroom.sources.machines.qemu_view import (
    QemuAddress,
    QemuDisk,
    describe,
    dump_definition,
    find_agent,
    find_disks,
    owner_of,
    power_of,
    require_safe,
)
from strongroom.sources.machines.qmp import QmpClient, undoing
from strongroom.sources.machines.scratch import Scratch, add_scratch, open_scratch, shows_copies
from strongroom.sources.tokens import nanoseconds

GRANULARITY_BYTES = 64 * KIB  # of bitmaps: the engine's blocks of disks
CBW_TIMEOUT_S = 15  # a guest waits no longer for the scratch file: Linux gives a SCSI disk 30 s
TOKEN_BYTES_MAX = 1024
_STOPPABLE = ("running", "paused", "prelaunch")  # states in which a `stop` does no more than pause and flush


@dataclass(kw_only=True)
class _Opened:
    """One disk of the point, and how far its making has come."""

    number: int
    source: QemuDisk
    new: str  # bitmap of changes from now on
    parent: str | None
    full_reason: str | None
    scratch: BinaryIO | None = None
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class QemuDiskPoint:
    """DiskPoint; its stream is this object's own."""

    def __init__(self, opened: _Opened, client: NbdClient, scratch: Scratch, image: OpenedImage | None) -> None:
        assert opened.scratch is not None
        self.disk: Disk = opened.source.disk
        self.token = dump_token(opened.new, self.disk.size_bytes)
        self.full_reason = opened.full_reason
        self.size = client.size
        self.stream: BlockStream = self
        self._client = client
        self._scratch = opened.scratch
        self._image = image
        self._reader = PointReader(client, scratch, image)
        self._ahead = ReadAhead(client, self._reader, image=image is not None)
        self._format = opened.source.format
        self._persistent = opened.source.persistent

    def extents(self) -> Iterator[Extent]:
        with self._explained():
            yield from self._ahead.extents()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        with self._explained():
            return self._ahead.read_into(offset, buffer)

    @property
    def metadata(self) -> Mapping[str, Detail]:
        return {
            "format": self._format,
            "incremental_survives_restart": self._persistent,
            "scratch_bytes": os.fstat(self._scratch.fileno()).st_blocks * 512,
            "read_bytes": self._ahead.read_bytes,
            "image_read_bytes": self._reader.image_bytes,
            "read_again_bytes": self._reader.again_bytes,
        }

    def close(self) -> None:
        self._ahead.close()
        self._client.close()
        self._ahead.wait_closed()
        if self._image is not None:
            self._image.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """An error of reading is most often a scratch file that could not be written: then that is the sentence."""
        try:
            yield
        except SourceError as err:
            used = human_bytes(os.fstat(self._scratch.fileno()).st_blocks * 512)
            free = os.fstatvfs(self._scratch.fileno())
            if free.f_bavail * free.f_frsize >= GRANULARITY_BYTES:
                raise
            raise SourceError(
                reason=f"The scratch folder ran full ({used} of disk {self.disk.name}) while the machine wrote during "
                "its backup. The machine took no harm. Free space, or name a larger folder (scratch= in the address).",
                detail=str(err),
            ) from err


class QemuPoint:
    """MachinePoint. Holds the machine's monitor until it is left."""

    def __init__(self, ref: SourceRef, address: QemuAddress, wanted: MachineWanted, clock: Clock) -> None:
        self.consistency: Consistency = "crash_consistent"
        self.consistency_reason: str | None = None
        self._address = address
        self._owner = owner_of(ref)
        self._id = uuid.uuid4().hex
        self._undo = contextlib.ExitStack()
        self._committed = False
        self._monitor = QmpClient.connect(address.monitor)
        self._undo.callback(self._monitor.close)
        try:
            self._open(ref, wanted, clock)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> "QemuPoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    # --- opening ---

    def _open(self, ref: SourceRef, wanted: MachineWanted, clock: Clock) -> None:
        monitor = self._monitor
        agent = self._address.agent or find_agent(monitor)
        settle(monitor, agent)
        every = find_disks(monitor, ref)
        chosen = [disk for disk in every if _is_wanted(disk.disk, wanted)]
        require_safe(monitor, chosen)
        self.left_out: Sequence[Disk] = [disk.disk for disk in every if not _is_wanted(disk.disk, wanted)]
        facts = describe(monitor, every)
        self.metadata: Mapping[str, object] = {key: facts[key] for key in ("version", "name", "uuid", "nics", "disks")}
        self.metadata = {**self.metadata, "power": power_of(facts["status"]), "agent": agent is not None}
        self.definition = dump_definition(facts)
        self._disks = [self._prepare(number, disk, wanted) for number, disk in enumerate(chosen)]
        listener = self._start_server() if chosen else ""
        self._shows_copies = bool(chosen) and shows_copies(monitor, self._address.scratch)
        self._flushed = facts["status"] in _STOPPABLE
        if self._flushed and facts["status"] != "running":
            monitor.execute("stop")  # QEMU writes out what it keeps of the images in memory, as at every pause
        with hold_guest(monitor, agent, freeze=wanted.application and bool(chosen)) as held:
            self.taken_at_ns = nanoseconds(clock.now())
            self._switch()
        self.consistency = held.consistency
        self.consistency_reason = held.reason if wanted.application else None
        self.disks: Sequence[DiskPoint] = [self._expose(disk, listener) for disk in self._disks]

    def _prepare(self, number: int, disk: QemuDisk, wanted: MachineWanted) -> _Opened:
        """Whatever can be done while the guest runs: scratch file and a bitmap that names the disk."""
        parent, reason = _choose(disk, wanted, self._owner)
        new = f"{CHANGES}{self._owner}.{self._id}"
        opened = _Opened(number=number, source=disk, new=new, parent=parent, full_reason=reason)
        kept = _kept(disk, wanted)
        if kept:  # else it is not known which of them somebody relies on; commit() knows
            remove_bitmaps(self._monitor, disk.node, disk.bitmaps, self._owner, keep=kept)
        opened.scratch = open_scratch(self._address.scratch, disk.disk.size_bytes)
        self._undo.callback(opened.scratch.close)
        add_scratch(self._monitor, f"{SCRATCH}{number}", opened.scratch.fileno())
        self._on_undo("blockdev-del", {"node-name": f"{SCRATCH}{number}"})
        bitmap = {"node": disk.node, "name": f"{BITMAP}{number}"}
        more = {"granularity": GRANULARITY_BYTES, "persistent": False, "disabled": True}
        self._monitor.execute("block-dirty-bitmap-add", {**bitmap, **more})
        self._on_undo("block-dirty-bitmap-remove", bitmap)
        return opened

    def _start_server(self) -> str:
        """QEMU's NBD server on a socket of ours; its path, which nobody but us may enter."""
        folder = tempfile.TemporaryDirectory(prefix="strongroom-", dir="/tmp", ignore_cleanup_errors=True)
        self._undo.callback(folder.cleanup)
        path = os.path.join(folder.name, "nbd")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen(16)
            self._monitor.execute("getfd", {"fdname": LISTENER}, fds=[sock.fileno()])
        try:
            self._monitor.execute("nbd-server-start", {"addr": {"type": "fd", "data": {"str": LISTENER}}})
        except SourceError as err:
            with contextlib.suppress(SourceError):
                self._monitor.execute("closefd", {"fdname": LISTENER})
            raise SourceError(
                reason="QEMU's only NBD server is in use by another program. Stop that, then run the task again.",
                detail=str(err),
            ) from err
        self._undo.callback(undoing, stop_server, self._monitor)
        return path

    def _switch(self) -> None:
        """The moment of the point. The guest is held still."""
        actions: list[dict[str, Any]] = []
        for disk in self._disks:
            node, number, qdev = disk.source.node, disk.number, disk.source.qdev
            cbw: dict[str, Any] = {"driver": "copy-before-write", "node-name": f"{CBW}{number}", "file": node}
            cbw |= {"target": f"{SCRATCH}{number}", "on-cbw-error": "break-snapshot", "cbw-timeout": CBW_TIMEOUT_S}
            self._monitor.execute("blockdev-add", cbw)
            self._on_undo("blockdev-del", {"node-name": f"{CBW}{number}"})
            self._undo.callback(undoing, replace_node, self._monitor, qdev, node)
            self._monitor.execute("qom-set", {"path": qdev, "property": "drive", "value": f"{CBW}{number}"})
            if disk.parent is not None:
                merge = {"node": node, "target": f"{BITMAP}{number}", "bitmaps": [disk.parent]}
                actions.append({"type": "block-dirty-bitmap-merge", "data": merge})
            new = {"node": node, "name": disk.new, "granularity": GRANULARITY_BYTES}
            actions.append({"type": "block-dirty-bitmap-add", "data": {**new, "persistent": disk.source.persistent}})
        if actions:
            self._monitor.execute("transaction", {"actions": actions})
        for disk in self._disks:
            self._on_undo(
                "block-dirty-bitmap-remove", {"node": disk.source.node, "name": disk.new}, unless_committed=True
            )

    def _expose(self, disk: _Opened, listener: str) -> QemuDiskPoint:
        node, number = f"{ACCESS}{disk.number}", f"{EXPORT}{disk.number}"
        access = {"driver": "snapshot-access", "node-name": node, "file": f"{CBW}{disk.number}"}
        self._monitor.execute("blockdev-add", access)
        self._on_undo("blockdev-del", {"node-name": node})
        bitmap = f"{BITMAP}{disk.number}"
        export: dict[str, Any] = {"type": "nbd", "id": number, "node-name": node, "name": f"disk{disk.number}"}
        if disk.parent is not None:
            export["bitmaps"] = [{"node": disk.source.node, "name": bitmap}]
        self._monitor.execute("block-export-add", export)
        self._undo.callback(undoing, remove_export, self._monitor, number)
        changed = bitmap if disk.parent is not None else None
        client = NbdClient.connect(UnixAddress(path=listener), f"disk{disk.number}", bitmap=changed)
        assert disk.scratch is not None
        scratch = Scratch(disk.scratch.fileno(), shows_copies=self._shows_copies, qemu=self._monitor.version)
        point = QemuDiskPoint(disk, client, scratch, self._open_image(disk.source))
        self._undo.callback(point.close)
        return point

    def _open_image(self, disk: QemuDisk) -> OpenedImage | None:
        """Beside QEMU, where both see the same file. A qcow2 image's tables must have been written out at the point."""
        if not self._shows_copies or not disk.image.startswith("/"):
            return None
        if disk.format == "qcow2" and not self._flushed:
            return None
        kind: Literal["raw", "qcow2"] = "raw" if disk.format == "raw" else "qcow2"
        return open_image(disk.image, kind, self._monitor.pid, direct=disk.direct)

    # --- the end ---

    def commit(self) -> None:
        """Only the new bitmaps stay. Not carried out, the next point does it."""
        if not self._committed:
            self._committed = True
            self.abort()

    def abort(self) -> None:
        """Take everything away again, the last made first. What does not go, the next client of the monitor settles."""
        if self._committed:
            for disk in self._disks:
                node, bitmaps = disk.source.node, disk.source.bitmaps
                undoing(remove_bitmaps, self._monitor, node, bitmaps, self._owner, disk.new)
        self._undo.close()

    def _on_undo(self, command: str, arguments: Mapping[str, Any], *, unless_committed: bool = False) -> None:
        def call() -> None:
            if not (unless_committed and self._committed):
                undoing(self._monitor.execute, command, arguments)

        self._undo.callback(call)


def dump_token(bitmap: str, size_bytes: int) -> bytes:
    return json.dumps({"kind": "qemu", "bitmap": bitmap, "size_bytes": size_bytes}, sort_keys=True).encode()


def load_token(raw: bytes | None) -> tuple[str, int] | None:
    """(bitmap, size in bytes); None for no token of ours."""
    try:
        value = json.loads(raw) if raw is not None and len(raw) <= TOKEN_BYTES_MAX else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("kind") != "qemu":
        return None
    bitmap, size = value.get("bitmap"), value.get("size_bytes")
    return (bitmap, size) if isinstance(bitmap, str) and isinstance(size, int) else None


def _choose(disk: QemuDisk, wanted: MachineWanted, owner: str) -> tuple[str | None, str | None]:
    """(parent's bitmap, None), or (None, why everything is read)."""
    raw = wanted.parent_tokens.get(disk.disk.id)
    if wanted.full:
        return None, "A full backup was asked for."
    if raw is None:
        return None, "It is the first backup of this disk in the vault."
    token = load_token(raw)
    if token is None or not token[0].startswith(f"{CHANGES}{owner}."):
        return None, "The record of the last backup of this disk is not one of this machine."
    name, size = token
    if size != disk.disk.size_bytes:
        return None, "The disk had another size at the last backup."
    bitmap = disk.bitmaps.get(name)
    if bitmap is None and disk.persistent:
        return None, "QEMU has no list of what changed: it was not ended cleanly, or the disk has another image now."
    if bitmap is None:
        return None, "QEMU was restarted since the last backup, and this image cannot keep a list of what changed."
    if bitmap.get("inconsistent"):
        return None, "QEMU was killed while it kept the list of what changed, so the list is not trusted."
    if not bitmap.get("recording") or bitmap.get("busy"):
        return None, "Another program uses the list of what changed, so the list is not trusted."
    return name, None


def _kept(disk: QemuDisk, wanted: MachineWanted) -> str | None:
    """The bitmap that must outlive this attempt: the parent's, also when this backup does not use it."""
    token = load_token(wanted.parent_tokens.get(disk.disk.id))
    return token[0] if token else None


def _is_wanted(disk: Disk, wanted: MachineWanted) -> bool:
    return (wanted.included is None or disk.id in wanted.included) and disk.id not in wanted.excluded
