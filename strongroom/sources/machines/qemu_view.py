"""What QEMU tells of a machine, as values: its disks, its agent, its definition. Looks only."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from strongroom.base.errors import InvalidRequest, SourceError
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import PREFIX, Disk, Power
from strongroom.sources.machines.qmp import QmpClient, QmpRefused

SCHEME = b"qemu:"
AGENT_PORT = "org.qemu.guest_agent.0"
SCRATCH = "/var/tmp"  # noqa: S108 -- files there have no name; a folder of disk, not of memory
DISK_NAMESPACE = uuid.UUID("0f6b9f0c-7a52-4d2c-9a0e-3a4e5d0c6b11")
DEFINITION_BYTES_MAX = 1 << 20
DISKS_MAX = 256  # of one machine; QEMU's PCI buses end below
TOO_OLD = (
    "When scratch space runs out, this QEMU would fail the guest's writes and not the backup. Use QEMU 7.1 or later."
)
THREADS_SINCE = (9, 0, 0)
NO_THREADS = (
    "Disks {disks} have I/O threads, and this QEMU may end when their backup is cut off. Use QEMU 9.0 or later, or "
    "start the machine without iothread="
)
_OPTIONS = frozenset({"agent", "scratch", "images"})


@dataclass(frozen=True, kw_only=True)
class QemuAddress:
    """qemu:/run/vm/qmp.sock?agent=/run/vm/agent.sock&scratch=/var/tmp&images=/srv/images

    monitor  socket of QEMU's QMP monitor         agent   of the guest's agent; None: QEMU is asked for it
    scratch  folder for what the guest overwrites during a backup, and for the journals of restores
    images   folder in which new machines get a folder; None: beside the machine they are made of
    """

    monitor: str
    agent: str | None = None
    scratch: str = SCRATCH
    images: str | None = None


@dataclass(frozen=True, kw_only=True)
class QemuDisk:
    """A disk with what QEMU calls it.

    qdev        path of the device in QEMU's tree of objects   node  name of the block node that holds the guest's data
    bitmaps     by name: what QEMU says of each
    persistent  the image can keep a bitmap over an end of QEMU
    in_thread   its requests run in an I/O thread of their own
    image       path of the file or device that holds all of it, as QEMU names it; "" where that is not so simple
    direct      QEMU reads and writes that past the page cache
    """

    disk: Disk
    qdev: str
    node: str
    format: str
    bitmaps: Mapping[str, Mapping[str, Any]]
    persistent: bool
    in_thread: bool = False
    image: str = ""
    direct: bool = False


def parse_address(path: bytes) -> QemuAddress:
    """Raises InvalidRequest with the form that is wanted."""
    text = os.fsdecode(path.removeprefix(SCHEME))
    monitor, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    paths = [unquote(monitor), *options.values()]
    if not path.startswith(SCHEME) or set(options) - _OPTIONS or not all(map(os.path.isabs, paths)):
        raise InvalidRequest(
            reason="Invalid path: write qemu:/folder/monitor.sock, and after a question mark agent=, scratch= and "
            "images= with absolute paths where they are needed."
        )
    return QemuAddress(monitor=unquote(monitor), **options)


def owner_of(ref: SourceRef) -> str:
    """Part of the names of a resource's bitmaps: two resources on one machine leave each other's alone."""
    return uuid.uuid5(DISK_NAMESPACE, ref.resource_id).hex[:12]


def find_disks(monitor: QmpClient, ref: SourceRef) -> list[QemuDisk]:
    """Disks that are plugged in and that the guest may write, in QEMU's order. Raises SourceError.

    No drives for discs and diskettes; no firmware; nothing that is read-only: it is not this machine's own, and a
    restore would write over what others use too.
    """
    found = []
    for entry in monitor.execute("query-block"):
        inserted, qdev = entry.get("inserted"), entry.get("qdev")
        if inserted is None or not qdev or entry.get("removable") or inserted.get("ro"):
            continue
        if str(_property(monitor, qdev, "type")).startswith("cfi.pflash"):
            continue
        if str(inserted.get("node-name", "")).startswith(PREFIX):
            raise SourceError(reason="A point of this machine is still open in QEMU. Run `strongroom source check`.")
        found.append((_boot_index(monitor, qdev), entry, _has_thread(monitor, qdev)))
    first = min(range(len(found)), key=lambda at: found[at][0], default=0)
    return [_disk(ref, entry, at == first, thread) for at, (_, entry, thread) in enumerate(found)]


def require_safe(monitor: QmpClient, disks: Sequence[QemuDisk]) -> None:
    """Raises SourceError where a backup could hurt the guest.

    Tried on 7.2.22: a client of an export in an I/O thread hangs up, as that of a worker that is killed does, and QEMU
    ends at an assertion (nbd_blockdev_client_closed). 9.0 closes clients in the main thread.
    """
    if not has_break_snapshot(monitor):
        raise SourceError(reason=TOO_OLD)
    threaded = [each.disk.name for each in disks if each.in_thread]
    if threaded and monitor.version < THREADS_SINCE:
        raise SourceError(reason=NO_THREADS.format(disks=", ".join(threaded)))


def _disk(ref: SourceRef, entry: Mapping[str, Any], is_boot: bool, in_thread: bool) -> QemuDisk:
    qdev, inserted = str(entry["qdev"]), entry["inserted"]
    image = inserted.get("image") or {}
    data = (image.get("format-specific") or {}).get("data") or {}
    name = _device_name(qdev, str(entry.get("device", "")))
    disk = Disk(
        id=str(uuid.uuid5(DISK_NAMESPACE, f"{ref.resource_id}/{name}")),
        name=name,
        size_bytes=int(image.get("virtual-size", 0)),
        is_boot=is_boot,
        place=_file_of(image, str(inserted.get("file", ""))),
    )
    return QemuDisk(
        disk=disk,
        qdev=qdev,
        node=str(inserted["node-name"]),
        format=str(inserted.get("drv", "")),
        bitmaps={each["name"]: each for each in inserted.get("dirty-bitmaps") or () if each.get("name")},
        persistent=inserted.get("drv") == "qcow2" and data.get("compat") != "0.10" and not inserted.get("ro"),
        in_thread=in_thread,
        image=str(image.get("filename") or "") if inserted.get("drv") in ("raw", "qcow2") else "",
        direct=bool((inserted.get("cache") or {}).get("direct")),
    )


def _device_name(qdev: str, drive: str) -> str:
    """Its id, the drive's name of the old command line, or its place in the tree."""
    parts = qdev.removeprefix("/machine/").split("/")
    if parts[0] == "peripheral" and len(parts) > 1:
        return parts[1]
    return drive or "-".join(part for part in parts if part != "virtio-backend")


