"""What will work at the next backup of a folder or disk, told before the first one; for `source check`.

Looks, and changes nothing: the same choice as a point makes, without its snapshot.
"""

import os
import stat

from strongroom.base.errors import SourceError
from strongroom.sources.base import SourceRef
from strongroom.sources.disk import open_image
from strongroom.sources.machines.base import Ability
from strongroom.sources.oserrors import source_error
from strongroom.sources.qcow2_header import is_qcow2, load_header
from strongroom.sources.qemu_tools import is_written
from strongroom.sources.snapshots.base import Chosen
from strongroom.sources.snapshots.choose import choose_for_device, choose_for_folder, choose_for_image
from strongroom.sources.snapshots.rbd import SCHEME, image_facts, parse_address
from strongroom.sources.tools import tool

BY_TIMES = "Files whose inode, size or change time differs are read."
BY_SNAPSHOTS = "Only blocks that differ from the snapshot of the last backup are read."
BY_BITMAPS = "Only blocks that its bitmap names are read, unless QEMU was killed since the last backup."
FAST = {"object-map", "fast-diff"}


_CINDER = (
    Ability(name="consistency", works=True, reason="A forced snapshot is read through a volume that is made of it."),
    Ability(name="incremental", works=False, reason="Cinder keeps no list of changed blocks: all is read each time."),
)


def host_abilities(*, restores: bool) -> tuple[Ability, ...]:
    """Of a host whose agent answers. restores: what its own file says now."""
    switch = (
        "The host's own agent.toml allows it."
        if restores
        else ("The host has no agent.toml that says `restore = true`: nothing is written there (docs/AGENT.md).")
    )
    return (
        Ability(name="consistency", works=False, reason="Files are read as they are, each looked at again afterwards."),
        Ability(name="incremental", works=True, reason=BY_TIMES),
        Ability(name="restore", works=restores, reason=switch),
    )


def abilities(ref: SourceRef) -> tuple[Ability, ...]:
    """Of a folder or a disk that can be read: "consistency" and "incremental", each with its reason.

    Raises nothing: what cannot be looked at can do nothing, and the reason says why.
    """
    try:
        if ref.type == "OS::Sfs::Turbo":
            chosen = choose_for_folder(ref.path, one_file_system=ref.options.one_file_system)
            return _consistency(chosen), Ability(name="incremental", works=True, reason=BY_TIMES)
        if ref.path.startswith(SCHEME):
            return _rbd(ref.path)
        if ref.path.startswith(b"cinder:"):
            return _CINDER
        if stat.S_ISBLK(os.stat(ref.path).st_mode):
            return _told(choose_for_device(ref.path), "The device keeps no list of changed blocks.")
        return _image(ref.path)
    except SourceError as err:
        return (Ability(name="readable", works=False, reason=err.message),)
    except OSError as err:
        return (Ability(name="readable", works=False, reason=source_error(err, ref.path, "look at").message),)


def _consistency(chosen: Chosen) -> Ability:
    return Ability(name="consistency", works=chosen.provider is not None, reason=chosen.reason)


def _told(chosen: Chosen, otherwise: str) -> tuple[Ability, ...]:
    """What a provider gives; `otherwise` is why there are no increments without one."""
    provider = chosen.provider
    if provider is not None and provider.keeps_parent:
        incremental = Ability(name="incremental", works=True, reason=BY_SNAPSHOTS)
    elif provider is not None:
        reason = f"Snapshots of {provider.name} do not tell which blocks changed: all of the disk is read each time."
        incremental = Ability(name="incremental", works=False, reason=reason)
    else:
        incremental = Ability(name="incremental", works=False, reason=f"{otherwise} All of it is read each time.")
    return _consistency(chosen), incremental


def _image(path: bytes) -> tuple[Ability, ...]:
    fd = open_image(path)
    try:
        chosen = choose_for_image(path)
        if not is_qcow2(fd):
            return _told(chosen, "An image file keeps no list of changed blocks, only its times.")
        header = load_header(fd, path)
        for name in ("qemu-nbd", "qemu-img"):
            tool(name)
        in_use = is_written(fd)
        if in_use and chosen.provider is None:
            reason = "A machine has the image open, and it cannot be copied in one moment: register the machine."
            return (Ability(name="readable", works=False, reason=reason),)
        if in_use:
            reason = "A machine has the image open: all of it is read. Register the machine to read only what changed."
        else:
            reason = BY_BITMAPS if header.bitmaps else "Version 2 of the format keeps no list of changed blocks."
        incremental = Ability(name="incremental", works=header.bitmaps and not in_use, reason=reason)
        consistency = Ability(
            name="consistency",
            works=True,
            reason=chosen.reason if chosen.provider else "The image is locked while it is read: no machine can start.",
        )
        return consistency, incremental
    finally:
        os.close(fd)


def _rbd(path: bytes) -> tuple[Ability, ...]:
    facts = image_facts(parse_address(path))
    tool("qemu-nbd")
    missing = sorted(FAST - set(facts.get("features", [])))
    slow = f" Turn on {' and '.join(missing)}: finding them takes long without." if missing else ""
    return (
        Ability(name="consistency", works=True, reason="A snapshot of the image is read: all of it is of one moment."),
        Ability(name="incremental", works=True, reason=BY_SNAPSHOTS + slow),
    )
