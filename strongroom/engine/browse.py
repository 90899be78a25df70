"""Looking into a tree's restore point: one folder, one entry, one file, without reading more than the way to it.

Each call is a session of its own; the root is loaded after the pin is set, so that no prune takes it apart. A folder
costs one page a level of the stream's index and the chunks of its records; a file is read chunk by chunk as the caller
takes it.
"""

import stat
from collections.abc import Iterator
from typing import Literal

from strongroom.base.errors import EntryNotFound, InvalidRequest
from strongroom.base.streams import Path
from strongroom.engine.chunker import HOLE
from strongroom.engine.content import iter_rows, parse_content
from strongroom.engine.manifest import CHANGED, Item, Stream, open_stream
from strongroom.engine.model import CHUNK_BYTES_MAX, BrowsedEntry
from strongroom.engine.repository import Repository

ENTRIES_MAX = 10_000  # of one listing; the caller goes on after the last name

_ZEROS = bytes(CHUNK_BYTES_MAX)


def list_entries(
    repository: Repository, root: str, path: Path, after: bytes | None = None, limit: int = 1000
) -> list[BrowsedEntry]:
    """At most `limit` entries of the folder at `path`, by name, those after the name `after`. Raises EntryNotFound."""
    if not 0 < limit <= ENTRIES_MAX:
        raise InvalidRequest(reason=f"A listing has 1 to {ENTRIES_MAX} entries.")
    with repository.session("mount") as session:
        found = repository.load_root(root)
        stream = open_stream(found, session.metadata)
        if path and not _is_folder(_require(stream, path)):
            raise EntryNotFound(id=_shown(path))
        entries: list[BrowsedEntry] = []
        for record, _ in stream.records((path, after or b"")):
            if record.path < path:
                continue
            if record.path > path:
                break
            entries += [_browsed(item) for item in record.items() if after is None or item.entry.name > after]
            if len(entries) >= limit:
                break
        return entries[:limit]


def entry(repository: Repository, root: str, path: Path) -> BrowsedEntry:
    """One entry below the root. Raises EntryNotFound."""
    with repository.session("mount") as session:
        found = repository.load_root(root)
        return _browsed(_require(open_stream(found, session.metadata), path))


def read_file(
    repository: Repository, root: str, path: Path, offset: int = 0, length: int | None = None
) -> Iterator[bytes]:
    """Bytes [offset, offset + length) of a regular file, or of a disk (path `()`), in pieces of at most a chunk.

    Raises EntryNotFound for what is no regular file, at the first piece. The session lasts until the iterator ends or
    is closed.
    """
    with repository.session("mount") as session:
        found = repository.load_root(root)
        if found.kind == "block" and not path:
            content, whole = parse_content(found.body.stream), found.size
        else:
            item = _require(open_stream(found, session.metadata), path)
            if item.content is None:
                raise EntryNotFound(id=_shown(path))
            content, whole = item.content, item.entry.size
        end = whole if length is None else min(whole, offset + length)
        for chunk_id, size, start in iter_rows(content, session.metadata, offset):
            first, last = max(offset - start, 0), min(size, end - start)
            if last <= first:
                break
            if chunk_id != HOLE:
                yield session.data(chunk_id)[first:last]
                continue
            while first < last:
                piece = _ZEROS[: last - first]
                yield piece
                first += len(piece)


def _require(stream: Stream, path: Path) -> Item:
    item = stream.find(path) if path else None
    if item is None:
        raise EntryNotFound(id=_shown(path))
    return item


def _is_folder(item: Item) -> bool:
    return stat.S_ISDIR(item.entry.mode)


def _browsed(item: Item) -> BrowsedEntry:
    mode = item.entry.mode
    if stat.S_ISDIR(mode):
        return BrowsedEntry(name=item.entry.name, kind="folder", entry=item.entry)
    if stat.S_ISLNK(mode):
        return BrowsedEntry(name=item.entry.name, kind="link", entry=item.entry, target=item.attributes.target)
    kind: Literal["file", "other"] = "other" if item.content is None else "file"
    return BrowsedEntry(name=item.entry.name, kind=kind, entry=item.entry, doubtful=bool(item.doubts & CHANGED))


def _shown(path: Path) -> str:
    return "/" + b"/".join(path).decode(errors="backslashreplace")
