"""A tree backup: the parent's stream of records and the new walk, both in the same order, merged record by record.

    walk    ()   a    a/b       c     d           equal stats, nothing in doubt: the old record is taken byte for byte
    parent  ()   a    a/b  b    c     d  e        else name by name: unchanged entries keep content and attributes

A folder that only the parent has (b, e) is passed over. Memory holds one folder part of each side, not the tree.
"""

import stat
from collections.abc import Iterator
from typing import cast

from strongroom.base.errors import Corrupt, ObjectMissing, SourceGone, StrongroomError
from strongroom.base.streams import CutFolder, Entry, FileData, Folder, Monitor, Path, Skipped, TreeStream
from strongroom.base.units import GIB, MIB
from strongroom.engine.content import BLOCKS, Content, GetMetadata
from strongroom.engine.files import ContentReader, changed_extents, is_image
from strongroom.engine.intake import Intake
from strongroom.engine.manifest import (
    CHANGED,
    RACY,
    Item,
    Record,
    Stream,
    StreamRow,
    StreamWriter,
    count_stats,
    is_same,
    pack_opening,
    pack_records,
    pack_stats,
    parse_record,
    record_size,
)
from strongroom.engine.model import REPORT_PATHS_MAX, ChangedBlocks

READS_MAX = 3  # of a file that changes while it is read
REREAD_BYTES_MAX = GIB  # a larger file that changes is marked at once: it will not stay still for longer
TICK_BYTES = MIB  # how often the monitor hears of progress
TICK_ENTRIES = 4096
LINKS_REMEMBERED_MAX = 16384  # contents of files with several names; one that is forgotten is read again

_SAME_FIRST, _SAME_LAST = 1, 8  # mode, uid, gid, mtime_ns, size, ctime_ns, ino of an Entry


class Parent:
    """The records of the parent's stream, taken in step with the walk. A damaged one ends early, with the reason."""

    def __init__(self, stream: Stream | None) -> None:
        self.damage: str | None = None
        self._frames = stream.frames() if stream is not None else iter(())
        self._data: bytes | None = None  # the next record, decoded only when it is not taken as a whole
        self._record: Record | None = None
        self._known: dict[bytes, Item] = {}  # of the folder being walked, from parts that reach beyond the walk's part
        self._path: Path | None = None
        self._advance()

    def find_same(self, path: Path, opening: bytes) -> bytes | None:
        """The old record if it says exactly the same of this folder part, and may be believed. It is taken then."""
        if path != self._path:
            self._known.clear()
            self._path = path
        if self._known:
            return None
        if self._data is None or not is_same(self._data, opening):
            while (record := self._peek()) is not None and record.path < path:
                self._advance()
            if self._data is None or not is_same(self._data, opening):
                return None
        data = self._data
        self._advance()
        return data

    def known(self, path: Path, last: bytes) -> dict[bytes, Item]:
        """Old entries by name, at least those up to the name `last`. Call `find_same` before, `forget` after."""
        while (record := self._peek()) is not None and record.path == path and record.first <= last:
            try:
                for item in record.items():
                    self._known[item.entry.name] = item
            except Corrupt as err:
                self._give_up(err)
                break
            self._advance()
        return self._known

    def forget(self, last: bytes) -> None:
        """Names up to `last` will not be asked for again."""
        if self._known:
            self._known = {name: item for name, item in self._known.items() if name > last}

    def _advance(self) -> None:
        self._record = None
        try:
            self._data = next(self._frames, None)
        except (Corrupt, ObjectMissing) as err:
            self._give_up(err)

    def _peek(self) -> Record | None:
        if self._record is None and self._data is not None:
            try:
                self._record = parse_record(self._data)
            except Corrupt as err:
                self._give_up(err)
        return self._record

    def _give_up(self, err: StrongroomError) -> None:
        self.damage = f"the parent's manifest is damaged: {err.message}"
        self._data = self._record = None
        self._frames = iter(())