def _boot_index(monitor: QmpClient, qdev: str) -> int:
    """Lower boots earlier; a device without an order comes last."""
    index = _property(monitor, qdev.removesuffix("/virtio-backend"), "bootindex")
    return index if isinstance(index, int) and index >= 0 else 1 << 31


def _property(monitor: QmpClient, path: str, name: str) -> object:
    """None for one that the object does not have."""
    try:
        return monitor.execute("qom-get", {"path": path, "property": name})
    except QmpRefused:
        return None


def _has_thread(monitor: QmpClient, qdev: str) -> bool:
    """An I/O thread belongs to a virtio-blk device, or to the controller on whose bus a SCSI disk is."""
    owner = qdev.removesuffix("/virtio-backend")
    controller = str(_property(monitor, qdev, "parent_bus") or "").rpartition("/")[0]
    return any(_property(monitor, place, "iothread") for place in (owner, qdev, controller) if place)


def find_agent(monitor: QmpClient) -> str | None:
    """The socket of the guest's agent: that of the port with the agent's name. None: the machine has none."""
    sockets = {}
    for each in monitor.execute("query-chardev"):
        kind, _, rest = str(each.get("filename", "")).removeprefix("disconnected:").partition(":")
        if kind == "unix" and ",server" in rest:
            sockets[each["label"]] = rest.partition(",server")[0]
    for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
        for item in monitor.execute("qom-list", {"path": folder}):
            if item.get("type") != "child<virtserialport>":
                continue
            path = f"{folder}/{item['name']}"
            if monitor.execute("qom-get", {"path": path, "property": "name"}) == AGENT_PORT:
                label = monitor.execute("qom-get", {"path": path, "property": "chardev"})
                if label in sockets:
                    return os.path.join(working_folder(monitor.pid), sockets[label])
    return None


