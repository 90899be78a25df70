"""What a machine's own root holds: its definition and what was known of it, as two files that anybody may read there.

    definition    as the hypervisor has it, opaque: what a new machine is made of
    machine.json  power, network, firmware, its disks and the backup of each, what was left out, what was reached

It lies in the store, sealed like everything else, so that it is there when the database is not.
"""

import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from strongroom.base.errors import Corrupt, EntryNotFound, SourceGone
from strongroom.base.streams import NO_ATTRIBUTES, Attributes, Entry, Extent, ExtentKind, Path, Skipped
from strongroom.control.resource_binding import Look
from strongroom.control.subjects import ResourceRef
from strongroom.control.vault_kinds import SERVER
from strongroom.engine import Repository, read_file
from strongroom.operations.job import source_ref
from strongroom.sources.machines.base import Disk, MachineInspection
from strongroom.sources.open import machine_driver_for

MACHINE = SERVER.type_name
DEFINITION, FACTS = b"definition", b"machine.json"
ROW_FACTS_BYTES_MAX = 32 * 1024  # of what the hypervisor says, kept in the row; the root has all of it
FILE_BYTES_MAX = 4 << 20  # of each: libvirt's XML of a large machine has some 30 KB


class RecordStream:
    """A folder of small files in memory, as a TreeStream. Times are those of the point."""

    unchanged_before_ns = 0  # read anew each time: it is smaller than what comparing costs

    def __init__(self, files: Mapping[bytes, bytes], taken_at_ns: int) -> None:
        self._files = dict(sorted(files.items()))
        self._taken_at_ns = taken_at_ns

    def root(self) -> tuple[Entry, Attributes]:
        return self._entry(b"", stat.S_IFDIR | 0o700, 0), NO_ATTRIBUTES

    def folders(self) -> Iterator["_RecordFolder"]:
        entries = [self._entry(name, stat.S_IFREG | 0o600, len(data)) for name, data in self._files.items()]
        yield _RecordFolder(entries, self._files)

    def _entry(self, name: bytes, mode: int, size: int) -> Entry:
        return Entry(name, mode, 0, 0, self._taken_at_ns, size, self._taken_at_ns, 0, 0, 1, 0, False)


class _RecordFolder:
    path: Path = ()
    skipped: Sequence[Skipped] = ()

    def __init__(self, entries: Sequence[Entry], files: Mapping[bytes, bytes]) -> None:
        self.entries = entries
        self._files = files

    def attributes(self, entry: Entry) -> Attributes:
        return NO_ATTRIBUTES

    def open(self, entry: Entry) -> "_RecordFile":
        if entry.name not in self._files:
            raise SourceGone(reason=f"The record has no {entry.name!r}.")
        return _RecordFile(entry, self._files[entry.name])


class _RecordFile:
    def __init__(self, entry: Entry, data: bytes) -> None:
        self.entry = entry
        self._data = data

    def __enter__(self) -> "_RecordFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def extents(self) -> Sequence[Extent]:
        return [Extent(0, len(self._data), ExtentKind.DATA)] if self._data else []

    def read_into(self, offset: int, buffer: memoryview) -> int:
        piece = self._data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def attributes(self) -> Attributes:
        return NO_ATTRIBUTES

    def changed(self) -> bool:
        return False


def facts_file(facts: Mapping[str, Any]) -> bytes:
    """As machine.json has them."""
    return json.dumps(facts, indent=1, sort_keys=True, default=str).encode()


def load_definition(repository: Repository, root: str) -> bytes:
    """Of a restore point, b"" when the hypervisor gave none. Raises Corrupt."""
    data = b""
    try:
        for piece in read_file(repository, root, (DEFINITION,)):
            data += piece
            if len(data) > FILE_BYTES_MAX:
                raise Corrupt(reason="the definition of the machine is larger than any can be", detail=root)
    except EntryNotFound:
        return b""
    return data


def row_facts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the row tells tenants of the machine: not where its disks lie on the host, and not what is too long."""
    told = {name: value for name, value in metadata.items() if name != "disks"}
    if len(facts_file(told)) > ROW_FACTS_BYTES_MAX:
        return {"left_out": "It is too long for here: `machine.json` of the restore point has it."}
    return told


def disk_facts(disk: Disk) -> dict[str, Any]:
    """For tenants: not where it lies."""
    return {"id": disk.id, "name": disk.name, "size_bytes": disk.size_bytes, "is_boot": disk.is_boot}


def look_at_machine(resource: ResourceRef) -> Look:
    """What there is now. Raises InvalidRequest for an address that no driver serves."""
    found = machine_driver_for(resource.path).inspect(source_ref(resource))
    obstacle = None if found.readable else found.reason or "The server cannot be read now."
    return Look(size_bytes=sum(disk.size_bytes for disk in found.disks), obstacle=obstacle, machine=_seen(found))


def _seen(found: MachineInspection) -> dict[str, Any]:
    return {
        "disks": [disk_facts(disk) for disk in found.disks],
        "power": found.power,
        "abilities": [{"name": a.name, "works": a.works, "reason": a.reason} for a in found.abilities],
        "detail": dict(found.detail),
    }
