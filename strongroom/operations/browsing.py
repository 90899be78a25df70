"""Looking inside restore points and at resources, for the request side. Wired by server.py.

Engine and source calls block, so they run in threads; each look pins a session of its own, so that prune keeps what is
being read.
"""

import asyncio
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

from strongroom.base.browsing import EntryView
from strongroom.base.errors import EntryNotFound
from strongroom.base.streams import Entry
from strongroom.control.reading import find_readable
from strongroom.control.subjects import ResourceRef
from strongroom.engine import BrowsedEntry, list_entries, read_file
from strongroom.engine import entry as find_entry
from strongroom.operations.job import Tools, source_ref
from strongroom.operations.restore import split
from strongroom.sources.open import driver_for

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char-device",
    stat.S_IFBLK: "block-device",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RestorePointBrowser:
    """Implements api.services.Browser."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def entries(
        self, project_id: str, backup_id: str, path: bytes, after: bytes | None, limit: int
    ) -> Sequence[EntryView]:
        vault, root = await find_readable(self._tools.database, project_id, backup_id)

        def look() -> list[EntryView]:
            with self._tools.repository(vault, None, "mount") as repository:
                loaded = repository.load_root(root)
                if loaded.kind == "block":
                    if split(path):
                        raise EntryNotFound(id=path.decode("utf-8", "backslashreplace"))
                    return [_disk(loaded.size, loaded.created_at)] if after is None else []
                found = list_entries(repository, root, split(path), after, limit)
                return [_view(path, browsed) for browsed in found]

        return await asyncio.to_thread(look)

    async def open_file(self, project_id: str, backup_id: str, path: bytes) -> tuple[EntryView, AsyncIterator[bytes]]:
        vault, root = await find_readable(self._tools.database, project_id, backup_id)
        held = ExitStack()

        def begin() -> tuple[EntryView, Iterator[bytes]]:
            repository = held.enter_context(self._tools.repository(vault, None, "mount"))
            loaded = repository.load_root(root)
            parts = split(path)
            if loaded.kind == "block" and not parts:
                return _disk(loaded.size, loaded.created_at), read_file(repository, root, ())
            browsed = find_entry(repository, root, parts)
            if browsed.kind != "file":
                raise EntryNotFound(id=path.decode("utf-8", "backslashreplace"), detail="not a regular file")
            return _view(b"/".join(parts[:-1]), browsed), read_file(repository, root, parts)

        try:
            view, pieces = await asyncio.to_thread(begin)
        except BaseException:
            await asyncio.to_thread(held.close)
            raise
        return view, _stream(pieces, held)


class ResourceInspector:
    """Implements api.services.Inspector."""

    async def inspect(self, resource_type: str, path: bytes, options: dict[str, object]) -> tuple[int, str | None]:
        def look() -> tuple[int, str | None]:
            resource = ResourceRef(
                id="", type=resource_type, name="", path=path, options=options, worker_group="", size_bytes=0
            )
            found = driver_for(resource_type, path).inspect(source_ref(resource), measure=True)
            return found.size_bytes or 0, None if found.readable else found.reason

        return await asyncio.to_thread(look)


async def _stream(pieces: Iterator[bytes], held: ExitStack) -> AsyncIterator[bytes]:
    """One piece at a time, each read and checked in a thread; the session ends with the last one, or with the client."""
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        await asyncio.shield(asyncio.to_thread(held.close))


def _view(folder: bytes, browsed: BrowsedEntry) -> EntryView:
    entry: Entry = browsed.entry
    prefix = b"/".join(split(folder))
    return EntryView(
        raw_path=prefix + b"/" + entry.name if prefix else entry.name,
        kind=_KINDS.get(stat.S_IFMT(entry.mode), "file"),
        size_bytes=entry.size,
        mode=stat.S_IMODE(entry.mode),
        uid=entry.uid,
        gid=entry.gid,
        modified_at=_EPOCH + timedelta(microseconds=entry.mtime_ns // 1000),
        target=browsed.target,
        changed_while_read=browsed.changed_while_read,
    )


def _disk(size_bytes: int, taken_at: datetime) -> EntryView:
    return EntryView(
        raw_path=b"",
        kind="disk",
        size_bytes=size_bytes,
        mode=0,
        uid=0,
        gid=0,
        modified_at=taken_at,
        target=b"",
        changed_while_read=False,
    )
