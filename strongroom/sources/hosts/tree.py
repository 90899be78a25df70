"""A tree that an agent walks, reads and cuts: the TreeStream at the server's end.

The engine asks as it asks any source. Folders come ahead of it; what it will want of one is told at once (`expect`), so
that the agent reads on while this end stores. Of each offer of chunks the known ones are asked of the engine's index,
and only the others travel. Nothing the agent says is believed that matters to others: names are checked here, chunks by
the engine.
"""

import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType

from strongroom.base.errors import SourceChanged, SourceUnreachable
from strongroom.base.streams import Attributes, Cutting, Entry, Extent, Piece, Skipped
from strongroom.base.units import MIB
from strongroom.sources.hosts.channel import Channel
from strongroom.sources.hosts.messages import (
    PIECES_MAX,
    Chunks,
    Cut,
    Failed,
    FileEnd,
    Offer,
    Part,
    PointOpened,
    Read,
    Released,
    Walked,
    WalkedFolder,
    Want,
    error_of,
    from_agent,
    pack,
    unpack_entries,
    unpack_folders,
)

RELEASE_FOLDERS = 16  # folders done with before the agent is told, if more wait here
SILENT_S_MAX = 1800.0  # a file system of the host may hang for so long
NAME_BYTES_MAX = 255
DEPTH_MAX = 10_000
_NO_NAMES = frozenset({b"", b".", b".."})
_HOLE = bytes(32)
_ROW = 40  # id 32, length u64


@dataclass(kw_only=True)
class _Offered:
    """An offer with what was wanted of it, and what of that has arrived."""

    number: int
    parts: deque[Part]
    rows: memoryview
    wanted: bytes
    data: deque[memoryview] = field(default_factory=deque)
    at: int = 0  # rows taken
    end: int = 0  # bytes taken of data[0]


@dataclass(kw_only=True)
class _Asked:
    """What was asked of one folder, and what came of it."""

    epoch: int = 0
    wanted: deque[tuple[int, bool]] = field(default_factory=deque)
    offers: deque[_Offered] = field(default_factory=deque)


