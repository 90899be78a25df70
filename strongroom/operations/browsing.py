"""Looking inside restore points and at resources, for the request side. Wired by server/.

Engine and source calls block, so they run in threads; each look pins a session of its own, so that prune keeps what is
being read.
"""

import asyncio
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from strongroom.base import ssh_address
from strongroom.base.browsing import EntryView
from strongroom.base.errors import EntryNotFound, InvalidRequest
from strongroom.base.streams import Entry
from strongroom.control.agent_identity import agent_obstacle
from strongroom.control.reading import find_readable
from strongroom.control.resource_binding import Look
from strongroom.control.subjects import ResourceRef
from strongroom.control.vault_kinds import HOST_TYPES
from strongroom.engine import BrowsedEntry
from strongroom.engine.browse import entry as find_entry
from strongroom.engine.browse import list_entries, read_file
from strongroom.operations.job import OWN_PLACE, Tools, overlaps, source_ref, station_of
from strongroom.operations.machine_record import MACHINE, look_at_machine
from strongroom.operations.restore import split
from strongroom.sources.hosts.driver import HostDriver
from strongroom.sources.open import driver_for

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char-device",
    stat.S_IFBLK: "block-device",
}
LOOK_AGAIN_S = 1.0  # a download of what others share ends within so long of the share's end
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RestorePointBrowser:
    """Implements api.services.Browser."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def entries(
        self, project_id: str, backup_id: str, path: bytes, after: bytes | None, limit: int
    ) -> Sequence[EntryView]:
        found = await find_readable(self._tools.database, project_id, backup_id)
        root = found.root

        def look() -> list[EntryView]:
            repository = self._tools.repository(found.vault, None, domain_id=found.domain_id)
            loaded = repository.load_root(root)
            if loaded.kind == "block":
                if split(path):
                    raise EntryNotFound(id=path.decode("utf-8", "backslashreplace"))
                return [_disk(loaded.size, loaded.created_at)] if after is None else []
            return [_view(path, browsed) for browsed in list_entries(repository, root, split(path), after, limit)]

        return await asyncio.to_thread(look)

    def _look_by_ssh(self, resource: ResourceRef) -> Look:
        roots = tuple((path, ()) for path in ssh_address.parse_ssh_address(resource.path).paths)
        found = HostDriver(station_of(self._tools, resource)).inspect(source_ref(replace(resource, roots=roots)))
        return Look(size_bytes=0, obstacle=None if found.readable else found.reason)

    async def open_file(self, project_id: str, backup_id: str, path: bytes) -> tuple[EntryView, AsyncIterator[bytes]]:
        found = await find_readable(self._tools.database, project_id, backup_id)
        root, parts = found.root, split(path)

        def begin() -> tuple[EntryView, Iterator[bytes]]:
            repository = self._tools.repository(found.vault, None, domain_id=found.domain_id)
            loaded = repository.load_root(root)
            if loaded.kind == "block" and not parts:
                return _disk(loaded.size, loaded.created_at), read_file(repository, root, ())
            browsed = find_entry(repository, root, parts)
            if browsed.kind != "file":
                shown = path.decode("utf-8", "backslashreplace")
                raise InvalidRequest(
                    reason=f"{shown or 'It'} is no regular file. Download a file of it, or restore it."
                )
            return _view(b"/".join(parts[:-1]), browsed), read_file(repository, root, parts)

        view, pieces = await asyncio.to_thread(begin)
        if found.shared:
            return view, self._while_shared(project_id, backup_id, _stream(pieces))
        return view, _stream(pieces)

    async def _while_shared(
        self, project_id: str, backup_id: str, pieces: AsyncGenerator[bytes]
    ) -> AsyncGenerator[bytes]:
        """The pieces of another project's backup, for as long as it shares it. Raises BackupNotFound, Conflict 2005."""
        clock, looked_s = self._tools.clock, 0.0
        async with aclosing(pieces):
            async for piece in pieces:
                if clock.monotonic_s() - looked_s > LOOK_AGAIN_S:
                    await find_readable(self._tools.database, project_id, backup_id)
                    looked_s = clock.monotonic_s()
                yield piece


class ResourceInspector:
    """Implements api.services.Inspector. Folders of the service itself cannot be protected, nor what lies around them:
    a restore would overwrite the state it runs on, and the store would back itself up."""

    def __init__(self, forbidden: Sequence[bytes], tools: Tools) -> None:
        self._forbidden = forbidden
        self._tools = tools

    async def inspect(self, resource_id: str, resource_type: str, path: bytes, options: dict[str, object]) -> Look:
        if resource_type in HOST_TYPES and not path.startswith(ssh_address.SCHEME):
            return Look(size_bytes=0, obstacle=await agent_obstacle(self._tools.database, path))

        def look() -> Look:
            resource = ResourceRef(
                id=resource_id, type=resource_type, name="", path=path, options=options, worker_group="", size_bytes=0
            )
            if resource_type in HOST_TYPES:
                return self._look_by_ssh(resource)
            if resource_type == MACHINE:
                return look_at_machine(resource)
            if overlaps(path, self._forbidden):
                return Look(size_bytes=0, obstacle=OWN_PLACE)
            found = driver_for(resource_type, path).inspect(source_ref(resource), measure=True)
            return Look(size_bytes=found.size_bytes or 0, obstacle=None if found.readable else found.reason)

        return await asyncio.to_thread(look)

    def _look_by_ssh(self, resource: ResourceRef) -> Look:
        roots = tuple((path, ()) for path in ssh_address.parse_ssh_address(resource.path).paths)
        found = HostDriver(station_of(self._tools, resource)).inspect(source_ref(replace(resource, roots=roots)))
        return Look(size_bytes=0, obstacle=None if found.readable else found.reason)


async def _stream(pieces: Iterator[bytes]) -> AsyncGenerator[bytes]:
    """One piece at a time, each read and checked in a thread. The engine's session ends with the iterator.

    When the client leaves while a piece is being read, that piece is waited for before the iterator is closed.
    """
    reading: asyncio.Future[bytes | None] | None = None

    async def end() -> None:
        if reading is not None:
            await asyncio.wait([reading])
        close = getattr(pieces, "close", None)
        if close is not None:
            await asyncio.to_thread(close)

    try:
        while True:
            reading = asyncio.ensure_future(asyncio.to_thread(next, pieces, None))
            piece = await asyncio.shield(reading)
            if piece is None:
                return
            yield piece
    finally:
        await asyncio.shield(end())


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
        changed_while_read=browsed.doubtful,
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
