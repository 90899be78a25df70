"""The header of a qcow2 image, read by ourselves before any tool may open it.

An image can name other files: a backing file, an external data file. Whoever made it could name /etc/shadow and find it
in his backup. So what names another file, is encrypted or unknown is refused here, and tools are told `backing: null`.

    offset  0 magic "QFI\\xfb"   4 version      8 backing file: offset, length   20 cluster bits   24 size
           32 encryption        36 L1 ...      60 internal snapshots
           72 incompatible features (version 3 only), and others                 100 header length
"""

import os
import struct
from dataclasses import dataclass

from strongroom.base.errors import SourceError
from strongroom.base.units import TIB
from strongroom.sources.oserrors import shown

MAGIC = b"QFI\xfb"
SIZE_BYTES_MAX = 64 * TIB  # what a header says costs nothing to say, and a disk is asked about to its end
CLUSTER_BITS_MIN, CLUSTER_BITS_MAX = 9, 21  # as QEMU has it: 512 bytes to 2 MiB

_OLD = struct.Struct(">4sIQIIQIIQQIIQ")
_NEW = struct.Struct(">QQQII")  # follows it from version 3 on
_CORRUPT, _DATA_FILE = 1 << 1, 1 << 2
_KNOWN = 0b11111  # dirty, corrupt, data file, compression type, extended L2


@dataclass(frozen=True, kw_only=True)
class Qcow2Header:
    """size_bytes: of the disk. bitmaps: its version can hold persistent bitmaps."""

    size_bytes: int
    cluster_bytes: int
    bitmaps: bool


def is_qcow2(fd: int) -> bool:
    return os.pread(fd, len(MAGIC), 0) == MAGIC


def load_header(fd: int, path: bytes) -> Qcow2Header:
    """Raises SourceError for what is no image of its own; OSError. `path` is for the sentence."""
    return parse_header(os.pread(fd, _OLD.size + _NEW.size, 0), path)


def parse_header(raw: bytes, path: bytes) -> Qcow2Header:
    """Raises SourceError with the reason."""
    if len(raw) < _OLD.size or raw[:4] != MAGIC:
        raise _refused(path, "it is no qcow2 image", "Check the file.")
    _, version, backing, backing_length, cluster_bits, size, crypt, *_ = _OLD.unpack_from(raw)
    if version not in (2, 3):
        raise _refused(path, f"version {version} of the format is not known", "Convert it with qemu-img convert.")
    incompatible = 0
    if version == 3:
        if len(raw) < _OLD.size + _NEW.size:
            raise _refused(path, "its header is cut off", "Check it with qemu-img check.")
        incompatible = _NEW.unpack_from(raw, _OLD.size)[0]
    if backing or backing_length:
        raise _refused(
            path,
            "it only holds what differs from a backing file",
            "Register the machine that uses it, or make it stand alone with qemu-img convert or rebase.",
        )
    if crypt:
        raise _refused(path, "it is encrypted by QEMU", "Register the machine that uses it.")
    if incompatible & _DATA_FILE:
        raise _refused(path, "its data lies in another file", "Register the machine that uses it.")
    if incompatible & _CORRUPT:
        raise _refused(path, "QEMU marked it as corrupt", "Repair it with qemu-img check -r all.")
    if incompatible & ~_KNOWN:
        raise _refused(path, f"it has unknown features ({incompatible:#x})", "Convert it with qemu-img convert.")
    if not CLUSTER_BITS_MIN <= cluster_bits <= CLUSTER_BITS_MAX or not 0 < size <= SIZE_BYTES_MAX:
        raise _refused(
            path, f"it says it has {size} bytes in clusters of 2^{cluster_bits}", "Check it with qemu-img check."
        )
    return Qcow2Header(size_bytes=-(-size // 512) * 512, cluster_bytes=1 << cluster_bits, bitmaps=version == 3)


def _refused(path: bytes, why: str, remedy: str) -> SourceError:
    return SourceError(reason=f"{shown(path)} cannot be read as a disk: {why}. {remedy}")