def working_folder(pid: int) -> str:
    """Where QEMU's relative paths begin. It may run in another namespace: then only absolute ones can be followed."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return "/"


def command_line(pid: int) -> list[str]:
    """How QEMU was started; () when that may not be seen, or when the socket is not QEMU's own."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read(DEFINITION_BYTES_MAX).split(b"\0")[:-1]]
    except OSError:
        return []
    return words if words and "qemu" in os.path.basename(words[0]) else []


def has_break_snapshot(monitor: QmpClient) -> bool:
    """Whether a filter can break the point instead of failing the guest's write: QEMU 7.1 and later."""
    return any("break-snapshot" in (each.get("values") or ()) for each in monitor.execute("query-qmp-schema"))


def power_of(status: str) -> Power:
    if status in ("running", "colo"):
        return "running"
    return "off" if status in ("shutdown", "prelaunch") else "paused"


def _file_of(image: Mapping[str, Any], fallback: str) -> str:
    """The file behind an image; one that was opened with options has JSON for a name."""
    name = str(image.get("filename") or fallback)
    if not name.startswith("json:"):
        return name
    try:
        value = json.loads(name.removeprefix("json:"))
        while isinstance(value, dict) and "filename" not in value:
            value = value.get("file")
    except (ValueError, RecursionError):
        return name
    return str(value["filename"]) if isinstance(value, dict) else name


def describe(monitor: QmpClient, disks: Sequence[QemuDisk]) -> dict[str, Any]:
    """What a machine is, for its restore point: JSON. The command line makes it again, the rest is for people."""
    folder = working_folder(monitor.pid)
    return {
        "kind": "qemu",
        "version": ".".join(map(str, monitor.version)),
        "name": (monitor.execute("query-name") or {}).get("name", ""),
        "uuid": monitor.execute("query-uuid")["UUID"],
        "status": monitor.execute("query-status")["status"],
        "command_line": command_line(monitor.pid),
        "working_folder": folder,
        "disks": [
            {
                "id": each.disk.id,
                "name": each.disk.name,
                "size_bytes": each.disk.size_bytes,
                "format": each.format,
                "place": os.path.join(folder, each.disk.place) if each.disk.place else "",
                "is_boot": each.disk.is_boot,
            }
            for each in disks
        ],
        "nics": _nics(monitor),
        "agent": find_agent(monitor),
    }


def _nics(monitor: QmpClient) -> list[dict[str, str]]:
    """Network cards with their addresses."""
    found = []
    for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
        for item in monitor.execute("qom-list", {"path": folder}):
            path = f"{folder}/{item['name']}"
            mac = _property(monitor, path, "mac")
            if mac is not None:
                found.append({"model": str(item["type"]).removeprefix("child<").rstrip(">"), "mac": str(mac)})
    return found


def dump_definition(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True).encode()


def load_definition(raw: bytes) -> dict[str, Any]:
    """What `describe` wrote, with all that a restore goes by of the right type. Raises SourceError for all else."""
    try:
        value = json.loads(raw) if len(raw) <= DEFINITION_BYTES_MAX else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("kind") != "qemu" or not _is_sound(value):
        raise SourceError(
            reason="The restore point holds no definition of a QEMU machine. Restore its disks one by one."
        )
    return value


def _is_sound(value: Mapping[str, Any]) -> bool:
    disks, words = value.get("disks"), value.get("command_line")
    if not isinstance(disks, list) or not isinstance(words, list) or len(disks) > DISKS_MAX:
        return False
    texts = [*words, value.get("working_folder"), value.get("agent") or ""]
    for disk in disks:
        if not isinstance(disk, dict):
            return False
        texts += [disk.get(key) for key in ("id", "name", "place", "format")]
    return all(isinstance(text, str) and "\0" not in text for text in texts)
