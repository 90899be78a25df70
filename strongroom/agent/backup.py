"""A backup at the host: walk ahead, read what is asked, offer ids, send the chunks that are new.

One thread, one loop. What the server said comes first, then files that it waits for, then the walk; when nothing of it
is to be done, it waits. Folders that were walked stay open until the server is done with them, at most FOLDERS_AHEAD.
"""

import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from blake3 import blake3

from strongroom.agent.cutting import Cut, Cutter
from strongroom.agent.hooks import run_hook
from strongroom.agent.host_tree import HostTree, Place, places_of
from strongroom.agent.policy import Policy
from strongroom.base.clock import Clock
from strongroom.base.errors import SourceError
from strongroom.base.streams import Entry
from strongroom.engine.chunker import DataChunker
from strongroom.engine.content import ROW
from strongroom.sources.base import SourceOptions
from strongroom.sources.files import OpenFolder
from strongroom.sources.hosts.channel import Channel
from strongroom.sources.hosts.messages import (
    BATCH_BYTES,
    CHUNKS_BYTES,
    PIECES_MAX,
    TEXT_MAX,
    BackupJob,
    Chunks,
    Commit,
    Done,
    FileEnd,
    Offer,
    Part,
    PointOpened,
    Read,
    Released,
    Walked,
    WalkedFolder,
    Want,
    from_server,
    pack,
    pack_entries,
    pack_folders,
    unpack_entries,
)
from strongroom.sources.hosts.messages import (
    Cut as CutBy,
)
from strongroom.sources.tokens import Values, dump_token, load_token

FOLDERS_AHEAD = 256  # each is an open descriptor
ENTRIES_AHEAD = 65_536
WALK_FOLDERS, WALK_ENTRIES = 64, 4096  # of one message; a folder's part has 4096 at most
OFFERS_AHEAD = 4  # of BATCH_BYTES each: what fills the way to the server and back
OFFER_PARTS = 512


@dataclass(kw_only=True)
class _Walked:
    """A folder until the server has released it. Its entries as they were sent: few of them are asked for again."""

    folder: OpenFolder
    listing: bytes
    count: int


@dataclass(kw_only=True)
class _Kept:
    """Chunks of an offer until the server has said which it wants."""

    chunks: list[bytes]  # b"" for holes


@dataclass(kw_only=True)
class _Batch:
    """What will be one offer."""

    parts: list[Part] = field(default_factory=list)
    rows: bytearray = field(default_factory=bytearray)
    chunks: list[bytes] = field(default_factory=list)
    bytes: int = 0

    @property
    def is_full(self) -> bool:
        return self.bytes >= BATCH_BYTES or len(self.chunks) >= PIECES_MAX or len(self.parts) >= OFFER_PARTS


def run_backup(channel: Channel, job: BackupJob, policy: Policy, clock: Clock) -> None:
    """One backup, to its commit. Raises SourceError, InvalidRequest, or what ended the session."""
    places = places_of(job.roots, job.patterns, policy)
    try:
        run_hook(policy, "before-backup", channel.require_open)
        options = SourceOptions(one_file_system=job.one_file_system, read_limit_bytes_s=job.read_limit_bytes_s)
        tree = HostTree(places, options, clock)
        try:
            channel.send(pack(_opened(tree, places, job)))
            _Backup(channel, tree).run()
        finally:
            tree.close()
    finally:
        warning = _after(policy)
    channel.send(pack(Done((warning,) if warning else ())))


def _opened(tree: HostTree, places: tuple[Place, ...], job: BackupJob) -> PointOpened:
    own = _identities(places)
    entry, attributes = tree.root()
    return PointOpened(
        token=dump_token("host", own),
        taken_at_ns=tree.taken_at_ns,
        unchanged_before_ns=tree.unchanged_before_ns,
        full_reason=_full_reason(own, job),
        metadata={
            "file_system": ", ".join(sorted(tree.file_systems)),
            "paths": len(places),
            "disks": tree.disk_reasons[:TEXT_MAX] or None,
        },
        root=entry,
        root_attributes=attributes,
    )


def _identities(places: tuple[Place, ...]) -> Values:
    """Which file or folder each path leads to, short enough for a token of 64 paths."""
    found: Values = {}
    for place in places:
        identity = blake3(b"%d:%d" % place.identity).digest(length=7)
        found[blake3(place.path).hexdigest(length=8)] = int.from_bytes(identity, "big")
    return found


def _full_reason(own: Values, job: BackupJob) -> str | None:
    if job.full:
        return "A full backup was asked for."
    if job.token is None:
        return "It is the first backup of this host in the vault."
    old = load_token("host", job.token)
    if old is None or any(path in old and old[path] != identity for path, identity in own.items()):
        return "A path leads to another folder or file system than at the last backup."
    return None


