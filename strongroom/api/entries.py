"""Inside a restore point, under /ext: the report of a backup, its names, one file as a stream, and restore by path.

Names are bytes. They are shown as text (what is not UTF-8 percent-encoded) and exactly, in base64; a request names a
path either way, `path` or `path_b64`.
"""

import base64
import binascii
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from strongroom.api.backups import MappingBody, machine_wish
from strongroom.api.operation import Call, Operation
from strongroom.base.browsing import EntryView
from strongroom.base.clock import api_timestamp
from strongroom.base.errors import InvalidRequest
from strongroom.base.paths import readable_path
from strongroom.control import backups, restores
from strongroom.control.received import require_accepted
from strongroom.control.restores import NewRestore

ENTRIES_LIMIT_MAX = 1000  # names of one answer; a folder of a million is paged
PATH_BYTES_MAX = 4096  # as of the kernel; in base64 a third more
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 ._-]")


class EntriesQuery(msgspec.Struct):
    """One page of one folder. after: `next` of the page before."""

    path: str | None = None
    path_b64: str | None = None
    after: str | None = None
    limit: int | None = None


class PathQuery(msgspec.Struct):
    path: str | None = None
    path_b64: str | None = None


class RestorePart(msgspec.Struct):
    """Absent path: everything; absent target: the source resource.

    mappings, power_on: of a server, as in v3. new_name: a new server of this name is made beside the target.
    skip_damaged: of a damaged backup what is whole, onto another resource; the task's outcome names what was left out.
    """

    path: str | None = None
    path_b64: str | None = None
    target_resource_id: str | None = None
    target_path: str | None = None
    target_path_b64: str | None = None
    force: bool | None = None
    mappings: list[MappingBody] | None = None
    power_on: bool | None = None
    new_name: str | None = None
    skip_damaged: bool | None = None


class RestoreBody(msgspec.Struct):
    restore: RestorePart


class BackupReportAnswer(msgspec.Struct):
    """backup: its state, beside what the run reported of bytes, entries and what it left out, once it has ended."""

    backup: dict[str, Any]


class EntryPart(msgspec.Struct, kw_only=True):
    """One name: for people, and exactly in raw_path_b64. target: of a symbolic link."""

    name: str
    path: str
    raw_path_b64: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    modified_at: str
    target: str | None
    changed_while_read: bool


class EntriesAnswer(msgspec.Struct):
    """next: for `after`, null on the last page."""

    entries: list[EntryPart]
    next: str | None


class JobAnswer(msgspec.Struct):
    job_id: str


async def show_report(call: Call) -> BackupReportAnswer:
    """What the backup read, what of it was new, and what it left out: the members of its report beside its state."""
    backup = await backups.show_backup(call.services.database, call.project_id, call.path["backup_id"])
    if backup.member_status is not None:
        require_accepted(backup.member_status)  # it names files
    state = {
        "id": backup.id,
        "status": backup.status,
        "name": backup.name,
        "vault_id": backup.vault_id,
        "checkpoint_id": backup.checkpoint_id,
        "resource_id": backup.resource_id,
        "resource_size_bytes": backup.resource_size_bytes,
        "bytes_stored": backup.stored_bytes,
        "created_at": api_timestamp(backup.created_at),
        "damage": backup.damage,
    }
    return BackupReportAnswer(backup=backup.report | state)


async def list_entries(call: Call) -> EntriesAnswer:
    query: EntriesQuery = call.query
    limit = ENTRIES_LIMIT_MAX if query.limit is None else query.limit
    if not 1 <= limit <= ENTRIES_LIMIT_MAX:
        raise InvalidRequest(reason=f"Invalid limit: give 1 to {ENTRIES_LIMIT_MAX}.")
    found = await call.services.browser.entries(
        call.project_id,
        call.path["backup_id"],
        _path(query.path, query.path_b64, "path") or b"",
        _decoded(query.after, "after") if query.after else None,
        limit + 1,
    )
    page = found[:limit]
    more = len(found) > limit
    following = _encoded(_name(page[-1])) if more else None
    return EntriesAnswer(entries=[wire_entry(entry) for entry in page], next=following)


