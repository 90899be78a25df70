"""libvirt's backup job of a domain: beginning it, whose it is, ending it; and the checkpoints it leaves.

begin    one transaction of QEMU over all disks: a new bitmap in each image, the old state readable over NBD
ours     a job whose exports have our prefix; any other is somebody else's and stays
end      abortJob, which is the normal end of a pull; a checkpoint stays until it is deleted
"""

import time
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree as etree

from strongroom.base.errors import MachineBusy, SourceError
from strongroom.sources.machines.libvirt.binding import Checkpoint, Domain, call, error_code, library
from strongroom.sources.machines.libvirt.chain import DiskRead
from strongroom.sources.machines.libvirt.definition import parse_xml
from strongroom.sources.machines.libvirt.scratch import Scratch

JOB_END_S = 30.0
_LOOK_AGAIN_S = 0.02


def running_job(domain: Domain, prefix: str) -> str | None:
    """None: there is no job. "ours", or the kind of somebody else's for a sentence. Raises SourceError."""
    lib = library()
    if not domain.isActive() or call("ask for its job", domain.jobInfo)[0] == lib.VIR_DOMAIN_JOB_NONE:
        return None
    try:
        text = domain.backupGetXMLDesc()
    except lib.libvirtError:
        return "a job (migration, saving or the like)"
    names = [disk.get("exportname", "") for disk in parse_xml(text).iterfind("./disks/disk")]
    return "ours" if any(name.startswith(prefix) for name in names) else "a backup job"


def require_no_job(domain: Domain, prefix: str) -> None:
    """Ends what a dead attempt of ours left. Raises MachineBusy when somebody else works on the machine."""
    found = running_job(domain, prefix)
    if found == "ours":
        end_job(domain)
    elif found is not None:
        raise MachineBusy(
            reason=f"The machine {domain.name()} has {found} of another program running. Wait for its end, or end it "
            f"with `virsh domjobabort {domain.name()}`; then run the backup again."
        )


def end_job(domain: Domain) -> None:
    """Idempotent; on return there is none. Raises SourceError."""
    lib = library()
    give_up_s = time.monotonic() + JOB_END_S
    asked = False
    while domain.isActive() and call("ask for the machine's job", domain.jobInfo)[0] != lib.VIR_DOMAIN_JOB_NONE:
        if not asked:
            asked = True
            try:
                domain.abortJob()
            except lib.libvirtError as err:
                if err.get_error_code() != lib.VIR_ERR_OPERATION_INVALID:  # it has ended meanwhile
                    raise SourceError(reason="libvirt could not end the backup job.", detail=str(err)) from err
        if time.monotonic() > give_up_s:
            raise SourceError(reason=f"libvirt did not end the backup job in {JOB_END_S:.0f} s. Look at its log.")
        time.sleep(_LOOK_AGAIN_S)


def begin_job(domain: Domain, name: str, reads: Sequence[DiskRead], left_out: Iterable[str], scratch: Scratch) -> None:
    """Open the point and make its checkpoint. Raises BitmapBroken, MachineBusy, SourceError; then nothing was begun."""
    lib = library()
    others = list(left_out)
    keeps = any(read.keeps_bitmap for read in reads)
    try:
        call(
            "begin a backup",
            domain.backupBegin,
            _backup_xml(name, reads, others, scratch),
            _checkpoint_xml(name, reads, others) if keeps else None,
        )
    except SourceError as err:
        code = error_code(err)
        if code == lib.VIR_ERR_CHECKPOINT_INCONSISTENT:
            text = str(err.__cause__)
            incremental = [read.disk.name for read in reads if read.parent is not None]
            named = [device for device in incremental if f"'{device}'" in text]
            raise BitmapBroken(tuple(named or incremental)) from err
        if code in (lib.VIR_ERR_OPERATION_TIMEOUT, lib.VIR_ERR_BLOCK_COPY_ACTIVE):
            raise MachineBusy(
                reason="The machine is busy with a job of another program (a snapshot, a copy, a migration). "
                "Run the backup again when that has ended.",
                detail=err.detail,
            ) from err
        raise


class BitmapBroken(Exception):
    """devices: those whose bitmap is missing or cannot be trusted, as after QEMU was killed. Nothing was begun."""

    def __init__(self, devices: tuple[str, ...]) -> None:
        super().__init__(devices)
        self.devices = devices


def export_name(name: str, device: str) -> str:
    return f"{name}.{device}"


def checkpoints_of(domain: Domain) -> dict[str, Checkpoint]:
    """By name. Raises SourceError."""
    return {found.getName(): found for found in call("list the machine's checkpoints", domain.listAllCheckpoints)}


def delete_checkpoints(domain: Domain, names: Iterable[str]) -> list[str]:
    """With their bitmaps where those can be had, else what libvirt knows of them; returns those that stay.

    libvirt deletes none of a machine that is off: the next point does."""
    lib = library()
    there = checkpoints_of(domain)
    left = []
    for name in names:
        if name not in there:
            continue
        try:
            there[name].delete(0)
        except lib.libvirtError:
            if not domain.isActive():
                left.append(name)
                continue
            try:
                there[name].delete(lib.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
            except lib.libvirtError:
                left.append(name)
    return left


def _backup_xml(name: str, reads: Sequence[DiskRead], left_out: Sequence[str], scratch: Scratch) -> str:
    root = etree.Element("domainbackup", {"mode": "pull"})
    etree.SubElement(root, "server", {"transport": "unix", "socket": scratch.socket})
    disks = etree.SubElement(root, "disks")
    for read in reads:
        device = read.disk.name
        export = export_name(name, device)
        attributes = {"name": device, "backup": "yes", "type": "file", "exportname": export, "backupmode": "full"}
        if read.parent is not None:
            attributes |= {"backupmode": "incremental", "incremental": read.parent, "exportbitmap": export}
        element = etree.SubElement(disks, "disk", attributes)
        etree.SubElement(element, "scratch", {"file": f"{scratch.path}/{device}"})
    for device in left_out:
        etree.SubElement(disks, "disk", {"name": device, "backup": "no"})
    return etree.tostring(root, encoding="unicode")


def _checkpoint_xml(name: str, reads: Sequence[DiskRead], left_out: Sequence[str]) -> str:
    root = etree.Element("domaincheckpoint")
    etree.SubElement(root, "name").text = name
    disks = etree.SubElement(root, "disks")
    for read in reads:
        kind = "bitmap" if read.keeps_bitmap else "no"
        etree.SubElement(disks, "disk", {"name": read.disk.name, "checkpoint": kind})
    for device in left_out:
        etree.SubElement(disks, "disk", {"name": device, "checkpoint": "no"})
    return etree.tostring(root, encoding="unicode")
