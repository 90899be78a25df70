"""The mount table: which file system something is on, and what is mounted below a folder."""

import os
import re
from dataclasses import dataclass

MOUNTINFO_BYTES_MAX = 16 << 20  # hosts with very many containers have thousands of lines

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, kw_only=True)
class Mount:
    """point: absolute path; device: "major:minor"; kind: "ext4", "nfs4", ...; root: the part that is mounted there.

    source: what is mounted as the file system calls it, such as a ZFS dataset.
    """

    point: bytes
    device: str
    kind: str
    root: bytes = b"/"
    source: bytes = b""


def load_mounts() -> tuple[Mount, ...]:
    """All mounts this process sees, later ones last. Raises OSError without /proc."""
    with open("/proc/self/mountinfo", "rb") as table:
        lines = table.read(MOUNTINFO_BYTES_MAX).splitlines()
    mounts = []
    for line in lines:
        left, _, right = line.partition(b" - ")
        fields, kinds = left.split(b" "), right.split(b" ")
        if len(fields) < 5:
            continue
        root, point = (_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field) for field in fields[3:5])
        kind = kinds[0].decode("ascii", "replace")
        source = _ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), kinds[1]) if len(kinds) > 1 else b""
        mounts.append(Mount(point=point, device=fields[2].decode(), kind=kind, root=root, source=source))
    return tuple(mounts)


def mount_of(path: bytes, mounts: tuple[Mount, ...]) -> Mount | None:
    """The mount that holds the real path `path`: the longest point above it, the newest of equals."""
    best = None
    for mount in mounts:
        if _is_below(path, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def mounts_at_or_below(path: bytes, mounts: tuple[Mount, ...]) -> tuple[bytes, ...]:
    """Mount points at the real path `path` or inside of it."""
    return tuple(sorted({mount.point for mount in mounts if _is_below(mount.point, path)}))


def mounted_below(fd: int) -> bytes | None:
    """A mount point inside of an open folder, not the folder itself; None: there is none."""
    path = real_path(fd)
    return next((point for point in mounts_at_or_below(path, load_mounts()) if point != path), None)


def real_path(fd: int) -> bytes:
    """The path the kernel knows an open folder by."""
    return os.readlink(b"/proc/self/fd/%d" % fd)


def file_system(fd: int) -> str:
    """The kind of file system an open file or folder is on, such as "ext4"; "unknown" without a mount table."""
    try:
        mount = mount_of(real_path(fd), load_mounts())
    except OSError:
        return "unknown"
    return mount.kind if mount else "unknown"


def _is_below(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")