class HostTree:
    """CutTree of a host. For one thread. `sent_bytes`: content that travelled."""

    def __init__(self, channel: Channel, opened: PointOpened) -> None:
        self.unchanged_before_ns = opened.unchanged_before_ns
        self.sent_bytes = 0
        self._channel = channel
        self._opened = opened
        self._knows: Callable[[bytes], bool] = lambda _: False
        self._walked: deque[WalkedFolder] = deque()
        self._number = 0  # of the folder that is handed out next
        self._announced = 0
        self._released = 0
        self._last = False
        self._asked = _Asked()
        self._epochs = 0
        self._left = 0  # pieces of the newest part that were not taken

    def cut_by(self, cutting: Cutting) -> None:
        self._knows = cutting.knows
        self._channel.send(pack(Cut(cutting.key, cutting.seed)))

    def root(self) -> tuple[Entry, Attributes]:
        if not stat.S_ISDIR(self._opened.root.mode) or self._opened.root.name:
            raise _nonsense("a root that is no folder")
        return self._opened.root, self._opened.root_attributes

    def folders(self) -> Iterator["HostFolder"]:
        before: HostFolder | None = None
        while True:
            while not self._walked:
                if self._last:
                    return
                self._release()
                self._pump()
            folder = HostFolder(self, self._number, self._walked.popleft())
            _require_order(before, folder)
            before = folder
            yield folder
            self._number += 1
            if self._number - self._released >= RELEASE_FOLDERS:
                self._release()

    def _release(self) -> None:
        if self._number > self._released:
            self._released = self._number
            self._channel.send(pack(Released(self._number)))

    # --- what the folder being read asks ---

    def ask(self, number: int, wanted: Sequence[tuple[int, bool]]) -> None:
        """Ask for entries of a folder, in this order; what was asked before is forgotten."""
        self._epochs += 1
        self._asked = _Asked(epoch=self._epochs, wanted=deque(wanted))
        self._left = 0
        self._channel.send(pack(Read(self._epochs, number, tuple(wanted))))

    def first_part(self, number: int, index: int, *, content: bool) -> Part:
        """The beginning of what was asked for one entry, asked now if it was not."""
        asked = self._asked
        if (index, content) not in asked.wanted:
            self.ask(number, [(index, content), *asked.wanted])
            asked = self._asked
        while asked.wanted.popleft() != (index, content):
            pass
        while True:
            part = self.next_part()
            if part.index == index:
                return part

    def next_part(self) -> Part:
        """Parts in the order of what was asked. What was left of the one before is lost."""
        offers = self._asked.offers
        while self._left:
            self._take_piece()
        while True:
            if offers and not offers[0].parts:
                offers.popleft()
            elif not offers:
                self._pump()
            else:
                part = offers[0].parts.popleft()
                self._left = part.pieces
                return part

    def pieces(self) -> Iterator[Piece]:
        """The pieces of the part that was taken last."""
        while self._left:
            yield self._take_piece()

    def _take_piece(self) -> Piece:
        offer = self._asked.offers[0]
        chunk_id, length = _row(offer.rows, offer.at)
        chunk = None
        if offer.wanted[offer.at >> 3] >> (offer.at & 7) & 1:
            while not offer.data or offer.end == len(offer.data[0]):
                if offer.data:
                    offer.data.popleft()
                    offer.end = 0
                else:
                    self._pump()
            chunk = offer.data[0][offer.end : offer.end + length]
            offer.end += len(chunk)
        offer.at += 1
        self._left -= 1
        return Piece(chunk_id, length, chunk)

    # --- messages ---

    def _pump(self) -> None:
        """Take one message, and answer it if it asks something."""
        payload = self._channel.take(SILENT_S_MAX)
        if payload is None:
            raise SourceUnreachable(reason="The agent is connected and says nothing. See its log on the host.")
        head, tail = from_agent(payload)
        if isinstance(head, Walked):
            self._take_walked(head, tail)
        elif isinstance(head, Offer):
            self._take_offer(head, tail)
        elif isinstance(head, Chunks):
            self._take_chunks(head, tail)
        elif isinstance(head, Failed):
            raise error_of(head.kind, head.reason, head.detail)
        else:
            raise _nonsense(type(head).__name__)

    def _take_walked(self, head: Walked, tail: memoryview) -> None:
        folders = unpack_folders(tail)
        if head.number != self._announced or head.folders != len(folders) or self._last:
            raise _nonsense("folders out of their order")
        self._announced += len(folders)
        self._last = head.last
        self._walked.extend(folders)

    def _take_offer(self, head: Offer, tail: memoryview) -> None:
        if head.epoch != self._asked.epoch:
            return  # the agent had not heard yet that something else is asked now
        count = sum(part.pieces for part in head.parts)
        if any(part.pieces < 0 for part in head.parts) or count > PIECES_MAX or len(tail) != count * _ROW:
            raise _nonsense("an offer of a wrong length")
        wanted = bytearray(-(-count // 8))
        for at in range(count):
            chunk_id, _ = _row(tail, at)
            if chunk_id != _HOLE and not self._knows(chunk_id):
                wanted[at >> 3] |= 1 << (at & 7)
        offered = _Offered(
            number=head.offer,
            parts=deque(head.parts),
            rows=tail,
            wanted=bytes(wanted),
        )
        self._asked.offers.append(offered)
        self._channel.send(pack(Want(head.epoch, head.offer, offered.wanted)))

    def _take_chunks(self, head: Chunks, tail: memoryview) -> None:
        if head.epoch != self._asked.epoch:
            return
        offered = next((offered for offered in self._asked.offers if offered.number == head.offer), None)
        if offered is None or not len(tail):
            raise _nonsense("chunks that were not asked for")
        self.sent_bytes += len(tail)
        offered.data.append(tail)


class HostFolder:
    """One folder, or one part of a large one; CutFolder."""

    def __init__(self, tree: HostTree, number: int, walked: WalkedFolder) -> None:
        self.path = walked.path
        self.listing = walked.listing
        self.skipped: Sequence[Skipped] = walked.skipped
        self.after = b""  # the last name of the parts before it
        self._tree = tree
        self._number = number
        self._indexes: dict[bytes, int] = {}

    @cached_property
    def entries(self) -> Sequence[Entry]:
        """Decoded and looked at when the engine asks, which it does not where the parent's record lists the same."""
        entries = unpack_entries(self.listing)
        _require_names(entries)
        return entries

    @property
    def last(self) -> bytes:
        """The last name of the folder so far."""
        return self.entries[-1].name if self.entries else self.after

    def expect(self, entries: Sequence[tuple[Entry, bool]]) -> None:
        self._tree.ask(self._number, [(self._index(entry), content) for entry, content in entries])

    def attributes(self, entry: Entry) -> Attributes:
        part = self._tree.first_part(self._number, self._index(entry), content=False)
        return _end_of(part).attributes

    def open(self, entry: Entry) -> "HostFile":
        part = self._tree.first_part(self._number, self._index(entry), content=True)
        if part.failed is not None:
            raise error_of(*part.failed)
        if part.entry is None or part.entry.name != entry.name or not stat.S_ISREG(part.entry.mode):
            raise _nonsense("another file than was asked for")
        _require_plain(part.entry)
        return HostFile(self._tree, part.entry, part)

    def _index(self, entry: Entry) -> int:
        if not self._indexes:
            self._indexes = {known.name: index for index, known in enumerate(self.entries)}
        return self._indexes[entry.name]


class HostFile:
    """One file on its way; CutFile."""

    def __init__(self, tree: HostTree, entry: Entry, first: Part) -> None:
        self.entry = entry
        self._tree = tree
        self._part = first

    def __enter__(self) -> "HostFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def pieces(self) -> Iterator[Piece]:
        while True:
            yield from self._tree.pieces()
            if self._part.end is not None:
                return
            following = self._tree.next_part()
            if following.failed is not None:
                raise error_of(*following.failed)
            if following.index != self._part.index:
                raise _nonsense("a file that ends in another one")
            self._part = following

    @property
    def whole(self) -> bool:
        return _end_of(self._part).whole

    def attributes(self) -> Attributes:
        return _end_of(self._part).attributes

    def changed(self) -> bool:
        return _end_of(self._part).changed

    def extents(self) -> Sequence[Extent]:
        raise SourceChanged(reason="The source cut this file itself; it cannot be read by places.")

    def read_into(self, offset: int, buffer: memoryview) -> int:
        raise SourceChanged(reason="The source cut this file itself; it cannot be read by places.")


def _row(rows: memoryview, at: int) -> tuple[bytes, int]:
    start = at * _ROW
    return bytes(rows[start : start + 32]), int.from_bytes(rows[start + 32 : start + _ROW], "little")


def _end_of(part: Part) -> FileEnd:
    if part.failed is not None:
        raise error_of(*part.failed)
    if part.end is None:
        raise _nonsense("an entry without an end")
    return part.end


def _require_order(before: HostFolder | None, folder: HostFolder) -> None:
    """Pre-order by name, parts of a folder by their first names."""
    path = folder.path
    if len(path) > DEPTH_MAX or any(not _is_name(name) for name in path):
        raise _nonsense("a path that is none")
    if before is None:
        if path:
            raise _nonsense("a tree without its root")
    elif path < before.path:
        raise _nonsense("folders not in their order")
    elif path == before.path:
        folder.after = before.last
        if folder.entries and folder.entries[0].name <= folder.after:
            raise _nonsense("folders not in their order")


def _require_names(entries: Sequence[Entry]) -> None:
    """Names inside their folder and in their order, and sizes that are some."""
    names = [entry.name for entry in entries]
    if not names:
        return
    joined = b"/".join(names)  # all at once: a walk hands over hundreds of thousands a second
    if (
        joined.count(b"/") != len(names) - 1
        or b"\0" in joined
        or max(map(len, names)) > NAME_BYTES_MAX
        or not _NO_NAMES.isdisjoint(names)
        or sorted(set(names)) != names
    ):
        raise _nonsense("names that are none, or not in their order")
    if min([entry[5] for entry in entries]) < 0 or max([entry[5] for entry in entries]) >= 1 << 63:
        raise _nonsense("an entry with impossible numbers")


def _is_name(name: bytes) -> bool:
    return len(name) <= NAME_BYTES_MAX and b"/" not in name and b"\0" not in name and name not in _NO_NAMES


def _require_plain(entry: Entry) -> None:
    """Numbers that fit into what is stored of them."""
    if not (0 <= entry.size < 1 << 63 and 0 <= entry.mode < 1 << 32 and entry.nlink >= 0):
        raise _nonsense("an entry with impossible numbers")


def _nonsense(what: str) -> SourceUnreachable:
    return SourceUnreachable(reason="The agent sent what no agent of this version sends.", detail=what)


assert _ROW * PIECES_MAX < MIB
