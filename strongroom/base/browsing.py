"""What browsing a restore point shows; the request side and the job side share it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class EntryView:
    """One name inside a restore point.

    raw_path  relative to the restore point, `/` between names, exact bytes; b"" for the whole
    kind      file, folder, symlink, fifo, char-device, block-device or disk
    target    of a symbolic link, else b""
    """

    raw_path: bytes
    kind: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_at: datetime
    target: bytes
    changed_while_read: bool