class TreeBackup:
    """One walk into one Intake. After `run`, the public fields are what the report says."""

    def __init__(self, intake: Intake, get: GetMetadata, parent: Parent, monitor: Monitor) -> None:
        self.bytes_total = 0
        self.bytes_read = 0
        self.entries = 0
        self.folders = 0
        self.vanished = 0
        self.changed: list[Path] = []
        self.changed_count = 0
        self.skipped: list[Skipped] = []
        self.skipped_count = 0
        self.blocks_reason: str | None = None
        self._intake = intake
        self._get = get
        self._parent = parent
        self._monitor = monitor
        self._reader = ContentReader(intake, get, self._read)
        self._links: dict[tuple[int, int], tuple[Entry, Content]] = {}
        self._unchanged_before_ns = 0
        self._blocks: ChangedBlocks | None = None
        self._next_tick = (TICK_BYTES, TICK_ENTRIES)
        self._bytes_of_file = 0  # read of the file under way, which bytes_total does not count yet

    def run(self, stream: TreeStream, blocks: ChangedBlocks | None) -> tuple[int, list[StreamRow]]:
        """Walk once; (level, rows) of the stored stream."""
        self._unchanged_before_ns = stream.unchanged_before_ns
        self._blocks = blocks
        writer = StreamWriter(self._intake.chunker, self._intake.put_metadata)
        last_path: Path | None = None
        for folder in stream.folders():
            self._count(folder)
            first = b""
            if folder.path != last_path:
                self.folders += 1
            elif folder.entries:
                first = folder.entries[0].name
            else:
                continue  # a later part of which nothing was left
            last_path = folder.path
            self._folder(folder, first, writer)
            self._progress()
        return writer.finish()

    def _folder(self, folder: Folder, first: bytes, writer: StreamWriter) -> None:
        path = folder.path
        stats = cast(CutFolder, folder).listing if hasattr(folder, "listing") else pack_stats(folder.entries)
        same = self._parent.find_same(path, pack_opening(path, first, stats))
        if same is not None and not self._intake.is_wary:
            self.entries += count_stats(stats)
            self.bytes_total += record_size(same)
            writer.add((path, first), same)
            return
        last = folder.entries[-1].name if folder.entries else b""
        if same is not None:
            known = {item.entry.name: item for item in parse_record(same).items()}
        else:
            known = self._parent.known(path, last)
        items = list(self._items(folder, known))
        self._parent.forget(last)
        for key, data in pack_records(path, first, items):
            writer.add(key, data)

    def _items(self, folder: Folder, known: dict[bytes, Item]) -> Iterator[Item]:
        olds = [known.get(entry.name) for entry in folder.entries]
        same = [
            old is not None and self._is_unchanged(entry, old) for entry, old in zip(folder.entries, olds, strict=True)
        ]
        if hasattr(folder, "expect") and not all(same):
            fresh = [entry for entry, unchanged in zip(folder.entries, same, strict=True) if not unchanged]
            cast(CutFolder, folder).expect(self._expected(fresh))
        for entry, old, unchanged in zip(folder.entries, olds, same, strict=True):
            if unchanged and old is not None:
                item = Item(entry, old.attributes, old.content)
            else:
                try:
                    item = self._read_entry(folder, entry, old)
                except SourceGone:
                    self.vanished += 1
                    continue
            self.entries += 1
            self._bytes_of_file = 0
            if item.content is not None:
                self.bytes_total += item.entry.size
            yield item

    def _expected(self, entries: list[Entry]) -> list[tuple[Entry, bool]]:
        """What `_read_entry` will ask for, unless something changes meanwhile: second names are not read again."""
        expected = []
        seen = set(self._links)
        for entry in entries:
            content = stat.S_ISREG(entry.mode)
            if content and entry.nlink > 1:
                content = (entry.dev, entry.ino) not in seen
                seen.add((entry.dev, entry.ino))
            expected.append((entry, content))
        return expected

    def _is_unchanged(self, entry: Entry, old: Item) -> bool:
        """Earned by every field a write or a replacement would touch, and by time to notice it (RULINGS 15)."""
        if old.doubts or entry[_SAME_FIRST:_SAME_LAST] != old.entry[_SAME_FIRST:_SAME_LAST]:
            return False
        return old.content is None or self._intake.holds(old.content)

    def _read_entry(self, folder: Folder, entry: Entry, old: Item | None) -> Item:
        if not stat.S_ISREG(entry.mode):
            return Item(entry, folder.attributes(entry), None, self._racy(entry))
        if entry.nlink > 1:
            found = self._links.get((entry.dev, entry.ino))
            if found is not None and found[0][_SAME_FIRST:_SAME_LAST] == entry[_SAME_FIRST:_SAME_LAST]:
                return Item(entry, folder.attributes(entry), found[1], self._racy(entry))
        item = self._read_content(folder, entry, old)
        seen, content = item.entry, item.content
        if item.doubts & CHANGED:
            self._name_changed((*folder.path, entry.name))
        elif seen.nlink > 1 and content is not None and len(self._links) < LINKS_REMEMBERED_MAX:
            self._links[seen.dev, seen.ino] = (seen, content)
        return item

    def _racy(self, entry: Entry) -> int:
        return RACY if entry.ctime_ns >= self._unchanged_before_ns else 0

    def _read_content(self, folder: Folder, entry: Entry, old: Item | None) -> Item:
        """The file as it was when it was read; CHANGED when it changed in every reading."""
        attempt = 0
        while True:
            attempt += 1
            self._bytes_of_file = 0
            with folder.open(entry) as data:
                seen = data.entry
                content, whole = self._read_once(folder, data, old)
                attributes = data.attributes()
                if whole and not data.changed():
                    return Item(seen, attributes, content, self._racy(seen))
            if attempt == READS_MAX or seen.size > REREAD_BYTES_MAX:
                return Item(seen, attributes, content, self._racy(seen) | CHANGED)

    def _read_once(self, folder: Folder, data: FileData, old: Item | None) -> tuple[Content, bool]:
        blocks = self._blocks
        if blocks is None or not is_image(data.entry):
            return self._reader.read_file(data, old.content if old is not None else None)
        size = data.entry.size
        images = sum(1 for entry in folder.entries if is_image(entry))
        if blocks.size not in (None, size):
            self.blocks_reason = "the changed-block list is of a disk of another size"
        elif folder.path or images != 1:
            self.blocks_reason = "a changed-block list is for the one image in the top folder"
        elif old is None or old.content is None or old.content.layout != BLOCKS or old.entry.size != size:
            self.blocks_reason = "the parent does not hold this image"
        elif old.doubts & CHANGED:
            self.blocks_reason = "the image changed while the parent was made"
        else:
            return self._reader.read_blocks(size, changed_extents(blocks.extents, size), data.read_into, old.content)
        return self._reader.read_file(data)

    def _count(self, folder: Folder) -> None:
        self.skipped_count += len(folder.skipped)
        if folder.skipped and len(self.skipped) < REPORT_PATHS_MAX:
            self.skipped += folder.skipped[: REPORT_PATHS_MAX - len(self.skipped)]

    def _name_changed(self, path: Path) -> None:
        self.changed_count += 1
        if len(self.changed) < REPORT_PATHS_MAX:
            self.changed.append(path)

    def _read(self, count: int) -> None:
        """Called by the reader with what it read."""
        self.bytes_read += count
        self._bytes_of_file += count
        self._monitor.check()  # however slow the source is, a stop is heard with its next piece
        if self.bytes_read >= self._next_tick[0]:
            self._progress()

    def _progress(self) -> None:
        if self.bytes_read >= self._next_tick[0] or self.entries >= self._next_tick[1]:
            self._next_tick = (self.bytes_read + TICK_BYTES, self.entries + TICK_ENTRIES)
            self._monitor.check()
            self._monitor.advance(self.bytes_total + self._bytes_of_file, 0, self.entries)
