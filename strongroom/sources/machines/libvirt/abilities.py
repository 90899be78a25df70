"""What will work at the next backup of a domain, as `source check` shows it. Looks only."""

from collections.abc import Callable

from strongroom.base.errors import SourceError
from strongroom.base.units import human_bytes
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import PREFIX, Ability, MachineInspection, Power
from strongroom.sources.machines.libvirt import chain, job, scratch
from strongroom.sources.machines.libvirt.binding import Address, Connection, Domain, call
from strongroom.sources.machines.libvirt.definition import Definition, read_definition
from strongroom.sources.machines.libvirt.domain import Pairs, find_disks, power_of, require_own, require_version
from strongroom.sources.machines.libvirt.offline import image_info

_NEEDED = frozenset({"libvirt", "own", "idle", "disks", "scratch"})  # without one of these no backup starts


def inspect_domain(connection: Connection, domain: Domain, ref: SourceRef, address: Address) -> MachineInspection:
    definition = read_definition(call("read the machine's definition", domain.XMLDesc))
    power = power_of(domain)
    found = find_disks(domain, definition)
    abilities = [
        _ability(
            "libvirt", lambda: require_version(connection, definition), "It makes checkpoints and gives disks over NBD."
        ),
        _ability("own", lambda: require_own(definition, address), "No other system manages the machine."),
        _job_ability(domain),
        *_disk_abilities(found, power),
        _consistency(definition, power),
    ]
    if power != "off":
        abilities.append(_scratch(found, address))
    obstacle = next((ability.reason for ability in abilities if ability.name in _NEEDED and not ability.works), None)
    return MachineInspection(
        exists=True,
        readable=obstacle is None,
        disks=tuple(disk for disk, _ in found),
        power=power,
        reason=obstacle,
        abilities=tuple(abilities),
        detail={"uuid": definition.uuid, "firmware": definition.firmware, "managed_by": definition.managed_by},
    )


def _ability(name: str, check: Callable[[], object], reason: str) -> Ability:
    try:
        check()
    except SourceError as err:
        return Ability(name=name, works=False, reason=err.message)
    return Ability(name=name, works=True, reason=reason)


def _job_ability(domain: Domain) -> Ability:
    found = job.running_job(domain, PREFIX)
    if found == "ours":
        return Ability(name="idle", works=True, reason="A backup of ours is being made of it just now.")
    if found is None:
        return Ability(name="idle", works=True, reason="No other program works on the machine.")
    return Ability(name="idle", works=False, reason=f"It has {found} of another program running.")


def _disk_abilities(found: Pairs, power: Power) -> list[Ability]:
    whole = [f"{disk.name} ({item.format})" for disk, item in found if item.format not in chain.BITMAP_FORMATS]
    reason = "Every disk's image keeps a list of changed blocks."
    if whole:
        reason = f"Read whole each time, as their images keep no list of changed blocks: {', '.join(whole)}."
    disks = Ability(name="disks", works=bool(found), reason=f"{len(found)} disks in one consistent point.")
    if not found:
        disks = Ability(name="disks", works=False, reason="The machine has no disk of its own.")
    if power == "off":
        disks = _ability("disks", lambda: [image_info(item) for _, item in found], disks.reason) if found else disks
    return [disks, Ability(name="incremental", works=not whole and bool(found), reason=reason)]


def _consistency(definition: Definition, power: Power) -> Ability:
    if power == "off":
        return Ability(name="consistency", works=True, reason="The machine is off; its images stand still.")
    if definition.agent and power == "running":
        return Ability(name="consistency", works=True, reason="The guest's agent holds the file systems still.")
    why = "its agent is not connected" if definition.agent is not None else "it has no channel for an agent"
    reason = f"As after a power cut: {why}. Install qemu-guest-agent in the guest, with its channel in the machine."
    return Ability(name="consistency", works=False, reason=reason)


def _scratch(found: Pairs, address: Address) -> Ability:
    base = scratch.scratch_base([item for _, item in found], address.scratch)
    needed = scratch.needed_bytes([(item, disk.size_bytes) for disk, item in found])
    free = scratch.room_in(base)
    place = scratch.Scratch(base, needed)
    if free is None:
        return Ability(name="scratch", works=False, reason=f"The folder {base} for scratch images is not there.")
    return Ability(
        name="scratch",
        works=free >= needed + place.reserve_bytes,
        reason=f"{human_bytes(free)} free in {base}; up to {human_bytes(needed)} are needed while it is read, and "
        f"{human_bytes(place.reserve_bytes)} stay free.",
    )
