"""Which disk is read whole and which by its changes, and why. Pure.

A checkpoint of libvirt is a dirty bitmap of one name in each of its disks' images. The parent of a disk is the
checkpoint of its last COMMITTED backup, as its token says; what other attempts left is never a parent. A bitmap is a
hint: where anything speaks against it the disk is read whole.

    strongroom.RESOURCE.RANDOM      names of checkpoints and of exports, so that one resource touches only its own
"""

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from strongroom.sources.machines.base import PREFIX, Disk, MachineWanted
from strongroom.sources.machines.libvirt.definition import DiskDefinition

TOKEN_BYTES_MAX = 1024
BITMAP_FORMATS = ("qcow2",)  # others cannot keep a bitmap over a restart
_PLAIN = re.compile(r"[0-9A-Za-z-]{1,64}")
_KIND = "libvirt"


@dataclass(frozen=True, kw_only=True)
class Token:
    """checkpoint: "" where none could be made. size: bytes of the disk. machine: UUID of the domain."""

    machine: str
    checkpoint: str
    size: int


@dataclass(frozen=True, kw_only=True)
class DiskRead:
    """parent: the checkpoint whose changes are read, None: all, for `reason`. keeps_bitmap: its image can hold one."""

    disk: Disk
    definition: DiskDefinition
    parent: str | None
    reason: str | None
    keeps_bitmap: bool


def own_prefix(resource_id: str) -> str:
    """Of what is made for this resource, "strongroom.<resource>."."""
    plain = resource_id if _PLAIN.fullmatch(resource_id) else hashlib.sha256(resource_id.encode()).hexdigest()[:32]
    return f"{PREFIX}{plain}."


def new_name(resource_id: str) -> str:
    return own_prefix(resource_id) + secrets.token_hex(8)


def dump_token(token: Token) -> bytes:
    values = {"kind": _KIND, "machine": token.machine, "checkpoint": token.checkpoint, "size": token.size}
    return json.dumps(values, sort_keys=True).encode("ascii")


def load_token(raw: bytes | None) -> Token | None:
    """None for none, one of another driver, or one that cannot be read: then nothing is trusted."""
    if raw is None or len(raw) > TOKEN_BYTES_MAX:
        return None
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.get("kind") != _KIND:
        return None
    machine, checkpoint, size = (values.get(name) for name in ("machine", "checkpoint", "size"))
    if not isinstance(machine, str) or not isinstance(checkpoint, str) or type(size) is not int:
        return None
    return Token(machine=machine, checkpoint=checkpoint, size=size)


def plan_reads(
    machine_uuid: str,
    disks: Sequence[tuple[Disk, DiskDefinition]],
    wanted: MachineWanted,
    checkpoints: Collection[str],
    broken: Mapping[str, str],
) -> list[DiskRead]:
    """checkpoints: those that exist. broken: by device, why its parent must not be used although it is there."""
    planned = []
    for disk, definition in disks:
        token = load_token(wanted.parent_tokens.get(disk.id))
        reason = _full_reason(machine_uuid, disk, definition, wanted, token, checkpoints) or broken.get(disk.name)
        planned.append(
            DiskRead(
                disk=disk,
                definition=definition,
                parent=token.checkpoint if token is not None and reason is None else None,
                reason=reason,
                keeps_bitmap=definition.format in BITMAP_FORMATS,
            )
        )
    return planned


def _full_reason(
    machine_uuid: str,
    disk: Disk,
    definition: DiskDefinition,
    wanted: MachineWanted,
    token: Token | None,
    checkpoints: Collection[str],
) -> str | None:
    if wanted.full:
        return "A full backup was asked for."
    if disk.id not in wanted.parent_tokens:
        return "It is the first backup of this disk in the vault."
    if definition.format not in BITMAP_FORMATS:
        return f"The disk's image is of format {definition.format}, which keeps no list of changed blocks."
    if token is None or token.machine != machine_uuid:
        return "The last backup of this disk was made by another way, or of another machine."
    if not token.checkpoint:
        return "The last backup of this disk could not leave a checkpoint: the machine was off, or its image kept none."
    if token.size != disk.size_bytes:
        return "The disk had another size at the last backup."
    if token.checkpoint not in checkpoints:
        return "The checkpoint of the last backup is gone: it was deleted, or the machine was defined anew."
    return None


def orphans(prefix: str, checkpoints: Collection[str], tokens: Collection[bytes]) -> list[str]:
    """Checkpoints of ours that no committed backup stands on: left by attempts that ended half-way."""
    kept = {token.checkpoint for token in map(load_token, tokens) if token is not None}
    return sorted(name for name in checkpoints if name.startswith(prefix) and name not in kept)
