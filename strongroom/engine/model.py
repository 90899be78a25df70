"""Values that cross the border of the engine, and the limits of the format.

Nothing here does work. A repository belongs to one domain (keys and dedup); a root is one committed backup of a stream.
The engine knows no tenant, no HTTP and no SQL: `labels` is a map that it stores and gives back unread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from strongroom.base.streams import Entry, Path, Skipped
from strongroom.base.units import KIB, MIB

StreamKind = Literal["tree", "block"]
SessionKind = Literal["backup", "restore", "verify", "copy", "mount", "prune"]
Labels = Mapping[str, object]

LABELS_BYTES_MAX = 16 * KIB  # RULINGS 12: they describe a backup, they do not hold one
REPORT_PATHS_MAX = 1000  # paths named in a report; the counts are exact
BLOCK_BYTES = 64 * KIB  # the unit of images; equal to the granularity of QEMU's dirty bitmaps
SMALL_FILE_BYTES = 128 * KIB  # up to here a file is one chunk: cutting it saves nothing
CHUNK_BYTES_MIN, CHUNK_BYTES_AVG, CHUNK_BYTES_MAX = 32 * KIB, 128 * KIB, 512 * KIB
SEGMENT_BYTES_MAX = 4 * MIB  # the unit of compression: 2 MiB costs 8 % of size, 8 MiB brings nothing
METADATA_SEGMENT_BYTES_MAX = 1 * MIB  # who looks for one folder reads a segment for each step of the way
PACK_BYTES = 32 * MIB  # a pack is closed when it reaches this
DEFAULT_LEVEL = 3  # RULINGS 13: one level per domain, so that size does not depend on load


@dataclass(frozen=True, kw_only=True)
class DomainSettings:
    """Fixed when a domain is made. level: zstd, 1 fast or 3 dense."""

    level: int = DEFAULT_LEVEL


@dataclass(frozen=True, kw_only=True)
class ChangedBlocks:
    """What a changed-block tracker says changed since a backup.

    base     name of the root it counts from; None: trust the caller that it is the newest one
    size     bytes of the device; another size than now makes the list worthless; None: not told
    extents  (offset, length) in bytes, any order
    """

    base: str | None
    size: int | None
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class BackupRequest:
    """One attempt of one backup.

    backup_id       letters, digits and dashes, at most 64
    generation      the fencing number of the task
    parent          name of the root to compare with; None: a first backup
    full            trust no parent: read and hash everything (RULINGS 14)
    labels          msgpack-able map, at most 16 KiB packed
    changed_blocks  for an image inside a tree; a BlockStream brings its own SAME extents
    """

    backup_id: str
    generation: int
    parent: str | None = None
    full: bool = False
    labels: Labels = field(default_factory=dict)
    changed_blocks: ChangedBlocks | None = None


@dataclass(frozen=True, kw_only=True)
class BackupReport:
    """What a backup did; stored in its root, so that an adopted root reports the same.

    bytes_total   logical size of the stream          bytes_new     raw bytes of chunks not known before
    bytes_read    bytes read from the source          bytes_stored  sealed bytes this run added, metadata included
    changed_while_read, skipped  name at most REPORT_PATHS_MAX; the *_count fields are exact
    full_reason   why a parent or a changed-block list was not used; None when it was, or none was given
    """

    root: str
    bytes_total: int = 0
    bytes_read: int = 0
    bytes_new: int = 0
    bytes_stored: int = 0
    entries: int = 0
    folders: int = 0
    changed_while_read: tuple[Path, ...] = ()
    changed_while_read_count: int = 0
    skipped: tuple[Skipped, ...] = ()
    skipped_count: int = 0
    vanished: int = 0
    full_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class RestoreReport:
    """bytes written (holes not counted), entries made, and sentences about what could not be kept.

    lost  what a restore around damage left out, at most REPORT_PATHS_MAX; lost_count is exact
    """

    bytes: int
    entries: int
    warnings: tuple[str, ...] = ()
    lost: tuple[Skipped, ...] = ()
    lost_count: int = 0


@dataclass(frozen=True, kw_only=True)
class Root:
    """One committed backup.

    name       `<backup id>.<generation>`, the last part of its object name
    parent     name of the root it was compared with, None for a full pass
    size       bytes of a block stream; for a tree the sum of its files
    report     what the backup reported when it was made
    """

    name: str
    backup_id: str
    generation: int
    kind: StreamKind
    created_at: datetime
    parent: str | None
    size: int
    labels: Labels
    report: BackupReport
    body: "RootBody"


class RootBody(NamedTuple):
    """What only the engine reads: where the stream's chunks are, and what the next run may trust.

    tree   a stream index (level, rows) and the root folder's own (entry, attributes)
    block  a content (layout, level, rows)
    """

    stream: tuple[object, ...]
    folder: tuple[object, ...] | None
    unchanged_before_ns: int
    index_number: int


@dataclass(frozen=True, kw_only=True)
class BrowsedEntry:
    """One name of a folder inside a restore point. kind: folder, file, link or other; target only of links.

    doubtful: it changed while it was read, so the content may be of no single moment.
    """

    name: bytes
    kind: Literal["folder", "file", "link", "other"]
    entry: Entry
    target: bytes = b""
    doubtful: bool = False


class Sessions(Protocol):
    """Who reads or writes, and which index number each one pins (RULINGS 9). Implemented by the service with rows."""

    def open(self, kind: SessionKind, index_number: int) -> str:
        """Pin `index_number`; MUST be visible to `oldest_pinned` of every process on return. Gives a token."""
        ...

    def close(self, token: str) -> None:
        """Give the pin back. Idempotent."""
        ...

    def oldest_pinned(self) -> int | None:
        """The smallest number anybody pins; None when nobody does."""
        ...