class _Backup:
    def __init__(self, channel: Channel, tree: HostTree) -> None:
        self._channel = channel
        self._walk: Iterator[OpenFolder] | None = tree.folders()
        self._number = 0  # of the next folder
        self._open: deque[_Walked] = deque()  # not released
        self._first_open = 0
        self._entries_open = 0
        self._cutter: Cutter | None = None
        self._epoch = 0
        self._reading: Iterator[None] | None = None
        self._batch = _Batch()
        self._offers: dict[int, _Kept] = {}
        self._offer = 0

    def run(self) -> None:
        """Until the server commits."""
        try:
            while True:
                payload = self._channel.take(0 if self._is_busy() else None)
                if payload is not None:
                    if self._hear(from_server(payload).head):
                        return
                elif self._reading is not None:
                    self._read_on()
                else:
                    self._walk_on()
        finally:
            for walked in self._open:
                walked.folder.close()

    def _is_busy(self) -> bool:
        if self._reading is not None:
            return len(self._offers) < OFFERS_AHEAD
        return self._walk is not None and len(self._open) < FOLDERS_AHEAD and self._entries_open < ENTRIES_AHEAD

    def _hear(self, head: Any) -> bool:
        """Do what a message says; True when the backup is committed."""
        if isinstance(head, CutBy):
            self._cutter = Cutter(DataChunker(head.key, head.seed))
        elif isinstance(head, Released):
            while self._open and self._first_open < head.number:
                walked = self._open.popleft()
                self._entries_open -= walked.count
                self._first_open += 1
                walked.folder.close()
        elif isinstance(head, Read):
            at = head.number - self._first_open
            if (
                self._cutter is None
                or not 0 <= at < len(self._open)
                or any(not 0 <= index < self._open[at].count for index, _ in head.wanted)
            ):
                raise SourceError(reason="The server asked for a folder that it has left.")
            self._epoch = head.epoch
            self._offers.clear()
            self._batch = _Batch()
            self._reading = self._read(self._open[at], self._cutter, head.wanted)
        elif isinstance(head, Want):
            self._send_chunks(head)
        elif isinstance(head, Commit):
            return True
        else:
            raise SourceError(reason="The server sent what belongs to no backup.")
        return False

    # --- the walk ---

    def _walk_on(self) -> None:
        assert self._walk is not None
        folders: list[WalkedFolder] = []
        entries = 0
        last = True
        for folder in self._walk:
            count, listing = len(folder.entries), pack_entries(folder.entries)
            self._open.append(_Walked(folder=folder.keep(), listing=listing, count=count))
            self._entries_open += count
            folders.append(WalkedFolder(folder.path, listing, tuple(folder.skipped)))
            entries += count
            if len(folders) >= WALK_FOLDERS or entries >= WALK_ENTRIES or len(self._open) >= FOLDERS_AHEAD:
                last = False
                break
        if last:
            self._walk = None
        self._channel.send(pack(Walked(self._number, len(folders), last), pack_folders(folders)))
        self._number += len(folders)

    # --- files ---

    def _read_on(self) -> None:
        """Fill one offer and send it."""
        assert self._reading is not None
        for _ in self._reading:
            if self._batch.is_full:
                break
        else:
            self._reading = None
        batch, self._batch = self._batch, _Batch()
        if not batch.parts:
            return
        self._offer += 1
        self._offers[self._offer] = _Kept(chunks=batch.chunks)
        self._channel.send(pack(Offer(self._epoch, self._offer, tuple(batch.parts)), batch.rows))

    def _send_chunks(self, want: Want) -> None:
        kept = self._offers.pop(want.offer, None)
        if want.epoch != self._epoch or kept is None or len(want.bits) * 8 < len(kept.chunks):
            return
        head = Chunks(want.epoch, want.offer)
        batch: list[bytes] = []
        size = 0
        for at, chunk in enumerate(kept.chunks):
            if not want.bits[at >> 3] >> (at & 7) & 1:
                continue
            batch.append(chunk)
            size += len(chunk)
            if size >= CHUNKS_BYTES:
                self._channel.send(pack(head, *batch))
                batch, size = [], 0
        if batch:
            self._channel.send(pack(head, *batch))

    def _read(self, walked: _Walked, cutter: Cutter, wanted: tuple[tuple[int, bool], ...]) -> Iterator[None]:
        """Fills the batch; yields where an offer may end."""
        folder, entries = walked.folder, unpack_entries(walked.listing)
        for index, content in wanted:
            entry = entries[index]
            try:
                if content and stat.S_ISREG(entry.mode):
                    yield from self._read_file(folder, cutter, index, entry)
                else:
                    end = FileEnd(True, False, folder.attributes(entry))
                    self._batch.parts.append(Part(index, 0, None, end))
            except SourceError as err:
                batch = self._batch
                stray = len(batch.chunks) - sum(part.pieces for part in batch.parts)
                batch.parts.append(Part(index, stray, failed=(type(err).__name__, err.message)))
            yield

    def _read_file(self, folder: OpenFolder, cutter: Cutter, index: int, entry: Entry) -> Iterator[None]:
        with folder.open(entry) as data:
            seen: Entry | None = data.entry
            pieces = cutter.pieces(data)
            while True:
                batch = self._batch
                count = len(batch.chunks)
                for piece in islice(pieces, PIECES_MAX - count):
                    self._put(piece)
                    if batch.bytes >= BATCH_BYTES:
                        break
                else:
                    if len(batch.chunks) < PIECES_MAX:
                        break
                batch.parts.append(Part(index, len(batch.chunks) - count, seen))
                seen = None
                yield
            end = FileEnd(cutter.whole, data.changed(), data.attributes())
            batch.parts.append(Part(index, len(batch.chunks) - count, seen, end))

    def _put(self, piece: Cut) -> None:
        batch = self._batch
        batch.rows += ROW.pack(piece.id, piece.length)
        batch.chunks.append(piece.data or b"")
        batch.bytes += len(piece.data or b"")


def _after(policy: Policy) -> str:
    """The command after a backup runs however that ended; its failure is told, and changes nothing."""
    try:
        run_hook(policy, "after-backup")
    except SourceError as err:
        return err.message
    return ""