async def download(call: Call) -> Response:
    """One file, or a disk, verified while it streams. A damaged piece ends the connection short of Content-Length."""
    path = _path(call.query.path, call.query.path_b64, "path") or b""
    view, pieces = await call.services.browser.open_file(call.project_id, call.path["backup_id"], path)
    name = readable_path(_name(view)) or f"{call.path['backup_id']}.img"
    headers = {
        "Content-Length": str(view.size_bytes),
        "Content-Disposition": f'attachment; filename="{_NOT_PLAIN.sub("_", name)}"; '
        f"filename*=UTF-8''{quote(_name(view) or name.encode(), safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    # The first piece is read before the answer begins: damage there is an error with a code, and not a short body.
    first = await anext(pieces, b"")
    return _Download(first, pieces, headers)


class _Download(StreamingResponse):
    """A stream whose source is closed with the answer, however it ends, so that what it pins is free again."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(_joined(first, rest), headers=headers, media_type="application/octet-stream")
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if isinstance(self._rest, AsyncGenerator):
                await self._rest.aclose()


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def restore_part(call: Call) -> JobAnswer:
    """One file or folder, or everything, to a registered resource."""
    asked: RestorePart = call.body.restore
    job_id = await restores.request_restore(
        call.services.database,
        call.project_id,
        call.path["backup_id"],
        NewRestore(
            target_id=asked.target_resource_id,
            path=_path(asked.path, asked.path_b64, "path"),
            target_path=_path(asked.target_path, asked.target_path_b64, "target_path"),
            force=bool(asked.force),
            machine=machine_wish(asked.mappings, asked.power_on, asked.new_name),
            skip_damaged=bool(asked.skip_damaged),
        ),
        request_id=call.request_id,
        clock=call.services.clock,
    )
    return JobAnswer(job_id=job_id)


def wire_entry(entry: EntryView) -> EntryPart:
    """One name of a folder."""
    return EntryPart(
        name=readable_path(_name(entry)),
        path=readable_path(entry.raw_path),
        raw_path_b64=_encoded(entry.raw_path),
        kind=entry.kind,
        size=entry.size_bytes,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        modified_at=api_timestamp(entry.modified_at),
        target=readable_path(entry.target) if entry.kind == "symlink" else None,
        changed_while_read=entry.changed_while_read,
    )


def _name(entry: EntryView) -> bytes:
    return entry.raw_path.rpartition(b"/")[2]


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decoded(text: str, member: str) -> bytes:
    """Either alphabet of base64. Raises InvalidRequest."""
    try:
        raw = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as err:
        raise InvalidRequest(reason=f"Invalid {member}: it is not base64.") from err
    if len(raw) > PATH_BYTES_MAX:
        raise InvalidRequest(reason=f"Invalid {member}: use at most {PATH_BYTES_MAX} bytes.")
    return raw


def _path(text: str | None, exact: str | None, member: str) -> bytes | None:
    """Bytes of a path inside a restore point or a target, without outer slashes; None when it is the whole.

    Raises InvalidRequest for one that is too long, or that would lead out.
    """
    raw = _decoded(exact, f"{member}_b64") if exact else (text or "").encode("utf-8", "surrogatepass")
    if len(raw) > PATH_BYTES_MAX:
        raise InvalidRequest(reason=f"Invalid {member}: use at most {PATH_BYTES_MAX} bytes.")
    if b"\x00" in raw or {b".", b".."} & set(raw.split(b"/")):
        raise InvalidRequest(reason=f"Invalid {member}: give it from the top of the resource, without . and .. parts.")
    return raw.strip(b"/") or None


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="show_backup_report",
        method="GET",
        path="/ext/v1/{project_id}/backups/{backup_id}",
        action="cbr:backups:get",
        handler=show_report,
        answer=BackupReportAnswer,
    ),
    Operation(
        name="list_entries",
        method="GET",
        path="/ext/v1/{project_id}/backups/{backup_id}/entries",
        action="strongroom:entries:list",
        handler=list_entries,
        answer=EntriesAnswer,
        query=EntriesQuery,
    ),
    Operation(
        name="download_entry",
        method="GET",
        path="/ext/v1/{project_id}/backups/{backup_id}/download",
        action="strongroom:entries:download",
        handler=download,
        answer="application/octet-stream",
        query=PathQuery,
        audit=True,
    ),
    Operation(
        name="restore_part",
        method="POST",
        path="/ext/v1/{project_id}/backups/{backup_id}/restore",
        action="cbr:backups:restore",
        handler=restore_part,
        answer=JobAnswer,
        body=RestoreBody,
        status=202,
    ),
)
