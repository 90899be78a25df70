"""What libvirt tells of a domain, as values, and whether it may be touched at all. Looks only."""

from collections.abc import Mapping

from strongroom.base.errors import SourceDenied, SourceError
from strongroom.sources.machines.base import Disk, MachineWanted, Power
from strongroom.sources.machines.libvirt.binding import VERSION_MIN, Address, Connection, Domain, call, library
from strongroom.sources.machines.libvirt.definition import Definition, DiskDefinition, disk_id

THREADS_SINCE = 9_000_000  # QEMU 7.2's NBD server fails an assertion when a client of such a disk hangs up
Pairs = list[tuple[Disk, DiskDefinition]]


def require_version(connection: Connection, definition: Definition) -> None:
    """Raises SourceError where a backup could not be made, or could hurt the guest."""
    threaded = [item.device for item in definition.disks if item.threaded]
    if threaded and call("ask for QEMU's version", connection.getVersion) < THREADS_SINCE:
        raise SourceError(
            reason=f"Disks {', '.join(threaded)} have I/O threads, and this QEMU may end, and the guest with it, when "
            "their backup is cut off. Use QEMU 9.0 or later, or take iothread out of the machine's definition."
        )
    if call("ask for its version", connection.getLibVersion) < VERSION_MIN:
        raise SourceError(reason="This libvirt is too old: incremental backups need 7.3 or newer.")


def require_own(definition: Definition, address: Address) -> None:
    """Raises SourceDenied when another system manages the machine and the resource does not allow it."""
    if definition.managed_by is not None and not address.foreign:
        raise SourceDenied(
            reason=f"The machine {definition.name} is managed by {definition.managed_by}: checkpoints made behind its "
            "back break it. Protect it through that system, or register it with foreign=yes in its address."
        )


def find_disks(domain: Domain, definition: Definition) -> Pairs:
    return [
        (
            Disk(
                id=disk_id(definition.uuid, item.device),
                name=item.device,
                size_bytes=call(f"look at the disk {item.device}", domain.blockInfo, item.device)[0],
                is_boot=item.device == definition.boot_device,
                place=item.place,
            ),
            item,
        )
        for item in definition.disks
    ]


def chosen_disks(found: Pairs, wanted: MachineWanted) -> tuple[Pairs, Pairs]:
    taken: Pairs = []
    left_out: Pairs = []
    for pair in found:
        inside = wanted.included is None or pair[0].id in wanted.included
        (taken if inside and pair[0].id not in wanted.excluded else left_out).append(pair)
    if not taken:
        raise SourceError(reason="No disk of the machine is left to be backed up. Look at the included disks.")
    return taken, left_out


def facts_of(domain: Domain, definition: Definition, taken: Pairs) -> Mapping[str, object]:
    return {
        "hypervisor": "libvirt",
        "name": definition.name,
        "uuid": definition.uuid,
        "power": power_of(domain),
        "firmware": definition.firmware,
        "nics": [dict(nic) for nic in definition.nics],
        "disks": [
            {"device": item.device, "kind": item.kind, "format": item.format, "size_bytes": disk.size_bytes}
            for disk, item in taken
        ],
    }


def stored_xml(domain: Domain) -> str:
    """As it would be defined again; of a machine that is only running, as it runs."""
    flags = library().VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
    return call("read the machine's definition", domain.XMLDesc, flags)


def power_of(domain: Domain) -> Power:
    lib = library()
    state = call("ask for the machine's state", domain.state)[0]
    if state in (lib.VIR_DOMAIN_PAUSED, lib.VIR_DOMAIN_PMSUSPENDED):
        return "paused"
    return "running" if domain.isActive() else "off"
