"""What a snapshot provider is, and how a point uses one in two phases.

A provider knows one kind of storage (reflinks, btrfs, LVM, ...). A **volume** is what it takes a snapshot of: the path
of an image file, of a block device or of a folder. Names of snapshots carry the resource, so that what a dead process
left is found by them and nobody takes another one's:

    strongroom.<resource id>.<moment in hex>

Where changed blocks can be told, the snapshot of the last committed point is kept beside the volume until the next
point is committed; nothing else is needed to tell what changed. Losing it costs one whole read, never a wrong backup.

    open    create N; changed(P -> N)      kept: P N      died here: the next point releases N, P is still the parent
    commit  the backup stands: release P   kept:   N      died before: the next point releases P
    abort   it does not: release N         kept: P
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, Protocol

from strongroom.base.errors import SourceError

PREFIX = "strongroom."  # of every name of ours at a storage
RANGES_MAX = 1 << 20  # of changed blocks that are kept in memory: 100 MB; more than that is a disk to be read whole

Consistency = Literal["crash_consistent", "filesystem_consistent"]
Ranges = Sequence[tuple[int, int]]


class Changes(NamedTuple):
    """What changed between two snapshots.

    ranges  sorted (offset, length) in bytes, joined; None: not known, and `reason` is a sentence for the tenant
    """

    ranges: Ranges | None
    reason: str | None = None


class Parent(NamedTuple):
    """The snapshot of the last committed point, as its token keeps it.

    mark  tells that it is still the very same: inode and change time, or the storage's own number of it
    """

    name: str
    mark: str


class Snapshot(Protocol):
    """One snapshot that this process made.

    name, mark   as the token keeps them
    path         what is to be read: a file, a block device, a folder
    consistency  what reading it gives
    """

    name: str
    mark: str
    path: bytes
    consistency: Consistency

    def close(self) -> None:
        """Let go of what this process holds open; the snapshot stays. Idempotent."""
        ...


class SnapshotProvider(Protocol):
    """One kind of storage. Stateless."""

    @property
    def name(self) -> str:
        """For people: "btrfs", "LVM thin"."""
        ...

    @property
    def keeps_parent(self) -> bool:
        """Whether `changed` may know something, so that a committed snapshot is kept until the next one is."""
        ...

    def create(self, volume: bytes, name: str) -> Snapshot:
        """Raises SourceError with a sentence; nothing is left behind then."""
        ...

    def changed(self, volume: bytes, parent: Parent, now: Snapshot) -> Changes:
        """MUST NOT name fewer blocks than changed since `parent`. Raises SourceError."""
        ...

    def verify(self, volume: bytes, now: Snapshot) -> None:
        """After the reading: raises SourceError when the snapshot broke meanwhile (it had no room left, for one)."""
        ...

    def release(self, volume: bytes, name: str) -> None:
        """Remove a snapshot; one that is gone is fine. Raises SourceError when it is in use or cannot be removed."""
        ...

    def names(self, volume: bytes, prefix: str) -> list[str]:
        """Snapshots of this volume whose names begin so, those that a living process reads left out."""
        ...


class Chosen(NamedTuple):
    """The provider for a volume, None when there is none; `reason` tells which one and why."""

    provider: SnapshotProvider | None
    reason: str


def own_prefix(resource_id: str) -> str:
    """Of all snapshots of one resource."""
    plain = "".join(letter for letter in resource_id.lower() if letter.isalnum())[:64]
    return f"{PREFIX}{plain}."


def snapshot_name(resource_id: str, taken_at_ns: int) -> str:
    return f"{own_prefix(resource_id)}{taken_at_ns:x}"


def snapshot_of(token: Mapping[str, object] | None, provider: SnapshotProvider) -> Parent | None:
    """The snapshot that a parent's token names, if it is one of this provider."""
    if token is None or token.get("provider") != provider.name:
        return None
    name, mark = token.get("snapshot"), token.get("mark")
    return Parent(name, mark) if isinstance(name, str) and isinstance(mark, str) else None


def snapshot_values(provider: SnapshotProvider, snapshot: Snapshot) -> dict[str, str]:
    """What a token keeps of a snapshot; nothing when the snapshot goes with its point."""
    if not provider.keeps_parent:
        return {}
    return {"provider": provider.name, "snapshot": snapshot.name, "mark": snapshot.mark}


class Hold:
    """The snapshot of one point and that of its parent. `changes` is what differs between them."""

    def __init__(
        self, provider: SnapshotProvider, volume: bytes, resource_id: str, taken_at_ns: int, parent: Parent | None
    ) -> None:
        self.name = provider.name
        self._provider = provider
        self._volume = volume
        prefix = own_prefix(resource_id)
        if parent is not None and not parent.name.startswith(prefix):
            parent = None  # a token of somebody else: his snapshot is not ours to read or to release
        self._parent = parent.name if parent else None
        release_leftovers(provider, volume, resource_id, keep=self._parent)
        self.snapshot = provider.create(volume, snapshot_name(resource_id, taken_at_ns))
        self._open = True
        try:
            if parent is None:
                self.changes = Changes(None, "There is no snapshot of an earlier backup to compare with.")
            elif provider.keeps_parent:
                self.changes = provider.changed(volume, parent, self.snapshot)
            else:
                self.changes = Changes(None, f"Snapshots of {provider.name} do not tell which blocks changed.")
        except BaseException:
            self.abort()
            raise

    def verify(self) -> None:
        """The snapshot held until now. Raises SourceError when it did not."""
        if self._open:
            self._provider.verify(self._volume, self.snapshot)

    def commit(self) -> None:
        """The backup stands: this snapshot is the parent of the next one, the old parent goes."""
        if self._open:
            self._end(self._parent if self._provider.keeps_parent else self.snapshot.name)

    def abort(self) -> None:
        """It does not: this snapshot goes, the parent stays."""
        if self._open:
            self._end(self.snapshot.name)

    def _end(self, name: str | None) -> None:
        self._open = False
        self.snapshot.close()
        if name is not None:
            with suppress(SourceError):  # the next point of the resource releases what stays
                self._provider.release(self._volume, name)


def release_leftovers(
    provider: SnapshotProvider, volume: bytes, resource_id: str, *, keep: str | None
) -> tuple[str, ...]:
    """Release what dead processes left of one resource; names of what went. What cannot go now goes the next time."""
    gone = []
    try:
        names = provider.names(volume, own_prefix(resource_id))
    except SourceError:
        return ()  # what cannot be listed cannot be read either: `create` tells why
    for name in names:
        if name == keep:
            continue
        with suppress(SourceError):
            provider.release(volume, name)
            gone.append(name)
    return tuple(gone)
